# SPDX-License-Identifier: BSD-2-Clause
"""Interrupts of a vSMMU as messages, and the ways a CMD_SYNC completes."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdSync, CmdTlbiNhAll, Command, Cs
from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import CmdqCons, Cr0, Gerror, Idr0, IrqCtrl, QueueBase
from vsmmu.hypervisor.domain import Doorbell
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features

from .world import BASE, MACHINE, NOWHERE, RAM, RAM_SIZE, Guest, World

SMMU = Features.default(sidsize=16).replace(msi=1, ats=1, pri=1, priqs=8)
POLICY = Policy(msi=True, ats=True, pri=True)
MAILBOX = RAM + 0x2000
OFFSETS = {register.name: register.offset for register in EVERY_REGISTER}
WIDTHS = {register.name: register.width // 8 for register in EVERY_REGISTER}
STREAMS = {"g": [("a", 0x600)], "o": [("a", 0x700)]}
IRQS = IrqCtrl.build(gerror_irqen=1, eventq_irqen=1)


@pytest.fixture
def machine() -> World:
    return World(STREAMS, policy=POLICY, features=SMMU)


@pytest.fixture
def guest(machine: World) -> Guest:
    g = machine["g"].boot()
    g.vcpu.handlers.clear()
    return g


def write(guest: Guest, name: str, value: int) -> None:
    hv = guest.world.hypervisor
    assert hv.trap(guest.domain, BASE + OFFSETS[name], WIDTHS[name], value) == 0
    assert guest.world.scheduler.run_until_idle()


def message(guest: Guest, source: str, address: int, data: int) -> None:
    """Have a source's interrupt be a message, and enable both."""
    write(guest, "IRQ_CTRL", 0)
    write(guest, f"{source}_IRQ_CFG0", address)
    write(guest, f"{source}_IRQ_CFG1", data)
    write(guest, "IRQ_CTRL", IRQS.replace(priq_irqen=1).raw)


def word(guest: Guest, address: int = MAILBOX) -> int:
    data = guest.memory.read(address, 4)
    assert data is not None
    return int.from_bytes(data, "little")


def active(guest: Guest) -> Gerror:
    return Gerror(guest.read("GERROR") ^ guest.read("GERRORN"))


def consumed(guest: Guest) -> bool:
    return CmdqCons(guest.read("CMDQ_CONS")).rd == CmdqCons(guest.read("CMDQ_PROD")).rd


def sync(address: int, data: int = 0x55AA1234) -> Command:
    return CmdSync.build(cs=Cs.IRQ, msiaddress=address, msidata=data)


def test_messages_are_offered_where_policy_and_hardware_have_them() -> None:
    for policy, smmu, offered in (
        (POLICY, SMMU, 1), (Policy(), SMMU, 0), (POLICY, SMMU.replace(msi=0), 0),
    ):  # fmt: skip
        g = World({"g": [("a", 1)]}, policy=policy, features=smmu)["g"]
        assert Idr0(g.read("IDR0")).msi == offered
        write(g, "GERROR_IRQ_CFG0", MAILBOX)
        assert g.read("GERROR_IRQ_CFG0") == MAILBOX * offered


@pytest.mark.parametrize("cs", [Cs.NONE, Cs.SEV, Cs.IRQ])
def test_every_way_of_completion_moves_cons(guest: Guest, cs: Cs) -> None:
    guest.put(CmdTlbiNhAll.build(), CmdSync.build(cs=cs, msiaddress=MAILBOX, msidata=7))
    assert consumed(guest)
    assert word(guest) == (7 if cs == Cs.IRQ else 0)
    assert active(guest).raw == 0


def test_a_reserved_way_is_illegal(guest: Guest) -> None:
    guest.put(CmdSync.build(cs=3, msiaddress=MAILBOX, msidata=7))
    assert not consumed(guest)
    assert active(guest).cmdq_err
    assert word(guest) == 0


def test_the_message_comes_after_cons_and_the_physical_syncs(guest: Guest) -> None:
    """The word that Linux polls lies in the command itself."""
    prod = guest.read("CMDQ_PROD")
    slot = guest.driver._cmdq.address(guest.driver._cmdq.advance(prod))
    seen = []
    bus = guest.memory.write32
    host = guest.world.hypervisor.hosts["a"]

    def watch(ipa: int, value: int) -> bool:
        seen.append((consumed(guest), host._entered == host._consumed, ipa))
        return bus(ipa, value)

    guest.domain.memory.write32 = watch  # type: ignore[method-assign]
    guest.put(CmdTlbiNhAll.build(), sync(slot + 4, 0))
    assert seen == [(True, True, slot + 4)]
    assert word(guest, slot + 4) == 0


def test_without_messages_the_address_of_a_sync_is_not_used() -> None:
    g = World(STREAMS, features=SMMU)["g"].boot()
    g.put(sync(MAILBOX))
    assert consumed(g)
    assert word(g) == 0
    assert g.vsmmu.interrupts.syncs == 1


