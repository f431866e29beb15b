# SPDX-License-Identifier: BSD-2-Clause
"""Device-tree syntax: nodes, properties as raw bytes, phandles, cells, paths.

Nothing here knows what a property means; that is `dt_tools.platform`'s work. A `Tree` shares no
state with any other tree, so two guests built in one process cannot leak into each other.
Cells are big-endian 32-bit words (Devicetree Specification v0.4 §2.2.4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice

Cells = tuple[int, ...]


class Node:
    """One node. `props` and `children` keep the order of the blob; names are unique in each."""

    __slots__ = ("children", "name", "parent", "props")

    def __init__(self, name: str, parent: Node | None = None) -> None:
        self.name = name
        self.parent = parent
        self.props: dict[str, bytes] = {}
        self.children: dict[str, Node] = {}

    def __repr__(self) -> str:
        return f"<Node {self.path}>"

    @property
    def path(self) -> str:
        """Full path from the root, `/` for the root itself."""
        parts: list[str] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return "/" + "/".join(reversed(parts))

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in blob order, without recursion."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))

    def ancestors(self) -> Iterator[Node]:
        """The parent, its parent, and so on up to the root."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def add(self, name: str) -> Node:
        """Append a child node.

        Raises:
            ValueError: a child of that name exists.
        """
        if name in self.children:
            raise ValueError(f"{self.path} already has a child {name}")
        child = Node(name, self)
        self.children[name] = child
        return child

    def remove(self, name: str) -> None:
        """Drop the child `name` and all below it."""
        self.children.pop(name).parent = None

    def copy_from(self, other: Node) -> None:
        """Copy `other`'s properties and everything below it into this node, which must be empty."""
        stack = [(other, self)]
        while stack:
            source, target = stack.pop()
            target.props.update(source.props)
            for name, child in source.children.items():
                stack.append((child, target.add(name)))

    # Typed reads. Each returns None (or the default) when absent or of another shape, because a
    # host tree is untrusted text: whoever needs the value says so with its path.

    def cells(self, prop: str) -> Cells | None:
        """The property as big-endian 32-bit cells; None when absent or not a whole number."""
        raw = self.props.get(prop)
        if raw is None or len(raw) % 4:
            return None
        return struct.unpack(f">{len(raw) // 4}I", raw)

    def u32(self, prop: str) -> int | None:
        """The property as one cell; None when absent or of another length."""
        cells = self.cells(prop)
        return cells[0] if cells is not None and len(cells) == 1 else None

    def strings(self, prop: str) -> tuple[str, ...] | None:
        """The property as NUL-terminated strings; None when absent or not terminated."""
        raw = self.props.get(prop)
        if not raw or raw[-1]:
            return None
        return tuple(part.decode("latin-1") for part in raw[:-1].split(b"\0"))

    def string(self, prop: str) -> str | None:
        """The property's first string; None when absent or not a string."""
        strings = self.strings(prop)
        return strings[0] if strings else None

    # Typed writes.

    def set_cells(self, prop: str, *cells: int) -> None:
        """Store 32-bit cells. Raises ValueError when one does not fit."""
        for cell in cells:
            if not 0 <= cell <= 0xFFFFFFFF:
                raise ValueError(f"{self.path}: {prop}: {cell:#x} does not fit a cell")
        self.props[prop] = struct.pack(f">{len(cells)}I", *cells)

    def set_strings(self, prop: str, *strings: str) -> None:
        """Store NUL-terminated strings."""
        self.props[prop] = b"".join(s.encode("latin-1") + b"\0" for s in strings)

    def set_empty(self, prop: str) -> None:
        """Store a property without a value (a boolean)."""
        self.props[prop] = b""

    @property
    def phandle(self) -> int | None:
        """`phandle`, or the old `linux,phandle`."""
        value = self.u32("phandle")
        return self.u32("linux,phandle") if value is None else value

    @property
    def status(self) -> str:
        """`status`, with the specification's default `okay`; `ok` counts as `okay`."""
        value = self.string("status") or "okay"
        return "okay" if value == "ok" else value

    def is_compatible(self, name: str) -> bool:
        """Whether `name` is one of the strings of `compatible`, whole."""
        return name in (self.strings("compatible") or ())


