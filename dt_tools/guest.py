# SPDX-License-Identifier: BSD-2-Clause
"""The guest's whole device tree: the nodes libxl makes on Arm, the vSMMU, assigned devices.

Nodes and properties stand in libxl's order with libxl's values, so that the tree of a guest
compares property by property with one that `xl create` built. /chosen/rng-seed is left out
unless given, since a seed in a file is none. Interrupts conflict by rule DT303 to DT305.

Limits: AArch64 guests with a device tree; no virtio over PCI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dt_tools import viommus
from dt_tools.binding import Bindings, DeviceBinding, MappedReg, Notice, allocate
from dt_tools.errors import Refusal, UserError
from dt_tools.extended import (
    IOMEM,
    PAGE,
    AddressMap,
    extended_regions,
    initrd_place,
    ram_banks,
)
from dt_tools.guest_limits import (
    SPI_FIRST,
    check_config,
    check_irqs,
    check_nr_spis,
    gic_version,
)
from dt_tools.guest_nodes import GuestNodes
from dt_tools.merge import merge_partial
from dt_tools.numbering import check_without
from dt_tools.partial import Partial, Providers, build_partial
from dt_tools.profiles import DEFAULT, GuestProfile, Profile, Window
from dt_tools.stubs import DEFAULT_CLOCK_HZ
from dt_tools.tree import Tree, split_cells
from dt_tools.virtio import virtio_devices
from xl_configs.frozen import field, frozen, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dt_tools.pci import PciFunction, Topology
    from dt_tools.platform import Platform
    from dt_tools.tree import Node
    from xl_configs import GuestConfig


@frozen
class GuestTree:
    """A guest's tree and what its domain needs to match it.

    `iomem` are the pages to map (bytes), `irqs` the GIC interrupt ids to route, `nr_spis` the
    number of SPIs the guest's GIC must have, `gic_version` 2 or 3, `pci` its PCI functions.
    """

    tree: Tree
    bindings: Bindings
    notices: tuple[Notice, ...]
    iomem: tuple[MappedReg, ...]
    irqs: tuple[int, ...]
    nr_spis: int
    gic_version: int = 3
    pci: tuple[PciFunction, ...] = ()

    def iomem_strings(self) -> tuple[str, ...]:
        """`iomem` in xl.cfg's form: START,NUM or START,NUM@GFN, hex page frames."""
        return tuple(
            f"{r.host // PAGE:#x},{r.size // PAGE:#x}"
            + ("" if r.host == r.guest else f"@{r.guest // PAGE:#x}")
            for r in self.iomem
        )


@frozen
class Options:
    """What neither configuration nor host tree says about a guest's tree.

    Attributes:
        old: the map of an earlier build, whose ids are kept.
        one_vsmmu_per_psmmu: a vSMMU for each physical SMMU of the guest's devices, in place of one
            for all of them.
        domids: ids of the domains that serve virtio devices, by name.
        topology: the host's PCI functions and bridges.
        pci_domains: PCI domain by the path of a host bridge that does not say its own.
        vits: the guest has a virtual ITS, which the `msi-map` of PCI functions names.
        interrupts: whether a device's interrupt that is not an SPI of the GIC is left out, with a
            notice, or the device refused (DT302).
        providers: what becomes of properties that name clocks, resets ... outside the guest.
        stub_clock_hz: the rate of a stand-in for a clock whose rate the host tree does not tell.
    """

    old: Bindings | None = None
    one_vsmmu_per_psmmu: bool = False
    domids: Mapping[str, int] = field(default_factory=dict)
    topology: Topology | None = None
    pci_domains: Mapping[str, int] = field(default_factory=dict)
    vits: bool = False
    interrupts: Literal["drop", "refuse"] = "drop"
    providers: Providers = "drop"
    stub_clock_hz: int = DEFAULT_CLOCK_HZ


