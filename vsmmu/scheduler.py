# SPDX-License-Identifier: BSD-2-Clause
"""One explicit, seeded scheduler for every engine of the machine.

A command-queue consumer, an event writer, a device port, a vSMMU's drain: each advances only by
`step(budget)`, which does at most `budget` units of work and says how many it did. The scheduler
picks the next engine by its seed, so an interleaving is a number that can be written down and
run again. Virtual time counts units of work (`now`) and turns (`turns`); there is no clock and no
thread.

An engine that has a `bell` sleeps after a turn without work until the bell rings, so that what a
machine has and does not use costs nothing. Whoever gives a sleeper something to do rings: a
register write, an entry in its queue, a completion. The turns of sleepers pass all the same: in
round robin the order of work and the virtual time are those of a scheduler that asks everybody.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Protocol


class Bell:
    """Wakes the engine that has it. An engine without one is asked in each of its turns.

    An engine that has something in its hands which nobody else will ring for, such as a command
    that waits, rings its own bell during its turn and stays awake.
    """

    __slots__ = ("place", "rung", "sleeps_in")

    def __init__(self) -> None:
        self.rung = False
        # The scheduler while the engine is asleep, and its place there.
        self.sleeps_in: Scheduler | None = None
        self.place = 0

    def ring(self) -> None:
        """Have the engine asked again."""
        self.rung = True
        if self.sleeps_in is not None:
            self.sleeps_in.wake(self)


class Engine(Protocol):
    """Something that has work to do. `bell`, where there is one, is a `Bell`."""

    name: str

    def step(self, budget: int) -> int:
        """Do at most `budget` units of work; return the units done, 0 when there was none.

        A turn of an engine that sleeps, were it given, would change nothing.
        """
        ...  # pragma: no cover


class Scheduler:
    """Runs engines in an order fixed by `seed`.

    Args:
        seed: 0 is round robin in order of registration; any other number is a random order of
            the engines that are awake.
        budget: units an engine may do in one turn.
        ask_all: ask sleepers as well, which finds nothing unless a bell was not rung. In round
            robin each in its turn; else all of them before each turn.

    Attributes:
        now: units of work done.
        turns: turns that passed, those of sleepers included; in a random order as many as it
            takes on average until one who is awake is picked.
        overslept: by name, how often an engine that slept had work: 0, or somebody did not ring.
    """

    def __init__(self, seed: int = 0, budget: int = 16, *, ask_all: bool = False) -> None:
        self.seed = seed
        self.budget = budget
        self.now = self.turns = 0
        self.overslept: Counter[str] = Counter()
        self._ask_all = ask_all
        self._engines: list[Engine] = []
        self._bells: list[Bell | None] = []
        # Places of those who are awake, in order.
        self._awake: list[int] = []
        self._random = Random(seed)
        self._next = 0
        # What is left over of the turns that passed in a random order.
        self._left_over = 0

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines in order of registration."""
        return tuple(self._engines)

    @property
    def awake(self) -> tuple[Engine, ...]:
        """Those that will be asked, in order of registration."""
        return tuple(self._engines[place] for place in self._awake)

    def add(self, engine: Engine) -> None:
        """Register an engine, awake."""
        bell: Bell | None = getattr(engine, "bell", None)
        place = len(self._engines)
        if bell is not None:
            bell.place, bell.sleeps_in = place, None
        self._engines.append(engine)
        self._bells.append(bell)
        self._awake.append(place)

    def remove(self, engine: Engine) -> None:
        """Take an engine away, as when a domain is destroyed."""
        place = self._engines.index(engine)
        bell = self._bells.pop(place)
        if bell is not None:
            bell.sleeps_in = None
        del self._engines[place]
        self._awake = [p - (p > place) for p in self._awake if p != place]
        for after in range(place, len(self._bells)):
            moved = self._bells[after]
            if moved is not None:
                moved.place = after

    def wake(self, bell: Bell) -> None:
        """A sleeper's bell was rung."""
        bell.sleeps_in = None
        insort(self._awake, bell.place)

    def step(self) -> int:
        """Give one engine a turn; the units of work it did."""
        return self._turn(len(self._engines))

    def run(self, turns: int) -> None:
        """Let so many turns pass, those of sleepers included."""
        end = self.turns + turns
        while self.turns < end:
            self._turn(end - self.turns)

    def run_until_idle(self, limit: int = 1_000_000) -> bool:
        """Turns until no engine has work; False when `limit` turns were not enough.

        Idle means that every engine, asked one after the other, had nothing to do: a random order
        alone could miss one. A sleeper that has something to do then has `overslept`.
        """
        end = self.turns + limit
        while self.turns < end:
            self._turns_without_work(end)
            if self.turns < end and not any(self._poll(place) for place in self._places()):
                return True
        return False

    def settle(self, engines: Iterable[Engine], limit: int = 1_000_000) -> bool:
        """Turns of some engines, one after the other, until none of them has work.

        It may be called within another engine's turn, as when what that one does is to be
        complete before it goes on. False when `limit` turns were not enough.
        """
        listed = tuple(engines)
        before = self.turns
        while self.turns - before < limit:
            if not sum(self._give_awake(engine) for engine in listed):
                return True
        return False

    def _give_awake(self, engine: Engine) -> int:
        """A turn of an engine, unless it sleeps or was taken away."""
        bell: Bell | None = getattr(engine, "bell", None)
        if bell is None:
            place = self._engines.index(engine) if engine in self._engines else -1
        else:
            place = bell.place if bell.sleeps_in is None else -1
        if not 0 <= place < len(self._engines) or self._engines[place] is not engine:
            return 0
        self.turns += 1
        return self._give(place)

    def _turns_without_work(self, end: int) -> None:
        rounds, quiet = 2 if self.seed else 1, 0
        while self.turns < end:
            left = min(rounds * len(self._engines) - quiet, end - self.turns)
            if left <= 0:
                return
            before = self.turns
            done = self._turn(left)
            quiet = 0 if done else quiet + self.turns - before

    # Turns.

    def _turn(self, most: int) -> int:
        """The turn of an engine that is awake, or `most` turns of those before it."""
        if self.seed:
            return self._any_turn(most)
        count = len(self._engines)
        here = self._next % count if count else 0
        if self._ask_all and count:
            self._pass(1)
            return self._ask(here)
        awake = self._awake
        if not awake:
            self._pass(most)
            return 0
        index = bisect_left(awake, here)
        place = awake[index if index < len(awake) else 0]
        before = (place - here) % count
        if before >= most:
            self._pass(most)
            return 0
        self._pass(before + 1)
        return self._give(place)

    def _any_turn(self, most: int) -> int:
        found = sum(self._ask(place) for place in self._asleep()) if self._ask_all else 0
        awake = self._awake
        if not awake:
            self._pass(most)
            return found
        place = awake[int(self._random.random() * len(awake))]
        passed, self._left_over = divmod(self._left_over + len(self._engines), len(awake))
        self._pass(passed)
        return found + self._give(place)

    def _pass(self, turns: int) -> None:
        self._next += turns
        self.turns += turns

    def _give(self, place: int) -> int:
        """A turn of an engine that is awake."""
        bell = self._bells[place]
        if bell is None:
            done = self._engines[place].step(self.budget)
        else:
            bell.rung = False
            done = self._engines[place].step(self.budget)
            if not done and not bell.rung:
                self._sleep(bell)
        self.now += done
        return done

    def _sleep(self, bell: Bell) -> None:
        # A place is not what it was before the turn where that took engines away.
        bell.sleeps_in = self
        del self._awake[bisect_left(self._awake, bell.place)]

    # Asking those who sleep.

    def _places(self) -> range:
        return range(len(self._engines))

    def _asleep(self) -> list[int]:
        return [p for p, bell in enumerate(self._bells) if bell and bell.sleeps_in is self]

    def _ask(self, place: int) -> int:
        """A turn of an engine that may be asleep."""
        bell = self._bells[place]
        if bell is None or bell.sleeps_in is None:
            return self._give(place)
        engine = self._engines[place]
        done = engine.step(self.budget)
        self.now += done
        if done:
            bell.ring()
            self._oversleeps(engine)
        return done

    def _poll(self, place: int) -> int:
        self.turns += 1
        return self._ask(place)

    def _oversleeps(self, engine: Engine) -> None:
        """A defect of ours, that costs turns and nothing else: it has been asked now."""
        self.overslept[engine.name] += 1