def test_no_message_reaches_what_is_not_the_guests(machine: World, guest: Guest) -> None:
    """Machine RAM, the other guest's, tables of the hypervisor, registers, nothing at all."""
    theirs = machine["o"].domain
    tables = [int(guest.domain.stage2.root), machine.hypervisor.hosts["a"].table.base]
    places = [MACHINE, next(iter(theirs.owned))[0], *tables, BASE, RAM + RAM_SIZE, NOWHERE, 1 << 47]
    before = {place: machine.memory.read(place, 64) for place in places}
    for place in places:
        guest.put(sync(place))
        assert consumed(guest)
        assert active(guest).msi_cmdq_abt_err
        guest.write("GERRORN", guest.read("GERROR"))
    assert {place: machine.memory.read(place, 64) for place in places} == before


def test_a_message_at_the_edge_of_memory(guest: Guest) -> None:
    last = RAM + RAM_SIZE - 4
    guest.put(sync(last))
    assert word(guest, last) == 0x55AA1234
    assert not active(guest).raw


def test_a_read_only_page_takes_no_message(guest: Guest) -> None:
    pa = guest.domain.stage2.to_pa(MAILBOX)
    assert pa is not None
    guest.domain.stage2.map(MAILBOX & ~0xFFF, pa & ~0xFFF, 0x1000, write=False)
    guest.put(sync(MAILBOX))
    assert active(guest).msi_cmdq_abt_err
    assert word(guest) == 0


def test_events_and_errors_send_theirs_and_leave_the_line_low(guest: Guest) -> None:
    message(guest, "EVENTQ", MAILBOX, 0x11)
    message(guest, "GERROR", MAILBOX + 8, 0x22)
    guest.attach(0)
    assert (word(guest), word(guest, MAILBOX + 8)) == (0, 0)
    guest.dma(0, 0x9000, b"x")
    assert word(guest) == 0x11
    guest.put(Command((0, 0)))
    assert word(guest, MAILBOX + 8) == 0x22
    assert not any(guest.vsmmu.levels.values())


def test_one_message_until_the_queue_was_empty(guest: Guest) -> None:
    message(guest, "EVENTQ", MAILBOX, 0x11)
    guest.attach(0)
    for _ in range(3):
        guest.dma(0, 0x9000, b"x")
    assert guest.vsmmu.counters["msi.eventq"] == 1
    guest.write("EVENTQ_CONS", guest.read("EVENTQ_PROD"))
    guest.dma(0, 0x9000, b"x")
    assert guest.vsmmu.counters["msi.eventq"] == 2


def test_a_message_that_is_not_enabled_is_not_sent(guest: Guest) -> None:
    message(guest, "EVENTQ", MAILBOX, 0x11)
    write(guest, "IRQ_CTRL", 0)
    guest.attach(0)
    guest.dma(0, 0x9000, b"x")
    assert word(guest) == 0


@pytest.mark.parametrize("lo", [0, 1])
def test_page_requests_send_theirs(guest: Guest, lo: int) -> None:
    """Where the queue was empty, or with PRIQ_IRQ_CFG2.LO for the last of each group."""
    write(guest, "PRIQ_BASE", QueueBase.build(log2size=4, addr=RAM + 0x8000).raw)
    write(guest, "IRQ_CTRL", 0)
    write(guest, "PRIQ_IRQ_CFG2", lo << 31)
    message(guest, "PRIQ", MAILBOX, 0x33)
    write(guest, "CR0", Cr0(guest.read("CR0")).replace(priqen=1).raw)
    smmu = guest.world.smmus["a"]
    for index, last in enumerate((0, 1, 1)):
        entry = PriEntry.build(sid=0x600, prgindex=index, r=1, last=last)
        smmu.priq.request(entry)
        assert guest.world.scheduler.run_until_idle()
    assert word(guest) == 0x33
    assert guest.vsmmu.counters["msi.priq"] == (2 if lo else 1)
    assert not guest.vsmmu.levels["priq"]


@pytest.mark.parametrize(
    ("source", "error"), [("EVENTQ", "msi_eventq_abt_err"), ("GERROR", "msi_gerror_abt_err")]
)
def test_a_message_that_aborts_is_an_error_of_the_guest(
    guest: Guest, source: str, error: str
) -> None:
    message(guest, source, NOWHERE, 1)
    guest.attach(0)
    guest.dma(0, 0x9000, b"x")
    guest.put(Command((0, 0)))
    assert getattr(active(guest), error)


def test_the_doorbell_of_the_virtual_its(guest: Guest, machine: World) -> None:
    """Its address alone, and the vSMMU's own name with it; another guest's is not there."""
    rung: list[tuple[int, int]] = []

    def deliver(base: int, data: int) -> bool:
        rung.append((base, data))
        return data != 13

    guest.domain.doorbell = Doorbell(0x0809_0040, deliver)
    guest.put(sync(0x0809_0040, 5))
    assert rung == [(BASE, 5)]
    assert not active(guest).raw
    guest.put(sync(0x0809_0044, 5))
    assert active(guest).msi_cmdq_abt_err
    guest.write("GERRORN", guest.read("GERROR"))
    guest.put(sync(0x0809_0040, 13))
    assert active(guest).msi_cmdq_abt_err
    other = machine["o"].boot()
    other.vcpu.handlers.clear()
    other.put(sync(0x0809_0040, 5))
    assert active(other).msi_cmdq_abt_err
    assert len(rung) == 2
