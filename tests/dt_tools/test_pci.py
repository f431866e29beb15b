# SPDX-License-Identifier: BSD-2-Clause
"""`pci = [...]`: host bridges, StreamIDs, vBDFs, the guest's `iommu-map`, by brute force.

`host_id` and `guest_id` below read the raw cells of one id at a time and share nothing with the
package.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dt_tools.binding import Bindings, allocate
from dt_tools.blob import read, write
from dt_tools.errors import DtError, Refusal, UserError
from dt_tools.pci import (
    PciFunction,
    functions,
    iommu_map,
    msi_map,
    read_lspci,
    series_map,
    vpci_node,
)
from dt_tools.pci.bridges import host_bridges
from dt_tools.pci.msi import device_id
from dt_tools.pci.topology import Topology
from dt_tools.platform import Platform
from dt_tools.profiles import DEFAULT
from dt_tools.tree import Node, Tree
from tests.dt_tools.test_pci_topology import ACS, ENDPOINT, ROOT, TO_PCI, dump, sample, topology
from xl_configs import load
from xl_configs.specs.pci import PciSpec, parse_pci

GUEST = DEFAULT.guest
A, B = "/iommu@50000000", "/iommu@70000000"


def specs(*entries: str) -> tuple[PciSpec, ...]:
    return tuple(parse_pci(entry) for entry in entries)


@pytest.fixture(scope="module")
def board(request: pytest.FixtureRequest) -> Platform:
    path = Path(__file__).parents[2] / "samples" / "pci-board.dtb"
    return Platform.from_tree(read(path.read_bytes()), "pci-board.dtb")


@pytest.fixture(scope="module")
def host() -> Topology:
    return read_lspci(sample())


def changed(board: Platform, path: str, **props: object) -> Platform:
    """The board with properties of one node set to cells or a string, or taken out."""
    tree = board.tree.copy()
    node = tree.node(path)
    assert node is not None
    for name, value in props.items():
        prop = name.replace("__", ",").replace("_", "-")
        if value is None:
            node.props.pop(prop, None)
        elif isinstance(value, str):
            node.set_strings(prop, value)
        elif isinstance(value, bytes):
            node.props[prop] = value
        else:
            assert isinstance(value, tuple)
            node.set_cells(prop, *value)
    return Platform.from_tree(tree, "changed.dtb")


# Readers of one id at a time.


def cells_of(node: Node, prop: str) -> list[int]:
    raw = node.props[prop]
    return [struct.unpack_from(">I", raw, at)[0] for at in range(0, len(raw) - 3, 4)]


def host_id(tree: Tree, bridge: str, rid: int) -> tuple[str, int] | None:
    """(SMMU path, StreamID) of a requester id, from the host's cells; None: not translated."""
    node = tree.node(bridge)
    assert node is not None
    if "iommu-map-mask" in node.props:
        rid &= cells_of(node, "iommu-map-mask")[0]
    cells = cells_of(node, "iommu-map")
    legacy = len(cells) % 4 == 0 and set(cells[3::4]) == {1} and len(set(cells[1::4])) == 1
    paths = {n.phandle: n for n in reversed(list(tree.walk())) if n.phandle is not None}
    at = 0
    while at + 4 <= len(cells):
        smmu = paths[cells[at + 1]]
        count = smmu.u32("#iommu-cells")
        count = 1 if count is None or (count == 2 and legacy) else count
        first, output, length = cells[at], cells[at + 2] if count else 0, cells[at + 2 + count]
        if first <= rid < first + length:
            return smmu.path, rid - first + output
        at += 3 + count
    return None


def guest_id(cells: list[int], vbdf: int) -> tuple[int, int] | None:
    """(vSMMU phandle, vMasterID) of an id on the guest's bus, from the cells of `iommu-map`."""
    for at in range(0, len(cells), 4):
        first, phandle, output, length = cells[at : at + 4]
        if first <= vbdf < first + length:
            return phandle, output + vbdf - first
    return None


