# SPDX-License-Identifier: BSD-2-Clause
"""Every master of every board as the device of a dom0less guest."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from dt_tools import blob
from dt_tools.dom0less import GuestInput, Module, build_dom0less, check_fragment
from dt_tools.dom0less.rules import Setting
from dt_tools.errors import Refusal
from dt_tools.guest import build_guest
from dt_tools.platform import SMMU_V3, Platform
from xl_configs import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dt_tools.dom0less import Dom0less
    from xl_configs import GuestConfig

# Far above what boards reserve.
MODULES = (
    Module("kernel", 0xF_5000_0000, 0x100_0000),
    Module("device-tree", 0xF_5600_0000, 0),
)
# Refused here and not for a guest of xl, because Xen itself builds the tree.
ONLY_HERE = {"DT621", "DT622", "DT629"}


def boards(place: Path) -> Iterator[Platform]:
    for file in sorted(place.glob("*.dtb")):
        data = file.read_bytes()
        if len(data) > 16:
            yield Platform.from_tree(blob.read(data, file.name), file.name)


def configs(platform: Platform) -> Iterator[GuestConfig]:
    kinds = {smmu.path: smmu.kind for smmu in platform.smmus}
    for master in platform.masters:
        if master.status == "okay" and master.streams:
            v3 = {kinds[s.smmu_path] for s in master.streams} == {SMMU_V3}
            viommu = "smmuv3" if v3 else "none"
            text = f'name="g"\nkernel="k"\nmemory=512\nviommu="{viommu}"\ndtdev=["{master.path}"]\n'
            yield load(text.encode(), "g.cfg")


def check_same_device(built: Dom0less, config: GuestConfig, platform: Platform) -> None:
    """The device of Xen's tree is that of libxl's: name, order, registers, interrupts, ids."""
    xl = build_guest(config, platform=platform)
    fragment = built.domains[0].fragment
    assert fragment.devices == xl.bindings.devices
    assert fragment.bindings.entries == xl.bindings.entries
    guest = built.guests()[0]
    for device in xl.bindings.devices:
        pairs = zip(
            xl.tree.node(device.guest_path).walk(),
            guest.node(device.guest_path).walk(),
            strict=True,
        )
        for theirs, ours in pairs:
            props = dict(ours.props)
            if "interrupt-parent" not in theirs.props:
                # The root of a dom0less guest has none.
                parent = props.pop("interrupt-parent", None)
                assert (parent is None) == ("interrupts" not in props)
            assert list(props.items()) == list(theirs.props.items())


def check_rules(built: Dom0less, config: GuestConfig) -> None:
    platform = Platform.from_tree(built.tree, "merged")
    domain = built.domains[0]
    setting = Setting(viommu=config.viommu == "smmuv3")
    found = check_fragment(platform, domain.fragment.tree, setting)
    assert [f for f in found if f.severity != "note"] == []
    phandles = [n.phandle for n in domain.fragment.tree.walk() if n.phandle is not None]
    assert len(phandles) == len(set(phandles))
    assert all(0 < phandle < 64999 for phandle in phandles)


def check_dtc(data: bytes, tmp_path: Path) -> None:
    program = shutil.which("dtc")
    if program is None:
        return
    file = tmp_path / "partial.dtb"
    file.write_bytes(data)
    command = [program, "-q", "-I", "dtb", "-O", "dtb", "-o", "/dev/null", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def refused_here(platform: Platform, config: GuestConfig) -> str | None:
    try:
        build_dom0less(platform, [GuestInput(config, MODULES)])
    except Refusal as refusal:
        return refusal.rule
    return None


def refused_by_libxl(platform: Platform, config: GuestConfig) -> str | None:
    try:
        build_guest(config, platform=platform)
    except Refusal as refusal:
        return refusal.rule
    return None


def walk_boards(place: Path, tmp_path: Path) -> tuple[int, int]:
    good = refused = 0
    for platform in boards(place):
        for config in configs(platform):
            rule = refused_here(platform, config)
            if rule is not None:
                refused += 1
                assert rule in ONLY_HERE or rule == refused_by_libxl(platform, config)
                continue
            built = build_dom0less(platform, [GuestInput(config, MODULES)])
            check_same_device(built, config, platform)
            check_rules(built, config)
            check_dtc(built.domains[0].blob, tmp_path)
            good += 1
    return good, refused


def test_samples(samples, tmp_path):
    good, _ = walk_boards(samples, tmp_path)
    assert good >= 5


def test_corpus(corpus, tmp_path):
    good, refused = walk_boards(corpus / "dtbs", tmp_path)
    assert good
    assert refused


def test_four_engines_with_one_id(corpus):
    file = corpus / "dtbs" / "hip07-d05.dtb"
    if not file.is_file():
        pytest.skip("no hip07 board")
    platform = Platform.from_tree(blob.read(file.read_bytes(), file.name), file.name)
    paths = [f"/soc/crypto@{high}d0000000" for high in ("", "8", "400", "408")]
    listed = ", ".join(f'"{path}"' for path in paths)
    text = f'name="g"\nkernel="k"\nmemory=512\nviommu="smmuv3"\ndtdev=[{listed}]\n'
    built = build_dom0less(platform, [GuestInput(load(text.encode(), "g.cfg"), MODULES)])
    bus = built.guests()[0].node("/passthrough")
    assert [node.cells("iommus") for node in bus.children.values()] == [
        (65002, vid) for vid in range(4)
    ]
    assert [n.string("xen,path") for n in built.domains[0].fragment.tree.walk()
            if "xen,path" in n.props] == paths  # fmt: skip
