# SPDX-License-Identifier: BSD-2-Clause
"""Stalled transactions of guests: who is told, who may answer, and that none hangs."""

from __future__ import annotations

from typing import cast

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiSte,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    Command,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.events import FTranslation
from vsmmu.arch.registers import Cerror, CmdqCons, Cr0, Gerror, Idr0, Idr5, StallModel
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort, Request

from .world import BUFFER, Guest, World

SMMU = Features.default(sidsize=16).replace(
    stall_model=StallModel.STALL_AND_TERMINATE, stall_max=4, term_model=0
)
POLICY = Policy(stalls=True, stalls_per_vsmmu=2)
SYNC = CmdSync.build(cs=0)
CMDQ_ERR = Gerror.mask("cmdq_err")[0]


def world(policy: Policy = POLICY, **guests: list[tuple[str, int]]) -> World:
    guests = guests or {"g": [("a", 0x600), ("a", 0x601), ("a", 0x602)], "o": [("a", 0x700)]}
    return World(guests, policy=policy, features=SMMU)


def stalling(guest: Guest) -> Guest:
    """Booted, each stream in its own context with CD.S set, BUFFER mapped at 0x10000."""
    guest.boot()
    for vmaster_id in range(len(guest.ports)):
        guest.attach(vmaster_id)
        guest.map(vmaster_id, 0x10000, BUFFER)
        at = guest.driver.contexts[vmaster_id].cd
        words = guest.memory.read_words(at, Cd.dwords)
        assert words is not None
        assert guest.memory.write_words(at, Cd(words).replace(s=1).words)
        guest.put(CmdCfgiCd.build(sid=vmaster_id, leaf=1), SYNC)
    return guest


@pytest.fixture
def machine() -> World:
    return world()


@pytest.fixture
def guest(machine: World) -> Guest:
    return stalling(machine["g"])


def fault(guest: Guest, vmaster_id: int = 0, iova: int = 0x9000) -> Request:
    """An access that stalls, or has ended if it did not."""
    request = guest.ports[vmaster_id].read(iova, 8)
    assert guest.world.scheduler.run_until_idle()
    return request


def told(guest: Guest) -> list[FTranslation]:
    """The records that the guest's driver took."""
    found = cast("list[FTranslation]", list(guest.driver.events))
    guest.driver.events.clear()
    return found


def held(machine: World, smmu: str = "a") -> int:
    return len(machine.smmus[smmu].stalls)


def error(guest: Guest) -> tuple[int, bool]:
    """CMDQ_CONS.ERR and whether CMDQ_ERR is active."""
    active = guest.read("GERROR") ^ guest.read("GERRORN")
    return CmdqCons(guest.read("CMDQ_CONS")).err, bool(active & CMDQ_ERR)


def test_it_is_offered_with_a_share_of_the_places(machine: World) -> None:
    """Two of four for each; a third guest finds none left and is not offered stalls."""
    three = world(g=[("a", 1)], o=[("a", 2)], late=[("a", 3), ("b", 3)])
    for name, places in (("g", 2), ("o", 2), ("late", 0)):
        idr0, idr5 = Idr0(three[name].read("IDR0")), Idr5(three[name].read("IDR5"))
        assert idr5.stall_max == places
        model = StallModel.STALL_AND_TERMINATE if places else StallModel.TERMINATE_ONLY
        assert (idr0.stall_model, idr0.term_model) == (model, 1)


def test_a_stalled_access_goes_on_when_its_guest_says_so(guest: Guest) -> None:
    request = fault(guest)
    assert not request.done
    (record,) = told(guest)
    assert (record.name, record.sid, record.stall) == ("F_TRANSLATION", 0, 1)
    guest.map(0, 0x9000, BUFFER)
    guest.put(CmdResume.build(sid=0, stag=record.stag, ac=1), SYNC)
    assert request.done
    assert request.ok
    assert held(guest.world) == 0


@pytest.mark.parametrize("ab", [0, 1])
def test_an_access_that_is_not_tried_again_aborts(guest: Guest, ab: int) -> None:
    """IDR0.TERM_MODEL is 1, also where the SMMU could do RAZ/WI."""
    request = fault(guest)
    (record,) = told(guest)
    guest.put(CmdResume.build(sid=0, stag=record.stag, ab=ab), SYNC)
    assert [outcome.status for outcome in request.outcomes] == ["fault"]
    assert held(guest.world) == 0


