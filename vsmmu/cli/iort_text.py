# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu inspect` of an ACPI IORT: SMMUs, masters and id mappings, as text or as JSON.

The JSON object has the schema `vsmmu.iort/1`: addresses, ids and flags are hexadecimal strings,
counts, GSIVs, domains and indices of nodes are numbers, and a member that a node does not have is
null. `mappings` are the table's rows as they are, by the index of their node; `masters[].maps`
is what becomes of ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dt_tools.iort import AnySmmu, IdMapping, Iort, IortMaster
    from dt_tools.masters import MapRow
    from dt_tools.report.lines import Lines

SCHEMA = "vsmmu.iort/1"
_MODELS_V3 = {0: "generic", 1: "HiSilicon hi161x", 2: "Cavium CN99xx"}
_MODELS_V2 = {
    0: "SMMUv1",
    1: "SMMUv2",
    2: "Arm MMU-400",
    3: "Arm MMU-500",
    4: "Arm MMU-401",
    5: "Cavium ThunderX",
}


def show(data: bytes, name: str, as_json: bool) -> None:
    """Print the table to stdout: text, or one line of JSON. `name` is the file's.

    Raises:
        DtbError: the table is malformed.
    """
    from dt_tools.iort import read

    found = iort_report(read(data, name), name)
    if as_json:
        from dt_tools.report.jsonreport import to_line

        print(to_line(found))
        return
    import sys

    from dt_tools.report.lines import Lines, width_of
    from dt_tools.report.lines import show as print_lines

    out = Lines(width_of(sys.stdout))
    _text(out, found)
    print_lines(out.lines)


def iort_report(iort: Iort, name: str) -> dict[str, Any]:
    """The table as a JSON object, nodes in table order."""
    from dt_tools.iort import (
        ItsGroup,
        Pmcg,
        RawNode,
        ReservedMemory,
        SmmuV2,
        SmmuV3,
        check_dom0,
        dom0_vsmmus,
    )

    nodes = list(enumerate(iort.nodes))
    users = _users(iort)
    return {
        "schema": SCHEMA,
        "file": name,
        "revision": iort.revision,
        "oem_id": _ascii(iort.oem_id),
        "oem_table_id": _ascii(iort.oem_table_id),
        "oem_revision": iort.oem_revision,
        "smmus": [_smmu(n, node, users) for n, node in nodes if isinstance(node, SmmuV2 | SmmuV3)],
        "its_groups": [
            {"node": n, "its": list(node.its)} for n, node in nodes if isinstance(node, ItsGroup)
        ],
        "masters": [_master(iort, one) for one in iort.masters],
        "pmcgs": [
            {
                "node": n,
                "of": _label(iort, node.of),
                "page0": f"{node.page0:#x}",
                "page1": None if node.page1 is None else f"{node.page1:#x}",
                "gsiv": node.gsiv,
            }
            for n, node in nodes
            if isinstance(node, Pmcg)
        ],
        "reserved_memory": [
            {
                "node": n,
                "flags": f"{node.flags:#x}",
                "ranges": [{"base": f"{b:#x}", "size": f"{s:#x}"} for b, s in node.ranges],
            }
            for n, node in nodes
            if isinstance(node, ReservedMemory)
        ],
        "unknown": [
            {"node": n, "type": node.kind, "bytes": 16 + len(node.data)}
            for n, node in nodes
            if isinstance(node, RawNode)
        ],
        "mappings": [_mapping(iort, n, m) for n, node in nodes for m in node.mappings],
        "dom0": [
            {"rule": note.rule, "smmu": note.path, "text": note.message}
            for note in check_dom0(iort, dom0_vsmmus(iort))
        ],
    }


def _ascii(raw: bytes) -> str:
    return raw.rstrip(b"\0 ").decode("latin-1")


def _label(iort: Iort, index: int) -> str:
    """What a node is called: a name where it has one, else its title and index."""
    from dt_tools.iort import NamedComponent, RootComplex, SmmuV2, SmmuV3

    node = iort.nodes[index]
    if isinstance(node, SmmuV2 | SmmuV3):
        return node.name
    if isinstance(node, NamedComponent):
        return node.path
    if isinstance(node, RootComplex):
        return f"pci:{node.segment:04x}"
    return f"{node.title} (node {index})"


