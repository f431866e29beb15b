# SPDX-License-Identifier: BSD-2-Clause
"""Guests whose SMMU has less than the one in front of their device: events, and what is sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdSync, CmdTlbiNhAsid, CmdTlbiNhVa
from vsmmu.arch.events import (
    CBadSubstreamid,
    Event,
    EventClass,
    FAddrSize,
    FCdFetch,
    FTlbConflict,
    FTranslation,
)
from vsmmu.arch.stream_table import S1Dss, S1Fmt, Ste, SteConfig
from vsmmu.hypervisor.events import Kept, missing_cd, to_guest
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features
from vsmmu.testing.machine import Machine

from .attack import sent
from .world import BUFFER, NOWHERE, Guest, World

CFGI, SYNC = CmdCfgiSte.build(sid=0, leaf=1), CmdSync.build()
# By its OAS, an SMMU that has substreams.
WITH = {
    48: Features.default(sidsize=16).replace(ssidsize=8, cd2l=1),
    52: Features.everything().replace(sidsize=16),
}
NARROW = Features.default(sidsize=16).replace(asid16=0)


@pytest.fixture
def guest() -> Guest:
    """With substreams, and 48 bits of address behind an SMMU of 52."""
    return with_substreams(WITH[52])


def with_substreams(hardware: Features) -> Guest:
    """Attached."""
    g = World({"g": [("a", 0x600)]}, features=hardware, policy=Policy(substreams=True))["g"].boot()
    assert g.vsmmu.features.oas == 48
    g.attach(0)
    return g


def two_level(guest: Guest) -> None:
    """Two levels of CDs from BUFFER on."""
    fields = {"config": SteConfig.S1, "s1ctxptr": BUFFER, "s1fmt": S1Fmt.TWO_LEVEL_4K}
    configure(guest, **fields, s1cdmax=6, s1dss=S1Dss.SSID0)


def configure(guest: Guest, **fields: int) -> None:
    guest.ste(0, Ste.build(v=1, **fields))
    guest.put(CFGI, SYNC)


def access(guest: Guest, iova: int, ssid: int | None = None) -> list[Event]:
    """The records of a read that fails."""
    guest.driver.events.clear()
    request = guest.ports[0].read(iova, 4, ssid=ssid)
    assert guest.world.scheduler.run_until_idle()
    assert request.done
    assert not request.ok
    return guest.driver.events


def in_bypass(guest: Guest, how: str) -> None:
    if how == "Config":
        configure(guest, config=SteConfig.BYPASS)
    else:
        cd = guest.driver.contexts[0].cd
        configure(guest, config=SteConfig.S1, s1ctxptr=cd, s1cdmax=1, s1dss=S1Dss.BYPASS)


@pytest.mark.parametrize("how", ["Config", "S1DSS"])
def test_an_access_past_stage_1_beyond_the_guests_oas(guest: Guest, how: str) -> None:
    """§3.4.3: F_ADDR_SIZE by the OAS of the guest, where hardware has a stage 2 fault."""
    in_bypass(guest, how)
    for iova in (1 << 48, 1 << 51, 1 << 52):
        (event,) = access(guest, iova)
        assert (event.name, event.s2, event.cls, event.inputaddr) == ("F_ADDR_SIZE", 0, 2, iova)
    assert access(guest, 1 << 47) == []
    assert guest.dma(0, BUFFER, b"x").ok


def test_an_access_that_stage_1_translates_is_not_measured(guest: Guest) -> None:
    (event,) = access(guest, 1 << 49)
    assert event.name == "F_TRANSLATION"
    # An access with a SubstreamID, where those without pass: the fault is that of its output.
    in_bypass(guest, "S1DSS")
    fields = {"sid": 0x600, "s2": 1, "cls": EventClass.IN, "inputaddr": 0xFFFF << 48}
    stream = guest.vsmmu.streams[0]
    kept = to_guest(FTranslation.build(**fields, ssv=1, ssid=1), stream, guest.domain)
    assert isinstance(kept, Kept)
    told = to_guest(FTranslation.build(**fields), stream, guest.domain)
    assert isinstance(told, FAddrSize)


@pytest.mark.parametrize("oas", [48, 52])
@pytest.mark.parametrize("bit", [48, 51])
def test_a_level_1_cd_that_points_beyond_the_guests_oas(oas: int, bit: int) -> None:
    """§5.5: C_BAD_SUBSTREAMID with the index of the CD, where hardware has a stage 2 fault."""
    guest = with_substreams(WITH[oas])
    for page in (0, NOWHERE, BUFFER):
        guest.memory.write64(BUFFER, 1 << bit | page | 1)
        two_level(guest)
        for ssid, index in ((None, 0), (5, 5)):
            (event,) = access(guest, 0x10000, ssid)
            assert (event.name, event.ssid, event.sid) == ("C_BAD_SUBSTREAMID", index, 0)


def test_a_level_1_cd_that_has_changed_since_is_the_cd_that_was_recorded() -> None:
    guest = with_substreams(WITH[48])
    guest.memory.write64(BUFFER, NOWHERE | 1)
    two_level(guest)
    stream = guest.vsmmu.streams[0]
    record = FCdFetch.build(sid=0, ssv=1, ssid=5, fetchaddr=NOWHERE | 5 * 64)
    for word, same in (
        (NOWHERE | 1, True), (0, True), (1 << 48 | NOWHERE + 0x1000 | 1, True),
        (1 << 48 | NOWHERE | 1, False),
    ):  # fmt: skip
        guest.memory.write64(BUFFER, word)
        told = missing_cd(record, stream, guest.domain.memory)
        assert told == (record if same else CBadSubstreamid.build(sid=0, ssid=5)), hex(word)
    guest.vsmmu.streams[0].s1ctxptr = NOWHERE
    assert missing_cd(record, stream, guest.domain.memory) == record


def test_a_table_of_cds_that_is_not_aligned(guest: Guest) -> None:
    """§5.2: it begins at a multiple of its size, and FetchAddr is in there."""
    configure(guest, config=SteConfig.S1, s1ctxptr=NOWHERE, s1cdmax=20, s1dss=S1Dss.SSID0)
    (event,) = access(guest, 0x10000, 3)
    assert (event.name, event.fetchaddr) == ("F_CD_FETCH", (NOWHERE & -(64 << 20)) + 3 * 64)


def test_a_tlb_conflict_of_stage_1_is_the_guests(guest: Guest) -> None:
    """§7.3.17: its own tables made it; nothing of the stage 2 one is told."""
    stream = guest.vsmmu.streams[0]
    record = FTlbConflict.build(sid=0x600, rnw=1, inputaddr=0x5000, ipa=0x8000_0000, reason=3)
    told = FTlbConflict.build(sid=0, rnw=1, inputaddr=0x5000)
    assert to_guest(record, stream, guest.domain) == told
    assert isinstance(to_guest(record.replace(s2=1), stream, guest.domain), Kept)


@pytest.mark.parametrize("other", [NARROW, Features.default(sidsize=16)])
def test_an_asid_has_the_bits_of_the_smmu_it_is_sent_to(other: Features) -> None:
    """§4.4: ASID[15:8] are reserved where IDR0.ASID16 is 0, and reserved bits are not passed on."""
    machine = Machine({"g": [("a", 0x600), ("b", 0x600)]}, smmus={"a": NARROW, "b": other})
    guest = machine["g"].boot()
    vmid = guest.domain.vmid
    seen = {path: sent(SimpleNamespace(world=machine), path) for path in machine.smmus}
    guest.issue(CmdTlbiNhAsid.build(asid=0x1234), CmdTlbiNhVa.build(asid=0x1234, addr=0x1000))
    for path, has in (("a", NARROW), ("b", other)):
        asid = 0x1234 if has.idr0.asid16 else 0x34
        assert CmdTlbiNhAsid.build(vmid=vmid, asid=asid) in seen[path]
        assert CmdTlbiNhVa.build(vmid=vmid, asid=asid, addr=0x1000) in seen[path]
