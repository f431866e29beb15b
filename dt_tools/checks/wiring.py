# SPDX-License-Identifier: BSD-2-Clause
"""Rules about a partial tree's interrupts: whose they are, their triggers and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.checks.devices import DT302
from dt_tools.checks.resources import DT301
from dt_tools.checks.view import listed, named, numbers
from dt_tools.merge_view import lost_parent
from dt_tools.rules import Diagnosis, rule
from dt_tools.tree import cell_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.checks.pairs import PartialView
    from dt_tools.tree import Cells, Node

DT308 = rule(
    "DT308",
    "error",
    "an interrupt has another trigger or place than the host's",
    "Taken for the wrong trigger an interrupt is lost, or never ends; a driver that finds its "
    "interrupts by their place, or in interrupt-names, serves another one.",
    "/passthrough/dma@60020000: flags are not the host's: 136 (0x1, not 0x4)",
)

_GIC_CELLS = 3
_TRIGGER = 0xF


def check(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    """One node of the partial tree, and the host's node that it stands for."""
    found = _specifiers(view, node)
    if isinstance(found, str):
        fix = f"write <0 SPI flags> under the guest's GIC, phandle {view.profile.gic_phandle}"
        yield DT302.at(node.path, found, fix, severity="error")
        return
    spis = {row[1] + 32 for row in found if row[0] == 0}
    if host is None:
        yield from _without_host(view, node, spis)
        return
    odd = [(i, row) for i, row in enumerate(found) if row[0]]
    for at, row in odd[:1]:
        what = "a PPI" if row[0] == 1 else "no interrupt type of the GIC"
        cells = " ".join(f"{cell:#x}" for cell in row)
        fact = f"interrupt {at} <{cells}> is {what}; a device has SPIs"
        yield DT302.at(node.path, fact, "copy the host node's interrupts", severity="error")
    theirs = {i.number for i in view.board.platform.interrupts_of(host) if i.kind == "SPI"}
    if spis and theirs - spis:
        fact = f"lacks interrupts {numbers(theirs - spis)} (SPI + 32) of {host.path}"
        yield DT301.at(node.path, fact, "copy the host node's interrupts", severity="warning")
    if spis - theirs:
        fact = f"has interrupts {numbers(spis - theirs)} (SPI + 32), which {host.path} has not"
        yield DT301.at(node.path, fact, "copy the host node's interrupts")
    yield from _flags(view, node, host, found)
    if not odd:
        yield from _order(view, node, host, [row[1] + 32 for row in found])


def _without_host(view: PartialView, node: Node, spis: set[int]) -> Iterator[Diagnosis]:
    """Those of a device's node are the device's, which irqs is checked against."""
    if view.given is None or "xen,path" in node.props:
        return
    missing = spis - set(view.given.config.irqs)
    if missing:
        fact = f"has interrupts {numbers(missing)} (SPI + 32), which irqs does not have"
        yield DT301.at(node.path, fact, f"add {listed(missing)} to irqs")


def _flags(
    view: PartialView, node: Node, host: Node, found: Sequence[Cells]
) -> Iterator[Diagnosis]:
    theirs = {
        i.number: i.flags & _TRIGGER
        for i in view.board.platform.interrupts_of(host)
        if i.kind == "SPI"
    }
    wrong = [
        f"{row[1] + 32} ({row[2] & _TRIGGER:#x}, not {right:#x})"
        for row in found
        if row[0] == 0
        and (right := theirs.get(row[1] + 32)) is not None
        and right != row[2] & _TRIGGER
    ]
    if wrong:
        fact = f"flags are not the host's: {named(wrong)}"
        yield DT308.at(node.path, fact, f"copy the interrupts of {host.path}")


def _order(view: PartialView, node: Node, host: Node, ours: Sequence[int]) -> Iterator[Diagnosis]:
    all_theirs = [i.number for i in view.board.platform.interrupts_of(host)]
    names, their_names = node.strings("interrupt-names"), host.strings("interrupt-names")
    if names and their_names:
        right = dict(zip(their_names, all_theirs, strict=False))
        for name, number in zip(names, ours, strict=False):
            if right.get(name, number) not in (number, 0):
                fact = f'interrupt "{name}" is {number}, the host\'s is {right[name]}'
                yield DT308.at(node.path, fact, f"copy interrupts and names of {host.path}")
                return
        return
    known, had = set(all_theirs), set(ours)
    common = [n for n in dict.fromkeys(ours) if n in known]
    order = [n for n in dict.fromkeys(all_theirs) if n in had]
    if common != order:
        fact = f"interrupts are {named(map(str, common))}; the host has {named(map(str, order))}"
        yield DT308.at(node.path, fact, "keep the host's order", severity="warning")


def _specifiers(view: PartialView, node: Node) -> list[Cells] | str:
    """The node's specifiers of the guest's GIC, or what is wrong with them."""
    if "interrupts-extended" in node.props:
        return _extended(view, node.cells("interrupts-extended"))
    if "interrupts" not in node.props:
        return []
    phandle = _parent(node)
    if phandle in view.copied:
        return []
    if phandle is not None and not _is_gic(view, phandle):
        made = {} if view.given is None else view.made
        return lost_parent(phandle, made, view.defined, view.board.phandles)
    cells = node.cells("interrupts")
    if cells is None or len(cells) % _GIC_CELLS:
        size = len(node.props["interrupts"])
        return f"interrupts has {size} bytes, not the GIC's specifiers of 3 cells"
    return [cells[i : i + _GIC_CELLS] for i in range(0, len(cells), _GIC_CELLS)]


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


def _extended(view: PartialView, cells: Cells | None) -> list[Cells] | str:
    if cells is None:
        return "interrupts-extended is not a whole number of cells"
    found: list[Cells] = []
    at = 0
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
        if gic:
            found.append(cells[at + 1 : at + 1 + count])
        at += 1 + count
    return found
