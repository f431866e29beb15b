# SPDX-License-Identifier: BSD-2-Clause
"""The TLB against a set-valued one: what an architecture-legal cache may still answer (IHI 0070
§3.17, §4.4; Arm ARM D8.14).

`Legal` holds every translation that a cache may have taken from memory at any moment since the
last command that had to remove it. A stage 2 value may have met a stage 1 value at any time, so
combined ones are the product of both, and outlive CMD_TLBI_S2_IPA. An SMMU's answer has to be in
the set; after a command and its CMD_SYNC the set has shrunk to what memory says, so nothing stale
is served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vsmmu.arch.commands import (
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

from .machine import AF, RW_S1, RW_S2, Machine

MIB2 = 2 << 20
# Input pages: four of one 2 MiB block, and two elsewhere.
VAS = (0x40_0000, 0x40_1000, 0x4F_F000, 0x5F_F000, 0x60_0000, 0x8000_0000)
# What stage 1 maps them to: pages of one 2 MiB block of IPA space, which stage 2 may map as one.
IPAS = (0x1_2340_0000, 0x1_2340_1000, 0x1_234F_F000, 0x1_235F_F000, 0x1_2360_0000)
PAS = (0x8E00_0000, 0x8E20_0000, 0x8E40_0000)
NG = 1 << 11
INVALID = None


class First(NamedTuple):
    """A stage 1 value: who may use it, the descriptor's range, the output of the page."""

    space: tuple[str, int]
    low: int
    high: int
    output: int


class Second(NamedTuple):
    """A stage 2 value of a page."""

    low: int
    high: int
    output: int


@dataclass
class Stream:
    """A stream with stage 1, and where its tables are."""

    sid: int
    vmid: int
    asid: int
    aset: int
    nested: bool
    root: int = 0


@dataclass
class Legal:
    """Every value that a cache may hold, by (VMID, page)."""

    first: dict[tuple[int, int], set[First]] = field(default_factory=dict)
    second: dict[tuple[int, int], set[Second]] = field(default_factory=dict)
    combined: dict[tuple[int, int], set[First]] = field(default_factory=dict)

    def drop(self, vmids: set[int], spaces: object, low: int, high: int) -> None:
        """Stage 1 and combined values of these spaces (None is all) that [low, high] touches."""
        for held in (self.first, self.combined):
            for (vmid, _), values in held.items():
                if vmid in vmids:
                    values -= {
                        value for value in values
                        if (spaces is None or value.space in spaces)  # type: ignore[operator]
                        and value.low <= high and low <= value.high
                    }  # fmt: skip

    def drop2(self, vmids: set[int], low: int, high: int) -> None:
        for (vmid, _), values in self.second.items():
            if vmid in vmids:
                values -= {v for v in values if v.low <= high and low <= v.high}


WHOLE = (0, (1 << 64) - 1)


