# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run` with folders, several files and seeds: order, processes, JUnit, JSON, exit codes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from dt_tools import blob
from dt_tools.dts import to_dts
from vsmmu.cli.run_cases import Outcome, find_files
from vsmmu.cli.run_text import _print_grid

from .command import vsmmu

ROOT = Path(__file__).resolve().parents[2]
PLACE = """schema = "vsmmu.scenario/1"
machine.devices = { nic = "smmu0:0x10" }
guest = [{ name = "red", devices = ["nic"] }]
actor = [{ guest = "red", do = "static", operations = 3 }]
"""
FAILS = PLACE.replace('"red", dev', '"red", dma = { fault = 1 }, dev')
WRONG = "3: red: expected 1 DMA requests with outcome fault, got 0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with scenarios that hold, that do not, that cannot be read, and other things."""
    for name, text in {
        "s/b/two.toml": 'seeds = "1-2"\n' + PLACE,
        "s/a.toml": FAILS,
        "s/b.toml": PLACE,
        "s/bad.toml": PLACE + "x = \n",
        "s/other.toml": "[project]\nname = 1\n",
        "s/text.md": PLACE,
        "s/.hidden/c.toml": PLACE,
        "s/host.toml": 'schema = "vsmmu.scenario/1"\nhost = "none.dtb"\n' + PLACE.split("\n", 2)[2],
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def docs_example() -> str:
    text = (ROOT / "docs/scenarios.md").read_text()
    found = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_of_the_documentation(folder, capsys):
    """Ten lines, two guests, and the command beside it, exactly as they stand there."""
    example = docs_example()
    assert len(example.splitlines()) == 10
    command = re.search(r"```\n(vsmmu run .*)\n```", (ROOT / "docs/scenarios.md").read_text())
    assert command is not None
    (folder / "two.toml").write_text(example)
    code, out, err = vsmmu(capsys, *command[1].split()[1:])
    assert (code, err) == (0, "")
    assert out.endswith("3 runs of 1 scenario: 3 as expected\n")
    root = checked((folder / "out.xml").read_bytes())
    assert [case.attrib["name"] for case in root.iter("testcase")] == ["seed 1", "seed 2", "seed 3"]


def test_the_sample_with_actors(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = vsmmu(capsys, "run", "samples/busy.toml")
    assert code == 0
    assert re.sub(r"\d+ units", "N units", out).splitlines() == [
        "ok      samples/busy.toml seed 1: 2 steps, 3 actors, N units of virtual time",
        "ok      samples/busy.toml seed 2: 2 steps, 3 actors, N units of virtual time",
        "2 runs of 1 scenario: 2 as expected",
    ]


def test_one_run_with_an_actor_is_golden(folder, capsys, update_goldens):
    text = PLACE.replace('"static", operations = 3', '"faulting", operations = 3, note = "why"')
    (folder / "x.toml").write_text(text.replace('"red", dev', '"red", events = 9, dev'))
    code, out, _ = vsmmu(capsys, "run", "x.toml")
    assert code == 3
    golden = ROOT / "tests/golden/run-actor.txt"
    if update_goldens:
        golden.write_text(out)
    assert out == golden.read_text()


def test_a_summary_of_several_is_json(folder, capsys):
    code, _, err = vsmmu(capsys, "run", "s/b", "--summary")
    reason = "2 runs; give one scenario and seed, or --json"
    assert (code, err) == (1, f"vsmmu: --summary: {reason}\n")
    _, out, _ = vsmmu(capsys, "run", "s/b", "--summary", "--json")
    assert all("summary" in run for run in json.loads(out)["runs"])


LINES = [
    "FAILED  s/a.toml seed 0: 1 actor, N units of virtual time",
    f"        s/a.toml:{WRONG}",
    "ok      s/b/two.toml seed 1: 1 actor, N units of virtual time",
    "ok      s/b/two.toml seed 2: 1 actor, N units of virtual time",
    "ok      s/b.toml seed 0: 1 actor, N units of virtual time",
    "ERROR   s/bad.toml",
    "        s/bad.toml:5: not a TOML file: Invalid value, column 5",
    "ERROR   s/host.toml seed 0",
    "        s/none.dtb: cannot read: no such file or directory",
    "6 runs of 5 scenarios: 3 as expected, 1 not as expected, 2 could not be run",
]


def test_a_folder(folder, capsys, update_goldens):
    code, out, err = vsmmu(capsys, "run", "s", "--junit", "out.xml")
    assert re.sub(r"\d+ units", "N units", out).splitlines() == LINES
    assert err.splitlines() == [
        "vsmmu: notice: s/other.toml: skipped, it does not mention the schema of scenarios",
        "vsmmu: s/bad.toml:5: not a TOML file: Invalid value, column 5",
        "vsmmu: s/none.dtb: cannot read: no such file or directory",
    ]
    assert code == 2
    root = checked((folder / "out.xml").read_bytes())
    (failure,) = root.iter("failure")
    assert failure.text == f"s/a.toml:{WRONG}"
    assert [e.attrib["type"] for e in root.iter("error")] == ["ScenarioError", "FileError"]
    golden = ROOT / "tests/golden/run-junit.xml"
    # How long a run takes is for other tests.
    text = re.sub(r"\d+ units", "N units", (folder / "out.xml").read_text())
    if update_goldens:
        golden.write_text(text)
    assert text == golden.read_text()


def test_the_output_does_not_depend_on_processes(folder, capsys):
    """In fresh interpreters, whose order of sets is another one."""
    inputs, seen = ["s/a.toml", "s/b", "s/bad.toml"], []
    for jobs in ("1", "2"):
        told = vsmmu(capsys, "run", *inputs, "--json", "--junit", "out.xml", "-j", jobs)
        seen.append((told, (folder / "out.xml").read_bytes()))
    assert seen[0] == seen[1]
    assert seen[0][0][0] == 2


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        (["s/b.toml", "s/a.toml"], 3),
        (["s/host.toml", "s/bad.toml"], 1),
        (["s/a.toml", "s/bad.toml", "s/host.toml"], 2),
        (["s/bad.toml"], 2),
        (["s/other.toml"], 2),
        (["s/none.toml"], 1),
        (["s/none.toml", "s/b.toml"], 1),
    ],
)
def test_exit_codes(folder, capsys, inputs, wanted):
    assert vsmmu(capsys, "run", *inputs)[0] == wanted


