# SPDX-License-Identifier: BSD-2-Clause
"""Stream tables and CD tables, linear and two-level (IHI 0070 §3.3, §5.1, §5.3)."""

from __future__ import annotations

from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.registers import StrtabBase, StrtabBaseCfg, StrtabFmt
from vsmmu.arch.stream_table import L1Std, S1Fmt, Ste, effective_split
from vsmmu.smmu.strtab import StreamTable
from vsmmu.testing.space import Space, load, store

_NO_PAGE_ALIGN = 64
# log2 of the CDs in a second-level table.
_CD_SPLIT = {S1Fmt.TWO_LEVEL_4K: 6, S1Fmt.TWO_LEVEL_64K: 10}


class LinearStreamTable:
    """A stream table of 2^log2size STEs side by side, all of them V=0."""

    def __init__(self, space: Space, log2size: int) -> None:
        self.space = space
        size = Ste.size << log2size
        self.place = StreamTable(space.allocate(size), log2size, 0, two_level=False)

    @property
    def registers(self) -> dict[str, int]:
        """STRTAB_BASE and STRTAB_BASE_CFG."""
        table = self.place
        fmt = StrtabFmt.TWO_LEVEL if table.two_level else StrtabFmt.LINEAR
        config = StrtabBaseCfg.build(log2size=table.log2size, split=table.split, fmt=fmt)
        base = StrtabBase.build(addr=table.base, ra=1)
        return {"STRTAB_BASE": base.raw, "STRTAB_BASE_CFG": config.raw}

    def address(self, sid: int) -> int:
        """Where the STE of a StreamID is. Raises ValueError: it is not within the table."""
        self._covered(sid)
        return self.place.linear(sid)

    def write(self, sid: int, ste: Ste) -> None:
        """Store an STE; telling the SMMU is the caller's work. Raises ValueError."""
        store(self.space.memory, self.address(sid), ste.words)

    def read(self, sid: int) -> Ste:
        """The STE of a StreamID. Raises ValueError."""
        return Ste(load(self.space.memory, self.address(sid), Ste.dwords))

    def _covered(self, sid: int) -> None:
        if not self.place.covers(sid):
            raise ValueError(f"StreamID {sid:#x} is beyond a table of 2^{self.place.log2size} STEs")


class TwoLevelStreamTable(LinearStreamTable):
    """A two-level stream table; a second level is made when one of its STEs is written.

    Args:
        log2size: StreamID bits that the table covers.
        split: StreamID bits of a second-level table: 6, 8 or 10.
    """

    def __init__(self, space: Space, log2size: int, split: int = 8) -> None:
        if split != effective_split(split):
            raise ValueError(f"SPLIT is 6, 8 or 10, not {split}")
        self.space = space
        size = L1Std.size << max(0, log2size - split)
        base = space.allocate(size, max(size, _NO_PAGE_ALIGN))
        self.place = StreamTable(base, log2size, split, two_level=True)

    def descriptor(self, sid: int) -> L1Std:
        """The level 1 descriptor that covers a StreamID. Raises ValueError."""
        self._covered(sid)
        return L1Std(load(self.space.memory, self.place.level1(sid), L1Std.dwords))

    def describe(self, sid: int, descriptor: L1Std) -> None:
        """Replace the level 1 descriptor that covers a StreamID. Raises ValueError."""
        self._covered(sid)
        store(self.space.memory, self.place.level1(sid), descriptor.words)

    def address(self, sid: int) -> int:
        """Where the STE of a StreamID is. Raises ValueError: no second level reaches it."""
        place = self.place.level2(sid, self.descriptor(sid))
        if place is None:
            raise ValueError(f"StreamID {sid:#x} has no second-level table")
        return place

    def write(self, sid: int, ste: Ste) -> None:
        """Store an STE, with a whole second-level table where there was none. Raises ValueError."""
        if not self.descriptor(sid).span:
            size = Ste.size << self.place.split
            span = self.place.split + 1
            self.describe(sid, L1Std.build(span=span, l2ptr=self.space.allocate(size)))
        super().write(sid, ste)


class CdTable:
    """The CDs of a stream.

    Args:
        bits: S1CDMax: 2^bits SubstreamIDs; 0 is one CD and no substreams.
        fmt: S1Fmt: linear, or two levels of 4 KiB or 64 KiB tables.
    """

    def __init__(self, space: Space, bits: int = 0, fmt: S1Fmt = S1Fmt.LINEAR) -> None:
        self.space = space
        self.bits = bits
        self.fmt = fmt if bits else S1Fmt.LINEAR
        self.split = _CD_SPLIT.get(self.fmt, 0)
        size = Cd.size << bits
        if self.split:
            size = L1Cd.size << max(0, bits - self.split)
        self.base = space.allocate(size, max(size, _NO_PAGE_ALIGN))

    def ste_fields(self) -> dict[str, int]:
        """S1ContextPtr, S1CDMax and S1Fmt of the STE."""
        return {"s1ctxptr": self.base, "s1cdmax": self.bits, "s1fmt": self.fmt}

    def descriptor(self, ssid: int) -> L1Cd:
        """The level 1 descriptor of a SubstreamID. Raises ValueError: there are no two levels."""
        return L1Cd(load(self.space.memory, self._level1(ssid), L1Cd.dwords))

    def describe(self, ssid: int, descriptor: L1Cd) -> None:
        """Replace the level 1 descriptor of a SubstreamID. Raises ValueError."""
        store(self.space.memory, self._level1(ssid), descriptor.words)

    def address(self, ssid: int = 0) -> int:
        """Where the CD of a SubstreamID is. Raises ValueError: no table reaches it."""
        self._covered(ssid)
        if not self.split:
            return self.base + ssid * Cd.size
        descriptor = self.descriptor(ssid)
        if not descriptor.v:
            raise ValueError(f"SubstreamID {ssid:#x} has no second-level table")
        table = descriptor.l2ptr & -(Cd.size << self.split)
        return table + (ssid & (1 << self.split) - 1) * Cd.size

    def write(self, cd: Cd, ssid: int = 0) -> None:
        """Store a CD, with a second-level table where there was none. Raises ValueError."""
        if self.split and not self.descriptor(ssid).v:
            place = self.space.allocate(Cd.size << self.split)
            self.describe(ssid, L1Cd.build(v=1, l2ptr=place))
        store(self.space.memory, self.address(ssid), cd.words)

    def read(self, ssid: int = 0) -> Cd:
        """The CD of a SubstreamID. Raises ValueError."""
        return Cd(load(self.space.memory, self.address(ssid), Cd.dwords))

    def _level1(self, ssid: int) -> int:
        self._covered(ssid)
        if not self.split:
            raise ValueError("a linear CD table has no level 1 descriptors")
        return self.base + (ssid >> self.split) * L1Cd.size

    def _covered(self, ssid: int) -> None:
        if not 0 <= ssid < 1 << self.bits:
            raise ValueError(f"SubstreamID {ssid:#x} is beyond a table of 2^{self.bits} CDs")
