# SPDX-License-Identifier: BSD-2-Clause
"""What a guest's command becomes on the physical SMMUs (IHI 0070 §4).

One function for each opcode, found by registry. It returns None, or the CERROR that the guest
gets; it asks for physical commands with `vsmmu.issue` and for a new shadow with `vsmmu.mark`.
VMIDs are always the domain's, StreamIDs always those of the domain's own streams. A StreamID that
is not the guest's, or out of range, has no effect: that is never an error (§4.1.x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from vsmmu.arch.commands import (
    ATC_INV_ALL,
    CFGI_ALL_RANGE,
    CmdAtcInv,
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPrefetchAddr,
    CmdPrefetchConfig,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    Command,
    Cs,
    Resp,
)
from vsmmu.arch.events import CBadStreamid, FSteFetch
from vsmmu.arch.registers import Cerror, StallModel
from vsmmu.arch.stream_table import NARROW_ID_BITS
from vsmmu.hypervisor.scope import cd_scope, tlb_scope

if TYPE_CHECKING:
    from vsmmu.hypervisor.host_smmu import HostSmmu
    from vsmmu.hypervisor.vsmmu import VSmmu

_C = TypeVar("_C", bound=Command)
Handler = Callable[["VSmmu", Any], Cerror | None]
_HANDLERS: dict[type[Command], Handler] = {}
_WITHOUT_RANGE = {
    kind: kind.mask(*(kind.fields.keys() - {"num", "scale", "ttl", "tg"}))
    for kind in (CmdTlbiNhVa, CmdTlbiNhVaa)
}


def _shadows(*kinds: type[Command]) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for kind in kinds:
            _HANDLERS[kind] = handler
        return handler

    return register


def execute(vsmmu: VSmmu, command: Command) -> Cerror | None:
    """Carry out one guest command. What the vSMMU does not advertise is CERROR_ILL (§7.1).

    That covers reserved opcodes, EL2 and stage 2 maintenance, the Secure commands, and those of
    ATS, PRI and stalls where these are not offered.
    """
    handler = _HANDLERS.get(type(command))
    if handler is None or getattr(command, "ssec", False):
        return Cerror.ILL
    return handler(vsmmu, command)


def accepted() -> tuple[str, ...]:
    """Names of the commands that are carried out, by opcode."""
    return tuple(kind.name for kind in sorted(_HANDLERS, key=lambda kind: kind.opcode))


def _rebuilt(command: _C, **changes: int) -> _C:
    """The command made anew from its named fields, some of them changed.

    A reserved bit that a guest set could be CERROR_ILL on the queue that all guests share.
    """
    return command.only(command.claimed).replace(**changes)


@_shadows(CmdPrefetchConfig, CmdPrefetchAddr)
def _prefetch(vsmmu: VSmmu, command: Command) -> Cerror | None:
    """A hint; may have no effect (§4.2)."""
    return None


@_shadows(CmdCfgiSte)
def _cfgi_ste(vsmmu: VSmmu, command: CmdCfgiSte) -> Cerror | None:
    """One STE; without Leaf also the L1STD before it, behind which other STEs may have appeared.

    Those were never reachable, so nothing of them is cached and no command names them (§4.3.1).
    """
    stream = vsmmu.streams.get(command.sid)
    if stream is not None:
        vsmmu.mark(stream)
    if not command.leaf:
        vsmmu.stale.mark_where(lambda other: isinstance(other.raises, CBadStreamid | FSteFetch))
    return None


@_shadows(CmdCfgiSteRange)
def _cfgi_ste_range(vsmmu: VSmmu, command: CmdCfgiSteRange) -> Cerror | None:
    """The aligned block of 2^(Range+1) StreamIDs; Range 31 is CMD_CFGI_ALL (§4.3.2)."""
    if command.range == CFGI_ALL_RANGE:
        vsmmu.stale.mark_all()
        return None
    shift = command.range + 1
    vsmmu.stale.mark_where(lambda stream: stream.vmaster_id >> shift == command.sid >> shift)
    return None


@_shadows(CmdCfgiCd, CmdCfgiCdAll)
def _cfgi_cd(vsmmu: VSmmu, command: CmdCfgiCd | CmdCfgiCdAll) -> Cerror | None:
    """The CD is the guest's own and cached by the hardware: same command, physical StreamID."""
    stream = vsmmu.streams.get(command.sid)
    if isinstance(command, CmdCfgiCd) and command.ssid >> vsmmu.idr1.ssidsize:
        return None
    if stream is not None:
        sid = stream.pmaster_id
        vsmmu.issue(stream.host, _rebuilt(command, sid=sid), cd_scope(command, sid))
    return None


