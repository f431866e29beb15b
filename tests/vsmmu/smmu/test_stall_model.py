# SPDX-License-Identifier: BSD-2-Clause
"""Which faults stall, and which terminate as what (CD.A, R, S; STE.S2R, S2S; IDR0.STALL_MODEL).

IHI 0070 §3.12.1, §3.12.2, §5.5. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import re

import pytest

from vsmmu.arch.commands import CmdResume, CmdStallTerm
from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, NOWHERE, RW_S2, Machine
from .stall_machine import DATA, FORCED, IOVA, STALLS, Stalling, field


@pytest.fixture
def stalling() -> Stalling:
    return Stalling()


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
