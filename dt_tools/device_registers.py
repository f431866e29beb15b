# SPDX-License-Identifier: BSD-2-Clause
"""The registers of assigned devices: found on the host, given a place, written as `reg`.

Registers are those of a device and of the nodes below it that are behind its buses; each is for a
CPU to address, in 4 KiB pages that no node outside the guest has a part of.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from dt_tools import account as rules
from dt_tools.binding import MappedReg
from dt_tools.device import Device, Notices
from dt_tools.errors import Refusal
from dt_tools.placement import place_registers
from dt_tools.profiles import Window
from dt_tools.tree import split_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.carry import Carried
    from dt_tools.extended import AddressMap
    from dt_tools.platform import Platform
    from dt_tools.tree import Node

BUS_PROPERTIES = ("#address-cells", "#size-cells", "ranges")
"""What `DeviceRegisters.set_bus` writes."""


class DeviceRegisters:
    """The registers of one guest's devices: `find` each, `place` them all, then write.

    `iomem` are the whole pages of all of them, by host address, once they are placed.
    `notices` is added to.
    """

    def __init__(self, platform: Platform, carried: Carried, notices: Notices) -> None:
        self.iomem: list[MappedReg] = []
        self._platform = platform
        self._carried = carried
        self._notices = notices
        self._bases: list[int] = []

    def find(self, node: Node) -> Device:
        """The device at a host node, with the registers of it and of what is below it.

        Raises:
            Refusal: DT202, DT205 or DT210, registers that no guest can have.
        """
        device = Device(node, self._registers(node))
        for inner in node.walk():
            bus = inner.parent
            if (
                inner is node
                or bus is None
                or inner.path not in self._carried.paths
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
            self._notices.note("DT202", node, "has no reg; the guest node has no registers")
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

    def _inner_registers(self, device: Device, inner: Node) -> tuple[Window, ...]:
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
        regs = self._platform.reg_of(node)
        if not regs or any(reg.size == 0 or reg.cpu_base + reg.size > 1 << 64 for reg in regs):
            return None
        return tuple(Window(reg.cpu_base, reg.size) for reg in regs)

    def _check_pages(self, device: Node, node: Node) -> None:
        # A limit above the guest's own nodes, so that one outside them cannot hide behind them.
        for path in self._platform.page_neighbours(node, len(self._carried.paths) + 1):
            if path not in self._carried.paths:
                reason = f"shares a 4 KiB page of registers with {path}"
                if node is not device:
                    reason = f"its child {node.path} {reason}"
                raise Refusal("DT205", device.path, reason, f"assign {path} too, or neither")

    def place(
        self, devices: Iterable[Device], space: AddressMap, pins: Sequence[MappedReg]
    ) -> None:
        """Give every register its place in `space`, where `pins` puts it, or 1:1, or elsewhere.

        Raises:
            Refusal: DT207 or DT212, there is no place.
        """
        windows = [
            (reg, device.node.path)
            for device in devices
            for regs in (device.regs, *device.inner.values())
            for reg in regs
        ]
        self.iomem, moved = place_registers(windows, space, pins)
        self._bases = [reg.host for reg in self.iomem]
        self._notices += moved

    def placed(self, regs: Iterable[Window]) -> tuple[MappedReg, ...]:
        """Where the guest has the registers."""
        runs = [(reg, self.iomem[bisect_right(self._bases, reg.base) - 1]) for reg in regs]
        return tuple(
            MappedReg(reg.base, run.guest + reg.base - run.host, reg.size) for reg, run in runs
        )

    def set_reg(self, device: Device, node: Node, target: Node) -> None:
        """Write `reg` of a device, or of a node below one that `find` found registers of."""
        windows = device.regs if node is device.node else device.inner[node]
        cells = [
            cell
            for reg in self.placed(windows)
            for value in (reg.guest, reg.size)
            for cell in split_cells(value, 2)
        ]
        target.set_cells("reg", *cells)
        device.rewrite(node, "reg", rules.REG)

    def set_bus(self, device: Device, node: Node, target: Node) -> None:
        """Addresses behind the node are the guest's, in two cells each."""
        target.set_cells("#address-cells", 2)
        target.set_cells("#size-cells", 2)
        target.set_empty("ranges")
        for name in BUS_PROPERTIES:
            device.rewrite(node, name, rules.BUS)
