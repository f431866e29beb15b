# SPDX-License-Identifier: BSD-2-Clause
"""Device-tree blobs: bytes to `Tree` and back (Devicetree Specification v0.4 §5).

The `fdt` package parses and serialises, and this is the one module that imports it. It is never
handed anything unchecked, because it does not check itself:

- `read` first walks the blob with a validator of its own, which bounds the work, rejects what is
  malformed with offset and path, and lays out a fresh blob without FDT_NOP tags. `fdt` builds its
  nodes from that blob. Property values are taken from the validated bytes, not from `fdt`'s
  objects: it guesses a type for each value, and the guess is not always the value.
- `write` checks the tree the same way, hands `fdt` every value as plain bytes, and reads its own
  output back before returning it.

What is promised is equal content (nodes, properties and their order, raw values, memory
reservations, boot CPU), not equal bytes: block order, padding and string sharing may change.
One property name ending cannot be written: `fdt` drops names that end in `_with_references`.
"""

from __future__ import annotations

import re
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dt_tools.errors import DtbError
from dt_tools.tree import Node, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 2 << 20
MAX_DEPTH = 64
MAX_NODES = 65_536
MAX_PROPERTIES = 65_536
MAX_NAME = 255
MAX_PATH = 1_024
MAX_RESERVATIONS = 1_024
# `fdt` compares each new property and node with all its siblings, and searches the whole string
# block for each property it writes. The next three keep a blob of any shape to a few seconds.
MAX_SIBLING_COMPARISONS = 1 << 24
MAX_STRINGS = 128 << 10
MAX_COPIED = 1 << 33

_MAGIC = 0xD00DFEED
_VERSION = 17
_LAST_COMP = 16
_HEADER = struct.Struct(">10I")
_RESERVATION = struct.Struct(">QQ")
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9

_NODE_NAME = re.compile(rb"[0-9A-Za-z,._+@-]+\Z")
_PROP_NAME = re.compile(rb"[0-9A-Za-z,._+*?#@-]+\Z")
_FDT_DROPS = "_with_references"


def read(data: bytes, source: str = "dtb", *, max_bytes: int = MAX_BYTES) -> Tree:
    """Parse a version 17 blob. Bytes after `totalsize` are ignored.

    Args:
        data: the file's content.
        source: its name, for messages.
        max_bytes: refuse a longer `totalsize`.

    Raises:
        DtbError: the blob breaks the format or one of the limits of this module.
    """
    scan = _Scanner(data, source, max_bytes).run()
    try:
        parsed = _fdt().parse_dtb(scan.blob())
        return _to_tree(parsed, scan)
    except Exception as error:  # fdt raises plain Exception, AssertionError, struct.error ...
        raise DtbError(source, f"the fdt package refused the blob: {error}") from error


def write(tree: Tree, source: str = "tree") -> bytes:
    """Serialise a tree as a version 17 blob; `source` names it in messages.

    Raises:
        DtbError: a name, the depth or a size is outside what `read` accepts.
    """
    _check_tree(tree, source)
    fdt = _fdt()
    blob = fdt.FDT(entries=[])  # its own list: the default argument is shared by all instances
    blob.entries.extend({"address": base, "size": size} for base, size in tree.memreserve)
    blob.header.version = _VERSION
    blob.header.last_comp_version = _LAST_COMP
    blob.header.boot_cpuid_phys = tree.boot_cpuid
    blob.root = _from_tree(fdt, tree.root)
    data: bytes = blob.to_dtb()
    assert _same(_Scanner(data, source, MAX_BYTES).run(), tree), "fdt wrote other content"
    return data


