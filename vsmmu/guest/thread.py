# SPDX-License-Identifier: BSD-2-Clause
"""A further CPU of a guest, on which one actor runs."""

from __future__ import annotations

from collections.abc import Callable

from vsmmu.guest.vcpu import Program, VCpu
from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.hypervisor import Hypervisor


class Thread(VCpu):
    """A vCPU that takes no interrupts, can sleep until something is so, and can be held.

    A poll ends its turn: asking again before others had theirs would tell it nothing.

    Args:
        number: its number in the domain; 0 is the one that takes interrupts.

    While it waits or is held it has no work, so a machine can come to rest.
    """

    def __init__(self, hypervisor: Hypervisor, domain: Domain, number: int) -> None:
        super().__init__(hypervisor, domain, number)
        self._held = False
        self._ready: Callable[[], bool] | None = None

    def hold(self, held: bool) -> None:
        """Keep it from going on, or let it."""
        self._held = held
        self.bell.ring()

    def until(self, ready: Callable[[], bool]) -> Program:
        """Sleep until something is so."""
        if not ready():
            self._ready = ready
            yield

    def step(self, budget: int) -> int:
        """Run at most `budget` yields of its program."""
        for done in range(budget):
            if self._held:
                return done
            if self._ready is not None and not self._ready():
                # Nobody knows what it waits for: it stays awake and asks again.
                self.bell.ring()
                return done
            self._ready = None
            self._polling = False
            if not super().step(1):
                return done
            if self._polling:
                return done + 1
        return budget
