# SPDX-License-Identifier: BSD-2-Clause
"""A machine with guests on vSMMUs, built by hand, without any device tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vsmmu.arch.commands import Command
from vsmmu.arch.registers import BY_NAME
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import Request
from vsmmu.testing import machine

BASE = 0x0404_0000
RAM = 0x4000_0000
RAM_SIZE = 0x40_0000
# Guest addresses that tests map and look at, clear of the driver's heap.
BUFFER = RAM + 0x30_0000
MACHINE = 0x8000_0000
MACHINE_SIZE = 0x1000_0000
NOWHERE = 0x3900_0000

Stream = tuple[str, int]


class Guest(machine.Guest):
    """A guest of the machine, with what tests do behind its driver's back."""

    def __init__(self, world: World, name: str, streams: Sequence[Stream]) -> None:
        super().__init__(world, name, streams)
        self.world = world

    def boot(self) -> Guest:
        super().boot()
        return self

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

    def dma(self, vmaster_id: int, iova: int, data: bytes | int) -> Request:
        """A write of bytes, or a read of so many; it ends."""
        request = super().dma(vmaster_id, iova, data)
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


class World(machine.Machine):
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
        self._guest = guest
        features = features or Features.default(sidsize=16)
        super().__init__(
            guests, smmus=dict.fromkeys(smmus, features), seed=seed, policy=policy,
            caching=caching, ram=[(MACHINE, machine_size)], ask_all=ask_all,
        )  # fmt: skip

    def make_guest(self, name: str, streams: Sequence[Stream], size: int) -> Guest:
        return self._guest(self, name, streams)
