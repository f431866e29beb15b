# SPDX-License-Identifier: BSD-2-Clause
"""The StreamIDs in a hand-written /passthrough: what each entry means on the host.

The id in an entry is always the host's StreamID. Its SMMU is that of the host's stream with that id
of the device the node claims; without a claim that of the entry's phandle. A phandle is the host's
SMMU's, a stand-in's (a node of the partial tree itself), the vSMMU's own, or nobody's; whose it is
says how many cells follow it, and never overrules the host.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from dt_tools.errors import Refusal
from dt_tools.tree import reg_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dt_tools.binding import Bindings
    from dt_tools.merge_claims import Claims
    from dt_tools.platform import Master, Platform, Smmu, Stream
    from dt_tools.tree import Cells, Node, Tree

# Of a list of candidates so many are named.
_MAX_NAMED = 8
# An Arm SMMU's entry has no id, an id, or an id and a mask.
_MAX_IDS = 2
_ARM = ("arm,smmu-", "arm,mmu-")


class Meaning:
    """What a phandle means: cells behind it, its SMMU (host path) if it says one.

    `kind`: `host`; `stand-in`, a node of the partial tree; `vsmmu`; `own`, an IOMMU that the guest
    really gets, whose entries stay as they are; `unknown`.
    """

    # Written out: making a dataclass takes longer than reading a partial tree.
    __slots__ = ("cells", "kind", "smmu")

    def __init__(self, kind: str, cells: int, smmu: str | None = None) -> None:
        self.kind = kind
        self.cells = cells
        self.smmu = smmu


class Entry:
    """One entry of iommus: phandle, what it means, the cells behind it."""

    __slots__ = ("ids", "meaning", "phandle")

    def __init__(self, phandle: int, meaning: Meaning, ids: Cells) -> None:
        self.phandle = phandle
        self.meaning = meaning
        self.ids = ids

    def __str__(self) -> str:
        return f"<{' '.join(f'{cell:#x}' for cell in (self.phandle, *self.ids))}>"


class Phandles:
    """The phandles of one partial tree's entries."""

    def __init__(self, platform: Platform, partial: Tree, bindings: Bindings, vsmmu: int) -> None:
        self.platform = platform
        # The SMMU of a guest's vSMMU, None for the vSMMU of all of them.
        self.vsmmus: dict[int, str | None] = {v.phandle: v.smmu for v in bindings.viommus}
        if not self.vsmmus:
            self.vsmmus[vsmmu] = None
        # A phandle that the partial tree defines is its own and says nothing about the host.
        self.own = partial.phandles()
        self.smmus = {smmu.path: smmu for smmu in platform.smmus}
        self.host = {s.phandle: s for s in platform.smmus if s.phandle not in (None, *self.own)}
        self._stand_ins: dict[int, Meaning] = {}

    def meaning(self, phandle: int, cells: int, *, claimed: bool) -> Meaning:
        """What `phandle` means; `cells` is the count where it does not say one.

        Args:
            claimed: the node stands for a device of the guest, which is behind an Arm SMMU.

        Raises:
            Refusal: DT540, a stand-in that is none.
        """
        node = self.own.get(phandle)
        if node is not None:
            if not claimed and self._is_own(node):
                return Meaning("own", node.u32("#iommu-cells") or 0)
            if phandle not in self._stand_ins:
                self._stand_ins[phandle] = self._stand_in(node)
            found = self._stand_ins[phandle]
            return found if found.cells >= 0 else Meaning("stand-in", cells, found.smmu)
        if phandle in self.host:
            smmu = self.host[phandle]
            return Meaning("host", smmu.iommu_cells, smmu.path)
        if phandle in self.vsmmus:
            return Meaning("vsmmu", 1, self.vsmmus[phandle])
        return Meaning("unknown", cells)

    def _is_own(self, node: Node) -> bool:
        """Whether the node is an IOMMU of another kind that is copied into the guest."""
        names = node.strings("compatible")
        return bool(
            names
            and is_copied(node)
            and node.u32("#iommu-cells") is not None
            and not is_arm_smmu(node)
        )

    def _stand_in(self, node: Node) -> Meaning:
        """`cells` is -1 where the stand-in does not say how many."""
        cells = -1
        if "#iommu-cells" in node.props:
            count = node.u32("#iommu-cells")
            if count is None or count > _MAX_IDS:
                said = "is not one cell" if count is None else f"is {count}"
                reason = f"stands in for an SMMU, but its #iommu-cells {said}"
                raise Refusal("DT540", node.path, reason, "give it 0, 1 or 2, as the host's has")
            cells = count
        return Meaning("stand-in", cells, self._smmu_of(node))

    def _smmu_of(self, node: Node) -> str | None:
        """The host's SMMU that a stand-in says: by xen,path, by name, by address."""
        path = node.string("xen,path")
        if path is not None:
            if path not in self.smmus:
                known = _named(self.smmus) or "none"
                reason = f"stands in for xen,path {path}, which is no SMMU of the host"
                raise Refusal("DT540", node.path, reason, f"name one (SMMUs: {known})")
            return path
        if node.path in self.smmus:
            return node.path
        for fits in (self._by_name(node), self._by_base(node)):
            if len(fits) == 1:
                return fits[0].path
        return None

    def _by_name(self, node: Node) -> list[Smmu]:
        return [s for s in self.platform.smmus if s.node.name == node.name]

    def _by_base(self, node: Node) -> list[Smmu]:
        entries = reg_entries(node)
        base = entries[0][0] if entries else None
        return [s for s in self.platform.smmus if base is not None and s.base == base]


