# SPDX-License-Identifier: BSD-2-Clause
"""`iommu-map` against a reader that evaluates one requester id at a time, from the raw cells.

The reader below shares nothing with `dt_tools.masters`: it looks the whole property up again for
each id, as a kernel does, and knows only bytes. Rows have 3 + #iommu-cells cells; where these are
2, rows of one output cell that all have one phandle and length 1 are read as such (older trees);
the id is masked; a row whose base has bits outside the mask, or that has several ids and
several output cells, is an error; no row means that the id is not translated.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from dt_tools.blob import read
from dt_tools.masters import Stream
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree

IDS = range(0x10000)


class Broken(Exception):
    """The map is malformed at a row that the lookup comes to."""


class Reader:
    """One node's map."""

    def __init__(self, tree: Tree, node: Node) -> None:
        raw = node.props["iommu-map"]
        self.map = [struct.unpack_from(">I", raw, at)[0] for at in range(0, len(raw) - 3, 4)]
        mask = node.props.get("iommu-map-mask")
        self.mask = 0xFFFFFFFF if mask is None else int.from_bytes(mask)
        self.cells: dict[int, int] = {}
        self.paths: dict[int, str] = {}
        for other in tree.walk():
            phandle = other.props.get("phandle", other.props.get("linux,phandle"))
            if phandle is not None and "#iommu-cells" in other.props:
                number = int.from_bytes(phandle)
                self.cells[number] = int.from_bytes(other.props["#iommu-cells"])
                self.paths[number] = other.path
        wide = self.cells.get(self.map[1]) == 2
        self.old = (
            wide
            and len(self.map) % 4 == 0
            and all(
                self.map[at + 1] == self.map[1] and self.map[at + 3] == 1
                for at in range(0, len(self.map), 4)
            )
        )

    def look_up(self, rid: int) -> tuple[str, int, int] | None:
        """(SMMU path, StreamID, mask cell), None for an id that no row has."""
        masked = rid & self.mask
        at = 0
        while at < len(self.map):
            base = self.map[at]
            if base & ~self.mask:
                raise Broken
            phandle = self.map[at + 1]
            if phandle not in self.cells:
                raise Broken
            count = 1 if self.old else self.cells[phandle]
            if at + 3 + count > len(self.map):
                raise Broken
            outputs = self.map[at + 2 : at + 2 + count]
            length = self.map[at + 2 + count]
            if count > 1 and length > 1:
                raise Broken
            if base <= masked < base + length:
                second = outputs[1] if count > 1 else 0
                first = outputs[0] if outputs else 0
                return self.paths[phandle], first + masked - base, second
            at += 3 + count
        return None


def key(reader: Reader) -> tuple[object, ...]:
    """What the answers depend on: maps that repeat on many boards are looked at once."""
    named = [(reader.cells[phandle], reader.paths[phandle]) for phandle in sorted(reader.cells)]
    return tuple(reader.map), reader.mask, tuple(named)


def differences(path: Path, seen: set[tuple[object, ...]]) -> tuple[list[str], int]:
    """Every id of every map of a board that the two disagree on; how many maps there are."""
    tree = read(path.read_bytes(), path.name)
    found: list[str] = []
    maps = 0
    for master in Platform.from_tree(tree, path.name).masters:
        if "iommu-map" not in master.node.props:
            continue
        maps += 1
        reader = Reader(tree, master.node)
        if key(reader) in seen:
            continue
        seen.add(key(reader))
        for rid in IDS:
            want = reader.look_up(rid)
            have = master.map_id(rid)
            if (have and (have.smmu_path, have.stream_id, have.mask)) != want:
                found.append(f"{path.name}: {master.path}: {rid:#x}: {have}, not {want}")
                break
    return found, maps


def test_every_id_of_every_board_of_the_corpus(corpus: Path) -> None:
    seen: set[tuple[object, ...]] = set()
    results = [differences(path, seen) for path in sorted((corpus / "dtbs").glob("*.dtb"))]
    assert [text for found, _ in results for text in found] == []
    assert sum(maps for _, maps in results) > 20
    assert sum(maps > 0 for _, maps in results) >= 8


def test_every_id_of_every_other_board() -> None:
    place = os.environ.get("VSMMU_BOARDS")
    if not place:
        pytest.skip("VSMMU_BOARDS names no folder of boards")
    seen: set[tuple[object, ...]] = set()
    results = [differences(path, seen) for path in sorted(Path(place).glob("*.dtb"))]
    assert [text for found, _ in results for text in found] == []
    assert sum(maps for _, maps in results) > 0


# Maps made for the purpose.


def a_board(*cells: int, mask: int | None = None, widths: tuple[int, ...] = (1, 2, 0)) -> Tree:
    """IOMMUs with phandles 1, 2, ... of these #iommu-cells, and one map."""
    tree = Tree()
    for phandle, width in enumerate(widths, 1):
        node = tree.root.add(f"iommu@{phandle}")
        node.set_strings("compatible", "arm,smmu-v3" if width == 1 else "arm,mmu-500")
        node.set_cells("phandle", phandle)
        node.set_cells("#iommu-cells", width)
    bridge = tree.root.add("pcie")
    bridge.set_cells("iommu-map", *cells)
    if mask is not None:
        bridge.set_cells("iommu-map-mask", mask)
    return tree


def both(tree: Tree) -> tuple[Platform, list[Stream | None]]:
    """The board, after its map gave the same as the reader for every id."""
    platform = Platform.from_tree(tree)
    (master,) = platform.masters
    reader = Reader(tree, master.node)
    answers = [master.map_id(rid) for rid in IDS]
    for rid, have in enumerate(answers):
        assert (have and (have.smmu_path, have.stream_id, have.mask)) == reader.look_up(rid), rid
    return platform, answers


