# SPDX-License-Identifier: BSD-2-Clause
"""docs/live.md: its example is built and run as it stands, its tables agree with the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vsmmu.testing.live import DmaEngine, Places
from vsmmu.testing.live.boards import SMMU_BASE, SMMU_STRIDE
from vsmmu.testing.live.devices import CONSOLE_MAX, LEN_MAX

from .build import needs_live

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/live.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@needs_live
def test_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    (source,), (command,) = blocks("c"), blocks("sh")
    Path("probe.c").write_text(source)
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names: dict[str, object] = {}
    for program, printed in zip(blocks("python"), blocks("text"), strict=True):
        exec(program, names)
        assert capsys.readouterr().out == printed


def test_the_tables() -> None:
    places = Places()
    rows = {
        "GICv2 distributor, CPU interface": f"{places.gicd:#010x}, {places.gicc:#010x}",
        "physical SMMUs": f"{SMMU_BASE:#010x}, then every {SMMU_STRIDE:#x}",
        "console": f"{places.console:#010x}",
        "exit": f"{places.exit:#010x}",
        "DMA engines": f"{places.dma:#010x}, then every 0x1000",
        "LEN": "0x10",
    }
    for name, cell in rows.items():
        assert f"| {name} | {cell} |" in TEXT, name
    assert f"at most {LEN_MAX} |" in TEXT
    assert f"{CONSOLE_MAX >> 10} KiB of console" in TEXT
    states = DmaEngine.BUSY, DmaEngine.DONE, DmaEngine.ERR
    assert "{} busy, {} done, {} error".format(*states) in TEXT
