# SPDX-License-Identifier: BSD-2-Clause
"""Why a Non-secure STE or CD is ILLEGAL: every reason, with its clause (IHI 0070 §5.2.2, §5.4.2).

A slow twin of the decoders of `vsmmu.smmu`, which only answer whether: a structure has a reason
here exactly when it causes C_BAD_STE or C_BAD_CD there. Where the architecture leaves a choice
(SMMUv3.0 with a T0SZ out of range, S1ContextPtr beyond the IPA size) the structure is ILLEGAL.
VMSAv9-128 tables (IDR5.D128) are not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from vsmmu.arch.context import Cd
from vsmmu.arch.pagetable import (
    S2_CONCATENATION,
    S2_START,
    S2_START_DS,
    S2_START_NEEDS_OAS,
    TG0,
    TG1,
    TXSZ_MAX,
    TXSZ_MAX_STT,
    TXSZ_MIN,
    TXSZ_MIN_52,
    Granule,
)
from vsmmu.arch.registers import (
    OAS_BITS,
    Aidr,
    Idr0,
    Idr1,
    Idr3,
    Idr5,
    StallModel,
    TtEndian,
    Ttf,
)
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
)

STE_CLAUSE = "IHI 0070 §5.2.2"
CD_CLAUSE = "IHI 0070 §5.4.2"

_HTTU_AF, _HTTU_TABLES = 1, 3
_BITS_48 = 48
# S2POI and PIIP, PIIU: encodings that are reserved (§5.2, §5.4).
_RESERVED_OVERLAYS = (0b0001, 0b0101)
_RESERVED_INDIRECTIONS = (0b100, 0b110)


class Reason(NamedTuple):
    """One reason: the field's name, what is wrong with its value, the clause."""

    field: str
    text: str
    clause: str


class Identification(Protocol):
    """Identification registers, as far as legality depends on them."""

    @property
    def idr0(self) -> Idr0:
        """IDR0."""
        ...  # pragma: no cover

    @property
    def idr1(self) -> Idr1:
        """IDR1."""
        ...  # pragma: no cover

    @property
    def idr3(self) -> Idr3:
        """IDR3."""
        ...  # pragma: no cover

    @property
    def idr5(self) -> Idr5:
        """IDR5."""
        ...  # pragma: no cover

    @property
    def aidr(self) -> Aidr:
        """AIDR."""
        ...  # pragma: no cover


@dataclass(frozen=True, slots=True)
class Ids:
    """Identification registers that nobody has checked for consistency."""

    idr0: Idr0 = field(default_factory=Idr0)
    idr1: Idr1 = field(default_factory=Idr1)
    idr3: Idr3 = field(default_factory=Idr3)
    idr5: Idr5 = field(default_factory=Idr5)
    aidr: Aidr = field(default_factory=Aidr)


_Found = Iterator[tuple[str, str]]


def ste_reasons(ste: Ste, ids: Identification) -> tuple[Reason, ...]:
    """Why an STE of a Non-secure stream is ILLEGAL; empty for a legal one.

    Args:
        ste: the structure.
        ids: the SMMU's identification registers.
    """
    if not ste.v:
        return (Reason("v", "V=0: the STE is invalid", STE_CLAUSE),)
    if not ste.config & LIVE:
        return ()
    found = [*_ste_stages(ste, ids), *_ste_ats(ste, ids), *_ste_strw(ste, ids)]
    if ste.config & STAGE1:
        found += [*_ste_stage1(ste, ids), *_vms(ste, ids)]
    if ste.config & STAGE2:
        found += [*_ste_faults(ste, ids), *_ste_formats(ste, ids), *_ste_overlay(ste, ids)]
        found += _ste_table(ste, ids) if ste.s2aa64 else []
    found += _vmid(ste, ids)
    return tuple(Reason(name, text, STE_CLAUSE) for name, text in found)


