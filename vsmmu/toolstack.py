# SPDX-License-Identifier: BSD-2-Clause
"""libxl's role: from a host tree and guest configs to a machine with running domains.

This is the one module that knows both sides. It hands the profile to the tree builders and to
the hypervisor, and gives a guest's driver nothing but what the guest's own tree says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dt_tools import blob
from dt_tools.binding import Bindings
from dt_tools.errors import Refusal
from dt_tools.guest import GuestTree, build_guest
from dt_tools.platform import Platform
from dt_tools.profiles import DEFAULT, Profile
from dt_tools.tree import Node, Tree, join_cells
from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.tables import Heap
from vsmmu.guest.vcpu import VCpu
from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.features import UnfitError
from vsmmu.hypervisor.hypervisor import HypercallError, Hypervisor
from vsmmu.hypervisor.pages import OutOfMemoryError
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.memory import PAGE, Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.smmu import Smmu
from vsmmu.trace import Trace
from xl_configs import GuestConfig

SMMU_V3 = "arm,smmu-v3"
# The guest's kernel keeps the first part of its RAM for its image; tables and buffers follow.
_HEAP_OFFSET = 0x10_0000
_HEAP_SHARE = 4


class GuestTreeError(Exception):
    """A guest's tree lacks what its driver needs; the guest's Linux would not find it either."""


@dataclass(frozen=True, slots=True)
class GuestView:
    """What a guest reads in its own device tree.

    `vsmmu` is (base, size) or None; `spi` its interrupt; `masters` the vMasterIDs by node path;
    `ram` the memory banks.
    """

    vsmmu: tuple[int, int] | None
    spi: int
    masters: dict[str, tuple[int, ...]]
    ram: tuple[tuple[int, int], ...]

    @staticmethod
    def of(tree: Tree) -> GuestView:
        """Read a guest tree. Raises GuestTreeError."""
        smmus = [n for n in tree.walk() if n.is_compatible(SMMU_V3)]
        if len(smmus) > 1:
            raise GuestTreeError("more than one vSMMU is not supported by the model driver")
        ram = [r for n in tree.root.children.values() if _is_memory(n) for r in _reg22(n)]
        if not ram:
            raise GuestTreeError("the tree has no memory node")
        if not smmus:
            return GuestView(None, 0, {}, tuple(ram))
        smmu = smmus[0]
        masters = {
            node.path: _ids(node, smmu.phandle)
            for node in tree.walk()
            if node.cells("iommus") and node.status == "okay"
        }
        cells = smmu.cells("interrupts") or (0, 0, 0)
        return GuestView(_reg22(smmu)[0], cells[1] + 32, masters, tuple(ram))


@dataclass(slots=True)
class Guest:
    """A domain that runs: its parts on both sides of the trap.

    `ports` are its devices' DMA ports by host path, one for each stream; `paths` maps a device's
    host path to its path in the guest tree.
    """

    name: str
    config: GuestConfig
    bindings: Bindings
    built: GuestTree
    view: GuestView
    domain: Domain
    vcpu: VCpu
    vsmmu: VSmmu | None
    driver: SmmuDriver | None
    heap: Heap
    ports: dict[str, list[DevicePort]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


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


def host_ram(tree: Tree) -> list[tuple[int, int]]:
    """RAM of a host tree's memory nodes as page-aligned, disjoint (base, size), sorted."""
    found = sorted(r for n in tree.walk() if _is_memory(n) for r in _memory_reg(n))
    out: list[tuple[int, int]] = []
    for base, size in found:
        start, end = -(-base // PAGE) * PAGE, (base + size) // PAGE * PAGE
        if out and start < out[-1][0] + out[-1][1]:
            start = out[-1][0] + out[-1][1]
        if start < end:
            out.append((start, end - start))
    return out


def build_machine(
    platform: Platform,
    *,
    seed: int = 0,
    ram: Sequence[tuple[int, int]] = (),
    caching: str = "normal",
    policy: Policy | None = None,
    profile: Profile = DEFAULT,
) -> Machine:
    """A machine with the enabled SMMUv3s of a host tree, booted.

    Args:
        platform: the host.
        seed: interleaving of the engines, see `Scheduler`.
        ram: RAM as (base, size) instead of the tree's memory nodes, which a boot loader may fill.
        caching: "normal" or "none", see `Smmu`.

    Raises:
        Refusal: MC101, the tree has no RAM; MC102, no enabled SMMUv3.
    """
    regions = list(ram) or host_ram(platform.tree)
    if not regions:
        raise Refusal("MC101", "/", "no memory node with a size", "give machine.ram")
    found = [s for s in platform.smmus if s.kind == SMMU_V3 and s.status == "okay"]
    if not found:
        raise Refusal("MC102", "/", "no enabled arm,smmu-v3", "take another board")
    memory, scheduler = Memory(regions), Scheduler(seed)
    trace = Trace(clock=lambda: scheduler.now)
    bits = max(16, _stream_id_bits(platform))
    smmus: dict[str, Smmu] = {}
    for node in found:
        features = Features.default(sidsize=bits).replace(cohacc=int(node.dma_coherent))
        smmus[node.path] = Smmu(node.path, memory, features, trace=trace, caching=caching)
        for engine in smmus[node.path].engines:
            scheduler.add(engine)
    hypervisor = Hypervisor(memory, scheduler, smmus, policy, trace)
    hypervisor.boot()
    return Machine(platform, memory, scheduler, smmus, hypervisor, trace, profile)


def create_guest(machine: Machine, config: GuestConfig, partial: Tree | None = None) -> Guest:
    """Build a guest's tree, create its domain and vSMMU, assign its devices.

    Raises:
        UserError, Refusal: from the tree builder; MC201 no RAM left, MC202 an SMMU that cannot
            serve, MC203 a stream that is taken, MC204 a name that is taken.
    """
    if config.name in machine.guests:
        raise Refusal("MC204", "/", f"two guests are called {config.name}", "rename one")
    built = build_guest(config, machine.profile, machine.platform, partial)
    # The guest is given bytes, and reads them itself.
    view = GuestView.of(blob.read(blob.write(built.tree), f"{config.name}'s tree"))
    hypervisor = machine.hypervisor
    try:
        domain = hypervisor.create_domain(config.name, view.ram)
    except OutOfMemoryError as error:
        raise Refusal("MC201", "/", str(error), "lower memory or give machine.ram") from None
    vcpu = VCpu(hypervisor, domain)
    machine.scheduler.add(vcpu)
    base, size = view.ram[0]
    heap = Heap(domain.memory, base + _HEAP_OFFSET, size // _HEAP_SHARE)
    guest = Guest(config.name, config, built.bindings, built, view, domain, vcpu, None, None, heap)
    if view.vsmmu is not None:
        guest.vsmmu = _add_vsmmu(machine, guest, view.vsmmu)
        guest.driver = SmmuDriver(vcpu, view.vsmmu[0], heap)
    _add_ports(machine, guest)
    machine.guests[config.name] = guest
    return guest


def _add_vsmmu(machine: Machine, guest: Guest, window: tuple[int, int]) -> VSmmu:
    bindings, hypervisor = guest.bindings, machine.hypervisor
    smmus = list(dict.fromkeys(entry.smmu for entry in bindings.entries))
    try:
        vsmmu = hypervisor.create_vsmmu(
            guest.domain, *window, machine.profile.vsmmu.idr, smmus, irq=guest.vcpu.interrupt
        )
    except UnfitError as error:
        raise Refusal("MC202", error.path, error.reason, "assign other devices") from None
    for entry in bindings.entries:
        try:
            hypervisor.assign(vsmmu, entry.vmaster_id, entry.smmu, entry.pmaster_id, entry.devices)
        except HypercallError as error:
            raise Refusal("MC203", entry.smmu, str(error), "assign it to one guest") from None
    return vsmmu


def _add_ports(machine: Machine, guest: Guest) -> None:
    for device in guest.bindings.devices:
        guest.paths[device.path] = device.guest_path
        ports = []
        for vmaster_id in device.vmaster_ids:
            entry = guest.bindings.resolve(vmaster_id)
            assert entry is not None, "a device's ids are in its bindings"
            name = f"{device.path}#{entry.pmaster_id:#x}"
            ports.append(DevicePort(name, machine.smmus[entry.smmu], entry.pmaster_id))
            machine.scheduler.add(ports[-1])
        guest.ports[device.path] = ports


def _stream_id_bits(platform: Platform) -> int:
    """Bits that the largest StreamID of the board needs."""
    ids = [s.stream_id for m in platform.masters for s in m.streams]
    ids += [row.sid_base + row.length - 1 for m in platform.masters for row in m.maps]
    return min(max(ids, default=0).bit_length(), 32)


def _is_memory(node: Node) -> bool:
    return node.string("device_type") == "memory" and node.status == "okay"


def _memory_reg(node: Node) -> list[tuple[int, int]]:
    parent = node.parent
    assert parent is not None, "a memory node is not the root"
    address, size = parent.u32("#address-cells") or 2, parent.u32("#size-cells") or 1
    cells = node.cells("reg") or ()
    step = address + size
    return [
        (join_cells(cells[i : i + address]), join_cells(cells[i + address : i + step]))
        for i in range(0, len(cells) - step + 1, step)
    ]


def _reg22(node: Node) -> list[tuple[int, int]]:
    cells = node.cells("reg") or ()
    return [
        (join_cells(cells[i : i + 2]), join_cells(cells[i + 2 : i + 4]))
        for i in range(0, len(cells) - 3, 4)
    ]


def _ids(node: Node, phandle: int | None) -> tuple[int, ...]:
    cells = node.cells("iommus") or ()
    return tuple(cells[i + 1] for i in range(0, len(cells) - 1, 2) if cells[i] == phandle)