@_shadows(CmdTlbiNhAll, CmdTlbiNsnhAll)
def _tlbi_all(vsmmu: VSmmu, command: Command) -> Cerror | None:
    """All of the guest is all of its VMID, on the SMMUs that its streams use."""
    return _everywhere(vsmmu, command, CmdTlbiNhAll.build(vmid=vsmmu.domain.vmid))


@_shadows(CmdTlbiNhAsid)
def _tlbi_asid(vsmmu: VSmmu, command: CmdTlbiNhAsid) -> Cerror | None:
    physical = CmdTlbiNhAsid.build(vmid=vsmmu.domain.vmid, asid=command.asid)
    return _everywhere(vsmmu, command, physical)


@_shadows(CmdTlbiNhVa, CmdTlbiNhVaa)
def _tlbi_va(vsmmu: VSmmu, command: CmdTlbiNhVa | CmdTlbiNhVaa) -> Cerror | None:
    """By address or range. Without IDR3.RIL the range fields are RES0 and not passed on."""
    if not vsmmu.idr3.ril or not command.tg:
        named = command.only(_WITHOUT_RANGE[type(command)])
    elif not (command.num or command.scale or _effective_ttl(command)):
        return Cerror.ILL
    else:
        named = _rebuilt(command)
    return _everywhere(vsmmu, named, named.replace(vmid=vsmmu.domain.vmid))


def _everywhere(vsmmu: VSmmu, command: Command, physical: Command) -> Cerror | None:
    """A physical TLBI on the SMMUs in use, for what the guest's command is meant for."""
    scope = tlb_scope(command, vsmmu.domain.vmid)
    for host in vsmmu.hosts:
        vsmmu.issue(host, _narrowed(physical, host), scope)
    return None


def _narrowed(physical: Command, host: HostSmmu) -> Command:
    """Without IDR0.ASID16, ASID[15:8] are as reserved as any other bit (§4.4)."""
    if host.idr0.asid16 or not isinstance(physical, CmdTlbiNhAsid | CmdTlbiNhVa):
        return physical
    return physical.replace(asid=physical.asid & (1 << NARROW_ID_BITS) - 1)


def _effective_ttl(command: CmdTlbiNhVa | CmdTlbiNhVaa) -> int:
    """TTL 1 of the 16K granule needs IDR5.DS, which is not advertised (§4.4.1)."""
    return 0 if command.tg == 2 and command.ttl == 1 else command.ttl


@_shadows(CmdSync)
def _sync(vsmmu: VSmmu, command: CmdSync) -> Cerror | None:
    if command.cs > Cs.SEV:
        return Cerror.ILL
    vsmmu.begin_sync(command)
    return None


# Messages to devices (§4.5); both are ignored with SMMUEN=0.


@_shadows(CmdAtcInv)
def _atc_inv(vsmmu: VSmmu, command: CmdAtcInv) -> Cerror | None:
    """To the guest's own device; a timeout stops the guest's queue at its CMD_SYNC (§4.5.1)."""
    if not vsmmu.idr0.ats or command.size_lg2 > ATC_INV_ALL:
        return Cerror.ILL
    stream = vsmmu.streams.get(command.sid)
    if stream is not None and vsmmu.regs.cr0.smmuen:
        changes = {} if vsmmu.idr1.ssidsize else {"ssv": 0, "ssid": 0, "globl": 0}
        vsmmu.issue(stream.host, _rebuilt(command, sid=stream.pmaster_id, **changes))
    return None


@_shadows(CmdPriResp)
def _pri_resp(vsmmu: VSmmu, command: CmdPriResp) -> Cerror | None:
    """An answer to a page request that the guest was told of (§4.5.2)."""
    if not vsmmu.idr0.pri or command.resp > Resp.SUCCESS:
        return Cerror.ILL
    stream = vsmmu.streams.get(command.sid)
    if stream is not None and vsmmu.regs.cr0.smmuen:
        vsmmu.pri.respond(stream, command)
    return None


# Stalled transactions (§4.7.1, §4.7.2).


@_shadows(CmdResume)
def _resume(vsmmu: VSmmu, command: CmdResume) -> Cerror | None:
    if vsmmu.idr0.stall_model == StallModel.TERMINATE_ONLY:
        return Cerror.ILL
    vsmmu.stalls.resume(command.sid, command.stag, retry=bool(command.ac))
    return None


@_shadows(CmdStallTerm)
def _stall_term(vsmmu: VSmmu, command: CmdStallTerm) -> Cerror | None:
    if vsmmu.idr0.stall_model == StallModel.TERMINATE_ONLY:
        return Cerror.ILL
    stream = vsmmu.streams.get(command.sid)
    if stream is not None:
        vsmmu.stalls.stall_term(stream)
    return None
