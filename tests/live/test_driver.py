# SPDX-License-Identifier: BSD-2-Clause
"""A driver of machine code boots SMMUs and vSMMUs, maps, does DMA, takes faults and interrupts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from dt_tools.profiles import PROFILES
from vsmmu.arch.registers import REGISTERS
from vsmmu.smmu.features import Features
from vsmmu.testing.live import Board, Image, Result, board_of_smmus

from .boards import (
    CRYPTO,
    RAM,
    TWO_CPUS,
    dom0,
    domu,
    drive,
    first,
    guest_board,
    machine,
    table,
)
from .build import BASE, Builder, needs_live

pytestmark = needs_live
DONE = """\
SMMU {smmu}: two levels, {bits} bits
master {sid} behind {smmu}: copied
master {sid} behind {smmu}: fault taken
master {sid} behind {smmu}: detached
done
"""


@pytest.fixture
def image(builder: Builder) -> bytes:
    return builder.driver()


def passed(result: Result) -> bool:
    assert result.ok, f"{result}\n{result.console}"
    return result.console.endswith("done\n")


# Physical SMMUs, no hypervisor.


@pytest.mark.parametrize(("seed", "caching"), [(0, "normal"), (1, "none"), (2, "hostile")])
def test_a_physical_smmu(image: bytes, seed: int, caching: str) -> None:
    board = board_of_smmus([[7]], seed=seed, caching=caching)
    result = drive(board, image)
    assert passed(result)
    assert not board.scheduler.overslept
    assert result.console == DONE.format(smmu="0x5000000", sid="0x7", bits="0x10")


def test_a_linear_stream_table(image: bytes) -> None:
    features = Features.default(sidsize=6).replace(st_level=0)
    result = drive(board_of_smmus([[0x3F]], features=features), image)
    assert passed(result)
    assert result.console.startswith("SMMU 0x5000000: linear, 0x6 bits\n")


@pytest.mark.parametrize("seed", [0, 2])
def test_two_cpus_share_a_command_queue(image: bytes, seed: int) -> None:
    board = board_of_smmus([[1, 2]], seed=seed, vcpus=2)
    result = drive(board, image, flags=TWO_CPUS, vcpus=2)
    assert passed(result)
    assert all(vcpu.instructions > 1000 for vcpu in result.vcpus)
    # Both were at it at the same time.
    writers = [a.vcpu for a in result.accesses if a.window == "smmu0" and a.written]
    assert sum(a != b for a, b in pairwise(writers)) > 2


# Guests.


@pytest.mark.parametrize("seed", [0, 3])
def test_a_domu_over_two_physical_smmus(image: bytes, seed: int) -> None:
    on = machine(seed)
    guest = domu(on)
    board = guest_board(on, guest)
    result = drive(board, image)
    assert passed(result)
    assert [m.sid for m in board.masters] == [0, 1]
    assert {m.smmu for m in board.masters} == {0x404_0000}
    # Work went to the SMMU of each device, and their interrupt lines are quiet again.
    for path, smmu in on.smmus.items():
        reached = path != "/soc/iommu@52000000"
        assert bool(smmu.counters["fault.F_TRANSLATION"]) == reached, path
    assert not any(guest.vcpu.lines.values())
    # A StreamID without an STE, two write faults of each device.
    assert guest.vcpu.interrupts == 5


def test_a_domu_with_a_vsmmu_for_each_smmu(image: bytes) -> None:
    """Both devices have vMasterID 0, each on its own vSMMU."""
    on = machine()
    board = guest_board(on, domu(on, mirror=True))
    assert passed(drive(board, image))
    assert [(m.smmu, m.sid) for m in board.masters] == [(0x404_0000, 0), (0x408_0000, 0)]


def test_a_domu_of_the_posted_series(image: bytes) -> None:
    """The numbers of profile xen-v3 suit the driver as well."""
    on = machine(profile=PROFILES["xen-v3"])
    assert passed(drive(guest_board(on, domu(on, devices=CRYPTO[:1])), image))


def test_a_domu_with_two_vcpus(image: bytes) -> None:
    """The hypervisor is told which vCPU it was, and every width as the program had it."""
    on = machine(5)
    result = drive(guest_board(on, domu(on), vcpus=2), image, flags=TWO_CPUS, vcpus=2)
    assert passed(result)
    traps = [r.args for r in on.trace.records if r.name == "vsmmu_trap"]
    assert len(traps) == result.traps["vsmmu crypto@0x4040000"]
    assert {(vcpu, size) for _, vcpu, _, size, _ in traps} == {(0, 4), (0, 8), (1, 4)}


def test_dom0_has_a_vsmmu_for_each_smmu(builder: Builder) -> None:
    """A flat binary in RAM at machine addresses; the first SMMU's two lines, the second's one."""
    on = machine()
    guest = dom0(on)
    board = guest_board(on, guest)
    bases = 0x5000_0000, 0x5100_0000
    wanted = [next(m for m in board.masters if m.smmu == base) for base in bases]
    board.masters[:] = wanted
    flat = builder.objcopy(builder.driver())
    result = drive(board, flat, at=first(guest))
    assert passed(result)
    # As the board's tree has them: edges.
    assert [(m.eventq_spi, m.gerror_spi, m.edges) for m in wanted] == [(96, 97, 3), (100, 100, 3)]
    assert result.console.count("SMMU 0x5") == 2


def test_two_guests_at_once(image: bytes) -> None:
    """On one machine under one scheduler, with equal addresses and StreamIDs."""
    on = machine(9)
    boards = [
        guest_board(on, domu(on, "one", CRYPTO[:1])),
        guest_board(on, domu(on, "two", CRYPTO[1:])),
    ]
    for board in boards:
        board.start(Image.of(image), args=(RAM,), data={RAM: table(board)}, instructions=400_000)
    assert on.scheduler.run_until_idle()
    for board in boards:
        board.stop()
        assert passed(board.result())


# What the trace of its accesses says.


def test_the_order_of_a_boot(image: bytes) -> None:
    """The register writes of Linux's reset, each at its width."""
    result = drive(board_of_smmus([[7]]), image)
    names = {r.offset: r for r in REGISTERS}
    written = [a for a in result.accesses if a.window == "smmu0" and a.written]
    boot = [names[a.address - 0x500_0000] for a in written]
    assert all(a.size * 8 == r.width for a, r in zip(written, boot, strict=True))
    order = [r.name for r in boot]
    assert order[: order.index("GERROR_IRQ_CFG0") + 4] == [
        "CR0", "CR1", "CR2", "STRTAB_BASE", "STRTAB_BASE_CFG",
        "CMDQ_BASE", "CMDQ_PROD", "CMDQ_CONS", "CR0",
        "CMDQ_PROD", "CMDQ_PROD", "CMDQ_PROD", "CMDQ_PROD",
        "EVENTQ_BASE", "EVENTQ_PROD", "EVENTQ_CONS", "CR0",
        "IRQ_CTRL", "GERROR_IRQ_CFG0", "EVENTQ_IRQ_CFG0", "IRQ_CTRL", "CR0",
    ]  # fmt: skip
    assert [a.value for a, r in zip(written, boot, strict=True) if r.name == "CR0"] == [
        0, 0x8, 0xC, 0xD, 0,
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_trace(image: bytes) -> None:
    runs = []
    for seed in (4, 4, 6):
        on = machine(seed)
        runs.append(drive(guest_board(on, domu(on, devices=CRYPTO[:1])), image))
        assert passed(runs[-1])
    assert runs[0] == runs[1]
    assert runs[0].console == runs[2].console
    assert runs[0].accesses != runs[2].accesses


# A driver that does something wrong.


def on_machine(seed: int) -> Board:
    return board_of_smmus([[7]], seed=seed)


def on_vsmmu(seed: int) -> Board:
    on = machine(seed)
    return guest_board(on, domu(on, devices=CRYPTO[:1]))


WENT_THROUGH = r"failed: DMA of an unmapped page went through, StreamID 0x[07]\n$"


@pytest.mark.parametrize(
    ("mistake", "make", "said"),
    [
        ("NO_TLBI", on_machine, WENT_THROUGH),
        ("NO_TLBI", on_vsmmu, WENT_THROUGH),
        # A vSMMU sends invalidations when the guest synchronises, so that is certain there.
        ("NO_SYNC", on_vsmmu, WENT_THROUGH),
        ("NO_CFGI", on_vsmmu, r"failed: DMA of mapped pages failed, StreamID 0x0\n$"),
        # CERROR_ILL, told by the interrupt of GERROR.
        ("COMMAND", on_vsmmu, r"failed: command queue stopped, GERROR 0x1\n$"),
        ("COMMAND", on_machine, r"failed: command queue stopped, GERROR 0x1\n$"),
        ("NO_CFGI", on_machine, r"failed: DMA after detach went through, StreamID 0x7\n$"),
    ],
)
def test_a_mistake_is_seen(builder: Builder, mistake: str, make, said: str) -> None:
    result = drive(make(0), builder.driver(mistake))
    assert (result.reason, result.exit_code) == ("exit", 1)
    assert re.search(said, result.console), result.console


def test_an_invalidation_that_is_not_waited_for_loses_the_race_on_some_seed(
    builder: Builder,
) -> None:
    """On a physical SMMU it depends on who is first, which is the seed's choice."""
    image = builder.driver("NO_SYNC")
    seen = set()
    for seed in range(60):
        seen.add(drive(on_machine(seed), image, grain=64).exit_code)
        if len(seen) > 1:
            break
    assert seen == {0, 1}


def test_a_record_that_is_not_released_keeps_the_level_line_high(builder: Builder) -> None:
    """The handler is entered for ever, and the run ends when its instructions are used up."""
    board = on_vsmmu(0)
    result = drive(board, builder.driver("NO_CONS"), instructions=12_000)
    assert (result.reason, result.exit_code) == ("instructions", None)
    assert result.instructions == 12_000
    assert result.traps["gicc"] > 20
    assert BASE <= result.vcpus[0].pc < BASE + 0x10_0000
