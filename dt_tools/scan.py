# SPDX-License-Identifier: BSD-2-Clause
"""The strict reader: a device-tree blob to a `Tree` in one pass (Devicetree Specification v0.4 §5).

It bounds the work, rejects what is malformed with offset and path, skips FDT_NOP, and uses nothing
but the standard library. `dt_tools.blob` is the door to it and holds its second opinion.
"""

from __future__ import annotations

import re
import struct

from dt_tools.errors import DtbError
from dt_tools.tree import Node, Tree

MAX_BYTES = 2 << 20
MAX_DEPTH = 64
MAX_NODES = 65_536
MAX_PROPERTIES = 65_536
MAX_NAME = 255
MAX_PATH = 1_024
MAX_RESERVATIONS = 1_024
# The fdt package, which writes, compares each new property and node with all its siblings, and
# searches the whole string block for each property. What is read can also be written, within a few
# seconds.
MAX_SIBLING_COMPARISONS = 1 << 24
MAX_STRINGS = 128 << 10

MAGIC = 0xD00DFEED
VERSION = 17
LAST_COMP = 16
HEADER = struct.Struct(">10I")
RESERVATION = struct.Struct(">QQ")
NODE_NAME = re.compile(rb"[0-9A-Za-z,._+@-]+\Z")
PROP_NAME = re.compile(rb"[0-9A-Za-z,._+*?#@-]+\Z")

_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_ITEM = struct.Struct(">3I")  # a tag, and for FDT_PROP the value's size and the name's offset


def siblings(properties: int, children: int) -> int:
    """How often the fdt package compares names to make one node of so many parts."""
    return (properties * (properties - 1) + children * (children - 1)) // 2


