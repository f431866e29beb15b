# SPDX-License-Identifier: BSD-2-Clause
"""What a host tree means: small trees for each rule, and the boards of the corpus."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools.blob import read
from dt_tools.errors import DtbError, UserError
from dt_tools.platform import (
    PAGE,
    Finding,
    Interrupt,
    MapRow,
    Master,
    Platform,
    Reg,
    Stream,
    status_of,
)
from dt_tools.tree import Node, Tree
from tests.counts import sliced

GIC, SMMU, SMMU_B = 1, 2, 3


def cells_of(node: Node, address: int, size: int) -> Node:
    node.set_cells("#address-cells", address)
    node.set_cells("#size-cells", size)
    return node


def board() -> Tree:
    """A GICv3, two SMMUv3 and a one-to-one bus, cells 2/2 throughout."""
    tree = Tree()
    cells_of(tree.root, 2, 2).set_cells("interrupt-parent", GIC)
    gic = tree.root.add("gic@1000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", GIC)
    for name, phandle in (("iommu@2000000", SMMU), ("iommu@3000000", SMMU_B)):
        smmu = tree.root.add(name)
        smmu.set_strings("compatible", "arm,smmu-v3")
        smmu.set_cells("reg", 0, int(name[6:], 16), 0, 0x20000)
        smmu.set_cells("#iommu-cells", 1)
        smmu.set_cells("phandle", phandle)
    soc = cells_of(tree.root.add("soc"), 2, 2)
    soc.set_strings("compatible", "simple-bus")
    soc.set_empty("ranges")
    return tree


def device(tree: Tree, name: str = "dev@5000000", **cells: tuple[int, ...]) -> Node:
    node = tree.root.children["soc"].add(name)
    for prop, value in cells.items():
        node.set_cells(prop.replace("_", "-"), *value)
    return node


def platform_of(tree: Tree) -> Platform:
    return Platform.from_tree(tree, "board.dtb")


def master_of(tree: Tree, path: str = "/soc/dev@5000000") -> Master:
    return {master.path: master for master in platform_of(tree).masters}[path]


def findings_of(tree: Tree) -> list[tuple[str, str, str]]:
    return [(f.rule, f.path, f.text) for f in platform_of(tree).findings]


# Registers.


def test_reg_through_two_levels_of_ranges() -> None:
    tree = board()
    outer = cells_of(tree.root.add("bus@88"), 2, 2)
    outer.set_cells("ranges", 0, 0, 0x88, 0, 1, 0)
    inner = cells_of(outer.add("sub@100"), 1, 1)
    inner.set_cells("ranges", 0, 0, 0x100, 0x1000, 0x8000, 0, 0x4000, 0x800)
    node = inner.add("n@10")
    node.set_cells("reg", 0x10, 0x20, 0x8000, 0x800)
    board_ = platform_of(tree)
    assert board_.reg_of(node) == (Reg(0x88_0000_0110, 0x20), Reg(0x88_0000_4000, 0x800))
    assert board_.reg_of(inner) == ()


@pytest.mark.parametrize(
    "reg",
    [
        (0xFF0, 0x20),  # leaves its row
        (0x1000, 0x10),  # behind every row
        (0x0, 0x1001),
        (0x10,),  # not whole entries
    ],
)
def test_reg_that_no_row_holds(reg: tuple[int, ...]) -> None:
    tree = board()
    bus = cells_of(tree.root.add("bus"), 1, 1)
    bus.set_cells("ranges", 0, 0, 0x100, 0x1000)
    node = bus.add("n")
    node.set_cells("reg", *reg)
    assert platform_of(tree).reg_of(node) is None


def test_reg_is_not_cpu_addressable_without_ranges_or_sizes() -> None:
    tree = board()
    i2c = cells_of(tree.root.add("i2c"), 1, 0)
    i2c.add("chip@50").set_cells("reg", 0x50)
    glue = cells_of(tree.root.add("glue"), 1, 1)
    glue.add("bank@3").set_cells("reg", 3, 1)
    above = tree.root.add("high")
    above.set_cells("reg", 0xFFFF_FFFF, 0xFFFF_F000, 0, 0x1001)
    found = platform_of(tree)
    assert found.reg_of(i2c.children["chip@50"]) is None
    assert found.reg_of(glue.children["bank@3"]) is None
    assert found.reg_of(above) is None


def test_pci_addresses_of_three_cells_translate_by_space() -> None:
    tree = board()
    pci = cells_of(tree.root.add("pcie@40000000"), 3, 2)
    pci.set_cells("ranges", 0x0200_0000, 0, 0x1000_0000, 0x40, 0, 0, 0x1000_0000)
    function = pci.add("dev@0")
    function.set_cells("reg", 0x0000_0800, 0, 0, 0, 0)
    window = pci.add("mem@10000000")
    window.set_cells("reg", 0x0200_0000, 0, 0x1000_1000, 0, 0x1000)
    found = platform_of(tree)
    assert found.reg_of(function) is None
    assert found.reg_of(window) == (Reg(0x40_0000_1000, 0x1000),)


# Neighbours in a page.


def test_page_neighbours() -> None:
    tree = board()
    one = device(tree, "uart@5000000", reg=(0, 0x500_0000, 0, 0x100))
    two = device(tree, "uart@5000800", reg=(0, 0x500_0800, 0, 0x100))
    two.set_strings("status", "reserved")
    part = cells_of(one, 2, 2).add("part@5000010")
    one.set_empty("ranges")
    part.set_cells("reg", 0, 0x500_0010, 0, 4)
    device(tree, "uart@5001000", reg=(0, 0x500_1000, 0, 0x1000))
    memory = tree.root.add("memory@5000000")
    memory.set_strings("device_type", "memory")
    memory.set_cells("reg", 0, 0x500_0000, 0, 0x1000_0000)
    carve = cells_of(tree.root.add("reserved-memory"), 2, 2)
    carve.set_empty("ranges")
    carve.add("fw@5000000").set_cells("reg", 0, 0x500_0000, 0, 0x1000)
    tree.root.children["soc"].set_cells("reg", 0, 0x500_0000, 0, 0x100)
    found = platform_of(tree)
    assert found.page_neighbours(one) == ("/soc/uart@5000800",)
    both = ("/soc/uart@5000000", "/soc/uart@5000000/part@5000010")
    assert found.page_neighbours(two) == both
    assert found.page_neighbours(part) == ("/soc/uart@5000000", "/soc/uart@5000800")
    assert found.page_neighbours(two, limit=1) == both[:1]


REGS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=25)


@sliced(150)
@given(REGS)
def test_page_neighbours_equal_a_search_of_all_pairs(regs: list[tuple[int, int]]) -> None:
    tree = board()
    step = PAGE // 2
    nodes = [
        device(tree, f"d@{i}", reg=(0, 0x1000_0000 + base * step, 0, size * step))
        for i, (base, size) in enumerate(regs)
    ]
    pages = [
        set(range(base * step // PAGE, (base * step + max(size * step, 1) - 1) // PAGE + 1))
        for base, size in regs
    ]
    found = platform_of(tree)
    for node, mine in zip(nodes, pages, strict=True):
        others = [
            n.path for n, his in zip(nodes, pages, strict=True) if n is not node and mine & his
        ]
        assert found.page_neighbours(node) == tuple(sorted(others))


# Interrupts.


def gic_spi(number: int, flags: int = 4) -> Interrupt:
    return Interrupt("SPI", number + 32, flags, "/gic@1000000", None, (0, number, flags))


def test_interrupts_of_the_gic() -> None:
    tree = board()
    node = device(tree, interrupts=(0, 7, 4, 1, 14, 0xF08))
    ppi = Interrupt("PPI", 30, 0xF08, "/gic@1000000", None, (1, 14, 0xF08))
    assert platform_of(tree).interrupts_of(node) == (gic_spi(7), ppi)
    assert platform_of(tree).interrupts_of(tree.root) == ()


def controller(tree: Tree, name: str, phandle: int, count: int) -> Node:
    node = tree.root.add(name)
    node.set_cells("#interrupt-cells", count)
    node.set_empty("interrupt-controller")
    node.set_cells("phandle", phandle)
    return node


def test_interrupts_extended_come_first_and_name_each_controller() -> None:
    tree = board()
    controller(tree, "pdc", 9, 2).set_strings("compatible", "qcom,pdc")
    controller(tree, "mbigen", 10, 2).set_cells("msi-parent", 99)
    node = device(tree, interrupts=(0, 1, 4))
    node.set_cells("interrupts-extended", 9, 5, 1, GIC, 0, 7, 4, 10, 6, 1)
    pdc, spi, msi = platform_of(tree).interrupts_of(node)
    reason = "its controller (qcom,pdc) is not the GIC"
    assert pdc == Interrupt("not-gic", 0, 0, "/pdc", reason, (5, 1))
    assert spi == gic_spi(7)
    reason = "its controller turns it into a message (msi-parent)"
    assert msi == Interrupt("MSI", 0, 0, "/mbigen", reason, (6, 1))


def test_the_nearest_interrupt_parent_counts() -> None:
    tree = board()
    controller(tree, "pdc", 9, 1)
    tree.root.children["soc"].set_cells("interrupt-parent", 9)
    node = device(tree, interrupts=(3,))
    below = node.add("child")
    below.set_cells("interrupts", 4)
    own = device(tree, "own", interrupts=(0, 1, 4), interrupt_parent=(GIC,))
    found = platform_of(tree)
    assert found.interrupts_of(node)[0].controller_path == "/pdc"
    assert found.interrupts_of(below)[0].specifier == (4,)
    assert found.interrupts_of(own) == (gic_spi(1),)
    hub = controller(tree, "hub", 11, 1)
    hub.set_cells("interrupt-parent", 9)
    child = hub.add("port")
    child.set_cells("interrupts", 1)
    assert platform_of(tree).interrupts_of(child)[0].controller_path == "/hub"


def nexus(tree: Tree) -> Node:
    """Two pins of two units, on to the GIC; one address cell, one specifier cell."""
    node = cells_of(tree.root.add("nexus"), 1, 0)
    node.set_cells("#interrupt-cells", 1)
    node.set_cells("phandle", 9)
    rows = [(unit, pin, GIC, 0, unit // 8 + pin, 4) for unit in (0, 8) for pin in (1, 2)]
    node.set_cells("interrupt-map", *(cell for row in rows for cell in row))
    return node


def test_interrupt_maps() -> None:
    tree = board()
    bus = nexus(tree)
    unit = bus.add("unit@8")
    unit.set_cells("reg", 8)
    unit.set_cells("interrupts", 2, 1, 3)
    two, one, none = platform_of(tree).interrupts_of(unit)
    assert (two, one) == (gic_spi(3), gic_spi(2))
    assert none == Interrupt("not-gic", 0, 0, "/nexus", "interrupt-map has no row for it", (3,))
    bus.set_cells("interrupt-map-mask", 0, 3)
    assert platform_of(tree).interrupts_of(unit)[:2] == (gic_spi(2), gic_spi(1))
    bus.set_cells("interrupt-map-mask", 0)
    assert platform_of(tree).interrupts_of(unit)[0].kind == "not-gic"


def test_interrupt_map_parents_with_unit_addresses() -> None:
    tree = board()
    tree.root.children["gic@1000000"].set_cells("#address-cells", 2)
    bus = nexus(tree)
    bus.set_cells("#address-cells", 0)
    bus.set_cells("interrupt-map", 1, GIC, 0xAA, 0xBB, 0, 5, 4)
    unit = bus.add("unit")
    unit.set_cells("interrupts", 1)
    assert platform_of(tree).interrupts_of(unit) == (gic_spi(5),)


def test_interrupt_maps_in_a_circle() -> None:
    tree = board()
    bus = nexus(tree)
    bus.set_cells("#address-cells", 0)
    bus.set_cells("interrupt-map", 1, 9, 1)
    unit = bus.add("unit")
    unit.set_cells("interrupts", 1)
    reason = "interrupt-maps in a circle"
    assert platform_of(tree).interrupts_of(unit) == (
        Interrupt("not-gic", 0, 0, "/nexus", reason, (1,)),
    )


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ((0, 988, 4), "SPI 988 has no GIC id below 1020"),
        ((1, 16, 4), "PPI 16 has no GIC id below 1020"),
        ((2, 5, 4), "extended SPI 5 has no GIC id below 1020"),
        ((7, 5, 4), "type 7 5 has no GIC id below 1020"),
        ((0, 1), "interrupts has 8 bytes, not specifiers of 3 cells"),
    ],
)
def test_interrupts_that_are_not_usable(cells: tuple[int, ...], reason: str) -> None:
    tree = board()
    node = device(tree, interrupts=cells)
    (found,) = platform_of(tree).interrupts_of(node)
    assert (found.kind, found.number, found.reason) == ("not-gic", 0, reason)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ((77, 1), "interrupts-extended names <0x4d>, which is no node's phandle"),
        ((SMMU, 1), "interrupts-extended names /iommu@2000000, which has no #interrupt-cells"),
        ((GIC, 0, 1), "interrupts-extended ends in 2 cells, 3 needed"),
    ],
)
def test_interrupts_extended_that_are_malformed(cells: tuple[int, ...], reason: str) -> None:
    tree = board()
    node = device(tree)
    node.set_cells("interrupts-extended", GIC, 0, 7, 4, *cells)
    first, last = platform_of(tree).interrupts_of(node)
    assert first == gic_spi(7)
    assert (last.kind, last.reason) == ("not-gic", reason)


def test_interrupt_parents_in_a_circle_and_none() -> None:
    tree = board()
    node = device(tree, interrupts=(1,), interrupt_parent=(50,), phandle=(50,))
    assert platform_of(tree).interrupts_of(node)[0].reason == "no interrupt parent"
    del tree.root.props["interrupt-parent"]
    other = device(tree, "other", interrupts=(1,))
    assert platform_of(tree).interrupts_of(other)[0].reason == "no interrupt parent"


def test_the_gic_is_the_one_that_the_root_names() -> None:
    tree = board()
    second = tree.root.add("gic@9000000")
    second.set_strings("compatible", "arm,gic-400")
    second.set_cells("#interrupt-cells", 3)
    second.set_cells("phandle", 9)
    assert (platform_of(tree).gic.path, platform_of(tree).gic.version) == ("/gic@1000000", 3)
    tree.root.set_cells("interrupt-parent", 9)
    assert (platform_of(tree).gic.path, platform_of(tree).gic.version) == ("/gic@9000000", 2)
    del tree.root.props["interrupt-parent"]
    tree.root.children["gic@1000000"].set_strings("status", "disabled")
    assert platform_of(tree).gic.path == "/gic@9000000"
    second.set_strings("status", "disabled")
    assert platform_of(tree).gic is None


# SMMUs.


def test_smmus_and_their_kinds() -> None:
    tree = board()
    for name, compatible in (
        ("a", ("qcom,sm-smmu-500", "arm,mmu-500")),
        ("b", ("arm,smmu-v1",)),
        ("c", ("rockchip,iommu",)),
        ("d", ("nvidia,tegra264-smmu", "arm,smmu-v3")),
    ):
        node = tree.root.add(name)
        node.set_strings("compatible", *compatible)
        node.set_cells("#iommu-cells", 1)
    pmcg = tree.root.add("pmu@2002000")
    pmcg.set_strings("compatible", "arm,smmu-v3-pmcg")
    pmcg.set_cells("reg", 0, 0x200_2000, 0, 0x1000)
    found = platform_of(tree)
    assert [(smmu.path, smmu.kind) for smmu in found.smmus] == [
        ("/iommu@2000000", "arm,smmu-v3"),
        ("/iommu@3000000", "arm,smmu-v3"),
        ("/a", "arm,mmu-500"),
        ("/b", "arm,smmu-v2"),
        ("/c", "other"),
        ("/d", "arm,smmu-v3"),
    ]
    assert [(p.path, p.base, p.size) for p in found.pmcgs] == [("/pmu@2002000", 0x200_2000, 0x1000)]
    assert (found.smmus[0].base, found.smmus[0].size) == (0x200_0000, 0x20000)
    assert found.smmus[2].base is None


def test_status_is_that_of_the_nearest_node_that_is_not_okay() -> None:
    tree = board()
    node = device(tree, iommus=(SMMU, 1))
    assert status_of(node) == "okay"
    tree.root.children["soc"].set_strings("status", "disabled")
    assert status_of(node) == "disabled"
    assert master_of(tree).status == "disabled"
    node.set_strings("status", "reserved")
    assert status_of(node) == "reserved"
    node.set_strings("status", "ok")
    assert status_of(node) == "disabled"


def test_an_smmu_without_a_cell_count() -> None:
    tree = board()
    del tree.root.children["iommu@2000000"].props["#iommu-cells"]
    device(tree, iommus=(SMMU, 5))
    assert master_of(tree).streams == (Stream("/iommu@2000000", 5),)
    assert findings_of(tree) == [("DT406", "/iommu@2000000", "no valid #iommu-cells; 1 is assumed")]


# iommus.


def test_iommus_of_several_smmus_and_cell_counts() -> None:
    tree = board()
    tree.root.children["iommu@3000000"].set_cells("#iommu-cells", 2)
    none = tree.root.add("iommu@4000000")
    none.set_cells("#iommu-cells", 0)
    none.set_cells("phandle", 4)
    device(tree, iommus=(SMMU, 7, SMMU_B, 0x600, 0x1F, 4, SMMU, 8))
    assert master_of(tree).streams == (
        Stream("/iommu@2000000", 7),
        Stream("/iommu@3000000", 0x600, 0x1F),
        Stream("/iommu@4000000", 0),
        Stream("/iommu@2000000", 8),
    )


@pytest.mark.parametrize(
    ("cells", "streams", "finding"),
    [
        (
            (SMMU, 1, 0x55, 2),
            1,
            ("DT401", "/soc/dev@5000000", "iommus: <0x55> is no node's phandle"),
        ),
        (
            (GIC, 2),
            0,
            ("DT401", "/soc/dev@5000000", "iommus: <0x1> is /gic@1000000, not an IOMMU"),
        ),
        (
            (SMMU, 1, SMMU),
            1,
            ("DT405", "/soc/dev@5000000", "iommus: /iommu@2000000 takes 1 cells, 0 left"),
        ),
        (
            (),
            0,
            ("DT405", "/soc/dev@5000000", "iommus has 0 bytes, not <phandle ids> cells"),
        ),
    ],
)
def test_iommus_that_are_malformed(
    cells: tuple[int, ...], streams: int, finding: tuple[str, str, str]
) -> None:
    tree = board()
    device(tree, iommus=cells)
    assert len(master_of(tree).streams) == streams
    assert findings_of(tree) == [finding]


def test_duplicate_phandles_are_a_finding() -> None:
    tree = board()
    device(tree, phandle=(SMMU,))
    assert platform_of(tree).findings == (
        Finding("DT403", "error", "/soc/dev@5000000", "phandle 0x2 is /iommu@2000000's too"),
    )


# iommu-map.


def test_iommu_map_rows_and_mask() -> None:
    tree = board()
    node = device(tree, iommu_map=(0, SMMU, 0x10, 1, 0x100, SMMU_B, 0x11, 7))
    node.set_cells("iommu-map-mask", 0x1FF)
    node.set_strings("device_type", "pci")
    master = master_of(tree)
    assert master.maps == (
        MapRow(0, "/iommu@2000000", 0x10, 1),
        MapRow(0x100, "/iommu@3000000", 0x11, 7),
    )
    assert (master.map_mask, master.is_pci, master.streams) == (0x1FF, True, ())
    assert master.map_id(0) == Stream("/iommu@2000000", 0x10)
    assert master.map_id(1) is None
    assert master.map_id(0x106) == Stream("/iommu@3000000", 0x17)
    assert master.map_id(0x107) is None
    assert master.map_id(0xFE00) == Stream("/iommu@2000000", 0x10)


def test_iommu_map_the_first_row_decides() -> None:
    tree = board()
    device(tree, iommu_map=(0, SMMU, 0x100, 8, 4, SMMU_B, 0x200, 8))
    master = master_of(tree)
    assert master.map_id(5) == Stream("/iommu@2000000", 0x105)
    assert master.map_id(8) == Stream("/iommu@3000000", 0x204)
    assert master.map_mask == 0xFFFF_FFFF


def test_iommu_map_of_two_output_cells() -> None:
    tree = board()
    tree.root.children["iommu@2000000"].set_cells("#iommu-cells", 2)
    device(tree, iommu_map=(0, SMMU, 0x10, 0x3F, 1, 0x100, SMMU, 0x11, 0, 1))
    assert master_of(tree).maps == (
        MapRow(0, "/iommu@2000000", 0x10, 1, 0x3F),
        MapRow(0x100, "/iommu@2000000", 0x11, 1),
    )
    assert findings_of(tree) == []


@pytest.mark.parametrize(
    "cells",
    [
        (0, SMMU, 0x10, 1, 0x100, SMMU, 0x11, 1),
        (0, SMMU, 0x10, 1),
    ],
)
def test_iommu_map_of_old_trees_has_one_output_cell(cells: tuple[int, ...]) -> None:
    """Although #iommu-cells is 2, recognised as Linux does it."""
    tree = board()
    tree.root.children["iommu@2000000"].set_cells("#iommu-cells", 2)
    device(tree, iommu_map=cells)
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    assert master_of(tree).maps == tuple(
        MapRow(rid, "/iommu@2000000", sid, length) for rid, _, sid, length in rows
    )
    assert findings_of(tree) == []


