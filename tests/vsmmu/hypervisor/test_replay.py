# SPDX-License-Identifier: BSD-2-Clause
"""Guests' programs on the vSMMUs, against the equivalent physical programs."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.vsmmu.hypervisor.vcases import Json
from tests.vsmmu.hypervisor.vcases_random import random_case
from vsmmu.arch.commands import (
    CmdAtcInv,
    CmdPrefetchAddr,
    CmdPrefetchConfig,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    CmdTlbiNhAll,
)
from vsmmu.arch.registers import Idr0
from vsmmu.hypervisor import commands, replay
from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.replay import CaseError, as_guest, check, check_outcome, compare, play
from vsmmu.hypervisor.reports import Reports
from vsmmu.smmu import replay as physical

# Two guests with the same addresses; 0x2 of the first is the other's device in the machine.
GUESTS = [
    {
        "vmid": 7, "sids": {"0x1": "0x2", "0x2": "0x10"},
        "ram": [{"ipa": "0x40000000", "pa": "0x41000000", "size": "0x10000"}],
    },
    {
        "vmid": "0x8", "sids": {"0x1": "0x1"},
        "ram": [{"ipa": "0x40000000", "pa": "0x42000000", "size": "0x10000"},
                {"ipa": "0x90000000", "pa": "0x41800000", "size": "0x1000"}],
    },
]  # fmt: skip
IDLE = {
    "CMDQ_PROD": "0x0", "CR0ACK": "0x0", "EVENTQ_CONS": "0x0", "EVENTQ_PROD": "0x0",
    "GERROR": "0x0", "GERRORN": "0x0", "IRQ_CTRLACK": "0x0",
}  # fmt: skip


def w(g: int, off: int, value: int, size: int = 4) -> Json:
    return {"g": g, "op": "w", "off": hex(off), "val": hex(value), "size": size}


def mem(g: int, addr: int, data: bytes) -> Json:
    return {"g": g, "op": "mem", "addr": hex(addr), "hex": data.hex()}


def dma(g: int, vsid: int, iova: int, size: int = 4) -> Json:
    return {"g": g, "op": "dma", "vsid": hex(vsid), "iova": hex(iova), "rw": "r", "size": size}


def case(*vsteps: Json, **more: Any) -> Json:
    return {"id": "one", "stage": "nested", "guests": GUESTS, "vsteps": [*vsteps], **more}


# The event queue at 0x40001000, a linear stream table of four zeros at 0x40002000.
def boot(g: int) -> list[Json]:
    return [
        w(g, 0xA0, 0x4000_1002, 8), w(g, 0x80, 0x4000_2000, 8), w(g, 0x88, 2), w(g, 0x20, 5),
    ]  # fmt: skip


def test_bypass_reaches_each_guests_own_memory() -> None:
    played = play(case(dma(0, 1, 0x4000_0FFC, 8), dma(1, 1, 0x4000_0000), dma(1, 1, 0x9000_0010)))
    first, second, third = played["results"]
    assert first == {
        "i": 0, "g": 0, "op": "dma", "xlate": "ok", "pa": "0x41000ffc", "events": [], "irq": [],
        "pages": [
            {"iova": "0x40000ffc", "n": 4, "xlate": "ok", "pa": "0x41000ffc"},
            {"iova": "0x40001000", "n": 4, "xlate": "ok", "pa": "0x41001000"},
        ],
    }  # fmt: skip
    assert (second["pa"], third["pa"]) == ("0x42000000", "0x41800010")
    assert played["regs"] == [IDLE, IDLE]


def test_every_guest_step_has_a_result() -> None:
    steps = [*boot(0), mem(0, 0x4000_3000, b"abc"), dma(0, 1, 0x1000), *boot(1), dma(1, 1, 0)]
    results = play(case(*steps))["results"]
    assert [r["i"] for r in results] == list(range(len(steps)))
    assert results[4] == {"i": 4, "g": 0, "op": "mem", "irq": []}
    assert results[3] == {"i": 3, "g": 0, "op": "w", "irq": []}
    assert results[5] == {
        "i": 5, "g": 0, "op": "dma", "xlate": "fault", "irq": [],
        "pages": [{"iova": "0x1000", "n": 4, "xlate": "fault"}],
        "events": [{"type": "C_BAD_STE", "sid": 1}],
    }  # fmt: skip
    assert results[10]["events"] == [{"type": "C_BAD_STE", "sid": 1}]


def test_guests_see_the_machine_less_stage_2() -> None:
    reads = [{"g": 0, "op": "r", "off": hex(off), "size": 4} for off in (0, 4, 0xC, 0x14, 0x1C)]
    values = [r["val"] for r in play(case(*reads))["results"]]
    # VMID16 says nothing where there is no stage 2.
    idr0 = Idr0(int(values[0], 16)).replace(vmid16=1).raw
    assert [hex(idr0), *values[1:]] == ["0xd44101a", "0x2730010", "0x1404", "0x74", "0x1"]


def test_interrupts_are_those_of_the_guest_that_acts() -> None:
    steps = [
        *boot(0), w(0, 0x50, 5), dma(0, 2, 0), dma(0, 2, 0),
        mem(0, 0x4000_0000, bytes(CmdSync.build(cs=1)) + bytes(16)),
        w(0, 0x90, 0x4000_0004, 8), w(0, 0x20, 13), w(0, 0x98, 1), w(0, 0x98, 2),
    ]  # fmt: skip
    irqs = [r["irq"] for r in play(case(*steps))["results"][5:]]
    assert irqs == [[0], [], [], [], [], [2], [3]]


def test_a_streamid_beyond_the_guests_table() -> None:
    """C_BAD_STREAMID, for a guest that asked for it with CR2.RECINVSID."""
    for recinvsid, events in ((0, []), (2, [{"type": "C_BAD_STREAMID", "sid": 2}])):
        steps = [*boot(0)[:2], w(0, 0x88, 1), w(0, 0x2C, recinvsid), w(0, 0x20, 5), dma(0, 2, 0)]
        assert play(case(*steps))["results"][5]["events"] == events


def test_the_record_as_the_guest_reads_it() -> None:
    fault = {"type": "F_TRANSLATION", "sid": 2, "rnw": 1, "iaddr": "0x5000"}
    eabt = {"type": "F_WALK_EABT", "cls": "TT", "rnw": 1, "s2": 0, "iaddr": "0x5000"}
    pairs: list[tuple[Json, Json | None]] = [
        ({"type": "C_BAD_CD", "sid": 16}, {"type": "C_BAD_CD", "sid": 2}),
        ({**fault, "cls": "IN", "s2": 0}, {**fault, "cls": "IN", "s2": 0, "sid": 1}),
        ({**fault, "cls": "IN", "s2": 1, "ipa": "0x7ff8"}, None),
        ({**fault, "cls": "TT", "s2": 1, "ipa": "0x7ff8"},
         {**eabt, "sid": 1, "fetch": "0x7000"}),
        ({**fault, "cls": "CD", "s2": 1, "ipa": "0x7000"},
         {"type": "F_CD_FETCH", "sid": 1, "fetch": "0x7000"}),
        ({**eabt, "sid": 2, "fetch": "0x41000018"}, {**eabt, "sid": 1, "fetch": "0x40000018"}),
        ({**eabt, "sid": 2, "fetch": "0x1000"}, {**eabt, "sid": 1, "fetch": "0x0"}),
    ]  # fmt: skip
    assert [as_guest(event, GUESTS[0]) for event, _ in pairs] == [seen for _, seen in pairs]


def _judged() -> tuple[Json, Json]:
    """A case of three accesses, of which the last but one is stale, and its outcome."""
    vsteps = [*boot(0), dma(0, 1, 0x40), dma(0, 2, 0x40), dma(1, 1, 0x4000_0000)]
    steps = [
        {**step, "sid": sid, "v": v}
        for v, sid, step in ((4, "0x2", vsteps[4]), (5, "0x10", vsteps[5]), (6, "0x1", vsteps[6]))
    ]
    steps[1]["stale_ok"] = True
    pages = [{"iova": "0x40", "n": 4, "xlate": "fault"}]
    fault = {"op": "dma", "xlate": "fault", "pages": pages, "irq": []}
    page = {"iova": "0x40000000", "n": 4, "xlate": "ok", "pa": "0x42000000"}
    results = [
        {**fault, "i": 0, "events": [{"type": "C_BAD_STE", "sid": 2}]},
        {**fault, "i": 1, "events": [{"type": "C_BAD_CD", "sid": 0x10}]},
        {"i": 2, "op": "dma", "xlate": "ok", "pa": page["pa"], "pages": [page], "events": []},
    ]
    return case(*vsteps, steps=steps), {"results": results, "regs": {"GERROR": "0x1"}}


def test_differences_are_named() -> None:
    program, expected = _judged()
    check(program)
    check_outcome(program, expected)
    assert compare(program, play(program), expected) == []
    played = play(program)
    event = {"type": "C_BAD_CD", "sid": 2}
    played["results"][1]["events"] = [event]
    played["results"][4]["events"] = []
    played["results"][5]["elsewhere"] = {"1": [event]}
    played["results"][6] |= {"xlate": "fault", "pa": "0x0", "pages": []}
    assert [*map(str, compare(program, played, expected))] == [
        f"step 1: events {[event]}, expected []",
        "step 4: events [], expected [{'type': 'C_BAD_STE', 'sid': 1}]",
        f"step 5: elsewhere {{'1': {[event]}}}, expected None",
        f"step 6: pages [], expected {expected['results'][2]['pages']}",
        "step 6: xlate fault, expected ok",
        "step 6: pa 0x0, expected 0x42000000",
    ]


def test_records_for_another_guest_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hypervisor that hands a record to the wrong guest is found out."""
    kept = Reports.event

    def astray(self: Any, host: Any, event: Any) -> None:
        kept(self, host, event.replace(sid=1))

    monkeypatch.setattr(Reports, "event", astray)
    result = play(case(*boot(0), *boot(1), dma(0, 2, 0)))["results"][8]
    assert (result["events"], result["elsewhere"]) == ([], {"1": [{"type": "C_BAD_STE", "sid": 1}]})


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "WORK_MAX", 200)
    turn = [w(0, 0x98, 0x80), w(0, 0x98, 0)]
    queue = mem(0, 0x4000_0000, bytes(CmdTlbiNhAll.build()) * 128)
    steps = [queue, w(0, 0x90, 0x4000_0007, 8), w(0, 0x20, 8), *turn]
    with pytest.raises(CaseError) as caught:
        play(case(*steps))
    assert str(caught.value) == "guest step 4: the case makes more than 200 units of work"
    assert play(case(*steps[:4]))["regs"][0]["CMDQ_PROD"] == "0x80"


