# SPDX-License-Identifier: BSD-2-Clause
"""What the parts of a report on one board have in common, each looked up once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dt_tools.interrupts import Interrupts
from dt_tools.report.references import References
from dt_tools.report.resources import interrupts_by_node
from dt_tools.report.streams import repeated, shared
from dt_tools.tree import bus_cells, join_cells
from dt_tools.work import Work

if TYPE_CHECKING:
    from dt_tools.platform import Interrupt, Platform
    from dt_tools.report.references import Need
    from dt_tools.report.streams import Repeated, Shared
    from dt_tools.tree import Node

# So many devices are followed from page to page.
MAX_CLOSURE = 64
# Steps that page neighbours may take before fewer are looked for, and before none are. The
# platform's own limit, which is an error, lies behind both.
_ENOUGH_STEPS, _MOST_STEPS = 120_000, 300_000
_FEW_NEIGHBOURS = 4


class Facts:
    """Lookups over a platform.

    Every attribute raises DtbError when the tree asks for more work than the platform's limit.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._neighbours: dict[Node, tuple[str, ...]] = {}
        self._page_steps = 0
        self._unsearched: set[Node] = set()
        self._moved: dict[Node, bool] = {}
        self._needs: dict[Node, tuple[Need, ...]] = {}

    @cached_property
    def interrupts(self) -> dict[Node, tuple[Interrupt, ...]]:
        """The interrupts of every node that has some."""
        return interrupts_by_node(self.platform)

    @cached_property
    def routed(self) -> dict[Node, tuple[Interrupt, ...]]:
        """Where the interrupt-map of every node that has one leads."""
        tree = self.platform.tree
        reader = Interrupts(tree.phandles(), self.platform.gic, Work(self.platform.source))
        return {
            node: found
            for node in tree.walk()
            if "interrupt-map" in node.props and (found := reader.routed(node))
        }

    @cached_property
    def spi_owners(self) -> dict[int, tuple[str, ...]]:
        """The paths of the nodes that have each SPI, by GIC id."""
        owners: dict[int, dict[str, None]] = {}
        for node, interrupts in self.interrupts.items():
            path = node.path
            for interrupt in interrupts:
                if interrupt.kind == "SPI":
                    owners.setdefault(interrupt.number, {}).setdefault(path)
        return {number: tuple(paths) for number, paths in owners.items()}

    @cached_property
    def repeated(self) -> tuple[Repeated, ...]:
        """StreamIDs on several SMMUs."""
        return repeated(self.platform)

    @cached_property
    def shared(self) -> tuple[Shared, ...]:
        """StreamIDs under several masters of one SMMU."""
        return shared(self.platform)

    @cached_property
    def references(self) -> References:
        """Which nodes name which."""
        return References(self.platform, self._controllers)

    def _controllers(self, node: Node) -> list[Node]:
        gic = None if self.platform.gic is None else self.platform.gic.path
        all_of = (*self.interrupts.get(node, ()), *self.routed.get(node, ()))
        paths = {i.controller_path for i in all_of} - {gic, None}
        found = (self.platform.tree.node(path) for path in sorted(filter(None, paths)))
        return [controller for controller in found if controller is not None]

    def neighbours(self, node: Node) -> tuple[str, ...]:
        """Devices with registers in the node's pages; fewer of them late in a hostile tree."""
        if node not in self._neighbours:
            self._neighbours[node] = self._look(node)
        return self._neighbours[node]

    def _look(self, node: Node) -> tuple[str, ...]:
        if not self._page_steps:
            # Everything else that takes of the platform's budget comes first.
            _ = self.interrupts
        if self._page_steps > _MOST_STEPS:
            self._unsearched.add(node)
            return ()
        found = self.platform.page_neighbours(node, *([_FEW_NEIGHBOURS] if self.pages_cut else []))
        # What one search takes: a way down the tree of registers, and one for what is found.
        self._page_steps += 32 + 3 * len(found)
        return found

    @property
    def pages_cut(self) -> bool:
        """Whether page neighbours are not all known because there are too many."""
        return self._page_steps > _ENOUGH_STEPS

    def unsearched(self, node: Node) -> bool:
        """Whether `neighbours` of the node were not looked for at all."""
        return node in self._unsearched

    def page_closure(self, node: Node) -> tuple[str, ...]:
        """Sorted paths of what shares a page with the device, or with one that does, and so on.

        At most `MAX_CLOSURE` and the neighbours of the last one; the direct ones only when there
        are too many on the board.
        """
        found = dict.fromkeys(self.neighbours(node))
        todo = [] if self.pages_cut else list(found)
        while todo and len(found) < MAX_CLOSURE:
            other = self.platform.tree.node(todo.pop())
            for path in self.neighbours(other) if other is not None else ():
                if path not in found and path != node.path:
                    found[path] = None
                    todo.append(path)
        return tuple(sorted(found))

    def moves_dma(self, bus: Node) -> bool:
        """Whether `dma-ranges` gives addresses on the bus that are not those above it."""
        if bus not in self._moved:
            self._moved[bus] = _moves_dma(bus)
        return self._moved[bus]

    def needs(self, node: Node) -> tuple[Need, ...]:
        """What the device at `node` depends on."""
        if node not in self._needs:
            self._needs[node] = self.references.needs(node)
        return self._needs[node]


def _moves_dma(bus: Node) -> bool:
    cells = bus.cells("dma-ranges")
    own = bus_cells(bus)
    above = None if bus.parent is None else bus_cells(bus.parent)
    width = own[0] + above[0] + own[1] if own and above else 0
    if not cells or not width or own is None or above is None:
        return bool(bus.props.get("dma-ranges"))
    rows = (cells[at : at + width] for at in range(0, len(cells), width))
    return any(join_cells(r[: own[0]]) != join_cells(r[own[0] : own[0] + above[0]]) for r in rows)
