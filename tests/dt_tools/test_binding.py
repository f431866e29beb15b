# SPDX-License-Identifier: BSD-2-Clause
"""vMasterID allocation: numbering, keys, refusals, JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools import binding
from dt_tools.binding import (
    SCHEMA,
    Binding,
    Bindings,
    DeviceBinding,
    Dropped,
    GuestInterrupt,
    MappedReg,
    Notice,
    Viommu,
    allocate,
)
from dt_tools.errors import Refusal, UserError
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree
from tests.counts import sliced
from xl_configs.specs.devid_map import DevidMap

SMMU_A, SMMU_B, SMMU_OFF = "/iommu@5000000", "/iommu@6000000", "/iommu@7000000"


def smmu(root: Node, base: int, phandle: int, compatible: str = "arm,smmu-v3") -> Node:
    node = root.add(f"iommu@{base:x}")
    node.set_strings("compatible", compatible)
    node.set_cells("reg", 0, base, 0, 0x20000)
    node.set_cells("#iommu-cells", 1)
    node.set_cells("phandle", phandle)
    return node


def board(masters: dict[str, list[tuple[int, int]]]) -> Tree:
    """Two SMMUv3 (phandles 2, 3), a disabled one (4), an mmu-500 (5), and devices by name."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    smmu(root, 0x5000000, 2)
    smmu(root, 0x6000000, 3)
    smmu(root, 0x7000000, 4).set_strings("status", "disabled")
    smmu(root, 0x8000000, 5, "arm,mmu-500")
    other = root.add("iommu@4000000")
    other.set_strings("compatible", "apple,dart")
    other.set_cells("#iommu-cells", 1)
    other.set_cells("phandle", 6)
    for index, (name, streams) in enumerate(masters.items()):
        base = 0x20000000 + index * 0x10000
        node = root.add(f"{name}@{base:x}")
        node.set_cells("reg", 0, base, 0, 0x1000)
        if streams:
            node.set_cells("iommus", *(cell for stream in streams for cell in stream))
    return tree


def platform(masters: dict[str, list[tuple[int, int]]]) -> Platform:
    return Platform.from_tree(board(masters), "board.dtb")


def paths(host: Platform, *names: str) -> list[str]:
    found = [f"/{name}" for name in host.tree.root.children]
    return [next(p for p in found if p.startswith(f"/{name}@")) for name in names]


def keys(bindings: Bindings) -> list[tuple[int, str, int]]:
    return [(e.vmaster_id, e.smmu, e.pmaster_id) for e in bindings.entries]


def test_ids_that_the_user_wants() -> None:
    host = platform({"dma": [(2, 0x600)], "sec": [(3, 0x600), (3, 7)], "usb": [(2, 9)]})
    wanted = [DevidMap(0x600, 1, 0x6000000), DevidMap(9, 0x40, 0x5000000)]
    bindings = allocate(host, paths(host, "dma", "sec", "usb"), wanted=wanted)
    assert keys(bindings) == [
        (0, SMMU_A, 0x600),
        (1, SMMU_B, 0x600),
        (2, SMMU_B, 7),
        (0x40, SMMU_A, 9),
    ]
    for entry in bindings.entries:
        assert bindings.resolve(entry.vmaster_id) == entry
    assert bindings.resolve(3) is None
    assert Bindings.from_json(bindings.to_json(), "x") == bindings
    again = allocate(host, paths(host, "dma", "sec", "usb"), wanted=[*wanted, *wanted])
    assert again == bindings


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (
            [DevidMap(0x600, 1, 0x600)],
            "DT507: /: iommu_devid_map: no SMMU of the host is at 0x600; use the address of one "
            "(SMMUs: 0x5000000, 0x6000000, 0x7000000, 0x8000000)",
        ),
        (
            [DevidMap(7, 1, 0x5000000)],
            "DT507: /iommu@5000000: iommu_devid_map: no assigned device has pMasterID 0x7 of it; "
            "take the entry out, or assign the device",
        ),
        (
            [DevidMap(0x600, 0x10000, 0x5000000)],
            "DT507: /iommu@5000000: iommu_devid_map: vMasterID 0x10000 is not below 0x10000; "
            "choose a smaller one",
        ),
        (
            [DevidMap(0x600, 1, 0x5000000), DevidMap(0x600, 2, 0x5000000)],
            "DT507: /iommu@5000000: iommu_devid_map: pMasterID 0x600 of it has two vMasterIDs; "
            "keep one of the entries",
        ),
        (
            [DevidMap(0x600, 1, 0x5000000), DevidMap(0x600, 1, 0x6000000)],
            "DT507: /iommu@6000000: iommu_devid_map: vMasterID 0x1 is wanted for pMasterID 0x600 "
            "of it and for 0x600 of /iommu@5000000; choose different ones",
        ),
    ],
)
def test_wanted_ids_are_checked_against_the_host(wanted: list[DevidMap], text: str) -> None:
    host = platform({"dma": [(2, 0x600)], "sec": [(3, 0x600)]})
    with pytest.raises(Refusal) as caught:
        allocate(host, paths(host, "dma", "sec"), wanted=wanted)
    assert str(caught.value) == text


