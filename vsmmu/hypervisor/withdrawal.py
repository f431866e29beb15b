# SPDX-License-Identifier: BSD-2-Clause
"""What ends a stream's dealings with its guest when it is taken back.

Sent once the physical STE aborts: what is stalled is terminated, what its page requests wait for is
answered. The device's translation cache is emptied after that (`Flush.endpoints`).
"""

from __future__ import annotations

from collections.abc import Sequence

from vsmmu.arch.commands import CmdPriResp, CmdStallTerm, CmdTlbiS12Vmall, Command
from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.vsmmu import VSmmu


def last_commands(vsmmu: VSmmu, stream: Stream, unsent: Sequence[Command]) -> list[Command]:
    """The physical commands, in order.

    Args:
        unsent: what `VSmmu.withdraw` returned, of which answers to the device are still due.
    """
    commands: list[Command] = [CmdTlbiS12Vmall.build(vmid=vsmmu.domain.vmid)]
    if stream.host.can_stall:
        commands.append(CmdStallTerm.build(sid=stream.pmaster_id))
    commands += [command for command in unsent if isinstance(command, CmdPriResp)]
    return [*commands, *vsmmu.pri.withdraw(stream)]
