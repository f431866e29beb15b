# SPDX-License-Identifier: BSD-2-Clause
"""Which node of a hand-written /passthrough stands for which assigned device of the host.

By `xen,path`; else by the host node's name, whole, when it is the name of one device and of one
node; else by registers and a `compatible` string together. Guest addresses are taken to be the
host's unless `pins` (the configuration's iomem) maps them. A name that the registers contradict
says no device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.errors import Refusal
from dt_tools.merge_places import GuestMap, Places

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
        torn: (device of the node's name, device of its registers), which are not the same.
        strays: xen,path of nodes that names nothing in dtdev.
        notices: what nodes without streams, or of a sure device, say twice.
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
        self._iomem = GuestMap(pins)
        self.smmus = {smmu.path for smmu in platform.smmus}
        self.bridges = {m.path: m for m in platform.masters if "iommu-map" in m.node.props}
        self.of: dict[Node, str] = {}
        self.alike: dict[Node, tuple[str, ...]] = {}
        self.torn: dict[Node, tuple[str, str]] = {}
        self.strays: dict[Node, str] = {}
        self.notices: list[Notice] = []
        self._places_of = Places(platform, [master.node for master in hosts.values()])
        self._by_path()
        self._by(lambda node: (node.name,), lambda master: (master.node.name,))
        self._compare_registers()
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
                self.strays[node] = path
            else:
                self.of[node] = device

    def check(self) -> None:
        """Refuse (DT501) a node whose xen,path is no device of the guest."""
        for node, path in self.strays.items():
            reason = f"its xen,path {path} is not in dtdev"
            raise Refusal("DT501", node.path, reason, "add that path to dtdev")

    def _compare_registers(self) -> None:
        """Find nodes that have registers of another device in dtdev, and none of their own."""
        if len(self.hosts) < 2:
            return
        for node, device in list(self.of.items()):
            other = self._elsewhere(node, device, self._places_of)
            if other is None:
                continue
            path = node.string("xen,path")
            if path is not None:
                text = f"has registers of {other}, and its xen,path says {path}"
                self.notices.append(Notice("DT206", node.path, text))
                continue
            del self.of[node]
            self.torn[node] = device, other
            if not any(name in node.props for name in _STREAMS):
                text = f"has the name of {device} and registers of {other}: it is taken for neither"
                self.notices.append(Notice("DT206", node.path, text))

    def _elsewhere(self, node: Node, device: str, places: Places) -> str | None:
        """Whose registers the node has, when none of them is one of `device`'s."""
        if "reg" not in node.props:
            return None
        bases = [self._iomem.host(reg.cpu_base) for reg in self.view.regs(node)]
        if any(places.has(device, base) for base in bases):
            return None
        others = (places.other(device, base) for base in bases)
        return next((other for other in others if other is not None), None)

    def contradiction(self, node: Node, what: str) -> Refusal | None:
        """DT542 for a node whose name and registers are two devices', and for those inside it.

        `what` are its streams, "iommus" or "iommu-map".
        """
        if not self.torn or node in self.of:
            return None
        for at in (node, *node.ancestors()):
            if at in self.of:
                return None
            if at in self.torn:
                name, registers = self.torn[at]
                inside = "" if at is node else f"lies in {at.path}, which "
                reason = f"{inside}has the name of {name} and registers of {registers}: its {what} "
                reason += "can be each one's"
                fix = "give xen,path with the host path of the one that is meant"
                return Refusal("DT542", node.path, reason, fix)
        return None

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
            if node in self.of or node in self.torn:
                continue
            if node.string("xen,path") is None:
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
        bases = [self._iomem.host(reg.cpu_base) for reg in self.view.regs(node)]
        return [(name, base) for name in names for base in bases]

    def _host_places(self, master: Master) -> Iterable[object]:
        names = master.node.strings("compatible") or ()
        regs = self.platform.reg_of(master.node) or ()
        return [(name, reg.cpu_base) for name in names for reg in regs]

    def bridge(self, node: Node) -> Master | None:
        """The host's bus that a node with an iommu-map stands for.

        Raises:
            Refusal: DT542, its name is one bus's and its registers are another's.
        """
        refusal = self.contradiction(node, "iommu-map")
        if refusal is not None:
            raise refusal
        path = node.string("xen,path")
        if path is not None:
            return self.bridges.get(path)
        named = [m for m in self.bridges.values() if m.node.name == node.name]
        if len(named) == 1:
            self._check_bridge(node, named[0].path)
            return named[0]
        mine = set(self._places(node))
        placed = [m for m in self.bridges.values() if not mine.isdisjoint(self._host_places(m))]
        return placed[0] if len(placed) == 1 else None

    def _check_bridge(self, node: Node, named: str) -> None:
        if len(self.bridges) < 2:
            return
        places = Places(self.platform, [master.node for master in self.bridges.values()])
        other = self._elsewhere(node, named, places)
        if other is not None:
            self.torn[node] = named, other
            refusal = self.contradiction(node, "iommu-map")
            assert refusal is not None, "just found"
            raise refusal
