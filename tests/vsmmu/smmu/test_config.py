# SPDX-License-Identifier: BSD-2-Clause
"""Validity of STE and CD (IHI 0070 §5.2.2, §5.4.2)."""

from __future__ import annotations

import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, NOWHERE, RW_S2, Machine
from .test_strtab import verdict

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
