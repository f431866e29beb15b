# SPDX-License-Identifier: BSD-2-Clause
"""/passthrough, generated and written by hand, on small host trees made here."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt_tools.binding import Bindings, Dropped, GuestInterrupt, MappedReg, allocate
from dt_tools.errors import Refusal
from dt_tools.extended import IOMEM, AddressMap, extended_regions, ram_banks
from dt_tools.merge import merge_partial
from dt_tools.partial import Partial, build_partial
from dt_tools.platform import Platform
from dt_tools.profiles import GuestProfile, Window
from dt_tools.tree import Node, Tree

GUEST = GuestProfile()
GIC, SMMU_A, SMMU_B, CLOCK, MBIGEN = 1, 2, 3, 4, 5
A, B = "/iommu@5000000", "/iommu@6000000"


def host() -> Tree:
    """GICv3, two SMMUv3, a clock, a message-interrupt controller; two cells everywhere."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", GIC)
    gic = root.add("interrupt-controller@8000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("reg", 0, 0x8000000, 0, 0x10000, 0, 0x80A0000, 0, 0xF60000)
    gic.set_cells("#interrupt-cells", 3)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", GIC)
    for base, phandle in ((0x5000000, SMMU_A), (0x6000000, SMMU_B)):
        smmu = root.add(f"iommu@{base:x}")
        smmu.set_strings("compatible", "arm,smmu-v3")
        smmu.set_cells("reg", 0, base, 0, 0x20000)
        smmu.set_cells("#iommu-cells", 1)
        smmu.set_cells("phandle", phandle)
        smmu.set_cells("interrupts", 0, 74, 1)
    clock = root.add("clock")
    clock.set_strings("compatible", "fixed-clock")
    clock.set_cells("#clock-cells", 0)
    clock.set_cells("phandle", CLOCK)
    mbigen = root.add("interrupt-controller@7000000")
    mbigen.set_strings("compatible", "hisilicon,mbigen-v2")
    mbigen.set_cells("reg", 0, 0x7000000, 0, 0x1000)
    pins = mbigen.add("intc")
    pins.set_cells("#interrupt-cells", 2)
    pins.set_empty("interrupt-controller")
    pins.set_cells("phandle", MBIGEN)
    return tree


def device(parent: Node, name: str, base: int, size: int = 0x1000, smmu: int = SMMU_A) -> Node:
    node = parent.add(f"{name}@{base:x}")
    node.set_strings("compatible", f"vendor,{name}")
    node.set_cells("reg", base >> 32, base & 0xFFFFFFFF, 0, size)
    node.set_cells("iommus", smmu, 0x600)
    node.set_empty("xen,passthrough")
    return node


def space(memory: int = 64, bits: int = 40) -> AddressMap:
    made = AddressMap(GUEST, ram_banks(memory, GUEST, bits), bits)
    for name, window in GUEST.fixed_windows():
        if name in ("gic", "vsmmu", "grant-table", "magic"):
            made.claim(window, name)
    return made


def build(tree: Tree, *paths: str, viommu: bool = True, **options: object) -> Partial:
    platform = Platform.from_tree(tree, "host.dtb")
    bindings = allocate(platform, paths, viommu=viommu)
    where = options.pop("space", None) or space()
    for pin in options.get("pins", ()):
        window = Window(pin.guest, pin.size)
        if where.clash(window) is None:
            where.claim(window, IOMEM)
    return build_partial(platform, paths, bindings, where, viommu=viommu, **options)


def refusal(tree: Tree, *paths: str, **options: object) -> str:
    with pytest.raises(Refusal) as error:
        build(tree, *paths, **options)
    return str(error.value)


def texts(partial: Partial) -> list[str]:
    return [str(notice) for notice in partial.notices]


def dropped(partial: Partial, index: int = 0) -> dict[str, str]:
    return {d.property: d.reason for d in partial.devices[index].dropped}


def test_the_bus_and_a_plain_device() -> None:
    tree = host()
    node = device(tree.root, "dma", 0x20000000, 0x2000)
    node.set_cells("interrupts", 0, 40, 4, 0, 41, 1)
    node.set_strings("interrupt-names", "rx", "tx")
    node.set_cells("dma-channels", 8)
    node.set_empty("dma-coherent")
    made = build(tree, "/dma@20000000")
    bus = made.tree.node("/passthrough")
    assert bus.props == {
        "compatible": b"simple-bus\0",
        "ranges": b"",
        "#address-cells": b"\0\0\0\2",
        "#size-cells": b"\0\0\0\2",
    }
    guest = made.tree.node("/passthrough/dma@20000000")
    assert list(guest.props) == [
        "compatible", "reg", "iommus", "interrupts", "interrupt-names", "dma-channels",
        "dma-coherent",
    ]  # fmt: skip
    assert guest.cells("reg") == (0, 0x20000000, 0, 0x2000)
    assert guest.cells("interrupts") == (0, 40, 4, 0, 41, 1)
    assert guest.cells("iommus") == (65002, 0)
    assert made.irqs == (72, 73)
    assert made.iomem == (MappedReg(0x20000000, 0x20000000, 0x2000),)
    assert made.devices[0].interrupts == (GuestInterrupt(72, 4), GuestInterrupt(73, 1))
    assert made.devices[0].vmaster_ids == (0,)
    assert texts(made) == []


def test_the_host_tree_is_not_changed() -> None:
    tree = host()
    device(tree.root, "dma", 0x20000000).set_cells("clocks", CLOCK)
    before = [(n.path, dict(n.props)) for n in tree.walk()]
    build(tree, "/dma@20000000")
    assert [(n.path, dict(n.props)) for n in tree.walk()] == before


def test_equal_stream_ids_behind_two_smmus() -> None:
    tree = host()
    device(tree.root, "dma", 0x20000000, smmu=SMMU_A)
    device(tree.root, "dma", 0x30000000, smmu=SMMU_B)
    made = build(tree, "/dma@30000000", "/dma@20000000")
    nodes = made.tree.node("/passthrough").children
    assert {name: node.cells("iommus") for name, node in nodes.items()} == {
        "dma@30000000": (65002, 0),
        "dma@20000000": (65002, 1),
    }


def test_without_a_vsmmu_iommus_is_dropped_with_its_reason() -> None:
    tree = host()
    device(tree.root, "dma", 0x20000000)
    made = build(tree, "/dma@20000000", viommu=False)
    assert "iommus" not in made.tree.node("/passthrough/dma@20000000").props
    assert dropped(made)["iommus"] == "the guest has no vSMMU; stage 2 contains its DMA"
    assert made.devices[0].vmaster_ids == ()


def test_registers_are_translated_to_cpu_addresses() -> None:
    tree = host()
    bus = tree.root.add("bus@880000000")
    bus.set_cells("#address-cells", 1)
    bus.set_cells("#size-cells", 1)
    bus.set_cells("ranges", 0, 8, 0x80000000, 0x10000000)
    node = bus.add("dma@90b000")
    node.set_cells("reg", 0x90B000, 0x3500)
    node.set_cells("iommus", SMMU_A, 1)
    made = build(tree, "/bus@880000000/dma@90b000")
    guest = made.tree.node("/passthrough/dma@88090b000")
    assert guest.cells("reg") == (8, 0x8090B000, 0, 0x3500)
    # 64 MiB of RAM end at 0x44000000; the pages are rounded up, the registers are not.
    assert made.iomem == (MappedReg(0x88090B000, 0x88090B000, 0x4000),)


def test_a_register_beyond_the_guests_address_bits_is_placed() -> None:
    tree = host()
    device(tree.root, "dma", 0x400_D000_0080, 0x100)
    made = build(tree, "/dma@400d0000080")
    (reg,) = made.devices[0].regs
    assert reg == MappedReg(0x400_D000_0080, 0x6000080, 0x100)
    assert made.tree.node("/passthrough/dma@6000080").cells("reg") == (0, 0x6000080, 0, 0x100)
    assert texts(made) == [
        "DT207 /dma@400d0000080: registers 0x400d0000000+0x1000 placed at guest 0x6000000: "
        "1:1 lies beyond the guest's 40 address bits"
    ]


@pytest.mark.parametrize(
    ("base", "name", "low", "high"),
    [
        (0x40001000, "RAM bank 0", "0x40000000", "0x44000000"),
        (0x3010000, "gic", "0x3001000", "0x4020000"),
        (0x4050000, "vsmmu", "0x4040000", "0x4080000"),
        (0x38000000, "grant-table", "0x38000000", "0x39000000"),
    ],
)
def test_a_register_on_the_guests_own_map_is_placed(
    base: int, name: str, low: str, high: str
) -> None:
    tree = host()
    device(tree.root, "dma", base)
    made = build(tree, f"/dma@{base:x}")
    assert made.devices[0].regs[0].guest == 0x6000000
    assert texts(made)[0].endswith(f"1:1 overlaps {name} [{low}, {high})")


def test_a_run_of_pages_stays_together_and_registers_keep_their_offset() -> None:
    tree = host()
    node = device(tree.root, "dma", 0x400_D000_0000, 0x1000)
    node.set_cells("reg", 0x400, 0xD0001800, 0, 0x800, 0x400, 0xD0000000, 0, 0x1000)
    made = build(tree, "/dma@400d0000000")
    assert made.iomem == (MappedReg(0x400_D000_0000, 0x6000000, 0x2000),)
    assert [reg.guest for reg in made.devices[0].regs] == [0x6001800, 0x6000000]
    assert list(made.tree.node("/passthrough").children) == ["dma@6001800"]


def test_a_placed_window_does_not_take_a_1_to_1_place() -> None:
    tree = host()
    device(tree.root, "far", 0x400_D000_0000)
    device(tree.root, "near", 0x6000000 + 0x1000000, 0x1000, SMMU_B)
    near = tree.root.children["near@7000000"]
    near.set_cells("reg", 0, 0x6000000 + 0x40000, 0, 0x1000)
    made = build(tree, "/far@400d0000000", "/near@7000000")
    assert [d.regs[0].guest for d in made.devices] == [0x6000000, 0x6040000]


def test_no_room_is_refused() -> None:
    tree = host()
    device(tree.root, "dma", 0x400_0000_0000, 0x1000).set_cells("reg", 0x400, 0, 0x100, 0)
    assert refusal(tree, "/dma@40000000000") == (
        "DT207: /dma@40000000000: its registers 0x40000000000+0x10000000000 find no room in the "
        "guest; assign fewer devices or give an iomem @GFN"
    )


def test_too_many_windows_are_refused() -> None:
    tree = host()
    node = device(tree.root, "dma", 0x20000000)
    cells = [c for n in range(1025) for c in (8, n * 0x2000, 0, 0x1000)]
    node.set_cells("reg", *cells)
    assert refusal(tree, "/dma@20000000") == (
        "DT212: /dma@20000000: the guest would have more than 1024 register windows; "
        "assign fewer devices"
    )


def test_iomem_decides_where_registers_go() -> None:
    tree = host()
    device(tree.root, "dma", 0x20001080, 0x100)
    pin = MappedReg(0x20000000, 0x22100000, 0x4000)
    made = build(tree, "/dma@20001080", pins=[pin])
    assert made.devices[0].regs[0].guest == 0x22101080
    part = MappedReg(0x20001000, 0x22100000, 0x1000)
    node = tree.root.children["dma@20001080"]
    node.set_cells("reg", 0, 0x20001080, 0, 0x1000)
    assert refusal(tree, "/dma@20001080", pins=[part]) == (
        "DT207: /dma@20001080: iomem covers 0x20001000+0x1000 of its registers "
        "0x20001000+0x2000 only; let one iomem entry cover all, or none"
    )
    ram = MappedReg(0x20001000, 0x40000000, 0x2000)
    assert refusal(tree, "/dma@20001080", pins=[ram]) == (
        "DT207: /dma@20001080: iomem puts its registers at 0x40000000, which overlaps "
        "RAM bank 0 [0x40000000, 0x44000000); choose another @GFN"
    )


def test_a_placed_device_stays_clear_of_other_iomem() -> None:
    tree = host()
    device(tree.root, "dma", 0x400_D000_0000)
    made = build(tree, "/dma@400d0000000", pins=[MappedReg(0x9000000, 0x6000000, 0x1000)])
    assert made.devices[0].regs[0].guest == 0x6001000


def test_an_interrupt_that_another_host_node_has_is_noted() -> None:
    tree = host()
    device(tree.root, "dma", 0x20000000).set_cells("interrupts", 0, 74, 1)
    assert texts(build(tree, "/dma@20000000")) == [
        f"DT307 /dma@20000000: interrupt 106 is {A}'s too",
        f"DT307 /dma@20000000: interrupt 106 is {B}'s too",
    ]


def test_a_shared_page_is_refused_and_names_the_neighbour() -> None:
    tree = host()
    device(tree.root, "uart", 0x20000000, 0x100)
    device(tree.root, "uart", 0x20000800, 0x100, SMMU_B)
    assert refusal(tree, "/uart@20000000") == (
        "DT205: /uart@20000000: shares a 4 KiB page of registers with /uart@20000800; "
        "assign /uart@20000800 too, or neither"
    )
    both = build(tree, "/uart@20000000", "/uart@20000800")
    assert both.iomem == (MappedReg(0x20000000, 0x20000000, 0x1000),)


def test_a_reg_that_no_cpu_can_reach_is_refused() -> None:
    tree = host()
    bus = tree.root.add("i2c")
    bus.set_cells("#address-cells", 1)
    bus.set_cells("#size-cells", 0)
    node = bus.add("sensor@10")
    node.set_cells("reg", 0x10)
    node.set_cells("iommus", SMMU_A, 1)
    assert refusal(tree, "/i2c/sensor@10") == (
        "DT202: /i2c/sensor@10: its reg is a number on /i2c, of which it is a part; it works for "
        "that device's driver only and cannot be assigned by itself"
    )
    bus.set_cells("#size-cells", 1)
    node.set_cells("reg", 0x10, 4)
    assert refusal(tree, "/i2c/sensor@10").startswith(
        "DT202: /i2c/sensor@10: its reg is not CPU addressable"
    )


def test_a_device_without_registers_is_built_and_noted() -> None:
    tree = host()
    for parent in ("firmware", "soc"):
        node = tree.root.add(parent).add("svc")
        node.set_cells("iommus", SMMU_A, 10 + len(parent))
    made = build(tree, "/firmware/svc", "/soc/svc")
    assert list(made.tree.node("/passthrough").children) == ["svc", "svc-2"]
    text = "DT202 /firmware/svc: has no reg; the guest node has no registers"
    assert text in texts(made)


def test_interrupts_of_another_controller_are_dropped_and_named() -> None:
    tree = host()
    node = device(tree.root, "sec", 0x20000000)
    node.set_cells("interrupt-parent", MBIGEN)
    node.set_cells("interrupts", 0x240, 4, 0x241, 1)
    node.set_strings("interrupt-names", "a", "b")
    made = build(tree, "/sec@20000000")
    guest = made.tree.node("/passthrough/sec@20000000")
    assert not [name for name in guest.props if name.startswith("interrupt")]
    assert made.irqs == ()
    controller = "/interrupt-controller@7000000/intc"
    assert [t for t in texts(made) if "DT302" in t and controller in t]
    assert "interrupts" in dropped(made)


def test_a_mixed_interrupt_list_keeps_the_spis_and_their_names() -> None:
    tree = host()
    node = device(tree.root, "sec", 0x20000000)
    node.set_cells("interrupts-extended", MBIGEN, 7, 4, GIC, 0, 40, 4, GIC, 1, 5, 4)
    node.set_strings("interrupt-names", "msg", "wire", "ppi")
    made = build(tree, "/sec@20000000")
    guest = made.tree.node("/passthrough/sec@20000000")
    assert guest.cells("interrupts") == (0, 40, 4)
    assert guest.strings("interrupt-names") == ("wire",)
    assert "interrupts-extended" not in guest.props
    assert made.irqs == (72,)


def test_providers_outside_are_dropped_with_their_names() -> None:
    tree = host()
    node = device(tree.root, "eth", 0x20000000)
    node.set_cells("clocks", CLOCK, CLOCK)
    node.set_strings("clock-names", "bus", "core")
    node.set_cells("clock-frequency", 5)
    node.set_cells("resets", 0x77)
    node.set_cells("vdd-supply", CLOCK)
    node.set_cells("msi-parent", MBIGEN, 1)
    node.set_strings("status", "okay")
    made = build(tree, "/eth@20000000")
    guest = made.tree.node("/passthrough/eth@20000000")
    assert list(guest.props) == ["compatible", "reg", "iommus", "clock-frequency", "status"]
    assert dropped(made) == {
        "xen,passthrough": "meant for Xen, not for the guest",
        "clocks": "/clock is not assigned",
        "clock-names": "names the entries of clocks, which is dropped",
        "resets": "phandle 0x77 names no node of the host tree",
        "vdd-supply": "/clock is not assigned",
        "msi-parent": "describes the host's buses or a provider outside the guest",
    }
    assert texts(made) == [
        "DT201 /eth@20000000: dropped, see the bindings: clocks, clock-names, resets, "
        "vdd-supply, msi-parent"
    ]


def test_references_inside_the_device_are_carried_with_their_phandle() -> None:
    tree = host()
    node = device(tree.root, "eth", 0x20000000)
    node.set_cells("phandle", 0x30)
    node.set_cells("phy-handle", 0x31)
    mdio = node.add("mdio")
    mdio.set_cells("#address-cells", 1)
    mdio.set_cells("#size-cells", 0)
    phy = mdio.add("phy@1")
    phy.set_cells("reg", 1)
    phy.set_cells("phandle", 0x31)
    phy.set_cells("reset-gpios", CLOCK, 1)
    made = build(tree, "/eth@20000000")
    guest = made.tree.node("/passthrough/eth@20000000")
    assert guest.cells("phy-handle") == (0x31,)
    assert guest.children["mdio"].children["phy@1"].cells("phandle") == (0x31,)
    assert guest.children["mdio"].children["phy@1"].cells("reg") == (1,)
    assert "phandle" not in guest.props
    assert dropped(made)["mdio/phy@1/reset-gpios"] == "/clock is not assigned"


def test_a_carried_phandle_of_the_toolstacks_is_refused() -> None:
    tree = host()
    node = device(tree.root, "eth", 0x20000000)
    node.set_cells("phy-handle", 65002)
    node.add("phy").set_cells("phandle", 65002)
    assert refusal(tree, "/eth@20000000") == (
        "DT402: /eth@20000000/phy: its phandle 0xfdea is the vSMMU's in the guest; "
        "renumber the host tree"
    )


def test_graph_children_are_dropped_others_with_streams_refused() -> None:
    tree = host()
    node = device(tree.root, "vop", 0x20000000)
    node.add("ports").add("port").add("endpoint").set_cells("remote-endpoint", CLOCK)
    made = build(tree, "/vop@20000000")
    assert made.tree.node("/passthrough/vop@20000000").children == {}
    assert dropped(made)["ports/"] == "links to devices outside the guest"
    inner = node.add("bank")
    inner.set_cells("iommus", SMMU_A, 7)
    assert refusal(tree, "/vop@20000000") == (
        "DT210: /vop@20000000: its child /vop@20000000/bank is a DMA master of its own; "
        "assign a device without such children"
    )
    del inner.props["iommus"]
    node.set_empty("ranges")
    inner.set_cells("reg", 0, 0x20000000, 0, 0x100)
    assert refusal(tree, "/vop@20000000") == (
        "DT210: /vop@20000000: its child /vop@20000000/bank has registers that are not CPU "
        "addressable; assign a device without such children"
    )


def test_coherence_of_a_parent_bus_is_written_into_the_node() -> None:
    tree = host()
    bus = tree.root.add("soc")
    bus.set_cells("#address-cells", 2)
    bus.set_cells("#size-cells", 2)
    bus.set_empty("ranges")
    bus.set_cells("dma-ranges", 0, 0, 0, 0, 1, 0)
    bus.set_empty("dma-coherent")
    device(bus, "dma", 0x20000000)
    made = build(tree, "/soc/dma@20000000")
    assert "dma-coherent" in made.tree.node("/passthrough/dma@20000000").props
    assert texts(made) == [
        "DT208 /soc/dma@20000000: dma-coherent taken from /soc",
        "DT208 /soc/dma@20000000: dma-ranges of /soc is not carried",
    ]


def test_a_host_node_that_dom0_still_uses_is_noted() -> None:
    tree = host()
    del device(tree.root, "dma", 0x20000000).props["xen,passthrough"]
    assert texts(build(tree, "/dma@20000000")) == [
        "DT103 /dma@20000000: the host node has no xen,passthrough: dom0 has it too"
    ]


def test_two_host_nodes_of_one_name_stay_two() -> None:
    tree = host()
    for index, name in enumerate(("left", "right")):
        bus = tree.root.add(name)
        bus.set_cells("#address-cells", 1)
        bus.set_cells("#size-cells", 1)
        bus.set_cells("ranges", 0, 0x400 + index, 0, 0x80000000)
        node = bus.add("dma@1000")
        node.set_cells("reg", 0x1000, 0x1000)
        node.set_cells("iommus", SMMU_A + index, 1)
    made = build(tree, "/left/dma@1000", "/right/dma@1000")
    assert [d.guest_path for d in made.devices] == [
        "/passthrough/dma@6000000",
        "/passthrough/dma@6001000",
    ]


def test_extended_regions_go_around_devices() -> None:
    banks = ram_banks(64, GUEST, 40)
    hole = Window(0x8000_1000, 0x1000)
    regions = extended_regions(banks, GUEST, 40, [hole])
    assert regions == (
        Window(0x4400_0000, 0x3C00_0000),
        Window(0x8020_0000, 0x7FE0_0000),
        Window(0x2_0000_0000, 0xFE_0000_0000),
    )
    near_end = Window(0xFF00_0000, 0x1000)
    assert extended_regions(banks, GUEST, 40, [near_end])[0].end == 0xFF00_0000


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 0x1_FFFF_FFFF), st.integers(1, 0x200_0000)), max_size=8),
    st.integers(1, 5000),
)
def test_extended_regions_never_touch_ram_or_holes(raw: list[tuple[int, int]], memory: int) -> None:
    banks = ram_banks(memory, GUEST, 40)
    holes = [Window(base, size) for base, size in raw]
    regions = extended_regions(banks, GUEST, 40, holes)
    for region in regions:
        assert region.base % 0x200000 == 0
        assert region.size % 0x200000 == 0
        assert region.size >= 64 << 20
        assert not any(region.overlaps(other) for other in (*banks, *holes))
    assert list(regions) == sorted(regions, key=lambda r: r.base)
    assert not any(a.overlaps(b) for a, b in pairwise(regions))