# Random programs.

_random = cache(random_case)


@cache
def _expected(seed: int) -> Json:
    return physical.play(_random(seed))


def _differing(seeds: range, caching: str = "normal") -> dict[int, list[str]]:
    found = {}
    for seed in seeds:
        program = _random(seed)
        outcome = (
            _expected(seed) if caching == "normal" else physical.play(program, caching=caching)
        )
        wrong = compare(program, play(program, caching=caching), outcome)
        if wrong:
            found[seed] = [str(one) for one in wrong]
    return found


@pytest.mark.parametrize("caching", ["normal", "none", "hostile"])
def test_random_guests_are_as_on_a_physical_smmu(caching: str) -> None:
    for seed in range(8):
        check(_random(seed))
    assert _differing(range(8), caching) == {}


@pytest.mark.soak
@pytest.mark.parametrize("caching", ["normal", "none", "hostile"])
def test_many_random_guests(caching: str) -> None:
    assert _differing(range(1000, 1400), caching) == {}


def test_random_guests_share_what_they_can() -> None:
    """Without equal ids and addresses the comparison would show no isolation."""
    shared = 0
    for seed in range(8):
        first, second, *_ = _random(seed)["guests"]
        shared += bool(first["sids"].keys() & second["sids"].keys())
        shared += first["ram"][0]["ipa"] == second["ram"][0]["ipa"]
    assert shared > 8


