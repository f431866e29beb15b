# SPDX-License-Identifier: BSD-2-Clause
"""Configuration lookup: STEs and CDs, their caches and the invalidation of these.

IHI 0070 §3.3, §4.3 and §3.21.3. What was looked up is kept, valid or ILLEGAL, until a CMD_CFGI_*
names it or room is needed, whatever memory says by then. Failed fetches are never kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from vsmmu.arch.events import CBadSubstreamid, FStreamDisabled
from vsmmu.arch.stream_table import S1Dss
from vsmmu.smmu.config_cache import CACHING, CONFIG_ENTRIES, Bounded, Caching, PerStream
from vsmmu.smmu.config_fetch import ConfigFetch, Words
from vsmmu.smmu.config_prefetch import ConfigPrefetch
from vsmmu.smmu.intent import Cause, config_outside, tally
from vsmmu.smmu.transaction import Fault

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.memory import Memory
    from vsmmu.smmu.cd import Context
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.smmu.ste import Stream
    from vsmmu.smmu.walk import Walker

__all__ = ["CACHING", "CONFIG_ENTRIES", "DEFERRED", "Caching", "Config", "context_index"]

# Invalidations that a hostile SMMU holds back while no CMD_SYNC asks for them.
DEFERRED = 256

_BAD_SUBSTREAMID = Fault(CBadSubstreamid)
_STREAM_DISABLED = Fault(FStreamDisabled)


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
        caching: how it caches.
        derived: what others keep that was made of entries; emptied when one goes.

    Attributes:
        deferred: invalidations that the next CMD_SYNC carries out (hostile caching).
        watch: called with the StreamID of an STE or CD that is looked up in memory.
    """

    def __init__(
        self, regs: RegisterFile, memory: Memory, features: Features, walker: Walker,
        counters: Counter[str], caching: Caching, derived: dict[Any, Any],
    ) -> None:  # fmt: skip
        self.deferred: list[Callable[[], object]] = []
        self.watch: Callable[[int], object] | None = None
        self._counters = counters
        self._derived = derived
        self._hyp = bool(features.idr0.hyp)
        self._streams: Bounded[int, Stream | Fault] = Bounded()
        self._contexts: PerStream[int, Context | Fault] = PerStream()
        self._fetch = ConfigFetch(regs, memory, features, walker, counters, caching)
        self._early = ConfigPrefetch(regs, self._fetch, self._streams, self._contexts, counters)

    def __len__(self) -> int:
        """Entries: STEs, CDs and level 1 descriptors, without what was prefetched."""
        fetch = self._fetch
        return len(self._streams) + len(self._contexts) + len(fetch.l1stds) + len(fetch.l1cds)

    @property
    def caching(self) -> Caching:
        """How it caches; may be changed while nothing is cached."""
        return self._fetch.caching

    @caching.setter
    def caching(self, caching: Caching) -> None:
        self._fetch.caching = caching

    def settle(self) -> None:
        """Bring the counters up to date: keeping an entry only adds to a number."""
        for part in (self._streams, self._contexts, self._fetch.l1stds, self._fetch.l1cds):
            for name, count in part.changes.items():
                self._counters["config." + name] += count
            part.changes.clear()

    # Lookup.

    def stream(self, sid: int) -> Stream | Fault:
        """The configuration of a StreamID, or C_BAD_STREAMID, F_STE_FETCH, C_BAD_STE."""
        if self._hyp and self._fetch.follow_e2h():
            self._forget()
        cached = self._streams.get(sid)
        if cached is not None:
            self._counters["config.hit"] += 1
            return cached
        self._missed(sid)
        if not self.caching.hostile:
            return self._look_up(sid)
        neighbour = self._contiguous(sid)
        if neighbour is not None:
            return neighbour
        stream = self._look_up(sid)
        self._early.neighbours(sid)
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
        self._missed(sid)
        address = self._fetch.cd_address(sid, stream, ssid)
        if isinstance(address, Fault):
            return address
        words = self._early.cd(sid, ssid, address, partial(self._read_cd, stream, address))
        if isinstance(words, Fault):
            return words
        context = self._fetch.context(stream, words)
        if self._contexts.keep(sid, ssid, context, self.caching.entries):
            self._derived.clear()
        return context

    def _missed(self, sid: int) -> None:
        self._counters["config.miss"] += 1
        if self.watch is not None:
            self.watch(sid)

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
        if not self._early.possible:
            return
        stream = self.stream(sid)
        if isinstance(stream, Fault):
            return
        index = context_index(stream, ssid)
        if isinstance(index, int):
            self.context(sid, stream, index)

    def _look_up(self, sid: int) -> Stream | Fault:
        address = self._fetch.ste_address(sid)
        if isinstance(address, Fault):
            return address
        words = self._early.ste(sid, address, partial(self._read_ste, address))
        if isinstance(words, Fault):
            return words
        stream = self._fetch.stream(words)
        if self._streams.keep(sid, stream, self.caching.entries):
            self._derived.clear()
        return stream

    def _read_ste(self, address: int) -> Words | Fault:
        self._counters["walk.ste"] += 1
        return self._fetch.ste_words(address)

    def _read_cd(self, stream: Stream, address: int) -> Words | Fault:
        self._counters["walk.cd"] += 1
        return self._fetch.cd_words(stream, address)

    def _contiguous(self, sid: int) -> Stream | None:
        """A kept neighbour whose STE.CONT says that it stands for this StreamID too (§5.2)."""
        if not self._fetch.covers(sid):
            return None
        for other, stream in self._streams.items():
            if not isinstance(stream, Fault) and stream.cont and (other ^ sid) >> stream.cont == 0:
                return stream
        return None

    def _forget(self) -> None:
        """Drop what was decoded under another CR2.E2H."""
        forgotten = len(self._streams) + len(self._contexts)
        if forgotten:
            self._counters["config.forgotten"] += forgotten
        self._streams.clear()
        self._contexts.clear()
        self._derived.clear()

    def speculate(self) -> None:
        """Prefetch the beginning of the stream table: SMMUEN made it reachable (§3.21.3)."""
        self._early.beginning()

    # Invalidation.

    def synchronise(self) -> None:
        """CMD_SYNC: carry out the invalidations that were held back."""
        waiting, self.deferred = self.deferred, []
        for action in waiting:
            action()

    def invalidate_range(
        self, first: int, last: int, *, l1: bool, cause: Cause | None = None
    ) -> int:
        """Drop the STEs of StreamIDs in [first, last] with all their CDs and L1CDs.

        With `l1` the level 1 descriptors of the stream table too (CMD_CFGI_STE,
        CMD_CFGI_STE_RANGE). Returns the number of entries dropped.
        """
        over = self._over(first, last, cause, l1=l1)
        stes = self._stes(first, last)
        for sid in stes:
            del self._streams[sid]
        dropped = len(stes)
        dropped += self._contexts.drop(first, last) + self._fetch.l1cds.drop(first, last)
        if l1:
            l1stds = self._l1stds(first, last)
            for key in l1stds:
                del self._fetch.l1stds[key]
            dropped += len(l1stds)
        self._dropped(dropped, over, cause)
        self._early.drop(first, last)
        self._early.range(first, last)
        return dropped

    def invalidate_context(
        self, sid: int, ssid: int | None = None, *, l1: bool = True, cause: Cause | None = None
    ) -> int:
        """Drop one CD of a StreamID, or all with `ssid` None; the number of entries dropped.

        With `l1` the L1CD before it too; with `ssid` None it always is (CMD_CFGI_CD,
        CMD_CFGI_CD_ALL).
        """
        intent = None if cause is None else cause.intent
        before = set() if intent is None else self._cds(sid, sid)
        l1cds = self._fetch.l1cds
        if ssid is None:
            dropped = self._contexts.drop(sid, sid) + l1cds.drop(sid, sid)
        else:
            dropped = int(self._contexts.pop(sid, ssid) is not None)
            if l1:
                victims = [k for k in l1cds.keys(sid) if k[1] == ssid >> k[0]]
                dropped += sum(l1cds.pop(sid, victim) is not None for victim in victims)
        gone = before - self._cds(sid, sid) if before else before
        self._dropped(dropped, config_outside(intent or (), (), (), gone), cause)
        self._early.drop_contexts(sid, ssid)
        self._early.contexts(sid, ssid)
        return dropped

    def _dropped(self, count: int, over: int, cause: Cause | None) -> None:
        tally(self._counters, "config.invalidated", count, cause)
        tally(self._counters, "config.over", over, cause)
        self._derived.clear()

    def _over(self, first: int, last: int, cause: Cause | None, *, l1: bool) -> int:
        """Entries that an invalidation of [first, last] is about to drop and is not meant for."""
        if cause is None or cause.intent is None:
            return 0
        l1stds = self._l1stds(first, last) if l1 else []
        stes, cds = self._stes(first, last), self._cds(first, last)
        return config_outside(cause.intent, stes, l1stds, cds)

    def _stes(self, first: int, last: int) -> list[int]:
        """StreamIDs of STEs."""
        if first == last:
            return [first] if first in self._streams else []
        return [sid for sid in self._streams if first <= sid <= last]

    def _l1stds(self, first: int, last: int) -> list[tuple[int, int]]:
        """(SPLIT, index) of level 1 descriptors of the stream table."""
        return [k for k in self._fetch.l1stds if first >> k[0] <= k[1] <= last >> k[0]]

    def _cds(self, first: int, last: int) -> set[tuple[int, int, int]]:
        """(StreamID, 0, index) of CDs, (StreamID, split, index) of L1CDs."""
        cds, l1cds = self._contexts.entries, self._fetch.l1cds.entries
        found = {(sid, 0, key) for sid in cds if first <= sid <= last for key in cds[sid]}
        return found | {(sid, *key) for sid in l1cds if first <= sid <= last for key in l1cds[sid]}
