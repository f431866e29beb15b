# SPDX-License-Identifier: BSD-2-Clause
"""Every 64-bit word of STEs, CDs, level 1 descriptors and tables that a recording has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from operator import or_
from random import Random
from typing import Any, NamedTuple

from tests.vsmmu.recording.mutants import started
from vsmmu.arch.commands import Command
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import ADDR_MASK, TABLE, VALID, S1Leaf, S2Leaf, TableDesc
from vsmmu.arch.registers import BY_NAME, QueueBase
from vsmmu.arch.stream_table import L1Std, Ste, SteConfig
from vsmmu.memory import PAGE_SHIFT
from vsmmu.recording.format import Dma, Mem, Record, Status, Write
from vsmmu.recording.looks import Look, look
from vsmmu.recording.unlike import CD_FREE, FEW, PAIR, STE_FREE
from vsmmu.smmu.smmu import Access
from vsmmu.smmu.strtab import StreamTable

_KIND = VALID | TABLE
_LAST = 3
_OWN = {"leaf": ("ap2", "s2ap_r", "s2ap_w", "oa"), "table": ("oa",)}
# The same in STEs and CDs, by word.
_FREE = {
    "STE": tuple(map(or_, STE_FREE, Ste.mask("s1ctxptr", "s2ttb"))),
    "CD": tuple(map(or_, CD_FREE, Cd.mask("ttb0"))),
}


# How many have to be alike.
_ENOUGH = {"STE": FEW, "CD": PAIR}


class Flip(NamedTuple):
    """A bit that may be changed: the M record, the byte there, the bit of the 64-bit word.

    `used` says that an access was looked up through the word; `alike` counts the others that are
    the same in the same place of an STE or CD.
    """

    record: int
    offset: int
    bit: int
    what: str
    field: str
    used: bool
    index: int = 0
    alike: int = 0


def silent(one: Flip) -> bool:
    """Whether a changed bit need not be told, by docs/replay.md.

    Rights and addresses that no access had; what nothing led to while it was written; what one
    device or domain may have for itself.
    """
    structure = one.what.removesuffix(" idle")
    if structure in _FREE:
        if not one.used and one.alike < _ENOUGH[structure]:
            return True
        return bool(_FREE[structure][one.index] >> one.bit & 1)
    if one.what == "L1STD":
        return one.field != "reserved"
    if one.what in ("unknown", "invalid"):
        # Tables that nothing led to yet, CDs of substreams.
        return True
    return not one.used and one.field in _OWN.get(one.what, ())


def flip(records: list[Record], record: int, offset: int, bit: int) -> list[Record]:
    """The recording with one bit changed."""
    written = records[record - 1]
    assert isinstance(written, Mem)
    data = bytearray(written.data)
    data[offset + bit // 8] ^= 1 << bit % 8
    return [*records[: record - 1], Mem(written.pa, bytes(data)), *records[record:]]


class _Words:
    """What the words of memory are, learned from what accesses look at."""

    def __init__(self, records: list[Record], header: Mapping[str, Any]) -> None:
        self.used: set[tuple[int, int]] = set()
        # Structures by the address of each word; levels of tables by frame.
        self.places: dict[int, tuple[str, int]] = {}
        self.levels: dict[int, int] = {}
        self.rings: list[range] = []
        self.page = 12
        self.stage2 = False
        self._records = records
        self._machine = started(records, header)
        self._seen: set[tuple[int, int, int]] = set()
        for number, record in enumerate(records, 1):
            self._record(number, record)
        self.stes_of_all()
        self.cds()

    def queued(self, pa: int) -> bool:
        """Whether this is of a command queue."""
        return any(pa in ring for ring in self.rings)

    def _record(self, number: int, record: Record) -> None:
        machine = self._machine
        if isinstance(record, Mem):
            machine.store(number, record)
            if not self.queued(record.pa):
                self._seen.clear()
        elif isinstance(record, Write):
            machine.write(number, *record)
            if record.offset == BY_NAME["CMDQ_BASE"].offset:
                base = QueueBase(record.value)
                start = base.addr & -max(32, Command.size << base.log2size)
                self.rings.append(range(start, start + (Command.size << base.log2size)))
        elif isinstance(record, Dma):
            key = record.sid, record.iova >> PAGE_SHIFT, record.access
            if key not in self._seen:
                self._seen.add(key)
                access = Access(record.sid, record.iova, record.access == 2)
                ended = record.status in (Status.OK, Status.BYPASS)
                for one in look(machine.smmu, access)[1]:
                    self._looked(one, ended and not record.flags)

    def _looked(self, one: Look, counts: bool) -> None:
        for word in range(one.size // 8):
            address = one.address + 8 * word
            number = self._machine.memory.writer(address)
            if number and counts:
                self.used.add((number, address))
        if one.what.startswith("stage"):
            level = int(one.what.rpartition(" ")[2])
            self.levels.setdefault(one.address >> self.page, level)
            self.stage2 |= one.what.startswith("stage 2")
            return
        if one.what == "CD" and isinstance(one.view, Cd):
            self.page = {0: 12, 1: 16, 2: 14}[one.view.tg0]
        if one.what == "STE" and isinstance(one.view, Ste) and one.view.config & 2:
            self.page = {0: 12, 1: 16, 2: 14}[one.view.s2tg]
        for word in range(one.size // 8):
            self.places[one.address + 8 * word] = one.what, word
        if isinstance(one.view, L1Std) and one.view.span:
            size = Ste.size << one.view.span - 1
            self.stes(one.view.l2ptr & -size, size)

    def tables(self, placed: list[tuple[int, int]]) -> None:
        """Tables that are below others, by all that was ever written."""
        descriptors: dict[int, set[int]] = {}
        for address, word in placed:
            if word & _KIND == _KIND:
                descriptors.setdefault(address >> self.page, set()).add(word)
        queue = list(self.levels)
        while queue:
            frame = queue.pop()
            for word in descriptors.get(frame, ()) if self.levels[frame] < _LAST else ():
                below = (word & ADDR_MASK) >> self.page
                if below not in self.levels:
                    self.levels[below] = self.levels[frame] + 1
                    queue.append(below)

    def stes(self, start: int, size: int) -> None:
        """STEs are there; the CDs that they ever led to are known by their address alone."""
        for at in range(start, start + size, 8):
            self.places.setdefault(at, ("STE", at % Ste.size // 8))

    def stes_of_all(self) -> None:
        """STEs of a linear table, and of level 2 tables that are linked at the end."""
        table = StreamTable.of(self._machine.smmu.regs)
        if not table.two_level:
            self.stes(table.base, Ste.size << table.log2size)
            return
        count = 1 << max(0, table.log2size - table.split)
        for word in self._machine.memory.read_words(table.base, count) or ():
            one = L1Std((word,))
            if table.span_valid(one):
                size = Ste.size << one.span - 1
                self.stes(one.l2ptr & -size, size)

    def cds(self) -> None:
        """CDs that STEs led to."""
        for record in self._records:
            if not isinstance(record, Mem) or self.places.get(record.pa) != ("STE", 0):
                continue
            ste = Ste((int.from_bytes(record.data[:8], "little"), *(0,) * (Ste.dwords - 1)))
            if ste.v and ste.config == SteConfig.S1 and not ste.s1cdmax:
                for word in range(Cd.dwords):
                    self.places.setdefault(ste.s1ctxptr + 8 * word, ("CD", word))


def words_of(records: list[Record], header: Mapping[str, Any], random: Random) -> list[Flip]:
    """One bit of each field of each word; of STEs and CDs one of each word."""
    words = _Words(records, header)
    placed = [
        (number, record, offset, int.from_bytes(record.data[offset : offset + 8], "little"))
        for number, record in enumerate(records, 1)
        if isinstance(record, Mem) and not words.queued(record.pa)
        for offset in range(0, len(record.data) - 7, 8)
    ]
    words.tables([(record.pa + offset, word) for _, record, offset, word in placed])
    found = []
    same = Counter(
        (*words.places.get(record.pa + offset, ("", 0)), word) for _, record, offset, word in placed
    )
    for number, record, offset, word in placed:
        address = record.pa + offset
        used = (number, address) in words.used
        what, index = words.places.get(address, ("", 0))
        if what in ("STE", "CD"):
            live = "" if used or what == "CD" else " idle"
            bit = random.randrange(64)
            alike = same[what, index, word] - 1
            place = f"word {index}"
            found.append(Flip(number, offset, bit, f"{what}{live}", place, used, index, alike))
            continue
        layout: type[Layout] = L1Std if what == "L1STD" else L1Cd
        if not what:
            what, layout = _descriptor(word, words.levels.get(address >> words.page), words.stage2)
        for name, mask in _fields(layout, words.page).items():
            bits = [bit for bit in range(64) if mask >> bit & 1]
            found.append(Flip(number, offset, random.choice(bits), what, name, used))
    return found


def _descriptor(word: int, level: int | None, stage2: bool) -> tuple[str, type[Layout]]:
    leaf: type[Layout] = S2Leaf if stage2 else S1Leaf
    if not word & VALID:
        return ("zero" if not word else "invalid"), leaf
    if level is None:
        return "unknown", leaf
    if word & TABLE and level < _LAST:
        return "table", TableDesc
    return "leaf", leaf


def _fields(layout: type[Layout], page: int) -> dict[str, int]:
    fields = {name: layout.mask(name)[0] for name in layout.fields}
    rest = ~sum(fields.values()) & (1 << 64) - 1
    if "oa" in fields:
        low = fields["oa"] & (1 << page) - 1
        rest |= low
        fields["oa"] &= ~low
    if rest:
        fields["reserved"] = rest
    return fields
