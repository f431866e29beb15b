# SPDX-License-Identifier: BSD-2-Clause
"""Which vMasterID of a guest's vSMMU stands for which StreamID of which physical SMMU.

A physical StreamID means nothing without its SMMU (boards repeat ids on several SMMUs), so the
key of every binding is (SMMU path, pMasterID). `allocate` numbers the keys of one guest from 0
upwards in the order of its `dtdev` list, then of its `pci` list, past the ids that are given out
already (`dt_tools.numbering`); it reads nothing but its arguments, so the same lists on the same
host tree always get the same numbers and a guest with a static tree can rely on them. Refusals
carry the rule ids DT101 to DT110, DT503, DT506, DT507 and DT510.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Protocol

from dt_tools.errors import Refusal
from xl_configs.frozen import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dt_tools.masters import Stream
    from dt_tools.platform import Master, Platform, Smmu
    from dt_tools.tree import Node
    from xl_configs.specs.devid_map import DevidMap

SCHEMA = "vsmmu.bindings/1"
SMMU_V3 = "arm,smmu-v3"
# The vSMMU advertises SIDSIZE 16.
MAX_VMASTER_IDS = 1 << 16


@frozen
class Notice:
    """Something the user has to know that does not stop the build: rule id, host path, text."""

    rule: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule} {self.path}: {self.message}"


@frozen
class Binding:
    """One vMasterID: the pMasterID (StreamID) it stands for, on the SMMU at that host path.

    `devices` are the host paths of the assigned devices that use the stream, `smmu_base` the
    SMMU's CPU address in bytes. `viommu` is the index of the vSMMU whose id it is: a guest has
    one, unless each of its physical SMMUs has its own.
    """

    vmaster_id: int
    smmu: str
    pmaster_id: int
    devices: tuple[str, ...]
    smmu_base: int = 0
    viommu: int = 0


@frozen
class MappedReg:
    """Registers of a device: CPU address, guest address and size in bytes (not rounded)."""

    host: int
    guest: int
    size: int


@frozen
class GuestInterrupt:
    """An interrupt the guest gets 1:1. `number` is the GIC's id (the first SPI is 32)."""

    number: int
    flags: int


@frozen
class Dropped:
    """A host property that the guest node does not have, and why."""

    property: str
    reason: str


@frozen
class DeviceBinding:
    """What one assigned device became: host path, path in the guest tree, ids and resources."""

    path: str
    guest_path: str
    vmaster_ids: tuple[int, ...] = ()
    regs: tuple[MappedReg, ...] = ()
    interrupts: tuple[GuestInterrupt, ...] = ()
    dropped: tuple[Dropped, ...] = ()


@frozen
class Viommu:
    """A vSMMU of the guest: guest address in bytes, interrupt (GIC id) and phandle.

    `smmu` is the host path of the one SMMU it stands for; empty for the vSMMU of all of them.
    """

    base: int
    size: int
    spi: int
    phandle: int
    smmu: str = ""


@frozen
class Bindings:
    """The vMasterID map of one guest, by vSMMU and ascending vMasterID.

    The ids of a vSMMU are 0, 1, 2 ... unless the user wanted others or some were given out before.
    `viommu` is the guest's one vSMMU; `viommus` are those of a guest that has one for each of its
    physical SMMUs, by index. `retired` are ids that were given out to streams which the guest has
    no more; none of them is given to another.
    """

    entries: tuple[Binding, ...] = ()
    guest: str = ""
    viommu: Viommu | None = None
    devices: tuple[DeviceBinding, ...] = ()
    notices: tuple[Notice, ...] = ()
    viommus: tuple[Viommu, ...] = ()
    retired: tuple[Binding, ...] = ()
    _index: dict[tuple[str, int], int] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_id: dict[tuple[int, int], Binding] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for entry in self.entries:
            self._index[entry.smmu, entry.pmaster_id] = entry.vmaster_id
            self._by_id[entry.viommu, entry.vmaster_id] = entry

    def vmaster_id(self, smmu: str, pmaster_id: int) -> int | None:
        """The vMasterID of a stream of the SMMU at host path `smmu`; None when not bound."""
        return self._index.get((smmu, pmaster_id))

    def resolve(self, vmaster_id: int, viommu: int = 0) -> Binding | None:
        """The binding of a vMasterID of the vSMMU of that index; None when there is none."""
        return self._by_id.get((viommu, vmaster_id))

    @property
    def all_viommus(self) -> tuple[Viommu, ...]:
        """The guest's vSMMUs by index."""
        return self.viommus if self.viommu is None else (self.viommu,)

    def phandle_of(self, smmu: str) -> int | None:
        """The phandle of the vSMMU that stands for the SMMU at host path `smmu`."""
        own = next((v for v in self.viommus if v.smmu == smmu), self.viommu)
        return None if own is None else own.phandle

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


