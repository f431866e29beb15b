# SPDX-License-Identifier: BSD-2-Clause
"""The report on a board for a terminal; without colour and unwrapped when it goes elsewhere.

Shows what `jsonreport.inspect_report` holds, so that the two cannot disagree. Text of the tree is
untrusted: control characters are shown as escapes and nothing is read as markup.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

from dt_tools.report.jsonreport import inspect_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from dt_tools.platform import Platform

# Wide enough that no line of a file or a pipe is folded: paths stay whole for grep.
_UNFOLDED = 10_000
# A hostile tree can have tens of thousands of each; the JSON report has them all.
MAX_SHOWN = 1_000
_STYLE = {"yes": "green", "together": "yellow", "no": "red"}
_STATUS = {"okay": "green", "disabled": "dim", "reserved": "yellow"}
_SEVERITY = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def print_report(
    platform: Platform, stream: TextIO | None = None, *, width: int | None = None
) -> None:
    """Print the report on `platform` to `stream` (default: stdout).

    Folded at `width` columns; by default at the terminal's, and not at all elsewhere.

    Raises:
        DtbError: the tree asks for more work than the platform's limit.
    """
    print_inspected(inspect_report(platform), stream, width=width)


def print_inspected(
    report: dict[str, Any], stream: TextIO | None = None, *, width: int | None = None
) -> None:
    """Print a report that `inspect_report` made."""
    out = sys.stdout if stream is None else stream
    for line in _render(report, out, width):
        out.write(line + "\n")


def _render(report: dict[str, Any], out: TextIO, width: int | None) -> Iterator[str]:
    from rich.console import Console

    if width is None and not out.isatty():
        width = int(os.environ.get("COLUMNS", "0") or 0) if _is_number("COLUMNS") else 0
        width = width or _UNFOLDED
    console = Console(file=out, width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        _print(console, report)
    for line in captured.get().splitlines():
        yield line.rstrip()


def _is_number(name: str) -> bool:
    return os.environ.get(name, "").isdigit()


def _print(console: Console, report: dict[str, Any]) -> None:
    _head(console, report)
    _smmus(console, report)
    _masters(console, report)
    _repeated(console, report["stream_ids"]["on_several_smmus"])
    _shared(console, report["stream_ids"]["shared"])
    _findings(console, report["findings"])


def clean(text: object) -> str:
    """Text of a tree, safe to print: anything but printable ASCII as an escape."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in str(text))


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold")


def _line(console: Console, indent: int, *parts: tuple[str, str]) -> None:
    """Parts of (text, style) side by side; only the last folds, under its own start."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    texts = [(clean(part), style) for part, style in parts]
    if indent + sum(len(text) + 1 for text, _ in texts) <= console.width:
        spaced = ((f" {text}", style) for text, style in texts[1:])
        console.print(Text.assemble(" " * indent, texts[0], *spaced), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    for _ in parts[:-1]:
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(*(Text(text, style, overflow="fold") for text, style in texts))
    console.print(Padding(grid, (0, 0, 0, indent), expand=False))


def _shown(console: Console, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first `MAX_SHOWN`; says before them when there are more."""
    if len(items) > MAX_SHOWN:
        text = f"the first {MAX_SHOWN} of {len(items)}; the JSON report has all"
        console.print(text, style="yellow")
    return items[:MAX_SHOWN]


def _head(console: Console, report: dict[str, Any]) -> None:
    gic = report["gic"]
    name, model = f"{report['file']}:", report["model"] or "no model"
    if len(clean(name)) + 1 + len(clean(model)) <= console.width:
        _line(console, 0, (name, "bold"), (model, ""))
    else:
        _line(console, 0, (name, "bold"))
        _line(console, 2, (model, ""))
    _line(console, 0, (f"GICv{gic['version']} {gic['path']}" if gic else "no GIC found", ""))


def _smmus(console: Console, report: dict[str, Any]) -> None:
    smmus = report["smmus"]
    enabled = sum(smmu["status"] == "okay" for smmu in smmus)
    _title(console, f"SMMUs: {len(smmus)}, enabled: {enabled}")
    if smmus:
        _smmu_table(console, _shown(console, smmus))
    for smmu in smmus[:MAX_SHOWN]:
        if smmu["quirks"]:
            _line(console, 2, (f"{smmu['path']}: {', '.join(smmu['quirks'])}", "dim"))
    for key, what in (("pmcgs", "PMCGs (monitors, not SMMUs)"), ("other_iommus", "other IOMMUs")):
        if report[key]:
            _line(console, 0, (f"{what}: {len(report[key])}", ""))


