# SPDX-License-Identifier: BSD-2-Clause
"""The commands that invalidate a range of input addresses, as the Linux driver cuts it."""

from __future__ import annotations

from collections.abc import Sequence

from vsmmu.arch.commands import CmdTlbiNhVa, Command
from vsmmu.arch.pagetable import G4K

# Linux cuts a range into chunks of five bits of its page count.
_NUM_MAX = 31


def invalidations(asid: int, iova: int, size: int, *, ril: bool) -> Sequence[Command]:
    """By range where IDR3.RIL allows (`ril`), a command for each page else."""
    pages = size >> G4K.page_shift
    if not ril:
        return [CmdTlbiNhVa.build(asid=asid, addr=iova + 4096 * i, leaf=1) for i in range(pages)]
    out = []
    while pages:
        scale = (pages & -pages).bit_length() - 1
        num = pages >> scale & _NUM_MAX
        # TTL 3 only for single pages: 2 MiB blocks of a larger range are at level 2.
        ttl = 3 if size < 0x20_0000 else 0
        if not ttl and num == 1 and not scale:
            ttl = 3
        out.append(
            CmdTlbiNhVa.build(asid=asid, addr=iova, leaf=1, tg=1, ttl=ttl, scale=scale, num=num - 1)
        )
        pages -= num << scale
        iova += num << scale + 12
    return out