def test_equal_stream_ids_on_two_smmus_get_two_ids() -> None:
    host = platform({"dma": [(2, 0x600)], "sec": [(3, 0x600)]})
    bindings = allocate(host, paths(host, "dma", "sec"))
    assert keys(bindings) == [(0, SMMU_A, 0x600), (1, SMMU_B, 0x600)]
    assert [e.smmu_base for e in bindings.entries] == [0x5000000, 0x6000000]


def test_ids_follow_the_dtdev_list_then_the_streams() -> None:
    host = platform({"dma": [(2, 9), (2, 1)], "sec": [(3, 5)]})
    assert keys(allocate(host, paths(host, "sec", "dma"))) == [
        (0, SMMU_B, 5),
        (1, SMMU_A, 9),
        (2, SMMU_A, 1),
    ]


def test_devices_that_share_a_stream_share_its_id() -> None:
    host = platform({"dma": [(2, 1), (2, 2)], "sec": [(2, 2)]})
    devices = paths(host, "dma", "sec")
    bindings = allocate(host, devices)
    assert [e.devices for e in bindings.entries] == [(devices[0],), tuple(devices)]


def test_a_stream_listed_twice_is_one_binding() -> None:
    host = platform({"dma": [(2, 1), (2, 1)]})
    assert keys(allocate(host, paths(host, "dma"))) == [(0, SMMU_A, 1)]


def test_a_master_behind_two_smmus() -> None:
    host = platform({"dma": [(2, 1), (3, 1)]})
    assert keys(allocate(host, paths(host, "dma"))) == [(0, SMMU_A, 1), (1, SMMU_B, 1)]


def refusal(host: Platform, *devices: str, viommu: bool = True) -> str:
    with pytest.raises(Refusal) as error:
        allocate(host, devices, viommu=viommu)
    assert error.value.exit_code == 4
    return str(error.value)


def test_refuses_a_device_without_iommus() -> None:
    host = platform({"uart": []})
    (path,) = paths(host, "uart")
    smmus = ", ".join(s.path for s in host.smmus)
    assert refusal(host, path) == (
        f"DT101: {path}: is not a DMA master of any SMMU of the host tree (SMMUs: {smmus}); "
        "assign a device that has iommus; without an SMMU its DMA is not contained"
    )


def test_refuses_a_disabled_smmu() -> None:
    host = platform({"dma": [(4, 1)]})
    (path,) = paths(host, "dma")
    assert refusal(host, path) == (
        f'DT104: {path}: its SMMU {SMMU_OFF} is disabled (status = "disabled"); '
        f'set status = "okay" on {SMMU_OFF}'
    )


