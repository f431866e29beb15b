# SPDX-License-Identifier: BSD-2-Clause
"""Device-tree syntax: nodes, properties as raw bytes, phandles, cells, paths.

Nothing here knows what a property means; that is `dt_tools.platform`'s work. A `Tree` shares no
state with any other tree, so two guests built in one process cannot leak into each other.
Cells are big-endian 32-bit words (Devicetree Specification v0.4 §2.2.4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

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
        """phandle -> node; of several nodes with one phandle, the first."""
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
