# SPDX-License-Identifier: BSD-2-Clause
"""`/passthrough`: the part of a guest's tree that describes its assigned devices.

`build_partial` makes it from the host tree and the `dtdev` list. A node carries what the guest
can use: registers at their CPU address (or placed where the guest has room), the interrupts that
are SPIs of the GIC, `dma-coherent`, `iommus` naming the vSMMU, and every other property as the
host has it. What is dropped is listed with its reason.

Limits: no PCI, no child nodes with registers or StreamIDs of their own, and no provider
(clock, reset, regulator ...) is made up for the guest.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, DeviceBinding, Dropped, GuestInterrupt, MappedReg, Notice
from dt_tools.carry import XEN_PROPERTIES, Carried
from dt_tools.errors import Refusal
from dt_tools.placement import place_registers
from dt_tools.profiles import Window
from dt_tools.tree import Node, Tree, split_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.extended import AddressMap
    from dt_tools.platform import Interrupt, Platform
    from dt_tools.profiles import GuestProfile

_INTERRUPTS = ("interrupts", "interrupts-extended")


@dataclass(frozen=True, slots=True)
class Partial:
    """A tree that holds `/passthrough` and what the guest's configuration has to map.

    `iomem` are whole 4 KiB pages, in bytes, sorted by host address; `irqs` are GIC interrupt
    ids (the first SPI is 32), sorted.
    """

    tree: Tree
    devices: tuple[DeviceBinding, ...] = ()
    notices: tuple[Notice, ...] = ()
    iomem: tuple[MappedReg, ...] = ()
    irqs: tuple[int, ...] = ()


def new_passthrough(root: Node) -> Node:
    """Append an empty `/passthrough`: a simple-bus whose addresses are the guest's."""
    bus = root.add("passthrough")
    bus.set_strings("compatible", "simple-bus")
    bus.set_empty("ranges")
    bus.set_cells("#address-cells", 2)
    bus.set_cells("#size-cells", 2)
    return bus


def build_partial(
    platform: Platform,
    devices: Sequence[str],
    bindings: Bindings,
    space: AddressMap,
    *,
    viommu: bool = True,
    pins: Sequence[MappedReg] = (),
) -> Partial:
    """Make `/passthrough` for the devices at host paths `devices`, in that order.

    `bindings` is what `allocate` returned for the same list. Registers take their place in
    `space`: where `pins` (the configuration's iomem, whole pages, claimed in `space` as `IOMEM`)
    puts them, else 1:1, else in the first free room.

    Raises:
        UserError: a path is not in the host tree.
        Refusal: DT202, DT205, DT207, DT210 or DT212, with the path of the device.
    """
    return _Builder(platform, bindings, space, viommu).build(devices, pins)


@dataclass(slots=True)
class _Device:
    """A device while it is built: its host node and what is known of its guest node."""

    node: Node
    regs: tuple[Window, ...]
    dropped: list[Dropped] = field(default_factory=list)
    interrupts: list[GuestInterrupt] = field(default_factory=list)


