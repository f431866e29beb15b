# SPDX-License-Identifier: BSD-2-Clause
"""Attacks that need a particular moment: a race with an update, a full queue, a withdrawal.

The plain items of the attack corpus are in `tests/vsmmu/hypervisor/test_vsmmu.py`; here engines are
stepped one by one where the order is the attack.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPrefetchConfig,
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    Command,
)
from vsmmu.arch.events import FWalkEabt
from vsmmu.arch.registers import EventqProd, Gbpa, Gerror, QueueBase
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.events import Kept, to_guest
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.pages import OutOfMemoryError
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features

from .world import BASE, BUFFER, NOWHERE, RAM, RAM_SIZE, World

CFGI = CmdCfgiSte.build(sid=0, leaf=1)
SYNC = CmdSync.build(cs=0)
TLBI = CmdTlbiNhAll.build()
CMDQ_ERR = Gerror.mask("cmdq_err")[0]
EVENTQ_ABT = Gerror.mask("eventq_abt_err")[0]
UNMAPPED = 0x90000


@pytest.fixture
def world() -> World:
    return World({"g": [("a", 0x600), ("b", 0x600)], "o": [("b", 0x700)]})


@pytest.fixture
def guest(world):
    """`g`, booted, both streams attached and mapped at 0x10000, interrupts unhandled."""
    g = world["g"].boot()
    for vmaster_id in (0, 1):
        g.attach(vmaster_id)
        g.map(vmaster_id, 0x10000, BUFFER + 0x1000 * vmaster_id)
    g.vcpu.handlers.clear()
    return g


def post(guest, *commands: Command) -> int:
    """Commands into the queue, PROD moved, nothing stepped; returns PROD."""
    prod = guest.read("CMDQ_PROD")
    for command in commands:
        guest.memory.write_words(guest.driver._cmdq.address(prod), command.words)
        prod = guest.driver._cmdq.advance(prod)
    guest.driver._prod = prod
    guest.write("CMDQ_PROD", prod, rest=False)
    return prod


def engines(world, *parts: str):
    """The engines whose names contain one of these."""
    return [e for e in world.scheduler.engines if any(part in e.name for part in parts)]


def settle(world) -> None:
    assert world.scheduler.run_until_idle()


def records(guest) -> list[tuple[int, int]]:
    """(number, StreamID) of the records in the guest's queue, straight from its memory."""
    ring, out = guest.driver._eventq, []
    cons = 0
    while ring.clip(cons) != ring.clip(guest.read("EVENTQ_PROD")):
        word = guest.memory.read64(ring.address(cons))
        out.append((word & 0xFF, word >> 32))
        cons = ring.advance(cons)
    return out


def line(guest) -> bool:
    """Whether a cause of the guest's interrupt stands."""
    return any(guest.vsmmu.levels.values())


def once_at_a_time(host, busy: set[tuple[str, int]]):
    """`update_ste` of a host that does not stand two updates of one StreamID."""
    original = host.update_ste

    def update(owner, sid, new, done):
        place = host.path, sid
        assert place not in busy
        busy.add(place)

        def ended():
            busy.remove(place)
            done()

        original(owner, sid, new, ended)

    return update


