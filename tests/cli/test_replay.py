# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu replay` as a user meets it: what it prints, exit codes, files that are no cases."""

from __future__ import annotations

import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import vsmmu
from vsmmu import cli
from vsmmu.cli import unpack

READ = {"op": "r", "off": "0x60", "size": 4}
# EVENTQ of one entry, and an access that has no STE: C_BAD_STE.
FAULT = [
    {"op": "w", "off": "0x80", "val": "0x40000000", "size": 8},
    {"op": "w", "off": "0x88", "val": "0x8", "size": 4},
    {"op": "w", "off": "0xa0", "val": "0x40100000", "size": 8},
    {"op": "w", "off": "0x20", "val": "0x5", "size": 4},
    {"op": "dma", "sid": "0x8", "iova": "0x1000", "rw": "r", "size": 4},
]
REGS = {
    "CMDQ_PROD": "0x0", "CR0ACK": "0x0", "EVENTQ_CONS": "0x0", "EVENTQ_PROD": "0x0",
    "GERROR": "0x0", "GERRORN": "0x0", "IRQ_CTRLACK": "0x0",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subcommand is there, whatever the command's own list says."""
    monkeypatch.setitem(cli._COMMANDS, "replay", "play recorded programs")


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def case(steps: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"id": "one", "family": "regs", "stage": "1", "steps": steps, **more}


def entry(value: str = "0x0", **more: Any) -> dict[str, Any]:
    arch = {"results": [{"i": 0, "op": "r", "val": value}], "regs": REGS}
    return {"case": case([READ], **more), "qemu": None, "arch": arch, "verdict": "agree"}


def file(*entries: Any, name: str = "cases.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(one) + "\n" for one in entries))
    return name


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return vsmmu(capsys, "replay", *arguments)


def test_cases_that_agree(capsys):
    name = file(entry(), entry(family="other", id="two"), entry(id="three"))
    assert run(capsys, name) == (
        0,
        """\
family  agree  differ
other       1       0
regs        2       0
total       3       0
""",
        "",
    )


def test_a_register_that_differs(capsys):
    name = file(entry("0x5", desc="reads an error"), entry())
    code, out, err = run(capsys, name)
    assert (code, err) == (3, "")
    assert (
        out
        == """\
family  agree  differ
regs        1       1
total       1       1

one: step 0: reads 0x0, expected 0x5
  reads an error
  op r off 0x60 size 4
                    model   expected
                    GERROR  GERROR
    cmdq_err        0x0     0x1  <
    eventq_abt_err  0x0     0x1  <
"""
    )


RECORD = """\
one: step 4: events [{'type': 'C_BAD_STE', 'sid': 8}], expected [{'type':
  'F_TRANSLATION', 'sid': 9, 'cls': 'IN', 'rnw': 1, 's2': 0, 'iaddr': '0x1000'}]
  op dma sid 0x8 iova 0x1000 rw r size 4
               model      expected
               C_BAD_STE  F_TRANSLATION  <
    type       0x4        0x10  <
    sid        0x8        0x9  <
    rnw        -          0x1  <
    s2         -          0x0  <
    cls        -          0x2 IN  <
    inputaddr  -          0x1000  <
"""


def test_a_record_that_differs(capsys):
    event = {
        "type": "F_TRANSLATION", "sid": 9, "cls": "IN", "rnw": 1, "s2": 0, "iaddr": "0x1000",
    }  # fmt: skip
    page = {"iova": "0x1000", "n": 4, "xlate": "fault"}
    result = {"events": [event], "i": 4, "irq": [], "op": "dma", "pages": [page], "xlate": "fault"}
    arch = {"results": [result], "regs": {**REGS, "CR0ACK": "0x5", "EVENTQ_PROD": "0x1"}}
    code, out, err = run(capsys, file({"case": case(FAULT), "arch": arch}))
    assert (code, err) == (3, "")
    assert out.partition("\n\n")[2] == RECORD


def test_a_final_register_that_differs(capsys):
    one = entry()
    one["arch"]["regs"] = {**REGS, "CR0ACK": "0x1"}
    code, out, _ = run(capsys, file(one))
    assert code == 3
    assert "one: final CR0ACK: 0x0, expected 0x1\n" in out
    assert "    smmuen  0x0     0x1  <\n" in out


def test_an_unexpected_record(capsys):
    arch = {"results": [], "regs": {}}
    code, out, _ = run(capsys, file({"case": case(FAULT), "arch": arch}))
    assert code == 3
    assert "          C_BAD_STE  nothing  <\n" in out


def test_json_is_a_line_a_case(capsys):
    name = file(entry(), entry("0x5", id="two"))
    code, out, err = run(capsys, name, "--json")
    assert (code, err) == (3, "")
    lines = [json.loads(line) for line in out.splitlines()]
    played = {"results": [{"i": 0, "op": "r", "val": "0x0"}], "regs": REGS}
    assert lines == [{"id": "one", **played}, {"id": "two", **played}]


def test_a_case_without_an_outcome(capsys):
    """A bare case, and one that nobody judged, are played."""
    bare = case([READ])
    assert run(capsys, file(bare, {"case": bare}, entry())) == (
        0,
        """\
family  agree  differ  no outcome
regs        1       0           2
total       1       0           2
""",
        "",
    )
    assert run(capsys, file(bare), "--json")[0] == 0


@pytest.mark.parametrize("form", ["plain", "xz", "two streams", "padded", "stdin", "stdin xz"])
def test_forms_of_a_file(capsys, monkeypatch, form):
    text = Path(file(entry(), entry())).read_bytes()
    expected = run(capsys, "cases.jsonl")
    packed = lzma.compress(text[: len(text) // 2]) + lzma.compress(text[len(text) // 2 :])
    data = {
        "plain": b"\n" + text.rstrip(),
        "xz": lzma.compress(text),
        "two streams": packed,
        "padded": lzma.compress(text) + bytes(8),
        "stdin": text,
        "stdin xz": lzma.compress(text),
    }[form]
    Path("cases.jsonl.xz").write_bytes(data)

    class Stdin:
        buffer = io.BytesIO(data)

    monkeypatch.setattr(sys, "stdin", Stdin)
    name = "-" if form.startswith("stdin") else "cases.jsonl.xz"
    assert run(capsys, name) == expected


MALFORMED = [
    ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ("[" * 100_000, "nested too deeply"),
    ('{"case": ' + "9" * 5000 + "}", "a number of too many digits"),
    ("3", "a case is an object"),
    ("{}", "id: expected text"),
    ('{"case": 3}', "a case is an object"),
    (case([], stage="3"), 'stage: expected "1", "2" or "nested"'),
    (case([], family=3), "family: expected text"),
    (case({}), "steps: expected a list"),  # type: ignore[arg-type]
    (case([3]), "step 0: expected an object"),  # type: ignore[list-item]
    (case([{"op": "jump"}]), "step 0: no such operation 'jump'"),
    (case([{"op": []}]), "step 0: no such operation []"),
    (case([READ, {"op": "mem", "addr": "0x0", "hex": "abc"}]),
     "step 1: hex: expected bytes as hexadecimal digits"),
    (case([{**READ, "off": 96}]), "step 0: off: expected a hexadecimal string of at most 64 bits"),
    (case([{**READ, "size": 16}]), "step 0: size: expected 1, 2, 4 or 8"),
    (case([{**READ, "size": True}]), "step 0: size: expected 1 to 4096"),
    (case([{**FAULT[4], "size": 4097}]), "step 0: size: expected 1 to 4096"),
    (case([{**FAULT[4], "rw": "x"}]), 'step 0: rw: expected "r" or "w"'),
    (case([{**FAULT[4], "sid": "0x100000000"}]), "step 0: sid: more than 32 bits"),
    (case([{**FAULT[4], "iova": "0xffffffffffffffff"}]),
     "step 0: iova: the access does not fit 64 bits"),
    ({"case": case([READ]), "arch": []}, "an outcome is an object"),
    ({"case": case([READ]), "arch": {}}, "results: expected a list"),
    ({"case": case([READ]), "arch": {"results": [], "regs": {"CR1": "0x0"}}},
     "regs: 'CR1': not a final register"),
    ({"case": case([READ]), "arch": {"results": [{"i": 1}], "regs": {}}},
     "result 0: i: expected the index of a step"),
    ({"case": case([READ]), "arch": {"results": [{"i": 0, "op": "w"}], "regs": {}}},
     "result 0: op: step 0 is 'r'"),
    ({"case": case([READ]), "arch": {"results": [{"i": 0, "op": "r"}], "regs": {}}},
     "result 0: val: expected a hexadecimal string of at most 64 bits"),
    ({"case": case([READ]),
      "arch": {"results": [{"i": 0, "op": "r", "val": None}] * 2, "regs": {}}},
     "result 1: i: step 0 has a result already"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), MALFORMED)
def test_a_malformed_line(capsys, bad, message):
    file(entry())
    line = bad if isinstance(bad, str) else json.dumps(bad)
    with Path("cases.jsonl").open("a") as cases:
        cases.write(f"\n{line}\n")
    code, out, err = run(capsys, "cases.jsonl")
    assert (code, out, err) == (2, "", f"vsmmu: cases.jsonl: line 3: {message}\n")


def test_files_that_hold_no_cases(capsys, monkeypatch):
    Path("empty").write_text("\n\n")
    Path("bytes").write_bytes(b"\xff\n")
    whole = lzma.compress(json.dumps(entry()).encode())
    Path("cut.xz").write_bytes(whole[:-20])
    Path("bad.xz").write_bytes(whole[:30] + bytes(30))
    texts = {
        "empty": (2, "empty: no cases"),
        "bytes": (2, "bytes: line 1: not UTF-8"),
        "cut.xz": (2, "cut.xz: not a whole xz file: it ends too early"),
        "bad.xz": (2, "bad.xz: not a whole xz file: "),
        "none": (1, "none: cannot read: no such file or directory"),
        ".": (1, ".: cannot read: is a directory"),
    }
    for name, (exit_code, text) in texts.items():
        code, _, err = run(capsys, name)
        assert code == exit_code
        assert err.startswith(f"vsmmu: {text}")
        assert err.count("\n") == 1


def test_input_is_bounded(capsys, monkeypatch):
    """A packed file of a few KiB may unpack to any length."""
    Path("long.xz").write_bytes(lzma.compress(b" " * (20 << 20)))
    assert run(capsys, "long.xz") == (2, "", "vsmmu: long.xz: line 1: longer than 16 MiB\n")
    monkeypatch.setattr(unpack, "TOTAL_MAX", 1 << 30)
    monkeypatch.setattr(unpack, "_BLOCK", 1 << 12)
    Path("many.xz").write_bytes(lzma.compress(b"\n" * (1 << 14)))
    monkeypatch.setattr(unpack, "TOTAL_MAX", 1 << 13)
    code, _, err = run(capsys, "many.xz")
    assert (code, err) == (2, "vsmmu: many.xz: more than 0 GiB unpacked\n")


def test_output_is_at_most_80_columns_wide(capsys):
    one = entry("0x1", family="f" * 200, id="i" * 200, desc="word " * 100)
    _, out, _ = run(capsys, file(one))
    assert max(map(len, out.splitlines())) <= 80


def test_the_corpus(capsys, corpus):
    path = corpus / "smmu" / "cases.jsonl.xz"
    if not path.is_file():
        pytest.skip(f"no SMMU programs at {path}")
    code, out, _ = run(capsys, str(path))
    # tests/vsmmu/smmu/test_corpus.py says why this one differs.
    assert code == 3
    total = next(line for line in out.splitlines() if line.startswith("total"))
    assert total.split() == ["total", "567", "1"]
    assert "cmd-op-046: step 14: reads 0x1, expected 0x0 (and 1 more)\n" in out