class Scan:
    """One pass over one blob, no recursion. `run` gives the tree, then `tight` the same as bytes.

    Args:
        data: the file's content; bytes after `totalsize` are ignored.
        source: its name, for messages.
        max_bytes: refuse a longer `totalsize`.
    """

    def __init__(self, data: bytes, source: str, max_bytes: int = MAX_BYTES) -> None:
        self.data = bytes(data)
        self.source = source
        self.max_bytes = max_bytes
        self.tree = Tree()
        self.node: Node | None = None  # the innermost whose FDT_END_NODE has not been seen
        self.lengths: list[int] = []  # of the paths of the open nodes, 0 for the root
        self.nodes = self.properties = self.comparisons = 0
        self.names: dict[int, str] = {}  # offset in the strings block -> checked name
        self.pieces: list[bytes] = []  # the structure block between FDT_NOPs

    def run(self) -> Tree:
        """Check everything. Raises DtbError at the first defect."""
        self._header()
        self.tree.memreserve = self._reservations()
        # Zeros behind the end, so that a tag or a property can be unpacked before it is checked.
        self.block = self.data[self.struct : self.struct_end] + bytes(16)
        self._finish(self._structure())
        return self.tree

    def tight(self) -> bytes:
        """A blob of the same content without NOPs, blocks in the specification's order."""
        entries = [*self.tree.memreserve, (0, 0)]
        reserve = b"".join(RESERVATION.pack(*entry) for entry in entries)
        structure = b"".join(self.pieces)
        strings = self.data[self.strings : self.strings_end]
        start = HEADER.size + len(reserve)
        strings_at = start + len(structure)
        header = HEADER.pack(
            *(MAGIC, strings_at + len(strings), start, strings_at, HEADER.size),
            *(VERSION, LAST_COMP, self.tree.boot_cpuid, len(strings), len(structure)),
        )
        return header + reserve + structure + strings

    def _fail(self, reason: str, offset: int | None = None, hint: str | None = None) -> DtbError:
        path = None if self.node is None else self.node.path
        return DtbError(self.source, reason, offset=offset, path=path, hint=hint)

    def _bad(self, reason: str, at: int) -> DtbError:
        """`at` counts from the start of the structure block."""
        return self._fail(reason, self.struct + at)

    def _header(self) -> None:
        if len(self.data) < HEADER.size:
            hint = "is this a device-tree blob?"
            raise self._fail(f"{len(self.data)} bytes are no blob (40 header bytes)", 0, hint)
        header: tuple[int, ...] = HEADER.unpack_from(self.data)
        magic, total, struct_at, strings_at, reserve_at, version, last_comp = header[:7]
        self.tree.boot_cpuid, strings_size, struct_size = header[7:]
        if magic != MAGIC:
            text = self.data[0] < 0x80
            advice = "compile device-tree source with dtc first" if text else None
            raise self._fail(f"magic {magic:#010x} is not {MAGIC:#010x}", 0, advice)
        if (version, last_comp) != (VERSION, LAST_COMP):
            reason = f"version {version}, last compatible {last_comp}: only 17 and 16 are read"
            raise self._fail(reason, 20)
        if total > len(self.data):
            reason = f"totalsize {total} exceeds the {len(self.data)} bytes there are"
            raise self._fail(reason, 4, "the file is cut short; copy it again")
        if total > self.max_bytes:
            raise self._fail(f"totalsize {total} exceeds the limit of {self.max_bytes} bytes", 4)
        self.total = total
        self.reserve = self._block("memory reservations", reserve_at, 16, 16, 8)
        self.struct = self._block("structure block", struct_at, struct_size, 8, 4)
        self.strings = self._block("strings block", strings_at, strings_size, 12, 1)
        self.struct_end, self.strings_end = struct_at + struct_size, strings_at + strings_size
        self._check_overlaps()
        if strings_size > MAX_STRINGS:
            raise self._fail(f"strings block of {strings_size} bytes, limit {MAX_STRINGS}", 32)

    def _block(self, what: str, start: int, size: int, field: int, align: int) -> int:
        if start % align:
            raise self._fail(f"{what} at {start:#x} is not {align}-byte aligned", field)
        if start < HEADER.size or start + size > self.total:
            reason = f"{what} [{start:#x}, {start + size:#x}) is outside [0x28, {self.total:#x})"
            raise self._fail(reason, field)
        return start

    def _check_overlaps(self) -> None:
        structure = ("structure block", self.struct, self.struct_end)
        strings = ("strings block", self.strings, self.strings_end)
        if max(self.struct, self.strings) < min(self.struct_end, self.strings_end):
            raise self._fail("structure block and strings block overlap", 8)
        for what, start, end in (structure, strings):
            if start <= self.reserve < end:
                raise self._fail(f"memory reservations and {what} overlap", 16)

    def _reservations(self) -> list[tuple[int, int]]:
        entries: list[tuple[int, int]] = []
        limit = min([self.total, *(at for at in (self.struct, self.strings) if at > self.reserve)])
        for at in range(self.reserve, limit - 15, 16):
            entry = RESERVATION.unpack_from(self.data, at)
            if entry == (0, 0):
                return entries
            entries.append(entry)
            if len(entries) > MAX_RESERVATIONS:
                raise self._fail(f"more than {MAX_RESERVATIONS} memory reservations", at)
        raise self._fail("memory reservations are not terminated", self.reserve)

    def _structure(self) -> int:
        """Read up to the FDT_END; its place. Most of a blob is properties: they are read here."""
        block, limit, names, item = self.block, self.struct_end - self.struct, self.names, _ITEM
        node: Node | None = None
        at = kept = 0
        while True:
            tag, size, name_at = item.unpack_from(block, at)
            if tag == _PROP:
                end = at + 12 + size
                if end > limit or node is None or node.children:
                    raise self._misplaced(at, size)
                name = names.get(name_at) or self._prop_name(name_at, at)
                if name in node.props:
                    raise self._bad(f"a second property {name}", at)
                node.props[name] = block[at + 12 : end]
                at = (end + 3) & ~3
            elif tag == _BEGIN_NODE:
                at = self._begin(at)
                node = self.node
            elif tag == _END_NODE:
                at = self._close(at)
                node = self.node
            elif tag == _NOP and self.nodes:
                self.pieces.append(block[kept:at])
                at = kept = at + 4
            else:
                self.pieces.append(block[kept : at + 4])
                return at

    def _finish(self, at: int) -> None:
        """Whether the tag at which the structure ended is the FDT_END that has to be there."""
        limit = self.struct_end - self.struct
        if at + 4 > limit:
            raise self._bad("structure block ends without FDT_END", at)
        tag = int.from_bytes(self.block[at : at + 4])
        if tag == _NOP:
            # The specification lets it be there; libfdt and dtc look for the root at the start.
            raise self._bad("FDT_NOP before the root node", at)
        if tag != _END:
            raise self._bad(f"unknown tag {tag:#x}", at)
        if self.node is not None or not self.nodes:
            raise self._bad("FDT_END inside a node" if self.nodes else "no root node", at)
        if at + 4 != limit:
            raise self._bad("structure block goes on after FDT_END", at + 4)

    def _misplaced(self, at: int, size: int) -> DtbError:
        """Why there can be no property at `at`."""
        if self.node is None:
            return self._bad("property outside a node", at)
        if self.node.children:
            return self._bad("property after a child node", at)
        if at + 12 > self.struct_end - self.struct:
            return self._bad("property header is cut off", at)
        name = self._prop_name(_ITEM.unpack_from(self.block, at)[2], at)
        return self._bad(f"{name}: value of {size} bytes leaves the structure block", at + 4)

    def _begin(self, at: int) -> int:
        limit = self.struct_end - self.struct
        end = self.block.find(b"\0", at + 4, min(at + 5 + MAX_NAME, limit))
        if end < 0:
            raise self._bad(f"node name is not terminated within {MAX_NAME} bytes", at + 4)
        parent = self.node
        name = self._node_name(self.block[at + 4 : end], at)
        if self.nodes == MAX_NODES:
            raise self._bad(f"more than {MAX_NODES} nodes", at)
        if len(self.lengths) == MAX_DEPTH:
            raise self._bad(f"nodes nested deeper than {MAX_DEPTH}", at)
        if parent is None:
            self.node = self.tree.root
            self.lengths.append(0)
        else:
            if name in parent.children:
                raise self._bad(f"a second child {name}", at)
            length = self.lengths[-1] + 1 + len(name)
            if length > MAX_PATH:
                raise self._bad(f"path of a child node is longer than {MAX_PATH} bytes", at)
            self.node = parent.children[name] = Node(name, parent)
            self.lengths.append(length)
        self.nodes += 1
        return (end + 4) & ~3

    def _node_name(self, raw: bytes, at: int) -> str:
        if self.node is None:
            if self.nodes:
                raise self._bad("a second root node", at)
            if raw:
                raise self._bad(f"the root node is named {_show(raw)}, not empty", at + 4)
        elif not NODE_NAME.match(raw):
            raise self._bad(f"node name {_show(raw)} is not valid", at + 4)
        return raw.decode("ascii")

    def _close(self, at: int) -> int:
        node = self.node
        if node is None:
            raise self._bad("FDT_END_NODE outside a node", at)
        self.properties += len(node.props)
        if self.properties > MAX_PROPERTIES:
            raise self._bad(f"more than {MAX_PROPERTIES} properties", at)
        self.comparisons += siblings(len(node.props), len(node.children))
        if self.comparisons > MAX_SIBLING_COMPARISONS:
            raise self._bad("too many siblings (properties or children)", at)
        self.lengths.pop()
        self.node = node.parent
        return at + 4

    def _prop_name(self, name_at: int, at: int) -> str:
        start = self.strings + name_at
        if start >= self.strings_end:
            raise self._bad(f"property name offset {name_at:#x} is outside the strings", at + 8)
        end = self.data.find(b"\0", start, min(start + MAX_NAME + 1, self.strings_end))
        if end < 0:
            raise self._fail(f"property name is not terminated within {MAX_NAME} bytes", start)
        raw = self.data[start:end]
        if not PROP_NAME.match(raw):
            raise self._fail(f"property name {_show(raw)} is not valid", start)
        return self.names.setdefault(name_at, raw.decode("ascii"))


def _show(raw: bytes) -> str:
    text = raw[:40].decode("latin-1")
    return ascii(text) + ("..." if len(raw) > 40 else "")
