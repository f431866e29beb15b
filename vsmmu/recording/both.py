# SPDX-License-Identifier: BSD-2-Clause
"""A recording on two SMMUs at once: one without caches, one that keeps whatever it may.

The first shows what the structures in memory say. The second shows a missing invalidation: the
driver's commands alone make it forget. Real hardware may behave as either, so a driver that does
all it has to gets the same from both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from vsmmu.arch.registers import BY_NAME, Cr0
from vsmmu.recording.account import batch_sides, moved_sides, sent_sides, word_sides
from vsmmu.recording.batches import Batches
from vsmmu.recording.divergence import (
    Difference,
    Kind,
    NoticedError,
    Result,
    Sides,
    access_difference,
)
from vsmmu.recording.format import Dma, Mem, Progress, Read
from vsmmu.recording.physical import Physical
from vsmmu.recording.streams import Streams
from vsmmu.recording.uncached import Uncached
from vsmmu.recording.unflushed import Moved, Unflushed
from vsmmu.recording.unlike import Unlike

_CMDQ_PROD, _CR0, _STRTAB_BASE = (
    BY_NAME[name].offset for name in ("CMDQ_PROD", "CR0", "STRTAB_BASE")
)
_SMMUEN = Cr0.mask("smmuen")[0]


class Both:
    """Two `Physical` that share memory (`player.Target`); what differs is told of that one."""

    def __init__(self) -> None:
        self._plain = Uncached()
        self._keeping = Physical("hostile")
        self._culprit: Physical = self._plain
        # Told when the recording ends: SMMUEN was set over caches that nothing invalidated.
        self._enabled_stale: NoticedError | None = None

    def start(self, ids: dict[str, int], ram: tuple[int, int]) -> tuple[str, ...]:
        """Make both. Returns and raises ValueError as `Physical.start`."""
        notes = self._plain.start(ids, ram)
        self._keeping.start(ids, ram, self._plain.memory)
        self._unlike = Unlike(ram, self._plain.memory)
        self._batches = Batches(self._plain.memory)
        # What was odd about writes of CMDQ_PROD, as it was then.
        self._shown: dict[str, Sides] = {}
        self._ring = -1, self._keeping.command_ring()
        self._follow()
        return notes

    def _follow(self) -> None:
        tlb = self._keeping.smmu.tlb
        smmu, memory = self._plain.smmu, self._plain.memory
        self._unflushed = Unflushed(smmu, memory, tlb, self._unlike)
        self._streams = Streams(smmu, memory, self._unlike)

    def _notice(self) -> None:
        """Raises NoticedError where a mapping moved without an invalidation."""
        self._complain(self._unflushed.moved())

    def _complain(self, moved: Moved | None) -> None:
        if moved is not None:
            difference, sides = moved_sides(self._keeping, moved)
            raise NoticedError(moved.record, difference, self._and_odd(sides))

    def end(self) -> None:
        """The recording ends. Raises NoticedError as `write` and `access` do."""
        self._notice()
        self._complain(self._unflushed.unreached())
        if self._enabled_stale is not None:
            raise self._enabled_stale
        self._streams.all()
        for one in self._odd():
            raise one

    def _odd(self) -> Iterator[NoticedError]:
        """What is unlike all others so far."""
        batch = self._batches.odd()
        if batch is not None:
            what, difference = batch
            yield NoticedError(self._batches.firsts[what], difference, self._shown[what])
        word = self._unlike.odd()
        if word is not None:
            yield NoticedError(word.record, word.difference, word_sides(word))

    def _and_odd(self, sides: Sides) -> Sides:
        """What is unlike all others may be the cause of something else."""
        recorded, lines, found = sides
        for one in self._odd():
            kind, what, value, told = one.difference
            lines = (*lines, f"{kind} (record {one.record}): {what}: {value}: {told}")
            found = (*found, *one.sides.provenance)
        return Sides(recorded, lines, found)

    def reset(self) -> None:
        """Both are reset."""
        self._plain.reset()
        self._keeping.reset()
        self._batches.reset()
        self._follow()

    def store(self, number: int, record: Mem) -> None:
        """Memory changed."""
        self._unflushed.store(number, record)
        self._plain.store(number, record)

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        """A register write. Commands are for the second alone: the first has no caches."""
        if self._unflushed.waiting:
            self._notice()
        if offset == _STRTAB_BASE:
            # Another stream table: the one before is looked at now.
            self._streams.all()
        if offset == _CMDQ_PROD:
            self._send(number, value)
        else:
            self._plain.write(number, offset, size, value)
        enabled = self._keeping.smmu.regs["CR0ACK"] & _SMMUEN if offset == _CR0 else 1
        self._keeping.write(number, offset, size, value)
        if not enabled and self._keeping.smmu.regs["CR0ACK"] & _SMMUEN:
            self._enabled(number)

    def _send(self, number: int, value: int) -> None:
        """CMDQ_PROD is about to be written."""
        regs = self._keeping.smmu.regs.values
        if regs["CMDQ_BASE"] != self._ring[0]:
            self._ring = regs["CMDQ_BASE"], self._keeping.command_ring()
        ring, before = self._ring[1], regs["CMDQ_PROD"]
        for what in self._batches.sent(number, ring, before, value, self._unflushed.removed):
            self._shown[what] = batch_sides(self._keeping, number, before, value)
        self._unflushed.batches += 1
        for sid, ssid in self._batches.streams:
            self._streams.one(sid, ssid)
            if self._streams.translates:
                self._plain.noting(self._unflushed.installed, sid)

    def _enabled(self, number: int) -> None:
        """SMMUEN is set; a reset leaves in the caches what they held."""
        stale = self._batches.stale
        if stale and self._enabled_stale is None:
            told = f"what was cached before the reset: no {' and no '.join(stale.values())}"
            difference = Difference(Kind.FLUSH, "SMMUEN", "1", told)
            sides = sent_sides(self._keeping, number)
            self._enabled_stale = NoticedError(number, difference, sides)

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
        return self._and_odd(self._culprit.explain(difference, record))
