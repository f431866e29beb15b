# SPDX-License-Identifier: BSD-2-Clause
"""CMD_ATC_INV, the CMD_SYNC behind it, and an endpoint's ATC.

IHI 0070 §3.9.1, §4.5.1, §4.7.3 and §7.1. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdAtcInv, CmdSync
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.ats import (
    INVALIDATION_TURNS,
    PENDING_INVALIDATIONS,
    Atc,
    AtsPort,
    Completion,
)

from .ats_machine import ATS, BASE, DATA, DBM, READ_ONLY, SUCCESS, UNPRIV, AtsMachine
from .machine import AF, Machine


class WithPort(AtsMachine):
    def __init__(self) -> None:
        super().__init__()
        self.port = AtsPort("nic", self.smmu, 1)
        self.scheduler.add(self.port)
        for page in range(4):
            self.map(self.root, page * PAGE, DATA + page * PAGE, flags=AF | UNPRIV)


@pytest.fixture
def nic() -> WithPort:
    return WithPort()


def test_dma_goes_by_the_atc(nic: WithPort) -> None:
    """The ATC answers until it is told otherwise, as after an unmap without CMD_ATC_INV."""
    write = nic.port.write(0x800, bytes(range(200)) * 20)
    nic.scheduler.run_until_idle()
    assert write.ok
    assert nic.smmu.counters["ats.request"] == 2
    nic.memory.write64(nic.root, 0)
    assert nic.memory.read(DATA + 0x800, 8) == bytes(range(8))
    again = nic.port.read(0x800, 8)
    nic.scheduler.run_until_idle()
    assert (again.data, nic.smmu.counters["ats.request"]) == (bytes(range(8)), 2)


def test_a_read_completion_grants_no_write(nic: WithPort) -> None:
    nic.stream(1, cd={"ha": 1, "hd": 1})
    nic.map(nic.root, 0, DATA, flags=AF | UNPRIV | READ_ONLY | DBM)
    nic.port.read(0, 4)
    write = nic.port.write(0, b"abcd")
    nic.scheduler.run_until_idle()
    assert (write.ok, nic.smmu.counters["ats.request"]) == (True, 2)
    assert nic.smmu.counters["httu.dirty"] == 1


def test_no_rights_abort(nic: WithPort) -> None:
    request = nic.port.read(1 << 30, 4)
    nic.scheduler.run_until_idle()
    assert [o.status for o in request.outcomes] == ["abort"]
    assert nic.events() == []


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ({"size_lg2": 52}, []),
        ({"addr": 0x1000}, [(None, 0), (None, 2), (1, 0), (1, 2), (2, 0), (2, 2)]),
        ({"addr": 0x1000, "size_lg2": 1}, [(None, 2), (1, 2), (2, 2)]),
        ({"addr": 0x1000, "ssv": 1, "ssid": 1}, [
            (None, 0), (None, 1), (None, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]),
        ({"addr": 0x1000, "ssv": 1, "ssid": 1, "globl": 1}, [
            (None, 0), (None, 1), (None, 2), (1, 0), (1, 2), (2, 0), (2, 2)]),
        ({"addr": 0x1000, "globl": 1}, [(None, 0), (None, 2), (1, 0), (1, 2), (2, 0), (2, 2)]),
        ({"addr": 0x8000, "size_lg2": 2}, [
            (s, p) for s in (None, 1, 2) for p in range(3)]),
        ({"addr": 0, "size_lg2": 52, "sid": 7}, [(s, p) for s in (None, 1, 2) for p in range(3)]),
    ],
)  # fmt: skip
def test_atc_inv(
    nic: WithPort, command: dict[str, int], left: list[tuple[int | None, int]]
) -> None:
    """Ranges are aligned down; without a PASID all are covered, Global covers every PASID."""
    for ssid in (None, 1, 2):
        for page in range(3):
            nic.port.atc.keep(ssid, page * PAGE, Completion(SUCCESS, DATA, PAGE, True))
    nic.command(CmdAtcInv.build(**{"sid": 1, **command}))
    found = [
        (ssid, page) for ssid in (None, 1, 2) for page in range(3)
        if nic.port.atc.find(ssid, False, page * PAGE)
    ]  # fmt: skip
    assert found == left


def test_a_larger_translation_is_dropped_by_any_part(nic: WithPort) -> None:
    nic.port.atc.keep(None, 0x20_0000, Completion(SUCCESS, DATA, 1 << 21, True))
    nic.command(CmdAtcInv.build(sid=1, addr=0x3F_F000))
    assert len(nic.port.atc) == 0


def test_sync_waits_for_the_endpoint(nic: WithPort) -> None:
    """§4.7.3: CMD_SYNC completes once the endpoint has answered; CMD_ATC_INV alone does not."""
    nic.port.read(0, 4)
    nic.scheduler.run_until_idle()
    nic.post(CmdAtcInv.build(sid=1, size_lg2=52), CmdSync.build())
    # One unit more for a turn that waits.
    assert nic.smmu.cmdq.step(9) == 2
    assert nic.smmu.cmdq.step(9) == 1
    assert nic.read("CMDQ_CONS") == 1
    assert len(nic.port.atc) == 1
    nic.port.step(1)
    assert nic.smmu.cmdq.step(9) == 1
    assert nic.read("CMDQ_CONS") == 2
    assert len(nic.port.atc) == 0


def test_timeout(nic: WithPort) -> None:
    """§7.1: CERROR_ATC_INV_SYNC at the CMD_SYNC; issued again it completes."""
    nic.port.silent = True
    nic.post(CmdAtcInv.build(sid=1, size_lg2=52), CmdSync.build(cs=1))
    nic.scheduler.run_until_idle()
    assert nic.read("CMDQ_CONS") == 1 | 3 << 24
    assert nic.read("GERROR") == 1
    assert nic.irqs == ["gerror"]
    nic.write("GERRORN", 1)
    nic.scheduler.run_until_idle()
    assert nic.read("CMDQ_CONS") & 0xFFFF == 2
    assert nic.irqs == ["gerror", "cmdq-sync"]


def test_unanswered_invalidations_are_bounded(nic: WithPort) -> None:
    """The queue waits with the command that finds no room."""
    nic.smmu.cmdq.step(9)
    for _ in range(2):
        nic.post(*[CmdAtcInv.build(sid=1)] * (PENDING_INVALIDATIONS // 2))
        while nic.smmu.cmdq.step(64):
            pass
    nic.post(CmdAtcInv.build(sid=1))
    at = nic.read("CMDQ_CONS")
    assert nic.smmu.cmdq.step(9) == 1
    assert nic.read("CMDQ_CONS") == at
    nic.port.step(1)
    assert nic.smmu.cmdq.step(9) == 1
    assert nic.read("CMDQ_CONS") == at + 1
    nic.command()


def waiting(nic: WithPort, turns: int) -> None:
    """Turns of the consumer alone."""
    for _ in range(turns):
        nic.smmu.cmdq.step(9)


def test_the_smmu_gives_an_endpoint_up(nic: WithPort) -> None:
    """One that does not answer, and nobody says so, holds the queue for INVALIDATION_TURNS."""
    assert nic.smmu.ats.patience == INVALIDATION_TURNS == 1024
    nic.port.atc.keep(None, 0, Completion(SUCCESS, DATA, PAGE, True))
    nic.port.deaf = True
    nic.post(CmdAtcInv.build(sid=1, size_lg2=52), CmdSync.build())
    waiting(nic, INVALIDATION_TURNS)
    assert (nic.read("CMDQ_CONS"), nic.read("GERROR")) == (1, 0)
    waiting(nic, 1)
    assert (nic.read("CMDQ_CONS"), nic.read("GERROR")) == (1 | 3 << 24, 1)
    assert nic.smmu.counters["ats.timeout"] == 1
    nic.write("GERRORN", 1)
    waiting(nic, 1)
    assert nic.read("CMDQ_CONS") & 0xFFFF == 2
    assert len(nic.port.atc) == 1, "it knows nothing of it"


def test_a_late_answer_changes_nothing_for_the_smmu(nic: WithPort) -> None:
    nic.smmu.ats.patience = 3
    nic.port.atc.keep(None, 0, Completion(SUCCESS, DATA, PAGE, True))
    nic.post(CmdAtcInv.build(sid=1, size_lg2=52), CmdSync.build())
    waiting(nic, 4)
    assert nic.read("GERROR") == 1
    nic.port.step(1)
    assert len(nic.port.atc) == 0
    nic.write("GERRORN", 1)
    nic.post(CmdAtcInv.build(sid=1), CmdSync.build())
    nic.scheduler.run_until_idle()
    assert nic.read("CMDQ_CONS") & 0xFFFF == nic.read("CMDQ_PROD")
    assert nic.read("GERROR") == nic.read("GERRORN")
    assert nic.smmu.counters["ats.timeout"] == 1


def test_each_request_has_its_own_time(nic: WithPort) -> None:
    """The second is sent when the first has waited already; it is given up later."""
    nic.smmu.ats.patience = 8
    nic.smmu.cmdq.step(9)
    nic.post(*[CmdAtcInv.build(sid=1)] * PENDING_INVALIDATIONS)
    while nic.smmu.cmdq.step(64):
        pass
    nic.post(CmdAtcInv.build(sid=1), CmdSync.build())
    waiting(nic, 8)
    assert nic.smmu.counters["ats.timeout"] == 0
    waiting(nic, 1)
    assert nic.smmu.counters["ats.timeout"] == PENDING_INVALIDATIONS
    assert nic.smmu.counters["ats.invalidate"] == PENDING_INVALIDATIONS + 1
    # The CMD_SYNC waits for the last one, and its error is that of all.
    assert nic.read("GERROR") == 0
    waiting(nic, 8)
    assert nic.smmu.counters["ats.timeout"] == PENDING_INVALIDATIONS + 1
    assert nic.read("GERROR") == 1


def test_what_was_given_up_is_not_kept(nic: WithPort) -> None:
    """A device that is never asked again holds no more than the SMMU waits for."""
    nic.smmu.ats.patience = 1
    for _ in range(4 * PENDING_INVALIDATIONS):
        nic.post(CmdAtcInv.build(sid=1), CmdSync.build())
        waiting(nic, 2)
        nic.write("GERRORN", nic.read("GERROR"))
        waiting(nic, 1)
    assert len(nic.port._invalidations) == 1


def test_a_reset_forgets_and_aborts(nic: WithPort) -> None:
    nic.port.read(0, 4)
    nic.scheduler.run_until_idle()
    assert len(nic.port.atc) == 1
    nic.smmu.ats.patience = 3
    request = nic.port.read(0, 2 * PAGE)
    nic.post(CmdAtcInv.build(sid=1), CmdSync.build())
    waiting(nic, 1)
    nic.port.reset()
    assert (request.done, request.ok, nic.port.pending, len(nic.port.atc)) == (True, False, 0, 0)
    waiting(nic, 3)
    assert nic.read("GERROR") == 1, "the Invalidate Request that it had is never answered"
    nic.write("GERRORN", 1)
    assert nic.port.read(0, 4).done is False
    nic.scheduler.run_until_idle()
    assert len(nic.port.atc) == 1


def test_ignored_with_smmuen_0(nic: WithPort) -> None:
    nic.port.atc.keep(None, 0, Completion(SUCCESS, DATA, PAGE, True))
    nic.write("CR0", BASE & ~1)
    nic.command(CmdAtcInv.build(sid=1, size_lg2=52))
    assert len(nic.port.atc) == 1


@pytest.mark.parametrize(
    ("features", "command"),
    [
        (Features.default(), CmdAtcInv.build(sid=1)),
        (ATS, CmdAtcInv.build(sid=1, size_lg2=53)),
        (ATS, CmdAtcInv.build(sid=1, ssec=1)),
    ],
)
def test_illegal_commands(features: Features, command: CmdAtcInv) -> None:
    machine = Machine(features)
    machine.post(command)
    machine.scheduler.run_until_idle()
    assert machine.read("CMDQ_CONS") >> 24 == 1


def test_the_atc_is_bounded() -> None:
    atc = Atc(2)
    for page in range(3):
        atc.keep(None, page * PAGE, Completion(SUCCESS, 0, PAGE, True))
    assert [bool(atc.find(None, False, page * PAGE)) for page in range(3)] == [False, True, True]
    assert len(atc) == 2
