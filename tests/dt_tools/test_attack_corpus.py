# SPDX-License-Identifier: BSD-2-Clause
"""Items of the attack corpus that aim at the toolstack; docs/attacks.md lists them all."""

from __future__ import annotations

import json

import pytest

from dt_tools.errors import Refusal
from dt_tools.guest import GuestTree, build_guest
from dt_tools.hypercalls import hypercalls
from dt_tools.platform import Platform
from dt_tools.tree import Tree
from xl_configs import load

BASE = 'name = "g"\nkernel = "k"\nmemory = 64\nviommu = "smmuv3"\n'
DMA = "/dma@20000000"
INSIDE = "/passthrough/dma@20000000"


def board(*streams: int, cells: int = 1) -> Tree:
    """A GIC, one SMMUv3 with `#iommu-cells`, and a device with these StreamIDs."""
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
    smmu = root.add("iommu@5000000")
    smmu.set_strings("compatible", "arm,smmu-v3")
    smmu.set_cells("reg", 0, 0x5000000, 0, 0x20000)
    smmu.set_cells("#iommu-cells", cells)
    smmu.set_cells("phandle", 2)
    node = root.add(DMA[1:])
    node.set_cells("reg", 0, 0x20000000, 0, 0x1000)
    node.set_cells("iommus", *(c for sid in streams for c in (2, sid, *[0] * (cells - 1))))
    node.set_empty("xen,passthrough")
    return tree


def configuration(text: str) -> tuple[object, ...]:
    return load((BASE + text + "\n").encode(), "g.cfg")


def build(tree: Tree, text: str = "", **options: object) -> GuestTree:
    config = configuration(f'dtdev = [ "{DMA}" ]\n{text}')
    return build_guest(config, platform=Platform.from_tree(tree, "host.dtb"), **options)


def test_two_domains_with_the_same_path_in_one_process() -> None:
    """The series keeps ids by node path for the life of the process."""
    first = build(board(0x600), 'iommu_devid_map = [ "0x600@0x40,0x5000000" ]')
    second = build(board(0x601, 0x602))
    third = build(board(0x600), 'iommu_devid_map = [ "0x600@0x40,0x5000000" ]')
    ids = [built.tree.node(INSIDE).cells("iommus")[1::2] for built in (first, second, third)]
    assert ids == [(0x40,), (0, 1), (0x40,)]
    assert [e.pmaster_id for e in second.bindings.entries] == [0x601, 0x602]


@pytest.mark.parametrize("streams", [(), (5,), (5, 6), (9, 7, 5, 6)])
def test_no_range_of_no_ids_is_asked_for(streams: tuple[int, ...]) -> None:
    """With `nr_sids` 0 the series returns an id that it never gave."""
    if not streams:
        with pytest.raises(Refusal) as error:
            build(board())
        assert error.value.path == DMA
        return
    text = f'dtdev = [ "{DMA}" ]'
    made = hypercalls(configuration(text), build(board(*streams)))
    ranges = [call for call in made["calls"] if "nr_sids" in call]
    assert all(call["nr_sids"] >= 1 for call in ranges)
    assert sum(call["nr_sids"] for call in ranges) == len(streams)
    assert json.dumps(made)


def test_the_iommus_of_a_grandchild_are_rewritten() -> None:
    """The series rewrites the children of /passthrough alone."""
    partial = Tree()
    bus = partial.root.add("passthrough")
    bus.set_strings("compatible", "simple-bus")
    bus.set_empty("ranges")
    bus.set_cells("#address-cells", 2)
    bus.set_cells("#size-cells", 2)
    node = bus.add("wrapper").add("inner").add("engine")
    node.set_strings("xen,path", DMA)
    node.set_cells("iommus", 0x8000, 0x600)
    made = build(board(0x600), 'device_tree = "p.dtb"', partial=partial)
    assert made.tree.node("/passthrough/wrapper/inner/engine").cells("iommus") == (65002, 0)


def test_two_iommu_cells_are_no_pairs() -> None:
    """The series takes `iommus` as pairs of cells, whatever #iommu-cells says."""
    built = build(board(0x600, 0x601, cells=2))
    assert built.tree.node(INSIDE).cells("iommus") == (65002, 0, 65002, 1)
    assert [e.pmaster_id for e in built.bindings.entries] == [0x600, 0x601]
    tree = board(0x600, cells=2)
    tree.node(DMA).set_cells("iommus", 2, 0x600, 2, 0x601)
    with pytest.raises(Refusal) as error:
        build(tree)
    assert "iommus" in str(error.value)


def test_the_vsmmus_phandle_in_a_partial_tree() -> None:
    """The series gives two nodes one phandle."""
    partial = Tree()
    partial.root.add("passthrough").add("d").set_cells("phandle", 65002)
    with pytest.raises(Refusal) as error:
        build(board(0x600), 'device_tree = "p.dtb"', partial=partial)
    assert error.value.rule == "DT402"
