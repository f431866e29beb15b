# SPDX-License-Identifier: BSD-2-Clause
"""What the tree builders and the hypervisor must agree on, in one place.

A `GuestProfile` is the guest's physical map and the fixed numbers of the nodes that describe it.
`dt_tools.guest` is handed it to write the tree, `vsmmu.hypervisor` to answer the traps; neither
has a copy. The map is Xen's `arch-arm.h` (not a stable ABI there); the vSMMU's numbers are those
of the posted Xen vSMMUv3 series.
"""

from __future__ import annotations

from xl_configs.frozen import field, frozen


@frozen
class Window:
    """A range of guest physical addresses, in bytes; `end` is exclusive."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """First address after the window."""
        return self.base + self.size

    def overlaps(self, other: Window) -> bool:
        """Whether the two share an address."""
        return self.base < other.end and other.base < self.end


@frozen
class GuestProfile:
    """Guest-physical map, interrupt numbers and phandles of a domU on Arm.

    Windows in bytes; SPIs and PPIs as GIC interrupt ids (the first SPI is 32). `vsmmu_coherent`
    gives the vSMMU's node `dma-coherent`.
    """

    name: str = "default"
    xen_version: str = "4.20"

    # The vSMMU: one combined wired interrupt, level triggered (EVENTQ and GERROR share it).
    vsmmu: Window = Window(0x0404_0000, 0x4_0000)
    vsmmu_spi: int = 33
    vsmmu_phandle: int = 65002
    vsmmu_coherent: bool = True

    gic_phandle: int = 65000
    xen_iommu_phandle: int = 65001

    virtio_mmio: Window = Window(0x0200_0000, 0x10_0000)
    virtio_mmio_slot: int = 0x200
    virtio_spi_first: int = 33
    virtio_spi_last: int = 43

    gicv2_gicd: Window = Window(0x0300_1000, 0x1000)
    gicv2_gicc: Window = Window(0x0300_2000, 0x2000)
    gicv3_gicd: Window = Window(0x0300_1000, 0x1_0000)
    gicv3_gicr: Window = Window(0x0302_0000, 0x100_0000)

    # The virtual ITS, where a hypervisor has one: between the redistributors and the vSMMU. Its
    # phandle is behind those of 127 vSMMUs.
    its: Window = Window(0x0402_0000, 0x2_0000)
    its_phandle: int = 65130

    vpci_ecam: Window = Window(0x1000_0000, 0x1000_0000)
    vpci_mem: Window = Window(0x2300_0000, 0x1000_0000)
    vpci_prefetch: Window = Window(0x1_0000_0000, 0x1_0000_0000)

    acpi: Window = Window(0x2000_0000, 0x200_0000)
    pl011: Window = Window(0x2200_0000, 0x1000)
    pl011_spi: int = 32

    grant_table: Window = Window(0x3800_0000, 0x100_0000)
    magic: Window = Window(0x3900_0000, 0x100_0000)
    ram_banks: tuple[Window, ...] = (
        Window(0x4000_0000, 0xC000_0000),
        Window(0x2_0000_0000, 0xFE_0000_0000),
    )

    # Where registers go that cannot be mapped 1:1, in order of preference: room between the fixed
    # windows, so that a placed device does not move with the guest's memory size.
    placement: tuple[Window, ...] = (
        Window(0x0600_0000, 0xA00_0000),
        Window(0x3300_0000, 0x500_0000),
        Window(0x3A00_0000, 0x600_0000),
    )

    timer_ppis: tuple[int, ...] = (29, 30, 27)
    evtchn_ppi: int = 31
    max_vcpus: int = 128

    def virtio_spis(self, viommu: bool) -> tuple[int, int]:
        """First and last SPI of virtio-mmio; the series moves them up by one for its own SPI."""
        shift = 1 if viommu and self.vsmmu_spi == self.virtio_spi_first else 0
        return self.virtio_spi_first + shift, self.virtio_spi_last + shift

    def fixed_windows(self) -> tuple[tuple[str, Window], ...]:
        """Every window that guest RAM and placed devices must stay clear of, named."""
        return (
            ("virtio-mmio", self.virtio_mmio),
            ("gic", Window(self.gicv3_gicd.base, self.gicv3_gicr.end - self.gicv3_gicd.base)),
            ("its", self.its),
            ("vsmmu", self.vsmmu),
            ("vpci-ecam", self.vpci_ecam),
            ("acpi", self.acpi),
            ("pl011", self.pl011),
            ("vpci-mem", self.vpci_mem),
            ("grant-table", self.grant_table),
            ("magic", self.magic),
            ("vpci-prefetch", self.vpci_prefetch),
        )


@frozen
class VsmmuProfile:
    """What a vSMMU may advertise at most, by the names of IHI 0070 §6.3.1 ff.

    `idr` holds one mapping of field name to value for each identification register. The
    hypervisor lowers these to what the physical SMMUs behind the guest's devices have. `reset`
    holds fields of registers that have a value before the guest gave them one.

    dom0's vSMMUs have their SMMUs' interrupts and StreamID sizes; with `dom0_combined` the SMMU's
    first interrupt alone, as a level named `combined`, and the size that `idr` says.
    """

    name: str = "strict"
    idr: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            "IDR0": {
                "s1p": 1,
                "ttf": 2,
                "cohacc": 1,
                "asid16": 1,
                "ttendian": 2,
                "stall_model": 1,
                "term_model": 1,
                "st_level": 1,
            },
            "IDR1": {"sidsize": 16, "cmdqs": 19, "eventqs": 19},
            "IDR3": {"had": 1, "ril": 1, "bbml": 1},
            "IDR5": {"oas": 5, "gran4k": 1, "gran16k": 1, "gran64k": 1},
            "IIDR": {"implementer": 0x43B},
            "AIDR": {"archminrev": 2},
        }
    )
    reset: dict[str, dict[str, int]] = field(default_factory=dict)
    dom0_combined: bool = False


@frozen
class Profile:
    """The object that both sides are handed."""

    guest: GuestProfile = field(default_factory=GuestProfile)
    vsmmu: VsmmuProfile = field(default_factory=VsmmuProfile)


DEFAULT = Profile()

# The series keeps SPI 33 for the vSMMU and moves virtio's up by one, also for a guest without one.
XEN_V3_GUEST = GuestProfile(
    name="xen-v3",
    xen_version="4.22",
    virtio_spi_first=34,
    virtio_spi_last=44,
    vsmmu_coherent=False,
)

# The constants of the third posting, but TTENDIAN and AIDR: docs/vsmmu-features.md says why.
_XEN_V3_VSMMU = VsmmuProfile(
    name="xen-v3",
    idr={
        "IDR0": {
            "s1p": 1,
            "ttf": 2,
            "cohacc": 0,
            "asid16": 1,
            "ttendian": 2,
            "stall_model": 1,
            "term_model": 1,
            "st_level": 1,
        },
        "IDR1": {"sidsize": 16, "cmdqs": 19, "eventqs": 19},
        "IDR3": {},
        "IDR5": {"oas": 5, "gran4k": 1, "gran16k": 1, "gran64k": 1},
        "IIDR": {"implementer": 0x12},
        "AIDR": {},
    },
    reset={"CMDQ_BASE": {"log2size": 19}, "EVENTQ_BASE": {"log2size": 19}},
    dom0_combined=True,
)

PROFILES = {"strict": DEFAULT, "xen-v3": Profile(XEN_V3_GUEST, _XEN_V3_VSMMU)}
"""What guests of the emulator see of their vSMMUs, by name."""
