# SPDX-License-Identifier: BSD-2-Clause
"""Turning a physical event record into the one the guest's own configuration would have raised.

Records are built anew from named fields, never copied, so that no physical StreamID, address or
VMID can pass. What concerns stage 2 of the data access itself stays with the hypervisor: without
a vSMMU the guest would not see it either (IHI 0070 §3.12, §7.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vsmmu.arch.events import (
    TRANSLATION_FAULTS,
    CBadCd,
    CBadSte,
    CBadSubstreamid,
    Event,
    EventClass,
    FCdFetch,
    FStreamDisabled,
    FUut,
    FWalkEabt,
)
from vsmmu.hypervisor.domain import Domain, Stream


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
        return FCdFetch.build(fetchaddr=stream.s1ctxptr, **base)
    if isinstance(event, FWalkEabt):
        return _walk_abort(event, base, domain)
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
        return kind.build(cls=event.cls, **base, **_access(event))
    if event.cls == EventClass.CD:
        return FCdFetch.build(fetchaddr=stream.s1ctxptr, **base)
    if event.cls == EventClass.TT:
        # The record holds the page of the descriptor's IPA; the low bits are not in it.
        return FWalkEabt.build(cls=EventClass.TT, fetchaddr=event.ipa, **base, **_access(event))
    return Kept("stage 2 fault")