def _smmu(index: int, node: AnySmmu, users: dict[str, list[str]]) -> dict[str, Any]:
    from dt_tools.iort import SmmuV3

    models = _MODELS_V3 if isinstance(node, SmmuV3) else _MODELS_V2
    found = {
        "node": index,
        "name": node.name,
        "kind": "arm,smmu-v3" if isinstance(node, SmmuV3) else "arm,smmu-v2",
        "base": f"{node.base:#x}",
        "model": models.get(node.model, f"model {node.model}"),
        "flags": f"{node.flags:#x}",
        "coherent": node.coherent,
        "masters": users.get(node.name, []),
    }
    if isinstance(node, SmmuV3):
        gsivs = {k: getattr(node, k) or None for k in ("event", "pri", "gerr", "sync")}
        domain = node.proximity_domain
    else:
        gsivs = {
            "global": [gsiv for gsiv, _ in node.global_interrupts if gsiv],
            "context": [gsiv for gsiv, _ in node.context_interrupts],
            "pmu": [gsiv for gsiv, _ in node.pmu_interrupts],
        }
        domain = None
    return {**found, "gsivs": gsivs, "proximity_domain": domain}


def _users(iort: Iort) -> dict[str, list[str]]:
    """The names of the masters with a stream of each SMMU, by its name."""
    found: dict[str, list[str]] = {}
    for one in iort.masters:
        smmus = [stream.smmu_path for stream in one.streams] + [row.smmu_path for row in one.maps]
        for smmu in dict.fromkeys(smmus):
            found.setdefault(smmu, []).append(one.name)
    return found


def _master(iort: Iort, one: IortMaster) -> dict[str, Any]:
    node = iort.nodes[one.index]
    memory = getattr(node, "memory", None)
    return {
        "node": one.index,
        "name": one.name,
        "kind": node.title,
        "segment": one.segment,
        "coherent": memory is not None and memory.cca == 1,
        "streams": [{"smmu": s.smmu_path, "stream_id": f"{s.stream_id:#x}"} for s in one.streams],
        "maps": [_row(row) for row in one.maps],
    }


def _row(row: MapRow) -> dict[str, Any]:
    return {
        "id_first": f"{row.rid_base:#x}",
        "id_last": f"{row.rid_base + row.length - 1:#x}",
        "smmu": row.smmu_path,
        "stream_id_first": f"{row.sid_base:#x}",
        "stream_id_last": f"{row.sid_base + row.length - 1:#x}",
    }


def _mapping(iort: Iort, index: int, mapping: IdMapping) -> dict[str, Any]:
    return {
        "node": index,
        "input_base": f"{mapping.input_base:#x}",
        "count": mapping.count,
        "output_base": f"{mapping.output_base:#x}",
        "target": mapping.target,
        "to": _label(iort, mapping.target),
        "single": mapping.single,
    }


# As text.


def _shown(out: Lines, items: list[Any]) -> list[Any]:
    from dt_tools.report.wording import MAX_SHOWN

    if len(items) > MAX_SHOWN:
        text = f"the first {MAX_SHOWN} of {len(items)}; the JSON report has all"
        out.add(0, (text, "yellow"))
    return items[:MAX_SHOWN]


def _text(out: Lines, found: dict[str, Any]) -> None:
    out.add(0, (f"{found['file']}:", "bold"), (f"ACPI IORT, revision {found['revision']}", ""))
    oem = f"OEM {found['oem_id']} {found['oem_table_id']}, revision {found['oem_revision']}"
    out.add(0, (oem, ""))
    _smmus(out, found["smmus"])
    _masters(out, found["masters"])
    if found["mappings"]:
        out.title(f"Mappings in the table: {len(found['mappings'])}")
        names = _names(found)
        rows = [
            (names[row["node"]], *_mapping_cells(row)) for row in _shown(out, found["mappings"])
        ]
        out.table(("FROM", "IDS", "OUTPUT", "TO"), rows)
    _others(out, found)
    _dom0(out, found)


def _smmus(out: Lines, smmus: list[dict[str, Any]]) -> None:
    out.title(f"SMMUs: {len(smmus)}")
    if smmus:
        head = ("KIND", "BASE", "MODEL", "FLAGS", "COHERENT", "DOMAIN", "MASTERS", "GSIVS")
        out.table(head, [_smmu_cells(smmu) for smmu in _shown(out, smmus)])


