# SPDX-License-Identifier: BSD-2-Clause
"""Table walks against an oracle that expands a whole tree into address ranges (Arm ARM D8).

The oracle shares no code and no constants with the walker: it lists every range that the tables
reach, with its outcome, and looks an address up in the list.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from vsmmu.arch.pagetable import G4K, G16K, G64K, Granule
from vsmmu.memory import Memory
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import IN, Fault
from vsmmu.smmu.walk import Stage1, Stage2, Table, Walker, is_device, stage1_perms, stage2_perms

RAM, RAM_SIZE = 0x1_0000_0000, 0x1000_0000
GRANULES = {12: G4K, 14: G16K, 16: G64K}
BLOCKS = {12: {1, 2}, 14: {2}, 16: {2}}
AF, AP_EL0 = 1 << 10, 1 << 6


@dataclass
class Tree:
    """Random tables; `slots` has every descriptor that is not zero, by address."""

    page: int
    input_bits: int
    output_bits: int
    root: int
    levels: int
    slots: dict[int, int]


def grow(rng: Random, page: int, memory: Memory, *, stage2: bool) -> Tree:
    stride = page - 3
    levels = rng.choice([1, 2, 2, 3, 3, 4]) if page < 16 else rng.choice([1, 2, 2, 3])
    extra = rng.randint(1, stride) if not stage2 else rng.randint(1, min(stride + 4, 43 - page))
    input_bits = page + (levels - 1) * stride + extra
    if input_bits > 48 or (not stage2 and input_bits < 25):
        return grow(rng, page, memory, stage2=stage2)
    # Now and then the output size cuts the RAM off, so that addresses are out of range.
    tree = Tree(page, input_bits, rng.choice([32, 36, 40, 44, 48]), 0, levels, {})
    if rng.random() < 0.15:
        tree.output_bits = 33
    root_bytes = max(64, 8 << extra)
    tree.root = rng.randrange(RAM, RAM + RAM_SIZE - root_bytes) & -root_bytes
    fill(rng, tree, tree.root, 1 << extra, 4 - levels)
    for address, value in tree.slots.items():
        memory.write64(address, value)
    return tree


def fill(rng: Random, tree: Tree, table: int, entries: int, level: int) -> None:
    for _ in range(rng.randint(1, 6)):
        slot = table + 8 * rng.choice([0, entries - 1, rng.randrange(entries)])
        kind = rng.choices([0, 1, 2, 3], [1, 4 if level < 3 else 1, 1, 9])[0]
        value = kind | rng.getrandbits(64) & 0xFFF0_0000_0000_0FFC
        if rng.random() < 0.8:
            value |= 1 << 10
        if kind == 3 and level < 3 and rng.random() < 0.9:
            below = rng.randrange(RAM, RAM + RAM_SIZE) & -(1 << tree.page)
            tree.slots[slot] = value | below
            fill(rng, tree, below, 1 << (tree.page - 3), level + 1)
        else:
            where = rng.choice([RAM, 0, 1 << 33, 1 << 40, 0xFFFF_FFFF_F000])
            value |= (where + rng.randrange(1 << 32)) & 0xFFFF_FFFF_F000
            tree.slots[slot] = value


def expand(tree: Tree, memory: Memory) -> list[tuple[int, int, tuple[object, ...]]]:
    """(first address, last address, outcome) of every range; what is not listed is invalid."""
    found: list[tuple[int, int, tuple[object, ...]]] = []

    def visit(table: int, entries: int, level: int, base: int, above: int) -> None:
        size = 1 << (tree.page + (tree.page - 3) * (3 - level))
        inside = memory.is_ram(table)
        for index in range(entries) if inside else ():
            slot = table + 8 * index
            # Only slots that the test wrote can be valid; the rest of the RAM is zero.
            if slot in tree.slots:
                first = base + index * size
                visit_slot(tree.slots[slot], level, first, size, above)
        if not inside:
            found.append((base, base + entries * size - 1, ("F_WALK_EABT", level)))

    def visit_slot(value: int, level: int, first: int, size: int, above: int) -> None:
        last = first + size - 1
        low = value % 4
        leaf = (low == 3 and level == 3) or (low == 1 and level in BLOCKS[tree.page])
        table = low == 3 and level < 3
        if not leaf and not table:
            return
        output = value % (1 << 48) // (size if leaf else 1 << tree.page)
        output *= size if leaf else 1 << tree.page
        if output >= 1 << tree.output_bits:
            found.append((first, last, ("F_ADDR_SIZE",)))
        elif table:
            visit(output, 1 << (tree.page - 3), level + 1, first, above | value)
        elif not value >> 10 & 1:
            found.append((first, last, ("F_ACCESS",)))
        else:
            found.append((first, last, ("leaf", output, value, above)))

    bits = tree.page + (tree.page - 3) * (tree.levels - 1)
    visit(tree.root, 1 << (tree.input_bits - bits), 4 - tree.levels, 0, 0)
    return found


def probes(rng: Random, tree: Tree, ranges: list[tuple[int, int, tuple[object, ...]]]) -> list[int]:
    limit = (1 << tree.input_bits) - 1
    out = [0, limit, *(rng.randrange(limit + 1) for _ in range(4))]
    for first, last, _ in rng.sample(ranges, min(8, len(ranges))):
        out += [first, last, rng.randint(first, last), max(0, first - 1), min(limit, last + 1)]
    return out


def outcome_at(
    ranges: list[tuple[int, int, tuple[object, ...]]], address: int
) -> tuple[int, tuple[object, ...]]:
    for first, last, outcome in ranges:
        if first <= address <= last:
            return first, outcome
    return 0, ("F_TRANSLATION",)


def make(seed: str, *, stage2: bool) -> tuple[Random, Tree, Memory, Walker, Table]:
    rng = Random(seed)
    memory = Memory([(RAM, RAM_SIZE)])
    tree = grow(rng, rng.choice([12, 14, 16]), memory, stage2=stage2)
    counters: Counter[str] = Counter()
    walker = Walker(memory, Tlb(counters, 0), counters)
    granule = GRANULES[tree.page]
    table = Table(granule, 4 - tree.levels, tree.input_bits, tree.root)
    return rng, tree, memory, walker, table


def unprivileged_can(leaf: int, above: int, what: str, *, wxn: bool) -> bool:
    writable = not leaf >> 7 & 1 and not above >> 62 & 1
    reachable = bool(leaf >> 6 & 1) and not above >> 61 & 1
    if what == "x":
        return not leaf >> 54 & 1 and not above >> 60 & 1 and not (wxn and reachable and writable)
    return reachable and (what == "r" or writable)


def privileged_can(leaf: int, above: int, what: str, *, wxn: bool, pan: bool) -> bool:
    writable = not leaf >> 7 & 1 and not above >> 62 & 1
    reachable = bool(leaf >> 6 & 1) and not above >> 61 & 1
    if what == "x":
        return (
            not leaf >> 53 & 1 and not above >> 59 & 1
            and not (reachable and writable) and not (wxn and writable)
        )  # fmt: skip
    return not (pan and reachable) and (what == "r" or writable)


def granted(perms: int, what: str, *, priv: bool) -> bool:
    return bool(perms >> (3 if priv else 0) & {"r": 1, "w": 2, "x": 4}[what])


@pytest.mark.parametrize("block", range(10))
def test_stage_1_against_the_oracle(block: int) -> None:
    outcomes: Counter[object] = Counter()
    for i in range(40):
        rng, tree, memory, walker, table = make(f"s1 {block} {i}", stage2=False)
        wxn, pan, had = (rng.random() < 0.3 for _ in range(3))
        table = Table(table.granule, table.start_level, table.input_bits, table.base, 0, had)
        regime = Stage1((table, None), tree.output_bits, False, wxn, pan)
        ranges = expand(tree, memory)
        for va in probes(rng, tree, ranges):
            first, want = outcome_at(ranges, va)
            got = walker.stage1(regime, table, va, None, 0)
            outcomes[want[0]] += 1
            if isinstance(got, Fault):
                assert got.kind.name == want[0], (block, i, hex(va))
                assert got.s2 == 0
                continue
            assert want[0] == "leaf", (block, i, hex(va), want)
            _, output, leaf, above = want
            assert isinstance(output, int)
            assert isinstance(leaf, int)
            assert isinstance(above, int)
            assert got.address + va % (1 << got.shift) == output + va - first
            assert got.is_global == (not leaf >> 11 & 1)
            above = 0 if had else above
            for what in "rwx":
                assert granted(got.perms, what, priv=False) == unprivileged_can(
                    leaf, above, what, wxn=wxn
                )
                assert granted(got.perms, what, priv=True) == privileged_can(
                    leaf, above, what, wxn=wxn, pan=pan
                )
    assert set(outcomes) == {"leaf", "F_TRANSLATION", "F_ADDR_SIZE", "F_ACCESS", "F_WALK_EABT"}
    assert min(outcomes["leaf"], outcomes["F_TRANSLATION"], outcomes["F_ADDR_SIZE"]) > 20


@pytest.mark.parametrize("block", range(10))
def test_stage_2_against_the_oracle(block: int) -> None:
    outcomes: Counter[object] = Counter()
    concatenated = 0
    for i in range(40):
        rng, tree, memory, walker, table = make(f"s2 {block} {i}", stage2=True)
        xnx, affd = rng.random() < 0.5, rng.random() < 0.2
        regime = Stage2(table, tree.output_bits, affd, False, xnx, False)
        top = tree.input_bits - (tree.page + (tree.page - 3) * (tree.levels - 1))
        concatenated += top > tree.page - 3
        ranges = expand(tree, memory)
        for ipa in probes(rng, tree, ranges):
            first, want = outcome_at(ranges, ipa)
            got = walker.stage2(regime, 0, ipa)
            outcomes[want[0]] += 1
            if isinstance(got, Fault):
                assert got.kind.name == want[0], (block, i, hex(ipa))
                assert (got.s2, got.cls, got.ipa) == (1, IN, ipa)
                continue
            if want[0] == "F_ACCESS":
                assert affd
                continue
            assert want[0] == "leaf", (block, i, hex(ipa), want)
            _, output, leaf, _ = want
            assert isinstance(output, int)
            assert isinstance(leaf, int)
            assert got.pa + (ipa & got.mask) == output + ipa - first
            for priv in (False, True):
                assert granted(got.perms, "r", priv=priv) == bool(leaf >> 6 & 1)
                assert granted(got.perms, "w", priv=priv) == bool(leaf >> 7 & 1)
            xn = leaf >> 53 & 3
            if not xnx:
                xn &= 2
            allowed = {0: (True, True), 1: (True, False), 2: (False, False), 3: (False, True)}[xn]
            for priv in (False, True):
                assert granted(got.perms, "x", priv=priv) == allowed[priv]
    assert concatenated > 3
    assert min(outcomes["leaf"], outcomes["F_TRANSLATION"], outcomes["F_ADDR_SIZE"]) > 20


@pytest.mark.parametrize(("granule", "level"), [(G4K, 0), (G16K, 1), (G16K, 0), (G64K, 1)])
def test_block_at_a_level_without_blocks(granule: Granule, level: int) -> None:
    """Arm ARM D8.3: without 52-bit descriptors these are reserved."""
    memory = Memory([(RAM, 1 << 20)])
    memory.write64(RAM, 1 | 1 << 10)
    walker = Walker(memory, Tlb(Counter(), 0), Counter())
    table = Table(granule, level, granule.shift(level) + 1, RAM)
    got = walker.stage1(Stage1((table, None), 48, False, False, False), table, 0, None, 0)
    assert isinstance(got, Fault)
    assert got.kind.name == "F_TRANSLATION"


def test_reserved_level_3_descriptor() -> None:
    memory = Memory([(RAM, 1 << 20)])
    memory.write64(RAM, 1 | 1 << 10)
    walker = Walker(memory, Tlb(Counter(), 0), Counter())
    table = Table(G4K, 3, 21, RAM)
    got = walker.stage1(Stage1((table, None), 48, False, False, False), table, 0, None, 0)
    assert isinstance(got, Fault)
    assert got.kind.name == "F_TRANSLATION"


def test_execution_follows_write_permission() -> None:
    """Arm ARM D8.4: EL0-writable is never privileged-executable; WXN makes writable XN."""
    user_rw = 1 << 6
    assert stage1_perms(user_rw, 0, wxn=False, pan=False) == 0b011_111
    assert stage1_perms(user_rw, 0, wxn=True, pan=False) == 0b011_011
    assert stage1_perms(0, 0, wxn=False, pan=False) == 0b111_100
    assert stage1_perms(0, 0, wxn=True, pan=False) == 0b011_100
    assert stage1_perms(user_rw, 0, wxn=False, pan=True) == 0b000_111


def test_stage_2_execution_without_read() -> None:
    """§5.2 S2AA64: VMSAv8-64 has execute-only pages in stage 2; XN alone decides."""
    assert stage2_perms(0, xnx=True) == 0b100_100
    assert stage2_perms(1 << 7, xnx=True) == 0b110_110
    assert stage2_perms(1 << 53, xnx=True) == 0b000_100
    assert stage2_perms(2 << 53, xnx=True) == 0
    assert stage2_perms(3 << 53, xnx=True) == 0b100_000
    assert stage2_perms(3 << 53, xnx=False) == 0


@pytest.mark.parametrize(
    ("memattr", "fwb", "device"),
    [(0, False, True), (3, False, True), (5, False, False), (15, False, False), (4, False, False),
     (0, True, True), (1, True, True), (5, True, False), (6, True, False), (7, True, False)],
)  # fmt: skip
def test_device_type(memattr: int, fwb: bool, device: bool) -> None:
    assert is_device(memattr, fwb=fwb) == device


# 52-bit addresses.


@pytest.mark.parametrize(
    ("bits", "page", "wide", "output", "descriptor"),
    [
        (52, 12, True, 0xF_1234_5678_9000, 0x0003_1234_5678_9000 | 3 << 8),
        (52, 14, True, 0x8_1234_5678_8000, 0x0000_1234_5678_8000 | 2 << 8),
        (52, 16, True, 0xA_1234_5678_0000, 0x0000_1234_5678_A000 & ~0xF000 | 0xA << 12),
    ],
)
def test_52_bit_descriptors(bits: int, page: int, wide: bool, output: int, descriptor: int) -> None:
    """Arm ARM D8.3.1: OA[51:50] in [9:8] with LPA2, OA[51:48] in [15:12] with LPA.

    IHI 0070 §3.4; no second opinion.
    """
    memory = Memory([(RAM, 1 << 24)])
    granule = GRANULES[page]
    start = granule.start_level(bits)
    assert start == {12: -1, 14: 0, 16: 1}[page]
    table, where = Table(granule, start, bits, RAM, 0, False, wide), RAM
    va = 0xF_FFFF_FFFF_FFFF & -(1 << page)
    for level in range(start, 3):
        index = va >> granule.shift(level) & (1 << granule.stride) - 1
        index &= (1 << bits - granule.shift(level)) - 1
        memory.write64(where + 8 * index, where + (1 << 17) | 3)
        where += 1 << 17
    memory.write64(where + 8 * ((1 << granule.stride) - 1), descriptor | AF | AP_EL0 | 3)
    walker = Walker(memory, Tlb(Counter(), 0), Counter())
    regime = Stage1((table, None), 52, False, False, False)
    got = walker.stage1(regime, table, va, None, 0)
    assert not isinstance(got, Fault), got
    assert got.address == output
    assert isinstance(walker.stage1(
        Stage1((table, None), 48, False, False, False), table, va, None, 0
    ), Fault)  # fmt: skip
