# SPDX-License-Identifier: BSD-2-Clause
"""Replaying recordings: cost an operation at 1, 4 and 16 times the length, and of reading alone.

The recording is our own (`tests/vsmmu/recording/tape.py`): its rounds of mapping, access, unmapping
and flush, over and over. `VSMMU_RECORDING` names another, whose records behind the probing are
looped, from a reset, up to 1,000,000.
"""

from __future__ import annotations

import lzma
import os
import time
from pathlib import Path

import pytest

from tests.vsmmu.recording.tape import PAGE, Driver, Tape, data
from vsmmu.recording.both import Both
from vsmmu.recording.format import Reader, encode, header_line
from vsmmu.recording.player import Player, Target
from vsmmu.recording.uncached import Uncached

TARGETS = {"none": Uncached, "both": Both}
# How much dearer an operation may be at 16 times the length.
LINEAR = 1.3
OPERATIONS = 1_000_000


def rounds(count: int) -> bytes:
    """A recording of so many rounds: eight pages mapped, accessed four times, and unmapped."""
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    driver.attach(8, 1)
    for n in range(count):
        for page in range(8):
            iova = 0x10_0000 + page * PAGE
            driver.map(1, iova, 0x4080_0000 + (n * 8 + page) % 512 * PAGE)
            for access in range(4):
                tape.dma(8, iova + 8 * access, write=bool(access & 1))
            driver.unmap(1, iova)
    return data(tape.records)


def cost(raw: bytes, target: Target | None) -> tuple[float, int]:
    """Seconds of processor time, and records."""
    reader = Reader([raw], "rounds")
    start = time.process_time()
    if target is None:
        count = sum(1 for _ in reader)
    else:
        played = Player(reader, target).play()
        assert played.divergence is None
        count = played.records
    return time.process_time() - start, count


def each(raw: bytes, name: str) -> float:
    """Microseconds a record, the best of three."""
    found = []
    for _ in range(3):
        seconds, count = cost(raw, TARGETS[name]() if name in TARGETS else None)
        found.append(seconds / count)
    return min(found) * 1e6


@pytest.mark.parametrize("name", TARGETS)
def test_time_is_linear(name):
    times = [each(rounds(count), name) for count in (16, 64, 256)]
    print(f"\n{name}: {' '.join(f'{one:.2f}' for one in times)} us a record at 1, 4, 16 times")
    assert times[2] < times[0] * LINEAR
    print(f"reading alone: {each(rounds(64), 'reading'):.2f} us a record")


@pytest.mark.skipif("VSMMU_RECORDING" not in os.environ, reason="VSMMU_RECORDING is not set")
def test_a_million_operations():
    raw = lzma.decompress(Path(os.environ["VSMMU_RECORDING"]).read_bytes())
    reader = Reader([raw], "one")
    body = b"".join(encode(record) for record in reader)
    loops = -(-OPERATIONS // reader.number)
    whole = header_line(reader.header.fields) + body * loops
    alone, count = cost(whole, None)
    print(f"\n{count:,} records: reading {count / alone:,.0f} a second")
    for name, target in TARGETS.items():
        seconds, played = cost(whole, target())
        print(f"{name}: {seconds:.1f} s, {played / seconds:,.0f} records a second")
        assert played == count
