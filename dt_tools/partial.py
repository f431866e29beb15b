# SPDX-License-Identifier: BSD-2-Clause
"""`/passthrough`: the part of a guest's tree that describes its assigned devices.

`build_partial` makes it from the host tree and the `dtdev` list; `merge_partial` takes a tree
written by hand. A generated node carries what the guest can use: registers at their CPU address
(or placed where the guest has room), the interrupts that are SPIs of the GIC, `dma-coherent`,
`iommus` naming the vSMMU, and every other property as the host has it. A property that refers
to a node outside the guest is dropped and listed with its reason: a copied phandle would name
whatever the guest happens to have under that number.

Limits: no PCI, no child nodes with registers or StreamIDs of their own, and no provider
(clock, reset, regulator ...) is made up for the guest.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, DeviceBinding, Dropped, GuestInterrupt, MappedReg, Notice
from dt_tools.errors import Refusal
from dt_tools.extended import IOMEM, AddressMap, page_window
from dt_tools.profiles import GuestProfile, Window
from dt_tools.tree import Node, Tree, split_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.platform import Interrupt, Master, Platform

# Properties that hold phandles: name, and the cells property of what they name (None: no
# arguments follow). Carried only when everything they name is carried too.
_REFERENCES: tuple[tuple[re.Pattern[str], str | None], ...] = tuple(
    (re.compile(pattern), cells)
    for pattern, cells in (
        (r"clocks|assigned-clocks|assigned-clock-parents", "#clock-cells"),
        (r"resets", "#reset-cells"),
        (r"power-domains", "#power-domain-cells"),
        (r"phys", "#phy-cells"),
        (r"interconnects", "#interconnect-cells"),
        (r"dmas", "#dma-cells"),
        (r"mboxes", "#mbox-cells"),
        (r"hwlocks", "#hwlock-cells"),
        (r"nvmem-cells", "#nvmem-cell-cells"),
        (r"io-channels", "#io-channel-cells"),
        (r"pwms", "#pwm-cells"),
        (r"thermal-sensors", "#thermal-sensor-cells"),
        (r"sound-dai", "#sound-dai-cells"),
        (r"(.*-)?gpios?", "#gpio-cells"),
        (r".*-supply|pinctrl-[0-9]+|memory-region|phy-handle|phy|pcs-handle|tbi-handle", None),
        (r"operating-points-v2|required-opps|backlight|panel|leds|extcon|sram", None),
        (r"snps,axi-config|snps,mtl-[rt]x-config|ddc-i2c-bus|usb-phy|remote-endpoint", None),
    )
)
# Properties that hold phandles with arguments of the provider's own kind, or that describe how
# the device sits on the host's buses and interrupt controllers: never carried.
_HOST_ONLY = re.compile(
    r"iommu-map(-mask)?|msi-(parent|map|map-mask)|interrupt-map(-mask)?|interrupt-affinity"
    r"|access-controllers|nvidia,bpmp|(.*[,-])?syscon|.*[,-]s?grf|rockchip,pmu|fsl,usbmisc"
    r"|qcom,(ext-regs|gmu|halt-regs|ice|qmp|rproc|smem-states|qaccept-regs)"
    r"|(.*,)?io-backends|cooling-device|gpio-ranges|dma-ranges|ranges|stream-match-mask"
)
_XEN = ("xen,passthrough", "xen,path", "xen,reg", "xen,force-assign-without-iommu")
# A list of names belongs to the property whose entries it names, in the same order.
_COMPANIONS = {
    "clock-names": "clocks",
    "assigned-clock-rates": "assigned-clocks",
    "reset-names": "resets",
    "power-domain-names": "power-domains",
    "phy-names": "phys",
    "interconnect-names": "interconnects",
    "dma-names": "dmas",
    "mbox-names": "mboxes",
    "hwlock-names": "hwlocks",
    "nvmem-cell-names": "nvmem-cells",
    "io-channel-names": "io-channels",
    "pwm-names": "pwms",
    "memory-region-names": "memory-region",
    "pinctrl-names": "pinctrl-0",
    "qcom,smem-state-names": "qcom,smem-states",
}
# Graph nodes: they only link to other devices, all of which stay outside.
_GRAPH = re.compile(r"(in-|out-)?ports?(@.*)?")
_INTERRUPTS = ("interrupts", "interrupts-extended")
# A phandle is a cell; these two values are reserved (Devicetree Specification v0.4 §2.3.3).
_NO_PHANDLES = (0, 0xFFFFFFFF)


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
        self.phandles = platform.tree.phandles()
        self.masters = {master.path: master for master in platform.masters}
        self.carried: set[str] = set()
        self.referenced: set[int] = set()

    def build(self, paths: Sequence[str], pins: Sequence[MappedReg]) -> Partial:
        nodes = [self.platform.resolve(path) for path in paths]
        for node in nodes:
            self._carry(node)
        devices = [_Device(node, self._registers(node)) for node in nodes]
        iomem = self._place(devices, pins)
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

    # What of the host tree goes into the guest.

    def _carry(self, node: Node) -> None:
        """Note the nodes at and below `node` that are carried; refuse what cannot be."""
        for inner in node.walk():
            if inner is not node and self._in_graph(inner, node):
                continue
            self.carried.add(inner.path)
            if inner is node:
                continue
            reason = None
            if "iommus" in inner.props or "iommu-map" in inner.props:
                reason = f"its child {inner.path} is a DMA master of its own"
            elif "reg" in inner.props and inner.parent and "ranges" in inner.parent.props:
                reason = f"its child {inner.path} has registers of its own"
            if reason:
                raise Refusal("DT210", node.path, reason, "assign a device without such children")

    @staticmethod
    def _in_graph(inner: Node, device: Node) -> bool:
        node: Node | None = inner
        while node is not None and node is not device:
            if _GRAPH.fullmatch(node.name):
                return True
            node = node.parent
        return False

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
        for path in self.platform.page_neighbours(node, len(self.carried) + 1):
            if path not in self.carried:
                reason = f"shares a 4 KiB page of registers with {path}"
                raise Refusal("DT205", node.path, reason, f"assign {path} too, or neither")
        return tuple(Window(reg.cpu_base, reg.size) for reg in regs)

    def _place(self, devices: Sequence[_Device], pins: Sequence[MappedReg]) -> list[MappedReg]:
        """Give every page of registers a guest address; whole runs of pages stay together."""
        runs = _runs(
            (page_window(reg.base, reg.size), device.node.path)
            for device in devices
            for reg in device.regs
        )
        placed: list[MappedReg] = []
        homeless: list[tuple[Window, str, str]] = []
        for window, path in runs:
            pinned = _pinned(window, path, pins)
            if pinned is not None:
                self._check_pin(Window(pinned, window.size), path)
                placed.append(MappedReg(window.base, pinned, window.size))
                continue
            clash = self.space.clash(window)
            if clash is None:
                self.space.claim_device(window, path)
                placed.append(MappedReg(window.base, window.base, window.size))
            else:
                homeless.append((window, path, clash))
        placed += [self._move(*item) for item in homeless]
        return sorted(placed, key=lambda reg: reg.host)

    def _check_pin(self, target: Window, path: str) -> None:
        if self.space.owner(target) != IOMEM:
            clash = self.space.clash(target) or "is not claimed"
            reason = f"iomem puts its registers at {target.base:#x}, which {clash}"
            raise Refusal("DT207", path, reason, "choose another @GFN")

    def _move(self, window: Window, path: str, clash: str) -> MappedReg:
        target = self.space.place(window.size)
        if target is None:
            reason = f"its registers {window.base:#x}+{window.size:#x} find no room in the guest"
            raise Refusal("DT207", path, reason, "assign fewer devices or give an iomem @GFN")
        self.space.claim_device(target, path)
        text = f"registers {window.base:#x}+{window.size:#x} placed at guest {target.base:#x}: "
        self.notices.append(Notice("DT207", path, f"{text}1:1 {clash}"))
        return MappedReg(window.base, target.base, window.size)

    # The guest node.

    def _emit(self, device: _Device, bus: Node, iomem: Sequence[MappedReg]) -> DeviceBinding:
        node = device.node
        bases = [reg.host for reg in iomem]
        regs: list[MappedReg] = []
        for reg in device.regs:
            run = iomem[bisect_right(bases, reg.base) - 1]
            regs.append(MappedReg(reg.base, run.guest + reg.base - run.host, reg.size))
        target = bus.add(_free_name(bus, node.name, regs))
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
            reason = self._reason(node, name, gone, device.node)
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

    def _reason(self, node: Node, name: str, gone: set[str], device: Node) -> str | None:
        """Why the property is not carried, None when it is (perhaps rewritten)."""
        if name in _XEN:
            return "meant for Xen, not for the guest"
        if name == "iommus":
            return None if self.viommu else "the guest has no vSMMU; stage 2 contains its DMA"
        if _HOST_ONLY.fullmatch(name):
            return "describes the host's buses or a provider outside the guest"
        owner = _COMPANIONS.get(name)
        if owner is not None and owner in node.props:
            lost = owner in gone or self._reason(node, owner, gone, device) is not None
            return f"names the entries of {owner}, which is dropped" if lost else None
        for pattern, cells in _REFERENCES:
            if pattern.fullmatch(name):
                return self._reference(node, name, cells)
        return None

    def _reference(self, node: Node, name: str, cells_name: str | None) -> str | None:
        """None when every phandle of the property names a carried node; notes those phandles."""
        cells = node.cells(name)
        if cells is None:
            # A boolean or a string of that name holds no phandle.
            return None
        at, wanted = 0, set()
        while at < len(cells):
            phandle, at = cells[at], at + 1
            if phandle in _NO_PHANDLES:
                continue
            provider = self.phandles.get(phandle)
            if provider is None:
                return f"phandle {phandle:#x} names no node of the host tree"
            if provider.path not in self.carried:
                return f"{provider.path} is not assigned"
            wanted.add(phandle)
            at += (provider.u32(cells_name) or 0) if cells_name else 0
        self.referenced |= wanted
        return None

    # Interrupts.

    def _interrupts(self, device: _Device, node: Node, target: Node, name: str) -> None:
        """The node's interrupts as SPIs of the guest's GIC; those of others are dropped.

        interrupts-extended takes precedence where a node has both (specification v0.4 §2.4.1).
        """
        if name == "interrupts" and "interrupts-extended" in node.props:
            return
        found = self.platform.interrupts_of(node)
        if found and all(i.controller_path in self.carried for i in found):
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
            if not any(name in node.props for name in _INTERRUPTS) or node.path in self.carried:
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
            self.referenced.update(node.cells(name) or ())
            return
        controller = self.platform.tree.node(first.controller_path or "")
        if controller is not None and controller.phandle is not None:
            target.set_cells("interrupt-parent", controller.phandle)
            self.referenced.add(controller.phandle)

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
                if child.path not in self.carried:
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
            and d.property not in (*_XEN, "iommus") and not d.property.endswith("/")
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
                if phandle is None or phandle not in self.referenced:
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


def _runs(windows: Iterable[tuple[Window, str]]) -> list[tuple[Window, str]]:
    """Overlapping and adjacent windows as one, by address; the path is the first one's."""
    runs: list[tuple[Window, str]] = []
    for window, path in sorted(windows, key=lambda item: (item[0].base, item[0].end)):
        if runs and window.base <= runs[-1][0].end:
            last, owner = runs[-1]
            runs[-1] = (Window(last.base, max(last.end, window.end) - last.base), owner)
        else:
            runs.append((window, path))
    return runs


