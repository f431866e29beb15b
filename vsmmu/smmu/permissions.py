# SPDX-License-Identifier: BSD-2-Clause
"""What a leaf descriptor grants, of stage 1 and of stage 2, and whether it makes a Device.

Arm ARM D8.4. Permissions are sets of READ, WRITE and EXEC, those of the privileged shifted by
PRIV_SHIFT.
"""

from __future__ import annotations

from vsmmu.arch.pagetable import S1Leaf, S2Leaf, TableDesc
from vsmmu.smmu.transaction import EXEC, PRIV_SHIFT, READ, WRITE

_UNPRIV, _READ_ONLY = S1Leaf.mask("ap1")[0], S1Leaf.mask("ap2")[0]
_PXN, _UXN = S1Leaf.mask("pxn")[0], S1Leaf.mask("uxn")[0]
_PXNTABLE, _UXNTABLE = TableDesc.mask("pxntable")[0], TableDesc.mask("uxntable")[0]
_NO_UNPRIV_TABLE, _READ_ONLY_TABLE = TableDesc.mask("aptable0")[0], TableDesc.mask("aptable1")[0]
_S2_READ, _S2_WRITE = S2Leaf.mask("s2ap_r")[0], S2Leaf.mask("s2ap_w")[0]
_S2_XN0, _S2_XN1 = S2Leaf.mask("xn0")[0], S2Leaf.mask("xn1")[0]


def stage1_perms(leaf: int, attributes: int, *, wxn: bool, pan: bool, el2: bool = False) -> int:
    """Permissions of a leaf below tables with these hierarchical attributes.

    `el2` is a regime without unprivileged accesses: AP[1] acts as 1 and UXN is XN.
    """
    writable = not leaf & _READ_ONLY and not attributes & _READ_ONLY_TABLE
    rights = READ | WRITE if writable else READ
    user_exec = not leaf & _UXN and not attributes & _UXNTABLE
    if el2:
        rights |= EXEC if user_exec and not (wxn and writable) else 0
        return rights | rights << PRIV_SHIFT
    unpriv = leaf & _UNPRIV and not attributes & _NO_UNPRIV_TABLE
    low = rights if unpriv else 0
    high = 0 if pan and unpriv else rights
    # A page that the unprivileged can write is never executable for the privileged (D8.4).
    priv_exec = (
        not leaf & _PXN and not attributes & _PXNTABLE and not low & WRITE
        and not (wxn and writable)
    )  # fmt: skip
    low |= EXEC if user_exec and not (wxn and low & WRITE) else 0
    high |= EXEC if priv_exec else 0
    return low | high << PRIV_SHIFT


def stage2_perms(leaf: int, *, xnx: bool) -> int:
    """Permissions of a stage 2 leaf. Execution does not need read permission: XN alone decides."""
    rights = (READ if leaf & _S2_READ else 0) | (WRITE if leaf & _S2_WRITE else 0)
    xn1, xn0 = bool(leaf & _S2_XN1), xnx and bool(leaf & _S2_XN0)
    # XN[1:0]: 00 all, 01 unprivileged only, 10 none, 11 privileged only.
    low = rights | (EXEC if not xn1 else 0)
    high = rights | (EXEC if xn1 == xn0 else 0)
    return low | high << PRIV_SHIFT


def is_device(memattr: int, *, fwb: bool) -> bool:
    """Whether stage 2 MemAttr alone makes Normal memory a Device (§3.13; FEAT_S2FWB)."""
    return not memattr & 0b0100 if fwb else not memattr & 0b1100
