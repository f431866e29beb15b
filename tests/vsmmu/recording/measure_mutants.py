# SPDX-License-Identifier: BSD-2-Clause
"""How many changes of a recording are reported, and how many at their place.

`python -m tests.vsmmu.recording.measure_mutants [--count N] [--missed] [FILE.xz ...]` changes one
thing at a time in recordings of Linux, plays each mutant, and prints a table. Not a test.
"""

from __future__ import annotations

import argparse
import lzma
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.vsmmu.recording.mutant_words import Flip, flip, words_of
from tests.vsmmu.recording.mutants import Sent, commands, deleted, replaced, resent
from tests.vsmmu.recording.tape import play
from vsmmu.arch.commands import CmdPrefetchConfig, CmdSync, Command
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Divergence
from vsmmu.recording.format import Reader, Record, RecordingError

TRACES = Path(os.environ.get("VSMMU_CORPUS", "/work/shared/corpus")) / "traces"
# A StreamID that no device of the samples has.
NOBODY = 0xEE


class Mutant(NamedTuple):
    """What was changed, at which record, and the records."""

    kind: str
    record: int
    near: bool
    what: str
    make: Callable[[], list[Record]]


def of_commands(records: list[Record]) -> Iterator[Mutant]:
    """Each command dropped in each way."""
    hint = CmdPrefetchConfig.build(sid=NOBODY)
    for one in commands(records):
        name = one.command.name.removeprefix("CMD_")
        what = f"{one.command.name} of record {one.record}"
        yield _mutant(f"deleted {name}", one, what, lambda o=one: deleted(records, o))
        if not isinstance(one.command, CmdSync):
            yield _mutant(f"SYNC for {name}", one, what, lambda o=one: replaced(records, o))
        yield _mutant(f"zeros for {name}", one, what, lambda o=one: _zeros(records, o))
        yield _mutant(f"hint for {name}", one, what, lambda o=one: replaced(records, o, hint))
        yield _mutant(f"removed {name}", one, what, lambda o=one: resent(records, o))


def _mutant(kind: str, one: Sent, what: str, make: Callable[[], list[Record]]) -> Mutant:
    # A record that is not there has no number: the place is the write that sends it.
    return Mutant(kind, one.record, kind.startswith(("deleted", "removed")), what, make)


def _zeros(records: list[Record], one: Sent) -> list[Record]:
    return replaced(records, one, Command((0, 0)))


def of_words(records: list[Record], found: list[Flip]) -> Iterator[Mutant]:
    """One bit of each word."""
    for one in found:
        used = "used" if one.used else "unused"
        what = f"{one.what} record {one.record} byte {one.offset} bit {one.bit} ({one.field})"
        yield Mutant(
            f"{one.what} {used} {one.field}", one.record, False, what,
            lambda o=one: flip(records, o.record, o.offset, o.bit),
        )  # fmt: skip


def verdict(found: Divergence | None, mutant: Mutant) -> str:
    """Nothing for none, "place" where the changed record is named, "else" otherwise."""
    if found is None:
        return ""
    named = {found.record, *(source.record for source in found.provenance)}
    if mutant.near:
        # The records behind are one or more less.
        return "place" if any(-1 <= one - mutant.record <= 8 for one in named) else "else"
    return "place" if mutant.record in named else "else"


def measure(path: Path, count: int, missed: bool, table: dict[str, Counter[str]]) -> None:
    """Add one recording to the table."""
    reader = Reader([lzma.decompress(path.read_bytes())], path.name)
    records, header = list(reader), reader.header.fields
    random = Random(path.name)
    kinds: dict[str, list[Mutant]] = {}
    for mutant in (*of_commands(records), *of_words(records, words_of(records, header, random))):
        kinds.setdefault(mutant.kind, []).append(mutant)
    for kind in sorted(kinds):
        row = table.setdefault(kind, Counter())
        for mutant in random.sample(kinds[kind], min(len(kinds[kind]), count)):
            try:
                found = play(mutant.make(), Both(), header).divergence
            except RecordingError as error:
                print(f"{path.name}: {mutant.what}: malformed: {error}")
                row["malformed"] += 1
                continue
            row["tried"] += 1
            told = verdict(found, mutant)
            row["told"] += bool(told)
            row["place"] += told == "place"
            if missed and told != "place":
                print(f"{path.name}: {kind}: {mutant.what}: {found or 'not reported'}", flush=True)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2, help="mutants of a kind and file")
    parser.add_argument("--missed", action="store_true", help="list what is not reported")
    parser.add_argument("files", nargs="*", type=Path)
    asked = parser.parse_args()
    table: dict[str, Counter[str]] = {}
    for path in asked.files or sorted(TRACES.glob("*.xz")):
        start = time.monotonic()
        measure(path, asked.count, asked.missed, table)
        print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)
    total = Counter[str]()
    for kind in sorted(table):
        row = table[kind]
        total += row
        print(f"{kind:44} {row['tried']:5} {row['told']:5} {row['place']:5}")
    print(f"{'all':44} {total['tried']:5} {total['told']:5} {total['place']:5}")


if __name__ == "__main__":
    main()
