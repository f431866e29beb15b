# SPDX-License-Identifier: BSD-2-Clause
"""What a change of a recording must show, found without playing the changed one.

A bit of an STE, CD or descriptor must show if a recorded access was looked up through it and the
bit is of a field that decides outcomes (`DECIDES`). What need not show: reserved and ignored bits,
attributes that no record has (memory types, shareability, execute permission, the contiguous and
not-global hints), structures that no access used, and a bit of an address below the alignment that
the structure has.

A dropped invalidation must show if a cache that keeps everything (`stale_access`) answers a later
access otherwise than was recorded. It need not where nothing was cached, where the address is not
used again, where a later command does the same, or where the new mapping is the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.vsmmu.recording.tape import HEADER, data
from vsmmu.arch.commands import (
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
    decode,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.describe import Context, describe
from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import ADDR_MASK
from vsmmu.arch.registers import BY_NAME, QueueBase
from vsmmu.arch.stream_table import Ste
from vsmmu.recording.format import Dma, Mem, Progress, Read, Reader, Record, Status, Write
from vsmmu.recording.identification import Ahead
from vsmmu.recording.looks import Look, look
from vsmmu.recording.physical import Physical
from vsmmu.smmu.smmu import Access

# By structure, the fields of which every bit decides the outcome of an access through it.
DECIDES: dict[str, tuple[str, ...]] = {
    "L1STD": ("l2ptr",),
    "STE": ("v", "s1ctxptr"),
    "CD": ("v", "aa64", "ttb0", "a"),
    "table": ("valid", "oa"),
    "leaf": ("valid", "oa"),
}
# The same, of what our own recording does not have.
SAMPLES = {"L1CD": ("v", "l2ptr")}
# Of these a bit may lie below what alignment leaves of an address; of output addresses see below.
ALIGNED = {"l2ptr": 14, "s1ctxptr": 6, "ttb0": 12}
# log2 of the granule, by STE.S2TG and CD.TG0.
_GRANULES = {0: 12, 1: 16, 2: 14}


class Used(NamedTuple):
    """A word that an access was looked up through: the M record of it, and what it is."""

    record: int
    offset: int
    what: str
    view: Layout
    word: int
    page: int


def used_words(records: list[Record], header: Mapping[str, Any] = HEADER) -> list[Used]:
    """Each word of STEs, CDs and descriptors that a recorded access used, by its M record."""
    found: dict[tuple[int, int], Used] = {}
    machine = started(records, header)
    seen: set[tuple[int, int, int]] = set()
    for number, record in enumerate(records, 1):
        if isinstance(record, Mem):
            machine.store(number, record)
            seen.clear()
        elif isinstance(record, Write):
            machine.write(number, *record)
        elif isinstance(record, Dma) and record.status in (Status.OK, Status.BYPASS):
            page = record.sid, record.iova >> 12, record.access
            if page in seen:
                continue
            seen.add(page)
            access = Access(record.sid, record.iova, record.access == 2)
            looks = look(machine.smmu, access)[1]
            for one in looks:
                if one.view is not None:
                    _note(found, machine, records, one, _page(looks))
    return list(found.values())


def _page(looks: list[Look]) -> int:
    """log2 of the granule that the looks say."""
    page = 12
    for one in looks:
        if isinstance(one.view, Ste):
            page = _GRANULES.get(one.view.s2tg, 12)
        elif isinstance(one.view, Cd):
            page = _GRANULES.get(one.view.tg0, 12)
    return page


def _note(
    found: dict[Any, Used], machine: Physical, records: list[Record], one: Any, page: int
) -> None:
    for word in range(one.size // 8):
        address = one.address + 8 * word
        number = machine.memory.writer(address)
        if not number:
            continue
        written = records[number - 1]
        assert isinstance(written, Mem)
        what = one.what
        if what.startswith("stage"):
            what = "table" if type(one.view).__name__.startswith("TableDesc") else "leaf"
        used = Used(number, address - written.pa, what, one.view, word, page)
        found.setdefault((number, used.offset), used)


def deciding_bits(used: Used) -> list[int]:
    """Bits of the word that decide."""
    bits: list[int] = []
    ignored = set()
    if used.what in ("STE", "CD"):
        shown = describe(used.what.lower(), used.view.words, Context())
        ignored = {one.name for one in shown.fields if one.ignored}
    for name in (DECIDES | SAMPLES)[used.what]:
        if name in ignored:
            continue
        field = used.view.fields[name]
        if field.word != used.word:
            continue
        low = max(field.low, ALIGNED.get(name, 0))
        if name == "oa":
            low = used.page
            if used.what == "leaf" and not used.view.fields["table"].of(used.view.words):
                # A block of the level above pages.
                low += used.page - 3
        high = field.low + field.msb - field.lsb
        if name == "oa":
            # Bits 49:48 belong to 52-bit forms.
            high = ADDR_MASK.bit_length() - 1
        bits += range(low, high + 1)
    return bits


def flipped(records: list[Record], used: Used, bit: int) -> list[Record]:
    """The recording with one bit of one word changed."""
    written = records[used.record - 1]
    assert isinstance(written, Mem)
    data = bytearray(written.data)
    data[used.offset + bit // 8] ^= 1 << bit % 8
    return [*records[: used.record - 1], Mem(written.pa, bytes(data)), *records[used.record :]]


# Commands.


class Sent(NamedTuple):
    """A command: the M record that wrote it, its place there, and what it is."""

    record: int
    offset: int
    command: Command


def commands(records: list[Record]) -> list[Sent]:
    """Commands that were written into the queue."""
    found, ring = [], range(0)
    for number, record in enumerate(records, 1):
        if isinstance(record, Write) and record.offset == BY_NAME["CMDQ_BASE"].offset:
            base = QueueBase(record.value)
            start = base.addr & -max(32, Command.size << base.log2size)
            ring = range(start, start + (Command.size << base.log2size))
        elif isinstance(record, Mem) and record.pa in ring:
            for offset in range(0, len(record.data) - Command.size + 1, Command.size):
                raw = record.data[offset : offset + Command.size]
                words = tuple(int.from_bytes(raw[i : i + 8], "little") for i in (0, 8))
                found.append(Sent(number, offset, decode(words)))
    return found


def replaced(records: list[Record], sent: Sent, command: Command | None = None) -> list[Record]:
    """The recording with another command in the place of one: CMD_SYNC unless said."""
    written = records[sent.record - 1]
    assert isinstance(written, Mem)
    data = bytearray(written.data)
    data[sent.offset : sent.offset + Command.size] = bytes(command or CmdSync.build(cs=2))
    return [*records[: sent.record - 1], Mem(written.pa, bytes(data)), *records[sent.record :]]


def deleted(records: list[Record], sent: Sent) -> list[Record]:
    """The recording without the M record of one command."""
    return [*records[: sent.record - 1], *records[sent.record :]]


def resent(records: list[Record], sent: Sent) -> list[Record]:
    """The recording as if a command was never sent: the queue is numbered anew behind it."""
    ring, mutant, step = None, [], 0
    moved = {BY_NAME[name].offset for name in ("CMDQ_PROD", "CMDQ_CONS")}
    for number, record in enumerate(records, 1):
        if isinstance(record, Write) and record.offset == BY_NAME["CMDQ_BASE"].offset:
            base = QueueBase(record.value)
            start = base.addr & -max(32, Command.size << base.log2size)
            ring = start, 1 << base.log2size
            if step:
                step = 0
        if number == sent.record:
            step = 1
            continue
        if step and ring is not None:
            start, size = ring
            if isinstance(record, Mem) and start <= record.pa < start + Command.size * size:
                at = (record.pa - start) // Command.size
                record = record._replace(pa=start + (at - 1) % size * Command.size)
            elif isinstance(record, Write | Read) and record.offset in moved:
                record = record._replace(value=(record.value - 1) % (2 * size))
            elif isinstance(record, Progress):
                record = record._replace(cmdq_cons=(record.cmdq_cons - 1) % (2 * size))
        mutant.append(record)
    return mutant


def stale_access(
    records: list[Record], dropped: Sent, header: Mapping[str, Any] = HEADER
) -> int | None:
    """The first access that a cache answers otherwise than recorded if a TLBI is dropped.

    The cache holds what each page of a context was recorded to be. It is emptied by every other
    command whole that could reach the entry, so it knows less than a real one.
    """
    contexts: dict[int, int] = {}
    cache: dict[tuple[int, int], tuple[int, int]] = {}
    machine = started(records, header)
    sent = {one.record: one.command for one in commands(records) if one != dropped}
    for number, record in enumerate(records, 1):
        if isinstance(record, Mem):
            machine.store(number, record)
            if number in sent:
                _forget(cache, sent[number])
        elif isinstance(record, Write):
            machine.write(number, *record)
            contexts.clear()
        elif isinstance(record, Dma) and record.status in (Status.OK, Status.FAULT):
            context = _asid(machine, record)
            if context is None:
                continue
            key = context, record.iova >> 12
            kept = cache.get(key)
            if record.status == Status.OK:
                now = record.pa >> 12, record.perm
                if kept is not None and kept[0] != now[0]:
                    return number
                cache.setdefault(key, now)
            elif kept is not None and kept[1] & record.access:
                return number
    return None


def _forget(cache: dict[tuple[int, int], tuple[int, int]], command: Command) -> None:
    if isinstance(command, CmdTlbiNhAsid):
        for key in [key for key in cache if key[0] == command.asid]:
            del cache[key]
    elif isinstance(command, CmdTlbiNhVa):
        # A range may be of any size here: everything from its start on is forgotten.
        first = command.addr >> 12 if command.tg else command.addr >> 21 << 9
        last = None if command.tg else first + 512
        for key in [key for key in cache if key[0] == command.asid and key[1] >= first]:
            if last is None or key[1] < last:
                del cache[key]
    elif isinstance(command, CmdTlbiNsnhAll | CmdTlbiNhAll | CmdTlbiS12Vmall | CmdTlbiS2Ipa):
        cache.clear()


def _asid(machine: Physical, record: Dma) -> int | None:
    access = Access(record.sid, record.iova, record.access == 2)
    looks = look(machine.smmu, access)[1]
    cds = [one.view for one in looks if isinstance(one.view, Cd)]
    return cds[0].asid if cds else None


def started(records: list[Record], header: Mapping[str, Any]) -> Physical:
    """A machine with the identification of a recording."""
    reader = Reader([data(records, header)], "ours")
    machine = Physical("none")
    machine.start(Ahead(reader).ids, reader.header.ram)
    return machine
