# SPDX-License-Identifier: BSD-2-Clause
"""The event queue (IHI 0070 §3.5.3, §7.2, §7.4)."""

from __future__ import annotations

import pytest

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
