# SPDX-License-Identifier: BSD-2-Clause
"""The event queue's writer (IHI 0070 §3.5.1, §7.2).

Records wait in a short list until the engine is stepped, then go to memory in order. A record of
a terminated transaction is lost, as the architecture allows, while the queue cannot be written.
Those of stalled transactions must not be (§3.5.3): they wait in `vsmmu.smmu.stall`, and come here
when there is room.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from vsmmu.arch.events import Event
from vsmmu.arch.registers import (
    Cr0,
    EventqCons,
    EventqProd,
    Gerror,
    Idr1,
    IrqCtrl,
    QueueBase,
)
from vsmmu.queue import Ring
from vsmmu.scheduler import Bell
from vsmmu.smmu.msi import Messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsmmu.memory import Memory
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.trace import Trace

# Records that wait for the writer. A device port holds its requests while there is no room.
PENDING_EVENTS = 64

_EVENTQEN = Cr0.mask("eventqen")[0]
_IRQEN = IrqCtrl.mask("eventq_irqen")[0]
_ABT_ERR = Gerror.mask("eventq_abt_err")[0]
_OVFLG = EventqProd.mask("ovflg")[0]
_OVACKFLG = EventqCons.mask("ovackflg")[0]
_WR = EventqProd.mask("wr")[0]


class EventQueue:
    """Engine that moves records into memory; one unit of budget is one record.

    Args:
        name: engine name; `smmu` is the SMMU's, for the trace.
        regs: EVENTQ_* and GERROR.
        memory: where the queue is.
        address_bits: OAS; queue addresses are truncated to it.
        counters: takes `event.recorded`, `event.dropped`, `event.overflow`, `eventq.high`.
        gerror: called to raise a GERROR field.
        irq: called with "eventq" when the queue stops being empty and no message says so.
    """

    def __init__(
        self, name: str, smmu: str, regs: RegisterFile, memory: Memory, address_bits: int,
        counters: Counter[str], gerror: Callable[[str], None], irq: Callable[[str], None],
        trace: Trace | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.bell = Bell()
        self._smmu = smmu
        self._regs = regs
        self._memory = memory
        self._mask = (1 << address_bits) - 1
        self._counters = counters
        self._gerror = gerror
        self._irq = irq
        self._trace = trace
        self._messages = Messages(regs, memory, counters, gerror)
        self._pending: deque[Event] = deque()
        # Devices that found no room, in the order in which they did.
        self._line: dict[object, None] = {}
        # Records taken and records written or dropped, since reset: CMD_SYNC compares them.
        self.accepted = 0
        self.retired = 0

    @property
    def room(self) -> bool:
        """Whether another record can wait. A device must not translate while there is none."""
        return len(self._pending) < PENDING_EVENTS

    def admits(self, device: object) -> bool:
        """Whether a device may start a transaction: there is room, and none has waited longer.

        One that is not admitted has a place in the line, so that devices that fault again and
        again do not take every room before its turn comes. It has to ask until it is admitted.
        """
        line, free = self._line, PENDING_EVENTS - len(self._pending)
        if not line and free > 0:
            return True
        ahead = next((i for i, other in enumerate(line) if other is device), len(line))
        if ahead < free:
            line.pop(device, None)
            return True
        line[device] = None
        return False

    @property
    def pending(self) -> int:
        """Records that wait for the writer."""
        return len(self._pending)

    def record(self, event: Event) -> None:
        """Take a record. Dropped: with EVENTQEN=0, and if a caller ignored `room`."""
        if not self._regs["CR0ACK"] & _EVENTQEN or not self.room:
            self._counters["event.dropped"] += 1
            return
        self._pending.append(event)
        self.accepted += 1
        self.bell.ring()

    def place(self, event: Event) -> bool:
        """Write a record behind those that wait; False, and no overflow, if it cannot be now."""
        regs = self._regs
        if not regs["CR0ACK"] & _EVENTQEN:
            return False
        self.step(len(self._pending))
        full = self._ring().is_full(regs["EVENTQ_PROD"] & _WR, regs["EVENTQ_CONS"] & _WR)
        return not full and self._write(event)

    def drop_uncommitted(self) -> None:
        """EVENTQEN 1 to 0: records that are not in memory yet are gone (§6.3.9)."""
        self._counters["event.dropped"] += len(self._pending)
        self.retired += len(self._pending)
        self._pending.clear()

    def step(self, budget: int) -> int:
        """Write or drop up to `budget` records; returns how many."""
        done = 0
        while self._pending and done < budget:
            if not self._write(self._pending.popleft()):
                self._counters["event.dropped"] += 1
            self.retired += 1
            done += 1
        return done

    def _ring(self) -> Ring:
        base = QueueBase(self._regs["EVENTQ_BASE"])
        return Ring.of(base.addr & self._mask, base.log2size, _max_log2(self._regs), Event.size)

    def _write(self, event: Event) -> bool:
        regs = self._regs
        if regs.gerror_active & _ABT_ERR:
            return False
        ring = self._ring()
        prod, cons = regs["EVENTQ_PROD"], regs["EVENTQ_CONS"]
        if ring.is_full(prod & _WR, cons & _WR):
            self._overflow(prod, cons)
            return False
        used = ring.used(prod & _WR, cons & _WR)
        if not self._memory.write(ring.address(prod & _WR), bytes(event)):
            self._gerror("eventq_abt_err")
            return False
        regs["EVENTQ_PROD"] = prod & _OVFLG | ring.advance(prod & _WR)
        self._counters["event.recorded"] += 1
        self._counters["eventq.high"] = max(self._counters["eventq.high"], used + 1)
        if self._trace is not None:
            self._trace("smmuv3_record_event", self._smmu, event.name, event.sid)
        if not used and regs["IRQ_CTRLACK"] & _IRQEN and not self._messages.send("eventq"):
            self._irq("eventq")
        return True

    def _overflow(self, prod: int, cons: int) -> None:
        """Toggle OVFLG, unless software has not acknowledged the last overflow (§7.4)."""
        if bool(prod & _OVFLG) == bool(cons & _OVACKFLG):
            self._regs["EVENTQ_PROD"] = prod ^ _OVFLG
            self._counters["event.overflow"] += 1


def _max_log2(regs: RegisterFile) -> int:
    return Idr1.eventqs.of((regs["IDR1"],))
