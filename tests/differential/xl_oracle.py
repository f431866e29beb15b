# SPDX-License-Identifier: BSD-2-Clause
"""Runs `xl create -n` on a configuration."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

COMMAND = "VSMMU_XL"


def command() -> list[str]:
    """The words that start xl; empty when nobody said."""
    return shlex.split(os.environ.get(COMMAND, ""))


def outcome(cfg: str) -> dict[str, Any]:
    """What xl makes of a configuration called cfg: rc, stderr and config."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "cfg").write_bytes(cfg.encode("utf-8", "surrogateescape"))
        done = subprocess.run(
            [*command(), "create", "-n", "cfg"],
            cwd=place,
            capture_output=True,
            timeout=60,
            check=False,
        )
    said = done.stderr.decode("utf-8", "backslashreplace").removesuffix("\n").split("\n")
    lines = [s for s in said if s not in ("", "Parsing config from cfg")]
    lines = [s for s in lines if not s.startswith("qemu:")]
    text = done.stdout.decode("utf-8", "backslashreplace")
    config = None if done.returncode else json.loads(text)
    # A crash ends xl before what it printed last is flushed, or garbles it.
    shown = [] if done.returncode < 0 else lines
    return {"rc": done.returncode, "stderr": shown, "config": config}
