# SPDX-License-Identifier: BSD-2-Clause
"""Recordings through a guest's vSMMU: what agrees, and faults planted in the hypervisor."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vsmmu.recording import tape as tapes
from tests.vsmmu.recording.tape import HEAP, LEVEL2, PAGE, Driver, Tape, everyday
from tests.vsmmu.recording.test_replay_faults import cfgi_all, mapped, nsnh_all
from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiSte,
    CmdTlbiEl2All,
    CmdTlbiNhAsid,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.registers import Gbpa, Idr0, TtEndian
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor import commands, reports
from vsmmu.hypervisor.domain import Domain, Stream
from vsmmu.hypervisor.events import Kept, to_guest
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.recording.divergence import Divergence
from vsmmu.recording.format import Dma, Read, Reader, Record, RecordingError, Reset
from vsmmu.recording.guest import Guest
from vsmmu.recording.guest_machine import Choice, RefusedError
from vsmmu.recording.layout import Layout
from vsmmu.recording.player import Player

CACHINGS = ("none", "normal", "hostile")
# Those that take no time; `make soak` has all.
SHORT = ("vfio612", "rogue612", "live-msi")


def through(records: list[Record], **choice: object) -> Divergence | None:
    """The divergence of records of ours."""
    return played(tapes.data(records), **choice)


def played(data: bytes, **choice: object) -> Divergence | None:
    sids = {record.sid for record in Reader([data], "it") if type(record) is Dma}
    guest = Guest(Choice(**choice), sids)  # type: ignore[arg-type]
    return Player(Reader([data], "it"), guest).play().divergence


# What agrees.


@pytest.mark.parametrize("name", SHORT)
def test_a_real_driver_finds_what_it_needs(corpus: Path, name: str) -> None:
    data = lzma.decompress((corpus / "traces" / f"{name}.xz").read_bytes())
    turn = SHORT.index(name)
    guest = "dom0" if turn == 1 else "domU"
    choice = {"smmus": 1 + turn, "seed": turn, "caching": CACHINGS[2 - turn], "guest": guest}
    assert played(data, **choice) is None


@pytest.mark.soak
@pytest.mark.parametrize("caching", CACHINGS)
@pytest.mark.parametrize("guest", ["domU", "dom0"])
def test_all_real_drivers(corpus: Path, guest: str, caching: str) -> None:
    for at, path in enumerate(sorted((corpus / "traces").glob("*.xz"))):
        data = lzma.decompress(path.read_bytes())
        for smmus in (1, 2, 3):
            choice = {"guest": guest, "smmus": smmus, "caching": caching, "seed": at + smmus}
            if path.name == "boot612-stage2.xz":
                with pytest.raises(RefusedError):
                    played(data, **choice)
            else:
                assert played(data, **choice) is None, (path.name, choice)


@pytest.mark.parametrize("caching", CACHINGS)
@pytest.mark.parametrize("guest", ["domU", "dom0"])
def test_a_driver_of_ours_agrees(guest: str, caching: str) -> None:
    records = everyday()[0].records
    smmus = 1 + CACHINGS.index(caching)
    choice = {"guest": guest, "smmus": smmus, "seed": 3 * smmus, "caching": caching}
    assert through(records, **choice) is None


def test_a_recording_with_stage_2_alone_is_refused() -> None:
    tape = Tape({"IDR0": tapes.IDS["IDR0"] & ~2})
    for name in tapes.PROBED:
        tape.read(name)
    with pytest.raises(RefusedError, match=r"stage 2 alone \(IDR0.S1P=0\)"):
        through(tape.records)


def test_a_driver_that_uses_stage_2_is_refused() -> None:
    tape, driver = mapped()
    driver.send(CmdTlbiS12Vmall.build(vmid=1))
    with pytest.raises(RefusedError, match=r"uses stage 2 \(CMD_TLBI_S12_VMALL\); a vSMMU"):
        through(tape.records)
    tape, driver = mapped()
    ste = Ste.build(
        v=1, config=SteConfig.S2, s2t0sz=24, s2sl0=1, s2ps=4, s2aa64=1, s2r=1, s2ttb=driver.page()
    )
    driver.structure(LEVEL2 + 9 * Ste.size, ste, CmdCfgiSte.build(sid=9, leaf=1))
    tape.dma(9, 0x1000)
    with pytest.raises(RefusedError, match="the STE of StreamID 0x9 has Config=S2"):
        through(tape.records)


def test_what_linux_sends_for_el2_is_left_out() -> None:
    """It sends it wherever IDR0.HYP is set, and no vSMMU has that."""
    tape = Tape({"IDR0": Idr0(tapes.IDS["IDR0"]).replace(hyp=1).raw})
    driver = Driver(tape)
    driver.boot()
    driver.attach(8, 1)
    for page in range(1, 40):
        driver.map(1, page * PAGE, 0x4080_0000)
        driver.send(CmdTlbiEl2All.build())
        tape.dma(8, page * PAGE)
    assert through(tape.records) is None
    tape = Tape()
    Driver(tape).boot()
    tape.mem(tapes.CMDQ + 4 * 16, *CmdTlbiEl2All.build().words)
    tape.write("CMDQ_PROD", 5)
    assert through(tape.records) is None, "illegal on both: IDR0.HYP is 0"


def test_tables_of_either_endianness_are_little() -> None:
    ids = {"IDR0": Idr0(tapes.IDS["IDR0"]).replace(ttendian=TtEndian.MIXED, ttf=3).raw}
    tape, _ = mapped()
    records = [
        record._replace(value=ids["IDR0"]) if type(record) is Read and not record.offset else record
        for record in tape.records
    ]
    assert through(records) is None


def test_a_reset_begins_anew_with_the_same_memory() -> None:
    tape, driver = mapped()
    tape.add(Reset())
    tape.machine.reset()
    tape._progress = None
    driver.prod = 0
    driver.boot(tables=False)
    tape.dma(8, 0x1000)
    assert through(tape.records, smmus=1, guest="dom0") is None


def test_a_recording_that_asks_for_too_much_work_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vsmmu.recording.guest.WORK", 0)
    monkeypatch.setattr("vsmmu.recording.guest.WORK_PER_RECORD", 0)
    with pytest.raises(RecordingError, match="more commands and records than a driver asks for"):
        through(everyday()[0].records)


def test_the_vsmmu_is_told_apart_from_what_was_recorded() -> None:
    guest = Guest(Choice(features={"oas": 4}), {8})
    data = tapes.data(mapped()[0].records)
    Player(Reader([data], "it"), guest).play()
    told = {field: (recorded, mine) for field, recorded, mine in guest.advertised()}
    assert told["IDR0.S2P"] == (1, 0)
    streams = guest.to_json()["streams"]
    assert [one["vmaster_id"] for one in streams] == ["0x8"]
    assert streams[0]["pmaster_id"] != "0x8"


# Where addresses lie.


@given(
    base=st.integers(0, 1 << 24), size=st.integers(1, 1 << 14), direct=st.booleans(),
    at=st.integers(0, (1 << 44) - 1),
)  # fmt: skip
@settings(max_examples=60)
def test_every_address_has_its_own_place(base: int, size: int, direct: bool, at: int) -> None:
    ram = (base * PAGE, size * PAGE)
    layout = Layout(ram, 48, direct=direct)
    for ipa in (ram[0], sum(ram) - 1, ram[0] + at % ram[1], at):
        pa = layout.to_pa(ipa)
        if not (direct and layout.own[0] <= ipa < sum(layout.own)):
            assert layout.to_ipa(pa) == ipa
        inside = any(low <= pa < low + length for low, length in layout.regions[1:])
        assert inside or not ram[0] <= ipa < sum(ram)
    assert layout.to_ipa(layout.own[0]) is None


def test_ram_that_no_machine_has_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 4 TiB"):
        Layout((0, 1 << 45), 48, direct=False)
    with pytest.raises(ValueError, match="needs more than 36 address bits"):
        Layout((0x4000_0000, 1 << 36), 36, direct=True)


# Faults planted in the hypervisor, and the recordings that show them.


def new_cd() -> Tape:
    """The CD moves to other tables, with CMD_CFGI_CD and a flush of its ASID."""
    tape, driver = mapped()
    driver.roots[1] = driver.page()
    driver.tables.clear()
    driver.map(1, 0x1000, 0x4090_0000)
    tape.mem(HEAP + PAGE + 8, driver.roots[1])
    driver.send(CmdCfgiCd.build(sid=8, leaf=1), CmdTlbiNhAsid.build(asid=1))
    tape.dma(8, 0x1000)
    return tape


def by_asid() -> Tape:
    tape, driver = mapped()
    tape.mem(driver.leaf(1, 0x1000), 0)
    driver.send(CmdTlbiNhAsid.build(asid=1))
    driver.map(1, 0x1000, 0x4090_0000)
    tape.dma(8, 0x1000)
    return tape


def shared() -> Tape:
    """Two streams, behind two SMMUs, with one address space."""
    tape, driver = mapped()
    driver.attach(9, 1)
    tape.dma(9, 0x1000)
    driver.unmap(1, 0x1000)
    for sid in (8, 9):
        tape.dma(sid, 0x1000)
    return tape


def by_range() -> Tape:
    """Four pages move, with one flush."""
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    driver.attach(8, 1)
    for base in (0x4080_0000, 0x4090_0000):
        for n in range(4):
            driver.map(1, 0x4000 + n * PAGE, base + n * PAGE)
        for n in range(4):
            tape.dma(8, 0x4000 + n * PAGE)
        for n in range(4):
            tape.mem(driver.leaf(1, 0x4000 + n * PAGE), 0)
        driver.flush(1, 0x4000, tg=1, num=3, scale=0)
    return tape


def illegal() -> Tape:
    """A command that does not exist, repaired as Linux does."""
    tape, driver = mapped()
    tape.mem(tapes.CMDQ + 16 * driver.prod, 0xFF, 0)
    driver.send()
    tape.mem(tapes.CMDQ + 16 * driver.prod, 0xFF, 0)
    tape.write("CMDQ_PROD", driver.prod + 1)
    tape.read("GERROR")
    return tape


def disabled() -> Tape:
    """The SMMU is switched off, and made to abort."""
    tape, _ = mapped()
    tape.write("CR0", 0xC)
    tape.dma(8, 0x4010_0000)
    tape.write("GBPA", Gbpa.build(abort=1, update=1).raw)
    tape.dma(8, 0x4010_0000)
    return tape


def linked_later() -> Tape:
    """Level 2 tables appear without a command, as Linux has it."""
    tape = Tape()
    driver = Driver(tape)
    driver.boot()
    tape.dma(3, 0x1000)
    return tape


Plant = Callable[[pytest.MonkeyPatch], None]


def ignores(kind: type[Command]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        name = next(k for k in commands._HANDLERS if k.__name__ == kind.__name__)
        patch.setitem(commands._HANDLERS, name, lambda vsmmu, command: None)

    return plant


def physical_ids(patch: pytest.MonkeyPatch) -> None:
    def wrong(event: object, stream: Stream, domain: Domain) -> object:
        record = to_guest(event, stream, domain)  # type: ignore[arg-type]
        return record if isinstance(record, Kept) else record.replace(sid=stream.pmaster_id)

    patch.setattr(reports, "to_guest", wrong)


def one_smmu_alone(patch: pytest.MonkeyPatch) -> None:
    def first(vsmmu: VSmmu, command: Command, physical: Command) -> None:
        vsmmu.issue(vsmmu.hosts[0], physical)

    patch.setattr(commands, "_everywhere", first)


def forgets_the_asid(patch: pytest.MonkeyPatch) -> None:
    build = CmdTlbiNhAsid.build
    patch.setattr(CmdTlbiNhAsid, "build", lambda **fields: build(**{**fields, "asid": 99}))


def moves_on_twice(patch: pytest.MonkeyPatch) -> None:
    advance = VSmmu._advance

    def twice(self: VSmmu) -> None:
        advance(self)
        if self.regs["CMDQ_CONS"] == self.regs["CMDQ_PROD"] == 4:
            advance(self)

    patch.setattr(VSmmu, "_advance", twice)


def never_on_the_bad_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VSmmu, "_stop", lambda self, error, detail: self._advance())


def no_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VSmmu, "raise_event", lambda self, event: None)


def stage2_off_by_a_page(patch: pytest.MonkeyPatch) -> None:
    stage2_map = Stage2.map

    def shifted(self: Stage2, ipa: int, pa: int, size: int, **more: bool) -> None:
        if size == PAGE:
            pa ^= PAGE
        stage2_map(self, ipa, pa, size, **more)

    patch.setattr(Stage2, "map", shifted)


def a_single_page(patch: pytest.MonkeyPatch) -> None:
    """A range is passed on as its first page."""
    rebuilt = commands._rebuilt

    def cut(command: Command, **changes: int) -> Command:
        gone = {name: 0 for name in ("num", "scale", "ttl", "tg") if name in command.fields}
        return rebuilt(command, **gone, **changes)

    patch.setattr(commands, "_rebuilt", cut)


def gbpa_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vsmmu.hypervisor.shadow.Gbpa", lambda value: Gbpa(0))


def invalid_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vsmmu.hypervisor.rechecks.settle", lambda vsmmu, stream, record: record)


def bypass_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Domain, "stage2_ste", lambda self: Ste.build(v=1))


def everyday_tape() -> Tape:
    return everyday()[0]


PLANTS: dict[str, tuple[Plant, Callable[[], Tape]]] = {
    "CMD_CFGI_STE ignored": (ignores(CmdCfgiSte), everyday_tape),
    "CMD_CFGI_ALL ignored": (ignores(commands.CmdCfgiSteRange), cfgi_all),
    "CMD_CFGI_CD ignored": (ignores(CmdCfgiCd), new_cd),
    "CMD_TLBI_NH_VA ignored": (ignores(commands.CmdTlbiNhVa), everyday_tape),
    "CMD_TLBI_NH_ASID ignored": (ignores(CmdTlbiNhAsid), by_asid),
    "CMD_TLBI_NSNH_ALL ignored": (ignores(commands.CmdTlbiNsnhAll), nsnh_all),
    "TLBI on one SMMU alone": (one_smmu_alone, shared),
    "TLBI with another ASID": (forgets_the_asid, by_asid),
    "a range as one page": (a_single_page, by_range),
    "pMasterIDs in events": (physical_ids, everyday_tape),
    "no events": (no_records, everyday_tape),
    "CONS ahead": (moves_on_twice, everyday_tape),
    "CONS past a bad command": (never_on_the_bad_one, illegal),
    "GBPA.ABORT ignored": (gbpa_ignored, disabled),
    "no bypass": (bypass_stays, everyday_tape),
    "STEs invalid for ever": (invalid_for_ever, linked_later),
    "stage 2 off by a page": (stage2_off_by_a_page, everyday_tape),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_faults_are_seen(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put, record = PLANTS[plant]
    records = record().records
    assert through(records, caching="hostile") is None
    put(monkeypatch)
    found = through(records, caching="hostile")
    assert found is not None
    assert found.model_side or found.kind == "event"


def test_a_divergence_names_the_shadow_and_the_guest_structures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bypass_stays(monkeypatch)
    found = through(everyday()[0].records)
    assert found is not None
    assert str(found).endswith("recorded SMMU disabled, model abort")
    assert found.model_side[0].startswith("the vSMMU: vMasterID 0x8 is StreamID 0x400 of smmu0")
    assert found.model_side[1] == "shadow STE: v=0x1"
