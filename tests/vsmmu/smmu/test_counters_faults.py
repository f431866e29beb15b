# SPDX-License-Identifier: BSD-2-Clause
"""Counters: what walks read, what becomes of faults, what is written (docs/counters.md)."""

from __future__ import annotations

import numpy as np
import pytest

from vsmmu.arch.commands import CmdResume, CmdSync
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import Cr0, Cr2, QueueBase
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features
from vsmmu.smmu.ats import TranslationRequest

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine
from .test_counters import DATA, counted

GIB, BLOCK = 1 << 30, 1 << 21


# A cold walk: S1 levels n1 and S2 levels n2 read (n1 + 1)(n2 + 1) - 1 descriptors.


@pytest.mark.parametrize(
    ("config", "s1_size", "s2_size", "walks"),
    [
        (4, 0, 0, {"walk.ste": 1}),
        (5, PAGE, 0, {"walk.ste": 1, "walk.cd": 1, "walk.s1": 3}),
        (6, 0, PAGE, {"walk.ste": 1, "walk.s2": 3}),
        (6, 0, BLOCK, {"walk.ste": 1, "walk.s2": 2}),
        (6, 0, GIB, {"walk.ste": 1, "walk.s2": 1}),
        (7, PAGE, PAGE, {"walk.ste": 1, "walk.cd": 1, "walk.s1": 3, "walk.s2": 12 + 3}),
        (7, PAGE, BLOCK, {"walk.ste": 1, "walk.cd": 1, "walk.s1": 3, "walk.s2": 8 + 2}),
        (7, BLOCK, GIB, {"walk.ste": 1, "walk.cd": 1, "walk.s1": 2, "walk.s2": 3 + 1}),
    ],
)
def test_a_cold_walk(config: int, s1_size: int, s2_size: int, walks: dict[str, int]) -> None:
    """Nothing cached, the CD behind stage 2 as well."""
    machine = Machine(caching="none")
    root, root2 = machine.alloc(PAGE), machine.s2_root()
    cd = machine.cd(ttb0=root)
    if s1_size:
        machine.map(root, 0, 0x8000_0000 if s2_size else DATA, size=s1_size)
    base = 0x8000_0000 if config == 7 else 0
    if s2_size:
        end = max(machine._next + 64 * PAGE, 0x8000_0000 + s2_size) - 0x8000_0000
        for place in range(0, end, s2_size):
            machine.map(root2, base + place, 0x8000_0000 + place, size=s2_size, flags=AF | RW_S2)
    machine.ste(1, config=config, s1ctxptr=cd, **machine.s2_fields(root2))
    assert machine.go(1, 0).pa is not None
    assert counted(machine, "walk", "mem") == {**walks, "mem.read": sum(walks.values())}


# Faults by fate.


@pytest.mark.parametrize(
    ("sid", "cd", "ste", "cr2"),
    [
        (1, {"r": 0}, {"config": 5}, {"recinvsid": 1}),
        (1, {}, {"config": 6, "s2r": 0}, {"recinvsid": 1}),
        (300, {}, {"config": 5}, {"recinvsid": 0}),
    ],
)
def test_suppressed(sid: int, cd: dict[str, int], ste: dict[str, int], cr2: dict[str, int]) -> None:
    """CD.R, STE.S2R, CR2.RECINVSID; with the bit the same fault is recorded."""
    for recorded in (False, True):
        machine = Machine()
        machine.write("CR0", 0)
        bits = dict.fromkeys(cr2, 1) if recorded else cr2
        machine.write("CR2", Cr2.build(**bits).raw)
        machine.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw)
        context = machine.cd(ttb0=machine.alloc(PAGE), **({} if recorded else cd))
        fields = machine.s2_fields(machine.s2_root(), **ste)
        if recorded:
            fields["s2r"] = 1
        machine.ste(1, s1ctxptr=context, **fields)
        machine.go(sid, 0)
        machine.scheduler.run_until_idle()
        name = "fault.C_BAD_STREAMID" if sid == 300 else "fault.F_TRANSLATION"
        fate = "event.recorded" if recorded else "event.suppressed"
        assert counted(machine, "fault", "event.", "txn") == {name: 1, fate: 1, "txn.fault": 1}


def test_merged_and_dropped() -> None:
    machine = Machine(eventq_log2=0)
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE)), mev=1)
    for _ in range(3):
        machine.go(1, 0)
    machine.go(1, PAGE)
    machine.scheduler.run_until_idle()
    assert counted(machine, "fault", "event", "mem.write") == {
        "fault.F_TRANSLATION": 4, "event.merged": 2, "event.recorded": 1, "event.dropped": 1,
        "event.overflow": 1, "eventq.high": 1, "mem.write": 1,
    }  # fmt: skip


def test_stalled() -> None:
    """STALL_MAX=1: the second one waits without a record; both end with the first's CMD_RESUME."""
    machine = Machine(Features.default().replace(stall_model=0, stall_max=1))
    root = machine.s1_stream(1, s=1)
    for page in range(2):
        machine.smmu.transact(Access(1, page * PAGE, False))
    machine.scheduler.run_until_idle()
    for page in range(2):
        machine.map(root, page * PAGE, DATA)
    machine.command(CmdResume.build(sid=1, stag=0, ac=1))
    assert counted(machine, "fault", "event.", "stall", "txn") == {
        "fault.F_TRANSLATION": 2, "event.recorded": 1, "txn.stall": 2, "stall.held": 2,
        "stall.suppressed": 1, "stall.high": 2, "stall.retried": 2,
    }  # fmt: skip


