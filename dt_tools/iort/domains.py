# SPDX-License-Identifier: BSD-2-Clause
"""What dom0 and a domU make of an IORT: the table left as it is, or one of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, Notice
from dt_tools.errors import Refusal, UserError
from dt_tools.iort.layout import CAVIUM, COHACC, HTTU, is_path
from dt_tools.iort.model import IdMapping, Iort, Memory, NamedComponent, Node, RootComplex, SmmuV3
from dt_tools.iort.writer import write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class VirtualSmmu:
    """A vSMMU: guest address in bytes, its wired interrupts (GSIVs), whether walks are coherent.

    `httu` is what it gives for hardware updates of flags: IDR0.HTTU, 0 to 2. `page1_in_page0` is
    the register layout of a Cavium CN99xx.
    """

    base: int
    gsivs: frozenset[int] = frozenset()
    coherent: bool = True
    httu: int = 0
    page1_in_page0: bool = False


def dom0_vsmmus(iort: Iort) -> tuple[VirtualSmmu, ...]:
    """One vSMMU a SMMUv3: its base, its GSIVs, coherent where it is; HTTU and quirks of none."""
    return tuple(
        VirtualSmmu(node.base, frozenset(node.gsivs), node.coherent)
        for node in iort.nodes
        if isinstance(node, SmmuV3)
    )


def check_dom0(iort: Iort, vsmmus: Iterable[VirtualSmmu]) -> tuple[Notice, ...]:
    """What the host's table tells dom0 wrongly when it has `vsmmus` for the physical SMMUv3s.

    Empty: the table can stay as it is, byte for byte, with dom0's vMasterIDs the physical
    StreamIDs. Rules DT711 (base) and DT712 (what the node says of the SMMU). SMMUv1/v2 and PMCGs
    stay physical and are not looked at.
    """
    by_base = {one.base: one for one in vsmmus}
    notices = []
    for node in iort.nodes:
        if isinstance(node, SmmuV3):
            vsmmu = by_base.pop(node.base, None)
            if vsmmu is None:
                notices.append(Notice("DT711", node.name, "no vSMMU at its base"))
            else:
                notices += [Notice("DT712", node.name, text) for text in _untrue(node, vsmmu)]
    for base in by_base:
        notices.append(Notice("DT711", f"vSMMU@{base:#x}", "no SMMUv3 of the table is there"))
    return tuple(notices)


def _untrue(node: SmmuV3, vsmmu: VirtualSmmu) -> list[str]:
    wrong = []
    lost = sorted(set(node.gsivs) - vsmmu.gsivs)
    if lost:
        wrong.append(f"the vSMMU does not raise GSIV {', '.join(map(str, lost))}")
    if not node.gsivs:
        wrong.append("the table has no wired interrupt for it; the vSMMU would have to send MSIs")
    if node.coherent and not vsmmu.coherent:
        wrong.append("the table has its walks coherent, the vSMMU has not")
    httu = (node.flags & HTTU) >> 1
    if httu > vsmmu.httu:
        wrong.append(f"the table has HTTU {httu} for it, the vSMMU {vsmmu.httu}")
    if (node.model == CAVIUM) != vsmmu.page1_in_page0:
        wrong.append(f"model {node.model} has its registers of page 1 elsewhere than the vSMMU")
    return wrong


@dataclass(frozen=True, slots=True)
class Component:
    """An assigned device: its host path, its path in the guest's ACPI namespace."""

    path: str
    acpi_path: str
    coherent: bool = False


@dataclass(frozen=True, slots=True)
class PciRoot:
    """A root complex of the guest. `functions`: requester id, SMMU path and pMasterID of each."""

    segment: int
    functions: tuple[tuple[int, str, int], ...]
    coherent: bool = False