class CacheMachine(RuleBasedStateMachine):
    """Random maps, unmaps, commands and accesses; `legal` follows along."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        m = self.machine
        self.streams = [
            Stream(1, 7, 1, 0, True), Stream(2, 7, 2, 0, True), Stream(3, 7, 3, 1, True),
            Stream(4, 8, 1, 0, True), Stream(5, 9, 1, 0, False),
        ]  # fmt: skip
        self.roots2 = {7: m.s2_root(), 8: m.s2_root()}
        # Output and size of each page's leaf, as memory has it.
        self.memory1: dict[tuple[int, int], First | None] = {}
        self.memory2: dict[tuple[int, int], Second | None] = {}
        self.tables: dict[tuple[int, int, int], int] = {}
        for stream in self.streams:
            stream.root = m.alloc(PAGE)
            cd = m.cd(ttb0=stream.root, asid=stream.asid, aset=stream.aset)
            fields = {"s2vmid": stream.vmid}
            if stream.nested:
                fields = m.s2_fields(self.roots2[stream.vmid], s2vmid=stream.vmid)
            m.ste(stream.sid, config=7 if stream.nested else 5, s1ctxptr=cd, **fields)
            for va in VAS:
                self.memory1[stream.sid, va] = None
                # Tables exist from the start, and stay.
                m.map(stream.root, va, 0, flags=0)
                self.write1(stream, va, 0)
        for vmid, root in self.roots2.items():
            for ipa in range(0x8000_0000, 0x8000_0000 + 128 * PAGE, PAGE):
                m.map(root, ipa, ipa, flags=AF | RW_S2)
            for ipa in IPAS:
                self.memory2[vmid, ipa] = None
                m.map(root, ipa, 0, flags=0)
                self.write2(vmid, ipa, 0)
        self.legal = Legal()

    # Memory.

    def slot(self, root: int, address: int, level: int) -> int:
        table = root
        for here in (1, 2, 3):
            shift = 12 + 9 * (3 - here)
            index = address >> shift if here == 1 else address >> shift & 511
            if here == level:
                return table + 8 * index
            key = (root, here, address >> shift)
            if key not in self.tables:
                entry = self.machine.memory.read64(table + 8 * index)
                assert entry is not None
                self.tables[key] = entry & 0xFFFF_FFFF_F000
            table = self.tables[key]
        raise AssertionError

    def table_below(self, root: int, address: int) -> int:
        self.slot(root, address, 3)
        return self.tables[root, 2, address >> 21] | 3

    def write1(self, stream: Stream, va: int, value: int) -> None:
        self.machine.memory.write64(self.slot(stream.root, va, 3), value)

    def write2(self, vmid: int, ipa: int, value: int) -> None:
        self.machine.memory.write64(self.slot(self.roots2[vmid], ipa, 3), value)

    @rule(goal=st.integers(0, 3), flags=st.integers(0, 63))
    def map_many(self, goal: int, flags: int) -> None:
        """Something everywhere, so that there is much to serve."""
        for i in range(5):
            for j, va in enumerate(VAS):
                self.map1(i, va, (goal + i + j) % 4, bool(flags >> j & 1), 1)
        for vmid in (7, 8):
            for k, ipa in enumerate(IPAS):
                self.map2(vmid, ipa, (goal + vmid + k) % 3)
        self.access_all()

    @rule(
        stream=st.integers(0, 4), va=st.sampled_from(VAS), goal=st.integers(0, 4),
        is_global=st.booleans(), block=st.integers(0, 5),
    )  # fmt: skip
    def map1(self, stream: int, va: int, goal: int, is_global: bool, block: int) -> None:
        s = self.streams[stream]
        output = IPAS[goal] if s.nested else PAS[goal % 3]
        flags = AF | RW_S1 | (0 if is_global else NG)
        upper = self.slot(s.root, va, 2)
        memory = self.machine.memory
        space = ("g", s.aset) if is_global else ("a", s.asid)
        if block == 0 and goal < 4:
            base = output & -MIB2
            memory.write64(upper, base | flags | 1)
            low = va & -MIB2
            for page in VAS:
                if page & -MIB2 == low:
                    self.memory1[s.sid, page] = First(
                        space, low, low + MIB2 - 1, base | page & MIB2 - 1
                    )
            return
        if memory.read64(upper) != self.table_below(s.root, va):
            # Back from a block: its other pages are as the table has them.
            memory.write64(upper, self.table_below(s.root, va))
            for page in VAS:
                if page & -MIB2 == va & -MIB2:
                    self.write1(s, page, 0)
                    self.memory1[s.sid, page] = None
        self.write1(s, va, output | flags | 3)
        self.memory1[s.sid, va] = First(space, va, va + PAGE - 1, output)

    @rule(stream=st.integers(0, 4), va=st.sampled_from(VAS))
    def unmap1(self, stream: int, va: int) -> None:
        s = self.streams[stream]
        if self.machine.memory.read64(self.slot(s.root, va, 2)) == self.table_below(s.root, va):
            self.write1(s, va, 0)
            self.memory1[s.sid, va] = None

    @rule(vmid=st.sampled_from([7, 8]), ipa=st.sampled_from(IPAS), goal=st.integers(0, 3))
    def map2(self, vmid: int, ipa: int, goal: int) -> None:
        root, memory = self.roots2[vmid], self.machine.memory
        upper = self.slot(root, ipa, 2)
        flags = AF | RW_S2
        if goal == 3:
            low = ipa & -MIB2
            memory.write64(upper, PAS[0] | flags | 1)
            for page in IPAS:
                if page & -MIB2 == low:
                    self.memory2[vmid, page] = Second(low, low + MIB2 - 1, PAS[0] | page & MIB2 - 1)
            return
        if memory.read64(upper) != self.table_below(root, ipa):
            memory.write64(upper, self.table_below(root, ipa))
            for page in IPAS:
                if page & -MIB2 == ipa & -MIB2:
                    self.write2(vmid, page, 0)
                    self.memory2[vmid, page] = None
        self.write2(vmid, ipa, PAS[goal] | flags | 3)
        self.memory2[vmid, ipa] = Second(ipa, ipa + PAGE - 1, PAS[goal])

    @rule(vmid=st.sampled_from([7, 8]), ipa=st.sampled_from(IPAS))
    def unmap2(self, vmid: int, ipa: int) -> None:
        root = self.roots2[vmid]
        if self.machine.memory.read64(self.slot(root, ipa, 2)) == self.table_below(root, ipa):
            self.write2(vmid, ipa, 0)
            self.memory2[vmid, ipa] = None

    # What a cache may take in, now.

    @invariant()
    def learn(self) -> None:
        if not hasattr(self, "legal"):
            return
        for (vmid, ipa), second in self.memory2.items():
            if second is not None:
                self.legal.second.setdefault((vmid, ipa), set()).add(second)
        for stream in self.streams:
            for va in VAS:
                first = self.memory1[stream.sid, va]
                if first is not None:
                    self.legal.first.setdefault((stream.vmid, va), set()).add(first)
        nested = {stream.vmid for stream in self.streams if stream.nested}
        for (vmid, va), firsts in self.legal.first.items():
            combined = self.legal.combined.setdefault((vmid, va), set())
            for first in firsts:
                if vmid not in nested:
                    combined.add(first)
                for second in self.legal.second.get((vmid, first.output), ()):
                    combined.add(first._replace(output=second.output))

    # Commands, each with its CMD_SYNC.

    def send(self, command: Command) -> None:
        self.machine.command(command)

    @rule(vmid=st.integers(7, 9), asid=st.integers(1, 3), va=st.sampled_from(VAS))
    def nh_va(self, vmid: int, asid: int, va: int) -> None:
        self.send(CmdTlbiNhVa.build(vmid=vmid, asid=asid, addr=va, leaf=1))
        self.legal.drop({vmid}, {("a", asid), ("g", 0), ("g", 1)}, va, va + PAGE - 1)

    @rule(vmid=st.integers(7, 9), va=st.sampled_from(VAS), pages=st.integers(1, 32))
    def nh_vaa_range(self, vmid: int, va: int, pages: int) -> None:
        first = va - 8 * PAGE
        self.send(CmdTlbiNhVaa.build(vmid=vmid, addr=first, tg=1, num=pages - 1, scale=1, ttl=0))
        self.legal.drop({vmid}, None, first, first + pages * 2 * PAGE - 1)

    @rule(vmid=st.integers(7, 9), asid=st.integers(1, 3))
    def nh_asid(self, vmid: int, asid: int) -> None:
        self.send(CmdTlbiNhAsid.build(vmid=vmid, asid=asid))
        self.legal.drop({vmid}, {("a", asid)}, *WHOLE)

    @rule(vmid=st.integers(7, 9))
    def nh_all(self, vmid: int) -> None:
        self.send(CmdTlbiNhAll.build(vmid=vmid))
        self.legal.drop({vmid}, None, *WHOLE)

    @rule(vmid=st.integers(7, 9), ipa=st.sampled_from(IPAS))
    def s2_ipa(self, vmid: int, ipa: int) -> None:
        self.send(CmdTlbiS2Ipa.build(vmid=vmid, addr=ipa, leaf=1))
        self.legal.drop2({vmid}, ipa, ipa + PAGE - 1)

    @rule(vmid=st.integers(7, 9))
    def s12_vmall(self, vmid: int) -> None:
        self.send(CmdTlbiS12Vmall.build(vmid=vmid))
        self.legal.drop({vmid}, None, *WHOLE)
        self.legal.drop2({vmid}, *WHOLE)

    @rule()
    def nsnh_all(self) -> None:
        self.send(CmdTlbiNsnhAll.build())
        self.legal = Legal()

    # Accesses.

    @rule(streams=st.sets(st.integers(0, 4), min_size=1), order=st.permutations(VAS))
    def access(self, streams: set[int], order: list[int]) -> None:
        self.learn()
        for s in (self.streams[stream] for stream in sorted(streams)):
            for va in order:
                answers = self.answers(s, va)
                outcome = self.machine.go(s.sid, va)
                assert (outcome.pa if outcome.status == "ok" else INVALID) in answers
            self.machine.events()

    @rule()
    def access_all(self) -> None:
        self.access(set(range(5)), list(VAS))

    def answers(self, stream: Stream, va: int) -> set[int | None]:
        """What a legal SMMU may answer: None is a fault, which nothing caches."""
        spaces = (("a", stream.asid), ("g", stream.aset))
        held = self.legal.first.get((stream.vmid, va), set())
        firsts = {value for value in held if value.space in spaces}
        combined = self.legal.combined.get((stream.vmid, va), set())
        found: set[int | None] = {v.output for v in combined if v.space in spaces}
        if self.memory1[stream.sid, va] is None:
            found.add(INVALID)
        if stream.nested and any(
            self.memory2[stream.vmid, value.output] is None for value in firsts
            if (stream.vmid, value.output) in self.memory2
        ):  # fmt: skip
            found.add(INVALID)
        return found


CacheMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestCache = CacheMachine.TestCase


@pytest.mark.soak
def test_cache_soak() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    many = settings(
        max_examples=2000,
        stateful_step_count=80,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(CacheMachine, settings=many)
