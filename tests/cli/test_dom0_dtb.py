# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu dom0-dtb` as a user meets it: two files, a diff, one clear line or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dt_tools import blob
from tests.cli.command import vsmmu

HOST = ("dom0-dtb", "board.dtb")
DMA = "/soc/crypto@60000000"


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def status(place: Path, name: str, path: str) -> dict[str, bytes]:
    node = blob.read((place / name).read_bytes(), name).node(path)
    assert node is not None
    return node.props


def test_both_trees(place, capsys):
    files = ("-o", "dom0.dtb", "--host-out", "xen.dtb")
    code, out, err = vsmmu(capsys, *HOST, "--guest", "crypto.cfg", *files)
    assert (code, out) == (0, "")
    assert err == "vsmmu: notice: DT214 /soc/iommu@52000000: dropped: msi-parent\n"
    for path in (DMA, "/soc/crypto@61000000", "/soc/ethernet@60010000"):
        assert status(place, "dom0.dtb", path)["status"] == b"disabled\0"
        assert "xen,passthrough" not in status(place, "dom0.dtb", path)
        assert status(place, "xen.dtb", path)["xen,passthrough"] == b""
        assert "status" not in status(place, "xen.dtb", path)
    first = {name: (place / name).read_bytes() for name in ("dom0.dtb", "xen.dtb")}
    paths = [DMA, "/soc/crypto@61000000", "/soc/ethernet@60010000"]
    given = [word for path in paths for word in ("--give-away", path)]
    # What a configuration has and the command line repeats is given once.
    for way in (given, ["--guest", "crypto.cfg", *given]):
        assert vsmmu(capsys, *HOST, *way, *files)[0] == 0
        assert {name: (place / name).read_bytes() for name in first} == first
    # dom0's tree from the marked host tree is the same.
    assert vsmmu(capsys, "dom0-dtb", "xen.dtb", "-o", "again.dtb", "-q") == (0, "", "")
    assert (place / "again.dtb").read_bytes() == first["dom0.dtb"]


def test_a_dry_run_writes_nothing(place, capsys):
    before = names(place)
    code, out, err = vsmmu(capsys, *HOST, "--give-away", DMA, "--dry-run", "-q", "-o", "dom0.dtb")
    assert (code, err) == (0, "")
    assert names(place) == before
    changes = [line for line in out.splitlines() if line[0] in "+-"]
    assert changes == [
        "--- board.dtb",
        "+++ dom0.dtb",
        "-\t\t\tmsi-parent = <0x2 0xff0000>;",
        '+\t\t\tstatus = "disabled";',
        "--- board.dtb",
        "+++ host for Xen",
        "+\t\t\txen,passthrough;",
    ]


def test_without_vsmmus(place, capsys):
    code, out, err = vsmmu(capsys, *HOST, "--viommu", "none", "-o", "dom0.dtb")
    assert (code, out) == (0, "")
    assert err.startswith("vsmmu: notice: DT617 /: not in dom0's tree: 3 SMMUs that Xen drives")
    tree = blob.read((place / "dom0.dtb").read_bytes())
    assert tree.node("/soc/iommu@50000000") is None
    assert "iommus" not in status(place, "dom0.dtb", DMA)


def test_xens_own_tree(place, capsys):
    options = (
        "--profile", "xen-xlnx4.17", "--viommu", "smmuv3", "--dom0-memory", "0x90000000:0x10000000",
        "--grant-table", "0x80000000:0x40000", "--dom0-vcpus", "2", "--dom0-bootargs", "quiet",
        "--initrd", "none", "--extended-regions", "none", "--dtuart", "none", "-q",
    )  # fmt: skip
    assert vsmmu(capsys, *HOST, *options, "-o", "dom0.dtb") == (0, "", "")
    tree = blob.read((place / "dom0.dtb").read_bytes())
    assert status(place, "dom0.dtb", "/memory@90000000")["device_type"] == b"memory\0"
    assert len(status(place, "dom0.dtb", "/hypervisor")["reg"]) == 16
    assert tree.node("/cpus/cpu@1") is not None
    assert tree.node("/cpus/cpu@2") is None
    assert tree.node("/soc/serial@70000000") is not None
    assert status(place, "dom0.dtb", "/soc/iommu@50000000")["interrupt-names"] == b"combined\0"
    code, _, err = vsmmu(capsys, *HOST, "--profile", "xen-4.20", "-o", "dom0.dtb")
    assert code == 0
    assert (
        "vsmmu: notice: DT616 /soc/iommu@50000000: assumed: a Xen with drivers smmu only, so dom0 "
        "gets this IOMMU itself\n"
    ) in err
    drivers = ("--drivers", "smmu,smmuv3,its")
    assert vsmmu(capsys, *HOST, "--profile", "xen-4.20", *drivers, "-o", "dom0.dtb")[0] == 0
    assert blob.read((place / "dom0.dtb").read_bytes()).node("/soc/iommu@50000000") is None


