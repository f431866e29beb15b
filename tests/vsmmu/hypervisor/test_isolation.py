# SPDX-License-Identifier: BSD-2-Clause
"""Hostile guests beside a victim, with streams that change hands; checked at every access.

Every translation is judged when it happens: what reached memory reached a page of the domain that
has the stream at that moment, and a stream that nobody has reaches nothing. Physical StreamIDs
are above 0x600 and vMasterIDs below 0x20, so that one cannot pass for the other. Half of the runs
are blind: there the guests write no machine address anywhere, so that one in a record is a leak.
"""

from __future__ import annotations

import random

import pytest

from vsmmu.arch.commands import OPCODES, CmdCfgiSte, CmdSync
from vsmmu.arch.events import Event
from vsmmu.arch.registers import BY_NAME, REGISTERS
from vsmmu.arch.stream_table import Ste
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.smmu import Smmu

from .world import (
    BASE,
    BUFFER,
    MACHINE,
    MACHINE_SIZE,
    RAM,
    RAM_SIZE,
    Guest,
    World,
)

STREAMS = {
    "evil": [("a", 0x600), ("b", 0x600), ("b", 0x610)],
    "victim": [("a", 0x700), ("b", 0x601), ("c", 0x600)],
    "worse": [("b", 0x700), ("c", 0x601), ("b", 0x611)],
}
# These change hands; both hostile guests have a vSMMU that SMMU b stands behind.
MOVING = (("b", 0x610), ("b", 0x611))
HOSTILE = ("evil", "worse")
# Guest addresses that look like the machine's are only those at its very start (1 << 31).
SECRET = range(MACHINE + 0x20_0000, MACHINE + MACHINE_SIZE)
MASK = (1 << 64) - 1
STEPS, SOAK_STEPS = 500, 10_000
ENABLES = BY_NAME["CR0"].offset, BY_NAME["GERRORN"].offset, BY_NAME["CMDQ_PROD"].offset


