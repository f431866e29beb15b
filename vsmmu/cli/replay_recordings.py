# SPDX-License-Identifier: BSD-2-Clause
"""Recordings of `vsmmu replay`: played, a line each in a table, the first divergence explained."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dt_tools.json_text import json_text
from vsmmu.cli import replay_vsmmu
from vsmmu.cli.counter import counted
from vsmmu.cli.files import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vsmmu.recording.divergence import Divergence
    from vsmmu.recording.format import Header
    from vsmmu.recording.guest import Guest
    from vsmmu.recording.player import Played, Target

SCHEMA = "vsmmu.replay/1"
_COLUMNS = 80
# Characters shown of a name of the file or its header, of a line, and of a note.
_NAME, _LINE, _NOTE = 32, 600, 120
# Records that are listed as those that wrote what the model looked at.
_SOURCES = 24


@dataclass(slots=True)
class _Row:
    name: str
    header: Header
    played: Played
    guest: Guest | None = None


class Recordings:
    """Plays recordings; `show` prints what is to be said when all were played."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._rows: list[_Row] = []

    def play(self, name: str, blocks: Iterable[bytes]) -> bool:
        """Play one; whether it diverges.

        Raises:
            RecordingError: the file is malformed.
        """
        from vsmmu.recording.format import Reader
        from vsmmu.recording.player import Player

        def each(number: int) -> None:
            counted(number, f"records of {plain(name)[:_NAME]}")

        guest: Guest | None = None
        try:
            if self._arguments.vsmmu:
                source = replay_vsmmu.again(name, blocks)
                guest, played = replay_vsmmu.play(name, source, self._arguments, each)
                reader = Reader(source(), name)
            else:
                reader = Reader(blocks, name)
                played = Player(reader, self._target()).play(each)
        finally:
            counted(0, "", end=True)
        row = _Row(name, reader.header, played, guest)
        if self._arguments.json:
            print(json_text(_object(row, self._caching)))
        self._rows.append(row)
        return played.divergence is not None

    @property
    def _caching(self) -> str:
        return self._arguments.caching or "both"

    def _target(self) -> Target:
        from vsmmu.recording.both import Both
        from vsmmu.recording.physical import Physical
        from vsmmu.recording.uncached import Uncached

        if self._caching == "both":
            return Both()
        return Uncached() if self._caching == "none" else Physical(self._caching)

    def show(self) -> None:
        """The table, and the divergences."""
        if self._rows and not self._arguments.json:
            print("\n".join(_table(self._rows)))
            print("".join(f"{line}\n" for line in _advertised(self._rows)), end="")
            print("".join(f"{line}\n" for line in _otherwise(self._rows)), end="")
            for row in self._rows:
                if row.played.divergence is not None:
                    print("\n".join(_explained(row.name, row.played.divergence)))


def _object(row: _Row, caching: str) -> dict[str, Any]:
    played, found = row.played, row.played.divergence
    fields = row.header.fields
    return {
        "schema": SCHEMA,
        "file": row.name,
        **{key: fields[key] for key in ("name", "scenario", "kernel") if _is_text(fields.get(key))},
        "caching": caching,
        "identification": {name: f"{value:#x}" for name, value in played.ids.items()},
        "played_as": list(played.notes),
        "records": played.records,
        "reads": played.reads,
        "writes": played.writes,
        "accesses": played.accesses,
        "unjudged": played.unjudged,
        "events": played.events,
        "interrupts": {"recorded": played.irqs[0], "model": played.irqs[1]},
        "agrees": found is None,
        "divergence": None if found is None else found.to_json(),
        **({} if row.guest is None else {"vsmmu": row.guest.to_json()}),
    }


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _short(value: object, limit: int = _NAME) -> str:
    text = plain(value) if isinstance(value, str) else "-"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _table(rows: list[_Row]) -> Iterator[str]:
    """A line a file: what was played, and the verdict."""
    cells: list[tuple[str, ...]] = [("file", "kernel", "records", "accesses", "events", "verdict")]
    for row in rows:
        played, found = row.played, row.played.divergence
        verdict = "agrees" if found is None else f"differs at {found.record:,}"
        counts = (f"{n:,}" for n in (played.records, played.accesses, played.events))
        name = row.name.rpartition("/")[2] or row.name
        cells.append((_short(name), _short(row.header.fields.get("kernel")), *counts, verdict))
    widths = [max(len(cell[i]) for cell in cells) for i in range(len(cells[0]))]
    for cell in cells:
        columns = [
            f"{text:>{width}}" if 2 <= i <= 4 else f"{text:{width}}"
            for i, (text, width) in enumerate(zip(cell, widths, strict=True))
        ]
        yield "  ".join(columns).rstrip()


def _advertised(rows: list[_Row]) -> Iterator[str]:
    """How vSMMUs identified themselves otherwise than what was recorded: a line a field."""
    told: dict[str, int] = {}
    for row in rows:
        for line in () if row.guest is None else replay_vsmmu.otherwise(row.guest):
            told[line] = told.get(line, 0) + 1
    for line, count in told.items():
        of = "" if len(rows) == 1 else f", {count} of {len(rows)} files"
        yield f"advertised: {line}{of}"


def _otherwise(rows: list[_Row]) -> Iterator[str]:
    """What recorded SMMUs had that the model has otherwise: a line a field."""
    told = Counter(note for row in rows for note in row.played.notes)
    for note, count in told.items():
        of = "" if len(rows) == 1 else f", {count} of {len(rows)} files"
        yield f"not modelled: {note}{of}"


def _explained(name: str, found: Divergence) -> Iterator[str]:
    """The first divergence of a recording, both sides."""
    yield ""
    phase = f' in "{_short(found.phase, _NOTE)}"' if found.phase else ""
    yield from _wrapped(f"{name}: record {found.record} (byte {found.place:#x}){phase}", "")
    yield from _wrapped(f"{found.kind}: {found.what}", "  ")
    yield from _wrapped(f"recorded {found.recorded}", "  - ")
    yield from _wrapped(f"model    {found.model}", "  + ")
    for title, lines in (("recorded", found.recorded_side), ("model", found.model_side)):
        if lines:
            yield f"  {title}:"
        for line in lines:
            yield from _wrapped(line, "    ")
    if found.provenance:
        yield "  written by:"
    told: dict[int, list[str]] = {}
    for source in found.provenance:
        told.setdefault(source.record, []).append(source.what)
    for record in sorted(told, reverse=True)[:_SOURCES]:
        yield from _wrapped(f"record {record}: {', '.join(dict.fromkeys(told[record]))}", "    ")


def _wrapped(text: str, indent: str) -> list[str]:
    shown = plain(text)
    shown = shown if len(shown) <= _LINE else shown[:_LINE] + "..."
    deeper = " " * (len(indent) + 2)
    return textwrap.wrap(shown, _COLUMNS, initial_indent=indent, subsequent_indent=deeper) or [""]
