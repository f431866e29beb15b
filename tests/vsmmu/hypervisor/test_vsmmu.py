# SPDX-License-Identifier: BSD-2-Clause
"""What the posted Xen series gets wrong, one test each, and the clauses a driver relies on."""

from __future__ import annotations

from itertools import pairwise

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
    CmdTlbiEl2All,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.registers import (
    BY_NAME,
    EventqProd,
    Gbpa,
    Gerror,
    Idr0,
    Idr1,
    QueueBase,
    StrtabBaseCfg,
)
from vsmmu.arch.stream_table import L1Std, Ste, SteConfig
from vsmmu.hypervisor.features import UnfitError
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.wires import CAUSES, Wires, spis_by_cause
from vsmmu.smmu.features import Features
from vsmmu.ste_update import is_hitless

from .world import BASE, BUFFER, NOWHERE, RAM, World

CFGI = CmdCfgiSte.build(sid=0, leaf=1)
SYNC = CmdSync.build(cs=0)
CMDQ_ERR = Gerror.mask("cmdq_err")[0]
EVENTQ_ABT = Gerror.mask("eventq_abt_err")[0]


@pytest.fixture
def world() -> World:
    """Two guests: `g` on a and b with the same StreamID twice, `o` on b."""
    return World({"g": [("a", 0x600), ("b", 0x600)], "o": [("b", 0x700)]})


@pytest.fixture
def guest(world):
    """`g`, booted, vMasterID 0 and 1 attached and mapped at 0x10000."""
    g = world["g"].boot()
    for vmaster_id in (0, 1):
        g.attach(vmaster_id)
        g.map(vmaster_id, 0x10000, BUFFER + 0x1000 * vmaster_id)
    return g


def ok(guest, vmaster_id=0, iova=0x10000) -> bool:
    return guest.dma(vmaster_id, iova, b"data").ok


def physical(guest, vmaster_id=0) -> Ste:
    stream = guest.vsmmu.streams[vmaster_id]
    return stream.host.read_ste(stream.pmaster_id)


# Identity and reach.


def test_equal_stream_ids_on_two_smmus_stay_two_devices(guest):
    """The series looks a StreamID up without its SMMU."""
    assert guest.dma(0, 0x10000, b"zero").ok
    assert guest.dma(1, 0x10000, b"one!").ok
    assert guest.memory.read(BUFFER, 4) == b"zero"
    assert guest.memory.read(BUFFER + 0x1000, 4) == b"one!"
    guest.run(guest.driver.unmap(0, 0x10000, 0x1000))
    assert not ok(guest, 0)
    assert ok(guest, 1)
    assert guest.events() == [("F_TRANSLATION", 0)]


def test_a_stream_belongs_to_one_guest(world):
    other = world["o"].vsmmu
    with pytest.raises(HypercallError, match=r"^\(a, 0x600\) is already assigned to g$"):
        world.hypervisor.assign(other, 7, "a", 0x600)
    with pytest.raises(HypercallError, match=r"^vMasterID 0x0 is taken or out of range$"):
        world.hypervisor.assign(other, 0, "c", 0x1)
    with pytest.raises(HypercallError, match=r"^a: StreamID 0x10000 is beyond its 16 bits$"):
        world.hypervisor.assign(other, 7, "a", 0x10000)
    with pytest.raises(HypercallError, match=r"^x is not a physical SMMU of this machine$"):
        world.hypervisor.assign(other, 7, "x", 0)


def test_a_command_for_a_stream_that_is_not_the_guests_has_no_effect(guest):
    before = {name: smmu.counters.copy() for name, smmu in guest.world.smmus.items()}
    guest.put(CmdCfgiSte.build(sid=0x600), CmdCfgiCd.build(sid=0x700))
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")
    assert {n: s.counters for n, s in guest.world.smmus.items()} == before


