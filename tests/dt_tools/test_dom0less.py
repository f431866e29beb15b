# SPDX-License-Identifier: BSD-2-Clause
"""dom0less: fragments, nodes of domains, merged trees, Xen's rules, ImageBuilder's lines."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools import blob
from dt_tools.dom0less import (
    XENS,
    GuestInput,
    Module,
    build_dom0less,
    build_fragment,
    check_fragment,
    imagebuilder,
    xen_guest,
)
from dt_tools.dom0less.rules import Setting
from dt_tools.errors import DtError, Refusal, UserError
from dt_tools.guest import build_guest
from dt_tools.platform import Platform
from dt_tools.tree import Tree
from tests.counts import sliced
from xl_configs import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from dt_tools.dom0less import Dom0less
    from xl_configs import GuestConfig

CRYPTO = "/soc/crypto@60000000"
OTHER = "/soc/crypto@61000000"
ETHERNET = "/soc/ethernet@60010000"
KERNEL = Module("kernel", 0x9000_0000, 0x100_0000)
DTB = Module("device-tree", 0x9600_0000, 0)
DISK = Module("ramdisk", 0x9400_0000, 0x20_1234)
V420, V422, XLNX = (XENS[name] for name in ("xen-4.20", "xen-4.22", "xen-xlnx4.17"))


@pytest.fixture
def tree(samples) -> Tree:
    return blob.read((samples / "board.dtb").read_bytes(), "board.dtb")


@pytest.fixture
def board(tree) -> Platform:
    return Platform.from_tree(tree, "board.dtb")


def cfg(text: str = "", devices: tuple[str, ...] = (CRYPTO,)) -> GuestConfig:
    listed = ", ".join(f'"{path}"' for path in devices)
    lines = f'name = "g"\nkernel = "/boot/Image"\nmemory = 256\nvuart = "sbsa_uart"\n{text}\n'
    return load(f"{lines}dtdev = [ {listed} ]\n".encode(), "g.cfg")


def guest(config: GuestConfig, *modules: Module, **more: object) -> GuestInput:
    return GuestInput(config, modules or (KERNEL, DTB), **more)  # type: ignore[arg-type]


def one(board: Platform, config: GuestConfig, *modules: Module, **more: object) -> Dom0less:
    return build_dom0less(board, [guest(config, *modules)], **more)  # type: ignore[arg-type]


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as error:
        action()
    return str(error.value)


def by_rule(built: Dom0less, rule: str) -> list[str]:
    return [str(notice) for notice in built.notices if notice.rule == rule]


# The partial tree.


def test_a_fragment(board):
    built = build_fragment(cfg('viommu = "smmuv3"', (CRYPTO, ETHERNET)), board)
    root = built.tree.root
    assert list(root.children) == ["gic", "passthrough"]
    gic = root.children["gic"]
    assert gic.cells("#interrupt-cells") == (3,)
    assert "interrupt-controller" in gic.props
    node = built.tree.node("/passthrough/ethernet@60010000")
    assert list(node.props)[-3:] == ["interrupt-parent", "xen,reg", "xen,path"]
    assert node.u32("interrupt-parent") == gic.phandle
    assert node.cells("xen,reg") == (
        0, 0x60010000, 0, 0x4000, 0, 0x60010000, 0, 0x60018000, 0, 0x1000, 0, 0x60018000,
    )  # fmt: skip
    assert node.string("xen,path") == ETHERNET
    assert node.cells("iommus") == (3, 0x10, 3, 0x11)
    assert built.paths == (CRYPTO, ETHERNET)
    assert not any("force" in name for n in built.tree.walk() for name in n.props)


def test_without_a_vsmmu_there_are_no_iommus(board):
    built = build_fragment(cfg(), board)
    assert not any("iommus" in node.props for node in built.tree.walk())


def test_the_gic_phandle_is_nobody_elses(board):
    smmus = {smmu.phandle for smmu in board.smmus}
    built = build_fragment(cfg('viommu = "smmuv3"', (CRYPTO, OTHER)), board)
    assert built.tree.root.children["gic"].phandle not in smmus


def test_iomem_places_registers(board):
    built = build_fragment(cfg('iomem = [ "0x60000,0x10@0x6000" ]'), board)
    node = built.tree.node("/passthrough/crypto@6000000")
    assert node.cells("reg") == (0, 0x600_0000, 0, 0x10000)
    assert node.cells("xen,reg") == (0, 0x6000_0000, 0, 0x10000, 0, 0x600_0000)


def test_a_clash_with_ram_is_moved(board):
    config = replace(cfg(), memory_mib=1024)
    built = build_fragment(config, board)
    at = built.devices[0].regs[0].guest
    xl = build_guest(config, platform=board)
    assert at != 0x6000_0000
    assert xl.bindings.devices == built.devices


def test_registers_in_one_page_are_mapped_once(board):
    node = board.tree.node(CRYPTO)
    node.set_cells("reg", 0, 0x60000000, 0, 0x100, 0, 0x60000800, 0, 0x100)
    built = build_fragment(cfg(), Platform.from_tree(board.tree, "b"))
    made = built.tree.node("/passthrough/crypto@60000000")
    assert made.cells("xen,reg") == (0, 0x60000000, 0, 0x1000, 0, 0x60000000)


# A device that no SMMU contains.


def uncontained(tree: Tree) -> Platform:
    del tree.node(CRYPTO).props["iommus"]
    return Platform.from_tree(tree, "b")


def test_an_uncontained_device_is_refused(tree):
    board = uncontained(tree)
    assert refusal(lambda: one(board, cfg())).startswith(f"DT101: {CRYPTO}: is not a DMA master")


def test_an_uncontained_device_by_the_users_word(tree):
    built = one(uncontained(tree), cfg(), unsafe=[CRYPTO])
    node = built.domains[0].fragment.tree.node("/passthrough/crypto@60000000")
    assert "xen,force-assign-without-iommu" in node.props
    assert by_rule(built, "DT101") == [
        f"DT101 {CRYPTO}: xen,force-assign-without-iommu: no SMMU contains its DMA, "
        "it can reach all memory"
    ]
    assert "passthrough" not in built.domains[0].node.props


def test_the_word_changes_nothing_for_a_contained_device(board):
    built = one(board, cfg(), unsafe=[CRYPTO])
    assert built.domains[0].fragment.unsafe == ()
    assert built.domains[0].blob == one(board, cfg()).domains[0].blob


def test_the_word_for_a_device_of_nobody(board):
    with pytest.raises(UserError, match="is no device in dtdev of a guest"):
        one(board, cfg(), unsafe=[ETHERNET])


def test_an_uncontained_device_and_a_vsmmu(tree):
    board = uncontained(tree)
    config = cfg('viommu = "smmuv3"', (OTHER, CRYPTO))
    text = refusal(lambda: one(board, config, unsafe=[CRYPTO]))
    assert text.startswith(f"DT101: {CRYPTO}: is behind no SMMU, and the guest has a vSMMU")


# Interrupts.


def with_child(tree: Tree) -> Platform:
    child = tree.node(CRYPTO).add("ring")
    child.set_cells("interrupts", 0, 200, 4)
    return Platform.from_tree(tree, "b")


def test_interrupts_of_a_child(tree):
    board = with_child(tree)
    assert refusal(lambda: one(board, cfg())) == (
        f"DT622: {CRYPTO}: its child {CRYPTO}/ring has interrupt 232, which Xen does not map: "
        f"dom0less takes interrupts from the node of xen,path alone; give --unsafe-no-iommu "
        f"{CRYPTO}/ring (for every such child), or create this guest from dom0, by xl"
    )


def test_interrupts_of_a_child_by_the_users_word(tree):
    built = one(with_child(tree), cfg(), unsafe=[f"{CRYPTO}/ring"])
    child = built.domains[0].fragment.tree.node("/passthrough/crypto@60000000/ring")
    assert child.props["xen,reg"] == b""
    assert child.string("xen,path") == f"{CRYPTO}/ring"
    assert "xen,force-assign-without-iommu" in child.props
    gic = built.domains[0].fragment.tree.node("/gic").phandle
    assert child.parent.u32("interrupt-parent") == gic
    assert "xen,passthrough" in built.tree.node(f"{CRYPTO}/ring").props


def test_a_child_with_another_controller_above_it(tree):
    """The child's interrupts are the GIC's by its own word; the copy has to say so too."""
    device, gic = tree.node(CRYPTO), Platform.from_tree(tree, "b").gic.node
    gic.set_cells("phandle", gic.phandle)
    device.set_cells("#interrupt-cells", 1)
    device.set_empty("interrupt-controller")
    device.set_cells("#address-cells", 1)
    device.set_cells("#size-cells", 1)
    child = device.add("ring")
    child.set_cells("interrupts", 0, 200, 4)
    child.set_cells("interrupt-parent", gic.phandle)
    board = Platform.from_tree(tree, "b")
    built = one(board, cfg(), unsafe=[f"{CRYPTO}/ring"])
    made = built.domains[0].fragment.tree
    node = made.node("/passthrough/crypto@60000000/ring")
    assert node.u32("interrupt-parent") == made.node("/gic").phandle


def test_a_ppi(tree):
    tree.node(CRYPTO).set_cells("interrupts", 1, 7, 4)
    board = Platform.from_tree(tree, "b")
    assert refusal(lambda: one(board, cfg())) == (
        f"DT621: {CRYPTO}: interrupt 23 is a PPI: Xen routes SPIs alone; "
        "correct its interrupts in the host tree, or assign another device"
    )


@pytest.mark.parametrize(
    ("spi", "text", "what"), [(0, "", "pl011 SPI"), (1, 'viommu = "smmuv3"', "vSMMUv3 SPI")]
)
def test_interrupts_that_xen_uses_itself(tree, spi, text, what):
    tree.node(CRYPTO).set_cells("interrupts", 0, spi, 4)
    board = Platform.from_tree(tree, "b")
    assert f"Physical IRQ {32 + spi} conflicting with {what}" in refusal(
        lambda: one(board, cfg(text))
    )


# The node under /chosen.


def test_a_domain(board):
    built = one(board, cfg('vcpus = 2\nviommu = "smmuv3"\ncmdline = "quiet"'), KERNEL, DISK, DTB)
    node = built.domains[0].node
    assert node.path == "/chosen/domU1"
    assert list(node.props) == [
        "compatible", "#address-cells", "#size-cells", "memory", "cpus", "vpl011", "passthrough",
        "viommu",
    ]  # fmt: skip
    assert node.string("compatible") == "xen,domain"
    assert node.cells("memory") == (0, 256 * 1024)
    assert node.u32("cpus") == 2
    assert node.string("passthrough") == "enabled"
    assert node.string("viommu") == "smmuv3"
    assert list(node.children) == ["module@90000000", "module@94000000", "module@96000000"]
    kernel, disk, dtb = node.children.values()
    assert kernel.strings("compatible") == ("multiboot,kernel", "multiboot,module")
    assert kernel.cells("reg") == (0, 0x9000_0000, 0, 0x100_0000)
    assert kernel.string("bootargs") == "quiet"
    assert disk.strings("compatible") == ("multiboot,ramdisk", "multiboot,module")
    assert disk.cells("reg") == (0, 0x9400_0000, 0, 0x20_1234)
    assert dtb.strings("compatible") == ("multiboot,device-tree", "multiboot,module")
    assert dtb.cells("reg") == (0, 0x9600_0000, 0, len(built.domains[0].blob))


def test_a_guest_without_devices(board):
    built = one(board, cfg(devices=()), KERNEL)
    assert built.domains[0].blob is None
    assert "passthrough" not in built.domains[0].node.props
    assert list(built.domains[0].node.children) == ["module@90000000"]
    assert blob.same_content(built.marked, board.tree)


def test_limits_have_their_properties(board):
    text = "\n".join((
        "max_grant_frames = 7", "max_maptrack_frames = 8", "max_grant_version = 2",
        "shadow_memory = 16", 'llc_colors = [ "0-3", "6" ]', 'sve = "hw"', "nr_spis = 200",
    ))  # fmt: skip
    node = one(board, cfg(text)).domains[0].node
    assert node.u32("max_grant_frames") == 7
    assert node.u32("max_maptrack_frames") == 8
    assert node.u32("max_grant_version") == 2
    assert node.u32("xen,domain-p2m-mem-mb") == 16
    assert node.string("llc-colors") == "0-3,6"
    assert node.props["sve"] == b""
    assert node.u32("nr_spis") == 200
    assert one(board, cfg('sve = "256"')).domains[0].node.u32("sve") == 256


def test_nr_spis_is_raised(board):
    built = one(board, cfg("nr_spis = 8"))
    assert built.domains[0].node.u32("nr_spis") == 101
    assert by_rule(built, "DT305") == [
        "DT305 /chosen/domU1: nr_spis 8 raised to 101, the number the guest's devices need"
    ]


def test_keys_without_a_form(board):
    text = "\n".join((
        'disk = [ "phy:/dev/x,xvda,w" ]', 'vif = [ "" ]', "maxvcpus = 4", 'gic_version = "v2"',
        "irqs = [ 132, 140 ]", 'iomem = [ "0x70000,1" ]', 'tee = "optee"', "foo = 1",
        "trap_unmapped_accesses = 1",
    ))  # fmt: skip
    built = one(board, cfg(text))
    assert by_rule(built, "DT620") == [
        f"DT620 /chosen/domU1: {said}"
        for said in (
            "tee has no dom0less form and is left out",
            "disk has no dom0less form and is left out",
            "vif has no dom0less form and is left out",
            "foo has no dom0less form and is left out",
            "maxvcpus has no dom0less form: the guest has 1 vCPUs for good",
            "gic_version has no dom0less form: the guest has the host's GICv3",
            "irqs has no dom0less form for 140: interrupts come with a device's host node",
            "trap_unmapped_accesses has no dom0less form in series",
            "iomem has no dom0less form for 0x70000,0x1: no device has all of these pages",
        )
    ]
    assert len(by_rule(one(board, cfg("trap_unmapped_accesses = 0"), xen=V422), "DT620")) == 0


def test_a_guest_without_a_console(board):
    config = replace(cfg(), vuart=None)
    assert by_rule(one(board, config), "DT631")
    assert not by_rule(one(board, cfg()), "DT631")


def test_a_vsmmu_from_a_xen_without_one(board):
    text = refusal(lambda: one(board, cfg('viommu = "smmuv3"'), xen=V420))
    assert text.startswith('DT630: /chosen/domU1: viommu = "smmuv3": xen-4.20 gives no guest')


def test_numbers_that_no_cell_holds(board):
    at_end = Module("kernel", (1 << 64) - 1, 2)
    assert refusal(lambda: one(board, cfg(devices=()), at_end)).startswith("DT634")
    sized = GuestInput(cfg(devices=()), (), sizes=(("kernel", 1), ("ramdisk", 1)))
    top = (1 << 64) - 0x1000
    assert refusal(lambda: build_dom0less(board, [sized], modules_at=top)).startswith("DT634")
    large = replace(cfg(devices=()), memory_mib=1 << 60)
    assert refusal(lambda: one(board, large, KERNEL, addresses=False)).startswith("DT602")
    pool = replace(cfg(), shadow_memory_mib=1 << 32)
    assert refusal(lambda: one(board, pool)).startswith("DT602: /chosen/domU1: xen,domain-p2m")


def test_a_long_command_line(board):
    assert one(board, cfg(f'cmdline = "{"a" * 1023}"'))
    assert refusal(lambda: one(board, cfg(f'cmdline = "{"a" * 1024}"'))).startswith("DT628")


# The merged tree.


def test_the_rest_of_the_host_stays(tree):
    chosen = tree.root.children["chosen"]
    chosen.set_strings("xen,xen-bootargs", "console=dtuart")
    chosen.add("module@88000000").copy_from(chosen_module(0x8800_0000, "kernel"))
    board = Platform.from_tree(tree, "b")
    before = blob.write(tree)
    built = one(board, cfg())
    assert blob.write(tree) == before
    made = built.tree.root.children["chosen"]
    assert made.string("xen,xen-bootargs") == "console=dtuart"
    assert "module@88000000" in made.children
    made.remove("domU1")
    del built.tree.node(CRYPTO).props["xen,passthrough"]
    assert blob.same_content(built.tree, tree)


def chosen_module(base: int, kind: str):
    node = Tree().root
    node.set_strings("compatible", f"multiboot,{kind}", "multiboot,module")
    node.set_cells("reg", 0, base, 0x10_0000)
    return node


def test_two_guests(board):
    first = guest(cfg('viommu = "smmuv3"'))
    second = guest(
        cfg('viommu = "smmuv3"', (OTHER,)),
        Module("kernel", 0x9100_0000, 0x10_0000),
        Module("device-tree", 0x9700_0000, 0),
    )
    built = build_dom0less(board, [first, second])
    assert [d.path for d in built.domains] == ["/chosen/domU1", "/chosen/domU2"]
    marked = [n.path for n in built.tree.walk() if "xen,passthrough" in n.props]
    assert marked == [CRYPTO, OTHER]
    for made in built.guests():
        bus = made.root.children["passthrough"]
        assert [node.cells("iommus") for node in bus.children.values()] == [(65002, 0)]
    again = build_dom0less(board, [first, second])
    assert blob.write(again.tree) == blob.write(built.tree)
    assert [d.blob for d in again.domains] == [d.blob for d in built.domains]


def test_a_device_for_two_guests(board):
    second = guest(cfg(), Module("kernel", 0x9100_0000, 4), Module("device-tree", 0x9700_0000, 0))
    assert refusal(lambda: build_dom0less(board, [guest(cfg()), second])) == (
        f"DT103: {CRYPTO}: is given to guests 1 and 2; give it to one of them"
    )


def test_an_interrupt_for_two_guests(tree):
    tree.node(OTHER).props["interrupts"] = tree.node(CRYPTO).props["interrupts"]
    board = Platform.from_tree(tree, "b")
    second = guest(cfg(devices=(OTHER,)), Module("kernel", 0x9100_0000, 4), DTB)
    text = refusal(lambda: build_dom0less(board, [guest(cfg()), second]))
    assert text.startswith(f"DT307: {OTHER}: interrupt 132 is a device's of guest 1 too")


def test_an_interrupt_that_dom0_has(tree):
    tree.node(OTHER).props["interrupts"] = tree.node(CRYPTO).props["interrupts"]
    assert by_rule(one(Platform.from_tree(tree, "b"), cfg()), "DT307")
    chosen = tree.root.children["chosen"]
    chosen.add("module@88000000").copy_from(chosen_module(0x8800_0000, "kernel"))
    text = refusal(lambda: one(Platform.from_tree(tree, "b"), cfg()))
    assert text.startswith(f"DT307: {OTHER}: interrupt 132 is a guest's device's too, and dom0")


def test_a_stream_of_a_device_that_stays(tree):
    tree.node(ETHERNET).props["iommus"] = tree.node(CRYPTO).props["iommus"]
    assert refusal(lambda: one(Platform.from_tree(tree, "b"), cfg())).startswith("DT503")


def test_a_domain_that_is_there_already(board):
    once = one(board, cfg())
    more = Module("kernel", 0x9100_0000, 4), Module("device-tree", 0x9700_0000, 0)
    twice = one(Platform.from_tree(once.tree, "b"), cfg(devices=(OTHER,)), *more)
    assert twice.domains[0].path == "/chosen/domU2"
    assert by_rule(twice, "DT633")[0].startswith("DT633 /chosen/domU1: is in the host tree")


def test_modules_at_one_address(board):
    at = Module("device-tree", KERNEL.base, 0)
    assert refusal(lambda: one(board, cfg(), KERNEL, at)) == (
        "DT634: /chosen/domU1: two modules are at 0x90000000; "
        "choose another address for one of them"
    )


@pytest.mark.parametrize("base", [0x8FFF_FFFF, 0x90FF_F000, 0x9100_0000 - 1])
def test_modules_that_overlap(board, base):
    text = refusal(lambda: one(board, cfg(), KERNEL, Module("device-tree", base, 0)))
    assert text.startswith("DT634: /chosen/domU1")
    assert "overlaps" in text


def test_modules_in_reserved_memory(tree):
    memory = tree.root.children.get("reserved-memory") or tree.root.add("reserved-memory")
    memory.set_cells("#address-cells", 2)
    memory.set_cells("#size-cells", 2)
    memory.add("tee@96000000").set_cells("reg", 0, 0x9600_0000, 0, 0x1000)
    text = refusal(lambda: one(Platform.from_tree(tree, "b"), cfg()))
    assert "lies in reserved memory [0x96000000, 0x96001000)" in text


def test_too_many_modules(board):
    guests = [
        guest(cfg(devices=()), Module("kernel", 0x9000_0000 + at * 0x1000, 0x1000))
        for at in range(31)
    ]
    assert refusal(lambda: build_dom0less(board, guests)).startswith("DT634: /chosen: 31 modules")


def test_modules_are_placed(board):
    given = GuestInput(cfg(), (), sizes=(("kernel", 0x20_0001), ("ramdisk", 5)))
    built = build_dom0less(board, [given], modules_at=0x9000_0000)
    bases = [int(name.partition("@")[2], 16) for name in built.domains[0].node.children]
    assert bases == [0x9000_0000, 0x9040_0000, 0x9060_0000]


# The user's own partial tree.


def test_a_hand_written_tree(board):
    made = one(board, cfg()).domains[0].fragment.tree
    given = GuestInput(cfg(), (KERNEL, DTB), partial=made)
    built = build_dom0less(board, [given])
    assert built.domains[0].fragment.paths == (CRYPTO,)
    assert "xen,passthrough" in built.tree.node(CRYPTO).props
    del made.node("/passthrough/crypto@60000000").props["xen,path"]
    assert refusal(lambda: build_dom0less(board, [given])) == (
        "DT203: /passthrough/crypto@60000000: has xen,reg but no xen,path, and Xen refuses the "
        "domain; name the host's node in xen,path"
    )


def test_a_hand_written_tree_and_what_stays_outside(tree):
    made = build_fragment(cfg(), Platform.from_tree(tree, "b")).tree
    given = GuestInput(cfg(devices=(CRYPTO, OTHER)), (KERNEL, DTB), partial=made)
    built = build_dom0less(Platform.from_tree(tree, "b"), [given])
    assert by_rule(built, "DT112") == [
        f"DT112 {OTHER}: no xen,path of the partial tree names it: the guest does not get it"
    ]
    streams = tree.node(ETHERNET).props["iommus"]
    tree.node(ETHERNET).props["iommus"] = tree.node(CRYPTO).props["iommus"]
    board = Platform.from_tree(tree, "b")
    assert refusal(lambda: build_dom0less(board, [given])).startswith(f"DT503: {CRYPTO}: shares")
    tree.node(ETHERNET).props["iommus"] = streams
    tree.node(ETHERNET).props["reg"] = tree.node(CRYPTO).props["reg"]
    board = Platform.from_tree(tree, "b")
    assert refusal(lambda: build_dom0less(board, [given])).startswith(f"DT205: {CRYPTO}: shares")


# Xen's rules, one by one.


def found(board: Platform, tree: Tree, **setting: object) -> list[str]:
    options = {"marked": False, **setting}
    return [
        f"{f.severity} {f.rule} {f.path}"
        for f in check_fragment(board, tree, Setting(**options))  # type: ignore[arg-type]
    ]


def fragment(board: Platform, text: str = "") -> Tree:
    return build_fragment(cfg(text), board).tree


DEVICE = "/passthrough/crypto@60000000"


def test_a_clean_tree(board):
    assert found(board, fragment(board)) == []
    assert found(board, fragment(board, 'viommu = "smmuv3"'), viommu=True) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda n: n.props.pop("xen,reg"), f"error DT203 {DEVICE}"),
        (lambda n: n.props.pop("xen,path"), f"error DT203 {DEVICE}"),
        (lambda n: n.set_strings("xen,path", "/nope"), f"error DT102 {DEVICE}"),
        (lambda n: n.set_strings("xen,path", "/"), f"error DT101 {DEVICE}"),
        (lambda n: n.set_cells("xen,reg", 0, 1, 0, 4096, 0, 0), f"error DT204 {DEVICE}"),
        (lambda n: n.set_cells("xen,reg", 0, 1, 2), f"error DT206 {DEVICE}"),
        (lambda n: n.parent.set_cells("#address-cells", 3), f"error DT206 {DEVICE}"),
        (lambda n: n.parent.set_cells("#size-cells", 0), f"error DT206 {DEVICE}"),
        (lambda n: n.parent.props.pop("#size-cells"), f"error DT206 {DEVICE}"),
        (lambda n: n.set_cells("phandle", 1), f"error DT403 {DEVICE}"),
        (lambda n: n.set_cells("phandle", 65001), f"note DT402 {DEVICE}"),
        (lambda n: n.set_cells("phandle", 0), f"error DT404 {DEVICE}"),
        (lambda n: n.set_cells("iommus", 3, 0x600), f"warning DT401 {DEVICE}"),
        (lambda n: n.props.pop("interrupt-parent"), f"warning DT623 {DEVICE}"),
        (lambda n: n.parent.props.pop("ranges"), "warning DT213 /passthrough"),
        (lambda n: n.set_cells("xen,reg", 0, 0x7000_0000, 0, 4096, 0, 0x7000_0000),
         f"warning DT206 {DEVICE}"),
        (lambda n: n.set_cells("xen,reg", 0, 0x6000_0000, 0, 0x10000, 0, 0x2200_0000),
         f"warning DT207 {DEVICE}"),
        (lambda n: n.parent.add("twin").copy_from(n), "error DT108 /passthrough/twin"),
    ],
)  # fmt: skip
def test_a_rule(board, change, expected):
    tree = fragment(board)
    change(tree.node(DEVICE))
    assert expected in found(board, tree, vpl011=True)


def test_what_a_version_refuses(board):
    tree = fragment(board)
    tree.node(DEVICE).set_cells("phandle", 64999)
    assert found(board, tree, xen=V420) == []
    assert found(board, tree, xen=V422) == [f"error DT402 {DEVICE}"]


def test_a_device_that_dom0_has(board):
    tree = fragment(board)
    assert found(board, tree, marked=True) == [f"note DT103 {DEVICE}"]
    assert found(board, tree, marked=True, dom0=True) == [f"error DT103 {DEVICE}"]


def test_xen_compares_paths_and_names_without_case(board):
    tree = fragment(board)
    tree.node(DEVICE).set_strings("xen,path", CRYPTO.upper())
    bus = tree.root.children.pop("passthrough")
    bus.name = "Passthrough"
    tree.root.children["Passthrough"] = bus
    assert found(board, tree) == []


# The guest's tree.


def test_the_order_of_nodes(tree):
    chosen = tree.root.children["chosen"]
    chosen.add("module@88000000").copy_from(chosen_module(0x8800_0000, "kernel"))
    board = Platform.from_tree(tree, "b")
    given = GuestInput(cfg('viommu = "smmuv3"'), (KERNEL, DTB), enhanced="enabled")
    built = build_dom0less(board, [given])
    assert list(built.guests()[0].root.children) == [
        "chosen", "psci", "cpus", "memory@40000000", "passthrough",
        "interrupt-controller@3001000", "timer", "sbsa-uart@22000000", "iommu@4040000",
        "hypervisor",
    ]  # fmt: skip
    given = GuestInput(cfg(), (KERNEL, DTB), enhanced="enabled")
    built = build_dom0less(board, [given], xen=V422)
    assert list(built.guests(V422)[0].root.children) == [
        "passthrough", "chosen", "cpus", "memory@40000000", "interrupt-controller@3001000",
        "timer", "hypervisor", "psci", "sbsa-uart@22000000",
    ]  # fmt: skip


def test_enhanced_needs_a_dom0(board):
    given = GuestInput(cfg(), (KERNEL, DTB), enhanced="enabled")
    assert refusal(lambda: build_dom0less(board, [given])).startswith("DT625: /chosen/domU1")
    given = replace(given, enhanced="no-xenstore")
    hypervisor = build_dom0less(board, [given]).guests()[0].node("/hypervisor")
    assert hypervisor.strings("compatible") == ("xen,xen-4.20", "xen,xen")
    assert hypervisor.cells("reg") == (
        0, 0x3800_0000, 0, 0x100_0000, 0, 0x5000_0000, 0, 0xB000_0000, 2, 0, 0xFE, 0,
    )  # fmt: skip
    assert hypervisor.cells("interrupts") == (1, 15, 0xF08)


def test_extended_regions_and_registers(board):
    """4.20 offers a guest its device's registers as free space; 4.22 does not."""
    given = GuestInput(cfg(), (KERNEL, DTB), enhanced="no-xenstore")
    made = build_dom0less(board, [given], xen=V422).guests(V422)[0]
    cells = made.node("/hypervisor").cells("reg")
    assert cells[4:8] == (0, 0x5000_0000, 0, 0x1000_0000)
    assert cells[8:10] == (0, 0x6020_0000)


