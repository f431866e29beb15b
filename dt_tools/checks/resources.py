# SPDX-License-Identifier: BSD-2-Clause
"""Rules about registers and interrupts: iomem and irqs against what the devices have."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dt_tools.checks.devices import DT205, DT206
from dt_tools.checks.references import control_block
from dt_tools.checks.view import (
    MAX_ITEMS,
    MAX_NAMED,
    Given,
    covers,
    frames,
    holding,
    listed,
    merge,
    named,
    numbers,
    overlaps,
    pages,
    registers,
    text,
    without,
)
from dt_tools.extended import PAGE
from dt_tools.platform import status_of
from dt_tools.rules import Diagnosis, Severity, rule
from dt_tools.tree import reg_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.checks.view import Board
    from dt_tools.profiles import Window
    from dt_tools.tree import Node

DT202 = rule(
    "DT202",
    "error",
    "registers without a CPU address",
    "A reg that does not translate through every ranges up to the root cannot be mapped for a "
    "guest.",
    "/soc/dsp@100/context@1: its reg is not CPU addressable (bus address, ranges or size)",
)
DT204 = rule(
    "DT204",
    "error",
    "registers are not whole 4 KiB pages",
    "Xen maps pages. dom0less refuses an xen,reg that is not page aligned; iomem has to name "
    "the whole pages, and the guest then also has what else is in them.",
    "/soc/ethernet@10830000: 0x10830000+0x3500 needs pages 0x10830,0x4 (0x4000); neighbours in "
    "the pages: none",
)
DT215 = rule(
    "DT215",
    "error",
    "iomem, or xen,reg, lacks registers of an assigned device",
    "The guest's driver faults at its first access.",
    "/soc/ethernet@60010000: iomem lacks 0x60018000+0x1000",
)
DT216 = rule(
    "DT216",
    "error",
    "iomem maps what no guest may have",
    "RAM of the host, its interrupt controller or an SMMU in a guest's hands ends all isolation.",
    "/soc/iommu@50000000: iomem maps 0x50000000+0x20000, registers of an SMMU",
)
DT209 = rule(
    "DT209",
    "error",
    "a shared control block is given to a guest",
    "Clock, reset, power and system controllers serve many devices. A guest that has one can "
    "stop the host's devices, or the host.",
    "/soc/sysmgr@10d12000: iomem maps 0x10d12000+0x1000, shared (system control): 3 nodes name it",
)
DT111 = rule(
    "DT111",
    "warning",
    "iomem maps a device that is not in dtdev",
    "Its registers are the guest's, its DMA is not contained: without dtdev no SMMU stream is "
    "assigned, and dom0 may drive the device as well.",
    "/soc/spi@108d2000: iomem maps 0x108d2000+0x1000; dtdev does not name it",
)
DT301 = rule(
    "DT301",
    "error",
    "irqs are not the interrupts of the devices",
    "A queue whose interrupt is missing stalls; one that is another device's takes it from its "
    "owner. irqs counts from the GIC's id: SPI n is n + 32.",
    "/soc/ethernet@10830000: has SPIs 256..272 (17), irqs has 16 of them: missing 266",
)
DT303 = rule(
    "DT303",
    "error",
    "irqs has a number that cannot be routed",
    "Below 32 are interrupts of a CPU; the guest's own devices (vSMMU, pl011, virtio) have "
    "fixed SPIs.",
    "/: irq 33 is the vSMMU's SPI in the guest",
)
DT307 = rule(
    "DT307",
    "warning",
    "an interrupt has two owners",
    "Xen routes an interrupt to one domain: the other one's device never interrupts.",
    "/soc/dma@60020000: interrupt 104 is /soc/timer@60021000's too",
)

_MAX_SPI = 991


def check(board: Board, given: Given, others: Sequence[Given]) -> Iterator[Diagnosis]:
    """The guest's iomem and irqs against the board and the other guests."""
    for node in given.devices:
        yield from _device(board, given, node)
    yield from _mapped(board, given)
    yield from _both_map(given, others)
    yield from _irqs(board, given)
    yield from _both_route(given, others)


# Registers.


def _device(board: Board, given: Given, node: Node) -> Iterator[Diagnosis]:
    regs = board.platform.reg_of(node)
    key = "iomem" if given.iomem else "dtdev"
    if "reg" in node.props and (not regs or any(not reg.size for reg in regs)):
        fact = "its reg is not CPU addressable (bus address, ranges or size)"
        fix = "assign a device whose reg translates to CPU addresses through every ranges"
        yield DT202.at(node.path, fact, fix, key=key)
        return
    found = board.platform.page_neighbours(node, len(given.theirs) + MAX_NAMED + 1)
    neighbours = [path for path in found if board.tree.node(path) not in given.theirs]
    windows = registers(board, node)
    for window in windows:
        if window.base % PAGE or window.size % PAGE:
            whole = pages(window)
            fact = (
                f"{text(window)} needs pages {frames(whole)} ({whole.size:#x}); "
                f"neighbours in the pages: {named(neighbours)}"
            )
            fix = f"map the whole pages, {frames(whole)}"
            yield DT204.at(node.path, fact, fix, severity="note", key=key)
    if neighbours:
        fact = f"shares a 4 KiB page of registers with {named(neighbours)}"
        yield DT205.at(node.path, fact, _together(board, neighbours), key=key)
    if given.by_hand:
        yield from _covered(given, node, windows)


