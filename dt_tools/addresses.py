# SPDX-License-Identifier: BSD-2-Clause
"""Register addresses: `reg` through every `ranges` to the CPU, and who shares the 4 KiB pages.

What does not translate is None, never an error; the one error is the budget's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.tree import Node, Tree, bus_cells, range_entries, reg_entries
from xl_configs.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.work import Work

PAGE = 4096


@frozen
class Reg:
    """A register range as the CPU sees it, in bytes."""

    cpu_base: int
    size: int


class Addresses:
    """Registers at CPU addresses, and who else has some in the same 4 KiB pages."""

    def __init__(self, tree: Tree, work: Work) -> None:
        self.tree = tree
        self.work = work
        self.ranges: dict[Node, tuple[tuple[int, int, int], ...] | None] = {}
        self.regs: dict[Node, tuple[Reg, ...] | None] = {}
        self.spans: list[tuple[int, int, Node]] | None = None
        self.highest: list[int] = []

    def reg(self, node: Node) -> tuple[Reg, ...] | None:
        """The node's registers, empty without `reg`, None when one does not translate."""
        if node not in self.regs:
            self.regs[node] = self._reg(node)
        return self.regs[node]

    def _reg(self, node: Node) -> tuple[Reg, ...] | None:
        entries = reg_entries(node)
        bus = node.parent
        if entries is None or not entries or bus is None:
            return None if entries is None else ()
        if not (bus_cells(bus) or (0, 0))[1]:
            return None  # without sizes it is a chip select or a CPU number, not memory
        found = []
        for base, size in entries:
            cpu_base = self._translate(bus, base, size)
            if cpu_base is None:
                return None
            found.append(Reg(cpu_base, size))
        return tuple(found)

    def _translate(self, bus: Node, base: int, size: int) -> int | None:
        while bus.parent is not None:
            if bus not in self.ranges:
                self.ranges[bus] = range_entries(bus)
            rows = self.ranges[bus]
            if rows is None:
                return None
            self.work.spend(len(rows) + 1, bus)
            for child, parent, length in rows:
                if child <= base and base + size <= child + length:
                    base += parent - child
                    break
            else:
                if rows:
                    return None
            bus = bus.parent
        return base if base + size <= 1 << 64 else None

    def neighbours(self, node: Node, limit: int) -> tuple[str, ...]:
        """Full paths, sorted, of at most `limit` other nodes with registers in the same pages."""
        if self.spans is None:
            self._index()
        found: dict[str, None] = {}
        for reg in self.reg(node) or ():
            first, last = _pages(reg)
            for other in self._overlapping(first, last):
                if not _goes_along(node, other):
                    found.setdefault(other.path)
                if len(found) == limit:
                    return tuple(found)
        return tuple(sorted(found))

    def _index(self) -> None:
        """All register pages, ordered by first page; over them a tree of the highest last page."""
        spans = [
            (*_pages(reg), node)
            for node in self.tree.walk()
            if "reg" in node.props and not _is_memory(node)
            for reg in self.reg(node) or ()
        ]
        spans.sort(key=lambda span: span[:2])
        leaves = 1 << max(len(spans) - 1, 0).bit_length()
        highest = [-1] * leaves + [last for _, last, _ in spans] + [-1] * (leaves - len(spans))
        for i in range(leaves - 1, 0, -1):
            highest[i] = max(highest[2 * i], highest[2 * i + 1])
        self.spans, self.highest = spans, highest

    def _overlapping(self, first: int, last: int) -> Iterator[Node]:
        spans = self.spans or []
        leaves = len(self.highest) // 2
        stack = [(1, 0, leaves)]
        while stack:
            at, low, high = stack.pop()
            if self.highest[at] < first or low >= len(spans) or spans[low][0] > last:
                continue
            self.work.spend(1, spans[low][2])
            if high - low == 1:
                yield spans[low][2]
                continue
            middle = (low + high) // 2
            stack += [(2 * at + 1, middle, high), (2 * at, low, middle)]


def _pages(reg: Reg) -> tuple[int, int]:
    return reg.cpu_base // PAGE, (reg.cpu_base + max(reg.size, 1) - 1) // PAGE


def _is_memory(node: Node) -> bool:
    top = node
    for parent in node.ancestors():
        if parent.parent is not None:
            top = parent
    return top.name == "reserved-memory" or node.string("device_type") == "memory"


def _goes_along(node: Node, other: Node) -> bool:
    """Whether `other` is the node itself, a part of it, or only the bus it sits on."""
    if other is node or any(parent is node for parent in other.ancestors()):
        return True
    bus = other.is_compatible("simple-bus") or other.is_compatible("simple-pm-bus")
    return bus and any(parent is other for parent in node.ancestors())
