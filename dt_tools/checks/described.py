# SPDX-License-Identifier: BSD-2-Clause
"""Rules about a partial tree's devices: each node in turn, its streams and its coherence."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from dt_tools.checks import placing, wiring
from dt_tools.checks.board import DT405, DT505
from dt_tools.checks.guests import DT201, DT208, VITAL
from dt_tools.checks.streams import DT508
from dt_tools.checks.view import named, registers
from dt_tools.errors import Refusal
from dt_tools.rules import Diagnosis, Severity, declared, rule
from dt_tools.tree import cell_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.checks.pairs import Entries, PartialView
    from dt_tools.platform import Master, Stream
    from dt_tools.profiles import Window
    from dt_tools.tree import Cells, Node

DT112 = rule(
    "DT112",
    "warning",
    "no node of the partial tree describes an assigned device",
    "The guest owns the device, and its driver never finds it.",
    "/soc/crypto@60000000: guest.dtb has no node for it",
)
DT501 = rule(
    "DT501",
    "error",
    "iommus says another stream than the host's node",
    "With a wrong StreamID, or the right one of another SMMU, the device's DMA is refused by "
    "the SMMU, or another device's is let through.",
    "/passthrough/crypto@61000000: iommus says (/soc/iommu@50000000, 0x600), the host's "
    "/soc/crypto@61000000 has (/soc/iommu@51000000, 0x600)",
)
DT504 = rule(
    "DT504",
    "error",
    "iommus is cut short or in another order",
    "DMA on a stream that is left out faults; drivers that pick a stream by its place in the "
    "list pick another one.",
    "/passthrough/display@60030000: has streams 0, 1 of 5: missing 0x2, 0x3, 0x8",
)


def check(view: PartialView) -> Iterator[Diagnosis]:
    """Each node of the partial tree."""
    if view.entries is not None and view.given is not None and not view.given.iomem:
        # With iomem every register is compared with the host's by the rules on registers.
        for notice in view.entries.claims.notices:
            fix = "give xen,path and registers of one device"
            yield declared()[notice.rule].at(notice.path, notice.message, fix, severity="warning")
    for node in view.nodes:
        host = view.hosts.get(node)
        yield from placing.check(view, node, host)
        yield from _iommus(view, node, host)
        yield from wiring.check(view, node, host)
        if host is not None:
            yield from _coherence(view, node, host)
            yield from _lacking(node, host)


def undescribed(view: PartialView) -> Iterator[Diagnosis]:
    """Devices of dtdev that no node stands for; these are about the configuration."""
    if view.given is None:
        return
    hosts = set(view.hosts.values())
    strange = [node for node in view.nodes if node not in view.hosts]
    # A wrong xen,path is told as that; a name of the writer's own is known by its registers.
    names = {(node.string("xen,path") or "").rpartition("/")[2] for node in strange}
    addresses = sorted(
        placing.host_address(view, node, window)
        for node in strange
        for window in placing.guest_windows(view, node)
    )
    for device in view.given.nodes:
        if any(inner in hosts for inner in device.walk()) or device.name in names:
            continue
        if not any(_within(addresses, reg) for reg in registers(view.board, device)):
            fix = f'describe it there, with xen,path = "{device.path}", or take it out of dtdev'
            yield DT112.at(device.path, f"{view.file} has no node for it", fix, key="dtdev")


def _within(addresses: Sequence[int], window: Window) -> bool:
    at = bisect_left(addresses, window.base)
    return at < len(addresses) and addresses[at] < window.end


# iommus.


def _iommus(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    if "iommu-map" in node.props and view.given is None:
        fact = "has an iommu-map, which Xen does not rewrite for a dom0less guest"
        yield DT505.at(node.path, fact, "assign devices with iommus")
    if "iommus" not in node.props:
        yield from _streams(view, node, host, ())
    elif view.given is not None and not view.given.viommu:
        # They are copied as they stand, and not looked at.
        if (node.cells("iommus") or (0,))[0] not in view.copied | view.made.keys():
            fact = 'has iommus, but viommu = "none": the guest has no SMMU for it'
            yield DT508.at(node.path, fact, 'set viommu = "smmuv3", or drop iommus')
    elif view.entries is not None:
        yield from _as_built(view, view.entries, node, host)
    else:
        yield from _loose(view, node, host)


def _as_built(
    view: PartialView, entries: Entries, node: Node, host: Node | None
) -> Iterator[Diagnosis]:
    """Each entry is what `vsmmu guest-dtb` takes it for, or refused by the rule it refuses by."""
    keys = entries.of(node)
    if isinstance(keys, Refusal):
        fix = keys.fix or "copy the host node's iommus unchanged"
        yield declared()[keys.rule].at(keys.path, keys.reason, fix, severity="error")
        return
    master = None if host is None else view.board.masters.get(host.path)
    if master is None or not keys:
        return
    places: dict[tuple[str, int], int] = {}
    for at, stream in enumerate(master.streams):
        places.setdefault((stream.smmu_path, stream.stream_id), at)
    if places.keys() >= set(keys):
        yield from _all_streams(view, node, master, [places[key] for key in keys])


def _loose(view: PartialView, node: Node, host: Node | None) -> Iterator[Diagnosis]:
    """Without a guest that the builder could make."""
    entries = _entries(view, node)
    if entries is None:
        fact = f"iommus has {len(node.props['iommus'])} bytes, not pairs of cells"
        yield DT405.at(node.path, fact, "write <phandle StreamID> pairs")
        return
    pairs = [(phandle, ids[0]) for phandle, ids in entries if ids]
    if len(pairs) < len(entries):
        return  # a stand-in without id cells leaves the ids to the host
    if all(phandle in view.copied for phandle, _ in pairs):
        return  # an IOMMU of the partial tree's own
    yield from _streams(view, node, host, pairs)


def _entries(view: PartialView, node: Node) -> list[tuple[int, Cells]] | None:
    """Phandles with their id cells, as many as the partial tree's node or the host's SMMU says."""
    cells = node.cells("iommus")
    found: list[tuple[int, Cells]] = []
    at = 0
    while cells and at < len(cells):
        own, smmu = view.defined.get(cells[at]), view.board.smmu_phandles.get(cells[at])
        count = 1 if own is None else cell_count(own, "#iommu-cells")
        if own is None and smmu is not None:
            count = view.board.smmus[smmu].iommu_cells
        end = at + 1 + (1 if count is None else count)
        found.append((cells[at], cells[at + 1 : end]))
        at = end
    return found if cells and at == len(cells) else None


def _streams(
    view: PartialView, node: Node, host: Node | None, pairs: Sequence[tuple[int, int]]
) -> Iterator[Diagnosis]:
    master = None if host is None else view.board.masters.get(host.path)
    if master is None or not master.streams:
        # Without a guest it is not known whose the node is; its SMMU has to be the host's.
        known = view.given is None and all(p in view.board.smmu_phandles for p, _ in pairs)
        if pairs and not known:
            fact = f"iommus <{pairs[0][0]:#x} {pairs[0][1]:#x}>: no host device is known for it"
            fix = "name the node like its host node, or give xen,path, and list it in dtdev"
            yield DT501.at(node.path, fact, fix)
        return
    streams = master.streams
    found: list[int] = []
    for phandle, stream_id in pairs:
        smmu = None if phandle in view.copied else view.board.smmu_phandles.get(phandle)
        at = _index(streams, smmu, stream_id)
        if at is None:
            said = f"({smmu or f'unknown SMMU <{phandle:#x}>'}, {stream_id:#x})"
            has = named(f"({s.smmu_path}, {s.stream_id:#x})" for s in streams)
            fact = f"iommus says {said}, the host's {master.path} has {has}"
            yield DT501.at(node.path, fact, "copy the host node's iommus unchanged")
            return
        found.append(at)
    yield from _all_streams(view, node, master, found)


def _all_streams(
    view: PartialView, node: Node, master: Master, found: Sequence[int]
) -> Iterator[Diagnosis]:
    """Whether a node has all of its device's streams, in order; `found` are the places of its."""
    streams = master.streams
    # A host may list a stream twice.
    had = {(streams[at].smmu_path, streams[at].stream_id) for at in found}
    missing = [s for s in streams if (s.smmu_path, s.stream_id) not in had]
    if missing and (found or (view.given is not None and view.given.viommu)):
        ids = named(f"{s.stream_id:#x}" for s in missing)
        count = f"{len(streams) - len(missing)} of the {len(streams)}"
        fact = f"has {count} streams of {master.path}: missing {ids}"
        severity: Severity = "error" if found else "warning"
        fix = "copy the host node's iommus unchanged"
        yield DT504.at(node.path, fact, fix, severity=severity)
    elif list(found) != sorted(found):
        fact = f"has the streams of {master.path} in another order"
        yield DT504.at(node.path, fact, "keep the host's order", severity="note")


