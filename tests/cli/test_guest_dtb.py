# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu guest-dtb`: profiles, maps over several builds, calls, seeds, dry runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dt_tools import blob
from tests.cli.command import vsmmu
from vsmmu.cli import main

PLAIN = 'name = "g"\nkernel = "/k"\nmemory = 64\n'
GUEST = ("guest-dtb", "--host", "board.dtb", "crypto.cfg", "-q", "-o", "g.dtb")


@pytest.fixture(autouse=True)
def more(place: Path, samples: Path) -> None:
    """All samples, and a guest without devices."""
    for path in samples.iterdir():
        shutil.copy(path, place)
    (place / "plain.cfg").write_text(PLAIN)


def tree(name: str = "g.dtb") -> blob.Tree:
    return blob.read(Path(name).read_bytes(), name)


# Profiles.


def test_a_profile_writes_the_bytes_of_libxl(place, capsys):
    code, _, err = vsmmu(
        capsys, "guest-dtb", "plain.cfg", "--profile", "xen-4.20", "--rng-seed", "zero",
        "-o", "g.dtb",
    )  # fmt: skip
    assert (code, err) == (0, "")
    data = Path("g.dtb").read_bytes()
    # 19 FDT_NOPs where the second memory node was; a seed of 128 bytes.
    assert b"\0\0\0\4" * 19 in data
    assert tree().node("/chosen").props["rng-seed"] == bytes(128)
    assert vsmmu(capsys, "guest-dtb", "plain.cfg", "--profile", "xen-4.20", "-o", "h.dts")[0] == 0
    assert "rng-seed" not in Path("h.dts").read_text()


def test_a_profile_copies_the_partial_tree(place, capsys):
    vsmmu(
        capsys, "partial-dtb", "--host", "board.dtb", "crypto.cfg", "-q", "-o", "part.dtb",
        "--config-out", "full.cfg",
    )  # fmt: skip
    ours = vsmmu(capsys, "guest-dtb", "--host", "board.dtb", "full.cfg", "-q", "-o", "ours.dtb")
    assert ours[0] == 0
    for profile in ("xen-4.20", "xen-xlnx4.17", "xen-v3"):
        code, _, err = vsmmu(
            capsys, "guest-dtb", "--host", "board.dtb", "full.cfg", "-q", "-o", "g.dtb",
            "--profile", profile,
        )  # fmt: skip
        assert (code, err) == (0, ""), profile
        made = tree().node("/passthrough")
        assert list(made.children) == list(tree("ours.dtb").node("/passthrough").children)
        ids = [made.children[n].cells("iommus") for n in made.children]
        if profile == "xen-xlnx4.17":
            assert ids == [(65002, 0x600), (65002, 0x600), (65002, 0x10, 65002, 0x11)]
        elif profile == "xen-v3":
            assert ids == [(65002, 0), (65002, 1), (65002, 2, 65002, 3)]
        else:
            assert ids[0][1] == 0x600


@pytest.mark.parametrize(
    "option",
    [
        ("--bindings", "b.json"),
        ("--bindings-in", "b.json"),
        ("--hypercalls", "h.json"),
        ("--iort", "i.bin"),
        ("--acpi-path", "/a=\\_SB.A"),
        ("--one-vsmmu-per-psmmu",),
        ("--pci-topology", "pci-board.lspci"),
        ("--pci-domain", "/pcie=1"),
        ("--vits",),
    ],
)
def test_what_libxl_does_not_have_does_not_go_with_a_profile(place, capsys, option):
    code, _, err = vsmmu(
        capsys, "guest-dtb", "plain.cfg", "--profile", "xen-v3", "-o", "g.dtb", *option
    )
    assert code == 1
    assert err == (
        f"vsmmu: {option[0]} does not go with --profile, which builds what libxl builds\n"
    )
    assert not Path("g.dtb").exists()


def test_a_broken_partial_tree_under_a_profile(place, capsys):
    Path("part.dtb").write_bytes(b"")
    Path("p.cfg").write_text(PLAIN + 'device_tree = "part.dtb"\n')
    code, _, err = vsmmu(capsys, "guest-dtb", "p.cfg", "--profile", "xen-4.22", "-o", "g.dtb")
    assert code == 4
    assert err == (
        "vsmmu: DT550: /: partial tree: 0 bytes are no blob (40 header bytes); "
        "compile it with dtc again\n"
    )
    assert not Path("g.dtb").exists()


