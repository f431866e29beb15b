# SPDX-License-Identifier: BSD-2-Clause
"""Guests with a vSMMU for each physical SMMU, with PCI functions, and the calls that make them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt_tools import blob
from dt_tools.binding import Bindings
from dt_tools.errors import Refusal
from dt_tools.guest import GuestTree, Options, build_guest
from dt_tools.hypercalls import hypercalls
from dt_tools.pci import read_lspci
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree
from xl_configs import load

BASE = 'name = "g"\nkernel = "k"\nmemory = 64\nviommu = "smmuv3"\n'


def host(*devices: tuple[int, int], spi: int = 40) -> Platform:
    """SMMUv3s with the phandles 2 and 3, devices /dma@N of (phandle, StreamID), SPIs from `spi`."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", 1)
    gic = root.add("gic@8000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", 1)
    for phandle, base in ((2, 0x5000000), (3, 0x5100000)):
        smmu(root, base, phandle)
    for at, (phandle, stream) in enumerate(devices):
        base = 0x20000000 + at * 0x10000
        node = root.add(f"dma@{base:x}")
        node.set_cells("reg", 0, base, 0, 0x1000)
        node.set_cells("iommus", phandle, stream)
        node.set_cells("interrupts", 0, spi - 32 + at, 4)
        node.set_empty("xen,passthrough")
    return Platform.from_tree(tree, "host.dtb")


def smmu(root: Node, base: int, phandle: int) -> None:
    node = root.add(f"iommu@{base:x}")
    node.set_strings("compatible", "arm,smmu-v3")
    node.set_cells("reg", 0, base, 0, 0x20000)
    node.set_cells("#iommu-cells", 1)
    node.set_cells("phandle", phandle)


def build(platform: Platform, text: str = "", **options: object) -> GuestTree:
    masters = [m.path for m in platform.masters if m.path.startswith("/dma")]
    dtdev = f"dtdev = {json.dumps(masters)}\n" if masters and "dtdev" not in text else ""
    config = load((BASE + dtdev + text + "\n").encode(), "g.cfg")
    return build_guest(config, platform=platform, options=Options(**options))


def test_a_vsmmu_for_each_smmu() -> None:
    built = build(host((3, 0x600), (2, 0x600), (3, 0x601)), one_vsmmu_per_psmmu=True)
    nodes = [n for n in built.tree.walk() if n.is_compatible("arm,smmu-v3")]
    assert [(n.path, n.cells("reg"), n.phandle, n.cells("interrupts")) for n in nodes] == [
        ("/iommu@4040000", (0, 0x4040000, 0, 0x40000), 65002, (0, 12, 0xF04)),
        ("/iommu@4080000", (0, 0x4080000, 0, 0x40000), 65003, (0, 13, 0xF04)),
    ]
    bus = built.tree.node("/passthrough")
    assert [n.cells("iommus") for n in bus.children.values()] == [
        (65002, 0),
        (65003, 0),
        (65002, 1),
    ]
    assert [(v.smmu, v.spi) for v in built.bindings.viommus] == [
        ("/iommu@5100000", 44),
        ("/iommu@5000000", 45),
    ]
    assert built.bindings.viommu is None
    # SPIs of the devices are 40, 41 and 42; the vSMMUs' are above virtio's.
    assert built.nr_spis == 14
    read = Platform.from_tree(blob.read(blob.write(built.tree)), "guest.dtb")
    for master in read.masters:
        for stream in master.streams:
            index = [n.path for n in nodes].index(stream.smmu_path)
            assert built.bindings.resolve(stream.stream_id, index) is not None


def test_virtio_keeps_its_spis_beside_vsmmus_of_their_own() -> None:
    text = 'virtio = [ "type=virtio,device,transport=mmio" ]'
    mirrored = build(host((2, 1)), text, one_vsmmu_per_psmmu=True)
    assert mirrored.tree.node("/virtio@2000000").cells("interrupts") == (0, 1, 0xF01)
    joined = build(host((2, 1)), text)
    assert joined.tree.node("/virtio@2000000").cells("interrupts") == (0, 2, 0xF01)