class Attack:
    """One seeded run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.blind = bool(seed & 1)
        self.world = World(STREAMS, seed=seed)
        self.hypervisor = self.world.hypervisor
        self.ports: dict[tuple[str, int], DevicePort] = {}
        self.translations = self.events = self.moves = 0
        for guest in self.world.guests.values():
            guest.boot()
            for vmaster_id, port in enumerate(guest.ports):
                guest.attach(vmaster_id)
                guest.map(vmaster_id, 0x10000, BUFFER + 0x1000 * vmaster_id, 0x1000)
                self.ports[port.smmu.name, port.sid] = port
        for name, smmu in self.world.smmus.items():
            smmu.translate = self._judged(name, smmu)
        for guest in self.world.guests.values():
            guest.vsmmu.event_writer.add = self._inspected(guest)
        self.world.scheduler.budget = self.random.choice([1, 4, 16, 64])

    # Judges.

    def _judged(self, name: str, smmu: Smmu):
        original = smmu.translate

        def translate(access):
            outcome = original(access)
            self.translations += 1
            if outcome.pa is not None:
                owner = self.hypervisor._owner.get((name, access.sid))
                assert owner is not None, f"{name} {access.sid:#x} reached {outcome.pa:#x}"
                owned = owner[0].domain.owned
                assert any(base <= outcome.pa < base + size for base, size in owned)
            return outcome

        return translate

    def _inspected(self, guest: Guest):
        original = guest.vsmmu.event_writer.add

        def add(event: Event) -> None:
            self.events += 1
            assert guest is not self.world["victim"], event
            assert event.sid in self._ids(guest), event
            assert not any(event.reserved()), event
            for field in ("ipa", "fetchaddr"):
                assert not (self.blind and getattr(event, field, 0) in SECRET), event
            original(event)

        return add

    def _ids(self, guest: Guest) -> set[int]:
        """vMasterIDs of the streams a guest has, those on their way out included."""
        owners = self.hypervisor._owner.values()
        return {stream.vmaster_id for vsmmu, stream in owners if vsmmu is guest.vsmmu}

    def step(self) -> None:
        guest = self.world[self.random.choice(HOSTILE)]
        moves = (
            self._register, self._switch, self._anywhere, self._commands, self._commands,
            self._ste, self._ste, self._context, self._ram, self._dma, self._dma,
        )  # fmt: skip
        self.random.choice(moves)(guest)
        if self.random.random() < 0.01:
            self._move()
        self._run(self.random.randrange(40))

    def _run(self, turns: int) -> None:
        scheduler = self.world.scheduler
        for _ in range(turns):
            before = scheduler.now
            scheduler.run(1)
            assert scheduler.now - before <= scheduler.budget

    def victim_goes_on(self) -> None:
        victim, turns = self.world["victim"], 0
        for vmaster_id, port in enumerate(victim.ports):
            data = self.random.randbytes(32)
            request = port.write(0x10010, data)
            while not request.done:
                self._run(1)
                turns += 1
                assert turns < 20_000
            assert request.ok, request.outcomes
            assert victim.memory.read(BUFFER + 0x1000 * vmaster_id + 0x10, 32) == data

    def victim_invalidates(self) -> None:
        """Its CMD_SYNC completes too, and what it unmapped is gone for its device."""
        victim, turns = self.world["victim"], 0
        victim.driver.map(0, 0x40000, BUFFER, 0x1000)
        program = victim.driver.unmap(0, 0x40000, 0x1000)
        victim.vcpu.start(program)
        while victim.vcpu.busy:
            self._run(1)
            turns += 1
            assert turns < 20_000
        assert victim.vcpu.failure is None

    # Moves.

    def _value(self) -> int:
        r = self.random
        machine = RAM if self.blind else MACHINE + r.randrange(MACHINE_SIZE)
        return r.choice([
            0, 1, 0xFFFF_FFFF, r.getrandbits(64), r.getrandbits(20), 1 << r.randrange(64),
            RAM + r.randrange(RAM_SIZE) & ~0xFFF, machine,
        ])  # fmt: skip

    def _trap(self, guest: Guest, offset: int, size: int, value: int | None = None) -> None:
        self.hypervisor.trap(guest.domain, BASE + offset, size, value)

    def _register(self, guest: Guest) -> None:
        register = self.random.choice(REGISTERS)
        self._trap(guest, register.offset, self.random.choice([4, 8]), self._value())

    def _switch(self, guest: Guest) -> None:
        """Enables on and off, GBPA, errors acknowledged: what races with updates."""
        r = self.random
        for _ in range(r.randrange(1, 4)):
            self._trap(guest, 0x20, 4, r.choice([0xD, 0xD, 0xC, 9, 5, 0]))
            if r.random() < 0.3:
                self._trap(guest, 0x44, 4, 1 << 31 | r.getrandbits(1) << 20)
            self._trap(guest, 0x64, 4, guest.vsmmu.regs["GERROR"])
            self._run(r.randrange(6))

    def _anywhere(self, guest: Guest) -> None:
        for value in (self._value(), None):
            size = self.random.choice([1, 2, 3, 4, 8])
            self._trap(guest, self.random.randrange(0x40000), size, value)

    def _ring(self, guest: Guest, words: list[tuple[int, ...]]) -> None:
        """Into the ring its registers describe now, wherever that is."""
        prod, ring = guest.vsmmu.regs["CMDQ_PROD"], guest.vsmmu._cmdq
        for pair in words:
            guest.memory.write_words(ring.address(prod), pair)
            prod = ring.advance(prod)
        self._trap(guest, BY_NAME["CMDQ_PROD"].offset, 4, prod)
        if guest.vsmmu.regs.gerror_active:
            self._trap(guest, BY_NAME["GERRORN"].offset, 4, guest.vsmmu.regs["GERROR"])

    def _commands(self, guest: Guest) -> None:
        r, words = self.random, []
        for _ in range(r.randrange(1, 80 if r.random() < 0.2 else 12)):
            opcode = r.choice([*OPCODES, 0x12, 0x46, r.randrange(256)])
            fields = r.choice([0, r.getrandbits(56) << 8, r.randrange(4) << 32])
            words.append((opcode | fields, r.choice([0, 1, self._value()])))
        self._ring(guest, words)

    def _ste(self, guest: Guest) -> None:
        r = self.random
        sid = r.choice([*guest.vsmmu.streams, r.randrange(32)])
        contexts = guest.driver.contexts
        cds = [contexts[i].cd for i in contexts]
        pointer = r.choice([*cds, *cds, RAM + r.randrange(RAM_SIZE), self._value()]) & ~0x3F
        ste = Ste.build(
            v=r.choice([0, 1, 1, 1]), config=r.choice([0, 4, 5, 5, 5, r.randrange(8)]),
            s1fmt=r.randrange(4), s1ctxptr=pointer & (1 << 52) - 1, s1dss=r.randrange(4),
            s1cdmax=r.choice([0, 0, 1, 5, 31]), s1cir=r.randrange(4), shcfg=r.randrange(4),
        )  # fmt: skip
        words = list(ste.words)
        if r.random() < 0.3:
            words[r.randrange(8)] ^= 1 << r.randrange(64)
        address = guest.driver.ste_address(sid)
        for i in r.sample(range(8), 8):
            guest.memory.write64(address + 8 * i, words[i])
        self._ring(guest, [CmdCfgiSte.build(sid=sid, leaf=1).words, CmdSync.build(cs=0).words])

    def _context(self, guest: Guest) -> None:
        r, contexts = self.random, guest.driver.contexts
        context = contexts[r.choice(list(contexts))]
        if r.random() < 0.5:
            guest.memory.write64(context.cd + 8 * r.randrange(8), self._value())
            return
        table = context.tables.ttb + r.randrange(4) * 0x1000
        leaf = r.choice([self._value() | 3, self._value() & ~0xFFF & MASK | 0x743])
        guest.memory.write64(table + 8 * r.choice([0, 16, r.randrange(512)]), leaf)

    def _ram(self, guest: Guest) -> None:
        guest.memory.write64(RAM + self.random.randrange(RAM_SIZE) & ~7, self._value())

    def _dma(self, guest: Guest) -> None:
        r = self.random
        mine = [self.ports[s.host.path, s.pmaster_id] for s in guest.vsmmu.streams.values()]
        port = r.choice(mine)
        if port.pending >= 50:
            return
        iova = r.choice([0x10000 + r.randrange(0x1000), RAM + r.randrange(2 * RAM_SIZE),
                         r.getrandbits(48), self._value()])  # fmt: skip
        size = min(r.randrange(1, 300), (1 << 64) - iova)
        ssid = r.choice([None, None, None, r.randrange(1 << 20)])
        if r.random() < 0.5:
            port.write(iova, b"\xee" * size, ssid=ssid)
        else:
            port.read(iova, size, ssid=ssid, instr=r.random() < 0.1)

    def _move(self) -> None:
        """A stream goes from one hostile guest to the other, its device still busy."""
        place = self.random.choice(MOVING)
        old, stream = self.hypervisor._owner[place]
        self.hypervisor.deassign(old, stream)
        assert self.hypervisor.owner(*place) is None
        new = next(self.world[n].vsmmu for n in HOSTILE if self.world[n].vsmmu is not old)
        free = next(i for i in range(3, 32) if i not in new.streams)
        self._run(self.random.randrange(20))
        self.hypervisor.assign(new, free, *place)
        self.moves += 1

    def rest(self) -> None:
        """Guests that stop acting leave a machine that comes to rest."""
        for name in HOSTILE:
            self.world[name].vcpu.handlers.clear()
        assert self.world.scheduler.run_until_idle(300_000)


def attack(seed: int, steps: int) -> Attack:
    run = Attack(seed)
    for number in range(steps):
        run.step()
        if number % 25 == 0:
            run.victim_goes_on()
        if number % 100 == 99:
            run.victim_invalidates()
            run._move()
    run.rest()
    run.victim_goes_on()
    victim = run.world["victim"]
    assert (victim.driver.events, victim.driver.gerrors) == ([], [])
    for host in run.hypervisor.hosts.values():
        assert not [name for name in host.counters if name.startswith("CERROR")]
        assert host.idle
    return run


@pytest.mark.parametrize("seed", range(1, 11))
def test_whoever_has_a_stream_bounds_its_reach(seed):
    run = attack(seed, STEPS)
    assert run.translations > 50
    assert run.events > 10
    assert run.moves >= STEPS // 100


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 120))
def test_whoever_has_a_stream_bounds_its_reach_soak(seed):
    attack(seed, SOAK_STEPS)
