# SPDX-License-Identifier: BSD-2-Clause
"""CDs and L1CDs are stale until a command names them (IHI 0070 §3.21.3, §4.3)."""

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
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.memory import PAGE

from .machine import Machine
from .test_substreams import PA, SUBSTREAMS, context, linear, two_level, verdict


@pytest.fixture
def machine() -> Machine:
    return Machine(SUBSTREAMS)


@pytest.mark.parametrize(
    ("command", "fresh"),
    [
        (CmdCfgiCd.build(sid=1, ssid=1, leaf=1), {1}),
        (CmdCfgiCd.build(sid=1, ssid=0, leaf=0), {0}),
        (CmdCfgiCd.build(sid=1, ssid=0xF_FFFF, leaf=1), set()),
        (CmdCfgiCd.build(sid=2, ssid=1, leaf=1), set()),
        (CmdCfgiCdAll.build(sid=1), {0, 1, 2, 3}),
        (CmdCfgiCdAll.build(sid=2), set()),
        (CmdCfgiSte.build(sid=1, leaf=1), {0, 1, 2, 3}),
        (CmdCfgiSte.build(sid=0, leaf=0), set()),
        (CmdCfgiSteRange.build(sid=0, range=0), {0, 1, 2, 3}),
        (CmdTlbiNsnhAll.build(), set()),
    ],
)
def test_a_cd_is_stale_until_named(machine: Machine, command: Command, fresh: set[int]) -> None:
    """§4.3: CDs are kept by (StreamID, SubstreamID)."""
    table = linear(machine, 4)
    for ssid in range(4):
        verdict(machine, ssid)
    for ssid in range(4):
        machine.memory.write(table + 64 * ssid, bytes(Cd()))
    machine.command(command)
    assert {ssid for ssid in range(4) if verdict(machine, ssid) == "C_BAD_CD"} == fresh


def test_a_shared_cd_table_is_invalidated_for_each_stream(machine: Machine) -> None:
    """§4.3.3: the command names one StreamID, whoever shares its CDs."""
    table = linear(machine, 2)
    machine.ste(2, config=5, s1ctxptr=table, s1cdmax=1)
    assert [verdict(machine, 1, sid=sid) for sid in (1, 2)] == [PA + PAGE] * 2
    machine.memory.write(table + 64, bytes(Cd()))
    machine.command(CmdCfgiCd.build(sid=1, ssid=1, leaf=1))
    assert [verdict(machine, 1, sid=sid) for sid in (1, 2)] == ["C_BAD_CD", PA + PAGE]


@pytest.mark.parametrize(
    ("command", "new_leaf"),
    [
        (CmdCfgiCd.build(sid=1, ssid=65, leaf=1), False),
        (CmdCfgiCd.build(sid=1, ssid=65, leaf=0), True),
        (CmdCfgiCd.build(sid=1, ssid=1, leaf=0), False),
        (CmdCfgiCdAll.build(sid=1), True),
        (CmdCfgiSte.build(sid=1, leaf=1), True),
    ],
)
def test_l1cd_needs_a_non_leaf_invalidation(
    machine: Machine, command: Command, new_leaf: bool
) -> None:
    """§4.3.3 Leaf: with Leaf=1 the L1CD stays; CFGI_CD_ALL and CFGI_STE drop it anyway."""
    level1 = two_level(machine, 1, 12, 1, 65, 70)
    assert verdict(machine, 65) == PA + 65 * PAGE
    other = machine.alloc(64 << 6)
    machine.memory.write(level1 + 8, bytes(L1Cd.build(v=1, l2ptr=other)))
    machine.command(command)
    # A CD that was never looked up shows which leaf table its L1CD leads to.
    assert verdict(machine, 70) == ("C_BAD_CD" if new_leaf else PA + 70 * PAGE)


def test_an_invalid_l1cd_is_not_kept(machine: Machine) -> None:
    level1 = two_level(machine, 1, 12, 1)
    assert verdict(machine, 65) == "C_BAD_SUBSTREAMID"
    leaf = machine.alloc(PAGE)
    context(machine, 65, leaf + 64)
    machine.memory.write(level1 + 8, bytes(L1Cd.build(v=1, l2ptr=leaf)))
    assert verdict(machine, 65) == PA + 65 * PAGE


def test_room_for_cds_is_bounded(machine: Machine) -> None:
    machine.smmu.config.caching = type(machine.smmu.config.caching)(entries=8)
    linear(machine, 32)
    for _ in range(2):
        for ssid in range(32):
            assert verdict(machine, ssid) == PA + ssid * PAGE
    assert len(machine.smmu.config._contexts) == 8


def test_substreams_share_nothing_in_the_tlb(machine: Machine) -> None:
    """§3.17: it is the CD's ASID that tags, so each substream's translations are its own."""
    linear(machine, 4)
    for _ in range(2):
        assert [verdict(machine, s) for s in range(4)] == [PA + s * PAGE for s in range(4)]
    assert machine.smmu.counters["tlb.hit"] == 4
