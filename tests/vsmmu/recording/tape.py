# SPDX-License-Identifier: BSD-2-Clause
"""Recordings of our own: a small driver whose accesses a model without caches answers.

`Tape` notes what is done in the recording format; `Driver` does what Linux does: a two-level
stream table, a stage 1 context for each stream, pages and blocks mapped and unmapped, each change
followed by its commands and a CMD_SYNC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdSync,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNsnhAll,
    Command,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import S1Leaf
from vsmmu.arch.registers import BY_NAME, Cr0, QueueBase, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.recording.format import (
    Access,
    Dma,
    EventRecord,
    Flag,
    Irq,
    Mem,
    Note,
    Progress,
    Read,
    Reader,
    Record,
    Reset,
    Status,
    Write,
    encode,
    header_line,
)
from vsmmu.recording.physical import Physical
from vsmmu.recording.player import Played, Player, Target
from vsmmu.smmu.features import Features

RAM = (0x4000_0000, 0x100_0000)
HEADER = {"name": "ours", "kernel": "none", "ram_base": RAM[0], "ram_size": RAM[1]}
IDS = Features.default(sidsize=16, oas=44, aidr=1).ids
PAGE, BLOCK = 0x1000, 0x20_0000
STRTAB, LEVEL2, CMDQ, EVENTQ, HEAP = (RAM[0] + n * 0x1_0000 for n in (1, 2, 3, 4, 5))
PROBED = ("IDR0", "IDR1", "IDR3", "IDR5", "IIDR")


class Tape:
    """Records, and the machine whose answers they hold."""

    def __init__(self, ids: dict[str, int] | None = None) -> None:
        self.ids = {"IDR2": 0, "IDR4": 0, **IDS, **(ids or {})}
        self.machine = Physical("none")
        self.machine.start(self.ids, RAM)
        self.records: list[Record] = []
        self._progress: Progress | None = None
        self.add(Reset())

    def add(self, record: Record) -> int:
        """Append a record as it is; its number."""
        self.records.append(record)
        return len(self.records)

    def mem(self, pa: int, *words: int) -> int:
        record = Mem(pa, b"".join(word.to_bytes(8, "little") for word in words))
        number = self.add(record)
        self.machine.store(number, record)
        return number

    def write(self, name: str, value: int) -> int:
        register = BY_NAME[name]
        size = register.width // 8
        number = self.add(Write(register.offset, size, value))
        self.machine.write(number, register.offset, size, value)
        progress = self.machine.progress()
        if progress != self._progress:
            self._progress = progress
            self.add(progress)
        return number

    def read(self, name: str) -> int:
        offset, size = BY_NAME[name].offset, BY_NAME[name].width // 8
        return self.add(Read(offset, size, self.machine.read(offset, size)))

    def note(self, text: str) -> int:
        return self.add(Note(text))

    def dma(self, sid: int, iova: int, *, write: bool = False, stale: bool = False) -> Dma:
        kind = Access.WRITE if write else Access.READ
        asked = Dma(sid, kind, 0, 0, 0, Flag.STALE * stale, iova, 0, 0xFFF)
        result = self.machine.access(len(self.records) + 1, asked)
        perm = (result.perm or 0) if result.status == Status.OK else 0
        number = result.events[0][0] & 0xFF if result.events else 0
        answer = asked._replace(status=result.status, pa=result.pa or iova, perm=perm, event=number)
        self.add(answer)
        for words in result.events:
            self.add(EventRecord((words[0], words[1], words[2], words[3])))
            self.add(Irq(0))
        return answer

    def bytes(self) -> bytes:
        """The recording as a file."""
        return data(self.records)

    def play(self, target: Target) -> Played:
        return play(self.records, target)


def data(records: list[Record], header: Mapping[str, Any] = HEADER) -> bytes:
    """Records as a file."""
    return header_line(header) + b"".join(map(encode, records))


def play(records: list[Record], target: Target, header: Mapping[str, Any] = HEADER) -> Played:
    """Play records."""
    return Player(Reader([data(records, header)], "ours"), target).play()


class Driver:
    """A driver in front of a tape."""

    def __init__(self, tape: Tape, *, log2size: int = 6) -> None:
        self.tape = tape
        self.log2size = log2size
        self.prod = 0
        self.heap = HEAP
        # Translation tables by ASID, and the number of the M record of each command.
        self.roots: dict[int, int] = {}
        self.commands: dict[int, Command] = {}
        self.tables: dict[tuple[int, int, int], int] = {}

    def boot(self, *, tables: bool = True) -> None:
        """Probe, and enable the SMMU; with `tables`, link streams that abort."""
        tape = self.tape
        for name in PROBED:
            tape.read(name)
        tape.write("CR0", 0)
        tape.read("CR0ACK")
        tape.write("CR1", 0xD75)
        tape.write("CR2", 0x2)
        tape.write("STRTAB_BASE", StrtabBase.build(addr=STRTAB).raw)
        tape.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(fmt=1, split=8, log2size=16).raw)
        tape.write("CMDQ_BASE", QueueBase.build(addr=CMDQ, log2size=self.log2size).raw)
        tape.write("CMDQ_PROD", 0)
        tape.write("CMDQ_CONS", 0)
        tape.write("CR0", Cr0.build(cmdqen=1).raw)
        self.send(CmdCfgiSteRange.build(range=31))
        self.send(CmdTlbiNsnhAll.build())
        tape.write("EVENTQ_BASE", QueueBase.build(addr=EVENTQ, log2size=5).raw)
        tape.write("EVENTQ_PROD", 0)
        tape.write("EVENTQ_CONS", 0)
        tape.write("IRQ_CTRL", 5)
        tape.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw)
        tape.read("CR0ACK")
        if not tables:
            return
        for sid in range(16):
            tape.mem(LEVEL2 + sid * Ste.size, *Ste.build(v=1).words)
        tape.mem(STRTAB, L1Std.build(span=9, l2ptr=LEVEL2).raw)

    def send(self, *commands: Command) -> None:
        """Queue commands and a CMD_SYNC, and wait for them."""
        size = 1 << self.log2size
        for command in (*commands, CmdSync.build(cs=2)):
            place = CMDQ + (self.prod & size - 1) * Command.size
            self.commands[self.tape.mem(place, *command.words)] = command
            self.prod = self.prod + 1 & 2 * size - 1
        self.tape.write("CMDQ_PROD", self.prod)
        self.tape.read("CMDQ_CONS")

    def page(self) -> int:
        """A zeroed page for tables."""
        self.heap += PAGE
        return self.heap - PAGE

    # Streams.

    def attach(self, sid: int, asid: int) -> None:
        """A stage 1 context for a stream."""
        root = self.roots.setdefault(asid, self.page())
        cd = Cd.build(
            v=1, aa64=1, r=1, a=1, aset=1, asid=asid, t0sz=16, epd1=1, ips=4, ttb0=root, tg0=0,
            ir0=1, or0=1, sh0=3,
        )  # fmt: skip
        pointer = self.page()
        self.structure(pointer, cd, CmdCfgiCd.build(sid=sid, leaf=1))
        ste = Ste.build(v=1, config=5, s1ctxptr=pointer, s1dss=2)
        self.structure(LEVEL2 + sid * Ste.size, ste, CmdCfgiSte.build(sid=sid, leaf=1))

    def bypass(self, sid: int) -> None:
        """A stream's addresses pass as they are."""
        ste = Ste.build(v=1, config=4)
        self.structure(LEVEL2 + sid * Ste.size, ste, CmdCfgiSte.build(sid=sid, leaf=1))

    def detach(self, sid: int, asid: int) -> None:
        """A stream aborts."""
        ste = Ste.build(v=1)
        self.structure(LEVEL2 + sid * Ste.size, ste, CmdCfgiSte.build(sid=sid, leaf=1))
        self.send(CmdTlbiNhAsid.build(asid=asid))

    def structure(self, pa: int, view: Layout, *commands: Command) -> None:
        """Write an STE or a CD, its first word last, and send commands."""
        self.tape.mem(pa + 8, *view.words[1:])
        self.tape.mem(pa, view.words[0])
        self.send(*commands)

    # Mappings.

    def leaf(self, asid: int, iova: int, level: int = 3) -> int:
        """Where the descriptor of an address is, with tables down to it."""
        table = self.roots[asid]
        for upper in range(level):
            slot = table + 8 * (iova >> 39 - 9 * upper & 511)
            key = (asid, upper, iova >> 39 - 9 * upper)
            if key not in self.tables:
                self.tables[key] = self.page()
                self.tape.mem(slot, self.tables[key] | 3)
            table = self.tables[key]
        return table + 8 * (iova >> 39 - 9 * level & 511)

    def map(self, asid: int, iova: int, pa: int, *, level: int = 3, write: bool = True) -> int:
        """Map a page, or a block with level 2; the number of the record."""
        leaf = S1Leaf.build(
            valid=1, table=int(level == 3), attrindx=1, ap1=1, ap2=int(not write), sh=3, af=1,
            ng=1, pxn=1, uxn=1,
        )  # fmt: skip
        return self.tape.mem(self.leaf(asid, iova, level), leaf.raw | pa)

    def unmap(self, asid: int, iova: int, *, level: int = 3) -> None:
        """Unmap a page or a block, and flush it."""
        self.tape.mem(self.leaf(asid, iova, level), 0)
        self.flush(asid, iova)

    def flush(self, asid: int, iova: int, **fields: int) -> None:
        """Flush an address."""
        self.send(CmdTlbiNhVa.build(asid=asid, addr=iova & -PAGE, leaf=1, **fields))


