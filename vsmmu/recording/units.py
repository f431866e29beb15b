# SPDX-License-Identifier: BSD-2-Clause
"""A recording as units that can be left out, and a recording again of those that stay.

A unit is a write with the progress behind it, an access with its events, a read, a piece of
memory, a command. Queues are renumbered: where commands or events are left out, those behind them
move up, and CMDQ_PROD, CMDQ_CONS, EVENTQ_PROD and EVENTQ_CONS follow in every record, so that what
is left is a recording of the same driver doing less.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vsmmu.arch.commands import Command
from vsmmu.arch.events import Event
from vsmmu.arch.registers import BY_NAME, PAGE0_ALIASES, Cr0, QueueBase
from vsmmu.recording.format import (
    Dma,
    EventRecord,
    Irq,
    Mem,
    Note,
    Progress,
    Read,
    Record,
    Write,
)
from vsmmu.recording.memory import RecordedMemory

_CMDQEN, _EVENTQEN = Cr0.mask("cmdqen")[0], Cr0.mask("eventqen")[0]
# Queues are not larger than 2^19 entries (§6.3.2).
_LOG2_MAX = 19
_NAMES = {
    BY_NAME[name].offset: name
    for name in ("CR0", "CMDQ_BASE", "CMDQ_PROD", "CMDQ_CONS", "EVENTQ_BASE", "EVENTQ_PROD",
                 "EVENTQ_CONS")
}  # fmt: skip


class IrregularError(Exception):
    """Queues that cannot be followed; the recording can be cut, not renumbered."""


class Index(NamedTuple):
    """A value that names an entry of a queue.

    Attributes:
        queue: "CMDQ" or "EVENTQ", and how often it was started anew.
        entry: entries before it since then.
        value: the index register's value.
        mask: bits of it that are index and wrap.
    """

    queue: tuple[str, int]
    entry: int
    value: int
    mask: int

    def moved(self, dropped: int) -> int:
        """The value with so many entries less before it."""
        return self.value & ~self.mask | (self.value - dropped) & self.mask


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One thing that can be left out.

    Attributes:
        numbers: records of the recording that it was made of; the first is where it stands.
        record: a record; of a command, the memory of its entry.
        state: of a write, the progress behind it: CMDQ_CONS, GERROR, EVENTQ_PROD.
        tail: events and interrupts behind it; the first event's entry is in `index`.
        command: it is a command, at `index` of the queue at this address.
        index: what the value of a read or written queue index names.
    """

    numbers: tuple[int, ...]
    record: Record
    state: tuple[Index, int, Index] | None = None
    tail: tuple[Record, ...] = ()
    command: int | None = None
    index: Index | None = None


@dataclass(slots=True)
class _Queue:
    """A queue as the recording has it at some place."""

    name: str
    base: int = 0
    log2size: int = 0
    starts: int = 0
    start: int = 0
    produced: int = 0

    @property
    def mask(self) -> int:
        return (2 << self.log2size) - 1

    @property
    def pointer(self) -> int:
        return self.start + self.produced & self.mask

    def settle(self, value: int, entry_size: int) -> None:
        """A new base register."""
        base = QueueBase(value)
        self.log2size = min(base.log2size, _LOG2_MAX)
        self.base = base.addr & -max(32, entry_size << self.log2size)

    def restart(self, value: int) -> None:
        self.starts += 1
        self.start, self.produced = value & self.mask, 0

    def index(self, value: int) -> Index:
        """What a value names that is not ahead of the producer."""
        behind = self.pointer - value & self.mask
        return Index((self.name, self.starts), self.produced - behind, value, self.mask)


