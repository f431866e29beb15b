# SPDX-License-Identifier: BSD-2-Clause
"""The interrupt controller of a board: as much of a GICv2 (IHI 0048) as a driver needs.

SPIs and PPIs by GIC id, level or edge, enables, targets, priorities without groups, acknowledge
and end of interrupt. No SGIs, no virtual interface, EOImode 0.
"""

from __future__ import annotations

from collections.abc import Callable

IDS = 1024
SPURIOUS = 1023
# Ids 1020 and up are special.
_LAST = 1019
_SPI = 32
_LOWEST = 0xFF
_ARCHITECTURE_2 = 0x20


class Gic:
    """Distributor and CPU interfaces; `distributor` and `interface` are the two devices.

    Args:
        cpus: CPU interfaces, at most 8. With one, SPIs need no target.
    """

    def __init__(self, cpus: int = 1) -> None:
        if not 1 <= cpus <= 8:
            raise ValueError(f"a GICv2 has 1 to 8 CPU interfaces, not {cpus}")
        self.cpus = cpus
        self._lines: dict[int, bool] = {}
        self.enabled = [False] * IDS
        self._edge = [False] * IDS
        self._latched = [False] * IDS
        self._priority = bytearray(IDS)
        self._targets = bytearray(IDS)
        self._active: list[list[int]] = [[] for _ in range(cpus)]
        self._mask = [0] * cpus
        self._interfaces = [0] * cpus
        self._control = 0

    # Sources.

    def level(self, interrupt: int, high: bool) -> None:
        """A wire changed, as `Wires` tells it. There are no LPIs: a larger id ends nowhere."""
        if interrupt > _LAST:
            return
        if high and self._edge[interrupt] and not self._lines.get(interrupt):
            self._latched[interrupt] = True
        self._lines[interrupt] = high

    def pulse(self, interrupt: int) -> None:
        """An edge; lost unless the interrupt is configured as edge triggered, as on hardware."""
        self.level(interrupt, True)
        self.level(interrupt, False)

    def irq(self, cpu: int) -> bool:
        """Whether the IRQ input of a CPU is high."""
        return self._best(cpu) != SPURIOUS

    def _pending(self, interrupt: int) -> bool:
        if self._edge[interrupt]:
            return self._latched[interrupt]
        return self._lines.get(interrupt, False)

    def _is_active(self, interrupt: int) -> bool:
        return any(interrupt in active for active in self._active)

    def _best(self, cpu: int) -> int:
        """The interrupt that would be acknowledged: the lowest priority value, then the id."""
        if not (self._control & self._interfaces[cpu] & 1):
            return SPURIOUS
        limit = min((self._mask[cpu], *(self._priority[i] for i in self._active[cpu])))
        found = [
            (self._priority[i], i)
            for i in self._lines
            if self.enabled[i]
            and self._pending(i)
            and self._reaches(i, cpu)
            and not self._is_active(i)
        ]
        priority, interrupt = min(found, default=(_LOWEST, SPURIOUS))
        return interrupt if priority < limit else SPURIOUS

    def _reaches(self, interrupt: int, cpu: int) -> bool:
        return interrupt < _SPI or self.cpus == 1 or bool(self._targets[interrupt] >> cpu & 1)

    # Registers.

    def distributor(self, offset: int, size: int, value: int | None, vcpu: int) -> int:
        """An access of the distributor (IHI 0048 §4.3)."""
        if value is None:
            return sum(self._read(offset + i) << 8 * i for i in range(size))
        for i in range(size):
            self._write(offset + i, value >> 8 * i & 0xFF)
        return 0

    def interface(self, offset: int, size: int, value: int | None, vcpu: int) -> int:
        """An access of a CPU's interface (IHI 0048 §4.4), which are banked."""
        if vcpu >= self.cpus:
            return 0
        if value is not None:
            self._write_interface(vcpu, offset, value)
            return 0
        if offset == 0x00C:
            return self._acknowledge(vcpu)
        running = min((_LOWEST, *(self._priority[i] for i in self._active[vcpu])))
        return {
            0x000: self._interfaces[vcpu],
            0x004: self._mask[vcpu],
            0x014: running,
            0x018: self._best(vcpu),
        }.get(offset, 0)

    def _write_interface(self, cpu: int, offset: int, value: int) -> None:
        if offset == 0x000:
            self._interfaces[cpu] = value & 1
        elif offset == 0x004:
            self._mask[cpu] = value & 0xFF
        elif offset == 0x010 and value & 0x3FF in self._active[cpu]:
            self._active[cpu].remove(value & 0x3FF)

    def _acknowledge(self, cpu: int) -> int:
        interrupt = self._best(cpu)
        if interrupt != SPURIOUS:
            self._active[cpu].append(interrupt)
            self._latched[interrupt] = False
        return interrupt

    # The distributor byte by byte, since priorities and targets are written so.

    def _read(self, offset: int) -> int:
        bank, first = offset & ~0x7F, (offset & 0x7F) * 8
        if bank in (0x100, 0x180):
            return self._bits(first, self.enabled.__getitem__)
        if bank in (0x200, 0x280):
            return self._bits(first, self._pending)
        if bank in (0x300, 0x380):
            return self._bits(first, self._is_active)
        if 0x400 <= offset <= 0x400 + _LAST:
            return self._priority[offset - 0x400]
        if 0x800 <= offset <= 0x800 + _LAST and self.cpus > 1:
            return self._targets[offset - 0x800]
        if 0xC00 <= offset < 0xD00:
            at = (offset - 0xC00) * 4
            return sum(self._edge[at + i] << 2 * i + 1 for i in range(4))
        kind = IDS // 32 - 1 | self.cpus - 1 << 5
        return {0x000: self._control, 0x004: kind, 0xFE8: _ARCHITECTURE_2}.get(offset, 0)

    def _bits(self, first: int, test: Callable[[int], bool]) -> int:
        return sum(test(first + i) << i for i in range(8) if first + i <= _LAST)

    def _write(self, offset: int, value: int) -> None:
        bank, first = offset & ~0x7F, (offset & 0x7F) * 8
        chosen = [first + i for i in range(8) if value >> i & 1 and first + i <= _LAST]
        if offset == 0x000:
            self._control = value & 1
        elif bank in (0x100, 0x180):
            for i in chosen:
                self.enabled[i] = bank == 0x100
        elif bank in (0x200, 0x280):
            for i in chosen:
                self._latched[i] = bank == 0x200
                self._lines.setdefault(i, False)
        elif bank == 0x380:
            for active in self._active:
                active[:] = [i for i in active if i not in chosen]
        elif 0x400 <= offset <= 0x400 + _LAST:
            self._priority[offset - 0x400] = value
        elif 0x800 + _SPI <= offset <= 0x800 + _LAST and self.cpus > 1:
            self._targets[offset - 0x800] = value & (1 << self.cpus) - 1
        elif 0xC00 + _SPI // 4 <= offset < 0xD00:
            for i in range(4):
                self._edge[(offset - 0xC00) * 4 + i] = bool(value >> 2 * i + 1 & 1)
