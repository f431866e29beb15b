# SPDX-License-Identifier: BSD-2-Clause
"""The interrupts of assigned devices: SPIs as the guest's GIC takes them, the others dropped.

Interrupts of a controller that is itself in the guest's devices stay that controller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools import account as rules
from dt_tools.binding import GuestInterrupt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.carry import Carried
    from dt_tools.device import Device, Notices
    from dt_tools.platform import Interrupt, Platform
    from dt_tools.tree import Node

INTERRUPT_PROPERTIES = ("interrupts", "interrupts-extended")
"""The properties that `DeviceInterrupts.write` takes."""


class DeviceInterrupts:
    """The interrupts of one guest's devices.

    `gic_phandle` is the guest's GIC's; `notices` is added to.
    """

    def __init__(
        self, platform: Platform, carried: Carried, gic_phandle: int, notices: Notices
    ) -> None:
        self._platform = platform
        self._carried = carried
        self._gic_phandle = gic_phandle
        self._notices = notices

    def write(self, device: Device, node: Node, target: Node, name: str) -> None:
        """The node's interrupts as SPIs of the guest's GIC; those of others are dropped.

        interrupts-extended takes precedence where a node has both (specification v0.4 §2.4.1).
        """
        if name == "interrupts" and "interrupts-extended" in node.props:
            return
        found = self._platform.interrupts_of(node)
        if self._own(device, node, target, name, found):
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
            target.set_cells("interrupt-parent", self._gic_phandle)
            device.rewrite(node, "interrupt-parent", rules.INTERRUPTS)
        names = node.strings("interrupt-names")
        if names and len(names) == len(found):
            chosen = [n for n, i in zip(names, found, strict=True) if i.kind == "SPI"]
            target.set_strings("interrupt-names", *chosen)
            device.rewrite(node, "interrupt-names", rules.NAMES)
        elif names and not lost:
            target.props["interrupt-names"] = node.props["interrupt-names"]
        device.interrupts += [GuestInterrupt(i.number, i.flags & 0xF) for i in kept]

    def explain(self, device: Device, node: Node, target: Node) -> None:
        """Say why what belongs to the interrupts is not there."""
        if {*INTERRUPT_PROPERTIES} <= node.props.keys() and "interrupts" not in target.props:
            device.drop(node, "interrupts", "interrupts-extended stands for it")
        if "interrupt-names" in node.props and "interrupt-names" not in target.props:
            kept = {*INTERRUPT_PROPERTIES} & target.props.keys()
            reason = "does not name each interrupt" if kept else "names no interrupt that is kept"
            device.drop(node, "interrupt-names", reason)
        if "interrupt-parent" in node.props and "interrupt-parent" not in target.props:
            device.drop(node, "interrupt-parent", "the guest's root names its GIC")

    def note_shared(self, devices: Sequence[Device]) -> None:
        """Note SPIs that a host node outside the guest has too: Xen routes each to one domain."""
        owners = {i.number: device.node for device in devices for i in device.interrupts}
        if not owners:
            return
        for node in self._platform.tree.walk():
            if (
                not any(name in node.props for name in INTERRUPT_PROPERTIES)
                or node.path in self._carried.paths
            ):
                continue
            for interrupt in self._platform.interrupts_of(node):
                if interrupt.kind == "SPI" and interrupt.number in owners:
                    text = f"interrupt {interrupt.number} is {node.path}'s too"
                    self._notices.note("DT307", owners[interrupt.number], text)

    def _own(
        self, device: Device, node: Node, target: Node, name: str, found: Sequence[Interrupt]
    ) -> bool:
        """Interrupts of controllers inside the guest's devices, as those take them."""
        if not found or not all(i.controller_path in self._carried.paths for i in found):
            return False
        controllers = [self._platform.tree.node(i.controller_path or "") for i in found]
        phandles = [None if node is None else node.phandle for node in controllers]
        if None in phandles or (name == "interrupts" and len(set(phandles)) > 1):
            return False
        pairs = [(p, i.specifier) for p, i in zip(phandles, found, strict=True) if p is not None]
        self._carried.referenced.update(phandle for phandle, _ in pairs)
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

    def _lost(self, device: Device, node: Node, name: str, lost: Sequence[Interrupt]) -> None:
        if lost:
            controllers = ", ".join(dict.fromkeys(str(i.controller_path) for i in lost))
            kinds = ", ".join(dict.fromkeys(i.kind for i in lost))
            reason = f"{len(lost)} of {controllers} ({kinds}): not SPIs of the GIC"
        else:
            reason = "cannot be traced to an interrupt controller"
        device.drop(node, name, reason)
        self._notices.note("DT302", device.node, f"{device.where(node, name)} dropped: {reason}")


def _inside(target: Node) -> Iterable[Node]:
    """The nodes above `target` that are part of its device."""
    above = list(target.ancestors())
    return above[: max(0, len(above) - 2)]
