# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu replay` of recordings: table, JSON, exit codes, messages."""

from __future__ import annotations

import io
import json
import lzma
import os
import sys
from pathlib import Path

import pytest

from tests.cli.command import vsmmu
from tests.vsmmu.recording.tape import HEADER, data, everyday
from vsmmu.recording.format import Dma, Note, Record, header_line


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def records() -> list[Record]:
    return everyday()[0].records


def wrong() -> list[Record]:
    """The first access after the first note went elsewhere."""
    out = records()
    out[0:0] = [Note("boot\x1b[31m\n")]
    at = next(i for i, one in enumerate(out) if isinstance(one, Dma) and one.status == 0)
    access = out[at]
    assert isinstance(access, Dma)
    out[at] = access._replace(pa=access.pa ^ 0x1000)
    return out


def files() -> None:
    Path("good.trace").write_bytes(data(records()))
    Path("good.xz").write_bytes(lzma.compress(data(records())))
    Path("wrong.trace").write_bytes(data(wrong()))
    Path("case.jsonl").write_text(
        json.dumps({"id": "one", "stage": "1", "steps": [{"op": "r", "off": "0x60", "size": 4}]})
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return vsmmu(capsys, "replay", *arguments)


def test_the_table(capsys):
    files()
    assert run(capsys, "good.trace", "good.xz") == (
        0,
        """\
file        kernel  records  accesses  events  verdict
good.trace  none        188        17       3  agrees
good.xz     none        188        17       3  agrees
""",
        "",
    )


def test_a_divergence(capsys):
    files()
    code, out, err = run(capsys, "good.trace", "wrong.trace")
    assert (code, err) == (3, "")
    assert out.splitlines()[2:11] == [
        "wrong.trace  none        102         2       0  differs at 102",
        "",
        'wrong.trace: record 102 (byte 0xc41) in "map"',
        "  output address: read by StreamID 0x8 at 0x100000",
        "  - recorded 0x40801000",
        "  + model    0x40800000",
        "  recorded:",
        "    ok, output address 0x40801000, rights RW, shared by the low bits 0xfff",
        "  model:",
    ]
    assert "    STE at 0x40020200: v=0x1 config=S1 s1ctxptr=0x40051000 s1dss=SSID0" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json(capsys):
    files()
    code, out, err = run(capsys, "--json", "wrong.trace", "good.xz")
    assert (code, err) == (3, "")
    wrong, good = map(json.loads, out.splitlines())
    assert {key: good[key] for key in ("schema", "file", "caching", "agrees", "divergence")} == {
        "schema": "vsmmu.replay/1",
        "file": "good.xz",
        "caching": "both",
        "agrees": True,
        "divergence": None,
    }
    assert good["identification"]["IDR0"] == "0xd44101b"
    assert good["interrupts"] == {"recorded": {"eventq": 3}, "model": {"eventq": 1}}
    found = wrong["divergence"]
    assert (found["record"], found["kind"]) == (102, "output address")
    assert (found["recorded"], found["model"]) == ("0x40801000", "0x40800000")
    assert {"record": 14, "what": "STRTAB_BASE"} in found["provenance"]
    assert all(set(one) == {"record", "what"} for one in found["provenance"])


def test_cases_and_recordings_in_one_call(capsys, monkeypatch):
    files()

    class Stdin:
        buffer = io.BytesIO(Path("good.xz").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    code, out, err = run(capsys, "case.jsonl", "-")
    assert (code, err) == (0, "")
    assert out.startswith("family  agree  differ")
    assert "\n-     none        188        17       3  agrees\n" in out


@pytest.mark.parametrize("caching", ["both", "none", "normal", "hostile"])
def test_caching(capsys, caching):
    files()
    code, out, _ = run(capsys, "--json", "--caching", caching, "good.trace")
    assert code == 0
    assert json.loads(out)["caching"] == caching
    expected = 1 if caching == "both" else 0
    code, _, err = run(capsys, "--caching", caching, "case.jsonl")
    assert code == expected
    if code:
        assert err == ("vsmmu: case.jsonl: --caching both is for recordings; these are cases\n")


HEAD = header_line(HEADER)
MALFORMED = [
    (b'{"magic": "other"}\n', 'header: magic: expected "vsmmu-trace", not \'other\''),
    (b'{"magic": "vsmmu-trace", "version": 2}\n', "header: version: expected 1, not 2"),
    (b'{"magic": "vsmmu-trace", "x": ' + b"9" * 5000 + b"}\n",
     "header: a number of too many digits"),
    (HEAD + b"\x1b", "record 1 (byte 0x77): tag 0x1b is none of M W R P D E I N Z"),
    (HEAD, "identification: IDR0.TTF=0: not modelled (AArch32 tables); the driver never reads "
           "IDR0, IDR1, IDR3, IDR5"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "message"), MALFORMED)
def test_a_malformed_recording(capsys, raw, message):
    Path("bad.trace").write_bytes(raw)
    code, out, err = run(capsys, "bad.trace")
    assert (code, out) == (2, "")
    assert err == f"vsmmu: bad.trace: {message}\n"


def test_a_malformed_file_keeps_no_other_from_being_played(capsys):
    files()
    Path("bad.trace").write_bytes(data(records())[:-3])
    code, out, err = run(capsys, "bad.trace", "none", "wrong.trace")
    assert code == 2
    assert "differs at 102" in out
    assert [line.split(":")[1] for line in err.splitlines()] == [" bad.trace", " none"]


def test_names_and_notes_are_printed_safely(capsys):
    raw = data(wrong()).split(b"\n", 1)[1]
    header = header_line({**HEADER, "kernel": "\x1b[31m" + "k" * 100, "name": [1]})
    Path("odd\n.trace").write_bytes(header + raw)
    for option in ((), ("--json",)):
        code, out, err = run(capsys, *option, "odd\n.trace")
        assert (code, err) == (3, "")
        assert "\x1b" not in out
    code, out, _ = run(capsys, "odd\n.trace")
    assert "odd\\n.trace" in out


def test_json_has_no_half_of_a_surrogate_pair(capsys):
    raw = data(records()).split(b"\n", 1)[1]
    header = header_line({**HEADER, "name": "\ud800\x1b[31m", "kernel": "\U0001f600 \\ud800"})
    name = os.fsdecode(b"odd\xff.trace")
    Path(name).write_bytes(header + raw)
    code, out, err = run(capsys, "--json", name)
    assert (code, err) == (0, "")
    assert r'"name": "\ufffd\u001b[31m"' in out
    found = json.loads(out)
    assert found["file"] == "odd\N{REPLACEMENT CHARACTER}.trace"
    assert found["kernel"] == "\U0001f600 \\ud800"


def test_progress_is_for_terminals(capsys, monkeypatch):
    files()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("vsmmu.recording.player.EACH", 0x3F)
    _, _, err = run(capsys, "good.trace")
    assert err == ("\r64 records of good.trace\r128 records of good.trace\r\x1b[K")
