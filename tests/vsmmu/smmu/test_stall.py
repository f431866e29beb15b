# SPDX-License-Identifier: BSD-2-Clause
"""Stall and terminate models; merging (IHI 0070 §3.12.1, §3.12.2, §4.7.1, §4.7.2, §5.5, §7.3.1).

Also §3.5.5. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import re

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdResume, CmdStallTerm, CmdSync, CmdTlbiNsnhAll
from vsmmu.arch.events import CBadSte, Event
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, DevicePort, Features, Request
from vsmmu.smmu.stall import RETRY, StallBuffer, Stalled

from .machine import AF, NOWHERE, RW_S2, Machine

STALLS = Features.default().replace(stall_model=0, stall_max=4, term_model=0)
FORCED = Features.default().replace(stall_model=2, stall_max=4)
DATA = 0x8F00_0000
IOVA = 0x12_3000


class Stalling(Machine):
    """A machine with a stage 1 stream 1 that stalls, its root, and a port."""

    def __init__(self, features: Features = STALLS, **how: object) -> None:
        super().__init__(features, **how)  # type: ignore[arg-type]
        self.root = self.s1_stream(1, s=1)
        self.ports: list[DevicePort] = []

    def port(self, sid: int = 1, **how: bool) -> DevicePort:
        port = DevicePort(f"port{len(self.ports)}", self.smmu, sid, **how)
        self.scheduler.add(port)
        self.ports.append(port)
        return port

    def run(self) -> None:
        assert self.scheduler.run_until_idle()

    def stall(self, iova: int = IOVA, sid: int = 1) -> tuple[Request, Event]:
        """A read that stalls, and its record."""
        request = self.port(sid).read(iova, 8)
        (event,) = self.events()
        assert not request.done
        return request, event


def field(event: Event, name: str) -> int:
    return event.fields[name].of(event.words)


@pytest.fixture
def stalling() -> Stalling:
    return Stalling()


def test_a_stalled_transaction_waits_for_its_answer(stalling: Stalling) -> None:
    """§3.12.2: the record has Stall=1 and a STAG, the transaction neither ends nor goes on."""
    request, event = stalling.stall()
    assert event.name == "F_TRANSLATION"
    assert [field(event, n) for n in ("stall", "sid", "s2", "cls", "rnw")] == [1, 1, 0, 2, 1]
    assert field(event, "inputaddr") == IOVA
    assert stalling.ports[0].stalled is not None
    stalling.map(stalling.root, IOVA, DATA)
    stalling.run()
    assert not request.done
    assert stalling.events() == []
    assert len(stalling.smmu.stalls) == 1


def test_retry(stalling: Stalling) -> None:
    """§4.7.1 Ac=1: as if newly arrived."""
    request, event = stalling.stall()
    stalling.memory.write(DATA, b"12345678")
    stalling.map(stalling.root, IOVA, DATA)
    stalling.command(CmdResume.build(sid=1, stag=field(event, "stag"), ac=1))
    assert (request.done, request.ok, request.data) == (True, True, b"12345678")
    assert stalling.events() == []
    assert len(stalling.smmu.stalls) == 0


def test_a_retry_that_faults_is_a_new_stall(stalling: Stalling) -> None:
    """§3.12.2: a retried transaction counts as new, with a record and a STAG of its own."""
    request, first = stalling.stall()
    stalling.command(CmdResume.build(sid=1, stag=field(first, "stag"), ac=1))
    (second,) = stalling.events()
    assert second.replace(stag=0) == first.replace(stag=0)
    assert field(second, "stag") != field(first, "stag")
    assert not request.done


@pytest.mark.parametrize(
    ("ab", "term_model", "status"), [(1, 0, "fault"), (0, 0, "razwi"), (0, 1, "fault")]
)
def test_terminate(ab: int, term_model: int, status: str) -> None:
    """§4.7.1 Ac=0: Ab=1 aborts, Ab=0 is RAZ/WI unless IDR0.TERM_MODEL=1."""
    stalling = Stalling(STALLS.replace(term_model=term_model))
    request, event = stalling.stall()
    stalling.command(CmdResume.build(sid=1, stag=field(event, "stag"), ab=ab))
    assert [o.status for o in request.outcomes] == [status]
    assert (request.done, request.ok, request.data) == (True, False, bytes(8))
    assert stalling.events() == []


@pytest.mark.parametrize("change", [{"sid": 2}, {"stag": 999}])
def test_resume_needs_streamid_and_stag(stalling: Stalling, change: dict[str, int]) -> None:
    """§4.7.1: another StreamID or an unknown STAG has no effect and is no error."""
    request, event = stalling.stall()
    fields = {"sid": 1, "stag": field(event, "stag"), "ab": 1, **change}
    stalling.command(CmdResume.build(**fields))
    assert not request.done


def test_stags_differ_until_answered(stalling: Stalling) -> None:
    """§3.12.2: unique among those that are outstanding, whoever they belong to."""
    stalling.ste(2, config=5, s1ctxptr=stalling.cd(ttb0=stalling.root, s=1))
    seen = {field(stalling.stall(page * PAGE, sid)[1], "stag") for page in (1, 2) for sid in (1, 2)}
    assert len(seen) == 4


def test_stall_term_ends_those_of_a_stream(stalling: Stalling) -> None:
    """§4.7.2: every stalled transaction of the StreamID is aborted, others are not."""
    stalling.ste(2, config=5, s1ctxptr=stalling.cd(ttb0=stalling.root, s=1))
    mine = [stalling.stall(page * PAGE)[0] for page in (1, 2)]
    other, event = stalling.stall(PAGE, 2)
    stalling.ste(1, config=0)
    stalling.command(CmdCfgiSte.build(sid=1, leaf=1))
    stalling.command(CmdStallTerm.build(sid=1))
    assert [[o.status for o in request.outcomes] for request in mine] == [["fault"], ["fault"]]
    assert not other.done
    stalling.command(CmdResume.build(sid=2, stag=field(event, "stag"), ab=1))
    assert other.done


def test_smmuen_0_ends_all(stalling: Stalling) -> None:
    """§6.3.9: SMMUEN 1 to 0 aborts what is stalled, written record or not, and frees the STAGs."""
    request, _ = stalling.stall()
    stalling.write("CR0", 0b1000)
    behind = stalling.port().read(2 * PAGE, 8)
    stalling.run()
    assert [o.status for o in request.outcomes] == ["fault"]
    assert [o.pa for o in behind.outcomes] == [2 * PAGE]
    assert len(stalling.smmu.stalls) == 0


def test_tlbi_and_cfgi_leave_stalls_alone(stalling: Stalling) -> None:
    """§3.12.2: a recorded stall waits for CMD_RESUME, whatever is invalidated."""
    request, _ = stalling.stall()
    stalling.map(stalling.root, IOVA, DATA)
    stalling.command(CmdCfgiSte.build(sid=1), CmdTlbiNsnhAll.build(), CmdSync.build())
    assert not request.done


def test_other_devices_go_on(stalling: Stalling) -> None:
    """A stall holds its own device, in order, and nobody else."""
    stalling.stall()
    behind = stalling.ports[0].read(PAGE, 4)
    stalling.map(stalling.root, 5 * PAGE, DATA)
    other = stalling.port().read(5 * PAGE, 4)
    stalling.run()
    assert (behind.done, other.ok) == (False, True)


# Limits, records that cannot be written.


def test_no_more_stags_than_stall_max(stalling: Stalling) -> None:
    """IDR5.STALL_MAX: what comes on top has no record before a place is free."""
    requests = [stalling.port().read(page * PAGE, 4) for page in range(6)]
    first = stalling.events()
    assert len(first) == 4
    stalling.command(CmdResume.build(sid=1, stag=field(first[0], "stag"), ab=1))
    assert [r.done for r in requests] == [True, False, False, False, False, False]
    (second,) = stalling.events()
    assert field(second, "inputaddr") == 4 * PAGE
    for event in (*first[1:], second):
        stalling.command(CmdResume.build(sid=1, stag=field(event, "stag"), ab=1))
    (last,) = stalling.events()
    assert field(last, "inputaddr") == 5 * PAGE
    stalling.command(CmdResume.build(sid=1, stag=field(last, "stag"), ab=1))
    assert all(r.done for r in requests)


def test_duplicates_wait_behind_the_first(stalling: Stalling) -> None:
    """§3.12.2.1: same stream, page and kind of access: one record; tried again with the first."""
    first, event = stalling.stall(IOVA)
    again = stalling.port().read(IOVA + 0x80, 4)
    write = stalling.port().write(IOVA, b"abcd")
    (other,) = stalling.events()
    assert field(other, "rnw") == 0
    stalling.map(stalling.root, IOVA, DATA)
    stalling.command(CmdResume.build(sid=1, stag=field(event, "stag"), ab=1))
    assert ([o.status for o in first.outcomes], again.ok, write.done) == (["fault"], True, False)
    stalling.command(CmdResume.build(sid=1, stag=field(other, "stag"), ac=1))
    assert write.ok


def test_a_full_queue_loses_no_stall() -> None:
    """§7.2, §7.4: no overflow for a stall; the record is written when there is room."""
    stalling = Stalling(eventq_log2=0)
    first, second = (stalling.port().read(page * PAGE, 4) for page in (0, 1))
    stalling.run()
    assert (first.done, second.done, stalling.smmu.stalls.unwritten) == (False, False, 1)
    prod = stalling.read("EVENTQ_PROD")
    assert prod >> 31 == 0
    assert stalling.smmu.counters["event.overflow"] == 0
    seen = [field(event, "inputaddr") for _ in range(3) for event in stalling.events()]
    assert seen == [0, PAGE]


def test_a_stall_that_waits_delays_neither_sync_nor_overflow() -> None:
    """§4.7.3, §7.4: records of terminated transactions are lost meanwhile, as ever."""
    stalling = Stalling(eventq_log2=0)
    stalling.go(9, 0)
    stalling.port().read(IOVA, 4)
    stalling.run()
    stalling.go(9, PAGE)
    stalling.command()
    assert stalling.read("EVENTQ_PROD") == 1 << 31 | 1
    stalling.write("EVENTQ_CONS", 1 << 31 | 1)
    stalling.run()
    assert [event.name for event in stalling.events()] == ["F_TRANSLATION"]


@pytest.mark.parametrize("unwritable", ["full", "disabled", "abort"])
def test_a_sync_frees_what_cannot_be_recorded(unwritable: str) -> None:
    """§4.7.3: CMD_SYNC has an unrecorded stall tried again, so that a driver need not wait."""
    stalling = Stalling(eventq_log2=0)
    if unwritable == "full":
        stalling.go(9, 0)
    elif unwritable == "disabled":
        stalling.write("CR0", 0b1001)
    else:
        stalling.write("CR0", 0b1001)
        stalling.write("EVENTQ_BASE", NOWHERE)
        stalling.write("CR0", 0b1101)
    request = stalling.port().read(IOVA, 4)
    stalling.run()
    assert (request.done, stalling.smmu.stalls.unwritten) == (False, 1)
    stalling.command()
    assert not request.done
    stalling.map(stalling.root, IOVA, DATA)
    stalling.run()
    assert not request.done
    stalling.command()
    assert request.ok
    assert len(stalling.smmu.stalls) == 0


def test_a_write_abort_loses_no_stall() -> None:
    """§7.2.2: the record is written once the queue can be written again, and once only."""
    stalling = Stalling()
    base = stalling.read("EVENTQ_BASE")
    stalling.write("CR0", 0b1001)
    stalling.write("EVENTQ_BASE", NOWHERE)
    stalling.write("CR0", 0b1101)
    stalling.port().read(IOVA, 4)
    stalling.run()
    assert stalling.read("GERROR") == 4
    stalling.write("CR0", 0b1001)
    stalling.write("EVENTQ_BASE", base)
    stalling.write("GERRORN", 4)
    stalling.write("CR0", 0b1101)
    assert len(stalling.events()) == 1


@pytest.mark.parametrize("how", ["term", "smmuen"])
def test_unrecorded_stalls_end_as_the_others(how: str) -> None:
    stalling = Stalling()
    stalling.write("CR0", 0b1001)
    requests = [stalling.port().read(IOVA, 4) for _ in range(3)]
    stalling.run()
    if how == "term":
        stalling.post(CmdStallTerm.build(sid=1))
    else:
        stalling.write("CR0", 0b1000)
    stalling.run()
    assert [[o.status for o in r.outcomes] for r in requests] == [["fault"]] * 3
    assert [o.event for r in requests for o in r.outcomes] == [None] * 3


def test_resume_cannot_guess_an_unwritten_stag() -> None:
    """§4.7.1: software has not been told the STAG."""
    stalling = Stalling()
    stalling.write("CR0", 0b1001)
    request = stalling.port().read(IOVA, 4)
    stalling.run()
    stalling.post(*(CmdResume.build(sid=1, stag=stag, ab=1) for stag in range(4)))
    stalling.run()
    assert not request.done


def test_disabling_the_queue_keeps_stalls() -> None:
    """§7.2: EVENTQEN 1 to 0 drops records of terminated transactions, not those of stalls."""
    stalling = Stalling()
    stalling.smmu.eventq.record(CBadSte.build())
    held = stalling.smmu.transact(Access(1, IOVA, False))
    assert isinstance(held, Stalled)
    stalling.write("CR0", 0b1001)
    stalling.write("CR0", 0b1101)
    assert [e.name for e in stalling.events()] == ["F_TRANSLATION"]


def test_stags_wrap_and_skip_those_in_use(stalling: Stalling) -> None:
    buffer = stalling.smmu.stalls
    assert isinstance(buffer, StallBuffer)
    _, first = stalling.stall()
    assert field(first, "stag") == 0
    buffer._next_stag = 0xFFFF
    assert [field(stalling.stall(page * PAGE)[1], "stag") for page in (1, 2)] == [0xFFFF, 1]


# Which faults stall; the terminate model.


@pytest.mark.parametrize(
    ("bits", "statuses", "recorded"),
    [
        ({"a": 0, "r": 0}, ["razwi"], 0),
        ({"a": 0, "r": 1}, ["razwi"], 1),
        ({"a": 1, "r": 0}, ["fault"], 0),
        ({"a": 1, "r": 1}, ["fault"], 1),
        ({"a": 0, "r": 0, "s": 1}, [], 1),
        ({"a": 1, "r": 1, "s": 1}, [], 1),
    ],
)
def test_stage1_abort_record_stall(
    bits: dict[str, int], statuses: list[str], recorded: int
) -> None:
    """§5.5: CD.{A,R,S}; with S=1 the others do not count."""
    machine = Stalling()
    machine.s1_stream(2, **bits)
    request = machine.port(2).read(IOVA, 4)
    events = machine.events()
    assert [o.status for o in request.outcomes] == statuses
    assert len(events) == recorded
    assert all(field(e, "stall") == bits.get("s", 0) for e in events)


@pytest.mark.parametrize(
    ("bits", "statuses", "recorded"),
    [
        ({"s2r": 0}, ["fault"], 0),
        ({"s2r": 1}, ["fault"], 1),
        ({"s2r": 0, "s2s": 1}, [], 1),
        ({"s2r": 1, "s2s": 1}, [], 1),
    ],
)
def test_stage2_record_stall(bits: dict[str, int], statuses: list[str], recorded: int) -> None:
    """§5.5: STE.{S2R,S2S}, with an implicit A=1."""
    machine = Stalling()
    machine.ste(2, config=6, **machine.s2_fields(machine.s2_root(), **bits))
    request = machine.port(2).read(IOVA, 4)
    events = machine.events()
    assert [o.status for o in request.outcomes] == statuses
    assert len(events) == recorded
    assert all(field(e, "stall") == bits.get("s2s", 0) and field(e, "s2") for e in events)


@pytest.mark.parametrize(("s", "s2s"), [(0, 1), (1, 0)])
def test_the_stage_that_faults_decides(s: int, s2s: int) -> None:
    """§5.5: nested, each stage by its own flags; CLASS=CD and CLASS=TT are stage 2's."""
    machine = Stalling()
    root2 = machine.s2_root()
    root1, cd = machine.alloc(PAGE), machine.cd(s=s)
    machine.cd(cd, s=s, ttb0=root1)
    fields = machine.s2_fields(root2, s2s=s2s)
    machine.ste(2, config=7, s1ctxptr=cd, **fields)
    request = machine.port(2).read(IOVA, 4)
    classes = []
    for page, stage in ((cd, 2), (root1, 2), (None, 1)):
        (event,) = machine.events()
        classes.append((field(event, "s2"), field(event, "cls"), field(event, "stall")))
        if page is not None:
            machine.map(root2, page & -PAGE, page & -PAGE, flags=AF | RW_S2)
        stalled = s2s if stage == 2 else s
        assert request.done == (not stalled)
        if stalled:
            machine.command(CmdResume.build(sid=2, stag=field(event, "stag"), ac=1))
        elif stage == 2:
            request = machine.ports[-1].read(IOVA, 4)
    assert classes == [(1, 0, s2s), (1, 1, s2s), (0, 2, s)]


