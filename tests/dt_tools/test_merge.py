# SPDX-License-Identifier: BSD-2-Clause
"""Hand-written partial trees: which stream an entry means, rows of iommu-map, notices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dt_tools.binding import Binding, Bindings, MappedReg, allocate
from dt_tools.errors import Refusal
from dt_tools.merge import merge_partial
from dt_tools.partial import Partial
from dt_tools.platform import Platform
from dt_tools.profiles import GuestProfile
from dt_tools.tree import Tree
from tests.dt_tools.test_checks import SMMU, edited, tree_of

GUEST = GuestProfile()
V = GUEST.vsmmu_phandle
A, B = "/soc/iommu@50000000", "/soc/iommu@51000000"
HOST: dict[str, Any] = {
    "#address-cells": [2],
    "#size-cells": [2],
    "clock": {"#clock-cells": [0], "phandle": [2]},
    "soc": {
        "#address-cells": [1],
        "#size-cells": [1],
        "ranges": True,
        "iommu@50000000": {**SMMU, "reg": [0x50000000, 0x20000], "phandle": [3]},
        "iommu@51000000": {**SMMU, "reg": [0x51000000, 0x20000], "phandle": [4]},
        "dma@1000": {"compatible": "t,dma", "reg": [0x1000, 0x1000], "iommus": [3, 0x600]},
        "sec@2000": {
            "compatible": "t,sec",
            "reg": [0x2000, 0x1000],
            "iommus": [4, 0x600, 3, 0x601, 4, 0x602],
        },
    },
}
DMA, SEC = "/soc/dma@1000", "/soc/sec@2000"
BUS: dict[str, Any] = {
    "compatible": "simple-bus",
    "#address-cells": [2],
    "#size-cells": [2],
    "ranges": True,
}


def merged(
    nodes: dict[str, Any],
    host: dict[str, Any] | None = None,
    devices: tuple[str, ...] = (DMA, SEC),
    bindings: Bindings | None = None,
    **options: Any,
) -> Partial:
    """`nodes` are edits by path of a partial tree with an empty /passthrough."""
    platform = Platform.from_tree(tree_of(edited(HOST, host or {})), "host.dtb")
    partial = tree_of(edited({"passthrough": BUS}, nodes))
    return merge_partial(
        Tree(),
        partial,
        guest=GUEST,
        platform=platform,
        devices=devices,
        bindings=allocate(platform, devices) if bindings is None else bindings,
        **options,
    )


def iommus(made: Partial, path: str) -> tuple[int, ...]:
    node = made.tree.node(f"/passthrough{path}")
    assert node is not None
    return node.cells("iommus") or ()


def refusal(nodes: dict[str, Any], **world: Any) -> str:
    with pytest.raises(Refusal) as error:
        merged(nodes, **world)
    return str(error.value)


def texts(made: Partial) -> list[str]:
    return [str(notice) for notice in made.notices]


def others(made: Partial) -> list[str]:
    return [text for text in texts(made) if "DT504" not in text]


P = "passthrough"
SEC_ALL = [V, 1, V, 2, V, 3]


# Which device, which SMMU.


@pytest.mark.parametrize(
    ("where", "nodes"),
    [
        ("/sec@2000", {f"{P}/sec@2000/iommus": [4, 0x600, 3, 0x601, 4, 0x602]}),
        ("/bus/a/b/sec@2000", {f"{P}/bus/a/b/sec@2000/iommus": [4, 0x600, 3, 0x601, 4, 0x602]}),
        ("", {f"{P}/iommus": [4, 0x600, 3, 0x601, 4, 0x602]}),
        ("", {f"{P}/iommus": [V, 0x600, V, 0x601, V, 0x602], f"{P}/xen,path": SEC}),
        # A phandle of nobody's, the vSMMU's, a bare stand-in's outside and inside.
        ("/sec@2000", {f"{P}/sec@2000/iommus": [9, 0x600, 9, 0x601, 9, 0x602]}),
        ("/sec@2000", {f"{P}/sec@2000/iommus": [V, 0x600, V, 0x601, V, 0x602]}),
        ("/sec@2000", {f"{P}/sec@2000/iommus": [9, 0x600, 9, 0x601, 9, 0x602], "s/phandle": [9]}),
        (
            "/sec@2000",
            {f"{P}/sec@2000/iommus": [9, 0x600, 9, 0x601, 9, 0x602], f"{P}/s/phandle": [9]},
        ),
        # The stand-in counts the cells: an id and a mask, none.
        (
            "/sec@2000",
            {
                f"{P}/sec@2000/iommus": [9, 0x600, 0, 9, 0x601, 0, 3, 0x601, 9, 0x602, 0],
                "s": {"phandle": [9], "#iommu-cells": [2]},
            },
        ),
        (
            "/sec@2000",
            {
                f"{P}/sec@2000/iommus": [4, 0x600, 9, 4, 0x602],
                "s": {"phandle": [9], "#iommu-cells": [0], "xen,path": A},
            },
        ),
        # The phandle of a clock that the partial tree defines is the SMMU's on the host.
        (
            "/sec@2000",
            {f"{P}/sec@2000/iommus": [4, 0x600, 3, 0x601, 4, 0x602], f"{P}/c/phandle": [3]},
        ),
        # compatible and reg, also moved by iomem; a node inside the one that claims.
        (
            "/crypto",
            {
                f"{P}/crypto": {
                    "compatible": "t,sec",
                    "reg": [0, 0x2000, 0, 0x1000],
                    "iommus": [9, 0x600, 9, 0x601, 9, 0x602],
                }
            },
        ),
        (
            "/bus@9000/x@0",
            {
                f"{P}/bus@9000": {
                    "#address-cells": [1],
                    "#size-cells": [1],
                    "ranges": [0, 0, 0x9000, 0x1000],
                },
                f"{P}/bus@9000/x@0": {
                    "compatible": "t,sec",
                    "reg": [0, 0x1000],
                    "iommus": [9, 0x600, 9, 0x601, 9, 0x602],
                },
            },
        ),
        ("/sec@2000/in", {f"{P}/sec@2000/in/iommus": [V, 0x600, V, 0x601, V, 0x602]}),
    ],
)
def test_every_form_of_an_entry_becomes_the_same_vmaster_ids(
    where: str, nodes: dict[str, Any]
) -> None:
    pins = (MappedReg(0x2000, 0x9000, 0x1000),) if "bus@9000" in where else ()
    made = merged(nodes, pins=pins)
    distinct = list(dict.fromkeys(iommus(made, where)[1::2]))
    assert set(iommus(made, where)[::2]) == {V}
    assert distinct == [1, 2, 3]
    device = next(d for d in made.devices if d.path == SEC)
    assert (device.guest_path, device.vmaster_ids) == (f"/passthrough{where}", (1, 2, 3))


def test_an_smmu_without_id_cells_on_the_host() -> None:
    host = {"soc/iommu@50000000/#iommu-cells": [0], "soc/dma@1000/iommus": [3],
            "soc/sec@2000/iommus": [4, 0x600]}  # fmt: skip
    made = merged({f"{P}/dma@1000/iommus": [3], f"{P}/sec@2000/iommus": [4, 0x600]}, host)
    assert iommus(made, "/dma@1000") == (V, 0)
    assert iommus(made, "/sec@2000") == (V, 1)


def test_a_mask_has_to_be_the_hosts() -> None:
    host = {"soc/iommu@50000000/#iommu-cells": [2], "soc/dma@1000/iommus": [3, 0x600, 0x7F]}
    made = merged({f"{P}/dma@1000/iommus": [3, 0x600, 0x7F]}, host, (DMA,))
    assert iommus(made, "/dma@1000") == (V, 0)
    made = merged({f"{P}/x/iommus": [3, 0x600, 0x7F]}, host, (DMA,))
    assert iommus(made, "/x") == (V, 0)
    nodes = {f"{P}/dma@1000/iommus": [3, 0x600, 0x3F]}
    assert refusal(nodes, host=host, devices=(DMA,)) == (
        "DT501: /passthrough/dma@1000: iommus says (/soc/iommu@50000000, 0x600, 0x3f), the host's "
        "/soc/dma@1000 has (/soc/iommu@50000000, 0x600 mask 0x7f); copy the host node's iommus "
        "unchanged"
    )
    nodes = {f"{P}/x/iommus": [3, 0x600, 0x3F]}
    assert refusal(nodes, host=host, devices=(DMA,)) == (
        "DT501: /passthrough/x: iommus <0x3 0x600 0x3f> is no stream of a device in dtdev; "
        "name the node like its host node, or give xen,path, and list it in dtdev"
    )


TWICE = {"soc/sec@2000/iommus": [3, 0x600, 4, 0x600], "soc/dma@1000/iommus": [3, 0x700]}


def test_one_id_on_two_smmus_needs_the_smmu() -> None:
    nodes: dict[str, Any] = {f"{P}/sec@2000/iommus": [9, 0x600], "s/phandle": [9]}
    assert refusal(nodes, host=TWICE) == (
        "DT542: /passthrough/sec@2000: iommus <0x9 0x600> can be each of these streams of "
        "/soc/sec@2000: (/soc/iommu@50000000, 0x600), (/soc/iommu@51000000, 0x600); use the "
        "phandle that the SMMU has on the host, or give the stand-in its xen,path"
    )
    for says in (
        {"s/xen,path": B},
        {"s": None, "iommu@51000000": {"phandle": [9]}},
        {"#address-cells": [2], "#size-cells": [2], "s/reg": [0, 0x51000000, 0, 0x20000]},
    ):
        made = merged({**nodes, **says}, TWICE)
        assert iommus(made, "/sec@2000") == (V, 2)


def test_a_stand_in_that_contradicts_the_host_is_refused() -> None:
    nodes = {f"{P}/dma@1000/iommus": [9, 0x600], "s": {"phandle": [9], "xen,path": B}}
    assert refusal(nodes) == (
        "DT501: /passthrough/dma@1000: iommus says (/soc/iommu@51000000, 0x600), the host's "
        "/soc/dma@1000 has (/soc/iommu@50000000, 0x600); copy the host node's iommus unchanged"
    )
    nodes = {f"{P}/dma@1000/iommus": [9, 0x600], "s": {"phandle": [9], "#iommu-cells": [3]}}
    assert refusal(nodes) == (
        "DT540: /s: stands in for an SMMU, but its #iommu-cells is 3; "
        "give it 0, 1 or 2, as the host's has"
    )


def test_an_entry_without_a_device_and_without_an_smmu_is_refused_with_candidates() -> None:
    nodes: dict[str, Any] = {f"{P}/x/iommus": [V, 0x600]}
    assert refusal(nodes) == (
        "DT542: /passthrough/x: iommus <0xfdea 0x600> says no SMMU of the host, and the node no "
        "device; it may be (/soc/iommu@50000000, 0x600), (/soc/iommu@51000000, 0x600); give "
        "xen,path with the device's host path"
    )
    host = {"a/eth@0": {"iommus": [3, 1]}, "b/eth@0": {"iommus": [4, 1]}}
    nodes = {f"{P}/eth@0/iommus": [V, 1]}
    assert refusal(nodes, host=host, devices=("/a/eth@0", "/b/eth@0")) == (
        "DT542: /passthrough/eth@0: may stand for each of /a/eth@0, /b/eth@0, and iommus "
        "<0xfdea 0x1> says no SMMU; give xen,path with the device's host path"
    )
    nodes = {f"{P}/x/eth@0/iommus": [V, 0x600], f"{P}/y/eth@0/iommus": [V, 0x600]}
    host = {"a/eth@0": {"iommus": [3, 0x600]}, "soc/dma@1000": None}
    assert refusal(nodes, host=host, devices=("/a/eth@0",)) == (
        "DT542: /passthrough/x/eth@0: may stand for each of /a/eth@0, and iommus <0xfdea 0x600> "
        "says no SMMU; give xen,path with the device's host path"
    )


def test_a_name_that_the_registers_contradict_says_no_device() -> None:
    node: dict[str, Any] = {"reg": [0, 0x2000, 0, 0x1000], "iommus": [9, 0x600]}
    end = "give xen,path with the host path of the one that is meant"
    torn = (
        "DT542: /passthrough/dma@1000: has the name of /soc/dma@1000 and registers of "
        f"/soc/sec@2000: its iommus can be each one's; {end}"
    )
    for entries in ([9, 0x600], [3, 0x600], [4, 0x600, 3, 0x601, 4, 0x602]):
        assert refusal({f"{P}/dma@1000": {**node, "iommus": entries}}) == torn
        # Its compatible is no vote, nor is a register that is nobody's.
        both = {**node, "iommus": entries, "compatible": "t,sec"}
        assert refusal({f"{P}/dma@1000": both}) == torn
        more = {**node, "iommus": entries, "reg": [0, 0x2800, 0, 0x100, 0, 0x9000, 0, 0x1000]}
        assert refusal({f"{P}/dma@1000": more}) == torn
    inside = {f"{P}/dma@1000": {"reg": node["reg"], "in": {"iommus": [3, 0x600]}}}
    assert refusal(inside) == (
        "DT542: /passthrough/dma@1000/in: lies in /passthrough/dma@1000, which has the name of "
        f"/soc/dma@1000 and registers of /soc/sec@2000: its iommus can be each one's; {end}"
    )
    # The device that is not the guest's, a register of the device's own, iomem that puts it there.
    assert iommus(merged({f"{P}/dma@1000": node}, devices=(DMA,)), "/dma@1000") == (V, 0)
    own = {**node, "reg": [0, 0x2000, 0, 0x1000, 0, 0x1000, 0, 0x1000]}
    assert iommus(merged({f"{P}/dma@1000": own}), "/dma@1000") == (V, 0)
    moved = (MappedReg(0x1000, 0x2000, 0x1000), MappedReg(0x2000, 0x1000, 0x1000))
    assert iommus(merged({f"{P}/dma@1000": node}, pins=moved), "/dma@1000") == (V, 0)
    straight = {**node, "reg": [0, 0x1000, 0, 0x1000]}
    assert refusal({f"{P}/dma@1000": straight}, pins=moved) == torn
    # A later entry of iomem wins.
    late = (*moved, MappedReg(0x1000, 0, 0x8000), MappedReg(0x1000, 0x1000, 0x800))
    assert iommus(merged({f"{P}/dma@1000": straight}, pins=late), "/dma@1000") == (V, 0)


def test_xen_path_wins_over_registers_with_a_notice() -> None:
    node = {"xen,path": DMA, "reg": [0, 0x2000, 0, 0x1000], "iommus": [9, 0x600]}
    made = merged({f"{P}/x": node})
    assert iommus(made, "/x") == (V, 0)
    said = "has registers of /soc/sec@2000, and its xen,path says /soc/dma@1000"
    assert others(made) == [f"DT206 /passthrough/x: {said}"]
    # A node without streams is noted, and is neither's.
    made = merged({f"{P}/dma@1000/reg": [0, 0x2000, 0, 0x1000]})
    assert made.devices == ()
    assert others(made) == [
        "DT206 /passthrough/dma@1000: has the name of /soc/dma@1000 and registers of "
        "/soc/sec@2000: it is taken for neither"
    ]


def test_a_bus_with_the_name_of_one_and_registers_of_another() -> None:
    bus = {"device_type": "pci", "compatible": "pci-host-ecam-generic"}
    host = {
        "soc/pcie@40000000": {**bus, "reg": [0x40000000, 0x1000], "iommu-map": [0, 3, 0x600, 1]},
        "soc/pcie@41000000": {**bus, "reg": [0x41000000, 0x1000], "iommu-map": [0, 4, 0x600, 1]},
    }
    node = {**bus, "reg": [0, 0x41000000, 0, 0x1000], "iommu-map": [0, V, 0x600, 1]}
    assert refusal({f"{P}/pcie@40000000": node}, host=host) == (
        "DT542: /passthrough/pcie@40000000: has the name of /soc/pcie@40000000 and registers of "
        "/soc/pcie@41000000: its iommu-map can be each one's; give xen,path with the host path of "
        "the one that is meant"
    )
    merged({f"{P}/pcie@41000000": node}, host)


def test_entries_that_do_not_fit_the_cells() -> None:
    nodes = {f"{P}/dma@1000/iommus": [9, 0x600], "s": {"phandle": [9], "#iommu-cells": [2]}}
    assert refusal(nodes) == (
        "DT405: /passthrough/dma@1000: iommus: an entry of 0x9 has 2 cells of ids, 1 left; "
        "write as many cells as #iommu-cells says"
    )


def test_an_iommu_of_the_guests_own_keeps_its_entries() -> None:
    own = {"compatible": "rockchip,iommu", "#iommu-cells": [0], "phandle": [9]}
    made = merged({f"{P}/mmu": own, f"{P}/codec/iommus": [9]})
    assert iommus(made, "/codec") == (9,)
    assert others(made) == []
    # Of a device in dtdev all streams are an Arm SMMU's: there it is a stand-in.
    made = merged({f"{P}/mmu": own, f"{P}/dma@1000/iommus": [9]})
    assert iommus(made, "/dma@1000") == (V, 0)


def test_xen_path_may_name_a_part_of_a_device() -> None:
    host = {"soc/dma@1000/port@0": {}}
    made = merged({f"{P}/p": {"xen,path": f"{DMA}/port@0", "iommus": [V, 0x600]}}, host)
    assert iommus(made, "/p") == (V, 0)
    assert refusal({f"{P}/p/xen,path": "/soc"}) == (
        "DT501: /passthrough/p: its xen,path /soc is not in dtdev; add that path to dtdev"
    )


def test_a_device_in_two_nodes_has_the_ids_of_both() -> None:
    made = merged(
        {
            f"{P}/x": {"xen,path": SEC, "iommus": [V, 0x600]},
            f"{P}/y": {"xen,path": SEC, "iommus": [V, 0x602]},
        }
    )
    device = next(d for d in made.devices if d.path == SEC)
    assert (device.guest_path, device.vmaster_ids) == ("/passthrough/x", (1, 3))
    assert texts(made) == [
        "DT504 /soc/dma@1000: 1 of its streams are not in the partial tree: their DMA faults",
        "DT504 /soc/sec@2000: 1 of its streams are not in the partial tree: their DMA faults",
    ]


def test_one_node_with_two_devices_is_noted() -> None:
    made = merged({f"{P}/x/iommus": [3, 0x600, 4, 0x600]})
    assert iommus(made, "/x") == (V, 0, V, 1)
    assert "DT543 /passthrough/x: has streams of 2 devices: /soc/dma@1000, /soc/sec@2000" in texts(
        made
    )


def test_several_vsmmus_are_named_each() -> None:
    """Each has vMasterIDs of its own, from 0."""
    platform = Platform.from_tree(tree_of(HOST), "host.dtb")
    numbered = allocate(platform, (DMA, SEC), one_per_smmu=True)
    viommus = tuple(replace(v, phandle=V + at) for at, v in enumerate(numbered.viommus))
    bindings = replace(numbered, viommus=viommus)
    assert [(v.smmu, v.phandle) for v in viommus] == [(A, V), (B, V + 1)]
    wanted = (V + 1, 0, V, 1, V + 1, 1)
    for entries in (
        [4, 0x600, 3, 0x601, 4, 0x602],
        [V + 1, 0x600, V, 0x601, V + 1, 0x602],
        [9, 0x600, 9, 0x601, 9, 0x602],
    ):
        nodes = {f"{P}/sec@2000/iommus": entries, f"{P}/dma@1000/iommus": [3, 0x600]}
        made = merged(nodes, bindings=bindings)
        assert iommus(made, "/sec@2000") == wanted
        assert iommus(made, "/dma@1000") == (V, 0)
        assert texts(made) == []
    text = refusal({f"{P}/sec@2000/iommus": [V, 0x600]}, bindings=bindings)
    assert text.startswith(
        "DT501: /passthrough/sec@2000: iommus says (/soc/iommu@50000000, 0x600), the host's "
    )
    assert refusal({f"{P}/x/phandle": [V + 1]}, bindings=bindings) == (
        "DT402: /passthrough/x: phandle 65003 is reserved for a vSMMU; use 1 to 64999"
    )
    assert refusal({f"{P}/x/phandle": [GUEST.its_phandle]}) == (
        "DT402: /passthrough/x: phandle 65130 is reserved for the ITS; use 1 to 64999"
    )


# Stand-ins that are copied, phandles.


def test_an_smmu_in_passthrough() -> None:
    smmu: dict[str, Any] = {**SMMU, "phandle": [9]}
    nodes: dict[str, Any] = {f"{P}/smmu": smmu, f"{P}/dma@1000/iommus": [9, 0x600]}
    made = merged(nodes)
    assert iommus(made, "/dma@1000") == (V, 0)
    assert others(made) == [
        "DT541 /passthrough/smmu: stands in for an SMMU and is copied: the guest's driver fails "
        "to probe it"
    ]
    assert others(merged({"smmu": smmu, f"{P}/dma@1000/iommus": [9, 0x600]})) == []
    nodes = {f"{P}/smmu": {**smmu, "reg": [0, 0x50000000, 0, 0x20000]}}
    assert refusal(nodes).startswith("DT541: /passthrough/smmu: is an SMMU with registers")


@pytest.mark.parametrize(
    ("props", "text"),
    [
        ({"phandle": [5, 6]}, "DT404: /passthrough/x: phandle has 8 bytes, not one cell"),
        (
            {"linux,phandle": b"\1"},
            "DT404: /passthrough/x: linux,phandle has 1 bytes, not one cell",
        ),
        ({"phandle": [5], "linux,phandle": [V]}, "DT402: /passthrough/x: phandle 65002 is "),
        ({"phandle": [5], "linux,phandle": [6]}, "DT403: /passthrough/y: phandle 0x6 is "),
    ],
)
def test_both_spellings_of_a_phandle_are_looked_at(props: dict[str, Any], text: str) -> None:
    assert refusal({f"{P}/x": props, f"{P}/y/phandle": [6]}).startswith(text)


def test_a_phandle_above_the_reserved_ones_is_noted() -> None:
    made = merged({f"{P}/x/phandle": [65010]})
    assert others(made) == [
        "DT402 /passthrough/x: phandle 65010 is the toolstack's to give; use 1 to 64999"
    ]


# iommu-map.

PCI = {"device_type": "pci", "iommu-map": [0, 3, 0x1000, 0x100], "reg": [0x40000000, 0x1000],
       "compatible": "pci-host-ecam-generic"}  # fmt: skip
BRIDGE = {"soc/pcie@40000000": PCI}
PCIE = f"{P}/pcie@40000000"


def bound(*ids: tuple[str, int, int]) -> Bindings:
    """Bindings of (SMMU, pMasterID, vMasterID)."""
    entries = [Binding(vid, smmu, sid, ("/soc/pcie@40000000",)) for smmu, sid, vid in ids]
    return Bindings(tuple(sorted(entries, key=lambda entry: entry.vmaster_id)))


SOME = bound(*((A, 0x1000 + at, at) for at in range(16)), (A, 0x1010, 40), (B, 0x1000, 50))


def rows(nodes: dict[str, Any], path: str = "/pcie@40000000", **world: Any) -> list[list[int]]:
    made = merged(nodes, **{"host": BRIDGE, "devices": (), "bindings": SOME, **world})
    node = made.tree.node(f"/passthrough{path}")
    assert node is not None
    cells = list(node.cells("iommu-map") or ())
    assert set(cells[1::4]) == {V}
    return [[cells[at], *cells[at + 2 : at + 4]] for at in range(0, len(cells), 4)]


def test_rows_become_rows_of_vmaster_ids() -> None:
    assert rows({f"{PCIE}/iommu-map": [0, 3, 0x1000, 16]}) == [[0, 0, 16]]
    # A run of StreamIDs that is none of vMasterIDs is cut.
    assert rows({f"{PCIE}/iommu-map": [8, 3, 0x1008, 9]}) == [[8, 8, 8], [0x10, 40, 1]]
    made = merged({f"{PCIE}/iommu-map": [0, 3, 0x1000, 1]}, BRIDGE, devices=(), bindings=SOME)
    assert [(d.path, d.guest_path, d.vmaster_ids) for d in made.devices] == [
        ("/soc/pcie@40000000", "/passthrough/pcie@40000000", (0,))
    ]


def test_only_ids_that_are_looked_up_count() -> None:
    nodes = {f"{PCIE}/iommu-map": [0, 3, 0x1000, 0x1000], f"{PCIE}/iommu-map-mask": [0xF]}
    assert rows(nodes) == [[0, 0, 16]]
    # A row behind another one.
    nodes = {f"{PCIE}/iommu-map": [0, 3, 0x1000, 16, 4, 3, 0x9999, 1, 0x20, 3, 0x1002, 1]}
    assert rows(nodes) == [[0, 0, 16], [0x20, 2, 1]]
    made = merged(nodes, BRIDGE, devices=(), bindings=SOME)
    assert "DT505 /passthrough/pcie@40000000: 1 rows of its iommu-map hold no id that is " \
        "looked up; left out" in texts(made)  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ({f"{PCIE}/iommu-map": [0, 9, 0x1000, 16], "s/phandle": [9]}, BRIDGE),
        ({f"{PCIE}/iommu-map": [0, V, 0x1000, 16]}, BRIDGE),
        ({f"{P}/x": {"xen,path": "/soc/pcie@40000000", "iommu-map": [0, V, 0x1000, 16]}}, BRIDGE),
        (
            {
                f"{P}/x": {
                    "compatible": "pci-host-ecam-generic",
                    "reg": [0, 0x40000000, 0, 0x1000],
                    "iommu-map": [0, V, 0x1000, 16],
                }
            },
            BRIDGE,
        ),
        (
            {
                f"{PCIE}/iommu-map": [0, 9, 0x1000, 0, 1, 1, 9, 0x1001, 0, 15],
                "s": {"phandle": [9], "#iommu-cells": [2]},
            },
            None,
        ),
        # Rows of one output cell although the stand-in counts two: as older trees have them.
        (
            {
                f"{PCIE}/iommu-map": [0, 9, 0x1000, 1, 1, 9, 0x1001, 1],
                "s": {"phandle": [9], "#iommu-cells": [2], "xen,path": A},
            },
            BRIDGE,
        ),
        # A bus that is none of the host's, by the phandle of the SMMU.
        ({f"{P}/x/iommu-map": [0, 3, 0x1000, 16]}, {}),
    ],
)
def test_every_form_of_a_row(nodes: dict[str, Any], host: dict[str, Any] | None) -> None:
    path = "/x" if f"{P}/x" in str(nodes) else "/pcie@40000000"
    if host is None:
        text = refusal(nodes, host=BRIDGE, devices=(), bindings=SOME)
        assert text.startswith("DT505: /passthrough/pcie@40000000: iommu-map: a row of 15 ids ")
        return
    found = rows(nodes, path, host=host)
    assert found in ([[0, 0, 16]], [[0, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        (
            {f"{PCIE}/iommu-map": [0, 3, 0x1000, 0x12]},
            "DT505: /passthrough/pcie@40000000: iommu-map: row 0x0+0x12 to 0x1000: 0x1011 of "
            "/soc/iommu@50000000 is no stream of this guest; cut the row to the ids of the "
            "guest's devices",
        ),
        (
            {f"{PCIE}/iommu-map": [0, 3, 0, 0xFFFFFFFF]},
            "DT505: /passthrough/pcie@40000000: iommu-map: row 0x0+0xffffffff to 0x0: the host's "
            "map of this bus has no 0x0 of /soc/iommu@50000000; cut the row to ids of the host's",
        ),
        (
            {f"{PCIE}/iommu-map": [0, 4, 0x1000, 1]},
            "DT505: /passthrough/pcie@40000000: iommu-map: row 0x0+0x1 to 0x1000: the host's map "
            "of this bus has no 0x1000 of /soc/iommu@51000000; cut the row to ids of the host's",
        ),
        (
            {f"{P}/x/iommu-map": [0, V, 0x1000, 1]},
            "DT542: /passthrough/x: iommu-map: row 0x0+0x1 to 0x1000 does not say which SMMU of "
            "the host; use the phandle that the SMMU has on the host, or give the stand-in its "
            "xen,path",
        ),
        (
            {f"{PCIE}/iommu-map": [0, 2, 0x1000, 1]},
            "DT505: /passthrough/pcie@40000000: iommu-map: <0x2> is no node's phandle; write rows "
            "of <id SMMU StreamID length>, the SMMU by the host's phandle",
        ),
        (
            {f"{PCIE}/iommu-map": [0, 5, 0x1000, 1], "c": {"#clock-cells": [0], "phandle": [5],
             "compatible": "fixed-clock"}},
            "DT505: /passthrough/pcie@40000000: iommu-map: <0x5> is /c, not an IOMMU; write rows "
            "of <id SMMU StreamID length>, the SMMU by the host's phandle",
        ),
        (
            {f"{PCIE}/iommu-map": [0, 3, 0x1000]},
            "DT505: /passthrough/pcie@40000000: iommu-map: a row for /soc/iommu@50000000 takes 4 "
            "cells, 3 left; write rows of <id SMMU StreamID length>, the SMMU by the host's "
            "phandle",
        ),
        (
            {f"{PCIE}/iommu-map": [0, 3, 0x1000, 0]},
            "DT505: /passthrough/pcie@40000000: iommu-map: no row has a requester id; fill its "
            "rows, or take the property out",
        ),
        (
            {f"{PCIE}/iommu-map": [0, 3, 0x1008, 9], f"{PCIE}/iommu-map-mask": [0xF0]},
            None,
        ),
    ],
)  # fmt: skip
def test_a_row_that_is_not_the_guests_is_refused(nodes: dict[str, Any], text: str | None) -> None:
    if text is None:
        assert rows(nodes) == [[0, 8, 1]]
        return
    assert refusal(nodes, host=BRIDGE, devices=(), bindings=SOME) == text


def test_the_rows_of_one_tree_are_bounded() -> None:
    """Vmaster ids in reverse order cut each row into single ids."""
    there = bound(*((A, at, 0xFFFF - at) for at in range(0x10000)))
    nodes = {f"{P}/n{at}/iommu-map": [0, 3, 0, 0x10000] for at in range(3)}
    assert refusal(nodes, devices=(), bindings=there) == (
        "DT505: /passthrough/n1: iommu-map: the tree would have more than 65536 rows; "
        "cut the map to fewer rows"
    )


# What a guest's kernel fails over.


def test_dangling_references_are_noted() -> None:
    made = merged(
        {
            f"{P}/x": {"clocks": [2], "pinctrl-0": [0x20], "a-gpios": [0x21, 1, 2]},
            f"{P}/x/port/endpoint/remote-endpoint": [0x22],
            f"{P}/x/msi-map": [0, 0x23, 0, 1],
            f"{P}/y": {"clocks": [0x24], "vdd-supply": [0x25], "resets": [65000]},
            f"{P}/z": {"phandle": [0x25]},
            "outside": {"#clock-cells": [0], "phandle": [0x24]},
        }
    )
    end = ": the guest's driver will not find it"
    assert others(made) == [
        "DT401 /passthrough/x: clocks[0]: <0x2> is /clock of the host tree, not in the "
        f"partial{end}",
        f"DT401 /passthrough/x: pinctrl-0[0]: <0x20> is no node of the partial tree{end}",
        f"DT401 /passthrough/x: a-gpios[0]: <0x21> is no node of the partial tree{end}",
        f"DT401 /passthrough/x: msi-map[0]: <0x23> is no node of the partial tree{end}",
        "DT401 /passthrough/x/port/endpoint: remote-endpoint[0]: <0x22> is no node of the partial "
        f"tree{end}",
        "DT401 /passthrough/y: clocks[0]: <0x24> is /outside, which is not copied into the "
        f"guest{end}",
        "DT401 /passthrough/y: resets[0]: <0xfde8> is /interrupt-controller, which has no "
        f"#reset-cells{end}",
    ]


ABSURD = {f"{P}/#address-cells": [0x80000000]}


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (
            {**ABSURD, f"{P}/x/reg": [0, 1, 2, 3]},
            [
                "DT213 /passthrough: #address-cells is 0x80000000, not 1 or 2: a guest will not "
                "probe it",
                "DT206 /passthrough/x: reg has 16 bytes, and #address-cells of /passthrough is "
                "0x80000000",
            ],
        ),
        (
            {f"{P}/#size-cells": b"\0\1", f"{P}/compatible": "isa"},
            [
                'DT213 /passthrough: lacks compatible = "simple-bus"; #size-cells has 2 bytes, not '
                "one cell: a guest will not probe it",
            ],
        ),
        (
            {f"{P}/#size-cells": [0]},
            ["DT213 /passthrough: #size-cells is 0, not 1 or 2: a guest will not probe it"],
        ),
        (
            {f"{P}/x": {"ranges": [1], "#address-cells": [0x1000]}},
            [
                "DT206 /passthrough/x: ranges has 4 bytes, and #address-cells of /passthrough/x is "
                "0x1000",
            ],
        ),
    ],
)
def test_a_count_that_is_there_and_wrong_is_said(nodes: dict[str, Any], said: list[str]) -> None:
    assert others(merged(nodes)) == said


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        (
            {f"{P}/x/reg": [0, 1, 2]},
            "DT206 /passthrough/x: reg has 12 bytes, not entries of 2 + 2 cells",
        ),
        (
            {f"{P}/ranges": [0, 0, 1, 2]},
            "DT206 /passthrough: ranges has 16 bytes, not rows of 2 + 2 + 2 cells",
        ),
        (
            {f"{P}/x": {"ranges": [1], "#address-cells": [1], "#size-cells": [1]}},
            "DT206 /passthrough/x: ranges has 4 bytes, not rows in its cells and those of "
            "/passthrough",
        ),
        (
            {f"{P}/x/interrupts": [0, 5]},
            "DT302 /passthrough/x: its interrupts of /interrupt-controller cannot be resolved in "
            "the guest: interrupts has 8 bytes, not specifiers of 3 cells",
        ),
        (
            {f"{P}/x": {"interrupts": [0, 5, 4], "interrupt-parent": [0x99]}},
            "DT302 /passthrough/x: its interrupts cannot be resolved in the guest: "
            "interrupt-parent <0x99> is no node of the partial tree",
        ),
        (
            {f"{P}/x": {"interrupts": [0, 5, 4], "interrupt-parent": [2]}},
            "DT302 /passthrough/x: its interrupts cannot be resolved in the guest: "
            "interrupt-parent <0x2> is /clock of the host tree, not in the partial",
        ),
        (
            {f"{P}/x/y/interrupts": [0, 5, 4], f"{P}/x/interrupt-parent": [9], "i/phandle": [9]},
            "DT302 /passthrough/x/y: its interrupts cannot be resolved in the guest: "
            "interrupt-parent <0x9> is /i, which is not copied into the guest",
        ),
        (
            {f"{P}/x": {"interrupts": [0, 5, 4], "interrupt-parent": [V]}},
            "DT302 /passthrough/x: its interrupts cannot be resolved in the guest: "
            "interrupt-parent <0xfdea> is /iommu@4040000, which is no interrupt controller",
        ),
        (
            {f"{P}/x/interrupts-extended": [0x99, 0, 5, 4]},
            "DT302 /passthrough/x: its interrupts cannot be resolved in the guest: "
            "interrupts-extended names <0x99>, which is no node's phandle",
        ),
        (
            {f"{P}/x/interrupts": [0, 2000, 4]},
            "DT302 /passthrough/x: its interrupts of /interrupt-controller cannot be resolved in "
            "the guest: SPI 2000 has no GIC id below 1020",
        ),
    ],
)
def test_cells_are_noted(nodes: dict[str, Any], text: str) -> None:
    assert others(merged(nodes)) == [text]


def test_interrupts_of_a_controller_in_passthrough_are_its_own() -> None:
    intc = {"interrupt-controller": True, "#interrupt-cells": [2], "phandle": [7]}
    nodes = {
        f"{P}/intc": {**intc, "interrupts": [0, 5, 4]},
        f"{P}/x": {"interrupt-parent": [7], "interrupts": [1, 2, 3, 4]},
        f"{P}/y/interrupts-extended": [7, 1, 2, 65000, 0, 6, 4],
    }
    assert others(merged(nodes)) == []


def test_many_notices_are_counted() -> None:
    made = merged({f"{P}/n{at}/clocks": [0x77] for at in range(100)})
    found = others(made)
    assert len(found) == 65
    assert found[-1] == "DT401 /passthrough: and 36 more such nodes"


def test_streams_without_a_vsmmu_are_noted() -> None:
    partial = tree_of(edited({P: BUS}, {f"{P}/x/iommus": [3, 1], f"{P}/y/iommu-map": [0, 3, 0, 1]}))
    made = merge_partial(Tree(), partial, guest=GUEST)
    assert texts(made) == [
        "DT508 /passthrough/x: has iommus, and 1 more nodes, and the guest has no vSMMU: they "
        "name an SMMU it does not have"
    ]
