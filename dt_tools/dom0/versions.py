# SPDX-License-Identifier: BSD-2-Clause
"""Which Xen makes dom0's tree: what the versions do differently, and what no host tree tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dt_tools.profiles import Window
    from dt_tools.tree import Node

SMMU, SMMU_V3, IPMMU, ITS = "smmu", "smmuv3", "ipmmu", "its"
DRIVERS = (SMMU, SMMU_V3, IPMMU, ITS)
"""Drivers that decide about dom0's tree and that a build of Xen has or has not."""

_UARTS = (
    "arm,pl011", "arm,sbsa-uart", "cdns,uart-r1p8", "cdns,uart-r1p12", "samsung,exynos4210-uart",
    "amlogic,meson-uart", "amlogic,meson6-uart", "amlogic,meson8-uart", "amlogic,meson8b-uart",
    "amlogic,meson-gx-uart", "marvell,armada-3700-uart", "ns16550", "ns16550a",
    "snps,dw-apb-uart", "brcm,bcm2835-aux-uart", "ti,omap4-uart", "renesas,scif",
    "renesas,scifa", "renesas,hscif",
)  # fmt: skip
_UARTS_417 = (*(name for name in _UARTS if name != "arm,sbsa-uart"), "fsl,imx8qm-lpuart")
_UARTS_420 = (*_UARTS, "fsl,imx8qxp-lpuart", "nxp,s32g2-linflexuart", "nxp,s32g3-linflexuart",
              "fsl,s32v234-linflexuart", "ti,am654-uart")  # fmt: skip


@dataclass(frozen=True, slots=True)
class XenVersion:
    """A version of Xen, as far as dom0's tree depends on it.

    Attributes:
        name: the profile's name.
        release: what the hypervisor node calls it.
        drivers: of `DRIVERS`, those of the build whose trees were recorded.
        uarts: compatibles that its console drivers have.
        gic_name: the GIC's node keeps its host name; else it is `interrupt-controller`.
        msi_cells: ITS nodes get #msi-cells.
        unbinds: masters behind an IOMMU of Xen's lose iommus and iommu-map.
        short_regions: extended regions end 2 MiB early where a hole ends on a 2 MiB boundary.
        timer_names: the timer's interrupts are looked up by name.
        reserved_memreserve: /memreserve/ is kept out of the extended regions.
        viommu: dom0 can have vSMMUs.
        skips_domains: nodes that describe dom0less domains are not copied, wherever they are.
        skips_heap: xen,static-heap of /chosen is not copied.
    """

    name: str
    release: str
    drivers: frozenset[str] = frozenset((SMMU,))
    uarts: frozenset[str] = frozenset(_UARTS_420)
    gic_name: bool = False
    msi_cells: bool = True
    unbinds: bool = True
    short_regions: bool = False
    timer_names: bool = True
    reserved_memreserve: bool = True
    viommu: bool = False
    skips_domains: bool = True
    skips_heap: bool = True


