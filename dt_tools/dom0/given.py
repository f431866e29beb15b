# SPDX-License-Identifier: BSD-2-Clause
"""Devices that are given away: what they may be, and how the trees say that they are gone.

There are two readers. Xen reads the host's tree, where `xen,passthrough` on a node keeps the
device from dom0. dom0 reads the tree that Xen makes for it, where the node has no such property
and the status `disabled`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.dom0.versions import TIMERS, is_one
from dt_tools.errors import Refusal
from dt_tools.masters import is_master
from dt_tools.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from dt_tools.platform import Master, Platform
    from dt_tools.tree import Node

PASSTHROUGH = "xen,passthrough"
_RESOURCES = {"reg", "interrupts", "interrupts-extended"}
_PCI = ("pci", "pciex")
# Nodes at the root that describe no device; what is below them is none either.
_NO_DEVICES = ("chosen", "cpus", "aliases", "memory", "reserved-memory", "psci", "hypervisor",
               "__symbols__", "passthrough")  # fmt: skip
# Firmware and timers that Xen itself needs or stands for, wherever the tree has them.
_XENS_OWN = ("arm,psci", "arm,psci-0.2", "arm,psci-1.0", *TIMERS)
# Nodes that are named for one given device before the rest is counted.
_MAX_USERS = 4
_CONTROLLER, _NAME_ONE = "the interrupt controller of all domains", "name a device's node"


@dataclass(frozen=True, slots=True)
class Given:
    """The host paths of devices that dom0 does not get, in order, and what there is to know."""

    paths: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


NO_GIVEN = Given()


def take(platform: Platform, owners: Sequence[tuple[str, Sequence[str]]]) -> Given:
    """Check the devices that dom0 is to lose.

    Args:
        platform: the host; devices that its tree marks `xen,passthrough` count as given.
        owners: who gets devices (a name for messages) and their host paths.

    Raises:
        UserError: a path is not in the host's tree.
        Refusal: DT103 two owners, DT106 an SMMU, DT107 a host bridge, DT205 a page of registers
            shared with a device that stays, DT503 a stream shared with one, DT610 no device. What
            is below a device goes with it, and is refused by the same rules.
    """
    users: dict[str, str] = {}
    smmus = {id(smmu.node) for smmu in platform.smmus}
    for owner, paths in owners:
        for name in paths:
            node = platform.resolve(name)
            _check_device(platform, node, smmus)
            if users.setdefault(node.path, owner) != owner:
                reason = f"is given to {users[node.path]} and to {owner}"
                raise Refusal("DT103", node.path, reason, "give it to one of them")
    gone = _whole(platform, users)
    masters = {master.path: master for master in platform.masters}
    notices = [notice for path in users for notice in _loose(platform, path, masters, gone)]
    notices += _streams(platform, masters, users, gone)
    return Given(tuple(users), tuple(notices))


def _check_device(platform: Platform, node: Node, smmus: Collection[int]) -> None:
    """The node is a guest's to have, and so is all that goes along with it."""
    path = node.path
    top = path.split("/")[1].partition("@")[0]
    gic = None if platform.gic is None else platform.gic.node
    if gic is not None and gic in node.ancestors():
        raise Refusal("DT610", path, f"is {_CONTROLLER}", _NAME_ONE)
    _check_node(node, "", gic, smmus)
    if top in _NO_DEVICES or not top or "compatible" not in node.props:
        raise Refusal("DT610", path, "is no device", _NAME_ONE)
    for inner in node.walk():
        if inner is not node:
            _check_node(inner, f", and goes along with {path}", gic, smmus)


def _check_node(node: Node, along: str, gic: Node | None, smmus: Collection[int]) -> None:
    if id(node) in smmus:
        reason = f"is an SMMU, which contains guests and cannot be one's{along}"
        raise Refusal("DT106", node.path, reason, "give away the devices behind it")
    kind = node.string("device_type")
    if "iommu-map" in node.props or kind in _PCI:
        reason = "is a bus with an iommu-map or a PCI host bridge, whose functions are the masters"
        fix = "assign its functions with pci; the bridge stays"
        raise Refusal("DT107", node.path, f"{reason}{along}", fix)
    if node is gic:
        raise Refusal("DT610", node.path, f"is {_CONTROLLER}{along}", _NAME_ONE)
    if kind in ("cpu", "memory") or is_one(node, _XENS_OWN):
        raise Refusal("DT610", node.path, f"is no device{along}", _NAME_ONE)


def _loose(
    platform: Platform, path: str, masters: Mapping[str, Master], gone: set[str]
) -> Iterable[Notice]:
    """What is wrong with one device, and who else has its registers."""
    node = platform.resolve(path)
    off = next((n for n in (node, *node.ancestors()) if n.status != "okay"), None)
    if off is not None:
        yield Notice("DT105", path, f'{off.path} has status "{off.status}" in the host tree')
    if not is_master(node) or not masters[path].streams:
        yield Notice("DT101", path, "is not a DMA master of any SMMU; if it does DMA, the guest's"
                     " reaches all memory")  # fmt: skip
    if "reg" in node.props and platform.reg_of(node) is None:
        yield Notice("DT202", path, "its reg does not translate to CPU addresses; the pages it "
                     "shares with others are not known")  # fmt: skip
    for inner in node.walk():
        _check_pages(platform, inner, gone)


