# SPDX-License-Identifier: BSD-2-Clause
"""What each command does to an SMMU (IHI 0070 §4): one small effect for each opcode.

An opcode without an effect is CERROR_ILL: reserved ones, and those of features that are not
modelled (EL2 and EL3 maintenance, ATS, PRI, stalling, MPAM, DPT, Secure state).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vsmmu.arch.commands import (
    CFGI_ALL_RANGE,
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPrefetchAddr,
    CmdPrefetchConfig,
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
    Cs,
)
from vsmmu.smmu.tlb import VA_MASK, Tlb

if TYPE_CHECKING:
    from vsmmu.smmu.config import Config
    from vsmmu.smmu.features import Features

# What an effect tells the queue: go on; go on and pulse cmdq-sync; stop with CERROR_ILL; try this
# command again later.
DONE, SIGNAL, ILL, WAIT = range(4)

_MAX_SID = 0xFFFF_FFFF
# CMD_TLBI_*.TG to log2 of the granule.
_RIL_GRANULE = {1: 12, 2: 14, 3: 16}


class Unit(Protocol):
    """The parts of an SMMU that commands act on."""

    features: Features
    config: Config
    tlb: Tlb

    def events_settled(self) -> bool:
        """Whether the events of earlier transactions are in the queue or gone."""
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
    """Carry out one command; DONE, SIGNAL, ILL or WAIT."""
    needs, effect = _EFFECTS.get(command.opcode, (None, None))
    if effect is None or (needs is not None and not getattr(unit.features, needs)):
        return ILL
    ssec = command.fields.get("ssec")
    # A Non-secure queue cannot name a Secure StreamID (§4.1.6).
    if ssec is not None and ssec.of(command.words):
        return ILL
    return effect(unit, command)


# Prefetch is a hint, and taking it is optional (§4.2).


@_effect(CmdPrefetchConfig)
def _prefetch_config(unit: Unit, command: CmdPrefetchConfig) -> int:
    return DONE


@_effect(CmdPrefetchAddr)
def _prefetch_addr(unit: Unit, command: CmdPrefetchAddr) -> int:
    return DONE


# Configuration (§4.3). A StreamID out of range matches nothing.


@_effect(CmdCfgiSte)
def _cfgi_ste(unit: Unit, command: CmdCfgiSte) -> int:
    unit.config.invalidate_range(command.sid, command.sid, l1=not command.leaf)
    return DONE


@_effect(CmdCfgiSteRange)
def _cfgi_ste_range(unit: Unit, command: CmdCfgiSteRange) -> int:
    if command.range == CFGI_ALL_RANGE:
        unit.config.invalidate_range(0, _MAX_SID, l1=True)
    else:
        block = (1 << (command.range + 1)) - 1
        unit.config.invalidate_range(command.sid & ~block, command.sid | block, l1=True)
    return DONE


@_effect(CmdCfgiCd, needs="s1p")
def _cfgi_cd(unit: Unit, command: CmdCfgiCd) -> int:
    # Without substreams a stream has CD 0 only; another index matches nothing.
    if command.ssid == 0:
        unit.config.invalidate_context(command.sid)
    return DONE


@_effect(CmdCfgiCdAll, needs="s1p")
def _cfgi_cd_all(unit: Unit, command: CmdCfgiCdAll) -> int:
    unit.config.invalidate_context(command.sid)
    return DONE


# TLB (§4.4). VMIDs tag entries only where there is a stage 2.


def _vmid(unit: Unit, vmid: int) -> int:
    return vmid if unit.features.s2p else 0


def _span(unit: Unit, command: Any, limit: int) -> tuple[int, int] | None:
    """First and last address that a command by address affects; None is CERROR_ILL (§4.4.1)."""
    first = command.addr & limit
    if not unit.features.idr3.ril or not command.tg:
        return first, first
    # 16K has no level 1 leaf without 52-bit descriptors: that TTL acts as 0.
    ttl = 0 if command.tg == 2 and command.ttl == 1 else command.ttl
    if command.num == command.scale == ttl == 0:
        return None
    length = (command.num + 1) << command.scale << _RIL_GRANULE[command.tg]
    # An address that is not aligned for its TTL affects the entries that the plain range touches.
    return first, min(first + length - 1, limit)


@_effect(CmdTlbiNhAll, needs="s1p")
def _tlbi_nh_all(unit: Unit, command: CmdTlbiNhAll) -> int:
    unit.tlb.invalidate_vmid(_vmid(unit, command.vmid), stage2=False)
    return DONE


@_effect(CmdTlbiNhAsid, needs="s1p")
def _tlbi_nh_asid(unit: Unit, command: CmdTlbiNhAsid) -> int:
    unit.tlb.invalidate_asid(_vmid(unit, command.vmid), command.asid)
    return DONE


@_effect(CmdTlbiNhVa, needs="s1p")
def _tlbi_nh_va(unit: Unit, command: CmdTlbiNhVa) -> int:
    return _by_va(unit, command, command.vmid, command.asid)


@_effect(CmdTlbiNhVaa, needs="s1p")
def _tlbi_nh_vaa(unit: Unit, command: CmdTlbiNhVaa) -> int:
    return _by_va(unit, command, command.vmid, None)


def _by_va(unit: Unit, command: Command, vmid: int, asid: int | None) -> int:
    span = _span(unit, command, VA_MASK)
    if span is None:
        return ILL
    unit.tlb.invalidate_va(_vmid(unit, vmid), asid, *span)
    return DONE


@_effect(CmdTlbiS12Vmall, needs="s2p")
def _tlbi_s12_vmall(unit: Unit, command: CmdTlbiS12Vmall) -> int:
    unit.tlb.invalidate_vmid(command.vmid, stage2=True)
    return DONE


@_effect(CmdTlbiS2Ipa, needs="s2p")
def _tlbi_s2_ipa(unit: Unit, command: CmdTlbiS2Ipa) -> int:
    span = _span(unit, command, VA_MASK)
    if span is None:
        return ILL
    unit.tlb.invalidate_ipa(command.vmid, *span)
    return DONE


@_effect(CmdTlbiNsnhAll)
def _tlbi_nsnh_all(unit: Unit, command: CmdTlbiNsnhAll) -> int:
    unit.tlb.invalidate_all()
    return DONE


@_effect(CmdSync)
def _sync(unit: Unit, command: CmdSync) -> int:
    """Completes once the events of earlier transactions are visible or gone (§4.7.3)."""
    if command.cs > Cs.SEV:
        return ILL
    if not unit.events_settled():
        return WAIT
    # There are no MSIs and no SEV: SIG_SEV is SIG_NONE.
    return SIGNAL if command.cs == Cs.IRQ else DONE
