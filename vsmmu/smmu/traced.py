# SPDX-License-Identifier: BSD-2-Clause
"""Trace events of commands and accesses, under QEMU's names (`vsmmu.trace`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.smmu.commands import ste_span

if TYPE_CHECKING:
    from collections import Counter

    from vsmmu.smmu.transaction import Access, Outcome
    from vsmmu.trace import Trace

# What an access made the SMMU read, by the counters of docs/counters.md.
_CONFIG = ("walk.l1std", "walk.ste", "walk.l1cd", "walk.cd")
_WALK = ("walk.s1", "walk.s2", "tlb.hit", "tlb.miss")
_NAMES = (*_CONFIG, *_WALK)


def command(trace: Trace, smmu: str, cmd: Command) -> None:
    """A command that was fetched, and what it says where QEMU has an event for that."""
    trace("smmuv3_cmdq_opcode", smmu, cmd.name)
    match cmd:
        case CmdCfgiSte():
            trace("smmuv3_cmdq_cfgi_ste", smmu, cmd.sid)
        case CmdCfgiSteRange():
            first, last = ste_span(cmd)
            trace("smmuv3_cmdq_cfgi_ste_range", smmu, first, last)
        case CmdCfgiCd() | CmdCfgiCdAll():
            trace("smmuv3_cmdq_cfgi_cd", smmu, cmd.sid)
        case CmdTlbiNhAll():
            trace("smmuv3_cmdq_tlbi_nh", smmu, cmd.vmid)
        case CmdTlbiNhAsid():
            trace("smmuv3_cmdq_tlbi_nh_asid", smmu, cmd.asid, cmd.vmid)
        case CmdTlbiNsnhAll():
            trace("smmuv3_cmdq_tlbi_nsnh", smmu)
        case CmdTlbiS12Vmall():
            trace("smmuv3_cmdq_tlbi_s12_vmid", smmu, cmd.vmid)
        case CmdTlbiNhVa() | CmdTlbiNhVaa() | CmdTlbiS2Ipa():
            asid = cmd.asid if isinstance(cmd, CmdTlbiNhVa) else "any"
            pages = (cmd.num + 1) << cmd.scale if cmd.tg else 1
            stage = 2 if isinstance(cmd, CmdTlbiS2Ipa) else 1
            where = (cmd.addr, int(cmd.tg), pages, cmd.ttl, cmd.leaf, stage)
            trace("smmuv3_range_inval", smmu, cmd.vmid, asid, *where)


def reads(counters: Counter[str]) -> tuple[int, ...]:
    """What `access` is to be given, as it was before the access."""
    return tuple(counters[name] for name in _NAMES)


def access(
    trace: Trace,
    smmu: str,
    what: Access,
    outcome: Outcome,
    counters: Counter[str],
    before: tuple[int, ...] | None,
    *,
    enabled: bool,
) -> None:
    """An access and its outcome, after what was read for it since `before`."""
    if before is not None:
        delta = [now - then for now, then in zip(reads(counters), before, strict=True)]
        config = sum(delta[: len(_CONFIG)])
        trace("smmuv3_walk", smmu, what.sid, what.iova, config, *delta[len(_CONFIG) :])
    place = (smmu, what.sid, what.iova)
    if outcome.status == "ok":
        trace("smmuv3_translate_success", *place, outcome.pa, outcome.perms)
    elif outcome.status == "bypass":
        name = "smmuv3_translate_bypass" if enabled else "smmuv3_translate_disable"
        trace(name, *place, int(what.write))
    elif outcome.status == "abort":
        trace("smmuv3_translate_abort", *place, int(what.write))
    else:
        event = "suppressed" if outcome.event is None else outcome.event.name
        trace("smmuv3_translate_fault", *place, outcome.status, event)
