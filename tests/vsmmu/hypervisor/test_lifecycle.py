# SPDX-License-Identifier: BSD-2-Clause
"""Grants, destruction, VMIDs that come again, devices unplugged and handed on at any moment."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdSync, CmdTlbiNhAll
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.grants import Gntst
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.policy import Policy
from vsmmu.memory import PAGE
from vsmmu.smmu.features import Features

from .reach import Reach
from .test_stage2_changes import IOVA, give, made, reaches, take
from .world import BASE, BUFFER, MACHINE, RAM, RAM_SIZE, Guest, World

WINDOW = 0x6000_0000
BYPASS = Ste.build(v=1, config=SteConfig.BYPASS)


@pytest.fixture
def world() -> World:
    return made()


def mapped(world: World, *, readonly: bool = False) -> int:
    """x's first buffer page in y at WINDOW; the handle."""
    calls, x, y = world.hypervisor.hypercalls, world["x"].domain, world["y"].domain
    ref = calls.grant_foreign_access(x, y.domid, BUFFER, readonly=readonly)
    job = calls.map_grant_ref(y, WINDOW, x.domid, ref, readonly=readonly)
    handle = world.hypervisor.wait(job)
    assert handle >= 0
    return handle


def unmapped(world: World, handle: int) -> Gntst:
    hv = world.hypervisor
    return hv.wait(hv.hypercalls.unmap_grant_ref(world["y"].domain, handle))


# Grants.


@pytest.mark.parametrize("readonly", [False, True])
def test_a_device_reaches_a_granted_page_until_it_is_unmapped(world: World, readonly: bool) -> None:
    y = world["y"]
    Reach(world)
    assert world["x"].memory.write(BUFFER, b"from x")
    handle = mapped(world, readonly=readonly)
    assert y.dma(0, WINDOW, 6).data == b"from x"
    assert y.dma(0, WINDOW, b"from y").ok != readonly
    assert world["x"].memory.read(BUFFER, 6) == (b"from x" if readonly else b"from y")
    assert unmapped(world, handle) == Gntst.OKAY
    assert not y.dma(0, WINDOW, 6).ok
    assert y.memory.read64(WINDOW) is None
    assert unmapped(world, handle) == Gntst.BAD_HANDLE


def test_a_page_goes_back_when_its_last_user_has_let_go(world: World) -> None:
    x, y, hv = world["x"], world["y"], world.hypervisor
    reach = Reach(world)
    handle = mapped(world)
    place = x.domain.stage2.to_pa(BUFFER)
    assert take(x, BUFFER) == PAGE
    assert (reach.freed, hv.frames.held) == (0, {place})
    assert y.dma(0, WINDOW, b"still").ok
    assert unmapped(world, handle) == Gntst.OKAY
    # The table of y that mapped it alone went as well.
    assert (reach.freed, hv.frames.held) == (2, set())


@pytest.mark.parametrize("first", ["x", "y"])
def test_domains_that_share_a_page_are_destroyed(world: World, first: str) -> None:
    hv = world.hypervisor
    reach = Reach(world)
    mapped(world)
    left = hv.pages.left
    world[first].destroy()
    if first == "x":
        assert len(hv.frames.held) == 1
        assert world["y"].dma(0, WINDOW, b"still").ok
    else:
        assert reaches(world["x"], BUFFER) == [True, True]
    world["y" if first == "x" else "x"].destroy()
    assert not hv.frames.held
    assert hv.pages.left >= left + 2 * RAM_SIZE
    assert reach.freed >= 2 * RAM_SIZE // PAGE


