# SPDX-License-Identifier: BSD-2-Clause
"""`Smmu.translate_many` against `Smmu.translate`: configuration, outcomes and events."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, RW_S1, RW_S2, Machine

KINDS = ("s1", "s2", "nested", "bypass", "abort", "bad", "disabled", "none", "bad cd", "off")


def prepare(machine: Machine, kind: str, rng: Random) -> None:
    root, s2root = machine.alloc(PAGE), machine.s2_root()
    cd = machine.cd(ttb0=root, e0pd0=0)
    fields = machine.s2_fields(s2root)
    if kind == "s1":
        machine.ste(1, config=5, s1ctxptr=cd)
    elif kind == "s2":
        machine.ste(1, config=6, **fields)
    elif kind in ("nested", "bad cd"):
        machine.ste(1, config=7, s1ctxptr=cd if kind == "nested" else cd + 64, **fields)
    elif kind in ("bypass", "abort"):
        machine.ste(1, config=4 if kind == "bypass" else 0)
    elif kind == "bad":
        machine.ste(1, config=5, s1ctxptr=cd, s1stalld=1)
    elif kind == "off":
        machine.write("CR0", 0)
    for page in range(0x8000_0000, 0x8000_0000 + 64 * PAGE, PAGE):
        machine.map(s2root, page, page, flags=AF | RW_S2)
    for i in range(40):
        flags = AF * (rng.random() < 0.9) | rng.choice([RW_S1, 0, 3 << 6])
        machine.map(root, rng.randrange(64) * PAGE, 0x1_0000_0000 + i * PAGE, flags=flags)
        where = 0x1_0000_0000 + rng.randrange(40) * PAGE
        machine.map(s2root, where, 0x8F00_0000 + i * PAGE, flags=AF | rng.getrandbits(2) << 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [False, True])
def test_same_answers(kind: str, write: bool) -> None:
    rng = Random(f"{kind} {write}")
    machine = Machine(Features.default(), caching="none", eventq_log2=9)
    prepare(machine, kind, rng)
    sid = 300 if kind == "none" else 1
    addresses = [rng.randrange(64) * PAGE + rng.randrange(PAGE) for _ in range(100)]
    addresses += [0x1_0000_0000 + rng.randrange(40) * PAGE for _ in range(60)]
    addresses += [1 << 63, (1 << 64) - 1, 1 << 52, 1 << 48, 1 << 39]
    want = []
    for address in addresses:
        want.append(machine.go(sid, address, write=write))
        machine.scheduler.run_until_idle()
    events = machine.events()
    found = machine.smmu.translate_many(sid, np.array(addresses, dtype=np.uint64), write=write)
    assert [found.outcome(i) for i in range(len(addresses))] == want
    # The list of records that wait for the writer is short: a batch fills it and drops the rest.
    again = machine.events()
    assert again == events[: len(again)]
    assert bool(again) == bool(events)
