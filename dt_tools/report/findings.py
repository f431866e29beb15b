# SPDX-License-Identifier: BSD-2-Clause
"""What is worth telling of a board as a whole: the tree's own findings and the report's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.platform import OTHER, SMMU_V3, Finding
from dt_tools.report.streams import MAX_GROUPS, intervals

# Rows of one iommu-map that are told.
MAX_ROWS = 16

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.report.facts import Facts
    from dt_tools.report.resources import PageMap


def findings(facts: Facts, pages: PageMap) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; each kind in tree order."""
    found = [
        *facts.platform.findings,
        *_smmu_findings(facts),
        *_stream_findings(facts),
        *_map_findings(facts),
        *_page_findings(pages),
    ]
    if facts.pages_cut:
        text = "the lists of page neighbours are not complete: too many devices share pages"
        found.append(Finding("DT205", "warning", "/", text))
    if facts.references.exhausted:
        text = "the lists of what devices depend on are not complete: too many references"
        found.append(Finding("DT201", "warning", "/", text))
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda one: rank[one.severity]))


def _stream_findings(facts: Facts) -> Iterator[Finding]:
    again, tied = facts.repeated, facts.shared
    for one in again:
        used = len(one.in_use_v3)
        if len(one.v3) < 2:
            continue
        need = "needs vMasterIDs" if used > 1 else f"in use on {used}; would need vMasterIDs"
        text = f"{_ids(one.first, one.last)}: on {len(one.v3)} SMMUs, {need}"
        yield Finding("DT502", "note", one.v3[0], text)
    for two in tied:
        text = f"{_ids(two.first, two.last)}: shared by {', '.join(two.masters)}; "
        yield Finding("DT503", "note", two.smmu, f"{text}assigned together")
    if MAX_GROUPS in (len(again), len(tied)):
        yield Finding("DT503", "warning", "/", f"StreamID lists end after {MAX_GROUPS} groups")


def _map_findings(facts: Facts) -> Iterator[Finding]:
    for master in facts.platform.masters:
        reach = master.reach()
        for one in [one for one in reach if one.behind][:MAX_ROWS]:
            first, length = one.row.rid_base, one.row.length
            what = "some of its ids are" if one.runs else "it is"
            text = f"iommu-map: row {first:#x}+{length:#x} overlaps earlier rows, which come first"
            yield Finding("DT505", "warning", master.path, f"{text}: {what} not reached")


def _page_findings(pages: PageMap) -> Iterator[Finding]:
    if len(pages.shared) >= MAX_GROUPS:
        text = f"the list of shared pages ends after {MAX_GROUPS} runs"
        yield Finding("DT205", "warning", "/", text)


def _smmu_findings(facts: Facts) -> Iterator[Finding]:
    users: dict[str, int] = {}
    for master in facts.platform.masters:
        if master.status == "okay":
            for path in {smmu for _, _, smmu in intervals(master)}:
                users[path] = users.get(path, 0) + 1
    for smmu in facts.platform.smmus:
        if smmu.kind == OTHER:
            continue
        count = users.get(smmu.path, 0)
        if smmu.status != "okay" and count:
            text = f'has status "{smmu.status}" and {count} enabled masters behind it'
            yield Finding("DT104", "note", smmu.path, text)
        if smmu.kind == SMMU_V3 and smmu.iommu_cells != 1:
            text = f"#iommu-cells is {smmu.iommu_cells}; an SMMUv3 has 1"
            yield Finding("DT406", "error", smmu.path, text)
        if smmu.base is None:
            text = "its reg does not translate to CPU addresses"
            yield Finding("DT202", "error", smmu.path, text)
        odd = [i for i in smmu.interrupts if i.kind not in ("SPI", "PPI")]
        if odd:
            text = f"{len(odd)} interrupts of {odd[0].controller_path}: {odd[0].reason}"
            yield Finding("DT302", "note", smmu.path, text)


def _ids(first: int, last: int) -> str:
    return f"StreamID {first:#x}" if first == last else f"StreamIDs {first:#x}..{last:#x}"