def _fdt() -> Any:
    """The fdt package; its source has an invalid escape that warns when first compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fdt
    return fdt


@dataclass(slots=True)
class _Scan:
    """What the validator found: content in blob order, with NOPs gone."""

    reservations: list[tuple[int, int]]
    boot_cpuid: int
    strings: bytes
    structure: bytes
    nodes: list[tuple[int, str, int]]  # depth, name, number of properties
    props: list[tuple[str, bytes]]

    def blob(self) -> bytes:
        """A tight blob with the same content, blocks in the specification's order."""
        reserve = b"".join(_RESERVATION.pack(*entry) for entry in [*self.reservations, (0, 0)])
        start = _HEADER.size + len(reserve)
        strings = start + len(self.structure)
        header = _HEADER.pack(
            *(_MAGIC, strings + len(self.strings), start, strings, _HEADER.size),
            *(_VERSION, _LAST_COMP, self.boot_cpuid, len(self.strings), len(self.structure)),
        )
        return header + reserve + self.structure + self.strings


@dataclass(slots=True)
class _Open:
    """A node whose FDT_END_NODE has not been seen."""

    path: str
    props: set[str]
    children: set[str]
    index: int


class _Scanner:
    """The strict validator: one pass over the blob, no recursion."""

    def __init__(self, data: bytes, source: str, max_bytes: int) -> None:
        self.data = bytes(data)
        self.source = source
        self.max_bytes = max_bytes
        self.stack: list[_Open] = []
        self.nodes: list[tuple[int, str, int]] = []
        self.props: list[tuple[str, bytes]] = []
        self.names: dict[int, str] = {}  # offset in the strings block -> checked name
        self.pieces: list[bytes] = []
        self.comparisons = 0

    def fail(self, reason: str, offset: int | None = None, hint: str | None = None) -> DtbError:
        path = self.stack[-1].path if self.stack else None
        return DtbError(self.source, reason, offset=offset, path=path, hint=hint)

    def run(self) -> _Scan:
        """Check everything. Raises DtbError at the first defect."""
        self._header()
        reservations = self._reservations()
        self._structure()
        strings = self.data[self.strings : self.strings_end]
        return _Scan(
            reservations, self.cpuid, strings, b"".join(self.pieces), self.nodes, self.props
        )

    def _header(self) -> None:
        if len(self.data) < _HEADER.size:
            hint = "is this a device-tree blob?"
            raise self.fail(f"{len(self.data)} bytes are no blob (40 header bytes)", 0, hint)
        header: tuple[int, ...] = _HEADER.unpack_from(self.data)
        magic, total, struct_at, strings_at, reserve_at, version, last_comp = header[:7]
        self.cpuid, strings_size, struct_size = header[7:]
        if magic != _MAGIC:
            text = self.data[0] < 0x80
            advice = "compile device-tree source with dtc first" if text else None
            raise self.fail(f"magic {magic:#010x} is not {_MAGIC:#010x}", 0, advice)
        if (version, last_comp) != (_VERSION, _LAST_COMP):
            reason = f"version {version}, last compatible {last_comp}: only 17 and 16 are read"
            raise self.fail(reason, 20)
        if total > len(self.data):
            reason = f"totalsize {total} exceeds the {len(self.data)} bytes there are"
            raise self.fail(reason, 4, "the file is cut short; copy it again")
        if total > self.max_bytes:
            raise self.fail(f"totalsize {total} exceeds the limit of {self.max_bytes} bytes", 4)
        self.total = total
        self.reserve = self._block("memory reservations", reserve_at, 16, 16, 8)
        self.struct = self._block("structure block", struct_at, struct_size, 8, 4)
        self.strings = self._block("strings block", strings_at, strings_size, 12, 1)
        self.struct_end, self.strings_end = struct_at + struct_size, strings_at + strings_size
        if self.struct < self.strings_end and self.strings < self.struct_end and strings_size:
            raise self.fail("structure block and strings block overlap", 8)
        if strings_size > MAX_STRINGS:
            raise self.fail(f"strings block of {strings_size} bytes, limit {MAX_STRINGS}", 32)

    def _block(self, what: str, start: int, size: int, field: int, align: int) -> int:
        if start % align:
            raise self.fail(f"{what} at {start:#x} is not {align}-byte aligned", field)
        if start < _HEADER.size or start + size > self.total:
            reason = f"{what} [{start:#x}, {start + size:#x}) is outside [0x28, {self.total:#x})"
            raise self.fail(reason, field)
        return start

    def _reservations(self) -> list[tuple[int, int]]:
        entries: list[tuple[int, int]] = []
        limit = min([self.total, *(at for at in (self.struct, self.strings) if at > self.reserve)])
        for at in range(self.reserve, limit - 15, 16):
            entry = _RESERVATION.unpack_from(self.data, at)
            if entry == (0, 0):
                return entries
            entries.append(entry)
            if len(entries) > MAX_RESERVATIONS:
                raise self.fail(f"more than {MAX_RESERVATIONS} memory reservations", at)
        raise self.fail("memory reservations are not terminated", self.reserve)

    def _structure(self) -> None:
        at = kept = self.struct
        while True:
            if at + 4 > self.struct_end:
                raise self.fail("structure block ends without FDT_END", at)
            tag = int.from_bytes(self.data[at : at + 4])
            if tag == _PROP:
                at = self._property(at)
            elif tag == _BEGIN_NODE:
                at = self._begin(at)
            elif tag == _END_NODE:
                at = self._close(at)
            elif tag == _NOP:
                self.pieces.append(self.data[kept:at])
                at = kept = at + 4
            elif tag == _END:
                break
            else:
                raise self.fail(f"unknown tag {tag:#x}", at)
        if self.stack or not self.nodes:
            raise self.fail("FDT_END inside a node" if self.stack else "no root node", at)
        if at + 4 != self.struct_end:
            raise self.fail("structure block goes on after FDT_END", at + 4)
        self.pieces.append(self.data[kept : at + 4])

    def _begin(self, at: int) -> int:
        end = self.data.find(b"\0", at + 4, min(at + 5 + MAX_NAME, self.struct_end))
        if end < 0:
            raise self.fail(f"node name is not terminated within {MAX_NAME} bytes", at + 4)
        raw = self.data[at + 4 : end]
        name = self._node_name(raw, at)
        if len(self.nodes) == MAX_NODES:
            raise self.fail(f"more than {MAX_NODES} nodes", at)
        if len(self.stack) == MAX_DEPTH:
            raise self.fail(f"nodes nested deeper than {MAX_DEPTH}", at)
        path = "/"
        if self.stack:
            path = f"{self.stack[-1].path.rstrip('/')}/{name}"
            self._unique("child", name, self.stack[-1].children, at)
            if len(path) > MAX_PATH:
                raise self.fail(f"path of a child node is longer than {MAX_PATH} bytes", at)
        self.stack.append(_Open(path, set(), set(), len(self.nodes)))
        self.nodes.append((len(self.stack), name, 0))
        return (end + 4) & ~3

    def _node_name(self, raw: bytes, at: int) -> str:
        if not self.stack:
            if self.nodes:
                raise self.fail("a second root node", at)
            if raw:
                raise self.fail(f"the root node is named {_show(raw)}, not empty", at + 4)
        elif not _NODE_NAME.match(raw):
            raise self.fail(f"node name {_show(raw)} is not valid", at + 4)
        return raw.decode("ascii")

    def _unique(self, what: str, name: str, seen: set[str], at: int) -> None:
        if name in seen:
            raise self.fail(f"a second {what} {name}", at)
        self.comparisons += len(seen)
        if self.comparisons > MAX_SIBLING_COMPARISONS:
            raise self.fail("too many siblings (properties or children)", at)
        seen.add(name)

    def _close(self, at: int) -> int:
        if not self.stack:
            raise self.fail("FDT_END_NODE outside a node", at)
        node = self.stack.pop()
        depth, name, _ = self.nodes[node.index]
        self.nodes[node.index] = (depth, name, len(node.props))
        return at + 4

    def _property(self, at: int) -> int:
        if not self.stack:
            raise self.fail("property outside a node", at)
        node = self.stack[-1]
        if node.children:
            raise self.fail("property after a child node", at)
        if len(self.props) == MAX_PROPERTIES:
            raise self.fail(f"more than {MAX_PROPERTIES} properties", at)
        if at + 12 > self.struct_end:
            raise self.fail("property header is cut off", at)
        size = int.from_bytes(self.data[at + 4 : at + 8])
        name_at = int.from_bytes(self.data[at + 8 : at + 12])
        name = self._prop_name(name_at, at)
        self._unique("property", name, node.props, at)
        end = at + 12 + size
        if end > self.struct_end:
            raise self.fail(f"{name}: value of {size} bytes leaves the structure block", at + 4)
        self.props.append((name, self.data[at + 12 : end]))
        return (end + 3) & ~3

    def _prop_name(self, name_at: int, at: int) -> str:
        known = self.names.get(name_at)
        if known is not None:
            return known
        start = self.strings + name_at
        if start >= self.strings_end:
            raise self.fail(f"property name offset {name_at:#x} is outside the strings", at + 8)
        end = self.data.find(b"\0", start, min(start + MAX_NAME + 1, self.strings_end))
        if end < 0:
            raise self.fail(f"property name is not terminated within {MAX_NAME} bytes", start)
        raw = self.data[start:end]
        if not _PROP_NAME.match(raw):
            raise self.fail(f"property name {_show(raw)} is not valid", start)
        return self.names.setdefault(name_at, raw.decode("ascii"))