def domu_iort(
    bindings: Bindings,
    components: Sequence[Component] = (),
    roots: Sequence[PciRoot] = (),
    *,
    base: int | None = None,
    gsiv: int | None = None,
    coherent: bool = False,
) -> Iort:
    """A domU's table: one SMMUv3, and the masters mapped to their vMasterIDs.

    Base and GSIV are those of `bindings.viommu` unless given. The one interrupt stands for events
    and global errors; there are none for PRI and sync. The IORT has SMMUv3 interrupts edge
    triggered. `coherent` is the vSMMU's table walks.

    Raises:
        Refusal: DT701 a master's stream is not bound, DT702 a vMasterID would be in no mapping,
            DT703 the guest has not one vSMMU.
        UserError: an ACPI path, segment or requester id is of the wrong form or named twice.
        DtbError: a master has more mappings than a node holds.
    """
    viommu = bindings.viommu
    base = viommu.base if base is None and viommu is not None else base
    gsiv = viommu.spi if gsiv is None and viommu is not None else gsiv
    if bindings.viommus:
        reason = "the guest has a vSMMU for each SMMU; the table is written for one"
        raise Refusal("DT703", "/", reason, "give the guest one vSMMU")
    if base is None or gsiv is None:
        raise Refusal("DT703", "/", "the guest has no vSMMU", 'set viommu = "smmuv3"')
    _check_names(components, roots)
    smmu = SmmuV3(revision=5, base=base, flags=COHACC * coherent, event=gsiv, gerr=gsiv)
    nodes: list[Node] = [smmu]
    for one in components:
        rows = [IdMapping(0, 1, vid, 0, single=True) for vid in _ids_of(bindings, one.path)]
        nodes.append(_component(one, tuple(rows), len(nodes)))
    for root in roots:
        nodes.append(_root(bindings, root, len(nodes)))
    used = {m.output_base + n for node in nodes for m in node.mappings for n in range(m.count)}
    for entry in bindings.entries:
        if entry.vmaster_id not in used:
            reason = f"vMasterID {entry.vmaster_id:#x} would be in no mapping of the IORT"
            fix = f"give an ACPI path or a requester id for {', '.join(entry.devices)}"
            raise Refusal("DT702", entry.smmu, reason, fix)
    iort = Iort(tuple(nodes))
    write(iort)
    return iort


def _check_names(components: Sequence[Component], roots: Sequence[PciRoot]) -> None:
    seen: set[object] = set()
    for one in components:
        shown = ascii(one.acpi_path)[1:-1]
        if not one.acpi_path.startswith("\\") or not is_path(one.acpi_path.encode()):
            raise UserError("iort", shown, "not an absolute path of the ACPI namespace")
        if one.acpi_path in seen or one.path in seen:
            raise UserError("iort", shown, f"{one.path} or its ACPI path is named twice")
        seen |= {one.acpi_path, one.path}
    for root in roots:
        if not 0 <= root.segment <= 0xFFFF or root.segment in seen:
            raise UserError("iort", f"pci:{root.segment:04x}", "not a segment, or named twice")
        seen.add(root.segment)
        rids = [rid for rid, _, _ in root.functions]
        if len(set(rids)) != len(rids) or not all(0 <= rid <= 0xFFFF for rid in rids):
            reason = "requester ids are not below 0x10000, or named twice"
            raise UserError("iort", f"pci:{root.segment:04x}", reason)


def _ids_of(bindings: Bindings, path: str) -> list[int]:
    """The vMasterIDs of the device at a host path."""
    found = [entry.vmaster_id for entry in bindings.entries if path in entry.devices]
    if not found:
        fix = "name a device of the guest's dtdev list"
        raise Refusal("DT701", path, "has no vMasterID in this guest", fix)
    return found


def _component(one: Component, rows: tuple[IdMapping, ...], index: int) -> NamedComponent:
    return NamedComponent(
        identifier=index,
        revision=4,
        mappings=rows,
        path=one.acpi_path,
        memory=_memory(one.coherent),
        address_limit=64,
    )


def _memory(coherent: bool) -> Memory:
    return Memory(cca=1, flags=3) if coherent else Memory()


def _root(bindings: Bindings, root: PciRoot, index: int) -> RootComplex:
    rows: list[IdMapping] = []
    for rid, path, sid in sorted(root.functions):
        vid = bindings.vmaster_id(path, sid)
        if vid is None:
            reason = f"StreamID {sid:#x} of requester {rid:#x} has no vMasterID in this guest"
            raise Refusal("DT701", path, reason, "assign the function to the guest")
        last = rows[-1] if rows else None
        if last and last.last + 1 == rid and last.output_base + last.count == vid:
            rows[-1] = IdMapping(last.input_base, last.count + 1, last.output_base, 0)
        else:
            rows.append(IdMapping(rid, 1, vid, 0))
    return RootComplex(
        identifier=index,
        revision=4,
        mappings=tuple(rows),
        segment=root.segment,
        memory=_memory(root.coherent),
        address_limit=64,
    )