def test_only_the_owner_of_a_stag_can_use_it(machine: World, guest: Guest) -> None:
    """Every STAG of the other guest, every StreamID of one's own: nothing moves."""
    other = stalling(machine["o"])
    request, mine = fault(other), fault(guest)
    (theirs,) = told(other)
    (record,) = told(guest)
    for stag in {theirs.stag, record.stag + 1, 0xFFFF} - {record.stag}:
        for sid in (0, 1, 2, 0x700):
            guest.put(CmdResume.build(sid=sid, stag=stag, ac=0, ab=1))
    guest.put(CmdStallTerm.build(sid=0x700), CmdStallTerm.build(sid=0x600), SYNC)
    assert error(guest) == (Cerror.NONE, False)
    assert not request.done
    assert not mine.done
    assert held(machine) == 2


def test_a_stag_belongs_to_one_stream_of_the_guest(guest: Guest) -> None:
    request = fault(guest, 1)
    (record,) = told(guest)
    guest.put(CmdResume.build(sid=0, stag=record.stag, ab=1), SYNC)
    assert not request.done
    guest.put(CmdResume.build(sid=1, stag=record.stag, ab=1), SYNC)
    assert request.done


def test_a_replayed_resume_does_not_touch_the_next_stall(guest: Guest) -> None:
    """The SMMU may give the same STAG again; the guest is given another."""
    fault(guest)
    (first,) = told(guest)
    guest.put(CmdResume.build(sid=0, stag=first.stag, ab=1), SYNC)
    guest.world.smmus["a"].stalls._next_stag = 0
    request = fault(guest, 0, 0xA000)
    (second,) = told(guest)
    assert second.stag != first.stag
    guest.put(*[CmdResume.build(sid=0, stag=first.stag, ab=1)] * 5, SYNC)
    assert not request.done
    guest.put(CmdResume.build(sid=0, stag=second.stag, ab=1), SYNC)
    assert request.done


def test_a_stag_that_the_guest_was_not_told_yet_is_not_its_to_use(guest: Guest) -> None:
    guest.quiet()
    fill(guest)
    request = fault(guest)
    before = len(guest.vsmmu.stalls)
    guest.put(*[CmdResume.build(sid=0, stag=stag, ab=1) for stag in range(8)])
    assert (before, request.done) == (1, False)


def test_stall_term_ends_what_its_stream_holds(guest: Guest) -> None:
    first, second = fault(guest, 0), fault(guest, 1)
    guest.ste(0, Ste.build(v=1, config=SteConfig.ABORT))
    guest.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC, CmdStallTerm.build(sid=0), SYNC)
    assert first.done
    assert not second.done
    assert len(guest.vsmmu.stalls) == 1


@pytest.mark.parametrize("command", [CmdResume.build(sid=0), CmdStallTerm.build(sid=0)])
def test_they_are_illegal_where_stalls_are_not_offered(command: Command) -> None:
    g = world(Policy())["g"].boot()
    g.quiet()
    before = g.read("CMDQ_CONS") & 0xFFFFF
    g.put(command, SYNC)
    assert error(g) == (Cerror.ILL, True)
    assert CmdqCons(g.read("CMDQ_CONS")).rd == before
    g.memory.write_words(g.driver._cmdq.address(before), SYNC.words)
    g.write("GERRORN", g.read("GERROR"))
    assert CmdqCons(g.read("CMDQ_CONS")).rd == CmdqCons(g.read("CMDQ_PROD")).rd


def test_a_secure_streamid_is_illegal(guest: Guest) -> None:
    guest.quiet()
    guest.put(CmdResume.build(sid=0, ssec=1))
    assert error(guest) == (Cerror.ILL, True)


def test_nothing_stalls_where_it_is_not_offered() -> None:
    """S1STALLD is set: CD.S=1 makes the CD ILLEGAL, as it is for that vSMMU."""
    g = stalling(world(Policy())["g"])
    request = fault(g)
    assert request.done
    assert [(record.name, record.sid) for record in told(g)] == [("C_BAD_CD", 0)]