def _show(raw: bytes) -> str:
    text = raw[:40].decode("latin-1")
    return ascii(text) + ("..." if len(raw) > 40 else "")


def _to_tree(parsed: Any, scan: _Scan) -> Tree:
    """The nodes of fdt as our Tree, with the validated raw values."""
    tree = Tree()
    tree.boot_cpuid = scan.boot_cpuid
    # Not parsed.entries: that list is shared by every blob this process ever parsed.
    tree.memreserve = list(scan.reservations)
    values = iter(scan.props)
    stack = [(parsed.root, tree.root)]
    while stack:
        theirs, ours = stack.pop()
        for prop in theirs.props:
            name, raw = next(values)
            if prop.name != name:
                raise ValueError(f"{ours.path}: property {prop.name} where {name} was checked")
            ours.props[name] = raw
        pairs = [(child, ours.add(child.name)) for child in theirs.nodes]
        stack.extend(reversed(pairs))
    if next(values, None) is not None or sum(1 for _ in tree.walk()) != len(scan.nodes):
        raise ValueError("nodes or properties were lost")
    return tree


def _from_tree(fdt: Any, root: Node) -> Any:
    """Our nodes as fdt's, every value as plain bytes so that no type is guessed."""
    top = fdt.Node("/")
    stack = [(root, top)]
    while stack:
        ours, theirs = stack.pop()
        for name, raw in ours.props.items():
            theirs.props.append(fdt.PropBytes(name, data=raw) if raw else fdt.Property(name))
        for child in ours.children.values():
            node = fdt.Node(child.name)
            theirs.nodes.append(node)
            stack.append((child, node))
    return top


