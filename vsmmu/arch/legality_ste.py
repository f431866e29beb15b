# SPDX-License-Identifier: BSD-2-Clause
"""Why a Non-secure STE is ILLEGAL: every reason (IHI 0070 §5.2.2)."""

from __future__ import annotations

from vsmmu.arch.legality import (
    Found,
    Identification,
    Reason,
    endian,
    flag_updates,
    granule_missing,
    ias_bits,
    largest_txsz,
    oas_bits,
    output_limit,
)
from vsmmu.arch.pagetable import (
    S2_CONCATENATION,
    S2_START,
    S2_START_DS,
    S2_START_NEEDS_OAS,
    TG0,
    TXSZ_MIN,
    TXSZ_MIN_52,
    Granule,
)
from vsmmu.arch.registers import StallModel, Ttf
from vsmmu.arch.stream_table import (
    LIVE,
    NARROW_ID_BITS,
    STAGE1,
    STAGE2,
    Eats,
    S1Fmt,
    Ste,
    SteConfig,
    World,
    sl0_code,
)

_CLAUSE = "IHI 0070 §5.2.2"

# S2POI: encodings that are reserved (§5.2).
_RESERVED_OVERLAYS = (0b0001, 0b0101)


def ste_reasons(ste: Ste, ids: Identification) -> tuple[Reason, ...]:
    """Why an STE of a Non-secure stream is ILLEGAL; empty for a legal one.

    Args:
        ste: the structure.
        ids: the SMMU's identification registers.
    """
    if not ste.v:
        return (Reason("v", "V=0: the STE is invalid", _CLAUSE),)
    if not ste.config & LIVE:
        return ()
    found = [*_stages(ste, ids), *_ats(ste, ids), *_strw(ste, ids)]
    if ste.config & STAGE1:
        found += [*_stage1(ste, ids), *_vms(ste, ids)]
    if ste.config & STAGE2:
        found += [*_faults(ste, ids), *_formats(ste, ids), *_overlay(ste, ids)]
        found += _table(ste, ids) if ste.s2aa64 else []
    found += _vmid(ste, ids)
    return tuple(Reason(name, text, _CLAUSE) for name, text in found)


def strw_used(ste: Ste, ids: Identification) -> bool:
    """Whether STE.STRW means anything: stage 1 alone, with IDR0.Hyp."""
    return bool(ids.idr0.s1p and ids.idr0.hyp and ste.config == SteConfig.S1)


def world_of(ste: Ste, ids: Identification, e2h: bool) -> World:
    """The StreamWorld of a legal STE; `e2h` is CR2.E2H."""
    if not strw_used(ste, ids) or not ste.strw:
        return World.NS_EL1
    return World.NS_EL2_E2H if e2h else World.NS_EL2


def _stages(ste: Ste, ids: Identification) -> Found:
    if ste.config & STAGE1 and not ids.idr0.s1p:
        yield "config", f"Config={ste.config} has stage 1, which needs IDR0.S1P=1"
    if ste.config & STAGE2 and not ids.idr0.s2p:
        yield "config", f"Config={ste.config} has stage 2, which needs IDR0.S2P=1"


def _ats(ste: Ste, ids: Identification) -> Found:
    if not ids.idr0.ats or ste.config == SteConfig.BYPASS:
        return
    if ste.eats == Eats.SPLIT:
        if ste.config != SteConfig.NESTED:
            yield "eats", f"EATS=2 (split-stage) needs Config=7, not {ste.config}"
        if ste.s2s:
            yield "eats", "EATS=2 (split-stage) with S2S=1: ATS cannot stall"
        if ids.idr0.ns1ats:
            yield "eats", "EATS=2 (split-stage) needs IDR0.NS1ATS=0"
    if ste.eats == Eats.FULL and ste.s2s and ste.config & STAGE2:
        yield "eats", "EATS=1 with S2S=1: ATS cannot stall"
    if ste.eats == Eats.DPT and ids.idr3.dpt and strw_used(ste, ids) and ste.strw:
        yield "eats", "EATS=3 (DPT) needs StreamWorld NS-EL1"


def _strw(ste: Ste, ids: Identification) -> Found:
    if strw_used(ste, ids) and ste.strw & 1:
        yield "strw", f"STRW={ste.strw} is reserved"


def _stage1(ste: Ste, ids: Identification) -> Found:
    if ste.s1stalld and ids.idr0.stall_model != StallModel.STALL_AND_TERMINATE:
        yield "s1stalld", f"S1STALLD=1 needs IDR0.STALL_MODEL=0, not {ids.idr0.stall_model}"
    if ids.idr1.ssidsize and ste.s1cdmax > ids.idr1.ssidsize:
        yield "s1cdmax", f"S1CDMax={ste.s1cdmax} is more than IDR1.SSIDSIZE={ids.idr1.ssidsize}"
    two_level = ste.s1fmt in (S1Fmt.TWO_LEVEL_4K, S1Fmt.TWO_LEVEL_64K)
    if ids.idr1.ssidsize and ste.s1cdmax and two_level and not ids.idr0.cd2l:
        yield "s1fmt", f"S1Fmt={ste.s1fmt} (2-level) needs IDR0.CD2L=1"
    limit, what = oas_bits(ids), "OAS"
    if ste.config & STAGE2:
        limit, what = ias_bits(ids), "the IPA size"
    if ste.s1ctxptr >> limit:
        yield "s1ctxptr", f"S1ContextPtr={ste.s1ctxptr:#x} is beyond {what}, {limit} bits"


