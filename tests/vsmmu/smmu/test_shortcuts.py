# SPDX-License-Identifier: BSD-2-Clause
"""What is quick answers as what is slow: shortcuts and plain walks against an SMMU without them.

Both SMMUs have the same memory contents and see the same program, so outcomes, events and
counters have to be the same, one by one.
"""

from __future__ import annotations

from random import Random

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features, Smmu

from .machine import AF, RAM, RW_S1, RW_S2, Machine

STREAMS, PAGES = 6, 24
MIB2 = 2 << 20
FEATURES = {
    "default": Features.default(),
    "everything": Features.everything().replace(btm=0),
}


def slowed(smmu: Smmu) -> Smmu:
    """The same SMMU, which takes no shortcut and no plain walk."""
    smmu._translator._shorten = lambda *_: None  # type: ignore[method-assign]
    smmu._walker.plain1 = lambda *_: None  # type: ignore[method-assign]
    smmu._walker.plain2 = lambda *_: None  # type: ignore[method-assign]
    return smmu


class Twin:
    """A machine with streams of every kind; two of one seed differ in nothing."""

    def __init__(self, seed: int, caching: str, features: Features) -> None:
        self.random = Random(seed)
        self.substreams = 3 if features.idr1.ssidsize else 1
        self.ssids = [None] * 5 + [0, 1, 3, 9] * (self.substreams - 1) + [1]
        self.httu, self.e0pd = 1 + bool(features.idr0.httu), 1 + features.idr3.e0pd
        self.machine = machine = Machine(features, caching=caching)
        self.root1, self.root2 = machine.alloc(PAGE), machine.s2_root()
        self.cds = machine.alloc(64 * 16, 64 * 16)
        machine.map(self.root2, RAM, RAM, size=1 << 30, flags=AF | RW_S2)
        self.pool = [self.access() for _ in range(40)]
        for sid in range(STREAMS):
            self.attach(sid)
        for index in range(4):
            self.context(index)
        for page in range(PAGES):
            self.map(page)

    def attach(self, sid: int) -> None:
        random, machine = self.random, self.machine
        config = random.choice([0, 4, 5, 5, 5, 6, 7, 7, 7])
        fields = machine.s2_fields(
            self.root2, s2vmid=random.randrange(2), s1cdmax=random.choice([0, self.substreams - 1]),
            s1dss=random.randrange(3), privcfg=random.choice([0, 0, 2, 3]),
            instcfg=random.choice([0, 0, 0, 2, 3]), s2ptw=random.randrange(2),
            s2ha=random.randrange(self.httu), s2hd=random.randrange(self.httu),
        )  # fmt: skip
        machine.ste(sid, config=config, s1ctxptr=self.cds, **fields)

    def context(self, index: int) -> None:
        random, httu = self.random, self.httu
        self.machine.cd(
            self.cds + 64 * index, ttb0=self.root1, asid=random.randrange(3),
            aset=random.randrange(2), ha=random.randrange(httu), hd=random.randrange(httu),
            wxn=random.random() < 0.1, t0sz=random.choice([25, 25, 25, 30]),
            e0pd0=random.randrange(4) < self.e0pd - 1,
            ttb1=self.root1, t1sz=25, epd1=random.randrange(2), tg1=2, tbi0=random.randrange(2),
            tbi1=random.randrange(2), v=random.random() < 0.9,
        )  # fmt: skip

    def map(self, page: int) -> None:
        random = self.random
        flags = random.choice([AF] * 7 + [0]) | random.choice([0, 1, 1, 1, 2, 3]) << 6 | 1 << 51
        flags |= random.choice([0, 0, 0, 1, 2, 3]) << 53 | random.randrange(2) << 11
        flags |= random.randrange(2) << 52
        target = random.choice([RAM + random.randrange(64) * PAGE] * 12 + [1 << 46])
        va = (page & 7) * PAGE + (page >> 3) * MIB2
        if random.random() < 0.1:
            # Whatever was there for the 2 MiB goes; the table that is lost stays unused.
            self.machine.map(self.root1, va & -MIB2, target & -MIB2, size=MIB2, flags=flags)
            return
        slot = self.level3(va)
        self.machine.memory.write64(slot, random.choice([target | flags | 3] * 6 + [0]))

    def level3(self, va: int) -> int:
        """Where the level 3 descriptor of `va` is, below a table that is made if need be."""
        memory, table = self.machine.memory, self.root1
        for shift in (30, 21):
            slot = table + 8 * (va >> shift & 511)
            entry = memory.read64(slot) or 0
            if entry & 3 != 3:
                entry = self.machine.alloc(PAGE) | 3 | self.random.choice([0, 0, 0, 1 << 62])
                memory.write64(slot, entry)
            table = entry & 0xFFFF_FFFF_F000
        return table + 8 * (va >> 12 & 511)

    def step(self) -> object:
        random, machine = self.random, self.machine
        kind = random.randrange(20)
        if kind == 0:
            self.attach(random.randrange(STREAMS))
        elif kind == 1:
            self.context(random.randrange(4))
        elif kind == 2:
            self.map(random.randrange(PAGES))
        elif kind in (3, 4, 5):
            machine.command(self.command())
            return machine.events()
        elif kind == 6 and random.random() < 0.1:
            machine.write("CR0", 0b1100)
            machine.write("CR0", 0b1101)
        else:
            access = random.choice(self.pool) if random.random() < 0.8 else self.access()
            return machine.smmu.translate(access), machine.smmu.translate(access)
        return None

    def access(self) -> Access:
        random = self.random
        page = random.randrange(PAGES)
        iova = (page & 7) * PAGE + (page >> 3) * MIB2 + random.randrange(PAGE)
        # The last ones are in the upper half, beyond it, and beyond 64 bits.
        iova += random.choice([0] * 16 + [-1 << 39] * 3 + [RAM, 1 << 39, 1 << 52, 1 << 56, 1 << 70])
        return Access(
            random.randrange(STREAMS), iova, random.random() < 0.4, random.random() < 0.1,
            random.random() < 0.2, random.choice(self.ssids),
        )  # fmt: skip

    def command(self) -> Command:
        random = self.random
        sid, vmid, asid = random.randrange(STREAMS), random.randrange(2), random.randrange(3)
        page = random.randrange(PAGES)
        va = (page & 7) * PAGE + (page >> 3) * MIB2
        return random.choice([
            CmdCfgiSte.build(ssec=0, sid=sid, leaf=asid & 1), CmdCfgiSteRange.build(range=31),
            CmdCfgiCd.build(ssec=0, sid=sid, ssid=asid), CmdCfgiCdAll.build(ssec=0, sid=sid),
            CmdTlbiNhAll.build(vmid=vmid), CmdTlbiNhAsid.build(vmid=vmid, asid=asid),
            CmdTlbiNhVa.build(vmid=vmid, asid=asid, addr=va),
            CmdTlbiNhVaa.build(vmid=vmid, addr=va), CmdTlbiNsnhAll.build(),
            CmdTlbiS2Ipa.build(vmid=vmid, addr=RAM), CmdTlbiS12Vmall.build(vmid=vmid),
        ])  # fmt: skip


