# SPDX-License-Identifier: BSD-2-Clause
"""Hardware update of translation tables: what an access makes of a leaf descriptor.

IHI 0070 §3.13.2 (access flag), §3.13.3 (dirty state). These functions decide; the walker stores. An
access that lacks a permission sets no access flag, a choice that the architecture leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.arch.pagetable import S1Leaf, S2Leaf
from vsmmu.smmu.permissions import stage1_perms, stage2_perms
from vsmmu.smmu.transaction import ANY_WRITE

if TYPE_CHECKING:
    from vsmmu.smmu.regime import Stage1, Stage2

_AF, _DBM = S1Leaf.mask("af")[0], S1Leaf.mask("dbm")[0]
_READ_ONLY = S1Leaf.mask("ap2")[0]
_S2_WRITE = S2Leaf.mask("s2ap_w")[0]


def stage1_update(
    regime: Stage1, leaf: int, attributes: int, need: int
) -> tuple[int | None, int, bool]:
    """The descriptor after an access (HTTU), its permissions, whether it stays clean.

    The descriptor is None where a clear access flag faults, or is not set because the access has
    no permission.
    """
    effective = leaf & ~_READ_ONLY if regime.hd and leaf & _DBM else leaf
    perms = stage1_perms(effective, attributes, wxn=regime.wxn, pan=regime.pan, el2=regime.el2)
    if leaf & _AF:
        if effective == leaf:
            return leaf, perms, False
    elif regime.ha:
        if need and not perms & need:
            return None, perms, False
    elif not regime.affd:
        return None, perms, False
    changed = leaf | _AF if regime.ha else leaf
    if perms & need & ANY_WRITE:
        return changed & ~(leaf ^ effective), perms, False
    return changed, perms, bool(leaf ^ effective and perms & ANY_WRITE)


def stage2_update(regime: Stage2, leaf: int, need: int) -> tuple[int | None, int, bool]:
    """The same for stage 2, where a clean descriptor lacks S2AP[1]."""
    effective = leaf | _S2_WRITE if regime.hd and leaf & _DBM else leaf
    perms = stage2_perms(effective, xnx=regime.xnx)
    if leaf & _AF:
        if effective == leaf:
            return leaf, perms, False
    elif regime.ha:
        if need and not perms & need:
            return None, perms, False
    elif not regime.affd:
        return None, perms, False
    changed = leaf | _AF if regime.ha else leaf
    if need & ANY_WRITE:
        return changed | leaf ^ effective, perms, False
    return changed, perms, leaf != effective
