# SPDX-License-Identifier: BSD-2-Clause
"""ATS: Translation Requests, Translated transactions, invalidation of ATCs (IHI 0070 §3.9, §4.5.1).

`Ats` is the SMMU's side, `AtsPort` an endpoint with an address translation cache of its own.

Choices where the architecture leaves freedom: a request that bypasses stage 1 gets one 4 KiB page;
a completion without rights has that size; a Translated transaction to an SMMU without ATS aborts
and is recorded.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

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
from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.arch.stream_table import LIVE, OVERRIDE, OVERRIDE_VALUE, Eats
from vsmmu.memory import PAGE
from vsmmu.smmu.config import context_index
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.stall import ABORT, RETRY, Stalled
from vsmmu.smmu.tlb import CLEAN1, VA_MASK, Entry
from vsmmu.smmu.transaction import (
    ALL_PERMS,
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
    from vsmmu.smmu.smmu import Smmu
    from vsmmu.smmu.ste import Stream
    from vsmmu.smmu.translate import Translator
    from vsmmu.smmu.walk import Walker

# Invalidate requests that endpoints have not answered; CMD_ATC_INV waits for room.
PENDING_INVALIDATIONS = 256
# Translations of one ATC; the oldest makes room.
ATC_ENTRIES = 1024

_SMMUEN, _ATSCHK = Cr0.mask("smmuen")[0], Cr0.mask("atschk")[0]
_RECINVSID, _REC_CFG_ATS = Cr2.mask("recinvsid")[0], Cr2.mask("rec_cfg_ats")[0]
# Faults that give an empty completion (§3.9.1); with a permission fault only rights are missing.
_EMPTY = (FTranslation, FAddrSize, FAccess, FPermission)


class Status(IntEnum):
    """How a Translation Request or an Invalidate Request ends on PCIe."""

    SUCCESS = 0
    UR = 1
    CA = 2


class TranslationRequest(NamedTuple):
    """One ATS Translation Request; `no_write` is NW. `priv` and `execute` come with a PASID."""

    sid: int
    iova: int
    ssid: int | None = None
    no_write: bool = False
    priv: bool = False
    execute: bool = False


class Completion(NamedTuple):
    """The answer: `size` bytes from `address`, aligned to it, and the rights.

    Without rights it says that there is no translation. `untranslated` is the U bit.
    """

    status: Status
    address: int = 0
    size: int = PAGE
    read: bool = False
    write: bool = False
    execute: bool = False
    priv: bool = False
    untranslated: bool = False


@dataclass(slots=True, eq=False)
class Invalidation:
    """An Invalidate Request: [address, address + size) of a PASID, or of all.

    `ssid` None has no PASID and covers translations of every PASID and of none; with `globl` those
    of every PASID. `status` stays None until the endpoint answers; `timed_out` if it never will.
    """

    address: int
    size: int
    ssid: int | None
    globl: bool
    status: Status | None = None
    timed_out: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing is to be waited for."""
        return self.timed_out or self.status is not None


class Endpoint(Protocol):
    """What the SMMU sends messages to."""

    def invalidate(self, request: Invalidation) -> None:
        """Take an Invalidate Request, to be answered at some time."""
        ...  # pragma: no cover

    def prg_response(self, ssid: int | None, prgindex: int, code: PrgResponse) -> None:
        """Take a PRG Response."""
        ...  # pragma: no cover


