# SPDX-License-Identifier: BSD-2-Clause
"""Page requests of guests' devices: who is told, which answers are passed on, who else answers."""

from __future__ import annotations

from itertools import count

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdPriResp, CmdSync, Resp
from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.arch.registers import (
    Cerror,
    CmdqCons,
    Cr0,
    EventqProd,
    Gerror,
    Idr0,
    Idr1,
    IrqCtrl,
    QueueBase,
)
from vsmmu.arch.stream_table import S1Dss, Ste, SteConfig
from vsmmu.hypervisor.policy import Policy
from vsmmu.queue import Ring
from vsmmu.smmu.ats import AtsPort
from vsmmu.smmu.features import Features

from .world import BASE, NOWHERE, RAM, Guest, World

SMMU = Features.default(sidsize=16).replace(ats=1, pri=1, priqs=8, ssidsize=8)
POLICY = Policy(ats=True, pri=True, substreams=True)
SYNC = CmdSync.build(cs=0)
ALL_ENABLED = Cr0.build(smmuen=1, eventqen=1, cmdqen=1, priqen=1)
LOG2 = 2
QUEUE = Ring(LOG2, PriEntry.size, RAM + 0x8000)
REGISTERS = {register.name: register for register in EVERY_REGISTER}
STREAMS = {"g": [("a", 0x600), ("a", 0x601)], "o": [("a", 0x700)]}