def _same(scan: _Scan, tree: Tree) -> bool:
    nodes = [(depth, node.name, len(node.props)) for depth, node in _walk_depth(tree.root)]
    props = [(name, bytes(raw)) for node in tree.walk() for name, raw in node.props.items()]
    return (
        scan.nodes == nodes
        and scan.props == props
        and scan.reservations == tree.memreserve
        and scan.boot_cpuid == tree.boot_cpuid
    )


def _walk_depth(root: Node) -> Iterator[tuple[int, Node]]:
    stack = [(1, root)]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        stack.extend((depth + 1, child) for child in reversed(node.children.values()))


def _check_tree(tree: Tree, source: str) -> None:
    """Everything `read` would reject, found before fdt sees the tree."""
    if tree.root.name:
        raise DtbError(source, f"the root node is named {tree.root.name!r}, not empty", path="/")
    if not 0 <= tree.boot_cpuid <= 0xFFFFFFFF:
        raise DtbError(source, f"boot CPU id {tree.boot_cpuid:#x} does not fit 32 bits")
    _check_reservations(tree, source)
    nodes: list[Node] = []
    props = 0
    names: set[str] = set()
    size = _HEADER.size + 16 * (len(tree.memreserve) + 1)
    for depth, node in _walk_depth(tree.root):
        _check_node(node, depth, source)
        nodes.append(node)
        props += len(node.props)
        names.update(node.props)
        size += _own_size(node)
        _limit(source, node, "nodes", len(nodes), MAX_NODES)
        _limit(source, node, "properties", props, MAX_PROPERTIES)
        _limit(source, node, "bytes", size, MAX_BYTES)
    strings = sum(len(name) + 1 for name in names)
    _limit(source, tree.root, "bytes of property names", strings, MAX_STRINGS)
    _limit(source, tree.root, "bytes", size + strings, MAX_BYTES)
    _check_work(nodes, source)