def _index(streams: Sequence[Stream], smmu: str | None, stream_id: int) -> int | None:
    """Which of the host's streams an entry is; without a known SMMU only if that is clear."""
    fits = [i for i, s in enumerate(streams) if s.stream_id == stream_id]
    exact = [i for i in fits if streams[i].smmu_path == smmu]
    if exact:
        return exact[0]
    one = len({streams[i].smmu_path for i in fits}) == 1
    return fits[0] if smmu is None and one else None


# Coherence.


def _coherence(view: PartialView, node: Node, host: Node) -> Iterator[Diagnosis]:
    ours, theirs = _is_coherent(node), _is_coherent(host)
    if not ours and theirs and host.path in view.board.masters:
        fact = f"is not dma-coherent, and {host.path} is"
        yield DT208.at(node.path, fact, "add dma-coherent", severity="warning")
    elif ours and not theirs:
        fact = f"is dma-coherent, and {host.path} is not"
        yield DT208.at(node.path, fact, "take dma-coherent out")


def _lacking(node: Node, host: Node) -> Iterator[Diagnosis]:
    lacking = [name for name in VITAL if host.props.get(name) and name not in node.props]
    if lacking:
        fact = f"has no {', '.join(lacking)}, and {host.path} has"
        fix = "put stand-ins such as a fixed-clock into /passthrough if the driver needs them"
        yield DT201.at(node.path, fact, fix, severity="note")
    if "memory-region" in host.props and "memory-region" not in node.props:
        fact = f"has no memory-region, and {host.path} has"
        fix = "the device has to work without reserved memory"
        yield DT208.at(node.path, fact, fix, severity="warning")


def _is_coherent(node: Node) -> bool:
    for one in (node, *node.ancestors()):
        if "dma-noncoherent" in one.props:
            return False
        if "dma-coherent" in one.props:
            return True
    return False
