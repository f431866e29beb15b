# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu replay --vsmmu` as a user meets it: tables, JSON, cases that are not understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import vsmmu

READ = {"g": 0, "op": "r", "off": "0x60", "size": 4}
ACCESS = {"g": 0, "op": "dma", "vsid": "0x1", "iova": "0x40000000", "rw": "r", "size": 4}
BANK = {"ipa": "0x40000000", "pa": "0x41000000", "size": "0x1000"}
GUEST = {"vmid": 7, "ram": [BANK], "sids": {"0x1": "0x2"}}
OTHER = {"vmid": 8, "ram": [BANK], "sids": {"0x1": "0x3"}}
PAGE = {"iova": "0x40000000", "n": 4, "xlate": "ok", "pa": "0x41000000"}
RESULT = {"i": 0, "op": "dma", "xlate": "ok", "pa": "0x41000000", "pages": [PAGE], "events": []}
STEP = {"op": "dma", "sid": "0x2", "iova": "0x40000000", "rw": "r", "size": 4, "v": 1}
REGS = {
    "CMDQ_PROD": "0x0", "CR0ACK": "0x0", "EVENTQ_CONS": "0x0", "EVENTQ_PROD": "0x0",
    "GERROR": "0x0", "GERRORN": "0x0", "IRQ_CTRLACK": "0x0",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def case(**more: Any) -> dict[str, Any]:
    whole = {
        "id": "one", "family": "vsmmu", "stage": "nested", "guests": [GUEST, OTHER],
        "vsteps": [READ, ACCESS], "steps": [STEP], **more,
    }  # fmt: skip
    return {key: value for key, value in whole.items() if value is not None}


def entry(result: dict[str, Any] = RESULT, **more: Any) -> dict[str, Any]:
    arch = {"results": [result], "regs": REGS}
    return {"case": case(**more), "qemu": None, "arch": arch, "verdict": "agree"}


def file(*entries: Any) -> str:
    Path("cases.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    return "cases.jsonl"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return vsmmu(capsys, "replay", "--vsmmu", *arguments)


PHYSICAL = {"id": "alone", "stage": "1", "steps": []}
NOTICE = "vsmmu: notice: not played, without guests: 2 of 4 cases\n"


def test_cases_with_guests_are_played(capsys):
    name = file(entry(), PHYSICAL, {"case": PHYSICAL}, case(steps=None))
    code, out, err = run(capsys, name)
    assert (code, err) == (0, NOTICE)
    assert (
        out
        == """\
family  agree  differ  no outcome
vsmmu       1       0           1
total       1       0           1
"""
    )


def test_json_has_a_result_for_each_guest_step(capsys):
    code, out, err = run(capsys, file(entry(), PHYSICAL), "--json")
    assert (code, err) == (0, NOTICE.replace("2 of 4", "1 of 2"))
    (line,) = out.splitlines()
    results = [
        {"i": 0, "g": 0, "op": "r", "val": "0x0", "irq": []},
        {**RESULT, "i": 1, "g": 0, "irq": []},
    ]
    assert json.loads(line) == {"id": "one", "results": results, "regs": [REGS, REGS]}


def test_an_access_that_differs(capsys):
    wrong = {**RESULT, "pa": "0x41000008"}
    event = {"type": "F_ACCESS", "sid": 2, "cls": "IN", "rnw": 1, "s2": 0, "iaddr": "0x40000000"}
    faulted = {**RESULT, "events": [event]}
    for result, text in (
        (wrong, "one: step 1: pa 0x41000000, expected 0x41000008\n  another page\n"),
        (faulted, "               nothing  F_ACCESS  <\n    type       -        0x12  <\n"),
        (faulted, "    sid        -        0x1  <\n"),
    ):
        name = file(entry(result, desc="another page"))
        code, out, err = run(capsys, name)
        assert (code, err) == (3, "")
        assert text in out
        assert "  g 0 op dma vsid 0x1 iova 0x40000000 rw r size 4\n" in out
        assert run(capsys, name, "--json")[0] == 3


def test_a_file_without_guests(capsys):
    assert run(capsys, file(PHYSICAL)) == (2, "", "vsmmu: cases.jsonl: no cases with guests\n")
    assert run(capsys, file()) == (2, "", "vsmmu: cases.jsonl: no cases\n")


def guests(**more: Any) -> dict[str, Any]:
    return case(guests=[{**GUEST, **more}])


def ram(*banks: dict[str, str]) -> dict[str, Any]:
    return guests(ram=[{**BANK, **bank} for bank in banks])


NUMBER = "expected a hexadecimal string of at most 64 bits"
MALFORMED: list[tuple[Any, str]] = [
    (3, "a case is an object"),
    (case(id=3), "id: expected text"),
    (case(stage="1"), 'stage: expected "nested"'),
    (case(guests=None), "guests: expected a list of 1 to 16"),
    (case(guests=[]), "guests: expected a list of 1 to 16"),
    (case(guests=[GUEST] * 17), "guests: expected a list of 1 to 16"),
    (case(guests=[3]), "guest 0: expected an object"),
    (guests(vmid=None), "guest 0: vmid: expected 0 to 65535"),
    (guests(vmid=True), "guest 0: vmid: expected 0 to 65535"),
    (guests(vmid="0x10000"), "guest 0: vmid: expected 0 to 65535"),
    (guests(ram=[]), "guest 0: ram: expected a list of 1 to 64"),
    (guests(ram=[BANK] * 65), "guest 0: ram: expected a list of 1 to 64"),
    (guests(ram=[3]), "guest 0: ram 0: expected an object"),
    (ram({"ipa": "1"}), f"guest 0: ram 0: ipa: {NUMBER}"),
    (ram({"pa": "0x800"}), "guest 0: ram 0: pa: expected whole pages"),
    (ram({"size": "0x0"}), "guest 0: ram 0: size: expected at least a page"),
    (ram({"size": "0x4001000"}), "guest 0: ram: more than 64 MiB"),
    (ram({"ipa": "0xffffffff000"}, {"ipa": "0x100000000000"}),
     "guest 0: ram 1: beyond 44 bits"),
    (ram({"pa": "0x17fff000"}), "guest 0: ram 0: pa: the hypervisor's own RAM is at 0x10000000"),
    (ram({}, {}), "guest 0: ram: two ranges at 0x40000000"),
    (guests(sids=[]), "guest 0: sids: expected an object"),
    (guests(sids={"1": "0x1"}), "guest 0: sids: '1': expected a StreamID of at most 16 bits"),
    (guests(sids={"0x1": "0x10000"}),
     "guest 0: sids: '0x10000': expected a StreamID of at most 16 bits"),
    (guests(sids={"0x1": "0x1", "0x01": "0x2"}),
     "guest 0: sids: a virtual StreamID stands there twice"),
    (case(guests=[GUEST, {**OTHER, "vmid": "0x7"}]), "guest 1: vmid: another guest has 7"),
    (case(guests=[GUEST, {**OTHER, "sids": {"0x1": "0x2"}}]),
     "guest 1: sids: 0x2 is assigned already"),
    (guests(sids={hex(i): hex(i) for i in range(1025)}), "guests: more than 1024 devices"),
    (case(vsteps=None), "vsteps: expected a list"),
    (case(vsteps=[3]), "guest step 0: expected an object"),
    (case(vsteps=[{**READ, "op": "jump"}]), "guest step 0: no such operation 'jump'"),
    (case(vsteps=[{**READ, "g": 2}]), "guest step 0: g: expected the index of a guest"),
    (case(vsteps=[{**READ, "g": True}]), "guest step 0: g: expected the index of a guest"),
    (case(vsteps=[READ, {**ACCESS, "vsid": None}]), f"guest step 1: vsid: {NUMBER}"),
    (case(vsteps=[{**ACCESS, "vsid": "0x100000000"}]), "guest step 0: vsid: more than 32 bits"),
    (case(vsteps=[{**ACCESS, "vsid": "0x2"}]), "guest step 0: vsid: guest 0 has no device 0x2"),
    (case(vsteps=[{**ACCESS, "size": 4097}]), "guest step 0: size: expected 1 to 4096"),
    (case(steps=[{**STEP, "sid": None}]), f"step 0: sid: {NUMBER}"),
    (case(steps=[{**STEP, "v": 0}]), "step 0: v: expected the index of a guest's access"),
    (case(steps=[{**STEP, "v": 2}]), "step 0: v: expected the index of a guest's access"),
    (entry(steps=None), "steps: expected a list"),
    (entry({**RESULT, "i": 1}), "result 0: i: expected the index of a step"),
    *(
        (entry({**RESULT, "events": [event]}), f"result 0: events: no event record {event!r}")
        for event in (3, {"type": 3}, {"sid": [2]}, {"sid": 2, "ipa": 4}, {"sid": 2, "fetch": "x"})
    ),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), MALFORMED)
def test_a_malformed_line(capsys, bad, message):
    name = file(PHYSICAL, bad)
    assert run(capsys, name) == (2, "", f"vsmmu: cases.jsonl: line 2: {message}\n")


def test_the_hypervisor_has_room_for_all_that_a_case_may_ask(capsys):
    """As many guests, ranges and devices as there may be, spread as widely as they can be."""
    many = [
        {
            "vmid": g,
            "ram": [
                {"ipa": hex((i * 0xAB_CDEF << 16) % (1 << 44)), "pa": hex(0x4000_0000 + (i << 12)),
                 "size": "0x1000"}
                for i in range(64)
            ],
            "sids": {hex(i): hex(i * 1024 + g) for i in range(64)},
        }
        for g in range(16)
    ]  # fmt: skip
    steps = [{**ACCESS, "g": g, "iova": hex(0xAB_CDEF << 16)} for g in range(16)]
    code, out, _ = run(capsys, file(case(guests=many, vsteps=steps, steps=None)), "--json")
    assert code == 0
    assert [r["pa"] for r in json.loads(out)["results"]] == ["0x40001000"] * 16


def test_the_corpus(capsys, corpus):
    path = corpus / "smmu" / "cases.jsonl.xz"
    if not path.is_file():
        pytest.skip(f"no SMMU programs at {path}")
    code, out, _ = run(capsys, str(path))
    assert code == 0
    assert out.splitlines()[-1].split()[2] == "0"
