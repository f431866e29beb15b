# SPDX-License-Identifier: BSD-2-Clause
"""Translation regimes as a configuration sets them up: tables, levels, sizes, flags.

IHI 0070 §3.4; Arm ARM D8. Nothing here reads a translation table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vsmmu.arch.pagetable import (
    ADDR_MASK,
    BLOCK_LEVELS_52,
    CONTIGUOUS,
    TABLE,
    VALID,
    Granule,
    TableDescLpa,
    TableDescLpa2,
)
from vsmmu.smmu.transaction import READ

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsmmu.smmu.transaction import Access, Fault, Outcome

_LAST_LEVEL = 3
_KIND = VALID | TABLE
# A kind that no descriptor has.
_NEVER = -1


def _high(form: type[TableDescLpa | TableDescLpa2]) -> tuple[int, int]:
    """Where a 52-bit form keeps its high output bits, and how far they move up."""
    return form.oa_high.bits, form.oa.msb + 1 - form.oa_high.lsb


_LPA2 = (TableDescLpa2.mask("oa")[0], *_high(TableDescLpa2))
_LPA = (TableDescLpa.mask("oa")[0], *_high(TableDescLpa))


class Step(NamedTuple):
    """One level of a walk.

    `leaf` and `table` are the low bits of a descriptor that is one here, `oa` masks a leaf's
    output address, `group` is log2 of a contiguous group's bytes, 0 where there are none. `reads`
    counts the descriptors down to here.
    """

    shift: int
    index_mask: int
    leaf: int
    table: int
    oa: int
    group: int
    reads: int


@dataclass(frozen=True, slots=True)
class Table:
    """Where a translation starts: first table, its level, the input bits that are translated.

    For stage 1, an input is in range when its `range_mask` bits are all equal to bit 55. `wide`
    selects 52-bit descriptors: with 4K and 16K where CD.DS or STE.S2DS is set, with 64K where
    the output size is 52 bits (IDR5.OAS).

    Attributes:
        steps: the levels of the walk, first to last.
        next_mask: output address bits of a table descriptor.
        high_mask, high_shift: the bits of OA that a 52-bit form keeps elsewhere.
    """

    granule: Granule
    start_level: int
    input_bits: int
    base: int
    range_mask: int = 0
    had: bool = False
    wide: bool = False
    steps: tuple[Step, ...] = field(init=False, repr=False, compare=False)
    next_mask: int = field(init=False, repr=False, compare=False)
    high_mask: int = field(init=False, repr=False, compare=False)
    high_shift: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        oa, high_mask, high_shift = ADDR_MASK, 0, 0
        if self.wide:
            oa, high_mask, high_shift = _LPA if self.granule.name == "64K" else _LPA2
        oa &= -self.granule.page_size
        steps = tuple(self._step(level, oa) for level in range(self.start_level, _LAST_LEVEL + 1))
        for name, value in (
            ("steps", steps),
            ("next_mask", oa),
            ("high_mask", high_mask),
            ("high_shift", high_shift),
        ):
            object.__setattr__(self, name, value)

    def _step(self, level: int, oa: int) -> Step:
        granule = self.granule
        shift = granule.shift(level)
        # At the first level the index also selects among concatenated tables.
        bits = self.input_bits - shift if level == self.start_level else granule.stride
        blocks = BLOCK_LEVELS_52[granule.name] if self.wide else granule.block_levels
        last = level == _LAST_LEVEL
        leaf = _KIND if last else VALID if level in blocks else _NEVER
        count = CONTIGUOUS[granule.name].get(level, 0)
        group = shift + count.bit_length() - 1 if count else 0
        if group > self.input_bits:
            group = 0
        below, reads = _NEVER if last else _KIND, level - self.start_level + 1
        return Step(shift, (1 << bits) - 1, leaf, below, oa & -(1 << shift), group, reads)


@dataclass(frozen=True, slots=True)
class Stage2:
    """A stage 2 regime as an STE sets it up. `ha`, `hd`: STE.S2HA, and S2HD where S2HA is set."""

    table: Table
    output_bits: int
    affd: bool
    ptw: bool
    xnx: bool
    fwb: bool
    ha: bool = False
    hd: bool = False
    # As in `Stage1`.
    memo: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Stage1:
    """A stage 1 regime as a CD sets it up; a table is None where CD.EPDx disables it.

    `ha`, `hd`: CD.HA, and CD.HD where CD.HA is set. `el2` is a regime without unprivileged
    accesses (StreamWorld NS-EL2).
    """

    tables: tuple[Table | None, Table | None]
    output_bits: int
    affd: bool
    wxn: bool
    pan: bool
    ha: bool = False
    hd: bool = False
    el2: bool = False
    # Permissions of leaves that an access leaves as they are, by the bits that decide them.
    memo: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)


class Route(NamedTuple):
    """What the configuration says of a batch of accesses, before any table is walked.

    `fate` is a fault or a status that all lanes share, None where there are tables to walk.
    Addresses of more than `size` bits have `oversize`, a silent abort if that is None. `closed`
    are the halves of stage 1 that this privilege may not use (CD.E0PDx). `finish` makes the
    outcome of a fault.
    """

    finish: Callable[[Access, Fault], Outcome]
    fate: Fault | str | None = None
    size: int = 64
    oversize: Fault | None = None
    stage1: Stage1 | None = None
    stage2: Stage2 | None = None
    need: int = READ
    closed: tuple[bool, bool] = (False, False)
