# SPDX-License-Identifier: BSD-2-Clause
"""A driver of the PRI queue, by its registers alone.

IHI 0070 §6.3.33 to §6.3.36, §6.3.97 and §6.3.98. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.arch.registers import Cr0, Gerror, IrqCtrl, QueueBase
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.ats import AtsPort

from .machine import NOWHERE, Machine

PRI = Features.default().replace(ats=1, pri=1, priqs=3, msi=1)
ON = Cr0.build(smmuen=1, eventqen=1, cmdqen=1, priqen=1).raw
OFF = Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw
IRQS = IrqCtrl.build(gerror_irqen=1, priq_irqen=1).raw
OVFLG, LO = 1 << 31, 1 << 31
PRIQ_ABT_ERR = Gerror.mask("priq_abt_err")[0]


class Driver(Machine):
    """A queue of 2**log2 entries at `place`, enabled."""

    def __init__(self, *, log2: int = 2, place: int | None = None) -> None:
        super().__init__(PRI)
        self.place = self.alloc(PAGE) if place is None else place
        self.write("IRQ_CTRL", 0)
        self.write("PRIQ_BASE", QueueBase.build(addr=self.place, log2size=log2).raw)
        self.write("PRIQ_PROD", 0)
        self.write("PRIQ_CONS", 0)
        self.write("IRQ_CTRL", IRQS)
        self.write("CR0", ON)
        self.port = AtsPort("nic", self.smmu, 1)

    def arrive(self, *groups: int, last: int = 1) -> list[PriEntry]:
        """Page Requests of these groups, taken by the SMMU."""
        made = [PriEntry.build(sid=1, r=1, last=last, prgindex=g) for g in groups]
        for entry in made:
            self.smmu.priq.request(entry)
        self.scheduler.run_until_idle()
        return made

    def at(self, slot: int) -> PriEntry:
        words = self.memory.read_words(self.place + 16 * slot, 2)
        assert words is not None
        return PriEntry(words)


def test_two_rounds_of_a_queue() -> None:
    """PROD and CONS go round with their wrap bits: 3 and 4 entries in a queue of 4."""
    driver = Driver()
    assert driver.read("CR0ACK") == ON
    first = driver.arrive(1, 2, 3)
    assert (driver.read("PRIQ_PROD"), driver.read("PRIQ_CONS")) == (3, 0)
    assert [driver.at(i) for i in range(3)] == first
    driver.write("PRIQ_CONS", 3)
    second = driver.arrive(4, 5, 6, 7)
    assert driver.read("PRIQ_PROD") == 7
    assert [driver.at(i) for i in (3, 0, 1, 2)] == second
    driver.write("PRIQ_CONS", 7)
    (last,) = driver.arrive(8)
    assert (driver.read("PRIQ_PROD"), driver.at(3)) == (0, last)
    assert driver.port.responses == []


def test_overflow_and_its_acknowledgement() -> None:
    """§8.1: OVFLG is toggled once; until OVACKFLG follows nothing is queued, room or not."""
    driver = Driver(log2=0)
    driver.arrive(1, 2, 3)
    assert driver.read("PRIQ_PROD") == OVFLG | 1
    assert driver.port.responses == [(None, 2, PrgResponse.SUCCESS), (None, 3, PrgResponse.SUCCESS)]
    driver.write("PRIQ_CONS", 1)
    driver.arrive(4)
    assert driver.read("PRIQ_PROD") == OVFLG | 1
    driver.write("PRIQ_CONS", OVFLG | 1)
    driver.arrive(5)
    assert driver.read("PRIQ_PROD") == OVFLG | 0
    driver.arrive(6)
    assert driver.read("PRIQ_PROD") == 0


def test_what_is_fixed_while_it_is_enabled() -> None:
    """§6.3.33, §6.3.97: PRIQ_BASE and PRIQ_PROD; PRIQ_CONS is the driver's."""
    driver = Driver()
    base = driver.read("PRIQ_BASE")
    driver.write("PRIQ_BASE", 0)
    driver.write("PRIQ_PROD", 3)
    driver.write("PRIQ_CONS", OVFLG | 5)
    found = [driver.read(name) for name in ("PRIQ_BASE", "PRIQ_PROD", "PRIQ_CONS")]
    assert found == [base, 0, OVFLG | 5]
    driver.write("CR0", OFF)
    driver.write("PRIQ_BASE", 1)
    driver.write("PRIQ_PROD", OVFLG | 3)
    assert [driver.read("PRIQ_BASE"), driver.read("PRIQ_PROD")] == [1, OVFLG | 3]


def test_disabled_by_cr0() -> None:
    """PRIQEN=0: every group is answered Failure, and nothing is written."""
    driver = Driver()
    driver.write("CR0", OFF)
    driver.arrive(1)
    assert driver.port.responses == [(None, 1, PrgResponse.FAILURE)]
    assert (driver.read("PRIQ_PROD"), driver.at(0)) == (0, PriEntry((0, 0)))


@pytest.mark.parametrize("lo", [0, LO])
def test_wired_interrupts(lo: int) -> None:
    """§6.3.36: LO asks for one for each last request, not where the queue stops being empty."""
    driver = Driver()
    driver.write("IRQ_CTRL", 0)
    driver.write("PRIQ_IRQ_CFG2", lo)
    driver.write("IRQ_CTRL", IRQS)
    driver.arrive(1, last=0)
    assert driver.irqs == ([] if lo else ["priq"])
    driver.arrive(1, 2)
    assert driver.irqs == (["priq", "priq"] if lo else ["priq"])


def test_messages() -> None:
    """§6.3.34, §6.3.35: the address and the data; both are fixed while PRIQ_IRQEN is set."""
    driver = Driver()
    place = driver.alloc(PAGE)
    driver.write("PRIQ_IRQ_CFG0", place)
    driver.arrive(1)
    assert (driver.irqs, driver.memory.read64(place)) == (["priq"], 0)
    driver.write("IRQ_CTRL", 0)
    driver.write("PRIQ_IRQ_CFG0", place)
    driver.write("PRIQ_IRQ_CFG1", 0x1234_5678)
    driver.write("IRQ_CTRL", IRQS)
    driver.write("PRIQ_CONS", 1)
    driver.arrive(2)
    assert (driver.irqs, driver.memory.read64(place)) == (["priq"], 0x1234_5678)


def test_an_abort_stops_the_queue_until_it_is_acknowledged() -> None:
    """§8.2: GERROR.PRIQ_ABT_ERR; Failure for what arrives."""
    driver = Driver(place=NOWHERE)
    driver.arrive(1, 2)
    assert driver.read("GERROR") == PRIQ_ABT_ERR
    assert [code for _, _, code in driver.port.responses] == [PrgResponse.FAILURE] * 2
    driver.write("CR0", OFF)
    driver.write("PRIQ_BASE", QueueBase.build(addr=driver.alloc(PAGE), log2size=2).raw)
    driver.write("CR0", ON)
    driver.arrive(3)
    assert driver.read("PRIQ_PROD") == 0
    driver.write("GERRORN", PRIQ_ABT_ERR)
    driver.arrive(4)
    assert driver.read("PRIQ_PROD") == 1