def test_a_withdrawn_stream_is_stopped_and_can_be_given_away(guest):
    world = guest.world
    assert ok(guest, 1)
    world.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[1])
    assert physical_config(world, "b", 0x600) == SteConfig.ABORT
    assert [o.status for o in guest.dma(1, 0x10000, 4).outcomes] == ["abort"]
    other = world["o"].boot()
    world.hypervisor.assign(other.vsmmu, 5, "b", 0x600)
    other.attach(5)
    other.map(5, 0x10000, BUFFER)
    # The device now writes to its new guest, and the old one's memory is as it was.
    assert guest.dma(1, 0x10000, b"moved").ok
    assert other.memory.read(BUFFER, 5) == b"moved"
    assert guest.memory.read(BUFFER + 0x1000, 5) == b"data\0"


def physical_config(world, smmu, sid) -> int:
    return world.hypervisor.hosts[smmu].read_ste(sid).config


# STEs.


def test_a_second_cfgi_ste_with_a_live_stage_1(guest):
    """Panics the host in the series: it asserts that the old STE had no stage 1."""
    for _ in range(3):
        guest.put(CFGI, SYNC)
    assert ok(guest)


@pytest.mark.parametrize("config", [1, 2, 3])
def test_config_0xx_aborts_silently(guest, config):
    """A BUG() in the series."""
    guest.ste(0, Ste.build(v=1, config=config))
    guest.put(CFGI, SYNC)
    assert [o.status for o in guest.dma(0, 0x10000, 4).outcomes] == ["abort"]
    assert ok(guest, 1)
    assert guest.events() == []


@pytest.mark.parametrize("config", [6, 7])
def test_stage_2_is_not_the_guests_to_ask_for(guest, config):
    guest.ste(0, Ste.build(v=1, config=config, s2ttb=0x8000_0000, s2aa64=1, s2t0sz=24))
    guest.put(CFGI, SYNC)
    assert not ok(guest)
    assert guest.events() == [("C_BAD_STE", 0)]
    assert not physical(guest).v


def test_v_0_after_nested_stops_the_device(guest):
    """The series takes V=0 as nothing to do and leaves the old translation live."""
    guest.ste(0, Ste())
    guest.put(CFGI, SYNC)
    assert not ok(guest)
    assert guest.events() == [("C_BAD_STE", 0)]


def test_bypass_after_nested_really_bypasses(guest):
    """The series keeps the old stage 1."""
    guest.ste(0, Ste.build(v=1, config=SteConfig.BYPASS))
    guest.put(CFGI, SYNC)
    assert physical(guest).config == SteConfig.S2
    assert guest.dma(0, BUFFER + 0x2000, b"ipa").ok
    assert guest.memory.read(BUFFER + 0x2000, 3) == b"ipa"


def test_nothing_of_the_guests_ste_but_the_allowed_fields_reaches_hardware(guest):
    ours = guest.domain.nested_ste(Ste(), stall_disabled=False)
    wild = Ste(((1 << 64) - 1,) * 8)
    made = guest.domain.nested_ste(wild, stall_disabled=False)
    allowed = Ste.mask("s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh")
    for before, after, mask in zip(ours.words, made.words, allowed, strict=True):
        assert before & ~mask == after & ~mask


def test_turning_stage_1_on_and_off_is_hitless(guest):
    """The series passes through an abort on every update."""
    bypass, nested = guest.domain.stage2_ste(), physical(guest)
    assert (bypass.config, nested.config) == (SteConfig.S2, SteConfig.NESTED)
    assert is_hitless(bypass, nested)
    assert is_hitless(nested, bypass)


def test_substreams_are_not_advertised_and_not_passed_on(guest):
    cd = guest.driver.contexts[0].cd
    guest.ste(0, Ste.build(v=1, config=5, s1ctxptr=cd, s1cdmax=5, s1fmt=1, s1dss=0))
    guest.put(CFGI, SYNC)
    ste = physical(guest)
    assert (ste.s1cdmax, ste.s1fmt, ste.s1dss, ste.s1ctxptr) == (0, 0, 0, cd)
    assert ok(guest)


