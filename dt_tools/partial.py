# SPDX-License-Identifier: BSD-2-Clause
"""`/passthrough`: the part of a guest's tree that describes its assigned devices.

`build_partial` makes it from the host tree and the `dtdev` list. A node carries what the guest
can use: registers at their CPU address (or placed where the guest has room), the interrupts that
are SPIs of the GIC, `dma-coherent`, `iommus` naming the vSMMU, and every other property as the
host has it. What is dropped is listed with its reason, what is rewritten with its rule.

Limits: no PCI, no child nodes with StreamIDs of their own (libxl rewrites the `iommus` of a device
and not below it), and of providers only clocks and regulators have stand-ins.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dt_tools import account as rules
from dt_tools.account import Account, account
from dt_tools.binding import Bindings, DeviceBinding, Dropped, GuestInterrupt, MappedReg, Notice
from dt_tools.carry import XEN_PROPERTIES, Carried, Lost
from dt_tools.errors import Refusal
from dt_tools.placement import place_registers
from dt_tools.profiles import Window
from dt_tools.providers import COMPANIONS
from dt_tools.stubs import DEFAULT_CLOCK_HZ, PHANDLE_LIMIT, Stubs, merged
from dt_tools.tree import Node, Tree, split_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.extended import AddressMap
    from dt_tools.platform import Interrupt, Platform
    from dt_tools.profiles import GuestProfile

Providers = Literal["drop", "stub", "refuse"]
_INTERRUPTS = ("interrupts", "interrupts-extended")
# Decided when the interrupts, or all references, are known.
_LATER = ("phandle", "linux,phandle", "interrupt-names", "interrupt-parent")
_BUS = ("#address-cells", "#size-cells", "ranges")
# What every guest node does without, or has by another way; not worth a notice.
_QUIET = (*XEN_PROPERTIES, "iommus", "phandle", "linux,phandle", "interrupt-parent")


@dataclass(frozen=True, slots=True)
class Partial:
    """A tree that holds `/passthrough` and what the guest's configuration has to map.

    `iomem` are whole 4 KiB pages, in bytes, sorted by host address; `irqs` are GIC interrupt
    ids (the first SPI is 32), sorted. `accounts` say of each device what became of its properties.
    """

    tree: Tree
    devices: tuple[DeviceBinding, ...] = ()
    notices: tuple[Notice, ...] = ()
    iomem: tuple[MappedReg, ...] = ()
    irqs: tuple[int, ...] = ()
    accounts: tuple[Account, ...] = ()


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
    providers: Providers = "drop",
    stub_clock_hz: int = DEFAULT_CLOCK_HZ,
) -> Partial:
    """Make `/passthrough` for the devices at host paths `devices`, in that order.

    `bindings` is what `allocate` returned for the same list. Registers take their place in
    `space`: where `pins` (the configuration's iomem, whole pages, claimed in `space` as `IOMEM`)
    puts them, else 1:1, else in the first free room. `providers` says what becomes of a property
    that names a clock, regulator, reset ... outside the guest: it is dropped; a stand-in is made
    where there is one (`stub_clock_hz`: for clocks of unknown rate), else it is dropped; or the
    device is refused.

    Raises:
        UserError: a path is not in the host tree.
        Refusal: DT201, DT202, DT205, DT207, DT210, DT212 or DT402, with the path of the device.
    """
    builder = _Builder(platform, bindings, space, viommu)
    builder.policy = providers
    builder.stubs.clock_hz = stub_clock_hz
    return builder.build(devices, pins)


class _Device:
    """A device while it is built: its host node and what is known of its guest node.

    `inner` are the registers of nodes below it, by node; `buses` the nodes they are behind.
    """

    def __init__(self, node: Node, regs: tuple[Window, ...]) -> None:
        self.node = node
        self.regs = regs
        self.inner: dict[Node, tuple[Window, ...]] = {}
        self.buses: set[Node] = set()
        self.dropped: list[Dropped] = []
        self.rules: dict[str, str] = {}
        self.interrupts: list[GuestInterrupt] = []
        self.stubbed: list[str] = []

    def where(self, node: Node, name: str) -> str:
        """A property's name, with the path of a node below the device."""
        return name if node is self.node else f"{_below(node, self.node)}/{name}"

    def drop(self, node: Node, name: str, reason: str) -> None:
        """Note a property that the guest does not have."""
        self.dropped.append(Dropped(self.where(node, name), reason))

    def rewrite(self, node: Node, name: str, rule: str) -> None:
        """Note a property that the guest has by a rule."""
        self.rules[self.where(node, name)] = rule


class _Builder:
    policy: Providers = "drop"

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
        self.stubs = Stubs(self.carried.phandles, DEFAULT_CLOCK_HZ)
        self.names: set[str] = set()
        self.iomem: list[MappedReg] = []
        self.bases: list[int] = []

    def build(self, paths: Sequence[str], pins: Sequence[MappedReg]) -> Partial:
        nodes = [self.platform.resolve(path) for path in paths]
        self.carried.add(nodes)
        self.names = {node.name for node in nodes}
        devices = [self._device(node) for node in nodes]
        windows = [
            (reg, device.node.path)
            for device in devices
            for regs in (device.regs, *device.inner.values())
            for reg in regs
        ]
        self.iomem, moved = place_registers(windows, self.space, pins)
        self.bases = [reg.host for reg in self.iomem]
        self.notices += moved
        tree = Tree()
        tree.root.set_cells("#address-cells", 2)
        tree.root.set_cells("#size-cells", 2)
        bus = new_passthrough(tree.root)
        done = [self._emit(device, bus) for device in devices]
        self._emit_stubs(devices, bus)
        accounts = self._phandles(devices, done, tree)
        irqs = {interrupt.number for device in devices for interrupt in device.interrupts}
        self._shared_spis(devices)
        return Partial(
            tree,
            tuple(done),
            tuple(self.notices),
            tuple(self.iomem),
            tuple(sorted(irqs)),
            accounts,
        )

    def notice(self, rule: str, node: Node, message: str) -> None:
        self.notices.append(Notice(rule, node.path, message))

    # Registers.

    def _device(self, node: Node) -> _Device:
        device = _Device(node, self._registers(node))
        for inner in node.walk():
            bus = inner.parent
            if (
                inner is node
                or bus is None
                or inner.path not in self.carried.paths
                or "reg" not in inner.props
                or "ranges" not in bus.props
            ):
                continue
            device.inner[inner] = self._inner_registers(device, inner)
            above: Node | None = bus
            while above is not None and above not in device.buses:
                device.buses.add(above)
                above = None if above is node else above.parent
        return device

    def _registers(self, node: Node) -> tuple[Window, ...]:
        """The device's registers at their CPU addresses; checks that its pages are its own."""
        if "reg" not in node.props:
            self.notice("DT202", node, "has no reg; the guest node has no registers")
            return ()
        regs = self._windows(node)
        if regs is None:
            reason = "its reg is not CPU addressable (bus address, ranges or size)"
            fix = "assign a device whose reg translates to CPU addresses through every ranges"
            if node.parent is not None and node.parent.u32("#size-cells") == 0:
                reason = f"its reg is a number on {node.parent.path}, of which it is a part"
                fix = "it works for that device's driver only and cannot be assigned by itself"
            raise Refusal("DT202", node.path, reason, fix)
        self._check_pages(node, node)
        return regs

    def _inner_registers(self, device: _Device, inner: Node) -> tuple[Window, ...]:
        """The registers of a node below a device."""
        regs = self._windows(inner)
        bus = inner.parent
        if regs is None or bus is None or bus.string("device_type") in ("pci", "pciex"):
            reason = f"its child {inner.path} has registers that are not CPU addressable"
            raise Refusal(
                "DT210", device.node.path, reason, "assign a device without such children"
            )
        self._check_pages(device.node, inner)
        return regs

    def _windows(self, node: Node) -> tuple[Window, ...] | None:
        """The node's registers; None when one is not for a CPU."""
        regs = self.platform.reg_of(node)
        if not regs or any(reg.size == 0 or reg.cpu_base + reg.size > 1 << 64 for reg in regs):
            return None
        return tuple(Window(reg.cpu_base, reg.size) for reg in regs)

    def _check_pages(self, device: Node, node: Node) -> None:
        # A limit above the guest's own nodes, so that one outside them cannot hide behind them.
        for path in self.platform.page_neighbours(node, len(self.carried.paths) + 1):
            if path not in self.carried.paths:
                reason = f"shares a 4 KiB page of registers with {path}"
                if node is not device:
                    reason = f"its child {node.path} {reason}"
                raise Refusal("DT205", device.path, reason, f"assign {path} too, or neither")

    def _placed(self, regs: Iterable[Window]) -> tuple[MappedReg, ...]:
        """Where the guest has the registers."""
        runs = [(reg, self.iomem[bisect_right(self.bases, reg.base) - 1]) for reg in regs]
        return tuple(
            MappedReg(reg.base, run.guest + reg.base - run.host, reg.size) for reg, run in runs
        )

    # The guest node.

    def _emit(self, device: _Device, bus: Node) -> DeviceBinding:
        node = device.node
        regs = self._placed(device.regs)
        target = bus.add(_free_name(bus, node.name, regs, self.names))
        streams = self._streams(node)
        self._properties(device, node, target, streams)
        self._coherence(device, target)
        self._children(device, node, target)
        self._summary(device)
        for inner in device.inner.values():
            regs += self._placed(inner)
        ids = tuple(vid for _, vid in streams)
        return DeviceBinding(node.path, target.path, ids, regs, tuple(device.interrupts), ())

    def _streams(self, node: Node) -> list[tuple[int, int]]:
        """(phandle of the vSMMU, vMasterID) of the node's streams, in the host's order."""
        if not self.viommu:
            return []
        pairs: dict[tuple[int, int], None] = {}
        for stream in self.masters[node.path].streams:
            vid = self.bindings.vmaster_id(stream.smmu_path, stream.stream_id)
            assert vid is not None, "bindings are of another dtdev list"
            phandle = self.bindings.phandle_of(stream.smmu_path)
            pairs[self.space.guest.vsmmu_phandle if phandle is None else phandle, vid] = None
        return list(pairs)

    def _properties(
        self,
        device: _Device,
        node: Node,
        target: Node,
        streams: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Copy `node`'s properties to `target`; `streams` are the device's own."""
        gone: set[str] = set()
        stand_ins = self._stand_ins(device, node) if self.policy == "stub" else {}
        for name in node.props:
            if name in _LATER or (name in _BUS and node in device.buses):
                continue
            if name in stand_ins:
                target.set_cells(name, *stand_ins[name])
                device.rewrite(node, name, rules.CLOCKS if name == "clocks" else rules.SUPPLY)
                continue
            lost = None
            if COMPANIONS.get(name) not in stand_ins:
                lost = self.carried.reason(node, name, gone)
            if lost is not None:
                gone.add(name)
                self._lose(device, node, name, lost)
            elif name == "iommus":
                target.set_cells(name, *(cell for pair in streams for cell in pair))
                device.rewrite(node, name, rules.IOMMUS)
            else:
                self._keep(device, node, target, name)
        if node in device.buses:
            self._set_bus(device, node, target)
        self._interrupt_rest(device, node, target)

    def _keep(self, device: _Device, node: Node, target: Node, name: str) -> None:
        """Give `target` a property that is not about what stays outside."""
        if name == "reg" and (node is device.node or node in device.inner):
            self._set_reg(device, node, target)
        elif name in _INTERRUPTS:
            self._interrupts(device, node, target, name)
        elif name == "interrupt-controller" and "#interrupt-cells" not in node.props:
            device.drop(node, name, "has no #interrupt-cells: nothing can name it")
        else:
            target.props[name] = node.props[name]

    def _set_reg(self, device: _Device, node: Node, target: Node) -> None:
        windows = device.regs if node is device.node else device.inner[node]
        cells = [
            cell
            for reg in self._placed(windows)
            for value in (reg.guest, reg.size)
            for cell in split_cells(value, 2)
        ]
        target.set_cells("reg", *cells)
        device.rewrite(node, "reg", rules.REG)

    def _set_bus(self, device: _Device, node: Node, target: Node) -> None:
        """Addresses behind the node are the guest's, in two cells each."""
        target.set_cells("#address-cells", 2)
        target.set_cells("#size-cells", 2)
        target.set_empty("ranges")
        for name in _BUS:
            device.rewrite(node, name, rules.BUS)

    # Providers outside the guest.

    def _stand_ins(self, device: _Device, node: Node) -> dict[str, list[int]]:
        """New cells for the properties of `node` that name clocks and supplies outside."""
        found: dict[str, list[int]] = {}
        for name in node.props:
            if name != "clocks" and not name.endswith("-supply"):
                continue
            cells = self._clocks(node) if name == "clocks" else self._supply(node, name)
            if cells is not None:
                found[name] = cells
                device.stubbed.append(device.where(node, name))
        return found

    def _clocks(self, node: Node) -> list[int] | None:
        entries = self.carried.entries(node, "clocks")
        if entries is None or isinstance(entries, Lost):
            return None
        inside = [entry.node is None or entry.node.path in self.carried.paths for entry in entries]
        if all(inside):
            return None
        cells: list[int] = []
        for index, entry in enumerate(entries):
            if inside[index]:
                cells += (entry.phandle, *entry.arguments)
                self.carried.referenced |= {entry.phandle} if entry.node is not None else set()
            else:
                cells.append(self.stubs.clock(node, entries, index))
        return cells

    def _supply(self, node: Node, name: str) -> list[int] | None:
        entries = self.carried.entries(node, name)
        if entries is None or isinstance(entries, Lost) or len(entries) != 1:
            return None
        provider = entries[0].node
        if provider is None or provider.path in self.carried.paths:
            return None
        phandle = self.stubs.regulator(node, provider)
        return None if phandle is None else [phandle]

    def _emit_stubs(self, devices: Sequence[_Device], bus: Node) -> None:
        unknown = self.stubs.emit(bus, self.names)
        for device in devices:
            if device.stubbed:
                text = f"{merged(device.stubbed)}: stand-ins, the host has to leave these on"
                self.notice("DT220", device.node, text)
        for stub in unknown:
            text = f"the rate of {stub.provider.path} is not known: {self.stubs.clock_hz} Hz"
            self.notices.append(Notice("DT221", stub.devices[0], text))

    def _lose(self, device: _Device, node: Node, name: str, lost: Lost) -> None:
        """Drop a property, or refuse the device for it."""
        reason = lost.reason
        where = device.where(node, name)
        if lost.provider is not None and self.policy == "refuse":
            fix = "assign the provider too, or let the property be dropped (--providers drop)"
            raise Refusal("DT201", device.node.path, f"{where}: {reason}", fix)
        if lost.provider is not None and self.policy == "stub" and name != "memory-region":
            reason += "; Linux has no driver that could stand in for it"
            if name.endswith("-supply"):
                reason = f"{lost.reason}; its voltage is not fixed"
            elif name in ("clocks", "assigned-clocks", "assigned-clock-parents"):
                reason = lost.reason
        device.dropped.append(Dropped(where, reason))
        if lost.carve_out:
            self.notice("DT208", device.node, f"{where} dropped: {reason}")

    # Interrupts.

    def _interrupts(self, device: _Device, node: Node, target: Node, name: str) -> None:
        """The node's interrupts as SPIs of the guest's GIC; those of others are dropped.

        interrupts-extended takes precedence where a node has both (specification v0.4 §2.4.1).
        """
        if name == "interrupts" and "interrupts-extended" in node.props:
            return
        found = self.platform.interrupts_of(node)
        if self._own_interrupts(device, node, target, name, found):
            return
        kept = [i for i in found if i.kind == "SPI"]
        lost = [i for i in found if i.kind != "SPI"]
        if lost or not found:
            self._lost(device, node, name, lost)
        if not kept:
            return
        cells = [cell for i in kept for cell in (0, i.number - 32, i.flags & 0xF)]
        target.set_cells("interrupts", *cells)
        device.rewrite(node, name, rules.INTERRUPTS)
        device.rewrite(node, "interrupts", rules.INTERRUPTS)
        if any({"#interrupt-cells", "interrupt-parent"} & n.props.keys() for n in _inside(target)):
            target.set_cells("interrupt-parent", self.space.guest.gic_phandle)
            device.rewrite(node, "interrupt-parent", rules.INTERRUPTS)
        names = node.strings("interrupt-names")
        if names and len(names) == len(found):
            chosen = [n for n, i in zip(names, found, strict=True) if i.kind == "SPI"]
            target.set_strings("interrupt-names", *chosen)
            device.rewrite(node, "interrupt-names", rules.NAMES)
        elif names and not lost:
            target.props["interrupt-names"] = node.props["interrupt-names"]
        device.interrupts += [GuestInterrupt(i.number, i.flags & 0xF) for i in kept]

    def _interrupt_rest(self, device: _Device, node: Node, target: Node) -> None:
        """Say why what belongs to the interrupts is not there."""
        if {*_INTERRUPTS} <= node.props.keys() and "interrupts" not in target.props:
            device.drop(node, "interrupts", "interrupts-extended stands for it")
        if "interrupt-names" in node.props and "interrupt-names" not in target.props:
            kept = {*_INTERRUPTS} & target.props.keys()
            reason = "does not name each interrupt" if kept else "names no interrupt that is kept"
            device.drop(node, "interrupt-names", reason)
        if "interrupt-parent" in node.props and "interrupt-parent" not in target.props:
            device.drop(node, "interrupt-parent", "the guest's root names its GIC")

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

    def _own_interrupts(
        self, device: _Device, node: Node, target: Node, name: str, found: Sequence[Interrupt]
    ) -> bool:
        """Interrupts of controllers inside the guest's devices, as those take them."""
        if not found or not all(i.controller_path in self.carried.paths for i in found):
            return False
        controllers = [self.platform.tree.node(i.controller_path or "") for i in found]
        phandles = [None if node is None else node.phandle for node in controllers]
        if None in phandles or (name == "interrupts" and len(set(phandles)) > 1):
            return False
        pairs = [(p, i.specifier) for p, i in zip(phandles, found, strict=True) if p is not None]
        self.carried.referenced.update(phandle for phandle, _ in pairs)
        if name == "interrupts":
            target.set_cells(name, *(cell for _, spec in pairs for cell in spec))
            target.set_cells("interrupt-parent", pairs[0][0])
            device.rewrite(node, "interrupt-parent", rules.OWN_INTERRUPTS)
        else:
            target.set_cells(name, *(cell for p, spec in pairs for cell in (p, *spec)))
        device.rewrite(node, name, rules.OWN_INTERRUPTS)
        if "interrupt-names" in node.props:
            target.props["interrupt-names"] = node.props["interrupt-names"]
        return True

    def _lost(self, device: _Device, node: Node, name: str, lost: Sequence[Interrupt]) -> None:
        if lost:
            controllers = ", ".join(dict.fromkeys(str(i.controller_path) for i in lost))
            kinds = ", ".join(dict.fromkeys(i.kind for i in lost))
            reason = f"{len(lost)} of {controllers} ({kinds}): not SPIs of the GIC"
        else:
            reason = "cannot be traced to an interrupt controller"
        device.drop(node, name, reason)
        self.notice("DT302", device.node, f"{device.where(node, name)} dropped: {reason}")

    # What is inherited on the host and has to stand in the node itself in the guest.

    def _coherence(self, device: _Device, target: Node) -> None:
        node = device.node
        for parent in node.ancestors():
            if "dma-coherent" in target.props or "dma-noncoherent" in target.props:
                return
            for name in ("dma-coherent", "dma-noncoherent"):
                if name in parent.props:
                    target.set_empty(name)
                    device.rewrite(node, name, rules.COHERENCE)
                    self.notice("DT208", node, f"{name} taken from {parent.path}")

    def _children(self, device: _Device, node: Node, target: Node) -> None:
        stack = [(node, target)]
        while stack:
            source, copy = stack.pop()
            for name, child in source.children.items():
                if child.path not in self.carried.paths:
                    lost = Lost("links to devices outside the guest", child.path)
                    self._lose(device, child, "", lost)
                    continue
                inner = copy.add(name)
                self._properties(device, child, inner)
                stack.append((child, inner))
            if "interrupt-controller" in copy.props and "#address-cells" not in copy.props:
                addressed = any("reg" in child.props for child in copy.children.values())
                copy.set_cells("#address-cells", 2 if addressed else 0)
                device.rewrite(source, "#address-cells", rules.CONTROLLER)

    def _summary(self, device: _Device) -> None:
        node = device.node
        providers = [
            d.property for d in device.dropped if not d.property.startswith("interrupt")
            and d.property.rpartition("/")[2] not in (*_QUIET, "")
        ]  # fmt: skip
        if providers:
            self.notice("DT201", node, f"dropped, see the bindings: {', '.join(providers)}")
        if "xen,passthrough" not in node.props:
            self.notice("DT103", node, "the host node has no xen,passthrough: dom0 has it too")
        for parent in node.ancestors():
            if parent.props.get("dma-ranges"):
                self.notice("DT208", node, f"dma-ranges of {parent.path} is not carried")

    def _phandles(
        self, devices: Sequence[_Device], done: list[DeviceBinding], tree: Tree
    ) -> tuple[Account, ...]:
        """Give carried nodes their phandles back where a carried property names them."""
        accounts = []
        for at, device in enumerate(devices):
            root = tree.node(done[at].guest_path)
            assert root is not None, "emitted above"
            for source, copy in _pairs(device.node, root):
                self._phandle(device, source, copy)
            accounts.append(account(device.node, root, device.rules, device.dropped))
            done[at] = replace(done[at], dropped=tuple(device.dropped))
        return tuple(accounts)

    def _phandle(self, device: _Device, source: Node, copy: Node) -> None:
        phandle = source.phandle
        wanted = phandle is not None and phandle in self.carried.referenced
        # Of several nodes with one phandle it is the first one's.
        if phandle is not None and wanted and self.carried.phandles[phandle] is source:
            reserved = reserved_phandles(self.space.guest)
            if phandle in reserved:
                reason = f"its phandle {phandle:#x} is {reserved[phandle]}'s in the guest"
                raise Refusal("DT402", source.path, reason, "renumber the host tree")
            if phandle >= PHANDLE_LIMIT:
                reason = f"its phandle {phandle:#x} is not below {PHANDLE_LIMIT}, as Xen wants it"
                raise Refusal("DT402", source.path, reason, "renumber the host tree")
            copy.set_cells("phandle", phandle)
            device.rewrite(source, "phandle", rules.PHANDLE)
        for name in ("phandle", "linux,phandle"):
            if name in source.props and name not in copy.props:
                why = "phandle stands for it" if "phandle" in copy.props else "nothing names it"
                device.drop(source, name, why)


def reserved_phandles(guest: GuestProfile) -> dict[int, str]:
    """Phandles that the toolstack gives to nodes of its own, with whose they are."""
    return {
        guest.gic_phandle: "the GIC",
        guest.xen_iommu_phandle: "xen_iommu",
        guest.vsmmu_phandle: "the vSMMU",
        guest.its_phandle: "the ITS",
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


def _inside(target: Node) -> Iterable[Node]:
    """The nodes above `target` that are part of its device."""
    above = list(target.ancestors())
    return above[: max(0, len(above) - 2)]


def _pairs(source: Node, copy: Node) -> Iterable[tuple[Node, Node]]:
    """The nodes of two trees of one shape; what `copy` lacks is left out."""
    stack = [(source, copy)]
    while stack:
        first, second = stack.pop()
        yield first, second
        stack += [(first.children[name], child) for name, child in second.children.items()]