@pytest.mark.parametrize(
    ("cells", "rows", "text"),
    [
        ((0, SMMU), 0, "iommu-map has 8 bytes, not rows of cells"),
        ((0, SMMU, 1), 0, "iommu-map: a row for /iommu@2000000 takes 4 cells, 3 left"),
        ((), 0, "iommu-map has 0 bytes, not rows of cells"),
        ((0, SMMU, 1, 1, 5), 1, "iommu-map ends within a row"),
        (
            (0, SMMU, 1, 1, 5, SMMU),
            1,
            "iommu-map: a row for /iommu@2000000 takes 4 cells, 2 left",
        ),
        (
            (0, SMMU, 1, 1, 0x1000, SMMU, 2, 1, 2, SMMU, 3, 1),
            1,
            "iommu-map: id base 0x1000 has bits outside iommu-map-mask 0xfff",
        ),
        (
            (0, SMMU, 0xFFFF_FFFF, 2),
            0,
            "iommu-map: row 0x0+0x2 to 0xffffffff leaves 32 bits",
        ),
        ((0, SMMU, 1, 1, 8, 0x99, 1, 1), 1, "iommu-map: <0x99> is no node's phandle"),
    ],
)
def test_iommu_map_that_is_malformed(cells: tuple[int, ...], rows: int, text: str) -> None:
    tree = board()
    device(tree, iommu_map=cells).set_cells("iommu-map-mask", 0xFFF)
    assert len(master_of(tree).maps) == rows
    assert [f[2] for f in findings_of(tree)] == [text]


