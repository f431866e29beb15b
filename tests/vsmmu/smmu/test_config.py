# SPDX-License-Identifier: BSD-2-Clause
"""Stream table, STE and CD: lookup, validity, caches (IHI 0070 §5, §4.3)."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdTlbiNsnhAll,
    Command,
)
from vsmmu.arch.registers import BY_NAME, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import PAGE, Memory
from vsmmu.smmu import Access, Features, Smmu
from vsmmu.smmu.config import CONFIG_ENTRIES

from .machine import AF, NOWHERE, RW_S2, Machine


def verdict(machine: Machine, sid: int, iova: int = 0) -> str:
    """Status of a read, or the name of the event it left."""
    outcome = machine.go(sid, iova)
    machine.events()
    return outcome.event.name if outcome.event is not None else outcome.status


# Stream table (§5.1, §6.3.24, §6.3.25).


def two_level(machine: Machine, split: int, log2size: int) -> int:
    table = machine.alloc(1 << 16)
    machine.write("CR0", 0xC)
    machine.write("STRTAB_BASE", StrtabBase.build(addr=table).raw)
    cfg = StrtabBaseCfg.build(log2size=log2size, split=split, fmt=1)
    machine.write("STRTAB_BASE_CFG", cfg.raw)
    machine.write("CR0", 0xD)
    return table


def test_linear_range(machine: Machine) -> None:
    machine.ste(255, config=4)
    assert verdict(machine, 255) == "bypass"
    assert verdict(machine, 256) == "C_BAD_STREAMID"
    assert verdict(machine, 1 << 40) == "C_BAD_STREAMID"
    assert verdict(machine, -1) == "C_BAD_STREAMID"


def test_sidsize_caps_the_range() -> None:
    machine = Machine(Features.default(sidsize=6))
    assert verdict(machine, 63) == "C_BAD_STE"
    assert verdict(machine, 64) == "C_BAD_STREAMID"


def test_bad_streamid_is_recorded_only_if_asked(machine: Machine) -> None:
    """§7.3.3: CR2.RECINVSID; the transaction is terminated either way."""
    machine.write("CR0", 0xC)
    machine.write("CR2", 0)
    machine.write("CR0", 0xD)
    outcome = machine.go(999, 0)
    assert (outcome.status, outcome.event) == ("fault", None)
    assert machine.events() == []


@pytest.mark.parametrize(
    ("span", "last"), [(1, 0), (2, 1), (8, 127), (9, 255), (0, -1), (10, -1), (12, -1), (31, -1)]
)
def test_span(machine: Machine, span: int, last: int) -> None:
    """§5.1: Span n covers 2^(n-1) STEs; 0, above SPLIT+1 and above 11 cover none."""
    table = two_level(machine, split=8, log2size=16)
    level2 = machine.alloc(64 * 256)
    machine.l1std(table + 8, span=span, l2ptr=level2)
    for index in range(256):
        machine.memory.write(level2 + 64 * index, bytes(Ste.build(v=1, config=4)))
    covered = [i for i in (0, 1, 2, 127, 128, 255) if verdict(machine, 256 + i) == "bypass"]
    assert covered == [i for i in (0, 1, 2, 127, 128, 255) if i <= last]
    if last < 255:
        assert verdict(machine, 256 + 255) == "C_BAD_STREAMID"


@pytest.mark.parametrize("split", [0, 5, 7, 31])
def test_reserved_split_acts_as_6(machine: Machine, split: int) -> None:
    """§6.3.25."""
    table = two_level(machine, split=split, log2size=12)
    level2 = machine.alloc(64 * 64)
    machine.l1std(table + 8 * 2, span=7, l2ptr=level2)
    machine.memory.write(level2 + 64 * 3, bytes(Ste.build(v=1, config=4)))
    assert verdict(machine, 2 * 64 + 3) == "bypass"


def test_level_2_pointer_is_aligned_to_its_table(machine: Machine) -> None:
    """§5.1."""
    table = two_level(machine, split=8, log2size=16)
    level2 = machine.alloc(64 * 256)
    machine.l1std(table, span=9, l2ptr=level2 + 0x1FC0)
    machine.memory.write(level2 + 64 * 5, bytes(Ste.build(v=1, config=4)))
    assert verdict(machine, 5) == "bypass"


def test_linear_base_is_aligned_to_log2size(machine: Machine) -> None:
    """§6.3.24: to the size LOG2SIZE says, even beyond SIDSIZE."""
    machine.write("CR0", 0xC)
    machine.write("STRTAB_BASE", machine.strtab + 0x1FC0)
    machine.write("CR0", 0xD)
    machine.ste(3, config=4)
    assert verdict(machine, 3) == "bypass"


def test_fetch_aborts(machine: Machine) -> None:
    """§7.3.4: FetchAddr names the structure."""
    table = two_level(machine, split=8, log2size=16)
    machine.l1std(table, span=9, l2ptr=NOWHERE)
    machine.go(5, 0)
    machine.write("CR0", 0xC)
    machine.write("STRTAB_BASE", NOWHERE)
    machine.write("CR0", 0xD)
    machine.go(0x300, 0)
    level2, level1 = machine.events()
    assert (level2.name, level2.fields["fetchaddr"].of(level2.words)) == (
        "F_STE_FETCH", NOWHERE + 5 * 64,
    )  # fmt: skip
    assert (level1.name, level1.fields["fetchaddr"].of(level1.words)) == (
        "F_STE_FETCH", NOWHERE + 3 * 8,
    )  # fmt: skip


def test_stream_tables_beyond_oas_abort() -> None:
    """§3.4.3: even if something answers there. FetchAddr above OAS is RES0 (§7.3.4)."""
    memory = Memory([(1 << 40, 1 << 20)])
    memory.write(1 << 40, bytes(Ste.build(v=1, config=4)))
    for oas, expected in ((48, "bypass"), (36, "F_STE_FETCH")):
        smmu = Smmu("smmu0", memory, Features.default(oas=oas))
        for name, value in (("STRTAB_BASE", 1 << 40), ("STRTAB_BASE_CFG", 4), ("CR0", 1)):
            smmu.mmio_write(BY_NAME[name].offset, BY_NAME[name].width // 8, value)
        outcome = smmu.translate(Access(0, 0, False))
        assert (outcome.event.name if outcome.event else outcome.status) == expected
        if outcome.event is not None:
            assert outcome.event.fields["fetchaddr"].of(outcome.event.words) == 0


# STE validity (§5.2.2).


def s1(**fields: int) -> dict[str, int]:
    return {"config": 5, **fields}


def s2(**fields: int) -> dict[str, int]:
    values = {
        "config": 6, "s2t0sz": 24, "s2sl0": 1, "s2ps": 5, "s2aa64": 1, "s2r": 1, "s2vmid": 7,
    }  # fmt: skip
    return {**values, **fields}


@pytest.mark.parametrize("config", [0, 1, 2, 3])
def test_abort_is_silent_whatever_else_the_ste_says(machine: Machine, config: int) -> None:
    machine.ste(1, config=config, s1stalld=1, s2tg=3, strw=3)
    assert verdict(machine, 1) == "abort"
    assert machine.smmu.counters["event.recorded"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        s1(s1stalld=1), s1(s1ctxptr=1 << 48),
        s2(s2aa64=0), s2(s2endi=1), s2(s2ha=1), s2(s2hd=1), s2(s2s=1), s2(s2tg=3),
        s2(s2sl0=3), s2(s2t0sz=40), s2(s2t0sz=15), s2(s2sl0=0), s2(s2sl0=2, s2t0sz=25),
        s2(s2t0sz=20), s2(s2t0sz=34), s2(s2ps=0, s2ttb=1 << 32), s2(s2ttb=1 << 48),
        s2(s2tg=1, s2sl0=3), s2(s2tg=2, s2sl0=3),
        {**s1(s1stalld=1), **s2(config=7)}, s2(config=7, s1ctxptr=1 << 48), s2(config=7, s2tg=3),
    ],
)  # fmt: skip
def test_illegal_ste(machine: Machine, fields: dict[str, int]) -> None:
    machine.ste(1, **fields)
    assert verdict(machine, 1) == "C_BAD_STE"


@pytest.mark.parametrize(
    "fields",
    [
        # Stage 1's fields are ignored without stage 1, stage 2's without stage 2.
        s2(s1stalld=1), s2(s1ctxptr=1 << 48), s2(strw=3), s2(s1cdmax=5), s2(s2t0sz=21),
        s2(s2t0sz=33), s2(s2ps=7), s2(eats=2),
        s2(s2tg=2, s2sl0=1, s2t0sz=30), s2(s2tg=1, s2sl0=1, s2t0sz=30),
    ],
)  # fmt: skip
def test_legal_ste(machine: Machine, fields: dict[str, int]) -> None:
    machine.ste(1, **{"s2ttb": machine.alloc(1 << 18), **fields})
    assert verdict(machine, 1) == "F_TRANSLATION"


@pytest.mark.parametrize(
    ("oas", "fields", "legal"),
    [
        (44, {"s2sl0": 2, "s2t0sz": 24}, True),
        (42, {"s2sl0": 2, "s2t0sz": 24}, False),
        (42, {"s2sl0": 2, "s2t0sz": 24, "s2tg": 2}, True),
        (40, {"s2sl0": 2, "s2t0sz": 24, "s2tg": 2}, False),
        (44, {"s2sl0": 2, "s2t0sz": 21, "s2tg": 1}, True),
        (44, {"s2sl0": 1, "s2t0sz": 19}, False),
    ],
)
def test_start_level_and_input_size_against_oas(
    oas: int, fields: dict[str, int], legal: bool
) -> None:
    """§5.2 S2SL0 and S2T0SZ; Arm ARM D8.2.2."""
    machine = Machine(Features.default(oas=oas))
    machine.ste(1, **s2(**fields, s2ttb=machine.alloc(1 << 16)))
    assert verdict(machine, 1) == ("F_TRANSLATION" if legal else "C_BAD_STE")


def test_table_bases_are_aligned_to_their_table(machine: Machine) -> None:
    """§5.2 S2TTB, §5.4 TTB0: low bits below the size of the first table are ignored."""
    root = machine.s2_root()
    machine.map(root, 0, 0x8F00_0000, flags=AF | RW_S2)
    machine.ste(1, config=6, **machine.s2_fields(root + 0x1FF0))
    assert verdict(machine, 1) == "ok"
    machine.map(root, 0, 0x8F00_0000)
    machine.s1_stream(2, root=root + 0xFF0)
    assert verdict(machine, 2) == "ok"
    # A 32-bit input indexes four entries: 32 bytes.
    small = machine.alloc(PAGE) + 0x40
    machine.map(small, 0, 0x8F00_0000)
    machine.s1_stream(3, root=small + 0x10, t0sz=32)
    assert verdict(machine, 3) == "ok"


def test_stage_1_ignores_stage_2_fields(machine: Machine) -> None:
    root = machine.alloc(PAGE)
    machine.ste(
        1,
        config=5,
        s1ctxptr=machine.cd(ttb0=root),
        s2tg=3,
        s2s=1,
        s2ttb=1 << 51,
        s1cdmax=31,
        s1fmt=2,
    )
    assert verdict(machine, 1) == "F_TRANSLATION"


@pytest.mark.parametrize(
    ("stages", "config", "name"),
    [("2", 5, "C_BAD_STE"), ("2", 7, "C_BAD_STE"), ("1", 6, "C_BAD_STE"), ("1", 7, "C_BAD_STE")],
)
def test_stage_that_is_not_there(stages: str, config: int, name: str) -> None:
    machine = Machine(Features.default(stages=stages))
    machine.ste(1, **s2(config=config))
    assert verdict(machine, 1) == name


def test_8_bit_vmid() -> None:
    machine = Machine(Features.default().replace(vmid16=0))
    machine.ste(1, **s2(s2vmid=0x100))
    machine.ste(2, config=5, s2vmid=0x100)
    machine.ste(3, config=4, s2vmid=0x100)
    assert [verdict(machine, sid) for sid in (1, 2, 3)] == ["C_BAD_STE", "C_BAD_STE", "bypass"]


def test_granule_that_is_not_there() -> None:
    machine = Machine(Features.default().replace(gran64k=0))
    machine.ste(1, **s2(s2tg=1, s2sl0=1, s2t0sz=30))
    machine.s1_stream(2, tg0=1)
    assert [verdict(machine, sid) for sid in (1, 2)] == ["C_BAD_STE", "C_BAD_CD"]


def test_substream_without_substreams(machine: Machine) -> None:
    """§7.3.9; a StreamID that aborts does so first."""
    machine.s1_stream(1)
    machine.ste(2, config=4)
    machine.ste(3, config=0)
    for sid in (1, 2):
        outcome = machine.go(sid, 0, ssid=5)
        assert outcome.event is not None
        assert (outcome.event.name, outcome.event.ssid) == ("C_BAD_SUBSTREAMID", 5)
    assert machine.go(3, 0, ssid=5).status == "abort"
    ssv = machine.go(4, 0, ssid=5).event
    assert ssv is not None
    assert (ssv.name, ssv.ssv, ssv.ssid) == ("C_BAD_STE", 1, 5)


# CD validity (§5.4.2).


@pytest.mark.parametrize(
    "fields",
    [
        {"v": 0}, {"a": 0}, {"s": 1}, {"aa64": 0}, {"ha": 1}, {"hd": 1}, {"endi": 1},
        {"t0sz": 15}, {"t0sz": 40}, {"tg0": 3}, {"ips": 0, "ttb0": 1 << 33}, {"ttb0": 1 << 48},
        {"epd1": 0, "tg1": 0, "t1sz": 25}, {"epd1": 0, "tg1": 2, "t1sz": 15},
        {"epd1": 0, "tg1": 2, "t1sz": 25, "ttb1": 1 << 50},
    ],
)  # fmt: skip
def test_illegal_cd(machine: Machine, fields: dict[str, int]) -> None:
    machine.ste(1, config=5, s1ctxptr=machine.cd(**fields))
    assert verdict(machine, 1) == "C_BAD_CD"


@pytest.mark.parametrize(
    "fields",
    [
        {"t1sz": 63, "tg1": 0, "ttb1": 1 << 51},
        {"epd0": 1, "t0sz": 63, "tg0": 3, "ttb0": 1 << 51},
        {"epd0": 1, "endi": 1},
        {"ips": 7},
        {"t0sz": 16},
        {"t0sz": 39},
    ],
)
def test_legal_cd(machine: Machine, fields: dict[str, int]) -> None:
    """§5.4: fields of a disabled table are not checked, IPS is capped."""
    machine.ste(1, config=5, s1ctxptr=machine.cd(**{"ttb0": machine.alloc(PAGE), **fields}))
    assert verdict(machine, 1) == "F_TRANSLATION"


def test_8_bit_asid() -> None:
    machine = Machine(Features.default().replace(asid16=0))
    machine.s1_stream(1, asid=0x100)
    assert verdict(machine, 1) == "C_BAD_CD"


def test_cd_fetch_abort(machine: Machine) -> None:
    machine.ste(1, config=5, s1ctxptr=NOWHERE)
    outcome = machine.go(1, 0x1000)
    event = outcome.event
    assert event is not None
    assert (event.name, event.fields["fetchaddr"].of(event.words)) == ("F_CD_FETCH", NOWHERE)


# Caches (§3.21.3, §4.3).


@pytest.mark.parametrize(
    ("commands", "fresh"),
    [
        ((CmdCfgiSte.build(sid=1, leaf=1),), True),
        ((CmdCfgiSte.build(sid=2, leaf=1),), False),
        ((CmdCfgiSteRange.build(sid=0, range=0),), True),
        ((CmdCfgiSteRange.build(sid=2, range=0),), False),
        ((CmdCfgiSteRange.build(sid=3, range=1),), True),
        ((CmdCfgiSteRange.build(range=31),), True),
        ((CmdCfgiCd.build(sid=1), CmdCfgiCdAll.build(sid=1), CmdTlbiNsnhAll.build()), False),
    ],
)
@pytest.mark.parametrize("was_valid", [True, False])
def test_ste_is_stale_until_named(
    machine: Machine, commands: tuple[Command, ...], fresh: bool, was_valid: bool
) -> None:
    """An invalid STE is cached like a valid one (§3.21.3)."""
    before, after = {"config": 4}, {"v": 0, "config": 4}
    if not was_valid:
        before, after = after, before
    steps = {}
    for sid in (1, 2, 3):
        machine.memory.write(machine.strtab + 64 * sid, bytes(Ste.build(**{"v": 1, **before})))
        steps[sid] = verdict(machine, sid)
    machine.memory.write(machine.strtab + 64, bytes(Ste.build(**{"v": 1, **after})))
    assert verdict(machine, 1) == steps[1]
    machine.command(*commands)
    assert (verdict(machine, 1) != steps[1]) == fresh


@pytest.mark.parametrize(
    ("command", "fresh"),
    [
        (CmdCfgiCd.build(sid=1, leaf=1), True),
        (CmdCfgiCd.build(sid=1, ssid=1), False),
        (CmdCfgiCd.build(sid=2), False),
        (CmdCfgiCdAll.build(sid=1), True),
        (CmdCfgiSte.build(sid=1, leaf=1), True),
        (CmdTlbiNsnhAll.build(), False),
    ],
)
def test_cd_is_stale_until_named(machine: Machine, command: Command, fresh: bool) -> None:
    root = machine.alloc(PAGE)
    cd = machine.cd(ttb0=root)
    machine.ste(1, config=5, s1ctxptr=cd)
    assert verdict(machine, 1) == "F_TRANSLATION"
    machine.cd(cd, v=0)
    assert verdict(machine, 1) == "F_TRANSLATION"
    machine.command(command)
    assert (verdict(machine, 1) == "C_BAD_CD") == fresh


def test_level_1_descriptor_needs_a_non_leaf_invalidation(machine: Machine) -> None:
    """§4.3.1: Leaf=1 keeps a valid L1STD; an invalid one is not kept at all."""
    table = two_level(machine, split=8, log2size=16)
    assert verdict(machine, 5) == "C_BAD_STREAMID"
    old, new = machine.alloc(64 * 256), machine.alloc(64 * 256)
    machine.memory.write(old + 64 * 5, bytes(Ste.build(v=1, config=4)))
    machine.l1std(table, span=9, l2ptr=old)
    assert verdict(machine, 5) == "bypass"
    machine.l1std(table, span=9, l2ptr=new)
    machine.command(CmdCfgiSte.build(sid=5, leaf=1))
    assert verdict(machine, 5) == "bypass"
    machine.command(CmdCfgiSte.build(sid=5, leaf=0))
    assert verdict(machine, 5) == "C_BAD_STE"


def test_caching_none_is_never_stale() -> None:
    machine = Machine(caching="none")
    machine.ste(1, config=4)
    assert verdict(machine, 1) == "bypass"
    machine.ste(1, config=0)
    assert verdict(machine, 1) == "abort"
    assert machine.smmu.counters["config.hit"] == 0


def test_a_failed_fetch_is_not_cached(machine: Machine) -> None:
    s2root = machine.s2_root()
    cd = machine.cd(ttb0=machine.alloc(PAGE))
    machine.ste(1, config=7, s1ctxptr=cd, **machine.s2_fields(s2root))
    assert verdict(machine, 1) == "F_TRANSLATION"
    machine.map(s2root, cd & -PAGE, cd & -PAGE, flags=AF | RW_S2)
    machine.go(1, 0)
    (event,) = machine.events()
    assert event.fields["cls"].of(event.words) == 1


def test_cache_is_bounded(machine: Machine) -> None:
    machine.write("CR0", 0xC)
    table = machine.alloc(64 << 12)
    machine.write("STRTAB_BASE", table)
    machine.write("STRTAB_BASE_CFG", 12)
    machine.write("CR0", 0xD)
    for sid in range(CONFIG_ENTRIES + 10):
        machine.memory.write(table + 64 * sid, bytes(Ste.build(v=1, config=4)))
        assert verdict(machine, sid) == "bypass"
    assert len(machine.smmu.config._streams) == CONFIG_ENTRIES
    assert verdict(machine, CONFIG_ENTRIES + 9) == "bypass"
    assert machine.smmu.counters["config.hit"] == 1


def test_two_smmus_share_memory_and_nothing_else(machine: Machine) -> None:
    """The same StreamID on two SMMUs is two streams, and maintenance on one is not the other's."""
    other = Smmu("smmu1", machine.memory, machine.features)
    table = machine.alloc(64 * 256)
    for name, value in (("STRTAB_BASE", table), ("STRTAB_BASE_CFG", 8), ("CR0", 1)):
        other.mmio_write(BY_NAME[name].offset, BY_NAME[name].width // 8, value)
    machine.ste(1, config=4)
    machine.memory.write(table + 64, bytes(Ste.build(v=1, config=0)))
    access = Access(1, 0x1000, False)
    assert (machine.smmu.translate(access).status, other.translate(access).status) == (
        "bypass", "abort",
    )  # fmt: skip
    machine.memory.write(table + 64, bytes(Ste.build(v=1, config=4)))
    machine.command(CmdCfgiSteRange.build(range=31))
    assert other.translate(access).status == "abort"
