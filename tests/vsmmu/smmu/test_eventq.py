# SPDX-License-Identifier: BSD-2-Clause
"""The event queue (IHI 0070 §3.5.3, §7.2, §7.4)."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdSync
from vsmmu.arch.events import FTranslation
from vsmmu.arch.registers import EventqProd, Gerror
from vsmmu.smmu.eventq import PENDING_EVENTS

from .machine import NOWHERE, Machine

OVFLG = 1 << 31


def fault(machine: Machine, count: int = 1) -> None:
    for i in range(count):
        assert machine.go(9, i << 12).status == "fault"


def test_records_go_to_memory_when_stepped(machine: Machine) -> None:
    fault(machine, 3)
    assert machine.read("EVENTQ_PROD") == 0
    assert machine.smmu.eventq.step(2) == 2
    assert machine.read("EVENTQ_PROD") == 2
    assert [event.name for event in machine.events()] == ["C_BAD_STE"] * 3
    assert machine.smmu.counters["event.recorded"] == 3


def test_interrupt_on_empty_to_non_empty(machine: Machine) -> None:
    """§3.18: one edge until software has emptied the queue."""
    fault(machine, 3)
    machine.scheduler.run_until_idle()
    assert machine.irqs == ["eventq"]
    machine.events()
    fault(machine)
    machine.scheduler.run_until_idle()
    assert machine.irqs == ["eventq", "eventq"]


def test_no_interrupt_without_its_enable(machine: Machine) -> None:
    machine.write("IRQ_CTRL", 1)
    fault(machine)
    machine.scheduler.run_until_idle()
    assert machine.irqs == []


def test_overflow_is_flagged_once_until_acknowledged(make_machine: type[Machine]) -> None:
    """§7.4: OVFLG toggles; GERROR does not."""
    machine = make_machine(eventq_log2=1)
    fault(machine, 2)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == 2
    fault(machine, 3)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == OVFLG | 2
    assert machine.read("GERROR") == 0
    assert machine.smmu.counters["event.overflow"] == 1
    assert machine.smmu.counters["event.dropped"] == 3
    assert len(machine.events()) == 2
    fault(machine, 3)
    machine.scheduler.run_until_idle()
    prod = EventqProd(machine.read("EVENTQ_PROD"))
    assert (prod.ovflg, prod.wr) == (0, 0)


def test_unacknowledged_overflow_does_not_block(make_machine: type[Machine]) -> None:
    machine = make_machine(eventq_log2=1)
    fault(machine, 3)
    machine.scheduler.run_until_idle()
    machine.write("EVENTQ_CONS", 1)
    fault(machine)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == OVFLG | 3


def test_write_abort(make_machine: type[Machine]) -> None:
    """§7.2: EVENTQ_ABT_ERR, PROD stays; nothing is written until it is acknowledged."""
    machine = make_machine(boot=False)
    machine.eventq = NOWHERE
    machine.boot()
    fault(machine, 2)
    machine.scheduler.run_until_idle()
    active = Gerror(machine.read("GERROR"))
    assert active.eventq_abt_err
    assert machine.read("EVENTQ_PROD") == 0
    assert machine.irqs == ["gerror"]
    assert machine.smmu.counters["event.dropped"] == 2


def test_disabled_queue_drops_without_overflow(machine: Machine) -> None:
    fault(machine, 2)
    machine.write("CR0", 0x9)
    assert machine.smmu.eventq.pending == 0
    fault(machine, 2)
    machine.write("CR0", 0xD)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == 0
    assert machine.smmu.counters["event.dropped"] == 4


def test_waiting_records_are_bounded(machine: Machine) -> None:
    fault(machine, PENDING_EVENTS)
    assert not machine.smmu.ready
    fault(machine)
    assert machine.smmu.eventq.pending == PENDING_EVENTS
    assert machine.smmu.counters["event.dropped"] == 1
    machine.smmu.eventq.step(1)
    assert machine.smmu.ready


def test_inconsistent_indexes_count_as_full(make_machine: type[Machine]) -> None:
    machine = make_machine(boot=False)
    machine.write("EVENTQ_BASE", machine.eventq | 4)
    machine.write("EVENTQ_CONS", 5)
    machine.write("EVENTQ_PROD", 3)
    machine.eventq_log2 = 4
    machine.boot()
    fault(machine)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == OVFLG | 3


@pytest.mark.parametrize("log2", [0, 1, 4])
def test_queue_wraps(make_machine: type[Machine], log2: int) -> None:
    machine = make_machine(eventq_log2=log2)
    for i in range(5 << log2):
        machine.go(9, i)
        assert len(machine.events()) == 1
    assert machine.smmu.counters["event.overflow"] == 0


# Each sentence on fullness and overflow.


def test_every_entry_is_used_before_the_queue_is_full(make_machine: type[Machine]) -> None:
    """§3.5.1: full is equal indexes with different wrap bits; overflow not before."""
    machine = make_machine(eventq_log2=2)
    fault(machine, 4)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == 4
    assert machine.smmu.counters["event.overflow"] == 0
    fault(machine)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == OVFLG | 4


def test_overflow_does_not_touch_what_is_in_the_queue(make_machine: type[Machine]) -> None:
    """§7.4: the records that do not fit are lost, not the others."""
    machine = make_machine(eventq_log2=1)
    for sid in (9, 10, 11, 12):
        machine.go(sid, 0)
    assert [event.sid for event in machine.events()] == [9, 10]


def test_overflow_flag_survives_later_records_and_wraps(make_machine: type[Machine]) -> None:
    """§7.4: OVFLG is not part of the index, and an unacknowledged overflow blocks nothing."""
    machine = make_machine(eventq_log2=1)
    fault(machine, 3)
    machine.scheduler.run_until_idle()
    for cons in (1, 2, 3, 0, 1):
        machine.write("EVENTQ_CONS", cons)
        fault(machine)
        machine.scheduler.run_until_idle()
        assert machine.read("EVENTQ_PROD") == OVFLG | (cons + 2) % 4


def test_a_second_overflow_is_not_flagged_before_acknowledgement(
    make_machine: type[Machine],
) -> None:
    """§7.4: OVFLG toggles only while it equals OVACKFLG."""
    machine = make_machine(eventq_log2=0)
    flags = []
    for acknowledged in (0, 0, OVFLG, OVFLG, 0):
        machine.write("EVENTQ_CONS", acknowledged | machine.read("EVENTQ_CONS") & 1)
        fault(machine, 2)
        machine.scheduler.run_until_idle()
        flags.append(machine.read("EVENTQ_PROD") >> 31)
    assert flags == [1, 1, 0, 0, 1]


def test_a_full_queue_records_again_when_cons_moves(make_machine: type[Machine]) -> None:
    machine = make_machine(eventq_log2=1)
    fault(machine, 2)
    machine.scheduler.run_until_idle()
    machine.write("EVENTQ_CONS", 1)
    fault(machine)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == 3


def test_an_abort_is_no_overflow_and_ends_with_its_acknowledgement(
    make_machine: type[Machine],
) -> None:
    """§7.2.2: what is dropped while EVENTQ_ABT_ERR is active is not flagged."""
    machine = make_machine(boot=False)
    place, machine.eventq = machine.eventq, NOWHERE
    machine.boot()
    fault(machine, 3)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == 0
    machine.write("CR0", 0x9)
    machine.eventq = place
    machine.write("EVENTQ_BASE", place | machine.eventq_log2)
    machine.write("CR0", 0xD)
    fault(machine)
    machine.scheduler.run_until_idle()
    assert machine.read("EVENTQ_PROD") == 0
    machine.write("GERRORN", machine.read("GERROR"))
    fault(machine)
    assert len(machine.events()) == 1
    assert machine.smmu.counters["event.overflow"] == 0


def test_the_base_is_aligned_to_the_queue_and_cut_to_oas(machine: Machine) -> None:
    """§6.3.26, §3.4.3: low address bits are taken as 0, bits above OAS are truncated."""
    machine.write("CR0", 0x9)
    machine.write("EVENTQ_BASE", machine.eventq | 0x20 | 1 << 50 | machine.eventq_log2)
    machine.write("CR0", 0xD)
    fault(machine)
    assert len(machine.events()) == 1


def test_records_with_smmuen_0(machine: Machine) -> None:
    """§7.2: SMMUEN=0 does not disable the queue; what was recorded before is written."""
    fault(machine)
    machine.write("CR0", 0xC)
    assert len(machine.events()) == 1


# Records of stalled transactions (§3.5.3, §3.12.2): the ones that must not be lost.


RECORD = FTranslation.build(sid=7, stall=1, stag=5)


def test_a_record_is_placed_behind_those_that_wait(machine: Machine) -> None:
    fault(machine, 2)
    assert machine.smmu.eventq.place(RECORD)
    assert [event.name for event in machine.events()] == ["C_BAD_STE", "C_BAD_STE", RECORD.name]


def test_a_full_queue_takes_no_placed_record_and_does_not_overflow(
    make_machine: type[Machine],
) -> None:
    """§3.5.3, §7.4; no second opinion."""
    machine = make_machine(eventq_log2=0)
    fault(machine)
    assert not machine.smmu.eventq.place(RECORD)
    assert machine.read("EVENTQ_PROD") == 1
    assert machine.smmu.counters["event.overflow"] == machine.smmu.counters["event.dropped"] == 0
    machine.events()
    assert machine.smmu.eventq.place(RECORD)
    assert machine.events() == [RECORD]


def test_a_disabled_queue_takes_no_placed_record(machine: Machine) -> None:
    machine.write("CR0", 0x9)
    assert not machine.smmu.eventq.place(RECORD)
    machine.write("CR0", 0xD)
    assert machine.smmu.eventq.place(RECORD)


def test_an_aborted_write_takes_no_placed_record(make_machine: type[Machine]) -> None:
    """§7.2.2; no second opinion."""
    machine = make_machine(boot=False)
    machine.eventq = NOWHERE
    machine.boot()
    assert not machine.smmu.eventq.place(RECORD)
    assert machine.read("GERROR") == Gerror.mask("eventq_abt_err")[0]
    assert not machine.smmu.eventq.place(RECORD)
    assert machine.read("EVENTQ_PROD") == 0


def test_a_sync_does_not_wait_for_records_that_are_gone(machine: Machine) -> None:
    """§4.7.3, §6.3.9: EVENTQEN 1 to 0 drops them; CMD_SYNC waits for later ones alone."""
    fault(machine, 3)
    machine.write("CR0", 0b1001)
    machine.write("CR0", 0b1101)
    machine.post(CmdSync.build())
    assert machine.smmu.cmdq.step(1) == 1
    fault(machine)
    machine.post(CmdSync.build())
    assert machine.smmu.cmdq.step(1) == 0
    machine.smmu.eventq.step(1)
    assert machine.smmu.cmdq.step(1) == 1
