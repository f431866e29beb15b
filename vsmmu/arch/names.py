# SPDX-License-Identifier: BSD-2-Clause
"""Named values that several structures share (IHI 0070 §5.2, §5.4, §6.3, §13)."""

from __future__ import annotations

from enum import IntEnum


class AddressSize(IntEnum):
    """IDR5.OAS, STE.S2PS and CD.IPS."""

    BITS_32 = 0
    BITS_36 = 1
    BITS_40 = 2
    BITS_42 = 3
    BITS_44 = 4
    BITS_48 = 5
    BITS_52 = 6
    BITS_56 = 7


class Sh(IntEnum):
    """Shareability; 1 acts as NSH."""

    NSH = 0
    OSH = 2
    ISH = 3


class Cacheability(IntEnum):
    """CR1.QUEUE_IC and its like; 3 acts as NC."""

    NC = 0
    WB = 1
    WT = 2


class CdCacheability(IntEnum):
    """STE.S1CIR and S1COR, for CD fetches."""

    NC = 0
    WB_RA = 1
    WT_RA = 2
    WB_NRA = 3


class WalkCacheability(IntEnum):
    """CD.IR0 and its like, STE.S2IR0 and S2OR0, for table walks."""

    NC = 0
    WB_RAWA = 1
    WT_RA = 2
    WB_RANWA = 3


class PrivCfg(IntEnum):
    """STE.PRIVCFG and GBPA.PRIVCFG; 0 and 1 both leave what the device says."""

    INCOMING = 0
    INCOMING_1 = 1
    UNPRIVILEGED = 2
    PRIVILEGED = 3


class InstCfg(IntEnum):
    """STE.INSTCFG and GBPA.INSTCFG; 0 and 1 both leave what the device says."""

    INCOMING = 0
    INCOMING_1 = 1
    DATA = 2
    INSTRUCTION = 3


class MemAttr(IntEnum):
    """STE.MemAttr, MSI attributes and stage 2 MemAttr without S2FWB; O is outer, I is inner."""

    DEVICE_NGNRNE = 0
    DEVICE_NGNRE = 1
    DEVICE_NGRE = 2
    DEVICE_GRE = 3
    ONC_INC = 5
    ONC_IWT = 6
    ONC_IWB = 7
    OWT_INC = 9
    OWT_IWT = 10
    OWT_IWB = 11
    OWB_INC = 13
    OWB_IWT = 14
    OWB_IWB = 15