def test_memory_of_two_banks_is_one_node(board):
    made = one(board, replace(cfg(), memory_mib=4096)).guests()[0]
    assert [n for n in made.root.children if n.startswith("memory")] == ["memory@40000000"]
    assert made.node("/memory@40000000").cells("reg") == (
        0, 0x4000_0000, 0, 0xC000_0000, 2, 0, 0, 0x4000_0000,
    )  # fmt: skip


def test_a_ramdisk(board):
    chosen = one(board, cfg(), KERNEL, DISK, DTB).guests()[0].node("/chosen")
    assert chosen.cells("linux,initrd-start") == (0, 0x4820_0000)
    assert chosen.cells("linux,initrd-end") == (0, 0x4820_0000 + 0x20_1234)
    small = replace(cfg(), memory_mib=64)
    chosen = one(board, small, KERNEL, DISK, DTB).guests()[0].node("/chosen")
    assert chosen.cells("linux,initrd-start") == (0, 0x43C0_0000)
    tiny = replace(cfg(), memory_mib=16)
    assert refusal(lambda: one(board, tiny, KERNEL, DISK, DTB)).startswith("DT603")


def test_the_buffer_of_xen_4_20_is_small(board):
    """Room for 4 KiB beside the partial tree: many vCPUs do not fit."""
    many = replace(cfg(), vcpus=64, maxvcpus=64)
    assert refusal(lambda: one(board, many, xen=V420)).startswith("DT627: /chosen/domU1: the guest")
    assert one(board, replace(cfg(), vcpus=16, maxvcpus=16), xen=V420)
    assert one(board, replace(cfg(), vcpus=128, maxvcpus=128), xen=V422)


