# SPDX-License-Identifier: BSD-2-Clause
"""Devices that dom0 does not get: what is refused, and what the two trees say."""

from __future__ import annotations

import pytest

from dt_tools import blob
from dt_tools.dom0 import VERSIONS, Given, build_dom0, build_xen_dom0, mark_host, take
from dt_tools.errors import Refusal, UserError
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree


def board() -> Tree:
    """An SMMU (2), three masters, a UART page, a clock (5), a host bridge, what Xen needs."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", 1)
    gic = device(root, "intc", 0x8000000, 0x20000)
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("reg", 0, 0x8000000, 0, 0x10000, 0, 0x80A0000, 0, 0xF60000)
    gic.set_cells("#interrupt-cells", 3)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", 1)
    smmu = device(root, "iommu", 0x9000000, 0x20000)
    smmu.set_strings("compatible", "arm,smmu-v3")
    smmu.set_cells("interrupts", 0, 40, 1)
    smmu.set_cells("#iommu-cells", 1)
    smmu.set_cells("phandle", 2)
    for index, name in enumerate(("dma", "crypto", "gpu")):
        device(root, name, 0xA000000 + index * 0x10000, 0x1000).set_cells("iommus", 2, 0x10 + index)
    clock = device(root, "clock", 0xB000000, 0x1000)
    clock.set_cells("#clock-cells", 0)
    clock.set_cells("phandle", 5)
    root.children["dma@a000000"].set_cells("clocks", 5)
    device(root, "uart", 0xC000000, 0x100)
    device(root, "uart", 0xC000800, 0x100)
    bridge = device(root, "pcie", 0x40000000, 0x100000)
    bridge.set_strings("device_type", "pci")
    bridge.set_cells("iommu-map", 0, 2, 0x1000, 0x1000)
    memory = device(root, "memory", 0x80000000, 0x40000000)
    memory.set_strings("device_type", "memory")
    cpus = root.add("cpus")
    cpus.set_cells("#address-cells", 1)
    cpus.set_cells("#size-cells", 0)
    cpu = cpus.add("cpu@0")
    cpu.set_strings("compatible", "arm,cortex-a57")
    cpu.set_strings("device_type", "cpu")
    timer = root.add("timer")
    timer.set_strings("compatible", "arm,armv8-timer")
    timer.set_cells("interrupts", 1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4)
    return tree


def device(parent: Node, name: str, base: int, size: int) -> Node:
    node = parent.add(f"{name}@{base:x}")
    node.set_strings("compatible", f"acme,{name}")
    node.set_cells("reg", 0, base, 0, size)
    return node


def platform(tree: Tree) -> Platform:
    return Platform.from_tree(tree, "host.dtb")


def content(tree: Tree) -> list[tuple[str, list[tuple[str, bytes]]]]:
    return [(node.path, list(node.props.items())) for node in tree.walk()]


CRYPTO, GPU, DMA = "/crypto@a010000", "/gpu@a020000", "/dma@a000000"


def test_the_two_trees_say_it_each_for_its_reader() -> None:
    tree = board()
    host = platform(tree)
    before = content(tree)
    given = take(host, [("a.cfg", [CRYPTO])])
    assert given == Given((CRYPTO,), ())
    made, marked = build_dom0(host, given=given), mark_host(host, given)
    node = made.node(CRYPTO)
    assert node is not None
    assert list(node.props) == ["compatible", "reg", "iommus", "status"]
    assert node.strings("status") == ("disabled",)
    changed = [(a, b) for a, b in zip(before, content(marked), strict=True) if a != b]
    assert changed == [
        ((CRYPTO, changed[0][0][1]), (CRYPTO, [*changed[0][0][1], ("xen,passthrough", b"")]))
    ]
    assert content(tree) == before
    # Both ways to the same tree: the list, and a host tree that is marked already.
    again = build_dom0(platform(marked))
    assert content(again) == content(made)
    for version in VERSIONS.values():
        ways = (
            build_xen_dom0(host, version, given=given),
            build_xen_dom0(platform(marked), version),
        )
        assert content(ways[0]) == content(ways[1])
        one = ways[0].node(CRYPTO)
        assert one is not None
        assert one.strings("status") == ("disabled",)
        assert "xen,passthrough" not in one.props
    assert content(mark_host(platform(marked), given)) == content(marked)


def test_a_status_is_replaced_where_it_stands() -> None:
    tree = board()
    node = tree.root.children["crypto@a010000"]
    raw = node.props.pop("reg")
    node.set_strings("status", "okay")
    node.props["reg"] = raw
    made = build_dom0(platform(tree), given=Given((CRYPTO,)))
    found = made.node(CRYPTO)
    assert found is not None
    assert list(found.props) == ["compatible", "iommus", "status", "reg"]


def test_what_dom0_loses_with_it_is_said() -> None:
    host = platform(board())
    given = take(host, [("a.cfg", ["/clock@b000000"])])
    made = build_dom0(host, given=given)
    assert [str(notice) for notice in made.notices] == [
        "DT101 /clock@b000000: is not a DMA master of any SMMU; if it does DMA, the guest's "
        "reaches all memory",
        f"DT611 /clock@b000000: nodes that stay with dom0 name it: {DMA} (clocks)",
    ]


REFUSED = [
    (
        [("a.cfg", ["/iommu@9000000"])],
        "DT106: /iommu@9000000: is an SMMU, which contains guests and cannot be one's; "
        "give away the devices behind it",
    ),
    (
        [("a.cfg", ["/pcie@40000000"])],
        "DT107: /pcie@40000000: is a bus with an iommu-map or a PCI host bridge, whose functions "
        "are the masters; assign its functions with pci; the bridge stays",
    ),
    (
        [("a.cfg", [CRYPTO]), ("b.cfg", [CRYPTO])],
        f"DT103: {CRYPTO}: is given to a.cfg and to b.cfg; give it to one of them",
    ),
    (
        [("a.cfg", ["/uart@c000000"])],
        "DT205: /uart@c000000: shares a 4 KiB page of registers with /uart@c000800, which stays "
        "with dom0; give away /uart@c000800 too, or neither",
    ),
    (
        [("a.cfg", ["/intc@8000000"])],
        "DT610: /intc@8000000: is the interrupt controller of all domains; name a device's node",
    ),
    ([("a.cfg", ["/cpus/cpu@0"])], "DT610: /cpus/cpu@0: is no device; name a device's node"),
    ([("a.cfg", ["/"])], "DT610: /: is no device; name a device's node"),
]


def below(kind: str) -> tuple[Tree, Node]:
    """A bus with a device below, and in that a node of the kind."""
    tree = board()
    bus = tree.root.add("bus@20000000")
    bus.set_strings("compatible", "simple-bus")
    node = bus.add("block").add("inner")
    node.set_strings("compatible", "acme,inner")
    if kind == "gic":
        inner = tree.root.children["intc@8000000"]
        inner.set_strings("compatible", "acme,no-gic")
        node.props.update(inner.props)
        node.set_strings("compatible", "arm,gic-v3")
        inner.props.pop("phandle")
    elif kind == "smmu":
        node.set_strings("compatible", "arm,smmu-v3")
    elif kind == "iommu-map":
        node.set_cells("iommu-map", 0, 2, 0x2000, 0x100)
    elif kind in ("timer", "psci"):
        node.set_strings("compatible", {"timer": "arm,armv8-timer", "psci": "arm,psci-1.0"}[kind])
    elif kind:
        node.set_strings("device_type", kind)
    return tree, node


@pytest.mark.parametrize(
    ("kind", "rule", "text"),
    [
        ("smmu", "DT106", "is an SMMU, which contains guests and cannot be one's"),
        ("iommu-map", "DT107", "is a bus with an iommu-map or a PCI host bridge, whose functions "
         "are the masters"),
        ("pci", "DT107", "is a bus with an iommu-map or a PCI host bridge, whose functions "
         "are the masters"),
        ("gic", "DT610", "is the interrupt controller of all domains"),
        ("cpu", "DT610", "is no device"),
        ("memory", "DT610", "is no device"),
        ("timer", "DT610", "is no device"),
        ("psci", "DT610", "is no device"),
    ],
)  # fmt: skip
def test_what_goes_along_is_refused_by_its_own_rule(kind: str, rule: str, text: str) -> None:
    tree, node = below(kind)
    with pytest.raises(Refusal) as error:
        take(platform(tree), [("a.cfg", ["/bus@20000000"])])
    assert (error.value.rule, error.value.path) == (rule, node.path)
    assert error.value.reason == f"{text}, and goes along with /bus@20000000"


def test_a_bus_of_devices_can_go() -> None:
    tree, _ = below("")
    assert take(platform(tree), [("a.cfg", ["/bus@20000000"])]).paths == ("/bus@20000000",)


def test_a_page_of_what_goes_along() -> None:
    tree, node = below("")
    bus = tree.root.children["bus@20000000"]
    for one in (bus, bus.children["block"]):
        one.set_cells("#address-cells", 2)
        one.set_cells("#size-cells", 2)
        one.set_empty("ranges")
    node.set_cells("reg", 0, 0xB000800, 0, 0x100)
    with pytest.raises(Refusal) as error:
        take(platform(tree), [("a.cfg", ["/bus@20000000"])])
    assert str(error.value) == (
        f"DT205: {node.path}: shares a 4 KiB page of registers with /clock@b000000, which stays "
        "with dom0; give away /clock@b000000 too, or neither"
    )


@pytest.mark.parametrize(("owners", "text"), REFUSED, ids=[text[:5] for _, text in REFUSED])
def test_refusals(owners: list[tuple[str, list[str]]], text: str) -> None:
    with pytest.raises(Refusal) as error:
        take(platform(board()), owners)
    assert str(error.value) == text


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(UserError) as error:
        take(platform(board()), [("a.cfg", ["/crypt@a010000"])])
    assert str(error.value) == (f"host.dtb: /crypt@a010000: no such node; nearest: {CRYPTO}")


def test_both_owners_of_a_page_can_go() -> None:
    given = take(platform(board()), [("a.cfg", ["/uart@c000000", "/uart@c000800"])])
    assert given.paths == ("/uart@c000000", "/uart@c000800")
    marked = board()
    marked.root.children["uart@c000800"].set_empty("xen,passthrough")
    assert take(platform(marked), [("a.cfg", ["/uart@c000000"])]).paths == ("/uart@c000000",)


def test_a_stream_has_one_owner() -> None:
    tree = board()
    tree.root.children["gpu@a020000"].set_cells("iommus", 2, 0x11)
    with pytest.raises(Refusal) as error:
        take(platform(tree), [("a.cfg", [CRYPTO])])
    assert str(error.value) == (
        f"DT503: {CRYPTO}: shares StreamID 0x11 of /iommu@9000000 with {GPU}, which stays with "
        f"dom0; give away {GPU} too, or neither"
    )
    with pytest.raises(Refusal) as error:
        take(platform(tree), [("a.cfg", [CRYPTO]), ("b.cfg", [GPU])])
    assert str(error.value) == (
        f"DT503: {GPU}: shares StreamID 0x11 of /iommu@9000000 with {CRYPTO}, which is a.cfg's; "
        "give both to one guest"
    )
    assert take(platform(tree), [("a.cfg", [CRYPTO, GPU])]).notices == ()


def test_a_stream_of_an_iommu_map_is_a_notice() -> None:
    tree = board()
    tree.root.children["gpu@a020000"].set_cells("iommus", 2, 0x1010)
    given = take(platform(tree), [("a.cfg", [GPU])])
    assert [str(notice) for notice in given.notices] == [
        f"DT503 {GPU}: StreamID 0x1010 of /iommu@9000000 is in the iommu-map of /pcie@40000000, "
        "which stays with dom0"
    ]


def test_a_child_goes_along_with_its_streams() -> None:
    tree = board()
    child = tree.root.children["crypto@a010000"].add("engine")
    child.set_cells("iommus", 2, 0x12)
    with pytest.raises(Refusal) as error:
        take(platform(tree), [("a.cfg", [CRYPTO])])
    assert error.value.rule == "DT503"
    assert error.value.path == CRYPTO


def test_the_blobs_are_sound_and_alike_each_time() -> None:
    host = platform(board())
    given = take(host, [("a.cfg", [GPU, CRYPTO])])
    assert blob.write(build_dom0(host, given=given)) == blob.write(build_dom0(host, given=given))
    assert blob.write(mark_host(host, given)) == blob.write(mark_host(host, given))


def test_what_has_resources_below_a_device_is_marked_too() -> None:
    """Xen looks at each node by itself and would map an unmarked one to dom0."""
    tree = board()
    node = tree.root.children["dma@a000000"]
    node.set_cells("#address-cells", 2)
    node.set_cells("#size-cells", 2)
    node.set_empty("ranges")
    device(node, "port", 0xA000800, 0x100)
    node.add("wire").set_cells("interrupts", 0, 9, 4)
    node.add("settings").set_strings("label", "x")
    host = platform(tree)
    given = take(host, [("g", ["/dma@a000000"])])
    marked = mark_host(host, given)
    found = [n.path for n in marked.walk() if "xen,passthrough" in n.props]
    assert found == ["/dma@a000000", "/dma@a000000/port@a000800", "/dma@a000000/wire"]
    # dom0's tree is the same whether the host's is marked or the list is given.
    again = build_dom0(platform(marked), given=Given())
    assert content(again) == content(build_dom0(host, given=given))
    off = [n.path for n in again.walk() if n.string("status") == "disabled"]
    assert off == found
