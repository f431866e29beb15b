# SPDX-License-Identifier: BSD-2-Clause
"""A machine with guests on vSMMUs, built by hand, without any device tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dt_tools.profiles import DEFAULT
from vsmmu.arch.commands import Command
from vsmmu.arch.registers import BY_NAME
from vsmmu.arch.stream_table import Ste
from vsmmu.guest.driver import SmmuDriver
from vsmmu.guest.tables import Heap
from vsmmu.guest.vcpu import Program, VCpu
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

BASE = 0x0404_0000
RAM = 0x4000_0000
RAM_SIZE = 0x40_0000
# Guest addresses that tests map and look at, clear of the driver's heap.
BUFFER = RAM + 0x30_0000
MACHINE = 0x8000_0000
MACHINE_SIZE = 0x1000_0000
NOWHERE = 0x3900_0000

Stream = tuple[str, int]


class Guest:
    """A domain with its vSMMU, driver and DMA ports; streams are vMasterIDs 0, 1, ..."""

    # Interrupts by cause, and which of them are edges.
    spis: Mapping[str, int] = dict.fromkeys(CAUSES, 33)
    edges: frozenset[int] = frozenset()

    def __init__(self, world: World, name: str, streams: Sequence[Stream]) -> None:
        hv = world.hypervisor
        self.world = world
        self.domain: Domain = hv.create_domain(name, [(RAM, RAM_SIZE)])
        self.memory = self.domain.memory
        self.vcpu = VCpu(hv, self.domain)
        self.vcpu.edges |= self.edges
        world.scheduler.add(self.vcpu)
        smmus = list(dict.fromkeys(path for path, _ in streams))
        self.vsmmu: VSmmu = hv.create_vsmmu(
            self.domain, BASE, 0x4_0000, DEFAULT.vsmmu.idr, smmus,
            Wires(self.spis, self.vcpu.interrupt, self.edges),
        )  # fmt: skip
        self.ports = []
        for vmaster_id, (path, sid) in enumerate(streams):
            hv.assign(self.vsmmu, vmaster_id, path, sid)
            self.ports.append(DevicePort(f"{name}{vmaster_id}", world.smmus[path], sid))
            world.scheduler.add(self.ports[-1])
        self.driver = SmmuDriver(
            self.vcpu,
            BASE,
            sorted(set(self.spis.values())),
            Heap(self.memory, RAM + 0x10_0000, 0x20_0000),
        )

    # What the guest does, each until the machine is at rest.

    def run(self, program: Program) -> None:
        self.vcpu.start(program)
        assert self.world.scheduler.run_until_idle()
        if self.vcpu.failure is not None:
            raise self.vcpu.failure

    def destroy(self) -> None:
        hv = self.world.hypervisor
        hv.wait(hv.destroy_domain(self.domain))
        self.world.scheduler.remove(self.vcpu)

    def boot(self) -> Guest:
        self.run(self.driver.boot())
        return self

    def attach(self, *ids: int) -> None:
        self.run(self.driver.attach(*ids))

    def map(self, vmaster_id: int, iova: int, ipa: int, size: int = 0x1000) -> None:
        self.driver.map(vmaster_id, iova, ipa, size)

    def write(self, name: str, value: int, *, rest: bool = True) -> None:
        register = BY_NAME[name]
        hv = self.world.hypervisor
        assert hv.trap(self.domain, BASE + register.offset, register.width // 8, value) == 0
        if rest:
            assert self.world.scheduler.run_until_idle()

    def read(self, name: str) -> int:
        register = BY_NAME[name]
        hv = self.world.hypervisor
        value = hv.trap(self.domain, BASE + register.offset, register.width // 8)
        assert value is not None
        return value

    def put(self, *commands: Command) -> None:
        """Commands straight into the queue, behind the driver's back."""
        self.put_without_rest(*commands)
        assert self.world.scheduler.run_until_idle()

    def put_without_rest(self, *commands: Command) -> None:
        """As `put`, and nothing is done about them yet."""
        prod = self.read("CMDQ_PROD")
        for command in commands:
            self.memory.write_words(self.driver._cmdq.address(prod), command.words)
            prod = self.driver._cmdq.advance(prod)
        self.driver._prod = prod
        self.write("CMDQ_PROD", prod, rest=False)

    def ste(self, vmaster_id: int, ste: Ste) -> None:
        """Overwrite an STE without any command."""
        assert self.memory.write_words(self.driver.ste_address(vmaster_id), ste.words)

    def dma(self, vmaster_id: int, iova: int, data: bytes | int) -> Request:
        """A write of bytes, or a read of so many."""
        port = self.ports[vmaster_id]
        request = port.read(iova, data) if isinstance(data, int) else port.write(iova, data)
        assert self.world.scheduler.run_until_idle()
        assert request.done
        return request

    def events(self) -> list[tuple[str, int]]:
        """(name, StreamID) of the events the driver took, which are then forgotten."""
        seen = [(e.name, e.sid) for e in self.driver.events]
        self.driver.events.clear()
        return seen

    def quiet(self) -> None:
        """Mask the interrupts, so that the driver repairs nothing."""
        self.write("IRQ_CTRL", 0)


class World:
    """Physical SMMUs `a`, `b`, `c`, or others, under a hypervisor, and guests by name."""

    def __init__(
        self,
        guests: Mapping[str, Sequence[Stream]],
        *,
        seed: int = 0,
        ask_all: bool = False,
        policy: Policy | None = None,
        features: Features | None = None,
        caching: str = "normal",
        smmus: Sequence[str] = "abc",
        machine_size: int = MACHINE_SIZE,
        guest: type[Guest] = Guest,
    ) -> None:
        self.memory = Memory([(MACHINE, machine_size)])
        self.scheduler = Scheduler(seed, ask_all=ask_all)
        features = features or Features.default(sidsize=16)
        self.smmus = {name: Smmu(name, self.memory, features, caching=caching) for name in smmus}
        for smmu in self.smmus.values():
            for engine in smmu.engines:
                self.scheduler.add(engine)
        self.hypervisor = Hypervisor(self.memory, self.scheduler, self.smmus, policy)
        self.hypervisor.boot()
        self.guests = {name: guest(self, name, streams) for name, streams in guests.items()}

    def __getitem__(self, name: str) -> Guest:
        return self.guests[name]