@pytest.mark.parametrize("split", [6, 8, 10, 0, 7, 31])
def test_the_guests_split_is_used_for_both_indices(world, split):
    """The series indexes level 1 with a constant 8."""
    g = world["g"].boot()
    g.write("CR0", 0)
    effective = split if split in (6, 8, 10) else 6
    level1, level2 = (
        g.driver.heap.allocate(1 << 17, 1 << 17),
        g.driver.heap.allocate(1 << 16, 1 << 16),
    )
    ste = Ste.build(v=1, config=SteConfig.BYPASS)
    for sid in g.vsmmu.streams:
        g.memory.write_words(level2 + 64 * sid, ste.words)
    g.memory.write64(level1, L1Std.build(span=effective + 1, l2ptr=level2).raw)
    g.write("STRTAB_BASE", level1)
    g.write("STRTAB_BASE_CFG", 16 | split << 6 | 1 << 16)
    g.write("CR0", 0xD)
    assert g.dma(1, BUFFER, b"x").ok


def test_a_linear_table(world):
    """The series takes every table as two-level."""
    g = world["g"].boot()
    g.write("CR0", 0)
    table = g.driver.heap.allocate(64 << 8, 64 << 8)
    g.memory.write_words(table + 64, Ste.build(v=1, config=SteConfig.BYPASS).words)
    g.write("STRTAB_BASE", table)
    g.write("STRTAB_BASE_CFG", 8)
    g.write("CR0", 0xD)
    assert g.dma(1, BUFFER, b"x").ok
    assert not g.dma(0, BUFFER, b"x").ok
    assert g.events() == [("C_BAD_STE", 0)]


@pytest.mark.parametrize("span", [0, 10, 12, 31])
def test_a_bad_span_is_c_bad_streamid_if_recorded(world, span):
    """§5.1; recorded with CR2.RECINVSID only. Span 10 is more than SPLIT 8 + 1."""
    g = world["g"].boot()
    g.attach(0)
    l1std = L1Std(g.memory.read64(g.driver._strtab))
    g.memory.write64(g.driver._strtab, l1std.replace(span=span).raw)
    g.put(CFGI, SYNC)
    assert not ok(g)
    assert g.events() == [("C_BAD_STREAMID", 0)]
    g.write("CR0", 0xC)
    g.write("CR2", 0)
    g.write("CR0", 0xD)
    assert not ok(g)
    assert g.events() == []


@pytest.mark.parametrize("leaf", [0, 1])
def test_a_non_leaf_cfgi_ste_shows_the_other_entries_of_a_new_table(world, leaf):
    """An STE behind an invalid L1STD was never cached, so no command has to name it (§4.3.1)."""
    g = world["g"].boot()
    table = g.driver.heap.allocate(64 << 8, 64 << 8)
    for sid in (0, 1):
        g.memory.write_words(table + 64 * sid, Ste.build(v=1, config=SteConfig.BYPASS).words)
    g.memory.write64(g.driver._strtab, L1Std.build(span=9, l2ptr=table).raw)
    g.put(CmdCfgiSte.build(sid=0, leaf=leaf), SYNC)
    assert ok(g, 0, BUFFER)
    assert ok(g, 1, BUFFER) == (leaf == 0)


def test_a_device_reaches_nothing_before_the_smmu_is_up():
    """The hypervisor boots with GBPA.ABORT, so its tables cannot be written meanwhile."""
    world = World({})
    for smmu in world.smmus.values():
        assert Gbpa(smmu.regs["GBPA"]).abort == 1


def test_a_device_may_fetch_instructions(guest):
    """Stage 2 is the CPU's p2m as well: RAM is executable."""
    guest.ste(0, Ste.build(v=1, config=SteConfig.BYPASS))
    guest.put(CFGI, SYNC)
    request = guest.ports[0].read(BUFFER, 16, instr=True)
    assert guest.world.scheduler.run_until_idle()
    assert request.ok