@pytest.mark.parametrize(("spi", "spis"), [(44, (47, 48)), (45, (44, 47)), (43, (45, 46))])
def test_a_vsmmus_spi_is_no_devices(spi: int, spis: tuple[int, int]) -> None:
    """Two devices, SPIs `spi` and `spi` + 1; a third interrupt comes by irqs."""
    extra = {44: 46, 45: 60, 43: 60}[spi]
    built = build(host((2, 1), (3, 1), spi=spi), f"irqs = [ {extra} ]", one_vsmmu_per_psmmu=True)
    assert tuple(v.spi for v in built.bindings.viommus) == spis


def test_an_earlier_spi_stays_unless_a_device_has_it_now() -> None:
    first = build(host((2, 1), (3, 1)), one_vsmmu_per_psmmu=True).bindings
    old = Bindings.from_json(json.loads(json.dumps(first.to_json())))
    board = host((2, 1), (3, 1), (2, 9))
    again = build(board, one_vsmmu_per_psmmu=True, old=old)
    assert [v.spi for v in again.bindings.viommus] == [44, 45]
    moved = build(board, "irqs = [ 44 ]", one_vsmmu_per_psmmu=True, old=old)
    assert [v.spi for v in moved.bindings.viommus] == [46, 45]
    text = "DT303 /iommu@5000000: its vSMMU had SPI 44, which a device has now: it gets 46"
    assert text in [str(n) for n in moved.notices]


def test_no_device_no_vsmmu() -> None:
    built = build(host(), one_vsmmu_per_psmmu=True)
    assert not [n for n in built.tree.walk() if n.is_compatible("arm,smmu-v3")]
    assert [str(n) for n in built.notices] == ["DT509 /: no device is behind an SMMU: no vSMMU"]


def test_more_vsmmus_than_there_is_room_for() -> None:
    tree = host().tree
    for at in range(128):
        smmu(tree.root, 0x60000000 + at * 0x100000, 100 + at)
        node = tree.root.add(f"dma@{at:x}")
        node.set_cells("iommus", 100 + at, 1)
    platform = Platform.from_tree(tree, "host.dtb")
    with pytest.raises(Refusal) as error:
        build(platform, one_vsmmu_per_psmmu=True)
    assert str(error.value) == (
        "DT212: /: the guest would have more than 127 vSMMUs; give it one vSMMU for all its devices"
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    devices=st.lists(
        st.tuples(st.sampled_from((2, 3)), st.integers(0, 5)), min_size=1, max_size=6, unique=True
    ),
    one_vsmmu_per_psmmu=st.booleans(),
)
def test_what_the_guest_reads_resolves_to_the_hosts(
    devices: list[tuple[int, int]], one_vsmmu_per_psmmu: bool
) -> None:
    board = host(*devices, spi=60)
    built = build(board, one_vsmmu_per_psmmu=one_vsmmu_per_psmmu)
    masters = {m.path: m for m in board.masters}
    read = Platform.from_tree(blob.read(blob.write(built.tree)), "guest.dtb")
    own = {n.path: i for i, n in enumerate(x for x in read.tree.walk()
           if x.is_compatible("arm,smmu-v3"))}  # fmt: skip
    guest = {m.path: m for m in read.masters}
    for device in built.bindings.devices:
        found = [
            built.bindings.resolve(s.stream_id, own[s.smmu_path])
            for s in guest[device.guest_path].streams
        ]
        wanted = [(s.smmu_path, s.stream_id) for s in masters[device.path].streams]
        assert [(e.smmu, e.pmaster_id) for e in found] == wanted
    windows = sorted((v.base, v.base + v.size) for v in built.bindings.all_viommus)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(windows))


# PCI.


@pytest.fixture(scope="module")
def pci_board(samples: Path) -> Platform:
    return Platform.from_tree(blob.read((samples / "pci-board.dtb").read_bytes()), "pci-board.dtb")