def _vms(ste: Ste, ids: Identification) -> Found:
    if ids.idr3.mpam and ste.config == SteConfig.NESTED and ste.s1mpam:
        limit = oas_bits(ids)
        if ste.vmsptr >> limit:
            yield "vmsptr", f"VMSPtr={ste.vmsptr:#x} is beyond OAS, {limit} bits"


def _faults(ste: Ste, ids: Identification) -> Found:
    model = ids.idr0.stall_model
    if ste.s2s and model == StallModel.TERMINATE_ONLY:
        yield "s2s", "S2S=1 with IDR0.STALL_MODEL=1 (terminate only)"
    if not ste.s2s and model == StallModel.STALL_FORCED:
        yield "s2s", "S2S=0 with IDR0.STALL_MODEL=2 (stall forced)"


def _formats(ste: Ste, ids: Identification) -> Found:
    """Table format, endianness, flag updates."""
    if not ste.s2aa64 and not ids.idr0.ttf & Ttf.AARCH32:
        yield "s2aa64", "S2AA64=0 (AArch32 tables) needs IDR0.TTF[0]=1"
    if ste.s2aa64 and not ids.idr0.ttf & Ttf.AARCH64:
        yield "s2aa64", "S2AA64=1 (AArch64 tables) needs IDR0.TTF[1]=1"
    if not ste.s2aa64 and ste.s2fwb and ids.idr3.fwb:
        yield "s2fwb", "S2FWB=1 with AArch32 tables"
    yield from endian("s2endi", ste.s2endi, ids)
    if (ste.s2ha or ste.s2hd) and not ste.s2aa64:
        yield "s2ha", "S2HA or S2HD with AArch32 tables"
    yield from flag_updates(("s2ha", "s2hd", "s2haft"), (ste.s2ha, ste.s2hd, ste.s2haft), ids)


def _table(ste: Ste, ids: Identification) -> Found:
    """Granule, base address and sizes of AArch64 stage 2 tables."""
    granule = TG0.get(ste.s2tg)
    missing = granule_missing("S2TG", ste.s2tg, granule, ids)
    if missing:
        yield "s2tg", missing
        return
    assert granule is not None
    ds = bool(ste.s2ds and ids.idr5.ds)
    limit = output_limit(ste.s2ps, granule, ds, ids)
    if ste.s2ttb >> limit:
        yield "s2ttb", f"S2TTB={ste.s2ttb:#x} is beyond {limit} bits (S2PS={ste.s2ps}, OAS)"
    smallest = 64 - ias_bits(ids)
    if ids.aidr.archminrev:
        wide = granule.name == "64K" or ds
        smallest = max(TXSZ_MIN_52 if wide else TXSZ_MIN, smallest)
    largest = largest_txsz(granule, ids)
    if not smallest <= ste.s2t0sz <= largest:
        yield "s2t0sz", f"S2T0SZ={ste.s2t0sz} is not in {smallest} to {largest}"
    yield from _start(ste, granule, ds, ids)


def _start(ste: Ste, granule: Granule, ds: bool, ids: Identification) -> Found:
    """S2SL0 exists, and S2T0SZ fits it with at most 16 concatenated tables (Arm ARM D8.2.2)."""
    starts = S2_START_DS.get(granule.name) if ds else None
    code = ste.s2sl0
    if starts is not None and granule.name == "4K":
        code = sl0_code(ste)
    start = (starts or S2_START[granule.name]).get(code)
    if start is None:
        yield "s2sl0", f"S2SL0={code} is reserved with the {granule.name} granule"
        return
    if granule.name == "4K" and start == granule.page_level and not ids.idr3.stt:
        yield "s2sl0", "S2SL0=3 (level 3) with the 4K granule needs IDR3.STT=1"
    need = S2_START_NEEDS_OAS.get((granule.name, start), 0)
    if oas_bits(ids) < need:
        yield "s2sl0", f"a first level {start} with the {granule.name} granule needs OAS>={need}"
    shift, bits = granule.shift(start), 64 - ste.s2t0sz
    most = shift + granule.stride + S2_CONCATENATION
    if not shift + 1 <= bits <= most:
        text = f"S2T0SZ={ste.s2t0sz} is {bits} bits; S2SL0={code} takes {shift + 1} to {most}"
        yield "s2t0sz", text


def _overlay(ste: Ste, ids: Identification) -> Found:
    """Permission indirection and overlays of stage 2."""
    if ids.idr3.s2pi and ste.s2pie and not ste.s2aa64:
        yield "s2pie", "S2PIE=1 with AArch32 tables"
    if not (ids.idr3.s2po and ste.s2poe):
        return
    if not ste.s2pie:
        yield "s2poe", "S2POE=1 needs S2PIE=1"
    if ids.idr3.pbha and ste.s2hwu:
        yield "s2poe", f"S2POE=1 with S2HWU={ste.s2hwu}"
    if any(ste.s2poi_lo >> at & 0xF in _RESERVED_OVERLAYS for at in range(0, 64, 4)):
        yield "s2poi_lo", f"S2POI={ste.s2poi_lo:#x} has a reserved value"


def _vmid(ste: Ste, ids: Identification) -> Found:
    if not ids.idr0.s2p or ste.config == SteConfig.BYPASS or (strw_used(ste, ids) and ste.strw):
        return
    if ste.s2vmid >> NARROW_ID_BITS and not ids.idr0.vmid16:
        yield "s2vmid", f"S2VMID={ste.s2vmid:#x} needs IDR0.VMID16=1"
