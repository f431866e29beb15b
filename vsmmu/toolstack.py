# SPDX-License-Identifier: BSD-2-Clause
"""libxl's role: from a host tree and guest configs to a machine with running domains.

This is the one module that knows both sides. It hands the profile to the tree builders and to
the hypervisor, and gives a guest's driver nothing but what the guest's own tree says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dt_tools import blob
from dt_tools.dom0 import build_dom0
from dt_tools.errors import Refusal
from dt_tools.guest import Options, build_guest
from dt_tools.platform import Master, Platform
from dt_tools.profiles import DEFAULT, Profile
from dt_tools.tree import Tree, split_cells
from vsmmu.arch.events import Event
from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.tables import Heap
from vsmmu.guest.vcpu import VCpu
from vsmmu.guest_its import add_its, name_its
from vsmmu.guest_view import GuestView, VsmmuView, host_ram, is_memory
from vsmmu.hypervisor.domain import Domain, Stream
from vsmmu.hypervisor.features import UnfitError
from vsmmu.hypervisor.hypervisor import HypercallError, Hypervisor
from vsmmu.hypervisor.pages import OutOfMemoryError
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.hypervisor.wires import Wires
from vsmmu.machine_features import chosen_features, enabled_smmus, stream_id_bits
from vsmmu.memory import PAGE, Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.smmu import Smmu
from vsmmu.trace import Trace
from xl_configs import GuestConfig

# The guest's kernel keeps the first part of its RAM for its image; tables and buffers follow.
_HEAP_OFFSET = 0x10_0000
_HEAP_SHARE = 4
# Work of building a machine is bounded by these; no known board comes near them.
_SMMUS_MAX = 128
_STREAMS_MAX = 1024


@dataclass(slots=True)
class Guest:
    """A domain that runs: its parts on both sides of the trap.

    `vsmmus` and `drivers` are keyed by the node's path in the guest's tree. `ports` has the DMA
    ports of its devices by host path, one for each stream; `paths` maps a device's host path to
    its path in the guest's tree. `notices` are lines for the user; `unassigned` are streams that
    were taken from it and may be given back.
    """

    name: str
    view: GuestView
    domain: Domain
    vcpu: VCpu
    heap: Heap
    notices: tuple[str, ...] = ()
    vsmmus: dict[str, VSmmu] = field(default_factory=dict)
    drivers: dict[str, SmmuDriver] = field(default_factory=dict)
    ports: dict[str, list[DevicePort]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    unassigned: list[tuple[VSmmu, Stream]] = field(default_factory=list)

    def streams(self, device: str) -> list[tuple[SmmuDriver, tuple[int, ...]]]:
        """The vMasterIDs of a device by driver, as the guest's own tree has them."""
        out: dict[str, tuple[int, ...]] = {}
        for path, vmaster_id in self.view.masters[self.paths[device]]:
            out[path] = (*out.get(path, ()), vmaster_id)
        return [(self.drivers[path], ids) for path, ids in out.items()]

    @property
    def events(self) -> list[Event]:
        """What its drivers took from their event queues, vSMMU by vSMMU."""
        return [event for driver in self.drivers.values() for event in driver.events]

    @property
    def gerrors(self) -> list[int]:
        """Active global errors that its drivers acknowledged."""
        return [error for driver in self.drivers.values() for error in driver.gerrors]


@dataclass(slots=True)
class Machine:
    """A host: its tree, memory, physical SMMUs and hypervisor under one scheduler."""

    platform: Platform
    memory: Memory
    scheduler: Scheduler
    smmus: dict[str, Smmu]
    hypervisor: Hypervisor
    trace: Trace
    profile: Profile
    guests: dict[str, Guest] = field(default_factory=dict)