def test_an_unknown_profile(place, capsys):
    code, _, err = vsmmu(capsys, "guest-dtb", "plain.cfg", "--profile", "xen-4.19", "-o", "g.dtb")
    assert code == 1
    assert "xen-4.20" in err


# Maps.


def test_a_map_goes_on_in_one_file(place, capsys):
    text = Path("crypto.cfg").read_text()
    first = [*GUEST, "--bindings", "b.json"]
    assert vsmmu(capsys, *first)[0] == 0
    before = {(b["smmu"], b["pmaster_id"]): b["vmaster_id"] for b in read("b.json")["bindings"]}
    less = text.replace('"/soc/crypto@60000000",', "")
    assert less != text
    Path("crypto.cfg").write_text(less)
    assert vsmmu(capsys, *first, "--bindings-in", "b.json")[0] == 0
    after = {(b["smmu"], b["pmaster_id"]): b["vmaster_id"] for b in read("b.json")["bindings"]}
    assert after.items() < before.items()
    assert len(read("b.json")["retired"]) == len(before) - len(after)
    Path("crypto.cfg").write_text(text)
    assert vsmmu(capsys, *first, "--bindings-in", "b.json")[0] == 0
    again = {(b["smmu"], b["pmaster_id"]): b["vmaster_id"] for b in read("b.json")["bindings"]}
    assert again == before


def test_a_map_outlives_a_build_without_devices(place, capsys):
    vsmmu(capsys, *GUEST, "--bindings", "b.json")
    again = (*GUEST, "--bindings-in", "b.json", "--bindings", "b.json")
    before = {(b["smmu"], b["pmaster_id"]): b["vmaster_id"] for b in read("b.json")["bindings"]}
    assert vsmmu(capsys, *again, "dtdev=[]")[0] == 0
    assert read("b.json")["bindings"] == []
    assert len(read("b.json")["retired"]) == len(before)
    assert vsmmu(capsys, *again, 'dtdev=["/soc/ethernet@60010000"]')[0] == 0
    assert [b["vmaster_id"] for b in read("b.json")["bindings"]] == [2, 3]
    code, _, err = vsmmu(capsys, *again, "viommu='none'")
    assert code == 4
    assert err.startswith("vsmmu: DT510: /: the earlier map is of a guest with a vSMMU")
    code, _, err = vsmmu(capsys, *again, "--one-vsmmu-per-psmmu")
    assert code == 4
    assert err.startswith("vsmmu: DT510: /: the earlier map is of a guest with one vSMMU")


