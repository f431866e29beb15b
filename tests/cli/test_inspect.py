# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu inspect` as a user meets it: its options, exit codes, files and progress bar."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from dt_tools import blob
from dt_tools.iort import Iort, SmmuV3, write
from vsmmu.cli import main


@pytest.fixture
def place(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "board.dtb").write_bytes((samples / "board.dtb").read_bytes())
    (tmp_path / "bad.dtb").write_bytes(b"not a tree")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vsmmu(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(["inspect", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


# (arguments, the line on stderr)
USAGE = {
    "html and diff": (["--html", "x", "--diff", "a", "b"], "--diff and --html do not go together"),
    "device and html": (
        ["--html", "x", "--device", "/soc", "a"],
        "--device and --html do not go together",
    ),
    "device and diff": (
        ["--diff", "--device", "/soc", "a", "b"],
        "--device and --diff do not go together",
    ),
    "diff of one": (["--diff", "a"], "--diff compares two boards, not 1"),
    "diff of three": (["--diff", "a", "b", "c"], "--diff compares two boards, not 3"),
    "two on stdout": (["--json", "--html", "-", "a"], "--html - and --json both write to stdout"),
}


@pytest.mark.parametrize(("arguments", "line"), USAGE.values(), ids=USAGE)
def test_options_that_do_not_go_together(place, capsys, arguments, line):
    assert vsmmu(capsys, *arguments) == (1, "", f"vsmmu: {line}\n")


def test_boards_are_apart(place, capsys):
    code, out, err = vsmmu(capsys, "board.dtb", "board.dtb")
    assert (code, err) == (0, "")
    first, second = out.split("\n\nboard.dtb: ")
    assert first == f"board.dtb: {second.rstrip()}"


# --device


def test_one_device(place, capsys):
    code, out, err = vsmmu(capsys, "--device", "/soc/crypto@61000000", "board.dtb")
    assert (code, err) == (0, "")
    assert out.startswith("/soc/crypto@61000000\n  board       board.dtb\n")
    assert "  vMasterID  0x0 stands for 0x600 of /soc/iommu@51000000\n" in out


def test_one_device_as_json(place, capsys):
    code, out, _ = vsmmu(capsys, "--json", "--device", "/soc/crypto@61000000", "board.dtb")
    assert code == 0
    found = json.loads(out)
    assert found["schema"] == "vsmmu.inspect.device/1"
    (binding,) = found["guest"]["bindings"]
    assert (binding["vmaster_id"], binding["pmaster_id"]) == (0, "0x600")


def test_an_unknown_device_is_exit_2_and_others_are_shown(place, capsys):
    code, out, err = vsmmu(capsys, "--device", "/soc/crypt@61000000", "board.dtb", "bad.dtb")
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == (
        "vsmmu: board.dtb: /soc/crypt@61000000: no such node; nearest: /soc/crypto@61000000"
    )
    assert err.splitlines()[1].startswith("vsmmu: bad.dtb: ")


# --diff


def test_no_difference_is_exit_0(place, capsys):
    code, out, err = vsmmu(capsys, "--diff", "board.dtb", "board.dtb")
    assert (code, err) == (0, "")
    assert out == (
        "- board.dtb\n+ board.dtb\nno difference in SMMUs, masters, StreamIDs and interrupts\n"
    )


def test_a_difference_is_exit_3(place, capsys):
    tree = blob.read(Path("board.dtb").read_bytes())
    tree.root.children["soc"].remove("iommu@52000000")
    tree.root.children["soc"].remove("pcie@40000000")
    Path("other.dtb").write_bytes(blob.write(tree))
    code, out, err = vsmmu(capsys, "--diff", "board.dtb", "other.dtb")
    assert (code, err) == (3, "")
    assert "\nSMMUs: 1\n- /soc/iommu@52000000: arm,smmu-v3, okay, 0x52000000\n" in out
    code, out, _ = vsmmu(capsys, "--json", "--diff", "other.dtb", "board.dtb")
    assert code == 3
    found = json.loads(out)
    assert (found["schema"], found["equal"]) == ("vsmmu.inspect.diff/1", False)
    assert {row["change"] for row in found["changes"]} == {"added"}


def test_a_board_that_fails_ends_a_diff(place, capsys):
    code, out, err = vsmmu(capsys, "--diff", "board.dtb", "bad.dtb")
    assert (code, out) == (2, "")
    assert err.startswith("vsmmu: bad.dtb: ")


# --html


def test_html_to_a_file(place, capsys):
    code, out, err = vsmmu(capsys, "board.dtb", "--html", "x.html")
    assert (code, out, err) == (0, "", "")
    text = Path("x.html").read_text()
    assert text.startswith("<!DOCTYPE html>\n")
    assert text.count("data-smmu=") == 3
    vsmmu(capsys, "board.dtb", "--html", "y.html")
    assert Path("y.html").read_text() == text


def test_html_to_stdout(place, capfdbinary):
    assert main(["inspect", "board.dtb", "--html", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"<!DOCTYPE html>\n")
    assert err == b""


def test_html_of_the_boards_that_can_be_read(place, capsys):
    code, out, err = vsmmu(
        capsys, "--json", "board.dtb", "bad.dtb", "board.dtb", "--html", "x.html"
    )
    assert code == 2
    assert len(out.splitlines()) == 2
    assert err.startswith("vsmmu: bad.dtb: ")
    text = Path("x.html").read_text()
    assert "vsmmu inspect: 2 boards" in text
    assert text.count("data-smmu=") == 6


def test_html_is_not_written_over_a_board_or_without_one(place, capsys):
    before = Path("board.dtb").read_bytes()
    code, _, err = vsmmu(capsys, "board.dtb", "--html", "board.dtb")
    assert (code, err) == (1, "vsmmu: board.dtb: cannot write: it is the input board.dtb\n")
    assert Path("board.dtb").read_bytes() == before
    code, _, _ = vsmmu(capsys, "bad.dtb", "--html", "x.html")
    assert (code, Path("x.html").exists()) == (2, False)
    code, _, err = vsmmu(capsys, "board.dtb", "--html", "nothere/x.html")
    assert (code, err) == (1, "vsmmu: nothere/x.html: cannot write: no such file or directory\n")


# The progress bar.


def on_a_terminal(*arguments: str, stdout: bool = False) -> tuple[int, str, str]:
    """Exit code, what went to the terminal on stderr, what went to stdout if that was a pipe."""
    script = "import sys; from vsmmu.cli import main; sys.exit(main(sys.argv[1:]))"
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", script, "inspect", *arguments],
        stdout=slave if stdout else subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"},
    )
    os.close(slave)
    shown, out = b"", b""
    streams = [master] if child.stdout is None else [master, child.stdout.fileno()]
    while streams:
        for one in select.select(streams, [], [], 60)[0]:
            try:
                part = os.read(one, 65536)
            except OSError:  # a terminal whose other end is closed
                part = b""
            if not part:
                streams.remove(one)
            elif one == master:
                shown += part
            else:
                out += part
    os.close(master)
    if child.stdout is not None:
        child.stdout.close()
    return child.wait(), shown.decode(), out.decode()


def test_many_boards_have_a_progress_bar(place):
    names = ["board.dtb"] * 5 + ["bad.dtb"]
    code, shown, out = on_a_terminal("--json", *names)
    assert code == 2
    assert len(out.splitlines()) == 5
    assert "inspect" in shown
    assert "100%" in shown
    assert "vsmmu: bad.dtb: " in shown


def test_few_boards_and_reports_on_the_terminal_have_none(place):
    code, shown, out = on_a_terminal("--json", *["board.dtb"] * 3)
    assert (code, shown, len(out.splitlines())) == (0, "", 3)
    code, shown, _ = on_a_terminal(*["board.dtb"] * 5, stdout=True)
    assert code == 0
    assert "100%" not in shown
    assert shown.count("vsmmu sample board") == 5
    assert "\x1b[1m" in shown


# Cost.


def test_a_plain_report_loads_no_heavy_module(place):
    script = (
        "import sys; from vsmmu.cli import main; main(['inspect', 'board.dtb']); "
        "print(sorted({'rich', 'fdt', 'lark', 'numpy', 'html', 'dt_tools.report.html', "
        "'dt_tools.report.explain'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr.strip() == "[]"


def test_an_iort_is_told_by_its_first_letters(tmp_path, capsys):
    table = tmp_path / "iort.bin"
    table.write_bytes(write(Iort((SmmuV3(revision=5, base=0x9050000),))))
    assert main(["inspect", str(table)]) == 0
    assert "0x9050000" in capsys.readouterr().out
    assert main(["inspect", "--json", str(table)]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "vsmmu.iort/1"
    assert main(["inspect", "--device", "/x", str(table)]) == 1
    assert capsys.readouterr().err == (
        f"vsmmu: {table}: an IORT has no device tree's paths; --device is for boards\n"
    )
