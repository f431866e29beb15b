# SPDX-License-Identifier: BSD-2-Clause
"""Attacks that need a particular moment: a race with an update, a full queue, a withdrawal.

The plain items of the attack corpus are in `tests/vsmmu/hypervisor/test_vsmmu.py`; here engines are
stepped one by one where the order is the attack. docs/attacks.md lists the corpus.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiSteRange,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
)
from vsmmu.arch.registers import Gbpa
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.policy import Policy

from .attack import (
    CFGI,
    SYNC,
    TLBI,
    UNMAPPED,
    once_at_a_time,
    post,
    records,
    settle,
)
from .world import BUFFER, World

# Bounded work.


@pytest.mark.parametrize("budget", [1, 2, 7, 16])
def test_no_engine_does_more_than_its_budget(budget):
    world = World({"g": [("a", 1), ("b", 1), ("c", 1)]})
    g = world["g"].boot()
    g.attach(0, 1, 2)
    g.vcpu.handlers.clear()
    for port in g.ports:
        port.read(UNMAPPED, 300 * 4096)
    commands = [CmdTlbiNhVa.build(addr=i << 12) for i in range(100)]
    post(g, *commands, CmdCfgiSteRange.build(range=31), *commands[:50], SYNC)
    quiet = 0
    while quiet < 2:
        done = [(engine.name, engine.step(budget)) for engine in world.scheduler.engines]
        assert [pair for pair in done if pair[1] > budget] == []
        quiet = 0 if any(n for _, n in done) else quiet + 1
    assert g.read("CMDQ_CONS") == g.read("CMDQ_PROD")


def test_a_large_batch_is_not_overtaken_for_ever():
    """A slow SMMU's queue holds 64 entries; five owners refill it as soon as some are free."""
    world = World({"g": [("a", 1)]}, policy=Policy(physical_queue_log2=6))
    host = world.hypervisor.hosts["a"]
    done: list[int] = []

    def again(owner: int) -> None:
        host.submit(owner, [TLBI] * 15, lambda: again(owner))

    for owner in (101, 102, 103, 104, 105):
        again(owner)
    host.step(64)
    host.submit(7, [CmdTlbiNhAsid.build(asid=i) for i in range(63)], lambda: done.append(1))
    for _ in range(200):
        host.step(64)
        world.smmus["a"].cmdq.step(8)
    assert done == [1]


def test_a_physical_queue_of_two_entries_is_enough(world):
    world = World({"g": [("a", 1), ("b", 1)]}, policy=Policy(physical_queue_log2=1), seed=4)
    g = world["g"].boot()
    g.attach(0, 1)
    g.map(0, 0x10000, BUFFER)
    assert g.dma(0, 0x10000, b"x").ok
    g.put(*[CmdTlbiNhVa.build(asid=1, addr=i << 12) for i in range(70)], SYNC)
    assert g.read("CMDQ_CONS") == g.read("CMDQ_PROD")


def test_a_guest_that_never_rests_does_not_hold_up_hypercalls(world, guest):
    """Neither others' streams nor its own can be kept by staying busy."""

    def spin():
        on = 0xD
        while True:
            on ^= 1
            guest.write("CR0", on, rest=False)
            yield

    guest.vcpu.start(spin())
    guest.ports[1].read(UNMAPPED, 1 << 30)
    other, before = world["o"], world.scheduler.now
    stream = other.vsmmu.streams[0]
    world.hypervisor.deassign(other.vsmmu, stream)
    assert world.hypervisor.assign(other.vsmmu, 3, "b", 0x701).vmaster_id == 3
    world.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[0])
    assert world.hypervisor.owner("a", 0x600) is None
    assert world.hypervisor.hosts["a"].read_ste(0x600).config == SteConfig.ABORT
    assert world.scheduler.now - before < 20_000


# CMD_SYNC.


def test_a_sync_waits_for_the_events_before_it(world, guest):
    """§4.7.3: records of accesses terminated before it are in the guest's queue, or gone."""
    guest.ports[0].read(UNMAPPED, 4)
    prod = post(guest, TLBI, SYNC)
    writer = guest.vsmmu.event_writer
    rest = [e for e in world.scheduler.engines if e is not writer]
    for _ in range(20):
        for engine in rest:
            engine.step(16)
    assert guest.read("EVENTQ_PROD") == 0
    assert guest.read("CMDQ_CONS") != prod
    settle(world)
    assert guest.read("CMDQ_CONS") == prod
    assert records(guest) == [(0x10, 0)]


