# SPDX-License-Identifier: BSD-2-Clause
"""A batch whose lanes have to store descriptors for different reasons (IHI 0070 §3.13)."""

from __future__ import annotations

import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features

from .machine import AF, RW_S1, RW_S2, Machine

BLOCK = 1 << 21
IPA, PA = BLOCK * 6, 0x8C00_0000
LANES = 300


@pytest.mark.parametrize("swap", [0, 1])
def test_lanes_that_wait_for_each_stage(swap: int) -> None:
    """Every other lane has its access flag set by stage 1, those between by stage 2."""
    machine = Machine(Features.default().replace(httu=2), caching="none")
    root2, root1 = machine.s2_root(), machine.alloc(PAGE)
    context = machine.cd(ttb0=root1, ha=1)
    # Page 0: stage 1 lacks the flag, a block of stage 2. Page 1: stage 2 lacks it, a page.
    machine.map(root1, 0, IPA, flags=RW_S1)
    machine.map(root1, PAGE, IPA + BLOCK, flags=AF | RW_S1)
    for page in range(root2, machine._next, PAGE):
        machine.map(root2, page, page, flags=AF | RW_S2)
    machine.map(root2, IPA, PA, size=BLOCK, flags=AF | RW_S2)
    machine.map(root2, IPA + BLOCK, PA + BLOCK, flags=RW_S2)
    machine.ste(1, config=7, s1ctxptr=context, **machine.s2_fields(root2, s2ha=1))
    iovas = [(i + swap) % 2 * PAGE + 8 * i for i in range(LANES)]
    found = machine.smmu.translate_many(1, iovas)
    expected = [PA + (i + swap) % 2 * BLOCK + 8 * i for i in range(LANES)]
    assert [int(pa) for pa in found.pa] == expected
    assert [machine.smmu.translate(Access(1, iova, False)).pa for iova in iovas] == expected
    assert machine.smmu.counters["httu.af"] == 2
