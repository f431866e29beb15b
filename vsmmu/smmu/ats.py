# SPDX-License-Identifier: BSD-2-Clause
"""ATS: Translation Requests, Translated transactions, invalidation of ATCs (IHI 0070 §3.9, §4.5.1).

This is the SMMU's side; `vsmmu.smmu.atc` has the messages and an endpoint.

Choices where the architecture leaves freedom: a request that bypasses stage 1 gets one 4 KiB page;
a completion without rights has that size; a Translated transaction to an SMMU without ATS aborts
and is recorded; one with a physical address beyond OAS aborts silently (§3.9.1.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vsmmu.arch.events import (
    TRANSLATION_FAULTS,
    CBadStreamid,
    Event,
    FAccess,
    FAddrSize,
    FBadAtsTreq,
    FPermission,
    FTranslation,
    FTranslForbidden,
)
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.arch.stream_table import LIVE, OVERRIDE, OVERRIDE_VALUE, Eats
from vsmmu.memory import PAGE
from vsmmu.smmu.atc import (
    ATC_ENTRIES,
    Atc,
    AtsPort,
    Completion,
    Endpoint,
    Invalidation,
    Status,
    TranslationRequest,
)
from vsmmu.smmu.config import context_index
from vsmmu.smmu.tlb import Entry
from vsmmu.smmu.transaction import (
    EXEC,
    MASK64,
    PRIV_SHIFT,
    READ,
    WRITE,
    Access,
    Fault,
    Outcome,
    record,
)
from vsmmu.smmu.translate import overridden

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.smmu.cd import Context
    from vsmmu.smmu.config import Config
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.smmu.ste import Stream
    from vsmmu.smmu.translate import Translator

__all__ = [
    "ATC_ENTRIES",
    "INVALIDATION_TURNS",
    "PENDING_INVALIDATIONS",
    "Atc",
    "Ats",
    "AtsPort",
    "Completion",
    "Endpoint",
    "Invalidation",
    "Status",
    "TranslationRequest",
]

# Invalidate requests that endpoints have not answered; CMD_ATC_INV waits for room.
PENDING_INVALIDATIONS = 256
# Turns that the command consumer waits for an endpoint before its Invalidate Request has timed
# out. An endpoint that answers at all does so in its own next turn; PCIe allows it a minute.
INVALIDATION_TURNS = 1024

_SMMUEN, _ATSCHK = Cr0.mask("smmuen")[0], Cr0.mask("atschk")[0]
_RECINVSID, _REC_CFG_ATS = Cr2.mask("recinvsid")[0], Cr2.mask("rec_cfg_ats")[0]
# Faults that give an empty completion (§3.9.1); with a permission fault only rights are missing.
_EMPTY = (FTranslation, FAddrSize, FAccess, FPermission)


class Ats:
    """The SMMU's side of ATS.

    Args:
        regs: CR0 and CR2.
        features: what is there.
        config: looks STEs and CDs up.
        translator: stage 1 and stage 2.
        record: takes the event records.
        counters: takes `ats.request`, `ats.success`, `ats.empty`, `ats.ur`, `ats.ca`,
            `ats.translated` and `ats.translated.<status>`, `ats.invalidate`, `ats.timeout`,
            `fault.<record>`, `event.suppressed`.

    Attributes:
        endpoints: by StreamID. A message to a StreamID without one is answered UR.
        patience: INVALIDATION_TURNS, or another number of turns.
    """

    def __init__(
        self, regs: RegisterFile, features: Features, config: Config, translator: Translator,
        record: Callable[[Event], None], counters: Counter[str],
    ) -> None:  # fmt: skip
        self.endpoints: dict[int, Endpoint] = {}
        self.patience = INVALIDATION_TURNS
        self._regs = regs
        self._features = features
        self._config = config
        self._translator = translator
        self._record = record
        self._counters = counters
        # Unanswered requests, by the turn in which each was sent.
        self._sent: list[tuple[int, Invalidation]] = []
        self._turn = 0
        self._timed_out = False

    # Translation Requests.

    def request(self, request: TranslationRequest) -> Completion:
        """Answer a Translation Request (§3.9.1).

        Priv and Exe come with a PASID: without one it is unprivileged data (§13.7).
        """
        self._counters["ats.request"] += 1
        if request.ssid is None:
            request = request._replace(priv=False, execute=False)
        completion = self._answer(request)
        self._counters[f"ats.{completion.status.name.lower()}"] += 1
        if completion.status == Status.SUCCESS and not (completion.read or completion.write):
            self._counters["ats.empty"] += 1
        return completion

    def _answer(self, request: TranslationRequest) -> Completion:
        if not self._features.ats:
            return Completion(Status.UR)
        if not self._regs["CR0ACK"] & _SMMUEN:
            return self._refused(request)
        stream = self._config.stream(request.sid)
        if isinstance(stream, Fault):
            return self._aborted(request, stream, None)
        if not stream.config & LIVE:
            return Completion(Status.UR)
        if self._eats(stream) == Eats.NONE:
            return self._refused(request)
        index = context_index(stream, request.ssid)
        if isinstance(index, Fault):
            return self._aborted(request, index, stream)
        if index is None and stream.stage2 is None:
            return self._identity(request)
        context = None
        if index is not None:
            found = self._config.context(request.sid, stream, index)
            if isinstance(found, Fault):
                return self._failed(request, found, stream)
            context = found
        return self._translated(request, stream, context)

    def _eats(self, stream: Stream) -> int:
        """Effective STE.EATS: split-stage needs CR0.ATSCHK (§3.9.2, §5.2)."""
        if stream.eats == Eats.SPLIT and not self._regs["CR0ACK"] & _ATSCHK:
            return Eats.NONE
        return stream.eats

    def _refused(self, request: TranslationRequest) -> Completion:
        """UR and F_BAD_ATS_TREQ (§7.3.6); a request here is for one STU."""
        ssid = request.ssid
        event = FBadAtsTreq.build(
            sid=request.sid & 0xFFFF_FFFF, ssv=int(ssid is not None), ssid=(ssid or 0) & 0xF_FFFF,
            p=int(request.priv), x=int(request.execute), w=int(not request.no_write), r=1, span=1,
            inputaddr=request.iova & MASK64 & -PAGE,
        )  # fmt: skip
        self._faulted(FBadAtsTreq, event)
        self._record(event)
        return Completion(Status.UR)

    def _aborted(
        self, request: TranslationRequest, fault: Fault, stream: Stream | None
    ) -> Completion:
        """CA; recorded with CR2.REC_CFG_ATS alone (§6.3.12)."""
        self.configuration_fault(fault, _access(request), stream)
        return Completion(Status.CA)

    def configuration_fault(
        self, fault: Fault, access: Access, stream: Stream | None = None
    ) -> None:
        """Record what a request or a check of STE.PPAR met, if CR2 asks for it (§3.9.1, §8.1)."""
        wanted = self._records_config()
        if fault.kind is CBadStreamid:
            wanted = wanted and bool(self._regs["CR2"] & _RECINVSID)
        event = None
        if wanted:
            priv, instr = overridden(access, stream)
            event = record(fault, access, priv=priv, instr=instr)
            self._record(event)
        self._faulted(fault.kind, event)

    def _faulted(self, kind: type[Event], event: Event | None) -> None:
        self._counters["fault." + kind.name] += 1
        if event is None:
            self._counters["event.suppressed"] += 1

    def _records_config(self) -> bool:
        return bool(self._features.idr0.atsrecerr and self._regs["CR2"] & _REC_CFG_ATS)

    def _failed(self, request: TranslationRequest, fault: Fault, stream: Stream) -> Completion:
        if fault.kind in _EMPTY:
            return Completion(Status.SUCCESS, priv=request.priv)
        return self._aborted(request, fault, stream)

    def _identity(self, request: TranslationRequest) -> Completion:
        """Stage 1 is skipped (STE.S1DSS), and there is no stage 2 (§13.6.4)."""
        page = request.iova & MASK64 & -PAGE
        if page >> self._features.oas:
            return Completion(Status.SUCCESS, priv=request.priv)
        return Completion(
            Status.SUCCESS, page, PAGE, True, True, request.execute, request.priv
        )  # fmt: skip

    def _translated(
        self, request: TranslationRequest, stream: Stream, context: Context | None
    ) -> Completion:
        priv, instr = overridden(_access(request), stream)
        shift = PRIV_SHIFT if priv else 0
        reading = EXEC if instr else READ
        iova = request.iova & MASK64
        found = self._look(stream, context, iova, reading << shift)
        wants_write = not request.no_write
        if isinstance(found, Fault):
            if found.kind is not FPermission or not wants_write:
                return self._failed(request, found, stream)
            # What cannot be read may still be written.
            found = self._look(stream, context, iova, WRITE << shift)
            if isinstance(found, Fault):
                return self._failed(request, found, stream)
        elif wants_write and found.clean and (found.perms & found.perms2) >> shift & WRITE:
            # Only a request without NW makes a descriptor dirty (§3.13.7).
            dirty = self._look(stream, context, iova, WRITE << shift)
            if not isinstance(dirty, Fault):
                found = dirty
            elif dirty.kind not in _EMPTY:
                return self._failed(request, dirty, stream)
        rights = found.granted >> shift
        read = bool(rights & reading)
        execute = request.execute and read and bool(rights & EXEC) and not _data_only(stream)
        write = bool(rights & WRITE)
        if not read and not write:
            return Completion(Status.SUCCESS, priv=request.priv)
        # Split-stage: rights and size are those of both stages, the address is the IPA (§13.6.3).
        address = found.ipa if self._eats(stream) == Eats.SPLIT else found.pa
        return Completion(
            Status.SUCCESS, address, found.mask + 1, read, write, execute, request.priv
        )

    def _look(self, stream: Stream, context: Context | None, iova: int, need: int) -> Entry | Fault:
        """What both stages say; with split-stage ATS too, which has stage 2 to come (§13.6.5)."""
        if context is None:
            return self._translator.stage2_only(stream, iova, need)
        return self._translator.stage1(stream, context, iova, need)

    # Translated transactions.

    def translated(self, access: Access) -> Outcome:
        """What becomes of a Translated transaction; it records nothing (§3.9.1, §7.3.8).

        `access.iova` is what a completion gave. Without PASIDs on Translated transactions
        (IDR3.PASIDTT) it is unprivileged data without SubstreamID.
        """
        self._counters["ats.translated"] += 1
        access = Access(access.sid, access.iova & MASK64, access.write)
        outcome = self._passed(access)
        self._counters["ats.translated." + outcome.status] += 1
        return outcome

    def _passed(self, access: Access) -> Outcome:
        enables = self._regs["CR0ACK"]
        if not self._features.ats or not enables & _SMMUEN:
            return self._forbidden(access)
        if not enables & _ATSCHK:
            return self._physical(access)
        stream = self._config.stream(access.sid)
        if isinstance(stream, Fault):
            wanted = self._records_config()
            event = record(stream, access, priv=False, instr=False) if wanted else None
            self._faulted(stream.kind, event)
            return Outcome("fault", None, event)
        if not stream.config & LIVE:
            return Outcome("abort")
        if stream.eats == Eats.NONE:
            return self._forbidden(access)
        if stream.eats == Eats.FULL:
            return self._physical(access)
        # Split-stage: the overrides of the STE count (§13.1.4).
        priv, instr = overridden(access, stream)
        shift = PRIV_SHIFT if priv else 0
        need = (WRITE if access.write else EXEC if instr else READ) << shift
        entry = self._translator.stage2_only(stream, access.iova, need)
        if isinstance(entry, Fault):
            quiet = entry.kind.number in TRANSLATION_FAULTS and entry.s2 and not stream.record2
            event = None if quiet else record(entry, access, priv=priv, instr=instr)
            self._faulted(entry.kind, event)
            return Outcome("fault", None, event)
        rights = entry.granted >> shift & (READ | WRITE | EXEC)
        return Outcome("ok", entry.pa | access.iova & entry.mask, None, rights)

    def _forbidden(self, access: Access) -> Outcome:
        event = FTranslForbidden.build(
            sid=access.sid & 0xFFFF_FFFF, rnw=int(not access.write), inputaddr=access.iova
        )
        self._faulted(FTranslForbidden, event)
        return Outcome("fault", None, event)

    def _physical(self, access: Access) -> Outcome:
        """A Translated transaction that passes with the address it has (§3.9.1.1)."""
        if access.iova >> self._features.oas:
            return Outcome("abort")
        return Outcome("ok", access.iova, None, READ | WRITE | EXEC)

    # Invalidation.

    def invalidate(
        self, sid: int, ssid: int | None, address: int, size: int, *, globl: bool
    ) -> bool:
        """CMD_ATC_INV: send an Invalidate Request; False if too many are unanswered (§4.5.1)."""
        self._collect()
        if len(self._sent) >= PENDING_INVALIDATIONS:
            return False
        self._counters["ats.invalidate"] += 1
        endpoint = self.endpoints.get(sid)
        if endpoint is not None:
            request = Invalidation(address & -size, size, ssid, globl)
            self._sent.append((self._turn, request))
            endpoint.invalidate(request)
        return True

    def settled(self) -> bool:
        """For CMD_SYNC: whether every Invalidate Request is answered or has timed out."""
        self._collect()
        return not self._sent

    def wait(self) -> bool:
        """A turn of the consumer in which its command had to wait; whether for an endpoint.

        A request that an endpoint has not answered for `patience` of them has timed out (§3.9.1).
        """
        self._turn += 1
        waited = False
        for turn, request in self._sent:
            if not request.over:
                waited = True
                request.timed_out = self._turn - turn >= self.patience
        return waited

    def take_timeout(self) -> bool:
        """Whether one timed out since this was last asked."""
        timed_out, self._timed_out = self._timed_out, False
        return timed_out

    def _collect(self) -> None:
        if any(request.over for _, request in self._sent):
            late = sum(request.timed_out for _, request in self._sent)
            if late:
                self._counters["ats.timeout"] += late
                self._timed_out = True
            self._sent = [sent for sent in self._sent if not sent[1].over]


def _access(request: TranslationRequest) -> Access:
    return Access(request.sid, request.iova, False, False, request.priv, request.ssid)


def _data_only(stream: Stream) -> bool:
    """STE.INSTCFG makes everything data, so nothing can be executed."""
    return bool(stream.instcfg & OVERRIDE and not stream.instcfg & OVERRIDE_VALUE)
