# SPDX-License-Identifier: BSD-2-Clause
"""The tables of the HTML report: what the terminal's report says, in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dt_tools.report.assign import TITLES
from dt_tools.report.picture import text_of
from dt_tools.report.wording import (
    entry_ids,
    entry_notes,
    interrupt_rows,
    interrupt_summary,
    needs_ids,
    region_rows,
    rule_counts,
    span,
    stream_lines,
    unused,
    why_needed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# Rows of a table that are written; the JSON report has all.
MAX_ROWS = 5_000
# Of each of so many masters, only the first reasons and needs and the start of a text are written.
_MANY, _FEW, _START = 500, 4, 160
# A table of more rows is folded.
_LONG = 40


class Cell(str):
    """HTML of a table cell, escaped already. `kind` is its class."""

    __slots__ = ("kind",)
    kind: str

    def __new__(cls, html: str, kind: str = "") -> Cell:
        """A cell of this HTML."""
        cell = super().__new__(cls, html)
        cell.kind = kind
        return cell


def tables(report: Mapping[str, Any]) -> Iterator[str]:
    """All tables of one report."""
    yield from _smmus(report)
    yield from _stream_maps(report)
    yield from _groups(report)
    yield from _masters(report)
    yield from _interrupts(report["interrupts"])
    yield from _mmio(report["mmio"])
    yield from _findings(report["findings"])


def cell(value: object, kind: str = "") -> Cell:
    """A cell of this text."""
    return Cell(text_of(value), kind)


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table; of too many rows the first `MAX_ROWS`."""
    titles = "".join(f"<th>{text_of(title)}</th>" for title in head)
    lines = [f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>']
    for row in rows[:MAX_ROWS]:
        cells = (f'<td class="{c.kind}">{c}</td>' if c.kind else f"<td>{c}</td>" for c in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    if len(rows) > MAX_ROWS:
        lines.append(f"<p>The first {MAX_ROWS} of {len(rows)}; the JSON report has all.</p>")
    return "\n".join(lines)


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """A heading and a table, folded when it is long; nothing without rows."""
    if not rows:
        return
    if len(rows) > _LONG:
        yield f"<h3>{text_of(title)}</h3><details><summary>{len(rows)} rows</summary>"
        yield f"{table(head, rows)}</details>"
    else:
        yield f"<h3>{text_of(title)}</h3>\n{table(head, rows)}"


def _lines(texts: Iterable[str]) -> str:
    return "<br>".join(texts)


def _smmus(report: Mapping[str, Any]) -> Iterator[str]:
    head = ("Status", "Path", "Kind", "Base", "Size", "Interrupts", "StreamIDs", "Bits", "Masters",
            "Properties")  # fmt: skip
    rows = []
    for smmu in report["smmus"]:
        traits = [*(["dma-coherent"] if smmu["dma_coherent"] else []), *smmu["quirks"]]
        rows.append(
            [
                cell(smmu["status"], "yes" if smmu["status"] == "okay" else "warning"),
                cell(smmu["path"], "path"),
                cell(smmu["kind"].removeprefix("arm,")),
                cell(smmu["base"] or "-"),
                cell(smmu["size"] or "-"),
                __interrupt_cell(smmu["interrupts"]),
                cell(span(smmu["stream_id_first"], smmu["stream_id_last"]) or "-"),
                cell("-" if smmu["stream_id_bits"] is None else smmu["stream_id_bits"]),
                cell(smmu["masters"]),
                cell(", ".join(traits)),
            ]
        )
    yield from _section(f"SMMUs: {len(rows)}", head, rows)
    monitors = [(cell(p["status"]), cell(p["path"], "path"), cell(p["base"] or "-"))
                for p in report["pmcgs"]]  # fmt: skip
    yield from _section("PMCGs (monitors, not SMMUs)", ("Status", "Path", "Base"), monitors)
    others = [(cell(p["status"]), cell(p["path"], "path"), cell(", ".join(p["compatible"])))
              for p in report["other_iommus"]]  # fmt: skip
    yield from _section("Other IOMMUs", ("Status", "Path", "Compatible"), others)


def __interrupt_cell(interrupts: Sequence[Mapping[str, Any]]) -> Cell:
    named = [
        text_of(f"{i['kind']} {i['number'] or ''} {i['name'] or ''}".replace("  ", " ").strip())
        for i in interrupts
    ]
    if len(named) <= 4:
        return Cell(_lines(named) or "none")
    summary = text_of(interrupt_summary(interrupts))
    return Cell(f"<details><summary>{summary}</summary>{_lines(named[:MAX_ROWS])}</details>")


def _stream_maps(report: Mapping[str, Any]) -> Iterator[str]:
    for one in report["stream_ids"]["maps"]:
        rows = []
        for entry in one["entries"]:
            said = [text_of(note) for note, _ in entry_notes(entry)]
            more = len(said) - _FEW if len(one["entries"]) > _MANY else 0
            notes = _lines([*said[:_FEW], f"{more} more"] if more > 0 else said)
            kind = "shared" if entry["shared_with"] else "again" if entry["on_smmu_v3"] > 1 else ""
            rows.append([cell(entry_ids(entry), kind), cell(entry["master"], "path"),
                         Cell(notes, "text")])  # fmt: skip
        rows.append([cell("unused", "soft"), cell(unused(one["unused"]), "path"), Cell("")])
        title = f"StreamIDs of {one['smmu']}"
        yield from _section(title, ("StreamID", "Master", ""), rows)


def _groups(report: Mapping[str, Any]) -> Iterator[str]:
    ids = report["stream_ids"]
    titles = (
        (True, "again", "StreamIDs on several SMMUs (a guest with both needs vMasterIDs)"),
        (False, "", "StreamIDs on several SMMUs that cannot all have a vSMMU (none is or one is"
         " an SMMUv3)"),
    )  # fmt: skip
    for needed, kind, title in titles:
        again = [
            (cell(span(g["first"], g["last"]), kind),
             _paths(p if p in g["in_use"] else f"{p} (not in use)" for p in g["smmus"]))
            for g in ids["on_several_smmus"] if needs_ids(g) == needed
        ]  # fmt: skip
        yield from _section(title, ("StreamIDs", "SMMUs"), again)
    tied = [(cell(span(g["first"], g["last"]), "shared"), cell(g["smmu"], "path"),
             _paths(g["masters"])) for g in ids["shared"]]  # fmt: skip
    title = "StreamIDs shared on one SMMU (the masters are assigned together)"
    yield from _section(title, ("StreamIDs", "SMMU", "Masters"), tied)


def _paths(paths: Iterable[str]) -> Cell:
    return Cell(_lines(text_of(path) for path in paths), "path")


def _masters(report: Mapping[str, Any]) -> Iterator[str]:
    counts = [
        (cell(effect), Cell(text_of(rule), "rule"), cell(count), cell(TITLES[rule], "text"))
        for effect, rule, count in rule_counts(report["masters"])
    ]
    yield from _section("What keeps masters from a guest, and what to know", ("Effect", "Rule",
                        "Masters", ""), counts)  # fmt: skip
    short = len(report["masters"]) > _MANY
    rows = [
        [
            cell(master["assignable"], master["assignable"]),
            Cell(_device(master), "path"),
            Cell(_lines(text_of(line) for line in stream_lines(master)), "path"),
            Cell(_reasons(master, short), "text"),
            Cell(_needs(master["needs"], short), "needs"),
        ]
        for master in report["masters"][:MAX_ROWS]
    ]
    head = ("Assignable", "Device", "Streams", "Rules", "Depends on")
    yield f"<h3>Masters: {len(report['masters'])}</h3>"
    if rows:
        yield table(head, rows)


def _device(master: Mapping[str, Any]) -> str:
    soft = [", ".join(master["compatible"])]
    if master["status"] != "okay":
        soft.append(f"status {master['status']}")
    return _lines(
        [text_of(master["path"]), *(f'<span class="soft">{text_of(s)}</span>' for s in soft)]
    )


def _reasons(master: Mapping[str, Any], short: bool) -> str:
    shown = master["reasons"][: _FEW if short else None]
    lines = [
        f'<span class="rule">{text_of(one["rule"])}</span> {text_of(_start(one["text"], short))}'
        for one in shown
    ]
    more = len(master["reasons"]) - len(shown)
    return _lines([*lines, *([f"{more} more"] if more else [])])


def _start(text: str, short: bool) -> str:
    return f"{text[:_START]}.." if short and len(text) > _START else text


def _needs(needs: Sequence[Mapping[str, Any]], short: bool) -> str:
    if not needs:
        return ""
    rows = (
        f'<li>{text_of(need["path"])} <span class="soft">{text_of(why_needed(need))}</span></li>'
        for need in needs[: _FEW if short else None]
    )
    count = f"{len(needs)} node{'' if len(needs) == 1 else 's'}"
    return f"<details><summary>{count}</summary><ul>{''.join(rows)}</ul></details>"


def _interrupts(found: Mapping[str, Any]) -> Iterator[str]:
    for kind, lines in (("SPI", found["spis"]), ("PPI", found["ppis"])):
        rows = [
            (cell(ids, "shared" if len(owners) > 1 else ""),
             Cell(_lines(text_of(path + what) for path, what in owners), "path"))
            for ids, owners in interrupt_rows(lines)
        ]  # fmt: skip
        yield from _section(f"{kind}s: {len(lines)}", (kind, "Nodes"), rows)
    rest = [
        (cell(one["kind"]), cell(one["count"]), cell(one["controller"] or "none", "path"),
         cell(one["reason"], "text"), _paths(one["nodes"]))
        for one in found["elsewhere"]
    ]  # fmt: skip
    head = ("Kind", "Count", "Controller", "Why", "Nodes")
    yield from _section("Interrupts that do not go to the GIC", head, rest)


def _mmio(mmio: Mapping[str, Any]) -> Iterator[str]:
    apart = [run for run in mmio["shared"] if not run["nested"]]
    runs = [(cell(f"{r['first']}..{r['last']}", "shared"), _paths(r["paths"])) for r in apart]
    title = "Pages with registers of several devices (assigned together, or not at all)"
    yield from _section(title, ("Addresses", "Nodes"), runs)
    rows = [(cell(where), cell(path, "path")) for where, path in region_rows(mmio["regions"])]
    yield from _section(f"Register ranges: {len(mmio['regions'])}", ("Addresses", "Node"), rows)
    lost = [[cell(path, "path")] for path in mmio["untranslated"]]
    yield from _section("Nodes whose reg has no CPU address", ("Node",), lost)
    memory = [(cell(row["base"]), cell(row["size"]), cell(row["kind"]),
               cell(row["path"], "path")) for row in mmio["memory"]]  # fmt: skip
    yield from _section("Memory", ("Base", "Size", "Kind", "Node"), memory)


def _findings(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (cell(one["severity"], one["severity"]), cell(one["rule"], "rule"),
         cell(one["path"], "path"), cell(one["text"], "text"))
        for one in found
    ]  # fmt: skip
    yield f"<h3>Findings: {len(rows)}</h3>"
    if rows:
        yield table(("Severity", "Rule", "Node", ""), rows)
