# SPDX-License-Identifier: BSD-2-Clause
"""What the physical model did where it parts from a recording, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vsmmu.arch.commands import Command
from vsmmu.arch.events import EVENTS
from vsmmu.arch.registers import BY_NAME, Cr0, Idr1, QueueBase
from vsmmu.queue import Ring
from vsmmu.recording.divergence import Difference, Kind, Source, ending, rights
from vsmmu.recording.explain import (
    Sides,
    command_line,
    look_lines,
    register_lines,
    sources,
    writer,
)
from vsmmu.recording.format import Access as Acc
from vsmmu.recording.format import Dma, Read, Status
from vsmmu.recording.looks import look
from vsmmu.smmu.config import context_index
from vsmmu.smmu.tlb import Entry, Key
from vsmmu.smmu.transaction import VA_MASK, Access, Fault, Outcome

if TYPE_CHECKING:
    from vsmmu.recording.physical import Physical

_SMMUEN = Cr0.mask("smmuen")[0]
# Commands that are shown around the one where the queue stands.
_COMMANDS = 4
# Registers on which an access depends, and on which the command queue does.
_TABLE = ("CR0", "STRTAB_BASE", "STRTAB_BASE_CFG")
_QUEUE = ("CR0", "CMDQ_BASE", "CMDQ_PROD")


def account(physical: Physical, difference: Difference, record: object) -> Sides:
    """Both sides of a difference at a Read, a Write or a Dma."""
    if isinstance(record, Dma):
        return _access(physical, difference, record)
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
    regs = physical.smmu.regs
    base = QueueBase(regs["CMDQ_BASE"])
    address = base.addr & (1 << physical.features.oas) - 1
    max_log2 = Idr1.cmdqs.of((regs["IDR1"],))
    ring = Ring.of(address, base.log2size, max_log2, Command.size)
    prod, cons = ring.clip(regs["CMDQ_PROD"]), ring.clip(regs["CMDQ_CONS"])
    lines = [f"CMDQ_PROD {prod:#x} (record {physical.wrote('CMDQ_PROD')})"]
    at = cons
    if difference.what == "CMDQ_CONS":
        recorded = ring.clip(int(difference.recorded, 16))
        # The model went past the place where the recorded SMMU stopped.
        if ring.used(cons, recorded) <= ring.size:
            at = recorded
    found = list(_register_sources(physical, _QUEUE))
    for pointer in range(at, at + _COMMANDS):
        place = ring.address(ring.clip(pointer))
        words = physical.memory.read_words(place, Command.dwords)
        what = f"command {ring.clip(pointer):#x} at {place:#x}"
        pending = "" if ring.used(prod, pointer) <= ring.size and pointer != prod else ", not sent"
        if words is None:
            lines.append(f"{what}: external abort")
            continue
        written = physical.memory.writer(place, Command.size)
        lines.append(f"{what}: {command_line(words)} ({writer(written)}{pending})")
        found += [Source(one, what) for one in physical.memory.writers(place, Command.size)]
    return lines, tuple(found)


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
    cached, kept_from = _cached(physical, access)
    fresh, looks = look(smmu, access)
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


def _cached(physical: Physical, access: Access) -> tuple[list[str], list[Source]]:
    """The cached structures that answered, and the records in which they were taken in."""
    lines: list[str] = []
    smmu, found = physical.smmu, []
    filled = physical.looked_up.get(access.sid)
    if filled:
        lines.append(f"the configuration of this stream was cached at record {filled}, or before")
        found.append(Source(filled, "access that cached the configuration"))
    stream = smmu.config.stream(access.sid)
    if isinstance(stream, Fault) or not smmu.regs["CR0ACK"] & _SMMUEN:
        return lines, found
    index = context_index(stream, access.ssid)
    entry: Entry | None = None
    if isinstance(index, int):
        context = smmu.config.context(access.sid, stream, index)
        if not isinstance(context, Fault):
            va = access.iova & VA_MASK
            entry = smmu.tlb.find_stage1(stream.vmid, context.asid, context.aset, va)
    elif index is None and stream.stage2 is not None:
        entry = smmu.tlb.find_stage2(stream.vmid, access.iova)
    if entry is not None:
        for key in list(_keys(physical, entry)):
            record = physical.filled.get(key[:4], 0)
            lines.append(f"TLB entry: {_entry(key)}, filled at record {record}")
            lines.append("no command since has invalidated it")
            found.append(Source(record, "access that filled the TLB entry"))
    return lines, found


def _keys(physical: Physical, entry: Entry) -> Iterator[Key]:
    for one in physical.smmu.tlb:
        if one.entry is entry:
            space = one.asid if one.stage == 1 and one.asid is not None else None
            if one.stage == 1 and one.aset is not None:
                space = -1 - one.aset
            yield one.vmid, space, (one.size, one.block), one.address >> one.size, entry


def _entry(key: Key) -> str:
    vmid, space, (size, _), page, entry = key
    kind = "stage 2" if space is None else f"ASID {space}" if space >= 0 else "global"
    return (
        f"VMID {vmid:#x} {kind} {page << size:#x}+{1 << size:#x} -> {entry.pa:#x} "
        f"rights {rights(entry.granted & 3)}"
    )