def test_a_table_that_is_too_short(world):
    g = world["g"].boot()
    g.write("CR0", 0xC)
    g.write("STRTAB_BASE_CFG", 0)
    g.write("CR0", 0xD)
    assert not ok(g, 1)
    assert g.events() == [("C_BAD_STREAMID", 1)]


@pytest.mark.parametrize("two_level", [False, True])
@pytest.mark.parametrize("beyond", [0, 1 << 52])
def test_a_table_outside_the_guests_memory_is_f_ste_fetch(world, two_level, beyond):
    """§7.3.4: FetchAddr[55:OAS] is RES0, by the OAS that the guest was told."""
    g = world["g"].boot()
    g.write("CR0", 0xC)
    base, cfg = beyond | NOWHERE, StrtabBaseCfg.build(log2size=8)
    if two_level:
        g.memory.write64(BUFFER, L1Std.build(span=9, l2ptr=base).raw)
        base, cfg = BUFFER, cfg.replace(split=8, fmt=1)
    g.write("STRTAB_BASE", base)
    g.write("STRTAB_BASE_CFG", cfg.raw)
    g.write("CR0", 0xD)
    assert not ok(g, 1)
    assert [e.fetchaddr for e in g.driver.events] == [NOWHERE + 64]
    assert g.events() == [("F_STE_FETCH", 1)]


def test_a_level_1_table_outside_the_guests_memory_is_f_ste_fetch(world):
    g = world["g"].boot()
    g.write("CR0", 0xC)
    g.write("STRTAB_BASE", 1 << 52 | NOWHERE)
    g.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=8, split=6, fmt=1).raw)
    g.write("CR0", 0xD)
    assert not ok(g, 1)
    assert [e.fetchaddr for e in g.driver.events] == [NOWHERE]


def test_cd_and_tables_outside_the_guests_memory(guest):
    """Stage 2 contains them; the guest sees its own addresses (CLASS CD and TT)."""
    guest.ste(0, Ste.build(v=1, config=5, s1ctxptr=NOWHERE))
    guest.put(CFGI, SYNC)
    assert not ok(guest)
    assert [e.fetchaddr for e in guest.driver.events] == [NOWHERE]
    assert guest.events() == [("F_CD_FETCH", 0)]
    guest.memory.write64(guest.driver.contexts[1].tables.ttb, NOWHERE | 3)
    guest.put(CmdTlbiNhAll.build(), SYNC)
    assert not ok(guest, 1)
    (event,) = guest.driver.events
    assert (event.fetchaddr, event.inputaddr, event.s2) == (NOWHERE, 0x10000, 0)
    assert guest.events() == [("F_WALK_EABT", 1)]


def test_data_outside_the_guests_memory_is_kept(guest):
    guest.map(0, 0x50000, NOWHERE)
    assert not ok(guest, 0, 0x50000)
    assert guest.events() == []
    assert guest.world.hypervisor.kept == {"F_TRANSLATION: stage 2 fault": 1}


# Commands.


ILLEGAL = [
    Command((0xFF, 0)),
    Command((0, 0)),
    CmdSync.build(cs=3),
    CmdTlbiEl2All.build(),
    CmdTlbiS12Vmall.build(vmid=1),
    CmdTlbiS2Ipa.build(vmid=1),
    CmdAtcInv.build(),
    CmdPriResp.build(),
    CmdResume.build(),
    CmdStallTerm.build(),
    CmdCfgiSte.build(ssec=1),
    CmdTlbiNhVa.build(tg=1),
    CmdTlbiNhVa.build(tg=2, ttl=1),
]