def test_too_many_vcpus(board):
    config = replace(cfg(), vcpus=129, maxvcpus=129)
    assert refusal(lambda: one(board, config)).startswith("DT601")


def test_a_vsmmu_without_a_partial_tree(board):
    config = cfg('viommu = "smmuv3"', ())
    made = one(board, config, KERNEL).guests()[0]
    assert made.node("/iommu@4040000").u32("interrupt-parent") == 65000
    assert made.node("/interrupt-controller@3001000").phandle == 65000


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda n: n.props.pop("memory"), "DT624"),
        (lambda n: n.set_cells("memory", 4096), "DT624"),
        (lambda n: n.set_cells("memory", 0, 0), "DT602"),
        (lambda n: n.props.pop("cpus"), "DT624"),
        (lambda n: n.set_cells("cpus", 0), "DT601"),
        (lambda n: n.set_strings("viommu", "nope"), "DT624"),
        (lambda n: n.set_cells("nr_spis", 0), "DT305"),
        (lambda n: n.set_cells("nr_spis", 50), "DT305"),
        (lambda n: n.remove("module@90000000"), "DT624"),
        (lambda n: n.children["module@90000000"].props.pop("reg"), "DT624"),
        (lambda n: n.set_empty("direct-map"), "DT626"),
        (lambda n: n.set_strings("compatible", "other"), "DT624"),
    ],
)
def test_a_domain_that_xen_refuses(board, change, rule):
    built = one(board, cfg())
    node = built.domains[0].node
    change(node)
    platform = Platform.from_tree(built.tree, "b")
    partial = built.domains[0].fragment.tree
    assert refusal(lambda: xen_guest(platform, node, partial)).startswith(f"{rule}: ")


