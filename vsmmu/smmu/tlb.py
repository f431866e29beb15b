# SPDX-License-Identifier: BSD-2-Clause
"""Translation caches of one SMMU (IHI 0070 §3.17; commands §4.4).

An entry stays until a command removes it or room is needed; memory may say something else by
then. Stage 1 entries, combined with stage 2 where both translate, are found by VMID, ASID or
global, input address and size; stage 2 entries by VMID, IPA and size.

A VMID means one stage 2 regime, or none: entries of streams that share a VMID and disagree are
not told apart (§3.17 leaves that to software).
"""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

# Entries of one SMMU. When the cache is full the oldest entry makes room.
TLB_ENTRIES = 8192

# Input addresses are compared without the tag byte: TBI makes it no part of the address.
VA_MASK = (1 << 56) - 1

# Space of global entries; ASET=1 ones are at _GLOBAL - 1. They match any ASID (§3.17.1).
_GLOBAL = -1

# {(log2 page size, log2 size to invalidate by): {address >> log2 page size: entry}}
Sizes = dict[tuple[int, int], dict[int, "Entry"]]


# VMID, space (None is stage 2), geometry, page, entry.
Key = tuple[int, int | None, tuple[int, int], int, "Entry"]


class Entry(NamedTuple):
    """One translation.

    `mask` covers the offset in the page. `perms` are stage 1's (all, for a stage 2 entry) and
    `perms2` stage 2's (all, where it does not translate). `ipa` is the page's IPA. `device` is
    set where stage 2 gives a Device type.
    """

    pa: int
    mask: int
    perms: int
    perms2: int
    ipa: int = 0
    device: bool = False


