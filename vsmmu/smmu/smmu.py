# SPDX-License-Identifier: BSD-2-Clause
"""One SMMUv3: registers, engines, translation, wired together (IHI 0070).

A register write only stores and enables. Commands are consumed and events written when the
engines are stepped, so a driver and its SMMU can be interleaved in any order.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vsmmu.arch.registers import Cerror, Cr0, Gerror, IrqCtrl
from vsmmu.smmu import traced
from vsmmu.smmu.ats import Ats
from vsmmu.smmu.broadcast import broadcast
from vsmmu.smmu.cmdq import CommandQueue
from vsmmu.smmu.config import CACHING, Config
from vsmmu.smmu.eventq import EventQueue
from vsmmu.smmu.msi import Messages
from vsmmu.smmu.pri import PriQueue
from vsmmu.smmu.regfile import RegisterFile, register_at
from vsmmu.smmu.stall import Merger, StallBuffer, Stalled
from vsmmu.smmu.tlb import TLB_ENTRIES, Tlb
from vsmmu.smmu.transaction import Access, Outcome
from vsmmu.smmu.translate import STALL, Translator
from vsmmu.smmu.walk import Walker

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from vsmmu.arch.events import Event
    from vsmmu.memory import Memory
    from vsmmu.scheduler import Engine
    from vsmmu.smmu.batch import Translations
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.intent import ConfigScope, Intent, TlbScope
    from vsmmu.smmu.tap import DmaTap, Tap
    from vsmmu.trace import Trace

__all__ = ["Access", "Outcome", "Smmu"]

_SMMUEN = Cr0.mask("smmuen")[0]
_CMDQEN = Cr0.mask("cmdqen")[0]
_EVENTQEN = Cr0.mask("eventqen")[0]
# What the command consumer looks at.
_COMMANDS = frozenset(("CR0", "CMDQ_BASE", "CMDQ_PROD", "CMDQ_CONS", "GERRORN"))
_GERROR_IRQEN = IrqCtrl.mask("gerror_irqen")[0]
# Counters of which each stands for one read, or one write, of memory.
_READS = (
    "cmd.fetched", "config.prefetched",
    "walk.l1std", "walk.ste", "walk.l1cd", "walk.cd", "walk.s1", "walk.s2",
)  # fmt: skip
_WRITES = ("event.recorded", "pri.recorded", "httu.written", "msi.written")
_NO_IRQ = Gerror.mask("msi_gerror_abt_err")[0]


class Smmu:
    """A physical SMMU.

    Args:
        name: in traces and engine names.
        memory: system memory, which may be shared with other SMMUs.
        features: what the ID registers say.
        trace: sink of trace records.
        irq: called with "eventq", "priq", "gerror" or "cmdq-sync" for an edge on that line.
        caching: "normal"; "none" for an SMMU that looks everything up every time; "hostile" for
            one that keeps whatever the architecture lets it keep (`config.Caching`).
        page0_alias: as in `RegisterFile`.

    Attributes:
        counters: what happened so far, by the names of docs/counters.md.
        stalls: the transactions that are stalled.
        private: tags (`Tlb`) and ASIDs that broadcast invalidation spares: CD.ASET=1.
        outside: where a device's write (StreamID, address, data) goes that is not to memory; it
            says whether somebody took it.
        ats: Translation Requests and endpoints.
        priq: the PRI queue's writer.
        intent: of the command that is being carried out, if any was stated.
        trace: sink of trace records.
        tap, dma_tap: told what is done to its registers, and what devices do.
    """

    def __init__(
        self,
        name: str,
        memory: Memory,
        features: Features,
        *,
        trace: Trace | None = None,
        irq: Callable[[str], None] | None = None,
        caching: str = "normal",
        page0_alias: bool = True,
    ) -> None:
        if caching not in CACHING:
            raise ValueError(f'caching is "none", "normal" or "hostile", not {caching!r}')
        self.name = name
        self.memory = memory
        self.features = features
        self._counters = counters = Counter[str]()
        self.regs = RegisterFile(features.ids, self._changed, page0_alias=page0_alias)
        kept = CACHING[caching]
        self._derived: dict[Any, Any] = {}
        self.tlb = Tlb(counters, TLB_ENTRIES if kept.entries else 0, self._derived)
        self._walker = walker = Walker(memory, self.tlb, counters, contiguous=kept.hostile)
        self.config = Config(self.regs, memory, features, walker, counters, kept, self._derived)
        self.private: set[tuple[int, int]] = set()
        self.intent: Intent | None = None
        self.outside: Callable[[int, int, bytes], bool] | None = None
        self._translator = Translator(
            self.regs, features, self.config, self.tlb, walker, counters, self.private,
            self._derived,
        )  # fmt: skip
        self.trace = self._trace = trace
        self._listeners = [irq] if irq is not None else []
        self._messages = Messages(self.regs, memory, counters, self._raise_gerror)
        self.eventq = EventQueue(
            f"{name}.eventq", name, self.regs, memory, features.oas, counters,
            self._raise_gerror, self._pulse, trace,
        )  # fmt: skip
        self.cmdq = CommandQueue(
            f"{name}.cmdq", name, self, self.regs, memory, counters,
            self._raise_gerror, self._pulse, trace,
        )  # fmt: skip
        self._merger = Merger(self.eventq, self.counters)
        self.stalls = StallBuffer(
            f"{name}.stall", features.idr5.stall_max, self.eventq, self.counters
        )
        self.ats: Ats = Ats(
            self.regs, features, self.config, self._translator, self.eventq.record, counters
        )
        self.priq = PriQueue(
            f"{name}.priq", self.regs, memory, features, self.config, self.ats, counters,
            self._raise_gerror, self._pulse,
        )  # fmt: skip
        self._enabled = False
        self._acknowledged = 0
        self._sync_mark: int | None = None
        self.tap: Tap | None = None
        self.dma_tap: DmaTap | None = None

    @property
    def counters(self) -> Counter[str]:
        """What happened so far, by name (docs/counters.md)."""
        counters = self._counters
        self.tlb.settle()
        self._walker.settle()
        self.config.settle()
        self._translator.settle()
        for total, parts in (("mem.read", _READS), ("mem.write", _WRITES)):
            count = sum(counters[name] for name in parts if name in counters)
            if count:
                counters[total] = count
        return counters

    def count(self, name: str) -> None:
        """Add one to a counter."""
        self._counters[name] += 1

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The command consumer, the event writer, and what features add to them."""
        more: list[Engine] = [self.stalls] if self.features.stalls else []
        more += [self.priq] if self.features.pri else []
        return self.cmdq, self.eventq, *more

    @property
    def ready(self) -> bool:
        """Whether a device may start a transaction: there is room for the event it could cause."""
        return self.eventq.room

    def admits(self, device: object) -> bool:
        """As `ready`, for a device that asks again until it may; first come, first served."""
        return self.eventq.admits(device)

    def listen(self, irq: Callable[[str], None]) -> None:
        """Have `irq` called as well, for each edge."""
        self._listeners.append(irq)

    def mmio_read(self, offset: int, size: int) -> int:
        """A register's value; 0 where there is none. Never raises."""
        value = self.regs.read(offset, size)
        if self._trace is not None:
            self._trace("smmuv3_read_mmio", self.name, register_at(offset), value, size)
        if self.tap is not None:
            self.tap.read(offset, size, value)
        return value

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store to a register; ignored where §6.2 says so. Never raises, consumes nothing."""
        if self._trace is not None:
            self._trace("smmuv3_write_mmio", self.name, register_at(offset), value, size)
        self.regs.write(offset, size, value)
        if self.tap is not None:
            self.tap.written(offset, size, value)

    def translate(self, access: Access) -> Outcome:
        """What becomes of one access; its event waits for the event writer.

        Ask `ready` first: without room for another record, the record is dropped and counted.
        A fault that would stall is terminated: the caller has nothing to hold it in.
        """
        before = None if self._trace is None else traced.reads(self.counters)
        if self.dma_tap is not None:
            self.dma_tap.before(access)
        outcome = self._translator.translate(access)
        if outcome.event is not None or self._trace is not None:
            self._conclude(access, outcome, before)
        if self.dma_tap is not None:
            self.dma_tap.after(access, outcome)
        return outcome

    def transact(self, access: Access) -> Outcome | Stalled:
        """As `translate` for a device that can wait: a fault that may stall is held."""
        before = None if self._trace is None else traced.reads(self.counters)
        if self.dma_tap is not None:
            self.dma_tap.before(access)
        outcome = self._translator.translate(access, may_stall=True)
        if outcome.status != STALL:
            self._conclude(access, outcome, before)
            if self.dma_tap is not None:
                self.dma_tap.after(access, outcome)
            return outcome
        assert outcome.event is not None
        self._trace_outcome(access, outcome, before)
        return self.stalls.hold(access, outcome.event)

    def translated(self, access: Access) -> Outcome:
        """What becomes of an ATS Translated transaction at `access.iova` (`Ats.translated`)."""
        before = None if self._trace is None else traced.reads(self.counters)
        outcome = self.ats.translated(access)
        self._conclude(access, outcome, before)
        return outcome

    def atc_inv_failed(self) -> None:
        """A CMD_SYNC found a CMD_ATC_INV that timed out: CERROR_ATC_INV_SYNC (§7.1)."""
        self._counters["cmd.error"] += 1
        self._counters["cmd.error." + Cerror.ATC_INV_SYNC.name] += 1
        if self._trace is not None:
            self._trace(
                "smmuv3_cmdq_consume_error", self.name, "CMD_SYNC", Cerror.ATC_INV_SYNC.name
            )
        self.regs.set_fields("CMDQ_CONS", err=Cerror.ATC_INV_SYNC)
        self._raise_gerror("cmdq_err")

    def _conclude(self, access: Access, outcome: Outcome, before: tuple[int, ...] | None) -> None:
        event = outcome.event
        if event is not None:
            self._record(event)
        self._trace_outcome(access, outcome, before)

    def _record(self, event: Event) -> None:
        if event is self._translator.mergeable:
            self._merger.record(event)
        else:
            self.eventq.record(event)

    def broadcast_tlbi(
        self, op: str, *, vmid: int = 0, asid: int = 0, address: int = 0, size: int = 1,
        e2h: bool = False, intent: Intent | None = None,
    ) -> int:  # fmt: skip
        """A TLB invalidation that a PE broadcasts; the number of entries dropped (§3.17.2).

        Args:
            op: the TLBI operation without its shareability, as in "VAE1", "ASIDE1", "VMALLS12E1".
            vmid: the PE's VMID; 0 for a PE without EL2.
            asid: for VA and ASID operations.
            address: VA or IPA.
            size: bytes from `address`, for range operations.
            e2h: HCR_EL2.E2H, and TGE for the E1 operations: they act on EL2-E2H.
            intent: what it is meant for, as in `intend`.

        Raises:
            ValueError: an operation that is none of the Non-secure ones.
        """
        return broadcast(self, op, vmid, asid, address, size, e2h=e2h, intent=intent)

    def intend(self, prod: int, *intent: TlbScope | ConfigScope) -> None:
        """State what a command is meant for, so that over-invalidation is counted against that.

        Args:
            prod: the value of CMDQ_PROD that names the command's place in the queue.
            intent: scopes; what the command drops outside of all of them is `tlb.over` or
                `config.over`. None at all says that nothing was to be dropped.

        It is forgotten when the command has been carried out, or CMDQEN is cleared.
        """
        self.cmdq.intend(prod, intent)

    def translate_many(
        self, sid: int, iovas: ArrayLike, *, write: bool = False, instr: bool = False,
        priv: bool = False, ssid: int | None = None,
    ) -> Translations:  # fmt: skip
        """What becomes of one kind of access at each of many addresses.

        The tables are walked and no TLB is asked. Events wait for the event writer; those that
        find no room are dropped and counted, as with `translate`.
        """
        from vsmmu.smmu.batch import translate_many

        access = Access(sid, 0, write, instr, priv, ssid)
        route = self._translator.route(access)
        found = translate_many(route, self.memory, access, iovas, self._counters)
        suppressed = 0
        for faults in found.faults:
            self._counters["fault." + faults.kind.name] += faults.lanes.size
            suppressed += faults.lanes.size
        for event in found.events():
            self._record(event)
            suppressed -= 1
        if suppressed:
            self._counters["event.suppressed"] += suppressed
        return found

    def events_settled(self) -> bool:
        """For CMD_SYNC: whether the events taken before it was first seen have left the list.

        Later events do not delay it, however many there are.
        """
        if self._sync_mark is None:
            self._sync_mark = self.eventq.accepted
        if self.eventq.retired < self._sync_mark:
            return False
        self._sync_mark = None
        return True

    def _changed(self, name: str) -> None:
        if name == "GERRORN" and self._trace is not None:
            acknowledged = self.regs["GERRORN"]
            toggled = acknowledged ^ self._acknowledged
            self._trace("smmuv3_write_gerrorn", self.name, toggled, acknowledged)
            self._acknowledged = acknowledged
        if name in _COMMANDS:
            self.cmdq.bell.ring()
        if name != "CR0":
            return
        self._derived.clear()
        enables = self.regs["CR0ACK"]
        if not enables & _EVENTQEN:
            self.eventq.drop_uncommitted()
        if not enables & _CMDQEN:
            self._sync_mark = None
            self.cmdq.intents.clear()
        enabled = bool(enables & _SMMUEN)
        if self._enabled and not enabled:
            self.stalls.terminate()
        self._enabled = enabled
        if enabled:
            self.config.speculate()

    def _raise_gerror(self, field: str) -> None:
        if not self.regs.raise_gerror(field):
            return
        mask = Gerror.mask(field)[0]
        if self._trace is not None:
            self._trace("smmuv3_write_gerror", self.name, mask, self.regs["GERROR"])
        if mask & _NO_IRQ:
            return
        if self.regs["IRQ_CTRLACK"] & _GERROR_IRQEN and not self._messages.send("gerror"):
            self._pulse("gerror")

    def _pulse(self, line: str) -> None:
        self._counters["irq." + line] += 1
        if self._trace is not None:
            self._trace("smmuv3_trigger_irq", self.name, line)
        for listener in self._listeners:
            listener(line)

    def _trace_outcome(
        self, access: Access, outcome: Outcome, before: tuple[int, ...] | None
    ) -> None:
        if self._trace is not None:
            traced.access(
                self._trace, self.name, access, outcome, self.counters, before,
                enabled=self._enabled,
            )  # fmt: skip
