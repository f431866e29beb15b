# SPDX-License-Identifier: BSD-2-Clause
"""Finding a guest's STE (IHI 0070 §3.3.2, §5.1).

The guest's table is read through its stage 2 as the hardware would read it: linear or two-level,
with the guest's own SPLIT and LOG2SIZE, each 64-bit word once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vsmmu.arch.events import CBadStreamid, Event, FSteFetch
from vsmmu.arch.registers import Idr1, StrtabBase, StrtabBaseCfg, StrtabFmt
from vsmmu.arch.stream_table import SPAN_MAX, L1Std, Ste, effective_split
from vsmmu.smmu.regfile import RegisterFile


class Words(Protocol):
    """Memory that a walk reads from."""

    def read64(self, address: int) -> int | None: ...  # noqa: D102
    def read_words(self, address: int, count: int) -> tuple[int, ...] | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class StreamTable:
    """A stream table as its two registers describe it; `log2size` is capped by SIDSIZE."""

    base: int
    log2size: int
    split: int
    two_level: bool

    @staticmethod
    def of(regs: RegisterFile, idr1: Idr1) -> StreamTable:
        """The table that STRTAB_BASE and STRTAB_BASE_CFG describe now."""
        cfg = StrtabBaseCfg(regs["STRTAB_BASE_CFG"])
        two_level = cfg.fmt == StrtabFmt.TWO_LEVEL
        split = effective_split(cfg.split)
        if two_level:
            size = max(64, 8 << max(0, cfg.log2size - split))
        else:
            size = 64 << cfg.log2size
        base = StrtabBase(regs["STRTAB_BASE"]).addr & ~(size - 1)
        return StreamTable(base, min(cfg.log2size, idr1.sidsize), split, two_level)

    def fetch(self, sid: int, memory: Words) -> Ste | Event:
        """The STE, or the event that stands for it: C_BAD_STREAMID or F_STE_FETCH."""
        address = self._locate(sid, memory)
        if isinstance(address, Event):
            return address
        words = memory.read_words(address, 8)
        return Ste(words) if words is not None else FSteFetch.build(fetchaddr=address)

    def _locate(self, sid: int, memory: Words) -> int | Event:
        if sid >> self.log2size:
            return CBadStreamid.build()
        if not self.two_level:
            return self.base + 64 * sid
        slot = self.base + 8 * (sid >> self.split)
        word = memory.read64(slot)
        if word is None:
            return FSteFetch.build(fetchaddr=slot)
        l1std = L1Std(word)
        index = sid & (1 << self.split) - 1
        if not 0 < l1std.span <= min(SPAN_MAX, self.split + 1) or index >> l1std.span - 1:
            return CBadStreamid.build()
        table = l1std.l2ptr & ~((64 << l1std.span - 1) - 1)
        return table + 64 * index