def test_a_completed_configuration_keeps_the_ids_of_an_earlier_map(place, capsys):
    vsmmu(capsys, *GUEST, "--bindings", "b.json")
    partial = ("partial-dtb", "--host", "board.dtb", "crypto.cfg", "-q", "-o", "part.dtb")
    one = 'dtdev=["/soc/ethernet@60010000"]'
    code, _, err = vsmmu(
        capsys, *partial, one, "--bindings-in", "b.json", "--bindings", "p.json",
        "--config-out", "full.cfg",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert 'iommu_devid_map = ["0x10@0x2,0x50000000", "0x11@0x3,0x50000000"]' in (
        Path("full.cfg").read_text()
    )
    vsmmu(
        capsys, "guest-dtb", "--host", "board.dtb", "full.cfg", "-q", "-o", "h.dtb",
        "--bindings", "c.json",
    )  # fmt: skip
    assert read("c.json")["bindings"] == read("p.json")["bindings"]


def test_iomem_of_each_of_two_neighbours(place, capsys):
    plain = vsmmu(capsys, *GUEST)
    whole = Path("g.dtb").read_bytes()
    assert vsmmu(capsys, *GUEST, 'iomem=["0x60000,0x10","0x60010,0x4"]') == plain
    assert Path("g.dtb").read_bytes() == whole
    code, _, _ = vsmmu(capsys, *GUEST, 'iomem=["0x60000,0x10@0x30000"]')
    assert code == 0
    bus = tree().node("/passthrough")
    assert bus.children["crypto@30000000"].cells("reg") == (0, 0x30000000, 0, 0x10000)
    assert bus.children["ethernet@60010000"].cells("reg")[1] == 0x60010000


@pytest.mark.parametrize("path", ["/soc/crypto@60000000/", "//soc//crypto@60000000"])
def test_a_path_that_xen_would_not_find(place, capsys, path):
    code, _, err = vsmmu(capsys, *GUEST, f'dtdev=["{path}"]')
    assert (code, err) == (
        4,
        f"vsmmu: DT102: /soc/crypto@60000000: dtdev has {path}, which is not its full path as Xen "
        "compares it; write /soc/crypto@60000000\n",
    )


def test_options_for_nobody(place, capsys):
    code, _, err = vsmmu(
        capsys, "guest-dtb", "plain.cfg", "-o", "g.dtb", "--ramdisk-size", "0x1000",
        "--domid", "nobody=3",
    )  # fmt: skip
    assert code == 0
    assert err == (
        "vsmmu: notice: --ramdisk-size has no effect: the guest has no ramdisk\n"
        "vsmmu: notice: --domid nobody: no virtio device is served by it\n"
    )
    code, _, err = vsmmu(
        capsys, "guest-dtb", "plain.cfg", "-o", "g.dtb", "--domid", "a=3", "--domid", "a=4"
    )
    assert (code, err) == (1, "vsmmu: --domid: one domain is given two ids\n")


def read(name: str) -> dict:
    return json.loads(Path(name).read_text())


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"", 2, "vsmmu: b.json: is no JSON: Expecting value: line 1 column 1 (char 0)\n"),
        (
            b"[" * 100_000,
            2,
            "vsmmu: b.json: is no JSON: nested too deeply, or a number of too",
        ),
        (b"[" + b"1" * 5000 + b"]", 2, "vsmmu: b.json: is no JSON: nested too deeply, or a number"),
        (b"\xff", 2, "vsmmu: b.json: is no JSON: 'utf-8' codec can't decode"),
        (b"{}", 2, 'vsmmu: b.json: schema: expected "vsmmu.bindings/1"'),
    ],
)
def test_a_map_that_is_none(place, capsys, data, code, text):
    Path("b.json").write_bytes(data)
    found, out, err = vsmmu(capsys, *GUEST, "--bindings-in", "b.json")
    assert (found, out) == (code, "")
    assert err.startswith(text)
    assert not Path("g.dtb").exists()


def test_a_map_of_another_guest_is_told(place, capsys):
    vsmmu(capsys, *GUEST, "--bindings", "b.json")
    code, _, err = vsmmu(capsys, *GUEST, "name='other'", "--bindings-in", "b.json")
    assert code == 0
    assert err == "vsmmu: notice: DT510 /: b.json is of the guest 'crypto', not of 'other'\n"


def test_an_input_is_not_written_over(place, capsys):
    vsmmu(capsys, *GUEST, "--bindings", "b.json")
    kept = Path("b.json").read_bytes()
    code, _, err = vsmmu(capsys, *GUEST[:-1], "b.json", "--bindings-in", "b.json")
    assert (code, err) == (1, "vsmmu: b.json: cannot write: it is the input b.json\n")
    assert Path("b.json").read_bytes() == kept


def test_a_vsmmu_for_each_smmu(place, capsys):
    assert vsmmu(capsys, *GUEST, "--one-vsmmu-per-psmmu", "--bindings", "b.json")[0] == 0
    found = [n.path for n in tree().walk() if n.is_compatible("arm,smmu-v3")]
    assert found == ["/iommu@4040000", "/iommu@4080000"]
    assert [v["smmu"] for v in read("b.json")["viommus"]] == [
        "/soc/iommu@50000000",
        "/soc/iommu@51000000",
    ]


def test_calls(place, capsys):
    code, out, _ = vsmmu(capsys, *GUEST, "--hypercalls", "-")
    assert code == 0
    calls = json.loads(out)["calls"]
    assert [c["path"] for c in calls if c["hypercall"] == "XEN_DOMCTL_assign_device"] == [
        "/soc/crypto@60000000",
        "/soc/crypto@61000000",
        "/soc/ethernet@60010000",
    ]


# What no tree tells.


