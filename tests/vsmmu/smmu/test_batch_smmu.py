# SPDX-License-Identifier: BSD-2-Clause
"""`Smmu.translate_many` against `Smmu.translate`: configuration, outcomes and events."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from vsmmu.arch.events import FPermission, FTranslation
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.batch import STATUS

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


def test_razwi() -> None:
    """CD.A=0: a stage 1 fault reads as zero, a stage 2 fault aborts (§5.5). No second opinion."""
    machine = Machine(Features.default().replace(term_model=0))
    root, root2 = machine.alloc(PAGE), machine.s2_root()
    cd = machine.cd(ttb0=root, a=0)
    machine.ste(1, config=7, s1ctxptr=cd, **machine.s2_fields(root2))
    machine.map(root2, 0x8000_0000, 0x8000_0000, size=1 << 30, flags=AF | RW_S2)
    machine.map(root, 0, 0x8F00_0000)
    machine.map(root, PAGE, 0x8F00_0000, flags=AF | RW_S1 | 1 << 7)
    machine.map(root, 2 * PAGE, 0x1_0000_0000)
    places = [0, PAGE, 2 * PAGE, 3 * PAGE, 0x8]
    found = machine.smmu.translate_many(1, np.array(places, dtype=np.uint64), write=True)
    assert [STATUS[s] for s in found.status] == ["ok", "razwi", "fault", "razwi", "ok"]
    numbers = [0, FPermission.number, FTranslation.number, FTranslation.number, 0]
    assert found.fault.tolist() == numbers
    assert found.pa.tolist() == [0x8F00_0000, 0, 0, 0, 0x8F00_0008]
    outcomes = [found.outcome(lane) for lane in range(5)]
    assert [o.status for o in outcomes] == ["ok", "razwi", "fault", "razwi", "ok"]
    assert [o.pa is None for o in outcomes] == [False, True, True, True, False]
    kinds = [(e.name, e.fields["s2"].of(e.words)) for e in machine.events()]
    assert kinds == [("F_PERMISSION", 0), ("F_TRANSLATION", 1), ("F_TRANSLATION", 0)]
    assert (machine.smmu.counters["txn.razwi"], machine.smmu.counters["txn.fault"]) == (2, 1)


@pytest.mark.parametrize(
    "ste",
    [{"config": 4}, {"config": 5, "s1cdmax": 1, "s1dss": 1}, {"config": 6}],
)
def test_overrides_in_the_record_of_an_oversized_address(ste: dict[str, int]) -> None:
    """§7.3.14: PnU and InD are those after PRIVCFG and INSTCFG, where stage 1 is bypassed too."""
    machine = Machine(
        Features.default().replace(attr_perms_ovr=1, ssidsize=1, cd2l=1), caching="none"
    )
    root = machine.s2_root()
    size = 1 << 52
    for privileged, instruction in ((0, 0), (1, 0), (0, 1), (1, 1)):
        machine.ste(
            1, **machine.s2_fields(root), **ste, privcfg=2 | privileged, instcfg=2 | instruction
        )
        outcome = machine.go(1, size, priv=not privileged, instr=not instruction)
        (event,) = machine.events()
        assert outcome.event == event
        assert event.name == "F_ADDR_SIZE"
        assert (event.pnu, event.ind) == (privileged, instruction)
        found = machine.smmu.translate_many(
            1, np.array([size], dtype=np.uint64), priv=not privileged, instr=not instruction
        )
        assert machine.events() == [event]
        assert found.outcome(0) == outcome
