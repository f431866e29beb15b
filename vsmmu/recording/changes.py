# SPDX-License-Identifier: BSD-2-Clause
"""What changed in a guest's RAM, or a machine's, since somebody looked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.memory import PAGE, PAGE_SHIFT, Memory
from vsmmu.recording.format import Mem

_ZERO = bytes(PAGE)
# Unchanged bytes between two changes that are not worth a record of their own.
_GAP = 16

Place = Callable[[int], int | None]


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


class Changes:
    """The changes of one address space, as M records.

    Args:
        watched: the memory.
        place: the address at which the recorded side has a frame; None where it has not.
    """

    def __init__(self, watched: Watched, place: Place) -> None:
        self._watched = watched
        self._memory = watched.memory
        self._place = place
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
        pending, known = self._pending, self._known
        while pending:
            frame = pending.pop()
            address = self._place(frame << PAGE_SHIFT)
            now = self._memory.read(frame << PAGE_SHIFT, PAGE)
            if address is None or now is None:
                continue
            before = known.get(address, _ZERO)
            if now != before:
                known[address] = now
                yield address, before, now


def guest_place(stage2: Stage2) -> Place:
    """The IPA of a frame in a domain, by its stage 2 as it is when asked."""
    state: tuple[object, list[tuple[int, int, int]], list[int]] = (None, [], [])

    def place(pa: int) -> int | None:
        nonlocal state
        mappings = stage2.mappings()
        if mappings is not state[0]:
            by_pa = sorted((base, size, ipa) for ipa, base, size in mappings)
            state = mappings, by_pa, [base for base, _, _ in by_pa]
        at = bisect_right(state[2], pa) - 1
        if at < 0:
            return None
        base, size, ipa = state[1][at]
        return ipa + pa - base if pa - base < size else None

    return place


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
