# SPDX-License-Identifier: BSD-2-Clause
"""A hand-written /passthrough as the guest will see it: below its root, beside the nodes it names.

What libxl copies and a guest's kernel then fails over is said as a notice: references to nodes that
are not in the guest, registers and interrupts that do not fit their cells.
"""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.tree import (
    MAX_ADDRESS_CELLS,
    Node,
    Tree,
    bus_cells,
    range_entries,
    reg_entries,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from dt_tools.addresses import Reg
    from dt_tools.binding import Bindings
    from dt_tools.platform import Platform
    from dt_tools.profiles import GuestProfile
    from dt_tools.references import Reference

# Notices of one kind that are listed; the others are counted.
MAX_NOTICES = 64
_GIC = "interrupt-controller"
_COUNTS = ("#address-cells", "#size-cells")
# Told elsewhere: iommus by its own rules, interrupts by where they lead.
_ELSEWHERE = ("iommus", "interrupt-parent", "interrupts-extended")
# What nearly every tree consists of, and holds no phandle beside these.
_PLAIN = frozenset(
    (*_ELSEWHERE, "compatible", "reg", "reg-names", "ranges", "#address-cells", "#size-cells",
     "interrupts", "interrupt-names", "dma-coherent", "status", "phandle", "xen,path")
)  # fmt: skip


class GuestView:
    """The copied part of a partial tree.

    Attributes:
        nodes: /passthrough and all below it, in order.
        phandles: phandle to node, of what is copied and of the toolstack's own nodes.
    """

    def __init__(
        self, tree: Tree, partial: Tree, guest: GuestProfile, bindings: Bindings | None
    ) -> None:
        self.bus = tree.root.children["passthrough"]
        self.nodes = list(self.bus.walk())
        self.defined = partial.phandles()
        self.gic_phandle = guest.gic_phandle
        self.phandles = {
            phandle: node for node in reversed(self.nodes) if (phandle := node.phandle) is not None
        }
        aliases = tree.root.children.get("aliases")
        for node in () if aliases is None else aliases.walk():
            if (phandle := node.phandle) is not None:
                self.phandles.setdefault(phandle, node)
        self.phandles.update(toolstack(guest, viommu=bindings is not None))
        for viommu in () if bindings is None else bindings.viommus:
            self.phandles[viommu.phandle] = self.phandles[guest.vsmmu_phandle]
        self._platform: Platform | None = None
        self._host: Platform | None = None

    def regs(self, node: Node) -> tuple[Reg, ...]:
        """The node's registers at guest addresses; empty when they have none."""
        return self.platform.reg_of(self._twin(node)) or ()

    @property
    def platform(self) -> Platform:
        """/passthrough below a root with the guest's cells and GIC. Raises DtbError."""
        if self._platform is None:
            from dt_tools.platform import Platform

            tree = Tree()
            root = tree.root
            root.set_cells("#address-cells", 2)
            root.set_cells("#size-cells", 2)
            root.set_cells("interrupt-parent", self.gic_phandle)
            root.add(_GIC).copy_from(self.phandles[self.gic_phandle])
            root.add("passthrough").copy_from(self.bus)
            self._platform = Platform.from_tree(tree, "the partial tree")
            copies = root.children["passthrough"].walk()
            self._twins = dict(zip(self.nodes, copies, strict=True))
        return self._platform

    def _twin(self, node: Node) -> Node:
        platform = self.platform
        assert platform is not None
        return self._twins[node]

    def notices(self, host: Platform | None) -> list[Notice]:
        """What of it a guest's kernel fails over. Raises DtbError."""
        self._host = host
        found: list[Notice] = []
        for kind in (self._references(), self._cells(), self._interrupts()):
            found += islice(kind, MAX_NOTICES)
            more = sum(1 for _ in kind)
            if more:
                found.append(Notice(found[-1].rule, self.bus.path, f"and {more} more such nodes"))
        return found

    @cached_property
    def _theirs(self) -> dict[int, Node]:
        """The host's nodes by phandle, when they are asked for."""
        return {} if self._host is None else self._host.tree.phandles()

    def _references(self) -> Iterator[Notice]:
        if all(_PLAIN.issuperset(node.props) for node in self.nodes):
            return
        known = {**self.defined, **self.phandles}
        for node in self.nodes:
            for ref, in_guest in dangling(node, self.phandles, known):
                defined = self.phandles if in_guest else self.defined
                text = where(ref, defined, self._theirs, in_guest)
                yield Notice("DT401", node.path, f"{text}: the guest's driver will not find it")

    def _cells(self) -> Iterator[Notice]:
        for node in self.nodes:
            if node is self.bus:
                own = bus_cells(node)
                if node.props.get("ranges") and own and not _has_rows(node, own):
                    size = len(node.props["ranges"])
                    text = f"ranges has {size} bytes, not rows of {own[0]} + 2 + {own[1]} cells"
                    yield Notice("DT206", node.path, text)
                continue
            if "reg" in node.props and reg_entries(node) is None:
                yield Notice("DT206", node.path, odd_reg(node))
            if node.props.get("ranges") and range_entries(node) is None:
                assert node.parent is not None, "below the bus"
                wrong = odd_count(node) or odd_count(node.parent)
                text = f"not rows in its cells and those of {node.parent.path}"
                text = text if wrong is None else f"and {wrong}"
                text = f"ranges has {len(node.props['ranges'])} bytes, {text}"
                yield Notice("DT206", node.path, text)

    def _interrupts(self) -> Iterator[Notice]:
        names = ("interrupts", "interrupts-extended")
        for node in self.nodes:
            if not any(name in node.props for name in names):
                continue
            for one in self.platform.interrupts_of(self._twin(node)):
                # Controllers of the partial tree's own take their specifiers as they are.
                if one.reason and (one.controller_path == f"/{_GIC}" or not one.specifier):
                    where = "" if one.controller_path is None else f" of {one.controller_path}"
                    reason = self._lost_parent(node) if not where else None
                    reason = reason or one.reason
                    text = f"its interrupts{where} cannot be resolved in the guest: {reason}"
                    yield Notice("DT302", node.path, text)
                    break

    def _lost_parent(self, node: Node) -> str | None:
        """The interrupt-parent above a node's `interrupts` that leads out of the guest."""
        if "interrupts-extended" in node.props:
            return None
        # A controller in /passthrough that counts no cells has a parent too.
        seen: set[Node] = set()
        at: Node | None = node
        while at is not None and at.parent is not None and at not in seen:
            seen.add(at)
            phandle = at.u32("interrupt-parent")
            if phandle is None:
                at = at.parent
                continue
            at = self.phandles.get(phandle)
            if at is None or at not in self._inside:
                return lost_parent(phandle, self.phandles, self.defined, self._theirs)
        return None

    @cached_property
    def _inside(self) -> set[Node]:
        return set(self.nodes)


def not_a_bus(bus: Node) -> str:
    """What /passthrough has not of a bus that a guest probes; empty when it has all."""
    lacks = [] if bus.is_compatible("simple-bus") else ['compatible = "simple-bus"']
    lacks += [name for name in ("ranges", *_COUNTS) if name not in bus.props]
    said = [f"lacks {', '.join(lacks)}"] if lacks else []
    odd = [name for name in _COUNTS if name in bus.props and bus.u32(name) not in (1, 2)]
    said += [f"{name} {_said(bus, name)}, not {_right(bus, name)}" for name in odd]
    return "; ".join(said)


def _said(node: Node, name: str) -> str:
    value = node.u32(name)
    if value is None:
        return f"has {len(node.props[name])} bytes"
    return f"is {value if value <= MAX_ADDRESS_CELLS else hex(value)}"


def _right(node: Node, name: str) -> str:
    return "one cell" if node.u32(name) is None else "1 or 2"


def odd_count(bus: Node) -> str | None:
    """The cell count of a bus that nothing can be read with; None when both will do."""
    for name in _COUNTS:
        value = bus.u32(name)
        if name in bus.props and (value is None or value > MAX_ADDRESS_CELLS):
            return f"{name} of {bus.path} {_said(bus, name)}"
    return None


def odd_reg(node: Node) -> str:
    """Why a node's reg cannot be read."""
    assert node.parent is not None, "the root has no reg"
    size, counts = len(node.props["reg"]), bus_cells(node.parent)
    if counts is None:
        return f"reg has {size} bytes, and {odd_count(node.parent)}"
    return f"reg has {size} bytes, not entries of {counts[0]} + {counts[1]} cells"


def _has_rows(bus: Node, own: tuple[int, int]) -> bool:
    """Whether `ranges` are rows; above /passthrough the guest has two address cells."""
    cells = bus.cells("ranges")
    return cells is not None and len(cells) % (own[0] + 2 + own[1]) == 0


def toolstack(guest: GuestProfile, *, viommu: bool) -> dict[int, Node]:
    """By phandle, bare copies of the nodes that the toolstack numbers itself."""
    root = Node("")
    gic, xen = root.add(_GIC), root.add("xen_iommu")
    vsmmu = root.add(f"iommu@{guest.vsmmu.base:x}")
    gic.set_strings("compatible", "arm,gic-v3")
    gic.set_cells("#interrupt-cells", 3)
    gic.set_cells("#address-cells", 0)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", guest.gic_phandle)
    found = {guest.gic_phandle: gic, guest.xen_iommu_phandle: xen}
    if viommu:
        found[guest.vsmmu_phandle] = vsmmu
    for node in (xen, vsmmu):
        node.set_cells("#iommu-cells", 1)
    return found


def dangling(
    node: Node, copied: Container[int], known: Mapping[int, Node]
) -> Iterator[tuple[Reference, bool]]:
    """What the node's properties name that is not in the guest, or (True) not of that kind.

    Args:
        node: a node of /passthrough; its iommus, iommu-map and interrupts are not looked at.
        copied: the phandles that the guest has.
        known: phandle to node, of the guest and of the rest of the partial tree.
    """
    from dt_tools.references import every_reference

    for ref in every_reference(node, known):
        if ref.name not in _ELSEWHERE and (ref.phandle not in copied or ref.lacks):
            yield ref, ref.phandle in copied


def where(
    ref: Reference, defined: Mapping[int, Node], host: Mapping[int, Node], in_guest: bool
) -> str:
    """What a reference that `dangling` found is; `defined` has the nodes of the partial tree."""
    said = f"{ref.name}[{ref.index}]: <{ref.phandle:#x}> is "
    if in_guest:
        return f"{said}{defined[ref.phandle].path}, which has no {ref.lacks}"
    return f"{said}{_whose(ref.phandle, defined, host)}"


def lost_parent(
    phandle: int,
    copied: Mapping[int, Node],
    defined: Mapping[int, Node],
    host: Mapping[int, Node],
) -> str:
    """What an interrupt-parent is that is no controller of the guest.

    Args:
        phandle: the interrupt-parent.
        copied: the nodes that the guest has, by phandle.
        defined: those of the partial tree.
        host: those of the host.
    """
    whose = _whose(phandle, defined, host)
    if phandle in copied:
        whose = f"{copied[phandle].path}, which is no interrupt controller"
    return f"interrupt-parent <{phandle:#x}> is {whose}"


def _whose(phandle: int, defined: Mapping[int, Node], host: Mapping[int, Node]) -> str:
    if phandle in defined:
        return f"{defined[phandle].path}, which is not copied into the guest"
    if phandle in host:
        return f"{host[phandle].path} of the host tree, not in the partial"
    return "no node of the partial tree"
