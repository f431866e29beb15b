# SPDX-License-Identifier: BSD-2-Clause
"""ATS: completions of Translation Requests.

IHI 0070 §3.9.1, §3.13.7 and §13.7. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import re

import pytest

from vsmmu.arch.stream_table import S1Dss
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.ats import Completion

from .ats_machine import DATA, DBM, IOVA, NG, PXN, READ_ONLY, SUCCESS, UNPRIV, UXN, AtsMachine
from .machine import AF, RW_S2


@pytest.fixture
def ats() -> AtsMachine:
    return AtsMachine()


# Completions (§3.9.1).


def test_a_page(ats: AtsMachine) -> None:
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV)
    assert ats.ask(IOVA + 0x123) == Completion(SUCCESS, DATA, PAGE, True, True)
    assert ats.events() == []


def test_a_block(ats: AtsMachine) -> None:
    ats.map(ats.root, 1 << 21, 0x9000_0000, size=1 << 21, flags=AF | UNPRIV)
    assert ats.ask((1 << 21) + 0x5000) == Completion(SUCCESS, 0x9000_0000, 1 << 21, True, True)


def test_read_only(ats: AtsMachine) -> None:
    """F_PERMISSION is not recorded: fewer rights are answered."""
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV | READ_ONLY)
    assert ats.ask() == Completion(SUCCESS, DATA, PAGE, True, False)
    assert ats.events() == []


def test_no_rights_for_this_privilege(ats: AtsMachine) -> None:
    ats.substreams(1)
    ats.map(ats.root, IOVA, DATA, flags=AF)
    assert ats.ask(ssid=1) == Completion(SUCCESS)
    answer = ats.ask(ssid=1, priv=True)
    assert answer == Completion(SUCCESS, DATA, PAGE, True, True, False, True)
    assert ats.events() == []


def test_execute_needs_read_and_the_request(ats: AtsMachine) -> None:
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV | READ_ONLY)
    ats.map(ats.root, IOVA + PAGE, DATA, flags=AF | UNPRIV | READ_ONLY | UXN)
    ats.substreams(1)
    assert ats.ask(ssid=1, execute=True).execute
    assert not ats.ask(ssid=1).execute
    assert not ats.ask(IOVA + PAGE, ssid=1, execute=True).execute


def test_without_a_pasid_it_is_unprivileged_data(ats: AtsMachine) -> None:
    """§13.7: Priv and Exe come with a PASID; without one the completion has neither."""
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV | READ_ONLY)
    ats.map(ats.root, IOVA + PAGE, DATA, flags=AF)
    answer = ats.ask(priv=True, execute=True)
    assert answer == Completion(SUCCESS, DATA, PAGE, True, False, False, False)
    assert ats.ask(IOVA + PAGE, priv=True) == Completion(SUCCESS)


def test_execute_only(ats: AtsMachine) -> None:
    """A page that can only be executed gives nothing, unless STE.INSTCFG makes reads fetches."""
    ats.substreams(1)
    ats.substreams(3, instcfg=3)
    ats.map(ats.root, IOVA, DATA, flags=AF | READ_ONLY | PXN)
    # Privileged only for data, executable for all: unprivileged has execution and nothing else.
    assert ats.ask(ssid=1, execute=True) == Completion(SUCCESS)
    answer = ats.ask(sid=3, ssid=1, execute=True)
    assert answer == Completion(SUCCESS, DATA, PAGE, True, False, True)
    assert ats.ask(sid=3, ssid=1) == Completion(SUCCESS, DATA, PAGE, True, False, False)


def test_instcfg_data_forbids_execution(ats: AtsMachine) -> None:
    ats.substreams(3, instcfg=2)
    ats.map(ats.root, IOVA, DATA, flags=AF | UNPRIV | READ_ONLY)
    assert ats.ask(sid=3, ssid=1, execute=True) == Completion(SUCCESS, DATA, PAGE, True)


def test_privcfg(ats: AtsMachine) -> None:
    """STE.PRIVCFG applies to requests; Priv in the answer is the request's."""
    ats.stream(3, privcfg=3)
    ats.map(ats.root, IOVA, DATA, flags=AF)
    assert ats.ask(sid=3) == Completion(SUCCESS, DATA, PAGE, True, True, False, False)


def test_write_only(ats: AtsMachine) -> None:
    root2 = ats.s2_root()
    ats.map(root2, IOVA, DATA, flags=AF | 2 << 6)
    ats.ste(3, config=6, eats=1, **ats.s2_fields(root2))
    assert ats.ask(sid=3) == Completion(SUCCESS, DATA, PAGE, False, True)
    assert ats.ask(sid=3, no_write=True) == Completion(SUCCESS)


