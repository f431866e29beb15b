# SPDX-License-Identifier: BSD-2-Clause
"""Cells, reg and ranges as numbers, and the nearest path to one that does not exist."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools.tree import (
    Tree,
    bus_cells,
    join_cells,
    nearest_path,
    range_entries,
    reg_entries,
    split_cells,
)
from tests.counts import sliced


def test_cells_of_a_bus_have_defaults_and_are_not_inherited() -> None:
    tree = Tree()
    tree.root.set_cells("#address-cells", 1)
    bus = tree.root.add("bus")
    assert bus_cells(tree.root) == (1, 1)
    assert bus_cells(bus) == (2, 1)
    bus.set_cells("#size-cells", 9)
    assert bus_cells(bus) is None
    bus.set_cells("#size-cells", 1, 1)
    assert bus_cells(bus) is None


def test_reg_entries() -> None:
    tree = Tree()
    tree.root.set_cells("#address-cells", 2)
    tree.root.set_cells("#size-cells", 1)
    node = tree.root.add("n")
    assert reg_entries(node) == ()
    node.set_cells("reg", 1, 2, 3, 4, 5, 6)
    assert reg_entries(node) == (((1 << 32) + 2, 3), ((4 << 32) + 5, 6))
    node.set_cells("reg", 1, 2, 3, 4)
    assert reg_entries(node) is None
    node.props["reg"] = b"abc"
    assert reg_entries(node) is None
    tree.root.set_cells("#address-cells", 0)
    tree.root.set_cells("#size-cells", 0)
    node.set_cells("reg", 1)
    assert reg_entries(node) is None
    tree.root.props["reg"] = b"\0" * 8
    assert reg_entries(tree.root) is None


def test_range_entries() -> None:
    tree = Tree()
    bus = tree.root.add("bus")
    assert range_entries(bus) is None
    bus.set_empty("ranges")
    assert range_entries(bus) == ()
    bus.set_cells("#address-cells", 3)
    bus.set_cells("#size-cells", 2)
    bus.set_cells("ranges", 0x0200_0000, 0, 0x1000, 0x40, 0x2000, 0, 0x3000)
    assert range_entries(bus) == (((0x0200_0000 << 64) + 0x1000, 0x40_0000_2000, 0x3000),)
    bus.set_cells("ranges", 1, 2, 3)
    assert range_entries(bus) is None
    assert range_entries(tree.root) is None


@sliced(100)
@given(st.integers(0, 2**128 - 1))
def test_cells_join_and_split(value: int) -> None:
    assert join_cells(split_cells(value, 4)) == value


def test_split_refuses_what_does_not_fit() -> None:
    for value, count in ((1 << 32, 1), (-1, 2)):
        with pytest.raises(ValueError, match="does not fit"):
            split_cells(value, count)


def board() -> Tree:
    tree = Tree()
    for bus in ("amba", "axi@0"):
        node = tree.root.add(bus)
        node.add("serial@ff000000")
        node.add("serial@ff010000")
    tree.root.children["axi@0"].add("ethernet@ff0e0000").add("mdio")
    return tree


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/axi/ethernet@ff0e0000", "/axi@0/ethernet@ff0e0000"),
        ("/axi@0/ethernet", "/axi@0/ethernet@ff0e0000"),
        ("axi@0/ethernet@ff0e0000", "/axi@0/ethernet@ff0e0000"),
        ("/amba/ethernet@ff0e0000", "/axi@0/ethernet@ff0e0000"),
        ("ethernet@ff0e0000", "/axi@0/ethernet@ff0e0000"),
        ("/axi@0/ethrnet@ff0e0000", "/axi@0/ethernet@ff0e0000"),
        ("/axi@0/ethernet@ff0e0000/mdi", "/axi@0/ethernet@ff0e0000/mdio"),
        ("/axi@0/serial", "/axi@0/serial@ff000000 (or 1 more alike)"),
        ("/soc/serial@ff010000", "/amba/serial@ff010000 (or 1 more alike)"),
        ("/axi@0/uart@ff010000", "/axi@0/serial@ff010000"),
        ("/nothing-like-it", None),
        ("/axi@0/banana", None),
        ("/axi@0/ethernet@ff0e0000/banana@1", None),
        ("serial0", None),
        ("", "/"),
    ],
)
def test_nearest_path(path: str, nearest: str | None) -> None:
    assert nearest_path(board(), path) == nearest


@sliced(200)
@given(st.text(max_size=60))
def test_nearest_path_takes_any_text(path: str) -> None:
    nearest_path(board(), path)


def test_nearest_path_looks_at_a_part_of_a_large_tree_only() -> None:
    tree = Tree()
    for i in range(3_000):
        tree.root.add(f"{'a' * 150}{i}")
    assert nearest_path(tree, "/" + "a" * 100_000) is not None