def hits(answers: list[Stream | None]) -> dict[int, tuple[str, int]]:
    found = enumerate(answers)
    return {rid: (one.smmu_path[-1], one.stream_id) for rid, one in found if one is not None}


@pytest.mark.parametrize(
    ("cells", "mask", "expected"),
    [
        pytest.param((0, 1, 7, 3), None, {0: ("1", 7), 1: ("1", 8), 2: ("1", 9)}, id="one row"),
        pytest.param(
            (8, 1, 5, 1, 9, 2, 6, 0, 1), None, {8: ("1", 5), 9: ("2", 6)}, id="rows of two widths"
        ),
        pytest.param((4, 3, 1), None, {4: ("3", 0)}, id="no output cell"),
        pytest.param((0, 1, 5, 2, 1, 1, 9, 2), None,
                     {0: ("1", 5), 1: ("1", 6), 2: ("1", 10)}, id="the first row decides"),
        pytest.param((0, 1, 0, 0), None, {}, id="a row of no ids"),
        pytest.param((0, 1, 0xFFFF0000, 2), None,
                     {0: ("1", 0xFFFF0000), 1: ("1", 0xFFFF0001)}, id="high StreamIDs"),
        pytest.param((0xFFFF, 1, 0, 0x10), None, {0xFFFF: ("1", 0)}, id="rows beyond 16 bits"),
        pytest.param((0, 2, 5, 1, 1, 2, 6, 1), None,
                     {0: ("2", 5), 1: ("2", 6)}, id="old rows of one output cell"),
        pytest.param((0, 2, 5, 3, 1), None, {0: ("2", 5)}, id="a mask cell"),
    ],
)  # fmt: skip
def test_maps(cells, mask, expected) -> None:
    platform, answers = both(a_board(*cells, mask=mask))
    assert hits(answers) == expected
    assert platform.findings == ()


def test_a_mask_repeats_the_rows() -> None:
    _, answers = both(a_board(0, 1, 0x10, 1, 8, 1, 0x18, 1, mask=0x1FF))
    assert len(hits(answers)) == 2 * 0x10000 // 0x200
    assert hits(answers)[0xFE08] == ("1", 0x18)


def test_mask_cells_are_kept() -> None:
    _, answers = both(a_board(0, 2, 5, 0x7F, 1))
    assert answers[0] == Stream("/iommu@2", 5, 0x7F)


@pytest.mark.parametrize(
    ("cells", "mask", "good"),
    [
        pytest.param((0, 1, 5, 1, 0x200, 1, 6, 1), 0x1FF, 1, id="base outside the mask"),
        pytest.param((0, 1, 5, 1, 1, 2, 6, 0, 2), None, 1, id="several ids, several cells"),
        pytest.param((0, 1, 5, 1, 1, 2, 6), None, 1, id="cut off"),
        pytest.param((0, 2, 5, 4), None, 0, id="one output cell of two, several ids"),
        pytest.param((0, 2, 5, 1, 1, 1, 6, 1), None, 1, id="one output cell of two, two phandles"),
        pytest.param((0, 1, 5, 1, 1, 9, 6, 1), None, 1, id="dangling"),
    ],
)
def test_rows_from_a_bad_one_on_give_nothing(cells, mask, good) -> None:
    """A kernel's lookup fails there; ids of the rows before it are translated."""
    tree = a_board(*cells, mask=mask)
    platform = Platform.from_tree(tree)
    (master,) = platform.masters
    reader = Reader(tree, master.node)
    broken = 0
    for rid in range(0x400):
        try:
            want = reader.look_up(rid)
        except Broken:
            broken += 1
            want = None
        have = master.map_id(rid)
        assert (have and (have.smmu_path, have.stream_id, have.mask)) == want, rid
    assert broken
    assert len(master.maps) == good
    assert [finding.rule for finding in platform.findings] in (["DT505"], ["DT401"])


# The boards whose StreamIDs mislead.


def board(corpus: Path, name: str) -> Platform:
    (path,) = (corpus / "dtbs").glob(f"{name}*.dtb")
    return Platform.from_tree(read(path.read_bytes(), path.name), path.name)


def test_imx95_maps_are_tables_under_a_mask(corpus: Path) -> None:
    platform = board(corpus, "imx95")
    masked = [m for m in platform.masters if m.map_mask == 0x1FF]
    assert masked
    for master in masked:
        assert len(master.maps) > 1
        assert all(row.rid_base + row.length <= 0x200 for row in master.maps)
        assert master.map_id(0x200) == master.map_id(0)


def test_the_old_rows_of_the_sc7280_are_read(corpus: Path) -> None:
    platform = board(corpus, "legacy-map")
    widths = {smmu.path: smmu.iommu_cells for smmu in platform.smmus}
    maps = [m for m in platform.masters if m.maps]
    assert maps
    assert all(widths[row.smmu_path] == 2 for master in maps for row in master.maps)
    assert not [f for f in platform.findings if f.rule == "DT505"]


def test_tegra264_maps_reach_beyond_16_bits(corpus: Path) -> None:
    platform = board(corpus, "tegra264")
    outputs = {row.sid_base for m in platform.masters if m.is_pci for row in m.maps}
    assert max(outputs) >= 0x50000
    plain = [m for m in platform.masters if m.maps and not m.is_pci]
    assert {m.path.rpartition("/")[2].partition("@")[0] for m in plain} >= {"host1x"}
