# SPDX-License-Identifier: BSD-2-Clause
"""A guest's CPU: runs programs written as generators, one yield a unit of work.

A program yields wherever a real CPU could be interrupted or overtaken, so the scheduler can
interleave guests, devices and SMMUs at any of these points. It yields True where it polls for what
others do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

from vsmmu.hypervisor.domain import Domain
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.scheduler import Bell

# What it yields is nothing, or True.
Program = Generator[Any, None, None]
_SPURIOUS_MAX = 100
_LPI_FIRST = 8192


class GuestError(Exception):
    """A guest program gave up: its CPU took an abort, or its driver found an error."""


class VCpu:
    """One vCPU; an engine of the scheduler.

    Args:
        number: its number in the domain, which trapped accesses carry.

    `handlers` makes, for a GIC interrupt id, the program that runs while that line is high, or, for
    an LPI and one of `edges`, once for all since it last began. `lpis` counts the LPIs it was sent.
    `watchers` are told every change of a line as well.
    """

    def __init__(self, hypervisor: Hypervisor, domain: Domain, number: int = 0) -> None:
        self.name = f"vcpu {domain.name}.{number}"
        self.bell = Bell()
        self.number = number
        self.memory = domain.memory
        self.handlers: dict[int, Callable[[], Program]] = {}
        self.interrupts = 0
        self.lines: dict[int, bool] = {}
        self.watchers: list[Callable[[int, bool], None]] = []
        self.edges: set[int] = set()
        self._pending: set[int] = set()
        self.lpis: Counter[int] = Counter()
        self.failure: GuestError | None = None
        self._hypervisor = hypervisor
        self._domain = domain
        self._running: list[Program] = []
        self._handling: int | None = None
        self._spurious = 0
        self._polling = False

    def start(self, program: Program) -> None:
        """Run a program after those already started."""
        self._running.insert(0, program)
        self.bell.ring()
        self.failure = None

    @property
    def busy(self) -> bool:
        """Whether a program has not ended."""
        return bool(self._running)

    def interrupt(self, spi: int, level: bool) -> None:
        """An interrupt line changed; a rising edge counts as one interrupt."""
        if level and self._is_edge(spi):
            self._pending.add(spi)
        self.lines[spi] = level
        self.interrupts += int(level)
        if level:
            self.bell.ring()
        for watcher in self.watchers:
            watcher(spi, level)

    def lpi(self, intid: int) -> None:
        """An LPI becomes pending."""
        self.lpis[intid] += 1
        for level in (True, False):
            self.interrupt(intid, level)

    def _is_edge(self, spi: int) -> bool:
        return spi in self.edges or spi >= _LPI_FIRST

    def step(self, budget: int) -> int:
        """Run at most `budget` yields of the innermost program; none once the domain is dying."""
        if self._domain.dying:
            return 0
        for done in range(budget):
            self._take_interrupt()
            if not self._running:
                return done
            self._advance()
        return budget

    def _take_interrupt(self) -> None:
        if self._handling is not None:
            return
        for spi, handler in self.handlers.items():
            if spi in self._pending if self._is_edge(spi) else self.lines.get(spi):
                self._pending.discard(spi)
                self._handling = spi
                self._running.append(handler())
                return

    def _advance(self) -> None:
        try:
            self._polling = bool(next(self._running[-1]))
        except StopIteration:
            self._pop()
        except GuestError as error:
            self.failure = error
            self._pop()

    def _pop(self) -> None:
        self._running.pop()
        if self._handling is not None:
            spi, self._handling = self._handling, None
            # A level line whose handler cannot clear the cause would be entered for ever; like
            # an operating system, give it up after a while.
            self._spurious = self._spurious + 1 if self.lines[spi] else 0
            if self._spurious >= _SPURIOUS_MAX:
                del self.handlers[spi]
                self._spurious = 0

    # Trapped accesses.

    def read(self, ipa: int, size: int = 4) -> int:
        """A load from a device. Raises GuestError on an external abort."""
        value = self._hypervisor.trap(self._domain, ipa, size, vcpu=self.number)
        if value is None:
            raise GuestError(f"external abort reading {ipa:#x}")
        return value

    def write(self, ipa: int, value: int, size: int = 4) -> None:
        """A store to a device. Raises GuestError on an external abort."""
        if self._hypervisor.trap(self._domain, ipa, size, value, self.number) is None:
            raise GuestError(f"external abort writing {ipa:#x}")
