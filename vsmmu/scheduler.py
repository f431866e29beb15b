# SPDX-License-Identifier: BSD-2-Clause
"""One explicit, seeded scheduler for every engine of the machine.

A command-queue consumer, an event writer, a device port, a vSMMU's drain: each advances only by
`step(budget)`, which does at most `budget` units of work and says how many it did. The scheduler
picks the next engine by its seed, so an interleaving is a number that can be written down and
run again. Virtual time counts units of work (`now`) and turns (`turns`); there is no clock and no
thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Protocol


class Engine(Protocol):
    """Something that has work to do."""

    name: str

    def step(self, budget: int) -> int:
        """Do at most `budget` units of work; return the units done, 0 when there was none."""
        ...  # pragma: no cover


class Scheduler:
    """Runs engines in an order fixed by `seed`.

    Args:
        seed: 0 is round robin in order of registration; any other number is a random order.
        budget: units an engine may do in one turn.
    """

    def __init__(self, seed: int = 0, budget: int = 16) -> None:
        self.seed = seed
        self.budget = budget
        self.now = self.turns = 0
        self._engines: list[Engine] = []
        self._random = Random(seed)
        self._next = 0

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines in order of registration."""
        return tuple(self._engines)

    def add(self, engine: Engine) -> None:
        """Register an engine."""
        self._engines.append(engine)

    def remove(self, engine: Engine) -> None:
        """Take an engine away, as when a domain is destroyed."""
        self._engines.remove(engine)

    def step(self) -> int:
        """Give one engine a turn; the units of work it did."""
        if not self._engines:
            return 0
        if self.seed:
            engine = self._engines[self._random.randrange(len(self._engines))]
        else:
            engine = self._engines[self._next % len(self._engines)]
            self._next += 1
        self.turns += 1
        done = engine.step(self.budget)
        self.now += done
        return done

    def run_until_idle(self, limit: int = 1_000_000) -> bool:
        """Turns until no engine has work; False when `limit` turns were not enough.

        Idle means that every engine, asked one after the other, had nothing to do: a random order
        alone could miss one.
        """
        turns = 0
        rounds = 2 if self.seed else 1
        while turns < limit:
            quiet = 0
            while quiet < rounds * len(self._engines) and turns < limit:
                turns += 1
                quiet = 0 if self.step() else quiet + 1
            if turns < limit and not any(self._poll(e) for e in self._engines):
                return True
        return False

    def settle(self, engines: Iterable[Engine], limit: int = 1_000_000) -> bool:
        """Turns of some engines, one after the other, until none of them has work.

        It may be called within another engine's turn, as when what that one does is to be
        complete before it goes on. False when `limit` turns were not enough.
        """
        listed = tuple(engines)
        busy = True
        while busy and limit > 0:
            busy = sum(self._poll(engine) for engine in listed) > 0
            limit -= len(listed)
        return not busy

    def _poll(self, engine: Engine) -> int:
        self.turns += 1
        done = engine.step(self.budget)
        self.now += done
        return done
