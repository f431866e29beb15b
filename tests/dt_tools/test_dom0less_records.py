# SPDX-License-Identifier: BSD-2-Clause
"""The model of Xen's dom0less builder against trees and refusals of real Xen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dt_tools import blob
from dt_tools.dom0less import XENS, check_fragment, xen_guest
from dt_tools.dom0less.rules import Setting
from dt_tools.errors import DtbError, DtError, Refusal
from dt_tools.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dt_tools.tree import Node, Tree

# Where the model and real Xen part: record -> (our rule, why). docs/dom0less.md has the same rows.
DIFFERENCES = {
    "dom0less-d3/e09-nocells": (
        "DT206",
        "Xen reads xen,reg in the default 2 + 1 cells and the guest does not come up",
    ),
}
# What Xen prints where it refuses, and our rules for it; none where the blob is no device tree.
SAYS: tuple[tuple[str, set[str]], ...] = (
    ("xen,reg or xen,path missing", {"DT203"}),
    ("not page aligned", {"DT204", "DT206"}),
    ("Couldn't find node", {"DT102"}),
    ('cannot read "memory" property', {"DT624"}),
    ("Unknown vIOMMU", {"DT624"}),
    ("Invalid address_cells", {"DT206"}),
    ("Xenstore support requires dom0", {"DT625"}),
    ("Failed to assign device", {"DT101", "DT107", "DT108", "DT206", "DT621"}),
    ("Device tree generation failed", set()),
)


@pytest.fixture(scope="module")
def records(corpus: Path) -> list[dict[str, Any]]:
    manifest = corpus / "libxl" / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip(f"no records of real Xen at {manifest}")
    lines = manifest.read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["set"].startswith("dom0less")]


def place(corpus: Path, record: dict[str, Any]) -> Path:
    return corpus / "libxl" / record["dir"]


def host(corpus: Path, record: dict[str, Any]) -> Platform:
    file = place(corpus, record) / "host.dtb"
    return Platform.from_tree(blob.read(file.read_bytes(), file.name), file.name)


def partial(corpus: Path, record: dict[str, Any]) -> Tree | None:
    file = place(corpus, record) / "partial.dtb"
    return blob.read(file.read_bytes(), file.name) if file.is_file() else None


def model(corpus: Path, record: dict[str, Any]) -> Tree:
    xen = XENS["xen-xlnx4.17" if record["set"] == "dom0less-dx" else "xen-4.20"]
    board = host(corpus, record)
    node = board.tree.node("/chosen/domU1")
    assert node is not None
    return xen_guest(board, node, partial(corpus, record), xen=xen)


def differences(ours: Node, theirs: Node) -> Iterator[str]:
    """Nodes, their order, properties, their order, and bytes."""
    if list(ours.props) != list(theirs.props):
        yield f"{ours.path}: properties {list(ours.props)} for {list(theirs.props)}"
    for name, raw in ours.props.items():
        if name in theirs.props and theirs.props[name] != raw:
            yield f"{ours.path}/{name}: {raw!r} for {theirs.props[name]!r}"
    if list(ours.children) != list(theirs.children):
        yield f"{ours.path}: children {list(ours.children)} for {list(theirs.children)}"
    for name, child in ours.children.items():
        if name in theirs.children:
            yield from differences(child, theirs.children[name])


def test_the_guest_trees_are_those_of_xen(records, corpus):
    built = [r for r in records if r["guest"] and r["dir"] not in DIFFERENCES]
    assert built
    for record in built:
        file = corpus / "libxl" / record["guest"]
        theirs = blob.read(file.read_bytes(), file.name)
        assert list(differences(model(corpus, record).root, theirs.root)) == [], record["dir"]


def stops(record: dict[str, Any]) -> bool:
    said = "\n".join(record["xen_says"])
    return "Could not set up domain" in said or "Panic" in said


def test_what_xen_refuses_is_refused_by_rule(records, corpus):
    refused = [r for r in records if not r["guest"] and stops(r)]
    assert refused
    for record in refused:
        said = "\n".join(record["xen_says"])
        rules = next(rules for text, rules in SAYS if text in said)
        with pytest.raises(DtError) as error:
            model(corpus, record)
        if not rules:
            assert isinstance(error.value, DtbError), record["dir"]
        else:
            assert isinstance(error.value, Refusal), record["dir"]
            assert error.value.rule in rules, record["dir"]
            assert error.value.path.startswith("/"), record["dir"]
            assert error.value.fix, record["dir"]


def test_a_guest_that_does_not_come_up_is_refused(records, corpus):
    for record in (r for r in records if not r["guest"] and not stops(r)):
        with pytest.raises(Refusal):
            model(corpus, record)


def test_the_differences_are_still_there(records, corpus):
    """A record that has come to agree has to leave the table."""
    for record in (r for r in records if r["dir"] in DIFFERENCES):
        rule, why = DIFFERENCES[record["dir"]]
        assert "Panic" not in "\n".join(record["xen_says"]), f"{record['dir']}: {why}"
        with pytest.raises(Refusal) as error:
            model(corpus, record)
        assert error.value.rule == rule


def test_the_document_has_the_table_of_differences(samples):
    text = (samples.parent / "docs" / "dom0less.md").read_text()
    for name, (rule, _) in DIFFERENCES.items():
        row = next(line for line in text.splitlines() if f"`{name}`" in line)
        assert rule in row


def test_a_dangling_iommus_is_said(records, corpus):
    """Linux says `could not find phandle` for these, and goes on."""
    found = {
        record["dir"]: {f.rule for f in check_fragment(host(corpus, record), tree)}
        for record in records
        if record["name"] == "s01-smmu-rtc" and (tree := partial(corpus, record))
    }
    assert found
    assert all("DT401" in rules for rules in found.values())


def test_the_blocks_are_equal_too(records, corpus):
    """The blob that is written holds the tree that Xen wrote, whatever its padding is."""
    for record in records:
        if record["guest"] and record["dir"] not in DIFFERENCES:
            ours = blob.read(blob.write(model(corpus, record)))
            file = corpus / "libxl" / record["guest"]
            assert blob.same_content(ours, blob.read(file.read_bytes())), record["dir"]


def test_the_series_numbers_the_ids(records, corpus):
    """The default is not the 2022 series: ids from 0, one for each (SMMU, pMasterID)."""
    record = next((r for r in records if r["dir"] == "dom0less-dx/s02-viommu-rtc"), None)
    if record is None:
        pytest.skip("no record of a guest with a vSMMU")
    board, tree = host(corpus, record), partial(corpus, record)
    node = board.tree.node("/chosen/domU1")
    built = xen_guest(board, node, tree)
    assert built.node("/passthrough/pl031@9010000").cells("iommus") == (65002, 0)
    found = check_fragment(board, tree, Setting(viommu=True))
    assert [(f.rule, f.path) for f in found if f.rule == "DT501"] == [("DT501", "/passthrough/n/q")]