def _smmu_table(console: Console, smmus: Iterable[dict[str, Any]]) -> None:
    """A row an SMMU; where the paths do not fit beside it, each on a line of its own below."""
    from rich.text import Text

    head = ("STATUS", "KIND", "BASE", "SIZE", "IRQS", "STREAMIDS", "PATH")
    rows = [_smmu_row(smmu) for smmu in smmus]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    beside = sum(widths) + 2 * (len(widths) - 1) <= console.width
    columns = len(head) if beside else len(head) - 1

    def line(cells: tuple[str, ...]) -> str:
        shown = zip(cells[:columns], widths, strict=False)
        return "  ".join(f"{cell:{width}}" for cell, width in shown).rstrip()

    console.print(Text(line(head), "dim"), soft_wrap=True)
    for row in rows:
        text = Text(line(row))
        text.stylize(_STATUS.get(row[0], ""), 0, len(row[0]))
        console.print(text, soft_wrap=True)
        if not beside:
            _line(console, 2, (row[-1], ""))


def _smmu_row(smmu: dict[str, Any]) -> tuple[str, ...]:
    return (
        clean(smmu["status"]),
        clean(smmu["kind"].removeprefix("arm,")),
        smmu["base"] or "-",
        smmu["size"] or "-",
        _interrupt_summary(smmu["interrupts"]),
        _span(smmu["stream_id_first"], smmu["stream_id_last"]) or "-",
        clean(smmu["path"]),
    )


def _interrupt_summary(interrupts: Iterable[dict[str, Any]]) -> str:
    kinds = Counter(interrupt["kind"] for interrupt in interrupts)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def _span(first: str | None, last: str | None) -> str | None:
    return first if first == last else f"{first}..{last}"


def _masters(console: Console, report: dict[str, Any]) -> None:
    masters = report["masters"]
    answers = Counter(master["assignable"] for master in masters)
    counts = ", ".join(f"{answers[key]} {key}" for key in ("yes", "together", "no"))
    _title(console, f"Masters: {len(masters)} (assignable: {counts})")
    for master in _shown(console, masters):
        answer = master["assignable"]
        _line(console, 0, (f"{answer:8}", _STYLE[answer]), (master["path"], ""))
        for streams in islice(_stream_lines(master), MAX_SHOWN):
            _line(console, 9, (streams, "dim"))
        for reason in master["reasons"]:
            _line(console, 9, (reason["rule"], "cyan"), (reason["text"], ""))


def _stream_lines(master: dict[str, Any]) -> Iterator[str]:
    by_smmu: dict[str, list[str]] = {}
    for stream in master["streams"]:
        mask = "" if stream["mask"] == "0x0" else f"/{stream['mask']}"
        by_smmu.setdefault(stream["smmu"], []).append(stream["stream_id"] + mask)
    for smmu, ids in by_smmu.items():
        yield f"{' '.join(ids)} at {smmu}"
    if master["iommu_map"]:
        mask = master["iommu_map_mask"]
        tail = "" if mask == "0xffffffff" else f", requester ids masked with {mask}"
        yield f"iommu-map of {len(master['iommu_map'])} rows{tail}"
    for row in master["iommu_map"][:MAX_SHOWN]:
        rid, sid, length = (int(row[key], 16) for key in ("rid_base", "sid_base", "length"))
        last = max(length, 1) - 1
        yield f"  {_run(rid, rid + last)} -> {_run(sid, sid + last)} at {row['smmu']}"


def _run(first: int, last: int) -> str:
    return f"{first:#x}" if first == last else f"{first:#x}..{last:#x}"


def _repeated(console: Console, groups: list[dict[str, Any]]) -> None:
    if groups:
        _title(console, "StreamIDs on several SMMUs (a guest with both needs vMasterIDs)")
    for group in _shown(console, groups):
        _line(console, 0, (f"{_span(group['first'], group['last'])}", "bold"))
        for path in group["smmus"]:
            _line(console, 2, (path, ""))


def _shared(console: Console, groups: list[dict[str, Any]]) -> None:
    if groups:
        _title(console, "StreamIDs shared on one SMMU (the masters are assigned together)")
    for group in _shown(console, groups):
        ids = _span(group["first"], group["last"])
        _line(console, 0, (f"{ids} at", "bold"), (group["smmu"], ""))
        for path in group["masters"]:
            _line(console, 2, (path, ""))


def _findings(console: Console, found: list[dict[str, Any]]) -> None:
    _title(console, f"Findings: {len(found)}")
    for one in _shown(console, found):
        severity = one["severity"]
        head = (f"{severity:7}", _SEVERITY[severity]), (one["rule"], "cyan")
        _line(console, 0, *head, (f"{one['path']}: {one['text']}", ""))
