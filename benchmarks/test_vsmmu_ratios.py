# SPDX-License-Identifier: BSD-2-Clause
"""A guest's command from its ring to the TLB, and traps, for 1 to 64 guests and 1 to 50 SMMUs.

What a command costs does not depend on how many guests and SMMUs a machine has: it takes the same
calls of functions, which is counted, and so nearly the same time. Times are ratios within one run,
of one process' own time, the least of several rounds in turn: to what a command costs on a machine
with one guest and one SMMU. The floor of a command is the same TLBI straight in the physical queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.vsmmu.hypervisor.cost import BATCH, Measure, calls, commands, seconds
from tests.vsmmu.hypervisor.world import BASE, World
from vsmmu.arch.registers import BY_NAME

PROD = BY_NAME["CMDQ_PROD"]
ROUNDS = 12
# Guests, SMMUs, guests that are busy; what a command may cost in time, to one guest's.
SIZES = [
    (1, 1, 1, 1.3),
    (8, 1, 8, 1.3),
    (64, 1, 1, 1.3),
    (1, 50, 1, 1.3),
    # All of 64 guests' commands are on their way at once: more than a core's own cache holds.
    (64, 1, 64, 1.6),
    (64, 50, 64, 1.6),
]
HEAD = ("guests", "SMMUs", "busy", "us/command", "to one's", "calls", "to one's")
TABLE = "\n  {:>6} {:>5} {:>5}  {:>10} {:>8}  {:>8} {:>8}  "


def physical() -> Callable[[Measure], float]:
    """The floor: the same commands straight in a physical queue."""
    made = World({"g": [("a", 1)]}, smmus="a")
    host, smmu = made.hypervisor.hosts["a"], made.smmus["a"]

    def work() -> None:
        while smmu.cmdq.step(64):
            pass

    def run(measure: Measure) -> float:
        prod = smmu.regs["CMDQ_PROD"]
        for command in BATCH:
            made.memory.write_words(host._cmdq.address(prod), command.words)
            prod = host._cmdq.advance(prod)
        smmu.mmio_write(PROD.offset, 4, prod)
        cost = measure(work)
        # The driver did not enter them: it is told where the queue is now.
        host._entered = host._consumed = host._entered + len(BATCH)
        return cost / len(BATCH)

    return run


def least(*runs: Callable[[], float]) -> list[float]:
    """The least of many rounds of each, which take turns."""
    best = [float("inf")] * len(runs)
    for _ in range(ROUNDS):
        for i, run in enumerate(runs):
            best[i] = min(best[i], run())
    return best


def timed(run: Callable[[Measure], float]) -> Callable[[], float]:
    return lambda: run(seconds)


def test_a_command_end_to_end(capsys):
    floor, one = least(timed(physical()), timed(commands(1, 1, 1)))
    with capsys.disabled():
        print(
            f"\n  a guest's command {one * 1e6:.1f} us, {1 / one:.0f}/s, {one / floor:.1f} floors"
        )
    assert one / floor < 8


@pytest.mark.parametrize(("guests", "smmus", "busy", "goal"), SIZES)
def test_a_command_costs_the_same_beside_others(guests, smmus, busy, goal, capsys):
    """On a machine of any size as on one with one guest and one SMMU."""
    alone, beside = commands(1, 1, 1), commands(guests, smmus, busy)
    one, many = least(timed(alone), timed(beside))
    counted = alone(calls), beside(calls)
    time_ratio, call_ratio = many / one, counted[1] / counted[0]
    with capsys.disabled():
        if (guests, smmus, busy, goal) == SIZES[0]:
            print(TABLE.format(*HEAD))
        print(
            TABLE.format(
                guests, smmus, busy, f"{many * 1e6:.1f}", f"{time_ratio:.2f}",
                f"{counted[1]:.1f}", f"{call_ratio:.3f}",
            ),
            end="",
        )  # fmt: skip
    assert call_ratio == pytest.approx(1, abs=0.02)
    assert time_ratio < goal


@pytest.mark.parametrize("guests", [1, 8, 64])
def test_a_trap_costs_the_same(guests, capsys):
    """Reads of CMDQ_CONS and writes of CMDQ_PROD, to a bare method call with a dict lookup."""
    made = World({f"g{i}": [("a", 1 + i)] for i in range(guests)}, smmus="a", machine_size=1 << 30)
    guest = made["g0"].boot()
    trap, domain, count = made.hypervisor.trap, guest.domain, 2000
    prod = guest.vsmmu.regs["CMDQ_PROD"]

    def traps() -> float:
        start = time.process_time()
        for _ in range(count):
            trap(domain, BASE + 0x9C, 4)
            trap(domain, BASE + PROD.offset, 4, prod)
        return (time.process_time() - start) / (2 * count)

    def floor() -> float:
        look, start = guest.vsmmu.regs.values.get, time.process_time()
        for _ in range(2 * count):
            look("CMDQ_PROD")
        return (time.process_time() - start) / (2 * count)

    found, least_possible = least(traps, floor)
    with capsys.disabled():
        print(
            f"\n  {guests} guests: a trap {found * 1e6:.2f} us, {1 / found:.0f}/s, "
            f"{found / least_possible:.0f} dict lookups"
        )
    assert found / least_possible < 250