def test_the_2022_series_cannot_tell_two_smmus_apart(board):
    config = cfg('viommu = "smmuv3"', (CRYPTO, OTHER))
    assert one(board, config).domains[0].fragment.bindings.entries[1].vmaster_id == 1
    text = refusal(lambda: one(board, config, xen=XLNX))
    assert text.startswith(f"DT502: {OTHER}: StreamID 0x600 of ")


def test_the_2022_series_takes_ids_as_they_are(board):
    config = cfg('viommu = "smmuv3"', (ETHERNET, CRYPTO))
    built = one(board, config, xen=XLNX)
    made = built.guests(XLNX)[0]
    assert made.node("/passthrough/crypto@60000000").cells("iommus") == (65002, 0x600)
    bindings = built.domains[0].fragment.bindings
    assert [e.vmaster_id for e in bindings.entries] == [0x10, 0x11, 0x600]
    assert [d.vmaster_ids for d in bindings.devices] == [(0x10, 0x11), (0x600,)]
    assert bindings.viommu.phandle == 65002


# ImageBuilder.


def test_imagebuilder_lines(board):
    config = cfg('vcpus = 3\nramdisk = "a b.cpio"\ncmdline = "root=\'x\' a=$HOME `b`"')
    built = one(board, config, addresses=False)
    text, notices = imagebuilder(built.domains, ["g.dtb"], "host.dtb")
    said = "which ImageBuilder puts into U-Boot's script as it is:"
    assert [str(notice) for notice in notices] == [
        f"DT632 /chosen/domU1: the command line has '$', {said} U-Boot expands a variable there",
        f"DT632 /chosen/domU1: the command line has '`', {said} whether it stays depends on "
        "U-Boot's shell",
    ]
    assert text.splitlines()[1:] == [
        "DEVICE_TREE=host.dtb",
        "NUM_DOMUS=1",
        "DOMU_KERNEL[0]=/boot/Image",
        "DOMU_RAMDISK[0]='a b.cpio'",
        "DOMU_PASSTHROUGH_DTB[0]=g.dtb",
        f"DOMU_PASSTHROUGH_PATHS[0]={CRYPTO}",
        "DOMU_MEM[0]=256",
        "DOMU_VCPUS[0]=3",
        "DOMU_VPL011[0]=1",
        "DOMU_ENHANCED[0]=0",
        """DOMU_CMD[0]='root='"'"'x'"'"' a=$HOME `b`'""",
    ]