@pytest.mark.parametrize("command", ILLEGAL, ids=lambda c: f"{c.words[0]:#x}")
def test_an_illegal_command_stops_the_queue_until_acknowledged(guest, command):
    """The series logs and skips; the guest never learns. §7.1."""
    guest.quiet()
    start = guest.read("CMDQ_CONS") & 0xFFFFF
    guest.put(SYNC, command, SYNC)
    cons = guest.read("CMDQ_CONS")
    assert cons == (start + 1) % 512 | 1 << 24
    assert guest.vsmmu.regs.gerror_active == CMDQ_ERR
    # Repaired and acknowledged, it goes on from there.
    guest.memory.write_words(guest.driver._cmdq.address(cons), SYNC.words)
    guest.write("GERRORN", guest.read("GERROR"))
    assert guest.read("CMDQ_CONS") & 0xFFFFF == guest.read("CMDQ_PROD")


def test_a_queue_outside_the_guests_memory_is_cerror_abt(guest):
    guest.quiet()
    guest.write("CR0", 0)
    guest.write("CMDQ_BASE", QueueBase.build(addr=NOWHERE, log2size=8).raw)
    guest.write("CMDQ_PROD", 5)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 8)
    assert guest.read("CMDQ_CONS") == 2 << 24
    assert guest.vsmmu.regs.gerror_active == CMDQ_ERR


@pytest.mark.parametrize("ahead", [257, 400, 511])
def test_a_producer_beyond_the_queue_runs_nothing(guest, ahead):
    """Up to 2^20-1 commands in one trap in the series."""
    before = guest.vsmmu.counters.copy()
    guest.write("CMDQ_PROD", guest.read("CMDQ_CONS") + ahead & 0x1FF)
    after = guest.vsmmu.counters
    assert {
        n: after[n] - before[n] for n in after if n.startswith("CMD") and after[n] != before[n]
    } == {}


def test_a_trap_does_no_work(guest):
    """A full queue is entered; the register write returns with nothing consumed."""
    guest.quiet()
    prod = guest.read("CMDQ_PROD")
    for i in range(256):
        guest.memory.write_words(guest.driver._cmdq.address(prod + i), CmdTlbiNhAll.build().words)
    guest.write("CMDQ_PROD", prod + 256 & 0x1FF, rest=False)
    assert guest.read("CMDQ_CONS") == prod
    assert guest.vsmmu.step(10) == 10
    assert guest.read("CMDQ_CONS") == (prod + 10) % 512


def test_repeated_flushes_reach_hardware_once(guest):
    """The series sends a flush and a CMD_SYNC for each device for each command."""
    before = {n: h.counters.copy() for n, h in guest.world.hypervisor.hosts.items()}
    guest.put(*[CmdTlbiNhAsid.build(asid=1)] * 50, SYNC)
    for name in ("a", "b"):
        host = guest.world.hypervisor.hosts[name]
        assert host.counters - before[name] == {"CMD_TLBI_NH_ASID": 1, "CMD_SYNC": 1}
    assert guest.world.hypervisor.hosts["c"].counters == before["c"]


def test_maintenance_names_the_guests_own_vmid(guest):
    """Whatever VMID the guest writes; by ASID and address, not the whole domain."""
    sent = []
    host = guest.world.hypervisor.hosts["a"]
    original = host.submit
    host.submit = lambda owner, commands, done=None: (
        sent.extend(commands),
        original(owner, commands, done),
    )[1]
    guest.put(CmdTlbiNhVa.build(vmid=77, asid=3, addr=0x5000, leaf=1), SYNC)
    vmid = guest.domain.vmid
    assert sent == [CmdTlbiNhVa.build(vmid=vmid, asid=3, addr=0x5000, leaf=1)]


def test_a_cd_invalidation_reaches_the_physical_cache(guest):
    """A no-op in the series: the old CD stays in use."""
    assert ok(guest)
    old = guest.driver.contexts[0]
    guest.memory.write64(old.cd, guest.memory.read64(old.cd) & ~(1 << 31))
    assert ok(guest), "cached, and nothing was invalidated"
    guest.put(CmdCfgiCd.build(sid=0, leaf=1), SYNC)
    assert not ok(guest)
    assert guest.events() == [("C_BAD_CD", 0)]