def sent(guest, smmu: str) -> list[Command]:
    """A list that fills with what the hypervisor submits to a physical SMMU from now on."""
    host, seen = guest.world.hypervisor.hosts[smmu], []
    original = host.submit

    def submit(owner, commands, done=None):
        seen.extend(commands)
        original(owner, commands, done)

    host.submit = submit
    return seen


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
        for _ in range(distance):
            world.scheduler.step()
        guest.write("GBPA", Gbpa.build(abort=distance & 1, update=1).raw, rest=False)
        post(guest, CmdCfgiSteRange.build(range=31), SYNC)
        for _ in range(distance // 2):
            world.scheduler.step()
        guest.write("CR0", 0xD)
        assert guest.read("CR0ACK") == 0xD
        assert guest.dma(0, 0x10000, b"data").ok
        assert guest.dma(1, 0x10000, b"data").ok
    assert records(guest) == []


# What reaches the physical queue.


def test_reserved_bits_of_a_command_stay_with_the_guest(guest):
    """An SMMU may take a reserved bit for CERROR_ILL, and the physical queue is everybody's."""
    seen = sent(guest, "a")
    vmid = guest.domain.vmid
    dirt = (0xFFFF_FFFF_FFFF_F0FF | 0xB00,) * 2
    plain = [
        CmdTlbiNhVa.build(asid=1, addr=0x5000),
        CmdTlbiNhVaa.build(addr=0x5000),
        CmdTlbiNhAsid.build(asid=1),
        CmdCfgiCd.build(sid=0),
    ]
    for command in plain:
        low, high = command.words
        named = ~command.claimed[0], ~command.claimed[1]
        guest.put(type(command)((low | dirt[0] & named[0], high | dirt[1] & named[1])), SYNC)
    assert [c for c in seen if any(c.reserved())] == []
    assert seen == [
        CmdTlbiNhVa.build(vmid=vmid, asid=1, addr=0x5000),
        CmdTlbiNhVaa.build(vmid=vmid, addr=0x5000),
        CmdTlbiNhAsid.build(vmid=vmid, asid=1),
        CmdCfgiCd.build(sid=0x600),
    ]


def test_range_fields_without_a_range_are_not_passed_on(guest):
    seen = sent(guest, "a")
    guest.put(CmdTlbiNhVa.build(asid=1, addr=0x5000, num=9, scale=63, ttl=3), SYNC)
    assert seen == [CmdTlbiNhVa.build(vmid=guest.domain.vmid, asid=1, addr=0x5000)]


def test_a_cd_beyond_the_substreams_has_no_effect(guest):
    seen = sent(guest, "a")
    guest.put(CmdCfgiCd.build(sid=0, ssid=5), SYNC)
    assert seen == []


def test_a_withdrawn_streams_commands_do_not_follow_it(world, guest):
    """Taken, not yet flushed, when the stream is withdrawn: the StreamID is not the guest's."""
    post(guest, CmdCfgiCd.build(sid=1))
    assert guest.vsmmu.step(1) == 1
    seen = sent(guest, "b")
    stream = guest.vsmmu.streams[1]
    guest.vsmmu.withdraw(stream)
    settle(world)
    assert [c for c in seen if getattr(c, "sid", None) == 0x600] == []


def test_an_event_of_the_old_owner_is_not_given_to_the_new_one(world, guest):
    other = world["o"].boot()
    guest.ports[1].read(0xABCD_0000, 4)
    guest.ports[1].step(1)
    world.smmus["b"].eventq.step(1)
    world.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[1])
    world.hypervisor.assign(other.vsmmu, 5, "b", 0x600)
    settle(world)
    assert other.events() == []
    assert records(guest) == [(0x10, 1)]


def test_nothing_cached_of_a_withdrawn_stream_serves_the_next_owner(world, guest):
    assert guest.dma(1, 0x10000, b"old").ok
    stream = guest.vsmmu.streams[1]
    world.hypervisor.deassign(guest.vsmmu, stream)
    with pytest.raises(HypercallError, match=r"^vMasterID 0x1 is not assigned to vsmmu g@"):
        world.hypervisor.deassign(guest.vsmmu, stream)
    other = world["o"].boot()
    world.hypervisor.assign(other.vsmmu, 5, "b", 0x600)
    other.attach(5)
    request = guest.dma(1, 0x10000, b"new")
    assert [o.status for o in request.outcomes] == ["fault"]
    assert other.events() == [("F_TRANSLATION", 5)]
    assert guest.memory.read(BUFFER + 0x1000, 3) == b"old"


def test_a_stream_that_comes_back_starts_without_what_was_cached(world, guest):
    """The tables changed meanwhile; its owner could invalidate nothing while it was away."""
    assert guest.dma(1, 0x10000, b"x").ok
    stream = guest.vsmmu.streams[1]
    world.hypervisor.deassign(guest.vsmmu, stream)
    guest.driver.contexts[1].tables.unmap(0x10000, 0x1000)
    world.hypervisor.assign(guest.vsmmu, 1, "b", 0x600)
    assert not guest.dma(1, 0x10000, b"x").ok
    assert records(guest) == [(0x10, 1)]


def test_machine_addresses_in_registers_reach_nothing(world, guest):
    """Every structure of the guest's at the address of its neighbour's memory."""
    other = world["o"]
    ((place, _),) = other.domain.owned
    before = other.memory.read(RAM, 0x1000)
    guest.write("CR0", 0)
    queue = QueueBase.build(addr=place, log2size=4).raw
    for name, value in (
        ("CMDQ_BASE", queue), ("EVENTQ_BASE", queue), ("EVENTQ_PROD", 0), ("EVENTQ_CONS", 0),
        ("CMDQ_CONS", 0), ("CMDQ_PROD", 1), ("STRTAB_BASE", place), ("STRTAB_BASE_CFG", 8),
    ):  # fmt: skip
        guest.write(name, value)
    guest.write("CR0", 0xD)
    assert guest.read("CMDQ_CONS") == 2 << 24, "CERROR_ABT"
    guest.dma(0, 0x10000, b"x")
    assert guest.vsmmu.regs.gerror_active == CMDQ_ERR | EVENTQ_ABT
    assert other.memory.read(RAM, 0x1000) == before