class Ats:
    """The SMMU's side of ATS.

    Args:
        regs: CR0 and CR2.
        features: what is there.
        config: looks STEs and CDs up.
        translator: stage 1 and stage 2.
        walker: stage 1 alone, for split-stage ATS.
        record: takes the event records.
        counters: takes `ats.request`, `ats.success`, `ats.ur`, `ats.ca`, `ats.translated`,
            `ats.invalidate`, `ats.timeout`.

    Attributes:
        endpoints: by StreamID. A message to a StreamID without one is answered UR.
    """

    def __init__(
        self, regs: RegisterFile, features: Features, config: Config, translator: Translator,
        walker: Walker, record: Callable[[Event], None], counters: Counter[str],
    ) -> None:  # fmt: skip
        self.endpoints: dict[int, Endpoint] = {}
        self._regs = regs
        self._features = features
        self._config = config
        self._translator = translator
        self._walker = walker
        self._record = record
        self._counters = counters
        self._sent: list[Invalidation] = []
        self._timed_out = False

    # Translation Requests.

    def request(self, request: TranslationRequest) -> Completion:
        """Answer a Translation Request (§3.9.1)."""
        self._counters["ats.request"] += 1
        completion = self._answer(request)
        self._counters[f"ats.{completion.status.name.lower()}"] += 1
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
        if index is None and (stream.stage2 is None or self._eats(stream) == Eats.SPLIT):
            return self._identity(request)
        context = None
        if index is not None:
            found = self._config.context(request.sid, stream, index)
            if isinstance(found, Fault):
                return self._failed(request, found, stream)
            context = found
        return self._translated(request, stream, context)

    def _eats(self, stream: Stream) -> int:
        """Effective STE.EATS: split-stage needs CR0.ATSCHK (§5.2)."""
        if stream.eats == Eats.SPLIT and not self._regs["CR0ACK"] & _ATSCHK:
            return Eats.NONE
        return stream.eats

    def _refused(self, request: TranslationRequest) -> Completion:
        """UR and F_BAD_ATS_TREQ (§7.3.6)."""
        ssid = request.ssid
        event = FBadAtsTreq.build(
            sid=request.sid & 0xFFFF_FFFF, ssv=int(ssid is not None), ssid=(ssid or 0) & 0xF_FFFF,
            p=int(request.priv), x=int(request.execute), w=int(not request.no_write), r=1,
            inputaddr=request.iova & MASK64 & -PAGE,
        )  # fmt: skip
        self._record(event)
        return Completion(Status.UR)

    def _aborted(
        self, request: TranslationRequest, fault: Fault, stream: Stream | None
    ) -> Completion:
        """CA; recorded with CR2.REC_CFG_ATS alone (§6.3.12)."""
        wanted = self._records_config()
        if fault.kind is CBadStreamid:
            wanted = wanted and bool(self._regs["CR2"] & _RECINVSID)
        if wanted:
            access = _access(request)
            priv, instr = overridden(access, stream)
            self._record(record(fault, access, priv=priv, instr=instr))
        return Completion(Status.CA)

    def _records_config(self) -> bool:
        return bool(self._features.idr0.atsrecerr and self._regs["CR2"] & _REC_CFG_ATS)

    def _failed(self, request: TranslationRequest, fault: Fault, stream: Stream) -> Completion:
        if fault.kind in _EMPTY:
            return Completion(Status.SUCCESS, priv=request.priv)
        return self._aborted(request, fault, stream)

    def _identity(self, request: TranslationRequest) -> Completion:
        """Stage 1 is skipped (STE.S1DSS), and stage 2 is not there or comes later."""
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
        return Completion(
            Status.SUCCESS, found.pa, found.mask + 1, read, write, execute, request.priv
        )

    def _look(self, stream: Stream, context: Context | None, iova: int, need: int) -> Entry | Fault:
        if context is None:
            return self._translator.stage2_only(stream, iova, need)
        if self._eats(stream) != Eats.SPLIT:
            return self._translator.stage1(stream, context, iova, need)
        # Split-stage: the answer is an IPA, stage 2 comes with the Translated transaction.
        table = self._translator.table(context, iova, need)
        if table is None:
            return Fault(FTranslation)
        leaf = self._walker.stage1(
            context.stage1, table, iova & VA_MASK, stream.stage2, stream.vmid, need
        )
        if isinstance(leaf, Fault):
            return leaf
        if not leaf.perms & need:
            return Fault(FPermission)
        clean = CLEAN1 if leaf.clean else 0
        return Entry(leaf.address, (1 << leaf.shift) - 1, leaf.perms, ALL_PERMS, clean=clean)

    # Translated transactions.

    def translated(self, access: Access) -> Outcome:
        """What becomes of a Translated transaction; it records nothing (§3.9.1, §7.3.8).

        `access.iova` is what a completion gave. Without PASIDs on Translated transactions
        (IDR3.PASIDTT) it is unprivileged data without SubstreamID.
        """
        self._counters["ats.translated"] += 1
        access = Access(access.sid, access.iova & MASK64, access.write)
        return self._passed(access)

    def _passed(self, access: Access) -> Outcome:
        enables = self._regs["CR0ACK"]
        if not self._features.ats or not enables & _SMMUEN:
            return _forbidden(access)
        if not enables & _ATSCHK:
            return Outcome("ok", access.iova, None, READ | WRITE | EXEC)
        stream = self._config.stream(access.sid)
        if isinstance(stream, Fault):
            wanted = self._records_config()
            event = record(stream, access, priv=False, instr=False) if wanted else None
            return Outcome("fault", None, event)
        if not stream.config & LIVE:
            return Outcome("abort")
        if stream.eats == Eats.NONE:
            return _forbidden(access)
        if stream.eats == Eats.FULL:
            return Outcome("ok", access.iova, None, READ | WRITE | EXEC)
        need = WRITE if access.write else READ
        entry = self._translator.stage2_only(stream, access.iova, need)
        if isinstance(entry, Fault):
            quiet = entry.kind.number in TRANSLATION_FAULTS and entry.s2 and not stream.record2
            event = None if quiet else record(entry, access, priv=False, instr=False)
            return Outcome("fault", None, event)
        rights = entry.granted & (READ | WRITE | EXEC)
        return Outcome("ok", entry.pa | access.iova & entry.mask, None, rights)

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
            self._sent.append(request)
            endpoint.invalidate(request)
        return True

    def settled(self) -> bool:
        """For CMD_SYNC: whether every Invalidate Request is answered or has timed out."""
        self._collect()
        return not self._sent

    def take_timeout(self) -> bool:
        """Whether one timed out since this was last asked."""
        timed_out, self._timed_out = self._timed_out, False
        return timed_out

    def _collect(self) -> None:
        for request in self._sent:
            if request.timed_out:
                self._counters["ats.timeout"] += 1
                self._timed_out = True
        self._sent = [request for request in self._sent if not request.over]


