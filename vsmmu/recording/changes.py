# SPDX-License-Identifier: BSD-2-Clause
"""What changed in a guest's RAM, or a machine's, since somebody looked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Protocol

from vsmmu.hypervisor.domain import Domain
from vsmmu.memory import PAGE, PAGE_SHIFT, Memory
from vsmmu.recording.format import Mem

_ZERO = bytes(PAGE)
# Unchanged bytes between two changes that are not worth a record of their own.
_GAP = 16


class Watched:
    """Notes the frames of a memory that are written, for any number of `Changes`.

    Args:
        memory: nobody else watches it.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._written: set[int] = set()
        memory.watch = self._written
        self._users: list[set[int]] = []

    def join(self) -> set[int]:
        """A set that takes the frames written from now on, and those written before."""
        pending = set(self.memory.page)
        self._users.append(pending)
        return pending

    def share(self) -> None:
        """Hand the frames written so far to everybody."""
        if self._written:
            for pending in self._users:
                pending.update(self._written)
            self._written.clear()


class Places(Protocol):
    """Where the recorded side has the machine's memory."""

    def address(self, pa: int) -> int | None:
        """Its address of a frame; None where it has not got it."""
        ...  # pragma: no cover

    def moved(self) -> bool:
        """Whether addresses have other frames than when this was last asked."""
        ...  # pragma: no cover

    def read(self, address: int) -> bytes | None:
        """The page at one of its addresses."""
        ...  # pragma: no cover


class MachinePlaces:
    """Places of who drives a physical SMMU: the machine's own."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def address(self, pa: int) -> int | None:
        """The same."""
        return pa

    def moved(self) -> bool:
        """Never."""
        return False

    def read(self, address: int) -> bytes | None:
        """The page there."""
        return self._memory.read(address, PAGE)


class GuestPlaces:
    """Places of a domain, by its stage 2 as it is when asked."""

    def __init__(self, domain: Domain) -> None:
        self._memory, self._stage2 = domain.memory, domain.stage2
        self._mappings: object = None
        self._by_pa: list[tuple[int, int, int]] = []
        self._starts: list[int] = []

    def address(self, pa: int) -> int | None:
        """The IPA of a frame."""
        self.moved()
        at = bisect_right(self._starts, pa) - 1
        if at < 0:
            return None
        base, size, ipa = self._by_pa[at]
        return ipa + pa - base if pa - base < size else None

    def moved(self) -> bool:
        """Whether stage 2 has changed."""
        mappings = self._stage2.mappings()
        if mappings is self._mappings:
            return False
        first = self._mappings is None
        self._mappings = mappings
        self._by_pa = sorted((base, size, ipa) for ipa, base, size in mappings)
        self._starts = [base for base, _, _ in self._by_pa]
        return not first

    def read(self, address: int) -> bytes | None:
        """The page there; None where stage 2 has none."""
        return self._memory.read(address, PAGE)


class Changes:
    """The changes of one address space, as M records.

    Args:
        watched: the memory.
        places: where the recorded side has it.
    """

    def __init__(self, watched: Watched, places: Places) -> None:
        self._watched = watched
        self._memory = watched.memory
        self._places = places
        self._pending = watched.join()
        self._known: dict[int, bytes] = {}

    def records(self) -> Iterator[Mem]:
        """What changed since it was last asked for, in order of address."""
        for address, before, now in sorted(self._take()):
            for start, end in _differing(before, now):
                yield Mem(address + start, now[start:end])

    def ignore(self) -> None:
        """Take what changed as known: the SMMU wrote it."""
        for _ in self._take():
            pass

    def _take(self) -> Iterator[tuple[int, bytes, bytes]]:
        self._watched.share()
        pending, places = self._pending, self._places
        if places.moved():
            # Another page, maybe one that nobody wrote, may be where a page was.
            pending.update(self._memory.page)
            for address in list(self._known):
                yield from self._compared(address, places.read(address))
        while pending:
            pa = pending.pop() << PAGE_SHIFT
            place = places.address(pa)
            if place is not None:
                yield from self._compared(place, self._memory.read(pa, PAGE))

    def _compared(self, address: int, now: bytes | None) -> Iterator[tuple[int, bytes, bytes]]:
        before = self._known.get(address, _ZERO)
        if now is not None and now != before:
            self._known[address] = now
            yield address, before, now


def _differing(before: bytes, now: bytes) -> Iterator[tuple[int, int]]:
    """Ranges of whole words that differ, near ones joined."""
    start = end = -1
    for at in range(0, PAGE, 8):
        if before[at : at + 8] == now[at : at + 8]:
            continue
        if start >= 0 and at - end >= _GAP:
            yield start, end
            start = at
        if start < 0:
            start = at
        end = at + 8
    if start >= 0:
        yield start, end