@pytest.mark.parametrize(
    ("seed", "value"),
    [("omit", None), ("zero", bytes(128)), ("00ff10", b"\0\xff\x10")],
)
def test_seeds(place, capsys, seed, value):
    code, _, _ = vsmmu(capsys, "guest-dtb", "plain.cfg", "-o", "g.dtb", "--rng-seed", seed)
    assert code == 0
    assert tree().node("/chosen").props.get("rng-seed") == value


def test_a_random_seed_is_another_each_time(place, capsys):
    found = set()
    for _ in range(2):
        vsmmu(capsys, "guest-dtb", "plain.cfg", "-o", "g.dtb", "--rng-seed", "random")
        found.add(tree().node("/chosen").props["rng-seed"])
    assert {len(seed) for seed in found} == {128}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--rng-seed", "abc"), "omit, zero, random, or 1 to 1024 bytes as hex digits"),
        (("--ramdisk-size", "0"), "0: a number of bytes, 1 or more"),
        (("--ramdisk-size", "1k"), "1k: a number of bytes, 1 or more"),
        (("--domid", "DomD"), "DomD: NAME=ID, an id below 32752"),
        (("--domid", "DomD=32752"), "DomD=32752: NAME=ID, an id below 32752"),
        (("--pci-domain", "pcie=1"), "pcie=1: PATH=N, the path of a host bridge and a number"),
        (("--stub-clock-hz", "0"), "0: expected 1 to 4294967295"),
    ],
)
def test_arguments_that_are_none(place, capsys, option, text):
    code, _, err = vsmmu(capsys, "guest-dtb", "plain.cfg", "-o", "g.dtb", *option)
    assert code == 1
    assert err.endswith(f"{option[0]}: {text}\n")


def test_the_ramdisk(place, capsys):
    Path("r.cfg").write_text(PLAIN + 'ramdisk = "/nowhere/rd"\n')
    code, _, err = vsmmu(capsys, "guest-dtb", "r.cfg", "-o", "g.dtb")
    assert code == 0
    assert err == (
        "vsmmu: notice: ramdisk /nowhere/rd is not here: linux,initrd-* are left out; "
        "--ramdisk-size says it\n"
    )
    assert "linux,initrd-start" not in tree().node("/chosen").props
    code, _, err = vsmmu(capsys, "guest-dtb", "r.cfg", "-o", "g.dtb", "--ramdisk-size", "3003")
    assert (code, err) == (0, "")
    chosen = tree().node("/chosen")
    start = int.from_bytes(chosen.props["linux,initrd-start"], "big")
    end = int.from_bytes(chosen.props["linux,initrd-end"], "big")
    assert (end - start, end) == (0x1000, 0x43FFF000)


def test_the_id_of_a_backend_domain(place, capsys):
    Path("v.cfg").write_text(
        PLAIN + 'virtio = [ "type=virtio,device22,transport=mmio,backend=DomD" ]\n'
    )
    code, _, err = vsmmu(capsys, "guest-dtb", "v.cfg", "-o", "g.dtb")
    assert code == 4
    assert err.startswith("vsmmu: DT608: /: the id of the domain DomD")
    code, _, _ = vsmmu(capsys, "guest-dtb", "v.cfg", "-o", "g.dtb", "--domid", "DomD=3")
    assert code == 0
    assert tree().node("/virtio@2000000").cells("iommus") == (65001, 3)


def test_providers_and_interrupts(place, capsys):
    code, _, err = vsmmu(capsys, *GUEST, "--providers", "refuse")
    assert code == 4
    assert err.startswith("vsmmu: DT201: /soc/ethernet@60010000: clocks: ")
    assert vsmmu(capsys, *GUEST, "--providers", "stub")[0] == 0
    stubs = [n for n in tree().walk() if n.is_compatible("fixed-clock")]
    assert stubs
    assert all(n.parent.path == "/passthrough" for n in stubs)


