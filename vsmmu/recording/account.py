# SPDX-License-Identifier: BSD-2-Clause
"""What the physical model did where it parts from a recording, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vsmmu.arch.commands import Command
from vsmmu.arch.events import EVENTS
from vsmmu.arch.pagetable import S1Leaf
from vsmmu.arch.registers import BY_NAME, Cr0
from vsmmu.recording.divergence import Difference, Kind, Sides, Source, ending, rights
from vsmmu.recording.explain import (
    KINDS,
    command_line,
    fields,
    look_lines,
    register_lines,
    sources,
    writer,
)
from vsmmu.recording.format import Access as Acc
from vsmmu.recording.format import Dma, EventRecord, Read, Status
from vsmmu.recording.looks import Look, look
from vsmmu.smmu.config import context_index
from vsmmu.smmu.tlb import Entry, Key
from vsmmu.smmu.transaction import VA_MASK, Access, Fault, Outcome

if TYPE_CHECKING:
    from vsmmu.recording.physical import Physical
    from vsmmu.recording.unflushed import Moved
    from vsmmu.recording.unlike import Odd

_SMMUEN = Cr0.mask("smmuen")[0]
# Commands that are shown around the one where the queue stands.
_COMMANDS = 4
# Commands that are shown of those behind a change.
_SENT = 16
# Registers on which an access depends, and on which the command queue does.
_TABLE = ("CR0", "STRTAB_BASE", "STRTAB_BASE_CFG")
_QUEUE = ("CR0", "CMDQ_BASE", "CMDQ_PROD")


def account(physical: Physical, difference: Difference, record: object) -> Sides:
    """Both sides of a difference at a Read, a Write or a Dma, or at an event without one."""
    if isinstance(record, Dma):
        return _access(physical, difference, record)
    if isinstance(record, EventRecord):
        return Sides((f"event: {difference.recorded}",), ("no access is before it",), ())
    if isinstance(record, Read):
        recorded = register_lines(record.offset, record.size, record.value)
        model = register_lines(record.offset, record.size, int(difference.model, 16))
    else:
        register = BY_NAME.get(difference.what)
        offset = register.offset if register is not None else 0
        recorded = register_lines(offset, 4, int(difference.recorded, 16))
        model = register_lines(offset, 4, int(difference.model, 16))
    if difference.what not in ("CMDQ_CONS", "GERROR"):
        return Sides(recorded, model, _register_sources(physical, (difference.what,)))
    lines, from_records = _queue(physical, difference)
    return Sides(recorded, (*model, *lines), from_records)


def _register_sources(physical: Physical, names: tuple[str, ...]) -> tuple[Source, ...]:
    return tuple(Source(physical.wrote(name), name) for name in names if physical.wrote(name))


# The command queue.


def _queue(physical: Physical, difference: Difference) -> tuple[list[str], tuple[Source, ...]]:
    """Where the queue stands, and the commands there: the nearer CONS of both is the culprit's."""
    regs, ring = physical.smmu.regs, physical.command_ring()
    prod, cons = ring.clip(regs["CMDQ_PROD"]), ring.clip(regs["CMDQ_CONS"])
    lines = [f"CMDQ_PROD {prod:#x} (record {physical.wrote('CMDQ_PROD')})"]
    at = cons
    if difference.what == "CMDQ_CONS":
        recorded = ring.clip(int(difference.recorded, 16))
        # The model went past the place where the recorded SMMU stopped.
        if ring.used(cons, recorded) <= ring.size:
            at = recorded
    found = list(_register_sources(physical, _QUEUE))
    more, written = _commands(physical, range(at, at + _COMMANDS), prod)
    return [*lines, *more], (*found, *written)


def _commands(
    physical: Physical, pointers: Iterable[int], prod: int
) -> tuple[list[str], list[Source]]:
    """The commands at some places of the queue, which is full up to `prod`."""
    ring, lines, found = physical.command_ring(), [], []
    for pointer in pointers:
        place = ring.address(ring.clip(pointer))
        words = physical.memory.read_words(place, Command.dwords)
        what = f"command {ring.clip(pointer):#x} at {place:#x}"
        sent = ring.used(prod, pointer) <= ring.size and ring.clip(pointer) != prod
        if words is None:
            lines.append(f"{what}: external abort")
            continue
        written = physical.memory.writer(place, Command.size)
        pending = "" if sent else ", not sent"
        lines.append(f"{what}: {command_line(words)} ({writer(written)}{pending})")
        found += [Source(one, what) for one in physical.memory.writers(place, Command.size)]
    return lines, found