def build_machine(
    platform: Platform,
    *,
    seed: int = 0,
    ram: Sequence[tuple[int, int]] = (),
    caching: str = "normal",
    policy: Policy | None = None,
    profile: Profile = DEFAULT,
    features: Mapping[str, Features] | None = None,
    default_features: Features | None = None,
) -> Machine:
    """A machine with the enabled SMMUv3s of a host tree, booted.

    Args:
        platform: the host.
        seed: interleaving of the engines, see `Scheduler`.
        ram: RAM as (base, size) instead of the tree's memory nodes, which a boot loader may fill.
        caching: "normal" or "none", see `Smmu`.
        policy, profile: what guests are held to and given.
        features: of physical SMMUs by the path of their node, as `board_features` makes them.
        default_features: of the others, in place of what `machine_features` has for the board.

    Raises:
        Refusal: MC101, the tree has no RAM or not enough for the hypervisor; MC102, no enabled
            SMMUv3 or too many; MC103, features that contradict the board.
    """
    regions = list(ram) or host_ram(platform.tree)
    if not regions:
        raise Refusal("MC101", "/", "no memory node with a size", "give machine.ram")
    found = enabled_smmus(platform)
    if not found:
        raise Refusal("MC102", "/", "no enabled arm,smmu-v3", "take another board")
    if len(found) > _SMMUS_MAX:
        raise Refusal("MC102", "/", f"more than {_SMMUS_MAX} enabled SMMUs", "disable some")
    memory, scheduler = Memory(regions), Scheduler(seed)
    trace = Trace(clock=lambda: scheduler.now)
    smmus: dict[str, Smmu] = {}
    for path, have in chosen_features(platform, regions, features or {}, default_features).items():
        smmus[path] = Smmu(path, memory, have, trace=trace, caching=caching)
        for engine in smmus[path].engines:
            scheduler.add(engine)
    try:
        hypervisor = Hypervisor(memory, scheduler, smmus, policy, trace)
        hypervisor.boot()
    except OutOfMemoryError as error:
        raise Refusal("MC101", "/", str(error), "give more machine.ram") from None
    return Machine(platform, memory, scheduler, smmus, hypervisor, trace, profile)


def create_guest(
    machine: Machine,
    config: GuestConfig,
    partial: Tree | None = None,
    *,
    one_vsmmu_per_psmmu: bool = False,
    vits: bool = False,
) -> Guest:
    """Build a guest's tree, create its domain and vSMMU, assign its devices.

    Args:
        machine: where it runs.
        config: its configuration.
        partial: its partial tree.
        one_vsmmu_per_psmmu: a vSMMU for each physical SMMU of its devices, in place of one.
        vits: it has a virtual ITS, which takes messages of its devices and of its vSMMU.

    Raises:
        UserError, Refusal: from the tree builder; MC201 no RAM left, MC202 an SMMU that cannot
            serve, MC203 a stream that is taken, MC204 a name that is taken, MC206 a PCI device,
            MC207 a virtual ITS that is not possible.
    """
    if config.pci:
        reason = f"{config.name} has PCI devices; the emulator has platform devices only"
        raise Refusal("MC206", "/", reason, "take pci out of the configuration")
    if vits and one_vsmmu_per_psmmu:
        reason = "devices behind several vSMMUs can have one vMasterID, which is their DeviceID"
        raise Refusal("MC207", "/", reason, "give it one vSMMU, or no virtual ITS")
    options = Options(one_vsmmu_per_psmmu=one_vsmmu_per_psmmu, vits=vits)
    built = build_guest(config, machine.profile, machine.platform, partial, options=options)
    if vits:
        name_its(built.tree)
    # The guest is given bytes, and reads them itself.
    view = GuestView.of(blob.write(built.tree), f"{config.name}'s tree")
    notices = tuple(str(notice) for notice in built.notices)
    bindings = built.bindings
    if len(bindings.entries) > _STREAMS_MAX:
        reason = f"{config.name} has more than {_STREAMS_MAX} streams"
        raise Refusal("MC205", "/", reason, "assign fewer devices")
    guest = _create(machine, config.name, view, notices)
    indexes = {viommu.base: index for index, viommu in enumerate(bindings.all_viommus)}
    for window in view.vsmmus.values():
        entries = [e for e in bindings.entries if e.viommu == indexes[window.base]]
        smmus = list(dict.fromkeys(entry.smmu for entry in entries))
        vsmmu = _add_vsmmu(machine, guest, window, smmus, machine.profile.vsmmu.idr)
        for entry in entries:
            key = (entry.smmu, entry.pmaster_id)
            _assign(machine, vsmmu, entry.vmaster_id, key, entry.devices)
    if vits:
        add_its(machine.hypervisor, machine.smmus, machine.platform, guest.domain, view, guest.vcpu)
    for device in bindings.devices:
        found = [
            bindings.resolve(vmaster_id, indexes[view.vsmmus[path].base])
            for path, vmaster_id in view.masters.get(device.guest_path, ())
        ]
        guest.paths[device.path] = device.guest_path
        keys = [(entry.smmu, entry.pmaster_id) for entry in found if entry is not None]
        _add_ports(machine, guest, device.path, keys)
    return guest


