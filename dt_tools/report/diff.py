# SPDX-License-Identifier: BSD-2-Clause
"""What two boards' SMMU sections do not have in common: SMMUs, masters, StreamIDs, interrupts.

SMMUs and masters are the same when their paths are; a node that was only renamed is one that went
and one that came, each with the other as its twin when their first registers are at one address.
Phandles are numbers without a meaning of their own and are not compared.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from dt_tools.report.lines import Lines, show, width_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SCHEMA = "vsmmu.inspect.diff/1"
_SMMU_FIELDS = (*("compatible", "status", "base", "size", "iommu_cells", "dma_coherent", "quirks"),)
_MASTER_FIELDS = (
    *("compatible", "status", "pci", "dma_coherent", "iommu_map_mask", "regs", "assignable"),
)
_MARK = {"removed": ("-", "red"), "added": ("+", "green"), "changed": ("~", "yellow")}
_KINDS = ("smmu", "master", "stream", "interrupt")


def diff_reports(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The changes from report `a` to report `b`, both made by `inspect_report`.

    A change has `kind` (smmu, master, stream, interrupt), `change` (removed, added, changed),
    `path`, `field`, and the values `a` and `b`, null where there is none; `twin` is the path of a
    node of the other board that has the address of one that was removed or added.
    """
    changes = [
        *_nodes("smmu", a["smmus"], b["smmus"], _SMMU_FIELDS),
        *_nodes("master", a["masters"], b["masters"], _MASTER_FIELDS),
        *_sets("stream", _streams(a), _streams(b)),
        *_orders(a["masters"], b["masters"]),
        *_interrupts([*a["smmus"], *a["masters"]], [*b["smmus"], *b["masters"]]),
    ]
    return {
        "schema": SCHEMA,
        "a": a["file"],
        "b": b["file"],
        "equal": not changes,
        "changes": changes,
    }


def _change(kind: str, path: str, field: str | None, a: object, b: object) -> dict[str, Any]:
    change = "added" if a is None else "removed" if b is None else "changed"
    row = {"kind": kind, "change": change, "path": path, "field": field, "a": a, "b": b}
    return {**row, "twin": None}


def _nodes(
    kind: str, a: Iterable[dict[str, Any]], b: Iterable[dict[str, Any]], fields: Iterable[str]
) -> Iterator[dict[str, Any]]:
    first, second = ({one["path"]: one for one in side} for side in (a, b))
    gone = {_base(one): path for path, one in first.items() if path not in second}
    came = {_base(one): path for path, one in second.items() if path not in first}
    for path in dict.fromkeys((*first, *second)):
        old, new = first.get(path), second.get(path)
        if old is None or new is None:
            base, twins = _base(old or new or {}), came if new is None else gone
            row = _change(kind, path, None, old and _brief(old), new and _brief(new))
            yield {**row, "twin": None if base is None else twins.get(base)}
            continue
        for field in fields:
            if old[field] != new[field]:
                # None stands for a value that is absent on both sides of a change of a field.
                row = _change(kind, path, field, old[field], new[field])
                yield {**row, "change": "changed"}


def _brief(one: dict[str, Any]) -> dict[str, Any]:
    """What a node that is on one side only is recognised by."""
    return {"compatible": one["compatible"], "status": one["status"], "base": _base(one)}


def _base(one: dict[str, Any]) -> str | None:
    regs = one.get("regs") or [{"base": None}]
    base: str | None = one["base"] if "base" in one else regs[0]["base"]
    return base


