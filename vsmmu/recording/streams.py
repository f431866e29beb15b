# SPDX-License-Identifier: BSD-2-Clause
"""STEs and CDs as they are in memory: those that commands name, and all when a recording ends."""

from __future__ import annotations

from vsmmu.arch.context import Cd
from vsmmu.arch.stream_table import LIVE, STAGE1, STAGE2, L1Std, S1Fmt, Ste
from vsmmu.memory import PAGE, PAGE_SHIFT
from vsmmu.recording.memory import RecordedMemory
from vsmmu.recording.unlike import Unlike
from vsmmu.smmu.regfile import RegisterFile
from vsmmu.smmu.strtab import StreamTable

# Bounds on what is read when the recording ends: pages of STEs, and level 1 descriptors.
PAGES, LEVEL1 = 1 << 8, 1 << 12


class Streams:
    """Reads stream tables.

    Args:
        regs: STRTAB_BASE and STRTAB_BASE_CFG.
        memory: where the tables are.
        unlike: takes what is read.

    Attributes:
        translates: whether the STE read last leads to tables.
    """

    def __init__(self, regs: RegisterFile, memory: RecordedMemory, unlike: Unlike) -> None:
        self._regs = regs
        self._memory = memory
        self._unlike = unlike
        self.translates = False

    def one(self, sid: int) -> None:
        """The STE of a StreamID and its CD, the first one where there are several."""
        self.translates = False
        table = StreamTable.of(self._regs)
        if not table.covers(sid):
            return
        address: int | None = table.linear(sid)
        if table.two_level:
            words = self._memory.read_words(table.level1(sid), L1Std.dwords)
            address = None if words is None else table.level2(sid, L1Std(words))
        if address is not None:
            self._ste(address)

    def all(self) -> None:
        """Every STE that was written."""
        table = StreamTable.of(self._regs)
        starts = [(table.base, Ste.size << table.log2size)]
        if table.two_level:
            count = min(LEVEL1, 1 << max(0, table.log2size - table.split))
            words = self._memory.read_words(table.base, count) or ()
            for n, word in enumerate(words):
                if word:
                    address = table.base + n * L1Std.size
                    self._unlike.level1(address, word, self._memory.writer(address))
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

    def _ste(self, address: int) -> None:
        found = self._read(address, Ste.dwords)
        if found is None:
            return
        self._unlike.ste(address, *found)
        ste = Ste(found[0])
        self.translates = bool(ste.v and ste.config & LIVE and ste.config & (STAGE1 | STAGE2))
        if not ste.v or not ste.config & LIVE or not ste.config & STAGE1 or ste.config & STAGE2:
            return
        if ste.s1cdmax and ste.s1fmt != S1Fmt.LINEAR:
            return
        cd = self._read(ste.s1ctxptr, Cd.dwords)
        if cd is not None:
            self._unlike.cd(ste.s1ctxptr, *cd)

    def _read(self, address: int, count: int) -> tuple[tuple[int, ...], list[int]] | None:
        words = self._memory.read_words(address, count)
        if words is None:
            return None
        return words, [self._memory.writer(address + 8 * n) for n in range(count)]
