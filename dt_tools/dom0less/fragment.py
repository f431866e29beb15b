# SPDX-License-Identifier: BSD-2-Clause
"""The partial tree that Xen's dom0less builder reads: /gic, /passthrough and perhaps /aliases.

Registers, their places, interrupts and what is dropped are `build_partial`'s, as for a guest of xl.
What dom0less adds: each device says in xen,path which host node it is (interrupts and streams are
taken from there) and in xen,reg which pages to map where; nodes with interrupts name /gic, because
the root of a dom0less guest has no interrupt-parent. With a vSMMU a device has the `iommus` of its
host node, <phandle of the SMMU, pMasterID>, which Xen rewrites; without one it has none.

/aliases is copied when the partial tree has one. The host's aliases are not carried over: an alias
serial0 would take the first place among the guest's consoles from the virtual pl011.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, DeviceBinding, MappedReg, Notice, Viommu, allocate
from dt_tools.carry import NO_PHANDLES
from dt_tools.dom0less.space import check_spis, space_of
from dt_tools.errors import Refusal
from dt_tools.extended import page_window
from dt_tools.partial import Providers, build_partial
from dt_tools.profiles import DEFAULT, Profile
from dt_tools.stubs import DEFAULT_CLOCK_HZ
from dt_tools.tree import Tree, split_cells

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from dt_tools.partial import Partial
    from dt_tools.platform import Master, Platform
    from dt_tools.tree import Node
    from xl_configs import GuestConfig

FORCE = "xen,force-assign-without-iommu"
# Rules that say a device's DMA would not be contained; a user may insist.
_UNCONTAINED = ("DT101", "DT104")
# Those of build_partial that the merged host tree takes care of.
_SETTLED = ("DT103",)
_INTERRUPTS = ("interrupts", "interrupts-extended")
# Phandles above are Xen's, or refused by some version of it.
HIGHEST_PHANDLE = 64998


@dataclass(frozen=True, slots=True)
class Fragment:
    """A domain's partial tree.

    `paths` are the host nodes that its xen,path name, `devices` and `bindings` what is known of a
    generated one (of one written by hand they are empty). `unsafe` are the paths whose DMA nothing
    contains.
    """

    tree: Tree
    paths: tuple[str, ...] = ()
    devices: tuple[DeviceBinding, ...] = ()
    bindings: Bindings = field(default_factory=Bindings)
    notices: tuple[Notice, ...] = ()
    unsafe: tuple[str, ...] = ()
    irqs: tuple[int, ...] = ()
    iomem: tuple[MappedReg, ...] = ()


def build_fragment(
    config: GuestConfig,
    platform: Platform,
    *,
    profile: Profile = DEFAULT,
    unsafe: Collection[str] = (),
    providers: Providers = "drop",
    stub_clock_hz: int = DEFAULT_CLOCK_HZ,
    address_bits: int = 40,
) -> Fragment:
    """The partial tree for the `dtdev` of `config`.

    `unsafe` are the devices of it that may be assigned without an SMMU before them, and the nodes
    inside devices whose interrupts Xen is to map; `providers` and `stub_clock_hz` are those of
    `build_partial`.

    Raises:
        UserError: a path that the host does not have.
        Refusal: as `allocate` and `build_partial`; DT621, DT622.
    """
    viommu = config.viommu == "smmuv3"
    paths = [platform.resolve(path).path for path in config.dtdev]
    allowed = {platform.resolve(path).path for path in unsafe}
    forced = [path for path in paths if path in allowed and _uncontained(platform, path)]
    inner = [path for path in allowed if any(path.startswith(f"{p}/") for p in paths)]
    _check_mixed(paths, forced, viommu)
    contained = [path for path in paths if path not in forced]
    own = profile.guest
    vsmmu = Viommu(own.vsmmu.base, own.vsmmu.size, own.vsmmu_spi, own.vsmmu_phandle)
    bindings = allocate(platform, contained, viommu=viommu)
    bindings = replace(bindings, guest=config.name, viommu=vsmmu if viommu else None)
    space, pins = space_of(config, profile.guest, platform, address_bits)
    partial = build_partial(
        platform, paths, bindings, space, viommu=viommu, pins=pins,
        providers=providers, stub_clock_hz=stub_clock_hz,
    )  # fmt: skip
    check_spis(partial, config, profile.guest)
    tree = _emit(partial, platform, viommu, forced, inner)
    notices = [n for n in (*bindings.notices, *partial.notices) if n.rule not in _SETTLED]
    notices += [
        Notice("DT101", path, f"{FORCE}: no SMMU contains its DMA, it can reach all memory")
        for path in forced
    ]
    notices += [
        Notice("DT622", path, f"{FORCE}: so that Xen maps its interrupts; it has no streams")
        for path in sorted(inner)
    ]
    bindings = replace(bindings, devices=partial.devices, notices=tuple(notices))
    return Fragment(
        tree,
        (*paths, *sorted(inner)),
        partial.devices,
        bindings,
        tuple(notices),
        tuple(forced),
        partial.irqs,
        partial.iomem,
    )


def read_fragment(tree: Tree) -> Fragment:
    """A partial tree that somebody wrote by hand, as it stands."""
    bus = tree.root.children.get("passthrough")
    nodes = [] if bus is None else list(bus.walk())
    named = [path for node in nodes if (path := c_string(node.props.get("xen,path")))]
    return Fragment(tree, tuple(dict.fromkeys(named)))


def c_string(raw: bytes | None) -> str | None:
    """A property as C reads it: up to the first NUL; None when it is absent."""
    return None if raw is None else raw.partition(b"\0")[0].decode("latin-1")


def enclosing_cells(node: Node) -> tuple[int, int]:
    """The cells of xen,reg: the parent's, 2 and 1 where it says nothing or is the root."""
    parent = node.parent
    if parent is None or parent.parent is None:
        return 2, 1
    found = []
    for prop, default in (("#address-cells", 2), ("#size-cells", 1)):
        raw = parent.props.get(prop, b"")
        found.append(int.from_bytes(raw[:4], "big") if len(raw) >= 4 else default)
    return found[0], found[1]


