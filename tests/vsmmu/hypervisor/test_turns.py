# SPDX-License-Identifier: BSD-2-Clause
"""N guest rings onto M physical rings: bounded work, turns by guest, trouble stays where it is."""

from __future__ import annotations

import random

import pytest

from vsmmu.arch.commands import (
    CmdCfgiSteRange,
    CmdSync,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    Command,
    Cs,
)
from vsmmu.guest.vcpu import VCpu
from vsmmu.hypervisor.fair_queue import FairQueue
from vsmmu.hypervisor.policy import Policy

from .world import BASE, BUFFER, Guest, World

SYNC = CmdSync.build(cs=Cs.SEV)
TLBI = CmdTlbiNhAsid.build(asid=1)


class Slow:
    """An engine that acts in one of so many of its turns."""

    def __init__(self, engine, every: int) -> None:
        self.name, self._engine, self._every, self._turns = engine.name, engine, every, 0

    def step(self, budget: int) -> int:
        self._turns += 1
        return self._engine.step(budget) if not self._turns % self._every else 0


def turns(world: World, count: int) -> None:
    for _ in range(count):
        before = world.scheduler.now
        world.scheduler.run(1)
        assert world.scheduler.now - before <= world.scheduler.budget


def started(world: World, *guests: Guest) -> None:
    for guest in guests:
        guest.boot()
        for i, _ in enumerate(guest.ports):
            guest.attach(i)
            guest.map(i, 0x10000, BUFFER + 0x1000 * i)
    world.scheduler.budget = 16


def served(world: World, *vcpus: VCpu) -> None:
    """Turns until these have run their programs and the devices have had their DMA."""
    ports = [port for guest in world.guests.values() for port in guest.ports]
    for _ in range(500_000):
        if not any(v.busy for v in vcpus) and not any(p.pending for p in ports):
            return
        world.scheduler.step()
    raise AssertionError("not served")


def unmaps(guest: Guest, vmaster_id: int = 0, within: int = 20_000) -> int:
    """Turns that a map and an unmap take; fails when it is not done within so many."""
    scheduler = guest.world.scheduler
    guest.driver.map(vmaster_id, 0x50000, BUFFER, 0x1000)
    guest.vcpu.start(guest.driver.unmap(vmaster_id, 0x50000, 0x1000))
    first = scheduler.turns
    while guest.vcpu.busy:
        scheduler.step()
        assert scheduler.turns - first < within
    assert guest.vcpu.failure is None
    return scheduler.turns - first


# The queue itself.


@pytest.mark.parametrize(("turn", "share"), [(0, 9), (1, 1), (1, 64), (16, 1)])
def test_a_command_and_its_sync_fit_the_smallest_turn(turn, share):
    """A batch that has to enter in one turn would wait for ever behind a turn of 1."""
    queue, done = FairQueue(turn, share), []
    assert queue.whole >= 2
    batch = [Command((1, 0)), Command((2, 0))]
    queue.submit(1, batch, (), None, lambda: done.append(True))
    ((owner, taken, first, last),) = queue.take(8)
    assert (owner, taken.commands, first, last) == (1, batch, 0, 2)


@pytest.mark.parametrize("seed", range(20))
def test_order_and_bounds_of_random_batches(seed):
    """Each owner's commands in order, once; turn, share and wait as documented."""
    r = random.Random(seed)
    turn, share, size = r.randint(2, 20), r.randint(2, 40), r.choice([2, 16, 64])
    queue, sent, given = FairQueue(turn, share), {}, {}
    inside: list[int] = []
    number = 0
    for _ in range(2000):
        if r.random() < 0.3:
            owner, count = r.randrange(5), r.randint(1, 70)
            batch = [Command((number + i, 0)) for i in range(count)]
            number += count
            given.setdefault(owner, []).extend(batch)
            queue.submit(owner, batch, (), None)
        taken = queue.take(min(r.randrange(20), size - len(inside)))
        run = []
        for owner, batch, first, last in taken:
            sent.setdefault(owner, []).extend(batch.commands[first:last])
            inside += [owner] * (last - first)
            run += [owner] * (last - first)
        assert len(inside) <= size
        assert max(map(inside.count, inside), default=0) <= share
        consumed = r.randrange(len(inside) + 1)
        del inside[:consumed]
        queue.consume(consumed)
    while queue or inside:
        for owner, batch, first, last in queue.take(size - len(inside)):
            sent.setdefault(owner, []).extend(batch.commands[first:last])
            inside += [owner] * (last - first)
        queue.consume(len(inside))
        inside.clear()
    assert sent == given
    assert queue.entered == queue.consumed == {o: len(c) for o, c in given.items()}


