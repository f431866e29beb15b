# SPDX-License-Identifier: BSD-2-Clause
"""The meaning of a host board's tree: SMMUs, DMA masters, StreamIDs, interrupts, register pages.

A StreamID is only ever named together with its SMMU, and a node by its full path: boards repeat
the same StreamID on several SMMUs and the same node name on several buses.

A host tree is untrusted. What is malformed becomes a finding (or a reason, or None) rather than
an error; the one error is `DtbError` when the tree asks for more work than `WORK_LIMIT`.
A `Platform` keeps what it looked up, so the tree must not be changed under it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.addresses import PAGE, Addresses, Reg
from dt_tools.errors import UserError
from dt_tools.interrupts import Gic, Interrupt, Interrupts, find_gic
from dt_tools.masters import MapRow, Master, Masters, Stream, is_master
from dt_tools.tree import Node, Tree, cell_count, nearest_path, status_of
from dt_tools.work import WORK_LIMIT, Work
from xl_configs.frozen import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MMU_500",
    "OTHER",
    "PAGE",
    "PMCG",
    "SMMU_V2",
    "SMMU_V3",
    "WORK_LIMIT",
    "Finding",
    "Gic",
    "Interrupt",
    "MapRow",
    "Master",
    "Platform",
    "Pmcg",
    "Reg",
    "Smmu",
    "Stream",
    "status_of",
]

SMMU_V3 = "arm,smmu-v3"
MMU_500 = "arm,mmu-500"
SMMU_V2 = "arm,smmu-v2"
PMCG = "arm,smmu-v3-pmcg"
OTHER = "other"
_V2_COMPATIBLES = (
    SMMU_V2,
    "arm,smmu-v1",
    "arm,mmu-400",
    "arm,mmu-401",
    "cavium,smmu-v2",
    "qcom,smmu-v2",
)


@frozen
class Smmu:
    """An IOMMU node. `kind` is `arm,smmu-v3`, `arm,mmu-500`, `arm,smmu-v2` or `other`.

    `status` is the effective one: a node below a disabled bus is disabled. `base` and `size` are
    the first register range at its CPU address, None when it has none.
    """

    path: str
    compatible: tuple[str, ...]
    kind: str
    status: str
    base: int | None
    size: int | None
    phandle: int | None
    iommu_cells: int
    interrupts: tuple[Interrupt, ...]
    interrupt_names: tuple[str, ...]
    dma_coherent: bool
    node: Node = field(repr=False, compare=False)


@frozen
class Pmcg:
    """A performance monitor of an SMMUv3: not an SMMU, although its compatible starts alike."""

    path: str
    status: str
    base: int | None
    size: int | None


@frozen
class Finding:
    """Something in the tree worth telling; `severity` is `error`, `warning` or `note`."""

    rule: str
    severity: str
    path: str
    text: str


class Platform:
    """A host board. Make one with `from_tree`.

    Attributes:
        tree: the host tree; `source` its name for messages.
        smmus: every IOMMU in blob order, disabled ones and other kinds included.
        pmcgs: SMMUv3 performance monitors.
        masters: every node with `iommus` or `iommu-map`, in blob order.
        gic: the root GIC, None when the tree has none.
        findings: what is wrong in the tree's phandles, `iommus` and `iommu-map`.
    """

    def __init__(self, tree: Tree, source: str) -> None:
        self.tree = tree
        self.source = source
        self._found: list[Finding] = []
        self._phandles = tree.phandles()
        work = Work(source)
        self._addresses = Addresses(tree, work)
        self.gic = find_gic(tree, self._phandles)
        self._interrupts = Interrupts(self._phandles, self.gic, work)
        smmus = {node: self._smmu(node) for node in tree.walk() if _is_iommu(node)}
        self.smmus = tuple(smmus.values())
        self.pmcgs = tuple(self._pmcg(n) for n in tree.walk() if n.is_compatible(PMCG))
        reader = Masters(smmus, self._phandles, self._note)
        self.masters = tuple(reader.of(node) for node in tree.walk() if is_master(node))
        self._check_phandles()
        self.findings = tuple(self._found)

    @classmethod
    def from_tree(cls, tree: Tree, source: str = "dtb") -> Platform:
        """Read the board.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return cls(tree, source)

    def reg_of(self, node: Node) -> tuple[Reg, ...] | None:
        """The node's registers at CPU addresses, through every `ranges` up to the root.

        Empty without `reg`. None when an entry does not translate (a bus without `ranges`, no row
        that has all of it, sizes absent) or `reg` is malformed.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return self._addresses.reg(node)

    def interrupts_of(self, node: Node) -> tuple[Interrupt, ...]:
        """The node's interrupts in order, `interrupts-extended` before `interrupts`.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return self._interrupts.of(node)

    def page_neighbours(self, node: Node, limit: int = 64) -> tuple[str, ...]:
        """Full paths, sorted, of other devices with registers in the same 4 KiB pages.

        Whatever their status, since hardware that is off or reserved is there all the same. Not
        counted: the node's own descendants, a simple-bus above it, memory and reserved memory.
        At most `limit` are looked for.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return self._addresses.neighbours(node, limit)

    def resolve(self, path: str) -> Node:
        """The node at an absolute host path, unit addresses included.

        Raises:
            UserError: there is none; the hint is the nearest path that exists.
        """
        node = self.tree.node(path)
        if node is not None:
            return node
        shown = ascii(path)[1:-1]
        shown = shown if len(shown) <= 200 else shown[:200] + "..."
        reason = "no such node" if path.startswith("/") else "not an absolute path"
        nearest = nearest_path(self.tree, path)
        hint = None if nearest is None else f"nearest: {nearest}"
        raise UserError(self.source, shown or "''", reason, hint)

    def _note(self, rule: str, severity: str, node: Node, text: str) -> None:
        self._found.append(Finding(rule, severity, node.path, text))

    def _first_reg(self, node: Node) -> tuple[int | None, int | None]:
        regs = self.reg_of(node)
        return (regs[0].cpu_base, regs[0].size) if regs else (None, None)

    def _smmu(self, node: Node) -> Smmu:
        compatible = node.strings("compatible") or ()
        base, size = self._first_reg(node)
        cells = cell_count(node, "#iommu-cells")
        if cells is None:
            cells = 1
            self._note("DT406", "warning", node, "no valid #iommu-cells; 1 is assumed")
        return Smmu(
            path=node.path,
            compatible=compatible,
            kind=_kind(compatible),
            status=status_of(node),
            base=base,
            size=size,
            phandle=node.phandle,
            iommu_cells=cells,
            interrupts=self.interrupts_of(node),
            interrupt_names=node.strings("interrupt-names") or (),
            dma_coherent="dma-coherent" in node.props,
            node=node,
        )

    def _pmcg(self, node: Node) -> Pmcg:
        return Pmcg(node.path, status_of(node), *self._first_reg(node))

    def _check_phandles(self) -> None:
        for node in self.tree.walk():
            value = node.phandle
            first = None if value is None else self._phandles.get(value)
            if value is not None and first is not None and first is not node:
                self._note("DT403", "error", node, f"phandle {value:#x} is {first.path}'s too")


def _kind(compatible: Iterable[str]) -> str:
    names = set(compatible)
    if SMMU_V3 in names:
        return SMMU_V3
    if MMU_500 in names:
        return MMU_500
    return SMMU_V2 if names.intersection(_V2_COMPATIBLES) else OTHER


def _is_iommu(node: Node) -> bool:
    if node.is_compatible(PMCG):
        return False
    return "#iommu-cells" in node.props or _kind(node.strings("compatible") or ()) != OTHER
