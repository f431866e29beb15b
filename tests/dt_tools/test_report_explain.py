# SPDX-License-Identifier: BSD-2-Clause
"""One device end to end, and the differences of two boards."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import pytest

from dt_tools.blob import read
from dt_tools.errors import UserError
from dt_tools.platform import Platform
from dt_tools.report.diff import diff_reports, print_diff
from dt_tools.report.explain import explain
from dt_tools.report.explain_text import print_explained
from dt_tools.report.jsonreport import inspect_report, to_line
from dt_tools.tree import Tree


@pytest.fixture
def tree(samples: Path) -> Tree:
    return read((samples / "board.dtb").read_bytes(), "board.dtb")


def platform(tree: Tree, name: str = "board.dtb") -> Platform:
    return Platform.from_tree(tree, name)


def told(tree: Tree, path: str, width: int = 80) -> str:
    out = io.StringIO()
    print_explained(explain(platform(tree), path), out, width=width)
    return out.getvalue()


def test_a_device_end_to_end(tree: Tree) -> None:
    text = told(tree, "/soc/ethernet@60010000")
    head = (
        "/soc/ethernet@60010000\n"
        "  board       board.dtb\n"
        "  compatible  vsmmu,sample-ethernet\n"
        "  status      okay\n"
        "  dma         coherent\n"
        "  assignable  yes\n"
    )
    assert text.startswith(head)
    for part in (
        "Registers: 2\n  0x60010000 size 0x4000, 4 pages\n  0x60018000 size 0x1000, 1 page\n",
        "Interrupts: 2\n  SPI 134..135 level high (mac, dma)\n",
        "StreamIDs: 1\n  0x10..0x11 at /soc/iommu@50000000\n"
        "    arm,smmu-v3 at 0x50000000, okay\n"
        "    stream table of 2^5 entries at least\n"
        "    STE of 0x10: linear +0x400; split 8: L1 0x0 (+0x0), L2 0x10 (+0x400)\n"
        "    STE of 0x11: linear +0x440; split 8: L1 0x0 (+0x0), L2 0x11 (+0x440)\n",
        "  vSMMU      0x4040000 size 0x40000, interrupt 33, phandle 0xfdea\n"
        "  vMasterID  0x0 stands for 0x10 of /soc/iommu@50000000\n"
        "  vMasterID  0x1 stands for 0x11 of /soc/iommu@50000000\n"
        "  node       /passthrough/ethernet@60010000\n"
        "  iommus     <0xfdea 0x0 0xfdea 0x1>\n"
        "  registers  0x60010000 size 0x4000, 1:1\n"
        "  registers  0x60018000 size 0x1000, 1:1\n"
        "  interrupts 134..135\n",
        "  needs /clock-125m (clocks; 2 users)\n",
        "  notice   DT201 1 provider stays outside the guest: clocks\n",
    ):
        assert part in text


def test_the_stream_table_of_a_split_of_8(tree: Tree) -> None:
    found = explain(platform(tree), "/soc/pcie@40000000")
    (stream,) = found["streams"]
    assert (stream["first"], stream["last"], stream["rid_first"]) == ("0x10000", "0x10fff", "0x0")
    assert stream["ste"] == {
        "split": 8,
        "log2size": 17,
        "ends": [
            {
                "stream_id": "0x10000",
                "linear_offset": "0x400000",
                "l1_index": "0x100",
                "l1_offset": "0x800",
                "l2_index": "0x0",
                "l2_offset": "0x0",
            },
            {
                "stream_id": "0x10fff",
                "linear_offset": "0x43ffc0",
                "l1_index": "0x10f",
                "l1_offset": "0x878",
                "l2_index": "0xff",
                "l2_offset": "0x3fc0",
            },
        ],
    }
    assert found["guest"]["refused"]["rule"] == "DT107"
    assert "    from requester ids 0x0..0xfff\n" in told(tree, "/soc/pcie@40000000")


def test_addresses_are_followed_to_the_cpu(tree: Tree) -> None:
    found = explain(platform(tree), "/soc/bus@62000000/codec@1000")
    assert found["regs"] == [
        {
            "bus": "0x1000",
            "size": "0x1000",
            "steps": [{"bus": "/soc/bus@62000000", "address": "0x62001000", "reason": None}],
            "cpu": "0x62001000",
            "pages": 1,
        }
    ]
    text = told(tree, "/soc/bus@62000000/codec@1000")
    assert "    0x1000 on the bus\n    0x62001000 behind /soc/bus@62000000\n" in text
    bus = tree.node("/soc/bus@62000000")
    assert bus is not None
    bus.set_cells("ranges", 0x8000, 0, 0x6200_0000, 0x1000)
    found = explain(platform(tree), "/soc/bus@62000000/codec@1000")
    assert found["regs"][0]["cpu"] is None
    assert found["guest"]["refused"]["rule"] == "DT202"
    text = told(tree, "/soc/bus@62000000/codec@1000")
    assert "no CPU address" in text
    assert "no row of ranges has it behind /soc/bus@62000000" in text
    del bus.props["ranges"]
    assert "no valid ranges behind /soc/bus@62000000" in told(tree, "/soc/bus@62000000/codec@1000")


def test_a_refusal_stands_in_the_place_of_the_guest(tree: Tree) -> None:
    text = told(tree, "/soc/gpu@60040000")
    assert (
        "A guest with this device alone\n"
        '  refused DT105 is disabled (status = "disabled")\n'
        '    fix: set status = "okay" on /soc/gpu@60040000 in the host tree\n'
    ) in text
    assert "DT106" in told(tree, "/soc/iommu@50000000")
    memory = told(tree, "/memory@80000000")
    assert "StreamIDs: none\n" in memory
    assert "refused DT101" in memory


def test_shared_pages_and_interrupts_elsewhere(tree: Tree) -> None:
    assert "  same page: /soc/dma@60020800\n" in told(tree, "/soc/dma@60020000")
    text = told(tree, "/soc/display@60030000", 160)
    assert "  1 MSI at /soc/interrupt-controller@53000000: its controller turns it" in text
    node = tree.node("/soc/usb@60050000")
    assert node is not None
    node.props["interrupts"] = (
        tree.root.children["soc"].children["dma@60020000"].props["interrupts"]
    )
    assert "  SPI 136 is also of /soc/dma@60020000\n" in told(tree, "/soc/usb@60050000")


def test_repeated_ids_are_told(tree: Tree) -> None:
    text = told(tree, "/soc/crypto@61000000")
    assert "    in use on 2 SMMUs: needs vMasterIDs\n" in text
    smmu = tree.node("/soc/iommu@50000000")
    assert smmu is not None
    smmu.set_strings("status", "disabled")
    assert "on 2 SMMUs, in use on 1: would need vMasterIDs\n" in told(tree, "/soc/crypto@61000000")


def test_an_unknown_path(tree: Tree) -> None:
    with pytest.raises(UserError) as caught:
        explain(platform(tree), "/soc/crypt@60000000")
    assert str(caught.value) == (
        "board.dtb: /soc/crypt@60000000: no such node; nearest: /soc/crypto@60000000"
    )


def test_an_alias_stands_for_its_path(tree: Tree) -> None:
    aliases = tree.root.add("aliases") if "aliases" not in tree.root.children else (
        tree.root.children["aliases"])  # fmt: skip
    aliases.set_strings("crypto7", "/soc/crypto@60000000")
    aliases.set_strings("lost", "/soc/crypto@6000000")
    assert explain(platform(tree), "crypto7")["path"] == "/soc/crypto@60000000"
    with pytest.raises(UserError) as caught:
        explain(platform(tree), "lost")
    assert str(caught.value).startswith(
        "board.dtb: lost: is an alias of /soc/crypto@6000000: no such node; nearest: /soc/crypto@6"
    )


def test_every_node_of_every_board_can_be_explained(corpus: Path, samples: Path) -> None:
    for path in (corpus / "dtbs" / "morello-sdp.dtb", samples / "board.dtb"):
        found = platform(read(path.read_bytes(), path.name), path.name)
        for node in found.tree.walk():
            one = explain(found, node.path)
            assert json.loads(to_line(one))["path"] == node.path
            for width in (40, 80):
                print_explained(one, out := io.StringIO(), width=width)
                assert max(map(len, out.getvalue().splitlines())) <= width


def test_masters_of_boards_agree_with_the_report(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("[jmt]*.dtb")):
        found = platform(read(path.read_bytes(), path.name), path.name)
        for master in inspect_report(found)["masters"]:
            one = explain(found, master["path"])
            assert one["assignable"] == master["assignable"]
            assert one["reasons"] == master["reasons"]
            assert (one["guest"]["refused"] is None) == (master["assignable"] == "yes")


# Differences.


def changes(first: Tree, second: Tree) -> list[tuple[str, str, str]]:
    a, b = (inspect_report(platform(t, n)) for t, n in ((first, "a.dtb"), (second, "b.dtb")))
    found = diff_reports(a, b)
    back = diff_reports(b, a)
    assert found["equal"] == back["equal"] == (not found["changes"])
    assert len(found["changes"]) == len(back["changes"])
    return [(c["kind"], c["change"], c["path"]) for c in found["changes"]]


def text_of_diff(first: Tree, second: Tree, width: int = 100) -> str:
    a, b = (inspect_report(platform(t, n)) for t, n in ((first, "a.dtb"), (second, "b.dtb")))
    print_diff(diff_reports(a, b), out := io.StringIO(), width=width)
    return out.getvalue()


def test_equal_boards(tree: Tree) -> None:
    other = tree.copy()
    assert changes(tree, other) == []
    other.root.set_strings("model", "another")
    other.root.add("uart").set_cells("interrupts", 0, 900, 4)
    assert changes(tree, other) == [], "only the SMMU sections are compared"
    assert text_of_diff(tree, other) == (
        "- a.dtb\n+ b.dtb\nno difference in SMMUs, masters, StreamIDs and interrupts\n"
    )


def test_phandles_are_not_compared(tree: Tree) -> None:
    other = tree.copy()
    smmu = other.node("/soc/iommu@52000000")
    pcie = other.node("/soc/pcie@40000000")
    assert smmu is not None
    assert pcie is not None
    cells = pcie.cells("iommu-map")
    assert cells is not None
    pcie.set_cells("iommu-map", cells[0], 0x7777, *cells[2:])
    smmu.set_cells("phandle", 0x7777)
    assert changes(tree, other) == []


def test_coherence_and_the_order_of_iommus_are_differences(tree: Tree) -> None:
    soc = tree.root.children["soc"]
    crypto = soc.children["crypto@60000000"]
    crypto.set_empty("dma-coherent")
    smmu = (crypto.cells("iommus") or (0,))[0]
    crypto.set_cells("iommus", smmu, 0x600, smmu, 0x601)
    other = tree.copy()
    changed = other.root.children["soc"].children["crypto@60000000"]
    changed.props.pop("dma-coherent")
    changed.set_cells("iommus", smmu, 0x601, smmu, 0x600)
    assert text_of_diff(tree, other, 120) == (
        "- a.dtb\n+ b.dtb\n\nMasters: 1\n"
        "~ /soc/crypto@60000000: dma_coherent yes -> no\n"
        "\nStreamIDs: 1\n"
        "~ /soc/crypto@60000000: order 0x600 at /soc/iommu@50000000, 0x601 at "
        "/soc/iommu@50000000 -> 0x601 at\n  /soc/iommu@50000000, 0x600 at /soc/iommu@50000000\n"
    )


def test_every_kind_of_change(tree: Tree) -> None:
    other = tree.copy()
    soc = other.root.children["soc"]
    soc.remove("usb@60050000")
    gpu = soc.children["gpu@60040000"]
    gpu.set_strings("status", "okay")
    dma = soc.children["dma@60020000"]
    dma.set_cells("interrupts", 0, 300, 4)
    cells = soc.children["crypto@60000000"].cells("iommus")
    assert cells is not None
    soc.children["crypto@60000000"].set_cells("iommus", cells[0], 0x601)
    assert text_of_diff(tree, other) == (
        "- a.dtb\n"
        "+ b.dtb\n"
        "\n"
        "Masters: 3\n"
        "~ /soc/gpu@60040000: status disabled -> okay\n"
        "~ /soc/gpu@60040000: assignable no -> yes\n"
        "- /soc/usb@60050000: vsmmu,sample-usb, okay, 0x60050000\n"
        "\n"
        "StreamIDs: 3\n"
        "- /soc/crypto@60000000: 0x600 at /soc/iommu@50000000\n"
        "- /soc/usb@60050000: 0x30 at /soc/iommu@51000000\n"
        "+ /soc/crypto@60000000: 0x601 at /soc/iommu@50000000\n"
        "\n"
        "Interrupts: 2\n"
        "- /soc/dma@60020000: SPI 136 flags 0x4\n"
        "+ /soc/dma@60020000: SPI 332 flags 0x4\n"
    )


def test_a_renamed_smmu_has_a_twin(tree: Tree) -> None:
    other = tree.copy()
    soc = other.root.children["soc"]
    smmu = soc.children.pop("iommu@52000000")
    smmu.name = "smmu@52000000"
    soc.children[smmu.name] = smmu
    a, b = (inspect_report(platform(t)) for t in (tree, other))
    rows = [c for c in diff_reports(a, b)["changes"] if c["kind"] == "smmu"]
    assert [(c["change"], c["path"], c["twin"]) for c in rows] == [
        ("removed", "/soc/iommu@52000000", "/soc/smmu@52000000"),
        ("added", "/soc/smmu@52000000", "/soc/iommu@52000000"),
    ]
    assert "+ /soc/smmu@52000000: arm,smmu-v3, okay, 0x52000000, which /soc/iommu@52000000 has" in (
        text_of_diff(tree, other)
    )


def test_an_smmu_that_changed(tree: Tree) -> None:
    other = tree.copy()
    smmu = other.node("/soc/iommu@51000000")
    assert smmu is not None
    smmu.props.pop("dma-coherent")
    smmu.set_cells("interrupts", 0, 69, 1)
    assert text_of_diff(tree, other) == (
        "- a.dtb\n+ b.dtb\n\nSMMUs: 1\n~ /soc/iommu@51000000: dma_coherent yes -> no\n"
        "\nInterrupts: 2\n"
        "- /soc/iommu@51000000: SPI 100 combined flags 0x1\n"
        "+ /soc/iommu@51000000: SPI 101 combined flags 0x1\n"
    )


def test_boards_against_themselves_and_each_other(corpus: Path) -> None:
    reports = []
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        tree = read(path.read_bytes(), path.name)
        report = inspect_report(platform(tree, path.name))
        assert diff_reports(report, inspect_report(platform(tree, path.name)))["equal"]
        reports.append(report)
    for a, b in pairwise(reports):
        found = diff_reports(a, b)
        assert not found["equal"]
        print_diff(found, out := io.StringIO(), width=80)
        assert max(map(len, out.getvalue().splitlines())) <= 80
