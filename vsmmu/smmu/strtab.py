# SPDX-License-Identifier: BSD-2-Clause
"""Where in a stream table a StreamID's entry lies (IHI 0070 §3.3.2, §5.1, §6.3.24, §6.3.25).

Arithmetic alone: the physical SMMU and a vSMMU read the words through memories of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsmmu.arch.registers import Idr0, Idr1, StrtabBase, StrtabBaseCfg, StrtabFmt
from vsmmu.arch.stream_table import SPAN_MAX, L1Std, Ste, effective_split

if TYPE_CHECKING:
    from vsmmu.smmu.regfile import RegisterFile


@dataclass(frozen=True, slots=True)
class StreamTable:
    """A table as its registers describe it; `log2size` is capped by SIDSIZE, `base` is aligned."""

    base: int
    log2size: int
    split: int
    two_level: bool

    @classmethod
    def of(cls, regs: RegisterFile) -> StreamTable:
        """The table that STRTAB_BASE and STRTAB_BASE_CFG describe now.

        Aligned to the size LOG2SIZE says, not to the size that SIDSIZE leaves (§6.3.24).
        """
        cfg = StrtabBaseCfg(regs["STRTAB_BASE_CFG"])
        two_level = cfg.fmt == StrtabFmt.TWO_LEVEL and bool(Idr0(regs["IDR0"]).st_level)
        split = effective_split(cfg.split)
        if two_level:
            size = max(Ste.size, L1Std.size << max(0, cfg.log2size - split))
        else:
            size = Ste.size << cfg.log2size
        base = StrtabBase(regs["STRTAB_BASE"]).addr & -size
        return cls(base, min(cfg.log2size, Idr1(regs["IDR1"]).sidsize), split, two_level)

    def covers(self, sid: int) -> bool:
        """Whether a StreamID is within the table; C_BAD_STREAMID if not."""
        return 0 <= sid < 1 << self.log2size

    def linear(self, sid: int) -> int:
        """Address of the STE in a linear table."""
        return self.base + sid * Ste.size

    def level1(self, sid: int) -> int:
        """Address of the level 1 descriptor in a two-level table."""
        return self.base + (sid >> self.split) * L1Std.size

    def span_valid(self, descriptor: L1Std) -> bool:
        """Whether a descriptor's Span leads to a level 2 table at all."""
        return 1 <= descriptor.span <= min(SPAN_MAX, self.split + 1)

    def level2(self, sid: int, descriptor: L1Std) -> int | None:
        """Address of the STE in the descriptor's table; None for C_BAD_STREAMID.

        The table is aligned to its own size: low bits of L2Ptr are taken as 0.
        """
        index = sid & (1 << self.split) - 1
        if not self.span_valid(descriptor) or index >> descriptor.span - 1:
            return None
        return (descriptor.l2ptr & -(Ste.size << descriptor.span - 1)) + index * Ste.size
