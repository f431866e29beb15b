# SPDX-License-Identifier: BSD-2-Clause
"""The vCPU of a board: state at reset, exceptions, widths, memory that it shares."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsmmu.memory import Memory
from vsmmu.testing.live import Board, Image, LiveError, Ram, Result, board_of_smmus

from .boards import RAM, domu, guest_board, machine
from .build import BASE, HERE, PROGRAMS, Builder, needs_live

pytestmark = needs_live
SCRATCH, HOLE, DEVICE = RAM + 0x1000, 0x0800_0000, 0x3000_0000
# Vectors by number: from EL1 with SP_EL1, from EL1 with SP_EL0, from EL0.
CURRENT, WITH_SP_EL0, LOWER = 4, 0, 8


@pytest.fixture
def checks(builder: Builder) -> Image:
    return Image.of(builder.program(HERE / "checks.S"), "checks")


def run(board: Board, image: Image, name: str, *args: int, **how: int) -> Result:
    """One of the programs, by its name in the table at its start."""
    start = dataclasses.replace(image, entry=BASE + 4 * PROGRAMS.index(name))
    return board.run(start, args=args, **{"instructions": 20_000, **how})


def results(board: Board, count: int) -> list[int]:
    memory = board.ram.memory if board.ram.domain is None else board.ram.domain.memory
    words = memory.read_words(RAM, count + 1)
    assert words is not None
    assert words[count] == 0, "more than was asked for"
    return list(words[:count])


def test_state_at_reset(checks: Image) -> None:
    """EL1, everything masked; nothing tells the host's time or the host's CPU."""
    from vsmmu.testing.live.cpu import FREQUENCY

    board = board_of_smmus([[1]])
    assert run(board, checks, "registers").ok
    el, daif, mpidr, frequency, elapsed, timer = results(board, 6)
    assert (el >> 2, daif, mpidr, frequency) == (1, 0x3C0, 0x8000_0000, FREQUENCY)
    assert elapsed < 20
    assert timer == 0


def test_an_access_where_nothing_is_is_an_external_abort(checks: Image) -> None:
    """As a hypervisor injects it; the instruction has done nothing."""
    board = board_of_smmus([[1]])
    seen = []

    def device(offset: int, size: int, value: int | None, vcpu: int) -> int | None:
        seen.append(offset)
        return None

    board.add("device", DEVICE, 0x1000, device)
    result = run(board, checks, "abort")
    assert result.ok
    words = results(board, 24)
    base, kept = HOLE + 0x18, 0x77
    assert words[0:3] == [CURRENT, 0x9600_0010, HOLE + 0x28]
    assert words[5:7] == [base, kept]
    assert words[7:10] == [CURRENT, 0x9600_0050, base]
    assert words[12] == base
    # A device that does not answer.
    assert words[13:16] == [CURRENT, 0x9600_0010, DEVICE + 16]
    assert words[18:20] == [DEVICE + 8, kept]
    # An address that is not a multiple of the size: an alignment fault before any device sees it.
    assert words[20:23] == [CURRENT, 0x9600_0021, DEVICE + 2]
    assert seen == [16]
    assert [a for a in result.accesses if a.window == "device"] == [
        (0, "device", DEVICE + 16, 8, False, None)
    ]


def test_a_fetch_where_nothing_is(checks: Image) -> None:
    board = board_of_smmus([[1]])
    assert run(board, checks, "fetch").ok
    words = results(board, 5)
    assert words[:4] == [CURRENT, 0x8600_0010, HOLE, HOLE - BASE & (1 << 64) - 1]


def test_el0(checks: Image) -> None:
    """SP is banked, and the syndrome says that the lower level did it."""
    board = board_of_smmus([[1]])
    assert run(board, checks, "lower").ok
    words = results(board, 16)
    assert words[0] == SCRATCH + 0x200
    assert words[1:4] == [LOWER, 0x5600_1234, 0]
    assert words[5] == SCRATCH + 0x100
    assert words[6:9] == [LOWER, 0x9200_0010, HOLE]
    assert words[11:13] == [LOWER, 0x5600_FFFF]


def test_el1t(checks: Image) -> None:
    board = board_of_smmus([[1]])
    assert run(board, checks, "stack_of_el1t").ok
    words = results(board, 6)
    assert words[:2] == [WITH_SP_EL0, 0x5600_0001]
    assert words[4:] == [SCRATCH + 0x100, SCRATCH + 0x200]


def test_accesses_have_their_width(checks: Image) -> None:
    """A device sees one access for each that the program made, pairs as two."""
    board = board_of_smmus([[1]])
    seen = []
    content = 0xFEDC_BA98_7654_3210

    def device(offset: int, size: int, value: int | None, vcpu: int) -> int:
        seen.append((offset, size, value))
        return content >> 8 * (offset & 7) & (1 << 8 * size) - 1

    board.add("device", DEVICE, 0x1000, device)
    assert run(board, checks, "widths").ok
    value = 0x1122_3344_5566_7788
    assert seen == [
        (0, 8, value), (8, 4, 0x5566_7788), (12, 2, 0x7788), (14, 1, 0x88),
        (16, 8, value), (24, 8, value),
        (0, 8, None), (4, 4, None), (2, 2, None), (7, 1, None), (0, 8, None), (8, 8, None),
    ]  # fmt: skip
    assert results(board, 5) == [content, 0xFEDC_BA98, 0x7654, 0xFE, content]


def test_undefined_instructions(checks: Image) -> None:
    board = board_of_smmus([[1]])
    assert run(board, checks, "undefined").ok
    words = results(board, 15)
    assert words[0:15:5] == [CURRENT] * 3
    assert words[1:15:5] == [0x200_0000, 0xF200_0042, 0x200_0000]
    # Each at the next instruction.
    assert [b - a for a, b in zip(words[3:15:5], words[8:15:5], strict=False)] == [4, 4]


def test_instructions_that_are_written_over(checks: Image) -> None:
    """By the program, after IC IVAU, and by a device's DMA."""
    board = board_of_smmus([[1]])
    assert run(board, checks, "rewritten").ok
    assert results(board, 4) == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("no_vector", r"load from 0x8000000 at 0x40080[0-9a-f]{3}, and no exception handler runs"
                      r" at 0x200"),
        ("own_translation", r"abort by its own translation at 0x40080[0-9a-f]{3}, and no exception"
                            r" handler runs at 0x4008[01][0-9a-f]00"),
        ("aarch32", r"stopped at 0x40080[0-9a-f]{3}: AArch32 state is not modelled"),
    ],
)  # fmt: skip
def test_a_program_that_cannot_go_on_is_given_up(checks: Image, name: str, state: str) -> None:
    result = run(board_of_smmus([[1]]), checks, name)
    assert (result.reason, result.exit_code) == ("lockup", None)
    assert re.fullmatch(state, result.vcpus[0].state), result.vcpus[0].state
    assert str(result).startswith(f"lockup after {result.instructions} instructions; vcpu 0: ")


