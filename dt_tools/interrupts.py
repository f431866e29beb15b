# SPDX-License-Identifier: BSD-2-Clause
"""Interrupt resolution: from a node's specifiers to the GIC, through parents and interrupt-maps.

What cannot be resolved is an `Interrupt` with a reason, never an error; the one error is the
budget's. The rules are those of the Devicetree Specification v0.4 §2.4.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal

from dt_tools.tree import Cells, Node, Tree, cell_count, status_of
from xl_configs.frozen import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.work import Work

_GIC_V2 = (
    "arm,gic-400",
    "arm,cortex-a15-gic",
    "arm,cortex-a9-gic",
    "arm,cortex-a7-gic",
    "arm,eb11mp-gic",
    "arm,pl390",
    "arm,tc11mp-gic",
    "qcom,msm-qgic2",
    "nvidia,tegra210-agic",
)
_GIC_V3 = ("arm,gic-v3",)
_MAX_HOPS = 64
# Rows of one interrupt-map that are listed.
_MAX_ROWS = 512


@frozen
class Interrupt:
    """One interrupt of a node.

    `SPI` and `PPI` are the GIC's and have `number`, the GIC id (the first SPI is 32, the first
    PPI 16), and `flags`, the trigger cell. `MSI` goes through a controller that turns it into a
    message; `not-gic` is any other controller's, or cannot be resolved. Both have number 0 and
    a `reason`. `specifier` holds the cells as the last controller sees them.
    """

    kind: Literal["SPI", "PPI", "MSI", "not-gic"]
    number: int
    flags: int
    controller_path: str | None
    reason: str | None = None
    specifier: Cells = ()


@frozen
class Gic:
    """The root interrupt controller; `version` is 2 or 3."""

    path: str
    version: int
    node: Node = field(repr=False, compare=False)


class Interrupts:
    """From a node's specifiers to the controller that takes them (specification v0.4 §2.4)."""

    def __init__(self, phandles: dict[int, Node], gic: Gic | None, work: Work) -> None:
        self.phandles = phandles
        self.gic = gic
        self.work = work
        self.maps: dict[Node, Cells] = {}

    def of(self, node: Node) -> tuple[Interrupt, ...]:
        """The node's interrupts in order, `interrupts-extended` before `interrupts`."""
        if "interrupts-extended" in node.props:
            return tuple(self._extended(node))
        if "interrupts" in node.props:
            return tuple(self._plain(node))
        return ()

    def _extended(self, node: Node) -> Iterator[Interrupt]:
        cells = node.cells("interrupts-extended")
        if cells is None:
            yield _unresolved(None, "interrupts-extended is not a whole number of cells")
            return
        at = 0
        while at < len(cells):
            controller = self.phandles.get(cells[at])
            count = None if controller is None else cell_count(controller, "#interrupt-cells")
            if controller is None or count is None or at + 1 + count > len(cells):
                yield _unresolved(controller, _extended_reason(cells, at, controller, count))
                return
            yield self._resolve(node, controller, cells[at + 1 : at + 1 + count])
            at += 1 + count

    def _plain(self, node: Node) -> Iterator[Interrupt]:
        cells = node.cells("interrupts")
        controller = self._parent(node)
        if controller is None:
            yield _unresolved(None, "no interrupt parent")
            return
        count = cell_count(controller, "#interrupt-cells")
        if cells is None or not count or len(cells) % count:
            size = len(node.props["interrupts"])
            reason = f"interrupts has {size} bytes, not specifiers of {count} cells"
            yield _unresolved(controller, reason)
            return
        for at in range(0, len(cells), count):
            yield self._resolve(node, controller, cells[at : at + count])

    def _parent(self, start: Node) -> Node | None:
        """The nearest interrupt-parent, or the nearest node above that is a controller."""
        node: Node | None = start
        for _ in range(_MAX_HOPS):
            if node is None:
                return None
            phandle = node.u32("interrupt-parent")
            node = node.parent if phandle is None else self.phandles.get(phandle)
            if node is not None and "#interrupt-cells" in node.props:
                return node
        return None

    def _resolve(self, node: Node, controller: Node, spec: Cells) -> Interrupt:
        """Follow interrupt-maps from `controller` to the one that has none."""
        return self._follow(controller, node.cells("reg") or (), spec)

    def _follow(self, controller: Node, address: Cells, spec: Cells) -> Interrupt:
        for _ in range(_MAX_HOPS):
            # Controllers that have both use the map for themselves, in ways of their own.
            if "interrupt-map" not in controller.props or _is_controller(controller):
                return self._classify(controller, spec)
            step = self._map(controller, address, spec)
            if step is None:
                return _unresolved(controller, "interrupt-map has no row for it", spec)
            controller, address, spec = step
        return _unresolved(controller, "interrupt-maps in a circle", spec)

    def _map(self, nexus: Node, address: Cells, spec: Cells) -> tuple[Node, Cells, Cells] | None:
        width = _nexus_address_cells(nexus)
        if width is None:
            return None
        key = (address + (0,) * width)[:width] + spec
        mask = nexus.cells("interrupt-map-mask") or (0xFFFFFFFF,) * len(key)
        if len(mask) != len(key):
            return None
        for unit, parent, above, there in self._rows(nexus, len(key)):
            row = zip(key, unit, mask, strict=True)
            if all((have ^ want) & bits == 0 for have, want, bits in row):
                return parent, above, there
        return None

    def _rows(self, nexus: Node, size: int) -> Iterator[tuple[Cells, Node, Cells, Cells]]:
        """(unit, parent, parent's unit address, parent's specifier) up to a row with a flaw.

        `size` is the number of cells of a unit.
        """
        if nexus not in self.maps:
            self.maps[nexus] = nexus.cells("interrupt-map") or ()
        cells = self.maps[nexus]
        at = 0
        while at + size < len(cells):
            self.work.spend(size, nexus)
            parent = self.phandles.get(cells[at + size])
            sizes = None if parent is None else _row_sizes(parent)
            if parent is None or sizes is None:
                return
            end = at + size + 1 + sum(sizes)
            if end > len(cells):
                return
            middle = end - sizes[1]
            yield (
                cells[at : at + size],
                parent,
                cells[middle - sizes[0] : middle],
                cells[middle:end],
            )
            at = end

    def routed(self, nexus: Node) -> tuple[Interrupt, ...]:
        """Where the first 512 rows of the node's `interrupt-map` lead, each interrupt once.

        Raises:
            DtbError: the tree asks for more work than its limit.
        """
        width = _nexus_address_cells(nexus)
        count = cell_count(nexus, "#interrupt-cells")
        if "interrupt-map" not in nexus.props or width is None or count is None:
            return ()
        rows = islice(self._rows(nexus, width + count), _MAX_ROWS)
        return tuple(dict.fromkeys(self._follow(*row[1:]) for row in rows))

    def _classify(self, controller: Node, spec: Cells) -> Interrupt:
        if self.gic is not None and controller is self.gic.node:
            return _gic_interrupt(self.gic, spec)
        if "msi-parent" in controller.props:
            reason = "its controller turns it into a message (msi-parent)"
            return Interrupt("MSI", 0, 0, controller.path, reason, spec)
        what = controller.string("compatible") or "no compatible"
        return _unresolved(controller, f"its controller ({what}) is not the GIC", spec)


