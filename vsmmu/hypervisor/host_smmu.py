# SPDX-License-Identifier: BSD-2-Clause
"""The hypervisor's driver of one physical SMMU: its queues, its stream table, its errors.

Many owners (guests and the hypervisor itself) share the one physical command queue. Each has a
FIFO of batches and its turns (`fair_queue`), so a guest that queues much waits behind itself. A
batch ends with one CMD_SYNC and is done when the SMMU's consumer has passed it and the events that
the SMMU wrote before have been handed on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Protocol

from vsmmu.arch import events
from vsmmu.arch.commands import (
    CFGI_ALL_RANGE,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdSync,
    CmdTlbiEl2All,
    CmdTlbiNsnhAll,
    Command,
    Cs,
)
from vsmmu.arch.events import Event
from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.registers import (
    Cerror,
    CmdqCons,
    Cr0,
    Cr1,
    Cr2,
    Gbpa,
    Gerror,
    Idr0,
    Idr1,
    Idr5,
    IrqCtrl,
    QueueBase,
    StallModel,
    StrtabBase,
)
from vsmmu.arch.stream_table import Ste
from vsmmu.hypervisor.fair_queue import Batch, Done, FairQueue, Scope
from vsmmu.hypervisor.pages import PageAllocator
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.queue_reader import QueueReader
from vsmmu.hypervisor.stream_table import StreamTable
from vsmmu.memory import PAGE, Memory
from vsmmu.queue import Ring
from vsmmu.scheduler import Bell
from vsmmu.ste_update import phases
from vsmmu.trace import Trace

HYPERVISOR = 0
_SYNC = CmdSync.build(cs=Cs.SEV)
_CMDQ_ERR = Gerror.mask("cmdq_err")[0]
# Offset and size of each register.
_PLACES = {register.name: (register.offset, register.width // 8) for register in EVERY_REGISTER}


class Hardware(Protocol):
    """What the driver needs of a physical SMMU: its register pages and its interrupts.

    `listen` has a function called with "eventq", "priq" or "gerror" for each edge. `intend` takes
    what a command is meant for (`Smmu.intend`), for the count of over-invalidation.
    """

    name: str

    def mmio_read(self, offset: int, size: int) -> int: ...  # noqa: D102
    def mmio_write(self, offset: int, size: int, value: int) -> None: ...  # noqa: D102
    def listen(self, irq: Callable[[str], None]) -> None: ...  # noqa: D102
    def intend(self, prod: int, *intent: Scope) -> None: ...  # noqa: D102


class HostSmmu:
    """One physical SMMU under the hypervisor; an engine, its two readers are others.

    Args:
        path: the node of the host tree, the name under which StreamIDs are keyed.
        hardware: the physical model.
        memory, pages: where queues and tables are put.
        on_event: told every event record that the SMMU wrote.
        on_overflow: told when its event queue was full, so that records are lost.
        on_request: told every page request, where the policy has the PRI queue used.
        trace: told of each batch that somebody waits for.
    """

    def __init__(
        self,
        path: str,
        hardware: Hardware,
        memory: Memory,
        pages: PageAllocator,
        policy: Policy,
        on_event: Callable[[HostSmmu, Event], None],
        on_request: Callable[[HostSmmu, PriEntry], None],
        on_overflow: Callable[[HostSmmu], None],
        trace: Trace | None = None,
    ) -> None:
        self.path = path
        self.name = f"driver {path}"
        self.bell = Bell()
        self.hardware = hardware
        self.counters: Counter[str] = Counter()
        # StreamIDs whose endpoint may have cached translations: their STE had EATS.
        self.ats: set[int] = set()
        self._memory = memory
        self._pages = pages
        # Batches in the queue; batches that the SMMU has passed, by the count of events that must
        # be handed on first.
        self._running: deque[Batch] = deque()
        self._landing: deque[tuple[int, Done]] = deque()
        self.idr0 = Idr0(self._read("IDR0"))
        self.idr1 = Idr1(self._read("IDR1"))
        self.idr5 = Idr5(self._read("IDR5"))
        self.sid_bits = min(self.idr1.sidsize, policy.stream_id_bits)
        log2 = policy.physical_queue_log2
        self._cmdq = self._ring(min(log2, self.idr1.cmdqs), 16)
        self.queue = FairQueue(policy.commands_per_turn, policy.commands_in_queue)
        eventq = self._ring(min(log2, self.idr1.eventqs), Event.size)
        self.event_reader = QueueReader(
            f"events {path}", "EVENTQ", eventq, memory, events.decode, self._read, self._write,
            self.counters, "events", lambda event: on_event(self, event),
            lambda: on_overflow(self),
        )  # fmt: skip
        self.uses_pri = int(policy.pri and self.idr0.pri)
        priq = self._ring(min(log2, self.idr1.priqs), PriEntry.size) if self.uses_pri else None
        self.pri_reader = QueueReader(
            f"page requests {path}", "PRIQ", priq, memory, PriEntry, self._read, self._write,
            self.counters, "page requests", lambda entry: on_request(self, entry),
        )  # fmt: skip
        # GERROR as it was when nothing of it was active.
        self._acknowledged: int | None = None
        self._trace = trace
        self._batches = 0
        # Commands entered and consumed since boot; their low bits are the queue's indexes.
        self._entered = 0
        self._consumed = 0
        hardware.listen(self._interrupt)
        self.table = StreamTable(
            memory, pages, bits=self.sid_bits, two_level=bool(self.idr0.st_level)
        )

    # Bringing the SMMU up, in the order of §3.11 and §6.3.9.

    def boot(self) -> None:
        """Program the SMMU through MMIO. The caller runs the scheduler until `idle`."""
        # Until SMMUEN is set, devices meet GBPA: nothing may reach memory that way (§3.11).
        self._write("GBPA", Gbpa(self._read("GBPA")).replace(abort=1, update=1).raw)
        self._write("CR0", 0)
        self._write(
            "CR1",
            Cr1.build(table_sh=3, table_oc=1, table_ic=1, queue_sh=3, queue_oc=1, queue_ic=1).raw,
        )
        self._write("CR2", Cr2.build(ptm=1, recinvsid=1).raw)
        self._write("STRTAB_BASE", StrtabBase.build(addr=self.table.base, ra=1).raw)
        self._write("STRTAB_BASE_CFG", self.table.config.raw)
        queue = QueueBase.build(log2size=self._cmdq.log2size, addr=self._cmdq.base, hint=1)
        self._write("CMDQ_BASE", queue.raw)
        self._write("CMDQ_PROD", 0)
        self._write("CMDQ_CONS", 0)
        self.event_reader.boot()
        self.pri_reader.boot()
        # Without ATSCHK a Translated transaction passes whatever its STE says (§3.9.2).
        enables = Cr0.build(cmdqen=1, eventqen=1, atschk=self.idr0.ats, priqen=self.uses_pri)
        self._write("CR0", enables.raw)
        flush: list[Command] = [CmdCfgiSteRange.build(range=CFGI_ALL_RANGE)]
        if self.idr0.hyp:
            flush.append(CmdTlbiEl2All.build())
        flush.append(CmdTlbiNsnhAll.build())
        irqs = IrqCtrl.build(gerror_irqen=1, eventq_irqen=1, priq_irqen=self.uses_pri)
        self._write("IRQ_CTRL", irqs.raw)
        self.submit(HYPERVISOR, flush, lambda: self._write("CR0", enables.replace(smmuen=1).raw))

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the SMMU, nor for what it did."""
        return self._entered == self._consumed and not (self._landing or self.queue)

    @property
    def can_stall(self) -> bool:
        """Whether faulting accesses can stall (IDR0.STALL_MODEL)."""
        return self.idr0.stall_model == StallModel.STALL_AND_TERMINATE

    def ident(self, name: str) -> int:
        """Value of an identification register, read from the hardware."""
        return self._read(name)

    # Commands.

    def submit(
        self,
        owner: int,
        commands: Sequence[Command] | Mapping[Command, Scope | None],
        done: Done | None = None,
        timed_out: Done | None = None,
    ) -> None:
        """Queue commands of an owner; `done` is called when a CMD_SYNC after them completed.

        A mapping says what each command is meant for; None is what it names itself. `timed_out` is
        called before `done` if a device did not answer one of their CMD_ATC_INVs.
        """
        scopes = tuple(commands.values()) if isinstance(commands, Mapping) else ()
        listed = tuple(commands)
        if done is not None and self._trace is not None:
            done = self._traced(self._trace, owner, len(listed), done)
        if timed_out is not None:
            # What a CMD_SYNC tells of is whose it is only if nobody else's CMD_SYNC comes before.
            limit = max(min(self.queue.whole, self._cmdq.size) - 1, 1)
            while len(listed) > limit:
                chunk = (*listed[:limit], _SYNC)
                self.queue.submit(owner, chunk, scopes[:limit], None, timed_out)
                listed, scopes = listed[limit:], scopes[limit:]
        self.queue.submit(owner, (*listed, _SYNC), scopes, done, timed_out)
        self.bell.ring()

    def _traced(self, trace: Trace, owner: int, count: int, done: Done) -> Done:
        batch = self._batches
        self._batches += 1
        trace("hyp_submit", self.path, batch, owner, count)

        def completed() -> None:
            trace("hyp_complete", self.path, batch, owner)
            done()

        return completed

    def forget(self, owner: int) -> None:
        """Drop what an owner has not got into the queue yet, as when its domain is destroyed."""
        self.queue.forget(owner)

    def step(self, budget: int) -> int:
        """Recover from errors, complete batches, enter commands; at most `budget` of these.

        What is left of the budget helps the event reader, which alone is no faster than a device
        that does nothing but fault.
        """
        done = self._recover() if budget > 0 else 0
        # An SMMU at rest costs two register reads a turn: machines have fifty of them.
        if self._entered != self._consumed:
            self._reap()
        if self._landing:
            done += self._land(budget - done)
        if self.queue:
            done += self._submit_turns(budget - done)
        if not self.idle:
            # A driver looks at CMDQ_CONS while it has commands in the queue.
            self.bell.ring()
        return done + self.event_reader.step(budget - done)

    def _interrupt(self, line: str) -> None:
        if line == "priq":
            self.pri_reader.bell.ring()
            return
        self.event_reader.bell.ring()
        self.bell.ring()

    def _submit_turns(self, budget: int) -> int:
        room = self._cmdq.size - (self._entered - self._consumed)
        before = self._entered
        for _, batch, first, last in self.queue.take(min(budget, room)):
            for index in range(first, last):
                self._enter(batch.commands[index], batch.scopes[index : index + 1])
            if last == len(batch.commands):
                batch.end = self._entered
                self._running.append(batch)
        if self._entered != before:
            self._write("CMDQ_PROD", self._cmdq.clip(self._entered))
        return self._entered - before

    def _enter(self, command: Command, scope: Sequence[Scope | None]) -> None:
        """Put a command into the queue; `scope` has what it is meant for, or nothing."""
        for stated in scope:
            if stated is not None:
                self.hardware.intend(self._cmdq.clip(self._entered), stated)
        self._memory.write_words(self._cmdq.address(self._entered), command.words)
        self._entered += 1
        self.counters[command.name] += 1

    def _reap(self) -> None:
        """Note which batches the SMMU has passed, and which events it had written by then."""
        cons = CmdqCons(self._read("CMDQ_CONS")).rd
        passed = self._cmdq.clip(cons - self._consumed)
        self._consumed += passed
        self.queue.consume(passed)
        mark = None
        while self._running and self._running[0].end <= self._consumed:
            done = self._running.popleft().done
            if done is not None:
                mark = self.event_reader.mark() if mark is None else mark
                self._landing.append((mark, done))

    def _land(self, budget: int) -> int:
        """Complete batches whose events have been handed on."""
        done = 0
        while done < budget and self._landing and self.event_reader.passed(self._landing[0][0]):
            self._landing.popleft()[1]()
            done += 1
        return done

    def _recover(self) -> int:
        """Acknowledge global errors; a command the SMMU calls illegal is replaced by a CMD_SYNC.

        Everything submitted here is built by the hypervisor, so CERROR_ILL means a defect of
        ours; the queue goes on for the other owners and the counter tells. CERROR_ATC_INV_SYNC
        belongs to the batch that this CMD_SYNC ends, and the CMD_SYNC is taken again (§7.1).
        """
        gerror = self._read("GERROR")
        if gerror == self._acknowledged:
            return 0
        self._acknowledged = gerror
        active = gerror ^ self._read("GERRORN")
        if not active:
            return 0
        if active & _CMDQ_ERR:
            cons = CmdqCons(self._read("CMDQ_CONS"))
            self.counters[f"CERROR_{CmdqCons.err.show(cons.err)}"] += 1
            if cons.err == Cerror.ATC_INV_SYNC:
                self._timed_out()
            else:
                self._memory.write_words(self._cmdq.address(cons.rd), _SYNC.words)
        self._write("GERRORN", gerror)
        self.counters["gerror"] += 1
        return 1

    def _timed_out(self) -> None:
        """Tell the owner of the batch whose CMD_SYNC the SMMU stands on."""
        self._reap()
        for batch in self._running:
            if batch.end == self._consumed + 1 and batch.timed_out is not None:
                batch.timed_out()

    # The stream table.

    def cover(self, sid: int, done: Done) -> None:
        """Make a StreamID's STE exist (aborting); `done` when the SMMU knows.

        The StreamID has at most `sid_bits` bits.
        """
        if self.table.cover(sid):
            # §3.21.3.1: a cached invalid L1STD is only dropped by a non-leaf CMD_CFGI_STE.
            self.submit(HYPERVISOR, [CmdCfgiSte.build(sid=sid, leaf=0)], done)
        else:
            done()

    def read_ste(self, sid: int) -> Ste:
        """The STE as it stands in memory."""
        return self.table.read(sid)

    def update_ste(self, owner: int, sid: int, new: Ste, done: Done) -> None:
        """Change an STE phase by phase; `done` after the last CMD_SYNC.

        The caller has no other update of this StreamID under way.
        """
        if new.eats:
            self.ats.add(sid)
        old = self.read_ste(sid)
        # ATS goes first and comes last: beside another change it would cost an abort.
        states = [old, old.replace(eats=0), new.replace(eats=0), new]
        steps = [phases(*pair) for pair in pairwise(states if old.eats != new.eats else [old, new])]
        self._next_phase(owner, sid, chain.from_iterable(steps), done)

    def _next_phase(
        self, owner: int, sid: int, rest: Iterator[list[tuple[int, int]]], done: Done
    ) -> None:
        phase = next(rest, None)
        if phase is None:
            done()
            return
        self.table.store(sid, phase)
        invalidate = [CmdCfgiSte.build(sid=sid, leaf=1)]
        self.submit(owner, invalidate, lambda: self._next_phase(owner, sid, rest, done))

    # Registers.

    def _ring(self, log2size: int, entry: int) -> Ring:
        size = max(entry << log2size, PAGE)
        return Ring(log2size, entry, self._pages.allocate(size, size))

    def _read(self, name: str) -> int:
        return self.hardware.mmio_read(*_PLACES[name])

    def _write(self, name: str, value: int) -> None:
        self.hardware.mmio_write(*_PLACES[name], value)
