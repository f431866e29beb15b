# SPDX-License-Identifier: BSD-2-Clause
"""The physical STE for a stream as its guest has configured it now (IHI 0070 §5.2, §6.3.14).

What the vSMMU does not advertise is refused where the guest's STE would be ILLEGAL, and else kept
from the physical one: SubstreamIDs (S1CDMax, S1Fmt, S1DSS), ATS (EATS), stalls (S1STALLD).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.arch.events import CBadSte, Event
from vsmmu.arch.registers import Cr0, Gbpa, StallModel
from vsmmu.arch.stream_table import LIVE, Eats, S1Dss, Ste, SteConfig
from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.guest_ste import fetch
from vsmmu.smmu.ste import decode_ste

if TYPE_CHECKING:
    from vsmmu.hypervisor.vsmmu import VSmmu

_ABORT = Ste.build(v=1, config=SteConfig.ABORT)
_INVALID = Ste()


def shadow(vsmmu: VSmmu, stream: Stream, *, refuse: bool = True) -> tuple[Ste, Event | None]:
    """The STE, with the event that the guest's configuration stands for where it is invalid.

    Args:
        refuse: count an illegal STE.
    """
    if not Cr0(vsmmu.regs["CR0"]).smmuen:
        abort = Gbpa(vsmmu.regs["GBPA"]).abort
        return (_ABORT if abort else vsmmu.domain.stage2_ste()), None
    found = fetch(vsmmu.regs, stream.vmaster_id, vsmmu.domain.memory)
    if isinstance(found, Event):
        return _INVALID, found
    meaning = decode_ste(found, vsmmu.features)
    if meaning is None:
        if refuse:
            vsmmu.refusals.add("C_BAD_STE", f"vMasterID {stream.vmaster_id:#x}: {found!r}")
        return _INVALID, CBadSte.build()
    stream.ppar = meaning.ppar
    skipped = meaning.cd_bits > 0 and meaning.dss == S1Dss.BYPASS
    stream.oas, stream.bypass = vsmmu.features.oas, skipped or found.config == SteConfig.BYPASS
    if not found.config & LIVE:
        return _ABORT, None
    if found.config == SteConfig.BYPASS:
        return vsmmu.domain.stage2_ste(), None
    stream.s1ctxptr = meaning.ctxptr
    stream.cd_bits, stream.cd_split = meaning.cd_bits, meaning.cd_split
    if not vsmmu.idr1.ssidsize:
        # Ignored by the SMMU the guest sees, so the physical one must not act on them.
        found = found.replace(s1cdmax=0, s1fmt=0, s1dss=0)
    offered = vsmmu.idr0.stall_model == StallModel.STALL_AND_TERMINATE
    return vsmmu.domain.nested_ste(
        found,
        stall_disabled=stream.host.can_stall and not (offered and not found.s1stalld),
        ats=meaning.eats == Eats.FULL,
        ppar=bool(vsmmu.idr0.pri and meaning.ppar),
    ), None


def settle(vsmmu: VSmmu, stream: Stream, record: Event) -> Event | None:
    """The record of an access that met an invalid shadow STE, or None if it ends silently.

    A driver that links a level 2 table of STEs sends no command for it, as Linux, and a fetch that
    failed is cached nowhere. So the guest's STE is read again once something meets what it was: if
    it is another by now, the shadow is made anew. An STE that lets accesses through comes too late
    for this one. Not of a stream that is being taken back: its STE is the hypervisor's already.
    """
    if vsmmu.streams.get(stream.vmaster_id) is not stream:
        return record
    target, raises = shadow(vsmmu, stream, refuse=False)
    if raises is None or raises.number != record.number:
        vsmmu.mark(stream)
    if raises is None:
        return None if target == _ABORT else record
    return raises.replace(sid=record.sid, ssv=record.ssv, ssid=record.ssid)
