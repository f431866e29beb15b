# SPDX-License-Identifier: BSD-2-Clause
"""Which StreamIDs of a board occur more than once, and what that means.

The same id on several SMMUs is no conflict: a guest that gets devices behind two of them needs
vMasterIDs to tell them apart. The same (SMMU, StreamID) under several masters ties these together:
the SMMU cannot isolate one from another. Only enabled Arm SMMUs and enabled masters count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from dt_tools.platform import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dt_tools.platform import Master, Platform

# A hostile tree can make every id of every row its own case: report this many, name so many each.
MAX_GROUPS = 1_000
MAX_OWNERS = 64

Interval = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Repeated:
    """StreamIDs `first` to `last` on several SMMUs (full paths, sorted)."""

    first: int
    last: int
    smmus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """StreamIDs `first` to `last` of one SMMU under several masters (full paths, sorted)."""

    smmu: str
    first: int
    last: int
    masters: tuple[str, ...]


def intervals(master: Master) -> tuple[Interval, ...]:
    """The StreamIDs a master can use as (first, end, SMMU path); `end` is exclusive.

    A two-cell entry's mask (SMMUv2 stream matching) is not widened: its base id stands for it.
    """
    one = [(s.stream_id, s.stream_id + 1, s.smmu_path) for s in master.streams]
    rows = [(r.sid_base, r.sid_base + r.length, r.smmu_path) for r in master.maps if r.length]
    return tuple(one + rows)


def repeated(platform: Platform) -> tuple[Repeated, ...]:
    """StreamIDs that occur on several SMMUs, ascending; at most `MAX_GROUPS`."""
    spans = [(first, end, smmu) for first, end, smmu, _ in _used(platform)]
    return tuple(Repeated(*group) for group in islice(overlaps(spans), MAX_GROUPS))


def shared(platform: Platform) -> tuple[Shared, ...]:
    """(SMMU, StreamID) pairs under several masters, SMMUs in tree order; at most `MAX_GROUPS`."""
    spans: dict[str, list[Interval]] = {}
    for first, end, smmu, master in _used(platform):
        spans.setdefault(smmu, []).append((first, end, master))
    groups = (Shared(smmu.path, *group) for smmu in platform.smmus
              for group in overlaps(spans.get(smmu.path, ())))  # fmt: skip
    return tuple(islice(groups, MAX_GROUPS))


def together_with(platform: Platform) -> dict[str, tuple[str, ...]]:
    """For each master that shares a (SMMU, StreamID): the other masters, sorted."""
    others: dict[str, set[str]] = {}
    for group in shared(platform):
        for path in group.masters:
            others.setdefault(path, set()).update(group.masters)
    return {path: tuple(sorted(found - {path})) for path, found in others.items()}


def _used(platform: Platform) -> list[tuple[int, int, str, str]]:
    arm = {s.path for s in platform.smmus if s.kind != OTHER and s.status == "okay"}
    return [
        (*span, master.path)
        for master in platform.masters
        if master.status == "okay"
        for span in intervals(master)
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
