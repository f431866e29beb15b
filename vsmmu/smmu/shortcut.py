# SPDX-License-Identifier: BSD-2-Clause
"""What is known of accesses of one kind while nothing that it was made of has left the caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vsmmu.smmu.transaction import PRIV_SHIFT

if TYPE_CHECKING:
    from vsmmu.smmu.cd import Context
    from vsmmu.smmu.ste import Stream
    from vsmmu.smmu.tlb import Rows

# Shortcuts of one SMMU; all go when there would be more.
SHORTCUTS = 1024
# Mask and value that no address has.
_NOTHING = 0, 1


class Shortcut(NamedTuple):
    """What the caches say of accesses of one kind, substream and StreamID.

    An address is in range of half n of stage 1, or of stage 2 alone, when its bits in the mask
    of `ranges[n]` have the value there. `rows` are where the TLB has the entries of the context,
    which is None where stage 2 alone translates. `need` is the permission, already shifted by
    `shift` for the privilege.
    """

    ranges: tuple[tuple[int, int], tuple[int, int]]
    rows: Rows
    need: int
    shift: int
    stream: Stream
    context: Context | None


def in_range(context: Context, high: int, need: int) -> tuple[int, int]:
    """Mask and value of the addresses that a half of stage 1 translates (IHI 0070 §3.4.1)."""
    table = context.stage1.tables[high]
    if table is None or (context.e0pd[high] and not need >> PRIV_SHIFT):
        return _NOTHING
    return table.range_mask, table.range_mask if high else 0
