# SPDX-License-Identifier: BSD-2-Clause
"""The meaning of a host board's tree: SMMUs, DMA masters, StreamIDs, interrupts, register pages.

A StreamID is only ever named together with its SMMU, and a node by its full path: boards repeat
the same StreamID on several SMMUs and the same node name on several buses.

A host tree is untrusted. What is malformed becomes a finding (or a reason, or None) rather than
an error; the one error is `DtbError` when the tree asks for more work than `WORK_LIMIT`.
A `Platform` keeps what it looked up, so the tree must not be changed under it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dt_tools.errors import DtbError, UserError
from dt_tools.tree import Cells, Node, Tree, bus_cells, nearest_path, range_entries, reg_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SMMU_V3 = "arm,smmu-v3"
MMU_500 = "arm,mmu-500"
SMMU_V2 = "arm,smmu-v2"
PMCG = "arm,smmu-v3-pmcg"
OTHER = "other"
_V2_COMPATIBLES = (
    SMMU_V2,
    "arm,smmu-v1",
    "arm,mmu-400",
    "arm,mmu-401",
    "cavium,smmu-v2",
    "qcom,smmu-v2",
)
_GIC_V2 = (
    "arm,gic-400",
    "arm,cortex-a15-gic",
    "arm,cortex-a9-gic",
    "arm,cortex-a7-gic",
    "arm,eb11mp-gic",
    "arm,pl390",
    "arm,tc11mp-gic",
    "qcom,msm-qgic2",
    "nvidia,tegra210-agic",
)
_GIC_V3 = ("arm,gic-v3",)

PAGE = 4096
# Steps of address translation, page search and interrupt mapping for one board, a few seconds'
# worth. A board of 1,481 nodes and 44 masters takes 1,240.
WORK_LIMIT = 500_000
_MAX_HOPS = 64
_MAX_CELLS = 16
_ID_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class Reg:
    """A register range as the CPU sees it, in bytes."""

    cpu_base: int
    size: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """One interrupt of a node.

    `SPI` and `PPI` are the GIC's and have `number`, the GIC id (the first SPI is 32, the first
    PPI 16), and `flags`, the trigger cell. `MSI` goes through a controller that turns it into a
    message; `not-gic` is any other controller's, or cannot be resolved. Both have number 0 and
    a `reason`. `specifier` holds the cells as the last controller sees them.
    """

    kind: Literal["SPI", "PPI", "MSI", "not-gic"]
    number: int
    flags: int
    controller_path: str | None
    reason: str | None = None
    specifier: Cells = ()


@dataclass(frozen=True, slots=True)
class Smmu:
    """An IOMMU node. `kind` is `arm,smmu-v3`, `arm,mmu-500`, `arm,smmu-v2` or `other`.

    `status` is the effective one: a node below a disabled bus is disabled. `base` and `size` are
    the first register range at its CPU address, None when it has none.
    """

    path: str
    compatible: tuple[str, ...]
    kind: str
    status: str
    base: int | None
    size: int | None
    phandle: int | None
    iommu_cells: int
    interrupts: tuple[Interrupt, ...]
    interrupt_names: tuple[str, ...]
    dma_coherent: bool
    node: Node = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Pmcg:
    """A performance monitor of an SMMUv3: not an SMMU, although its compatible starts alike."""

    path: str
    status: str
    base: int | None
    size: int | None


@dataclass(frozen=True, slots=True)
class Stream:
    """One entry of `iommus`. `mask` is the second cell of a two-cell SMMUv2 entry, else 0."""

    smmu_path: str
    stream_id: int
    mask: int = 0


@dataclass(frozen=True, slots=True)
class MapRow:
    """One row of `iommu-map`: `length` ids from `rid_base` on become those from `sid_base` on."""

    rid_base: int
    smmu_path: str
    sid_base: int
    length: int
    mask: int = 0


@dataclass(frozen=True, slots=True)
class Master:
    """A node with `iommus`, with `iommu-map`, or with both; `status` is the effective one."""

    path: str
    status: str
    streams: tuple[Stream, ...]
    maps: tuple[MapRow, ...]
    map_mask: int
    is_pci: bool
    node: Node = field(repr=False, compare=False)

    def map_id(self, rid: int) -> Stream | None:
        """What `iommu-map` makes of a requester id; None when no row has it (it is untranslated).

        The id is masked first; the first row that has it decides.
        """
        masked = rid & self.map_mask
        for row in self.maps:
            if row.rid_base <= masked < row.rid_base + row.length:
                return Stream(row.smmu_path, masked - row.rid_base + row.sid_base, row.mask)
        return None


@dataclass(frozen=True, slots=True)
class Gic:
    """The root interrupt controller; `version` is 2 or 3."""

    path: str
    version: int
    node: Node = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the tree worth telling; `severity` is `error`, `warning` or `note`."""

    rule: str
    severity: str
    path: str
    text: str


