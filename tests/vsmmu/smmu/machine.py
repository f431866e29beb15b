# SPDX-License-Identifier: BSD-2-Clause
"""A small machine for the tests of the physical SMMU: memory, tables, a polling driver."""

from __future__ import annotations

from collections.abc import Iterable

from vsmmu.arch.commands import CmdSync, Command
from vsmmu.arch.context import Cd
from vsmmu.arch.events import Event, decode
from vsmmu.arch.registers import (
    Cr0,
    IrqCtrl,
    QueueBase,
    StrtabBase,
    StrtabBaseCfg,
)
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.memory import PAGE, Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu import Access, Features, Outcome, Smmu
from vsmmu.testing.rings import Registers

RAM = 0x8000_0000
RAM_SIZE = 0x1000_0000
NOWHERE = 0x4_0000_0000

AF, RW_S1, RW_S2 = 1 << 10, 1 << 6, 3 << 6
PAGE_DESC, TABLE_DESC, BLOCK_DESC = 3, 3, 1


class Machine:
    """One SMMU behind a linear stream table of 256 entries, booted and idle.

    With `beside` it is in the memory of that machine, and allocates from the upper half.
    """

    def __init__(
        self,
        features: Features | None = None,
        *,
        caching: str = "normal",
        cmdq_log2: int = 8,
        eventq_log2: int = 7,
        boot: bool = True,
        beside: Machine | None = None,
        regions: Iterable[tuple[int, int]] = ((RAM, RAM_SIZE),),
    ) -> None:
        self.irqs: list[str] = []
        self.memory: Memory = Memory(regions) if beside is None else beside.memory
        self.features = features or Features.default()
        self.smmu = Smmu("smmu0", self.memory, self.features, irq=self.irqs.append, caching=caching)
        self.registers = Registers(self.smmu.mmio_read, self.smmu.mmio_write)
        self.scheduler = Scheduler()
        for engine in self.smmu.engines:
            self.scheduler.add(engine)
        self._next = RAM if beside is None else RAM + RAM_SIZE // 2
        self.cmdq = self.alloc(16 << cmdq_log2)
        self.eventq = self.alloc(32 << eventq_log2)
        self.strtab = self.alloc(64 * 256)
        self.cmdq_log2, self.eventq_log2 = cmdq_log2, eventq_log2
        if boot:
            self.boot()

    def alloc(self, size: int, align: int | None = None) -> int:
        align = align or max(PAGE, 1 << (size - 1).bit_length())
        self._next = -(-self._next // align) * align
        place, self._next = self._next, self._next + size
        assert self._next <= RAM + RAM_SIZE
        return place

    # Registers.

    def write(self, name: str, value: int) -> None:
        self.registers.write(name, value)

    def read(self, name: str) -> int:
        return self.registers.read(name)

    def boot(self) -> None:
        base = QueueBase.build(addr=self.cmdq, log2size=self.cmdq_log2).raw
        self.write("CMDQ_BASE", base)
        self.write("EVENTQ_BASE", QueueBase.build(addr=self.eventq, log2size=self.eventq_log2).raw)
        self.write("STRTAB_BASE", StrtabBase.build(addr=self.strtab).raw)
        self.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=8).raw)
        self.write("CR2", 2)
        self.write("IRQ_CTRL", IrqCtrl.build(gerror_irqen=1, eventq_irqen=1).raw)
        self.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw)

    # Commands and events.

    def post(self, *commands: Command) -> None:
        """Queue commands without stepping anything."""
        mask = (2 << self.cmdq_log2) - 1
        prod = self.read("CMDQ_PROD")
        for command in commands:
            slot = prod & ((1 << self.cmdq_log2) - 1)
            self.memory.write(self.cmdq + 16 * slot, bytes(command))
            prod = prod + 1 & mask
        self.write("CMDQ_PROD", prod)

    def command(self, *commands: Command) -> None:
        """Queue commands and a CMD_SYNC, and run until all are consumed."""
        self.post(*commands, CmdSync.build())
        assert self.scheduler.run_until_idle()
        assert self.read("CMDQ_CONS") == self.read("CMDQ_PROD"), hex(self.read("CMDQ_CONS"))

    def events(self) -> list[Event]:
        """Consume the event queue."""
        self.scheduler.run_until_idle()
        found = []
        mask = (2 << self.eventq_log2) - 1
        prod, cons = self.read("EVENTQ_PROD"), self.read("EVENTQ_CONS")
        while (prod ^ cons) & mask:
            slot = cons & ((1 << self.eventq_log2) - 1)
            words = self.memory.read_words(self.eventq + 32 * slot, 4)
            assert words is not None
            found.append(decode(words))
            cons = (cons + 1 & mask) | (cons & 1 << 31)
        self.write("EVENTQ_CONS", cons | prod & 1 << 31)
        return found

    # Tables.

    def ste(self, sid: int, **fields: int) -> None:
        self.memory.write(self.strtab + 64 * sid, bytes(Ste.build(v=1, **fields)))

    def cd(self, address: int | None = None, **fields: int) -> int:
        """A legal CD with stage 1 on TTB0 only, 39-bit, 4K, unless told otherwise."""
        address = self.alloc(64, 64) if address is None else address
        values = {
            "v": 1, "aa64": 1, "a": 1, "r": 1, "t0sz": 25, "epd1": 1, "ips": 5, "asid": 1,
            "aset": 1,
        }  # fmt: skip
        self.memory.write(address, bytes(Cd.build(**{**values, **fields})))
        return address

    def s1_stream(self, sid: int = 1, root: int | None = None, **cd: int) -> int:
        """A stage 1 stream; returns its root table (4K, level 1)."""
        root = self.alloc(PAGE) if root is None else root
        self.ste(sid, config=5, s1ctxptr=self.cd(ttb0=root, **cd))
        return root

    def s2_fields(self, root: int, **fields: int) -> dict[str, int]:
        """STE fields of a 40-bit 4K stage 2 with a level 1 root of two concatenated tables."""
        values = {
            "s2t0sz": 24, "s2sl0": 1, "s2ps": 5, "s2aa64": 1, "s2r": 1, "s2vmid": 7, "s2ttb": root,
        }  # fmt: skip
        return {**values, **fields}

    def s2_root(self) -> int:
        return self.alloc(2 * PAGE)

    def map(
        self, root: int, va: int, pa: int, *, size: int = PAGE, flags: int = AF | RW_S1,
        level: int = 1,
    ) -> None:  # fmt: skip
        """Map one 4K-granule page or block; `root` is a table at `level`, maybe concatenated."""
        table = root
        first = True
        while True:
            shift = 12 + 9 * (3 - level)
            index = va >> shift if first else va >> shift & 511
            slot = table + 8 * index
            if size == 1 << shift:
                kind = PAGE_DESC if level == 3 else BLOCK_DESC
                assert self.memory.write64(slot, pa | flags | kind)
                return
            entry = self.memory.read64(slot)
            assert entry is not None
            if not entry & 1:
                entry = self.alloc(PAGE) | TABLE_DESC
                assert self.memory.write64(slot, entry)
            table, level, first = entry & 0xFFFF_FFFF_F000, level + 1, False

    def l1std(self, address: int, **fields: int) -> None:
        self.memory.write(address, bytes(L1Std.build(**fields)))

    # Accesses.

    def go(self, sid: int, iova: int, *, write: bool = False, **how: object) -> Outcome:
        return self.smmu.translate(Access(sid, iova, write, **how))  # type: ignore[arg-type]
