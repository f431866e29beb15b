# SPDX-License-Identifier: BSD-2-Clause
"""What a PE does when it takes an exception to EL1 (Arm ARM D1.3), which unicorn leaves to us."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from unicorn import Uc

# ESR_EL1.EC. One less for an abort from EL0.
EC_UNKNOWN, EC_SVC, EC_FETCH, EC_DATA, EC_BREAK = 0x00, 0x15, 0x21, 0x25, 0x3C
# ISS of an abort: fault status codes, and bits of a data abort.
EXTERNAL, ALIGNMENT = 0x10, 0x21
WRITE, NO_ADDRESS = 1 << 6, 1 << 10
_IL = 1 << 25
_EL1H_MASKED = 0x3C5
_IRQ = 0x80
_MODE, _MASK_I = 0xF, 0x80
# unicorn's keys of system registers: CRn, CRm, op0, op1, op2.
_SPSR_EL1 = (4, 0, 3, 0, 0)
_SCR_EL3, _HCR_EL2 = (1, 1, 3, 6, 0), (1, 1, 3, 4, 0)
# What firmware and a hypervisor have set before EL1 runs: RW, so that an exception may return to
# EL1 in AArch64 state, and NS.
RESET = ((_SCR_EL3, 1 << 10 | 1), (_HCR_EL2, 1 << 31))
# Numbers that unicorn gives the exceptions of its CPU.
_SWI, _PREFETCH_ABORT, _DATA_ABORT, _BKPT = 2, 3, 4, 7


class Fault(NamedTuple):
    """A synchronous exception; `far` where the syndrome has an address."""

    ec: int
    iss: int
    far: int | None
    what: str


def access_fault(address: int, *, write: bool, status: int = EXTERNAL) -> Fault:
    """A data abort at an address."""
    kind = "store to" if write else "load from"
    return Fault(EC_DATA, status | WRITE * write, address, f"{kind} {address:#x}")


def fetch_fault(address: int) -> Fault:
    """An instruction abort at an address."""
    return Fault(EC_FETCH, EXTERNAL, address, f"instruction fetch from {address:#x}")


def from_unicorn(uc: Uc, number: int, pc: int) -> Fault:
    """The exception that unicorn calls `number`, at `pc`.

    An abort of the program's own translation tables comes without its address, and an instruction
    that the CPU has not is of unknown reason, whatever it was.
    """
    if number == _SWI:
        return Fault(EC_SVC, _immediate(uc, pc - 4), None, "SVC")
    if number == _BKPT:
        return Fault(EC_BREAK, _immediate(uc, pc), None, "BRK")
    if number in (_PREFETCH_ABORT, _DATA_ABORT):
        ec = EC_DATA if number == _DATA_ABORT else EC_FETCH
        return Fault(ec, NO_ADDRESS, None, "abort by its own translation")
    return Fault(EC_UNKNOWN, 0, None, "undefined instruction")


def _immediate(uc: Uc, address: int) -> int:
    """The 16-bit immediate of an SVC or BRK."""
    from unicorn import UcError

    try:
        return int.from_bytes(uc.mem_read(address, 4), "little") >> 5 & 0xFFFF
    except UcError:
        return 0


def masked(pstate: int) -> bool:
    """Whether IRQs are masked."""
    return bool(pstate & _MASK_I)


def enter(uc: Uc, pc: int, fault: Fault | None) -> int:
    """Take an exception, an IRQ when `fault` is None; the address of the vector."""
    from unicorn import arm64_const as arm64

    pstate = int(uc.reg_read(arm64.UC_ARM64_REG_PSTATE))
    from_el0 = not pstate & _MODE
    uc.reg_write(arm64.UC_ARM64_REG_ELR_EL1, pc)
    if fault is not None:
        lower = from_el0 and fault.ec in (EC_FETCH, EC_DATA)
        uc.reg_write(arm64.UC_ARM64_REG_ESR_EL1, fault.ec - lower << 26 | _IL | fault.iss)
        if fault.far is not None:
            uc.reg_write(arm64.UC_ARM64_REG_FAR_EL1, fault.far)
    if not pstate & 1:
        # unicorn does not bank SP when PSTATE is written.
        uc.reg_write(arm64.UC_ARM64_REG_SP_EL0, uc.reg_read(arm64.UC_ARM64_REG_SP))
        uc.reg_write(arm64.UC_ARM64_REG_SP, uc.reg_read(arm64.UC_ARM64_REG_SP_EL1))
    uc.reg_write(arm64.UC_ARM64_REG_PSTATE, _EL1H_MASKED)
    # Last: it also makes unicorn derive from PSTATE what it translates for, as the level.
    uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (*_SPSR_EL1, pstate))
    offset = 0x400 if from_el0 else 0x200 * (pstate & 1)
    base = int(uc.reg_read(arm64.UC_ARM64_REG_VBAR_EL1))
    return (base + offset + _IRQ * (fault is None)) & (1 << 64) - 1
