# SPDX-License-Identifier: BSD-2-Clause
"""A tree as the bytes that libxl leaves of it (Devicetree Specification v0.4 §5).

libxl writes a tree front to back with room for what it does not know yet, and fills that in
afterwards: an unused memory node becomes FDT_NOPs, and an entry of /hypervisor's `reg` that is not
used leaves free space behind the strings. The strings block grows downwards: the last new name is
the first string, and a name that another one ends with is not stored again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dt_tools.errors import Refusal
from dt_tools.scan import HEADER, LAST_COMP, MAGIC, VERSION

if TYPE_CHECKING:
    from dt_tools.tree import Node

_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = (tag.to_bytes(4, "big") for tag in (1, 2, 3, 4, 9))
# An empty list of memory reservations behind the header, which is padded to 8 bytes.
_STRUCT_AT = 64
MAX_SIZE = 1 << 20
"""The largest buffer that libxl tries."""


@dataclass(frozen=True, slots=True)
class Nop:
    """A node that libxl writes and takes out again: FDT_NOPs stand where it was.

    `before` is the name of the child of the root that follows it.
    """

    before: str
    node: Node


@dataclass(frozen=True, slots=True)
class Blob:
    """The finished tree. `structure` is its structure block, `size` its totalsize in bytes."""

    data: bytes
    structure: bytes
    size: int


def lay_out(root: Node, nops: tuple[Nop, ...], hypervisor_regs: int) -> Blob:
    """The bytes of the tree below `root`, with room for so many entries in /hypervisor's reg.

    Raises:
        Refusal: DT551, it does not fit the buffer that libxl has for it.
    """
    reg = root.children["hypervisor"].props["reg"]
    room = hypervisor_regs * 16 - len(reg)
    first = _Writer(nops, blank=False)
    structure = first.tree(root, reg + bytes(room))
    # libxl's reg of unknown content is written last, over the first: what moved up to close the gap
    # is still there behind the new end.
    old = _joined(structure, first.strings)
    second = _Writer(nops, blank=True)
    structure = second.tree(root, reg)
    new = _joined(structure, second.strings)
    if len(old) > MAX_SIZE:
        reason = f"the guest's tree takes {len(old)} bytes while it is made, {MAX_SIZE} is the most"
        raise Refusal("DT551", "/passthrough", reason, "make the partial tree smaller")
    size = len(old)
    header = HEADER.pack(
        *(MAGIC, size, _STRUCT_AT, _STRUCT_AT + len(structure), HEADER.size + 8),
        *(VERSION, LAST_COMP, 0, len(second.strings), len(structure)),
    )
    data = header + new[len(header) :] + old[len(new) :]
    return Blob(data, structure, size)


def _joined(structure: bytes, strings: bytes) -> bytes:
    return bytes(_STRUCT_AT) + structure + strings


class _Writer:
    """Writes a tree once. `blank` writes FDT_NOPs for what is taken out, else the nodes."""

    def __init__(self, nops: tuple[Nop, ...], blank: bool) -> None:
        self.strings = b""
        self.nops = {nop.before: nop.node for nop in nops}
        self.blank = blank
        self.parts: list[bytes] = []
        # Where in `parts` a name's offset is wanted, counted from the end of the strings block.
        self.wanted: list[tuple[int, int]] = []

    def tree(self, root: Node, reg: bytes) -> bytes:
        """The structure block; `strings` has the strings block then."""
        self._begin(root)
        for name, child in root.children.items():
            if name in self.nops:
                self._taken_out(self.nops[name])
            self._node(child, reg if name == "hypervisor" else None)
        self.parts.append(_END_NODE)
        self.parts.append(_END)
        for at, from_end in self.wanted:
            self.parts[at] = (len(self.strings) - from_end).to_bytes(4, "big")
        return b"".join(self.parts)

    def _taken_out(self, node: Node) -> None:
        at = len(self.parts)
        self._node(node)
        if self.blank:
            # Its names stay in the strings block.
            length = sum(len(part) for part in self.parts[at:])
            self.parts[at:] = [_NOP * (length // 4)]
            self.wanted = [one for one in self.wanted if one[0] < at]

    def _node(self, top: Node, reg: bytes | None = None) -> None:
        """`top` and all below it; `reg` stands in for its own."""
        stack: list[Node | None] = [top]
        while stack:
            node = stack.pop()
            if node is None:
                self.parts.append(_END_NODE)
                continue
            self._begin(node, reg if node is top else None)
            stack.append(None)
            stack.extend(reversed(node.children.values()))

    def _begin(self, node: Node, reg: bytes | None = None) -> None:
        self.parts.append(_BEGIN_NODE + _padded(node.name.encode("latin-1") + b"\0"))
        for name, value in node.props.items():
            raw = reg if reg is not None and name == "reg" else value
            self.parts.append(_PROP + len(raw).to_bytes(4, "big"))
            self.wanted.append((len(self.parts), self._from_end(name)))
            self.parts += (bytes(4), _padded(raw))

    def _from_end(self, name: str) -> int:
        wanted = name.encode("latin-1") + b"\0"
        at = self.strings.find(wanted)
        if at < 0:
            self.strings, at = wanted + self.strings, 0
        return len(self.strings) - at


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)