def built(found: Sequence[PciFunction], bindings: Bindings) -> list[int]:
    """The guest's `iommu-map`, written as a blob and read again."""
    tree = Tree()
    vpci_node(tree.root, GUEST, iommu_map(found, bindings, GUEST.vsmmu_phandle))
    node = read(write(tree)).node("/pcie@10000000")
    assert node is not None
    return cells_of(node, "iommu-map")


def check_all(platform: Platform, found: Sequence[PciFunction]) -> None:
    """Each function comes back to the host's (SMMU, StreamID); every other vBDF to nothing."""
    bindings = allocate(platform, (), pci=found)
    cells = built(found, bindings)
    wanted = {}
    for one in found:
        ids = {host_id(platform.tree, one.bridge, rid) for rid in one.rids}
        assert len(ids) == 1
        wanted[one.vbdf] = ids.pop()
    for vbdf in range(0x10000):
        target = guest_id(cells, vbdf)
        if vbdf not in wanted:
            assert target is None
            continue
        assert target is not None
        assert target[0] == GUEST.vsmmu_phandle
        entry = bindings.resolve(target[1])
        assert entry is not None
        assert (entry.smmu, entry.pmaster_id) == wanted[vbdf]


# The samples.


def test_sample_tree_is_its_source(samples: Path) -> None:
    if shutil.which("dtc") is None:
        pytest.skip("no dtc")
    command = ["dtc", "-O", "dtb", str(samples / "pci-board.dts")]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    assert made == (samples / "pci-board.dtb").read_bytes()


def test_two_functions_behind_different_smmus(board: Platform, host: Topology) -> None:
    found = functions(specs("0000:01:00.0", "0001:01:00.0"), board, host)
    assert [(f.streams[0].smmu_path, f.streams[0].stream_id) for f in found] == [
        (A, 0x100),
        (B, 0x100),
    ]
    bindings = allocate(board, (), pci=found)
    assert iommu_map(found, bindings, 65002) == (0, 65002, 0, 1, 8, 65002, 1, 1)
    check_all(board, found)


def test_sample_config(board: Platform, host: Topology, samples: Path) -> None:
    config = load((samples / "pci.cfg").read_bytes(), "pci.cfg")
    found = functions(config.pci, board, host)
    assert [f.path for f in found] == [
        "/pcie@40000000 0000:01:00.0",
        "/pcie@60000000 0001:01:00.0",
        "/pcie@40000000 0000:03:01.0",
    ]
    assert [f.rids for f in found] == [(0x100,), (0x100,), (0x300,)]
    assert [f.vbdf for f in found] == [0x00, 0x08, 0x10]
    assert [f.spec.permissive for f in found] == [False, False, True]
    assert [n for f in found for n in f.notices] == []
    check_all(board, found)


def test_one_vsmmu_for_each(board: Platform, host: Topology) -> None:
    """Each row names the vSMMU of its own SMMU, whose ids start at 0."""
    found = functions(specs("0001:01:00.0", "0000:01:00.0"), board, host)
    bindings = allocate(board, (), pci=found, one_per_smmu=True)
    phandles = {B: 65002, A: 65003}
    cells = iommu_map(found, bindings, phandles.__getitem__)
    assert cells == (0, 65002, 0, 1, 8, 65003, 0, 1)


def test_functions_that_share_a_stream(board: Platform) -> None:
    """Two devices behind one PCIe-to-PCI bridge: one vMasterID, two rows."""
    text = sample() + dump("0000:03:02.0", size=256)
    found = functions(specs("0000:03:02.0", "0000:03:01.0"), board, read_lspci(text))
    bindings = allocate(board, (), pci=found)
    assert len(bindings.entries) == 1
    assert iommu_map(found, bindings, 65002) == (0, 65002, 0, 1, 8, 65002, 0, 1)


# Refusals and notices.

