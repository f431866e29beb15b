# SPDX-License-Identifier: BSD-2-Clause
"""An IORT's nodes to its bytes, read back before they are handed out."""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING

from dt_tools.errors import DtbError
from dt_tools.iort.layout import HEADER, MAPPING, NODE, SIGNATURE
from dt_tools.iort.model import (
    Iort,
    ItsGroup,
    NamedComponent,
    Node,
    Pmcg,
    RawNode,
    ReservedMemory,
    RootComplex,
    SmmuV2,
    SmmuV3,
)
from dt_tools.iort.reader import _V3_FIELDS, read

if TYPE_CHECKING:
    from collections.abc import Sequence


def write(iort: Iort, source: str = "iort") -> bytes:
    """The table as bytes: `read(write(x)) == x`. Nodes are in order, without padding.

    Raises:
        DtbError: the table breaks the format, a limit, or a rule of `read`.
    """
    leads = {m.target for node in iort.nodes for m in node.mappings}
    leads |= {node.of for node in iort.nodes if isinstance(node, Pmcg)}
    if not all(0 <= index < len(iort.nodes) for index in leads):
        raise DtbError(source, "a mapping or a PMCG of a node that there is not")
    try:
        sizes = [len(_node(node, [0] * len(iort.nodes))) for node in iort.nodes]
        offsets = list(accumulate(sizes, initial=HEADER.size))
        body = b"".join(_node(node, offsets) for node in iort.nodes)
        names = iort.oem_id, iort.oem_table_id, iort.oem_revision, iort.creator_id
        rest = (*names, iort.creator_revision, len(iort.nodes), HEADER.size, 0)
        head = HEADER.pack(SIGNATURE, offsets[-1], iort.revision, 0, *rest)
    except struct.error as error:
        raise DtbError(source, f"a value does not fit its field: {error}") from None
    data = bytearray(head + body)
    data[9] = -sum(data) & 0xFF
    made = bytes(data)
    if read(made, source) != iort:
        raise DtbError(source, "the table would not be the same when it is read")
    return made


def _node(node: Node, offsets: Sequence[int]) -> bytes:
    """One node; `offsets` are those of all nodes."""
    rows = b"".join(
        MAPPING.pack(m.input_base, m.count - 1, m.output_base, offsets[m.target], int(m.single))
        for m in node.mappings
    )
    if isinstance(node, RawNode):
        at, kind = node.mapping_offset, node.kind
        cut = max(at - NODE.size, 0)
        body = node.data[:cut] + rows + node.data[cut + len(rows) :] if rows else node.data
    else:
        body, kind = _fields(node, offsets), node.type_id
        at = NODE.size + len(body) if rows else 0
        body += rows
    size = NODE.size + len(body)
    head = (kind, size, node.revision, node.identifier, len(node.mappings), at)
    return NODE.pack(*head) + body


def _fields(node: Node, offsets: Sequence[int]) -> bytes:
    """The fields and arrays of a node, but for its mappings."""
    pack = node.fixed.pack
    match node:
        case ItsGroup():
            return pack(len(node.its)) + struct.pack(f"<{len(node.its)}I", *node.its)
        case NamedComponent(memory=memory):
            raw = pack(node.flags, memory.cca, memory.hints, memory.flags, node.address_limit)
            raw += node.path.encode("utf-8", "replace") + b"\0"
            return raw + bytes(-len(raw) % 4)
        case RootComplex(memory=memory):
            head = memory.cca, memory.hints, memory.flags, node.ats, node.segment
            raw = pack(*head, node.address_limit, node.pasid, node.flags)
            # Readers of before revision 4 may count on the size that the node had then.
            return raw if node.revision >= 4 or node.flags else raw[:-4]
        case SmmuV2():
            return _smmu_v2(node)
        case SmmuV3():
            return pack(*(getattr(node, name) for name in _V3_FIELDS))
        case Pmcg():
            raw = pack(node.page0, node.gsiv, offsets[node.of], node.page1 or 0)
            return raw if node.page1 is not None else raw[:-8]
        case ReservedMemory():
            rows = [struct.pack("<QQ4x", *row) for row in node.ranges]
            first = NODE.size + node.fixed.size
            return pack(node.flags, len(rows), first if rows else 0) + b"".join(rows)
    raise AssertionError("every node type is above")


def _smmu_v2(node: SmmuV2) -> bytes:
    groups = (node.global_interrupts, node.context_interrupts, node.pmu_interrupts)
    shared = NODE.size + node.fixed.size
    first = shared + 8 * len(groups[0])
    contexts, pmus = len(groups[1]), len(groups[2])
    where = shared, contexts, first, pmus, first + 8 * contexts
    raw = node.fixed.pack(node.base, node.span, node.model, node.flags, *where)
    return raw + b"".join(struct.pack("<II", *pair) for group in groups for pair in group)
