# SPDX-License-Identifier: BSD-2-Clause
"""Rules about a partial tree's registers: xen,path, xen,reg and reg against the host's."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from dt_tools.checks.devices import DT102, DT206
from dt_tools.checks.guests import DT207, address_map
from dt_tools.checks.resources import DT204, DT215
from dt_tools.checks.view import (
    MAX_ITEMS,
    MAX_NAMED,
    covers,
    merge,
    named,
    pages,
    registers,
    text,
    without,
)
from dt_tools.extended import PAGE
from dt_tools.merge_view import odd_count, odd_reg
from dt_tools.profiles import Window
from dt_tools.rules import Diagnosis, Severity, rule
from dt_tools.tree import bus_cells, join_cells, reg_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.checks.pairs import PartialView
    from dt_tools.extended import AddressMap
    from dt_tools.tree import Node

DT203 = rule(
    "DT203",
    "error",
    "xen,path and xen,reg are not together",
    "Xen's dom0less builder refuses the whole domain when a node has one without the other, and"
    " does not say which node.",
    "/passthrough/dma@60020000: has xen,reg but no xen,path",
)
DT218 = rule(
    "DT218",
    "warning",
    "reg has other registers than the host's node, or another order",
    "A driver finds its registers by their place in reg, or in reg-names: at another place it "
    "reads and writes other registers.",
    "/passthrough/ethernet@60010000: reg[0] is reg[1] of /soc/ethernet@60010000",
)

Row = tuple[Window, int]
_CELLS = ((1, 1), (2, 1), (2, 2), (1, 2))


def check(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    """One node of the partial tree, and the host's node that it stands for."""
    yield from _xen(view, node, host)
    yield from _reg(view, node, host)


# xen,path and xen,reg.