def _streams(report: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(SMMU, StreamIDs) of each master as text, with its place in the SMMU's map as the key."""
    found = {}
    for one in report["stream_ids"]["maps"]:
        for entry in one["entries"]:
            first, last, mask, rid = (entry[k] for k in ("first", "last", "mask", "rid_first"))
            ids = first if first == last else f"{first}..{last}"
            ids += "" if mask == "0x0" else f"/{mask}"
            ids += "" if rid is None else f" from requester id {rid}"
            found[f"{entry['master']} {one['smmu']} {ids}", entry["master"]] = (
                f"{ids} at {one['smmu']}"
            )
    return found


def _sets(
    kind: str, a: Mapping[tuple[str, str], str], b: Mapping[tuple[str, str], str]
) -> Iterator[dict[str, Any]]:
    for key in dict.fromkeys((*a, *b)):
        if (key in a) != (key in b):
            yield _change(kind, key[1], None, a.get(key), b.get(key))


def _orders(a: Iterable[dict[str, Any]], b: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The entries of iommus that both sides have, where they come in another order or number."""
    first, second = ({one["path"]: one["streams"] for one in side} for side in (a, b))
    for path in [path for path in first if path in second]:
        old, new = ([_stream(one) for one in side[path]] for side in (first, second))
        both = set(old) & set(new)
        old, new = [s for s in old if s in both], [s for s in new if s in both]
        if old != new:
            yield _change("stream", path, "order", ", ".join(old), ", ".join(new))


def _stream(one: Mapping[str, Any]) -> str:
    mask = "" if one["mask"] == "0x0" else f"/{one['mask']}"
    return f"{one['stream_id']}{mask} at {one['smmu']}"


def _interrupts(
    a: Iterable[dict[str, Any]], b: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Interrupts of nodes that are on both sides; the others went or came with their nodes."""
    first, second = ({one["path"]: _all_of(one) for one in side} for side in (a, b))
    for path in [path for path in first if path in second]:
        old, new = ([_line(i) for i in side[path]] for side in (first, second))
        if old == new:
            continue
        before, after = set(old), set(new)
        gone = [line for line in old if line not in after]
        came = [line for line in new if line not in before]
        if not gone and not came:
            yield _change("interrupt", path, "order", ", ".join(old), ", ".join(new))
        yield from (_change("interrupt", path, None, line, None) for line in gone)
        yield from (_change("interrupt", path, None, None, line) for line in came)


def _all_of(one: dict[str, Any]) -> list[dict[str, Any]]:
    mapped = ({**i, "name": "of interrupt-map"} for i in one.get("interrupt_map", ()))
    return [*one["interrupts"], *mapped]


def _line(one: dict[str, Any]) -> str:
    name = f" {one['name']}" if one["name"] else ""
    if one["number"]:
        return f"{one['kind']} {one['number']}{name} flags {one['flags']}"
    return f"{one['kind']}{name} at {one['controller']}"


def print_diff(
    found: dict[str, Any], stream: TextIO | None = None, *, width: int | None = None
) -> None:
    """Print what `diff_reports` returned to `stream` (default: stdout)."""
    out = sys.stdout if stream is None else stream
    lines = Lines(width or width_of(out))
    lines.add(0, ("-", "red"), (found["a"], "bold"))
    lines.add(0, ("+", "green"), (found["b"], "bold"))
    if found["equal"]:
        lines.add(0, ("no difference in SMMUs, masters, StreamIDs and interrupts", ""))
    titles = dict(zip(_KINDS, ("SMMUs", "Masters", "StreamIDs", "Interrupts"), strict=True))
    for kind in _KINDS:
        rows = [row for row in found["changes"] if row["kind"] == kind]
        if rows:
            lines.title(f"{titles[kind]}: {len(rows)}")
        for row in rows:
            mark, style = _MARK[row["change"]]
            lines.add(0, (mark, style), (f"{row['path']}{_what(row)}", ""))
    show(lines.lines, out)


def _what(row: dict[str, Any]) -> str:
    if row["change"] == "changed":
        return f": {row['field']} {_value(row['a'])} -> {_value(row['b'])}"
    value = row["b"] if row["a"] is None else row["a"]
    if isinstance(value, dict):
        what = ", ".join(value["compatible"][:2]) or "no compatible"
        twin = f", which {row['twin']} has on the other board" if row["twin"] else ""
        return f": {what}, {value['status']}, {value['base'] or 'no address'}{twin}"
    return f": {value}"


def _value(value: object) -> str:
    if isinstance(value, list):
        regs = [f"{v['base']}+{v['size']}" if isinstance(v, dict) else str(v) for v in value]
        return ", ".join(regs) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