@pytest.mark.parametrize(
    ("cmdline", "name"),
    [
        ('a "b"', "a double quote"),
        ("a\nb", "a newline"),
        ("a\rb", "a carriage return"),
        ("a\x1bb", r"'\x1b'"),
    ],
)
def test_a_command_line_that_breaks_the_script_of_u_boot(board, cmdline, name):
    built = one(board, replace(cfg(), cmdline=cmdline), addresses=False)
    assert refusal(lambda: imagebuilder(built.domains, ["g.dtb"], "host.dtb")) == (
        f"DT632: /chosen/domU1: the command line has {name}, which ImageBuilder puts into U-Boot's "
        "script as it is, where it breaks the command; take it out of the command line"
    )


def test_a_long_command_line_without_addresses(board):
    text = refusal(lambda: one(board, replace(cfg(), cmdline="x" * 1024), addresses=False))
    assert text.startswith("DT628: /chosen/domU1: the kernel's command line has 1024 bytes")


def test_addresses_that_are_not_used_cannot_clash(board):
    twice = Module("device-tree", KERNEL.base, 0)
    built = one(board, cfg(), KERNEL, twice, addresses=False)
    assert not built.domains[0].node.children


def test_the_lines_need_a_device_tree(board):
    built = one(board, cfg('cmdline = "x"'), addresses=False)
    text, notices = imagebuilder(built.domains, ["g.dtb"])
    assert "DEVICE_TREE" not in text
    assert [str(notice) for notice in notices] == [
        "DT632 /chosen: the lines have no DEVICE_TREE, as the marked host tree is in no file: "
        "add it"
    ]