def _together(board: Board, neighbours: Sequence[str]) -> str:
    alone = [p for p in neighbours if p not in board.masters or not board.masters[p].streams]
    if not alone:
        return f"assign {named(neighbours)} too, or neither"
    if len(alone) == len(neighbours):
        who = "it is" if len(alone) == 1 else "none of them is"
        return f"{who} {'not ' if len(alone) == 1 else ''}behind an SMMU: keep the page to the host"
    return f"{named(alone)}: not behind an SMMU; keep the page to the host"


def _covered(given: Given, node: Node, windows: list[Window]) -> Iterator[Diagnosis]:
    """Whether iomem has the device's registers, at the CPU's address of them."""
    lacking = [w for w in windows if not covers(given.host_pages, pages(w))]
    entries = reg_entries(node) or ()
    by_bus = [
        (bus, window)
        for (bus, size), window in zip(entries, windows, strict=False)
        if bus != window.base and size and window in lacking
        and any(host.base <= bus < host.end for host in given.host_pages)
    ]  # fmt: skip
    for bus, window in by_bus[:MAX_NAMED]:
        fact = f"iomem maps bus address {bus:#x}; its CPU address is {window.base:#x}"
        yield DT206.at(node.path, fact, f"map {frames(pages(window))}", key="iomem")
    lacking = [w for w in lacking if all(w is not window for _, window in by_bus)]
    if lacking:
        pieces = [p for w in lacking for p in without(w, given.host_pages)]
        missing = merge(p for w in lacking for p in without(pages(w), given.host_pages))
        entries_text = ", ".join(f'"{frames(w)}"' for w in missing[:MAX_NAMED])
        fact = f"iomem lacks {named(text(w) for w in pieces or missing)}"
        yield DT215.at(node.path, fact, f"add {entries_text}", key="iomem")


def _mapped(board: Board, given: Given) -> Iterator[Diagnosis]:
    """What iomem maps beside the registers of the guest's own devices."""
    mine = merge(pages(w) for node in given.own for w in registers(board, node))
    seen: set[Node] = set()
    for window, node in board.in_windows(given.host_pages):
        # Registers in pages of the guest's own devices alone are DT205's.
        if node in seen or node in given.own or _is_bus(node) or covers(mine, pages(window)):
            continue
        seen.add(node)
        yield from _foreign(board, given, node, window)
    reserved = merge(w for w, node in board.registers if _is_reserved(node))
    for host in given.host_pages:
        for ram in _ram(board):
            if ram.overlaps(host) and not covers(reserved, host):
                fact = f"iomem maps {text(host)}, in RAM of the host {text(ram)}"
                yield DT216.at("/", fact, "map device registers only", key="iomem")
                break


def _foreign(board: Board, given: Given, node: Node, window: Window) -> Iterator[Diagnosis]:
    hit = holding(given.host_pages, pages(window))
    fact, key = f"iomem maps {text(hit)}", "iomem"
    if _is_memory(node):
        if _is_reserved(node):
            fact += f", memory reserved as {node.path}"
            fix = "map it only if it is kept for this guest"
            yield DT216.at(node.path, fact, fix, severity="warning", key=key)
        return
    what = _infrastructure(board, node)
    if what:
        yield DT216.at(node.path, f"{fact}, registers of {what}", "take it out", key=key)
        return
    users = board.users.get(node, [])
    control = control_block(node, [ref for _, ref in users])
    others = _others(board, node, given.own)
    if control or others:
        paths = dict.fromkeys(user.path for user, _ in users)
        fact += f", {_shared(control, len(paths))}: {named(paths)}"
        yield DT209.at(node.path, fact, "leave a shared control block to the host", key=key)
    else:
        severity: Severity = "warning" if node.path in board.masters else "note"
        fact += "; dtdev does not name it"
        fix = "name it in dtdev, or leave it to the host"
        yield DT111.at(node.path, fact, fix, severity=severity, key=key)


def _infrastructure(board: Board, node: Node) -> str | None:
    if node.path in board.smmus:
        return "an SMMU"
    gic = board.platform.gic
    if gic is not None and (node is gic.node or gic.node in node.ancestors()):
        return "the interrupt controller"
    return None


def _others(board: Board, node: Node, own: set[Node]) -> list[str]:
    """Paths of enabled nodes outside the guest that name the node."""
    users = dict.fromkeys(user for user, _ in board.users.get(node, ()))
    return [u.path for u in users if u not in own and u is not node and status_of(u) == "okay"]


def _shared(control: str | None, users: int) -> str:
    count = "1 node names it" if users == 1 else f"{users} nodes name it"
    return f"shared ({control}): {count}" if control else f"shared: {count}"