@pytest.mark.parametrize("order", range(40))
def test_events_come_before_the_sync_in_any_order(order):
    world = World({"g": [("a", 1)]}, seed=1000 + order)
    g = world["g"].boot()
    g.attach(0)
    g.vcpu.handlers.clear()
    request = g.ports[0].read(UNMAPPED, 20 * 4096)
    while not request.done:
        g.ports[0].step(1)
    world.scheduler.budget = 1 + order % 3
    prod = post(g, TLBI, SYNC)
    while g.read("CMDQ_CONS") != prod:
        world.scheduler.step()
    assert records(g) == [(0x10, 0)] * 20


def test_a_sync_that_waits_is_forgotten_when_the_queue_is_disabled(world, guest):
    """The queue is set up anew while the physical SMMU is slow: CONS is the new queue's."""
    slow = world.smmus["b"].cmdq
    world.scheduler.remove(slow)
    guest.put(TLBI, SYNC)
    for name, value in (("CR0", 5), ("CMDQ_PROD", 0), ("CMDQ_CONS", 0), ("CR0", 0xD)):
        guest.write(name, value)
    world.scheduler.add(slow)
    settle(world)
    assert guest.read("CMDQ_CONS") == 0


def test_a_sync_alone_completes(guest):
    guest.put(SYNC)
    guest.put(SYNC, SYNC, SYNC)
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")


# Enables that change while something is under way.


def test_events_that_wait_are_gone_when_the_queue_is_disabled(world, guest):
    """§6.3.9: what is not in memory when EVENTQEN goes to 0 never comes."""
    guest.ports[0].read(UNMAPPED, 4)
    writer = guest.vsmmu.event_writer
    for _ in range(20):
        for engine in world.scheduler.engines:
            if engine is not writer:
                engine.step(16)
    guest.write("CR0", 9, rest=False)
    guest.write("CR0", 0xD)
    assert guest.read("EVENTQ_PROD") == 0


def test_gbpa_abort_while_smmuen_goes_down(world, guest):
    """Accepted between the shadows and CR0ACK, it must hold when it is acknowledged."""
    guest.write("CR0", 0xC, rest=False)
    drain, slow = guest.vsmmu, world.hypervisor.hosts["a"]
    drain.step(16)
    for _ in range(200):
        for engine in world.scheduler.engines:
            if engine is not drain:
                engine.step(16)
    assert slow.read_ste(0x600).config == SteConfig.S2
    assert guest.read("CR0ACK") & 1, "not acknowledged yet"
    guest.write("GBPA", Gbpa.build(abort=1, update=1).raw)
    assert (guest.read("CR0ACK"), Gbpa(guest.read("GBPA")).update) == (0xC, 0)
    for vmaster_id in (0, 1):
        assert [o.status for o in guest.dma(vmaster_id, BUFFER, 4).outcomes] == ["abort"]


@pytest.mark.parametrize("how", [{"iova": 1 << 50}, {"iova": BUFFER, "ssid": 3}])
def test_no_record_while_smmuen_is_0(world, guest, how):
    """§7.3: of what happens then only F_UUT is recorded, and GBPA has no SubstreamIDs."""
    guest.write("CR0", 0xC)
    guest.ports[0].read(how["iova"], 4, ssid=how.get("ssid"))
    settle(world)
    assert guest.read("EVENTQ_PROD") == 0


def test_a_record_of_the_old_ste_survives_its_repair(world, guest):
    """The access met V=0; that the guest repairs the STE before anyone reads the record is late."""
    guest.ste(0, Ste())
    guest.put(CFGI, SYNC)
    guest.ports[0].read(0x10000, 4)
    guest.ports[0].step(1)
    world.smmus["a"].eventq.step(1)
    guest.ste(0, Ste.build(v=1, config=SteConfig.BYPASS))
    post(guest, CFGI, SYNC)
    guest.vsmmu.step(16)
    assert guest.vsmmu.streams[0].busy
    settle(world)
    assert records(guest) == [(0x04, 0)]
    assert guest.dma(0, BUFFER, b"x").ok


def test_shadow_updates_and_toggles_end_in_the_last_state(world, guest):
    """SMMUEN, GBPA and CFGI_ALL on top of each other, at every distance.

    At no time are two updates of one STE under way: their phases would mix.
    """
    busy: set[tuple[str, int]] = set()
    for host in guest.vsmmu.hosts:
        host.update_ste = once_at_a_time(host, busy)
    for distance in range(30):
        guest.write("CR0", 0xC, rest=False)
        world.scheduler.run(distance)
        guest.write("GBPA", Gbpa.build(abort=distance & 1, update=1).raw, rest=False)
        post(guest, CmdCfgiSteRange.build(range=31), SYNC)
        world.scheduler.run(distance // 2)
        guest.write("CR0", 0xD)
        assert guest.read("CR0ACK") == 0xD
        assert guest.dma(0, 0x10000, b"data").ok
        assert guest.dma(1, 0x10000, b"data").ok
    assert records(guest) == []