def cd_reasons(
    cd: Cd,
    ids: Identification,
    *,
    world: World = World.NS_EL1,
    s1stalld: bool = False,
    s1pie: bool = False,
    s2aa64: bool = True,
) -> tuple[Reason, ...]:
    """Why a CD is ILLEGAL for a Non-secure stream; empty for a legal one.

    Args:
        cd: the structure.
        ids: the SMMU's identification registers.
        world: the StreamWorld of the STE.
        s1stalld: STE.S1STALLD.
        s1pie: STE.S1PIE.
        s2aa64: STE.S2AA64, or True where the STE has no stage 2.
    """
    if not cd.v:
        return (Reason("v", "V=0: the CD is invalid", CD_CLAUSE),)
    found = [
        *_cd_faults(cd, ids, s1stalld),
        *_cd_formats(cd, ids, world, s2aa64),
        *_cd_asid(cd, ids, world),
        *_cd_indirection(cd, ids, world, s1pie),
    ]
    if cd.aa64:
        for half in _enabled(cd, world):
            found += _cd_table(cd, ids, half)
    return tuple(Reason(name, text, CD_CLAUSE) for name, text in found)


def oas_bits(ids: Identification) -> int:
    """Output address bits. The IPA size is the same without AArch32 tables."""
    return OAS_BITS[ids.idr5.oas]


def ias_bits(ids: Identification) -> int:
    """Input address bits of stage 2, at least 40 with AArch32 tables (§3.4)."""
    return max(40, oas_bits(ids)) if ids.idr0.ttf & Ttf.AARCH32 else oas_bits(ids)


def strw_used(ste: Ste, ids: Identification) -> bool:
    """Whether STE.STRW means anything: stage 1 alone, with IDR0.Hyp."""
    return bool(ids.idr0.s1p and ids.idr0.hyp and ste.config == SteConfig.S1)


def world_of(ste: Ste, ids: Identification, e2h: bool) -> World:
    """The StreamWorld of a legal STE; `e2h` is CR2.E2H."""
    if not strw_used(ste, ids) or not ste.strw:
        return World.NS_EL1
    return World.NS_EL2_E2H if e2h else World.NS_EL2


# STE.


def _ste_stages(ste: Ste, ids: Identification) -> _Found:
    if ste.config & STAGE1 and not ids.idr0.s1p:
        yield "config", f"Config={ste.config} has stage 1, which needs IDR0.S1P=1"
    if ste.config & STAGE2 and not ids.idr0.s2p:
        yield "config", f"Config={ste.config} has stage 2, which needs IDR0.S2P=1"


def _ste_ats(ste: Ste, ids: Identification) -> _Found:
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


def _ste_strw(ste: Ste, ids: Identification) -> _Found:
    if strw_used(ste, ids) and ste.strw & 1:
        yield "strw", f"STRW={ste.strw} is reserved"


def _ste_stage1(ste: Ste, ids: Identification) -> _Found:
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


def _vms(ste: Ste, ids: Identification) -> _Found:
    if ids.idr3.mpam and ste.config == SteConfig.NESTED and ste.s1mpam:
        limit = oas_bits(ids)
        if ste.vmsptr >> limit:
            yield "vmsptr", f"VMSPtr={ste.vmsptr:#x} is beyond OAS, {limit} bits"


def _ste_faults(ste: Ste, ids: Identification) -> _Found:
    model = ids.idr0.stall_model
    if ste.s2s and model == StallModel.TERMINATE_ONLY:
        yield "s2s", "S2S=1 with IDR0.STALL_MODEL=1 (terminate only)"
    if not ste.s2s and model == StallModel.STALL_FORCED:
        yield "s2s", "S2S=0 with IDR0.STALL_MODEL=2 (stall forced)"


def _ste_formats(ste: Ste, ids: Identification) -> _Found:
    """Table format, endianness, flag updates."""
    if not ste.s2aa64 and not ids.idr0.ttf & Ttf.AARCH32:
        yield "s2aa64", "S2AA64=0 (AArch32 tables) needs IDR0.TTF[0]=1"
    if ste.s2aa64 and not ids.idr0.ttf & Ttf.AARCH64:
        yield "s2aa64", "S2AA64=1 (AArch64 tables) needs IDR0.TTF[1]=1"
    if not ste.s2aa64 and ste.s2fwb and ids.idr3.fwb:
        yield "s2fwb", "S2FWB=1 with AArch32 tables"
    yield from _endian("s2endi", ste.s2endi, ids)
    if (ste.s2ha or ste.s2hd) and not ste.s2aa64:
        yield "s2ha", "S2HA or S2HD with AArch32 tables"
    yield from _flag_updates(("s2ha", "s2hd", "s2haft"), (ste.s2ha, ste.s2hd, ste.s2haft), ids)


