# SPDX-License-Identifier: BSD-2-Clause
"""A guest's driver in the modes that Linux has: strict, passthrough, lazy; with and without RIL."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdTlbiNhAsid
from vsmmu.arch.registers import BY_NAME
from vsmmu.smmu.features import Features

from .world import BASE, BUFFER, Guest, World

IOVA, PAGES = 0x10000, 16


@pytest.fixture(params=["ril", "noril"])
def guest(request: pytest.FixtureRequest) -> Guest:
    """Booted; the physical SMMUs have range invalidation or not."""
    features = Features.default(sidsize=16)
    if request.param == "noril":
        features = Features.default(sidsize=16, aidr=1).replace(ril=0)
    return World({"g": [("a", 0x600), ("b", 0x600)]}, features=features)["g"].boot()


def copied(guest: Guest, source: int, target: int) -> bool:
    """A device reads blocks from one place and writes them to another, as a disk's controller."""
    for i in range(PAGES):
        block = guest.dma(0, source + i * 0x1000, 0x1000)
        if not block.ok or not guest.dma(0, target + i * 0x1000, block.data).ok:
            return False
    size = PAGES * 0x1000
    return guest.memory.read(BUFFER, size) == guest.memory.read(BUFFER + size, size)


def fill(guest: Guest) -> None:
    for i in range(PAGES):
        assert guest.memory.write(BUFFER + i * 0x1000, bytes([i + 1]) * 0x1000)


def tlbis(guest: Guest) -> dict[str, int]:
    return {n: c for n, c in guest.vsmmu.counters.items() if n.startswith("CMD_TLBI_NH") and c}


def test_strict(guest: Guest) -> None:
    """Each unmap is invalidated at once: by one range, or a command for each page."""
    fill(guest)
    guest.attach(0)
    guest.map(0, IOVA, BUFFER, 2 * PAGES * 0x1000)
    assert copied(guest, IOVA, IOVA + PAGES * 0x1000)
    guest.run(guest.driver.unmap(0, IOVA, PAGES * 0x1000))
    ril = guest.driver.idr3.ril
    assert tlbis(guest) == {"CMD_TLBI_NH_VA": 1 if ril else PAGES}
    for i in range(PAGES):
        assert not guest.dma(0, IOVA + i * 0x1000, 4).ok
    assert guest.dma(0, IOVA + PAGES * 0x1000, 4).ok
    assert guest.events() == [("F_TRANSLATION", 0)] * PAGES


def test_passthrough(guest: Guest) -> None:
    """Identity domains: the device uses the guest's addresses; one with tables is beside it."""
    fill(guest)
    guest.run(guest.driver.bypass(0))
    guest.attach(1)
    guest.map(1, IOVA, BUFFER)
    assert copied(guest, BUFFER, BUFFER + PAGES * 0x1000)
    assert guest.dma(1, IOVA, 16).data == bytes([1]) * 16
    assert not guest.dma(1, BUFFER, 16).ok
    assert tlbis(guest) == {}
    assert guest.events() == [("F_TRANSLATION", 1)]


def test_lazy(guest: Guest) -> None:
    """iommu.strict=0: unmapped pages serve the device until the flush of the whole ASID."""
    fill(guest)
    guest.attach(0)
    guest.map(0, IOVA, BUFFER, 2 * PAGES * 0x1000)
    assert copied(guest, IOVA, IOVA + PAGES * 0x1000)
    context = guest.driver.contexts[0]
    context.tables.unmap(IOVA, PAGES * 0x1000)
    assert guest.dma(0, IOVA, 4).data == bytes([1]) * 4
    guest.run(guest.driver.issue(CmdTlbiNhAsid.build(asid=context.asid)))
    assert not guest.dma(0, IOVA, 4).ok
    assert guest.dma(0, IOVA + PAGES * 0x1000, 4).ok
    assert tlbis(guest) == {"CMD_TLBI_NH_ASID": 1}
    assert guest.events() == [("F_TRANSLATION", 0)]


def test_the_order_of_the_reset() -> None:
    """IHI 0070 §3.11: what Linux writes to a vSMMU, in its order (the same without GBPA)."""
    world = World({"g": [("a", 0x600)]})
    hv, guest = world.hypervisor, world["g"]
    names = {r.offset + BASE: r.name for r in BY_NAME.values()}
    written: list[tuple[str, int]] = []
    trap = hv.trap

    def record(
        domain: object, ipa: int, size: int, value: int | None = None, vcpu: int = 0
    ) -> int | None:
        if value is not None:
            written.append((names[ipa], value))
        return trap(guest.domain, ipa, size, value, vcpu)

    hv.trap = record  # type: ignore[method-assign]
    guest.boot()
    at = {name: value for name, value in written if name.endswith("BASE")}
    assert all(value >> 62 == 1 for value in at.values())
    assert written == [
        ("CR0", 0), ("CR1", 0xD75), ("CR2", 0x6),
        ("STRTAB_BASE", at["STRTAB_BASE"]), ("STRTAB_BASE_CFG", 0x1_0210),
        ("CMDQ_BASE", at["CMDQ_BASE"]), ("CMDQ_PROD", 0), ("CMDQ_CONS", 0), ("CR0", 0x8),
        ("CMDQ_PROD", 2), ("CMDQ_PROD", 4),
        ("EVENTQ_BASE", at["EVENTQ_BASE"]), ("EVENTQ_PROD", 0), ("EVENTQ_CONS", 0), ("CR0", 0xC),
        ("IRQ_CTRL", 0), ("GERROR_IRQ_CFG0", 0), ("EVENTQ_IRQ_CFG0", 0), ("IRQ_CTRL", 0x5),
        ("CR0", 0xD),
    ]  # fmt: skip
    assert guest.read("CR0ACK") == 0xD
    assert guest.vsmmu.regs.gerror_active == 0
    assert guest.read("EVENTQ_PROD") == 0
