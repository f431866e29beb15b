# SPDX-License-Identifier: BSD-2-Clause
"""A vSMMU's interrupts: wires, or messages where the guest asked for them (§3.18).

A wire is told both what stands and what happens, since its trigger decides which of them it shows:
`wires.Wires`. What happens is a queue that was empty and has an entry, a global error that becomes
active, a CMD_SYNC that completes; what happened while it was not enabled is not made up for.

A message is written at an address of the guest's: its memory, or the doorbell of its virtual ITS.
Everything else aborts, and the guest's GERROR says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vsmmu.arch.commands import CmdSync
from vsmmu.arch.registers import Gerror, IrqCtrl
from vsmmu.smmu.msi import Messages

if TYPE_CHECKING:
    from vsmmu.hypervisor.domain import Domain
    from vsmmu.hypervisor.vsmmu import VSmmu

_SILENT = Gerror.mask("msi_gerror_abt_err")[0]


class Irq(Protocol):
    """What the causes of `wires.CAUSES` drive."""

    def __call__(self, cause: str, level: bool, /) -> None:
        """A cause begins to stand, or stands no more."""
        ...  # pragma: no cover

    def pulse(self, cause: str, /) -> None:
        """A cause occurs; it is told before, or without, a level."""
        ...  # pragma: no cover


class MessageBus:
    """Where the messages of a vSMMU go.

    Args:
        domain: whose addresses they have.
        base: the vSMMU's window, which tells the virtual ITS the sender.
    """

    def __init__(self, domain: Domain, base: int) -> None:
        self._domain = domain
        self._base = base

    def write32(self, ipa: int, value: int, /) -> bool:
        """Store a message; False where it reaches neither RAM nor the doorbell."""
        doorbell = self._domain.doorbell
        if doorbell is not None and ipa == doorbell.address:
            return doorbell.deliver(self._base, value)
        return self._domain.memory.write32(ipa, value)


class Interrupts:
    """The interrupts of one vSMMU.

    Args:
        irq: where wired interrupts go.

    Attributes:
        levels: by cause, whether it stands.
        syncs: CMD_SYNCs that asked for an interrupt.
    """

    def __init__(self, vsmmu: VSmmu, irq: Irq | None) -> None:
        self._vsmmu = vsmmu
        self._irq = irq
        self._messages = Messages(
            vsmmu.regs, MessageBus(vsmmu.domain, vsmmu.base), vsmmu.counters, self.gerror
        )
        self.levels = {"eventq": False, "priq": False, "gerror": False}
        self.syncs = 0

    def update(self) -> None:
        """Say which causes stand: each does while it is enabled and there is something to do."""
        vsmmu, enabled = self._vsmmu, IrqCtrl(self._vsmmu.regs["IRQ_CTRLACK"])
        self._drive("eventq", bool(enabled.eventq_irqen and vsmmu.event_writer.unread))
        self._drive("priq", bool(enabled.priq_irqen and vsmmu.pri.unread))
        self._drive("gerror", bool(enabled.gerror_irqen and vsmmu.regs.gerror_active & ~_SILENT))

    def occurred(self, source: str) -> None:
        """A source, "eventq", "priq" or "gerror", happens: a message or a pulse, if enabled."""
        enabled = IrqCtrl(self._vsmmu.regs["IRQ_CTRLACK"])
        if getattr(enabled, f"{source}_irqen") and not self._messages.send(source):
            self._pulse(source)

    def gerror(self, field: str) -> None:
        """Raise a global error; that of the GERROR message itself has no interrupt (§6.3.19)."""
        if self._vsmmu.regs.raise_gerror(field) and field != "msi_gerror_abt_err":
            self.occurred("gerror")
        self.update()

    def sync(self, command: CmdSync) -> None:
        """A CMD_SYNC with SIG_IRQ, after CONS has passed it; nothing holds it up (§4.7.3)."""
        self.syncs += 1
        self._messages.sync(command)
        # The wired completion is a pulse, whether there is a message or not.
        self._pulse("cmdq-sync")

    def _pulse(self, cause: str) -> None:
        if self._irq is not None:
            self._irq.pulse(cause)

    def _drive(self, cause: str, level: bool) -> None:
        level = level and not self._messages.configured(cause)
        if level == self.levels[cause]:
            return
        self.levels[cause] = level
        if self._vsmmu.trace is not None:
            self._vsmmu.trace("vsmmu_irq", self._vsmmu.name, cause, int(level))
        if self._irq is not None:
            self._irq(cause, level)
