# SPDX-License-Identifier: BSD-2-Clause
"""Who has which interrupts and which register pages of a board."""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.addresses import PAGE
from dt_tools.report.streams import overlaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dt_tools.platform import Interrupt, Platform
    from dt_tools.tree import Node

# A run of shared pages names so many devices at most, a register range so many neighbours.
MAX_OWNERS = 16
INTERRUPT_PROPERTIES = ("interrupts-extended", "interrupts")


class Owner(NamedTuple):
    """A node that has an interrupt.

    `name` is of `interrupt-names`, `flags` the trigger cell; `via` is the property that gives it:
    `interrupts`, or `interrupt-map` of a bus for what sits on it.
    """

    path: str
    name: str | None
    flags: int
    via: str


class Line(NamedTuple):
    """An interrupt of the GIC: its id (the first SPI is 32) and the nodes that have it."""

    number: int
    owners: tuple[Owner, ...]


class Elsewhere(NamedTuple):
    """The interrupts that go to a controller other than the GIC (None: cannot be resolved)."""

    controller: str | None
    kind: str
    reason: str
    interrupts: int
    nodes: tuple[str, ...]


class InterruptMap(NamedTuple):
    """All interrupts of a board, SPIs and PPIs by ascending number."""

    spis: tuple[Line, ...]
    ppis: tuple[Line, ...]
    elsewhere: tuple[Elsewhere, ...]


class Region(NamedTuple):
    """A register range at its CPU address; `shares` are devices with registers in its pages."""

    base: int
    size: int
    path: str
    shares: tuple[str, ...]


class SharedPages(NamedTuple):
    """The pages from address `first` to `last` inclusive, with registers of all of `paths`.

    A plain bus is no owner. `nested`: all lie inside the first one, so they go along with it.
    """

    first: int
    last: int
    paths: tuple[str, ...]
    nested: bool


class PageMap(NamedTuple):
    """The CPU's address space: registers by ascending address, shared pages, memory.

    `untranslated` are nodes on buses with addresses and sizes whose `reg` has no CPU address.
    `memory` is (base, size, path, what), `what` being `memory` or `reserved`.
    """

    regions: tuple[Region, ...]
    shared: tuple[SharedPages, ...]
    untranslated: tuple[str, ...]
    memory: tuple[tuple[int, int, str, str], ...]


def interrupts_by_node(platform: Platform) -> dict[Node, tuple[Interrupt, ...]]:
    """The interrupts of every node that has some, in tree order.

    Raises:
        DtbError: the tree asks for more work than the platform's limit.
    """
    return {
        node: platform.interrupts_of(node)
        for node in platform.tree.walk()
        if any(name in node.props for name in INTERRUPT_PROPERTIES)
    }


def interrupt_map(
    found: Mapping[Node, tuple[Interrupt, ...]], routed: Mapping[Node, tuple[Interrupt, ...]]
) -> InterruptMap:
    """Who has which interrupt.

    `found` is what `interrupts_by_node` returned; `routed` has what the interrupt-map of a bus
    does with the interrupts of the functions that will be found on it.
    """
    lines: dict[str, dict[int, list[Owner]]] = {"SPI": {}, "PPI": {}}
    others: dict[tuple[str | None, str, str], tuple[int, dict[str, None]]] = {}
    own = ((node, "interrupts", interrupts) for node, interrupts in found.items())
    mapped = ((node, "interrupt-map", interrupts) for node, interrupts in routed.items())
    for node, via, interrupts in chain(own, mapped):
        names = (node.strings("interrupt-names") or ()) if via == "interrupts" else ()
        path = node.path
        for at, one in enumerate(interrupts):
            name = names[at] if at < len(names) else None
            if one.kind in lines:
                owner = Owner(path, name, one.flags, via)
                lines[one.kind].setdefault(one.number, []).append(owner)
                continue
            key = (one.controller_path, one.kind, one.reason or "")
            count, nodes = others.get(key, (0, {}))
            nodes.setdefault(path)
            others[key] = (count + 1, nodes)
    elsewhere = (Elsewhere(*key, count, tuple(nodes)) for key, (count, nodes) in others.items())
    return InterruptMap(_lines(lines["SPI"]), _lines(lines["PPI"]), tuple(elsewhere))


def _lines(found: dict[int, list[Owner]]) -> tuple[Line, ...]:
    return tuple(Line(n, tuple(dict.fromkeys(owners))) for n, owners in sorted(found.items()))


def page_map(platform: Platform) -> PageMap:
    """Who has which registers and pages.

    Raises:
        DtbError: the tree asks for more work than the platform's limit.
    """
    found: list[tuple[int, int, str]] = []
    memory: list[tuple[int, int, str, str]] = []
    untranslated: list[str] = []
    buses: set[str] = set()
    for node in platform.tree.walk():
        if "reg" not in node.props:
            continue
        path = node.path
        regs = platform.reg_of(node)
        if regs is None:
            if node.parent is not None and "ranges" in node.parent.props:
                untranslated.append(path)
            continue
        what = _memory_kind(node, path)
        if what is not None:
            memory += [(reg.cpu_base, reg.size, path, what) for reg in regs]
            continue
        found += [(reg.cpu_base, reg.size, path) for reg in regs]
        if regs and {"simple-bus", "simple-pm-bus"}.intersection(node.strings("compatible") or ()):
            buses.add(path)
    found.sort()
    shared = tuple(_shared_pages(found, buses))
    return PageMap(
        tuple(_regions(found, shared)), shared, tuple(untranslated), tuple(sorted(memory))
    )


def _memory_kind(node: Node, path: str) -> str | None:
    if path.startswith("/reserved-memory/"):
        return "reserved"
    return "memory" if node.string("device_type") == "memory" else None


def _shared_pages(found: Iterable[tuple[int, int, str]], buses: set[str]) -> Iterator[SharedPages]:
    spans = [
        (base // PAGE, (base + max(size, 1) - 1) // PAGE + 1, path)
        for base, size, path in found
        if path not in buses
    ]
    for first, last, paths in overlaps(spans):
        nested = all(path.startswith(f"{paths[0]}/") for path in paths[1:])
        yield SharedPages(first * PAGE, (last + 1) * PAGE - 1, paths[:MAX_OWNERS], nested)


def _regions(
    found: Iterable[tuple[int, int, str]], shared: Sequence[SharedPages]
) -> Iterator[Region]:
    starts = [run.first for run in shared]
    for base, size, path in found:
        shares: dict[str, None] = {}
        start, end = base // PAGE * PAGE, base + max(size, 1)
        at = max(bisect_right(starts, start) - 1, 0)
        for run in shared[at : at + MAX_OWNERS]:
            if run.first < end and run.last >= start and path in run.paths:
                shares.update(dict.fromkeys(run.paths))
        shares.pop(path, None)
        yield Region(base, size, path, tuple(shares)[:MAX_OWNERS])
