# SPDX-License-Identifier: BSD-2-Clause
"""What drivers do that no sample shows, on the physical model and through a guest's vSMMU."""

from __future__ import annotations

import pytest

from tests.vsmmu.recording import tape as tapes
from tests.vsmmu.recording.tape import HEAP, LEVEL2, PAGE, STRTAB, Driver, Tape, play
from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiSte,
    CmdSync,
    CmdTlbiEl2All,
    CmdTlbiEl2Asid,
    Command,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.events import CBadStreamid, decode
from vsmmu.arch.pagetable import S1Leaf
from vsmmu.arch.registers import Idr0, Idr1, Idr5
from vsmmu.arch.stream_table import L1Std, S1Dss, Ste, SteConfig, Strw
from vsmmu.recording.both import Both
from vsmmu.recording.divergence import Divergence
from vsmmu.recording.format import Dma, EventRecord, Read, Record, Status
from vsmmu.recording.guest import Guest
from vsmmu.recording.guest_machine import Choice, RefusedError
from vsmmu.recording.physical import Physical
from vsmmu.smmu.features import Features

GUESTS = ("domU", "dom0")
LARGE = 0x1_0000
IOVA, PLACE = 0x10_0000, 0x4080_0000


def physical(records: list[Record]) -> dict[str, Divergence | None]:
    """What differs, by what the SMMU keeps."""
    targets = {"both": Both(), **{one: Physical(one) for one in ("none", "normal", "hostile")}}
    return {name: play(records, target).divergence for name, target in targets.items()}


def through(records: list[Record], guest: str = "domU") -> Divergence | None:
    sids = {record.sid for record in records if type(record) is Dma}
    return play(records, Guest(Choice(guest=guest), sids)).divergence


def agrees(records: list[Record]) -> None:
    assert not any(physical(records).values())
    for guest in GUESTS:
        assert through(records, guest) is None


def booted(ids: dict[str, int]) -> tuple[Tape, Driver]:
    tape = Tape(ids)
    driver = Driver(tape)
    driver.boot()
    return tape, driver


def with_features(**fields: int) -> dict[str, int]:
    return Features.default(sidsize=16, oas=44, aidr=1).replace(**fields).ids


def test_a_stream_with_substreams_whose_other_accesses_bypass() -> None:
    """Linux gives an identity domain such an STE where the device has PASIDs."""
    tape, driver = booted(with_features(ssidsize=8, cd2l=1))
    driver.attach(8, 1)
    driver.map(1, IOVA, PLACE)
    for dss in (S1Dss.BYPASS, S1Dss.SSID0):
        ste = Ste.build(v=1, config=SteConfig.S1, s1ctxptr=HEAP + PAGE, s1cdmax=4, s1dss=dss)
        driver.structure(LEVEL2 + 8 * Ste.size, ste, CmdCfgiSte.build(sid=8, leaf=1))
        ended = tape.dma(8, IOVA, write=True)
        assert ended.status == (Status.BYPASS if dss == S1Dss.BYPASS else Status.OK)
    agrees(tape.records)


def test_a_driver_at_el2_is_refused() -> None:
    """Linux with VHE: CR2.E2H, STRW, and the commands for EL2."""
    tape, driver = booted({"IDR0": Idr0(tapes.IDS["IDR0"]).replace(hyp=1).raw})
    driver.attach(8, 1)
    ste = Ste.build(v=1, config=SteConfig.S1, s1ctxptr=HEAP + PAGE, s1dss=2, strw=Strw.NS_EL2)
    driver.structure(LEVEL2 + 8 * Ste.size, ste, CmdCfgiSte.build(sid=8, leaf=1))
    driver.map(1, IOVA, PLACE)
    tape.dma(8, IOVA)
    driver.send(CmdTlbiEl2Asid.build(asid=1))
    assert not any(physical(tape.records).values())
    for guest in GUESTS:
        with pytest.raises(RefusedError, match=r"uses EL2 \(CMD_TLBI_EL2_ASID\); a vSMMU offers"):
            through(tape.records, guest)


def test_a_command_for_el2_behind_an_error_is_left_out() -> None:
    tape, driver = booted({"IDR0": Idr0(tapes.IDS["IDR0"]).replace(hyp=1).raw})
    illegal = Command((0xFF, 0))
    driver.send(illegal, CmdTlbiEl2All.build())
    bad = next(number for number, one in driver.commands.items() if one == illegal)
    place = tape.records[bad - 1].pa  # type: ignore[union-attr]
    tape.mem(place, *CmdSync.build().words)
    tape.write("GERRORN", 1)
    tape.read("CMDQ_CONS")
    driver.attach(8, 1)
    driver.map(1, IOVA, PLACE)
    tape.dma(8, IOVA)
    for _ in range(1 << driver.log2size):
        driver.send(CmdTlbiEl2All.build())
    agrees(tape.records)


def linked(*stes: Ste) -> Tape:
    """A second-level table that is linked without a command."""
    tape = Tape()
    Driver(tape).boot(tables=False)
    for sid, ste in enumerate(stes, 8):
        tape.mem(LEVEL2 + sid * Ste.size, *ste.words)
    tape.mem(STRTAB, L1Std.build(span=9, l2ptr=LEVEL2).raw)
    return tape


