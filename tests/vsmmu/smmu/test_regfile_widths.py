# SPDX-License-Identifier: BSD-2-Clause
"""Widths and alignment of register accesses (IHI 0070 §6.2)."""

from __future__ import annotations

import pytest

from vsmmu.arch.registers import BY_NAME

from .machine import Machine

LOW, HIGH = 0x1234_5000, 0x2


@pytest.fixture
def machine() -> Machine:
    return Machine(boot=False)


def test_halves_of_a_64_bit_register(machine: Machine) -> None:
    """Two 32-bit accesses, in any order: each leaves the other half as it is."""
    base = BY_NAME["STRTAB_BASE"].offset
    machine.smmu.mmio_write(base, 4, LOW)
    machine.smmu.mmio_write(base + 4, 4, HIGH)
    assert machine.smmu.mmio_read(base, 8) == HIGH << 32 | LOW
    machine.smmu.mmio_write(base, 4, 0x40)
    assert machine.smmu.mmio_read(base, 8) == HIGH << 32 | 0x40
    machine.smmu.mmio_write(base + 4, 4, 1)
    assert machine.smmu.mmio_read(base, 8) == 1 << 32 | 0x40
    assert [machine.smmu.mmio_read(base + i, 4) for i in (0, 4)] == [0x40, 1]


def test_no_more_than_the_width_is_stored(machine: Machine) -> None:
    base = BY_NAME["STRTAB_BASE"].offset
    machine.smmu.mmio_write(base, 4, HIGH << 32 | LOW)
    assert machine.smmu.mmio_read(base, 8) == LOW
    machine.smmu.mmio_write(base, 8, 1 << 64 | LOW)
    assert machine.smmu.mmio_read(base, 8) == LOW


@pytest.mark.parametrize(("offset", "size"), [(0x4, 8), (0x2, 4), (0x2, 8), (0x0, 2), (0x0, 16)])
def test_a_misaligned_read_is_0(machine: Machine, offset: int, size: int) -> None:
    assert machine.smmu.mmio_read(0, 8) == machine.smmu.mmio_read(4, 4) << 32 | machine.read("IDR0")
    assert machine.smmu.mmio_read(offset, size) == 0


@pytest.mark.parametrize("size", [8, 2, 16])
def test_a_misaligned_write_is_ignored(machine: Machine, size: int) -> None:
    """CR2 lies at an odd multiple of 4, next to a 64-bit register."""
    offset = BY_NAME["CR2"].offset
    assert offset % 8 == 4
    machine.smmu.mmio_write(offset, size, 2)
    assert machine.read("CR2") == 0
    machine.smmu.mmio_write(offset, 4, 2)
    assert machine.read("CR2") == 2