def create_dom0(machine: Machine, memory_mib: int) -> Guest:
    """dom0: RAM at its own machine addresses, one vSMMU for each physical SMMU, ids unchanged.

    It gets every stream that an enabled node's `iommus` names and no guest has; create the guests
    before it. Streams of an `iommu-map` are not assigned.

    Raises:
        Refusal: as `create_guest`.
    """
    pages, wanted = machine.hypervisor.pages, memory_mib << 20
    tree = build_dom0(machine.platform, combined=machine.profile.vsmmu.dom0_combined)
    left = pages.left
    try:
        base, size = pages.allocate_some(wanted, 0x20_0000 if not wanted % 0x20_0000 else PAGE)
    except OutOfMemoryError:
        raise _no_memory("dom0", wanted, left) from None
    pages.free(base, size)
    if size < wanted:
        raise _no_memory("dom0", wanted, size)
    _set_memory(tree, base, size)
    view = GuestView.of(blob.write(tree), "dom0's tree")
    guest = _create(machine, "dom0", view, tuple(str(n) for n in tree.notices), direct=True)
    for path, host in machine.hypervisor.hosts.items():
        idr = machine.profile.vsmmu.idr
        bits = host.sid_bits
        if machine.profile.vsmmu.dom0_combined:
            # Its constant, unless dom0 could then not name a device of its own.
            bits = max(idr["IDR1"]["sidsize"], stream_id_bits(machine.platform, path))
        sized = {**idr, "IDR1": {**idr["IDR1"], "sidsize": bits}}
        _add_vsmmu(machine, guest, view.vsmmus[path], [path], sized)
    for master in machine.platform.masters:
        if master.status == "okay":
            _give_dom0(machine, guest, master)
    return guest


def unassign(machine: Machine, guest: Guest, device: str) -> None:
    """Take a device from a guest that runs. Streams that another device uses too stay.

    Raises:
        HypercallError: a stream could not be stopped.
    """
    for vsmmu in guest.vsmmus.values():
        for stream in list(vsmmu.streams.values()):
            if stream.devices == (device,):
                machine.hypervisor.deassign(vsmmu, stream)
                guest.unassigned.append((vsmmu, stream))


def assign(machine: Machine, guest: Guest, device: str) -> None:
    """Give a guest a device back that `unassign` took, under the same vMasterIDs.

    Raises:
        HypercallError: a stream is someone's by now.
    """
    for vsmmu, stream in list(guest.unassigned):
        if stream.devices == (device,):
            machine.hypervisor.assign(
                vsmmu, stream.vmaster_id, stream.host.path, stream.pmaster_id, stream.devices
            )
            guest.unassigned.remove((vsmmu, stream))


def destroy_guest(machine: Machine, guest: Guest) -> None:
    """Destroy a domain; its devices' ports stay, and reach nothing.

    Raises:
        HypercallError: it is being destroyed already, or its devices could not be stopped.
    """
    machine.hypervisor.wait(machine.hypervisor.destroy_domain(guest.domain))


