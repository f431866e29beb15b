# SPDX-License-Identifier: BSD-2-Clause
"""The inspection report: groups of StreamIDs, verdicts, JSON and terminal forms."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools.binding import allocate
from dt_tools.blob import read
from dt_tools.errors import Refusal
from dt_tools.extended import AddressMap
from dt_tools.partial import build_partial
from dt_tools.platform import Platform
from dt_tools.profiles import DEFAULT
from dt_tools.report import terminal
from dt_tools.report.assign import verdicts
from dt_tools.report.jsonreport import inspect_report, to_line
from dt_tools.report.streams import MAX_GROUPS, Repeated, Shared, overlaps, repeated, shared
from dt_tools.report.terminal import clean, print_inspected, print_report
from dt_tools.tree import Node, Tree
from tests.counts import sliced

GIC, SMMU, SMMU_B = 1, 2, 3
BOTH = ("/iommu@2000000", "/iommu@3000000")


def board() -> Tree:
    """A GICv3 with two SMMUv3, all devices straight below the root."""
    tree = Tree()
    root = tree.root
    root.set_strings("model", "Test board")
    root.set_strings("compatible", "test,board")
    root.set_cells("#address-cells", 1)
    root.set_cells("#size-cells", 1)
    root.set_cells("interrupt-parent", GIC)
    gic = root.add("gic@1000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("phandle", GIC)
    for at, phandle in ((0x200_0000, SMMU), (0x300_0000, SMMU_B)):
        smmu = root.add(f"iommu@{at:x}")
        smmu.set_strings("compatible", "arm,smmu-v3")
        smmu.set_cells("reg", at, 0x20000)
        smmu.set_cells("interrupts", 0, at >> 20, 1)
        smmu.set_strings("interrupt-names", "combined")
        smmu.set_cells("#iommu-cells", 1)
        smmu.set_cells("phandle", phandle)
    return tree


def device(tree: Tree, at: int, *iommus: int, size: int = 0x1000) -> Node:
    node = tree.root.add(f"dev@{at:x}")
    node.set_strings("compatible", "test,dev")
    node.set_cells("reg", at, size)
    if iommus:
        node.set_cells("iommus", *iommus)
    return node


def platform_of(tree: Tree) -> Platform:
    return Platform.from_tree(tree, "board.dtb")


def verdict_of(tree: Tree, path: str) -> tuple[str, list[tuple[str, str, str]]]:
    (found,) = [v for v in verdicts(platform_of(tree)) if v.master.path == path]
    return found.answer, [(r.rule, r.effect, r.text) for r in found.reasons]


# Groups of StreamIDs.

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.sampled_from("abc")))


@sliced(300)
@given(SPANS)
def test_overlaps_equal_a_search_of_every_id(spans: list[tuple[int, int, str]]) -> None:
    found: dict[int, tuple[str, ...]] = {}
    runs = overlaps([(first, first + length, owner) for first, length, owner in spans])
    for first, last, owners in runs:
        assert first <= last
        for at in range(first, last + 1):
            assert at not in found
            found[at] = owners
    expected = {}
    for at in range(50):
        owners = {o for first, length, o in spans if first <= at < first + length}
        if len(owners) > 1:
            expected[at] = tuple(sorted(owners))
    assert found == expected
    for (_, last, one), (first, _, two) in pairwise(runs):
        assert last < first
        assert last + 1 < first or one != two, "runs are maximal"


def test_the_same_id_on_two_smmus_is_no_sharing() -> None:
    tree = board()
    device(tree, 0x500_0000, SMMU, 0x600)
    device(tree, 0x600_0000, SMMU_B, 0x600)
    found = platform_of(tree)
    assert repeated(found) == (Repeated(0x600, 0x600, BOTH, BOTH),)
    assert shared(found) == ()
    assert [v.answer for v in verdicts(found)] == ["yes", "yes"]


def test_the_same_id_under_two_masters_ties_them_together() -> None:
    tree = board()
    device(tree, 0x500_0000, SMMU, 1, SMMU, 2)
    device(tree, 0x600_0000, SMMU, 2)
    pci = device(tree, 0x700_0000)
    pci.set_cells("iommu-map", 0, SMMU, 2, 8)
    found = platform_of(tree)
    everyone = ("/dev@5000000", "/dev@6000000", "/dev@7000000")
    assert shared(found) == (Shared("/iommu@2000000", 2, 2, everyone),)
    assert verdict_of(tree, "/dev@6000000") == (
        "together",
        [("DT503", "together", "shares a StreamID with /dev@5000000, /dev@7000000")],
    )


def test_disabled_smmus_and_masters_share_nothing_and_are_not_in_use() -> None:
    tree = board()
    device(tree, 0x500_0000, SMMU, 1)
    device(tree, 0x600_0000, SMMU, 1).set_strings("status", "disabled")
    device(tree, 0x700_0000, SMMU_B, 1)
    tree.root.children["iommu@3000000"].set_strings("status", "reserved")
    found = platform_of(tree)
    assert repeated(found) == (Repeated(1, 1, BOTH, BOTH[:1]),)
    assert shared(found) == ()
    findings = [(f["rule"], f["severity"], f["path"], f["text"]) for f in
                inspect_report(found)["findings"]]  # fmt: skip
    text = 'has status "reserved" and 1 enabled masters behind it'
    assert findings == [
        ("DT104", "note", "/iommu@3000000", text),
        ("DT502", "note", BOTH[0], "StreamID 0x1: on 2 SMMUs, in use on 1; would need vMasterIDs"),
    ]


def test_groups_are_limited() -> None:
    tree = board()
    for i in range(MAX_GROUPS + 50):
        device(tree, 0x500_0000 + 0x1000 * i, SMMU, 2 * i, SMMU_B, 2 * i)
    report = inspect_report(platform_of(tree))
    assert len(report["stream_ids"]["on_several_smmus"]) == MAX_GROUPS
    texts = [f["text"] for f in report["findings"]]
    assert "StreamID lists end after 1000 groups" in texts


# Verdicts.


def test_verdicts_name_every_reason() -> None:
    tree = board()
    v2 = tree.root.add("iommu@4000000")
    v2.set_strings("compatible", "arm,mmu-500")
    v2.set_cells("#iommu-cells", 1)
    v2.set_cells("phandle", 4)
    v2.set_strings("status", "disabled")
    node = device(tree, 0x500_0000, 4, 1, size=0x800)
    node.set_strings("status", "disabled")
    node.set_cells("interrupts", 1, 5, 4)
    device(tree, 0x500_0800)
    assert verdict_of(tree, "/dev@5000000") == (
        "no",
        [
            ("DT105", "blocks", 'has status "disabled"'),
            ("DT104", "blocks", 'its SMMU /iommu@4000000 has status "disabled"'),
            ("DT109", "blocks", "its IOMMU /iommu@4000000 is arm,mmu-500, not arm,smmu-v3"),
            (
                "DT205",
                "blocks",
                "has registers in a 4 KiB page with /dev@5000800, which cannot be assigned",
            ),
            ("DT302", "notice", "interrupts that are not SPIs are dropped: 1 PPI"),
        ],
    )


@pytest.mark.parametrize(
    ("change", "answer", "reason"),
    [
        (
            lambda n: n.set_cells("iommus", 99, 1),
            "no",
            ("DT401", "blocks", "iommus: <0x63> is no node's phandle"),
        ),
        (
            lambda n: n.set_strings("device_type", "pci"),
            "no",
            ("DT107", "blocks", "is a bridge or bus: the masters are the functions on it"),
        ),
        (
            lambda n: n.set_cells("reg", 1),
            "no",
            ("DT202", "blocks", "its reg does not translate to CPU addresses"),
        ),
        (lambda n: n.props.pop("reg"), "yes", ("DT202", "notice", "has no registers")),
        (
            lambda n: n.add("engine").set_cells("iommus", SMMU, 9),
            "no",
            ("DT210", "blocks", "its child /dev@5000000/engine is a device of its own"),
        ),
    ],
)
def test_each_rule(change, answer: str, reason: tuple[str, str, str]) -> None:
    tree = board()
    change(device(tree, 0x500_0000, SMMU, 1))
    assert verdict_of(tree, "/dev@5000000") == (answer, [reason])


def test_page_neighbours_that_are_masters_go_together() -> None:
    tree = board()
    device(tree, 0x500_0000, SMMU, 1, size=0x800)
    device(tree, 0x500_0800, SMMU, 2, size=0x800)
    assert verdict_of(tree, "/dev@5000000") == (
        "together",
        [("DT205", "together", "has registers in a 4 KiB page with /dev@5000800")],
    )


def builds(found: Platform, path: str) -> bool:
    """Whether the builders make a partial tree of this one device."""
    try:
        bindings = allocate(found, [path])
        build_partial(found, [path], bindings, AddressMap(DEFAULT.guest, ()))
    except Refusal:
        return False
    return True


@pytest.mark.parametrize("shaped", [False, True])
def test_verdicts_agree_with_the_builders_on_every_board(corpus: Path, shaped: bool) -> None:
    """As they are, and with every IOMMU taken for an enabled SMMUv3."""
    answers = []
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        tree = read(path.read_bytes(), path.name)
        for node in tree.walk() if shaped else ():
            node.props.pop("status", None)
            if "#iommu-cells" in node.props:
                node.set_strings("compatible", "arm,smmu-v3")
        found = Platform.from_tree(tree, path.name)
        for verdict in verdicts(found):
            answers.append(verdict.answer)
            made = builds(found, verdict.master.path)
            assert made == (verdict.answer == "yes"), (path.name, verdict)
    assert answers.count("yes") >= (60 if shaped else 14)
    assert len(answers) == 171


# JSON.


def test_the_json_report_of_a_small_board() -> None:
    tree = board()
    node = device(tree, 0x500_0000, SMMU, 0x600)
    node.set_cells("interrupts", 0, 7, 4)
    node.set_strings("interrupt-names", "done")
    report = inspect_report(platform_of(tree))
    assert list(report) == [
        *("schema", "file", "model", "compatible", "gic", "smmus", "pmcgs", "other_iommus"),
        *("masters", "stream_ids", "interrupts", "mmio", "findings"),
    ]
    assert report["schema"] == "vsmmu.inspect/1"
    assert report["gic"] == {"path": "/gic@1000000", "version": 3}
    assert report["smmus"][0] == {
        "path": "/iommu@2000000",
        "compatible": ["arm,smmu-v3"],
        "kind": "arm,smmu-v3",
        "status": "okay",
        "base": "0x2000000",
        "size": "0x20000",
        "phandle": "0x2",
        "iommu_cells": 1,
        "dma_coherent": False,
        "interrupts": [
            {
                "name": "combined",
                "kind": "SPI",
                "number": 64,
                "flags": "0x1",
                "controller": "/gic@1000000",
                "reason": None,
            }
        ],
        "quirks": [],
        "masters": 1,
        "stream_id_first": "0x600",
        "stream_id_last": "0x600",
        "stream_id_bits": 11,
    }
    assert report["masters"] == [
        {
            "path": "/dev@5000000",
            "compatible": ["test,dev"],
            "status": "okay",
            "pci": False,
            "dma_coherent": False,
            "streams": [{"smmu": "/iommu@2000000", "stream_id": "0x600", "mask": "0x0"}],
            "iommu_map": [],
            "iommu_map_mask": None,
            "regs": [{"base": "0x5000000", "size": "0x1000"}],
            "interrupts": [
                {
                    "name": "done",
                    "kind": "SPI",
                    "number": 39,
                    "flags": "0x4",
                    "controller": "/gic@1000000",
                    "reason": None,
                }
            ],
            "interrupt_map": [],
            "page_neighbours": [],
            "page_closure": [],
            "needs": [
                {
                    "path": "/iommu@2000000",
                    "properties": ["iommus"],
                    "via": "/dev@5000000",
                    "depth": 1,
                    "users": 1,
                }
            ],
            "needed_by": [],
            "assignable": "yes",
            "reasons": [],
        }
    ]
    assert report["stream_ids"] == {
        "maps": [
            {
                "smmu": "/iommu@2000000",
                "entries": [
                    {
                        "first": "0x600",
                        "last": "0x600",
                        "mask": "0x0",
                        "master": "/dev@5000000",
                        "status": "okay",
                        "rid_first": None,
                        "rid_last": None,
                        "on_smmus": 1,
                        "in_use_on": 1,
                        "on_smmu_v3": 0,
                        "in_use_on_smmu_v3": 0,
                        "shared_with": [],
                    }
                ],
                "unused": [{"first": "0x0", "last": "0x5ff"}],
            }
        ],
        "on_several_smmus": [],
        "shared": [],
    }
    done = {"path": "/dev@5000000", "name": "done", "flags": "0x4", "via": "interrupts"}
    assert report["interrupts"]["spis"][0] == {"number": 39, "owners": [done]}
    assert [line["number"] for line in report["interrupts"]["spis"]] == [39, 64, 80]
    assert report["mmio"]["regions"][2] == {
        "base": "0x5000000",
        "size": "0x1000",
        "path": "/dev@5000000",
        "shares": [],
    }
    assert report["findings"] == []


def test_json_is_one_ascii_line_and_the_same_each_time() -> None:
    tree = board()
    tree.root.props["model"] = b"caf\xe9 \x1b[31m\n\0"
    device(tree, 0x500_0000, SMMU, 1)
    lines = {to_line(inspect_report(platform_of(tree))) for _ in range(3)}
    (line,) = lines
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["model"] == "caf\u00e9 \x1b[31m\n"


def test_boards_as_json(corpus: Path) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        found = Platform.from_tree(read(path.read_bytes(), path.name), path.name)
        report = json.loads(to_line(inspect_report(found)))
        assert report["file"] == path.name
        assert len(report["masters"]) == len(found.masters)
        assert len(report["smmus"]) + len(report["other_iommus"]) == len(found.smmus)


def load(corpus: Path, name: str) -> dict:
    data = (corpus / "dtbs" / name).read_bytes()
    return inspect_report(Platform.from_tree(read(data, name), name))


def test_hip07_needs_vmaster_ids(corpus: Path) -> None:
    report = load(corpus, "hip07-d05.dtb")
    enabled = [s for s in report["smmus"] if s["status"] == "okay"]
    assert [(s["kind"], s["stream_id_first"], s["stream_id_last"]) for s in enabled] == [
        ("arm,smmu-v3", "0x600", "0x600")
    ] * 4
    paths = sorted(s["path"] for s in enabled)
    ids = report["stream_ids"]
    assert ids["on_several_smmus"] == [
        {"first": "0x600", "last": "0x600", "smmus": paths, "in_use": paths, "smmu_v3": paths}
    ]
    assert ids["shared"] == []
    entries = [one["entries"] for one in ids["maps"]]
    assert [(e["first"], e["on_smmus"], e["in_use_on"]) for (e,) in entries] == [
        ("0x600", 4, 4)
    ] * 4
    assert [m["assignable"] for m in report["masters"]] == ["yes"] * 4
    assert "StreamID 0x600: on 4 SMMUs, needs vMasterIDs" in [f["text"] for f in report["findings"]]


def test_morello_and_tegra264(corpus: Path) -> None:
    morello = load(corpus, "morello-sdp.dtb")
    groups = morello["stream_ids"]["on_several_smmus"]
    assert [(g["first"], g["last"], len(g["smmus"])) for g in groups] == [
        ("0x0", "0x3", 3),
        ("0x4", "0x7", 2),
        ("0x8", "0x8", 3),
        ("0x9", "0xffff", 2),
    ]
    tegra = load(corpus, "tegra264-p3971-0089+p3834-0008.dtb")
    paths = [s["path"] for s in tegra["smmus"]]
    assert len(paths) == 5
    assert {"/bus@8100000000/iommu@6000000", "/bus@8800000000/iommu@6000000"} <= set(paths)
    (group,) = tegra["stream_ids"]["on_several_smmus"]
    assert (group["first"], group["last"], group["smmus"]) == ("0x10000", "0x1ffff", paths[:2])
    assert group["in_use"] == [], "the PCI bridges behind both are disabled"
    text = "StreamIDs 0x10000..0x1ffff: on 2 SMMUs, in use on 0; would need vMasterIDs"
    assert text in [f["text"] for f in tegra["findings"]]


def test_imx95_lists_monitors_apart(corpus: Path) -> None:
    report = load(corpus, "imx95-19x19-evk.dtb")
    assert (len(report["smmus"]), len(report["pmcgs"])) == (1, 12)


# Terminal.


def text_of(tree: Tree, width: int | None = None) -> str:
    out = io.StringIO()
    print_report(platform_of(tree), out, width=width)
    return out.getvalue()


def test_the_terminal_report_of_a_small_board() -> None:
    tree = board()
    device(tree, 0x500_0000, SMMU, 0x600)
    pci = device(tree, 0x600_0000)
    pci.set_strings("device_type", "pci")
    pci.set_cells("iommu-map", 0, SMMU_B, 0x600, 8)
    pci.set_cells("iommu-map-mask", 0xFF)
    assert text_of(tree, 80) == (
        "board.dtb: Test board\n"
        "GICv3 /gic@1000000\n"
        "\n"
        "SMMUs: 2, enabled: 2\n"
        "STATUS  KIND     BASE       SIZE     IRQS   STREAMIDS     PATH\n"
        "okay    smmu-v3  0x2000000  0x20000  1 SPI  0x600         /iommu@2000000\n"
        "okay    smmu-v3  0x3000000  0x20000  1 SPI  0x600..0x607  /iommu@3000000\n"
        "\n"
        "StreamIDs of /iommu@2000000\n"
        "0x600 /dev@5000000\n"
        "      in use on 2 SMMUs: needs vMasterIDs\n"
        "unused 0x0..0x5ff\n"
        "\n"
        "StreamIDs of /iommu@3000000\n"
        "0x600..0x607 /dev@6000000\n"
        "             from requester ids 0x0..0x7\n"
        "             in use on 2 SMMUs: needs vMasterIDs\n"
        "unused       0x0..0x5ff\n"
        "\n"
        "StreamIDs on several SMMUs (a guest with both needs vMasterIDs)\n"
        "0x600\n"
        "  /iommu@2000000\n"
        "  /iommu@3000000\n"
        "\n"
        "Masters: 2 (assignable: 1 yes, 0 together, 1 no)\n"
        "  blocks   DT107   1 x a bridge or bus: its functions are the masters\n"
        "yes      /dev@5000000\n"
        "         0x600 at /iommu@2000000\n"
        "no       /dev@6000000\n"
        "         iommu-map of 1 row, requester ids masked with 0xff\n"
        "           0x0..0x7 -> 0x600..0x607 at /iommu@3000000\n"
        "         DT107 is a bridge or bus: the masters are the functions on it\n"
        "\n"
        "Interrupts: 2 SPIs in use, 0 of several nodes; 0 PPIs\n"
        "SPI        64 /iommu@2000000 (combined)\n"
        "SPI        80 /iommu@3000000 (combined)\n"
        "\n"
        "Register ranges: 4; runs of pages that devices share: 0\n"
        "0x2000000..0x201ffff /iommu@2000000\n"
        "0x3000000..0x301ffff /iommu@3000000\n"
        "0x5000000..0x5000fff /dev@5000000\n"
        "0x6000000..0x6000fff /dev@6000000\n"
        "\n"
        "Findings: 1\n"
        "note    DT502 /iommu@2000000: StreamID 0x600: on 2 SMMUs, needs vMasterIDs\n"
    )


def test_an_empty_tree_has_a_report() -> None:
    assert text_of(Tree()) == (
        "board.dtb: no model\nno GIC found\n\nSMMUs: 0, enabled: 0\n\n"
        "Masters: 0 (assignable: 0 yes, 0 together, 0 no)\n\nFindings: 0\n"
    )


@pytest.mark.parametrize("width", [80, 160])
def test_boards_fit_the_width(corpus: Path, width: int) -> None:
    for path in sorted((corpus / "dtbs").glob("*.dtb")):
        found = Platform.from_tree(read(path.read_bytes(), path.name), path.name)
        out = io.StringIO()
        print_report(found, out, width=width)
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width, path.name
        assert all(line == line.rstrip() for line in lines), path.name


def test_a_pipe_gets_whole_paths_and_no_colour(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    path = corpus / "dtbs" / "hamoa-iot-evk-el2.dtb"
    found = Platform.from_tree(read(path.read_bytes(), path.name), path.name)
    out = io.StringIO()
    print_report(found, out)
    text = out.getvalue()
    assert "\x1b" not in text
    assert all(master.path in text for master in found.masters)
    monkeypatch.setenv("COLUMNS", "72")
    print_report(found, narrow := io.StringIO())
    unfolded = "".join(narrow.getvalue().split())
    assert all(smmu.path in unfolded for smmu in found.smmus)
    assert max(map(len, narrow.getvalue().splitlines())) <= 72


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_on_a_terminal_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    tree = board()
    device(tree, 0x500_0000, SMMU, 1)
    print_report(platform_of(tree), coloured := Terminal(), width=80)
    assert "\x1b[" in coloured.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    print_report(platform_of(tree), plain := Terminal(), width=80)
    assert "\x1b[3" not in plain.getvalue()


def test_text_of_the_tree_cannot_drive_the_terminal() -> None:
    tree = board()
    tree.root.props["model"] = b"[red]x[/red] \x1b]0;title\x07\xe9\n\0"
    tree.root.children["iommu@2000000"].props["status"] = b"\x1b[2J:smile:\0"
    text = text_of(tree, 80)
    assert text.startswith("board.dtb: [red]x[/red] \\x1b]0;title\\x07\\xe9\\n\n")
    assert "\x1b" not in text
    assert "\\x1b[2J:smile:" in text
    assert clean("a\u20ac\x00b") == "a\\u20ac\\x00b"


def test_long_lists_are_cut_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "MAX_SHOWN", 2)
    tree = board()
    for i in range(5):
        device(tree, 0x500_0000 + 0x1000 * i, SMMU, i)
    text = text_of(tree, 80)
    assert "the first 2 of 5; the JSON report has all\nyes      /dev@5000000\n" in text
    assert "/dev@5003000" not in text
    print_inspected(inspect_report(platform_of(tree)), again := io.StringIO(), width=80)
    assert again.getvalue() == text