class PriGuest:
    """A guest that takes page requests by hand, with devices that record their answers."""

    def __init__(self, guest: Guest, *, boot: bool = True) -> None:
        self.guest = guest.boot()
        self.ports = []
        for port in guest.ports:
            self.ports.append(AtsPort(port.name, port.smmu, port.sid, pages=True))
            guest.world.scheduler.add(self.ports[-1])
        guest.driver.vcpu.handlers.clear()
        if boot:
            base = QueueBase.build(log2size=LOG2, addr=QUEUE.base)
            self.write("PRIQ_BASE", base.raw)
            self.write("CR0", ALL_ENABLED.raw)

    def write(self, name: str, value: int) -> None:
        register, hv = REGISTERS[name], self.guest.world.hypervisor
        assert hv.trap(self.guest.domain, BASE + register.offset, register.width // 8, value) == 0
        self.rest()

    def read(self, name: str) -> int:
        register, hv = REGISTERS[name], self.guest.world.hypervisor
        value = hv.trap(self.guest.domain, BASE + register.offset, register.width // 8)
        assert value is not None
        return value

    def rest(self) -> None:
        assert self.guest.world.scheduler.run_until_idle()

    def ask(self, index: int, *, port: int = 0, **fields: int) -> None:
        """A page request of a device."""
        device = self.ports[port]
        fields = {"r": 1, "last": 1, "addr": 0x5000} | fields
        device.smmu.priq.request(PriEntry.build(sid=device.sid, prgindex=index, **fields))
        self.rest()

    def told(self) -> list[PriEntry]:
        """The requests in the queue, which is then empty."""
        out, cons, prod = [], self.read("PRIQ_CONS"), self.read("PRIQ_PROD")
        while QUEUE.pending(prod, cons):
            words = self.guest.memory.read_words(QUEUE.address(cons), PriEntry.dwords)
            assert words is not None
            out.append(PriEntry(words))
            cons = QUEUE.advance(cons)
        overflow = EventqProd(prod).ovflg << 31
        self.write("PRIQ_CONS", cons | overflow)
        return out

    def answer(self, index: int, *, sid: int = 0, resp: int = Resp.SUCCESS, **fields: int) -> None:
        self.guest.put(CmdPriResp.build(sid=sid, prgindex=index, resp=resp, **fields), SYNC)

    def got(self, port: int = 0) -> list[tuple[int | None, int, PrgResponse]]:
        """The answers that a device got, which are then forgotten."""
        found = list(self.ports[port].responses)
        self.ports[port].responses.clear()
        return found

    def error(self) -> int:
        return CmdqCons(self.read("CMDQ_CONS")).err


@pytest.fixture
def machine() -> World:
    return World(STREAMS, policy=POLICY, features=SMMU)


@pytest.fixture
def guest(machine: World) -> PriGuest:
    return PriGuest(machine["g"])


def test_it_is_offered_with_ats_alone() -> None:
    for policy, smmu, offered in (
        (POLICY, SMMU, 1), (Policy(pri=True), SMMU, 0), (Policy(ats=True), SMMU, 0),
        (POLICY, SMMU.replace(ns1ats=1), 0),
    ):  # fmt: skip
        g = World({"g": [("a", 1)]}, policy=policy, features=smmu)["g"]
        assert Idr0(g.read("IDR0")).pri == offered
        assert Idr1(g.read("IDR1")).priqs == 8 * offered


def test_a_request_goes_to_the_owner_under_its_vmaster_id(machine: World, guest: PriGuest) -> None:
    other = PriGuest(machine["o"])
    guest.ask(7, port=1, w=1, addr=0x12345000, ssv=1, ssid=3, priv=1, x=1)
    (entry,) = guest.told()
    fields = (entry.sid, entry.prgindex, entry.addr, entry.ssv, entry.ssid, entry.priv, entry.x)
    assert fields == (1, 7, 0x12345000, 1, 3, 1, 1)
    assert (entry.r, entry.w, entry.last) == (1, 1, 1)
    assert other.told() == []


@pytest.mark.parametrize(
    ("resp", "code"),
    [
        (Resp.SUCCESS, PrgResponse.SUCCESS),
        (Resp.INVALID_REQUEST, PrgResponse.INVALID_REQUEST),
        (Resp.FAILURE, PrgResponse.FAILURE),
    ],
)
def test_its_answer_is_passed_on_once(guest: PriGuest, resp: Resp, code: PrgResponse) -> None:
    guest.ask(9)
    guest.answer(9, resp=resp)
    assert guest.got() == [(None, 9, code)]
    guest.answer(9, resp=resp)
    assert guest.got() == []


def test_a_request_has_a_wired_interrupt_where_there_are_no_messages(guest: PriGuest) -> None:
    """Without IDR0.MSI there is no PRIQ_IRQ_CFG0 to look into (§6.3.34)."""
    guest.write("IRQ_CTRL", IrqCtrl.build(priq_irqen=1).raw)
    guest.ask(7)
    assert len(guest.told()) == 1


def test_an_answer_that_nobody_asked_for_is_not_passed_on(machine: World, guest: PriGuest) -> None:
    """An index never asked, another stream of one's own, another guest's."""
    other = PriGuest(machine["o"])
    guest.ask(4)
    other.ask(5)
    for sid in (0, 1, 2, 0x600, 0x601, 0x700, 0xFFFF_FFFF):
        for index in (0, 3, 5, 511):
            guest.answer(index, sid=sid)
    guest.answer(4, sid=1)
    assert guest.error() == Cerror.NONE
    assert (guest.got(), guest.got(1), other.got()) == ([], [], [])
    assert guest.guest.vsmmu.refusals.by_reason["CMD_PRI_RESP never asked"] > 0
    guest.answer(4)
    other.answer(5)
    assert (len(guest.got()), len(other.got())) == (1, 1)


def test_a_group_is_answered_when_the_guest_knows_all_of_it(guest: PriGuest) -> None:
    guest.ask(2, last=0)
    guest.answer(2)
    assert guest.got() == []
    guest.ask(2)
    guest.answer(2)
    assert guest.got() == [(None, 2, PrgResponse.SUCCESS)]


def test_the_pasid_of_an_answer_is_that_of_the_request(guest: PriGuest) -> None:
    guest.ask(1, ssv=1, ssid=5)
    guest.answer(1, ssv=1, ssid=6)
    assert guest.got() == []
    guest.answer(1, ssv=1, ssid=5)
    assert guest.got() == [(5, 1, PrgResponse.SUCCESS)]
    guest.ask(1)
    guest.answer(1, ssv=1, ssid=5)
    assert guest.got() == []
    guest.answer(1)
    assert guest.got() == [(None, 1, PrgResponse.SUCCESS)]


def test_a_reserved_response_is_illegal(guest: PriGuest) -> None:
    guest.ask(1)
    guest.answer(1, resp=3)
    assert guest.error() == Cerror.ILL
    assert guest.got() == []


def test_it_is_illegal_where_pri_is_not_offered() -> None:
    guest = PriGuest(World(STREAMS, features=SMMU)["g"], boot=False)
    guest.answer(1)
    assert guest.error() == Cerror.ILL


def test_without_an_offer_a_request_fails_at_once() -> None:
    """The physical queue is not used, or is for another guest."""
    guest = PriGuest(World(STREAMS, features=SMMU)["g"], boot=False)
    guest.ask(1)
    assert guest.got() == [(None, 1, PrgResponse.FAILURE)]
    bare = Policy(pri=True)
    guest = PriGuest(World(STREAMS, policy=bare, features=SMMU)["g"], boot=False)
    guest.ask(1)
    assert guest.got() == [(None, 1, PrgResponse.FAILURE)]
    guest.write("CR0", ALL_ENABLED.raw)
    assert Cr0(guest.read("CR0ACK")).priqen == 0


@pytest.mark.parametrize("off", ["priqen", "smmuen"])
def test_a_disabled_queue_fails_every_request(guest: PriGuest, off: str) -> None:
    guest.write("CR0", ALL_ENABLED.replace(**{off: 0}).raw)
    guest.ask(1, ssv=1, ssid=2)
    guest.ask(2, last=0)
    assert guest.got() == [(None, 1, PrgResponse.FAILURE), (None, 2, PrgResponse.FAILURE)]
    guest.ask(3, r=0, ssv=1)
    assert guest.got() == []


def test_a_full_queue_answers_success_for_the_last_of_a_group(guest: PriGuest) -> None:
    """OVFLG keeps everything out until it is acknowledged (§8.1)."""
    guest.guest.attach(0)
    for index in range(QUEUE.size):
        guest.ask(index)
    guest.ask(10, last=0)
    guest.ask(10, ssv=1, ssid=4)
    assert EventqProd(guest.read("PRIQ_PROD")).ovflg == 1
    assert guest.got() == [(None, 10, PrgResponse.SUCCESS)]
    prod = guest.read("PRIQ_PROD")
    guest.write("PRIQ_CONS", EventqProd(prod).wr)
    guest.ask(11)
    assert guest.got() == [(None, 11, PrgResponse.SUCCESS)]
    guest.write("PRIQ_CONS", prod)
    guest.ask(12)
    assert [entry.prgindex for entry in guest.told()] == [12]
    # What was in the queue is still the guest's to answer; what was not is answered already.
    for index in (0, 10, 11):
        guest.answer(index)
    assert guest.got() == [(None, 0, PrgResponse.SUCCESS)]


def test_a_full_queue_answers_with_the_pasid_where_ppar_says_so(guest: PriGuest) -> None:
    g = guest.guest
    g.attach(0)
    words = g.memory.read_words(g.driver.ste_address(0), Ste.dwords)
    assert words is not None
    g.ste(0, Ste(words).replace(ppar=1, s1dss=S1Dss.SSID0))
    g.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC)
    assert g.world.hypervisor.hosts["a"].read_ste(0x600).ppar == 1
    for index in range(QUEUE.size):
        guest.ask(index)
    guest.ask(10, ssv=1, ssid=4)
    assert guest.got() == [(4, 10, PrgResponse.SUCCESS)]
    g.ste(0, Ste.build(v=0))
    g.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC)
    guest.ask(11, ssv=1, ssid=4)
    assert guest.got() == [(None, 11, PrgResponse.FAILURE)]


