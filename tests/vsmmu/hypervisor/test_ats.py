# SPDX-License-Identifier: BSD-2-Clause
"""ATS of guests: split-stage on the SMMU, CMD_ATC_INV to the guest's own devices, timeouts."""

from __future__ import annotations

from typing import cast

import pytest

from vsmmu.arch.commands import ATC_INV_ALL, CmdAtcInv, CmdCfgiSte, CmdSync, CmdTlbiNhAll
from vsmmu.arch.registers import Cerror, CmdqCons, Cr0, Gerror, Idr0
from vsmmu.arch.stream_table import Eats, Ste, SteConfig
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.ats import AtsPort, Status, TranslationRequest
from vsmmu.smmu.features import Features
from vsmmu.smmu.transaction import Access

from .world import BUFFER, MACHINE, RAM, Guest, World

SMMU = Features.default(sidsize=16).replace(ats=1)
POLICY = Policy(ats=True)
SYNC = CmdSync.build(cs=0)
ALL = CmdAtcInv.build(sid=0, size_lg2=ATC_INV_ALL)
CMDQ_ERR = Gerror.mask("cmdq_err")[0]
STREAMS = {"g": [("a", 0x600), ("a", 0x601)], "o": [("a", 0x700)]}


def device(guest: Guest, vmaster_id: int) -> AtsPort:
    return cast("AtsPort", guest.ports[vmaster_id])


def with_ats(guest: Guest) -> Guest:
    """Booted, its devices have ATCs, STE.EATS is FULL, BUFFER is mapped at 0x10000."""
    guest.boot()
    for vmaster_id, port in enumerate(guest.ports):
        guest.ports[vmaster_id] = AtsPort(port.name, port.smmu, port.sid)
        guest.world.scheduler.add(guest.ports[vmaster_id])
        guest.attach(vmaster_id)
        guest.map(vmaster_id, 0x10000, BUFFER)
        set_eats(guest, vmaster_id, Eats.FULL)
    guest.write("CR0", Cr0(guest.read("CR0")).replace(atschk=1).raw)
    return guest


def set_eats(guest: Guest, vmaster_id: int, eats: Eats) -> None:
    words = guest.memory.read_words(guest.driver.ste_address(vmaster_id), Ste.dwords)
    assert words is not None
    guest.ste(vmaster_id, Ste(words).replace(eats=eats))
    guest.put(CmdCfgiSte.build(sid=vmaster_id, leaf=1), SYNC)


@pytest.fixture
def machine() -> World:
    return World(STREAMS, policy=POLICY, features=SMMU)


@pytest.fixture
def guest(machine: World) -> Guest:
    return with_ats(machine["g"])


def consumed(guest: Guest) -> bool:
    return CmdqCons(guest.read("CMDQ_CONS")).rd == CmdqCons(guest.read("CMDQ_PROD")).rd


def error(guest: Guest) -> tuple[int, bool]:
    """CMDQ_CONS.ERR and whether CMDQ_ERR is active."""
    active = guest.read("GERROR") ^ guest.read("GERRORN")
    return CmdqCons(guest.read("CMDQ_CONS")).err, bool(active & CMDQ_ERR)


def physical(machine: World, sid: int) -> Ste:
    return machine.hypervisor.hosts["a"].read_ste(sid)


def test_it_is_offered_where_the_smmu_checks_what_was_translated() -> None:
    """Without split-stage ATS a device would hold machine addresses, and is not offered any."""
    for fields, policy, offered in (
        ({"ats": 1}, POLICY, 1), ({"ats": 1}, Policy(), 0), ({"ats": 1, "ns1ats": 1}, POLICY, 0),
        ({}, POLICY, 0),
    ):  # fmt: skip
        smmu = Features.default(sidsize=16).replace(**fields)
        g = World({"g": [("a", 1)]}, policy=policy, features=smmu)["g"]
        assert Idr0(g.read("IDR0")).ats == offered


def test_a_device_is_given_guest_addresses(machine: World, guest: Guest) -> None:
    """The guest asks for full ATS; hardware has split-stage ATS, and stage 2 checks again."""
    ste = physical(machine, 0x600)
    assert (ste.config, ste.eats) == (SteConfig.NESTED, Eats.SPLIT)
    found = machine.smmus["a"].ats.request(TranslationRequest(0x600, 0x10000))
    assert (found.status, found.address, found.read, found.write) == (0, BUFFER, True, True)
    assert guest.dma(0, 0x10000, b"by way of an ATC").ok
    assert guest.memory.read(BUFFER, 16) == b"by way of an ATC"
    assert len(device(guest, 0).atc) == 1


def test_what_a_device_makes_up_meets_stage_2(machine: World, guest: Guest) -> None:
    """A Translated transaction with a machine address, or any other, stays in the guest's RAM."""
    smmu, theirs = machine.smmus["a"], machine["o"].domain.owned
    for address in (MACHINE, next(iter(theirs))[0], RAM - 0x1000, 1 << 51):
        for write in (False, True):
            outcome = smmu.translated(Access(0x600, address, write))
            assert outcome.pa is None, hex(address)
    assert smmu.translated(Access(0x600, BUFFER, True)).pa == guest.domain.stage2.to_pa(BUFFER)