def is_copied(node: Node) -> bool:
    """Whether a node of a partial tree is in /passthrough."""
    return node.path.startswith("/passthrough/")


def is_arm_smmu(node: Node) -> bool:
    """Whether a guest's driver for an Arm SMMU takes the node."""
    names = node.strings("compatible") or ()
    return any(name.startswith(_ARM) and not name.endswith("-pmcg") for name in names)


class Device:
    """The host's streams of one assigned device, found by what an entry says of them."""

    def __init__(self, master: Master) -> None:
        self.master = master
        self.any: dict[tuple[str, int], None] = {}
        self.on: dict[str, dict[tuple[str, int], None]] = {}
        self.fits: dict[tuple[int, int | None], dict[str, None]] = {}
        for stream in master.streams:
            key = stream.smmu_path, stream.stream_id
            self.any[key] = None
            self.on.setdefault(stream.smmu_path, {})[key] = None
            for mask in (None, stream.mask):
                self.fits.setdefault((stream.stream_id, mask), {})[stream.smmu_path] = None

    def streams(self, entry: Entry) -> Sequence[tuple[str, int]]:
        """(SMMU, StreamID) of each stream that the entry can mean; one SMMU's if it says one."""
        smmu = entry.meaning.smmu
        if not entry.ids and entry.meaning.kind != "host":
            # A stand-in without id cells leaves the id to the host.
            return tuple(self.any if smmu is None else self.on.get(smmu, ()))
        stream_id = entry.ids[0] if entry.ids else 0
        mask = entry.ids[1] if len(entry.ids) > 1 else None
        found = self.fits.get((stream_id, mask), {})
        if smmu is not None:
            return ((smmu, stream_id),) if smmu in found else ()
        return tuple((path, stream_id) for path in found)