def placed(tree: Tree, *modules: Module, at: int, sizes: tuple[tuple[str, int], ...]) -> list[str]:
    board = Platform.from_tree(tree, "board.dtb")
    inputs = [GuestInput(cfg("", ()), modules, sizes=sizes)]
    built = build_dom0less(board, inputs, modules_at=at)
    return list(built.tree.node("/chosen/domU1").children)


def test_modules_are_placed_around_what_is_there(tree):
    memory = tree.root.children.get("reserved-memory") or tree.root.add("reserved-memory")
    memory.set_cells("#address-cells", 2)
    memory.set_cells("#size-cells", 2)
    memory.set_empty("ranges")
    memory.add("tee@90300000").set_cells("reg", 0, 0x9030_0000, 0, 0x1000)
    sizes = (("kernel", 0x1000),)
    assert placed(tree, at=0x9000_0000, sizes=sizes) == ["module@90000000"]
    assert placed(tree, at=0x9020_0000, sizes=(("kernel", 0x10_1000),)) == ["module@90400000"]
    disk = Module("ramdisk", 0x9040_0800, 0x100)
    assert placed(tree, disk, at=0x9030_0000, sizes=sizes) == [
        "module@90600000", "module@90400800",
    ]  # fmt: skip
    tree.memreserve.append((0x9060_0000, 0x40_0000))
    assert placed(tree, disk, at=0x9030_0000, sizes=sizes) == [
        "module@90a00000", "module@90400800",
    ]  # fmt: skip
    chosen = tree.root.children["chosen"]
    chosen.set_cells("#address-cells", 2)
    chosen.set_cells("#size-cells", 2)
    old = chosen.add("dom0")
    old.set_strings("compatible", "multiboot,kernel", "multiboot,module")
    old.set_cells("reg", 0, 0x90A0_0000, 0, 0x20_0001)
    assert placed(tree, at=0x90A0_0000, sizes=sizes) == ["module@90e00000"]


