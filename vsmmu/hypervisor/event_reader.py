# SPDX-License-Identifier: BSD-2-Clause
"""Reads one physical event queue; an engine beside the driver's, so neither starves the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from vsmmu.arch import events
from vsmmu.arch.events import Event
from vsmmu.arch.registers import EventqCons, EventqProd
from vsmmu.memory import Memory
from vsmmu.queue import Ring


class EventReader:
    """Takes records from the queue in order and hands them on.

    Args:
        name: engine name.
        ring: the queue, in `memory`.
        read, write: the SMMU's registers by name.
        counters: takes `events` and `event overflow`.
        on_event: told every record.
    """

    def __init__(
        self,
        name: str,
        ring: Ring,
        memory: Memory,
        read: Callable[[str], int],
        write: Callable[[str, int], None],
        counters: Counter[str],
        on_event: Callable[[Event], None],
    ) -> None:
        self.name = name
        self._ring = ring
        self._memory = memory
        self._read = read
        self._write = write
        self._counters = counters
        self._on_event = on_event
        # Records taken since boot; the low bits are the queue's index.
        self._taken = 0
        # EVENTQ_PROD when there was nothing to take and no overflow.
        self._quiet: int | None = None

    def mark(self) -> int:
        """What `passed` is to be asked for once all records written by now are handed on."""
        return self._taken + self._pending(EventqProd(self._read("EVENTQ_PROD")))

    def passed(self, mark: int) -> bool:
        """Whether the records before a mark have been handed on."""
        return self._taken >= mark

    def step(self, budget: int) -> int:
        """Hand on at most `budget` records."""
        raw = self._read("EVENTQ_PROD")
        if raw == self._quiet:
            return 0
        prod = EventqProd(raw)
        pending = self._pending(prod)
        done = min(budget, pending)
        for _ in range(done):
            words = self._memory.read_words(self._ring.address(self._taken), Event.dwords)
            self._taken += 1
            if words is not None:
                self._counters["events"] += 1
                self._on_event(events.decode(words))
        overflow = prod.ovflg != EventqCons(self._read("EVENTQ_CONS")).ovackflg
        if overflow:
            self._counters["event overflow"] += 1
        if done or overflow:
            cons = EventqCons.build(rd=self._ring.clip(self._taken), ovackflg=prod.ovflg)
            self._write("EVENTQ_CONS", cons.raw)
        elif not pending:
            self._quiet = raw
        return done

    def _pending(self, prod: EventqProd) -> int:
        return self._ring.pending(prod.wr, self._ring.clip(self._taken))
