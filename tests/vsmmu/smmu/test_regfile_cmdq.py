# SPDX-License-Identifier: BSD-2-Clause
"""The command queue by its registers: stop, repair, restart (IHI 0070 §3.5, §4.1.3, §7.1)."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdSync, CmdTlbiNsnhAll, Command
from vsmmu.arch.registers import Cerror, CmdqCons, Gerror
from vsmmu.queue import Ring
from vsmmu.smmu import Features

from .machine import NOWHERE, Machine

BAD = Command((0, 0))


def run(machine: Machine, *commands: Command) -> CmdqCons:
    machine.post(*commands)
    assert machine.scheduler.run_until_idle()
    return CmdqCons(machine.read("CMDQ_CONS"))


def acknowledge(machine: Machine) -> CmdqCons:
    machine.write("GERRORN", machine.read("GERROR"))
    assert machine.scheduler.run_until_idle()
    return CmdqCons(machine.read("CMDQ_CONS"))


def test_commands_before_the_bad_one_act_and_those_behind_do_not(machine: Machine) -> None:
    """§4.1.3."""
    cons = run(machine, CmdTlbiNsnhAll.build(), BAD, CmdTlbiNsnhAll.build())
    assert (cons.rd, cons.err) == (1, Cerror.ILL)
    assert machine.smmu.counters["cmd.CMD_TLBI_NSNH_ALL"] == 1


def test_the_error_code_is_there_before_gerror(machine: Machine) -> None:
    """§7.1."""
    seen = []
    machine.smmu.listen(lambda line: seen.append((line, machine.read("CMDQ_CONS") >> 24)))
    run(machine, BAD)
    assert seen == [("gerror", Cerror.ILL)]


def test_the_entry_is_fetched_again_after_acknowledgement(machine: Machine) -> None:
    """§7.1: PROD need not be written."""
    run(machine, BAD, CmdSync.build())
    machine.memory.write(machine.cmdq, bytes(CmdSync.build()))
    assert acknowledge(machine).rd == 2


def test_acknowledging_another_error_leaves_the_queue_stopped(machine: Machine) -> None:
    """§7.1: only GERRORN.CMDQ_ERR starts it again."""
    run(machine, BAD)
    machine.memory.write(machine.cmdq, bytes(CmdSync.build()))
    assert machine.smmu.regs.raise_gerror("eventq_abt_err")
    machine.write("GERRORN", Gerror.build(eventq_abt_err=1).raw)
    assert machine.scheduler.run_until_idle()
    cons = CmdqCons(machine.read("CMDQ_CONS"))
    assert (cons.rd, cons.err) == (0, Cerror.ILL)
    assert acknowledge(machine).rd == 1


def test_an_entry_that_is_not_repaired_stops_the_queue_again(machine: Machine) -> None:
    run(machine, BAD)
    assert acknowledge(machine).rd == 0
    assert machine.irqs == ["gerror", "gerror"]
    assert machine.read("GERROR") == 0


def test_prod_may_go_back_to_cons(machine: Machine) -> None:
    """§7.1: software may take back what it queued behind the error."""
    run(machine, CmdSync.build(), BAD, CmdSync.build())
    machine.write("CMDQ_PROD", 1)
    assert acknowledge(machine).rd == 1
    assert run(machine, CmdSync.build()).rd == 2


def test_a_fetch_that_aborts_can_be_repaired(make_machine: type[Machine]) -> None:
    """§7.1: CERROR_ABT; CONS does not advance."""
    machine = make_machine(boot=False)
    place, machine.cmdq = machine.cmdq, NOWHERE
    machine.boot()
    machine.cmdq = place
    cons = run(machine, CmdSync.build())
    assert (cons.rd, cons.err) == (0, Cerror.ABT)
    machine.write("CR0", 0x5)
    machine.write("CMDQ_BASE", place | machine.cmdq_log2)
    machine.write("CR0", 0xD)
    assert machine.smmu.cmdq.step(1) == 0
    assert acknowledge(machine).rd == 1


def test_enabling_starts_a_queue_that_is_not_empty(machine: Machine) -> None:
    """§6.3.9."""
    machine.write("CR0", 0x5)
    machine.post(CmdSync.build())
    assert machine.smmu.cmdq.step(1) == 0
    machine.write("CR0", 0xD)
    assert machine.smmu.cmdq.step(1) == 1


def test_disabling_leaves_cons_on_the_first_that_was_not_consumed(machine: Machine) -> None:
    """§6.3.9."""
    machine.post(*[CmdSync.build()] * 4)
    assert machine.smmu.cmdq.step(3) == 3
    machine.write("CR0", 0x5)
    assert machine.smmu.cmdq.step(3) == 0
    assert machine.read("CMDQ_CONS") == 3


def test_commands_are_consumed_with_smmuen_0(machine: Machine) -> None:
    """§6.3.9.6."""
    machine.write("CR0", 0xC)
    assert run(machine, CmdTlbiNsnhAll.build(), CmdSync.build()).rd == 2


def test_cons_is_read_only_while_enabled(machine: Machine) -> None:
    """§6.3.28."""
    machine.write("CMDQ_CONS", 7)
    assert machine.read("CMDQ_CONS") == 0


def test_the_size_is_capped_and_the_base_aligned() -> None:
    """§6.3.26."""
    assert Ring.of(0x8000_0000, 31, 19, 16).size == 1 << 19
    assert Ring.of(0x8000_0010, 0, 19, 16).base == 0x8000_0000


@pytest.mark.parametrize("log2", [0, 1, 2, 7])
def test_empty_full_and_inconsistent_indexes(log2: int) -> None:
    """§3.5.1, for every pair of indexes; no second opinion."""
    ring = Ring(log2, 16, 0)
    size = 1 << log2
    for cons in range(2 * size):
        for used in range(2 * size):
            prod = (cons + used) % (2 * size)
            assert (ring.used(prod, cons) == 0) == (prod == cons)
            same_index = prod % size == cons % size
            assert (used == size) == (same_index and prod != cons)
            assert ring.is_full(prod, cons) == (used >= size)
            assert ring.pending(prod, cons) == (used if used <= size else 0)


def test_the_base_is_cut_to_the_output_size(make_machine: type[Machine]) -> None:
    """§3.4.3."""
    machine = make_machine(Features.default(oas=32), boot=False)
    place = machine.cmdq
    machine.cmdq |= 1 << 40
    machine.boot()
    machine.cmdq = place
    cons = run(machine, CmdSync.build())
    assert (cons.rd, cons.err) == (1, 0)


def test_the_reason_stays_while_commands_are_consumed(machine: Machine) -> None:
    """§7.1: consuming moves CONS.RD; CONS.ERR is written when there is a new error."""
    run(machine, BAD)
    machine.memory.write(machine.cmdq, bytes(CmdSync.build()))
    cons = acknowledge(machine)
    assert (cons.rd, cons.err) == (1, Cerror.ILL)
