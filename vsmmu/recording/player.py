# SPDX-License-Identifier: BSD-2-Clause
"""Playing a recording against a model, record for record, to the first divergence.

`Player` knows the order of records and the rules; what the driver talks to is a `Target`. A write
is judged when its Progress came or cannot come any more, an access when its events did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from vsmmu.recording.divergence import (
    Difference,
    Divergence,
    Kind,
    NoticedError,
    Result,
    Source,
    access_difference,
    event_difference,
    progress_difference,
)
from vsmmu.recording.format import (
    Dma,
    EventRecord,
    Flag,
    Irq,
    Mem,
    Note,
    Progress,
    Read,
    Reader,
    RecordingError,
    Reset,
    Write,
)
from vsmmu.recording.identification import PROBED, Ahead

Words = tuple[int, ...]
# Bits of a record's number that are 0 when progress is told.
EACH = 0x3FFF
_PLACES = 1 << 17
# Names of wired interrupts, by the number that a recording has.
LINES = ("eventq", "priq", "cmdq-sync", "gerror")


class Explained(Protocol):
    """Lines for both sides and the records that wrote what the model looked at."""

    @property
    def recorded(self) -> tuple[str, ...]:
        """What the recorder saw."""
        ...  # pragma: no cover

    @property
    def model(self) -> tuple[str, ...]:
        """What the model did."""
        ...  # pragma: no cover

    @property
    def provenance(self) -> tuple[Source, ...]:
        """Records that wrote what the model looked at."""
        ...  # pragma: no cover


class Target(Protocol):
    """What a recording is played against: an SMMU with its memory, or a guest's vSMMU.

    Every call is complete when it returns: commands are consumed, records written.
    """

    def start(self, ids: dict[str, int], ram: tuple[int, int]) -> tuple[str, ...]:
        """Make the machine; a note for each feature that it has otherwise than recorded.

        Raises:
            ValueError: an identification that it cannot have.
        """
        ...  # pragma: no cover

    def reset(self) -> None:
        """The SMMU is reset; memory stays."""
        ...  # pragma: no cover

    def store(self, number: int, record: Mem) -> None:
        """Memory changed by record `number`. Raises ValueError where there is no memory."""
        ...  # pragma: no cover

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        """The driver writes a register. Raises ValueError for work beyond a bound."""
        ...  # pragma: no cover

    def read(self, offset: int, size: int) -> int:
        """The driver reads a register."""
        ...  # pragma: no cover

    def expected(self, read: Read) -> int:
        """What a read should give: the recorded value, or what the target advertises instead."""
        ...  # pragma: no cover

    def progress(self) -> Progress:
        """CMDQ_CONS, GERROR and EVENTQ_PROD as the driver would read them."""
        ...  # pragma: no cover

    def access(self, number: int, dma: Dma) -> Result:
        """A device access, and the event records that it led to."""
        ...  # pragma: no cover

    def adopt(self, event: Words) -> None:
        """Write this record to the event queue: an access that is not judged had it."""
        ...  # pragma: no cover

    def irqs(self) -> Mapping[str, int]:
        """Interrupts pulsed so far, by the names of `LINES`."""
        ...  # pragma: no cover

    def explain(self, difference: Difference, record: Any) -> Explained:
        """Both sides of a difference at this record: a Read, a Write, or a Dma."""
        ...  # pragma: no cover


@runtime_checkable
class Ending(Protocol):
    """A target that has something to say when a recording ends."""

    def end(self) -> None:
        """The recording ended. Raises NoticedError for what is wrong with it."""
        ...  # pragma: no cover


@dataclass(slots=True)
class Played:
    """What a replay came to.

    Attributes:
        records, accesses, events, writes, reads: how many were played.
        unjudged: accesses that a stale TLB entry answered.
        irqs: interrupts by line, recorded and pulsed by the model.
        ids: identification registers that were recorded, by name.
        notes: features that the target has otherwise.
        divergence: the first; None where all agrees.
    """

    records: int = 0
    accesses: int = 0
    events: int = 0
    writes: int = 0
    reads: int = 0
    unjudged: int = 0
    irqs: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    ids: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None


@dataclass(slots=True)
class _Due:
    """A record that waits for those behind it: where it was, what it was."""

    number: int = 0
    place: int = 0
    record: Any = None
    events: list[Words] = field(default_factory=list)


class _DivergenceError(Exception):
    """Ends a replay, with its divergence."""

    def __init__(self, divergence: Divergence) -> None:
        self.divergence = divergence


class Player:
    """Plays one recording.

    Args:
        reader: the recording.
        target: what it is played against.
    """

    def __init__(self, reader: Reader, target: Target) -> None:
        self._reader = reader
        self._target = target
        self._records = Ahead(reader)
        self._played = Played()
        self._phase = ""
        # Of the last Progress; a write that none follows left it so. None before the first.
        self._state: Progress | None = None
        # A write whose Progress may follow, an access whose events may, the access before.
        self._write_due = _Due()
        self._dma_due = _Due()
        self._open = False
        self._accesses = 0
        # Byte places and phases of the latest memory records and writes.
        self._places: dict[int, tuple[int, str]] = {}
        self._irqs = Counter[str]()

    def play(self, each: Callable[[int], object] | None = None) -> Played:
        """Play to the first divergence or the end.

        Args:
            each: called now and then with the number of records played.

        Raises:
            RecordingError: the file is malformed, needs memory that it does not have, or asks for
                more work than its length allows.
        """
        records, played = self._records, self._played
        played.ids = records.ids
        handlers: dict[type, Callable[[Any], None]] = {
            Mem: self._mem, Write: self._write, Read: self._read, Progress: self._progress,
            Dma: self._dma, EventRecord: self._event, Irq: self._irq, Note: self._note,
            Reset: self._reset,
        }  # fmt: skip
        try:
            played.notes = self._target.start(records.ids, self._reader.header.ram)
        except ValueError as error:
            raise self._misidentified(error) from None
        try:
            for record in records:
                handlers[type(record)](record)
                if each is not None and not records.number & EACH:
                    each(records.number)
            self._settle()
            if isinstance(self._target, Ending):
                self._target.end()
        except _DivergenceError as end:
            played.divergence = end.divergence
        except NoticedError as error:
            at, phase = self._places.get(error.record, (0, ""))
            played.divergence = Divergence(error.record, at, phase, *error.difference, *error.sides)
        except ValueError as error:
            place = f"record {records.number} (byte {records.place:#x})"
            raise RecordingError(f"{self._reader.source}: {place}: {error}") from None
        played.records, played.accesses = records.number, self._accesses
        played.irqs = dict(self._irqs), dict(self._target.irqs())
        return played

    def _misidentified(self, error: ValueError) -> RecordingError:
        never = sorted(PROBED - self._records.seen - {"IIDR"})
        told = f"; the driver never reads {', '.join(never)}" if never else ""
        return RecordingError(f"{self._reader.source}: identification: {error}{told}")

    # Records.

    def _mem(self, record: Mem) -> None:
        if self._open:
            self._settle()
        self._target.store(self._place(), record)

    def _place(self) -> int:
        """Remember where this record is; its number."""
        places, number = self._places, self._records.number
        if len(places) >= _PLACES:
            places.clear()
        places[number] = self._records.place, self._phase
        return number

    def _write(self, record: Write) -> None:
        self._settle()
        self._played.writes += 1
        number = self._place()
        due = self._write_due
        due.number, due.place, due.record = number, self._records.place, record
        self._open = True
        self._target.write(number, *record)

    def _progress(self, record: Progress) -> None:
        self._state = record
        if self._write_due.record is None:
            # The write that it tells of is not there.
            self._write_due = self._here(record)
        self._settle()

    def _read(self, record: Read) -> None:
        self._settle()
        self._played.reads += 1
        value = self._target.read(record.offset, record.size)
        if value != self._target.expected(record):
            self._differs(self._here(record), _read_difference(record, value))

    def _dma(self, record: Dma) -> None:
        if self._open:
            self._settle()
        records, due = self._records, self._dma_due
        due.number, due.place, due.record = records.number, records.place, record
        self._accesses += 1
        if record.flags & Flag.STALE:
            self._played.unjudged += 1
            return
        result = self._target.access(records.number, record)
        difference = access_difference(record, result)
        if difference is not None:
            self._differs(due, difference)
        if result.events:
            self._open = True
            due.events.extend(result.events)

    def _event(self, record: EventRecord) -> None:
        self._settle_write()
        self._played.events += 1
        due = self._dma_due
        dma = due.record
        if dma is not None and dma.flags & Flag.STALE:
            self._target.adopt(record.words)
            return
        model = due.events.pop(0) if due.events else None
        difference = event_difference(dma, record.words, model)
        if difference is not None:
            self._differs(self._here(dma if dma is not None else record), difference)

    def _irq(self, record: Irq) -> None:
        self._irqs[LINES[record.line]] += 1

    def _note(self, record: Note) -> None:
        self._phase = record.text

    def _reset(self, record: Reset) -> None:
        self._settle()
        self._state = None
        self._target.reset()

    # What is due.

    def _settle(self) -> None:
        """Judge the write and the access that waited for the records behind them."""
        self._open = False
        if self._write_due.record is not None:
            self._settle_write()
        due = self._dma_due
        if due.record is not None:
            if due.events:
                self._differs(due, event_difference(due.record, None, due.events[0]))
            due.record = None

    def _settle_write(self) -> None:
        due = self._write_due
        if due.record is None:
            return
        if self._state is not None:
            difference = progress_difference(self._state, self._target.progress())
            if difference is not None:
                self._differs(due, difference)
        due.record = None

    # Divergence.

    def _here(self, record: Any) -> _Due:
        return _Due(self._records.number, self._records.place, record)

    def _differs(self, at: _Due, difference: Difference | None) -> None:
        if difference is None:
            return
        sides = self._target.explain(difference, at.record)
        raise _DivergenceError(
            Divergence(
                at.number, at.place, self._phase, *difference,
                sides.recorded, sides.model, sides.provenance,
            )
        )  # fmt: skip


def _read_difference(read: Read, value: int) -> Difference:
    from vsmmu.smmu.regfile import register_at

    return Difference(Kind.READ, register_at(read.offset), f"{read.value:#x}", f"{value:#x}")
