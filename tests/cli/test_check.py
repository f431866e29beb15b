# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu check`: which file is what, the switches, the three outputs, how it leaves."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dt_tools import blob
from dt_tools.checks import RULES
from tests.dt_tools.test_checks import BY_HAND, GUEST, HOST, PARTIAL, cfg_of, edited, tree_of
from vsmmu.cli import Parser, check
from vsmmu.cli.files import guarded
from xl_configs.errors import DIAGNOSTICS


def run(*arguments: str) -> int:
    parser = Parser(prog="vsmmu check")
    check.add_arguments(parser)
    try:
        return guarded(lambda: check.run(parser.parse_args(arguments)))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sound board, a guest of it, and a guest with a partial tree."""
    monkeypatch.chdir(tmp_path)
    Path("host.dtb").write_bytes(blob.write(tree_of(HOST)))
    Path("a.cfg").write_bytes(cfg_of(GUEST))
    Path("hand.cfg").write_bytes(cfg_of({**GUEST, **BY_HAND}))
    Path("p.dtb").write_bytes(blob.write(tree_of(PARTIAL)))
    return tmp_path


def write_partial(name: str, edits: dict[str, object]) -> None:
    Path(name).write_bytes(blob.write(tree_of(edited(PARTIAL, edits))))


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[tuple[str, str, str]]:
    """(file, severity, id) of each finding."""
    run(*arguments, "--json")
    findings = json.loads(capsys.readouterr().out)["findings"]
    return [(f["file"], f["severity"], f["id"]) for f in findings]


# What is found, and how it is printed.


def test_a_sound_world(place, capsys):
    assert run("host.dtb", "a.cfg") == 0
    assert capsys.readouterr() == ("host.dtb, a.cfg: nothing found\n", "")
    assert run("host.dtb", "hand.cfg") == 0
    assert capsys.readouterr().out == "host.dtb, hand.cfg, p.dtb: nothing found\n"


def test_a_finding_in_text(place, capsys):
    Path("a.cfg").write_bytes(cfg_of({**GUEST, "dtdev": ["/soc/dma@70000000"]}))
    assert run("host.dtb", "a.cfg") == 3
    assert capsys.readouterr().out.splitlines() == [
        "a.cfg:5: error DT102 /soc/dma@70000000: no such node in the host tree",
        "    help: nearest: /soc/dma@60000000 (or 1 more alike)",
        "host.dtb, a.cfg: 1 error",
    ]


def test_notes_alone_leave_with_0(place, capsys):
    Path("a.cfg").write_bytes(cfg_of({**GUEST, "nr_spis": 1}))
    assert run("host.dtb", "a.cfg") == 0
    assert capsys.readouterr().out.endswith("host.dtb, a.cfg: 1 note\n")


def test_many_findings_of_a_rule_are_counted(place, capsys):
    Path("a.cfg").write_bytes(cfg_of({**GUEST, "dtdev": [f"/no{n}" for n in range(13)]}))
    assert run("host.dtb", "a.cfg") == 3
    lines = capsys.readouterr().out.splitlines()
    assert sum(" DT102 /no" in line for line in lines) == 10
    assert lines[-2:] == ["    and 3 more DT102 errors", "host.dtb, a.cfg: 13 errors"]
    run("host.dtb", "a.cfg", "--show", "0")
    lines = capsys.readouterr().out.splitlines()
    assert sum(" DT102 /no" in line for line in lines) == 13


def test_text_of_the_inputs_cannot_write_to_a_terminal(place, capsys):
    keys = cfg_of(GUEST).replace(b"/soc/dma@60000000", b"/soc/\x1b[31m\xff\xe2\x80\xae")
    Path("a.cfg").write_bytes(keys)
    assert run("host.dtb", "a.cfg") == 3
    out = capsys.readouterr().out
    assert "DT102 /soc/\\x1b[31m\\udcff\\u202e: no such node" in out
    assert run("host.dtb", "a.cfg", "--json", "--sarif", "s.json") == 3
    assert json.loads(capsys.readouterr().out)["findings"][0]["path"].startswith("/soc/\x1b[31m\\")
    json.loads(Path("s.json").read_text())


def test_on_a_terminal(place, monkeypatch):
    Path("a.cfg").write_bytes(cfg_of({**GUEST, "dtdev": ["/soc/uart@70000000"]}))
    monkeypatch.setenv("COLUMNS", "60")
    for no_colour, mark in ((None, "\x1b[1;31merror DT101\x1b[0m"), ("1", "error DT101")):
        if no_colour:
            monkeypatch.setenv("NO_COLOR", no_colour)
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
        out = io.StringIO()
        out.isatty = lambda: True
        monkeypatch.setattr(sys, "stdout", out)
        assert run("host.dtb", "a.cfg") == 3
        lines = out.getvalue().splitlines()
        assert lines[0].startswith(f"a.cfg:5: {mark} /soc/uart@70000000: is")
        assert all(len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= 60 for line in lines)
        assert ("\x1b" in out.getvalue()) is (no_colour is None)


def test_what_xl_warns_about_is_told_with_its_line(place, capsys):
    Path("a.cfg").write_bytes(cfg_of(GUEST) + b"vcpis=2\n")
    assert run("host.dtb", "a.cfg") == 3
    assert capsys.readouterr().out.splitlines()[0] == (
        "a.cfg:6: warning XL101: vcpis: unknown key, ignored by xl; did you mean vcpus?"
    )
    assert run("host.dtb", "a.cfg", "-W", "no-XL101") == 0


def test_a_configuration_that_xl_refuses(place, capsys):
    Path("b.cfg").write_text('name="b"\nvcpus=@\n')
    assert found(capsys, "host.dtb", "b.cfg", "a.cfg") == [("b.cfg", "error", "XL001")]
    assert run("host.dtb", "b.cfg") == 3
    assert capsys.readouterr().out.splitlines()[0].startswith("b.cfg:2: error XL001: near `@'")


# Which file is what.


def test_files_are_told_by_their_content(place, capsys):
    shutil.copy("hand.cfg", "a.dtb")
    shutil.move("p.dtb", "p.cfg")
    write_partial("q.dtb", {"passthrough/clock": {"phandle": [65002]}})
    assert found(capsys, "host.dtb", "a.dtb", "p.cfg", "q.dtb") == [("q.dtb", "error", "DT402")]


@pytest.mark.skipif(not shutil.which("dtc"), reason="no dtc")
def test_device_tree_source(place, capsys):
    Path("q.dts").write_text("/dts-v1/; / { passthrough { phandle = <65002>; }; };\n")
    assert ("q.dts", "error", "DT402") in found(capsys, "host.dtb", "q.dts")


def test_device_tree_is_found_beside_the_configuration(place, capsys):
    Path("deep").mkdir()
    shutil.copy("hand.cfg", "deep/hand.cfg")
    write_partial("deep/p.dtb", {"passthrough/clock": {"phandle": [65002]}})
    assert found(capsys, "host.dtb", "deep/hand.cfg") == [("deep/p.dtb", "error", "DT402")]
    assert found(capsys, "host.dtb", "hand.cfg") == []
    Path("p.dtb").unlink()
    assert found(capsys, "host.dtb", "hand.cfg") == [("hand.cfg", "note", "DT217")]


def test_a_given_tree_of_that_name_goes_before_the_file(place, capsys):
    Path("deep").mkdir()
    write_partial("deep/p.dtb", {"passthrough/dma@60000000/iommus": [4, 0x10, 4, 0x11]})
    assert found(capsys, "host.dtb", "hand.cfg", "deep/p.dtb") == [("deep/p.dtb", "error", "DT501")]


def test_given_trees_are_matched_to_guests(place, capsys):
    other = {**GUEST, **BY_HAND, "device_tree": "gone", "dtdev": ["/soc/dma@61000000"]}
    other["name"] = "b"
    Path("b.cfg").write_bytes(cfg_of({**other, "iomem": ["0x61000,2"], "irqs": [134]}))
    Path("a.cfg").write_bytes(cfg_of({**GUEST, **BY_HAND, "device_tree": "gone"}))
    dma = {
        "dma@61000000": {
            "reg": [0, 0x61000000, 0, 0x2000],
            "interrupts": [0, 102, 4],
            "iommus": [4, 0x20],
        }
    }
    both = {**PARTIAL, "passthrough": {**PARTIAL["passthrough"], **dma}}
    del both["passthrough"]["dma@60000000"]
    Path("y.dtb").write_bytes(blob.write(tree_of(both)))
    run("host.dtb", "b.cfg", "a.cfg", "p.dtb", "y.dtb", "--json")
    report = json.loads(capsys.readouterr().out)
    assert [(g["file"], g["partial"]) for g in report["guests"]] == [
        ("b.cfg", "y.dtb"),
        ("a.cfg", "p.dtb"),
    ]
    assert (report["partials"], report["findings"]) == ([], [])


def test_a_partial_tree_alone_is_for_dom0less(place, capsys):
    write_partial("q.dtb", {"passthrough/dma@60000000/xen,path": "/soc/dma@60000000"})
    assert found(capsys, "host.dtb", "q.dtb") == [("q.dtb", "error", "DT203")]


def test_a_broken_partial_tree_is_a_finding(place, capsys):
    Path("p.dtb").write_bytes(Path("p.dtb").read_bytes()[:60])
    assert run("host.dtb", "hand.cfg") == 3
    out = capsys.readouterr().out
    assert "p.dtb: error DT001: " in out
    assert "offset 0x4: " in out


def test_the_ramdisk_is_measured(place, capsys):
    Path("initrd").write_bytes(bytes(2 << 20))
    Path("a.cfg").write_bytes(cfg_of({**GUEST, "memory": 1, "ramdisk": "initrd"}))
    assert run("host.dtb", "a.cfg") == 3
    assert capsys.readouterr().out.splitlines()[0] == (
        "a.cfg:6: error DT603 /chosen: a ramdisk of 2097152 bytes does not fit 1 MiB of RAM"
    )


def test_stdin(place, capsys, monkeypatch):
    for name, rest in (("host.dtb", ("-", "a.cfg")), ("a.cfg", ("host.dtb", "-"))):
        stdin = SimpleNamespace(buffer=io.BytesIO(Path(name).read_bytes()))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(*rest) == 0


# Failures.


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 1, "vsmmu: check: which board? give HOST.dtb"),
        (["gone"], 1, "vsmmu: gone: cannot read: no such file or directory"),
        (["host.dtb", "gone"], 1, "vsmmu: gone: cannot read: no such file or directory"),
        (["host.dtb", "-W", "DT204"], 1, "vsmmu: -W DT204: expected no-RULE, as in -W no-DT204"),
        (
            ["a.cfg", "host.dtb"],
            1,
            "vsmmu: check: a.cfg is a guest configuration; the board comes first",
        ),
        *(
            (
                ["host.dtb", "-W", f"no-DT101,no-{id_}"],
                1,
                f"vsmmu: -W no-{id_}: input that cannot be read cannot be switched off",
            )
            for id_ in ("DT001", "XL001", "XL002", "XL003")
        ),
        (["host.dtb", "-W", "no-DT999"], 1, "vsmmu: -W DT999: no such rule; nearest: DT629"),
        (["host.dtb", "-E", "dt204"], 1, "vsmmu: -E dt204: no such rule; nearest: DT204"),
        (["--list", "DT"], 1, "vsmmu: --list DT: no such rule"),
        (
            ["host.dtb", "--json", "--sarif", "-"],
            1,
            "vsmmu: --json and --sarif - both write to stdout: give --sarif a file",
        ),
        (
            ["host.dtb", "--sarif", "host.dtb"],
            1,
            "vsmmu: host.dtb: cannot write: it is the input host.dtb",
        ),
        (
            ["host.dtb", "--sarif", "no/s"],
            1,
            "vsmmu: no/s: cannot write: no such file or directory",
        ),
    ],
)
def test_failures_are_one_line(place, capsys, arguments, code, line):
    assert run(*arguments) == code
    assert capsys.readouterr() == ("", line + "\n")


def test_a_broken_board_is_invalid_input(place, capsys):
    Path("host.dtb").write_bytes(b"no board")
    assert run("host.dtb") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


# Switches.


def test_rules_can_be_switched_off_or_made_errors(place, capsys):
    Path("a.cfg").write_bytes(
        cfg_of({**GUEST, "maxmem": 64, "dtdev": ["/soc/uart@70000000", "/x"]})
    )
    both = [("a.cfg", "error", "DT101"), ("a.cfg", "error", "DT102"), ("a.cfg", "warning", "DT602")]
    assert found(capsys, "host.dtb", "a.cfg") == both
    off = ("-W", "no-DT101,no-DT602", "-W", "no-DT102")
    assert run("host.dtb", "a.cfg", *off) == 0
    capsys.readouterr()
    assert found(capsys, "host.dtb", "a.cfg", "-E", "DT602") == [
        (file, "error", id_) for file, _, id_ in both
    ]
    assert found(capsys, "host.dtb", "a.cfg", *off, "-E", "DT101") == []


# JSON.


def test_json(place, capsys):
    Path("a.cfg").write_bytes(cfg_of({**GUEST, "dtdev": ["/soc/uart@70000000"]}))
    assert run("host.dtb", "a.cfg", "--json") == 3
    out = capsys.readouterr().out
    smmus = "/soc/iommu@50000000, /soc/iommu@51000000"
    assert json.loads(out) == {
        "schema": "vsmmu.check/1",
        "host": "host.dtb",
        "guests": [{"file": "a.cfg", "name": "a", "partial": None}],
        "partials": [],
        "counts": {"error": 1, "warning": 0, "note": 0},
        "findings": [
            {
                "id": "DT101",
                "severity": "error",
                "file": "a.cfg",
                "line": 5,
                "path": "/soc/uart@70000000",
                "fact": f"is not a DMA master of any SMMU of the host tree (SMMUs: {smmus})",
                "fix": "assign a device that has iommus; without an SMMU its DMA is not contained",
            }
        ],
    }
    run("host.dtb", "a.cfg", "--json")
    assert capsys.readouterr().out == out


# SARIF: the members that OASIS' SARIF 2.1.0 requires, and those of §3 that this log has.


def check_sarif(log: dict) -> None:
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    assert set(log) <= {"$schema", "version", "runs"}
    for run_ in log["runs"]:
        assert set(run_) <= {"tool", "results", "columnKind"}
        assert run_["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
        driver = run_["tool"]["driver"]
        assert set(driver) <= {"name", "version", "rules"}
        assert driver["name"]
        ids = [rule["id"] for rule in driver["rules"]]
        assert len(ids) == len(set(ids))
        for rule in driver["rules"]:
            members = {"shortDescription", "fullDescription", "help", "defaultConfiguration", "id"}
            assert set(rule) == members
            assert all(rule[m]["text"] for m in ("shortDescription", "fullDescription", "help"))
            assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        for result in run_["results"]:
            _check_result(result, ids)


def _check_result(result: dict, ids: list[str]) -> None:
    assert set(result) == {"ruleId", "ruleIndex", "level", "message", "locations"}
    assert ids[result["ruleIndex"]] == result["ruleId"]
    assert result["level"] in ("none", "note", "warning", "error")
    assert result["message"]["text"]
    for location in result["locations"]:
        assert set(location) <= {"physicalLocation", "logicalLocations"}
        physical = location["physicalLocation"]
        assert set(physical) <= {"artifactLocation", "region"}
        assert re.fullmatch(r"(file://)?[A-Za-z0-9_.~/%-]+", physical["artifactLocation"]["uri"])
        if "region" in physical:
            assert physical["region"]["startLine"] >= 1
        for logical in location.get("logicalLocations", []):
            assert set(logical) == {"name", "fullyQualifiedName", "kind"}


def test_sarif(place, capsys):
    keys = {**GUEST, "dtdev": ["/soc/uart@70000000"], "maxmem": 64, "vcpis": 1}
    Path("a b.cfg").write_bytes(cfg_of(keys))
    assert run("host.dtb", "a b.cfg", "--sarif", "out.sarif") == 3
    capsys.readouterr()
    log = json.loads(Path("out.sarif").read_text())
    check_sarif(log)
    results = log["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["DT101", "DT602", "XL101"]
    assert results[0]["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "a%20b.cfg"},
                "region": {"startLine": 5},
            },
            "logicalLocations": [
                {
                    "name": "uart@70000000",
                    "fullyQualifiedName": "/soc/uart@70000000",
                    "kind": "object",
                }
            ],
        }
    ]
    assert "logicalLocations" not in results[2]["locations"][0]
    assert run("host.dtb", "a b.cfg", "--sarif", "-") == 3
    assert capsys.readouterr().out == Path("out.sarif").read_text()


def test_sarif_names_absolute_files_by_uri(place, capsys):
    from dt_tools.report.sarif import uri

    assert uri("/tmp/a b#c.dtb") == "file:///tmp/a%20b%23c.dtb"
    assert uri("x:y.cfg") == "x%3Ay.cfg"


# The rules explained.


def test_list(capsys):
    assert run("--list") == 0
    out = capsys.readouterr().out
    for id_, rule in RULES.items():
        assert f"{id_} ({rule.severity}): " in out
    for id_, title in DIAGNOSTICS.items():
        assert re.search(rf"^{id_} \((error|warning)\): {re.escape(title)}$", out, re.MULTILINE)
    assert out.count("    Example: ") == len(RULES) + len(DIAGNOSTICS)
    # A path is not broken.
    assert all(len(line) <= 80 for line in out.splitlines() if " " in line.strip())


def test_list_one(capsys):
    assert run("--list", "DT301") == 0
    assert capsys.readouterr().out.splitlines() == [
        "DT301 (error): irqs are not the interrupts of the devices",
        "    A queue whose interrupt is missing stalls; one that is another device's",
        "    takes it from its owner. irqs counts from the GIC's id: SPI n is n + 32.",
        "    Example: /soc/ethernet@10830000: has SPIs 256..272 (17), irqs has 16 of",
        "    them: missing 266",
    ]


def test_list_some(capsys):
    assert run("--list", "XL101", "DT301,DT302") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines if line[:1] not in ("", " ")] == ["XL101", "DT301", "DT302"]
    assert lines[:5] == [
        "XL101 (warning): a key that no reader looks up",
        "    xl says nothing and goes on without the key: mostly a slip of the pen.",
        "    Example: guest.cfg:6: vcpis: unknown key, ignored by xl; did you mean vcpus?",
        "",
        "DT301 (error): irqs are not the interrupts of the devices",
    ]


def test_list_as_json(capsys):
    assert run("--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["schema"] == "vsmmu.check.rules/1"
    assert [rule["id"] for rule in listed["rules"]] == [*RULES, *DIAGNOSTICS]
    for rule in listed["rules"]:
        assert set(rule) == {"id", "severity", "title", "why", "example"}
        assert all(rule.values())
    assert run("--list", "DT301", "--json") == 0
    assert [r["id"] for r in json.loads(capsys.readouterr().out)["rules"]] == ["DT301"]


# The samples.


def test_the_sample_mistakes_are_told(samples, monkeypatch, capsys):
    """As of the Agilex 5 guide (DT301, DT209, DT204), and of partial trees copied by hand."""
    monkeypatch.chdir(samples)
    assert run("mistakes.dtb") == 0
    capsys.readouterr()
    names = ("mistakes.dtb", "mistakes-a.cfg", "mistakes-b.cfg")
    told = {(file.removeprefix("mistakes-"), id_) for file, _, id_ in found(capsys, *names)}
    assert told == {
        *(("a.cfg", f"DT{n}") for n in (103, 204, 205, 207, 209, 301, 307)),
        *(("b.cfg", f"DT{n}") for n in (102, 103, 204, 205, 206, 307, 508, 602)),
        *(("partial.dtb", f"DT{n}") for n in (206, 208, 301, 401, 402, 501, 504)),
    }


@pytest.mark.skipif(not shutil.which("dtc"), reason="no dtc")
@pytest.mark.parametrize("name", ["mistakes", "mistakes-partial"])
def test_the_sample_blobs_are_of_their_sources(samples, name):
    source = samples / f"{name}.dts"
    made = subprocess.run(
        ["dtc", "-q", "-I", "dts", "-O", "dtb", str(source)],
        capture_output=True,
        check=True,
        timeout=20,
    ).stdout
    ours, theirs = (blob.read(data) for data in (made, (samples / f"{name}.dtb").read_bytes()))
    assert [(n.path, n.props) for n in ours.walk()] == [(n.path, n.props) for n in theirs.walk()]
