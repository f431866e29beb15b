# SPDX-License-Identifier: BSD-2-Clause
"""Guests with assigned devices on real boards, checked with dtc where it is installed."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from dt_tools import blob
from dt_tools.binding import Bindings
from dt_tools.errors import Refusal
from dt_tools.guest import GuestTree, build_guest
from dt_tools.platform import Platform
from xl_configs import load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dt_tools.tree import Tree

ENGINES = tuple(f"/soc/crypto@{high}d0000000" for high in ("", "8", "400", "408"))
SMMUS = tuple(f"/iommu@{high}d0040000" for high in ("", "8", "400", "408"))
# dtc checks that are errors in a generated tree, and those that only speak of style.
ERRORS = (
    "phandle_references", "reg_format", "ranges_format", "addr_size_cells", "iommus_property",
    "interrupts_property", "interrupt_provider", "msi_parent_property", "clocks_property",
    "resets_property", "power_domains_property", "duplicate_node_names", "explicit_phandles",
)  # fmt: skip
QUIET = ("unique_unit_address", "unit_address_vs_reg", "avoid_unnecessary_addr_size",
         "simple_bus_reg", "avoid_default_addr_size", "graph_endpoint")  # fmt: skip


def dtc(tree: Tree, tmp_path: Path) -> str:
    """What dtc has to say; "" when it takes the tree."""
    program = shutil.which("dtc")
    if program is None:
        pytest.skip("dtc is not installed")
    place = tmp_path / "guest.dtb"
    place.write_bytes(blob.write(tree))
    options = [f"-E{name}" for name in ERRORS] + [f"-Wno-{name}" for name in QUIET]
    command = [program, "-q", "-I", "dtb", "-O", "dts", "-o", "/dev/null", *options, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "" if done.returncode == 0 else done.stderr or f"dtc left with {done.returncode}"


def board(corpus: Path, name: str) -> Platform:
    return Platform.from_tree(blob.read((corpus / "dtbs" / name).read_bytes(), name), name)


@pytest.fixture(scope="module")
def hip07(corpus: Path) -> Platform:
    return board(corpus, "hip07-d05.dtb")


def guest(platform: Platform, devices: Iterable[str], viommu: str = "smmuv3") -> GuestTree:
    listed = ", ".join(f'"{path}"' for path in devices)
    text = f'name = "g"\nkernel = "k"\nmemory = 512\nviommu = "{viommu}"\ndtdev = [ {listed} ]\n'
    return build_guest(load(text.encode(), "g.cfg"), platform=platform)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_hip07_engines_in_every_order(hip07: Platform, count: int, tmp_path: Path) -> None:
    for order, devices in enumerate(itertools.permutations(ENGINES, count)):
        built = guest(hip07, devices)
        check_hip07(built, devices)
        if order == 0:
            assert dtc(built.tree, tmp_path) == ""


def check_hip07(built: GuestTree, devices: tuple[str, ...]) -> None:
    vsmmus = [n for n in built.tree.walk() if n.is_compatible("arm,smmu-v3")]
    assert [(n.path, n.phandle, n.u32("#iommu-cells")) for n in vsmmus] == [
        ("/iommu@4040000", 65002, 1)
    ]
    wanted = [(i, SMMUS[ENGINES.index(path)], 0x600, (path,)) for i, path in enumerate(devices)]
    entries = built.bindings.entries
    assert [(e.vmaster_id, e.smmu, e.pmaster_id, e.devices) for e in entries] == wanted
    bus = built.tree.node("/passthrough")
    assert len(bus.children) == len(devices)
    for index, (path, made) in enumerate(zip(devices, built.bindings.devices, strict=True)):
        node = built.tree.node(made.guest_path)
        assert made.path == path
        assert node.cells("iommus") == (65002, index)
        assert "dma-coherent" in node.props
        assert not [name for name in node.props if name.startswith("interrupt")]
        far = path in ENGINES[2:]
        assert all((reg.guest != reg.host) is far for reg in made.regs)
        assert all(reg.guest + reg.size <= 1 << 40 for reg in made.regs)
        rules = [n.rule for n in built.notices if n.path == path]
        assert ("DT207" in rules) is far
        assert rules.count("DT302") == 1
    assert Bindings.from_json(built.bindings.to_json()) == built.bindings


def test_hip07_is_the_same_on_every_run_and_in_no_way_shared(hip07: Platform) -> None:
    first = guest(hip07, ENGINES)
    second = guest(hip07, ENGINES[:1])
    again = guest(hip07, ENGINES)
    assert blob.write(first.tree) == blob.write(again.tree)
    assert first.bindings.to_json() == again.bindings.to_json()
    assert [e.smmu for e in second.bindings.entries] == [SMMUS[0]]


BOARDS = (
    "amd-overdrive-rev-b1", "armada-8040-mcbin", "fsl-lx2160a-rdb", "fvp-base-revc",
    "hamoa-iot-evk-el2", "hip07-d05", "imx95-19x19-evk", "juno-r1",
    "legacy-map-sc7280-idp2-612", "morello-fvp", "morello-sdp", "rk3588-rock-5b",
    "socfpga_agilex5_socdk", "tegra264-p3971-0089+p3834-0008",
    "versal-net-vn-x-b2197-01-revA", "zynqmp-zcu102-rev1.1",
)  # fmt: skip


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("viommu", ["smmuv3", "none"])
def test_every_master_of_a_board_is_built_or_refused(
    corpus: Path, name: str, viommu: str, tmp_path: Path
) -> None:
    """Alone, and then all that can be had together, which dtc reads."""
    platform = board(corpus, f"{name}.dtb")
    good, refused = [], {}
    for master in platform.masters:
        try:
            guest(platform, [master.path], viommu)
            good.append(master.path)
        except Refusal as error:
            refused[master.path] = error
    assert all(e.rule[:2] == "DT" and e.path[0] == "/" and e.fix for e in refused.values())
    assert len(good) + len(refused) == len(platform.masters)
    if not good:
        return
    try:
        built = guest(platform, good, viommu)
    except Refusal as error:
        assert error.rule in ("DT110", "DT303", "DT207")  # noqa: PT017
        built = guest(platform, good[:1], viommu)
    assert dtc(built.tree, tmp_path) == ""
    check_consistent(built, platform, viommu)


def check_consistent(built: GuestTree, platform: Platform, viommu: str) -> None:
    """Every reference in the guest is the guest's, every stream the host's."""
    masters = {master.path: master for master in platform.masters}
    for made in built.bindings.devices:
        node = built.tree.node(made.guest_path)
        cells = node.cells("iommus") or ()
        if viommu == "none":
            assert cells == ()
            continue
        entries = [built.bindings.resolve(vid) for vid in cells[1::2]]
        streams = dict.fromkeys((s.smmu_path, s.stream_id) for s in masters[made.path].streams)
        assert [(e.smmu, e.pmaster_id) for e in entries] == list(streams)
        assert all(made.path in entry.devices for entry in entries)
    for reg in built.iomem:
        assert reg.host % 4096 == reg.guest % 4096 == reg.size % 4096 == 0
    phandles = [n.phandle for n in built.tree.walk() if n.phandle is not None]
    assert len(phandles) == len(set(phandles))


def test_what_can_be_assigned_behind_a_vsmmu(corpus: Path) -> None:
    """A fall of these numbers means that something is refused that was built before."""
    counts = {}
    for name in BOARDS:
        platform = board(corpus, f"{name}.dtb")
        rules: dict[str, int] = {}
        for master in platform.masters:
            try:
                guest(platform, [master.path])
                rule = "built"
            except Refusal as error:
                rule = error.rule
            rules[rule] = rules.get(rule, 0) + 1
        if "built" in rules:
            counts[name] = rules
    assert counts == {
        "hip07-d05": {"built": 4},
        "morello-sdp": {"built": 1, "DT107": 2},
        "socfpga_agilex5_socdk": {"built": 5, "DT105": 3},
        "tegra264-p3971-0089+p3834-0008": {"built": 2, "DT107": 2, "DT105": 6, "DT104": 1},
        "versal-net-vn-x-b2197-01-revA": {"built": 2, "DT105": 1},
    }
