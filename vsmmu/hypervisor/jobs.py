# SPDX-License-Identifier: BSD-2-Clause
"""Requests that take more than one step: hypercalls and what the toolstack asks for.

A request is a generator. It yields True after a bounded unit of work and False while it waits for
a physical SMMU. Requests that concern one domain run one after the other, in the order they came,
which is what a lock on its stage 2 would give; those of different domains take turns. So do
requests that concern no domain, by the SMMU that they are for: one that stands holds up no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Generic, TypeVar

from vsmmu.scheduler import Bell

T = TypeVar("T")
Work = Generator[bool, None, T]


class Job(Generic[T]):
    """One request. `done` says whether it ended; `result` is what it returned then."""

    def __init__(self, work: Work[T]) -> None:
        self._work = work
        self.done = False
        self._result: T | None = None

    @classmethod
    def ended(cls, result: T) -> Job[T]:
        """One that was refused before it began."""
        job = cls(_nothing(result))
        while not job.done:
            job.advance()
        return job

    @property
    def result(self) -> T:
        """What the request returned; it must be done."""
        assert self.done, "the request has not ended"
        return self._result  # type: ignore[return-value]

    def advance(self) -> bool:
        """One unit of work; False when there is none to do now."""
        try:
            return next(self._work)
        except StopIteration as end:
            self.done, self._result = True, end.value
            return True


def _nothing(result: T) -> Work[T]:
    yield from ()
    return result


class Jobs:
    """The engine that runs requests."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bell = Bell()
        self._queues: dict[int | str, deque[Job[object]]] = {}

    def start(self, concerns: int | str, work: Work[T]) -> Job[T]:
        """Queue a request behind those of the same domain, or of the same SMMU by its path."""
        job = Job(work)
        self._queues.setdefault(concerns, deque()).append(job)  # type: ignore[arg-type]
        self.bell.ring()
        return job

    def waiting(self, domid: int) -> int:
        """Requests of a domain that have not ended."""
        return len(self._queues.get(domid, ()))

    def step(self, budget: int) -> int:
        """At most `budget` units, domains and SMMUs in turn."""
        done, waiting = 0, 0
        while done < budget and waiting < len(self._queues):
            concerns = next(iter(self._queues))
            queue = self._queues.pop(concerns)
            progress = queue[0].advance()
            if queue[0].done:
                queue.popleft()
            if queue:
                self._queues[concerns] = queue
            done, waiting = (done + 1, 0) if progress else (done, waiting + 1)
        if self._queues:
            # What a request waits for does not know of it.
            self.bell.ring()
        return done