def _pinned(window: Window, path: str, pins: Sequence[MappedReg]) -> int | None:
    """The guest address that iomem gives to `window`, None when iomem does not name it."""
    for pin in pins:
        host = Window(pin.host, pin.size)
        if not host.overlaps(window):
            continue
        if window.base < host.base or window.end > host.end:
            reason = (
                f"iomem covers {host.base:#x}+{host.size:#x} of its registers "
                f"{window.base:#x}+{window.size:#x} only"
            )
            raise Refusal("DT207", path, reason, "let one iomem entry cover all, or none")
        return pin.guest + window.base - pin.host
    return None


def _free_name(bus: Node, host_name: str, regs: Sequence[MappedReg]) -> str:
    """The node's name with its guest unit address; numbered when the bus has that one."""
    base = host_name.partition("@")[0]
    unit = f"@{regs[0].guest:x}" if regs else ""
    name, number = f"{base}{unit}", 1
    while name in bus.children:
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


# A /passthrough written by hand.


def merge_partial(
    tree: Tree,
    partial: Tree,
    *,
    guest: GuestProfile,
    platform: Platform | None = None,
    devices: Sequence[str] = (),
    bindings: Bindings | None = None,
) -> Partial:
    """Copy `/passthrough` and `/aliases` of `partial` into the guest's `tree`.

    Everything is copied as it stands and the rest of `partial` is dropped. With `bindings` (the
    guest has a vSMMU) every `iommus` entry at any depth becomes <vSMMU vMasterID>. An entry's
    SMMU is that of the host node among `devices` which the node names by `xen,path` or by its
    own name, else that of the entry's host phandle. Registers and interrupts stay the user's:
    the returned `Partial` has the devices with their ids, and notices.

    Raises:
        Refusal: DT211 no /passthrough; DT402 to DT404 a phandle; DT405 a malformed iommus;
            DT501 an entry that no assigned device has; DT505 an iommu-map.
    """
    odd = next((n for n in partial.root.children if n.startswith("passthrough@")), None)
    if odd is not None or "passthrough" not in partial.root.children:
        reason = f"is /{odd}" if odd else "is missing"
        fix = "name the node exactly /passthrough"
        raise Refusal("DT211", "/passthrough", f"{reason} in the partial tree", fix)
    for name in ("passthrough", "aliases"):
        if name in partial.root.children:
            tree.root.add(name).copy_from(partial.root.children[name])
    _check_phandles(tree, guest)
    notices = _check_bus(tree.root.children["passthrough"])
    if bindings is None:
        return Partial(tree, notices=tuple(notices))
    if platform is None:
        _check_no_iommus(tree.root.children["passthrough"])
        return Partial(tree, notices=tuple(notices))
    merger = _Merger(platform, devices, bindings, partial, guest)
    return merger.merge(tree.root.children["passthrough"], tree, notices)


