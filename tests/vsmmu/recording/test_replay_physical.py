# SPDX-License-Identifier: BSD-2-Clause
"""Recordings on the physical model: agreement, what is not judged, what a divergence says."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from tests.vsmmu.recording.tape import (
    CMDQ,
    IDS,
    LEVEL2,
    PAGE,
    PROBED,
    Driver,
    Tape,
    everyday,
    play,
)
from vsmmu.arch.commands import CmdSync
from vsmmu.arch.registers import BY_NAME, Idr0, Idr1, Idr3
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Kind
from vsmmu.recording.format import Dma, EventRecord, Read, Reader, Reset, Status, Write
from vsmmu.recording.physical import Physical
from vsmmu.recording.player import Played, Player, Target
from vsmmu.recording.uncached import Uncached
from vsmmu.smmu.features import Features

CACHINGS = {
    "both": Both,
    "fast": Uncached,
    "none": lambda: Physical("none"),
    "normal": lambda: Physical("normal"),
    "hostile": lambda: Physical("hostile"),
}
# Samples that are short enough to be played every time.
SHORT = 1 << 13


def replayed(path: Path, target: Target) -> Played:
    return Player(Reader([lzma.decompress(path.read_bytes())], path.name), target).play()


def traces(corpus: Path) -> list[Path]:
    found = sorted((corpus / "traces").glob("*.xz"))
    if not found:
        pytest.skip(f"no recordings at {corpus / 'traces'}")
    return found


@pytest.mark.parametrize("caching", CACHINGS)
def test_our_recording_agrees(caching):
    tape, _ = everyday()
    played = tape.play(CACHINGS[caching]())
    assert played.divergence is None
    assert played.records == len(tape.records)
    assert (played.accesses, played.events, played.unjudged) == (17, 3, 0)
    # One pulse an event was recorded; the model pulses when the queue stops being empty.
    assert played.irqs == ({"eventq": 3}, {"eventq": 1})


def test_short_recordings_of_linux_agree(corpus):
    for path in traces(corpus):
        if path.stat().st_size < SHORT:
            assert replayed(path, Both()).divergence is None, path.name


@pytest.mark.soak
@pytest.mark.parametrize("caching", CACHINGS)
def test_recordings_of_linux_agree(corpus, caching):
    for path in traces(corpus):
        assert replayed(path, CACHINGS[caching]()).divergence is None, path.name


def test_a_second_reset_starts_again():
    """A reset SMMU has forgotten everything; memory is what it was."""
    tape, _ = everyday()
    twice = Tape()
    twice.records = list(tape.records)
    twice.machine = tape.machine
    twice.machine.reset()
    twice.add(Reset())
    twice.dma(8, 0x4000_1000)
    Driver(twice).boot(tables=False)
    twice.dma(8, 0x10_1000)
    played = twice.play(Both())
    assert played.divergence is None
    assert played.accesses == 19


# What is not judged.


def test_an_access_that_a_stale_entry_answered_is_not_judged():
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    driver.attach(8, 1)
    driver.map(1, 0x1000, 0x4080_0000)
    stale = Dma(8, 1, Status.OK, 3, 0, 1, 0x9000, 0x4123_4000, 0xFFF)
    tape.add(stale)
    tape.dma(8, 0x1000)
    played = tape.play(Both())
    assert played.divergence is None
    assert played.unjudged == 1
    judged = [record._replace(flags=0) if record is stale else record for record in tape.records]
    found = play(judged, Both()).divergence
    assert found is not None
    assert (found.kind, found.recorded, found.model) == (Kind.STATUS, "ok", "fault")


def test_the_event_of_a_stale_access_moves_the_queue():
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    driver.attach(8, 1)
    real = tape.dma(8, 0x5000)
    event = next(one for one in tape.records if isinstance(one, EventRecord))
    at = tape.records.index(real)
    tape.records[at] = real._replace(flags=1, iova=0x7000)
    tape.read("EVENTQ_PROD")
    tape.write("EVENTQ_CONS", 1)
    assert event in tape.records
    assert tape.play(Both()).divergence is None


def test_messages_arrive_anywhere_and_change_nothing():
    """A CMD_SYNC's message lands in its own slot, and the slot is used again as it was."""
    ids = {"IDR0": Idr0(IDS["IDR0"]).replace(msi=1).raw}
    tape = Tape(ids)
    driver = Driver(tape, log2size=2)
    driver.boot()
    tape.write("IRQ_CTRL", 0)
    tape.write("EVENTQ_IRQ_CFG0", 0x0802_0040)
    tape.write("IRQ_CTRL", 5)
    driver.attach(8, 1)
    slot = CMDQ + (driver.prod & 3) * 16
    tape.mem(slot, *CmdSync.build(cs=1, msiaddress=slot).words)
    for _ in range(3):
        driver.prod = driver.prod + 4 & 7
        for other in range(4):
            if CMDQ + 16 * other != slot:
                tape.mem(CMDQ + 16 * other, *CmdSync.build(cs=2).words)
        tape.write("CMDQ_PROD", driver.prod)
    tape.dma(8, 0x5000)
    tape.read("GERROR")
    played = tape.play(Both())
    assert played.divergence is None
    assert played.irqs[1] == {}


