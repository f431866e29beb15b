# SPDX-License-Identifier: BSD-2-Clause
"""ATS: which Translated transactions pass (CR0.ATSCHK).

IHI 0070 §3.9.1, §7.3.8. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.smmu import Access

from .ats_machine import BASE, DATA, AtsMachine, broken, field
from .machine import Machine


@pytest.fixture
def ats() -> AtsMachine:
    return AtsMachine()


def test_unchecked(ats: AtsMachine) -> None:
    """CR0.ATSCHK=0: passed, whatever the STE says."""
    ats.write("CR0", BASE)
    for sid in (1, 9, 1 << 9):
        assert ats.smmu.translated(Access(sid, DATA, True)).pa == DATA
    assert ats.events() == []


@pytest.mark.parametrize("how", ["disabled", "bypass", "no eats", "no ats"])
def test_forbidden(how: str) -> None:
    ats: Machine = AtsMachine() if how != "no ats" else Machine()
    if how == "disabled":
        ats.write("CR0", BASE & ~1)
    elif how == "bypass":
        ats.ste(1, config=4, eats=1)
    elif isinstance(ats, AtsMachine):
        ats.stream(1, eats=0)
    assert ats.smmu.translated(Access(1, DATA + 8, True)).status == "fault"
    (event,) = ats.events()
    assert event.name == "F_TRANSL_FORBIDDEN"
    assert [field(event, n) for n in ("sid", "ssv", "rnw", "inputaddr")] == [1, 0, 0, DATA + 8]


def test_checked(ats: AtsMachine) -> None:
    """EATS=1: the address is a PA."""
    assert ats.smmu.translated(Access(1, DATA + 8, False)).pa == DATA + 8
    ats.ste(2, config=0, eats=1)
    assert ats.smmu.translated(Access(2, DATA, False)).status == "abort"
    assert ats.events() == []


@pytest.mark.parametrize("rec", [0, 1])
@pytest.mark.parametrize("name", ["C_BAD_STREAMID", "C_BAD_STE", "F_STE_FETCH"])
def test_checked_configuration_faults(name: str, rec: int) -> None:
    """Aborted; recorded with REC_CFG_ATS, whatever RECINVSID is."""
    ats = AtsMachine(rec=rec)
    ats.write("CR0", BASE & ~1)
    ats.write("CR2", Cr2.build(rec_cfg_ats=rec).raw)
    ats.write("CR0", Cr0(BASE).replace(atschk=1).raw)
    sid = broken(ats, name).get("sid", 1)
    assert ats.smmu.translated(Access(sid, DATA, False)).status == "fault"
    assert [e.name for e in ats.events()] == [name] * rec