def test_pci(place, capsys):
    code, out, err = vsmmu(
        capsys, "guest-dtb", "--host", "pci-board.dtb", "--pci-topology", "pci-board.lspci",
        "pci.cfg", "-o", "g.dtb", "--vits", "--bindings", "-",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert [b["pmaster_id"] for b in json.loads(out)["bindings"]] == ["0x100", "0x100", "0x300"]
    assert "msi-map" in tree().node("/pcie@10000000").props
    code, _, err = vsmmu(capsys, "guest-dtb", "pci.cfg", "-o", "h.dtb")
    assert (code, err) == (
        1,
        "vsmmu: pci.cfg: the guest has devices (pci); give --host HOST.dtb\n",
    )
    assert not Path("h.dtb").exists()


def test_devices_of_a_pci_guest_on_the_emulator(place, capsys):
    text = Path("one-guest.toml").read_text()
    Path("crypto.cfg").write_text(Path("crypto.cfg").read_text() + 'pci = [ "0000:01:00.0" ]\n')
    Path("s.toml").write_text(text)
    code, _, err = vsmmu(capsys, "run", "s.toml")
    assert code == 4
    assert "MC206: /: crypto has PCI devices; the emulator has platform devices only" in err


ACPI = (
    "--acpi-path", "/soc/crypto@60000000=\\_SB.CRY0",
    "--acpi-path", "/soc/crypto@61000000=\\_SB.CRY1",
    "--acpi-path", "/soc/ethernet@60010000=\\_SB.ETH0",
)  # fmt: skip


def test_the_iort_of_a_guest(place, capsys):
    code, _, err = vsmmu(capsys, *GUEST, "--iort", "iort.bin", *ACPI)
    assert (code, err) == (0, "")
    assert main(["inspect", "--json", "iort.bin"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["base"] for s in found["smmus"]] == ["0x4040000"]
    rows = [(m["name"], [s["stream_id"] for s in m["streams"]]) for m in found["masters"]]
    assert rows == [
        ("\\_SB.CRY0", ["0x0"]),
        ("\\_SB.CRY1", ["0x1"]),
        ("\\_SB.ETH0", ["0x2", "0x3"]),
    ]


def test_an_iort_that_cannot_be(place, capsys):
    for extra, text in (
        (ACPI[:4], "DT702: /soc/iommu@50000000: vMasterID 0x2 would be in no mapping of the IORT"),
        ((*ACPI, "--acpi-path", "/soc/uart=\\_SB.U"), "DT701: /soc/uart: has no vMasterID"),
        ((*ACPI, "--one-vsmmu-per-psmmu"), "DT703: /: the guest has a vSMMU for each SMMU"),
        ((*ACPI, "viommu='none'"), "DT703: /: the guest has no vSMMU"),
    ):
        code, _, err = vsmmu(capsys, *GUEST, "--iort", "iort.bin", *extra)
        assert code == 4
        assert err.startswith(f"vsmmu: {text}"), err
        assert not Path("iort.bin").exists()


# Dry runs.


def test_a_dry_run_writes_nothing_and_prints_the_change(place, capsys):
    code, out, _ = vsmmu(capsys, *GUEST, "--dry-run", "--bindings", "b.json")
    assert code == 0
    assert out.startswith("--- /dev/null\n+++ g.dtb\n@@ ")
    assert "+\tiommu@4040000 {" in out
    assert not Path("g.dtb").exists()
    assert not Path("b.json").exists()
    vsmmu(capsys, *GUEST)
    assert vsmmu(capsys, *GUEST, "--dry-run") == (0, "", "")
    code, out, _ = vsmmu(capsys, *GUEST, "vcpus=3", "--dry-run")
    changed = [line for line in out.splitlines() if line[:1] in "+-" and line[:3] not in HEADS]
    assert "cpu@2 {" in [line.strip("+\t") for line in changed]
    assert not [line for line in changed if line.startswith("-")]


HEADS = ("---", "+++")


def test_a_dry_run_is_a_patch(place, capsys):
    if shutil.which("patch") is None:
        pytest.skip("patch is not installed")
    vsmmu(capsys, *GUEST[:-1], "g.dts")
    code, out, _ = vsmmu(capsys, *GUEST[:-1], "g.dts", "memory=512", "vcpus=4", "--dry-run")
    assert code == 0
    subprocess.run(["patch", "-s", "g.dts"], input=out.encode(), check=True)
    patched = Path("g.dts").read_text()
    vsmmu(capsys, *GUEST[:-1], "g.dts", "memory=512", "vcpus=4")
    assert Path("g.dts").read_text() == patched


def test_a_dry_run_against_what_is_no_tree(place, capsys):
    Path("g.dtb").write_text("text")
    code, out, err = vsmmu(capsys, *GUEST, "--dry-run")
    assert (code, out) == (2, "")
    assert err.startswith("vsmmu: g.dtb: ")