def everyday() -> tuple[Tape, Driver]:
    """Two streams with contexts, one that bypasses; pages that move, faults, a detach."""
    tape = Tape()
    driver = Driver(tape)
    tape.dma(8, 0x4010_0000)
    driver.boot()
    tape.note("attach")
    driver.attach(8, 1)
    driver.attach(9, 2)
    driver.bypass(10)
    tape.note("map")
    for n in range(4):
        driver.map(1, 0x10_0000 + n * PAGE, 0x4080_0000 + n * PAGE)
    driver.map(1, 0x20_0000, 0x40A0_0000, level=2)
    driver.map(2, 0x10_0000, 0x4090_0000, write=False)
    for n in range(4):
        tape.dma(8, 0x10_0000 + n * PAGE + 8 * n, write=bool(n & 1))
    tape.dma(8, 0x2A_BCD0)
    tape.dma(9, 0x10_0040)
    tape.dma(10, 0x4012_3456, write=True)
    tape.note("move")
    for n in range(4):
        driver.unmap(1, 0x10_0000 + n * PAGE)
        driver.map(1, 0x10_0000 + n * PAGE, 0x4088_0000 + n * PAGE)
        tape.dma(8, 0x10_0000 + n * PAGE, write=True)
    driver.unmap(1, 0x20_0000, level=2)
    tape.note("faults")
    tape.dma(8, 0x20_0000)
    tape.dma(9, 0x10_0000, write=True)
    tape.dma(9, 0x30_0000)
    tape.read("EVENTQ_PROD")
    tape.write("EVENTQ_CONS", 3)
    tape.note("detach")
    driver.detach(9, 2)
    tape.dma(9, 0x10_0000)
    driver.attach(9, 1)
    tape.dma(9, 0x10_1000)
    return tape, driver
