# SPDX-License-Identifier: BSD-2-Clause
"""DMA masters: the streams that `iommus` and `iommu-map` give a node, each with its SMMU."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.tree import Cells, Node, status_of
from xl_configs.frozen import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from dt_tools.platform import Smmu

_ID_LIMIT = 1 << 32
# A mask with gaps can cut a row into as many runs as it has ids: a row that would be cut into more
# is told as one run, and so is every row once a master's rows have made so many.
_MAX_RUNS = 32


@frozen
class Stream:
    """One entry of `iommus`. `mask` is the second cell of a two-cell SMMUv2 entry, else 0."""

    smmu_path: str
    stream_id: int
    mask: int = 0


@frozen
class MapRow:
    """One row of `iommu-map`: `length` ids from `rid_base` on become those from `sid_base` on."""

    rid_base: int
    smmu_path: str
    sid_base: int
    length: int
    mask: int = 0


class Reach(NamedTuple):
    """What of a row of `iommu-map` some requester id gets to.

    `runs` are its masked ids as (first, end), `end` exclusive. `behind`: an earlier row has some
    of its ids; `masked`: `iommu-map-mask` leaves some of them out.
    """

    row: MapRow
    runs: tuple[tuple[int, int], ...]
    behind: bool
    masked: bool


@frozen
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

    def reach(self) -> tuple[Reach, ...]:
        """For each of `maps`: which of its ids `map_id` can come to, since the first row decides.

        Of a mask with gaps that cuts a row into more than 32 runs, the gaps are not left out.
        """
        taken: list[tuple[int, int]] = []
        found: list[Reach] = []
        left = _MAX_RUNS
        for row in self.maps:
            span = row.rid_base, row.rid_base + row.length
            free = _take(taken, *span) if row.length else []
            runs = [run for one in free for run in _unmasked(*one, self.map_mask, left)]
            left -= max(len(runs) - len(free), 0)
            behind = row.length > sum(end - first for first, end in free)
            masked = not all(_is_within(*one, self.map_mask) for one in free)
            found.append(Reach(row, tuple(runs), behind, masked))
        return tuple(found)


def _take(taken: list[tuple[int, int]], first: int, end: int) -> list[tuple[int, int]]:
    """The parts of first..end that are in no run of `taken` (sorted, apart), which gets all."""
    low = bisect_left(taken, first, key=lambda run: run[1])
    high = bisect_right(taken, end, key=lambda run: run[0])
    free, at = [], first
    for start, stop in taken[low:high]:
        if start > at:
            free.append((at, start))
        at = max(at, stop)
    if at < end:
        free.append((at, end))
    inside = taken[low:high]
    taken[low:high] = [(min(first, *(r[0] for r in inside)), max(end, *(r[1] for r in inside)))
                       if inside else (first, end)]  # fmt: skip
    return free


def _unmasked(first: int, end: int, mask: int, limit: int) -> list[tuple[int, int]]:
    """Runs of the ids in first..end that have no bit outside `mask`; one run for too many."""
    low = (~mask & (mask + 1)) - 1
    runs: list[tuple[int, int]] = []
    at = _next_within(first, mask)
    while at is not None and at < end:
        if len(runs) == max(limit, 1):
            return [(runs[0][0], end)]
        stop = min(end, (at | low) + 1)
        runs.append((at, stop))
        at = _next_within(stop, mask)
    return runs


def _is_within(first: int, end: int, mask: int) -> bool:
    """Whether no id in first..end has a bit outside `mask`."""
    low = (~mask & (mask + 1)) - 1
    return not first & ~mask and end <= (first | low) + 1


def _next_within(value: int, mask: int) -> int | None:
    """The smallest number from `value` on with no bit outside `mask`; None when there is none."""
    outside = value & ~mask
    if not outside:
        return value
    above = outside.bit_length()
    free = (mask & ~value) >> above << above
    bit = free & -free
    return (value | bit) & -bit if bit else None


def is_master(node: Node) -> bool:
    """Whether the node has `iommus` or `iommu-map`."""
    return "iommus" in node.props or "iommu-map" in node.props


class Masters:
    """Reads `iommus` and `iommu-map`; what is malformed becomes a finding."""

    def __init__(
        self, smmus: dict[Node, Smmu], phandles: dict[int, Node], note: Callable[..., None]
    ) -> None:
        self.smmus = smmus
        self.phandles = phandles
        self.note = note

    def of(self, node: Node) -> Master:
        """The master at a node for which `is_master` holds."""
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
        if not cells or len(cells) < 3:
            size = len(node.props["iommu-map"])
            self.note("DT505", "error", node, f"iommu-map has {size} bytes, not rows of cells")
            return (), mask
        legacy = self._cells_of(cells[1]) == 2 and _is_legacy_map(cells)
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

    def _cells_of(self, phandle: int) -> int | None:
        target = self.phandles.get(phandle)
        smmu = None if target is None else self.smmus.get(target)
        return None if smmu is None else smmu.iommu_cells

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
    """Rows with one output cell although `#iommu-cells` is 2, as older trees have them.

    Recognised like Linux does: four cells a row, one phandle throughout, every length 1.
    """
    return len(cells) % 4 == 0 and set(cells[1::4]) == {cells[1]} and set(cells[3::4]) == {1}
