# SPDX-License-Identifier: BSD-2-Clause
"""Two guests that do anything at random, beside one whose DMA has to go on undisturbed.

Physical StreamIDs are all at or above 0x600, so one in a guest's record would be seen.
"""

from __future__ import annotations

import random

import pytest

from vsmmu.arch.commands import OPCODES, CmdCfgiSte
from vsmmu.arch.registers import BY_NAME, REGISTERS
from vsmmu.arch.stream_table import Ste
from vsmmu.smmu.port import Request

from .world import BASE, BUFFER, MACHINE, MACHINE_SIZE, RAM, RAM_SIZE, Guest, World

STREAMS = {
    "evil": [("a", 0x600), ("b", 0x600)],
    "victim": [("a", 0x700), ("b", 0x601), ("c", 0x600)],
    "worse": [("b", 0x700), ("c", 0x701)],
}
LEAF = 0x743
MASK = (1 << 64) - 1


class Attack:
    """One seeded run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(STREAMS, seed=seed)
        for guest in self.world.guests.values():
            guest.boot()
            for vmaster_id in range(len(guest.ports)):
                guest.attach(vmaster_id)
                guest.map(vmaster_id, 0x10000, BUFFER + 0x1000 * vmaster_id)
        self.pending: list[tuple[Guest, Request]] = []
        self.moves = (
            self._register, self._anywhere, self._commands, self._commands, self._ste,
            self._context, self._ram, self._dma, self._dma,
        )  # fmt: skip

    def step(self) -> None:
        guest = self.world[self.random.choice(("evil", "worse"))]
        self.random.choice(self.moves)(guest)
        for _ in range(self.random.randrange(40)):
            engine_budget = self.world.scheduler.budget
            assert self.world.scheduler.step() <= engine_budget
        self.check()

    def check(self) -> None:
        for guest, request in self.pending:
            for outcome in request.outcomes:
                if outcome.status in ("ok", "bypass"):
                    assert outcome.pa is not None
                    owned = guest.domain.owned
                    assert any(base <= outcome.pa < base + size for base, size in owned)
        self.pending = [pair for pair in self.pending if not pair[1].done]
        for name in ("evil", "worse"):
            assert all(event.sid < 0x600 for event in self.world[name].driver.events)

    def victim_goes_on(self) -> None:
        """Its DMA ends within a bounded number of turns, with the right bytes, silently."""
        victim, turns = self.world["victim"], 0
        for vmaster_id, port in enumerate(victim.ports):
            data = self.random.randbytes(32)
            request = port.write(0x10010, data)
            while not request.done:
                self.world.scheduler.step()
                turns += 1
                assert turns < 10_000
            assert request.ok, request.outcomes
            assert victim.memory.read(BUFFER + 0x1000 * vmaster_id + 0x10, 32) == data
        assert (victim.driver.events, victim.driver.gerrors) == ([], [])
        assert victim.vcpu.failure is None

    # Moves.

    def _value(self) -> int:
        r = self.random
        return r.choice([
            0, 1, 0xFFFF_FFFF, r.getrandbits(64), r.getrandbits(20), 1 << r.randrange(64),
            RAM + r.randrange(RAM_SIZE) & ~0xFFF, MACHINE + r.randrange(MACHINE_SIZE),
        ])  # fmt: skip

    def _trap(self, guest: Guest, offset: int, size: int, value: int | None = None) -> None:
        self.world.hypervisor.trap(guest.domain, BASE + offset, size, value)

    def _register(self, guest: Guest) -> None:
        register, value = self.random.choice(REGISTERS), self._value()
        if register.name == "CR0" and self.random.random() < 0.7:
            value = self.random.choice([0xD, 0x9, 0xC, 8, 1, 5, 0])
        self._trap(guest, register.offset, register.width // 8, value)

    def _anywhere(self, guest: Guest) -> None:
        for value in (self._value(), None):
            size = self.random.choice([1, 2, 4, 8])
            self._trap(guest, self.random.randrange(0x40000), size, value)

    def _ring(self, guest: Guest, words: list[tuple[int, int]]) -> None:
        prod, ring = guest.vsmmu.regs["CMDQ_PROD"], guest.driver._cmdq
        for pair in words:
            guest.memory.write_words(ring.address(prod), pair)
            prod = ring.advance(prod)
        self._trap(guest, BY_NAME["CMDQ_PROD"].offset, 4, prod)
        if guest.vsmmu.regs.gerror_active:
            gerror = guest.vsmmu.regs["GERROR"]
            self._trap(guest, BY_NAME["GERRORN"].offset, 4, gerror)

    def _commands(self, guest: Guest) -> None:
        r, words = self.random, []
        for _ in range(r.randrange(1, 12)):
            opcode = r.choice([*OPCODES, r.randrange(256)])
            fields = r.choice([0, r.getrandbits(56) << 8, r.randrange(4) << 32])
            words.append((opcode | fields, r.choice([0, 1, self._value()])))
        self._ring(guest, words)

    def _ste(self, guest: Guest) -> None:
        r, vmaster_id = self.random, self.random.randrange(len(guest.ports))
        own = guest.driver.contexts[vmaster_id].cd
        pointer = r.choice([own, RAM + r.randrange(RAM_SIZE), self._value()]) & ~0x3F
        ste = Ste.build(
            v=r.choice([0, 1, 1, 1]), config=r.randrange(8), s1fmt=r.randrange(4),
            s1ctxptr=pointer & (1 << 52) - 1, s1cdmax=r.choice([0, 0, 1, 5, 31]),
            s1dss=r.randrange(4),
        )  # fmt: skip
        words = list(ste.words)
        if r.random() < 0.3:
            words[r.randrange(8)] ^= 1 << r.randrange(64)
        address = guest.driver.ste_address(vmaster_id)
        for i in r.sample(range(8), 8):
            guest.memory.write64(address + 8 * i, words[i])
        command = CmdCfgiSte.build(sid=vmaster_id, leaf=1)
        self._ring(guest, [(command.words[0], command.words[1])])

    def _context(self, guest: Guest) -> None:
        r = self.random
        context = guest.driver.contexts[r.randrange(len(guest.ports))]
        if r.random() < 0.5:
            guest.memory.write64(context.cd + 8 * r.randrange(8), self._value())
            return
        table = context.tables.ttb + r.randrange(4) * 0x1000
        leaf = r.choice([self._value() | 3, self._value() & ~0xFFF & MASK | LEAF])
        guest.memory.write64(table + 8 * r.choice([0, 16, r.randrange(512)]), leaf)

    def _ram(self, guest: Guest) -> None:
        guest.memory.write64(RAM + self.random.randrange(RAM_SIZE) & ~7, self._value())

    def _dma(self, guest: Guest) -> None:
        r, port = self.random, self.random.choice(guest.ports)
        if port.pending >= 100:
            return
        iova = r.choice([0x10000 + r.randrange(0x1000), RAM + r.randrange(2 * RAM_SIZE),
                         r.getrandbits(48), self._value()])  # fmt: skip
        size = min(r.randrange(1, 300), (1 << 64) - iova)
        request = port.write(iova, b"\xee" * size) if r.random() < 0.5 else port.read(iova, size)
        self.pending.append((guest, request))


def attack(seed: int, steps: int) -> None:
    run = Attack(seed)
    for number in range(steps):
        run.step()
        if number % 25 == 0:
            run.victim_goes_on()
    # Guests that stop acting leave a machine that comes to rest.
    for name in ("evil", "worse"):
        run.world[name].vcpu.handlers.clear()
    assert run.world.scheduler.run_until_idle(300_000)
    run.check()
    run.victim_goes_on()
    counters = [host.counters for host in run.world.hypervisor.hosts.values()]
    assert not any(name.startswith("CERROR") for c in counters for name in c)


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_victim_is_not_disturbed(seed):
    attack(seed, 300)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_a_victim_is_not_disturbed_soak(seed):
    attack(seed, 2000)
