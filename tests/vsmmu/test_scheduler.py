# SPDX-License-Identifier: BSD-2-Clause
"""The scheduler beside engines that never rest, and those that sleep.

Nobody starves, an order can be run again, and who sleeps costs nothing and misses nothing.
"""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis.strategies import integers

from vsmmu.scheduler import Bell, Scheduler


class Busy:
    """Has work for ever; counts its turns."""

    def __init__(self, name: str) -> None:
        self.name, self.turns = name, 0

    def step(self, budget: int) -> int:
        self.turns += 1
        return budget


class Idle(Busy):
    def step(self, budget: int) -> int:
        self.turns += 1
        return 0


def turns(seed: int, engines: list[Busy], count: int) -> list[int]:
    scheduler = Scheduler(seed, budget=5)
    for engine in engines:
        scheduler.add(engine)
    for _ in range(count):
        assert scheduler.step() in (0, 5)
    assert scheduler.now == 5 * sum(e.turns for e in engines if type(e) is Busy)
    return [engine.turns for engine in engines]


@pytest.mark.parametrize("seed", range(8))
def test_nobody_starves_beside_busy_engines(seed):
    """Each of 10 engines gets a tenth of the turns, whatever the others do."""
    engines = [Busy("b") if i % 2 else Idle("i") for i in range(10)]
    shares = turns(seed, engines, 10_000)
    assert min(shares) > 850
    assert max(shares) < 1150


@pytest.mark.parametrize("seed", range(4))
def test_one_seed_is_one_order(seed):
    first, second = ([Busy(str(i)) for i in range(5)] for _ in range(2))
    assert turns(seed, first, 999) == turns(seed, second, 999)


def test_an_engine_taken_away_gets_no_turn():
    scheduler = Scheduler()
    engines = [Idle("a"), Idle("b"), Idle("c")]
    for engine in engines:
        scheduler.add(engine)
    scheduler.step()
    scheduler.remove(engines[1])
    for _ in range(10):
        scheduler.step()
    assert engines[1].turns == 0
    assert scheduler.engines == (engines[0], engines[2])
    assert scheduler.run_until_idle()


def test_nobody_to_run():
    scheduler = Scheduler()
    assert scheduler.step() == 0
    assert scheduler.run_until_idle()


def test_rest_is_found_although_a_random_order_may_miss_an_engine():
    """One engine of many has one unit left: at rest is only when it was asked."""
    for seed in range(1, 60):
        done: list[int] = []

        class Once(Busy):
            def step(self, budget: int, done: list[int] = done) -> int:
                if done:
                    return 0
                done.append(1)
                return 1

        scheduler = Scheduler(seed)
        for engine in [*(Idle(str(i)) for i in range(3)), Once("once")]:
            scheduler.add(engine)
        assert scheduler.run_until_idle()
        assert done == [1]


# Engines that sleep.

OVERSLEEPS = Scheduler._oversleeps


class Worker:
    """Has units of work in a queue; each may give units to others, whose bells it rings."""

    def __init__(self, name: str, log: list[tuple[int, int, str]]) -> None:
        self.name, self.log = name, log
        self.bell = Bell()
        self.scheduler: Scheduler | None = None
        self.queue: deque[list[tuple[Worker, list]]] = deque()
        self.asked = 0

    def give(self, unit: list, *, ring: bool = True) -> None:
        self.queue.append(unit)
        if ring:
            self.bell.ring()

    def step(self, budget: int) -> int:
        self.asked += 1
        done = 0
        while done < budget and self.queue:
            for other, unit in self.queue.popleft():
                other.give(unit)
            done += 1
        if done:
            assert self.scheduler is not None
            self.log.append((self.scheduler.turns, done, self.name))
        return done


def workers(scheduler: Scheduler, count: int) -> tuple[list[Worker], list[tuple[int, int, str]]]:
    log: list[tuple[int, int, str]] = []
    made = [Worker(str(i), log) for i in range(count)]
    for worker in made:
        worker.scheduler = scheduler
        scheduler.add(worker)
    return made, log