def test_atc_inv_empties_the_atc_of_the_guests_own_device(guest: Guest) -> None:
    for vmaster_id in (0, 1):
        guest.dma(vmaster_id, 0x10000, b"x")
    guest.put(ALL, SYNC)
    assert [len(device(guest, i).atc) for i in (0, 1)] == [0, 1]
    guest.put(CmdAtcInv.build(sid=1, addr=0x20000), SYNC)
    assert len(device(guest, 1).atc) == 1
    guest.put(CmdAtcInv.build(sid=1, addr=0x10000), SYNC)
    assert len(device(guest, 1).atc) == 0


def test_a_stale_atc_reaches_the_guests_memory_alone(machine: World, guest: Guest) -> None:
    """Without CMD_ATC_INV the device goes on with what it has; it is an address of the guest's."""
    guest.dma(0, 0x10000, b"x")
    guest.run(guest.driver.unmap(0, 0x10000, 0x1000))
    request = guest.dma(0, 0x10000, b"late")
    assert request.ok
    assert request.outcomes[0].pa == guest.domain.stage2.to_pa(BUFFER)
    guest.put(CmdTlbiNhAll.build(), SYNC, ALL, SYNC)
    assert not guest.dma(0, 0x10000, b"later").ok


def test_foreign_streams_are_not_invalidated(machine: World, guest: Guest) -> None:
    other = with_ats(machine["o"])
    other.dma(0, 0x10000, b"x")
    for sid in (2, 0x600, 0x700, 0xFFFF_FFFF):
        guest.put(CmdAtcInv.build(sid=sid, size_lg2=ATC_INV_ALL))
    guest.put(SYNC)
    assert len(device(other, 0).atc) == 1
    assert error(guest) == (Cerror.NONE, False)
    assert machine.smmus["a"].counters["ats.invalidate"] == 0


@pytest.mark.parametrize("bad", [{"size_lg2": ATC_INV_ALL + 1}, {"size_lg2": 63}, {"ssec": 1}])
def test_illegal_ones_stop_the_guests_queue_on_them(guest: Guest, bad: dict[str, int]) -> None:
    """And it goes on from there once the guest has repaired and acknowledged it."""
    guest.quiet()
    at = guest.read("CMDQ_CONS") & 0xFFFFF
    guest.put(CmdAtcInv.build(sid=0, **bad), SYNC)
    assert error(guest) == (Cerror.ILL, True)
    assert CmdqCons(guest.read("CMDQ_CONS")).rd == at
    guest.memory.write_words(guest.driver._cmdq.address(at), SYNC.words)
    guest.write("GERRORN", guest.read("GERROR"))
    assert consumed(guest)


def test_it_is_illegal_where_ats_is_not_offered() -> None:
    g = World(STREAMS, features=SMMU)["g"].boot()
    g.quiet()
    g.put(ALL)
    assert error(g) == (Cerror.ILL, True)


def test_eats_is_suppressed_where_ats_is_not_offered() -> None:
    machine = World(STREAMS, features=SMMU)
    g = machine["g"].boot()
    g.attach(0)
    set_eats(g, 0, Eats.FULL)
    ste = physical(machine, 0x600)
    assert (ste.v, ste.config, ste.eats) == (1, SteConfig.NESTED, Eats.NONE)
    assert machine.smmus["a"].ats.request(TranslationRequest(0x600, 0x10000)).status == Status.UR


def test_a_device_that_says_translated_is_checked_without_ats_too() -> None:
    """Hardware has ATS, the guest is offered none: no address that a device makes up passes."""
    machine = World(STREAMS, features=SMMU)
    g = machine["g"].boot()
    for state in ("off", "bypass", "attached"):
        if state == "bypass":
            g.run(g.driver.bypass(0))
        elif state == "attached":
            g.attach(0)
        for address in (MACHINE, next(iter(machine["o"].domain.owned))[0]):
            outcome = machine.smmus["a"].translated(Access(0x600, address, True))
            assert (outcome.status, outcome.pa) == ("fault", None), state
        assert machine.scheduler.run_until_idle()
    assert g.events() == []


def test_split_stage_ats_is_not_the_guests_to_ask_for(machine: World, guest: Guest) -> None:
    """Its SMMU has one stage: the STE is ILLEGAL (§5.2)."""
    set_eats(guest, 0, Eats.SPLIT)
    assert not physical(machine, 0x600).v
    assert not guest.dma(0, 0x10000, b"x").ok


