# SPDX-License-Identifier: BSD-2-Clause
"""Counters over random programs: what docs/counters.md says always holds, and that it names all."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

import pytest

from vsmmu.arch.commands import OPCODES
from vsmmu.arch.events import EVENTS
from vsmmu.smmu import Smmu
from vsmmu.smmu.intent import Cause, TlbScope
from vsmmu.smmu.tlb import Entry, Tlb

from .fuzz_world import World
from .programs import OPERATIONS, Program

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "counters.md"


@cache
def ran(seed: int) -> Program:
    program = Program(seed)
    program.run()
    return program


def family(counters: Counter[str], prefix: str) -> int:
    return sum(count for name, count in counters.items() if name.startswith(prefix))


def check(smmu: Smmu) -> None:
    """What docs/counters.md says always holds."""
    c = smmu.counters
    assert all(count >= 0 for count in c.values())
    assert c["ats.translated"] == family(c, "ats.translated.")
    assert c["tlb.inserted"] == c["tlb.evicted"] + c["tlb.invalidated"] + len(smmu.tlb)
    gone = c["config.evicted"] + c["config.forgotten"] + c["config.invalidated"]
    assert c["config.inserted"] == gone + len(smmu.config)
    for cache_name in ("tlb", "config"):
        assert c[f"{cache_name}.invalidated"] == family(c, f"{cache_name}.invalidated.")
        assert c[f"{cache_name}.over"] == family(c, f"{cache_name}.over.")
        for name in [name for name in c if name.startswith(f"{cache_name}.over")]:
            assert c[name] <= c[name.replace("over", "invalidated")]
    fates = ("event.recorded", "event.merged", "event.dropped", "event.suppressed",
             "stall.suppressed", "stall.withdrawn")  # fmt: skip
    waiting = smmu.eventq.pending + smmu.stalls.unwritten
    assert family(c, "fault.") == sum(c[name] for name in fates) + waiting
    assert c["stall.held"] == c["txn.stall"]
    assert c["stall.held"] == c["stall.retried"] + c["stall.terminated"] + len(smmu.stalls)
    done = family(c, "cmd.CMD_") + c["cmd.waited"] + c["cmd.error.ILL"] + c["cmd.error.ABT"]
    assert c["cmd.fetched"] == done
    assert c["cmd.error"] == family(c, "cmd.error.")
    assert c["sync.none"] + c["sync.irq"] + c["sync.sev"] == c["cmd.CMD_SYNC"]
    assert c["ats.request"] == c["ats.success"] + c["ats.ur"] + c["ats.ca"]
    assert c["pri.request"] == c["pri.recorded"] + c["pri.discarded"] + len(smmu.priq._pending)
    assert (
        c["msi.written"] + c["msi.abort"] == family(c, "msi.") - c["msi.written"] - c["msi.abort"]
    )


SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_well_formed_programs(seed: int) -> None:
    program = ran(seed)
    check(program.smmu)
    c = program.smmu.counters
    assert family(c, "txn.") == program.calls["translate"] > 0
    lookups = program.calls["stream"] + program.calls["context"]
    assert c["config.hit"] + c["config.miss"] == lookups > 0


@pytest.mark.parametrize("seed", range(100, 112))
def test_hostile_programs(seed: int) -> None:
    world = World(seed)
    world.run(300)
    for unit in world.units:
        check(unit.smmu)


def filled(seed: int) -> Tlb:
    """The same entries for the same seed."""
    random, tlb = Random(seed), Tlb(Counter())
    for _ in range(60):
        vmid, shift = random.randrange(2), random.choice([12, 14, 16])
        va = random.randrange(1 << 18) >> shift << shift
        entry = Entry(va, (1 << shift) - 1, 63, 63)
        if random.random() < 0.3:
            tlb.add_stage2(vmid, va, shift, entry)
        else:
            asid, aset = random.randrange(3), random.randrange(2)
            is_global = random.random() < 0.3
            tlb.add_stage1(vmid, asid, aset, va, shift, shift, entry, is_global=is_global)
    return tlb


@pytest.mark.parametrize("seed", range(20))
def test_over_is_what_the_narrow_invalidation_would_have_spared(seed: int) -> None:
    """What is meant is done alone on one cache, and as part of something wider on another."""
    random = Random(1000 + seed)
    first = random.randrange(1 << 18)
    vmid, asid, span = random.randrange(2), random.randrange(3), (first, first + 0x5000)
    narrow = {
        TlbScope(vmid, asid, stage=1): lambda tlb: tlb.invalidate_asid(vmid, asid),
        TlbScope(vmid, asid, span, 1): lambda tlb: tlb.invalidate_va(vmid, asid, *span),
        TlbScope(vmid, None, span, 1): lambda tlb: tlb.invalidate_va(vmid, None, *span),
        TlbScope(vmid, None, span, 2): lambda tlb: tlb.invalidate_ipa(vmid, *span),
        TlbScope(vmid, stage=1): lambda tlb: tlb.invalidate_vmid(vmid, stage2=False),
        TlbScope(vmid): lambda tlb: tlb.invalidate_vmid(vmid, stage2=True),
    }
    wide = (
        lambda tlb, cause: tlb.invalidate_all(cause=cause),
        lambda tlb, cause: tlb.invalidate_vmid(vmid, stage2=True, cause=cause),
        lambda tlb, cause: tlb.invalidate_va(vmid, None, 0, span[1], cause=cause),
    )
    for scope, alone in narrow.items():
        for also in wide:
            meant, done = filled(seed), filled(seed)
            before = set(meant)
            alone(meant)
            needed = before - set(meant)
            also(done, Cause("wide", (scope,)))
            dropped = before - set(done)
            counters = done._counters
            assert counters["tlb.invalidated.wide"] == len(dropped)
            assert counters["tlb.over.wide"] == counters["tlb.over"] == len(dropped - needed)
            assert dropped


def rows() -> list[str]:
    found = re.findall(r"^\| `([^`]+)` \| (?:\w+) \| \S", DOCUMENT.read_text(), re.MULTILINE)
    assert len(found) == len(set(found)) > 70
    return found


# What a row with angle brackets stands for.
CAUSES = (*(layout.name for layout in OPCODES.values()), *OPERATIONS)
LINES = ("eventq", "gerror", "priq", "cmdq-sync")
FAMILIES = {
    "record": tuple(event.name for event in EVENTS.values()),
    "cause": (*CAUSES, "CD.ASET"),
    "command": CAUSES,
    "code": ("ILL", "ABT", "ATC_INV_SYNC"),
    "line": LINES,
    "source": LINES,
    "operation": OPERATIONS,
    "status": ("ok", "abort", "fault"),
}


def names_of(row: str) -> set[str]:
    stem, _, rest = row.partition("<")
    return {stem + name for name in FAMILIES[rest[:-1]]} if rest else {row}


def test_the_table_has_every_counter_and_no_other() -> None:
    seen = {name for seed in SEEDS for name, count in ran(seed).smmu.counters.items() if count}
    named = {row: names_of(row) for row in rows()}
    assert seen - set().union(*named.values()) == set()
    assert [row for row, names in named.items() if not names & seen] == []