# An access.


def _access(physical: Physical, difference: Difference, dma: Dma) -> Sides:
    smmu = physical.smmu
    access = Access(dma.sid, dma.iova, dma.access == Acc.WRITE)
    lines = [f"{physical.caching} caching: {difference.model}"]
    names = _TABLE if smmu.regs["CR0ACK"] & _SMMUEN else ("CR0", "GBPA")
    for name in names:
        register = BY_NAME[name]
        value = smmu.regs.read(register.offset, register.width // 8)
        shown = register_lines(register.offset, register.width // 8, value)[0]
        lines.append(f"{shown} ({writer(physical.wrote(name))})")
    fresh, looks = look(smmu, access)
    cached, kept_from = _cached(physical, access, looks)
    lines += look_lines(looks, physical.memory, physical.features)
    lines.append(f"these structures say: {_outcome(fresh)}")
    found = [*_register_sources(physical, names), *sources(looks, physical.memory)]
    return Sides(_recorded(difference, dma), (*lines, *cached), (*found, *kept_from))


def _recorded(difference: Difference, dma: Dma) -> tuple[str, ...]:
    text = f"{ending(dma.status)}"
    if dma.status in Status.WITH_PA:
        text += f", output address {dma.pa:#x}"
    if dma.status == Status.OK:
        text += f", rights {rights(dma.perm)}, shared by the low bits {dma.mask:#x}"
    if dma.status == Status.FAULT:
        event = EVENTS.get(dma.event)
        text += f", {event.name if event else f'event {dma.event:#x}'}"
    lines = (text,)
    return (*lines, f"event: {difference.recorded}") if difference.kind == Kind.EVENT else lines


def _outcome(outcome: Outcome) -> str:
    text = outcome.status if outcome.pa is None else f"{outcome.status}, {outcome.pa:#x}"
    return text if outcome.event is None else f"{text}, {outcome.event.name}"


def _cached(
    physical: Physical, access: Access, looks: list[Look]
) -> tuple[list[str], list[Source]]:
    """The cached structures that answered, and since when they are not what memory says."""
    lines: list[str] = []
    found: list[Source] = []
    since = physical.looked_up.get(access.sid, 0)
    if since:
        lines.append(f"configuration of the stream: cached at record {since}, or before")
        found.append(Source(since, "access that cached the configuration"))
        _stale(physical, since, [one for one in looks if one.what in KINDS], lines, found)
    entry = _entry_of(physical, access)
    if entry is None and physical.caching == "hostile":
        # What was prefetched may be older than the record that took it.
        written = [(physical.memory.writer(one.address, one.size), one) for one in looks]
        latest = max(
            (pair for pair in written if pair[1].what in KINDS and pair[0]),
            key=lambda pair: pair[0], default=None,
        )  # fmt: skip
        if latest is not None:
            lines.append(f"{latest[1].what} was written by record {latest[0]}")
            _sent_next(physical, latest[0], lines, found)
    for key in [] if entry is None else _keys(physical, entry):
        record = physical.filled.get(key[:4], 0)
        lines.append(f"TLB entry: {_shown(key)}, filled at record {record}")
        found.append(Source(record, "access that filled the TLB entry"))
        _stale(physical, record, [one for one in looks if one.what not in KINDS], lines, found)
    return lines, found


def _entry_of(physical: Physical, access: Access) -> Entry | None:
    """The TLB entry that answers an access, by the configuration as it is cached."""
    smmu = physical.smmu
    if not smmu.regs["CR0ACK"] & _SMMUEN:
        return None
    stream = smmu.config.stream(access.sid)
    if isinstance(stream, Fault):
        return None
    index = context_index(stream, access.ssid)
    if index is None and stream.stage2 is not None:
        return smmu.tlb.find_stage2(stream.vmid, access.iova)
    context = smmu.config.context(access.sid, stream, index) if isinstance(index, int) else None
    if context is None or isinstance(context, Fault):
        return None
    va = access.iova & VA_MASK
    return smmu.tlb.find_stage1(stream.vmid, context.asid, context.aset, va)


def _stale(
    physical: Physical, since: int, looks: list[Look], lines: list[str], found: list[Source]
) -> None:
    """Which structure changed first since a record, and the commands that were sent next."""
    changes = [(physical.memory.changed_since(since, one.address, one.size), one) for one in looks]
    changes = sorted((change for change in changes if change[0]), key=lambda change: change[0])
    if not changes:
        return
    record, one = changes[0]
    what = f"{one.what} at {one.address:#x}"
    lines.append(f"  {what} was changed by record {record}")
    found.append(Source(record, what))
    _sent_next(physical, record, lines, found)


def _sent_next(physical: Physical, record: int, lines: list[str], found: list[Source]) -> None:
    """The commands that were sent next after a record."""
    sent = next((write for write in physical.sent if write[0] > record), None)
    if sent is None:
        lines.append("  no command was sent since")
        return
    number, before, prod = sent
    ring = physical.command_ring()
    count = min(ring.used(prod, before), _SENT)
    lines.append(f"  commands sent next, by record {number}; none since has invalidated it:")
    found.append(Source(number, "CMDQ_PROD"))
    more, written = _commands(physical, range(before, before + count), ring.clip(prod))
    lines += [f"  {line}" for line in more]
    found += written


def moved_sides(physical: Physical, moved: Moved) -> tuple[Difference, Sides]:
    """A mapping that moved without an invalidation, and the commands that were sent meanwhile."""
    what = f"StreamID {moved.sid:#x} at {moved.address:#x}"
    slot = f"descriptor at {moved.slot:#x}"
    old = f"{moved.old:#x} may still be cached"
    lines = [
        f"{slot}: {moved.old:#x}: {fields(S1Leaf(moved.old))} ({writer(moved.written)})",
        f"changed by record {moved.changed}; no invalidation reached it",
    ]
    recorded, now = "removed for good", f"{slot}: removed (record {moved.record})"
    if moved.new is not None:
        recorded = f"{moved.new:#x}"
        now = f"{slot}: {moved.new:#x}: {fields(S1Leaf(moved.new))} (record {moved.record})"
        lines[1] += f" before record {moved.record} made a mapping there"
    difference = Difference(Kind.FLUSH, what, recorded, old)
    found = [Source(number, slot) for number in (moved.record, moved.changed, moved.written)]
    _sent_next(physical, moved.changed, lines, found)
    return difference, Sides((now,), tuple(lines), tuple(one for one in found if one.record))


def batch_sides(physical: Physical, number: int, before: int, prod: int) -> Sides:
    """The commands that a write of CMDQ_PROD is about to send."""
    ring = physical.command_ring()
    count = min(ring.pending(prod, before), _SENT)
    lines, found = _commands(physical, range(before, before + count), ring.clip(prod))
    wrote = f"CMDQ_PROD {ring.clip(before):#x} to {ring.clip(prod):#x} (record {number})"
    return Sides((wrote,), tuple(lines), (Source(number, "CMDQ_PROD"), *found))


def sent_sides(physical: Physical, number: int) -> Sides:
    """The commands that were sent before SMMUEN was set."""
    lines, found = [], [Source(number, "CR0")]
    for record, before, prod in list(physical.sent)[-_SENT:]:
        sides = batch_sides(physical, record, before, prod)
        lines += [*sides.recorded, *(f"  {line}" for line in sides.model)]
        found += sides.provenance
    return Sides((f"CR0 sets SMMUEN (record {number})",), tuple(lines), tuple(found))


def word_sides(odd: Odd) -> Sides:
    """A word that is unlike all others."""
    what = odd.difference.what
    wrote = f"{what}: {odd.word:#x} ({writer(odd.record)})"
    return Sides((wrote,), (odd.difference.model,), (Source(odd.record, what),))


def _keys(physical: Physical, entry: Entry) -> Iterator[Key]:
    for one in physical.smmu.tlb:
        if one.entry is entry:
            space = one.asid if one.stage == 1 and one.asid is not None else None
            if one.stage == 1 and one.aset is not None:
                space = -1 - one.aset
            yield one.vmid, space, (one.size, one.block), one.address >> one.size, entry


def _shown(key: Key) -> str:
    vmid, space, (size, _), page, entry = key
    kind = "stage 2" if space is None else f"ASID {space}" if space >= 0 else "global"
    return (
        f"VMID {vmid:#x} {kind} {page << size:#x}+{1 << size:#x} -> {entry.pa:#x} "
        f"rights {rights(entry.granted & 3)}"
    )