def test_iommu_map_of_two_output_cells_maps_single_ids() -> None:
    tree = board()
    tree.root.children["iommu@2000000"].set_cells("#iommu-cells", 2)
    device(tree, iommu_map=(0, SMMU, 0x10, 0, 4, 8, SMMU, 0x20, 0, 1))
    assert master_of(tree).maps == ()
    assert findings_of(tree)[0][2] == ("iommu-map: a row of 4 ids cannot have 2 output cells")


def test_iommu_map_equals_a_brute_force_over_every_id_of_every_board(corpus: Path) -> None:
    maps = 0
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        tree = read(path.read_bytes(), path.name)
        for master in Platform.from_tree(tree, path.name).masters:
            if "iommu-map" not in master.node.props:
                continue
            maps += 1
            expected: dict[int, tuple[str, int]] = {}
            for base, sid, length, smmu in binding_rows(master.node, tree):
                for i in range(length):
                    expected.setdefault(base + i, (smmu, sid + i))
            mask = int.from_bytes(master.node.props.get("iommu-map-mask", b"\xff" * 4))
            for rid in range(1 << 16):
                found = master.map_id(rid)
                pair = None if found is None else (found.smmu_path, found.stream_id)
                if pair != expected.get(rid & mask):
                    pytest.fail(f"{path.name} {master.path} {rid:#x}: {pair}")
    assert maps >= 25