def status_of(node: Node) -> str:
    """The effective status: the node's own unless `okay`, else the nearest one above that is not.

    Nothing below a bus that is not okay is probed, so its children are not either.
    """
    for one in (node, *node.ancestors()):
        if one.status != "okay":
            return one.status
    return "okay"


class _Work:
    """Counts steps over one tree, so that no tree can ask for unbounded work."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.left = WORK_LIMIT

    def spend(self, steps: int, node: Node) -> None:
        self.left -= steps
        if self.left < 0:
            reason = f"resolving addresses and interrupts takes more than {WORK_LIMIT} steps"
            raise DtbError(self.source, reason, path=node.path)


class _Addresses:
    """Registers at CPU addresses, and who else has some in the same 4 KiB pages."""

    def __init__(self, tree: Tree, work: _Work) -> None:
        self.tree = tree
        self.work = work
        self.ranges: dict[Node, tuple[tuple[int, int, int], ...] | None] = {}
        self.regs: dict[Node, tuple[Reg, ...] | None] = {}
        self.spans: list[tuple[int, int, Node]] | None = None
        self.highest: list[int] = []

    def reg(self, node: Node) -> tuple[Reg, ...] | None:
        if node not in self.regs:
            self.regs[node] = self._reg(node)
        return self.regs[node]

    def _reg(self, node: Node) -> tuple[Reg, ...] | None:
        entries = reg_entries(node)
        bus = node.parent
        if entries is None or not entries or bus is None:
            return None if entries is None else ()
        if not (bus_cells(bus) or (0, 0))[1]:
            return None  # without sizes it is a chip select or a CPU number, not memory
        found = []
        for base, size in entries:
            cpu_base = self._translate(bus, base, size)
            if cpu_base is None:
                return None
            found.append(Reg(cpu_base, size))
        return tuple(found)

    def _translate(self, bus: Node, base: int, size: int) -> int | None:
        while bus.parent is not None:
            if bus not in self.ranges:
                self.ranges[bus] = range_entries(bus)
            rows = self.ranges[bus]
            if rows is None:
                return None
            self.work.spend(len(rows) + 1, bus)
            for child, parent, length in rows:
                if child <= base and base + size <= child + length:
                    base += parent - child
                    break
            else:
                if rows:
                    return None
            bus = bus.parent
        return base if base + size <= 1 << 64 else None

    def neighbours(self, node: Node, limit: int) -> tuple[str, ...]:
        if self.spans is None:
            self._index()
        found: dict[str, None] = {}
        for reg in self.reg(node) or ():
            first, last = _pages(reg)
            for other in self._overlapping(first, last):
                if not _goes_along(node, other):
                    found.setdefault(other.path)
                if len(found) == limit:
                    return tuple(found)
        return tuple(sorted(found))

    def _index(self) -> None:
        """All register pages, ordered by first page; over them a tree of the highest last page."""
        spans = [
            (*_pages(reg), node)
            for node in self.tree.walk()
            if "reg" in node.props and not _is_memory(node)
            for reg in self.reg(node) or ()
        ]
        spans.sort(key=lambda span: span[:2])
        leaves = 1 << max(len(spans) - 1, 0).bit_length()
        highest = [-1] * leaves + [last for _, last, _ in spans] + [-1] * (leaves - len(spans))
        for i in range(leaves - 1, 0, -1):
            highest[i] = max(highest[2 * i], highest[2 * i + 1])
        self.spans, self.highest = spans, highest

    def _overlapping(self, first: int, last: int) -> Iterator[Node]:
        spans = self.spans or []
        leaves = len(self.highest) // 2
        stack = [(1, 0, leaves)]
        while stack:
            at, low, high = stack.pop()
            if self.highest[at] < first or low >= len(spans) or spans[low][0] > last:
                continue
            self.work.spend(1, spans[low][2])
            if high - low == 1:
                yield spans[low][2]
                continue
            middle = (low + high) // 2
            stack += [(2 * at + 1, middle, high), (2 * at, low, middle)]


def _pages(reg: Reg) -> tuple[int, int]:
    return reg.cpu_base // PAGE, (reg.cpu_base + max(reg.size, 1) - 1) // PAGE


def _is_memory(node: Node) -> bool:
    top = node
    for parent in node.ancestors():
        if parent.parent is not None:
            top = parent
    return top.name == "reserved-memory" or node.string("device_type") == "memory"


def _goes_along(node: Node, other: Node) -> bool:
    """Whether `other` is the node itself, a part of it, or only the bus it sits on."""
    if other is node or any(parent is node for parent in other.ancestors()):
        return True
    bus = other.is_compatible("simple-bus") or other.is_compatible("simple-pm-bus")
    return bus and any(parent is other for parent in node.ancestors())


class _Interrupts:
    """From a node's specifiers to the controller that takes them (specification v0.4 §2.4)."""

    def __init__(self, phandles: dict[int, Node], gic: Gic | None, work: _Work) -> None:
        self.phandles = phandles
        self.gic = gic
        self.work = work
        self.maps: dict[Node, Cells] = {}

    def of(self, node: Node) -> tuple[Interrupt, ...]:
        if "interrupts-extended" in node.props:
            return tuple(self._extended(node))
        if "interrupts" in node.props:
            return tuple(self._plain(node))
        return ()

    def _extended(self, node: Node) -> Iterator[Interrupt]:
        cells = node.cells("interrupts-extended")
        if cells is None:
            yield _unresolved(None, "interrupts-extended is not a whole number of cells")
            return
        at = 0
        while at < len(cells):
            controller = self.phandles.get(cells[at])
            count = None if controller is None else _cell_count(controller, "#interrupt-cells")
            if controller is None or count is None or at + 1 + count > len(cells):
                yield _unresolved(controller, _extended_reason(cells, at, controller, count))
                return
            yield self._resolve(node, controller, cells[at + 1 : at + 1 + count])
            at += 1 + count

    def _plain(self, node: Node) -> Iterator[Interrupt]:
        cells = node.cells("interrupts")
        controller = self._parent(node)
        if controller is None:
            yield _unresolved(None, "no interrupt parent")
            return
        count = _cell_count(controller, "#interrupt-cells")
        if cells is None or not count or len(cells) % count:
            size = len(node.props["interrupts"])
            reason = f"interrupts has {size} bytes, not specifiers of {count} cells"
            yield _unresolved(controller, reason)
            return
        for at in range(0, len(cells), count):
            yield self._resolve(node, controller, cells[at : at + count])

    def _parent(self, start: Node) -> Node | None:
        """The nearest interrupt-parent, or the nearest node above that is a controller."""
        node: Node | None = start
        for _ in range(_MAX_HOPS):
            if node is None:
                return None
            phandle = node.u32("interrupt-parent")
            node = node.parent if phandle is None else self.phandles.get(phandle)
            if node is not None and "#interrupt-cells" in node.props:
                return node
        return None

    def _resolve(self, node: Node, controller: Node, spec: Cells) -> Interrupt:
        """Follow interrupt-maps from `controller` to the one that has none."""
        address = node.cells("reg") or ()
        for _ in range(_MAX_HOPS):
            # Controllers that have both use the map for themselves, in ways of their own.
            if "interrupt-map" not in controller.props or _is_controller(controller):
                return self._classify(controller, spec)
            step = self._map(controller, address, spec)
            if step is None:
                return _unresolved(controller, "interrupt-map has no row for it", spec)
            controller, address, spec = step
        return _unresolved(controller, "interrupt-maps in a circle", spec)

    def _map(self, nexus: Node, address: Cells, spec: Cells) -> tuple[Node, Cells, Cells] | None:
        if nexus not in self.maps:
            self.maps[nexus] = nexus.cells("interrupt-map") or ()
        cells = self.maps[nexus]
        width = _nexus_address_cells(nexus)
        count = _cell_count(nexus, "#interrupt-cells")
        if width is None or count is None:
            return None
        key = (address + (0,) * width)[:width] + spec
        mask = nexus.cells("interrupt-map-mask") or (0xFFFFFFFF,) * len(key)
        at = 0
        while at + len(key) < len(cells):
            self.work.spend(len(key), nexus)
            parent = self.phandles.get(cells[at + len(key)])
            sizes = None if parent is None else _row_sizes(parent)
            if parent is None or sizes is None or len(mask) != len(key):
                return None
            end = at + len(key) + 1 + sum(sizes)
            if end > len(cells):
                return None
            row = zip(key, cells[at : at + len(key)], mask, strict=True)
            if all((have ^ want) & bits == 0 for have, want, bits in row):
                middle = end - sizes[1]
                return parent, cells[middle - sizes[0] : middle], cells[middle:end]
            at = end
        return None

    def _classify(self, controller: Node, spec: Cells) -> Interrupt:
        if self.gic is not None and controller is self.gic.node:
            return _gic_interrupt(self.gic, spec)
        if "msi-parent" in controller.props:
            reason = "its controller turns it into a message (msi-parent)"
            return Interrupt("MSI", 0, 0, controller.path, reason, spec)
        what = controller.string("compatible") or "no compatible"
        return _unresolved(controller, f"its controller ({what}) is not the GIC", spec)


