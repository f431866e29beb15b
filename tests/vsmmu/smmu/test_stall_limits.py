# SPDX-License-Identifier: BSD-2-Clause
"""More stalls than STAGs, and stalls whose records cannot be written.

IHI 0070 §3.5.5, §3.12.2, §4.7.1. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdResume, CmdStallTerm
from vsmmu.arch.events import CBadSte
from vsmmu.memory import PAGE
from vsmmu.smmu import Access
from vsmmu.smmu.stall import StallBuffer, Stalled

from .machine import NOWHERE
from .stall_machine import DATA, IOVA, Stalling, field


@pytest.fixture
def stalling() -> Stalling:
    return Stalling()


def test_no_more_stags_than_stall_max(stalling: Stalling) -> None:
    """IDR5.STALL_MAX: what comes on top has no record before a place is free."""
    requests = [stalling.port().read(page * PAGE, 4) for page in range(6)]
    first = stalling.events()
    assert len(first) == 4
    stalling.command(CmdResume.build(sid=1, stag=field(first[0], "stag"), ab=1))
    assert [r.done for r in requests] == [True, False, False, False, False, False]
    (second,) = stalling.events()
    assert field(second, "inputaddr") == 4 * PAGE
    for event in (*first[1:], second):
        stalling.command(CmdResume.build(sid=1, stag=field(event, "stag"), ab=1))
    (last,) = stalling.events()
    assert field(last, "inputaddr") == 5 * PAGE
    stalling.command(CmdResume.build(sid=1, stag=field(last, "stag"), ab=1))
    assert all(r.done for r in requests)


def test_duplicates_wait_behind_the_first(stalling: Stalling) -> None:
    """§3.12.2.1: same stream, page and kind of access: one record; tried again with the first."""
    first, event = stalling.stall(IOVA)
    again = stalling.port().read(IOVA + 0x80, 4)
    write = stalling.port().write(IOVA, b"abcd")
    (other,) = stalling.events()
    assert field(other, "rnw") == 0
    stalling.map(stalling.root, IOVA, DATA)
    stalling.command(CmdResume.build(sid=1, stag=field(event, "stag"), ab=1))
    assert ([o.status for o in first.outcomes], again.ok, write.done) == (["fault"], True, False)
    stalling.command(CmdResume.build(sid=1, stag=field(other, "stag"), ac=1))
    assert write.ok


def test_a_full_queue_loses_no_stall() -> None:
    """§7.2, §7.4: no overflow for a stall; the record is written when there is room."""
    stalling = Stalling(eventq_log2=0)
    first, second = (stalling.port().read(page * PAGE, 4) for page in (0, 1))
    stalling.run()
    assert (first.done, second.done, stalling.smmu.stalls.unwritten) == (False, False, 1)
    prod = stalling.read("EVENTQ_PROD")
    assert prod >> 31 == 0
    assert stalling.smmu.counters["event.overflow"] == 0
    seen = [field(event, "inputaddr") for _ in range(3) for event in stalling.events()]
    assert seen == [0, PAGE]


def test_a_stall_that_waits_delays_neither_sync_nor_overflow() -> None:
    """§4.7.3, §7.4: records of terminated transactions are lost meanwhile, as ever."""
    stalling = Stalling(eventq_log2=0)
    stalling.go(9, 0)
    stalling.port().read(IOVA, 4)
    stalling.run()
    stalling.go(9, PAGE)
    stalling.command()
    assert stalling.read("EVENTQ_PROD") == 1 << 31 | 1
    stalling.write("EVENTQ_CONS", 1 << 31 | 1)
    stalling.run()
    assert [event.name for event in stalling.events()] == ["F_TRANSLATION"]


@pytest.mark.parametrize("unwritable", ["full", "disabled", "abort"])
def test_a_sync_frees_what_cannot_be_recorded(unwritable: str) -> None:
    """§4.7.3: CMD_SYNC has an unrecorded stall tried again, so that a driver need not wait."""
    stalling = Stalling(eventq_log2=0)
    if unwritable == "full":
        stalling.go(9, 0)
    elif unwritable == "disabled":
        stalling.write("CR0", 0b1001)
    else:
        stalling.write("CR0", 0b1001)
        stalling.write("EVENTQ_BASE", NOWHERE)
        stalling.write("CR0", 0b1101)
    request = stalling.port().read(IOVA, 4)
    stalling.run()
    assert (request.done, stalling.smmu.stalls.unwritten) == (False, 1)
    stalling.command()
    assert not request.done
    stalling.map(stalling.root, IOVA, DATA)
    stalling.run()
    assert not request.done
    stalling.command()
    assert request.ok
    assert len(stalling.smmu.stalls) == 0


def test_a_write_abort_loses_no_stall() -> None:
    """§7.2.2: the record is written once the queue can be written again, and once only."""
    stalling = Stalling()
    base = stalling.read("EVENTQ_BASE")
    stalling.write("CR0", 0b1001)
    stalling.write("EVENTQ_BASE", NOWHERE)
    stalling.write("CR0", 0b1101)
    stalling.port().read(IOVA, 4)
    stalling.run()
    assert stalling.read("GERROR") == 4
    stalling.write("CR0", 0b1001)
    stalling.write("EVENTQ_BASE", base)
    stalling.write("GERRORN", 4)
    stalling.write("CR0", 0b1101)
    assert len(stalling.events()) == 1


@pytest.mark.parametrize("how", ["term", "smmuen"])
def test_unrecorded_stalls_end_as_the_others(how: str) -> None:
    stalling = Stalling()
    stalling.write("CR0", 0b1001)
    requests = [stalling.port().read(IOVA, 4) for _ in range(3)]
    stalling.run()
    if how == "term":
        stalling.post(CmdStallTerm.build(sid=1))
    else:
        stalling.write("CR0", 0b1000)
    stalling.run()
    assert [[o.status for o in r.outcomes] for r in requests] == [["fault"]] * 3
    assert [o.event for r in requests for o in r.outcomes] == [None] * 3


def test_resume_cannot_guess_an_unwritten_stag() -> None:
    """§4.7.1: software has not been told the STAG."""
    stalling = Stalling()
    stalling.write("CR0", 0b1001)
    request = stalling.port().read(IOVA, 4)
    stalling.run()
    stalling.post(*(CmdResume.build(sid=1, stag=stag, ab=1) for stag in range(4)))
    stalling.run()
    assert not request.done


def test_disabling_the_queue_keeps_stalls() -> None:
    """§7.2: EVENTQEN 1 to 0 drops records of terminated transactions, not those of stalls."""
    stalling = Stalling()
    stalling.smmu.eventq.record(CBadSte.build())
    held = stalling.smmu.transact(Access(1, IOVA, False))
    assert isinstance(held, Stalled)
    stalling.write("CR0", 0b1001)
    stalling.write("CR0", 0b1101)
    assert [e.name for e in stalling.events()] == ["F_TRANSLATION"]


def test_stags_wrap_and_skip_those_in_use(stalling: Stalling) -> None:
    buffer = stalling.smmu.stalls
    assert isinstance(buffer, StallBuffer)
    _, first = stalling.stall()
    assert field(first, "stag") == 0
    buffer._next_stag = 0xFFFF
    assert [field(stalling.stall(page * PAGE)[1], "stag") for page in (1, 2)] == [0xFFFF, 1]
