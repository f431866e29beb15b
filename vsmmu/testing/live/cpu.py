# SPDX-License-Identifier: BSD-2-Clause
"""A vCPU that runs machine code: unicorn, its RAM in place, its device accesses trapped.

It is an engine of the machine's scheduler. A unit of work is a few instructions, so what the
program does is interleaved with every other engine by the scheduler's seed, and nothing but the
seed decides: the CPU's counter counts instructions, not time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import unicorn
from unicorn import arm64_const as arm64

from vsmmu.memory import PAGE
from vsmmu.testing.live import exceptions
from vsmmu.testing.live.exceptions import ALIGNMENT, Fault, access_fault, fetch_fault
from vsmmu.testing.live.image import LiveError
from vsmmu.testing.live.ram import HostRange, Ram
from vsmmu.testing.live.result import VcpuEnd

_X = [getattr(arm64, f"UC_ARM64_REG_X{i}") for i in range(31)]
_PC, _PSTATE = arm64.UC_ARM64_REG_PC, arm64.UC_ARM64_REG_PSTATE
_WRITES = (unicorn.UC_MEM_WRITE, unicorn.UC_MEM_WRITE_UNMAPPED, unicorn.UC_MEM_WRITE_PROT)
_FETCHES = (unicorn.UC_MEM_FETCH_UNMAPPED, unicorn.UC_MEM_FETCH_PROT)
# No instruction is there.
_NEVER = (1 << 64) - 1
# Exceptions in a row, with no instruction between them, after which a vCPU is taken to be lost.
_FUTILE_MAX = 8
# System registers by (op0, op1, CRn, CRm, op2) that would tell this computer's time or are not
# this vCPU's: PMCCNTR_EL0, CNTPCT_EL0 and CNTVCT_EL0 count instructions.
_MPIDR = (3, 0, 0, 0, 5)
_CNTFRQ = (3, 3, 14, 0, 0)
_COUNTERS = ((3, 3, 9, 13, 0), (3, 3, 14, 0, 1), (3, 3, 14, 0, 2))
_MPIDR_RES1 = 1 << 31
FREQUENCY = 1_000_000


class Bus(Protocol):
    """What a vCPU is connected to besides RAM."""

    @property
    def windows(self) -> list[tuple[int, int]]:
        """(base, size) of what it does not do by itself."""
        ...  # pragma: no cover

    def trap(self, vcpu: int, address: int, size: int, value: int | None) -> int | None:
        """An access to a window; None is an external abort."""
        ...  # pragma: no cover

    def irq(self, vcpu: int) -> bool:
        """Whether the IRQ input is high."""
        ...  # pragma: no cover

    @property
    def ended(self) -> bool:
        """Whether the program has asked for the end."""
        ...  # pragma: no cover


class Cpu:
    """One vCPU in AArch64 state at EL1, MMU and caches off, interrupts masked.

    Args:
        entry: where it starts.
        args: X0 and up.
        instructions: it executes no more than these.
        grain: instructions in a unit of work.

    Attributes:
        pc: of the next instruction.
        left, executed: instructions.
        waiting: for an interrupt.
        lockup: why it is given up; empty while it is not.
        code: addresses of the pages that it has executed from.
    """

    def __init__(
        self, name: str, number: int, bus: Bus, ram: Ram, *, entry: int, args: Sequence[int] = (),
        instructions: int, grain: int = 8,
    ) -> None:  # fmt: skip
        self.name = name
        self.number = number
        self.pc = entry
        self.left = instructions
        self.executed = 0
        self.waiting = False
        self.lockup = ""
        self._bus = bus
        self._ram = ram
        self._grain = grain
        self._futile = 0
        self._cause = ""
        self._fault: Fault | None = None
        self._saved: list[int] | None = None
        # An interrupt waits for the program to unmask it, and the program has.
        self._pending = self._unmasked = False
        self._loaded = 0, 0
        # The block that runs and its instructions, and those of the blocks before it in a slice.
        self._block, self._size, self._before = entry, 0, 0
        self.code: set[int] = set()
        self._mapped: list[HostRange] = []
        self._seen: object = None
        self._uc = self._make(args)

    def _make(self, args: Sequence[int]) -> unicorn.Uc:
        uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        uc.ctl_set_cpu_model(arm64.UC_CPU_ARM64_A72)
        for key, value in exceptions.RESET:
            uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (*key, value))
        for register, value in zip(_X, args, strict=False):
            uc.reg_write(register, value)
        for base, size in self._bus.windows:
            uc.mmio_map(base, size, self._piece(base), None, _nothing, None)
            watched = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
            uc.hook_add(watched, self._access, None, base, base + size - 1)
        uc.hook_add(unicorn.UC_HOOK_BLOCK, self._enter_block)
        uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._nowhere)
        uc.hook_add(unicorn.UC_HOOK_INTR, self._exception)
        reads = arm64.UC_ARM64_INS_MRS
        uc.hook_add(unicorn.UC_HOOK_INSN, self._system_read, None, 1, 0, reads)
        return uc

    # The engine.

    def step(self, budget: int) -> int:
        """Execute at most `budget` units; 0 when it has ended or waits for an interrupt."""
        if self._bus.ended or self.lockup or self.left <= 0 or self._ram.gone:
            return 0
        irq = self._bus.irq(self.number)
        if self.waiting and not irq:
            return 0
        self.waiting = False
        self._remap()
        self._pending = irq and self._masked()
        if irq and not self._pending:
            self.pc = exceptions.enter(self._uc, self.pc, None)
        done = self._slice(min(budget * self._grain, self.left))
        self.executed += done
        # An exception that is taken again and again uses up the budget as well.
        self.left -= max(done, 1)
        return max(1, min(budget, done // self._grain))

    def flush(self) -> None:
        """A device wrote to memory: forget translated code."""
        self._uc.ctl_flush_tb()

    @property
    def end(self) -> VcpuEnd:
        """Where it is, and why it does not go on."""
        state = self.lockup or ("waits for an interrupt" if self.waiting else "")
        return VcpuEnd(self.pc, self.executed, state)

    def _slice(self, count: int) -> int:
        """Run `count` instructions or up to what ends them; the instructions executed."""
        self._fault = self._saved = None
        self._unmasked = False
        self._block, self._size, self._before = self.pc, 0, 0
        failed = ""
        try:
            self._uc.emu_start(self.pc, _NEVER, 0, count)
        except unicorn.UcError as error:
            failed = "" if self._fault is not None else str(error)
        self.pc = int(self._uc.reg_read(_PC))
        inside = 0 <= self.pc - self._block <= 4 * self._size
        done = min(count, self._before + ((self.pc - self._block) // 4 if inside else self._size))
        if self._saved is not None:
            for register, value in zip(_X, self._saved, strict=True):
                self._uc.reg_write(register, value)
        if not inside and (self._fault is None or self._fault.ec != exceptions.EC_FETCH):
            # The PC of AArch64 state stands still where it was left.
            failed = "AArch32 state is not modelled"
        self._conclude(failed, short=done < count, stuck=not done)
        return done

    def _conclude(self, failed: str, *, short: bool, stuck: bool) -> None:
        """What comes after a slice: the next one, an exception, a wait, or nothing any more."""
        self._futile = self._futile + 1 if stuck else 0
        if self._fault is not None and not failed:
            # The first of a row of exceptions is what the user wants to know.
            if not (stuck and self._cause):
                self._cause = f"{self._fault.what} at {self.pc:#x}"
            self._take(self._fault)
            return
        self._cause = ""
        if failed:
            self.lockup = f"stopped at {self.pc:#x}: {failed}"
        else:
            # Nothing but WFI ends a slice early and says nothing.
            self.waiting = short and not self._bus.ended and not self._unmasked

    def _take(self, fault: Fault) -> None:
        if self._futile >= _FUTILE_MAX:
            self.lockup = f"{self._cause}, and no exception handler runs at {self.pc:#x}"
            return
        self.pc = exceptions.enter(self._uc, self.pc, fault)

    def _masked(self) -> bool:
        return exceptions.masked(int(self._uc.reg_read(_PSTATE)))

    def _remap(self) -> None:
        """See the RAM that there is now: a stage 2 changes under a running guest."""
        now = self._ram.mappings()
        if now is self._seen:
            return
        self._seen = now
        ranges = self._ram.ranges()
        if ranges == self._mapped:
            return
        for old in self._mapped:
            self._uc.mem_unmap(old.address, old.size)
        for new in ranges:
            self._map(new)
        self._mapped = ranges
        self.flush()

    def _map(self, new: HostRange) -> None:
        kind = unicorn.UC_PROT_ALL if new.writable else _READ_ONLY
        try:
            self._uc.mem_map_ptr(new.address, new.size, kind, ctypes.c_void_p(new.host))
        except unicorn.UcError:
            where = f"RAM at {new.address:#x}+{new.size:#x}"
            raise LiveError(f"{self.name}: {where} lies over a device of the board") from None

    # What unicorn calls. The accesses of one instruction are seen whole by `_access`; to a device
    # they come in pieces of at most 4 bytes, which are cut from what `_access` was given.

    def _access(self, uc: Any, kind: int, address: int, size: int, value: int, _: Any) -> None:
        if self._fault is not None:
            return
        write = kind in _WRITES
        self._loaded = address, 0
        if address % size or size > 8:
            self._abort(access_fault(address, write=write, status=ALIGNMENT))
            return
        stored = value & (1 << 8 * size) - 1 if write else None
        got = self._bus.trap(self.number, address, size, stored)
        if got is None:
            self._abort(access_fault(address, write=write))
        elif write and self._bus.ended:
            uc.emu_stop()
        else:
            self._loaded = address, got

    def _abort(self, fault: Fault) -> None:
        """End the slice before this instruction, whose registers are put back."""
        self._fault = fault
        self._saved = [int(self._uc.reg_read(register)) for register in _X]
        self._uc.emu_stop()

    def _piece(self, base: int) -> Callable[..., int]:
        def read(_: Any, offset: int, size: int, __: Any) -> int:
            address, value = self._loaded
            shift = 8 * (base + offset - address)
            return value >> shift & (1 << 8 * size) - 1 if shift >= 0 else 0

        return read

    def _enter_block(self, uc: Any, address: int, size: int, _: Any) -> None:
        self._before += self._size
        self._block, self._size = address, size // 4
        self.code.add(address & -PAGE)
        # What unmasks interrupts ends a block, and the interrupt is taken there.
        if self._pending and not self._masked():
            self._pending, self._unmasked = False, True
            uc.emu_stop()

    def _nowhere(self, _: Any, kind: int, address: int, *__: Any) -> bool:
        if kind in _FETCHES:
            self._fault = fetch_fault(address)
        else:
            self._fault = access_fault(address, write=kind in _WRITES)
        return False

    def _exception(self, uc: Any, number: int, _: Any) -> None:
        if self._fault is None:
            self._fault = exceptions.from_unicorn(uc, number, int(uc.reg_read(_PC)))
        uc.emu_stop()

    def _system_read(self, uc: Any, register: int, key: Any, _: Any) -> bool:
        name = (key.op0, key.op1, key.crn, key.crm, key.op2)
        if name == _MPIDR:
            value = _MPIDR_RES1 | self.number
        elif name in _COUNTERS:
            value = self.executed + self._before
        elif name == _CNTFRQ:
            value = FREQUENCY
        elif name[1:3] == _CNTFRQ[1:3]:
            # A timer that never runs.
            value = 0
        else:
            return False
        uc.reg_write(register, value)
        return True


_READ_ONLY = unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC


def _nothing(*_: Any) -> None:
    """A piece of a store: `Cpu._access` has had it whole."""
