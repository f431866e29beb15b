# SPDX-License-Identifier: BSD-2-Clause
"""Which StreamIDs of a board are used by whom, which more than once, and what that means.

The same id on several SMMUs is no conflict: a guest that gets devices behind two of them needs
vMasterIDs to tell them apart. Masters and SMMUs that are not enabled count there too, since a
later tree may enable them, but what is in use is told apart. The same (SMMU, StreamID) under
several masters ties these together: the SMMU cannot isolate one from another. There only enabled
Arm SMMUs and enabled masters count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import islice, product
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dt_tools.platform import OTHER, SMMU_V3

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from dt_tools.platform import Master, Platform, Smmu

# A hostile tree can make every id of every row its own case: report this many, name so many each.
MAX_GROUPS = 1_000
MAX_OWNERS = 64
# An SMMUv2 entry's mask stands for a run of ids for each setting of its higher bits; with more of
# these bits only the base id is counted.
_MASK_BITS = 6
# Behind the path of an SMMU: what is meant is its part that is not in use. No path has a NUL.
_OFF = "\0"

Interval = tuple[int, int, str]
_Group = TypeVar("_Group", "Repeated", "Shared")


class Repeated(NamedTuple):
    """StreamIDs `first` to `last` on several SMMUs (full paths, sorted).

    `in_use` are those of `smmus` that are enabled and have an enabled master with the ids;
    `others` are those that are not SMMUv3 and so cannot be behind a vSMMU.
    """

    first: int
    last: int
    smmus: tuple[str, ...]
    in_use: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def v3(self) -> tuple[str, ...]:
        """Those of `smmus` that are SMMUv3: two of them need vMasterIDs in one guest."""
        return tuple(path for path in self.smmus if path not in self.others)

    @property
    def in_use_v3(self) -> tuple[str, ...]:
        """Those of `in_use` that are SMMUv3."""
        return tuple(path for path in self.in_use if path not in self.others)


class Shared(NamedTuple):
    """StreamIDs `first` to `last` of one SMMU under several masters (full paths, sorted)."""

    smmu: str
    first: int
    last: int
    masters: tuple[str, ...]


class Entry(NamedTuple):
    """StreamIDs of one SMMU that one master can use.

    From `iommus` (`rid` is None), adjacent ids as one entry; or a row of `iommu-map`, of the
    requester ids from `rid` on. `mask` is an SMMUv2 entry's, whose other ids are not in
    `first` to `last`. `smmus` counts the SMMUs that have one of these ids, this one among them,
    and `in_use` those of them where it is in use, `v3` and `in_use_v3` count the SMMUv3 of both;
    `others` are the enabled masters that use one of
    them on this SMMU.
    """

    first: int
    last: int
    mask: int
    master: str
    status: str
    rid: int | None
    smmus: int = 1
    in_use: int = 0
    others: tuple[str, ...] = ()
    v3: int = 0
    in_use_v3: int = 0


class StreamMap(NamedTuple):
    """The StreamIDs of the SMMU at `smmu`, `entries` in ascending order.

    `holes` are the unused ids below the last used one as (first, last), at most `MAX_GROUPS`; None
    when a mask keeps them unknown.
    """

    smmu: str
    entries: tuple[Entry, ...]
    holes: tuple[tuple[int, int], ...] | None


def matching(platform: Platform) -> frozenset[str]:
    """Paths of the SMMUs that match StreamIDs under a mask: the Arm SMMUs before version 3."""
    return frozenset(s.path for s in platform.smmus if s.kind not in (OTHER, SMMU_V3))


def intervals(master: Master, masked: Collection[str] = ()) -> tuple[Interval, ...]:
    """The StreamIDs a master can use as (first, end, SMMU path); `end` is exclusive.

    The mask of a two-cell entry is applied for the SMMUs in `masked`. Of `iommu-map` only what
    some requester id reaches is told.
    """
    found: list[Interval] = []
    for stream in master.streams:
        mask = stream.mask if stream.smmu_path in masked else 0
        for first, end in _matched(stream.stream_id, mask):
            found.append((first, end, stream.smmu_path))
    for row, runs, _, _ in master.reach():
        move = row.sid_base - row.rid_base
        found += [(start + move, end + move, row.smmu_path) for start, end in runs]
    return tuple(found)


def _matched(base: int, mask: int) -> Iterator[tuple[int, int]]:
    """Runs (first, end) of the ids that equal `base` where `mask` has no bit."""
    low = (~mask & (mask + 1)) - 1
    high = [1 << at for at in range(low.bit_length(), mask.bit_length()) if mask >> at & 1]
    if not mask or len(high) > _MASK_BITS:
        yield base, base + 1
        return
    for bits in product(*((0, bit) for bit in high)):
        first = (base & ~mask) + sum(bits)
        yield first, first + low + 1


def repeated(platform: Platform) -> tuple[Repeated, ...]:
    """StreamIDs that occur on several SMMUs, ascending; at most `MAX_GROUPS`."""
    spans = {(first, end, smmu + _OFF * (not on)) for first, end, smmu, _, on in _used(platform)}
    old = matching(platform)
    found = []
    for first, last, owners in overlaps(spans):
        smmus = tuple(sorted({owner.removesuffix(_OFF) for owner in owners}))
        in_use = tuple(owner for owner in owners if not owner.endswith(_OFF))
        if len(smmus) > 1:
            others = tuple(path for path in smmus if path in old)
            found.append(Repeated(first, last, smmus, in_use, others))
    return tuple(found[:MAX_GROUPS])


def shared(platform: Platform) -> tuple[Shared, ...]:
    """(SMMU, StreamID) pairs under several masters, SMMUs in tree order; at most `MAX_GROUPS`."""
    spans: dict[str, list[Interval]] = {}
    for first, end, smmu, master, on in _used(platform):
        if on:
            spans.setdefault(smmu, []).append((first, end, master))
    groups = (Shared(smmu.path, *group) for smmu in platform.smmus
              for group in overlaps(spans.get(smmu.path, ())))  # fmt: skip
    return tuple(islice(groups, MAX_GROUPS))


def together_with(groups: Iterable[Shared]) -> dict[str, tuple[str, ...]]:
    """For each master of `shared` groups: the other masters, sorted."""
    others: dict[str, set[str]] = {}
    for group in groups:
        for path in group.masters:
            others.setdefault(path, set()).update(group.masters)
    return {path: tuple(sorted(found - {path})) for path, found in others.items()}


def _used(platform: Platform) -> list[tuple[int, int, str, str, bool]]:
    """(first, end, SMMU, master, whether both are enabled) for the Arm SMMUs."""
    arm = {s.path: s.status == "okay" for s in platform.smmus if s.kind != OTHER}
    masked = matching(platform)
    return [
        (*span, master.path, master.status == "okay" and arm[span[2]])
        for master in platform.masters
        for span in intervals(master, masked)
        if span[2] in arm
    ]


def overlaps(spans: Iterable[Interval]) -> list[tuple[int, int, tuple[str, ...]]]:
    """Maximal runs (first, last, owners) that two or more different owners cover, ascending.

    Of more than `MAX_OWNERS` owners only so many are named; after `MAX_GROUPS` it stops.
    """
    edges = sorted(
        edge for first, end, owner in spans for edge in ((first, 1, owner), (end, -1, owner))
    )
    active: Counter[str] = Counter()
    found: list[tuple[int, int, tuple[str, ...]]] = []
    before = 0
    for at, step, owner in edges:
        if len(found) > MAX_GROUPS:
            break
        if len(active) > 1 and at > before:
            _append(found, before, at - 1, tuple(sorted(islice(active, MAX_OWNERS))))
        active[owner] += step
        if not active[owner]:
            del active[owner]
        before = at
    return found


def _append(
    found: list[tuple[int, int, tuple[str, ...]]], first: int, last: int, owners: tuple[str, ...]
) -> None:
    if found and found[-1][1] == first - 1 and found[-1][2] == owners:
        first = found.pop()[0]
    found.append((first, last, owners))


# The map of each SMMU.


def stream_maps(
    platform: Platform, again: Sequence[Repeated], tied: Sequence[Shared]
) -> tuple[StreamMap, ...]:
    """A map for each Arm SMMU in tree order, of all masters whatever their status.

    `again` and `tied` are what `repeated` and `shared` found on the platform.
    """
    masked = matching(platform)
    entries: dict[str, list[Entry]] = {}
    for master in platform.masters:
        for path, entry in _entries(master, masked):
            entries.setdefault(path, []).append(entry)
    groups: dict[str, list[Shared]] = {}
    for group in tied:
        groups.setdefault(group.smmu, []).append(group)
    return tuple(
        _map(s, entries.get(s.path, []), again, groups.get(s.path, []))
        for s in platform.smmus
        if s.kind != OTHER
    )


def _entries(master: Master, masked: Collection[str]) -> Iterator[tuple[str, Entry]]:
    runs: list[tuple[str, int, int, int]] = []
    for stream in dict.fromkeys(master.streams):
        mask = stream.mask if stream.smmu_path in masked else 0
        first, last = stream.stream_id, stream.stream_id
        if mask & (mask + 1) == 0:  # one run: no bit above the lowest clear one
            first, last, mask = first & ~mask, first | mask, 0
        runs.append((stream.smmu_path, mask, first, last))
    joined: list[tuple[str, int, int, int]] = []
    for path, mask, first, last in sorted(set(runs)):
        if joined and not mask and joined[-1][:2] == (path, 0) and joined[-1][3] >= first - 1:
            before = joined.pop()
            joined.append((path, mask, before[2], max(last, before[3])))
        else:
            joined.append((path, mask, first, last))
    for path, mask, first, last in joined:
        yield path, Entry(first, last, mask, master.path, master.status, None)
    for row, reached, _, _ in master.reach():
        move = row.sid_base - row.rid_base
        for start, end in reached:
            yield (
                row.smmu_path,
                Entry(start + move, end + move - 1, 0, master.path, master.status, start),
            )


def _map(
    smmu: Smmu, entries: list[Entry], again: Sequence[Repeated], tied: Sequence[Shared]
) -> StreamMap:
    entries.sort(key=lambda e: (e.first, e.last, e.master))
    ends = [group.last for group in again], [group.last for group in tied]
    marked = []
    for entry in entries:
        groups = [g for g in _touched(again, ends[0], entry) if smmu.path in g.smmus]
        smmus = {path for group in groups for path in group.smmus} | {smmu.path}
        in_use = {path for group in groups for path in group.in_use}
        if smmu.status == entry.status == "okay":
            in_use.add(smmu.path)
        others: set[str] = set()
        old = {path for group in groups for path in group.others}
        if entry.status == "okay":
            others = {m for g in _touched(tied, ends[1], entry) for m in g.masters}
        marked.append(
            entry._replace(
                smmus=len(smmus),
                in_use=len(in_use),
                others=tuple(sorted(others - {entry.master})),
                v3=len(smmus - old) if groups else 0,
                in_use_v3=len(in_use - old) if groups else 0,
            )
        )
    return StreamMap(smmu.path, tuple(marked), _holes(entries))


def _touched(groups: Sequence[_Group], ends: Sequence[int], entry: Entry) -> Iterator[_Group]:
    """The groups that have an id of `entry`; the first `MAX_OWNERS` of them."""
    runs = _matched(entry.first, entry.mask) if entry.mask else ((entry.first, entry.last + 1),)
    for first, end in runs:
        at = bisect_left(ends, first)
        for group in groups[at : at + MAX_OWNERS]:
            if group.first >= end:
                break
            yield group


def _holes(entries: Sequence[Entry]) -> tuple[tuple[int, int], ...] | None:
    spans = []
    for entry in entries:
        runs = list(_matched(entry.first, entry.mask)) if entry.mask else []
        if entry.mask and len(runs) == 1:
            return None
        spans += runs or [(entry.first, entry.last + 1)]
    found, free = [], 0
    for first, end in sorted(spans):
        if first > free:
            found.append((free, first - 1))
        free = max(free, end)
    return tuple(found[:MAX_GROUPS])