def test_grants_that_cannot_be_mapped(world: World) -> None:
    hv, x, y = world.hypervisor, world["x"].domain, world["y"].domain
    calls = hv.hypercalls

    def status(ipa: int, granter: int, ref: int, *, mapper: Domain = y, ro: bool = False) -> int:
        return hv.wait(calls.map_grant_ref(mapper, ipa, granter, ref, readonly=ro))

    ref = calls.grant_foreign_access(x, y.domid, BUFFER, readonly=True)
    assert status(WINDOW, 77, ref) == Gntst.BAD_DOMAIN
    assert status(WINDOW, x.domid, ref + 1, ro=True) == Gntst.BAD_GNTREF
    assert status(WINDOW, x.domid, ref) == Gntst.PERMISSION_DENIED
    assert status(WINDOW, x.domid, ref, mapper=x, ro=True) == Gntst.PERMISSION_DENIED
    for ipa in (RAM, WINDOW + 1, -PAGE, 1 << 40, 1 << 90):
        assert status(ipa, x.domid, ref, ro=True) == Gntst.BAD_VIRT_ADDR
    take(world["x"], BUFFER)
    assert status(WINDOW, x.domid, ref, ro=True) == Gntst.BAD_PAGE
    give(world["x"], BUFFER)
    handle = status(WINDOW, x.domid, ref, ro=True)
    assert handle == 0
    # Not y's own, so it can neither pass it on nor give it up.
    again = calls.grant_foreign_access(y, x.domid, WINDOW, readonly=True)
    assert status(WINDOW, y.domid, again, mapper=x, ro=True) == Gntst.BAD_PAGE
    assert take(world["y"], WINDOW) == 0
    assert calls.end_foreign_access(x, ref) == Gntst.EAGAIN
    assert unmapped(world, handle) == Gntst.OKAY
    assert calls.end_foreign_access(x, ref) == Gntst.OKAY
    assert calls.end_foreign_access(x, ref) == Gntst.BAD_GNTREF
    for ipa in (BUFFER + 1, -PAGE, 1 << 90):
        assert calls.grant_foreign_access(x, y.domid, ipa) == Gntst.BAD_PAGE


def test_a_page_is_not_mapped_twice_by_its_owner(world: World) -> None:
    """Else it could be given up at one address, be the next domain's, and stay at the other."""
    hv, x = world.hypervisor, world["x"].domain
    ref = hv.hypercalls.grant_foreign_access(x, x.domid, BUFFER)
    job = hv.hypercalls.map_grant_ref(x, WINDOW, x.domid, ref)
    assert hv.wait(job) == Gntst.PERMISSION_DENIED
    assert x.stage2.to_pa(WINDOW) is None


def test_a_domain_has_so_many_grants_and_mappings() -> None:
    world = made("normal", Policy(grants=2, grant_mappings=1))
    calls, x, y = world.hypervisor.hypercalls, world["x"].domain, world["y"].domain
    refs = [calls.grant_foreign_access(x, y.domid, BUFFER) for _ in range(3)]
    assert refs == [0, 1, Gntst.NO_DEVICE_SPACE]
    jobs = [calls.map_grant_ref(y, WINDOW + r * PAGE, x.domid, r) for r in refs[:2]]
    assert [world.hypervisor.wait(job) for job in jobs] == [0, Gntst.NO_DEVICE_SPACE]


def test_a_direct_mapped_domain_gets_the_same_page_or_none() -> None:
    hv = World({}).hypervisor
    place = MACHINE + 0x400_0000
    dom0 = hv.create_domain("dom0", [(place, 0x20_0000)], direct=True)
    calls = hv.hypercalls
    for page in (place, place + PAGE):
        assert hv.wait(calls.decrease_reservation(dom0, page, PAGE)) == PAGE
    hv.pages.allocate_at(place + PAGE, PAGE)
    assert hv.wait(calls.populate_physmap(dom0, place, 2 * PAGE)) == 0
    assert hv.wait(calls.populate_physmap(dom0, place, PAGE)) == PAGE
    assert dom0.stage2.to_pa(place) == place
    assert dom0.stage2.to_pa(place + PAGE) is None


# Destruction.