def test_a_file_that_is_not_there_does_not_stop_the_others(folder, capsys):
    code, out, err = vsmmu(capsys, "run", "s/none.toml", "s/b.toml")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["ERROR", "s/none.toml:", "ok", "2"]
    reason = "cannot read: no such file or directory; nearest: s/other.toml"
    assert err == f"vsmmu: s/none.toml: {reason}\n"


def test_several_are_one_envelope(folder, capsys):
    _, out, _ = vsmmu(capsys, "run", "s", "--json")
    report = json.loads(out)
    assert (report["schema"], report["ok"]) == ("vsmmu.run/2", False)
    assert report["other_files"] == ["s/other.toml"]
    runs = report["runs"]
    assert [(r["scenario"], r["seed"], r["ok"]) for r in runs] == [
        ("s/a.toml", 0, False), ("s/b/two.toml", 1, True), ("s/b/two.toml", 2, True),
        ("s/b.toml", 0, True), ("s/bad.toml", None, False), ("s/host.toml", 0, False),
    ]  # fmt: skip
    assert {r["schema"] for r in runs[:4]} == {"vsmmu.run/1"}
    assert [r["error"]["exit_code"] for r in runs[4:]] == [2, 1]
    assert runs[0]["failures"] == [{
        "file": "s/a.toml", "line": 3, "step": None, "actor": None, "guest": "red",
        "text": "expected 1 DMA requests with outcome fault, got 0",
    }]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [
        (["s/b.toml"], "vsmmu.run/1"),
        (["s/b/two.toml", "--seed", "7"], "vsmmu.run/1"),
        (["s/b/two.toml"], "vsmmu.run/2"),
        (["s/b.toml", "--seed", "1-2"], "vsmmu.run/2"),
        (["s/b", "--seed", "3"], "vsmmu.run/2"),
    ],
)
def test_one_file_and_one_seed_are_no_envelope(folder, capsys, arguments, schema):
    code, out, _ = vsmmu(capsys, "run", "--json", *arguments)
    assert (code, json.loads(out)["schema"]) == (0, schema)


@pytest.mark.parametrize(("text", "wanted"), [(PLACE, 0), (FAILS, 3), (PLACE + "x", 2)])
def test_standard_input(folder, capsys, monkeypatch, text, wanted):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, out, err = vsmmu(capsys, "run", "-")
    assert code == wanted
    assert wanted != 3 or f"FAILED -:{WRONG}" in out
    assert err.startswith("vsmmu: -:5: not a TOML file" if wanted == 2 else "")


def test_an_output_that_is_stdout_is_refused(folder):
    """`--junit out > out` would leave one of the two."""
    command = [sys.executable, "-c", "import sys; from vsmmu.cli import main; sys.exit(main())"]
    with open(folder / "out", "wb") as out:
        done = subprocess.run(
            [*command, "run", "s/b.toml", "--junit", "out"], stdout=out, stderr=subprocess.PIPE,
            check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"vsmmu: --junit out: give a file; stdout has the report\n"


def test_what_is_unreadable_in_a_folder_fails_alone(folder, capsys):
    """A dangling link is a failure of its own; pipes and hidden files are not looked at."""
    os.symlink("nowhere", folder / "s/b/link.toml")
    os.symlink("user@host.1234:5678", folder / "s/b/.#two.toml")
    os.mkfifo(folder / "s/b/pipe.toml")
    code, out, _ = vsmmu(capsys, "run", "s/b")
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "ERROR   s/b/link.toml",
        "        s/b/link.toml",
        "ok      s/b/two.toml seed 1",
        "ok      s/b/two.toml seed 2",
        "3 runs of 2 scenarios",
    ]
    assert "s/b/link.toml: cannot read: no such file or directory; nearest: s/b/pipe.toml\n" in out


