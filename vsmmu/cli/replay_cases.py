# SPDX-License-Identifier: BSD-2-Clause
"""Cases of `vsmmu replay`: a line each, played, compared with the outcome beside it, and shown."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from dt_tools.json_text import json_text
from vsmmu.cli.counter import counted
from vsmmu.cli.files import plain, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vsmmu.arch.describe import Description
    from vsmmu.smmu.replay import Difference

DIFFERS = 3
_COLUMNS = 80
# Characters shown of a text of the file, and of a family's name.
_SHOWN = 300
_NAME = 40
# What is shown of a step, in this order.
_STEP = ("g", "op", "reg", "off", "val", "addr", "sid", "vsid", "iova", "rw", "size")
# A line of a file, in bytes.
LINE_MAX = 16 << 20
# Cases from one count on a terminal to the next.
_EVERY = 50


class ReplayError(Exception):
    """A line that is not a case: one line of text."""

    exit_code = 2


@dataclass(slots=True)
class _Family:
    """Cases of one family: how many agree, differ, have no outcome to agree with."""

    agree: int = 0
    differ: int = 0
    unjudged: int = 0
    first: str = ""
    explained: list[str] = field(default_factory=list)


def play_cases(name: str, blocks: Iterable[bytes], arguments: argparse.Namespace) -> int:
    """Play the cases of a file and print; 3 where an outcome differs from what the file expects.

    Raises:
        ReplayError: a line that is not a case, or no line at all.
    """
    from vsmmu.smmu.cases import CaseError

    families: dict[str, _Family] = {}
    seen = played = 0
    for number, line in _lines(name, blocks):
        try:
            played += _one(line, arguments, families)
        except (CaseError, RecursionError) as error:
            counted(seen, "cases", end=True)
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise ReplayError(f"{name}: line {number}: {reason}") from None
        seen += 1
        if seen % _EVERY == 0:
            counted(seen, "cases")
    counted(seen, "cases", end=True)
    if not played:
        raise ReplayError(f"{name}: no cases{' with guests' if seen else ''}")
    if not arguments.json:
        print("\n".join(_table(families)))
    if seen > played:
        say(f"vsmmu: notice: not played, without guests: {seen - played} of {seen} cases")
    return DIFFERS if any(family.differ for family in families.values()) else 0


def _one(line: bytes, arguments: argparse.Namespace, families: dict[str, _Family]) -> bool:
    """Play the case of a line, print it, count it; False where it is none of those asked for."""
    if arguments.vsmmu:
        from vsmmu.hypervisor.replay import check, check_outcome, compare, play
    else:
        from vsmmu.smmu.replay import check, check_outcome, compare, play

    entry = _parsed(line)
    whole = isinstance(entry, dict) and "case" in entry
    case = entry["case"] if whole else entry
    expected = entry.get("arch") if whole else None
    steps = "vsteps" if arguments.vsmmu else "steps"
    if arguments.vsmmu and isinstance(case, dict) and not {"guests", "vsteps"} & case.keys():
        return False
    check(case)
    if expected is not None:
        check_outcome(case, expected)
    outcome = play(case, caching=arguments.caching or "normal")
    if arguments.json:
        print(json_text({"id": case["id"], **outcome}))
    family = families.setdefault(case.get("family", "-"), _Family())
    if expected is None:
        family.unjudged += 1
        return True
    found = compare(case, outcome, expected)
    family.agree += not found
    family.differ += bool(found)
    if found and not family.first:
        family.first = case["id"]
        family.explained = [*_explained(case, case[steps], found[0], len(found))]
    return True


def _parsed(line: bytes) -> Any:
    """What a line holds. Raises CaseError, RecursionError."""
    from vsmmu.smmu.cases import CaseError

    try:
        return json.loads(line.decode())
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except ValueError:
        # The one that is left is Python's limit on the digits of a number.
        reason = "a number of too many digits"
    raise CaseError(reason)


# Reading: a line at a time.


def _lines(name: str, blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number, text) of the lines that are not blank. Raises FileError, ReplayError."""
    rest, number = b"", 0
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            number += 1
            if line.strip():
                yield number, line
        if len(rest) > LINE_MAX:
            raise ReplayError(f"{name}: line {number + 1}: longer than {LINE_MAX >> 20} MiB")
    if rest.strip():
        yield number + 1, rest


