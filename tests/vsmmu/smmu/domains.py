# SPDX-License-Identifier: BSD-2-Clause
"""Domains, masters and their tables in memory, as a driver has them; see `driver`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vsmmu.arch.context import L1Cd
from vsmmu.memory import PAGE

from .machine import AF, RAM, RW_S1, RW_S2, Machine

MIB2 = 2 << 20
# Input pages, in two 2 MiB blocks. Stage 1 of nested domains maps them to one another.
BLOCKS = (0x4000_0000, 0x4020_0000)
PAGES = tuple(block + offset for block in BLOCKS for offset in (0, 0x1000, 0x1F_F000))
PAS = (0x8E00_0000, 0x8E20_0000, 0x8E40_0000)
SSIDS = (None, 1, 2)
ALL = (1 << 64) - 1
_NG, _RO1, _RO2 = 1 << 11, 1 << 7, 1 << 6
# What stage 2 maps to itself: the memory of tables.
_TABLES = 4 * MIB2


class Value(NamedTuple):
    """What a leaf gives a page: its output, whether it may be written, the range of the leaf."""

    output: int
    writable: bool
    low: int
    high: int


class Domain:
    """An address space; stage 1 with a `parent` has that stage 2 behind it.

    `pages` is what the tables in memory say of each page of PAGES.
    """

    def __init__(self, stage: int, tag: int, smmus: set[int], parent: Domain | None = None) -> None:
        self.stage = stage
        self.asid = tag if stage == 1 else 0
        self.vmid: int = tag if stage == 2 else parent.vmid if parent else 0
        self.smmus = smmus
        self.parent = parent
        self.root = 0
        self.pages: dict[int, Value | None] = {}
        self.leaves: dict[int, dict[int, int]] = {}
        self.upper: dict[int, int] = {}

    def build(self, machine: Machine) -> None:
        """Empty tables, a last-level one for each block."""
        self.root = machine.s2_root() if self.stage == 2 else machine.alloc(PAGE)
        self.pages = dict.fromkeys(PAGES)
        memory = machine.memory
        for block in BLOCKS:
            machine.map(self.root, block, 0, flags=0)
            middle = (memory.read64(self.root + 8 * (block >> 30)) or 0) & -PAGE
            self.upper[block] = middle + 8 * (block >> 21 & 511)
            table = (memory.read64(self.upper[block]) or 0) & -PAGE
            inside = [page for page in PAGES if page & -MIB2 == block]
            self.leaves[block] = {p: table + 8 * (p >> 12 & 511) for p in inside}
            for slot in self.leaves[block].values():
                memory.write64(slot, 0)
            memory.write64(self.upper[block], table | 3)
        if self.stage == 2:
            for address in range(RAM, RAM + _TABLES, MIB2):
                machine.map(self.root, address, address, size=MIB2, flags=AF | RW_S2)

    def flags(self, *, writable: bool) -> int:
        if self.stage == 2:
            return AF | (RW_S2 if writable else _RO2)
        return AF | _NG | RW_S1 | (0 if writable else _RO1)


class SteValue(NamedTuple):
    """What an STE says: "invalid", "abort", "bypass", "s2" with its domain, or "cds": a table of
    CDs, whose domains all have this parent."""

    kind: str
    domain: Domain | None = None


INVALID, ABORT, BYPASS = SteValue("invalid"), SteValue("abort"), SteValue("bypass")


class Master:
    """A device with a CD table that its StreamIDs share; `cds` are the domains of its CDs."""

    def __init__(self, smmu: int, sids: tuple[int, ...], *, two_level: bool) -> None:
        self.smmu = smmu
        self.sids = sids
        self.two_level = two_level
        self.ste = INVALID
        self.cds: dict[int, Domain | None] = {0: None, 1: None, 2: None}
        self.table = self.first = 0

    def build(self, machine: Machine) -> None:
        self.table = self.first = machine.alloc(64 << 6, 64 << 6)
        if self.two_level:
            self.first = machine.alloc(PAGE)
            machine.memory.write(self.first, bytes(L1Cd.build(v=1, l2ptr=self.table)))


# What a posted command does to what may be in use, when it is complete: called with its time.
Effect = Callable[[int], None]
