# SPDX-License-Identifier: BSD-2-Clause
"""Records that depend on what the guest's memory says, held until that has been read.

Those of invalid STEs (`shadow.settle`) and of CDs that stage 2 has not got (`events.missing_cd`).
The engine that takes physical events has no business in a guest's memory, so the vSMMU's drain
looks: before it takes another command, and so before a CMD_SYNC that the record belongs to ends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vsmmu.arch.events import Event, FCdFetch
from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.events import missing_cd
from vsmmu.hypervisor.shadow import settle

if TYPE_CHECKING:
    from vsmmu.hypervisor.vsmmu import VSmmu


class Rechecks:
    """The records of one vSMMU that wait, in order.

    Args:
        most: records that may wait; more are taken for what they are.
    """

    def __init__(self, vsmmu: VSmmu, most: int) -> None:
        self._vsmmu = vsmmu
        self._most = most
        self._waiting: deque[tuple[Stream | None, Event]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def deliver(self, record: Event, stream: Stream | None = None) -> None:
        """A record for the guest; with a stream, as its STE or its L1CD decides.

        Nothing overtakes a record that waits.
        """
        if len(self._waiting) < self._most and (stream is not None or self._waiting):
            self._waiting.append((stream, record))
            self._vsmmu.bell.ring()
        else:
            self._vsmmu.raise_event(record)

    def take(self) -> None:
        """The next record: to the guest, or nowhere."""
        stream, record = self._waiting.popleft()
        told: Event | None = record
        if isinstance(record, FCdFetch) and stream is not None:
            told = missing_cd(record, stream, self._vsmmu.domain.memory)
        elif stream is not None:
            told = settle(self._vsmmu, stream, record)
        if told is not None:
            self._vsmmu.raise_event(told)
        else:
            self._vsmmu.counters["event of a valid STE"] += 1
