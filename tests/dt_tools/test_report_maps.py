# SPDX-License-Identifier: BSD-2-Clause
"""The report's maps: StreamIDs of an SMMU, dependencies, interrupts, register pages."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools.blob import read
from dt_tools.errors import DtbError
from dt_tools.masters import MapRow, Master
from dt_tools.platform import Platform
from dt_tools.report import assign
from dt_tools.report import references as references_module
from dt_tools.report.explain import explain
from dt_tools.report.explain_text import print_explained
from dt_tools.report.facts import Facts
from dt_tools.report.jsonreport import inspect_report, to_line
from dt_tools.report.references import MAX_NEEDS, Need, References
from dt_tools.report.resources import interrupt_map, interrupts_by_node, page_map
from dt_tools.report.streams import Entry, intervals, repeated, shared, stream_maps
from dt_tools.report.terminal import print_inspected, report_lines
from dt_tools.report.wording import (
    entry_ids,
    interrupt_rows,
    number_runs,
    region_rows,
    stream_lines,
    unused,
)
from dt_tools.tree import Node, Tree
from tests.counts import sliced

GIC, V3, V2 = 1, 2, 3


def board() -> Tree:
    """A GICv3, an SMMUv3 and an SMMUv2 that matches under a mask."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 1)
    root.set_cells("#size-cells", 1)
    root.set_cells("interrupt-parent", GIC)
    gic = root.add("gic@1000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("phandle", GIC)
    for name, what, cells, phandle in (
        ("iommu@2000000", "arm,smmu-v3", 1, V3),
        ("iommu@3000000", "arm,mmu-500", 2, V2),
    ):
        smmu = root.add(name)
        smmu.set_strings("compatible", what)
        smmu.set_cells("reg", int(name[6:], 16), 0x20000)
        smmu.set_cells("#iommu-cells", cells)
        smmu.set_cells("phandle", phandle)
    return tree


def device(tree: Tree, at: int, *iommus: int, size: int = 0x1000) -> Node:
    node = tree.root.add(f"dev@{at:x}")
    node.set_strings("compatible", "test,dev")
    node.set_cells("reg", at, size)
    if iommus:
        node.set_cells("iommus", *iommus)
    return node


def maps_of(tree: Tree) -> dict[str, tuple[tuple[Entry, ...], object]]:
    found = Platform.from_tree(tree)
    maps = stream_maps(found, repeated(found), shared(found))
    return {one.smmu: (one.entries, one.holes) for one in maps}


# StreamIDs.


def test_a_map_joins_adjacent_ids_of_one_master_and_tells_the_holes() -> None:
    tree = board()
    device(tree, 0x500_0000, V3, 3, V3, 2, V3, 4, V3, 8)
    device(tree, 0x600_0000, V3, 5).set_strings("status", "disabled")
    entries, holes = maps_of(tree)["/iommu@2000000"]
    assert [(e.first, e.last, e.master, e.status) for e in entries] == [
        (2, 4, "/dev@5000000", "okay"),
        (5, 5, "/dev@6000000", "disabled"),
        (8, 8, "/dev@5000000", "okay"),
    ]
    assert holes == ((0, 1), (6, 7))


def test_a_map_has_requester_ids_and_marks_what_is_shared_or_repeated() -> None:
    tree = board()
    device(tree, 0x500_0000, V3, 0x10)
    device(tree, 0x600_0000, V2, 0x10, 0)
    pci = device(tree, 0x700_0000)
    pci.set_cells("iommu-map", 0x100, V3, 0x8, 0x10)
    entries, _ = maps_of(tree)["/iommu@2000000"]
    assert entries == (
        Entry(8, 0x17, 0, "/dev@7000000", "okay", 0x100, 2, 2, ("/dev@5000000",), 1, 1),
        Entry(0x10, 0x10, 0, "/dev@5000000", "okay", None, 2, 2, ("/dev@7000000",), 1, 1),
    )


@sliced(60)
@given(st.integers(0, 0x7FFF), st.integers(0, 0x7FFF))
def test_a_mask_stands_for_all_ids_it_lets_through(base: int, mask: int) -> None:
    tree = board()
    device(tree, 0x500_0000, V2, base, mask)
    (master,) = Platform.from_tree(tree).masters
    spans = intervals(master, {"/iommu@3000000"})
    found = {at for first, end, _ in spans for at in range(first, end)}
    expected = {at for at in range(0x8000) if (at ^ base) & ~mask == 0}
    low = (~mask & (mask + 1)).bit_length() - 1
    if (mask >> low).bit_count() > 6:
        expected = {base}
    assert found == expected
    assert intervals(master) == ((base, base + 1, "/iommu@3000000"),)


def test_an_entry_with_a_mask_is_shown_with_it() -> None:
    tree = board()
    device(tree, 0x500_0000, V2, 0x20, 0x1F, V2, 0x100, 0x80)
    report = inspect_report(Platform.from_tree(tree))
    (one,) = report["stream_ids"]["maps"]
    assert [entry_ids(entry) for entry in one["entries"]] == ["0x20..0x3f", "0x100/0x80"]
    assert unused(one["unused"]) == "0x0..0x1f, 0x40..0xff, 0x101..0x17f"
    assert unused(None) == "not known: an entry's mask has too many bits"
    assert unused([]) == "none below the last used one"
    assert report["smmus"][1]["stream_id_last"] == "0x180"


def test_a_mask_of_too_many_bits_leaves_the_holes_unknown() -> None:
    tree = board()
    device(tree, 0x500_0000, V2, 0, 0x5554)
    assert maps_of(tree)["/iommu@3000000"][1] is None


# Dependencies.


def providers() -> Tree:
    """A device with a clock behind a PMIC on a bus, a supply, a reset and a GPIO interrupt."""
    tree = board()
    root = tree.root
    osc = root.add("osc")
    osc.set_cells("#clock-cells", 0)
    osc.set_cells("phandle", 10)
    clk = root.add("clk@4000000")
    clk.set_strings("compatible", "test,clk")
    clk.set_cells("#clock-cells", 1)
    clk.set_cells("#reset-cells", 1)
    clk.set_cells("phandle", 11)
    clk.set_cells("clocks", 10)
    i2c = root.add("i2c@4100000")
    i2c.set_strings("compatible", "test,i2c")
    i2c.set_cells("clocks", 11, 7)
    pmic = i2c.add("pmic@5")
    pmic.set_strings("compatible", "test,pmic")
    ldo = pmic.add("ldo1")
    ldo.set_cells("phandle", 12)
    gpio = root.add("gpio@4200000")
    gpio.set_strings("compatible", "test,gpio")
    gpio.set_cells("#interrupt-cells", 2)
    gpio.set_cells("#gpio-cells", 2)
    gpio.set_empty("interrupt-controller")
    gpio.set_cells("phandle", 13)
    node = device(tree, 0x500_0000, V3, 1)
    node.set_cells("clocks", 11, 1, 11, 2)
    node.set_cells("resets", 11, 9)
    node.set_cells("vdd-supply", 12)
    node.set_cells("interrupts-extended", 13, 4, 1)
    return tree


def needs_of(tree: Tree, path: str = "/dev@5000000") -> tuple[Need, ...]:
    node = tree.node(path)
    assert node is not None
    return Facts(Platform.from_tree(tree)).needs(node)


def test_the_closure_follows_providers_and_what_they_sit_on() -> None:
    dev, ldo = "/dev@5000000", "/i2c@4100000/pmic@5/ldo1"
    assert needs_of(providers()) == (
        Need("/iommu@2000000", ("iommus",), dev, 1, 1),
        Need("/clk@4000000", ("clocks", "resets"), dev, 1, 2),
        Need(ldo, ("vdd-supply",), dev, 1, 1),
        Need("/gpio@4200000", ("interrupts",), dev, 1, 1),
        Need("/osc", ("clocks",), "/clk@4000000", 2, 1),
        Need("/i2c@4100000/pmic@5", ("parent",), ldo, 2, 0),
        Need("/i2c@4100000", ("parent",), "/i2c@4100000/pmic@5", 3, 0),
    )


@pytest.mark.parametrize(
    ("prop", "cells", "found"),
    [
        ("clocks", (11, 1, 10, 11, 2), ["/clk@4000000", "/osc"]),
        ("clocks", (0, 10), ["/osc"]),
        ("clocks", (99, 10), []),
        ("reset-gpios", (13, 1, 0), ["/gpio@4200000"]),
        ("nr-gpios", (13,), []),
        ("gpio-controller", (13,), []),
        ("pinctrl-0", (10, 12), ["/osc", "/i2c@4100000/pmic@5/ldo1"]),
        ("memory-region", (12, 10), ["/i2c@4100000/pmic@5/ldo1", "/osc"]),
        ("altr,sysmgr-syscon", (11, 10, 12), ["/clk@4000000"]),
        ("fsl,grf", (11, 10), ["/clk@4000000"]),
        ("msi-map", (0, 13, 0, 8, 8, 11, 0, 8), ["/gpio@4200000", "/clk@4000000"]),
        ("clock-names", (11,), []),
    ],
)
def test_forms_of_references(prop: str, cells: tuple[int, ...], found: list[str]) -> None:
    tree = providers()
    node = tree.root.add("user")
    node.set_cells(prop, *cells)
    references = References(Platform.from_tree(tree))
    assert [target.path for _, target in references.of(node)] == found


def test_a_device_that_others_need_says_so() -> None:
    tree = providers()
    node = tree.root.children["dev@5000000"]
    node.set_cells("phandle", 20)
    other = tree.root.add("uart")
    other.set_cells("dmas", 20, 20)
    tree.root.add("off").set_cells("dmas", 20)
    tree.root.children["off"].set_strings("status", "disabled")
    report = inspect_report(Platform.from_tree(tree))
    (master,) = report["masters"]
    assert master["needed_by"] == ["/uart"]
    texts = {reason["rule"]: reason["text"] for reason in master["reasons"]}
    assert texts["DT209"] == "1 node depends on it: /uart"
    what = "clocks, resets, vdd-supply"
    assert texts["DT201"] == f"2 providers stay outside the guest: {what}"


def test_graph_links_are_not_followed_and_circles_end() -> None:
    tree = board()
    first, second = (device(tree, at, V3, at >> 20) for at in (0x500_0000, 0x600_0000))
    for node, own, other in ((first, 30, 31), (second, 31, 30)):
        port = node.add("port")
        port.set_cells("phandle", own)
        port.set_cells("remote-endpoint", other)
        port.set_cells("clocks", other)
    first.set_cells("phandle", 40)
    second.set_cells("phandle", 41)
    first.set_cells("memory-region", 41)
    second.set_cells("memory-region", 40)
    assert [n.path for n in needs_of(tree)] == ["/iommu@2000000", "/dev@6000000"]


def test_long_closures_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = board()
    for i in range(400):
        node = tree.root.add(f"c{i}")
        node.set_cells("phandle", 100 + i)
        node.set_cells("memory-region", 101 + i)
    device(tree, 0x500_0000, V3, 1).set_cells("memory-region", 100)
    assert len(needs_of(tree)) == MAX_NEEDS
    monkeypatch.setattr(references_module, "MAX_STEPS", 100)
    report = inspect_report(Platform.from_tree(tree))
    text = "the lists of what devices depend on are not complete: too many references"
    assert text in [f["text"] for f in report["findings"]]


def test_dma_offsets_and_reserved_memory_are_told() -> None:
    tree = board()
    bus = tree.root.add("bus")
    for name in ("#address-cells", "#size-cells"):
        bus.set_cells(name, 1)
    bus.set_empty("ranges")
    bus.set_cells("dma-ranges", 0, 0x8000_0000, 0x1000_0000)
    node = bus.add("dev@7000000")
    node.set_cells("reg", 0x700_0000, 0x1000)
    node.set_cells("iommus", V3, 7)
    node.set_cells("memory-region", 50)

    def texts() -> list[str]:
        (master,) = inspect_report(Platform.from_tree(tree))["masters"]
        return [reason["text"] for reason in master["reasons"] if reason["rule"] == "DT208"]

    offset = "its DMA addresses are offset by dma-ranges of /bus, which is not carried"
    assert texts() == ["its memory-region is host memory; the guest has none there", offset]
    bus.set_cells("dma-ranges", 0, 0, 0x1000_0000)
    assert len(texts()) == 1
    for odd in (b"\0\0\0", b"\0" * 8):
        bus.props["dma-ranges"] = odd
        assert texts()


# Interrupts.


def test_who_has_which_interrupt() -> None:
    tree = providers()
    device(tree, 0x600_0000).set_cells("interrupts", 0, 5, 4, 0, 5, 4, 1, 3, 8)
    tree.root.children["dev@6000000"].set_strings("interrupt-names", "a", "b")
    device(tree, 0x700_0000).set_cells("interrupts", 0, 5, 1)
    pci = device(tree, 0x800_0000)
    pci.set_cells("#address-cells", 3)
    pci.set_cells("#size-cells", 2)
    pci.set_cells("#interrupt-cells", 1)
    rows = [(0, 0, 0, pin, GIC, 0, 20 + pin, 4) for pin in (1, 2)]
    pci.set_cells("interrupt-map", *(cell for row in rows for cell in row))
    found = Platform.from_tree(tree)
    lines = interrupt_map(interrupts_by_node(found), Facts(found).routed)
    shown = {line.number: [tuple(owner) for owner in line.owners] for line in lines.spis}
    assert shown == {
        37: [
            ("/dev@6000000", "a", 4, "interrupts"),
            ("/dev@6000000", "b", 4, "interrupts"),
            ("/dev@7000000", None, 1, "interrupts"),
        ],
        53: [("/dev@8000000", None, 4, "interrupt-map")],
        54: [("/dev@8000000", None, 4, "interrupt-map")],
    }
    assert [line.number for line in lines.ppis] == [19]
    (gpio,) = lines.elsewhere
    assert (gpio.controller, gpio.kind, gpio.interrupts) == ("/gpio@4200000", "not-gic", 1)
    assert gpio.nodes == ("/dev@5000000",)
    report = inspect_report(found)
    assert interrupt_rows(report["interrupts"]["spis"]) == [
        ("37", [("/dev@6000000", " (a, b)"), ("/dev@7000000", "")]),
        ("53..54", [("/dev@8000000", " (interrupt-map)")]),
    ]


def test_an_interrupt_map_that_leads_elsewhere_is_told() -> None:
    tree = board()
    mbigen = tree.root.add("mbigen")
    mbigen.set_strings("compatible", "test,mbigen")
    mbigen.set_cells("#interrupt-cells", 2)
    mbigen.set_empty("interrupt-controller")
    mbigen.set_cells("phandle", 0x50)
    pci = device(tree, 0x800_0000, V3, 1)
    pci.set_cells("#address-cells", 3)
    pci.set_cells("#interrupt-cells", 1)
    rows = (0, 0, 0, 1, 0x50, 671, 4, 0, 0, 0, 2, 0x50, 672, 4, 0, 0, 0, 3, GIC, 0, 9, 4)
    pci.set_cells("interrupt-map", *rows)
    report = inspect_report(Platform.from_tree(tree))
    (there,) = report["interrupts"]["elsewhere"]
    assert there == {
        "controller": "/mbigen",
        "kind": "not-gic",
        "reason": "its controller (test,mbigen) is not the GIC",
        "count": 2,
        "nodes": ["/dev@8000000"],
    }
    assert [line["number"] for line in report["interrupts"]["spis"]] == [41]
    (master,) = report["masters"]
    assert [i["kind"] for i in master["interrupt_map"]] == ["not-gic", "not-gic", "SPI"]
    assert "/mbigen" in [need["path"] for need in master["needs"]]
    out = io.StringIO()
    print_explained(explain(Platform.from_tree(tree), "/dev@8000000"), out, width=200)
    line = "of its interrupt-map: not-gic at /mbigen: its controller (test,mbigen) is not the GIC"
    assert line in out.getvalue()


def test_hip07_sends_the_pins_of_a_bridge_to_an_mbigen(corpus: Path) -> None:
    data = (corpus / "dtbs" / "hip07-d05.dtb").read_bytes()
    found = Platform.from_tree(read(data, "hip07-d05.dtb"))
    rows = [e for e in inspect_report(found)["interrupts"]["elsewhere"]
            if "/soc/pcie@af800000" in e["nodes"]]  # fmt: skip
    assert [e["controller"] for e in rows] == ["/interrupt-controller@a0080000/intc_pcie2_a"]


def test_a_long_interrupt_map_is_read_in_part() -> None:
    tree = board()
    bus = device(tree, 0x800_0000)
    bus.set_cells("#address-cells", 0)
    bus.set_cells("#interrupt-cells", 1)
    bus.set_cells("interrupt-map", *(c for at in range(900) for c in (at, GIC, 0, at, 4)))
    assert len(Facts(Platform.from_tree(tree)).routed[bus]) == 512


def test_only_ids_that_a_requester_id_reaches_are_told() -> None:
    tree = board()
    pci = device(tree, 0x700_0000)
    rows = ((0, 0x11, 1), (0, 0x20, 0x100), (0x80, 0x300, 0x10))
    pci.set_cells("iommu-map", *(c for rid, sid, n in rows for c in (rid, V3, sid, n)))
    entries, _ = maps_of(tree)["/iommu@2000000"]
    assert [(e.first, e.last, e.rid) for e in entries] == [(0x11, 0x11, 0), (0x21, 0x11F, 1)]
    report = inspect_report(Platform.from_tree(tree))
    warned = [f["text"] for f in report["findings"] if f["rule"] == "DT505"]
    row = "iommu-map: row {} overlaps earlier rows, which come first: {} not reached"
    assert warned == [row.format("0x0+0x100", "some of its ids are"),
                      row.format("0x80+0x10", "it is")]  # fmt: skip
    lines = list(stream_lines(report["masters"][0]))
    assert lines[2:] == [
        "  0x0..0xff -> 0x20..0x11f at /iommu@2000000"
        " (reached by 0x1..0xff only: earlier rows come first)",
        "  0x80..0x8f -> 0x300..0x30f at /iommu@2000000 (not reached: earlier rows come first)",
    ]


def test_ids_that_the_mask_leaves_out_and_rows_it_refuses() -> None:
    tree = board()
    pci = device(tree, 0x700_0000)
    pci.set_cells("iommu-map", 0x100, V3, 0x1000, 0x200, 0x200, V3, 0, 1)
    pci.set_cells("iommu-map-mask", 0x1FF)
    entries, _ = maps_of(tree)["/iommu@2000000"]
    assert [(e.first, e.last, e.rid) for e in entries] == [(0x1000, 0x10FF, 0x100)]
    (master,) = inspect_report(Platform.from_tree(tree))["masters"]
    assert list(stream_lines(master))[1].endswith(
        "(reached by 0x100..0x1ff only: iommu-map-mask leaves ids out)"
    )
    assert [r["text"] for r in master["reasons"] if r["rule"] == "DT505"] == [
        "iommu-map: id base 0x200 has bits outside iommu-map-mask 0x1ff; rows from there on are"
        " not read"
    ]


@sliced(150)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3000), st.integers(0, 40)), max_size=6),
    st.sampled_from((0x3F, 0x1F, 0x3C, 0x2B, 0, 0x30, 0xFFFFFFFF)),
)
def test_reach_equals_a_look_at_every_requester_id(rows, mask: int) -> None:
    rows = [(rid & mask, sid, length) for rid, sid, length in rows]
    maps = tuple(MapRow(rid, "/s", sid, length) for rid, sid, length in rows)
    master = Master("/p", "okay", (), maps, mask, True, Node("p"))
    told = {
        rid: rid - row.rid_base + row.sid_base
        for row, runs, _, _ in master.reach()
        for first, end in runs
        for rid in range(first, end)
    }
    found = {rid & mask: master.map_id(rid) for rid in range(200)}
    assert told == {rid: stream.stream_id for rid, stream in found.items() if stream is not None}


