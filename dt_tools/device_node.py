# SPDX-License-Identifier: BSD-2-Clause
"""The guest's nodes of an assigned device: what each property of the host's becomes.

Registers, interrupts, StreamIDs and providers are written by the modules that know them; every
other property is carried as the host has it, or dropped with its reason (`dt_tools.carry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools import account as rules
from dt_tools.binding import DeviceBinding
from dt_tools.carry import XEN_PROPERTIES, Lost
from dt_tools.device_interrupts import INTERRUPT_PROPERTIES
from dt_tools.device_registers import BUS_PROPERTIES
from dt_tools.providers import COMPANIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.binding import MappedReg
    from dt_tools.carry import Carried
    from dt_tools.device import Device, Notices
    from dt_tools.device_interrupts import DeviceInterrupts
    from dt_tools.device_providers import DeviceProviders
    from dt_tools.device_registers import DeviceRegisters
    from dt_tools.device_streams import DeviceStreams
    from dt_tools.tree import Node

# Decided when the interrupts, or all references, are known.
_LATER = ("phandle", "linux,phandle", "interrupt-names", "interrupt-parent")
# What every guest node does without, or has by another way; not worth a notice.
_QUIET = (*XEN_PROPERTIES, "iommus", "phandle", "linux,phandle", "interrupt-parent")


class DeviceNodes:
    """Writes the guest's nodes of devices, with the parts that know one kind of property each.

    `notices` is added to.
    """

    def __init__(
        self,
        carried: Carried,
        registers: DeviceRegisters,
        interrupts: DeviceInterrupts,
        streams: DeviceStreams,
        providers: DeviceProviders,
        notices: Notices,
    ) -> None:
        self._carried = carried
        self._registers = registers
        self._interrupts = interrupts
        self._streams = streams
        self._providers = providers
        self._notices = notices

    def emit(self, device: Device, bus: Node, hosts: set[str]) -> DeviceBinding:
        """Append the guest's node of a device to `bus`; `hosts` are the host names of all devices.

        What is dropped is not in the binding yet: phandles are decided when all nodes stand.
        """
        node = device.node
        regs = self._registers.placed(device.regs)
        target = bus.add(_free_name(bus, node.name, regs, hosts))
        streams = self._streams.pairs(node)
        self._properties(device, node, target, streams)
        self._coherence(device, target)
        self._children(device, node, target)
        self._summary(device)
        for inner in device.inner.values():
            regs += self._registers.placed(inner)
        ids = tuple(vid for _, vid in streams)
        return DeviceBinding(node.path, target.path, ids, regs, tuple(device.interrupts), ())

    def _properties(
        self,
        device: Device,
        node: Node,
        target: Node,
        streams: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Copy `node`'s properties to `target`; `streams` are the device's own."""
        gone: set[str] = set()
        stand_ins = self._providers.stand_ins(device, node)
        for name in node.props:
            if name in _LATER or (name in BUS_PROPERTIES and node in device.buses):
                continue
            if name in stand_ins:
                target.set_cells(name, *stand_ins[name])
                device.rewrite(node, name, rules.CLOCKS if name == "clocks" else rules.SUPPLY)
                continue
            lost = None
            if COMPANIONS.get(name) not in stand_ins:
                lost = self._carried.reason(node, name, gone)
            if lost is not None:
                gone.add(name)
                self._providers.lose(device, node, name, lost)
            elif name == "iommus":
                target.set_cells(name, *(cell for pair in streams for cell in pair))
                device.rewrite(node, name, rules.IOMMUS)
            else:
                self._keep(device, node, target, name)
        if node in device.buses:
            self._registers.set_bus(device, node, target)
        self._interrupts.explain(device, node, target)

    def _keep(self, device: Device, node: Node, target: Node, name: str) -> None:
        """Give `target` a property that is not about what stays outside."""
        if name == "reg" and (node is device.node or node in device.inner):
            self._registers.set_reg(device, node, target)
        elif name in INTERRUPT_PROPERTIES:
            self._interrupts.write(device, node, target, name)
        elif name == "interrupt-controller" and "#interrupt-cells" not in node.props:
            device.drop(node, name, "has no #interrupt-cells: nothing can name it")
        else:
            target.props[name] = node.props[name]

    def _coherence(self, device: Device, target: Node) -> None:
        """Write what is inherited on the host and has to stand in the node itself here."""
        node = device.node
        for parent in node.ancestors():
            if "dma-coherent" in target.props or "dma-noncoherent" in target.props:
                return
            for name in ("dma-coherent", "dma-noncoherent"):
                if name in parent.props:
                    target.set_empty(name)
                    device.rewrite(node, name, rules.COHERENCE)
                    self._notices.note("DT208", node, f"{name} taken from {parent.path}")

    def _children(self, device: Device, node: Node, target: Node) -> None:
        stack = [(node, target)]
        while stack:
            source, copy = stack.pop()
            for name, child in source.children.items():
                if child.path not in self._carried.paths:
                    lost = Lost("links to devices outside the guest", child.path)
                    self._providers.lose(device, child, "", lost)
                    continue
                inner = copy.add(name)
                self._properties(device, child, inner)
                stack.append((child, inner))
            if "interrupt-controller" in copy.props and "#address-cells" not in copy.props:
                addressed = any("reg" in child.props for child in copy.children.values())
                copy.set_cells("#address-cells", 2 if addressed else 0)
                device.rewrite(source, "#address-cells", rules.CONTROLLER)

    def _summary(self, device: Device) -> None:
        node = device.node
        providers = [
            d.property for d in device.dropped if not d.property.startswith("interrupt")
            and d.property.rpartition("/")[2] not in (*_QUIET, "")
        ]  # fmt: skip
        if providers:
            self._notices.note("DT201", node, f"dropped, see the bindings: {', '.join(providers)}")
        if "xen,passthrough" not in node.props:
            self._notices.note(
                "DT103", node, "the host node has no xen,passthrough: dom0 has it too"
            )
        for parent in node.ancestors():
            if parent.props.get("dma-ranges"):
                self._notices.note("DT208", node, f"dma-ranges of {parent.path} is not carried")


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
