# SPDX-License-Identifier: BSD-2-Clause
"""Stand-ins for clocks and regulators: which there are, what they say, and their phandles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools.binding import allocate
from dt_tools.errors import Refusal
from dt_tools.extended import AddressMap
from dt_tools.partial import Partial, build_partial
from dt_tools.platform import Platform
from dt_tools.profiles import GuestProfile
from dt_tools.tree import Node, Tree
from tests.counts import sliced

GUEST = GuestProfile()
SMMU, OSC, HALF, GATE, VDD, VAR, RESET = 2, 10, 11, 12, 13, 14, 15


def host() -> Tree:
    """An SMMU, an oscillator, a divider of it, a controller of clocks and resets, two supplies."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    smmu = root.add("iommu@5000000")
    smmu.set_strings("compatible", "arm,smmu-v3")
    smmu.set_cells("reg", 0, 0x5000000, 0, 0x20000)
    smmu.set_cells("#iommu-cells", 1)
    smmu.set_cells("phandle", SMMU)
    osc = provider(root, "osc", OSC, "#clock-cells", 0, "fixed-clock")
    osc.set_cells("clock-frequency", 48_000_000)
    half = provider(root, "half", HALF, "#clock-cells", 0, "fixed-factor-clock")
    half.set_cells("clocks", OSC)
    half.set_cells("clock-mult", 3)
    half.set_cells("clock-div", 2)
    provider(root, "ccu", GATE, "#clock-cells", 1, "test,ccu").set_cells("#reset-cells", 1)
    vdd = provider(root, "vdd", VDD, "none", 0, "test,ldo")
    vdd.set_strings("regulator-name", "vdd-3v3")
    vdd.set_cells("regulator-min-microvolt", 3_300_000)
    vdd.set_cells("regulator-max-microvolt", 3_300_000)
    var = provider(root, "var", VAR, "none", 0, "test,buck")
    var.set_cells("regulator-min-microvolt", 800_000)
    var.set_cells("regulator-max-microvolt", 900_000)
    return tree


def provider(root: Node, name: str, phandle: int, cells: str, count: int, kind: str) -> Node:
    node = root.add(name)
    node.set_strings("compatible", kind)
    if cells != "none":
        node.set_cells(cells, count)
    node.set_cells("phandle", phandle)
    return node


def dma(tree: Tree, at: int = 0) -> Node:
    node = tree.root.add(f"dma@{0x20000000 + 0x10000 * at:x}")
    node.set_cells("reg", 0, 0x20000000 + 0x10000 * at, 0, 0x1000)
    node.set_cells("iommus", SMMU, at)
    node.set_empty("xen,passthrough")
    return node


def build(tree: Tree, providers: str = "stub", **options: int) -> Partial:
    platform = Platform.from_tree(tree, "host.dtb")
    paths = [master.path for master in platform.masters]
    bindings = allocate(platform, paths)
    space = AddressMap(GUEST, ())
    return build_partial(platform, paths, bindings, space, providers=providers, **options)


def stubs(made: Partial) -> dict[str, Node]:
    bus = made.tree.node("/passthrough")
    return {n: node for n, node in bus.children.items() if "reg" not in node.props}


def rates(made: Partial) -> list[int | None]:
    return [node.u32("clock-frequency") for node in stubs(made).values()]


def reasons(made: Partial) -> dict[str, str]:
    return {one.property: one.reason for one in made.devices[0].dropped}


