# SPDX-License-Identifier: BSD-2-Clause
"""Random programs on well-formed structures, with every feature: most of what they do succeeds."""

from __future__ import annotations

from collections import Counter
from random import Random

from vsmmu.arch.commands import (
    OPCODES,
    CmdAtcInv,
    CmdCfgiCdAll,
    CmdCfgiSteRange,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNsnhAll,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.context import L1Cd
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import Cr0, Cr2, IrqCtrl, QueueBase, StrtabBaseCfg
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, DevicePort, Features
from vsmmu.smmu.ats import AtsPort, TranslationRequest
from vsmmu.smmu.config import Caching
from vsmmu.smmu.intent import ConfigScope, TlbScope

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine

FEATURES = Features.everything().replace(sidsize=16, stall_max=1, msi=1, sev=1, stall_model=0)
ON = Cr0.build(smmuen=1, eventqen=1, cmdqen=1, priqen=1, atschk=1)
DBM, DATA = 1 << 51, 0x8F00_0000
PAGES, STREAMS = 24, 8
OPERATIONS = ("VAE1", "ASIDE1", "VMALLS12E1", "IPAS2E1")


class Program:
    """A machine with every feature and well-formed tables, and a driver of small habits."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        caching = random.choice(["normal", "normal", "hostile", "none"])
        self.machine = machine = Machine(FEATURES, caching=caching, eventq_log2=2)
        self.smmu = machine.smmu
        self.calls: Counter[str] = Counter()
        self._watch()
        self.smmu.tlb.capacity = min(self.smmu.tlb.capacity, 8)
        if caching == "normal":
            self.smmu.config.caching = Caching(entries=4)
        self._boot()
        self.roots2 = [self._stage2() for _ in range(2)]
        self.roots = [self._stage1() for _ in range(3)]
        for sid in range(STREAMS):
            self.stream(sid)
        self.ports: list[DevicePort] = [DevicePort(f"d{sid}", self.smmu, sid) for sid in range(6)]
        self.ports += [AtsPort(f"e{sid}", self.smmu, sid, pages=True) for sid in (6, 7)]
        for port in self.ports:
            machine.scheduler.add(port)
        self._habits = [
            *[self.dma] * 6, *[self.submit] * 3, self.pages, self.drain, self.recover, self.change,
            self.ats, self.broadcast, self.access, self.sometimes,
        ]  # fmt: skip

    def _watch(self) -> None:
        """Count the lookups from outside."""
        for part, names in (
            (self.smmu.config, ("stream", "context")),
            (self.smmu._translator, ("translate",)),
        ):
            for name in names:
                setattr(part, name, self._counted(name, getattr(part, name)))

    def _counted(self, name, function):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            self.calls[name] += 1
            return function(*args, **kwargs)

        return call

    def _boot(self) -> None:
        random, machine = self.random, self.machine
        machine.write("CR0", 0)
        machine.write("IRQ_CTRL", 0)
        cr2 = Cr2.build(recinvsid=random.randrange(2), rec_cfg_ats=random.randrange(2), e2h=1)
        machine.write("CR2", cr2.raw)
        # A two-level stream table of which only the first level 1 descriptor is valid.
        level1 = machine.alloc(8 * 4)
        machine.l1std(level1, span=7, l2ptr=machine.strtab)
        machine.write("STRTAB_BASE", level1)
        machine.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=8, split=6, fmt=1).raw)
        machine.write("PRIQ_BASE", QueueBase.build(addr=machine.alloc(PAGE), log2size=1).raw)
        for source in ("EVENTQ", "GERROR", "PRIQ"):
            place = random.choice([0, machine.alloc(PAGE), NOWHERE])
            machine.write(f"{source}_IRQ_CFG0", place)
        irqs = IrqCtrl.build(gerror_irqen=1, eventq_irqen=1, priq_irqen=1)
        machine.write("IRQ_CTRL", irqs.raw)
        machine.write("CR0", ON.replace(vmw=random.choice([0, 1])).raw)

    def _stage1(self) -> int:
        root = self.machine.alloc(PAGE)
        for page in range(PAGES):
            flags = AF * (page % 5 > 0) | RW_S1 | (DBM | 1 << 7) * (page % 3 == 0)
            flags |= (1 << 11) * (page % 2)
            if page % 7:
                self.machine.map(root, page * PAGE, DATA + page * PAGE, flags=flags)
        self.machine.map(root, 1 << 30, 0x8000_0000, size=1 << 30)
        return root

    def _stage2(self) -> int:
        root, machine = self.machine.s2_root(), self.machine
        machine.map(root, 0x8000_0000, 0x8000_0000, size=1 << 30, flags=AF | RW_S2)
        for page in range(PAGES):
            if page % 6:
                machine.map(root, page * PAGE, DATA + page * PAGE, flags=AF | RW_S2)
        return root

    def stream(self, sid: int) -> None:
        random, machine = self.random, self.machine
        table = machine.alloc(64 * 64, 64 * 64)
        for ssid in range(4):
            machine.cd(
                table + 64 * ssid, ttb0=random.choice(self.roots), asid=random.randrange(1, 4),
                aset=random.randrange(2), a=random.randrange(2), r=random.randrange(2),
                s=random.randrange(2), ha=1, hd=random.randrange(2), affd=0,
            )  # fmt: skip
        bits = random.choice([0, 0, 0, 8])
        level1 = table
        if bits:
            level1 = machine.alloc(64)
            machine.memory.write(level1, bytes(L1Cd.build(v=1, l2ptr=table)))
        vmid = random.randrange(2)
        machine.ste(
            sid, config=random.choice([0, 4, 5, 5, 5, 6, 7, 7, 7, 7]), s1ctxptr=level1,
            s1cdmax=bits, s1fmt=1 if bits else 0, s1dss=2, eats=int(sid > 5),
            mev=random.choice([0, 1, 1]),
            **machine.s2_fields(
                self.roots2[vmid], s2vmid=vmid + 2, s2r=random.randrange(2),
                s2s=random.randrange(2) * (sid <= 5), s2ha=1,
            ),
        )  # fmt: skip

    def commands(self) -> list[Command]:
        random = self.random
        sid, vmid, asid = random.randrange(8), random.randrange(2, 4), random.randrange(1, 4)
        place = random.randrange(PAGES) * PAGE
        made = random.choice([
            CmdTlbiNhVa.build(vmid=vmid, asid=asid, addr=place),
            CmdTlbiNhVa.build(vmid=vmid, asid=asid, addr=1 << 30),
            CmdTlbiNhAsid.build(vmid=vmid, asid=asid), CmdTlbiS12Vmall.build(vmid=vmid),
            CmdTlbiNsnhAll.build(), CmdCfgiSteRange.build(sid=0, range=31),
            CmdCfgiCdAll.build(sid=sid), CmdStallTerm.build(sid=sid),
            CmdResume.build(sid=sid, stag=random.randrange(4), ac=random.randrange(2)),
            CmdAtcInv.build(sid=sid, size_lg2=52), CmdPriResp.build(sid=sid, resp=2, prgindex=1),
        ])  # fmt: skip
        sync = CmdSync.build(
            cs=random.randrange(3), msiaddress=random.choice([0, self.machine.cmdq, NOWHERE])
        )
        return [made, sync] if random.random() < 0.6 else [made]

    def step(self) -> None:
        """One habit of a device, a driver or a hypervisor."""
        self.random.choice(self._habits)()

    def dma(self) -> None:
        random = self.random
        port = random.choice(self.ports)
        if port.pending < 4:
            place = random.choice([random.randrange(PAGES) * PAGE, 1 << 30])
            ssid = random.choice([None, None, None, None, 1, 9])
            if random.random() < 0.5:
                port.write(place, b"x", ssid=ssid)
            else:
                port.read(place, PAGE, ssid=ssid)

    def submit(self) -> None:
        random, machine = self.random, self.machine
        for command in self.commands():
            if random.random() < 0.4:
                page = random.randrange(PAGES) * PAGE
                scope = TlbScope(random.choice([2, None]), 1, (page, page + PAGE - 1))
                self.smmu.intend(machine.read("CMDQ_PROD"), scope, ConfigScope(1, 2))
            machine.post(command)

    def drain(self) -> None:
        for queue in ("EVENTQ", "PRIQ"):
            self.machine.write(f"{queue}_CONS", self.machine.read(f"{queue}_PROD"))

    def recover(self) -> None:
        self.skip_error()
        self.machine.write("GERRORN", self.machine.read("GERROR"))

    def change(self) -> None:
        self.stream(self.random.randrange(STREAMS))

    def ats(self) -> None:
        random, smmu = self.random, self.smmu
        smmu.ats.request(TranslationRequest(random.randrange(9), random.randrange(9) * PAGE))
        smmu.translated(Access(random.randrange(9), DATA, True))

    def broadcast(self) -> None:
        random = self.random
        page = random.randrange(PAGES) * PAGE
        intent = random.choice([None, (TlbScope(2),)])
        self.smmu.broadcast_tlbi(
            random.choice(OPERATIONS), vmid=random.randrange(4), asid=1, address=page,
            size=random.randrange(9999), intent=intent,
        )  # fmt: skip

    def access(self) -> None:
        access = Access(self.random.choice([1, 2, 300]), self.random.randrange(PAGES) * PAGE, False)
        for _ in range(3):
            self.smmu.translate(access)

    def pages(self) -> None:
        entry = PriEntry.build(sid=self.random.randrange(8), r=1, last=1, prgindex=5)
        for _ in range(2):
            self.smmu.priq.request(entry)

    def sometimes(self) -> None:
        if self.random.random() < 0.2:
            self.rare()

    def rare(self) -> None:
        """What stops a queue or the SMMU."""
        random, machine = self.random, self.machine
        kind = random.randrange(4)
        if kind == 0:
            illegal = max(OPCODES) + 1
            machine.post(CmdSync((illegal, 0)))
        elif kind == 1:
            for port in self.ports:
                if isinstance(port, AtsPort):
                    port.silent = not port.silent
        elif kind == 2:
            machine.write("CR0", 0)
            machine.write("CR2", machine.read("CR2") ^ Cr2.mask("e2h")[0])
            machine.write("CR0", ON.raw)
        else:
            machine.write("CR0", ON.replace(eventqen=0).raw)
            machine.write("CR0", ON.raw)

    def skip_error(self) -> None:
        """Put a CMD_SYNC where the queue stopped."""
        slot = self.machine.read("CMDQ_CONS") & (1 << self.machine.cmdq_log2) - 1
        place = self.machine.cmdq + 16 * slot
        words = self.machine.memory.read_words(place, 1)
        if words is not None and words[0] > max(OPCODES):
            self.machine.memory.write(place, bytes(CmdSync.build()))

    def run(self) -> None:
        for _ in range(400):
            self.step()
            for _ in range(self.random.randrange(4)):
                self.machine.scheduler.step()
