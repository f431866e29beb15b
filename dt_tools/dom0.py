# SPDX-License-Identifier: BSD-2-Clause
"""dom0's tree: the host's, with a vSMMU in the place of every enabled physical SMMUv3.

Each vSMMU keeps its SMMU's node name, base, phandle and #iommu-cells, so the masters' `iommus`
and `iommu-map` stay right as they are: dom0's vMasterIDs are the physical StreamIDs. All other
nodes are the host's. An SMMUv3 that is not enabled, and an SMMU of another kind, stays as it is.

Limits: what else Xen changes for dom0 (memory, CPUs, PSCI, its own UART) is not done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import SMMU_V3, Notice
from dt_tools.errors import Refusal
from dt_tools.tree import Node, Tree

if TYPE_CHECKING:
    from dt_tools.platform import Platform, Smmu

_LEVEL_HIGH = 4
_SPI_FIRST, _SPI_LAST = 32, 1019
# What a vSMMU node keeps of its SMMU's, beside the interrupts.
_KEPT = ("reg", "status", "phandle", "linux,phandle", "#iommu-cells", "dma-coherent")
_INTERRUPTS = ("interrupts", "interrupts-extended", "interrupt-parent", "interrupt-names")


class Dom0Tree(Tree):
    """dom0's tree, with what the user has to know about it."""

    def __init__(self) -> None:
        super().__init__()
        self.notices: tuple[Notice, ...] = ()


def build_dom0(platform: Platform) -> Dom0Tree:
    """Build dom0's tree from the host's, which is not changed.

    Interrupts of the GIC are kept, all of them. When an SMMU's are another controller's (dom0
    gets them as message interrupts of a device it does not own), the vSMMU gets one SPI that
    nothing in the host tree uses.

    Raises:
        Refusal: DT306, no SPI is free, or the tree has no GIC.
    """
    source, tree = platform.tree, Dom0Tree()
    notices: list[Notice] = []
    tree.root.copy_from(source.root)
    tree.memreserve, tree.boot_cpuid = list(source.memreserve), source.boot_cpuid
    used: set[int] | None = None
    for smmu in platform.smmus:
        if smmu.kind != SMMU_V3 or smmu.status != "okay":
            continue
        node = tree.node(smmu.path)
        assert node is not None, "the copy has every node"
        foreign = [i for i in smmu.interrupts if i.kind not in ("SPI", "PPI")]
        if foreign or not smmu.interrupts:
            used = _used_spis(platform) if used is None else used
        _replace(platform, smmu, node, used if foreign or not smmu.interrupts else None, notices)
    tree.notices = tuple(notices)
    return tree


def _replace(
    platform: Platform, smmu: Smmu, node: Node, used: set[int] | None, notices: list[Notice]
) -> None:
    """Turn the SMMU's node into its vSMMU's; `used` is given when it needs an SPI of its own."""
    host = dict(node.props)
    keep = _KEPT if used is not None else (*_KEPT, *_INTERRUPTS)
    node.props.clear()
    node.set_strings("compatible", SMMU_V3)
    node.props.update({name: raw for name, raw in host.items() if name in keep})
    if used is not None:
        spi = _combined(platform, smmu, node, used)
        what = f"{len(smmu.interrupts)} not of the GIC" if smmu.interrupts else "none"
        text = f"its interrupts ({what}) replaced by SPI {spi} (GIC id), named combined"
        notices.append(Notice("DT302", smmu.path, text))
    gone = [name for name in host if name not in (*_KEPT, *_INTERRUPTS, "compatible")]
    if gone or node.children:
        names = [*gone, *(f"{name}/" for name in node.children)]
        notices.append(Notice("DT214", smmu.path, f"dropped: {', '.join(names)}"))
    for name in list(node.children):
        node.remove(name)


def _combined(platform: Platform, smmu: Smmu, node: Node, used: set[int]) -> int:
    """Give `node` the first free SPI, level triggered, as its one interrupt; returns its GIC id."""
    spi = next((n for n in range(_SPI_FIRST, _SPI_LAST + 1) if n not in used), None)
    gic = None if platform.gic is None else platform.tree.node(platform.gic.path)
    cells = None if gic is None else gic.u32("#interrupt-cells")
    if spi is None or gic is None or gic.phandle is None or cells not in (3, 4):
        reason = "its interrupts are not the GIC's and no SPI of the GIC can be given instead"
        raise Refusal("DT306", smmu.path, reason, "give the host tree a GIC with a phandle")
    used.add(spi)
    node.set_cells("interrupt-parent", gic.phandle)
    node.set_cells("interrupts", 0, spi - 32, _LEVEL_HIGH, *([0] * (cells - 3)))
    node.set_strings("interrupt-names", "combined")
    return spi


def _used_spis(platform: Platform) -> set[int]:
    """Every SPI (GIC id) that a node of the host tree names, whatever its status."""
    return {
        interrupt.number
        for node in platform.tree.walk()
        if "interrupts" in node.props or "interrupts-extended" in node.props
        for interrupt in platform.interrupts_of(node)
        if interrupt.kind == "SPI"
    }
