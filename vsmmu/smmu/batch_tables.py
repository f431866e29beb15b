# SPDX-License-Identifier: BSD-2-Clause
"""Where the stage 1 tables of a batch are: stage 2 translations of their pages, found once.

A nested walk asks stage 2 about every stage 1 descriptor. A batch has few tables and many lanes,
so what stage 2 says of a page is kept while nothing is stored. Only pages that translate are kept;
the rest is walked for each lane, which faults or updates as it should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vsmmu.memory import PAGE, PAGE_SHIFT

if TYPE_CHECKING:
    from vsmmu.smmu.arena import Lanes, Mask, Words

# Pages that the map may span, and lanes below which it is not worth making.
SPAN, ENOUGH = 1 << 20, 256
_UNKNOWN = -1
_IN_PAGE = PAGE - 1


class TablePages:
    """PA of pages by IPA.

    Attributes:
        depth: descriptors that a stage 2 walk to each page reads: a number where all are alike.
    """

    def __init__(self) -> None:
        self._low = 0
        # A place more at both ends, for pages outside.
        self._places: Words = np.full(2, _UNKNOWN, dtype=np.int64)
        self._depths: Words = np.zeros(2, dtype=np.int64)
        self.depth: int | None = None

    def find(self, slots: Words) -> tuple[Words, Mask | None]:
        """(PA of each slot, which are unknown; None: no slot is)."""
        index = self._index(slots)
        found: Words = self._places.take(index, mode="clip")
        unknown = None
        if int(np.bitwise_or.reduce(found)) < 0:
            unknown = found < 0
        found |= slots & _IN_PAGE
        return found, unknown

    def reads(self, slots: Words) -> int:
        """Stage 2 descriptors that walks to these known slots read."""
        if self.depth is not None:
            return self.depth * slots.size
        return int(self._depths.take(self._index(slots), mode="clip").sum())

    def learn(self, ipas: Words, pas: Words, depth: int) -> None:
        """Keep where these pages are; those too far from the others are left out."""
        low, high = int(ipas.min()) >> PAGE_SHIFT, int(ipas.max()) >> PAGE_SHIFT
        known = self._places.size > 2
        if known:
            low, high = min(low, self._low), max(high, self._low + self._places.size - 3)
        if high - low >= SPAN:
            return
        if not known or high - low + 3 > self._places.size:
            places = np.full(high - low + 3, _UNKNOWN, dtype=np.int64)
            depths = np.zeros(high - low + 3, dtype=np.int64)
            if known:
                at = slice(self._low - low, self._low - low + self._places.size)
                places[at], depths[at] = self._places, self._depths
            self._low, self._places, self._depths = low, places, depths
        index = self._index(ipas)
        self._places[index], self._depths[index] = pas & ~_IN_PAGE, depth
        self.depth = depth if not known or self.depth == depth else None

    def _index(self, slots: Words) -> Lanes:
        index: Lanes = (slots >> PAGE_SHIFT) - (self._low - 1)
        return index
