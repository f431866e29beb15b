# SPDX-License-Identifier: BSD-2-Clause
"""What the rules look at: a board, a guest with what it is given of it, a partial tree.

Bounded: of a configuration's lists the first `MAX_ITEMS` entries are looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from dt_tools.checks.references import Reference, references
from dt_tools.extended import PAGE, page_window
from dt_tools.platform import status_of
from dt_tools.profiles import Window
from dt_tools.tree import nearest_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dt_tools.pci import Topology
    from dt_tools.platform import Interrupt, Platform
    from dt_tools.profiles import GuestProfile
    from dt_tools.tree import Node, Tree
    from xl_configs import GuestConfig

MAX_ITEMS = 1024
# Nearest spellings are looked for so often; each takes a walk through the tree.
_MAX_HINTS = 16
# Others of a list are counted rather than named.
MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class PartialTree:
    """A partial tree and the name of its file."""

    file: str
    tree: Tree


@dataclass(frozen=True, slots=True)
class GuestInput:
    """A guest's configuration, its file, and the lines of its keys (the last setting of each).

    `partial` is the tree that `device_tree` names, None when there is none or it is not at hand;
    `ramdisk_size` is in bytes, None when there is none or it is not at hand. `topology` and
    `pci_domains` tell what the host tree does not of its PCI buses.
    """

    file: str
    config: GuestConfig
    lines: Mapping[str, int] = field(default_factory=dict)
    partial: PartialTree | None = None
    ramdisk_size: int | None = None
    topology: Topology | None = None
    pci_domains: Mapping[str, int] = field(default_factory=dict)


class Board:
    """A host, with what several rules look up."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.tree = platform.tree
        self.phandles = platform.tree.phandles()
        self.smmus = {smmu.path: smmu for smmu in platform.smmus}
        self.smmu_phandles = {s.phandle: s.path for s in platform.smmus if s.phandle is not None}
        self.masters = {master.path: master for master in platform.masters}
        self._hints = self._addresses = _MAX_HINTS

    def nearest(self, path: str) -> str | None:
        """The path most like one that the tree lacks; only for the first few that are asked."""
        if not self._hints:
            return None
        self._hints -= 1
        return nearest_path(self.tree, path)

    @cached_property
    def users(self) -> dict[Node, list[tuple[Node, Reference]]]:
        """For each node the nodes whose properties name it, whatever their status."""
        found: dict[Node, list[tuple[Node, Reference]]] = {}
        for node in self.tree.walk():
            for ref in references(node, self.phandles):
                if ref.phandle in self.phandles:
                    found.setdefault(self.phandles[ref.phandle], []).append((node, ref))
        return found

    @cached_property
    def registers(self) -> list[tuple[Window, Node]]:
        """Every register window of the tree that has a CPU address, by address."""
        found = [
            (Window(reg.cpu_base, reg.size), node)
            for node in self.tree.walk()
            if "reg" in node.props
            for reg in self.platform.reg_of(node) or ()
            if reg.size
        ]
        return sorted(found, key=lambda item: (item[0].base, item[0].end))

    @cached_property
    def spi_owners(self) -> dict[int, list[Node]]:
        """For each SPI (GIC id) the enabled nodes that have it."""
        found: dict[int, list[Node]] = {}
        for node in self.tree.walk():
            if "interrupts" in node.props or "interrupts-extended" in node.props:
                numbers = {i.number for i in self.platform.interrupts_of(node) if i.kind == "SPI"}
                if numbers and status_of(node) == "okay":
                    for number in numbers:
                        found.setdefault(number, []).append(node)
        return found

    @cached_property
    def occupied(self) -> list[Window]:
        """Registers and memory of the tree, merged."""
        return merge(window for window, _ in self.registers)

    def as_address(self, host: Window) -> tuple[Window, Node] | None:
        """What a byte address means that iomem has where a frame number belongs.

        Nothing of the host is in the frames `host`, but the number of the first is an address in
        the registers of a device: the rest of these, and the device. Else None.
        """
        number = host.base // PAGE
        if overlaps(self.occupied, host) or not overlaps(self.occupied, Window(number, 1)):
            return None
        if not self._addresses:
            return None
        self._addresses -= 1
        for window, node in self.registers:
            if window.base <= number < window.end and node.string("device_type") != "memory":
                return Window(number, window.end - number), node
        return None

    def in_windows(self, windows: Iterable[Window]) -> Iterator[tuple[Window, Node]]:
        """Nodes with registers in the windows, each register once, by address."""
        merged = merge(windows)
        bases = [window.base for window in merged]
        for reg, node in self.registers:
            at = bisect_right(bases, reg.end - 1) - 1
            if at >= 0 and merged[at].end > reg.base:
                yield reg, node


