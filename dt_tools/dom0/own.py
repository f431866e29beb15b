# SPDX-License-Identifier: BSD-2-Clause
"""dom0's tree: the host's, with a vSMMU in the place of every enabled physical SMMUv3.

Each vSMMU keeps its SMMU's node name, base, phandle and #iommu-cells, so the masters' `iommus`
and `iommu-map` stay right as they are: dom0's vMasterIDs are the physical StreamIDs. All other
nodes are the host's. An SMMUv3 that is not enabled, and an SMMU of another kind, stays as it is.

Without a vSMMU, the SMMUs that Xen drives are gone, and so is what names them.

Limits: what else Xen changes for dom0 (memory, CPUs, PSCI, its own UART) is not done here but in
`dt_tools.dom0.xen`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dt_tools.binding import SMMU_V3, Notice
from dt_tools.dom0.given import NO_GIVEN, Given, hide, users_of
from dt_tools.errors import Refusal
from dt_tools.tree import Node, Tree

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dt_tools.platform import Master, Platform, Smmu

_LEVEL_HIGH = 4
_SPI_FIRST, _SPI_LAST = 32, 1019
# What a vSMMU node keeps of its SMMU's, beside the interrupts.
_KEPT = ("reg", "status", "phandle", "linux,phandle", "#iommu-cells", "dma-coherent")
_INTERRUPTS = ("interrupts", "interrupts-extended", "interrupt-parent", "interrupt-names")
# The Arm SMMUs that Xen has a driver for.
DRIVEN = (SMMU_V3, "arm,smmu-v1", "arm,smmu-v2", "arm,mmu-400", "arm,mmu-401", "arm,mmu-500")
_NAMES = ("aliases", "__symbols__")


class Dom0Tree(Tree):
    """dom0's tree, with what the user has to know about it."""

    def __init__(self) -> None:
        super().__init__()
        self.notices: tuple[Notice, ...] = ()

    def copy_of(self, source: Tree) -> None:
        """Take over all of `source`, sharing nothing with it; the tree must be empty."""
        self.root.copy_from(source.root)
        self.memreserve, self.boot_cpuid = list(source.memreserve), source.boot_cpuid


def build_dom0(
    platform: Platform,
    *,
    viommu: bool = True,
    interrupts: Literal["combined", "refuse"] = "combined",
    given: Given = NO_GIVEN,
    combined: bool = False,
) -> Dom0Tree:
    """Build dom0's tree from the host's, which is not changed.

    Interrupts of the GIC are kept, all of them. When an SMMU's are another controller's (dom0
    gets them as message interrupts of a device it does not own), the vSMMU gets one SPI that
    nothing in the host tree uses.

    Args:
        platform: the host.
        viommu: whether dom0 has vSMMUs; without, it sees no SMMU that Xen drives.
        interrupts: what becomes of a vSMMU whose interrupts are not the GIC's.
        given: the devices that dom0 does not get; those that the host's tree marks
            `xen,passthrough` are hidden in any case.
        combined: each vSMMU has its SMMU's first interrupt alone, as a level named `combined`, and
            no `dma-coherent`, as the Xen series makes it.

    Raises:
        Refusal: DT302, interrupts are not the GIC's and shall not be replaced; DT306, no SPI is
            free, or the tree has no GIC; DT613, a master is behind an SMMU that Xen drives and
            behind another.
    """
    tree = Dom0Tree()
    tree.copy_of(platform.tree)
    notices: list[Notice] = []
    if viommu:
        _virtualise(platform, tree, interrupts, notices, combined=combined)
    else:
        _withdraw(platform, tree, notices)
    hide(tree, given)
    tree.notices = (*notices, *given.notices, *users_of(tree, given))
    return tree


