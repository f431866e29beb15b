# SPDX-License-Identifier: BSD-2-Clause
"""Host bridges of a board, and which of them a PCI domain and bus belong to.

`linux,pci-domain` numbers a host bridge. Without it:

- Linux up to 6.1 refuses a mix of numbered and unnumbered bridges; from 6.2 on unnumbered ones
  get the lowest number that no node has, in the order in which they are probed.
- Xen stops on a mix among the bridges it drives; without numbers it counts those it drives in
  tree order, then the others, and writes the number into dom0's tree.

So one unnumbered bridge is domain 0; several, all with a driver in Xen, are counted in tree order
with a notice (DT531); everything else is refused (DT521) unless the caller numbers the bridge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.errors import Refusal, UserError
from dt_tools.tree import Node, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dt_tools.platform import Platform

_PCI = ("pci", "pciex")
# Host bridges that Xen drives on Arm (4.20: the first two; master: all).
_XEN_DRIVES = (
    "pci-host-ecam-generic",
    "xlnx,nwl-pcie-2.11",
    "renesas,r8a779f0-pcie",
    "renesas,r8a779g0-pcie",
)


@dataclass(frozen=True, slots=True)
class HostBridge:
    """A root complex: its node, effective status, domain (None: not numbered) and buses.

    `last_bus` is inclusive; both are None when `bus-range` is malformed.
    """

    path: str
    status: str
    domain: int | None
    first_bus: int | None
    last_bus: int | None
    node: Node = field(repr=False, compare=False)

    def has_bus(self, bus: int) -> bool:
        """Whether the bus is in its `bus-range`."""
        if self.first_bus is None or self.last_bus is None:
            return False
        return self.first_bus <= bus <= self.last_bus


def is_pci(node: Node) -> bool:
    """Whether `device_type` says PCI bus."""
    return node.string("device_type") in _PCI


def host_bridges(platform: Platform, domains: Mapping[str, int] | None = None) -> Bridges:
    """The board's host bridges in tree order; `domains` numbers some by path, over the tree's word.

    Raises:
        UserError: a path in `domains` is no host bridge, or its number does not fit 16 bits.
    """
    wanted = dict(domains or {})
    found = []
    for node in platform.tree.walk():
        if is_pci(node) and not any(is_pci(above) for above in node.ancestors()):
            number = wanted.pop(node.path, node.u32("linux,pci-domain"))
            first, last = _buses(node)
            found.append(HostBridge(node.path, status_of(node), number, first, last, node))
    for path in wanted:
        raise UserError(platform.source, path, "is no PCI host bridge")
    for one in found:
        if one.domain is not None and one.path in (domains or {}) and not 0 <= one.domain <= 0xFFFF:
            raise UserError(platform.source, one.path, f"PCI domain {one.domain} is not 16 bits")
    return Bridges(tuple(found))


def _buses(node: Node) -> tuple[int, int] | tuple[None, None]:
    """First and last bus, all 256 without `bus-range`."""
    if "bus-range" not in node.props:
        return 0, 0xFF
    cells = node.cells("bus-range")
    if cells is None or len(cells) != 2 or cells[0] > cells[1] or cells[0] > 0xFF:
        return None, None
    return cells[0], min(cells[1], 0xFF)


class Bridges:
    """Host bridges in tree order, looked up by domain and bus."""

    def __init__(self, bridges: tuple[HostBridge, ...]) -> None:
        self.all = bridges
        self.enabled = tuple(one for one in bridges if one.status == "okay")
        self.counted: dict[int, HostBridge] = {}
        unnumbered = self._unnumbered()
        if len(unnumbered) == len(self.enabled):
            order = [one for one in unnumbered if "xen,passthrough" not in one.node.props]
            alone = len(order) == 1
            if alone or all(_is_driven(one) for one in order):
                self.counted = dict(enumerate(order))

    def _unnumbered(self) -> list[HostBridge]:
        return [one for one in self.enabled if one.domain is None]

    def domain_of(self, bridge: HostBridge) -> int | None:
        """The domain that `find` knows the bridge by; None when it has none for certain."""
        if bridge.domain is not None:
            return bridge.domain
        return next((n for n, one in self.counted.items() if one is bridge), None)

    def find(self, domain: int, bus: int, name: str) -> tuple[HostBridge, tuple[Notice, ...]]:
        """The enabled bridge with that domain and bus; `name` is the function, for messages.

        Raises:
            Refusal: there is none (DT520), it is disabled (DT105), or it cannot be told (DT521).
        """
        at = [one for one in self.enabled if one.domain == domain]
        if at:
            return _by_bus(at, bus, name), ()
        if domain in self.counted:
            return self._counted(domain, bus, name)
        loose = self._unnumbered()
        if loose and not self.counted:
            raise _ambiguous(loose, len(loose) < len(self.enabled))
        for one in self.all:
            if one.domain == domain:
                reason = f'is disabled (status = "{one.status}"), {name} is behind it'
                raise Refusal("DT105", one.path, reason, "enable it in the host tree")
        known = ", ".join(f"{number:#x}" for number in self._domains()) or "none"
        reason = f"{name}: no enabled host bridge is PCI domain {domain:#x} (domains: {known})"
        raise Refusal("DT520", "/", reason, "name a function as DDDD:BB:DD.F of the host")

    def _domains(self) -> Iterable[int]:
        numbered = {one.domain for one in self.enabled if one.domain is not None}
        return sorted(numbered | set(self.counted))

    def _counted(self, domain: int, bus: int, name: str) -> tuple[HostBridge, tuple[Notice, ...]]:
        bridge = _by_bus([self.counted[domain]], bus, name)
        if len(self.counted) == 1:
            return bridge, ()
        text = f"has no linux,pci-domain; taken as domain {domain}, by the order of the tree"
        return bridge, (Notice("DT531", bridge.path, text),)


def _is_driven(bridge: HostBridge) -> bool:
    return any(bridge.node.is_compatible(name) for name in _XEN_DRIVES)


def _by_bus(bridges: list[HostBridge], bus: int, name: str) -> HostBridge:
    """The bridge among those of one domain that has the bus."""
    for one in bridges:
        if one.first_bus is None:
            reason = f"{name}: bus-range is not two cells FIRST LAST"
            raise Refusal("DT520", one.path, reason, "correct bus-range in the host tree")
    found = [one for one in bridges if one.has_bus(bus)]
    if not found:
        ranges = ", ".join(f"{one.first_bus:#04x}-{one.last_bus:#04x}" for one in bridges)
        reason = f"{name}: bus {bus:#04x} is not behind it (bus-range: {ranges})"
        raise Refusal("DT520", bridges[0].path, reason, "name a function that the host has")
    if len(found) > 1:
        reason = f"{name}: {found[1].path} has the same domain and bus {bus:#04x}"
        raise Refusal("DT521", found[0].path, reason, "give each its own linux,pci-domain")
    return found[0]


def _ambiguous(loose: list[HostBridge], mixed: bool) -> Refusal:
    reason = "has no linux,pci-domain, " + (
        "other host bridges have one"
        if mixed
        else "nor have others, and Xen drives not all of them; the order of probing decides"
    )
    fix = "add linux,pci-domain to the host tree, or number the host bridge"
    return Refusal("DT521", loose[0].path, reason, fix)
