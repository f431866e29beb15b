# SPDX-License-Identifier: BSD-2-Clause
"""ATS: what completions echo, and what Translated transactions record (IHI 0070 §3.9.1, §7.3).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.registers import Cr0
from vsmmu.arch.stream_table import S1Dss
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features
from vsmmu.smmu.ats import Completion, Status, TranslationRequest
from vsmmu.smmu.transaction import READ, WRITE

from .machine import AF, RW_S2, Machine

ATS = Features.default().replace(ats=1, ssidsize=4, httu=2)
ON = Cr0.build(smmuen=1, eventqen=1, cmdqen=1, atschk=1).raw
DATA, IPA = 0x8F00_0000, 0x5000
DBM = 1 << 51
SID = 3


@pytest.fixture
def ats() -> Machine:
    machine = Machine(ATS)
    machine.write("CR0", ON)
    return machine


def split_stage(machine: Machine, **ste: int) -> int:
    """A nested stream with EATS=2; its stage 2 root."""
    root2 = machine.s2_root()
    place = machine.cd(ttb0=machine.alloc(PAGE))
    fields = machine.s2_fields(root2, eats=2, **ste)
    machine.ste(SID, config=7, s1ctxptr=place, **fields)
    return root2


@pytest.mark.parametrize("priv", [False, True])
@pytest.mark.parametrize("ssid", [None, 1])
def test_an_empty_completion_echoes_priv(ats: Machine, ssid: int | None, priv: bool) -> None:
    """§3.9.1: Priv of the completion is the request's, which has one with a PASID (§13.7)."""
    place = ats.alloc(128, 128)
    for i in range(2):
        ats.cd(place + 64 * i, ttb0=ats.alloc(PAGE))
    ats.ste(SID, config=5, s1ctxptr=place, s1cdmax=1, s1dss=S1Dss.SSID0, eats=1)
    answer = ats.smmu.ats.request(TranslationRequest(SID, 0, ssid, False, priv))
    assert answer == Completion(Status.SUCCESS, priv=priv and ssid is not None)


def test_a_translated_transaction_is_unprivileged_data_without_substream(ats: Machine) -> None:
    """§3.9.1: without IDR3.PASIDTT nothing else can be said of it."""
    split_stage(ats)
    ats.smmu.translated(Access(SID, IPA, False, instr=True, priv=True, ssid=5))
    (event,) = ats.events()
    names = ("ssv", "ssid", "pnu", "ind", "rnw", "ipa")
    assert event.name == "F_TRANSLATION"
    assert [event.fields[n].of(event.words) for n in names] == [0, 0, 0, 0, 1, IPA]


def test_an_ipa_out_of_range_is_recorded_with_s2r_0(ats: Machine) -> None:
    """§3.4, §5.2: the fault is stage 1's (S2=0), and S2R suppresses those of stage 2."""
    split_stage(ats, s2r=0)
    ats.smmu.translated(Access(SID, 1 << 50, False))
    (event,) = ats.events()
    assert (event.name, event.fields["s2"].of(event.words)) == ("F_ADDR_SIZE", 0)


def test_a_clean_page_gives_a_read_no_right_to_write(ats: Machine) -> None:
    """§3.13: a write has to walk first, to make the descriptor dirty."""
    root2 = split_stage(ats, s2ha=1, s2hd=1)
    ats.map(root2, IPA, DATA, flags=AF | DBM | RW_S2 & ~(1 << 7))
    read = ats.smmu.translated(Access(SID, IPA, False))
    assert (read.pa, read.perms & (READ | WRITE)) == (DATA, READ)
    assert ats.smmu.counters["httu.dirty"] == 0
    write = ats.smmu.translated(Access(SID, IPA, True))
    assert (write.pa, write.perms & (READ | WRITE)) == (DATA, READ | WRITE)
    assert ats.smmu.counters["httu.dirty"] == 1
