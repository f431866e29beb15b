# SPDX-License-Identifier: BSD-2-Clause
"""Parts of a board that need neither a compiler nor unicorn: images, devices, GIC, windows."""

from __future__ import annotations

import struct
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsmmu.memory import PAGE, Memory
from vsmmu.scheduler import Scheduler
from vsmmu.testing.live import (
    Board,
    Console,
    Gic,
    Image,
    LiveError,
    Places,
    Ram,
    Segment,
    board_of_smmus,
)
from vsmmu.testing.live.devices import CONSOLE_MAX, LEN_MAX

RAM = 0x4000_0000


# Images.


def elf(**fields: int) -> bytes:
    """A file with one segment of 16 bytes, 32 in memory; fields of its headers by name."""
    f = {
        "kind": 2, "machine": 183, "entry": 0x1000, "phoff": 64, "phentsize": 56, "phnum": 1,
        "type": 1, "offset": 120, "address": 0x1000, "filesz": 16, "memsz": 32, "data": 1, **fields,
    }  # fmt: skip
    ident = b"\x7fELF" + bytes([2, f["data"], 1]) + bytes(9)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, f["kind"], f["machine"], 1, f["entry"], f["phoff"], 0, 0, 64,
        f["phentsize"], f["phnum"], 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack(
        "<IIQQQQQQ", f["type"], 7, f["offset"], 0, f["address"], f["filesz"], f["memsz"], 1
    )
    return head + segment + bytes(range(16))


def test_an_elf_file() -> None:
    image = Image.of(elf(), "it.elf")
    assert image == Image("it.elf", 0x1000, (Segment(0x1000, bytes(range(16)), 32),))


@pytest.mark.parametrize(
    ("data", "at", "message"),
    [
        (b"", RAM, "x: empty; give a program"),
        (b"1234", None, "x: no ELF file; a flat binary needs an address (at=)"),
        (b"1234", RAM + 2, "x: at=0x40000002 is no address of an instruction"),
        (b"1234", -4, "x: at=-0x4 is no address of an instruction"),
        (elf(), RAM, "x: an ELF file has its own addresses; leave at= out"),
        (elf()[:50], None, "x: ELF header is cut off at 50 of 64 bytes"),
        (elf(data=2), None, "x: ELF, but not little-endian AArch64 (machine 183)"),
        (elf(machine=62), None, "x: ELF, but not little-endian AArch64 (machine 62)"),
        (elf(kind=3), None, "x: ELF type 3, expected 2 (link it with -static -no-pie)"),
        (elf(phnum=65), None, "x: 65 program headers of 56 bytes, expected at most 64 of 56"),
        (elf(phentsize=32), None, "x: 1 program headers of 32 bytes, expected at most 64 of 56"),
        (elf(phoff=100), None, "x: program headers at 0x64 lie beyond the end of the file"),
        (elf(phoff=1 << 63), None,
         "x: program headers at 0x8000000000000000 lie beyond the end of the file"),
        (elf(entry=2), None, "x: entry 0x2 is no address of an instruction"),
        (elf(type=2), None, "x: no PT_LOAD segment"),
        (elf(phnum=0), None, "x: no PT_LOAD segment"),
        (elf(filesz=33), None, "x: program header 0: 0x21 bytes at 0x78 are not in the file, or"
                               " more than the 0x20 in memory"),
        (elf(offset=121), None, "x: program header 0: 0x10 bytes at 0x79 are not in the file, or"
                                " more than the 0x20 in memory"),
        (elf(address=(1 << 64) - 8), None,
         "x: program header 0: 0xfffffffffffffff8+0x20 is no range"),
    ],
)  # fmt: skip
def test_a_program_that_cannot_be_loaded(data: bytes, at: int | None, message: str) -> None:
    with pytest.raises(LiveError) as caught:
        Image.of(data, "x", at=at)
    assert str(caught.value) == message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 136), st.integers(0, 136))
def test_any_elf_file_is_read_or_refused(noise: bytes, place: int, cut: int) -> None:
    data = bytearray(elf())
    data[place : place + len(noise)] = noise
    with suppress(LiveError):
        image = Image.of(bytes(data[:cut] if cut < 64 else data), "x")
        assert all(len(s.data) <= s.size for s in image.segments)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Segment(RAM - 4, b"1234", 8), "x: 0x3ffffffc+0x8 is not all RAM of the board"),
        (Segment(RAM, b"1", 1 << 60), f"x: 0x40000000+{1 << 60:#x} is not all RAM of the board"),
    ],
)
def test_a_program_beyond_the_ram(segment: Segment, message: str) -> None:
    pytest.importorskip("unicorn", reason="unicorn is not installed")
    with pytest.raises(LiveError) as caught:
        board_of_smmus([[1]]).run(Image("x", RAM, (segment,)))
    assert str(caught.value) == message


