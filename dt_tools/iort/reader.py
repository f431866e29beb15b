# SPDX-License-Identifier: BSD-2-Clause
"""An IORT's bytes to its nodes: strict, bounded, one error with the offset."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dt_tools.errors import DtbError
from dt_tools.iort.layout import (
    DEVICE_ID,
    HEADER,
    IDS,
    MAPPING,
    MAX_REVISION,
    MAX_SIZE,
    NODE,
    PATH,
    SIGNATURE,
    SINGLE,
    is_path,
)
from dt_tools.iort.model import (
    _TYPES,
    AnySmmu,
    IdMapping,
    Iort,
    ItsGroup,
    Memory,
    NamedComponent,
    Node,
    Pmcg,
    RawNode,
    ReservedMemory,
    RootComplex,
    SmmuV2,
    SmmuV3,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def read(data: bytes, source: str = "iort") -> Iort:
    """Read a table.

    Raises:
        DtbError: not an IORT of revision 0 to 6, or malformed; has the byte offset.
    """
    return _Reader(data, source).table()


class _Reader:
    """Reads a table.

    `at` and `end` are the bounds of the node in hand, `room` its bytes before the mappings, and
    `claims` the parts of it that were read.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self.data = data
        self.source = source
        self.offsets: dict[int, int] = {}
        self.at = self.end = self.room = 0
        self.claims: list[tuple[int, int, str]] = []

    def bad(self, offset: int, reason: str) -> DtbError:
        return DtbError(self.source, reason, offset=offset)

    def table(self) -> Iort:
        count, start = self.header()
        starts = self.starts(count, start)
        self.offsets = {offset: index for index, offset in enumerate(starts)}
        nodes = tuple(self.node(at) for at in starts)
        self.check(nodes, starts)
        _, _, revision, _, oem, table, oem_rev, maker, maker_rev, *_ = HEADER.unpack_from(self.data)
        return Iort(nodes, revision, oem, table, oem_rev, maker, maker_rev)

    def header(self) -> tuple[int, int]:
        """Checks the header; the number of nodes and the offset of the first."""
        size = len(self.data)
        if self.data[:4] != SIGNATURE:
            raise self.bad(0, "no IORT: the signature is missing")
        if size < HEADER.size:
            raise self.bad(0, f"{size} bytes; the header has {HEADER.size}")
        _, length, revision, checksum, *_, count, start, _ = HEADER.unpack_from(self.data)
        if length != size:
            raise self.bad(4, f"the length is {length}, the data has {size} bytes")
        if size > MAX_SIZE:
            raise self.bad(4, f"{size} bytes; at most {MAX_SIZE} are read")
        if revision > MAX_REVISION:
            raise self.bad(8, f"revision {revision}; 0 to {MAX_REVISION} are known")
        rest = sum(self.data) - checksum
        if (rest + checksum) & 0xFF:
            raise self.bad(9, f"the checksum is {checksum:#04x}, should be {-rest & 0xFF:#04x}")
        if not HEADER.size <= start <= size:
            raise self.bad(40, f"the nodes begin at {start:#x}, not in {HEADER.size:#x}-{size:#x}")
        return count, start

    def starts(self, count: int, at: int) -> list[int]:
        """The offsets of the nodes, which lie one after another to the end of the table."""
        found: list[int] = []
        while len(found) < count:
            if at + NODE.size > len(self.data):
                raise self.bad(at, f"the table ends in node {len(found)} of {count}")
            length = NODE.unpack_from(self.data, at)[1]
            if not NODE.size <= length <= len(self.data) - at:
                raise self.bad(at + 1, f"node {len(found)} has a length of {length}")
            found.append(at)
            at += length
        if at != len(self.data):
            raise self.bad(at, f"{len(self.data) - at} bytes after the last node")
        return found

    def node(self, at: int) -> Node:
        kind, length, revision, identifier, count, offset = NODE.unpack_from(self.data, at)
        self.at, self.end, self.claims = at, at + length, []
        cls = _TYPES.get(kind, RawNode)
        rows = self.array(MAPPING, offset, count, "mapping")
        mappings = tuple(self.mapping(row, at + offset + 20 * n) for n, row in enumerate(rows))
        common = {"identifier": identifier, "revision": revision, "mappings": mappings}
        self.room = offset if count else length
        made = _READERS[cls](self, kind, offset if count else 0)
        self.disjoint()
        return cls(**common, **made)

    def array(
        self, row: struct.Struct, offset: int, count: int, what: str
    ) -> list[tuple[int, ...]]:
        """`count` rows at `offset` of the node."""
        if not count:
            return []
        size = row.size * count
        if offset < NODE.size or offset + size > self.end - self.at:
            length = self.end - self.at
            reason = f"{what} array of {count} at {offset:#x} does not fit in a node of {length:#x}"
            raise self.bad(self.at, reason)
        self.claims.append((offset, offset + size, f"{what} array"))
        return list(row.iter_unpack(self.data[self.at + offset : self.at + offset + size]))

    def fields(self, cls: type[Node]) -> tuple[int, ...]:
        """The fixed fields; those that an older revision does not have yet are 0."""
        begin = self.at + NODE.size
        size = min(self.room - NODE.size, cls.fixed.size)
        if size < cls.least:
            need = NODE.size + cls.least
            raise self.bad(self.at, f"{cls.title} with {self.room} bytes of {need}")
        self.claims.append((NODE.size, NODE.size + size, "fields"))
        raw = self.data[begin : begin + size].ljust(cls.fixed.size, b"\0")
        return cls.fixed.unpack(raw)

    def disjoint(self) -> None:
        for (_, end, first), (start, _, second) in pairwise(sorted(self.claims)):
            if start < end:
                raise self.bad(self.at + start, f"{first} and {second} overlap")

    def reference(self, value: int, at: int, what: str) -> int:
        if value not in self.offsets:
            raise self.bad(at, f"{what} {value:#x} is the offset of no node")
        return self.offsets[value]

    def mapping(self, row: tuple[int, ...], at: int) -> IdMapping:
        first, less, output, target, flags = row
        single = bool(flags & SINGLE)
        for base, what in ((first, "input"), (output, "output")):
            if not single and base + less >= IDS:
                raise self.bad(at, f"{what} ids {base:#x}+{less + 1:#x} leave 32 bits")
        index = self.reference(target, at + 12, "output reference")
        return IdMapping(first, less + 1, output, index, single)

    # The fields of each type, by name. `_` is unused.

    def its(self, _kind: int, _offset: int) -> dict[str, Any]:
        (count,) = self.fields(ItsGroup)
        return {"its": tuple(n for (n,) in self.array(struct.Struct("<I"), 20, count, "ITS"))}

    def component(self, _kind: int, _offset: int) -> dict[str, Any]:
        flags, cca, hints, access, limit = self.fields(NamedComponent)
        begin = self.at + NODE.size + NamedComponent.fixed.size
        nul = self.data.find(b"\0", begin, self.at + self.room)
        name = self.data[begin:nul]
        if nul < 0 or not is_path(name):
            reason = f"the path is not 1 to {PATH} bytes of printable ASCII and a NUL"
            raise self.bad(begin, reason)
        memory = Memory(cca, hints, access)
        return {"flags": flags, "memory": memory, "address_limit": limit, "path": name.decode()}

    def root(self, _kind: int, _offset: int) -> dict[str, Any]:
        cca, hints, access, ats, segment, limit, pasid, flags = self.fields(RootComplex)
        return {
            "memory": Memory(cca, hints, access),
            "ats": ats,
            "segment": segment,
            "address_limit": limit,
            "pasid": pasid,
            "flags": flags,
        }

    def smmu_v2(self, _kind: int, _offset: int) -> dict[str, Any]:
        base, span, model, flags, shared, contexts, first, pmus, pmu = self.fields(SmmuV2)
        pair = struct.Struct("<II")
        return {
            "base": base,
            "span": span,
            "model": model,
            "flags": flags,
            "global_interrupts": tuple(self.array(pair, shared, 2, "global interrupt")),
            "context_interrupts": tuple(self.array(pair, first, contexts, "context interrupt")),
            "pmu_interrupts": tuple(self.array(pair, pmu, pmus, "PMU interrupt")),
        }

    def smmu_v3(self, _kind: int, _offset: int) -> dict[str, Any]:
        return dict(zip(_V3_FIELDS, self.fields(SmmuV3), strict=True))

    def pmcg(self, _kind: int, _offset: int) -> dict[str, Any]:
        page0, gsiv, of, page1 = self.fields(Pmcg)
        index = self.reference(of, self.at + 28, "node reference")
        return {
            "page0": page0,
            "gsiv": gsiv,
            "of": index,
            "page1": page1 if self.room >= 40 else None,
        }

    def reserved(self, _kind: int, _offset: int) -> dict[str, Any]:
        flags, count, offset = self.fields(ReservedMemory)
        rows = self.array(struct.Struct("<QQ4x"), offset, count, "memory range")
        return {"flags": flags, "ranges": tuple(rows)}

    def raw(self, kind: int, offset: int) -> dict[str, Any]:
        data = bytearray(self.data[self.at + NODE.size : self.end])
        for start, end, _ in self.claims:
            data[start - NODE.size : end - NODE.size] = bytes(end - start)
        return {"kind": kind, "data": bytes(data), "mapping_offset": offset}

    # What only the table as a whole tells.

    def check(self, nodes: tuple[Node, ...], starts: list[int]) -> None:
        bases: dict[int, int] = {}
        for node, at in zip(nodes, starts, strict=True):
            self.check_targets(node, nodes, at)
            if isinstance(node, AnySmmu) and bases.setdefault(node.base, at) != at:
                reason = f"base {node.base:#x} is that of the SMMU at {bases[node.base]:#x} too"
                raise self.bad(at, reason)
            if isinstance(node, SmmuV3) and node.flags & DEVICE_ID and node.revision >= 5:
                have = len(node.mappings)
                if node.device_id_mapping >= have:
                    reason = f"DeviceID mapping {node.device_id_mapping} of {have} mappings"
                    raise self.bad(at, reason)
        self.check_cycles(nodes, starts)

    def check_targets(self, node: Node, nodes: tuple[Node, ...], at: int) -> None:
        for mapping in node.mappings:
            target = nodes[mapping.target]
            if not isinstance(target, RawNode) and target.type_id not in node.targets:
                raise self.bad(at, f"{node.title} with a mapping to a {target.title}")
        if isinstance(node, Pmcg) and not isinstance(
            nodes[node.of], AnySmmu | NamedComponent | RootComplex | RawNode
        ):
            raise self.bad(at, f"PMCG of a {nodes[node.of].title}")

    def check_cycles(self, nodes: tuple[Node, ...], starts: list[int]) -> None:
        """Takes away nodes that nothing leads to, until none are left."""
        leads = [{m.target for m in node.mappings} for node in nodes]
        into = [0] * len(nodes)
        for targets in leads:
            for target in targets:
                into[target] += 1
        free = [index for index, count in enumerate(into) if not count]
        while free:
            for target in leads[free.pop()]:
                into[target] -= 1
                if not into[target]:
                    free.append(target)
        left = next((index for index, count in enumerate(into) if count), None)
        if left is not None:
            raise self.bad(starts[left], f"the mappings of node {left} lead in a circle")


_V3_FIELDS = (
    "base", "flags", "vatos", "model", "event", "pri", "gerr", "sync", "proximity",
    "device_id_mapping",
)  # fmt: skip
_READERS: dict[type[Node], Callable[[_Reader, int, int], dict[str, Any]]] = {
    ItsGroup: _Reader.its,
    NamedComponent: _Reader.component,
    RootComplex: _Reader.root,
    SmmuV2: _Reader.smmu_v2,
    SmmuV3: _Reader.smmu_v3,
    Pmcg: _Reader.pmcg,
    ReservedMemory: _Reader.reserved,
    RawNode: _Reader.raw,
}