def test_a_mask_full_of_gaps_does_not_make_a_run_of_every_id() -> None:
    maps = tuple(MapRow(at << 17, "/s", 0, 1 << 16) for at in range(50))
    master = Master("/p", "okay", (), maps, 0xFFFF_FFFE, True, Node("p"))
    reach = master.reach()
    assert sum(len(one.runs) for one in reach) < 100
    assert all(one.masked for one in reach)


def test_ids_on_smmus_before_version_3_need_no_vmaster_ids() -> None:
    tree = board()
    device(tree, 0x500_0000, V3, 0x10)
    device(tree, 0x600_0000, V2, 0x10, 0)
    report = inspect_report(Platform.from_tree(tree))
    assert [f for f in report["findings"] if f["rule"] == "DT502"] == []
    (group,) = report["stream_ids"]["on_several_smmus"]
    assert group["smmu_v3"] == ["/iommu@2000000"]
    out = io.StringIO()
    print_inspected(report, out, width=200)
    text = "on 2 SMMUs, of which only one is an SMMUv3 and can have a vSMMU"
    assert out.getvalue().count(text) == 2
    assert "vMasterIDs" not in out.getvalue()


def test_devices_all_in_one_page_are_inspected_in_part() -> None:
    tree = board()
    for at in range(4_000):
        node = tree.root.add(f"d@{at:x}")
        node.set_cells("reg", 0x500_0000, 0x10)
        node.set_cells("iommus", V3, at)
    report = inspect_report(Platform.from_tree(tree))
    assert len(report["masters"]) == 4_000
    assert {m["assignable"] for m in report["masters"]} <= {"together", "no"}
    assert ("DT205", "warning", "/") in [
        (f["rule"], f["severity"], f["path"]) for f in report["findings"]
    ]