class Dismantled:
    """Takes a recording apart.

    Args:
        records: with their numbers.
        ram: of the header.

    Attributes:
        units: in order.

    Raises:
        IrregularError: its queues cannot be followed.
        ValueError: memory outside RAM.
    """

    def __init__(self, records: Iterable[tuple[int, Record]], ram: tuple[int, int]) -> None:
        self.units: list[Unit] = []
        self._memory = RecordedMemory(ram)
        self._commands, self._events = _Queue("CMDQ"), _Queue("EVENTQ")
        # What CMDQ_CONS names while the command queue is being set up.
        self._frozen: Index | None = None
        self._cr0 = 0
        self._state: Progress | None = None
        self._last = Unit((0,), Note(""))
        for number, record in records:
            self._take(number, record)

    def _take(self, number: int, record: Record) -> None:
        match record:
            case Mem():
                self._mem(number, record)
            case Write():
                self._write(number, record)
            case Progress():
                self._state = record
                self._amend(number, state=self._progress())
            case Read():
                self._add(Unit((number,), record, index=self._named(record)))
            case Dma():
                first = self._events.index(self._events.pointer)
                self._add(Unit((number,), record, index=first))
            case EventRecord() | Irq():
                self._events.produced += type(record) is EventRecord
                self._amend(number, tail=(*self._last.tail, record))
            case _:
                self.units.append(Unit((number,), record))

    def _add(self, unit: Unit) -> None:
        """A unit that following records may belong to."""
        self._last = unit
        self.units.append(unit)

    def _amend(self, number: int, **more: object) -> None:
        """A record that belongs to the last write or access; a note may stand between."""
        unit = replace(self._last, numbers=(*self._last.numbers, number), **more)  # type: ignore[arg-type]
        for at in range(len(self.units) - 1, -1, -1):
            if self.units[at] is self._last:
                self.units[at] = unit
                break
        else:
            raise IrregularError("a record that belongs to nothing before it")
        self._last = unit

    # Memory: what lies in the command queue is commands.

    def _mem(self, number: int, record: Mem) -> None:
        self._memory.store(number, record)
        queue = self._commands
        start, end = record.pa, record.pa + len(record.data)
        low = max(start, queue.base)
        high = min(end, queue.base + (Command.size << queue.log2size))
        if not queue.starts or low >= high:
            self.units.append(Unit((number,), record))
            return
        for a, b in ((start, low), (high, end)):
            if a < b:
                self.units.append(Unit((number,), Mem(a, record.data[a - start : b - start])))
        consumed = self._progress()[0].entry if self._state is not None else queue.produced
        for entry in range(max(consumed, 0), queue.produced):
            # The driver changes a command that it has sent: one that the queue stands on.
            at = self._slot(entry)
            if at < high and low < at + Command.size:
                self._command(entry)

    def _slot(self, entry: int) -> int:
        queue = self._commands
        return queue.base + (queue.start + entry & queue.mask >> 1) * Command.size

    def _command(self, entry: int) -> None:
        queue, at = self._commands, self._slot(entry)
        data = self._memory.read(at, Command.size)
        if data is None:
            raise IrregularError("a command queue outside RAM")
        value = queue.start + entry & queue.mask
        index = Index((queue.name, queue.starts), entry, value, queue.mask)
        numbers = tuple(self._memory.writers(at, Command.size)) or (0,)
        self.units.append(Unit(numbers, Mem(at, data), command=queue.base, index=index))

    # Registers.

    def _write(self, number: int, record: Write) -> None:
        name = _register(record)
        value, index = record.value, None
        if name == "CR0":
            pending = (
                self._state is not None and self._progress()[0].entry != self._commands.produced
            )
            if value & ~self._cr0 & _CMDQEN and self._commands.starts and pending:
                raise IrregularError("a command queue that is enabled with commands in it")
            self._cr0 = value
        elif name == "CMDQ_BASE":
            self._commands.settle(value, Command.size)
        elif name == "EVENTQ_BASE":
            self._events.settle(value, Event.size)
        elif name == "CMDQ_PROD":
            index = self._produce(value)
        elif name == "EVENTQ_PROD" and not self._cr0 & _EVENTQEN:
            self._events.restart(value)
            index = self._events.index(value)
        elif name == "CMDQ_CONS" and not self._cr0 & _CMDQEN:
            self._frozen = None
            index = self._commands.index(value)
            if index.entry != self._commands.produced:
                raise IrregularError("a command queue that starts with commands in it")
        elif name == "EVENTQ_CONS":
            index = self._events.index(value)
        state = None if self._state is None else self._progress()
        self._add(Unit((number,), record, state=state, index=index))

    def _produce(self, value: int) -> Index:
        queue = self._commands
        if not self._cr0 & _CMDQEN:
            if self._state is not None and self._frozen is None:
                self._frozen = self._progress()[0]
            queue.restart(value)
            return queue.index(value)
        more = value - queue.pointer & queue.mask
        if more > 1 << queue.log2size or value & ~queue.mask:
            raise IrregularError("CMDQ_PROD beyond its queue")
        for entry in range(queue.produced, queue.produced + more):
            self._command(entry)
        queue.produced += more
        return queue.index(value)

    def _named(self, record: Read) -> Index | None:
        name = _register(record)
        if name == "CMDQ_CONS":
            return self._consumer(record.value)
        if name == "CMDQ_PROD":
            return self._commands.index(record.value)
        if name in ("EVENTQ_PROD", "EVENTQ_CONS"):
            return self._events.index(record.value)
        return None

    def _consumer(self, value: int) -> Index:
        frozen = self._frozen
        return self._commands.index(value) if frozen is None else frozen._replace(value=value)

    def _progress(self) -> tuple[Index, int, Index]:
        assert self._state is not None, "asked for behind the first Progress"
        cons, gerror, prod = self._state
        return self._consumer(cons), gerror, self._events.index(prod)