def test_a_folder_that_cannot_be_listed_is_told(folder, capsys, monkeypatch):
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("s/b"):
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    code, out, _ = vsmmu(capsys, "run", "s")
    assert code == 1
    assert "ERROR   s/b\n        s/b: cannot read: " in out


def test_another_name_of_a_folder_counts_once(folder):
    os.symlink("b", folder / "s/link")
    assert find_files(["s/b", "./s/b/two.toml", "s/link"])[0] == ["s/b/two.toml"]


def test_the_same_file_counts_once(folder):
    paths, others = find_files(["s/b.toml", "s", "s/b.toml"])
    assert paths == [
        "s/b.toml", "s/a.toml", "s/b/two.toml", "s/bad.toml", "s/host.toml",
    ]  # fmt: skip
    assert others == ["s/other.toml"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["empty"], "empty: no scenario in it (*.toml with a schema of ours)"),
        (["s/b/two.toml", "--trace", "t"], "--trace t: 2 runs; give one scenario and seed"),
        (["s/b.toml", "--junit", "-"], "--junit -: give a file; stdout has the report"),
        (["s/b.toml", "--junit", "s/b.toml"], "s/b.toml: cannot write: it is the input s/b.toml"),
        (["s/b.toml", "--junit", "no/x"], "no/x: cannot write: no such file or directory"),
        (["s/b.toml", ""], "run: a PATH is empty; give a file, a folder, or - for stdin"),
        (["s/b.toml", "--junit", ""], "--junit: the name of the file is empty"),
        (["s/b.toml", "--trace", "t", "--perfetto", "t"], "t: cannot write: the same file as t"),
        (
            ["s/b.toml", "--trace", "t.xz", "--record", "t.xz"],
            "t.xz: cannot write: the same file as t.xz",
        ),
        (["s/b.toml", "--trace", "t", "--junit", "./t"], "./t: cannot write: the same file as t"),
        (
            ["s/host.toml", "--junit", "s/none.dtb"],
            "s/none.dtb: cannot write: it is the input s/none.dtb",
        ),
        (
            ["s/b.toml", "--policy"],
            "--policy: prints what holds where a scenario says nothing; no PATH",
        ),
        (
            ["s/b.toml", "--trace-events"],
            "--trace-events: prints what any scenario can have; no PATH",
        ),
        (
            ["--policy", "--trace-events"],
            "--policy and --trace-events each print a list; give one of them",
        ),
    ],
)
def test_misuse_is_exit_1(folder, capsys, arguments, line):
    (folder / "empty").mkdir()
    (folder / "empty/x.toml").write_text("x = 1\n")
    code, _, err = vsmmu(capsys, "run", *arguments)
    assert (code, err.splitlines()[-1]) == (1, f"vsmmu: {line}")
    assert "schema" in (folder / "s/b.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-j", "0"], "argument -j/--jobs: expected 1 to 256, not '0'"),
        (["-j", "9" * 5000], "argument -j/--jobs: expected 1 to 256, not '" + "9" * 40 + "'"),
        (["--seed", "5-1"], "argument --seed: expected A-B, at most 1000 seeds"),
        (["--seed", "1-x"], "argument --seed: expected 0 to 2^64-1, not 'x'"),
        (["--seed", "-1"], "argument --seed: expected 0 to 2^64-1, not '-1'"),
        (["--seed", "٣"], "argument --seed: expected 0 to 2^64-1, not '٣'"),
    ],
)
def test_options_are_checked(folder, capsys, arguments, reason):
    code, _, err = vsmmu(capsys, "run", "s/b.toml", *arguments)
    assert (code, err.splitlines()[-1]) == (1, f"vsmmu run: {reason}")


# JUnit.

# Element -> attributes it must have, attributes it may have, children in their order: what the
# schema of Jenkins's xUnit plugin says of those that are written here.
JUNIT = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "disabled", "errors"},
                   ["testsuite"]),
    "testsuite": ({"name"}, {"tests", "failures", "errors", "time", "disabled", "skipped", "skips",
                             "timestamp", "hostname", "id", "package", "assertions", "file", "log",
                             "url", "version", "group"},
                  ["properties", "testcase", "system-out", "system-err", "testsuite"]),
    "testcase": ({"name"}, {"assertions", "time", "timestamp", "classname", "status", "class",
                            "file", "line", "log", "group", "url"},
                 ["skipped", "error", "failure", "rerunFailure", "system-out", "system-err"]),
    "failure": (set(), {"type", "message"}, []),
    "error": (set(), {"type", "message"}, []),
    "skipped": (set(), {"type", "message"}, []),
    "system-out": (set(), set(), []),
}  # fmt: skip


