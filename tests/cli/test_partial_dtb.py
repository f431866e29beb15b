# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu partial-dtb` as a user meets it: both files, the same guest, one clear line or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dt_tools import blob
from tests.cli.command import vsmmu
from vsmmu.cli import main

PLAIN = ("partial-dtb", "--host", "board.dtb", "crypto.cfg", "-o", "part.dtb")
BOTH = (*PLAIN, "--config-out", "full.cfg")
HEADS = ("---", "+++")
CFG = """\
# Completed by vsmmu partial-dtb: dtdev, irqs, iomem and device_tree belong together, and to
# the host tree they were made from.

name = "crypto"

kernel = "/boot/Image"
device_tree = "part.dtb"

memory = 256
vcpus = 2

viommu = "smmuv3"
dtdev = ["/soc/crypto@60000000", "/soc/crypto@61000000", "/soc/ethernet@60010000"]
iomem = ["0x60000,0x14", "0x60018,0x1", "0x61000,0x10"]
irqs = [132, 133, 134, 135]
"""


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_the_two_files(place, capsys):
    code, out, err = vsmmu(capsys, *BOTH)
    assert (code, out) == (0, "")
    assert err.splitlines()[0] == (
        "vsmmu: notice: DT103 /soc/crypto@60000000: the host node has no xen,passthrough: "
        "dom0 has it too"
    )
    assert Path("full.cfg").read_text() == CFG
    tree = blob.read(Path("part.dtb").read_bytes())
    assert list(tree.root.children) == ["passthrough"]
    assert tree.node("/passthrough/crypto@61000000").cells("iommus") == (4, 0x600)
    assert names(place) == ["board.dtb", "crypto.cfg", "full.cfg", "media.cfg", "part.dtb"]


@pytest.mark.parametrize("guest", ["crypto.cfg", "media.cfg"])
@pytest.mark.parametrize("viommu", ["smmuv3", "none"])
@pytest.mark.parametrize("extra", ["irqs=[200]", 'iomem=["0x60000,0x14@0x7000"]'])
def test_guest_dtb_makes_the_same_guest_of_it(place, capsys, guest, viommu, extra):
    given = ["--host", "board.dtb", guest, f'viommu="{viommu}"', "-q"]
    if guest == "crypto.cfg":
        given.insert(4, extra)
    assert main(["partial-dtb", *given, "-o", "part.dtb", "--config-out", "full.cfg"]) == 0
    assert main(["guest-dtb", *given, "-o", "alone.dtb"]) == 0
    assert main(["guest-dtb", "--host", "board.dtb", "full.cfg", "-q", "-o", "full.dtb"]) == 0
    assert Path("alone.dtb").read_bytes() == Path("full.dtb").read_bytes()


def test_the_check_finds_nothing_wrong_with_it(place, capsys):
    assert main([*BOTH, "-q"]) == 0
    code, out, _ = vsmmu(capsys, "check", "board.dtb", "full.cfg")
    assert code == 0
    assert out.endswith("board.dtb, full.cfg, part.dtb: 5 notes\n")


def test_output_is_reproducible(place, capsys):
    main([*BOTH, "-q", "--bindings", "b.json"])
    files = ("part.dtb", "full.cfg", "b.json")
    first = [Path(name).read_bytes() for name in files]
    main([*BOTH, "-q", "--bindings", "b.json"])
    assert [Path(name).read_bytes() for name in files] == first


def test_the_bindings_are_those_of_guest_dtb(place, capsys):
    main([*PLAIN, "-q", "--bindings", "a.json"])
    main(
        ["guest-dtb", "--host", "board.dtb", "crypto.cfg", "-q", "-o", "g", "--bindings", "b.json"]
    )
    assert json.loads(Path("a.json").read_text()) == json.loads(Path("b.json").read_text())


def test_dry_run_prints_both_as_diffs_and_writes_nothing(place, capsys):
    before = names(place)
    code, out, err = vsmmu(capsys, *BOTH, "--bindings", "b.json", "--dry-run", "-q")
    assert (code, err) == (0, "")
    assert names(place) == before
    tree, _, cfg = out.partition("--- /dev/null\n+++ full.cfg\n")
    assert tree.startswith("--- /dev/null\n+++ part.dtb\n@@ -0,0 +1,")
    assert "".join(f"{line[1:]}\n" for line in cfg.splitlines()[1:]) == CFG
    source = "".join(f"{line[1:]}\n" for line in tree.splitlines()[3:])
    assert source.startswith("/dts-v1/;\n\n/ {\n")
    if shutil.which("dtc"):
        main([*PLAIN, "-q"])
        options = ["-q", "-I", "dts", "-O", "dtb", "-Wno-interrupts_property", "-"]
        done = subprocess.run(["dtc", *options], input=source.encode(), capture_output=True)
        assert done.returncode == 0
        main_tree, again = (blob.read(d) for d in (Path("part.dtb").read_bytes(), done.stdout))
        assert [(n.path, n.props) for n in main_tree.walk()] == [
            (n.path, n.props) for n in again.walk()
        ]


def test_dry_run_against_the_files_that_are_there(place, capsys):
    main([*BOTH, "-q"])
    assert vsmmu(capsys, *BOTH, "-q", "--dry-run") == (0, "", "")
    Path("full.cfg").write_text(CFG.replace("vcpus = 2", "vcpus = 3"))
    code, out, _ = vsmmu(capsys, *BOTH, "-q", "--dry-run", "--providers", "stub")
    assert code == 0
    changed = [line for line in out.splitlines() if line[:1] in "+-" and line[:3] not in HEADS]
    assert changed == [
        "+\t\t\tclocks = <0xfde6>;",
        '+\t\t\tclock-names = "ref";',
        "+",
        "+\t\tclock-0 {",
        '+\t\t\tcompatible = "fixed-clock";',
        "+\t\t\t#clock-cells = <0x0>;",
        "+\t\t\tclock-frequency = <0x7735940>;",
        "+\t\t\tphandle = <0xfde6>;",
        "+\t\t};",
        "-vcpus = 3",
        "+vcpus = 2",
    ]
    assert Path("full.cfg").read_text() != CFG


