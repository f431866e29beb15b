# SPDX-License-Identifier: BSD-2-Clause
"""Costs of device trees as ratios to the fdt package's, measured in one run (`make bench`).

The board is one made here, about as large as the median of those in Linux. With VSMMU_BOARDS set,
the last test takes every board of that folder once and prints CPU seconds for each step.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from dt_tools import blob
from dt_tools.dts import to_dts
from dt_tools.platform import Platform
from dt_tools.report.jsonreport import inspect_report, to_line
from dt_tools.tree import Tree

fdt = blob._fdt()  # which keeps the package's own warning quiet


@pytest.fixture(scope="module")
def tree() -> Tree:
    """400 nodes and 2,400 properties, 20 masters behind 2 SMMUs: 60 KB."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", 1)
    gic = root.add("interrupt-controller@8000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("phandle", 1)
    soc = root.add("soc@0")
    soc.set_strings("compatible", "simple-bus")
    soc.set_cells("#address-cells", 1)
    soc.set_cells("#size-cells", 1)
    soc.set_cells("ranges", 0, 1, 0, 0x80000000)
    for i in range(400):
        node = soc.add(f"device@{i:x}000")
        node.set_strings("compatible", f"vendor,device-{i % 40}", "vendor,device")
        node.set_cells("reg", i << 12, 0x1000)
        node.set_cells("interrupts", 0, i, 4)
        node.set_strings("clock-names", "core", "bus")
        node.set_cells("clocks", 1, i, 1, i + 1)
        node.set_cells("phandle", i + 2)
        if i < 2:
            node.set_strings("compatible", "arm,smmu-v3")
            node.set_cells("#iommu-cells", 1)
        elif i % 20 == 0:
            node.set_cells("iommus", 2 + i % 2, i)
    return tree


@pytest.fixture(scope="module")
def data(tree: Tree) -> bytes:
    return blob.write(tree)


@pytest.mark.benchmark(group="a blob to a tree")
def test_floor_fdt_parses(benchmark, data):
    benchmark(lambda: fdt.parse_dtb(data))


@pytest.mark.benchmark(group="a blob to a tree")
def test_read(benchmark, data):
    benchmark(lambda: blob.read(data))


@pytest.mark.benchmark(group="a blob to a tree")
def test_read_with_fdt(benchmark, data):
    benchmark(lambda: blob.read_with_fdt(data))


@pytest.mark.benchmark(group="a tree to a blob")
def test_floor_fdt_writes(benchmark, data):
    parsed = fdt.parse_dtb(data)
    benchmark(parsed.to_dtb)


@pytest.mark.benchmark(group="a tree to a blob")
def test_write(benchmark, tree):
    """With the check before, and the reading back after."""
    benchmark(lambda: blob.write(tree))


@pytest.mark.benchmark(group="a tree to a blob")
def test_source(benchmark, tree):
    benchmark(lambda: to_dts(tree))


@pytest.mark.benchmark(group="a board from its blob")
def test_floor_read(benchmark, data):
    benchmark(lambda: blob.read(data))


@pytest.mark.benchmark(group="a board from its blob")
def test_platform(benchmark, data):
    benchmark(lambda: Platform.from_tree(blob.read(data)))


@pytest.mark.benchmark(group="a board from its blob")
def test_report(benchmark, data):
    benchmark(lambda: to_line(inspect_report(Platform.from_tree(blob.read(data)))))


def test_every_board_once(capsys):
    place = os.environ.get("VSMMU_BOARDS")
    if not place:
        pytest.skip("VSMMU_BOARDS names no folder of boards")
    boards = sorted(Path(place).glob("*.dtb"))
    spent: Counter[str] = Counter()

    def timed(what, action):
        start = time.process_time()
        result = action()
        spent[what] += time.process_time() - start
        return result

    for board in boards:
        data = board.read_bytes()
        tree = timed("read", lambda data=data: blob.read(data))
        timed("fdt parses", lambda data=data: fdt.parse_dtb(data))
        timed("write", lambda tree=tree: blob.write(tree))
        platform = timed("platform", lambda tree=tree: Platform.from_tree(tree))
        timed("report", lambda platform=platform: to_line(inspect_report(platform)))
    with capsys.disabled():
        parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in spent.items())
        print(f"\n{len(boards)} boards: {parts}")
