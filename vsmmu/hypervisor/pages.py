# SPDX-License-Identifier: BSD-2-Clause
"""Physical pages: who owns what of the machine's RAM."""

from __future__ import annotations

from collections.abc import Sequence

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
        self._free = [[max(base, PAGE), base + size] for base, size in sorted(regions)]
        self._free = [span for span in self._free if span[0] < span[1]]

    @property
    def left(self) -> int:
        """Bytes not handed out."""
        return sum(end - start for start, end in self._free)

    def allocate(self, size: int, align: int = PAGE) -> int:
        """A contiguous range, `size` rounded up to pages. Raises OutOfMemoryError."""
        size = -(-size // PAGE) * PAGE
        for i, (start, end) in enumerate(self._free):
            base = -(-start // align) * align
            if base + size <= end:
                rest = [[start, base], [base + size, end]]
                self._free[i : i + 1] = [span for span in rest if span[0] < span[1]]
                return base
        raise OutOfMemoryError(size, self.left)

    def allocate_some(self, size: int, align: int) -> tuple[int, int]:
        """A range of at most `size` bytes, as large as the next free span allows.

        For guest RAM, which need not be contiguous. `size` and the result are multiples of
        `align`. Raises OutOfMemoryError when no free span holds even `align` bytes.
        """
        for start, end in self._free:
            base = -(-start // align) * align
            room = (end - base) // align * align
            if room > 0:
                taken = min(size, room)
                return self.allocate_at(base, taken), taken
        raise OutOfMemoryError(size, self.left)

    def allocate_at(self, base: int, size: int) -> int:
        """Exactly this range. Raises OutOfMemoryError when a part of it is not free."""
        for i, (start, end) in enumerate(self._free):
            if start <= base and base + size <= end:
                rest = [[start, base], [base + size, end]]
                self._free[i : i + 1] = [span for span in rest if span[0] < span[1]]
                return base
        raise OutOfMemoryError(size, self.left)

    def free(self, base: int, size: int) -> None:
        """Give a range back."""
        spans = sorted([*self._free, [base, base + size]])
        merged = [spans[0]]
        for start, end in spans[1:]:
            if start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        self._free = merged
