# SPDX-License-Identifier: BSD-2-Clause
"""The reader of a physical queue: nothing is left lying, and lost records are told."""

from __future__ import annotations

from collections import Counter

from vsmmu.arch import events
from vsmmu.arch.events import Event, FTranslation
from vsmmu.arch.registers import EventqCons, EventqProd
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.queue_reader import QueueReader
from vsmmu.memory import Memory
from vsmmu.queue import Ring

from .world import MACHINE, NOWHERE, World

LOG2 = 2


class Queue:
    """An SMMU's side of an event queue of four entries, and its reader."""

    def __init__(self) -> None:
        self.memory = Memory([(MACHINE, 0x1000)])
        self.ring = Ring(LOG2, Event.size, MACHINE)
        self.regs = {"EVENTQ_PROD": 0, "EVENTQ_CONS": 0}
        self.taken: list[int] = []
        self.reader = QueueReader(
            "events", "EVENTQ", self.ring, self.memory, events.decode, self.regs.__getitem__,
            self.regs.__setitem__, Counter(), "events", self._record,
        )  # fmt: skip

    def _record(self, event: Event) -> None:
        assert isinstance(event, FTranslation)
        self.taken.append(event.inputaddr)

    def write(self, first: int, count: int) -> None:
        prod, cons = (self.regs[f"EVENTQ_{end}"] for end in ("PROD", "CONS"))
        for number in range(first, first + count):
            assert not self.ring.is_full(EventqProd(prod).wr, EventqCons(cons).rd)
            event = FTranslation.build(inputaddr=number)
            self.memory.write_words(self.ring.address(prod), event.words)
            prod = self.ring.advance(prod)
        self.regs["EVENTQ_PROD"] = prod


def test_a_full_queue_whose_prod_is_where_it_was_when_all_was_quiet() -> None:
    """PROD is the same again after two rounds, if the reader never found the queue empty."""
    queue = Queue()
    queue.reader.step(16)
    assert queue.reader.step(16) == 0
    queue.write(0, 4)
    assert queue.reader.step(16) == 4
    queue.write(4, 4)
    assert queue.regs["EVENTQ_PROD"] == 0
    queue.reader.step(16)
    assert queue.taken == list(range(8))


def test_an_overflow_of_the_physical_queue_is_told_to_every_guest_behind_it() -> None:
    """Whose records were lost nobody knows; guests behind other SMMUs lost none (§7.4)."""
    streams = {"g": [("a", 1)], "o": [("a", 2), ("b", 2)], "far": [("b", 3)]}
    world = World(streams, policy=Policy(physical_queue_log2=1, device_events=512))
    for guest in world.guests.values():
        guest.boot()
        guest.attach(*range(len(guest.ports)))
        guest.quiet()
    reader = world.hypervisor.hosts["a"].event_reader
    world.scheduler.remove(reader)
    host, step = world.hypervisor.hosts["a"], reader.step
    reader.step = lambda budget: 0  # type: ignore[method-assign]
    world["g"].ports[0].read(NOWHERE, 0x8000)
    assert world.scheduler.run_until_idle()
    reader.step = step  # type: ignore[method-assign]
    world.scheduler.add(reader)
    assert world.scheduler.run_until_idle()
    assert host.counters["events overflow"] == 1
    overflown = {n: EventqProd(g.read("EVENTQ_PROD")).ovflg for n, g in world.guests.items()}
    assert overflown == {"g": 1, "o": 1, "far": 0}
