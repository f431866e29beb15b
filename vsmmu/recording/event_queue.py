# SPDX-License-Identifier: BSD-2-Clause
"""What an event queue holds, as the driver that owns it finds it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vsmmu.arch.events import Event
from vsmmu.arch.registers import EventqProd, Idr1, QueueBase
from vsmmu.queue import Ring
from vsmmu.smmu.regfile import RegisterFile

_WR = EventqProd.mask("wr")[0]


class Words(Protocol):
    """Memory: a machine's, or a guest's."""

    def read_words(self, address: int, count: int, /) -> tuple[int, ...] | None: ...  # noqa: D102


def new_records(
    regs: RegisterFile, memory: Words, oas: int, before: int
) -> Iterator[tuple[int, int, int, int]]:
    """The records between an earlier value of EVENTQ_PROD and now.

    Args:
        oas: address bits, to which the queue's address is truncated (§3.4.3).
    """
    base = QueueBase(regs["EVENTQ_BASE"])
    address = base.addr & (1 << oas) - 1
    ring = Ring.of(address, base.log2size, Idr1(regs["IDR1"]).eventqs, Event.size)
    pointer, end = ring.clip(before & _WR), ring.clip(regs["EVENTQ_PROD"] & _WR)
    while pointer != end:
        words = memory.read_words(ring.address(pointer), Event.dwords)
        if words is not None:
            one, two, three, four = words
            yield one, two, three, four
        pointer = ring.advance(pointer)
