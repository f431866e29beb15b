# SPDX-License-Identifier: BSD-2-Clause
"""Context descriptors: which are ILLEGAL, and what a legal one means (IHI 0070 §5.4, §5.4.2).

A CD is judged together with the STE that leads to it: the StreamWorld decides which fields count.
`vsmmu.arch.legality.cd_reasons` says why; a property test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vsmmu.arch.pagetable import TAG_MASK, TG0, TG1, TXSZ_MIN, TXSZ_MIN_52, Granule
from vsmmu.arch.registers import OAS_BITS, StallModel
from vsmmu.arch.stream_table import NARROW_ID_BITS
from vsmmu.smmu.regime import Stage1, Table
from vsmmu.smmu.ste import (
    HTTU_DIRTY,
    HTTU_NONE,
    LARGE,
    SMALL_BITS,
    Stream,
    is_wide,
    table_align,
    txsz_max,
)
from vsmmu.smmu.tlb import WORLD_EL2
from vsmmu.smmu.transaction import MASK64

if TYPE_CHECKING:
    from vsmmu.arch.context import Cd
    from vsmmu.smmu.features import Features

_NO_E0PD = (False, False)
# IDR5.VAX (§6.3.6).
_VAX_52 = 1
# A stream in StreamWorld NS-EL1, for a CD that is judged alone.
_NS_EL1 = Stream(config=5, stage1=True)


@dataclass(frozen=True, slots=True)
class Context:
    """A legal CD.

    `asid` is 0 in StreamWorld NS-EL2, which has none. `e0pd` says for each TTB whether
    unprivileged accesses find no translation. `record1` is CD.R, `abort1` CD.A, `stall1` CD.S.
    """

    asid: int
    aset: int
    stage1: Stage1
    record1: bool
    e0pd: tuple[bool, bool] = (False, False)
    abort1: bool = True
    stall1: bool = False


class _Half(NamedTuple):
    """The fields for one TTB; `high` says which."""

    high: int
    granule: Granule | None
    txsz: int
    base: int
    tbi: int
    had: int


def decode_cd(cd: Cd, features: Features, stream: Stream = _NS_EL1) -> Context | None:
    """What a CD means; None for one that causes C_BAD_CD.

    Args:
        cd: the descriptor.
        features: what the SMMU has.
        stream: the STE that leads to it.
    """
    if not cd.v or not cd.aa64 or not _faults_legal(cd, features, stream):
        return None
    if not _httu_legal(cd, features):
        return None
    el2 = stream.vmid == WORLD_EL2
    halves = _halves(cd, el2=el2)
    if cd.endi and halves:
        return None
    if not el2 and cd.asid >> NARROW_ID_BITS and not features.idr0.asid16:
        return None
    output_bits = _output_bits(cd, features)
    tables: list[Table | None] = [None, None]
    for half in halves:
        if not _half_legal(cd, half, features):
            return None
        tables[half.high] = _table(cd, half, features, output_bits)
    return Context(
        asid=0 if el2 else cd.asid,
        aset=cd.aset,
        stage1=Stage1(
            tables=(tables[0], tables[1]),
            output_bits=output_bits,
            affd=bool(cd.affd),
            wxn=bool(cd.wxn),
            pan=bool(cd.pan and not el2),
            ha=bool(cd.ha),
            # {HA, HD} = {0, 1} is reserved and acts as {0, 0} (§5.4).
            hd=bool(cd.ha and cd.hd),
            el2=el2,
        ),
        record1=bool(cd.r),
        e0pd=(bool(cd.e0pd0), bool(cd.e0pd1)) if features.idr3.e0pd and not el2 else _NO_E0PD,
        abort1=bool(cd.a),
        stall1=bool(cd.s),
    )


def _halves(cd: Cd, *, el2: bool) -> list[_Half]:
    """The TTBs that are walked: EPDx switches one off, StreamWorld NS-EL2 has TTB0 alone (§5.4)."""
    low = _Half(0, TG0.get(cd.tg0), cd.t0sz, cd.ttb0, cd.tbi0, cd.had0)
    if el2:
        # EPD0 is ignored there, and everything of TTB1 is RES0.
        return [low]
    high = _Half(1, TG1.get(cd.tg1), cd.t1sz, cd.ttb1, cd.tbi1, cd.had1)
    return [half for half, off in ((low, cd.epd0), (high, cd.epd1)) if not off]


def _faults_legal(cd: Cd, features: Features, stream: Stream) -> bool:
    """CD.A and CD.S against TERM_MODEL, STALL_MODEL and STE.S1STALLD (§5.4, §5.5)."""
    if not cd.a and features.idr0.term_model:
        return False
    model = features.idr0.stall_model
    if cd.s:
        return model != StallModel.TERMINATE_ONLY and not stream.stall_disabled
    return model != StallModel.STALL_FORCED


def _httu_legal(cd: Cd, features: Features) -> bool:
    httu = features.idr0.httu
    return not ((cd.ha and httu == HTTU_NONE) or (cd.hd and httu < HTTU_DIRTY))


def _output_bits(cd: Cd, features: Features) -> int:
    """Effective IPS (§5.4)."""
    return min(OAS_BITS[cd.ips], features.oas)


def _uses_ds(cd: Cd, granule: Granule, features: Features) -> bool:
    """Whether a TTB has 52-bit addresses with a granule below 64K (§5.4 DS)."""
    return bool(cd.ds and features.idr5.ds and granule.name != LARGE)


def _txsz_fits(cd: Cd, half: _Half, granule: Granule, features: Features) -> bool:
    wide = features.idr5.vax >= _VAX_52 and (
        granule.name == LARGE or _uses_ds(cd, granule, features)
    )
    return (TXSZ_MIN_52 if wide else TXSZ_MIN) <= half.txsz <= txsz_max(granule, features)


def _base_bits(cd: Cd, granule: Granule, features: Features) -> int:
    """Bits that TTBx may have: 48 where descriptors hold no more (§5.4)."""
    bits = _output_bits(cd, features)
    if granule.name == LARGE or _uses_ds(cd, granule, features):
        return bits
    return min(bits, SMALL_BITS)


def _half_legal(cd: Cd, half: _Half, features: Features) -> bool:
    granule = half.granule
    if granule is None or granule.name not in features.granules:
        return False
    if not _txsz_fits(cd, half, granule, features):
        return False
    return not half.base >> _base_bits(cd, granule, features)


def _table(cd: Cd, half: _Half, features: Features, output_bits: int) -> Table:
    assert half.granule is not None
    input_bits = 64 - half.txsz
    start = half.granule.start_level(input_bits)
    table_bytes = table_align(8 << (input_bits - half.granule.shift(start)), output_bits)
    range_mask = MASK64 & -(1 << input_bits)
    if half.tbi:
        range_mask &= ~TAG_MASK
    had = bool(half.had and features.idr3.had)
    wide = is_wide(half.granule, features, ds=_uses_ds(cd, half.granule, features))
    return Table(half.granule, start, input_bits, half.base & -table_bytes, range_mask, had, wide)