def binding_rows(node: Node, tree: Tree) -> list[tuple[int, int, int, str]]:
    """iommu-map by the binding's text, straight from the bytes: (id, StreamID, length, SMMU)."""
    raw = node.props["iommu-map"]
    owners = {n.props["phandle"]: n for n in tree.walk() if "phandle" in n.props}
    quads = [raw[i : i + 16] for i in range(0, len(raw), 16)]
    same = {q[4:8] for q in quads} == {raw[4:8]}
    single = same and {q[12:] for q in quads} == {b"\0\0\0\x01"}
    rows = []
    at = 0
    while at < len(raw):
        target = owners[raw[at + 4 : at + 8]]
        outputs = 1 if single else int.from_bytes(target.props["#iommu-cells"])
        base, _, sid = struct.unpack_from(">3I", raw, at)
        (length,) = struct.unpack_from(">I", raw, at + 8 + 4 * outputs)
        rows.append((base, sid, length, target.path))
        at += 12 + 4 * outputs
    return rows


# Paths.


def test_resolve() -> None:
    tree = board()
    node = device(tree)
    found = platform_of(tree)
    assert found.resolve("/soc/dev@5000000") is node
    for path, message in (
        ("/soc/dev", "board.dtb: /soc/dev: no such node; nearest: /soc/dev@5000000"),
        (
            "soc/dev@5000000",
            "board.dtb: soc/dev@5000000: not an absolute path; nearest: /soc/dev@5000000",
        ),
        (
            "/amba/dev@5000000",
            "board.dtb: /amba/dev@5000000: no such node; nearest: /soc/dev@5000000",
        ),
        ("/\x1b[31m\n", "board.dtb: /\\x1b[31m\\n: no such node"),
        ("", "board.dtb: '': not an absolute path; nearest: /"),
    ):
        with pytest.raises(UserError) as caught:
            found.resolve(path)
        assert str(caught.value) == message
        assert caught.value.exit_code == 2


