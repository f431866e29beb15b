# SPDX-License-Identifier: BSD-2-Clause
"""A run's timeline in the JSON trace event format, which ui.perfetto.dev and chrome://tracing open.

A guest, a physical SMMU and the devices are each a process there; vCPUs, vSMMUs, queues and DMA
ports are their threads. A microsecond on the axis is a unit of virtual time. What happened at one
time keeps its order: it is spread over the unit. Reads of registers and command details are left
out (`vsmmu run --trace` has everything).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dt_tools.json_text import json_text
from vsmmu.trace import EVENTS, Record

_DIGITS = 3
_SHORTEST = 10.0**-_DIGITS
_Event = dict[str, Any]
# Records that are on no track: polling, and details of what is there under another name.
_LEFT_OUT = ("smmuv3_read_mmio", "smmuv3_walk", "smmuv3_range_inval", "vsmmu_mmio_write")


def timeline(records: Sequence[Record], dropped: int = 0) -> bytes:
    """The file: {"displayTimeUnit", "otherData", "traceEvents"}; the same records, the same bytes.

    Args:
        records: of `Trace.records`.
        dropped: how many older ones are missing; a slice that began in them is not shown.
    """
    tracks = _Tracks()
    events = [
        event for record, ts, gap in _spread(records) for event in tracks.take(record, ts, gap)
    ]
    end = round(records[-1].time + 1.0, _DIGITS) if records else 0.0
    events += tracks.unfinished(end)
    body = ",\n".join(
        json_text(event, separators=(",", ":")) for event in [*tracks.names(), *events]
    )
    head = {"unit": "1 us is one unit of virtual time", "dropped_records": str(dropped)}
    start = f'{{"displayTimeUnit":"ns","otherData":{json_text(head)},"traceEvents":[\n'
    return f"{start}{body}\n]}}\n".encode()


def _spread(records: Sequence[Record]) -> Iterator[tuple[Record, float, float]]:
    """Each record with its place on the axis and the space until the next one's."""
    first = 0
    while first < len(records):
        time, last = records[first].time, first
        while last < len(records) and records[last].time == time:
            last += 1
        until = records[last].time if last < len(records) else time + 1
        gap = (until - time) / (last - first)
        for index in range(first, last):
            yield records[index], round(time + gap * (index - first), _DIGITS), gap
        first = last


