# SPDX-License-Identifier: BSD-2-Clause
"""Rules about a partial tree's devices: addresses, interrupts, streams, coherence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.checks.board import DT405, DT505
from dt_tools.checks.devices import DT102, DT206, DT302
from dt_tools.checks.guests import DT201, DT207, DT208, VITAL, address_map
from dt_tools.checks.resources import DT204, DT301
from dt_tools.checks.rules import Diagnosis, Severity, rule
from dt_tools.checks.streams import DT508
from dt_tools.checks.view import covers, listed, merge, named, numbers, registers, text
from dt_tools.extended import PAGE
from dt_tools.profiles import Window
from dt_tools.tree import bus_cells, cell_count, join_cells, reg_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.checks.pairs import PartialView
    from dt_tools.platform import Stream
    from dt_tools.tree import Cells, Node

DT203 = rule(
    "DT203",
    "error",
    "xen,path and xen,reg are not together",
    "Xen's dom0less builder refuses the whole domain when a node has one without the other, and"
    " does not say which node.",
    "/passthrough/dma@60020000: has xen,reg but no xen,path",
)
DT501 = rule(
    "DT501",
    "error",
    "iommus says another stream than the host's node",
    "With a wrong StreamID, or the right one of another SMMU, the device's DMA is refused by "
    "the SMMU, or another device's is let through.",
    "/passthrough/crypto@61000000: iommus says (/soc/iommu@50000000, 0x600), the host's "
    "/soc/crypto@61000000 has (/soc/iommu@51000000, 0x600)",
)
DT504 = rule(
    "DT504",
    "error",
    "iommus is cut short or in another order",
    "DMA on a stream that is left out faults; drivers that pick a stream by its place in the "
    "list pick another one.",
    "/passthrough/display@60030000: has streams 0, 1 of 5: missing 0x2, 0x3, 0x8",
)

_GIC_CELLS = 3


def check(view: PartialView) -> Iterator[Diagnosis]:
    """Each node of the partial tree."""
    for node in view.nodes:
        host = view.hosts.get(node)
        yield from _xen(view, node, host)
        yield from _reg(view, node, host)
        yield from _iommus(view, node, host)
        yield from _interrupts(view, node, host)
        if host is not None:
            yield from _coherence(view, node, host)
            yield from _lacking(node, host)


# xen,path and xen,reg.


def _xen(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    path = node.string("xen,path")
    if path is not None and host is None:
        nearest = view.board.nearest(path)
        fix = f"nearest: {nearest}" if nearest else "give a path of the host tree"
        yield DT102.at(node.path, f"xen,path {path}: no such node in the host tree", fix)
    if "xen,reg" in node.props and path is None:
        fix = "name the host's node in xen,path"
        yield DT203.at(node.path, "has xen,reg but no xen,path", fix)
    elif path is not None and "xen,reg" not in node.props:
        # libxl reads neither; the builder here takes xen,path as a hint.
        severity: Severity = "error" if view.given is None else "note"
        fix = "give each register's host address, size and guest address in xen,reg"
        if host is None or "reg" in host.props:
            yield DT203.at(node.path, "has xen,path but no xen,reg", fix, severity=severity)
    if "xen,reg" in node.props:
        yield from _xen_reg(view, node, host)


def _xen_reg(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    rows = _xen_rows(node)
    if rows is None:
        size = len(node.props["xen,reg"])
        fact = f"xen,reg has {size} bytes, not <host size guest> in the enclosing cells"
        yield DT206.at(node.path, fact, "write it in the cells of the node above, 1 or 2 each")
        return
    regs = [] if host is None else registers(view.board, host)
    whole = merge(regs)
    by_bus = {} if host is None else _bus_addresses(view, host)
    for physical, guest in rows:
        if physical.base % PAGE or physical.size % PAGE or guest % PAGE:
            fact = f"xen,reg {text(physical)} at guest {guest:#x} is not whole 4 KiB pages"
            yield DT204.at(node.path, fact, "round it to pages, and look who else is in them")
        elif host is not None and not any(physical.overlaps(reg) for reg in whole):
            fact = f"xen,reg {text(physical)} has no register of {host.path}"
            cpu = by_bus.get(physical.base)
            if cpu is not None:
                fact = f"xen,reg has bus address {physical.base:#x}; its CPU address is {cpu:#x}"
            fix = f"its registers: {named(text(reg) for reg in regs)}"
            yield DT206.at(node.path, fact, fix)


def _xen_rows(node: Node) -> list[tuple[Window, int]] | None:
    """Rows (host window, guest address); None when they do not fit the enclosing cells."""
    cells = node.cells("xen,reg")
    counts = None if node.parent is None else bus_cells(node.parent)
    if cells is None or counts is None or not 1 <= min(counts) <= max(counts) <= 2:
        return None
    at, size = counts
    width = 2 * at + size
    if len(cells) % width:
        return None
    rows = (cells[i : i + width] for i in range(0, len(cells), width))
    return [
        (Window(join_cells(r[:at]), join_cells(r[at : at + size])), join_cells(r[at + size :]))
        for r in rows
    ]


def _bus_addresses(view: PartialView, host: Node) -> dict[int, int]:
    """CPU address by bus address, where they differ."""
    pairs = zip(reg_entries(host) or (), view.board.platform.reg_of(host) or (), strict=False)
    return {bus: reg.cpu_base for (bus, _), reg in pairs if bus != reg.cpu_base}


# reg.


def _reg(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    if "reg" not in node.props or node.parent is None or not _on_a_bus(node):
        return
    if reg_entries(node) is None:
        counts = bus_cells(node.parent) or (0, 0)
        size = len(node.props["reg"])
        fact = f"reg has {size} bytes, not entries of {counts[0]} + {counts[1]} cells"
        yield DT206.at(node.path, fact, f"write it in the cells of {node.parent.path}")
        return
    if view.given is None or host is None:
        return
    windows = [Window(r.cpu_base, r.size) for r in view.platform.reg_of(node) or () if r.size]
    if view.given.iomem:
        yield from _mapped(view, node, host, windows)
        return
    space = address_map(view.given)
    for window in windows:
        clash = space.clash(window)
        if clash is not None:
            fact = f"reg {text(window)} {clash}"
            yield DT207.at(node.path, fact, "give it a free guest address, and iomem the same @GFN")


def _on_a_bus(node: Node) -> bool:
    """Whether the node's reg is an address of the guest: every node above is a bus with ranges."""
    return all(p.parent is None or "ranges" in p.props for p in node.ancestors())