def test_a_master_that_shares_an_spi_says_so() -> None:
    tree = board()
    device(tree, 0x500_0000, V3, 1).set_cells("interrupts", 0, 5, 4)
    device(tree, 0x600_0000).set_cells("interrupts", 0, 5, 4)
    (master,) = inspect_report(Platform.from_tree(tree))["masters"]
    reasons = [(r["rule"], r["effect"], r["text"]) for r in master["reasons"]]
    assert reasons == [("DT307", "notice", "interrupt 37 is /dev@6000000's too")]


def test_numbers_are_told_as_runs() -> None:
    assert number_runs([5, 3, 4, 9, 4]) == "3..5, 9"
    assert number_runs([]) == ""


# Pages.


def test_pages_regions_and_memory() -> None:
    tree = board()
    device(tree, 0x500_0000, size=0x800)
    device(tree, 0x500_0800, size=0x1000)
    parent = device(tree, 0x600_0000, size=0x2000)
    parent.set_empty("ranges")
    parent.set_cells("#address-cells", 1)
    parent.set_cells("#size-cells", 1)
    parent.add("part@6001000").set_cells("reg", 0x600_1000, 0x10)
    lost = parent.add("bus")
    lost.set_cells("#address-cells", 1)
    lost.set_cells("#size-cells", 1)
    lost.set_empty("ranges")
    lost.add("bad@1").set_cells("reg", 1)
    memory = tree.root.add("memory@80000000")
    memory.set_strings("device_type", "memory")
    memory.set_cells("reg", 0x8000_0000, 0x1000_0000)
    kept = tree.root.add("reserved-memory")
    for name in ("#address-cells", "#size-cells"):
        kept.set_cells(name, 1)
    kept.set_empty("ranges")
    kept.add("fw@80000000").set_cells("reg", 0x8000_0000, 0x1000)
    found = page_map(Platform.from_tree(tree))
    pair = ("/dev@5000000", "/dev@5000800")
    nest = ("/dev@6000000", "/dev@6000000/part@6001000")
    assert [tuple(run) for run in found.shared] == [
        (0x500_0000, 0x500_0FFF, pair, False),
        (0x600_1000, 0x600_1FFF, nest, True),
    ]
    assert {r.path: r.shares for r in found.regions if r.shares} == {
        pair[0]: (pair[1],),
        pair[1]: (pair[0],),
        nest[0]: (nest[1],),
        nest[1]: (nest[0],),
    }
    assert found.untranslated == ("/dev@6000000/bus/bad@1",)
    assert found.memory == (
        (0x8000_0000, 0x1000, "/reserved-memory/fw@80000000", "reserved"),
        (0x8000_0000, 0x1000_0000, "/memory@80000000", "memory"),
    )