# Hostile trees.


def test_work_is_limited() -> None:
    tree = board()
    bus = cells_of(tree.root.add("bus"), 1, 1)
    bus.set_cells("ranges", *(cell for i in range(5_000) for cell in (i, 0, i, 1)))
    for i in range(101):
        bus.add(f"n@{i}").set_cells("reg", 0xFFFF_0000, 1)
    found = platform_of(tree)
    with pytest.raises(DtbError) as caught:
        assert not any(found.reg_of(node) for node in bus.children.values())
    assert str(caught.value) == (
        "board.dtb: /bus: resolving addresses and interrupts takes more than 500000 steps"
    )


PROPS = st.sampled_from(
    [
        "reg",
        "ranges",
        "#address-cells",
        "#size-cells",
        "iommus",
        "iommu-map",
        "iommu-map-mask",
        "#iommu-cells",
        "phandle",
        "interrupts",
        "interrupts-extended",
        "interrupt-parent",
        "#interrupt-cells",
        "interrupt-map",
        "interrupt-map-mask",
        "interrupt-controller",
        "status",
        "compatible",
        "device_type",
    ]
)
CELLS = st.lists(st.integers(0, 6) | st.sampled_from([0xFFFF_FFFF, 0x1000]), max_size=9)


@sliced(400)
@given(st.lists(st.tuples(st.integers(0, 7), PROPS, CELLS | st.binary(max_size=9)), max_size=30))
def test_any_tree_has_a_meaning(edits: list[tuple[int, str, list[int] | bytes]]) -> None:
    tree = board()
    node = device(tree, iommus=(SMMU, 1))
    nodes = [*tree.walk(), node.add("child"), node]
    for at, name, value in edits:
        target = nodes[at % len(nodes)]
        if isinstance(value, bytes):
            target.props[name] = value
        else:
            target.set_cells(name, *value)
    found = platform_of(tree)
    for one in tree.walk():
        found.reg_of(one)
        found.interrupts_of(one)
        found.page_neighbours(one)
    for master in found.masters:
        master.map_id(0)