@pytest.mark.parametrize("grain", [1, 3, 100])
@pytest.mark.parametrize("count", [1, 2, 999])
def test_instructions_are_counted(checks: Image, grain: int, count: int) -> None:
    result = run(board_of_smmus([[1]]), checks, "forever", instructions=count, grain=grain)
    assert (result.reason, result.instructions) == ("instructions", count)
    assert result.vcpus[0].pc // 4 * 4 == result.vcpus[0].pc


def test_an_interrupt_that_is_not_handled_is_bounded(checks: Image) -> None:
    board = board_of_smmus([[1]])
    board.gic.level(32, True)
    result = run(board, checks, "storm", instructions=3000)
    assert (result.reason, result.instructions) == ("instructions", 3000)


def test_a_program_that_waits_for_nothing(checks: Image) -> None:
    """WFI with no interrupt to come: the machine is at rest, and the result says so."""
    result = run(board_of_smmus([[1]]), checks, "asleep")
    assert (result.reason, result.instructions) == ("waits", 2)
    assert str(result) == "waits after 2 instructions; vcpu 0: waits for an interrupt"


def test_a_device_of_the_user_that_raises(checks: Image) -> None:
    board = board_of_smmus([[1]])

    def device(offset: int, size: int, value: int | None, vcpu: int) -> int:
        raise KeyError(offset)

    board.add("mine", DEVICE, 0x1000, device)
    with pytest.raises(LiveError, match=r"^mine: offset 0x0: KeyError\(0\)$"):
        run(board, checks, "widths")


# Memory: one copy, whoever writes.


class Partner:
    """An engine that answers what the program stores: pages are new to it and to the program."""

    name = "partner"

    def __init__(self, board: Board, pairs: list[tuple[int, int]]) -> None:
        self._ram = board.ram
        self._pairs = pairs
        self.answered = 0

    def step(self, budget: int) -> int:
        if self.answered == len(self._pairs):
            return 0
        asked, answer = self._pairs[self.answered]
        domain = self._ram.domain
        memory = self._ram.memory if domain is None else domain.memory
        value = memory.read64(asked)
        if value != self.answered + 1:
            return 0
        self.answered += 1
        assert memory.write64(answer, value + 1000)
        return 1