@pytest.mark.parametrize(
    ("kind", "flags", "pa"),
    [("F_TRANSLATION", None, 0), ("F_ACCESS", UNPRIV, DATA), ("F_ADDR_SIZE", AF, 1 << 41)],
)
def test_faults_without_translation(ats: AtsMachine, kind: str, flags: int | None, pa: int) -> None:
    """F_TRANSLATION, F_ADDR_SIZE, F_ACCESS: Success without rights, nothing recorded."""
    ats.stream(3, cd={"ips": 2})
    if flags is not None:
        ats.map(ats.root, IOVA, pa, flags=flags)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    assert ats.events() == []
    event = ats.go(3, IOVA).event
    assert event is not None
    assert event.name == kind


def test_stalls_do_not_apply(ats: AtsMachine) -> None:
    """CD.S=1: a request is answered at once (§3.12.2)."""
    ats.stream(3, cd={"s": 1})
    assert ats.ask(sid=3) == Completion(SUCCESS)
    assert len(ats.smmu.stalls) == 0
    assert ats.events() == []


def test_stage2_faults_do_not_show(ats: AtsMachine) -> None:
    """CLASS=CD, TT and IN: all are an answer without rights."""
    root2 = ats.s2_root()
    ats.nested(3, root2, mapped=False)
    assert ats.ask(sid=3) == Completion(SUCCESS)
    ats.nested(4, root2)
    ats.map(ats.root, IOVA, 0x1000, flags=AF | UNPRIV)
    assert ats.ask(sid=4) == Completion(SUCCESS)
    ats.map(root2, 0x1000, DATA, flags=AF | 1 << 6)
    assert ats.ask(sid=4) == Completion(SUCCESS, DATA, PAGE, True, False)
    assert ats.events() == []


def test_size_is_the_smaller_of_both_stages(ats: AtsMachine) -> None:
    root2 = ats.s2_root()
    ats.nested(3, root2)
    ats.map(ats.root, 1 << 21, 1 << 21, size=1 << 21, flags=AF | UNPRIV)
    ats.map(root2, (1 << 21) + PAGE, DATA, flags=AF | RW_S2)
    answer = ats.ask((1 << 21) + PAGE + 8, sid=3)
    assert answer == Completion(SUCCESS, DATA, PAGE, True, True)


@pytest.mark.parametrize(("no_write", "dirty"), [(False, True), (True, False)])
def test_only_requests_for_writing_make_dirty(ats: AtsMachine, no_write: bool, dirty: bool) -> None:
    """§3.13.7: NW=1 grants no write to a clean page and leaves it clean."""
    ats.stream(3, cd={"ha": 1, "hd": 1})
    ats.map(ats.root, IOVA, DATA, flags=UNPRIV | READ_ONLY | DBM)
    answer = ats.ask(sid=3, no_write=no_write)
    assert (answer.read, answer.write) == (True, dirty)
    assert ats.smmu.counters["httu.af"] == 1
    assert ats.smmu.counters["httu.dirty"] == int(dirty)


# Substreams.


def test_stage1_skipped(ats: AtsMachine) -> None:
    """STE.S1DSS=1 without PASID: identity, U=0, read and write (§3.9.1)."""
    ats.stream(3, s1cdmax=1, s1dss=S1Dss.BYPASS)
    assert ats.ask(sid=3) == Completion(SUCCESS, IOVA, PAGE, True, True)
    assert ats.ask(1 << 48, sid=3) == Completion(SUCCESS)
    assert ats.events() == []


def test_stage1_skipped_nested(ats: AtsMachine) -> None:
    root2 = ats.s2_root()
    ats.nested(3, root2, s1cdmax=1, s1dss=S1Dss.BYPASS)
    ats.map(root2, IOVA, DATA, flags=AF | 1 << 6)
    assert ats.ask(sid=3) == Completion(SUCCESS, DATA, PAGE, True, False)


def test_pasid_selects_the_context(ats: AtsMachine) -> None:
    place = ats.alloc(128, 128)
    roots = [ats.alloc(PAGE) for _ in range(2)]
    for i, root in enumerate(roots):
        ats.cd(place + 64 * i, ttb0=root, asid=i + 1)
        ats.map(root, IOVA, DATA + i * PAGE, flags=AF | UNPRIV | NG)
    ats.ste(3, config=5, eats=1, s1ctxptr=place, s1cdmax=1, s1dss=S1Dss.SSID0)
    assert [ats.ask(sid=3, ssid=s).address for s in (None, 1)] == [DATA, DATA + PAGE]


# Identification.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pri": 1}, "IDR0.PRI=1 needs IDR0.ATS=1"),
        ({"atsrecerr": 1}, "IDR0.ATSRECERR=1 needs IDR0.ATS=1"),
        ({"ns1ats": 1}, "IDR0.NS1ATS=1 needs IDR0.ATS=1 and both stages"),
        ({"priqs": 3}, "IDR1.PRIQS needs IDR0.PRI=1"),
        ({"pps": 1}, "IDR3.PPS=1 needs IDR1.SSIDSIZE>=1"),
        ({"pps": 1, "ssidsize": 1}, "IDR3.PPS=1 needs IDR0.PRI=1"),
    ],
)
def test_identification(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Features.default().replace(**change)
