# SPDX-License-Identifier: BSD-2-Clause
"""In what the versions of libxl differ where they build an Arm guest's tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dt_tools.profiles import XEN_V3_GUEST, GuestProfile
from xl_configs.keys import Dialect


@dataclass(frozen=True, slots=True)
class Version:
    """One libxl.

    Attributes:
        name: of `--profile`.
        guest: its guest map and numbers.
        viommu: what it makes of `viommu = "smmuv3"`: nothing (an unknown key), a vSMMU whose ids
            are the physical StreamIDs, or one whose ids the hypervisor gives out.
        coherent: the vSMMU has `dma-coherent`.
        vpci_map: rows of the iommu-map that its vPCI node has with a vSMMU, in requester ids.
        vendor: AMD's 4.17: virtio disks and network cards from the last slot down, all with grants;
            the GICv3 is a bus; 160 SPIs at least; no nr_spis key.
        hypervisor_regs: entries that /hypervisor's reg has room for; those not used stay behind the
            tree as free space.
        keeps_iomem_clear: extended regions leave the guest frames of iomem out.
        checks_nr_spis: an nr_spis that is too small is refused, not raised.
        checks_host_gic: an iomem entry over the host's GIC is refused (by the hypervisor).
    """

    name: str
    guest: GuestProfile = field(default_factory=GuestProfile)
    viommu: Literal["unknown", "streamids", "vsids"] = "unknown"
    coherent: bool = False
    vpci_map: int = 0
    vendor: bool = False
    hypervisor_regs: int = 3
    keeps_iomem_clear: bool = False
    checks_nr_spis: bool = False
    checks_host_gic: bool = False

    @property
    def dialect(self) -> Dialect:
        """How its xl reads a configuration."""
        return Dialect.STOCK if self.viommu == "unknown" else Dialect.SERIES


_VENDOR = GuestProfile(
    name="xen-xlnx4.17", xen_version="4.17", virtio_spi_first=34, virtio_spi_last=44
)

VERSIONS: dict[str, Version] = {
    one.name: one
    for one in (
        Version("xen-4.20", GuestProfile(name="xen-4.20", xen_version="4.20")),
        Version(
            "xen-4.22",
            GuestProfile(name="xen-4.22", xen_version="4.22"),
            hypervisor_regs=257,
            keeps_iomem_clear=True,
            checks_nr_spis=True,
            checks_host_gic=True,
        ),
        Version(
            "xen-xlnx4.17",
            _VENDOR,
            viommu="streamids",
            coherent=True,
            vpci_map=0x10000,
            vendor=True,
        ),
        Version(
            "xen-v3",
            XEN_V3_GUEST,
            viommu="vsids",
            vpci_map=0x1000,
            hypervisor_regs=257,
            keeps_iomem_clear=True,
            checks_nr_spis=True,
            checks_host_gic=True,
        ),
    )
}
"""By the name that `--profile` takes."""