def status_of(node: Node) -> str:
    """The effective status: the node's own unless `okay`, else the nearest one above that is not.

    Nothing below a bus that is not okay is probed, so its children are not either.
    """
    for one in (node, *node.ancestors()):
        if one.status != "okay":
            return one.status
    return "okay"


class Tree:
    """A device tree: root, memory reservations as (address, size), boot CPU id."""

    def __init__(self, root: Node | None = None) -> None:
        self.root = root if root is not None else Node("")
        self.memreserve: list[tuple[int, int]] = []
        self.boot_cpuid = 0

    def walk(self) -> Iterator[Node]:
        """Every node in blob order."""
        return self.root.walk()

    def node(self, path: str) -> Node | None:
        """The node at an absolute path, None when there is none; unit addresses are required."""
        if not path.startswith("/"):
            return None
        node: Node | None = self.root
        for part in path.split("/"):
            if part and node is not None:
                node = node.children.get(part)
        return node

    def phandles(self) -> dict[int, Node]:
        """Phandle to node; of several nodes with one phandle, the first."""
        index: dict[int, Node] = {}
        for node in self.walk():
            value = node.phandle
            if value is not None:
                index.setdefault(value, node)
        return index

    def copy(self) -> Tree:
        """A tree that shares nothing with this one."""
        other = Tree()
        other.root.copy_from(self.root)
        other.memreserve = list(self.memreserve)
        other.boot_cpuid = self.boot_cpuid
        return other


def join_cells(cells: Iterable[int]) -> int:
    """Cells as one number, the first the most significant."""
    value = 0
    for cell in cells:
        value = value << 32 | cell
    return value


def split_cells(value: int, count: int) -> Cells:
    """A number as `count` cells. Raises ValueError when it does not fit."""
    if value < 0 or value >> (32 * count):
        raise ValueError(f"{value:#x} does not fit {count} cells")
    return tuple(value >> (32 * i) & 0xFFFFFFFF for i in reversed(range(count)))


# Addresses (Devicetree Specification v0.4 §2.3.5, §2.3.6, §2.3.8). No binding uses more cells
# than this for one address or size; a larger number is a malformed tree.
MAX_ADDRESS_CELLS = 8

Range = tuple[int, int, int]


def bus_cells(bus: Node) -> tuple[int, int] | None:
    """`#address-cells` and `#size-cells` for the children of `bus`; None when out of bounds.

    The specification's defaults 2 and 1 stand in for an absent property; they are not inherited.
    """
    counts = []
    for prop, default in (("#address-cells", 2), ("#size-cells", 1)):
        value = bus.u32(prop) if prop in bus.props else default
        if value is None or value > MAX_ADDRESS_CELLS:
            return None
        counts.append(value)
    return counts[0], counts[1]


def reg_entries(node: Node) -> tuple[tuple[int, int], ...] | None:
    """`reg` as (bus address, size) in the parent's cells.

    Empty without `reg`; None when its length does not fit the parent's cells. Without size cells
    the sizes are 0.
    """
    if "reg" not in node.props:
        return ()
    cells = node.cells("reg")
    counts = None if node.parent is None else bus_cells(node.parent)
    if cells is None or counts is None or not sum(counts) or len(cells) % sum(counts):
        return None
    at, width = counts[0], sum(counts)
    return tuple(
        (join_cells(cells[i : i + at]), join_cells(cells[i + at : i + width]))
        for i in range(0, len(cells), width)
    )


