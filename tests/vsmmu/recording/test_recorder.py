# SPDX-License-Identifier: BSD-2-Clause
"""Recordings of our own runs: they replay without divergence, and are the same bytes each time."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vsmmu.hypervisor.world import BUFFER, NOWHERE, Guest, World
from tests.vsmmu.recording.tape import everyday
from vsmmu.arch.commands import CmdCfgiSte, CmdSync, CmdTlbiNhAsid, Command
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.cli import main
from vsmmu.guest.vcpu import GuestError
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.policy import Policy
from vsmmu.memory import Memory
from vsmmu.recording import guest as through
from vsmmu.recording.divergence import Divergence
from vsmmu.recording.format import Dma, EventRecord, Mem, Note, Read, Reader, Record, Write
from vsmmu.recording.guest_machine import Choice
from vsmmu.recording.log import UnrecordableError
from vsmmu.recording.physical import Physical
from vsmmu.recording.player import Player
from vsmmu.recording.recorder import MachineRecorder, SmmuRecorder
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access

STREAMS = {"one": [("a", 0x600), ("b", 0x600)], "two": [("b", 0x601), ("c", 0x600)]}
SAMPLES = ("one-guest", "two-guests", "hostile")
IOVA = 0x10_0000
SYNC = CmdSync.build(cs=0)


def agrees(packed: bytes, **choice: Any) -> bool:
    """Whether a recording replays without divergence: on an SMMU alone, and through a vSMMU."""
    data = lzma.decompress(packed)
    assert divergence(data) is None
    sids = {record.sid for record in Reader([data], "it") if type(record) is Dma}
    found = Player(Reader([data], "it"), through.Guest(Choice(**choice), sids)).play().divergence
    assert found is None, found
    return True


def divergence(data: bytes) -> Divergence | None:
    return Player(Reader([data], "it"), Physical("none")).play().divergence


def records(packed: bytes) -> list[Record]:
    return list(Reader([lzma.decompress(packed)], "it"))


# Scenarios.


@pytest.mark.parametrize("name", SAMPLES)
def test_a_scenario_replays(samples: Path, tmp_path: Path, name: str) -> None:
    for folder in ("a", "b"):
        out = str(tmp_path / folder)
        assert main(["run", str(samples / f"{name}.toml"), "--record", out]) == 0
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == (1 if name == "one-guest" else 2)
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert agrees(file.read_bytes(), caching="hostile")
        assert any(type(record) is Note for record in records(file.read_bytes()))


ACTORS = """\
schema = "vsmmu.scenario/1"
machine.devices = { nic = "smmu0:0x10", disk = "smmu1:0x10" }
guest = [{ name = "red", devices = ["nic"] }, { name = "blue", devices = ["disk"] }]
seed = 2
[[actor]]
guest = "red"
do = "hostile"
operations = 40
[[actor]]
guest = "blue"
do = "netdev-storm"
operations = 12
[[actor]]
guest = "blue"
do = "faulting"
turns = 400
every = 60
"""


def test_guests_that_do_several_things_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text(ACTORS)
    assert main(["run", str(tmp_path / "it.toml"), "--record", str(tmp_path / "out")]) == 0
    for name in ("red", "blue"):
        packed = (tmp_path / "out" / f"{name}.xz").read_bytes()
        assert agrees(packed, caching="none")
    assert [type(record) for record in records(packed)].count(Dma) > 10


def test_one_file_is_for_one_vsmmu(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, out = str(samples / "two-guests.toml"), tmp_path / "one.xz"
    assert main(["run", scenario, "--record", str(out)]) == 1
    assert "the run has 2 vSMMUs (crypto, media); give a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["run", str(samples / "one-guest.toml"), "--record", str(out)]) == 0
    header = json.loads(lzma.decompress(out.read_bytes()).partition(b"\n")[0])
    assert header["name"] == "crypto"
    assert header["scenario"]


@pytest.mark.parametrize("place", ["", "-"])
def test_a_place_that_is_none(
    samples: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(samples / "one-guest.toml"), "--record", place]) == 1
    assert "give a folder, or a file that ends in .xz" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "no" / "where")
    assert main(["run", str(samples / "one-guest.toml"), "--record", out]) == 1
    assert "cannot make the folder: no such file or directory" in capsys.readouterr().err


# Drivers that do anything.


def attach(guest: Guest, stream: int, page: int) -> None:
    guest.attach(stream)


def bypass(guest: Guest, stream: int, page: int) -> None:
    guest.run(guest.driver.bypass(stream))


def detach(guest: Guest, stream: int, page: int) -> None:
    guest.run(guest.driver.detach(stream))


def map_page(guest: Guest, stream: int, page: int) -> None:
    if stream in guest.driver.contexts:
        ipa = NOWHERE if page == 3 else BUFFER + page * 0x1000
        guest.map(stream, IOVA + page * 0x1000, ipa)


def unmap_page(guest: Guest, stream: int, page: int) -> None:
    if stream in guest.driver.contexts:
        guest.run(guest.driver.unmap(stream, IOVA + page * 0x1000, 0x1000))


def read(guest: Guest, stream: int, page: int) -> None:
    guest.dma(stream, IOVA + page * 0x1000, 64)


def write(guest: Guest, stream: int, page: int) -> None:
    guest.dma(stream, BUFFER + page * 0x1000, b"x" * 64)
    guest.dma(stream, IOVA + page * 0x1000, b"y" * 64)


def illegal(guest: Guest, stream: int, page: int) -> None:
    guest.put(Command((0x28 + page, 0)))


def broken_ste(guest: Guest, stream: int, page: int) -> None:
    ste = Ste.build(v=page & 1, config=(SteConfig.S2, SteConfig.S1)[page >> 1], s1ctxptr=NOWHERE)
    guest.ste(stream, ste)
    guest.put(CmdCfgiSte.build(sid=stream, leaf=1), CmdTlbiNhAsid.build(asid=page), SYNC)


def masked(guest: Guest, stream: int, page: int) -> None:
    guest.write("IRQ_CTRL", (0, 5)[page & 1])


def switched(guest: Guest, stream: int, page: int) -> None:
    guest.write("CR0", (0xC, 0xD, 0x8, 0xD)[page])


def gbpa(guest: Guest, stream: int, page: int) -> None:
    guest.write("GBPA", 1 << 31 | (page & 1) << 20)


DOES = (
    attach, bypass, detach, map_page, unmap_page, read, write, illegal, broken_ste, masked,
    switched, gbpa,
)  # fmt: skip
PROGRAMS = st.lists(
    st.tuples(
        st.sampled_from(("one", "two")), st.sampled_from((*DOES, attach, map_page, read, write)),
        st.integers(0, 1), st.integers(0, 3),
    ),
    max_size=24,
)  # fmt: skip


def recorded(program: list[tuple[Any, ...]], seed: int, caching: str) -> list[bytes]:
    world = World(STREAMS, seed=seed, caching=caching)
    recorder = MachineRecorder(world.hypervisor, world.smmus)
    for name, guest in world.guests.items():
        recorder.add(guest.vsmmu, name)
    for guest in world.guests.values():
        guest.boot()
    for name, do, stream, page in program:
        recorder.note(do.__name__)
        try:
            do(world[name], stream, page)
        except GuestError:
            # What the driver makes of it is its affair.
            world[name].vcpu.failure = None
    return [one.log.finish() for one in recorder.recorders]


@given(PROGRAMS, st.integers(0, 3), st.sampled_from(("none", "normal")), st.booleans())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_run_replays(program: list[Any], seed: int, caching: str, direct: bool) -> None:
    for packed in recorded(program, seed, caching):
        assert agrees(packed, guest="dom0" if direct else "domU", smmus=1 + seed % 3, seed=seed)


@pytest.mark.soak
@given(PROGRAMS, st.integers(0, 9), st.sampled_from(("none", "normal")), st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_of_many_runs_replays(
    program: list[Any], seed: int, caching: str, direct: bool
) -> None:
    for packed in recorded(program, seed, caching):
        assert agrees(packed, guest="dom0" if direct else "domU", smmus=1 + seed % 3, seed=seed)


def test_the_same_run_is_the_same_bytes() -> None:
    program = [("one", attach, 0, 0), ("one", map_page, 0, 1), ("one", write, 0, 1)]
    assert recorded(program, 7, "normal") == recorded(program, 7, "normal")


def test_what_the_smmu_writes_is_in_no_memory_record() -> None:
    program = [("one", attach, 0, 0), ("one", read, 0, 1), ("one", read, 0, 2)]
    packed = recorded(program, 0, "normal")[0]
    events = [r for r in records(packed) if type(r) is EventRecord]
    assert len(events) == 2
    raw = b"".join(r.data for r in records(packed) if type(r) is Mem)
    assert all(event.words[0].to_bytes(8, "little") not in raw for event in events)


def test_a_page_that_is_given_away_and_taken_again_is_zero() -> None:
    world = World({"g": [("a", 0x600)]})
    recorder = MachineRecorder(world.hypervisor, world.smmus)
    recorder.add(world["g"].vsmmu, "g")
    guest = world["g"].boot()
    guest.attach(0)
    guest.map(0, IOVA, BUFFER)
    assert guest.memory.write(BUFFER, b"old")
    guest.dma(0, IOVA, 8)
    calls = world.hypervisor.hypercalls
    for ask in (calls.decrease_reservation, calls.populate_physmap):
        job = ask(guest.domain, BUFFER, 0x1000)
        assert world.scheduler.run_until_idle()
        assert job.result == 0x1000
        guest.dma(0, IOVA, 8)
    packed = recorder.recorders[0].log.finish()
    at_buffer = [r.data for r in records(packed) if type(r) is Mem and r.pa == BUFFER]
    assert at_buffer == [b"old\0\0\0\0\0", bytes(8)]
    assert [r.flags for r in records(packed) if type(r) is Dma] == [0, 1, 0]
    assert agrees(packed)


# Physical SMMUs.


def copied(source: list[Record]) -> list[Record]:
    """What a recorder makes of a driver that does what a recording says."""
    features = Features.default(sidsize=16, oas=44, aidr=1)
    memory = Memory([(0x4000_0000, 0x100_0000)])
    scheduler = Scheduler()
    smmu = Smmu("smmu", memory, features)
    for engine in smmu.engines:
        scheduler.add(engine)
    recorder = SmmuRecorder(smmu, scheduler, "copy")
    for record in source:
        match record:
            case Mem(pa, data):
                memory.write(pa, data)
            case Write(offset, size, value):
                smmu.mmio_write(offset, size, value)
            case Read(offset, size):
                smmu.mmio_read(offset, size)
            case Dma():
                smmu.translate(Access(record.sid, record.iova, record.access == 2))
    return records(recorder.log.finish())


def test_a_recording_of_a_replay_is_the_recording() -> None:
    source = everyday()[0].records
    copy = copied(source)

    def seen(all_of: list[Record]) -> list[Any]:
        masked = {"mask": 0, "event": 0}
        judged = [r for r in all_of if type(r) in (Dma, Write, EventRecord)]
        return [
            r._replace(**masked, pa=r.pa if r.status in (0, 1, 4) else 0) if type(r) is Dma else r
            for r in judged
        ]

    assert seen(copy) == seen(source)


def test_the_hypervisors_own_use_of_an_smmu_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    boot, found = Hypervisor.boot, []

    def first(self: Hypervisor) -> None:
        smmu = world_smmus(self)
        found.append(SmmuRecorder(smmu, self.scheduler, "physical"))
        boot(self)

    def world_smmus(hypervisor: Hypervisor) -> Smmu:
        hardware = hypervisor.hosts["a"].hardware
        assert isinstance(hardware, Smmu)
        return hardware

    monkeypatch.setattr(Hypervisor, "boot", first)
    guest = World({"g": [("a", 0x600)]}, smmus="a")["g"].boot()
    guest.attach(0)
    guest.map(0, IOVA, BUFFER)
    guest.dma(0, IOVA, b"nested")
    guest.run(guest.driver.unmap(0, IOVA, 0x1000))
    guest.dma(0, IOVA, 8)
    data = lzma.decompress(found[0].log.finish())
    assert divergence(data) is None
    got = [record for record in Reader([data], "it") if type(record) is Dma]
    assert [dma.status for dma in got] == [0, 3]


# What cannot be recorded.


def test_what_no_record_can_say() -> None:
    world = World({"g": [("a", 0x600)]})
    recorder = MachineRecorder(world.hypervisor, world.smmus)
    world["g"].boot()
    with pytest.raises(UnrecordableError, match="a recording starts before its driver"):
        recorder.add(world["g"].vsmmu, "late")
    features = Features.default(sidsize=16).replace(stall_model=0, stall_max=8)
    stalls = World({"g": [("a", 0x600)]}, features=features, policy=Policy(stalls=True))
    recorder = MachineRecorder(stalls.hypervisor, stalls.smmus)
    with pytest.raises(UnrecordableError, match="has ATS or stalls, which no record can say"):
        recorder.add(stalls["g"].vsmmu, "g")


def test_an_access_with_a_pasid_ends_the_recording_if_it_faults() -> None:
    features = Features.default(sidsize=16).replace(ssidsize=8)
    world = World({"g": [("a", 0x600)]}, features=features, policy=Policy(substreams=True))
    log = MachineRecorder(world.hypervisor, world.smmus).add(world["g"].vsmmu, "g")
    guest = world["g"].boot()
    guest.attach(0)
    guest.ports[0].read(IOVA, 8, ssid=5)
    assert world.scheduler.run_until_idle()
    assert log.ended.endswith("faulted")
    before = log.records
    guest.dma(0, IOVA, 8)
    assert log.records == before
    assert agrees(log.finish())
