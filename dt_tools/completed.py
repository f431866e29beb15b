# SPDX-License-Identifier: BSD-2-Clause
"""From a device list alone: the partial tree and the guest configuration that go with it.

`complete` writes what a user of xl otherwise writes by hand: the tree with /passthrough that
`device_tree` names, and the configuration with dtdev, irqs, iomem and device_tree filled in. The
guest built from the two is the guest built from the device list: that is checked each time.

The partial tree is what libxl expects to read. With a vSMMU each device has the `iommus` of its
host node, <phandle of the physical SMMU, pMasterID>, which the toolstack makes vMasterIDs of; it
names no node of the partial tree, and libxl replaces it. Without one no device has `iommus`: dtdev
has Xen assign the streams.

Limits: those of `build_guest`, and one vSMMU with one cell to a StreamID.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from dt_tools.binding import MappedReg, allocate
from dt_tools.errors import Refusal, UserError
from dt_tools.extended import MAX_WINDOWS, PAGE
from dt_tools.guest import GuestTree, Options, build_guest
from dt_tools.merge import merge_partial
from dt_tools.profiles import DEFAULT, Profile
from dt_tools.tree import Node, Tree
from xl_configs.frozen import frozen, replace
from xl_configs.specs.devid_map import DevidMap
from xl_configs.specs.resources import Iomem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.platform import Platform
    from xl_configs import GuestConfig

HEADER = (
    "# Completed by vsmmu partial-dtb: dtdev, irqs, iomem and device_tree belong together, and to\n"
    "# the host tree they were made from.\n\n"
)


@frozen
class Completed:
    """What belongs together: the partial tree, the configuration that names it, the guest.

    `guest` was built from the device list; its tree and vMasterIDs are those that the two give.
    """

    partial: Tree
    config: GuestConfig
    guest: GuestTree

    def cfg(self) -> bytes:
        """The configuration as text that xl reads.

        Raises:
            ValueError: no configuration says it; happens to none that was read from one.
        """
        from xl_configs.printer import to_cfg

        return (HEADER + to_cfg(self.config)).encode("utf-8", "surrogateescape")


def complete(
    config: GuestConfig,
    platform: Platform,
    device_tree: str,
    *,
    profile: Profile = DEFAULT,
    address_bits: int = 40,
    options: Options | None = None,
) -> Completed:
    """The partial tree for the `dtdev` of `config`, and `config` with all it needs.

    Args:
        config: the guest's configuration; its device_tree is replaced.
        platform: the host.
        device_tree: the name of the file that the partial tree goes to.
        profile: guest map, interrupts and phandles.
        address_bits: width of a guest physical address on the host.
        options: what else says how the guest is built.

    Raises:
        UserError: no devices, or one that the host does not have.
        Refusal: what cannot be built, by rule id.
    """
    if not config.dtdev:
        hint = "list the host paths of the guest's devices"
        raise UserError("dtdev", "/", "no devices: there is no partial tree to write", hint)
    alone = replace(config, device_tree=None)
    built = build_guest(alone, profile, platform, address_bits=address_bits, options=options)
    partial = _partial(built, platform)
    full = replace(
        config,
        irqs=built.irqs,
        iomem=_iomem(config.iomem, built.iomem),
        device_tree=device_tree,
        iommu_devid_map=_devid_map(config, platform, built),
    )
    _check(full, profile, platform, partial, built)
    return Completed(partial, full, built)


def _partial(built: GuestTree, platform: Platform) -> Tree:
    """/passthrough of the guest's tree, with the streams of the host in place of vMasterIDs."""
    tree = Tree()
    tree.root.set_cells("#address-cells", 2)
    tree.root.set_cells("#size-cells", 2)
    made = built.tree.root.children["passthrough"]
    tree.root.add("passthrough").copy_from(made)
    phandles = {smmu.path: smmu.phandle for smmu in platform.smmus}
    masters = {master.path: master for master in platform.masters}
    for device in built.bindings.devices:
        node = tree.node(device.guest_path)
        assert node is not None, "copied above"
        if "iommus" in node.props:
            streams = masters[device.path].streams
            pairs = dict.fromkeys((phandles[s.smmu_path], s.stream_id) for s in streams)
            _set_iommus(node, pairs)
    return tree


def _set_iommus(node: Node, pairs: dict[tuple[int | None, int], None]) -> None:
    cells: list[int] = []
    for phandle, stream_id in pairs:
        assert phandle is not None, "iommus found the SMMU by it"
        cells += (phandle, stream_id)
    node.set_cells("iommus", *cells)


def _devid_map(config: GuestConfig, platform: Platform, built: GuestTree) -> tuple[DevidMap, ...]:
    """`iommu_devid_map`: as it is, or what it takes to give the ids of an earlier map again."""
    given = tuple(config.iommu_devid_map)
    if built.bindings.viommu is None:
        return given
    ids = {(e.smmu, e.pmaster_id): e for e in built.bindings.entries}
    alone = allocate(platform, config.dtdev, wanted=given, pci=built.pci)
    if all(ids[e.smmu, e.pmaster_id].vmaster_id == e.vmaster_id for e in alone.entries):
        return given
    return tuple(DevidMap(e.pmaster_id, e.vmaster_id, e.smmu_base) for e in ids.values())


def _iomem(given: Sequence[Iomem], needed: Sequence[MappedReg]) -> tuple[Iomem, ...]:
    """The entries of the configuration and of the devices, each once.

    Sorted by host frame where the order says nothing; where ranges overlap, on either side, a
    later one decides, and the order is the configuration's.
    """
    added = (Iomem(r.host // PAGE, r.size // PAGE, r.guest // PAGE) for r in needed)
    entries = list(dict.fromkeys((*given, *added)))
    ordered = sorted(entries, key=lambda entry: entry.start)
    hosts = [(entry.start, entry.count) for entry in ordered]
    guests = sorted((entry.gfn, entry.count) for entry in entries)
    return tuple(entries if _overlap(hosts) or _overlap(guests) else ordered)


def _overlap(ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether two neighbours of the sorted (first, number) ranges share a frame or a start."""
    return any(first + max(count, 1) > second for (first, count), (second, _) in pairwise(ranges))


def _check(
    full: GuestConfig, profile: Profile, platform: Platform, partial: Tree, built: GuestTree
) -> None:
    """Make the guest's /passthrough of the partial tree too: it must be the one that was built.

    Raises:
        Refusal: DT212, the configuration has more iomem entries than are read.
    """
    if len(full.iomem) > MAX_WINDOWS:
        reason = f"{len(full.iomem)} iomem entries, more than {MAX_WINDOWS}"
        raise Refusal("DT212", "/", reason, "join adjacent ranges")
    bindings = built.bindings if built.bindings.all_viommus else None
    again = merge_partial(
        Tree(),
        partial,
        guest=profile.guest,
        platform=platform,
        devices=full.dtdev,
        bindings=bindings,
        pins=built.iomem,
    )
    made, wanted = (tree.root.children["passthrough"] for tree in (again.tree, built.tree))
    assert _same(made, wanted), "the partial tree makes another guest"


def _same(one: Node, other: Node) -> bool:
    """Whether two trees have the same nodes and properties in the same order."""
    pairs = zip(one.walk(), other.walk(), strict=False)
    return all(
        first.name == second.name
        and list(first.props.items()) == list(second.props.items())
        and list(first.children) == list(second.children)
        for first, second in pairs
    )
