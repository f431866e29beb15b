# SPDX-License-Identifier: BSD-2-Clause
"""The nodes that libxl makes for an Arm guest, each with libxl's properties in libxl's order.

They are appended to the root in the order of the calls; `dt_tools.guest` and `dt_tools.libxl`
make them in libxl's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.errors import Refusal
from dt_tools.profiles import GuestProfile, Window
from dt_tools.tree import Node, split_cells
from dt_tools.virtio import Virtio, add_child

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.binding import Viommu

# Third cell of a GIC interrupt: CPU mask 0xf in [15:8] (Xen writes it on SPIs too), trigger.
EDGE, LEVEL_HIGH, LEVEL_LOW = 0xF01, 0xF04, 0xF08
SPI, PPI = 0, 1


class GuestNodes:
    """Adds nodes to `root`, with the map and the numbers of `guest`."""

    def __init__(self, root: Node, guest: GuestProfile) -> None:
        self.root_node = root
        self.guest = guest

    def root(self) -> None:
        """The root's own properties."""
        root, version = self.root_node, self.guest.xen_version
        root.set_strings("model", f"XENVM-{version}")
        root.set_strings("compatible", f"xen,xenvm-{version}", "xen,xenvm")
        root.set_cells("interrupt-parent", self.guest.gic_phandle)
        root.set_cells("#address-cells", 2)
        root.set_cells("#size-cells", 2)

    def chosen(
        self, cmdline: str | None, initrd: tuple[int, int] | None, rng_seed: bytes | None
    ) -> Node:
        """/chosen; `initrd` is the first and last-plus-one address of the ramdisk."""
        node = self.root_node.add("chosen")
        if cmdline is not None:
            # The bytes that the configuration had.
            node.props["bootargs"] = cmdline.encode("utf-8", "surrogateescape") + b"\0"
        if initrd is not None:
            node.set_cells("linux,initrd-start", *split_cells(initrd[0], 2))
            node.set_cells("linux,initrd-end", *split_cells(initrd[1], 2))
        if rng_seed is not None:
            node.props["rng-seed"] = rng_seed
        return node

    def cpus(self, number: int) -> None:
        """/cpus, with one node for each of `number` vCPUs."""
        cpus = self.root_node.add("cpus")
        cpus.set_cells("#address-cells", 1)
        cpus.set_cells("#size-cells", 0)
        for vcpu in range(number):
            # MPIDR: sixteen vCPUs to a cluster (Aff0), the cluster in Aff1.
            mpidr = (vcpu >> 4) << 8 | vcpu & 0xF
            node = cpus.add(f"cpu@{mpidr:x}")
            node.set_strings("device_type", "cpu")
            node.set_strings("compatible", "arm,armv8")
            node.set_strings("enable-method", "psci")
            node.set_cells("reg", mpidr)

    def psci(self) -> None:
        """/psci."""
        node = self.root_node.add("psci")
        node.set_strings("compatible", "arm,psci-1.0", "arm,psci-0.2", "arm,psci")
        node.set_strings("method", "hvc")
        node.set_cells("cpu_off", 1)
        node.set_cells("cpu_on", 2)

    def memory(self, banks: Iterable[Window]) -> None:
        """A memory node for each bank."""
        for bank in banks:
            node = self.root_node.add(f"memory@{bank.base:x}")
            node.set_strings("device_type", "memory")
            _set_reg(node, bank)

    def gic(self, version: int, *, is_bus: bool = False) -> Node:
        """The GIC, 2 or 3; `is_bus` gives a GICv3 cells and ranges for children."""
        guest = self.guest
        v2 = version == 2
        regs = (guest.gicv2_gicd, guest.gicv2_gicc) if v2 else (guest.gicv3_gicd, guest.gicv3_gicr)
        node = self.root_node.add(f"interrupt-controller@{regs[0].base:x}")
        names = ("arm,cortex-a15-gic", "arm,cortex-a9-gic") if v2 else ("arm,gic-v3",)
        node.set_strings("compatible", *names)
        node.set_cells("#interrupt-cells", 3)
        if is_bus and not v2:
            node.set_cells("#address-cells", 2)
            node.set_cells("#size-cells", 2)
            node.set_empty("ranges")
        else:
            node.set_cells("#address-cells", 0)
        node.set_empty("interrupt-controller")
        _set_reg(node, *regs)
        node.set_cells("linux,phandle", guest.gic_phandle)
        node.set_cells("phandle", guest.gic_phandle)
        return node

    def its(self, gic: Node, window: Window, phandle: int) -> None:
        """A virtual ITS below the GIC, which has to be a bus."""
        node = gic.add(f"its@{window.base:x}")
        node.set_strings("compatible", "arm,gic-v3-its")
        node.set_empty("msi-controller")
        _set_reg(node, window)
        node.set_cells("phandle", phandle)

    def timer(self, frequency: int | None = None) -> None:
        """The architected timer; `frequency` in Hz where the host's node has to say it."""
        node = self.root_node.add("timer")
        node.set_strings("compatible", "arm,armv8-timer")
        ppis = self.guest.timer_ppis
        self._interrupts(node, *((PPI, ppi - 16, LEVEL_LOW) for ppi in ppis))
        if frequency:
            node.set_cells("clock-frequency", frequency)

    def hypervisor(self, regions: Sequence[Window]) -> None:
        """/hypervisor; `regions` are the extended regions behind the grant table."""
        node, version = self.root_node.add("hypervisor"), self.guest.xen_version
        node.set_strings("compatible", f"xen,xen-{version}", "xen,xen")
        _set_reg(node, self.guest.grant_table, *regions)
        self._interrupts(node, (PPI, self.guest.evtchn_ppi - 16, LEVEL_LOW))

    def vuart(self) -> None:
        """The SBSA UART, which has no unit address in libxl's tree."""
        node = self.root_node.add("sbsa-pl011")
        node.set_strings("compatible", "arm,sbsa-uart")
        _set_reg(node, self.guest.pl011)
        self._interrupts(node, (SPI, self.guest.pl011_spi - 32, LEVEL_HIGH))
        node.set_cells("current-speed", 115200)

    def optee(self) -> None:
        """/firmware/optee."""
        node = self.root_node.add("firmware").add("optee")
        node.set_strings("compatible", "linaro,optee-tz")
        node.set_strings("method", "hvc")

    def vsmmu(self, viommu: Viommu, *, coherent: bool = True) -> None:
        """A vSMMU."""
        node = self.root_node.add(f"iommu@{viommu.base:x}")
        node.set_strings("compatible", "arm,smmu-v3")
        _set_reg(node, Window(viommu.base, viommu.size))
        node.set_cells("phandle", viommu.phandle)
        node.set_cells("#iommu-cells", 1)
        node.set_strings("interrupt-names", "combined")
        self._interrupts(node, (SPI, viommu.spi - 32, LEVEL_HIGH))
        if coherent:
            node.set_empty("dma-coherent")

    def virtio(self, devices: Sequence[Virtio], first: int, last: int) -> None:
        """The virtio-mmio devices, with SPIs from `first` to `last` (GIC ids).

        Raises:
            Refusal: DT304, there are more than SPIs.
        """
        for index, device in enumerate(devices):
            spi = first + index
            if spi > last:
                reason = f"Ran out of reserved range for Virtio MMIO IRQ {spi}"
                raise Refusal("DT304", "/", reason, f"keep {last - first + 1} virtio devices")
            node = self.virtio_mmio(index, spi, device.backend if device.grants else None)
            add_child(node, device.kind)
        if any(device.grants for device in devices):
            self.xen_iommu()

    def virtio_mmio(self, slot: int, spi: int, grants_to: int | None) -> Node:
        """The virtio-mmio device of a slot; `grants_to` is the domain id that its DMA is for."""
        guest = self.guest
        base = guest.virtio_mmio.base + slot * guest.virtio_mmio_slot
        node = self.root_node.add(f"virtio@{base:x}")
        node.set_strings("compatible", "virtio,mmio")
        _set_reg(node, Window(base, guest.virtio_mmio_slot))
        self._interrupts(node, (SPI, spi - 32, EDGE))
        node.set_empty("dma-coherent")
        if grants_to is not None:
            node.set_cells("iommus", guest.xen_iommu_phandle, grants_to)
        return node

    def xen_iommu(self) -> None:
        """The grant-dma node that virtio devices name."""
        node = self.root_node.add("xen_iommu")
        node.set_strings("compatible", "xen,grant-dma")
        node.set_cells("#iommu-cells", 1)
        node.set_cells("phandle", self.guest.xen_iommu_phandle)

    def _interrupts(self, node: Node, *specifiers: tuple[int, int, int]) -> None:
        node.set_cells("interrupts", *(cell for spec in specifiers for cell in spec))
        node.set_cells("interrupt-parent", self.guest.gic_phandle)


def _set_reg(node: Node, *windows: Window) -> None:
    cells = [c for w in windows for value in (w.base, w.size) for c in split_cells(value, 2)]
    node.set_cells("reg", *cells)