# Output.


def _table(families: dict[str, _Family]) -> Iterator[str]:
    """Totals, a line a family, and the first difference of each family that has one."""
    total = _Family()
    for family in families.values():
        total.agree += family.agree
        total.differ += family.differ
        total.unjudged += family.unjudged
    names = {name: plain(name)[:_NAME] for name in sorted(families)}
    width = max(map(len, [*names.values(), "family", "total"]))
    yield f"{'family':{width}}  agree  differ" + ("  no outcome" if total.unjudged else "")
    for name, family in [*((names[n], families[n]) for n in names), ("total", total)]:
        line = f"{name:{width}}  {family.agree:5}  {family.differ:6}"
        yield line + (f"  {family.unjudged:10}" if total.unjudged else "")
    for name in names:
        if families[name].explained:
            yield ""
            yield from families[name].explained


def _explained(
    case: dict[str, Any], steps: list[Any], first: Difference, count: int
) -> Iterator[str]:
    """A case's first difference, both sides decoded."""
    more = f" (and {count - 1} more)" if count > 1 else ""
    yield from _wrapped(f"{case['id']}: {first}{more}", "")
    if isinstance(case.get("desc"), str):
        yield from _wrapped(case["desc"], "  ")
    if first.step is None:
        yield from _registers(first.what, first)
        return
    step = steps[first.step]
    yield from _wrapped(" ".join(f"{n} {step[n]}" for n in _STEP if n in step), "  ")
    if first.what == "val":
        yield from _registers(step["off"], first)
    elif first.what == "events":
        yield from _events(first.got or [], first.expected)
    elif first.what == "result":
        yield from _events(first.got.get("events", []), [])


def _registers(name: str, first: Difference) -> Iterator[str]:
    from vsmmu.arch.describe import Context, describe_register, find_register

    found = find_register(name)
    if found is None:
        return
    register, shift = found
    sides = [int(side, 16) << shift for side in (first.got, first.expected)]
    yield from _beside(
        *(
            describe_register(register, side & (1 << register.width) - 1, Context())
            for side in sides
        )
    )


def _events(got: list[Any], expected: list[Any]) -> Iterator[str]:
    for ours, theirs in zip_longest(got, expected):
        if ours != theirs:
            yield from _beside(_decoded(ours), _decoded(theirs))


def _decoded(event: Any) -> Description | None:
    """A record of a result, described; None where there is none, or nothing that can be one.

    A result names the fields that count, so only those are there.
    """
    from dataclasses import replace

    from vsmmu.arch.describe import Context, describe
    from vsmmu.smmu.replay import ADDRESSES, record

    try:
        whole = describe("event", record(event).words, Context())
    except (KeyError, TypeError, ValueError):
        return None
    named = {ADDRESSES.get(name, name) for name in event}
    return replace(whole, fields=tuple(one for one in whole.fields if one.name in named))


def _beside(ours: Description | None, theirs: Description | None) -> Iterator[str]:
    """Two structures in columns: their fields, but those that are 0 on both sides."""
    left, right = _values(ours), _values(theirs)
    rows = [
        ("", "model", "expected"),
        ("", ours.name if ours else "nothing", theirs.name if theirs else "nothing"),
    ]
    for name in [*left, *(name for name in right if name not in left)]:
        pair = left.get(name, "-"), right.get(name, "-")
        if pair != ("0x0", "0x0"):
            rows.append((name, *pair))
    first, second = (max(len(row[i]) for row in rows) for i in range(2))
    for at, (name, one, other) in enumerate(rows):
        mark = "  <" if at and one != other else ""
        yield f"    {name:{first}}  {one:{second}}  {other}{mark}"


def _values(side: Description | None) -> dict[str, str]:
    fields = side.fields if side else ()
    return {one.name: f"{one.value:#x} {one.meaning}".rstrip() for one in fields}


def _wrapped(text: str, indent: str) -> list[str]:
    shown = plain(text)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return textwrap.wrap(
        shown, _COLUMNS, initial_indent=indent, subsequent_indent=indent + "  "
    ) or [indent.rstrip()]
