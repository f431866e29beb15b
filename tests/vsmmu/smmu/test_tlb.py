# SPDX-License-Identifier: BSD-2-Clause
"""Translation caches: what each invalidation must drop, and what it must leave (IHI 0070 §4.4)."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

import pytest

from vsmmu.arch.commands import (
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.tlb import TLB_ENTRIES, Entry, Tlb

from .machine import AF, RW_S1, RW_S2, Machine

DATA = 0x8F00_0000
NG = 1 << 11

# The cache against a plain list of entries.


class Known(NamedTuple):
    """One entry as the list keeps it: `space` is an ASID, or "g0"/"g1" for a global one."""

    vmid: int
    space: int | str
    first: int
    shift: int
    block: int


class Listed:
    """The same operations by looking at every entry."""

    def __init__(self) -> None:
        self.stage1: set[Known] = set()
        self.stage2: set[Known] = set()

    def find(self, vmid: int, asid: int, aset: int, va: int) -> set[Known]:
        return {
            k for k in self.stage1
            if (k.vmid, k.first >> k.shift) == (vmid, va >> k.shift)
            and k.space in (asid, f"g{aset}")
        }  # fmt: skip

    def find2(self, vmid: int, ipa: int) -> set[Known]:
        return {
            k for k in self.stage2 if k.vmid == vmid and k.first >> k.shift == ipa >> k.shift
        }  # fmt: skip

    def drop(self, stage: int, condition: object) -> int:
        assert callable(condition)
        entries = self.stage1 if stage == 1 else self.stage2
        gone = {k for k in entries if condition(k)}
        entries -= gone
        return len(gone)


def touches(known: Known, first: int, last: int) -> bool:
    start = known.first >> known.block << known.block
    return start <= last and first < start + (1 << known.block)


def check_lookups(rng: Random, tlb: Tlb, listed: Listed) -> None:
    for _ in range(6):
        vmid, asid, aset = rng.randrange(3), rng.randrange(3), rng.randrange(2)
        va = rng.randrange(1 << 24)
        assert (tlb.find_stage1(vmid, asid, aset, va) is not None) == bool(
            listed.find(vmid, asid, aset, va)
        )
        assert (tlb.find_stage2(vmid, va) is not None) == bool(listed.find2(vmid, va))
    assert len(tlb) == len(listed.stage1) + len(listed.stage2)


def add(rng: Random, tlb: Tlb, listed: Listed) -> None:
    vmid, asid, aset = rng.randrange(3), rng.randrange(3), rng.randrange(2)
    shift = rng.choice([12, 12, 14, 16, 21])
    va = rng.randrange(1 << 24) >> shift << shift
    entry = Entry(va, (1 << shift) - 1, 63, 63)
    if rng.random() < 0.3:
        known = Known(vmid, "s2", va, shift, shift)
        if not any(listed.find2(vmid, a) for a in range(va, va + (1 << shift), PAGE)):
            tlb.add_stage2(vmid, va, shift, entry)
            listed.stage2.add(known)
        return
    block = rng.choice([shift, max(shift, 21)])
    is_global = rng.random() < 0.3
    if any(listed.find(vmid, asid, aset, a) for a in range(va, va + (1 << shift), PAGE)):
        return
    space: int | str = f"g{aset}" if is_global else asid
    tlb.add_stage1(vmid, asid, aset, va, shift, block, entry, is_global=is_global)
    listed.stage1 = {
        k for k in listed.stage1
        if (k.vmid, k.space, k.first, k.shift, k.block) != (vmid, space, va, shift, block)
    } | {Known(vmid, space, va, shift, block)}  # fmt: skip


def invalidate(rng: Random, tlb: Tlb, listed: Listed) -> None:
    vmid, asid = rng.randrange(3), rng.randrange(3)
    first = rng.randrange(1 << 24)
    last = first + rng.choice([0, PAGE, 1 << 16, 1 << 22])
    operation = rng.randrange(7)
    if operation == 0 and rng.random() < 0.2:
        assert tlb.invalidate_all() == listed.drop(1, lambda k: True) + listed.drop(
            2, lambda k: True
        )
    elif operation == 1 and rng.random() < 0.5:
        assert tlb.invalidate_vmid(vmid, stage2=False) == listed.drop(1, lambda k: k.vmid == vmid)
    elif operation == 2 and rng.random() < 0.5:
        want = listed.drop(1, lambda k: k.vmid == vmid) + listed.drop(2, lambda k: k.vmid == vmid)
        assert tlb.invalidate_vmid(vmid, stage2=True) == want
    elif operation == 3:
        want = listed.drop(1, lambda k: (k.vmid, k.space) == (vmid, asid))
        assert tlb.invalidate_asid(vmid, asid) == want
    elif operation == 4:
        want = listed.drop(
            1,
            lambda k: k.vmid == vmid and k.space in (asid, "g0", "g1") and touches(k, first, last),
        )
        assert tlb.invalidate_va(vmid, asid, first, last) == want
    elif operation == 5:
        want = listed.drop(1, lambda k: k.vmid == vmid and touches(k, first, last))
        assert tlb.invalidate_va(vmid, None, first, last) == want
    else:
        want = listed.drop(2, lambda k: k.vmid == vmid and touches(k, first, last))
        assert tlb.invalidate_ipa(vmid, first, last) == want


@pytest.mark.parametrize("seed", range(12))
def test_against_a_list_of_entries(seed: int) -> None:
    rng = Random(seed)
    tlb, listed = Tlb(Counter()), Listed()
    for _ in range(250):
        if rng.random() < 0.75:
            add(rng, tlb, listed)
        else:
            invalidate(rng, tlb, listed)
        check_lookups(rng, tlb, listed)


def test_capacity_drops_the_oldest() -> None:
    counters: Counter[str] = Counter()
    tlb = Tlb(counters, capacity=4)
    for page in range(6):
        tlb.add_stage2(0, page << 12, 12, Entry(0, 0xFFF, 63, 63))
    assert len(tlb) == 4
    assert [tlb.find_stage2(0, page << 12) is not None for page in range(6)] == [False] * 2 + [
        True
    ] * 4
    assert counters["tlb.evicted"] == 2


def test_an_entry_that_is_replaced_counts_once() -> None:
    """A write that makes a descriptor dirty replaces the clean entry (§3.13)."""
    tlb = Tlb(Counter(), capacity=2)
    for pa in range(5):
        tlb.add_stage2(0, 0, 12, Entry(pa << 12, 0xFFF, 63, 63))
    tlb.add_stage2(0, 1 << 12, 12, Entry(0, 0xFFF, 63, 63))
    assert len(tlb) == 2
    found = tlb.find_stage2(0, 0)
    assert found is not None
    assert found.pa == 4 << 12


@pytest.mark.parametrize("seed", range(3))
def test_bookkeeping_stays_bounded(seed: int) -> None:
    rng = Random(seed)
    tlb = Tlb(Counter(), capacity=16)
    for _ in range(3000):
        va = rng.randrange(64) << 12
        if rng.random() < 0.5:
            vmid = rng.randrange(4)
            if tlb.find_stage1(vmid, 1, 0, va) is None:
                tlb.add_stage1(vmid, 1, 0, va, 12, 12, Entry(0, 0xFFF, 63, 63), is_global=False)
        elif rng.random() < 0.5:
            tlb.invalidate_va(rng.randrange(4), 1, va, va)
        elif tlb.find_stage2(1, va) is None:
            tlb.add_stage2(1, va, 12, Entry(0, 0xFFF, 63, 63))
        assert len(tlb) <= 16
        assert len(tlb._order) <= 64
    tlb.invalidate_all()
    assert len(tlb) == 0
    assert tlb._stage1 == tlb._stage2 == {}


def test_insertions_that_are_invalidated_leave_no_trail() -> None:
    tlb = Tlb(Counter(), capacity=16)
    for _ in range(1000):
        tlb.add_stage2(0, 0, 12, Entry(0, 0xFFF, 63, 63))
        tlb.invalidate_ipa(0, 0, 0)
        assert len(tlb._order) <= 64


def test_emptied_contexts_leave_nothing_behind() -> None:
    tlb = Tlb(Counter())
    for asid in range(50):
        tlb.add_stage1(asid, asid, 0, 0, 12, 12, Entry(0, 0xFFF, 63, 63), is_global=asid % 2 == 0)
        tlb.add_stage2(asid, 0, 12, Entry(0, 0xFFF, 63, 63))
        tlb.invalidate_va(asid, asid, 0, 0)
        tlb.invalidate_ipa(asid, 0, 0)
    assert tlb._stage1 == tlb._stage2 == {}


# Commands, through the SMMU: remap, then see whether the old page is still served.

STAGE1 = (
    (CmdTlbiNhAll.build(vmid=7), True),
    (CmdTlbiNhAll.build(vmid=6), False),
    (CmdTlbiNhAsid.build(vmid=7, asid=3), True),
    (CmdTlbiNhAsid.build(vmid=7, asid=4), False),
    (CmdTlbiNhAsid.build(vmid=6, asid=3), False),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0x40_0000), True),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0x40_0000, leaf=1), True),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0x40_1000), False),
    (CmdTlbiNhVa.build(vmid=7, asid=4, addr=0x40_0000), False),
    (CmdTlbiNhVa.build(vmid=6, asid=3, addr=0x40_0000), False),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0x3F_C000, tg=1, num=4, scale=0), True),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0x3F_C000, tg=1, num=3, scale=0), False),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0, tg=1, num=0, scale=10), False),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0, tg=1, num=1, scale=10), True),
    (CmdTlbiNhVa.build(vmid=7, asid=3, addr=0, tg=3, num=31, scale=63), True),
    (CmdTlbiNhVaa.build(vmid=7, addr=0x40_0000), True),
    (CmdTlbiNhVaa.build(vmid=6, addr=0x40_0000), False),
    (CmdTlbiS12Vmall.build(vmid=7), True),
    (CmdTlbiS12Vmall.build(vmid=6), False),
    (CmdTlbiS2Ipa.build(vmid=7, addr=0x40_0000), False),
    (CmdTlbiNsnhAll.build(), True),
)


@pytest.mark.parametrize(("command", "dropped"), STAGE1)
@pytest.mark.parametrize("is_global", [False, True])
def test_stage_1_entry(machine: Machine, command: Command, dropped: bool, is_global: bool) -> None:
    root = machine.alloc(PAGE)
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=root, asid=3), s2vmid=7)
    flags = AF | RW_S1 | (0 if is_global else NG)
    machine.map(root, 0x40_0000, DATA, flags=flags)
    assert machine.go(1, 0x40_0000).pa == DATA
    machine.map(root, 0x40_0000, DATA + PAGE, flags=flags)
    assert machine.go(1, 0x40_0000).pa == DATA
    machine.command(command)
    if is_global:
        # By ASID leaves global entries (§4.4.2.2); by VA drops them whatever the ASID says.
        by_asid = isinstance(command, CmdTlbiNhAsid)
        other_asid = isinstance(command, CmdTlbiNhVa) and command.asid == 4
        dropped = (dropped and not by_asid) or other_asid
    assert machine.go(1, 0x40_0000).pa == (DATA + PAGE if dropped else DATA)
    assert machine.smmu.counters["tlb.invalidated"] == int(dropped)


@pytest.mark.parametrize(
    ("commands", "dropped"),
    [
        ((CmdTlbiS2Ipa.build(vmid=7, addr=0x1_2340_0000),), False),
        ((CmdTlbiNhAll.build(vmid=7),), False),
        ((CmdTlbiS2Ipa.build(vmid=7, addr=0x1_2340_0000), CmdTlbiNhAll.build(vmid=7)), True),
        ((CmdTlbiS2Ipa.build(vmid=7, addr=0x1_2340_0000), CmdTlbiNhVaa.build(vmid=7)), True),
        ((CmdTlbiS2Ipa.build(vmid=6, addr=0x1_2340_0000), CmdTlbiNhAll.build(vmid=7)), False),
        ((CmdTlbiS12Vmall.build(vmid=7),), True),
    ],
)
def test_combined_entry_and_the_stage_2_behind_it(
    machine: Machine, commands: tuple[Command, ...], dropped: bool
) -> None:
    """§4.4.3: TLBI_S2_IPA need not drop combined entries, so both have to go."""
    s2root, root = machine.s2_root(), machine.alloc(PAGE)
    cd = machine.cd(ttb0=root)
    machine.ste(1, config=7, s1ctxptr=cd, **machine.s2_fields(s2root))
    for page in range(0x8000_0000, 0x8000_0000 + 64 * PAGE, PAGE):
        machine.map(s2root, page, page, flags=AF | RW_S2)
    machine.map(root, 0, 0x1_2340_0000)
    machine.map(s2root, 0x1_2340_0000, DATA, flags=AF | RW_S2)
    assert machine.go(1, 0).pa == DATA
    machine.map(s2root, 0x1_2340_0000, DATA + PAGE, flags=AF | RW_S2)
    machine.command(*commands)
    assert machine.go(1, 0).pa == (DATA + PAGE if dropped else DATA)


@pytest.mark.parametrize(
    ("command", "dropped"),
    [
        (CmdTlbiS2Ipa.build(vmid=7, addr=0x40_0000), True),
        (CmdTlbiS2Ipa.build(vmid=7, addr=0x40_1000), False),
        (CmdTlbiS2Ipa.build(vmid=7, addr=0x3F_F000, tg=1, num=1), True),
        (CmdTlbiNhAll.build(vmid=7), False),
        (CmdTlbiNhVaa.build(vmid=7, addr=0x40_0000), False),
        (CmdTlbiS12Vmall.build(vmid=7), True),
        (CmdTlbiNsnhAll.build(), True),
    ],
)
def test_stage_2_entry(machine: Machine, command: Command, dropped: bool) -> None:
    root = machine.s2_root()
    machine.ste(1, config=6, **machine.s2_fields(root))
    machine.map(root, 0x40_0000, DATA, flags=AF | RW_S2)
    assert machine.go(1, 0x40_0000).pa == DATA
    machine.map(root, 0x40_0000, DATA + PAGE, flags=AF | RW_S2)
    machine.command(command)
    assert machine.go(1, 0x40_0000).pa == (DATA + PAGE if dropped else DATA)


def test_one_invalidation_drops_all_pieces_of_a_stage_1_block(machine: Machine) -> None:
    """A 2 MiB block over 4 KiB stage 2 pages: its user knows of one entry."""
    s2root, root = machine.s2_root(), machine.alloc(PAGE)
    machine.ste(1, config=7, s1ctxptr=machine.cd(ttb0=root), **machine.s2_fields(s2root))
    for page in range(0x8000_0000, 0x8000_0000 + 64 * PAGE, PAGE):
        machine.map(s2root, page, page, flags=AF | RW_S2)
    machine.map(root, 0, 0x1_2340_0000, size=2 << 20)
    for i in range(3):
        machine.map(s2root, 0x1_2340_0000 + i * PAGE, DATA + i * PAGE, flags=AF | RW_S2)
        assert machine.go(1, i * PAGE).pa == DATA + i * PAGE
    machine.map(root, 0, 0x1_2360_0000, size=2 << 20)
    before = machine.smmu.counters["tlb.invalidated"]
    machine.command(CmdTlbiNhVa.build(vmid=7, asid=1, addr=0))
    assert machine.smmu.counters["tlb.invalidated"] - before == 3
    assert machine.go(1, 2 * PAGE).status == "fault"


def test_global_entries_match_any_asid_of_their_aset(machine: Machine) -> None:
    """§3.17.1."""
    root = machine.alloc(PAGE)
    machine.map(root, 0, DATA)
    for sid, asid, aset in ((1, 1, 0), (2, 2, 0), (3, 3, 1)):
        machine.ste(sid, config=5, s1ctxptr=machine.cd(ttb0=root, asid=asid, aset=aset))
    assert machine.go(1, 0).pa == DATA
    machine.map(root, 0, DATA + PAGE)
    assert machine.go(2, 0).pa == DATA
    assert machine.go(3, 0).pa == DATA + PAGE


def test_vmid_tags_stage_1_only_where_stage_2_exists() -> None:
    for stages, dropped in (("nested", False), ("1", True)):
        machine = Machine(Features.default(stages=stages))
        root = machine.alloc(PAGE)
        machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=root), s2vmid=7)
        machine.map(root, 0, DATA)
        assert machine.go(1, 0).pa == DATA
        machine.map(root, 0, DATA + PAGE)
        machine.command(CmdTlbiNhAll.build(vmid=5))
        assert machine.go(1, 0).pa == (DATA + PAGE if dropped else DATA)


def test_tag_byte_is_no_part_of_an_entry(machine: Machine) -> None:
    """§3.4.1: a tagged access and its untagged invalidation mean the same page."""
    root = machine.s1_stream(1, tbi0=1)
    machine.map(root, 0x40_0000, DATA)
    assert machine.go(1, 0xAB << 56 | 0x40_0000).pa == DATA
    machine.map(root, 0x40_0000, DATA + PAGE)
    machine.command(CmdTlbiNhVa.build(asid=1, addr=0x40_0000))
    assert machine.go(1, 0xCD << 56 | 0x40_0000).pa == DATA + PAGE


def test_upper_half_is_invalidated_by_its_address(machine: Machine) -> None:
    root = machine.alloc(PAGE)
    machine.s1_stream(1, epd0=1, epd1=0, tg1=2, t1sz=25, ttb1=root)
    va = 0xFFFF_FF80_0040_0000
    machine.map(root, 0x40_0000, DATA)
    assert machine.go(1, va).pa == DATA
    machine.map(root, 0x40_0000, DATA + PAGE)
    machine.command(CmdTlbiNhVa.build(asid=1, addr=0x40_0000))
    assert machine.go(1, va).pa == DATA
    machine.command(CmdTlbiNhVa.build(asid=1, addr=va, tg=1, num=31, scale=63))
    assert machine.go(1, va).pa == DATA + PAGE


def test_faulting_descriptors_are_not_cached(machine: Machine) -> None:
    """Arm ARM D8.14: invalid to valid needs no invalidation."""
    root = machine.s1_stream(1)
    assert machine.go(1, 0).status == "fault"
    machine.map(root, 0, DATA, flags=RW_S1)
    assert machine.go(1, 0).status == "fault"
    machine.map(root, 0, DATA)
    assert machine.go(1, 0).pa == DATA


def test_a_hit_reads_no_memory(machine: Machine) -> None:
    root = machine.s1_stream(1)
    machine.map(root, 0, DATA)
    machine.go(1, 0)
    before = {k: v for k, v in machine.smmu.counters.items() if k.startswith("walk.")}
    machine.go(1, 8)
    assert {k: v for k, v in machine.smmu.counters.items() if k.startswith("walk.")} == before
    assert machine.smmu.counters["tlb.hit"] == 1
    assert TLB_ENTRIES > 1000
