# SPDX-License-Identifier: BSD-2-Clause
"""A write of CMDQ_PROD that is unlike all others of a recording is told at its end."""

from __future__ import annotations

import pytest

from tests.vsmmu.recording.mutants import commands, deleted, replaced, resent
from tests.vsmmu.recording.tape import CMDQ, PAGE, Driver, Tape, play
from vsmmu.arch.commands import CmdCfgiSte, CmdPrefetchConfig, CmdSync, Command
from vsmmu.recording.batches import HABIT, LARGE, LONE, NOTHING, UNENDED, UNWRITTEN
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Divergence, Kind
from vsmmu.recording.format import Record

HINT = CmdPrefetchConfig.build(sid=3)
SYNC = CmdSync.build(cs=2)


def habit(count: int = HABIT, *, log2size: int = 6) -> tuple[Tape, Driver]:
    """A driver that sent some commands, each with a CMD_SYNC."""
    tape = Tape()
    driver = Driver(tape, log2size=log2size)
    driver.boot()
    for _ in range(count):
        driver.send(CmdCfgiSte.build(sid=8, leaf=1))
    return tape, driver


def send(tape: Tape, driver: Driver, *sent: Command) -> int:
    """Commands as they are; the record of CMDQ_PROD."""
    for command in sent:
        place = CMDQ + (driver.prod & (1 << driver.log2size) - 1) * Command.size
        tape.mem(place, *command.words)
        driver.prod = driver.prod + 1 & (2 << driver.log2size) - 1
    return tape.write("CMDQ_PROD", driver.prod)


def missing(records: list[Record]) -> Divergence | None:
    found = play(records, Both()).divergence
    assert found is None or found.kind == Kind.COMMAND, found
    return found


STE = CmdCfgiSte.build(sid=8)


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        ((STE,), UNENDED),
        ((STE, HINT), UNENDED),
        ((SYNC, SYNC), NOTHING),
        ((HINT, SYNC), NOTHING),
    ],
)
def test_one_write_that_is_unlike_all_others(sent, what):
    tape, driver = habit()
    number = send(tape, driver, *sent)
    driver.send(STE)
    found = missing(tape.records)
    assert found is not None
    assert (found.record, found.recorded) == (number, what)
    assert set(range(number - len(sent), number + 1)) == {s.record for s in found.provenance}
    # What a driver does twice, or before it has habits, it does.
    send(tape, driver, *sent)
    driver.send(STE)
    assert missing(tape.records) is None
    tape, driver = habit(HABIT - 5)
    send(tape, driver, *sent)
    driver.send(STE)
    assert missing(tape.records) is None


def removing(count: int) -> tuple[Tape, Driver]:
    """A driver that flushes each mapping that it removes; another is removed, not flushed."""
    tape, driver = habit()
    driver.attach(8, 1)
    for n in range(count):
        driver.map(1, n * PAGE, 0x4080_0000)
    tape.dma(8, 0)
    for n in range(count - 1):
        driver.unmap(1, n * PAGE)
    tape.mem(driver.leaf(1, (count - 1) * PAGE), 0)
    return tape, driver


def test_a_cmd_sync_alone_behind_a_mapping_that_was_removed():
    """Linux 6.1 sends one for a CD that no stream has: that tells nothing."""
    tape, driver = removing(HABIT)
    number = send(tape, driver, SYNC)
    driver.send(STE)
    found = missing(tape.records)
    assert found is not None
    assert (found.record, found.recorded) == (number, LONE)
    tape, driver = habit()
    send(tape, driver, SYNC)
    driver.send(STE)
    assert missing(tape.records) is None
    tape, driver = removing(HABIT)
    driver.flush(1, (HABIT - 1) * PAGE)
    # Nor does another then.
    send(tape, driver, SYNC)
    driver.map(1, 0, 0x4080_0000)
    driver.unmap(1, 0)
    driver.map(1, 0, 0x4080_0000)
    tape.mem(driver.leaf(1, 0), 0)
    send(tape, driver, SYNC)
    driver.flush(1, 0)
    assert missing(tape.records) is None
    send(tape, driver, SYNC, SYNC)
    assert missing(tape.records) is None


def test_what_needs_no_cmd_sync():
    tape, driver = habit()
    send(tape, driver, HINT)
    assert missing(tape.records) is None
    tape, driver = habit()
    send(tape, driver, *[STE] * LARGE)
    driver.send(STE)
    assert missing(tape.records) is None


def test_a_slot_that_was_not_written_since_it_was_sent():
    tape, _ = habit(40, log2size=4)
    where = [one for one in commands(tape.records) if one.record > len(tape.records) // 2]
    found = missing(deleted(tape.records, where[0]))
    assert found is not None
    assert found.recorded == UNWRITTEN
    assert 0 <= found.record - where[0].record <= 1
    # A recorder that leaves out what did not change leaves out more than one.
    twice = deleted(deleted(tape.records, where[5]), where[0])
    assert missing(twice) is None


def test_a_command_in_the_place_of_another_or_none():
    tape, _ = habit(20)
    # The first ones are for what was cached before the reset.
    for one in commands(tape.records)[4::3]:
        sync = isinstance(one.command, CmdSync)
        for mutant in (replaced(tape.records, one, HINT), resent(tape.records, one)):
            if not sync and len(mutant) < len(tape.records):
                # A CMD_SYNC alone is left.
                continue
            found = missing(mutant)
            assert found is not None, one
            assert found.recorded == (UNENDED if sync else found.recorded)
            assert found.record - one.record in (0, 1, 2)


def test_caches_that_nothing_invalidated_before_smmuen():
    tape, _ = habit(0)
    for one in commands(tape.records):
        if isinstance(one.command, CmdSync):
            continue
        mutant = replaced(tape.records, one, HINT)
        found = play(mutant, Both()).divergence
        assert found is not None
        assert (found.kind, found.what) == (Kind.FLUSH, "SMMUEN")
        assert one.record in {source.record for source in found.provenance}
    assert play(tape.records, Both()).divergence is None