def test_the_guest_can_forbid_a_stream_to_stall(guest: Guest) -> None:
    words = guest.memory.read_words(guest.driver.ste_address(0), Ste.dwords)
    assert words is not None
    guest.ste(0, Ste(words).replace(s1stalld=1))
    guest.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC)
    assert fault(guest).done
    assert [record.name for record in told(guest)] == ["C_BAD_CD"]


def test_past_its_share_a_guests_access_is_terminated(machine: World, guest: Guest) -> None:
    """Its record says so; the other guest's places are free."""
    requests = [fault(guest, vmaster_id) for vmaster_id in range(3)]
    assert [request.done for request in requests] == [False, False, True]
    assert [(r.sid, r.stall) for r in told(guest)] == [(0, 1), (1, 1), (2, 0)]
    other = stalling(machine["o"])
    fault(other)
    assert [record.stall for record in told(other)] == [1]
    assert held(machine) == 3


def fill(guest: Guest) -> None:
    """Leave the guest's event queue full."""
    cons = guest.read("EVENTQ_CONS")
    guest.write("CR0", Cr0(guest.read("CR0")).replace(eventqen=0).raw)
    guest.write("EVENTQ_PROD", guest.driver._eventq.advance(cons, guest.driver._eventq.size))
    guest.write("CR0", Cr0(guest.read("CR0")).replace(eventqen=1).raw)


def test_a_record_waits_while_the_queue_is_full(guest: Guest) -> None:
    """It is no overflow (§3.5.3); it comes when there is room."""
    guest.quiet()
    fill(guest)
    request = fault(guest)
    assert not request.done
    assert guest.read("EVENTQ_PROD") >> 31 == 0
    prod = guest.read("EVENTQ_PROD")
    guest.write("EVENTQ_CONS", prod)
    assert guest.read("EVENTQ_PROD") == guest.driver._eventq.advance(prod)
    words = guest.memory.read_words(guest.driver._eventq.address(prod), 4)
    assert words is not None
    assert FTranslation(words).stall == 1


def test_a_sync_has_what_cannot_be_told_tried_again(guest: Guest) -> None:
    guest.quiet()
    fill(guest)
    request = fault(guest)
    guest.map(0, 0x9000, BUFFER)
    guest.put(SYNC)
    assert request.ok
    assert held(guest.world) == len(guest.vsmmu.stalls) == 0


@pytest.mark.parametrize("before", [False, True])
def test_what_cannot_be_told_is_terminated(guest: Guest, before: bool) -> None:
    """EVENTQEN=0, set before the fault or while its record waits."""
    guest.quiet()
    if not before:
        fill(guest)
        request = fault(guest)
        assert not request.done
    guest.write("CR0", Cr0(guest.read("CR0")).replace(eventqen=0).raw)
    if before:
        request = fault(guest)
    assert request.done
    assert held(guest.world) == 0
    assert guest.vsmmu.counters["stall terminated"] == 1


def test_a_queue_that_aborts_terminates(guest: Guest) -> None:
    guest.quiet()
    guest.write("CR0", Cr0(guest.read("CR0")).replace(eventqen=0).raw)
    guest.write("EVENTQ_BASE", 0x3900_0000 | 7)
    guest.write("CR0", Cr0(guest.read("CR0")).replace(eventqen=1).raw)
    assert [fault(guest, vmaster_id).done for vmaster_id in (0, 1)] == [True, True]
    assert held(guest.world) == 0


@pytest.mark.parametrize("abort", [0, 1])
def test_smmuen_0_terminates_before_it_is_acknowledged(guest: Guest, abort: int) -> None:
    requests = [fault(guest, vmaster_id) for vmaster_id in (0, 1)]
    if abort:
        guest.write("GBPA", 1 << 20 | 1 << 31)
    guest.write("CR0", Cr0(guest.read("CR0")).replace(smmuen=0).raw, rest=False)
    while Cr0(guest.read("CR0ACK")).smmuen:
        guest.world.scheduler.step()
    assert held(guest.world) == 0
    assert guest.world.scheduler.run_until_idle()
    assert [r.outcomes[0].status for r in requests] == ["fault", "fault"]


