# SPDX-License-Identifier: BSD-2-Clause
"""Xen's own rules about a partial tree for dom0less, and where it accepts what cannot work.

Severity `error`: Xen stops the boot ("Could not set up domain"), misreads the tree, or the guest
does not come up with it. `warning`: Xen takes it and something in it is of no use. `note`: worth
knowing. What Xen prints names no node, and often nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from dt_tools.carry import NO_PHANDLES
from dt_tools.dom0less.fragment import (
    FORCE,
    c_string,
    enclosing_cells,
    interrupt_parent,
    readable_cells,
    unroutable,
)
from dt_tools.dom0less.space import gic_version
from dt_tools.dom0less.xens import SERIES, Xen
from dt_tools.errors import Refusal
from dt_tools.extended import PAGE
from dt_tools.masters import Stream, is_master
from dt_tools.profiles import DEFAULT, GuestProfile, Window
from dt_tools.tree import Node, Tree, join_cells, nearest_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dt_tools.platform import Platform

Severity = Literal["error", "warning", "note"]
_COPIED = ("aliases", "passthrough")
# A hint looks through a part of the host tree; so many are given for one partial tree.
_MAX_HINTS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """One thing found: rule, gravity, path in the partial tree, what is so, what to do."""

    rule: str
    severity: Severity
    path: str
    fact: str
    fix: str

    def refusal(self) -> Refusal:
        """It as the error that ends a build."""
        return Refusal(self.rule, self.path, self.fact, self.fix)


class Row(NamedTuple):
    """One entry of xen,reg, in bytes."""

    host: int
    size: int
    guest: int


@dataclass(frozen=True, slots=True)
class Setting:
    """What beside the tree decides: the version, whether there is a dom0, and the domain's keys.

    `marked` is whether the host tree has its xen,passthrough marks already (else none is missed);
    `viommu` and `vpl011` are the domain's, `windows` is where its RAM is.
    """

    xen: Xen = SERIES
    dom0: bool = False
    marked: bool = True
    viommu: bool = False
    vpl011: bool = False
    nr_spis: int | None = None
    guest: GuestProfile = DEFAULT.guest
    ram: tuple[Window, ...] = ()


def check_fragment(
    platform: Platform, partial: Tree, setting: Setting = Setting()
) -> tuple[Found, ...]:
    """Everything that is found in a domain's partial tree, in the order in which Xen comes to it.

    Raises:
        DtbError: the host's tree asks for more work than its limit.
    """
    return tuple(_Checker(platform, partial, setting).all())


def copied(partial: Tree) -> Iterator[tuple[Node, bool]]:
    """The top nodes that Xen copies, with whether it looks for devices in them.

    It compares names without regard to case, and takes every node of that name.
    """
    for name, node in partial.root.children.items():
        if name.lower() in _COPIED:
            yield node, name.lower() == "passthrough"


def gic_phandle(partial: Tree | None, guest: GuestProfile) -> int:
    """The phandle of the guest's GIC: that of the last /gic with one, else Xen's own."""
    phandle = guest.gic_phandle
    for name, node in ({} if partial is None else partial.root.children).items():
        if name.lower() == "gic":
            phandle = node.phandle or phandle
    return phandle


def host_rows(node: Node) -> tuple[Row, ...]:
    """The rows of xen,reg that Xen reads; a rest that is no row is passed over.

    Empty where the cells are not 1 or 2 each.
    """
    at, size = enclosing_cells(node)
    if not readable_cells(at, size):
        return ()
    raw = node.props.get("xen,reg", b"")
    width = 2 * at + size
    cells = [int.from_bytes(raw[i : i + 4], "big") for i in range(0, len(raw) // 4 * 4, 4)]
    return tuple(
        Row(
            join_cells(cells[i : i + at]),
            join_cells(cells[i + at : i + at + size]),
            join_cells(cells[i + at + size : i + width]),
        )
        for i in range(0, len(cells) // width * width, width)
    )


class Hosts:
    """Nodes of the host's tree as Xen finds them, and whether an SMMU contains their DMA."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.smmus = {smmu.phandle: smmu for smmu in reversed(platform.smmus)}
        self.masters = {master.path: master for master in platform.masters}
        self._lower: dict[str, Node] = {}

    def find(self, path: str) -> Node | None:
        """The first node whose path is this one, in any case; aliases are not looked up."""
        node = self.platform.tree.node(path)
        if node is not None and node.path == path:
            return node
        if not self._lower:
            for one in self.platform.tree.walk():
                self._lower.setdefault(one.path.lower(), one)
        return self._lower.get(path.lower())

    def protected(self, host: Node) -> bool:
        """Whether Xen's IOMMU driver takes the node: `iommus`, its first SMMU enabled."""
        cells = host.cells("iommus") or (0,)
        smmu = self.smmus.get(cells[0])
        return smmu is not None and smmu.kind != "other" and smmu.status == "okay"

    def streams(self, path: str | None) -> tuple[Stream, ...]:
        """The streams of the host node that an xen,path names."""
        host = None if path is None else self.find(path)
        master = None if host is None else self.masters.get(host.path)
        return () if master is None else master.streams