@pytest.mark.parametrize("caching", ["none", "normal", "hostile"])
@pytest.mark.parametrize("features", FEATURES)
def test_a_quick_smmu_answers_as_a_slow_one(caching: str, features: str) -> None:
    taken = translated = 0
    for seed in range(4):
        quick, slow = (Twin(seed, caching, FEATURES[features]) for _ in range(2))
        slowed(slow.machine.smmu)
        for i in range(600):
            assert quick.step() == slow.step(), (seed, i)
            taken += len(quick.machine.smmu._derived)
            assert slow.machine.smmu._derived == {}
        assert quick.machine.smmu.counters == slow.machine.smmu.counters
        assert list(quick.machine.smmu.tlb) == list(slow.machine.smmu.tlb)
        translated += quick.machine.smmu.counters["txn.ok"]
    assert bool(taken) == (caching != "none")
    assert translated > 50


# One at a time, what makes a shortcut wrong.


def nested(features: Features | None = None, **cd: int) -> tuple[Machine, int, int]:
    """Stream 1, nested, with one page at 0x1000; the machine and both root tables."""
    machine = Machine(features)
    root1, root2 = machine.alloc(PAGE), machine.s2_root()
    machine.map(root2, RAM, RAM, size=1 << 30, flags=AF | RW_S2)
    machine.map(root1, 0x1000, RAM + PAGE, flags=AF | RW_S1 | 1 << 11)
    context = machine.cd(ttb0=root1, **cd)
    machine.ste(1, config=7, s1ctxptr=context, **machine.s2_fields(root2))
    return machine, root1, root2


def short(machine: Machine, **how: bool) -> None:
    """Take a shortcut for stream 1 and see that it is one."""
    for _ in range(2):
        assert machine.go(1, 0x1018, **how).pa == RAM + PAGE + 0x18
    assert len(machine.smmu._derived) == 1


def test_configuration_commands_end_shortcuts() -> None:
    machine, _, _ = nested()
    short(machine)
    machine.ste(1, config=0)
    assert machine.go(1, 0x1018).status == "ok"
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    assert machine.smmu._derived == {}
    assert machine.go(1, 0x1018).status == "abort"


@pytest.mark.parametrize("command", [CmdCfgiCd.build(sid=1), CmdCfgiCdAll.build(sid=1)])
def test_context_commands_end_shortcuts(command: Command) -> None:
    machine, _, _ = nested()
    short(machine)
    other = machine.alloc(PAGE)
    machine.map(other, 0x1000, RAM + 2 * PAGE)
    ste = machine.memory.read_words(machine.strtab + 64, 1)
    assert ste is not None
    machine.cd(ste[0] & 0xF_FFFF_FFFF_FFC0, ttb0=other, asid=2)
    assert machine.go(1, 0x1018).pa == RAM + PAGE + 0x18
    machine.command(command)
    assert machine.go(1, 0x1018).pa == RAM + 2 * PAGE + 0x18


