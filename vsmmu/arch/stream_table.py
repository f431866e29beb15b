# SPDX-License-Identifier: BSD-2-Clause
"""Stream table structures (IHI 0070 §5.1, §5.2)."""

from __future__ import annotations

from enum import IntEnum

from vsmmu.arch.layout import Layout, addr, bit, bits, choice
from vsmmu.arch.names import (
    AddressSize,
    CdCacheability,
    InstCfg,
    MemAttr,
    PrivCfg,
    Sh,
    WalkCacheability,
)


class SteConfig(IntEnum):
    """STE.Config; every value with bit 2 clear aborts silently."""

    ABORT = 0
    BYPASS = 4
    S1 = 5
    S2 = 6
    NESTED = 7


# SteConfig bit by bit (§5.2): without LIVE the STE aborts; STAGE1 and STAGE2 add to bypass.
LIVE, STAGE1, STAGE2 = 4, 1, 2

# STE.PRIVCFG and STE.INSTCFG: with OVERRIDE the low bit replaces what the device says.
OVERRIDE, OVERRIDE_VALUE = 2, 1

# Bits of an ASID or VMID where IDR0.ASID16 or IDR0.VMID16 is 0.
NARROW_ID_BITS = 8


class S1Fmt(IntEnum):
    """STE.S1Fmt."""

    LINEAR = 0
    TWO_LEVEL_4K = 1
    TWO_LEVEL_64K = 2


class S1Dss(IntEnum):
    """STE.S1DSS: a transaction without SubstreamID when S1CDMax is not 0."""

    TERMINATE = 0
    BYPASS = 1
    SSID0 = 2


class Eats(IntEnum):
    """STE.EATS."""

    NONE = 0
    FULL = 1
    SPLIT = 2
    DPT = 3


class Strw(IntEnum):
    """STE.STRW for a Non-secure stream."""

    NS_EL1 = 0
    NS_EL2 = 2


class World(IntEnum):
    """StreamWorld of a Non-secure stream, from STE.Config, STE.STRW and CR2.E2H (§5.2)."""

    NS_EL1 = 0
    NS_EL2 = 1
    NS_EL2_E2H = 2


class S2Tg(IntEnum):
    """STE.S2TG and CD.TG0."""

    G4K = 0
    G64K = 1
    G16K = 2


class ShCfg(IntEnum):
    """STE.SHCFG and GBPA.SHCFG."""

    NSH = 0
    INCOMING = 1
    OSH = 2
    ISH = 3


class Ste(Layout, dwords=8, spec="IHI 0070 §5.2"):
    """Stream Table Entry."""

    v = bit(0)
    config = choice(3, 1, SteConfig)
    s1fmt = choice(5, 4, S1Fmt)
    s1ctxptr = addr(51, 6)
    s1cdmax = bits(63, 59)

    s1dss = choice(65, 64, S1Dss)
    s1cir = choice(67, 66, CdCacheability)
    s1cor = choice(69, 68, CdCacheability)
    s1csh = choice(71, 70, Sh)
    s2hwu = bits(75, 72)
    dre = bit(76)
    cont = bits(80, 77)
    dcp = bit(81)
    ppar = bit(82)
    mev = bit(83)
    software = bits(87, 84)
    s1pie = bit(88)
    s2fwb = bit(89)
    s1mpam = bit(90)
    s1stalld = bit(91)
    eats = choice(93, 92, Eats)
    strw = choice(95, 94, Strw)
    memattr = choice(99, 96, MemAttr)
    mtcfg = bit(100)
    alloccfg = bits(104, 101)
    shcfg = choice(109, 108, ShCfg)
    nscfg = bits(111, 110)
    privcfg = choice(113, 112, PrivCfg)
    instcfg = choice(115, 114, InstCfg)
    impdef1 = bits(127, 116)

    s2vmid = bits(143, 128)
    impdef2 = bits(159, 144)
    s2t0sz = bits(165, 160)
    s2sl0 = bits(167, 166)
    s2ir0 = choice(169, 168, WalkCacheability)
    s2or0 = choice(171, 170, WalkCacheability)
    s2sh0 = choice(173, 172, Sh)
    s2tg = choice(175, 174, S2Tg)
    s2ps = choice(178, 176, AddressSize)
    s2aa64 = bit(179)
    s2endi = bit(180)
    s2affd = bit(181)
    s2ptw = bit(182)
    s2hd = bit(183)
    s2ha = bit(184)
    s2s = bit(185)
    s2r = bit(186)
    s2haft = bit(187)
    s2pie = bit(188)
    s2poe = bit(189)
    dpt_vmatch = bits(191, 190)

    s2nsw = bit(192)
    s2nsa = bit(193)
    s2sl0_2 = bit(194)
    s2ds = bit(195)
    s2ttb = addr(243, 196, low=4)
    s2skl = bits(254, 253)

    partid = bits(287, 272)
    s_s2t0sz = bits(293, 288)
    s_s2sl0 = bits(295, 294)
    s_s2tg = bits(303, 302)
    mecid = bits(319, 304)

    pmg = bits(327, 320)
    mpam_ns = bit(328)
    assuredonly = bit(329)
    tl0 = bit(330)
    tl1 = bit(331)
    vmsptr = addr(375, 332, low=12)

    s2sw = bit(384)
    s2sa = bit(385)
    s_s2sl0_2 = bit(386)
    s_s2ttb = addr(439, 388, low=4)
    s_s2skl = bits(446, 445)

    s2poi_lo = bits(511, 448)


class L1Std(Layout, spec="IHI 0070 §5.1"):
    """Level 1 stream table descriptor; Span n covers 2^(n-1) STEs, 0 and above 11 are invalid."""

    span = bits(4, 0)
    l2ptr = addr(55, 6)


SPAN_MAX = 11
SPLITS = (6, 8, 10)


# S2SL0_2 goes above the bits of S2SL0.
_SL0_BITS = 2


def sl0_code(ste: Ste) -> int:
    """S2SL0_2:S2SL0, which say the first level of 4K tables with S2DS=1 (§5.2)."""
    return ste.s2sl0_2 << _SL0_BITS | ste.s2sl0


def sl0_fields(code: int) -> dict[str, int]:
    """The fields of `sl0_code`; it is S2SL0 alone where it has two bits."""
    return {"s2sl0": code & (1 << _SL0_BITS) - 1, "s2sl0_2": code >> _SL0_BITS}


def effective_split(split: int) -> int:
    """STRTAB_BASE_CFG.SPLIT as used: a reserved value behaves as 6 (§6.3.25)."""
    return split if split in SPLITS else 6