def test_dry_run_without_a_name_for_the_configuration_compares_with_the_one_given(place, capsys):
    out = vsmmu(capsys, *PLAIN, "-q", "--dry-run")[1]
    assert "--- crypto.cfg\n+++ crypto.cfg\n" in out
    assert '+device_tree = "part.dtb"\n' in out


@pytest.mark.parametrize("hertz", ["0", "-1", "4294967296", "1e6", "x", ""])
def test_a_rate_that_no_clock_has(place, capsys, hertz):
    code, _, err = vsmmu(capsys, *PLAIN, f"--stub-clock-hz={hertz}")
    assert code == 1
    assert err.endswith(f"argument --stub-clock-hz: {hertz}: expected 1 to 4294967295\n")


def test_stdout_takes_either(place, capfdbinary):
    assert main([*BOTH[:-2], "-q", "--config-out", "-"]) == 0
    assert capfdbinary.readouterr().out.decode() == CFG
    assert main([*PLAIN[:-1], "-", "-q"]) == 0
    assert capfdbinary.readouterr().out == Path("part.dtb").read_bytes()


def test_its_own_output_can_be_completed_again(place, capsys):
    main([*BOTH, "-q"])
    first = Path("part.dtb").read_bytes()
    again = ("partial-dtb", "--host", "board.dtb", "full.cfg", "-o", "part.dtb", "-q")
    assert main([*again, "--config-out", "again.cfg"]) == 0
    assert Path("again.cfg").read_text() == CFG
    assert Path("part.dtb").read_bytes() == first


# (arguments after partial-dtb --host board.dtb, exit code, the one line on stderr)
REFUSALS = {
    "behind no SMMU": (
        ["crypto.cfg", 'dtdev=["/soc/serial@70000000"]', "-o", "part.dtb"],
        4,
        "DT101: /soc/serial@70000000: is not a DMA master of any SMMU of the host tree (SMMUs: "
        "/soc/iommu@50000000, /soc/iommu@51000000, /soc/iommu@52000000); assign a device that "
        "has iommus; without an SMMU its DMA is not contained",
    ),
    "page shared": (
        ["crypto.cfg", 'dtdev=["/soc/dma@60020000"]', "-o", "part.dtb"],
        4,
        "DT205: /soc/dma@60020000: shares a 4 KiB page of registers with /soc/dma@60020800; "
        "assign /soc/dma@60020800 too, or neither",
    ),
    "interrupts": (
        ["crypto.cfg", 'dtdev=["/soc/display@60030000"]', "--interrupts", "refuse", "-o", "p"],
        4,
        "DT302: /soc/display@60030000: interrupts: 1 of "
        "/soc/interrupt-controller@53000000 (MSI): not SPIs of the GIC; assign a device whose "
        "interrupts are SPIs of the GIC, or let them be dropped",
    ),
    "providers": (
        ["crypto.cfg", "--providers", "refuse", "-o", "p"],
        4,
        "DT201: /soc/ethernet@60010000: clocks: /clock-125m is not assigned; assign the provider "
        "too, or let the property be dropped (--providers drop)",
    ),
    "no devices": (
        ["crypto.cfg", "dtdev=[]", "-o", "part.dtb"],
        2,
        "dtdev: /: no devices: there is no partial tree to write; "
        "list the host paths of the guest's devices",
    ),
    "no such node": (
        ["crypto.cfg", 'dtdev=["/soc/usb@60500000"]', "-o", "part.dtb"],
        2,
        "board.dtb: /soc/usb@60500000: no such node; nearest: /soc/usb@60050000",
    ),
    "a tree by hand": (
        ["crypto.cfg", 'device_tree="hand.dtb"', "-o", "part.dtb"],
        1,
        "crypto.cfg: device_tree names hand.dtb already; take it out, or write that file "
        "(-o hand.dtb)",
    ),
    "source": (
        ["crypto.cfg", "-o", "part.dts"],
        1,
        "part.dts: xl reads no source; name a .dtb (--dry-run prints the source)",
    ),
    "no name": (
        ["crypto.cfg", "-o", "-"],
        1,
        "-o -: the completed configuration has to name a file",
    ),
    "one name twice": (
        ["crypto.cfg", "-o", "full.cfg"],
        1,
        "full.cfg: two outputs name the same file",
    ),
    "one file twice": (
        ["crypto.cfg", "-o", "./full.cfg"],
        1,
        "full.cfg: cannot write: the same file as ./full.cfg",
    ),
    "over the host": (
        ["crypto.cfg", "-o", "board.dtb"],
        1,
        "board.dtb: cannot write: it is the input board.dtb",
    ),
    "no folder": (
        ["crypto.cfg", "-o", "nowhere/part.dtb"],
        1,
        "nowhere/part.dtb: cannot write: no such file or directory",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_one_clear_line_and_nothing_written(name, place, capsys):
    arguments, wanted, line = REFUSALS[name]
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    rest = ("--config-out", "full.cfg", "-q")
    code, out, err = vsmmu(capsys, "partial-dtb", "--host", "board.dtb", *arguments, *rest)
    assert (code, out, err) == (wanted, "", f"vsmmu: {line}\n")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