def test_one_clock_for_each_clock_of_the_host() -> None:
    tree = host()
    dma(tree).set_cells("clocks", OSC, GATE, 7, 0, GATE, 8, OSC)
    tree.root.children["dma@20000000"].set_strings("clock-names", *"abcde")
    dma(tree, 1).set_cells("clocks", GATE, 8)
    made = build(tree)
    first, second = (made.tree.node(d.guest_path) for d in made.devices)
    assert first.cells("clocks") == (64998, 64997, 0, 64996, 64998)
    assert first.strings("clock-names") == tuple("abcde")
    assert second.cells("clocks") == (64996,)
    assert list(stubs(made)) == ["clock-0", "clock-1", "clock-2"]
    assert dict(stubs(made)["clock-0"].props) == {
        "compatible": b"fixed-clock\0",
        "#clock-cells": bytes(4),
        "clock-frequency": (48_000_000).to_bytes(4, "big"),
        "phandle": (64998).to_bytes(4, "big"),
    }
    assert [str(n) for n in made.notices if n.rule in ("DT220", "DT221")] == [
        "DT220 /dma@20000000: clocks: stand-ins, the host has to leave these on",
        "DT220 /dma@20010000: clocks: stand-ins, the host has to leave these on",
        "DT221 /dma@20000000: clock-1, for a clock of /ccu: its rate is not known, "
        "100000000 Hz is written",
        "DT221 /dma@20000000: clock-2, for a clock of /ccu: its rate is not known, "
        "100000000 Hz is written",
    ]


def test_where_rates_come_from() -> None:
    tree = host()
    node = dma(tree)
    node.set_cells("clocks", OSC, HALF, GATE, 1, GATE, 2)
    node.set_cells("assigned-clocks", GATE, 5, GATE, 1)
    node.set_cells("assigned-clock-rates", 1, 77_000_000)
    node.set_cells("clock-frequency", 5)
    ccu = tree.root.children["ccu"]
    made = build(tree, stub_clock_hz=9)
    assert rates(made) == [48_000_000, 72_000_000, 77_000_000, 9]
    ccu.set_cells("assigned-clocks", GATE, 2)
    ccu.set_cells("assigned-clock-rates", 66)
    assert rates(build(tree)) == [48_000_000, 72_000_000, 77_000_000, 66]
    assert reasons(made)["assigned-clocks"] == "/ccu is not assigned"
    assert "assigned-clock-rates" in reasons(made)


def test_clock_frequency_of_a_device_with_one_clock_unless_it_is_a_bus() -> None:
    tree = host()
    node = dma(tree)
    node.set_cells("clocks", GATE, 1)
    node.set_cells("clock-frequency", 1_843_200)
    assert rates(build(tree)) == [1_843_200]
    node.set_cells("#address-cells", 1)
    assert rates(build(tree)) == [100_000_000]


def test_the_rate_that_any_user_tells() -> None:
    tree = host()
    dma(tree).set_cells("clocks", GATE, 1)
    second = dma(tree, 1)
    second.set_cells("clocks", GATE, 1)
    second.set_cells("clock-frequency", 12)
    made = build(tree)
    assert rates(made) == [12]
    assert "DT221" not in [n.rule for n in made.notices]


def test_factors_in_a_circle_and_without_a_divisor_tell_no_rate() -> None:
    tree = host()
    half = tree.root.children["half"]
    dma(tree).set_cells("clocks", HALF)
    half.set_cells("clock-div", 0)
    assert rates(build(tree)) == [100_000_000]
    half.set_cells("clock-div", 1)
    half.set_cells("clocks", HALF)
    assert rates(build(tree)) == [100_000_000]
    half.set_cells("clocks", OSC)
    half.set_cells("clock-mult", 1000)
    assert rates(build(tree)) == [100_000_000]


def test_supplies_of_one_voltage_have_stand_ins() -> None:
    tree = host()
    node = dma(tree)
    node.set_cells("vdd-supply", VDD)
    node.set_cells("io-supply", VDD)
    node.set_cells("core-supply", VAR)
    made = build(tree)
    guest = made.tree.node(made.devices[0].guest_path)
    assert guest.cells("vdd-supply") == guest.cells("io-supply") == (64998,)
    assert "core-supply" not in guest.props
    assert reasons(made)["core-supply"] == "/var is not assigned; its voltage is not fixed"
    assert dict(stubs(made)["regulator-0"].props) == {
        "compatible": b"regulator-fixed\0",
        "regulator-name": b"vdd-3v3\0",
        "regulator-min-microvolt": (3_300_000).to_bytes(4, "big"),
        "regulator-max-microvolt": (3_300_000).to_bytes(4, "big"),
        "phandle": (64998).to_bytes(4, "big"),
    }
    tree.root.children["var"].set_empty("regulator-always-on")
    stub = stubs(build(tree))["regulator-1"]
    assert list(stub.props) == ["compatible", "regulator-name", "regulator-always-on", "phandle"]
    assert stub.string("regulator-name") == "var"


