# SPDX-License-Identifier: BSD-2-Clause
"""Reads of a cold walk against their closed forms (IHI 0070 §3.3, §3.4; Arm ARM D8).

A walk of n1 stage 1 and n2 stage 2 levels reads (n1 + 1)(n2 + 1) - 1 descriptors. The STE is one
read, its level 1 descriptor another. A CD is one read and n2 descriptors, an L1CD the same.

The configuration's part is what an access reads whose address is out of range of stage 1: it ends
behind the CD. Every structure lies behind a stage 2 leaf of its own unless a test says otherwise,
so that the TLB has nothing to give to a walk that it does not hold in full.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import NamedTuple

import pytest

from vsmmu.arch.commands import CmdCfgiSteRange, CmdTlbiNsnhAll
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.pagetable import G4K, G16K, G64K, S2_START, TG0, Granule
from vsmmu.arch.registers import Cr0, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import L1Std, S1Dss, S1Fmt, Ste
from vsmmu.smmu import Features
from vsmmu.smmu.config import CACHING

from .machine import AF, RAM, RAM_SIZE, RW_S1, RW_S2, Machine

SID, SPLIT = 0x105, 8
# Where IPA 0 is in PA, and how much RAM there is; a multiple of every leaf's size.
WORLD = 0x100_0000_0000
REGIONS = ((RAM, RAM_SIZE), (WORLD, 16 << 30))
FEATURES = Features.default().replace(ssidsize=8, cd2l=1, stt=1)
CONFIG = ("walk.l1std", "walk.ste", "walk.l1cd", "walk.cd")


class Levels(NamedTuple):
    """The first level of a stage, the level of the leaf, the granule."""

    start: int
    leaf: int
    granule: Granule = G4K

    @property
    def depth(self) -> int:
        return self.leaf - self.start + 1

    @property
    def size(self) -> int:
        return 1 << self.granule.shift(self.leaf)

    @property
    def bits(self) -> int:
        """Input bits that one table at the first level resolves."""
        return min(48, self.granule.shift(self.start) + self.granule.stride)

    def slot(self, table: int, address: int, level: int) -> int:
        shift = self.granule.shift(level)
        bits = min(self.granule.stride, self.bits - shift)
        return table + 8 * (address >> shift & (1 << bits) - 1)

    def descriptor(self, level: int, output: int, flags: int) -> int:
        if level < self.leaf:
            return output | 3
        return output | flags | (3 if level == 3 else 1)


class World:
    """A stream whose structures lie `spread` bytes apart, behind stage 2 if there is one."""

    def __init__(
        self, s1: Levels | None, s2: Levels | None, *, two_level_cd: bool = False,
        caching: str = "none", packed: bool = False,
    ) -> None:  # fmt: skip
        self.machine = m = Machine(FEATURES, caching=caching, regions=REGIONS, boot=False)
        self.s1, self.s2 = s1, s2
        granules = [levels.granule.page_size for levels in (s1, s2) if levels]
        self.spread = max(granules, default=4096)
        if s2 is not None and not packed:
            self.spread = max(self.spread, s2.size)
        self.used = 0
        self.root2 = m.alloc(1 << 16) if s2 is not None else 0
        fields = {"config": 4 | bool(s1) | bool(s2) << 1, "s1dss": int(S1Dss.SSID0)}
        if s2 is not None:
            code = {start: sl0 for sl0, start in S2_START[s2.granule.name].items()}[s2.start]
            fields |= m.s2_fields(
                self.root2, s2t0sz=64 - s2.bits, s2sl0=code, s2tg=granule_code(s2.granule)
            )
        if s1 is not None:
            fields["s1ctxptr"] = self.contexts(two_level_cd)
            fields |= {"s1cdmax": 7, "s1fmt": int(S1Fmt.TWO_LEVEL_4K)} if two_level_cd else {}
        self.boot(fields)
        self.output = self.place() if s1 or s2 else RAM
        self.iova = self.output if s1 is None else self.stage1(self.output)

    def boot(self, ste: dict[str, int]) -> None:
        """A 2-level stream table with this STE."""
        m = self.machine
        level1, level2 = m.alloc(8 << 8), m.alloc(64 << SPLIT)
        m.boot()
        m.write("CR0", 0)
        m.write("STRTAB_BASE", StrtabBase.build(addr=level1).raw)
        m.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(fmt=1, split=SPLIT, log2size=16).raw)
        m.memory.write(level1 + 8 * (SID >> SPLIT), bytes(L1Std.build(span=9, l2ptr=level2)))
        m.memory.write(level2 + 64 * (SID & 255), bytes(Ste.build(v=1, **ste)))
        m.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw)

    def place(self) -> int:
        """An address for the next structure, mapped at stage 2: an IPA, or a PA without it."""
        address, self.used = self.used, self.used + self.spread
        if self.s2 is None:
            return WORLD + address
        for at in range(address, address + self.s1_page, min(self.s2.size, self.s1_page)):
            self.stage2(at)
        return address

    @property
    def s1_page(self) -> int:
        return self.s1.granule.page_size if self.s1 else 4096

    def real(self, address: int) -> int:
        """The PA of what lies at an address that `place` gave."""
        return address if self.s2 is None else WORLD + address

    def stage2(self, ipa: int) -> None:
        assert self.s2 is not None
        memory, table = self.machine.memory, self.root2
        for level in range(self.s2.start, self.s2.leaf + 1):
            slot = self.s2.slot(table, ipa, level)
            table = (memory.read64(slot) or 0) & 0xFFFF_FFFF_F000
            if not table:
                table = self.machine.alloc(self.s2.granule.page_size)
                if level == self.s2.leaf:
                    table = WORLD + (ipa & -self.s2.size)
                memory.write64(slot, self.s2.descriptor(level, table, AF | RW_S2))

    def contexts(self, two_level: bool) -> int:
        """The CD table; its first table, by where it lies."""
        assert self.s1 is not None
        memory, first = self.machine.memory, self.place()
        self.cd = first
        if two_level:
            self.cd = self.place()
            memory.write(self.real(first), bytes(L1Cd.build(v=1, l2ptr=self.cd)))
        self.root1, tg0 = self.place(), granule_code(self.s1.granule)
        cd = Cd.build(
            v=1, aa64=1, a=1, r=1, t0sz=64 - self.s1.bits, tg0=tg0, epd1=1, ips=5, asid=1, aset=1,
            ttb0=self.root1,
        )  # fmt: skip
        memory.write(self.real(self.cd), bytes(cd))
        return first

    def stage1(self, output: int) -> int:
        """Map one leaf around `output`; the input address that gives it."""
        assert self.s1 is not None
        memory, table = self.machine.memory, self.root1
        iova = output & (self.s1.size - 1)
        for level in range(self.s1.start, self.s1.leaf + 1):
            slot = self.s1.slot(table, iova, level)
            table = output & -self.s1.size if level == self.s1.leaf else self.place()
            memory.write64(self.real(slot), self.s1.descriptor(level, table, AF | RW_S1))
        return iova

    def reads(self, iova: int | None = None) -> Counter[str]:
        """Reads of an access, by what was read; it succeeds at `self.iova` and nowhere else."""
        before = Counter(self.machine.smmu.counters)
        outcome = self.machine.go(SID, self.iova if iova is None else iova)
        if iova is None:
            assert outcome.pa == self.real(self.output)
        else:
            assert outcome.status == "fault"
        spent = self.machine.smmu.counters - before
        return Counter({name: n for name, n in spent.items() if name.startswith("walk.")})


def granule_code(granule: Granule) -> int:
    return next(code for code, found in TG0.items() if found is granule)


def counted(
    s1: Levels | None, s2: Levels | None, *, two_level_cd: bool = False, caching: str = "none",
    packed: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """Reads of configuration and of tables, each from an SMMU that has just been enabled."""

    def world() -> World:
        return World(s1, s2, two_level_cd=two_level_cd, caching=caching, packed=packed)

    total = world().reads().total()
    # Beyond 48 bits nothing is in range; a stream that bypasses reads no tables either.
    config = world().reads(1 << 52).total()
    return config, total - config


FOUR, THREE = Levels(0, 3), Levels(1, 3)
FOUR_2M, FOUR_1G, THREE_2M = Levels(0, 2), Levels(0, 1), Levels(1, 2)

# name: (stage 1, stage 2, 2-level CD table, reads of configuration, of tables).
ROWS = {
    "bypass": (None, None, False, 2, 0),
    "S2 only, 4 levels": (None, FOUR, False, 2, 4),
    "S2 only, 3 levels": (None, THREE, False, 2, 3),
    "S2 only, 2M leaf": (None, FOUR_2M, False, 2, 3),
    "S2 only, 1G leaf": (None, FOUR_1G, False, 2, 2),
    "S1 only, linear CDs": (FOUR, None, False, 3, 4),
    "S1 only, 2-level CDs": (FOUR, None, True, 4, 4),
    "nested 4x4, linear CDs": (FOUR, FOUR, False, 7, 24),
    "nested 4x4, 2-level CDs": (FOUR, FOUR, True, 12, 24),
    "nested 4x3": (FOUR, THREE, False, 6, 19),
    "nested 4K S1 over 2M S2": (FOUR, FOUR_2M, False, 6, 19),
    "nested 3x3": (THREE, THREE, False, 6, 15),
    "nested 4K S1 over 1G S2": (FOUR, FOUR_1G, False, 5, 14),
    "nested 2M S1 over 1G S2": (FOUR_2M, FOUR_1G, False, 5, 11),
}


@pytest.mark.parametrize("caching", ["none", "normal"])
@pytest.mark.parametrize("row", ROWS)
def test_a_cold_walk_reads_what_the_table_says(row: str, caching: str) -> None:
    s1, s2, two_level, config, tables = ROWS[row]
    assert counted(s1, s2, two_level_cd=two_level, caching=caching) == (config, tables)


@pytest.mark.parametrize("row", ROWS)
def test_with_configuration_cached_the_tables_alone_count(row: str) -> None:
    s1, s2, two_level, config, tables = ROWS[row]
    world = World(s1, s2, two_level_cd=two_level, caching="normal")
    cold = world.reads()
    assert cold.total() == config + tables
    assert world.reads().total() == 0
    world.machine.command(CmdTlbiNsnhAll.build())
    warm = world.reads()
    assert warm.total() == tables
    assert warm.keys() <= {"walk.s1", "walk.s2"}
    # The other way round the TLB has it all, but for what leads to the CDs.
    world.machine.command(CmdCfgiSteRange.build(range=31))
    again = world.reads()
    assert again.total() == config
    assert [again[name] for name in CONFIG] == [cold[name] for name in CONFIG]


def test_configuration_is_cached_without_a_tlb() -> None:
    world = World(FOUR, FOUR, caching="none")
    world.machine.smmu.config.caching = CACHING["normal"]
    assert [world.reads().total() for _ in range(3)] == [31, 24, 24]


def test_what_was_read_is_told_apart() -> None:
    expected = {
        "walk.l1std": 1, "walk.ste": 1, "walk.l1cd": 1, "walk.cd": 1, "walk.s1": 4,
        # Behind two CD reads, four tables and the output.
        "walk.s2": 4 * (2 + 4 + 1),
    }  # fmt: skip
    assert World(FOUR, FOUR, two_level_cd=True).reads() == expected


def levels(granule: Granule, starts: tuple[int, ...]) -> list[Levels]:
    leaves = (*granule.block_levels, granule.page_level)
    return [Levels(s, leaf, granule) for s in starts for leaf in leaves if leaf >= s]


@pytest.mark.parametrize("granule1", [G4K, G16K, G64K], ids=lambda g: g.name)
@pytest.mark.parametrize("granule2", [G4K, G16K, G64K], ids=lambda g: g.name)
def test_the_law_over_all_levels_and_granules(granule1: Granule, granule2: Granule) -> None:
    """Stage 1 and stage 2 from each first level to each leaf, with both forms of CD table."""
    starts = (1, 2, 3) if granule1 is G64K else (0, 1, 2, 3)
    starts2 = tuple(sorted(S2_START[granule2.name].values()))
    for i, (s1, s2) in enumerate(product(levels(granule1, starts), levels(granule2, starts2))):
        n1, n2, two_level = s1.depth, s2.depth, bool(i % 2)
        caching = ("none", "normal")[i // 2 % 2]
        found = counted(s1, s2, two_level_cd=two_level, caching=caching)
        law = (2 + (1 + two_level) * (1 + n2), (n1 + 1) * (n2 + 1) - 1)
        assert found == law, (s1, s2, two_level)


@pytest.mark.parametrize("granule", [G4K, G16K, G64K], ids=lambda g: g.name)
def test_the_law_of_one_stage(granule: Granule) -> None:
    starts = (1, 2, 3) if granule is G64K else (0, 1, 2, 3)
    for stage in levels(granule, starts):
        assert counted(stage, None) == (3, stage.depth)
    for stage in levels(granule, tuple(S2_START[granule.name].values())):
        assert counted(None, stage) == (2, stage.depth)


@pytest.mark.parametrize(("s2", "tables"), [(FOUR, 24), (FOUR_2M, 4), (FOUR_1G, 4)])
def test_a_leaf_that_all_share_is_walked_once(s2: Levels, tables: int) -> None:
    """With a TLB the stage 2 entry of the CD serves the tables and the output behind it too."""
    config = 2 + 1 + s2.depth
    assert counted(FOUR, s2, caching="normal", packed=True) == (config, tables)
    assert counted(FOUR, s2, caching="none", packed=True) == (config, 5 * (s2.depth + 1) - 1)
