# SPDX-License-Identifier: BSD-2-Clause
"""What a guest's command is meant for, as the physical SMMU tags it (docs/counters.md).

Taken from the guest's command, not from the physical one that is made of it: what that one drops
beyond is over-invalidation.
"""

from __future__ import annotations

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    Command,
)
from vsmmu.smmu.intent import ConfigScope, TlbScope

# Log2 of the granule by CMD_TLBI_*.TG.
_GRANULE = {1: 12, 2: 14, 3: 16}


def tlb_scope(command: Command, vmid: int) -> TlbScope:
    """Of a TLBI command, whose range fields are 0 where there is no range."""
    if isinstance(command, CmdTlbiNhAsid):
        return TlbScope(vmid=vmid, asid=command.asid, stage=1)
    if isinstance(command, CmdTlbiNhVa):
        return TlbScope(vmid=vmid, asid=command.asid, addresses=_addresses(command), stage=1)
    if isinstance(command, CmdTlbiNhVaa):
        return TlbScope(vmid=vmid, addresses=_addresses(command), stage=1)
    return TlbScope(vmid=vmid, stage=1)


def _addresses(command: CmdTlbiNhVa | CmdTlbiNhVaa) -> tuple[int, int]:
    """First and last address (§4.4.1)."""
    if not command.tg:
        return command.addr, command.addr
    length = (command.num + 1) << command.scale << _GRANULE[command.tg]
    return command.addr, command.addr + length - 1


def cd_scope(command: CmdCfgiCd | CmdCfgiCdAll, sid: int) -> ConfigScope:
    """Of a CFGI_CD command for a physical StreamID; all its CDs are not its STE (§4.3.3)."""
    if isinstance(command, CmdCfgiCd):
        return ConfigScope(sid, sid, command.ssid)
    return ConfigScope(sid, sid)
