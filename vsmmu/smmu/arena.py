# SPDX-License-Identifier: BSD-2-Clause
"""Memory as numpy arrays, for translation of many accesses at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vsmmu.memory import PAGE, PAGE_SHIFT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vsmmu.memory import Memory

    Words = NDArray[np.int64]
    Lanes = NDArray[np.intp]
    Mask = NDArray[np.bool_]

# Frames that a page map may span; beyond, frames are searched for.
_SPAN = 1 << 22
_WORDS = PAGE // 8


class Arena:
    """Memory as arrays, at one moment: a first write to another page makes it out of date."""

    def __init__(self, memory: Memory) -> None:
        words, frames, index = memory.arrays()
        self.pages = memory.pages
        self._words: Words = words.view(np.int64)
        self._regions = memory.regions
        low, high = (int(frames[0]), int(frames[-1]) + 1) if frames.size else (0, 0)
        low = 0 if high <= _SPAN else low
        self._offset = 0
        self._frames: Words = frames.astype(np.int64)
        self._index: Words = index.astype(np.int64)
        self._map: Words | None = None
        if high - low <= _SPAN:
            # A place more at the ends, for the frames outside: word 0 begins the zero page.
            self._offset = max(low - 1, 0)
            self._map = np.zeros(high - self._offset + 1, dtype=np.int64)
            self._map[self._frames - self._offset] = self._index

    def gather(self, slots: Words) -> Words:
        """The words at these addresses; 0 also where there is no memory."""
        within = slots >> 3
        within &= _WORDS - 1
        within += self._starts(slots)
        return self._words.take(within, mode="clip")

    def in_page(self, pages: Words, index: Words) -> Words:
        """Word `index` of the page at each of these addresses."""
        return self._words.take(self._starts(pages) + index, mode="clip")

    def _starts(self, addresses: Words) -> Words:
        """Index of the first word of each page; of the zero page where there is no memory."""
        frames = addresses >> PAGE_SHIFT
        if self._map is not None:
            if self._offset:
                frames -= self._offset
            return self._map.take(frames, mode="clip")
        place = np.minimum(self._frames.searchsorted(frames), self._frames.size - 1)
        return np.where(self._frames[place] == frames, self._index[place], 0)

    def is_ram(self, addresses: Words) -> Mask:
        """Which addresses lie in RAM."""
        found = np.zeros(addresses.shape, dtype=np.bool_)
        for base, size in self._regions:
            found |= (addresses >= base) & (addresses < base + size)
        return found