class _Builder:
    def __init__(
        self, platform: Platform, bindings: Bindings, space: AddressMap, viommu: bool
    ) -> None:
        self.platform = platform
        self.bindings = bindings
        self.space = space
        self.viommu = viommu
        self.notices: list[Notice] = []
        self.masters = {master.path: master for master in platform.masters}
        self.carried = Carried(platform.tree, viommu)
        self.names: set[str] = set()

    def build(self, paths: Sequence[str], pins: Sequence[MappedReg]) -> Partial:
        nodes = [self.platform.resolve(path) for path in paths]
        for node in nodes:
            self.carried.add(node)
        self.names = {node.name for node in nodes}
        devices = [_Device(node, self._registers(node)) for node in nodes]
        windows = [(reg, device.node.path) for device in devices for reg in device.regs]
        iomem, moved = place_registers(windows, self.space, pins)
        self.notices += moved
        tree = Tree()
        tree.root.set_cells("#address-cells", 2)
        tree.root.set_cells("#size-cells", 2)
        bus = new_passthrough(tree.root)
        done = [self._emit(device, bus, iomem) for device in devices]
        self._phandles(devices, done, tree)
        irqs = {interrupt.number for device in devices for interrupt in device.interrupts}
        self._shared_spis(devices)
        return Partial(tree, tuple(done), tuple(self.notices), tuple(iomem), tuple(sorted(irqs)))

    def notice(self, rule: str, node: Node, message: str) -> None:
        self.notices.append(Notice(rule, node.path, message))

    # Registers.

    def _registers(self, node: Node) -> tuple[Window, ...]:
        """The device's registers at their CPU addresses; checks that its pages are its own."""
        if "reg" not in node.props:
            self.notice("DT202", node, "has no reg; the guest node has no registers")
            return ()
        regs = self.platform.reg_of(node)
        if not regs or any(reg.size == 0 or reg.cpu_base + reg.size > 1 << 64 for reg in regs):
            reason = "its reg is not CPU addressable (bus address, ranges or size)"
            fix = "assign a device whose reg translates to CPU addresses through every ranges"
            raise Refusal("DT202", node.path, reason, fix)
        # A limit above the guest's own nodes, so that one outside them cannot hide behind them.
        for path in self.platform.page_neighbours(node, len(self.carried.paths) + 1):
            if path not in self.carried.paths:
                reason = f"shares a 4 KiB page of registers with {path}"
                raise Refusal("DT205", node.path, reason, f"assign {path} too, or neither")
        return tuple(Window(reg.cpu_base, reg.size) for reg in regs)

    # The guest node.

    def _emit(self, device: _Device, bus: Node, iomem: Sequence[MappedReg]) -> DeviceBinding:
        node = device.node
        bases = [reg.host for reg in iomem]
        regs: list[MappedReg] = []
        for reg in device.regs:
            run = iomem[bisect_right(bases, reg.base) - 1]
            regs.append(MappedReg(reg.base, run.guest + reg.base - run.host, reg.size))
        target = bus.add(_free_name(bus, node.name, regs, self.names))
        ids = self._stream_ids(node)
        self._properties(device, node, target, regs, ids)
        self._coherence(node, target)
        self._children(device, node, target)
        self._summary(device)
        return DeviceBinding(node.path, target.path, ids, tuple(regs), tuple(device.interrupts), ())

    def _stream_ids(self, node: Node) -> tuple[int, ...]:
        """The vMasterIDs of the node's streams, in the host's order."""
        if not self.viommu:
            return ()
        ids = [
            self.bindings.vmaster_id(stream.smmu_path, stream.stream_id)
            for stream in self.masters[node.path].streams
        ]
        assert None not in ids, "bindings are of another dtdev list"
        return tuple(dict.fromkeys(vid for vid in ids if vid is not None))

    def _properties(
        self,
        device: _Device,
        node: Node,
        target: Node,
        regs: Sequence[MappedReg] = (),
        ids: Sequence[int] = (),
    ) -> None:
        """Copy `node`'s properties to `target`; `regs` and `ids` are of the device itself."""
        gone: set[str] = set()
        for name, raw in node.props.items():
            reason = self.carried.reason(node, name, gone)
            if name in ("phandle", "linux,phandle"):
                continue
            if reason is not None:
                gone.add(name)
                where = name if node is device.node else f"{_below(node, device.node)}/{name}"
                device.dropped.append(Dropped(where, reason))
            elif name == "reg" and node is device.node:
                cells = [c for r in regs for v in (r.guest, r.size) for c in split_cells(v, 2)]
                target.set_cells(name, *cells)
            elif name == "iommus":
                phandle = self.space.guest.vsmmu_phandle
                target.set_cells(name, *(cell for vid in ids for cell in (phandle, vid)))
            elif name in _INTERRUPTS:
                self._interrupts(device, node, target, name)
            elif name not in ("interrupt-names", "interrupt-parent"):
                target.props[name] = raw

    # Interrupts.

    def _interrupts(self, device: _Device, node: Node, target: Node, name: str) -> None:
        """The node's interrupts as SPIs of the guest's GIC; those of others are dropped.

        interrupts-extended takes precedence where a node has both (specification v0.4 §2.4.1).
        """
        if name == "interrupts" and "interrupts-extended" in node.props:
            return
        found = self.platform.interrupts_of(node)
        if found and all(i.controller_path in self.carried.paths for i in found):
            self._own_interrupts(node, target, name, found[0])
            return
        kept = [i for i in found if i.kind == "SPI"]
        lost = [i for i in found if i.kind != "SPI"]
        if lost or not found:
            self._lost(device, node, name, lost)
        if not kept:
            return
        cells = [cell for i in kept for cell in (0, i.number - 32, i.flags & 0xF)]
        target.set_cells("interrupts", *cells)
        names = node.strings("interrupt-names")
        if names and len(names) == len(found):
            chosen = [n for n, i in zip(names, found, strict=True) if i.kind == "SPI"]
            target.set_strings("interrupt-names", *chosen)
        elif names and not lost:
            target.props["interrupt-names"] = node.props["interrupt-names"]
        device.interrupts += [GuestInterrupt(i.number, i.flags & 0xF) for i in kept]

    def _shared_spis(self, devices: Sequence[_Device]) -> None:
        """Note SPIs that a host node outside the guest has too: Xen routes each to one domain."""
        owners = {i.number: device.node for device in devices for i in device.interrupts}
        if not owners:
            return
        for node in self.platform.tree.walk():
            if (
                not any(name in node.props for name in _INTERRUPTS)
                or node.path in self.carried.paths
            ):
                continue
            for interrupt in self.platform.interrupts_of(node):
                if interrupt.kind == "SPI" and interrupt.number in owners:
                    text = f"interrupt {interrupt.number} is {node.path}'s too"
                    self.notice("DT307", owners[interrupt.number], text)

    def _own_interrupts(self, node: Node, target: Node, name: str, first: Interrupt) -> None:
        """Interrupts of a controller inside the device are carried as they are."""
        for prop in (name, "interrupt-names"):
            if prop in node.props:
                target.props[prop] = node.props[prop]
        if name == "interrupts-extended":
            self.carried.referenced.update(node.cells(name) or ())
            return
        controller = self.platform.tree.node(first.controller_path or "")
        if controller is not None and controller.phandle is not None:
            target.set_cells("interrupt-parent", controller.phandle)
            self.carried.referenced.add(controller.phandle)

    def _lost(self, device: _Device, node: Node, name: str, lost: Sequence[Interrupt]) -> None:
        if lost:
            controllers = ", ".join(dict.fromkeys(str(i.controller_path) for i in lost))
            kinds = ", ".join(dict.fromkeys(i.kind for i in lost))
            reason = f"{len(lost)} of {controllers} ({kinds}): not SPIs of the GIC"
        else:
            reason = "cannot be traced to an interrupt controller"
        where = name if node is device.node else f"{_below(node, device.node)}/{name}"
        device.dropped.append(Dropped(where, reason))
        self.notice("DT302", device.node, f"{where} dropped: {reason}")

    # What is inherited on the host and has to stand in the node itself in the guest.

    def _coherence(self, node: Node, target: Node) -> None:
        for parent in node.ancestors():
            if "dma-coherent" in target.props or "dma-noncoherent" in target.props:
                return
            for name in ("dma-coherent", "dma-noncoherent"):
                if name in parent.props:
                    target.set_empty(name)
                    self.notice("DT208", node, f"{name} taken from {parent.path}")

    def _children(self, device: _Device, node: Node, target: Node) -> None:
        stack = [(node, target)]
        while stack:
            source, copy = stack.pop()
            for name, child in source.children.items():
                if child.path not in self.carried.paths:
                    reason = "links to devices outside the guest"
                    device.dropped.append(Dropped(f"{_below(child, device.node)}/", reason))
                    continue
                inner = copy.add(name)
                self._properties(device, child, inner)
                stack.append((child, inner))

    def _summary(self, device: _Device) -> None:
        node = device.node
        providers = [
            d.property for d in device.dropped if not d.property.startswith(_INTERRUPTS)
            and d.property not in (*XEN_PROPERTIES, "iommus") and not d.property.endswith("/")
        ]  # fmt: skip
        if providers:
            self.notice("DT201", node, f"dropped, see the bindings: {', '.join(providers)}")
        if "xen,passthrough" not in node.props:
            self.notice("DT103", node, "the host node has no xen,passthrough: dom0 has it too")
        for parent in node.ancestors():
            if parent.props.get("dma-ranges"):
                self.notice("DT208", node, f"dma-ranges of {parent.path} is not carried")

    def _phandles(self, devices: Sequence[_Device], done: list[DeviceBinding], tree: Tree) -> None:
        """Give carried nodes their phandles back where a carried property names them."""
        reserved = reserved_phandles(self.space.guest)
        for at, device in enumerate(devices):
            root = tree.node(done[at].guest_path)
            assert root is not None, "emitted above"
            for source, copy in _pairs(device.node, root):
                phandle = source.phandle
                if phandle is None or phandle not in self.carried.referenced:
                    continue
                if phandle in reserved:
                    reason = f"its phandle {phandle:#x} is {reserved[phandle]}'s in the guest"
                    raise Refusal("DT402", source.path, reason, "renumber the host tree")
                copy.set_cells("phandle", phandle)
            done[at] = replace(done[at], dropped=tuple(device.dropped))


