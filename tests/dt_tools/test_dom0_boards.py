# SPDX-License-Identifier: BSD-2-Clause
"""dom0's tree of every board, with and without vSMMUs: streams, references, dtc."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt_tools import blob
from dt_tools.dom0 import VERSIONS, build_dom0, build_xen_dom0
from dt_tools.errors import Refusal
from dt_tools.platform import Platform
from dt_tools.references import references
from tests.dt_tools.test_dom0_given import board, device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dt_tools.tree import Tree


def boards(corpus: Path, samples: Path) -> Iterator[Platform]:
    for place in [*sorted((corpus / "dtbs").glob("*.dtb")), *sorted(samples.glob("*.dtb"))]:
        yield Platform.from_tree(blob.read(place.read_bytes(), place.name), place.name)


def dangling(tree: Tree) -> set[tuple[str, str, int]]:
    """References to phandles that no node has, as (path, property, entry)."""
    phandles = tree.phandles()
    found = set()
    for node in tree.walk():
        refs = [(r.name, r.index, r.phandle) for r in references(node, phandles)]
        for name in ("iommu-map", "msi-map"):
            refs += [(name, at, cell) for at, cell in enumerate((node.cells(name) or ())[1::4])]
        found |= {(node.path, name, at) for name, at, cell in refs if cell not in phandles}
    return found


def streams(platform: Platform) -> list[object]:
    return [(m.path, m.streams, m.maps, m.map_mask) for m in platform.masters]


def test_every_board(corpus: Path, samples: Path) -> None:
    count = 0
    for host in boards(corpus, samples):
        before = dangling(host.tree)
        own, bare = build_dom0(host), build_dom0(host, viommu=False)
        assert not dangling(own) - before, host.source
        assert not dangling(bare) - before, host.source
        # Each (SMMU, StreamID) is read back; SMMUs are where they were.
        again = Platform.from_tree(own, "dom0")
        assert streams(again) == streams(host)
        keys = [(s.path, s.base, s.size, s.phandle) for s in host.smmus]
        assert [(s.path, s.base, s.size, s.phandle) for s in again.smmus] == keys
        without = Platform.from_tree(bare, "dom0")
        assert [s.path for s in without.smmus] == [s.path for s in host.smmus if s.kind == "other"]
        gone = {s.path for s in host.smmus} - {s.path for s in without.smmus}
        for master in without.masters:
            assert not {s.smmu_path for s in master.streams} & gone
        for name in ("msi-map", "msi-parent"):
            kept = [n.props[name] for n in bare.walk() if name in n.props]
            assert kept == [
                n.props[name] for n in host.tree.walk()
                if name in n.props and not any(n.path.startswith(g) for g in gone)
            ]  # fmt: skip
        count += 1
    assert count >= 18


IDS = st.integers(0, 0xFFFF)
ENTRIES = st.lists(st.tuples(st.integers(0, 3), IDS), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 2), min_size=4, max_size=4), st.lists(ENTRIES, max_size=6))
def test_any_tree_keeps_its_streams(cells: list[int], masters: list[list[tuple[int, int]]]) -> None:
    tree = board()
    for index, count in enumerate(cells):
        smmu = device(tree.root, "iommu", 0x20000000 + index * 0x100000, 0x20000)
        smmu.set_strings("compatible", "arm,smmu-v3")
        smmu.set_cells("#iommu-cells", count)
        smmu.set_cells("phandle", 0x100 + index)
    for index, entries in enumerate(masters):
        node = device(tree.root, "master", 0x30000000 + index * 0x1000, 0x1000)
        words = [(0x100 + at, sid, *[0] * (cells[at] - 1)) for at, sid in entries]
        node.set_cells("iommus", *(word for entry in words for word in entry))
    host = Platform.from_tree(tree)
    assert len([m for m in host.masters if "/master@" in m.path]) == len(masters)
    made = build_dom0(host)
    again = Platform.from_tree(blob.read(blob.write(made)))
    assert streams(again) == streams(host)
    assert Platform.from_tree(build_dom0(host, viommu=False)).masters == ()


def said(data: bytes) -> set[str]:
    command = ["dtc", "-I", "dtb", "-O", "dtb", "-o", "/dev/null", "-"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return {re.sub(r"^<stdin>: ", "", line) for line in done.stderr.decode().splitlines()}


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
def test_dtc_says_nothing_new(corpus: Path, samples: Path) -> None:
    for host in boards(corpus, samples):
        before = said(blob.write(host.tree))
        for viommu in (True, False):
            made = blob.write(build_dom0(host, viommu=viommu))
            assert not said(made) - before, (host.source, viommu)


def test_xens_trees_are_sound_or_refused_by_rule(corpus: Path, samples: Path) -> None:
    refused: dict[str, set[str]] = {}
    for host in boards(corpus, samples):
        for version in VERSIONS.values():
            try:
                made = build_xen_dom0(host, version)
            except Refusal as error:
                refused.setdefault(error.rule, set()).add(host.source)
                continue
            assert blob.write(made) == blob.write(build_xen_dom0(host, version))
            assert made.memreserve == []
    # No memory node, or MSI frames that do not say their SPIs; made-up boards without a timer.
    assert set(refused) == {"DT612", "DT613"}
    assert refused["DT613"] <= {"mistakes.dtb", "mistakes-partial.dtb", "pci-board.dtb"}


def test_masters_behind_two_kinds_of_iommu_are_refused(samples: Path) -> None:
    host = blob.read((samples / "board.dtb").read_bytes())
    other = host.root.add("other-iommu")
    other.set_strings("compatible", "acme,iommu")
    other.set_cells("#iommu-cells", 1)
    other.set_cells("phandle", 0x7777)
    platform = Platform.from_tree(host)
    master = next(m for m in platform.masters if m.streams)
    cells = master.node.cells("iommus")
    assert cells is not None
    master.node.set_cells("iommus", *cells, 0x7777, 1)
    with pytest.raises(Refusal) as error:
        build_dom0(Platform.from_tree(host), viommu=False)
    assert str(error.value) == (
        f"DT613: {master.path}: is behind an SMMU that Xen drives and behind /other-iommu, which "
        "dom0 keeps; take one of them out of iommus in the host tree"
    )


def test_interrupts_can_be_refused(corpus: Path) -> None:
    place = corpus / "dtbs" / "hip07-d05.dtb"
    host = Platform.from_tree(blob.read(place.read_bytes()), place.name)
    with pytest.raises(Refusal) as error:
        build_dom0(host, interrupts="refuse")
    assert error.value.rule == "DT302"
    assert "its interrupts are not the GIC's" in error.value.reason


def test_names_of_what_is_gone_go_too(samples: Path) -> None:
    host = blob.read((samples / "board.dtb").read_bytes())
    platform = Platform.from_tree(host)
    aliases = host.root.children.get("aliases") or host.root.add("aliases")
    aliases.set_strings("smmu9", platform.smmus[0].path)
    made = build_dom0(platform, viommu=False)
    assert "smmu9" not in made.root.children["aliases"].props
    assert "smmu9" in aliases.props
    assert any(n.rule == "DT214" and "smmu9" in n.message for n in made.notices)
