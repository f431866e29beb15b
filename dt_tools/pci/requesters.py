# SPDX-License-Identifier: BSD-2-Clause
"""The requester ids under which a function's DMA arrives at the root complex, and its peers.

On PCI Express a request carries the id of the function that made it, unchanged through root ports
and switches. Conventional PCI carries none: a bridge that passes such a request on to PCI Express
puts in an id of its own.

- A PCIe-to-PCI bridge: its secondary bus, device 0, function 0. With PCI-X behind it, the id of
  the function may be kept as well.
- A PCI-to-PCIe bridge, or a bridge between two conventional buses: the bridge's own id.
- A bridge without PCI Express capability on a PCI Express link (some hide it): either of the two.

Ids from a device's faults (a function that uses another's id) are in no register: not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.pci.topology import Port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.pci.topology import HostFunction, Topology

_LINKS = (Port.ROOT, Port.UPSTREAM, Port.DOWNSTREAM, Port.FROM_PCI)


def requester_ids(topology: Topology, function: HostFunction) -> tuple[int, ...]:
    """The ids, the likeliest first; several when a bridge may use either."""
    ids = [function.rid, *_phantoms(function)]
    for bridge in topology.upwards(function.domain, function.bus):
        if bridge.port in (Port.ROOT, Port.UPSTREAM, Port.DOWNSTREAM):
            continue
        alias = bridge.secondary << 8
        if bridge.port == Port.TO_PCI:
            ids = [alias, *ids] if bridge.pcix else [alias]
        elif bridge.port is None and _on_link(topology, bridge):
            ids = [alias, bridge.rid, *(ids if bridge.pcix else ())]
        else:
            ids = [bridge.rid]
    return tuple(dict.fromkeys(ids))


def unread(topology: Topology, function: HostFunction) -> HostFunction | None:
    """The first bridge above whose capabilities were not dumped, so that ids are not known."""
    above = topology.upwards(function.domain, function.bus)
    return next((one for one in above if not one.whole), None)


def _phantoms(function: HostFunction) -> Iterator[int]:
    stride = function.phantom_stride
    if stride and function.rid & 7 < stride:
        yield from range(function.rid + stride, (function.rid | 7) + 1, stride)


def _on_link(topology: Topology, bridge: HostFunction) -> bool:
    above = topology.above(bridge.domain, bridge.bus)
    return above is not None and above.port in _LINKS


class Groups:
    """Which functions can reach each other past the SMMU: those without ACS between them.

    A function that is one of several of its device is kept apart by its own ACS, a function on a
    bus by the ACS of every bridge from there to the root.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._parent: dict[HostFunction, HostFunction] = {}
        self._isolates: dict[HostFunction, bool] = {}
        # Inside a switch a request turns round at the port it came in by.
        self._open = {
            (one.domain, one.bus)
            for one in topology.functions
            if one.port == Port.DOWNSTREAM and one.acs is not True
        }
        for one in topology.functions:
            self._place(one)

    def _place(self, one: HostFunction) -> None:
        above = self._topology.above(one.domain, one.bus)
        if above is not None and not self._apart(above):
            self._join(one, above)
        if one.multifunction and one.acs is not True:
            for other in self._topology.slot(one.domain, one.rid):
                if other.multifunction and other.acs is not True:
                    self._join(one, other)

    def _apart(self, bridge: HostFunction) -> bool:
        """Whether nothing can turn round between below the bridge and the root."""
        known = self._isolates.get(bridge)
        if known is None:
            chain = (bridge, *self._topology.upwards(bridge.domain, bridge.bus))
            known = self._isolates[bridge] = all(self._keeps(one) for one in chain)
        return known

    def _keeps(self, bridge: HostFunction) -> bool:
        if bridge.port == Port.UPSTREAM:
            is_open = (bridge.domain, bridge.secondary) in self._open
            return not is_open and (bridge.acs is True or not bridge.multifunction)
        return bridge.port in (Port.ROOT, Port.DOWNSTREAM) and bridge.acs is True

    def _root(self, one: HostFunction) -> HostFunction:
        while one in self._parent:
            above = self._parent[one]
            self._parent[one] = self._parent.get(above, above)
            one = above
        return one

    def _join(self, one: HostFunction, other: HostFunction) -> None:
        first, second = self._root(one), self._root(other)
        if first is not second:
            self._parent[max(first, second, key=_order)] = min(first, second, key=_order)

    def peers(self, function: HostFunction) -> tuple[HostFunction, ...]:
        """The other devices (no bridges) of its group, in the topology's order."""
        root = self._root(function)
        return tuple(
            one
            for one in self._topology.functions
            if one is not function and not one.is_bridge and self._root(one) is root
        )


def _order(one: HostFunction) -> tuple[int, int]:
    return one.domain, one.rid
