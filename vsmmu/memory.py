# SPDX-License-Identifier: BSD-2-Clause
"""System memory: an arena of 4 KiB pages with a page map.

Scalar code reads 64-bit words, batches see the same arena as a numpy array (`Memory.arrays`).
A page takes arena space when it is first written; before that it reads as zero. An access
outside every RAM region is an external abort: a read returns None, a write False. Nothing here
raises for an address a guest chose.
"""

from __future__ import annotations

import mmap
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from numpy import uint64
    from numpy.typing import NDArray

# Address types that mypy keeps apart: physical, intermediate physical, device-side virtual.
Pa = NewType("Pa", int)
Ipa = NewType("Ipa", int)
Iova = NewType("Iova", int)

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
_WORDS = PAGE // 8
_IN_PAGE = PAGE - 1
# Pages nobody touched cost the host nothing, whatever RAM the machine has (from Python 3.13 `mmap`
# has the name).
_UNRESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000)

if sys.byteorder != "little":  # pragma: no cover - word views are native-endian
    raise ImportError("vsmmu.memory needs a little-endian host")


class Memory:
    """RAM of the machine.

    Args:
        regions: (base, size) in bytes, page aligned, disjoint.

    Attributes:
        page: frame number to the place of its first word in `words`, for the walker alone, which
            reads both as `read64` does; a page nobody wrote is in neither.
        words: the arena as 64-bit words; another one after it grew.
        watch: takes the numbers of frames that are written, where somebody wants to know.
    """

    def __init__(self, regions: Iterable[tuple[int, int]]) -> None:
        self.regions = tuple(sorted(regions))
        for base, size in self.regions:
            if base % PAGE or size % PAGE or size <= 0:
                raise ValueError(f"RAM {base:#x}+{size:#x} is not made of 4 KiB pages")
        for (base, size), (after, _) in zip(self.regions, self.regions[1:], strict=False):
            if base + size > after:
                raise ValueError(f"RAM at {after:#x} overlaps RAM at {base:#x}")
        self._bases = [base for base, _ in self.regions]
        # Page frame number -> index of the page's first word. Word 0.._WORDS-1 is the zero page,
        # which every RAM page that nobody wrote shares.
        self.page: dict[int, int] = {}
        self.watch: set[int] | None = None
        self._used = 1
        self._arena: bytearray | mmap.mmap = bytearray(64 * PAGE)
        self.words = memoryview(self._arena).cast("Q")

    def is_ram(self, pa: int) -> bool:
        """Whether the address lies in a RAM region."""
        i = bisect_right(self._bases, pa) - 1
        return i >= 0 and pa - self._bases[i] < self.regions[i][1]

    def read64(self, pa: int) -> int | None:
        """The aligned 64-bit word at `pa` (low three bits ignored); None on external abort."""
        index = self.page.get(pa >> PAGE_SHIFT)
        if index is None:
            return 0 if self.is_ram(pa) else None
        return self.words[index + ((pa & _IN_PAGE) >> 3)]

    def write64(self, pa: int, value: int) -> bool:
        """Store an aligned 64-bit word; False on external abort."""
        index = self.page.get(pa >> PAGE_SHIFT)
        if index is None:
            if not self.is_ram(pa):
                return False
            index = self._allocate(pa >> PAGE_SHIFT)
        self.words[index + ((pa & _IN_PAGE) >> 3)] = value
        if self.watch is not None:
            self.watch.add(pa >> PAGE_SHIFT)
        return True

    def read_words(self, pa: int, count: int) -> tuple[int, ...] | None:
        """`count` words from `pa`, each read once; None when any aborts."""
        first = (pa & _IN_PAGE) >> 3
        index = self.page.get(pa >> PAGE_SHIFT)
        if index is not None and first + count <= _WORDS:
            return tuple(self.words[index + first : index + first + count])
        out = []
        for i in range(count):
            word = self.read64(pa + 8 * i)
            if word is None:
                return None
            out.append(word)
        return tuple(out)

    def write_words(self, pa: int, words: Iterable[int]) -> bool:
        """Store words one after the other; False at the first that aborts."""
        for word in words:
            if not self.write64(pa, word):
                return False
            pa += 8
        return True

    def read(self, pa: int, size: int) -> bytes | None:
        """`size` bytes; None when any of them aborts."""
        out = bytearray()
        while size:
            offset = pa & _IN_PAGE
            n = min(size, PAGE - offset)
            index = self.page.get(pa >> PAGE_SHIFT)
            if index is not None:
                start = index * 8 + offset
                out += self._arena[start : start + n]
            elif self.is_ram(pa):
                out += bytes(n)
            else:
                return None
            pa, size = pa + n, size - n
        return bytes(out)

    def write(self, pa: int, data: bytes) -> bool:
        """Store bytes; False, with nothing stored, when any of them would abort."""
        if not self._all_ram(pa, len(data)):
            return False
        done = 0
        while done < len(data):
            offset = pa & _IN_PAGE
            n = min(len(data) - done, PAGE - offset)
            index = self.page.get(pa >> PAGE_SHIFT)
            if index is None:
                index = self._allocate(pa >> PAGE_SHIFT)
            start = index * 8 + offset
            self._arena[start : start + n] = data[done : done + n]
            if self.watch is not None:
                self.watch.add(pa >> PAGE_SHIFT)
            pa, done = pa + n, done + n
        return True

    def write32(self, pa: int, value: int) -> bool:
        """Store a 32-bit word (an MSI); False on external abort."""
        return self.write(pa, struct.pack("<I", value))

    def clear(self, pa: int, size: int) -> None:
        """Make whole pages zero; those that nobody wrote are so already."""
        first, last = pa >> PAGE_SHIFT, (pa + size - 1) >> PAGE_SHIFT
        if last - first < len(self.page):
            frames = [frame for frame in range(first, last + 1) if frame in self.page]
        else:
            frames = [frame for frame in self.page if first <= frame <= last]
        for frame in frames:
            start = self.page[frame] * 8
            self._arena[start : start + PAGE] = bytes(PAGE)
        if self.watch is not None:
            self.watch.update(frames)

    def fix(self) -> None:
        """Give the arena room for all RAM, so that it never moves again.

        For someone outside who keeps the address of a page, as a CPU emulator does.

        Raises:
            ValueError: the host has not the addresses.
        """
        if isinstance(self._arena, mmap.mmap):
            return
        size = PAGE + sum(size for _, size in self.regions)
        try:
            fixed = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON | _UNRESERVED)
        except (OSError, OverflowError, ValueError):
            raise ValueError(f"RAM of {size:#x} bytes does not fit the host's memory") from None
        used = self._used * PAGE
        fixed[:used] = self._arena[:used]
        self._arena = fixed
        self.words = memoryview(fixed).cast("Q")

    def place(self, pa: int, size: int) -> list[tuple[int, int, int]] | None:
        """Where whole pages are in the arena, as runs (PA, size, offset), all in bytes.

        They take arena space if they had none. None when any of them is not RAM.
        """
        if not self._all_ram(pa, size):
            return None
        runs: list[tuple[int, int, int]] = []
        first, frames, start, after = pa, self.page, 0, -1
        for frame in range(pa >> PAGE_SHIFT, pa + size >> PAGE_SHIFT):
            index = frames.get(frame)
            if index is None:
                index = self._allocate(frame)
            if index != after:
                at = frame << PAGE_SHIFT
                if after >= 0:
                    runs.append((first, at - first, 8 * start))
                first, start = at, index
            after = index + _WORDS
        if after >= 0:
            runs.append((first, pa + size - first, 8 * start))
        return runs

    def arrays(self) -> tuple[NDArray[uint64], NDArray[uint64], NDArray[uint64]]:
        """(arena words, sorted frame numbers, index of each frame's first word) for batches.

        The arrays are a view of this moment: a first write to another page may move the arena.
        """
        import numpy as np

        order = sorted(self.page)
        frames = np.array(order, dtype=np.uint64)
        index = np.array([self.page[f] for f in order], dtype=np.uint64)
        return np.frombuffer(self._arena, dtype=np.uint64), frames, index

    @property
    def pages(self) -> int:
        """Pages that hold data."""
        return len(self.page)

    def _all_ram(self, pa: int, size: int) -> bool:
        end = pa + size
        while pa < end:
            i = bisect_right(self._bases, pa) - 1
            if i < 0 or pa - self._bases[i] >= self.regions[i][1]:
                return False
            pa = self._bases[i] + self.regions[i][1]
        return True

    def _allocate(self, frame: int) -> int:
        """Give a page arena space. The arena doubles, so the cost per page stays constant."""
        if (self._used + 1) * PAGE > len(self._arena):
            # A new arena rather than a resize: numpy views of the old one may be alive.
            grown = bytearray(2 * len(self._arena))
            grown[: len(self._arena)] = self._arena
            self._arena = grown
            self.words = memoryview(grown).cast("Q")
        index = self._used * _WORDS
        self._used += 1
        self.page[frame] = index
        return index