def _unresolved(controller: Node | None, reason: str, spec: Cells = ()) -> Interrupt:
    path = None if controller is None else controller.path
    return Interrupt("not-gic", 0, 0, path, reason, spec)


def _extended_reason(cells: Cells, at: int, controller: Node | None, count: int | None) -> str:
    if controller is None:
        return f"interrupts-extended names <{cells[at]:#x}>, which is no node's phandle"
    if count is None:
        return f"interrupts-extended names {controller.path}, which has no #interrupt-cells"
    return f"interrupts-extended ends in {len(cells) - at - 1} cells, {count} needed"


def _is_controller(node: Node) -> bool:
    return "interrupt-controller" in node.props


def _nexus_address_cells(nexus: Node) -> int | None:
    """`#address-cells` of the nexus or of the nearest node above that has one, as Linux reads."""
    for node in (nexus, *nexus.ancestors()):
        if "#address-cells" in node.props:
            return cell_count(node, "#address-cells")
    return 2


def _row_sizes(parent: Node) -> tuple[int, int] | None:
    """Cells of (address, specifier) that an interrupt-map row has for `parent`."""
    address = 0
    if "#address-cells" in parent.props:
        address = cell_count(parent, "#address-cells") or 0
    count = cell_count(parent, "#interrupt-cells")
    return None if count is None else (address, count)


def _gic_interrupt(gic: Gic, spec: Cells) -> Interrupt:
    """A GIC specifier: type, number, trigger flags, and on GICv3 perhaps more cells."""
    if len(spec) < 3:
        reason = f"the GIC's specifiers have 3 cells or more, not {len(spec)}"
        return Interrupt("not-gic", 0, 0, gic.path, reason, spec)
    kind, number, flags = spec[:3]
    if kind == 0 and number < 988:
        return Interrupt("SPI", number + 32, flags, gic.path, None, spec)
    if kind == 1 and number < 16:
        return Interrupt("PPI", number + 16, flags, gic.path, None, spec)
    names = {0: "SPI", 1: "PPI", 2: "extended SPI", 3: "extended PPI"}
    reason = f"{names.get(kind, f'type {kind}')} {number} has no GIC id below 1020"
    return Interrupt("not-gic", 0, 0, gic.path, reason, spec)


def find_gic(tree: Tree, phandles: dict[int, Node]) -> Gic | None:
    """The GIC that the root's interrupt-parent names, else the first enabled one."""
    gics = {node: gic for node in tree.walk() if (gic := _as_gic(node)) is not None}
    root = phandles.get(tree.root.u32("interrupt-parent") or 0)
    if root in gics:
        return gics[root]
    return next((gic for node, gic in gics.items() if status_of(node) == "okay"), None)


def _as_gic(node: Node) -> Gic | None:
    names = node.strings("compatible") or ()
    for version, known in ((3, _GIC_V3), (2, _GIC_V2)):
        if any(name in known for name in names):
            return Gic(node.path, version, node)
    return None