def test_a_destroyed_domain_reaches_nothing(world: World) -> None:
    x, hv = world["x"], world.hypervisor
    left = hv.pages.left
    reach = Reach(world)
    assert reaches(x, BUFFER) == [True, True]
    for port in x.ports:
        for i in range(200):
            port.write((IOVA if port is x.ports[0] else BUFFER) + i % 16 * PAGE, b"busy")
    x.vcpu.start(x.driver.unmap(0, IOVA, 0x1_0000))
    job = hv.destroy_domain(x.domain)
    reach.began(x.domain, job)
    hv.wait(job)
    assert world.scheduler.run_until_idle()
    for ipa in (BUFFER, RAM):
        assert reaches(x, ipa) == [False, False]
    assert hv.trap(x.domain, BASE, 4) is None
    assert x.memory.read64(BUFFER) is None
    assert x.domain.domid not in hv.domains
    assert hv.pages.left - left >= RAM_SIZE
    assert {engine.name for engine in world.scheduler.engines if "vsmmu x" in engine.name} == set()
    message = "x is being destroyed"
    for refused in (
        lambda: hv.destroy_domain(x.domain),
        lambda: hv.create_vsmmu(x.domain, BASE, 0x4_0000, {}, ["a"]),
        lambda: hv.assign(x.vsmmu, 0, "a", 0x600),
    ):
        with pytest.raises(HypercallError, match=f"^{message}$"):
            refused()
    assert give(x, WINDOW) == take(x, BUFFER) == 0


