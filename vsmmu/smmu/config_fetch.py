# SPDX-License-Identifier: BSD-2-Clause
"""Finding, reading and decoding STEs and CDs (IHI 0070 §3.3, §5.1, §5.3).

Level 1 descriptors are kept, valid ones alone unless caching is hostile. An STE or a CD is read
each time it is asked for: `vsmmu.smmu.config` and `vsmmu.smmu.config_prefetch` keep them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.events import CBadCd, CBadSte, CBadStreamid, CBadSubstreamid, FCdFetch, FSteFetch
from vsmmu.arch.registers import Cr2
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.smmu.cd import Context, decode_cd
from vsmmu.smmu.config_cache import Bounded, Caching, PerStream
from vsmmu.smmu.ste import Stream, decode_ste
from vsmmu.smmu.strtab import StreamTable
from vsmmu.smmu.transaction import CD, READ, Fault

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.memory import Memory
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.smmu.walk import Walker

# STEs, and CDs behind one of them, whose meaning is remembered; beyond, all are forgotten.
MEANINGS = 128

_E2H = Cr2.mask("e2h")[0]
_BAD_STREAMID = Fault(CBadStreamid)
_BAD_STE = Fault(CBadSte)
_BAD_CD = Fault(CBadCd)
_BAD_SUBSTREAMID = Fault(CBadSubstreamid)

_K = TypeVar("_K")
_V = TypeVar("_V")
Words = tuple[int, ...]


class ConfigFetch:
    """Reads the stream table and the CD tables of one SMMU.

    Args:
        regs: STRTAB_BASE, STRTAB_BASE_CFG and CR2.
        memory: where the tables are.
        features: what is legal.
        walker: stage 2, for CDs of nested streams.
        counters: takes `walk.l1std`, `walk.ste`, `walk.l1cd` and `walk.cd`.
        caching: what is kept.

    Attributes:
        caching: as given; may be changed while nothing is cached.
        l1stds: level 1 descriptors of the stream table, by (SPLIT, index).
        l1cds: level 1 descriptors of CDs, the same per StreamID.
    """

    def __init__(
        self, regs: RegisterFile, memory: Memory, features: Features, walker: Walker,
        counters: Counter[str], caching: Caching,
    ) -> None:  # fmt: skip
        self.caching = caching
        self.l1stds: Bounded[tuple[int, int], L1Std] = Bounded()
        self.l1cds: PerStream[tuple[int, int], L1Cd] = PerStream()
        self._regs = regs
        self._memory = memory
        self._features = features
        self._walker = walker
        self._counters = counters
        self._stes: dict[tuple[int, Words], Stream | Fault] = {}
        self._e2h = 0

    @property
    def _keeps_invalid(self) -> bool:
        return self.caching.hostile and self.caching.invalid

    # Addresses.

    def covers(self, sid: int) -> bool:
        """Whether a StreamID is within the stream table."""
        return StreamTable.of(self._regs).covers(sid)

    def ste_address(self, sid: int) -> int | Fault:
        """Where an STE is, or C_BAD_STREAMID, F_STE_FETCH."""
        table = StreamTable.of(self._regs)
        if not table.covers(sid):
            return _BAD_STREAMID
        return self._level2(table, sid) if table.two_level else table.linear(sid)

    def _level2(self, table: StreamTable, sid: int) -> int | Fault:
        key = (table.split, sid >> table.split)
        descriptor = self.l1stds.get(key)
        if descriptor is None:
            address = table.level1(sid)
            self._counters["walk.l1std"] += 1
            words = self.ste_words(address, L1Std.dwords)
            if isinstance(words, Fault):
                return words
            descriptor = L1Std(words)
            if table.span_valid(descriptor) or self._keeps_invalid:
                self.l1stds.keep(key, descriptor, self.caching.entries)
        found = table.level2(sid, descriptor)
        return _BAD_STREAMID if found is None else found

    def cd_address(self, sid: int, stream: Stream, ssid: int) -> int | Fault:
        """Where a CD is: a PA, or an IPA behind stage 2 (§5.3)."""
        split = stream.cd_split
        if not split:
            return stream.ctxptr + ssid * Cd.size
        key = (split, ssid >> split)
        descriptor = self.l1cds.get(sid, key)
        if descriptor is None:
            self._counters["walk.l1cd"] += 1
            address = stream.ctxptr + (ssid >> split) * L1Cd.size
            words = self.cd_words(stream, address, L1Cd.dwords)
            if isinstance(words, Fault):
                return words
            descriptor = L1Cd(words)
            if descriptor.v or self._keeps_invalid:
                self.l1cds.keep(sid, key, descriptor, self.caching.entries)
        table = descriptor.l2ptr & -(Cd.size << split)
        if not descriptor.v or (stream.stage2 is None and table >> self._features.oas):
            return _BAD_SUBSTREAMID
        return table + (ssid & (1 << split) - 1) * Cd.size

    # Words.

    def ste_words(self, address: int, count: int = Ste.dwords) -> Words | Fault:
        """Words of a stream table, or F_STE_FETCH.

        An address beyond OAS is an external abort (§3.4.3); FetchAddr[55:OAS] is RES0 (§7.3.4).
        """
        beyond = address >> self._features.oas
        words = None if beyond else self._memory.read_words(address, count)
        if words is None:
            return Fault(FSteFetch, fetch=address & (1 << self._features.oas) - 1)
        return words

    def cd_words(self, stream: Stream, address: int, count: int = Cd.dwords) -> Words | Fault:
        """Words of a CD or L1CD, through stage 2 where the stream has it: CLASS=CD (§7.3)."""
        if stream.stage2 is not None:
            found = self._walker.through_stage2(stream.stage2, stream.vmid, address, CD, READ)
            if isinstance(found, Fault):
                # An L1CD can name more bits than IPA[55:OAS], which is RES0 (§7.3.13).
                return found._replace(ipa=found.ipa & (1 << self._features.oas) - 1)
            address = found
        words = self._memory.read_words(address, count)
        return Fault(FCdFetch, fetch=address) if words is None else words

    # Meanings. They depend on nothing that changes, so each is worked out once.

    def follow_e2h(self) -> bool:
        """Decode by CR2.E2H as it is now; whether it was another. It changes with SMMUEN=0 only."""
        e2h = self._regs["CR2"] & _E2H
        if e2h == self._e2h:
            return False
        self._e2h = e2h
        return True

    def stream(self, words: Words) -> Stream | Fault:
        """What an STE means, or C_BAD_STE."""
        key = self._e2h, words
        stream = self._stes.get(key)
        if stream is None:
            stream = decode_ste(Ste(words), self._features, e2h=bool(self._e2h)) or _BAD_STE
            _remember(self._stes, key, stream)
        return stream

    def context(self, stream: Stream, words: Words) -> Context | Fault:
        """What a CD means behind this STE, or C_BAD_CD."""
        context = stream.meanings.get(words)
        if context is None:
            context = decode_cd(Cd(words), self._features, stream) or _BAD_CD
            _remember(stream.meanings, words, context)
        return context


def _remember(meanings: dict[_K, _V], key: _K, value: _V) -> None:
    if len(meanings) >= MEANINGS:
        meanings.clear()
    meanings[key] = value
