# SPDX-License-Identifier: BSD-2-Clause
"""Who makes a descriptor dirty (IHI 0070 §3.13): a write that every permission lets through."""

from __future__ import annotations

import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, Machine

HTTU = Features.default().replace(httu=2)
DATA, IOVA = 0x8F00_0000, 0x3000
UNPRIV, READ_ONLY, DBM = 1 << 6, 1 << 7, 1 << 51
READ_ONLY_TABLE = 1 << 62


def leaf(machine: Machine, root: int) -> int:
    """Where the descriptor of IOVA is."""
    table = root
    for level in (1, 2):
        entry = machine.memory.read64(table + 8 * (IOVA >> 12 + 9 * (3 - level) & 511))
        assert entry is not None
        table = entry & 0xFFFF_FFFF_F000
    return table + 8 * (IOVA >> 12 & 511)


@pytest.mark.parametrize(
    ("flags", "above", "priv", "dirty"),
    [
        (UNPRIV, 0, False, True),
        (UNPRIV, 0, True, True),
        (0, 0, True, True),
        (0, 0, False, False),
        (UNPRIV, READ_ONLY_TABLE, False, False),
        (UNPRIV, READ_ONLY_TABLE, True, False),
    ],
)
def test_a_write_without_permission_leaves_it_clean(
    flags: int, above: int, priv: bool, dirty: bool
) -> None:
    machine = Machine(HTTU)
    root = machine.alloc(PAGE)
    machine.s1_stream(1, root, ha=1, hd=1)
    machine.map(root, IOVA, DATA, flags=AF | READ_ONLY | DBM | flags)
    first = machine.memory.read64(root)
    assert first is not None
    machine.memory.write64(root, first | above)
    place = leaf(machine, root)
    before = machine.memory.read64(place)
    outcome = machine.go(1, IOVA, write=True, priv=priv)
    assert before is not None
    assert outcome.status == ("ok" if dirty else "fault")
    assert machine.memory.read64(place) == (before & ~READ_ONLY if dirty else before)
    assert machine.smmu.counters["httu.dirty"] == int(dirty)
    assert machine.smmu.counters["httu.af"] == 0


@pytest.mark.parametrize("read_first", [False, True])
@pytest.mark.parametrize("caching", ["none", "normal"])
def test_stage_2(caching: str, read_first: bool) -> None:
    """A read leaves S2AP[1] as it is, also where its translation is cached; a write sets it."""
    machine = Machine(HTTU, caching=caching)
    root = machine.s2_root()
    machine.ste(1, config=6, **machine.s2_fields(root, s2ha=1, s2hd=1))
    readable, writable = 1 << 6, 1 << 7
    machine.map(root, IOVA, DATA, flags=AF | DBM | readable)
    place = leaf(machine, root)
    before = machine.memory.read64(place)
    assert before is not None
    if read_first:
        assert machine.go(1, IOVA).status == "ok"
        assert machine.memory.read64(place) == before
    assert machine.go(1, IOVA, write=True).status == "ok"
    assert machine.memory.read64(place) == before | writable
    assert machine.go(1, IOVA, write=True).status == "ok"
    assert machine.smmu.counters["httu.dirty"] == 1


@pytest.mark.parametrize("caching", ["none", "normal"])
def test_stage_2_below_a_stage_1(caching: str) -> None:
    """A write through a translation that a read left behind makes stage 2's descriptor dirty."""
    machine = Machine(HTTU, caching=caching)
    root2, root1 = machine.s2_root(), machine.alloc(PAGE)
    context = machine.cd(ttb0=root1)
    machine.map(root1, IOVA, IOVA, flags=AF | UNPRIV)
    for page in range(root2, machine._next, PAGE):
        machine.map(root2, page, page, flags=AF | 3 << 6)
    machine.map(root2, IOVA, DATA, flags=AF | DBM | 1 << 6)
    machine.ste(1, config=7, s1ctxptr=context, **machine.s2_fields(root2, s2ha=1, s2hd=1))
    place = leaf(machine, root2)
    before = machine.memory.read64(place)
    assert before is not None
    assert machine.go(1, IOVA).status == "ok"
    assert machine.memory.read64(place) == before
    assert machine.go(1, IOVA, write=True).pa == DATA
    assert machine.memory.read64(place) == before | 1 << 7


@pytest.mark.parametrize("caching", ["none", "normal"])
def test_an_update_that_stage_2_forbids(caching: str) -> None:
    """§7.3.16: CLASS=TT, and TTRnW=0 for the write of the descriptor, not for its read."""
    machine = Machine(HTTU, caching=caching)
    root2, root1 = machine.s2_root(), machine.alloc(PAGE)
    context = machine.cd(ttb0=root1, ha=1)
    machine.map(root1, IOVA, IOVA, flags=UNPRIV)
    for page in range(root2, machine._next, PAGE):
        machine.map(root2, page, page, flags=AF | 1 << 6)
    machine.ste(1, config=7, s1ctxptr=context, **machine.s2_fields(root2))
    event = machine.go(1, IOVA).event
    assert event is not None
    fields = {name: event.fields[name].of(event.words) for name in ("s2", "cls", "ttrnw", "ipa")}
    assert event.name == "F_PERMISSION"
    assert fields == {"s2": 1, "cls": 1, "ttrnw": 0, "ipa": leaf(machine, root1) & -PAGE}
