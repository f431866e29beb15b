# SPDX-License-Identifier: BSD-2-Clause
"""Isolation, checked after every step of hostile guests beside one that minds its business.

What must hold is in `fuzz_isolation.World`: no DMA outside a guest's pages, and so no Translated
transaction, HTTU write or message; no engine that touches another guest's; no physical StreamID,
STAG, address or VMID in anything a guest or its device can read; commands and STEs that name the
owner alone; structures read once; answers to stalls and page requests from their guest alone;
pages that are out of reach and zero before somebody else has them; nothing left of a destroyed
guest; no work beyond a budget; no device that hangs; a victim whose devices work and whose
CMD_SYNC is in time. A run follows from its seed: `World(seed).run(STEPS)`. `make soak` takes
2,000,000 steps.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest

from .fuzz_isolation import World

STEPS = 2_000
SLICE, PARTS, SLICE_STEPS = 12, 4, 260
SOAK = 2_000_000
# What even a slice gets to.
OFTEN = (
    "transfer", "submitted", "reported", "ste", "sync", "moved", "event dropped", "event overflow",
    "F_TRANSLATION", "F_WALK_EABT", "C_BAD_CD", "C_BAD_STE", "C_BAD_SUBSTREAMID",
    "F_TRANSLATION: stage 2 fault", "CMD_SYNC", "CMD_CFGI_STE", "CMD_TLBI_NH_VA",
    "ats", "forged", "page response", "taken", "given", "destroyed",
)  # fmt: skip
RARE = (
    "C_BAD_STREAMID", "F_STE_FETCH", "F_CD_FETCH", "F_PERMISSION", "F_ADDR_SIZE", "F_ACCESS",
    "CMD_CFGI_STE_RANGE", "CMD_CFGI_CD_ALL", "CMD_TLBI_S12_VMALL", "CMD_RESERVED",
    "stall", "stall answered", "stall ended by the hypervisor", "CMD_RESUME", "CMD_STALL_TERM",
    "page request told", "page request answered", "page request overflow", "CMD_PRI_RESP",
    "CMD_ATC_INV", "ats.timeout", "msi.written", "msi.abort", "msi.cmdq-sync", "httu",
    "grant mapped", "grant unmapped",
)  # fmt: skip


def run(seeds: range, steps: int, *, full: int = 0) -> Counter[str]:
    """What was seen; every so many machines have every feature, or as the seed says with 0."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        every = full > 0 and seed % full == 0
        world = World(seed, full=every)
        try:
            world.run(steps)
        except Exception as error:
            error.add_note(f"World({seed}, full={every}).run({steps})")
            raise
        seen += world.seen
    return seen


@pytest.mark.parametrize("part", range(PARTS))
def test_slice(part: int) -> None:
    count = SLICE // PARTS
    seen = run(range(part * count, part * count + count), SLICE_STEPS, full=count)
    missed = [name for name in OFTEN if not seen[name]]
    assert len(missed) < 4, missed


@pytest.mark.soak
def test_two_million_steps(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    seen = run(range(SOAK // STEPS), STEPS)
    with capsys.disabled():
        print(f"\n{SOAK:,} steps, {SOAK / (time.perf_counter() - start):,.0f} steps/s")
    assert not [name for name in (*OFTEN, *RARE) if seen[name] < 10]
