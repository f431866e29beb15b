# SPDX-License-Identifier: BSD-2-Clause
"""`/passthrough`: the part of a guest's tree that describes its assigned devices.

`build_partial` makes it from the host tree and the `dtdev` list. A node carries what the guest
can use: registers at their CPU address (or placed where the guest has room), the interrupts that
are SPIs of the GIC, `dma-coherent`, `iommus` naming the vSMMU, and every other property as the
host has it. What is dropped is listed with its reason, what is rewritten with its rule.

Here are the order of the work and its result; each kind of property has a module `device_*`.

Limits: no PCI, no child nodes with StreamIDs of their own (libxl rewrites the `iommus` of a device
and not below it), and of providers only clocks and regulators have stand-ins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.account import Account, account
from dt_tools.binding import Bindings, DeviceBinding, MappedReg, Notice
from dt_tools.carry import Carried
from dt_tools.device import Device, Notices
from dt_tools.device_interrupts import DeviceInterrupts
from dt_tools.device_node import DeviceNodes
from dt_tools.device_phandles import DevicePhandles, reserved_phandles
from dt_tools.device_providers import DeviceProviders, Providers
from dt_tools.device_registers import DeviceRegisters
from dt_tools.device_streams import DeviceStreams
from dt_tools.stubs import DEFAULT_CLOCK_HZ
from dt_tools.tree import Node, Tree
from xl_configs.frozen import frozen, replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.extended import AddressMap
    from dt_tools.platform import Platform

__all__ = ["Partial", "Providers", "build_partial", "new_passthrough", "reserved_phandles"]


@frozen
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
    builder = _Builder(platform, bindings, space, viommu, providers, stub_clock_hz)
    return builder.build(devices, pins)


class _Builder:
    """One guest's `/passthrough`: the parts that make it, and the order in which they do."""

    def __init__(
        self,
        platform: Platform,
        bindings: Bindings,
        space: AddressMap,
        viommu: bool,
        policy: Providers,
        clock_hz: int,
    ) -> None:
        self.platform = platform
        self.space = space
        self.notices = notices = Notices()
        guest = space.guest
        self.carried = carried = Carried(platform.tree, viommu)
        self.registers = DeviceRegisters(platform, carried, notices)
        self.interrupts = DeviceInterrupts(platform, carried, guest.gic_phandle, notices)
        self.providers = DeviceProviders(carried, policy, clock_hz, notices)
        self.phandles = DevicePhandles(carried, guest)
        streams = DeviceStreams(platform, bindings, guest.vsmmu_phandle, viommu)
        self.nodes = DeviceNodes(
            carried, self.registers, self.interrupts, streams, self.providers, notices
        )

    def build(self, paths: Sequence[str], pins: Sequence[MappedReg]) -> Partial:
        nodes = [self.platform.resolve(path) for path in paths]
        self.carried.add(nodes)
        names = {node.name for node in nodes}
        devices = [self.registers.find(node) for node in nodes]
        self.registers.place(devices, self.space, pins)
        tree = Tree()
        tree.root.set_cells("#address-cells", 2)
        tree.root.set_cells("#size-cells", 2)
        bus = new_passthrough(tree.root)
        made = [self.nodes.emit(device, bus, names) for device in devices]
        self.providers.emit(devices, bus, names)
        done, accounts = self._finish(devices, made, tree)
        irqs = {interrupt.number for device in devices for interrupt in device.interrupts}
        self.interrupts.note_shared(devices)
        return Partial(
            tree,
            done,
            tuple(self.notices),
            tuple(self.registers.iomem),
            tuple(sorted(irqs)),
            accounts,
        )

    def _finish(
        self, devices: Sequence[Device], made: Sequence[DeviceBinding], tree: Tree
    ) -> tuple[tuple[DeviceBinding, ...], tuple[Account, ...]]:
        """Write the phandles, and say of each device what was dropped of it."""
        done, accounts = [], []
        for device, binding in zip(devices, made, strict=True):
            root = tree.node(binding.guest_path)
            assert root is not None, "emitted above"
            self.phandles.write(device, root)
            accounts.append(account(device.node, root, device.rules, device.dropped))
            done.append(replace(binding, dropped=tuple(device.dropped)))
        return tuple(done), tuple(accounts)