def _unresolved(controller: Node | None, reason: str, spec: Cells = ()) -> Interrupt:
    path = None if controller is None else controller.path
    return Interrupt("not-gic", 0, 0, path, reason, spec)


def _extended_reason(cells: Cells, at: int, controller: Node | None, count: int | None) -> str:
    if controller is None:
        return f"interrupts-extended names <{cells[at]:#x}>, which is no node's phandle"
    if count is None:
        return f"interrupts-extended names {controller.path}, which has no #interrupt-cells"
    return f"interrupts-extended ends in {len(cells) - at - 1} cells, {count} needed"


def _cell_count(node: Node, prop: str) -> int | None:
    count = node.u32(prop)
    return count if count is not None and count <= _MAX_CELLS else None


def _is_controller(node: Node) -> bool:
    return "interrupt-controller" in node.props


def _nexus_address_cells(nexus: Node) -> int | None:
    """`#address-cells` of the nexus or of the nearest node above that has one, as Linux reads."""
    for node in (nexus, *nexus.ancestors()):
        if "#address-cells" in node.props:
            return _cell_count(node, "#address-cells")
    return 2


def _row_sizes(parent: Node) -> tuple[int, int] | None:
    """Cells of (address, specifier) that an interrupt-map row has for `parent`."""
    address = 0
    if "#address-cells" in parent.props:
        address = _cell_count(parent, "#address-cells") or 0
    count = _cell_count(parent, "#interrupt-cells")
    return None if count is None else (address, count)


