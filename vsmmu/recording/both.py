# SPDX-License-Identifier: BSD-2-Clause
"""A recording on two SMMUs at once: one without caches, one that keeps whatever it may.

The first shows what the structures in memory say. The second shows a missing invalidation: the
driver's commands alone make it forget. Real hardware may behave as either, so a driver that does
all it has to gets the same from both.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from vsmmu.arch.registers import BY_NAME
from vsmmu.recording.account import moved_sides
from vsmmu.recording.divergence import (
    Difference,
    NoticedError,
    Result,
    Sides,
    access_difference,
)
from vsmmu.recording.format import Dma, Mem, Progress, Read
from vsmmu.recording.physical import Physical
from vsmmu.recording.uncached import Uncached
from vsmmu.recording.unflushed import Moved, Unflushed

_CMDQ_PROD = BY_NAME["CMDQ_PROD"].offset


class Both:
    """Two `Physical` that share memory (`player.Target`); what differs is told of that one."""

    def __init__(self) -> None:
        self._plain = Uncached()
        self._keeping = Physical("hostile")
        self._culprit: Physical = self._plain

    def start(self, ids: dict[str, int], ram: tuple[int, int]) -> tuple[str, ...]:
        """Make both. Returns and raises ValueError as `Physical.start`."""
        notes = self._plain.start(ids, ram)
        self._keeping.start(ids, ram, self._plain.memory)
        self._follow()
        return notes

    def _follow(self) -> None:
        tlb = self._keeping.smmu.tlb
        self._unflushed = Unflushed(self._plain.smmu, self._plain.memory, tlb)

    def _notice(self) -> None:
        """Raises NoticedError where a mapping moved without an invalidation."""
        self._complain(self._unflushed.moved())

    def _complain(self, moved: Moved | None) -> None:
        if moved is not None:
            raise NoticedError(moved.record, *moved_sides(self._keeping, moved))

    def end(self) -> None:
        """The recording ends. Raises NoticedError as `write` and `access` do."""
        self._notice()
        self._complain(self._unflushed.unreached())

    def reset(self) -> None:
        """Both are reset."""
        self._plain.reset()
        self._keeping.reset()
        self._follow()

    def store(self, number: int, record: Mem) -> None:
        """Memory changed."""
        self._unflushed.store(number, record)
        self._plain.store(number, record)

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        """A register write. Commands are for the second alone: the first has no caches."""
        if self._unflushed.waiting:
            self._notice()
        if offset == _CMDQ_PROD:
            self._unflushed.batches += 1
        else:
            self._plain.write(number, offset, size, value)
        self._keeping.write(number, offset, size, value)

    def read(self, offset: int, size: int) -> int:
        """What the driver reads: from the one that carries out commands."""
        self._culprit = self._keeping
        return self._keeping.read(offset, size)

    def expected(self, read: Read) -> int:
        """What was recorded."""
        return read.value

    def progress(self) -> Progress:
        """Of the one that carries out commands."""
        self._culprit = self._keeping
        return self._keeping.progress()

    def access(self, number: int, dma: Dma) -> Result:
        """What the first makes of it; if that is as recorded, what the second makes of it."""
        if self._unflushed.waiting:
            self._notice()
        result = self._plain.access(number, dma)
        if not self._unflushed.follows(dma.sid, dma.iova):
            self._plain.noting(self._unflushed.learn, dma)
        other = self._keeping.access(number, dma)
        self._culprit = self._plain
        if result != other and access_difference(dma, result) is None:
            self._culprit = self._keeping
            return other
        return result

    def adopt(self, event: tuple[int, ...]) -> None:
        """Write a record to both queues."""
        self._plain.adopt(event)
        self._keeping.adopt(event)

    def irqs(self) -> Counter[str]:
        """Pulses of the second, which carries out commands."""
        return self._keeping.irqs()

    def explain(self, difference: Difference, record: Any) -> Sides:
        """Both sides, by the one that differs."""
        return self._culprit.explain(difference, record)