REFUSED = [
    ((), 1, "nothing to do: give -o FILE, --host-out FILE or --dry-run"),
    (("-o", "a", "--host-out", "a"), 1, "a: --output and --host-out name the same file"),
    (
        ("-o", "a", "--dom0-vcpus", "2"),
        1,
        "--dom0-vcpus: says something about Xen's own tree; give --profile",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--interrupts", "refuse"),
        1,
        "--interrupts: Xen's own tree has no choice; leave --profile out",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--dom0-memory", "1G"),
        1,
        "--dom0-memory 1G: expected two numbers, as in 0x80000000:0x40000000",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--dom0-memory", "0x80000001:0x1000"),
        1,
        "--dom0-memory 0x80000001:0x1000: not whole pages of 4 KiB",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--initrd", "0x90000000:0x80000000"),
        1,
        "--initrd 0x90000000:0x80000000: ends before it starts",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--v2m-spis", "1000:64"),
        1,
        "--v2m-spis 1000:64: SPIs have GIC ids 32 to 1019",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--dom0-bootargs", "a\nb"),
        1,
        "--dom0-bootargs: not printable ASCII",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--ipa-bits", "60"),
        1,
        "--ipa-bits 60: expected a number from 32 to 48",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--drivers", "smmuv3,vtd"),
        1,
        "--drivers vtd: unknown; known: smmu, smmuv3, ipmmu, its",
    ),
    (
        ("-o", "a", "--profile", "xen-4.22", "--viommu", "smmuv3"),
        4,
        "DT613: /: Xen 4.22 has no vSMMU; leave the profile out for dom0's tree with vSMMUs",
    ),
    (
        ("-o", "a", "--give-away", "/soc/iommu@50000000"),
        4,
        "DT106: /soc/iommu@50000000: is an SMMU, which contains guests and cannot be one's; give "
        "away the devices behind it",
    ),
    (
        ("-o", "a", "--give-away", "/soc/cryptu@60000000"),
        2,
        f"board.dtb: /soc/cryptu@60000000: no such node; nearest: {DMA}",
    ),
    (
        ("-o", "a", "--give-away", "/soc"),
        4,
        "DT106: /soc/iommu@50000000: is an SMMU, which contains guests and cannot be one's, and "
        "goes along with /soc; give away the devices behind it",
    ),
    (
        ("-o", "a", "--profile", "xen-4.20", "--dom0-memory", "0x80000000:0"),
        1,
        "--dom0-memory 0x80000000:0: the size is 0",
    ),
    (
        ("-o", "a", "--profile", "xen-4.20", "--initrd", "0x80000000:0"),
        1,
        "--initrd 0x80000000:0: the end is 0",
    ),
    (
        ("-o", "a", "--profile", "xen-4.20", "--v2m-spis", "64:0"),
        1,
        "--v2m-spis 64:0: the number of SPIs is 0",
    ),
    (
        ("-o", "a", "--profile", "xen-4.20", "--dom0-memory", "0x1000000000000:0x1000"),
        1,
        "--dom0-memory 0x1000000000000:0x1000: above 48 bits, the widest address there is",
    ),
    (
        ("-o", "a", "--profile", "xen-4.20", "--dom0-memory", "0x7f000000:0x2000000"),
        4,
        "DT615: /memory: bank [0x7f000000, 0x81000000) is not in the host's RAM "
        "[0x80000000, 0x100000000); correct --dom0-memory: dom0's RAM is mapped 1:1",
    ),
    (
        ("-o", "a", "--profile", "xen-4.20", "--dtuart", "/nope"),
        2,
        "board.dtb: /nope: no such node",
    ),
    (("-o", "board.dtb"), 1, "board.dtb: cannot write: it is the input board.dtb"),
]


@pytest.mark.parametrize(("options", "code", "text"), REFUSED, ids=range(len(REFUSED)))
def test_one_line_and_nothing_written(place, capsys, options, code, text):
    before = {name: (place / name).read_bytes() for name in names(place)}
    assert vsmmu(capsys, *HOST, *options) == (code, "", f"vsmmu: {text}\n")
    assert {name: (place / name).read_bytes() for name in names(place)} == before


def test_pci_functions_leave_the_bridge_in_place(place, capsys):
    (place / "pci.cfg").write_text('name = "p"\nkernel = "k"\npci = ["0000:01:00.0"]\n')
    code, _, err = vsmmu(capsys, *HOST, "--guest", "pci.cfg", "-o", "dom0.dtb")
    assert code == 0
    assert "pci.cfg has PCI functions; host bridges stay enabled in dom0's tree" in err


def test_a_configuration_given_twice_counts_once(place, capsys):
    (place / "crypto.cfg").write_text(
        (place / "crypto.cfg").read_text() + 'pci = ["0000:01:00.0"]\n'
    )
    once = vsmmu(capsys, *HOST, "--guest", "crypto.cfg", "-o", "once.dtb")
    twice = vsmmu(capsys, *HOST, *["--guest", "crypto.cfg"] * 2, "-o", "twice.dtb")
    assert once == twice
    assert (place / "once.dtb").read_bytes() == (place / "twice.dtb").read_bytes()
    assert once[0] == 0
    assert once[2].count("DT618") == 1


def test_a_dry_run_compares_with_the_host(place, capsys):
    (place / "dom0.dtb").write_bytes(b"something else")
    code, out, _ = vsmmu(capsys, *HOST, "--give-away", DMA, "--dry-run", "-q", "-o", "dom0.dtb")
    assert code == 0
    assert out.startswith("--- board.dtb\n+++ dom0.dtb\n")
    _, text, _ = vsmmu(capsys, "dom0-dtb", "--help")
    assert "print the changes against HOST.dtb as a diff" in " ".join(text.split())
