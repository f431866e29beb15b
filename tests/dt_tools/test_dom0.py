# SPDX-License-Identifier: BSD-2-Clause
"""dom0's tree: one vSMMU in the place of each enabled SMMUv3, all else as the host has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dt_tools import blob
from dt_tools.dom0 import build_dom0
from dt_tools.errors import Refusal
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree

if TYPE_CHECKING:
    from pathlib import Path


def smmu(root: Node, base: int, phandle: int) -> Node:
    node = root.add(f"iommu@{base:x}")
    node.set_strings("compatible", "nvidia,tegra264-smmu", "arm,smmu-v3")
    node.set_cells("reg", 0, base, 0, 0x20000)
    node.set_cells("interrupts", 0, 74, 1, 0, 75, 1)
    node.set_strings("interrupt-names", "eventq", "gerror")
    node.set_cells("#iommu-cells", 1)
    node.set_empty("dma-coherent")
    node.set_cells("phandle", phandle)
    return node


def host(cells: int = 3) -> Tree:
    """A GIC (phandle 1), two SMMUv3 (2, 3), a message-interrupt controller (4), a master."""
    tree = Tree()
    tree.memreserve.append((0x80000000, 0x1000))
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", 1)
    gic = root.add("interrupt-controller@8000000")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", cells)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", 1)
    smmu(root, 0x5000000, 2)
    smmu(root, 0x6000000, 3)
    pins = root.add("intc")
    pins.set_cells("#interrupt-cells", 2)
    pins.set_empty("interrupt-controller")
    pins.set_cells("phandle", 4)
    uart = root.add("uart@9000000")
    uart.set_cells("interrupts", 0, 0, 4, *([0] * (cells - 3)))
    dma = root.add("dma@9010000")
    dma.set_cells("iommus", 2, 0x600)
    pcie = root.add("pcie@10000000")
    pcie.set_cells("iommu-map", 0, 3, 0, 0x10000)
    return tree


def content(tree: Tree) -> list[tuple[str, list[tuple[str, bytes]]]]:
    return [(node.path, list(node.props.items())) for node in tree.walk()]


def test_gic_interrupts_stay_and_all_else_is_the_hosts() -> None:
    tree = host()
    before = content(tree)
    made = build_dom0(Platform.from_tree(tree, "host.dtb"))
    assert content(tree) == before
    node = made.node("/iommu@5000000")
    assert list(node.props) == [
        "compatible", "reg", "interrupts", "interrupt-names", "#iommu-cells", "dma-coherent",
        "phandle",
    ]  # fmt: skip
    assert node.strings("compatible") == ("arm,smmu-v3",)
    assert node.cells("interrupts") == (0, 74, 1, 0, 75, 1)
    rest = [item for item in content(made) if not item[0].startswith("/iommu@")]
    assert rest == [item for item in before if not item[0].startswith("/iommu@")]
    assert [path for path, _ in content(made)] == [path for path, _ in before]
    assert made.memreserve == [(0x80000000, 0x1000)]
    assert made.memreserve is not tree.memreserve
    assert made.notices == ()


@pytest.mark.parametrize("cells", [3, 4])
def test_interrupts_of_another_controller_become_one_free_spi(cells: int) -> None:
    tree = host(cells)
    for index, base in enumerate((0x5000000, 0x6000000)):
        node = tree.root.children[f"iommu@{base:x}"]
        node.set_cells("interrupt-parent", 4)
        node.set_cells("interrupts", 733 + index, 1)
        node.set_strings("interrupt-names", "eventq")
        node.set_cells("msi-parent", 4)
    made = build_dom0(Platform.from_tree(tree, "host.dtb"))
    first, second = made.node("/iommu@5000000"), made.node("/iommu@6000000")
    # SPI 32 is the UART's.
    assert first.cells("interrupts") == (0, 1, 4, 0)[:cells]
    assert second.cells("interrupts") == (0, 2, 4, 0)[:cells]
    assert first.cells("interrupt-parent") == (1,)
    assert first.strings("interrupt-names") == ("combined",)
    assert [str(n) for n in made.notices[:2]] == [
        "DT302 /iommu@5000000: its interrupts (1 not of the GIC) replaced by SPI 33 (GIC id), "
        "named combined",
        "DT214 /iommu@5000000: dropped: msi-parent",
    ]


def test_smmus_that_are_not_enabled_or_not_v3_stay() -> None:
    tree = host()
    tree.root.children["iommu@5000000"].set_strings("status", "disabled")
    tree.root.children["iommu@6000000"].set_strings("compatible", "arm,mmu-500")
    before = content(tree)
    assert content(build_dom0(Platform.from_tree(tree, "host.dtb"))) == before


def test_quirks_are_dropped_with_a_notice() -> None:
    tree = host()
    node = tree.root.children["iommu@5000000"]
    node.set_empty("hisilicon,broken-prefetch-cmd")
    node.set_cells("nvidia,cmdqv", 9)
    made = build_dom0(Platform.from_tree(tree, "host.dtb"))
    assert [str(n) for n in made.notices] == [
        "DT214 /iommu@5000000: dropped: hisilicon,broken-prefetch-cmd, nvidia,cmdqv"
    ]


def test_no_gic_to_take_an_spi_from_is_refused() -> None:
    tree = host()
    tree.root.remove("interrupt-controller@8000000")
    with pytest.raises(Refusal) as error:
        build_dom0(Platform.from_tree(tree, "host.dtb"))
    assert str(error.value) == (
        "DT306: /iommu@5000000: its interrupts are not the GIC's and no SPI of the GIC can be "
        "given instead; give the host tree a GIC with a phandle"
    )


def test_every_board_keeps_its_masters_and_its_smmus_places(corpus: Path) -> None:
    replaced = {}
    for place in sorted((corpus / "dtbs").glob("*.dtb")):
        platform = Platform.from_tree(blob.read(place.read_bytes(), place.name), place.name)
        made = build_dom0(platform)
        again = Platform.from_tree(made, "dom0")
        on = [s for s in platform.smmus if s.kind == "arm,smmu-v3" and s.status == "okay"]
        if on:
            replaced[place.stem] = len(on)
        assert [(m.path, m.streams, m.maps, m.map_mask) for m in again.masters] == [
            (m.path, m.streams, m.maps, m.map_mask) for m in platform.masters
        ]
        keys = [(s.path, s.base, s.size, s.phandle, s.iommu_cells) for s in platform.smmus]
        assert [(s.path, s.base, s.size, s.phandle, s.iommu_cells) for s in again.smmus] == keys
        for vsmmu in again.smmus:
            if vsmmu.path in {s.path for s in on}:
                assert vsmmu.compatible == ("arm,smmu-v3",)
                assert all(i.kind == "SPI" for i in vsmmu.interrupts)
                assert vsmmu.interrupts
        others = {s.path for s in on}
        assert [i for i in content(made) if not i[0].startswith(tuple(others))] == [
            i for i in content(platform.tree) if not i[0].startswith(tuple(others))
        ]
        assert content(blob.read(blob.write(made))) == content(made)
    assert replaced == {
        "fvp-base-revc": 1,
        "hamoa-iot-evk-el2": 1,
        "hip07-d05": 4,
        "morello-fvp": 1,
        "morello-sdp": 3,
        "rk3588-rock-5b": 1,
        "socfpga_agilex5_socdk": 1,
        "tegra264-p3971-0089+p3834-0008": 2,
        "versal-net-vn-x-b2197-01-revA": 1,
    }
