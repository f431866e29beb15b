# SPDX-License-Identifier: BSD-2-Clause
"""The partial tree and the completed configuration: together they make the guest of the list."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dt_tools import blob
from dt_tools.completed import HEADER, Completed, complete
from dt_tools.errors import DtError, Refusal
from dt_tools.guest import GuestTree, Options, build_guest
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree
from tests.counts import sliced
from xl_configs import Dialect, GuestConfig, Iomem, examine, load, parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BASE = 'name = "g"\nkernel = "k"\nmemory = 256\n'
VSMMU = BASE + 'viommu = "smmuv3"\n'
GIC, SMMU, SECOND, MBI = 1, 2, 3, 4


def host() -> Tree:
    """A GIC, another controller and two SMMUv3 that have the StreamID 0x600 both."""
    tree = Tree()
    root = tree.root
    root.set_cells("#address-cells", 2)
    root.set_cells("#size-cells", 2)
    root.set_cells("interrupt-parent", GIC)
    controller(root, "gic@8000000", "arm,gic-v3", GIC, 3)
    controller(root, "mbi@8100000", "test,mbi", MBI, 1)
    for base, phandle in ((0x5000000, SMMU), (0x5100000, SECOND)):
        smmu = root.add(f"iommu@{base:x}")
        smmu.set_strings("compatible", "arm,smmu-v3")
        smmu.set_cells("reg", 0, base, 0, 0x20000)
        smmu.set_cells("#iommu-cells", 1)
        smmu.set_cells("phandle", phandle)
    return tree


def controller(root: Node, name: str, compatible: str, phandle: int, cells: int) -> None:
    node = root.add(name)
    node.set_strings("compatible", compatible)
    node.set_cells("#interrupt-cells", cells)
    node.set_empty("interrupt-controller")
    node.set_cells("phandle", phandle)


def dma(root: Node, base: int, *iommus: int, spi: int | None = None, name: str = "") -> Node:
    node = root.add(name or f"dma@{base:x}")
    node.set_cells("reg", 0, base, 0, 0x1000)
    node.set_cells("iommus", *iommus)
    if spi is not None:
        node.set_cells("interrupts", 0, spi, 4)
    node.set_empty("xen,passthrough")
    return node


def platform(tree: Tree) -> Platform:
    return Platform.from_tree(tree, "host.dtb")


def engines() -> Platform:
    """Two engines with one StreamID, the second on RAM of the guest."""
    tree = host()
    dma(tree.root, 0x20000000, SMMU, 0x600, SMMU, 0x601, SMMU, 0x600, spi=8)
    dma(tree.root, 0x40000000, SECOND, 0x600, spi=9)
    return platform(tree)


ENGINES = 'dtdev = [ "/dma@20000000", "/dma@40000000" ]\n'


def config(text: str) -> GuestConfig:
    return load(text.encode(), "g.cfg")


def made(text: str, board: Platform, **options: object) -> Completed:
    done = complete(config(text), board, "part.dtb", options=Options(**options))
    check(done, config(text), board)
    return done


def refusal(text: str, board: Platform, **options: object) -> str:
    with pytest.raises(DtError) as error:
        complete(config(text), board, "part.dtb", options=Options(**options))
    return str(error.value)


def flat(tree: Tree) -> list[tuple[str, list[tuple[str, bytes]]]]:
    return [(node.path, list(node.props.items())) for node in tree.walk()]


def built(config: GuestConfig, board: Platform, partial: Tree | None = None) -> GuestTree:
    return build_guest(config, platform=board, partial=partial, ramdisk_size=5000)


def check(done: Completed, given: GuestConfig, board: Platform) -> None:
    """All that is promised of any completed guest, by way of the bytes of both files."""
    text = done.cfg()
    again = load(text, "full.cfg")
    assert replace(again, warnings=()) == replace(done.config, warnings=())
    assert again.device_tree == "part.dtb"
    partial = blob.read(blob.write(done.partial))
    first, second = built(given, board), built(again, board, partial)
    assert flat(first.tree) == flat(second.tree)
    assert blob.write(first.tree) == blob.write(second.tree)
    assert first.bindings.entries == second.bindings.entries
    assert (first.irqs, first.nr_spis) == (second.irqs, second.nr_spis)
    check_partial(partial, done.guest, board)
    check_config(again, given, first)


def check_partial(partial: Tree, guest: GuestTree, board: Platform) -> None:
    """The streams of each device are the host's, as they stand there."""
    assert list(partial.root.children) == ["passthrough"]
    masters = {master.path: master for master in board.masters}
    phandles = {smmu.path: smmu.phandle for smmu in board.smmus}
    seen = set()
    for device in guest.bindings.devices:
        node = partial.node(device.guest_path)
        wanted = [(phandles[s.smmu_path], s.stream_id) for s in masters[device.path].streams]
        wanted = list(dict.fromkeys(wanted)) if guest.bindings.viommu else []
        cells = node.cells("iommus") or ()
        assert list(zip(cells[::2], cells[1::2], strict=True)) == wanted
        seen.add(node.path)
    holders = {n.path for n in partial.walk() if "iommus" in n.props or "iommu-map" in n.props}
    assert holders == (seen if guest.bindings.viommu else set())


