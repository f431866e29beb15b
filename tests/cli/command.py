# SPDX-License-Identifier: BSD-2-Clause
"""Running the command as a user does, without a new process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.cli import main

if TYPE_CHECKING:
    import pytest


def vsmmu(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(str(stop.code or 0))
    out, err = capsys.readouterr()
    return code, out, err