def test_a_queue_outside_the_guests_memory(guest: PriGuest) -> None:
    guest.write("CR0", ALL_ENABLED.replace(priqen=0).raw)
    guest.write("PRIQ_BASE", QueueBase.build(log2size=LOG2, addr=NOWHERE).raw)
    guest.write("CR0", ALL_ENABLED.raw)
    guest.ask(1)
    active = Gerror(guest.read("GERROR") ^ guest.read("GERRORN"))
    assert active.priq_abt_err
    guest.ask(2)
    failed = [(None, 1, PrgResponse.FAILURE), (None, 2, PrgResponse.FAILURE)]
    assert guest.got() == failed


def test_the_line_is_high_while_requests_are_unread(guest: PriGuest) -> None:
    levels = guest.guest.vsmmu.levels
    guest.ask(1)
    assert not levels["priq"]
    guest.write("IRQ_CTRL", IrqCtrl.build(priq_irqen=1).raw)
    assert levels["priq"]
    guest.told()
    assert not levels["priq"]


def test_a_stop_marker_needs_no_answer(guest: PriGuest) -> None:
    guest.ask(3, r=0, ssv=1, ssid=6)
    (entry,) = guest.told()
    assert entry.stop_marker
    guest.answer(3)
    assert guest.got() == []


def test_without_substreams_a_request_has_no_pasid() -> None:
    policy = Policy(ats=True, pri=True)
    guest = PriGuest(World(STREAMS, policy=policy, features=SMMU)["g"])
    guest.ask(1, ssv=1, ssid=5, priv=1, x=1)
    guest.ask(2, r=0, ssv=1, ssid=5)
    (entry,) = guest.told()
    assert (entry.prgindex, entry.ssv, entry.ssid, entry.priv, entry.x) == (1, 0, 0, 0, 0)


def test_a_stream_that_is_taken_back_leaves_no_group_open(machine: World, guest: PriGuest) -> None:
    """Told to the guest or still waiting: the device gets its answer, and the guest's is void."""
    guest.ask(1)
    guest.ask(2, port=1)
    vsmmu = guest.guest.vsmmu
    physical = PriEntry.build(sid=0x600, prgindex=3, r=1, last=1)
    vsmmu.pri.take(vsmmu.streams[0], physical)
    machine.hypervisor.deassign(vsmmu, vsmmu.streams[0])
    assert sorted(guest.got()) == [(None, i, PrgResponse.FAILURE) for i in (1, 3)]
    guest.answer(1)
    assert guest.got() == []
    guest.answer(2, sid=1)
    assert guest.got(1) == [(None, 2, PrgResponse.SUCCESS)]


