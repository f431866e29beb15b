# SPDX-License-Identifier: BSD-2-Clause
"""What a guest's command costs on machines of any size, in time or in calls of functions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from vsmmu.arch.commands import CmdSync, CmdTlbiNhVa, Command, Cs

from .world import World

COMMANDS = 63
SYNC = CmdSync.build(cs=Cs.SEV)
BATCH: list[Command] = [*(CmdTlbiNhVa.build(asid=1, addr=i << 12) for i in range(COMMANDS)), SYNC]

Measure = Callable[[Callable[[], None]], float]


def seconds(work: Callable[[], None]) -> float:
    """Of this process alone."""
    start = time.process_time()
    work()
    return time.process_time() - start


def calls(work: Callable[[], None]) -> float:
    """Calls of functions, built-in ones included: the same in every run."""
    found = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def commands(guests: int, smmus: int, busy: int) -> Callable[[Measure], float]:
    """What a command costs: a run of `BATCH` by each of the `busy` first guests.

    Guests have a stream each, the SMMUs in turn. The end is that of the last guest's CMD_SYNC: that
    the whole machine is at rest is no part of a command's cost.
    """
    names = [f"s{i}" for i in range(smmus)]
    streams = {f"g{i}": [(names[i % smmus], 1 + i)] for i in range(guests)}
    made = World(streams, smmus=names, machine_size=0x4000_0000)
    made.scheduler.budget = 16
    active = list(made.guests.values())[:busy]
    for guest in active:
        guest.boot()
        guest.attach(0)
    step, last = made.scheduler.step, active[-1].vsmmu

    def work() -> None:
        regs = last.regs
        while not last.idle or regs["CMDQ_PROD"] != regs["CMDQ_CONS"]:
            step()

    def run(measure: Measure) -> float:
        for guest in active:
            guest.put_without_rest(*BATCH)
        cost = measure(work)
        assert made.scheduler.run_until_idle()
        return cost / (busy * len(BATCH))

    return run