@pytest.mark.parametrize(
    "name", ["C_BAD_CD", "F_CD_FETCH", "F_WALK_EABT", "C_BAD_STREAMID", "C_BAD_STE"]
)
def test_what_never_stalls(stalling: Stalling, name: str) -> None:
    """§5.5: configuration errors and external aborts are aborted and recorded, whatever S says."""
    sid = 3
    if name == "C_BAD_CD":
        stalling.s1_stream(sid, s=1, v=0)
    elif name == "F_CD_FETCH":
        stalling.ste(sid, config=5, s1ctxptr=NOWHERE)
    elif name == "F_WALK_EABT":
        stalling.s1_stream(sid, NOWHERE, s=1)
    elif name == "C_BAD_STREAMID":
        sid = 1 << 9
    request = stalling.port(sid).read(IOVA, 4)
    (event,) = stalling.events()
    assert (event.name, [o.status for o in request.outcomes]) == (name, ["fault"])


def test_stage1_bypass_address_size_never_stalls(stalling: Stalling) -> None:
    """§3.4: the size check of a bypassed stage 1 always aborts, in spite of STE.S2S."""
    root = stalling.s2_root()
    stalling.ste(2, config=6, **stalling.s2_fields(root, s2s=1))
    request = stalling.port(2).read(1 << 60, 4)
    (event,) = stalling.events()
    assert (event.name, field(event, "s2"), field(event, "stall")) == ("F_ADDR_SIZE", 0, 0)
    assert request.done


