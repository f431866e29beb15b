# SPDX-License-Identifier: BSD-2-Clause
"""Contiguous groups that the output size cuts (IHI 0070 §3.4; Arm ARM D8.7.1)."""

from __future__ import annotations

from collections import Counter

import pytest

from vsmmu.arch.events import FAddrSize
from vsmmu.arch.pagetable import G4K
from vsmmu.memory import Memory
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import Fault
from vsmmu.smmu.walk import Stage1, Stage2, Table, Walker

from .machine import AF, RAM

CONTIG, UNPRIV = 1 << 52, 1 << 6


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
