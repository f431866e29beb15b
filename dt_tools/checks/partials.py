# SPDX-License-Identifier: BSD-2-Clause
"""Rules about partial trees: their own structure, and what they say against the host's tree.

Diagnoses here are about the partial tree's file and its paths. A partial tree that no configuration
goes with is one for dom0less: xen,path and xen,reg then say what the device is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.checks.board import DT401
from dt_tools.checks.devices import DT101, DT108
from dt_tools.checks.view import overlaps, registers
from dt_tools.merge_phandles import faults
from dt_tools.merge_view import dangling, not_a_bus, toolstack, where
from dt_tools.partial import reserved_phandles
from dt_tools.rules import Diagnosis, Severity, declared, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.checks.pairs import PartialView

DT001 = rule(
    "DT001",
    "error",
    "a file is no device-tree blob",
    "Its magic, structure or size breaks the format; nothing in it can be looked at.",
    "/: guest.dtb: offset 0x0: magic 0x0, 0xd00dfeed expected",
)
DT211 = rule(
    "DT211",
    "error",
    "a partial tree without /passthrough",
    "Xen and libxl copy the node of exactly that name (and /aliases), and fail or find no "
    "device without it.",
    "/passthrough: is missing in the partial tree",
)
DT213 = rule(
    "DT213",
    "warning",
    "/passthrough is no bus",
    'A guest probes what is behind a bus: compatible = "simple-bus", ranges, and both cell counts.',
    "/passthrough: lacks ranges: a guest will not probe it",
)
DT402 = rule(
    "DT402",
    "error",
    "a phandle that the toolstack uses itself",
    "libxl numbers its own nodes from 65000 (the GIC; 65001 xen_iommu, 65002 the vSMMU; here "
    "65130 is the ITS): references then find the wrong node, and nobody says so. One that no node "
    "has is a note.",
    "/passthrough/clock: phandle 65002 is reserved for the vSMMU",
)
DT404 = rule(
    "DT404",
    "error",
    "a phandle that is none",
    "0 and 0xffffffff stand for no node.",
    "/passthrough/clock: phandle 0x0 is no phandle",
)

DT113 = rule(
    "DT113",
    "error",
    "a partial tree describes a device that the guest is not given",
    "The guest's driver finds the node and faults at its registers, or its DMA is refused: dtdev "
    "does not name the device.",
    "/passthrough/usb@60050000: stands for /soc/usb@60050000, which the guest is not given: dtdev"
    " does not name it",
)

DT540 = rule(
    "DT540",
    "error",
    "a node stands in for an SMMU, and for none",
    "iommus of a partial tree may name a node of the partial tree in the SMMU's place. How many "
    "cells an entry has is its #iommu-cells to say, 0 to 2 for an Arm SMMU; its xen,path, if it "
    "has one, has to name an SMMU of the host.",
    "/smmu: stands in for xen,path /soc/smmu@0, which is no SMMU of the host",
)
DT541 = rule(
    "DT541",
    "error",
    "an SMMU inside /passthrough",
    "What is in /passthrough is the guest's: with registers the guest would be told to drive the "
    "host's SMMU, without them its driver finds an SMMU it cannot probe. A stand-in belongs "
    "outside /passthrough, which is not copied.",
    "/passthrough/iommu@50000000: is an SMMU with registers, and the guest's SMMU is the vSMMU",
)
DT542 = rule(
    "DT542",
    "error",
    "an entry of iommus can be several streams",
    "A StreamID means nothing without its SMMU. When neither the node says which device of the "
    "host it is nor the phandle which SMMU is meant, or the node's name says another device than "
    "its registers, any choice may be another device's stream.",
    "/passthrough/dma: iommus <0x7 0x600> says no SMMU of the host, and the node no device; it may"
    " be (/soc/iommu@50000000, 0x600), (/soc/iommu@51000000, 0x600)",
)
DT543 = rule(
    "DT543",
    "warning",
    "one node has the streams of several devices",
    "The guest's kernel puts all streams of a node into one group: the devices share what one "
    "driver maps.",
    "/passthrough/dma: has streams of 2 devices: /soc/dma@60000000, /soc/dma@61000000",
)


def check(view: PartialView) -> Iterator[Diagnosis]:
    """The partial tree's structure and phandles."""
    yield from _top(view)
    yield from _phandles(view)
    yield from _stand_ins(view)
    yield from _references(view)
    for node in view.nodes:
        if "xen,force-assign-without-iommu" in node.props:
            fact = "xen,force-assign-without-iommu: its DMA is not contained"
            fix = "assign a device behind an SMMU"
            yield DT101.at(node.path, fact, fix, severity="warning")


def _top(view: PartialView) -> Iterator[Diagnosis]:
    children = view.tree.root.children
    odd = next((name for name in children if name.startswith("passthrough@")), None)
    if odd is not None or "passthrough" not in children:
        fact = f"is /{odd} in the partial tree" if odd else "is missing in the partial tree"
        yield DT211.at("/passthrough", fact, "name the node exactly /passthrough")
        return
    bus = children["passthrough"]
    wrong = not_a_bus(bus)
    if wrong:
        fact = f"{wrong}: a guest will not probe what is in it"
        fix = "add what is missing" if wrong.startswith("lacks") else "write 1 or 2 there"
        yield DT213.at(bus.path, fact, fix)


def _stand_ins(view: PartialView) -> Iterator[Diagnosis]:
    """Each node for one device, and for one of the guest's."""
    seen: dict[str, str] = {}
    given = view.given
    for node in view.nodes:
        path = node.string("xen,path")
        host = None if path is None else view.board.tree.node(path)
        if path is None or host is None:
            continue
        if path in seen:
            fact = f"xen,path {path} is {seen[path]}'s too"
            yield DT108.at(node.path, fact, "describe a device by one node")
        seen.setdefault(path, node.path)
        if given is None or host in given.theirs or host in given.own:
            continue
        fact = f"stands for {path}, which the guest is not given: dtdev does not name it"
        windows = registers(view.board, host)
        if any(overlaps(given.host_pages, window) for window in windows):
            fact = f"stands for {path}, which is in iomem, but not in dtdev"
        fix = f"add {path} to dtdev, or take the node out"
        yield DT113.at(node.path, fact, fix)


def _phandles(view: PartialView) -> Iterator[Diagnosis]:
    for fault in faults(view.nodes, reserved_phandles(view.profile)):
        # What libxl copies, Xen's dom0less builder refuses.
        refused = fault.refused or view.given is None
        severity: Severity = "error" if refused else "note"
        yield declared()[fault.rule].at(fault.path, fault.reason, fault.fix, severity=severity)


def _references(view: PartialView) -> Iterator[Diagnosis]:
    """What is named has to be in what is copied; iommus and interrupts have rules of their own."""
    made = toolstack(view.profile, viommu=view.given is None or view.given.viommu)
    gic = view.tree.root.children.get("gic")
    if view.given is None and gic is not None and gic.phandle is not None:
        made[gic.phandle] = made[view.profile.gic_phandle]
    known = {**view.defined, **made}
    copied = {*view.copied, *made}
    theirs = view.board.phandles
    for node in view.nodes:
        for ref, in_guest in dangling(node, copied, known):
            fix = "put the provider into /passthrough, or drop the property"
            if in_guest:
                fix = "name a provider of this kind"
            yield DT401.at(node.path, where(ref, known, theirs, in_guest), fix)