REFUSED = {
    "no domain": (
        ("0007:01:00.0",),
        "DT520: /: 0007:01:00.0: no enabled host bridge is PCI domain 0x7 (domains: 0x0, 0x1, 0x2);"
        " name a function as DDDD:BB:DD.F of the host",
    ),
    "no bus": (
        ("0001:20:00.0",),
        "DT520: /pcie@60000000: 0001:20:00.0: bus 0x20 is not behind it (bus-range: 0x00-0x0f); "
        "name a function that the host has",
    ),
    "by name": (
        ("name=nic",),
        "DT520: /: pci name='nic': what device it is stands in the host's xenstore, in no tree; "
        "name the function as DDDD:BB:DD.F",
    ),
    "disabled": (
        ("0003:01:00.0",),
        'DT105: /pcie@a0000000: is disabled (status = "disabled"), 0003:01:00.0 is behind it; '
        "enable it in the host tree",
    ),
    "no SMMU": (
        ("0002:01:00.0",),
        "DT101: /pcie@90000000 0002:01:00.0: its host bridge has no iommu-map and no iommus; "
        "assign a function behind an SMMU; without one its DMA is not contained",
    ),
    "unmapped": (
        ("0000:10:00.0",),
        "DT505: /pcie@40000000 0000:10:00.0: requester id 0x1000 is in no row of iommu-map; "
        "its DMA would not be translated; extend iommu-map in the host tree",
    ),
    "bridge": (
        ("0000:00:01.0",),
        "DT522: /pcie@40000000 0000:00:01.0: is a bridge; assign the devices behind it",
    ),
    "twice": (
        ("0000:01:00.0", "1:0.0"),
        "DT108: /pcie@40000000 0000:01:00.0: listed twice in pci; list each function once",
    ),
    "slot twice": (
        ("0000:01:00.0@3", "0001:01:00.0@3"),
        "DT526: /pcie@60000000 0001:01:00.0: asks for virtual slot 0x3, which /pcie@40000000 "
        "0000:01:00.0 asks for too; ask for another, or leave it out",
    ),
    "all without a slot": (
        ("0000:01:00.*",),
        "DT523: /: pci 0000:01:00.*: libxl takes * with a virtual slot only; "
        "write @SLOT behind it, or name each function",
    ),
    "all without a topology": (
        ("0000:01:00.*@4",),
        "DT523: /: pci 0000:01:00.*: which functions there are is not known without a topology; "
        "give the host's lspci -Dxxxx, or name each",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(board: Platform, name: str) -> None:
    entries, message = REFUSED[name]
    with pytest.raises(Refusal) as error:
        functions(specs(*entries), board)
    assert str(error.value) == message


def refusal(platform: Platform, *entries: str, host: Topology | None = None, **more: object) -> str:
    with pytest.raises(Refusal) as error:
        functions(specs(*entries), platform, host, **more)  # type: ignore[arg-type]
    return str(error.value)


def test_without_a_topology(board: Platform) -> None:
    (one,) = functions(specs("0000:05:00.0"), board)
    assert [str(n) for n in one.notices] == [
        "DT528 /pcie@40000000 0000:05:00.0: taken at its own requester id 0x0500; whether a bridge "
        "puts in another, or other functions share it, is not known without the host's "
        "lspci -Dxxxx"
    ]


def test_mask_without_a_topology(board: Platform) -> None:
    (one,) = functions(specs("0001:01:00.0"), board)
    assert [str(n) for n in one.notices][1:] == [
        "DT524 /pcie@60000000 0001:01:00.0: iommu-map-mask 0xfff8 gives up to 8 requester ids its "
        "StreamID; all functions among them belong into this guest"
    ]


def test_not_in_the_topology(board: Platform, host: Topology) -> None:
    assert refusal(board, "0000:05:00.0", host=host) == (
        "DT522: /pcie@40000000 0000:05:00.0: the topology lspci does not have it; "
        "name a function that the host has"
    )
    assert refusal(board, "0000:05:00.*@2", host=host) == (
        "DT522: /: pci 0000:05:00.*: the topology has none of its functions; "
        "name a device that the host has"
    )


def test_bus_nobody_leads_to(board: Platform) -> None:
    host = topology(dump("0000:05:00.0", ENDPOINT))
    assert refusal(board, "0000:05:00.0", host=host) == (
        "DT522: /pcie@40000000 0000:05:00.0: the topology has no bridge that leads to bus 0x05; "
        "dump all of the host, by lspci -Dxxxx"
    )


def test_bridge_not_read(board: Platform) -> None:
    host = read_lspci(sample(64))
    assert refusal(board, "0000:01:00.0", host=host) == (
        "DT522: /pcie@40000000 0000:01:00.0: capabilities of the bridge 0000:00:00.0 above it were "
        "not dumped; dump the host as root, by lspci -Dxxxx"
    )


def test_shares_with_a_function_outside(board: Platform) -> None:
    host = read_lspci(sample() + dump("0000:03:02.0", size=256))
    assert refusal(board, "0000:03:01.0", host=host) == (
        "DT524: /pcie@40000000 0000:03:01.0: shares StreamID 0x300 of /iommu@50000000 with "
        "0000:03:02.0, which is not assigned to this guest; assign 0000:03:02.0 too, or neither"
    )


def test_mask_shares_with_a_function_outside(board: Platform) -> None:
    text = sample() + dump("0001:01:00.1", ENDPOINT, size=256)
    assert refusal(board, "0001:01:00.0", host=read_lspci(text)).startswith(
        "DT524: /pcie@60000000 0001:01:00.0: shares StreamID 0x100 of /iommu@70000000 with "
        "0001:01:00.1, which"
    )


def test_no_acs(board: Platform, host: Topology) -> None:
    (one,) = functions(specs("0000:04:00.0"), board, host)
    assert [str(n) for n in one.notices] == [
        "DT525 /pcie@40000000 0000:04:00.0: no ACS is known between it and 0000:04:00.1, outside "
        "this guest: they may reach each other past the SMMU"
    ]


def test_all_functions(board: Platform, host: Topology) -> None:
    (one,) = functions(specs("0000:01:00.*@4"), board, host)
    assert (one.name, one.vbdf) == ("0000:01:00.0", 0x20)
    assert refusal(board, "0000:04:00.*@4", host=host).startswith(
        "DT526: /pcie@40000000 0000:04:00.1: asks for virtual slot 0x4, which "
    )


def test_several_ids(board: Platform) -> None:
    """PCI-X behind the bridge: either id may come, which one row cannot say."""
    text = sample().replace(
        dump("0000:02:00.0", TO_PCI, (2, 3, 3), size=256),
        dump("0000:02:00.0", TO_PCI, (2, 3, 3), pcix=2, size=256),
    )
    found = functions(specs("0000:03:01.0"), board, read_lspci(text))
    assert [s.stream_id for s in found[0].streams] == [0x300, 0x308]
    bindings = allocate(board, (), pci=found)
    with pytest.raises(Refusal) as error:
        iommu_map(found, bindings, 65002)
    assert str(error.value) == (
        "DT527: /pcie@40000000 0000:03:01.0: has vMasterIDs 0x0, 0x1, a row of iommu-map gives a "
        "function one; assign a function with one StreamID"
    )


def test_several_ids_of_one_stream(board: Platform) -> None:
    """Phantom functions under a mask that drops the function number: one StreamID."""
    text = sample().replace(
        dump("0001:01:00.0", ENDPOINT, size=256),
        dump("0001:01:00.0", ENDPOINT, phantom=1, size=256),
    )
    (one,) = functions(specs("0001:01:00.0"), board, read_lspci(text))
    assert one.rids == (0x100, 0x104)
    assert [s.stream_id for s in one.streams] == [0x100]
    check_all(board, (one,))


def test_bus_level_iommus(board: Platform) -> None:
    """Without iommu-map the bridge's own `iommus` are those of all functions."""
    smmu = board.smmus[0].phandle
    assert smmu is not None
    platform = changed(board, "/pcie@90000000", iommus=(smmu, 0x77))
    first, second = functions(specs("0002:01:00.0", "0002:02:00.0"), platform)
    assert first.streams == second.streams
    assert [(s.smmu_path, s.stream_id) for s in first.streams] == [(A, 0x77)]
    host = topology(
        dump("0002:00:00.0", ROOT, (0, 1, 1), acs=ACS),
        dump("0002:01:00.0", ENDPOINT),
        dump("0002:00:02.0", ENDPOINT),
    )
    assert refusal(platform, "0002:01:00.0", host=host).startswith("DT524: ")


def test_smmu_of_another_kind(board: Platform) -> None:
    platform = changed(board, B, compatible="arm,mmu-500")
    assert refusal(platform, "0001:01:00.0") == (
        f"DT109: /pcie@60000000 0001:01:00.0: its SMMU {B} is arm,mmu-500; a vSMMU needs "
        'arm,smmu-v3 behind it; set viommu = "none" for this guest'
    )
    assert functions(specs("0001:01:00.0"), platform, viommu=False)
    platform = changed(board, B, compatible="acme,iommu")
    assert refusal(platform, "0001:01:00.0", viommu=False) == (
        f"DT109: /pcie@60000000 0001:01:00.0: its IOMMU {B} is no Arm SMMU (acme,iommu); "
        "assign a function behind an Arm SMMU"
    )


def test_smmu_off(board: Platform) -> None:
    platform = changed(board, B, status="disabled")
    assert refusal(platform, "0001:01:00.0") == (
        f'DT104: /pcie@60000000 0001:01:00.0: its SMMU {B} is disabled (status = "disabled"); '
        f'set status = "okay" on {B}'
    )


def test_broken_map(board: Platform) -> None:
    platform = changed(board, "/pcie@60000000", iommu_map=(0, 0xDEAD, 0, 0x1000))
    assert refusal(platform, "0001:01:00.0") == (
        "DT505: /pcie@60000000 0001:01:00.0: requester id 0x0100 is in no row of iommu-map that "
        "can be read: iommu-map: <0xdead> is no node's phandle; its DMA would not be translated; "
        "extend iommu-map in the host tree"
    )
    platform = changed(board, "/pcie@60000000", iommu_map_mask=b"\0\0\xff")
    assert refusal(platform, "0001:01:00.0").startswith("DT505: ")


# Which host bridge.


def test_domains_by_the_order_of_the_tree(board: Platform) -> None:
    platform = board
    for path in ("/pcie@40000000", "/pcie@60000000", "/pcie@90000000", "/pcie@a0000000"):
        platform = changed(platform, path, linux__pci_domain=None)
    (one,) = functions(specs("0001:01:00.0"), platform)
    assert one.bridge == "/pcie@60000000"
    assert str(one.notices[0]) == (
        "DT531 /pcie@60000000: has no linux,pci-domain; taken as domain 1, by the order of the tree"
    )
    driven = changed(platform, "/pcie@40000000", compatible="acme,pcie")
    assert refusal(driven, "0001:01:00.0") == (
        "DT521: /pcie@40000000: has no linux,pci-domain, nor have others, and Xen drives not all "
        "of them; the order of probing decides; add linux,pci-domain to the host tree, or number "
        "the host bridge"
    )
    domains = {"/pcie@40000000": 4, "/pcie@60000000": 1}
    (one,) = functions(specs("0001:01:00.0"), driven, domains=domains)
    assert one.bridge == "/pcie@60000000"


def test_domains_mixed(board: Platform) -> None:
    """A number in the tree is good; which one the bridge without one has is not known."""
    platform = changed(board, "/pcie@40000000", linux__pci_domain=None)
    assert functions(specs("0001:01:00.0"), platform)[0].bridge == "/pcie@60000000"
    assert refusal(platform, "0000:01:00.0") == (
        "DT521: /pcie@40000000: has no linux,pci-domain, other host bridges have one; "
        "add linux,pci-domain to the host tree, or number the host bridge"
    )


def test_one_domain_told_apart_by_bus(board: Platform) -> None:
    platform = changed(
        board,
        "/pcie@60000000",
        linux__pci_domain=(0,),
        bus_range=(0x20, 0x2F),
        iommu_map=(0x2000, board.smmus[1].phandle, 0, 0x1000),
    )
    found = functions(specs("0000:01:00.0", "0000:21:00.0"), platform)
    assert [f.bridge for f in found] == ["/pcie@40000000", "/pcie@60000000"]
    check_all(platform, found)
    clash = changed(board, "/pcie@60000000", linux__pci_domain=(0,))
    assert refusal(clash, "0000:01:00.0") == (
        "DT521: /pcie@40000000: 0000:01:00.0: /pcie@60000000 has the same domain and bus 0x01; "
        "give each its own linux,pci-domain"
    )


def test_alone_it_is_domain_0(board: Platform) -> None:
    platform = board
    for path in ("/pcie@40000000", "/pcie@90000000"):
        platform = changed(platform, path, status="disabled", linux__pci_domain=None)
    platform = changed(platform, "/pcie@60000000", linux__pci_domain=None)
    (one,) = functions(specs("01:00.0"), platform)
    assert one.bridge == "/pcie@60000000"
    assert [n.rule for n in one.notices] == ["DT528", "DT524"]


def test_domains_of_no_bridge(board: Platform) -> None:
    with pytest.raises(UserError, match=r"pci-board.dtb: /nope: is no PCI host bridge"):
        functions((), board, domains={"/nope": 1})
    with pytest.raises(UserError, match="PCI domain 65536 is not 16 bits"):
        functions((), board, domains={"/pcie@40000000": 65536})


def test_bus_range(board: Platform) -> None:
    platform = changed(board, "/pcie@40000000", bus_range=(0, 1, 2))
    assert refusal(platform, "0000:01:00.0") == (
        "DT520: /pcie@40000000: 0000:01:00.0: bus-range is not two cells FIRST LAST; "
        "correct bus-range in the host tree"
    )


# vBDFs.


def test_slots(board: Platform) -> None:
    """What is asked for is kept free; the rest takes the first free slots in list order."""
    entries = ("0000:05:00.0", "0000:06:00.0@1", "0000:07:00.0", "0000:08:00.0@0")
    found = functions(specs(*entries), board)
    assert [f.vbdf for f in found] == [0x00, 0x08, 0x10, 0x18]
    assert not [n for f in found for n in f.notices if n.rule == "DT530"]


def test_slot_that_xen_would_not_give(board: Platform) -> None:
    found = functions(specs("0000:05:00.0", "0000:06:00.0@1f", "0000:07:00.0"), board)
    assert [f.vbdf for f in found] == [0x00, 0xF8, 0x08]
    assert [str(n) for f in found for n in f.notices if n.rule == "DT530"] == [
        "DT530 /pcie@40000000 0000:06:00.0: is put at 00:1f.0 for the slots asked for; the vPCI of "
        "Xen 4.20 to 4.22 does not see them and puts it at 00:01.0",
        "DT530 /pcie@40000000 0000:07:00.0: is put at 00:01.0 for the slots asked for; the vPCI of "
        "Xen 4.20 to 4.22 does not see them and puts it at 00:02.0",
    ]
    check_all(board, found)


def test_another_function_than_0(board: Platform) -> None:
    found = functions(specs("0000:05:00.1", "0000:05:00.3"), board)
    assert [(f.name, f.vbdf) for f in found] == [("0000:05:00.1", 0), ("0000:05:00.3", 8)]
    assert [str(n) for f in found for n in f.notices if n.rule == "DT530"] == [
        f"DT530 /pcie@40000000 0000:05:00.{func}: is no function 0: the vPCI of Xen 4.20 to 4.22 "
        "refuses it"
        for func in (1, 3)
    ]
    check_all(board, found)


def test_32_slots(board: Platform) -> None:
    entries = [f"0000:05:{dev:02x}.0" for dev in range(32)]
    found = functions(specs(*entries), board)
    assert [f.vbdf for f in found] == [slot << 3 for slot in range(32)]
    check_all(board, found)
    assert refusal(board, *entries, "0000:06:00.0") == (
        "DT526: /pcie@40000000 0000:06:00.0: 33 functions, the virtual PCI bus has 32 slots; "
        "assign fewer"
    )
    assert refusal(board, *entries * 200).startswith("DT526: /: 6400 pci entries, more than 4096")


# The node.


def test_node_as_libxl_makes_it() -> None:
    """libxl 4.20 make_vpci_node: properties, order and bytes."""
    tree = Tree()
    node = vpci_node(tree.root, GUEST)
    assert node.path == "/pcie@10000000"
    assert list(node.props.items()) == [
        ("compatible", b"pci-host-ecam-generic\0"),
        ("device_type", b"pci\0"),
        ("reg", bytes.fromhex("00000000 10000000 00000000 10000000")),
        ("bus-range", bytes.fromhex("00000000 000000ff")),
        ("#address-cells", bytes.fromhex("00000003")),
        ("#size-cells", bytes.fromhex("00000002")),
        ("status", b"okay\0"),
        (
            "ranges",
            bytes.fromhex(
                "02000000 00000000 23000000 00000000 23000000 00000000 10000000"
                "43000000 00000001 00000000 00000001 00000000 00000001 00000000"
            ),
        ),
    ]


def test_series() -> None:
    assert series_map("rfc", 65002) == (0, 65002, 0, 0x10000)
    assert series_map("v3", 65002, 7) == (0, 65002, 7, 0x1000)


def test_msi_map(board: Platform, host: Topology) -> None:
    found = functions(specs("0001:01:00.0@2", "0000:03:01.0"), board, host)
    assert [f.msi for f in found] == [
        ("/interrupt-controller@2f000000/msi-controller@2f020000", 0x10100),
        ("/interrupt-controller@2f000000/msi-controller@2f020000", 0x300),
    ]
    cells, notices = msi_map(found, None, GUEST)
    assert cells == ()
    assert [str(n) for n in notices] == [
        "DT529 /pcie@10000000: no msi-map: the guest has no ITS, so its PCI functions have no MSIs"
    ]
    cells, notices = msi_map(found, 65010, GUEST)
    assert (cells, notices) == ((0x00, 65010, 0x00, 1, 0x10, 65010, 0x10, 1), ())
    node = vpci_node(Tree().root, GUEST, (1, 2, 3, 4), cells)
    assert list(node.props)[-3:] == ["ranges", "iommu-map", "msi-map"]
    assert msi_map((), None, GUEST) == ((), ())


def test_host_msi_map(board: Platform) -> None:
    """Rows that do not begin at 0, under a mask; no row and a malformed one give nothing."""
    its = "/interrupt-controller@2f000000/msi-controller@2f020000"
    node = board.tree.node(its)
    assert node is not None
    rows = (0x80, node.phandle, 0x500, 0x80, 0x100, node.phandle, 0x9000, 8)

    def target(rid: int, **props: object) -> object:
        bridge = changed(board, "/pcie@40000000", **props).tree
        host = bridge.node("/pcie@40000000")
        assert host is not None
        return device_id(host, bridge.phandles(), rid)

    assert target(0x0104, msi_map=rows) == (its, 0x9004)
    assert target(0x0108, msi_map=rows) is None
    assert target(0xFF88, msi_map=rows[4:] + rows[:4], msi_map_mask=(0xFF,)) is None
    assert target(0xFF88, msi_map=rows[:4], msi_map_mask=(0xFF,)) == (its, 0x508)
    assert target(0x0088, msi_map=rows[:3]) is None
    assert target(0x0088, msi_map=(0x80, 0xDEAD, 0, 0x80)) is None


# Every board.


def boards(place: Path) -> Iterator[tuple[str, Platform]]:
    for path in sorted(place.glob("*.dtb")):
        try:
            yield path.name, Platform.from_tree(read(path.read_bytes()), path.name)
        except DtError:
            continue


REFUSED_ON_BOARDS = {"DT104", "DT109", "DT505", "DT520", "DT522"}


def round_trips(platform: Platform) -> tuple[int, int]:
    """Assign function 0 of devices at the edges of every row; (functions, refused by rule)."""
    if not any(m.is_pci and m.maps for m in platform.masters):
        return 0, 0
    bridges = [b for b in host_bridges(platform).enabled if "iommu-map" in b.node.props]
    domains = {b.path: at for at, b in enumerate(host_bridges(platform).enabled)}
    good: list[PciFunction] = []
    refused = 0
    for bridge in bridges:
        master = next(m for m in platform.masters if m.path == bridge.path)
        assert bridge.first_bus is not None
        assert bridge.last_bus is not None
        rids = {bridge.first_bus << 8 | 0xF8, bridge.last_bus << 8}
        for row in master.maps[:8]:
            edges = (row.rid_base, row.rid_base + row.length // 2, row.rid_base + row.length - 1)
            rids |= {(rid & 0xFFF8) for rid in (*edges, row.rid_base + row.length)}
        why: list[tuple[str, int]] = []
        for rid in sorted(rids):
            spec = PciSpec(domains[bridge.path], rid >> 8, rid >> 3 & 31, 0, 1)
            viommu = all(s.kind == "arm,smmu-v3" for s in platform.smmus)
            try:
                good += functions((spec,), platform, viommu=viommu, domains=domains)
            except Refusal as error:
                why.append((error.rule, rid))
        assert {rule for rule, _ in why} <= REFUSED_ON_BOARDS, platform.source
        for rule, rid in why:
            if rule == "DT505" and not platform.findings:
                assert host_id(platform.tree, bridge.path, rid) is None
        refused += len(why)
    for at in range(0, len(good), 32):
        part = functions(
            [f.spec for f in good[at : at + 32]], platform, viommu=False, domains=domains
        )
        bindings = numbered(part)
        cells = built(part, bindings)
        places = {one.vbdf: one for one in part}
        for vbdf in range(0x10000):
            target = guest_id(cells, vbdf)
            if vbdf not in places:
                assert target is None
                continue
            assert target is not None
            entry = bindings.resolve(target[1])
            assert entry is not None
            one = places[vbdf]
            wanted = host_id(platform.tree, one.bridge, one.rid)
            assert (entry.smmu, entry.pmaster_id) == wanted, (one.path, target)
    return len(good), refused


def numbered(found: Sequence[PciFunction]) -> Bindings:
    """First fit, whatever kind of SMMU."""
    from dt_tools.binding import Binding

    keys = dict.fromkeys((s.smmu_path, s.stream_id) for one in found for s in one.streams)
    return Bindings(tuple(Binding(vid, *key, ()) for vid, key in enumerate(keys)))


def test_corpus(corpus: Path) -> None:
    counts = [round_trips(platform) for _, platform in boards(corpus / "dtbs")]
    assert sum(good for good, _ in counts) > 40


@pytest.mark.soak
def test_all_boards() -> None:
    place = os.environ.get("VSMMU_BOARDS")
    if not place:
        pytest.skip("VSMMU_BOARDS names no folder of DTBs")
    counts = [round_trips(platform) for _, platform in boards(Path(place))]
    print(len(counts), sum(1 for g, r in counts if g + r), *map(sum, zip(*counts, strict=True)))


def test_rules_are_described() -> None:
    """Every rule that the package raises is in the table of rules."""
    import re

    import dt_tools.checks
    import dt_tools.pci.rules
    from dt_tools.rules import declared

    place = Path(dt_tools.pci.rules.__file__).parent
    used = {
        rule for path in place.glob("*.py") for rule in re.findall(r'"(DT\d+)"', path.read_text())
    }
    assert used <= set(declared()) | set(dt_tools.checks.RULES)
    own = {f"DT{number}" for number in range(520, 532)}
    assert {rule for rule in used if rule >= "DT520"} == own