def _access(request: TranslationRequest) -> Access:
    return Access(request.sid, request.iova, False, False, request.priv, request.ssid)


def _data_only(stream: Stream) -> bool:
    """STE.INSTCFG makes everything data, so nothing can be executed."""
    return bool(stream.instcfg & OVERRIDE and not stream.instcfg & OVERRIDE_VALUE)


def _forbidden(access: Access) -> Outcome:
    event = FTranslForbidden.build(
        sid=access.sid & 0xFFFF_FFFF, rnw=int(not access.write), inputaddr=access.iova
    )
    return Outcome("fault", None, event)


class Atc:
    """An endpoint's cache of completions, by PASID, privilege and address."""

    def __init__(self, capacity: int = ATC_ENTRIES) -> None:
        self.capacity = capacity
        # (ssid, privileged, size, address): completion, oldest first.
        self._held: OrderedDict[tuple[int | None, bool, int, int], Completion] = OrderedDict()
        self._sizes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def find(self, ssid: int | None, priv: bool, iova: int) -> Completion | None:
        """The completion that translates an address."""
        for size in self._sizes:
            found = self._held.get((ssid, priv, size, iova & -size))
            if found is not None:
                return found
        return None

    def keep(self, ssid: int | None, iova: int, completion: Completion) -> None:
        """Keep a completion that has rights."""
        key = (ssid, completion.priv, completion.size, iova & -completion.size)
        if key not in self._held:
            self._sizes[completion.size] = self._sizes.get(completion.size, 0) + 1
        self._held[key] = completion
        if len(self._held) > self.capacity:
            self._drop(next(iter(self._held)))

    def drop(self, request: Invalidation) -> int:
        """Forget what an Invalidate Request covers; how many."""
        victims = [key for key in self._held if _covers(request, key)]
        for key in victims:
            self._drop(key)
        return len(victims)

    def _drop(self, key: tuple[int | None, bool, int, int]) -> None:
        del self._held[key]
        self._sizes[key[2]] -= 1
        if not self._sizes[key[2]]:
            del self._sizes[key[2]]


