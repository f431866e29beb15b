# SPDX-License-Identifier: BSD-2-Clause
"""Timelines, trace events and costs of runs, held against what the SMMUs themselves counted."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vsmmu.cli.run import execute
from vsmmu.cli.trace_text import event_table
from vsmmu.costs import COLUMNS
from vsmmu.perfetto import timeline
from vsmmu.report import Report
from vsmmu.trace import EVENTS, Record

ROOT = Path(__file__).parents[2]
SAMPLES = ("two-guests", "hostile", "one-guest")


@pytest.fixture(scope="module", params=SAMPLES)
def report(request: pytest.FixtureRequest) -> Report:
    return execute(str(ROOT / "samples" / f"{request.param}.toml"), keep=True)


@pytest.fixture(scope="module")
def events(report: Report) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(timeline(report.machine.trace.records))["traceEvents"]
    return loaded


def threads(events: list[dict[str, Any]]) -> dict[int, tuple[str, str]]:
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    named = [e for e in events if e["name"] == "thread_name"]
    return {e["tid"]: (processes[e["pid"]], e["args"]["name"]) for e in named}


def test_every_event_has_a_named_place(events: list[dict[str, Any]]) -> None:
    names = threads(events)
    for event in events:
        if event["ph"] != "M":
            assert event["tid"] in names
            assert event["ts"] >= 0


def test_slices_of_a_thread_do_not_overlap(events: list[dict[str, Any]]) -> None:
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert slices
    for found in slices.values():
        found.sort()
        for (_, end), (start, _) in pairwise(found):
            assert end <= start + 0.0021


def test_what_begins_ends_once(events: list[dict[str, Any]]) -> None:
    begun = {(e["cat"], e["id"]): e["ts"] for e in events if e["ph"] == "b"}
    ended = {(e["cat"], e["id"]): e["ts"] for e in events if e["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert len(ended) == sum(e["ph"] == "e" for e in events) > 0
    assert all(ended[key] >= ts for key, ts in begun.items())


def test_a_thread_shows_what_the_smmu_counted(report: Report, events: list[dict[str, Any]]) -> None:
    names = threads(events)
    shown = Counter(
        (names[e["tid"]][0], e["name"])
        for e in events
        if e["ph"] == "X" and names[e["tid"]][1] == "command queue"
    )
    counted = Counter(
        {
            (f"SMMU {path}", name.removeprefix("cmd.")): count
            for path, smmu in report.machine.smmus.items()
            for name, count in smmu.counters.items()
            if name.startswith("cmd.CMD_")
        }
    )
    waited = sum(smmu.counters["cmd.waited"] for smmu in report.machine.smmus.values())
    assert (shown - counted).total() <= waited
    assert not counted - shown


def test_every_guest_smmu_and_device_in_use_has_its_track(
    report: Report, events: list[dict[str, Any]]
) -> None:
    places = set(threads(events).values())
    for guest in report.machine.guests.values():
        assert (f"guest {guest.name}", "vCPU 0") in places
        for vsmmu in guest.vsmmus.values():
            assert (f"guest {guest.name}", f"vSMMU {vsmmu.base:#x}") in places
    for path, smmu in report.machine.smmus.items():
        assert (f"SMMU {path}", "command queue") in places
        assert ((f"SMMU {path}", "accesses") in places) == any(
            name.startswith("txn.") for name in smmu.counters
        )
    assert ("scenario", "steps") in places


def test_costs_are_what_the_smmus_counted(report: Report) -> None:
    summary = report.summary()
    for path, smmu in report.machine.smmus.items():
        parts = [p for g in summary["guests"] for p in g["smmus"] if p["smmu"] == path]
        counters = smmu.counters
        total = {column: sum(part[column] for part in parts) for column in COLUMNS}
        assert total["accesses"] == sum(n for c, n in counters.items() if c.startswith("txn."))
        assert total["s1_reads"] == counters["walk.s1"]
        assert total["s2_reads"] == counters["walk.s2"]
        assert total["tlb_hits"] == counters["tlb.hit"]
        assert total["tlb_misses"] == counters["tlb.miss"]
        assert total["aborts"] == counters["txn.abort"]
        assert total["faults"] == counters["txn.fault"] + counters["txn.razwi"]
        assert total["config_reads"] == sum(
            counters[name] for name in ("walk.l1std", "walk.ste", "walk.l1cd", "walk.cd")
        )
    for row in summary["guests"]:
        vsmmus = report.machine.guests[row["guest"]].vsmmus.values()
        sent = sum(
            n
            for vsmmu in vsmmus
            for name, n in vsmmu.physical.items()
            if name.startswith(("CMD_CFGI_", "CMD_TLBI_", "CMD_ATC_INV"))
        )
        assert row["invalidations"] == sent
        assert row["ste_updates"] == sum(v.physical["STE update"] for v in vsmmus)
        assert row["trap_reads"] == sum(v.counters["trap read"] for v in vsmmus)


def test_the_same_run_is_the_same_bytes() -> None:
    one, two = (
        timeline(execute(str(ROOT / "samples/one-guest.toml"), 7).machine.trace.records)
        for _ in range(2)
    )
    assert one == two


def test_slices_that_never_ended_say_so() -> None:
    records = [
        Record(0, "scenario_step", (1, "a", "dma")),
        Record(0, "dma_start", ("d", "p", 1, 0x1000, 64, 1)),
        Record(3, "vsmmu_sync", ("vsmmu a@b@0x1000", "begin")),
        Record(4, "vsmmu_sync", ("vsmmu a@b@0x1000", "begin")),
    ]
    events = json.loads(timeline(records, dropped=5))
    assert events["otherData"]["dropped_records"] == "5"
    found = events["traceEvents"]
    slices = [(e["name"], e["ts"], e["dur"], e["args"]) for e in found if e["ph"] == "X"]
    assert slices == [
        ("CMD_SYNC", 3.0, 1.0, {"ended": "no"}),
        ("1 a: dma", 0.0, 5.0, {"ended": "no"}),
        ("CMD_SYNC", 4.0, 1.0, {"ended": "no"}),
    ]
    assert [e["args"] for e in found if e["ph"] == "e"] == [{"ended": "no"}]
    assert ("guest a@b", "vSMMU 0x1000") in threads(found).values()


def test_nothing_at_all_is_a_timeline_too() -> None:
    assert json.loads(timeline([]))["traceEvents"] == []


def test_the_table_of_events_is_documented() -> None:
    text = (ROOT / "docs/trace.md").read_text()
    rows = [
        f"| `{name}`{' *' if kind.qemu else ''} | {' '.join(kind.args)} | {kind.text} |"
        for name, kind in EVENTS.items()
    ]
    assert text.endswith("\n".join(rows) + "\n")
    listed = event_table().splitlines()
    assert [line[2:].split()[0] for line in listed[::2]] == list(EVENTS)


def test_every_event_of_the_table_is_traced_somewhere() -> None:
    source = "".join(
        path.read_text()
        for path in sorted((ROOT / "vsmmu").rglob("*.py"))
        if path.name not in ("trace.py", "perfetto.py", "costs.py")
    )
    assert [name for name in EVENTS if f'"{name}"' not in source] == []
