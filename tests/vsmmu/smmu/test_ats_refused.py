# SPDX-License-Identifier: BSD-2-Clause
"""ATS: Translation Requests that are not completed.

IHI 0070 §3.9.1, §6.3.12, §7.3.6. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.registers import Cr0, Cr2
from vsmmu.smmu.ats import Completion, TranslationRequest

from .ats_machine import ATS, BASE, CA, DATA, IOVA, UNPRIV, UR, AtsMachine, broken, field
from .machine import AF, Machine


@pytest.fixture
def ats() -> AtsMachine:
    return AtsMachine()


# UR and F_BAD_ATS_TREQ (§7.3.6).


@pytest.mark.parametrize("how", ["disabled", "bypass", "no eats", "dpt", "unchecked split"])
def test_refused(how: str) -> None:
    ats = AtsMachine(atschk=int(how != "unchecked split"))
    if how == "disabled":
        ats.write("CR0", BASE & ~1)
    elif how == "bypass":
        ats.ste(1, config=4, eats=1)
    elif how == "no eats":
        ats.stream(1, eats=0)
    elif how == "dpt":
        ats.stream(1, eats=3)
    else:
        ats.nested(1, ats.s2_root(), eats=2)
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV)
    assert ats.ask(IOVA + 0x18, ssid=5, no_write=True, priv=True).status == UR
    (event,) = ats.events()
    names = ("sid", "ssv", "ssid", "r", "w", "x", "p", "span", "inputaddr")
    assert event.name == "F_BAD_ATS_TREQ"
    assert [field(event, n) for n in names] == [1, 1, 5, 1, 0, 0, 1, 1, IOVA]


def test_aborting_stream(ats: AtsMachine) -> None:
    """Config=0b0xx: UR, nothing recorded."""
    ats.ste(1, config=0, eats=1)
    assert ats.ask() == Completion(UR)
    assert ats.events() == []


def test_without_ats() -> None:
    machine = Machine()
    assert machine.smmu.ats.request(TranslationRequest(1, 0)) == Completion(UR)
    assert machine.events() == []


# CA, recorded with CR2.REC_CFG_ATS (§6.3.12).


CONFIG_FAULTS = (
    "C_BAD_STREAMID", "F_STE_FETCH", "C_BAD_STE", "C_BAD_SUBSTREAMID", "F_STREAM_DISABLED",
    "F_CD_FETCH", "C_BAD_CD", "F_WALK_EABT",
)  # fmt: skip


@pytest.mark.parametrize("rec", [0, 1])
@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_configuration_faults(name: str, rec: int) -> None:
    ats = AtsMachine(rec=rec)
    assert ats.ask(**broken(ats, name)) == Completion(CA)
    assert [e.name for e in ats.events()] == [name] * rec


def test_recinvsid_counts_for_requests(ats: AtsMachine) -> None:
    ats.write("CR0", BASE & ~1)
    ats.write("CR2", Cr2.build(rec_cfg_ats=1).raw)
    ats.write("CR0", Cr0(BASE).replace(atschk=1).raw)
    assert ats.ask(sid=1 << 9) == Completion(CA)
    assert ats.events() == []


def test_rec_cfg_ats_needs_its_feature() -> None:
    ats = AtsMachine(ATS.replace(atsrecerr=0))
    assert ats.ask(sid=9) == Completion(CA)
    assert ats.events() == []