def _limit(source: str, node: Node, what: str, value: int, limit: int) -> None:
    if value > limit:
        raise DtbError(source, f"more than {limit} {what}", path=node.path)


def _own_size(node: Node) -> int:
    size = 4 + (len(node.name) + 4) // 4 * 4 + 4
    return size + sum(12 + (len(raw) + 3) // 4 * 4 for raw in node.props.values())


def _check_reservations(tree: Tree, source: str) -> None:
    _limit(source, tree.root, "memory reservations", len(tree.memreserve), MAX_RESERVATIONS)
    for base, size in tree.memreserve:
        if not (0 <= base < 1 << 64 and 0 <= size < 1 << 64):
            raise DtbError(source, f"memory reservation {base:#x}+{size:#x} does not fit 64 bits")
        if base == size == 0:
            raise DtbError(source, "memory reservation 0+0 would end the list")


def _check_node(node: Node, depth: int, source: str) -> None:
    if depth > MAX_DEPTH:
        raise DtbError(source, f"nodes nested deeper than {MAX_DEPTH}")
    if node.parent is not None and not _valid(_NODE_NAME, node.name):
        raise DtbError(source, f"node name {node.name[:40]!a} is not valid", path=node.path)
    if len(node.path) > MAX_PATH:
        raise DtbError(source, f"path longer than {MAX_PATH} bytes", path=node.path[:80] + "...")
    for name, child in node.children.items():
        if child.name != name or child.parent is not node:
            raise DtbError(source, f"child {name} is filed under another name", path=node.path)
    for name in node.props:
        if not _valid(_PROP_NAME, name):
            raise DtbError(source, f"property name {name[:40]!a} is not valid", path=node.path)
        if name.endswith(_FDT_DROPS):
            reason = f"property {name}: the fdt package drops names ending {_FDT_DROPS}"
            raise DtbError(source, reason, path=node.path, hint="rename it")


def _valid(pattern: re.Pattern[bytes], name: str) -> bool:
    return name.isascii() and len(name) <= MAX_NAME and bool(pattern.match(name.encode("ascii")))


def _check_work(nodes: list[Node], source: str) -> None:
    """Bound what fdt copies: it joins bytes piece by piece in every node."""
    below: dict[int, int] = {}
    copied = comparisons = 0
    for node in reversed(nodes):
        size = _own_size(node) + sum(below.pop(id(child)) for child in node.children.values())
        below[id(node)] = size
        items, children = len(node.props), len(node.children)
        copied += (items + children) * size
        comparisons += (items * items + children * children) // 2
    if copied > MAX_COPIED or comparisons > MAX_SIBLING_COMPARISONS:
        raise DtbError(source, "too many siblings (properties or children)")
