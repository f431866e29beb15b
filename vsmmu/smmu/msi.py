# SPDX-License-Identifier: BSD-2-Clause
"""Interrupts as messages (IHI 0070 §3.18): 32-bit writes by the SMMU.

A message is written when its cause is visible: after EVENTQ_PROD has moved, after CMDQ_CONS has
passed the CMD_SYNC. It is complete, or has aborted, when the call returns, so nothing is
outstanding when IRQ_CTRLACK or a later CMD_SYNC follows (§3.18.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from vsmmu.arch.names import MemAttr, Sh
from vsmmu.arch.registers import OAS_BITS, Idr0, Idr5, IrqCfg0, IrqCfg2

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from vsmmu.arch.commands import CmdSync
    from vsmmu.smmu.regfile import RegisterFile

_ADDR, _MEMATTR, _SH = IrqCfg0.addr, IrqCfg2.memattr, IrqCfg2.sh
_ABT_ERR = {
    "cmdq-sync": "msi_cmdq_abt_err",
    "eventq": "msi_eventq_abt_err",
    "priq": "msi_priq_abt_err",
    "gerror": "msi_gerror_abt_err",
}
_MEMATTRS = frozenset(MemAttr)
# MemAttr of Device types have the outer half 0; Normal Non-cacheable is 0b01 in both halves.
_DEVICE, _NON_CACHEABLE = range(4), 0b0101


class Message(NamedTuple):
    """One message as the bus sees it: reserved attributes have become what they stand for."""

    source: str
    address: int
    data: int
    memattr: int
    sh: int


class Bus(Protocol):
    """What messages are written to."""

    def write32(self, pa: int, value: int, /) -> bool:
        """Store an aligned 32-bit word; False on external abort."""
        ...  # pragma: no cover


class Messages:
    """Writes the messages of one SMMU.

    Args:
        regs: *_IRQ_CFGn, and IDR5 for the address size.
        memory: what messages are written to.
        counters: takes `msi.<source>`, `msi.written` and `msi.abort`.
        gerror: called to raise a GERROR field where a message aborts.

    Attributes:
        last: the last message, aborted or not.
    """

    def __init__(
        self,
        regs: RegisterFile,
        memory: Bus,
        counters: Counter[str],
        gerror: Callable[[str], None],
    ) -> None:
        self._regs = regs
        self._memory = memory
        self._counters = counters
        self._gerror = gerror
        # Address bits above OAS are truncated (§3.4.3); without IDR0.MSI every address is RES0.
        self._mask = (1 << OAS_BITS[Idr5.oas.of((regs["IDR5"],))]) - 1
        if not Idr0.msi.of((regs["IDR0"],)):
            self._mask = 0
        self.last: Message | None = None

    def send(self, source: str) -> bool:
        """The interrupt of "eventq", "priq" or "gerror", if *_IRQ_CFG0 makes it a message.

        ADDR=0 is no message (§6.3.21), and then the caller has a wired interrupt to pulse.
        """
        name = source.upper()
        address = self._address(name)
        if not address:
            return False
        attributes = (self._regs[f"{name}_IRQ_CFG2"],)
        data = self._regs[f"{name}_IRQ_CFG1"]
        self._write(source, address, data, _MEMATTR.of(attributes), _SH.of(attributes))
        return True

    def configured(self, source: str) -> bool:
        """Whether the interrupt of a source is a message."""
        return bool(self._mask and self._address(source.upper()))

    def sync(self, command: CmdSync) -> None:
        """The message of a CMD_SYNC with SIG_IRQ; none with MSIAddress=0 (§4.7.3).

        IRQ_CTRL has no say in it.
        """
        address = command.msiaddress & self._mask
        if address:
            self._write("cmdq-sync", address, command.msidata, command.msiattr, command.msh)

    def _address(self, name: str) -> int:
        if not self._mask:
            # Without IDR0.MSI there is no PRIQ_IRQ_CFG0.
            return 0
        return _ADDR.of((self._regs[f"{name}_IRQ_CFG0"],)) & self._mask

    def _write(self, source: str, address: int, data: int, memattr: int, sh: int) -> None:
        memattr, sh = effective(memattr, sh)
        self.last = Message(source, address, data, memattr, sh)
        self._counters["msi." + source] += 1
        if self._memory.write32(address, data):
            self._counters["msi.written"] += 1
        else:
            self._counters["msi.abort"] += 1
            self._gerror(_ABT_ERR[source])


def effective(memattr: int, sh: int) -> tuple[int, int]:
    """MemAttr and SH as they act (§6.3.23).

    A reserved MemAttr is Device-nGnRnE and a reserved SH Non-shareable; Device and Normal
    Non-cacheable are Outer Shareable, whatever SH says.
    """
    if memattr not in _MEMATTRS:
        memattr = 0
    if memattr in _DEVICE or memattr == _NON_CACHEABLE:
        return memattr, Sh.OSH
    return memattr, sh if sh in (Sh.OSH, Sh.ISH) else Sh.NSH
