# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu check` as text: findings, and the rules explained."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from dt_tools.json_text import json_text
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


# What the reader of configurations finds: what happens, an example.
XL_RULES = {
    "XL001": (
        "xl's own grammar does not take the text, so xl creates no guest of it and no other rule "
        "looks at it.",
        "guest.cfg:4: near `zz': syntax error, unexpected IDENT, expecting $end",
    ),
    "XL002": (
        "xl reads the text and stops at what it says, so no other rule looks at it.",
        'guest.cfg:4: Unknown on_crash action "x" specified',
    ),
    "XL003": (
        "xl ends by a signal instead of a message.",
        "guest.cfg:7: a value at which xl crashes",
    ),
    "XL101": (
        "xl says nothing and goes on without the key: mostly a slip of the pen.",
        "guest.cfg:6: vcpis: unknown key, ignored by xl; did you mean vcpus?",
    ),
    "XL102": (
        "xl looks for a list, finds one value, and goes on as if the key were absent.",
        "guest.cfg:6: irqs: one value where a list belongs; xl ignores the key",
    ),
    "XL103": (
        "What follows in the list is lost, devices of dtdev included.",
        "guest.cfg:5: dtdev: element 1 is itself a list; xl stops there",
    ),
    "XL104": (
        "xl looks for one value, finds a list, and goes on with the default.",
        "guest.cfg:3: vcpus: a list where one value belongs; xl ignores the key",
    ),
    "XL105": (
        "xl goes on with the default of the key.",
        "guest.cfg:3: vcpus: not a number xl can read; xl ignores the key",
    ),
    "XL106": (
        "The kernel's command line is cmdline alone.",
        "guest.cfg:4: cmdline: root and extra are ignored beside it",
    ),
    "XL107": (
        "xl takes the last byte for a line feed: a file that ends in a value loses its end.",
        "guest.cfg: the last byte of the file is dropped",
    ),
    "XL108": (
        "xl compares only as many letters as are there, so another word may be meant.",
        'guest.cfg:5: passthrough: "share" is the beginning of share_pt; xl takes it so',
    ),
    "XL109": (
        "The string is shorter than it looks.",
        "guest.cfg:4: extra: the escape stands for nothing",
    ),
    "XL110": (
        "A later xl may refuse it or read it in another way.",
        "guest.cfg:4: builder: deprecated, use type",
    ),
    "XL111": (
        "The rest of the entry holds; what is left out has its default.",
        "guest.cfg:8: vif: a part of the entry is ignored",
    ),
    "XL112": (
        "The guest is not created, or gets less than is asked for.",
        "guest.cfg:3: vcpus: 5000; Xen on Arm gives a guest at most 128 vCPUs",
    ),
    "XL113": (
        "The number in front of it holds, which may be another one than was meant.",
        "guest.cfg:9: what follows the number is ignored",
    ),
    "XL114": (
        "xl accepts the configuration, and the creation of the guest fails.",
        "guest.cfg:5: libxl refuses it on Arm",
    ),
}


def rules_json(rules: Sequence[Rule]) -> str:
    """The rules as one JSON object."""
    from dataclasses import asdict

    listed = [asdict(rule) for rule in rules]
    return json_text({"schema": "vsmmu.check.rules/1", "rules": listed}, indent=2)


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