def test_features_that_contradict_the_architecture_are_played():
    """Linear tables with SIDSIZE 8, and no IDR3.XNX with stage 2: both occur."""
    ids = {
        "IDR0": Idr0(IDS["IDR0"]).replace(st_level=0).raw,
        "IDR1": Idr1(IDS["IDR1"]).replace(sidsize=8).raw,
        "IDR3": Idr3(IDS["IDR3"]).replace(xnx=0).raw,
    }
    named = {name: value for name, value in {**IDS, **ids}.items() if name != "IDR2"}
    with pytest.raises(ValueError, match="needs IDR0"):
        Features.from_ids(**{name.lower(): value for name, value in named.items()})
    tape = Tape(ids)
    for name in PROBED:
        tape.read(name)
    tape.read("AIDR")
    assert tape.play(Both()).divergence is None


# What a divergence says.


def moved_without_flush() -> tuple[Tape, int, int, int]:
    """A page whose CMD_TLBI_NH_VA is a second CMD_SYNC; the records of that, fill and use."""
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    driver.attach(8, 1)
    driver.map(1, 0x1000, 0x4080_0000)
    tape.note("use")
    tape.dma(8, 0x1008)
    fill = len(tape.records)
    tape.mem(driver.leaf(1, 0x1000), 0)
    command = len(tape.records) + 1
    driver.send(CmdSync.build(cs=2))
    driver.map(1, 0x1000, 0x4090_0000)
    tape.note("use\x1b[31m again")
    tape.dma(8, 0x1010)
    return tape, command, fill, len(tape.records)


def test_a_dropped_flush_is_explained():
    tape, command, fill, use = moved_without_flush()
    assert tape.play(Uncached()).divergence is None
    found = tape.play(Both()).divergence
    assert found is not None
    assert (found.record, found.kind, found.phase) == (use - 2, Kind.FLUSH, "use")
    found = tape.play(Physical("hostile")).divergence
    assert found is not None
    assert (found.record, found.kind, found.phase) == (use, Kind.ADDRESS, "use\x1b[31m again")
    assert str(found).endswith(
        "output address: read by StreamID 0x8 at 0x1010: recorded 0x40900010, model 0x40800010"
    )
    assert found.recorded_side == (
        "ok, output address 0x40900010, rights RW, shared by the low bits 0xfff",
    )
    text = "\n".join(found.model_side)
    entry = "VMID 0x0 ASID 1 0x1000+0x1000 -> 0x40800000 rights RW"
    assert f"TLB entry: {entry}, filled at record {fill}" in text
    assert f"was changed by record {fill + 1}" in text
    assert "these structures say: ok, 0x40900010" in text
    assert command in {source.record for source in found.provenance}


def test_the_walk_is_explained():
    tape, _ = everyday()
    access = next(one for one in tape.records if isinstance(one, Dma) and one.status == Status.OK)
    at = tape.records.index(access)
    tape.records[at] = access._replace(pa=access.pa + PAGE)
    found = tape.play(Both()).divergence
    assert found is not None
    assert found.record == at + 1
    what = [line.split(":")[0].split(" at ")[0] for line in found.model_side]
    assert what[:8] == [
        "none caching", "CR0 0xd", "STRTAB_BASE 0x40010000", "STRTAB_BASE_CFG 0x10210", "L1STD",
        "STE", "CD", "stage 1 level 0",
    ]  # fmt: skip
    ste = next(line for line in found.model_side if line.startswith("STE"))
    assert ste.startswith(f"STE at {LEVEL2 + 8 * 64:#x}: v=0x1 config=S1 s1ctxptr=")
    assert ste.endswith(")")


def test_a_register_is_decoded_on_both_sides():
    tape, _ = everyday()
    offset = BY_NAME["CMDQ_CONS"].offset
    at = next(
        i for i, one in enumerate(tape.records) if isinstance(one, Read) and one.offset == offset
    )
    read = tape.records[at]
    assert isinstance(read, Read)
    tape.records[at] = read._replace(value=read.value | 1 << 24)
    found = tape.play(Both()).divergence
    assert found is not None
    assert found.recorded_side == ("CMDQ_CONS 0x1000002: rd=0x2 err=ILL",)
    sent = at - 1 if isinstance(tape.records[at - 1], Write) else at - 2
    assert found.model_side[:2] == (
        "CMDQ_CONS 0x2: rd=0x2",
        f"CMDQ_PROD 0x2 (record {sent + 1})",
    )
    assert found.model_side[2].startswith(f"command 0x2 at {CMDQ + 32:#x}: ")
