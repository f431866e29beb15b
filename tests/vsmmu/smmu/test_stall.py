# SPDX-License-Identifier: BSD-2-Clause
"""Stalled transactions and what ends them.

IHI 0070 §3.5.5, §3.12.2, §4.7.1, §4.7.2. Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdResume, CmdStallTerm, CmdSync, CmdTlbiNsnhAll
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Request
from vsmmu.smmu.stall import RETRY, Stalled

from .stall_machine import DATA, IOVA, STALLS, Stalling, field


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
