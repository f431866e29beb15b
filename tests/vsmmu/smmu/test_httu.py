# SPDX-License-Identifier: BSD-2-Clause
"""Hardware update of translation tables (IHI 0070 §3.13.2, §3.13.3, §3.13.5).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.events import EventClass
from vsmmu.memory import PAGE
from vsmmu.smmu import Features, Outcome

from .machine import AF, PAGE_DESC, RW_S2, Machine

HTTU = Features.default().replace(httu=2)
VA, DATA = 0x5000, 0x8F00_0000
UNPRIV, READ_ONLY, DBM = 1 << 6, 1 << 7, 1 << 51
S2_READ, S2_WRITE = 1 << 6, 1 << 7
CLEAN1, CLEAN2 = AF | UNPRIV | READ_ONLY | DBM, AF | S2_READ | DBM
APTABLE_READ_ONLY = 1 << 62


class OneStage(Machine):
    """VA is mapped by the leaf at `slot`, with these flags."""

    def __init__(self, flags: int, **cd: int) -> None:
        super().__init__(HTTU)
        root = self.s1_stream(1, **cd)
        self.map(root, VA, DATA, flags=flags)
        level2 = self.word(root) & -PAGE
        self.table2 = level2
        self.slot = (self.word(level2) & -PAGE) + 8 * 5

    def word(self, place: int) -> int:
        value = self.memory.read64(place)
        assert value is not None
        return value

    @property
    def flags(self) -> int:
        return self.word(self.slot) ^ DATA ^ PAGE_DESC


def name(outcome: Outcome) -> str | None:
    return None if outcome.event is None else outcome.event.name


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    ("cd", "fault", "after"),
    [
        ({}, "F_ACCESS", UNPRIV),
        ({"affd": 1}, None, UNPRIV),
        ({"ha": 1}, None, UNPRIV | AF),
        ({"ha": 1, "affd": 1}, None, UNPRIV | AF),
    ],
)
def test_access_flag(write: bool, cd: dict[str, int], fault: str | None, after: int) -> None:
    """§3.13.2: set where it would have faulted; AFFD means nothing with HA."""
    machine = OneStage(UNPRIV, **cd)
    assert name(machine.go(1, VA, write=write)) == fault
    assert machine.flags == after


@pytest.mark.parametrize(
    ("before", "write", "fault", "after"),
    [
        (CLEAN1, False, None, CLEAN1),
        (CLEAN1, True, None, CLEAN1 ^ READ_ONLY),
        (CLEAN1 ^ AF, True, None, CLEAN1 ^ READ_ONLY),
        (CLEAN1 ^ AF, False, None, CLEAN1),
        (CLEAN1 ^ DBM, True, "F_PERMISSION", CLEAN1 ^ DBM),
        (CLEAN1 ^ READ_ONLY, True, None, CLEAN1 ^ READ_ONLY),
        (CLEAN1 ^ UNPRIV, True, "F_PERMISSION", CLEAN1 ^ UNPRIV),
    ],
)
def test_dirty_state(before: int, write: bool, fault: str | None, after: int) -> None:
    """§3.13.3: AP[2] is cleared for a write, with DBM, where nothing else forbids it."""
    machine = OneStage(before, ha=1, hd=1)
    assert name(machine.go(1, VA, write=write)) == fault
    assert machine.flags == after


def test_a_table_that_removes_writes() -> None:
    """§3.13.3: APTable makes it read-only, not clean."""
    machine = OneStage(CLEAN1, ha=1, hd=1)
    assert machine.memory.write64(machine.table2, machine.word(machine.table2) | APTABLE_READ_ONLY)
    assert name(machine.go(1, VA, write=True)) == "F_PERMISSION"
    assert machine.flags == CLEAN1


class TwoStages(Machine):
    """Stage 1 tables and the CD are in pages with their own stage 2 leaves, and so is the data.

    Attributes:
        leaves: page to the place of its stage 2 leaf: "cd", "root", "level 2", "level 3", "data".
    """

    def __init__(self, leaf1: int, tables2: int, data2: int) -> None:
        super().__init__(HTTU)
        root = self.alloc(PAGE)
        self.map(root, VA, DATA, flags=leaf1)
        level2, level3 = root + PAGE, root + 2 * PAGE
        self.leaf1 = level3 + 8 * 5
        cd = self.alloc(PAGE)
        self.cd(cd, ttb0=root, ha=1, hd=1)
        root2 = self.s2_root()
        pages = {"cd": cd, "root": root, "level 2": level2, "level 3": level3, "data": DATA}
        for what, page in pages.items():
            self.map(root2, page, page, flags=data2 if what == "data" else tables2)
        self.ste(1, config=7, s1ctxptr=cd, **self.s2_fields(root2, s2ha=1, s2hd=1))
        self._pages, self._root2 = pages, root2

    def read(self, place: int) -> int:
        value = self.memory.read64(place)
        assert value is not None
        return value

    def flags(self) -> dict[str, int]:
        """Flags of each stage 2 leaf."""
        found = {}
        for what, page in self._pages.items():
            table = self._root2
            for level in (1, 2):
                index = page >> (39 - 9 * level) & (1023 if level == 1 else 511)
                table = self.read(table + 8 * index) & -PAGE
            found[what] = self.read(table + 8 * (page >> 12 & 511)) ^ page ^ PAGE_DESC
        return found


@pytest.mark.parametrize("write", [False, True])
def test_one_access_and_many_descriptors(write: bool) -> None:
    """§3.13.5: access flags on the way; dirty is what is written: the stage 1 leaf, the data.

    §3.13.3: never the page of a CD.
    """
    clean = CLEAN2 ^ AF
    machine = TwoStages(CLEAN1 ^ AF, clean, clean)
    assert machine.go(1, VA, write=write).status == "ok"
    dirty = CLEAN2 | S2_WRITE
    assert machine.flags() == {
        "cd": CLEAN2, "root": CLEAN2, "level 2": CLEAN2, "level 3": dirty,
        "data": dirty if write else CLEAN2,
    }  # fmt: skip
    after = CLEAN1 ^ READ_ONLY if write else CLEAN1
    assert machine.read(machine.leaf1) == DATA | PAGE_DESC | after


def test_nothing_to_update_in_stage_1() -> None:
    """§3.13.5: then the stage 2 page of its table stays clean."""
    machine = TwoStages(AF | UNPRIV, CLEAN2, CLEAN2)
    assert machine.go(1, VA, write=True).status == "ok"
    assert machine.flags() == {
        "cd": CLEAN2, "root": CLEAN2, "level 2": CLEAN2, "level 3": CLEAN2,
        "data": CLEAN2 | S2_WRITE,
    }  # fmt: skip


@pytest.mark.parametrize(("leaf1", "write"), [(CLEAN1 ^ AF, False), (CLEAN1, True)])
def test_stage_2_forbids_the_update(leaf1: int, write: bool) -> None:
    """§3.13.5: a stage 2 fault of the walk that says it was a write; nothing is stored."""
    machine = TwoStages(leaf1, AF | S2_READ, AF | RW_S2)
    event = machine.go(1, VA, write=write).event
    assert event is not None
    fields = {f: event.fields[f].of(event.words) for f in ("s2", "cls", "ttrnw", "rnw", "ipa")}
    assert event.name == "F_PERMISSION"
    assert fields == {
        "s2": 1, "cls": EventClass.TT, "ttrnw": 0, "rnw": int(not write),
        "ipa": machine.leaf1 & -PAGE,
    }  # fmt: skip
    assert machine.read(machine.leaf1) == DATA | PAGE_DESC | leaf1
    assert machine.smmu.counters["httu.written"] == 0