VERSIONS = {
    version.name: version
    for version in (
        XenVersion("xen-4.20", "4.20", short_regions=True),
        XenVersion("xen-4.22", "4.22", frozenset((SMMU, SMMU_V3, ITS)), gic_name=True),
        XenVersion(
            "xen-xlnx4.17",
            "4.17",
            frozenset((SMMU, SMMU_V3, ITS)),
            frozenset(_UARTS_417),
            msi_cells=False,
            unbinds=False,
            timer_names=False,
            reserved_memreserve=False,
            viommu=True,
            skips_domains=False,
            skips_heap=False,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class XenOptions:
    """What the host's tree does not tell, or tells otherwise than it is.

    None stands for what `dt_tools.dom0.build_xen_dom0` takes for it: from the host's tree where
    it says so, as Xen's command line in /chosen does, else an assumption, with a notice DT616.

    Attributes:
        memory: dom0's RAM banks; bytes.
        vcpus: dom0's vCPUs.
        bootargs: dom0's kernel command line.
        initrd: first address and end of the ramdisk in dom0's memory; () for no ramdisk.
        grant_table: the region of dom0's grant table.
        regions: the extended regions.
        ipa_bits: width of a guest physical address on the host.
        drivers: of `DRIVERS`, those that this build of Xen has.
        dtuart: path of the UART that Xen keeps for its console; "none" for none.
        v2m_spis: first SPI (GIC id) and number of SPIs, for each GICv2m frame whose node does not
            say so.
        viommu: whether dom0 has vSMMUs.
    """

    memory: tuple[Window, ...] | None = None
    vcpus: int | None = None
    bootargs: str | None = None
    initrd: tuple[int, int] | tuple[()] | None = None
    grant_table: Window | None = None
    regions: tuple[Window, ...] | None = None
    ipa_bits: int | None = None
    drivers: frozenset[str] | None = None
    dtuart: str | None = None
    v2m_spis: tuple[tuple[int, int], ...] = ()
    viommu: bool | None = None


NO_OPTIONS = XenOptions()


IOMMUS = {
    SMMU: ("arm,smmu-v1", "arm,smmu-v2", "arm,mmu-400", "arm,mmu-401", "arm,mmu-500"),
    SMMU_V3: ("arm,smmu-v3",),
    IPMMU: (
        "renesas,ipmmu-r8a7795",
        "renesas,ipmmu-r8a77965",
        "renesas,ipmmu-r8a7796",
        "renesas,ipmmu-r8a77961",
        "renesas,ipmmu-r8a779f0",
        "renesas,ipmmu-r8a779g0",
    ),
}
GIC_V2 = ("arm,cortex-a15-gic", "arm,cortex-a7-gic", "arm,gic-400")
GIC_V3 = ("arm,gic-v3",)
TIMERS = ("arm,armv7-timer", "arm,armv8-timer")
SKIPPED = (
    "xen,xen", "xen,multiboot-module", "multiboot,module", "arm,psci", "arm,psci-0.2",
    "arm,psci-1.0", "arm,cortex-a7-pmu", "arm,cortex-a15-pmu", "arm,cortex-a53-edac",
    "arm,armv8-pmuv3", "arm,armv7-timer-mem",
)  # fmt: skip
SKIPPED_DOMAINS = ("xen,domain", "xen,domain-shared-memory-v1", "xen,evtchn-v1")
# Boards on which Xen keeps more from dom0: compatibles of the root, then of the nodes.
BLACKLISTS = (
    (("brcm,bcm2711",), ("brcm,bcm2835-aux-spi", "brcm,bcm2835-aux", "brcm,bcm2835-pm")),
    (("samsung,exynos5250", "samsung,exynos5410"),
     ("samsung,exynos4210-mct", "samsung,secure-firmware")),
    (("allwinner,sun6i-a31", "allwinner,sun6i-a31s", "allwinner,sun7i-a20", "allwinner,sun8i-a23",
      "allwinner,sun8i-a33", "allwinner,sun8i-h2-plus", "allwinner,sun8i-h3",
      "allwinner,sun50i-a64", "allwinner,sun50i-h5", "allwinner,sun50i-h6"),
     ("snps,dw-apb-uart",)),
    (("cavium,thunder-88xx",), ("cavium,smmu-v2",)),
    (("arm,vexpress",),
     ("arm,cci-400", "arm,cci-400-pmu", "arm,hdlcd", "arm,vexpress-reset", "arm,vexpress-reboot",
      "arm,vexpress-shutdown")),
)  # fmt: skip
# Width of physical addresses by CPU (technical reference manuals, ID_AA64MMFR0_EL1.PARange).
CPU_BITS = {
    "arm,cortex-a35": 40,
    "arm,cortex-a53": 40,
    "arm,cortex-a55": 40,
    "arm,cortex-a57": 44,
    "arm,cortex-a72": 44,
    "arm,cortex-a75": 44,
    "arm,cortex-a76": 40,
    "arm,cortex-a78": 40,
    "arm,cortex-a78ae": 48,
    "arm,neoverse-n1": 48,
    "arm,neoverse-n2": 48,
    "arm,neoverse-v1": 48,
}


def is_one(node: Node, names: Iterable[str]) -> bool:
    """Whether the node has one of the compatibles, which Xen compares without regard to case."""
    own = node.strings("compatible")
    return own is not None and not {name.lower() for name in own}.isdisjoint(names)


def blacklist(root: Node) -> frozenset[str]:
    """Compatibles of what Xen keeps from dom0 on this board."""
    return frozenset(name for boards, names in BLACKLISTS if is_one(root, boards) for name in names)
