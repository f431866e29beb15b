# SPDX-License-Identifier: BSD-2-Clause
"""A physical SMMU without a hypervisor: memory, tables, rings, devices.

For example:

    smmu = BareSmmu()
    stage1 = smmu.stage1(sid=1)
    stage1.map(0x10000, smmu.page(), 0x1000)
    assert smmu.dma(1, 0x10000, b"data").ok
"""

from __future__ import annotations

from vsmmu.arch.commands import CmdSync, Command
from vsmmu.arch.context import Cd
from vsmmu.arch.events import Event
from vsmmu.arch.pagetable import G4K, Granule
from vsmmu.arch.registers import Cr0, Cr2, IrqCtrl, StallModel
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.memory import Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu import Access, DevicePort, Features, Outcome, Request, Smmu
from vsmmu.testing.rings import CommandRing, EventRing, PriRing, Registers
from vsmmu.testing.space import Space
from vsmmu.testing.streams import CdTable, LinearStreamTable, TwoLevelStreamTable
from vsmmu.testing.tables import Stage1Tables, Stage2Tables

RAM, RAM_SIZE = 0x8000_0000, 0x1000_0000
# Above this many StreamID bits a stream table of two levels is made.
_LINEAR_BITS = 8


class BareSmmu:
    """One physical SMMU with its own RAM, booted: queues on, stream table empty, SMMUEN=1.

    Args:
        features: its identification.
        memory: RAM shared with others, or else 256 MiB at 0x8000_0000 of its own.
        space: where tables and buffers are put; all of the RAM by default.
        scheduler: the engines' turns, shared with others; of its own by default.
        seed: of its own scheduler; 0 is round robin.
        sid_bits: StreamIDs that the stream table covers.
        caching: "normal", "none" or "hostile", as for `Smmu`.
        boot: whether the registers are programmed.

    Attributes:
        irqs: the interrupts so far, by line.
    """

    def __init__(
        self,
        features: Features | None = None,
        *,
        name: str = "smmu0",
        memory: Memory | None = None,
        space: Space | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
        sid_bits: int = 8,
        caching: str = "normal",
        boot: bool = True,
    ) -> None:
        self.memory = Memory([(RAM, RAM_SIZE)]) if memory is None else memory
        self.space = space or Space(self.memory, *self.memory.regions[0])
        self.features = features or Features.default()
        self.scheduler = Scheduler(seed) if scheduler is None else scheduler
        self.irqs: list[str] = []
        self.smmu = Smmu(name, self.memory, self.features, irq=self.irqs.append, caching=caching)
        for engine in self.smmu.engines:
            self.scheduler.add(engine)
        self.registers = Registers(self.smmu.mmio_read, self.smmu.mmio_write)
        self.commands = CommandRing(self.space, self.registers)
        self.eventq = EventRing(self.space, self.registers)
        self.priq = PriRing(self.space, self.registers) if self.features.pri else None
        kind = LinearStreamTable if sid_bits <= _LINEAR_BITS else TwoLevelStreamTable
        self.streams = kind(self.space, sid_bits)
        self.ports: dict[int, DevicePort] = {}
        if boot:
            self.boot()

    def boot(self) -> None:
        """Program queues, stream table, interrupts and enables, in the order of §6.3.9."""
        write = self.registers.write
        write("CR2", Cr2.build(ptm=1, recinvsid=1).raw)
        for name, value in self.streams.registers.items():
            write(name, value)
        for queue in (self.commands, self.eventq, self.priq):
            if queue is not None:
                queue.program()
        write("IRQ_CTRL", IrqCtrl.build(gerror_irqen=1, eventq_irqen=1).raw)
        pri = int(self.priq is not None)
        enables = Cr0.build(cmdqen=1, eventqen=1, priqen=pri, smmuen=1, atschk=1)
        write("CR0", enables.raw)
        self.run()

    def run(self) -> None:
        """Run every engine until there is nothing left to do.

        Raises:
            RuntimeError: they do not come to rest.
        """
        if not self.scheduler.run_until_idle():
            raise RuntimeError("the machine did not come to rest")

    # Memory and tables.

    def page(self, count: int = 1) -> int:
        """Address of so many fresh pages side by side."""
        return self.space.page(count)

    def stage1(
        self,
        sid: int,
        granule: Granule = G4K,
        *,
        input_bits: int = 48,
        under: Stage2Tables | None = None,
        ste: dict[str, int] | None = None,
        **cd: int,
    ) -> Stage1Tables:
        """A stream with stage 1 tables behind TTB0, nested over `under` if given.

        Args:
            sid: StreamID; its STE is written, and no command sent.
            granule, input_bits: of the tables.
            under: stage 2 tables, which must map what stage 1 is built in.
            ste, cd: fields of the STE and the CD, over those that the tables ask for.
        """
        tables = Stage1Tables(self.space, granule, input_bits=input_bits)
        contexts = CdTable(self.space)
        contexts.write(make_cd(tables, self.features, **cd))
        config = SteConfig.S1 if under is None else SteConfig.NESTED
        stage2 = {} if under is None else make_stage2(under, self.features)
        fields = {**contexts.ste_fields(), **stage2, **(ste or {})}
        self.streams.write(sid, Ste.build(v=1, config=config, **fields))
        return tables

    def stage2(
        self, sid: int, granule: Granule = G4K, *, input_bits: int = 40, **ste: int
    ) -> Stage2Tables:
        """A stream with stage 2 alone; arguments as for `stage1`."""
        tables = Stage2Tables(self.space, granule, input_bits=input_bits)
        fields = {**make_stage2(tables, self.features), **ste}
        self.streams.write(sid, Ste.build(v=1, config=SteConfig.S2, **fields))
        return tables

    # Commands, accesses, records.

    def issue(self, *entries: Command) -> None:
        """Put commands and a CMD_SYNC, and run.

        Raises:
            RuntimeError: the queue stopped; the message names the command and CMDQ_CONS.ERR.
        """
        self.commands.put(*entries, CmdSync.build())
        self.run()
        if not self.commands.empty:
            culprit = self.commands.at(self.commands.cons)
            raise RuntimeError(f"the queue stopped at {culprit!r}, ERR={self.commands.error}")

    def access(
        self, sid: int, iova: int, *, write: bool = False, instr: bool = False,
        priv: bool = False, ssid: int | None = None,
    ) -> Outcome:  # fmt: skip
        """What becomes of one access, of which no data moves."""
        return self.smmu.translate(Access(sid, iova, write, instr, priv, ssid))

    def port(self, sid: int) -> DevicePort:
        """The device with that StreamID, which is made when first asked for."""
        if sid not in self.ports:
            self.ports[sid] = DevicePort(f"{self.smmu.name} {sid:#x}", self.smmu, sid)
            self.scheduler.add(self.ports[sid])
        return self.ports[sid]

    def dma(self, sid: int, iova: int, data: bytes | int, *, ssid: int | None = None) -> Request:
        """A write of bytes, or a read of so many, and run."""
        port = self.port(sid)
        if isinstance(data, int):
            request = port.read(iova, data, ssid=ssid)
        else:
            request = port.write(iova, data, ssid=ssid)
        self.run()
        return request

    def events(self) -> list[Event]:
        """Run, and take the event queue's records."""
        self.run()
        return self.eventq.take()


def make_cd(tables: Stage1Tables, features: Features, **fields: int) -> Cd:
    """A legal CD for tables at TTB0: AArch64, faults recorded and aborted, TTB1 off."""
    values = {
        "v": 1, "aa64": 1, "a": 1, "r": 1, "aset": 1, "asid": 1, "epd1": 1,
        "ips": features.idr5.oas, "mair0": 0xFF, **tables.cd_fields(),
    }  # fmt: skip
    values["s"] = int(features.idr0.stall_model == StallModel.STALL_FORCED)
    return Cd.build(**{**values, **fields})


def make_stage2(tables: Stage2Tables, features: Features) -> dict[str, int]:
    """STE fields for stage 2 tables: faults recorded, VMID 1."""
    forced = int(features.idr0.stall_model == StallModel.STALL_FORCED)
    return {
        "s2vmid": 1, "s2ps": features.idr5.oas, "s2r": 1, "s2s": forced, **tables.ste_fields(),
    }  # fmt: skip
