# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu config`: what it prints, in its three ways, and how it leaves."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vsmmu.cli import main
from xl_configs.errors import DIAGNOSTICS

GOOD = """\
name = "guest"
kernel = "/boot/Image"   # a comment
memory = 256
viommu = "smmuv3"
dtdev = ["/soc/crypto@60000000"]
"""
DOUBTFUL = 'name="g"\nkernel="/k"\ndtdev="/x"\nvcpis=2\nmemory=64\nmemory+=1\ntype="p"\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(["config", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_good_configuration_comes_back_tidy(place, capfdbinary):
    Path("g.cfg").write_text(GOOD)
    assert main(["config", "g.cfg", "memory=512", 'dtdev+=["/y"]']) == 0
    out, err = capfdbinary.readouterr()
    assert err == b""
    assert out.decode().splitlines()[:3] == ['name = "guest"', "", 'kernel = "/boot/Image"']
    Path("again.cfg").write_bytes(out)
    assert main(["config", "again.cfg"]) == 0
    assert capfdbinary.readouterr() == (out, b"")
    assert b"memory = 512" in out
    assert b'dtdev = ["/soc/crypto@60000000", "/y"]' in out


def test_warnings_are_on_stderr_and_can_be_put_off(place, capsys):
    Path("g.cfg").write_text(DOUBTFUL)
    code, _, err = config(capsys, "g.cfg")
    xl = [
        "vsmmu: g.cfg:3: warning XL102: dtdev: one value where a list belongs; xl ignores the key, "
        "so write dtdev=[...]",
        "vsmmu: g.cfg:6: warning XL105: memory: not a number xl can read; xl ignores the key",
    ]
    ours = [
        "vsmmu: g.cfg:4: warning XL101: vcpis: unknown key, ignored by xl; did you mean vcpus?",
        'vsmmu: g.cfg:7: warning XL108: type: "p" is the beginning of pv; xl takes it so',
    ]
    assert (code, err.splitlines()) == (0, [xl[0], ours[0], xl[1], ours[1]])
    code, _, err = config(capsys, "g.cfg", "--no-strict")
    assert (code, err.splitlines()) == (0, xl)


def test_refused(place, capsys):
    Path("g.cfg").write_text("name='g'\nkernel=\nvcpus=@\n")
    code, out, err = config(capsys, "g.cfg")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "vsmmu: g.cfg:2: error XL001: near <newline>: syntax error, unexpected NEWLINE, expecting "
        "STRING or NUMBER or '['; give the key a quoted string, a number or a [list] on the same "
        "line",
        "vsmmu: g.cfg:3: error XL001: near `@': lexical error; put text in quotes; keys and bare "
        "numbers are lower case",
    ]
    Path("g.cfg").write_text("name='g'\nkernel='/k'\ntee='native'\n")
    code, out, err = config(capsys, "g.cfg")
    assert (code, out, err) == (
        2,
        "",
        'vsmmu: g.cfg:3: error XL002: Unknown tee "native" specified; use none, optee or ffa\n',
    )


def test_a_crash_of_xl_is_a_clear_error(place, capsys):
    Path("g.cfg").write_text("name='g'\nkernel='/k'\nbootloader_args=''\n")
    code, out, err = config(capsys, "g.cfg")
    assert (code, out, err) == (
        2,
        "",
        "vsmmu: g.cfg:3: warning XL110: bootloader_args: a text is deprecated, write a list of "
        "arguments\n"
        "vsmmu: g.cfg:3: error XL003: no argument in the text, at which xl crashes; write a list "
        "of the arguments\n",
    )
    code, out, _ = config(capsys, "g.cfg", "--json")
    assert (code, json.loads(out)["xl_exit"]) == (2, -11)
    Path("g.cfg").write_bytes(b"name='g\0'\n")
    code, out, _ = config(capsys, "g.cfg", "--json")
    assert (code, json.loads(out)["xl_exit"]) == (2, -6)


def test_what_stock_xl_prints(place, capsys):
    Path("g.cfg").write_text(DOUBTFUL)
    code, out, err = config(capsys, "--compat", "xl", "g.cfg")
    assert code == 0
    assert err.splitlines() == [
        "Parsing config from g.cfg",
        "g.cfg:6: warning: can't use += with numbers for parameter `memory'",
        "g.cfg:3: warning: parameter `dtdev' is a single value but should be a list",
    ]
    assert json.loads(out)["c_info"]["type"] == "pv"
    code, out, err = config(capsys, "--compat", "xl", "g.cfg", "gic_version=3")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == 'Unknown gic_version "3" specified'
    code, out, err = config(capsys, "--compat", "xl", "g.cfg", "pci=['x']")
    assert (code, out) == (6, "")


