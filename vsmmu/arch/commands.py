# SPDX-License-Identifier: BSD-2-Clause
"""Commands: one class for each opcode, found by registry (IHI 0070 §4).

Only the fields are here. What a command does to a physical SMMU is in `vsmmu.smmu.commands`,
what a guest's command becomes is in `vsmmu.hypervisor.commands`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar, Self

from vsmmu.arch.layout import Layout, addr, bit, bits, choice
from vsmmu.arch.names import MemAttr, Sh


class Cs(IntEnum):
    """CMD_SYNC.CS."""

    NONE = 0
    IRQ = 1
    SEV = 2


class Resp(IntEnum):
    """CMD_PRI_RESP.Resp."""

    FAILURE = 0
    INVALID_REQUEST = 1
    SUCCESS = 2


class TlbiTg(IntEnum):
    """TG of the range commands; NONE is no range."""

    NONE = 0
    G4K = 1
    G16K = 2
    G64K = 3


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
    tg = choice(75, 74, TlbiTg)
    addr = addr(127, 76, low=12)


class CmdPrefetchConfig(_Ssid, opcode=0x01, spec="IHI 0070 §4.2.1"):
    """CMD_PREFETCH_CONFIG."""


class CmdPrefetchAddr(_Ssid, opcode=0x02, spec="IHI 0070 §4.2.2"):
    """CMD_PREFETCH_ADDR: the addresses Addr + n * 2^(12 + Stride) for n below 2^Size."""

    size_lg2 = bits(68, 64)
    stride = bits(73, 69)
    addr = addr(127, 76, low=12)


class CmdCfgiSte(_Sid, opcode=0x03, spec="IHI 0070 §4.3.1"):
    """CMD_CFGI_STE."""

    leaf = bit(64)


class CmdCfgiSteRange(_Sid, opcode=0x04, spec="IHI 0070 §4.3.2"):
    """CMD_CFGI_STE_RANGE; Range 31 is CMD_CFGI_ALL."""

    range = bits(68, 64)


class CmdCfgiCd(_Sid, opcode=0x05, spec="IHI 0070 §4.3.3"):
    """CMD_CFGI_CD; the SubstreamID is valid without SSV."""

    ssid = bits(31, 12)
    leaf = bit(64)


class CmdCfgiCdAll(_Sid, opcode=0x06, spec="IHI 0070 §4.3.4"):
    """CMD_CFGI_CD_ALL."""


class CmdTlbiNhAll(Command, opcode=0x10, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_NH_ALL."""

    vmid = bits(47, 32)


class CmdTlbiNhAsid(Command, opcode=0x11, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_NH_ASID."""

    vmid = bits(47, 32)
    asid = bits(63, 48)


class CmdTlbiNhVa(_Range, opcode=0x12, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_NH_VA."""

    vmid = bits(47, 32)
    asid = bits(63, 48)


class CmdTlbiNhVaa(_Range, opcode=0x13, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_NH_VAA."""

    vmid = bits(47, 32)


class CmdTlbiEl2All(Command, opcode=0x20, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_EL2_ALL."""


class CmdTlbiEl2Asid(Command, opcode=0x21, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_EL2_ASID."""

    asid = bits(63, 48)


class CmdTlbiEl2Va(_Range, opcode=0x22, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_EL2_VA."""

    asid = bits(63, 48)


class CmdTlbiEl2Vaa(_Range, opcode=0x23, spec="IHI 0070 §4.4.2"):
    """CMD_TLBI_EL2_VAA."""


class CmdTlbiS12Vmall(Command, opcode=0x28, spec="IHI 0070 §4.4.3"):
    """CMD_TLBI_S12_VMALL."""

    vmid = bits(47, 32)


class CmdTlbiS2Ipa(_Range, opcode=0x2A, spec="IHI 0070 §4.4.3"):
    """CMD_TLBI_S2_IPA; `addr` is the IPA."""

    vmid = bits(47, 32)


class CmdTlbiNsnhAll(Command, opcode=0x30, spec="IHI 0070 §4.4.4"):
    """CMD_TLBI_NSNH_ALL."""


class CmdAtcInv(_Ssid, opcode=0x40, spec="IHI 0070 §4.5.1"):
    """CMD_ATC_INV; covers 4096 << Size bytes."""

    globl = bit(9)
    size_lg2 = bits(69, 64)
    addr = addr(127, 76, low=12)


class CmdPriResp(_Ssid, opcode=0x41, spec="IHI 0070 §4.5.2"):
    """CMD_PRI_RESP."""

    prgindex = bits(72, 64)
    resp = choice(77, 76, Resp)


class CmdResume(_Sid, opcode=0x44, spec="IHI 0070 §4.7.1"):
    """CMD_RESUME."""

    ac = bit(12)
    ab = bit(13)
    stag = bits(79, 64)


class CmdStallTerm(_Sid, opcode=0x45, spec="IHI 0070 §4.7.2"):
    """CMD_STALL_TERM."""


class CmdSync(Command, opcode=0x46, spec="IHI 0070 §4.7.3"):
    """CMD_SYNC."""

    cs = choice(13, 12, Cs)
    msh = choice(23, 22, Sh)
    msiattr = choice(27, 24, MemAttr)
    msidata = bits(63, 32)
    msiaddress = addr(119, 66, low=2)


CFGI_ALL_RANGE = 31

# CMD_ATC_INV.Size that means the whole address space; more is CERROR_ILL or nothing (§4.5.1).
ATC_INV_ALL = 52

# Opcodes that the architecture defines and a Non-secure command queue without MPAM and DPT
# rejects: number to (name, why), for diagnostics alone (§4.1.1).
REJECTED_OPCODES: dict[int, tuple[str, str]] = {
    0x07: ("CMD_CFGI_VMS_PIDM", "needs IDR3.MPAM=1"),
    0x18: ("CMD_TLBI_EL3_ALL", "Secure command queue only"),
    0x1A: ("CMD_TLBI_EL3_VA", "Secure command queue only"),
    0x50: ("CMD_TLBI_S_EL2_ALL", "Secure command queue only"),
    0x51: ("CMD_TLBI_S_EL2_ASID", "Secure command queue only"),
    0x52: ("CMD_TLBI_S_EL2_VA", "Secure command queue only"),
    0x53: ("CMD_TLBI_S_EL2_VAA", "Secure command queue only"),
    0x58: ("CMD_TLBI_S_S12_VMALL", "Secure command queue only"),
    0x5A: ("CMD_TLBI_S_S2_IPA", "Secure command queue only"),
    0x60: ("CMD_TLBI_SNH_ALL", "Secure command queue only"),
    0x70: ("CMD_DPTI_ALL", "needs IDR3.DPT=1"),
    0x73: ("CMD_DPTI_PA", "needs IDR3.DPT=1"),
}
