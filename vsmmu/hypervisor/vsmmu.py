# SPDX-License-Identifier: BSD-2-Clause
"""The vSMMU: trapped registers, a guest's command queue, shadow STEs, a guest's event queue.

A trapped write only stores a value and notes what has to be done. The work is done by the two
engines, a bounded number of units at a time: the drain, which takes guest commands and keeps the
shadow STEs, and the event writer. A guest's CMD_SYNC completes when the physical CMD_SYNCs behind
everything it waits for have completed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from vsmmu.arch import commands as arch_commands
from vsmmu.arch.commands import CmdCfgiSte, CmdSync, Command, Cs
from vsmmu.arch.events import Event
from vsmmu.arch.registers import (
    Cerror,
    CmdqCons,
    Cr0,
    Gerror,
    Idr0,
    Idr1,
    Idr3,
    Idr5,
    QueueBase,
)
from vsmmu.arch.stream_table import Ste
from vsmmu.hypervisor import commands
from vsmmu.hypervisor.domain import Domain, Stream
from vsmmu.hypervisor.event_writer import EventWriter
from vsmmu.hypervisor.fair_queue import Scope
from vsmmu.hypervisor.host_smmu import HostSmmu
from vsmmu.hypervisor.interrupts import Interrupts, Irq
from vsmmu.hypervisor.policy import Policy, Refusals
from vsmmu.hypervisor.pri import PriWriter
from vsmmu.hypervisor.rechecks import Rechecks
from vsmmu.hypervisor.shadow import shadow
from vsmmu.hypervisor.stale import StaleStreams
from vsmmu.hypervisor.stalls import Stalls
from vsmmu.queue import Ring
from vsmmu.scheduler import Bell
from vsmmu.smmu.features import Features
from vsmmu.smmu.regfile import RegisterFile
from vsmmu.smmu.tap import Tap
from vsmmu.trace import Trace

_CMDQ_ERR = Gerror.mask("cmdq_err")[0]
_CMDQEN = Cr0.mask("cmdqen")[0]
_INDEX = CmdqCons.mask("rd")[0]


class VSmmu:
    """One vSMMU of a domain; its drain is an engine, `event_writer` and `pri` are others.

    Args:
        domain: whose it is.
        base, size: the trapped window in the domain's addresses, bytes.
        ids: identification registers by name, from `features.advertise`.
        irq: where wired interrupts go.
        clock: the present turn of the scheduler, for the caps on events.
    """

    def __init__(
        self,
        domain: Domain,
        base: int,
        size: int,
        ids: Mapping[str, int],
        policy: Policy,
        *,
        irq: Irq | None = None,
        trace: Trace | None = None,
        clock: Callable[[], int] = int,
    ) -> None:
        self.name = f"vsmmu {domain.name}@{base:#x}"
        self.bell = Bell()
        self.domain = domain
        self.base, self.size = base, size
        self.regs = RegisterFile(ids, self._changed)
        self.idr0, self.idr1, self.idr3 = Idr0(ids["IDR0"]), Idr1(ids["IDR1"]), Idr3(ids["IDR3"])
        self.features = Features.recorded(**{n.lower(): v for n, v in ids.items()})
        # Addresses of queues are truncated to OAS (§3.4.3).
        self.address_mask = (1 << self.features.oas) - 1
        self.streams: dict[int, Stream] = {}
        self.hosts: tuple[HostSmmu, ...] = ()
        self.counters: Counter[str] = Counter()
        self.physical: Counter[str] = Counter()
        self.refusals = Refusals(policy.refusals_kept)
        self.event_writer = EventWriter(self, policy, clock)
        self.stalls = Stalls(self, Idr5(ids["IDR5"]).stall_max)
        self.pri = PriWriter(self, policy.pending_page_requests)
        self.trace = trace
        self.tap: Tap | None = None
        self.interrupts = Interrupts(self, irq)
        self._policy = policy
        self.stale = StaleStreams(policy.streams_per_unit)
        self.rechecks = Rechecks(self, policy.pending_events)
        self._cmdq_base = 0
        self._cmdq = self._located()
        self._pending: dict[HostSmmu, dict[Command, Scope | None]] = {}
        self._outstanding = 0
        self._sync: CmdSync | None = None
        self._sync_mark: int | None = None
        self._enabled = 0
        self._edge = False
        # A CMD_ATC_INV of the guest timed out, and no CMD_SYNC has said so yet.
        self._atc_timed_out = False

    # Streams.

    def assign(self, stream: Stream) -> None:
        """Give the guest a stream; its first shadow follows the vSMMU's present state."""
        self.streams[stream.vmaster_id] = stream
        self._recount()
        self.mark(stream)

    def withdraw(self, stream: Stream) -> list[Command]:
        """Take a stream away. The caller changes the physical STE and invalidates.

        Returns:
            Commands that name it and were not sent yet.
        """
        del self.streams[stream.vmaster_id]
        batch = self._pending.get(stream.host, {})
        unsent = [c for c in batch if getattr(c, "sid", None) == stream.pmaster_id]
        for command in unsent:
            del batch[command]
        self.stale.forget(stream)
        self.stalls.forget(stream)
        self._recount()
        return unsent

    def _recount(self) -> None:
        self.hosts = tuple(dict.fromkeys(s.host for s in self.streams.values()))

    # The trap.

    def mmio_read(self, offset: int, size: int) -> int:
        """A trapped read; 0 for what is not a register."""
        self.counters["trap read"] += 1
        value = self.regs.read(offset, size)
        if self.tap is not None:
            self.tap.read(offset, size, value)
        return value

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A trapped write. Constant work, whatever the value."""
        self.counters["trap write"] += 1
        self.regs.write(offset, size, value)
        if self.tap is not None:
            self.tap.written(offset, size, value)

    def _changed(self, name: str) -> None:
        if self.trace is not None:
            self.trace("vsmmu_mmio_write", self.name, name, self.regs[name])
        if name == "CR0":
            self._stop_disabled()
            self._hold_smmuen()
        elif name == "GBPA" and not (self._enabled and Cr0(self.regs["CR0"]).smmuen):
            self.regs.set_fields("GBPA", update=1)
            self._start_edge()
        self.interrupts.update()
        self.bell.ring()
        if self.stalls:
            # Their records may have waited for room.
            self.event_writer.bell.ring()

    def _stop_disabled(self) -> None:
        """A queue that is disabled holds nothing back for its next use (§6.3.9)."""
        enables = self.regs.cr0
        if not enables.cmdqen:
            # Not consumed, so that it is taken again if the queue goes on as it is.
            self._sync = self._sync_mark = None
            self._atc_timed_out = False
        if not enables.eventqen:
            self.event_writer.drop_uncommitted()
        if not self.pri.enabled:
            self.pri.drop_uncommitted()

    def _hold_smmuen(self) -> None:
        """CR0ACK.SMMUEN follows once the shadow STEs do (§6.3.9.6)."""
        wanted = Cr0(self.regs["CR0"]).smmuen
        self.regs.set_fields("CR0ACK", smmuen=self._enabled)
        if wanted != self._enabled or self._edge:
            self._start_edge()

    def _start_edge(self) -> None:
        self._edge = True
        self.stale.mark_all()

    # What commands ask for.

    def mark(self, stream: Stream) -> None:
        """Have a stream's shadow made anew before the next command is taken."""
        self.stale.mark(stream)
        self.bell.ring()

    def issue(self, host: HostSmmu, command: Command, scope: Scope | None = None) -> None:
        """Queue a physical command for the next flush; a repeated one is sent once.

        `scope` is what it is meant for, None where that is what it names.
        """
        self._pending.setdefault(host, {})[command] = scope
        self.bell.ring()

    def begin_sync(self, command: CmdSync) -> None:
        """Flush; CONS passes this CMD_SYNC when the flush and the events before it are done.

        With a physical CMD_SYNC where nothing waits too: until it has completed, the record of an
        access that was terminated may not be in the physical event queue (§4.7.3).
        """
        self._sync, self._sync_mark = command, None
        if self.trace is not None:
            self.trace("vsmmu_sync", self.name, "begin")
        for host in self.hosts:
            self._pending.setdefault(host, {})

    # The drain.

    def step(self, budget: int) -> int:
        """Shadow stale streams, then take commands, until the budget or something to wait for."""
        done = 0
        while done < budget:
            if self.rechecks:
                self.rechecks.take()
            elif self.stale.looking:
                self.stale.look(self.streams.values())
            elif (stream := self.stale.take()) is not None:
                self._shadow(stream)
            elif self._outstanding:
                break
            elif self._edge:
                self._finish_edge()
            elif self._flush_due():
                self._flush()
            elif self._sync is not None:
                if not self._events_settled():
                    break
                self._finish_sync(self._sync)
            elif self._runnable():
                self._consume()
            elif self._pending and any(self._pending.values()):
                self._flush()
            else:
                break
            done += 1
        return done

    def _flush_due(self) -> bool:
        if not self._pending:
            return False
        if self._sync is not None:
            return True
        return sum(map(len, self._pending.values())) >= self._policy.commands_per_flush

    def _flush(self) -> None:
        for host, batch in self._pending.items():
            if not batch and self._sync is None:
                continue
            self._outstanding += 1
            for command in batch:
                self.physical[command.name] += 1
                if self.trace is not None:
                    what = (command.name, repr(command))
                    self.trace("vsmmu_shadow_cmd", self.name, host.path, *what)
            self.physical[CmdSync.name] += 1
            watch = {"timed_out": self._atc_inv_timed_out} if self.idr0.ats else {}
            host.submit(self.domain.domid, batch, self._landed, **watch)
        self._pending = {}

    def _landed(self) -> None:
        self._outstanding -= 1
        self.bell.ring()

    def _atc_inv_timed_out(self) -> None:
        self._atc_timed_out = True

    def _runnable(self) -> bool:
        values = self.regs.values
        prod, cons = values["CMDQ_PROD"], values["CMDQ_CONS"]
        if not (prod ^ cons) & _INDEX:
            return False
        if not values["CR0ACK"] & _CMDQEN or self.regs.gerror_active & _CMDQ_ERR:
            return False
        if values["CMDQ_BASE"] != self._cmdq_base:
            self._cmdq = self._located()
        return bool(self._cmdq.pending(prod, cons))

    def _located(self) -> Ring:
        """The ring that CMDQ_BASE describes; it cannot change while CMDQEN is set."""
        self._cmdq_base = self.regs["CMDQ_BASE"]
        base = QueueBase(self._cmdq_base)
        return Ring.of(base.addr & self.address_mask, base.log2size, self.idr1.cmdqs, Command.size)

    def _consume(self) -> None:
        address = self._cmdq.address(self.regs["CMDQ_CONS"])
        words = self.domain.memory.read_words(address, Command.dwords)
        if words is None:
            self._stop(Cerror.ABT, "command queue outside the guest's memory")
            return
        command = arch_commands.decode(words)
        self.counters[command.name] += 1
        if self.trace is not None:
            self.trace("vsmmu_cmd", self.name, command.name, repr(command))
        error = commands.execute(self, command)
        if error is not None:
            self._stop(error, f"{command.name} {command.words[0]:#x} {command.words[1]:#x}")
        elif self._sync is None:
            self._advance()

    def _advance(self) -> None:
        cons = self.regs["CMDQ_CONS"]
        self.regs["CMDQ_CONS"] = cons & ~_INDEX | self._cmdq.advance(cons)

    def _stop(self, error: Cerror, detail: str) -> None:
        """CONS stays on the command; ERR is set before GERROR shows (§7.1)."""
        self.refusals.add(f"CERROR_{error.name}", detail)
        if self.trace is not None:
            self.trace("vsmmu_refuse", self.name, f"CERROR_{error.name} {detail}")
        self.regs.set_fields("CMDQ_CONS", err=error)
        self.interrupts.gerror("cmdq_err")

    def _events_settled(self) -> bool:
        """Whether the records that had arrived when the flush completed are written or gone."""
        if self._sync_mark is None:
            self._sync_mark = self.event_writer.accepted
        return self.event_writer.retired >= self._sync_mark

    def _finish_sync(self, sync: CmdSync) -> None:
        self._sync = None
        if self.trace is not None:
            self.trace("vsmmu_sync", self.name, "end")
        if self._atc_timed_out:
            # CONS stays on the CMD_SYNC, which completes when it is taken again (§7.1).
            self._atc_timed_out = False
            self._stop(Cerror.ATC_INV_SYNC, "a device did not answer a CMD_ATC_INV")
            return
        self.stalls.synchronise()
        self._advance()
        if sync.cs == Cs.IRQ:
            self.interrupts.sync(sync)

    def _finish_edge(self) -> None:
        wanted = Cr0(self.regs["CR0"]).smmuen
        if not wanted and self.stalls.terminate_all():
            self._flush()
            return
        self._edge = False
        self._enabled = wanted
        self.regs.set_fields("CR0ACK", smmuen=self._enabled)
        self.regs.set_fields("GBPA", update=0)

    # Shadowing.

    def _shadow(self, stream: Stream) -> None:
        target, raises = shadow(self, stream)
        if target == stream.host.read_ste(stream.pmaster_id):
            # Nothing to write, but the CDs cached through this STE have to go as well (§4.3.1).
            stream.raises = raises
            self.issue(stream.host, CmdCfgiSte.build(sid=stream.pmaster_id, leaf=1))
            return
        if self.trace is not None:
            where = (stream.host.path, stream.vmaster_id, stream.pmaster_id)
            config = Ste.fields["config"].show(target.config) if target.v else "invalid"
            self.trace("vsmmu_shadow_ste", self.name, *where, config)
        stream.busy = True
        # Until the update is complete, accesses may still meet what the old STE stood for.
        stream.raises = raises or stream.raises
        self._outstanding += 1
        self.physical["STE update"] += 1
        stream.host.update_ste(
            self.domain.domid, stream.pmaster_id, target, lambda: self._shadowed(stream, raises)
        )

    def _shadowed(self, stream: Stream, raises: Event | None) -> None:
        stream.raises = raises
        self.stale.ended(stream)
        self._landed()

    # Events and the interrupt.

    @property
    def enabled(self) -> bool:
        """Whether accesses may be recorded: SMMUEN is set, or an Update to 0 is not complete."""
        return bool(self._enabled or Cr0(self.regs["CR0"]).smmuen)

    def raise_event(self, event: Event) -> None:
        """An event for the guest; some only as its registers say (§7.3.3, §7.3.8)."""
        if self.event_writer.wants(event):
            self.event_writer.add(event)

    @property
    def levels(self) -> dict[str, bool]:
        """By cause, whether its wired interrupt stands."""
        return self.interrupts.levels

    @property
    def idle(self) -> bool:
        """Whether the drain waits for nothing physical."""
        return not (self._outstanding or self.stale) and self._sync is None
