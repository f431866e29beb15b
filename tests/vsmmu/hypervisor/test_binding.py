# SPDX-License-Identifier: BSD-2-Clause
"""Streams that come and go, and what SMMUEN, GBPA and each STE then make of them.

Every stream stands for something at every moment: abort, the guest's memory, or its stage 1; what
is wrong with one stream is that stream's alone.
"""

from __future__ import annotations

import re

import pytest

from vsmmu.arch.commands import (
    CmdAtcInv,
    CmdCfgiCd,
    CmdCfgiSte,
    CmdPrefetchConfig,
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    Command,
)
from vsmmu.arch.registers import CmdqCons, Gbpa, Gerror, QueueBase
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.hypervisor import HypercallError

from .world import BASE, BUFFER, RAM, RAM_SIZE, Guest, World

IOVA = 0x10000
SYNC = CmdSync.build(cs=0)
BYPASS = Ste.build(v=1, config=SteConfig.BYPASS)


@pytest.fixture
def world() -> World:
    return World({"g": [("a", 0x600), ("b", 0x600)]})


@pytest.fixture
def guest(world: World) -> Guest:
    """Booted, both streams attached and mapped at IOVA."""
    g = world["g"].boot()
    for vmaster_id in (0, 1):
        g.attach(vmaster_id)
        g.map(vmaster_id, IOVA, BUFFER + 0x1000 * vmaster_id)
    return g


def statuses(guest: Guest, vmaster_id: int, iova: int) -> list[str]:
    return [o.status for o in guest.dma(vmaster_id, iova, 4).outcomes]


def sent(guest: Guest, smmu: str) -> list[Command]:
    """What the hypervisor submits to a physical SMMU from now on."""
    host = guest.world.hypervisor.hosts[smmu]
    seen: list[Command] = []
    original = host.submit

    def submit(owner: int, commands: list[Command], done: object = None, **watch: object) -> None:
        seen.extend(commands)
        original(owner, commands, done, **watch)  # type: ignore[arg-type]

    host.submit = submit  # type: ignore[method-assign, assignment]
    return seen


def updates(guest: Guest) -> int:
    return guest.vsmmu.physical["STE update"]


# A stream that is assigned late.


@pytest.mark.parametrize(
    ("state", "at_buffer", "at_iova"),
    [
        ("off", "ok", "fault"), ("off, GBPA.ABORT", "abort", "abort"), ("abort", "abort", "abort"),
        ("bypass", "ok", "fault"), ("translate", "fault", "ok"), ("illegal", "fault", "fault"),
    ],
)  # fmt: skip
def test_a_late_stream_gets_the_state_of_the_moment(
    guest: Guest, state: str, at_buffer: str, at_iova: str
) -> None:
    hv, stream = guest.world.hypervisor, guest.vsmmu.streams[1]
    hv.deassign(guest.vsmmu, stream)
    stes = {"abort": Ste.build(v=1), "bypass": BYPASS, "illegal": Ste()}
    if state in stes:
        guest.ste(1, stes[state])
    if state.startswith("off"):
        guest.write("CR0", 0xC)
        guest.write("GBPA", Gbpa.build(abort=int("ABORT" in state), update=1).raw)
    hv.assign(guest.vsmmu, 1, "b", 0x600)
    assert statuses(guest, 1, BUFFER) == [at_buffer]
    assert statuses(guest, 1, IOVA) == [at_iova]
    if state == "illegal":
        assert guest.events() == [("C_BAD_STE", 1)] * 2
        guest.ste(1, BYPASS)
        guest.put(CmdCfgiSte.build(sid=1, leaf=1), SYNC)
        assert statuses(guest, 1, BUFFER) == ["ok"]


def test_a_stream_moves_to_another_physical_id(guest: Guest) -> None:
    """As where buses are numbered anew: the old id is stopped before the new one serves."""
    hv, world = guest.world.hypervisor, guest.world
    host = hv.hosts["b"]
    ids = [guest.read(name) for name in ("IDR0", "IDR1", "IDR3", "IDR5", "AIDR")]
    assert statuses(guest, 1, IOVA) == ["ok"]
    hv.deassign(guest.vsmmu, guest.vsmmu.streams[1])
    hv.assign(guest.vsmmu, 1, "b", 0x601)
    assert ids == [guest.read(name) for name in ("IDR0", "IDR1", "IDR3", "IDR5", "AIDR")]
    assert host.read_ste(0x600).config == SteConfig.ABORT
    assert host.read_ste(0x601).config == SteConfig.NESTED
    assert hv.owner("b", 0x600) is None
    assert statuses(guest, 1, IOVA) == ["abort"], "the port still has the old StreamID"
    guest.ports[1].sid = 0x601
    assert statuses(guest, 1, IOVA) == ["ok"]
    guest.run(guest.driver.unmap(1, IOVA, 0x1000))
    assert statuses(guest, 1, IOVA) == ["fault"]
    assert guest.events() == [("F_TRANSLATION", 1)]
    assert world.smmus["b"].counters["event.recorded"] == 1


