# SPDX-License-Identifier: BSD-2-Clause
"""Xen's own trees for dom0: recorded ones, node by node, and the made nodes field by field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dt_tools import blob
from dt_tools.dom0 import VERSIONS, Dom0Tree, XenOptions, build_dom0, build_xen_dom0
from dt_tools.dom0.layout import place_initrd, place_memory
from dt_tools.errors import Refusal, UserError
from dt_tools.platform import Platform
from dt_tools.profiles import Window
from dt_tools.tree import Node, Tree
from tests.dt_tools.test_dom0_given import board

PROFILES = {
    "xen-422": "xen-4.22",
    "xen-4.20-arm64": "xen-4.20",
    "xen-xlnx-iidr": "xen-xlnx4.17",
}
PROFILES_OF = {"422smmu3": "xen-4.22", "deb3-smmu": "xen-4.20", "xlnx": "xen-xlnx4.17"}
# What a recording has otherwise than the tree that Xen made, and why. The recordings are what
# Linux showed in dom0, and Linux takes the seeds out of its tree when it has read them.
WIPED = "Linux wipes it before it can be read"
DIFFERENCES = {
    ("422smmu3", "/chosen", "rng-seed"): WIPED,
    ("422smmu3", "/chosen", "kaslr-seed"): WIPED,
    ("deb3-smmu", "/chosen", "rng-seed"): WIPED,
    ("deb3-smmu", "/chosen", "kaslr-seed"): WIPED,
    ("xlnx", "/chosen", "rng-seed"): WIPED,
    ("xlnx", "/chosen", "kaslr-seed"): WIPED,
}


def load(place: Path) -> Platform:
    return Platform.from_tree(blob.read(place.read_bytes(), place.name), place.name)


def records(corpus: Path) -> list[dict[str, str]]:
    lines = (corpus / "libxl" / "manifest.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if record["set"] == "dom0"]
    return [record for record in found if record.get("dom0")]


def differences(ours: Tree, theirs: Tree) -> set[tuple[str, str]]:
    """(path, property) of each difference; (path, "") for a node, "order" for an order."""
    found = set()
    one = {node.path: node for node in ours.walk()}
    two = {node.path: node for node in theirs.walk()}
    found |= {(path, "") for path in one.keys() ^ two.keys()}
    for path in one.keys() & two.keys():
        a, b = one[path], two[path]
        names = a.props.keys() | b.props.keys()
        found |= {(path, name) for name in names if a.props.get(name) != b.props.get(name)}
        for left, right in ((a.props, b.props), (a.children, b.children)):
            if [n for n in left if n in right] != [n for n in right if n in left]:
                found.add((path, "order"))
    return found


def test_recorded_pairs(corpus: Path) -> None:
    found = set()
    seen = []
    for record in records(corpus):
        host = load(corpus / "libxl" / record["host"])
        made = build_xen_dom0(host, VERSIONS[PROFILES[record["xen_cmd"]]])
        theirs = load(corpus / "libxl" / record["dom0"]).tree
        found |= {(record["name"], *one) for one in differences(made, theirs)}
        assert made.boot_cpuid == theirs.boot_cpuid
        assert made.memreserve == theirs.memreserve == []
        seen.append(record["name"])
    # A difference that is not in the table is a defect, and so is one that is not there any more.
    assert found == set(DIFFERENCES)
    assert {name for name, _, _ in DIFFERENCES} <= set(seen)


def test_the_comparison_sees_each_kind_of_difference() -> None:
    def changed(change: str) -> set[tuple[str, str]]:
        one, two = board(), board()
        node = two.root.children["dma@a000000"]
        if change == "value":
            node.set_cells("iommus", 2, 0x99)
        elif change == "properties":
            node.props["compatible"] = node.props.pop("compatible")
        elif change == "node":
            two.root.remove("dma@a000000")
        elif change == "nodes":
            two.root.children["dma@a000000"] = two.root.children.pop("dma@a000000")
        return differences(one, two)

    assert changed("") == set()
    assert changed("value") == {("/dma@a000000", "iommus")}
    assert changed("properties") == {("/dma@a000000", "order")}
    assert changed("node") == {("/dma@a000000", "")}
    assert changed("nodes") == {("/", "order")}


def test_the_vsmmu_of_the_series(corpus: Path) -> None:
    host = load(corpus / "libxl" / "dom0" / "xlnx.host.dtb")
    made = build_xen_dom0(host, VERSIONS["xen-xlnx4.17"], XenOptions(viommu=True))
    off = build_xen_dom0(host, VERSIONS["xen-xlnx4.17"])
    node = made.node("/iommu@9050000")
    assert node is not None
    assert list(node.props) == [
        "compatible", "phandle", "reg", "#iommu-cells", "interrupt-names", "interrupts",
        "interrupt-parent", "dma-coherent",
    ]  # fmt: skip
    assert node.strings("compatible") == ("arm,smmu-v3",)
    assert node.cells("phandle") == (0x8005,)
    assert node.cells("reg") == (0, 0x9050000, 0, 0x20000)
    assert node.cells("#iommu-cells") == (1,)
    assert node.strings("interrupt-names") == ("combined",)
    assert node.cells("interrupts") == (0, 0x4A, 0xF04)
    assert node.cells("interrupt-parent") == (0x8003,)
    assert node.props["dma-coherent"] == b""
    # At the place of the host's, and nothing else but what is not said without it.
    names = list(host.tree.root.children)
    after = names[names.index("smmuv3@9050000") + 1]
    order = list(made.root.children)
    assert order[order.index("iommu@9050000") + 1] == after
    assert differences(made, off) == {("/iommu@9050000", "")}
    # The command line that the boot loader left says it too.
    chosen = host.tree.root.children["chosen"]
    chosen.set_strings("xen,xen-bootargs", f"{chosen.string('xen,xen-bootargs')} dom0_viommu=1")
    told = build_xen_dom0(Platform.from_tree(host.tree), VERSIONS["xen-xlnx4.17"])
    assert not differences(told, made)


def test_where_the_correct_tree_differs_from_the_series(corpus: Path) -> None:
    host = load(corpus / "libxl" / "dom0" / "xlnx.host.dtb")
    ours = build_dom0(host).node("/smmuv3@9050000")
    assert ours is not None
    assert ours.cells("interrupts") == (0, 0x4A, 1, 0, 0x4B, 1, 0, 0x4C, 1, 0, 0x4D, 1)
    assert ours.strings("interrupt-names") == ("eventq", "priq", "cmdq-sync", "gerror")
    assert ours.cells("phandle") == (0x8005,)
    # Without vSMMUs nothing dangles.
    bare = build_dom0(host, viommu=False)
    assert "smmuv3@9050000" not in bare.root.children
    assert "iommu-map" not in bare.root.children["pcie@10000000"].props
    assert "msi-map" in bare.root.children["pcie@10000000"].props
    assert "iommus" not in bare.root.children["pl031@9010000"].props


def test_a_gicv2_host(corpus: Path) -> None:
    host = load(corpus / "libxl" / "dom0" / "deb2.host.dtb")
    made = build_xen_dom0(host, VERSIONS["xen-4.20"])
    gic = made.node("/interrupt-controller")
    assert gic is not None
    assert list(gic.props) == [
        "phandle", "#address-cells", "#size-cells", "#interrupt-cells", "interrupt-controller",
        "compatible", "reg", "ranges",
    ]  # fmt: skip
    assert gic.cells("reg") == (0, 0x8000000, 0, 0x10000, 0, 0x8010000, 0, 0x10000)
    frame = gic.children["v2m"]
    assert list(frame.props) == [
        "compatible", "msi-controller", "phandle", "reg", "arm,msi-base-spi", "arm,msi-num-spis",
    ]  # fmt: skip
    assert frame.cells("reg") == (0, 0x8020000, 0, 0x1000)
    assert frame.cells("arm,msi-base-spi") == (80,)
    assert frame.cells("arm,msi-num-spis") == (64,)
    named = build_xen_dom0(host, VERSIONS["xen-4.22"])
    assert "intc@8000000" in named.root.children
    assert build_xen_dom0(host, VERSIONS["xen-4.20"], XenOptions(vcpus=8)).node("/cpus/cpu@7")
    with pytest.raises(Refusal) as error:
        build_xen_dom0(host, VERSIONS["xen-4.20"], XenOptions(vcpus=9))
    assert str(error.value) == (
        "DT601: /cpus: 9 vCPUs for dom0, the GIC that it sees serves 8 at most; give dom0 fewer "
        "(--dom0-vcpus)"
    )


def xen(tree: Tree, name: str = "xen-4.22", **options: object) -> Dom0Tree:
    return build_xen_dom0(Platform.from_tree(tree), VERSIONS[name], XenOptions(**options))


def node_of(tree: Tree, path: str) -> Node:
    node = tree.node(path)
    assert node is not None, path
    return node


def test_options_take_the_place_of_assumptions() -> None:
    made = xen(
        board(),
        memory=(Window(0x90000000, 0x4000000), Window(0x88000000, 0x1000000)),
        vcpus=17,
        bootargs="root=/dev/vda",
        initrd=(0x88800000, 0x88801234),
        grant_table=Window(0x38000000, 0x40000),
        regions=(Window(0x1000000, 0x4000000),),
        dtuart="/uart@c000000",
    )
    assert node_of(made, "/memory@88000000").cells("reg") == (
        0, 0x88000000, 0, 0x1000000, 0, 0x90000000, 0, 0x4000000,
    )  # fmt: skip
    assert list(node_of(made, "/cpus").children)[-2:] == ["cpu@f", "cpu@100"]
    assert node_of(made, "/hypervisor").cells("reg") == (
        0, 0x38000000, 0, 0x40000, 0, 0x1000000, 0, 0x4000000,
    )  # fmt: skip
    assert "DT616" not in [notice.rule for notice in made.notices]
    assert made.node("/uart@c000000") is not None, "Xen has no driver for it"
    chosen = board()
    chosen.root.add("chosen")
    node_of(chosen, "/memory@80000000").set_cells("reg", 0, 0x80000000, 2, 0)
    args = node_of(
        xen(
            chosen,
            bootargs="a",
            memory=(Window(0x80000000, 0x200000000),),
            grant_table=Window(0x38000000, 0x40000),
            initrd=(0x89000000, 0x189001234),
        ),
        "/chosen",
    )
    assert args.strings("bootargs") == ("a",)
    assert args.cells("linux,initrd-start") == (0, 0x89000000)
    assert args.cells("linux,initrd-end") == (1, 0x89001234)


GIC = "/intc@8000000 [0x8000000, 0x8010000)"
BANK = "[0x90000000, 0x94000000)"
MISPLACED = [
    (
        {"memory": (Window(0x90000000, 0x4000000), Window(0x91000000, 0x1000000))},
        f"/memory: bank [0x91000000, 0x92000000) overlaps bank {BANK}; correct --dom0-memory",
    ),
    (
        {"memory": (Window(0x70000000, 0x20000000),)},
        "/memory: bank [0x70000000, 0x90000000) is not in the host's RAM "
        "[0x80000000, 0xc0000000); correct --dom0-memory: dom0's RAM is mapped 1:1",
    ),
    (
        {"memory": (Window(0x8000000, 0x1000000),)},
        f"/memory: bank [0x8000000, 0x9000000) overlaps {GIC}; correct --dom0-memory",
    ),
    (
        {"memory": (Window(0x90000000, 0x4000000),), "initrd": (0xA0000000, 0xA0001000)},
        f"/chosen: the ramdisk [0xa0000000, 0xa0001000) is not in dom0's RAM {BANK}; "
        "correct --initrd, or --dom0-memory",
    ),
    (
        {"memory": (Window(0x90000000, 0x4000000),), "grant_table": Window(0x90000000, 0x40000)},
        f"/hypervisor: the grant table [0x90000000, 0x90040000) overlaps dom0's RAM {BANK}; "
        "correct --grant-table",
    ),
    (
        {
            "memory": (Window(0x90000000, 0x4000000),),
            "grant_table": Window(0x80000000, 0x40000),
            "regions": (Window(0x92000000, 0x4000000),),
        },
        f"/hypervisor: extended region [0x92000000, 0x96000000) overlaps dom0's RAM {BANK}; "
        "correct --extended-regions",
    ),
    (
        {
            "memory": (Window(0x90000000, 0x4000000),),
            "grant_table": Window(0x80000000, 0x40000),
            "regions": (Window(0x80000000, 0x4000000),),
        },
        "/hypervisor: extended region [0x80000000, 0x84000000) overlaps the grant table "
        "[0x80000000, 0x80040000); correct --extended-regions",
    ),
    (
        {
            "memory": (Window(0x90000000, 0x4000000),),
            "regions": (Window(0xA0000000, 0x4000000),),
        },
        "/hypervisor: extended region [0xa0000000, 0xa4000000) overlaps /memory@80000000 "
        "[0x80000000, 0xc0000000); correct --extended-regions",
    ),
    (
        {"regions": (Window(0xA0000000, 0x4000000),)},
        "/hypervisor: extended region [0xa0000000, 0xa4000000) overlaps dom0's RAM "
        "[0x90000000, 0xb0000000); correct --extended-regions, or give --dom0-memory",
    ),
    (
        {
            "memory": (Window(0x90000000, 0x4000000),),
            "regions": (Window(0x80000000, 0x4000000),),
            "drivers": frozenset(),
        },
        "/hypervisor: extended region [0x80000000, 0x84000000) overlaps the grant table "
        "[0x80200000, 0x80240000); correct --extended-regions, or give --grant-table",
    ),
    (
        {"regions": (Window(0x4000000, 0x8000000),)},
        f"/hypervisor: extended region [0x4000000, 0xc000000) overlaps {GIC}; "
        "correct --extended-regions",
    ),
    (
        {"regions": (Window(0x1000000, 0x200000), Window(0x1100000, 0x200000))},
        "/hypervisor: extended region [0x1100000, 0x1300000) overlaps extended region "
        "[0x1000000, 0x1200000); correct --extended-regions",
    ),
]


@pytest.mark.parametrize(("options", "text"), MISPLACED, ids=range(len(MISPLACED)))
def test_places_that_cannot_be(options: dict[str, object], text: str) -> None:
    with pytest.raises(Refusal) as error:
        xen(board(), **options)
    assert str(error.value) == f"DT615: {text}"


def test_places_on_a_host_that_tells_no_memory() -> None:
    tree = board()
    tree.root.remove("memory@80000000")
    table = Window(0x80000000, 0x40000)
    made = xen(tree, memory=(Window(0x90000000, 0x4000000),), grant_table=table)
    assert node_of(made, "/memory@90000000")
    with pytest.raises(Refusal) as error:
        xen(tree, memory=(Window(0x8000000, 0x1000000),), grant_table=table)
    assert str(error.value) == (
        f"DT615: /memory: bank [0x8000000, 0x9000000) overlaps {GIC}; correct --dom0-memory"
    )


def test_a_bank_over_reserved_memory() -> None:
    tree = board()
    reserved = tree.root.add("reserved-memory")
    reserved.set_cells("#address-cells", 2)
    reserved.set_cells("#size-cells", 2)
    reserved.set_empty("ranges")
    reserved.add("tee@91000000").set_cells("reg", 0, 0x91000000, 0, 0x1000)
    with pytest.raises(Refusal) as error:
        xen(tree, memory=(Window(0x90000000, 0x4000000),))
    assert str(error.value) == (
        f"DT615: /memory: bank {BANK} overlaps /reserved-memory [0x91000000, 0x91001000); "
        "correct --dom0-memory"
    )


def test_ram_that_is_left_can_be_extended_regions_without_an_iommu() -> None:
    made = xen(
        board(),
        memory=(Window(0x90000000, 0x4000000),),
        grant_table=Window(0x80000000, 0x40000),
        regions=(Window(0xA0000000, 0x4000000),),
        drivers=frozenset(),
    )
    assert node_of(made, "/hypervisor").cells("reg")[4:] == (0, 0xA0000000, 0, 0x4000000)


def test_an_assumed_grant_table_in_a_bank_is_said() -> None:
    made = xen(board(), memory=(Window(0x80000000, 0x4000000),))
    assert (
        "DT616 /hypervisor: assumed: Xen and the grant table at 0x80200000, which cannot be in a "
        "bank of --dom0-memory: say where (--grant-table)"
    ) in [str(notice) for notice in made.notices]


def test_a_console_that_is_not_there() -> None:
    for name in ("/nope", "serial0", ""):
        with pytest.raises(UserError):
            xen(board(), dtuart=name)
    tree = board()
    tree.root.children["uart@c000000"].set_strings("compatible", "arm,pl011")
    tree.root.add("aliases").set_strings("serial0", "/uart@c000000")
    for name in ("/uart@c000000", "serial0", "serial0:115200n8"):
        assert xen(tree, dtuart=name).node("/uart@c000000") is None
    assert xen(tree, dtuart="none").node("/uart@c000000") is not None


def test_what_xen_keeps() -> None:
    tree = board()
    root = tree.root
    root.add("pmu").set_strings("compatible", "arm,armv8-pmuv3")
    ppi = root.add("counter")
    ppi.set_strings("compatible", "acme,counter")
    ppi.set_cells("interrupts", 1, 3, 4)
    root.add("psci").set_strings("compatible", "arm,psci-1.0")
    uart = root.children["uart@c000000"]
    uart.set_strings("compatible", "acme,uart", "arm,pl011")
    root.add("aliases").set_strings("serial0", "/uart@c000000")
    root.add("chosen").set_strings("stdout-path", "serial0:115200n8")
    made = xen(tree)
    for path in ("/pmu", "/counter", "/uart@c000000", "/iommu@9000000"):
        assert made.node(path) is None, path
    assert node_of(made, "/psci").strings("method") == ("hvc",)
    assert "iommus" not in node_of(made, "/crypto@a010000").props
    assert "iommu-map" not in node_of(made, "/pcie@40000000").props
    # A Xen without the driver hands the SMMU to dom0.
    bare = xen(tree, drivers=frozenset())
    assert node_of(bare, "/iommu@9000000").cells("phandle") == (2,)
    assert "iommus" in node_of(bare, "/crypto@a010000").props
    kept = xen(tree, dtuart="none")
    assert kept.node("/uart@c000000") is not None
    assert [str(n) for n in made.notices if n.rule == "DT617"] == [
        "DT617 /uart@c000000: is Xen's console, not dom0's",
        "DT617 /counter: has a private interrupt (PPI), which Xen does not give",
    ]


def test_chosen_follows_xens_precedence() -> None:
    def args(**props: str) -> tuple[str, ...] | None:
        tree = board()
        chosen = tree.root.add("chosen")
        chosen.set_cells("#address-cells", 2)
        chosen.set_cells("#size-cells", 2)
        module = chosen.add("module@88000000")
        module.set_strings("compatible", "multiboot,module")
        module.set_cells("reg", 0, 0x88000000, 0, 0x1000000)
        if "module" in props:
            module.set_strings("bootargs", props.pop("module"))
        for name, value in props.items():
            chosen.set_strings(name.replace("_", ","), value)
        found = node_of(xen(tree), "/chosen")
        assert "module@88000000" not in found.children
        return found.strings("bootargs")

    assert args() is None
    assert args(bootargs="a") == ("a",)
    assert args(bootargs="a", module="b") == ("b",)
    # The property's name has a comma and a hyphen.
    tree = board()
    chosen = tree.root.add("chosen")
    chosen.set_strings("bootargs", "xen's")
    chosen.set_strings("xen,dom0-bootargs", "dom0's")
    assert node_of(xen(tree), "/chosen").strings("bootargs") == ("dom0's",)


def test_the_status_goes_to_the_end() -> None:
    tree = board()
    node = tree.root.children["dma@a000000"]
    raw = node.props.pop("reg")
    node.set_strings("status", "okay")
    node.props["reg"] = raw
    assert list(node_of(xen(tree), "/dma@a000000").props) == [
        "compatible",
        "clocks",
        "reg",
        "status",
    ]


def test_memory_regions_and_bits() -> None:
    made = xen(board())
    # 512 MiB in two blocks, for Xen is in the lower half of RAM and its page table in the upper.
    assert node_of(made, "/memory@90000000").cells("reg") == (0, 0x90000000, 0, 0x20000000)
    assert node_of(made, "/hypervisor").cells("reg") == (
        0, 0x80200000, 0, 0x40000,  # grant table
        0, 0, 0, 0x8000000,
        0, 0xC200000, 0, 0x33E00000,
        0, 0x40200000, 0, 0x3FE00000,
        0, 0xC0000000, 0xFFF, 0x40000000,
    )  # fmt: skip
    # 4.20 counts the last page of a hole as a byte.
    old = xen(board(), "xen-4.20", drivers=VERSIONS["xen-4.22"].drivers)
    assert node_of(old, "/hypervisor").cells("reg")[12:16] == (0, 0x40200000, 0, 0x3FC00000)
    off = xen(board(), drivers=frozenset())
    assert node_of(off, "/hypervisor").cells("reg") == (
        0, 0x80200000, 0, 0x40000, 0, 0x80400000, 0, 0xFC00000, 0, 0xB0000000, 0, 0x10000000,
    )  # fmt: skip
    assert node_of(xen(board(), ipa_bits=36), "/hypervisor").cells("reg")[-4:] == (
        0, 0xC0000000, 0xF, 0x40000000,
    )  # fmt: skip


def test_reserved_memory_gets_a_second_node() -> None:
    tree = board()
    reserved = tree.root.add("reserved-memory")
    reserved.set_cells("#address-cells", 2)
    reserved.set_cells("#size-cells", 2)
    reserved.set_empty("ranges")
    reserved.add("fw@a0000000").set_cells("reg", 0, 0xA0000000, 0, 0x100000)
    made = xen(tree)
    assert list(made.root.children)[-2:] == ["memory@88000000", "memory@a0000000"]
    assert node_of(made, "/memory@a0000000").cells("reg") == (0, 0xA0000000, 0, 0x100000)


def test_two_msi_frames_of_one_name() -> None:
    tree = board()
    gic = tree.root.children["intc@8000000"]
    gic.set_cells("#address-cells", 2)
    gic.set_cells("#size-cells", 2)
    gic.set_empty("ranges")
    for base in (0x8080000, 0x8100000):
        frame = gic.add(f"its@{base:x}")
        frame.set_strings("compatible", "arm,gic-v3-its")
        frame.set_cells("reg", 0, base, 0, 0x20000)
    made = xen(tree)
    assert list(node_of(made, "/intc@8000000").children) == ["its", "its@8100000"]
    assert (
        "DT614 /intc@8000000/its@8100000: Xen calls this one its too; it keeps its name here"
        in [str(notice) for notice in made.notices]
    )


def test_a_redistributor_region_for_each_that_is_needed() -> None:
    tree = board()
    gic = tree.root.children["intc@8000000"]
    gic.set_cells("#redistributor-regions", 2)
    gic.set_cells(
        "reg", 0, 0x8000000, 0, 0x10000, 0, 0x80A0000, 0, 0x40000, 0, 0x8200000, 0, 0x40000
    )
    one, two = (node_of(xen(tree, vcpus=n), "/intc@8000000") for n in (2, 3))
    assert one.cells("#redistributor-regions") == (1,)
    assert len(one.props["reg"]) == 32
    assert two.cells("#redistributor-regions") == (2,)
    assert two.props["reg"] == gic.props["reg"]


REFUSED = [
    (
        lambda root: root.remove("intc@8000000"),
        "DT613: /: Xen 4.22 has no driver for an interrupt controller of it; it drives "
        "arm,cortex-a15-gic, arm,cortex-a7-gic, arm,gic-400, arm,gic-v3",
    ),
    (
        lambda root: root.remove("timer"),
        "DT613: /: Xen needs the PPIs of the secure, the non-secure and the virtual timer; take "
        "the tree that Xen boots with",
    ),
    (
        lambda root: root.remove("cpus"),
        "DT613: /cpus: has no node of a CPU with a compatible; take the tree that Xen boots with",
    ),
    (
        lambda root: root.remove("memory@80000000"),
        "DT612: /memory: the host tree has no memory node; take the tree that Xen boots with, or "
        "give --dom0-memory and --grant-table",
    ),
    (
        lambda root: root.add("hypervisor").set_strings("compatible", "acme,el2"),
        "DT614: /hypervisor: Xen would make a second hypervisor in /; take the one of the host "
        "tree away, or rename it",
    ),
    (
        lambda root: root.add("timer2").copy_from(root.children["timer"]),
        "DT614: /timer2: is a second timer; Xen would make two nodes called timer; take one of "
        "them out of the host tree",
    ),
]


@pytest.mark.parametrize(("change", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(change, text: str) -> None:  # type: ignore[no-untyped-def]
    tree = board()
    change(tree.root)
    with pytest.raises(Refusal) as error:
        xen(tree)
    assert str(error.value) == text


def test_a_version_without_vsmmus_makes_none() -> None:
    with pytest.raises(Refusal) as error:
        xen(board(), viommu=True)
    assert str(error.value) == (
        "DT613: /: Xen 4.22 has no vSMMU; leave the profile out for dom0's tree with vSMMUs"
    )


def test_a_vsmmu_whose_interrupt_xen_would_get_wrong() -> None:
    tree = board()
    pins = tree.root.add("pins")
    pins.set_cells("#interrupt-cells", 2)
    pins.set_empty("interrupt-controller")
    pins.set_cells("phandle", 9)
    smmu = tree.root.children["iommu@9000000"]
    smmu.set_cells("interrupt-parent", 9)
    smmu.set_cells("interrupts", 1, 4)
    with pytest.raises(Refusal) as error:
        xen(tree, "xen-xlnx4.17", viommu=True)
    assert str(error.value).startswith("DT613: /iommu@9000000: its first interrupt is not an SPI")


def test_too_much_memory() -> None:
    tree = board()
    tree.root.add("chosen").set_strings("xen,xen-bootargs", "dom0_mem=2G")
    with pytest.raises(Refusal) as error:
        xen(tree)
    assert str(error.value) == (
        "DT615: /memory: 2048 MiB of RAM for dom0 do not fit the host's free memory; give dom0 "
        "less, or say where it lies"
    )


def test_dom0_memory_as_the_allocator_gives_it() -> None:
    def bank(size: int, *free: tuple[int, int], last: bool = False) -> list[tuple[int, int]]:
        room = [Window(start, end - start) for start, end in free]
        return [(w.base, w.end) for w in place_memory(size << 20, room, last)]

    low, high = (0x4000_0000, 0x1_0000_0000), (0x8_8000_0000, 0x9_0000_0000)
    # The lowest power of two that has a block; of several the first, or the last.
    assert bank(1024, low) == [(0x4000_0000, 0x8000_0000)]
    assert bank(1024, (0x4800_0000, low[1])) == [(0x8000_0000, 0xC000_0000)]
    assert bank(1024, (0x4800_0000, low[1]), last=True) == [(0xC000_0000, 0x1_0000_0000)]
    # A smaller block comes from the end of the smallest that is large enough.
    assert bank(256, (0x8000_0000, 0xC000_0000)) == [(0xB000_0000, 0xC000_0000)]
    assert bank(512, (0x6000_0000, low[1])) == [(0x6000_0000, 0x8000_0000)]
    # Several blocks; neighbours are one bank. Below 4 GiB first, then above.
    assert bank(3072, low, high) == [low]
    assert bank(4096, low, high) == [low, (0x8_8000_0000, 0x8_C000_0000)]
    assert bank(64, high) == [(0x8_BC00_0000, 0x8_C000_0000)]
    with pytest.raises(Refusal):
        bank(3073, low)


def test_where_the_ramdisk_goes() -> None:
    bank, mib = Window(0x8000_0000, 1 << 30), 1 << 20
    assert place_initrd(bank, 40 * mib, 5 * mib) == 0x8820_0000
    # The kernel reaches over 128 MiB, or RAM ends too early: the end of the bank.
    assert place_initrd(bank, 200 * mib, 5 * mib) == 0xC000_0000 - 6 * mib
    assert place_initrd(Window(0x8000_0000, 64 * mib), 40 * mib, 5 * mib) == 0x8400_0000 - 6 * mib
    assert place_initrd(Window(0x8000_0000, 32 * mib), 40 * mib, 5 * mib) is None


def test_claims_of_any_size_are_bounded() -> None:
    tree = board()
    tree.root.children["memory@80000000"].set_cells("reg", 0, 0x80000000, 0x7FFFFFFF, 0)
    chosen = tree.root.add("chosen")
    for value, text in (("9999999T", "are more than is placed here"), ("9T", "are more than")):
        chosen.set_strings("xen,xen-bootargs", f"dom0_mem={value} gnttab_max_frames=99999999999")
        with pytest.raises(Refusal) as error:
            xen(tree)
        assert text in str(error.value)
    chosen.set_strings("xen,xen-bootargs", "dom0_mem=1T dom0_max_vcpus=-4")
    assert list(node_of(xen(tree), "/cpus").children) == ["cpu@0"]


def test_the_profiles_are_what_they_say() -> None:
    assert sorted(VERSIONS) == ["xen-4.20", "xen-4.22", "xen-xlnx4.17"]
    assert replace(VERSIONS["xen-4.22"], name="x") != VERSIONS["xen-4.22"]


def test_the_document_has_the_table_of_differences(samples: Path) -> None:
    text = (samples.parent / "docs" / "dom0.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    told = {
        (name, path, prop)
        for name in {name for name, _, _ in DIFFERENCES}
        for row in rows
        if row.startswith(f"| {name} | {PROFILES_OF[name]} |")
        for path in [row.split("|")[3].strip().strip("`")]
        for prop in [part.strip().strip("`") for part in row.split("|")[4].split(",")]
    }
    assert told == set(DIFFERENCES)
