# SPDX-License-Identifier: BSD-2-Clause
"""Rules about the devices that dtdev names: whether each can be a guest's, and what it loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.checks.view import MAX_ITEMS, named
from dt_tools.masters import is_master
from dt_tools.platform import OTHER, SMMU_V3
from dt_tools.rules import Diagnosis, Severity, rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dt_tools.checks.view import Board, Given
    from dt_tools.platform import Master
    from dt_tools.tree import Node

DT101 = rule(
    "DT101",
    "error",
    "a device to assign is behind no SMMU",
    "Xen refuses it (xc_assign_dtdevice failed), and forcing the assignment leaves its DMA "
    "uncontained: the guest can read and write all of the host's memory.",
    "/soc/serial@70000000: is not a DMA master of any SMMU of the host tree",
)
DT102 = rule(
    "DT102",
    "error",
    "a path that the host tree does not have",
    "Paths come from another tree (the partial one, another kernel's, another bus name) or lack"
    " the unit address. Xen compares whole paths and says only that the assignment failed.",
    "/amba/serial@a0001000: no such node in the host tree; nearest: /axi/serial@a0001000",
)
DT103 = rule(
    "DT103",
    "error",
    "a device has two users",
    "Two guests, or dom0 and a guest, drive one device and its DMA. Xen gives a device to dom0 "
    "unless the host's node has xen,passthrough.",
    "/soc/crypto@60000000: is guest-b.cfg's too",
)
DT104 = rule(
    "DT104",
    "error",
    "the SMMU before a device is off",
    "Xen does not drive an SMMU that is not enabled in the host tree: the assignment is refused.",
    '/soc/gpu@60040000: its SMMU /soc/iommu@52000000 has status "disabled"',
)
DT105 = rule(
    "DT105",
    "error",
    "a device to assign is off",
    "Hardware that the host tree says is disabled or reserved may have no clock or belong to "
    "firmware.",
    '/soc/gpu@60040000: has status "disabled"',
)
DT106 = rule(
    "DT106",
    "error",
    "dtdev names an SMMU",
    "An SMMU contains guests; it cannot be a guest's.",
    "/soc/iommu@50000000: is an SMMU; the guest gets a vSMMU in its place",
)
DT107 = rule(
    "DT107",
    "error",
    "dtdev names a bus whose functions are the masters",
    "The streams of a PCI host bridge or of another bus with an iommu-map are its functions'; "
    "as one device it cannot be assigned.",
    "/soc/pcie@40000000: is a bus with an iommu-map or a PCI host bridge",
)
DT108 = rule(
    "DT108",
    "error",
    "a device is named twice",
    "The second assignment fails, and with it the creation of the guest. Of two nodes of a partial "
    "tree for one device a guest probes both: two drivers on the same registers.",
    "/soc/crypto@60000000: is listed twice in dtdev",
)
DT109 = rule(
    "DT109",
    "error",
    "the IOMMU before a device is of the wrong kind",
    "Xen drives Arm SMMUs, and a vSMMU can only be backed by an SMMUv3.",
    "/soc/crypto@60000000: its SMMU /soc/iommu@50000000 is arm,mmu-500; a vSMMU needs arm,smmu-v3",
)
DT110 = rule(
    "DT110",
    "error",
    "dtdev names a device and another inside it",
    "The inner one is assigned twice, or to two guests.",
    "/soc/usb@1000/port@1100: lies inside /soc/usb@1000, which is in dtdev too",
)
DT205 = rule(
    "DT205",
    "error",
    "a 4 KiB page of registers has two owners",
    "Memory is mapped in pages: whoever has the page has all registers in it.",
    "/soc/dma@60020000: shares a 4 KiB page of registers with /soc/dma@60020800",
)
DT206 = rule(
    "DT206",
    "error",
    "an address is not the CPU's, or has the wrong cells",
    "reg is in the cells of the enclosing bus and counts from the bus; only ranges says where "
    "the CPU sees it. Taken as it stands it maps another device, or nothing.",
    "/bus@8800000000/hda@90b0000: iomem maps bus address 0x90b0000; its CPU address is "
    "0x88090b0000",
)
DT210 = rule(
    "DT210",
    "error",
    "a device has devices of its own below it",
    "Children with registers or StreamIDs of their own are not described by the one node.",
    "/soc/usb@1000: its child /soc/usb@1000/port@1100 has registers of its own",
)
DT302 = rule(
    "DT302",
    "warning",
    "an interrupt that is not an SPI of the GIC",
    "A vGIC has SPIs; what goes to another controller, or is a message, cannot be routed to a "
    "guest, and cells copied under the GIC mean another interrupt.",
    "/soc/display@60030000: 1 of its interrupts goes to /soc/interrupt-controller@53000000",
)

_BUS = ("pci", "pciex")


def check(board: Board, given: Given, others: Sequence[Given]) -> Iterator[Diagnosis]:
    """The guest's dtdev list against the board and the other guests."""
    yield from _paths(board, given)
    marked = any("xen,passthrough" in node.props for node in board.tree.walk())
    owners = {node: other for other in others for node in other.own}
    for node in given.listed:
        yield from _place(board, given, node)
    for node in given.nodes:
        yield from _users(given, node, marked, owners)
        yield from _interrupts(given, node)
        if not given.by_hand:
            yield from _children(node)


