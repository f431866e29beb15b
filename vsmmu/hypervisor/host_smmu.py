# SPDX-License-Identifier: BSD-2-Clause
"""The hypervisor's driver of one physical SMMU: its queues, its stream table, its errors.

Many owners (guests and the hypervisor itself) share the one physical command queue. Each has a
FIFO of batches; turns go round robin, a batch at a time, so a guest that queues much waits behind
itself. A batch ends with one CMD_SYNC and is done when the SMMU's consumer has passed it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from vsmmu.arch.registers import (
    BY_NAME,
    Cerror,
    CmdqCons,
    Cr0,
    Cr1,
    Cr2,
    EventqCons,
    EventqProd,
    Idr0,
    Idr1,
    Idr5,
    IrqCtrl,
    QueueBase,
    StallModel,
    StrtabBase,
    StrtabBaseCfg,
    StrtabFmt,
)
from vsmmu.arch.stream_table import L1Std, Ste, SteConfig
from vsmmu.hypervisor.pages import PageAllocator
from vsmmu.hypervisor.policy import Policy
from vsmmu.memory import PAGE, Memory
from vsmmu.queue import Ring
from vsmmu.ste_update import phases

HYPERVISOR = 0
_SPLIT = 8
_SYNC = CmdSync.build(cs=Cs.SEV)
_ABORT_STE = Ste.build(v=1, config=SteConfig.ABORT)

Done = Callable[[], None]


class Hardware(Protocol):
    """What the driver needs of a physical SMMU: its register pages and its engines."""

    name: str

    def mmio_read(self, offset: int, size: int) -> int: ...  # noqa: D102
    def mmio_write(self, offset: int, size: int, value: int) -> None: ...  # noqa: D102


@dataclass(slots=True)
class _Batch:
    commands: list[Command]
    done: Done | None


class HostSmmu:
    """One physical SMMU under the hypervisor; an engine of the scheduler.

    Args:
        path: the node of the host tree, the name under which StreamIDs are keyed.
        hardware: the physical model.
        memory, pages: where queues and tables are put.
        on_event: told every event record that the SMMU wrote.
    """

    def __init__(
        self,
        path: str,
        hardware: Hardware,
        memory: Memory,
        pages: PageAllocator,
        policy: Policy,
        on_event: Callable[[HostSmmu, Event], None],
    ) -> None:
        self.path = path
        self.name = f"driver {path}"
        self.hardware = hardware
        self.counters: Counter[str] = Counter()
        self.by_owner: Counter[int] = Counter()
        self._memory = memory
        self._pages = pages
        self._policy = policy
        self._on_event = on_event
        self._waiting: dict[int, deque[_Batch]] = {}
        self._turns: deque[int] = deque()
        self._running: deque[tuple[int, Done | None]] = deque()
        self._l2: dict[int, int] = {}
        self.idr0 = Idr0(self._read("IDR0"))
        self.idr1 = Idr1(self._read("IDR1"))
        self.idr5 = Idr5(self._read("IDR5"))
        self.sid_bits = min(self.idr1.sidsize, policy.stream_id_bits)
        log2 = policy.physical_queue_log2
        self._cmdq = self._ring(min(log2, self.idr1.cmdqs), 16)
        self._eventq = self._ring(min(log2, self.idr1.eventqs), 32)
        self._prod = 0
        self._cons = 0
        self._event_cons = 0
        self._two_level = bool(self.idr0.st_level) and self.sid_bits > _SPLIT
        entries = 8 << self.sid_bits - _SPLIT if self._two_level else 64 << self.sid_bits
        self._strtab = pages.allocate(entries, entries)

    # Bringing the SMMU up, in the order of §3.11 and §6.3.9.

    def boot(self) -> None:
        """Program the SMMU through MMIO. The caller runs the scheduler until `idle`."""
        self._write("CR0", 0)
        self._write(
            "CR1",
            Cr1.build(table_sh=3, table_oc=1, table_ic=1, queue_sh=3, queue_oc=1, queue_ic=1).raw,
        )
        self._write("CR2", Cr2.build(ptm=1, recinvsid=1).raw)
        self._write("STRTAB_BASE", StrtabBase.build(addr=self._strtab, ra=1).raw)
        fmt = StrtabFmt.TWO_LEVEL if self._two_level else StrtabFmt.LINEAR
        cfg = StrtabBaseCfg.build(log2size=self.sid_bits, split=_SPLIT, fmt=fmt)
        self._write("STRTAB_BASE_CFG", cfg.raw)
        self._write("CMDQ_BASE", self._queue_base(self._cmdq))
        self._write("CMDQ_PROD", 0)
        self._write("CMDQ_CONS", 0)
        self._write("EVENTQ_BASE", self._queue_base(self._eventq))
        self._write("EVENTQ_PROD", 0)
        self._write("EVENTQ_CONS", 0)
        enables = Cr0.build(cmdqen=1, eventqen=1)
        self._write("CR0", enables.raw)
        flush: list[Command] = [CmdCfgiSteRange.build(range=CFGI_ALL_RANGE)]
        if self.idr0.hyp:
            flush.append(CmdTlbiEl2All.build())
        flush.append(CmdTlbiNsnhAll.build())
        self._write("IRQ_CTRL", IrqCtrl.build(gerror_irqen=1, eventq_irqen=1).raw)
        self.submit(HYPERVISOR, flush, lambda: self._write("CR0", enables.replace(smmuen=1).raw))

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the SMMU."""
        return not self._running and not any(self._waiting.values())

    @property
    def can_stall(self) -> bool:
        """Whether faulting accesses can stall (IDR0.STALL_MODEL)."""
        return self.idr0.stall_model == StallModel.STALL_AND_TERMINATE

    def ident(self, name: str) -> int:
        """Value of an identification register, read from the hardware."""
        return self._read(name)

    # Commands.

    def submit(self, owner: int, commands: Sequence[Command], done: Done | None = None) -> None:
        """Queue commands of an owner; `done` is called when a CMD_SYNC after them completed."""
        queue = self._waiting.setdefault(owner, deque())
        if owner not in self._turns:
            self._turns.append(owner)
        limit = self._batch_limit
        chunks = [list(commands[i : i + limit]) for i in range(0, len(commands), limit)] or [[]]
        for chunk in chunks[:-1]:
            queue.append(_Batch(chunk, None))
        queue.append(_Batch(chunks[-1], done))

    def forget(self, owner: int) -> None:
        """Drop what an owner has not got into the queue yet, as when its domain is destroyed."""
        self._waiting.pop(owner, None)
        if owner in self._turns:
            self._turns.remove(owner)

    def step(self, budget: int) -> int:
        """Reap completions, recover from errors, drain events, submit; units of work done.

        The event queue comes before new commands: a guest's commands must not keep events of
        others waiting until the physical queue overflows.
        """
        done = self._reap() + self._recover() + self._drain_events(budget)
        return done + self._submit_turns(budget)

    @property
    def _batch_limit(self) -> int:
        return max(1, min(self._policy.commands_per_turn, self._cmdq.size - 1))

    def _submit_turns(self, budget: int) -> int:
        done = 0
        blocked = 0
        while done < budget and blocked < len(self._turns):
            owner = self._turns[0]
            self._turns.rotate(-1)
            queue = self._waiting.get(owner)
            free = self._cmdq.size - self._cmdq.used(self._prod, self._cons)
            if not queue or len(queue[0].commands) + 1 > free:
                blocked += 1
                continue
            blocked = 0
            batch = queue.popleft()
            done += self._enter(owner, batch)
            if not queue:
                self.forget(owner)
        if done:
            self._write("CMDQ_PROD", self._prod)
        return done

    def _enter(self, owner: int, batch: _Batch) -> int:
        for command in (*batch.commands, _SYNC):
            self._memory.write_words(self._cmdq.address(self._prod), command.words)
            self._prod = self._cmdq.advance(self._prod)
            self.counters[command.name] += 1
        self.by_owner[owner] += len(batch.commands) + 1
        self._running.append((self._prod, batch.done))
        return len(batch.commands) + 1

    def _reap(self) -> int:
        cons = CmdqCons(self._read("CMDQ_CONS")).rd
        moved = self._cmdq.clip(cons - self._cons)
        finished = 0
        while self._running and self._cmdq.clip(self._running[0][0] - self._cons) <= moved:
            _, callback = self._running.popleft()
            finished += 1
            if callback is not None:
                callback()
        self._cons = cons
        return finished

    def _recover(self) -> int:
        """Acknowledge global errors; a command the SMMU calls illegal is replaced by a CMD_SYNC.

        Everything submitted here is built by the hypervisor, so CERROR_ILL means a defect of
        ours; the queue goes on for the other owners and the counter tells.
        """
        active = self._read("GERROR") ^ self._read("GERRORN")
        if not active:
            return 0
        if active & 1:
            cons = CmdqCons(self._read("CMDQ_CONS"))
            self.counters[f"CERROR_{Cerror(cons.err & 3).name}"] += 1
            self._memory.write_words(self._cmdq.address(cons.rd), _SYNC.words)
        self._write("GERRORN", self._read("GERROR"))
        self.counters["gerror"] += 1
        return 1

    # Events.

    def _drain_events(self, budget: int) -> int:
        prod = EventqProd(self._read("EVENTQ_PROD"))
        done = 0
        while done < budget and self._eventq.pending(prod.wr, self._event_cons):
            words = self._memory.read_words(self._eventq.address(self._event_cons), 4)
            self._event_cons = self._eventq.advance(self._event_cons)
            done += 1
            if words is not None:
                self.counters["events"] += 1
                self._on_event(self, events.decode(words))
        acknowledged = EventqCons(self._read("EVENTQ_CONS")).ovackflg
        if prod.ovflg != acknowledged:
            self.counters["event overflow"] += 1
            done += 1
        if done:
            cons = EventqCons.build(rd=self._event_cons, ovackflg=prod.ovflg)
            self._write("EVENTQ_CONS", cons.raw)
        return done

    # The stream table.

    def cover(self, sid: int) -> bool:
        """Make a StreamID's STE exist (aborting); False when it is beyond the table."""
        if sid >> self.sid_bits:
            return False
        if not self._two_level:
            if not self.read_ste(sid).v:
                self._memory.write_words(self._ste_address(sid), _ABORT_STE.words)
            return True
        index = sid >> _SPLIT
        if index not in self._l2:
            table = self._pages.allocate(64 << _SPLIT, 64 << _SPLIT)
            for i in range(1 << _SPLIT):
                self._memory.write_words(table + 64 * i, _ABORT_STE.words)
            self._l2[index] = table
            l1std = L1Std.build(span=_SPLIT + 1, l2ptr=table)
            self._memory.write64(self._strtab + 8 * index, l1std.raw)
            # §3.21.3.1: a cached invalid L1STD is only dropped by a non-leaf CMD_CFGI_STE.
            self.submit(HYPERVISOR, [CmdCfgiSte.build(sid=sid, leaf=0)])
        return True

    def read_ste(self, sid: int) -> Ste:
        """The STE as it stands in memory."""
        words = self._memory.read_words(self._ste_address(sid), 8)
        assert words is not None, "the physical stream table lies in RAM"
        return Ste(words)

    def update_ste(self, owner: int, sid: int, new: Ste, done: Done) -> None:
        """Change an STE phase by phase; `done` after the last CMD_SYNC.

        The caller has no other update of this StreamID under way.
        """
        self._next_phase(owner, sid, iter(phases(self.read_ste(sid), new)), done)

    def _next_phase(
        self, owner: int, sid: int, rest: Iterator[list[tuple[int, int]]], done: Done
    ) -> None:
        phase = next(rest, None)
        if phase is None:
            done()
            return
        address = self._ste_address(sid)
        for index, value in phase:
            self._memory.write64(address + 8 * index, value)
        invalidate = [CmdCfgiSte.build(sid=sid, leaf=1)]
        self.submit(owner, invalidate, lambda: self._next_phase(owner, sid, rest, done))

    def _ste_address(self, sid: int) -> int:
        if self._two_level:
            return self._l2[sid >> _SPLIT] + 64 * (sid % (1 << _SPLIT))
        return self._strtab + 64 * sid

    # Registers.

    def _ring(self, log2size: int, entry: int) -> Ring:
        size = max(entry << log2size, PAGE)
        return Ring(log2size, entry, self._pages.allocate(size, size))

    def _queue_base(self, ring: Ring) -> int:
        return QueueBase.build(log2size=ring.log2size, addr=ring.base, hint=1).raw

    def _read(self, name: str) -> int:
        register = BY_NAME[name]
        return self.hardware.mmio_read(register.offset, register.width // 8)

    def _write(self, name: str, value: int) -> None:
        register = BY_NAME[name]
        self.hardware.mmio_write(register.offset, register.width // 8, value)
