# SPDX-License-Identifier: BSD-2-Clause
"""What ends a stream's dealings with its guest when it is taken back.

Sent once the physical STE aborts: what is stalled is terminated, the device's translation cache is
emptied, what its page requests wait for is answered.
"""

from __future__ import annotations

from vsmmu.arch.commands import ATC_INV_ALL, CmdAtcInv, CmdStallTerm, CmdTlbiS12Vmall, Command
from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.vsmmu import VSmmu


def last_commands(vsmmu: VSmmu, stream: Stream) -> list[Command]:
    """The physical commands, in order; without a SubstreamID an ATC_INV means every one."""
    commands: list[Command] = [CmdTlbiS12Vmall.build(vmid=vsmmu.domain.vmid)]
    if stream.host.can_stall:
        commands.append(CmdStallTerm.build(sid=stream.pmaster_id))
    if vsmmu.idr0.ats:
        commands.append(CmdAtcInv.build(sid=stream.pmaster_id, size_lg2=ATC_INV_ALL))
    return [*commands, *vsmmu.pri.withdraw(stream)]
