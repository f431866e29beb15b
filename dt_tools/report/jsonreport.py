# SPDX-License-Identifier: BSD-2-Clause
"""The report on a board as one JSON object, schema `vsmmu.inspect/1`.

Addresses, sizes, ids, masks and phandles are hexadecimal strings; counts and GIC interrupt ids are
numbers. A member that a node does not have is null. Boards go one object a line (JSON Lines).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dt_tools.platform import OTHER, SMMU_V3, Finding
from dt_tools.report.assign import verdicts
from dt_tools.report.streams import MAX_GROUPS, intervals, repeated, shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.platform import Interrupt, Master, Platform, Pmcg, Smmu
    from dt_tools.report.assign import Verdict
    from dt_tools.report.streams import Repeated, Shared

SCHEMA = "vsmmu.inspect/1"
# Properties of an SMMUv3 that tell of a defect or an extension of the implementation.
_QUIRKS = (
    "hisilicon,broken-prefetch-cmd",
    "cavium,cn9900-broken-page1-regspace",
    "nvidia,cmdqv",
    "msi-parent",
)


def inspect_report(platform: Platform) -> dict[str, Any]:
    """The whole report, in tree order throughout.

    Raises:
        DtbError: the tree asks for more work than the platform's limit.
    """
    judged = verdicts(platform)
    again, tied = repeated(platform), shared(platform)
    spans = _spans(platform)
    gic = platform.gic
    return {
        "schema": SCHEMA,
        "file": platform.source,
        "model": platform.tree.root.string("model"),
        "compatible": list(platform.tree.root.strings("compatible") or ()),
        "gic": None if gic is None else {"path": gic.path, "version": gic.version},
        "smmus": [
            _smmu(smmu, spans.get(smmu.path, [])) for smmu in platform.smmus if smmu.kind != OTHER
        ],
        "pmcgs": [_pmcg(pmcg) for pmcg in platform.pmcgs],
        "other_iommus": [
            {"path": s.path, "compatible": list(s.compatible), "status": s.status}
            for s in platform.smmus
            if s.kind == OTHER
        ],
        "masters": [_master(platform, verdict) for verdict in judged],
        "stream_ids": {
            "on_several_smmus": [_repeated(group) for group in again],
            "shared": [_shared(group) for group in tied],
        },
        "findings": [_finding(one) for one in findings(platform, again, tied)],
    }


def to_line(report: dict[str, Any]) -> str:
    """One report as one line of JSON, ASCII only, without the newline."""
    return json.dumps(report, ensure_ascii=True, separators=(", ", ": "))


def findings(
    platform: Platform, again: tuple[Repeated, ...], tied: tuple[Shared, ...]
) -> tuple[Finding, ...]:
    """What the tree's own findings and the report's parts come to, errors first."""
    found = [*platform.findings, *_smmu_findings(platform), *_stream_findings(again, tied)]
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda one: rank[one.severity]))


def _stream_findings(again: tuple[Repeated, ...], tied: tuple[Shared, ...]) -> Iterator[Finding]:
    for one in again:
        text = f"{_ids(one.first, one.last)}: on {len(one.smmus)} SMMUs, needs vMasterIDs"
        yield Finding("DT502", "note", one.smmus[0], text)
    for two in tied:
        text = f"{_ids(two.first, two.last)}: shared by {', '.join(two.masters)}; "
        yield Finding("DT503", "note", two.smmu, f"{text}assigned together")
    if MAX_GROUPS in (len(again), len(tied)):
        yield Finding("DT503", "warning", "/", f"StreamID lists end after {MAX_GROUPS} groups")


def _smmu_findings(platform: Platform) -> Iterator[Finding]:
    users: dict[str, int] = {}
    for master in platform.masters:
        if master.status == "okay":
            for path in {smmu for _, _, smmu in intervals(master)}:
                users[path] = users.get(path, 0) + 1
    for smmu in platform.smmus:
        if smmu.kind == OTHER:
            continue
        count = users.get(smmu.path, 0)
        if smmu.status != "okay" and count:
            text = f'has status "{smmu.status}" and {count} enabled masters behind it'
            yield Finding("DT104", "warning", smmu.path, text)
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


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _ids(first: int, last: int) -> str:
    return f"StreamID {first:#x}" if first == last else f"StreamIDs {first:#x}..{last:#x}"


def _interrupt(interrupt: Interrupt, name: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "kind": interrupt.kind,
        "number": interrupt.number or None,
        "flags": _hex(interrupt.flags) if interrupt.number else None,
        "controller": interrupt.controller_path,
        "reason": interrupt.reason,
    }


def _named(interrupts: tuple[Interrupt, ...], names: tuple[str, ...]) -> list[dict[str, Any]]:
    padded = (*names, *(None for _ in interrupts[len(names) :]))
    return [_interrupt(i, name) for i, name in zip(interrupts, padded, strict=False)]


def _spans(platform: Platform) -> dict[str, list[tuple[int, int, str]]]:
    """Per SMMU path: (first, end, master path) of all that sits behind it, enabled or not."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for master in platform.masters:
        for first, end, path in intervals(master):
            found.setdefault(path, []).append((first, end, master.path))
    return found