def _gic_interrupt(gic: Gic, spec: Cells) -> Interrupt:
    """A GIC specifier: type, number, trigger flags, and on GICv3 perhaps more cells."""
    if len(spec) < 3:
        reason = f"the GIC's specifiers have 3 cells or more, not {len(spec)}"
        return Interrupt("not-gic", 0, 0, gic.path, reason, spec)
    kind, number, flags = spec[:3]
    if kind == 0 and number < 988:
        return Interrupt("SPI", number + 32, flags, gic.path, None, spec)
    if kind == 1 and number < 16:
        return Interrupt("PPI", number + 16, flags, gic.path, None, spec)
    names = {0: "SPI", 1: "PPI", 2: "extended SPI", 3: "extended PPI"}
    reason = f"{names.get(kind, f'type {kind}')} {number} has no GIC id below 1020"
    return Interrupt("not-gic", 0, 0, gic.path, reason, spec)


class _Masters:
    """Reads `iommus` and `iommu-map`; what is malformed becomes a finding."""

    def __init__(
        self, smmus: dict[Node, Smmu], phandles: dict[int, Node], note: Callable[..., None]
    ) -> None:
        self.smmus = smmus
        self.phandles = phandles
        self.note = note

    def of(self, node: Node) -> Master:
        maps, mask = self._maps(node) if "iommu-map" in node.props else ((), 0xFFFFFFFF)
        streams = self._streams(node) if "iommus" in node.props else ()
        is_pci = node.string("device_type") in ("pci", "pciex")
        return Master(node.path, status_of(node), streams, maps, mask, is_pci, node)

    def _target(self, node: Node, prop: str, phandle: int) -> Smmu | None:
        target = self.phandles.get(phandle)
        smmu = None if target is None else self.smmus.get(target)
        if smmu is None:
            what = "no node's phandle" if target is None else f"{target.path}, not an IOMMU"
            self.note("DT401", "error", node, f"{prop}: <{phandle:#x}> is {what}")
        return smmu

    def _streams(self, node: Node) -> tuple[Stream, ...]:
        cells = node.cells("iommus")
        if not cells:
            size = len(node.props["iommus"])
            self.note("DT405", "error", node, f"iommus has {size} bytes, not <phandle ids> cells")
            return ()
        found: list[Stream] = []
        at = 0
        while at < len(cells):
            smmu = self._target(node, "iommus", cells[at])
            if smmu is None:
                break
            end = at + 1 + smmu.iommu_cells
            ids = cells[at + 1 : end]
            if end > len(cells):
                text = f"iommus: {smmu.path} takes {smmu.iommu_cells} cells, {len(ids)} left"
                self.note("DT405", "error", node, text)
                break
            found.append(Stream(smmu.path, ids[0] if ids else 0, ids[1] if len(ids) > 1 else 0))
            at = end
        return tuple(found)

    def _maps(self, node: Node) -> tuple[tuple[MapRow, ...], int]:
        cells = node.cells("iommu-map")
        mask = node.u32("iommu-map-mask")
        if "iommu-map-mask" in node.props and mask is None:
            self.note("DT505", "error", node, "iommu-map-mask is not one cell")
        mask = 0xFFFFFFFF if mask is None else mask
        if not cells or len(cells) < 4:
            size = len(node.props["iommu-map"])
            self.note("DT505", "error", node, f"iommu-map has {size} bytes, not rows of cells")
            return (), mask
        one_cell = _is_legacy_map(cells) or not self._fits(cells, legacy=False)
        legacy = one_cell and self._fits(cells, legacy=True)
        rows: list[MapRow] = []
        at = 0
        while at < len(cells):
            width = self._row_width(node, cells, at, legacy)
            row = width and self._row(node, cells[at : at + width], mask)
            if not width or not row:
                break
            rows.append(row)
            at += width
        return tuple(rows), mask

    def _width(self, phandle: int, legacy: bool) -> int | None:
        target = self.phandles.get(phandle)
        smmu = None if target is None else self.smmus.get(target)
        return None if smmu is None else 4 if legacy else 3 + smmu.iommu_cells

    def _fits(self, cells: Cells, legacy: bool) -> bool:
        """Whether the whole map divides into rows that name IOMMUs."""
        at = 0
        while at + 1 < len(cells):
            width = self._width(cells[at + 1], legacy)
            if width is None:
                return False
            at += width
        return at == len(cells)

    def _row_width(self, node: Node, cells: Cells, at: int, legacy: bool) -> int | None:
        """Cells of the row at `at`; None after a finding.

        Rows behind a bad one are not read: a lookup that gets that far fails.
        """
        if at + 1 == len(cells):
            self.note("DT505", "error", node, "iommu-map ends within a row")
            return None
        smmu = self._target(node, "iommu-map", cells[at + 1])
        if smmu is None:
            return None
        width = 4 if legacy else 3 + smmu.iommu_cells
        left = len(cells) - at
        if left < width:
            text = f"iommu-map: a row for {smmu.path} takes {width} cells, {left} left"
            self.note("DT505", "error", node, text)
            return None
        return width

    def _row(self, node: Node, row: Cells, mask: int) -> MapRow | None:
        """One row of cells, whose phandle has been checked; None after a finding."""
        rid, phandle, *ids, length = row
        sid = ids[0] if ids else 0
        text = None
        if rid & ~mask:
            text = f"iommu-map: id base {rid:#x} has bits outside iommu-map-mask {mask:#x}"
        elif len(ids) > 1 and length > 1:
            text = f"iommu-map: a row of {length} ids cannot have {len(ids)} output cells"
        elif sid + length > _ID_LIMIT or rid + length > _ID_LIMIT:
            text = f"iommu-map: row {rid:#x}+{length:#x} to {sid:#x} leaves 32 bits"
        if text is not None:
            self.note("DT505", "error", node, text)
            return None
        path = self.smmus[self.phandles[phandle]].path
        return MapRow(rid, path, sid, length, ids[1] if len(ids) > 1 else 0)


