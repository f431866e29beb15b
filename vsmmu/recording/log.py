# SPDX-License-Identifier: BSD-2-Clause
"""The recording of one SMMU as the software that drives it sees it, while it is being made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vsmmu.arch.events import Event
from vsmmu.arch.registers import BY_NAME, Idr0, Idr5
from vsmmu.memory import PAGE
from vsmmu.recording.changes import Changes
from vsmmu.recording.event_queue import Words, new_records
from vsmmu.recording.format import Access as Kind
from vsmmu.recording.format import (
    Dma,
    EventRecord,
    Flag,
    Irq,
    Note,
    Progress,
    Read,
    Record,
    Reset,
    Status,
    Write,
)
from vsmmu.recording.physical import Physical
from vsmmu.recording.writer import Writer
from vsmmu.smmu.regfile import RegisterFile
from vsmmu.smmu.transaction import READ, WRITE, Access

# A replay looks no further for them once it has seen what every driver reads: IIDR is last.
_IDS = ("IDR0", "IDR1", "IDR2", "IDR3", "IDR4", "IDR5", "AIDR", "IIDR")
_PROGRESS = [(BY_NAME[name].offset, 4) for name in ("CMDQ_CONS", "GERROR", "EVENTQ_PROD")]
_LINES = ("eventq", "priq", "cmdq-sync", "gerror")
_CMDQ_PROD = BY_NAME["CMDQ_PROD"].offset
_SIZES = (1, 2, 4, 8)
_REGISTERS_END = 0x2_0000
_PAGE_MASK, _ALL = PAGE - 1, (1 << 64) - 1

# By line, a number that grows by one with each interrupt.
Pulses = Mapping[str, int]


class UnrecordableError(Exception):
    """An SMMU that the format has no records for; one line."""

    exit_code = 4


class Before(NamedTuple):
    """What was so before an access: EVENTQ_PROD and GERROR, and the interrupts."""

    eventq_prod: int
    gerror: int
    pulses: Pulses


class Ending(NamedTuple):
    """How an access ended, in the recorded side's addresses.

    Attributes:
        status: `Status`.
        pa: output address, with those that have one.
        perms: rights of the mapping.
        judged: whether a replay can be held to it.
    """

    status: int
    pa: int = 0
    perms: int = 0
    judged: bool = True


class Log:
    """Writes the records of one SMMU (`tap.Tap`).

    Args:
        header: members of the header line, with a name.
        regs: the SMMU's registers, as after reset.
        memory: where its event queue is.
        oas: its address bits.
        changes: of the memory.
        settle: runs the machine until it is at rest.
        pulses: the interrupts so far.
        settled_after: CMDQ_PROD writes after which what changed in memory before has been
            invalidated: one for a driver that does one thing at a time.

    Attributes:
        name: of the recording.
        ended: why nothing is recorded any more; empty while it is.

    Raises:
        UnrecordableError: it is in use already, or has what no record can say.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        regs: RegisterFile,
        memory: Words,
        oas: int,
        changes: Changes,
        settle: Callable[[], object],
        pulses: Callable[[], Pulses],
        settled_after: int = 1,
    ) -> None:
        self.name = str(header["name"])
        self.ended = ""
        self._regs, self._memory, self._oas = regs, memory, oas
        self._changes, self._settle, self._pulses = changes, settle, pulses
        self._check()
        self._writer = Writer(header)
        # An SMMU without caches that does the same; None once it cannot follow.
        ids = {register: regs.values.get(register, 0) for register in _IDS}
        self._fresh: Physical | None = Physical()
        self._fresh.start(ids, (header["ram_base"], header["ram_size"]))
        # Writes of CMDQ_PROD that may pass until what changed before them is settled.
        self._unsettled, self._settled_after = 0, settled_after
        self._state: Progress | None = None
        self._add(Reset())
        for register in _IDS:
            offset = BY_NAME[register].offset
            self._add(Read(offset, 4, regs.read(offset, 4)))

    def _check(self) -> None:
        if self._regs["CR0"]:
            raise UnrecordableError(f"{self.name}: in use; a recording starts before its driver")
        if Idr0(self._regs["IDR0"]).ats or Idr5(self._regs["IDR5"]).stall_max:
            raise UnrecordableError(f"{self.name}: has ATS or stalls, which no record can say")

    @property
    def records(self) -> int:
        """Records so far."""
        return self._writer.records

    # The registers.

    def read(self, offset: int, size: int, value: int) -> None:
        """The driver read a register."""
        if _on_pages(offset, size):
            self._add(Read(offset, size, value))

    def written(self, offset: int, size: int, value: int) -> None:
        """The driver wrote one: what comes of it, comes now."""
        if not _on_pages(offset, size):
            self._settle()
            return
        self._flush()
        self._add(Write(offset, size, value & (1 << 8 * size) - 1))
        self._follow(offset, size, value)
        pulses = self._pulses()
        self._rest()
        state = Progress(*(self._regs.read(*place) for place in _PROGRESS))
        if state != self._state:
            self._state = state
            self._add(state)
        self._interrupts(pulses)

    # Devices.

    def before(self) -> Before:
        """A device is about to access memory."""
        self._flush()
        return Before(self._regs["EVENTQ_PROD"], self._regs["GERROR"], self._pulses())

    def after(self, access: Access, sid: int, before: Before, judge: Callable[[], Ending]) -> None:
        """It did.

        Args:
            sid: its StreamID on the recorded side.
            judge: how it ended, asked once the machine is at rest.
        """
        self._rest()
        events = list(new_records(self._regs, self._memory, self._oas, before.eventq_prod))
        if access.ssid is not None or access.instr or access.priv:
            if events:
                self.end("an access with a SubstreamID, or of instructions or privilege, faulted")
            return
        end = judge()
        judged = end.judged and not self._is_stale(access, sid, end)
        event = Event(events[0]).type if events else 0
        perms = end.perms & (READ | WRITE) if end.status == Status.OK else 0
        known = {Status.OK: _PAGE_MASK, Status.BYPASS: _ALL, Status.DISABLED: _ALL}
        self._add(
            Dma(
                sid, Kind.WRITE if access.write else Kind.READ, end.status,
                perms, event, 0 if judged else Flag.STALE,
                access.iova & _ALL, end.pa, known.get(end.status, 0),
            )
        )  # fmt: skip
        for words in events:
            self._add(EventRecord(words))
        self._interrupts(before.pulses)
        lost = self._regs["EVENTQ_PROD"] != before.eventq_prod and not events
        if not judged and (lost or self._regs["GERROR"] != before.gerror):
            self.end("an access that cannot be judged lost its event")

    # All else.

    def note(self, text: str) -> None:
        """A phase begins."""
        self._add(Note(text))

    def end(self, reason: str) -> None:
        """Record nothing any more."""
        if not self.ended:
            self._add(Note(f"the recording ends here: {reason}"))
            self.ended = reason

    def finish(self) -> bytes:
        """The whole file, packed."""
        return self._writer.finish()

    def _follow(self, offset: int, size: int, value: int) -> None:
        if offset == _CMDQ_PROD and self._unsettled:
            self._unsettled -= 1
        try:
            if self._fresh is not None:
                self._fresh.write(self.records, offset, size, value)
        except ValueError:
            # More work than a recording of this length may ask for: a replay refuses it as well.
            self._fresh = None

    def _is_stale(self, access: Access, sid: int, end: Ending) -> bool:
        """Whether a cached entry answered while what it holds was being changed."""
        if self._fresh is None or not self._unsettled:
            return False
        kind = Kind.WRITE if access.write else Kind.READ
        dma = Dma(sid, kind, end.status, 0, 0, 0, access.iova & _ALL, end.pa, 0)
        found = self._fresh.access(self.records, dma)
        return found.status != end.status or end.pa not in (0, found.pa)

    def _rest(self) -> None:
        self._settle()
        self._changes.ignore()

    def _flush(self) -> None:
        for record in self._changes.records():
            self._add(record)
            self._unsettled = self._settled_after
            if self._fresh is not None:
                self._fresh.store(self.records, record)

    def _interrupts(self, before: Pulses) -> None:
        now = self._pulses()
        for number, line in enumerate(_LINES):
            for _ in range(now.get(line, 0) - before.get(line, 0)):
                self._add(Irq(number))

    def _add(self, record: Record) -> None:
        if not self.ended:
            self._writer.add(record)


def _on_pages(offset: int, size: int) -> bool:
    """Whether an access has a record: one of the two register pages, a width that exists."""
    return size in _SIZES and 0 <= offset <= _REGISTERS_END - size
