# SPDX-License-Identifier: BSD-2-Clause
"""VMSAv8-64 translation table walks: stage 1, stage 2 and stage 1 through stage 2.

IHI 0070 §3.4, §3.13 and §7.3; Arm ARM D8. A walk returns a `Fault` where it stops: for each level
an external abort, an invalid descriptor, an output address out of range, in that order, then the
access flag, then the permission, then the update of the descriptor (HTTU), which through stage 2
needs write permission there. Where nothing of that can happen, `vsmmu.smmu.plain_walk` answers.

The architecture leaves open whether the contiguous hint is followed: here only if asked for
(`Walker.contiguous`), and never where the output address contradicts it.

Limits: memory attributes matter only as Device or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vsmmu.arch.events import FAccess, FAddrSize, FPermission, FTranslation, FWalkEabt
from vsmmu.arch.pagetable import S1Leaf, S2Leaf
from vsmmu.memory import PAGE_SHIFT
from vsmmu.smmu.httu import stage1_update, stage2_update
from vsmmu.smmu.permissions import is_device, stage1_perms, stage2_perms
from vsmmu.smmu.plain_walk import (
    CONTIG,
    DECIDES1,
    DECIDES2,
    HIERARCHICAL,
    IN_PAGE,
    KIND,
    NOT_GLOBAL,
    PlainWalk,
)
from vsmmu.smmu.regime import Route, Stage1, Stage2, Step, Table
from vsmmu.smmu.tlb import CLEAN1, CLEAN2, Entry, Tlb
from vsmmu.smmu.transaction import ALL_PERMS, ANY_WRITE, IN, READ, TT, WRITE, Fault

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.memory import Memory

# Regimes and permissions may be imported from here too.
__all__ = [
    "Leaf",
    "Route",
    "Stage1",
    "Stage2",
    "Step",
    "Table",
    "Walker",
    "is_device",
    "stage1_perms",
    "stage2_perms",
]

_AF = S1Leaf.mask("af")[0]
_MEMATTR = S2Leaf.memattr
# Beside stage 2 permissions in its memo.
_DEVICE = ALL_PERMS + 1
_new = tuple.__new__


class Leaf(NamedTuple):
    """A block, page or contiguous group that stage 1 found.

    `perms` are granted, the write once the descriptor is dirty; `clean` says it is not yet.
    """

    address: int
    shift: int
    perms: int
    is_global: bool
    clean: bool = False


class Walker(PlainWalk):
    """Walks tables in memory, stage 2 through the TLB.

    Args:
        memory: where tables are.
        tlb: takes the entries that walks find.
        counters: takes at `settle` `walk.s1` and `walk.s2`, descriptors read; and at once
            `httu.written`, descriptors updated, and `httu.af`, `httu.dirty` by what changed.
        contiguous: keep a contiguous group as one entry, as the architecture allows.
    """

    def __init__(
        self, memory: Memory, tlb: Tlb, counters: Counter[str], *, contiguous: bool = False
    ) -> None:
        super().__init__(memory, tlb, contiguous=contiguous)
        self._read64 = memory.read64
        self._write64 = memory.write64
        self._counters = counters

    def settle(self) -> None:
        """Bring the counters up to date: a walk only adds to numbers of its own."""
        for name, count in (("walk.s1", self.reads1), ("walk.s2", self.reads2)):
            if count:
                self._counters[name] += count
        self.reads1 = self.reads2 = 0

    # What an access gets.

    def translate1(
        self,
        regime: Stage1,
        table: Table,
        va: int,
        stage2: Stage2 | None,
        vmid: int,
        asid: int,
        aset: int,
        need: int,
    ) -> Entry | Fault:
        """The entry that lets an access with `need` at `va` through both stages.

        Args:
            regime: the stage 1 regime.
            table: the half of it that `va` is in range of.
            va: input address, bits 55:0.
            stage2: the stage behind it, or None.
            vmid: the TLB tag (`tlb.tag`).
            asid: CD.ASID.
            aset: CD.ASET.
            need: one of READ, WRITE and EXEC, shifted for a privileged access.
        """
        entry = self._tlb.find_stage1(vmid, asid, aset, va)
        if entry is None and stage2 is None:
            entry = self.plain1(regime, table, va, vmid, asid, aset)
        if entry is None or (entry.clean and need & ANY_WRITE and entry.perms & need):
            found = self._fill(regime, table, va, stage2, vmid, asid, aset, need)
            if isinstance(found, Fault):
                return found
            entry = found
        if not entry.perms & need:
            return Fault(FPermission)
        if not entry.perms2 & need:
            return Fault(FPermission, s2=1, ipa=entry.ipa | va & entry.mask)
        return entry

    def translate2(self, regime: Stage2, vmid: int, ipa: int, need: int) -> Entry | Fault:
        """The entry that lets an access with `need` at `ipa` through stage 2."""
        entry = self.stage2(regime, vmid, ipa, IN, need)
        if isinstance(entry, Fault) or entry.perms & need:
            return entry
        return Fault(FPermission, s2=1, ipa=ipa)

    def _fill(
        self,
        regime: Stage1,
        table: Table,
        va: int,
        stage2: Stage2 | None,
        vmid: int,
        asid: int,
        aset: int,
        need: int,
    ) -> Entry | Fault:
        """Walk, and keep what was found even if it lacks the permission: it is a valid entry."""
        leaf = self.stage1(regime, table, va, stage2, vmid, need)
        if isinstance(leaf, Fault):
            return leaf
        pa, shift, perms, is_global, clean = leaf
        block = shift
        if stage2 is None:
            fields = pa, (1 << shift) - 1, perms, ALL_PERMS, pa, False, CLEAN1 if clean else 0
        else:
            if not perms & need:
                # A stage 1 permission fault comes before anything stage 2 has to say.
                return Fault(FPermission)
            ipa = pa | va & ((1 << shift) - 1)
            under = self.stage2(stage2, vmid, ipa, IN, need)
            if isinstance(under, Fault):
                return under
            shift = min(shift, under.mask.bit_length())
            offset = (1 << shift) - 1
            fields = (
                (under.pa | ipa & under.mask) & ~offset, offset, perms, under.perms,
                ipa & ~offset, under.device, (CLEAN1 if clean else 0) | under.clean,
            )  # fmt: skip
        entry = _new(Entry, fields)
        self._tlb.add_stage1(vmid, asid, aset, va, shift, block, entry, is_global=is_global)
        return entry

    # Stage 1.

    def stage1(
        self, regime: Stage1, table: Table, va: int, stage2: Stage2 | None, vmid: int, need: int = 0
    ) -> Leaf | Fault:
        """The leaf that translates `va`, which is in range of the table.

        Permissions are for the caller to check. What `need` asks for decides only the update of
        the descriptor; without it, the access flag alone is set.
        """
        found = self._descend1(regime, table, va, stage2, vmid)
        if isinstance(found, Fault):
            return found
        descriptor, slot, at, address, attributes, step = found
        key = descriptor & DECIDES1
        if attributes & HIERARCHICAL and not table.had:
            key |= attributes & HIERARCHICAL
        perms, clean = regime.memo.get(key), False
        if perms is None:
            changed, perms, clean = stage1_update(regime, key, key, need)
            if changed is None:
                return Fault(FPermission if regime.ha else FAccess)
            if changed != key:
                new = descriptor ^ changed ^ key
                fault = self._update(descriptor, new, slot, at, stage2, vmid)
                if fault is not None:
                    return fault
            elif not clean:
                regime.memo[key] = perms
        shift = step.shift
        if self.contiguous and step.group and descriptor & CONTIG:
            address, shift = _grouped(address, va, step, regime.output_bits)
        is_global = not descriptor & NOT_GLOBAL or regime.el2
        return _new(Leaf, (address, shift, perms, is_global, clean))

    def _descend1(
        self, regime: Stage1, table: Table, va: int, stage2: Stage2 | None, vmid: int
    ) -> tuple[int, int, int, int, int, Step] | Fault:
        """(descriptor, where, PA of that, output address, attributes of tables, step) of a leaf."""
        read64, limit, high_mask = self._read64, regime.output_bits, table.high_mask
        page, memory = self._page, self._memory
        address, attributes, reads = table.base, 0, 0
        try:
            for step in table.steps:
                shift, index_mask, leaf, below, oa, _, _ = step
                slot = at = address + ((va >> shift & index_mask) << 3)
                if stage2 is not None:
                    found = self.through_stage2(stage2, vmid, slot, TT, READ)
                    if isinstance(found, Fault):
                        return found
                    at = found
                # Memory.read64, unrolled: the call would be half of the cost of a level.
                start = page.get(at >> PAGE_SHIFT)
                descriptor = (
                    read64(at) if start is None else memory.words[start + (at >> 3 & IN_PAGE)]
                )
                reads += 1
                if descriptor is None:
                    return Fault(FWalkEabt, cls=TT, fetch=at)
                kind = descriptor & KIND
                if kind == below:
                    address = descriptor & table.next_mask
                    attributes |= descriptor
                elif kind == leaf:
                    address = descriptor & oa
                else:
                    return Fault(FTranslation)
                if high_mask:
                    address |= (descriptor & high_mask) << table.high_shift
                if address >> limit:
                    return Fault(FAddrSize)
                if kind != below:
                    return descriptor, slot, at, address, attributes, step
        finally:
            self.reads1 += reads
        raise AssertionError("the last level has no tables")

    def _update(
        self, old: int, new: int, slot: int, at: int, stage2: Stage2 | None, vmid: int
    ) -> Fault | None:
        """Store a stage 1 descriptor that the walk changed; it was read at `slot`, PA `at`.

        Stage 2 has to allow the write (§3.13.5).
        """
        if stage2 is not None:
            found = self.through_stage2(stage2, vmid, slot, TT, WRITE)
            if isinstance(found, Fault):
                return found
        return self._store(old, new, at, Fault(FWalkEabt, cls=TT, fetch=at))

    def _store(self, old: int, new: int, at: int, fault: Fault) -> Fault | None:
        if not self._write64(at, new):
            return fault
        self._counters["httu.written"] += 1
        changed = old ^ new
        if changed & _AF:
            self._counters["httu.af"] += 1
        if changed & ~_AF:
            self._counters["httu.dirty"] += 1
        return None

    # Stage 2.

    def through_stage2(
        self, regime: Stage2, vmid: int, ipa: int, cls: int, need: int
    ) -> int | Fault:
        """The PA behind the IPA of an SMMU-originated access: a CD or a stage 1 descriptor."""
        entry = self.stage2(regime, vmid, ipa, cls, need)
        if isinstance(entry, Fault):
            return entry
        if not entry.perms & need or (regime.ptw and entry.device):
            return Fault(FPermission, 1, cls, ipa, 0, need & WRITE)
        return entry.pa | ipa & entry.mask

    def stage2(
        self, regime: Stage2, vmid: int, ipa: int, cls: int = IN, need: int = 0
    ) -> Entry | Fault:
        """The stage 2 entry that translates `ipa`, from the TLB or from memory.

        Permissions are for the caller to check. What `need` asks for decides only the update of
        the descriptor; without it, the access flag alone is set.
        """
        entry = self._tlb.find_stage2(vmid, ipa)
        if entry is not None and not (entry.clean and need & ANY_WRITE and entry.perms & need):
            return entry
        plain = self.plain2(regime, ipa) if entry is None else None
        found = plain or self._walk_stage2(regime, ipa, cls, need)
        if not isinstance(found, Fault):
            self._tlb.add_stage2(vmid, ipa, found.mask.bit_length(), found)
        return found

    def _walk_stage2(self, regime: Stage2, ipa: int, cls: int, need: int) -> Entry | Fault:
        found = self._descend2(regime, ipa, cls)
        if isinstance(found, Fault):
            return found
        descriptor, at, address, step = found
        key = descriptor & DECIDES2
        perms, clean = regime.memo.get(key), False
        if perms is None:
            changed, perms, clean = stage2_update(regime, key, need)
            if changed is None:
                lacks = FPermission if regime.ha else FAccess
                return Fault(lacks, 1, cls, ipa, 0, need & WRITE)
            if is_device(_MEMATTR.of((key,)), fwb=regime.fwb):
                perms |= _DEVICE
            if changed != key:
                new = descriptor ^ changed ^ key
                fault = self._store(descriptor, new, at, Fault(FWalkEabt, 1, cls, ipa, at))
                if fault is not None:
                    return fault
            elif not clean:
                regime.memo[key] = perms
        shift = step.shift
        if self.contiguous and step.group and descriptor & CONTIG:
            address, shift = _grouped(address, ipa, step, regime.output_bits)
        offset = (1 << shift) - 1
        fields = (
            address, offset, perms & ALL_PERMS, ALL_PERMS, ipa & ~offset, perms > ALL_PERMS,
            CLEAN2 if clean else 0,
        )  # fmt: skip
        return _new(Entry, fields)

    def _descend2(self, regime: Stage2, ipa: int, cls: int) -> tuple[int, int, int, Step] | Fault:
        """(descriptor, its PA, output address, step) of a leaf."""
        table, read64, limit = regime.table, self._read64, regime.output_bits
        page, memory = self._page, self._memory
        if ipa >> table.input_bits:
            return Fault(FTranslation, 1, cls, ipa)
        address, high_mask, reads = table.base, table.high_mask, 0
        try:
            for step in table.steps:
                shift, index_mask, leaf, below, oa, _, _ = step
                at = address + ((ipa >> shift & index_mask) << 3)
                # Memory.read64, unrolled: the call would be half of the cost of a level.
                start = page.get(at >> PAGE_SHIFT)
                descriptor = (
                    read64(at) if start is None else memory.words[start + (at >> 3 & IN_PAGE)]
                )
                reads += 1
                if descriptor is None:
                    return Fault(FWalkEabt, 1, cls, ipa, at)
                kind = descriptor & KIND
                if kind == below:
                    address = descriptor & table.next_mask
                elif kind == leaf:
                    address = descriptor & oa
                else:
                    return Fault(FTranslation, 1, cls, ipa)
                if high_mask:
                    address |= (descriptor & high_mask) << table.high_shift
                if address >> limit:
                    return Fault(FAddrSize, 1, cls, ipa)
                if kind != below:
                    return descriptor, at, address, step
        finally:
            self.reads2 += reads
        raise AssertionError("the last level has no tables")


def _grouped(address: int, va: int, step: Step, limit: int) -> tuple[int, int]:
    """Address and log2 size of a contiguous group, or of the one descriptor that belies it.

    A group that reaches beyond the output size has descriptors that fault.
    """
    inside = (1 << step.group) - (1 << step.shift)
    if address & inside != va & inside or (address | inside) >> limit:
        return address, step.shift
    return address & ~inside, step.group