def test_the_fetch_address_of_a_walk_abort_is_the_guests_or_zero(guest):
    """The record holds a physical address; the hardware model gives none in a nested stream."""
    stream, domain = guest.vsmmu.streams[0], guest.domain
    ((place, _),) = domain.owned
    ((foreign, _),) = guest.world["o"].domain.owned
    for fetchaddr, seen in ((place + 0x128, RAM + 0x128), (foreign, 0), (0x1000, 0)):
        event = FWalkEabt.build(sid=0x600, cls=1, fetchaddr=fetchaddr, inputaddr=5, reason=9)
        wanted = FWalkEabt.build(sid=0, cls=1, fetchaddr=seen, inputaddr=5)
        assert to_guest(event, stream, domain) == wanted
    event = FWalkEabt.build(sid=0x600, s2=1, cls=2, fetchaddr=place)
    assert to_guest(event, stream, domain) == Kept("stage 2 walk")


# What the toolstack may ask for.


def test_a_refused_assignment_leaves_nothing(world):
    hv, vsmmu = world.hypervisor, world["o"].vsmmu
    with pytest.raises(HypercallError):
        hv.assign(vsmmu, 0, "b", 0x900)
    assert hv.owner("b", 0x900) is None
    assert list(vsmmu.streams) == [0]


@pytest.mark.parametrize("oas", [32, 36, 42, 48])
def test_smmus_with_small_addresses(oas):
    """S2T0SZ must fit IDR5.OAS, or every STE is ILLEGAL."""
    g = World({"g": [("a", 1)]}, features=Features.default(sidsize=16, oas=oas))["g"].boot()
    assert g.domain.stage2.ipa_bits == min(oas, 40)
    g.attach(0)
    g.map(0, 0x10000, BUFFER)
    assert g.dma(0, 0x10000, b"x").ok


def test_ram_beyond_the_address_size_is_refused():
    world = World({}, features=Features.default(sidsize=16, oas=32))
    with pytest.raises(HypercallError, match=r"^RAM 0x200000000\+0x1000 is beyond 32 bits$"):
        world.hypervisor.create_domain("g", [(0x2_0000_0000, 0x1000)])


def test_a_domain_that_does_not_fit_leaves_the_machines_ram(world):
    pages = world.hypervisor.pages
    before = pages.left
    for _ in range(3):
        with pytest.raises(OutOfMemoryError):
            world.hypervisor.create_domain("big", [(RAM, 0x40_0000), (1 << 32, 1 << 36)])
        assert pages.left == before
    assert len(world.hypervisor.domains) == 2


# The rest of the corpus.


def test_a_queue_that_aborted_goes_on_where_it_is_told(guest):
    """CERROR_ABT: the guest points the queue at its RAM, acknowledges, and it is consumed."""
    guest.write("CR0", 0)
    good = guest.read("CMDQ_BASE")
    guest.write("CMDQ_BASE", QueueBase.build(addr=NOWHERE, log2size=8).raw)
    guest.write("CMDQ_PROD", 2)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 8)
    assert guest.read("CMDQ_CONS") == 2 << 24
    guest.write("CR0", 0)
    for i in range(2):
        guest.memory.write_words(guest.driver._cmdq.address(i), SYNC.words)
    guest.write("CMDQ_BASE", good)
    guest.write("CR0", 8)
    assert guest.read("CMDQ_CONS") & 0xFFFFF == 0, "toggling CMDQEN is no acknowledgement"
    guest.write("GERRORN", guest.read("GERROR"))
    assert guest.read("CMDQ_CONS") & 0xFFFFF == 2


def test_an_event_queue_that_aborted_goes_on_after_the_acknowledgement(world, guest):
    good = guest.read("EVENTQ_BASE")
    for base, acknowledge in ((QueueBase.build(addr=NOWHERE, log2size=4).raw, False), (good, True)):
        guest.write("CR0", 9)
        guest.write("EVENTQ_BASE", base)
        guest.write("EVENTQ_PROD", 0)
        guest.write("EVENTQ_CONS", 0)
        guest.write("CR0", 0xD)
        guest.dma(0, UNMAPPED, 4)
        assert guest.vsmmu.regs.gerror_active == EVENTQ_ABT
        assert guest.read("EVENTQ_PROD") == 0
        if acknowledge:
            guest.write("GERRORN", guest.read("GERROR"))
    guest.dma(1, UNMAPPED, 4)
    assert records(guest) == [(0x10, 1)]


