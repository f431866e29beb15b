# SPDX-License-Identifier: BSD-2-Clause
"""Who is tried again when a stalled transaction ends, and which records are one (§3.12.2, §7.3.1).

The commands stand alone here: a CMD_SYNC has everything without a record tried again.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdResume, CmdStallTerm, CmdTlbiNhAll
from vsmmu.arch.events import CBadSte
from vsmmu.memory import PAGE
from vsmmu.smmu.config import DEFERRED
from vsmmu.smmu.eventq import PENDING_EVENTS

from .machine import NOWHERE, Machine
from .stall_machine import DATA, IOVA, Stalling, field


@pytest.mark.parametrize("ac", [0, 1])
def test_resume_has_duplicates_tried_again(ac: int) -> None:
    """§3.12.2.1: those whose record was suppressed, when the first ends."""
    stalling = Stalling()
    _, event = stalling.stall()
    again = stalling.port().read(IOVA + 0x80, 4)
    stalling.run()
    assert not again.done
    stalling.map(stalling.root, IOVA, DATA)
    stalling.post(CmdResume.build(sid=1, stag=field(event, "stag"), ac=ac, ab=1))
    stalling.run()
    assert again.ok
    assert len(stalling.smmu.stalls) == 0


def test_stall_term_makes_room_for_another_stream() -> None:
    """IDR5.STALL_MAX: what waits for a STAG gets one when a place is free."""
    stalling = Stalling()
    stalling.s1_stream(2, s=1)
    held = [stalling.port(1).read(page * PAGE, 4) for page in range(4)]
    other = stalling.port(2).read(IOVA, 4)
    assert len(stalling.events()) == 4
    stalling.post(CmdStallTerm.build(sid=1))
    (event,) = stalling.events()
    assert [r.done for r in (*held, other)] == [True] * 4 + [False]
    assert field(event, "sid") == 2


def test_a_sync_leaves_nobody_behind_an_unwritten_record() -> None:
    """§4.7.3: the first is tried again and ends; what stands behind it must not wait for ever."""
    stalling = Stalling()
    stalling.write("CR0", 0b1001)
    requests = [stalling.port().read(IOVA, 4) for _ in range(2)]
    stalling.run()
    assert stalling.smmu.stalls.unwritten == 1
    assert len(stalling.smmu.stalls) == 2
    stalling.map(stalling.root, IOVA, DATA)
    stalling.command()
    assert [r.ok for r in requests] == [True, True]
    assert len(stalling.smmu.stalls) == 0


# Records that are one (§3.5.5, §7.3.1).


def merging(**cd: int) -> Machine:
    machine = Machine()
    root = machine.alloc(PAGE)
    machine.ste(1, config=5, mev=1, s1ctxptr=machine.cd(**{"ttb0": root, **cd}))
    return machine


@pytest.mark.parametrize("cd", [{}, {"ttb0": NOWHERE}])
@pytest.mark.parametrize(("other", "count"), [(0xFFF, 1), (0x800, 1), (0x1000, 2)])
def test_addresses_of_one_page_are_one_record(cd: dict[str, int], other: int, count: int) -> None:
    """§7.3.1: translation faults and F_WALK_EABT."""
    machine = merging(**cd)
    machine.go(1, 0x3000)
    machine.go(1, 0x3000 + other)
    (first, *rest) = machine.events()
    assert first.name == ("F_WALK_EABT" if cd else "F_TRANSLATION")
    assert 1 + len(rest) == count


def test_a_record_that_was_dropped_takes_no_others_with_it() -> None:
    machine = merging()
    for _ in range(PENDING_EVENTS):
        machine.smmu.eventq.record(CBadSte.build())
    machine.go(1, 0x3000)
    assert machine.smmu.counters["event.dropped"] == 1
    machine.smmu.eventq.step(1)
    machine.go(1, 0x3000)
    assert machine.smmu.counters["event.merged"] == 0
    assert [e.name for e in machine.events()][-1] == "F_TRANSLATION"


def test_invalidations_that_are_held_back_are_bounded() -> None:
    """§4.7.3 asks for them at a CMD_SYNC; without one, room is made by carrying them out."""
    machine = Machine(caching="hostile", cmdq_log2=9)
    machine.post(*[CmdTlbiNhAll.build()] * (DEFERRED + 1))
    machine.smmu.cmdq.step(DEFERRED)
    assert len(machine.smmu.config.deferred) == DEFERRED
    machine.smmu.cmdq.step(1)
    assert len(machine.smmu.config.deferred) == 1