def _register(record: Read | Write) -> str:
    """The register of those that are followed. Raises IrregularError for two in one access."""
    offset = PAGE0_ALIASES.get(record.offset, record.offset)
    name = _NAMES.get(offset, "")
    if record.size == 8:
        base = name in ("CMDQ_BASE", "EVENTQ_BASE")
        if not base and (name or PAGE0_ALIASES.get(offset + 4, offset + 4) in _NAMES):
            raise IrregularError("two registers of a queue in one access")
    return name if record.size in (4, 8) else ""


def rough_units(records: Iterable[tuple[int, Record]]) -> list[Unit]:
    """Units of a recording whose queues cannot be followed: nothing in them is renumbered."""
    units: list[Unit] = []
    for number, record in records:
        if units and type(record) in (Progress, EventRecord, Irq):
            last = units[-1]
            tail = (*last.tail, record)
            units[-1] = replace(last, numbers=(*last.numbers, number), tail=tail)
        else:
            units.append(Unit((number,), record))
    return units


class Cut:
    """Leaves units out of a recording.

    Args:
        units: all of them.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = tuple(units)

    def records(self, kept: Iterable[Unit]) -> Iterator[tuple[Unit, Record]]:
        """The records of some units, in the order in which they are given, each with its unit."""
        kept = list(kept)
        dropped = self._dropped(kept)
        last: Progress | None = None
        for unit in kept:
            yield unit, _record(unit, dropped)
            if unit.state is not None:
                cons, gerror, prod = unit.state
                state = Progress(_moved(cons, dropped), gerror, _moved(prod, dropped))
                if state != last:
                    last = state
                    yield unit, state
            for record in unit.tail:
                yield unit, record

    def _dropped(self, kept: Sequence[Unit]) -> dict[tuple[str, int], list[int]]:
        """By queue, the entries that nothing produces any more, in order."""
        there = {id(unit) for unit in kept}
        out: dict[tuple[str, int], list[int]] = {}
        alive = {u.index[:2] for u in kept if u.command is not None and u.index is not None}
        for unit in self._units:
            index = unit.index
            if index is None or id(unit) in there:
                continue
            entries = out.setdefault(index.queue, [])
            if unit.command is not None and index[:2] not in alive:
                at = bisect_left(entries, index.entry)
                if at == len(entries) or entries[at] != index.entry:
                    insort(entries, index.entry)
            events = sum(type(record) is EventRecord for record in unit.tail)
            entries.extend(range(index.entry, index.entry + events))
        return out


def _moved(index: Index | None, dropped: dict[tuple[str, int], list[int]]) -> int:
    assert index is not None, "a queue's index"
    return index.moved(bisect_left(dropped.get(index.queue, []), index.entry))


def _record(unit: Unit, dropped: dict[tuple[str, int], list[int]]) -> Record:
    record, index = unit.record, unit.index
    if index is not None and isinstance(record, Read | Write):
        return record._replace(value=_moved(index, dropped))
    if index is not None and unit.command is not None and isinstance(record, Mem):
        slot = _moved(index, dropped) & index.mask >> 1
        return Mem(unit.command + slot * Command.size, record.data)
    return record