# Boards.


def test_windows_do_not_overlap() -> None:
    board = board_of_smmus([[1]])
    device = Console()
    with pytest.raises(LiveError, match=r"^a at 0x1800\+0x1000 is not made of 4 KiB pages$"):
        board.add("a", 0x1800, PAGE, device)
    message = (
        r"^a at 0x5010000\+0x1000 overlaps smmu0 at 0x5000000\+0x20000; give it another place$"
    )
    with pytest.raises(LiveError, match=message):
        board.add("a", 0x501_0000, PAGE, device)
    with pytest.raises(LiveError, match=r"^a at 0x40001000\+0x1000 overlaps RAM at 0x40000000\+"):
        board.add("a", RAM + PAGE, PAGE, device)
    with pytest.raises(LiveError, match=r"^console at 0x40000000\+0x1000 overlaps RAM"):
        Board(Scheduler(), Ram(Memory([(RAM, PAGE)])), Gic(), Places(console=RAM))


def test_what_a_run_takes() -> None:
    pytest.importorskip("unicorn", reason="unicorn is not installed")
    image = Image.of(bytes(4), at=RAM)
    for how, message in (
        ({"vcpus": 2}, r"^2 vCPUs, but the GIC has 1 CPU interfaces$"),
        ({"args": [0] * 9}, r"^args are at most 8; instructions and grain at least 1$"),
        ({"instructions": 0}, r"^args are at most 8; instructions and grain at least 1$"),
    ):
        with pytest.raises(LiveError, match=message):
            board_of_smmus([[1]]).run(image, **how)
    board = board_of_smmus([[1]])
    assert board.run(image).reason == "lockup"
    with pytest.raises(LiveError, match=r"^a board runs one program; make another board for the"):
        board.run(image)


def test_the_table_of_masters() -> None:
    board = board_of_smmus([[1], [2, 3]])
    words = struct.unpack("<19Q", board.table())
    assert words[0] == 3
    assert words[1:7] == (0x500_0000, 64, 66, 3, 1, 0x2210_0000)
    assert words[13:] == (0x510_0000, 68, 70, 3, 3, 0x2210_2000)


# Devices.


def test_the_console_is_bounded() -> None:
    console = Console()
    for char in b"h\xc3\xa9\xff":
        console(0, 1, char, 0)
    assert console.text == "hé\ufffd"
    assert console(0x18, 4, None, 0) == 0x90
    for _ in range(CONSOLE_MAX):
        console(0, 4, ord("x"), 0)
    assert (len(console.text), console.dropped) == (CONSOLE_MAX - 1, 4)


def test_a_dma_engine() -> None:
    """With the SMMU off: addresses are physical. Registers do not change while it is busy."""
    board = board_of_smmus([[1]])
    dma, memory, step = board.masters[0].dma, board.ram.memory, board.scheduler.run_until_idle
    memory.write(RAM, b"what is copied")

    def write(offset: int, size: int, value: int) -> None:
        assert board.trap(0, dma + offset, size, value) == 0

    write(0x00, 8, RAM)
    write(0x08, 4, RAM + 0x1800)
    write(0x0C, 4, 0)
    write(0x10, 4, 14)
    write(0x14, 4, 1)
    assert board.trap(0, dma + 0x18, 4, None) == 1
    write(0x00, 8, 0)
    assert step()
    assert board.trap(0, dma + 0x18, 4, None) == 2
    assert memory.read(RAM + 0x1800, 15) == b"what is copied\0"
    assert board.trap(0, dma, 8, None) == RAM
    assert board.trap(0, dma + 4, 2, None) == 0
    assert board.trap(0, dma + 2, 2, None) == RAM >> 16
    for size, source in ((0, RAM), (LEN_MAX + 1, RAM), (16, (1 << 64) - 8), (16, 0x1000)):
        write(0x00, 8, source)
        write(0x10, 4, size)
        write(0x14, 4, 1)
        assert step()
        assert board.trap(0, dma + 0x18, 4, None) == 4, (size, source)


# The GIC.