class Given:
    """A guest and what it is given of a board.

    Attributes:
        listed: the nodes that dtdev names, in order, each once; what it names wrongly is left out.
        nodes: these without those that lie inside another, and without the buses, which are no
            DMA masters themselves, around one.
        own: these and all below them.
        iomem: the configuration's iomem as (host, guest) windows in bytes.
    """

    def __init__(self, board: Board, guest: GuestInput, profile: GuestProfile, bits: int) -> None:
        self.board = board
        self.input = guest
        self.config = guest.config
        self.profile = profile
        self.bits = bits
        self.viommu = guest.config.viommu == "smmuv3"
        found = (board.tree.node(path) for path in guest.config.dtdev[:MAX_ITEMS])
        # The root is no device, and everything lies inside it.
        self.listed = list(dict.fromkeys(n for n in found if n is not None and n.parent))
        above = {up for node in self.listed for up in node.ancestors()}
        devices = [n for n in self.listed if n not in above or n.path in board.masters]
        inside = set(devices)
        self.nodes = [n for n in devices if inside.isdisjoint(n.ancestors())]
        self.own = closed(self.nodes)
        self.iomem = [
            (Window(e.start * PAGE, e.count * PAGE), Window(e.gfn * PAGE, e.count * PAGE))
            for e in guest.config.iomem[:MAX_ITEMS]
            if e.count
        ]

    @property
    def label(self) -> str:
        """How other guests' diagnoses name this one."""
        return self.input.file

    @property
    def by_hand(self) -> bool:
        """Whether the resources are the configuration's, not the toolstack's to work out."""
        config = self.config
        return bool(config.device_tree or config.iomem or config.irqs or self.input.partial)

    @cached_property
    def host_pages(self) -> list[Window]:
        """The host pages of iomem, merged."""
        return merge(host for host, _ in self.iomem)

    @cached_property
    def devices(self) -> list[Node]:
        """The devices the guest is given: those in dtdev, and those that iomem and irqs mean.

        A device is meant when all its registers are in iomem and one of its interrupts in irqs.
        """
        if not self.iomem or not self.config.irqs:
            return self.nodes
        irqs = set(self.config.irqs)
        found = dict.fromkeys(node for _, node in self.board.in_windows(self.host_pages))
        return self.nodes + [
            node
            for node in found
            if node not in self.own
            and status_of(node) == "okay"
            and irqs & {i.number for i in self.board.platform.interrupts_of(node)}
            and all(covers(self.host_pages, reg) for reg in registers(self.board, node))
        ]

    @cached_property
    def theirs(self) -> set[Node]:
        """The nodes of `devices` and all below them."""
        return closed(self.devices)

    @cached_property
    def described(self) -> set[int]:
        """GIC ids of the SPIs that the partial tree's nodes have, read as the GIC's specifiers."""
        found: set[int] = set()
        for node in () if self.input.partial is None else self.input.partial.tree.walk():
            cells = node.cells("interrupts") or ()
            rows = (cells[at : at + 3] for at in range(0, len(cells) - 2, 3))
            found.update(row[1] + 32 for row in rows if row[0] == 0)
        return found

    def interrupts(self, node: Node) -> list[Interrupt]:
        """The interrupts of a device and of the nodes below it."""
        return [i for inner in node.walk() for i in self.board.platform.interrupts_of(inner)]


def registers(board: Board, node: Node) -> list[Window]:
    """The node's registers at CPU addresses; empty when they have none."""
    found = board.platform.reg_of(node) or ()
    return [Window(reg.cpu_base, reg.size) for reg in found if reg.size]


def closed(nodes: Iterable[Node]) -> set[Node]:
    """The nodes and all below them."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.children.values())
    return found


def pages(window: Window) -> Window:
    """The whole 4 KiB pages of a window."""
    return page_window(window.base, window.size)


def merge(windows: Iterable[Window]) -> list[Window]:
    """Overlapping and adjacent windows as one, by address."""
    done: list[Window] = []
    for window in sorted(windows, key=lambda w: (w.base, w.end)):
        if done and window.base <= done[-1].end:
            done[-1] = Window(done[-1].base, max(done[-1].end, window.end) - done[-1].base)
        else:
            done.append(window)
    return done


def covers(merged: list[Window], window: Window) -> bool:
    """Whether one of the merged windows holds all of `window`."""
    at = bisect_right(merged, window.base, key=lambda w: w.base) - 1
    return at >= 0 and window.end <= merged[at].end


def overlaps(merged: list[Window], window: Window) -> bool:
    """Whether one of the merged windows has a byte of `window`."""
    at = bisect_right(merged, window.end - 1, key=lambda w: w.base) - 1
    return at >= 0 and window.base < merged[at].end


def without(window: Window, merged: list[Window]) -> list[Window]:
    """The parts of `window` that none of the merged windows has."""
    found, at = [], window.base
    first = max(0, bisect_right(merged, at, key=lambda w: w.base) - 1)
    for other in islice(merged, first, None):
        if other.base >= window.end:
            break
        if other.end > at:
            if other.base > at:
                found.append(Window(at, other.base - at))
            at = other.end
    return [*found, Window(at, window.end - at)] if at < window.end else found


def holding(merged: list[Window], window: Window) -> Window:
    """The last of the merged windows that has a byte of `window`, which one has."""
    return merged[bisect_right(merged, window.end - 1, key=lambda w: w.base) - 1]


def named(items: Iterable[str]) -> str:
    """`a, b, c and 4 more`; `none` for nothing."""
    found = list(dict.fromkeys(items))
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return f"{', '.join(found[:MAX_NAMED])}{more}" if found else "none"


def numbers(found: Iterable[int]) -> str:
    """Integers as `256..265, 267`, at most `MAX_NAMED` runs."""
    runs: list[list[int]] = []
    for number in sorted(set(found)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return named(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def listed(found: Iterable[int]) -> str:
    """Integers as a configuration lists them, `256, 257`; as runs when there are many."""
    each = sorted(set(found))
    return ", ".join(map(str, each)) if len(each) <= 2 * MAX_NAMED else numbers(each)


def text(window: Window) -> str:
    """A window as `0x10830000+0x3500`."""
    return f"{window.base:#x}+{window.size:#x}"


def frames(window: Window) -> str:
    """A window of whole pages as iomem writes it: `0x10830,4`, both hexadecimal."""
    return f"{window.base // PAGE:#x},{window.size // PAGE:#x}"
