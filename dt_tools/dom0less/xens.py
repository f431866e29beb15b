# SPDX-License-Identifier: BSD-2-Clause
"""In what the dom0less builders of Xen's versions differ, where a tree shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class Xen:
    """One builder.

    Attributes:
        name: of the profile.
        version: as /hypervisor's compatible has it.
        copy_first: /aliases and /passthrough are the first nodes of the guest's tree, and the
            others follow in the order of 4.22.
        highest_phandle: the greatest one a partial tree may hold, None for any.
        vsmmu: whether it knows the property viommu and gives a guest a vSMMU.
        rewrites: when `iommus` in a partial tree becomes <vSMMU id>: never, with viommu, or always.
        ids: a vMasterID is the pMasterID, or the next free one for each (SMMU, pMasterID).
        gic_cells_last: the GIC's #address-cells is its last property, and there is no
            #redistributor-regions.
        reg_holes: xen,reg is kept out of the extended regions.
        enhanced_needs_dom0: xen,enhanced with xenstore stops the boot without a dom0.
        buffer: bytes of the guest's tree beside those of its partial tree.
    """

    name: str
    version: str = "4.20"
    copy_first: bool = False
    highest_phandle: int | None = None
    vsmmu: bool = False
    rewrites: Literal["never", "viommu", "always"] = "never"
    ids: Literal["physical", "allocated"] = "allocated"
    gic_cells_last: bool = False
    reg_holes: bool = False
    enhanced_needs_dom0: bool = True
    buffer: int = 4 * _KIB

    def rewrites_iommus(self, viommu: bool) -> bool:
        """Whether it rewrites `iommus` for a guest with (`viommu`) or without a vSMMU."""
        return self.rewrites == "always" or (self.rewrites == "viommu" and viommu)


# The default: 4.20 with the vSMMU as it has to be, one id for each (SMMU, pMasterID), at any depth.
SERIES = Xen("series", vsmmu=True, rewrites="viommu", buffer=2 * _KIB + 128 * 128)

XENS = {
    xen.name: xen
    for xen in (
        SERIES,
        Xen("xen-4.20"),
        Xen(
            "xen-4.22",
            version="4.22",
            copy_first=True,
            # One more has to be free below the GIC's 65000.
            highest_phandle=64998,
            reg_holes=True,
            enhanced_needs_dom0=False,
            buffer=2 * _KIB + 128 * 128,
        ),
        Xen(
            "xen-xlnx4.17",
            version="4.17",
            vsmmu=True,
            rewrites="always",
            ids="physical",
            gic_cells_last=True,
        ),
    )
}