def test_refuses_a_disabled_device_and_one_below_a_disabled_bus() -> None:
    tree = board({"dma": [(2, 1)]})
    bus = tree.root.add("bus")
    bus.set_strings("status", "disabled")
    bus.set_cells("#address-cells", 2)
    bus.set_cells("#size-cells", 2)
    bus.set_empty("ranges")
    inner = bus.add("dma@1000")
    inner.set_cells("iommus", 2, 7)
    off = tree.root.children["dma@20000000"]
    off.set_strings("status", "disabled")
    host = Platform.from_tree(tree, "board.dtb")
    assert refusal(host, "/dma@20000000") == (
        'DT105: /dma@20000000: is disabled (status = "disabled"); '
        'set status = "okay" on /dma@20000000 in the host tree'
    )
    assert refusal(host, "/bus/dma@1000") == (
        'DT105: /bus/dma@1000: lies below /bus, which is disabled (status = "disabled"); '
        'set status = "okay" on /bus in the host tree'
    )


def test_refuses_the_smmu_itself() -> None:
    host = platform({})
    assert refusal(host, SMMU_A) == (
        f"DT106: {SMMU_A}: is an SMMU; the guest gets a vSMMU in its place; "
        "take it off the dtdev list"
    )


def test_refuses_a_pci_host_bridge() -> None:
    tree = board({})
    pcie = tree.root.add("pcie@10000000")
    pcie.set_strings("device_type", "pci")
    pcie.set_cells("iommu-map", 0, 2, 0, 0x10000)
    text = refusal(Platform.from_tree(tree, "board.dtb"), "/pcie@10000000")
    assert text.startswith("DT107: /pcie@10000000: is a bus with an iommu-map or a PCI host")


def test_refuses_a_device_listed_twice() -> None:
    host = platform({"dma": [(2, 1)]})
    (path,) = paths(host, "dma")
    text = f"DT108: {path}: listed twice in dtdev; list each device once"
    assert refusal(host, path, path) == text


def test_refuses_another_iommu_and_for_a_vsmmu_an_mmu_500() -> None:
    host = platform({"dma": [(5, 1)], "gpu": [(6, 1)]})
    dma, gpu = paths(host, "dma", "gpu")
    assert refusal(host, dma) == (
        f"DT109: {dma}: its SMMU /iommu@8000000 is arm,mmu-500; a vSMMU needs arm,smmu-v3 behind "
        'it; set viommu = "none" for this guest'
    )
    assert allocate(host, [dma], viommu=False) == Bindings()
    assert refusal(host, gpu, viommu=False) == (
        f"DT109: {gpu}: its IOMMU /iommu@4000000 is no Arm SMMU (apple,dart); "
        "assign a device behind an Arm SMMU"
    )


def test_refuses_a_device_inside_another() -> None:
    tree = board({"dma": [(2, 1)]})
    tree.root.children["dma@20000000"].add("channel").set_cells("iommus", 2, 2)
    host = Platform.from_tree(tree, "board.dtb")
    assert refusal(host, "/dma@20000000/channel", "/dma@20000000") == (
        "DT110: /dma@20000000/channel: lies inside /dma@20000000, which is assigned too; "
        "list /dma@20000000 alone"
    )


def test_refuses_to_split_devices_that_share_a_stream() -> None:
    host = platform({"dma": [(2, 1)], "sec": [(2, 1)], "usb": [(3, 1)]})
    dma, sec, usb = paths(host, "dma", "sec", "usb")
    assert refusal(host, usb, dma) == (
        f"DT503: {dma}: shares StreamID 0x1 of {SMMU_A} with {sec}, which is not assigned to "
        f"this guest; assign {sec} too, or neither"
    )
    assert len(allocate(host, [dma, sec]).entries) == 1


