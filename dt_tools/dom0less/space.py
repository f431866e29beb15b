# SPDX-License-Identifier: BSD-2-Clause
"""The address space and the interrupts of a dom0less guest: those of a guest of xl, by its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import MappedReg
from dt_tools.errors import Refusal
from dt_tools.extended import IOMEM, PAGE, AddressMap, ram_banks
from dt_tools.profiles import GuestProfile, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.partial import Partial
    from dt_tools.platform import Platform
    from xl_configs import GuestConfig


def space_of(
    config: GuestConfig, guest: GuestProfile, platform: Platform, bits: int
) -> tuple[AddressMap, list[MappedReg]]:
    """RAM, what Xen emulates, and the configuration's iomem, which pins registers."""
    space = AddressMap(guest, ram_banks(memory_mib(config), guest, bits), bits)
    for name, window in _windows(config, guest, platform):
        space.claim(window, name)
    pins: list[MappedReg] = []
    for entry in config.iomem:
        window = Window(entry.gfn * PAGE, entry.count * PAGE)
        if window.size and space.clash(window) is None:
            space.claim(window, IOMEM)
        if window.size:
            pins.append(MappedReg(entry.start * PAGE, window.base, window.size))
    return space, pins


def memory_mib(config: GuestConfig) -> int:
    """MiB of RAM: the smaller of memory and maxmem, as libxl has it."""
    return min(config.memory_mib, config.maxmem_mib or config.memory_mib)


def gic_version(platform: Platform) -> int:
    """A dom0less guest has the host's GIC; 3 when the host's tree has none."""
    return 3 if platform.gic is None else platform.gic.version


def _windows(
    config: GuestConfig, guest: GuestProfile, platform: Platform
) -> Iterator[tuple[str, Window]]:
    v2 = gic_version(platform) == 2
    base, last = (
        (guest.gicv2_gicd, guest.gicv2_gicc) if v2 else (guest.gicv3_gicd, guest.gicv3_gicr)
    )
    yield "the GIC", Window(base.base, last.end - base.base)
    if config.viommu == "smmuv3":
        yield "the vSMMU", guest.vsmmu
    if config.vuart == "sbsa_uart":
        yield "the pl011", guest.pl011
    yield "the grant table", guest.grant_table
    yield "the magic pages", guest.magic


def check_spis(partial: Partial, config: GuestConfig, guest: GuestProfile) -> None:
    """Xen's own devices have fixed SPIs; a physical one of that number cannot come in."""
    taken = {}
    if config.viommu == "smmuv3":
        taken[guest.vsmmu_spi] = "vSMMUv3 SPI"
    if config.vuart == "sbsa_uart":
        taken[guest.pl011_spi] = "pl011 SPI"
    for device in partial.devices:
        for interrupt in device.interrupts:
            if interrupt.number in taken:
                reason = f"Physical IRQ {interrupt.number} conflicting with "
                fix = "assign a device with another interrupt"
                raise Refusal("DT303", device.path, reason + taken[interrupt.number], fix)