REGS = st.lists(
    st.tuples(st.integers(0, 0x500_0000_0000).map(lambda v: v & ~0xFF), st.integers(1, 0x300000)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(REGS, min_size=1, max_size=4))
def test_placed_registers_never_overlap_and_keep_page_offsets(
    devices: list[list[tuple[int, int]]],
) -> None:
    tree = host()
    paths = []
    for index, regs in enumerate(devices):
        node = tree.root.add(f"d{index}@0")
        cells = [c for base, size in regs for c in (base >> 32, base & 0xFFFFFFFF, 0, size)]
        node.set_cells("reg", *cells)
        node.set_cells("iommus", SMMU_A, index)
        paths.append(node.path)
    fixed = space()
    try:
        made = build(tree, *paths, space=fixed)
    except Refusal as error:
        assert error.rule in ("DT205", "DT207")  # noqa: PT017
        return
    windows = [Window(r.guest, r.size) for r in made.iomem]
    for window in windows:
        assert window.end <= 1 << 40
        used = ("gic", "vsmmu", "grant-table", "magic")
        others = [w for name, w in GUEST.fixed_windows() if name in used] + list(fixed.banks)
        assert not any(window.overlaps(other) for other in others)
        assert not any(window.overlaps(w) for w in windows if w is not window)
    for device_binding in made.devices:
        for reg in device_binding.regs:
            assert reg.host & 0xFFF == reg.guest & 0xFFF
            assert any(
                r.host <= reg.host and reg.host + reg.size <= r.host + r.size
                and reg.guest - r.guest == reg.host - r.host
                for r in made.iomem
            )  # fmt: skip


# Written by hand.


def partial_tree() -> Tree:
    tree = Tree()
    bus = tree.root.add("passthrough")
    bus.set_strings("compatible", "simple-bus")
    bus.set_empty("ranges")
    bus.set_cells("#address-cells", 2)
    bus.set_cells("#size-cells", 2)
    return tree


def two_dmas() -> Tree:
    tree = host()
    device(tree.root, "dma", 0x20000000, smmu=SMMU_A)
    device(tree.root, "sec", 0x30000000, smmu=SMMU_B)
    return tree


def merge(tree: Tree, partial: Tree, *paths: str, viommu: bool = True) -> Partial:
    platform = Platform.from_tree(tree, "host.dtb")
    bindings = allocate(platform, paths, viommu=viommu)
    return merge_partial(
        Tree(), partial, guest=GUEST, platform=platform, devices=paths,
        bindings=bindings if viommu else None,
    )  # fmt: skip


def merge_refusal(tree: Tree, partial: Tree, *paths: str) -> str:
    with pytest.raises(Refusal) as error:
        merge(tree, partial, *paths)
    return str(error.value)


BOTH = ("/dma@20000000", "/sec@30000000")


def test_entries_are_found_by_name_xen_path_and_host_phandle() -> None:
    partial = partial_tree()
    bus = partial.root.children["passthrough"]
    bus.add("sec@30000000").set_cells("iommus", 0x8000, 0x600)
    named = bus.add("engine").add("inner")
    named.set_strings("xen,path", "/dma@20000000")
    named.set_cells("iommus", 0x8000, 0x600)
    partial.root.add("aliases").set_strings("dma0", "/passthrough/engine/inner")
    partial.root.add("chosen").set_strings("bootargs", "dropped")
    made = merge(two_dmas(), partial, *BOTH)
    assert list(made.tree.root.children) == ["passthrough", "aliases"]
    assert made.tree.node("/passthrough/sec@30000000").cells("iommus") == (65002, 1)
    assert made.tree.node("/passthrough/engine/inner").cells("iommus") == (65002, 0)
    assert [(d.path, d.guest_path, d.vmaster_ids) for d in made.devices] == [
        ("/sec@30000000", "/passthrough/sec@30000000", (1,)),
        ("/dma@20000000", "/passthrough/engine/inner", (0,)),
    ]
    by_phandle = partial_tree()
    node = by_phandle.root.children["passthrough"].add("whatever")
    node.set_cells("iommus", SMMU_B, 0x600)
    made = merge(two_dmas(), by_phandle, *BOTH)
    assert made.tree.node("/passthrough/whatever").cells("iommus") == (65002, 1)
    # The caller's tree is as it was.
    assert node.cells("iommus") == (SMMU_B, 0x600)


def test_without_a_vsmmu_everything_is_copied_as_it_stands() -> None:
    partial = partial_tree()
    partial.root.children["passthrough"].add("x").set_cells("iommus", 1, 2, 3)
    made = merge_partial(Tree(), partial, guest=GUEST)
    assert made.tree.node("/passthrough/x").cells("iommus") == (1, 2, 3)


def test_iommus_without_a_host_tree_are_refused() -> None:
    partial = partial_tree()
    partial.root.children["passthrough"].add("x").set_cells("iommus", 1, 2)
    with pytest.raises(Refusal) as error:
        merge_partial(Tree(), partial, guest=GUEST, bindings=Bindings())
    assert str(error.value) == (
        "DT501: /passthrough/x: has iommus, and there is no host tree to find its SMMU in; "
        "give the host's device tree"
    )


def test_a_phandle_that_the_partial_tree_defines_says_nothing_about_the_host() -> None:
    partial = partial_tree()
    bus = partial.root.children["passthrough"]
    partial.root.add("smmu").set_cells("phandle", SMMU_B)
    bus.add("dma@20000000").set_cells("iommus", SMMU_B, 0x600)
    made = merge(two_dmas(), partial, *BOTH)
    assert made.tree.node("/passthrough/dma@20000000").cells("iommus") == (65002, 0)


def test_an_entry_that_contradicts_the_host_is_refused() -> None:
    partial = partial_tree()
    node = partial.root.children["passthrough"].add("dma@20000000")
    node.set_cells("iommus", SMMU_B, 0x600)
    assert merge_refusal(two_dmas(), partial, *BOTH) == (
        f"DT501: /passthrough/dma@20000000: iommus says ({B}, 0x600), the host's /dma@20000000 "
        f"has ({A}, 0x600); copy the host node's iommus unchanged"
    )
    node.set_cells("iommus", 0x8000, 0x601)
    assert "iommus says (unknown SMMU, 0x601)" in merge_refusal(two_dmas(), partial, *BOTH)


def test_an_entry_of_no_assigned_device_is_refused() -> None:
    partial = partial_tree()
    partial.root.children["passthrough"].add("gpu").set_cells("iommus", 0x8000, 0x600)
    assert merge_refusal(two_dmas(), partial, *BOTH) == (
        "DT501: /passthrough/gpu: iommus <0x8000 0x600> is no stream of a device in dtdev; "
        "name the node like its host node, or give xen,path, and list it in dtdev"
    )
    node = partial.root.children["passthrough"].children["gpu"]
    node.set_strings("xen,path", "/gpu@1")
    assert merge_refusal(two_dmas(), partial, *BOTH) == (
        "DT501: /passthrough/gpu: its xen,path /gpu@1 is not in dtdev; add that path to dtdev"
    )


@pytest.mark.parametrize("raw", [b"", b"\0\0\0\1", bytes(9), bytes(12)])
def test_a_malformed_iommus_is_refused(raw: bytes) -> None:
    partial = partial_tree()
    partial.root.children["passthrough"].add("dma@20000000").props["iommus"] = raw
    assert merge_refusal(two_dmas(), partial, *BOTH) == (
        f"DT405: /passthrough/dma@20000000: iommus has {len(raw)} bytes, not pairs of cells; "
        "write <phandle StreamID> pairs"
    )


def test_streams_that_are_missing_in_the_partial_tree_are_noted() -> None:
    tree = two_dmas()
    tree.root.children["dma@20000000"].set_cells("iommus", SMMU_A, 0x600, SMMU_A, 0x601)
    partial = partial_tree()
    bus = partial.root.children["passthrough"]
    bus.add("dma@20000000").set_cells("iommus", SMMU_A, 0x601)
    made = merge(tree, partial, *BOTH)
    assert bus.children["dma@20000000"].cells("iommus") == (SMMU_A, 0x601)
    assert made.tree.node("/passthrough/dma@20000000").cells("iommus") == (65002, 1)
    assert texts(made) == [
        "DT504 /dma@20000000: 1 of its streams are not in the partial tree: their DMA faults",
        "DT504 /sec@30000000: 1 of its streams are not in the partial tree: their DMA faults",
    ]


def test_an_iommu_map_is_refused() -> None:
    partial = partial_tree()
    partial.root.children["passthrough"].add("pcie").set_cells("iommu-map", 0, 1, 0, 0x100)
    assert merge_refusal(two_dmas(), partial, *BOTH).startswith("DT505: /passthrough/pcie: ")


@pytest.mark.parametrize(
    ("phandle", "text"),
    [
        (65000, "DT402: /passthrough/d: phandle 65000 is reserved for the GIC"),
        (65001, "DT402: /passthrough/d: phandle 65001 is reserved for xen_iommu"),
        (65002, "DT402: /passthrough/d: phandle 65002 is reserved for the vSMMU"),
        (0, "DT404: /passthrough/d: phandle 0x0 is no phandle"),
        (0xFFFFFFFF, "DT404: /passthrough/d: phandle 0xffffffff is no phandle"),
        (7, "DT403: /passthrough/d: phandle 0x7 is /passthrough/c's already"),
    ],
)
def test_phandles_that_clash_are_refused(phandle: int, text: str) -> None:
    partial = partial_tree()
    partial.root.children["passthrough"].add("c").set_cells("phandle", 7)
    partial.root.children["passthrough"].add("d").set_cells("phandle", phandle)
    with pytest.raises(Refusal) as error:
        merge_partial(Tree(), partial, guest=GUEST)
    assert str(error.value).startswith(text)


def test_the_node_has_to_be_called_passthrough() -> None:
    with pytest.raises(Refusal) as error:
        merge_partial(Tree(), Tree(), guest=GUEST)
    assert str(error.value) == (
        "DT211: /passthrough: is missing in the partial tree; name the node exactly /passthrough"
    )
    partial = partial_tree()
    partial.root.add("passthrough@0")
    with pytest.raises(Refusal) as error:
        merge_partial(Tree(), partial, guest=GUEST)
    assert "is /passthrough@0 in the partial tree" in str(error.value)


def test_a_passthrough_that_is_no_bus_is_noted() -> None:
    partial = Tree()
    partial.root.add("passthrough")
    assert texts(merge_partial(Tree(), partial, guest=GUEST)) == [
        'DT213 /passthrough: lacks compatible = "simple-bus", ranges, #address-cells, '
        "#size-cells: a guest will not probe it"
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([SMMU_A, SMMU_B]), st.integers(0, 3)),
            min_size=1, max_size=3, unique=True,
        ),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_rewriting_then_resolving_gives_back_the_same_stream(
    streams: list[list[tuple[int, int]]],
) -> None:
    tree = host()
    partial = partial_tree()
    bus = partial.root.children["passthrough"]
    for index, entries in enumerate(streams):
        cells = [cell for entry in entries for cell in entry]
        for parent in (tree.root, bus):
            parent.add(f"d{index}@{index}").set_cells("iommus", *cells)
    paths = [f"/d{index}@{index}" for index in range(len(streams))]
    platform = Platform.from_tree(tree, "host.dtb")
    bindings = allocate(platform, paths)
    made = merge(tree, partial, *paths)
    smmus = {SMMU_A: A, SMMU_B: B}
    for index, entries in enumerate(streams):
        cells = made.tree.node(f"/passthrough/d{index}@{index}").cells("iommus")
        assert set(cells[::2]) == {65002}
        back = [bindings.resolve(vid) for vid in cells[1::2]]
        assert [(b.smmu, b.pmaster_id) for b in back] == [(smmus[p], s) for p, s in entries]


def test_two_builds_share_nothing() -> None:
    tree = two_dmas()
    first = build(tree, "/dma@20000000")
    second = build(tree, "/sec@30000000")
    first.tree.node("/passthrough/dma@20000000").set_empty("scribble")
    assert second.devices[0].vmaster_ids == (0,)
    assert list(second.tree.node("/passthrough").children) == ["sec@30000000"]
    again = build(tree, "/dma@20000000")
    assert "scribble" not in again.tree.node("/passthrough/dma@20000000").props
    assert Bindings() == Bindings()
    assert Dropped("a", "b") == Dropped("a", "b")
