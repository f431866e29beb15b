# SPDX-License-Identifier: BSD-2-Clause
"""Device-tree blobs: bytes to `Tree` and back (Devicetree Specification v0.4 §5).

This is the one module that imports the `fdt` package. Nothing unchecked is handed to it, because
it does not check itself:

- `read` is the strict reader of `dt_tools.scan`: it bounds the work, rejects what is malformed with
  offset and path, and builds the tree from its own pass. `read_with_fdt` gives the same tree by way
  of `fdt` and takes four times as long; tests hold the two against each other.
- `write` checks the tree as strictly, hands `fdt` every value as plain bytes, since it guesses a
  type for each and the guess is not always the value, and reads its output back before returning.

What is promised is equal content (nodes, properties and their order, raw values, memory
reservations, boot CPU), not equal bytes: block order, padding and string sharing may change.
One property name ending cannot be written: `fdt` drops names that end in `_with_references`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dt_tools.errors import DtbError
from dt_tools.scan import (
    HEADER,
    LAST_COMP,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NAME,
    MAX_NODES,
    MAX_PATH,
    MAX_PROPERTIES,
    MAX_RESERVATIONS,
    MAX_SIBLING_COMPARISONS,
    MAX_STRINGS,
    NODE_NAME,
    PROP_NAME,
    VERSION,
    Scan,
    siblings,
)
from dt_tools.tree import Node, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

# fdt joins bytes piece by piece in every node: this keeps a tree of any shape to a few seconds.
MAX_COPIED = 1 << 33

_FDT_DROPS = "_with_references"


def read(data: bytes, source: str = "dtb", *, max_bytes: int = MAX_BYTES) -> Tree:
    """Parse a version 17 blob. Bytes after `totalsize` are ignored.

    Args:
        data: the file's content.
        source: its name, for messages.
        max_bytes: refuse a longer `totalsize`.

    Raises:
        DtbError: the blob breaks the format or one of the limits of `dt_tools.scan`.
    """
    return Scan(data, source, max_bytes).run()


def read_with_fdt(data: bytes, source: str = "dtb", *, max_bytes: int = MAX_BYTES) -> Tree:
    """The tree of `read` as the fdt package sees it: the slow twin, for second opinions.

    The blob is checked by our own pass first, and fdt gets a copy without FDT_NOP. The content is
    fdt's throughout, but for the reservations and the boot CPU.

    Raises:
        DtbError: as `read`; or fdt refuses what `read` accepts.
    """
    scan = Scan(data, source, max_bytes)
    checked = scan.run()
    try:
        tree = _to_tree(_fdt().parse_dtb(scan.tight()).root)
    except Exception as error:  # fdt raises plain Exception, AssertionError, struct.error ...
        raise DtbError(source, f"the fdt package refused the blob: {error}") from error
    # Not from fdt: its list of reservations is shared by every blob this process ever parsed.
    tree.memreserve = list(checked.memreserve)
    tree.boot_cpuid = checked.boot_cpuid
    return tree


def write(tree: Tree, source: str = "tree", *, max_bytes: int = MAX_BYTES) -> bytes:
    """Serialise a tree as a version 17 blob; `source` names it in messages.

    Raises:
        DtbError: a name, the depth or a size is outside what `read` accepts.
    """
    _check_tree(tree, source, max_bytes)
    try:
        data = _serialise(tree)
    except Exception as error:
        raise DtbError(source, f"the fdt package cannot write the tree: {error}") from error
    if not same_content(read(data, source, max_bytes=max_bytes), tree):
        raise DtbError(source, "the fdt package wrote other content than it was given")
    return data


def same_content(one: Tree, other: Tree) -> bool:
    """Equal nodes, properties, their order and values, memory reservations and boot CPU."""
    if one.memreserve != other.memreserve or one.boot_cpuid != other.boot_cpuid:
        return False
    stack = [(one.root, other.root)]
    while stack:
        left, right = stack.pop()
        if list(left.props.items()) != list(right.props.items()):
            return False
        if list(left.children) != list(right.children):
            return False
        stack.extend(zip(left.children.values(), right.children.values(), strict=True))
    return True


def _fdt() -> Any:
    """The fdt package; its source has an invalid escape that warns when first compiled."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fdt
    return fdt


def _serialise(tree: Tree) -> bytes:
    fdt = _fdt()
    blob = fdt.FDT(entries=[])  # its own list: the default argument is shared by all instances
    blob.entries.extend({"address": base, "size": size} for base, size in tree.memreserve)
    blob.header.version = VERSION
    blob.header.last_comp_version = LAST_COMP
    blob.header.boot_cpuid_phys = tree.boot_cpuid
    blob.root = _from_tree(fdt, tree.root)
    data: bytes = blob.to_dtb()
    return data


def _to_tree(root: Any) -> Tree:
    """The nodes of fdt as ours, with the values it would write."""
    tree = Tree()
    stack = [(root, tree.root)]
    while stack:
        theirs, ours = stack.pop()
        for prop in theirs.props:
            item, *_ = prop.to_dtb(prop.name + "\0")
            ours.props[prop.name] = item[12 : 12 + int.from_bytes(item[4:8])]
        stack.extend([(child, ours.add(child.name)) for child in theirs.nodes])
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


def _walk_depth(root: Node) -> Iterator[tuple[int, Node]]:
    stack = [(1, root)]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        stack.extend((depth + 1, child) for child in reversed(node.children.values()))


def _check_tree(tree: Tree, source: str, max_bytes: int) -> None:
    """Everything `read` would reject, found before fdt sees the tree."""
    if tree.root.name:
        raise DtbError(source, f"the root node is named {tree.root.name!r}, not empty", path="/")
    if not 0 <= tree.boot_cpuid <= 0xFFFFFFFF:
        raise DtbError(source, f"boot CPU id {tree.boot_cpuid:#x} does not fit 32 bits")
    _check_reservations(tree, source)
    nodes: list[Node] = []
    props = 0
    names: set[str] = set()
    size = HEADER.size + 16 * (len(tree.memreserve) + 1)
    for depth, node in _walk_depth(tree.root):
        _check_node(node, depth, source)
        nodes.append(node)
        props += len(node.props)
        names.update(node.props)
        size += _own_size(node)
        _limit(source, node, "nodes", len(nodes), MAX_NODES)
        _limit(source, node, "properties", props, MAX_PROPERTIES)
        _limit(source, node, "bytes", size, max_bytes)
    strings = sum(len(name) + 1 for name in names)
    _limit(source, tree.root, "bytes of property names", strings, MAX_STRINGS)
    _limit(source, tree.root, "bytes", size + strings, max_bytes)
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
    if node.parent is not None and not _valid(NODE_NAME, node.name):
        raise DtbError(source, f"node name {node.name[:40]!a} is not valid", path=node.path)
    if len(node.path) > MAX_PATH:
        raise DtbError(source, f"path longer than {MAX_PATH} bytes", path=node.path[:80] + "...")
    for name, child in node.children.items():
        if child.name != name or child.parent is not node:
            raise DtbError(source, f"child {name} is filed under another name", path=node.path)
    for name in node.props:
        if not _valid(PROP_NAME, name):
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
        copied += (len(node.props) + len(node.children)) * size
        comparisons += siblings(len(node.props), len(node.children))
    if copied > MAX_COPIED or comparisons > MAX_SIBLING_COMPARISONS:
        raise DtbError(source, "too many siblings (properties or children)")
