# SPDX-License-Identifier: BSD-2-Clause
"""Context descriptors (IHI 0070 §5.3, §5.4)."""

from __future__ import annotations

from enum import IntEnum

from vsmmu.arch.layout import Layout, addr, bit, bits, choice
from vsmmu.arch.names import AddressSize, Sh, WalkCacheability
from vsmmu.arch.stream_table import S2Tg


class Tg1(IntEnum):
    """CD.TG1; its encoding differs from TG0's."""

    G16K = 1
    G4K = 2
    G64K = 3


class Cd(Layout, dwords=8, spec="IHI 0070 §5.4"):
    """Context Descriptor."""

    t0sz = bits(5, 0)
    tg0 = choice(7, 6, S2Tg)
    ir0 = choice(9, 8, WalkCacheability)
    or0 = choice(11, 10, WalkCacheability)
    sh0 = choice(13, 12, Sh)
    epd0 = bit(14)
    endi = bit(15)
    t1sz = bits(21, 16)
    tg1 = choice(23, 22, Tg1)
    ir1 = choice(25, 24, WalkCacheability)
    or1 = choice(27, 26, WalkCacheability)
    sh1 = choice(29, 28, Sh)
    epd1 = bit(30)
    v = bit(31)
    ips = choice(34, 32, AddressSize)
    affd = bit(35)
    wxn = bit(36)
    uwxn = bit(37)
    tbi0 = bit(38)
    tbi1 = bit(39)
    pan = bit(40)
    aa64 = bit(41)
    hd = bit(42)
    ha = bit(43)
    s = bit(44)
    r = bit(45)
    a = bit(46)
    aset = bit(47)
    asid = bits(63, 48)

    nscfg0 = bit(64)
    had0 = bit(65)
    e0pd0 = bit(66)
    haft = bit(67)
    ttb0 = addr(115, 68, low=4)
    pnch = bit(122)
    epan = bit(123)
    hwu059 = bit(124)
    hwu060 = bit(125)
    hwu061 = bits(127, 126)

    nscfg1 = bit(128)
    had1 = bit(129)
    e0pd1 = bit(130)
    aie = bit(131)
    ttb1 = addr(179, 132, low=4)
    ds = bit(186)
    pie = bit(187)
    hwu159 = bits(189, 188)
    hwu161 = bits(191, 190)

    mair0 = bits(223, 192)
    mair1 = bits(255, 224)
    amair = bits(319, 256)
    impdef = bits(351, 320)
    partid = bits(367, 352)
    pmg = bits(375, 368)
    piiu = bits(431, 384)
    piip = bits(495, 448)


class L1Cd(Layout, spec="IHI 0070 §5.3"):
    """Level 1 context descriptor."""

    v = bit(0)
    l2ptr = addr(55, 12)