# Without effect that a guest sees, or not offered to these guests.
_UNSEEN = (
    *(CmdSync, CmdPrefetchConfig, CmdPrefetchAddr),
    *(CmdAtcInv, CmdPriResp, CmdResume, CmdStallTerm),
)


@pytest.mark.parametrize("kind", [k for k in commands._HANDLERS if k not in _UNSEEN])
def test_a_command_that_is_lost_is_seen(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commands._HANDLERS, kind, lambda vsmmu, command: None)
    assert any(_differing(range(seed, seed + 1)) for seed in range(30))


def test_guests_with_one_vmid_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = Domain._stage2_fields.fget  # type: ignore[attr-defined]
    one = property(lambda self: {**fields(self), "s2vmid": 5})
    monkeypatch.setattr(Domain, "_stage2_fields", one)
    assert any(_differing(range(seed, seed + 1)) for seed in range(8))


# Recorded programs.


@pytest.mark.parametrize("caching", ["normal", "none", "hostile"])
def test_recorded_guests_are_as_the_architecture_says(corpus: Path, caching: str) -> None:
    path = corpus / "smmu" / "cases.jsonl.xz"
    if not path.is_file():
        pytest.skip(f"no SMMU programs at {path}")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        found = [one for one in map(json.loads, lines) if "guests" in one["case"]]
    wrong = {}
    for one in found:
        check(one["case"])
        check_outcome(one["case"], one["arch"])
        differ = compare(one["case"], play(one["case"], caching=caching), one["arch"])
        if differ:
            wrong[one["case"]["id"]] = [str(difference) for difference in differ]
    assert wrong == {}
    assert len(found) >= 12
