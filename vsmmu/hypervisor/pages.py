# SPDX-License-Identifier: BSD-2-Clause
"""Physical pages: who owns what of the machine's RAM."""

from __future__ import annotations

from collections.abc import Sequence

from vsmmu.hypervisor.spans import Spans
from vsmmu.memory import PAGE


class OutOfMemoryError(Exception):
    """The machine's RAM is used up; carries the bytes asked for and left."""

    def __init__(self, wanted: int, left: int) -> None:
        super().__init__(f"{wanted:#x} bytes wanted, {left:#x} bytes of machine RAM left")
        self.wanted = wanted
        self.left = left


class PageAllocator:
    """Hands out page-aligned physical ranges, lowest address first; never the page at 0.

    Args:
        regions: RAM as (base, size) in bytes, page aligned.
    """

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        spans = [(max(base, PAGE), base + size) for base, size in regions]
        self._free = Spans((start, end - start) for start, end in spans if start < end)

    @property
    def left(self) -> int:
        """Bytes not handed out."""
        return self._free.total

    def allocate(self, size: int, align: int = PAGE) -> int:
        """A contiguous range, `size` rounded up to pages. Raises OutOfMemoryError."""
        size = -(-size // PAGE) * PAGE
        for start, room in self._free:
            base = -(-start // align) * align
            if base + size <= start + room:
                self._free.remove(base, size)
                return base
        raise OutOfMemoryError(size, self.left)

    def allocate_some(self, size: int, align: int) -> tuple[int, int]:
        """A range of at most `size` bytes, as large as the next free span allows.

        For guest RAM, which need not be contiguous. `size` and the result are multiples of
        `align`. Raises OutOfMemoryError when no free span holds even `align` bytes.
        """
        for start, free in self._free:
            base = -(-start // align) * align
            room = (start + free - base) // align * align
            if room > 0:
                taken = min(size, room)
                return self.allocate_at(base, taken), taken
        raise OutOfMemoryError(size, self.left)

    def allocate_at(self, base: int, size: int) -> int:
        """Exactly this range. Raises OutOfMemoryError when a part of it is not free."""
        if not self._free.covers(base, size):
            raise OutOfMemoryError(size, self.left)
        self._free.remove(base, size)
        return base

    def free(self, base: int, size: int) -> None:
        """Give a range back. Raises ValueError when a part of it was not handed out."""
        self._free.add(base, size)
