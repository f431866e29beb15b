# SPDX-License-Identifier: BSD-2-Clause
"""Traps, physical commands and over-invalidation equal their closed forms, m SMMUs, k devices."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    CmdTlbiS12Vmall,
    Command,
    Cs,
)
from vsmmu.guest.vcpu import Program
from vsmmu.hypervisor.scope import tlb_scope
from vsmmu.work import COUNTED, devices, invalidated, measure, posted, precise

from .world import BUFFER, Guest, World

SYNC = CmdSync.build(cs=Cs.SEV)
IOVA = 0x10000
PAGES = 4
SHAPES = [(m, k) for m in range(1, 5) for k in range(1, 9) if m <= k]


def busy_world(m: int, k: int) -> World:
    """`k` devices over `m` SMMUs, each with `PAGES` pages in a TLB; another guest has some too."""
    names = "abcd"[:m]
    world = World(
        {"g": [(names[i % m], 1 + i) for i in range(k)], "o": [(n, 100) for n in names]},
        smmus=names,
    )
    for guest in world.guests.values():
        guest.boot()
        for i, port in enumerate(guest.ports):
            guest.attach(i)
            guest.map(i, IOVA, BUFFER, PAGES << 12)
            port.read(IOVA, PAGES << 12)
    assert world.scheduler.run_until_idle()
    return world


def cost(guest: Guest, program: Program) -> dict[str, int]:
    """Of a program whose machine is at rest whenever its vCPU goes on: each poll finds it done."""
    world = guest.world
    hosts = world.hypervisor.hosts.values()
    before, dropped = measure(guest.domain, hosts), invalidated(world.smmus.values())
    world.scheduler.remove(guest.vcpu)
    guest.vcpu.start(program)
    while guest.vcpu.busy:
        guest.vcpu.step(1)
        assert world.scheduler.run_until_idle()
    world.scheduler.add(guest.vcpu)
    after = measure(guest.domain, hosts)
    now = invalidated(world.smmus.values())
    found = {name: after[name] - before[name] for name in COUNTED}
    return found | {"dropped": now[0] - dropped[0], "over": now[1] - dropped[1]}


@pytest.mark.parametrize(("m", "k"), SHAPES)
def test_a_page_unmapped_costs_2m(m, k):
    world = busy_world(m, k)
    g = world["g"]
    assert devices(g.vsmmu.streams.values()) == k
    for i in range(k):
        assert cost(g, g.driver.unmap(i, IOVA, 0x1000)) == {
            "trap_writes": 1, "trap_reads": 1, "guest_commands": 2,
            "physical_commands": precise(m), "posted_commands": posted(k),
            "dropped": 1, "over": 0,
        }, i  # fmt: skip
    assert (precise(m), posted(k)) == (2 * m, 2 * k)


@pytest.mark.parametrize(("m", "k"), SHAPES[::5])
def test_a_map_costs_nothing(m, k):
    world = busy_world(m, k)
    g = world["g"]

    def program() -> Program:
        g.driver.map(0, 0x50000, BUFFER, 0x1000)
        yield

    assert set(cost(g, program()).values()) == {0}


@pytest.mark.parametrize(("m", "k"), SHAPES[::3])
def test_a_flush_by_device_is_measured_beside_it(m, k):
    """The posted series' way on the same machine: 2k commands, all of the VMID for one page."""
    world = busy_world(m, k)
    g, hosts = world["g"], world.hypervisor.hosts.values()
    vmid, smmus = g.domain.vmid, world.smmus.values()
    mine = CmdTlbiNhVa.build(vmid=vmid, asid=g.driver.contexts[0].asid, addr=IOVA)
    held = sum(len(s.tlb) for s in smmus)
    before, was = measure(g.domain, hosts), invalidated(smmus)
    for stream in g.vsmmu.streams.values():
        flush = {CmdTlbiS12Vmall.build(vmid=vmid): tlb_scope(mine, vmid)}
        stream.host.submit(g.domain.domid, flush)
    assert world.scheduler.run_until_idle()
    sent = measure(g.domain, hosts)["physical_commands"] - before["physical_commands"]
    assert sent == posted(k)
    dropped, over = (now - then for now, then in zip(invalidated(smmus), was, strict=True))
    assert dropped == held - sum(len(s.tlb) for s in smmus)
    assert dropped >= k * PAGES
    assert over == dropped - 1, "one page was meant"


