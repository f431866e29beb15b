# SPDX-License-Identifier: BSD-2-Clause
"""Domains destroyed while their devices wait for them; timeouts of the invalidations of others."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from vsmmu.arch.commands import CmdAtcInv, CmdTlbiNhAll
from vsmmu.arch.pri import PrgResponse, PriEntry
from vsmmu.arch.registers import Cerror
from vsmmu.hypervisor.fair_queue import FairQueue
from vsmmu.hypervisor.hypervisor import HypercallError
from vsmmu.hypervisor.policy import Policy

from . import test_ats, test_pri, test_stalls
from .test_ats import device, with_ats
from .test_pri import PriGuest
from .test_stalls import fault, held, stalling
from .world import World


def test_stalled_transactions_of_a_destroyed_domain_end() -> None:
    machine = test_stalls.world()
    hv, guest = machine.hypervisor, stalling(machine["g"])
    requests = [fault(guest, 0), fault(guest, 1)]
    assert [request.done for request in requests] == [False, False]
    places = hv._behind.stall_places(hv.hosts["a"])
    guest.destroy()
    assert machine.scheduler.run_until_idle()
    assert [(request.done, request.ok) for request in requests] == [(True, False)] * 2
    assert held(machine) == 0
    assert hv._behind.stall_places(hv.hosts["a"]) == places + 2


def test_page_requests_of_a_destroyed_domain_are_answered() -> None:
    machine = World(test_pri.STREAMS, policy=test_pri.POLICY, features=test_pri.SMMU)
    guest = PriGuest(machine["g"])
    guest.ask(1)
    guest.ask(2, port=1)
    pri, stream = guest.guest.vsmmu.pri, guest.guest.vsmmu.streams[1]
    pri.take(stream, PriEntry.build(sid=0x601, prgindex=3, r=1, last=1))
    guest.guest.destroy()
    guest.rest()
    assert guest.got() == [(None, 1, PrgResponse.FAILURE)]
    assert sorted(guest.got(1)) == [(None, i, PrgResponse.FAILURE) for i in (2, 3)]
    assert pri not in machine.scheduler.engines


def test_another_guests_timeout_does_not_keep_a_device_from_its_next_owner() -> None:
    machine = World(test_ats.STREAMS, policy=test_ats.POLICY, features=test_ats.SMMU)
    hv = machine.hypervisor
    guest, other = with_ats(machine["g"]), with_ats(machine["o"])
    other.quiet()
    device(other, 0).silent = True
    other.put_without_rest(test_ats.ALL, test_ats.SYNC)
    hv.deassign(guest.vsmmu, guest.vsmmu.streams[0])
    assert hv.hosts["a"].counters["CERROR_ATC_INV_SYNC"] == 1
    hv.assign(other.vsmmu, 5, "a", 0x600)
    hv.deassign(other.vsmmu, other.vsmmu.streams[0])
    with pytest.raises(HypercallError, match="did not answer"):
        hv.assign(guest.vsmmu, 5, "a", 0x700)


@pytest.mark.parametrize("turn", [3, 16])
def test_a_timeout_of_a_long_batch_is_nobody_elses(turn: int) -> None:
    """Invalidations that do not fit into a turn: no CMD_SYNC of the other comes between."""
    policy = Policy(ats=True, commands_per_turn=turn)
    machine = World(test_ats.STREAMS, policy=policy, features=test_ats.SMMU)
    guest, other = with_ats(machine["g"]), with_ats(machine["o"])
    for each in (guest, other):
        each.quiet()
    device(guest, 0).silent = True
    invalidations = [CmdAtcInv.build(sid=0, addr=page << 12) for page in range(40)]
    guest.put_without_rest(*invalidations, test_ats.SYNC)
    for _ in range(20):
        other.put_without_rest(*[CmdTlbiNhAll.build(), test_ats.SYNC])
        machine.scheduler.step()
    assert machine.scheduler.run_until_idle()
    assert test_ats.error(other) == (Cerror.NONE, False)
    assert test_ats.error(guest) == (Cerror.ATC_INV_SYNC, True)
    guest.write("GERRORN", guest.read("GERROR"))
    assert test_ats.consumed(guest)


@pytest.mark.parametrize("seed", range(10))
def test_a_batch_with_a_timeout_enters_in_one_turn(seed: int) -> None:
    """Random budgets, shares and consumption; every batch gets in, whole where it has to be."""
    r = random.Random(seed)
    queue, order = FairQueue(r.randint(2, 20), r.randint(2, 40)), []
    given = 0
    for _ in range(1000):
        if r.random() < 0.3:
            whole = r.random() < 0.5
            count = r.randint(1, queue.whole if whole else 50)
            commands = [CmdTlbiNhAll.build()] * count
            queue.submit(r.randrange(5), commands, (), None, (lambda: None) if whole else None)
            given += count
        inside = queue.entered.total() - queue.consumed.total()
        order += queue.take(r.randrange(20))
        queue.consume(r.randint(0, inside))
    while queue:
        order += queue.take(64)
        queue.consume(queue.entered.total() - queue.consumed.total())
    assert sum(last - first for _, _, first, last in order) == given
    for (_, batch, _, last), (_, following, _, _) in pairwise(order):
        if batch.timed_out is not None and last < len(batch.commands):
            assert following is batch