def _check_phandles(tree: Tree, guest: GuestProfile) -> None:
    reserved = reserved_phandles(guest)
    seen: dict[int, str] = {}
    copied = [tree.root.children[n] for n in ("passthrough", "aliases") if n in tree.root.children]
    for node in (inner for top in copied for inner in top.walk()):
        phandle = node.phandle
        if phandle is None:
            continue
        path = node.path
        if phandle in _NO_PHANDLES:
            raise Refusal("DT404", path, f"phandle {phandle:#x} is no phandle", "use 1 to 64999")
        if phandle in reserved:
            reason = f"phandle {phandle} is reserved for {reserved[phandle]}"
            raise Refusal("DT402", path, reason, "use 1 to 64999")
        if phandle in seen:
            reason = f"phandle {phandle:#x} is {seen[phandle]}'s already"
            raise Refusal("DT403", path, reason, "give each node its own phandle")
        seen[phandle] = path


def _check_bus(bus: Node) -> list[Notice]:
    """Xen takes any /passthrough; a guest finds no device behind one that is no bus."""
    wrong = [
        text
        for text, right in (
            ('compatible = "simple-bus"', bus.is_compatible("simple-bus")),
            ("ranges", "ranges" in bus.props),
            ("#address-cells", bus.u32("#address-cells") in (1, 2)),
            ("#size-cells", bus.u32("#size-cells") in (1, 2)),
        )
        if not right
    ]
    if not wrong:
        return []
    return [Notice("DT213", bus.path, f"lacks {', '.join(wrong)}: a guest will not probe it")]


