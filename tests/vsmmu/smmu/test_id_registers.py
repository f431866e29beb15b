# SPDX-License-Identifier: BSD-2-Clause
"""The identification registers under the rules that Arm's BSA, SBSA and VBSA put on an SMMU.

Each rule reads the registers as software does, beside what the rule says of the PEs. The PE here
has what a rule asks for, so that no rule passes for want of something to compare with. A rule that
fails on purpose says so in the table: the default SMMU is smaller, MPAM and PMCGs are out of scope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.registers import Aidr, Idr0, Idr1, Idr3, Idr5, TtEndian
from vsmmu.smmu import Features

from .machine import Machine


class Ids(NamedTuple):
    """What software reads."""

    idr0: Idr0
    idr1: Idr1
    idr3: Idr3
    idr5: Idr5
    aidr: Aidr
    # The words of the page behind page 1, where a PMCG could be.
    pmcg: int


def identify(features: Features) -> Ids:
    machine = Machine(features, boot=False)

    def read(offset: int) -> int:
        return machine.smmu.mmio_read(offset, 4)

    return Ids(
        Idr0(read(0x00)), Idr1(read(0x04)), Idr3(read(0x0C)), Idr5(read(0x14)), Aidr(read(0x1C)),
        read(0x2_0E00),
    )  # fmt: skip


def _at_least(ids: Ids, minor: int) -> bool:
    return ids.aidr.archmajrev == 0 and ids.aidr.archminrev >= minor


# Rule: what it asks of an SMMU. The PE has 4K, 16K and 64K granules, 52-bit PA and VA, ASIDs and
# VMIDs of 16 bits, TLBI by range, S-EL2, MPAM, SPECRES, and is little-endian; there is memory that
# needs 52 bits.
RULES: dict[str, Callable[[Ids], bool]] = {
    "B_SMMU_01": lambda i: i.aidr.archmajrev == 0,
    "B_SMMU_02": lambda i: bool(i.idr5.gran4k and i.idr5.gran16k and i.idr5.gran64k),
    "B_SMMU_03": lambda i: i.idr5.vax == 1,
    "B_SMMU_04": lambda i: bool(i.idr3.ril),
    "B_SMMU_05": lambda i: bool(i.idr0.btm),
    "B_SMMU_06": lambda i: i.idr5.oas == 6,
    "B_SMMU_08": lambda i: bool(i.idr0.s1p),
    "B_SMMU_09": lambda i: _at_least(i, 2) and bool(i.idr0.s1p),
    "B_SMMU_11": lambda i: bool(i.idr3.mpam),
    "B_SMMU_13": lambda i: bool(i.idr0.asid16),
    "B_SMMU_14": lambda i: i.idr0.ttendian in (0, TtEndian.LITTLE),
    "B_SMMU_16": lambda i: bool(i.idr0.s2p),
    "B_SMMU_18": lambda i: bool(i.idr0.s2p),
    "B_SMMU_20": lambda i: _at_least(i, 2) and bool(i.idr0.s2p),
    "B_SMMU_21": lambda i: bool(i.idr0.cohacc),
    "B_SMMU_23": lambda i: bool(i.idr0.vmid16),
    "GPU_04": lambda i: bool(i.idr0.ats),
    "PCI_PAS_1": lambda i: i.idr1.ssidsize >= 16,
    "S_L4SM_01": lambda i: bool(i.idr0.s1p),
    "S_L4SM_02": lambda i: bool(i.idr0.s2p),
    "S_L4SM_03": lambda i: bool(i.idr0.cohacc),
    "S_L5SM_01": lambda i: _at_least(i, 2),
    "S_L5SM_02": lambda i: i.idr3.bbml >= 1,
    "S_L6SM_02": lambda i: i.idr0.httu == 2,
    "S_L6SM_03": lambda i: bool(i.idr0.msi),
    "S_L7SM_03": lambda i: i.pmcg != 0,
    "S_L8SM_01": lambda i: _at_least(i, 3),
    "V_L1SM_02": lambda i: bool(i.idr0.s1p),
}

OUT_OF_SCOPE = {"B_SMMU_11", "S_L7SM_03"}
SMALLER = {
    "B_SMMU_03", "B_SMMU_05", "B_SMMU_06", "GPU_04", "PCI_PAS_1", "S_L6SM_02", "S_L6SM_03",
    "S_L8SM_01",
}  # fmt: skip
STAGE_1 = {"B_SMMU_08", "B_SMMU_09", "S_L4SM_01", "V_L1SM_02"}
STAGE_2 = {"B_SMMU_16", "B_SMMU_18", "B_SMMU_20", "S_L4SM_02"}

FAILING: dict[str, tuple[Features, set[str]]] = {
    "everything": (Features.everything(), OUT_OF_SCOPE),
    "default": (Features.default(), OUT_OF_SCOPE | SMALLER),
    "stage 1 only": (Features.default(stages="1"), OUT_OF_SCOPE | SMALLER | STAGE_2),
    "stage 2 only": (Features.default(stages="2"), OUT_OF_SCOPE | SMALLER | STAGE_1),
    "SMMUv3.1": (
        Features.default(aidr=1).replace(ril=0, bbml=0),
        OUT_OF_SCOPE | SMALLER
        | {"B_SMMU_04", "B_SMMU_09", "B_SMMU_20", "S_L5SM_01", "S_L5SM_02"},
    ),
    "incoherent, small ids, one granule": (
        Features.default().replace(cohacc=0, asid16=0, vmid16=0, gran16k=0, gran64k=0),
        OUT_OF_SCOPE | SMALLER | {"B_SMMU_02", "B_SMMU_13", "B_SMMU_21", "B_SMMU_23", "S_L4SM_03"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str, name: str) -> None:
    features, failing = FAILING[name]
    assert RULES[rule](identify(features)) == (rule not in failing)


@pytest.mark.parametrize(
    "change", [{"mpam": 1}, {"archmajrev": 1}, {"ttendian": TtEndian.BIG}, {"ttf": 1}]
)
def test_what_would_break_a_rule_cannot_be_built(change: dict[str, int]) -> None:
    """B_SMMU_01, B_SMMU_11, B_SMMU_14: all SMMUs here are SMMUv3, little-endian, without MPAM."""
    with pytest.raises(ValueError, match=r"not modelled"):
        Features.everything().replace(**change)


@pytest.mark.parametrize(
    ("register", "offset"),
    [
        ("IDR0", 0x000), ("IDR1", 0x004), ("IDR2", 0x008), ("IDR3", 0x00C), ("IDR4", 0x010),
        ("IDR5", 0x014), ("IIDR", 0x018), ("AIDR", 0x01C), ("IDR6", 0x190),
    ],
)  # fmt: skip
@pytest.mark.parametrize("features", [Features.default(), Features.everything()])
def test_each_is_where_software_reads_it(register: str, offset: int, features: Features) -> None:
    """§6.2; IDR2, IDR4 and IDR6 are of VATOS, the implementer and ECMDQ: 0."""
    machine = Machine(features.replace(productid=0x487, implementer=0x43B), boot=False)
    place = {r.name: r.offset for r in EVERY_REGISTER}
    assert place[register] == offset
    expected = machine.features.ids.get(register, 0)
    assert machine.smmu.mmio_read(offset, 4) == expected
    machine.smmu.mmio_write(offset, 4, ~expected & 0xFFFF_FFFF)
    assert machine.smmu.mmio_read(offset, 4) == expected


@pytest.mark.parametrize(
    ("code", "bits"), [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 48), (6, 52)]
)
def test_address_sizes(code: int, bits: int) -> None:
    """§6.3.6 OAS: the code, the size, and where bypassed accesses end."""
    machine = Machine(Features.default(oas=bits))
    assert machine.smmu.mmio_read(0x14, 4) & 7 == code
    machine.ste(1, config=4)
    assert machine.go(1, (1 << bits) - 1).status == "bypass"
    assert machine.go(1, 1 << bits).status == "fault"
