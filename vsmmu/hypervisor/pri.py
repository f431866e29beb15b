# SPDX-License-Identifier: BSD-2-Clause
"""A guest's PRI queue: page requests of its own devices, and the answers it may give (IHI 0070 §8).

A request reaches the guest under its vMasterID. A CMD_PRI_RESP is passed on for a group that the
guest was told of in full and has not answered yet. What the guest cannot take is answered as an
SMMU would: Failure where the queue is disabled or aborted, Success, so that the device asks again,
where it is full. A stream that is taken away has nothing left unanswered.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vsmmu.arch.commands import CmdPriResp, Resp
from vsmmu.arch.feature_registers import PriqIrqCfg2
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import EventqCons, EventqProd, Gerror, QueueBase
from vsmmu.hypervisor.domain import Stream
from vsmmu.queue import Ring
from vsmmu.scheduler import Bell

if TYPE_CHECKING:
    from vsmmu.hypervisor.vsmmu import VSmmu

_ABT_ERR = Gerror.mask("priq_abt_err")[0]
_LO = PriqIrqCfg2.mask("lo")[0]


class PriWriter:
    """Writes a vSMMU's page requests into the guest's queue; an engine.

    Args:
        vsmmu: whose queue; takes the counters `page request`, `page request written`,
            `page request overflow`, `page request failed`, `page request discarded`.
        cap: requests that may wait. Past it the guest's queue counts as full.
    """

    def __init__(self, vsmmu: VSmmu, cap: int) -> None:
        self.name = f"{vsmmu.name} pri"
        self.bell = Bell()
        self._vsmmu = vsmmu
        self._cap = cap
        self._pending: deque[tuple[Stream, PriEntry]] = deque()
        # Groups that the guest may answer, with their SubstreamID: by stream and PRG index.
        self._asked: dict[tuple[Stream, int], int | None] = {}

    @property
    def enabled(self) -> bool:
        """Effective PRIQEN: with SMMUEN only, and with IDR0.PRI (§6.3.9)."""
        enables = self._vsmmu.regs.cr0
        return bool(enables.priqen and enables.smmuen)

    @property
    def unread(self) -> bool:
        """Whether the guest's queue holds requests."""
        regs = self._vsmmu.regs
        return self.enabled and bool(self._ring.used(regs["PRIQ_PROD"], regs["PRIQ_CONS"]))

    def take(self, stream: Stream, physical: PriEntry) -> None:
        """A page request or PASID Stop Marker of one of the guest's streams."""
        self._vsmmu.counters["page request"] += 1
        entry = self._named(stream, physical)
        if entry is None:
            return
        if not self.enabled:
            self._fail(stream, entry)
        elif len(self._pending) < self._cap:
            self._pending.append((stream, entry))
            self.bell.ring()
        else:
            self._overflow()
            self._discard(stream, entry)

    def step(self, budget: int) -> int:
        """Write or answer at most `budget` requests."""
        done = 0
        while done < budget and self._pending:
            self._write(*self._pending.popleft())
            done += 1
        if done:
            self._vsmmu.interrupts.update()
        return done

    def respond(self, stream: Stream, command: CmdPriResp) -> None:
        """The guest's answer; no effect for a group that it was not asked about."""
        key = (stream, command.prgindex)
        if key not in self._asked or (command.ssv and command.ssid != self._asked[key]):
            detail = f"vMasterID {stream.vmaster_id:#x}: PRG index {command.prgindex:#x}"
            self._vsmmu.refusals.add("CMD_PRI_RESP never asked", detail)
            return
        ssid = self._asked.pop(key) if command.ssv else None
        self._asked.pop(key, None)
        self._answer(stream, command.prgindex, Resp(command.resp), ssid)

    def drop_uncommitted(self) -> None:
        """PRIQEN or SMMUEN was cleared: what is not in the guest's memory yet fails."""
        while self._pending:
            self._fail(*self._pending.popleft())

    def withdraw(self, stream: Stream) -> list[CmdPriResp]:
        """Forget a stream; what answers its groups that are open."""
        waiting = {e.prgindex for s, e in self._pending if s is stream and not e.stop_marker}
        self._pending = deque((s, e) for s, e in self._pending if s is not stream)
        asked = [key for key in self._asked if key[0] is stream]
        for key in asked:
            del self._asked[key]
        return [failure(stream.pmaster_id, i) for i in sorted(waiting | {i for _, i in asked})]

    @property
    def _ring(self) -> Ring:
        base = QueueBase(self._vsmmu.regs["PRIQ_BASE"])
        address = base.addr & self._vsmmu.address_mask
        return Ring.of(address, base.log2size, self._vsmmu.idr1.priqs, PriEntry.size)

    def _named(self, stream: Stream, physical: PriEntry) -> PriEntry | None:
        """The request under the guest's name; None for a PASID message without substreams."""
        fields = {name: getattr(physical, name) for name in PriEntry.fields}
        fields["sid"] = stream.vmaster_id
        if not (physical.ssv and self._vsmmu.idr1.ssidsize):
            if physical.stop_marker:
                return None
            fields |= {"ssv": 0, "ssid": 0, "priv": 0, "x": 0}
        return PriEntry.build(**fields)

    def _write(self, stream: Stream, entry: PriEntry) -> None:
        vsmmu = self._vsmmu
        regs = vsmmu.regs
        if not self.enabled or regs.gerror_active & _ABT_ERR:
            self._fail(stream, entry)
            return
        prod, cons = EventqProd(regs["PRIQ_PROD"]), EventqCons(regs["PRIQ_CONS"])
        ring = self._ring
        # An overflow that is not acknowledged keeps everything out (§8.1).
        if prod.ovflg != cons.ovackflg or ring.is_full(prod.wr, cons.rd):
            self._overflow()
            self._discard(stream, entry)
            return
        was_empty = not ring.used(prod.wr, cons.rd)
        if not vsmmu.domain.memory.write_words(ring.address(prod.wr), entry.words):
            vsmmu.interrupts.gerror("priq_abt_err")
            self._fail(stream, entry)
            return
        regs["PRIQ_PROD"] = prod.replace(wr=ring.advance(prod.wr)).raw
        vsmmu.counters["page request written"] += 1
        if entry.last and not entry.stop_marker:
            self._asked[stream, entry.prgindex] = entry.ssid if entry.ssv else None
        if entry.last if regs["PRIQ_IRQ_CFG2"] & _LO else was_empty:
            vsmmu.interrupts.occurred("priq")

    def _overflow(self) -> None:
        regs = self._vsmmu.regs
        self._vsmmu.counters["page request overflow"] += 1
        prod, cons = EventqProd(regs["PRIQ_PROD"]), EventqCons(regs["PRIQ_CONS"])
        if prod.ovflg == cons.ovackflg:
            regs["PRIQ_PROD"] = prod.replace(ovflg=1 - prod.ovflg).raw

    def _discard(self, stream: Stream, entry: PriEntry) -> None:
        """No room: one answer for the group, where it ends. Success makes the device ask again."""
        self._vsmmu.counters["page request discarded"] += 1
        if not entry.last or entry.stop_marker:
            return
        known = self._vsmmu.idr3.pps or (stream.raises is None and stream.ppar)
        code = Resp.SUCCESS
        if entry.ssv and not self._vsmmu.idr3.pps and stream.raises is not None:
            # STE.PPAR cannot be read (§8.1).
            code = Resp.FAILURE
        self._answer(stream, entry.prgindex, code, entry.ssid if entry.ssv and known else None)

    def _fail(self, stream: Stream, entry: PriEntry) -> None:
        """No queue: Failure, without PASID (§8.2)."""
        self._vsmmu.counters["page request failed"] += 1
        if not entry.stop_marker:
            self._answer(stream, entry.prgindex, Resp.FAILURE, None)

    def _answer(self, stream: Stream, prgindex: int, code: Resp, ssid: int | None) -> None:
        fields = {"ssv": 1, "ssid": ssid} if ssid is not None else {}
        command = CmdPriResp.build(sid=stream.pmaster_id, prgindex=prgindex, resp=code, **fields)
        self._vsmmu.issue(stream.host, command)


def failure(pmaster_id: int, prgindex: int) -> CmdPriResp:
    """The answer to a group that no guest gets."""
    return CmdPriResp.build(sid=pmaster_id, prgindex=prgindex, resp=Resp.FAILURE)