def check_config(full: GuestConfig, given: GuestConfig, guest: GuestTree) -> None:
    """dtdev as it was; irqs and iomem hold what was there and what the devices need, once."""
    assert full.dtdev == given.dtdev
    assert full.irqs == guest.irqs
    assert set(full.irqs) >= set(given.irqs)
    assert len(set(full.iomem)) == len(full.iomem)
    needed = {Iomem(r.host // 4096, r.size // 4096, r.guest // 4096) for r in guest.iomem}
    assert set(full.iomem) == needed | set(given.iomem)


def test_with_a_vsmmu_the_partial_has_the_hosts_iommus() -> None:
    done = made(VSMMU + ENGINES, engines())
    bus = done.partial.node("/passthrough")
    assert [n.cells("iommus") for n in bus.children.values()] == [
        (SMMU, 0x600, SMMU, 0x601),
        (SECOND, 0x600),
    ]
    assert list(bus.children) == ["dma@20000000", "dma@6000000"]
    assert done.cfg().decode() == HEADER + (
        'name = "g"\n\nkernel = "k"\ndevice_tree = "part.dtb"\n\nmemory = 256\n\n'
        'viommu = "smmuv3"\ndtdev = ["/dma@20000000", "/dma@40000000"]\n'
        'iomem = ["0x20000,0x1", "0x40000,0x1@0x6000"]\nirqs = [40, 41]\n'
    )


def test_without_one_it_has_none_and_xl_assigns_by_dtdev() -> None:
    done = made(BASE + ENGINES, engines())
    assert not [n for n in done.partial.walk() if "iommus" in n.props]
    outcome = examine(parse(done.cfg()), "full.cfg", Dialect.STOCK)
    assert (outcome.exit_code, outcome.report) == (0, ())
    paths = [{"path": "/dma@20000000"}, {"path": "/dma@40000000"}]
    assert outcome.domain["dtdevs"] == paths


def test_xl_reads_the_domain_it_read_before_and_the_four_keys() -> None:
    text = VSMMU + ENGINES + 'vcpus = 2\nvif = [ "bridge=br0" ]\nzzz = [ 1, "a" ]\nirqs = [ 99 ]\n'
    done = made(text, engines())
    before, after = (
        examine(parse(data), "g.cfg", Dialect.STOCK).domain for data in (text.encode(), done.cfg())
    )
    keys = ("irqs", "iomem", "device_tree")
    assert {k: v for k, v in after["b_info"].items() if k not in keys} == {
        k: v for k, v in before["b_info"].items() if k not in keys
    }
    assert {k: v for k, v in after.items() if k != "b_info"} == {
        k: v for k, v in before.items() if k != "b_info"
    }
    assert after["b_info"]["irqs"] == [40, 41, 99]


def test_what_the_configuration_has_is_kept_once() -> None:
    text = VSMMU + ENGINES + (
        'irqs = [ 99, 41, 99 ]\niomem = [ "0x70000,2@0x3000", "20000,1", "70000,0x2@3000" ]\n'
    )  # fmt: skip
    full = made(text, engines()).config
    assert full.irqs == (40, 41, 99)
    assert full.iomem[0] == Iomem(0x20000, 1, 0x20000)
    assert full.iomem[2:] == (Iomem(0x70000, 2, 0x3000),)
    assert len(full.iomem) == 3


@pytest.mark.parametrize(
    "entries",
    [
        ("0x70001,1@0x6000", "0x70000,2@0x6100"),
        ("0x70000,2@0x6000", "0x60000,2@0x6001"),
        ("0x70000,0@0x6000", "0x60000,2@0x6000"),
    ],
)
def test_where_ranges_overlap_the_order_is_the_configurations(entries: tuple[str, str]) -> None:
    listed = ", ".join(f'"{entry}"' for entry in entries)
    full = made(f"{VSMMU}{ENGINES}iomem = [ {listed} ]\n", engines()).config
    assert full.iomem[:2] == config(f"{VSMMU}iomem = [ {listed} ]\n").iomem


def test_iomem_of_the_configuration_places_the_device() -> None:
    full = made(f'{VSMMU}{ENGINES}iomem = [ "0x40000,0x10@0x7000" ]\n', engines())
    assert full.config.iomem == (Iomem(0x20000, 1, 0x20000), Iomem(0x40000, 0x10, 0x7000))
    assert full.partial.node("/passthrough/dma@7000000") is not None


def test_a_completed_configuration_completes_to_itself() -> None:
    first = made(VSMMU + ENGINES, engines())
    second = complete(load(first.cfg(), "full.cfg"), engines(), "part.dtb")
    assert second.cfg() == first.cfg()
    assert blob.write(second.partial) == blob.write(first.partial)


def test_two_guests_of_one_process_share_nothing() -> None:
    board = engines()
    alone = complete(config(VSMMU + ENGINES), engines(), "a.dtb")
    complete(config(VSMMU + 'dtdev = [ "/dma@40000000" ]\n'), board, "b.dtb")
    after = complete(config(VSMMU + ENGINES), board, "a.dtb")
    assert (alone.cfg(), blob.write(alone.partial)) == (after.cfg(), blob.write(after.partial))
    assert alone.guest.bindings == after.guest.bindings


def test_a_guest_name_that_is_another_devices_on_the_host() -> None:
    """The first device's bus address is not the CPU's, which is the second one's unit address."""
    tree = host()
    bus = tree.root.add("bus@0")
    bus.set_cells("#address-cells", 2)
    bus.set_cells("#size-cells", 2)
    bus.set_cells("ranges", 0, 0x1000, 0, 0x20000000, 0, 0x1000)
    dma(bus, 0x1000, SMMU, 0x600)
    dma(tree.root, 0x30000000, SECOND, 0x600, name="dma@20000000")
    done = made(VSMMU + 'dtdev = [ "/bus@0/dma@1000", "/dma@20000000" ]\n', platform(tree))
    bus = done.partial.node("/passthrough")
    assert list(bus.children) == ["dma-2@20000000", "dma@30000000"]
    assert [n.cells("iommus") for n in bus.children.values()] == [(SMMU, 0x600), (SECOND, 0x600)]


def test_interrupts_of_another_controller_are_dropped_or_refused() -> None:
    tree = host()
    node = dma(tree.root, 0x20000000, SMMU, 0x600)
    node.set_cells("interrupts-extended", GIC, 0, 8, 4, MBI, 7)
    text = VSMMU + 'dtdev = [ "/dma@20000000" ]\n'
    done = made(text, platform(tree))
    assert done.config.irqs == (40,)
    assert [n.rule for n in done.guest.notices] == ["DT302"]
    assert refusal(text, platform(tree), interrupts="refuse") == (
        "DT302: /dma@20000000: interrupts-extended: 1 of /mbi@8100000 (not-gic): not SPIs of the "
        "GIC; assign a device whose interrupts are SPIs of the GIC, or let them be dropped"
    )
    made(VSMMU + ENGINES, engines(), interrupts="refuse")


def providers_host() -> Tree:
    tree = host()
    clock = tree.root.add("clock")
    clock.set_strings("compatible", "fixed-clock")
    clock.set_cells("#clock-cells", 0)
    clock.set_cells("clock-frequency", 5)
    clock.set_cells("phandle", 9)
    for base, spi in ((0x20000000, 8), (0x40000000, 9)):
        dma(tree.root, base, SMMU, base >> 28, spi=spi).set_cells("clocks", 9)
    return tree


@pytest.mark.parametrize("viommu", [True, False], ids=["vsmmu", "none"])
@pytest.mark.parametrize("extra", ["", 'iomem = [ "0x40000,0x10@0x7000", "0x40000,1@0x7000" ]\n'])
def test_stand_ins_for_clocks(viommu: bool, extra: str) -> None:
    text = (VSMMU if viommu else BASE) + ENGINES + extra
    board = platform(providers_host())
    plain = complete(config(text), board, "part.dtb")
    done = complete(config(text), board, "part.dtb", options=Options(providers="stub"))
    assert done.cfg() == plain.cfg()
    nodes = done.partial.node("/passthrough").children
    assert [node.cells("clocks") for node in nodes.values()] == [(64998,), (64998,), None]
    assert nodes["clock-0"].u32("clock-frequency") == 5
    # The guest that xl makes of the two files is the guest that is told of.
    partial = blob.read(blob.write(done.partial))
    again = built(load(done.cfg(), "full.cfg"), board, partial)
    assert flat(again.tree)[-6:] == flat(done.guest.tree)[-6:]
    assert [d.regs for d in done.guest.bindings.devices] == [
        d.regs for d in plain.guest.bindings.devices
    ]
    rules = [n.rule for n in done.guest.notices]
    assert rules.count("DT220") == 2
    assert "DT201" not in rules
    assert set(rules) >= {n.rule for n in plain.guest.notices} - {"DT201"}


def test_providers_are_refused_by_name() -> None:
    board = platform(providers_host())
    assert refusal(VSMMU + ENGINES, board, providers="refuse") == (
        "DT201: /dma@20000000: clocks: /clock is not assigned; assign the provider too, or let "
        "the property be dropped (--providers drop)"
    )


def test_refusals() -> None:
    assert refusal(VSMMU, engines()) == (
        "dtdev: /: no devices: there is no partial tree to write; "
        "list the host paths of the guest's devices"
    )
    unknown = refusal(VSMMU + ENGINES + 'pci = [ "01:00.0" ]\n', engines())
    assert unknown.startswith("DT520: /: 0000:01:00.0: ")
    listed = ", ".join(f'"{0x80000 + 2 * at:x},1@{0x3000 + 2 * at:x}"' for at in range(1023))
    assert refusal(f"{VSMMU}{ENGINES}iomem = [ {listed} ]\n", engines()) == (
        "DT212: /: 1025 iomem entries, more than 1024; join adjacent ranges"
    )


def test_a_device_tree_of_the_configuration_is_not_looked_at() -> None:
    text = VSMMU + ENGINES + 'device_tree = "hand.dtb"\n'
    assert complete(config(text), engines(), "part.dtb").config.device_tree == "part.dtb"


@pytest.mark.parametrize("name", ["a b.dtb", "./../\u00e9.dtb", 'q"\\\n.dtb', "\udcff.dtb"])
def test_any_name_of_the_partial_tree_comes_back(name: str) -> None:
    done = complete(config(VSMMU + ENGINES), engines(), name)
    assert load(done.cfg(), "full.cfg").device_tree == name


FRAMES = st.integers(0, 40)


@st.composite
def boards(draw: st.DrawFn) -> tuple[Platform, str]:
    """Devices anywhere, also on the guest's own windows, with streams that repeat, and pins."""
    tree = host()
    bases = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=5, unique=True))
    for at, base in enumerate(bases):
        stream = st.tuples(st.sampled_from((SMMU, SECOND)), st.integers(0, 3))
        streams = draw(st.lists(stream, min_size=1, max_size=3))
        cells = [cell for pair in streams for cell in pair]
        node = dma(tree.root, base, *cells, spi=draw(st.none() | st.just(at + 10)))
        node.set_cells("reg", 0, base, 0, draw(st.sampled_from((0x100, 0x1000, 0x3800))))
    listed = ", ".join(f'"/dma@{base:x}"' for base in draw(st.permutations(bases)))
    pin = st.builds("{:x},{:x}@{:x}".format, st.sampled_from(PINNED), FRAMES, st.sampled_from(GFNS))
    pins = ", ".join(f'"{entry}"' for entry in draw(st.lists(pin, max_size=4)))
    irqs = draw(st.lists(st.integers(40, 60), max_size=4))
    text = draw(st.sampled_from((BASE, VSMMU))) + draw(st.sampled_from(("", 'vuart="sbsa_uart"\n')))
    text += draw(st.sampled_from(("", 'gic_version = "v2"\n', "nr_spis = 99\n")))
    return platform(tree), f"{text}dtdev=[{listed}]\niomem=[{pins}]\nirqs={irqs}\n"


