# SPDX-License-Identifier: BSD-2-Clause
"""The guest's whole device tree: the nodes libxl makes on Arm, the vSMMU, assigned devices.

Nodes and properties stand in libxl's order with libxl's values, so that the tree of a guest
compares property by property with one that `xl create` built. /chosen/rng-seed is left out
unless given, since a seed in a file is none. Interrupts conflict by rule DT303 to DT305.

Limits: AArch64 guests with a device tree; no PCI host bridge, no virtio over PCI.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, MappedReg, Notice, Viommu, allocate
from dt_tools.errors import Refusal, UserError
from dt_tools.extended import (
    IOMEM,
    MAX_WINDOWS,
    MIB,
    PAGE,
    AddressMap,
    align_up,
    extended_regions,
    ram_banks,
)
from dt_tools.merge import merge_partial
from dt_tools.partial import Partial, build_partial
from dt_tools.profiles import DEFAULT, GuestProfile, Profile, Window
from dt_tools.tree import Node, Tree, split_cells
from dt_tools.virtio import add_child, virtio_devices

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dt_tools.platform import Platform
    from xl_configs import GuestConfig

# Third cell of a GIC interrupt: CPU mask 0xf in [15:8] (Xen writes it on SPIs too), trigger.
_EDGE, _LEVEL_HIGH, _LEVEL_LOW = 0xF01, 0xF04, 0xF08
_SPI, _PPI = 0, 1
# libxl puts initrd and tree 128 MiB above the start of RAM when they fit there.
_MODULES_OFFSET = 128 * MIB
# A vGICv2 addresses eight CPUs.
_GICV2_MAX_VCPUS = 8
# GIC interrupt ids of SPIs start here; Xen's vGIC has 960 of them.
_SPI_FIRST, _MAX_SPIS = 32, 960


@dataclass(frozen=True, slots=True)
class GuestTree:
    """A guest's tree and what its domain needs to match it.

    `iomem` are the pages to map (bytes), `irqs` the GIC interrupt ids to route, `nr_spis` the
    number of SPIs the guest's GIC must have.
    """

    tree: Tree
    bindings: Bindings
    notices: tuple[Notice, ...]
    iomem: tuple[MappedReg, ...]
    irqs: tuple[int, ...]
    nr_spis: int

    def iomem_strings(self) -> tuple[str, ...]:
        """`iomem` in xl.cfg's form: START,NUM or START,NUM@GFN, hex page frames."""
        return tuple(
            f"{r.host // PAGE:#x},{r.size // PAGE:#x}"
            + ("" if r.host == r.guest else f"@{r.guest // PAGE:#x}")
            for r in self.iomem
        )


def build_guest(
    config: GuestConfig,
    profile: Profile = DEFAULT,
    platform: Platform | None = None,
    partial: Tree | None = None,
    *,
    ramdisk_size: int | None = None,
    rng_seed: bytes | None = None,
    address_bits: int = 40,
) -> GuestTree:
    """Build the tree of the guest that `config` describes.

    Args:
        config: the guest's configuration.
        profile: guest map, interrupts and phandles.
        platform: the host; needed for `dtdev`, and for the default GIC version (else GICv3).
        partial: the tree that `device_tree` names (no file is opened here); with it
            /passthrough is not generated.
        ramdisk_size: bytes of the ramdisk; places it and writes linux,initrd-*.
        rng_seed: value of /chosen/rng-seed.
        address_bits: width of a guest physical address on the host.

    Raises:
        UserError: a device path that the host does not have, or no host to look in.
        Refusal: what cannot be built, by rule id.
    """
    return _Guest(config, profile, platform, address_bits).build(partial, ramdisk_size, rng_seed)


