# SPDX-License-Identifier: BSD-2-Clause
"""Hostile recordings end in one message or a verdict, with bounded memory and work."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vsmmu.recording.tape import CMDQ, HEADER, IDS, PROBED, RAM, Tape, data, everyday, play
from vsmmu.arch.registers import BY_NAME, Idr0
from vsmmu.recording import identification, memory, physical
from vsmmu.recording.both import Both
from vsmmu.recording.format import (
    Dma,
    EventRecord,
    Irq,
    Mem,
    Note,
    Progress,
    Read,
    Reader,
    Record,
    RecordingError,
    Reset,
    Write,
    encode,
    header_line,
)
from vsmmu.recording.physical import Physical
from vsmmu.recording.player import Played, Player, Target
from vsmmu.recording.uncached import Uncached

OFFSETS = sorted({register.offset for register in BY_NAME.values()} | {0x20, 0x24, 0x98, 0xFFF})
EDGES = (0, 1, 8, 9, 0x1000, RAM[0], RAM[0] + RAM[1] - 8, (1 << 52) - 8, (1 << 64) - 1)


@cache
def ours() -> tuple[Record, ...]:
    return tuple(everyday()[0].records)


def number(bits: int) -> st.SearchStrategy[int]:
    limit = (1 << bits) - 1
    return st.sampled_from([edge & limit for edge in EDGES]) | st.integers(0, limit)


WORDS = st.tuples(number(64), number(64), number(64), number(64))
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(Mem, number(64), st.binary(max_size=70)),
    st.builds(
        Mem, st.integers(RAM[0], RAM[0] + 0x9_0000).map(lambda pa: pa & -8), st.binary(max_size=70)
    ),
    st.builds(Write, st.sampled_from(OFFSETS), st.just(4), number(32)),
    st.builds(Write, st.sampled_from(OFFSETS), st.just(8), number(64)),
    st.builds(Read, st.sampled_from(OFFSETS), st.sampled_from((4, 8)), number(32)),
    st.builds(Progress, number(32), number(32), number(32)),
    st.builds(
        Dma, number(32), st.integers(1, 2), st.integers(0, 4), st.integers(0, 3), number(8),
        st.integers(0, 1), number(64), number(64), number(64),
    ),
    st.builds(EventRecord, WORDS),
    st.builds(Irq, st.integers(0, 3)),
    st.builds(Note, st.text(max_size=20)),
    st.just(Reset()),
)  # fmt: skip
CHANGES = st.lists(
    st.tuples(st.sampled_from(("put", "cut", "double", "swap")), st.integers(0, 500), RECORDS),
    max_size=6,
)


def changed(changes: list[tuple[str, int, Record]]) -> list[Record]:
    """Our recording with records put in, cut out, doubled and moved."""
    records = list(ours())
    for how, where, record in changes:
        at = where % len(records)
        if how == "put":
            records.insert(at, record)
        elif how == "cut":
            del records[at]
        elif how == "double":
            records.insert(at, records[at])
        else:
            records[at], records[at - 1] = records[at - 1], records[at]
    return records


def verdict(records: list[Record], target: Target) -> Played | str:
    """What a replay came to, or the complaint."""
    try:
        return play(records, target)
    except RecordingError as error:
        return one_line(error)


def one_line(error: RecordingError) -> str:
    assert "\n" not in str(error)
    return str(error)


def outcome(found: Played | str) -> object:
    """What two models have to have in common."""
    if isinstance(found, str) or found.divergence is None:
        return found
    one = found.divergence
    return one.record, one.kind, one.what, one.recorded, one.model


@settings(max_examples=35, deadline=None)
@given(CHANGES)
def test_changed_records_and_the_fast_twin(changes):
    records = changed(changes)
    slow = verdict(records, Physical("none"))
    assert outcome(verdict(records, Uncached())) == outcome(slow)
    verdict(records, Both())


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None)
@given(CHANGES)
def test_changed_records_and_the_fast_twin_at_length(changes):
    test_changed_records_and_the_fast_twin.hypothesis.inner_test(changes)  # type: ignore[attr-defined]


@settings(max_examples=35, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=5), st.data())
def test_changed_bytes(changes, draw):
    raw = bytearray(data(list(ours())))
    for where, value in changes:
        raw[where % len(raw)] = value
    cut = draw.draw(st.integers(1, len(raw)))
    try:
        Player(Reader([bytes(raw[:cut]), bytes(raw[cut:])], "x"), Both()).play()
    except RecordingError as error:
        one_line(error)


def complaint(records: list[Record], target: Target | None = None) -> str:
    with pytest.raises(RecordingError) as caught:
        play(records, target or Both())
    return str(caught.value)


def test_memory_outside_ram():
    tape = Tape()
    for name in PROBED:
        tape.read(name)
    for pa, size in ((0, 8), (RAM[0] - 8, 16), (RAM[0] + RAM[1] - 8, 16), ((1 << 64) - 8, 8)):
        place = len(data(tape.records))
        assert complaint([*tape.records, Mem(pa, bytes(size)), *ours()]) == (
            f"ours: record 7 (byte {place:#x}): M: {size} bytes at {pa:#x} are not all in RAM"
        )


def test_an_identification_that_is_not_modelled():
    big = Idr0(IDS["IDR0"]).replace(ttendian=3).raw
    assert (
        complaint([Read(0, 4, big), *ours()])
        == "ours: identification: IDR0.TTENDIAN=3: not modelled (big-endian tables)"
    )
    assert complaint([Read(0xC, 4, 0)]) == (
        "ours: identification: IDR0.TTF=0: not modelled (AArch32 tables); the driver never reads "
        "IDR0, IDR1, IDR5"
    )


def test_features_that_nobody_uses_need_not_be_modelled():
    """The driver reads what was recorded; a note says what the model has in its place."""
    odd = Idr0(IDS["IDR0"]).replace(atos=1, ttendian=0).raw
    records = [r._replace(value=odd) if isinstance(r, Read) and not r.offset else r for r in ours()]
    raw = header_line(HEADER) + b"".join(map(encode, records))
    for target in (Both(), Physical("normal")):
        played = Player(Reader([raw], "ours"), target).play()
        assert played.divergence is None
        assert played.notes == (
            "IDR0.TTENDIAN=0 is played as 2",
            "IDR0.ATOS=1 is played as 0",
        )


def test_pages_are_bounded(monkeypatch):
    monkeypatch.setattr(memory, "PAGES_MAX", 4)
    assert "more than 0 MiB of memory are in use" in complaint(list(ours()))


def test_work_is_bounded(monkeypatch):
    """A driver that lets a full queue run again and again."""
    monkeypatch.setattr(physical, "WORK", 100)
    monkeypatch.setattr(physical, "WORK_PER_RECORD", 1)
    tape, driver = everyday()
    for slot in range(64):
        tape.mem(CMDQ + 16 * slot, 0x46, 0)
    records = list(tape.records)
    prod, offset = driver.prod, BY_NAME["CMDQ_PROD"].offset
    for _ in range(20):
        prod = prod + 64 & 127
        records.append(Write(offset, 4, prod))
        records.append(Progress(prod, 0, 3))
    assert "more commands and records than a driver asks for" in complaint(records)


def test_reading_ahead_is_bounded(monkeypatch):
    monkeypatch.setattr(identification, "AHEAD", 3)
    tape, _ = everyday()
    assert "identification: " in complaint(tape.records)


def test_ram_of_any_size_costs_nothing():
    header = header_line({**HEADER, "ram_base": 0, "ram_size": (1 << 52) - 4096})
    raw = header + b"".join(map(encode, ours()))
    assert Player(Reader([raw], "x"), Both()).play().divergence is None


@pytest.mark.parametrize(
    "filler", [Mem(RAM[0], bytes(500)), Note("n" * 500), Note("\U0001f600" * 150)]
)
def test_bytes_read_ahead_are_bounded(monkeypatch, filler):
    monkeypatch.setattr(identification, "AHEAD_BYTES", 2000)
    tape, _ = everyday()
    assert "identification: " in complaint([*[filler] * 4, *tape.records])
