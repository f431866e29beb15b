# SPDX-License-Identifier: BSD-2-Clause
"""An Arm guest as one version of libxl builds it, from the configuration and the partial tree.

libxl generates nothing from `dtdev`: /passthrough is what `device_tree` has. It is copied as it
stands, but for the `iommus` of the nodes directly below it when the guest has a vSMMU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dt_tools.binding import MappedReg, Notice, Viommu
from dt_tools.errors import Refusal, UserError
from dt_tools.extended import BLOCK, EXTENDED_MIN, PAGE, align_up, initrd_place, ram_banks
from dt_tools.guest_limits import (
    SPI_FIRST,
    check_config,
    check_irqs,
    check_nr_spis,
    gic_version,
)
from dt_tools.guest_nodes import GuestNodes
from dt_tools.libxl.blob import Blob, Nop, lay_out
from dt_tools.libxl.partial import read_partial
from dt_tools.libxl.rewrite import check_phandles, rewrite
from dt_tools.profiles import Window
from dt_tools.tree import Node, Tree, split_cells
from dt_tools.virtio import Virtio, backend, virtio_devices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dt_tools.libxl.versions import Version
    from dt_tools.platform import Platform
    from xl_configs import GuestConfig

# What AMD's libxl gives a guest at least: the lines of a ZynqMP's GIC.
_VENDOR_SPIS = 160
# Its ITS, which guests with PCI devices have.
_VENDOR_ITS_PHANDLE = 65003
# Its prefetchable PCI window is one of 32-bit addresses by its first cell.
_VENDOR_PREFETCH = 0x4200_0000


@dataclass(frozen=True, slots=True)
class LibxlGuest:
    """A guest's tree, its bytes, and what its domain needs to match it, as `GuestTree` has it."""

    tree: Tree
    blob: Blob
    notices: tuple[Notice, ...]
    iomem: tuple[MappedReg, ...]
    irqs: tuple[int, ...]
    nr_spis: int
    gic_version: int


def build_libxl(
    config: GuestConfig,
    version: Version,
    platform: Platform | None = None,
    partial: bytes | None = None,
    *,
    ramdisk_size: int | None = None,
    rng_seed: bytes | None = None,
    address_bits: int = 40,
    domids: Mapping[str, int] | None = None,
) -> LibxlGuest:
    """The tree that libxl of `version` builds of `config`.

    Args:
        config: the guest's configuration, read as that version's xl reads it.
        version: the libxl.
        platform: the host; needed for `dtdev`, and for the default GIC version.
        partial: the bytes of the file that `device_tree` names.
        ramdisk_size: bytes of the ramdisk.
        rng_seed: value of /chosen/rng-seed; libxl's is 128 random bytes.
        address_bits: width of a guest physical address on the host.
        domids: ids of the domains that serve virtio devices, by name.

    Raises:
        UserError: a device path that the host does not have, or no host to look in.
        Refusal: what libxl or Xen refuses, crashes on, or would make a broken tree of.
    """
    builder = _Libxl(config, version, platform, address_bits, domids or {})
    return builder.build(partial, ramdisk_size, rng_seed)


