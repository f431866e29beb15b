# SPDX-License-Identifier: BSD-2-Clause
"""Turning a physical event record into the one the guest's own configuration would have raised.

Records are built anew from named fields, never copied, so that no physical StreamID, address or
VMID can pass. What concerns stage 2 of the data access itself stays with the hypervisor: without
a vSMMU the guest would not see it either (IHI 0070 §3.12, §7.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vsmmu.arch.context import L1Cd
from vsmmu.arch.events import (
    TRANSLATION_FAULTS,
    CBadCd,
    CBadSte,
    CBadSubstreamid,
    Event,
    EventClass,
    FAddrSize,
    FBadAtsTreq,
    FCdFetch,
    FStreamDisabled,
    FTlbConflict,
    FTranslForbidden,
    FUut,
    FWalkEabt,
)
from vsmmu.hypervisor.domain import Domain, GuestMemory, Stream

# CDs and level 1 CDs are this long; a second-level table of the smaller kind is a page.
_CD, _L1CD, _PAGE = 64, 8, 0x1000


@dataclass(frozen=True, slots=True)
class Kept:
    """The record is not for the guest; `reason` is a short fixed text for the counters."""

    reason: str


_PLAIN = (CBadCd, CBadSubstreamid, FStreamDisabled)


def to_guest(event: Event, stream: Stream, domain: Domain) -> Event | Kept:
    """The guest's record for a physical one, with its vMasterID; or why there is none."""
    base = {"sid": stream.vmaster_id, "ssv": event.ssv, "ssid": event.ssid if event.ssv else 0}
    if isinstance(event, CBadSte):
        # The physical STE is made invalid on purpose where the guest's configuration stands for
        # an event; at any other time it is a step of an update.
        if stream.raises is None:
            return Kept("STE in transition")
        return stream.raises.replace(**base)
    if isinstance(event, _PLAIN):
        if isinstance(event, CBadSubstreamid):
            base["ssid"] = event.ssid
        return type(event).build(**base)
    if isinstance(event, FCdFetch):
        ipa = domain.stage2.to_ipa(event.fetchaddr) if stream.cd_bits else None
        return FCdFetch.build(fetchaddr=stream.s1ctxptr if ipa is None else ipa & ~7, **base)
    if isinstance(event, FBadAtsTreq):
        names = ("span", "p", "x", "w", "r", "inputaddr")
        return FBadAtsTreq.build(**base, **{name: getattr(event, name) for name in names})
    if isinstance(event, FTranslForbidden):
        return FTranslForbidden.build(**base, rnw=event.rnw, inputaddr=event.inputaddr)
    if isinstance(event, FWalkEabt):
        return _walk_abort(event, base, domain)
    if isinstance(event, FTlbConflict) and not event.s2:
        return FTlbConflict.build(**base, **_access(event))
    if isinstance(event, FUut):
        return FUut.build(**base, **_access(event))
    if event.type in TRANSLATION_FAULTS:
        return _translation(event, base, stream)
    return Kept("physical structure")


def _access(event: Any) -> dict[str, int]:
    return {"pnu": event.pnu, "ind": event.ind, "rnw": event.rnw, "inputaddr": event.inputaddr}


def _walk_abort(event: FWalkEabt, base: dict[str, int], domain: Domain) -> Event | Kept:
    """FetchAddr is physical: given as the guest's own address, or 0 when it is not the guest's."""
    if event.s2:
        return Kept("stage 2 walk")
    ipa = domain.stage2.to_ipa(event.fetchaddr) or 0
    return FWalkEabt.build(cls=EventClass.TT, fetchaddr=ipa & ~7, **base, **_access(event))


def _translation(event: Any, base: dict[str, int], stream: Stream) -> Event | Kept:
    if not event.s2:
        kind: type[Event] = type(event)
        return kind.build(cls=event.cls, stall=event.stall, **base, **_access(event))
    if event.cls == EventClass.CD:
        if event.ipa >> stream.oas:
            # Only L1CD.L2Ptr can be beyond what the guest's SMMU outputs (§5.5).
            return CBadSubstreamid.build(sid=stream.vmaster_id, ssid=_cd_index(event, stream))
        return FCdFetch.build(fetchaddr=_cd_address(event, stream), **base)
    if event.cls == EventClass.TT:
        # The record holds the page of the descriptor's IPA; the low bits are not in it.
        return FWalkEabt.build(cls=EventClass.TT, fetchaddr=event.ipa, **base, **_access(event))
    if stream.bypass and not event.ssv and event.inputaddr >> stream.oas:
        # Beyond what the guest's own SMMU outputs, where this one outputs more (§3.4.3).
        return FAddrSize.build(cls=EventClass.IN, **base, **_access(event))
    return Kept("stage 2 fault")


def _cd_address(event: Any, stream: Stream) -> int:
    """Where the CD or level 1 CD is that stage 2 has not got; the record holds its page."""
    index = _cd_index(event, stream)
    if not stream.cd_split:
        return stream.s1ctxptr + _CD * index
    level1 = stream.s1ctxptr + _L1CD * (index >> stream.cd_split)
    if level1 // _PAGE == event.ipa // _PAGE:
        return level1
    page: int = event.ipa
    return page | _CD * index % _PAGE


def missing_cd(record: FCdFetch, stream: Stream, memory: GuestMemory) -> Event:
    """C_BAD_SUBSTREAMID in place of F_CD_FETCH where L1CD.L2Ptr lies beyond the guest's OAS (§5.3).

    Hardware takes it for an IPA, of which its record has no bits from OAS on (§7.3.13). So the
    guest's L1CD is read again: if it still leads to the recorded page, those bits say which it was.
    """
    index = _cd_index(record, stream)
    word = memory.read64(stream.s1ctxptr + _L1CD * (index >> stream.cd_split))
    table = L1Cd(word or 0).l2ptr & -(_CD << stream.cd_split)
    address = table + _CD * (index & (1 << stream.cd_split) - 1)
    page = (address & (1 << stream.oas) - 1) // _PAGE
    if not table >> stream.oas or page != record.fetchaddr // _PAGE:
        return record
    return CBadSubstreamid.build(sid=record.sid, ssid=index)


def _cd_index(event: Any, stream: Stream) -> int:
    """Which CD an access needs; the first where its SubstreamID does not say."""
    return event.ssid if event.ssv and stream.cd_bits else 0
