# SPDX-License-Identifier: BSD-2-Clause
"""The command queue and what each command does (IHI 0070 §3.5, §4, §7.1)."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    OPCODES,
    CmdCfgiSteRange,
    CmdPrefetchConfig,
    CmdSync,
    CmdTlbiNhVa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    Command,
)
from vsmmu.arch.registers import Cerror, CmdqCons
from vsmmu.smmu import Features

from .machine import NOWHERE, Machine

LEGAL = {
    "1": {1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46},
    "2": {1, 2, 3, 4, 0x28, 0x2A, 0x30, 0x46},
    "nested": {
        1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x28, 0x2A, 0x30, 0x46,
    },
}  # fmt: skip


def error(machine: Machine) -> int:
    return CmdqCons.err.of((machine.read("CMDQ_CONS"),))


def run(machine: Machine, *commands: Command) -> bool:
    """Whether all were consumed."""
    machine.post(*commands)
    assert machine.scheduler.run_until_idle()
    return machine.read("GERROR") == machine.read("GERRORN")


def test_writing_prod_consumes_nothing(machine: Machine) -> None:
    machine.post(*[CmdSync.build()] * 5)
    assert machine.read("CMDQ_CONS") == 0
    assert machine.smmu.cmdq.step(2) == 2
    assert machine.read("CMDQ_CONS") == 2
    assert machine.smmu.cmdq.step(100) == 3
    assert machine.smmu.cmdq.step(100) == 0
    assert machine.smmu.counters["cmd.CMD_SYNC"] == 5


@pytest.mark.parametrize("stages", ["1", "2", "nested"])
def test_which_opcodes_are_illegal(stages: str) -> None:
    """§4.1.1, §4.3.3, §4.3.4, §4.4: reserved, or of a stage or feature that is not there."""
    for opcode in range(256):
        machine = Machine(Features.default(stages=stages))
        legal = run(machine, Command((opcode, 0)))
        assert legal == (opcode in LEGAL[stages]), hex(opcode)
        assert error(machine) == (Cerror.NONE if legal else Cerror.ILL)


def test_illegal_command_stops_the_queue_until_acknowledged(machine: Machine) -> None:
    """§7.1: CONS stays, CONS.ERR is set, GERROR and its interrupt follow, once."""
    assert not run(machine, CmdSync.build(), Command((0, 0)), CmdTlbiNsnhAll.build())
    assert machine.read("CMDQ_CONS") == Cerror.ILL << 24 | 1
    assert machine.irqs == ["gerror"]
    assert not run(machine, CmdSync.build())
    assert machine.irqs == ["gerror"]
    machine.memory.write(machine.cmdq + 16, bytes(CmdSync.build()))
    machine.write("GERRORN", machine.read("GERROR"))
    assert machine.scheduler.run_until_idle()
    assert machine.read("CMDQ_CONS") & 0xFFFFF == 4
    assert machine.smmu.counters["cmd.CMD_TLBI_NSNH_ALL"] == 1


def test_toggling_cmdqen_does_not_clear_the_error(machine: Machine) -> None:
    assert not run(machine, Command((0, 0)))
    machine.write("CR0", 0x5)
    machine.write("CR0", 0xD)
    assert not run(machine, CmdSync.build())
    assert machine.read("CMDQ_CONS") & 0xFFFFF == 0


def test_gerror_interrupt_needs_its_enable(machine: Machine) -> None:
    machine.write("IRQ_CTRL", 0)
    assert not run(machine, Command((0, 0)))
    assert machine.irqs == []


def test_fetch_abort(make_machine: type[Machine]) -> None:
    machine = make_machine(boot=False)
    machine.cmdq = NOWHERE
    machine.boot()
    machine.write("CMDQ_PROD", 1)
    machine.scheduler.run_until_idle()
    assert machine.read("CMDQ_CONS") == Cerror.ABT << 24


def test_disabled_queue_is_not_read(machine: Machine) -> None:
    machine.write("CR0", 0x5)
    machine.post(Command((0, 0)))
    assert machine.smmu.cmdq.step(10) == 0


def test_inconsistent_indexes_process_nothing(machine: Machine) -> None:
    """§3.5.1: PROD behind CONS by wrap."""
    machine.write("CR0", 0x5)
    machine.write("CMDQ_CONS", 5)
    machine.write("CMDQ_PROD", 3)
    machine.write("CR0", 0xD)
    assert machine.smmu.cmdq.step(10) == 0


@pytest.mark.parametrize("log2", [0, 1, 3])
def test_queue_wraps(make_machine: type[Machine], log2: int) -> None:
    machine = make_machine(cmdq_log2=log2)
    for _ in range(5 << log2):
        assert run(machine, CmdSync.build())
    assert machine.smmu.counters["cmd.CMD_SYNC"] == 5 << log2


@pytest.mark.parametrize("opcode", [1, 2, 3, 4, 5, 6])
def test_secure_stream_on_the_non_secure_queue(machine: Machine, opcode: int) -> None:
    """§4.1.6."""
    assert OPCODES[opcode].fields["ssec"].lsb == 10
    assert not run(machine, Command((opcode | 1 << 10, 0)))
    assert error(machine) == Cerror.ILL


@pytest.mark.parametrize("opcode", [0x10, 0x11, 0x12, 0x13, 0x28, 0x2A, 0x30, 0x46])
def test_ssec_is_no_field_of_other_commands(machine: Machine, opcode: int) -> None:
    """§4.1.6: a reserved bit there, which is ignored."""
    assert "ssec" not in OPCODES[opcode].fields
    assert run(machine, Command((opcode | 1 << 10, 0)))


@pytest.mark.parametrize(
    ("cs", "consumed", "irqs"),
    [(0, True, []), (1, True, ["cmdq-sync"]), (2, True, []), (3, False, ["gerror"])],
)
def test_sync_completion(machine: Machine, cs: int, consumed: bool, irqs: list[str]) -> None:
    """§4.7.3; there is no SEV and no MSI."""
    assert run(machine, CmdSync.build(cs=cs)) == consumed
    assert machine.irqs == irqs


def test_sync_interrupt_comes_after_cons_moved() -> None:
    machine = Machine()
    seen: list[int] = []
    machine.smmu.listen(lambda line: seen.append(machine.read("CMDQ_CONS")))
    machine.post(CmdSync.build(cs=1))
    machine.smmu.cmdq.step(1)
    assert seen == [1]


def test_sync_waits_for_earlier_events_and_only_those(machine: Machine) -> None:
    """§4.7.3: events of terminated transactions are visible, or gone, when it completes."""
    machine.go(9, 0)
    machine.go(9, 0)
    machine.post(CmdSync.build())
    assert machine.smmu.cmdq.step(10) == 0
    machine.go(9, 0)
    assert machine.smmu.eventq.step(1) == 1
    assert machine.smmu.cmdq.step(10) == 0
    assert machine.smmu.eventq.step(1) == 1
    assert machine.smmu.cmdq.step(10) == 1
    assert machine.smmu.eventq.pending == 1


def test_sync_mark_does_not_outlive_the_queue(machine: Machine) -> None:
    machine.go(9, 0)
    machine.post(CmdSync.build())
    assert machine.smmu.cmdq.step(1) == 0
    machine.write("CR0", 0x5)
    machine.smmu.eventq.step(10)
    machine.go(9, 0)
    machine.write("CR0", 0xD)
    assert machine.smmu.cmdq.step(1) == 0
    machine.smmu.eventq.step(10)
    assert machine.smmu.cmdq.step(1) == 1


@pytest.mark.parametrize(
    ("fields", "legal"),
    [
        ({"tg": 0, "num": 0, "scale": 0, "ttl": 0}, True),
        ({"tg": 0, "num": 3, "scale": 3, "ttl": 1}, True),
        ({"tg": 1, "num": 0, "scale": 0, "ttl": 0}, False),
        ({"tg": 2, "num": 0, "scale": 0, "ttl": 0}, False),
        ({"tg": 3, "num": 0, "scale": 0, "ttl": 0}, False),
        ({"tg": 2, "num": 0, "scale": 0, "ttl": 1}, False),
        ({"tg": 1, "num": 0, "scale": 0, "ttl": 1}, True),
        ({"tg": 2, "num": 1, "scale": 0, "ttl": 1}, True),
        ({"tg": 3, "num": 0, "scale": 63, "ttl": 0}, True),
    ],
)
@pytest.mark.parametrize("command", [CmdTlbiNhVa, CmdTlbiS2Ipa])
def test_range_fields(
    machine: Machine, command: type[Command], fields: dict[str, int], legal: bool
) -> None:
    """§4.4.1.1."""
    assert run(machine, command.build(**fields)) == legal


def test_range_fields_are_ignored_without_ril() -> None:
    machine = Machine(Features.default(aidr=1).replace(ril=0))
    assert run(machine, CmdTlbiNhVa.build(tg=1))


def test_prefetch_is_consumed_and_changes_nothing(machine: Machine) -> None:
    assert run(machine, CmdPrefetchConfig.build(sid=99))
    assert machine.events() == []
    assert machine.smmu.counters["config.miss"] == 0


def test_range_31_names_every_stream(machine: Machine) -> None:
    machine.ste(1, config=4)
    machine.ste(200, config=4)
    for sid in (1, 200):
        assert machine.go(sid, 0).status == "bypass"
    machine.command(CmdCfgiSteRange.build(sid=77, range=31))
    assert machine.smmu.counters["config.invalidated"] == 2