class _Libxl:
    def __init__(
        self,
        config: GuestConfig,
        version: Version,
        platform: Platform | None,
        bits: int,
        domids: Mapping[str, int],
    ) -> None:
        self.config = config
        self.version = version
        self.guest = version.guest
        self.platform = platform
        self.bits = bits
        self.gic_version = gic_version(config, platform)
        self.viommu = config.viommu == "smmuv3" and version.viommu != "unknown"
        devices = _vendor_virtio if version.vendor else virtio_devices
        self.virtio = devices(config, domids)
        memory = config.memory_mib
        memory = memory if config.maxmem_mib is None else min(memory, config.maxmem_mib)
        self.banks = ram_banks(memory, self.guest, bits)
        check_config(config, self.guest, platform)
        if version.vendor:
            _check_vendor(config)

    def build(
        self, partial: bytes | None, ramdisk_size: int | None, rng_seed: bytes | None
    ) -> LibxlGuest:
        config = self.config
        irqs = tuple(dict.fromkeys(config.irqs))
        check_irqs(irqs, self._own_spis())
        nr_spis = self._nr_spis(irqs)
        self._check_devices()
        iomem = tuple(
            MappedReg(entry.start * PAGE, entry.gfn * PAGE, entry.count * PAGE)
            for entry in config.iomem
        )
        self._check_iomem(iomem)
        tree = Tree()
        initrd = None if ramdisk_size is None else (0, 0)
        chosen = self._nodes(tree, initrd, rng_seed, iomem)
        notices: tuple[Notice, ...] = ()
        if partial is not None:
            notices = self._copy(tree, read_partial(partial, changed=self.viommu))
        check_phandles(tree)
        blob = self._lay_out(tree)
        # Without a ramdisk the tree alone has to find its place.
        start, end = initrd_place(self.banks[0], ramdisk_size or 0, blob.size)
        if ramdisk_size is not None:
            chosen.set_cells("linux,initrd-start", *split_cells(start, 2))
            chosen.set_cells("linux,initrd-end", *split_cells(end, 2))
            blob = self._lay_out(tree)
        return LibxlGuest(tree, blob, notices, iomem, irqs, nr_spis, self.gic_version)

    # The nodes.

    def _nodes(
        self,
        tree: Tree,
        initrd: tuple[int, int] | None,
        rng_seed: bytes | None,
        iomem: Sequence[MappedReg],
    ) -> Node:
        """All that libxl makes itself; returns /chosen."""
        config, guest = self.config, self.guest
        nodes = GuestNodes(tree.root, guest)
        nodes.root()
        chosen = nodes.chosen(config.cmdline, initrd, rng_seed)
        nodes.cpus(max(config.vcpus, config.maxvcpus))
        nodes.psci()
        nodes.memory(self.banks)
        gic = nodes.gic(self.gic_version, is_bus=self.version.vendor)
        if self.version.vendor and config.pci and self.gic_version == 3:
            nodes.its(gic, self.guest.its, _VENDOR_ITS_PHANDLE)
        nodes.timer(self._clock_frequency())
        nodes.hypervisor(self._regions(iomem))
        if config.vuart == "sbsa_uart":
            nodes.vuart()
        if config.tee == "optee":
            nodes.optee()
        if config.pci and not self.version.vendor:
            self._vpci(tree.root)
        if self.viommu:
            viommu = Viommu(
                guest.vsmmu.base, guest.vsmmu.size, guest.vsmmu_spi, guest.vsmmu_phandle
            )
            nodes.vsmmu(viommu, coherent=self.version.coherent)
        if config.pci and self.version.vendor:
            self._vpci(tree.root)
        if self.version.vendor:
            self._vendor_nodes(nodes)
        else:
            nodes.virtio(self.virtio, guest.virtio_spi_first, guest.virtio_spi_last)
        return chosen

    def _vpci(self, root: Node) -> None:
        """The PCI host bridge; with a vSMMU its ids are the first, whatever is assigned."""
        from dt_tools.pci import vpci_node

        if not self.version.vendor:
            node = vpci_node(root, self.guest)
        else:
            node = vpci_node(root, self.guest, prefetch=_VENDOR_PREFETCH)
            node.set_cells("msi-map", 0, _VENDOR_ITS_PHANDLE, 0, 0x10000)
        if self.viommu:
            node.set_cells("iommu-map", 0, self.guest.vsmmu_phandle, 0, self.version.vpci_map)

    def _vendor_nodes(self, nodes: GuestNodes) -> None:
        """AMD's: from the last slot but one down, the grant-dma node first."""
        guest = self.guest
        if self.virtio:
            nodes.xen_iommu()
        last = guest.virtio_spi_last - guest.virtio_spi_first
        for index, device in enumerate(self.virtio):
            slot = last - 1 - index
            if slot < 0:
                fix = f"keep {last} virtio devices"
                raise Refusal("DT304", "/", "No available Virtio MMIO IRQ", fix)
            nodes.virtio_mmio(slot, guest.virtio_spi_first + slot, device.backend)

    def _regions(self, iomem: Sequence[MappedReg]) -> list[Window]:
        """Extended regions: what a bank has left over, of 64 MiB at least."""
        used = {bank.base: bank.size for bank in self.banks}
        found: list[Window] = []
        for bank in self.guest.ram_banks:
            start = bank.base + align_up(used.get(bank.base, 0), BLOCK)
            end = min(bank.end, 1 << self.bits)
            if end - start < EXTENDED_MIN:
                continue
            holes = sorted(iomem, key=lambda reg: reg.guest) if self._keeps_clear() else []
            for hole in holes:
                if hole.guest + hole.size <= start or hole.guest >= end:
                    continue
                if hole.guest - start >= EXTENDED_MIN:
                    found.append(Window(start, hole.guest - start))
                start = hole.guest + hole.size
            if end - start >= EXTENDED_MIN:
                found.append(Window(start, end - start))
        # /hypervisor has room for so many.
        return found[: self.version.hypervisor_regs - 1]

    def _clock_frequency(self) -> int | None:
        """The timer's, where the host's device tree says it; 0 is as if it did not."""
        if self.platform is None:
            return None
        for node in self.platform.tree.walk():
            if set(node.strings("compatible") or ()) & {"arm,armv8-timer", "arm,armv7-timer"}:
                return node.u32("clock-frequency")
        return None

    def _keeps_clear(self) -> bool:
        return self.version.keeps_iomem_clear

    def _lay_out(self, tree: Tree) -> Blob:
        """The bytes, with the memory nodes of the banks that are not used taken out."""
        used = {bank.base for bank in self.banks}
        spare = Tree()
        GuestNodes(spare.root, self.guest).memory(
            bank for bank in self.guest.ram_banks if bank.base not in used
        )
        gic = next(n for n in tree.root.children if n.startswith("interrupt-controller@"))
        nops = tuple(Nop(gic, node) for node in spare.root.children.values())
        return lay_out(tree.root, nops, self.version.hypervisor_regs)

    def _copy(self, tree: Tree, partial: Tree) -> tuple[Notice, ...]:
        notices: tuple[Notice, ...] = ()
        if self.viommu:
            first = None
            if self.version.viommu == "vsids":
                # The host bridge comes first.
                first = self.version.vpci_map if self.config.pci else 0
            notices = rewrite(partial.root.children["passthrough"], self.guest.vsmmu_phandle, first)
        for name, node in partial.root.children.items():
            tree.root.add(name).copy_from(node)
        return notices

    # What libxl and Xen refuse.

    def _check_devices(self) -> None:
        """Xen assigns what is behind an SMMU that it drives, once, by its absolute path."""
        dtdev, platform = self.config.dtdev, self.platform
        if dtdev and platform is None:
            hint = "give the host's device tree"
            raise UserError("dtdev", dtdev[0], "there is no host tree to look in", hint)
        if platform is None:
            return
        driven = {smmu.path for smmu in platform.smmus if smmu.status == "okay"}
        masters = {master.path: master for master in platform.masters}
        for at, path in enumerate(dtdev):
            if not path.startswith("/"):
                raise UserError("dtdev", path, "is not an absolute path", "begin it with /")
            node = platform.resolve(path)
            master = masters.get(node.path)
            if path in dtdev[:at]:
                raise Refusal("DT108", path, "listed twice in dtdev", "list each device once")
            streams = () if master is None else master.streams
            if not streams or any(stream.smmu_path not in driven for stream in streams):
                reason = "is not behind an SMMU that is enabled: Xen cannot assign it"
                raise Refusal("DT101", path, reason, "assign a device that has iommus")

    def _check_iomem(self, iomem: Sequence[MappedReg]) -> None:
        """Xen has no permission to give on the frames of its own interrupt controller."""
        gic = None if self.platform is None else self.platform.gic
        if self.platform is None or gic is None or not self.version.checks_host_gic:
            return
        node = self.platform.tree.node(gic.path)
        regs = () if node is None else self.platform.reg_of(node) or ()
        for reg in iomem:
            window = Window(reg.host, reg.size)
            if any(window.overlaps(Window(one.cpu_base, one.size)) for one in regs):
                reason = f"iomem {reg.host // PAGE:#x},{reg.size // PAGE:#x} is the host's GIC"
                raise Refusal("DT219", gic.path, reason, "take it out of iomem")

    def _own_spis(self) -> dict[int, str]:
        guest = self.guest
        first = guest.virtio_spi_first
        count = len(self.virtio)
        if self.version.vendor and count:
            count = guest.virtio_spi_last - first + 1
        taken = {first + i: "Virtio MMIO IRQ range" for i in range(count)}
        if self.viommu:
            taken[guest.vsmmu_spi] = "vSMMUv3 SPI"
        if self.config.vuart == "sbsa_uart":
            taken[guest.pl011_spi] = "pl011 SPI"
        return taken

    def _nr_spis(self, irqs: Sequence[int]) -> int:
        """As libxl counts: what the guest's own devices need is added up, not joined."""
        guest, given = self.guest, self.config.nr_spis
        count = guest.pl011_spi + 1 - SPI_FIRST if self.config.vuart == "sbsa_uart" else 0
        count += guest.vsmmu_spi + 1 - SPI_FIRST if self.viommu else 0
        if self.virtio:
            top = guest.virtio_spi_first + len(self.virtio) - 1
            top = guest.virtio_spi_last if self.version.vendor else top
            count = max(count, top + 1 - SPI_FIRST)
        count = max([count, *(irq + 1 - SPI_FIRST for irq in irqs)])
        if self.version.vendor:
            return max(count, _VENDOR_SPIS)
        check_nr_spis(given)
        if given is not None and given < count and self.version.checks_nr_spis:
            reason = f"Provided nr_spis value is too small (minimum required {count})"
            raise Refusal("DT305", "/", reason, "raise nr_spis, or leave it out")
        return max(count, given or 0)


def _check_vendor(config: GuestConfig) -> None:
    """What AMD's libxl makes nodes of and this does not."""
    others = dict(config.others)
    for key in ("tpm", "static_shm"):
        if str(others.get(key, "0")) not in ("0", "()"):
            reason = f"{key}: the node that AMD's libxl makes of it is not built here"
            raise Refusal("DT609", "/", reason, "leave it out")


def _vendor_virtio(config: GuestConfig, domids: Mapping[str, int]) -> list[Virtio]:
    """AMD's: virtio disks, then virtio network cards; it does not know the virtio key."""
    disks = [disk for disk in config.disk if disk.specification == "virtio"]
    cards = [nic for nic in config.vif if nic.model == "virtio-net"]
    names = [disk.backend_domname for disk in disks] + [nic.backend_domname for nic in cards]
    return [backend("", grants=True, name=name, domids=domids) for name in names]