def _covers(request: Invalidation, key: tuple[int | None, bool, int, int]) -> bool:
    ssid, _, size, address = key
    if request.ssid is not None and (ssid is None or not (request.globl or ssid == request.ssid)):
        return False
    return address < request.address + request.size and request.address < address + size


class AtsPort(DevicePort):
    """A device with an ATC; one unit of budget is one Invalidate Request or piece.

    A piece that the SMMU gives no right for is aborted, or waits for the answer to a Page Request.

    Args:
        name, smmu, sid: as in `DevicePort`.
        pages: whether it sends Page Requests (PRI).

    Attributes:
        atc: its cache.
        silent: it answers no more Invalidate Requests, so that they time out.
        responses: PRG Responses that arrived: PASID, PRG index, code.
    """

    def __init__(self, name: str, smmu: Smmu, sid: int, *, pages: bool = False) -> None:
        super().__init__(name, smmu, sid, may_stall=False)
        self.atc = Atc()
        self.silent = False
        self.pages = pages
        self.responses: list[tuple[int | None, int, PrgResponse]] = []
        self._invalidations: deque[Invalidation] = deque()
        self._waits: Stalled | None = None
        self._prgindex = 0
        smmu.ats.endpoints[sid] = self

    def step(self, budget: int) -> int:
        """Answer Invalidate Requests, then move pieces."""
        done = 0
        while done < budget and self._invalidations:
            request = self._invalidations.popleft()
            if self.silent:
                request.timed_out = True
            else:
                self.atc.drop(request)
                request.status = Status.SUCCESS
            done += 1
        return done + super().step(budget - done)

    def invalidate(self, request: Invalidation) -> None:
        """Take an Invalidate Request."""
        self._invalidations.append(request)

    def prg_response(self, ssid: int | None, prgindex: int, code: PrgResponse) -> None:
        """Take a PRG Response; what waits for it goes on, or fails."""
        if len(self.responses) < ATC_ENTRIES:
            self.responses.append((ssid, prgindex, code))
        if self._waits is not None and prgindex == self._prgindex:
            self._waits.fate = RETRY if code == PrgResponse.SUCCESS else ABORT
            self._waits = None

    def _submit_access(self, access: Access) -> Outcome | Stalled:
        found = self.atc.find(access.ssid, access.priv, access.iova)
        if found is None or not _grants(found, access):
            found = self.smmu.ats.request(
                TranslationRequest(
                    access.sid, access.iova, access.ssid, not access.write, access.priv,
                    access.instr,
                )
            )  # fmt: skip
            if found.status != Status.SUCCESS:
                return Outcome("abort")
            if not _grants(found, access):
                return self._page_request(access) if self.pages else Outcome("abort")
            self.atc.keep(access.ssid, access.iova, found)
        target = found.address | access.iova & found.size - 1
        return self.smmu.translated(access._replace(iova=target))

    def _page_request(self, access: Access) -> Outcome | Stalled:
        held = Stalled(access, Event())
        self._prgindex = (self._prgindex + 1) % (1 << PriEntry.fields["prgindex"].mask.bit_length())
        self._waits = held
        with_pasid = access.ssid is not None
        entry = PriEntry.build(
            sid=access.sid, ssid=access.ssid or 0, ssv=int(with_pasid),
            priv=int(access.priv and with_pasid), x=int(access.instr and with_pasid),
            r=int(not access.write), w=int(access.write), last=1, prgindex=self._prgindex,
            addr=access.iova & MASK64 & -PAGE,
        )  # fmt: skip
        self.smmu.priq.request(entry)
        return held


def _grants(completion: Completion, access: Access) -> bool:
    if access.write:
        return completion.write
    return completion.execute if access.instr else completion.read