def test_stock_xl_ignores_viommu_and_the_series_does_not(place, capsys):
    Path("g.cfg").write_text("name='g'\nkernel='/k'\nviommu='x'\n")
    code, _, err = config(capsys, "--compat", "xl", "g.cfg")
    assert (code, err) == (0, "Parsing config from g.cfg\n")
    code, _, err = config(capsys, "--compat", "xl-viommu", "g.cfg")
    assert (code, err) == (
        3,
        'Parsing config from g.cfg\nUnknown vIOMMU type "x" specified\n',
    )
    code, _, _ = config(capsys, "g.cfg")
    assert code == 2
    code, out, _ = config(capsys, "g.cfg", "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["xl_exit"]) == (2, False, 0)
    code, out, _ = config(capsys, "--compat", "xl-viommu", "g.cfg", "viommu='SMMUv3'")
    assert code == 0
    assert json.loads(out)["b_info"]["arch_arm"] == {"viommu_type": "smmuv3"}


def test_a_missing_file(place, capsys):
    assert config(capsys, "no.cfg") == (
        1,
        "",
        "vsmmu: no.cfg: cannot read: no such file or directory\n",
    )
    assert config(capsys, "no.cfg", "--compat", "xl") == (
        3,
        "",
        "Failed to read config file: no.cfg: No such file or directory\n",
    )


def test_json(place, capsys):
    Path("g.cfg").write_text(GOOD + "vcpis = 2\niomem = ['fd010,1']\n")
    code, out, err = config(capsys, "g.cfg", "--json", "memory=512")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert list(found) == [
        *("schema", "file", "ok", "xl", "xl_exit", "report", "settings", "effective"),
        *("guest", "xl_config", "diagnostics"),
    ]
    assert found["schema"] == "vsmmu.config/1"
    assert found["settings"][2] == {"name": "memory", "op": "=", "line": 3, "value": "256"}
    assert found["settings"][-1] == {"name": "memory", "op": "=", "line": 9, "value": "512"}
    assert found["effective"]["memory"] == "512"
    assert found["guest"]["memory_mib"] == 512
    assert found["guest"]["viommu"] == "smmuv3"
    assert found["guest"]["iomem"] == [{"start": "0xfd010", "count": 1, "gfn": "0xfd010"}]
    assert found["guest"]["others"] == {"vcpis": "2"}
    assert found["xl_config"]["b_info"]["target_memkb"] == 512 * 1024
    assert found["diagnostics"] == [
        {
            "file": "g.cfg",
            "line": 6,
            "id": "XL101",
            "severity": "warning",
            "message": "vcpis: unknown key, ignored by xl; did you mean vcpus?",
            "xl": None,
        }
    ]


def test_json_of_hostile_input(place, capsys):
    deep = "[" * 4000 + "]" * 4000
    Path("g.cfg").write_bytes(b"name='\xff\x1b'\nkernel='k'\na=" + deep.encode() + b"\n")
    code, out, _ = config(capsys, "g.cfg", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["effective"]["name"] == "\\xff\x1b"
    assert found["effective"]["a"] == "<list nested 4000 deep>"


def test_stdin_and_options_anywhere(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(GOOD.encode())))
    code, out, _ = config(capsys, "-", "--json", "memory=64", "--no-strict", "vcpus=2")
    found = json.loads(out)
    assert (code, found["file"]) == (0, "-")
    assert (found["guest"]["memory_mib"], found["guest"]["vcpus"]) == (64, 2)
    code, _, err = config(capsys, "g.cfg", "--json", "memory")
    assert (code, err.splitlines()[-1]) == (1, "vsmmu: unrecognized arguments: memory")
    assert config(capsys, "g.cfg", "memory") == (1, "", "vsmmu: memory: expected KEY=VALUE\n")


def test_the_host_decides_about_cpus(place, capsys):
    Path("g.cfg").write_text("name='g'\nkernel='/k'\nvcpus=1\ncpus='12'\n")
    code, _, err = config(capsys, "g.cfg", "--compat", "xl")
    assert (code, err.splitlines()[1]) == (1, "vcpu hard affinity map is empty")
    assert config(capsys, "g.cfg", "--compat", "xl", "--pcpus", "16")[0] == 0
    assert config(capsys, "g.cfg")[0] == 0
    assert config(capsys, "g.cfg", "--pcpus", "2", "--nodes", "3")[0] == 1
    for number in ("0", "16385", "000001999999999", "-1", "x", "9" * 5000):
        code, _, err = config(capsys, "g.cfg", f"--pcpus={number}")
        assert code == 1
        assert err.endswith(f"{number!r} is no number from 1 to 16384\n")


def test_ids(capsys):
    code, out, _ = config(capsys, "--list-ids")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(DIAGNOSTICS)


def test_no_escape_sequence_reaches_a_terminal(place, capsys, monkeypatch):
    Path("g.cfg").write_bytes(b"name='d\x1b[31m'\nkernel='/k'\nfoo='\x1b]0;t\x07'\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = config(capsys, "g.cfg")
    assert code == 0
    assert "\x1b" not in out + err
    assert 'name = "d\\x1b[31m"' in out


def test_closed_streams(place, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert config(capsys, "-") == (
        1,
        "",
        "vsmmu: -: cannot read: standard input is closed\n",
    )
    monkeypatch.setattr(sys, "stderr", None)
    assert config(capsys, "no.cfg")[:2] == (1, "")


def test_one_bad_entry_is_one_short_line(place, capsys):
    Path("g.cfg").write_text("name='d'\nkernel='/k'\ndisk=['" + "a," * 100_000 + "']\n")
    code, _, err = config(capsys, "g.cfg")
    assert code == 2
    assert len(err) < 500