def _xen(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    path = node.string("xen,path")
    if path is not None and view.board.tree.node(path) is None:
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
    above = "/" if node.parent is None else node.parent.path
    rows = _xen_rows(node, _enclosing(node))
    if rows is None:
        fact = f"xen,reg has {len(node.props['xen,reg'])} bytes, "
        counts = _enclosing(node)
        if counts is not None:
            fact += f"not <host size guest> in the {counts[0]} + {counts[1]} cells of {above}"
        elif node.parent is not None:
            fact += f"and {odd_count(node.parent)}"
        yield DT206.at(node.path, fact, f"write it in the cells of {above}, 1 or 2 each")
        return
    regs = [] if host is None else _all_registers(view, host)
    hit = any(physical.overlaps(reg) for physical, _ in rows for reg in regs)
    other = None if hit else _other_cells(node, regs)
    if other is not None:
        at, size = _enclosing(node) or (0, 0)
        fact = f"xen,reg is in {other[0]} + {other[1]} cells; {above} has {at} + {size}"
        yield DT206.at(node.path, fact, f"write it in the cells of {above}")
        return
    yield from _hosts(view, node, host, rows)
    if view.given is not None:
        space = address_map(view.given)
        for physical, guest in rows[:MAX_NAMED]:
            yield from _clash(space, node, Window(guest, physical.size), "xen,reg's guest address")
    paged = not any((w.base | w.size | guest) % PAGE for w, guest in rows)
    if host is not None and hit and paged:
        yield from _whole(view, node, host, rows)


def _enclosing(node: Node) -> tuple[int, int] | None:
    return None if node.parent is None else bus_cells(node.parent)


def _other_cells(node: Node, regs: Sequence[Window]) -> tuple[int, int] | None:
    """The cell counts in which every row has registers of the host's node."""
    for counts in _CELLS:
        rows = _xen_rows(node, counts)
        if rows and all(any(w.overlaps(reg) for reg in regs) for w, _ in rows):
            return counts
    return None


def _hosts(
    view: PartialView, node: Node, host: Node | None, rows: Sequence[Row]
) -> Iterator[Diagnosis]:
    """The host's side of xen,reg: whole pages, and those of the node's registers."""
    regs = [] if host is None else _all_registers(view, host)
    whole = merge(pages(reg) for reg in regs)
    by_bus = {} if host is None else _bus_addresses(view, host)
    fix = f"its registers: {named(text(reg) for reg in regs)}"
    for physical, guest in rows:
        if physical.base % PAGE or physical.size % PAGE or guest % PAGE:
            fact = f"xen,reg {text(physical)} at guest {guest:#x} is not whole 4 KiB pages"
            yield DT204.at(node.path, fact, "round it to pages, and look who else is in them")
        elif host is not None and not any(physical.overlaps(reg) for reg in regs):
            fact = f"xen,reg {text(physical)} has no register of {host.path}"
            cpu = by_bus.get(physical.base)
            if cpu is not None:
                fact = f"xen,reg has bus address {physical.base:#x}; its CPU address is {cpu:#x}"
            yield DT206.at(node.path, fact, fix)
        elif host is not None and (more := without(physical, whole)):
            extra = named(text(window) for window in more)
            fact = f"xen,reg {text(physical)} has {extra} beyond the registers of {host.path}"
            yield DT206.at(node.path, fact, fix)


def _whole(view: PartialView, node: Node, host: Node, rows: Sequence[Row]) -> Iterator[Diagnosis]:
    """Whether xen,reg has all of the host's registers, and reg the places it gives them."""
    severity: Severity = "error" if view.given is None else "warning"
    mapped = merge(physical for physical, _ in rows)
    regs = _all_registers(view, host)
    missing = [piece for reg in regs for piece in without(reg, mapped)]
    if missing:
        fact = f"xen,reg lacks {named(text(w) for w in missing)} of {host.path}"
        fix = "give each register its host address, size and guest address"
        yield DT215.at(node.path, fact, fix, severity=severity)
        return
    places = merge(Window(guest, physical.size) for physical, guest in rows)
    for window in guest_windows(view, node):
        if not covers(places, window):
            fact = f"reg {text(window)} is not where xen,reg puts anything"
            fix = f"xen,reg has guest addresses {named(text(w) for w in places)}"
            yield DT206.at(node.path, fact, fix, severity=severity)


def _clash(space: AddressMap, node: Node, window: Window, what: str) -> Iterator[Diagnosis]:
    """DT207, with a free place instead; the place is then taken."""
    clash = space.clash(window) if window.size else None
    if clash is None:
        return
    room = space.place(window.size)
    fix = "the guest has no room of that size"
    if room is not None:
        space.claim(room, node.path)
        fix = f"a free guest address is {room.base:#x}; iomem needs the same @GFN"
        fix += f", {room.base // PAGE:#x}"
    yield DT207.at(node.path, f"{what} {text(window)} {clash}", fix)


def _xen_rows(node: Node, counts: tuple[int, int] | None) -> list[Row] | None:
    """Rows (host window, guest address) in these cells; None when they do not fit."""
    cells = node.cells("xen,reg")
    if cells is None or counts is None or not 1 <= min(counts) <= max(counts) <= 2:
        return None
    at, size = counts
    width = 2 * at + size
    if len(cells) % width:
        return None
    rows = (cells[i : i + width] for i in range(0, min(len(cells), MAX_ITEMS * width), width))
    return [
        (Window(join_cells(r[:at]), join_cells(r[at : at + size])), join_cells(r[at + size :]))
        for r in rows
    ]


def _bus_addresses(view: PartialView, host: Node) -> dict[int, int]:
    """CPU address by bus address, where they differ."""
    pairs = zip(reg_entries(host) or (), view.board.platform.reg_of(host) or (), strict=False)
    return {bus: reg.cpu_base for (bus, _), reg in pairs if bus != reg.cpu_base}


def _registers(view: PartialView, host: Node) -> list[Window]:
    """The host node's registers, as many as are looked at."""
    return registers(view.board, host)[:MAX_ITEMS]


def _all_registers(view: PartialView, host: Node) -> list[Window]:
    """Registers of the host node and of what is below it: its xen,reg has both."""
    nodes = islice(host.walk(), MAX_ITEMS)
    return [reg for node in nodes for reg in registers(view.board, node)][:MAX_ITEMS]


# reg.


def _reg(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    if "reg" not in node.props or node.parent is None or not _on_a_bus(node):
        return
    if reg_entries(node) is None:
        fix = f"write it in the cells of {node.parent.path}"
        fix = fix if odd_count(node.parent) is None else "write 1 or 2 there"
        yield DT206.at(node.path, odd_reg(node), fix)
        return
    if host is None:
        return
    windows = guest_windows(view, node)
    yield from _places(view, node, host, windows)
    if view.given is None:
        return
    if view.given.iomem:
        yield from _mapped(view, node, host, windows)
        return
    space = address_map(view.given)
    for window in windows[:MAX_NAMED]:
        yield from _clash(space, node, window, "reg")


def guest_windows(view: PartialView, node: Node) -> list[Window]:
    """The node's registers at guest addresses, in order; empty when they have none."""
    if "reg" not in node.props or not _on_a_bus(node):
        return []
    found = (view.platform.reg_of(node) or ())[:MAX_ITEMS]
    return [Window(r.cpu_base, r.size) for r in found if r.size]


def _places(
    view: PartialView, node: Node, host: Node, windows: Sequence[Window]
) -> Iterator[Diagnosis]:
    """Which of the host's registers stands at which place of reg."""
    regs = _registers(view, host)
    found = [_index(regs, host_address(view, node, window)) for window in windows]
    wanted = _wanted(node, host, len(windows))
    for at, (index, right) in enumerate(zip(found, wanted, strict=False)):
        if index is not None and right is not None and index != right:
            fact = f"reg[{at}] is reg[{index}] of {host.path}"
            fix = f"keep the host's order: {named(text(reg) for reg in regs)}"
            yield DT218.at(node.path, fact, fix)
            return
    missing = [reg for i, reg in enumerate(regs) if i not in found]
    if found and None not in found and missing:
        fact = f"reg lacks {named(text(reg) for reg in missing)} of {host.path}"
        yield DT218.at(node.path, fact, "describe all registers, in the host's order")


def _wanted(node: Node, host: Node, count: int) -> list[int | None]:
    """For each entry of reg the host's that belongs there: by reg-names, else by place."""
    ours, theirs = node.strings("reg-names"), host.strings("reg-names")
    if not ours or not theirs:
        return list(range(count))
    return [theirs.index(name) if name in theirs else None for name in ours[:count]]


def _index(regs: Sequence[Window], address: int) -> int | None:
    return next((i for i, reg in enumerate(regs) if reg.base <= address < reg.end), None)


def host_address(view: PartialView, node: Node, window: Window) -> int:
    """The host's address of a guest's register: by iomem, by xen,reg for dom0less, or 1:1."""
    rows: Sequence[tuple[Window, Window]] = ()
    if view.given is not None:
        rows = view.given.iomem
    elif "xen,reg" in node.props:
        found = _xen_rows(node, _enclosing(node)) or ()
        rows = [(physical, Window(guest, physical.size)) for physical, guest in found]
    for physical, guest in rows:
        if guest.base <= window.base < guest.end:
            return window.base - guest.base + physical.base
    return window.base


def _on_a_bus(node: Node) -> bool:
    """Whether the node's reg is an address of the guest: every node above is a bus with ranges."""
    return all(p.parent is None or "ranges" in p.props for p in node.ancestors())


def _mapped(
    view: PartialView, node: Node, host: Node, windows: Sequence[Window]
) -> Iterator[Diagnosis]:
    """The guest's registers have to be where iomem maps the host's."""
    assert view.given is not None
    guests = merge(guest for _, guest in view.given.iomem)
    regs = merge(_registers(view, host))
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
