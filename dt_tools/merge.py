# SPDX-License-Identifier: BSD-2-Clause
"""A `/passthrough` written by hand: copied into the guest's tree, its StreamIDs made vMasterIDs.

`merge_partial` refuses what would give the guest a stream that is not the device's, or a tree with
two nodes of one phandle; it notes what the guest's kernel will fail over. Registers and interrupts
stay as the user wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, DeviceBinding, Notice
from dt_tools.errors import Refusal
from dt_tools.partial import Partial, reserved_phandles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.binding import MappedReg
    from dt_tools.merge_maps import Maps
    from dt_tools.merge_view import GuestView
    from dt_tools.platform import Master, Platform
    from dt_tools.profiles import GuestProfile
    from dt_tools.tree import Node, Tree

# Of one list so many are told, of one kind of notice so many given.
_MAX_NAMED, _MAX_NOTICES = 8, 64


def merge_partial(
    tree: Tree,
    partial: Tree,
    *,
    guest: GuestProfile,
    platform: Platform | None = None,
    devices: Sequence[str] = (),
    bindings: Bindings | None = None,
    pins: Sequence[MappedReg] = (),
) -> Partial:
    """Copy `/passthrough` and `/aliases` of `partial` into the guest's `tree`.

    Everything is copied as it stands and the rest of `partial` is dropped. With `bindings` (the
    guest has a vSMMU) every `iommus` entry and every row of an `iommu-map`, at any depth, becomes
    one of vMasterIDs. Which of `devices` a node stands for is `merge_claims`' to say, what an
    entry means `merge_streams`'. Registers and interrupts stay the user's: the returned `Partial`
    has the devices with their ids, and notices.

    Args:
        tree: the tree to copy into.
        partial: the tree that `device_tree` names.
        guest: fixed phandles of the guest.
        platform: the host; needed for streams.
        devices: host paths, the `dtdev` list.
        bindings: the guest's vMasterIDs and vSMMUs; None without a vSMMU.
        pins: the configuration's iomem in bytes, to know devices by their registers.

    Raises:
        Refusal: DT211 no /passthrough; DT402 to DT404 a phandle; DT405, DT505 malformed
            entries or rows; DT501, DT505 one that is not the guest's; DT540 and DT541 a stand-in
            for an SMMU; DT542 an entry that can be several streams.
        DtbError: the partial tree asks for more work than the platform's limit.
    """
    from dt_tools.merge_view import GuestView

    odd = next((n for n in partial.root.children if n.startswith("passthrough@")), None)
    if odd is not None or "passthrough" not in partial.root.children:
        reason = f"is /{odd}" if odd else "is missing"
        fix = "name the node exactly /passthrough"
        raise Refusal("DT211", "/passthrough", f"{reason} in the partial tree", fix)
    for name in ("passthrough", "aliases"):
        if name in partial.root.children:
            tree.root.add(name).copy_from(partial.root.children[name])
    several = () if bindings is None else bindings.viommus
    notices = _check_phandles(tree, guest, [viommu.phandle for viommu in several])
    notices += _check_bus(tree.root.children["passthrough"])
    view = GuestView(tree, partial, guest, bindings)
    if bindings is None:
        notices += _without_vsmmu(view)
        return Partial(tree, notices=(*notices, *view.notices(platform)))
    if platform is None:
        _check_no_iommus(tree.root.children["passthrough"])
        return Partial(tree, notices=(*notices, *view.notices(None)))
    notices += view.notices(platform)
    merger = _Merger(platform, devices, bindings, partial, guest, view, pins)
    return merger.merge(tree, notices)


def _check_phandles(tree: Tree, guest: GuestProfile, more: Sequence[int]) -> list[Notice]:
    from dt_tools.merge_phandles import faults

    reserved = {**dict.fromkeys(more, "a vSMMU"), **reserved_phandles(guest)}
    copied = [tree.root.children[n] for n in ("passthrough", "aliases") if n in tree.root.children]
    notices = []
    for fault in faults((inner for top in copied for inner in top.walk()), reserved):
        if fault.refused:
            raise Refusal(fault.rule, fault.path, fault.reason, fault.fix)
        notices.append(Notice(fault.rule, fault.path, f"{fault.reason}; {fault.fix}"))
    return notices[:_MAX_NOTICES]


def _check_bus(bus: Node) -> list[Notice]:
    """Xen takes any /passthrough; a guest finds no device behind one that is no bus."""
    from dt_tools.merge_view import not_a_bus

    wrong = not_a_bus(bus)
    return [Notice("DT213", bus.path, f"{wrong}: a guest will not probe it")] if wrong else []


def _without_vsmmu(view: GuestView) -> list[Notice]:
    """Without a vSMMU, streams are copied like everything else, and name nothing."""
    users = [n for n in view.nodes if "iommus" in n.props or "iommu-map" in n.props]
    own = [
        n for n in users if (n.cells("iommus") or n.cells("iommu-map") or (0,))[0] in view.phandles
    ]
    lost = [node for node in users if node not in set(own)]
    if not lost:
        return []
    more = f", and {len(lost) - 1} more nodes" if len(lost) > 1 else ""
    text = f"has iommus{more}, and the guest has no vSMMU: they name an SMMU it does not have"
    return [Notice("DT508", lost[0].path, text)]


def _check_no_iommus(bus: Node) -> None:
    for node in bus.walk():
        if "iommus" in node.props or "iommu-map" in node.props:
            reason = "has iommus, and there is no host tree to find its SMMU in"
            raise Refusal("DT501", node.path, reason, "give the host's device tree")


class _Merger:
    """Rewrites one tree's streams and notes which device each node stands for."""

    def __init__(
        self,
        platform: Platform,
        devices: Sequence[str],
        bindings: Bindings,
        partial: Tree,
        guest: GuestProfile,
        view: GuestView,
        pins: Sequence[MappedReg],
    ) -> None:
        from dt_tools.merge_claims import Claims
        from dt_tools.merge_streams import Phandles, Streams

        masters = {master.path: master for master in platform.masters}
        paths = [platform.resolve(device).path for device in devices]
        self.hosts: dict[str, Master] = {path: masters[path] for path in paths}
        self.view = view
        self.bindings = bindings
        self.vsmmu_phandle = guest.vsmmu_phandle
        self.claims = Claims(view, platform, self.hosts, pins)
        self.claims.check()
        phandles = Phandles(platform, partial, bindings, guest.vsmmu_phandle)
        self.streams = Streams(phandles, self.claims, bindings)
        self.users = {(b.smmu, b.pmaster_id): b.devices for b in bindings.entries}
        self.maps: Maps | None = None
        self.notices = self.claims.notices[:_MAX_NOTICES]
        # Node and (SMMU or "", vMasterID) of each device.
        self.found: dict[str, tuple[str, dict[tuple[str, int], None]]] = {}

    def _phandle_of(self, smmu: str) -> int:
        phandle = self.bindings.phandle_of(smmu)
        return self.vsmmu_phandle if phandle is None else phandle

    def merge(self, tree: Tree, notices: list[Notice]) -> Partial:
        for node in self.view.nodes:
            if "iommu-map" in node.props:
                self._map(node)
            if "iommus" in node.props:
                self._rewrite(node)
            elif node in self.claims.of:
                self._give(self.claims.of[node], node, ())
        for node in self.view.nodes:
            self._stand_in(node)
        self._missing()
        devices = tuple(
            DeviceBinding(path, at, tuple(dict.fromkeys(vid for _, vid in ids)))
            for path, (at, ids) in self.found.items()
        )
        return Partial(tree, devices, (*notices, *self.notices))

    def _map(self, node: Node) -> None:
        bridge = self.claims.bridge(node)
        if self.maps is None:
            from dt_tools.merge_maps import Maps

            self.maps = Maps(self.streams, self.claims, self._phandle_of)
        mapped = self.maps.rewrite(node)
        if mapped.empty:
            text = f"{mapped.empty} rows of its iommu-map hold no id that is looked up; left out"
            self.notices.append(Notice("DT505", node.path, text))
        if bridge is not None:
            self._give(bridge.path, node, mapped.ids)

    def _rewrite(self, node: Node) -> None:
        cells: list[int] = []
        keys: dict[tuple[str, int], int] = {}
        for entry in self.streams.entries(node):
            if entry.meaning.kind == "own":
                cells += (entry.phandle, *entry.ids)
                continue
            smmu, stream_id, vid = self.streams.find(node, entry)
            cells += (self._phandle_of(smmu), vid)
            keys[smmu, stream_id] = vid
        node.set_cells("iommus", *cells)
        host = self.claims.of.get(node) or self._owner(node, tuple(keys))
        if host is not None:
            self._give(host, node, [(smmu, vid) for (smmu, _), vid in keys.items()])

    def _owner(self, node: Node, keys: Sequence[tuple[str, int]]) -> str | None:
        """The one assigned device that has all these streams, for a node of another name."""
        users = [set(self.users[key]) for key in keys]
        if not users:
            return None
        owners = set.intersection(*users)
        if not owners:
            who = sorted(set.union(*users))
            text = f"has streams of {len(who)} devices: {', '.join(who[:_MAX_NAMED])}"
            self.notices.append(Notice("DT543", node.path, text))
        # Of devices that share the streams, the one without a node so far.
        left = owners - self.found.keys() or owners
        return left.pop() if len(left) == 1 else None

    def _give(self, host: str, node: Node, ids: Sequence[tuple[str, int]]) -> None:
        """Note that `node` has streams of the device at `host`; the first node is the device's."""
        path, had = self.found.get(host, (node.path, {}))
        if ids and not had:
            path = node.path
        self.found[host] = path, {**had, **dict.fromkeys(ids)}

    def _stand_in(self, node: Node) -> None:
        """An SMMU that is copied: the guest's driver takes it for one of the guest's."""
        from dt_tools.merge_streams import is_arm_smmu

        if node is self.view.bus or not is_arm_smmu(node):
            return
        if "reg" in node.props:
            reason = "is an SMMU with registers, and the guest's SMMU is the vSMMU"
            fix = "put the stand-in outside /passthrough, or take its reg out"
            raise Refusal("DT541", node.path, reason, fix)
        text = "stands in for an SMMU and is copied: the guest's driver fails to probe it"
        self.notices.append(Notice("DT541", node.path, text))

    def _missing(self) -> None:
        for path, master in self.hosts.items():
            given = self.found.get(path, ("", {}))[1]
            missing = len({(s.smmu_path, s.stream_id) for s in master.streams}) - len(given)
            if missing > 0:
                text = f"{missing} of its streams are not in the partial tree: their DMA faults"
                self.notices.append(Notice("DT504", path, text))
