# SPDX-License-Identifier: BSD-2-Clause
"""The scheduler beside engines that never rest: nobody starves, an order can be run again."""

from __future__ import annotations

import pytest

from vsmmu.scheduler import Scheduler


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