def test_a_second_vsmmu_does_not_take_the_place_of_the_first(guest: Guest) -> None:
    hv = guest.world.hypervisor
    message = f"vSMMU window {BASE:#x} overlaps {guest.vsmmu.name}"
    with pytest.raises(HypercallError, match=f"^{re.escape(message)}$"):
        hv.create_vsmmu(guest.domain, BASE, 0x4_0000, {}, ["a"])
    assert statuses(guest, 0, IOVA) == ["ok"]


# SMMUEN and GBPA.


def test_enabling_reads_every_ste_again(guest: Guest) -> None:
    """STEs that changed without a command act at the next SMMUEN 0 to 1."""
    for vmaster_id in (0, 1):
        guest.ste(vmaster_id, BYPASS)
        assert statuses(guest, vmaster_id, IOVA) == ["ok"], "cached"
    guest.write("CR0", 0xC)
    guest.write("CR0", 0xD)
    for vmaster_id in (0, 1):
        assert statuses(guest, vmaster_id, BUFFER) == ["ok"]


def test_other_bits_of_cr0_read_no_ste(guest: Guest) -> None:
    before = updates(guest)
    guest.ste(0, BYPASS)
    for value in (0x9, 0xD, 0x5, 0xD):
        guest.write("CR0", value)
        assert guest.read("CR0ACK") == value
    assert updates(guest) == before
    assert statuses(guest, 0, IOVA) == ["ok"]


def test_one_bad_ste_stops_its_stream_alone_when_enabling(guest: Guest) -> None:
    guest.write("CR0", 0xC)
    guest.ste(0, Ste.build(v=1, config=SteConfig.NESTED))
    guest.write("CR0", 0xD)
    assert guest.read("CR0ACK") == 0xD
    assert statuses(guest, 0, IOVA) == ["fault"]
    assert statuses(guest, 1, IOVA) == ["ok"]
    assert guest.events() == [("C_BAD_STE", 0)]


def test_gbpa_waits_for_smmuen_0(guest: Guest) -> None:
    """§6.3.14: written while enabled it changes nothing yet."""
    before = updates(guest)
    # No STE is read again for it either.
    guest.ste(0, BYPASS)
    guest.write("GBPA", Gbpa.build(abort=1, update=1).raw)
    assert guest.read("GBPA") == Gbpa.build(abort=1).raw
    assert updates(guest) == before
    assert statuses(guest, 0, IOVA) == ["ok"]
    guest.write("CR0", 0xC)
    assert statuses(guest, 0, BUFFER) == ["abort"]


# Batches of physical commands.


def test_without_a_sync_commands_are_passed_on_when_the_queue_is_empty(guest: Guest) -> None:
    seen = sent(guest, "a")
    guest.put(CmdTlbiNhAsid.build(asid=1), CmdTlbiNhVa.build(asid=2, addr=0x5000))
    vmid = guest.domain.vmid
    assert seen == [
        CmdTlbiNhAsid.build(vmid=vmid, asid=1),
        CmdTlbiNhVa.build(vmid=vmid, asid=2, addr=0x5000),
    ]


