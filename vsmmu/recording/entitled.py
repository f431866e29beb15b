# SPDX-License-Identifier: BSD-2-Clause
"""What a recorded driver did because its SMMU had what no vSMMU offers: stage 2, and EL2.

Commands for EL2 that Linux sends wherever IDR0.HYP is set are left out, as it would have left them
out. A driver that uses stage 2 cannot be helped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vsmmu.arch import commands
from vsmmu.arch.commands import (
    CmdPrefetchConfig,
    CmdTlbiEl2All,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.registers import Cerror, CmdqCons, Idr0, QueueBase
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.guest_ste import fetch
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.queue import Ring

_STAGE2 = (CmdTlbiS12Vmall, CmdTlbiS2Ipa)
_STAGE2_STES = (SteConfig.S2, SteConfig.NESTED)
# Stands for a command that is left out: a hint for a StreamID that the vSMMU may ignore.
_NOTHING = CmdPrefetchConfig.build().words


def refusal(vsmmu: VSmmu, recorded: Mapping[str, int]) -> str | None:
    """Why the recording is none for a vSMMU, if its driver uses stage 2 where it had it."""
    if not Idr0(recorded["IDR0"]).s2p:
        return None
    used = _stage2_command(vsmmu) or _stage2_ste(vsmmu)
    return None if used is None else f"the recorded driver uses stage 2 ({used})"


def _stage2_ste(vsmmu: VSmmu) -> str | None:
    for sid in vsmmu.streams:
        found = fetch(vsmmu.regs, sid, vsmmu.domain.memory)
        if isinstance(found, Ste) and found.v and found.config in _STAGE2_STES:
            config = Ste.fields["config"].show(found.config)
            return f"the STE of StreamID {sid:#x} has Config={config}"
    return None


def _stage2_command(vsmmu: VSmmu) -> str | None:
    cons = CmdqCons(vsmmu.regs["CMDQ_CONS"])
    if cons.err != Cerror.ILL:
        return None
    words = vsmmu.domain.memory.read_words(_ring(vsmmu).address(cons.rd), Command.dwords)
    command = None if words is None else commands.decode(words)
    return command.name if isinstance(command, _STAGE2) else None


def leave_out(
    vsmmu: VSmmu, recorded: Mapping[str, int], prod: int
) -> list[tuple[int, tuple[int, ...]]]:
    """Take CMD_TLBI_EL2_ALL out of what a write of CMDQ_PROD sends.

    Returns:
        What was there, as (address, words), for `put_back` once the commands are consumed.
    """
    if not Idr0(recorded["IDR0"]).hyp or vsmmu.idr0.hyp:
        return []
    ring, memory = _ring(vsmmu), vsmmu.domain.memory
    before = vsmmu.regs["CMDQ_PROD"]
    found = []
    for pointer in range(before, before + ring.pending(prod, before)):
        at = ring.address(pointer)
        words = memory.read_words(at, Command.dwords)
        if words is not None and isinstance(commands.decode(words), CmdTlbiEl2All):
            found.append((at, words))
            memory.write_words(at, _NOTHING)
    return found


def put_back(vsmmu: VSmmu, taken: Iterable[tuple[int, tuple[int, ...]]]) -> None:
    """Memory as the driver had it: the next record says only what changed."""
    for at, words in taken:
        vsmmu.domain.memory.write_words(at, words)


def _ring(vsmmu: VSmmu) -> Ring:
    base = QueueBase(vsmmu.regs["CMDQ_BASE"])
    address = base.addr & vsmmu.address_mask
    return Ring.of(address, base.log2size, vsmmu.idr1.cmdqs, Command.size)