def readable_cells(address: int, size: int) -> bool:
    """Whether Xen reads xen,reg, even an empty one, in these cells."""
    return 1 <= min(address, size) <= max(address, size) <= 2


def _uncontained(platform: Platform, path: str) -> bool:
    """Whether the device at `path` is one that no SMMU contains; other reasons are raised."""
    try:
        allocate(platform, [path], viommu=False)
    except Refusal as refusal:
        if refusal.rule in _UNCONTAINED:
            return True
        raise
    return False


def _check_mixed(paths: Sequence[str], forced: Sequence[str], viommu: bool) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise Refusal("DT108", path, "listed twice in dtdev", "list each device once")
        seen.add(path)
    for path in forced:
        if viommu:
            reason = "is behind no SMMU, and the guest has a vSMMU for its devices"
            raise Refusal("DT101", path, reason, 'set viommu = "none", or assign it elsewhere')
        above = next((p for p in paths if path.startswith(f"{p}/")), None)
        below = next((p for p in paths if p.startswith(f"{path}/")), None)
        if above or below:
            inner, outer = (path, above) if above else (below, path)
            reason = f"lies inside {outer}, which is assigned too"
            raise Refusal("DT110", inner or path, reason, f"list {outer} alone")


# The tree.


def _emit(
    partial: Partial,
    platform: Platform,
    viommu: bool,
    forced: Collection[str],
    inner: Collection[str],
) -> Tree:
    tree = Tree()
    tree.root.set_cells("#address-cells", 2)
    tree.root.set_cells("#size-cells", 2)
    gic = tree.root.add("gic")
    for name in ("aliases", "passthrough"):
        if name in partial.tree.root.children:
            tree.root.add(name).copy_from(partial.tree.root.children[name])
    phandle = _free_phandle(tree, platform)
    gic.set_cells("#address-cells", 0)
    gic.set_cells("#interrupt-cells", 3)
    gic.set_empty("interrupt-controller")
    gic.set_cells("phandle", phandle)
    phandles = {smmu.path: smmu.phandle for smmu in platform.smmus}
    masters = {master.path: master for master in platform.masters}
    for device in partial.devices:
        node = tree.node(device.guest_path)
        assert node is not None, "copied above"
        _inner_interrupts(platform, device, node, inner)
        if viommu and "iommus" in node.props:
            _host_iommus(node, phandles, masters[device.path])
        _name_gic(platform, platform.resolve(device.path), node, phandle)
        _name_host(node, device, partial, device.path in forced)
    return tree


def _free_phandle(tree: Tree, platform: Platform) -> int:
    """The first phandle that neither the partial tree nor one of the host's SMMUs has.

    `iommus` still holds the host's: an equal number would make /gic look like the SMMU.

    Raises:
        Refusal: DT402, a carried phandle is one of Xen's own.
    """
    used = {smmu.phandle for smmu in platform.smmus}
    for node in tree.walk():
        phandle = node.phandle
        if phandle is not None and (phandle > HIGHEST_PHANDLE or phandle in NO_PHANDLES):
            reason = f"phandle {phandle:#x} is above {HIGHEST_PHANDLE}, where Xen has its own"
            raise Refusal("DT402", node.path, reason, "renumber the host tree")
        used.add(phandle)
    return next(number for number in range(1, HIGHEST_PHANDLE) if number not in used)


def _host_iommus(node: Node, phandles: Mapping[str, int | None], master: Master) -> None:
    """The host node's streams, as Xen rewrites them: pairs, each once."""
    pairs = dict.fromkeys((phandles[s.smmu_path], s.stream_id) for s in master.streams)
    node.set_cells("iommus", *(cell for phandle, sid in pairs for cell in (phandle or 0, sid)))