def test_cfgi_all_reads_every_ste_again(guest):
    """A no-op in the series."""
    for vmaster_id in (0, 1):
        guest.ste(vmaster_id, Ste())
    assert ok(guest, 0), "cached, and nothing was invalidated"
    guest.put(CmdCfgiSteRange.build(range=31), SYNC)
    assert not ok(guest, 0)
    assert not ok(guest, 1)
    assert guest.events() == [("C_BAD_STE", 0), ("C_BAD_STE", 1)]


def test_cfgi_ste_range_covers_its_aligned_block_only(guest):
    for vmaster_id in (0, 1):
        guest.ste(vmaster_id, Ste())
    guest.put(CmdCfgiSteRange.build(sid=2, range=0), SYNC)
    assert ok(guest, 0)
    guest.put(CmdCfgiSteRange.build(sid=1, range=0), SYNC)
    assert not ok(guest, 0)
    assert not ok(guest, 1)


def test_a_sync_completes_after_the_physical_ones(guest):
    """While a physical SMMU is slow, CONS stays on the guest's CMD_SYNC."""
    slow = guest.world.smmus["b"].cmdq
    guest.world.scheduler.remove(slow)
    prod = guest.read("CMDQ_PROD")
    guest.put(CmdTlbiNhAll.build(), SYNC)
    assert guest.read("CMDQ_CONS") == (prod + 1) % 512
    guest.world.scheduler.add(slow)
    assert guest.world.scheduler.run_until_idle()
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")


# Registers.


def test_cr0ack_follows_the_shadow(guest):
    """§6.3.9: SMMUEN is acknowledged when all traffic uses the STEs."""
    guest.write("CR0", 0xC, rest=False)
    assert guest.read("CR0ACK") == 0xD
    assert guest.world.scheduler.run_until_idle()
    assert guest.read("CR0ACK") == 0xC


def test_gbpa_applies_while_disabled(guest):
    assert guest.read("GBPA") == 0x1000
    guest.write("GBPA", Gbpa.build(abort=1).raw)
    assert guest.read("GBPA") == 0x1000, "ignored without Update"
    guest.write("CR0", 0xC)
    assert guest.dma(0, BUFFER, b"x").ok
    guest.write("GBPA", Gbpa.build(abort=1, update=1).raw, rest=False)
    assert Gbpa(guest.read("GBPA")).update == 1
    assert guest.world.scheduler.run_until_idle()
    assert guest.read("GBPA") == Gbpa.build(abort=1).raw
    assert [o.status for o in guest.dma(0, BUFFER, b"x").outcomes] == ["abort"]


GUARDED = ["STRTAB_BASE", "STRTAB_BASE_CFG", "CMDQ_BASE", "CMDQ_CONS", "EVENTQ_BASE",
           "EVENTQ_PROD", "CR2"]  # fmt: skip


@pytest.mark.parametrize("name", GUARDED)
def test_a_guarded_register_keeps_its_value_while_enabled(guest, name):
    before = guest.read(name)
    guest.write(name, before ^ 0x3F & BY_NAME[name].layout.claimed[0])
    assert guest.read(name) == before


def test_identification(guest):
    """One stage, a real IIDR (the series aborts on it), and less than the hardware has."""
    idr0, idr1 = Idr0(guest.read("IDR0")), Idr1(guest.read("IDR1"))
    assert (idr0.s1p, idr0.s2p, idr0.hyp, idr0.vmid16, idr0.ats, idr0.msi) == (1, 0, 0, 0, 0, 0)
    assert (idr1.sidsize, idr1.ssidsize) == (16, 0)
    assert guest.read("IIDR") == 0x43B
    assert guest.read("AIDR") == 2
    before = guest.read("IDR0")
    guest.write("IDR0", 0)
    assert guest.read("IDR0") == before


