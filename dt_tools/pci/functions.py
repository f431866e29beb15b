# SPDX-License-Identifier: BSD-2-Clause
"""The PCI functions of one guest: host bridge, requester ids, StreamIDs, place in the guest.

`functions` reads the `pci` list of a configuration against the host tree, and against what runs
on the host when there is a topology. A function comes out with every (SMMU, StreamID) its DMA has,
or not at all: rules DT101, DT104, DT105, DT108, DT109, DT505 and DT520 to DT531.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dt_tools.binding import SMMU_V3, Notice
from dt_tools.errors import Refusal
from dt_tools.pci.bridges import Bridges, HostBridge, host_bridges, is_pci
from dt_tools.pci.msi import DeviceId, device_id
from dt_tools.pci.requesters import Groups, requester_ids, unread
from dt_tools.pci.slots import slots
from dt_tools.pci.topology import sbdf_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dt_tools.pci.topology import HostFunction, Topology
    from dt_tools.platform import Master, Platform, Stream
    from xl_configs.specs.pci import PciSpec

# A configuration may list a function many times over; a segment has 65,536.
MAX_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One function that a guest is given.

    `rid` is its bus, device and function, `rids` the requester ids its DMA has, `streams` where
    they come out (each once), `vbdf` its place on the guest's bus, `msi` the host's MSI controller
    and DeviceID of its first requester id. `spec` is the entry it comes from. `notices` are about
    this function.
    """

    bridge: str
    domain: int
    rid: int
    rids: tuple[int, ...]
    streams: tuple[Stream, ...]
    vbdf: int
    spec: PciSpec
    msi: DeviceId | None = None
    notices: tuple[Notice, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """DDDD:BB:DD.F on the host."""
        return sbdf_text(self.domain, self.rid)

    @property
    def path(self) -> str:
        """Host bridge and function, for messages."""
        return f"{self.bridge} {self.name}"


def functions(
    config_pci: Sequence[PciSpec],
    platform: Platform,
    topology: Topology | None = None,
    *,
    viommu: bool = True,
    domains: Mapping[str, int] | None = None,
) -> tuple[PciFunction, ...]:
    """The functions of a `pci` list, in its order.

    Args:
        config_pci: the entries as xl_configs reads them.
        platform: the host.
        topology: the functions the host has; without it each is taken at its own requester id.
        viommu: the guest gets a vSMMU, so that every SMMU must be an SMMUv3.
        domains: PCI domains of host bridges by path, where the tree does not say them.

    Raises:
        UserError: a path of `domains` is no host bridge.
        Refusal: a function cannot be given to the guest as asked.
    """
    if len(config_pci) > MAX_ENTRIES:
        reason = f"{len(config_pci)} pci entries, more than {MAX_ENTRIES}"
        raise Refusal("DT526", "/", reason, "assign fewer")
    return _Host(platform, topology, viommu, host_bridges(platform, domains)).assign(config_pci)


class _Host:
    def __init__(
        self, platform: Platform, topology: Topology | None, viommu: bool, bridges: Bridges
    ) -> None:
        self.platform = platform
        self.topology = topology
        self.viommu = viommu
        self.bridges = bridges
        self.masters = {master.path: master for master in platform.masters}
        self.smmus = {smmu.path: smmu for smmu in platform.smmus}
        self.phandles = platform.tree.phandles()

    def assign(self, specs: Sequence[PciSpec]) -> tuple[PciFunction, ...]:
        found: dict[tuple[int, int], PciFunction] = {}
        for spec in specs:
            for rid in self._rids(spec):
                one = self._function(spec, rid)
                if (one.domain, one.rid) in found:
                    reason = "listed twice in pci"
                    raise Refusal("DT108", one.path, reason, "list each function once")
                found[one.domain, one.rid] = one
        self._check_outside(found)
        places, said = slots([(f.path, f.rid & 7, f.spec.vdevfn) for f in found.values()])
        told = {notice.path: notice for notice in said}
        peers = self._peers(found)
        return tuple(
            replace(
                one,
                vbdf=vbdf,
                notices=(
                    *one.notices,
                    *(n for n in (peers.get(one.name), told.get(one.path)) if n is not None),
                ),
            )
            for one, vbdf in zip(found.values(), places, strict=True)
        )

    def _rids(self, spec: PciSpec) -> Iterable[int]:
        """The functions of an entry: one, or all there are for `*`."""
        rid = spec.bus << 8 | spec.dev << 3 | spec.func
        if spec.name is not None:
            reason = f"pci name={ascii(spec.name)[:80]}: what device it is stands in the host's"
            fix = "name the function as DDDD:BB:DD.F"
            raise Refusal("DT520", "/", f"{reason} xenstore, in no tree", fix)
        if spec.vfunc_mask == 1:
            return (rid,)
        text = f"pci {sbdf_text(spec.domain, rid)[:-1]}*"
        if not spec.vdevfn >> 3:
            reason = f"{text}: libxl takes * with a virtual slot only"
            raise Refusal("DT523", "/", reason, "write @SLOT behind it, or name each function")
        if self.topology is None:
            reason = f"{text}: which functions there are is not known without a topology"
            raise Refusal("DT523", "/", reason, "give the host's lspci -Dxxxx, or name each")
        found = [one.rid for one in self.topology.slot(spec.domain, rid)]
        if not found:
            reason = f"{text}: the topology has none of its functions"
            raise Refusal("DT522", "/", reason, "name a device that the host has")
        return found

    def _function(self, spec: PciSpec, rid: int) -> PciFunction:
        name = sbdf_text(spec.domain, rid)
        bridge, notices = self.bridges.find(spec.domain, rid >> 8, name)
        path = f"{bridge.path} {name}"
        rids: tuple[int, ...] = (rid,)
        if self.topology is None:
            notices += self._unknown(bridge, path, rid)
        else:
            rids = self._requesters(self.topology, bridge, path, spec.domain, rid)
        streams = dict.fromkeys(one for at in rids for one in self._streams(bridge, path, at))
        for stream in streams:
            self._check_smmu(path, stream.smmu_path)
        msi = device_id(bridge.node, self.phandles, rids[0])
        known = tuple(streams)
        return PciFunction(bridge.path, spec.domain, rid, rids, known, 0, spec, msi, notices)

    def _requesters(
        self, topology: Topology, bridge: HostBridge, path: str, domain: int, rid: int
    ) -> tuple[int, ...]:
        """The requester ids of a function that the topology has."""
        one = topology.get(domain, rid)
        if one is None:
            reason = f"the topology {topology.source} does not have it"
            raise Refusal("DT522", path, reason, "name a function that the host has")
        if one.is_bridge:
            raise Refusal("DT522", path, "is a bridge", "assign the devices behind it")
        if topology.above(domain, one.bus) is None and one.bus != bridge.first_bus:
            reason = f"the topology has no bridge that leads to bus {one.bus:#04x}"
            raise Refusal("DT522", path, reason, "dump all of the host, by lspci -Dxxxx")
        dark = unread(topology, one)
        if dark is not None:
            reason = f"capabilities of the bridge {dark.name} above it were not dumped"
            raise Refusal("DT522", path, reason, "dump the host as root, by lspci -Dxxxx")
        return requester_ids(topology, one)

    def _unknown(self, bridge: HostBridge, path: str, rid: int) -> tuple[Notice, ...]:
        """What is to be said when only the tree is known."""
        if _is_node(bridge, rid):
            raise Refusal("DT522", path, "is a bridge", "assign the devices behind it")
        text = (
            f"taken at its own requester id {rid:#06x}; whether a bridge puts in another, or other "
            "functions share it, is not known without the host's lspci -Dxxxx"
        )
        return (Notice("DT528", path, text), *self._masked(bridge, path))

    def _masked(self, bridge: HostBridge, path: str) -> tuple[Notice, ...]:
        """DT524: `iommu-map-mask` makes one id of several."""
        master = self.masters.get(bridge.path)
        if master is None or not bridge.node.props.get("iommu-map"):
            return ()
        lost = ~master.map_mask & 0xFFFF
        if not lost:
            return ()
        text = (
            f"iommu-map-mask {master.map_mask:#x} gives up to {1 << lost.bit_count()} requester "
            "ids its StreamID; all functions among them belong into this guest"
        )
        return (Notice("DT524", path, text),)

    def _streams(self, bridge: HostBridge, path: str, rid: int) -> tuple[Stream, ...]:
        """Where a requester id comes out, by `iommu-map`, else by the bus's `iommus`."""
        master = self.masters.get(bridge.path)
        if master is None or ("iommu-map" not in bridge.node.props and not master.streams):
            reason = "its host bridge has no iommu-map and no iommus"
            fix = "assign a function behind an SMMU; without one its DMA is not contained"
            raise Refusal("DT101", path, reason, fix)
        broken = self._broken(bridge.path)
        if "iommu-map" not in bridge.node.props:
            if broken is not None and broken[0] != "DT505":
                raise Refusal(broken[0], path, broken[1], "correct iommus in the host tree")
            return master.streams
        stream = self._mapped(master, rid)
        if stream is None:
            reason = f"requester id {rid:#06x} is in no row of iommu-map"
            if broken is not None:
                reason += f" that can be read: {broken[1]}"
            fix = "its DMA would not be translated; extend iommu-map in the host tree"
            raise Refusal("DT505", path, reason, fix)
        return (stream,)

    def _mapped(self, master: Master, rid: int) -> Stream | None:
        if "iommu-map-mask" in master.node.props and master.node.u32("iommu-map-mask") is None:
            return None
        return master.map_id(rid)

    def _broken(self, path: str) -> tuple[str, str] | None:
        """What is wrong with the bridge's `iommus` or `iommu-map`."""
        for one in self.platform.findings:
            if one.path == path and one.rule in ("DT401", "DT405", "DT505"):
                return one.rule, one.text
        return None

    def _check_smmu(self, path: str, smmu_path: str) -> None:
        smmu = self.smmus[smmu_path]
        if smmu.kind == "other":
            what = ", ".join(smmu.compatible) or "without compatible"
            reason = f"its IOMMU {smmu_path} is no Arm SMMU ({what})"
            raise Refusal("DT109", path, reason, "assign a function behind an Arm SMMU")
        if smmu.status != "okay":
            reason = f'its SMMU {smmu_path} is disabled (status = "{smmu.status}")'
            raise Refusal("DT104", path, reason, f'set status = "okay" on {smmu_path}')
        if self.viommu and smmu.kind != SMMU_V3:
            reason = f"its SMMU {smmu_path} is {smmu.kind}; a vSMMU needs {SMMU_V3} behind it"
            raise Refusal("DT109", path, reason, 'set viommu = "none" for this guest')

    # What stays outside.

    def _check_outside(self, found: Mapping[tuple[int, int], PciFunction]) -> None:
        """DT524: no function that stays outside has a stream of one that is given away."""
        users = {
            (stream.smmu_path, stream.stream_id): one
            for one in reversed(list(found.values()))
            for stream in one.streams
        }
        if not users or self.topology is None:
            return
        for other in self.topology.functions:
            if other.is_bridge or (other.domain, other.rid) in found:
                continue
            for key in self._keys(self.topology, other):
                if key in users:
                    reason = (
                        f"shares StreamID {key[1]:#x} of {key[0]} with {other.name}, "
                        "which is not assigned to this guest"
                    )
                    fix = f"assign {other.name} too, or neither"
                    raise Refusal("DT524", users[key].path, reason, fix)

    def _keys(self, topology: Topology, other: HostFunction) -> Iterable[tuple[str, int]]:
        """The streams of a function that is not assigned; none when it has no host bridge."""
        try:
            bridge, _ = self.bridges.find(other.domain, other.bus, other.name)
        except Refusal:
            return
        master = self.masters.get(bridge.path)
        if master is None:
            return
        for rid in requester_ids(topology, other):
            streams: Iterable[Stream | None] = master.streams
            if "iommu-map" in bridge.node.props:
                streams = (self._mapped(master, rid),)
            yield from ((one.smmu_path, one.stream_id) for one in streams if one is not None)

    def _peers(self, found: Mapping[tuple[int, int], PciFunction]) -> dict[str, Notice]:
        """DT525, by function: who can be reached past the SMMU and is not in the guest."""
        notices: dict[str, Notice] = {}
        if self.topology is None:
            return notices
        groups = Groups(self.topology)
        for one in found.values():
            here = self.topology.get(one.domain, one.rid)
            assert here is not None
            apart = [p for p in groups.peers(here) if (p.domain, p.rid) not in found]
            if apart:
                more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
                text = (
                    f"no ACS is known between it and {apart[0].name}{more}, outside this guest: "
                    "they may reach each other past the SMMU"
                )
                notices[one.name] = Notice("DT525", one.path, text)
        return notices


def _is_node(bridge: HostBridge, rid: int) -> bool:
    """Whether the host tree has a bridge at that place: its root ports, on the first bus."""
    if rid >> 8 != bridge.first_bus:
        return False
    regs = (n.cells("reg") for n in bridge.node.children.values() if is_pci(n))
    return any(reg and reg[0] >> 8 & 0xFF == rid & 0xFF for reg in regs)
