# SPDX-License-Identifier: BSD-2-Clause
"""Where Xen puts what it gives to dom0: RAM (1:1), ramdisk, extended regions.

All addresses are physical, in bytes. dom0's RAM is what Xen's allocator returns, which no tree
tells; `place_memory` takes the lowest naturally aligned blocks that are free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.errors import Refusal
from dt_tools.extended import (
    BLOCK,
    EXTENDED_MIN,
    MIB,
    PAGE,
    align_down,
    align_up,
    page_window,
)
from dt_tools.profiles import Window
from dt_tools.tree import bus_cells, range_entries, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dt_tools.platform import Platform
    from dt_tools.tree import Node

# The largest block of Xen's allocator on Arm, and the smallest that it takes for dom0.
_BLOCK_MAX, _BLOCK_MIN = 1 << 30, 4 * MIB
_LOW_END = 1 << 32
# A tree can claim any amount of memory; so much of it is looked at.
_MAX_MEMORY, _MAX_BUDDIES = 1 << 40, 2048
# Regions that Xen keeps account of.
_MAX_REGIONS = 256


def host_ram(platform: Platform) -> tuple[Window, ...]:
    """The banks of the enabled memory nodes at the root, ascending."""
    found = []
    for node in platform.tree.root.children.values():
        if node.string("device_type") == "memory" and node.status == "okay":
            found += [Window(reg.cpu_base, reg.size) for reg in platform.reg_of(node) or ()]
    return tuple(sorted((w for w in found if w.size), key=lambda window: window.base))


def reserved_memory(platform: Platform) -> tuple[Window, ...]:
    """The enabled children of /reserved-memory that have a place, in the tree's order."""
    node = platform.tree.root.children.get("reserved-memory")
    if node is None:
        return ()
    return tuple(
        Window(reg.cpu_base, reg.size)
        for child in node.children.values()
        if status_of(child) == "okay"
        for reg in platform.reg_of(child) or ()
        if reg.size
    )


def subtract(spans: Iterable[Window], holes: Iterable[Window]) -> tuple[Window, ...]:
    """What is left of `spans`, in whole pages and ascending; neighbours are joined."""
    left: list[Window] = []
    cuts = _joined(page_window(hole.base, hole.size) for hole in holes if hole.size)
    first = 0
    for span in _joined(spans):
        while first < len(cuts) and cuts[first].end <= span.base:
            first += 1
        at, index = span.base, first
        while index < len(cuts) and cuts[index].base < span.end:
            if cuts[index].base > at:
                left.append(Window(at, cuts[index].base - at))
            at = max(at, cuts[index].end)
            index += 1
        if at < span.end:
            left.append(Window(at, span.end - at))
    return tuple(left)


def _joined(spans: Iterable[Window]) -> list[Window]:
    joined: list[Window] = []
    for span in sorted(spans, key=lambda window: window.base):
        if joined and span.base <= joined[-1].end:
            last = joined.pop()
            joined.append(Window(last.base, max(last.end, span.end) - last.base))
        else:
            joined.append(span)
    return joined


def boot_heap(ram: Sequence[Window]) -> Window:
    """What Xen takes from the end of RAM when it boots: its account of all pages, 56 bytes each."""
    pages = sum(bank.size for bank in ram) // PAGE
    size = min(align_up(56 * pages, BLOCK) + BLOCK, ram[-1].size)
    return Window(ram[-1].end - size, size)


def place_memory(size: int, free: Sequence[Window], last: bool) -> tuple[Window, ...]:
    """Banks of `size` bytes in all, as Xen's buddy allocator gives them.

    The largest blocks come first, below 4 GiB before above. The first is taken from the lowest
    power of two of addresses that has one, the others from the highest. `last`: of several alike
    the last is given, as it is where memory was not scrubbed.

    Raises:
        Refusal: DT615, there is no room.
    """
    if size > _MAX_MEMORY:
        reason = f"{size >> 20} MiB of RAM for dom0 are more than is placed here"
        raise Refusal("DT615", "/memory", reason, "say where it lies (--dom0-memory)")
    blocks: list[Window] = []
    left = align_up(size, PAGE)
    room = tuple(free)
    least = min(1 << (left - 1).bit_length(), 128 * MIB)
    while left:
        block = _block(left, _buddies(room), least, not blocks, last)
        if block is None:
            reason = f"{size >> 20} MiB of RAM for dom0 do not fit the host's free memory"
            raise Refusal("DT615", "/memory", reason, "give dom0 less, or say where it lies")
        blocks.append(block)
        left -= block.size
        room = subtract(room, [block])
    return tuple(_joined(blocks))


def _buddies(room: Iterable[Window]) -> list[Window]:
    """The free blocks: powers of two, naturally aligned, as large as they can be."""
    found: list[Window] = []
    for one in room:
        at = one.base
        while one.end - at >= PAGE and len(found) < _MAX_BUDDIES:
            size = min(_BLOCK_MAX, 1 << ((one.end - at).bit_length() - 1), at & -at or _BLOCK_MAX)
            found.append(Window(at, size))
            at += size
    return found


