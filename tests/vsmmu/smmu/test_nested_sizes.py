# SPDX-License-Identifier: BSD-2-Clause
"""How far one nested translation reaches: the smaller of both stages (IHI 0070 §3.17)."""

from __future__ import annotations

from collections import Counter

import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu.tlb import Tlb

from .machine import AF, RW_S1, RW_S2, Machine

BLOCK = 1 << 21
VA, IPA, PA = 0x3000, BLOCK * 5 + 0x7000, 0x8E00_0000


@pytest.fixture
def nested() -> tuple[Machine, int, int]:
    """Stream 1, its stage 1 root and its stage 2 root, where its tables and CD are mapped."""
    machine = Machine()
    root2, root1 = machine.s2_root(), machine.alloc(PAGE)
    context = machine.cd(ttb0=root1)
    machine.map(root1, VA, IPA, flags=AF | RW_S1)
    machine.map(root1, BLOCK, BLOCK * 5, size=BLOCK, flags=AF | RW_S1)
    for page in range(root2, machine._next, PAGE):
        machine.map(root2, page, page, flags=AF | RW_S2)
    machine.ste(1, config=7, s1ctxptr=context, **machine.s2_fields(root2))
    return machine, root1, root2


def test_a_page_of_stage_1_in_a_block_of_stage_2(nested: tuple[Machine, int, int]) -> None:
    machine, _, root2 = nested
    machine.map(root2, BLOCK * 5, PA, size=BLOCK, flags=AF | RW_S2)
    assert [machine.go(1, VA + offset).pa for offset in (0, 8)] == [PA + 0x7000, PA + 0x7008]
    assert machine.go(1, VA + PAGE).pa is None
    assert {held.size for held in machine.smmu.tlb if held.stage == 1} == {12}


def test_a_block_of_stage_1_over_pages_of_stage_2(nested: tuple[Machine, int, int]) -> None:
    machine, _, root2 = nested
    machine.map(root2, BLOCK * 5 + PAGE, PA, flags=AF | RW_S2)
    machine.map(root2, BLOCK * 5 + 2 * PAGE, PA + 9 * PAGE, flags=AF | RW_S2)
    assert machine.go(1, BLOCK + PAGE).pa == PA
    assert machine.go(1, BLOCK + 2 * PAGE).pa == PA + 9 * PAGE
    assert machine.go(1, BLOCK + 3 * PAGE).pa is None
    assert {(held.size, held.block) for held in machine.smmu.tlb if held.stage == 1} == {(12, 21)}


def test_places_of_contexts_are_bounded() -> None:
    tlb = Tlb(Counter())
    for asid in range(3000):
        tlb.find_stage1(0, asid, 0, 0)
        tlb.find_stage2(asid, 0)
        assert len(tlb._rows) <= 1024
