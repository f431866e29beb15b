# SPDX-License-Identifier: BSD-2-Clause
"""Geometry of the three granules (IHI 0070 §3.4; Arm ARM D8.2)."""

from __future__ import annotations

import pytest

from vsmmu.arch.pagetable import G4K, G16K, G64K, Granule, output_address


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
