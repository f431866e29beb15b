# SPDX-License-Identifier: BSD-2-Clause
"""VMSAv8-64 translation tables: granules, levels, descriptors (IHI 0070 §3.4; Arm ARM D8)."""

from __future__ import annotations

from dataclasses import dataclass

from vsmmu.arch.layout import Layout, bit, bits


@dataclass(frozen=True, slots=True)
class Granule:
    """Geometry of one granule; level 3 is the page level, `shift(l)` is in bits."""

    name: str
    page_shift: int
    block_levels: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Address bits that one table resolves."""
        return self.page_shift - 3

    @property
    def page_size(self) -> int:
        """Bytes of a page, and of a table."""
        return 1 << self.page_shift

    def shift(self, level: int) -> int:
        """Lowest address bit that the table at `level` indexes."""
        return self.page_shift + (3 - level) * self.stride

    def start_level(self, input_bits: int) -> int:
        """Stage 1 level of the first table for an input of that many bits."""
        return 3 - (input_bits - 1 - self.page_shift) // self.stride


G4K = Granule("4K", 12, (1, 2))
G16K = Granule("16K", 14, (2,))
G64K = Granule("64K", 16, (2,))

# CD.TG0, STE.S2TG and CD.TG1 encode the granule differently.
TG0 = {0: G4K, 1: G64K, 2: G16K}
TG1 = {2: G4K, 3: G64K, 1: G16K}

# STE.S2SL0 to the first level of stage 2.
S2_START = {
    "4K": {0: 2, 1: 1, 2: 0, 3: 3},
    "16K": {0: 3, 1: 2, 2: 1},
    "64K": {0: 3, 1: 2, 2: 1},
}

VALID, TABLE = 1, 2

# Bits 63:56 of an input address are a tag that TBIx takes out of the range check (§3.4.1).
TAG_MASK = 0xFF << 56
ADDR_MASK = 0x0000_FFFF_FFFF_F000


class S1Leaf(Layout, spec="Arm ARM D8.3.1"):
    """Stage 1 block or page descriptor."""

    valid = bit(0)
    table = bit(1)
    attrindx = bits(4, 2)
    ns = bit(5)
    ap1 = bit(6)
    ap2 = bit(7)
    sh = bits(9, 8)
    af = bit(10)
    ng = bit(11)
    oa = bits(49, 12)
    dbm = bit(51)
    contig = bit(52)
    pxn = bit(53)
    uxn = bit(54)
    pbha = bits(62, 59)


class S2Leaf(Layout, spec="Arm ARM D8.3.2"):
    """Stage 2 block or page descriptor."""

    valid = bit(0)
    table = bit(1)
    memattr = bits(5, 2)
    s2ap_r = bit(6)
    s2ap_w = bit(7)
    sh = bits(9, 8)
    af = bit(10)
    oa = bits(49, 12)
    dbm = bit(51)
    contig = bit(52)
    xn0 = bit(53)
    xn1 = bit(54)
    pbha = bits(62, 59)


class TableDesc(Layout, spec="Arm ARM D8.3.1"):
    """Table descriptor with the hierarchical attributes of stage 1."""

    valid = bit(0)
    table = bit(1)
    oa = bits(49, 12)
    pxntable = bit(59)
    uxntable = bit(60)
    aptable0 = bit(61)
    aptable1 = bit(62)
    nstable = bit(63)


def output_address(descriptor: int, shift: int) -> int:
    """Output address of a descriptor whose low `shift` bits come from the input (48-bit)."""
    return descriptor & ADDR_MASK & ~((1 << shift) - 1)
