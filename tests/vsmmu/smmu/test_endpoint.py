# SPDX-License-Identifier: BSD-2-Clause
"""A device with an ATC: its Page Requests, its messages, its budget (IHI 0070 §3.9, §8, §8.3)."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdAtcInv, CmdPriResp
from vsmmu.arch.pri import PrgResponse
from vsmmu.arch.registers import Cr0, QueueBase
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.ats import ATC_ENTRIES, AtsPort, Completion, Invalidation, Status

from .machine import AF, Machine
from .test_pri import PriMachine

ALL = Features.default().replace(ats=1, pri=1, priqs=8, ssidsize=4)
DATA, UNPRIV, READ_ONLY, UXN = 0x8F00_0000, 1 << 6, 1 << 7, 1 << 54


@pytest.fixture
def pri() -> PriMachine:
    return PriMachine(ALL, log2=3)


def held(pri: PriMachine, **how: object) -> object:
    """A request of the port that waits for the answer to its Page Request."""
    request = pri.port.read(0x3000, 4, **how)  # type: ignore[arg-type]
    pri.port.step(1)
    pri.smmu.priq.step(1)
    assert pri.port.stalled is not None
    return request


def test_a_response_for_another_group_ends_nothing(pri: PriMachine) -> None:
    """§8.3: PRGIndex says whose answer it is."""
    held(pri)
    asked = pri.entry(0).prgindex
    pri.command(CmdPriResp.build(sid=1, prgindex=asked + 1, resp=2))
    assert pri.port.stalled is not None
    pri.command(CmdPriResp.build(sid=1, prgindex=asked, resp=2))
    assert pri.port.stalled is None


@pytest.mark.parametrize(("resp", "again"), [(0, False), (1, False), (2, True)])
def test_success_alone_has_it_tried_again(pri: PriMachine, resp: int, again: bool) -> None:
    """§8.3: Invalid Request and Response Failure end the access."""
    held(pri)
    pri.map(pri.root, 0x3000, DATA, flags=AF | UNPRIV)
    pri.command(CmdPriResp.build(sid=1, prgindex=pri.entry(0).prgindex, resp=resp))
    request = pri.port._queue[0]
    pri.port.step(1)
    assert (request.done, request.ok) == (True, again)


def substreams(pri: PriMachine) -> None:
    """Two substreams of stream 1 with the same tables."""
    contexts = pri.alloc(128, 128)
    for i in range(2):
        pri.cd(contexts + 64 * i, ttb0=pri.root)
    pri.ste(1, config=5, s1ctxptr=contexts, s1cdmax=1, s1dss=2, eats=1)


@pytest.mark.parametrize("ssid", [None, 1])
def test_priv_and_execute_come_with_a_pasid(pri: PriMachine, ssid: int | None) -> None:
    """§8: X and Priv are 0 with SSV=0."""
    substreams(pri)
    held(pri, priv=True, instr=True, ssid=ssid)
    entry = pri.entry(0)
    with_pasid = int(ssid is not None)
    assert (entry.ssv, entry.ssid, entry.priv, entry.x) == (
        with_pasid, ssid or 0, with_pasid, with_pasid
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ssid", "expected"), [(1, [(True, 2), (False, 4)]), (None, [(True, 1), (True, 2)])]
)
def test_a_fetch_needs_the_right_to_execute(
    pri: PriMachine, ssid: int | None, expected: list[tuple[bool, int]]
) -> None:
    """§3.9.1: a completion to a request without Execute does not serve a fetch.

    Without a PASID there are no fetches: they are reads of data (§13.7).
    """
    substreams(pri)
    pri.map(pri.root, 0, DATA, flags=AF | UNPRIV | READ_ONLY)
    pri.map(pri.root, PAGE, DATA, flags=AF | UNPRIV | READ_ONLY | UXN)
    pri.port.pages = False
    ends = []
    for page in range(2):
        pri.port.read(page * PAGE, 4, ssid=ssid)
        pri.port.step(1)
        fetch = pri.port.read(page * PAGE, 4, instr=True, ssid=ssid)
        pri.port.step(1)
        ends.append((fetch.ok, pri.smmu.counters["ats.request"]))
    assert ends == expected


def test_an_invalidation_takes_of_the_budget(pri: PriMachine) -> None:
    pri.map(pri.root, 0, DATA, flags=AF | UNPRIV)
    request = pri.port.read(0, 4)
    message = Invalidation(0, PAGE, None, False)
    pri.port.invalidate(message)
    assert pri.port.step(1) == 1
    assert (message.status, request.done) == (Status.SUCCESS, False)
    assert pri.port.step(1) == 1
    assert request.done


def test_responses_that_nobody_reads_are_bounded(pri: PriMachine) -> None:
    for i in range(ATC_ENTRIES + 2):
        pri.port.prg_response(None, i % 512, PrgResponse.SUCCESS)
    assert len(pri.port.responses) == ATC_ENTRIES


def test_queue_addresses_are_truncated_to_the_output_size() -> None:
    """§3.4.3."""
    machine = Machine(ALL.replace(oas=0))
    place = machine.alloc(PAGE)
    base = QueueBase.build(addr=1 << 40 | place, log2size=1)
    machine.smmu.regs["PRIQ_BASE"] = base.raw
    machine.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1, priqen=1).raw)
    port = AtsPort("nic", machine.smmu, 1, pages=True)
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE)), eats=1)
    port.write(0x3000, b"1234")
    port.step(1)
    machine.smmu.priq.step(1)
    assert machine.smmu.counters["pri.recorded"] == 1
    assert machine.memory.read64(place) == 1 | 3 << 61


def test_the_oldest_completion_makes_room() -> None:
    """A kept one is replaced in place, and sizes that are gone are not looked for."""
    machine = Machine(ALL)
    atc = AtsPort("nic", machine.smmu, 1).atc
    for size in (PAGE, 1 << 21):
        atc.keep(None, 0, Completion(Status.SUCCESS, DATA & -size, size, True))
        atc.keep(None, 0, Completion(Status.SUCCESS, DATA & -size, size, True, True))
    assert len(atc) == 2
    assert atc.drop(Invalidation(0, 1 << 64, None, False)) == 2
    assert (len(atc), atc.find(None, False, 0), atc._sizes) == (0, None, {})


@pytest.mark.parametrize(("ssv", "globl"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_an_invalidate_request_says(pri: PriMachine, ssv: int, globl: int) -> None:
    """§4.5.1: Global and the SubstreamID mean nothing without SSV."""
    command = CmdAtcInv.build(sid=1, addr=0x5000, size_lg2=2, ssv=ssv, ssid=3, globl=globl)
    pri.post(command)
    assert pri.smmu.cmdq.step(1) == 1
    (request,) = pri.port._invalidations
    assert (request.address, request.size) == (0x4000, 4 * PAGE)
    assert (request.ssid, request.globl) == (3 if ssv else None, bool(ssv and globl))
