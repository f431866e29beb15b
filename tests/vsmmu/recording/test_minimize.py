# SPDX-License-Identifier: BSD-2-Clause
"""Taking recordings apart, and shrinking those that fail: small, still failing, the same way."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vsmmu.recording import test_batches as batches
from tests.vsmmu.recording import test_guest as guests
from tests.vsmmu.recording import test_unflushed as unflushed
from tests.vsmmu.recording import test_unlike as unlike
from tests.vsmmu.recording.tape import HEADER, RAM, Tape, data, everyday
from vsmmu.arch.commands import CmdTlbiNhAsid, CmdTlbiNhVa, decode
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Divergence
from vsmmu.recording.format import Dma, Mem, Note, Reader, Record, Write, encode
from vsmmu.recording.minimize import Minimizer, NoFailureError, Smallest, signature
from vsmmu.recording.physical import Physical
from vsmmu.recording.player import Player
from vsmmu.recording.unflushed import HABIT, WAIT
from vsmmu.recording.units import Cut, Dismantled, IrregularError, Unit, rough_units


def both(recording: bytes) -> Divergence | None:
    return Player(Reader([recording], "it"), Both()).play().divergence


def plain(recording: bytes) -> Divergence | None:
    return Player(Reader([recording], "it"), Physical("none")).play().divergence


def through(recording: bytes) -> Divergence | None:
    return guests.played(recording, caching="hostile", guest="dom0")


def scattered(recording: bytes) -> Divergence | None:
    return guests.played(recording, caching="hostile")


def minimized(
    records: list[Record], play: Callable[[bytes], Divergence | None] = both, **more: object
) -> Smallest:
    return Minimizer(HEADER, RAM, records, play, **more).run()  # type: ignore[arg-type]


def left(found: Smallest) -> list[Record]:
    return list(Reader([found.data], "it"))


def flipped(records: list[Record], number: int, bit: int) -> list[Record]:
    record = records[number - 1]
    assert isinstance(record, Mem)
    raw = bytearray(record.data)
    raw[bit // 8] ^= 1 << bit % 8
    return [*records[: number - 1], record._replace(data=bytes(raw)), *records[number:]]


# Taking apart and putting together.


def dismantled(records: list[Record]) -> tuple[list[Unit], Cut]:
    units = Dismantled(list(enumerate(records, 1)), RAM).units
    return units, Cut(units)


def together(cut: Cut, units: list[Unit]) -> list[Record]:
    return [record for _, record in cut.records(units)]


@given(st.integers(0, 1 << 30), st.sampled_from((0.1, 0.5, 0.9)))
@settings(max_examples=10, deadline=None)
def test_what_is_left_out_leaves_a_recording(seed: int, share: float) -> None:
    """Accesses and commands are left out at random: without caches the rest agrees."""
    units, cut = dismantled(everyday()[0].records)
    random = Random(seed)
    kept = [
        unit for unit in units
        if not (unit.command is not None or type(unit.record) in (Dma, Note))
        or random.random() < share
    ]  # fmt: skip
    assert plain(data(together(cut, kept))) is None


def test_all_units_are_the_recording() -> None:
    records = everyday()[0].records
    units, cut = dismantled(records)
    again = together(cut, units)
    assert plain(data(again)) is None
    kinds = (Dma, Write, Note)
    assert [r for r in again if type(r) in kinds] == [r for r in records if type(r) in kinds]


def test_queues_that_cannot_be_followed() -> None:
    tape, driver = everyday()
    tape.write("CMDQ_PROD", driver.prod + 1000)
    with pytest.raises(IrregularError, match="CMDQ_PROD beyond its queue"):
        dismantled(tape.records)
    rough = rough_units(enumerate(tape.records, 1))
    assert together(Cut(rough), rough) == tape.records


def test_a_command_that_the_driver_repairs_stays_in_its_place() -> None:
    tape = guests.illegal()
    units, cut = dismantled(tape.records)
    kept = [unit for unit in units if type(unit.record) is not Dma]
    assert plain(data(together(cut, kept))) is None


# Shrinking.


def test_a_flipped_bit_is_what_is_left() -> None:
    tape, driver = everyday()
    number = driver.map(1, 0x40_0000, 0x4080_0000)
    tape.dma(8, 0x40_0008)
    found = minimized(flipped(tape.records, number, 13))
    small = left(found)
    assert found.complete
    assert found.before[0] == len(tape.records)
    assert found.after[0] == len(small) <= 24
    assert [type(r) for r in small].count(Dma) == 1
    assert found.divergence.kind == "output address"
    assert encode(small[-1]) == encode(tape.records[-1])


def planted(plant: str, patch: pytest.MonkeyPatch, limit: int) -> Smallest:
    """What is left of a recording that shows a fault of the hypervisor."""
    put, record = guests.PLANTS[plant]
    records = record().records
    put(patch)
    play = scattered if plant == "stage 2 off by a page" else through
    before = play(data(records))
    assert before is not None
    found = minimized(records, play, references=[both], limit=limit)
    assert signature(found.divergence) == signature(before)
    assert both(found.data) is None
    again = play(found.data)
    assert again is not None
    assert again.record == found.divergence.record
    return found


@pytest.mark.soak
@pytest.mark.parametrize("plant", guests.PLANTS)
def test_a_planted_fault_is_what_is_left(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small, and a recording that an SMMU without the fault agrees with."""
    found = planted(plant, monkeypatch, 2000)
    assert found.complete
    assert found.after[0] <= 48


