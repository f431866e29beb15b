# SPDX-License-Identifier: BSD-2-Clause
"""STEs and CDs as they are in memory: those that commands name, and all when a recording ends."""

from __future__ import annotations

from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.memory import PAGE, PAGE_SHIFT
from vsmmu.recording.memory import RecordedMemory
from vsmmu.recording.unlike import Unlike
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.ste import decode_ste
from vsmmu.smmu.strtab import StreamTable

# Bounds on what is read when the recording ends: pages of STEs, and level 1 descriptors.
PAGES, LEVEL1 = 1 << 8, 1 << 12


class Streams:
    """Reads stream tables.

    Args:
        smmu: whose tables.
        memory: where they are.
        unlike: takes what is read.

    Attributes:
        translates: whether the STE read last leads to tables.
    """

    def __init__(self, smmu: Smmu, memory: RecordedMemory, unlike: Unlike) -> None:
        self._smmu = smmu
        self._memory = memory
        self._unlike = unlike
        self.translates = False

    def one(self, sid: int, ssid: int) -> None:
        """The STE of a StreamID, and a CD of it."""
        self.translates = False
        table = StreamTable.of(self._smmu.regs)
        if not table.covers(sid):
            return
        address: int | None = table.linear(sid)
        if table.two_level:
            words = self._memory.read_words(table.level1(sid), L1Std.dwords)
            address = None if words is None else table.level2(sid, L1Std(words))
        if address is not None:
            self._ste(address, ssid)

    def all(self) -> None:
        """Every STE that was written."""
        table = StreamTable.of(self._smmu.regs)
        starts = [(table.base, Ste.size << table.log2size)]
        if table.two_level:
            count = min(LEVEL1, 1 << max(0, table.log2size - table.split))
            words = self._memory.read_words(table.base, count) or ()
            for n, word in enumerate(words):
                if word:
                    address = table.base + n * L1Std.size
                    self._level1(L1Std, address, word)
            spans = [L1Std((word,)) for word in words if word]
            starts = [
                (one.l2ptr & -(Ste.size << one.span - 1), Ste.size << one.span - 1)
                for one in spans if table.span_valid(one)
            ]  # fmt: skip
        pages = [
            page
            for start, size in starts
            for page in range(start, start + size, PAGE)
            if page >> PAGE_SHIFT in self._memory.page
        ]
        for page in pages[:PAGES]:
            for address in range(page, page + PAGE, Ste.size):
                self._ste(address)

    def _ste(self, address: int, ssid: int = 0) -> None:
        found = self._read(address, Ste.dwords)
        if found is None:
            return
        self._unlike.ste(address, *found)
        stream = decode_ste(Ste(found[0]), self._smmu.features)
        self.translates = stream is not None and (stream.stage1 or stream.stage2 is not None)
        if stream is None or not stream.stage1 or stream.stage2 is not None:
            return
        where = stream.ctxptr + ssid * Cd.size
        if ssid >> stream.cd_bits:
            return
        if stream.cd_split:
            split = stream.cd_split
            descriptor = stream.ctxptr + (ssid >> split) * L1Cd.size
            words = self._memory.read_words(descriptor, L1Cd.dwords)
            if words is None or not L1Cd(words).v:
                return
            self._level1(L1Cd, descriptor, words[0])
            where = (L1Cd(words).l2ptr & -(Cd.size << split)) + (ssid % (1 << split)) * Cd.size
        cd = self._read(where, Cd.dwords)
        if cd is not None:
            self._unlike.cd(where, *cd)

    def _level1(self, layout: type[L1Std | L1Cd], address: int, word: int) -> None:
        self._unlike.level1(layout, address, word, self._memory.writer(address))

    def _read(self, address: int, count: int) -> tuple[tuple[int, ...], list[int]] | None:
        words = self._memory.read_words(address, count)
        if words is None:
            return None
        return words, [self._memory.writer(address + 8 * n) for n in range(count)]