def _mapped(
    view: PartialView, node: Node, host: Node, windows: Sequence[Window]
) -> Iterator[Diagnosis]:
    """The guest's registers have to be where iomem maps the host's."""
    assert view.given is not None
    guests = merge(guest for _, guest in view.given.iomem)
    regs = merge(registers(view.board, host))
    for window in windows:
        if not covers(guests, window):
            fact = f"reg {text(window)} is not where iomem maps anything"
            fix = f"iomem has guest addresses {named(text(w) for w in guests)}"
            yield DT206.at(node.path, fact, fix)
            continue
        for physical, guest in view.given.iomem:
            if guest.base <= window.base < guest.end:
                at = window.base - guest.base + physical.base
                if not any(reg.base <= at < reg.end for reg in regs):
                    fact = (
                        f"reg {text(window)} is host {at:#x} by iomem, no register of {host.path}"
                    )
                    fix = f"its registers: {named(text(reg) for reg in regs)}"
                    yield DT206.at(node.path, fact, fix)
                break


# iommus.


def _iommus(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    if "iommu-map" in node.props:
        fact = "has an iommu-map, which is not rewritten for a guest"
        yield DT505.at(node.path, fact, "assign devices with iommus")
    if "iommus" not in node.props:
        yield from _streams(view, node, host, ())
        return
    if view.given is not None and not view.given.viommu:
        fact = 'has iommus, but viommu = "none": the guest has no SMMU for it'
        yield DT508.at(node.path, fact, 'set viommu = "smmuv3", or drop iommus')
    cells = node.cells("iommus")
    if not cells or len(cells) % 2:
        fact = f"iommus has {len(node.props['iommus'])} bytes, not pairs of cells"
        yield DT405.at(node.path, fact, "write <phandle StreamID> pairs as the host has them")
        return
    pairs = list(zip(cells[::2], cells[1::2], strict=True))
    if all(phandle in view.copied for phandle, _ in pairs):
        return  # an IOMMU of the partial tree's own
    yield from _streams(view, node, host, pairs)


def _streams(
    view: PartialView, node: Node, host: Node | None, pairs: Sequence[tuple[int, int]]
) -> Iterator[Diagnosis]:
    master = None if host is None else view.board.masters.get(host.path)
    if master is None or not master.streams:
        # Without a guest it is not known whose the node is; its SMMU has to be the host's.
        known = view.given is None and all(p in view.board.smmu_phandles for p, _ in pairs)
        if pairs and not known:
            fact = f"iommus <{pairs[0][0]:#x} {pairs[0][1]:#x}>: no host device is known for it"
            fix = "name the node like its host node, or give xen,path, and list it in dtdev"
            yield DT501.at(node.path, fact, fix)
        return
    streams = master.streams
    found: list[int] = []
    for phandle, stream_id in pairs:
        smmu = None if phandle in view.copied else view.board.smmu_phandles.get(phandle)
        at = _index(streams, smmu, stream_id)
        if at is None:
            said = f"({smmu or f'unknown SMMU <{phandle:#x}>'}, {stream_id:#x})"
            has = named(f"({s.smmu_path}, {s.stream_id:#x})" for s in streams)
            fact = f"iommus says {said}, the host's {master.path} has {has}"
            yield DT501.at(node.path, fact, "copy the host node's iommus unchanged")
            return
        found.append(at)
    missing = [s for i, s in enumerate(streams) if i not in set(found)]
    if missing and (pairs or (view.given is not None and view.given.viommu)):
        ids = named(f"{s.stream_id:#x}" for s in missing)
        fact = (
            f"has {len(set(found))} of the {len(streams)} streams of {master.path}: missing {ids}"
        )
        severity: Severity = "error" if found else "warning"
        fix = "copy the host node's iommus unchanged"
        yield DT504.at(node.path, fact, fix, severity=severity)
    elif found != sorted(found):
        fact = f"has the streams of {master.path} in another order"
        yield DT504.at(node.path, fact, "keep the host's order", severity="note")


def _index(streams: Sequence[Stream], smmu: str | None, stream_id: int) -> int | None:
    """Which of the host's streams an entry is; without a known SMMU only if that is clear."""
    fits = [i for i, s in enumerate(streams) if s.stream_id == stream_id]
    exact = [i for i in fits if streams[i].smmu_path == smmu]
    if exact:
        return exact[0]
    one = len({streams[i].smmu_path for i in fits}) == 1
    return fits[0] if smmu is None and one else None


# Interrupts.


def _interrupts(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    found = _spis(view, node)
    if isinstance(found, str):
        fix = f"write <0 SPI flags> under the guest's GIC, phandle {view.profile.gic_phandle}"
        yield DT302.at(node.path, found, fix, severity="error")
        return
    spis, given = set(found), view.given
    if host is None:
        # Those of a device's node are the device's, which irqs is checked against.
        missing = spis - set(given.config.irqs) if given is not None else ()
        if missing:
            fact = f"has interrupts {numbers(missing)} (SPI + 32), which irqs does not have"
            yield DT301.at(node.path, fact, f"add {listed(missing)} to irqs")
        return
    theirs = {i.number for i in view.board.platform.interrupts_of(host) if i.kind == "SPI"}
    if spis and theirs - spis:
        fact = f"lacks interrupts {numbers(theirs - spis)} (SPI + 32) of {host.path}"
        yield DT301.at(node.path, fact, "copy the host node's interrupts", severity="warning")
    if spis - theirs:
        fact = f"has interrupts {numbers(spis - theirs)} (SPI + 32), which {host.path} has not"
        yield DT301.at(node.path, fact, "copy the host node's interrupts")


def _spis(view: PartialView, node: Node) -> list[int] | str:
    """GIC ids of the node's SPIs of the guest's GIC, or what is wrong with them."""
    if "interrupts-extended" in node.props:
        return _extended(view, node.cells("interrupts-extended"))
    if "interrupts" not in node.props:
        return []
    phandle = _parent(node)
    if phandle in view.copied:
        return []
    if not _is_gic(view, phandle):
        what = "no node of the partial tree"
        if phandle in view.board.phandles:
            what = f"{view.board.phandles[phandle].path} of the host tree"
        return f"interrupt-parent <{phandle:#x}> is {what}"
    cells = node.cells("interrupts")
    if cells is None or len(cells) % _GIC_CELLS:
        size = len(node.props["interrupts"])
        return f"interrupts has {size} bytes, not the GIC's specifiers of 3 cells"
    rows = [cells[i : i + _GIC_CELLS] for i in range(0, len(cells), _GIC_CELLS)]
    return [row[1] + 32 for row in rows if row[0] == 0]


def _parent(node: Node) -> int | None:
    """The nearest interrupt-parent; None for the root's, which is the guest's GIC."""
    for one in (node, *node.ancestors()):
        if one.parent is not None and "interrupt-parent" in one.props:
            return one.u32("interrupt-parent") or 0
    return None


def _is_gic(view: PartialView, phandle: int | None) -> bool:
    """The guest's GIC, or the /gic that stands for it in a dom0less partial tree."""
    gic = view.tree.root.children.get("gic")
    ours = (None, view.profile.gic_phandle, None if gic is None else gic.phandle)
    return phandle in ours


def _extended(view: PartialView, cells: Cells | None) -> list[int] | str:
    if cells is None:
        return "interrupts-extended is not a whole number of cells"
    spis, at = [], 0
    while at < len(cells):
        phandle, count = cells[at], _GIC_CELLS
        gic = _is_gic(view, phandle)
        if not gic:
            own = view.defined[phandle] if phandle in view.copied else None
            width = None if own is None else cell_count(own, "#interrupt-cells")
            if width is None:
                return f"interrupts-extended: <{phandle:#x}> is no controller in the guest"
            count = width
        if at + 1 + count > len(cells):
            return "interrupts-extended ends within an entry"
        if gic and cells[at + 1] == 0:
            spis.append(cells[at + 2] + 32)
        at += 1 + count
    return spis


# Coherence.


def _coherence(view: PartialView, node: Node, host: Node) -> Iterator[Diagnosis]:
    ours, theirs = _is_coherent(node), _is_coherent(host)
    if not ours and theirs and host.path in view.board.masters:
        fact = f"is not dma-coherent, and {host.path} is"
        yield DT208.at(node.path, fact, "add dma-coherent", severity="warning")
    elif ours and not theirs:
        fact = f"is dma-coherent, and {host.path} is not"
        yield DT208.at(node.path, fact, "take dma-coherent out")


def _lacking(node: Node, host: Node) -> Iterator[Diagnosis]:
    lacking = [name for name in VITAL if host.props.get(name) and name not in node.props]
    if lacking:
        fact = f"has no {', '.join(lacking)}, and {host.path} has"
        fix = "put stand-ins such as a fixed-clock into /passthrough if the driver needs them"
        yield DT201.at(node.path, fact, fix, severity="note")
    if "memory-region" in host.props and "memory-region" not in node.props:
        fact = f"has no memory-region, and {host.path} has"
        fix = "the device has to work without reserved memory"
        yield DT208.at(node.path, fact, fix, severity="warning")


def _is_coherent(node: Node) -> bool:
    for one in (node, *node.ancestors()):
        if "dma-noncoherent" in one.props:
            return False
        if "dma-coherent" in one.props:
            return True
    return False
