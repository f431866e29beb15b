# SPDX-License-Identifier: BSD-2-Clause
"""Context descriptors: which are ILLEGAL, and what a legal one means (IHI 0070 §5.4, §5.4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsmmu.arch.pagetable import TAG_MASK, TG0, TG1, Granule
from vsmmu.arch.registers import OAS_BITS
from vsmmu.arch.stream_table import NARROW_ID_BITS
from vsmmu.smmu.ste import TXSZ_MAX, TXSZ_MIN
from vsmmu.smmu.transaction import MASK64
from vsmmu.smmu.walk import Stage1, Table

if TYPE_CHECKING:
    from vsmmu.arch.context import Cd
    from vsmmu.smmu.features import Features


@dataclass(frozen=True, slots=True)
class Context:
    """A legal CD. `record1` is CD.R."""

    asid: int
    aset: int
    stage1: Stage1
    record1: bool


def decode_cd(cd: Cd, features: Features) -> Context | None:
    """What a CD means; None for one that causes C_BAD_CD."""
    if not cd.v or not cd.a or cd.s or not cd.aa64 or cd.ha or cd.hd:
        return None
    if cd.endi and not (cd.epd0 and cd.epd1):
        return None
    if cd.asid >> NARROW_ID_BITS and not features.idr0.asid16:
        return None
    output_bits = min(OAS_BITS[cd.ips], features.oas)
    tables: list[Table | None] = []
    for disabled, txsz, granule, base, tbi, had in (
        (cd.epd0, cd.t0sz, TG0.get(cd.tg0), cd.ttb0, cd.tbi0, cd.had0),
        (cd.epd1, cd.t1sz, TG1.get(cd.tg1), cd.ttb1, cd.tbi1, cd.had1),
    ):
        if disabled:
            tables.append(None)
            continue
        if not _legal(granule, txsz, features) or base >> output_bits:
            return None
        assert granule is not None
        disable = bool(had and features.idr3.had)
        tables.append(_table(granule, 64 - txsz, base, tbi=bool(tbi), had=disable))
    return Context(
        asid=cd.asid,
        aset=cd.aset,
        stage1=Stage1(
            tables=(tables[0], tables[1]),
            output_bits=output_bits,
            affd=bool(cd.affd),
            wxn=bool(cd.wxn),
            pan=bool(cd.pan),
        ),
        record1=bool(cd.r),
    )


def _legal(granule: Granule | None, txsz: int, features: Features) -> bool:
    if granule is None or granule.name not in features.granules:
        return False
    return TXSZ_MIN <= txsz <= TXSZ_MAX


def _table(granule: Granule, input_bits: int, base: int, *, tbi: bool, had: bool) -> Table:
    start = granule.start_level(input_bits)
    table_bytes = 8 << (input_bits - granule.shift(start))
    range_mask = MASK64 & -(1 << input_bits)
    if tbi:
        range_mask &= ~TAG_MASK
    return Table(granule, start, input_bits, base & -table_bytes, range_mask, had)
