# SPDX-License-Identifier: BSD-2-Clause
"""`iommu-map` of a hand-written node: rows of the host's StreamIDs become rows of vMasterIDs.

Only requester ids that the rows and `iommu-map-mask` can come to count; each of their StreamIDs has
to be the guest's, and in the iommu-map of the host's bus when the node stands for one. A row whose
vMasterIDs are not in one run becomes several; the mask stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dt_tools.errors import Refusal
from dt_tools.masters import Masters
from dt_tools.merge_streams import NAME_SMMU, is_arm_smmu, pieces, runs
from dt_tools.tree import Node
from xl_configs.frozen import replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from dt_tools.masters import MapRow, Master
    from dt_tools.merge_claims import Claims
    from dt_tools.merge_streams import Run, Streams
    from dt_tools.platform import Smmu

# Rows of all maps of one tree; a tree of 1 MiB, the most that libxl makes, has room for as many.
MAX_ROWS = 1 << 16
_UNCLEAR = ""


class Mapped(NamedTuple):
    """A rewritten map: its (SMMU, vMasterID) in order, each once; rows that had no id to give."""

    ids: tuple[tuple[str, int], ...]
    empty: int


class Maps:
    """Rewrites the iommu-maps of one tree; `phandle_of` gives the vSMMU of an SMMU."""

    def __init__(self, streams: Streams, claims: Claims, phandle_of: Callable[[str], int]) -> None:
        self.streams = streams
        self.claims = claims
        self.phandle_of = phandle_of
        self.bound = runs(streams.bindings)
        self.left = MAX_ROWS

    def rewrite(self, node: Node) -> Mapped:
        """Make the rows of the node's iommu-map rows of vMasterIDs.

        Raises:
            Refusal: DT505, DT540 or DT542.
        """
        bridge = self.claims.bridge(node)
        master = self._read(node, bridge)
        own = None if bridge is None else _spans(bridge)
        cells: list[int] = []
        ids: dict[tuple[str, int], None] = {}
        empty = 0
        for row, reached, _, _ in master.reach():
            empty += not reached
            for first, end in reached:
                for rid, vid, length in self._row(node, row, (first, end), master, own):
                    self.left -= 1
                    if self.left < 0:
                        reason = f"iommu-map: the tree would have more than {MAX_ROWS} rows"
                        raise Refusal("DT505", node.path, reason, "cut the map to fewer rows")
                    cells += (rid, self.phandle_of(row.smmu_path), vid, length)
                    ids.update(((row.smmu_path, vid + at), None) for at in range(length))
        if not cells:
            reason = "iommu-map: no row has a requester id"
            raise Refusal("DT505", node.path, reason, "fill its rows, or take the property out")
        node.set_cells("iommu-map", *cells)
        return Mapped(tuple(ids), empty)

    def _row(
        self,
        node: Node,
        row: MapRow,
        reached: tuple[int, int],
        master: Master,
        own: dict[str, list[Run]] | None,
    ) -> list[tuple[int, int, int]]:
        """(requester id, vMasterID, length) of a run of the row's requester ids."""
        shift = row.sid_base - row.rid_base
        first, end = reached[0] + shift, reached[1] + shift
        said = f"iommu-map: row {row.rid_base:#x}+{row.length:#x} to {row.sid_base:#x}"
        if row.smmu_path == _UNCLEAR:
            reason = f"{said} does not say which SMMU of the host"
            raise Refusal("DT542", node.path, reason, NAME_SMMU)
        if row.mask and row.mask != self.streams.masks.get((row.smmu_path, first), 0):
            reason = f"{said} has mask {row.mask:#x}, and the host's stream has not"
            raise Refusal("DT505", node.path, reason, "write the row as the host has it")
        if own is not None:
            for at, _, inside in pieces(own.get(row.smmu_path, []), first, end):
                if inside is None:
                    reason = f"{said}: the host's map of this bus has no {at:#x} of {row.smmu_path}"
                    raise Refusal("DT505", node.path, reason, "cut the row to ids of the host's")
        found = []
        for at, stop, vid in pieces(self.bound.get(row.smmu_path, []), first, end):
            if vid is None:
                reason = f"{said}: {at:#x} of {row.smmu_path} is no stream of this guest"
                fix = "cut the row to the ids of the guest's devices"
                raise Refusal("DT505", node.path, reason, fix)
            if (at - shift) & ~master.map_mask:
                reason = f"{said} has to be cut at {at - shift:#x}, which iommu-map-mask hides"
                raise Refusal("DT505", node.path, reason, "write one row for each requester id")
            found.append((at - shift, vid, stop - at))
        return found

    def _read(self, node: Node, bridge: Master | None) -> Master:
        """The node's map, each row with the SMMU of the host that it means."""
        phandles: dict[int, Node] = {}
        smmus: dict[Node, Smmu] = {}
        sole = self._sole(bridge)
        known = self.streams.phandles
        # Any cell may be a row's phandle; the reader knows which.
        for phandle in sorted(set(node.cells("iommu-map") or ())):
            own = known.own.get(phandle)
            meaning = known.meaning(phandle, 1, claimed=True)
            if meaning.kind == "unknown" or not known.smmus:
                continue
            phandles[phandle] = own or Node(f"{phandle:x}")
            if own is not None and not _is_iommu(own):
                continue
            path = meaning.smmu or sole
            first = next(iter(known.smmus.values()))
            smmu = known.smmus.get(path or "", replace(first, path=_UNCLEAR))
            smmus[phandles[phandle]] = replace(smmu, iommu_cells=meaning.cells)
        alone = Node(node.name)
        for name in ("iommu-map", "iommu-map-mask"):
            if name in node.props:
                alone.props[name] = node.props[name]

        def refuse(_: str, __: str, ___: Node, text: str) -> None:
            fix = "write rows of <id SMMU StreamID length>, the SMMU by the host's phandle"
            raise Refusal("DT505", node.path, text, fix)

        return Masters(smmus, phandles, refuse).of(alone)

    def _sole(self, bridge: Master | None) -> str | None:
        """The one SMMU behind the host's bus."""
        paths = {row.smmu_path for row in bridge.maps} if bridge is not None else set()
        return paths.pop() if len(paths) == 1 else None


def _is_iommu(node: Node) -> bool:
    """Whether a node of the partial tree can stand in for an SMMU; a bare label can."""
    bare = not {"compatible", "reg"} & node.props.keys()
    return bare or "#iommu-cells" in node.props or is_arm_smmu(node)


def _spans(bridge: Master) -> dict[str, list[Run]]:
    """The StreamIDs that the bus has on each SMMU, as sorted runs."""
    found: dict[str, list[Run]] = {}
    rows = sorted(bridge.maps, key=lambda row: (row.smmu_path, row.sid_base))
    for row in rows:
        done = found.setdefault(row.smmu_path, [])
        end = row.sid_base + row.length
        if done and row.sid_base <= done[-1][1]:
            done[-1] = done[-1][0], max(done[-1][1], end), 0
        elif row.length:
            done.append((row.sid_base, end, 0))
    return found
