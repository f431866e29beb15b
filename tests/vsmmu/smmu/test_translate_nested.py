# SPDX-License-Identifier: BSD-2-Clause
"""What becomes of an access with both stages: order, faults, records (IHI 0070 §3.4, §7.3)."""

from __future__ import annotations

from random import Random

import pytest

from vsmmu.memory import PAGE

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine
from .test_translate import DATA, RO_S1, describe


class Nested:
    """A nested stream: stage 1 root at an IPA equal to its PA, stage 2 mapped page by page."""

    def __init__(self, machine: Machine, **ste: int) -> None:
        self.machine = machine
        self.s2root = machine.s2_root()
        self.root = machine.alloc(PAGE)
        self.cd = machine.cd(ttb0=self.root)
        fields = machine.s2_fields(self.s2root, **ste)
        machine.ste(1, config=7, s1ctxptr=self.cd, **fields)
        machine.map(self.root, 0, 0x1_2340_0000)
        tables = [machine.memory.read64(self.root)]
        assert tables[0] is not None
        self.level2 = tables[0] & -PAGE
        below = machine.memory.read64(self.level2)
        assert below is not None
        self.level3 = below & -PAGE

    def identity(self, *pages: int, flags: int = AF | RW_S2) -> None:
        for page in pages:
            self.machine.map(self.s2root, page & -PAGE, page & -PAGE, flags=flags)

    def ready(self) -> None:
        self.identity(self.cd, self.root, self.level2, self.level3)


def test_nested_page(machine: Machine) -> None:
    nested = Nested(machine)
    nested.ready()
    machine.map(nested.s2root, 0x1_2340_0000, DATA, flags=AF | RW_S2)
    assert machine.go(1, 0x18).pa == DATA + 0x18


def test_nested_class_follows_what_the_ipa_was_for(machine: Machine) -> None:
    """§7.3.13: CD, each stage 1 table, then the data; each repaired in turn."""
    nested = Nested(machine)
    base = {"name": "F_TRANSLATION", "s2": 1, "rnw": 0, "ind": 0, "pnu": 0, "inputaddr": 0x18}
    for cls, page in (
        (0, nested.cd), (1, nested.root), (1, nested.level2), (1, nested.level3),
        (2, 0x1_2340_0018),
    ):  # fmt: skip
        event = describe(machine.go(1, 0x18, write=True))
        assert event == {**base, "cls": cls, "ipa": page & -PAGE}
        machine.map(nested.s2root, page & -PAGE, page & -PAGE, flags=AF | RW_S2)
    assert machine.go(1, 0x18, write=True).pa == 0x1_2340_0018


@pytest.mark.parametrize(
    ("flags", "name"),
    [(RW_S2, "F_ACCESS"), (AF, "F_PERMISSION"), (AF | 2 << 6, "F_PERMISSION")],
)
def test_nested_table_access_reads_whatever_the_access_does(
    machine: Machine, flags: int, name: str
) -> None:
    nested = Nested(machine)
    nested.identity(nested.cd, nested.root, nested.level2)
    nested.identity(nested.level3, flags=flags)
    event = describe(machine.go(1, 0, write=True))
    assert (event["name"], event["s2"], event["cls"], event["ipa"]) == (name, 1, 1, nested.level3)
    if name == "F_PERMISSION":
        assert event["ttrnw"] == 1


def test_nested_table_in_read_only_memory_is_fine(machine: Machine) -> None:
    nested = Nested(machine)
    nested.identity(nested.cd, nested.root, nested.level2, nested.level3, flags=AF | 1 << 6)
    nested.identity(0x1_2340_0000)
    assert machine.go(1, 0, write=True).status == "ok"


@pytest.mark.parametrize(
    ("ptw", "memattr", "name"), [(1, 0, "F_PERMISSION"), (1, 15, None), (0, 0, None)]
)
def test_s2ptw(machine: Machine, ptw: int, memattr: int, name: str | None) -> None:
    """§5.2 S2PTW: a table walk into Device memory."""
    nested = Nested(machine, s2ptw=ptw)
    nested.identity(nested.cd, nested.root, nested.level2, flags=AF | RW_S2 | 15 << 2)
    nested.identity(nested.level3, 0x1_2340_0000, flags=AF | RW_S2 | memattr << 2)
    outcome = machine.go(1, 0)
    if name is None:
        assert outcome.status == "ok"
    else:
        event = describe(outcome)
        assert (event["name"], event["s2"], event["cls"]) == (name, 1, 1)


def test_stage_1_permission_before_stage_2(machine: Machine) -> None:
    """§7.3: the final IPA is not translated for an access that stage 1 denies."""
    nested = Nested(machine)
    nested.ready()
    machine.map(nested.root, 0, 0x1_2340_0000, flags=AF | RO_S1)
    event = describe(machine.go(1, 0, write=True))
    assert (event["name"], event["s2"]) == ("F_PERMISSION", 0)


