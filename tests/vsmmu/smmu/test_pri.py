# SPDX-License-Identifier: BSD-2-Clause
"""The PRI queue, and PRG Responses (IHI 0070 §8, §8.1, §8.3, §4.5.2).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdPriResp
from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.arch.registers import Cr0, Cr2, IrqCtrl, QueueBase
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.ats import AtsPort
from vsmmu.smmu.pri import PENDING_REQUESTS

from .machine import AF, NOWHERE, Machine

PRI = Features.default().replace(ats=1, pri=1, priqs=8, ssidsize=4)
DATA = 0x8F00_0000
UNPRIV = 1 << 6
ON = Cr0.build(smmuen=1, eventqen=1, cmdqen=1, priqen=1).raw
SUCCESS, INVALID, FAILURE = PrgResponse.SUCCESS, PrgResponse.INVALID_REQUEST, PrgResponse.FAILURE
OVFLG = 1 << 31


class PriMachine(Machine):
    """Stream 1 is an endpoint; the queue has two entries unless told otherwise."""

    def __init__(self, features: Features = PRI, *, log2: int = 1) -> None:
        super().__init__(features)
        self.log2 = log2
        self.priq = self.alloc(PAGE)
        # The registers' values: what the MMIO interface does with them is not the matter here.
        self.smmu.regs["PRIQ_BASE"] = QueueBase.build(addr=self.priq, log2size=log2).raw
        irqs = IrqCtrl.build(gerror_irqen=1, eventq_irqen=1, priq_irqen=1)
        self.write("IRQ_CTRL", irqs.raw)
        self.write("CR0", ON)
        self.root = self.alloc(PAGE)
        self.ste(1, config=5, s1ctxptr=self.cd(ttb0=self.root), eats=1)
        self.port = AtsPort("nic", self.smmu, 1, pages=True)

    def ask(self, **fields: int) -> PriEntry:
        entry = PriEntry.build(**{"sid": 1, "r": 1, "last": 1, "prgindex": 5, **fields})
        self.smmu.priq.request(entry)
        self.smmu.priq.step(1)
        return entry

    def entry(self, slot: int) -> PriEntry:
        words = self.memory.read_words(self.priq + 16 * slot, 2)
        assert words is not None
        return PriEntry(words)

    @property
    def prod(self) -> int:
        return self.smmu.regs["PRIQ_PROD"]

    def consume(self, count: int) -> None:
        self.smmu.regs["PRIQ_CONS"] = self.smmu.regs["PRIQ_CONS"] + count


@pytest.fixture
def pri() -> PriMachine:
    return PriMachine()


def test_entries(pri: PriMachine) -> None:
    """§8: the request as it came, one after the other."""
    first = pri.ask(ssv=1, ssid=3, priv=1, x=1, addr=0x1234_5000, last=0)
    second = pri.ask(r=0, w=1)
    assert (pri.entry(0), pri.entry(1), pri.prod) == (first, second, 2)
    assert pri.port.responses == []


def test_what_needs_a_pasid_is_0_without_one(pri: PriMachine) -> None:
    """§8: X, Priv and SubstreamID mean something with SSV=1 only."""
    pri.ask(ssv=0, ssid=3, priv=1, x=1)
    found = pri.entry(0)
    assert (found.ssv, found.ssid, found.priv, found.x, found.r) == (0, 0, 0, 0, 1)
    pri = PriMachine(PRI.replace(ssidsize=0))
    pri.ask(ssv=1, ssid=3)
    assert (pri.entry(0).ssv, pri.entry(0).ssid) == (0, 0)


def test_interrupt_when_it_stops_being_empty(pri: PriMachine) -> None:
    pri.ask(last=0)
    pri.ask(last=0)
    assert pri.irqs == ["priq"]
    pri.write("IRQ_CTRL", 5)
    pri.consume(2)
    pri.ask()
    assert pri.irqs == ["priq"]


def test_interrupt_on_last(pri: PriMachine) -> None:
    """PRIQ_IRQ_CFG2.LO (§6.3.36)."""
    pri.smmu.regs["PRIQ_IRQ_CFG2"] = 1 << 31
    pri.ask(last=0)
    assert pri.irqs == []
    pri.ask(last=1)
    assert pri.irqs == ["priq"]


def test_full(pri: PriMachine) -> None:
    """§8.1: overflow, the request discarded; Success to the last of a group."""
    pri.ask()
    pri.ask()
    pri.ask(prgindex=7, last=0)
    assert pri.prod == 2 | OVFLG
    assert pri.port.responses == []
    pri.ask(prgindex=8)
    assert pri.port.responses == [(None, 8, SUCCESS)]
    assert pri.prod == 2 | OVFLG


def test_an_overflow_blocks_until_it_is_acknowledged(pri: PriMachine) -> None:
    """§8.1: also when there is room again."""
    for _ in range(3):
        pri.ask()
    pri.consume(2)
    pri.ask(prgindex=9)
    assert (pri.prod, pri.port.responses[-1]) == (2 | OVFLG, (None, 9, SUCCESS))
    pri.smmu.regs["PRIQ_CONS"] |= OVFLG
    pri.ask()
    assert pri.prod == 3 | OVFLG
    pri.ask()
    pri.ask()
    assert pri.prod == 0


@pytest.mark.parametrize(
    ("pps", "ppar", "ssv", "response"),
    [
        (0, 0, 0, (None, 5, SUCCESS)),
        (0, 0, 1, (None, 5, SUCCESS)),
        (0, 1, 1, (3, 5, SUCCESS)),
        (1, 0, 1, (3, 5, SUCCESS)),
        (1, 0, 0, (None, 5, SUCCESS)),
    ],
)
def test_pasid_of_an_automatic_success(
    pps: int, ppar: int, ssv: int, response: tuple[int | None, int, PrgResponse]
) -> None:
    """§8.1: IDR3.PPS or STE.PPAR."""
    pri = PriMachine(PRI.replace(pps=pps))
    pri.ste(1, config=5, s1ctxptr=pri.cd(ttb0=pri.root), ppar=ppar)
    pri.ask()
    pri.ask()
    pri.ask(ssv=ssv, ssid=3 if ssv else 0)
    assert pri.port.responses == [response]


def test_an_unreadable_ste_is_a_failure(pri: PriMachine) -> None:
    pri.ste(1, config=7)
    pri.ask()
    pri.ask()
    pri.ask(ssv=1, ssid=3)
    assert pri.port.responses == [(None, 5, FAILURE)]
    assert pri.events() == []


@pytest.mark.parametrize(
    ("sid", "cr2", "expected"),
    [
        (9, {"rec_cfg_ats": 1}, [(0x04, 9)]), (9, {"recinvsid": 1}, []),
        (1 << 9, {"rec_cfg_ats": 1}, []),
        (1 << 9, {"rec_cfg_ats": 1, "recinvsid": 1}, [(0x02, 1 << 9)]),
    ],
)  # fmt: skip
def test_what_the_check_of_ppar_meets_is_recorded(
    sid: int, cr2: dict[str, int], expected: list[tuple[int, int]]
) -> None:
    """§8.1: with CR2.REC_CFG_ATS, C_BAD_STREAMID with RECINVSID too."""
    pri = PriMachine(PRI.replace(atsrecerr=1), log2=0)
    pri.write("CR0", 0)
    pri.write("CR2", Cr2.build(**cr2).raw)
    pri.write("CR0", ON)
    pri.ask()
    pri.ask(sid=sid, ssv=1, ssid=3)
    pri.ask(sid=sid)
    assert [(event.type, event.sid) for event in pri.events()] == expected


@pytest.mark.parametrize("enables", [ON & ~2, ON & ~1])
def test_disabled(pri: PriMachine, enables: int) -> None:
    """§8.2: effective PRIQEN is PRIQEN and SMMUEN; every request fails, not the last alone."""
    pri.write("CR0", enables)
    pri.ask(ssv=1, ssid=3)
    pri.ask(last=0)
    pri.ask(ssv=1, ssid=3, r=0, w=0)
    assert pri.port.responses == [(None, 5, FAILURE)] * 2
    assert pri.prod == 0


def test_write_abort(pri: PriMachine) -> None:
    """GERROR.PRIQ_ABT_ERR; Failure while it is active."""
    pri.smmu.regs["PRIQ_BASE"] = QueueBase.build(addr=NOWHERE, log2size=1).raw
    pri.ask()
    assert (pri.read("GERROR"), pri.prod) == (8, 0)
    pri.smmu.regs["PRIQ_BASE"] = QueueBase.build(addr=pri.priq, log2size=1).raw
    pri.ask()
    assert pri.port.responses == [(None, 5, FAILURE)] * 2
    pri.write("GERRORN", 8)
    pri.ask()
    assert pri.prod == 1


def test_stop_markers(pri: PriMachine) -> None:
    """L, W, R = 1, 0, 0 with a PASID: queued like a request, never answered."""
    marker = {"ssv": 1, "ssid": 3, "r": 0, "w": 0, "last": 1}
    assert pri.entry(0) != pri.ask(**marker) == pri.entry(0)
    pri.ask()
    pri.ask(**marker)
    assert (pri.prod, pri.port.responses) == (2 | OVFLG, [])


def test_ats_enables_do_not_gate_pri(pri: PriMachine) -> None:
    """STE.EATS and CR0.ATSCHK have no say."""
    pri.ste(1, config=0)
    pri.ask()
    assert pri.prod == 1


def test_inconsistent_indexes_are_full(pri: PriMachine) -> None:
    pri.smmu.regs["PRIQ_CONS"] = 1
    pri.ask()
    assert pri.prod == OVFLG


def test_what_waits_is_bounded(pri: PriMachine) -> None:
    entry = PriEntry.build(sid=1, r=1, last=1)
    for _ in range(PENDING_REQUESTS + 2):
        pri.smmu.priq.request(entry)
    assert pri.port.responses == [(None, 0, SUCCESS)] * 2


def test_without_pri() -> None:
    machine = Machine(PRI.replace(pri=0, priqs=0))
    port = AtsPort("nic", machine.smmu, 1)
    machine.smmu.priq.request(PriEntry.build(sid=1, r=1, last=1))
    assert port.responses == [(None, 0, FAILURE)]
    assert [e.name for e in machine.smmu.engines] == ["smmu0.cmdq", "smmu0.eventq"]


# CMD_PRI_RESP (§4.5.2).


@pytest.mark.parametrize(
    ("command", "response"),
    [
        ({"resp": 0}, (None, 9, FAILURE)),
        ({"resp": 1}, (None, 9, INVALID)),
        ({"resp": 2}, (None, 9, SUCCESS)),
        ({"resp": 2, "ssv": 1, "ssid": 3}, (3, 9, SUCCESS)),
        ({"resp": 2, "ssid": 3}, (None, 9, SUCCESS)),
    ],
)
def test_responses(
    pri: PriMachine, command: dict[str, int], response: tuple[int | None, int, PrgResponse]
) -> None:
    pri.command(CmdPriResp.build(sid=1, prgindex=9, **command))
    assert pri.port.responses == [response]
    pri.command(CmdPriResp.build(sid=2, prgindex=9, **command))
    assert len(pri.port.responses) == 1


def test_responses_are_ignored_with_smmuen_0(pri: PriMachine) -> None:
    pri.write("CR0", ON & ~1)
    pri.command(CmdPriResp.build(sid=1, resp=2))
    assert pri.port.responses == []


@pytest.mark.parametrize(
    ("features", "command"),
    [
        (Features.default(), CmdPriResp.build()),
        (PRI, CmdPriResp.build(resp=3)),
        (PRI, CmdPriResp.build(ssec=1)),
    ],
)
def test_illegal_commands(features: Features, command: CmdPriResp) -> None:
    machine = Machine(features)
    machine.post(command)
    machine.scheduler.run_until_idle()
    assert machine.read("CMDQ_CONS") >> 24 == 1


# An endpoint that asks for its pages.


@pytest.mark.parametrize(
    ("resp", "mapped", "ok"), [(2, True, True), (2, False, None), (0, 1, False)]
)
def test_a_page_is_asked_for(pri: PriMachine, resp: int, mapped: bool, ok: bool | None) -> None:
    """Success: tried again, and asked for again where nothing has changed; Failure: aborted."""
    pri.scheduler.add(pri.port)
    request = pri.port.write(0x3008, b"12345678")
    pri.scheduler.run_until_idle()
    assert not request.done
    entry = pri.entry(0)
    assert (entry.sid, entry.addr, entry.w, entry.r, entry.last) == (1, 0x3000, 1, 0, 1)
    assert pri.events() == []
    if mapped:
        pri.map(pri.root, 0x3000, DATA, flags=AF | UNPRIV)
    pri.command(CmdPriResp.build(sid=1, prgindex=entry.prgindex, resp=resp))
    assert request.done == (ok is not None)
    assert request.ok == bool(ok)
    assert pri.prod == (1 if ok is not None else 2)
    assert (pri.memory.read(DATA + 8, 8) == b"12345678") == bool(ok)
