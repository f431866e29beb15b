# SPDX-License-Identifier: BSD-2-Clause
"""What ends a stream's dealings with its guest when it is taken back.

Once the physical STE aborts, what is stalled is terminated and what its page requests wait for is
answered; then the device's translation cache is emptied (`Flush.endpoints`). A stream whose device
does not answer that is in quarantine: nobody gets it, until the device was reset and did answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from vsmmu.arch.commands import (
    ATC_INV_ALL,
    CmdAtcInv,
    CmdPriResp,
    CmdStallTerm,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.domain import Stream
from vsmmu.hypervisor.flush import Flush, completed
from vsmmu.hypervisor.host_smmu import HYPERVISOR, HostSmmu
from vsmmu.hypervisor.jobs import Work
from vsmmu.hypervisor.vsmmu import VSmmu

_ABORT = Ste.build(v=1, config=SteConfig.ABORT)


def stop(vsmmu: VSmmu, stream: Stream, flush: Flush) -> Work[bool]:
    """Stop a stream's DMA and leave nothing cached of it; False if its device did not answer."""
    host, sid, domain = stream.host, stream.pmaster_id, vsmmu.domain
    unsent = vsmmu.withdraw(stream)
    while stream.busy:
        yield False
    # What its owner had sent before may name it, so that has to pass first.
    yield from completed([partial(host.submit, domain.domid, [])])
    yield from completed([partial(host.update_ste, HYPERVISOR, sid, _ABORT)])
    last = last_commands(vsmmu, stream, unsent)
    yield from completed([partial(host.submit, HYPERVISOR, last)])
    answered = yield from flush.endpoints(HYPERVISOR, [stream])
    mark = host.pri_reader.mark()
    while not host.pri_reader.passed(mark):
        yield False
    host.ats.discard(sid)
    vsmmu.event_writer.forget(stream.vmaster_id)
    return answered


def empty_atc(host: HostSmmu, sid: int) -> Work[bool]:
    """Have a device drop all of its translations; False if it did not answer."""
    silent: list[bool] = []
    invalidate = CmdAtcInv.build(sid=sid, size_lg2=ATC_INV_ALL)
    timed_out = partial(silent.append, True)
    yield from completed([partial(host.submit, HYPERVISOR, [invalidate], timed_out=timed_out)])
    return not silent


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
