# SPDX-License-Identifier: BSD-2-Clause
"""Machine pages that domains gave up: when they may be given out again.

A page can be mapped by another domain than its owner's (a grant). It goes back to the allocator
when the owner has released it and the last reference is put; it is zero by then, so that no
domain reads what another wrote.
"""

from __future__ import annotations

from collections import Counter

from vsmmu.hypervisor.pages import PageAllocator
from vsmmu.memory import PAGE, Memory


class Frames:
    """References to pages beyond their owner's.

    Callers put or release only when no cache of an SMMU can hold the page any more.

    Attributes:
        held: pages that their owner released and another domain still maps.
    """

    def __init__(self, memory: Memory, pages: PageAllocator) -> None:
        self._memory = memory
        self._pages = pages
        self._references: Counter[int] = Counter()
        self.held: set[int] = set()

    def get(self, pa: int) -> None:
        """Take a reference to a page."""
        self._references[pa] += 1

    def put(self, pa: int) -> None:
        """Put a reference back."""
        self._references[pa] -= 1
        if not self._references[pa]:
            del self._references[pa]
            if pa in self.held:
                self.held.remove(pa)
                self._free(pa, PAGE)

    def release(self, base: int, size: int) -> None:
        """An owner gives up a range of whole pages."""
        for pa in sorted(p for p in self._references if base <= p < base + size):
            self.held.add(pa)
            if base < pa:
                self._free(base, pa - base)
            base, size = pa + PAGE, size - (pa + PAGE - base)
        if size:
            self._free(base, size)

    def _free(self, base: int, size: int) -> None:
        self._memory.clear(base, size)
        self._pages.free(base, size)
