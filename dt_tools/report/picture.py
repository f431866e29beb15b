# SPDX-License-Identifier: BSD-2-Clause
"""A board's SMMUs, masters and StreamIDs as SVG.

Masters are on the left, with an edge for each run of StreamIDs to the SMMU on the right; beside the
SMMUs is a rail through all that have an id in common. The layout is computed here, in pixels;
colours and fonts are the page's. Text is set in a monospaced font, so that its width is known.
Everything from the tree is escaped.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from dt_tools.report.lines import clean
from dt_tools.report.wording import entry_ids, interrupt_summary, needs_ids, repeated_note, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# What is drawn of a hostile tree; the tables have more.
MAX_SMMUS = 1_000
MAX_MASTERS = 48
MAX_PILLS = 8
MAX_RAILS = 5
# A picture is cut into pages of about this height.
PAGE_HEIGHT = 1_500

# Columns.
_MASTER_X, _MASTER_W = 8, 348
_PILL_RIGHT = 690
_SMMU_X, _SMMU_W = 704, 330
_RAIL_X, _RAIL_STEP = _SMMU_X + _SMMU_W + 18, 14
_LABEL_W = 165
# Rows.
_PITCH, _GAP, _BLOCK_GAP = 24, 8, 22
_MASTER_H, _SMMU_H, _EMPTY_H = 44, 118, 46
_TOP = 10
# Width of a character at the font sizes of the page's classes.
_NAME, _SMALL, _PILL = 7.5, 6.35, 6.65


class _Group(NamedTuple):
    """A master's entries on one SMMU; `more` are those that are not drawn."""

    master: str
    status: str
    entries: list[dict[str, Any]]
    more: int

    @property
    def height(self) -> int:
        rows = len(self.entries) + (self.more > 0)
        return max(_MASTER_H, rows * _PITCH + 8)


class _Block(NamedTuple):
    """An SMMU with its masters; `number` counts the board's SMMUs from 0."""

    number: int
    smmu: dict[str, Any]
    groups: list[_Group]
    more: int

    @property
    def height(self) -> int:
        if not self.groups:
            return _EMPTY_H
        masters = sum(group.height + _GAP for group in self.groups) - _GAP
        return max(_SMMU_H, masters + (_PITCH if self.more else 0))


class _Rail(NamedTuple):
    """StreamIDs that are on all of `smmus`, in use on those of `used`."""

    label: str
    smmus: frozenset[str]
    used: frozenset[str]


class Page(NamedTuple):
    """A piece of the picture: its SVG, and the SMMUs on it as (number from 0, path)."""

    svg: str
    height: int
    smmus: tuple[tuple[int, str], ...]


def draw(report: Mapping[str, Any], prefix: str) -> list[Page]:
    """The picture of one report in pages. `prefix` starts the ids of its SMMUs: `PREFIX-s0` ..."""
    maps = {one["smmu"]: one["entries"] for one in report["stream_ids"]["maps"]}
    masters = {one["path"]: one for one in report["masters"]}
    rails = _rails(filter(needs_ids, report["stream_ids"]["on_several_smmus"]))
    blocks = [
        _block(at, smmu, maps.get(smmu["path"], []))
        for at, smmu in enumerate(report["smmus"][:MAX_SMMUS])
    ]
    return [_page(page, masters, rails, prefix) for page in _pages(blocks)]


def _block(number: int, smmu: dict[str, Any], entries: list[dict[str, Any]]) -> _Block:
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(entry["master"], []).append(entry)
    groups = [
        _Group(path, found[0]["status"], found[:MAX_PILLS], max(len(found) - MAX_PILLS, 0))
        for path, found in list(rows.items())[:MAX_MASTERS]
    ]
    return _Block(number, smmu, groups, max(len(rows) - MAX_MASTERS, 0))