def test_a_record_of_a_stall_that_ended_first() -> None:
    """The queue is full: CMD_SYNC has the access tried again, and its record never comes."""
    machine = Machine(Features.default().replace(stall_model=0, stall_max=2), eventq_log2=0)
    machine.s1_stream(1, s=1)
    machine.go(9, 0)
    machine.scheduler.run_until_idle()
    machine.smmu.transact(Access(1, 0, False))
    machine.command()
    assert counted(machine, "stall") == {
        "stall.held": 1, "stall.withdrawn": 1, "stall.retried": 1, "stall.high": 1,
    }  # fmt: skip


@pytest.mark.parametrize("batch", [False, True])
def test_a_batch_counts_what_single_accesses_do(batch: bool) -> None:
    """RAZ/WI (CD.A=0), RAZ/WI without a record (CD.R=0), aborts; no TLB."""
    machine = Machine(Features.default().replace(term_model=0), caching="none")
    for sid, fields in ((1, {"a": 0}), (2, {"a": 0, "r": 0}), (3, {})):
        root = machine.s1_stream(sid, **fields)
        machine.map(root, PAGE, DATA)
    for sid in (1, 2, 3):
        places = [0, PAGE, 2 * PAGE]
        if batch:
            machine.smmu.translate_many(sid, np.array(places, dtype=np.uint64))
        else:
            for place in places:
                machine.go(sid, place)
    machine.scheduler.run_until_idle()
    assert counted(machine, "txn", "fault", "event.") == {
        "txn.ok": 3, "txn.razwi": 4, "txn.fault": 2, "fault.F_TRANSLATION": 6,
        "event.suppressed": 2, "event.recorded": 4,
    }  # fmt: skip


@pytest.mark.parametrize("batch", [False, True])
def test_a_batch_merges_as_single_accesses_do(batch: bool) -> None:
    """STE.MEV=1; records of one page are identical (§7.3.1)."""
    machine = Machine(caching="none")
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE)), mev=1)
    places = [0, 8, PAGE, 16]
    if batch:
        machine.smmu.translate_many(1, np.array(places, dtype=np.uint64))
    else:
        for place in places:
            machine.go(1, place)
    assert len(machine.events()) == 2
    assert machine.smmu.counters["event.merged"] == 2


# Writes of the SMMU, and what endpoints ask for.


def test_messages_and_records() -> None:
    """An event with a message; a CMD_SYNC whose message aborts."""
    machine = Machine(Features.default().replace(msi=1))
    machine.write("IRQ_CTRL", 0)
    machine.write("EVENTQ_IRQ_CFG0", machine.alloc(PAGE))
    machine.write("IRQ_CTRL", 4)
    machine.go(1, 0)
    machine.scheduler.run_until_idle()
    machine.post(CmdSync.build(cs=1, msiaddress=NOWHERE))
    machine.scheduler.run_until_idle()
    assert counted(machine, "msi", "mem.write", "event.rec") == {
        "msi.eventq": 1, "msi.cmdq-sync": 1, "msi.written": 1, "msi.abort": 1,
        "event.recorded": 1, "mem.write": 2,
    }  # fmt: skip


def test_requests_of_endpoints() -> None:
    """A page, one that is not mapped, an unknown stream; then a Page Request in a queue of one."""
    features = Features.default().replace(ats=1, pri=1, priqs=4)
    machine = Machine(features)
    machine.write("PRIQ_BASE", QueueBase.build(addr=machine.alloc(PAGE), log2size=0).raw)
    on = Cr0.build(smmuen=1, eventqen=1, cmdqen=1, priqen=1, atschk=1)
    machine.write("CR0", on.raw)
    root = machine.s1_stream(1)
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=root), eats=1)
    machine.map(root, 0, DATA, flags=AF | RW_S1)
    for sid, iova in ((1, 0), (1, PAGE), (300, 0)):
        machine.smmu.ats.request(TranslationRequest(sid, iova))
    machine.smmu.translated(Access(1, DATA, False))
    machine.smmu.translated(Access(2, DATA, False))
    for _ in range(2):
        machine.smmu.priq.request(PriEntry.build(sid=1, r=1, last=1))
    machine.scheduler.run_until_idle()
    assert counted(machine, "ats", "pri", "txn", "fault", "event") == {
        "ats.request": 3, "ats.success": 2, "ats.empty": 1, "ats.ca": 1, "ats.translated": 2,
        "ats.translated.ok": 1, "ats.translated.fault": 1, "fault.C_BAD_STREAMID": 1,
        "fault.C_BAD_STE": 1, "event.suppressed": 2, "pri.request": 2, "pri.recorded": 1,
        "pri.discarded": 1, "pri.overflow": 1, "pri.response": 1, "priq.high": 1,
    }  # fmt: skip