def _block(
    left: int, buddies: Sequence[Window], least: int, first: bool, last: bool
) -> Window | None:
    size = most = min(_BLOCK_MAX, 1 << (left.bit_length() - 1))
    low = [block for block in buddies if block.end <= _LOW_END]
    while size == most or size >= least:
        found = _from_zone(size, low, first, last)
        if found is not None:
            return found
        size >>= 1
    while most >= min(_BLOCK_MIN, 1 << (left.bit_length() - 1)):
        found = _from_zone(most, buddies, False, last)
        if found is not None:
            return found
        most >>= 1
    return None


def _from_zone(size: int, buddies: Sequence[Window], lowest: bool, last: bool) -> Window | None:
    """The end of the smallest block that is large enough, in one power of two of addresses."""
    fits = [block for block in buddies if block.size >= size]
    if not fits:
        return None
    zones = sorted({block.base.bit_length() for block in fits}, reverse=not lowest)
    zone = [block for block in fits if block.base.bit_length() == zones[0]]
    smallest = [one for one in zone if one.size == min(block.size for block in zone)]
    chosen = smallest[-1 if last else 0]
    return Window(chosen.end - size, size)


def place_initrd(bank: Window, kernel: int, initrd: int) -> int | None:
    """First address of a ramdisk of `initrd` bytes; None when nothing fits.

    It follows dom0's tree, of at most 2 MiB, 128 MiB into the first bank if the kernel ends before
    that, else at the bank's end. `kernel` is the size of its file; it is loaded at the bank's
    start.
    """
    modules = BLOCK + align_up(initrd, BLOCK)
    middle, end = bank.base + 128 * MIB, bank.base + kernel
    if bank.end >= middle + modules and end < middle:
        return middle + BLOCK
    return bank.end - modules + BLOCK if bank.end - modules > align_up(end, BLOCK) else None


def regions(spans: Iterable[Window], short: bool) -> tuple[Window, ...]:
    """Extended regions in free address space: whole 2 MiB blocks, at least 64 MiB of them.

    `short`: the last page of a span is counted as one byte, as some versions do.
    """
    found = []
    for span in spans:
        start = align_up(span.base, BLOCK)
        end = align_down(span.end - 1, PAGE) + 1 if short else span.end
        size = align_down(max(0, end - start), BLOCK)
        if size >= EXTENDED_MIN:
            found.append(Window(start, size))
    return tuple(found[:_MAX_REGIONS])


def host_holes(platform: Platform, bits: int) -> tuple[tuple[Window, ...], tuple[str, ...]]:
    """What no node's registers or PCI windows take of the address space.

    Beside it the paths of nodes whose reg does not translate, which Xen may stumble over; those
    below /chosen, where boot modules are, are not counted.
    """
    lost = [
        node.path
        for node in platform.tree.walk()
        if _is_addressed(node)
        and platform.reg_of(node) is None
        and not node.path.startswith("/chosen/")
    ]
    taken = [window for _, window in taken_by(platform)]
    return subtract([Window(0, 1 << bits)], taken), tuple(lost)


def taken_by(platform: Platform) -> Iterator[tuple[Node, Window]]:
    """Each node's registers and PCI windows at CPU addresses, memory and reserved memory too."""
    for node in platform.tree.walk():
        for reg in (platform.reg_of(node) or ()) if _is_addressed(node) else ():
            yield node, Window(reg.cpu_base, reg.size)
        if node.string("device_type") == "pci":
            yield from ((node, window) for window in _pci_windows(node))


def _is_addressed(node: Node) -> bool:
    """Whether Xen takes the node's reg for addresses: its bus has sizes and is not PCI."""
    parent = node.parent
    if parent is None:
        return False
    counts = bus_cells(parent)
    return bool(counts and all(counts)) and parent.string("device_type") not in ("pci", "pciex")


def _pci_windows(bridge: Node) -> list[Window]:
    """The CPU's side of a host bridge's `ranges`."""
    bus = bridge.parent
    windows = [] if bus is None else [(row[1], row[2]) for row in range_entries(bridge) or ()]
    found = []
    for base, size in windows:
        assert bus is not None, "it has windows"
        start = _to_cpu(bus, base)
        if start is not None:
            found.append(Window(start, size))
    return found


def _to_cpu(bus: Node, address: int) -> int | None:
    """An address on `bus` as the CPU sees it, through every `ranges` up to the root."""
    for node in (bus, *bus.ancestors()):
        if node.parent is None:
            return address
        rows = range_entries(node)
        if rows is None:
            return None
        for child, parent, size in rows:
            if child <= address < child + size:
                address += parent - child
                break
        else:
            if rows:
                return None
    return None