SLOTS = st.integers(0x20_0000 // 8, 0x40_0000 // 8 - 1).map(lambda i: RAM + 8 * i)


@settings(max_examples=12, deadline=None)
@given(
    slots=st.lists(SLOTS, min_size=2, max_size=24, unique=True).map(lambda s: s[: len(s) & ~1]),
    seed=st.integers(0, 9),
    guest=st.booleans(),
)
def test_stores_and_loads_are_of_the_same_bytes(
    builder: Builder, slots: list[int], seed: int, guest: bool
) -> None:
    """The program stores, the machine answers elsewhere, the program waits until it sees that."""
    image = Image.of(builder.program(HERE / "checks.S"), "checks")
    if guest:
        on = machine(seed)
        board = guest_board(on, domu(on))
    else:
        board = board_of_smmus([[1]], seed=seed)
    pairs = list(zip(slots[::2], slots[1::2], strict=True))
    words = [word for pair in pairs for word in pair] + [0]
    # Behind the first page, so that the list is read from memory written before the run.
    board.ram.write(SCRATCH, b"".join(word.to_bytes(8, "little") for word in words))
    partner = Partner(board, pairs)
    board.scheduler.add(partner)
    assert run(board, image, "ping", SCRATCH, instructions=100_000).ok
    assert partner.answered == len(pairs)


def test_a_page_that_a_guest_gives_up_is_gone_for_its_cpu_too(checks: Image) -> None:
    on = machine()
    board = guest_board(on, domu(on))
    domain = board.ram.domain
    assert domain is not None
    page = RAM + 0x30_0000
    image = dataclasses.replace(checks, entry=BASE + 4 * PROGRAMS.index("readonly"))
    assert domain.memory.write64(page, 0x1234)
    calls = on.hypervisor.hypercalls
    on.hypervisor.wait(calls.decrease_reservation(domain, page, 0x1000))
    board.start(image, args=(page,), instructions=2000)
    assert on.scheduler.run_until_idle()
    board.stop()
    words = results(board, 11)
    assert words[0:3] == [CURRENT, 0x9600_0010, page]
    assert words[6:9] == [CURRENT, 0x9600_0050, page]


def test_a_page_that_goes_while_the_program_runs(checks: Image) -> None:
    on = machine()
    board = guest_board(on, domu(on))
    domain = board.ram.domain
    assert domain is not None
    page = RAM + 0x30_0000
    board.ram.write(SCRATCH, page.to_bytes(8, "little") + page.to_bytes(8, "little") + bytes(8))
    image = dataclasses.replace(checks, entry=BASE + 4 * PROGRAMS.index("ping"))
    board.start(image, args=(SCRATCH,), instructions=50_000)
    for _ in range(200):
        on.scheduler.step()
    assert domain.memory.read64(page) == 1
    on.hypervisor.wait(on.hypervisor.hypercalls.decrease_reservation(domain, page, 0x1000))
    assert on.scheduler.run_until_idle()
    board.stop()
    result = board.result()
    assert result.reason == "lockup"
    assert f"load from {page:#x}" in result.vcpus[0].state
    # No vSMMU and no other guest is affected by where its program ended.
    on.hypervisor.wait(on.hypervisor.destroy_domain(domain))
    assert board.result().reason == "destroyed"


def test_a_read_only_page(checks: Image) -> None:
    on = machine()
    board = guest_board(on, domu(on))
    domain = board.ram.domain
    assert domain is not None
    page = RAM + 0x30_0000
    assert domain.memory.write64(page, 0x1234)
    pa = domain.stage2.to_pa(page)
    assert pa is not None
    domain.stage2.map(page, pa, 0x1000, write=False)
    assert run(board, checks, "readonly", page).ok
    words = results(board, 6)
    assert words[0] == 0x1234
    assert words[1:4] == [CURRENT, 0x9600_0050, page]
    assert domain.memory.read64(page) == 0x1234


def test_ram_over_a_device_is_refused(checks: Image) -> None:
    on = machine()
    board = guest_board(on, domu(on))
    domain = board.ram.domain
    assert domain is not None
    domain.stage2.map(board.places.console, 0x8000_0000, 0x1000)
    message = r"^live crypto.0: RAM at 0x22000000\+0x1000 lies over a device of the board$"
    with pytest.raises(LiveError, match=message):
        run(board, checks, "registers")


def test_a_machine_too_large_for_this_process() -> None:
    with pytest.raises(LiveError, match=r"^RAM of 0x\w+ bytes does not fit .*; give the machine"):
        Ram(Memory([(0, 1 << 60)]))
