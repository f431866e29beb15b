# SPDX-License-Identifier: BSD-2-Clause
"""A machine described in place: physical SMMUs, the hypervisor over them, guests with devices.

    machine = Machine({"g": [("smmu0", 0x600)], "h": [("smmu0", 0x700)]})
    guest = machine["g"].boot()
    guest.attach(0)
    guest.map(0, 0x10000, guest.buffer())
    assert guest.dma(0, 0x10000, b"data").ok

No device tree is read and none is written: that is what scenario files are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dt_tools.profiles import DEFAULT
from vsmmu.arch.commands import Command
from vsmmu.arch.events import Event
from vsmmu.arch.stream_table import Ste
from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.tables import Heap
from vsmmu.guest.vcpu import GuestError, Program, VCpu
from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.hypervisor.wires import CAUSES, Wires
from vsmmu.memory import Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort, Request
from vsmmu.smmu.smmu import Smmu
from vsmmu.testing.rings import Registers
from vsmmu.testing.space import Space

RAM, RAM_SIZE = 0x8000_0000, 0x1000_0000
GUEST_RAM, GUEST_RAM_SIZE = DEFAULT.guest.ram_banks[0].base, 0x40_0000
BASE, SIZE = DEFAULT.guest.vsmmu.base, DEFAULT.guest.vsmmu.size
# Of a guest's RAM: its kernel's share at the bottom, the driver's tables, buffers.
_HEAP, _BUFFERS = 0x10_0000, 0x30_0000

# (name of the physical SMMU, StreamID).
Stream = tuple[str, int]


class Guest:
    """A guest with one vSMMU and a device for each of its streams, vMasterIDs 0, 1, ...

    Attributes:
        domain, memory, vcpu, vsmmu, driver: its parts; `memory` is by its own addresses.
        ports: its devices, by vMasterID.
        registers: the vSMMU's, through trapped accesses of the guest.
        space: pages for `buffer`, and for tables built by hand.
        spis, edges: interrupts of the vSMMU by cause, and which of them are edges; a subclass may
            have others.
    """

    spis: Mapping[str, int] = dict.fromkeys(CAUSES, DEFAULT.guest.vsmmu_spi)
    edges: frozenset[int] = frozenset()

    def __init__(
        self, machine: Machine, name: str, streams: Sequence[Stream], *, size: int = GUEST_RAM_SIZE
    ) -> None:
        hypervisor = machine.hypervisor
        self.machine = machine
        self.name = name
        self.domain: Domain = hypervisor.create_domain(name, [(GUEST_RAM, size)])
        self.memory = self.domain.memory
        self.vcpu = VCpu(hypervisor, self.domain)
        self.vcpu.edges |= self.edges
        machine.scheduler.add(self.vcpu)
        self.vsmmu: VSmmu = hypervisor.create_vsmmu(
            self.domain, BASE, SIZE, DEFAULT.vsmmu.idr, list(dict.fromkeys(p for p, _ in streams)),
            Wires(self.spis, self.vcpu.interrupt, self.edges),
        )  # fmt: skip
        self.ports: list[DevicePort] = []
        for vmaster_id, (path, sid) in enumerate(streams):
            hypervisor.assign(self.vsmmu, vmaster_id, path, sid)
            self.ports.append(DevicePort(f"{name}{vmaster_id}", machine.smmus[path], sid))
            machine.scheduler.add(self.ports[-1])
        heap = Heap(self.memory, GUEST_RAM + _HEAP, _BUFFERS - _HEAP)
        self.driver = SmmuDriver(self.vcpu, BASE, sorted(set(self.spis.values())), heap)
        self.registers = Registers(self._load, self._store)
        self.space = Space(self.memory, GUEST_RAM + _BUFFERS, size - _BUFFERS)

    # What the guest does, each until the machine is at rest.

    def run(self, program: Program) -> None:
        """Run a program on its vCPU.

        Raises:
            GuestError: the program gave up.
        """
        self.vcpu.start(program)
        self.machine.run()
        if self.vcpu.failure is not None:
            raise self.vcpu.failure

    def boot(self) -> Guest:
        """Probe and enable the vSMMU, in Linux's order; itself. Raises GuestError."""
        self.run(self.driver.boot())
        return self

    def attach(self, *vmaster_ids: int) -> None:
        """One new address space for these streams. Raises GuestError."""
        self.run(self.driver.attach(*vmaster_ids))

    def detach(self, *vmaster_ids: int) -> None:
        """Their STEs abort. Raises GuestError."""
        self.run(self.driver.detach(*vmaster_ids))

    def buffer(self, size: int = 0x1000) -> int:
        """IPA of fresh pages. Raises ValueError: there are none."""
        return self.space.page(-(-size // 0x1000))

    def map(
        self, vmaster_id: int, iova: int, ipa: int, size: int = 0x1000, *, write: bool = True
    ) -> None:
        """Map pages in the address space of an attached stream. Raises GuestError."""
        self._attached(vmaster_id)
        self.driver.map(vmaster_id, iova, ipa, size, write=write)

    def unmap(self, vmaster_id: int, iova: int, size: int = 0x1000) -> None:
        """Unmap pages and invalidate them. Raises GuestError."""
        self._attached(vmaster_id)
        self.run(self.driver.unmap(vmaster_id, iova, size))

    def issue(self, *commands: Command) -> None:
        """Commands of the guest's driver and a CMD_SYNC. Raises GuestError."""
        self.run(self.driver.issue(*commands))

    def ste(self, vmaster_id: int, ste: Ste) -> None:
        """Overwrite an STE behind the driver's back, without any command. Raises GuestError."""
        if not self.memory.write_words(self.driver.ste_address(vmaster_id), ste.words):
            raise GuestError(f"the STE of vMasterID {vmaster_id:#x} is not RAM")

    def dma(self, vmaster_id: int, iova: int, data: bytes | int) -> Request:
        """A device's write of bytes, or its read of so many."""
        port = self.ports[vmaster_id]
        request = port.read(iova, data) if isinstance(data, int) else port.write(iova, data)
        self.machine.run()
        return request

    def take_events(self) -> list[Event]:
        """The events that its driver took from the event queue since this was last asked."""
        self.machine.run()
        seen = list(self.driver.events)
        self.driver.events.clear()
        return seen

    def destroy(self) -> None:
        """Destroy the domain. Raises HypercallError."""
        hypervisor = self.machine.hypervisor
        hypervisor.wait(hypervisor.destroy_domain(self.domain))
        self.machine.scheduler.remove(self.vcpu)

    def _attached(self, vmaster_id: int) -> None:
        if vmaster_id not in self.driver.contexts:
            raise GuestError(f"vMasterID {vmaster_id:#x} is not attached")

    def _load(self, offset: int, size: int) -> int:
        return self.vcpu.read(BASE + offset, size)

    def _store(self, offset: int, size: int, value: int) -> None:
        self.vcpu.write(BASE + offset, value, size)


class Machine:
    """Physical SMMUs under a hypervisor, booted, and guests by name.

    Args:
        guests: the streams of each.
        smmus: features of each physical SMMU by its name; one called "smmu0" by default.
        seed: interleaving of the engines; 0 is round robin.
        policy: the hypervisor's.
        caching: of the physical SMMUs: "normal", "none" or "hostile".
        ram: (base, size) ranges of the machine's RAM.
        guest_ram: bytes of RAM of each guest, at least 4 MiB.
        ask_all: as for `Scheduler`.

    Raises:
        HypercallError, UnfitError: a guest that cannot be had on these SMMUs; one line.
    """

    def __init__(
        self,
        guests: Mapping[str, Sequence[Stream]],
        *,
        smmus: Mapping[str, Features] | None = None,
        seed: int = 0,
        policy: Policy | None = None,
        caching: str = "normal",
        ram: Iterable[tuple[int, int]] = ((RAM, RAM_SIZE),),
        guest_ram: int = GUEST_RAM_SIZE,
        ask_all: bool = False,
    ) -> None:
        self.memory = Memory(ram)
        self.scheduler = Scheduler(seed, ask_all=ask_all)
        features = {"smmu0": Features.default(sidsize=16)} if smmus is None else smmus
        self.smmus = {
            name: Smmu(name, self.memory, has, caching=caching) for name, has in features.items()
        }
        for smmu in self.smmus.values():
            for engine in smmu.engines:
                self.scheduler.add(engine)
        self.hypervisor = Hypervisor(self.memory, self.scheduler, self.smmus, policy)
        self.hypervisor.boot()
        self.guests = {
            name: self.make_guest(name, streams, guest_ram) for name, streams in guests.items()
        }

    def make_guest(self, name: str, streams: Sequence[Stream], size: int) -> Guest:
        """A guest of this machine; the place for a subclass to make another kind."""
        return Guest(self, name, streams, size=size)

    def run(self) -> None:
        """Run every engine until there is nothing left to do.

        Raises:
            RuntimeError: they do not come to rest.
        """
        if not self.scheduler.run_until_idle():
            raise RuntimeError("the machine did not come to rest")

    def __getitem__(self, name: str) -> Guest:
        return self.guests[name]