def test_stage_2_permission_on_a_hit_has_the_ipa(machine: Machine) -> None:
    """§7.3.16: also when the translation comes from the TLB."""
    nested = Nested(machine)
    nested.ready()
    machine.map(nested.s2root, 0x1_2340_0000, DATA, flags=AF | 1 << 6)
    assert machine.go(1, 0x18).status == "ok"
    walks = machine.smmu.counters["walk.s1"]
    event = describe(machine.go(1, 0x18, write=True))
    assert machine.smmu.counters["walk.s1"] == walks
    assert (event["name"], event["s2"], event["cls"], event["ipa"]) == (
        "F_PERMISSION", 1, 2, 0x1_2340_0000,
    )  # fmt: skip


def test_stage_2_permission_on_a_block_names_the_page(machine: Machine) -> None:
    nested = Nested(machine)
    nested.ready()
    block = 0x1_2340_0000
    machine.map(nested.root, 4 << 20, block, size=2 << 20)
    nested.identity(nested.level2)
    machine.map(nested.s2root, block, 0x8800_0000, flags=AF | 1 << 6, size=2 << 20)
    for _ in range(2):
        event = describe(machine.go(1, (4 << 20) + 0x5678, write=True))
        assert (event["name"], event["s2"], event["ipa"]) == ("F_PERMISSION", 1, block + 0x5000)


def test_s2_walk_abort_names_class_and_descriptor(machine: Machine) -> None:
    nested = Nested(machine)
    machine.memory.write64(nested.s2root + 8 * (nested.cd >> 30), NOWHERE | 3)
    event = describe(machine.go(1, 0))
    assert (event["name"], event["s2"], event["cls"]) == ("F_WALK_EABT", 1, 0)
    assert event["fetchaddr"] == NOWHERE + 8 * (nested.cd >> 21 & 511)


@pytest.mark.parametrize("s2r", [0, 1])
def test_s2r_suppresses_stage_2_faults_only(machine: Machine, s2r: int) -> None:
    nested = Nested(machine, s2r=s2r)
    assert machine.go(1, 0).status == "fault"
    nested.ready()
    assert machine.go(1, 0x1000).status == "fault"
    events = machine.events()
    assert [event.fields["s2"].of(event.words) for event in events] == ([1] if s2r else []) + [0]


@pytest.mark.parametrize("stage2_pages", [2, 3])
def test_64k_table_scattered_by_stage_2(machine: Machine, stage2_pages: int) -> None:
    """Every descriptor's IPA goes through stage 2: a 64K table need not be contiguous."""
    s2root = machine.s2_root()
    table_ipa = 0x5000_0000
    cd = machine.cd(ttb0=table_ipa, tg0=1, t0sz=64 - 42)
    machine.ste(1, config=7, s1ctxptr=cd, **machine.s2_fields(s2root))
    machine.map(s2root, cd & -PAGE, cd & -PAGE, flags=AF | RW_S2)
    for i in range(16):
        machine.map(s2root, table_ipa + i * PAGE, machine.alloc(PAGE), flags=AF | RW_S2)
        machine.alloc(PAGE * (stage2_pages - 1))
    entry = 12 * 512 + 3
    leaf = machine.memory.read64(s2root + 8)
    assert leaf is not None
    page = walk_s2(machine, s2root, table_ipa + 8 * entry & -PAGE)
    machine.memory.write64(page + 8 * entry % PAGE, 0x6000_0000 | AF | RW_S1 | 1)
    for i in range(2):
        machine.map(s2root, 0x6000_0000 + i * PAGE, DATA + i * PAGE, flags=AF | RW_S2)
    assert machine.go(1, (entry << 29) + PAGE + 4).pa == DATA + PAGE + 4


def walk_s2(machine: Machine, root: int, ipa: int) -> int:
    table = root
    for level in (1, 2, 3):
        shift = 12 + 9 * (3 - level)
        index = ipa >> shift if level == 1 else ipa >> shift & 511
        entry = machine.memory.read64(table + 8 * index)
        assert entry is not None
        table = entry & 0xFFFF_FFFF_F000
    return table


@pytest.mark.parametrize("seed", range(6))
def test_with_and_without_caches_agree(seed: int) -> None:
    """Nothing changes in memory here, so a cache may not change any outcome."""
    rng = Random(seed)
    outcomes = []
    for caching in ("normal", "none"):
        rng = Random(seed)
        machine = Machine(caching=caching)
        nested = Nested(machine)
        nested.ready()
        for _ in range(40):
            flags = (
                AF | rng.getrandbits(1) << 7 | rng.getrandbits(1) << 6 | rng.getrandbits(1) << 11
            )
            machine.map(
                nested.root, rng.randrange(64) * PAGE, rng.randrange(64) * PAGE, flags=flags
            )
        for i in range(64):
            flags = (AF if rng.random() < 0.9 else 0) | rng.getrandbits(2) << 6
            size = PAGE if i else 2 << 20
            where = i * PAGE if i else 2 << 21
            machine.map(
                nested.s2root, where, DATA + i * PAGE if i else 2 << 30, flags=flags, size=size
            )
        outcomes.append(
            [machine.go(1, rng.randrange(64) * PAGE, write=rng.random() < 0.5) for _ in range(400)]
        )
    assert outcomes[0] == outcomes[1]
    assert {outcome.status for outcome in outcomes[0]} == {"ok", "fault"}