def test_devices_that_cannot_wait(stalling: Stalling) -> None:
    """§3.12.2: a stall may be made a terminate for devices such as PCIe's: Stall=0, abort."""
    request = stalling.port(may_stall=False).read(IOVA, 4)
    (event,) = stalling.events()
    assert [field(event, n) for n in ("stall", "stag")] == [0, 0]
    assert [o.status for o in request.outcomes] == ["fault"]
    assert stalling.go(1, IOVA).status == "fault"


def test_razwi_is_not_seen(stalling: Stalling) -> None:
    """§3.12.1 A=0: reads are zero and writes ignored; memory is not touched."""
    root = stalling.s1_stream(2, a=0)
    stalling.map(root, 0, DATA, flags=AF | 3 << 6)
    stalling.memory.write(DATA, b"keep")
    port = stalling.port(2)
    write, read = port.write(0, b"lost"), port.read(PAGE, 4)
    assert [e.name for e in stalling.events()] == ["F_PERMISSION", "F_TRANSLATION"]
    assert [r.outcomes[0].status for r in (write, read)] == ["razwi", "razwi"]
    assert stalling.memory.read(DATA, 4) == b"keep"
    assert read.data == bytes(4)


# What is legal by identification.


@pytest.mark.parametrize(
    ("features", "cd", "ste", "name"),
    [
        (Features.default(), {"s": 1}, {}, "C_BAD_CD"),
        (STALLS, {"s": 1}, {"s1stalld": 1}, "C_BAD_CD"),
        (FORCED, {"s": 0}, {}, "C_BAD_CD"),
        (FORCED, {"s": 1}, {"s1stalld": 1}, "C_BAD_STE"),
        (STALLS.replace(term_model=1), {"s": 1, "a": 0}, {}, "C_BAD_CD"),
    ],
)
def test_illegal(features: Features, cd: dict[str, int], ste: dict[str, int], name: str) -> None:
    """§5.2.2, §5.4.2: IDR0.STALL_MODEL, IDR0.TERM_MODEL and STE.S1STALLD."""
    machine = Machine(features)
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE), **cd), **ste)
    event = machine.go(1, IOVA).event
    assert event is not None
    assert event.name == name


