# SPDX-License-Identifier: BSD-2-Clause
"""The command queue's consumer (IHI 0070 §3.5, §4.8, §7.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.arch.commands import CmdSync, Command, Cs, decode
from vsmmu.arch.registers import Cerror, CmdqCons, Cr0, Gerror, Idr0, Idr1, QueueBase
from vsmmu.queue import Ring
from vsmmu.scheduler import Bell
from vsmmu.smmu import traced
from vsmmu.smmu.commands import ILL, WAIT, Unit, execute
from vsmmu.smmu.msi import Messages

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from vsmmu.memory import Memory
    from vsmmu.smmu.intent import Intent
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.trace import Trace

_CMDQEN = Cr0.mask("cmdqen")[0]
_CMDQ_ERR = Gerror.mask("cmdq_err")[0]
_RD = CmdqCons.mask("rd")[0]


class CommandQueue:
    """Engine that consumes commands; one unit of budget is one command.

    A turn in which a command waits for an endpoint is a unit of work too: the endpoint's time is
    running (`Ats.wait`).

    It works while CMDQEN is set, the queue is not empty and CMDQ_ERR is not active. A bad command
    stops it: CONS stays on it, CONS.ERR says why, and GERROR.CMDQ_ERR follows.

    Args:
        name: engine name; `smmu` is the SMMU's, for the trace.
        unit: what commands act on.
        regs: CMDQ_* and GERROR.
        memory: where the queue is.
        counters: takes `cmd.<name>`, `cmd.fetched`, `cmd.waited`, `cmd.error` and
            `cmd.error.<code>`; `sync.none`, `sync.irq`, `sync.sev`, `sync.behind`,
            `sync.occupancy`; `cmdq.high`; `sev`, events sent to PEs (IDR0.SEV).
        gerror: called to raise a GERROR field.
        irq: called with "cmdq-sync" when a CMD_SYNC asks for an interrupt, message or not.

    Attributes:
        bell: rung for a command, an enable or an acknowledged error.
        intents: by index with wrap bit, what the command there is meant for.
    """

    def __init__(
        self, name: str, smmu: str, unit: Unit, regs: RegisterFile, memory: Memory,
        counters: Counter[str], gerror: Callable[[str], None], irq: Callable[[str], None],
        trace: Trace | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.bell = Bell()
        self._smmu = smmu
        self._unit = unit
        self._regs = regs
        self._memory = memory
        self._counters = counters
        self._gerror = gerror
        self._irq = irq
        self._trace = trace
        self._messages = Messages(regs, memory, counters, gerror)
        self._sev = Idr0.sev.of((regs["IDR0"],))
        self._base = 0
        self._ring = self._located()
        self.intents: dict[int, Intent] = {}
        # Commands since the last CMD_SYNC.
        self._unsynced = 0
        self._waits = False

    def step(self, budget: int) -> int:
        """Consume up to `budget` commands; a command that fails counts."""
        done, self._waits = 0, False
        while done < budget and self._consume():
            done += 1
        return done + int(self._waits and self._unit.ats.wait())

    def _consume(self) -> bool:
        values = self._regs.values
        active = values["GERROR"] ^ values["GERRORN"]
        if not values["CR0ACK"] & _CMDQEN or active & _CMDQ_ERR:
            return False
        if values["CMDQ_BASE"] != self._base:
            self._ring = self._located()
        ring = self._ring
        cons = values["CMDQ_CONS"] & _RD
        pending = ring.pending(values["CMDQ_PROD"], cons)
        if not pending:
            return False
        counters = self._counters
        counters["cmdq.high"] = max(counters["cmdq.high"], pending)
        counters["cmd.fetched"] += 1
        words = self._memory.read_words(ring.address(cons), Command.dwords)
        if words is None:
            return self._stop("fetch", Cerror.ABT)
        command = decode(words)
        if self._trace is not None:
            traced.command(self._trace, self._smmu, command)
        self._unit.intent = self.intents.get(ring.clip(cons)) if self.intents else None
        result = execute(self._unit, command)
        if result == WAIT:
            self._waits = True
            counters["cmd.waited"] += 1
            # It is looked at again and again: what it waits for tells nobody.
            self.bell.ring()
            return False
        if result == ILL:
            return self._stop(command.name, Cerror.ILL)
        counters["cmd." + command.name] += 1
        if self.intents:
            self.intents.pop(ring.clip(cons), None)
        full = self._sev and ring.is_full(values["CMDQ_PROD"], cons)
        values["CMDQ_CONS"] = values["CMDQ_CONS"] & ~_RD | ring.advance(cons)
        if full:
            # Software may wait for room with WFE (§3.5.1).
            counters["sev"] += 1
        if isinstance(command, CmdSync):
            counters["sync.occupancy"] += pending
            counters["sync.behind"] += self._unsynced
            self._unsynced = 0
            self._completed(command)
        else:
            self._unsynced += 1
        return True

    def intend(self, prod: int, intent: Intent) -> None:
        """State what the command at this value of CMDQ_PROD is meant for; see `Smmu.intend`."""
        if self._regs["CMDQ_BASE"] != self._base:
            self._ring = self._located()
        self.intents[self._ring.clip(prod)] = intent

    def _completed(self, command: CmdSync) -> None:
        """The signal of a CMD_SYNC, after CONS has passed it (§4.7.3)."""
        self._counters["sync." + Cs(command.cs).name.lower()] += 1
        if command.cs == Cs.IRQ:
            self._messages.sync(command)
            self._irq("cmdq-sync")
        elif command.cs == Cs.SEV and self._sev:
            self._counters["sev"] += 1

    def _stop(self, command: str, error: Cerror) -> bool:
        self._counters["cmd.error"] += 1
        self._counters["cmd.error." + error.name] += 1
        if self._trace is not None:
            self._trace("smmuv3_cmdq_consume_error", self._smmu, command, error.name)
        self._regs.set_fields("CMDQ_CONS", err=error)
        self._gerror("cmdq_err")
        return True

    def _located(self) -> Ring:
        """The ring that CMDQ_BASE describes; it cannot change while commands are consumed."""
        self._base = self._regs["CMDQ_BASE"]
        base = QueueBase(self._base)
        max_log2 = Idr1.cmdqs.of((self._regs["IDR1"],))
        address = base.addr & ((1 << self._unit.features.oas) - 1)
        return Ring.of(address, base.log2size, max_log2, Command.size)
