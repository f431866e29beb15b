# SPDX-License-Identifier: BSD-2-Clause
"""Where an STE is: linear and two-level stream tables (IHI 0070 §5.1, §6.3.24, §6.3.25)."""

from __future__ import annotations

import pytest

from vsmmu.arch.registers import BY_NAME, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import Memory
from vsmmu.smmu import Access, Features, Smmu

from .machine import NOWHERE, Machine


def verdict(machine: Machine, sid: int, iova: int = 0) -> str:
    """Status of a read, or the name of the event it left."""
    outcome = machine.go(sid, iova)
    machine.events()
    return outcome.event.name if outcome.event is not None else outcome.status


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
