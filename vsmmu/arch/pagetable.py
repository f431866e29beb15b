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
    def page_level(self) -> int:
        """The level of pages, the last one."""
        return 3

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


# The bit of an input address that selects TTB0 or TTB1 (IHI 0070 §3.4.1).
TTB_SELECT = 55

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

# The same with 52-bit addresses (STE.S2DS): 4K has S2SL0_2 as a third bit, 16K a fourth value.
S2_START_DS = {
    "4K": {0: 2, 1: 1, 2: 0, 3: 3, 4: -1},
    "16K": {0: 3, 1: 2, 2: 1, 3: 0},
}

# Tables that may be concatenated at the first level of stage 2, as address bits, and the output
# size that a first level asks for (Arm ARM D8.2.2).
S2_CONCATENATION = 4
S2_START_NEEDS_OAS = {("4K", -1): 52, ("4K", 0): 44, ("16K", 1): 42, ("64K", 1): 44}

# Levels that have blocks where output addresses are 52 bits (4K and 16K: with DS).
BLOCK_LEVELS_52 = {"4K": (0, 1, 2), "16K": (1, 2), "64K": (1, 2)}

# Limits of T0SZ, T1SZ and S2T0SZ: smallest for 48- and 52-bit inputs, largest without and with
# small translation tables (IDR3.STT) (§5.2, §5.4).
TXSZ_MIN, TXSZ_MIN_52, TXSZ_MAX = 16, 12, 39
TXSZ_MAX_STT = {"4K": 48, "16K": 48, "64K": 47}

# Neighbouring descriptors that one Contiguous bit spans, by granule and level (Arm ARM D8.7.1).
CONTIGUOUS = {"4K": {1: 16, 2: 16, 3: 16}, "16K": {2: 32, 3: 128}, "64K": {2: 32, 3: 32}}

VALID, TABLE = 1, 2

# Bits 63:56 of an input address are a tag that TBIx takes out of the range check (§3.4.1).
TAG_MASK = 0xFF << 56
ADDR_MASK = 0x0000_FFFF_FFFF_F000


class _S1Attributes(Layout, spec="Arm ARM D8.3.1"):
    """What every form of a stage 1 leaf has in the same place."""

    valid = bit(0)
    table = bit(1)
    attrindx = bits(4, 2)
    ns = bit(5)
    ap1 = bit(6)
    ap2 = bit(7)
    af = bit(10)
    ng = bit(11)
    dbm = bit(51)
    contig = bit(52)
    pxn = bit(53)
    uxn = bit(54)
    pbha = bits(62, 59)


class _S2Attributes(Layout, spec="Arm ARM D8.3.2"):
    """What every form of a stage 2 leaf has in the same place."""

    valid = bit(0)
    table = bit(1)
    memattr = bits(5, 2)
    s2ap_r = bit(6)
    s2ap_w = bit(7)
    af = bit(10)
    dbm = bit(51)
    contig = bit(52)
    xn0 = bit(53)
    xn1 = bit(54)
    pbha = bits(62, 59)


class _Hierarchical(Layout, spec="Arm ARM D8.3.1"):
    """What every form of a table descriptor has in the same place; stage 1 attributes."""

    valid = bit(0)
    table = bit(1)
    pxntable = bit(59)
    uxntable = bit(60)
    aptable0 = bit(61)
    aptable1 = bit(62)
    nstable = bit(63)


# 48-bit output addresses: every granule where neither 52-bit form is selected.


class S1Leaf(_S1Attributes):
    """Stage 1 block or page descriptor."""

    sh = bits(9, 8)
    oa = bits(49, 12)


class S2Leaf(_S2Attributes):
    """Stage 2 block or page descriptor."""

    sh = bits(9, 8)
    oa = bits(49, 12)


class TableDesc(_Hierarchical):
    """Table descriptor with the hierarchical attributes of stage 1."""

    oa = bits(49, 12)


class S1Block(_S1Attributes):
    """Stage 1 block descriptor with the bit that only blocks have (IDR3.BBML)."""

    sh = bits(9, 8)
    nt = bit(16)
    oa = bits(49, 21)


class S2Block(_S2Attributes):
    """Stage 2 block descriptor with the bit that only blocks have (IDR3.BBML)."""

    sh = bits(9, 8)
    nt = bit(16)
    oa = bits(49, 21)


# 52-bit output addresses of the 4K and 16K granules (LPA2: IDR5.DS with CD.DS or STE.S2DS). SH is
# in the CD or STE, its place holds OA[51:50].


class S1LeafLpa2(_S1Attributes):
    """Stage 1 leaf; `oa_high` is OA[51:50]."""

    oa_high = bits(9, 8)
    oa = bits(49, 12)


class S2LeafLpa2(_S2Attributes):
    """Stage 2 leaf; `oa_high` is OA[51:50]."""

    oa_high = bits(9, 8)
    oa = bits(49, 12)


class TableDescLpa2(_Hierarchical):
    """Table descriptor; `oa_high` is OA[51:50]."""

    oa_high = bits(9, 8)
    oa = bits(49, 12)


# 52-bit output addresses of the 64K granule (LPA: IDR5.OAS is 52).


class S1LeafLpa(_S1Attributes):
    """Stage 1 leaf; `oa_high` is OA[51:48]."""

    sh = bits(9, 8)
    oa_high = bits(15, 12)
    oa = bits(47, 16)


class S2LeafLpa(_S2Attributes):
    """Stage 2 leaf; `oa_high` is OA[51:48]."""

    sh = bits(9, 8)
    oa_high = bits(15, 12)
    oa = bits(47, 16)


class TableDescLpa(_Hierarchical):
    """Table descriptor; `oa_high` is OA[51:48]."""

    oa_high = bits(15, 12)
    oa = bits(47, 16)


def output_address(descriptor: int, shift: int) -> int:
    """Output address of a descriptor whose low `shift` bits come from the input (48-bit)."""
    return descriptor & ADDR_MASK & ~((1 << shift) - 1)


def output_address_lpa2(descriptor: int, shift: int) -> int:
    """The same with the 52-bit form of 4K and 16K: OA[51:50] is in bits [9:8]."""
    low = descriptor & _LPA2_MASK & ~((1 << shift) - 1)
    return low | TableDescLpa2.oa_high.of((descriptor,)) << _LPA2_HIGH


def output_address_lpa(descriptor: int, shift: int) -> int:
    """The same with the 52-bit form of 64K: OA[51:48] is in bits [15:12]."""
    low = descriptor & _LPA_MASK & ~((1 << shift) - 1)
    return low | TableDescLpa.oa_high.of((descriptor,)) << _LPA_HIGH


_LPA2_MASK, _LPA2_HIGH = TableDescLpa2.mask("oa")[0], TableDescLpa2.oa.msb + 1
_LPA_MASK, _LPA_HIGH = TableDescLpa.mask("oa")[0], TableDescLpa.oa.msb + 1
