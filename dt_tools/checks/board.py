# SPDX-License-Identifier: BSD-2-Clause
"""Rules about the host's tree alone.

A device that cannot be assigned is no mistake of the board: what only matters to a guest that gets
the device is a note here, and an error where a configuration asks for it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from dt_tools.checks.devices import DT101, DT104, DT205, DT206, DT302
from dt_tools.checks.references import references
from dt_tools.checks.resources import DT202
from dt_tools.checks.streams import DT502, DT503
from dt_tools.checks.view import MAX_NAMED, named
from dt_tools.platform import OTHER, SMMU_V3, status_of
from dt_tools.report.streams import repeated, shared
from dt_tools.rules import Diagnosis, Severity, rule
from dt_tools.tree import reg_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.checks.view import Board
    from dt_tools.platform import Master

DT401 = rule(
    "DT401",
    "error",
    "a phandle names nothing, or a node of another kind",
    "Whoever follows the phandle fails or finds the wrong provider: the device never probes, or"
    " its DMA goes where nobody expects. In a partial tree only what stands in it can be named;"
    " a phandle copied from the host names whatever the guest has under that number.",
    "/soc/dma@60020000: iommus: <0xf0> is /soc/serial@70000000, not an IOMMU",
)
DT403 = rule(
    "DT403",
    "error",
    "two nodes have one phandle",
    "Each reference to it finds the first of the two, whichever was meant.",
    "/soc/clock@1000: phandle 0x7 is /soc/clock@0's too",
)
DT405 = rule(
    "DT405",
    "error",
    "iommus is not a list of <phandle ids>",
    "The rest of the list is not read, so the device's other streams have no translation.",
    "/soc/dma@60020000: iommus: /soc/iommu@50000000 takes 1 cells, 0 left",
)
DT406 = rule(
    "DT406",
    "warning",
    "an IOMMU without a valid #iommu-cells",
    "Nobody knows how long an entry of iommus is; 1 is assumed.",
    "/soc/iommu@50000000: no valid #iommu-cells; 1 is assumed",
)
DT505 = rule(
    "DT505",
    "error",
    "iommu-map does not say one StreamID for each requester id",
    "A function whose id no row has is not translated; an id in two rows gets the first one's "
    "StreamID; rows that do not fit the mask or the cells are refused by the operating system. "
    "In a partial tree each StreamID that a row comes to has to be the guest's.",
    "/soc/pcie@40000000: iommu-map: id base 0x200 has bits outside iommu-map-mask 0x1ff",
)

_FINDINGS = {rule_.id: rule_ for rule_ in (DT401, DT403, DT405, DT406, DT505)}
_SEVERITIES: dict[str, Severity] = {"error": "error", "warning": "warning", "note": "note"}
_FIXES = {
    "DT401": "name the provider by its own phandle",
    "DT403": "give each node a phandle of its own",
    "DT405": "write one <phandle ids> entry for each stream, as #iommu-cells counts",
    "DT406": "give the IOMMU its #iommu-cells (1 for SMMUv3)",
    "DT505": "write rows of <id-base phandle StreamID-base length> that do not overlap",
}


def check(board: Board) -> Iterator[Diagnosis]:
    """Everything about the host alone."""
    for found in board.platform.findings:
        if found.rule in _FINDINGS:
            fix, severity = _FIXES[found.rule], _SEVERITIES.get(found.severity, "warning")
            yield _FINDINGS[found.rule].at(found.path, found.text, fix, severity=severity)
    yield from _smmus(board)
    yield from _dangling(board)
    yield from _marked(board)
    yield from _smmus_off(board)
    told = {found.path for found in board.platform.findings if "overlap" in found.text}
    for master in board.platform.masters:
        yield from _rows(master, overlaps=master.path not in told)
    yield from _streams(board)
    for master in board.platform.masters:
        if _behind_smmu(board, master):
            yield from _registers(board, master)


def _smmus(board: Board) -> Iterator[Diagnosis]:
    """What an SMMU lacks; `vsmmu inspect` has the same findings."""
    for smmu in board.platform.smmus:
        if smmu.kind == OTHER:
            continue
        if smmu.kind == SMMU_V3 and smmu.iommu_cells != 1:
            fact = f"#iommu-cells is {smmu.iommu_cells}; an SMMUv3 has 1"
            yield DT406.at(smmu.path, fact, _FIXES["DT406"], severity="error")
        if smmu.base is None:
            fact = "its reg does not translate to CPU addresses"
            yield DT202.at(smmu.path, fact, "give every bus above it ranges that cover its reg")
        odd = [i for i in smmu.interrupts if i.kind not in ("SPI", "PPI")]
        if odd:
            fact = f"{len(odd)} interrupts of {odd[0].controller_path}: {odd[0].reason}"
            fix = "Xen has no interrupt of this SMMU then"
            yield DT302.at(smmu.path, fact, fix, severity="note")


def _dangling(board: Board) -> Iterator[Diagnosis]:
    for node in board.tree.walk():
        for ref in references(node, board.phandles):
            # iommus is the platform's own finding.
            if ref.phandle not in board.phandles and ref.name != "iommus":
                fact = f"{ref.name}[{ref.index}]: <{ref.phandle:#x}> is no node's phandle"
                yield DT401.at(node.path, fact, _FIXES["DT401"])


def _marked(board: Board) -> Iterator[Diagnosis]:
    """Nodes that are kept from dom0 for a guest, but that no guest can be given safely."""
    for node in board.tree.walk():
        if "xen,passthrough" in node.props and node.path not in board.masters:
            fact = "is marked xen,passthrough, but is not a DMA master of any SMMU"
            fix = "give it iommus if it does DMA; without an SMMU its DMA is not contained"
            yield DT101.at(node.path, fact, fix, severity="note")


def _smmus_off(board: Board) -> Iterator[Diagnosis]:
    behind: dict[str, list[str]] = {}
    for master in board.platform.masters:
        if master.status == "okay":
            paths = [s.smmu_path for s in master.streams] + [r.smmu_path for r in master.maps]
            for path in dict.fromkeys(paths):
                behind.setdefault(path, []).append(master.path)
    for smmu in board.platform.smmus:
        if smmu.status != "okay" and smmu.kind != OTHER and smmu.path in behind:
            fact = f'has status "{smmu.status}"; enabled masters behind it: '
            fix = 'set its status = "okay" to give one of them to a guest'
            yield DT104.at(smmu.path, fact + named(behind[smmu.path]), fix, severity="note")


def _rows(master: Master, *, overlaps: bool) -> Iterator[Diagnosis]:
    """Rows of an iommu-map that overlap or that hold no id."""
    fix = _FIXES["DT505"]
    for row in master.maps:
        if not row.length:
            fact = f"iommu-map: row {row.rid_base:#x} has length 0 and holds no id"
            why = "firmware has to fill it in before a system starts"
            yield DT505.at(master.path, fact, why, severity="note")
    if not overlaps:
        return
    rows = sorted((row.rid_base, row.length) for row in master.maps if row.length)
    for (first, length), (second, _) in pairwise(rows):
        if second < first + length:
            fact = f"iommu-map: rows {first:#x}+{length:#x} and {second:#x} overlap"
            yield DT505.at(master.path, fact, fix, severity="warning")


def _streams(board: Board) -> Iterator[Diagnosis]:
    for again in repeated(board.platform):
        # Only SMMUv3 can be behind a vSMMU.
        if len(again.v3) > 1:
            fact = f"StreamID {_span(again.first, again.last)} is on {named(again.v3)}"
            fix = "a guest with devices behind several of them needs vMasterIDs"
            yield DT502.at(again.v3[0], fact, fix, severity="note")
    for tied in shared(board.platform):
        users = named(tied.masters)
        fact = f"StreamID {_span(tied.first, tied.last)} of {tied.smmu} is used by {users}"
        fix = "assign these devices together; the SMMU cannot tell them apart"
        yield DT503.at(tied.masters[0], fact, fix, severity="note")


def _span(first: int, last: int) -> str:
    return f"{first:#x}" if first == last else f"{first:#x}..{last:#x}"


def _behind_smmu(board: Board, master: Master) -> bool:
    """Whether a guest could be given the device: enabled, and so is an Arm SMMU before it."""
    smmus = [board.smmus[s.smmu_path] for s in master.streams]
    return (
        master.status == "okay"
        and bool(smmus)
        and all(s.kind != OTHER and s.status == "okay" for s in smmus)
    )


def _registers(board: Board, master: Master) -> Iterator[Diagnosis]:
    """What a configuration has to take care of when it names the device."""
    neighbours = board.platform.page_neighbours(master.node, MAX_NAMED + 1)
    if neighbours:
        fact = f"has registers in a 4 KiB page with {named(neighbours)}"
        yield DT205.at(master.path, fact, "assign them together, or neither", severity="note")
    regs = board.platform.reg_of(master.node) or ()
    entries = reg_entries(master.node) or ()
    moved = [(b, r.cpu_base) for (b, _), r in zip(entries, regs, strict=False) if b != r.cpu_base]
    if moved:
        pairs = named(f"bus address {bus:#x} is CPU address {cpu:#x}" for bus, cpu in moved)
        fact = f"ranges above it: {pairs}"
        fix = "use the CPU addresses in iomem and xen,reg"
        yield DT206.at(master.path, fact, fix, severity="note")
    lost = [i for i in board.platform.interrupts_of(master.node) if i.kind != "SPI"]
    if lost and status_of(master.node) == "okay":
        why = named(i.reason or "a PPI is a CPU's own" for i in lost)
        fact = f"has interrupts that are not SPIs of the GIC: {len(lost)} ({why})"
        fix = "a guest with the device has to do without them"
        yield DT302.at(master.path, fact, fix, severity="note")
