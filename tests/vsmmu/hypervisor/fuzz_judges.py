# SPDX-License-Identifier: BSD-2-Clause
"""Virtual time, what is handed on to guests, and what grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vsmmu.arch.events import Event, EventClass
from vsmmu.arch.pri import PriEntry
from vsmmu.hypervisor.host_smmu import HostSmmu
from vsmmu.hypervisor.reports import Reports
from vsmmu.scheduler import Engine, Scheduler

if TYPE_CHECKING:
    from .fuzz_isolation import World

DATA = EventClass.IN


def held(part: object) -> int:
    """How much the lists, queues and maps of a part of the hypervisor hold."""
    values = list(vars(part).values())
    for value in values:
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list | deque | set):
            values += value
    return len(values)


class Turns(Scheduler):
    """Counts turns: virtual time if every engine used its whole budget.

    `awaited` is asked after each; `reached` is the turn in which it was so. What is added has a
    judge before it from then on, if there is one.
    """

    def __init__(self, seed: int, budget: int) -> None:
        super().__init__(seed, budget)
        self.reached = 0
        self.awaited: Callable[[], bool] | None = None
        self.judge: Callable[[Engine], Engine] | None = None

    def add(self, engine: Engine) -> None:
        super().add(engine if self.judge is None else self.judge(engine))

    def remove(self, engine: Engine) -> None:
        super().remove(next(e for e in self.engines if engine in (e, getattr(e, "engine", None))))

    def _turn(self, most: int) -> int:
        return self._looked(super()._turn(most))

    def _poll(self, place: int) -> int:
        return self._looked(super()._poll(place))

    def _looked(self, done: int) -> int:
        if self.awaited is not None and self.awaited():
            self.reached, self.awaited = self.turns, None
        return done


class JudgedReports(Reports):
    """What hardware reports goes to the stream's guest alone, and not what is stage 2's."""

    world: World

    def page_request(self, host: HostSmmu, entry: PriEntry) -> None:
        guests = self.world.guests
        before = [guest.vsmmu.counters["page request"] for guest in guests]
        super().page_request(host, entry)
        for guest, count in zip(guests, before, strict=True):
            if guest.vsmmu.counters["page request"] != count:
                assert self.world.devices[host.path, entry.sid].owner is guest, entry

    def event(self, host: HostSmmu, event: Event) -> None:
        guests = self.world.guests
        if getattr(event, "stall", 0):
            self.world.answers.physical(host.path, event)
        before = [guest.taken for guest in guests]
        super().event(host, event)
        for guest, taken in zip(guests, before, strict=True):
            if guest.taken != taken:
                assert self.world.devices[host.path, event.sid].owner is guest, event
                assert not (getattr(event, "s2", 0) and getattr(event, "cls", 0) == DATA), event
        self.world.seen["reported"] += 1
