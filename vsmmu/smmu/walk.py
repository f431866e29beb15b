# SPDX-License-Identifier: BSD-2-Clause
"""VMSAv8-64 translation table walks: stage 1, stage 2 and stage 1 through stage 2.

IHI 0070 §3.4 and §7.3; Arm ARM D8. A walk returns a `Fault` where it stops: for each level an
external abort, an invalid descriptor, an output address out of range, in that order, then the
access flag. Permissions are for the caller to check.

Limits: addresses have at most 48 bits; the contiguous hint is ignored; access flag and dirty
state are not updated (no HTTU); memory attributes matter only as Device or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vsmmu.arch.events import FAccess, FAddrSize, FPermission, FTranslation, FWalkEabt
from vsmmu.arch.pagetable import (
    G4K,
    G16K,
    G64K,
    TABLE,
    VALID,
    Granule,
    S1Leaf,
    S2Leaf,
    TableDesc,
    output_address,
)
from vsmmu.smmu.tlb import Entry, Tlb
from vsmmu.smmu.transaction import ALL_PERMS, EXEC, IN, PRIV_SHIFT, READ, TT, WRITE, Fault

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.memory import Memory

_AF = S1Leaf.mask("af")[0]
_NG = S1Leaf.mask("ng")[0]
_UNPRIV, _READ_ONLY = S1Leaf.mask("ap1")[0], S1Leaf.mask("ap2")[0]
_PXN, _UXN = S1Leaf.mask("pxn")[0], S1Leaf.mask("uxn")[0]
_PXNTABLE, _UXNTABLE = TableDesc.mask("pxntable")[0], TableDesc.mask("uxntable")[0]
_NO_UNPRIV_TABLE, _READ_ONLY_TABLE = TableDesc.mask("aptable0")[0], TableDesc.mask("aptable1")[0]
_HIERARCHICAL = TableDesc.mask("pxntable", "uxntable", "aptable0", "aptable1")[0]
_S2_READ, _S2_WRITE = S2Leaf.mask("s2ap_r")[0], S2Leaf.mask("s2ap_w")[0]
_S2_XN0, _S2_XN1 = S2Leaf.mask("xn0")[0], S2Leaf.mask("xn1")[0]
_LAST_LEVEL = 3

# Lowest address bit that each level indexes, by granule.
_SHIFTS = {g.name: tuple(g.shift(level) for level in range(4)) for g in (G4K, G16K, G64K)}


@dataclass(frozen=True, slots=True)
class Table:
    """Where a translation starts: first table, its level, the input bits that are translated.

    For stage 1, an input is in range when its `range_mask` bits are all equal to bit 55.
    """

    granule: Granule
    start_level: int
    input_bits: int
    base: int
    range_mask: int = 0
    had: bool = False


@dataclass(frozen=True, slots=True)
class Stage2:
    """A stage 2 regime as an STE sets it up."""

    table: Table
    output_bits: int
    affd: bool
    ptw: bool
    xnx: bool
    fwb: bool


@dataclass(frozen=True, slots=True)
class Stage1:
    """A stage 1 regime as a CD sets it up; a table is None where CD.EPDx disables it."""

    tables: tuple[Table | None, Table | None]
    output_bits: int
    affd: bool
    wxn: bool
    pan: bool


class Leaf(NamedTuple):
    """A block or page that stage 1 found."""

    address: int
    shift: int
    perms: int
    is_global: bool


class Walker:
    """Walks tables in memory, stage 2 through the TLB.

    Args:
        memory: where tables are.
        tlb: takes the stage 2 entries that walks find.
        counters: takes `walk.s1` and `walk.s2`, descriptors read.
    """

    def __init__(self, memory: Memory, tlb: Tlb, counters: Counter[str]) -> None:
        self._read64 = memory.read64
        self._tlb = tlb
        self._counters = counters

    def stage1(
        self, regime: Stage1, table: Table, va: int, stage2: Stage2 | None, vmid: int
    ) -> Leaf | Fault:
        """The leaf that translates `va`, which is in range of the table."""
        level, address, attributes = table.start_level, table.base, 0
        shifts = _SHIFTS[table.granule.name]
        index_mask = (1 << table.input_bits) - 1
        while True:
            shift = shifts[level]
            address += ((va & index_mask) >> shift) * 8
            if stage2 is not None:
                found = self.through_stage2(stage2, vmid, address, TT, READ)
                if isinstance(found, Fault):
                    return found
                address = found
            descriptor = self._read64(address)
            self._counters["walk.s1"] += 1
            if descriptor is None:
                return Fault(FWalkEabt, cls=TT, fetch=address)
            kind = _kind(descriptor, level, table.granule)
            if kind is None:
                return Fault(FTranslation)
            address = output_address(descriptor, table.granule.page_shift if kind else shift)
            if address >> regime.output_bits:
                return Fault(FAddrSize)
            if not kind:
                break
            if not table.had:
                attributes |= descriptor & _HIERARCHICAL
            index_mask = (1 << shift) - 1
            level += 1
        if not descriptor & _AF and not regime.affd:
            return Fault(FAccess)
        perms = stage1_perms(descriptor, attributes, wxn=regime.wxn, pan=regime.pan)
        return Leaf(address, shift, perms, not descriptor & _NG)

    def through_stage2(
        self, regime: Stage2, vmid: int, ipa: int, cls: int, need: int
    ) -> int | Fault:
        """The PA behind the IPA of an SMMU-originated read: a CD or a stage 1 descriptor."""
        entry = self.stage2(regime, vmid, ipa, cls)
        if isinstance(entry, Fault):
            return entry
        if not entry.perms & need or (regime.ptw and entry.device):
            return Fault(FPermission, s2=1, cls=cls, ipa=ipa)
        return entry.pa | ipa & entry.mask

    def stage2(self, regime: Stage2, vmid: int, ipa: int, cls: int = IN) -> Entry | Fault:
        """The stage 2 entry that translates `ipa`, from the TLB or from memory."""
        entry = self._tlb.find_stage2(vmid, ipa)
        if entry is not None:
            return entry
        found = self._walk_stage2(regime, ipa, cls)
        if isinstance(found, Fault):
            return found
        shift = found.mask.bit_length()
        self._tlb.add_stage2(vmid, ipa, shift, found)
        return found

    def _walk_stage2(self, regime: Stage2, ipa: int, cls: int) -> Entry | Fault:
        table = regime.table
        if ipa >> table.input_bits:
            return Fault(FTranslation, 1, cls, ipa)
        level, address = table.start_level, table.base
        shifts = _SHIFTS[table.granule.name]
        # At the first level the index also selects among concatenated tables.
        index_mask = (1 << table.input_bits) - 1
        while True:
            shift = shifts[level]
            address += ((ipa & index_mask) >> shift) * 8
            descriptor = self._read64(address)
            self._counters["walk.s2"] += 1
            if descriptor is None:
                return Fault(FWalkEabt, 1, cls, ipa, address)
            kind = _kind(descriptor, level, table.granule)
            if kind is None:
                return Fault(FTranslation, 1, cls, ipa)
            address = output_address(descriptor, table.granule.page_shift if kind else shift)
            if address >> regime.output_bits:
                return Fault(FAddrSize, 1, cls, ipa)
            if not kind:
                break
            index_mask = (1 << shift) - 1
            level += 1
        if not descriptor & _AF and not regime.affd:
            return Fault(FAccess, 1, cls, ipa)
        return Entry(
            pa=address,
            mask=(1 << shift) - 1,
            perms=stage2_perms(descriptor, xnx=regime.xnx),
            perms2=ALL_PERMS,
            device=is_device(S2Leaf.memattr.of((descriptor,)), fwb=regime.fwb),
        )


def _kind(descriptor: int, level: int, granule: Granule) -> bool | None:
    """Whether a descriptor is a table; None when it is invalid at its level."""
    if not descriptor & VALID:
        return None
    if level == _LAST_LEVEL:
        return False if descriptor & TABLE else None
    if descriptor & TABLE:
        return True
    return False if level in granule.block_levels else None


def stage1_perms(leaf: int, attributes: int, *, wxn: bool, pan: bool) -> int:
    """Permissions of a leaf below tables with these hierarchical attributes, EL1 regime."""
    unpriv = leaf & _UNPRIV and not attributes & _NO_UNPRIV_TABLE
    writable = not leaf & _READ_ONLY and not attributes & _READ_ONLY_TABLE
    rights = READ | WRITE if writable else READ
    low = rights if unpriv else 0
    high = 0 if pan and unpriv else rights
    # A page that the unprivileged can write is never executable for the privileged (D8.4).
    user_exec = not leaf & _UXN and not attributes & _UXNTABLE and not (wxn and low & WRITE)
    priv_exec = (
        not leaf & _PXN and not attributes & _PXNTABLE and not low & WRITE
        and not (wxn and writable)
    )  # fmt: skip
    low |= EXEC if user_exec else 0
    high |= EXEC if priv_exec else 0
    return low | high << PRIV_SHIFT


def stage2_perms(leaf: int, *, xnx: bool) -> int:
    """Permissions of a stage 2 leaf. Execution needs read permission too."""
    rights = (READ if leaf & _S2_READ else 0) | (WRITE if leaf & _S2_WRITE else 0)
    xn1, xn0 = bool(leaf & _S2_XN1), xnx and bool(leaf & _S2_XN0)
    # XN[1:0]: 00 all, 01 unprivileged only, 10 none, 11 privileged only.
    low = rights | (EXEC if rights & READ and not xn1 else 0)
    high = rights | (EXEC if rights & READ and xn1 == xn0 else 0)
    return low | high << PRIV_SHIFT


def is_device(memattr: int, *, fwb: bool) -> bool:
    """Whether stage 2 MemAttr alone makes Normal memory a Device (§3.13; FEAT_S2FWB)."""
    return not memattr & 0b0100 if fwb else not memattr & 0b1100