@pytest.mark.parametrize("pages", [1, 2, 31, 33, 63, 512])
@pytest.mark.parametrize("m", [1, 3])
def test_a_range_costs_its_chunks(m, pages):
    """IDR3.RIL: one TLBI for each five bits of the page count; each goes to every SMMU."""
    world = busy_world(m, m)
    g = world["g"]
    g.driver.map(0, 0x80_0000, BUFFER, min(pages, 128) << 12)
    chunks = {1: 1, 2: 1, 31: 1, 33: 2, 63: 2, 512: 1}[pages]
    found = cost(g, g.driver.unmap(0, 0x80_0000, pages << 12))
    assert found["guest_commands"] == chunks + 1
    assert found["physical_commands"] == m * (chunks + 1)
    assert (found["trap_writes"], found["trap_reads"], found["over"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("command", "dropped"),
    [
        (CmdTlbiNhAll.build(vmid=77), 4 * PAGES),
        (CmdTlbiNsnhAll.build(), 4 * PAGES),
        (CmdTlbiNhAsid.build(asid=2), PAGES),
        (CmdTlbiNhAsid.build(asid=99), 0),
        (CmdTlbiNhVaa.build(addr=IOVA + 0x1000), 4),
        (CmdTlbiNhVaa.build(addr=IOVA, tg=1, num=1, scale=0), 8),
        (CmdTlbiNhVa.build(addr=IOVA, asid=1, tg=1, num=0, scale=1), 2),
        (CmdTlbiNhVa.build(addr=IOVA, asid=1, vmid=2), 1),
    ],
    ids=repr,
)
def test_no_command_drops_more_than_it_means(command, dropped):
    world = busy_world(2, 4)
    g = world["g"]
    held = sum(len(s.tlb) for s in world.smmus.values())
    found = cost(g, g.driver.issue(command))
    assert (found["dropped"], found["over"]) == (dropped, 0)
    assert held - sum(len(s.tlb) for s in world.smmus.values()) == dropped


@pytest.mark.parametrize("command", [CmdCfgiCd.build(sid=1, leaf=1), CmdCfgiCdAll.build(sid=1)])
def test_a_cd_invalidation_is_for_one_stream(command):
    world = busy_world(2, 4)
    g = world["g"]
    smmu = world.smmus["b"]
    before = smmu.counters["config.invalidated"], smmu.counters["config.over"]
    found = cost(g, g.driver.issue(command))
    assert found["physical_commands"] == 1 + 2, "the stream's own SMMU; a CMD_SYNC on each"
    assert smmu.counters["config.invalidated"] - before[0] == 1
    assert smmu.counters["config.over"] == before[1]


def test_repeated_commands_are_sent_once():
    """A hundred equal invalidations before one CMD_SYNC are one: 2m."""
    world = busy_world(3, 3)
    g = world["g"]
    commands: list[Command] = [CmdTlbiNhVa.build(asid=1, addr=IOVA)] * 100
    found = cost(g, g.driver.issue(*commands))
    assert (found["guest_commands"], found["physical_commands"]) == (101, precise(3))
    assert found["posted_commands"] == 100 * posted(3)


def test_devices_are_counted_by_name():
    world = busy_world(1, 3)
    streams = list(world["g"].vsmmu.streams.values())
    streams[0].devices = streams[1].devices = ("/dma",)
    assert devices(streams) == 2
    streams[2].devices = ("/dma", "/usb")
    assert devices(streams) == 2