def test_a_queue_half_inside_the_guests_memory(world, guest):
    """The ring's last entries are outside: what is inside is written, then the abort."""
    end = RAM + RAM_SIZE
    guest.write("CR0", 9)
    guest.write("EVENTQ_BASE", QueueBase.build(addr=end - 32, log2size=0).raw)
    guest.write("EVENTQ_PROD", 0)
    guest.write("EVENTQ_CONS", 0)
    guest.write("CR0", 0xD)
    for _ in range(3):
        guest.dma(0, UNMAPPED, 4)
    prod = EventqProd(guest.read("EVENTQ_PROD"))
    assert (prod.wr, prod.ovflg, guest.vsmmu.regs.gerror_active) == (1, 1, 0)
    assert guest.memory.read64(end - 32) == 0x10


def test_an_address_is_invalidated_alone(guest):
    """TLBI by VA: the neighbouring page stays cached."""
    tables = guest.driver.contexts[0].tables
    guest.map(0, 0x11000, BUFFER + 0x4000)
    for iova in (0x10000, 0x11000):
        assert guest.dma(0, iova, b"x").ok
    tables.unmap(0x10000, 0x2000)
    guest.put(CmdTlbiNhVa.build(asid=guest.driver.contexts[0].asid, addr=0x10000), SYNC)
    assert not guest.dma(0, 0x10000, b"x").ok
    assert guest.dma(0, 0x11000, b"x").ok, "still cached: nobody invalidated it"


def test_another_asid_is_not_invalidated(guest):
    guest.run(guest.driver.unmap(0, 0x20000, 0x1000))
    assert guest.dma(0, 0x10000, b"x").ok
    guest.driver.contexts[0].tables.unmap(0x10000, 0x1000)
    guest.put(CmdTlbiNhAsid.build(asid=guest.driver.contexts[1].asid), SYNC)
    assert guest.dma(0, 0x10000, b"x").ok
    guest.put(CmdTlbiNhAsid.build(asid=guest.driver.contexts[0].asid), SYNC)
    assert not guest.dma(0, 0x10000, b"x").ok


def test_a_guests_flush_does_not_touch_another_guests_entries(world, guest):
    other = world["o"].boot()
    other.attach(0)
    other.map(0, 0x10000, BUFFER)
    assert other.dma(0, 0x10000, b"x").ok
    other.driver.contexts[0].tables.unmap(0x10000, 0x1000)
    for vmid in (0, other.domain.vmid, guest.domain.vmid):
        guest.put(
            CmdTlbiNhAll.build(vmid=vmid),
            CmdTlbiNhAsid.build(vmid=vmid, asid=1),
            CmdTlbiNhVaa.build(vmid=vmid, addr=0x10000),
            Command((0x30, 0)),
            SYNC,
        )
    assert other.dma(0, 0x10000, b"x").ok, "its entry is still cached"


def test_a_substream_is_not_there(world, guest):
    guest.ports[0].read(0x10000, 4, ssid=7)
    settle(world)
    (record,) = records(guest)
    assert record == (0x08, 0)


def test_global_errors_raise_the_line_only_if_enabled(guest):
    guest.write("IRQ_CTRL", 4)
    guest.put(Command((0xFF, 0)))
    assert (guest.vsmmu.regs.gerror_active, line(guest)) == (CMDQ_ERR, False)
    guest.write("IRQ_CTRL", 1)
    assert line(guest)
    guest.memory.write_words(guest.driver._cmdq.address(guest.read("CMDQ_CONS")), SYNC.words)
    guest.write("GERRORN", guest.read("GERROR"))
    assert not line(guest)


def test_indexes_are_in_page_1(guest):
    """And at their page 0 aliases, which some drivers use; pages 2 and 3 are empty."""
    hv = guest.world.hypervisor
    guest.dma(0, UNMAPPED, 4)
    for offset, value in ((0x100A8, 1), (0xA8, 1), (0x200A8, 0), (0x300A8, 0), (0x100AC, 0)):
        assert hv.trap(guest.domain, BASE + offset, 4) == value, hex(offset)
    hv.trap(guest.domain, BASE + 0x200AC, 4, 1)
    assert guest.read("EVENTQ_CONS") == 0
    hv.trap(guest.domain, BASE + 0x100AC, 4, 1)
    assert guest.read("EVENTQ_CONS") == 1
    assert not line(guest)
    hv.trap(guest.domain, BASE + 0x100A8, 4, 9)
    assert guest.read("EVENTQ_PROD") == 1, "read-only while EVENTQEN is 1"
    assert hv.trap(guest.domain, BASE + 0x10020, 4) == 0, "no alias of page 0 in page 1"


