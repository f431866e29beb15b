# SPDX-License-Identifier: BSD-2-Clause
"""Machines whose engines sleep beside the same machines with every engine asked.

The same things happen to both, at random: what guests, devices and the toolstack can do, all of it
hostile. Round robin asks each in its turn there, which is the order this is to be equal to; in a
random order the sleepers are asked besides. `_nobody_oversleeps` fails a test that finds one with
work. Whenever the machines rest they are the same in memory, registers, counters and time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from vsmmu.arch.commands import (
    CmdAtcInv,
    CmdCfgiCd,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhVa,
    Command,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.events import CBadSte
from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import BY_NAME, Cerror, CmdqCons, Cr0, QueueBase, StallModel
from vsmmu.arch.stream_table import Eats, Ste
from vsmmu.guest.vcpu import Program
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.ats import AtsPort
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort

from .cost import calls, commands
from .world import BASE, BUFFER, RAM, Guest, World

STREAMS = {
    "g": [("a", 0x600), ("a", 0x601), ("b", 0x600)],
    "h": [("a", 0x700), ("b", 0x700)],
    "i": [("c", 0x600)],
}
FEATURES = Features.default(sidsize=16).replace(
    stall_model=StallModel.STALL_AND_TERMINATE, stall_max=6, term_model=0, ats=1, pri=1, priqs=8,
)  # fmt: skip
ENABLED = Cr0.build(smmuen=1, eventqen=1, cmdqen=1, priqen=1, atschk=1).raw
CMDQ_CONS = BY_NAME["CMDQ_CONS"]
PRIQEN = Cr0.mask("priqen")[0]
PRIQ = RAM + 0x8000


class Machine:
    """A world of three guests; what happens to it follows from `seed`."""

    def __init__(self, seed: int, *, ask_all: bool) -> None:
        self.random = random = Random(seed)
        policy = Policy(
            stalls=True, ats=True, pri=True, stalls_per_vsmmu=2,
            commands_per_flush=random.choice([2, 64]),
            commands_per_turn=random.choice([2, 16]),
            commands_in_queue=random.choice([2, 64]),
            pending_events=random.choice([2, 64]),
            device_events=random.choice([2, 128]),
            pending_page_requests=random.choice([2, 64]),
            physical_queue_log2=random.choice([2, 5, 8]),
        )  # fmt: skip
        order = random.choice([0, seed + 1])
        self.world = World(
            STREAMS, seed=order, ask_all=ask_all, policy=policy, features=FEATURES,
            caching=random.choice(["none", "normal", "hostile"]),
        )  # fmt: skip
        self.scheduler = self.world.scheduler
        self.scheduler.budget = random.choice([1, 3, 16])
        self.devices: list[DevicePort] = []
        for guest in self.world.guests.values():
            self._boot(guest)

    def _boot(self, guest: Guest) -> None:
        """As its driver does, with stalls where the device can wait and ATS where it has an ATC."""
        guest.boot()
        for sid, port in enumerate(guest.ports):
            guest.attach(sid)
            guest.map(sid, 0x10000, BUFFER + 0x1000 * sid)
            if sid != 1:
                at = guest.driver.contexts[sid].cd
                words = guest.memory.read_words(at, Cd.dwords)
                assert words is not None
                assert guest.memory.write_words(at, Cd(words).replace(s=1).words)
                guest.put(CmdCfgiCd.build(sid=sid, leaf=1), CmdSync.build())
                self.devices.append(port)
                continue
            words = guest.memory.read_words(guest.driver.ste_address(sid), Ste.dwords)
            assert words is not None
            guest.ste(sid, Ste(words).replace(eats=Eats.FULL))
            guest.put(CmdCfgiSte.build(sid=sid, leaf=1), CmdSync.build())
            pages = self.random.random() < 0.7
            device = AtsPort(f"{port.name} ats", port.smmu, port.sid, pages=pages)
            self.scheduler.add(device)
            self.devices.append(device)
        self.write(guest, "PRIQ_BASE", QueueBase.build(log2size=2, addr=PRIQ).raw)
        self.write(guest, "CR0", ENABLED)

    def write(self, guest: Guest, name: str, value: int) -> None:
        register = next(r for r in EVERY_REGISTER if r.name == name)
        self.world.hypervisor.trap(guest.domain, BASE + register.offset, register.width // 8, value)

    # What may happen.

    def happens(self) -> None:
        moves: list[tuple[int, Callable[[Guest], object]]] = [
            (8, self.commands), (8, self.dma), (4, self.register), (3, self.enable),
            (3, self.program), (3, self.page_request), (2, self.silence), (2, self.hypercall),
            (2, self.consume), (1, self.reassign), (1, self.time),
        ]  # fmt: skip
        weights, kinds = zip(*moves, strict=True)
        move = self.random.choices(kinds, weights)[0]
        move(self.random.choice(list(self.world.guests.values())))

    def commands(self, guest: Guest) -> None:
        random = self.random
        sid, tag = random.randrange(4), random.randrange(4)
        kinds: list[Callable[[], Command]] = [
            lambda: CmdTlbiNhVa.build(asid=1, addr=0x10000),
            lambda: CmdTlbiNhAll.build(),
            lambda: CmdCfgiSte.build(sid=sid, leaf=random.randrange(2)),
            lambda: CmdCfgiSteRange.build(range=31),
            lambda: CmdResume.build(sid=sid, stag=tag, ac=random.randrange(2)),
            lambda: CmdStallTerm.build(sid=sid),
            lambda: CmdAtcInv.build(sid=sid, size_lg2=52),
            lambda: CmdPriResp.build(sid=sid, prgindex=tag, resp=random.randrange(3)),
            lambda: CmdSync.build(cs=random.randrange(3)),
            lambda: CmdSync.build(cs=1),
        ]
        if random.random() < 0.03:
            kinds.append(lambda: CmdSync.build(cs=3))
        batch = [random.choice(kinds)() for _ in range(random.choice([1, 3, 20]))]
        guest.put_without_rest(*batch)

    def dma(self, guest: Guest) -> None:
        device = self.random.choice(self.devices)
        for _ in range(self.random.choice([1, 2, 12])):
            if device.pending < 200:
                device.read(self.random.choice([0x10000, 0x10000, 0x9000, 1 << 50]), 8)

    def register(self, guest: Guest) -> None:
        register = self.random.choice(EVERY_REGISTER)
        self.write(guest, register.name, self.random.choice([0, 1, 0xD, 1 << 31, 0x4000_0002]))

    def enable(self, guest: Guest) -> None:
        if self.random.random() < 0.3:
            self.write(guest, "CR0", self.random.choice([0, ENABLED & ~1, ENABLED & ~4]))
        else:
            self.write(guest, "GERRORN", guest.vsmmu.regs["GERROR"])
            self.write(guest, "CR0", ENABLED)

    def program(self, guest: Guest) -> None:
        """A vCPU that looks for an end, and does not wait for it."""

        def looks() -> Program:
            for _ in range(self.random.randrange(9)):
                guest.vcpu.read(BASE + CMDQ_CONS.offset)
                yield

        guest.vcpu.start(looks())

    def page_request(self, guest: Guest) -> None:
        for _ in range(self.random.choice([1, 1, 9])):
            device, index = self.random.choice(self.devices), self.random.randrange(4)
            entry = PriEntry.build(sid=device.sid, prgindex=index, r=1, last=1, addr=0x5000)
            device.smmu.priq.request(entry)

    def silence(self, guest: Guest) -> None:
        for device in self.devices:
            if isinstance(device, AtsPort):
                device.silent = self.random.random() < 0.3

    def hypercall(self, guest: Guest) -> None:
        calls = self.world.hypervisor.hypercalls
        ipa = BUFFER + 0x1000 * self.random.randrange(4)
        if self.random.random() < 0.5:
            calls.decrease_reservation(guest.domain, ipa, 0x1000)
        else:
            calls.populate_physmap(guest.domain, ipa, 0x1000)

    def consume(self, guest: Guest) -> None:
        """Records read late, or never: the guest's queues are full now and then."""
        regs = guest.vsmmu.regs
        self.write(guest, "EVENTQ_CONS", regs["EVENTQ_PROD"])
        self.write(guest, "PRIQ_CONS", regs["PRIQ_PROD"])

    def reassign(self, guest: Guest) -> None:
        hv, vsmmu = self.world.hypervisor, guest.vsmmu
        stream = self.random.choice(list(vsmmu.streams.values()))
        hv.deassign(vsmmu, stream)
        self.units(self.random.randrange(20))
        try:
            hv.assign(vsmmu, stream.vmaster_id, stream.host.path, stream.pmaster_id)
        except HypercallError:
            # Its endpoint was silent: back to the test's machine all the same.
            hv._quarantined.clear()
            hv.assign(vsmmu, stream.vmaster_id, stream.host.path, stream.pmaster_id)

    def time(self, guest: Guest) -> None:
        self.scheduler.turns += self.random.choice([1, 1000])

    # Running it.

    def units(self, count: int) -> None:
        """So many units of work more, or all there is."""
        end = self.scheduler.now + count
        for _ in range(10_000):
            if self.scheduler.now >= end or not self.scheduler.awake:
                return
            self.scheduler.step()

    def rest(self) -> None:
        """With page requests answered: a device whose request found no room asks for ever.

        So does a driver whose commands cannot be read: it acknowledges the error and tries again.
        """
        for guest in self.world.guests.values():
            self.write(guest, "CR0", guest.vsmmu.regs["CR0"] & ~PRIQEN)
        if not self.scheduler.run_until_idle():
            errors = {CmdqCons(g.vsmmu.regs["CMDQ_CONS"]).err for g in self.world.guests.values()}
            assert Cerror.ABT in errors

    def state(self) -> dict[str, Any]:
        world, hv = self.world, self.world.hypervisor
        found: dict[str, Any] = {
            "time": (self.scheduler.now, self.scheduler.turns),
            "pages": dict(world.memory.page), "memory": bytes(world.memory._arena),
            "kept": dict(hv.kept),
        }  # fmt: skip
        for name, smmu in world.smmus.items():
            found[name] = (dict(smmu.regs.values), dict(smmu.counters), len(smmu.stalls))
            found[f"driver {name}"] = dict(hv.hosts[name].counters)
        for name, guest in world.guests.items():
            vsmmu = guest.vsmmu
            found[name] = (
                dict(vsmmu.regs.values), dict(vsmmu.counters), dict(vsmmu.physical),
                vsmmu.idle, vsmmu.event_writer.retired, guest.vcpu.interrupts,
            )  # fmt: skip
        for device in self.devices:
            found[device.name] = device.pending
        return found


