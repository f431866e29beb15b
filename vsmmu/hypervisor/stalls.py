# SPDX-License-Identifier: BSD-2-Clause
"""A guest's stalled transactions: who may answer which, and what becomes of the others.

The guest gets STAGs of its own, and each stands for one (SMMU, StreamID, STAG) of its own streams;
it can name no other. On each physical SMMU a vSMMU has a share of the places that STALL_MAX gives,
set aside when it is made, so that no guest that leaves its stalls unanswered takes another's. A
transaction past the share is terminated, and its record says Stall=0, as an SMMU may do (IHI 0070
§3.12.2).

A record waits while the guest's queue is full (§3.5.3). Where it cannot be told, because the queue
is disabled or aborted or SMMUEN is 0, the hypervisor terminates the transaction, so that no device
hangs on it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsmmu.arch.commands import CmdResume, CmdStallTerm
from vsmmu.arch.events import Event
from vsmmu.hypervisor.domain import Stream

if TYPE_CHECKING:
    from vsmmu.hypervisor.host_smmu import HostSmmu
    from vsmmu.hypervisor.vsmmu import VSmmu

_STAGS = CmdResume.stag.mask + 1


@dataclass(slots=True, eq=False)
class _Held:
    """One stalled transaction: its stream, physical STAG and record, with the guest's STAG.

    `told` once the record is in the guest's queue.
    """

    stream: Stream
    pstag: int
    event: Event
    told: bool = False


class Stalls:
    """The stalled transactions of one vSMMU.

    Args:
        vsmmu: whose they are; takes the counters `stall`, `stall terminated`, `stall retried`.
        share: how many it may have on each physical SMMU; 0 where stalls are not advertised.
    """

    def __init__(self, vsmmu: VSmmu, share: int) -> None:
        self.share = share
        self._vsmmu = vsmmu
        # By the guest's STAG.
        self._held: dict[int, _Held] = {}
        self._untold: deque[int] = deque()
        self._next = 0

    def __len__(self) -> int:
        """Transactions that the guest has to answer, told or not."""
        return len(self._held)

    def take(self, stream: Stream, event: Event, pstag: int) -> None:
        """A stalled transaction: `event` is the guest's record, with Stall=1 and without STAG."""
        here = [held for held in self._held.values() if held.stream.host is stream.host]
        for vstag, held in list(self._held.items()):
            if held.stream is stream and held.pstag == pstag:
                # The SMMU gives a STAG out again: the transaction that had it is over.
                self._forget(vstag)
                here.remove(held)
        self._vsmmu.counters["stall"] += 1
        if not self._vsmmu.event_writer.open:
            self._vsmmu.counters["event dropped"] += 1
            self._terminate(stream, pstag)
        elif len(here) >= self.share:
            self._terminate(stream, pstag)
            self._vsmmu.event_writer.add(event.replace(stall=0))
        else:
            vstag = self._free_stag()
            self._held[vstag] = _Held(stream, pstag, event.replace(stag=vstag))
            self._untold.append(vstag)
            self._vsmmu.event_writer.bell.ring()

    def step(self, budget: int) -> int:
        """Write at most `budget` records that wait, while the guest's queue takes them."""
        writer, done = self._vsmmu.event_writer, 0
        while done < budget and self._untold:
            held = self._held[self._untold[0]]
            if not writer.open:
                self._vsmmu.counters["event dropped"] += 1
                self._end(self._untold[0])
            elif writer.full:
                break
            elif writer.place(held.event):
                held.told = True
                self._untold.popleft()
            done += 1
        return done

    # What the guest asks for.

    def resume(self, sid: int, vstag: int, *, retry: bool) -> None:
        """CMD_RESUME; nothing happens unless this StreamID was told this STAG (§4.7.1).

        A transaction that is not tried again is aborted: IDR0.TERM_MODEL is 1.
        """
        held = self._held.get(vstag)
        if held is not None and held.told and held.stream.vmaster_id == sid:
            self._forget(vstag)
            self._answer(held.stream, held.pstag, retry=retry)

    def stall_term(self, stream: Stream) -> None:
        """CMD_STALL_TERM of one of the guest's streams (§4.7.2)."""
        self.forget(stream)
        self._vsmmu.issue(stream.host, CmdStallTerm.build(sid=stream.pmaster_id))

    def synchronise(self) -> None:
        """CMD_SYNC: what could not be told by now is tried again (§4.7.3)."""
        self.step(len(self._untold))
        for vstag in list(self._untold):
            held = self._held[vstag]
            self._forget(vstag)
            self._answer(held.stream, held.pstag, retry=True)

    # What ends them without the guest.

    def drop_untold(self) -> None:
        """EVENTQEN was cleared: what is not in the guest's memory yet is terminated."""
        for vstag in list(self._untold):
            self._vsmmu.counters["event dropped"] += 1
            self._end(vstag)

    def terminate_all(self) -> bool:
        """SMMUEN was cleared (§6.3.9.6); False when there was nothing to terminate."""
        streams = dict.fromkeys(held.stream for held in self._held.values())
        for stream in streams:
            self.stall_term(stream)
        return bool(streams)

    def forget(self, stream: Stream) -> None:
        """Drop what is known of a stream; the caller terminates."""
        for vstag, held in list(self._held.items()):
            if held.stream is stream:
                self._forget(vstag)

    def _end(self, vstag: int) -> None:
        held = self._held[vstag]
        self._forget(vstag)
        self._terminate(held.stream, held.pstag)

    def _forget(self, vstag: int) -> None:
        if not self._held.pop(vstag).told:
            self._untold.remove(vstag)

    def _terminate(self, stream: Stream, pstag: int) -> None:
        self._answer(stream, pstag, retry=False)

    def _answer(self, stream: Stream, pstag: int, *, retry: bool) -> None:
        self._vsmmu.counters["stall retried" if retry else "stall terminated"] += 1
        command = CmdResume.build(
            sid=stream.pmaster_id, stag=pstag, ac=int(retry), ab=int(not retry)
        )
        self._vsmmu.issue(stream.host, command)

    def _free_stag(self) -> int:
        while self._next in self._held:
            self._next = (self._next + 1) % _STAGS
        vstag = self._next
        self._next = (vstag + 1) % _STAGS
        return vstag


def terminate(host: HostSmmu, owner: int, event: Event) -> None:
    """End the stalled transaction of a record that no guest gets; nothing if it is not stalled."""
    if getattr(event, "stall", 0):
        stag: int = event.fields["stag"].of(event.words)
        host.submit(owner, [CmdResume.build(sid=event.sid, stag=stag, ab=1)])
