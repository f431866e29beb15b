# SPDX-License-Identifier: BSD-2-Clause
"""Programs that are no programs: whatever a vCPU runs ends in bounds, and raises nothing."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from random import Random

import pytest

from vsmmu.testing.live import Board, Image, Result, board_of_smmus

from .boards import CRYPTO, RAM, domu, drive, guest_board, machine
from .build import BASE, HERE, PROGRAMS, Builder, needs_live

pytestmark = needs_live
WILD = RAM + 0x10_0000
WORDS = 256
# Loads and stores, system, branches, exceptions, exclusives, immediates: mask and value.
KINDS = (
    (0x0A00_0000, 0x0800_0000), (0xFFC0_0000, 0xD500_0000), (0xFE00_0000, 0xD600_0000),
    (0xFF00_0000, 0xD400_0000), (0x3F00_0000, 0x0800_0000), (0x1C00_0000, 0x1000_0000),
)  # fmt: skip


def words(rng: Random) -> bytes:
    """Half of them of the kinds that do something, the rest anything."""
    out = []
    for _ in range(WORDS):
        word = rng.getrandbits(32)
        mask, value = rng.choice((*KINDS, *((0, 0),) * len(KINDS)))
        out.append(word & ~mask & 0xFFFF_FFFF | value)
    return b"".join(word.to_bytes(4, "little") for word in out)


def registers(rng: Random, board: Board) -> list[int]:
    """Addresses of devices, RAM and nothing."""
    smmu, dma = board.masters[0].smmu, board.masters[0].dma
    places = (RAM, WILD, smmu, smmu + 0x1_0000, dma, board.places.gicd, board.places.gicc, 0)
    return [rng.choice(places) + rng.randrange(0, 0x200, 4) for _ in range(7)]


def wild(board: Board, image: Image, rng: Random, instructions: int, *, tame: bool) -> Result:
    """`tame` lets it go on behind an exception; else it starts with no vectors."""
    entry = BASE + 4 * PROGRAMS.index("wild") if tame else WILD
    return board.run(
        dataclasses.replace(image, entry=entry),
        args=[WILD, *registers(rng, board)],
        data={WILD: words(rng)},
        vcpus=board.gic.cpus,
        instructions=instructions,
    )


@pytest.fixture
def image(builder: Builder) -> Image:
    return Image.of(builder.program(HERE / "checks.S"), "wild")


def run_seeds(image: Image, seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        rng = Random(seed)
        if seed % 8:
            board = board_of_smmus([[1]], seed=seed, vcpus=1 + seed % 2)
        else:
            on = machine(seed)
            board = guest_board(on, domu(on))
        result = wild(board, image, rng, 1500, tame=seed % 4 > 0)
        assert 0 <= result.instructions <= 1500 * board.gic.cpus
        assert len(result.console) <= 1 << 16
        seen[result.reason] += 1
        seen["device"] += bool(result.traps)
    return seen


def test_wild_programs_end(image: Image) -> None:
    seen = run_seeds(image, range(12))
    # Some of them reach the devices, some cannot go on, some go on for ever.
    assert seen["device"] > 2
    assert seen["lockup"] > 0
    assert seen["instructions"] > 2


def test_a_wild_guest_beside_a_driver(builder: Builder, image: Image) -> None:
    """On the vSMMUs of one machine: the driver notices nothing."""
    on, rng = machine(1), Random(1)
    wild_board = guest_board(on, domu(on, "wild", CRYPTO[:1]))
    board = guest_board(on, domu(on, "victim", CRYPTO[1:]))
    wild_board.start(
        dataclasses.replace(image, entry=BASE + 4 * PROGRAMS.index("wild")),
        args=[WILD, *registers(rng, wild_board)],
        data={WILD: words(rng)},
        instructions=4_000,
    )
    result = drive(board, builder.driver())
    assert result.ok, f"{result}\n{result.console}"
    assert wild_board.result().instructions > 500


@pytest.mark.soak
def test_many_wild_programs_end(image: Image) -> None:
    count = int(os.environ.get("VSMMU_SOAK_WILD", "4000"))
    assert run_seeds(image, range(1000, 1000 + count))["instructions"]


def test_a_wild_program_runs_the_same_again(image: Image) -> None:
    results = [
        wild(board_of_smmus([[1]], seed=3), image, Random(11), 800, tame=True) for _ in range(2)
    ]
    assert results[0] == results[1]