@pytest.mark.parametrize("one_vsmmu_per_psmmu", [False, True])
def test_two_functions_behind_different_smmus(
    pci_board: Platform, one_vsmmu_per_psmmu: bool
) -> None:
    pci = 'pci = [ "0000:01:00.0", "0001:01:00.0" ]'
    built = build(pci_board, pci, one_vsmmu_per_psmmu=one_vsmmu_per_psmmu)
    order = list(built.tree.root.children)
    assert order[order.index("hypervisor") + 1] == "pcie@10000000"
    cells = built.tree.node("/pcie@10000000").cells("iommu-map")
    found = [(e.viommu, e.vmaster_id, e.smmu, e.pmaster_id) for e in built.bindings.entries]
    if one_vsmmu_per_psmmu:
        assert cells == (0, 65002, 0, 1, 8, 65003, 0, 1)
        assert found == [(0, 0, "/iommu@50000000", 0x100), (1, 0, "/iommu@70000000", 0x100)]
    else:
        assert cells == (0, 65002, 0, 1, 8, 65002, 1, 1)
        assert found == [(0, 0, "/iommu@50000000", 0x100), (0, 1, "/iommu@70000000", 0x100)]
    assert [e.devices for e in built.bindings.entries] == [
        ("/pcie@40000000 0000:01:00.0",),
        ("/pcie@60000000 0001:01:00.0",),
    ]
    made = [(d.path, d.guest_path, d.vmaster_ids) for d in built.bindings.devices]
    second = 0 if one_vsmmu_per_psmmu else 1
    assert made == [
        ("/pcie@40000000 0000:01:00.0", "/pcie@10000000 0000:00:00.0", (0,)),
        ("/pcie@60000000 0001:01:00.0", "/pcie@10000000 0000:00:01.0", (second,)),
    ]


def test_a_virtual_its(pci_board: Platform) -> None:
    built = build(pci_board, 'pci = [ "0000:01:00.0", "0001:01:00.0" ]', vits=True)
    gic = built.tree.node("/interrupt-controller@3001000")
    assert [gic.cells(p) for p in ("#address-cells", "#size-cells", "ranges")] == [(2,), (2,), ()]
    its = gic.children["its@4020000"]
    assert (its.cells("reg"), its.phandle) == ((0, 0x4020000, 0, 0x20000), 65130)
    assert "msi-controller" in its.props
    bridge = built.tree.node("/pcie@10000000")
    # The DeviceID is the requester id; rows that go on are one.
    assert bridge.cells("msi-map") == (0, 65130, 0, 1, 8, 65130, 8, 1)
    assert "DT529" not in {n.rule for n in built.notices}
    with pytest.raises(Refusal) as error:
        build(host(), 'gic_version = "v2"', vits=True)
    assert error.value.rule in ("DT529", "DT607")


def test_a_function_without_a_vsmmu_has_a_bridge_and_no_map(pci_board: Platform) -> None:
    built = build(pci_board, 'pci = [ "0000:01:00.0" ]\nviommu = "none"')
    assert "iommu-map" not in built.tree.node("/pcie@10000000").props
    assert built.bindings.entries == ()


def test_the_topology_decides(pci_board: Platform, samples: Path) -> None:
    topology = read_lspci((samples / "pci-board.lspci").read_text(), "pci-board.lspci")
    text = 'pci = [ "0000:03:01.0" ]'
    alone = build(pci_board, text)
    known = build(pci_board, text, topology=topology)
    assert [e.pmaster_id for e in alone.bindings.entries] == [0x308]
    assert "DT528" in {n.rule for n in alone.notices}
    # Behind a PCIe-to-PCI bridge: the secondary bus, device 0, function 0.
    assert [e.pmaster_id for e in known.bindings.entries] == [0x300]


def test_the_rest_of_the_host_bridge_stays_clear(pci_board: Platform) -> None:
    """iomem onto the virtual bridge's windows is told; a placed device does not land there."""
    text = 'pci = [ "0000:01:00.0" ]\niomem = [ "0x99000,1@0x10000" ]'
    built = build(pci_board, text)
    told = [n.message for n in built.notices if n.rule == "DT207"]
    assert told == [
        "iomem 0x99000,0x1 at guest 0x10000000 overlaps the PCI host bridge "
        "[0x10000000, 0x20000000)"
    ]


# Hypervisor calls.


def calls(built: GuestTree, text: str, platform: Platform) -> list[dict[str, object]]:
    config = load((BASE + text + "\n").encode(), "g.cfg")
    made = hypercalls(config, built)
    assert made["schema"] == "vsmmu.hypercalls/1"
    assert made["guest"] == "g"
    return made["calls"]


