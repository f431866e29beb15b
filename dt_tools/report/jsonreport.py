# SPDX-License-Identifier: BSD-2-Clause
"""The report on a board as one JSON object, schema `vsmmu.inspect/1`.

Addresses, sizes, ids, masks and phandles are hexadecimal strings; counts and GIC interrupt ids are
numbers. A member that a node does not have is null. Ranges are inclusive. Boards go one object a
line (JSON Lines).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dt_tools.json_text import json_text
from dt_tools.platform import OTHER
from dt_tools.report.assign import verdicts
from dt_tools.report.facts import Facts
from dt_tools.report.findings import findings
from dt_tools.report.resources import interrupt_map, page_map
from dt_tools.report.streams import stream_maps

if TYPE_CHECKING:
    from dt_tools.platform import Finding, Interrupt, Master, Platform, Pmcg, Smmu
    from dt_tools.report.assign import Reason, Verdict
    from dt_tools.report.references import Need
    from dt_tools.report.resources import InterruptMap, Line, PageMap
    from dt_tools.report.streams import Entry, Repeated, Shared, StreamMap
    from dt_tools.tree import Node

SCHEMA = "vsmmu.inspect/1"
# Properties of an SMMUv3 that tell of a defect or an extension of the implementation.
_QUIRKS = (
    "hisilicon,broken-prefetch-cmd",
    "cavium,cn9900-broken-page1-regspace",
    "nvidia,cmdqv",
    "msi-parent",
)


def inspect_report(platform: Platform, facts: Facts | None = None) -> dict[str, Any]:
    """The whole report, in tree order throughout; ids, interrupts and addresses ascending.

    Raises:
        DtbError: the tree asks for more work than the platform's limit.
    """
    facts = facts or Facts(platform)
    maps = stream_maps(platform, facts.repeated, facts.shared)
    pages = page_map(platform)
    users = {one.smmu: one for one in maps}
    gic = platform.gic
    return {
        "schema": SCHEMA,
        "file": platform.source,
        "model": platform.tree.root.string("model"),
        "compatible": list(platform.tree.root.strings("compatible") or ()),
        "gic": None if gic is None else {"path": gic.path, "version": gic.version},
        "smmus": [_smmu(smmu, users[smmu.path]) for smmu in platform.smmus if smmu.kind != OTHER],
        "pmcgs": [_pmcg(pmcg) for pmcg in platform.pmcgs],
        "other_iommus": [
            {"path": s.path, "compatible": list(s.compatible), "status": s.status}
            for s in platform.smmus
            if s.kind == OTHER
        ],
        "masters": [master_json(facts, verdict) for verdict in verdicts(platform, facts)],
        "stream_ids": {
            "maps": [_stream_map(one) for one in maps if one.entries],
            "on_several_smmus": [_repeated(group) for group in facts.repeated],
            "shared": [_shared(group) for group in facts.shared],
        },
        "interrupts": _interrupts(interrupt_map(facts.interrupts, facts.routed)),
        "mmio": _pages(pages),
        "findings": [finding_json(one) for one in findings(facts, pages)],
    }


def to_line(report: dict[str, Any]) -> str:
    """One report as one line of JSON, ASCII only, without the newline."""
    return json_text(report, separators=(", ", ": "))


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


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


def _smmu(smmu: Smmu, users: StreamMap) -> dict[str, Any]:
    last = max((entry.last | entry.mask for entry in users.entries), default=None)
    first = min((entry.first & ~entry.mask for entry in users.entries), default=None)
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
        "masters": len({entry.master for entry in users.entries}),
        "stream_id_first": _hex(first),
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
            "reached": [{"first": _hex(a), "last": _hex(b - 1)} for a, b in runs],
            "reason": "; ".join(
                text
                for said, text in (
                    (behind, "earlier rows come first"),
                    (masked, "iommu-map-mask leaves ids out"),
                )
                if said
            )
            or None,
        }
        for row, runs, behind, masked in master.reach()
    ]


def master_json(facts: Facts, verdict: Verdict) -> dict[str, Any]:
    """A member of `masters`."""
    master = verdict.master
    return {
        "path": master.path,
        "compatible": list(master.node.strings("compatible") or ()),
        "status": master.status,
        "pci": master.is_pci,
        "dma_coherent": "dma-coherent" in master.node.props,
        "streams": _streams(master),
        "iommu_map": _map_rows(master),
        "iommu_map_mask": _hex(master.map_mask) if master.maps else None,
        **node_json(facts, master.node),
        "assignable": verdict.answer,
        "reasons": reasons_json(verdict.reasons),
    }


def node_json(facts: Facts, node: Node) -> dict[str, Any]:
    """Registers, interrupts, page neighbours and dependencies of any node."""
    regs = facts.platform.reg_of(node)
    names = node.strings("interrupt-names") or ()
    return {
        "regs": None
        if regs is None
        else [{"base": _hex(reg.cpu_base), "size": _hex(reg.size)} for reg in regs],
        "interrupts": _named(facts.interrupts.get(node, ()), names),
        "interrupt_map": [_interrupt(one) for one in facts.routed.get(node, ())],
        "page_neighbours": list(facts.neighbours(node)),
        "page_closure": list(facts.page_closure(node)),
        "needs": [_need(need) for need in facts.needs(node)],
        "needed_by": [user.path for user in facts.references.outside_users(node)],
    }


def reasons_json(reasons: tuple[Reason, ...]) -> list[dict[str, Any]]:
    """The member `reasons` of a master."""
    return [
        {"rule": r.rule, "effect": r.effect, "text": r.text, "others": list(r.others)}
        for r in reasons
    ]


def _need(need: Need) -> dict[str, Any]:
    return {
        "path": need.path,
        "properties": list(need.properties),
        "via": need.via,
        "depth": need.depth,
        "users": need.users,
    }


def _stream_map(one: StreamMap) -> dict[str, Any]:
    holes = one.holes
    return {
        "smmu": one.smmu,
        "entries": [_entry(entry) for entry in one.entries],
        "unused": None
        if holes is None
        else [{"first": _hex(a), "last": _hex(b)} for a, b in holes],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    length = entry.last - entry.first
    return {
        "first": _hex(entry.first),
        "last": _hex(entry.last),
        "mask": _hex(entry.mask),
        "master": entry.master,
        "status": entry.status,
        "rid_first": _hex(entry.rid),
        "rid_last": None if entry.rid is None else _hex(entry.rid + length),
        "on_smmus": entry.smmus,
        "in_use_on": entry.in_use,
        "on_smmu_v3": entry.v3,
        "in_use_on_smmu_v3": entry.in_use_v3,
        "shared_with": list(entry.others),
    }


def _interrupts(found: InterruptMap) -> dict[str, Any]:
    return {
        "spis": [_line(line) for line in found.spis],
        "ppis": [_line(line) for line in found.ppis],
        "elsewhere": [
            {
                "controller": e.controller,
                "kind": e.kind,
                "reason": e.reason,
                "count": e.interrupts,
                "nodes": list(e.nodes),
            }
            for e in found.elsewhere
        ],
    }


def _line(line: Line) -> dict[str, Any]:
    owners = [
        {"path": o.path, "name": o.name, "flags": _hex(o.flags), "via": o.via} for o in line.owners
    ]
    return {"number": line.number, "owners": owners}


def _pages(pages: PageMap) -> dict[str, Any]:
    return {
        "regions": [
            {"base": _hex(r.base), "size": _hex(r.size), "path": r.path, "shares": list(r.shares)}
            for r in pages.regions
        ],
        "shared": [
            {
                "first": _hex(s.first),
                "last": _hex(s.last),
                "paths": list(s.paths),
                "nested": s.nested,
            }
            for s in pages.shared
        ],
        "untranslated": list(pages.untranslated),
        "memory": [
            {"base": _hex(base), "size": _hex(size), "path": path, "kind": kind}
            for base, size, path, kind in pages.memory
        ],
    }


def _repeated(group: Repeated) -> dict[str, Any]:
    return {
        "first": _hex(group.first),
        "last": _hex(group.last),
        "smmus": list(group.smmus),
        "in_use": list(group.in_use),
        "smmu_v3": list(group.v3),
    }


def _shared(group: Shared) -> dict[str, Any]:
    return {
        "smmu": group.smmu,
        "first": _hex(group.first),
        "last": _hex(group.last),
        "masters": list(group.masters),
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """A member of `findings`."""
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "path": finding.path,
        "text": finding.text,
    }