PLACES = (0x20000000, 0x20004000, 0x3001000, 0x4040000, 0x40000000, 0x60000000, 0x22000000)
PINNED = (*(base >> 12 for base in PLACES), 0x70000)
GFNS = (0x6000, 0x6010, 0x20000, 0x20004, 0x40000, 0x4041, 0x70000)


@sliced(400)
@given(drawn=boards())
def test_any_guest_is_the_guest_of_its_device_list(drawn: tuple[Platform, str]) -> None:
    board, text = drawn
    guest = config(text)
    try:
        built(guest, board)
    except Refusal as alone:
        assert refusal(text, board) == str(alone)  # noqa: PT017
        return
    done = complete(guest, board, "part.dtb")
    check(done, guest, board)
    again = complete(done.config, board, "part.dtb")
    assert again.cfg() == done.cfg()
    assert flat(again.partial) == flat(done.partial)


# Real boards.

BOARDS = (
    "amd-overdrive-rev-b1", "armada-8040-mcbin", "fsl-lx2160a-rdb", "fvp-base-revc",
    "hamoa-iot-evk-el2", "hip07-d05", "imx95-19x19-evk", "juno-r1",
    "legacy-map-sc7280-idp2-612", "morello-fvp", "morello-sdp", "rk3588-rock-5b",
    "socfpga_agilex5_socdk", "tegra264-p3971-0089+p3834-0008",
    "versal-net-vn-x-b2197-01-revA", "zynqmp-zcu102-rev1.1",
)  # fmt: skip
# dtc checks that are errors in a tree that is written here.
ERRORS = (
    "phandle_references", "reg_format", "ranges_format", "addr_size_cells", "interrupts_property",
    "interrupt_provider", "msi_parent_property", "clocks_property", "resets_property",
    "power_domains_property", "duplicate_node_names", "explicit_phandles",
)  # fmt: skip
# The GIC and, with a vSMMU, the SMMUs are named and not there: the toolstack puts them in place.
QUIET = ("unique_unit_address", "unit_address_vs_reg", "avoid_unnecessary_addr_size",
         "simple_bus_reg", "avoid_default_addr_size", "graph_endpoint", "interrupts_property",
         "iommus_property")  # fmt: skip


