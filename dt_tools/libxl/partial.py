# SPDX-License-Identifier: BSD-2-Clause
"""What libxl sees of a partial tree: /passthrough and /aliases, and nothing else of it.

libfdt reads a blob as far as it is asked for. It takes versions from 16 on, does not mind a missing
end, and finds a node by the first name that fits. This reader takes the same blobs and finds the
same nodes; what makes libxl fail, crash, or write a tree that is none is refused by rule DT550.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from dt_tools.errors import Refusal
from dt_tools.scan import HEADER, MAGIC, NODE_NAME, PROP_NAME
from dt_tools.tree import Node, Tree

_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_MOST_BYTES = 2 << 20
_COPIED = ("passthrough", "aliases")
_MOST_DEPTH = 1024
# libxl begins with a buffer of 4 KiB; a name that does not fit it is written before its start.
_LONGEST_NAME = 3000


@dataclass(slots=True)
class _Raw:
    """A node as the blob has it: names may repeat."""

    name: str
    props: list[tuple[str, bytes]] = field(default_factory=list)
    children: list[_Raw] = field(default_factory=list)


def read_partial(data: bytes, *, changed: bool = False) -> Tree:
    """A tree with the /passthrough and the /aliases that libxl would copy.

    `changed`: libxl writes `iommus` into the blob first, and libfdt writes into fewer blobs than
    it reads.

    Raises:
        Refusal: DT211, no /passthrough that it finds; DT550, a blob that it refuses, crashes on, or
            makes a broken tree of.
    """
    reader = _Reader(data)
    tree, root = Tree(), reader.root()
    buses = [node for node in root.children if node.name == "passthrough"][:1]
    devices = [child for bus in buses for child in bus.children]
    if changed and any(name == "iommus" for child in devices for name, _ in child.props):
        reader.check_writable()
    for name in _COPIED:
        found = next((n for n in root.children if n.name.partition("@")[0] == name), None)
        if found is not None and found.name == name:
            _copy(found, tree.root.add(name))
        elif name == "passthrough":
            what = "is missing" if found is None else f"comes after /{found.name}"
            fix = "have one /passthrough without a unit address"
            raise Refusal("DT211", "/passthrough", f"{what} in the partial tree", fix)
    return tree


def _copy(source: _Raw, target: Node) -> None:
    """The same as a `Node`, which has each name once."""
    stack = [(source, target)]
    while stack:
        raw, node = stack.pop()
        for name, value in raw.props:
            if name in node.props:
                raise _broken(node.path, f"property {name} stands there twice")
            node.props[name] = value
        for child in raw.children:
            if child.name in node.children:
                raise _broken(node.path, f"two children are named {child.name}")
            stack.append((child, node.add(child.name)))


def _broken(path: str, reason: str) -> Refusal:
    return Refusal("DT550", path, f"partial tree: {reason}", "compile it with dtc again")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        if len(data) < HEADER.size:
            raise _broken("/", f"{len(data)} bytes are no blob (40 header bytes)")
        header: tuple[int, ...] = HEADER.unpack_from(data)
        magic, total, struct_at, strings_at, reserve_at, version, last_comp = header[:7]
        if magic != MAGIC:
            raise _broken("/", f"magic {magic:#010x} is not {MAGIC:#010x}")
        if version < 16 or last_comp > 17 or last_comp > version:
            raise _broken("/", f"version {version}, last compatible {last_comp}: not 16 or 17")
        if total > len(data) or total > _MOST_BYTES:
            raise _broken("/", f"totalsize {total}, there are {min(len(data), _MOST_BYTES)} bytes")
        # Version 16 does not say how long its structure block is.
        struct_size = header[9] if version >= 17 else max(total - struct_at, 0)
        blocks = (
            ("memory reservations", reserve_at, 0, 8),
            ("structure block", struct_at, struct_size, 4),
            ("strings block", strings_at, header[8], 1),
        )
        for what, start, size, _ in blocks:
            if start < HEADER.size - 4 * (version < 17) or start + size > total:
                raise _broken("/", f"{what} [{start:#x}, {start + size:#x}) is not inside it")
        if struct_at % 4:
            raise _broken("/", f"structure block at {struct_at:#x} is not 4-byte aligned")
        self.at, self.end = struct_at, struct_at + struct_size
        self.strings = data[strings_at : strings_at + header[8]]
        self.names: dict[int, str] = {}

    def check_writable(self) -> None:
        """Version 17, and the blocks in libfdt's order."""
        header: tuple[int, ...] = HEADER.unpack_from(self.data)
        struct_at, strings_at, reserve_at, version = header[2:6]
        if version < 17:
            raise _broken("/", f"version {version}, and libxl changes version 17 only")
        # At least the entry that ends the memory reservations stands before the structure block.
        first = reserve_at >= HEADER.size and struct_at >= reserve_at + 16
        if not first or strings_at < struct_at + header[9]:
            raise _broken("/", "its blocks are not in the order in which libxl can change it")

    def root(self) -> _Raw:
        """The whole tree. An end that is missing closes every node that is open."""
        top = _Raw("")
        stack = [top]
        while (tag := self._tag()) != _END:
            if tag == _NOP and not top.children:
                raise _broken("/", "a FDT_NOP stands before its root node")
            # Nothing else is copied, and libxl does not look at the names in it.
            copied = len(stack) > 2 and stack[2].name in _COPIED
            if tag == _BEGIN_NODE:
                child = _Raw(self._node_name(copied))
                stack[-1].children.append(child)
                stack.append(child)
                if copied and len(stack) > _MOST_DEPTH:
                    raise _broken("/", f"nodes nested deeper than {_MOST_DEPTH}")
            elif tag == _END_NODE and len(stack) > 1:
                stack.pop()
                if len(stack) == 1:
                    break
            elif tag == _PROP and len(stack) > 1:
                self._property(stack[-1], copied)
            elif tag != _NOP:
                raise _broken("/", f"tag {tag:#x} at {self.at - 4:#x}")
        if not top.children:
            raise _broken("/", "it has no root node")
        if len(stack) > 2 and not stack[-1].children and stack[2].name in _COPIED:
            # libfdt takes the end for that of a node only behind one of its children.
            raise _broken("/", f"it ends within the properties of {stack[-1].name}")
        return top.children[0]

    def _tag(self) -> int:
        if self.at + 4 > self.end:
            raise _broken("/", "its structure block ends within a node")
        tag = int.from_bytes(self.data[self.at : self.at + 4], "big")
        self.at += 4
        return tag

    def _node_name(self, copied: bool) -> str:
        end = self.data.find(b"\0", self.at, self.end)
        if end < 0:
            raise _broken("/", f"the node name at {self.at:#x} does not end")
        raw, self.at = self.data[self.at : end], (end + 4) & ~3
        if copied and not NODE_NAME.match(raw):
            raise _broken("/", f"node name {raw[:40]!a} is not valid")
        return raw.decode("latin-1")

    def _property(self, node: _Raw, copied: bool) -> None:
        if self.at + 8 > self.end:
            raise _broken("/", "its structure block ends within a property")
        size, offset = struct.unpack_from(">II", self.data, self.at)
        start = self.at + 8
        if start + size > self.end:
            raise _broken("/", f"the property at {self.at - 4:#x} has {size} bytes")
        if copied and node.children:
            raise _broken("/", f"a property of {node.name} stands behind its children")
        if copied:
            node.props.append((self._name(offset), bytes(self.data[start : start + size])))
        self.at = (start + size + 3) & ~3

    def _name(self, offset: int) -> str:
        if offset not in self.names:
            end = self.strings.find(b"\0", offset) if offset < len(self.strings) else -1
            if end < 0 or not PROP_NAME.match(self.strings[offset:end]):
                raise _broken("/", f"the property name at {offset:#x} of the strings is none")
            if end - offset > _LONGEST_NAME:
                raise _broken("/", f"a property name of {end - offset} bytes, on which xl crashes")
            self.names[offset] = self.strings[offset:end].decode("ascii")
        return self.names[offset]