def _give_dom0(machine: Machine, guest: Guest, master: Master) -> None:
    """A master's streams, unless another guest has one of them or dom0's tree lacks the node."""
    if master.path not in guest.view.masters:
        return
    keys = [(s.smmu_path, s.stream_id) for s in master.streams]
    taken = [key for key in keys if machine.hypervisor.owner(*key) not in (None, "dom0")]
    if not keys or taken or any(path not in guest.vsmmus for path, _ in keys):
        return
    for path, stream_id in keys:
        vsmmu = guest.vsmmus[path]
        if stream_id not in vsmmu.streams:
            _assign(machine, vsmmu, stream_id, (path, stream_id), (master.path,))
    guest.paths[master.path] = master.path
    _add_ports(machine, guest, master.path, keys)


def _create(
    machine: Machine,
    name: str,
    view: GuestView,
    notices: tuple[str, ...],
    *,
    direct: bool = False,
) -> Guest:
    """The domain, its vCPU and heap."""
    if name in machine.guests:
        raise Refusal("MC204", "/", f"two guests are called {name}", "rename one")
    end = max(base + size for base, size in view.ram)
    left = machine.hypervisor.pages.left
    try:
        domain = machine.hypervisor.create_domain(
            name, view.ram, ipa_bits=max(40, (end - 1).bit_length()), direct=direct
        )
    except OutOfMemoryError:
        raise _no_memory(name, sum(size for _, size in view.ram), left) from None
    vcpu = VCpu(machine.hypervisor, domain)
    machine.scheduler.add(vcpu)
    base, size = view.ram[0]
    heap = Heap(domain.memory, base + _HEAP_OFFSET, size // _HEAP_SHARE)
    guest = machine.guests[name] = Guest(name, view, domain, vcpu, heap, notices)
    return guest


def _add_vsmmu(
    machine: Machine,
    guest: Guest,
    window: VsmmuView,
    smmus: list[str],
    wanted: Mapping[str, Mapping[str, int]],
) -> VSmmu:
    """A vSMMU and the driver that the guest's tree calls for."""
    irq = Wires(window.spis, guest.vcpu.interrupt, window.edges)
    guest.vcpu.edges |= window.edges
    try:
        vsmmu = machine.hypervisor.create_vsmmu(
            guest.domain, window.base, window.size, wanted, smmus, irq=irq
        )
    except UnfitError as error:
        raise Refusal("MC202", error.path, error.reason, "assign other devices") from None
    except HypercallError as error:
        raise Refusal("MC206", window.path, str(error), "correct the host tree") from None
    for register, fields in machine.profile.vsmmu.reset.items():
        vsmmu.regs.set_fields(register, **fields)
    guest.vsmmus[window.path] = vsmmu
    guest.drivers[window.path] = SmmuDriver(
        guest.vcpu, window.base, sorted(set(window.spis.values())), guest.heap
    )
    return vsmmu


def _assign(
    machine: Machine,
    vsmmu: VSmmu,
    vmaster_id: int,
    key: tuple[str, int],
    devices: tuple[str, ...],
) -> None:
    try:
        machine.hypervisor.assign(vsmmu, vmaster_id, *key, devices)
    except HypercallError as error:
        raise Refusal("MC203", devices[0], str(error), "assign another device") from None


def _add_ports(
    machine: Machine, guest: Guest, device: str, keys: Sequence[tuple[str, int]]
) -> None:
    """DMA ports of a device, one for each (SMMU, pMasterID)."""
    ports = [DevicePort(f"{device}#{sid:#x}", machine.smmus[smmu], sid) for smmu, sid in keys]
    for port in ports:
        machine.scheduler.add(port)
    guest.ports[device] = ports


def _no_memory(guest: str, wanted: int, left: int) -> Refusal:
    reason = f"{guest} wants {wanted >> 20} MiB, {left >> 20} MiB of machine RAM are left"
    return Refusal("MC201", "/", reason, "lower its memory or give machine.ram")


def _set_memory(tree: Tree, base: int, size: int) -> None:
    """Leave one memory node with one bank, as Xen does for dom0."""
    root = tree.root
    for name in [n.name for n in root.children.values() if is_memory(n)]:
        root.remove(name)
    node = root.add(f"memory@{base:x}")
    node.set_strings("device_type", "memory")
    cells = (root.u32("#address-cells") or 2, root.u32("#size-cells") or 1)
    node.set_cells("reg", *split_cells(base, cells[0]), *split_cells(size, cells[1]))