def run(seed: int, rounds: int) -> tuple[Machine, Machine]:
    machines = Machine(seed, ask_all=False), Machine(seed, ask_all=True)
    for number in range(rounds):
        for machine in machines:
            for _ in range(machine.random.randrange(12)):
                machine.happens()
                machine.units(machine.random.choice([0, 1, 3, 40]))
            machine.rest()
        quick, slow = (machine.state() for machine in machines)
        for part, value in slow.items():
            assert quick[part] == value, (seed, number, part)
    return machines


@pytest.mark.parametrize("seed", range(3))
def test_who_sleeps_misses_nothing(seed):
    for machine in run(seed, 6):
        assert not machine.scheduler.overslept


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 64))
def test_who_sleeps_misses_nothing_soak(seed):
    run(seed, 30)


def test_nearly_everybody_sleeps_at_rest():
    """Who is awake is asked for nothing in every round: nobody, however much there is."""
    quick, slow = run(1, 2)
    assert quick.scheduler.awake == ()
    assert slow.scheduler.awake == ()


@pytest.mark.parametrize(("guests", "smmus", "busy"), [(8, 3, 8), (8, 1, 1), (1, 20, 1)])
def test_a_command_costs_as_many_calls_beside_others(guests, smmus, busy):
    """Other guests' commands and idle parts of the machine add nothing to it."""
    one, many = (commands(*size)(calls) for size in ((1, 1, 1), (guests, smmus, busy)))
    assert many == pytest.approx(one, rel=0.02)


def test_a_sync_is_woken_by_the_last_record_that_it_waits_for(world):
    guest = world["g"].boot()
    guest.quiet()
    world.scheduler.budget = 1
    for _ in range(40):
        guest.vsmmu.raise_event(CBadSte.build(sid=0))
    guest.put(CmdSync.build())
    assert guest.vsmmu.event_writer.retired == 40
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")
