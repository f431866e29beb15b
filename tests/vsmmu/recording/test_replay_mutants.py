# SPDX-License-Identifier: BSD-2-Clause
"""A recording with one bit flipped, or one command dropped, is reported at that place."""

from __future__ import annotations

import lzma
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.vsmmu.recording.mutant_words import Flip, flip, silent, words_of
from tests.vsmmu.recording.mutants import (
    DECIDES,
    Sent,
    Used,
    commands,
    deciding_bits,
    deleted,
    flipped,
    replaced,
    resent,
    stale_access,
    used_words,
)
from tests.vsmmu.recording.tape import everyday, play
from vsmmu.arch.commands import CmdPrefetchConfig, CmdSync, CmdTlbiNhVa
from vsmmu.arch.registers import BY_NAME
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Divergence
from vsmmu.recording.format import Mem, Reader, Record, Write

SAMPLES = (
    "boot61", "boot612", "boot612-16k", "boot612-stage2", "crash612", "lazy612", "linear612",
    "live-cd2l", "live-msi", "passthrough612", "rebind612", "rogue612", "smallq612", "vfio612",
)  # fmt: skip
# Records of the probing, at the start.
PROBED = 7
PROD = BY_NAME["CMDQ_PROD"].offset


@cache
def ours() -> tuple[Record, ...]:
    return tuple(everyday()[0].records)


@cache
def used() -> tuple[Used, ...]:
    return tuple(used_words(list(ours())))


def diverges(records: list[Record]) -> Divergence | None:
    return play(records, Both()).divergence


def named(found: Divergence, record: int) -> bool:
    """Whether a record is among those that are reported."""
    return record == found.record or record in {source.record for source in found.provenance}


@pytest.mark.parametrize("what", DECIDES)
def test_each_deciding_bit_of_a_used_structure_is_reported_at_its_place(what):
    cases = [(one, bit) for one in used() if one.what == what for bit in deciding_bits(one)]
    assert cases
    for one, bit in Random(what).sample(cases, min(len(cases), 25)):
        found = diverges(flipped(list(ours()), one, bit))
        assert found is not None, (one, bit)
        assert named(found, one.record), (one, bit, found)


