# SPDX-License-Identifier: BSD-2-Clause
"""The builders of `vsmmu.testing`, by what a physical SMMU makes of what they build."""

from __future__ import annotations

import re

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdSync, CmdTlbiNhAll, Command
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.events import CBadStreamid, FTranslation
from vsmmu.arch.pagetable import CONTIGUOUS, G4K, G16K, G64K, Granule
from vsmmu.arch.registers import Cerror
from vsmmu.arch.stream_table import L1Std, S1Fmt, Ste, SteConfig
from vsmmu.memory import Memory
from vsmmu.smmu import Features
from vsmmu.testing.bare import BareSmmu, make_cd, make_stage2
from vsmmu.testing.space import Space
from vsmmu.testing.streams import CdTable, LinearStreamTable, TwoLevelStreamTable
from vsmmu.testing.tables import Stage1Tables, Stage2Tables

RAM = 0x8000_0000
EVERYTHING = Features.everything().replace(sidsize=16)
FORMS = [(G4K, False), (G16K, False), (G64K, True), (G4K, True), (G16K, True)]


def space(size: int = 0x100_0000) -> Space:
    return Space(Memory([(RAM, size)]), RAM, size)


def stream(
    stage: int, granule: Granule, wide: bool
) -> tuple[BareSmmu, Stage1Tables | Stage2Tables]:
    bare = BareSmmu(EVERYTHING, caching="hostile")
    tables: Stage1Tables | Stage2Tables
    if stage == 1:
        tables = Stage1Tables(bare.space, granule, input_bits=47, wide=wide)
        contexts = CdTable(bare.space)
        contexts.write(make_cd(tables, EVERYTHING))
        ste = Ste.build(v=1, config=SteConfig.S1, **contexts.ste_fields())
    else:
        tables = Stage2Tables(bare.space, granule, input_bits=47, wide=wide)
        ste = Ste.build(v=1, config=SteConfig.S2, **make_stage2(tables, EVERYTHING))
    bare.streams.write(1, ste)
    # Such an SMMU has looked at the STE already.
    bare.issue(CmdCfgiSte.build(sid=1))
    return bare, tables


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("granule", "wide"), FORMS)
def test_every_leaf_of_every_granule_translates(stage: int, granule: Granule, wide: bool) -> None:
    bare, tables = stream(stage, granule, wide)
    address = 0
    for level in (*tables.block_levels, granule.page_level):
        for contiguous in (False, True):
            if level < tables.start or (contiguous and level not in CONTIGUOUS[granule.name]):
                continue
            span = tables.span(level, contiguous=contiguous)
            address = -(-address // span) * span
            output = (1 << (51 if wide else 46)) + address
            tables.map(address, output, span, level=level, contiguous=contiguous)
            last = span - granule.page_size
            for offset in (0, last):
                outcome = bare.access(1, address + offset, write=True)
                assert (outcome.status, outcome.pa) == ("ok", output + offset)
            assert tables.find(address).level == level
            assert bool(tables.leaf((tables.find(address).word,)).contig) is contiguous
            address += span
    assert bare.access(1, address).status == "fault"


def test_the_largest_leaf_that_fits_is_taken() -> None:
    tables = Stage1Tables(space(), input_bits=39)
    tables.map(0x3FFF_F000, 0x8000_0000 - 0x1000, 0x4000_0000 + 0x20_0000 + 0x1000)
    assert [tables.find(a).level for a in (0x3FFF_F000, 0x4000_0000, 0x8000_0000)] == [3, 1, 2]
    assert tables.find(0x8020_0000).output is None


def test_unmap_and_readonly() -> None:
    bare = BareSmmu()
    tables = bare.stage1(1)
    page = bare.page()
    tables.map(0x1000, page, 0x1000, write=False)
    assert bare.dma(1, 0x1000, 4).ok
    assert not bare.dma(1, 0x1000, b"x").ok
    tables.unmap(0x1000, 0x1000)
    bare.issue(CmdTlbiNhAll.build())
    assert not bare.dma(1, 0x1000, 4).ok
    assert [event.name for event in bare.events()] == ["F_PERMISSION", "F_TRANSLATION"]


@pytest.mark.parametrize(
    ("arguments", "fields", "text"),
    [
        ((1, 0, 4096), {}, "0x1 -> 0x0+0x1000 is not whole 0x1000 bytes"),
        ((0, 0, 0), {}, "0x0 -> 0x0+0x0 is not whole 0x1000 bytes"),
        ((1 << 39, 0, 4096), {}, "0x8000000000+0x1000 does not fit 39 bits"),
        ((0, 1 << 50, 4096), {}, "S1Leaf cannot hold output address 0x4000000000000"),
        ((0, 0, 1 << 30), {"level": 0}, "no leaves at level 0 with the 4K granule here"),
        ((0, 0, 4096), {"contiguous": True}, "0x0 -> 0x0+0x1000 is not whole 0x10000 bytes"),
        ((0x40_0000, 0, 4096), {}, "0x400000 is mapped with another size"),
    ],
)
def test_what_cannot_be_mapped(
    arguments: tuple[int, int, int], fields: dict[str, int], text: str
) -> None:
    tables = Stage1Tables(space(), input_bits=39)
    tables.map(0x40_0000, 0, 0x20_0000)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        tables.map(*arguments, **fields)


def test_a_part_of_a_block_is_not_unmapped() -> None:
    tables = Stage1Tables(space(), input_bits=39)
    tables.map(0, 0, 0x20_0000)
    with pytest.raises(ValueError, match="0x1000 is part of a block of 0x200000 bytes"):
        tables.unmap(0x1000, 0x1000)


@pytest.mark.parametrize(
    ("granule", "bits", "start"),
    [(G4K, 25, 2), (G4K, 21, 3), (G4K, 40, 1), (G4K, 48, 0), (G16K, 48, 1), (G64K, 48, 1)],
)
def test_stage_2_starts_as_low_as_it_may(granule: Granule, bits: int, start: int) -> None:
    """Arm ARM D8.2.2: up to 16 concatenated tables."""
    assert Stage2Tables(space(), granule, input_bits=bits).start == start


def test_no_first_level_for_a_size() -> None:
    with pytest.raises(ValueError, match="no S2SL0 for 48 bits of the 4K granule from level 1"):
        Stage2Tables(space(), input_bits=48, start=1)


def test_nested_stages() -> None:
    bare = BareSmmu()
    under = Stage2Tables(bare.space)
    page = bare.page()
    over = bare.stage1(1, under=under)
    under.map(RAM, RAM, 0x1000_0000)
    over.map(0x1000, page, 0x1000)
    assert bare.dma(1, 0x1000, b"data").ok
    assert bare.memory.read(page, 4) == b"data"


# Stream tables and CD tables.


def test_two_level_stream_table() -> None:
    bare = BareSmmu(sid_bits=16)
    assert isinstance(bare.streams, TwoLevelStreamTable)
    bypass = Ste.build(v=1, config=SteConfig.BYPASS)
    bare.streams.write(0x1234, bypass)
    assert bare.streams.read(0x1234) == bypass
    assert bare.access(0x1234, 0x5000).pa == 0x5000
    assert bare.access(0x1334, 0x5000).status == "fault"
    bare.streams.describe(0x1234, L1Std.build(span=1, l2ptr=0))
    bare.issue(CmdCfgiSte.build(sid=0x1234))
    assert bare.access(0x1234, 0x5000).status == "fault"
    assert {type(event) for event in bare.events()} == {CBadStreamid}
    with pytest.raises(ValueError, match="StreamID 0x1334 has no second-level table"):
        bare.streams.read(0x1334)
    with pytest.raises(ValueError, match=r"StreamID 0x10000 is beyond a table of 2\^16 STEs"):
        bare.streams.write(0x10000, bypass)
    with pytest.raises(ValueError, match="SPLIT is 6, 8 or 10, not 7"):
        TwoLevelStreamTable(bare.space, 16, 7)


@pytest.mark.parametrize("fmt", list(S1Fmt))
def test_cd_tables(fmt: S1Fmt) -> None:
    bare = BareSmmu(EVERYTHING)
    contexts = CdTable(bare.space, 12, fmt)
    bare.streams.write(
        1, Ste.build(v=1, config=SteConfig.S1, s1dss=2, **contexts.ste_fields())
    )  # fmt: skip
    pages = {ssid: bare.page() for ssid in (0, 5, 0xFFF)}
    for ssid, page in pages.items():
        tables = Stage1Tables(bare.space)
        tables.map(0x1000, page, 0x1000)
        contexts.write(make_cd(tables, bare.features, asid=ssid), ssid)
        assert contexts.read(ssid).asid == ssid
    for ssid, page in pages.items():
        assert bare.dma(1, 0x1000, bytes([ssid & 0xFF]), ssid=ssid or None).ok
        assert bare.memory.read(page, 1) == bytes([ssid & 0xFF])
    with pytest.raises(ValueError, match="SubstreamID 0x1000 is beyond"):
        contexts.write(Cd(), 0x1000)


def test_what_two_level_cd_tables_lack() -> None:
    contexts = CdTable(space(), 8, S1Fmt.TWO_LEVEL_4K)
    with pytest.raises(ValueError, match="SubstreamID 0x47 has no second-level table"):
        contexts.read(0x47)
    contexts.describe(0x47, L1Cd.build(v=1, l2ptr=RAM))
    assert contexts.address(0x47) == RAM + 7 * 64
    with pytest.raises(ValueError, match="a linear CD table has no level 1 descriptors"):
        CdTable(space(), 8).descriptor(0)


def test_a_linear_table_keeps_its_size() -> None:
    table = LinearStreamTable(space(), 4)
    assert table.address(15) == table.place.base + 15 * 64
    with pytest.raises(ValueError, match="StreamID 0x10 is beyond"):
        table.address(16)


def test_a_space_is_bounded() -> None:
    small = space(0x3000)
    small.page()
    with pytest.raises(ValueError, match="0x3000 bytes do not fit, 0x2000 are left in this space"):
        small.page(3)
    with pytest.raises(ValueError, match=r"0x1000\+0x1000 is not RAM"):
        Space(small.memory, 0x1000, 0x1000).page()


# Rings.


def test_an_error_in_the_command_queue_can_be_repaired() -> None:
    bare = BareSmmu()
    bad = Command((0xFF, 0))
    with pytest.raises(RuntimeError, match="the queue stopped at <Command op=0xff>, ERR=1"):
        bare.issue(bad)
    assert bare.commands.error == Cerror.ILL
    bare.commands.replace(bare.commands.cons, CmdSync.build())
    bare.registers.write("GERRORN", bare.registers.read("GERROR"))
    bare.run()
    assert bare.commands.empty
    assert "gerror" in bare.irqs


def test_more_commands_than_there_is_room() -> None:
    bare = BareSmmu(boot=False)
    bare.commands.program()
    assert bare.commands.room == 256
    bare.commands.put(*[CmdSync.build()] * 250)
    with pytest.raises(ValueError, match="7 commands, room for 6"):
        bare.commands.put(*[CmdSync.build()] * 7)


def test_overflow_is_taken_and_acknowledged() -> None:
    bare = BareSmmu()
    bare.stage1(1)
    for round_ in range(2):
        for _ in range(200):
            bare.access(1, 0x1000)
            bare.run()
        seen = bare.events()
        assert len(seen) == 128
        assert all(isinstance(event, FTranslation) for event in seen)
        assert bare.eventq.overflows == round_ + 1
    assert bare.events() == []
