# SPDX-License-Identifier: BSD-2-Clause
"""Reports on boards as one HTML file that needs nothing else: no network, no script, no font.

Its content security policy forbids all of these. What the file says is what
`jsonreport.inspect_report` holds; everything that comes from a tree is escaped.
"""

from __future__ import annotations

from collections import Counter
from html import unescape
from typing import TYPE_CHECKING, Any

from dt_tools.report.picture import draw, text_of
from dt_tools.report.style import CSS
from dt_tools.report.tables import Cell, cell, table, tables
from dt_tools.report.wording import ANSWERS, needs_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dt_tools.report.picture import Page

# A picture of more pixels has its later pages folded.
_TALL = 3_200
_MAX_TITLE = 120
# From so many SMMUs on there is a map of them above the picture.
_MAP_FROM = 5
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
"""
_TAIL = "</main>\n</body>\n</html>\n"


def page(reports: Sequence[Mapping[str, Any]]) -> str:
    """The file for reports that `inspect_report` made, in their order."""
    sections = [board(report, at) for at, report in enumerate(reports)]
    return assemble(sections, [index_row(report) for report in reports])


def assemble(sections: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> str:
    """The file from what `board` and `index_row` made of each report."""
    count = len(sections)
    title = f"vsmmu inspect: {count} board{'' if count == 1 else 's'}"
    named = f"vsmmu inspect: {_title(rows[0])}" if count == 1 else title
    parts = [_HEAD.format(title=named, css=CSS)]
    if count != 1:
        head = ("Board", "Model", "SMMUs", "Enabled", "Masters", "yes", "together", "no",
                "Repeated ids", "Shared ids")  # fmt: skip
        linked = [
            (Cell(f'<a href="#b{at}">{row[0]}</a>', row[0].kind), *row[1:])
            for at, row in enumerate(rows)
        ]
        parts.append(f"<h1>{title}</h1>\n{table(head, linked)}")
    return "\n".join([*parts, *sections, _TAIL])


def _title(row: tuple[Cell, ...]) -> str:
    """The name of a board and its model, of which the first characters."""
    text = ", ".join(unescape(one) for one in row[:2])
    return text_of(text if len(text) <= _MAX_TITLE else text[: _MAX_TITLE - 2] + "..")


def index_row(report: Mapping[str, Any]) -> tuple[Cell, ...]:
    """The board's row in the index."""
    answers = Counter(master["assignable"] for master in report["masters"])
    smmus, ids = report["smmus"], report["stream_ids"]
    again = sum(map(needs_ids, ids["on_several_smmus"]))
    return (
        cell(report["file"], "path"),
        cell(report["model"] or "no model", "text"),
        cell(len(smmus)),
        cell(sum(smmu["status"] == "okay" for smmu in smmus)),
        cell(len(report["masters"])),
        *(cell(answers[key], key if answers[key] else "soft") for key in ANSWERS),
        cell(again, "again" if again else "soft"),
        cell(len(ids["shared"]), "shared" if ids["shared"] else "soft"),
    )


def board(report: Mapping[str, Any], number: int) -> str:
    """The section of one board; `number` counts from 0 and makes its ids unique."""
    prefix = f"b{number}"
    gic = report["gic"]
    where = f"GICv{gic['version']} {gic['path']}" if gic else "no GIC found"
    parts = [
        f'<section class="board" id="{prefix}">',
        f"<h2>{text_of(report['model'] or 'no model')}</h2>",
        f'<div class="mono soft">{text_of(report["file"])}<br>'
        f"{text_of(', '.join(report['compatible']) or 'no compatible')}<br>{text_of(where)}</div>",
        _tiles(report),
        *_picture(report, prefix),
        *tables(report),
        "</section>\n",
    ]
    return "\n".join(parts)


# The top: numbers and picture.