def test_notes_a_stream_that_a_pci_host_bridge_may_use() -> None:
    tree = board({"dma": [(2, 0x17)], "sec": [(2, 0x20)]})
    pcie = tree.root.add("pcie@10000000")
    pcie.set_strings("device_type", "pci")
    pcie.set_cells("iommu-map", 0, 2, 0x10, 0x10)
    host = Platform.from_tree(tree, "board.dtb")
    dma, sec = paths(host, "dma", "sec")
    text = f"DT503 {dma}: StreamID 0x17 of {SMMU_A} is in the iommu-map of /pcie@10000000"
    assert [str(n) for n in allocate(host, [dma]).notices] == [text]
    assert allocate(host, [sec]).notices == ()


def test_refuses_more_ids_than_a_vsmmu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    host = platform({"dma": [(2, n) for n in range(5)]})
    (path,) = paths(host, "dma")
    assert binding.MAX_VMASTER_IDS == 65536
    monkeypatch.setattr(binding, "MAX_VMASTER_IDS", 5)
    assert len(allocate(host, [path]).entries) == 5
    monkeypatch.setattr(binding, "MAX_VMASTER_IDS", 4)
    assert refusal(host, path) == (
        f"DT506: {path}: the guest would need more than 4 vMasterIDs; "
        "assign fewer devices to this guest"
    )


def test_all_65536_ids_and_not_one_more() -> None:
    host = platform({"dma": [(2, n) for n in range(0x10000)], "sec": [(3, 0)]})
    dma, sec = paths(host, "dma", "sec")
    entries = allocate(host, [dma]).entries
    assert entries[-1].vmaster_id == 0xFFFF
    assert refusal(host, dma, sec).startswith(f"DT506: {sec}: ")


def test_refuses_an_iommus_that_was_not_read_to_its_end() -> None:
    tree = board({"dma": [(2, 1)]})
    node = tree.root.children["dma@20000000"]
    node.set_cells("iommus", 2, 1, 0x99, 2)
    text = refusal(Platform.from_tree(tree, "board.dtb"), "/dma@20000000")
    assert text == (
        "DT401: /dma@20000000: iommus: <0x99> is no node's phandle; correct iommus in the host tree"
    )


def test_an_unknown_path_is_the_users_mistake() -> None:
    host = platform({"dma": [(2, 1)]})
    with pytest.raises(UserError) as error:
        allocate(host, ["/dma@20000001"])
    assert error.value.exit_code == 2
    assert "/dma@20000000" in str(error.value)


SAMPLE = Bindings(
    (Binding(0, SMMU_A, 0x600, ("/dma",), 0x5000000), Binding(1, SMMU_B, 0x600, ("/sec",))),
    "demo",
    Viommu(0x4040000, 0x40000, 33, 65002),
    (
        DeviceBinding(
            "/dma",
            "/passthrough/dma@20000000",
            (0,),
            (MappedReg(0x820000000, 0x20000000, 0x1000),),
            (GuestInterrupt(72, 4),),
            (Dropped("clocks", "/clk is not assigned"),),
        ),
    ),
    (Notice("DT103", "/dma", "the host node has no xen,passthrough: dom0 has it too"),),
)


def test_json_shape() -> None:
    data = SAMPLE.to_json()
    assert data["schema"] == SCHEMA == "vsmmu.bindings/1"
    assert data["viommu"] == {
        "base": "0x4040000",
        "size": "0x40000",
        "spi": 33,
        "phandle": "0xfdea",
    }
    assert data["bindings"][0] == {
        "vmaster_id": 0,
        "smmu": SMMU_A,
        "smmu_base": "0x5000000",
        "pmaster_id": "0x600",
        "devices": ["/dma"],
    }
    assert data["devices"][0]["regs"] == [
        {"host": "0x820000000", "guest": "0x20000000", "size": "0x1000"}
    ]
    assert Bindings.from_json(json.loads(json.dumps(data))) == SAMPLE


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": "vsmmu.bindings/2"}, 'schema: expected "vsmmu.bindings/1"'),
        ({"guest": 1}, ".guest: expected a string"),
        ({"bindings": {}}, "bindings: expected a list"),
        ({"bindings": [7]}, "bindings[0]: expected an object"),
        ({"devices": [{"vmaster_ids": [-1]}]}, "devices[0].path: expected a string"),
        ({"viommu": []}, "viommu: expected an object"),
        ({"notices": ["x"]}, "notices[0]: expected an object"),
    ],
)
def test_bad_json_names_the_member(change: dict[str, object], text: str) -> None:
    with pytest.raises(UserError) as error:
        Bindings.from_json({**SAMPLE.to_json(), **change}, "map.json")
    assert str(error.value) == f"map.json: {text}; schema vsmmu.bindings/1"