def range_entries(bus: Node) -> tuple[Range, ...] | None:
    """Rows (address on the bus, address on its parent, size) of `ranges`.

    Empty when the property is there without a value, that is when addresses are the same on both
    sides; None when it is absent (nothing behind the bus is addressable) or malformed.
    """
    cells = bus.cells("ranges")
    own = bus_cells(bus)
    above = None if bus.parent is None else bus_cells(bus.parent)
    if cells is None or own is None or above is None:
        return None
    first, second, width = own[0], own[0] + above[0], own[0] + above[0] + own[1]
    if not width or len(cells) % width:
        return () if not cells else None
    rows = (cells[i : i + width] for i in range(0, len(cells), width))
    return tuple(
        (join_cells(r[:first]), join_cells(r[first:second]), join_cells(r[second:])) for r in rows
    )


# The largest count of cells that is read; a larger one is a malformed tree.
MAX_CELLS = 16


def cell_count(node: Node, prop: str) -> int | None:
    """The `#...-cells` property `prop`; None when absent, malformed or out of bounds."""
    count = node.u32(prop)
    return count if count is not None and count <= MAX_CELLS else None


# A hint is worth a bounded search: so many nodes, and so much of each path.
_HINT_NODES = 500
_HINT_LENGTH = 160


def nearest_path(tree: Tree, path: str) -> str | None:
    """The existing path most like one that does not exist, with a count of others as alike.

    First the same path apart from unit addresses, then the same last name on another bus, then
    likeness of spelling. The search is bounded: it looks at a part of a large tree only.
    """
    want = "/" + path[: 2 * _HINT_LENGTH].strip("/")
    bare = _without_units(want)
    alike = [node.path for node in tree.walk() if _bare_name(node) == bare.rpartition("/")[2]]
    exact = [found for found in alike if found == want or _without_units(found) == bare]
    names = [found for found in alike if found.rpartition("/")[2] == want.rpartition("/")[2]]
    best = exact or names or _by_spelling(tree, want)
    if not best:
        return None
    more = f" (or {len(best) - 1} more alike)" if len(best) > 1 else ""
    ranked = _closest(want, best[:_HINT_NODES]) or best[0]
    return f"{ranked}{more}"


def _by_spelling(tree: Tree, want: str) -> list[str]:
    """The path most like `want`, looked for beside the point where `want` leaves the tree."""
    node = tree.root
    for part in want.split("/"):
        node = node.children.get(part, node) if part else node
    near = islice(node.walk(), _HINT_NODES // 2)
    paths = dict.fromkeys(n.path for n in (*near, *islice(tree.walk(), _HINT_NODES // 2)))
    closest = _closest(want, (path for path in paths if _is_near(want, path)))
    return [closest] if closest else []


def _is_near(want: str, path: str) -> bool:
    """Whether the last names are alike, or one bus has both at one unit address.

    Long paths on one bus are alike as a whole, whatever stands last.
    """
    (bus, _, name), (other_bus, _, other) = want.rpartition("/"), path.rpartition("/")
    first, second = name.partition("@"), other.partition("@")
    if first[2] and (bus, first[2]) == (other_bus, second[2]):
        return True
    if not first[0] or not second[0]:
        return first[0] == second[0]
    return _closest(first[0], (second[0],)) is not None


def _closest(want: str, paths: Iterable[str]) -> str | None:
    """The likeliest spelling, the first of several as likely; None when nothing is like it."""
    from difflib import SequenceMatcher

    matcher = SequenceMatcher(b=want[:_HINT_LENGTH])
    best, score = None, 0.6
    for path in paths:
        matcher.set_seq1(path[:_HINT_LENGTH])
        if min(matcher.real_quick_ratio(), matcher.quick_ratio()) > score:
            ratio = matcher.ratio()
            if ratio > score:
                best, score = path, ratio
    return best


def _bare_name(node: Node) -> str:
    return node.name.partition("@")[0]


def _without_units(path: str) -> str:
    return "/".join(part.partition("@")[0] for part in path.split("/"))
