# SPDX-License-Identifier: BSD-2-Clause
"""Which node of a hand-written /passthrough stands for which assigned device of the host.

By `xen,path`; else by the host node's name, whole, when it is the name of one device and of one
node; else by registers and a `compatible` string together. Guest addresses are taken to be the
host's unless `pins` (the configuration's iomem) maps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dt_tools.binding import MappedReg
    from dt_tools.merge_view import GuestView
    from dt_tools.platform import Master, Platform
    from dt_tools.tree import Node

    _Keys = Callable[[Node], Iterable[object]]
    _HostKeys = Callable[[Master], Iterable[object]]

_STREAMS = ("iommus", "iommu-map")


class Claims:
    """The host devices that the nodes of `view` claim.

    Attributes:
        of: assigned device (full host path) by node of /passthrough.
        alike: why a node of a device's name, or with its registers, was not taken for it.
    """

    def __init__(
        self,
        view: GuestView,
        platform: Platform,
        hosts: Mapping[str, Master],
        pins: Sequence[MappedReg] = (),
    ) -> None:
        self.view = view
        self.platform = platform
        self.hosts = hosts
        self.pins = pins
        self.smmus = {smmu.path for smmu in platform.smmus}
        self.bridges = {m.path: m for m in platform.masters if "iommu-map" in m.node.props}
        self.of: dict[Node, str] = {}
        self.alike: dict[Node, tuple[str, ...]] = {}
        self._by_path()
        self._by(lambda node: (node.name,), lambda master: (master.node.name,))
        if len(set(self.of.values())) < len(hosts):
            self._by(self._places, self._host_places)

    def _by_path(self) -> None:
        for node in self.view.nodes:
            path = node.string("xen,path")
            if path is None or path in self.smmus:
                continue
            if "iommu-map" in node.props and path in self.bridges:
                continue
            device = self._assigned(path)
            if device is None:
                reason = f"its xen,path {path} is not in dtdev"
                raise Refusal("DT501", node.path, reason, "add that path to dtdev")
            self.of[node] = device

    def _assigned(self, path: str) -> str | None:
        """The device in dtdev at `path` or around it."""
        while path:
            if path in self.hosts:
                return path
            path = path.rpartition("/")[0]
        return None

    def _by(self, here: _Keys, there: _HostKeys) -> None:
        """Match what one node and one device alone have; what several have is noted."""
        taken = set(self.of.values())
        devices: dict[object, list[str]] = {}
        for path, master in self.hosts.items():
            if path not in taken:
                for key in there(master):
                    devices.setdefault(key, []).append(path)
        if not devices:
            return
        nodes: dict[object, list[Node]] = {}
        for node in self.view.nodes[1:]:
            if node not in self.of and node.string("xen,path") is None:
                for key in here(node):
                    if key in devices:
                        nodes.setdefault(key, []).append(node)
        for key, found in nodes.items():
            self._match(found, devices[key])

    def _match(self, nodes: list[Node], devices: list[str]) -> None:
        masters = [node for node in nodes if any(name in node.props for name in _STREAMS)]
        wanted = list(dict.fromkeys(masters or nodes[:1]))
        paths = tuple(dict.fromkeys(devices))
        if len(wanted) == 1 and len(paths) == 1:
            if self.of.setdefault(wanted[0], paths[0]) != paths[0]:
                del self.of[wanted[0]]
                self.alike[wanted[0]] = paths
            return
        for node in wanted:
            self.alike[node] = paths

    def _places(self, node: Node) -> Iterable[object]:
        """(compatible, address) of the node, each address as the host has it."""
        if "reg" not in node.props:
            return ()
        names = node.strings("compatible") or ()
        bases = [self._host_base(reg.cpu_base) for reg in self.view.regs(node)]
        return [(name, base) for name in names for base in bases]

    def _host_places(self, master: Master) -> Iterable[object]:
        names = master.node.strings("compatible") or ()
        regs = self.platform.reg_of(master.node) or ()
        return [(name, reg.cpu_base) for name in names for reg in regs]

    def _host_base(self, address: int) -> int:
        for pin in reversed(self.pins):
            if pin.guest <= address < pin.guest + pin.size:
                return address - pin.guest + pin.host
        return address

    def bridge(self, node: Node) -> Master | None:
        """The host's bus that a node with an iommu-map stands for."""
        path = node.string("xen,path")
        if path is not None:
            return self.bridges.get(path)
        named = [m for m in self.bridges.values() if m.node.name == node.name]
        if len(named) == 1:
            return named[0]
        mine = set(self._places(node))
        placed = [m for m in self.bridges.values() if not mine.isdisjoint(self._host_places(m))]
        return placed[0] if len(placed) == 1 else None