def _check_pages(platform: Platform, node: Node, gone: Collection[str]) -> None:
    """DT205: a device that stays has no register in the node's pages."""
    # A limit above all that is given away, so that one that stays cannot hide behind it.
    for other in platform.page_neighbours(node, len(gone) + 1):
        if other not in gone:
            reason = f"shares a 4 KiB page of registers with {other}, which stays with dom0"
            raise Refusal("DT205", node.path, reason, f"give away {other} too, or neither")


def _whole(platform: Platform, given: Iterable[str]) -> set[str]:
    """The given devices, those that the host's tree marks, and all that is below them."""
    gone: set[str] = set()
    tops = [n for n in platform.tree.walk() if PASSTHROUGH in n.props]
    for node in (*map(platform.resolve, given), *tops):
        if node.path not in gone:
            gone.update(one.path for one in node.walk())
    return gone


def _streams(
    platform: Platform, masters: Mapping[str, Master], users: Mapping[str, str], gone: set[str]
) -> Iterable[Notice]:
    """DT503: no enabled device that stays with dom0 may have a stream of one that is given away."""
    keys: dict[tuple[str, int], str] = {}
    for top in users:
        for path in [n.path for n in platform.resolve(top).walk() if n.path in masters]:
            for stream in masters[path].streams:
                key = stream.smmu_path, stream.stream_id
                other = keys.setdefault(key, top)
                if users[other] != users[top]:
                    reason = f"shares StreamID {key[1]:#x} of {key[0]} with {other}, which is "
                    fix = "give both to one guest"
                    raise Refusal("DT503", path, f"{reason}{users[other]}'s", fix)
    by_smmu: dict[str, list[int]] = {}
    for smmu, sid in sorted(keys):
        by_smmu.setdefault(smmu, []).append(sid)
    for master in platform.masters:
        if master.status != "okay" or master.path in gone:
            continue
        for stream in master.streams:
            key = stream.smmu_path, stream.stream_id
            if key in keys:
                reason = f"shares StreamID {key[1]:#x} of {key[0]} with {master.path}, which stays"
                fix = f"give away {master.path} too, or neither"
                raise Refusal("DT503", keys[key], f"{reason} with dom0", fix)
        for row in master.maps:
            sids = by_smmu.get(row.smmu_path, [])
            at = bisect_left(sids, row.sid_base)
            if at < len(sids) and sids[at] < row.sid_base + row.length:
                what = f"StreamID {sids[at]:#x} of {row.smmu_path} is in the iommu-map of"
                text = f"{what} {master.path}, which stays with dom0"
                yield Notice("DT503", keys[row.smmu_path, sids[at]], text)
                break


def marked_nodes(tree: Tree, paths: Iterable[str]) -> list[Node]:
    """The nodes at `paths`, and those below them with registers or interrupts of their own.

    Xen looks at each node by itself: without a mark dom0 gets what it has.
    """
    found = []
    for path in paths:
        top = tree.node(path)
        assert top is not None, "resolved before"
        found += [n for n in top.walk() if n is top or not _RESOURCES.isdisjoint(n.props)]
    return found


def mark(tree: Tree, paths: Iterable[str]) -> None:
    """Put `xen,passthrough` on the devices at `paths`."""
    for node in marked_nodes(tree, paths):
        if PASSTHROUGH not in node.props:
            node.set_empty(PASSTHROUGH)


def mark_host(platform: Platform, given: Given) -> Tree:
    """The host's tree for Xen to boot with: the given devices marked, and nothing else changed."""
    tree = platform.tree.copy()
    mark(tree, given.paths)
    return tree


def hide(tree: Tree, given: Given) -> None:
    """Make dom0's tree say that the devices are gone: given ones, and those the host marks."""
    paths = {node.path for node in marked_nodes(tree, given.paths)}
    for node in tree.walk():
        if PASSTHROUGH in node.props or node.path in paths:
            node.props.pop(PASSTHROUGH, None)
            node.set_strings("status", "disabled")


def users_of(tree: Tree, given: Given) -> tuple[Notice, ...]:
    """Nodes that stay with dom0 and name a given device: they lose a clock, a reset, a PHY ..."""
    from dt_tools.references import references

    phandles, inside = tree.phandles(), {}
    for path in given.paths:
        top = tree.node(path)
        inside.update({} if top is None else dict.fromkeys((n.path for n in top.walk()), path))
    owned = {v: inside[node.path] for v, node in phandles.items() if node.path in inside}
    found: dict[str, dict[str, None]] = {}
    for node in tree.walk() if owned else ():
        if node.path in inside or node.status != "okay":
            continue
        for ref in references(node, phandles):
            if ref.phandle in owned:
                found.setdefault(owned[ref.phandle], {}).setdefault(f"{node.path} ({ref.name})")
    return tuple(Notice("DT611", path, _named(list(names))) for path, names in found.items())


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_USERS} more" if len(names) > _MAX_USERS else ""
    return f"nodes that stay with dom0 name it: {', '.join(names[:_MAX_USERS])}{more}"