def test_ats_comes_and_goes_without_an_invalid_ste(machine: World, guest: Guest) -> None:
    """Bypass to stage 1 with ATS and back: no state in between aborts."""
    host, seen = machine.hypervisor.hosts["a"], []
    write = machine.memory.write64
    address = host.table.address(0x600)

    def watch(pa: int, value: int) -> bool:
        done = write(pa, value)
        if address <= pa < address + 64:
            seen.append(host.read_ste(0x600))
        return done

    machine.memory.write64 = watch  # type: ignore[method-assign]
    ste = Ste(cast("tuple[int, ...]", guest.memory.read_words(guest.driver.ste_address(0), 8)))
    for state in (Ste.build(v=1, config=SteConfig.BYPASS), ste):
        guest.ste(0, state)
        guest.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC)
    assert physical(machine, 0x600).eats == Eats.SPLIT
    assert len(seen) > 4
    assert all(state.v and state.config & SteConfig.S2 == SteConfig.S2 for state in seen)
    # Split-stage ATS is legal with both stages alone.
    assert all(state.eats == 0 or state.config == SteConfig.NESTED for state in seen)


def test_a_request_that_is_not_allowed_is_the_guests_event(machine: World, guest: Guest) -> None:
    smmu = machine.smmus["a"]
    set_eats(guest, 1, Eats.NONE)
    guest.events()
    assert smmu.ats.request(TranslationRequest(0x601, 0x10000)).status == Status.UR
    smmu.translated(Access(0x601, BUFFER, False))
    assert machine.scheduler.run_until_idle()
    assert guest.events() == [("F_BAD_ATS_TREQ", 1), ("F_TRANSL_FORBIDDEN", 1)]
    guest.write("CR0", Cr0(guest.read("CR0")).replace(atschk=0).raw)
    smmu.translated(Access(0x601, BUFFER, False))
    assert machine.scheduler.run_until_idle()
    assert guest.events() == []


def test_a_timeout_is_the_fault_of_the_guest_that_asked(machine: World, guest: Guest) -> None:
    """CERROR_ATC_INV_SYNC with CONS on its CMD_SYNC; the physical queue goes on for the other."""
    other = with_ats(machine["o"])
    for g in (guest, other):
        g.quiet()
        g.dma(0, 0x10000, b"x")
    device(guest, 0).silent = True
    at = guest.driver._cmdq.advance(guest.read("CMDQ_CONS") & 0xFFFFF, 2)
    guest.put(ALL, CmdAtcInv.build(sid=1, size_lg2=ATC_INV_ALL), SYNC, CmdTlbiNhAll.build(), SYNC)
    other.put(ALL, SYNC)
    assert error(guest) == (Cerror.ATC_INV_SYNC, True)
    assert CmdqCons(guest.read("CMDQ_CONS")).rd == at
    assert error(other) == (Cerror.NONE, False)
    assert consumed(other)
    assert len(device(other, 0).atc) == 0
    # Acknowledged, the CMD_SYNC is taken again and completes.
    guest.write("GERRORN", guest.read("GERROR"))
    assert error(guest)[1] is False
    assert consumed(guest)
    assert machine.hypervisor.hosts["a"].counters["CERROR_ATC_INV_SYNC"] == 1


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_timeout_among_many_batches_is_nobody_elses(seed: int) -> None:
    machine = World(STREAMS, seed=seed, policy=POLICY, features=SMMU)
    g, o = with_ats(machine["g"]), with_ats(machine["o"])
    for guest in (g, o):
        guest.quiet()
    device(g, 0).silent = True
    for turn in range(8):
        for guest in (g, o):
            prod = guest.read("CMDQ_PROD")
            more = [CmdAtcInv.build(sid=0, addr=turn << 12), *[CmdTlbiNhAll.build()] * turn, SYNC]
            for command in more:
                guest.memory.write_words(guest.driver._cmdq.address(prod), command.words)
                prod = guest.driver._cmdq.advance(prod)
            guest.write("CMDQ_PROD", prod, rest=False)
    for _ in range(8):
        assert machine.scheduler.run_until_idle()
        assert error(o) == (Cerror.NONE, False)
        assert error(g) == (Cerror.ATC_INV_SYNC, True)
        g.write("GERRORN", g.read("GERROR"))
    assert consumed(g)
    assert consumed(o)
    assert error(g)[1] is False


def test_the_next_owner_of_a_device_finds_its_atc_empty(machine: World, guest: Guest) -> None:
    guest.dma(0, 0x10000, b"x")
    port = device(guest, 0)
    assert len(port.atc) == 1
    machine.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[0])
    assert len(port.atc) == 0


def test_a_device_that_answers_nothing_can_be_taken_back(machine: World, guest: Guest) -> None:
    device(guest, 0).silent = True
    machine.hypervisor.deassign(guest.vsmmu, guest.vsmmu.streams[0])
    assert machine.hypervisor.owner("a", 0x600) is None
    guest.put(SYNC)
    assert error(guest) == (Cerror.NONE, False)


def test_atc_inv_is_ignored_with_smmuen_0(machine: World, guest: Guest) -> None:
    guest.dma(0, 0x10000, b"x")
    guest.write("CR0", Cr0(guest.read("CR0")).replace(smmuen=0).raw)
    guest.put(ALL, SYNC)
    assert machine.smmus["a"].counters["ats.invalidate"] == 0
    assert consumed(guest)
