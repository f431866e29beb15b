# SPDX-License-Identifier: BSD-2-Clause
"""Translation caches of one SMMU (IHI 0070 §3.17; commands §4.4).

An entry stays until a command removes it or room is needed; memory may say something else by
then. Stage 1 entries, combined with stage 2 where both translate, are found by StreamWorld and
VMID, ASID or global, input address and size; stage 2 entries by VMID, IPA and size.

A VMID means one stage 2 regime, or none: entries of streams that share a VMID and disagree are
not told apart (§3.17 leaves that to software).

Every method that takes a `vmid` takes a tag: the VMID in StreamWorld NS-EL1, WORLD_EL2 or
WORLD_E2H in the worlds that have none.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vsmmu.smmu.intent import Cause, Dropped, TlbScope, tally, tlb_outside
from vsmmu.smmu.transaction import ANY_WRITE, VA_MASK

# Entries of one SMMU. When the cache is full the oldest entry makes room.
TLB_ENTRIES = 8192

# Space of global entries; ASET=1 ones are at _GLOBAL - 1. They match any ASID (§3.17.1).
_GLOBAL = -1

# Tags of the StreamWorlds without a VMID, which has 16 bits (§3.17).
WORLD_EL2, WORLD_E2H = 1 << 16, 2 << 16

# Entry.clean: stages whose descriptor a write has yet to make dirty (HTTU, §3.13).
CLEAN1, CLEAN2 = 1, 2

# Contexts whose place in the indexes is remembered.
_ROWS = 1024

# {(log2 page size, log2 size to invalidate by): {address >> log2 page size: entry}}
Sizes = dict[tuple[int, int], dict[int, "Entry"]]


# VMID, space (None is stage 2), geometry, page, entry.
Key = tuple[int, int | None, tuple[int, int], int, "Entry"]


# What a lookup of one context tries in turn: log2 page size, pages.
Rows = tuple[tuple[int, dict[int, "Entry"]], ...]


class Entry(NamedTuple):
    """One translation.

    `mask` covers the offset in the page. `perms` are stage 1's, or a stage 2 entry's own, and
    `perms2` stage 2's (all, where it does not translate). `ipa` is the page's IPA. `device` is
    set where stage 2 gives a Device type. `clean` has the stages (CLEAN1, CLEAN2) in which a
    granted write has to walk first, to make the descriptor dirty.
    """

    pa: int
    mask: int
    perms: int
    perms2: int
    ipa: int = 0
    device: bool = False
    clean: int = 0

    @property
    def granted(self) -> int:
        """What an access gets without a walk."""
        perms = self.perms & self.perms2
        return perms & ~ANY_WRITE if self.clean else perms


class Tagged(NamedTuple):
    """An entry with all its tags; `vmid` tells the StreamWorld too.

    `asid` is None for a global entry, which has an `aset` instead; both are None at stage 2.
    `size` and `block` are log2 bytes: of the entry, and of the stage 1 page it is a part of.
    """

    stage: int
    vmid: int
    asid: int | None
    aset: int | None
    address: int
    size: int
    block: int
    entry: Entry


class Tlb:
    """The cache.

    Args:
        counters: takes `tlb.evicted`, `tlb.invalidated` and `tlb.over`, with the name of the cause
            behind; and at `settle` `tlb.hit`, `tlb.miss`, `tlb.inserted` and `tlb.replaced`.
        capacity: entries; 0 caches nothing.
        derived: what others keep that has rows in it; emptied when rows stop being those of
            their context.

    Attributes:
        vmw: low VMID bits that invalidations leave out of account (CR0.VMW, §3.17.6);
            lookups never do.
        watch: called with the key of each entry that is put in.
        scoped: called with what each invalidation names, whether it drops entries or not.
    """

    def __init__(
        self,
        counters: Counter[str],
        capacity: int = TLB_ENTRIES,
        derived: dict[Any, Any] | None = None,
    ) -> None:
        self.capacity = capacity
        self.size = 0
        self._counters = counters
        self.vmw = 0
        self.watch: Callable[[Key], object] | None = None
        self.scoped: Callable[[TlbScope], object] | None = None
        self.hits = self.misses = 0
        self._inserted = self._replaced = 0
        # Whether stage 2 ever split a stage 1 block.
        self._split = False
        self._derived: dict[Any, Any] = {} if derived is None else derived
        self._stage1: dict[int, dict[int, Sizes]] = {}
        self._stage2: dict[int, Sizes] = {}
        # Insertion order. May name entries that are gone; they are skipped.
        self._order: deque[Key] = deque()
        self._rows: dict[tuple[int, int, int] | int, Rows] = {}

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Tagged]:
        """Every entry, for inspection."""
        for vmid, spaces in self._stage1.items():
            for space, sizes in spaces.items():
                asid, aset = (space, None) if space >= 0 else (None, _GLOBAL - space)
                for (shift, block), pages in sizes.items():
                    for page, entry in pages.items():
                        yield Tagged(1, vmid, asid, aset, page << shift, shift, block, entry)
        for vmid, sizes in self._stage2.items():
            for (shift, block), pages in sizes.items():
                for page, entry in pages.items():
                    yield Tagged(2, vmid, None, None, page << shift, shift, block, entry)

    def settle(self) -> None:
        """Bring the counters up to date: a lookup only adds to a number of its own."""
        counts = (
            ("tlb.hit", self.hits), ("tlb.miss", self.misses),
            ("tlb.inserted", self._inserted), ("tlb.replaced", self._replaced),
        )  # fmt: skip
        for name, count in counts:
            if count:
                self._counters[name] += count
        self.hits = self.misses = self._inserted = self._replaced = 0

    # Lookup and insertion.

    def find_stage1(self, vmid: int, asid: int, aset: int, va: int) -> Entry | None:
        """The entry that translates `va` (bits 55:0) in this context."""
        rows = self._rows.get((vmid, asid, aset))
        for shift, pages in self.rows(vmid, asid, aset) if rows is None else rows:
            entry = pages.get(va >> shift)
            if entry is not None:
                self.hits += 1
                return entry
        self.misses += 1
        return None

    def find_stage2(self, vmid: int, ipa: int) -> Entry | None:
        """The stage 2 entry that translates `ipa`."""
        rows = self._rows.get(vmid)
        for shift, pages in self.rows2(vmid) if rows is None else rows:
            entry = pages.get(ipa >> shift)
            if entry is not None:
                self.hits += 1
                return entry
        self.misses += 1
        return None

    def rows(self, vmid: int, asid: int, aset: int) -> Rows:
        """Where the entries of a context are, until `derived` is emptied."""
        spaces = self._stage1.get(vmid, {})
        found = (spaces.get(asid, {}), spaces.get(_GLOBAL - aset, {}))
        rows = tuple((shift, pages) for sizes in found for (shift, _), pages in sizes.items())
        self._remember((vmid, asid, aset), rows)
        return rows

    def rows2(self, vmid: int) -> Rows:
        """Where the stage 2 entries of a VMID are, until `derived` is emptied."""
        rows = tuple((shift, pages) for (shift, _), pages in self._stage2.get(vmid, {}).items())
        self._remember(vmid, rows)
        return rows

    def _remember(self, key: tuple[int, int, int] | int, rows: Rows) -> None:
        if len(self._rows) >= _ROWS:
            self._rows.clear()
        self._rows[key] = rows

    def _reshaped(self) -> None:
        """Dictionaries of pages came or went."""
        self._rows.clear()
        self._derived.clear()

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
            self._split = self._split or block != shift
            sizes = self._stage1.setdefault(vmid, {}).setdefault(space, {})
            self._insert(sizes, (vmid, space, (shift, block), va >> shift, entry))

    def add_stage2(self, vmid: int, ipa: int, shift: int, entry: Entry) -> None:
        """Keep a stage 2 translation of 2**shift bytes."""
        if self.capacity:
            sizes = self._stage2.setdefault(vmid, {})
            self._insert(sizes, (vmid, None, (shift, shift), ipa >> shift, entry))

    # Invalidation. Each returns the number of entries dropped; `cause` says what is counted where.

    def invalidate_all(self, *, cause: Cause | None = None) -> int:
        """Everything but the EL2 worlds' (TLBI_NSNH_ALL)."""
        tags = [vmid for vmid in self._tags() if vmid < WORLD_EL2]
        return self._dropped(self._drop_tags(tags, stage2=True), TlbScope(), cause)

    def invalidate_el2(self, *, cause: Cause | None = None) -> int:
        """Everything of the EL2 worlds (TLBI_EL2_ALL)."""
        tags = [vmid for vmid in self._tags() if vmid >= WORLD_EL2]
        return self._dropped(self._drop_tags(tags, stage2=False), TlbScope(), cause)

    def invalidate_vmid(self, vmid: int, *, stage2: bool, cause: Cause | None = None) -> int:
        """All of a VMID's stage 1 and combined entries; stage 2's too if asked."""
        dropped = self._drop_tags(self._matching(vmid), stage2=stage2)
        return self._dropped(dropped, TlbScope(vmid), cause)

    def invalidate_asid(self, vmid: int, asid: int, *, cause: Cause | None = None) -> int:
        """An ASID's entries, without global ones."""
        dropped: list[Dropped] = []
        for match in self._matching(vmid):
            spaces = self._stage1.get(match)
            if spaces is not None and asid in spaces:
                dropped += _all_of(match, asid, spaces.pop(asid))
                if not spaces:
                    del self._stage1[match]
                self._reshaped()
        return self._dropped(dropped, TlbScope(vmid, asid), cause)

    def invalidate_va(
        self, vmid: int, asid: int | None, first: int, last: int, *, leaf: bool = False,
        cause: Cause | None = None,
    ) -> int:  # fmt: skip
        """Entries that translate an address in [first, last]: an ASID's and the global ones.

        With `asid` None those of every ASID. Only leaf entries are kept, so `leaf` spares nothing.
        """
        first, last = first & VA_MASK, last & VA_MASK
        dropped: list[Dropped] = []
        for match in self._matching(vmid):
            spaces = self._stage1.get(match)
            if spaces is None:
                continue
            for space in list(spaces) if asid is None else (asid, _GLOBAL, _GLOBAL - 1):
                sizes = spaces.get(space)
                if sizes is not None:
                    dropped += self._drop_range(match, space, sizes, first, last)
                    if not sizes:
                        del spaces[space]
            if not spaces:
                del self._stage1[match]
        return self._dropped(dropped, TlbScope(vmid, asid, (first, last)), cause)

    def invalidate_ipa(
        self, vmid: int, first: int, last: int, *, leaf: bool = False, cause: Cause | None = None
    ) -> int:
        """Stage 2 entries in [first, last]. Combined entries stay (§4.4.3)."""
        dropped: list[Dropped] = []
        for match in self._matching(vmid):
            sizes = self._stage2.get(match)
            if sizes is not None:
                dropped += self._drop_range(match, None, sizes, first, last)
                if not sizes:
                    del self._stage2[match]
        return self._dropped(dropped, TlbScope(vmid, None, (first, last)), cause)

    def _tags(self) -> list[int]:
        return list(self._stage1.keys() | self._stage2.keys())

    def _matching(self, vmid: int) -> list[int]:
        if not self.vmw or vmid >= WORLD_EL2:
            return [vmid]
        return [held for held in self._tags() if held >> self.vmw == vmid >> self.vmw]

    def _drop_tags(self, tags: list[int], *, stage2: bool) -> list[Dropped]:
        dropped: list[Dropped] = []
        for vmid in tags:
            for space, sizes in self._stage1.pop(vmid, {}).items():
                dropped += _all_of(vmid, space, sizes)
            if stage2:
                dropped += _all_of(vmid, None, self._stage2.pop(vmid, {}))
        if dropped:
            self._reshaped()
        return dropped

    def _drop_range(
        self, vmid: int, space: int | None, sizes: Sizes, first: int, last: int
    ) -> list[Dropped]:
        """Drop the entries that overlap [first, last], whatever their size."""
        dropped: list[Dropped] = []
        for (shift, block), pages in list(sizes.items()):
            low = (first >> block) << (block - shift)
            high = (((last >> block) + 1) << (block - shift)) - 1
            if low == high:
                victims = [low] if low in pages else []
            elif high - low >= len(pages):
                victims = [page for page in pages if low <= page <= high]
            else:
                victims = [page for page in range(low, high + 1) if page in pages]
            if not victims:
                continue
            for page in victims:
                del pages[page]
            dropped.append((vmid, space, shift, victims))
            if not pages:
                del sizes[shift, block]
                self._reshaped()
        return dropped

    # Room.

    def _insert(self, sizes: Sizes, key: Key) -> None:
        _, _, geometry, page, entry = key
        pages = sizes.get(geometry)
        if pages is None:
            pages = sizes[geometry] = {}
            self._reshaped()
        if page in pages:
            self._replaced += 1
        else:
            self._inserted += 1
            self.size += 1
        pages[page] = entry
        if self.watch is not None:
            self.watch(key)
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
            self._reshaped()
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

    def _dropped(self, dropped: list[Dropped], own: TlbScope, cause: Cause | None) -> int:
        if self.scoped is not None:
            self.scoped(own)
        count = 0
        for _, _, _, pages in dropped:
            count += len(pages)
        if count:
            self.size -= count
            tally(self._counters, "tlb.invalidated", count, cause)
            stated = cause is not None and cause.intent is not None
            # Nothing else makes a command drop more than it names.
            if stated or self.vmw or self._split:
                tally(self._counters, "tlb.over", tlb_outside(dropped, own, cause), cause)
        return count


def _all_of(vmid: int, space: int | None, sizes: Sizes) -> list[Dropped]:
    return [(vmid, space, shift, pages) for (shift, _), pages in sizes.items()]
