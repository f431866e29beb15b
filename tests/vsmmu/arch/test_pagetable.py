# SPDX-License-Identifier: BSD-2-Clause
"""Geometry of the three granules (IHI 0070 §3.4; Arm ARM D8.2)."""

from __future__ import annotations

import pytest

from vsmmu.arch.pagetable import (
    BLOCK_LEVELS_52,
    CONTIGUOUS,
    G4K,
    G16K,
    G64K,
    S2_START,
    S2_START_DS,
    S2_START_NEEDS_OAS,
    Granule,
    S1LeafLpa,
    S1LeafLpa2,
    output_address,
    output_address_lpa,
    output_address_lpa2,
)

GRANULES = {granule.name: granule for granule in (G4K, G16K, G64K)}


@pytest.mark.parametrize(
    ("granule", "shifts"),
    [(G4K, [39, 30, 21, 12]), (G16K, [47, 36, 25, 14]), (G64K, [55, 42, 29, 16])],
)
def test_level_shifts(granule: Granule, shifts: list[int]) -> None:
    assert [granule.shift(level) for level in range(4)] == shifts


@pytest.mark.parametrize(
    ("bits", "levels"),
    [(48, (0, 0, 1)), (39, (1, 1, 2)), (36, (1, 2, 2)), (32, (1, 2, 2)), (25, (2, 3, 3))],
)
def test_stage_1_start_levels(bits: int, levels: tuple[int, int, int]) -> None:
    assert tuple(g.start_level(bits) for g in (G4K, G16K, G64K)) == levels


def test_output_address_drops_attributes_and_the_offset() -> None:
    assert output_address(0xFFFF_FFFF_FFFF_FFFF, 21) == 0x0000_FFFF_FFE0_0000


def test_52_bit_inputs_start_above_level_0() -> None:
    """IHI 0070 §5.4; no second opinion."""
    assert [g.start_level(52) for g in (G4K, G16K, G64K)] == [-1, 0, 1]
    assert G4K.shift(-1) == 48
    assert G4K.page_level == G64K.page_level == 3


def test_output_address_of_the_lpa2_form() -> None:
    """OA[49:12] in place, OA[51:50] in bits [9:8] (IHI 0070 §3.4; no second opinion)."""
    every = 0xFFFF_FFFF_FFFF_FFFF
    assert output_address_lpa2(every, 12) == 0x000F_FFFF_FFFF_F000
    assert output_address_lpa2(every, 39) == 0x000F_FF80_0000_0000
    assert output_address_lpa2(1 << 8, 12) == 1 << 50
    assert output_address_lpa2(1 << 9, 12) == 1 << 51
    leaf = S1LeafLpa2.build(valid=1, table=1, oa=0x3_FFFF_FFFF_F000 >> 12, oa_high=2, af=1)
    assert output_address_lpa2(leaf.raw, 12) == 0xB_FFFF_FFFF_F000


def test_output_address_of_the_lpa_form() -> None:
    """OA[47:16] in place, OA[51:48] in bits [15:12] (IHI 0070 §3.4; no second opinion)."""
    every = 0xFFFF_FFFF_FFFF_FFFF
    assert output_address_lpa(every, 16) == 0x000F_FFFF_FFFF_0000
    assert output_address_lpa(every, 29) == 0x000F_FFFF_E000_0000
    assert output_address_lpa(1 << 12, 16) == 1 << 48
    leaf = S1LeafLpa.build(valid=1, table=1, oa=0x1234_5678, oa_high=0xA, af=1)
    assert output_address_lpa(leaf.raw, 16) == 0xA_1234_5678_0000


def test_first_levels_of_stage_2() -> None:
    """S2SL0, and with S2DS the third bit S2SL0_2 (IHI 0070 §5.2; no second opinion)."""
    assert S2_START["4K"] == {0: 2, 1: 1, 2: 0, 3: 3}
    assert S2_START["16K"] == S2_START["64K"] == {0: 3, 1: 2, 2: 1}
    assert S2_START_DS["4K"] == {0: 2, 1: 1, 2: 0, 3: 3, 4: -1}
    assert S2_START_DS["16K"] == {0: 3, 1: 2, 2: 1, 3: 0}
    assert S2_START_NEEDS_OAS == {("4K", -1): 52, ("4K", 0): 44, ("16K", 1): 42, ("64K", 1): 44}


@pytest.mark.parametrize(
    ("name", "level", "size"),
    [("4K", 3, 64 << 10), ("4K", 2, 32 << 20), ("4K", 1, 16 << 30), ("16K", 3, 2 << 20),
     ("16K", 2, 1 << 30), ("64K", 3, 2 << 20), ("64K", 2, 16 << 30)],
)  # fmt: skip
def test_contiguous_sizes(name: str, level: int, size: int) -> None:
    """Bytes that one Contiguous bit spans (Arm ARM D8.7.1); no second opinion."""
    assert CONTIGUOUS[name][level] << GRANULES[name].shift(level) == size


def test_block_levels_of_52_bit_forms() -> None:
    """512 GB, 64 GB and 4 TB blocks exist with 52-bit output addresses alone."""
    sizes = {name: 1 << GRANULES[name].shift(levels[0]) for name, levels in BLOCK_LEVELS_52.items()}
    assert sizes == {"4K": 512 << 30, "16K": 64 << 30, "64K": 4 << 40}
    for name, levels in BLOCK_LEVELS_52.items():
        assert levels[1:] == GRANULES[name].block_levels