@pytest.mark.parametrize("mine", [1, 16, 17, 64])
def test_many_small_batches_do_not_delay_one(mine):
    """7 owners with a thousand batches each: the eighth waits for a turn of each at a time."""
    queue = FairQueue(16, 64)
    for owner in range(1, 8):
        for _ in range(1000):
            queue.submit(owner, [TLBI, SYNC], (), None)
    queue.take(256)
    queue.submit(9, [TLBI] * (mine - 1) + [SYNC], (), None)
    while 9 in queue._waiting:
        queue.consume(8)
        queue.take(8)
    assert queue.waited[9] <= 256 + 7 * 16 * -(-mine // 16)


def test_what_is_forgotten_does_not_enter():
    queue = FairQueue(4, 64)
    queue.submit(1, [TLBI] * 9, (), None)
    queue.submit(2, [SYNC] * 9, (), None)
    assert [(o, last - first) for o, _, first, last in queue.take(6)] == [(1, 4), (2, 2)]
    queue.forget(2)
    queue.forget(3)
    assert [(o, last - first) for o, _, first, last in queue.take(64)] == [(1, 4), (1, 1)]
    assert not queue


# A physical SMMU in trouble.


@pytest.mark.parametrize("seed", range(6))
def test_a_stopped_smmu_blocks_only_who_uses_it(seed):
    """SMMU a consumes nothing any more; g uses it and b, v uses b, w uses c and b."""
    streams = {
        "g": [("a", 1), ("b", 1)],
        "v": [("b", 2)],
        "w": [("c", 1), ("b", 3)],
        "n": [("a", 2)],
    }
    world = World(streams, seed=seed)
    g, v, w, n = (world[x] for x in "gvwn")
    started(world, g, v, w, n)
    world.scheduler.remove(world.smmus["a"].cmdq)
    for guest in (g, n):
        guest.put_without_rest(*[TLBI] * 100, SYNC)
    turns(world, 500)
    assert g.read("CMDQ_CONS") != g.read("CMDQ_PROD")
    for _ in range(5):
        unmaps(v)
        unmaps(w, 1)
    # g's own devices go on too, and its registers answer.
    assert g.read("CR0ACK") == 0xD
    for port in (*g.ports, *v.ports, *w.ports):
        request = port.read(0x10000, 4)
        turns(world, 500)
        assert request.ok
    world.scheduler.add(world.smmus["a"].cmdq)
    assert world.scheduler.run_until_idle()
    assert g.read("CMDQ_CONS") == g.read("CMDQ_PROD")


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_does_not_wait_for_an_smmu_that_is_not_its_own(seed):
    """a is stopped amid an STE update: SMMUEN=0 still takes effect behind b."""
    world = World({"g": [("a", 1), ("b", 1)]}, seed=seed)
    g = world["g"]
    started(world, g)
    world.scheduler.remove(world.smmus["a"].cmdq)
    g.write("CR0", 0xC, rest=False)
    turns(world, 300)
    host = world.hypervisor.hosts["b"]
    bypass = host.read_ste(1)
    g.write("CR0", 0xD, rest=False)
    turns(world, 300)
    assert host.read_ste(1) != bypass
    g.write("CR0", 0xC, rest=False)
    turns(world, 300)
    assert host.read_ste(1) == bypass
    assert g.read("CR0ACK") == 0xD, "complete when every SMMU has followed"
    world.scheduler.add(world.smmus["a"].cmdq)
    assert world.scheduler.run_until_idle()
    assert g.read("CR0ACK") == 0xC


@pytest.mark.parametrize("seed", range(4))
def test_an_smmu_stopped_on_an_error_goes_on_for_all(seed):
    """A command that the SMMU calls illegal, from within: counted, replaced, others complete."""
    world = World({"g": [("a", 1)], "v": [("a", 2)], "w": [("b", 2)]}, seed=seed)
    started(world, *world.guests.values())
    host = world.hypervisor.hosts["a"]
    done: list[int] = []
    for _ in range(3):
        host.submit(77, [Command((0xFF, 0))], lambda: done.append(1))
        unmaps(world["v"])
        unmaps(world["w"])
        unmaps(world["g"])
    assert world.scheduler.run_until_idle()
    assert done == [1, 1, 1]
    assert host.counters["CERROR_ILL"] == 3


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_smmu_slows_only_who_uses_it(seed):
    """a acts once in 1000 turns; one guest keeps it busy, another behind it is still served."""
    world = World({"g": [("a", 1)], "v": [("b", 1)], "n": [("a", 2)]}, seed=seed)
    g, v, n = (world[x] for x in "gvn")
    started(world, g, v, n)
    usual = max(unmaps(v) for _ in range(10))
    scheduler, cmdq = world.scheduler, world.smmus["a"].cmdq
    scheduler.remove(cmdq)
    scheduler.add(Slow(cmdq, 1000))
    g.put_without_rest(*[TLBI, SYNC] * 120)
    turns(world, 1000)
    assert max(unmaps(v) for _ in range(10)) <= 4 * usual
    slow = unmaps(n, within=2_000_000)
    assert slow > 10 * usual
    host = world.hypervisor.hosts["a"]
    assert host.queue.waited[n.domain.domid] <= 64 + 16
    # What the toolstack asks of it is served as well.
    world.hypervisor.deassign(n.vsmmu, n.vsmmu.streams[0])


# A guest with much to do.


@pytest.mark.parametrize("seed", range(6))
def test_a_queue_full_of_syncs(seed):
    """255 CMD_SYNCs, and 127 pairs of a TLBI and one: the victim's wait is a share and a turn."""
    world = World({"g": [("a", 1)], "v": [("a", 2)]}, seed=seed)
    g, v = world["g"], world["v"]
    started(world, g, v)
    host = world.hypervisor.hosts["a"]
    before = host.counters["CMD_SYNC"]
    g.put_without_rest(*[SYNC] * 255)
    assert world.scheduler.run_until_idle()
    assert host.counters["CMD_SYNC"] == before + 255, "records may be behind each of them"
    host.queue.waited.clear()
    for _ in range(6):
        g.put_without_rest(*[TLBI, SYNC] * 127)
        turns(world, 40)
        unmaps(v)
    assert 0 < host.queue.waited[v.domain.domid] <= 64 + 16


def test_a_trap_looks_at_no_stream():
    """SMMUEN and GBPA concern every stream of the guest; the drain finds them, 16 a unit."""
    world = World({"g": [("a", i) for i in range(100)]})
    g = world["g"].boot()
    streams = g.vsmmu.streams.values()
    g.write("CR0", 0xC, rest=False)
    assert not any(s.stale or s.busy for s in streams)
    for unit in range(1, 7):
        assert g.vsmmu.step(1) == 1
        assert sum(s.stale for s in streams) == min(16 * unit, 100)
    assert world.scheduler.run_until_idle()
    g.put_without_rest(CmdCfgiSteRange.build(range=31))
    assert g.vsmmu.step(1) == 1
    assert not any(s.stale for s in streams)
    assert g.vsmmu.step(1) == 1
    assert sum(s.stale for s in streams) == 16
    # A write in between starts over; what is withdrawn meanwhile is left alone.
    g.write("CR0", 0xD, rest=False)
    gone = g.vsmmu.streams[99]
    world.hypervisor.deassign(g.vsmmu, gone)
    assert not gone.stale
    assert world.scheduler.run_until_idle()
    assert g.read("CR0ACK") == 0xD


@pytest.mark.parametrize("seed", range(10))
def test_vcpus_guests_devices_and_smmus_in_any_order(seed):
    """Two vCPUs for each of three guests, devices and three SMMUs; a fast and a slow one."""
    r = random.Random(seed)
    streams = {name: [("a", i), ("b", i), ("c", i)] for i, name in enumerate("ghi")}
    world = World(streams, seed=seed)
    started(world, *world.guests.values())
    for engine in r.sample(world.scheduler.engines, 6):
        world.scheduler.remove(engine)
        world.scheduler.add(Slow(engine, r.randrange(2, 30)))
    others = {}
    for name, guest in world.guests.items():
        others[name] = VCpu(world.hypervisor, guest.domain)
        world.scheduler.add(others[name])

    def reader(guest: Guest, vcpu: VCpu):
        for _ in range(50):
            # Never a torn or impossible value, whatever the other vCPU is about.
            assert vcpu.read(BASE + 0x9C) < 0x200
            yield

    for _ in range(5):
        for name, guest in world.guests.items():
            guest.driver.map(0, 0x50000, BUFFER, 0x1000)
            guest.vcpu.start(guest.driver.unmap(0, 0x50000, 0x1000))
            others[name].start(reader(guest, others[name]))
            for port in guest.ports:
                port.read(0x10000, 64)
        served(world, *(g.vcpu for g in world.guests.values()), *others.values())
    for guest in world.guests.values():
        assert guest.vcpu.failure is None
        assert guest.events() == []
        request = guest.ports[0].read(0x50000, 4)
        served(world)
        assert not request.ok, "unmapped, and invalidated"


# Events.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("faulty", [16, 24, 40])
def test_a_device_waits_for_room_in_a_line(faulty, seed):
    """More devices that do nothing but fault than records are written in a round: 16."""
    streams = {"g": [("a", 1 + i) for i in range(faulty)], "v": [("a", 100)]}
    world = World(streams, smmus="a", seed=seed)
    v, ports = world["v"], world["g"].ports
    world["g"].boot()
    started(world, v)
    rounds, request = len(world.scheduler.engines), None
    for turn in range(200 * rounds):
        for port in ports:
            while port.pending < 100:
                port.read(0x90000, 4)
        world.scheduler.step()
        if turn == 100 * rounds:
            request = v.ports[0].write(0x10000, b"through")
        if request is not None and request.done:
            break
    assert request is not None
    assert request.ok
    # Each device ahead of it takes one room; a random order is some rounds longer.
    assert turn - 100 * rounds <= (-(-faulty // 16) + 2 + 20 * bool(seed)) * rounds


def test_a_rate_allows_a_burst_and_then_one_each_so_many_turns():
    world = World({"g": [("b", 1), ("b", 2)], "v": [("b", 3)]}, policy=Policy(
        device_events=5, device_event_turns=100_000, guest_events=8, guest_event_turns=100_000,
    ))  # fmt: skip
    g, v = world["g"], world["v"]
    started(world, g, v)
    g.ports[0].read(0x90000, 20 * 4096)
    assert world.scheduler.run_until_idle()
    assert len(g.events()) == 5
    assert world.hypervisor.hosts["b"].counters["events"] == 20, "the physical queue is read"
    assert g.read("EVENTQ_PROD") >> 31 != g.read("EVENTQ_CONS") >> 31, "OVFLG tells"
    assert g.vsmmu.counters["event overflow"] == 15
    g.ports[1].read(0x90000, 20 * 4096)
    assert world.scheduler.run_until_idle()
    assert len(g.events()) == 3, "the guest's cap holds for its devices together"
    assert g.vsmmu.refusals.by_reason == {
        "event rate of a device": 15, "event rate of a guest": 17,
    }  # fmt: skip
    v.ports[0].read(0x90000, 4)
    assert world.scheduler.run_until_idle()
    assert v.events() == [("F_TRANSLATION", 0)]
    world.scheduler.turns += 100_000
    g.ports[1].read(0x90000, 20 * 4096)
    assert world.scheduler.run_until_idle()
    assert len(g.events()) == 1


def test_ovflg_tells_of_the_cap():
    world = World({"g": [("b", 1)]}, policy=Policy(device_events=3, device_event_turns=1000))
    g = world["g"]
    started(world, g)
    g.vcpu.handlers.clear()
    g.ports[0].read(0x90000, 3 * 4096)
    assert world.scheduler.run_until_idle()
    assert g.read("EVENTQ_PROD") == 3
    g.ports[0].read(0x90000, 4096)
    assert world.scheduler.run_until_idle()
    assert g.read("EVENTQ_PROD") == 1 << 31 | 3
    world.scheduler.turns += 1000
    g.ports[0].read(0x90000, 4096)
    assert world.scheduler.run_until_idle()
    assert g.read("EVENTQ_PROD") == 1 << 31 | 4, "it goes on although OVFLG is not acknowledged"


def test_the_work_of_one_command_does_not_grow_with_the_streams():
    """A CFGI_STE_RANGE over nothing, a hundred times, on a guest with many streams."""
    world = World({"g": [("a", i) for i in range(100)]})
    g = world["g"].boot()
    units = []
    for count in (1, 100):
        before = world.scheduler.now
        g.put(*[CmdCfgiSteRange.build(sid=0x8000, range=3)] * count, SYNC)
        units.append(world.scheduler.now - before)
    looked = -(-100 // 16)
    assert units[1] - units[0] == 99 * (1 + looked)


def test_addresses_are_not_touched_by_turns():
    """A list longer than share and queue enters in order, with one CMD_SYNC at its end."""
    world = World({"g": [("a", 1)]}, policy=Policy(physical_queue_log2=3))
    started(world, world["g"])
    host, done = world.hypervisor.hosts["a"], []
    before = host.counters["CMD_SYNC"], world.smmus["a"].counters["cmd.CMD_TLBI_NH_VA"]
    host.submit(9, [CmdTlbiNhVa.build(addr=i << 12) for i in range(300)], lambda: done.append(1))
    assert world.scheduler.run_until_idle()
    assert done == [1]
    assert host.counters["CMD_SYNC"] == before[0] + 1
    assert world.smmus["a"].counters["cmd.CMD_TLBI_NH_VA"] == before[1] + 300
