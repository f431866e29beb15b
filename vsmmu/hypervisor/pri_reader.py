# SPDX-License-Identifier: BSD-2-Clause
"""Reads one physical PRI queue; an engine, as `event_reader` is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import EventqCons, EventqProd, QueueBase
from vsmmu.memory import Memory
from vsmmu.queue import Ring


class PriReader:
    """Takes page requests from the queue in order and hands them on.

    Args:
        name: engine name.
        ring: the queue, in `memory`; None for an SMMU whose PRI queue is not used.
        read, write: the SMMU's registers by name.
        counters: takes `page requests` and `page request overflow`.
        on_request: told every request.
    """

    def __init__(
        self,
        name: str,
        ring: Ring | None,
        memory: Memory,
        read: Callable[[str], int],
        write: Callable[[str, int], None],
        counters: Counter[str],
        on_request: Callable[[PriEntry], None],
    ) -> None:
        self.name = name
        self._ring = ring
        self._memory = memory
        self._read = read
        self._write = write
        self._counters = counters
        self._on_request = on_request
        # Requests taken since boot; the low bits are the queue's index.
        self._taken = 0

    def boot(self) -> None:
        """Tell the SMMU where the queue is; PRIQEN is the caller's to set."""
        if self._ring is not None:
            base = QueueBase.build(log2size=self._ring.log2size, addr=self._ring.base, hint=1)
            self._write("PRIQ_BASE", base.raw)
            self._write("PRIQ_PROD", 0)
            self._write("PRIQ_CONS", 0)

    def mark(self) -> int:
        """What `passed` is to be asked for once all requests written by now are handed on."""
        return self._taken + self._pending(EventqProd(self._read("PRIQ_PROD")))

    def passed(self, mark: int) -> bool:
        """Whether the requests before a mark have been handed on."""
        return self._taken >= mark

    def step(self, budget: int) -> int:
        """Hand on at most `budget` requests. An overflow is over once what was there is read."""
        ring = self._ring
        if ring is None:
            return 0
        prod = EventqProd(self._read("PRIQ_PROD"))
        pending = self._pending(prod)
        done = min(budget, pending)
        for _ in range(done):
            words = self._memory.read_words(ring.address(self._taken), PriEntry.dwords)
            self._taken += 1
            if words is not None:
                self._counters["page requests"] += 1
                self._on_request(PriEntry(words))
        cons = EventqCons(self._read("PRIQ_CONS"))
        overflow = prod.ovflg != cons.ovackflg and done == pending
        if overflow:
            self._counters["page request overflow"] += 1
        if done or overflow:
            acknowledged = prod.ovflg if overflow else cons.ovackflg
            cons = EventqCons.build(rd=ring.clip(self._taken), ovackflg=acknowledged)
            self._write("PRIQ_CONS", cons.raw)
        return done

    def _pending(self, prod: EventqProd) -> int:
        ring = self._ring
        return 0 if ring is None else ring.pending(prod.wr, ring.clip(self._taken))