def test_a_vmid_and_the_pages_come_again(world: World) -> None:
    """The next domain has the VMID of the destroyed one, and nothing that was cached with it."""
    hv, x = world.hypervisor, world["x"]
    reach = Reach(world)
    vmid, domid = x.domain.vmid, x.domain.domid
    left = hv.pages.left
    for _ in range(5):
        assert reaches(x, BUFFER) == [True, True]
        x.destroy()
        x = Guest(world, "x", [("a", 0x600), ("b", 0x600)]).boot()
        assert x.domain.vmid == vmid
        assert x.domain.domid > domid
        assert hv.pages.left == left
        assert [p.ok for p in (x.dma(0, IOVA, 4), x.dma(1, BUFFER, 4))] == [False, False]
        x.attach(0)
        x.map(0, IOVA, BUFFER, 0x10_0000)
        x.run(x.driver.bypass(1))
        domid = x.domain.domid
    assert reach.freed == 5 * (RAM_SIZE // PAGE + 3)


def test_vmids_are_not_used_up() -> None:
    features = Features.default(sidsize=16).replace(vmid16=0)
    hv = World({}, features=features).hypervisor
    domains = [hv.create_domain(f"d{i}", [(RAM, PAGE)]) for i in range(255)]
    with pytest.raises(HypercallError, match=re.escape("no VMID is left")):
        hv.create_domain("one more", [(RAM, PAGE)])
    hv.wait(hv.destroy_domain(domains[100]))
    assert hv.create_domain("again", [(RAM, PAGE)]).vmid == domains[100].vmid == 101


# Unplugged at any moment.


def sync(g: Guest) -> None:
    commands = (CmdTlbiNhAll.build(), CmdSync.build(cs=0))
    words = [c.words for c in commands]
    prod = g.read("CMDQ_PROD")
    for pair in words:
        g.memory.write_words(g.driver._cmdq.address(prod), pair)
        prod = g.driver._cmdq.advance(prod)
    g.driver._prod = prod
    g.write("CMDQ_PROD", prod, rest=False)


def ste_update(g: Guest, ste: Ste = BYPASS) -> None:
    g.ste(0, ste)
    prod = g.read("CMDQ_PROD")
    g.memory.write_words(g.driver._cmdq.address(prod), CmdCfgiSte.build(sid=0, leaf=1).words)
    g.driver._prod = g.driver._cmdq.advance(prod)
    g.write("CMDQ_PROD", g.driver._prod, rest=False)


def smmuen_off(g: Guest) -> None:
    g.write("CR0", 0xC, rest=False)


@pytest.mark.parametrize("during", [sync, ste_update, smmuen_off])
@pytest.mark.parametrize("how", ["deassign", "destroy", "reassign"])
def test_unplugged_at_any_turn(during: Callable[[Guest], None], how: str) -> None:
    unplugged(during, how, 41)


@pytest.mark.soak
@pytest.mark.parametrize("during", [sync, ste_update, smmuen_off])
@pytest.mark.parametrize("how", ["deassign", "destroy", "reassign"])
def test_unplugged_at_any_turn_soak(during: Callable[[Guest], None], how: str) -> None:
    unplugged(during, how, 5)


def unplugged(during: Callable[[Guest], None], how: str, every: int) -> None:
    """Some turns into it; the stream stops, the guest goes on, the next owner has it."""
    turns = 0
    while True:
        world = made()
        world.scheduler.budget = 1
        x, y, hv = world["x"], world["y"], world.hypervisor
        reach = Reach(world)
        assert reaches(x, BUFFER) == [True, True]
        during(x)
        world.scheduler.run(turns)
        over = x.vsmmu.idle and not x.vsmmu._runnable() and not x.vsmmu._edge
        if how == "destroy":
            job = hv.destroy_domain(x.domain)
            reach.began(x.domain, job)
            hv.wait(job)
        else:
            hv.deassign(x.vsmmu, x.vsmmu.streams[0])
        assert not any(tagged.vmid == x.domain.vmid for tagged in world.smmus["a"].tlb)
        if how == "reassign":
            hv.assign(y.vsmmu, 5, "a", 0x600)
        assert world.scheduler.run_until_idle()
        assert not x.dma(0, IOVA, 4).ok
        if how != "destroy":
            assert x.vsmmu.idle
            assert x.read("CR0ACK") == x.read("CR0")
            assert x.read("CMDQ_CONS") == x.read("CMDQ_PROD")
            assert x.dma(1, BUFFER, 4).ok
        if over:
            break
        turns += every
    assert turns >= 2 * every


def test_unplugged_in_every_phase_of_an_ste_update() -> None:
    """Phases follow one another by themselves: none may come behind the STE that aborts."""
    world = made("normal")
    world.scheduler.budget = 1
    x, hv = world["x"], world.hypervisor
    host = hv.hosts["a"]
    place = x.driver.ste_address(0)
    words = x.memory.read_words(place, 8)
    assert words is not None
    before = Ste(words)
    # Two words that matter change, so the last of three phases makes it valid again.
    after = before.replace(s1ctxptr=RAM, s1csh=before.s1csh ^ 1)
    phases = set()
    for turns in range(0, 400, 5):
        stream = x.vsmmu.streams[0]
        ste_update(x, after)
        while not stream.busy:
            world.scheduler.step()
        world.scheduler.run(turns)
        if not stream.busy:
            break
        phases.add(host.read_ste(0x600).words)
        hv.deassign(x.vsmmu, stream)
        assert host.read_ste(0x600).config == SteConfig.ABORT
        assert world.scheduler.run_until_idle()
        assert host.read_ste(0x600).config == SteConfig.ABORT
        assert not x.dma(0, IOVA, 4).ok
        x.ste(0, before)
        hv.assign(x.vsmmu, 0, "a", 0x600)
        assert x.dma(0, IOVA, 4).ok
    assert len(phases) == 3


def test_events_of_the_past_are_the_former_owners(world: World) -> None:
    """Faults in flight when a stream changes hands never name the next owner."""
    x, y, hv = world["x"], world["y"], world.hypervisor
    for turns in range(0, 60, 3):
        for _ in range(20):
            x.ports[0].write(0xDEAD_0000, b"fault")
        world.scheduler.run(turns)
        hv.deassign(x.vsmmu, x.vsmmu.streams[0])
        seen = len(y.driver.events)
        hv.assign(y.vsmmu, 5, "a", 0x600)
        x.ports[0]._queue.clear()
        assert world.scheduler.run_until_idle()
        assert [e.name for e in y.driver.events[seen:] if e.name == "F_TRANSLATION"] == []
        hv.deassign(y.vsmmu, y.vsmmu.streams[5])
        hv.assign(x.vsmmu, 0, "a", 0x600)
        assert world.scheduler.run_until_idle()
    assert ("F_TRANSLATION", 0) in x.events()