class _Checker:
    def __init__(self, platform: Platform, partial: Tree, setting: Setting) -> None:
        self.platform = platform
        self.partial = partial
        self.setting = setting
        self.hosts = Hosts(platform)
        self.gic = gic_phandle(partial, setting.guest)
        self.hints = _MAX_HINTS
        self.seen: set[str] = set()

    def all(self) -> Iterator[Found]:
        yield from self._top()
        yield from self._phandles()
        for top, devices in copied(self.partial):
            if not devices:
                continue
            for node in top.walk():
                yield from self._node(node)
                yield from self._use(node)

    def _top(self) -> Iterator[Found]:
        names = [name.lower() for name in self.partial.root.children]
        if "passthrough" not in names:
            odd = next((n for n in names if n.startswith("passthrough@")), None)
            fact = f"is /{odd} in the partial tree" if odd else "is missing in the partial tree"
            fix = "name the node /passthrough; Xen says nothing and the guest has no devices"
            yield Found("DT211", "warning", "/passthrough", fact, fix)
        for top, devices in copied(self.partial):
            lacks = [p for p in ("#address-cells", "#size-cells", "ranges") if p not in top.props]
            if not top.is_compatible("simple-bus"):
                lacks.append('compatible = "simple-bus"')
            if devices and lacks and top.children:
                fact = f"lacks {', '.join(lacks)}: a guest does not probe what is in it"
                yield Found("DT213", "warning", top.path, fact, "add what is missing")

    def _phandles(self) -> Iterator[Found]:
        xen, guest = self.setting.xen, self.setting.guest
        for node in self.partial.walk():
            phandle = node.phandle
            limit = xen.highest_phandle
            if phandle is not None and limit is not None and limit < phandle not in NO_PHANDLES:
                fact = f"phandle {phandle} is above {limit}, and {xen.name} refuses the tree"
                yield Found("DT402", "error", node.path, fact, f"use 1 to {limit}")
        owners = {self.gic: "the GIC"}
        if self.setting.viommu:
            owners[guest.vsmmu_phandle] = "the vSMMU"
        for top, _ in copied(self.partial):
            for node in top.walk():
                phandle = node.phandle
                if phandle is None:
                    continue
                if phandle in NO_PHANDLES:
                    fact = f"phandle {phandle:#x} is no phandle"
                    yield Found("DT404", "error", node.path, fact, "use 1 to 64998")
                elif phandle in owners:
                    fact = f"phandle {phandle:#x} is that of {owners[phandle]} in the guest too"
                    yield Found("DT403", "error", node.path, fact, "give it one of its own")
                elif phandle >= guest.gic_phandle:
                    fact = f"phandle {phandle} is one that Xen 4.22 and later refuse"
                    yield Found("DT402", "note", node.path, fact, "use 1 to 64998")
                if phandle not in NO_PHANDLES:
                    owners.setdefault(phandle, node.path)

    # Devices: xen,path, xen,reg and xen,force-assign-without-iommu.

    def _node(self, node: Node) -> Iterator[Found]:
        path = c_string(node.props.get("xen,path"))
        force = FORCE in node.props
        if "xen,reg" not in node.props:
            if path is not None:
                fact = "has xen,path but no xen,reg, and Xen refuses the domain"
                fix = "give host address, size and guest address; an empty one for no registers"
                yield Found("DT203", "error", node.path, fact, fix)
            return
        if path is None and not force:
            fact = "has xen,reg but no xen,path, and Xen refuses the domain"
            yield Found("DT203", "error", node.path, fact, "name the host's node in xen,path")
            return
        yield from self._regs(node)
        if path is None:
            fact = f"{FORCE} without xen,path: pages are mapped, no interrupt and no stream is"
            yield Found("DT101", "note", node.path, fact, "name the host's node in xen,path")
            return
        host = self.hosts.find(path)
        if host is None:
            self.hints -= 1
            nearest = nearest_path(self.platform.tree, path) if self.hints >= 0 else None
            fix = f"nearest: {nearest}" if nearest else "give a path of the host tree"
            fact = f"xen,path {path}: no such node in the host tree"
            yield Found("DT102", "error", node.path, fact, fix)
            return
        yield from self._host(node, host, force)

    def _regs(self, node: Node) -> Iterator[Found]:
        at, size = enclosing_cells(node)
        above = "/" if node.parent is None else node.parent.path
        if not readable_cells(at, size):
            fact = f"xen,reg is in {at} + {size} cells of {above}, which Xen cannot read"
            yield Found("DT206", "error", node.path, fact, f"give {above} 1 or 2 cells of each")
            return
        length = len(node.props["xen,reg"])
        if length % (4 * (2 * at + size)):
            fact = f"xen,reg has {length} bytes, not <host size guest> in the {at} + {size} cells "
            fact += f"of {above}: Xen reads other numbers than are meant"
            yield Found("DT206", "error", node.path, fact, f"write it in the cells of {above}")
        for row in host_rows(node):
            text = f"xen,reg {row.host:#x}+{row.size:#x} at guest {row.guest:#x}"
            if (row.host | row.size | row.guest) % PAGE:
                fix = "round it to pages, and look who else is in them"
                yield Found("DT204", "error", node.path, f"{text} is not whole 4 KiB pages", fix)
                continue
            window = Window(row.guest, row.size)
            for name, other in self._taken():
                if row.size and window.overlaps(other):
                    fact = f"{text} lies on the guest's {name} [{other.base:#x}, {other.end:#x})"
                    fix = "choose another guest address"
                    yield Found("DT207", "warning", node.path, fact, fix)

    def _taken(self) -> Iterable[tuple[str, Window]]:
        guest = self.setting.guest
        yield from (("RAM", bank) for bank in self.setting.ram)
        if gic_version(self.platform) == 2:
            base, last = guest.gicv2_gicd, guest.gicv2_gicc
        else:
            base, last = guest.gicv3_gicd, guest.gicv3_gicr
        yield "GIC", Window(base.base, last.end - base.base)
        if self.setting.vpl011:
            yield "pl011", guest.pl011
        if self.setting.viommu:
            yield "vSMMU", guest.vsmmu

    def _host(self, node: Node, host: Node, force: bool) -> Iterator[Found]:
        if host.path in self.seen:
            fact = f"{host.path} is in xen,path a second time: Xen assigns a device once"
            yield Found("DT108", "error", node.path, fact, "let one node name it")
            return
        self.seen.add(host.path)
        yield from self._irqs(node, host)
        safe = self.hosts.protected(host)
        if not safe and not force:
            if "iommu-map" in host.props and "iommus" not in host.props:
                fact = f"{host.path} is a bus whose functions are the DMA masters"
                fix = "assign its functions; dom0less has no form for them"
                yield Found("DT107", "error", node.path, fact, fix)
                return
            fact = f"{host.path} is behind no SMMU that Xen drives, and Xen refuses the domain"
            fix = f"assign a device behind an SMMU; {FORCE} leaves its DMA uncontained"
            yield Found("DT101", "error", node.path, fact, fix)
        elif not safe:
            fact = f"{FORCE}: no SMMU contains the DMA of {host.path}"
            yield Found("DT101", "warning", node.path, fact, "assign a device behind an SMMU")
        if self.setting.marked and "xen,passthrough" not in host.props:
            taken = self.setting.dom0 and (safe or bool(self.platform.interrupts_of(host)))
            fact = f"{host.path} has no xen,passthrough in the host tree"
            fact += ": dom0 has it, and Xen refuses the domain" if taken else ""
            fix = f"mark it: fdt set {host.path} xen,passthrough"
            yield Found("DT103", "error" if taken else "note", node.path, fact, fix)
        yield from self._registers(node, host)

    def _irqs(self, node: Node, host: Node) -> Iterator[Found]:
        fix = "correct its interrupts in the host tree, or assign another device"
        for fact in unroutable(self.platform, host):
            yield Found("DT621", "error", node.path, f"{host.path}: {fact}", fix)
        limit = self.setting.nr_spis
        guest = self.setting.guest
        own = {}
        if self.setting.vpl011:
            own[guest.pl011_spi] = "pl011 SPI"
        if self.setting.viommu:
            own[guest.vsmmu_spi] = "vSMMUv3 SPI"
        for interrupt in self.platform.interrupts_of(host):
            if interrupt.kind != "SPI":
                continue
            if limit is not None and interrupt.number >= 32 + limit:
                fact = f"interrupt {interrupt.number} of {host.path} is beyond nr_spis {limit}"
                yield Found("DT305", "error", node.path, fact, f"{interrupt.number - 31} or more")
            if interrupt.number in own:
                fact = f"Physical IRQ {interrupt.number} of {host.path} conflicting with "
                fact += own[interrupt.number]
                fix = "assign a device with another interrupt"
                yield Found("DT303", "error", node.path, fact, fix)

    def _registers(self, node: Node, host: Node) -> Iterator[Found]:
        """Xen maps whatever xen,reg says; nothing compares it with the node of xen,path."""
        regs = [reg for one in host.walk() for reg in self.platform.reg_of(one) or ()]
        for row in host_rows(node):
            window = Window(row.host, row.size)
            if row.size and not any(window.overlaps(Window(r.cpu_base, r.size)) for r in regs):
                fact = f"xen,reg {row.host:#x}+{row.size:#x} has no register of {host.path}"
                fix = "give the host's CPU addresses"
                yield Found("DT206", "warning", node.path, fact, fix)

    # What the guest makes of the copied node.

    def _use(self, node: Node) -> Iterator[Found]:
        yield from self._streams(node)
        if "interrupts" in node.props and interrupt_parent(node) is None:
            fact = "has interrupts and no interrupt-parent: the root of a dom0less guest has none"
            fix = "name the phandle of /gic in interrupt-parent"
            yield Found("DT623", "warning", node.path, fact, fix)

    def _streams(self, node: Node) -> Iterator[Found]:
        if not is_master(node):
            return
        xen = self.setting.xen
        rewritten = xen.rewrites_iommus(self.setting.viommu)
        cells = node.cells("iommus") if "iommus" in node.props else ()
        if cells is None or (rewritten and len(cells) % 2):
            size = len(node.props["iommus"])
            fact = f"iommus has {size} bytes, not pairs of cells"
            yield Found("DT405", "error", node.path, fact, "write <phandle StreamID> pairs")
        elif cells and not self.setting.viommu:
            fact = "has iommus, and the guest has no vSMMU: they name nothing"
            fix = 'take iommus out (xen,path tells Xen the streams), or set viommu = "smmuv3"'
            yield Found("DT401", "warning", node.path, fact, fix)
        elif cells and xen.ids == "allocated" and not self._is_host(node, cells):
            fact = "its iommus are not streams of the host's node"
            yield Found(
                "DT501", "warning", node.path, fact, "copy the host node's iommus unchanged"
            )
        if "iommu-map" in node.props:
            fact = "has an iommu-map, which dom0less copies as it is"
            fix = "assign devices with iommus only"
            yield Found("DT505", "warning", node.path, fact, fix)

    def _is_host(self, node: Node, cells: tuple[int, ...]) -> bool:
        streams = self.hosts.streams(c_string(node.props.get("xen,path")))
        return set(cells[1::2]) <= {stream.stream_id for stream in streams}
