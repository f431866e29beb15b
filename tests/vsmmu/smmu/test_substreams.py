# SPDX-License-Identifier: BSD-2-Clause
"""Substreams: S1CDMax, S1DSS, CD tables of one and two levels (IHI 0070 §3.3.2, §5.2, §5.3).

Also §7.3.7 and §7.3.9. No second opinion: no other model that is compared with has substreams.
Expected outcomes are derived by hand from the clauses that each test names.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.context import L1Cd
from vsmmu.arch.events import Event, EventClass
from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine

SUBSTREAMS = Features.default().replace(ssidsize=12, cd2l=1)
PA = 0x8F00_0000
DATA = 0x5000
NOT_GLOBAL = 1 << 11


@pytest.fixture
def machine() -> Machine:
    return Machine(SUBSTREAMS)


def field(event: Event | None, name: str) -> int:
    assert event is not None
    return event.fields[name].of(event.words)


def context(machine: Machine, ssid: int, address: int, **fields: int) -> int:
    """A CD whose table maps DATA to a page of its own; returns that page."""
    root, page = machine.alloc(PAGE), PA + ssid * PAGE
    machine.map(root, DATA, page, flags=AF | RW_S1 | NOT_GLOBAL)
    machine.cd(address, ttb0=root, asid=ssid + 1, **fields)
    return page


def linear(
    machine: Machine, count: int, *, sid: int = 1, bits: int | None = None, **ste: int
) -> int:
    """A stream with `count` CDs in a linear table; returns the table."""
    bits = (count - 1).bit_length() if bits is None else bits
    table = machine.alloc(64 << bits)
    for ssid in range(count):
        context(machine, ssid, table + 64 * ssid)
    machine.ste(sid, **{"config": 5, "s1ctxptr": table, "s1cdmax": bits, **ste})
    return table


def two_level(machine: Machine, fmt: int, bits: int, *ssids: int, **ste: int) -> int:
    """A stream with a two-level CD table that has these CDs; returns the level 1 table."""
    split = {1: 6, 2: 10}[fmt]
    level1 = machine.alloc(max(64, 8 << max(0, bits - split)))
    leaves: dict[int, int] = {}
    for ssid in ssids:
        index = ssid >> split
        if index not in leaves:
            leaves[index] = machine.alloc(64 << split)
            entry = L1Cd.build(v=1, l2ptr=leaves[index])
            machine.memory.write(level1 + 8 * index, bytes(entry))
        context(machine, ssid, leaves[index] + 64 * (ssid & (1 << split) - 1))
    machine.ste(1, **{"config": 5, "s1ctxptr": level1, "s1cdmax": bits, "s1fmt": fmt, **ste})
    return level1


def verdict(machine: Machine, ssid: int | None, sid: int = 1, iova: int = DATA) -> int | str:
    """Physical address, or the name of the event, or the status."""
    outcome = machine.go(sid, iova, ssid=ssid)
    machine.events()
    if outcome.event is not None:
        return outcome.event.name
    return outcome.pa if outcome.pa is not None else outcome.status


# Which CD (§5.2 S1CDMax, S1DSS).


@pytest.mark.parametrize(
    ("bits", "dss", "ssid", "expected"),
    [
        (0, 0, None, PA),
        (0, 2, None, PA),
        (0, 0, 0, "C_BAD_SUBSTREAMID"),
        (0, 0, 1, "C_BAD_SUBSTREAMID"),
        (0, 2, 0, "C_BAD_SUBSTREAMID"),
        (2, 0, 0, PA),
        (2, 0, 1, PA + PAGE),
        (2, 0, 3, PA + 3 * PAGE),
        (2, 0, 4, "C_BAD_SUBSTREAMID"),
        (2, 2, 4, "C_BAD_SUBSTREAMID"),
        (2, 0, 0xF_FFFF, "C_BAD_SUBSTREAMID"),
        (2, 0, None, "F_STREAM_DISABLED"),
        (2, 3, None, "F_STREAM_DISABLED"),
        (2, 3, 0, PA),
        (2, 1, None, DATA),
        (2, 1, 0, PA),
        (2, 1, 3, PA + 3 * PAGE),
        (2, 2, None, PA),
        (2, 2, 0, "F_STREAM_DISABLED"),
        (2, 2, 1, PA + PAGE),
    ],
)
def test_decision_table(
    machine: Machine, bits: int, dss: int, ssid: int | None, expected: int | str
) -> None:
    linear(machine, 1 << bits, bits=bits, s1dss=dss)
    assert verdict(machine, ssid) == expected


@pytest.mark.parametrize("config", [4, 6])
@pytest.mark.parametrize("ssid", [0, 1, 4095])
def test_substream_without_stage_1(machine: Machine, config: int, ssid: int) -> None:
    """§3.3.2: with a SubstreamID and no stage 1 the transaction is terminated."""
    machine.ste(1, config=config, **machine.s2_fields(machine.s2_root()), s1cdmax=4)
    event = machine.go(1, 0, ssid=ssid).event
    assert (field(event, "type"), field(event, "ssid")) == (0x08, ssid)


@pytest.mark.parametrize("config", [0, 3])
def test_abort_comes_before_the_substream(machine: Machine, config: int) -> None:
    """§7.3: Config=0xx is silent whatever the transaction brings."""
    machine.ste(1, config=config, s1cdmax=31, s1fmt=3)
    assert verdict(machine, 5) == "abort"


def test_substream_while_the_smmu_is_off(machine: Machine) -> None:
    machine.write("CR0", 0xC)
    assert machine.go(1, 0x1000, ssid=7) == machine.go(1, 0x1000)


def test_bypass_of_stage_1_reads_no_cd(machine: Machine) -> None:
    """§5.2 S1DSS=01: no CD is fetched, so a bad pointer does not matter; IAS is checked."""
    machine.ste(1, config=5, s1ctxptr=NOWHERE, s1cdmax=3, s1dss=1)
    assert verdict(machine, None) == DATA
    assert machine.smmu.counters["walk.cd"] == 0
    event = machine.go(1, 1 << 48).event
    assert event is not None
    assert (event.name, field(event, "s2"), field(event, "cls")) == (
        "F_ADDR_SIZE", 0, EventClass.IN,
    )  # fmt: skip
    assert verdict(machine, 1) == "F_CD_FETCH"


def test_bypass_of_stage_1_meets_stage_2(machine: Machine) -> None:
    """§5.2 S1DSS=01 with Config=111: the address is an IPA."""
    root = machine.s2_root()
    machine.map(root, DATA, PA, flags=AF | RW_S2)
    machine.ste(
        1, config=7, s1ctxptr=NOWHERE, s1cdmax=3, s1dss=1, **machine.s2_fields(root)
    )  # fmt: skip
    assert verdict(machine, None) == PA
    event = machine.go(1, DATA + PAGE).event
    assert event is not None
    assert (event.name, field(event, "s2"), field(event, "cls")) == (
        "F_TRANSLATION", 1, EventClass.IN,
    )  # fmt: skip


def test_events_say_which_substream(machine: Machine) -> None:
    """§7.3: SSV and SubstreamID of the transaction; without one both are 0.

    F_STREAM_DISABLED (§7.3.7) has neither; SSV is RES0 in C_BAD_SUBSTREAMID (§7.3.9).
    """
    linear(machine, 4, s1dss=2)
    with_ssid = machine.go(1, 0x9000, ssid=3).event
    without = machine.go(1, 0x9000).event
    disabled = machine.go(1, 0x9000, ssid=0).event
    unknown = machine.go(1, 0x9000, ssid=0x21).event
    for event, expected in ((with_ssid, (0x10, 1, 3)), (without, (0x10, 0, 0)),
                            (disabled, (0x06, 0, 0)), (unknown, (0x08, 0, 0x21))):  # fmt: skip
        assert (field(event, "type"), field(event, "ssv"), field(event, "ssid")) == expected


def test_a_context_of_each_substream_has_its_own_faults(machine: Machine) -> None:
    """§5.4 CD.R: one substream's CD suppresses its records, the other's does not."""
    table = linear(machine, 2, bits=2)
    context(machine, 1, table + 64, r=0)
    assert machine.go(1, 0x9000, ssid=1).event is None
    assert machine.go(1, 0x9000, ssid=0).event is not None


# Legality (§5.2).


@pytest.mark.parametrize(
    ("features", "ste", "expected"),
    [
        ({"ssidsize": 4}, {"s1cdmax": 4}, PA),
        ({"ssidsize": 4}, {"s1cdmax": 5}, "C_BAD_STE"),
        ({"ssidsize": 20}, {"s1cdmax": 21}, "C_BAD_STE"),
        ({"ssidsize": 0}, {"s1cdmax": 31}, PA),
        ({"ssidsize": 0}, {"s1cdmax": 31, "s1fmt": 1, "s1dss": 0}, PA),
        ({"ssidsize": 4}, {"s1cdmax": 0, "s1fmt": 2, "s1dss": 0}, PA),
        ({"cd2l": 0}, {"s1cdmax": 2, "s1fmt": 1}, "C_BAD_STE"),
        ({"cd2l": 0}, {"s1cdmax": 2, "s1fmt": 2}, "C_BAD_STE"),
        ({"cd2l": 0}, {"s1cdmax": 2, "s1fmt": 3}, PA),
        ({"cd2l": 0}, {"s1cdmax": 0, "s1fmt": 1}, PA),
    ],
)
def test_legality(features: dict[str, int], ste: dict[str, int], expected: int | str) -> None:
    machine = Machine(SUBSTREAMS.replace(**features))
    linear(machine, 1, bits=5, **{"s1dss": 2, **ste})
    assert verdict(machine, None) == expected


def test_substream_beyond_ssidsize() -> None:
    """§6.3.2 SSIDSIZE=0: no transaction may bring a SubstreamID."""
    machine = Machine(Features.default())
    machine.s1_stream(1)
    assert verdict(machine, 0) == "C_BAD_SUBSTREAMID"


def test_linear_table_is_aligned_to_its_size(machine: Machine) -> None:
    """§5.2 S1ContextPtr: bits within the table are RES0, and ignored here."""
    table = linear(machine, 8, s1dss=2)
    machine.ste(1, config=5, s1ctxptr=table + 0x40, s1cdmax=3, s1dss=2)
    assert verdict(machine, 5) == PA + 5 * PAGE
    machine.ste(2, config=5, s1ctxptr=table + 0x40)
    assert verdict(machine, None, sid=2) == PA + PAGE


# Two-level tables (§5.3).


@pytest.mark.parametrize(("fmt", "split"), [(1, 6), (2, 10)])
def test_two_level_table(machine: Machine, fmt: int, split: int) -> None:
    last = (1 << 12) - 1
    ssids = (1, (1 << split) - 1, 1 << split, last)
    two_level(machine, fmt, 12, *ssids)
    assert [verdict(machine, ssid) for ssid in ssids] == [PA + s * PAGE for s in ssids]
    # CDs in a leaf that nobody filled are zero: V=0.
    assert verdict(machine, 2) == "C_BAD_CD"
    assert verdict(machine, 1 << 12) == "C_BAD_SUBSTREAMID"


@pytest.mark.parametrize("fmt", [1, 2])
def test_small_two_level_table_uses_one_descriptor(machine: Machine, fmt: int) -> None:
    """§5.3: S1CDMax of at most 6 (10) needs one L1CD."""
    two_level(machine, fmt, 3, 0, 7)
    assert [verdict(machine, s) for s in (0, 7, 8)] == [PA, PA + 7 * PAGE, "C_BAD_SUBSTREAMID"]


def test_invalid_l1cd(machine: Machine) -> None:
    """§5.3 V=0: C_BAD_SUBSTREAMID with the index of the CD, also for a default substream."""
    two_level(machine, 1, 12, 64, s1dss=2)
    event = machine.go(1, DATA, ssid=200).event
    assert (field(event, "type"), field(event, "ssid")) == (0x08, 200)
    event = machine.go(1, DATA).event
    assert (field(event, "type"), field(event, "ssid")) == (0x08, 0)


def test_l1cd_pointer_beyond_oas(machine: Machine) -> None:
    """§3.4.3, §5.3 L2Ptr: without stage 2 it is C_BAD_SUBSTREAMID."""
    level1 = two_level(machine, 1, 12, 1)
    machine.memory.write(level1 + 8, bytes(L1Cd.build(v=1, l2ptr=1 << 49)))
    assert verdict(machine, 64) == "C_BAD_SUBSTREAMID"


def test_l1cd_pointer_of_64k_tables_is_aligned(machine: Machine) -> None:
    """§5.3: bits 15:12 are RES0 with 64K leaves, and ignored here."""
    level1 = two_level(machine, 2, 12, 5)
    word = machine.memory.read64(level1)
    assert word is not None
    machine.memory.write64(level1, word | 0xF000)
    assert verdict(machine, 5) == PA + 5 * PAGE


def test_fetch_aborts(machine: Machine) -> None:
    """§7.3.10: FetchAddr is that of the L1CD or of the CD."""
    level1 = two_level(machine, 1, 12, 1)
    machine.memory.write(level1 + 8, bytes(L1Cd.build(v=1, l2ptr=NOWHERE)))
    event = machine.go(1, DATA, ssid=64 + 5).event
    assert (field(event, "type"), field(event, "fetchaddr")) == (0x09, NOWHERE + 5 * 64)
    assert (field(event, "ssv"), field(event, "ssid")) == (1, 69)
    machine.ste(2, config=5, s1ctxptr=NOWHERE, s1cdmax=12, s1fmt=1)
    event = machine.go(2, DATA, ssid=64 + 5).event
    assert (field(event, "type"), field(event, "fetchaddr")) == (0x09, NOWHERE + 8)


# Through stage 2.


def nested(machine: Machine, fmt: int, *ssids: int) -> tuple[int, int]:
    """A nested stream whose RAM is mapped page by page on demand; (stage 2 root, level 1)."""
    root = machine.s2_root()
    level1 = two_level(machine, fmt, 12, *ssids, config=7, **machine.s2_fields(root))
    return root, level1


def faults_of(machine: Machine, root: int, ssid: int) -> list[tuple[str, int, int]]:
    """(name, CLASS, IPA) of each stage 2 fault until the access succeeds, mapping each page."""
    found = []
    for _ in range(12):
        outcome = machine.go(1, DATA, ssid=ssid)
        if outcome.event is None:
            return found
        event = outcome.event
        assert (event.name, field(event, "s2"), field(event, "ssid")) == (
            "F_TRANSLATION", 1, ssid,
        )  # fmt: skip
        ipa = field(event, "ipa")
        found.append((EventClass(field(event, "cls")).name, ipa))
        machine.map(root, ipa, ipa, flags=AF | RW_S2)
    raise AssertionError(found)


def test_cd_and_l1cd_go_through_stage_2(machine: Machine) -> None:
    """§7.3.13: CLASS=CD for the L1CD and the CD, TT for descriptors, IN for the data."""
    root, level1 = nested(machine, 1, 65)
    word = machine.memory.read64(level1 + 8)
    assert word is not None
    leaf = L1Cd((word,)).l2ptr
    found = faults_of(machine, root, 65)
    assert found[0] == ("CD", level1 & -PAGE)
    assert found[1] == ("CD", leaf + 64 & -PAGE)
    assert {cls for cls, _ in found[2:-1]} == {"TT"}
    assert found[-1] == ("IN", PA + 65 * PAGE)
    assert machine.go(1, DATA, ssid=65).pa == PA + 65 * PAGE


@pytest.mark.parametrize("bit", [45, 49])
def test_l1cd_pointer_beyond_the_ipa_size(machine: Machine, bit: int) -> None:
    """§3.4.3: with stage 2 the pointer is an IPA, out of range is a stage 2 Translation fault.

    §7.3.13: IPA[55:OAS] is RES0 in its record; OAS is 48 here.
    """
    root, level1 = nested(machine, 1, 1)
    machine.memory.write(level1, bytes(L1Cd.build(v=1, l2ptr=1 << bit)))
    machine.map(root, level1 & -PAGE, level1 & -PAGE, flags=AF | RW_S2)
    event = machine.go(1, DATA, ssid=1).event
    assert (field(event, "type"), field(event, "cls"), field(event, "ipa")) == (
        0x10, EventClass.CD, (1 << bit) % (1 << 48),
    )  # fmt: skip


def test_cd_fetch_abort_behind_stage_2(machine: Machine) -> None:
    """§7.3.10: FetchAddr is the PA."""
    root = machine.s2_root()
    machine.map(root, 0x7000, NOWHERE, flags=AF | RW_S2)
    machine.ste(
        1, config=7, s1ctxptr=0x7000, s1cdmax=3, s1dss=2, **machine.s2_fields(root)
    )  # fmt: skip
    event = machine.go(1, DATA, ssid=3).event
    assert (field(event, "type"), field(event, "fetchaddr")) == (0x09, NOWHERE + 3 * 64)
