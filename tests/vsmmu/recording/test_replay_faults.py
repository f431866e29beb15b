# SPDX-License-Identifier: BSD-2-Clause
"""Faults of an SMMU that everyday recordings do not show, each planted in the model and found.

The recordings are what a driver may do and Linux seldom does: a bare CMD_CFGI_ALL behind a changed
STE, a bare CMD_TLBI_NSNH_ALL behind a changed mapping, a flush of one page of a block, a full
queue.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vsmmu.recording.tape import BLOCK, LEVEL2, Driver, Tape
from vsmmu.arch.commands import CmdCfgiSteRange, CmdTlbiNsnhAll
from vsmmu.arch.stream_table import Ste
from vsmmu.queue import Ring
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Kind
from vsmmu.recording.physical import Physical
from vsmmu.smmu import commands
from vsmmu.smmu.tlb import Tlb

Plant = Callable[[pytest.MonkeyPatch], None]


def mapped(**sizes: int) -> tuple[Tape, Driver]:
    """A stream with a page, and a block of 2 MiB behind it, both accessed."""
    tape = Tape()
    driver = Driver(tape, **sizes)
    driver.boot()
    driver.attach(8, 1)
    driver.map(1, 0x1000, 0x4080_0000)
    driver.map(1, BLOCK, 0x40A0_0000, level=2)
    tape.dma(8, 0x1000)
    tape.dma(8, BLOCK + 0x5000)
    return tape, driver


def cfgi_all() -> Tape:
    tape, driver = mapped()
    tape.mem(LEVEL2 + 8 * Ste.size, Ste.build(v=1, config=4).words[0])
    driver.send(CmdCfgiSteRange.build(range=31))
    tape.dma(8, 0x1000)
    return tape


def nsnh_all() -> Tape:
    tape, driver = mapped()
    tape.mem(driver.leaf(1, 0x1000), 0)
    driver.send(CmdTlbiNsnhAll.build())
    driver.map(1, 0x1000, 0x4090_0000)
    tape.dma(8, 0x1000)
    return tape


def part_of_a_block() -> Tape:
    """One page of a block is flushed: the entry of the whole block has to go (§4.4)."""
    tape, driver = mapped()
    tape.mem(driver.leaf(1, BLOCK, 2), 0)
    driver.flush(1, BLOCK + 0x7000)
    driver.map(1, BLOCK, 0x40C0_0000, level=2)
    tape.dma(8, BLOCK + 0x5000)
    return tape


def part_of_a_block_by_range() -> Tape:
    tape, driver = mapped()
    tape.mem(driver.leaf(1, BLOCK, 2), 0)
    driver.flush(1, BLOCK + 0x8000, tg=1, num=3, scale=0)
    driver.map(1, BLOCK, 0x40C0_0000, level=2)
    tape.dma(8, BLOCK + 0x5000)
    return tape


def full_queue() -> Tape:
    """As many commands at once as the queue holds: PROD and CONS differ in the wrap bit alone."""
    tape, driver = mapped(log2size=2)
    driver.unmap(1, 0x1000)
    driver.send(*(CmdTlbiNsnhAll.build() for _ in range(3)))
    return tape


def ignore(command: type) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        nothing = lambda unit, command: commands.DONE  # noqa: E731
        patch.setitem(commands._EFFECTS, command.opcode, (None, nothing))  # type: ignore[attr-defined]

    return plant


def miss_blocks(patch: pytest.MonkeyPatch) -> None:
    drop = Tlb._drop_range

    def by_start(self, vmid, space, sizes, first, last):  # type: ignore[no-untyped-def]
        kept = {key: pages for key, pages in sizes.items() if key[0] <= 12 or first == last == 0}
        return drop(self, vmid, space, kept, first, last)

    patch.setattr(Tlb, "_drop_range", by_start)


def no_wrap_bit(patch: pytest.MonkeyPatch) -> None:
    for name in ("used", "pending"):
        patch.setattr(Ring, name, lambda self, prod, cons: prod - cons & self.size - 1)


FAULTS: list[tuple[Callable[[], Tape], Plant, str]] = [
    (cfgi_all, ignore(CmdCfgiSteRange), Kind.STATUS),
    (nsnh_all, ignore(CmdTlbiNsnhAll), Kind.FLUSH),
    (part_of_a_block, miss_blocks, Kind.ADDRESS),
    (part_of_a_block_by_range, miss_blocks, Kind.ADDRESS),
    (full_queue, no_wrap_bit, Kind.PROGRESS),
]


@pytest.mark.parametrize(
    ("recording", "plant", "kind"), FAULTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_planted_fault_is_found(monkeypatch, recording, plant, kind):
    tape = recording()
    for target in (Both(), Physical("none"), Physical("normal"), Physical("hostile")):
        assert tape.play(target).divergence is None
    plant(monkeypatch)
    found = tape.play(Both()).divergence
    assert found is not None
    assert found.kind == kind
    # The last access or mapping, or the write that filled the queue.
    assert found.record >= len(tape.records) - 2
    for caching in ("normal", "hostile"):
        found = tape.play(Physical(caching)).divergence
        assert found is not None
        assert found.record >= len(tape.records) - 2


def test_what_an_overfull_queue_is_not(monkeypatch):
    """A PROD beyond the queue's size is inconsistent: nothing is consumed."""
    tape, driver = mapped(log2size=2)
    tape.write("CMDQ_PROD", driver.prod + 5 & 7)
    tape.read("CMDQ_CONS")
    assert tape.play(Both()).divergence is None
    monkeypatch.setattr(Ring, "pending", lambda self, prod, cons: prod - cons & self.size - 1)
    assert tape.play(Both()).divergence is not None