def test_a_stop_marker_that_waits_is_no_open_group(guest: PriGuest) -> None:
    """It is no request: nobody waits for an answer (§8.3)."""
    vsmmu = guest.guest.vsmmu
    for fields in ({"r": 1, "prgindex": 3}, {"ssv": 1, "ssid": 6, "prgindex": 4}):
        vsmmu.pri.take(vsmmu.streams[0], PriEntry.build(sid=0x600, last=1, **fields))
    answers = vsmmu.pri.withdraw(vsmmu.streams[0])
    assert [(one.sid, one.prgindex) for one in answers] == [(0x600, 3)]


def test_an_answer_that_was_given_survives_the_withdrawal(machine: World, guest: PriGuest) -> None:
    """It is on its way to the physical queue when the stream is taken back."""
    guest.ask(1)
    vsmmu = guest.guest.vsmmu
    stream = vsmmu.streams[0]
    vsmmu.pri.respond(stream, CmdPriResp.build(sid=0, prgindex=1, resp=Resp.SUCCESS))
    machine.hypervisor.deassign(vsmmu, stream)
    assert guest.got() == [(None, 1, PrgResponse.SUCCESS)]


def test_a_request_of_the_old_owner_is_not_given_to_the_new_one(
    machine: World, guest: PriGuest
) -> None:
    """What is in the physical queue when the stream is taken back is read first, however slowly."""
    other = PriGuest(machine["o"])
    host = machine.hypervisor.hosts["a"]
    step, turns = host.pri_reader.step, count(1)

    def slow(budget: int) -> int:
        host.pri_reader.bell.ring()
        return 0 if next(turns) % 50 else step(1)

    host.pri_reader.step = slow  # type: ignore[method-assign]
    for index in range(40):
        entry = PriEntry.build(sid=0x600, prgindex=index, r=1, last=1)
        machine.smmus["a"].priq.request(entry)
    guest.rest()
    machine.hypervisor.deassign(guest.guest.vsmmu, guest.guest.vsmmu.streams[0])
    machine.hypervisor.assign(other.guest.vsmmu, 5, "a", 0x600)
    host.pri_reader.step = step  # type: ignore[method-assign]
    other.rest()
    assert other.told() == []
    assert len(guest.got()) == 40


def test_a_stream_without_an_owner_fails(machine: World, guest: PriGuest) -> None:
    stray = AtsPort("stray", machine.smmus["a"], 0x900, pages=True)
    entry = PriEntry.build(sid=0x900, prgindex=1, r=1, last=1)
    machine.smmus["a"].priq.request(entry)
    machine.smmus["a"].priq.request(entry.replace(r=0, ssv=1, prgindex=2))
    guest.rest()
    assert stray.responses == [(None, 1, PrgResponse.FAILURE)]
    assert machine.hypervisor.kept["page request: unassigned StreamID"] == 2


def test_an_overflow_of_the_physical_queue_passes(machine: World, guest: PriGuest) -> None:
    """Many at once: each group has one answer, or is in the guest's queue."""
    device = guest.ports[0]
    count = 300
    for index in range(count):
        device.smmu.priq.request(PriEntry.build(sid=0x600, prgindex=index, r=1, last=1))
    guest.rest()
    answered = [index for _, index, _ in guest.got()]
    told = [entry.prgindex for entry in guest.told()]
    assert len(told) == QUEUE.size
    assert sorted(answered + told) == list(range(count))
    guest.ask(400)
    assert [entry.prgindex for entry in guest.told()] == [400]


def test_a_device_goes_on_when_its_page_is_there(guest: PriGuest) -> None:
    """From end to end: fault, page request, mapping, answer, DMA."""
    g = guest.guest
    g.attach(0)
    words = g.memory.read_words(g.driver.ste_address(0), Ste.dwords)
    assert words is not None
    g.ste(0, Ste(words).replace(eats=1, config=SteConfig.S1))
    g.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC)
    request = guest.ports[0].write(0x7000, b"paged in")
    guest.rest()
    assert not request.done
    (entry,) = guest.told()
    assert (entry.addr, entry.w) == (0x7000, 1)
    g.map(0, 0x7000, RAM + 0x9000)
    guest.answer(entry.prgindex)
    assert request.ok
    assert g.memory.read(RAM + 0x9000, 8) == b"paged in"
