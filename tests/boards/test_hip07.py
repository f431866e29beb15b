# SPDX-License-Identifier: BSD-2-Clause
"""hip07-d05: four engines with StreamID 0x600, each behind an SMMUv3 of its own.

The board's tree is third-party data; these tests skip where the corpus is absent.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dt_tools import blob
from vsmmu.cli import main
from vsmmu.cli.run import execute

ENGINES = {
    "/soc/crypto@d0000000": "/iommu@d0040000",
    "/soc/crypto@8d0000000": "/iommu@8d0040000",
    "/soc/crypto@400d0000000": "/iommu@400d0040000",
    "/soc/crypto@408d0000000": "/iommu@408d0040000",
}
PAIRS = list(itertools.permutations(ENGINES, 2))


def _config(name: str, *devices: str) -> str:
    listed = ", ".join(f'"{d}"' for d in devices)
    return f'name="{name}"\nkernel="k"\nmemory=128\nviommu="smmuv3"\ndtdev=[{listed}]\n'


@pytest.fixture
def board(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return corpus / "dtbs" / "hip07-d05.dtb"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "+".join(d.rpartition("@")[2] for d in p))
def test_guest_tree_and_map(pair, board, capsys):
    Path("g.cfg").write_text(_config("g", *pair))
    argv = ["guest-dtb", "--host", str(board), "g.cfg", "-o", "g.dtb", "--bindings", "b.json"]
    assert main(argv) == 0
    tree = blob.read(Path("g.dtb").read_bytes())
    smmus = [n for n in tree.walk() if n.is_compatible("arm,smmu-v3")]
    assert [(n.path, n.phandle, n.u32("#iommu-cells")) for n in smmus] == [
        ("/iommu@4040000", 65002, 1)
    ]
    devices = [n for n in tree.walk() if "iommus" in n.props]
    assert [n.cells("iommus") for n in devices] == [(65002, 0), (65002, 1)]
    assert all(n.path.startswith("/passthrough/") for n in devices)
    assert all("interrupts" not in n.props for n in devices)
    bindings = json.loads(Path("b.json").read_text())["bindings"]
    assert [(b["vmaster_id"], b["smmu"], b["pmaster_id"]) for b in bindings] == [
        (0, ENGINES[pair[0]], "0x600"),
        (1, ENGINES[pair[1]], "0x600"),
    ]
    err = capsys.readouterr().err
    for device in pair:
        assert f"notice: DT302 {device}: interrupts dropped: 33 of " in err
        above = int(device.rpartition("@")[2], 16) >= 1 << 40
        assert (f"notice: DT207 {device}: registers " in err) == above
    if shutil.which("dtc"):
        done = subprocess.run(
            ["dtc", "-I", "dtb", "-O", "dts", "-o", "/dev/null", "g.dtb"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "ERROR" not in done.stderr


def test_dom0_has_a_vsmmu_for_each_enabled_smmu(board, capsys):
    assert main(["dom0-dtb", str(board), "-o", "dom0.dtb"]) == 0
    host, dom0 = blob.read(board.read_bytes()), blob.read(Path("dom0.dtb").read_bytes())
    for device, smmu in ENGINES.items():
        before, after = host.node(smmu), dom0.node(smmu)
        assert before is not None
        assert after is not None
        assert (after.phandle, after.props["reg"]) == (before.phandle, before.props["reg"])
        master = dom0.node(device)
        assert master is not None
        assert master.cells("iommus") == (before.phandle, 0x600)


def _step(guest: str, do: str, device: str, **fields: object) -> str:
    out = [f'[[step]]\nguest = "{guest}"\ndo = "{do}"\ndevice = "{device}"']
    for key, value in fields.items():
        out.append(f"{key} = {json.dumps(value) if key != 'events' else value}")
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_nested_dma_of_two_guests(seed, board):
    """Both engines of a guest, each through its own SMMU; unmapping stops exactly one."""
    one, two, three, four = ENGINES
    Path("a.cfg").write_text(_config("a", one, three))
    Path("b.cfg").write_text(_config("b", two, four))
    text = f'schema = "vsmmu.scenario/1"\nhost = "{board}"\nseed = {seed}\n'
    text += '[[guest]]\nconfig = "a.cfg"\nevents = 3\ngerrors = 0\n'
    text += '[[guest]]\nconfig = "b.cfg"\nevents = 0\ngerrors = 0\n'
    text += '[[step]]\nguests = ["a", "b"]\ndo = "boot"\n'
    for guest, device in (("a", one), ("a", three), ("b", two), ("b", four)):
        text += _step(guest, "attach", device)
        text += _step(guest, "map", device, iova=0x10000, size=0x4000)
        text += _step(guest, "dma", device, iova=0x10F00, size=0x400, events="[]")
    text += _step("a", "unmap", one, iova=0x10000, size=0x4000)
    fault = "[{ type = 'F_TRANSLATION', vmaster_id = %d }]"
    text += _step("a", "dma", one, iova=0x10000, expect="fault", events=fault % 0)
    for guest, device in (("a", three), ("b", two), ("b", four)):
        text += _step(guest, "dma", device, iova=0x10000, op="read", events="[]")
    text += _step("a", "dma", three, iova=0x900000, expect="fault", events=fault % 1)
    text += _step("a", "dma", one, iova=0, expect="fault", events=fault % 0)
    Path("s.toml").write_text(text)
    report = execute("s.toml")
    assert [(s.step.number, s.problems) for s in report.steps if s.problems] == []
    assert report.problems == []
    # Each engine's DMA went through its own physical SMMU and no other.
    for device, smmu in ENGINES.items():
        guest = report.machine.guests["a" if device in (one, three) else "b"]
        assert [p.smmu.name for p in guest.ports[device]] == [smmu]
        counters = report.machine.smmus[smmu].counters
        expected = {one: (2, 2), three: (3, 1), two: (3, 0), four: (3, 0)}[device]
        assert (counters["txn.ok"], counters["txn.fault"]) == expected
        assert counters["walk.s1"] > 0
        assert counters["walk.s2"] > 0
