# SPDX-License-Identifier: BSD-2-Clause
"""Commands: one class for each opcode, found by registry (IHI 0070 §4).

Only the fields are here. What a command does to a physical SMMU is in `vsmmu.smmu.commands`,
what a guest's command becomes is in `vsmmu.hypervisor.commands`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar, Self

from vsmmu.arch.layout import Layout, addr, bit, bits, choice


class Cs(IntEnum):
    """CMD_SYNC.CS."""

    NONE = 0
    IRQ = 1
    SEV = 2


def _spec_name(class_name: str) -> str:
    """`CmdTlbiNhVa` -> `CMD_TLBI_NH_VA`."""
    return "".join("_" + c if c.isupper() else c for c in class_name).upper().lstrip("_")


class Command(Layout, dwords=2, spec="IHI 0070 §4.1"):
    """A 16-byte command. A concrete class has an `opcode` and the name of the specification."""

    opcode: ClassVar[int] = -1
    name: ClassVar[str] = "CMD_RESERVED"

    op = bits(7, 0)

    def __init_subclass__(cls, opcode: int | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if opcode is not None:
            cls.opcode = opcode
            cls.name = _spec_name(cls.__name__)
            OPCODES[opcode] = cls

    @classmethod
    def build(cls, /, **values: int) -> Self:
        """A command with its opcode and these fields."""
        return super().build(op=cls.opcode, **values)


OPCODES: dict[int, type[Command]] = {}


def decode(words: tuple[int, ...]) -> Command:
    """The command in two 64-bit words; a `Command` itself when the opcode is reserved."""
    return OPCODES.get(words[0] & 0xFF, Command)(words)


class _Sid(Command):
    """Commands that name a StreamID (Non-secure: SSec must be 0)."""

    ssec = bit(10)
    sid = bits(63, 32)


class _Ssid(_Sid):
    ssv = bit(11)
    ssid = bits(31, 12)


class _Range(Command):
    """Fields of IDR3.RIL; RES0 without it (§4.4.1)."""

    num = bits(16, 12)
    scale = bits(25, 20)
    leaf = bit(64)
    ttl = bits(73, 72)
    tg = bits(75, 74)
    addr = addr(127, 76, low=12)


class CmdPrefetchConfig(_Ssid, opcode=0x01):
    """CMD_PREFETCH_CONFIG."""


class CmdPrefetchAddr(_Ssid, opcode=0x02):
    """CMD_PREFETCH_ADDR."""

    addr = addr(127, 76, low=12)


class CmdCfgiSte(_Sid, opcode=0x03):
    """CMD_CFGI_STE."""

    leaf = bit(64)


class CmdCfgiSteRange(_Sid, opcode=0x04):
    """CMD_CFGI_STE_RANGE; Range 31 is CMD_CFGI_ALL."""

    range = bits(68, 64)


class CmdCfgiCd(_Sid, opcode=0x05):
    """CMD_CFGI_CD; the SubstreamID is valid without SSV."""

    ssid = bits(31, 12)
    leaf = bit(64)


class CmdCfgiCdAll(_Sid, opcode=0x06):
    """CMD_CFGI_CD_ALL."""


class CmdTlbiNhAll(Command, opcode=0x10):
    """CMD_TLBI_NH_ALL."""

    vmid = bits(47, 32)


class CmdTlbiNhAsid(Command, opcode=0x11):
    """CMD_TLBI_NH_ASID."""

    vmid = bits(47, 32)
    asid = bits(63, 48)


class CmdTlbiNhVa(_Range, opcode=0x12):
    """CMD_TLBI_NH_VA."""

    vmid = bits(47, 32)
    asid = bits(63, 48)


class CmdTlbiNhVaa(_Range, opcode=0x13):
    """CMD_TLBI_NH_VAA."""

    vmid = bits(47, 32)


class CmdTlbiEl2All(Command, opcode=0x20):
    """CMD_TLBI_EL2_ALL."""


class CmdTlbiEl2Asid(Command, opcode=0x21):
    """CMD_TLBI_EL2_ASID."""

    asid = bits(63, 48)


class CmdTlbiEl2Va(_Range, opcode=0x22):
    """CMD_TLBI_EL2_VA."""

    asid = bits(63, 48)


class CmdTlbiEl2Vaa(_Range, opcode=0x23):
    """CMD_TLBI_EL2_VAA."""


class CmdTlbiS12Vmall(Command, opcode=0x28):
    """CMD_TLBI_S12_VMALL."""

    vmid = bits(47, 32)


class CmdTlbiS2Ipa(_Range, opcode=0x2A):
    """CMD_TLBI_S2_IPA; `addr` is the IPA."""

    vmid = bits(47, 32)


class CmdTlbiNsnhAll(Command, opcode=0x30):
    """CMD_TLBI_NSNH_ALL."""


class CmdAtcInv(_Ssid, opcode=0x40):
    """CMD_ATC_INV; covers 4096 << Size bytes."""

    globl = bit(9)
    size_lg2 = bits(69, 64)
    addr = addr(127, 76, low=12)


class CmdPriResp(_Ssid, opcode=0x41):
    """CMD_PRI_RESP."""

    prgindex = bits(72, 64)
    resp = bits(77, 76)


class CmdResume(_Sid, opcode=0x44):
    """CMD_RESUME."""

    ac = bit(12)
    ab = bit(13)
    stag = bits(79, 64)


class CmdStallTerm(_Sid, opcode=0x45):
    """CMD_STALL_TERM."""


class CmdSync(Command, opcode=0x46):
    """CMD_SYNC."""

    cs = choice(13, 12, Cs)
    msh = bits(23, 22)
    msiattr = bits(27, 24)
    msidata = bits(63, 32)
    msiaddress = addr(119, 66, low=2)


CFGI_ALL_RANGE = 31