def test_page_neighbours_are_followed_from_page_to_page() -> None:
    tree = board()
    device(tree, 0x500_0000, V3, 1, size=0x800)
    device(tree, 0x500_0800, V3, 2, size=0x1000)
    device(tree, 0x500_1800, V3, 3, size=0x1000)
    device(tree, 0x500_2800, size=0x800)
    report = inspect_report(Platform.from_tree(tree))
    first = report["masters"][0]
    assert first["page_neighbours"] == ["/dev@5000800"]
    assert first["page_closure"] == ["/dev@5000800", "/dev@5001800", "/dev@5002800"]
    assert [(r["rule"], r["effect"], r["text"]) for r in first["reasons"]] == [
        ("DT205", "together", "has registers in a 4 KiB page with /dev@5000800"),
        ("DT205", "together", "is tied through these to /dev@5001800"),
        ("DT205", "blocks", "is tied through these to /dev@5002800, which cannot be assigned"),
    ]
    assert first["assignable"] == "no"


def test_ranges_of_one_node_without_a_gap_are_one_row() -> None:
    regions = [
        {"base": hex(base), "size": hex(size), "path": path}
        for base, size, path in (
            (0x1000, 0x1000, "/a"),
            (0x2000, 0x800, "/a"),
            (0x2800, 0x800, "/b"),
            (0x4000, 0, "/b"),
        )
    ]
    assert region_rows(regions) == [
        ("0x1000..0x27ff", "/a (2 ranges)"),
        ("0x2800..0x2fff", "/b"),
        ("0x4000 (size 0)", "/b"),
    ]


