# SPDX-License-Identifier: BSD-2-Clause
"""Writes programs: tables, streams, commands and accesses, in the terms of the architecture."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.differential.qemu_machine import RAM, stream_ids
from tests.differential.qemu_program import Program, pages_of
from vsmmu.arch.commands import CmdSync, Command
from vsmmu.arch.context import Cd
from vsmmu.arch.pagetable import G4K, TABLE, VALID, Granule, S1Leaf, S2Leaf, output_address
from vsmmu.arch.registers import Cr0, Cr2, IrqCtrl, QueueBase, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.memory import PAGE, Memory

# Parts of RAM: queues and stream tables, what stage 1 reads, what stage 2 reads, data.
QUEUES, FIRST, SECOND, DATA = (RAM + (mib << 20) for mib in (8, 16, 20, 24))
DATA_SIZE = 4 << 20
# No RAM and no device is here.
NOWHERE = 0x4_8000_0000

S1_OK = S1Leaf.build(valid=1, table=1, af=1, ap1=1, ng=1, sh=3).raw
S2_OK = S2Leaf.build(valid=1, table=1, af=1, s2ap_r=1, s2ap_w=1, memattr=15, sh=3).raw
S2_READ = S2_OK & ~S2Leaf.mask("s2ap_w")[0]
LEGAL_CD = {
    "v": 1, "aa64": 1, "a": 1, "r": 1, "t0sz": 25, "epd1": 1, "ips": 4, "asid": 1, "aset": 1,
}  # fmt: skip


@dataclass
class Table:
    """Translation tables of one stage; `start` is the level of `root`."""

    author: Author
    granule: Granule
    bits: int
    root: int
    start: int
    arena: str = "first"
    # What a stage 1 descriptor must add to a table's address where stage 2 lies below it.
    delta: int = 0
    high: bool = False
    made: list[int] = field(default_factory=list)
    # Descriptors that are leaves, valid or not: no table is put there later.
    leaves: set[int] = field(default_factory=set)

    @property
    def base(self) -> int:
        """Input address 0 of the table: a TTB1 region ends at the top."""
        return (1 << 64) - (1 << self.bits) if self.high else 0

    def slot(self, address: int, level: int) -> int | None:
        """Place of the descriptor of an address, with the tables above it; None behind a block."""
        table = self.root
        offset = address & (1 << self.bits) - 1
        for at in range(self.start, level + 1):
            index = offset >> self.granule.shift(at)
            if at > self.start:
                index &= (1 << self.granule.stride) - 1
            place = table + 8 * index
            if at == level:
                return place
            if place in self.leaves:
                return None
            entry = self.author.word(place)
            if not entry & VALID:
                below = self.author.alloc(self.granule.page_size, self.arena)
                self.author.poke(place, below + self.delta | VALID | TABLE)
                self.made.append(place)
                table = below
            elif entry & TABLE:
                table = output_address(entry, self.granule.page_shift) - self.delta
            else:
                return None
        return None

    def map(self, address: int, output: int, flags: int, level: int = 3) -> int | None:
        """Put a leaf unless something is there; returns its place."""
        place = self.slot(address, level)
        if place is None or place in self.leaves or self.author.word(place):
            return None
        self.leaves.add(place)
        self.author.poke(place, leaf(output, flags, level))
        return place


def leaf(output: int, flags: int, level: int) -> int:
    """A page or block descriptor."""
    return output | (flags if level == 3 else flags & ~TABLE)


class Author:
    """Collects a program. Before `begin` memory goes to the image, afterwards into steps."""

    def __init__(self, bus: int = 1) -> None:
        self.program = Program(bus)
        # Memory as the program has made it so far.
        self._live = Memory(self.program.image.regions)
        self.sids = stream_ids(bus)
        self._next = {"queues": QUEUES, "first": FIRST, "second": SECOND}
        self._slots = [0] * len(self.sids)
        self.strtab = 0
        self._l2: dict[int, int] = {}
        self._split = 0
        self.running = False

    # Memory.

    def alloc(self, size: int, arena: str = "queues", align: int | None = None) -> int:
        align = align or max(64, 1 << (size - 1).bit_length())
        place = -(-self._next[arena] // align) * align
        self._next[arena] = place + size
        return place

    def used(self, arena: str) -> int:
        return self._next[arena]

    def write(self, address: int, data: bytes) -> None:
        self._live.write(address, data)
        if self.running:
            self.program.steps.append(("mem", address, data))

    def poke(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(8, "little"))

    def word(self, address: int) -> int:
        return self._live.read64(address) or 0

    def data_page(self, address: int) -> int:
        """Fill a page so that every 4 bytes of RAM differ."""
        first = 0xD100_0000 + (address - RAM >> 2)
        self.write(address, struct.pack("<1024I", *range(first, first + 1024)))
        return address

    # Registers and commands.

    def w(self, name: str, value: int) -> None:
        self.program.steps.append(("w", name, value))

    def r(self, *names: str) -> None:
        self.program.steps += [("r", name) for name in names]

    def cmd(self, *commands: Command) -> None:
        self.program.steps.append(("cmd", tuple(command.words for command in commands)))

    def sync(self, *commands: Command) -> None:
        self.cmd(*commands, CmdSync.build())

    def ack(self) -> None:
        self.program.steps.append(("ack",))

    def boot(
        self, *, cmdq: int = 4, eventq: int = 5, log2size: int = 16, split: int | None = None,
        fmt_split: int | None = None, cr2: int = Cr2.mask("recinvsid")[0],
        strtab: int | None = None,
        irq: int = IrqCtrl.mask("gerror_irqen", "eventq_irqen")[0],
    ) -> None:  # fmt: skip
        """Queues and stream table, then everything on. Call it when the image is complete."""
        for frame, data in pages_of(self._live).items():
            self.program.image.write(frame * PAGE, data)
        self.running = True
        self.w("CR1", 0)
        self.w("CMDQ_BASE", QueueBase.build(addr=self.alloc(16 << cmdq), log2size=cmdq).raw)
        self.w("EVENTQ_BASE", QueueBase.build(addr=self.alloc(32 << eventq), log2size=eventq).raw)
        self.w("STRTAB_BASE", StrtabBase.build(addr=strtab or self.strtab).raw)
        two = {} if split is None else {"split": fmt_split or split, "fmt": 1}
        self.w("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=log2size, **two).raw)
        self.w("CR2", cr2)
        self.w("IRQ_CTRL", irq)
        self.w("CR0", Cr0.build(cmdqen=1).raw)
        self.w("CR0", ON)
        self.program.fixed = len(self.program.steps)

    # Streams.

    def linear(self, log2size: int = 9) -> None:
        self.strtab = self.alloc(64 << log2size)

    def two_level(self, log2size: int, split: int) -> None:
        self._split = split
        self.strtab = self.alloc(max(64, 8 << max(0, log2size - split)))

    def l2(self, sid: int, **fields: int) -> int:
        """The level 2 table of a StreamID, made when it is missing."""
        index = sid >> self._split
        if index not in self._l2:
            self._l2[index] = self.alloc(64 << self._split)
            fields = {"span": self._split + 1, "l2ptr": self._l2[index], **fields}
            self.poke(self.strtab + 8 * index, L1Std.build(**fields).raw)
        return self._l2[index]

    def ste_at(self, sid: int) -> int:
        if not self._split:
            return self.strtab + 64 * sid
        return self.l2(sid) + 64 * (sid & (1 << self._split) - 1)

    def ste(self, sid: int, **fields: int) -> None:
        self.write(self.ste_at(sid), bytes(Ste.build(**{"v": 1, **fields})))

    def cd(self, **fields: int) -> int:
        """A CD: stage 1 by TTB0 alone, 39 bits, 4K, unless told otherwise."""
        place = self.alloc(64, "first")
        self.write(place, bytes(Cd.build(**{**LEGAL_CD, **fields})))
        return place

    def table(
        self, granule: Granule = G4K, bits: int = 39, arena: str = "first", *, delta: int = 0,
        high: bool = False, tables: int = 1, start: int | None = None,
    ) -> Table:  # fmt: skip
        start = granule.start_level(bits) if start is None else start
        root = self.alloc(tables * granule.page_size, arena)
        return Table(self, granule, bits, root, start, arena, delta, high)

    # Accesses.

    def dma(
        self, device: int, iova: int, *, write: bool = False, size: int = 4, checked: bool = True
    ) -> None:  # fmt: skip
        slot = self._slots[device]
        self._slots[device] += size + 7 & ~7
        self.program.steps.append(("dma", device, iova, write, size, slot, checked))


ON = Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw
