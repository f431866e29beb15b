# SPDX-License-Identifier: BSD-2-Clause
"""The walk of the usual case: 48-bit descriptors, all valid, in memory that was written.

`vsmmu.smmu.walk` walks everything; this gives the same answers in less time, or none. A walk is
plain when every descriptor is a table or a leaf as its level allows, in a page that is written,
with output addresses in range, and the leaf's permissions are known already: so nothing faults,
and nothing has to be stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.arch.pagetable import TABLE, VALID, S1Leaf, S2Leaf, TableDesc
from vsmmu.memory import PAGE, PAGE_SHIFT
from vsmmu.smmu.tlb import Entry, Tlb
from vsmmu.smmu.transaction import ALL_PERMS

if TYPE_CHECKING:
    from vsmmu.memory import Memory
    from vsmmu.smmu.regime import Stage1, Stage2, Table

CONTIG = S1Leaf.mask("contig")[0]
NOT_GLOBAL = S1Leaf.mask("ng")[0]
HIERARCHICAL = TableDesc.mask("pxntable", "uxntable", "aptable0", "aptable1")[0]
# What decides permissions and updates, of either stage.
DECIDES1 = S1Leaf.mask("ap1", "ap2", "af", "dbm", "pxn", "uxn")[0]
DECIDES2 = S2Leaf.mask("memattr", "s2ap_r", "s2ap_w", "af", "dbm", "xn0", "xn1")[0]
KIND = VALID | TABLE
# Index of a word in its page, from an address in words.
IN_PAGE = (PAGE >> 3) - 1
_new = tuple.__new__


class PlainWalk:
    """Walks that find nothing out of the ordinary.

    Args:
        memory: where tables are.
        tlb: takes the entries of stage 1.
        contiguous: leave leaves of contiguous groups to others.

    Attributes:
        reads1, reads2: descriptors read of stage 1 and of stage 2.
    """

    def __init__(self, memory: Memory, tlb: Tlb, *, contiguous: bool = False) -> None:
        self._memory = memory
        self._page = memory.page
        self._tlb = tlb
        self.contiguous = contiguous
        self.reads1 = self.reads2 = 0

    def plain1(
        self, regime: Stage1, table: Table, va: int, vmid: int, asid: int, aset: int
    ) -> Entry | None:
        """The entry behind `va` where there is no stage 2, kept in the TLB; None: not plain.

        The bits of all descriptors are collected, and looked at once where the walk ends.
        """
        if table.high_mask:
            return None
        page, words, next_mask = self._page, self._memory.words, table.next_mask
        address, seen = table.base, 0
        try:
            for shift, index_mask, leaf, below, oa, group, reads in table.steps:
                address += (va >> shift & index_mask) << 3
                # Memory.read64 of a page that was written.
                descriptor = words[page[address >> PAGE_SHIFT] + (address >> 3 & IN_PAGE)]
                kind = descriptor & KIND
                if kind == below:
                    address = descriptor & next_mask
                    seen |= descriptor
                    continue
                if kind != leaf:
                    return None
                key = descriptor & DECIDES1
                if seen & HIERARCHICAL and not table.had:
                    key |= seen & HIERARCHICAL
                perms = regime.memo.get(key)
                if (
                    perms is None
                    or ((seen | descriptor) & next_mask) >> regime.output_bits
                    or (group and descriptor & CONTIG and self.contiguous)
                ):
                    return None
                self.reads1 += reads
                pa = descriptor & oa
                entry = _new(Entry, (pa, (1 << shift) - 1, perms, ALL_PERMS, pa, False, 0))
                if self._tlb.capacity:
                    is_global = not descriptor & NOT_GLOBAL or regime.el2
                    self._tlb.add_stage1(
                        vmid, asid, aset, va, shift, shift, entry, is_global=is_global
                    )
                return entry
        except KeyError:
            pass
        return None

    def plain2(self, regime: Stage2, ipa: int) -> Entry | None:
        """The entry behind `ipa`; None: not plain."""
        table, page, words = regime.table, self._page, self._memory.words
        if ipa >> table.input_bits or table.high_mask:
            return None
        address, next_mask, seen = table.base, table.next_mask, 0
        try:
            for shift, index_mask, leaf, below, oa, group, reads in table.steps:
                address += (ipa >> shift & index_mask) << 3
                # Memory.read64 of a page that was written.
                descriptor = words[page[address >> PAGE_SHIFT] + (address >> 3 & IN_PAGE)]
                kind = descriptor & KIND
                if kind == below:
                    address = descriptor & next_mask
                    seen |= descriptor
                    continue
                perms = regime.memo.get(descriptor & DECIDES2)
                if (
                    kind != leaf
                    or perms is None
                    or ((seen | descriptor) & next_mask) >> regime.output_bits
                    or (group and descriptor & CONTIG and self.contiguous)
                ):
                    return None
                self.reads2 += reads
                offset = (1 << shift) - 1
                return _new(
                    Entry,
                    (descriptor & oa, offset, perms & ALL_PERMS, ALL_PERMS, ipa & ~offset,
                     perms > ALL_PERMS, 0),
                )  # fmt: skip
        except KeyError:
            pass
        return None
