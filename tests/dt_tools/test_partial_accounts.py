# SPDX-License-Identifier: BSD-2-Clause
"""The account of each device: nothing of a host node is lost, changed or added in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools import blob
from dt_tools.account import RULES, Account, account
from dt_tools.binding import allocate
from dt_tools.errors import Refusal
from dt_tools.extended import AddressMap
from dt_tools.partial import Partial, build_partial
from dt_tools.platform import Platform
from dt_tools.profiles import GuestProfile
from dt_tools.tree import Node, Tree
from tests.counts import sliced

if TYPE_CHECKING:
    from pathlib import Path

GUEST = GuestProfile()
GIC, SMMU, CLOCK, INNER, RAM = 1, 2, 3, 4, 5


def host() -> Tree:
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", GIC)
    gic = root.add("gic@8000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", GIC)
    smmu = root.add("iommu@5000000")
    smmu.set_strings("compatible", "arm,smmu-v3")
    smmu.set_cells("reg", 0, 0x5000000, 0, 0x20000)
    smmu.set_cells("#iommu-cells", 1)
    smmu.set_cells("phandle", SMMU)
    clock = root.add("clock")
    clock.set_strings("compatible", "fixed-clock", "syscon")
    clock.set_cells("#clock-cells", 0)
    clock.set_cells("phandle", CLOCK)
    memory = root.add("reserved-memory").add("pool@90000000")
    memory.set_cells("phandle", RAM)
    return tree


def bus(tree: Tree) -> Node:
    """A device on a bus of one cell each that lies 4 GiB up, with registers behind it."""
    soc = tree.root.add("soc")
    soc.set_cells("#address-cells", 1)
    soc.set_cells("#size-cells", 1)
    soc.set_cells("ranges", 0, 1, 0, 0x80000000)
    node = soc.add("wrap@20000000")
    node.set_cells("reg", 0x20000000, 0x1000)
    node.set_cells("iommus", SMMU, 7)
    node.set_cells("#address-cells", 1)
    node.set_cells("#size-cells", 1)
    node.set_cells("ranges", 0x0, 0x20000000, 0x10000)
    node.set_empty("interrupt-controller")
    node.set_cells("#interrupt-cells", 1)
    node.set_cells("phandle", INNER)
    node.set_cells("interrupts", 0, 40, 4)
    child = node.add("uart@4000")
    child.set_cells("reg", 0x4000, 0x1800)
    child.set_cells("interrupts", 3)
    other = node.add("uart@8000")
    other.set_cells("reg", 0x8000, 0x1000)
    other.set_cells("interrupt-parent", GIC)
    other.set_cells("interrupts", 0, 41, 4)
    return node


def build(tree: Tree, **options: object) -> Partial:
    platform = Platform.from_tree(tree, "host.dtb")
    paths = [master.path for master in platform.masters if master.streams]
    bindings = allocate(platform, paths)
    return build_partial(platform, paths, bindings, AddressMap(GUEST, ()), **options)


def listed(made: Account) -> dict[str, str]:
    """Property -> rule, of what is rewritten or added."""
    return dict((*made.rewritten, *made.added))


def test_registers_behind_a_device_are_the_guests() -> None:
    tree = host()
    bus(tree)
    made = build(tree)
    guest = made.tree.node("/passthrough/wrap@120000000")
    assert guest.cells("reg") == (1, 0x20000000, 0, 0x1000)
    assert (guest.cells("#address-cells"), guest.cells("#size-cells")) == ((2,), (2,))
    assert guest.props["ranges"] == b""
    uart, other = guest.children.values()
    assert uart.cells("reg") == (1, 0x20004000, 0, 0x1800)
    assert (uart.cells("interrupts"), uart.cells("interrupt-parent")) == ((3,), (INNER,))
    # Behind a controller the GIC has to be named.
    assert other.cells("interrupts") == (0, 41, 4)
    assert other.cells("interrupt-parent") == (65000,)
    assert [(r.host, r.size) for r in made.iomem] == [
        (0x120000000, 0x1000), (0x120004000, 0x2000), (0x120008000, 0x1000),
    ]  # fmt: skip
    assert [r.host for r in made.devices[0].regs] == [0x120000000, 0x120004000, 0x120008000]
    assert made.irqs == (72, 73)
    assert listed(made.accounts[0]) == {
        "reg": "reg-to-guest",
        "iommus": "iommus-to-vmasters",
        "#address-cells": "bus-to-guest",
        "#size-cells": "bus-to-guest",
        "ranges": "bus-to-guest",
        "uart@4000/reg": "reg-to-guest",
        "uart@4000/interrupt-parent": "interrupts-of-own-controller",
        "uart@8000/reg": "reg-to-guest",
        "uart@8000/interrupt-parent": "interrupts-to-gic",
    }
    assert set(listed(made.accounts[0]).values()) <= RULES.keys()


def test_registers_behind_a_device_share_no_page_with_others() -> None:
    tree = host()
    bus(tree)
    other = tree.root.add("rtc@120005000")
    other.set_cells("reg", 1, 0x20005800, 0, 0x10)
    with pytest.raises(Refusal) as error:
        build(tree)
    assert str(error.value) == (
        "DT205: /soc/wrap@20000000: its child /soc/wrap@20000000/uart@4000 shares a 4 KiB page of "
        "registers with /rtc@120005000; assign /rtc@120005000 too, or neither"
    )


def test_links_between_parts_of_the_guest_are_carried() -> None:
    tree = host()
    node = bus(tree)
    for name, number, to in (("uart@4000", 0x30, 0x31), ("uart@8000", 0x31, 0x30)):
        port = node.children[name].add("port")
        port.add("endpoint").set_cells("remote-endpoint", to)
        port.children["endpoint"].set_cells("phandle", number)
    lone = node.add("ports").add("port")
    lone.add("endpoint").set_cells("remote-endpoint", CLOCK)
    made = build(tree)
    guest = made.tree.node("/passthrough/wrap@120000000")
    ends = [guest.children[n].children["port"].children["endpoint"] for n in list(guest.children)]
    assert [end.cells("remote-endpoint") for end in ends] == [(0x31,), (0x30,)]
    assert [end.phandle for end in ends] == [0x30, 0x31]
    assert {d.property for d in made.accounts[0].dropped if d.property[-1] == "/"} == {"ports/"}


def test_memory_of_the_host_is_told() -> None:
    tree = host()
    node = bus(tree)
    node.set_cells("memory-region", RAM)
    made = build(tree)
    reasons = {d.property: d.reason for d in made.devices[0].dropped}
    pool = "/reserved-memory/pool@90000000"
    assert (
        reasons["memory-region"]
        == f"{pool} is a pool of the host; the guest's driver takes its own RAM"
    )
    assert "DT208" not in [n.rule for n in made.notices]
    tree.node(pool).set_cells("reg", 0, 0x90000000, 0, 0x1000)
    assert [str(n) for n in build(tree).notices if n.rule == "DT208"] == [
        f"DT208 /soc/wrap@20000000: memory-region dropped: {pool} is memory of the host; "
        "a guest has no /reserved-memory"
    ]


def test_a_vendors_property_that_names_a_block_of_all_drivers_is_dropped() -> None:
    tree = host()
    node = bus(tree)
    node.set_cells("acme,sys-ctrl", CLOCK, 4)
    node.set_cells("acme,clock", CLOCK)
    node.set_cells("acme,tap", CLOCK)
    node.set_cells("nr-gpios", CLOCK)
    made = build(tree)
    reasons = {d.property: d.reason for d in made.devices[0].dropped}
    assert (
        reasons["acme,sys-ctrl"] == reasons["acme,clock"] == ("its first cell seems to name /clock")
    )
    assert {"acme,tap", "nr-gpios"} <= set(made.accounts[0].carried)


@pytest.mark.parametrize("phandle", [65000, 65003, 70000])
def test_phandles_of_carried_nodes_are_xens_to_refuse(phandle: int) -> None:
    tree = host()
    node = bus(tree)
    node.set_cells("phy-handle", phandle)
    node.children["uart@4000"].set_cells("phandle", phandle)
    with pytest.raises(Refusal) as error:
        build(tree)
    assert error.value.rule == "DT402"


def test_a_difference_without_a_reason_stops_the_builder() -> None:
    source, copy = Node("a"), Node("a")
    source.set_cells("x", 1)
    with pytest.raises(AssertionError, match="x lost without a reason"):
        account(source, copy, {}, [])
    copy.set_cells("x", 2)
    with pytest.raises(AssertionError, match="x changed without a rule"):
        account(source, copy, {}, [])
    assert account(source, copy, {"x": "r"}, []).rewritten == (("x", "r"),)


NAMES = (
    "reg", "interrupts", "interrupts-extended", "interrupt-names", "interrupt-parent", "phandle",
    "linux,phandle", "ranges", "#address-cells", "#size-cells", "#interrupt-cells", "clocks",
    "interrupt-controller", "interrupt-map", "clock-names", "memory-region", "acme,mode", "status",
    "dma-coherent", "pinctrl-0", "pinctrl-names", "port", "remote-endpoint", "compatible",
)  # fmt: skip
VALUES = st.one_of(
    st.lists(st.sampled_from((0, 1, 2, 3, 4, 5, 0x20000000, 0x30, 0xFFFFFFFF)), max_size=6).map(
        lambda cells: b"".join(cell.to_bytes(4, "big") for cell in cells)
    ),
    st.sampled_from((b"", b"a\0b\0", b"okay\0", b"arm,gic-v3\0", b"x", b"\0\0\0")),
)
PROPS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8)


@sliced(400)
@given(
    PROPS,
    st.lists(st.tuples(st.sampled_from(("a", "b@1", "port", "ports")), PROPS), max_size=4),
    st.sampled_from(("drop", "stub", "refuse")),
    st.booleans(),
)
def test_any_device_is_accounted_for(
    props: list[tuple[str, bytes]],
    below: list[tuple[str, list[tuple[str, bytes]]]],
    providers: str,
    deep: bool,
) -> None:
    tree = host()
    node = bus(tree)
    node.props.update(props)
    at = node
    for name, inner in below:
        at = at.children[name] if name in at.children else at.add(name)
        at.props.update(inner)
        at = at if deep else node
    try:
        made = build(tree, providers=providers)
    except Refusal as error:
        assert error.fix  # noqa: PT017
        return
    check(made, tree)
    blob.write(made.tree)


def check(made: Partial, tree: Tree) -> None:
    """The lists of the account are those that the two trees give."""
    for one in made.accounts:
        host_node, guest = tree.node(one.path), made.tree.node(one.guest_path)
        here = dict(flat(host_node))
        there = dict(flat(guest))
        dropped = {d.property for d in one.dropped}
        assert set(one.carried) == {p for p in here if there.get(p) == here[p]}
        assert {r.property for r in one.added} == there.keys() - here.keys()
        assert all(d.reason for d in one.dropped)
        assert {rule for _, rule in (*one.rewritten, *one.added)} <= RULES.keys()
        rest = here.keys() - set(one.carried) - {r.property for r in one.rewritten}
        whole = tuple(name for name in dropped if name.endswith("/"))
        assert {p for p in rest if not p.startswith(whole)} <= dropped


def flat(node: Node) -> list[tuple[str, bytes]]:
    start = len(node.path) + 1
    return [
        (f"{inner.path}/{name}"[start:], raw)
        for inner in node.walk()
        for name, raw in inner.props.items()
    ]


def test_boards(corpus: Path) -> None:
    """Every master of the corpus that can be built."""
    count = 0
    for place in sorted((corpus / "dtbs").glob("*.dtb")):
        board = Platform.from_tree(blob.read(place.read_bytes(), place.name), place.name)
        for master in board.masters:
            try:
                bindings = allocate(board, [master.path], viommu=False)
                space = AddressMap(GUEST, ())
                made = build_partial(
                    board, [master.path], bindings, space, viommu=False, providers="stub"
                )
            except Refusal:
                continue
            check(made, board.tree)
            count += 1
    assert count > 40
