# SPDX-License-Identifier: BSD-2-Clause
"""A vSMMU's interrupts: wired levels, or messages where the guest asked for them (§3.18).

A message is written at an address of the guest's: its memory, or the doorbell of its virtual ITS.
Everything else aborts, and the guest's GERROR says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vsmmu.arch.commands import CmdSync
from vsmmu.arch.registers import IrqCtrl
from vsmmu.smmu.msi import Messages

if TYPE_CHECKING:
    from vsmmu.hypervisor.domain import Domain
    from vsmmu.hypervisor.vsmmu import VSmmu

Irq = Callable[[str, bool], None]


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
        irq: told (cause, level) when a wired interrupt's cause, see `wires.CAUSES`, changes.

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
        """Set the wired causes: each is high while it is enabled and stands (level triggered)."""
        vsmmu, enabled = self._vsmmu, IrqCtrl(self._vsmmu.regs["IRQ_CTRLACK"])
        self._drive("eventq", bool(enabled.eventq_irqen and vsmmu.event_writer.unread))
        self._drive("priq", bool(enabled.priq_irqen and vsmmu.pri.unread))
        self._drive("gerror", bool(enabled.gerror_irqen and vsmmu.regs.gerror_active))

    def message(self, source: str) -> None:
        """The message of "eventq", "priq" or "gerror" at an occurrence, if there is to be one."""
        enabled = IrqCtrl(self._vsmmu.regs["IRQ_CTRLACK"])
        if getattr(enabled, f"{source}_irqen"):
            self._messages.send(source)

    def gerror(self, field: str) -> None:
        """Raise a global error; that of the GERROR message itself has no interrupt (§6.3.19)."""
        if self._vsmmu.regs.raise_gerror(field) and field != "msi_gerror_abt_err":
            self.message("gerror")
        self.update()

    def sync(self, command: CmdSync) -> None:
        """A CMD_SYNC with SIG_IRQ, after CONS has passed it; nothing holds it up (§4.7.3)."""
        self.syncs += 1
        self._messages.sync(command)
        # The wired completion is a pulse, whether there is a message or not.
        for level in (True, False):
            if self._irq is not None:
                self._irq("cmdq-sync", level)

    def _drive(self, cause: str, level: bool) -> None:
        level = level and not self._messages.configured(cause)
        if level == self.levels[cause]:
            return
        self.levels[cause] = level
        if self._vsmmu.trace is not None:
            self._vsmmu.trace("vsmmu_irq", self._vsmmu.name, cause, int(level))
        if self._irq is not None:
            self._irq(cause, level)
