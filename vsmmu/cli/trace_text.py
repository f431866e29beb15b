# SPDX-License-Identifier: BSD-2-Clause
"""Files and lists of trace events: JSON Lines, a timeline, the table of names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.json_text import json_text
from vsmmu.cli.files import say

if TYPE_CHECKING:
    from vsmmu.trace import Trace


def trace_files(trace: Trace, lines: str | None, perfetto: str | None) -> dict[str, bytes]:
    """What to write, by file name; says on stderr when records are missing."""
    from vsmmu.perfetto import timeline

    out = {}
    if lines:
        out[lines] = _lines(trace)
    if perfetto:
        out[perfetto] = timeline(trace.records, trace.dropped)
    if out and trace.dropped:
        say(f"vsmmu: notice: the first {trace.dropped} trace events were dropped")
    return out


def _lines(trace: Trace) -> bytes:
    return "".join(
        json_text({"time": record.time, "name": record.name, **record.fields()}) + "\n"
        for record in trace.records
    ).encode()


def event_lines() -> str:
    """The trace events as JSON Lines: `name`, `args` in order, `text`, `qemu`, a bool."""
    from vsmmu.trace import EVENTS

    return "".join(json_text({"name": n, **kind._asdict()}) + "\n" for n, kind in EVENTS.items())


def event_table() -> str:
    """The trace events, a line each; a star marks QEMU's names."""
    from vsmmu.trace import EVENTS

    width = max(map(len, EVENTS))
    return "".join(
        f"{'*' if kind.qemu else ' '} {name:{width}}  {' '.join(kind.args)}\n"
        f"  {'':{width}}    {kind.text}\n"
        for name, kind in EVENTS.items()
    )
