# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def place(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the sample board and two configs of it."""
    for name in ("board.dtb", "crypto.cfg", "media.cfg"):
        (tmp_path / name).write_bytes((samples / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path
