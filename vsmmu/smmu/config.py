# SPDX-License-Identifier: BSD-2-Clause
"""Configuration lookup: stream table, context descriptors, and their caches.

IHI 0070 §3.3, §5.1 and §3.21.3. What was looked up is kept, valid or ILLEGAL, until a CMD_CFGI_*
names it or room is needed, whatever memory says by then. Failed fetches and invalid level 1
descriptors are not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vsmmu.arch.context import Cd
from vsmmu.arch.events import CBadCd, CBadSte, CBadStreamid, FCdFetch, FSteFetch
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.smmu.cd import Context, decode_cd
from vsmmu.smmu.ste import Stream, decode_ste
from vsmmu.smmu.strtab import StreamTable
from vsmmu.smmu.transaction import CD, READ, Fault

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.memory import Memory
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.smmu.walk import Walker

# Entries of each of the three caches; the oldest makes room.
CONFIG_ENTRIES = 1024

_K = TypeVar("_K")
_V = TypeVar("_V")

_BAD_STREAMID = Fault(CBadStreamid)
_BAD_STE = Fault(CBadSte)
_BAD_CD = Fault(CBadCd)


class Config:
    """Looks up and caches STEs and CDs of one SMMU.

    Args:
        regs: STRTAB_BASE and STRTAB_BASE_CFG.
        memory: where the tables are.
        features: what is legal.
        walker: stage 2, for CDs of nested streams.
        counters: takes `config.hit`, `config.miss`, `config.invalidated`, `walk.l1std`,
            `walk.ste`, `walk.cd`.
        entries: room in each cache; 0 caches nothing.
    """

    def __init__(
        self,
        regs: RegisterFile,
        memory: Memory,
        features: Features,
        walker: Walker,
        counters: Counter[str],
        entries: int = CONFIG_ENTRIES,
    ) -> None:
        self._regs = regs
        self._memory = memory
        self._features = features
        self._walker = walker
        self._counters = counters
        self._entries = entries
        self._streams: dict[int, Stream | Fault] = {}
        self._contexts: dict[int, Context | Fault] = {}
        # Level 1 descriptors by (SPLIT, index).
        self._l1: dict[tuple[int, int], L1Std] = {}

    # Lookup.

    def stream(self, sid: int) -> Stream | Fault:
        """The configuration of a StreamID, or C_BAD_STREAMID, F_STE_FETCH, C_BAD_STE."""
        cached = self._streams.get(sid)
        if cached is not None:
            self._counters["config.hit"] += 1
            return cached
        self._counters["config.miss"] += 1
        address = self._ste_address(sid)
        if isinstance(address, Fault):
            return address
        self._counters["walk.ste"] += 1
        words = self._fetch(address, Ste.dwords)
        if words is None:
            return Fault(FSteFetch, fetch=address)
        stream = decode_ste(Ste(words), self._features) or _BAD_STE
        self._keep(self._streams, sid, stream)
        return stream

    def context(self, sid: int, stream: Stream) -> Context | Fault:
        """The CD of a stream with stage 1, or the fault that its fetch or contents cause."""
        cached = self._contexts.get(sid)
        if cached is not None:
            self._counters["config.hit"] += 1
            return cached
        self._counters["config.miss"] += 1
        address = stream.ctxptr
        if stream.stage2 is not None:
            found = self._walker.through_stage2(stream.stage2, stream.vmid, address, CD, READ)
            if isinstance(found, Fault):
                return found
            address = found
        self._counters["walk.cd"] += 1
        words = self._memory.read_words(address, Cd.dwords)
        if words is None:
            return Fault(FCdFetch, fetch=address)
        context = decode_cd(Cd(words), self._features) or _BAD_CD
        self._keep(self._contexts, sid, context)
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
                return Fault(FSteFetch, fetch=address)
            descriptor = L1Std(words)
            if table.span_valid(descriptor):
                self._keep(self._l1, key, descriptor)
        found = table.level2(sid, descriptor)
        return _BAD_STREAMID if found is None else found

    def _fetch(self, address: int, count: int) -> tuple[int, ...] | None:
        """Words of a stream table; an address beyond OAS is an external abort (§3.4.3)."""
        if address >> self._features.oas:
            return None
        return self._memory.read_words(address, count)

    # Caches.

    def _keep(self, cache: dict[_K, _V], key: _K, value: _V) -> None:
        if self._entries and key not in cache:
            if len(cache) >= self._entries:
                del cache[next(iter(cache))]
            cache[key] = value

    def invalidate_range(self, first: int, last: int, *, l1: bool) -> int:
        """Drop the STEs of StreamIDs in [first, last], their CDs, and level 1 descriptors if asked.

        Returns the number of entries dropped (CMD_CFGI_STE, CMD_CFGI_STE_RANGE).
        """
        dropped = _drop(self._streams, first, last) + _drop(self._contexts, first, last)
        if l1:
            victims = [k for k in self._l1 if first >> k[0] <= k[1] <= last >> k[0]]
            for key in victims:
                del self._l1[key]
            dropped += len(victims)
        self._counters["config.invalidated"] += dropped
        return dropped

    def invalidate_context(self, sid: int) -> int:
        """Drop a StreamID's CD (CMD_CFGI_CD, CMD_CFGI_CD_ALL); the number of entries dropped."""
        dropped = int(self._contexts.pop(sid, None) is not None)
        self._counters["config.invalidated"] += dropped
        return dropped


def _drop(cache: dict[int, _V], first: int, last: int) -> int:
    if first == last:
        return int(cache.pop(first, None) is not None)
    victims = [sid for sid in cache if first <= sid <= last]
    for sid in victims:
        del cache[sid]
    return len(victims)
