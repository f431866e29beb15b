# SPDX-License-Identifier: BSD-2-Clause
"""Translation costs as ratios to a bare loop over the same data, in one run (`make bench`).

Floors: a plain dict lookup in a method, `struct.unpack_from` down four tables, and numpy gathers
down the same tables without a check. Each time is the least of many short rounds of one process'
own time, so that a busy machine does not show.
"""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from vsmmu.arch.context import Cd
from vsmmu.arch.pagetable import G4K
from vsmmu.arch.registers import BY_NAME, Cr0, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import Memory
from vsmmu.smmu import Features, Smmu
from vsmmu.smmu.batch import CHUNK, Route, translate_many
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import READ, Access, Fault, Outcome
from vsmmu.smmu.walk import Stage1, Stage2, Table, Walker

BASE, PAGES = 0x4000_0000, 262_144
SHIFTS = (39, 30, 21, 12)
OA = 0xFFFF_FFFF_F000
LANES = 1_000_000


class Setup:
    """262,144 pages at random places of 1 GiB, behind 4-level stage 1 and 4-level stage 2."""

    def __init__(self) -> None:
        self.memory = Memory([(BASE, 0x6000_0000)])
        self._next = BASE + (PAGES << 12)
        rng = np.random.default_rng(1)
        order = rng.permutation(PAGES).astype(np.uint64)
        leaves = (order << np.uint64(12)) + np.uint64(BASE)
        self.root1 = self._tables(0, leaves | np.uint64(0x743))
        count = (self._next - BASE >> 12) + 2048
        straight = (np.arange(count, dtype=np.uint64) << np.uint64(12)) + np.uint64(BASE)
        self.root2 = self._tables(BASE, straight | np.uint64(0x7FF))
        table = Table(G4K, 0, 48, self.root1, ((1 << 64) - 1) & -(1 << 48))
        self.table = table
        self.stage1 = Stage1((table, None), 48, False, False, False)
        self.stage2 = Stage2(Table(G4K, 0, 48, self.root2), 48, False, True, True, False)
        places = rng.integers(0, PAGES, size=LANES).astype(np.uint64)
        self.iovas = (places << np.uint64(12)) | np.uint64(0x18)
        words, frames, index = self.memory.arrays()
        first = int(frames[0])
        self.flat = np.zeros((int(frames[-1]) - first + 1) * 512, dtype=np.int64)
        for frame, start in zip(frames.tolist(), index.tolist(), strict=True):
            at = (frame - first) * 512
            self.flat[at : at + 512] = words[start : start + 512].view(np.int64)
        self.origin = first << 12

    def map2(self, address: int) -> None:
        """Map one more page 1:1 in stage 2."""
        table = self.root2
        for shift in SHIFTS[:-1]:
            slot = table + 8 * (address >> shift & 511)
            entry = self.memory.read64(slot) or 0
            if not entry:
                entry = self._table() | 3
                self.memory.write64(slot, entry)
            table = entry & OA
        self.memory.write64(table + 8 * (address >> 12 & 511), address & -4096 | 0x7FF)

    def _table(self) -> int:
        self._next += 4096
        return self._next - 4096

    def _tables(self, first: int, leaves: np.ndarray) -> int:
        root, level1 = self._table(), self._table()
        self.memory.write64(root, level1 | 3)
        level2: dict[int, int] = {}
        for i in range(0, leaves.size, 512):
            va = first + (i << 12)
            upper = level2.get(va >> 30)
            if upper is None:
                upper = level2[va >> 30] = self._table()
                self.memory.write64(level1 + 8 * (va >> 30), upper | 3)
            below = self._table()
            self.memory.write64(upper + 8 * (va >> 21 & 511), below | 3)
            self.memory.write(below, leaves[i : i + 512].tobytes())
        return root


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


