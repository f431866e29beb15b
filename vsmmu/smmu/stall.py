# SPDX-License-Identifier: BSD-2-Clause
"""Stalled transactions, held until software answers their record (IHI 0070 §3.12.2, §4.7).

A transaction that stalls gets a STAG and a record, which is never dropped: while the event queue
cannot be written it waits here. What stands behind another of the same kind, or behind STALL_MAX
others, is held without a record and tried again when one of them ends. A CMD_SYNC writes the
records that can be written and has every transaction without a written record tried again, so
that none hangs because its record cannot be written; a new fault makes a new record.

Records of other transactions may be merged (§3.5.5, §7.3.1): into an identical one that has not
reached the queue yet, where STE.MEV allows it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsmmu.arch.commands import CmdResume
from vsmmu.arch.events import TRANSLATION_FAULTS, Event, FTlbConflict, FTranslForbidden, FWalkEabt
from vsmmu.scheduler import Bell
from vsmmu.smmu.transaction import Access, Outcome

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.smmu.eventq import EventQueue

# What becomes of a stalled transaction.
HELD, RETRY, ABORT, RAZWI = range(4)

_STAGS = CmdResume.stag.mask + 1
_IN_PAGE = 0xFFF
# Records that differ in the offset within a page count as identical (§7.3.1).
_BY_PAGE = TRANSLATION_FAULTS | {FTranslForbidden.number, FWalkEabt.number, FTlbConflict.number}


@dataclass(slots=True, eq=False)
class Stalled:
    """A transaction that is held; `fate` says what to do with it, RETRY as if newly arrived.

    `event` is its record. `stag` is None while it waits without a record of its own; `recorded`
    says whether software could see the record. `bell` is that of the device that waits.
    """

    access: Access
    event: Event
    fate: int = HELD
    stag: int | None = None
    recorded: bool = False
    bell: Bell | None = None

    def end(self, fate: int) -> None:
        """Tell its device what to do with it."""
        self.fate = fate
        if self.bell is not None:
            self.bell.ring()

    @property
    def outcome(self) -> Outcome:
        """The end of a terminated one."""
        event = self.event if self.recorded else None
        return Outcome("razwi" if self.fate == RAZWI else "fault", None, event)


class StallBuffer:
    """Engine that writes the records of stalled transactions; one unit of budget is one record.

    Args:
        name: engine name.
        limit: IDR5.STALL_MAX, transactions that may have a STAG.
        eventq: what writes records.
        counters: takes `stall.held`, `stall.suppressed`, `stall.withdrawn`, `stall.retried`,
            `stall.terminated`, `stall.high`.
    """

    def __init__(self, name: str, limit: int, eventq: EventQueue, counters: Counter[str]) -> None:
        self.name = name
        self.bell = Bell()
        self.limit = limit
        self._eventq = eventq
        self._counters = counters
        # In order of arrival: those with a STAG, those that wait for one of them.
        self._tagged: dict[int, Stalled] = {}
        self._behind: list[Stalled] = []
        self._unwritten: deque[Stalled] = deque()
        self._kinds: dict[tuple[int, ...], Stalled] = {}
        self._next_stag = 0

    def __len__(self) -> int:
        """Transactions that are held."""
        return len(self._tagged) + len(self._behind)

    @property
    def unwritten(self) -> int:
        """Records that are due and not in the event queue yet."""
        return len(self._unwritten)

    def hold(self, access: Access, event: Event) -> Stalled:
        """Stall a transaction; `event` is its record but for the STAG."""
        item = Stalled(access, event)
        kind = _kind(event)
        self._counters["stall.held"] += 1
        self._counters["stall.high"] = max(self._counters["stall.high"], len(self) + 1)
        if kind in self._kinds or len(self._tagged) >= self.limit:
            self._counters["stall.suppressed"] += 1
            self._behind.append(item)
            return item
        item.stag = self._free_stag()
        item.event = event.replace(stag=item.stag)
        self._tagged[item.stag] = self._kinds[kind] = item
        self._unwritten.append(item)
        self.bell.ring()
        return item

    def step(self, budget: int) -> int:
        """Write up to `budget` records while the event queue takes them; returns how many."""
        done = 0
        while done < budget and self._unwritten and self._eventq.place(self._unwritten[0].event):
            self._unwritten.popleft().recorded = True
            done += 1
        if self._unwritten:
            self.bell.ring()
        return done

    # Commands and CR0.

    def resume(self, sid: int, stag: int, fate: int) -> None:
        """CMD_RESUME; a STAG that this StreamID has not been told matches nothing (§4.7.1)."""
        item = self._tagged.get(stag)
        if item is not None and item.recorded and item.access.sid == sid:
            self._release(item, fate)
            self._wake()

    def terminate(self, sid: int | None = None) -> None:
        """Abort what is held of a StreamID (CMD_STALL_TERM), or all (SMMUEN 1 to 0, §6.3.9)."""
        for item in [*self._tagged.values(), *self._behind]:
            if sid is None or item.access.sid == sid:
                self._release(item, ABORT)
        self._wake()

    def synchronise(self) -> None:
        """CMD_SYNC: what has no written record by now is tried again (§4.7.3)."""
        self.step(len(self._unwritten))
        for item in list(self._unwritten):
            self._release(item, RETRY)
        self._wake()

    def _wake(self) -> None:
        """Try those without a STAG again: a place may be free, or their kind be gone."""
        for item in list(self._behind):
            self._release(item, RETRY)

    def _release(self, item: Stalled, fate: int) -> None:
        item.end(fate)
        self._counters["stall.retried" if fate == RETRY else "stall.terminated"] += 1
        if item.stag is None:
            self._behind.remove(item)
            return
        del self._tagged[item.stag]
        del self._kinds[_kind(item.event)]
        if not item.recorded:
            self._counters["stall.withdrawn"] += 1
            self._unwritten.remove(item)

    def _free_stag(self) -> int:
        while self._next_stag in self._tagged:
            self._next_stag = (self._next_stag + 1) % _STAGS
        stag = self._next_stag
        self._next_stag = (stag + 1) % _STAGS
        return stag


def _kind(event: Event) -> tuple[int, ...]:
    """What two stalled transactions share if one record stands for both (§3.12.2.1)."""
    return _contents(event.replace(stag=0))


class Merger:
    """Hands records of streams with STE.MEV to the event queue.

    Args:
        eventq: takes the records.
        counters: takes `event.merged`.
    """

    def __init__(self, eventq: EventQueue, counters: Counter[str]) -> None:
        self._eventq = eventq
        self._counters = counters
        # Number of the record in the event queue's count, by contents.
        self._waiting: dict[tuple[int, ...], int] = {}

    def record(self, event: Event) -> None:
        """Take a record, unless an identical one still waits."""
        retired = self._eventq.retired
        key = _contents(event)
        if self._waiting.get(key, 0) > retired:
            self._counters["event.merged"] += 1
            return
        self._waiting = {k: number for k, number in self._waiting.items() if number > retired}
        accepted = self._eventq.accepted
        self._eventq.record(event)
        if self._eventq.accepted != accepted:
            self._waiting[key] = self._eventq.accepted


def _contents(event: Event) -> tuple[int, ...]:
    if event.number not in _BY_PAGE:
        return event.words
    address = event.fields["inputaddr"].of(event.words) & ~_IN_PAGE
    return event.replace(inputaddr=address).words