# Boards.


def test_agilex5_shares_its_system_manager(corpus: Path) -> None:
    name = "socfpga_agilex5_socdk.dtb"
    report = inspect_report(Platform.from_tree(read((corpus / "dtbs" / name).read_bytes()), name))
    ethernet = next(m for m in report["masters"] if m["path"] == "/soc@0/ethernet@10830000")
    numbers = sorted(i["number"] for i in ethernet["interrupts"])
    syscon = next(n for n in ethernet["needs"] if "altr,sysmgr-syscon" in n["properties"])
    assert (syscon["path"], syscon["depth"]) == ("/soc@0/sysmgr@10d12000", 1)
    assert syscon["users"] == 1, "the other two of its kind are disabled"
    owners = {line["number"]: line["owners"] for line in report["interrupts"]["spis"]}
    assert all(ethernet["path"] in {o["path"] for o in owners[n]} for n in numbers)


def test_every_rule_of_a_verdict_has_a_title() -> None:
    source = Path(assign.__file__).read_text()
    used = set(re.findall(r'Reason\("(DT\d+)"', source)) | {"DT401", "DT405"}
    assert used == set(assign.TITLES)


def test_the_text_of_every_board_fits(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        report = inspect_report(Platform.from_tree(read(path.read_bytes(), path.name), path.name))
        text = ["".join(p for p, _ in line) for line in report_lines(report, 80).lines]
        assert max(map(len, text)) <= 80


def boards() -> list[Path]:
    place = os.environ.get("VSMMU_BOARDS")
    if not place or not Path(place).is_dir():
        pytest.skip("VSMMU_BOARDS names no folder of boards")
    return sorted(Path(place).rglob("*.dtb"))


@pytest.mark.soak
def test_all_boards_are_inspected() -> None:
    for path in boards():
        report = inspect_report(Platform.from_tree(read(path.read_bytes(), path.name), path.name))
        assert report_lines(report, 80).lines
        for one in report["stream_ids"]["maps"]:
            spans = [(int(e["first"], 16), int(e["last"], 16)) for e in one["entries"]]
            for hole in one["unused"] or ():
                first, last = int(hole["first"], 16), int(hole["last"], 16)
                assert all(b < first or a > last for a, b in spans), path.name


# Hostile trees.


@sliced(80)
@given(st.data())
def test_no_tree_breaks_the_report(samples: Path, data: st.DataObject) -> None:
    """Properties of a sound board replaced by cells, text or noise; only DtbError may come."""
    tree = read((samples / "board.dtb").read_bytes())
    nodes = list(tree.walk())
    names = sorted({name for node in nodes for name in node.props})
    phandles = sorted(tree.phandles())
    cell = st.one_of(st.sampled_from(phandles), st.integers(0, 8), st.integers(0, 0xFFFFFFFF))
    for _ in range(data.draw(st.integers(1, 8))):
        node = data.draw(st.sampled_from(nodes))
        name = data.draw(st.sampled_from(names))
        cells = data.draw(st.lists(cell, max_size=9))
        tail = data.draw(st.sampled_from([b"", b"", b"\0", b"x"]))
        node.props[name] = struct.pack(f">{len(cells)}I", *cells) + tail
    try:
        report = inspect_report(Platform.from_tree(tree))
    except DtbError:
        return
    assert to_line(report).isascii()
    for width in (20, 80):
        lines = report_lines(report, width).lines
        assert all("\n" not in piece for line in lines for piece, _ in line)
