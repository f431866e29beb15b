# SPDX-License-Identifier: BSD-2-Clause
"""What of an assigned host node is carried into the guest, and why a property is not.

A property that refers to a node which is not carried is dropped: a copied phandle would name
whatever the guest happens to have under that number.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.errors import Refusal
from dt_tools.providers import BUS, COMPANIONS, form_of, is_first, seems_reference
from dt_tools.tree import cell_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dt_tools.tree import Cells, Node, Tree

XEN_PROPERTIES = ("xen,passthrough", "xen,path", "xen,reg", "xen,force-assign-without-iommu")
# Graph nodes: they link devices, and are carried where both ends are.
_GRAPH = re.compile(r"(in-|out-)?ports?(@.*)?")
# A phandle is a cell; these two values are reserved (Devicetree Specification v0.4 §2.3.3).
NO_PHANDLES = (0, 0xFFFFFFFF)


class Lost(NamedTuple):
    """Why a property is not carried; `provider`: what outside the guest it names, if that is it.

    `carve_out`: that is memory at an address of the host.
    """

    reason: str
    provider: str | None = None
    carve_out: bool = False


class Entry(NamedTuple):
    """One entry of a property that names nodes; `node` is None for a phandle of 0 (no entry)."""

    phandle: int
    node: Node | None
    arguments: Cells


class Carried:
    """The host nodes of one guest.

    Attributes:
        paths: the nodes that are carried, by full host path.
        referenced: phandles that carried properties name.
    """

    def __init__(self, tree: Tree, viommu: bool) -> None:
        self.viommu = viommu
        self.phandles = tree.phandles()
        self.paths: set[str] = set()
        self.referenced: set[int] = set()

    def add(self, nodes: Iterable[Node]) -> None:
        """Note the nodes at and below the devices `nodes` that are carried.

        Raises:
            Refusal: DT210, one below a device has StreamIDs of its own.
        """
        ends: list[tuple[Node, Node]] = []
        for device in nodes:
            for inner in device.walk():
                if inner is not device and _in_graph(inner, device):
                    ends.append((inner, device))
                    continue
                self.paths.add(inner.path)
                if inner is not device and ("iommus" in inner.props or "iommu-map" in inner.props):
                    reason = f"its child {inner.path} is a DMA master of its own"
                    fix = "assign a device without such children"
                    raise Refusal("DT210", device.path, reason, fix)
        self._link(ends)

    def _link(self, graph: list[tuple[Node, Node]]) -> None:
        """Of the graph nodes those that link two carried devices, or parts of one, are carried."""
        inside = {node for node, _ in graph}
        for node, device in graph:
            other = self.phandles.get(node.u32("remote-endpoint") or 0)
            if other is None or other not in inside:
                continue
            at: Node | None = node
            while at is not None and at is not device:
                self.paths.add(at.path)
                at = at.parent

    def reason(self, node: Node, name: str, gone: set[str]) -> Lost | None:
        """Why the property is not carried, None when it is (perhaps rewritten).

        `gone` are the node's properties that were dropped so far.
        """
        if name in XEN_PROPERTIES:
            return Lost("meant for Xen, not for the guest")
        if name == "iommus":
            return None if self.viommu else Lost("the guest has no vSMMU; stage 2 contains its DMA")
        if name in BUS:
            return Lost("describes the host's buses or a provider outside the guest")
        if is_first(name):
            return self._first(node, name)
        owner = COMPANIONS.get(name)
        if owner is not None and owner in node.props:
            lost = owner in gone or self.reason(node, owner, gone) is not None
            return Lost(f"names the entries of {owner}, which is dropped") if lost else None
        form = form_of(name)
        if form is not None:
            return self._reference(node, name, form)
        return self._unknown(node, name)

    def entries(self, node: Node, name: str) -> list[Entry] | Lost | None:
        """The entries of a property that names nodes; None when it holds no phandles.

        `Lost` when it cannot be read to its end.
        """
        cells, form = node.cells(name), form_of(name)
        if form and cells is None:
            return Lost(f"has {len(node.props[name])} bytes, not cells")
        if not cells or form is None:
            # A boolean or a string of that name holds no phandle.
            return None
        at, found = 0, []
        while at < len(cells):
            phandle, at = cells[at], at + 1
            if phandle in NO_PHANDLES:
                found.append(Entry(phandle, None, ()))
                continue
            provider = self.phandles.get(phandle)
            if provider is None:
                return Lost(f"phandle {phandle:#x} names no node of the host tree", "none")
            count = cell_count(provider, form) if form else 0
            if count is None and provider.path in self.paths:
                return Lost(f"{provider.path} has no {form}", provider.path)
            if count is None or at + count > len(cells):
                return Lost(f"{provider.path} is not assigned", provider.path)
            found.append(Entry(phandle, provider, cells[at : at + count]))
            at += count
        return found

    def _reference(self, node: Node, name: str, form: str) -> Lost | None:
        """None when every phandle of the property names a carried node; notes those phandles."""
        entries = self.entries(node, name)
        if entries is None or isinstance(entries, Lost):
            return entries
        for entry in entries:
            if entry.node is not None and entry.node.path not in self.paths:
                if name == "memory-region":
                    return _region([e.node for e in entries if e.node is not None])
                return Lost(f"{entry.node.path} is not assigned", entry.node.path)
        self.referenced |= {entry.phandle for entry in entries if entry.node is not None}
        return None

    def _first(self, node: Node, name: str) -> Lost | None:
        cells = node.cells(name)
        if not cells:
            return None
        provider = self.phandles.get(cells[0])
        what = "no node of the host tree" if provider is None else provider.path
        reason = "describes the host's buses or a provider outside the guest"
        return Lost(reason, what)

    def _unknown(self, node: Node, name: str) -> Lost | None:
        if "," not in name:
            return None
        cells = node.cells(name)
        named = seems_reference(name, cells, self.phandles) if cells else None
        if named is None:
            return None
        return Lost(f"its first cell seems to name {named.path}", named.path)


def _region(regions: list[Node]) -> Lost:
    """A guest has no /reserved-memory from libxl, and drivers look for regions nowhere else."""
    fixed = next((node for node in regions if "reg" in node.props), None)
    if fixed is None:
        reason = f"{regions[0].path} is a pool of the host; the guest's driver takes its own RAM"
        return Lost(reason, regions[0].path)
    reason = f"{fixed.path} is memory of the host; a guest has no /reserved-memory"
    return Lost(reason, fixed.path, carve_out=True)


def _in_graph(inner: Node, device: Node) -> bool:
    node: Node | None = inner
    while node is not None and node is not device:
        if _GRAPH.fullmatch(node.name):
            return True
        node = node.parent
    return False
