# SPDX-License-Identifier: BSD-2-Clause
"""`--profile` compared with the trees that real libxl built: the whole file, byte by byte.

Only /chosen/rng-seed varies from run to run; the records have zeros there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dt_tools import blob
from dt_tools.errors import DtError
from dt_tools.guest import build_guest
from dt_tools.libxl import VERSIONS, LibxlGuest, build_libxl
from dt_tools.platform import Platform
from xl_configs import ConfigError, load

if TYPE_CHECKING:
    from pathlib import Path

# The sizes of the ramdisks that the recorded configurations name, in bytes.
RAMDISKS = {"/job/rd": 0x10000, "/job/rd3": 3003}
SETS = {
    "xl-debian-4.20.3-gicv3": "xen-4.20",
    "xl-debian-4.20.3-gicv2": "xen-4.20",
    "xl-4.20-smmuv3": "xen-4.20",
    "xl-4.22.0-gicv3": "xen-4.22",
    "xl-xlnx4.17-vsmmu": "xen-xlnx4.17",
}

# Trees that libxl wrote although they are none, or that Xen refused afterwards: refused here.
REFUSED = {
    "a13-irq-31": "DT303: Xen refuses the irq after the tree is built",
    "b08-phandle-0": "DT404: 0 is no phandle",
    "b08-phandle-65000": "DT403: the GIC's phandle once more",
    "b08-phandle-dup": "DT403: one phandle twice",
    "c12-dup-node": "DT550: a node twice",
    "c12-dup-prop": "DT550: a property twice",
    "c16-slash-name": "DT550: a slash in a node name",
    "e05-odd4": "DT405: zeros in place of an iommus that it cannot read",
    "e12-phandle65002": "DT403: the vSMMU's phandle once more",
}
# Built here, and by libxl, but refused or given up by the machine of the recording.
STATE = {
    "a07-ramdisk-missing": "the ramdisk's file is missing; --ramdisk-size or a notice here",
    "a11-tee-ffa": "the board has no FF-A",
    "a11-tee-optee": "the board has no OP-TEE",
    "s13-tee-optee": "the board has no OP-TEE",
    "a13-irq-dom0": "another domain has the interrupt",
    "a16-sve": "the CPU has no SVE",
    "a16-sve-hw": "the CPU has no SVE",
    "a17-passthrough-on": "this build of Xen drives no SMMU, although the host tree has one",
    "a19-kernel-junk": "the kernel's file is none",
    "d02-mem3073": "the host's memory is used up",
}


def records(corpus: Path) -> list[dict[str, Any]]:
    lines = (corpus / "libxl" / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["set"].startswith("xl-")]


def host(corpus: Path, row: dict[str, Any]) -> Platform:
    name = "deb2.host.dtb" if row["gic_host"] == 2 else "deb3-smmu.host.dtb"
    name = "xlnx.host.dtb" if row["set"] == "xl-xlnx4.17-vsmmu" else name
    tree = blob.read((corpus / "libxl" / "dom0" / name).read_bytes(), name)
    if row["set"] == "xl-4.20-smmuv3":
        # The recording's host had its RTC behind the SMMU; the stored host tree is without.
        tree.root.children["pl031@9010000"].set_cells("iommus", 0x8005, 0x10)
    return Platform.from_tree(tree, name)


def build(corpus: Path, row: dict[str, Any]) -> LibxlGuest:
    folder, version = corpus / "libxl", VERSIONS[SETS[row["set"]]]
    config = load((folder / row["cfg"]).read_bytes(), row["cfg"], dialect=version.dialect)
    partial = None
    if config.device_tree is not None:
        # A record without a file is of a name that is no file.
        partial = (folder / row["partial"]).read_bytes() if "partial" in row else b""
    size = RAMDISKS.get(config.ramdisk or "")
    return build_libxl(
        config, version, host(corpus, row), partial, ramdisk_size=size, rng_seed=bytes(128)
    )


def refusal(corpus: Path, row: dict[str, Any]) -> str | None:
    try:
        build(corpus, row)
    except (DtError, ConfigError) as error:
        return str(error)
    return None


def test_every_recorded_tree_is_equal_to_the_last_byte(corpus: Path) -> None:
    equal: dict[str, int] = {}
    wrong = []
    for row in records(corpus):
        if "guest" not in row or row["name"] in REFUSED:
            continue
        real = (corpus / "libxl" / row["guest"]).read_bytes()
        try:
            built = build(corpus, row)
        except DtError as error:
            wrong.append(f"{row['set']}/{row['name']}: {error}")
            continue
        if built.blob.data == real:
            equal[row["set"]] = equal.get(row["set"], 0) + 1
        else:
            wrong.append(f"{row['set']}/{row['name']}: {first_difference(real, built)}")
    assert wrong == []
    assert equal == {
        "xl-debian-4.20.3-gicv3": 44,
        "xl-debian-4.20.3-gicv2": 39,
        "xl-4.22.0-gicv3": 39,
        "xl-4.20-smmuv3": 1,
        "xl-xlnx4.17-vsmmu": 7,
    }


def first_difference(real: bytes, built: LibxlGuest) -> str:
    data = built.blob.data
    at = next((i for i, (a, b) in enumerate(zip(real, data, strict=False)) if a != b), -1)
    return f"{len(real)} and {len(data)} bytes, the first that differs at {at:#x}"


def test_what_libxl_writes_and_no_guest_can_use_is_refused(corpus: Path) -> None:
    seen = set()
    for row in records(corpus):
        if row["name"] in REFUSED and "guest" in row:
            text = refusal(corpus, row) or "built"
            assert text.startswith(REFUSED[row["name"]][:6]), f"{row['name']}: {text}"
            seen.add(row["name"])
    assert seen == set(REFUSED)


def test_what_libxl_refuses_is_refused(corpus: Path) -> None:
    """Also the partial trees on which xl ends with a segmentation fault (rc 139)."""
    built, count = [], 0
    for row in records(corpus):
        if row["rc"] in (0, 143) or row["name"] in STATE or row["name"] in REFUSED:
            continue
        count += 1
        if refusal(corpus, row) is None:
            built.append(f"{row['set']}/{row['name']} ({row['rc']}): {row['errors'][:2]}")
    assert built == []
    assert count > 70


def test_what_a_machine_refuses_for_its_own_reasons_is_built(corpus: Path) -> None:
    seen = set()
    for row in records(corpus):
        if row["name"] in STATE and row["rc"] != 0:
            assert refusal(corpus, row) is None, row["name"]
            seen.add(row["name"])
    assert seen == set(STATE)


def test_nr_spis_is_what_libxl_counted(corpus: Path) -> None:
    checked = 0
    for row in records(corpus):
        if "guest" not in row or row.get("nr_spis") is None or row["name"] in REFUSED:
            continue
        built = build(corpus, row)
        # AMD's prints what it counted, and asks for 160 at least.
        least = 160 if row["set"] == "xl-xlnx4.17-vsmmu" else 0
        assert built.nr_spis == max(row["nr_spis"], least), row["name"]
        checked += 1
    assert checked > 80


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a13-irq-virtio-clash", "Physical IRQ 33 conflicting with Virtio MMIO IRQ range"),
        ("a13-irq-vuart-clash", "Physical IRQ 32 conflicting with pl011 SPI"),
        ("a09-virtio-12", "Ran out of reserved range for Virtio MMIO IRQ 44"),
        ("e07-irq33", "Physical IRQ 33 conflicting with vSMMUv3 SPI"),
        ("a12-nrspis-less-irqs", "Provided nr_spis value is too small (minimum required"),
    ],
)
def test_libxls_refusals_are_refused_in_its_words(corpus: Path, name: str, text: str) -> None:
    rows = [r for r in records(corpus) if r["name"] == name and r["rc"] != 0]
    assert rows
    for row in rows:
        assert any(text in line for line in row["errors"])
        assert text in (refusal(corpus, row) or "built")


def test_the_default_tree_differs_from_4_20s_where_it_says(corpus: Path) -> None:
    """Nodes and properties are libxl's; docs/guest-dtb.md has the list of what is not."""
    compared = 0
    for row in records(corpus):
        if row["set"] != "xl-debian-4.20.3-gicv3" or "guest" not in row or "partial" in row:
            continue
        if row["name"] in REFUSED or "iomem" in (corpus / "libxl" / row["cfg"]).read_text():
            continue
        config = load((corpus / "libxl" / row["cfg"]).read_bytes(), row["cfg"])
        size = RAMDISKS.get(config.ramdisk or "")
        ours = build_guest(
            config,
            platform=host(corpus, row),
            ramdisk_size=size,
            rng_seed=bytes(128),
        ).tree
        theirs = build(corpus, row).tree
        assert [n.path for n in ours.walk()] == [n.path for n in theirs.walk()]
        for a, b in zip(ours.walk(), theirs.walk(), strict=True):
            assert list(a.props.items()) == list(b.props.items()), f"{row['name']}: {a.path}"
        compared += 1
    assert compared > 15
