# SPDX-License-Identifier: BSD-2-Clause
"""The report on a board as text; without colour and unfolded when it does not go to a terminal.

Shows what `jsonreport.inspect_report` holds, so that the two cannot disagree.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

from dt_tools.report.assign import TITLES
from dt_tools.report.jsonreport import inspect_report
from dt_tools.report.lines import Lines, clean, show, width_of
from dt_tools.report.wording import (
    ANSWERS,
    EFFECTS,
    MAX_SHOWN,
    address_range,
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
    from collections.abc import Iterable

    from dt_tools.platform import Platform

STATUS = {"okay": "green", "disabled": "dim", "reserved": "yellow"}
SEVERITY = {"error": "bold red", "warning": "yellow", "note": "cyan"}
# So many unused ranges, and dependencies of a master, are named in a list of all.
_FEW = 3


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
    show(report_lines(report, width or width_of(out)).lines, out)


def report_lines(report: dict[str, Any], width: int) -> Lines:
    """The report as lines of at most `width` columns."""
    out = Lines(width)
    _head(out, report)
    _smmus(out, report)
    _stream_maps(out, report)
    again = report["stream_ids"]["on_several_smmus"]
    title = "StreamIDs on several SMMUs (a guest with both needs vMasterIDs)"
    _repeated(out, title, [group for group in again if needs_ids(group)])
    title = "StreamIDs on several SMMUs that cannot all have a vSMMU (none is or one is an SMMUv3)"
    _repeated(out, title, [group for group in again if not needs_ids(group)])
    _shared(out, report["stream_ids"]["shared"])
    _masters(out, report)
    _interrupts(out, report["interrupts"])
    _pages(out, report["mmio"])
    _findings(out, report["findings"])
    return out


def _shown(out: Lines, items: list[Any]) -> list[Any]:
    """The first `MAX_SHOWN`; says before them when there are more."""
    if len(items) > MAX_SHOWN:
        text = f"the first {MAX_SHOWN} of {len(items)}; the JSON report has all"
        out.add(0, (text, "yellow"))
    return items[:MAX_SHOWN]


def _head(out: Lines, report: dict[str, Any]) -> None:
    gic = report["gic"]
    name, model = f"{report['file']}:", report["model"] or "no model"
    if len(clean(name)) + 1 + len(clean(model)) <= out.width:
        out.add(0, (name, "bold"), (model, ""))
    else:
        out.add(0, (name, "bold"))
        out.add(2, (model, ""))
    out.add(0, (f"GICv{gic['version']} {gic['path']}" if gic else "no GIC found", ""))


# The SMMUs.


def _smmus(out: Lines, report: dict[str, Any]) -> None:
    smmus = report["smmus"]
    enabled = sum(smmu["status"] == "okay" for smmu in smmus)
    out.title(f"SMMUs: {len(smmus)}, enabled: {enabled}")
    if smmus:
        head = ("STATUS", "KIND", "BASE", "SIZE", "IRQS", "STREAMIDS", "PATH")
        rows = [_smmu_row(smmu) for smmu in _shown(out, smmus)]
        out.table(head, rows, [STATUS.get(row[0], "") for row in rows])
    for traits, paths in _traits(smmus[:MAX_SHOWN]).items():
        who = "all" if len(paths) == len(smmus) > 1 else ", ".join(paths)
        out.add(2, (f"{who}: {traits}", "dim"))
    for key, what in (("pmcgs", "PMCGs (monitors, not SMMUs)"), ("other_iommus", "other IOMMUs")):
        if report[key]:
            out.add(0, (f"{what}: {len(report[key])}", ""))
            for one in _shown(out, report[key]):
                out.add(2, (f"{one['status']:8}", STATUS.get(one["status"], "")), (one["path"], ""))


def _traits(smmus: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """The paths of the SMMUs that have each set of coherence and quirk properties."""
    found: dict[str, list[str]] = {}
    for smmu in smmus:
        traits = [*(["dma-coherent"] if smmu["dma_coherent"] else []), *smmu["quirks"]]
        if traits:
            found.setdefault(", ".join(traits), []).append(smmu["path"])
    return found


def _smmu_row(smmu: dict[str, Any]) -> tuple[str, ...]:
    return (
        clean(smmu["status"]),
        clean(smmu["kind"].removeprefix("arm,")),
        smmu["base"] or "-",
        smmu["size"] or "-",
        interrupt_summary(smmu["interrupts"]),
        span(smmu["stream_id_first"], smmu["stream_id_last"]) or "-",
        clean(smmu["path"]),
    )


# StreamIDs.


def _stream_maps(out: Lines, report: dict[str, Any]) -> None:
    for one in report["stream_ids"]["maps"][:MAX_SHOWN]:
        out.title(f"StreamIDs of {one['smmu']}")
        entries = _shown(out, one["entries"])
        ids = [entry_ids(entry) for entry in entries]
        wide = min(max(map(len, ids)), 28)
        for entry, text in zip(entries, ids, strict=True):
            style = "dim" if entry["status"] != "okay" else ""
            out.add(0, (f"{text:{wide}}", style or "bold"), (entry["master"], style))
            for note, kind in entry_notes(entry):
                out.add(wide + 1, (note, kind))
        out.add(0, (f"{'unused':{wide}}", "dim"), (unused(one["unused"]), "dim"))


def _repeated(out: Lines, title: str, groups: list[dict[str, Any]]) -> None:
    if groups:
        out.title(title)
    for group in _shown(out, groups):
        out.add(0, (f"{span(group['first'], group['last'])}", "bold"))
        for path in group["smmus"]:
            if path in group["in_use"]:
                out.add(2, (path, ""))
            else:
                out.add(2, (f"{path} (not in use)", "dim"))


def _shared(out: Lines, groups: list[dict[str, Any]]) -> None:
    if groups:
        out.title("StreamIDs shared on one SMMU (the masters are assigned together)")
    for group in _shown(out, groups):
        ids = span(group["first"], group["last"])
        out.add(0, (f"{ids} at", "bold"), (group["smmu"], ""))
        for path in group["masters"]:
            out.add(2, (path, ""))


# Masters.


def _masters(out: Lines, report: dict[str, Any]) -> None:
    masters = report["masters"]
    answers = Counter(master["assignable"] for master in masters)
    counts = ", ".join(f"{answers[key]} {key}" for key in ANSWERS)
    out.title(f"Masters: {len(masters)} (assignable: {counts})")
    for effect, rule, count in rule_counts(masters):
        out.add(2, (f"{effect:8}", EFFECTS[effect]), (rule, "cyan"), (f"{count:3} x", ""),
                (TITLES[rule], ""))  # fmt: skip
    for master in _shown(out, masters):
        answer = master["assignable"]
        out.add(0, (f"{answer:8}", ANSWERS[answer]), (master["path"], ""))
        for streams in islice(stream_lines(master), MAX_SHOWN):
            out.add(9, (streams, "dim"))
        for reason in master["reasons"]:
            out.add(9, (reason["rule"], "cyan"), (reason["text"], ""))
        needs(out, 9, master["needs"], _FEW)


def needs(out: Lines, indent: int, rows: list[dict[str, Any]], few: int | None = None) -> None:
    """What a device depends on; with `few`, so many of the nearest and a count of the others."""
    rows = [row for row in rows if few is None or not _SHOWN_BEFORE.issuperset(row["properties"])]
    shown = rows if few is None else [row for row in rows if row["depth"] == 1][:few]
    for row in shown:
        text = f"{row['path']} ({why_needed(row)})"
        out.add(indent + 2 * min(row["depth"] - 1, 8), ("needs", "dim"), (text, "dim"))
    if len(rows) > len(shown):
        count = len(rows) - len(shown)
        more = f"{count} more node{'' if count == 1 else 's'} (--device PATH names them)"
        out.add(indent, ("needs", "dim"), (more, "dim"))


# A master's SMMUs stand in its own lines already.
_SHOWN_BEFORE = frozenset({"iommus", "iommu-map"})


# Interrupts and pages.


def _interrupts(out: Lines, found: dict[str, Any]) -> None:
    spis, ppis = found["spis"], found["ppis"]
    many = sum(len({o["path"] for o in line["owners"]}) > 1 for line in spis)
    if not (spis or ppis or found["elsewhere"]):
        return
    out.title(f"Interrupts: {len(spis)} SPIs in use, {many} of several nodes; {len(ppis)} PPIs")
    for kind, lines in (("SPI", spis), ("PPI", ppis)):
        for ids, owners in _shown(out, interrupt_rows(lines)):
            head = (f"{kind} {ids:>9}", "bold" if len(owners) == 1 else "yellow")
            for path, what in owners:
                out.add(0, head, (f"{path}{what}", ""))
                head = (" " * len(head[0]), "")
    for one in _shown(out, found["elsewhere"]):
        where = one["controller"] or "no controller"
        out.add(0, (f"{one['kind']}: {one['count']} at", "cyan"), (f"{where}: {one['reason']}", ""))
        for path in one["nodes"][:MAX_SHOWN]:
            out.add(14, (path, "dim"))


def _pages(out: Lines, mmio: dict[str, Any]) -> None:
    regions, shared = mmio["regions"], mmio["shared"]
    apart = [run for run in shared if not run["nested"]]
    if regions:
        out.title(
            f"Register ranges: {len(regions)}; runs of pages that devices share: {len(apart)}"
        )
    rows = region_rows(regions)
    wide = max((len(row[0]) for row in rows[:MAX_SHOWN]), default=0)
    for addresses, text in _shown(out, rows):
        out.add(0, (f"{addresses:{wide}}", ""), (text, ""))
    if apart:
        out.title("Pages with registers of several devices (assigned together, or not at all)")
    for run in _shown(out, apart):
        out.add(0, (f"{run['first']}..{run['last']}", "yellow"))
        for path in run["paths"]:
            out.add(2, (path, ""))
    _memory(out, mmio)


def _memory(out: Lines, mmio: dict[str, Any]) -> None:
    if mmio["untranslated"]:
        out.title(f"Nodes whose reg has no CPU address: {len(mmio['untranslated'])}")
    for path in _shown(out, mmio["untranslated"]):
        out.add(2, (path, "dim"))
    if mmio["memory"]:
        out.title("Memory")
    wide = max((len(address_range(row)) for row in mmio["memory"][:MAX_SHOWN]), default=0)
    for row in _shown(out, mmio["memory"]):
        out.add(
            0, (f"{address_range(row):{wide}}", ""), (f"{row['kind']:8}", "dim"), (row["path"], "")
        )


def _findings(out: Lines, found: list[dict[str, Any]]) -> None:
    out.title(f"Findings: {len(found)}")
    for one in _shown(out, found):
        severity = one["severity"]
        head = (f"{severity:7}", SEVERITY[severity]), (one["rule"], "cyan")
        out.add(0, *head, (f"{one['path']}: {one['text']}", ""))
