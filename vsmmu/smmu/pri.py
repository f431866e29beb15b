# SPDX-License-Identifier: BSD-2-Clause
"""The PRI queue: Page Requests of endpoints, and their answers (IHI 0070 §8, §8.3, §4.5.2).

A Page Request that finds no room is answered by the SMMU itself, once for its group: where it is
the group's last (§8.1). Each one that comes while the queue is disabled or in error is answered
(§8.2). A PASID Stop Marker has no answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vsmmu.arch.feature_registers import PriqIrqCfg2
from vsmmu.arch.pri import PrgResponse, PriEntry
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
from vsmmu.smmu.transaction import Access, Fault

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.memory import Memory
    from vsmmu.smmu.ats import Ats
    from vsmmu.smmu.config import Config
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.regfile import RegisterFile

# Page Requests that wait for the writer; what comes on top is treated as an overflow.
PENDING_REQUESTS = 1024

_SMMUEN, _PRIQEN = Cr0.mask("smmuen")[0], Cr0.mask("priqen")[0]
_ENABLED = _SMMUEN | _PRIQEN
_IRQEN = IrqCtrl.mask("priq_irqen")[0]
_ABT_ERR = Gerror.mask("priq_abt_err")[0]
_WR, _RD = EventqProd.mask("wr")[0], EventqCons.mask("rd")[0]
_OVFLG, _OVACKFLG = EventqProd.mask("ovflg")[0], EventqCons.mask("ovackflg")[0]
_LO = PriqIrqCfg2.mask("lo")[0]


class PriQueue:
    """Engine that writes Page Requests to memory; one unit of budget is one of them.

    Args:
        name: engine name.
        regs: PRIQ_*, CR0, GERROR and IRQ_CTRL.
        memory: where the queue is.
        features: OAS, IDR1.PRIQS, IDR3.PPS.
        config: reads STE.PPAR.
        ats: the endpoints.
        counters: takes `pri.request`, `pri.recorded`, `pri.discarded`, `pri.overflow`,
            `pri.response`, `priq.high`.
        gerror: called to raise a GERROR field.
        irq: called with "priq" where no message says it.
    """

    def __init__(
        self, name: str, regs: RegisterFile, memory: Memory, features: Features, config: Config,
        ats: Ats, counters: Counter[str], gerror: Callable[[str], None],
        irq: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.bell = Bell()
        self._regs = regs
        self._memory = memory
        self._features = features
        self._config = config
        self._ats = ats
        self._counters = counters
        self._gerror = gerror
        self._irq = irq
        self._messages = Messages(regs, memory, counters, gerror)
        self._pending: deque[PriEntry] = deque()

    @property
    def enabled(self) -> bool:
        """Effective PRIQEN: with SMMUEN only (§6.3.9)."""
        return self._features.pri and self._regs["CR0ACK"] & _ENABLED == _ENABLED

    def request(self, entry: PriEntry) -> None:
        """Take a Page Request or a PASID Stop Marker; X, Priv and PASID come with SSV alone."""
        self._counters["pri.request"] += 1
        if not (entry.ssv and self._features.idr1.ssidsize):
            entry = entry.replace(ssv=0, ssid=0, x=0, priv=0)
        if not self._features.pri:
            self._fail(entry)
        elif len(self._pending) < PENDING_REQUESTS:
            self._pending.append(entry)
            self.bell.ring()
        else:
            self._discard(entry)

    def respond(self, sid: int, ssid: int | None, prgindex: int, code: PrgResponse) -> None:
        """Send a PRG Response to the endpoint behind a StreamID (CMD_PRI_RESP)."""
        self._counters["pri.response"] += 1
        endpoint = self._ats.endpoints.get(sid)
        if endpoint is not None:
            endpoint.prg_response(ssid, prgindex, code)

    def step(self, budget: int) -> int:
        """Write or answer up to `budget` Page Requests; returns how many."""
        done = 0
        while done < budget and self._pending:
            self._take(self._pending.popleft())
            done += 1
        return done

    def _take(self, entry: PriEntry) -> None:
        regs = self._regs
        if not self.enabled or regs.gerror_active & _ABT_ERR:
            self._fail(entry)
            return
        base = QueueBase(regs["PRIQ_BASE"])
        address = base.addr & (1 << self._features.oas) - 1
        most = Idr1.priqs.of((regs["IDR1"],))
        ring = Ring.of(address, base.log2size, most, PriEntry.size)
        prod, cons = regs["PRIQ_PROD"], regs["PRIQ_CONS"]
        overflown = bool(prod & _OVFLG) != bool(cons & _OVACKFLG)
        if overflown or ring.is_full(prod & _WR, cons & _RD):
            if not overflown:
                regs["PRIQ_PROD"] = prod ^ _OVFLG
                self._counters["pri.overflow"] += 1
            self._discard(entry)
            return
        used = ring.used(prod & _WR, cons & _RD)
        if not self._memory.write(ring.address(prod & _WR), bytes(entry)):
            self._gerror("priq_abt_err")
            self._fail(entry)
            return
        regs["PRIQ_PROD"] = prod & _OVFLG | ring.advance(prod & _WR)
        self._counters["pri.recorded"] += 1
        self._counters["priq.high"] = max(self._counters["priq.high"], used + 1)
        if self._interrupts(entry, was_empty=not used) and regs["IRQ_CTRLACK"] & _IRQEN:
            self._interrupt()

    def _interrupt(self) -> None:
        # Without IDR0.MSI there is no PRIQ_IRQ_CFG0.
        if not (self._features.idr0.msi and self._messages.send("priq")):
            self._irq("priq")

    def _interrupts(self, entry: PriEntry, *, was_empty: bool) -> bool:
        """PRIQ_IRQ_CFG2.LO: for each last request of a group, else when the queue was empty."""
        if self._regs["PRIQ_IRQ_CFG2"] & _LO:
            return bool(entry.last)
        return was_empty

    def _discard(self, entry: PriEntry) -> None:
        """No room: Success makes the endpoint ask again (§8.1)."""
        code, ssid = PrgResponse.SUCCESS, None
        if entry.ssv and self._features.idr3.pps:
            ssid = entry.ssid
        elif entry.ssv:
            stream = self._config.stream(entry.sid)
            if isinstance(stream, Fault):
                code = PrgResponse.FAILURE
                access = Access(entry.sid, entry.addr, False, ssid=entry.ssid)
                self._ats.configuration_fault(stream, access)
            elif stream.ppar:
                ssid = entry.ssid
        self._counters["pri.discarded"] += 1
        if entry.last and not entry.stop_marker:
            self.respond(entry.sid, ssid, entry.prgindex, code)

    def _fail(self, entry: PriEntry) -> None:
        """No queue: every request is answered, whether it is its group's last or not (§8.2)."""
        self._counters["pri.discarded"] += 1
        if not entry.stop_marker:
            self.respond(entry.sid, None, entry.prgindex, PrgResponse.FAILURE)
