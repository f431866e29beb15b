# SPDX-License-Identifier: BSD-2-Clause
"""Interrupts as messages, and events to PEs; no second opinion.

IHI 0070 §3.18, §3.18.1, §4.7.3, §6.3.21 to §6.3.23, §6.3.30 to §6.3.32.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdSync, CmdTlbiNsnhAll, Command, Cs
from vsmmu.arch.names import MemAttr, Sh
from vsmmu.arch.registers import Cerror, CmdqCons, Gerror, IrqCfg0, IrqCfg2, IrqCtrl
from vsmmu.smmu import Features, features
from vsmmu.smmu.msi import effective

from .machine import NOWHERE, Machine

DATA = 0xCAFE_F00D


class MsiMachine(Machine):
    """A machine with IDR0.MSI and a doorbell; `configure` points a source at it."""

    def __init__(self, **how: object) -> None:
        super().__init__(Features.default().replace(msi=1, sev=1), **how)  # type: ignore[arg-type]
        self.doorbell = self.alloc(64)

    def configure(self, source: str, address: int, data: int = DATA, **attributes: int) -> None:
        enabled = self.read("IRQ_CTRL")
        self.write("IRQ_CTRL", 0)
        self.write(f"{source}_IRQ_CFG0", IrqCfg0.build(addr=address).raw)
        self.write(f"{source}_IRQ_CFG1", data)
        self.write(f"{source}_IRQ_CFG2", IrqCfg2.build(**attributes).raw)
        self.write("IRQ_CTRL", enabled)

    def rung(self, offset: int = 0) -> int:
        raw = self.memory.read(self.doorbell + offset, 4)
        assert raw is not None
        return int.from_bytes(raw, "little")

    def fault(self) -> None:
        assert self.go(9, 0).status == "fault"
        assert self.scheduler.run_until_idle()

    def run(self, *commands: Command) -> None:
        self.post(*commands)
        assert self.scheduler.run_until_idle()


@pytest.fixture
def msi(monkeypatch: pytest.MonkeyPatch) -> MsiMachine:
    for name in ("msi", "sev"):
        monkeypatch.setitem(features._MODELLED, name, range(2))
    return MsiMachine()


@pytest.fixture
def gerror_msi(msi: MsiMachine) -> MsiMachine:
    if not hasattr(msi.smmu, "_messages"):
        pytest.skip("this SMMU sends GERROR by wire alone")
    return msi


def active(machine: Machine) -> set[str]:
    value = machine.read("GERROR") ^ machine.read("GERRORN")
    return {name for name, field in Gerror.fields.items() if field.of((value,))}


# The event queue.


def test_an_event_sends_its_message_instead_of_the_wire(msi: MsiMachine) -> None:
    """§6.3.30: EVENTQ_IRQ_CFG0.ADDR takes DATA as one 32-bit write."""
    msi.memory.write(msi.doorbell, b"\xaa" * 12)
    msi.configure("EVENTQ", msi.doorbell + 4)
    msi.fault()
    assert msi.memory.read(msi.doorbell, 12) == b"\xaa" * 4 + DATA.to_bytes(4, "little") + (
        b"\xaa" * 4
    )
    assert msi.irqs == []
    assert msi.smmu.counters["msi.eventq"] == 1


def test_address_0_is_the_wire(msi: MsiMachine) -> None:
    """§6.3.30."""
    msi.configure("EVENTQ", 0)
    msi.fault()
    assert (msi.irqs, msi.smmu.counters["msi.eventq"]) == (["eventq"], 0)


def test_a_message_for_a_queue_that_stops_being_empty(msi: MsiMachine) -> None:
    """§3.18.2: not for each record."""
    msi.configure("EVENTQ", msi.doorbell)
    msi.fault()
    msi.fault()
    assert msi.smmu.counters["msi.eventq"] == 1
    msi.events()
    msi.fault()
    assert msi.smmu.counters["msi.eventq"] == 2


def test_the_record_is_visible_before_its_message(msi: MsiMachine) -> None:
    """§3.18: record, then EVENTQ_PROD, then the message."""
    msi.configure("EVENTQ", msi.doorbell)
    seen = []
    write32 = msi.memory.write32

    def spy(pa: int, value: int) -> bool:
        seen.append((msi.read("EVENTQ_PROD"), msi.memory.read64(msi.eventq)))
        return write32(pa, value)

    msi.memory.write32 = spy  # type: ignore[method-assign]
    msi.fault()
    assert seen == [(1, 9 << 32 | 4)]


def test_an_event_message_that_aborts(msi: MsiMachine) -> None:
    """§6.3.19: MSI_EVENTQ_ABT_ERR and the GERROR interrupt; the record stays."""
    msi.configure("EVENTQ", NOWHERE)
    msi.fault()
    assert active(msi) == {"msi_eventq_abt_err"}
    assert msi.irqs == ["gerror"]
    assert len(msi.events()) == 1
    assert msi.smmu.counters["msi.abort"] == 1


def test_an_active_msi_error_does_not_stop_messages(msi: MsiMachine) -> None:
    """§7.5: no effect on later messages; the error is not logged again until acknowledged."""
    msi.configure("EVENTQ", NOWHERE)
    msi.fault()
    msi.events()
    msi.configure("EVENTQ", msi.doorbell)
    msi.fault()
    assert msi.rung() == DATA
    msi.configure("EVENTQ", NOWHERE)
    msi.events()
    msi.fault()
    assert active(msi) == {"msi_eventq_abt_err"}
    assert msi.irqs == ["gerror"]
    msi.write("GERRORN", msi.read("GERROR"))
    msi.events()
    msi.fault()
    assert active(msi) == {"msi_eventq_abt_err"}
    assert msi.irqs == ["gerror", "gerror"]


def test_enables_gate_messages(msi: MsiMachine) -> None:
    """§6.3.16: EVENTQ_IRQEN=0 sends nothing; what happened before 0 to 1 sends nothing later."""
    msi.configure("EVENTQ", msi.doorbell)
    msi.write("IRQ_CTRL", IrqCtrl.build(gerror_irqen=1).raw)
    msi.fault()
    assert msi.smmu.counters["msi.eventq"] == 0
    msi.write("IRQ_CTRL", IrqCtrl.build(gerror_irqen=1, eventq_irqen=1).raw)
    assert msi.scheduler.run_until_idle()
    assert msi.smmu.counters["msi.eventq"] == 0
    msi.events()
    msi.fault()
    assert msi.smmu.counters["msi.eventq"] == 1


def test_nothing_is_outstanding_when_an_enable_is_acknowledged_0(msi: MsiMachine) -> None:
    """§6.3.16: an abort is visible in GERROR by then."""
    msi.configure("EVENTQ", NOWHERE)
    msi.fault()
    msi.write("IRQ_CTRL", 0)
    assert msi.read("IRQ_CTRLACK") == 0
    assert active(msi) == {"msi_eventq_abt_err"}


def test_configuration_is_guarded_by_the_enable(msi: MsiMachine) -> None:
    """§6.3.30 to §6.3.32."""
    for name in ("EVENTQ", "GERROR"):
        for register, value in ((0, 0x1234_5678), (1, 7), (2, 0x3F)):
            msi.write(f"{name}_IRQ_CFG{register}", value)
            assert msi.read(f"{name}_IRQ_CFG{register}") == 0


def test_an_address_beyond_oas_is_truncated(msi: MsiMachine) -> None:
    """§3.4.3."""
    msi.configure("EVENTQ", msi.doorbell | 1 << 50)
    msi.fault()
    assert msi.rung() == DATA


def test_without_the_feature_there_are_no_messages() -> None:
    """§6.3.30: RES0 with IDR0.MSI=0."""
    machine = Machine()
    machine.write("IRQ_CTRL", 0)
    for name in ("EVENTQ", "GERROR"):
        for register in range(3):
            machine.write(f"{name}_IRQ_CFG{register}", 0x30)
            assert machine.read(f"{name}_IRQ_CFG{register}") == 0


# CMD_SYNC.


def test_sync_message(msi: MsiMachine) -> None:
    """§4.7.3: SIG_IRQ writes MSIData to MSIAddress, and pulses the wire too."""
    msi.run(CmdSync.build(cs=Cs.IRQ, msiaddress=msi.doorbell + 8, msidata=DATA))
    assert (msi.rung(8), msi.irqs) == (DATA, ["cmdq-sync"])
    assert msi.smmu.counters["msi.cmdq-sync"] == 1


@pytest.mark.parametrize("cs", [Cs.NONE, Cs.SEV])
def test_other_completions_send_no_message(msi: MsiMachine, cs: int) -> None:
    """§4.7.3: MSIAddress counts for SIG_IRQ alone."""
    msi.run(CmdSync.build(cs=cs, msiaddress=msi.doorbell, msidata=DATA))
    assert (msi.rung(), msi.irqs) == (0, [])


def test_sync_without_an_address(msi: MsiMachine) -> None:
    """§4.7.3: MSIAddress=0 is no message; the wire is pulsed."""
    msi.run(CmdSync.build(cs=Cs.IRQ, msidata=DATA))
    assert (msi.smmu.counters["msi.cmdq-sync"], msi.irqs) == (0, ["cmdq-sync"])


def test_sync_message_does_not_depend_on_irq_ctrl(msi: MsiMachine) -> None:
    """§6.3.16: CMD_SYNC has no enable."""
    msi.write("IRQ_CTRL", 0)
    msi.run(CmdSync.build(cs=Cs.IRQ, msiaddress=msi.doorbell, msidata=DATA))
    assert (msi.rung(), msi.irqs) == (DATA, ["cmdq-sync"])


def test_sync_message_that_aborts(msi: MsiMachine) -> None:
    """§4.7.3: the command is consumed; MSI_CMDQ_ABT_ERR is there at the next CMD_SYNC."""
    msi.run(CmdSync.build(cs=Cs.IRQ, msiaddress=NOWHERE), CmdSync.build())
    assert msi.read("CMDQ_CONS") == 2
    assert active(msi) == {"msi_cmdq_abt_err"}
    assert msi.irqs == ["gerror", "cmdq-sync"]
    msi.run(CmdTlbiNsnhAll.build(), CmdSync.build())
    assert msi.read("CMDQ_CONS") == 4


def test_sync_message_comes_after_cons_moved(msi: MsiMachine) -> None:
    """§3.18: completion, CONS, message."""
    seen = []

    def spy(pa: int, value: int) -> bool:
        seen.append((pa, value, msi.read("CMDQ_CONS")))
        return True

    msi.memory.write32 = spy  # type: ignore[method-assign]
    msi.run(CmdTlbiNsnhAll.build(), CmdSync.build(cs=1, msiaddress=msi.doorbell, msidata=3))
    assert seen == [(msi.doorbell, 3, 2)]


def test_a_reserved_signal_sends_nothing(msi: MsiMachine) -> None:
    """§4.7.3: CS=3 is CERROR_ILL."""
    msi.run(CmdSync.build(cs=3, msiaddress=msi.doorbell, msidata=DATA))
    assert CmdqCons(msi.read("CMDQ_CONS")).err == Cerror.ILL
    assert msi.rung() == 0


def test_sync_ignores_an_address_without_the_feature() -> None:
    """§4.7.3: the MSI fields are RES0 with IDR0.MSI=0."""
    machine = Machine()
    place = machine.alloc(64)
    machine.post(CmdSync.build(cs=Cs.IRQ, msiaddress=place, msidata=DATA))
    assert machine.scheduler.run_until_idle()
    assert (machine.memory.read64(place), machine.irqs) == (0, ["cmdq-sync"])


# Attributes.


@pytest.mark.parametrize(
    ("memattr", "sh", "acts"),
    [
        (MemAttr.OWB_IWB, Sh.ISH, (MemAttr.OWB_IWB, Sh.ISH)),
        (MemAttr.OWB_IWB, Sh.OSH, (MemAttr.OWB_IWB, Sh.OSH)),
        (MemAttr.OWB_IWB, 1, (MemAttr.OWB_IWB, Sh.NSH)),
        (MemAttr.ONC_IWB, Sh.NSH, (MemAttr.ONC_IWB, Sh.NSH)),
        (MemAttr.ONC_INC, Sh.ISH, (MemAttr.ONC_INC, Sh.OSH)),
        (MemAttr.DEVICE_GRE, Sh.NSH, (MemAttr.DEVICE_GRE, Sh.OSH)),
        *((reserved, Sh.ISH, (MemAttr.DEVICE_NGNRNE, Sh.OSH)) for reserved in (4, 8, 12)),
    ],
)
def test_attributes(msi: MsiMachine, memattr: int, sh: int, acts: tuple[int, int]) -> None:
    """§6.3.23, §4.7.3: reserved values act as Device-nGnRnE and as Non-shareable."""
    assert effective(memattr, sh) == acts
    msi.run(CmdSync.build(cs=1, msiaddress=msi.doorbell, msiattr=memattr, msh=sh))
    last = msi.smmu.cmdq._messages.last
    assert last is not None
    assert (last.source, last.memattr, last.sh) == ("cmdq-sync", *acts)
    msi.configure("EVENTQ", msi.doorbell, memattr=memattr, sh=sh)
    msi.fault()
    last = msi.smmu.eventq._messages.last
    assert last is not None
    assert (last.source, last.memattr, last.sh) == ("eventq", *acts)


# GERROR.


def test_gerror_message(gerror_msi: MsiMachine) -> None:
    """§6.3.21: an error that becomes active sends the message instead of the wire."""
    gerror_msi.configure("GERROR", gerror_msi.doorbell)
    gerror_msi.run(Command((0, 0)))
    assert (gerror_msi.rung(), gerror_msi.irqs) == (DATA, [])
    assert CmdqCons(gerror_msi.read("CMDQ_CONS")).err == Cerror.ILL


def test_gerror_message_needs_its_enable(gerror_msi: MsiMachine) -> None:
    """§6.3.16."""
    gerror_msi.configure("GERROR", gerror_msi.doorbell)
    gerror_msi.write("IRQ_CTRL", IrqCtrl.build(eventq_irqen=1).raw)
    gerror_msi.run(Command((0, 0)))
    assert (gerror_msi.rung(), gerror_msi.irqs, active(gerror_msi)) == (0, [], {"cmdq_err"})


def test_gerror_message_that_aborts(gerror_msi: MsiMachine) -> None:
    """§7.5: MSI_GERROR_ABT_ERR, which asks for no interrupt itself."""
    gerror_msi.configure("GERROR", NOWHERE)
    gerror_msi.run(Command((0, 0)))
    assert active(gerror_msi) == {"cmdq_err", "msi_gerror_abt_err"}
    assert gerror_msi.irqs == []
    assert gerror_msi.smmu.counters["msi.gerror"] == 1


def test_an_aborted_message_of_another_source_sends_gerror(gerror_msi: MsiMachine) -> None:
    """§7.5: the other MSI errors do."""
    gerror_msi.configure("GERROR", gerror_msi.doorbell)
    gerror_msi.configure("EVENTQ", NOWHERE)
    gerror_msi.fault()
    assert gerror_msi.rung() == DATA
    assert active(gerror_msi) == {"msi_eventq_abt_err"}


# Events to PEs.


def test_sync_sends_an_event(msi: MsiMachine) -> None:
    """§4.7.3: SIG_SEV with IDR0.SEV."""
    msi.run(CmdSync.build(cs=Cs.SEV))
    assert (msi.smmu.counters["sev"], msi.irqs) == (1, [])
    msi.run(CmdSync.build())
    assert msi.smmu.counters["sev"] == 1


def test_sig_sev_without_the_feature_is_sig_none() -> None:
    """§4.7.3."""
    machine = Machine()
    machine.command(CmdSync.build(cs=Cs.SEV))
    assert machine.smmu.counters["sev"] == 0


def test_a_full_queue_with_room_again_sends_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """§3.5.1: once, when it stops being full."""
    for name in ("msi", "sev"):
        monkeypatch.setitem(features._MODELLED, name, range(2))
    machine = MsiMachine(cmdq_log2=2)
    machine.post(*[CmdTlbiNsnhAll.build()] * 3)
    assert machine.smmu.cmdq.step(10) == 3
    assert machine.smmu.counters["sev"] == 0
    machine.post(*[CmdTlbiNsnhAll.build()] * 4)
    assert machine.smmu.cmdq.step(1) == 1
    assert machine.smmu.counters["sev"] == 1
    assert machine.smmu.cmdq.step(10) == 3
    assert machine.smmu.counters["sev"] == 1
