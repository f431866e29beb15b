# SPDX-License-Identifier: BSD-2-Clause
"""ACPI's IO Remapping Table (IORT): SMMUs, masters, StreamIDs; read, resolved, written.

Layout: Arm DEN 0049, table revisions 0 to 6 (6 is that of issue E.e). `read` gives the nodes as
the table has them, with references turned into indices of `Iort.nodes`, and the same view of
SMMUs, masters, streams and id maps that a device tree gets. A node of a type above 6 is kept as
its bytes (`RawNode`). Reserved bytes and padding are not kept, so a table that is read and written
again can differ from the first in those, never in a field.

An SMMU's key is `SmmuV3.name` (or `SmmuV2.name`), made from its base: a table with two SMMUs at
one base is not accepted. A StreamID is only ever given together with that name.

Limits: the registers, interrupts and `_CCA` of masters are in the DSDT, which is not read. A path
of the namespace is checked for its characters only.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from dt_tools.iort.layout import COHACC, IDS, MAX_REVISION, PROXIMITY
from dt_tools.masters import MapRow, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class IdMapping:
    """`count` ids from `input_base` on become those from `output_base` on, at node `target`.

    `count` is the number of ids (the table has one less). With `single` the input is ignored and
    the output is `output_base`. `target` is an index of `Iort.nodes`.
    """

    input_base: int
    count: int
    output_base: int
    target: int
    single: bool = False

    @property
    def last(self) -> int:
        """The last input id."""
        return self.input_base + self.count - 1

    def output(self, value: int) -> int:
        """What an id that the mapping has becomes."""
        return self.output_base + (0 if self.single else value - self.input_base)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory access properties: `cca` 1 for coherent; `flags` bit 0 CPM, 1 DACS, 2 CANWBS."""

    cca: int = 0
    hints: int = 0
    flags: int = 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """What every node has. `fixed` is the layout of its fields from byte 16 on."""

    identifier: int = 0
    revision: int = 0
    mappings: tuple[IdMapping, ...] = ()

    type_id: ClassVar[int]
    title: ClassVar[str]
    fixed: ClassVar[struct.Struct] = struct.Struct("")
    # Bytes of `fixed` that the first revision of the node has.
    least: ClassVar[int]
    # Types of nodes that mappings may lead to, beside unknown ones.
    targets: ClassVar[frozenset[int]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ItsGroup(Node):
    """Type 0: `its` are the ids that the MADT gives the ITSs."""

    type_id, title, fixed, least = 0, "ITS group", struct.Struct("<I"), 4

    its: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NamedComponent(Node):
    """Type 1: a device at `path` of the ACPI namespace.

    `flags` bit 0: stall supported; bits 5:1: PASID bits. `address_limit` is in bits.
    """

    type_id, title, fixed, least = 1, "named component", struct.Struct("<IIB2xBB"), 13
    targets = frozenset((0, 3, 4))

    path: str
    flags: int = 0
    memory: Memory = Memory()
    address_limit: int = 0


@dataclass(frozen=True, kw_only=True)
class RootComplex(Node):
    """Type 2: a PCI root complex. `ats` bit 0 ATS, 1 PRI, 2 PASID; `flags` bit 0 PASID."""

    type_id, title, fixed, least = 2, "root complex", struct.Struct("<IB2xBIIBHxI"), 16
    targets = frozenset((0, 3, 4))

    segment: int
    memory: Memory = Memory()
    ats: int = 0
    address_limit: int = 0
    pasid: int = 0
    flags: int = 0


@dataclass(frozen=True, kw_only=True)
class SmmuV2(Node):
    """Type 3: an SMMUv1 or v2. Interrupts are (GSIV, flags); `global_interrupts` has two."""

    type_id, title, fixed, least = 3, "SMMUv1/v2", struct.Struct("<QQIIIIIII"), 44
    targets = frozenset((0,))

    base: int
    span: int = 0
    model: int = 0
    flags: int = 0
    global_interrupts: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    context_interrupts: tuple[tuple[int, int], ...] = ()
    pmu_interrupts: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """The key of this SMMU."""
        return f"SMMUv2@{self.base:#x}"

    @property
    def coherent(self) -> bool:
        """Whether table walks are coherent."""
        return bool(self.flags & 2)


@dataclass(frozen=True, kw_only=True)
class SmmuV3(Node):
    """Type 4. A GSIV of 0 is none; `proximity` and `device_id_mapping` count as `flags` tells.

    `model` 0 generic, 1 HiSilicon hi161x, 2 Cavium CN99xx.
    """

    type_id, title, fixed, least = 4, "SMMUv3", struct.Struct("<QI4xQIIIIIII"), 44
    targets = frozenset((0,))

    base: int
    flags: int = 0
    vatos: int = 0
    model: int = 0
    event: int = 0
    pri: int = 0
    gerr: int = 0
    sync: int = 0
    proximity: int = 0
    device_id_mapping: int = 0

    @property
    def name(self) -> str:
        """The key of this SMMU."""
        return f"SMMUv3@{self.base:#x}"

    @property
    def coherent(self) -> bool:
        """Whether table walks are coherent, whatever IDR0 says."""
        return bool(self.flags & COHACC)

    @property
    def proximity_domain(self) -> int | None:
        """The proximity domain; None when the flag does not make it valid."""
        return self.proximity if self.flags & PROXIMITY else None

    @property
    def gsivs(self) -> tuple[int, ...]:
        """The wired interrupts it has: event, pri, gerr, sync."""
        return tuple(gsiv for gsiv in (self.event, self.pri, self.gerr, self.sync) if gsiv)


@dataclass(frozen=True, kw_only=True)
class Pmcg(Node):
    """Type 5: a performance monitor of node `of`. `page1` is None before revision 1."""

    type_id, title, fixed, least = 5, "PMCG", struct.Struct("<QIIQ"), 16
    targets = frozenset((0,))

    page0: int
    of: int
    gsiv: int = 0
    page1: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReservedMemory(Node):
    """Type 6 (RMR): `ranges` (base, bytes) that the mapped StreamIDs use at all times."""

    type_id, title, fixed, least = 6, "RMR", struct.Struct("<III"), 12
    targets = frozenset((3, 4))

    flags: int = 0
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RawNode(Node):
    """A node of another type: its bytes from 16 on, those of the mapping array zero.

    `mapping_offset` is from the node's start; 0 without mappings.
    """

    title, least = "node of unknown type", 0
    targets = frozenset(range(256))

    kind: int
    data: bytes = b""
    mapping_offset: int = 0


AnySmmu = SmmuV2 | SmmuV3
_TYPES: dict[int, type[Node]] = {
    cls.type_id: cls
    for cls in (ItsGroup, NamedComponent, RootComplex, SmmuV2, SmmuV3, Pmcg, ReservedMemory)
}


@dataclass(frozen=True, slots=True)
class IortMaster:
    """A named component or a root complex, as a device tree's master: `index` is its node.

    `name` is the ACPI path, or `pci:SSSS` with the segment in hex, which several root complexes
    can share. `streams` are its single mappings to SMMUs, `maps` what becomes of ids, disjoint and
    ascending. An id in no row is not translated by an SMMU, or goes by a node of unknown type,
    which `Iort.resolve` follows.
    """

    index: int
    name: str
    is_pci: bool
    segment: int | None
    streams: tuple[Stream, ...]
    maps: tuple[MapRow, ...]


class _Pieces:
    """Who has which input ids of one node: ranges without overlap, ascending.

    The first mapping in table order that has an id decides, with one exception, as in Linux: an
    id that is the last of several there and the first of a later mapping belongs to the later.
    Firmware (QEMU 7.2's too) puts the number of ids where the table has one less.
    """

    def __init__(self, mappings: Sequence[IdMapping]) -> None:
        spans = [(0, IDS - 1) if m.single else (m.input_base, m.last) for m in mappings]
        begins: dict[int, list[int]] = {}
        for at, (first, _) in enumerate(spans):
            begins.setdefault(first, []).append(at)
        singles = [at for at, m in enumerate(mappings) if m.single]
        self.firsts: list[int] = []
        self.rows: list[tuple[int, IdMapping]] = []
        lasts = {last for _, last in spans}
        cuts = sorted({*begins, *lasts, *(last + 1 for last in lasts)})
        active: list[int] = []
        for first, end in pairwise(cuts):
            for at in begins.get(first, ()):
                heappush(active, at)
            while active and spans[active[0]][1] < first:
                heappop(active)
            if active:
                at = active[0]
                mapping = mappings[at]
                if first == mapping.last and mapping.count > 1 and not mapping.single:
                    later = [above(begins.get(first, []), at), above(singles, at)]
                    at = min((n for n in later if n is not None), default=at)
                self._add(first, end - 1, mappings[at])

    def _add(self, first: int, last: int, mapping: IdMapping) -> None:
        if self.rows and self.rows[-1][1] is mapping and self.rows[-1][0] + 1 == first:
            self.rows[-1] = (last, mapping)
        else:
            self.firsts.append(first)
            self.rows.append((last, mapping))

    def find(self, value: int) -> IdMapping | None:
        """The mapping that decides about an id; None when no mapping has it."""
        at = bisect_right(self.firsts, value) - 1
        return self.rows[at][1] if at >= 0 and value <= self.rows[at][0] else None


def above(ascending: list[int], least: int) -> int | None:
    """The first of ascending numbers that is greater than `least`."""
    at = bisect_right(ascending, least)
    return ascending[at] if at < len(ascending) else None


@dataclass(frozen=True)
class Iort:
    """A table. `oem_id` has 6 bytes, `oem_table_id` 8, `creator_id` 4."""

    nodes: tuple[Node, ...]
    revision: int = MAX_REVISION
    oem_id: bytes = b"VSMMU "
    oem_table_id: bytes = b"VSMMU   "
    oem_revision: int = 1
    creator_id: bytes = b"VSMM"
    creator_revision: int = 1
    _pieces: dict[int, _Pieces] = field(init=False, repr=False, compare=False, default_factory=dict)

    @cached_property
    def smmus(self) -> tuple[AnySmmu, ...]:
        """Every SMMU, in table order."""
        return tuple(node for node in self.nodes if isinstance(node, AnySmmu))

    @cached_property
    def masters(self) -> tuple[IortMaster, ...]:
        """Every named component and root complex, in table order."""
        return tuple(
            self._master(index, node)
            for index, node in enumerate(self.nodes)
            if isinstance(node, NamedComponent | RootComplex)
        )

    def resolve(self, index: int, requester: int) -> Stream | None:
        """The SMMU and StreamID of an id that node `index` puts out.

        For a root complex the id is the requester id; a named component's ids are its own, and
        count for nothing where the mapping is single. None when no SMMU translates it.
        """
        value = requester
        for _ in self.nodes:
            mapping = self._lookup(index).find(value)
            if mapping is None:
                return None
            value, index = mapping.output(value), mapping.target
            node = self.nodes[index]
            if isinstance(node, AnySmmu):
                return Stream(node.name, value)
        return None

    def _lookup(self, index: int) -> _Pieces:
        if index not in self._pieces:
            self._pieces[index] = _Pieces(self.nodes[index].mappings)
        return self._pieces[index]

    def _master(self, index: int, node: NamedComponent | RootComplex) -> IortMaster:
        pieces = self._lookup(index)
        rows = []
        for first, (last, mapping) in zip(pieces.firsts, pieces.rows, strict=True):
            target = self.nodes[mapping.target]
            if isinstance(target, AnySmmu) and not mapping.single:
                rows.append(MapRow(first, target.name, mapping.output(first), last - first + 1))
        single = ((m.output_base, self.nodes[m.target]) for m in node.mappings if m.single)
        streams = tuple(Stream(to.name, sid) for sid, to in single if isinstance(to, AnySmmu))
        segment = node.segment if isinstance(node, RootComplex) else None
        name = node.path if isinstance(node, NamedComponent) else f"pci:{node.segment:04x}"
        return IortMaster(index, name, segment is not None, segment, streams, tuple(rows))
