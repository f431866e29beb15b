# SPDX-License-Identifier: BSD-2-Clause
"""Merging of event records (IHI 0070 §7.3.1).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

from vsmmu.memory import PAGE

from .machine import Machine
from .stall_machine import IOVA, Stalling, field


def test_records_merge_only_with_mev_and_while_they_wait() -> None:
    """§7.3.1: identical but for InputAddr[11:0], STE.MEV=1, and close in time."""
    machine = Machine()
    for sid, mev in ((1, 1), (2, 0)):
        machine.ste(sid, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE)), mev=mev)
    for sid in (1, 2):
        for iova in (IOVA, IOVA + 8, IOVA + PAGE):
            machine.go(sid, iova)
    assert [field(e, "inputaddr") for e in machine.events()] == [
        IOVA, IOVA + PAGE, IOVA, IOVA + 8, IOVA + PAGE,
    ]  # fmt: skip
    assert machine.smmu.counters["event.merged"] == 1
    machine.go(1, IOVA)
    assert len(machine.events()) == 1


def test_records_of_another_kind_do_not_merge() -> None:
    machine = Machine()
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE)), mev=1)
    machine.go(1, IOVA)
    machine.go(1, IOVA, write=True)
    machine.go(1, IOVA, priv=True)
    assert len(machine.events()) == 3


def test_stalls_never_merge() -> None:
    """§7.3.1 merges records with Stall=0; two stalls of different pages are two records."""
    machine = Stalling()
    machine.ste(2, config=5, s1ctxptr=machine.cd(ttb0=machine.root, s=1), mev=1)
    for page in range(2):
        machine.port(2).read(page * PAGE, 4)
    assert len(machine.events()) == 2
