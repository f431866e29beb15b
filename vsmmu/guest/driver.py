# SPDX-License-Identifier: BSD-2-Clause
"""A model SMMUv3 driver: probes, boots and uses a vSMMU as the Linux driver does.

Its only means are the register pages that its device tree names, its own memory and its interrupt
line. The order of register writes and commands follows what Linux issues, so a vSMMU that serves
this driver serves that one's sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from vsmmu.arch import events
from vsmmu.arch.commands import (
    CFGI_ALL_RANGE,
    CmdCfgiCd,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPrefetchConfig,
    CmdSync,
    CmdTlbiNhAsid,
    CmdTlbiNsnhAll,
    Command,
    Cs,
)
from vsmmu.arch.context import Cd, Tg1
from vsmmu.arch.events import Event
from vsmmu.arch.registers import (
    BY_NAME,
    Cr0,
    Cr1,
    Cr2,
    EventqCons,
    EventqProd,
    Gerror,
    Idr0,
    Idr1,
    Idr3,
    Idr5,
    IrqCtrl,
    QueueBase,
    StrtabBase,
    StrtabBaseCfg,
    StrtabFmt,
    Ttf,
)
from vsmmu.arch.stream_table import L1Std, S1Dss, Ste, SteConfig
from vsmmu.guest.invalidations import invalidations
from vsmmu.guest.tables import Heap, S1Tables
from vsmmu.guest.vcpu import GuestError, Program, VCpu
from vsmmu.queue import Ring
from vsmmu.ste_update import phases

_SPLIT = 8
_SYNC = CmdSync.build(cs=Cs.SEV, msh=3, msiattr=0xF)
_CMDQ_ERR = Gerror.mask("cmdq_err")[0]
_ABORT = Ste.build(v=1, config=SteConfig.ABORT)
# Index 0 normal non-cacheable, 1 normal write-back, 2 Device-nGnRE.
_MAIR = 0x04FF44
_POLLS = 100_000
# Linux caps its queues too; 256 commands and 128 events are plenty for a model.
_CMDQ_LOG2, _EVENTQ_LOG2 = 8, 7


@dataclass(slots=True)
class Context:
    """One attached address space: its ASID, tables, CD, and the streams that use it."""

    asid: int
    tables: S1Tables
    cd: int
    sids: list[int] = field(default_factory=list)


class SmmuDriver:
    """The driver of one vSMMU.

    Args:
        vcpu: the CPU it runs on.
        base: the vSMMU's registers in guest addresses, from the guest's device tree.
        spis: its interrupts, GIC ids.
        heap: pages for its queues and tables.

    Programs may run on several CPUs of the guest at once: they share the command queue, and each
    waits for its own CMD_SYNC. `clock` tells the virtual time; by it `sync_units` is the longest
    that a CMD_SYNC took, from the write of CMDQ_PROD until its CPU saw it passed. `syncs` counts
    them. `patience` is how often it asks for something before it gives up.
    """

    def __init__(self, vcpu: VCpu, base: int, spis: Collection[int], heap: Heap) -> None:
        self.vcpu = vcpu
        self.base = base
        self.spis = tuple(spis)
        self.heap = heap
        self.events: list[Event] = []
        self.gerrors: list[int] = []
        self.contexts: dict[int, Context] = {}
        self.clock: Callable[[], int] = lambda: 0
        self.booted = False
        self.patience = _POLLS
        self.syncs = self.sync_units = 0
        self._memory = vcpu.memory
        self._l2: dict[int, int] = {}
        self._asid = 0
        self._prod = self._cons = 0
        self._queue: Ring | None = None

    # Probe and reset.

    def boot(self) -> Program:
        """Probe and enable, in the order of Linux's reset."""
        self._probe()
        yield from self._write_acked("CR0", 0)
        self._write(
            "CR1",
            Cr1.build(table_sh=3, table_oc=1, table_ic=1, queue_sh=3, queue_oc=1, queue_ic=1).raw,
        )
        self._write("CR2", Cr2.build(ptm=1, recinvsid=1).raw)
        self._make_stream_table()
        self._queue = self._make_queue("CMDQ", _CMDQ_LOG2, self.idr1.cmdqs, 16)
        self._prod = self._cons = 0
        self._write("CMDQ_PROD", 0)
        self._write("CMDQ_CONS", 0)
        enables = Cr0.build(cmdqen=1)
        yield from self._write_acked("CR0", enables.raw)
        yield from self.issue(CmdCfgiSteRange.build(range=CFGI_ALL_RANGE))
        yield from self.issue(CmdTlbiNsnhAll.build())
        self._eventq = self._make_queue("EVENTQ", _EVENTQ_LOG2, self.idr1.eventqs, 32)
        self._write("EVENTQ_PROD", 0)
        self._write("EVENTQ_CONS", 0)
        enables = enables.replace(eventqen=1)
        yield from self._write_acked("CR0", enables.raw)
        yield from self._write_acked("IRQ_CTRL", 0)
        for name in ("GERROR_IRQ_CFG0", "EVENTQ_IRQ_CFG0"):
            self._write(name, 0)
        for spi in self.spis:
            self.vcpu.handlers[spi] = self.interrupt
        irqs = IrqCtrl.build(gerror_irqen=1, eventq_irqen=1)
        yield from self._write_acked("IRQ_CTRL", irqs.raw)
        yield from self._write_acked("CR0", enables.replace(smmuen=1).raw)
        self.booted = True

    def _probe(self) -> None:
        self.idr0, self.idr1 = Idr0(self._read("IDR0")), Idr1(self._read("IDR1"))
        self.idr3, self.idr5 = Idr3(self._read("IDR3")), Idr5(self._read("IDR5"))
        self._read("IIDR")
        if not self.idr0.s1p:
            raise GuestError("no translation support (IDR0.S1P)")
        if not self.idr0.ttf & Ttf.AARCH64:
            raise GuestError("AArch64 table format not supported (IDR0.TTF)")
        if self.idr1.cmdqs <= 6:
            raise GuestError("command queue too small (IDR1.CMDQS)")
        if not self.idr5.gran4k:
            raise GuestError("no 4 KiB granule (IDR5.GRAN4K)")

    def _make_stream_table(self) -> None:
        bits = self.idr1.sidsize
        self._two_level = bool(self.idr0.st_level) and bits > _SPLIT
        size = 8 << bits - _SPLIT if self._two_level else 64 << bits
        self._strtab = self.heap.allocate(size, max(size, 4096))
        if not self._two_level:
            for sid in range(1 << bits):
                self._memory.write_words(self._strtab + 64 * sid, _ABORT.words)
        self._write("STRTAB_BASE", StrtabBase.build(addr=self._strtab, ra=1).raw)
        fmt = StrtabFmt.TWO_LEVEL if self._two_level else StrtabFmt.LINEAR
        split = _SPLIT if self._two_level else 0
        self._write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=bits, split=split, fmt=fmt).raw)

    def _make_queue(self, name: str, log2: int, limit: int, entry: int) -> Ring:
        log2 = min(log2, limit)
        size = max(entry << log2, 4096)
        ring = Ring(log2, entry, self.heap.allocate(size, size))
        self._write(f"{name}_BASE", QueueBase.build(log2size=log2, addr=ring.base, hint=1).raw)
        return ring

    @property
    def _cmdq(self) -> Ring:
        if self._queue is None:
            raise GuestError("the SMMU is not booted")
        return self._queue

    # Commands.

    def issue(self, *commands: Command) -> Program:
        """Commands and a CMD_SYNC; returns when CONS has passed it. Raises GuestError."""
        yield from self.post(*commands, _SYNC)
        pointer, start = self._prod, self.clock()
        yield
        yield from self._poll(lambda: self._passed(pointer), "CMD_SYNC timeout")
        self.syncs += 1
        self.sync_units = max(self.sync_units, self.clock() - start)

    def post(self, *commands: Command) -> Program:
        """Commands without waiting for their completion; the queue may be smaller than the list."""
        for command in commands:
            if not self._room():
                self._write("CMDQ_PROD", self._prod)
                yield from self._poll(self._room, "command queue stays full")
            self._memory.write_words(self._cmdq.address(self._prod), command.words)
            self._prod = self._cmdq.advance(self._prod)
        self._write("CMDQ_PROD", self._prod)

    def _room(self) -> bool:
        """As Linux, asks the SMMU only where what it last said leaves no room."""
        if self._cmdq.is_full(self._prod, self._cons):
            self._cons = self._read("CMDQ_CONS")
        return not self._cmdq.is_full(self._prod, self._cons)

    def _passed(self, pointer: int) -> bool:
        """Whether the SMMU has consumed what was posted up to `pointer`.

        Other CPUs may have posted since: CONS has passed when no more is left than they posted. A
        queue's size of their commands can be there only when ours are gone.
        """
        self._cons = self._read("CMDQ_CONS")
        since = self._cmdq.used(self._prod, pointer)
        return since > self._cmdq.size or self._cmdq.used(self._prod, self._cons) <= since

    # Streams.

    def attach(self, *sids: int) -> Program:
        """A new address space for these StreamIDs: CD, then STE (Linux's attach)."""
        self._asid += 1
        context = Context(self._asid, S1Tables(self._memory, self.heap), self.heap.allocate(64))
        for sid in sids:
            self._populate(sid)
            context.sids.append(sid)
            self.contexts[sid] = context
        yield from self._write_cd(context)
        target = Ste.build(
            v=1,
            config=SteConfig.S1,
            s1ctxptr=context.cd,
            s1dss=S1Dss.SSID0,
            s1cir=1,
            s1cor=1,
            s1csh=3,
        )
        for sid in sids:
            yield from self._write_ste(sid, target)

    def detach(self, *sids: int) -> Program:
        """Block these StreamIDs, then drop what the TLB holds of their address space."""
        for sid in sids:
            if sid not in self.contexts:
                raise GuestError(f"StreamID {sid:#x} is not attached")
            yield from self._write_ste(sid, _ABORT)
            context = self.contexts.pop(sid)
            context.sids.remove(sid)
            if not context.sids:
                yield from self.issue(CmdTlbiNhAsid.build(asid=context.asid))

    def bypass(self, *sids: int) -> Program:
        """Identity domain: the STE bypasses stage 1."""
        for sid in sids:
            self._populate(sid)
            yield from self._write_ste(sid, Ste.build(v=1, config=SteConfig.BYPASS))

    def _write_cd(self, context: Context) -> Program:
        cd = Cd.build(
            t0sz=64 - context.tables.ias,
            tg0=0,
            ir0=1,
            or0=1,
            sh0=3,
            epd1=1,
            tg1=Tg1.G4K,
            ips=self.idr5.oas,
            aa64=1,
            r=1,
            a=1,
            aset=1,
            asid=context.asid,
            v=1,
            ttb0=context.tables.ttb,
            mair0=_MAIR,
        )
        invalidate = [CmdCfgiCd.build(sid=sid, leaf=1) for sid in context.sids]
        self._memory.write_words(context.cd + 8, cd.words[1:])
        yield from self.issue(*invalidate)
        self._memory.write64(context.cd, cd.words[0])
        yield from self.issue(*invalidate)

    def _write_ste(self, sid: int, target: Ste) -> Program:
        address = self.ste_address(sid)
        words = self._memory.read_words(address, 8)
        if words is None:
            raise GuestError(f"STE {address:#x} is not RAM")
        for phase in phases(Ste(words), target):
            for index, value in phase:
                self._memory.write64(address + 8 * index, value)
            yield from self.issue(CmdCfgiSte.build(sid=sid, leaf=1))
        yield from self.post(CmdPrefetchConfig.build(sid=sid))

    def _populate(self, sid: int) -> None:
        """Make the STE exist. As Linux, no command for the changed L1STD."""
        if not self._cmdq.size or sid >> self.idr1.sidsize:
            raise GuestError(f"StreamID {sid:#x} is out of range")
        index = sid >> _SPLIT
        if not self._two_level or index in self._l2:
            return
        table = self.heap.allocate(64 << _SPLIT, 64 << _SPLIT)
        for i in range(1 << _SPLIT):
            self._memory.write_words(table + 64 * i, _ABORT.words)
        self._l2[index] = table
        l1std = L1Std.build(span=_SPLIT + 1, l2ptr=table)
        self._memory.write64(self._strtab + 8 * index, l1std.raw)

    def ste_address(self, sid: int) -> int:
        """Where the STE of a populated StreamID lies in guest memory. Raises GuestError."""
        if self._queue is None or (self._two_level and sid >> _SPLIT not in self._l2):
            raise GuestError(f"StreamID {sid:#x} has no STE yet")
        if self._two_level:
            return self._l2[sid >> _SPLIT] + 64 * (sid % (1 << _SPLIT))
        return self._strtab + 64 * sid

    # Mappings.

    def map(self, sid: int, iova: int, ipa: int, size: int, *, write: bool = True) -> None:
        """Map a range; needs no command, since faulting entries are not cached."""
        self._context(sid).tables.map(iova, ipa, size, write=write)

    def unmap(self, sid: int, iova: int, size: int) -> Program:
        """Clear a range, invalidate it by address and wait."""
        context = self._context(sid)
        context.tables.unmap(iova, size)
        yield from self.issue(*invalidations(context.asid, iova, size, ril=bool(self.idr3.ril)))

    def clear(self, sid: int, iova: int, size: int) -> None:
        """Clear a range and leave its invalidation to a later `flush`, as Linux does by default."""
        self._context(sid).tables.unmap(iova, size)

    def flush(self, sid: int) -> Program:
        """Invalidate all of an address space and wait."""
        yield from self.issue(CmdTlbiNhAsid.build(asid=self._context(sid).asid))

    def _context(self, sid: int) -> Context:
        if sid not in self.contexts:
            raise GuestError(f"vMasterID {sid:#x} is not attached")
        return self.contexts[sid]

    # Interrupts.

    def interrupt(self) -> Program:
        """Drain the event queue, then acknowledge global errors."""
        yield
        prod = EventqProd(self._read("EVENTQ_PROD"))
        cons = self._read("EVENTQ_CONS")
        while self._eventq.pending(prod.wr, cons):
            words = self._memory.read_words(self._eventq.address(cons), 4)
            if words is not None:
                self.events.append(events.decode(words))
            cons = self._eventq.advance(cons)
            if not self._eventq.pending(prod.wr, cons):
                prod = EventqProd(self._read("EVENTQ_PROD"))
            self._write("EVENTQ_CONS", EventqCons.build(rd=cons, ovackflg=prod.ovflg).raw)
            yield
        active = self._read("GERROR") ^ self._read("GERRORN")
        if active:
            self.gerrors.append(active)
            if active & _CMDQ_ERR:
                bad = self._cmdq.address(self._read("CMDQ_CONS"))
                self._memory.write_words(bad, _SYNC.words)
            self._write("GERRORN", self._read("GERROR"))

    # Registers.

    def _poll(self, ready: Callable[[], bool], problem: str) -> Program:
        for _ in range(self.patience):
            if ready():
                return
            yield True
        raise GuestError(problem)

    def _write_acked(self, name: str, value: int) -> Program:
        self._write(name, value)
        yield from self._poll(lambda: self._read(f"{name}ACK") == value, f"{name}ACK timeout")

    def _read(self, name: str) -> int:
        register = BY_NAME[name]
        return self.vcpu.read(self.base + register.offset, register.width // 8)

    def _write(self, name: str, value: int) -> None:
        register = BY_NAME[name]
        self.vcpu.write(self.base + register.offset, value, register.width // 8)
