# SPDX-License-Identifier: BSD-2-Clause
"""Whether each DMA master of a board can be given to a guest behind a vSMMU, and why not.

The same rules, by the same ids, as the builders apply to a `dtdev` list of one device; a report
lists all reasons, a builder refuses with the first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dt_tools.platform import OTHER, SMMU_V3
from dt_tools.report.streams import together_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dt_tools.platform import Master, Platform, Smmu

Effect = Literal["blocks", "together", "notice"]


@dataclass(frozen=True, slots=True)
class Reason:
    """One fact about a master: `blocks` assignment, ties it `together` with others, or a `notice`.

    `others` holds the full paths that have to be assigned with it.
    """

    rule: str
    effect: Effect
    text: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`answer` is `yes`, `together` (with the devices that the reasons name) or `no`."""

    master: Master
    answer: Literal["yes", "together", "no"]
    reasons: tuple[Reason, ...]


def verdicts(platform: Platform) -> tuple[Verdict, ...]:
    """One verdict for each of `platform.masters`, in the same order.

    Raises:
        DtbError: the tree asks for more work than the platform's limit.
    """
    smmus = {smmu.path: smmu for smmu in platform.smmus}
    behind = {m.path for m in platform.masters if m.streams and _all_v3(m, smmus)}
    shared = together_with(platform)
    found = []
    for master in platform.masters:
        reasons = (
            *_placement(master, smmus),
            *_sharing(master, shared.get(master.path, ())),
            *_resources(platform, master, behind),
        )
        effects = {reason.effect for reason in reasons}
        answer: Literal["yes", "together", "no"] = "yes"
        if effects & {"blocks", "together"}:
            answer = "no" if "blocks" in effects else "together"
        found.append(Verdict(master, answer, reasons))
    return tuple(found)


def _all_v3(master: Master, smmus: Mapping[str, Smmu]) -> bool:
    return all(smmus[stream.smmu_path].kind == SMMU_V3 for stream in master.streams)


def _placement(master: Master, smmus: Mapping[str, Smmu]) -> Iterator[Reason]:
    """Where the master sits: its own status, and the SMMUs in front of it."""
    if master.status != "okay":
        yield Reason("DT105", "blocks", f'has status "{master.status}"')
    if "iommu-map" in master.node.props or master.is_pci:
        yield Reason("DT107", "blocks", "is a bridge or bus: the masters are the functions on it")
    elif not master.streams:
        yield Reason("DT101", "blocks", "no entry of its iommus names an SMMU")
    for path in dict.fromkeys(stream.smmu_path for stream in master.streams):
        smmu = smmus[path]
        if smmu.status != "okay":
            yield Reason("DT104", "blocks", f'its SMMU {path} has status "{smmu.status}"')
        if smmu.kind != SMMU_V3:
            kind = "not an Arm SMMU" if smmu.kind == OTHER else f"{smmu.kind}, not {SMMU_V3}"
            yield Reason("DT109", "blocks", f"its IOMMU {path} is {kind}")


def _sharing(master: Master, others: tuple[str, ...]) -> Iterator[Reason]:
    if others and master.status == "okay":
        text = f"shares a StreamID with {', '.join(others)}"
        yield Reason("DT503", "together", text, others)


def _resources(platform: Platform, master: Master, behind: set[str]) -> Iterator[Reason]:
    """Registers, the pages they are in, child nodes, interrupts."""
    regs = platform.reg_of(master.node)
    if regs is None or any(reg.size == 0 for reg in regs):
        yield Reason("DT202", "blocks", "its reg does not translate to CPU addresses")
    elif not regs:
        yield Reason("DT202", "notice", "has no registers")
    bus = "iommu-map" in master.node.props or master.is_pci
    inside = None if bus else _own_devices(master)
    for path in platform.page_neighbours(master.node):
        both = path in behind
        text = f"has registers in a 4 KiB page with {path}"
        if both:
            yield Reason("DT205", "together", text, (path,))
        else:
            yield Reason("DT205", "blocks", f"{text}, which cannot be assigned")
    if inside:
        yield Reason("DT210", "blocks", f"its child {inside} is a device of its own")
    lost = Counter(i.kind for i in platform.interrupts_of(master.node) if i.kind != "SPI")
    if lost:
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(lost.items()))
        yield Reason("DT302", "notice", f"interrupts that are not SPIs are dropped: {what}")


def _own_devices(master: Master) -> str | None:
    """The first node below the master that has DMA or CPU-addressable registers of its own."""
    for node in master.node.walk():
        if node is master.node or node.parent is None:
            continue
        if "iommus" in node.props or "iommu-map" in node.props:
            return node.path
        if "reg" in node.props and "ranges" in node.parent.props:
            return node.path
    return None