def test_features_are_the_intersection():
    hosts = Features.default(sidsize=16, aidr=1).replace(
        ril=0, asid16=0, gran16k=0, oas=4, cohacc=0
    )
    g = World({"g": [("a", 1)]}, features=hosts)["g"].boot()
    assert Idr0(g.read("IDR0")).asid16 == 0
    assert Idr0(g.read("IDR0")).cohacc == 0
    assert g.read("IDR3") & 1 << 10 == 0
    assert g.read("IDR5") == 4 | 1 << 4 | 1 << 6
    assert g.read("AIDR") == 1
    g.attach(0)
    g.map(0, 0, BUFFER, 0x3000)
    assert ok(g, 0, 0x1000)
    g.run(g.driver.unmap(0, 0, 0x3000))
    assert not ok(g, 0, 0x1000)


@pytest.mark.parametrize("stages", ["1", "2"])
def test_an_smmu_that_cannot_nest_is_refused(stages):
    with pytest.raises(UnfitError) as caught:
        World({"g": [("a", 1)]}, features=Features.default(stages=stages, sidsize=16))
    text = "a: nested translation needs both stages (IDR0.S1P, IDR0.S2P)"
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("offset", "size"), [(0x20, 1), (0x20, 2), (0x22, 4), (0x84, 8), (0x3FFF8, 8), (0x5000, 4)]
)
def test_odd_accesses_are_harmless(guest, offset, size):
    before = dict(guest.vsmmu.regs.values)
    hv = guest.world.hypervisor
    assert hv.trap(guest.domain, BASE + offset, size) == 0
    assert hv.trap(guest.domain, BASE + offset, size, (1 << 8 * size) - 1) == 0
    assert guest.vsmmu.regs.values == before


def test_nothing_is_emulated_outside_the_window(guest):
    hv = guest.world.hypervisor
    assert hv.trap(guest.domain, BASE - 4, 4) is None
    assert hv.trap(guest.domain, BASE + 0x40000, 4, 0) is None


def test_a_64_bit_register_in_halves(guest):
    hv, low = guest.world.hypervisor, BY_NAME["STRTAB_BASE"].offset
    guest.write("CR0", 0)
    hv.trap(guest.domain, BASE + low, 4, 0x1234_5000)
    hv.trap(guest.domain, BASE + low + 4, 4, 0x1)
    assert guest.read("STRTAB_BASE") == 0x1_1234_5000


# Events and the interrupt.


def test_the_line_is_a_level(guest):
    """The series raises it for every event and never lowers it."""
    guest.vcpu.handlers.clear()
    assert not guest.vcpu.lines.get(33)
    ok(guest, 0, 0x90000)
    assert guest.vcpu.lines[33]
    guest.write("IRQ_CTRL", 1)
    assert not guest.vcpu.lines[33], "IRQ_CTRL.EVENTQ_IRQEN is 0"
    guest.write("IRQ_CTRL", 5)
    assert guest.vcpu.lines[33]
    guest.write("EVENTQ_CONS", guest.read("EVENTQ_PROD"))
    assert not guest.vcpu.lines[33]


def test_lines_by_cause():
    """A host's separate lines stay separate in dom0's tree, so each cause has its own."""
    assert spis_by_cause([96, 97, 98], ["gerror", "eventq", "cmdq-sync"]) == {
        "eventq": 97,
        "gerror": 96,
        "cmdq-sync": 98,
    }
    assert spis_by_cause([33], ["combined"]) == dict.fromkeys(CAUSES, 33)
    assert spis_by_cause([40, 41], []) == dict.fromkeys(CAUSES, 40)
    assert spis_by_cause([40, 0], ["eventq", "gerror"]) == {"eventq": 40}
    assert spis_by_cause([], []) == {}


def test_a_shared_line_is_high_while_any_cause_is():
    seen: list[tuple[int, bool]] = []
    wires = Wires({"eventq": 1, "gerror": 1, "cmdq-sync": 2}, lambda *line: seen.append(line))
    for cause, level in (
        ("eventq", True), ("gerror", True), ("eventq", False), ("cmdq-sync", True),
        ("cmdq-sync", False), ("gerror", False), ("priq", True),
    ):  # fmt: skip
        wires(cause, level)
    assert seen == [(1, True), (2, True), (2, False), (1, False)]


