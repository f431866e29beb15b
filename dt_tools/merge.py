# SPDX-License-Identifier: BSD-2-Clause
"""A `/passthrough` written by hand: copied into the guest's tree, its StreamIDs made vMasterIDs.

`merge_partial` checks what would break the guest's tree (phandles, streams that are not the
guest's) and leaves registers and interrupts as the user wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, DeviceBinding, Notice
from dt_tools.carry import NO_PHANDLES
from dt_tools.errors import Refusal
from dt_tools.partial import Partial, reserved_phandles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.platform import Master, Platform
    from dt_tools.profiles import GuestProfile
    from dt_tools.tree import Node, Tree


def merge_partial(
    tree: Tree,
    partial: Tree,
    *,
    guest: GuestProfile,
    platform: Platform | None = None,
    devices: Sequence[str] = (),
    bindings: Bindings | None = None,
) -> Partial:
    """Copy `/passthrough` and `/aliases` of `partial` into the guest's `tree`.

    Everything is copied as it stands and the rest of `partial` is dropped. With `bindings` (the
    guest has a vSMMU) every `iommus` entry at any depth becomes <vSMMU vMasterID>. An entry's
    SMMU is that of the host node among `devices` which the node names by `xen,path` or by its
    own name, else that of the entry's host phandle. Registers and interrupts stay the user's:
    the returned `Partial` has the devices with their ids, and notices.

    Raises:
        Refusal: DT211 no /passthrough; DT402 to DT404 a phandle; DT405 a malformed iommus;
            DT501 an entry that no assigned device has; DT505 an iommu-map.
    """
    odd = next((n for n in partial.root.children if n.startswith("passthrough@")), None)
    if odd is not None or "passthrough" not in partial.root.children:
        reason = f"is /{odd}" if odd else "is missing"
        fix = "name the node exactly /passthrough"
        raise Refusal("DT211", "/passthrough", f"{reason} in the partial tree", fix)
    for name in ("passthrough", "aliases"):
        if name in partial.root.children:
            tree.root.add(name).copy_from(partial.root.children[name])
    _check_phandles(tree, guest)
    notices = _check_bus(tree.root.children["passthrough"])
    if bindings is None:
        return Partial(tree, notices=tuple(notices))
    if platform is None:
        _check_no_iommus(tree.root.children["passthrough"])
        return Partial(tree, notices=tuple(notices))
    merger = _Merger(platform, devices, bindings, partial, guest)
    return merger.merge(tree.root.children["passthrough"], tree, notices)


def _check_phandles(tree: Tree, guest: GuestProfile) -> None:
    reserved = reserved_phandles(guest)
    seen: dict[int, str] = {}
    copied = [tree.root.children[n] for n in ("passthrough", "aliases") if n in tree.root.children]
    for node in (inner for top in copied for inner in top.walk()):
        phandle = node.phandle
        if phandle is None:
            continue
        path = node.path
        if phandle in NO_PHANDLES:
            raise Refusal("DT404", path, f"phandle {phandle:#x} is no phandle", "use 1 to 64999")
        if phandle in reserved:
            reason = f"phandle {phandle} is reserved for {reserved[phandle]}"
            raise Refusal("DT402", path, reason, "use 1 to 64999")
        if phandle in seen:
            reason = f"phandle {phandle:#x} is {seen[phandle]}'s already"
            raise Refusal("DT403", path, reason, "give each node its own phandle")
        seen[phandle] = path


def _check_bus(bus: Node) -> list[Notice]:
    """Xen takes any /passthrough; a guest finds no device behind one that is no bus."""
    wrong = [
        text
        for text, right in (
            ('compatible = "simple-bus"', bus.is_compatible("simple-bus")),
            ("ranges", "ranges" in bus.props),
            ("#address-cells", bus.u32("#address-cells") in (1, 2)),
            ("#size-cells", bus.u32("#size-cells") in (1, 2)),
        )
        if not right
    ]
    if not wrong:
        return []
    return [Notice("DT213", bus.path, f"lacks {', '.join(wrong)}: a guest will not probe it")]


def _check_no_iommus(bus: Node) -> None:
    for node in bus.walk():
        if "iommus" in node.props or "iommu-map" in node.props:
            reason = "has iommus, and there is no host tree to find its SMMU in"
            raise Refusal("DT501", node.path, reason, "give the host's device tree")


class _Merger:
    def __init__(
        self,
        platform: Platform,
        devices: Sequence[str],
        bindings: Bindings,
        partial: Tree,
        guest: GuestProfile,
    ) -> None:
        masters = {master.path: master for master in platform.masters}
        paths = [platform.resolve(device).path for device in devices]
        self.hosts: dict[str, Master] = {path: masters[path] for path in paths}
        self.by_name: dict[str, list[str]] = {}
        for path in paths:
            self.by_name.setdefault(path.rpartition("/")[2], []).append(path)
        self.bindings = bindings
        self.vsmmu_phandle = guest.vsmmu_phandle
        # A phandle that the partial tree defines is its own and says nothing about the host.
        own = partial.phandles()
        self.smmus = {
            smmu.phandle: smmu.path
            for smmu in platform.smmus
            if smmu.phandle is not None and smmu.phandle not in own
        }
        self.found: dict[str, tuple[str, tuple[int, ...]]] = {}

    def merge(self, bus: Node, tree: Tree, notices: list[Notice]) -> Partial:
        for node in bus.walk():
            if "iommu-map" in node.props:
                reason = "has an iommu-map, which is not rewritten here"
                raise Refusal("DT505", node.path, reason, "assign devices with iommus only")
            if "iommus" in node.props:
                self._rewrite(node)
            else:
                host = self._host(node)
                if host is not None:
                    self.found.setdefault(host, (node.path, ()))
        for path, master in self.hosts.items():
            given = self.found.get(path, ("", ()))[1]
            missing = len({(s.smmu_path, s.stream_id) for s in master.streams}) - len(given)
            if missing:
                text = f"{missing} of its streams are not in the partial tree: their DMA faults"
                notices.append(Notice("DT504", path, text))
        devices = tuple(DeviceBinding(path, at, ids) for path, (at, ids) in self.found.items())
        return Partial(tree, devices, tuple(notices))

    def _host(self, node: Node) -> str | None:
        """The assigned host node that a guest node stands for, by xen,path or by name."""
        named = node.string("xen,path")
        if named is not None:
            if named not in self.hosts:
                reason = f"its xen,path {named} is not in dtdev"
                raise Refusal("DT501", node.path, reason, "add that path to dtdev")
            return named
        paths = self.by_name.get(node.name, [])
        return paths[0] if len(paths) == 1 else None

    def _rewrite(self, node: Node) -> None:
        cells = node.cells("iommus")
        if not cells or len(cells) % 2:
            reason = f"iommus has {len(node.props['iommus'])} bytes, not pairs of cells"
            raise Refusal("DT405", node.path, reason, "write <phandle StreamID> pairs")
        host = self._host(node)
        ids: list[int] = []
        for phandle, stream_id in zip(cells[::2], cells[1::2], strict=True):
            ids.append(self._vmaster_id(node, host, phandle, stream_id))
        node.set_cells("iommus", *(cell for vid in ids for cell in (self.vsmmu_phandle, vid)))
        host = host or self._owner(ids)
        if host is not None:
            self.found[host] = (node.path, tuple(dict.fromkeys(ids)))

    def _owner(self, ids: Sequence[int]) -> str | None:
        """The one assigned device that has all these streams, for a node of another name."""
        bound = [self.bindings.resolve(vid) for vid in ids]
        users = [set(binding.devices) for binding in bound if binding is not None]
        owners = set.intersection(*users) - self.found.keys()
        return owners.pop() if len(owners) == 1 else None

    def _vmaster_id(self, node: Node, host: str | None, phandle: int, stream_id: int) -> int:
        smmu = self.smmus.get(phandle)
        if host is not None:
            smmu = self._smmu_of(node, host, smmu, stream_id)
        vid = None if smmu is None else self.bindings.vmaster_id(smmu, stream_id)
        if vid is None:
            reason = f"iommus <{phandle:#x} {stream_id:#x}> is no stream of a device in dtdev"
            fix = "name the node like its host node, or give xen,path, and list it in dtdev"
            raise Refusal("DT501", node.path, reason, fix)
        return vid

    def _smmu_of(self, node: Node, host: str, claimed: str | None, stream_id: int) -> str:
        """The SMMU of the host device's stream; `claimed` is what the entry's phandle says."""
        streams = self.hosts[host].streams
        smmus = list(dict.fromkeys(s.smmu_path for s in streams if s.stream_id == stream_id))
        if claimed in smmus:
            return claimed
        if claimed is None and len(smmus) == 1:
            return smmus[0]
        said = f"({claimed or 'unknown SMMU'}, {stream_id:#x})"
        has = ", ".join(f"({s.smmu_path}, {s.stream_id:#x})" for s in streams[:8])
        reason = f"iommus says {said}, the host's {host} has {has}"
        raise Refusal("DT501", node.path, reason, "copy the host node's iommus unchanged")