def test_a_table_of_invalid_stes_that_is_linked_without_a_command() -> None:
    tape = linked(Ste(), Ste.build(v=1), Ste.build(v=1, config=SteConfig.S2))
    for sid in (8, 9, 10, 8, 9, 10):
        tape.dma(sid, IOVA)
    names = [decode(one.words).name for one in tape.records if isinstance(one, EventRecord)]
    assert names == ["C_BAD_STE", "C_BAD_STE"] * 2
    agrees(tape.records)


def test_a_table_that_lets_through_and_is_linked_without_a_command() -> None:
    """docs/vsmmu-features.md: the vSMMU learns of it from the first access, which it loses."""
    tape = linked(Ste.build(v=1, config=SteConfig.BYPASS))
    assert tape.dma(8, PLACE).status == Status.BYPASS
    assert not any(physical(tape.records).values())
    for guest in GUESTS:
        found = through(tape.records, guest)
        assert found is not None
        assert (found.recorded, found.model) == ("bypass", "fault")


def test_an_event_before_any_access() -> None:
    tape, _ = booted({})
    event = CBadStreamid.build(sid=8).words
    for at in (7, len(tape.records)):
        words = (event[0], event[1], event[2], event[3])
        records = [*tape.records[:at], EventRecord(words), *tape.records[at:]]
        for found in (*physical(records).values(), through(records)):
            assert found is not None
            assert found.record == at + 1
            assert found.what == "no access"
            assert found.recorded.startswith("C_BAD_STREAMID")
            assert found.model == "none"


def test_dirty_state_that_the_smmu_writes() -> None:
    """CD.HD: the first write to a page makes it writable, and no M record says so (§3.13)."""
    tape, driver = booted(with_features(httu=2))
    driver.attach(8, 1)
    cd = Cd.build(
        v=1, aa64=1, r=1, a=1, aset=1, asid=1, t0sz=16, epd1=1, ips=4, ttb0=driver.roots[1],
        ha=1, hd=1,
    )  # fmt: skip
    driver.structure(HEAP + PAGE, cd, CmdCfgiCd.build(sid=8, leaf=1))
    leaf = S1Leaf.build(valid=1, table=1, ap1=1, ap2=1, sh=3, af=1, ng=1, dbm=1)
    for n in range(4):
        tape.mem(driver.leaf(1, IOVA + n * PAGE), leaf.raw | PLACE + n * PAGE)
    for n in range(4):
        for write in (False, True, False):
            tape.dma(8, IOVA + n * PAGE, write=write)
    agrees(tape.records)


def test_an_output_beyond_what_a_guest_can_have_is_refused() -> None:
    tape, driver = booted(Features.everything().replace(sidsize=16).ids)
    driver.attach(8, 1)
    root = -(-driver.heap // LARGE) * LARGE
    cd = Cd.build(v=1, aa64=1, r=1, a=1, aset=1, asid=1, tg0=1, t0sz=16, epd1=1, ips=6, ttb0=root)
    driver.structure(HEAP + PAGE, cd, CmdCfgiCd.build(sid=8, leaf=1))
    block = S1Leaf.build(valid=1, ap1=1, af=1)
    tape.mem(root, root + LARGE | 3)
    # OA[51:48] are in bits 15:12 of a block of 512 MiB (Arm ARM D8.3.1).
    tape.mem(root + LARGE, block.raw | 3 << 12)
    ended = tape.dma(8, 0x1000)
    assert (ended.status, ended.pa) == (Status.OK, 0x3_0000_0000_1000)
    assert not any(physical(tape.records).values())
    for guest in GUESTS:
        with pytest.raises(RefusedError, match="ends at 0x3000000001000, beyond the 48 bits of a"):
            through(tape.records, guest)


@pytest.mark.parametrize("pa", [0x3FFF_F000, 0x4100_0000, 0x5000_0000, 1 << 43])
def test_a_place_near_ram_is_reached(pa: int) -> None:
    tape = Tape()
    tape.dma(8, pa)
    driver = Driver(tape)
    driver.boot()
    driver.bypass(8)
    tape.dma(8, pa, write=True)
    agrees(tape.records)


def test_an_identification_beyond_the_architecture() -> None:
    """The nearest that is modelled stands in, through a vSMMU as without."""
    tape, driver = booted({})
    driver.attach(8, 1)
    driver.map(1, IOVA, PLACE)
    tape.dma(8, IOVA)
    odd = {
        0x0: Idr0(tape.ids["IDR0"]).replace(st_level=3, stall_model=3).raw,
        0x4: Idr1(tape.ids["IDR1"]).replace(sidsize=63, cmdqs=31, eventqs=31).raw,
        0x14: Idr5(tape.ids["IDR5"]).replace(vax=3, oas=7).raw,
    }
    records = [
        one._replace(value=odd[one.offset]) if type(one) is Read and one.offset in odd else one
        for one in tape.records
    ]
    agrees(records)


@pytest.mark.parametrize("size", [1, 2])
def test_a_read_of_part_of_a_register_identifies_nothing(size: int) -> None:
    """§6.2: it reads as 0."""
    tape, _ = booted({})
    for offset in (0, 2):
        agrees([tape.records[0], Read(offset, size, 0), *tape.records[1:]])