def test_a_full_queue_is_an_overflow_and_goes_on_after_the_guest_reads(guest):
    """The series reports EVENTQ_ABT_ERR, and a guard on CONS keeps the queue full for ever."""
    guest.vcpu.handlers.clear()
    for _ in range(130):
        ok(guest, 0, 0x90000)
    prod = EventqProd(guest.read("EVENTQ_PROD"))
    assert (prod.ovflg, prod.wr) == (1, 128)
    assert guest.vsmmu.regs.gerror_active == 0
    guest.write("EVENTQ_CONS", 3)
    ok(guest, 0, 0x90000)
    prod = EventqProd(guest.read("EVENTQ_PROD"))
    assert (prod.ovflg, prod.wr) == (1, 129)
    guest.write("EVENTQ_CONS", 1 << 31 | 128)
    ok(guest, 0, 0x90000)
    assert guest.read("EVENTQ_PROD") == 1 << 31 | 130


def test_a_queue_that_aborts_is_eventq_abt_err(guest):
    guest.vcpu.handlers.clear()
    guest.write("CR0", 9)
    guest.write("EVENTQ_BASE", QueueBase.build(addr=NOWHERE, log2size=4).raw)
    guest.write("CR0", 0xD)
    ok(guest, 0, 0x90000)
    assert guest.vsmmu.regs.gerror_active == EVENTQ_ABT
    assert guest.read("EVENTQ_PROD") == 0, "not advanced: nothing was written"


def test_a_flood_of_one_guest_does_not_lose_the_others_event(guest):
    """Both share SMMU b, whose physical event queue holds 256 records."""
    other = guest.world["o"].boot()
    other.attach(0)
    guest.vcpu.handlers.clear()
    for _ in range(200):
        guest.ports[1].read(0x90000, 4096)
    request = other.ports[0].read(0x90000, 4)
    for _ in range(200):
        guest.ports[1].read(0x90000, 4096)
        guest.world.scheduler.step()
        if guest.ports[1].pending > 200:
            break
    assert guest.world.scheduler.run_until_idle()
    assert request.done
    assert other.events() == [("F_TRANSLATION", 0)]


def test_records_are_built_from_named_fields(guest):
    """Bits that are not the guest's to see are zero: IPA, S2, CLASS of the hypervisor's stage."""
    ok(guest, 1, 0x90123)
    (event,) = guest.driver.events
    assert event.to_json() == {
        "type": "0x10", "ssv": "0x0", "ssid": "0x0", "sid": "0x1", "pnu": "0x0", "ind": "0x0",
        "rnw": "0x0", "inputaddr": "0x90123", "stag": "0x0", "stall": "0x0", "nsipa": "0x0",
        "s2": "0x0", "cls": "IN", "ipa": "0x0",
    }  # fmt: skip


def test_two_vcpus_racing_on_the_producer(guest):
    """Any order of the writes leaves a consistent queue: what counts is the last one."""
    prod = guest.read("CMDQ_PROD")
    for i in range(4):
        guest.memory.write_words(guest.driver._cmdq.address(prod + i), SYNC.words)
    for value in (prod + 3, prod + 1, prod + 4, prod + 2, prod + 4):
        guest.write("CMDQ_PROD", value & 0x1FF, rest=False)
        guest.vsmmu.step(1)
    assert guest.world.scheduler.run_until_idle()
    assert guest.read("CMDQ_CONS") == (prod + 4) % 512
    assert ok(guest)


def test_ram_of_a_guest_is_its_own(world):
    owned = [span for g in world.guests.values() for span in g.domain.owned]
    spans = sorted(owned)
    assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
    for g in world.guests.values():
        for _, pa, size in g.domain.stage2.mappings():
            assert any(base <= pa and pa + size <= base + n for base, n in g.domain.owned)
        assert g.memory.read64(RAM - 8) is None
