# SPDX-License-Identifier: BSD-2-Clause
"""What an invalidation is meant for, and how much of what it dropped was something else's.

A hypervisor turns one guest's command into one that an SMMU can take, and that may name more: all
of a VMID for one page, all StreamIDs for one STE. An SMMU sees only what the command names. Whoever
issues it may state what it is meant for (`Smmu.intend`, `Smmu.broadcast_tlbi`): entries that are
dropped outside of that are over-invalidated. Where nothing is stated, what the command itself names
counts, and over-invalidated is what the caches drop beyond: other VMIDs under CR0.VMW, and the rest
of a stage 1 block that stage 2 splits.

Entries are told apart by their tags. What two owners share by having the same VMID and ASID is
never over-invalidated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from vsmmu.smmu.transaction import VA_MASK


class TlbScope(NamedTuple):
    """Translations that an invalidation is meant for; None leaves a tag out of account.

    Args:
        vmid: a tag as `vsmmu.smmu.tlb` has them.
        asid: of stage 1; a global entry belongs to it where `addresses` names it too.
        addresses: first and last: VAs of stage 1 entries, IPAs of stage 2 entries.
        stage: 1 for stage 1 and combined entries, 2 for stage 2.
    """

    vmid: int | None = None
    asid: int | None = None
    addresses: tuple[int, int] | None = None
    stage: int | None = None

    def has(self, vmid: int, space: int | None) -> bool:
        """Whether entries with these tags belong to it, the address apart.

        `space` is an ASID, negative for global entries, None for stage 2.
        """
        if self.vmid not in (None, vmid) or self.stage not in (None, 2 if space is None else 1):
            return False
        if self.asid is None or space == self.asid:
            return True
        return space is not None and space < 0 and self.addresses is not None


class ConfigScope(NamedTuple):
    """Configuration of the StreamIDs in [first, last], or one CD of each with `ssid`."""

    first: int
    last: int
    ssid: int | None = None

    def has_ste(self, sid: int) -> bool:
        """Whether an STE belongs to it."""
        return self.ssid is None and self.first <= sid <= self.last

    def has_l1std(self, split: int, index: int) -> bool:
        """Whether a level 1 descriptor of the stream table leads to one of its STEs."""
        return self.ssid is None and self.first >> split <= index <= self.last >> split

    def has_cds(self, sid: int, split: int, index: int) -> bool:
        """Whether a CD (`split` 0), or an L1CD that leads to 2**split CDs, belongs to it."""
        inside = self.ssid is None or self.ssid >> split == index
        return inside and self.first <= sid <= self.last


Intent = tuple[TlbScope | ConfigScope, ...]


class Cause(NamedTuple):
    """Why entries are dropped: the command or broadcast operation, and what it is meant for."""

    name: str
    intent: Intent | None = None


# What was dropped: VMID, space, log2 page size, pages.
Dropped = tuple[int, int | None, int, Collection[int]]


def tlb_outside(dropped: Iterable[Dropped], own: TlbScope, cause: Cause | None) -> int:
    """Entries of `dropped` that the cause was not meant for; `own` is what it names."""
    scopes: tuple[TlbScope, ...] = (own,)
    if cause is not None and cause.intent is not None:
        scopes = tuple(scope for scope in cause.intent if isinstance(scope, TlbScope))
    outside = 0
    for vmid, space, shift, pages in dropped:
        spans = [scope.addresses for scope in scopes if scope.has(vmid, space)]
        if None in spans:
            continue
        places = [(a[0] & VA_MASK, a[1] & VA_MASK) for a in spans if a is not None]
        ranges = [(first >> shift, last >> shift) for first, last in places]
        outside += sum(not any(low <= page <= high for low, high in ranges) for page in pages)
    return outside


def config_outside(
    intent: Intent,
    stes: Iterable[int],
    l1stds: Iterable[tuple[int, int]],
    cds: Iterable[tuple[int, int, int]],
) -> int:
    """Entries of the configuration caches that an intent does not have.

    Args:
        intent: what was stated.
        stes: StreamIDs.
        l1stds: (SPLIT, index).
        cds: (StreamID, 0, index) of CDs, (StreamID, split, index) of L1CDs.
    """
    scopes = [scope for scope in intent if isinstance(scope, ConfigScope)]
    outside = sum(not any(scope.has_ste(sid) for scope in scopes) for sid in stes)
    outside += sum(not any(scope.has_l1std(*key) for scope in scopes) for key in l1stds)
    return outside + sum(not any(scope.has_cds(*key) for scope in scopes) for key in cds)


def tally(counters: Counter[str], name: str, count: int, cause: Cause | None) -> None:
    """Add to a counter and to the one of the cause behind it; nothing for 0."""
    if count:
        counters[name] += count
        if cause is not None:
            counters[f"{name}.{cause.name}"] += count
