# SPDX-License-Identifier: BSD-2-Clause
"""What a guest may reach: the physical queues, other guests, what the toolstack may ask for."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
)
from vsmmu.arch.events import FWalkEabt
from vsmmu.arch.registers import Idr0, QueueBase
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.events import Kept, to_guest
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.pages import OutOfMemoryError
from vsmmu.smmu.features import Features

from .attack import (
    CFGI,
    CMDQ_ERR,
    EVENTQ_ABT,
    SYNC,
    post,
    records,
    sent,
    settle,
)
from .world import BUFFER, RAM, World

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


def test_a_stream_withdrawn_at_any_moment_of_an_update_stays_aborted(world, guest):
    """Three phases: a word that is in use changes beside the one that says so."""
    hv, scheduler = world.hypervisor, world.scheduler
    host, cds, busy = hv.hosts["b"], [guest.driver.contexts[i].cd for i in (0, 1)], 0
    for distance in range(0, 150, 5):
        change = {"s1ctxptr": cds[distance % 2], "s1cir": distance % 2}
        guest.ste(1, Ste.build(v=1, config=SteConfig.S1, **change))
        post(guest, CFGI.replace(sid=1), SYNC)
        scheduler.run(distance)
        busy += guest.vsmmu.streams[1].busy
        hv.deassign(guest.vsmmu, guest.vsmmu.streams[1])
        settle(world)
        assert host.read_ste(0x600).config == SteConfig.ABORT, distance
        hv.assign(guest.vsmmu, 1, "b", 0x600)
    assert busy > 5


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


def test_a_stream_behind_an_smmu_the_vsmmu_was_not_made_for(world):
    """It has to have all that the vSMMU advertises; the field that it lacks is named."""
    host = world.hypervisor.hosts["c"]
    ident = host.ident
    lesser = Idr0(ident("IDR0")).replace(asid16=0).raw
    host.ident = lambda name: lesser if name == "IDR0" else ident(name)
    problem = r"^c cannot stand behind vsmmu o@0x4040000: lacks IDR0.ASID16$"
    with pytest.raises(HypercallError, match=problem):
        world.hypervisor.assign(world["o"].vsmmu, 3, "c", 1)
    assert world.hypervisor.owner("c", 1) is None


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
