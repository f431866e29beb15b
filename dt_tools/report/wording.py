# SPDX-License-Identifier: BSD-2-Clause
"""How the facts of a report are worded, alike in the terminal, on the page and in the picture."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# A hostile tree can have tens of thousands of each; the JSON report has them all.
MAX_SHOWN = 2_000
# So many unused ranges, or names of an interrupt, are named in a list of all.
_FEW = 3
ANSWERS = {"yes": "green", "together": "yellow", "no": "red"}
EFFECTS = {"blocks": "red", "together": "yellow", "notice": "dim"}


def span(first: str | None, last: str | None) -> str | None:
    """A range as text, one number when it has only one."""
    return first if first == last else f"{first}..{last}"


def _run(first: int, last: int) -> str:
    return f"{first:#x}" if first == last else f"{first:#x}..{last:#x}"


def entry_ids(entry: Mapping[str, Any]) -> str:
    """The StreamIDs of an entry, with an SMMUv2 entry's mask."""
    ids = span(entry["first"], entry["last"]) or "-"
    return ids if entry["mask"] == "0x0" else f"{ids}/{entry['mask']}"


def entry_notes(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is to be said of an entry, with a style each."""
    if entry["rid_first"] is not None:
        yield f"from requester ids {span(entry['rid_first'], entry['rid_last'])}", "dim"
    if entry["status"] != "okay":
        yield f"status {entry['status']}", "dim"
    if entry["on_smmus"] > 1:
        yield repeated_note(entry), "cyan" if entry["in_use_on_smmu_v3"] > 1 else "dim"
    for path in entry["shared_with"]:
        yield f"shared with {path}: assigned together", "yellow"


def repeated_note(entry: Mapping[str, Any]) -> str:
    """That the ids of an entry are on several SMMUs, and what follows."""
    count, used = entry["on_smmu_v3"], entry["in_use_on_smmu_v3"]
    if count < 2:
        what = "only one is" if count else "none is"
        return f"on {entry['on_smmus']} SMMUs, of which {what} an SMMUv3 and can have a vSMMU"
    rest = entry["on_smmus"] - count
    others = f" and {rest} that cannot have a vSMMU" if rest else ""
    if used == count:
        return f"in use on {count} SMMUs{others}: needs vMasterIDs"
    need = "needs" if used > 1 else "would need"
    return f"on {count} SMMUs{others}, in use on {used}: {need} vMasterIDs"


def needs_ids(group: Mapping[str, Any]) -> bool:
    """Whether StreamIDs on several SMMUs are on several SMMUv3, which one vSMMU can stand for."""
    return len(group["smmu_v3"]) > 1


def unused(holes: list[dict[str, str]] | None) -> str:
    """The unused StreamIDs below the last used one, the first few by number."""
    if holes is None:
        return "not known: an entry's mask has too many bits"
    ranges = [str(span(hole["first"], hole["last"])) for hole in holes]
    more = f" and {len(ranges) - _FEW} more ranges" if len(ranges) > _FEW else ""
    return (", ".join(ranges[:_FEW]) or "none below the last used one") + more


def stream_lines(master: Mapping[str, Any]) -> Iterator[str]:
    """The streams of a master, an SMMU a line; a row of its iommu-map a line."""
    ids: dict[str, list[str]] = {}
    for stream in master["streams"]:
        mask = "" if stream["mask"] == "0x0" else f"/{stream['mask']}"
        ids.setdefault(stream["smmu"], []).append(f"{stream['stream_id']}{mask}")
    for path, found in ids.items():
        yield f"{' '.join(found)} at {path}"
    if master["iommu_map"]:
        mask = master["iommu_map_mask"]
        tail = "" if mask == "0xffffffff" else f", requester ids masked with {mask}"
        rows = len(master["iommu_map"])
        yield f"iommu-map of {rows} row{'' if rows == 1 else 's'}{tail}"
    for row in master["iommu_map"][:MAX_SHOWN]:
        rid, sid, length = (int(row[key], 16) for key in ("rid_base", "sid_base", "length"))
        last = max(length, 1) - 1
        moved = f"{_run(rid, rid + last)} -> {_run(sid, sid + last)}"
        yield f"  {moved} at {row['smmu']}{_reached(row)}"


def _reached(row: Mapping[str, Any]) -> str:
    """Which requester ids get to a row of iommu-map, when not all do."""
    if int(row["length"], 16) == 0:
        return " (no id)"
    if row["reason"] is None:
        return ""
    runs = [str(span(run["first"], run["last"])) for run in row["reached"]]
    more = f" and {len(runs) - _FEW} more" if len(runs) > _FEW else ""
    what = f"reached by {', '.join(runs[:_FEW])}{more} only" if runs else "not reached"
    return f" ({what}: {row['reason']})"


def rule_counts(masters: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """(effect, rule, number of masters), what blocks first."""
    found = Counter(
        pair for master in masters
        for pair in {(reason["effect"], reason["rule"]) for reason in master["reasons"]}
    )  # fmt: skip
    order = list(EFFECTS)
    ranked = sorted(found, key=lambda pair: (order.index(pair[0]), -found[pair], pair[1]))
    return [(effect, rule, found[effect, rule]) for effect, rule in ranked]


def further_pages(one: Mapping[str, Any]) -> list[str]:
    """What shares a page only with a page neighbour of the device, or with that one's."""
    return [path for path in one["page_closure"] if path not in one["page_neighbours"]]


def number_runs(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, consecutive ones as ranges."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def why_needed(row: Mapping[str, Any]) -> str:
    """Which properties of which node name a provider, and how many nodes do."""
    what = [", ".join(row["properties"])]
    if row["users"]:
        what.append(f"{row['users']} user{'' if row['users'] == 1 else 's'}")
    if row["depth"] > 1:
        what.append(f"for {row['via']}")
    return "; ".join(what)


def interrupt_summary(interrupts: Iterable[Mapping[str, Any]]) -> str:
    """How many interrupts of which kind."""
    kinds = Counter(interrupt["kind"] for interrupt in interrupts)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def interrupt_rows(
    lines: Iterable[Mapping[str, Any]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """(number or range, [(path, names)]).

    Consecutive numbers of the same single owner are one row.
    """
    rows: list[tuple[int, int, list[Mapping[str, Any]]]] = []
    for line in lines:
        number, owners = line["number"], line["owners"]
        last = rows[-1] if rows else None
        same = last is not None and last[1] == number - 1 and len(owners) == 1
        if last and same and {o["path"] for o in last[2]} == {owners[0]["path"]}:
            rows[-1] = (last[0], number, [*last[2], *owners])
        else:
            rows.append((number, number, owners))
    return [(str(a) if a == b else f"{a}..{b}", _owners(owners)) for a, b, owners in rows]


def _owners(owners: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    names: dict[str, list[str]] = {}
    for owner in owners:
        what = "interrupt-map" if owner["via"] == "interrupt-map" else owner["name"]
        names.setdefault(owner["path"], []).extend([what] if what else [])
    found = []
    for path, named in names.items():
        shown = list(dict.fromkeys(named))
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        found.append((path, f" ({', '.join(shown[:3])}{more})" if shown else ""))
    return found


def region_rows(regions: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(addresses, path): ranges of one node without a gap between them are one row."""
    rows: list[tuple[int, int, int, str]] = []
    for region in regions:
        base, size, path = int(region["base"], 16), int(region["size"], 16), region["path"]
        if rows and size and rows[-1][3] == path and rows[-1][1] == base:
            first, _, count, _ = rows.pop()
            rows.append((first, base + size, count + 1, path))
        else:
            rows.append((base, base + size, 1, path))
    return [
        (_addresses(first, end), f"{path} ({count} ranges)" if count > 1 else path)
        for first, end, count, path in rows
    ]


def address_range(row: Mapping[str, str]) -> str:
    """The addresses of a range with base and size."""
    base = int(row["base"], 16)
    return _addresses(base, base + int(row["size"], 16))


def _addresses(first: int, end: int) -> str:
    """A range of addresses, the last one inclusive."""
    return f"{first:#x}..{end - 1:#x}" if end > first else f"{first:#x} (size 0)"