def test_what_has_no_stand_in_is_dropped_with_the_reason() -> None:
    tree = host()
    node = dma(tree)
    node.set_cells("resets", GATE, 1)
    node.set_strings("reset-names", "all")
    made = build(tree)
    why = "/ccu is not assigned; Linux has no driver that could stand in for it"
    assert reasons(made)["resets"] == why
    assert reasons(made)["reset-names"] == "names the entries of resets, which is dropped"
    assert stubs(made) == {}


def test_a_clock_list_that_cannot_be_read_is_dropped() -> None:
    tree = host()
    node = dma(tree)
    for cells, reason in (
        ((OSC, 0x99), "phandle 0x99 names no node of the host tree"),
        ((OSC, GATE), "/ccu is not assigned"),
        ((VDD,), "/vdd is not assigned"),
    ):
        node.set_cells("clocks", *cells)
        made = build(tree)
        assert reasons(made)["clocks"] == reason
        assert stubs(made) == {}
    node.props["clocks"] = b"\0\0\0\x0a\0"
    assert reasons(build(tree))["clocks"] == "has 5 bytes, not cells"


def test_names_and_phandles_stay_clear_of_the_hosts() -> None:
    tree = host()
    node = tree.root.add("clock-0")
    node.set_cells("iommus", SMMU, 9)
    node.set_cells("clocks", OSC, HALF)
    tree.root.children["iommu@5000000"].set_cells("phandle", 64998)
    node.set_cells("iommus", 64998, 9)
    made = build(tree)
    assert made.tree.node("/passthrough/clock-0").cells("clocks") == (64997, 64996)
    assert list(stubs(made)) == ["clock-0", "clock-1", "clock-2"]


@pytest.mark.parametrize(
    ("name", "cells", "text"),
    [
        ("clocks", (OSC,), "clocks: /osc is not assigned"),
        ("vdd-supply", (VDD,), "vdd-supply: /vdd is not assigned"),
        ("resets", (GATE, 1), "resets: /ccu is not assigned"),
        ("memory-region", (VAR,), "memory-region: /var is a pool of the host; the guest's driver "
         "takes its own RAM"),
        ("test,syscon", (GATE, 4), "test,syscon: describes the host's buses or a provider outside "
         "the guest"),
    ],
)  # fmt: skip
def test_refused_by_name(name: str, cells: tuple[int, ...], text: str) -> None:
    tree = host()
    dma(tree).set_cells(name, *cells)
    with pytest.raises(Refusal) as error:
        build(tree, "refuse")
    fix = "assign the provider too, or let the property be dropped (--providers drop)"
    assert str(error.value) == f"DT201: /dma@20000000: {text}; {fix}"


CELLS = st.lists(
    st.sampled_from((OSC, HALF, GATE, VDD, 0, 1, 0x99, 0xFFFFFFFF, 64997)), max_size=6
)  # fmt: skip
NAMES = ("clocks", "assigned-clocks", "assigned-clock-rates", "vdd-supply", "resets", "x-supply")


@sliced(300)
@given(st.lists(st.tuples(st.sampled_from(NAMES), CELLS), max_size=6), st.integers(0, 2))
def test_any_list_gives_a_tree_without_dangling_references(
    drawn: list[tuple[str, list[int]]], bits: int
) -> None:
    tree = host()
    node = dma(tree)
    for name, cells in drawn:
        node.set_cells(name, *cells)
    if bits:
        node.props[NAMES[bits]] = b"\0" * bits
    made = build(tree)
    known = {n.phandle: n for n in made.tree.walk() if n.phandle is not None}
    assert all(phandle < 65000 and phandle not in tree.phandles() for phandle in known)
    guest = made.tree.node(made.devices[0].guest_path)
    for name in ("clocks", "resets", "vdd-supply", "x-supply"):
        cells = guest.cells(name) or ()
        assert set(cells) <= {*known, 0, 0xFFFFFFFF}