def listing(paths: Sequence[str], viommu: bool) -> str:
    listed = ", ".join(f'"{path}"' for path in paths)
    return f"{VSMMU if viommu else BASE}dtdev = [ {listed} ]\n"


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("viommu", [True, False], ids=["vsmmu", "none"])
def test_boards(corpus: Path, name: str, viommu: bool, tmp_path: Path) -> None:
    """Each master that can be built alone, then random sets of those."""
    data = (corpus / "dtbs" / f"{name}.dtb").read_bytes()
    board = Platform.from_tree(blob.read(data, name), name)
    good = []
    for master in board.masters:
        try:
            made(listing([master.path], viommu), board)
        except Refusal as error:
            assert refused(listing([master.path], viommu), board) == str(error)  # noqa: PT017
        else:
            good.append(master.path)
    rnd = random.Random(name)
    for _ in range(min(8, 2 * len(good))):
        paths = rnd.sample(good, rnd.randint(1, min(len(good), 12)))
        try:
            done = made(listing(paths, viommu), board)
        except Refusal as error:
            assert refused(listing(paths, viommu), board) == str(error)  # noqa: PT017
        else:
            assert dtc(done.partial, tmp_path) == ""


def refused(text: str, board: Platform) -> str:
    """What the guest of the device list is refused with."""
    with pytest.raises(Refusal) as error:
        built(config(text), board)
    return str(error.value)


def dtc(tree: Tree, tmp_path: Path) -> str:
    program = shutil.which("dtc")
    if program is None:
        return ""
    place = tmp_path / "part.dtb"
    place.write_bytes(blob.write(tree))
    options = [f"-E{name}" for name in ERRORS if name not in QUIET]
    options += [f"-Wno-{name}" for name in QUIET]
    command = [program, "-q", "-I", "dtb", "-O", "dts", "-o", "/dev/null", *options, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "" if done.returncode == 0 else done.stderr or f"dtc left with {done.returncode}"