def reserved_phandles(guest: GuestProfile) -> dict[int, str]:
    """Phandles that the toolstack gives to nodes of its own, with whose they are."""
    return {
        guest.gic_phandle: "the GIC",
        guest.xen_iommu_phandle: "xen_iommu",
        guest.vsmmu_phandle: "the vSMMU",
    }


def _free_name(bus: Node, host_name: str, regs: Sequence[MappedReg], hosts: set[str]) -> str:
    """The node's name with its guest unit address; numbered when the bus has that one.

    Also when it is the name of another device on the host (`hosts`): a name that a device of the
    guest has on the host stands for that device.
    """
    base = host_name.partition("@")[0]
    unit = f"@{regs[0].guest:x}" if regs else ""
    name, number = f"{base}{unit}", 1
    while name in bus.children or (name in hosts and name != host_name):
        number += 1
        name = f"{base}-{number}{unit}"
    return name


def _below(node: Node, device: Node) -> str:
    return node.path[len(device.path) + 1 :]


def _pairs(source: Node, copy: Node) -> Iterable[tuple[Node, Node]]:
    """The nodes of two trees of one shape; what `copy` lacks is left out."""
    stack = [(source, copy)]
    while stack:
        first, second = stack.pop()
        yield first, second
        stack += [(first.children[name], child) for name, child in second.children.items()]
