# SPDX-License-Identifier: BSD-2-Clause
"""One device end to end: node, registers, interrupts, StreamIDs, and what a guest would get.

The guest is given this device alone. Its part is what the builders make of it, `binding.allocate`
and `partial.build_partial`, with a guest that has no RAM yet, so that registers stay at their
addresses unless these are the guest map's own. Where they refuse, the refusal stands in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dt_tools.binding import Bindings, allocate
from dt_tools.errors import Refusal, UserError
from dt_tools.extended import AddressMap
from dt_tools.partial import Partial, build_partial
from dt_tools.platform import SMMU_V3
from dt_tools.profiles import DEFAULT
from dt_tools.report.assign import Reason, verdicts
from dt_tools.report.facts import Facts
from dt_tools.report.jsonreport import finding_json, master_json, node_json, reasons_json
from dt_tools.report.lines import clean
from dt_tools.report.streams import stream_maps
from dt_tools.tree import bus_cells, range_entries, reg_entries, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.platform import Interrupt, Platform, Smmu
    from dt_tools.profiles import GuestProfile
    from dt_tools.tree import Node

SCHEMA = "vsmmu.inspect.device/1"
# A two-level stream table as the hypervisor uses it: 2**8 STEs to an L2 table.
SPLIT = 8
STE_BYTES = 64
L1_BYTES = 8
# A row of iommu-map stands for so many ids: only its ends are looked up in the stream table.
_TRIGGERS = {1: "edge rising", 2: "edge falling", 4: "level high", 8: "level low"}


def explain(platform: Platform, path: str) -> dict[str, Any]:
    """Everything known of the node at the host path `path`.

    Raises:
        UserError: there is no such node.
        DtbError: the tree asks for more work than the platform's limit.
    """
    node = platform.resolve(_unaliased(platform, path))
    facts = Facts(platform)
    verdict = next((v for v in verdicts(platform, facts) if v.master.path == node.path), None)
    bindings, partial, refusal = _guest(platform, node.path)
    reasons = verdict.reasons if verdict else _reasons(refusal)
    known = node_json(facts, node) if verdict is None else master_json(facts, verdict)
    return {
        "schema": SCHEMA,
        "file": platform.source,
        "path": node.path,
        "compatible": list(node.strings("compatible") or ()),
        "status": status_of(node),
        "own_status": node.status,
        "phandle": None if node.phandle is None else f"{node.phandle:#x}",
        "dma_coherent": "dma-coherent" in node.props,
        "master": verdict is not None,
        "regs": _regs(platform, node),
        "page_neighbours": known["page_neighbours"],
        "page_closure": known["page_closure"],
        "interrupts": [
            _interrupt(one, shown, facts)
            for one, shown in zip(facts.interrupts.get(node, ()), known["interrupts"], strict=True)
        ],
        "interrupt_map": known["interrupt_map"],
        "streams": _streams(facts, node.path) if verdict else [],
        "needs": known["needs"],
        "needed_by": known["needed_by"],
        "assignable": verdict.answer if verdict else "no",
        "reasons": reasons_json(reasons),
        "findings": [finding_json(f) for f in platform.findings if f.path == node.path],
        "guest": _guest_json(bindings, partial, refusal),
    }


def _unaliased(platform: Platform, path: str) -> str:
    """The path that an alias stands for; any other text as it is."""
    aliases = platform.tree.root.children.get("aliases")
    target = None if aliases is None or path.startswith("/") else aliases.string(path)
    if target is None:
        return path
    try:
        return platform.resolve(target).path
    except UserError as error:
        reason = f"is an alias of {clean(target)[:200]}: {error.reason}"
        raise UserError(platform.source, clean(path)[:200], reason, error.hint) from None


def _reasons(refusal: Refusal | None) -> tuple[Reason, ...]:
    return (Reason(refusal.rule, "blocks", refusal.reason),) if refusal else ()


def _guest(platform: Platform, path: str) -> tuple[Bindings | None, Partial | None, Refusal | None]:
    bindings = None
    try:
        bindings = allocate(platform, [path])
        space = AddressMap(DEFAULT.guest, ())
        return bindings, build_partial(platform, [path], bindings, space), None
    except Refusal as refusal:
        return bindings, None, refusal


# Registers.


def _regs(platform: Platform, node: Node) -> list[dict[str, Any]]:
    """Each entry of `reg`: address on its bus, the steps to the CPU, pages."""
    entries = reg_entries(node)
    bus = node.parent
    if not entries or bus is None:
        return []
    cells = bus_cells(bus)
    regs = platform.reg_of(node)
    found = []
    for at, (base, size) in enumerate(entries):
        steps = list(_steps(bus, base, size)) if cells and cells[1] else []
        cpu = None if regs is None else regs[at].cpu_base
        found.append(
            {
                "bus": f"{base:#x}",
                "size": f"{size:#x}",
                "steps": steps,
                "cpu": None if cpu is None else f"{cpu:#x}",
                "pages": None if cpu is None else -(-(cpu % 4096 + max(size, 1)) // 4096),
            }
        )
    return found


def _steps(bus: Node, base: int, size: int) -> Iterator[dict[str, Any]]:
    """How each bus above moves the address; a bus that leaves it as it is is no step."""
    at: Node | None = bus
    while at is not None and at.parent is not None:
        rows = range_entries(at)
        if rows is None:
            yield {"bus": at.path, "address": None, "reason": "no valid ranges"}
            return
        row = next((r for r in rows if r[0] <= base and base + size <= r[0] + r[2]), None)
        if rows and row is None:
            yield {"bus": at.path, "address": None, "reason": "no row of ranges has it"}
            return
        if row is not None and row[0] != row[1]:
            base += row[1] - row[0]
            yield {"bus": at.path, "address": f"{base:#x}", "reason": None}
        at = at.parent


# Interrupts.


def _interrupt(one: Interrupt, shown: dict[str, Any], facts: Facts) -> dict[str, Any]:
    trigger = _TRIGGERS.get(one.flags & 0xF) if one.kind in ("SPI", "PPI") else None
    return {
        **shown,
        "trigger": trigger,
        "specifier": [f"{cell:#x}" for cell in one.specifier],
        "users": list(facts.spi_owners[one.number]) if one.kind == "SPI" else [],
    }


# StreamIDs.


def _streams(facts: Facts, path: str) -> list[dict[str, Any]]:
    smmus = {smmu.path: smmu for smmu in facts.platform.smmus}
    found = []
    for one in stream_maps(facts.platform, facts.repeated, facts.shared):
        for entry in one.entries:
            if entry.master == path:
                found.append(
                    {
                        "smmu": _smmu(smmus[one.smmu]),
                        "first": f"{entry.first:#x}",
                        "last": f"{entry.last:#x}",
                        "mask": f"{entry.mask:#x}",
                        "rid_first": None if entry.rid is None else f"{entry.rid:#x}",
                        "on_smmus": entry.smmus,
                        "in_use_on": entry.in_use,
                        "on_smmu_v3": entry.v3,
                        "in_use_on_smmu_v3": entry.in_use_v3,
                        "shared_with": list(entry.others),
                        "ste": _ste(smmus[one.smmu], entry.first, entry.last),
                    }
                )
    return found


def _smmu(smmu: Smmu) -> dict[str, Any]:
    return {
        "path": smmu.path,
        "kind": smmu.kind,
        "status": smmu.status,
        "base": None if smmu.base is None else f"{smmu.base:#x}",
    }


def _ste(smmu: Smmu, first: int, last: int) -> dict[str, Any] | None:
    """Where the STEs are in the SMMU's stream table, in bytes (IHI 0070 §3.3); SMMUv3 only."""
    if smmu.kind != SMMU_V3:
        return None
    ends = [
        {
            "stream_id": f"{sid:#x}",
            "linear_offset": f"{sid * STE_BYTES:#x}",
            "l1_index": f"{sid >> SPLIT:#x}",
            "l1_offset": f"{(sid >> SPLIT) * L1_BYTES:#x}",
            "l2_index": f"{sid & (1 << SPLIT) - 1:#x}",
            "l2_offset": f"{(sid & (1 << SPLIT) - 1) * STE_BYTES:#x}",
        }
        for sid in dict.fromkeys((first, last))
    ]
    return {"split": SPLIT, "log2size": last.bit_length(), "ends": ends}


# The guest.


def _guest_json(
    bindings: Bindings | None, partial: Partial | None, refusal: Refusal | None
) -> dict[str, Any]:
    guest: GuestProfile = DEFAULT.guest
    devices = partial.devices if partial else ()
    notices = [*(bindings.notices if bindings else ()), *(partial.notices if partial else ())]
    whole = Bindings(
        () if bindings is None else bindings.entries, devices=devices, notices=tuple(notices)
    ).to_json()
    return {
        "refused": None
        if refusal is None
        else {
            "rule": refusal.rule,
            "path": refusal.path,
            "reason": refusal.reason,
            "fix": refusal.fix,
        },
        "vsmmu": {
            "base": f"{guest.vsmmu.base:#x}",
            "size": f"{guest.vsmmu.size:#x}",
            "spi": guest.vsmmu_spi,
            "phandle": f"{guest.vsmmu_phandle:#x}",
        },
        "bindings": whole["bindings"],
        "device": whole["devices"][0] if devices else None,
        "notices": whole["notices"],
    }
