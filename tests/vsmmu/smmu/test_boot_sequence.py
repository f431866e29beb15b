# SPDX-License-Identifier: BSD-2-Clause
"""The whole reset of a driver, write by write, as Linux does it (IHI 0070 §3.11).

Offsets and values are the driver's constants, written out: the layouts have no say here. Each write
of CR0 and IRQ_CTRL is polled until the acknowledgement is equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from vsmmu.arch.registers import Cr0, IrqCtrl
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.smmu import Features

from .machine import Machine

PAGE1 = 0x1_0000
CR0, CR1, CR2, GBPA, IRQ_CTRL, GERROR, GERRORN = 0x20, 0x28, 0x2C, 0x44, 0x50, 0x60, 0x64
STRTAB_BASE, STRTAB_BASE_CFG = 0x80, 0x88
CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x90, 0x98, 0x9C
EVENTQ_BASE, PRIQ_BASE = 0xA0, 0xC0
EVENTQ_PROD, EVENTQ_CONS = PAGE1 + 0xA8, PAGE1 + 0xAC
PRIQ_PROD, PRIQ_CONS = PAGE1 + 0xC8, PAGE1 + 0xCC
GERROR_IRQ_CFG0, EVENTQ_IRQ_CFG0, PRIQ_IRQ_CFG0 = 0x68, 0xB0, 0xD0
RA = 1 << 62
CFGI_ALL, EL2_ALL, NSNH_ALL = (0x04, 0x1F), (0x20, 0), (0x30, 0)
SYNC_SEV = (0x0FC0_2046, 0)
SYNC_MSI = 0x0FC0_1046
MSIS = {"GERROR": 0x68, "EVENTQ": 0xB0, "PRIQ": 0xD0}


class Linux:
    """The driver's side: reads, writes, polls and commands."""

    def __init__(self, machine: Machine, *, kdump: bool = False) -> None:
        self.machine, self.smmu, self.kdump = machine, machine.smmu, kdump
        self.idr0, self.idr1 = self.read(0x0), self.read(0x4)
        self.two_level = bool(self.idr0 >> 27 & 1) and self.idr1 & 63 > 8
        self.msi = bool(self.idr0 >> 13 & 1)
        self.prod = 0
        self.priq = machine.alloc(16 << 8)
        self.doorbells = machine.alloc(64)

    def read(self, offset: int, size: int = 4) -> int:
        return self.smmu.mmio_read(offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.smmu.mmio_write(offset, size, value)
        if offset not in (CR0, CR2, IRQ_CTRL, GBPA, CMDQ_PROD):
            assert self.read(offset, size) == value, hex(offset)

    def acked(self, offset: int, value: int) -> None:
        self.write(offset, value)
        assert self.read(offset + 4) == value, hex(offset)

    def enable(self, bits: int) -> None:
        self.acked(CR0, self.read(CR0) | bits)

    def issue(self, command: tuple[int, int]) -> None:
        """A command and a CMD_SYNC; done when CONS is there, or the sync's own word is 0."""
        slot = self.machine.cmdq + 16 * ((self.prod + 1) % 256)
        sync = (SYNC_MSI, slot) if self.msi else SYNC_SEV
        for words in (command, sync):
            at = self.machine.cmdq + 16 * (self.prod % 256)
            self.machine.memory.write_words(at, words)
            self.prod = (self.prod + 1) % 512
        self.write(CMDQ_PROD, self.prod)
        assert self.machine.scheduler.run_until_idle()
        assert self.read(CMDQ_CONS) == self.prod
        first = self.machine.memory.read(slot, 4)
        assert first == (bytes(4) if self.msi else SYNC_SEV[0].to_bytes(4, "little"))

    def gbpa(self, bits: int) -> None:
        assert not self.read(GBPA) >> 31
        self.write(GBPA, self.read(GBPA) | bits | 1 << 31)
        assert not self.read(GBPA) >> 31

    def reset(self) -> Iterator[str]:
        """The steps; yields what was done, between them a device may try."""
        machine, pri, ats = self.machine, self.idr0 >> 16 & 1, self.idr0 >> 10 & 1
        if self.read(CR0) & 1:
            self.gbpa(1 << 20)
        self.acked(CR0, 0)
        yield "disabled"
        self.write(CR1, 0xD75)
        # E2H on a host with VHE; PTM is written without BTM too, where it is RES0.
        self.write(CR2, 0x7 if self.idr0 >> 9 & 1 else 0x6)
        sidsize = self.idr1 & 63
        self.write(STRTAB_BASE, machine.strtab | RA, 8)
        self.write(STRTAB_BASE_CFG, sidsize | (8 << 6 | 1 << 16 if self.two_level else 0))
        self.write(CMDQ_BASE, machine.cmdq | RA | 8, 8)
        self.smmu.mmio_write(CMDQ_PROD, 4, 0)
        self.write(CMDQ_CONS, 0)
        self.acked(CR0, 0x8)
        yield "cmdq"
        self.issue(CFGI_ALL)
        if self.idr0 >> 9 & 1:
            self.issue(EL2_ALL)
        self.issue(NSNH_ALL)
        self.write(EVENTQ_BASE, machine.eventq | RA | 7, 8)
        self.write(EVENTQ_PROD, 0)
        self.write(EVENTQ_CONS, 0)
        self.enable(0x4)
        yield "eventq"
        if pri:
            self.write(PRIQ_BASE, self.priq | RA | 8, 8)
            self.write(PRIQ_PROD, 0)
            self.write(PRIQ_CONS, 0)
            self.enable(0x2)
        if ats:
            self.enable(0x10)
        self.acked(IRQ_CTRL, 0)
        for index, (name, place) in enumerate(MSIS.items()):
            if name == "PRIQ" and not pri:
                continue
            self.smmu.mmio_write(place, 8, 0)
            if self.msi:
                self.write(place, self.doorbells + 4 * index, 8)
                self.write(place + 8, 0x100 + index)
                self.write(place + 12, 0x1)
        self.acked(IRQ_CTRL, 0x7 if pri else 0x5)
        yield "irqs"
        enables = self.read(CR0)
        self.acked(CR0, (enables & ~0x6 if self.kdump else enables) | 1)
        yield "enabled"


FEATURES = {
    "two levels": Features.default(sidsize=16),
    "linear": Features.default(sidsize=6).replace(st_level=0),
    "everything": Features.everything().replace(sidsize=16),
}


def booted(name: str, *, kdump: bool = False) -> Linux:
    driver = Linux(Machine(FEATURES[name], boot=False), kdump=kdump)
    assert list(driver.reset()) == ["disabled", "cmdq", "eventq", "irqs", "enabled"]
    return driver


@pytest.mark.parametrize(
    ("name", "cr0", "cfg"),
    [("two levels", 0xD, 0x1_0210), ("linear", 0xD, 0x6), ("everything", 0x1F, 0x1_0210)],
)
def test_reset_ends_enabled_without_an_error(name: str, cr0: int, cfg: int) -> None:
    driver = booted(name)
    assert driver.read(CR0 + 4) == cr0
    assert driver.read(STRTAB_BASE_CFG) == cfg
    assert (driver.read(CR1), driver.read(CR2)) == (0xD75, 0x7 if cr0 == 0x1F else 0x3)
    assert driver.read(GERROR) == driver.read(GERRORN) == 0
    assert (driver.read(EVENTQ_PROD), driver.read(EVENTQ_CONS)) == (0, 0)
    counters = driver.smmu.counters
    full = int(name == "everything")
    # A CMD_SYNC that sends a message pulses the wire as well (§4.7.3).
    assert driver.machine.irqs == ["cmdq-sync"] * (3 * full)
    assert {n: c for n, c in counters.items() if n.startswith("cmd.CMD_") and c} == {
        "cmd.CMD_CFGI_STE_RANGE": 1, "cmd.CMD_TLBI_NSNH_ALL": 1, "cmd.CMD_SYNC": 3,
        "cmd.CMD_TLBI_EL2_ALL": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
def test_the_first_attach_after_reset(name: str) -> None:
    """An L1STD without a command, an abort STE, then bypass word by word."""
    driver = booted(name)
    machine, sid = driver.machine, 0x21
    assert machine.go(sid, 0x8F00_0000).status == "fault"
    machine.events()
    ste = machine.strtab + 64 * sid
    if driver.two_level:
        table = machine.alloc(64 << 8)
        machine.memory.write(table + 64 * sid, bytes(Ste.build(v=1)))
        machine.memory.write(machine.strtab, bytes(L1Std.build(span=9, l2ptr=table)))
        ste = table + 64 * sid
    else:
        machine.memory.write(ste, bytes(Ste.build(v=1)))
        driver.issue((sid << 32 | 0x03, 1))
    assert machine.go(sid, 0x8F00_0000).status == "abort"
    machine.memory.write64(ste, 0b1001)
    driver.issue((sid << 32 | 0x03, 1))
    assert machine.go(sid, 0x8F00_0000).status == "bypass"
    assert machine.events() == []


def test_a_second_reset_keeps_devices_out() -> None:
    """GBPA.ABORT is set before SMMUEN goes down, as after kexec; nothing is recorded."""
    driver = booted("two levels")
    steps = Linux(driver.machine).reset()
    for step in steps:
        outcome = driver.machine.go(0x21, 0x8F00_0000)
        assert outcome.status == ("fault" if step == "enabled" else "abort"), step
    assert [e.name for e in driver.machine.events()] == ["C_BAD_STREAMID"]


def test_a_kdump_kernel_takes_no_events() -> None:
    """EVENTQEN and PRIQEN go down with the write that enables: faults of old DMA are dropped."""
    driver = booted("everything", kdump=True)
    assert driver.read(CR0 + 4) == 0x19
    for i in range(5):
        assert driver.machine.go(0x21, i << 12).status == "fault"
    assert driver.machine.scheduler.run_until_idle()
    assert driver.read(EVENTQ_PROD) == 0
    assert driver.smmu.counters["event.dropped"] == 5


def test_messages_come_with_the_first_event() -> None:
    """The doorbells that the reset wrote: the event queue's rings, the others do not."""
    driver = booted("everything")
    assert driver.machine.go(0x21, 0).status == "fault"
    assert driver.machine.scheduler.run_until_idle()
    rung = driver.machine.memory.read(driver.doorbells, 12)
    assert rung == bytes(4) + (0x101).to_bytes(4, "little") + bytes(4)


def test_shutdown() -> None:
    driver = booted("everything")
    driver.acked(CR0, 0)
    assert driver.machine.go(0x21, 0x8F00_0000).status == "bypass"
    assert driver.machine.events() == []


@pytest.mark.parametrize("name", FEATURES)
def test_reset_from_any_state(name: str) -> None:
    """Whatever firmware left in the registers; errors it left are the only thing that stays."""
    for seed in range(20):
        rng = Random(seed)
        machine = Machine(FEATURES[name], boot=False)
        for _ in range(30):
            offset = rng.choice(
                [CR0, CR1, CR2, GBPA, IRQ_CTRL, STRTAB_BASE, CMDQ_BASE, CMDQ_PROD, CMDQ_CONS,
                 EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS, PRIQ_BASE]
            )  # fmt: skip
            machine.smmu.mmio_write(offset, 4, rng.getrandbits(32))
        # Nothing has run: the engines of this machine are stepped by the driver's first wait.
        driver = Linux(machine)
        assert len(list(driver.reset())) == 5
        assert Cr0(driver.read(CR0 + 4)).smmuen
        assert IrqCtrl(driver.read(IRQ_CTRL + 4)).eventq_irqen
        assert driver.read(GERROR) == 0