def _paths(board: Board, given: Given) -> Iterator[Diagnosis]:
    seen: set[str] = set()
    nodes = set(given.listed)
    for path in given.config.dtdev[:MAX_ITEMS]:
        node = board.tree.node(path)
        if node is None or node.path != path:
            fact, fix = _unknown(board, path, node)
            yield DT102.at(path, fact, fix, key="dtdev")
        elif node.parent is None:
            fact = 'dtdev has "/", the root of the host tree, which is no device'
            yield DT101.at(path, fact, "name the device by its full path", key="dtdev")
        elif path in seen:
            yield DT108.at(path, "is listed twice in dtdev", "list it once", key="dtdev")
        else:
            outer = next((p.path for p in node.ancestors() if p in nodes), None)
            if outer is not None:
                fact = f"lies inside {outer}, which is in dtdev too"
                alone = f"list {outer} alone"
                fix = alone if outer in board.masters else f"take {outer} out"
                yield DT110.at(path, fact, fix, key="dtdev")
        seen.add(path)


def _unknown(board: Board, path: str, node: Node | None) -> tuple[str, str]:
    if node is not None:
        return "is not the node's full path as Xen compares it", f"write {node.path}"
    fact = "no such node in the host tree"
    if not path.startswith("/"):
        fact = "is not an absolute path of the host tree"
    nearest = board.nearest(path)
    return fact, f"nearest: {nearest}" if nearest else "give a path of the host tree"


def _place(board: Board, given: Given, node: Node) -> Iterator[Diagnosis]:
    """Whether the node is a device that an SMMU contains."""
    path, key = node.path, "dtdev"
    if path in board.smmus:
        fact = "is an SMMU; the guest gets a vSMMU in its place"
        yield DT106.at(path, fact, "take it out of dtdev", key=key)
        return
    off = next((n for n in (node, *node.ancestors()) if n.status != "okay"), None)
    if off is not None:
        where = "" if off is node else f"lies below {off.path}, which "
        fix = f'set status = "okay" on {off.path} in the host tree'
        yield DT105.at(path, f'{where}has status "{off.status}"', fix, key=key)
    if "iommu-map" in node.props or node.string("device_type") in _BUS:
        fact = "is a bus with an iommu-map or a PCI host bridge, whose functions are the masters"
        yield DT107.at(path, fact, "assign a platform device", key=key)
        return
    master = board.masters.get(path)
    if master is not None and master.streams:
        yield from _smmus(board, given, master)
    elif "iommus" not in node.props:
        fact = f"is not a DMA master of any SMMU of the host tree (SMMUs: {named(board.smmus)})"
        fix = "assign a device that has iommus; without an SMMU its DMA is not contained"
        yield DT101.at(path, fact, fix, key=key)


def _smmus(board: Board, given: Given, master: Master) -> Iterator[Diagnosis]:
    for path in dict.fromkeys(stream.smmu_path for stream in master.streams):
        smmu = board.smmus[path]
        if smmu.kind == OTHER:
            fact = f"its IOMMU {path} is no Arm SMMU ({named(smmu.compatible)})"
            yield DT109.at(master.path, fact, "assign a device behind an Arm SMMU", key="dtdev")
        elif smmu.status != "okay":
            fact = f'its SMMU {path} has status "{smmu.status}"'
            fix = f'set status = "okay" on {path} in the host tree'
            yield DT104.at(master.path, fact, fix, key="dtdev")
        elif given.viommu and smmu.kind != SMMU_V3:
            fact = f"its SMMU {path} is {smmu.kind}; a vSMMU needs {SMMU_V3} behind it"
            yield DT109.at(master.path, fact, 'set viommu = "none" for this guest', key="viommu")


def _users(
    given: Given, node: Node, marked: bool, owners: Mapping[Node, Given]
) -> Iterator[Diagnosis]:
    """DT103. A board that marks no device at all is marked by its boot loader, or not yet."""
    inner = next((n for n in node.walk() if n in owners), None)
    if inner is not None:
        which = "is" if inner is node else f"contains {inner.path}, which is"
        fact = f"{which} {owners[inner].label}'s too"
        yield DT103.at(node.path, fact, "give it to one guest", key="dtdev")
    if "xen,passthrough" not in node.props and is_master(node):
        fact = "has no xen,passthrough in the host tree: dom0 has it too"
        fix = f"in the boot loader: fdt set {node.path} xen,passthrough"
        severity: Severity = "warning" if marked else "note"
        yield DT103.at(node.path, fact, fix, severity=severity, key="dtdev")


def _interrupts(given: Given, node: Node) -> Iterator[Diagnosis]:
    own = {inner.path for inner in node.walk()}
    lost = [i for i in given.interrupts(node) if i.kind != "SPI" and i.controller_path not in own]
    if lost:
        where = named(i.controller_path or "nowhere" for i in lost)
        some = f"{len(lost)} of its interrupts" if len(lost) > 1 else "1 of its interrupts"
        why = next((i.reason for i in lost if i.reason), "a PPI is a CPU's own")
        fact = f"{some} cannot be an SPI of the guest's GIC (goes to {where}: {why})"
        fix = "the guest's driver has to do without; assign another device if it cannot"
        yield DT302.at(node.path, fact, fix, key="dtdev")


def _children(device: Node) -> Iterator[Diagnosis]:
    for node in device.walk():
        if node is device:
            continue
        if is_master(node):
            what = f"its child {node.path} is a DMA master of its own"
            fix = "assign a device without such children, or write a partial tree by hand"
            yield DT210.at(device.path, what, fix, key="dtdev")
            return