def _endian(name: str, big: int, ids: Identification) -> _Found:
    if big and ids.idr0.ttendian == TtEndian.LITTLE:
        yield name, f"{name.upper()}=1 with IDR0.TTENDIAN=2 (little-endian only)"
    if not big and ids.idr0.ttendian == TtEndian.BIG:
        yield name, f"{name.upper()}=0 with IDR0.TTENDIAN=3 (big-endian only)"


def _flag_updates(
    names: tuple[str, str, str], values: tuple[int, int, int], ids: Identification
) -> _Found:
    access, dirty, tables = values
    httu = ids.idr0.httu
    if access and not httu:
        yield names[0], f"{names[0].upper()}=1 needs IDR0.HTTU>=1"
    if dirty and httu <= _HTTU_AF:
        yield names[1], f"{names[1].upper()}=1 needs IDR0.HTTU>=2, not {httu}"
    if tables and not access and httu == _HTTU_TABLES:
        yield names[2], f"{names[2].upper()}=1 needs {names[0].upper()}=1"


def _ste_table(ste: Ste, ids: Identification) -> _Found:
    """Granule, base address and sizes of AArch64 stage 2 tables."""
    granule = TG0.get(ste.s2tg)
    missing = _granule_missing("S2TG", ste.s2tg, granule, ids)
    if missing:
        yield "s2tg", missing
        return
    assert granule is not None
    ds = bool(ste.s2ds and ids.idr5.ds)
    limit = _output_limit(ste.s2ps, granule, ds, ids)
    if ste.s2ttb >> limit:
        yield "s2ttb", f"S2TTB={ste.s2ttb:#x} is beyond {limit} bits (S2PS={ste.s2ps}, OAS)"
    smallest = 64 - ias_bits(ids)
    if ids.aidr.archminrev:
        wide = granule.name == "64K" or ds
        smallest = max(TXSZ_MIN_52 if wide else TXSZ_MIN, smallest)
    largest = _largest_txsz(granule, ids)
    if not smallest <= ste.s2t0sz <= largest:
        yield "s2t0sz", f"S2T0SZ={ste.s2t0sz} is not in {smallest} to {largest}"
    yield from _start(ste, granule, ds, ids)


def _start(ste: Ste, granule: Granule, ds: bool, ids: Identification) -> _Found:
    """S2SL0 exists, and S2T0SZ fits it with at most 16 concatenated tables (Arm ARM D8.2.2)."""
    starts = S2_START_DS.get(granule.name) if ds else None
    code = ste.s2sl0
    if starts is not None and granule.name == "4K":
        code |= ste.s2sl0_2 << 2
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


def _ste_overlay(ste: Ste, ids: Identification) -> _Found:
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


def _vmid(ste: Ste, ids: Identification) -> _Found:
    if not ids.idr0.s2p or ste.config == SteConfig.BYPASS or (strw_used(ste, ids) and ste.strw):
        return
    if ste.s2vmid >> NARROW_ID_BITS and not ids.idr0.vmid16:
        yield "s2vmid", f"S2VMID={ste.s2vmid:#x} needs IDR0.VMID16=1"


# CD.


def _cd_faults(cd: Cd, ids: Identification, s1stalld: bool) -> _Found:
    """The A and S flags."""
    model = ids.idr0.stall_model
    if s1stalld and cd.s:
        yield "s", "S=1 with STE.S1STALLD=1"
    if ids.idr0.term_model and not cd.a:
        yield "a", "A=0 with IDR0.TERM_MODEL=1 (abort only)"
    if cd.s and model == StallModel.TERMINATE_ONLY:
        yield "s", "S=1 with IDR0.STALL_MODEL=1 (terminate only)"
    if not cd.s and model == StallModel.STALL_FORCED:
        yield "s", "S=0 with IDR0.STALL_MODEL=2 (stall forced)"


