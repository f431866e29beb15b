# SPDX-License-Identifier: BSD-2-Clause
"""One device end to end, as text. Shows what `explain.explain` holds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from dt_tools.report.lines import Lines, show, width_of
from dt_tools.report.terminal import SEVERITY, STATUS, needs
from dt_tools.report.wording import (
    ANSWERS,
    EFFECTS,
    MAX_SHOWN,
    further_pages,
    interrupt_rows,
    number_runs,
    repeated_note,
    span,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHORT = 8


def print_explained(
    found: dict[str, Any], stream: TextIO | None = None, *, width: int | None = None
) -> None:
    """Print what `explain` returned to `stream` (default: stdout), as `print_inspected` does."""
    out = sys.stdout if stream is None else stream
    lines = Lines(width or width_of(out))
    _node(lines, found)
    _registers(lines, found)
    _interrupts(lines, found)
    _streams(lines, found)
    _guest(lines, found)
    _needs(lines, found)
    _rules(lines, found)
    show(lines.lines, out)


def _node(out: Lines, found: dict[str, Any]) -> None:
    out.add(0, (found["path"], "bold"))
    out.add(2, ("board      ", "dim"), (found["file"], ""))
    out.add(2, ("compatible ", "dim"), (", ".join(found["compatible"]) or "none", ""))
    status = found["status"]
    below = "" if status == found["own_status"] else f" (its own: {found['own_status']})"
    out.add(2, ("status     ", "dim"), (status + below, STATUS.get(status, "")))
    if found["dma_coherent"]:
        out.add(2, ("dma        ", "dim"), ("coherent", ""))
    out.add(2, ("assignable ", "dim"), (found["assignable"], ANSWERS[found["assignable"]]))


def _registers(out: Lines, found: dict[str, Any]) -> None:
    out.title(f"Registers: {len(found['regs'])}")
    for reg in found["regs"][:MAX_SHOWN]:
        cpu = reg["cpu"] or "no CPU address"
        pages = "" if reg["cpu"] is None else f", {_count(reg['pages'], 'page')}"
        out.add(2, (cpu, "" if reg["cpu"] else "red"), (f"size {reg['size']}{pages}", "dim"))
        if reg["steps"]:
            out.add(4, (f"{reg['bus']} on the bus", "dim"))
        for step in reg["steps"]:
            where = step["address"] or step["reason"]
            out.add(4, (f"{where} behind", "dim"), (step["bus"], "dim"))
    for path in found["page_neighbours"]:
        out.add(2, ("same page:", "yellow"), (path, ""))
    for path in further_pages(found):
        out.add(2, ("same page as one of these:", "yellow"), (path, ""))


def _interrupts(out: Lines, found: dict[str, Any]) -> None:
    interrupts = found["interrupts"]
    out.title(f"Interrupts: {len(interrupts)}")
    for kind in ("SPI", "PPI"):
        lines = [
            {
                "number": one["number"],
                "owners": [{"path": one["trigger"] or "", "name": one["name"], "via": ""}],
            }
            for one in sorted(
                (i for i in interrupts if i["kind"] == kind), key=lambda i: i["number"]
            )
        ]
        for ids, owners in interrupt_rows(lines)[:MAX_SHOWN]:
            for trigger, names in owners:
                out.add(2, (f"{kind} {ids}", "bold"), (f"{trigger}{names}", ""))
    others: dict[tuple[str, str, str], int] = {}
    for one in interrupts:
        if one["kind"] not in ("SPI", "PPI"):
            key = (one["kind"], one["controller"] or "no controller", one["reason"])
            others[key] = others.get(key, 0) + 1
    for (kind, controller, reason), count in others.items():
        out.add(2, (f"{count} {kind} at", "cyan"), (f"{controller}: {reason}", ""))
    for one in found["interrupt_map"][:MAX_SHOWN]:
        what = f"SPI {one['number']}" if one["kind"] == "SPI" else f"{one['kind']} at"
        where = "" if one["kind"] == "SPI" else one["controller"] or "no controller"
        where += ", not a GIC" if one["kind"] == "MSI" else ""
        why = f"{where}: {one['reason']}" if one["reason"] else where
        out.add(2, ("of its interrupt-map:", "dim"), (what, "cyan"), (why, ""))
    shared = {(one["number"], path) for one in interrupts for path in one["users"]}
    for number, path in sorted(shared):
        if path != found["path"]:
            out.add(2, (f"SPI {number} is also of", "yellow"), (path, ""))


def _streams(out: Lines, found: dict[str, Any]) -> None:
    streams = found["streams"]
    if not streams:
        out.title("StreamIDs: none")
        return
    out.title(f"StreamIDs: {len(streams)}")
    for one in streams[:MAX_SHOWN]:
        smmu, mask = one["smmu"], "" if one["mask"] == "0x0" else f"/{one['mask']}"
        ids = f"{span(one['first'], one['last'])}{mask}"
        out.add(2, (ids, "bold"), ("at", ""), (smmu["path"], ""))
        base = smmu["base"] or "no address"
        out.add(
            4,
            (f"{smmu['kind']} at {base},", "dim"),
            (smmu["status"], STATUS.get(smmu["status"], "")),
        )
        if one["rid_first"] is not None:
            size = int(one["last"], 16) - int(one["first"], 16)
            rids = span(one["rid_first"], f"{int(one['rid_first'], 16) + size:#x}")
            out.add(4, (f"from requester ids {rids}", "dim"))
        if one["on_smmus"] > 1:
            out.add(4, (repeated_note(one), "cyan"))
        for path in one["shared_with"]:
            out.add(4, ("shared with", "yellow"), (path, ""))
        _ste(out, one["ste"])


def _ste(out: Lines, ste: dict[str, Any] | None) -> None:
    if ste is None:
        return
    out.add(4, (f"stream table of 2^{ste['log2size']} entries at least", "dim"))
    for end in ste["ends"]:
        out.add(
            4,
            (f"STE of {end['stream_id']}:", ""),
            (
                f"linear +{end['linear_offset']}; split {ste['split']}: "
                f"L1 {end['l1_index']} (+{end['l1_offset']}), "
                f"L2 {end['l2_index']} (+{end['l2_offset']})",
                "",
            ),
        )


def _guest(out: Lines, found: dict[str, Any]) -> None:
    guest = found["guest"]
    out.title("A guest with this device alone")
    refused = guest["refused"]
    if refused is not None:
        out.add(2, ("refused", "red"), (refused["rule"], "cyan"), (refused["reason"], ""))
        if refused["fix"]:
            out.add(4, ("fix:", "dim"), (refused["fix"], ""))
        return
    vsmmu = guest["vsmmu"]
    text = f"{vsmmu['base']} size {vsmmu['size']}, interrupt {vsmmu['spi']}"
    text += f", phandle {vsmmu['phandle']}"
    out.add(2, ("vSMMU     ", "dim"), (text, ""))
    for one in guest["bindings"][:MAX_SHOWN]:
        text = f"{one['vmaster_id']:#x} stands for {one['pmaster_id']} of {one['smmu']}"
        out.add(2, ("vMasterID ", "dim"), (text, ""))
    device = guest["device"]
    cells = " ".join(f"{vsmmu['phandle']} {vid:#x}" for vid in device["vmaster_ids"][:_SHORT])
    more = " ..." if len(device["vmaster_ids"]) > _SHORT else ""
    out.add(2, ("node      ", "dim"), (device["guest_path"], ""))
    out.add(2, ("iommus    ", "dim"), (f"<{cells}{more}>", ""))
    for reg in device["regs"][:MAX_SHOWN]:
        where = "1:1" if reg["host"] == reg["guest"] else f"from {reg['host']}"
        out.add(2, ("registers ", "dim"), (f"{reg['guest']} size {reg['size']}, {where}", ""))
    if device["interrupts"]:
        numbers = number_runs(i["number"] for i in device["interrupts"])
        out.add(2, ("interrupts", "dim"), (numbers, ""))
    for row in device["dropped"]:
        out.add(2, ("dropped   ", "dim"), (f"{row['property']}: {row['reason']}", "dim"))
    for row in guest["notices"]:
        out.add(2, ("notice    ", "dim"), (row["rule"], "cyan"), (row["message"], ""))


def _needs(out: Lines, found: dict[str, Any]) -> None:
    rows = found["needs"]
    out.title(f"Depends on {_count(len(rows), 'node')}")
    needs(out, 2, rows)
    if found["needed_by"]:
        out.title(f"{_count(len(found['needed_by']), 'node')} outside depend on it")
        _paths(out, found["needed_by"])


def _paths(out: Lines, paths: Iterable[str]) -> None:
    for path in list(paths)[:MAX_SHOWN]:
        out.add(2, (path, "dim"))


def _rules(out: Lines, found: dict[str, Any]) -> None:
    out.title(f"Rules that apply: {len(found['reasons']) + len(found['findings'])}")
    for one in found["reasons"]:
        out.add(
            2,
            (f"{one['effect']:8}", EFFECTS[one["effect"]]),
            (one["rule"], "cyan"),
            (one["text"], ""),
        )
    for one in found["findings"]:
        severity = one["severity"]
        out.add(2, (f"{severity:8}", SEVERITY[severity]), (one["rule"], "cyan"), (one["text"], ""))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