class Tlb:
    """The cache.

    Args:
        counters: takes `tlb.hit`, `tlb.miss`, `tlb.evicted` and `tlb.invalidated`.
        capacity: entries; 0 caches nothing.
    """

    def __init__(self, counters: Counter[str], capacity: int = TLB_ENTRIES) -> None:
        self.capacity = capacity
        self.size = 0
        self._counters = counters
        self._stage1: dict[int, dict[int, Sizes]] = {}
        self._stage2: dict[int, Sizes] = {}
        # Insertion order. May name entries that are gone; they are skipped.
        self._order: deque[Key] = deque()

    def __len__(self) -> int:
        return self.size

    # Lookup and insertion.

    def find_stage1(self, vmid: int, asid: int, aset: int, va: int) -> Entry | None:
        """The entry that translates `va` (bits 55:0) in this context."""
        spaces = self._stage1.get(vmid)
        if spaces is not None:
            for space in (asid, _GLOBAL - aset):
                sizes = spaces.get(space)
                if sizes is not None:
                    for (shift, _), pages in sizes.items():
                        entry = pages.get(va >> shift)
                        if entry is not None:
                            self._counters["tlb.hit"] += 1
                            return entry
        self._counters["tlb.miss"] += 1
        return None

    def find_stage2(self, vmid: int, ipa: int) -> Entry | None:
        """The stage 2 entry that translates `ipa`."""
        sizes = self._stage2.get(vmid)
        if sizes is not None:
            for (shift, _), pages in sizes.items():
                entry = pages.get(ipa >> shift)
                if entry is not None:
                    self._counters["tlb.hit"] += 1
                    return entry
        self._counters["tlb.miss"] += 1
        return None

    def add_stage1(
        self, vmid: int, asid: int, aset: int, va: int, shift: int, block: int, entry: Entry,
        *, is_global: bool,
    ) -> None:  # fmt: skip
        """Keep a translation of 2**shift bytes.

        `block` is log2 of the stage 1 page: where stage 2 splits it into smaller entries, one
        invalidation by address still removes all of them.
        """
        if self.capacity:
            space = _GLOBAL - aset if is_global else asid
            sizes = self._stage1.setdefault(vmid, {}).setdefault(space, {})
            self._insert(sizes, (vmid, space, (shift, block), va >> shift, entry))

    def add_stage2(self, vmid: int, ipa: int, shift: int, entry: Entry) -> None:
        """Keep a stage 2 translation of 2**shift bytes."""
        if self.capacity:
            sizes = self._stage2.setdefault(vmid, {})
            self._insert(sizes, (vmid, None, (shift, shift), ipa >> shift, entry))

    # Invalidation. Each returns the number of entries dropped.

    def invalidate_all(self) -> int:
        """Everything (TLBI_NSNH_ALL)."""
        dropped = self.size
        self._stage1.clear()
        self._stage2.clear()
        self._order.clear()
        return self._dropped(dropped)

    def invalidate_vmid(self, vmid: int, *, stage2: bool) -> int:
        """All of a VMID's stage 1 and combined entries; stage 2's too if asked."""
        spaces = self._stage1.pop(vmid, {})
        dropped = sum(_count(sizes) for sizes in spaces.values())
        if stage2:
            dropped += _count(self._stage2.pop(vmid, {}))
        return self._dropped(dropped)

    def invalidate_asid(self, vmid: int, asid: int) -> int:
        """An ASID's entries, without global ones."""
        spaces = self._stage1.get(vmid)
        if spaces is None:
            return 0
        dropped = _count(spaces.pop(asid, {}))
        if not spaces:
            del self._stage1[vmid]
        return self._dropped(dropped)

    def invalidate_va(self, vmid: int, asid: int | None, first: int, last: int) -> int:
        """Entries that translate an address in [first, last]: an ASID's and the global ones.

        With `asid` None those of every ASID.
        """
        spaces = self._stage1.get(vmid)
        if spaces is None:
            return 0
        wanted = list(spaces) if asid is None else [asid, _GLOBAL, _GLOBAL - 1]
        dropped = 0
        for space in wanted:
            sizes = spaces.get(space)
            if sizes is not None:
                dropped += _drop_range(sizes, first & VA_MASK, last & VA_MASK)
                if not sizes:
                    del spaces[space]
        if not spaces:
            del self._stage1[vmid]
        return self._dropped(dropped)

    def invalidate_ipa(self, vmid: int, first: int, last: int) -> int:
        """Stage 2 entries in [first, last]. Combined entries stay (§4.4.3)."""
        sizes = self._stage2.get(vmid)
        if sizes is None:
            return 0
        dropped = _drop_range(sizes, first, last)
        if not sizes:
            del self._stage2[vmid]
        return self._dropped(dropped)

    # Room.

    def _insert(self, sizes: Sizes, key: Key) -> None:
        _, _, geometry, page, entry = key
        pages = sizes.setdefault(geometry, {})
        self.size += page not in pages
        pages[page] = entry
        self._order.append(key)
        while self.size > self.capacity:
            self._evict()
        if len(self._order) > 4 * self.capacity:
            self._order = deque(key for key in self._order if self._installed(key))

    def _evict(self) -> None:
        key = self._order.popleft()
        if not self._installed(key):
            return
        vmid, space, geometry, page, _ = key
        sizes = self._stage2[vmid] if space is None else self._stage1[vmid][space]
        del sizes[geometry][page]
        if not sizes[geometry]:
            del sizes[geometry]
        if not sizes and space is None:
            del self._stage2[vmid]
        elif not sizes and space is not None:
            del self._stage1[vmid][space]
            if not self._stage1[vmid]:
                del self._stage1[vmid]
        self.size -= 1
        self._counters["tlb.evicted"] += 1

    def _installed(self, key: Key) -> bool:
        vmid, space, geometry, page, entry = key
        sizes = self._stage2.get(vmid) if space is None else self._stage1.get(vmid, {}).get(space)
        return sizes is not None and sizes.get(geometry, {}).get(page) is entry

    def _dropped(self, count: int) -> int:
        self.size -= count
        self._counters["tlb.invalidated"] += count
        return count


def _count(sizes: Sizes) -> int:
    return sum(len(pages) for pages in sizes.values())


def _drop_range(sizes: Sizes, first: int, last: int) -> int:
    """Drop the entries that overlap [first, last], whatever their size."""
    dropped = 0
    for (shift, block), pages in list(sizes.items()):
        low = (first >> block) << (block - shift)
        high = (((last >> block) + 1) << (block - shift)) - 1
        if high - low >= len(pages):
            victims = [page for page in pages if low <= page <= high]
        else:
            victims = [page for page in range(low, high + 1) if page in pages]
        for page in victims:
            del pages[page]
        dropped += len(victims)
        if not pages:
            del sizes[shift, block]
    return dropped