def _smmu_cells(smmu: dict[str, Any]) -> tuple[str, ...]:
    domain = smmu["proximity_domain"]
    return (
        smmu["kind"].removeprefix("arm,"),
        smmu["base"],
        smmu["model"],
        smmu["flags"],
        "yes" if smmu["coherent"] else "no",
        "-" if domain is None else str(domain),
        str(len(smmu["masters"])),
        _gsivs(smmu["gsivs"]),
    )


def _gsivs(gsivs: dict[str, Any]) -> str:
    """`event 106, gerr 109`; many of a kind by their number."""
    parts = []
    for name, value in gsivs.items():
        many = value if isinstance(value, list) else [value] if value else []
        if many:
            text = " ".join(map(str, many)) if len(many) <= 4 else f"{len(many)} of them"
            parts.append(f"{name} {text}")
    return ", ".join(parts) or "-"


def _masters(out: Lines, masters: list[dict[str, Any]]) -> None:
    out.title(f"Masters: {len(masters)}")
    for one in _shown(out, masters):
        out.add(0, (one["name"], "bold"), (f"{one['kind']}, node {one['node']}", "dim"))
        for stream in _shown(out, one["streams"]):
            out.add(2, (f"StreamID {stream['stream_id']} at {stream['smmu']}", ""))
        for row in _shown(out, one["maps"]):
            ids = _span(row["id_first"], row["id_last"])
            sids = _span(row["stream_id_first"], row["stream_id_last"])
            out.add(2, (f"{ids} -> StreamID {sids} at {row['smmu']}", ""))
        if not one["streams"] and not one["maps"]:
            out.add(2, ("no stream of an SMMU", "dim"))


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}..{last}"


def _names(found: dict[str, Any]) -> dict[int, str]:
    """What the nodes with mappings are called, by index."""
    named = {one["node"]: one["name"] for key in ("smmus", "masters") for one in found[key]}
    kinds = {"pmcgs": "PMCG", "reserved_memory": "RMR", "unknown": "node of unknown type"}
    for key, kind in kinds.items():
        named |= {one["node"]: f"{kind} (node {one['node']})" for one in found[key]}
    return named


def _mapping_cells(row: dict[str, Any]) -> tuple[str, ...]:
    first, output = int(row["input_base"], 16), int(row["output_base"], 16)
    if row["single"]:
        return "any", row["output_base"], row["to"]
    less = row["count"] - 1
    ids = _span(row["input_base"], f"{first + less:#x}")
    return ids, _span(row["output_base"], f"{output + less:#x}"), row["to"]


def _others(out: Lines, found: dict[str, Any]) -> None:
    groups: list[tuple[str, Iterable[str]]] = [
        ("ITS groups", (f"node {g['node']}: ITS {_ids(g['its'])}" for g in found["its_groups"])),
        ("PMCGs", (f"{p['page0']}, GSIV {p['gsiv']}, of {p['of']}" for p in found["pmcgs"])),
        (
            "Reserved memory (RMR)",
            (
                f"node {r['node']}: {m['base']}, {m['size']} bytes"
                for r in found["reserved_memory"]
                for m in r["ranges"]
            ),
        ),
        (
            "Nodes of unknown types",
            (f"node {u['node']}: type {u['type']}, {u['bytes']} bytes" for u in found["unknown"]),
        ),
    ]
    for title, texts in groups:
        rows = list(texts)
        if rows:
            out.title(f"{title}: {len(rows)}")
        for text in _shown(out, rows):
            out.add(2, (text, ""))


def _ids(ids: list[int]) -> str:
    shown = " ".join(map(str, ids[:16])) or "none"
    return f"{shown} and {len(ids) - 16} more" if len(ids) > 16 else shown


def _dom0(out: Lines, found: dict[str, Any]) -> None:
    if not any(smmu["kind"] == "arm,smmu-v3" for smmu in found["smmus"]):
        return
    out.title("dom0 with one vSMMU at the base of each SMMUv3")
    if not found["dom0"]:
        out.add(2, ("the table stays as it is", ""))
    for note in _shown(out, found["dom0"]):
        out.add(2, (note["rule"], "cyan"), (f"{note['smmu']}: {note['text']}", ""))