class _Guest:
    def __init__(
        self, config: GuestConfig, profile: Profile, platform: Platform | None, bits: int
    ) -> None:
        self.config = config
        self.guest: GuestProfile = profile.guest
        self.platform = platform
        self.bits = bits
        self.viommu = config.viommu == "smmuv3"
        self.virtio = virtio_devices(config)
        self.gic_version = self._gic_version()
        memory = config.memory_mib
        # A smaller maxmem wins, as in libxl; a larger one has no effect on the tree.
        memory = memory if config.maxmem_mib is None else min(memory, config.maxmem_mib)
        self.banks = ram_banks(memory, self.guest, bits)
        self.space = AddressMap(self.guest, self.banks, bits)
        self.tree = Tree()
        self.notices: list[Notice] = []
        self._check()

    def build(
        self, partial: Tree | None, ramdisk_size: int | None, rng_seed: bytes | None
    ) -> GuestTree:
        for name, window in self._windows():
            self.space.claim(window, name)
        pins = self._pins()
        devices, bindings = self._devices(partial, pins)
        root = self.tree.root
        self._root(root)
        chosen = root.add("chosen")
        self._cpus(root)
        self._psci(root)
        self._memory(root)
        self._gic(root)
        self._timer(root)
        self._hypervisor(root, pins)
        if self.config.vuart == "sbsa_uart":
            self._vuart(root)
        if self.config.tee == "optee":
            self._optee(root)
        if self.viommu:
            self._vsmmu(root)
        self._virtio(root)
        for name in ("passthrough", "aliases"):
            if name in devices.tree.root.children:
                root.add(name).copy_from(devices.tree.root.children[name])
        self._chosen(chosen, ramdisk_size, rng_seed)
        return self._result(devices, bindings, pins)

    def _result(self, devices: Partial, bindings: Bindings, pins: Sequence[MappedReg]) -> GuestTree:
        guest = self.guest
        irqs = tuple(sorted({*self.config.irqs, *devices.irqs}))
        self._check_irqs(irqs)
        nr_spis = self._nr_spis(irqs)
        notices = (*self.notices, *bindings.notices, *devices.notices)
        viommu = None
        if self.viommu:
            viommu = Viommu(
                guest.vsmmu.base, guest.vsmmu.size, guest.vsmmu_spi, guest.vsmmu_phandle
            )
        bindings = replace(
            bindings,
            guest=self.config.name,
            viommu=viommu,
            devices=devices.devices,
            notices=notices,
        )
        iomem = (*pins, *(r for r in devices.iomem if not _covered(r, pins)))
        return GuestTree(self.tree, bindings, notices, iomem, irqs, nr_spis)

    # What the configuration asks for, and whether it fits together.

    def _gic_version(self) -> int:
        """2 or 3; without a word in the configuration the host's, without a host 3."""
        if self.config.gic_version in ("v2", "v3"):
            return int(self.config.gic_version[1])
        gic = None if self.platform is None else self.platform.gic
        return 3 if gic is None else gic.version

    def _check(self) -> None:
        config, guest = self.config, self.guest
        most = guest.max_vcpus if self.gic_version == 3 else _GICV2_MAX_VCPUS
        if max(config.vcpus, config.maxvcpus) > most:
            reason = f"{config.maxvcpus} vCPUs, a GICv{self.gic_version} guest has {most} at most"
            raise Refusal("DT601", "/cpus", reason, "lower vcpus and maxvcpus")
        if len(config.iomem) > MAX_WINDOWS:
            reason = f"{len(config.iomem)} iomem entries, more than {MAX_WINDOWS}"
            raise Refusal("DT212", "/", reason, "join adjacent ranges")
        if config.pci:
            reason = "pci devices are not built into the guest's tree"
            raise Refusal("DT107", "/", reason, "take pci out of the configuration")
        if config.iommu_devid_map and not (self.viommu and config.dtdev):
            text = 'iommu_devid_map has no effect without viommu = "smmuv3" and dtdev'
            self.notices.append(Notice("DT507", "/", text))
        if config.passthrough == "sync_pt":
            reason = 'passthrough = "sync_pt" is not supported on Arm'
            raise Refusal("DT604", "/", reason, 'use "share_pt" or leave it out')
        if config.dtdev and config.passthrough == "disabled":
            reason = 'passthrough = "disabled" with devices in dtdev'
            raise Refusal("DT604", config.dtdev[0], reason, "take one of the two out")

    def _windows(self) -> Iterable[tuple[str, Window]]:
        """The windows of the profile that this guest uses."""
        guest = self.guest
        if self.gic_version == 2:
            yield (
                "the GIC",
                Window(guest.gicv2_gicd.base, guest.gicv2_gicc.end - guest.gicv2_gicd.base),
            )
        else:
            yield (
                "the GIC",
                Window(guest.gicv3_gicd.base, guest.gicv3_gicr.end - guest.gicv3_gicd.base),
            )
        if self.virtio:
            yield "virtio-mmio", guest.virtio_mmio
        if self.viommu:
            yield "the vSMMU", guest.vsmmu
        if self.config.vuart == "sbsa_uart":
            yield "the pl011", guest.pl011
        yield "the grant table", guest.grant_table
        yield "the magic pages", guest.magic

    def _pins(self) -> list[MappedReg]:
        """The configuration's iomem in bytes, claimed; libxl maps it over anything."""
        pins = []
        for entry in self.config.iomem:
            window = Window(entry.gfn * PAGE, entry.count * PAGE)
            if not window.size:
                continue
            pins.append(MappedReg(entry.start * PAGE, window.base, window.size))
            clash = self.space.clash(window)
            if clash:
                text = f"iomem {entry.start:#x},{entry.count:#x} at guest {window.base:#x} {clash}"
                self.notices.append(Notice("DT207", "/", text))
            else:
                self.space.claim(window, IOMEM)
        return pins

    def _devices(self, partial: Tree | None, pins: Sequence[MappedReg]) -> tuple[Partial, Bindings]:
        """/passthrough, generated or the user's, and its vMasterIDs."""
        dtdev, bindings = self.config.dtdev, Bindings()
        if self.platform is None and dtdev and (self.viommu or partial is None):
            hint = "give the host's device tree"
            raise UserError("dtdev", dtdev[0], "there is no host tree to look in", hint)
        if self.platform is not None and dtdev:
            wanted = self.config.iommu_devid_map
            bindings = allocate(self.platform, dtdev, viommu=self.viommu, wanted=wanted)
        if partial is not None:
            merged = merge_partial(
                Tree(),
                partial,
                guest=self.guest,
                platform=self.platform,
                devices=dtdev,
                bindings=bindings if self.viommu else None,
            )
            return merged, bindings
        if self.platform is None or not dtdev:
            return Partial(Tree()), bindings
        built = build_partial(
            self.platform, dtdev, bindings, self.space, viommu=self.viommu, pins=pins
        )
        return built, bindings

    def _check_irqs(self, irqs: Iterable[int]) -> None:
        """The guest's own devices have fixed SPIs; a physical one of that number cannot come in."""
        guest = self.guest
        first, _ = guest.virtio_spis(self.viommu)
        taken = {first + i: "Virtio MMIO IRQ range" for i in range(len(self.virtio))}
        if self.viommu:
            taken[guest.vsmmu_spi] = "vSMMUv3 SPI"
        if self.config.vuart == "sbsa_uart":
            taken[guest.pl011_spi] = "pl011 SPI"
        for irq in irqs:
            if not _SPI_FIRST <= irq < _SPI_FIRST + _MAX_SPIS:
                last = _SPI_FIRST + _MAX_SPIS - 1
                reason = f"irq {irq} is not an SPI ({_SPI_FIRST} to {last})"
                raise Refusal("DT303", "/", reason, "take it out of irqs")
            if irq in taken:
                reason = f"Physical IRQ {irq} conflicting with {taken[irq]}"
                raise Refusal("DT303", "/", reason, "assign a device with another interrupt")

    def _nr_spis(self, irqs: Iterable[int]) -> int:
        guest = self.guest
        first, _ = guest.virtio_spis(self.viommu)
        top = [irq + 1 for irq in irqs]
        top += [first + len(self.virtio)] if self.virtio else []
        top += [guest.vsmmu_spi + 1] if self.viommu else []
        top += [guest.pl011_spi + 1] if self.config.vuart == "sbsa_uart" else []
        needed = max(0, max(top, default=32) - 32)
        given = self.config.nr_spis
        if given is not None and given < needed:
            text = f"nr_spis {given} raised to {needed}, the number the guest's devices need"
            self.notices.append(Notice("DT305", "/", text))
        if given is not None and given > _MAX_SPIS:
            reason = f"nr_spis {given}, a guest has {_MAX_SPIS} SPIs at most"
            raise Refusal("DT305", "/", reason, "lower nr_spis")
        return max(needed, given or 0)

    # The nodes, in libxl's order.

    def _root(self, root: Node) -> None:
        version = self.guest.xen_version
        root.set_strings("model", f"XENVM-{version}")
        root.set_strings("compatible", f"xen,xenvm-{version}", "xen,xenvm")
        root.set_cells("interrupt-parent", self.guest.gic_phandle)
        root.set_cells("#address-cells", 2)
        root.set_cells("#size-cells", 2)

    def _chosen(self, chosen: Node, ramdisk_size: int | None, rng_seed: bytes | None) -> None:
        if self.config.cmdline is not None:
            chosen.props["bootargs"] = _text(self.config.cmdline)
        if ramdisk_size is not None:
            chosen.props["linux,initrd-start"] = chosen.props["linux,initrd-end"] = bytes(8)
        if rng_seed is not None:
            chosen.props["rng-seed"] = rng_seed
        if ramdisk_size is not None:
            start, end = self._initrd(ramdisk_size)
            chosen.set_cells("linux,initrd-start", *split_cells(start, 2))
            chosen.set_cells("linux,initrd-end", *split_cells(end, 2))

    def _initrd(self, size: int) -> tuple[int, int]:
        """First and last-plus-one address of the ramdisk, in whole pages, as libxc places it.

        The tree follows the ramdisk; both lie 128 MiB into RAM or, in a small guest, at its top.
        The kernel is taken to end below them.
        """
        from dt_tools.blob import write

        bank, length = self.banks[0], align_up(size, PAGE)
        both = length + align_up(len(write(self.tree)) + self.guest.tree_headroom, PAGE)
        if both > bank.size:
            reason = f"a ramdisk of {size} bytes does not fit {bank.size // MIB} MiB of RAM"
            raise Refusal("DT603", "/chosen", reason, "raise memory")
        start = bank.end - both
        if bank.size >= _MODULES_OFFSET + both:
            start = bank.base + _MODULES_OFFSET
        return start, start + length

    def _cpus(self, root: Node) -> None:
        cpus = root.add("cpus")
        cpus.set_cells("#address-cells", 1)
        cpus.set_cells("#size-cells", 0)
        for vcpu in range(max(self.config.vcpus, self.config.maxvcpus)):
            # MPIDR: sixteen vCPUs to a cluster (Aff0), the cluster in Aff1.
            mpidr = (vcpu >> 4) << 8 | vcpu & 0xF
            node = cpus.add(f"cpu@{mpidr:x}")
            node.set_strings("device_type", "cpu")
            node.set_strings("compatible", "arm,armv8")
            node.set_strings("enable-method", "psci")
            node.set_cells("reg", mpidr)

    def _psci(self, root: Node) -> None:
        node = root.add("psci")
        node.set_strings("compatible", "arm,psci-1.0", "arm,psci-0.2", "arm,psci")
        node.set_strings("method", "hvc")
        node.set_cells("cpu_off", 1)
        node.set_cells("cpu_on", 2)

    def _memory(self, root: Node) -> None:
        for bank in self.banks:
            node = root.add(f"memory@{bank.base:x}")
            node.set_strings("device_type", "memory")
            _set_reg(node, bank)

    def _gic(self, root: Node) -> None:
        guest = self.guest
        v2 = self.gic_version == 2
        regs = (guest.gicv2_gicd, guest.gicv2_gicc) if v2 else (guest.gicv3_gicd, guest.gicv3_gicr)
        node = root.add(f"interrupt-controller@{regs[0].base:x}")
        names = ("arm,cortex-a15-gic", "arm,cortex-a9-gic") if v2 else ("arm,gic-v3",)
        node.set_strings("compatible", *names)
        node.set_cells("#interrupt-cells", 3)
        node.set_cells("#address-cells", 0)
        node.set_empty("interrupt-controller")
        _set_reg(node, *regs)
        node.set_cells("linux,phandle", guest.gic_phandle)
        node.set_cells("phandle", guest.gic_phandle)

    def _timer(self, root: Node) -> None:
        node = root.add("timer")
        node.set_strings("compatible", "arm,armv8-timer")
        ppis = self.guest.timer_ppis
        self._interrupts(node, *((_PPI, ppi - 16, _LEVEL_LOW) for ppi in ppis))

    def _hypervisor(self, root: Node, pins: Sequence[MappedReg]) -> None:
        node, version = root.add("hypervisor"), self.guest.xen_version
        node.set_strings("compatible", f"xen,xen-{version}", "xen,xen")
        holes = [*self.space.devices, *(Window(pin.guest, pin.size) for pin in pins)]
        regions = extended_regions(self.banks, self.guest, self.bits, holes)
        _set_reg(node, self.guest.grant_table, *regions)
        self._interrupts(node, (_PPI, self.guest.evtchn_ppi - 16, _LEVEL_LOW))

    def _vuart(self, root: Node) -> None:
        node = root.add("sbsa-pl011")
        node.set_strings("compatible", "arm,sbsa-uart")
        _set_reg(node, self.guest.pl011)
        self._interrupts(node, (_SPI, self.guest.pl011_spi - 32, _LEVEL_HIGH))
        node.set_cells("current-speed", 115200)

    def _optee(self, root: Node) -> None:
        node = root.add("firmware").add("optee")
        node.set_strings("compatible", "linaro,optee-tz")
        node.set_strings("method", "hvc")

    def _vsmmu(self, root: Node) -> None:
        guest = self.guest
        node = root.add(f"iommu@{guest.vsmmu.base:x}")
        node.set_strings("compatible", "arm,smmu-v3")
        _set_reg(node, guest.vsmmu)
        node.set_cells("phandle", guest.vsmmu_phandle)
        node.set_cells("#iommu-cells", 1)
        node.set_strings("interrupt-names", "combined")
        self._interrupts(node, (_SPI, guest.vsmmu_spi - 32, _LEVEL_HIGH))
        node.set_empty("dma-coherent")

    def _virtio(self, root: Node) -> None:
        guest = self.guest
        first, last = guest.virtio_spis(self.viommu)
        for index, device in enumerate(self.virtio):
            spi = first + index
            if spi > last:
                reason = f"Ran out of reserved range for Virtio MMIO IRQ {spi}"
                raise Refusal("DT304", "/", reason, f"keep {last - first + 1} virtio devices")
            slot = Window(
                guest.virtio_mmio.base + index * guest.virtio_mmio_slot, guest.virtio_mmio_slot
            )
            node = root.add(f"virtio@{slot.base:x}")
            node.set_strings("compatible", "virtio,mmio")
            _set_reg(node, slot)
            self._interrupts(node, (_SPI, spi - 32, _EDGE))
            node.set_empty("dma-coherent")
            if device.grants:
                node.set_cells("iommus", guest.xen_iommu_phandle, 0)
            add_child(node, device.kind)
        if any(device.grants for device in self.virtio):
            node = root.add("xen_iommu")
            node.set_strings("compatible", "xen,grant-dma")
            node.set_cells("#iommu-cells", 1)
            node.set_cells("phandle", guest.xen_iommu_phandle)

    def _interrupts(self, node: Node, *specifiers: tuple[int, int, int]) -> None:
        node.set_cells("interrupts", *(cell for spec in specifiers for cell in spec))
        node.set_cells("interrupt-parent", self.guest.gic_phandle)


def _covered(reg: MappedReg, pins: Sequence[MappedReg]) -> bool:
    """Whether iomem maps these pages already."""
    return any(
        pin.host <= reg.host
        and reg.host + reg.size <= pin.host + pin.size
        and reg.guest - pin.guest == reg.host - pin.host
        for pin in pins
    )


def _set_reg(node: Node, *windows: Window) -> None:
    cells = [c for w in windows for value in (w.base, w.size) for c in split_cells(value, 2)]
    node.set_cells("reg", *cells)


def _text(text: str) -> bytes:
    """The bytes that the configuration had, with their terminating NUL."""
    return text.encode("utf-8", "surrogateescape") + b"\0"
