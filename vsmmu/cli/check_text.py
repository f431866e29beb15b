# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu check` as text: findings, and the rules explained."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from vsmmu.cli.files import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.checks import Diagnosis, Rule

_INDENT = "    "
# Off a terminal rules are folded for reading, findings stay whole for grep.
_WIDTH = 80
_COLOURS = {"error": "\x1b[1;31m", "warning": "\x1b[33m", "note": "\x1b[36m"}
_PLURALS = {"error": "errors", "warning": "warnings", "note": "notes"}


def print_findings(
    found: Sequence[Diagnosis], files: Sequence[str], out: TextIO, *, show: int
) -> None:
    """Each finding as `FILE:LINE: severity RULE PATH: fact` with help below, then the counts."""
    terminal = out.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    colour = terminal and not os.environ.get("NO_COLOR")
    shown: Counter[tuple[str, str]] = Counter()
    totals = Counter((one.severity, one.rule) for one in found)
    for one in found:
        key = (one.severity, one.rule)
        shown[key] += 1
        if show and shown[key] > show:
            if shown[key] == show + 1:
                more = totals[key] - show
                out.write(f"{_INDENT}and {more} more {one.rule} {_plural(one.severity, more)}\n")
            continue
        _print(one, out, width, colour=colour)
    counts: Counter[str] = Counter(one.severity for one in found)
    parts = [f"{counts[s]} {_plural(s, counts[s])}" for s in _PLURALS if counts[s]]
    where = plain(", ".join(files))
    out.write(f"{where}: {', '.join(parts) or 'nothing found'}\n")


def _plural(severity: str, count: int) -> str:
    return severity if count == 1 else _PLURALS[severity]


def _print(one: Diagnosis, out: TextIO, width: int | None, *, colour: bool) -> None:
    place = one.file if one.line is None else f"{one.file}:{one.line}"
    node = f" {one.path}" if len(one.path) > 1 else ""
    line = plain(f"{place}: {one.severity} {one.rule}{node}: {one.fact}")
    lines = _fold(line, width)
    if colour:
        mark = f": {one.severity} {one.rule}"
        painted = f": {_COLOURS[one.severity]}{one.severity} {one.rule}\x1b[0m"
        lines[0] = lines[0].replace(mark, painted, 1)
    out.write("\n".join(lines) + "\n")
    if one.fix:
        out.write("\n".join(_fold(plain(f"{_INDENT}help: {one.fix}"), width)) + "\n")


def _fold(line: str, width: int | None) -> list[str]:
    if width is None or len(line) <= width:
        return [line]
    return textwrap.wrap(
        line,
        max(width, 40),
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_rules(rules: Sequence[Rule], out: TextIO) -> None:
    """Each rule: id, gravest severity, title, what happens, an example."""
    width = shutil.get_terminal_size().columns if out.isatty() else _WIDTH
    blocks = []
    for rule in rules:
        lines = _fold(f"{rule.id} ({rule.severity}): {rule.title}", width)
        for text in (rule.why, f"Example: {rule.example}"):
            if rule.why:
                lines += _fold(_INDENT + text, width)
        blocks.append("\n".join(lines) + "\n")
    out.write("\n".join(blocks))
