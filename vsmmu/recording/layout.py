# SPDX-License-Identifier: BSD-2-Clause
"""Where the addresses of a recorded machine lie in the one that it is played on.

A recording's addresses are its guest's IPAs. RAM is there from the start; what else devices reach
(doorbells, other devices' registers) is mapped when a recorded access first ends there, since
nothing lists it.
"""

from __future__ import annotations

from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import PAGE

# The hypervisor's own RAM, bytes. It holds tables and queues.
OWN = 256 << 20
# RAM of a guest is laid out in at most this many blocks, of 2 MiB or 1 GiB.
BLOCKS_MAX = 4096
_BLOCK, _LARGE = 2 << 20, 1 << 30
# Blocks at the end of a domU's RAM whose pages are scattered one by one: what must not be assumed
# contiguous is there. Linux takes its first pages for tables from the end.
_SCATTERED = 4
_PAGES = _BLOCK // PAGE


class Layout:
    """The map of one guest, and of the machine's memory.

    A domU's RAM is laid out backwards block by block, and page by page near its end; what is not
    RAM has the highest address bit changed. For dom0 all is identity.

    Args:
        ram: the recording's (base, size) in bytes.
        bits: of a machine address.
        direct: dom0.

    Attributes:
        own: the hypervisor's RAM, (base, size).
        regions: the machine's RAM.

    Raises:
        ValueError: RAM that does not fit.
    """

    def __init__(self, ram: tuple[int, int], bits: int, *, direct: bool) -> None:
        base, size = ram
        self.ram, self.direct = ram, direct
        self._end = base + size
        self._block = _BLOCK if size // _BLOCK < BLOCKS_MAX else _LARGE
        self._first = base // self._block
        self._count = -(-self._end // self._block) - self._first
        if self._count > BLOCKS_MAX:
            raise ValueError(f"RAM of {size >> 40} TiB, more than {BLOCKS_MAX >> 10} TiB")
        self._other = 0 if direct else 1 << bits - 1
        if direct:
            # Where all addresses end: what a board has near its RAM, devices may be told to reach.
            place, self._base = (1 << bits) - OWN, base
            if place < self._end <= 1 << bits:
                place = base // _BLOCK * _BLOCK - OWN
            self.regions = [(place, OWN), ram]
        else:
            place = OWN
            self._base = -(-2 * OWN // self._block) * self._block
            self.regions = [(place, OWN), (self._base, self._count * self._block)]
        self.own = (place, OWN)
        top = max(start + length for start, length in self.regions)
        if top > (1 << bits - (not direct)) or place < 0:
            raise ValueError(f"RAM up to {self._end - 1:#x} needs more than {bits} address bits")

    def to_pa(self, ipa: int) -> int:
        """The machine's address of a guest's; what is no RAM too."""
        if self.direct:
            return ipa
        if not self.ram[0] <= ipa < self._end:
            return ipa ^ self._other
        block, offset = divmod(ipa, self._block)
        return self._base + self._slot(block) * self._block + self._scatter(block, offset)

    def to_ipa(self, pa: int) -> int | None:
        """The guest's address of the machine's; None where it has none."""
        if self.direct:
            return None if self._is_own(pa) else pa
        at = pa - self._base
        if 0 <= at < self._count * self._block:
            slot, offset = divmod(at, self._block)
            block = self._first + self._count - 1 - slot
            ipa = block * self._block + self._scatter(block, offset)
            return ipa if self.ram[0] <= ipa < self._end else None
        return None if self._is_own(pa) else pa ^ self._other

    def map_ram(self, stage2: Stage2) -> None:
        """Map all RAM."""
        ipa = self.ram[0]
        if self.direct:
            stage2.map(ipa, ipa, self.ram[1])
            return
        while ipa < self._end:
            block = ipa // self._block
            size = min((block + 1) * self._block, self._end) - ipa
            if self._scattered(block):
                size = PAGE
            stage2.map(ipa, self.to_pa(ipa), size)
            ipa += size

    def map_around(self, stage2: Stage2, ipa: int) -> None:
        """Map the GiB around an address that is no RAM, but for RAM.

        Nothing if it is mapped, or lies beyond the guest's addresses.
        """
        if self.ram[0] <= ipa < self._end or stage2.to_pa(ipa) is not None:
            return
        if ipa >> stage2.ipa_bits:
            return
        low = ipa & -_LARGE
        for start, end in self._but_for(low, low + _LARGE):
            stage2.map(start, start ^ self._other, end - start, device=True)

    def _but_for(self, start: int, end: int) -> list[tuple[int, int]]:
        """A range less RAM, and less what would reach the machine's RAM."""
        holes = [self.ram, *((base ^ self._other, size) for base, size in self.regions)]
        out = []
        for base, size in sorted(holes):
            if base >= end or base + size <= start:
                continue
            if start < base:
                out.append((start, base))
            start = max(start, -(-(base + size) // PAGE) * PAGE)
        return [*out, (start, end)] if start < end else out

    def _slot(self, block: int) -> int:
        return self._first + self._count - 1 - block

    def _scattered(self, block: int) -> bool:
        last = self._first + self._count - 1
        return self._block == _BLOCK and last - _SCATTERED < block <= last

    def _scatter(self, block: int, offset: int) -> int:
        """Pages of a scattered block, backwards; its own inverse."""
        if not self._scattered(block):
            return offset
        page, rest = divmod(offset, PAGE)
        return (_PAGES - 1 - page) * PAGE + rest

    def _is_own(self, pa: int) -> bool:
        return self.own[0] <= pa < self.own[0] + self.own[1]
