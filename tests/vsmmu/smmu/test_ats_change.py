# SPDX-License-Identifier: BSD-2-Clause
"""Changing the ATS configuration of a stream in use (IHI 0070 §3.9.2).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

from vsmmu.arch.commands import CmdAtcInv, CmdCfgiSte
from vsmmu.arch.registers import Cr0
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features
from vsmmu.smmu.ats import AtsPort, Status, TranslationRequest

from .machine import AF, RW_S2, Machine

ATS = Features.default().replace(ats=1)
DATA, IPA, IOVA = 0x8F00_0000, 0x4000_0000, 0x12_3000
UNPRIV = 1 << 6


class Changing(Machine):
    """Stream 1 is nested: IOVA to IPA to DATA."""

    def __init__(self) -> None:
        super().__init__(ATS)
        self.atschk(1)
        self.root, self.root2 = self.alloc(PAGE), self.s2_root()
        self.context = self.cd(ttb0=self.root)
        self.map(self.root, IOVA, IPA, flags=AF | UNPRIV)
        self.map(self.root2, 0x8000_0000, 0x8000_0000, size=1 << 30, flags=AF | RW_S2)
        self.map(self.root2, IPA, DATA, flags=AF | RW_S2)

    def atschk(self, value: int) -> None:
        self.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1, atschk=value).raw)

    def eats(self, value: int, *, told: bool = True) -> None:
        """Write the STE, and tell the SMMU."""
        self.ste(1, config=7, s1ctxptr=self.context, **self.s2_fields(self.root2, eats=value))
        if told:
            self.command(CmdCfgiSte.build(sid=1, leaf=1))

    def ask(self) -> tuple[Status, int]:
        answer = self.smmu.ats.request(TranslationRequest(1, IOVA))
        return answer.status, answer.address


def test_the_cached_ste_counts_until_it_is_invalidated() -> None:
    machine = Changing()
    machine.eats(0)
    assert machine.ask() == (Status.UR, 0)
    machine.eats(1, told=False)
    assert machine.ask() == (Status.UR, 0)
    machine.eats(1)
    assert machine.ask() == (Status.SUCCESS, DATA)
    machine.eats(0, told=False)
    assert machine.ask() == (Status.SUCCESS, DATA)
    machine.eats(0)
    assert machine.ask() == (Status.UR, 0)
    assert [event.name for event in machine.events()] == ["F_BAD_ATS_TREQ"] * 3


def test_disabling() -> None:
    """The endpoint first, then its cache, then the STE: nothing is left that passes."""
    machine = Changing()
    machine.eats(1)
    port = AtsPort("nic", machine.smmu, 1)
    machine.scheduler.add(port)
    request = port.write(IOVA, b"abcd")
    machine.scheduler.run_until_idle()
    assert (request.ok, len(port.atc)) == (True, 1)
    machine.command(CmdAtcInv.build(sid=1, size_lg2=52))
    assert len(port.atc) == 0
    machine.eats(0)
    assert machine.smmu.translated(Access(1, DATA, True)).status == "fault"
    assert [event.name for event in machine.events()] == ["F_TRANSL_FORBIDDEN"]


def test_full_to_split_through_none() -> None:
    """What the endpoint is told is a PA, then nothing, then an IPA."""
    machine = Changing()
    answers = []
    for eats in (1, 0, 2):
        machine.eats(eats)
        answers.append(machine.ask())
    assert answers == [(Status.SUCCESS, DATA), (Status.UR, 0), (Status.SUCCESS, IPA)]
    assert machine.smmu.translated(Access(1, IPA, True)).pa == DATA


def test_split_needs_atschk() -> None:
    """EATS=2 acts as 0 with ATSCHK=0, for requests; Translated transactions pass unchecked."""
    machine = Changing()
    machine.eats(2)
    machine.atschk(0)
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    assert machine.ask() == (Status.UR, 0)
    assert machine.smmu.translated(Access(1, IPA, True)).pa == IPA
