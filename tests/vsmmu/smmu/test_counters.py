# SPDX-License-Identifier: BSD-2-Clause
"""Counters: exact values on small programs (docs/counters.md)."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdSync,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNsnhAll,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.intent import ConfigScope, TlbScope

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine

DATA = 0x8F00_0000
CFGI_ALL = CmdCfgiSteRange.build(range=31)
NG = 1 << 11


def counted(machine: Machine, *prefixes: str) -> dict[str, int]:
    """Counters under these prefixes that are not 0."""
    found = machine.smmu.counters.items()
    return {name: count for name, count in found if count and name.startswith(prefixes)}


# The command queue.


def test_commands_and_their_syncs() -> None:
    """Three commands and a CMD_SYNC at once, then a CMD_SYNC alone."""
    machine = Machine(Features.default().replace(sev=1))
    machine.post(*[CFGI_ALL] * 3, CmdSync.build(cs=1))
    machine.scheduler.run_until_idle()
    machine.post(CmdSync.build(cs=2))
    machine.scheduler.run_until_idle()
    machine.post(CmdTlbiNsnhAll.build(), CmdSync.build(), CmdSync.build())
    machine.scheduler.run_until_idle()
    assert counted(machine, "cmd", "sync", "sev", "mem") == {
        "cmd.CMD_CFGI_STE_RANGE": 3, "cmd.CMD_TLBI_NSNH_ALL": 1, "cmd.CMD_SYNC": 4,
        "cmd.fetched": 8, "cmdq.high": 4, "sync.irq": 1, "sync.sev": 1, "sync.none": 2, "sev": 1,
        "sync.behind": 3 + 0 + 1 + 0, "sync.occupancy": 1 + 1 + 2 + 1, "mem.read": 8,
    }  # fmt: skip


def test_errors_by_code() -> None:
    machine = Machine()
    machine.post(Command((0xFF, 0)))
    machine.scheduler.run_until_idle()
    assert counted(machine, "cmd.") == {"cmd.fetched": 1, "cmd.error": 1, "cmd.error.ILL": 1}
    machine = Machine(boot=False)
    machine.cmdq = NOWHERE
    machine.boot()
    machine.write("CMDQ_PROD", 1)
    machine.scheduler.run_until_idle()
    assert counted(machine, "cmd.") == {"cmd.fetched": 1, "cmd.error": 1, "cmd.error.ABT": 1}


def test_a_sync_that_waits_is_fetched_again() -> None:
    """An event that is not written yet holds CMD_SYNC back."""
    machine = Machine()
    machine.go(1, 0)
    machine.post(CmdSync.build())
    assert [machine.smmu.cmdq.step(1) for _ in range(3)] == [0, 0, 0]
    machine.smmu.eventq.step(1)
    assert machine.smmu.cmdq.step(1) == 1
    assert counted(machine, "cmd.") == {"cmd.fetched": 4, "cmd.waited": 3, "cmd.CMD_SYNC": 1}


# Over-invalidation of the TLB.


def three_asids(features: Features | None = None, caching: str = "normal") -> Machine:
    """ASIDs 1 to 3 with pages 0 and 1, non-global, and a global page 2: seven entries."""
    machine = Machine(features, caching=caching)
    for asid in (1, 2, 3):
        root = machine.s1_stream(asid, asid=asid)
        for page in range(3):
            flags = AF | RW_S1 | (NG if page < 2 else 0)
            machine.map(root, page * PAGE, DATA + page * PAGE, flags=flags)
    machine.command(CFGI_ALL)
    for asid in (1, 2, 3):
        for page in range(3):
            assert machine.go(asid, page * PAGE).status == "ok"
    return machine


def intended(machine: Machine, command: Command, *scopes: TlbScope | ConfigScope) -> None:
    machine.smmu.intend(machine.read("CMDQ_PROD"), *scopes)
    machine.command(command)


@pytest.mark.parametrize(
    ("scopes", "over"),
    [
        ((TlbScope(),), 0),
        ((TlbScope(0, 2),), 5),
        ((TlbScope(0, 2, (0x1000, 0x1FFF)),), 6),
        ((TlbScope(0, 2, (0x2000, 0x2FFF)),), 6),
        ((TlbScope(0, None, (0x1000, 0x1FFF)),), 4),
        ((TlbScope(0, 1), TlbScope(0, 2)), 3),
        ((TlbScope(7),), 7),
        ((TlbScope(stage=2),), 7),
        ((ConfigScope(0, 99),), 7),
        ((), 7),
    ],
)
def test_dropped_outside_of_the_intent(
    scopes: tuple[TlbScope | ConfigScope, ...], over: int
) -> None:
    """Seven entries: two of each ASID, and a global one, which all three ASIDs share."""
    machine = three_asids()
    intended(machine, CmdTlbiNsnhAll.build(), *scopes)
    want = {"tlb.invalidated": 7, "tlb.invalidated.CMD_TLBI_NSNH_ALL": 7}
    if over:
        want |= {"tlb.over": over, "tlb.over.CMD_TLBI_NSNH_ALL": over}
    assert counted(machine, "tlb.inv", "tlb.over") == want


def test_an_intent_is_for_one_command() -> None:
    machine = three_asids()
    intended(machine, CmdTlbiNhAsid.build(asid=1))
    machine.command(CmdTlbiNhAsid.build(asid=2))
    assert counted(machine, "tlb.inv", "tlb.over") == {
        "tlb.invalidated": 4, "tlb.invalidated.CMD_TLBI_NH_ASID": 4,
        "tlb.over": 2, "tlb.over.CMD_TLBI_NH_ASID": 2,
    }  # fmt: skip


def test_an_intent_is_forgotten_with_the_queue() -> None:
    """§6.3.26: the queue starts anew, and its places mean other commands."""
    machine = three_asids()
    machine.smmu.intend(machine.read("CMDQ_PROD"))
    machine.write("CR0", Cr0.build(smmuen=1).raw)
    machine.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw)
    machine.command(CmdTlbiNsnhAll.build())
    assert machine.smmu.counters["tlb.over"] == 0


def test_an_intent_lasts_as_long_as_its_command_is_held_back() -> None:
    machine = three_asids(caching="hostile")
    machine.smmu.intend(machine.read("CMDQ_PROD"), TlbScope(0, 1))
    machine.post(CmdTlbiNhAsid.build(asid=2), CmdTlbiNhAsid.build(asid=3))
    machine.scheduler.run_until_idle()
    assert counted(machine, "tlb.inv", "tlb.over") == {}
    machine.command()
    assert machine.smmu.counters["tlb.invalidated"] == 4
    assert machine.smmu.counters["tlb.over"] == 2


def test_addresses_with_a_sign_or_a_tag() -> None:
    """Bits 63:56 are no part of an address."""
    machine = three_asids()
    tagged = 0xA5 << 56 | 0x1000
    intended(machine, CmdTlbiS12Vmall.build(vmid=0), TlbScope(0, 1, (tagged, tagged)))
    assert machine.smmu.counters["tlb.over"] == 6


def test_the_rest_of_a_block_is_over() -> None:
    """A 2 MiB page of stage 1 over 4 KiB pages of stage 2 goes as a whole."""
    machine = Machine()
    root, root2 = machine.alloc(PAGE), machine.s2_root()
    cd = machine.cd(ttb0=root)
    machine.ste(1, config=7, s1ctxptr=cd, **machine.s2_fields(root2))
    machine.map(root, 0, 0x20_0000, size=1 << 21)
    machine.map(root2, 0x8000_0000, 0x8000_0000, size=1 << 30, flags=AF | RW_S2)
    for page in range(3):
        machine.map(root2, 0x20_0000 + page * PAGE, DATA + page * PAGE, flags=AF | RW_S2)
        assert machine.go(1, page * PAGE).status == "ok"
    machine.command(CmdTlbiNhVa.build(vmid=7, asid=1, addr=PAGE))
    assert machine.smmu.counters["tlb.invalidated"] == 3
    assert machine.smmu.counters["tlb.over"] == 2


def test_other_vmids_under_vmw_are_over() -> None:
    machine = Machine(Features.default().replace(vmw=1))
    machine.write("CR0", 0)
    machine.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1, vmw=1).raw)
    root2 = machine.s2_root()
    machine.map(root2, 0, DATA, flags=AF | RW_S2)
    for vmid in range(4):
        machine.ste(vmid, config=6, **machine.s2_fields(root2, s2vmid=vmid))
        assert machine.go(vmid, 0).status == "ok"
    machine.command(CmdTlbiS12Vmall.build(vmid=3))
    assert counted(machine, "tlb.inv", "tlb.over") == {
        "tlb.invalidated": 2, "tlb.invalidated.CMD_TLBI_S12_VMALL": 2,
        "tlb.over": 1, "tlb.over.CMD_TLBI_S12_VMALL": 1,
    }  # fmt: skip


def test_broadcasts_by_operation() -> None:
    machine = three_asids(Features.default().replace(btm=1))
    machine.write("CR0", 0)
    machine.write("CR2", Cr2.build(recinvsid=1).raw)
    assert machine.smmu.broadcast_tlbi("VMALLE1", intent=(TlbScope(0, 1),)) == 7
    assert machine.smmu.broadcast_tlbi("VAE1", asid=1) == 0
    assert counted(machine, "btm", "tlb.inv", "tlb.over") == {
        "btm.VMALLE1": 1, "btm.VAE1": 1, "tlb.invalidated": 7, "tlb.invalidated.VMALLE1": 7,
        "tlb.over": 5, "tlb.over.VMALLE1": 5,
    }  # fmt: skip


def test_insertion_and_eviction() -> None:
    machine = Machine(Features.default().replace(httu=2))
    machine.smmu.tlb.capacity = 2
    root = machine.s1_stream(1, ha=1, hd=1)
    for page in range(3):
        flags = AF | RW_S1 | 1 << 7 | 1 << 51
        machine.map(root, page * PAGE, DATA + page * PAGE, flags=flags)
        machine.go(1, page * PAGE)
    machine.go(1, 2 * PAGE, write=True)
    assert counted(machine, "tlb.", "httu") == {
        "tlb.hit": 1, "tlb.miss": 3, "tlb.inserted": 3, "tlb.evicted": 1, "tlb.replaced": 1,
        "httu.dirty": 1, "httu.written": 1,
    }  # fmt: skip


# Over-invalidation of configuration.


def two_streams() -> Machine:
    machine = Machine(Features.default().replace(ssidsize=4))
    for sid in (1, 2):
        table = machine.alloc(64 * 4)
        for ssid in range(4):
            machine.cd(table + 64 * ssid, ttb0=machine.alloc(PAGE))
        machine.ste(sid, config=5, s1ctxptr=table, s1cdmax=2, s1dss=2)
        for ssid in (1, 2):
            machine.go(sid, 0, ssid=ssid)
    return machine


@pytest.mark.parametrize(
    ("command", "scope", "dropped", "over"),
    [
        (CFGI_ALL, None, 6, 0),
        (CFGI_ALL, ConfigScope(2, 2), 6, 3),
        (CFGI_ALL, ConfigScope(2, 2, ssid=1), 6, 5),
        (CFGI_ALL, TlbScope(), 6, 6),
        (CmdCfgiSte.build(sid=1, leaf=1), ConfigScope(1, 1), 3, 0),
        (CmdCfgiSte.build(sid=1, leaf=1), ConfigScope(1, 1, ssid=2), 3, 2),
        (CmdCfgiCdAll.build(sid=1), ConfigScope(1, 1, ssid=2), 2, 1),
        (CmdCfgiCdAll.build(sid=1), None, 2, 0),
    ],
)
def test_configuration_outside_of_the_intent(
    command: Command, scope: ConfigScope | TlbScope | None, dropped: int, over: int
) -> None:
    machine = two_streams()
    if scope is not None:
        machine.smmu.intend(machine.read("CMDQ_PROD"), scope)
    machine.command(command)
    want = {"config.inserted": 6, "config.invalidated": dropped}
    want[f"config.invalidated.{command.name}"] = dropped
    if over:
        want |= {"config.over": over, f"config.over.{command.name}": over}
    assert counted(machine, "config.i", "config.o", "config.e", "config.f") == want


def test_level_1_descriptors_outside_of_the_intent() -> None:
    """Of the stream table: one for each 64 StreamIDs; and of CDs: one for each 64."""
    scope = ConfigScope(64, 127)
    assert [scope.has_l1std(6, index) for index in range(3)] == [False, True, False]
    assert ConfigScope(70, 70).has_l1std(6, 1)
    assert not ConfigScope(70, 70, ssid=0).has_l1std(6, 1)
    one = ConfigScope(3, 3, ssid=70)
    assert [one.has_cds(3, 6, index) for index in range(3)] == [False, True, False]
    assert not one.has_cds(2, 6, 1)
    assert ConfigScope(3, 3).has_cds(3, 6, 0)


def test_another_e2h_forgets_what_was_decoded() -> None:
    machine = Machine(Features.default().replace(hyp=1))
    machine.s1_stream(1)
    machine.go(1, 0)
    machine.write("CR0", 0)
    machine.write("CR2", Cr2.build(e2h=1).raw)
    machine.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw)
    machine.go(1, 0)
    assert machine.smmu.counters["config.forgotten"] == 2
