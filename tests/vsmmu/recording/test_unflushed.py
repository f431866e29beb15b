# SPDX-License-Identifier: BSD-2-Clause
"""Mappings that no invalidation reached are told where they were made, used or not."""

from __future__ import annotations

import pytest

from tests.vsmmu.recording.tape import BLOCK, PAGE, Driver, Tape
from vsmmu.arch.commands import CmdSync, CmdTlbiNhAsid, CmdTlbiNsnhAll
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Divergence, Kind
from vsmmu.recording.unflushed import HABIT, WAIT

UNUSED = 0x4000
# Of the leaves that the driver makes.
ATTRIBUTES = 0x60_0000_0000_0F47


def mapped(*, habit: int = 0) -> tuple[Tape, Driver]:
    """A stream with a page that is used and one that is not; some were moved as they should."""
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    driver.attach(8, 1)
    driver.map(1, 0x1000, 0x4080_0000)
    tape.dma(8, 0x1000)
    for _ in range(habit):
        driver.map(1, 0x2000, 0x4082_0000)
        driver.unmap(1, 0x2000)
    driver.map(1, UNUSED, 0x4081_0000)
    return tape, driver


def remove(tape: Tape, driver: Driver) -> int:
    """Unmap the page that is not used; the record."""
    return tape.mem(driver.leaf(1, UNUSED), 0)


def missing(tape: Tape) -> Divergence | None:
    found = tape.play(Both()).divergence
    assert found is None or found.kind == Kind.FLUSH
    return found


def test_a_page_that_moves_without_a_flush():
    tape, driver = mapped()
    removed = remove(tape, driver)
    driver.send(CmdSync.build(cs=2))
    command = removed + 1
    made = driver.map(1, UNUSED, 0x4083_0000)
    tape.dma(8, 0x1000)
    found = missing(tape)
    assert found is not None
    assert found.record == made
    assert found.place > 0
    slot = driver.leaf(1, UNUSED)
    assert found.what == f"StreamID 0x8 at {UNUSED:#x}"
    assert found.recorded == f"{0x4083_0000 | ATTRIBUTES:#x}"
    assert found.model == f"{0x4081_0000 | ATTRIBUTES:#x} may still be cached"
    assert found.recorded_side[0].startswith(f"descriptor at {slot:#x}: ")
    assert f"changed by record {removed}; no invalidation reached it" in "\n".join(found.model_side)
    assert {made, removed, command} <= {source.record for source in found.provenance}


@pytest.mark.parametrize("flush", ["page", "asid", "all", "range"])
def test_a_page_that_moves_with_one(flush):
    tape, driver = mapped()
    remove(tape, driver)
    if flush == "page":
        driver.flush(1, UNUSED)
    elif flush == "range":
        driver.flush(1, 0, tg=1, num=7, scale=0)
    else:
        driver.send(CmdTlbiNhAsid.build(asid=1) if flush == "asid" else CmdTlbiNsnhAll.build())
    driver.map(1, UNUSED, 0x4083_0000)
    tape.dma(8, 0x1000)
    assert missing(tape) is None


@pytest.mark.parametrize("flush", ["other page", "other asid", "none"])
def test_a_flush_of_something_else_is_none(flush):
    tape, driver = mapped()
    remove(tape, driver)
    if flush == "other page":
        driver.flush(1, UNUSED + PAGE)
    elif flush == "other asid":
        driver.flush(2, UNUSED)
    driver.map(1, UNUSED, 0x4083_0000)
    tape.dma(8, 0x1000)
    assert missing(tape) is not None


@pytest.mark.parametrize("habit", [0, HABIT])
def test_the_same_page_again_contradicts_only_a_habit(habit):
    tape, driver = mapped(habit=habit)
    remove(tape, driver)
    made = driver.map(1, UNUSED, 0x4081_0000)
    tape.dma(8, 0x1000)
    found = missing(tape)
    assert (found.record if found else 0) == (made if habit else 0)


@pytest.mark.parametrize("batches", [WAIT - 1, WAIT + 1])
def test_a_page_that_is_never_flushed(batches):
    tape, driver = mapped(habit=HABIT)
    removed = remove(tape, driver)
    for _ in range(batches):
        driver.flush(1, 0x9000)
    found = missing(tape)
    assert (found.record if found else 0) == (removed if batches > WAIT else 0)


def test_a_block_and_a_table_that_is_linked_later():
    tape, driver = mapped()
    driver.map(1, BLOCK, 0x40A0_0000, level=2)
    driver.map(1, 2 * BLOCK, 0x40C0_0000)
    tape.mem(driver.leaf(1, BLOCK, 2), 0)
    made = driver.map(1, BLOCK, 0x40C0_0000, level=2)
    tape.dma(8, 0x1000)
    found = missing(tape)
    assert found is not None
    assert found.record == made
    tape, driver = mapped()
    driver.map(1, 2 * BLOCK, 0x40C0_0000)
    driver.map(1, 2 * BLOCK + PAGE, 0x40C0_1000)
    tape.dma(8, 0x1000)
    tape.mem(driver.leaf(1, 2 * BLOCK + PAGE), 0)
    made = driver.map(1, 2 * BLOCK + PAGE, 0x40D0_0000)
    tape.dma(8, 0x1000)
    found = missing(tape)
    assert found is not None
    assert found.record == made


def test_a_table_that_is_another_is_no_table_of_before():
    """Linux frees a table with what is in it, after a flush, and uses the page for another."""
    tape, driver = mapped()
    parent = driver.leaf(1, 0, 2)
    table = driver.leaf(1, 0) & -PAGE
    tape.mem(parent, 0)
    driver.send(CmdTlbiNhAsid.build(asid=1))
    upper = driver.leaf(1, 8 * BLOCK, 2)
    # Its contents are told before its link is.
    tape.mem(table + 8 * (UNUSED >> 12), 0x40E0_0F43)
    tape.mem(upper, table | 3)
    tape.dma(8, 8 * BLOCK + UNUSED)
    assert missing(tape) is None
