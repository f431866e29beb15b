# SPDX-License-Identifier: BSD-2-Clause
"""A word of a structure that is unlike all others in one bit is told, used or not."""

from __future__ import annotations

import pytest

from tests.vsmmu.recording.tape import (
    CMDQ,
    LEVEL2,
    PAGE,
    RAM,
    STRTAB,
    Driver,
    Tape,
    play,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.pagetable import S1Leaf, TableDesc
from vsmmu.arch.stream_table import Ste
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Divergence, Kind
from vsmmu.recording.format import Mem, Record
from vsmmu.recording.unlike import FEW, MANY

UNUSED = 0x40_0000


def mapped(pages: int = FEW + 2) -> tuple[Tape, Driver, list[int]]:
    """A stream with pages that no access uses; the records of their descriptors."""
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    for asid in (1, 2, 3):
        driver.attach(7 + asid, asid)
    made = [driver.map(1, UNUSED + n * PAGE, 0x4080_0000 + n * PAGE) for n in range(pages)]
    tape.dma(10, 0)
    return tape, driver, made


def flip(records: list[Record], number: int, bit: int, word: int = 0) -> list[Record]:
    written = records[number - 1]
    assert isinstance(written, Mem)
    data = bytearray(written.data)
    data[8 * word + bit // 8] ^= 1 << bit % 8
    return [*records[: number - 1], Mem(written.pa, bytes(data)), *records[number:]]


def unlike(records: list[Record]) -> Divergence | None:
    found = play(records, Both()).divergence
    assert found is None or found.kind == Kind.UNLIKE, found
    return found


@pytest.mark.parametrize(
    "field", ["valid", "table", "attrindx", "ap1", "sh", "af", "ng", "contig", "uxn", "pbha"]
)
def test_a_page_that_nobody_uses(field):
    tape, _, made = mapped()
    bit = S1Leaf.fields[field].low
    found = unlike(flip(tape.records, made[1], bit))
    assert found is not None
    assert found.record == made[1]
    assert f"bit {bit} ({field}) is" in found.model
    # Two are no accident.
    assert unlike(flip(flip(tape.records, made[1], bit), made[2], bit)) is None


@pytest.mark.parametrize("field", ["ap2", "oa"])
def test_a_page_that_may_rightly_be_another(field):
    tape, _, made = mapped()
    assert unlike(flip(tape.records, made[1], S1Leaf.fields[field].low)) is None


def test_few_pages_have_no_template():
    tape, _, made = mapped(FEW)
    assert unlike(flip(tape.records, made[1], S1Leaf.sh.low)) is None


def test_a_page_that_is_not_in_ram():
    far = RAM[0].bit_length()
    tape, _, made = mapped(MANY + 2)
    found = unlike(flip(tape.records, made[1], far))
    assert found is not None
    assert found.record == made[1]
    assert "in RAM in 64 or more" in found.model
    tape, _, made = mapped(MANY - 2)
    assert unlike(flip(tape.records, made[1], far)) is None


def test_what_is_removed_is_0():
    tape, driver, _ = mapped()
    removed = []
    for n in range(FEW + 1):
        removed.append(tape.mem(driver.leaf(1, UNUSED + n * PAGE), 0))
        driver.flush(1, UNUSED + n * PAGE)
    tape.dma(10, 0)
    for bit in (1, 7, 30, 63):
        found = unlike(flip(tape.records, removed[2], bit))
        assert found is not None
        assert found.record == removed[2]


def test_a_table():
    tape, driver, _ = mapped()
    links = []
    for n in range(4):
        links.append(len(tape.records) + 1)
        driver.map(1, 0x4000_0000 + n * 0x20_0000, 0x4080_0000)
    tape.dma(10, 0)
    links[0] += 1
    for field in ("uxntable", "nstable", "table"):
        found = unlike(flip(tape.records, links[2], TableDesc.fields[field].low))
        assert found is not None
        assert found.record == links[2]


def test_a_table_that_is_linked_in_two_steps():
    tape, driver, _ = mapped()
    for n in range(4):
        number = len(tape.records) + 1
        driver.map(1, 0x4000_0000 + n * 0x20_0000, 0x4080_0000)
    tape.dma(10, 0)
    mutant = flip(tape.records, number, 55)
    assert unlike(mutant) is not None
    assert unlike([*mutant, tape.records[number - 1]]) is None


def place(tape: Tape, pa: int) -> int:
    """The first record that wrote an address."""
    return next(
        number for number, one in enumerate(tape.records, 1)
        if isinstance(one, Mem) and one.pa == pa
    )  # fmt: skip


def test_an_ste_that_nobody_uses():
    tape, _, _ = mapped()
    number = place(tape, LEVEL2 + 3 * Ste.size)
    for bit, word in ((55, 0), (60, 3)):
        found = unlike(flip(tape.records, number, bit, word))
        assert found is not None
        assert found.record == number
    # What one device alone may have.
    for name in ("config", "v", "eats"):
        field = Ste.fields[name]
        assert unlike(flip(tape.records, number, field.low, field.word)) is None


@pytest.mark.parametrize("bit", range(5))
def test_one_ste_of_many(bit):
    """One that bypasses is no accident."""
    tape, _, _ = mapped()
    numbers = [
        tape.mem(LEVEL2 + sid * Ste.size, *Ste.build(v=1).words) for sid in range(100, 101 + MANY)
    ]
    tape.dma(10, 0)
    found = unlike(flip(tape.records, numbers[2], bit))
    assert (found.record if found else 0) == (0 if bit == Ste.config.low + 2 else numbers[2])


def test_a_cd_that_nobody_uses():
    tape, _, _ = mapped()
    pointers = [
        int.from_bytes(one.data[:8], "little") for one in tape.records
        if isinstance(one, Mem) and STRTAB < one.pa < CMDQ and len(one.data) == 8
    ]  # fmt: skip
    cd = Ste((pointers[0], *(0,) * 7)).s1ctxptr
    number = place(tape, cd)
    field = Cd.fields["sh0"]
    found = unlike(flip(tape.records, number, field.low, field.word))
    assert found is not None
    assert found.record == number
    # An address space, and what one device alone may have.
    for name in ("asid", "s", "ha"):
        field = Cd.fields[name]
        assert unlike(flip(tape.records, number, field.low, field.word)) is None


def test_a_reserved_bit_of_a_level_1_descriptor():
    tape, _, _ = mapped()
    number = place(tape, STRTAB)
    found = unlike(flip(tape.records, number, 60))
    assert found is not None
    assert (found.record, found.model) == (number, f"{1 << 60:#x} is reserved")


@pytest.mark.parametrize("bit", [1, 6, 50])
def test_one_level_1_descriptor_of_several(bit):
    tape, _, _ = mapped()
    numbers = [tape.mem(STRTAB + 8 * n, 9 | LEVEL2 + n * 0x4000) for n in (1, 2, 3)]
    tape.dma(10, 0)
    found = unlike(flip(tape.records, numbers[1], bit))
    assert found is not None
    assert found.record == numbers[1]
