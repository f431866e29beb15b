# SPDX-License-Identifier: BSD-2-Clause
"""Stream table entries: which are ILLEGAL, and what a legal one means (IHI 0070 §5.2, §5.2.2).

`vsmmu.arch.legality.ste_reasons` says why; a property test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vsmmu.arch.pagetable import (
    S2_CONCATENATION,
    S2_START,
    S2_START_DS,
    S2_START_NEEDS_OAS,
    TG0,
    TXSZ_MAX,
    TXSZ_MAX_STT,
    TXSZ_MIN,
    TXSZ_MIN_52,
    Granule,
)
from vsmmu.arch.registers import OAS_BITS, StallModel
from vsmmu.arch.stream_table import (
    LIVE,
    NARROW_ID_BITS,
    STAGE1,
    STAGE2,
    Eats,
    S1Dss,
    S1Fmt,
    Ste,
    SteConfig,
    Strw,
    sl0_code,
)
from vsmmu.smmu.regime import Stage2, Table
from vsmmu.smmu.tlb import WORLD_E2H, WORLD_EL2

if TYPE_CHECKING:
    from vsmmu.smmu.cd import Context
    from vsmmu.smmu.features import Features
    from vsmmu.smmu.transaction import Fault

# IDR0.HTTU (§6.3.1).
HTTU_NONE, HTTU_ACCESS, HTTU_DIRTY = 0, 1, 2

_STRW_RESERVED = 1
_ALIGNED_52 = 64
LARGE, SMALL_BITS, _SMALLEST = "64K", 48, "4K"
# The level of the 4K granule that needs small translation tables (IDR3.STT).
_STT_START = (_SMALLEST, 3)
# log2 of the CDs in a second-level table; 0 for a linear one.
_CD_SPLIT: dict[int, int] = {S1Fmt.TWO_LEVEL_4K: 6, S1Fmt.TWO_LEVEL_64K: 10}


@dataclass(frozen=True, slots=True)
class Stream:
    """A legal STE.

    `config` 0 to 3 aborts, 4 bypasses. `vmid` tags its translations: the VMID in StreamWorld
    NS-EL1, WORLD_EL2 or WORLD_E2H in the others. `ctxptr` is an IPA if `stage2` is set, aligned
    to its table. `cd_bits` is log2 of the number of CDs, 0 without substreams; `cd_split` is log2
    of the CDs in a second-level table, 0 for a linear table; `dss` is STE.S1DSS, `cont` STE.CONT,
    `record2` STE.S2R, `stall_disabled` STE.S1STALLD, `stall2` STE.S2S where there is a stage 2,
    `mev` STE.MEV, `ppar` STE.PPAR. `eats` is STE.EATS, NONE where ATS is not there or the stream
    bypasses.
    """

    config: int
    vmid: int = 0
    ctxptr: int = 0
    stage1: bool = False
    stage2: Stage2 | None = None
    record2: bool = False
    privcfg: int = 0
    instcfg: int = 0
    cd_bits: int = 0
    cd_split: int = 0
    dss: int = S1Dss.TERMINATE
    stall_disabled: bool = False
    cont: int = 0
    stall2: bool = False
    mev: bool = False
    eats: int = Eats.NONE
    ppar: bool = False
    # CDs that were decoded behind this STE, by their words.
    meanings: dict[tuple[int, ...], Context | Fault] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )


def decode_ste(ste: Ste, features: Features, *, e2h: bool = False) -> Stream | None:
    """What an STE means; None for one that causes C_BAD_STE.

    Args:
        ste: the entry.
        features: what the SMMU has.
        e2h: CR2.E2H, which turns StreamWorld NS-EL2 into NS-EL2-E2H.
    """
    if not ste.v:
        return None
    config = ste.config
    if not config & LIVE:
        return Stream(config)
    stage1, on2 = bool(config & STAGE1), bool(config & STAGE2)
    if (stage1 and not features.s1p) or (on2 and not features.s2p):
        return None
    el2 = _is_el2(ste, features)
    if stage1 and not _stage1_legal(ste, features):
        return None
    stage2 = _decode_stage2(ste, features) if on2 else None
    if on2 and stage2 is None:
        return None
    if features.idr0.ats and config != SteConfig.BYPASS and not _eats_legal(ste, features):
        return None
    tagged = _is_tagged(ste, features)
    if tagged and ste.s2vmid >> NARROW_ID_BITS and not features.idr0.vmid16:
        return None
    overrides = features.idr1.attr_perms_ovr
    cd_bits = _cd_bits(ste, features)
    split = _CD_SPLIT.get(ste.s1fmt, 0) if cd_bits else 0
    return Stream(
        config=config,
        vmid=(WORLD_E2H if e2h else WORLD_EL2) if el2 else ste.s2vmid if tagged else 0,
        ctxptr=_aligned(ste.s1ctxptr, cd_bits, split),
        stage1=stage1,
        stage2=stage2,
        record2=bool(ste.s2r),
        privcfg=ste.privcfg if overrides else 0,
        instcfg=ste.instcfg if overrides else 0,
        cd_bits=cd_bits,
        cd_split=split,
        dss=ste.s1dss,
        stall_disabled=bool(ste.s1stalld),
        cont=ste.cont,
        stall2=bool(on2 and ste.s2s),
        mev=bool(ste.mev),
        eats=_eats(ste, features),
        ppar=bool(ste.ppar),
    )


def _is_el2(ste: Ste, features: Features) -> bool:
    """Whether STE.STRW is used and selects NS-EL2; it is ignored elsewhere (§5.2)."""
    return bool(
        ste.config == SteConfig.S1 and features.idr0.hyp and features.s1p and ste.strw & Strw.NS_EL2
    )


def _is_tagged(ste: Ste, features: Features) -> bool:
    """Whether S2VMID is used: stage 2 is there, and the StreamWorld is NS-EL1 (§5.2)."""
    return features.s2p and ste.config != SteConfig.BYPASS and not _is_el2(ste, features)


def _cd_bits(ste: Ste, features: Features) -> int:
    """Effective S1CDMax; S1Fmt and S1DSS are ignored where it is 0 (§5.2)."""
    return ste.s1cdmax if ste.config & STAGE1 and features.idr1.ssidsize else 0


def _aligned(ctxptr: int, cd_bits: int, split: int) -> int:
    """S1ContextPtr without the bits that the size of its table makes RES0 (§5.2, §5.3)."""
    if not cd_bits:
        return ctxptr
    if split:
        return ctxptr & -max(64, 8 << max(0, cd_bits - split))
    return ctxptr & -(64 << cd_bits)


def _stage1_legal(ste: Ste, features: Features) -> bool:
    if ste.s1ctxptr >> features.oas:
        return False
    if ste.s1stalld and features.idr0.stall_model != StallModel.STALL_AND_TERMINATE:
        return False
    if ste.config == SteConfig.S1 and features.idr0.hyp and ste.strw & _STRW_RESERVED:
        return False
    if not (features.idr1.ssidsize and ste.s1cdmax):
        return True
    if ste.s1cdmax > features.idr1.ssidsize:
        return False
    return bool(features.idr0.cd2l) or ste.s1fmt not in _CD_SPLIT


def _eats_legal(ste: Ste, features: Features) -> bool:
    on2 = bool(ste.config & STAGE2)
    if ste.eats == Eats.SPLIT:
        return ste.config == SteConfig.NESTED and not ste.s2s and not features.idr0.ns1ats
    return not (ste.eats == Eats.FULL and on2 and ste.s2s)


def _eats(ste: Ste, features: Features) -> int:
    """STE.EATS as used; without a Device Permission Table DPT acts as NONE (§5.2)."""
    if not features.idr0.ats or ste.config == SteConfig.BYPASS or ste.eats == Eats.DPT:
        return Eats.NONE
    return ste.eats


def _uses_ds(ste: Ste, features: Features, granule: Granule) -> bool:
    """Whether stage 2 has 52-bit addresses with a granule below 64K (§5.2 S2DS)."""
    return bool(ste.s2ds and features.idr5.ds and granule.name != LARGE)


def _output_bits(ste: Ste, features: Features) -> int:
    """Effective S2PS (§5.2)."""
    return min(OAS_BITS[ste.s2ps], features.oas)


def _base_bits(output_bits: int, granule: Granule, *, ds: bool) -> int:
    """Bits that a table base may have: 48 where descriptors hold no more (§5.2, §5.4)."""
    return output_bits if ds or granule.name == LARGE else min(output_bits, SMALL_BITS)


def table_align(table_bytes: int, output_bits: int) -> int:
    """Alignment of a first table: its size, and 64 bytes with 52-bit outputs (§5.4 TTB0)."""
    return max(table_bytes, _ALIGNED_52) if output_bits > SMALL_BITS else table_bytes


def is_wide(granule: Granule, features: Features, *, ds: bool) -> bool:
    """Whether descriptors have their 52-bit form: by DS, or with 64K by IDR5.OAS (§3.4)."""
    return features.oas > SMALL_BITS if granule.name == LARGE else ds


def txsz_max(granule: Granule, features: Features) -> int:
    """The largest TxSZ or S2T0SZ (IDR3.STT)."""
    return TXSZ_MAX_STT[granule.name] if features.idr3.stt else TXSZ_MAX


def _decode_stage2(ste: Ste, features: Features) -> Stage2 | None:
    granule = TG0.get(ste.s2tg)
    if granule is None or granule.name not in features.granules:
        return None
    # No AArch32 or big-endian tables: each is ILLEGAL.
    if not ste.s2aa64 or ste.s2endi:
        return None
    if not (_stall_legal(ste, features) and _httu_legal(ste, features)):
        return None
    output_bits = _output_bits(ste, features)
    input_bits = 64 - ste.s2t0sz
    ds = _uses_ds(ste, features, granule)
    start = _start_level(ste, granule, ds=ds)
    if start is None or not _start_fits(ste, features, granule, start):
        return None
    if ste.s2ttb >> _base_bits(output_bits, granule, ds=ds):
        return None
    table_bytes = table_align(8 << (input_bits - granule.shift(start)), output_bits)
    return Stage2(
        table=Table(
            granule,
            start,
            input_bits,
            ste.s2ttb & -table_bytes,
            wide=is_wide(granule, features, ds=ds),
        ),
        output_bits=output_bits,
        affd=bool(ste.s2affd),
        ptw=bool(ste.s2ptw and ste.config == SteConfig.NESTED),
        xnx=bool(features.idr3.xnx),
        fwb=bool(ste.s2fwb and features.idr3.fwb),
        ha=bool(ste.s2ha),
        # {HA, HD} = {0, 1} is reserved and acts as {0, 0} (§3.13).
        hd=bool(ste.s2ha and ste.s2hd),
    )


def _stall_legal(ste: Ste, features: Features) -> bool:
    model = features.idr0.stall_model
    if ste.s2s:
        return model != StallModel.TERMINATE_ONLY
    return model != StallModel.STALL_FORCED


def _httu_legal(ste: Ste, features: Features) -> bool:
    httu = features.idr0.httu
    return not ((ste.s2ha and httu == HTTU_NONE) or (ste.s2hd and httu < HTTU_DIRTY))


def _start_level(ste: Ste, granule: Granule, *, ds: bool) -> int | None:
    """The first level of stage 2; None is ILLEGAL. S2SL0_2 counts for 4K with DS alone (§5.2)."""
    if not ds:
        return S2_START[granule.name].get(ste.s2sl0)
    code = sl0_code(ste) if granule.name == _SMALLEST else ste.s2sl0
    return S2_START_DS[granule.name].get(code)


def _t0sz_fits(ste: Ste, features: Features, granule: Granule) -> bool:
    """S2T0SZ in range (§5.2)."""
    smallest = 64 - features.oas
    if features.aidr.archminrev >= 1:
        wide = granule.name == LARGE or _uses_ds(ste, features, granule)
        smallest = max(TXSZ_MIN_52 if wide else TXSZ_MIN, smallest)
    return smallest <= ste.s2t0sz <= txsz_max(granule, features)


def _start_fits(ste: Ste, features: Features, granule: Granule, start: int) -> bool:
    """S2T0SZ in range, and consistent with S2SL0 and S2TG (§5.2; Arm ARM D8.2.2)."""
    if not _t0sz_fits(ste, features, granule):
        return False
    if features.oas < S2_START_NEEDS_OAS.get((granule.name, start), 0):
        return False
    if (granule.name, start) == _STT_START and not features.idr3.stt:
        return False
    shift = granule.shift(start)
    return shift + 1 <= 64 - ste.s2t0sz <= shift + granule.stride + S2_CONCATENATION