def test_forced_stalls_stall() -> None:
    """IDR0.STALL_MODEL=2."""
    stalling = Stalling(FORCED)
    request, event = stalling.stall()
    stalling.command(CmdResume.build(sid=1, stag=field(event, "stag"), ab=1))
    assert request.done


@pytest.mark.parametrize("command", [CmdResume.build(), CmdStallTerm.build()])
@pytest.mark.parametrize(("stalls", "ssec"), [(False, 0), (True, 1)])
def test_illegal_commands(command: CmdResume | CmdStallTerm, stalls: bool, ssec: int) -> None:
    """§4.7.1, §4.7.2: CERROR_ILL with IDR0.STALL_MODEL=1, and with SSec=1."""
    machine = Machine(STALLS if stalls else Features.default())
    machine.post(command.replace(ssec=ssec))
    machine.scheduler.run_until_idle()
    assert machine.read("CMDQ_CONS") >> 24 == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stall_model": 0}, "IDR0.STALL_MODEL!=1 needs IDR5.STALL_MAX>=1"),
        ({"stall_max": 1}, "IDR5.STALL_MAX needs IDR0.STALL_MODEL!=1"),
        ({"stall_model": 3, "stall_max": 1}, "IDR0.STALL_MODEL=3: not modelled (a reserved value)"),
    ],
)
def test_identification(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Features.default().replace(**change)


def test_no_engine_without_the_feature() -> None:
    assert [e.name for e in Machine().smmu.engines] == ["smmu0.cmdq", "smmu0.eventq"]
    names = [e.name for e in Stalling().smmu.engines]
    assert names == ["smmu0.cmdq", "smmu0.eventq", "smmu0.stall"]


# Merging.


def test_records_merge_only_with_mev_and_while_they_wait() -> None:
    """§7.3.1: identical but for InputAddr[11:0], STE.MEV=1, and close in time."""
    machine = Machine()
    for sid, mev in ((1, 1), (2, 0)):
        machine.ste(sid, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE)), mev=mev)
    for sid in (1, 2):
        for iova in (IOVA, IOVA + 8, IOVA + PAGE):
            machine.go(sid, iova)
    assert [field(e, "inputaddr") for e in machine.events()] == [
        IOVA, IOVA + PAGE, IOVA, IOVA + 8, IOVA + PAGE,
    ]  # fmt: skip
    assert machine.smmu.counters["event.merged"] == 1
    machine.go(1, IOVA)
    assert len(machine.events()) == 1