def test_any_flipped_bit_of_memory_is_agreement_or_a_divergence_at_its_place():
    """Unless it is a command's: another command may do anything to a later access."""
    written = [n for n, record in enumerate(ours(), 1) if isinstance(record, Mem)]
    rings = {one.record for one in commands(list(ours()))}
    random = Random(1)
    seen = 0
    for _ in range(70):
        number = random.choice(written)
        record = ours()[number - 1]
        assert isinstance(record, Mem)
        bit = random.randrange(8 * len(record.data))
        data = bytearray(record.data)
        data[bit // 8] ^= 1 << bit % 8
        mutant = [*ours()[: number - 1], Mem(record.pa, bytes(data)), *ours()[number:]]
        found = diverges(mutant)
        if found is not None:
            seen += 1
            assert number in rings or named(found, number), (number, bit, found)
    assert seen > 15


def invalidations() -> list[Sent]:
    return [one for one in commands(list(ours())) if not isinstance(one.command, CmdSync)]


def test_a_dropped_invalidation_is_reported_where_a_cache_would_be_stale():
    reported = 0
    for one in invalidations():
        found = diverges(replaced(list(ours()), one))
        stale = None
        if one.command.name.startswith("CMD_TLBI"):
            stale = stale_access(list(ours()), one)
        if stale is not None:
            assert found is not None, one
            # The tables may tell before the access does.
            assert found.record <= stale
            assert named(found, one.record), found
        reported += found is not None
    assert reported >= 6


def test_a_command_that_was_never_written_stops_the_queue_there():
    """What is in a slot of the first round is no command: CERROR_ILL, CONS stays on it."""
    for one in invalidations():
        found = diverges([*ours()[: one.record - 1], *ours()[one.record :]])
        assert found is not None
        assert found.what == "CMDQ_CONS"
        assert found.record <= one.record + 4


def test_a_write_of_prod_that_is_missing_is_reported_there():
    sent = [
        number
        for number, record in enumerate(ours(), 1)
        if isinstance(record, Write) and record.offset == PROD and record.value
    ]
    for number in sent:
        found = diverges([*ours()[: number - 1], *ours()[number:]])
        assert found is not None
        assert found.record in (number, number + 1)
        assert "not sent" in "\n".join(found.model_side)


def test_a_register_a_status_or_an_event_that_is_another_is_reported_at_its_record():
    for number, record in enumerate(ours(), 1):
        match type(record).__name__:
            case "Read":
                other = record._replace(value=record.value ^ 1)
            case "Dma":
                other = record._replace(status=(record.status + 1) % 5)
            case "EventRecord":
                other = record._replace(words=(record.words[0] ^ 1, *record.words[1:]))
            case _:
                continue
        if number <= PROBED:
            # Another identification: it shows where it is used, if at all.
            continue
        found = diverges([*ours()[: number - 1], other, *ours()[number:]])
        assert found is not None
        assert found.record == number


def mutate_a_sample(path: Path, count: int) -> None:
    """Deciding bits of used structures, and dropped invalidations, of one recording of Linux."""
    reader = Reader([lzma.decompress(path.read_bytes())], path.name)
    records, header = list(reader), reader.header.fields
    random = Random(path.name)

    def told(mutant: list[Record]) -> Divergence | None:
        return play(mutant, Both(), header).divergence

    bits = [(one, bit) for one in used_words(records, header) for bit in deciding_bits(one)]
    for one, bit in random.sample(bits, min(len(bits), count)):
        found = told(flipped(records, one, bit))
        assert found is not None, (path.name, one, bit)
        assert named(found, one.record), (path.name, one, bit, found)
    flushes = [one for one in commands(records) if one.command.name == "CMD_TLBI_NH_VA"]
    for one in random.sample(flushes, min(len(flushes), count // 4)):
        stale = stale_access(records, one, header)
        found = told(replaced(records, one))
        assert stale is None or (found is not None and found.record <= stale), (path.name, one)
        assert found is None or named(found, one.record), (path.name, one, found)


def test_mutants_of_a_short_recording_of_linux(corpus):
    path = corpus / "traces" / "vfio612.xz"
    if not path.is_file():
        pytest.skip(f"no recording at {path}")
    mutate_a_sample(path, 8)


def mutate_all_words(path: Path, count: int) -> None:
    """Any bit of any word, and any command in any way: told, or `silent` says why not."""
    reader = Reader([lzma.decompress(path.read_bytes())], path.name)
    records, header = list(reader), reader.header.fields
    random = Random(path.stem)
    kinds: dict[str, list[Flip]] = {}
    for one in words_of(records, header, random):
        if not silent(one):
            kinds.setdefault(one.what, []).append(one)
    for name in sorted(kinds):
        for one in random.sample(kinds[name], min(len(kinds[name]), count)):
            mutant = flip(records, one.record, one.offset, one.bit)
            found = play(mutant, Both(), header).divergence
            assert found is not None, (path.name, one)
            assert named(found, one.record), (path.name, one, found)
    sent = commands(records)
    alone = sum(
        isinstance(one.command, CmdSync) and isinstance(before.command, CmdSync)
        for before, one in pairwise(sent)
    )
    hint = CmdPrefetchConfig.build(sid=0xEE)
    for one in random.sample(sent, min(len(sent), count)):
        hinted = one.command.name == "CMD_PREFETCH_CONFIG"
        found = play(deleted(records, one), Both(), header).divergence
        assert found is not None, (path.name, one)
        if not hinted:
            found = play(replaced(records, one, hint), Both(), header).divergence
            assert found is not None, (path.name, one)
            assert named(found, one.record), (path.name, one, found)
        if isinstance(one.command, CmdSync | CmdTlbiNhVa) and not alone:
            assert play(resent(records, one), Both(), header).divergence is not None, one


@pytest.mark.soak
@pytest.mark.parametrize("name", SAMPLES)
def test_mutants_of_recordings_of_linux(corpus, name):
    path = corpus / "traces" / f"{name}.xz"
    if not path.is_file():
        pytest.skip(f"no recording at {path}")
    mutate_a_sample(path, 4)
    mutate_all_words(path, 2)


def test_a_dropped_configuration_command_is_reported_at_its_place():
    """The last CMD_CFGI_STE of an attach: the SMMU may have looked at the STE before."""
    seen = 0
    for one in invalidations():
        if one.command.name != "CMD_CFGI_STE":
            continue
        found = diverges(replaced(list(ours()), one))
        if found is not None:
            seen += 1
            assert named(found, one.record), (one, found)
    assert seen >= 2