def _name_gic(platform: Platform, host: Node, device: Node, phandle: int) -> None:
    """interrupt-parent for every node whose interrupts are the GIC's and not found to be so."""
    for theirs, ours in ((host, device), *_carried_below(host, device)):
        if "interrupts" not in ours.props or interrupt_parent(ours) == phandle:
            continue
        if any(i.kind in ("SPI", "PPI") for i in platform.interrupts_of(theirs)):
            ours.set_cells("interrupt-parent", phandle)


def interrupt_parent(start: Node) -> int | None:
    """The phandle of the controller that a guest finds for a node of the partial tree.

    0 for a controller above it without a phandle; None for none.
    """
    node: Node | None = start
    while node is not None and node.parent is not None:
        parent = node.u32("interrupt-parent")
        if parent is not None:
            return parent
        if node is not start and "#interrupt-cells" in node.props:
            return node.phandle or 0
        node = node.parent
    return None


def _name_host(node: Node, device: DeviceBinding, partial: Partial, force: bool) -> None:
    cells: list[int] = []
    for run in _pages(device.regs, partial.iomem):
        for value in (run.host, run.size, run.guest):
            cells += split_cells(value, 2)
    # Empty for a device without registers: Xen wants the two properties together.
    node.set_cells("xen,reg", *cells)
    node.set_strings("xen,path", device.path)
    if force:
        node.set_empty(FORCE)


def _pages(regs: Sequence[MappedReg], iomem: Sequence[MappedReg]) -> list[MappedReg]:
    """The whole pages of a device's registers, by host address, neighbours joined."""
    bases = [run.host for run in iomem]
    runs: list[MappedReg] = []
    windows = (page_window(reg.host, reg.size) for reg in regs)
    for window in sorted(windows, key=lambda w: (w.base, w.end)):
        place = iomem[bisect_right(bases, window.base) - 1]
        guest = place.guest + window.base - place.host
        last = runs[-1] if runs else None
        if last is not None and window.base <= last.host + last.size:
            joined = last.guest - last.host == guest - window.base
            if joined:
                size = max(last.host + last.size, window.end) - last.host
                runs[-1] = MappedReg(last.host, last.guest, size)
                continue
        runs.append(MappedReg(window.base, guest, window.size))
    return runs


def _inner_interrupts(
    platform: Platform, device: DeviceBinding, node: Node, inner: Collection[str]
) -> None:
    """Xen maps the interrupts of the node that xen,path names: all of them, and no others."""
    host = platform.resolve(device.path)
    for fact in unroutable(platform, host):
        fix = "correct its interrupts in the host tree, or assign another device"
        raise Refusal("DT621", device.path, fact, fix)
    for child, copy in _carried_below(host, node):
        if not any(name in child.props for name in _INTERRUPTS):
            continue
        lost = [i.number for i in platform.interrupts_of(child) if i.kind == "SPI"]
        if lost and child.path not in inner:
            reason = f"its child {child.path} has interrupt {lost[0]}, which Xen does not map: "
            reason += "dom0less takes interrupts from the node of xen,path alone"
            fix = f"give --unsafe-no-iommu {child.path} (for every such child), or create this "
            raise Refusal("DT622", device.path, reason, f"{fix}guest from dom0, by xl")
        if child.path in inner:
            at, size = enclosing_cells(copy)
            if not readable_cells(at, size):
                reason = (
                    f"the interrupts of {child.path} cannot be had: Xen reads no xen,reg in the "
                )
                reason += f"{at} + {size} cells of the node above"
                raise Refusal("DT622", device.path, reason, "create this guest from dom0, by xl")
            copy.set_cells("xen,reg")
            copy.set_strings("xen,path", child.path)
            copy.set_empty(FORCE)


def _carried_below(host: Node, node: Node) -> Iterator[tuple[Node, Node]]:
    """The children of a host node that the guest's node has too, at any depth."""
    stack = [(host, node)]
    while stack:
        theirs, ours = stack.pop()
        for name, copy in reversed(ours.children.items()):
            stack.append((theirs.children[name], copy))
        if theirs is not host:
            yield theirs, ours


def _gic_path(platform: Platform) -> str | None:
    return None if platform.gic is None else platform.gic.path


def unroutable(platform: Platform, host: Node) -> Iterator[str]:
    """Interrupts of a host node that make Xen refuse the domain."""
    for interrupt in platform.interrupts_of(host):
        if interrupt.kind == "PPI":
            yield f"interrupt {interrupt.number} is a PPI: Xen routes SPIs alone"
        elif interrupt.kind == "not-gic" and interrupt.controller_path is None:
            yield f"Xen cannot read its interrupts: {interrupt.reason}"
        elif interrupt.kind == "not-gic" and interrupt.controller_path == _gic_path(platform):
            yield f"Xen cannot route one of its interrupts: {interrupt.reason}"
