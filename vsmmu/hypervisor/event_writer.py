# SPDX-License-Identifier: BSD-2-Clause
"""The producer of a guest's event queue (IHI 0070 §3.5.2, §7.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vsmmu.arch.events import CBadStreamid, Event, FTranslForbidden
from vsmmu.arch.registers import Cr2, EventqCons, EventqProd, Gerror, QueueBase
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.rate import Rate
from vsmmu.queue import Ring
from vsmmu.scheduler import Bell

if TYPE_CHECKING:
    from vsmmu.hypervisor.vsmmu import VSmmu

_EVENTQ_ABT_ERR = Gerror.mask("eventq_abt_err")[0]


class EventWriter:
    """Writes a vSMMU's pending events into the guest's queue; an engine.

    Args:
        vsmmu: whose queue.
        policy: records that may wait, and how many a device and the guest may cause. Past any
            of these caps the guest's queue counts as full.
        clock: the present turn of the scheduler.
    """

    def __init__(self, vsmmu: VSmmu, policy: Policy, clock: Callable[[], int]) -> None:
        self.name = f"{vsmmu.name} events"
        self.bell = Bell()
        self._vsmmu = vsmmu
        self._policy = policy
        self._clock = clock
        self._devices: dict[int, Rate] = {}
        self._pending: deque[Event] = deque()
        # Records taken and records written or dropped, since reset: a CMD_SYNC compares them.
        self.accepted = 0
        self.retired = 0

    def wants(self, event: Event) -> bool:
        """Whether the guest's registers have such a record at all (§7.3.3, §7.3.8)."""
        regs = self._vsmmu.regs
        if isinstance(event, CBadStreamid):
            return bool(Cr2(regs["CR2"]).recinvsid)
        # The physical check is always on: without ATSCHK the guest's SMMU would not have looked.
        forbidden = isinstance(event, FTranslForbidden)
        return not (forbidden and regs.cr0.smmuen > regs.cr0.atschk)

    def add(self, event: Event) -> None:
        """Queue a record, or count it as lost: the guest's queue is disabled, or overflows."""
        if not self.open:
            # Not writable for another reason than being full: no overflow (§7.2).
            self._vsmmu.counters["event dropped"] += 1
        elif len(self._pending) >= self._policy.pending_events or self._too_many(event.sid):
            self.overflow()
        else:
            self._pending.append(event)
            self.accepted += 1
            self.bell.ring()

    def _too_many(self, vmaster_id: int) -> bool:
        """Whether the device or the guest is past its cap; counts the record if not."""
        policy, now = self._policy, self._clock()
        device = self._devices.get(vmaster_id)
        if device is None:
            device = Rate(policy.device_events, policy.device_event_turns)
            self._devices[vmaster_id] = device
        guest = self._vsmmu.domain.event_rate
        for name, rate in (("device", device), ("guest", guest)):
            if rate is not None and not rate.allows(now):
                self._vsmmu.refusals.add(f"event rate of a {name}", f"vMasterID {vmaster_id:#x}")
                return True
        device.take(now)
        if guest is not None:
            guest.take(now)
        return False

    def forget(self, vmaster_id: int) -> None:
        """The next device of this vMasterID starts with a cap of its own."""
        self._devices.pop(vmaster_id, None)

    def drop_uncommitted(self) -> None:
        """EVENTQEN was cleared: what is not in the guest's memory yet is gone."""
        self._vsmmu.counters["event dropped"] += len(self._pending)
        self.retired += len(self._pending)
        self._pending.clear()
        self._vsmmu.stalls.drop_untold()

    @property
    def open(self) -> bool:
        """Whether records can be written but for want of room: enabled, and not aborted."""
        return bool(self._vsmmu.regs.cr0.eventqen and not self._aborted)

    @property
    def full(self) -> bool:
        """Whether there is no room in the guest's queue."""
        regs = self._vsmmu.regs
        return self._ring.is_full(regs["EVENTQ_PROD"], regs["EVENTQ_CONS"])

    @property
    def _ring(self) -> Ring:
        base = QueueBase(self._vsmmu.regs["EVENTQ_BASE"])
        address = base.addr & self._vsmmu.address_mask
        return Ring.of(address, base.log2size, self._vsmmu.idr1.eventqs, 32)

    @property
    def unread(self) -> bool:
        """Whether the guest's queue holds records."""
        regs = self._vsmmu.regs
        if not regs.cr0.eventqen:
            return False
        return bool(self._ring.used(regs["EVENTQ_PROD"], regs["EVENTQ_CONS"]))

    def step(self, budget: int) -> int:
        """Write at most `budget` records; those of stalled transactions after the others."""
        done = 0
        while done < budget and self._pending:
            self._write(self._pending.popleft())
            self.retired += 1
            done += 1
        done += self._vsmmu.stalls.step(budget - done)
        if done:
            self._vsmmu.interrupts.update()
            # A CMD_SYNC may wait for these.
            self._vsmmu.bell.ring()
        return done

    def _write(self, event: Event) -> None:
        """§3.5.2, §7.2: dropped when disabled; OVFLG when full; EVENTQ_ABT_ERR on abort."""
        if not self.open:
            self._vsmmu.counters["event dropped"] += 1
        elif self.full:
            self.overflow()
        elif not self.place(event):
            self._vsmmu.counters["event dropped"] += 1

    def place(self, event: Event) -> bool:
        """Write a record where the queue is open and has room; False when that aborts."""
        vsmmu, regs, ring = self._vsmmu, self._vsmmu.regs, self._ring
        if not vsmmu.domain.memory.write_words(ring.address(regs["EVENTQ_PROD"]), event.words):
            vsmmu.interrupts.gerror("eventq_abt_err")
            return False
        was_empty = not self.unread
        prod = EventqProd(regs["EVENTQ_PROD"])
        regs["EVENTQ_PROD"] = prod.replace(wr=ring.advance(prod.wr)).raw
        vsmmu.counters[event.name] += 1
        if vsmmu.trace is not None:
            vsmmu.trace("vsmmu_event", vsmmu.name, repr(event))
        if was_empty:
            vsmmu.interrupts.occurred("eventq")
        return True

    @property
    def _aborted(self) -> bool:
        return bool(self._vsmmu.regs.gerror_active & _EVENTQ_ABT_ERR)

    def overflow(self) -> None:
        """A record is lost: toggle OVFLG unless an overflow is unacknowledged.

        Only while the queue is enabled (§7.4).
        """
        regs = self._vsmmu.regs
        self._vsmmu.counters["event overflow"] += 1
        if not regs.cr0.eventqen:
            return
        prod, cons = EventqProd(regs["EVENTQ_PROD"]), EventqCons(regs["EVENTQ_CONS"])
        if prod.ovflg == cons.ovackflg:
            regs["EVENTQ_PROD"] = prod.replace(ovflg=1 - prod.ovflg).raw