@pytest.mark.parametrize(
    ("between", "passed_on"),
    [
        (CmdCfgiSte.build(sid=0, leaf=1), True),
        # Of a stream that is not the guest's, and a hint: no effect.
        (CmdCfgiCd.build(sid=0x700), False),
        (CmdPrefetchConfig.build(sid=0), False),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_commands_around_another_all_arrive(
    guest: Guest, between: Command, passed_on: bool
) -> None:
    """Invalidations before and behind it are done when the CMD_SYNC is."""
    seen = sent(guest, "a")
    guest.ste(0, BYPASS)
    guest.put(CmdTlbiNhAsid.build(asid=1), between, CmdTlbiNhAsid.build(asid=2), SYNC)
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")
    vmid = guest.domain.vmid
    for asid in (1, 2):
        assert seen.count(CmdTlbiNhAsid.build(vmid=vmid, asid=asid)) == 1
    assert {type(c) for c in seen} - {CmdTlbiNhAsid} == ({CmdCfgiSte} if passed_on else set())
    assert statuses(guest, 0, BUFFER) == (["ok"] if passed_on else ["fault"])


@pytest.mark.parametrize("op", [0x10, 0x11, 0x12, 0x13, 0x30])
def test_ssec_is_no_field_of_an_invalidation(guest: Guest, op: int) -> None:
    """§4.1.6: a reserved bit there; the command is carried out, and the bit stays behind."""
    seen = sent(guest, "a")
    guest.put(Command((op | 1 << 10, 0)), SYNC)
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")
    assert len(seen) == 1
    assert not any(seen[0].reserved())


@pytest.mark.parametrize("state", ["bypass", "off"])
def test_a_cd_invalidation_of_a_stream_that_does_not_translate(guest: Guest, state: str) -> None:
    """Passed on with the physical StreamID, where it invalidates nothing that is in use."""
    if state == "off":
        guest.write("CR0", 0xC)
    else:
        guest.ste(0, BYPASS)
        guest.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC)
    seen = sent(guest, "a")
    guest.put(CmdCfgiCd.build(sid=0, leaf=1), SYNC)
    assert seen == [CmdCfgiCd.build(sid=0x600, leaf=1)]
    assert statuses(guest, 0, BUFFER) == ["ok"]


@pytest.mark.parametrize("bad", [Command((0, 0)), CmdAtcInv.build()])
def test_what_came_before_an_error_is_passed_on(guest: Guest, bad: Command) -> None:
    """CONS is on the bad command; what is behind it is not looked at."""
    guest.quiet()
    seen, start = sent(guest, "a"), guest.read("CMDQ_CONS")
    guest.put(CmdTlbiNhAsid.build(asid=1), bad, CmdTlbiNhAsid.build(asid=2), SYNC)
    assert seen == [CmdTlbiNhAsid.build(vmid=guest.domain.vmid, asid=1)]
    cons = CmdqCons(guest.read("CMDQ_CONS"))
    assert (cons.rd, cons.err) == ((start + 1) % 512, 1)


def test_what_came_before_a_fetch_abort_is_passed_on(guest: Guest) -> None:
    """A queue of twice the guest's memory: the entry behind its end is CERROR_ABT."""
    guest.quiet()
    guest.write("CR0", 0x5)
    guest.write("CMDQ_BASE", QueueBase.build(addr=RAM, log2size=19).raw)
    end = RAM_SIZE // 16
    for i, asid in enumerate((1, 2)):
        command = CmdTlbiNhAsid.build(asid=asid)
        assert guest.memory.write_words(RAM + RAM_SIZE - 32 + 16 * i, command.words)
    guest.write("CMDQ_CONS", end - 2)
    guest.write("CMDQ_PROD", end + 2)
    seen = sent(guest, "a")
    guest.write("CR0", 0xD)
    vmid = guest.domain.vmid
    assert seen == [CmdTlbiNhAsid.build(vmid=vmid, asid=asid) for asid in (1, 2)]
    cons = CmdqCons(guest.read("CMDQ_CONS"))
    assert (cons.rd, cons.err) == (end, 2)
    assert guest.vsmmu.regs.gerror_active == Gerror.mask("cmdq_err")[0]


def test_a_withdrawal_beside_commands_that_wait(guest: Guest) -> None:
    """The stream's own are dropped, the guest's others stay, and its other stream goes on."""
    prod = guest.read("CMDQ_PROD")
    commands = (CmdCfgiCd.build(sid=1), CmdCfgiCd.build(sid=0), CmdTlbiNhAll.build())
    for i, command in enumerate(commands):
        guest.memory.write_words(guest.driver._cmdq.address(prod + i), command.words)
    guest.write("CMDQ_PROD", (prod + 3) % 512, rest=False)
    guest.driver._prod = (prod + 3) % 512
    assert guest.vsmmu.step(3) == 3
    seen = {name: sent(guest, name) for name in "ab"}
    guest.world.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[1])
    assert guest.world.scheduler.run_until_idle()
    assert CmdCfgiCd.build(sid=0x600) in seen["a"]
    assert CmdCfgiCd.build(sid=0x600) not in seen["b"]
    assert statuses(guest, 0, IOVA) == ["ok"]
    assert statuses(guest, 1, IOVA) == ["abort"]


def test_a_command_that_hardware_refuses_stops_nobody(guest: Guest) -> None:
    """A defect of the hypervisor's own: it is counted, and the commands behind it are done."""
    hv, landed = guest.world.hypervisor, list[str]()
    host = hv.hosts["a"]
    host.submit(guest.domain.domid, [Command((0, 0))], lambda: landed.append("bad"))
    guest.run(guest.driver.unmap(0, IOVA, 0x1000))
    assert landed == ["bad"]
    assert (host.counters["CERROR_ILL"], host.counters["gerror"]) == (1, 1)
    assert statuses(guest, 0, IOVA) == ["fault"]
    assert guest.driver.gerrors == []


def test_a_stream_that_nobody_has_reaches_nothing(guest: Guest) -> None:
    """Neither beside a guest's stream nor where there is no table; no guest hears of it."""
    for sid in (0x601, 0x4242, 0xFFFF):
        guest.ports[0].sid = sid
        for iova in (IOVA, BUFFER, 0):
            assert statuses(guest, 0, iova)[0] in ("abort", "fault")
    assert guest.events() == []