def test_the_command_that_was_ignored_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    small = left(planted("CMD_TLBI_NH_ASID ignored", monkeypatch, 60))
    raw = [r.data for r in small if isinstance(r, Mem) and len(r.data) == 16]
    words = [(int.from_bytes(r[:8], "little"), int.from_bytes(r[8:], "little")) for r in raw]
    assert [type(c) for c in map(decode, words)].count(CmdTlbiNhAsid) == 1


def test_a_cached_entry_keeps_the_commands_behind_it() -> None:
    """Without a reference, what was sent since the entry was filled is not left out."""
    tape, driver = guests.mapped()
    tape.mem(driver.leaf(1, 0x1000), 0)
    driver.flush(1, 0x7000)
    tape.dma(8, 0x1000)
    found = minimized(tape.records)
    assert found.divergence.recorded == "fault"
    flushes = [
        r for r in left(found)
        if isinstance(r, Mem) and len(r.data) == 16 and r.data[0] == CmdTlbiNhVa.opcode
    ]  # fmt: skip
    assert len(flushes) == 1


def test_a_bound_on_replays() -> None:
    tape = everyday()[0]
    asked: list[int] = []
    found = minimized(
        flipped(tape.records, _first(tape), 2), limit=3, progress=lambda n, left: asked.append(n)
    )
    assert asked == [1, 2, 3]
    assert found.replays == 3
    assert not found.complete


def _first(tape: Tape) -> int:
    """The first memory record: a command of the driver's start."""
    return next(at for at, record in enumerate(tape.records, 1) if type(record) is Mem)


def test_nothing_to_minimize() -> None:
    with pytest.raises(NoFailureError, match="replays without divergence"):
        minimized(everyday()[0].records)


def test_a_recording_of_a_hostile_run_is_cut_without_renumbering() -> None:
    tape, driver = everyday()
    tape.write("CMDQ_PROD", driver.prod + 1000)
    tape.write("CMDQ_PROD", driver.prod)
    number = tape.dma(8, 0x10_0000)
    wrong = number._replace(pa=number.pa ^ 0x1000)
    records = [*tape.records[:-1], wrong]
    found = minimized(records)
    assert found.after[0] < len(records) // 2
    assert found.divergence.kind == "output address"


def never_flushed() -> list[Record]:
    tape, driver = unflushed.mapped(habit=HABIT)
    unflushed.remove(tape, driver)
    for _ in range(WAIT + 1):
        driver.flush(1, 0x9000)
    return tape.records


def not_ended() -> list[Record]:
    tape, driver = batches.habit()
    batches.send(tape, driver, batches.STE)
    driver.send(batches.STE)
    return tape.records


def one_bit() -> list[Record]:
    tape, _, made = unlike.mapped()
    return unlike.flip(tape.records, made[0], 10)


@pytest.mark.parametrize("made", [never_flushed, not_ended, one_bit])
def test_what_is_told_when_a_recording_ends(made: Callable[[], list[Record]]) -> None:
    """What it is compared with comes later, and has to stay."""
    records = made()
    whole, found = both(data(records)), minimized(records)
    assert whole is not None
    assert signature(found.divergence) == signature(whole)
    assert found.after[0] < len(records)
    assert found.complete


# Real drivers.


@pytest.mark.soak
@pytest.mark.parametrize("name", ["vfio612", "rebind612", "crash612", "live-cd2l"])
def test_a_flipped_bit_of_a_real_recording(corpus: Path, name: str) -> None:
    raw = lzma.decompress((corpus / "traces" / f"{name}.xz").read_bytes())
    reader = Reader([raw], name)
    records = list(reader)
    header, ram = reader.header.fields, reader.header.ram
    random, shrunk = Random(1), 0
    while shrunk < 3:
        number = random.randrange(len(records)) + 1
        if not isinstance(records[number - 1], Mem):
            continue
        mutant = flipped(records, number, random.randrange(64))
        try:
            found = Minimizer(header, ram, mutant, both).run()
        except NoFailureError:
            continue
        assert found.after[0] <= 150, found.divergence
        shrunk += 1
