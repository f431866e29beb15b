# SPDX-License-Identifier: BSD-2-Clause
"""A driver changes live STEs and CDs; a device probes between any two of its writes.

The driver's method and its 24 transitions are those that Linux's driver holds itself to, written
here from their description: which words it writes before each synchronisation, how many there are,
and whether word 0 stays nonzero throughout (hitless). The SMMU caches as hostilely as IHI 0070
§3.21.3 allows: it has fetched any of the words at the last CMD_SYNC and reads the others when the
device first comes, which is after any number of the writes. What the device meets is the old entry,
the new one, or with a transition that is not hitless an invalid one; never a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import pytest

from vsmmu.arch.commands import CmdCfgiCd, CmdCfgiSte, CmdCfgiSteRange
from vsmmu.arch.context import Cd
from vsmmu.arch.stream_table import LIVE, STAGE1, STAGE2, Ste
from vsmmu.memory import PAGE
from vsmmu.smmu.config import CACHING, Caching
from vsmmu.smmu.ste import Stream

from .machine import AF, RW_S1, RW_S2, Machine
from .test_config_legality import replaced

Words = tuple[int, ...]
SID, DATA, PA1, PA2, PA3 = 5, 0x5000, 0x8F00_0000, 0x8E00_0000, 0x8D00_0000
FEATURES = replaced(ssidsize=8, cd2l=1, stall_model=0, ats=1)

# The driver: which bits count, which may change at any time.

_STE_STAGE1 = (
    "s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh", "s1stalld", "strw", "eats",
    "mev", "s2vmid",
)  # fmt: skip
_STE_STAGE2 = (
    "s2fwb", "eats", "shcfg", "mev", "s2vmid", "s2t0sz", "s2sl0", "s2ir0", "s2or0", "s2sh0",
    "s2tg", "s2ps", "s2aa64", "s2endi", "s2ptw", "s2s", "s2r", "s2ttb",
)  # fmt: skip
ONES = (1 << 64) - 1


def ste_used(words: Words) -> Words:
    ste = Ste(words)
    if not ste.v:
        return Ste.mask("v")
    names = {"v", "config"}
    if ste.config & LIVE and ste.config & STAGE1:
        names |= {*_STE_STAGE1, *(("shcfg",) if ste.s1dss == 1 else ())}
    if ste.config & LIVE and ste.config & STAGE2:
        names |= set(_STE_STAGE2)
    if ste.config == LIVE:
        names.add("shcfg")
    return Ste.mask(*names)


def ste_safe(old: Words, new: Words) -> Words:
    entries = Ste(old), Ste(new)
    words = list(Ste.mask("mev"))
    if not any(e.eats & 2 or e.s2s for e in entries):
        words = [a | b for a, b in zip(words, Ste.build(eats=1).words, strict=True)]
    return tuple(words)


def cd_used(words: Words) -> Words:
    cd = Cd(words)
    if not cd.v:
        return Cd.mask("v")
    hidden = Cd.mask("t0sz", "tg0", "ir0", "or0", "sh0", "ttb0") if cd.epd0 else (0,) * 8
    return tuple(ONES & ~h for h in hidden)


class Kind(NamedTuple):
    used: Callable[[Words], Words]
    safe: Callable[[Words, Words], Words]


STE = Kind(ste_used, ste_safe)
CD = Kind(cd_used, lambda old, new: (0,) * 8)


def phases(kind: Kind, old: Words, new: Words) -> Iterator[list[tuple[int, int]]]:
    """The writes before each synchronisation: (word, value)."""
    used, target = kind.used(old), kind.used(new)
    safe = [s & t for s, t in zip(kind.safe(old, new), target, strict=True)]
    unseen = [o & (u & ~s) | n & ~(u & ~s) for o, n, u, s in zip(old, new, used, safe, strict=True)]
    critical = [i for i in range(8) if unseen[i] & target[i] != new[i]]
    if len(critical) == 1:
        k = critical[0]
        steps = [[*unseen], [*unseen], [*new]]
        steps[0][k] = old[k]
        steps[1][k] = new[k]
    elif critical:
        steps = [[0, *old[1:]], [0, *new[1:]], [*new]]
    else:
        steps = [[*new]]
    state = list(old)
    for step in steps:
        writes = [(i, step[i]) for i in range(8) if step[i] != state[i]]
        if writes:
            yield writes
        state = step


# The entries.


class World:
    """Tables that lead the device to a different page for each kind of entry."""

    def __init__(self) -> None:
        self.machine = machine = Machine(FEATURES)
        machine.smmu.tlb.capacity = 0
        self.roots: dict[int, int] = {}
        self.contexts = machine.alloc(64 * 16)
        self.other_contexts = machine.alloc(64 * 16)
        for table, page in ((self.contexts, PA1), (self.other_contexts, PA3)):
            for ssid in range(16):
                machine.memory.write(table + 64 * ssid, bytes(self.cd(self.root(page))))
        self.stage2 = machine.s2_root()
        machine.map(self.stage2, DATA, PA2, flags=AF | RW_S2)
        for address in (self.contexts, self.other_contexts):
            machine.map(self.stage2, address, address, flags=AF | RW_S2)
        self.slot = machine.strtab + 64 * SID

    def root(self, page: int) -> int:
        """The stage 1 table that maps DATA to this page."""
        if page not in self.roots:
            self.roots[page] = self.machine.alloc(PAGE)
            self.machine.map(self.roots[page], DATA, page, flags=AF | RW_S1)
        return self.roots[page]

    def cd(self, root: int, **fields: int) -> Cd:
        values = {
            "v": 1, "aa64": 1, "a": 1, "r": 1, "t0sz": 25, "epd1": 1, "ips": 5, "asid": 1,
            "aset": 1, "ttb0": root, "mair0": 0x04FF44,
        }  # fmt: skip
        return Cd.build(**{**values, **fields})

    def s1(self, **fields: int) -> Ste:
        values = {
            "v": 1, "config": 5, "s1ctxptr": self.contexts, "s1cdmax": 4, "s1dss": 2, "s1cir": 1,
            "s1cor": 1, "s1csh": 3, "s1stalld": 1, "eats": 1,
        }  # fmt: skip
        return Ste.build(**{**values, **fields})

    def s2(self, **fields: int) -> Ste:
        values = {
            "v": 1, "config": 6, "eats": 1, "shcfg": 1, "s2t0sz": 24, "s2sl0": 1, "s2sh0": 3,
            "s2ps": 5, "s2aa64": 1, "s2ptw": 1, "s2r": 1, "s2ttb": self.stage2,
        }  # fmt: skip
        return Ste.build(**{**values, **fields})

    def nested(self, **fields: int) -> Ste:
        both = {**{n: getattr(self.s2(), n) for n in Ste.fields},
                **{n: v for n in Ste.fields if (v := getattr(self.s1(), n))}}  # fmt: skip
        return Ste.build(**{**both, "config": 7, "mev": 1, **fields})


ABORT = Ste.build(v=1, config=0)
BYPASS = Ste.build(v=1, config=4, shcfg=1)
Case = tuple[Callable[[World], Ste | Cd], Callable[[World], Ste | Cd], bool, list[set[int]]]

# name: (old, new, hitless, words written before each synchronisation).
CASES: dict[str, Case] = {
    "bypass_to_abort": (lambda w: BYPASS, lambda w: ABORT, True, [{0}, {1}]),
    "abort_to_bypass": (lambda w: ABORT, lambda w: BYPASS, True, [{1}, {0}]),
    "cdtable_to_abort": (World.s1, lambda w: ABORT, True, [{0}, {1}]),
    "abort_to_cdtable": (lambda w: ABORT, World.s1, True, [{1}, {0}]),
    "cdtable_to_bypass": (World.s1, lambda w: BYPASS, True, [{1}, {0}, {1}]),
    "bypass_to_cdtable": (lambda w: BYPASS, World.s1, True, [{1}, {0}, {1}]),
    "cdtable_s1dss_change": (World.s1, lambda w: w.s1(s1dss=1, shcfg=1), True, [{1}]),
    "cdtable_s1dss_change back": (lambda w: w.s1(s1dss=1, shcfg=1), World.s1, True, [{1}]),
    "s1dssbypass_to_stebypass": (
        lambda w: w.s1(s1dss=1, shcfg=1), lambda w: BYPASS, True, [{0}, {1}],
    ),
    "stebypass_to_s1dssbypass": (
        lambda w: BYPASS, lambda w: w.s1(s1dss=1, shcfg=1), True, [{1}, {0}],
    ),
    "s2_to_abort": (World.s2, lambda w: ABORT, True, [{0}, {1, 2, 3}]),
    "abort_to_s2": (lambda w: ABORT, World.s2, True, [{1, 2, 3}, {0}]),
    "s2_to_bypass": (World.s2, lambda w: BYPASS, True, [{0}, {1, 2, 3}]),
    "bypass_to_s2": (lambda w: BYPASS, World.s2, True, [{1, 2, 3}, {0}]),
    "s1_to_s2": (World.s1, World.s2, True, [{1, 2, 3}, {0}, {1}]),
    "s2_to_s1": (World.s2, World.s1, True, [{1}, {0}, {1, 2, 3}]),
    "non_hitless": (
        World.s1, lambda w: w.s1(s1ctxptr=w.other_contexts, s1dss=1, shcfg=1), False,
        [{0}, {1}, {0}],
    ),
    "s1_to_s2_stall": (
        lambda w: w.s1(s1stalld=0, eats=0), lambda w: w.s2(s2s=1, eats=0), True,
        [{1, 2, 3}, {0}, {1}],
    ),
    "s2_to_s1_stall": (
        lambda w: w.s2(s2s=1, eats=0), lambda w: w.s1(s1stalld=0, eats=0), True,
        [{1}, {0}, {1, 2, 3}],
    ),
    "nested_s1dssbypass_to_s1bypass": (
        lambda w: w.nested(s1dss=1), lambda w: w.s2(eats=0), True, [{1}, {0}, {1}],
    ),
    "nested_s1bypass_to_s1dssbypass": (
        lambda w: w.s2(eats=0), lambda w: w.nested(s1dss=1), True, [{1}, {0}],
    ),
    "cd s1_clear": (lambda w: w.cd(w.root(PA1)), lambda w: Cd(), False, [{0}, {1, 3}]),
    "cd s1_clear, set": (lambda w: Cd(), lambda w: w.cd(w.root(PA1)), False, [{1, 3}, {0}]),
    "cd s1_change_asid": (
        lambda w: w.cd(w.root(PA1), asid=778), lambda w: w.cd(w.root(PA1), asid=1997), True, [{0}],
    ),
    "cd s1_change_asid back": (
        lambda w: w.cd(w.root(PA1), asid=1997), lambda w: w.cd(w.root(PA1), asid=778), True, [{0}],
    ),
    "cd sva_clear": (
        lambda w: w.cd(w.root(PA1), aset=0), lambda w: Cd(), False, [{0}, {1, 3}],
    ),
    "cd sva_clear, set": (
        lambda w: Cd(), lambda w: w.cd(w.root(PA1), aset=0), False, [{1, 3}, {0}],
    ),
    "cd sva_release": (
        lambda w: w.cd(w.root(PA1), aset=0),
        lambda w: w.cd(0, aset=0, epd0=1, t0sz=0), True, [{0}, {1}],
    ),
    "cd sva_release, take": (
        lambda w: w.cd(0, aset=0, epd0=1, t0sz=0),
        lambda w: w.cd(w.root(PA1), aset=0), True, [{1}, {0}],
    ),
}  # fmt: skip


class Stage:
    """One transition on a machine: writes, synchronises, and says what the device meets."""

    def __init__(self, world: World, old: Ste | Cd, new: Ste | Cd) -> None:
        self.world, self.machine = world, world.machine
        self.old, self.new = old.words, new.words
        self.is_ste = isinstance(new, Ste)
        self.kind = STE if self.is_ste else CD
        self.slot = world.slot if self.is_ste else world.contexts

    def reset(self, words: Words, caching: Caching) -> None:
        self.machine.smmu.config.caching = caching
        if not self.is_ste:
            ste = self.world.s1(s1cdmax=0)
            self.machine.memory.write(self.world.slot, bytes(ste))
        self.machine.memory.write_words(self.slot, words)
        self.machine.command(CmdCfgiSteRange.build(range=31))
        self.machine.events()

    def sync(self) -> None:
        if self.is_ste:
            self.machine.command(CmdCfgiSte.build(sid=SID, leaf=1))
        else:
            self.machine.command(CmdCfgiCd.build(sid=SID, ssid=0, leaf=1))

    def write(self, index: int, value: int) -> None:
        self.machine.memory.write64(self.slot + 8 * index, value)

    def met(self) -> tuple[object, ...]:
        """What a device sees: where it gets, or the event; and the tags of what it leaves."""
        found: list[object] = []
        for ssid in (None, 0, 3):
            outcome = self.machine.go(SID, DATA, ssid=ssid)
            name = outcome.event.name if outcome.event is not None else outcome.status
            found += [name, outcome.pa]
        stream = self.machine.smmu.config.stream(SID)
        if isinstance(stream, Stream) and stream.stage1:
            context = self.machine.smmu.config.context(SID, stream)
            found.append((stream.vmid, getattr(context, "asid", None)))
        self.machine.smmu.eventq.drop_uncommitted()
        return tuple(found)

    def settled(self, words: Words) -> tuple[object, ...]:
        self.reset(words, CACHING["none"])
        return self.met()


def stage_of(name: str) -> Stage:
    world = World()
    old, new, _, _ = CASES[name]
    return Stage(world, old(world), new(world))


def seen(
    stage: Stage, plan: list[list[tuple[int, int]]], caching: Caching, start: int
) -> Iterator[tuple[object, ...]]:
    """What the device meets if it comes after write number `start`, and from then on."""
    stage.reset(stage.old, caching)
    done = 0
    if start == 0:
        yield stage.met()
    for writes in plan:
        for index, value in writes:
            stage.write(index, value)
            done += 1
            if done >= start:
                yield stage.met()
        stage.sync()
        if done >= start:
            yield stage.met()


def everything_seen(stage: Stage, plan: list[list[tuple[int, int]]]) -> set[tuple[object, ...]]:
    """Over all ways to fetch early, and all moments at which the device may first come."""
    final = stage.settled(stage.new)
    words = sorted({index for writes in plan for index, _ in writes})
    total = sum(len(writes) for writes in plan)
    early = [
        sum(1 << index for index in some)
        for count in range(len(words) + 1)
        for some in combinations(words, count)
    ]
    rest = sum(1 << index for index in range(8) if index not in words)
    ways = [CACHING["none"], CACHING["normal"]]
    ways += [replace(CACHING["hostile"], early=mask | rest) for mask in early]
    found = set()
    for caching in ways:
        for start in range(total + 1):
            last = None
            for last in seen(stage, plan, caching, start):
                found.add(last)
            assert last == final
    return found


@pytest.mark.parametrize("name", CASES)
def test_words_and_synchronisations(name: str) -> None:
    """Each transition has the number of synchronisations, and the words, that Linux's has."""
    _, _, hitless, expected = CASES[name]
    stage = stage_of(name)
    plan = list(phases(stage.kind, stage.old, stage.new))
    assert [{index for index, _ in writes} for writes in plan] == expected
    state, stays = list(stage.old), True
    for writes in plan:
        for index, value in writes:
            state[index] = value
        stays = stays and state[0] != 0
    assert (stays and stage.old[0] != 0) == hitless
    assert tuple(state) == stage.new


