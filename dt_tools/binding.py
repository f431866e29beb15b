# SPDX-License-Identifier: BSD-2-Clause
"""Which vMasterID of a guest's vSMMU stands for which StreamID of which physical SMMU.

A physical StreamID means nothing without its SMMU (boards repeat ids on several SMMUs), so the
key of every binding is (SMMU path, pMasterID). `allocate` numbers the keys of one guest from 0
upwards in the order of its `dtdev` list, past the ids that `iommu_devid_map` names; it reads
nothing but its arguments, so the same list on the same host tree always gets the same numbers and
a guest with a static tree can rely on them. Refusals carry the rule ids DT101 to DT110, DT503,
DT506 and DT507.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dt_tools.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dt_tools.platform import Master, Platform, Smmu
    from dt_tools.tree import Node
    from xl_configs.specs.devid_map import DevidMap

SCHEMA = "vsmmu.bindings/1"
SMMU_V3 = "arm,smmu-v3"
# The vSMMU advertises SIDSIZE 16.
MAX_VMASTER_IDS = 1 << 16


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user has to know that does not stop the build: rule id, host path, text."""

    rule: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule} {self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Binding:
    """One vMasterID: the pMasterID (StreamID) it stands for, on the SMMU at that host path.

    `devices` are the host paths of the assigned devices that use the stream, `smmu_base` the
    SMMU's CPU address in bytes.
    """

    vmaster_id: int
    smmu: str
    pmaster_id: int
    devices: tuple[str, ...]
    smmu_base: int = 0


@dataclass(frozen=True, slots=True)
class MappedReg:
    """Registers of a device: CPU address, guest address and size in bytes (not rounded)."""

    host: int
    guest: int
    size: int


@dataclass(frozen=True, slots=True)
class GuestInterrupt:
    """An interrupt the guest gets 1:1. `number` is the GIC's id (the first SPI is 32)."""

    number: int
    flags: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A host property that the guest node does not have, and why."""

    property: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceBinding:
    """What one assigned device became: host path, path in the guest tree, ids and resources."""

    path: str
    guest_path: str
    vmaster_ids: tuple[int, ...] = ()
    regs: tuple[MappedReg, ...] = ()
    interrupts: tuple[GuestInterrupt, ...] = ()
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True, slots=True)
class Viommu:
    """The guest's one vSMMU: guest address in bytes, interrupt (GIC id) and phandle."""

    base: int
    size: int
    spi: int
    phandle: int


@dataclass(frozen=True, slots=True)
class Bindings:
    """The vMasterID map of one guest, by ascending vMasterID.

    The ids are 0, 1, 2 ... unless the user wanted others.
    """

    entries: tuple[Binding, ...] = ()
    guest: str = ""
    viommu: Viommu | None = None
    devices: tuple[DeviceBinding, ...] = ()
    notices: tuple[Notice, ...] = ()
    _index: dict[tuple[str, int], int] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_id: dict[int, Binding] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.entries:
            self._index[entry.smmu, entry.pmaster_id] = entry.vmaster_id
            self._by_id[entry.vmaster_id] = entry

    def vmaster_id(self, smmu: str, pmaster_id: int) -> int | None:
        """The vMasterID of a stream of the SMMU at host path `smmu`; None when not bound."""
        return self._index.get((smmu, pmaster_id))

    def resolve(self, vmaster_id: int) -> Binding | None:
        """The binding of a vMasterID; None when the guest has no such id."""
        return self._by_id.get(vmaster_id)

    def to_json(self) -> dict[str, Any]:
        """The map as JSON values: numbers as hex strings, ids of the guest as numbers."""
        from dt_tools.bindings_json import written

        return written(self)

    @classmethod
    def from_json(cls, data: object, source: str = "bindings") -> Bindings:
        """The map that `to_json` wrote.

        Raises:
            UserError: not an object of this schema; the message names the member.
        """
        from dt_tools.bindings_json import read

        return read(data, source)


def allocate(
    platform: Platform,
    devices: Sequence[str],
    *,
    viommu: bool = True,
    wanted: Sequence[DevidMap] = (),
) -> Bindings:
    """Number the streams of the devices at host paths `devices` (the `dtdev` list).

    First fit from 0 in list order, then in the order of each node's streams, past the ids that
    `wanted` (the `iommu_devid_map` list) gives to streams of its own choice. Devices that share
    a stream share its id. With `viommu` false the devices are checked alike (any kind of SMMU
    will do) and no ids are given out.

    Raises:
        UserError: a path is not in the host tree.
        Refusal: a device cannot be assigned, the ids are used up, or `wanted` does not fit the
            host and the devices.
    """
    smmus = {smmu.path: smmu for smmu in platform.smmus}
    masters = {master.path: master for master in platform.masters}
    users: dict[tuple[str, int], list[str]] = {}
    paths = _distinct(platform, devices)
    for path in paths:
        master = _assignable(platform, path, smmus, masters, viommu)
        for stream in master.streams:
            owners = users.setdefault((stream.smmu_path, stream.stream_id), [])
            if path not in owners:
                owners.append(path)
        if len(users) > MAX_VMASTER_IDS:
            reason = f"the guest would need more than {MAX_VMASTER_IDS} vMasterIDs"
            raise Refusal("DT506", path, reason, "assign fewer devices to this guest")
    notices = _check_sharing(platform, users)
    if not viommu:
        return Bindings(notices=notices)
    chosen = _chosen(platform, wanted, users)
    taken = set(chosen.values())
    free = (vid for vid in range(MAX_VMASTER_IDS) if vid not in taken)
    entries = [
        Binding(
            chosen[key] if key in chosen else next(free),
            *key,
            tuple(owners),
            smmus[key[0]].base or 0,
        )
        for key, owners in users.items()
    ]
    entries.sort(key=lambda entry: entry.vmaster_id)
    return Bindings(tuple(entries), notices=notices)


def _chosen(
    platform: Platform,
    wanted: Sequence[DevidMap],
    users: Mapping[tuple[str, int], Sequence[str]],
) -> dict[tuple[str, int], int]:
    """The vMasterIDs that the user chose, by (SMMU path, pMasterID); checked by rule DT507."""
    bases = {smmu.base: smmu.path for smmu in platform.smmus if smmu.base is not None}
    chosen: dict[tuple[str, int], int] = {}
    owners: dict[int, tuple[str, int]] = {}
    for entry in wanted:
        path = bases.get(entry.base)
        if path is None:
            known = ", ".join(f"{base:#x}" for base in bases) or "none"
            reason = f"iommu_devid_map: no SMMU of the host is at {entry.base:#x}"
            raise Refusal("DT507", "/", reason, f"use the address of one (SMMUs: {known})")
        key = (path, entry.pmaster)
        if key not in users:
            reason = f"iommu_devid_map: no device in dtdev has pMasterID {entry.pmaster:#x} of it"
            raise Refusal("DT507", path, reason, "take the entry out, or assign the device")
        if entry.vmaster >= MAX_VMASTER_IDS:
            reason = f"iommu_devid_map: vMasterID {entry.vmaster:#x} is not below 0x10000"
            raise Refusal("DT507", path, reason, "choose a smaller one")
        if chosen.setdefault(key, entry.vmaster) != entry.vmaster:
            reason = f"iommu_devid_map: pMasterID {entry.pmaster:#x} of it has two vMasterIDs"
            raise Refusal("DT507", path, reason, "keep one of the entries")
        if owners.setdefault(entry.vmaster, key) != key:
            other, sid = owners[entry.vmaster]
            reason = (
                f"iommu_devid_map: vMasterID {entry.vmaster:#x} is wanted for pMasterID "
                f"{entry.pmaster:#x} of it and for {sid:#x} of {other}"
            )
            raise Refusal("DT507", path, reason, "choose different ones")
    return chosen


def _distinct(platform: Platform, devices: Sequence[str]) -> list[str]:
    """Full host paths of `devices`, in order, refused when one is listed twice or in another."""
    paths: dict[str, Node] = {}
    for name in devices:
        node = platform.resolve(name)
        if node.path in paths:
            raise Refusal("DT108", node.path, "listed twice in dtdev", "list each device once")
        paths[node.path] = node
    for path, node in paths.items():
        for parent in node.ancestors():
            if parent.path in paths:
                reason = f"lies inside {parent.path}, which is assigned too"
                raise Refusal("DT110", path, reason, f"list {parent.path} alone")
    return list(paths)


def _assignable(
    platform: Platform,
    path: str,
    smmus: Mapping[str, Smmu],
    masters: Mapping[str, Master],
    viommu: bool,
) -> Master:
    """The master at `path`, checked by the rules DT101 to DT109."""
    node = platform.resolve(path)
    if path in smmus:
        reason = "is an SMMU; the guest gets a vSMMU in its place"
        raise Refusal("DT106", path, reason, "take it off the dtdev list")
    off = next((n for n in (node, *node.ancestors()) if n.status != "okay"), None)
    if off is not None:
        where = "is" if off is node else f"lies below {off.path}, which is"
        fix = f'set status = "okay" on {off.path} in the host tree'
        raise Refusal("DT105", path, f'{where} disabled (status = "{off.status}")', fix)
    master = masters.get(path)
    if "iommu-map" in node.props or node.string("device_type") in ("pci", "pciex"):
        reason = "is a bus with an iommu-map or a PCI host bridge, whose functions are the masters"
        raise Refusal("DT107", path, reason, "assign a platform device; PCI is not built here")
    broken = [f for f in platform.findings if f.path == path and f.rule in ("DT401", "DT405")]
    if broken:
        # A list that was not read to its end would leave some of the device's DMA out.
        raise Refusal(broken[0].rule, path, broken[0].text, "correct iommus in the host tree")
    if master is None or not master.streams:
        here = ", ".join(smmus) or "none"
        reason = f"is not a DMA master of any SMMU of the host tree (SMMUs: {here})"
        fix = "assign a device that has iommus; without an SMMU its DMA is not contained"
        raise Refusal("DT101", path, reason, fix)
    for stream in master.streams:
        _check_smmu(path, stream.smmu_path, smmus, viommu)
    return master


def _check_smmu(path: str, smmu_path: str, smmus: Mapping[str, Smmu], viommu: bool) -> None:
    smmu = smmus[smmu_path]
    if smmu.kind == "other":
        what = ", ".join(smmu.compatible) or "without compatible"
        reason = f"its IOMMU {smmu_path} is no Arm SMMU ({what})"
        raise Refusal("DT109", path, reason, "assign a device behind an Arm SMMU")
    if smmu.status != "okay":
        reason = f'its SMMU {smmu_path} is disabled (status = "{smmu.status}")'
        raise Refusal("DT104", path, reason, f'set status = "okay" on {smmu_path}')
    if viommu and smmu.kind != SMMU_V3:
        reason = f"its SMMU {smmu_path} is {smmu.kind}; a vSMMU needs {SMMU_V3} behind it"
        raise Refusal("DT109", path, reason, 'set viommu = "none" for this guest')


def _check_sharing(
    platform: Platform, users: Mapping[tuple[str, int], Sequence[str]]
) -> tuple[Notice, ...]:
    """DT503: a stream of the guest must not be used by a device that stays outside.

    An iommu-map names the ids of all functions a bus could have, so an overlap with one is a
    notice only.
    """
    assigned = {path for owners in users.values() for path in owners}
    by_smmu: dict[str, list[int]] = {}
    for smmu, sid in sorted(users):
        by_smmu.setdefault(smmu, []).append(sid)
    notices = []
    for master in platform.masters:
        if master.path in assigned or master.status != "okay":
            continue
        shared = _first_of(by_smmu, ((s.smmu_path, s.stream_id, 1) for s in master.streams))
        if shared is not None:
            reason = (
                f"shares StreamID {shared[1]:#x} of {shared[0]} with {master.path}, "
                "which is not assigned to this guest"
            )
            fix = f"assign {master.path} too, or neither"
            raise Refusal("DT503", users[shared][0], reason, fix)
        rows = ((row.smmu_path, row.sid_base, row.length) for row in master.maps)
        shared = _first_of(by_smmu, rows)
        if shared is not None:
            text = f"StreamID {shared[1]:#x} of {shared[0]} is in the iommu-map of {master.path}"
            notices.append(Notice("DT503", users[shared][0], text))
    return tuple(notices)


def _first_of(
    by_smmu: Mapping[str, list[int]], ranges: Iterable[tuple[str, int, int]]
) -> tuple[str, int] | None:
    """The first of the sorted ids in `by_smmu` that a (SMMU, first id, length) range holds."""
    for smmu, first, length in ranges:
        sids = by_smmu.get(smmu, [])
        at = bisect_left(sids, first)
        if at < len(sids) and sids[at] < first + length:
            return smmu, sids[at]
    return None