def test_a_device_that_is_marked_already(tree):
    tree.node(CRYPTO).set_empty("xen,passthrough")
    built = one(Platform.from_tree(tree, "board.dtb"), cfg("", (CRYPTO, ETHERNET)))
    assert by_rule(built, "DT633") == [
        f"DT633 {CRYPTO}: is marked xen,passthrough in the host tree already; whether another "
        "domain is given it is not known"
    ]


@sliced(60)
@given(words=st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=40))
def test_a_shell_reads_what_was_written(words):
    import shlex

    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = f'DOMU_CMD[0]={shlex.quote(words)}\nprintf %s "${{DOMU_CMD[0]}}"\n'
    done = subprocess.run([bash], input=script.encode(), capture_output=True, check=True)
    assert done.stdout == words.encode()


def test_what_imagebuilder_has_no_variable_for(board):
    built = one(board, cfg('viommu = "smmuv3"\nnr_spis = 300\ncmdline = "x"'), addresses=False)
    _, notices = imagebuilder(built.domains, ["g.dtb"], "host.dtb")
    assert [str(notice) for notice in notices] == [
        f"DT632 /chosen/domU1: {name} has no variable of ImageBuilder: write the line `fdt set "
        f"/chosen/domU0 {name} {value}` into the file that APPEND_EXTRA_CMDS names"
        for name, value in (("viommu", "smmuv3"), ("nr_spis", "<0x12c>"))
    ]


