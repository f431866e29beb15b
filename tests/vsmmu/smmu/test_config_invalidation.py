# SPDX-License-Identifier: BSD-2-Clause
"""Configuration is stale until a command names it (IHI 0070 §3.21.3, §4.3)."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdTlbiNsnhAll,
    Command,
)
from vsmmu.arch.registers import BY_NAME
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Smmu
from vsmmu.smmu.config import CONFIG_ENTRIES

from .machine import AF, RW_S2, Machine
from .test_strtab import two_level, verdict


@pytest.mark.parametrize(
    ("commands", "fresh"),
    [
        ((CmdCfgiSte.build(sid=1, leaf=1),), True),
        ((CmdCfgiSte.build(sid=2, leaf=1),), False),
        ((CmdCfgiSteRange.build(sid=0, range=0),), True),
        ((CmdCfgiSteRange.build(sid=2, range=0),), False),
        ((CmdCfgiSteRange.build(sid=3, range=1),), True),
        ((CmdCfgiSteRange.build(range=31),), True),
        ((CmdCfgiCd.build(sid=1), CmdCfgiCdAll.build(sid=1), CmdTlbiNsnhAll.build()), False),
    ],
)
@pytest.mark.parametrize("was_valid", [True, False])
def test_ste_is_stale_until_named(
    machine: Machine, commands: tuple[Command, ...], fresh: bool, was_valid: bool
) -> None:
    """An invalid STE is cached like a valid one (§3.21.3)."""
    before, after = {"config": 4}, {"v": 0, "config": 4}
    if not was_valid:
        before, after = after, before
    steps = {}
    for sid in (1, 2, 3):
        machine.memory.write(machine.strtab + 64 * sid, bytes(Ste.build(**{"v": 1, **before})))
        steps[sid] = verdict(machine, sid)
    machine.memory.write(machine.strtab + 64, bytes(Ste.build(**{"v": 1, **after})))
    assert verdict(machine, 1) == steps[1]
    machine.command(*commands)
    assert (verdict(machine, 1) != steps[1]) == fresh


@pytest.mark.parametrize(
    ("command", "fresh"),
    [
        (CmdCfgiCd.build(sid=1, leaf=1), True),
        (CmdCfgiCd.build(sid=1, ssid=1), False),
        (CmdCfgiCd.build(sid=2), False),
        (CmdCfgiCdAll.build(sid=1), True),
        (CmdCfgiSte.build(sid=1, leaf=1), True),
        (CmdTlbiNsnhAll.build(), False),
    ],
)
def test_cd_is_stale_until_named(machine: Machine, command: Command, fresh: bool) -> None:
    root = machine.alloc(PAGE)
    cd = machine.cd(ttb0=root)
    machine.ste(1, config=5, s1ctxptr=cd)
    assert verdict(machine, 1) == "F_TRANSLATION"
    machine.cd(cd, v=0)
    assert verdict(machine, 1) == "F_TRANSLATION"
    machine.command(command)
    assert (verdict(machine, 1) == "C_BAD_CD") == fresh


def test_level_1_descriptor_needs_a_non_leaf_invalidation(machine: Machine) -> None:
    """§4.3.1: Leaf=1 keeps a valid L1STD; an invalid one is not kept at all."""
    table = two_level(machine, split=8, log2size=16)
    assert verdict(machine, 5) == "C_BAD_STREAMID"
    old, new = machine.alloc(64 * 256), machine.alloc(64 * 256)
    machine.memory.write(old + 64 * 5, bytes(Ste.build(v=1, config=4)))
    machine.l1std(table, span=9, l2ptr=old)
    assert verdict(machine, 5) == "bypass"
    machine.l1std(table, span=9, l2ptr=new)
    machine.command(CmdCfgiSte.build(sid=5, leaf=1))
    assert verdict(machine, 5) == "bypass"
    machine.command(CmdCfgiSte.build(sid=5, leaf=0))
    assert verdict(machine, 5) == "C_BAD_STE"


def test_caching_none_is_never_stale() -> None:
    machine = Machine(caching="none")
    machine.ste(1, config=4)
    assert verdict(machine, 1) == "bypass"
    machine.ste(1, config=0)
    assert verdict(machine, 1) == "abort"
    assert machine.smmu.counters["config.hit"] == 0


def test_a_failed_fetch_is_not_cached(machine: Machine) -> None:
    s2root = machine.s2_root()
    cd = machine.cd(ttb0=machine.alloc(PAGE))
    machine.ste(1, config=7, s1ctxptr=cd, **machine.s2_fields(s2root))
    assert verdict(machine, 1) == "F_TRANSLATION"
    machine.map(s2root, cd & -PAGE, cd & -PAGE, flags=AF | RW_S2)
    machine.go(1, 0)
    (event,) = machine.events()
    assert event.fields["cls"].of(event.words) == 1


def test_cache_is_bounded(machine: Machine) -> None:
    machine.write("CR0", 0xC)
    table = machine.alloc(64 << 12)
    machine.write("STRTAB_BASE", table)
    machine.write("STRTAB_BASE_CFG", 12)
    machine.write("CR0", 0xD)
    for sid in range(CONFIG_ENTRIES + 10):
        machine.memory.write(table + 64 * sid, bytes(Ste.build(v=1, config=4)))
        assert verdict(machine, sid) == "bypass"
    assert len(machine.smmu.config._streams) == CONFIG_ENTRIES
    assert verdict(machine, CONFIG_ENTRIES + 9) == "bypass"
    assert machine.smmu.counters["config.hit"] == 1


def test_two_smmus_share_memory_and_nothing_else(machine: Machine) -> None:
    """The same StreamID on two SMMUs is two streams, and maintenance on one is not the other's."""
    other = Smmu("smmu1", machine.memory, machine.features)
    table = machine.alloc(64 * 256)
    for name, value in (("STRTAB_BASE", table), ("STRTAB_BASE_CFG", 8), ("CR0", 1)):
        other.mmio_write(BY_NAME[name].offset, BY_NAME[name].width // 8, value)
    machine.ste(1, config=4)
    machine.memory.write(table + 64, bytes(Ste.build(v=1, config=0)))
    access = Access(1, 0x1000, False)
    assert (machine.smmu.translate(access).status, other.translate(access).status) == (
        "bypass", "abort",
    )  # fmt: skip
    machine.memory.write(table + 64, bytes(Ste.build(v=1, config=4)))
    machine.command(CmdCfgiSteRange.build(range=31))
    assert other.translate(access).status == "abort"
