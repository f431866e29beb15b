# SPDX-License-Identifier: BSD-2-Clause
"""Invalidation of n pages with the commands that Linux sends (IHI 0070 §4.4.1).

With IDR3.RIL a range is cut into chunks (`driver.chunks`); without, it is one command for each
page, or one by ASID or VMID from as many pages as a table has entries. Exactly the range is gone:
once the tables are, pages of the range fault, and those beside it and of other ASIDs and VMIDs are
served as before.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.tlb import TLB_ENTRIES

from .driver import chunks, covered
from .machine import AF, RW_S1, RW_S2, Machine

NG = 1 << 11
MIB2 = 2 << 20
FIRST_S2 = 4
# In the middle of a table, and of one that starts a gigabyte.
BASES = (0x40_0012_3000, 0x40_4000_0000)
PA = 0x8800_0000
# pages: commands with ranges.
COUNTS = {1: 1, 16: 1, 31: 1, 33: 2, 63: 2, 64: 1, 256: 1, 512: 1, 511: 2, 1023: 2, 262144: 1}


def edges(spans: list[dict[str, int]]) -> set[int]:
    """First and last page of each command's range."""
    return {address & -PAGE for span in spans for address in covered(span)}


class Cache:
    """A machine with some pages of four address spaces in its TLB, all unmapped since.

    StreamIDs 1, 2: stage 1, ASIDs 1 and 2 with VMID 0; 3: stage 1, ASID 1 with VMID 9; 4 and 5:
    stage 2 with VMIDs 1 and 2.
    """

    def __init__(self, pages: set[int], features: Features | None = None, size: int = PAGE) -> None:
        self.machine = m = Machine(features)
        self.pages = sorted(pages)
        assert 5 * len(pages) <= TLB_ENTRIES
        self.roots: dict[int, int] = {}
        for sid, asid, vmid in ((1, 1, 0), (2, 2, 0), (3, 1, 9)):
            root = self.roots[sid] = m.alloc(PAGE)
            m.ste(sid, config=5, s1ctxptr=m.cd(ttb0=root, asid=asid), s2vmid=vmid)
        for sid, vmid in ((4, 1), (5, 2)):
            root = self.roots[sid] = m.s2_root()
            m.ste(sid, config=6, **m.s2_fields(root, s2vmid=vmid))
        for sid, root in self.roots.items():
            flags = AF | (RW_S1 | NG if sid < FIRST_S2 else RW_S2)
            for page in self.pages:
                m.map(root, page, PA, size=size, flags=flags)
            assert self.served(sid) == pages

    def unmap(self) -> None:
        """Take every table away."""
        for sid, root in self.roots.items():
            self.machine.memory.write(root, bytes(PAGE if sid < FIRST_S2 else 2 * PAGE))

    def served(self, sid: int) -> set[int]:
        found = {page for page in self.pages if self.machine.go(sid, page).status == "ok"}
        self.machine.events()
        return found

    def check(self, sid: int, gone: set[int]) -> None:
        """`gone` is what this stream has lost, and all that was dropped."""
        assert self.machine.smmu.counters["tlb.invalidated"] == len(gone)
        self.unmap()
        for other in range(1, 6):
            lost = gone if other == sid else set()
            assert self.served(other) == set(self.pages) - lost, other


def sampled(low: int, n: int, spans: list[dict[str, int]]) -> set[int]:
    """All pages of a short range, some of a long one, and those around it and at every edge."""
    high = low + n * PAGE
    found = set(range(low, high, PAGE * max(1, n // 1000)))
    for edge in edges(spans):
        found |= {edge - PAGE, edge, edge + PAGE}
    return found | {low - PAGE, low - MIB2, high, high + MIB2, high + n * PAGE}


def inside(pages: set[int], low: int, n: int) -> set[int]:
    return {page for page in pages if low <= page < low + n * PAGE}


@pytest.mark.parametrize("low", BASES)
@pytest.mark.parametrize("n", COUNTS)
def test_ranges_of_stage_1(n: int, low: int) -> None:
    spans = chunks(low, n * PAGE, ttl=3)
    assert len(spans) == COUNTS[n]
    cache = Cache(sampled(low, n, spans))
    cache.machine.command(*(CmdTlbiNhVa.build(asid=1, **span) for span in spans))
    cache.check(1, inside(set(cache.pages), low, n))


@pytest.mark.parametrize("n", COUNTS)
def test_ranges_of_stage_2(n: int) -> None:
    low = BASES[0]
    spans = chunks(low, n * PAGE, ttl=3)
    cache = Cache(sampled(low, n, spans))
    cache.machine.command(*(CmdTlbiS2Ipa.build(vmid=1, **span) for span in spans))
    cache.check(4, inside(set(cache.pages), low, n))


@pytest.mark.parametrize(("n", "commands"), [(512, 1), (1024, 1), (33 * 512, 2), (262144, 1)])
def test_ranges_of_blocks(n: int, commands: int) -> None:
    """Leaves of 2 MiB: the count is in pages all the same."""
    low = BASES[1]
    spans = chunks(low, n * PAGE, ttl=2)
    assert len(spans) == commands
    blocks = set(range(low - 2 * MIB2, low + n * PAGE + 2 * MIB2, MIB2))
    cache = Cache(blocks, size=MIB2)
    cache.machine.command(*(CmdTlbiNhVa.build(asid=1, **span) for span in spans))
    cache.check(1, inside(blocks, low, n))


def test_the_words_of_a_range() -> None:
    page, block = chunks(0xFFFF_F000, PAGE, ttl=3), chunks(0x4000_0000, MIB2, ttl=2)
    assert CmdTlbiNhVa.build(asid=1, **page[0]).words == (0x0001_0000_0000_0012, 0xFFFF_F701)
    assert [(s["scale"], s["num"], s["ttl"]) for s in block] == [(9, 0, 2)]


def without_ranges(low: int, n: int, asid: int) -> list[Command]:
    if n >= PAGE // 8:
        return [CmdTlbiNhAsid.build(asid=asid)]
    return [CmdTlbiNhVa.build(asid=asid, addr=low + i * PAGE, leaf=1) for i in range(n)]


@pytest.mark.parametrize("n", [1, 16, 33, 511, 512, 1023])
def test_without_ranges(n: int) -> None:
    low = BASES[0]
    cache = Cache(sampled(low, n, []), Features.default(aidr=1).replace(ril=0))
    commands = without_ranges(low, n, 1)
    assert len(commands) == (n if n < 512 else 1)
    for i in range(0, n, 64):
        cache.machine.command(*commands[i : i + 64])
    pages = set(cache.pages)
    cache.check(1, pages if n >= 512 else inside(pages, low, n))


@pytest.mark.parametrize(
    ("command", "sid"),
    [(CmdTlbiS12Vmall.build(vmid=1), 4), (CmdTlbiNhAll.build(vmid=9), 3)],
)
def test_a_vmid_as_a_whole(command: Command, sid: int) -> None:
    cache = Cache(sampled(BASES[0], 16, []))
    cache.machine.command(command)
    cache.check(sid, set(cache.pages))