def test_each_size_and_alignment_of_every_offset(guest):
    """No size but 4 and 8, aligned, changes or shows anything; none raises."""
    hv = guest.world.hypervisor
    before = dict(guest.vsmmu.regs.values)
    for offset in [*range(0x210), *range(0x100A0, 0x100D8), 0xFD0, 0xFFC, 0x3FFFF]:
        for size in (0, 1, 2, 3, 5, 6, 7, 16):
            assert hv.trap(guest.domain, BASE + offset, size) == 0
            assert hv.trap(guest.domain, BASE + offset, size, (1 << 128) - 1) == 0
        for size in (4, 8):
            if offset % size:
                assert hv.trap(guest.domain, BASE + offset, size) == 0
                assert hv.trap(guest.domain, BASE + offset, size, -1) == 0
    assert guest.vsmmu.regs.values == before


def test_a_write_wider_than_its_register_touches_two(guest):
    """64 bits over CR0 and CR0ACK: the second is read-only."""
    hv = guest.world.hypervisor
    hv.trap(guest.domain, BASE + 0x20, 8, 0xFFFF_FFFF_0000_000D)
    settle(guest.world)
    assert (guest.read("CR0"), guest.read("CR0ACK")) == (0xD, 0xD)


@pytest.mark.parametrize("log2size", [0, 1, 19, 31])
def test_a_queue_of_any_size(guest, log2size):
    """LOG2SIZE is capped at IDR1.CMDQS for use and read back as written."""
    guest.write("CR0", 5)
    base = guest.driver.heap.allocate(0x1000)
    guest.write("CMDQ_BASE", QueueBase.build(addr=base, log2size=log2size).raw)
    guest.write("CMDQ_PROD", 0)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 0xD)
    capped = min(log2size, 19)
    start = base & -(max(32, 16 << capped))
    for i in range(3):
        if not guest.memory.write_words(start + 16 * (i % (1 << capped)), SYNC.words):
            return
        guest.write("CMDQ_PROD", (i + 1) % (2 << capped))
        assert guest.read("CMDQ_CONS") == (i + 1) % (2 << capped)
    assert QueueBase(guest.read("CMDQ_BASE")).log2size == log2size


def test_a_long_queue_of_hints_is_worked_off_in_pieces(world, guest):
    """2^17 commands in one write of PROD: the trap returns, a victim's DMA goes on meanwhile."""
    other = world["o"].boot()
    other.attach(0)
    other.map(0, 0x10000, BUFFER)
    guest.write("CR0", 5)
    base = RAM + 0x20_0000
    guest.write("CMDQ_BASE", QueueBase.build(addr=base, log2size=17).raw)
    for i in range(0x20_0000 // 4096):
        guest.memory.write(base + 4096 * i, bytes(CmdPrefetchConfig.build()) * 256)
    guest.write("CMDQ_PROD", 0)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 0xD)
    guest.write("CMDQ_PROD", 1 << 17, rest=False)
    assert guest.read("CMDQ_CONS") == 0
    request = other.ports[0].write(0x10000, b"victim")
    for _ in range(100):
        world.scheduler.step()
    assert request.done
    assert guest.read("CMDQ_CONS") < 1000


def test_devices_that_only_fault_do_not_keep_others_from_their_turn():
    """Round robin, six faulting ports ahead of the victim's on one SMMU."""
    world = World({"g": [("b", 0x600 + i) for i in range(6)], "o": [("b", 0x700)]})
    guest, other = world["g"].boot(), world["o"].boot()
    other.attach(0)
    other.map(0, 0x10000, BUFFER)
    request = None
    for turn in range(5000):
        for port in guest.ports:
            while port.pending < 200:
                port.read(UNMAPPED, 4)
        world.scheduler.step()
        if turn == 500:
            # By now the SMMU's list of events is full.
            request = other.ports[0].write(0x10000, b"through")
        if request is not None and request.done:
            break
    assert request is not None
    assert request.ok
    assert other.memory.read(BUFFER, 7) == b"through"
