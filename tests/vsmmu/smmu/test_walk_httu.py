# SPDX-License-Identifier: BSD-2-Clause
"""Hardware update of stage 1 descriptors by the walker (IHI 0070 §3.13.2, §3.13.3).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

from collections import Counter

import pytest

from vsmmu.arch.pagetable import G4K
from vsmmu.memory import Memory
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import Fault
from vsmmu.smmu.walk import Stage1, Table, Walker

RAM = 0x1_0000_0000
AF, DBM, AP_RO, AP_EL0 = 1 << 10, 1 << 51, 1 << 7, 1 << 6


def httu(descriptor: int, **regime: bool) -> tuple[Memory, Walker, Stage1, Table]:
    memory = Memory([(RAM, 1 << 20)])
    memory.write64(RAM, 1 << 40 | 3 | descriptor)
    table = Table(G4K, 3, 21, RAM)
    counters: Counter[str] = Counter()
    walker = Walker(memory, Tlb(counters), counters)
    return memory, walker, Stage1((table, None), 48, False, False, False, **regime), table


@pytest.mark.parametrize(
    ("descriptor", "ha", "hd", "need", "name", "after"),
    [
        (AP_EL0, False, False, 1, "F_ACCESS", AP_EL0),
        (AP_EL0, True, False, 1, None, AP_EL0 | AF),
        (AP_EL0 | DBM | AP_RO, True, False, 2, "F_PERMISSION", AP_EL0 | DBM | AP_RO),
        (AP_EL0 | DBM | AP_RO, True, True, 1, None, AP_EL0 | DBM | AP_RO | AF),
        (AP_EL0 | DBM | AP_RO, True, True, 2, None, AP_EL0 | DBM | AF),
        (AP_EL0 | AP_RO | AF, True, True, 2, "F_PERMISSION", AP_EL0 | AP_RO | AF),
        (DBM | AP_RO, True, True, 2, "F_PERMISSION", DBM | AP_RO),
        (DBM | AP_RO, True, True, 16, None, DBM | AF),
    ],
)
def test_httu_stage_1(
    descriptor: int, ha: bool, hd: bool, need: int, name: str | None, after: int
) -> None:
    """§3.13.2, §3.13.3: AF with HA, AP[2] with HD and DBM, never more than the access needs."""
    memory, walker, regime, table = httu(descriptor, ha=ha, hd=hd)
    got = walker.translate1(regime, table, 0, None, 0, 1, 0, need)
    assert (got.kind.name if isinstance(got, Fault) else None) == name
    assert memory.read64(RAM) == 1 << 40 | 3 | after


def test_write_after_a_cached_read_makes_the_page_dirty() -> None:
    """§3.13.3: a clean entry in the TLB lets no write past the descriptor."""
    memory, walker, regime, table = httu(AP_EL0 | DBM | AP_RO | AF, ha=True, hd=True)
    read = walker.translate1(regime, table, 0, None, 0, 1, 0, 1)
    assert not isinstance(read, Fault)
    assert read.granted & 2 == 0
    assert memory.read64(RAM) == 1 << 40 | 3 | AP_EL0 | DBM | AP_RO | AF
    write = walker.translate1(regime, table, 0, None, 0, 1, 0, 2)
    assert not isinstance(write, Fault)
    assert write.granted & 2
    assert memory.read64(RAM) == 1 << 40 | 3 | AP_EL0 | DBM | AF
    # Cleaned by software, without an invalidation: the dirty entry goes on.
    memory.write64(RAM, 1 << 40 | 3 | AP_EL0 | DBM | AP_RO | AF)
    walker.translate1(regime, table, 0, None, 0, 1, 0, 2)
    assert memory.read64(RAM) == 1 << 40 | 3 | AP_EL0 | DBM | AP_RO | AF
    walker._tlb.invalidate_va(0, 1, 0, 0)
    walker.translate1(regime, table, 0, None, 0, 1, 0, 2)
    assert memory.read64(RAM) == 1 << 40 | 3 | AP_EL0 | DBM | AF
