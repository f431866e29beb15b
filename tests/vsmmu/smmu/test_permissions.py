# SPDX-License-Identifier: BSD-2-Clause
"""Permissions of leaves without unprivileged accesses (IHI 0070 §5.4 WXN; Arm ARM D8.4)."""

from __future__ import annotations

import pytest

from vsmmu.smmu.transaction import EXEC, PRIV_SHIFT, READ, WRITE
from vsmmu.smmu.walk import is_device, stage1_perms

UNPRIV, READ_ONLY, PXN, UXN = 1 << 6, 1 << 7, 1 << 53, 1 << 54
READ_ONLY_TABLE, UXN_TABLE, PXN_TABLE = 1 << 62, 1 << 60, 1 << 59


@pytest.mark.parametrize(
    ("leaf", "tables", "wxn", "rights"),
    [
        (UNPRIV, 0, False, READ | WRITE | EXEC),
        # WXN: what can be written cannot be executed.
        (UNPRIV, 0, True, READ | WRITE),
        (READ_ONLY, 0, True, READ | EXEC),
        (0, READ_ONLY_TABLE, True, READ | EXEC),
        # UXN is XN; PXN and AP[1] do not count.
        (UXN, 0, False, READ | WRITE),
        (0, UXN_TABLE, False, READ | WRITE),
        (PXN, PXN_TABLE, False, READ | WRITE | EXEC),
    ],
)
def test_el2(leaf: int, tables: int, wxn: bool, rights: int) -> None:
    """StreamWorld NS-EL2: one set of rights for both privileges, whatever PAN says."""
    for pan in (False, True):
        found = stage1_perms(leaf, tables, wxn=wxn, pan=pan, el2=True)
        assert found == rights | rights << PRIV_SHIFT


@pytest.mark.parametrize("memattr", range(16))
def test_device_with_fwb(memattr: int) -> None:
    """FEAT_S2FWB: MemAttr[3] is RES0, and MemAttr[2]=0 is a Device."""
    assert is_device(memattr, fwb=True) == (memattr % 8 < 4)
    assert is_device(memattr, fwb=False) == (memattr < 4)
