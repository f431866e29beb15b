# SPDX-License-Identifier: BSD-2-Clause
"""The contiguous hint (IHI 0070 §3.4; Arm ARM D8.7.1)."""

from __future__ import annotations

from collections import Counter

import pytest

from vsmmu.arch.events import FAddrSize
from vsmmu.arch.pagetable import G4K, G16K, G64K
from vsmmu.memory import Memory
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import Fault
from vsmmu.smmu.walk import Stage1, Stage2, Table, Walker

from .machine import AF, RAM

CONTIG, UNPRIV = 1 << 52, 1 << 6
GRANULES = {12: G4K, 14: G16K, 16: G64K}


@pytest.mark.parametrize("stage", [1, 2])
def test_contiguous_group_beyond_the_output_size(stage: int) -> None:
    """§3.4: 16 GiB in a 32-bit output: a member in range gives none of the others an output."""
    memory = Memory([(RAM, 1 << 20)])
    block, flags = 1 << 30, CONTIG | AF | UNPRIV | 1
    for i in range(16):
        memory.write64(RAM + 8 * i, i * block | flags)
    table = Table(G4K, 1, 39, RAM)
    walker = Walker(memory, Tlb(Counter()), Counter(), contiguous=True)
    found = []
    for address in (3 * block, 4 * block):
        if stage == 1:
            regime = Stage1((table, None), 32, False, False, False)
            found.append(walker.translate1(regime, table, address, None, 0, 1, 0, 1))
        else:
            under = Stage2(table, 32, False, False, True, False)
            found.append(walker.translate2(under, 0, address, 1))
    entry, fault = found
    assert not isinstance(entry, Fault)
    assert (entry.pa, entry.mask) == (3 * block, block - 1)
    assert isinstance(fault, Fault)
    assert fault.kind is FAddrSize


def contiguous_walk(
    page: int, level: int, entries: int, spoil: int = 0
) -> tuple[Walker, Tlb, Stage1, Table, int]:
    """A group of `entries` descriptors at `level`, the one at index 1 moved by `spoil`."""
    memory = Memory([(RAM, 1 << 20)])
    granule = GRANULES[page]
    counters: Counter[str] = Counter()
    tlb = Tlb(counters)
    shift = granule.shift(level)
    for i in range(entries):
        output = (1 << 40) + (i << shift) + (spoil if i == 1 else 0)
        memory.write64(RAM + 8 * i, output | CONTIG | AF | UNPRIV | (3 if level == 3 else 1))
    table = Table(granule, level, min(48, shift + granule.stride), RAM)
    regime = Stage1((table, None), 48, False, False, False)
    walker = Walker(memory, tlb, counters, contiguous=True)
    return walker, tlb, regime, table, shift


@pytest.mark.parametrize(
    ("page", "level", "entries"),
    [(12, 3, 16), (12, 2, 16), (12, 1, 16), (14, 3, 128), (14, 2, 32), (16, 3, 32), (16, 2, 32)],
)
def test_contiguous_group_is_one_entry(page: int, level: int, entries: int) -> None:
    """Arm ARM D8.7.1: one member's walk serves and invalidates the whole group."""
    walker, tlb, regime, table, shift = contiguous_walk(page, level, entries)
    for i in (1, 0, entries - 1):
        entry = walker.translate1(regime, table, i << shift, None, 0, 1, 0, 1)
        assert not isinstance(entry, Fault)
        assert entry.pa | i << shift & entry.mask == (1 << 40) + (i << shift)
    assert len(tlb) == 1
    assert tlb.invalidate_va(0, 1, entries - 1 << shift, entries - 1 << shift) == 1


def test_contiguous_is_a_hint() -> None:
    walker, tlb, regime, table, shift = contiguous_walk(12, 3, 16)
    walker.contiguous = False
    for i in range(3):
        walker.translate1(regime, table, i << shift, None, 0, 1, 0, 1)
    assert len(tlb) == 3


def test_misprogrammed_contiguous_group() -> None:
    """A member whose output belies the group stays alone; before its walk the group may answer."""
    walker, tlb, regime, table, shift = contiguous_walk(12, 3, 16, spoil=1 << 12)
    alone = walker.translate1(regime, table, 1 << shift, None, 0, 1, 0, 1)
    assert not isinstance(alone, Fault)
    assert (alone.pa, alone.mask) == ((1 << 40) + (2 << 12), 0xFFF)
    tlb.invalidate_all()
    walker.translate1(regime, table, 0, None, 0, 1, 0, 1)
    group = walker.translate1(regime, table, 1 << shift, None, 0, 1, 0, 1)
    assert not isinstance(group, Fault)
    assert group.pa | 1 << shift == (1 << 40) + (1 << 12)