def shared_devices(board: Board, given: Given) -> Iterator[Diagnosis]:
    """Devices of dtdev that others depend on."""
    for node in given.nodes:
        others = [] if node.path in board.smmus else _others(board, node, given.own)
        control = control_block(node, [ref for _, ref in board.users.get(node, ())])
        if others:
            fact = f"is {_shared(control, len(others))}: {named(others)}"
            fix = "its users lose it: give them to the same guest, or leave it to the host"
            yield DT209.at(node.path, fact, fix, severity="warning", key="dtdev")


def _is_bus(node: Node) -> bool:
    return node.is_compatible("simple-bus") or node.is_compatible("simple-pm-bus")


def _is_memory(node: Node) -> bool:
    return node.string("device_type") == "memory" or _is_reserved(node)


def _is_reserved(node: Node) -> bool:
    return any(parent.name == "reserved-memory" for parent in node.ancestors())


def _ram(board: Board) -> list[Window]:
    return [w for w, node in board.registers if node.string("device_type") == "memory"]


def _both_map(given: Given, others: Sequence[Given]) -> Iterator[Diagnosis]:
    for other in others:
        shared = [host for host in given.host_pages if overlaps(other.host_pages, host)]
        if shared:
            fact = f"iomem maps {named(text(w) for w in shared)}, which {other.label} maps too"
            yield DT205.at("/", fact, "give each page to one guest", key="iomem")


# Interrupts.


def _irqs(board: Board, given: Given) -> Iterator[Diagnosis]:
    irqs = set(given.config.irqs[:MAX_ITEMS])
    twice = [n for n, count in Counter(given.config.irqs[:MAX_ITEMS]).items() if count > 1]
    if twice:
        fact = f"irqs lists {numbers(twice)} more than once"
        yield DT301.at("/", fact, "list each once", severity="warning", key="irqs")
    yield from _unroutable(given, irqs)
    wanted: dict[int, Node] = {}
    for node in given.devices:
        spis = [i.number for i in given.interrupts(node) if i.kind == "SPI"]
        wanted.update(dict.fromkeys(spis, node))
        missing = set(spis) - irqs
        if given.by_hand and missing:
            have = len(set(spis) & irqs)
            fact = f"has SPIs {numbers(spis)} ({len(set(spis))}), irqs has {have or 'none'} of them"
            fact += f": missing {numbers(missing)}" if have else ""
            yield DT301.at(node.path, fact, f"add {listed(missing)} to irqs", key="irqs")
    for number in sorted(wanted):
        owners = [n for n in board.spi_owners.get(number, ()) if n not in given.theirs]
        if owners:
            fact = f"interrupt {number} is {named(n.path for n in owners)}'s too"
            fix = "assign these devices together"
            yield DT307.at(wanted[number].path, fact, fix, key="dtdev")
    yield from _surplus(board, given, irqs - set(wanted) - given.described)


def _surplus(board: Board, given: Given, surplus: set[int]) -> Iterator[Diagnosis]:
    """Interrupts in irqs that no device of the guest has."""
    spis = [n for n in sorted(surplus) if 32 <= n <= _MAX_SPI]
    unowned = [n for n in spis if n not in board.spi_owners]
    for number in spis:
        owners = [node.path for node in board.spi_owners.get(number, ())]
        if owners:
            fact = f"irqs has {number}, which is {named(owners)}'s"
            what = "no device of the guest has it"
            severity: Severity = "warning" if given.devices else "note"
            fix = f"take {number} out, or assign {owners[0]}"
            yield DT301.at(owners[0], f"{fact}; {what}", fix, severity=severity, key="irqs")
    if unowned:
        fact = f"irqs has {numbers(unowned)}, which no node of the host tree has"
        severity = "warning" if given.devices else "note"
        yield DT301.at("/", fact, "take it out of irqs", severity=severity, key="irqs")


def _unroutable(given: Given, irqs: set[int]) -> Iterator[Diagnosis]:
    taken = _fixed(given)
    for number in sorted(irqs):
        if not 32 <= number <= _MAX_SPI:
            fact = f"irq {number} is not an SPI (32 to {_MAX_SPI})"
            yield DT303.at("/", fact, "write the SPI's number + 32", key="irqs")
        elif number in taken:
            fact = f"irq {number} is {taken[number]} SPI in the guest"
            yield DT303.at("/", fact, "assign a device with another interrupt", key="irqs")


def _fixed(given: Given) -> dict[int, str]:
    """SPIs (GIC ids) of the guest's own devices."""
    from dt_tools.virtio import virtio_count

    profile = given.profile
    first, last = profile.virtio_spis(given.viommu)
    count = min(virtio_count(given.config), last - first + 1)
    taken = {first + i: "a virtio device's" for i in range(count)}
    if given.viommu:
        taken[profile.vsmmu_spi] = "the vSMMU's"
    if given.config.vuart == "sbsa_uart":
        taken[profile.pl011_spi] = "the pl011's"
    return taken


def _both_route(given: Given, others: Sequence[Given]) -> Iterator[Diagnosis]:
    for other in others:
        shared = set(given.config.irqs) & set(other.config.irqs)
        if shared:
            fact = f"irqs has {numbers(shared)}, which {other.label} has too"
            fix = "route each interrupt to one guest"
            yield DT307.at("/", fact, fix, severity="error", key="irqs")
