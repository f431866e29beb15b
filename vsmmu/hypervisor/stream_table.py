# SPDX-License-Identifier: BSD-2-Clause
"""The physical stream table of one SMMU, in machine memory (IHI 0070 §3.3.1).

Two levels where the SMMU has them and they save something; what was never covered is an invalid
L1STD, everything else aborts until it is given away.
"""

from __future__ import annotations

from vsmmu.arch.registers import StrtabBaseCfg, StrtabFmt
from vsmmu.arch.stream_table import L1Std, Ste, SteConfig
from vsmmu.hypervisor.pages import PageAllocator
from vsmmu.memory import Memory

_SPLIT = 8
_ABORT_STE = Ste.build(v=1, config=SteConfig.ABORT)


class StreamTable:
    """Where the STEs of an SMMU are.

    Args:
        memory, pages: where the tables are put.
        bits: of StreamID that it covers.
        two_level: whether the SMMU has 2-level tables (IDR0.ST_LEVEL).
    """

    def __init__(self, memory: Memory, pages: PageAllocator, *, bits: int, two_level: bool) -> None:
        self._memory = memory
        self._pages = pages
        self._bits = bits
        self._two_level = two_level and bits > _SPLIT
        self._l2: dict[int, int] = {}
        size = 8 << bits - _SPLIT if self._two_level else 64 << bits
        self.base = pages.allocate(size, size)

    @property
    def config(self) -> StrtabBaseCfg:
        """STRTAB_BASE_CFG."""
        fmt = StrtabFmt.TWO_LEVEL if self._two_level else StrtabFmt.LINEAR
        return StrtabBaseCfg.build(log2size=self._bits, split=_SPLIT, fmt=fmt)

    def cover(self, sid: int) -> bool:
        """Make an STE exist (aborting); whether the SMMU has to be told of an L1STD."""
        index = sid >> _SPLIT
        if not self._two_level:
            if not self.read(sid).v:
                self._memory.write_words(self.address(sid), _ABORT_STE.words)
            return False
        if index in self._l2:
            return False
        table = self._pages.allocate(64 << _SPLIT, 64 << _SPLIT)
        for i in range(1 << _SPLIT):
            self._memory.write_words(table + 64 * i, _ABORT_STE.words)
        self._l2[index] = table
        l1std = L1Std.build(span=_SPLIT + 1, l2ptr=table)
        self._memory.write64(self.base + 8 * index, l1std.raw)
        return True

    def read(self, sid: int) -> Ste:
        """The STE as it stands in memory."""
        words = self._memory.read_words(self.address(sid), 8)
        assert words is not None, "the physical stream table lies in RAM"
        return Ste(words)

    def store(self, sid: int, phase: list[tuple[int, int]]) -> None:
        """Write words of an STE, as (index, value)."""
        address = self.address(sid)
        for index, value in phase:
            self._memory.write64(address + 8 * index, value)

    def address(self, sid: int) -> int:
        """Where an STE is; its table has to be there."""
        if self._two_level:
            return self._l2[sid >> _SPLIT] + 64 * (sid % (1 << _SPLIT))
        return self.base + 64 * sid
