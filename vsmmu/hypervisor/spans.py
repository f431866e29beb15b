# SPDX-License-Identifier: BSD-2-Clause
"""Sets of address ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class Spans:
    """Disjoint ranges in order of address; neighbours are one range.

    Args:
        ranges: (base, size) in bytes.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for base, size in ranges:
            self.add(base, size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The ranges as (base, size)."""
        for start, end in zip(self._starts, self._ends, strict=True):
            yield start, end - start

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total(self) -> int:
        """Bytes in all ranges."""
        return sum(self._ends) - sum(self._starts)

    def covers(self, base: int, size: int) -> bool:
        """Whether every byte of a range is in the set."""
        i = bisect_right(self._starts, base) - 1
        return i >= 0 and base + size <= self._ends[i]

    def add(self, base: int, size: int) -> None:
        """Put a range in. Raises ValueError when a part of it is there already."""
        start, end = base, base + size
        low = bisect_right(self._ends, start)
        if low < len(self._starts) and self._starts[low] < end:
            raise ValueError(f"{base:#x}+{size:#x} is there already")
        first = last = low
        if low and self._ends[low - 1] == start:
            start, first = self._starts[low - 1], low - 1
        if low < len(self._starts) and self._starts[low] == end:
            end, last = self._ends[low], low + 1
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, base: int, size: int) -> None:
        """Take a range out. Raises ValueError when a part of it is not there."""
        if not self.covers(base, size):
            raise ValueError(f"{base:#x}+{size:#x} is not all there")
        i = bisect_right(self._starts, base) - 1
        start, end = self._starts[i], self._ends[i]
        rest = [(a, b) for a, b in ((start, base), (base + size, end)) if a < b]
        self._starts[i : i + 1] = [a for a, _ in rest]
        self._ends[i : i + 1] = [b for _, b in rest]