@dataclass
class _Tracks:
    """Places by process and thread, in the order in which they appear, and slices under way."""

    _places: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    _open: dict[tuple[str, str], _Event] = field(default_factory=dict)
    _async: dict[tuple[str, str, str], list[_Event]] = field(default_factory=dict)
    _waiting: dict[str, int] = field(default_factory=dict)
    _sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    _serial: int = 0

    def take(self, record: Record, ts: float, gap: float) -> Iterator[_Event]:
        """What a record adds."""
        a = record.fields()
        name = record.name
        if name in _LEFT_OUT or (name.startswith("smmuv3_cmdq_") and name not in _QUEUE):
            return
        if name in ("scenario_step", "vsmmu_sync", "scenario_step_done"):
            yield from self._slice(name, a, ts)
        elif name in ("dma_start", "dma_done"):
            yield from self._dma(name, a, ts)
        elif name in ("hyp_submit", "hyp_complete"):
            yield from self._batch(name, a, ts)
        elif name == "vsmmu_irq":
            process, window = _vsmmu(a["vsmmu"])
            pid, tid = self._place(process, "interrupts")
            value = {a["cause"]: int(a["level"], 0)}
            yield {
                "ph": "C",
                "name": f"irq {a['cause']} {window}",
                "pid": pid,
                "tid": tid,
                "ts": ts,
                "args": value,
            }
        elif name == "smmuv3_cmdq_opcode":
            place = self._place(f"SMMU {a['smmu']}", "command queue")
            yield _complete(a["opcode"], place, ts, max(round(gap, _DIGITS), _SHORTEST), {})
        else:
            yield self._instant(name, a, ts)

    def names(self) -> Iterator[_Event]:
        """Metadata: names of processes and threads."""
        seen: set[int] = set()
        for (process, thread), (pid, tid) in self._places.items():
            if pid not in seen:
                seen.add(pid)
                yield _meta("process_name", pid, 0, {"name": process})
                yield _meta("process_sort_index", pid, 0, {"sort_index": _order(process, pid)})
            yield _meta("thread_name", pid, tid, {"name": thread})

    def unfinished(self, end: float) -> Iterator[_Event]:
        """Slices and requests that had not ended with the run."""
        for event in self._open.values():
            yield {
                **event,
                "dur": _length(event["ts"], end),
                "args": {**event["args"], "ended": "no"},
            }
        for (_, _, _), begun in self._async.items():
            for event in begun:
                yield _end(event, end, {"ended": "no"})

    def _place(self, process: str, thread: str) -> tuple[int, int]:
        found = self._places.get((process, thread))
        if found is None:
            pids = {p: pid for (p, _), (pid, _) in self._places.items()}
            pid = pids.get(process, len(pids) + 1)
            found = self._places[process, thread] = (pid, len(self._places) + 1)
        return found

    def _slice(self, name: str, a: dict[str, str], ts: float) -> Iterator[_Event]:
        """A step, or a guest's CMD_SYNC until CONS passes it: nothing else runs on its thread."""
        if name == "vsmmu_sync":
            key, begins, title = _vsmmu(a["vsmmu"]), a["state"] == "begin", "CMD_SYNC"
        else:
            key, begins = ("scenario", "steps"), name == "scenario_step"
            title = f"{int(a['number'], 0)} {a['guests']}: {a['do']}" if begins else ""
        before = self._open.pop(key, None)
        if before is not None:
            done = (
                {"outcome": a["outcome"]} if "outcome" in a else {"ended": "no"} if begins else {}
            )
            yield {**before, "dur": _length(before["ts"], ts), "args": {**before["args"], **done}}
        if begins:
            self._open[key] = _complete(title, self._place(*key), ts, 0.0, {})

    def _dma(self, name: str, a: dict[str, str], ts: float) -> Iterator[_Event]:
        key = ("dma", f"{a['smmu']} {a['device']}", a["iova"])
        if name == "dma_start":
            title = f"{'write' if int(a['is_write'], 0) else 'read'} {a['iova']}"
            yield self._begin(key, title, self._place("devices", a["device"]), ts, a)
        else:
            yield from self._finish(key, ts, {"outcome": a["outcome"]})

    def _batch(self, name: str, a: dict[str, str], ts: float) -> Iterator[_Event]:
        """Commands that somebody waits for, from when they are handed over until their CMD_SYNC."""
        process = f"SMMU {a['smmu']}"
        key = ("batch", a["smmu"], a["batch"])
        if name == "hyp_submit":
            self._sizes[key[1:]] = size = int(a["commands"], 0)
            title = f"domid {int(a['domid'], 0)}: {size} commands"
            yield self._begin(key, title, self._place(process, "batches"), ts, a)
        else:
            size = -self._sizes.pop(key[1:], 0)
            yield from self._finish(key, ts, {})
        self._waiting[process] = waiting = self._waiting.get(process, 0) + size
        pid, tid = self._place(process, "batches")
        yield {
            "ph": "C",
            "name": "commands waiting",
            "pid": pid,
            "tid": tid,
            "ts": ts,
            "args": {"commands": waiting},
        }

    def _begin(
        self,
        key: tuple[str, str, str],
        title: str,
        place: tuple[int, int],
        ts: float,
        a: dict[str, str],
    ) -> _Event:
        self._serial += 1
        event = {
            "ph": "b",
            "cat": key[0],
            "name": title,
            "id": hex(self._serial),
            "pid": place[0],
            "tid": place[1],
            "ts": ts,
            "args": a,
        }
        self._async.setdefault(key, []).append(event)
        return event

    def _finish(
        self, key: tuple[str, str, str], ts: float, args: dict[str, str]
    ) -> Iterator[_Event]:
        begun = self._async.get(key)
        if begun:
            yield _end(begun.pop(0), ts, args)

    def _instant(self, name: str, a: dict[str, str], ts: float) -> _Event:
        process, thread = _where(name, a)
        pid, tid = self._place(process, thread)
        title = name.removeprefix("vsmmu_").removeprefix("smmuv3_")
        for key in _TELLING:
            if key in a:
                title = f"{title} {a[key]}"
                break
        return {
            "ph": "i",
            "s": "t",
            "cat": name,
            "name": title,
            "pid": pid,
            "tid": tid,
            "ts": ts,
            "args": a,
        }


_QUEUE = ("smmuv3_cmdq_opcode", "smmuv3_cmdq_consume_error")


# Which argument is shown with an event's name.
_TELLING = ("cmd", "cmd_error", "config", "type", "reg", "irq", "reason", "event", "access")


def _where(name: str, a: dict[str, str]) -> tuple[str, str]:
    """Process and thread of an event that has no length."""
    if name == "vsmmu_trap":
        return f"guest {a['domain']}", f"vCPU {int(a['vcpu'], 0)}"
    if "vsmmu" in a:
        return _vsmmu(a["vsmmu"])
    process = f"SMMU {a['smmu']}"
    if name.startswith("smmuv3_translate"):
        return process, "accesses"
    if name.startswith("smmuv3_cmdq"):
        return process, "command queue"
    return process, "registers" if name == "smmuv3_write_mmio" else "events, errors, interrupts"


def _vsmmu(name: str) -> tuple[str, str]:
    """`vsmmu GUEST@BASE`: the guest's process and the vSMMU's thread."""
    guest, _, base = name.removeprefix("vsmmu ").rpartition("@")
    return f"guest {guest}", f"vSMMU {base}"


def _order(process: str, pid: int) -> int:
    """The scenario, guests, SMMUs, devices from top to bottom."""
    kinds = ("scenario", "guest", "SMMU", "devices")
    return (kinds.index(process.partition(" ")[0]) << 16) + pid


def _complete(title: str, place: tuple[int, int], ts: float, dur: float, args: _Event) -> _Event:
    return {
        "ph": "X",
        "name": title,
        "pid": place[0],
        "tid": place[1],
        "ts": ts,
        "dur": dur,
        "args": args,
    }


def _end(event: _Event, ts: float, args: dict[str, str]) -> _Event:
    return {**event, "ph": "e", "ts": max(ts, event["ts"]), "args": args}


def _length(start: float, end: float) -> float:
    return max(round(end - start, _DIGITS), _SHORTEST)


def _meta(name: str, pid: int, tid: int, args: _Event) -> _Event:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args}


assert set(_LEFT_OUT) | set(_QUEUE) <= EVENTS.keys()