# Hostile trees.


@sliced(150)
@given(data=st.data())
def test_mutated_partial_trees(samples, data):
    board = Platform.from_tree(blob.read((samples / "board.dtb").read_bytes(), "b"), "b")
    built = one(board, cfg('viommu = "smmuv3"', (CRYPTO, ETHERNET)))
    partial = built.domains[0].fragment.tree.copy()
    nodes = list(partial.walk())
    for _ in range(data.draw(st.integers(1, 4))):
        node = data.draw(st.sampled_from(nodes))
        names = sorted({*node.props, "phandle", "iommus", "xen,reg", "xen,path", "#size-cells"})
        name = data.draw(st.sampled_from(names))
        if data.draw(st.booleans()):
            node.props.pop(name, None)
        else:
            node.props[name] = data.draw(st.binary(max_size=28))
    platform = Platform.from_tree(built.tree, "b")
    xen = data.draw(st.sampled_from(sorted(XENS)))
    node = built.tree.node("/chosen/domU1")
    check_fragment(platform, partial, Setting(XENS[xen], viommu=True))
    try:
        made = xen_guest(platform, node, partial, xen=XENS[xen])
    except DtError:
        return
    phandles = [n.phandle for n in made.walk() if n.phandle is not None]
    assert len(phandles) == len(set(phandles))
    assert not any(name.startswith("xen,") for n in made.walk() for name in n.props)


def test_every_rule_has_an_example():
    from dt_tools.dom0less import ruleset
    from dt_tools.rules import declared

    rules = [r for r in vars(ruleset).values() if getattr(r, "id", "").startswith("DT6")]
    assert [r.id for r in rules] == [f"DT{number}" for number in range(620, 635)]
    assert all(r.id in declared() and r.why and ": " in r.example for r in rules)
