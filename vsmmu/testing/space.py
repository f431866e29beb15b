# SPDX-License-Identifier: BSD-2-Clause
"""Memory that structures are built in: words at addresses, and a range to take places from."""

from __future__ import annotations

from typing import Protocol

from vsmmu.memory import PAGE


class WordMemory(Protocol):
    """What the builders need: a machine's `Memory`, or a guest's `GuestMemory` by its own IPAs."""

    def read64(self, address: int, /) -> int | None:
        """The aligned 64-bit word at an address; None on external abort."""
        ...  # pragma: no cover

    def write64(self, address: int, value: int, /) -> bool:
        """Store an aligned 64-bit word; False on external abort."""
        ...  # pragma: no cover

    def read_words(self, address: int, count: int, /) -> tuple[int, ...] | None:
        """`count` words; None when any aborts."""
        ...  # pragma: no cover

    def write_words(self, address: int, words: tuple[int, ...], /) -> bool:
        """Store words one after the other; False at the first that aborts."""
        ...  # pragma: no cover

    def read(self, address: int, size: int, /) -> bytes | None:
        """`size` bytes; None when any of them aborts."""
        ...  # pragma: no cover

    def write(self, address: int, data: bytes, /) -> bool:
        """Store bytes; False when any of them aborts."""
        ...  # pragma: no cover


class Space:
    """A range of memory that hands out places, each once and zeroed.

    Args:
        memory: where the range lies.
        base, size: the range, bytes.
    """

    def __init__(self, memory: WordMemory, base: int, size: int) -> None:
        self.memory = memory
        self._next, self._end = base, base + size

    def allocate(self, size: int, align: int | None = None) -> int:
        """Address of `size` bytes, aligned to `align` or else to the power of two that holds them.

        Raises:
            ValueError: the range is used up, or is not RAM.
        """
        align = align or 1 << (size - 1).bit_length()
        place = -(-self._next // align) * align
        if size <= 0 or place + size > self._end:
            left = max(0, self._end - place)
            raise ValueError(f"{size:#x} bytes do not fit, {left:#x} are left in this space")
        before = self.memory.read(place, size)
        if before is None or (any(before) and not self.memory.write(place, bytes(size))):
            raise ValueError(f"{place:#x}+{size:#x} is not RAM")
        self._next = place + size
        return place

    def page(self, count: int = 1) -> int:
        """Address of so many whole 4 KiB pages side by side. Raises ValueError."""
        return self.allocate(count * PAGE, PAGE)


def store(memory: WordMemory, address: int, words: tuple[int, ...]) -> None:
    """Store words. Raises ValueError where that is not RAM."""
    if not memory.write_words(address, words):
        raise ValueError(f"{address:#x}+{8 * len(words):#x} is not RAM")


def load(memory: WordMemory, address: int, count: int) -> tuple[int, ...]:
    """Load words. Raises ValueError where that is not RAM."""
    words = memory.read_words(address, count)
    if words is None:
        raise ValueError(f"{address:#x}+{8 * count:#x} is not RAM")
    return words
