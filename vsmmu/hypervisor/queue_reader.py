# SPDX-License-Identifier: BSD-2-Clause
"""Reads a physical queue that the SMMU writes: events, or page requests.

An engine beside the driver's, so that neither starves the other. The queue's interrupt, an
edge when the queue stops being empty, rings its bell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from vsmmu.arch.registers import EventqCons, EventqProd, QueueBase
from vsmmu.memory import Memory
from vsmmu.queue import Ring
from vsmmu.scheduler import Bell

_Record = TypeVar("_Record")


class QueueReader(Generic[_Record]):
    """Takes records from a queue in order and hands them on.

    Args:
        name: engine name.
        queue: which, by its registers; those of the two are alike.
        ring: the queue, in `memory`; None for one that is not used.
        decode: words to a record.
        read, write: the SMMU's registers by name.
        counters: takes `counted`, for each record, and `counted` with " overflow".
        on_record: told every record.
        on_overflow: called when an overflow is acknowledged: records were lost.
    """

    def __init__(
        self,
        name: str,
        queue: Literal["EVENTQ", "PRIQ"],
        ring: Ring | None,
        memory: Memory,
        decode: Callable[[tuple[int, ...]], _Record],
        read: Callable[[str], int],
        write: Callable[[str, int], None],
        counters: Counter[str],
        counted: str,
        on_record: Callable[[_Record], None],
        on_overflow: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.bell = Bell()
        self._base, self._prod, self._cons = (f"{queue}_{end}" for end in ("BASE", "PROD", "CONS"))
        self._ring = ring
        self._memory = memory
        self._decode = decode
        self._read = read
        self._write = write
        self._counters = counters
        self._counted = counted
        self._on_record = on_record
        self._on_overflow = on_overflow
        # Records taken since boot; the low bits are the queue's index.
        self._taken = 0
        # PROD when there was nothing to take and no overflow. Valid until something is
        # taken: PROD could then be the same beside a full queue.
        self._quiet: int | None = None

    def boot(self) -> None:
        """Tell the SMMU where the queue is; its enable is the caller's to set."""
        if self._ring is not None:
            base = QueueBase.build(log2size=self._ring.log2size, addr=self._ring.base, hint=1)
            self._write(self._base, base.raw)
            self._write(self._prod, 0)
            self._write(self._cons, 0)

    def mark(self) -> int:
        """What `passed` is to be asked for once all records written by now are handed on."""
        if self._ring is None:
            return 0
        return self._taken + self._pending(self._ring, EventqProd(self._read(self._prod)))

    def passed(self, mark: int) -> bool:
        """Whether the records before a mark have been handed on."""
        return self._taken >= mark

    def step(self, budget: int) -> int:
        """Hand on at most `budget` records. An overflow is over once what was there is read."""
        ring = self._ring
        if ring is None:
            return 0
        raw = self._read(self._prod)
        if raw == self._quiet:
            return 0
        prod = EventqProd(raw)
        pending = self._pending(ring, prod)
        done = min(budget, pending)
        for _ in range(done):
            words = self._memory.read_words(ring.address(self._taken), ring.entry // 8)
            self._taken += 1
            if words is not None:
                self._counters[self._counted] += 1
                self._on_record(self._decode(words))
        acknowledged = EventqCons(self._read(self._cons)).ovackflg
        overflow = prod.ovflg != acknowledged and done == pending
        if overflow:
            self._counters[self._counted + " overflow"] += 1
            self._on_overflow()
            acknowledged = prod.ovflg
        if done or overflow:
            self._quiet = None
            cons = EventqCons.build(rd=ring.clip(self._taken), ovackflg=acknowledged)
            self._write(self._cons, cons.raw)
        elif not pending:
            self._quiet = raw
        return done

    def _pending(self, ring: Ring, prod: EventqProd) -> int:
        return ring.pending(prod.wr, ring.clip(self._taken))
