# SPDX-License-Identifier: BSD-2-Clause
"""Memory of a recorded machine, which remembers the record that wrote each word."""

from __future__ import annotations

from array import array
from collections import deque

from vsmmu.memory import PAGE, PAGE_SHIFT, Memory
from vsmmu.recording.format import Mem

# Pages that a recording may write. An SMMU's structures are far from that.
PAGES_MAX = 1 << 17
_IN_PAGE = PAGE - 1
# M records that are remembered, for what changed since when.
_HISTORY = 1 << 16


class RecordedMemory(Memory):
    """RAM that M records fill.

    Args:
        ram: (base, size) in bytes, of the header.

    Attributes:
        noted: takes the frames of structures that are read as words, if set.
        history: the latest M records: number, address, size.
    """

    def __init__(self, ram: tuple[int, int]) -> None:
        super().__init__([ram])
        # By the index of a word in the arena: the record, 0 for what no record wrote.
        self._writers = array("Q", bytes(8 * len(self.words)))
        self.noted: set[int] | None = None
        self.history: deque[tuple[int, int, int]] = deque(maxlen=_HISTORY)

    def read_words(self, pa: int, count: int) -> tuple[int, ...] | None:
        """As in `Memory`."""
        if self.noted is not None:
            self.noted.update((pa >> PAGE_SHIFT, (pa + 8 * count - 1) >> PAGE_SHIFT))
        return super().read_words(pa, count)

    def store(self, number: int, record: Mem) -> None:
        """Memory changed. Raises ValueError for addresses outside RAM, and beyond PAGES_MAX."""
        pa, data = record
        self.history.append((number, pa, len(data)))
        offset = pa & _IN_PAGE
        last = offset + len(data) - 1
        index = self.page.get(pa >> PAGE_SHIFT)
        if index is None or last >= PAGE:
            if not self.write(pa, data):
                raise ValueError(f"M: {len(data)} bytes at {pa:#x} are not all in RAM")
            self._remember_pages(number, pa, len(data))
            return
        start = index * 8 + offset
        self._arena[start : start + len(data)] = data
        first, count = index + (offset >> 3), (last >> 3) - (offset >> 3) + 1
        if count == 1:
            self._writers[first] = number
        else:
            self._writers[first : first + count] = array("Q", (number,)) * count

    def write32(self, pa: int, value: int) -> bool:
        """A message arrives, wherever it is sent: a doorbell is not in RAM.

        Nothing is stored. The driver may write over the word before the recorder looks again, and
        then no M record says that it is what it was.
        """
        return True

    def writer(self, pa: int, size: int = 8) -> int:
        """The last record that wrote any of the words at an address; 0 if none did."""
        return max(self.writers(pa, size), default=0)

    def writers(self, pa: int, size: int = 8) -> list[int]:
        """The records that wrote the words at an address last, each once."""
        found = set()
        for at in range(pa & -8, pa + size, 8):
            index = self.page.get(at >> PAGE_SHIFT)
            if index is not None:
                found.add(self._writers[index + ((at & _IN_PAGE) >> 3)])
        return sorted(found - {0})

    def changed_since(self, number: int, pa: int, size: int) -> int:
        """The first record after `number` that wrote there; 0 for none that is remembered."""
        for record, at, length in self.history:
            if record > number and at < pa + size and pa < at + length:
                return record
        return 0

    def _remember_pages(self, number: int, pa: int, size: int) -> None:
        """As in `store`, over pages of which some are new."""
        while size > 0:
            offset = pa & _IN_PAGE
            n = min(size, PAGE - offset)
            index = self.page[pa >> PAGE_SHIFT]
            first, end = index + (offset >> 3), index + (offset + n + 7 >> 3)
            self._writers[first:end] = array("Q", (number,)) * (end - first)
            pa, size = pa + n, size - n

    def _allocate(self, frame: int) -> int:
        """As in `Memory`. Raises ValueError beyond PAGES_MAX."""
        if self.pages >= PAGES_MAX:
            raise ValueError(f"more than {PAGES_MAX * PAGE >> 20} MiB of memory are in use")
        index = super()._allocate(frame)
        self._writers.frombytes(bytes(8 * (len(self.words) - len(self._writers))))
        return index