def build_guest(
    config: GuestConfig,
    profile: Profile = DEFAULT,
    platform: Platform | None = None,
    partial: Tree | None = None,
    *,
    ramdisk_size: int | None = None,
    rng_seed: bytes | None = None,
    address_bits: int = 40,
    options: Options | None = None,
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
        options: the rest.

    Raises:
        UserError: a device path that the host does not have, or no host to look in.
        Refusal: what cannot be built, by rule id.
    """
    guest = _Guest(config, profile, platform, address_bits, options or Options())
    return guest.build(partial, ramdisk_size, rng_seed)


class _Guest:
    def __init__(
        self,
        config: GuestConfig,
        profile: Profile,
        platform: Platform | None,
        bits: int,
        options: Options,
    ) -> None:
        self.config = config
        self.guest: GuestProfile = profile.guest
        self.platform = platform
        self.bits = bits
        self.options = options
        self.viommu = config.viommu == "smmuv3"
        # vSMMUs of their own have SPIs above those of virtio.
        self.one_vsmmu = self.viommu and not options.one_vsmmu_per_psmmu
        self.virtio = virtio_devices(config, options.domids)
        self.gic_version = gic_version(config, platform)
        memory = config.memory_mib
        # A smaller maxmem wins, as in libxl; a larger one has no effect on the tree.
        memory = memory if config.maxmem_mib is None else min(memory, config.maxmem_mib)
        self.banks = ram_banks(memory, self.guest, bits)
        self.space = AddressMap(self.guest, self.banks, bits)
        self.notices: list[Notice] = []
        self.pci: tuple[PciFunction, ...] = ()
        self._check()

    def build(
        self, partial: Tree | None, ramdisk_size: int | None, rng_seed: bytes | None
    ) -> GuestTree:
        bindings = self._bindings(partial)
        for name, window in self._windows(bindings):
            self.space.claim(window, name)
        pins = self._pins()
        devices = self._devices(partial, bindings, pins)
        irqs = tuple(sorted({*self.config.irqs, *devices.irqs}))
        bindings, moved = viommus.with_spis(bindings, self.guest, irqs)
        self.notices += moved
        taken = self._own_spis(bindings)
        check_irqs(irqs, taken)
        nr_spis = self._nr_spis({*irqs, *taken})
        tree = Tree()
        nodes = GuestNodes(tree.root, self.guest)
        initrd = None if ramdisk_size is None else (0, 0)
        nodes.root()
        chosen = nodes.chosen(self.config.cmdline, initrd, rng_seed)
        self._nodes(nodes, bindings, pins)
        for name in ("passthrough", "aliases"):
            if name in devices.tree.root.children:
                tree.root.add(name).copy_from(devices.tree.root.children[name])
        if ramdisk_size is not None:
            self._place_initrd(tree, chosen, ramdisk_size)
        notices = (*self.notices, *bindings.notices, *devices.notices)
        bindings = replace(
            bindings,
            guest=self.config.name,
            devices=(*devices.devices, *self._pci_devices(bindings)),
            notices=notices,
        )
        iomem = (*pins, *(r for r in devices.iomem if not _covered(r, pins)))
        return GuestTree(tree, bindings, notices, iomem, irqs, nr_spis, self.gic_version, self.pci)

    def _nodes(self, nodes: GuestNodes, bindings: Bindings, pins: Sequence[MappedReg]) -> None:
        """The nodes behind /chosen, in libxl's order."""
        config = self.config
        nodes.cpus(max(config.vcpus, config.maxvcpus))
        nodes.psci()
        nodes.memory(self.banks)
        gic = nodes.gic(self.gic_version, is_bus=self.options.vits)
        if self.options.vits:
            nodes.its(gic, self.guest.its, self.guest.its_phandle)
        nodes.timer()
        holes = [*self.space.devices, *(Window(pin.guest, pin.size) for pin in pins)]
        nodes.hypervisor(extended_regions(self.banks, self.guest, self.bits, holes))
        if config.vuart == "sbsa_uart":
            nodes.vuart()
        if config.tee == "optee":
            nodes.optee()
        if self.pci:
            self._vpci(nodes, bindings)
        for viommu in bindings.all_viommus:
            nodes.vsmmu(viommu, coherent=self.guest.vsmmu_coherent)
        nodes.virtio(self.virtio, *self.guest.virtio_spis(self.one_vsmmu))

    def _vpci(self, nodes: GuestNodes, bindings: Bindings) -> None:
        from dt_tools.pci import iommu_map, msi_map, vpci_node

        def phandle(smmu: str) -> int:
            found = bindings.phandle_of(smmu)
            assert found is not None, "a vSMMU stands for each SMMU of a function"
            return found

        rows = iommu_map(self.pci, bindings, phandle) if self.viommu else ()
        its = self.guest.its_phandle if self.options.vits else None
        msis, said = msi_map(self.pci, its, self.guest)
        vpci_node(nodes.root_node, self.guest, rows, msis)
        self.notices += (*(n for one in self.pci for n in one.notices), *said)

    def _pci_devices(self, bindings: Bindings) -> Iterable[DeviceBinding]:
        """The PCI functions: where the guest sees each, and with which id."""
        if not self.pci:
            return
        from dt_tools.pci import guest_path

        for one in self.pci:
            ids = (bindings.vmaster_id(s.smmu_path, s.stream_id) for s in one.streams)
            own = dict.fromkeys(vid for vid in ids if vid is not None)
            yield DeviceBinding(one.path, guest_path(self.guest, one), tuple(own))

    # What the configuration asks for, and whether it fits together.

    def _check(self) -> None:
        config = self.config
        check_config(config, self.guest, self.platform)
        if self.options.vits and self.gic_version == 2:
            reason = "a virtual ITS is a GICv3's, and the guest has a GICv2"
            raise Refusal("DT529", "/", reason, "leave --vits out")
        if config.iommu_devid_map and not (self.viommu and (config.dtdev or config.pci)):
            text = 'iommu_devid_map has no effect without viommu = "smmuv3" and devices'
            self.notices.append(Notice("DT507", "/", text))

    def _windows(self, bindings: Bindings) -> Iterable[tuple[str, Window]]:
        """The windows of the profile that this guest uses."""
        guest = self.guest
        if self.gic_version == 2:
            first, last = guest.gicv2_gicd, guest.gicv2_gicc
        else:
            first, last = guest.gicv3_gicd, guest.gicv3_gicr
        yield "the GIC", Window(first.base, last.end - first.base)
        if self.options.vits:
            yield "the ITS", guest.its
        if self.virtio:
            yield "virtio-mmio", guest.virtio_mmio
        for viommu in bindings.all_viommus:
            yield "the vSMMU", Window(viommu.base, viommu.size)
        if self.config.vuart == "sbsa_uart":
            yield "the pl011", guest.pl011
        if self.pci:
            for window in (guest.vpci_ecam, guest.vpci_mem, guest.vpci_prefetch):
                if window.end <= 1 << self.bits:
                    yield "the PCI host bridge", window
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

    # vMasterIDs and vSMMUs.

    def _bindings(self, partial: Tree | None) -> Bindings:
        """The vMasterIDs of the devices, and the vSMMUs that have them (their SPIs come later)."""
        config, bindings = self.config, Bindings()
        if self.platform is None and config.dtdev and (self.viommu or partial is None):
            hint = "give the host's device tree"
            raise UserError("dtdev", config.dtdev[0], "there is no host tree to look in", hint)
        if self.platform is None and config.pci:
            hint = "give the host's device tree"
            raise UserError("pci", "/", "there is no host tree to look in", hint)
        if self.platform is not None and config.pci:
            from dt_tools.pci import functions

            self.pci = functions(
                config.pci,
                self.platform,
                self.options.topology,
                viommu=self.viommu,
                domains=self.options.pci_domains,
            )
        old = self.options.old
        if not self.viommu:
            check_without(old)
        if self.platform is None and old is not None and (old.entries or old.retired):
            hint = "give the host's device tree"
            raise UserError("bindings-in", "/", "there is no host tree to look in", hint)
        if self.platform is not None and (config.dtdev or self.pci or old is not None):
            bindings = allocate(
                self.platform,
                config.dtdev,
                pci=self.pci,
                viommu=self.viommu,
                wanted=config.iommu_devid_map,
                old=old,
                one_per_smmu=self.options.one_vsmmu_per_psmmu,
            )
        if not self.viommu:
            return bindings
        bindings, notices = viommus.placed(bindings, self.guest, one=self.one_vsmmu)
        self.notices += notices
        return bindings

    def _devices(
        self, partial: Tree | None, bindings: Bindings, pins: Sequence[MappedReg]
    ) -> Partial:
        """/passthrough, generated or the user's."""
        dtdev = self.config.dtdev
        if partial is not None:
            return merge_partial(
                Tree(),
                partial,
                guest=self.guest,
                platform=self.platform,
                devices=dtdev,
                bindings=bindings if self.viommu else None,
                pins=pins,
            )
        if self.platform is None or not dtdev:
            return Partial(Tree())
        made = build_partial(
            self.platform,
            dtdev,
            bindings,
            self.space,
            viommu=self.viommu,
            pins=pins,
            providers=self.options.providers,
            stub_clock_hz=self.options.stub_clock_hz,
        )
        if self.options.interrupts == "refuse":
            _refuse_dropped(made)
        return made

    # Interrupts.

    def _own_spis(self, bindings: Bindings) -> dict[int, str]:
        """SPIs of the guest's own devices, and whose they are."""
        guest = self.guest
        first, _ = guest.virtio_spis(self.one_vsmmu)
        taken = {first + i: "Virtio MMIO IRQ range" for i in range(len(self.virtio))}
        taken.update((viommu.spi, "vSMMUv3 SPI") for viommu in bindings.all_viommus)
        if self.config.vuart == "sbsa_uart":
            taken[guest.pl011_spi] = "pl011 SPI"
        return taken

    def _nr_spis(self, used: Iterable[int]) -> int:
        needed = max((irq + 1 - SPI_FIRST for irq in used), default=0)
        given = self.config.nr_spis
        if given is not None and given < needed:
            text = f"nr_spis {given} raised to {needed}, the number the guest's devices need"
            self.notices.append(Notice("DT305", "/", text))
        check_nr_spis(given)
        return max(needed, given or 0)

    # The ramdisk.

    def _place_initrd(self, tree: Tree, chosen: Node, size: int) -> None:
        from dt_tools.blob import write

        start, end = initrd_place(self.banks[0], size, len(write(tree)))
        chosen.set_cells("linux,initrd-start", *split_cells(start, 2))
        chosen.set_cells("linux,initrd-end", *split_cells(end, 2))


def _refuse_dropped(made: Partial) -> None:
    for notice in made.notices:
        if notice.rule == "DT302":
            fix = "assign a device whose interrupts are SPIs of the GIC, or let them be dropped"
            raise Refusal("DT302", notice.path, notice.message.replace(" dropped:", ":", 1), fix)


def _covered(reg: MappedReg, pins: Sequence[MappedReg]) -> bool:
    """Whether iomem maps these pages already."""
    return any(
        pin.host <= reg.host
        and reg.host + reg.size <= pin.host + pin.size
        and reg.guest - pin.guest == reg.host - pin.host
        for pin in pins
    )
