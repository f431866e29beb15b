# SPDX-License-Identifier: BSD-2-Clause
"""Guest trees compared with those that real libxl built: node by node, property by property."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dt_tools import blob
from dt_tools.errors import DtError
from dt_tools.guest import GuestTree, build_guest
from dt_tools.platform import Platform
from dt_tools.profiles import GuestProfile, Profile
from xl_configs import load

if TYPE_CHECKING:
    from pathlib import Path

    from dt_tools.tree import Tree

# The sizes of the ramdisks that the recorded configurations name, in bytes.
RAMDISKS = {"/job/rd": 0x10000, "/job/rd3": 3003}
HOSTS = {
    "xl-4.20-smmuv3": "deb3-smmu.host.dtb",
    "xl-xlnx4.17-vsmmu": "xlnx.host.dtb",
}
# 4.17's tree for AMD boards writes its GIC node with a child bus that no other libxl has.
VENDOR_GIC = ("/interrupt-controller@3001000",)

# Recorded trees that this build does not equal: what it does instead, and the reason.
DIFFERENT = {
    "a13-irq-31": "DT303: libxl builds the tree, then the hypervisor refuses the irq",
    "b08-phandle-0": "DT404: libxl copies a phandle 0",
    "b08-phandle-65000": "DT402: libxl copies the GIC's phandle",
    "b08-phandle-65002": "DT402: libxl copies the vSMMU's phandle",
    "b08-phandle-dup": "DT403: libxl copies one phandle twice",
    "c07-version16": "strict reader",
    "c07-version99": "strict reader",
    "c09-noendnode": "strict reader",
    "c12-dup-node": "strict reader",
    "c12-dup-passthrough": "strict reader",
    "c12-dup-prop": "strict reader",
    "c16-slash-name": "strict reader",
    "xl-4.22.0-gicv3/a21-viommu": "stock xl ignores viommu",
    "e05-odd4": "DT405: the series writes zeros over an iommus it cannot read",
    "e06-passthrough-node": "DT501: the series leaves /passthrough's own iommus dangling",
    "e09-virtio": "4.17 does not know the virtio key",
    "e09-disk": "4.17 gives its one virtio disk the tenth slot and a grant",
    "e12-phandle65002": "DT402: the series makes a duplicate phandle",
    "e18-symbols": "the series of 2022 keeps the StreamID as vMasterID",
    "e13-iommu-map": "DT505: the series leaves an iommu-map dangling",
}


def records(corpus: Path) -> list[dict[str, Any]]:
    lines = (corpus / "libxl" / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["set"].startswith("xl-")]


def build(corpus: Path, row: dict[str, Any], version: str) -> GuestTree:
    folder = corpus / "libxl"
    config = load((folder / row["cfg"]).read_bytes(), row["cfg"])
    partial = None
    if config.device_tree is not None:
        partial = blob.read((folder / row["partial"]).read_bytes(), row["partial"])
    name = HOSTS.get(row["set"], "deb2.host.dtb" if row["gic_host"] == 2 else "deb3-smmu.host.dtb")
    tree = blob.read((folder / "dom0" / name).read_bytes(), name)
    if row["set"] == "xl-4.20-smmuv3":
        # The recording's host had its RTC behind the SMMU; the stored host tree is without.
        tree.root.children["pl031@9010000"].set_cells("iommus", 0x8005, 0x10)
    host = Platform.from_tree(tree, name)
    headroom = 4064 if version == "4.22" else 0
    profile = Profile(guest=GuestProfile(xen_version=version, tree_headroom=headroom))
    size = RAMDISKS.get(config.ramdisk or "")
    return build_guest(config, profile, host, partial, ramdisk_size=size, rng_seed=bytes(128))


def difference(real: Tree, ours: Tree, skip: tuple[str, ...] = ()) -> str | None:
    """The first difference, None when order, names and bytes are the same."""
    left, right = list(real.walk()), list(ours.walk())
    if [n.path for n in left] != [n.path for n in right]:
        return f"nodes {[n.path for n in left]} != {[n.path for n in right]}"
    for a, b in zip(left, right, strict=True):
        if a.path not in skip and list(a.props.items()) != list(b.props.items()):
            return f"{a.path}: {a.props} != {b.props}"
    return None


def outcome(corpus: Path, row: dict[str, Any]) -> str | None:
    real = blob.read((corpus / "libxl" / row["guest"]).read_bytes(), row["guest"])
    version = (real.root.string("model") or "").removeprefix("XENVM-")
    ours = build(corpus, row, version)
    skip = VENDOR_GIC if version == "4.17" else ()
    return difference(real, ours.tree, skip)


def known(row: dict[str, Any]) -> str | None:
    return DIFFERENT.get(f"{row['set']}/{row['name']}") or DIFFERENT.get(row["name"])


def test_every_recorded_tree_is_equal_or_differs_for_a_known_reason(corpus: Path) -> None:
    equal: dict[str, int] = {}
    wrong = []
    for row in records(corpus):
        if "guest" not in row or known(row):
            continue
        try:
            found = outcome(corpus, row)
        except DtError as error:
            found = str(error)
        if found is None:
            equal[row["set"]] = equal.get(row["set"], 0) + 1
        else:
            wrong.append(f"{row['set']}/{row['name']}: {found}")
    assert wrong == []
    assert equal == {
        "xl-debian-4.20.3-gicv3": 41,
        "xl-debian-4.20.3-gicv2": 36,
        "xl-4.22.0-gicv3": 33,
        "xl-4.20-smmuv3": 1,
        "xl-xlnx4.17-vsmmu": 2,
    }


def test_the_known_differences_are_still_there(corpus: Path) -> None:
    """A case that has come to agree belongs out of the list."""
    for row in records(corpus):
        reason = known(row)
        if "guest" not in row or reason is None:
            continue
        try:
            found = outcome(corpus, row)
        except DtError as error:
            found = str(error)
        assert found is not None, row["name"]
        if reason.startswith("DT"):
            assert found.startswith(reason[:6]), f"{row['name']}: {found}"


def test_the_real_vsmmu_node(corpus: Path) -> None:
    rows = [r for r in records(corpus) if r["set"] == "xl-xlnx4.17-vsmmu" and "guest" in r]
    row = next(r for r in rows if r["name"] == "e01-viommu-alone")
    real = blob.read((corpus / "libxl" / row["guest"]).read_bytes())
    ours = build(corpus, row, "4.17").tree
    a, b = real.node("/iommu@4040000"), ours.node("/iommu@4040000")
    assert list(a.props.items()) == list(b.props.items())


def test_the_real_vsmmu_guest_with_its_device(corpus: Path) -> None:
    """Equal but for the id: the series wrote the StreamID where a vMasterID stands here."""
    row = next(r for r in records(corpus) if r["name"] == "e18-symbols")
    real = blob.read((corpus / "libxl" / row["guest"]).read_bytes())
    ours = build(corpus, row, "4.17")
    node = ours.tree.node("/passthrough/pl031@9010000")
    assert node.cells("iommus") == (65002, 0)
    node.set_cells("iommus", 65002, ours.bindings.resolve(0).pmaster_id)
    assert difference(real, ours.tree, VENDOR_GIC) is None


def test_nr_spis_is_what_libxl_counted(corpus: Path) -> None:
    checked = 0
    for row in records(corpus):
        if "guest" not in row or row.get("nr_spis") is None or known(row):
            continue
        built = build(corpus, row, "4.20")
        assert built.nr_spis == row["nr_spis"], row["name"]
        checked += 1
    assert checked > 80


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a13-irq-virtio-clash", "Physical IRQ 33 conflicting with Virtio MMIO IRQ range"),
        ("a13-irq-vuart-clash", "Physical IRQ 32 conflicting with pl011 SPI"),
        ("a09-virtio-12", "Ran out of reserved range for Virtio MMIO IRQ 44"),
        ("e07-irq33", "Physical IRQ 33 conflicting with vSMMUv3 SPI"),
    ],
)
def test_libxls_refusals_are_refused_in_its_words(corpus: Path, name: str, text: str) -> None:
    rows = [r for r in records(corpus) if r["name"] == name]
    assert rows
    for row in rows:
        assert any(text in line for line in row["errors"])
        with pytest.raises(DtError) as error:
            build(corpus, row, "4.20")
        assert text in str(error.value)


def test_partial_trees_that_libxl_refuses_are_refused(corpus: Path) -> None:
    """Also those on which xl ends with a segmentation fault (rc 139)."""
    seen = 0
    for row in records(corpus):
        if row["rc"] in (3, 139) and "partial" in row and "guest" not in row:
            if row["name"] in ("b11-deep-path", "e16-gicv2"):
                continue
            with pytest.raises(DtError):
                build(corpus, row, "4.20")
            seen += 1
    assert seen > 40
