# SPDX-License-Identifier: BSD-2-Clause
"""The processes of `vsmmu run -j` end with the command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsmmu.cli.run_cases import FileError, make_cases, play_all
from vsmmu.cli.run_pool import pool

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "import sys; from vsmmu.cli import main; __name__ == '__main__' and sys.exit(main())"
# Minutes of work, after a file that gives a line at once.
LONG = """schema = "vsmmu.scenario/1"
seeds = "1-100"
machine.devices = { nic = "smmu0:0x10" }
guest = [{ name = "red", devices = ["nic"] }]
actor = [{ guest = "red", do = "static", operations = 20000 }]
"""
_SECONDS = 60


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, once its processes are at work."""
    (tmp_path / "a.toml").write_text('schema = "vsmmu.scenario/1"\n')
    (tmp_path / "b.toml").write_text(LONG)
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", "-j", "2", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert b"a.toml: guest: expected" in process.stderr.readline()
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
)
def test_a_signal_to_the_command_ends_them_all(
    running: subprocess.Popen[bytes], number: signal.Signals, code: int
) -> None:
    running.send_signal(number)
    # Both streams end when the last process that has them does.
    _, err = running.communicate(timeout=_SECONDS)
    assert running.returncode == code
    # Nobody is left to tidy up semaphores but Python's own tracker, which says so.
    assert err == b"" or (number == signal.SIGKILL and b"leaked semaphore" in err)


def test_an_ignored_signal_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pool(1):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_is_ended_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsmmu.cli.run_cases.play", _ends)
    cases = make_cases([str(tmp_path / n) for n in "ab"], (), wants_json=False, wants_summary=False)
    with pytest.raises(FileError, match=r"^-j: one of the processes was ended from outside; try"):
        list(play_all(cases, 2))


def _ends(case: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