class Streams:
    """Finds the vMasterID that an entry of a node means."""

    def __init__(self, phandles: Phandles, claims: Claims, bindings: Bindings) -> None:
        self.phandles = phandles
        self.claims = claims
        self.bindings = bindings
        self.devices = {path: Device(master) for path, master in claims.hosts.items()}
        # The second cell of a two-cell entry on the host.
        self.masks = {
            (stream.smmu_path, stream.stream_id): stream.mask
            for master in claims.hosts.values()
            for stream in master.streams
        }

    def entries(self, node: Node) -> list[Entry]:
        """The entries of the node's iommus.

        Raises:
            Refusal: DT405, its cells are not entries; DT540, a stand-in that is none; DT542, the
                node's name and registers are not one device's.
        """
        refusal = self.claims.contradiction(node, "iommus")
        if refusal is not None:
            raise refusal
        cells = node.cells("iommus")
        default = self._default(node)
        claimed = node in self.claims.of
        found: list[Entry] = []
        at = 0
        while cells and at < len(cells):
            meaning = self.phandles.meaning(cells[at], default, claimed=claimed)
            ids = cells[at + 1 : at + 1 + meaning.cells]
            found.append(Entry(cells[at], meaning, ids))
            at += 1 + meaning.cells
        if not cells or at > len(cells):
            raise self._malformed(node, found)
        return found

    def _default(self, node: Node) -> int:
        """Cells of an entry whose phandle does not say: those of the claimed device's SMMU."""
        host = self.claims.of.get(node)
        streams = () if host is None else self.claims.hosts[host].streams
        return self.phandles.smmus[streams[0].smmu_path].iommu_cells if streams else 1

    def _malformed(self, node: Node, found: Sequence[Entry]) -> Refusal:
        size = len(node.props["iommus"])
        if any(entry.meaning.cells != 1 for entry in found):
            last = found[-1]
            have, want = len(last.ids), last.meaning.cells
            reason = f"iommus: an entry of {last.phandle:#x} has {want} cells of ids, {have} left"
            fix = "write as many cells as #iommu-cells says"
            return Refusal("DT405", node.path, reason, fix)
        reason = f"iommus has {size} bytes, not pairs of cells"
        return Refusal("DT405", node.path, reason, "write <phandle StreamID> pairs")

    def find(self, node: Node, entry: Entry) -> tuple[str, int, int]:
        """(SMMU, StreamID, vMasterID) of an entry of the node's iommus.

        Raises:
            Refusal: DT501, the host has no such stream, or it is not the guest's; DT542, it is
                not clear which stream is meant.
        """
        host = self.claims.of.get(node)
        if host is None and entry.meaning.smmu is None:
            host = self._around(node)
        if host is not None:
            smmu, stream_id = self._of_device(node, host, entry)
        elif entry.meaning.smmu is not None and entry.ids:
            smmu, stream_id = entry.meaning.smmu, entry.ids[0]
            mask = entry.ids[1] if len(entry.ids) > 1 else 0
            if mask and mask != self.masks.get((smmu, stream_id), 0):
                raise self._no_stream(node, entry)
        else:
            raise self._unclear(node, entry)
        vid = self.bindings.vmaster_id(smmu, stream_id)
        if vid is None:
            raise self._no_stream(node, entry)
        return smmu, stream_id, vid

    def _around(self, node: Node) -> str | None:
        """The device that the nearest node above claims."""
        for above in node.ancestors():
            if above in self.claims.of:
                return self.claims.of[above]
        return None

    def _of_device(self, node: Node, host: str, entry: Entry) -> tuple[str, int]:
        found = self.devices[host].streams(entry)
        if len(found) == 1:
            return found[0]
        if found:
            which = _named(f"({smmu}, {stream_id:#x})" for smmu, stream_id in found)
            reason = f"iommus {entry} can be each of these streams of {host}: {which}"
            raise Refusal("DT542", node.path, reason, NAME_SMMU)
        where = entry.meaning.smmu or "unknown SMMU"
        ids = ", ".join(f"{cell:#x}" for cell in entry.ids) or "no id"
        streams = self.devices[host].master.streams
        has = ", ".join(f"({s.smmu_path}, {_ids(s)})" for s in streams[:_MAX_NAMED])
        reason = f"iommus says ({where}, {ids}), the host's {host} has {has}"
        raise Refusal("DT501", node.path, reason, "copy the host node's iommus unchanged")

    def _unclear(self, node: Node, entry: Entry) -> Refusal:
        """For a node that claims no device, with an entry whose phandle says no SMMU."""
        some = [b for b in self.bindings.entries if not entry.ids or b.pmaster_id == entry.ids[0]]
        if entry.meaning.kind == "unknown" or not some:
            return self._no_stream(node, entry)
        has = _named(f"({b.smmu}, {b.pmaster_id:#x})" for b in some)
        reason = f"iommus {entry} says no SMMU of the host, and the node no device; it may be {has}"
        alike = self.claims.alike.get(node)
        if alike:
            reason = f"may stand for each of {_named(alike)}, and iommus {entry} says no SMMU"
        return Refusal("DT542", node.path, reason, "give xen,path with the device's host path")

    def _no_stream(self, node: Node, entry: Entry) -> Refusal:
        reason = f"iommus {entry} is no stream of a device in dtdev"
        fix = "name the node like its host node, or give xen,path, and list it in dtdev"
        return Refusal("DT501", node.path, reason, fix)


NAME_SMMU = "use the phandle that the SMMU has on the host, or give the stand-in its xen,path"


def _ids(stream: Stream) -> str:
    return f"{stream.stream_id:#x}" + (f" mask {stream.mask:#x}" if stream.mask else "")


def _named(items: Iterable[str]) -> str:
    found = list(dict.fromkeys(items))
    more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
    return f"{', '.join(found[:_MAX_NAMED])}{more}"


# iommu-map.

Run = tuple[int, int, int]


def runs(bindings: Bindings) -> dict[str, list[Run]]:
    """For each SMMU the bound StreamIDs as sorted (first, end, vMasterID of the first)."""
    found: dict[str, list[Run]] = {}
    for bound in sorted(bindings.entries, key=lambda b: (b.smmu, b.pmaster_id)):
        done = found.setdefault(bound.smmu, [])
        first, end, vid = done[-1] if done else (0, -1, 0)
        if end == bound.pmaster_id and vid + end - first == bound.vmaster_id:
            done[-1] = first, end + 1, vid
        else:
            done.append((bound.pmaster_id, bound.pmaster_id + 1, bound.vmaster_id))
    return found


def pieces(bound: Sequence[Run], first: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """first..end as (first, end, vMasterID of the first), None where an id is not bound."""
    at = max(bisect_right(bound, first, key=lambda run: run[0]) - 1, 0)
    while first < end:
        while at < len(bound) and bound[at][1] <= first:
            at += 1
        if at == len(bound) or bound[at][0] >= end:
            yield first, end, None
            return
        start, stop, vid = bound[at]
        if start > first:
            yield first, start, None
            first = start
        last = min(stop, end)
        yield first, last, vid + first - start
        first = last