def gic(*ids: int, cpus: int = 1, edge: bool = False) -> Gic:
    """A GIC with interrupts enabled at priority 0x80 on CPU 0."""
    made = Gic(cpus=cpus)
    made.distributor(0, 4, 1, 0)
    for cpu in range(cpus):
        made.interface(4, 4, 0xF0, cpu)
        made.interface(0, 4, 1, cpu)
    for i in ids:
        made.distributor(0x400 + i, 1, 0x80, 0)
        made.distributor(0x800 + i, 1, 1, 0)
        made.distributor(0xC00 + i // 16 * 4, 4, 2 << i % 16 * 2 if edge else 0, 0)
        made.distributor(0x100 + i // 32 * 4, 4, 1 << i % 32, 0)
    return made


def test_a_level_is_pending_until_it_falls() -> None:
    it = gic(33)
    assert not it.irq(0)
    it.level(33, True)
    assert it.irq(0)
    assert it.interface(0x18, 4, None, 0) == 33
    assert it.interface(0xC, 4, None, 0) == 33
    assert it.interface(0x14, 4, None, 0) == 0x80
    # Active: not signalled again before the end, and then again, since the line is high.
    assert not it.irq(0)
    assert it.interface(0xC, 4, None, 0) == 1023
    it.interface(0x10, 4, 33, 0)
    assert it.irq(0)
    it.level(33, False)
    assert not it.irq(0)


def test_an_edge_is_latched_once() -> None:
    it = gic(64, edge=True)
    it.pulse(64)
    it.pulse(64)
    assert it.interface(0xC, 4, None, 0) == 64
    it.pulse(64)
    it.interface(0x10, 4, 64, 0)
    assert it.interface(0xC, 4, None, 0) == 64
    it.interface(0x10, 4, 64, 0)
    assert not it.irq(0)
    level = gic(64)
    level.pulse(64)
    assert not level.irq(0)


def test_an_interrupt_that_no_gicv2_has_ends_nowhere() -> None:
    it = gic(40)
    it.level(8192, True)
    it.pulse(1020)
    assert not it.irq(0)
    it.level(40, True)
    assert it.distributor(0x204, 4, None, 0) == 1 << 8


def test_priorities() -> None:
    it = gic(40, 41)
    it.distributor(0x400 + 41, 1, 0x40, 0)
    it.level(40, True)
    assert it.interface(0xC, 4, None, 0) == 40
    # A lower value preempts, an equal one waits.
    it.level(41, True)
    assert it.interface(0xC, 4, None, 0) == 41
    assert it.distributor(0x304, 4, None, 0) == 0x300
    assert it.distributor(0x104, 4, None, 0) == 0x300
    it.interface(0x10, 4, 41, 0)
    it.level(41, False)
    it.distributor(0x400 + 41, 1, 0x80, 0)
    it.level(41, True)
    assert not it.irq(0)
    # The mask lets through what is below it.
    it.interface(0x10, 4, 40, 0)
    it.interface(4, 4, 0x80, 0)
    assert not it.irq(0)
    it.interface(4, 4, 0x81, 0)
    assert it.irq(0)


def test_targets() -> None:
    it = gic(50, cpus=2)
    it.level(50, True)
    assert (it.irq(0), it.irq(1)) == (True, False)
    it.distributor(0x800 + 50, 1, 0xFF, 0)
    assert it.distributor(0x800 + 50, 1, None, 0) == 3
    assert it.irq(1)
    # Taken by one, it is not for the other.
    assert it.interface(0xC, 4, None, 1) == 50
    assert not it.irq(0)
    it.interface(0x10, 4, 50, 0)
    assert not it.irq(0)
    it.interface(0x10, 4, 50, 1)
    assert it.irq(0)


def test_a_gic_that_is_off_and_enables_that_are_cleared() -> None:
    it = gic(33)
    it.level(33, True)
    for access in ((it.distributor, 0), (it.interface, 0)):
        access[0](access[1], 4, 0, 0)
        assert not it.irq(0)
        access[0](access[1], 4, 1, 0)
        assert it.irq(0)
    it.distributor(0x184, 4, 2, 0)
    assert not it.irq(0)
    assert it.distributor(4, 4, None, 0) == 31
    with pytest.raises(ValueError, match=r"^a GICv2 has 1 to 8 CPU interfaces, not 9$"):
        Gic(cpus=9)


def test_any_access_of_the_gic_is_answered() -> None:
    rng = Random(1)
    for _ in range(40):
        it = gic(33, cpus=2)
        it.level(33, True)
        for _ in range(40):
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((None, rng.getrandbits(8 * size)))
            device = rng.choice((it.distributor, it.interface))
            got = device(rng.randrange(PAGE // size) * size, size, value, rng.randrange(3))
            assert 0 <= got < 1 << 8 * size
            assert it.irq(0) in (True, False)
