# SPDX-License-Identifier: BSD-2-Clause
"""The machine of the tests of stalls."""

from __future__ import annotations

from vsmmu.arch.events import Event
from vsmmu.smmu import DevicePort, Features, Request

from .machine import Machine

STALLS = Features.default().replace(stall_model=0, stall_max=4, term_model=0)
FORCED = Features.default().replace(stall_model=2, stall_max=4)
DATA = 0x8F00_0000
IOVA = 0x12_3000


class Stalling(Machine):
    """A machine with a stage 1 stream 1 that stalls, its root, and a port."""

    def __init__(self, features: Features = STALLS, **how: object) -> None:
        super().__init__(features, **how)  # type: ignore[arg-type]
        self.root = self.s1_stream(1, s=1)
        self.ports: list[DevicePort] = []

    def port(self, sid: int = 1, **how: bool) -> DevicePort:
        port = DevicePort(f"port{len(self.ports)}", self.smmu, sid, **how)
        self.scheduler.add(port)
        self.ports.append(port)
        return port

    def run(self) -> None:
        assert self.scheduler.run_until_idle()

    def stall(self, iova: int = IOVA, sid: int = 1) -> tuple[Request, Event]:
        """A read that stalls, and its record."""
        request = self.port(sid).read(iova, 8)
        (event,) = self.events()
        assert not request.done
        return request, event


def field(event: Event, name: str) -> int:
    return event.fields[name].of(event.words)
