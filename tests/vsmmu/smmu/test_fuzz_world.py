# SPDX-License-Identifier: BSD-2-Clause
"""No sequence of register writes, memory contents, commands and accesses raises.

Nor does one take endless room or work. A program of STEPS steps follows from its seed:
`World(seed).run(STEPS)`. Features are any legal combination; SMMUs share a memory, with caches of
every kind. `make soak` takes 1,000,000 steps.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest

from vsmmu.arch.commands import OPCODES

from .fuzz_unit import READS
from .fuzz_world import ANSWERS, FATES, World

STEPS = 500
SLICE, PARTS = 28, 4
SOAK = 1_000_000
# What even a slice gets to.
OFTEN = (
    *FATES, *READS, *ANSWERS, "agreed fault", "agreed ok", "translated ok", "event.recorded",
    "event.overflow", "event.merged", "tlb.hit", "tlb.evicted", "tlb.invalidated", "config.hit",
    "config.invalidated", "config.prefetched", "stall.held", "stall.retried", "stall.suppressed",
    "stall.terminated", "pri.recorded", "pri.overflow", "pri.response", "httu.af", "msi.abort",
    "cmd.CMD_SYNC", "cmd.error", "F_TRANSLATION", "F_PERMISSION", "F_ADDR_SIZE", "C_BAD_CD",
)  # fmt: skip
RECORDS = (
    "C_BAD_STREAMID", "F_STE_FETCH", "C_BAD_STE", "F_STREAM_DISABLED", "C_BAD_SUBSTREAMID",
    "F_CD_FETCH", "F_WALK_EABT", "F_ACCESS", "httu.dirty", "ats.timeout", "ats.invalidate",
)  # fmt: skip


def run(seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed)
        try:
            world.run(STEPS)
        except Exception as error:
            error.add_note(f"World({seed}).run({STEPS})")
            raise
        seen += world.seen
    return seen


@pytest.mark.parametrize("part", range(PARTS))
def test_slice(part: int) -> None:
    count = SLICE // PARTS
    seen = run(range(part * count, part * count + count))
    missed = [name for name in OFTEN if not seen[name]]
    assert len(missed) < 7, missed


@pytest.mark.soak
def test_a_million_steps(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    seen = run(range(SOAK // STEPS))
    with capsys.disabled():
        print(f"\n{SOAK:,} steps, {SOAK / (time.perf_counter() - start):,.0f} steps/s")
    commands = [f"cmd.{command.name}" for command in OPCODES.values()]
    assert not [name for name in (*OFTEN, *RECORDS, *commands) if seen[name] < 10]