def _check_no_iommus(bus: Node) -> None:
    for node in bus.walk():
        if "iommus" in node.props or "iommu-map" in node.props:
            reason = "has iommus, and there is no host tree to find its SMMU in"
            raise Refusal("DT501", node.path, reason, "give the host's device tree")


class _Merger:
    def __init__(
        self,
        platform: Platform,
        devices: Sequence[str],
        bindings: Bindings,
        partial: Tree,
        guest: GuestProfile,
    ) -> None:
        masters = {master.path: master for master in platform.masters}
        paths = [platform.resolve(device).path for device in devices]
        self.hosts: dict[str, Master] = {path: masters[path] for path in paths}
        self.by_name: dict[str, list[str]] = {}
        for path in paths:
            self.by_name.setdefault(path.rpartition("/")[2], []).append(path)
        self.bindings = bindings
        self.vsmmu_phandle = guest.vsmmu_phandle
        # A phandle that the partial tree defines is its own and says nothing about the host.
        own = partial.phandles()
        self.smmus = {
            smmu.phandle: smmu.path
            for smmu in platform.smmus
            if smmu.phandle is not None and smmu.phandle not in own
        }
        self.found: dict[str, tuple[str, tuple[int, ...]]] = {}

    def merge(self, bus: Node, tree: Tree, notices: list[Notice]) -> Partial:
        for node in bus.walk():
            if "iommu-map" in node.props:
                reason = "has an iommu-map, which is not rewritten here"
                raise Refusal("DT505", node.path, reason, "assign devices with iommus only")
            if "iommus" in node.props:
                self._rewrite(node)
            else:
                host = self._host(node)
                if host is not None:
                    self.found.setdefault(host, (node.path, ()))
        for path, master in self.hosts.items():
            given = self.found.get(path, ("", ()))[1]
            missing = len({(s.smmu_path, s.stream_id) for s in master.streams}) - len(given)
            if missing:
                text = f"{missing} of its streams are not in the partial tree: their DMA faults"
                notices.append(Notice("DT504", path, text))
        devices = tuple(DeviceBinding(path, at, ids) for path, (at, ids) in self.found.items())
        return Partial(tree, devices, tuple(notices))

    def _host(self, node: Node) -> str | None:
        """The assigned host node that a guest node stands for, by xen,path or by name."""
        named = node.string("xen,path")
        if named is not None:
            if named not in self.hosts:
                reason = f"its xen,path {named} is not in dtdev"
                raise Refusal("DT501", node.path, reason, "add that path to dtdev")
            return named
        paths = self.by_name.get(node.name, [])
        return paths[0] if len(paths) == 1 else None

    def _rewrite(self, node: Node) -> None:
        cells = node.cells("iommus")
        if not cells or len(cells) % 2:
            reason = f"iommus has {len(node.props['iommus'])} bytes, not pairs of cells"
            raise Refusal("DT405", node.path, reason, "write <phandle StreamID> pairs")
        host = self._host(node)
        ids: list[int] = []
        for phandle, stream_id in zip(cells[::2], cells[1::2], strict=True):
            ids.append(self._vmaster_id(node, host, phandle, stream_id))
        node.set_cells("iommus", *(cell for vid in ids for cell in (self.vsmmu_phandle, vid)))
        if host is not None:
            self.found[host] = (node.path, tuple(dict.fromkeys(ids)))

    def _vmaster_id(self, node: Node, host: str | None, phandle: int, stream_id: int) -> int:
        smmu = self.smmus.get(phandle)
        if host is not None:
            smmu = self._smmu_of(node, host, smmu, stream_id)
        vid = None if smmu is None else self.bindings.vmaster_id(smmu, stream_id)
        if vid is None:
            reason = f"iommus <{phandle:#x} {stream_id:#x}> is no stream of a device in dtdev"
            fix = "name the node like its host node, or give xen,path, and list it in dtdev"
            raise Refusal("DT501", node.path, reason, fix)
        return vid

    def _smmu_of(self, node: Node, host: str, claimed: str | None, stream_id: int) -> str:
        """The SMMU of the host device's stream; `claimed` is what the entry's phandle says."""
        streams = self.hosts[host].streams
        smmus = list(dict.fromkeys(s.smmu_path for s in streams if s.stream_id == stream_id))
        if claimed in smmus:
            return claimed
        if claimed is None and len(smmus) == 1:
            return smmus[0]
        said = f"({claimed or 'unknown SMMU'}, {stream_id:#x})"
        has = ", ".join(f"({s.smmu_path}, {s.stream_id:#x})" for s in streams[:8])
        reason = f"iommus says {said}, the host's {host} has {has}"
        raise Refusal("DT501", node.path, reason, "copy the host node's iommus unchanged")
