# SPDX-License-Identifier: BSD-2-Clause
"""What becomes of an access: the decision order of IHI 0070 §3.3.3, §3.4 and §7.3.

GBPA while SMMUEN is 0; else StreamID, STE, SubstreamID, CD, stage 1, stage 2.

A fault that CD.S or STE.S2S lets stall is told apart here; `stall` holds the transaction.

Limits: output memory attributes are not computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vsmmu.arch.events import (
    TRANSLATION_FAULTS,
    CBadStreamid,
    Event,
    FAddrSize,
    FTranslation,
)
from vsmmu.arch.pagetable import TTB_SELECT
from vsmmu.arch.registers import Cr0, Cr2, Gbpa
from vsmmu.arch.stream_table import OVERRIDE, OVERRIDE_VALUE, SteConfig
from vsmmu.smmu.config import context_index
from vsmmu.smmu.intent import Cause
from vsmmu.smmu.regime import Route
from vsmmu.smmu.shortcut import SHORTCUTS, Shortcut, in_range
from vsmmu.smmu.tlb import Entry, Tlb
from vsmmu.smmu.transaction import (
    EXEC,
    MASK64,
    PRIV_SHIFT,
    READ,
    VA_MASK,
    WRITE,
    Access,
    Fault,
    Outcome,
    record,
)

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.smmu.cd import Context
    from vsmmu.smmu.config import Config
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.smmu.regime import Table
    from vsmmu.smmu.ste import Stream
    from vsmmu.smmu.walk import Walker

_SMMUEN = Cr0.mask("smmuen")[0]
_ABORT = Gbpa.mask("abort")[0]
_RECINVSID = Cr2.mask("recinvsid")[0]
# Config bit 2 is clear where the stream aborts; alone it bypasses.
_BYPASS = int(SteConfig.BYPASS)
_RIGHTS = READ | WRITE | EXEC

# Status of a fault's outcome.
ABORT, RAZWI, STALL = "fault", "razwi", "stall"

# Pairs that are remembered as private; before there are more all are forgotten, which drops more.
PRIVATE = 8192

_FATE = {s: f"txn.{s}" for s in ("ok", "bypass", "abort", "fault", "razwi", "stall")}
_SILENT_ABORT = Outcome("abort")
# Why entries go when an ASID becomes private.
_ASET = Cause("CD.ASET")
_new = tuple.__new__


class Translator:
    """Translates accesses of one SMMU; records nothing and touches no data.

    With IDR0.BTM, `private` has the tag and ASID of CDs that are used and have ASET=1.

    An access whose configuration and translation are cached takes a shortcut, which the caches
    empty (`derived`) as soon as an entry that it was made of goes. What it cannot answer is
    looked up in full.

    Attributes:
        mergeable: the latest record of a stream with STE.MEV, for the caller to recognise.
    """

    def __init__(
        self, regs: RegisterFile, features: Features, config: Config, tlb: Tlb, walker: Walker,
        counters: Counter[str], private: set[tuple[int, int]], derived: dict[Any, Any],
    ) -> None:  # fmt: skip
        self._shortcuts: dict[tuple[int, int | None, bool, bool, bool], Shortcut] = derived
        # Answers of shortcuts: by stage 2 alone, and with stage 1; lookups that they saved else.
        self._hits2 = self._hits1 = self._lookups = 0
        self._values = regs.values
        self._address_bits = features.oas
        self._config = config
        self._tlb = tlb
        self._walker = walker
        self._counters = counters
        self._private = private if features.idr0.btm else None
        self.mergeable: Event | None = None

    def settle(self) -> None:
        """Bring the counters up to date: a shortcut only adds to a number of its own."""
        hits = self._hits1 + self._hits2
        lookups = 2 * self._hits1 + self._hits2 + self._lookups
        for name, count in ((_FATE["ok"], hits), ("tlb.hit", hits), ("config.hit", lookups)):
            if count:
                self._counters[name] += count
        self._hits1 = self._hits2 = self._lookups = 0

    def translate(self, access: Access, *, may_stall: bool = False) -> Outcome:
        """The outcome of an access; a record that is due is in `Outcome.event`.

        Beside the outcomes of `transaction.Outcome` there are "razwi": a fault that the device
        does not see, reads return zero and writes vanish (CD.A=0); and "stall": to be held, with
        a record that lacks its STAG. Without `may_stall` such a fault is terminated with an abort,
        as §3.12.2 allows for devices that cannot wait.
        """
        sid, iova, write, instr, priv, ssid = access
        shortcut = self._shortcuts.get((sid, ssid, write, instr, priv))
        if shortcut is not None:
            ranges, rows, need, shift, stream, context = shortcut
            mask, value = ranges[iova >> TTB_SELECT & 1]
            if iova & mask == value:
                va = iova & VA_MASK
                for size, pages in rows:
                    entry = pages.get(va >> size)
                    if entry is not None:
                        pa, offset, perms, perms2, _, _, clean = entry
                        perms &= perms2
                        if clean or not perms & need:
                            break
                        if context is None:
                            self._hits2 += 1
                        else:
                            self._hits1 += 1
                        return _new(
                            Outcome, ("ok", pa | va & offset, None, perms >> shift & _RIGHTS)
                        )
            self._lookups += 1 if context is None else 2
            outcome = self._reach(access, stream, context, need, shift)
        else:
            outcome = self._translate(access)
        if outcome.status == STALL and not may_stall:
            outcome = _terminated(outcome)
        self._counters[_FATE[outcome.status]] += 1
        return outcome

    def _translate(self, access: Access) -> Outcome:
        iova = access.iova & MASK64
        if not self._values["CR0ACK"] & _SMMUEN:
            return self._global_bypass(iova)
        stream = self._config.stream(access.sid)
        if isinstance(stream, Fault):
            return self._fault(access, stream, None, None)
        if not stream.config & _BYPASS:
            return _SILENT_ABORT
        index = 0 if stream.stage1 else None
        if stream.cd_bits or access.ssid is not None:
            selected = context_index(stream, access.ssid)
            if isinstance(selected, Fault):
                return self._fault(access, selected, None, None)
            index = selected
        if index is None and stream.stage2 is None:
            return self._bypass(access, iova, stream)
        priv, instr = overridden(access, stream)
        shift = PRIV_SHIFT if priv else 0
        need = (WRITE if access.write else EXEC if instr else READ) << shift
        context = None
        if index is not None:
            found = self._config.context(access.sid, stream, index)
            if isinstance(found, Fault):
                return self._fault(access, found, stream, None)
            context = found
        self._shorten(access, index, stream, context, need)
        return self._reach(access, stream, context, need, shift)

    def _reach(
        self, access: Access, stream: Stream, context: Context | None, need: int, shift: int
    ) -> Outcome:
        """What the translation tables say, once the configuration is known."""
        iova = access.iova & MASK64
        if context is None:
            entry = self.stage2_only(stream, iova, need)
        else:
            entry = self.stage1(stream, context, iova, need)
        if isinstance(entry, Fault):
            return self._fault(access, entry, stream, context)
        rights = entry.granted >> shift & _RIGHTS
        return _new(Outcome, ("ok", entry.pa | iova & entry.mask, None, rights))

    def _shorten(
        self, access: Access, index: int | None, stream: Stream, context: Context | None, need: int
    ) -> None:
        """Keep a shortcut for accesses like this one, where the caches answer the next."""
        if self._private is not None or not self._config.holds(access.sid, index):
            return
        if len(self._shortcuts) >= SHORTCUTS:
            self._shortcuts.clear()
        if context is None:
            ranges = ((MASK64 & -(1 << self._address_bits), 0),) * 2
            rows = self._tlb.rows2(stream.vmid)
        else:
            ranges = in_range(context, 0, need), in_range(context, 1, need)
            rows = self._tlb.rows(stream.vmid, context.asid, context.aset)
        shift = PRIV_SHIFT if need >> PRIV_SHIFT else 0
        sid, _, write, instr, priv, ssid = access
        self._shortcuts[sid, ssid, write, instr, priv] = Shortcut(
            ranges, rows, need, shift, stream, context
        )

    def route(self, access: Access) -> Route:
        """What the configuration makes of accesses like this one at any address, for a batch."""

        def finish(access: Access, fault: Fault) -> Outcome:
            return self.conclude(access, fault, stream, context)

        stream: Stream | None = None
        context: Context | None = None
        if not self._values["CR0ACK"] & _SMMUEN:
            closed = self._values["GBPA"] & _ABORT
            return Route(finish, "abort" if closed else "bypass", self._address_bits)
        found = self._config.stream(access.sid)
        if isinstance(found, Fault):
            return Route(finish, found)
        if not found.config & _BYPASS:
            return Route(finish, "abort")
        index = context_index(found, access.ssid)
        if isinstance(index, Fault):
            return Route(finish, index)
        too_large = Fault(FAddrSize)
        stream = found
        if index is None and stream.stage2 is None:
            return Route(finish, "bypass", self._address_bits, too_large)
        priv, instr = overridden(access, stream)
        need = (WRITE if access.write else EXEC if instr else READ) << (PRIV_SHIFT if priv else 0)
        if index is None:
            return Route(
                finish, None, self._address_bits, too_large, stage2=stream.stage2, need=need
            )
        descriptor = self._config.context(access.sid, stream, index)
        if isinstance(descriptor, Fault):
            return Route(finish, descriptor)
        context = descriptor
        low, high = (bool(off) and not priv for off in context.e0pd)
        return Route(
            finish, stage1=context.stage1, stage2=stream.stage2, need=need, closed=(low, high)
        )

    def _global_bypass(self, iova: int) -> Outcome:
        """SMMUEN=0: GBPA decides; nothing is recorded (§6.3.14)."""
        if self._values["GBPA"] & _ABORT or iova >> self._address_bits:
            return _SILENT_ABORT
        return Outcome("bypass", iova, None, _RIGHTS)

    def _bypass(self, access: Access, iova: int, stream: Stream) -> Outcome:
        if iova >> self._address_bits:
            return self._fault(access, Fault(FAddrSize), stream, None)
        return Outcome("bypass", iova, None, _RIGHTS)

    def stage2_only(self, stream: Stream, iova: int, need: int) -> Entry | Fault:
        """Stage 2 of a stream without stage 1, or of an address that is an IPA."""
        # The size check belongs to the stage 1 that is bypassed: S2=0 in the record (§3.4).
        if iova >> self._address_bits:
            return Fault(FAddrSize)
        assert stream.stage2 is not None
        return self._walker.translate2(stream.stage2, stream.vmid, iova, need)

    def stage1(self, stream: Stream, context: Context, iova: int, need: int) -> Entry | Fault:
        """Stage 1, and stage 2 behind it where the stream has it."""
        table = self.table(context, iova, need)
        if table is None:
            return Fault(FTranslation)
        private = self._private
        if private is not None:
            pair = stream.vmid, context.asid
            if not context.aset:
                private.discard(pair)
            elif pair not in private:
                # Entries from before ASET changed are not to be spared (§5.4 ASET).
                self._tlb.invalidate_asid(*pair, cause=_ASET)
                if len(private) >= PRIVATE:
                    private.clear()
                private.add(pair)
        va = iova & VA_MASK
        return self._walker.translate1(
            context.stage1, table, va, stream.stage2, stream.vmid, context.asid, context.aset, need
        )

    @staticmethod
    def table(context: Context, iova: int, need: int) -> Table | None:
        """The half of stage 1 that translates an address; None is F_TRANSLATION (§3.4.1)."""
        high = iova >> TTB_SELECT & 1
        mask, value = in_range(context, high, need)
        return context.stage1.tables[high] if iova & mask == value else None

    def conclude(
        self, access: Access, fault: Fault, stream: Stream | None, context: Context | None
    ) -> Outcome:
        """The outcome of a fault for an access that cannot be held."""
        outcome = self._judged(access, fault, stream, context)
        return _terminated(outcome) if outcome.status == STALL else outcome

    def _fault(
        self, access: Access, fault: Fault, stream: Stream | None, context: Context | None
    ) -> Outcome:
        outcome = self._judged(access, fault, stream, context)
        self._counters["fault." + fault.kind.name] += 1
        if outcome.event is None:
            self._counters["event.suppressed"] += 1
        return outcome

    def _judged(
        self, access: Access, fault: Fault, stream: Stream | None, context: Context | None
    ) -> Outcome:
        action = fault_action(fault, stream, context)
        if action != STALL and self._suppressed(fault, stream, context):
            return Outcome(action)
        priv, instr = overridden(access, stream)
        event: Event = record(fault, access, priv=priv, instr=instr)
        if action == STALL:
            event = event.replace(stall=1)
        elif stream is not None and stream.mev:
            self.mergeable = event
        return Outcome(action, None, event)

    def _suppressed(self, fault: Fault, stream: Stream | None, context: Context | None) -> bool:
        """CR2.RECINVSID, CD.R and STE.S2R; the last two only for translation faults (§7.3)."""
        if fault.kind is CBadStreamid:
            return not self._values["CR2"] & _RECINVSID
        if fault.kind.number not in TRANSLATION_FAULTS:
            return False
        if fault.s2:
            return stream is not None and not stream.record2
        return context is not None and not context.record1


def _terminated(outcome: Outcome) -> Outcome:
    """A stall made a terminate."""
    assert outcome.event is not None
    return Outcome(ABORT, None, outcome.event.replace(stall=0))


def fault_action(fault: Fault, stream: Stream | None, context: Context | None) -> str:
    """What a fault does to its transaction: "fault" (abort), "razwi" or "stall" (§3.12, §5.5).

    CD.A and CD.S count for stage 1 and STE.S2S for stage 2, and only for the translation-related
    faults; everything else aborts. Stage 2 has no RAZ/WI.
    """
    if fault.kind.number not in TRANSLATION_FAULTS:
        return ABORT
    if fault.s2:
        return STALL if stream is not None and stream.stall2 else ABORT
    if context is None:
        return ABORT
    if context.stall1:
        return STALL
    return ABORT if context.abort1 else RAZWI


def overridden(access: Access, stream: Stream | None) -> tuple[bool, bool]:
    """(privileged, instruction) after STE.PRIVCFG and STE.INSTCFG; 1x overrides (§5.2)."""
    priv, instr = access.priv, access.instr
    if stream is not None:
        if stream.privcfg & OVERRIDE:
            priv = bool(stream.privcfg & OVERRIDE_VALUE)
        if stream.instcfg & OVERRIDE:
            instr = bool(stream.instcfg & OVERRIDE_VALUE)
    return priv, instr and not access.write