@pytest.mark.parametrize(
    ("member", "value", "text"),
    [
        ("vmaster_id", 7, "bindings: expected each vmaster_id once, in ascending order"),
        ("vmaster_id", 65536, "bindings[0].vmaster_id: expected a number below 2**16"),
        ("vmaster_id", True, "bindings[0].vmaster_id: expected a number below 2**16"),
        ("pmaster_id", 6, 'bindings[0].pmaster_id: expected a string "0x..." below 2**32'),
        ("pmaster_id", "0x1_0", 'bindings[0].pmaster_id: expected a string "0x..." below 2**32'),
        ("pmaster_id", "0x100000000", 'bindings[0].pmaster_id: expected a string "0x..." below'),
        ("smmu", SMMU_B, "bindings: expected each (smmu, pmaster_id) once"),
        ("devices", [1], "bindings[0].devices[0]: expected a string"),
    ],
)
def test_bad_binding_rows(member: str, value: object, text: str) -> None:
    data = SAMPLE.to_json()
    data["bindings"][0][member] = value
    with pytest.raises(UserError) as error:
        Bindings.from_json(data)
    assert str(error.value).startswith(f"bindings: {text}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(SAMPLE.to_json())) | st.text(max_size=3), inner)
    ),
    max_leaves=12,
)


@sliced(200)
@given(JSON, st.sampled_from(["", "bindings", "devices", "viommu", "notices", "guest"]))
def test_any_json_is_read_or_is_the_users_mistake(value: object, member: str) -> None:
    data = {**SAMPLE.to_json(), member: value} if member else value
    try:
        Bindings.from_json(data)
    except UserError as error:
        assert "expected" in str(error)  # noqa: PT017


STREAMS = st.lists(
    st.tuples(st.sampled_from([2, 3]), st.integers(0, 5) | st.integers(0, 0xFFFFFFFF)),
    min_size=1,
    max_size=4,
)


@sliced(60)
@given(st.lists(STREAMS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_ids_are_injective_in_range_and_resolve_back(
    streams: list[list[tuple[int, int]]], random: object
) -> None:
    host = platform({f"d{i}": s for i, s in enumerate(streams)})
    devices = [m.path for m in host.masters]
    random.shuffle(devices)
    bindings = allocate(host, devices)
    assert [e.vmaster_id for e in bindings.entries] == list(range(len(bindings.entries)))
    assert len({(e.smmu, e.pmaster_id) for e in bindings.entries}) == len(bindings.entries)
    for master in host.masters:
        for stream in master.streams:
            vid = bindings.vmaster_id(stream.smmu_path, stream.stream_id)
            entry = bindings.resolve(vid)
            assert (entry.smmu, entry.pmaster_id) == (stream.smmu_path, stream.stream_id)
            assert master.path in entry.devices
    assert allocate(host, devices) == bindings
    assert bindings.resolve(len(bindings.entries)) is None
    assert bindings.resolve(-1) is None


def test_two_guests_share_nothing() -> None:
    host = platform({"dma": [(2, 1)], "sec": [(3, 1)]})
    dma, sec = paths(host, "dma", "sec")
    first, second = allocate(host, [dma]), allocate(host, [sec])
    assert keys(first) == [(0, SMMU_A, 1)]
    assert keys(second) == [(0, SMMU_B, 1)]
    assert first.vmaster_id(SMMU_B, 1) is None
