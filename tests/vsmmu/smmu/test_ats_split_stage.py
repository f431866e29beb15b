# SPDX-License-Identifier: BSD-2-Clause
"""Split-stage ATS (STE.EATS=2).

IHI 0070 §3.9.1, §3.13.7, §5.2.2, §13.6. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.stream_table import S1Dss
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features
from vsmmu.smmu.ats import Completion

from .ats_machine import ATS, DATA, DBM, IOVA, SUCCESS, UNPRIV, AtsMachine, field
from .machine import AF, RW_S2


@pytest.fixture
def ats() -> AtsMachine:
    return AtsMachine()


def test_split_stage(ats: AtsMachine) -> None:
    """§13.6.3: an IPA, with the rights of both stages; stage 2 comes with the transaction too."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2)
    ats.map(ats.root, IOVA, 0x5000, flags=AF | UNPRIV)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    outcome = ats.smmu.translated(Access(3, 0x5008, True))
    assert outcome.status == "fault"
    (event,) = ats.events()
    names = ("s2", "cls", "rnw", "pnu", "inputaddr", "ipa")
    assert event.name == "F_TRANSLATION"
    assert [field(event, n) for n in names] == [1, 2, 0, 0, 0x5008, 0x5000]
    ats.map(root2, 0x5000, DATA, flags=AF | 1 << 6)
    assert ats.ask(sid=3) == Completion(SUCCESS, 0x5000, PAGE, True, False)
    assert ats.smmu.translated(Access(3, 0x5008, False)).pa == DATA + 8
    assert ats.smmu.translated(Access(3, 0x5008, True)).event is not None
    assert ats.ask(IOVA + PAGE, sid=3) == Completion(SUCCESS)


@pytest.mark.parametrize(("s1", "s2"), [(1 << 21, PAGE), (PAGE, 1 << 21), (1 << 21, 1 << 21)])
def test_size_with_split_stage(ats: AtsMachine, s1: int, s2: int) -> None:
    """§13.6.3: of both stages the smaller one, aligned to it."""
    root2, ipa = ats.s2_root(), 0x4000_0000
    ats.nested(3, root2, eats=2)
    ats.map(ats.root, 1 << 21, ipa, size=s1, flags=AF | UNPRIV)
    ats.map(root2, ipa, DATA & -(1 << 21), size=s2, flags=AF | RW_S2)
    assert ats.ask(1 << 21, sid=3) == Completion(SUCCESS, ipa, min(s1, s2), True, True)


def test_split_stage_and_a_writable_clean_stage_2(ats: AtsMachine) -> None:
    """§3.13.7: it counts as writable; without NW=0 nothing is made dirty."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2, s2ha=1, s2hd=1)
    ats.map(ats.root, IOVA, 0x5000, flags=AF | UNPRIV)
    ats.map(root2, 0x5000, DATA, flags=AF | 1 << 6 | DBM)
    assert not ats.ask(sid=3, no_write=True).write
    assert ats.smmu.counters["httu.dirty"] == 0
    assert ats.ask(sid=3) == Completion(SUCCESS, 0x5000, PAGE, True, True)
    assert ats.smmu.translated(Access(3, 0x5008, True)).pa == DATA + 8
    assert ats.smmu.counters["httu.dirty"] == 1


def test_split_stage_address_size(ats: AtsMachine) -> None:
    ats.nested(3, ats.s2_root(), eats=2)
    assert ats.smmu.translated(Access(3, 1 << 50, False)).status == "fault"
    (event,) = ats.events()
    assert (event.name, field(event, "s2"), field(event, "cls")) == ("F_ADDR_SIZE", 0, 2)


def test_split_stage_quiet_with_s2r_0(ats: AtsMachine) -> None:
    ats.nested(3, ats.s2_root(), eats=2, s2r=0)
    assert ats.smmu.translated(Access(3, 0x5000, False)) == ("fault", None, None, 0)


@pytest.mark.parametrize(
    ("ste", "features"),
    [({"eats": 2, "s2s": 1}, ATS), ({"eats": 1, "s2s": 1}, ATS),
     ({"eats": 2}, ATS.replace(ns1ats=1))],
)  # fmt: skip
def test_illegal_stes(ste: dict[str, int], features: Features) -> None:
    """§5.2.2."""
    ats = AtsMachine(features)
    ats.nested(3, ats.s2_root(), **ste)
    event = ats.go(3, 0).event
    assert event is not None
    assert event.name == "C_BAD_STE"


def test_split_stage_size_is_the_smaller_of_both_stages(ats: AtsMachine) -> None:
    """§13.6.3: a block of stage 1 over pages of stage 2 gives one page."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2)
    block = 1 << 21
    ats.map(ats.root, 5 * block, 7 * block, size=block, flags=AF | UNPRIV)
    ats.map(root2, 7 * block + PAGE, DATA, flags=AF | RW_S2)
    found = ats.ask(5 * block + PAGE + 8, sid=3)
    assert found == Completion(SUCCESS, 7 * block + PAGE, PAGE, True, True)
    assert ats.ask(5 * block, sid=3) == Completion(SUCCESS)


# Stage 1 skipped (STE.S1DSS).


def test_stage1_skipped_split_stage(ats: AtsMachine) -> None:
    """§13.6.5: the identity is an IPA with the rights of stage 2, which has yet to translate it."""
    root2 = ats.s2_root()
    ats.nested(3, root2, eats=2, s1cdmax=1, s1dss=S1Dss.BYPASS)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    ats.map(root2, IOVA, DATA, flags=AF | 1 << 6)
    assert ats.ask(IOVA + 8, sid=3) == Completion(SUCCESS, IOVA, PAGE, True, False)
    ats.map(root2, 1 << 21, DATA & -(1 << 21), size=1 << 21, flags=AF | RW_S2)
    assert ats.ask((1 << 21) + PAGE, sid=3) == Completion(SUCCESS, 1 << 21, 1 << 21, True, True)
    assert ats.smmu.translated(Access(3, IOVA + 8, False)).pa == DATA + 8
