# SPDX-License-Identifier: BSD-2-Clause
"""Batches against the scalar walker: the same answers, faults and stores, lane by lane.

No second opinion: 52-bit descriptors and HTTU are checked against the walk-only oracle alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest

from vsmmu.arch.events import FTranslation
from vsmmu.arch.pagetable import G4K, G16K, G64K
from vsmmu.memory import Memory
from vsmmu.smmu import batch_walk
from vsmmu.smmu.batch import Route, translate_many
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import (
    EXEC,
    PRIV_SHIFT,
    READ,
    VA_MASK,
    WRITE,
    Access,
    Fault,
    Outcome,
    record,
)
from vsmmu.smmu.walk import Stage1, Stage2, Table, Walker

from .test_oracle import Builder, Regime, oracle

RAM, RAM_SIZE = 0x1_0000_0000, 0x0400_0000
GRANULES = {12: G4K, 14: G16K, 16: G64K}
NEEDS = {"r": READ, "w": WRITE, "x": EXEC, "R": READ << 3, "W": WRITE << 3, "X": EXEC << 3}


@dataclass
class World:
    """The same random tables twice: for the batch, and for the scalar walker and the oracle."""

    batch: Memory
    scalar: Memory
    first: Regime | None
    second: Regime | None
    addresses: list[int]


def regime_of(rng: Random, memory: Memory, stage: int, start: int) -> Regime:
    page = rng.choice([12, 14, 16])
    wide = rng.random() < 0.4
    most = {12: 5 if wide else 4, 14: 4 if wide else 3, 16: 3}[page]
    levels = rng.randint(2, most)
    below = page + (page - 3) * (levels - 1)
    top = 52 if wide else 48
    extra = page - 3 if stage == 1 else page + 1
    bits = below + rng.randint(1, max(1, min(top - below, extra)))
    htt = rng.random() < 0.5
    return Regime(
        memory, page, bits, start, levels, wide, stage,
        limit=rng.choice([40, 44, 48, 52] if wide else [40, 44, 48]),
        affd=rng.random() < 0.2, ha=htt, hd=htt and rng.random() < 0.7,
        wxn=rng.random() < 0.3, pan=rng.random() < 0.3, had=rng.random() < 0.3,
        xnx=rng.random() < 0.5, ptw=rng.random() < 0.2,
    )  # fmt: skip


def flags_of(rng: Random, plain: float) -> int:
    if rng.random() < plain:
        return 1 << 10 | 3 << 6 | 15 << 2
    low = rng.getrandbits(7) << 2 & ~(3 << 8)
    return low | (1 << 10) * (rng.random() < 0.8) | rng.getrandbits(4) << 51


def grow(rng: Random, regime: Regime, start: int, outputs: list[int], plain: float) -> list[int]:
    """Random leaves, then some spoiled descriptors; addresses worth a try."""
    builder = Builder(regime, start)
    tries = []
    top = 1 << regime.bits
    spots = [rng.randrange(top) for _ in range(3)]
    for _ in range(rng.randint(4, 60)):
        level = regime.levels - 1
        while level and regime.is_block(level - 1) and rng.random() < 0.15:
            level -= 1
        size = regime.size(level)
        address = (rng.choice(spots) + rng.randrange(-8, 8) * size) % top // size * size
        place = rng.choice(outputs) if outputs and rng.random() < 0.8 else rng.randrange(1 << 44)
        if rng.random() < 0.05:
            place = rng.randrange(1 << (52 if regime.wide else 48))
        flags = flags_of(rng, plain)
        if regime.wide and regime.page != 16:
            flags &= ~(3 << 8)
        builder.map(address, place // size * size, level, flags)
        tries.append(address + rng.randrange(size))
    for _ in range(rng.randint(0, 3)):
        table = rng.choice([regime.root, *builder.used])
        slot = table + 8 * rng.randrange(1 << regime.page - 3)
        entry = regime.memory.read64(slot)
        if entry:
            spoil = rng.choice([1, 2, 1 << 59, 1 << 60, 1 << 61, 1 << 62, 1 << 10, 1 << 43])
            regime.memory.write64(slot, entry ^ spoil)
    return tries


def world(rng: Random, stages: str) -> World:
    memory = Memory([(RAM, RAM_SIZE)])
    first = second = None
    addresses: list[int] = []
    if stages != "2":
        first = regime_of(rng, memory, 1, RAM)
        first.root = RAM
        outputs = [RAM + rng.randrange(RAM_SIZE) for _ in range(8)]
        addresses = grow(rng, first, RAM + 0x80000, outputs, 0.6)
    if stages != "1":
        second = regime_of(rng, memory, 2, RAM + 0x0200_0000)
        start = RAM + 0x0210_0000
        if first is None:
            addresses = grow(rng, second, start, [], 0.5)
        else:
            second.limit = max(second.limit, 40)
            while second.bits < 33:
                second = regime_of(rng, memory, 2, RAM + 0x0200_0000)
            builder = Builder(second, start)
            for page in range(RAM, RAM + 0x0018_0000, 1 << second.page):
                if rng.random() < 0.995:
                    flags = flags_of(rng, 0.97)
                    if second.wide and second.page != 16:
                        flags &= ~(3 << 8)
                    builder.map(page, page, second.levels - 1, flags)
            for address in list(addresses):
                found = oracle(clone(first, memory), None, address, "r")
                if isinstance(found, int) and rng.random() < 0.8:
                    size = 1 << second.page
                    where = RAM + rng.randrange(RAM_SIZE)
                    builder.map(found // size * size, where // size * size, second.levels - 1,
                                flags_of(rng, 0.6) & ~(3 << 8))  # fmt: skip
    twin = Memory([(RAM, RAM_SIZE)])
    for base, data in memory_of(memory).items():
        twin.write(base, data)
    return World(memory, twin, first, second, addresses)


def clone(regime: Regime, memory: Memory) -> Regime:
    return replace(regime, memory=memory, ha=False, hd=False, affd=True)


def table_of(regime: Regime, *, signed: bool) -> Table:
    mask = ((1 << 64) - 1) & -(1 << regime.bits) if signed else 0
    return Table(
        GRANULES[regime.page], 4 - regime.levels, regime.bits, regime.root, mask, regime.had,
        regime.wide,
    )  # fmt: skip


def stage1_of(regime: Regime) -> Stage1:
    table = table_of(regime, signed=True)
    return Stage1(
        (table, None), regime.limit, regime.affd, regime.wxn, regime.pan, regime.ha, regime.hd
    )


def stage2_of(regime: Regime) -> Stage2:
    return Stage2(
        table_of(regime, signed=False), regime.limit, regime.affd, regime.ptw, regime.xnx, False,
        regime.ha, regime.hd,
    )  # fmt: skip


def finish(access: Access, fault: Fault) -> Outcome:
    return Outcome("fault", None, record(fault, access, priv=access.priv, instr=access.instr))


def one(walker: Walker, route: Route, address: int) -> Outcome:
    """The scalar path over the same regimes."""
    access = ACCESSES[route.need]._replace(iova=address)
    shift = PRIV_SHIFT if route.need >> PRIV_SHIFT else 0
    if route.stage1 is None:
        assert route.stage2 is not None
        entry = walker.translate2(route.stage2, 0, address, route.need)
    else:
        table = route.stage1.tables[address >> 55 & 1]
        mask = table.range_mask if table else 0
        if table is None or address & mask != (mask if address >> 55 & 1 else 0):
            return finish(access, Fault(FTranslation))
        va = address & VA_MASK
        entry = walker.translate1(route.stage1, table, va, route.stage2, 0, 0, 0, route.need)
    if isinstance(entry, Fault):
        return finish(access, entry)
    return Outcome("ok", entry.pa | address & entry.mask, None, entry.granted >> shift & 7)


ACCESSES = {
    need: Access(1, 0, what in "wW", what in "xX", what.isupper()) for what, need in NEEDS.items()
}


def probes(rng: Random, w: World) -> list[int]:
    regime = w.first or w.second
    assert regime is not None
    out = list(w.addresses)
    for address in w.addresses:
        out.append(address ^ 1 << rng.randrange(min(48, regime.bits)))
        out.append((address + rng.choice([-1, 1]) * (1 << regime.page)) % (1 << 64))
    out += [rng.randrange(1 << regime.bits) for _ in range(8)]
    out += [1 << 63, (1 << 64) - 1, 1 << regime.bits, 0]
    rng.shuffle(out)
    return out


def memory_of(memory: Memory) -> dict[int, bytes]:
    words, frames, index = memory.arrays()
    found = {}
    for frame, start in zip(frames.tolist(), index.tolist(), strict=True):
        found[frame << 12] = words[start : start + 512].tobytes()
    return found


READS = ("walk.s1", "walk.s2")


def compare(rng: Random, stages: str, seen: Counter[str]) -> None:
    w = world(rng, stages)
    what = rng.choice("rrwwxRWX")
    route = Route(
        finish, stage1=stage1_of(w.first) if w.first else None,
        stage2=stage2_of(w.second) if w.second else None, need=NEEDS[what],
    )  # fmt: skip
    addresses = probes(rng, w)
    counters: Counter[str] = Counter()
    access = ACCESSES[route.need]
    got = translate_many(route, w.batch, access, np.array(addresses, dtype=np.uint64), counters)
    reads: Counter[str] = Counter()
    walker = Walker(w.scalar, Tlb(Counter(), 0), reads)
    for i, address in enumerate(addresses):
        want = one(walker, route, address)
        assert got.outcome(i) == want, (i, hex(address), what)
        seen[want.event.name if want.event else want.status] += 1
    assert counters["txn.fault"] == np.count_nonzero(got.fault)
    walker.settle()
    if not any(regime and regime.ha for regime in (w.first, w.second)):
        # Lanes that store are walked more than once.
        assert [counters[name] for name in READS] == [reads[name] for name in READS]
        seen["reads compared"] += 1
    assert memory_of(w.batch) == memory_of(w.scalar)


def judge(rng: Random, stages: str, seen: Counter[str]) -> None:
    """The scalar walker against the oracle, with its stores."""
    w = world(rng, stages)
    first = replace(w.first, memory=w.batch) if w.first else None
    second = replace(w.second, memory=w.batch) if w.second else None
    walker = Walker(w.scalar, Tlb(Counter(), 0), Counter())
    for address in probes(rng, w):
        what = rng.choice("rwxRWX")
        route = Route(
            finish, stage1=stage1_of(w.first) if w.first else None,
            stage2=stage2_of(w.second) if w.second else None, need=NEEDS[what],
        )  # fmt: skip
        if w.first and address >> w.first.bits:
            continue
        got, want = one(walker, route, address), oracle(first, second, address, what)
        if isinstance(want, int):
            assert (got.status, got.pa) == ("ok", want), (hex(address), what)
            seen["ok"] += 1
            continue
        assert isinstance(want, tuple)
        name, s2, cls, ipa, fetch, update = want
        assert got.event is not None, (hex(address), what, want)
        event = {f: got.event.fields[f].of(got.event.words) for f in got.event.fields}
        shown = (got.event.name, event["s2"], event["cls"], event.get("ipa"))
        assert shown == (
            name,
            s2,
            cls,
            None if name == "F_WALK_EABT" else ipa & 0xFF_FFFF_FFFF_F000,
        ), hex(address)
        assert event.get("fetchaddr", fetch) == fetch
        if name == "F_PERMISSION":
            assert event["ttrnw"] == int(cls == 1 and not update)
        seen[f"{name} {s2} {cls} {update}"] += 1
    assert memory_of(w.batch) == memory_of(w.scalar)


@pytest.mark.parametrize("stages", ["1", "2", "nested"])
def test_scalar_walker_is_the_oracle(stages: str) -> None:
    """52-bit descriptors, HTTU, S2PTW, hierarchical permissions. No second opinion but this."""
    seen: Counter[str] = Counter()
    for i in range(120):
        judge(Random(f"judge {stages} {i}"), stages, seen)
    assert seen["ok"] > 500
    if stages == "nested":
        # The update of a stage 1 descriptor needs write permission in stage 2.
        assert seen["F_PERMISSION 1 1 1"], seen
        assert seen["F_PERMISSION 1 1 0"], seen


@pytest.mark.parametrize("stages", ["1", "2", "nested"])
@pytest.mark.parametrize("block", range(2))
@pytest.mark.parametrize("enough", [1, 256])
def test_batch_is_the_scalar_walker(
    stages: str, block: int, enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stage 1 tables are is found once from `enough` lanes on, else for each lane."""
    monkeypatch.setattr(batch_walk, "ENOUGH", enough)
    seen: Counter[str] = Counter()
    for i in range(25):
        compare(Random(f"batch {stages} {block} {i}"), stages, seen)
    assert min(seen["ok"], seen["F_TRANSLATION"], seen["F_PERMISSION"], seen["F_ACCESS"]) > 5, seen
    assert seen["reads compared"]