def _virtualise(
    platform: Platform, tree: Tree, interrupts: str, notices: list[Notice], *, combined: bool
) -> None:
    used: set[int] | None = None
    for smmu in platform.smmus:
        if smmu.kind != SMMU_V3 or smmu.status != "okay":
            continue
        node = tree.node(smmu.path)
        assert node is not None, "the copy has every node"
        foreign = [i for i in smmu.interrupts if i.kind not in ("SPI", "PPI")]
        if foreign or not smmu.interrupts:
            if interrupts == "refuse":
                why = foreign[0].reason if foreign else "it has none"
                fix = "correct its interrupts in the host tree, or let one SPI stand for them"
                raise Refusal("DT302", smmu.path, f"its interrupts are not the GIC's: {why}", fix)
            used = _used_spis(platform) if used is None else used
        _replace(platform, smmu, node, used if foreign or not smmu.interrupts else None, notices)
        if combined:
            node.props.pop("dma-coherent", None)
            if not foreign and smmu.interrupts and smmu.interrupts[0].kind == "SPI":
                _wire(platform, smmu, node, smmu.interrupts[0].number)


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
    _wire(platform, smmu, node, spi)
    assert spi is not None, "it was refused without one"
    used.add(spi)
    return spi


def _wire(platform: Platform, smmu: Smmu, node: Node, spi: int | None) -> None:
    """Give `node` an SPI (GIC id), level triggered, as its one interrupt."""
    gic = None if platform.gic is None else platform.tree.node(platform.gic.path)
    cells = None if gic is None else gic.u32("#interrupt-cells")
    if spi is None or gic is None or gic.phandle is None or cells not in (3, 4):
        reason = "its interrupts are not the GIC's and no SPI of the GIC can be given instead"
        raise Refusal("DT306", smmu.path, reason, "give the host tree a GIC with a phandle")
    for name in _INTERRUPTS:
        node.props.pop(name, None)
    node.set_cells("interrupt-parent", gic.phandle)
    node.set_cells("interrupts", 0, spi - 32, _LEVEL_HIGH, *([0] * (cells - 3)))
    node.set_strings("interrupt-names", "combined")


def _used_spis(platform: Platform) -> set[int]:
    """Every SPI (GIC id) that a node of the host tree names, whatever its status."""
    return {
        interrupt.number
        for node in platform.tree.walk()
        if "interrupts" in node.props or "interrupts-extended" in node.props
        for interrupt in platform.interrupts_of(node)
        if interrupt.kind == "SPI"
    }


def _withdraw(platform: Platform, tree: Tree, notices: list[Notice]) -> None:
    """Take out the SMMUs that Xen drives, whatever their status, and what names them."""
    names = {one.lower() for one in DRIVEN}
    gone = {s.path for s in platform.smmus if names.intersection(c.lower() for c in s.compatible)}
    phandles = {s.phandle: s.path for s in platform.smmus if s.phandle is not None}
    for master in platform.masters:
        _unbind(master, tree, phandles, gone)
    for path in gone:
        node = tree.node(path)
        if node is not None and node.parent is not None:
            node.parent.remove(node.name)
    _forget(tree, gone, notices)
    if gone:
        text = f"{len(gone)} SMMUs that Xen drives, and iommus and iommu-map of what is behind them"
        notices.append(Notice("DT617", "/", f"not in dom0's tree: {text}"))


def _unbind(master: Master, tree: Tree, phandles: Mapping[int, str], gone: Collection[str]) -> None:
    """Take out what binds a master to SMMUs that are gone, malformed entries included."""
    node, path = tree.node(master.path), master.path
    if node is None:
        return
    named = {s.smmu_path for s in master.streams} | {r.smmu_path for r in master.maps}
    for prop, at in (("iommus", 0), ("iommu-map", 1)):
        cells = node.cells(prop) or ()
        if at < len(cells) and cells[at] in phandles:
            named.add(phandles[cells[at]])
    if named & set(gone):
        stays = sorted(named - set(gone))
        if stays:
            reason = f"is behind an SMMU that Xen drives and behind {stays[0]}, which dom0 keeps"
            raise Refusal("DT613", path, reason, "take one of them out of iommus in the host tree")
        for prop in ("iommus", "iommu-map", "iommu-map-mask"):
            node.props.pop(prop, None)


def _forget(tree: Tree, gone: Collection[str], notices: list[Notice]) -> None:
    """Names for nodes that are not there any more are taken out of /aliases and /__symbols__."""
    for table in _NAMES:
        node = tree.root.children.get(table)
        for name in list(node.props) if node is not None else ():
            assert node is not None
            path = (node.string(name) or "").partition(":")[0]
            if any(path == one or path.startswith(f"{one}/") for one in gone):
                del node.props[name]
                notices.append(Notice("DT214", node.path, f"dropped: {name} ({path})"))
