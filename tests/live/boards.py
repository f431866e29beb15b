# SPDX-License-Identifier: BSD-2-Clause
"""Machines that the driver of tests/live runs on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dt_tools import blob
from dt_tools.platform import Platform
from dt_tools.profiles import DEFAULT, Profile
from vsmmu.testing.live import Board, Image, Result, board_of_guest
from vsmmu.toolstack import Guest, Machine, build_machine, create_dom0, create_guest
from xl_configs import load

from .build import BASE

RAM = 0x4000_0000
# A flag of the table's first word (`kernel_main`).
TWO_CPUS = 1 << 63
BOARD = Path(__file__).resolve().parents[2] / "samples/board.dtb"
# Two devices with one StreamID, each behind an SMMU of its own.
CRYPTO = ("/soc/crypto@60000000", "/soc/crypto@61000000")


@cache
def platform() -> Platform:
    return Platform.from_tree(blob.read(BOARD.read_bytes(), "board"), "board")


def machine(seed: int = 0, profile: Profile = DEFAULT) -> Machine:
    return build_machine(platform(), seed=seed, ram=[(0x8000_0000, 0x400_0000)], profile=profile)


def domu(
    on: Machine, name: str = "crypto", devices: tuple[str, ...] = CRYPTO, *, mirror: bool = False
) -> Guest:
    names = ", ".join(f'"{device}"' for device in devices)
    text = f'name = "{name}"\nkernel = "/boot/Image"\nmemory = 4\nviommu = "smmuv3"\n'
    config = load(f"{text}dtdev = [{names}]\n".encode(), f"{name}.cfg")
    return create_guest(on, config, one_vsmmu_per_psmmu=mirror)


def dom0(on: Machine) -> Guest:
    return create_dom0(on, 8)


def first(guest: Guest) -> int:
    """The first address of its RAM."""
    return guest.view.ram[0][0]


def table(board: Board, flags: int = 0, *, masters: int | None = None) -> bytes:
    """The masters, or the first of them, with flags for the driver."""
    data = board.table()
    count = len(board.masters) if masters is None else masters
    return (count | flags).to_bytes(8, "little") + data[8 : 8 + 48 * count]


def drive(
    board: Board,
    image: bytes,
    *,
    at: int = RAM,
    flags: int = 0,
    masters: int | None = None,
    vcpus: int = 1,
    instructions: int = 400_000,
    grain: int = 8,
) -> Result:
    """Run the driver; a flat binary is loaded behind the table, which is at the RAM's start."""
    flat = None if image.startswith(b"\x7fELF") else at + (BASE - RAM)
    return board.run(
        Image.of(image, "driver", at=flat),
        args=(at,),
        data={at: table(board, flags, masters=masters)},
        vcpus=vcpus,
        instructions=instructions,
        grain=grain,
    )


def guest_board(on: Machine, guest: Guest, vcpus: int = 1) -> Board:
    return board_of_guest(on, guest, vcpus=vcpus)
