# SPDX-License-Identifier: BSD-2-Clause
"""The SMMU against a walk-only oracle, on random pages of mixed sizes (IHI 0070 §3.4; Arm ARM D8).

The oracle has no TLB, and shares neither code nor constants with the walker. What a page's
descriptor says is decided twice: by the builder that wrote it, which knows the answer, and by the
oracle, which reads it back.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest

from vsmmu.memory import Memory

from .machine import Machine

PAGES = {12: "4K", 14: "16K", 16: "64K"}
SMALL, LARGE = 48, 52


@dataclass
class Regime:
    """One stage of translation, as numbers of the Arm ARM."""

    memory: Memory
    page: int
    bits: int
    root: int
    levels: int
    wide: bool = False
    stage: int = 1
    limit: int = 48
    affd: bool = False
    ha: bool = False
    hd: bool = False
    wxn: bool = False
    pan: bool = False
    had: bool = False
    xnx: bool = True
    ptw: bool = False

    def split(self, address: int) -> list[int]:
        """The index at each level, first to last."""
        stride = self.page - 3
        out = []
        rest = address % (1 << self.bits) >> self.page
        for _ in range(self.levels - 1):
            rest, low = divmod(rest, 1 << stride)
            out.append(low)
        return [rest, *reversed(out)]

    def size(self, level: int) -> int:
        """Bytes of one descriptor at the level, 0 for the first of this regime."""
        return 1 << self.page + (self.page - 3) * (self.levels - 1 - level)

    def is_block(self, level: int) -> bool:
        below = self.levels - 1 - level
        return below in {
            (12, False): {1, 2}, (12, True): {1, 2, 3}, (14, False): {1}, (14, True): {1, 2},
            (16, False): {1}, (16, True): {1, 2},
        }[self.page, self.wide]  # fmt: skip

    def output(self, descriptor: int, size: int) -> int:
        address = descriptor % (1 << 48)
        if self.wide and self.page == 16:
            address += (descriptor >> 12) % 16 << 48
        elif self.wide:
            address = descriptor % (1 << 50) + ((descriptor >> 8) % 4 << 50)
        return address // size * size

    def encode(self, address: int) -> int:
        if not self.wide:
            return address
        if self.page == 16:
            return address % (1 << 48) | address >> 48 << 12
        return address % (1 << 50) | address >> 50 << 8


@dataclass
class Stop(Exception):
    """(event, stage 2, class, ipa, fetch address, update) of a fault."""

    what: str
    s2: int = 0
    cls: int = 2
    ipa: int = 0
    fetch: int = 0
    update: int = 0


def bit(value: int, position: int) -> int:
    return value >> position & 1


def rights1(regime: Regime, leaf: int, tables: list[int], *, write_ok: bool) -> dict[str, bool]:
    """Permissions in stage 1 by access: r, w, x unprivileged; R, W, X privileged."""
    above = 0
    for table in [] if regime.had else tables:
        above |= table
    writes = write_ok and not bit(above, 62)
    user = bool(bit(leaf, 6)) and not bit(above, 61)
    execs = not bit(leaf, 54) and not bit(above, 60)
    pexecs = not bit(leaf, 53) and not bit(above, 59)
    return {
        "r": user, "w": user and writes, "x": execs and not (regime.wxn and user and writes),
        "R": not (regime.pan and user), "W": writes and not (regime.pan and user),
        "X": pexecs and not (user and writes) and not (regime.wxn and writes),
    }  # fmt: skip


def rights2(regime: Regime, leaf: int, *, write_ok: bool) -> dict[str, bool]:
    reads = bool(bit(leaf, 6))
    xn = leaf >> 53 & 3 if regime.xnx else leaf >> 53 & 2
    return {
        "r": reads, "w": write_ok, "x": xn in (0, 1), "R": reads, "W": write_ok, "X": xn in (0, 3),
    }  # fmt: skip


def stage_2(regime: Regime, ipa: int, what: str, cls: int) -> int:
    """PA of an IPA for an access of that kind, or Stop."""
    update = int(cls == 1 and what in "wW")
    if ipa >= 1 << regime.bits:
        raise Stop("F_TRANSLATION", 1, cls, ipa)
    table = regime.root
    for level, index in enumerate(regime.split(ipa)):
        slot = table + 8 * index
        leaf = regime.memory.read64(slot)
        if leaf is None:
            raise Stop("F_WALK_EABT", 1, cls, ipa, slot)
        last = level == regime.levels - 1
        if leaf % 4 == 3 and not last:
            table = regime.output(leaf, 1 << regime.page)
            if table >= 1 << regime.limit:
                raise Stop("F_ADDR_SIZE", 1, cls, ipa)
            continue
        if leaf % 4 != (3 if last else 1) or not (last or regime.is_block(level)):
            raise Stop("F_TRANSLATION", 1, cls, ipa)
        output = regime.output(leaf, regime.size(level))
        if output >= 1 << regime.limit:
            raise Stop("F_ADDR_SIZE", 1, cls, ipa)
        if not bit(leaf, 10) and not regime.ha and not regime.affd:
            raise Stop("F_ACCESS", 1, cls, ipa)
        may_dirty = regime.hd and bit(leaf, 51)
        if not rights2(regime, leaf, write_ok=bool(bit(leaf, 7) or may_dirty))[what]:
            raise Stop("F_PERMISSION", 1, cls, ipa, 0, update)
        new = leaf | (1 << 10 if regime.ha else 0)
        new |= 1 << 7 if what in "wW" and may_dirty else 0
        if new != leaf:
            regime.memory.write64(slot, new)
        if regime.ptw and cls != 2 and leaf >> 4 & 3 == 0:
            raise Stop("F_PERMISSION", 1, cls, ipa, 0, update)
        return output + ipa % regime.size(level)
    raise AssertionError


def stage_1(regime: Regime, va: int, what: str, under: Regime | None) -> int:
    """Output of stage 1, then of stage 2 behind it, or Stop."""
    table, tables = regime.root, []
    for level, index in enumerate(regime.split(va)):
        slot = table + 8 * index
        at = slot if under is None else stage_2(under, slot, "r", 1)
        leaf = regime.memory.read64(at)
        if leaf is None:
            raise Stop("F_WALK_EABT", 0, 1, 0, at)
        last = level == regime.levels - 1
        if leaf % 4 == 3 and not last:
            table = regime.output(leaf, 1 << regime.page)
            if table >= 1 << regime.limit:
                raise Stop("F_ADDR_SIZE")
            tables.append(leaf)
            continue
        if leaf % 4 != (3 if last else 1) or not (last or regime.is_block(level)):
            raise Stop("F_TRANSLATION")
        output = regime.output(leaf, regime.size(level))
        if output >= 1 << regime.limit:
            raise Stop("F_ADDR_SIZE")
        if not bit(leaf, 10) and not regime.ha and not regime.affd:
            raise Stop("F_ACCESS")
        may_dirty = regime.hd and bit(leaf, 51)
        write_ok = bool(not bit(leaf, 7) or may_dirty)
        if not rights1(regime, leaf, tables, write_ok=write_ok)[what]:
            raise Stop("F_PERMISSION")
        new = leaf | (1 << 10 if regime.ha else 0)
        if what in "wW" and may_dirty:
            new &= ~(1 << 7)
        if new != leaf:
            regime.memory.write64(at if under is None else stage_2(under, slot, "w", 1), new)
        output += va % regime.size(level)
        return output if under is None else stage_2(under, output, what, 2)
    raise AssertionError


def oracle(first: Regime | None, second: Regime | None, address: int, what: str) -> object:
    """The PA, or the fault as a tuple."""
    try:
        if first is None:
            assert second is not None
            return stage_2(second, address, what, 2)
        return stage_1(first, address, what, second)
    except Stop as stop:
        return (stop.what, stop.s2, stop.cls, stop.ipa, stop.fetch, stop.update)


@dataclass
class Builder:
    """Writes tables; takes their pages from `[start, ...)`.

    `place` turns the address that a descriptor holds into where memory has the table: they differ
    for stage 1 behind stage 2.
    """

    regime: Regime
    start: int
    place: dict[int, int] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)

    def table(self) -> int:
        size = 1 << self.regime.page
        address = -(-self.start // size) * size
        self.start = address + size
        self.used.append(address)
        return address

    def map(self, address: int, output: int, level: int, flags: int) -> None:
        """A leaf at `level` of the regime; tables on the way are made."""
        regime = self.regime
        table = regime.root
        indexes = regime.split(address)
        for here in range(level):
            slot = table + 8 * indexes[here]
            entry = regime.memory.read64(slot)
            assert entry is not None
            if entry % 4 == 1:
                return
            if not entry & 1:
                entry = regime.encode(self.table()) | 3
                assert regime.memory.write64(slot, entry)
            table = regime.output(entry, 1 << regime.page)
        slot = table + 8 * indexes[level]
        if regime.memory.read64(slot) == 0:
            kind = 3 if level == regime.levels - 1 else 1
            assert regime.memory.write64(slot, regime.encode(output) | flags | kind)


# Through the whole SMMU, TLB and all.

AF, EL0, RO, NG = 1 << 10, 1 << 6, 1 << 7, 1 << 11


def populate(rng: Random, builder: Builder, pages: int, limit: int) -> list[int]:
    """Leaves of all sizes at random places; the addresses that were mapped."""
    regime = builder.regime
    places = []
    spots = [rng.randrange(1 << regime.bits) for _ in range(max(4, pages // 2048))]
    for _ in range(pages):
        spot = rng.choice(spots)
        level = regime.levels - 1
        while level and regime.is_block(level - 1) and rng.random() < 0.08:
            level -= 1
        size = regime.size(level)
        near = size << (11 if level == regime.levels - 1 else 3)
        address = (spot + rng.randrange(-near, near)) % (1 << regime.bits) // size * size
        output = rng.randrange(1 << limit) // size * size
        flags = AF | EL0 | NG * rng.getrandbits(1) | RO * (rng.random() < 0.2)
        builder.map(address, output, level, flags & ~(AF * (rng.random() < 0.02)))
        places.append(address + rng.randrange(size))
    return places


def run_stage_1(seed: int, page: int, pages: int, accesses: int) -> Counter[str]:
    rng = Random(f"oracle {seed} {page}")
    machine = Machine()
    levels = {12: 4, 14: 4, 16: 3}[page]
    regime = Regime(machine.memory, page, SMALL, machine.alloc(1 << page, 1 << 16), levels)
    builder = Builder(regime, machine.alloc(0x0A00_0000, 1 << 16))
    places = populate(rng, builder, pages, SMALL)
    machine.s1_stream(1, regime.root, tg0={12: 0, 14: 2, 16: 1}[page], t0sz=16)
    seen: Counter[str] = Counter()
    for _ in range(accesses):
        address = rng.choice(places) if rng.random() < 0.9 else rng.randrange(1 << SMALL)
        address ^= rng.getrandbits(15) if rng.random() < 0.2 else 0
        write = rng.random() < 0.3
        want = oracle(regime, None, address, "w" if write else "r")
        got = machine.go(1, address, write=write)
        if isinstance(want, int):
            assert (got.status, got.pa) == ("ok", want), hex(address)
            seen["ok"] += 1
        else:
            assert isinstance(want, tuple)
            assert got.event is not None
            assert got.event.name == want[0], hex(address)
            seen[want[0]] += 1
        if not machine.smmu.ready:
            machine.events()
    seen["hit"] = machine.smmu.counters["tlb.hit"]
    return seen


@pytest.mark.parametrize("page", PAGES)
def test_random_pages(page: int) -> None:
    seen = run_stage_1(0, page, 1200, 2500)
    assert min(seen["ok"], seen["hit"], seen["F_TRANSLATION"], seen["F_PERMISSION"]) > 50
    assert seen["F_ACCESS"]


@pytest.mark.soak
@pytest.mark.parametrize("page", PAGES)
def test_262144_random_pages(page: int) -> None:
    assert os.environ.get("VSMMU_SOAK")
    seen = run_stage_1(1, page, 262_144, 262_144)
    assert seen["ok"] > 100_000
