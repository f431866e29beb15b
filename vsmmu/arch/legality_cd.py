# SPDX-License-Identifier: BSD-2-Clause
"""Why the CD of a Non-secure stream is ILLEGAL: every reason (IHI 0070 §5.4.2)."""

from __future__ import annotations

from vsmmu.arch.context import Cd
from vsmmu.arch.legality import (
    Found,
    Identification,
    Reason,
    endian,
    flag_updates,
    granule_missing,
    largest_txsz,
    output_limit,
)
from vsmmu.arch.pagetable import TG0, TG1, TXSZ_MIN, TXSZ_MIN_52
from vsmmu.arch.registers import StallModel, Ttf
from vsmmu.arch.stream_table import NARROW_ID_BITS, World

_CLAUSE = "IHI 0070 §5.4.2"

# PIIP and PIIU: encodings that are reserved (§5.4).
_RESERVED_INDIRECTIONS = (0b100, 0b110)


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
        return (Reason("v", "V=0: the CD is invalid", _CLAUSE),)
    found = [
        *_faults(cd, ids, s1stalld),
        *_formats(cd, ids, world, s2aa64),
        *_asid(cd, ids, world),
        *_indirection(cd, ids, world, s1pie),
    ]
    if cd.aa64:
        for half in _enabled(cd, world):
            found += _table(cd, ids, half)
    return tuple(Reason(name, text, _CLAUSE) for name, text in found)


def _faults(cd: Cd, ids: Identification, s1stalld: bool) -> Found:
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


def _formats(cd: Cd, ids: Identification, world: World, s2aa64: bool) -> Found:
    """Table format, endianness, flag updates."""
    if _enabled(cd, world):
        yield from endian("endi", cd.endi, ids)
    if cd.aa64:
        if not ids.idr0.ttf & Ttf.AARCH64:
            yield "aa64", "AA64=1 (AArch64 tables) needs IDR0.TTF[1]=1"
        if not s2aa64:
            yield "aa64", "AA64=1 with AArch32 tables at stage 2"
        yield from flag_updates(("ha", "hd", "haft"), (cd.ha, cd.hd, cd.haft), ids)
    elif not ids.idr0.ttf & Ttf.AARCH32:
        yield "aa64", "AA64=0 (AArch32 tables) needs IDR0.TTF[0]=1"
    elif world == World.NS_EL2_E2H:
        yield "aa64", "AA64=0 (AArch32 tables) in StreamWorld EL2-E2H"


def _asid(cd: Cd, ids: Identification, world: World) -> Found:
    if world != World.NS_EL2 and cd.asid >> NARROW_ID_BITS and not ids.idr0.asid16:
        yield "asid", f"ASID={cd.asid:#x} needs IDR0.ASID16=1"


def _indirection(cd: Cd, ids: Identification, world: World, s1pie: bool) -> Found:
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


def _table(cd: Cd, ids: Identification, half: int) -> Found:
    """Granule, base address and size of one half, AArch64."""
    txsz, tg, base = (cd.t0sz, cd.tg0, cd.ttb0) if half == 0 else (cd.t1sz, cd.tg1, cd.ttb1)
    granule = (TG0, TG1)[half].get(tg)
    missing = granule_missing(f"TG{half}", tg, granule, ids)
    if missing:
        yield f"tg{half}", missing
        return
    assert granule is not None
    ds = bool(cd.ds and ids.idr5.ds)
    limit = output_limit(cd.ips, granule, ds, ids)
    if base >> limit:
        yield f"ttb{half}", f"TTB{half}={base:#x} is beyond {limit} bits (IPS={cd.ips}, OAS)"
    wide = ids.idr5.vax and (granule.name == "64K" or ds)
    smallest, largest = TXSZ_MIN_52 if wide else TXSZ_MIN, largest_txsz(granule, ids)
    if not smallest <= txsz <= largest:
        yield f"t{half}sz", f"T{half}SZ={txsz} is not in {smallest} to {largest}"