def _pages(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    page: list[_Block] = []
    height = 0
    for block in blocks:
        if page and height + block.height > PAGE_HEIGHT:
            yield page
            page, height = [], 0
        page.append(block)
        height += block.height + _BLOCK_GAP
    if page:
        yield page


def _page(
    blocks: Sequence[_Block],
    masters: Mapping[str, dict[str, Any]],
    rails: Sequence[_Rail],
    prefix: str,
) -> Page:
    tops, y = [], _TOP
    for block in blocks:
        tops.append(y)
        y += block.height + _BLOCK_GAP
    here = [rail for rail in rails if any(b.smmu["path"] in rail.smmus for b in blocks)][:MAX_RAILS]
    width = _RAIL_X + (_RAIL_STEP * len(here) + _LABEL_W if here else 0)
    height = y - _BLOCK_GAP + _TOP
    parts = [
        f'<svg class="pic" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="SMMUs, their masters and StreamIDs">'
    ]
    for at, rail in enumerate(here):
        parts += _draw_rail(at, len(here), rail, blocks, tops)
    for block, top in zip(blocks, tops, strict=True):
        parts += _draw_block(block, top, masters, prefix)
    parts.append("</svg>")
    drawn = tuple((block.number, block.smmu["path"]) for block in blocks)
    return Page("\n".join(parts), height, drawn)


def _draw_block(
    block: _Block, top: int, masters: Mapping[str, dict[str, Any]], prefix: str
) -> Iterator[str]:
    path = text_of(block.smmu["path"])
    off = " off" if block.smmu["status"] != "okay" else ""
    yield f'<g class="block{off}" id="{prefix}-s{block.number}" data-smmu="{path}">'
    yield from _smmu(block, top)
    y = top
    for group in block.groups:
        yield from _master(group, masters[group.master], y)
        y += group.height + _GAP
    if block.more:
        yield _text(_MASTER_X + 14, y + 12, "small", f"and {block.more} more masters, in the table")
    yield "</g>"


# An SMMU.


def _smmu(block: _Block, top: int) -> Iterator[str]:
    smmu = block.smmu
    parent, _, name = smmu["path"].rpartition("/")
    yield (
        f'<rect class="smmu" x="{_SMMU_X}" y="{top}" width="{_SMMU_W}" height="{block.height}" '
        f'rx="8"><title>{text_of(smmu["path"])}</title></rect>'
    )
    yield f'<rect class="bar" x="{_SMMU_X}" y="{top}" width="5" height="{block.height}" rx="2.5"/>'
    x, wide = _SMMU_X + 16, _SMMU_W - 28
    yield _text(x, top + 20, "name", _cut_name(name, wide / _NAME))
    lines = [*_smmu_lines(smmu, parent)] if block.groups else [_empty_line(smmu)]
    for at, line in enumerate(lines):
        yield _text(x, top + 37 + 16 * at, "small", _cut(line, wide / _SMALL))
    if smmu["status"] != "okay":
        yield _tag(_SMMU_X + _SMMU_W - 10, top + 9, smmu["status"], "warn")


def _smmu_lines(smmu: Mapping[str, Any], parent: str) -> Iterator[str]:
    yield f"in {parent or '/'}"
    yield f"{smmu['base'] or 'no address'} size {smmu['size'] or '-'}"
    coherent = ", coherent" if smmu["dma_coherent"] else ""
    yield f"{smmu['kind'].removeprefix('arm,')}{coherent}, interrupts: " + interrupt_summary(
        smmu["interrupts"]
    )
    ids = span(smmu["stream_id_first"], smmu["stream_id_last"]) or "none"
    masters = f"{smmu['masters']} master{'' if smmu['masters'] == 1 else 's'}"
    yield f"{masters}, StreamIDs {ids}, {smmu['stream_id_bits'] or 0} bits"
    if smmu["quirks"]:
        yield ", ".join(smmu["quirks"])


def _empty_line(smmu: Mapping[str, Any]) -> str:
    return f"{smmu['base'] or 'no address'}, {smmu['kind'].removeprefix('arm,')}, no masters"


# A master and its StreamIDs.


def _master(group: _Group, master: Mapping[str, Any], top: int) -> Iterator[str]:
    bus = bool(master["iommu_map"]) or master["pci"]
    off = " off" if group.status != "okay" else ""
    yield f'<g class="master{" bus" if bus else ""}{off}">'
    height, path = group.height, text_of(group.master)
    if bus:
        yield (
            f'<rect class="box" x="{_MASTER_X + 4}" y="{top + 4}" width="{_MASTER_W - 4}" '
            f'height="{height - 4}" rx="6"/>'
        )
        height, wide = height - 4, _MASTER_W - 4
    else:
        wide = _MASTER_W
    yield (
        f'<rect class="box" x="{_MASTER_X}" y="{top}" width="{wide}" height="{height}" rx="6">'
        f"<title>{path}</title></rect>"
    )
    yield from _master_text(group, master, top, bus)
    middle = top + group.height / 2
    rows = len(group.entries) + (group.more > 0)
    first = middle - (rows - 1) * _PITCH / 2
    for at, entry in enumerate(group.entries):
        yield from _stream(entry, middle, first + at * _PITCH)
    if group.more:
        y = first + (rows - 1) * _PITCH + 4
        yield _text(_PILL_RIGHT - 8, y, "small end", f"and {group.more} more")
    yield "</g>"


def _master_text(group: _Group, master: Mapping[str, Any], top: int, bus: bool) -> Iterator[str]:
    parent, _, name = group.master.rpartition("/")
    y = top + (17 if bus else 18)
    yield _mark(_MASTER_X + 15, y - 4, master["assignable"])
    tags = [
        *(["PCI"] if master["pci"] else ["map"] if bus else []),
        *([group.status] if group.status != "okay" else []),
    ]
    right: float = _MASTER_X + _MASTER_W - 12
    for tag in tags:
        yield _tag(right, top + 6, tag, "warn" if tag == group.status else "kind")
        right -= _tag_width(tag) + 6
    yield _text(_MASTER_X + 28, y, "name", _cut_name(name, (right - _MASTER_X - 34) / _NAME))
    yield _text(
        _MASTER_X + 28, y + (14 if bus else 15), "small", _cut_left(f"in {parent or '/'}", 48)
    )


def _mark(x: float, y: float, answer: str) -> str:
    """Assignable or not: full, half or empty, so that it does not hang on the colour alone."""
    title = f"<title>assignable: {answer}</title>"
    if answer == "together":
        half = f'<path class="half" d="M{x} {y - 5}a5 5 0 0 1 0 10z"/>'
        ring = f'<circle class="ring" cx="{x}" cy="{y}" r="5">{title}</circle>'
        return f'<g class="together">{ring}{half}</g>'
    return f'<circle class="{answer}" cx="{x}" cy="{y}" r="5">{title}</circle>'


def _stream(entry: Mapping[str, Any], start: float, y: float) -> Iterator[str]:
    ids = text_of(entry_ids(entry))
    wide = round(len(ids) * _PILL + 16, 1)
    left = _PILL_RIGHT - wide
    kind = "shared" if entry["shared_with"] else "again" if entry["on_smmu_v3"] > 1 else "plain"
    thick = " wide" if entry["rid_first"] is not None else ""
    right = _MASTER_X + _MASTER_W
    yield (
        f'<path class="edge {kind}{thick}" d="M{right} {start:g}C{right + 80} {start:g} '
        f'{left - 90:g} {y:g} {left:g} {y:g}"/>'
    )
    yield f'<path class="edge {kind}{thick}" d="M{_PILL_RIGHT} {y:g}H{_SMMU_X}"/>'
    if entry["rid_first"] is not None:
        rid = f"RID {span(entry['rid_first'], entry['rid_last'])}"
        yield _text(left - 12, y - 6, "small end", rid)
    yield (
        f'<g class="pill {kind}"><rect x="{left:g}" y="{y - 9.5:g}" width="{wide}" height="19" '
        f'rx="9.5"><title>{text_of(_pill_title(entry))}</title></rect>'
        f'<text class="id" x="{left + wide / 2:g}" y="{y + 4:g}">{ids}</text></g>'
    )


def _pill_title(entry: Mapping[str, Any]) -> str:
    parts = [f"{entry_ids(entry)} of {entry['master']}"]
    if entry["on_smmus"] > 1:
        parts.append(repeated_note(entry))
    parts += [f"shared with {path}: assigned together" for path in entry["shared_with"]]
    return "; ".join(parts)


# StreamIDs on several SMMUs.


def _rails(groups: Iterable[Mapping[str, Any]]) -> list[_Rail]:
    """Groups with the same SMMUs are one rail; those of most SMMUs come first."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for group in groups:
        key = tuple(group["smmus"]), tuple(group["in_use"])
        found.setdefault(key, []).append(span(group["first"], group["last"]) or "-")
    rails = []
    for (smmus, used), ids in sorted(found.items(), key=lambda item: (-len(item[0][0]), item[0])):
        more = f", {len(ids) - 1} more" if len(ids) > 1 else ""
        label = f"{ids[0]}{more}: {len(smmus)} SMMUs"
        rails.append(_Rail(label, frozenset(smmus), frozenset(used)))
    return rails


def _draw_rail(
    at: int, count: int, rail: _Rail, blocks: Sequence[_Block], tops: Sequence[int]
) -> Iterator[str]:
    x = _RAIL_X + _RAIL_STEP * at
    dots = [
        (top + 18 + 14 * at, block.smmu["path"] in rail.used)
        for block, top in zip(blocks, tops, strict=True)
        if block.smmu["path"] in rail.smmus
    ]
    label, first = _RAIL_X + _RAIL_STEP * count, dots[0][0]
    off = "" if len(rail.used) > 1 else " off"
    yield f'<g class="rail{off}">'
    yield f'<path class="lead" d="M{x} {first}H{label - 4}"/>'
    yield f'<path d="M{x} {first}V{dots[-1][0]}"/>'
    for y, used in dots:
        kind = "" if used else ' class="idle"'
        yield f'<path d="M{_SMMU_X + _SMMU_W} {y}H{x}"/><circle{kind} cx="{x}" cy="{y}" r="3.5"/>'
    yield _text(label, first + 4, "small", _cut(rail.label, _LABEL_W / _SMALL))
    yield "</g>"


# Text.


def text_of(value: object) -> str:
    """Text of a tree, safe inside an element and inside a quoted attribute."""
    return escape(clean(value), quote=True)


def _text(x: float, y: float, kind: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{text_of(text)}</text>'


def _tag_width(text: str) -> float:
    return round(len(clean(text)) * 6.1 + 12, 1)


def _tag(right: float, y: float, text: str, kind: str) -> str:
    """A small label that ends at `right`."""
    text = _cut(clean(text), 14)
    wide = _tag_width(text)
    return (
        f'<g class="tag {kind}"><rect x="{right - wide:g}" y="{y}" width="{wide}" height="16" '
        f'rx="4"/><text x="{right - wide / 2:g}" y="{y + 12}">{text_of(text)}</text></g>'
    )


def _cut(text: str, size: float) -> str:
    """At most `size` characters, the end left out."""
    text, size = clean(text), int(size)
    return text if len(text) <= size else text[: size - 2] + ".."


def _cut_name(name: str, size: float) -> str:
    """A node's name in at most `size` characters; the unit address stays when it has the room."""
    name, size = clean(name), int(size)
    unit = "@" + name.rpartition("@")[2]
    if len(name) <= size or unit == f"@{name}" or len(unit) > size - 4:
        return _cut(name, size)
    return f"{name[: size - len(unit) - 2]}..{unit}"


def _cut_left(text: str, size: int) -> str:
    """At most `size` characters, the start left out."""
    text = clean(text)
    return text if len(text) <= size else ".." + text[2 - size :]
