# SPDX-License-Identifier: BSD-2-Clause
"""Builds the programs of tests/live with the cross compiler."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PREFIX = "aarch64-linux-gnu-"
FLAGS = (
    "-O2", "-std=c11", "-ffreestanding", "-fpie", "-mgeneral-regs-only", "-mstrict-align",
    "-Wall", "-Wextra",
)  # fmt: skip
LINK = (
    "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096",
    "-Wl,--no-warn-rwx-segments",
)  # fmt: skip
BASE = 0x4008_0000
# The programs of checks.S in the order of the table at its start.
PROGRAMS = re.findall(r"^    b       (\w+)$", (HERE / "checks.S").read_text(), re.MULTILINE)


class Builder:
    """Programs by what they are made of, each built once whatever test or process wants it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)

    def make(self, suffix: str, *parts: str | Path, tool: str = "gcc") -> Path:
        """Run a tool of the cross compiler with `parts` and `-o` to a new file."""
        key = hashlib.sha256()
        for part in (tool, *parts):
            key.update(part.read_bytes() if isinstance(part, Path) else part.encode())
            key.update(b"\0")
        place = self.folder / (key.hexdigest()[:24] + suffix)
        if not place.exists():
            # Another process may be building the same.
            own = place.with_suffix(f".{os.getpid()}")
            done = subprocess.run(
                [PREFIX + tool, *map(str, parts), "-o", str(own)],
                cwd=HERE / "driver", capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            own.rename(place)
        return place

    def source(self, name: str, *options: str) -> Path:
        """An object file of a source of the driver."""
        headers = b"".join(p.read_bytes() for p in sorted((HERE / "driver").glob("*.h")))
        mark = f"-DHEADERS=0x{hashlib.sha256(headers).hexdigest()[:8]}"
        return self.make(".o", *FLAGS, mark, *options, "-c", HERE / "driver" / name)

    def driver(self, *mistakes: str, base: int = BASE) -> bytes:
        """The driver as an ELF file, with what it is to do wrong."""
        objects = [
            self.source("start.S"),
            self.source("smmu.c", *(f"-DMISTAKE_{m}" for m in mistakes)),
            self.source("main.c"),
        ]
        script = HERE / "driver/driver.ld"
        place = f"-Wl,--defsym=BASE={base:#x}"
        return self.make(".elf", *LINK, place, "-T", script, *objects).read_bytes()

    def objcopy(self, elf: bytes) -> bytes:
        """An ELF file as a flat binary."""
        source = self.folder / f"{hashlib.sha256(elf).hexdigest()[:24]}.{os.getpid()}"
        source.write_bytes(elf)
        flat = source.with_suffix(source.suffix + ".bin")
        command = [PREFIX + "objcopy", "-O", "binary", str(source), str(flat)]
        subprocess.run(command, check=True, timeout=60)
        return flat.read_bytes()

    def program(self, *sources: Path, options: Sequence[str] = ()) -> bytes:
        """Sources, linked as the driver is, as an ELF file."""
        script = HERE / "driver/driver.ld"
        place = f"-Wl,--defsym=BASE={BASE:#x}"
        parts = (*FLAGS, *options, *LINK, place, "-T", script, *sources)
        return self.make(".elf", *parts).read_bytes()


def why_not() -> str | None:
    """Why no program of these can be built or run here."""
    from vsmmu.testing.live import missing

    if shutil.which(PREFIX + "gcc") is None:
        return f"no {PREFIX}gcc (apt install gcc-aarch64-linux-gnu)"
    return missing()


needs_live = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
