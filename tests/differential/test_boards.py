# SPDX-License-Identifier: BSD-2-Clause
"""Second opinions on whole boards: dtc on every tree we write, QEMU's own board as input.

The boards are those of the corpus; `VSMMU_BOARDS` names a folder of any number more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dt_tools import blob
from dt_tools.dom0 import build_dom0
from dt_tools.dts import to_dts
from dt_tools.platform import Platform
from dt_tools.report.jsonreport import inspect_report
from dt_tools.tree import Tree
from vsmmu.cli.run import execute

# dtc's checks that a generated tree must pass as errors; those it has are probed.
CHECKS = (
    "phandle_references",
    "reg_format",
    "ranges_format",
    "addr_size_cells",
    "iommus_property",
    "interrupts_property",
    "msi_parent_property",
    "duplicate_node_names",
    "explicit_phandles",
)


@pytest.fixture(scope="module")
def dtc() -> list[str]:
    place = shutil.which("dtc")
    if place is None:
        pytest.skip("dtc is not installed (package device-tree-compiler)")
    return [place, "-I", "dtb", "-O", "dts", "-o", "/dev/null"]


@pytest.fixture(scope="module")
def qemu_board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None:
        pytest.skip("QEMU is not installed (package qemu-system-arm)")
    out = tmp_path_factory.mktemp("qemu") / "virt.dtb"
    machine = f"virt,iommu=smmuv3,gic-version=3,dumpdtb={out}"
    done = subprocess.run(
        [qemu, "-M", machine, "-nic", "none", "-display", "none"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if not out.exists():
        pytest.skip(f"this QEMU writes no tree: {done.stderr.strip() or done.stdout.strip()}")
    return out


def _errors(dtc: list[str], data: bytes) -> str:
    checks = [word for check in CHECKS for word in ("-E", check)]
    done = subprocess.run([*dtc, *checks], input=data, capture_output=True, check=False)
    text = done.stderr.decode()
    return "\n".join(line for line in text.splitlines() if "ERROR" in line)


def test_dtc_accepts_every_dom0_tree_as_it_accepts_the_host(dtc, corpus):
    for board in sorted((corpus / "dtbs").glob("*.dtb")):
        data = board.read_bytes()
        dom0 = blob.write(build_dom0(Platform.from_tree(blob.read(data), str(board))))
        assert _errors(dtc, dom0) == _errors(dtc, data), board.name


def test_dtc_accepts_the_sample_trees(dtc, samples, tmp_path):
    from vsmmu.cli import main

    for config in ("crypto.cfg", "media.cfg"):
        out = tmp_path / "guest.dtb"
        argv = ["guest-dtb", "--host", str(samples / "board.dtb"), str(samples / config)]
        assert main([*argv, "-q", "-o", str(out)]) == 0
        assert _errors(dtc, out.read_bytes()) == ""


def test_the_sample_dtb_is_what_dtc_makes_of_the_dts(dtc, samples):
    made = subprocess.run(
        [dtc[0], "-q", "-I", "dts", "-O", "dtb", str(samples / "board.dts")],
        capture_output=True,
        check=True,
    ).stdout
    ours, theirs = blob.read((samples / "board.dtb").read_bytes()), blob.read(made)
    assert [(n.path, n.props) for n in ours.walk()] == [(n.path, n.props) for n in theirs.walk()]


def test_qemus_board_is_read(qemu_board):
    platform = Platform.from_tree(blob.read(qemu_board.read_bytes()), "virt")
    (smmu,) = platform.smmus
    assert (smmu.base, smmu.size, smmu.status) == (0x9050000, 0x20000, "okay")
    assert [i.number for i in smmu.interrupts] == [106, 107, 108, 109]
    (master,) = (m for m in platform.masters if m.maps)
    (row,) = master.maps
    assert (row.rid_base, row.smmu_path, row.sid_base, row.length) == (0, smmu.path, 0, 0x10000)
    dom0 = build_dom0(platform)
    node = dom0.node(smmu.path)
    assert node is not None
    assert node.phandle == smmu.phandle


def test_a_machine_is_built_of_qemus_board(qemu_board, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("g.cfg").write_text('name="g"\nkernel="k"\nmemory=64\nviommu="smmuv3"\n')
    Path("s.toml").write_text(
        f'schema = "vsmmu.scenario/1"\nhost = "{qemu_board}"\n'
        '[[guest]]\nconfig = "g.cfg"\n[[step]]\nguest = "g"\ndo = "boot"\n'
    )
    report = execute("s.toml")
    assert report.ok
    assert list(report.machine.smmus) == ["/smmuv3@9050000"]


# Every board of a folder, in one process.


@pytest.fixture(scope="module")
def boards() -> list[Path]:
    place = os.environ.get("VSMMU_BOARDS")
    if not place:
        pytest.skip("VSMMU_BOARDS names no folder of boards")
    found = sorted(Path(place).glob("*.dtb"))
    assert found, f"no *.dtb in {place}"
    return found


def test_every_board_is_read_alike_written_back_and_inspected(boards):
    """All trees live until the end, so that one leaking into another shows."""
    trees: dict[Path, Tree] = {}
    for place in boards:
        data = place.read_bytes()
        tree = blob.read(data, place.name)
        assert blob.same_content(blob.read_with_fdt(data, place.name), tree), place.name
        again = blob.read(blob.write(tree), place.name)
        assert blob.same_content(again, tree), place.name
        inspect_report(Platform.from_tree(again, place.name))
        trees[place] = again
    for place, tree in trees.items():
        assert blob.same_content(blob.read(place.read_bytes(), place.name), tree), place.name


def test_every_board_compiles_to_itself(dtc, boards):
    for place in boards:
        tree = blob.read(place.read_bytes(), place.name)
        command = [dtc[0], "-q", "-f", "-I", "dts", "-O", "dtb", "-b", str(tree.boot_cpuid)]
        text = to_dts(tree).encode("ascii")
        made = subprocess.run(command, input=text, capture_output=True, check=True).stdout
        assert blob.same_content(blob.read(made, place.name), tree), place.name


# The boards whose StreamIDs and names mislead.


def _inspected(corpus: Path, name: str) -> dict:
    (place,) = (corpus / "dtbs").glob(f"{name}*.dtb")
    return inspect_report(Platform.from_tree(blob.read(place.read_bytes()), place.name))


@pytest.mark.parametrize(
    ("name", "first", "smmus"),
    [
        ("hip07", "0x600", ["/iommu@400d0040000", "/iommu@408d0040000", "/iommu@8d0040000",
                            "/iommu@d0040000"]),
        ("morello-sdp", "0x0", ["/iommu@4f000000", "/iommu@4f400000", "/soc/iommu@2ce00000"]),
        ("tegra264", "0x10000", ["/bus@8100000000/iommu@5000000",
                                 "/bus@8100000000/iommu@6000000"]),
    ],
)  # fmt: skip
def test_one_stream_id_on_several_smmus_is_no_conflict(corpus, name, first, smmus):
    report = _inspected(corpus, name)
    groups = {group["first"]: group["smmus"] for group in report["stream_ids"]["on_several_smmus"]}
    assert groups[first] == smmus
    assert report["stream_ids"]["shared"] == []
    told = [found for found in report["findings"] if found["rule"] == "DT502"]
    assert len(told) == len(groups)
    assert all("vMasterIDs" in found["text"] for found in told)
    assert {found["severity"] for found in told} == {"note"}
    assert "DT503" not in {found["rule"] for found in report["findings"]}


def test_imx95_has_one_smmu_and_twelve_monitors(corpus):
    report = _inspected(corpus, "imx95")
    assert [smmu["path"] for smmu in report["smmus"]] == ["/soc/bus@49000000/iommu@490d0000"]
    monitors = {pmcg["path"] for pmcg in report["pmcgs"]}
    assert len(monitors) == 12
    assert not monitors & {smmu["path"] for smmu in report["smmus"] + report["other_iommus"]}


def test_tegra264_has_two_smmus_of_one_basename(corpus):
    smmus = {smmu["path"]: smmu for smmu in _inspected(corpus, "tegra264")["smmus"]}
    alike = [path for path in smmus if path.endswith("/iommu@6000000")]
    assert alike == ["/bus@8100000000/iommu@6000000", "/bus@8800000000/iommu@6000000"]
    assert [smmus[path]["base"] for path in alike] == ["0x8106000000", "0x8806000000"]
    assert [smmus[path]["status"] for path in alike] == ["okay", "disabled"]