def test_a_stream_that_is_taken_back_holds_no_place(machine: World, guest: Guest) -> None:
    request = fault(guest)
    (record,) = told(guest)
    stream = guest.vsmmu.streams[0]
    machine.hypervisor.deassign(guest.vsmmu, stream)
    assert request.done or machine.scheduler.run_until_idle()
    assert request.done
    assert held(machine) == len(guest.vsmmu.stalls) == 0
    other = stalling(machine["o"])
    machine.hypervisor.assign(other.vsmmu, 1, "a", 0x600)
    guest.put(CmdResume.build(sid=0, stag=record.stag, ac=1), SYNC)
    assert error(guest) == (Cerror.NONE, False)


def test_a_stall_that_nobody_owns_is_terminated(machine: World, guest: Guest) -> None:
    """A record of a stream that has no owner any more, as it may wait in the physical queue."""
    request = fault(guest)
    told(guest)
    stream = guest.vsmmu.streams[0]
    (event,) = (item.event for item in machine.smmus["a"].stalls._tagged.values())
    del machine.hypervisor._owner["a", stream.pmaster_id]
    machine.hypervisor.reports.event(stream.host, event)
    assert machine.scheduler.run_until_idle()
    assert request.done


def test_equal_stags_of_two_smmus_stay_two() -> None:
    machine = world(g=[("a", 0x600), ("b", 0x600)])
    g = stalling(machine["g"])
    requests = [fault(g, 0), fault(g, 1)]
    first, second = told(g)
    assert first.stag != second.stag
    g.put(CmdResume.build(sid=second.sid, stag=second.stag, ab=1), SYNC)
    assert [request.done for request in requests] == [False, True]
    assert (held(machine, "a"), held(machine, "b")) == (1, 0)


@pytest.mark.parametrize("seed", range(1, 9))
def test_in_any_order_no_place_is_lost(seed: int) -> None:
    """Faults, answers good and bad, SMMUEN toggled, queue toggled: all ends with nothing held."""
    machine = World(
        {"g": [("a", 0x600), ("a", 0x601)], "o": [("a", 0x700)]},
        seed=seed, policy=POLICY, features=SMMU,
    )  # fmt: skip
    g, o = stalling(machine["g"]), stalling(machine["o"])
    ports: list[DevicePort] = [*g.ports, *o.ports]
    for turn in range(6):
        for port in ports:
            port.read(0x9000 + 0x1000 * turn, 8)
        machine.scheduler.run(40 * seed)
        for guest in (g, o):
            answers = [CmdResume.build(sid=turn % 2, stag=stag, ac=stag & 1) for stag in range(6)]
            guest.put(*answers, CmdStallTerm.build(sid=turn % 3), SYNC)
        if turn % 2:
            g.write("CR0", Cr0(g.read("CR0")).replace(smmuen=turn >> 1 & 1).raw, rest=False)
    for guest in (g, o):
        guest.write("CR0", Cr0(guest.read("CR0")).replace(smmuen=0).raw)
    assert machine.scheduler.run_until_idle()
    assert not any(port.pending for port in ports)
    assert machine.smmus["a"].counters["stall.held"] > 6
    assert held(machine) == len(g.vsmmu.stalls) == len(o.vsmmu.stalls) == 0


def test_a_stag_that_comes_again_stands_for_the_later_access(guest: Guest) -> None:
    """An SMMU gives a STAG out again only when the transaction that had it is over (§3.12.2)."""
    fault(guest)
    (record,) = told(guest)
    stalls, stream = guest.vsmmu.stalls, guest.vsmmu.streams[0]
    (had,) = stalls._held.values()
    stalls.take(stream, record, had.pstag)
    (has,) = stalls._held.values()
    assert has is not had
    assert has.event.stag != record.stag
    assert not has.told


def test_a_sync_tells_what_can_be_told(guest: Guest) -> None:
    """A record that nobody had a turn to write yet is written, not tried again."""
    guest.quiet()
    fault(guest)
    stalls, stream = guest.vsmmu.stalls, guest.vsmmu.streams[1]
    (held_before,) = stalls._held.values()
    stalls.take(stream, held_before.event, held_before.pstag + 1)
    stalls.synchronise()
    assert [one.told for one in stalls._held.values()] == [True, True]
    assert guest.vsmmu.counters["stall retried"] == 0