def test_the_calls_for_two_devices() -> None:
    board = host((2, 0x600), (2, 0x601), (3, 0x600))
    text = 'dtdev = [ "/dma@20000000", "/dma@20010000", "/dma@20020000" ]\nvcpus = 2'
    built = build(board, text)
    made = calls(built, text, board)
    assert made[0] == {
        "hypercall": "XEN_DOMCTL_createdomain",
        "flags": ["XEN_DOMCTL_CDF_hvm", "XEN_DOMCTL_CDF_hap", "XEN_DOMCTL_CDF_iommu"],
        "max_vcpus": 2,
        "arch": {
            "gic_version": "XEN_DOMCTL_CONFIG_GIC_V3",
            "nr_spis": 11,
            "tee_type": "XEN_DOMCTL_CONFIG_TEE_NONE",
            "viommu_type": "XEN_DOMCTL_CONFIG_VIOMMU_SMMUV3",
        },
    }
    names = [call["hypercall"] for call in made[1:]]
    assert names == [
        *["XEN_DOMCTL_viommu_alloc_vsid_range"] * 2,
        *["XEN_DOMCTL_bind_pt_irq"] * 3,
        *["XEN_DOMCTL_iomem_permission", "XEN_DOMCTL_memory_mapping"] * 3,
        *["XEN_DOMCTL_assign_device"] * 3,
    ]
    assert made[1] == {
        "hypercall": "XEN_DOMCTL_viommu_alloc_vsid_range",
        "first_psid": "0x600",
        "nr_sids": 2,
        "first_vsid": 0,
        "smmu": "/iommu@5000000",
        "smmu_base": "0x5000000",
        # The call does not say of which SMMU 0x600 is.
        "expressible": False,
    }
    assert (made[2]["first_vsid"], made[2]["expressible"]) == (2, False)
    assert made[3] == {
        "hypercall": "XEN_DOMCTL_bind_pt_irq",
        "irq_type": "PT_IRQ_TYPE_SPI",
        "spi": 40,
    }
    assert made[6:8] == [
        {
            "hypercall": "XEN_DOMCTL_iomem_permission",
            "first_mfn": "0x20000",
            "nr_mfns": 1,
            "allow_access": 1,
        },
        {
            "hypercall": "XEN_DOMCTL_memory_mapping",
            "first_gfn": "0x20000",
            "first_mfn": "0x20000",
            "nr_mfns": 1,
            "add_mapping": 1,
        },
    ]
    assert made[-1] == {
        "hypercall": "XEN_DOMCTL_assign_device",
        "dev": "XEN_DOMCTL_DEV_DT",
        "path": "/dma@20020000",
    }


def test_ranges_that_the_series_can_say() -> None:
    board = host((2, 7), (3, 1), (2, 8))
    text = 'dtdev = [ "/dma@20000000", "/dma@20010000", "/dma@20020000" ]'
    made = calls(build(board, text), text, board)
    ranges = [c for c in made if "first_psid" in c]
    assert [(c["first_psid"], c["first_vsid"], c["expressible"]) for c in ranges] == [
        ("0x7", 0, True),
        ("0x1", 1, True),
        ("0x8", 2, True),
    ]
    wanted = text + '\niommu_devid_map = [ "0x1@0x40,0x5100000" ]'
    made = calls(build(board, wanted), wanted, board)
    ranges = [c for c in made if "first_psid" in c]
    assert [(c["first_vsid"], c["nr_sids"], c["expressible"]) for c in ranges] == [
        (0, 2, True),
        (0x40, 1, False),
    ]
    mirrored = build(board, text, one_vsmmu_per_psmmu=True)
    ranges = [c for c in calls(mirrored, text, board) if "first_psid" in c]
    assert {c["expressible"] for c in ranges} == {False}
    assert [(c["viommu"], c["first_vsid"]) for c in ranges] == [(0, 0), (1, 0)]


def test_a_guest_without_devices_has_no_iommu() -> None:
    board = host()
    built = build(board)
    (made,) = calls(built, "", board)
    assert made["flags"] == ["XEN_DOMCTL_CDF_hvm", "XEN_DOMCTL_CDF_hap"]


def test_the_call_for_a_function(pci_board: Platform) -> None:
    text = 'pci = [ "0001:01:00.0" ]'
    made = calls(build(pci_board, text), text, pci_board)
    assert made[-1] == {
        "hypercall": "XEN_DOMCTL_assign_device",
        "dev": "XEN_DOMCTL_DEV_PCI",
        "machine_sbdf": "0x10100",
    }