def test_records_of_another_kind_do_not_merge() -> None:
    machine = Machine()
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=machine.alloc(PAGE)), mev=1)
    machine.go(1, IOVA)
    machine.go(1, IOVA, write=True)
    machine.go(1, IOVA, priv=True)
    assert len(machine.events()) == 3


def test_stalls_never_merge() -> None:
    """§7.3.1 merges records with Stall=0; two stalls of different pages are two records."""
    machine = Stalling()
    machine.ste(2, config=5, s1ctxptr=machine.cd(ttb0=machine.root, s=1), mev=1)
    for page in range(2):
        machine.port(2).read(page * PAGE, 4)
    assert len(machine.events()) == 2


def test_random_programs_leave_nobody_behind() -> None:
    """Whatever order things happen in, a final resume of everything empties the machine."""
    from random import Random

    for seed in range(30):
        random = Random(seed)
        machine = Stalling(STALLS.replace(stall_max=random.randint(1, 4)), eventq_log2=1)
        ports = [machine.port() for _ in range(6)]
        requests: list[Request] = []
        known: list[int] = []
        for _ in range(60):
            choice = random.randrange(6)
            if choice < 2:
                requests.append(random.choice(ports).read(random.randrange(4) * PAGE, 4))
            elif choice == 2:
                known += [field(e, "stag") for e in machine.events() if field(e, "stall")]
            elif choice == 3 and known:
                stag = known.pop(random.randrange(len(known)))
                fate = random.choice([{"ac": 1}, {"ab": 1}, {}])
                machine.post(CmdResume.build(sid=1, stag=stag, **fate))
            elif choice == 4:
                machine.map(machine.root, random.randrange(4) * PAGE, DATA)
            for _ in range(random.randrange(4)):
                machine.scheduler.step()
            assert len(machine.smmu.stalls._tagged) <= machine.smmu.stalls.limit
        for page in range(4):
            machine.map(machine.root, page * PAGE, DATA)
        for _ in range(40):
            known += [field(e, "stag") for e in machine.events() if field(e, "stall")]
            machine.command(*(CmdResume.build(sid=1, stag=stag, ac=1) for stag in known))
            known.clear()
        assert all(request.done for request in requests), seed
        assert len(machine.smmu.stalls) == 0
        assert all(port.stalled is None for port in ports)


def test_fates_are_told() -> None:
    machine = Stalling()
    held = machine.smmu.transact(Access(1, IOVA, False))
    assert isinstance(held, Stalled)
    machine.command()
    assert held.recorded
    machine.command(CmdResume.build(sid=1, stag=held.stag or 0, ac=1))
    assert held.fate == RETRY