def _cd_formats(cd: Cd, ids: Identification, world: World, s2aa64: bool) -> _Found:
    """Table format, endianness, flag updates."""
    if _enabled(cd, world):
        yield from _endian("endi", cd.endi, ids)
    if cd.aa64:
        if not ids.idr0.ttf & Ttf.AARCH64:
            yield "aa64", "AA64=1 (AArch64 tables) needs IDR0.TTF[1]=1"
        if not s2aa64:
            yield "aa64", "AA64=1 with AArch32 tables at stage 2"
        yield from _flag_updates(("ha", "hd", "haft"), (cd.ha, cd.hd, cd.haft), ids)
    elif not ids.idr0.ttf & Ttf.AARCH32:
        yield "aa64", "AA64=0 (AArch32 tables) needs IDR0.TTF[0]=1"
    elif world == World.NS_EL2_E2H:
        yield "aa64", "AA64=0 (AArch32 tables) in StreamWorld EL2-E2H"


def _cd_asid(cd: Cd, ids: Identification, world: World) -> _Found:
    if world != World.NS_EL2 and cd.asid >> NARROW_ID_BITS and not ids.idr0.asid16:
        yield "asid", f"ASID={cd.asid:#x} needs IDR0.ASID16=1"


def _cd_indirection(cd: Cd, ids: Identification, world: World, s1pie: bool) -> _Found:
    """Stage 1 permission indirection."""
    if not (ids.idr3.s1pi and s1pie and cd.aa64 and cd.pie):
        return
    for at in range(0, 48, 3):
        privileged, user = cd.piip >> at & 7, cd.piiu >> at & 7
        if privileged in _RESERVED_INDIRECTIONS:
            yield "piip", f"PIIP<{at // 3}>={privileged} is reserved"
        if world == World.NS_EL2:
            continue
        if user in _RESERVED_INDIRECTIONS:
            yield "piiu", f"PIIU<{at // 3}>={user} is reserved"
        if privileged & 2 and user & 4:
            text = f"PIIP<{at // 3}>={privileged} with PIIU<{at // 3}>={user}"
            yield "piiu", text


def _enabled(cd: Cd, world: World) -> tuple[int, ...]:
    """The halves, 0 and 1, that translate. StreamWorld EL2 has TTB0 alone, without EPD0."""
    if world == World.NS_EL2:
        return (0,)
    return tuple(half for half, off in enumerate((cd.epd0, cd.epd1)) if not off)


def _cd_table(cd: Cd, ids: Identification, half: int) -> _Found:
    """Granule, base address and size of one half, AArch64."""
    txsz, tg, base = (cd.t0sz, cd.tg0, cd.ttb0) if half == 0 else (cd.t1sz, cd.tg1, cd.ttb1)
    granule = (TG0, TG1)[half].get(tg)
    missing = _granule_missing(f"TG{half}", tg, granule, ids)
    if missing:
        yield f"tg{half}", missing
        return
    assert granule is not None
    ds = bool(cd.ds and ids.idr5.ds)
    limit = _output_limit(cd.ips, granule, ds, ids)
    if base >> limit:
        yield f"ttb{half}", f"TTB{half}={base:#x} is beyond {limit} bits (IPS={cd.ips}, OAS)"
    wide = ids.idr5.vax and (granule.name == "64K" or ds)
    smallest, largest = TXSZ_MIN_52 if wide else TXSZ_MIN, _largest_txsz(granule, ids)
    if not smallest <= txsz <= largest:
        yield f"t{half}sz", f"T{half}SZ={txsz} is not in {smallest} to {largest}"


# Both.


def _granule_missing(name: str, tg: int, granule: Granule | None, ids: Identification) -> str:
    if granule is None:
        return f"{name}={tg} is reserved"
    flag = f"gran{granule.name.lower()}"
    if not getattr(ids.idr5, flag):
        return f"{name}={tg} ({granule.name} granule) needs IDR5.{flag.upper()}=1"
    return ""


def _output_limit(code: int, granule: Granule, ds: bool, ids: Identification) -> int:
    """Effective IPS or S2PS; 48 bits at most without a 52-bit descriptor form (§3.4)."""
    limit = min(OAS_BITS[code], oas_bits(ids))
    return limit if granule.name == "64K" or ds else min(limit, _BITS_48)


def _largest_txsz(granule: Granule, ids: Identification) -> int:
    return TXSZ_MAX_STT[granule.name] if ids.idr3.stt else TXSZ_MAX