@pytest.mark.parametrize("name", CASES)
def test_the_device_meets_old_or_new(name: str) -> None:
    """IHI 0070 §3.21.3, §3.21.3.1: no state in between is a third thing."""
    stage = stage_of(name)
    hitless = CASES[name][2]
    old, new = stage.settled(stage.old), stage.settled(stage.new)
    assert old != new
    allowed = {old, new}
    if not hitless:
        allowed.add(stage.settled((0,) * 8))
    found = everything_seen(stage, list(phases(stage.kind, stage.old, stage.new)))
    assert found <= allowed
    assert found >= {old, new}


@pytest.mark.parametrize("name", ["cdtable_to_bypass", "s1_to_s2", "non_hitless", "cd s1_clear"])
def test_a_careless_driver_is_caught(name: str) -> None:
    """All words at once and one synchronisation: some device meets a mixture."""
    stage = stage_of(name)
    allowed = {stage.settled(stage.old), stage.settled(stage.new), stage.settled((0,) * 8)}
    order = range(8) if name != "cd s1_clear" else (1, 3, 0)
    plan = [[(i, stage.new[i]) for i in order if stage.new[i] != stage.old[i]]]
    assert everything_seen(stage, plan) - allowed


@pytest.mark.parametrize("name", ["s1_to_s2", "cd sva_release"])
def test_a_driver_that_forgets_to_synchronise_is_caught(name: str) -> None:
    """All phases in their order, but one synchronisation at the end."""
    stage = stage_of(name)
    allowed = {stage.settled(stage.old), stage.settled(stage.new)}
    plan = list(phases(stage.kind, stage.old, stage.new))
    assert everything_seen(stage, [[w for writes in plan for w in writes]]) - allowed