def _smmu(smmu: Smmu, spans: list[tuple[int, int, str]]) -> dict[str, Any]:
    last = max((end - 1 for _, end, _ in spans), default=None)
    return {
        "path": smmu.path,
        "compatible": list(smmu.compatible),
        "kind": smmu.kind,
        "status": smmu.status,
        "base": _hex(smmu.base),
        "size": _hex(smmu.size),
        "phandle": _hex(smmu.phandle),
        "iommu_cells": smmu.iommu_cells,
        "dma_coherent": smmu.dma_coherent,
        "interrupts": _named(smmu.interrupts, smmu.interrupt_names),
        "quirks": [name for name in _QUIRKS if name in smmu.node.props],
        "masters": len({path for _, _, path in spans}),
        "stream_id_first": _hex(min((first for first, _, _ in spans), default=None)),
        "stream_id_last": _hex(last),
        "stream_id_bits": None if last is None else last.bit_length(),
    }


def _pmcg(pmcg: Pmcg) -> dict[str, Any]:
    return {
        "path": pmcg.path,
        "status": pmcg.status,
        "base": _hex(pmcg.base),
        "size": _hex(pmcg.size),
    }


def _streams(master: Master) -> list[dict[str, Any]]:
    return [
        {"smmu": s.smmu_path, "stream_id": _hex(s.stream_id), "mask": _hex(s.mask)}
        for s in master.streams
    ]


def _map_rows(master: Master) -> list[dict[str, Any]]:
    return [
        {
            "rid_base": _hex(row.rid_base),
            "smmu": row.smmu_path,
            "sid_base": _hex(row.sid_base),
            "length": _hex(row.length),
            "mask": _hex(row.mask),
        }
        for row in master.maps
    ]


def _master(platform: Platform, verdict: Verdict) -> dict[str, Any]:
    master = verdict.master
    regs = platform.reg_of(master.node)
    names = master.node.strings("interrupt-names") or ()
    return {
        "path": master.path,
        "compatible": list(master.node.strings("compatible") or ()),
        "status": master.status,
        "pci": master.is_pci,
        "streams": _streams(master),
        "iommu_map": _map_rows(master),
        "iommu_map_mask": _hex(master.map_mask) if master.maps else None,
        "regs": None
        if regs is None
        else [{"base": _hex(reg.cpu_base), "size": _hex(reg.size)} for reg in regs],
        "interrupts": _named(platform.interrupts_of(master.node), names),
        "page_neighbours": list(platform.page_neighbours(master.node)),
        "assignable": verdict.answer,
        "reasons": [
            {"rule": r.rule, "effect": r.effect, "text": r.text, "others": list(r.others)}
            for r in verdict.reasons
        ],
    }


def _repeated(group: Repeated) -> dict[str, Any]:
    return {"first": _hex(group.first), "last": _hex(group.last), "smmus": list(group.smmus)}


def _shared(group: Shared) -> dict[str, Any]:
    return {
        "smmu": group.smmu,
        "first": _hex(group.first),
        "last": _hex(group.last),
        "masters": list(group.masters),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "path": finding.path,
        "text": finding.text,
    }