def _is_legacy_map(cells: Cells) -> bool:
    """Rows with one output cell whatever `#iommu-cells` says, as older trees have them.

    Recognised like Linux does: four cells a row, one phandle throughout, every length 1.
    """
    return len(cells) % 4 == 0 and set(cells[1::4]) == {cells[1]} and set(cells[3::4]) == {1}


class Platform:
    """A host board. Make one with `from_tree`.

    Attributes:
        tree: the host tree; `source` its name for messages.
        smmus: every IOMMU in blob order, disabled ones and other kinds included.
        pmcgs: SMMUv3 performance monitors.
        masters: every node with `iommus` or `iommu-map`, in blob order.
        gic: the root GIC, None when the tree has none.
        findings: what is wrong in the tree's phandles, `iommus` and `iommu-map`.
    """

    def __init__(self, tree: Tree, source: str) -> None:
        self.tree = tree
        self.source = source
        self._found: list[Finding] = []
        self._phandles = tree.phandles()
        work = _Work(source)
        self._addresses = _Addresses(tree, work)
        self.gic = _find_gic(tree, self._phandles)
        self._interrupts = _Interrupts(self._phandles, self.gic, work)
        smmus = {node: self._smmu(node) for node in tree.walk() if _is_iommu(node)}
        self.smmus = tuple(smmus.values())
        self.pmcgs = tuple(self._pmcg(n) for n in tree.walk() if n.is_compatible(PMCG))
        reader = _Masters(smmus, self._phandles, self._note)
        self.masters = tuple(reader.of(node) for node in tree.walk() if _is_master(node))
        self._check_phandles()
        self.findings = tuple(self._found)

    @classmethod
    def from_tree(cls, tree: Tree, source: str = "dtb") -> Platform:
        """Read the board.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return cls(tree, source)

    def reg_of(self, node: Node) -> tuple[Reg, ...] | None:
        """The node's registers at CPU addresses, through every `ranges` up to the root.

        Empty without `reg`. None when an entry does not translate (a bus without `ranges`, no row
        that has all of it, sizes absent) or `reg` is malformed.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return self._addresses.reg(node)

    def interrupts_of(self, node: Node) -> tuple[Interrupt, ...]:
        """The node's interrupts in order, `interrupts-extended` before `interrupts`.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return self._interrupts.of(node)

    def page_neighbours(self, node: Node, limit: int = 64) -> tuple[str, ...]:
        """Full paths, sorted, of other devices with registers in the same 4 KiB pages.

        Whatever their status, since hardware that is off or reserved is there all the same. Not
        counted: the node's own descendants, a simple-bus above it, memory and reserved memory.
        At most `limit` are looked for.

        Raises:
            DtbError: the tree asks for more work than `WORK_LIMIT`.
        """
        return self._addresses.neighbours(node, limit)

    def resolve(self, path: str) -> Node:
        """The node at an absolute host path, unit addresses included.

        Raises:
            UserError: there is none; the hint is the nearest path that exists.
        """
        node = self.tree.node(path)
        if node is not None:
            return node
        shown = ascii(path)[1:-1]
        shown = shown if len(shown) <= 200 else shown[:200] + "..."
        reason = "no such node" if path.startswith("/") else "not an absolute path"
        nearest = nearest_path(self.tree, path)
        hint = None if nearest is None else f"nearest: {nearest}"
        raise UserError(self.source, shown or "''", reason, hint)

    def _note(self, rule: str, severity: str, node: Node, text: str) -> None:
        self._found.append(Finding(rule, severity, node.path, text))

    def _first_reg(self, node: Node) -> tuple[int | None, int | None]:
        regs = self.reg_of(node)
        return (regs[0].cpu_base, regs[0].size) if regs else (None, None)

    def _smmu(self, node: Node) -> Smmu:
        compatible = node.strings("compatible") or ()
        base, size = self._first_reg(node)
        cells = _cell_count(node, "#iommu-cells")
        if cells is None:
            cells = 1
            self._note("DT406", "warning", node, "no valid #iommu-cells; 1 is assumed")
        return Smmu(
            path=node.path,
            compatible=compatible,
            kind=_kind(compatible),
            status=status_of(node),
            base=base,
            size=size,
            phandle=node.phandle,
            iommu_cells=cells,
            interrupts=self.interrupts_of(node),
            interrupt_names=node.strings("interrupt-names") or (),
            dma_coherent="dma-coherent" in node.props,
            node=node,
        )

    def _pmcg(self, node: Node) -> Pmcg:
        return Pmcg(node.path, status_of(node), *self._first_reg(node))

    def _check_phandles(self) -> None:
        for node in self.tree.walk():
            value = node.phandle
            first = None if value is None else self._phandles.get(value)
            if value is not None and first is not None and first is not node:
                self._note("DT403", "error", node, f"phandle {value:#x} is {first.path}'s too")


def _kind(compatible: Iterable[str]) -> str:
    names = set(compatible)
    if SMMU_V3 in names:
        return SMMU_V3
    if MMU_500 in names:
        return MMU_500
    return SMMU_V2 if names.intersection(_V2_COMPATIBLES) else OTHER


def _is_iommu(node: Node) -> bool:
    if node.is_compatible(PMCG):
        return False
    return "#iommu-cells" in node.props or _kind(node.strings("compatible") or ()) != OTHER


def _is_master(node: Node) -> bool:
    return "iommus" in node.props or "iommu-map" in node.props


def _find_gic(tree: Tree, phandles: dict[int, Node]) -> Gic | None:
    """The GIC that the root's interrupt-parent names, else the first enabled one."""
    gics = {node: gic for node in tree.walk() if (gic := _as_gic(node)) is not None}
    root = phandles.get(tree.root.u32("interrupt-parent") or 0)
    if root in gics:
        return gics[root]
    return next((gic for node, gic in gics.items() if status_of(node) == "okay"), None)


def _as_gic(node: Node) -> Gic | None:
    names = node.strings("compatible") or ()
    for version, known in ((3, _GIC_V3), (2, _GIC_V2)):
        if any(name in known for name in names):
            return Gic(node.path, version, node)
    return None