def checked(data: bytes) -> ElementTree.Element:
    """A JUnit file, its structure and its totals checked."""
    root = ElementTree.fromstring(data)
    assert root.tag == "testsuites"
    for element in root.iter():
        must, may, children = JUNIT[element.tag]
        assert must <= set(element.attrib) <= must | may, element.attrib
        order = [children.index(child.tag) for child in element]
        assert order == sorted(order)
        assert not (children and (element.text or "").strip())
    for suite in (root, *root.iter("testsuite")):
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"),
                          ("skipped", "skipped")):  # fmt: skip
            if name in suite.attrib:
                assert int(suite.attrib[name]) == len(list(suite.iter(tag))), name
    return root


@pytest.mark.parametrize(
    ("name", "tag"), [("a", "failure"), ("b", "system-out"), ("bad", "error"), ("host", "error")]
)
def test_junit_of_one_file(folder, capsys, name, tag):
    vsmmu(capsys, "run", f"s/{name}.toml", "--junit", "out.xml")
    (case,) = checked((folder / "out.xml").read_bytes()).iter("testcase")
    assert tag in [child.tag for child in case]
    assert case.attrib["classname"] == f"s.{name}"


def test_what_xml_cannot_hold_is_escaped(folder, capsys):
    name = "s/b\x1b\udc80&<.toml"
    (folder / name).write_text(PLACE.replace('"red"', '"r\\u0007d"', 1))
    vsmmu(capsys, "run", name, "--junit", "out.xml")
    (case,) = checked((folder / "out.xml").read_bytes()).iter("testcase")
    assert case.attrib["classname"] == r"s.b\x1b\udc80&<"


# Hosts.


def test_a_host_in_source(folder, capsys, monkeypatch):
    if shutil.which("dtc") is None:
        pytest.skip("dtc is not installed")
    tree = blob.read((ROOT / "samples/board.dtb").read_bytes())
    (folder / "board.dts").write_text(to_dts(tree))
    text = 'schema = "vsmmu.scenario/1"\nhost = "board.dts"\n' + PLACE.split("\n", 2)[2]
    (folder / "x.toml").write_text(text.replace('["nic"]', '["/soc/usb@60050000"]'))
    assert vsmmu(capsys, "run", "x.toml", "--seed", "1-2")[0] == 0
    monkeypatch.setenv("PATH", "")
    code, out, _ = vsmmu(capsys, "run", "x.toml", "--seed", "1-2", "--junit", "out.xml")
    assert code == 0
    assert out.splitlines()[-1] == "2 runs of 1 scenario: 2 skipped"
    assert len(list(checked((folder / "out.xml").read_bytes()).iter("skipped"))) == 2


def test_an_outcome_of_nothing_is_ok():
    assert Outcome("x", 1).ok


def test_a_bar_on_a_terminal_only(folder, capsys):
    """On a terminal there is a bar, and stdout has the same bytes."""
    import pty
    import subprocess
    import sys

    arguments = ["run", "s/b.toml", "s/b"]
    code, plain, err = vsmmu(capsys, *arguments)
    assert (code, err) == (0, "")
    command = [sys.executable, "-c", "import sys; from vsmmu.cli import main; sys.exit(main())"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    main, side = pty.openpty()
    shown = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=side, env=environment, check=True
    )
    os.close(side)
    drawn = os.read(main, 1 << 16)
    os.close(main)
    assert shown.stdout.decode() == plain
    assert b"3/3" in drawn


def test_a_wide_table_goes_on_below_on_a_terminal():
    """Columns of a group stay together; what is no terminal gets whole rows."""
    groups = [[["red", "1"], ["unmap", "22"]], [["a-long-name", "1234567"], ["unmap", "-"]]]
    for terminal, wanted in (
        (True, ["     red   unmap", "x      1      22", "  a-long-name   unmap",
                "x      1234567       -"]),
        (False, ["     red   unmap  a-long-name   unmap", "x      1      22      1234567       -"]),
    ):  # fmt: skip
        out = io.StringIO()
        console = Console(
            file=out, width=30, force_terminal=terminal, soft_wrap=True, highlight=False
        )
        _print_grid(console, ["", "x"], groups)
        assert [line.split() for line in out.getvalue().splitlines()] == [
            line.split() for line in wanted
        ]
        assert all(len(line) <= 30 for line in out.getvalue().splitlines()) is terminal
