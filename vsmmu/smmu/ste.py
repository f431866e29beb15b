# SPDX-License-Identifier: BSD-2-Clause
"""Stream table entries: which are ILLEGAL, and what a legal one means (IHI 0070 §5.2, §5.2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsmmu.arch.pagetable import S2_START, TG0, Granule
from vsmmu.arch.registers import OAS_BITS
from vsmmu.arch.stream_table import LIVE, NARROW_ID_BITS, STAGE1, STAGE2, Ste, SteConfig
from vsmmu.smmu.walk import Stage2, Table

if TYPE_CHECKING:
    from vsmmu.smmu.features import Features

# T0SZ without small translation tables (IDR3.STT); 16 is a 48-bit input.
TXSZ_MIN, TXSZ_MAX = 16, 39
# Tables that may be concatenated at the first level of stage 2, as address bits.
_CONCATENATION = 4
# Output size that a first level of stage 2 asks for (Arm ARM D8.2.2).
_START_NEEDS_OAS = {("4K", 0): 44, ("16K", 1): 42, ("64K", 1): 44}


@dataclass(frozen=True, slots=True)
class Stream:
    """A legal STE.

    `config` 0 to 3 aborts, 4 bypasses. `vmid` tags its translations. `ctxptr` is an IPA if
    `stage2` is set. `record2` is STE.S2R.
    """

    config: int
    vmid: int = 0
    ctxptr: int = 0
    stage1: bool = False
    stage2: Stage2 | None = None
    record2: bool = False
    privcfg: int = 0
    instcfg: int = 0


def decode_ste(ste: Ste, features: Features) -> Stream | None:
    """What an STE means; None for one that causes C_BAD_STE."""
    if not ste.v:
        return None
    config = ste.config
    if not config & LIVE:
        return Stream(config)
    stage1, on2 = bool(config & STAGE1), bool(config & STAGE2)
    if (stage1 and not features.s1p) or (on2 and not features.s2p):
        return None
    if stage1 and (ste.s1stalld or ste.s1ctxptr >> features.oas):
        return None
    stage2 = _decode_stage2(ste, features) if on2 else None
    if on2 and stage2 is None:
        return None
    tagged = features.s2p and config != SteConfig.BYPASS
    if tagged and ste.s2vmid >> NARROW_ID_BITS and not features.idr0.vmid16:
        return None
    overrides = features.idr1.attr_perms_ovr
    return Stream(
        config=config,
        vmid=ste.s2vmid if tagged else 0,
        ctxptr=ste.s1ctxptr,
        stage1=stage1,
        stage2=stage2,
        record2=bool(ste.s2r),
        privcfg=ste.privcfg if overrides else 0,
        instcfg=ste.instcfg if overrides else 0,
    )


def _decode_stage2(ste: Ste, features: Features) -> Stage2 | None:
    granule = TG0.get(ste.s2tg)
    if granule is None or granule.name not in features.granules:
        return None
    # No stall, no HTTU, no AArch32 or big-endian tables: each is ILLEGAL.
    if ste.s2s or ste.s2ha or ste.s2hd or not ste.s2aa64 or ste.s2endi:
        return None
    output_bits = min(OAS_BITS[ste.s2ps], features.oas)
    input_bits = 64 - ste.s2t0sz
    start = S2_START[granule.name].get(ste.s2sl0)
    if start is None or not _start_fits(granule, start, input_bits, features):
        return None
    if ste.s2ttb >> output_bits:
        return None
    table_bytes = 8 << (input_bits - granule.shift(start))
    return Stage2(
        table=Table(granule, start, input_bits, ste.s2ttb & -table_bytes),
        output_bits=output_bits,
        affd=bool(ste.s2affd),
        ptw=bool(ste.s2ptw and ste.config == SteConfig.NESTED),
        xnx=bool(features.idr3.xnx),
        fwb=bool(ste.s2fwb and features.idr3.fwb),
    )


def _start_fits(granule: Granule, start: int, input_bits: int, features: Features) -> bool:
    """S2T0SZ in range, and consistent with S2SL0 and S2TG (§5.2; Arm ARM D8.2.2)."""
    smallest = 64 - features.oas
    if features.aidr.archminrev >= 1:
        smallest = max(TXSZ_MIN, smallest)
    if not smallest <= 64 - input_bits <= TXSZ_MAX:
        return False
    if features.oas < _START_NEEDS_OAS.get((granule.name, start), 0):
        return False
    shift = granule.shift(start)
    return shift + 1 <= input_bits <= shift + granule.stride + _CONCATENATION
