# SPDX-License-Identifier: BSD-2-Clause
"""Items of the attack corpus that no other module has; docs/attacks.md lists them all."""

from __future__ import annotations

from itertools import permutations

import pytest

from vsmmu.arch.commands import CmdCfgiCd, CmdCfgiSte, CmdPrefetchConfig
from vsmmu.arch.registers import QueueBase
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.hypervisor import HypercallError

from .attack import CFGI, SYNC, UNMAPPED, post, records, sent, settle
from .world import BUFFER, RAM

LARGEST = 19


@pytest.mark.parametrize("ahead", [(1 << 20) - 1, (1 << LARGEST) + 1])
def test_the_farthest_jump_of_prod_runs_nothing(guest, ahead):
    """In the largest queue the index and its wrap bit have 20 bits; more than full is no order."""
    guest.write("CR0", 5)
    guest.write("CMDQ_BASE", QueueBase.build(addr=RAM, log2size=LARGEST).raw)
    guest.write("CMDQ_PROD", 0)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 0xD)
    before = guest.vsmmu.counters.copy()
    guest.write("CMDQ_PROD", ahead)
    after = guest.vsmmu.counters - before
    assert not [name for name in after if name.startswith("CMD")]
    assert (guest.read("CMDQ_CONS"), guest.read("GERROR") ^ guest.read("GERRORN")) == (0, 0)
    assert guest.dma(0, 0x10000, b"x").ok


def test_the_largest_queue_is_worked_off_in_turns(world, guest):
    """2^19 commands in one write of PROD: each turn takes its budget of them, and no more."""
    guest.write("CR0", 5)
    guest.memory.write_words(RAM, CmdPrefetchConfig.build().words * 64)
    guest.write("CMDQ_BASE", QueueBase.build(addr=RAM, log2size=LARGEST).raw)
    guest.write("CMDQ_PROD", 0)
    guest.write("CMDQ_CONS", 0)
    guest.write("CR0", 0xD)
    guest.write("CMDQ_PROD", 1 << LARGEST, rest=False)
    assert guest.read("CMDQ_CONS") == 0
    assert [guest.vsmmu.step(16), guest.read("CMDQ_CONS")] == [16, 16]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("between", [0, 1, 5])
def test_three_vcpus_racing_on_the_producer(world, guest, order, between):
    """Each has put a command behind the others'; whatever the order of the writes, each runs."""
    prod, ring = guest.read("CMDQ_PROD"), guest.driver._cmdq
    cpus = []
    for number in range(3):
        words = CmdCfgiCd.build(sid=number % 2).words
        guest.memory.write_words(ring.address(prod + number), words)
        cpus.append(ring.advance(prod, number + 1))
    seen = guest.vsmmu.counters["CMD_CFGI_CD"]
    for cpu in order:
        guest.write("CMDQ_PROD", cpus[cpu], rest=False)
        world.scheduler.run(between)
    # The last write may be an early CPU's; it sees that it is not the last and writes again.
    guest.write("CMDQ_PROD", cpus[2], rest=False)
    settle(world)
    assert guest.read("CMDQ_CONS") == cpus[2]
    assert guest.vsmmu.counters["CMD_CFGI_CD"] - seen >= 3
    assert guest.vsmmu.regs.gerror_active == 0


def test_a_stream_id_that_names_no_stream_has_no_effect(world, guest):
    """No physical command, no error, and no record: C_BAD_STE is for accesses (§7.3.5)."""
    for smmu in ("a", "b", "c"):
        seen = sent(guest, smmu)
        for sid in (2, 0x600, 0xFFFF, 0x10000, 0xFFFF_FFFF):
            guest.put(CmdCfgiSte.build(sid=sid, leaf=1), CmdCfgiCd.build(sid=sid), SYNC)
        assert seen == []
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")
    assert records(guest) == []


def test_the_65536th_vmaster_id(world):
    """All 16 bits are usable, and one more is refused, not looked for without end."""
    hv, other = world.hypervisor, world["o"].boot()
    hv.assign(other.vsmmu, 0xFFFF, "b", 0x701)
    with pytest.raises(HypercallError, match=r"^vMasterID 0x10000 is taken or out of range$"):
        hv.assign(other.vsmmu, 0x10000, "b", 0x702)
    other.attach(0xFFFF)
    assert sorted(other.vsmmu.streams) == [0, 0xFFFF]
    stream = other.vsmmu.streams[0xFFFF]
    assert stream.host.read_ste(stream.pmaster_id).config == SteConfig.NESTED


@pytest.mark.parametrize("first", [SteConfig.BYPASS, SteConfig.ABORT, 6])
def test_anything_after_nested_and_stage_1_again(guest, first):
    """The series asserts that the old STE had no stage 1: the host panics."""
    cd = guest.driver.contexts[0].cd
    nested = Ste.build(v=1, config=SteConfig.S1, s1ctxptr=cd, s1cir=1, s1cor=1, s1csh=3)
    for ste in (nested, Ste.build(v=1, config=first), nested, nested, Ste(), nested):
        guest.ste(0, ste)
        guest.put(CFGI, SYNC)
    assert guest.dma(0, 0x10000, b"data").ok
    assert guest.memory.read(BUFFER, 4) == b"data"


def test_an_event_queue_of_one_entry_that_is_full(world, guest):
    """The record in it stays whole, OVFLG says that others are lost; no global error (§7.2)."""
    guest.write("CR0", 9)
    guest.write("EVENTQ_BASE", QueueBase.build(addr=BUFFER, log2size=0).raw)
    guest.write("EVENTQ_PROD", 0)
    guest.write("EVENTQ_CONS", 0)
    guest.write("CR0", 0xD)
    for _ in range(5):
        guest.dma(1, UNMAPPED, 4)
    assert guest.read("EVENTQ_PROD") == 1 << 31 | 1
    assert guest.memory.read64(BUFFER) == 1 << 32 | 0x10
    assert guest.vsmmu.regs.gerror_active == 0
    post(guest, SYNC)
    settle(world)
    assert guest.read("CMDQ_CONS") == guest.read("CMDQ_PROD")