def _tiles(report: Mapping[str, Any]) -> str:
    answers = Counter(master["assignable"] for master in report["masters"])
    smmus, ids = report["smmus"], report["stream_ids"]
    enabled = sum(smmu["status"] == "okay" for smmu in smmus)
    tiles = [
        (f"{enabled} of {len(smmus)}", "SMMUs enabled", ""),
        (len(report["masters"]), "masters", ""),
        (answers["yes"], "assignable alone", "yes"),
        (answers["together"], "assignable with others", "together"),
        (answers["no"], "not assignable", "no"),
        (sum(map(needs_ids, ids["on_several_smmus"])), "id ranges on several SMMUv3", "again"),
        (len(ids["shared"]), "id ranges shared on one SMMU", "shared"),
    ]
    shown = (
        f'<div class="tile {kind if value else ""}"><b>{value}</b>{label}</div>'
        for value, label, kind in tiles
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


_LEGEND = (
    ('<circle class="yes" cx="8" cy="8" r="5"/>', "assignable alone"),
    (
        '<g class="together"><circle class="ring" cx="8" cy="8" r="5"/>'
        '<path class="half" d="M8 3a5 5 0 0 1 0 10z"/></g>',
        "with others",
    ),
    ('<circle class="no" cx="8" cy="8" r="5"/>', "not assignable"),
    (
        '<g class="pill again"><rect x="1" y="3" width="24" height="11" rx="5.5"/></g>',
        "StreamID on several SMMUv3: needs vMasterIDs",
    ),
    (
        '<g class="pill shared"><rect x="1" y="3" width="24" height="11" rx="5.5"/></g>',
        "StreamID shared on one SMMU: assigned together",
    ),
    ('<path class="edge wide" d="M0 8H26"/>', "range of requester ids of a bus"),
    (
        '<g class="master off"><rect class="box" x="1" y="2" width="24" height="12" rx="3"/></g>',
        "not enabled",
    ),
)


def _picture(report: Mapping[str, Any], prefix: str) -> Iterator[str]:
    pages = draw(report, prefix)
    if not pages:
        yield '<p class="soft">The board has no Arm SMMU.</p>'
        return
    yield _legend()
    if len(pages) > 1 and len(report["smmus"]) >= _MAP_FROM:
        yield _map(report["smmus"], pages, prefix)
    total = 0
    for at, one in enumerate(pages):
        total += one.height
        yield _framed(one, at, len(pages), total <= _TALL or at == 0)
    outside = _outside(report)
    if outside:
        yield f'<p class="soft">{outside}</p>'


def _legend() -> str:
    items = (
        f'<span><svg width="27" height="16" aria-hidden="true">{shape}</svg>{label}</span>'
        for shape, label in _LEGEND
    )
    return f'<div class="legend">{"".join(items)}</div>'


def _map(smmus: Sequence[Mapping[str, Any]], pages: Sequence[Page], prefix: str) -> str:
    links = []
    for number, path in (smmu for one in pages for smmu in one.smmus):
        smmu = smmus[number]
        off = "" if smmu["status"] == "okay" else ' class="off"'
        count = smmu["masters"]
        what = f"{count} master{'' if count == 1 else 's'}"
        links.append(
            f'<a{off} href="#{prefix}-s{number}" title="{text_of(path)}">'
            f"{text_of(path.rpartition('/')[2])}<small>{what}</small></a>"
        )
    return f'<div class="map">{"".join(links)}</div>'


def _framed(one: Page, at: int, count: int, is_open: bool) -> str:
    if count == 1:
        return f'<div class="frame">{one.svg}</div>'
    names = ", ".join(path.rpartition("/")[2] for _, path in one.smmus[:4])
    more = f" and {len(one.smmus) - 4} more" if len(one.smmus) > 4 else ""
    state = " open" if is_open else ""
    return (
        f'<details class="page"{state}><summary>Page {at + 1} of {count}: {text_of(names)}{more}'
        f'</summary><div class="frame">{one.svg}</div></details>'
    )


def _outside(report: Mapping[str, Any]) -> str:
    drawn = {e["master"] for one in report["stream_ids"]["maps"] for e in one["entries"]}
    left = sum(master["path"] not in drawn for master in report["masters"])
    if not left:
        return ""
    count = f"{left} master is" if left == 1 else f"{left} masters are"
    return f"{count} behind no Arm SMMU and not in the picture; the table of masters has all."