def test_invalidation_ends_shortcuts() -> None:
    machine, root1, _ = nested()
    short(machine)
    machine.map(root1, 0x1000, RAM + 2 * PAGE)
    assert machine.go(1, 0x1018).pa == RAM + PAGE + 0x18
    machine.command(CmdTlbiNhVa.build(vmid=7, asid=1, addr=0x1000))
    assert machine.go(1, 0x1018).pa == RAM + 2 * PAGE + 0x18


def test_new_entries_of_another_size_end_shortcuts() -> None:
    """A block of global pages appears, and the next access finds it in the TLB."""
    machine, root1, _ = nested()
    short(machine)
    machine.map(root1, MIB2, RAM + MIB2, size=MIB2)
    for hits in (0, 1):
        before = machine.smmu.counters["tlb.hit"]
        assert machine.go(1, MIB2 + 8).pa == RAM + MIB2 + 8
        assert machine.smmu._derived or not hits
        assert machine.smmu.counters["tlb.hit"] - before >= hits


def test_disabling_ends_shortcuts() -> None:
    machine, _, _ = nested()
    short(machine)
    machine.write("CR0", 0b1100)
    assert machine.go(1, 0x1018).status == "bypass"
    machine.write("CR0", 0b1101)
    assert machine.go(1, 0x1018).status == "ok"


def test_addresses_out_of_range_take_no_shortcut() -> None:
    machine, _, _ = nested()
    short(machine)
    for iova in (0x1018 | 1 << 39, 0x1018 | 1 << 55, 0x1018 - (1 << 39), 0x1018 | 1 << 63):
        assert machine.go(1, iova).status == "fault", hex(iova)
    # The tag byte has no part in the second of these, and Python's has none in either.
    assert machine.go(1, 0x1018 | 1 << 64).status == "ok"


UPPER = 0x1018 - (1 << 39)


def both_halves(machine: Machine, root: int, **cd: int) -> None:
    """The CD of stream 1 again, with one table for both halves."""
    words = machine.memory.read_words(machine.strtab + 64, 1)
    assert words is not None
    at = words[0] & 0xF_FFFF_FFFF_FFC0
    machine.cd(at, ttb0=root, ttb1=root, t1sz=25, tg1=2, epd1=0, **cd)


def test_the_upper_half_has_a_range_of_its_own() -> None:
    machine, root1, _ = nested()
    both_halves(machine, root1)
    for _ in range(2):
        assert machine.go(1, UPPER).pa == RAM + PAGE + 0x18
    assert machine.go(1, UPPER & (1 << 56) - 1).status == "fault"
    assert machine.go(1, 0x1018 | 1 << 55).status == "fault"


def test_a_half_that_e0pd_closes_has_no_shortcut() -> None:
    machine, root1, _ = nested(Features.everything().replace(btm=0))
    both_halves(machine, root1, e0pd0=1)
    for _ in range(2):
        assert machine.go(1, UPPER).status == "ok"
        assert machine.go(1, 0x1018, priv=True).status == "ok"
        assert machine.go(1, 0x1018).status == "fault"


def test_a_write_after_a_shortcut_read_makes_the_page_dirty() -> None:
    machine, root1, _ = nested(Features.everything().replace(btm=0), ha=1, hd=1)
    machine.map(root1, 0x1000, RAM + PAGE, flags=AF | RW_S1 | 1 << 7 | 1 << 51)
    short(machine)
    for _ in range(2):
        assert machine.go(1, 0x1018, write=True).status == "ok"
    assert machine.smmu.counters["httu.dirty"] == 1


def test_output_addresses_beyond_the_size_are_not_plain() -> None:
    """IDR5.OAS 42 bits: the second walk has its permissions from the first."""
    machine = Machine(Features.default(oas=42))
    root = machine.s1_stream(1)
    machine.map(root, 0x1000, RAM + PAGE)
    assert machine.go(1, 0x1000).status == "ok"
    machine.map(root, 0x2000, 1 << 43)
    outcome = machine.go(1, 0x2000)
    assert outcome.event is not None
    assert outcome.event.name == "F_ADDR_SIZE"


def test_a_plain_walk_counts_its_reads() -> None:
    machine, _, root2 = nested()
    machine.map(root2, 0, RAM, flags=AF | RW_S2)
    machine.map(root2, PAGE, RAM, flags=AF | RW_S2)
    machine.ste(2, config=6, **machine.s2_fields(root2))
    reads = []
    for iova in (0, PAGE):
        before = machine.smmu.counters["walk.s2"]
        assert machine.go(2, iova).pa == RAM
        reads.append(machine.smmu.counters["walk.s2"] - before)
    assert reads == [3, 3]
