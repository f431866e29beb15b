# SPDX-License-Identifier: BSD-2-Clause
"""Configuration lookup: stream table, context descriptors, and their caches.

IHI 0070 §3.3, §5.1, §5.3 and §3.21.3. What was looked up is kept, valid or ILLEGAL, until a
CMD_CFGI_* names it or room is needed, whatever memory says by then. Failed fetches are never kept;
invalid level 1 descriptors only by the hostile caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.events import (
    CBadCd,
    CBadSte,
    CBadStreamid,
    CBadSubstreamid,
    FCdFetch,
    FSteFetch,
    FStreamDisabled,
)
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.arch.stream_table import L1Std, S1Dss, Ste
from vsmmu.smmu.cd import Context, decode_cd
from vsmmu.smmu.intent import Cause, config_outside, tally
from vsmmu.smmu.ste import Stream, decode_ste
from vsmmu.smmu.strtab import StreamTable
from vsmmu.smmu.transaction import CD, READ, Fault

if TYPE_CHECKING:
    from vsmmu.memory import Memory
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.smmu.walk import Walker

# STEs, and CDs behind one of them, whose meaning is remembered; beyond, all are forgotten.
MEANINGS = 128
# Entries of each of the caches; the oldest makes room.
CONFIG_ENTRIES = 1024
# Invalidations that a hostile SMMU holds back while no CMD_SYNC asks for them.
DEFERRED = 256
# StreamIDs, and CDs of each, that a hostile SMMU prefetches at a time.
_SPECULATED_STES = 64
_SPECULATED_CDS = 16
# A hostile miss also prefetches its neighbours in an aligned block of this many STEs.
_NEIGHBOURS = 8

_ALL_WORDS = (1 << Ste.dwords) - 1
# Key of an STE among what was prefetched for a stream; a CD's is its index.
_STE = -1
_E2H, _SMMUEN = Cr2.mask("e2h")[0], Cr0.mask("smmuen")[0]

_K = TypeVar("_K")
_V = TypeVar("_V")
_Words = tuple[int, ...]

_BAD_STREAMID = Fault(CBadStreamid)
_BAD_SUBSTREAMID = Fault(CBadSubstreamid)
_STREAM_DISABLED = Fault(FStreamDisabled)
_BAD_STE = Fault(CBadSte)
_BAD_CD = Fault(CBadCd)


@dataclass(frozen=True, slots=True)
class Caching:
    """How an SMMU caches (§3.21.3 leaves all of these open).

    Args:
        entries: room in each cache; 0 caches nothing.
        hostile: keep whatever may be kept. Structures around those in use are prefetched, when
            the SMMU is enabled and as soon as an invalidation has dropped them; invalid level 1
            descriptors are kept; STE.CONT is believed; CMD_CFGI_* and CMD_TLBI_* do nothing
            before the CMD_SYNC behind them.
        early: which 64-bit words of a prefetched STE or CD are kept, bit n for word n. The others
            are read when the entry is used: a structure may be read in pieces, in any order.
    """

    entries: int = CONFIG_ENTRIES
    hostile: bool = False
    early: int = _ALL_WORDS


# By the names of the switch: `Smmu(..., caching=...)`.
CACHING = {
    "none": Caching(entries=0),
    "normal": Caching(),
    "hostile": Caching(entries=64 * CONFIG_ENTRIES, hostile=True),
}


def context_index(stream: Stream, ssid: int | None) -> int | Fault | None:
    """The CD of a transaction with this SubstreamID, if any (§3.3.2, §5.2 S1CDMax and S1DSS).

    Returns:
        Its index; None if the transaction skips stage 1; or C_BAD_SUBSTREAMID, F_STREAM_DISABLED.
    """
    if ssid is None:
        if not stream.cd_bits or stream.dss == S1Dss.SSID0:
            return 0 if stream.stage1 else None
        return None if stream.dss == S1Dss.BYPASS else _STREAM_DISABLED
    if not stream.cd_bits or ssid >> stream.cd_bits:
        return _BAD_SUBSTREAMID
    if ssid == 0 and stream.dss == S1Dss.SSID0:
        return _STREAM_DISABLED
    return ssid


class Config:
    """Looks up and caches STEs and CDs of one SMMU.

    Args:
        regs: STRTAB_BASE, STRTAB_BASE_CFG, CR0 and CR2.
        memory: where the tables are.
        features: what is legal.
        walker: stage 2, for CDs of nested streams.
        counters: takes `config.hit`, `config.miss`, `config.prefetched`, `config.forgotten`,
            `config.invalidated` and `config.over`, with the name of the cause behind,
            `walk.l1std`, `walk.ste`, `walk.l1cd`, `walk.cd`; and at `settle` `config.inserted`
            and `config.evicted`.
        entries: room in each cache; 0 caches nothing.
        caching: instead of `entries`, all that can be chosen.
        derived: what others keep that was made of entries; emptied when one goes.

    Attributes:
        caching: as given; may be changed while nothing is cached.
        deferred: invalidations that the next CMD_SYNC carries out (hostile caching).
    """

    def __init__(
        self,
        regs: RegisterFile,
        memory: Memory,
        features: Features,
        walker: Walker,
        counters: Counter[str],
        entries: int = CONFIG_ENTRIES,
        *,
        caching: Caching | None = None,
        derived: dict[Any, Any] | None = None,
    ) -> None:
        self._regs = regs
        self._memory = memory
        self._features = features
        self._walker = walker
        self._counters = counters
        self.caching = caching or Caching(entries)
        self.deferred: list[Callable[[], object]] = []
        self._streams: dict[int, Stream | Fault] = {}
        self._contexts: _PerStream[int, Context | Fault] = _PerStream()
        # Level 1 descriptors: of the stream table by (SPLIT, index), of CDs the same per stream.
        self._l1: dict[tuple[int, int], L1Std] = {}
        self._l1cds: _PerStream[tuple[int, int], L1Cd] = _PerStream()
        # Prefetched: address and words of the STE and the CDs of a stream.
        self._early: _PerStream[int, tuple[int, _Words]] = _PerStream()
        self._derived: dict[Any, Any] = {} if derived is None else derived
        self._stes: dict[tuple[int, _Words], Stream | Fault] = {}
        self._hyp = bool(features.idr0.hyp)
        self._e2h = 0
        self._changes = Counter[str]()

    def __len__(self) -> int:
        """Entries: STEs, CDs and level 1 descriptors, without what was prefetched."""
        return len(self._streams) + len(self._contexts) + len(self._l1) + len(self._l1cds)

    def settle(self) -> None:
        """Bring the counters up to date: keeping an entry only adds to a number."""
        for part in (self._changes, self._contexts.changes, self._l1cds.changes):
            for name, count in part.items():
                self._counters["config." + name] += count
            part.clear()

    # Lookup.

    def stream(self, sid: int) -> Stream | Fault:
        """The configuration of a StreamID, or C_BAD_STREAMID, F_STE_FETCH, C_BAD_STE."""
        if self._hyp:
            self._follow_e2h()
        cached = self._streams.get(sid)
        if cached is not None:
            self._counters["config.hit"] += 1
            return cached
        self._counters["config.miss"] += 1
        if self.caching.hostile:
            neighbour = self._contiguous(sid)
            if neighbour is not None:
                return neighbour
        stream = self._look_up(sid)
        if self.caching.hostile:
            first = sid & -_NEIGHBOURS
            self._speculate(first, first + _NEIGHBOURS - 1)
        return stream

    def context(self, sid: int, stream: Stream, ssid: int = 0) -> Context | Fault:
        """A CD of a stream with stage 1, or the fault that its fetch or contents cause.

        `ssid` is the index that `context_index` gives.
        """
        held = self._contexts.entries.get(sid)
        cached = None if held is None else held.get(ssid)
        if cached is not None:
            self._counters["config.hit"] += 1
            return cached
        self._counters["config.miss"] += 1
        address = self._cd_address(sid, stream, ssid)
        if isinstance(address, Fault):
            return address
        words = self._early_words(sid, ssid, address)
        if words is None or self.caching.early != _ALL_WORDS:
            self._counters["walk.cd"] += 1
            found = self._fetch_context(stream, address, Cd.dwords)
            if isinstance(found, Fault):
                return found
            words = self._mixed(words, found)
        context = self._meaning(stream, words)
        if len(self._contexts) >= self.caching.entries:
            self._derived.clear()
        self._contexts.keep(sid, ssid, context, self.caching.entries)
        return context

    def holds(self, sid: int, index: int | None) -> bool:
        """Whether the next lookup of this STE, and of the CD at `index`, finds them kept."""
        return sid in self._streams and (
            index is None or self._contexts.get(sid, index) is not None
        )

    def prefetch(self, sid: int, ssid: int | None) -> None:
        """Take the configuration of a stream and substream in; says nothing if that fails (§4.2).

        The hint is taken by hostile caching alone, and not with SMMUEN=0, when no structure is
        reachable.
        """
        if not self.caching.hostile or not self._regs["CR0ACK"] & _SMMUEN:
            return
        stream = self.stream(sid)
        if isinstance(stream, Fault):
            return
        index = context_index(stream, ssid)
        if isinstance(index, int):
            self.context(sid, stream, index)

    def _look_up(self, sid: int) -> Stream | Fault:
        address = self._ste_address(sid)
        if isinstance(address, Fault):
            return address
        words = self._early_words(sid, _STE, address)
        if words is None or self.caching.early != _ALL_WORDS:
            self._counters["walk.ste"] += 1
            found = self._fetch(address, Ste.dwords)
            if found is None:
                return self._no_ste(address)
            words = self._mixed(words, found)
        stream = self._decoded(words)
        self._keep(self._streams, sid, stream)
        return stream

    # What words mean depends on nothing that changes, so it is worked out once.

    def _decoded(self, words: _Words) -> Stream | Fault:
        key = self._e2h, words
        stream = self._stes.get(key)
        if stream is None:
            stream = decode_ste(Ste(words), self._features, e2h=bool(self._e2h)) or _BAD_STE
            _remember(self._stes, key, stream)
        return stream

    def _meaning(self, stream: Stream, words: _Words) -> Context | Fault:
        """What a CD means behind this STE."""
        context = stream.meanings.get(words)
        if context is None:
            context = decode_cd(Cd(words), self._features, stream) or _BAD_CD
            _remember(stream.meanings, words, context)
        return context

    def _ste_address(self, sid: int) -> int | Fault:
        table = StreamTable.of(self._regs)
        if not table.covers(sid):
            return _BAD_STREAMID
        return self._level2(table, sid) if table.two_level else table.linear(sid)

    def _level2(self, table: StreamTable, sid: int) -> int | Fault:
        key = (table.split, sid >> table.split)
        descriptor = self._l1.get(key)
        if descriptor is None:
            address = table.level1(sid)
            self._counters["walk.l1std"] += 1
            words = self._fetch(address, L1Std.dwords)
            if words is None:
                return self._no_ste(address)
            descriptor = L1Std(words)
            if table.span_valid(descriptor) or self.caching.hostile:
                self._keep(self._l1, key, descriptor)
        found = table.level2(sid, descriptor)
        return _BAD_STREAMID if found is None else found

    def _cd_address(self, sid: int, stream: Stream, ssid: int) -> int | Fault:
        """Where a CD is: a PA, or an IPA behind stage 2 (§5.3)."""
        split = stream.cd_split
        if not split:
            return stream.ctxptr + ssid * Cd.size
        key = (split, ssid >> split)
        descriptor = self._l1cds.get(sid, key)
        if descriptor is None:
            self._counters["walk.l1cd"] += 1
            address = stream.ctxptr + (ssid >> split) * L1Cd.size
            words = self._fetch_context(stream, address, L1Cd.dwords)
            if isinstance(words, Fault):
                return words
            descriptor = L1Cd(words)
            if descriptor.v or self.caching.hostile:
                self._l1cds.keep(sid, key, descriptor, self.caching.entries)
        table = descriptor.l2ptr & -(Cd.size << split)
        if not descriptor.v or (stream.stage2 is None and table >> self._features.oas):
            return _BAD_SUBSTREAMID
        return table + (ssid & (1 << split) - 1) * Cd.size

    def _fetch(self, address: int, count: int) -> _Words | None:
        """Words of a stream table; an address beyond OAS is an external abort (§3.4.3)."""
        if address >> self._features.oas:
            return None
        return self._memory.read_words(address, count)

    def _no_ste(self, address: int) -> Fault:
        """F_STE_FETCH; FetchAddr[55:OAS] is RES0 (§7.3.4)."""
        return Fault(FSteFetch, fetch=address & (1 << self._features.oas) - 1)

    def _fetch_context(self, stream: Stream, address: int, count: int) -> _Words | Fault:
        """Words of a CD or L1CD, through stage 2 where the stream has it: CLASS=CD (§7.3)."""
        if stream.stage2 is not None:
            found = self._walker.through_stage2(stream.stage2, stream.vmid, address, CD, READ)
            if isinstance(found, Fault):
                # An L1CD can name more bits than IPA[55:OAS], which is RES0 (§7.3.13).
                return found._replace(ipa=found.ipa & (1 << self._features.oas) - 1)
            address = found
        words = self._memory.read_words(address, count)
        return Fault(FCdFetch, fetch=address) if words is None else words

    def _follow_e2h(self) -> None:
        """Forget what was decoded under another CR2.E2H; it changes with SMMUEN=0 only."""
        e2h = self._regs["CR2"] & _E2H
        if e2h != self._e2h:
            self._e2h = e2h
            forgotten = len(self._streams) + len(self._contexts)
            if forgotten:
                self._counters["config.forgotten"] += forgotten
            self._streams.clear()
            self._contexts.clear()
            self._derived.clear()

    # Hostile caching.

    def speculate(self) -> None:
        """Prefetch the beginning of the stream table: SMMUEN made it reachable (§3.21.3)."""
        if self.caching.hostile:
            self._speculate(0, _SPECULATED_STES - 1)

    def synchronise(self) -> None:
        """CMD_SYNC: carry out the invalidations that were held back."""
        waiting, self.deferred = self.deferred, []
        for action in waiting:
            action()

    def _speculate(self, first: int, last: int) -> None:
        """Prefetch STEs and their CDs, within their tables and behind valid pointers only."""
        if not self._regs["CR0ACK"] & _SMMUEN:
            return
        for sid in range(first, min(last, first + _SPECULATED_STES - 1) + 1):
            if sid in self._streams or self._early.get(sid, _STE) is not None:
                continue
            address = self._ste_address(sid)
            words = None if isinstance(address, Fault) else self._fetch(address, Ste.dwords)
            if words is None or isinstance(address, Fault):
                continue
            self._prefetched(sid, _STE, address, words)
            stream = self._decoded(words)
            if not isinstance(stream, Fault) and stream.stage1:
                for ssid in range(min(1 << stream.cd_bits, _SPECULATED_CDS)):
                    self._speculate_cd(sid, stream, ssid)

    def _speculate_cd(self, sid: int, stream: Stream, ssid: int) -> None:
        if self._contexts.get(sid, ssid) is not None or self._early.get(sid, ssid) is not None:
            return
        address = self._cd_address(sid, stream, ssid)
        if isinstance(address, Fault):
            return
        words = self._fetch_context(stream, address, Cd.dwords)
        if not isinstance(words, Fault):
            self._prefetched(sid, ssid, address, words)

    def _prefetched(self, sid: int, key: int, address: int, words: _Words) -> None:
        self._counters["config.prefetched"] += 1
        self._early.keep(sid, key, (address, words), self.caching.entries)

    def _early_words(self, sid: int, key: int, address: int) -> _Words | None:
        """The words that were prefetched from this address, once."""
        if not self.caching.hostile:
            return None
        found = self._early.pop(sid, key)
        return found[1] if found is not None and found[0] == address else None

    def _mixed(self, early: _Words | None, now: _Words) -> _Words:
        """Each word as it was when it was read (§3.21.3: 64 bits at a time, in any order)."""
        if early is None:
            return now
        mask = self.caching.early
        return tuple(
            e if mask >> i & 1 else n for i, (e, n) in enumerate(zip(early, now, strict=True))
        )

    def _contiguous(self, sid: int) -> Stream | None:
        """A kept neighbour whose STE.CONT says that it stands for this StreamID too (§5.2)."""
        if not StreamTable.of(self._regs).covers(sid):
            return None
        for other, stream in self._streams.items():
            if not isinstance(stream, Fault) and stream.cont and (other ^ sid) >> stream.cont == 0:
                return stream
        return None

    # Caches.

    def _keep(self, cache: dict[_K, _V], key: _K, value: _V) -> None:
        room = self.caching.entries
        if room and key not in cache:
            if len(cache) >= room:
                del cache[next(iter(cache))]
                self._changes["evicted"] += 1
                self._derived.clear()
            cache[key] = value
            self._changes["inserted"] += 1

    def invalidate_range(
        self, first: int, last: int, *, l1: bool, cause: Cause | None = None
    ) -> int:
        """Drop the STEs of StreamIDs in [first, last] with all their CDs and L1CDs.

        With `l1` the level 1 descriptors of the stream table too (CMD_CFGI_STE,
        CMD_CFGI_STE_RANGE). Returns the number of entries dropped.
        """
        over = self._over(first, last, cause, l1=l1)
        dropped = _drop(self._streams, first, last)
        dropped += self._contexts.drop(first, last) + self._l1cds.drop(first, last)
        self._early.drop(first, last)
        if l1:
            victims = [k for k in self._l1 if first >> k[0] <= k[1] <= last >> k[0]]
            for key in victims:
                del self._l1[key]
            dropped += len(victims)
        tally(self._counters, "config.invalidated", dropped, cause)
        tally(self._counters, "config.over", over, cause)
        self._derived.clear()
        if self.caching.hostile:
            self._speculate(first, last)
        return dropped

    def invalidate_context(
        self, sid: int, ssid: int | None = None, *, l1: bool = True, cause: Cause | None = None
    ) -> int:
        """Drop one CD of a StreamID, or all with `ssid` None; the number of entries dropped.

        With `l1` the L1CD before it too; with `ssid` None it always is (CMD_CFGI_CD,
        CMD_CFGI_CD_ALL).
        """
        intent = None if cause is None else cause.intent
        before = set() if intent is None else self._held_cds(sid, sid)
        if ssid is None:
            dropped = self._contexts.drop(sid, sid) + self._l1cds.drop(sid, sid)
            for key in [key for key in self._early.keys(sid) if key != _STE]:
                self._early.pop(sid, key)
        else:
            dropped = int(self._contexts.pop(sid, ssid) is not None)
            self._early.pop(sid, ssid)
            if l1:
                victims = [k for k in self._l1cds.keys(sid) if k[1] == ssid >> k[0]]
                dropped += sum(self._l1cds.pop(sid, victim) is not None for victim in victims)
        gone = before - self._held_cds(sid, sid) if before else before
        tally(self._counters, "config.invalidated", dropped, cause)
        tally(self._counters, "config.over", config_outside(intent or (), (), (), gone), cause)
        self._derived.clear()
        if self.caching.hostile:
            self._refetch_contexts(sid, ssid)
        return dropped

    def _over(self, first: int, last: int, cause: Cause | None, *, l1: bool) -> int:
        """Entries that an invalidation of [first, last] is about to drop and is not meant for."""
        if cause is None or cause.intent is None:
            return 0
        stes = [sid for sid in self._streams if first <= sid <= last]
        l1stds = [k for k in self._l1 if l1 and first >> k[0] <= k[1] <= last >> k[0]]
        return config_outside(cause.intent, stes, l1stds, self._held_cds(first, last))

    def _held_cds(self, first: int, last: int) -> set[tuple[int, int, int]]:
        """(StreamID, 0, index) of CDs, (StreamID, split, index) of L1CDs."""
        cds, l1cds = self._contexts.entries, self._l1cds.entries
        found = {(sid, 0, key) for sid in cds if first <= sid <= last for key in cds[sid]}
        return found | {(sid, *key) for sid in l1cds if first <= sid <= last for key in l1cds[sid]}

    def _refetch_contexts(self, sid: int, ssid: int | None) -> None:
        stream = self._streams.get(sid)
        early = self._early.get(sid, _STE)
        if stream is None and early is not None:
            stream = self._decoded(early[1])
        if isinstance(stream, Stream) and stream.stage1 and self._regs["CR0ACK"] & _SMMUEN:
            count = 1 << stream.cd_bits
            wanted = range(min(count, _SPECULATED_CDS)) if ssid is None else (ssid,)
            for index in wanted:
                if index < count:
                    self._speculate_cd(sid, stream, index)


class _PerStream(Generic[_K, _V]):
    """Entries of StreamIDs by a second key; bounded, the oldest stream's oldest makes room.

    `changes` counts what was "inserted" and "evicted".
    """

    def __init__(self) -> None:
        self.entries: dict[int, dict[_K, _V]] = {}
        self.changes = Counter[str]()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, sid: int, key: _K) -> _V | None:
        """The entry, or None."""
        found = self.entries.get(sid)
        return None if found is None else found.get(key)

    def keys(self, sid: int) -> Iterator[_K]:
        """The second keys of a StreamID."""
        return iter(self.entries.get(sid, ()))

    def keep(self, sid: int, key: _K, value: _V, room: int) -> None:
        """Add an entry in at most `room` entries; with 0 keep nothing."""
        if not room or self.get(sid, key) is not None:
            return
        if self._count >= room:
            oldest = next(iter(self.entries))
            self.pop(oldest, next(iter(self.entries[oldest])))
            self.changes["evicted"] += 1
        self.changes["inserted"] += 1
        self.entries.setdefault(sid, {})[key] = value
        self._count += 1

    def pop(self, sid: int, key: _K) -> _V | None:
        """Remove an entry and return it, or None."""
        inner = self.entries.get(sid)
        if inner is None or key not in inner:
            return None
        self._count -= 1
        value = inner.pop(key)
        if not inner:
            del self.entries[sid]
        return value

    def drop(self, first: int, last: int) -> int:
        """Remove the entries of StreamIDs in [first, last]; how many."""
        if first == last:
            dropped = len(self.entries.pop(first, ()))
        else:
            victims = [sid for sid in self.entries if first <= sid <= last]
            dropped = sum(len(self.entries.pop(sid)) for sid in victims)
        self._count -= dropped
        return dropped

    def clear(self) -> None:
        """Remove everything."""
        self.entries.clear()
        self._count = 0


def _remember(meanings: dict[_K, _V], key: _K, value: _V) -> None:
    if len(meanings) >= MEANINGS:
        meanings.clear()
    meanings[key] = value


def _drop(cache: dict[int, _V], first: int, last: int) -> int:
    if first == last:
        return int(cache.pop(first, None) is not None)
    victims = [sid for sid in cache if first <= sid <= last]
    for sid in victims:
        del cache[sid]
    return len(victims)