def unit(r: Random, made: list[Worker], depth: int) -> list[tuple[Worker, list]]:
    """What a unit of work gives to whom."""
    if not depth:
        return []
    return [(r.choice(made), unit(r, made, depth - 1)) for _ in range(r.randrange(3))]


@pytest.mark.parametrize("order", [0, 7])
@given(seed=integers(0, 1 << 32))
def test_sleep_changes_no_order_and_no_time(order, seed):
    """Who works when is the same with everybody asked, engines coming and going meanwhile."""
    logs, ends = [], []
    for ask_all in (False, True):
        r = Random(seed)
        scheduler = Scheduler(order, r.choice([1, 3]), ask_all=ask_all)
        made, log = workers(scheduler, 6)
        idle = Idle("always asked")
        if order == 0:
            scheduler.add(idle)
        for _ in range(6):
            for _ in range(r.randrange(4)):
                r.choice(made).give(unit(r, made, 4))
            if r.random() < 0.3:
                gone = made.pop(r.randrange(len(made)))
                scheduler.remove(gone)
                gone.give([])
            if r.random() < 0.3:
                more, _ = workers(scheduler, 1)
                more[0].log = log
                made += more
            chance = r.random()
            if chance < 0.3:
                end = scheduler.now + r.randrange(9)
                while scheduler.now < end and any(w.queue for w in made):
                    scheduler.step()
            elif chance < 0.6:
                scheduler.run(r.randrange(30))
            else:
                assert scheduler.run_until_idle()
        assert scheduler.run_until_idle()
        logs.append(log)
        ends.append((scheduler.now, scheduler.turns))
        assert not any(worker.queue for worker in made)
    assert logs[0] == logs[1]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("seed", range(3))
def test_who_sleeps_is_not_asked(seed):
    scheduler = Scheduler(seed)
    made, _ = workers(scheduler, 300)
    assert scheduler.run_until_idle()
    busy = Busy("busy")
    scheduler.add(busy)
    before, turns = [worker.asked for worker in made], scheduler.turns
    for _ in range(50):
        scheduler.step()
    assert [worker.asked for worker in made] == before
    assert busy.turns == 50
    # Their turns pass all the same: one in 301 is that of who is awake.
    assert scheduler.turns - turns == pytest.approx(50 * 301, abs=301)
    assert scheduler.awake == (busy,)
    made[17].give([])
    assert scheduler.awake == (made[17], busy)


@pytest.mark.parametrize("seed", range(3))
def test_a_bell_that_rings_in_its_own_turn_keeps_the_engine_awake(seed):
    class Waits(Idle):
        bell = Bell()

        def step(self, budget: int) -> int:
            self.bell.ring()
            return super().step(budget)

    scheduler, waits = Scheduler(seed), Waits("waits")
    scheduler.add(waits)
    assert scheduler.run_until_idle()
    assert scheduler.awake == (waits,)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ask_all", [False, True])
def test_a_bell_that_nobody_rang_is_found_at_rest(monkeypatch, seed, ask_all):
    monkeypatch.setattr(Scheduler, "_oversleeps", OVERSLEEPS)
    scheduler = Scheduler(seed, ask_all=ask_all)
    made, log = workers(scheduler, 9)
    assert scheduler.run_until_idle()
    made[3].give([(made[4], [])], ring=False)
    assert scheduler.run_until_idle()
    assert [name for _, _, name in log] == ["3", "4"]
    assert scheduler.overslept == {"3": 1}


def test_the_bell_of_an_engine_taken_away_wakes_nobody():
    scheduler = Scheduler()
    made, log = workers(scheduler, 4)
    assert scheduler.run_until_idle()
    scheduler.remove(made[1])
    made[1].give([])
    made[2].give([])
    assert scheduler.awake == (made[2],)
    assert scheduler.run_until_idle()
    assert [name for _, _, name in log] == ["2"]
    scheduler.add(made[1])
    assert scheduler.run_until_idle()
    assert [name for _, _, name in log] == ["2", "1"]
