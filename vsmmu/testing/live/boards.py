# SPDX-License-Identifier: BSD-2-Clause
"""Boards for the machines of this project: a guest of a toolstack, or SMMUs with no hypervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vsmmu.hypervisor.wires import CAUSES
from vsmmu.memory import Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.smmu import Smmu
from vsmmu.testing.live.board import Board, Places
from vsmmu.testing.live.gic import Gic
from vsmmu.testing.live.ram import Ram
from vsmmu.toolstack import Guest, Machine

SMMU_BASE, SMMU_STRIDE = 0x0500_0000, 0x10_0000
_SPI, _SPIS = 64, 4


def board_of_guest(
    machine: Machine, guest: Guest, *, vcpus: int = 1, places: Places | None = None
) -> Board:
    """The board of a guest or dom0: its RAM, its vSMMUs, a DMA engine for each of its streams.

    The masters are in the order of the guest's devices, each device's streams in the order of its
    `iommus`. Interrupts are those of the guest's tree, messages end nowhere.

    Raises:
        LiveError: a window overlaps the guest's RAM or another.
    """
    gic = Gic(vcpus)
    for spi, level in guest.vcpu.lines.items():
        gic.level(spi, level)
    guest.vcpu.watchers.append(gic.level)
    board = Board(machine.scheduler, Ram(machine.memory, guest.domain), gic, places)
    board.add_vsmmus(machine.hypervisor)
    for device, ports in guest.ports.items():
        names = guest.view.masters[guest.paths[device]]
        for port, (path, vmaster_id) in zip(ports, names, strict=True):
            window = guest.view.vsmmus[path]
            board.add_dma(port, window.base, vmaster_id, window.spis, window.edges)
    return board


def board_of_smmus(
    streams: Sequence[Sequence[int]],
    *,
    ram: Sequence[tuple[int, int]] = ((0x4000_0000, 0x40_0000),),
    features: Features | None = None,
    caching: str = "normal",
    seed: int = 0,
    vcpus: int = 1,
    places: Places | None = None,
) -> Board:
    """A machine without a hypervisor: the program drives physical SMMUs.

    Args:
        streams: the StreamIDs behind each SMMU, a DMA engine for each.
        ram: (base, size) in bytes.
        features, caching: of every SMMU, see `Smmu`.
        seed: of the scheduler.

    SMMU n is at `SMMU_BASE` + n * `SMMU_STRIDE`; its interrupts are edges on SPIs of its own, in
    the order of `wires.CAUSES` from GIC id 64 on, four for each SMMU.
    """
    scheduler, gic = Scheduler(seed), Gic(cpus=vcpus)
    memory = Memory(ram)
    board = Board(scheduler, Ram(memory), gic, places)
    features = features or Features.default(sidsize=16)
    for number, sids in enumerate(streams):
        spis = {cause: _SPI + _SPIS * number + i for i, cause in enumerate(CAUSES)}
        smmu = Smmu(
            f"smmu{number}", memory, features, irq=_pulse(gic, spis), caching=caching
        )  # fmt: skip
        for engine in smmu.engines:
            scheduler.add(engine)
        base = SMMU_BASE + SMMU_STRIDE * number
        board.add_smmu(base, smmu)
        for sid in sids:
            board.add_dma(
                DevicePort(f"{smmu.name}#{sid:#x}", smmu, sid), base, sid, spis, spis.values()
            )
    return board


def _pulse(gic: Gic, spis: Mapping[str, int]) -> Callable[[str], None]:
    return lambda cause: gic.pulse(spis[cause])
