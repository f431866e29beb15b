# SPDX-License-Identifier: BSD-2-Clause
"""The recording format: what is written is read again, and hostile files end in one message."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

HEADER = {"name": "one", "ram_base": 0x4000_0000, "ram_size": 0x10_0000}


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


def access(kind: type[Write | Read]) -> st.SearchStrategy[Record]:
    return st.sampled_from((1, 2, 4, 8)).flatmap(
        lambda size: st.builds(kind, st.integers(0, 0x1_FFFF), st.just(size), unsigned(8 * size))
    )


RECORDS = st.one_of(
    st.builds(Mem, unsigned(64), st.binary(max_size=40)),
    access(Write),
    access(Read),
    st.builds(Progress, unsigned(32), unsigned(32), unsigned(32)),
    st.builds(
        Dma, unsigned(32), st.integers(1, 2), st.integers(0, 4), unsigned(8), unsigned(8),
        unsigned(8), unsigned(64), unsigned(64), unsigned(64),
    ),
    st.builds(EventRecord, st.tuples(*[unsigned(64)] * 4)),
    st.builds(Irq, st.integers(0, 3)),
    st.builds(Note, st.text(max_size=20)),
    st.just(Reset()),
)  # fmt: skip


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    """The same bytes in blocks of these lengths, the rest in one."""
    blocks, at = [], 0
    for length in lengths:
        blocks.append(data[at : at + length])
        at += length
    return [*blocks, data[at:]]


def read(data: bytes, lengths: list[int] | None = None) -> list[Record]:
    return list(Reader(cut(data, lengths or []), "one.xz"))


def kinds(records: list[Record]) -> list[tuple[type, Record]]:
    """A write and a read of the same numbers are equal as tuples."""
    return [(type(record), record) for record in records]


@settings(deadline=None)
@given(st.lists(RECORDS, max_size=20), st.lists(st.integers(0, 30), max_size=20))
def test_what_is_written_is_read(records: list[Record], lengths: list[int]) -> None:
    data = header_line(HEADER) + b"".join(map(encode, records))
    assert kinds(read(data, lengths)) == kinds(records)


@settings(deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=6), st.data())
def test_a_cut_file_is_read_up_to_the_record_that_is_cut(
    records: list[Record], data: st.DataObject
) -> None:
    start = header_line(HEADER) + b"".join(map(encode, records[:-1]))
    last = encode(records[-1])
    left = data.draw(st.integers(1, len(last)))
    reader = Reader([start + last[:left]], "one.xz")
    if left == len(last):
        assert kinds(list(reader)) == kinds(records)
        return
    got: list[Record] = []
    with pytest.raises(RecordingError) as caught:
        got.extend(reader)
    assert kinds(got) == kinds(records[:-1])
    assert str(caught.value) == (
        f"one.xz: record {len(records)} (byte {len(start):#x}): {chr(last[0])}: "
        "the file ends within this record"
    )


@settings(deadline=None)
@given(st.lists(RECORDS, max_size=6), st.data())
def test_any_bytes_are_records_or_one_message(records: list[Record], data: st.DataObject) -> None:
    whole = bytearray(header_line(HEADER) + b"".join(map(encode, records)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(unsigned(8))
    said = ""
    try:
        read(bytes(whole))
    except RecordingError as error:
        said = str(error)
    assert said == "" or (said.startswith("one.xz: ") and "\n" not in said)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (b"Q", "tag 'Q' is none of M W R P D E I N Z"),
        (b"\x00", "tag 0x00 is none of M W R P D E I N Z"),
        (b"W" + bytes((0, 0, 0, 0, 3)) + bytes(8),
         "W: value 0x0 of size 3: expected 1, 2, 4 or 8 bytes"),
        (b"R" + bytes((0, 0, 0, 0, 1, 0, 1)) + bytes(6),
         "R: value 0x100 of size 1: expected 1, 2, 4 or 8 bytes"),
        (b"W" + bytes((0, 0, 2, 0, 4)) + bytes(8),
         "W: offset 0x20000 is behind both register pages"),
        (b"M" + bytes(8) + b"\xff\xff\xff\xff", "M: 4294967295 bytes, more than 16 MiB"),
        (b"D" + bytes(4) + b"\x03" + bytes(28), "D: access 3 is neither 1 (read) nor 2 (write)"),
        (b"D" + bytes(4) + b"\x01\x05" + bytes(27), "D: status 5 is beyond 4"),
        (b"I\x04", "I: line 4 is beyond 3"),
    ],
)  # fmt: skip
def test_a_record_that_nothing_can_mean(record: bytes, text: str) -> None:
    start = header_line(HEADER) + b"Z"
    with pytest.raises(RecordingError) as caught:
        read(start + record)
    assert str(caught.value) == f"one.xz: record 2 (byte {len(start):#x}): {text}"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"magic": "other"}, "magic: expected \"vsmmu-trace\", not 'other'"),
        ({"version": 2}, "version: expected 1, not 2"),
        ({"version": True}, "version: expected 1, not True"),
        ({"ram_base": 1}, "ram_base: expected a multiple of 4096 below 2^52, not 1"),
        ({"ram_size": None}, "ram_size: expected a multiple of 4096 below 2^52, not None"),
        ({"ram_size": 0}, "ram_size: expected RAM that ends below 2^52"),
        ({"ram_base": (1 << 52) - 4096}, "ram_size: expected RAM that ends below 2^52"),
    ],
)
def test_a_header_that_is_none(changed: dict[str, object], text: str) -> None:
    fields = {"magic": "vsmmu-trace", "version": 1, **HEADER, **changed}
    with pytest.raises(RecordingError) as caught:
        read(json.dumps(fields).encode() + b"\n")
    assert str(caught.value) == f"one.xz: header: {text}"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no line of JSON at its start"),
        (b"{}", "no line of JSON at its start"),
        (b"[]\n", "expected a JSON object"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"9" * 5000 + b"\n", "a number of too many digits"),
    ],
)
def test_a_file_without_a_header(data: bytes, text: str) -> None:
    with pytest.raises(RecordingError) as caught:
        read(data)
    assert str(caught.value) == f"one.xz: header: {text}"


def test_bytes_of_a_note_that_are_no_text_take_no_room() -> None:
    data = header_line(HEADER) + b"N\x04\x00a\xff\xfeb"
    assert read(data) == [Note("a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b")]