# The boards.


def test_boards_have_no_findings_and_a_gic(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        found = Platform.from_tree(read(path.read_bytes(), path.name), path.name)
        assert found.findings == (), path.name
        assert found.gic is not None, path.name
        assert found.smmus, path.name
        assert all(smmu.base for smmu in found.smmus), path.name
        for node in found.tree.walk():
            for interrupt in found.interrupts_of(node):
                assert interrupt.kind in ("SPI", "PPI") or interrupt.reason, (path.name, node)


def load(corpus: Path, name: str) -> Platform:
    return Platform.from_tree(read((corpus / "dtbs" / name).read_bytes(), name), name)


def test_hip07_has_one_stream_id_on_four_smmus(corpus: Path) -> None:
    board_ = load(corpus, "hip07-d05.dtb")
    assert [s.status for s in board_.smmus] == ["disabled", "okay", "okay", "okay", "okay"]
    streams = [(m.path, *m.streams) for m in board_.masters]
    assert streams == [
        (f"/soc/crypto@{at}d0000000", Stream(f"/iommu@{at}d0040000", 0x600))
        for at in ("", "8", "400", "408")
    ]
    last = board_.resolve("/soc/crypto@408d0000000")
    assert board_.reg_of(last)[0] == Reg(0x408_D000_0000, 0x10000)
    kinds = {i.kind for smmu in board_.smmus for i in smmu.interrupts}
    assert kinds == {"MSI"}


def test_tegra264_has_two_smmus_of_one_name(corpus: Path) -> None:
    board_ = load(corpus, "tegra264-p3971-0089+p3834-0008.dtb")
    alike = [(s.path, s.base, s.status) for s in board_.smmus if s.path.endswith("iommu@6000000")]
    assert alike == [
        ("/bus@8100000000/iommu@6000000", 0x81_0600_0000, "okay"),
        ("/bus@8800000000/iommu@6000000", 0x88_0600_0000, "disabled"),
    ]
    hda = board_.resolve("/bus@8800000000/hda@90b0000")
    assert board_.reg_of(hda)[0].cpu_base == 0x88_090B_0000


def test_imx95_monitors_are_not_smmus(corpus: Path) -> None:
    board_ = load(corpus, "imx95-19x19-evk.dtb")
    assert [smmu.path for smmu in board_.smmus] == ["/soc/bus@49000000/iommu@490d0000"]
    assert len(board_.pmcgs) == 12
    assert {m.map_mask for m in board_.masters if m.is_pci} >= {0x1FF}


def test_seattle_ethernets_share_a_page(corpus: Path) -> None:
    board_ = load(corpus, "amd-overdrive-rev-b1.dtb")
    eth = board_.resolve("/bus/ethernet@e0700000")
    assert board_.page_neighbours(eth) == ("/bus/ethernet@e0900000",)


def test_agilex5_ethernet_has_seventeen_spis(corpus: Path) -> None:
    board_ = load(corpus, "socfpga_agilex5_socdk.dtb")
    eth = board_.resolve("/soc@0/ethernet@10830000")
    assert [i.number for i in board_.interrupts_of(eth)] == list(range(256, 273))
    assert board_.reg_of(eth) == (Reg(0x1083_0000, 0x3500),)


def test_legacy_map_board(corpus: Path) -> None:
    board_ = load(corpus, "legacy-map-sc7280-idp2-612.dtb")
    (pcie,) = [m for m in board_.masters if m.maps]
    assert [(r.rid_base, r.sid_base, r.length) for r in pcie.maps] == [
        (0, 0x1C80, 1),
        (0x100, 0x1C81, 1),
    ]
