# SPDX-License-Identifier: BSD-2-Clause
"""The RAM that a board's vCPUs see: a domain's through its stage 2, or the machine's own."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from vsmmu.hypervisor.domain import Domain
from vsmmu.memory import Memory
from vsmmu.testing.live.image import LiveError


class HostRange(NamedTuple):
    """Guest addresses [address, address + size) are at `host` in this process."""

    address: int
    size: int
    host: int
    writable: bool


class Ram:
    """RAM of a board. Its bytes are those of `Memory`: nothing is copied for a vCPU.

    Args:
        memory: the machine's memory, which is fixed in place (`Memory.fix`).
        domain: whose addresses it has; None for the machine's own.

    Raises:
        LiveError: the machine has more RAM than this process has addresses.
    """

    def __init__(self, memory: Memory, domain: Domain | None = None) -> None:
        try:
            memory.fix()
        except ValueError as error:
            raise LiveError(f"{error}; give the machine less RAM") from None
        self.memory = memory
        self.domain = domain
        self._own = [(base, base, size) for base, size in memory.regions]

    @property
    def gone(self) -> bool:
        """Whether its domain is destroyed: its vCPUs run no more."""
        return self.domain is not None and self.domain.dying

    def mappings(self) -> list[tuple[int, int, int]]:
        """(address, PA, size) of all of it; another list once anything has changed."""
        return self._own if self.domain is None else self.domain.stage2.mappings()

    def holds(self, address: int, size: int) -> bool:
        """Whether a range is all RAM."""
        end = address + size
        for base, _, length in self.mappings():
            if base <= address < base + length:
                address = base + length
        return address >= end

    def to_pa(self, address: int) -> int | None:
        """Where an address lies in the machine; None when it is no RAM."""
        if self.domain is not None:
            return self.domain.stage2.to_pa(address)
        return address if self.memory.is_ram(address) else None

    def write(self, address: int, data: bytes) -> bool:
        """Store bytes before a run; False where there is no RAM."""
        if self.domain is None:
            return self.memory.write(address, data)
        return self.domain.memory.write(address, data)

    def ranges(self) -> list[HostRange]:
        """Where its pages are in this process, neighbours joined."""
        arena = ctypes.addressof(ctypes.c_char.from_buffer(self.memory.words))
        found: list[HostRange] = []
        for address, pa, size in self.mappings():
            stage2 = None if self.domain is None else self.domain.stage2
            writable = stage2 is None or stage2.to_pa(address, write=True) is not None
            for run, length, offset in self.memory.place(pa, size) or ():
                host = HostRange(address + run - pa, length, arena + offset, writable)
                last = found[-1] if found else None
                if last is not None and _continues(last, host):
                    host = last._replace(size=last.size + length)
                    found.pop()
                found.append(host)
        return found


def _continues(last: HostRange, host: HostRange) -> bool:
    return (last.address + last.size, last.host + last.size, last.writable) == (
        host.address, host.host, host.writable
    )  # fmt: skip
