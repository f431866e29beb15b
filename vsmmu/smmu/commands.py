# SPDX-License-Identifier: BSD-2-Clause
"""What each command does to an SMMU (IHI 0070 §4): one small effect for each opcode.

An opcode without an effect is CERROR_ILL: reserved ones, and those of features that are not
modelled (EL3 maintenance, MPAM, DPT, Secure state).

Invalidations are complete when the CMD_SYNC behind them is. They take effect as they are consumed,
or with hostile caching no sooner than that CMD_SYNC (§4.7.3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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
    CmdTlbiEl2All,
    CmdTlbiEl2Asid,
    CmdTlbiEl2Va,
    CmdTlbiEl2Vaa,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
    Cs,
    Resp,
)
from vsmmu.arch.pri import PrgResponse
from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.memory import PAGE_SHIFT
from vsmmu.smmu.config import DEFERRED
from vsmmu.smmu.intent import Cause
from vsmmu.smmu.stall import ABORT, RAZWI, RETRY
from vsmmu.smmu.tlb import WORLD_E2H, WORLD_EL2, Tlb
from vsmmu.smmu.transaction import VA_MASK

if TYPE_CHECKING:
    from vsmmu.smmu.ats import Ats
    from vsmmu.smmu.config import Config
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.intent import Intent
    from vsmmu.smmu.pri import PriQueue
    from vsmmu.smmu.regfile import RegisterFile
    from vsmmu.smmu.stall import StallBuffer

# What an effect tells the queue: go on; stop with CERROR_ILL; try this command again later.
DONE, ILL, WAIT = range(3)

_MAX_SID = 0xFFFF_FFFF
_VMW, _VMW_MAX = Cr0.vmw, 4
_E2H = Cr2.mask("e2h")[0]
_SMMUEN = Cr0.mask("smmuen")[0]
_RESPONSES = {
    Resp.FAILURE: PrgResponse.FAILURE,
    Resp.INVALID_REQUEST: PrgResponse.INVALID_REQUEST,
    Resp.SUCCESS: PrgResponse.SUCCESS,
}
# CMD_TLBI_*.TG to log2 of the granule.
_RIL_GRANULE = {1: 12, 2: 14, 3: 16}


class Unit(Protocol):
    """The parts of an SMMU that commands act on; `intent` is stated for the present command."""

    features: Features
    regs: RegisterFile
    config: Config
    tlb: Tlb
    stalls: StallBuffer
    ats: Ats
    priq: PriQueue
    private: set[tuple[int, int]]
    intent: Intent | None

    def count(self, name: str) -> None:
        """Add one to a counter."""
        ...  # pragma: no cover

    def events_settled(self) -> bool:
        """Whether the events of earlier transactions are in the queue or gone."""
        ...  # pragma: no cover

    def atc_inv_failed(self) -> None:
        """Stop the command queue with CERROR_ATC_INV_SYNC."""
        ...  # pragma: no cover


Effect = Callable[[Unit, Any], int]
_C = TypeVar("_C", bound=Command)
_EFFECTS: dict[int, tuple[str | None, Effect]] = {}


def _effect(
    command: type[_C], needs: str | None = None
) -> Callable[[Callable[[Unit, _C], int]], Callable[[Unit, _C], int]]:
    """Register the effect of a command; `needs` is the feature without which it is ILL."""

    def register(function: Callable[[Unit, _C], int]) -> Callable[[Unit, _C], int]:
        _EFFECTS[command.opcode] = (needs, function)
        return function

    return register


def execute(unit: Unit, command: Command) -> int:
    """Carry out one command; DONE, ILL or WAIT."""
    needs, effect = _EFFECTS.get(command.opcode, (None, None))
    if effect is None or (needs is not None and not getattr(unit.features, needs)):
        return ILL
    ssec = command.fields.get("ssec")
    # A Non-secure queue cannot name a Secure StreamID (§4.1.6).
    if ssec is not None and ssec.of(command.words):
        return ILL
    return effect(unit, command)


def _maintain(
    unit: Unit, command: Command, action: Callable[..., object], *args: Any, **kwargs: Any
) -> int:
    """Do an invalidation now, or leave it for the next CMD_SYNC where caching is hostile."""
    config, cause = unit.config, Cause(command.name, unit.intent)
    if not config.caching.hostile:
        action(*args, **kwargs, cause=cause)
        return DONE
    if len(config.deferred) >= DEFERRED:
        config.synchronise()
    config.deferred.append(partial(action, *args, **kwargs, cause=cause))
    return DONE


# Prefetch is a hint; it fails silently (§4.2). PREFETCH_ADDR takes in the configuration alone.


@_effect(CmdPrefetchConfig)
def _prefetch_config(unit: Unit, command: CmdPrefetchConfig) -> int:
    unit.config.prefetch(command.sid, command.ssid if command.ssv else None)
    return DONE


@_effect(CmdPrefetchAddr)
def _prefetch_addr(unit: Unit, command: CmdPrefetchAddr) -> int:
    unit.config.prefetch(command.sid, command.ssid if command.ssv else None)
    return DONE


def ste_span(command: CmdCfgiSteRange) -> tuple[int, int]:
    """First and last StreamID of a CMD_CFGI_STE_RANGE: 2^(Range+1), aligned, or all (§4.3.2)."""
    if command.range == CFGI_ALL_RANGE:
        return 0, _MAX_SID
    block = (1 << (command.range + 1)) - 1
    return command.sid & ~block, command.sid | block


# Configuration (§4.3). A StreamID or SubstreamID out of range matches nothing.


@_effect(CmdCfgiSte)
def _cfgi_ste(unit: Unit, command: CmdCfgiSte) -> int:
    sid = command.sid
    return _maintain(unit, command, unit.config.invalidate_range, sid, sid, l1=not command.leaf)


@_effect(CmdCfgiSteRange)
def _cfgi_ste_range(unit: Unit, command: CmdCfgiSteRange) -> int:
    first, last = ste_span(command)
    return _maintain(unit, command, unit.config.invalidate_range, first, last, l1=True)


@_effect(CmdCfgiCd, needs="s1p")
def _cfgi_cd(unit: Unit, command: CmdCfgiCd) -> int:
    # SSV does not count: the field is the index of the CD, 0 without substreams.
    drop = unit.config.invalidate_context
    return _maintain(unit, command, drop, command.sid, command.ssid, l1=not command.leaf)


@_effect(CmdCfgiCdAll, needs="s1p")
def _cfgi_cd_all(unit: Unit, command: CmdCfgiCdAll) -> int:
    return _maintain(unit, command, unit.config.invalidate_context, command.sid)


# TLB (§4.4). VMIDs tag entries only where there is a stage 2.


def vmid_tag(unit: Unit, vmid: int) -> int:
    """The tag of a VMID; CR0.VMW says how many low bits invalidations ignore (§3.17.6, §6.3.9)."""
    if not unit.features.s2p:
        return 0
    vmw = _VMW.of((unit.regs["CR0ACK"],)) if unit.features.idr0.vmw else 0
    vmw = vmw if vmw <= _VMW_MAX else 0
    if vmw != unit.tlb.vmw:
        # What is held back was asked for with the old value.
        unit.config.synchronise()
        unit.tlb.vmw = vmw
    return vmid


def _span(unit: Unit, command: Any, limit: int) -> tuple[int, int] | None:
    """First and last address that a command by address affects; None is CERROR_ILL (§4.4.1)."""
    first = command.addr & limit
    if not unit.features.idr3.ril or not command.tg:
        return first, first
    # 16K has no level 1 leaf without 52-bit descriptors: that TTL acts as 0.
    unheard = command.tg == 2 and command.ttl == 1 and not unit.features.idr5.ds
    ttl = 0 if unheard else command.ttl
    if command.num == command.scale == ttl == 0:
        return None
    length = (command.num + 1) << command.scale << _RIL_GRANULE[command.tg]
    # An address that is not aligned for its TTL affects the entries that the plain range touches.
    return first, min(first + length - 1, limit)


@_effect(CmdTlbiNhAll, needs="s1p")
def _tlbi_nh_all(unit: Unit, command: CmdTlbiNhAll) -> int:
    return _maintain(
        unit, command, unit.tlb.invalidate_vmid, vmid_tag(unit, command.vmid), stage2=False
    )


@_effect(CmdTlbiNhAsid, needs="s1p")
def _tlbi_nh_asid(unit: Unit, command: CmdTlbiNhAsid) -> int:
    return _maintain(
        unit, command, unit.tlb.invalidate_asid, vmid_tag(unit, command.vmid), command.asid
    )


@_effect(CmdTlbiNhVa, needs="s1p")
def _tlbi_nh_va(unit: Unit, command: CmdTlbiNhVa) -> int:
    return _by_va(unit, command, vmid_tag(unit, command.vmid), command.asid)


@_effect(CmdTlbiNhVaa, needs="s1p")
def _tlbi_nh_vaa(unit: Unit, command: CmdTlbiNhVaa) -> int:
    return _by_va(unit, command, vmid_tag(unit, command.vmid), None)


def _by_va(unit: Unit, command: Any, tag: int, asid: int | None) -> int:
    span = _span(unit, command, VA_MASK)
    if span is None:
        return ILL
    return _maintain(
        unit, command, unit.tlb.invalidate_va, tag, asid, *span, leaf=bool(command.leaf)
    )


# EL2 maintenance affects NS-EL2 or NS-EL2-E2H entries, as CR2.E2H says; ALL both (§3.17.5,
# §4.4.2.7).


def _e2h(unit: Unit) -> bool:
    return bool(unit.regs["CR2"] & _E2H)


@_effect(CmdTlbiEl2All, needs="hyp")
def _tlbi_el2_all(unit: Unit, command: CmdTlbiEl2All) -> int:
    return _maintain(unit, command, unit.tlb.invalidate_el2)


@_effect(CmdTlbiEl2Asid, needs="hyp")
def _tlbi_el2_asid(unit: Unit, command: CmdTlbiEl2Asid) -> int:
    return _maintain(unit, command, unit.tlb.invalidate_asid, WORLD_E2H, command.asid)


@_effect(CmdTlbiEl2Va, needs="hyp")
def _tlbi_el2_va(unit: Unit, command: CmdTlbiEl2Va) -> int:
    # NS-EL2 entries have no ASID: the field is ignored.
    if _e2h(unit):
        return _by_va(unit, command, WORLD_E2H, command.asid)
    return _by_va(unit, command, WORLD_EL2, None)


@_effect(CmdTlbiEl2Vaa, needs="hyp")
def _tlbi_el2_vaa(unit: Unit, command: CmdTlbiEl2Vaa) -> int:
    return _by_va(unit, command, WORLD_E2H if _e2h(unit) else WORLD_EL2, None)


@_effect(CmdTlbiS12Vmall, needs="s2p")
def _tlbi_s12_vmall(unit: Unit, command: CmdTlbiS12Vmall) -> int:
    return _maintain(
        unit, command, unit.tlb.invalidate_vmid, vmid_tag(unit, command.vmid), stage2=True
    )


@_effect(CmdTlbiS2Ipa, needs="s2p")
def _tlbi_s2_ipa(unit: Unit, command: CmdTlbiS2Ipa) -> int:
    span = _span(unit, command, VA_MASK)
    if span is None:
        return ILL
    vmid, leaf = vmid_tag(unit, command.vmid), bool(command.leaf)
    return _maintain(unit, command, unit.tlb.invalidate_ipa, vmid, *span, leaf=leaf)


@_effect(CmdTlbiNsnhAll)
def _tlbi_nsnh_all(unit: Unit, command: CmdTlbiNsnhAll) -> int:
    return _maintain(unit, command, unit.tlb.invalidate_all)


# Messages to endpoints (§4.5); both are ignored with SMMUEN=0.


@_effect(CmdAtcInv, needs="ats")
def _atc_inv(unit: Unit, command: CmdAtcInv) -> int:
    if command.size_lg2 > ATC_INV_ALL:
        return ILL
    if not unit.regs["CR0ACK"] & _SMMUEN:
        return DONE
    # Global means something with a PASID alone.
    ssid = command.ssid if command.ssv else None
    size = 1 << (command.size_lg2 + PAGE_SHIFT)
    globl = bool(command.ssv and command.globl)
    sent = unit.ats.invalidate(command.sid, ssid, command.addr, size, globl=globl)
    return DONE if sent else WAIT


@_effect(CmdPriResp, needs="pri")
def _pri_resp(unit: Unit, command: CmdPriResp) -> int:
    code = _RESPONSES.get(Resp(command.resp)) if command.resp <= Resp.SUCCESS else None
    if code is None:
        return ILL
    if unit.regs["CR0ACK"] & _SMMUEN:
        ssid = command.ssid if command.ssv else None
        unit.priq.respond(command.sid, ssid, command.prgindex, code)
    return DONE


# Stalled transactions (§4.7.1, §4.7.2).


@_effect(CmdResume, needs="stalls")
def _resume(unit: Unit, command: CmdResume) -> int:
    if command.ac:
        fate = RETRY
    else:
        # Without RAZ/WI (IDR0.TERM_MODEL) Ab is ignored.
        fate = ABORT if command.ab or unit.features.idr0.term_model else RAZWI
    unit.stalls.resume(command.sid, command.stag, fate)
    return DONE


@_effect(CmdStallTerm, needs="stalls")
def _stall_term(unit: Unit, command: CmdStallTerm) -> int:
    unit.stalls.terminate(command.sid)
    return DONE


@_effect(CmdSync)
def _sync(unit: Unit, command: CmdSync) -> int:
    """Completes once the events of earlier transactions are visible or gone (§4.7.3)."""
    if command.cs > Cs.SEV:
        return ILL
    if not unit.events_settled() or not unit.ats.settled():
        return WAIT
    if unit.ats.take_timeout():
        # The queue stops on this command, and goes on with it (§7.1).
        unit.atc_inv_failed()
        return WAIT
    unit.config.synchronise()
    unit.stalls.synchronise()
    # The queue signals, after CONS has moved.
    return DONE