def least(rounds: int, *runs: Callable[[], object]) -> list[float]:
    """Seconds of the fastest round of each; they take turns, so that a slow spell hits all."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            start = time.process_time()
            run()
            best[i] = min(best[i], time.process_time() - start)
    return best


def each(function: Callable[[int], object], addresses: list[int]) -> Callable[[], object]:
    def run() -> None:
        for address in addresses:
            function(address)

    return run


def report(name: str, got: float, floor: float, goal: float) -> None:
    print(f"{name}: {got / floor:.2f} times the floor (goal {goal})")


def test_scalar(setup: Setup) -> None:
    """A TLB hit against a dict in a method, a miss against the bare unpack loop."""
    addresses = setup.iovas[:64].tolist()

    class Box:
        def __init__(self, items: dict[int, int]) -> None:
            self.items = items

        def get(self, key: int) -> int | None:
            return self.items.get(key)

    box = Box({address >> 12: address for address in addresses})
    image, origin, unpack = setup.flat.tobytes(), setup.origin, struct.unpack_from

    def bare(va: int) -> int | None:
        table = setup.root1
        for shift in SHIFTS:
            (entry,) = unpack("<Q", image, table - origin + ((va >> shift & 511) << 3))
            if not entry & 1:
                return None
            table = entry & OA
        return table | va & 0xFFF

    counters: Counter[str] = Counter()
    tlb = Tlb(counters)
    kept, cold = (
        Walker(setup.memory, tlb, counters),
        Walker(setup.memory, Tlb(counters, 0), counters),
    )
    regime, table = setup.stage1, setup.table
    each(lambda va: kept.translate1(regime, table, va, None, 0, 1, 0, READ), addresses)()
    smmu, nested = whole(setup, nested=False), whole(setup, nested=True)
    accesses = [Access(0, address, False) for address in addresses]
    floor, hit, both, everything = least(
        2000,
        each(lambda va: box.get(va >> 12), addresses),
        each(lambda va: tlb.find_stage1(0, 1, 0, va), addresses),
        each(lambda va: kept.translate1(regime, table, va, None, 0, 1, 0, READ), addresses),
        each(smmu.translate, accesses),
    )
    report("TLB hit", hit, floor, 3)
    print(f"a hit with its permissions: {both / floor:.2f} times the floor")
    print(f"a hit from the access to the outcome: {everything / floor:.2f} times the floor")
    smmu.tlb.capacity = nested.tlb.capacity = 0
    for one in (smmu, nested):
        one.tlb.invalidate_all()
    floor, miss, everything, double = least(
        1000,
        each(bare, addresses),
        each(lambda va: cold.translate1(regime, table, va, None, 0, 1, 0, READ), addresses),
        each(smmu.translate, accesses),
        each(nested.translate, accesses),
    )
    report("4-level miss", miss, floor, 2.5)
    print(f"a miss from the access to the outcome: {everything / floor:.2f} times the floor")
    print(f"the same nested, 24 reads: {double / floor:.2f} times the floor of 4 reads")
    assert hit < miss


def whole(setup: Setup, *, nested: bool) -> Smmu:
    """An SMMU on the tables, enabled, with StreamID 0 configured."""
    memory = setup.memory
    strtab, cd = BASE + 0x5F00_0000, BASE + 0x5F10_0000
    words = Cd.build(v=1, aa64=1, a=1, r=1, t0sz=16, epd1=1, ips=5, asid=1, ttb0=setup.root1)
    memory.write(cd, bytes(words))
    under = {"s2t0sz": 16, "s2sl0": 2, "s2ps": 5, "s2aa64": 1, "s2vmid": 1, "s2ttb": setup.root2}
    ste = Ste.build(v=1, config=7 if nested else 5, s1ctxptr=cd, **(under if nested else {}))
    if nested:
        for address in (strtab, cd):
            setup.map2(address)
    smmu = Smmu("smmu", memory, Features.default(sidsize=8))
    memory.write(strtab, bytes(ste))
    for name, value in (
        ("STRTAB_BASE", StrtabBase.build(addr=strtab).raw),
        ("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=8).raw),
        ("CR0", Cr0.build(smmuen=1).raw),
    ):
        register = BY_NAME[name]
        smmu.mmio_write(register.offset, register.width // 8, value)
    assert smmu.translate(Access(0, int(setup.iovas[0]), False)).status == "ok"
    return smmu


def test_memory() -> None:
    """Bytes of the process for each million pages that are mapped, tables and all."""
    tracemalloc.start()
    setup = Setup()
    setup.flat = np.zeros(0, dtype=np.int64)
    setup.iovas = np.zeros(0, dtype=np.uint64)
    taken = len(setup.memory.page) * 4096
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Both stages map them, and stage 2 the tables too.
    print(f"tables: {taken / PAGES:.1f} bytes a page, held in {used / PAGES:.1f}")
    print(f"a million pages, nested: {used / PAGES * 1e6 / (1 << 20):.0f} MiB")


def test_batch(setup: Setup) -> None:
    """A million random pages against bare gathers down the same tables."""
    flat, origin, inputs = setup.flat, setup.origin, setup.iovas.view(np.int64)

    def gather(root: int, va: np.ndarray) -> np.ndarray:
        at: np.ndarray | int = root
        for shift in SHIFTS:
            at = flat[(at - origin >> 3) + (va >> shift & 511)] & OA
        return at | va & 0xFFF

    def nested(va: np.ndarray) -> np.ndarray:
        at: np.ndarray | int = setup.root1
        for shift in SHIFTS:
            slots = at + ((va >> shift & 511) << 3)
            at = flat[gather(setup.root2, slots) - origin >> 3] & OA
        return gather(setup.root2, at | va & 0xFFF)

    def chunked(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.concatenate([function(inputs[i : i + CHUNK]) for i in range(0, LANES, CHUNK)])

    def finish(access: Access, fault: Fault) -> Outcome:
        return Outcome("fault")

    for name, stage2, bare, goal, rounds in (
        ("batch, single stage", None, lambda va: gather(setup.root1, va), 2, 7),
        ("batch, nested", setup.stage2, nested, 3, 3),
    ):
        route = Route(finish, stage1=setup.stage1, stage2=stage2, need=READ)

        def run(route: Route = route) -> object:
            return translate_many(route, setup.memory, Access(1, 0, False), setup.iovas, Counter())

        got = run()
        assert (got.pa.view(np.int64) == chunked(bare)).all()  # type: ignore[attr-defined]
        floor, taken = least(rounds, lambda bare=bare: chunked(bare), run)  # type: ignore[misc]
        report(f"{name} ({taken / LANES * 1e9:.0f} ns a lane)", taken, floor, goal)
        assert taken < floor * goal * 2