class Function(Protocol):
    """A PCI function, as the allocation needs it: its name in messages, and its streams.

    `bridge` is the host path of the host bridge through whose `iommu-map` the streams are had.
    """

    @property
    def path(self) -> str:
        """What messages and bindings call it."""

    @property
    def bridge(self) -> str:
        """The host bridge above it."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Every stream its DMA may come with."""


def allocate(
    platform: Platform,
    devices: Sequence[str],
    *,
    viommu: bool = True,
    wanted: Sequence[DevidMap] = (),
    pci: Sequence[Function] = (),
    old: Bindings | None = None,
    one_per_smmu: bool = False,
) -> Bindings:
    """Number the streams of the devices at host paths `devices` (the `dtdev` list) and of `pci`.

    First fit from 0 in list order, then in the order of each node's streams, past the ids that
    `wanted` (the `iommu_devid_map` list) gives to streams of its own choice and those that `old`
    has given out. Devices that share a stream share its id; the new ids of one PCI function are
    consecutive. With `one_per_smmu` each physical SMMU has a vSMMU with ids of its own. With
    `viommu` false the devices are checked alike (any kind of SMMU will do) and no ids are given.

    Raises:
        UserError: a path is not in the host tree.
        Refusal: a device cannot be assigned, the ids are used up, or `wanted` or `old` does not
            fit the host and the devices.
    """
    smmus = {smmu.path: smmu for smmu in platform.smmus}
    masters = {master.path: master for master in platform.masters}
    users: Users = {}
    for path in _distinct(platform, devices):
        _use(users, path, _assignable(platform, path, smmus, masters, viommu).streams)
    platform_keys = set(users)
    runs = [_use(users, function.path, function.streams) for function in pci]
    notices = _check_sharing(platform, users, pci, platform_keys)
    if not viommu:
        return Bindings(notices=notices)
    from dt_tools.numbering import Numbering

    numbering = Numbering(platform, users, wanted, old, one_per_smmu)
    singles = ([key] for key in users if key in platform_keys)
    numbering.number([*singles, *runs])
    entries = [
        Binding(
            numbering.ids[key],
            *key,
            tuple(owners),
            smmus[key[0]].base or 0,
            numbering.group(key),
        )
        for key, owners in users.items()
    ]
    entries.sort(key=lambda entry: (entry.viommu, entry.vmaster_id))
    return Bindings(
        tuple(entries),
        notices=(*notices, *numbering.notices),
        viommus=numbering.viommus,
        retired=numbering.retired,
    )


Users = dict[tuple[str, int], list[str]]
"""(SMMU path, pMasterID) -> the paths of its devices, in the order of the lists."""


def _use(users: Users, path: str, streams: Iterable[Stream]) -> list[tuple[str, int]]:
    """Note the device at `path` as a user of its streams; returns the streams nobody had."""
    new = []
    for stream in streams:
        key = (stream.smmu_path, stream.stream_id)
        if key not in users:
            new.append(key)
        owners = users.setdefault(key, [])
        if path not in owners:
            owners.append(path)
    if len(users) > MAX_VMASTER_IDS:
        reason = f"the guest would need more than {MAX_VMASTER_IDS} vMasterIDs"
        raise Refusal("DT506", path, reason, "assign fewer devices to this guest")
    return new


def _distinct(platform: Platform, devices: Sequence[str]) -> list[str]:
    """Full host paths of `devices`, in order, refused when one is listed twice or in another."""
    paths: dict[str, Node] = {}
    for name in devices:
        node = platform.resolve(name)
        if node.path != name:
            shown = ascii(name)[1:-1][:200]
            reason = f"dtdev has {shown}, which is not its full path as Xen compares it"
            raise Refusal("DT102", node.path, reason, f"write {node.path}")
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
    platform: Platform,
    users: Mapping[tuple[str, int], Sequence[str]],
    pci: Sequence[Function],
    platform_keys: Iterable[tuple[str, int]],
) -> tuple[Notice, ...]:
    """DT503: a stream of the guest must not be used by a device that stays outside.

    An iommu-map names the ids of all functions a bus could have, so an overlap with one is a
    notice only, and none where the stream was found through that map.
    """
    assigned = {path for owners in users.values() for path in owners}
    by_smmu = _sids(users)
    found_through: dict[str, set[tuple[str, int]]] = {}
    for function in pci:
        keys = found_through.setdefault(function.bridge, set())
        keys.update((s.smmu_path, s.stream_id) for s in function.streams)
    own = set(platform_keys)
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
        through = found_through.get(master.path, set()) - own
        others = _sids(users.keys() - through) if through else by_smmu
        shared = _first_of(others, rows)
        if shared is not None:
            text = f"StreamID {shared[1]:#x} of {shared[0]} is in the iommu-map of {master.path}"
            notices.append(Notice("DT503", users[shared][0], text))
    return tuple(notices)


def _sids(keys: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """The sorted StreamIDs of each SMMU."""
    by_smmu: dict[str, list[int]] = {}
    for smmu, sid in sorted(keys):
        by_smmu.setdefault(smmu, []).append(sid)
    return by_smmu


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
