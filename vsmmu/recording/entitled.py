# SPDX-License-Identifier: BSD-2-Clause
"""What a recorded driver did because its SMMU had what no vSMMU offers: stage 2, and EL2.

CMD_TLBI_EL2_ALL, which Linux sends wherever IDR0.HYP is set, is left out, as it would have left it
out. A driver that uses stage 2, or whose tables are those of EL2, cannot be helped.
"""

from __future__ import annotations

from collections.abc import Mapping

from vsmmu.arch import commands
from vsmmu.arch.commands import (
    CmdPrefetchConfig,
    CmdTlbiEl2All,
    CmdTlbiEl2Asid,
    CmdTlbiEl2Va,
    CmdTlbiEl2Vaa,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.registers import Cerror, CmdqCons, Idr0, Idr5, QueueBase
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.guest_ste import fetch
from vsmmu.hypervisor.vsmmu import VSmmu
from vsmmu.queue import Ring

# Why there is no vSMMU for a driver.
STAGE1_ALONE = (
    "a vSMMU offers stage 1 alone, since stage 2 is the hypervisor's: replay it without --vsmmu"
)
_EL1_ALONE = "a vSMMU offers no EL2: replay it without --vsmmu"
_STAGE2 = (CmdTlbiS12Vmall, CmdTlbiS2Ipa)
_EL2 = (CmdTlbiEl2Asid, CmdTlbiEl2Va, CmdTlbiEl2Vaa)
_STAGE2_STES = (SteConfig.S2, SteConfig.NESTED)
# Stands for a command that is left out: a hint for a StreamID that the vSMMU may ignore.
_NOTHING = CmdPrefetchConfig.build().words


def refusal(vsmmu: VSmmu, recorded: Mapping[str, int], pa: int) -> str | None:
    """Why the recording is none for a vSMMU, if its driver uses what no vSMMU has and it had.

    Args:
        pa: where the access ended that differs; 0 for anything else.
    """
    idr0, stopped = Idr0(recorded["IDR0"]), _illegal_command(vsmmu)
    if idr0.s2p:
        used = stopped.name if isinstance(stopped, _STAGE2) else _stage2_ste(vsmmu)
        if used is not None:
            return f"the recorded driver uses stage 2 ({used}); {STAGE1_ALONE}"
    if idr0.hyp and isinstance(stopped, _EL2):
        return f"the recorded driver uses EL2 ({stopped.name}); {_EL1_ALONE}"
    bits = vsmmu.domain.stage2.ipa_bits
    if pa >> bits and Idr5(recorded["IDR5"]).oas > Idr5(vsmmu.regs["IDR5"]).oas:
        return f"an access ends at {pa:#x}, beyond the {bits} bits of a guest's addresses"
    return None


def _stage2_ste(vsmmu: VSmmu) -> str | None:
    for sid in vsmmu.streams:
        found = fetch(vsmmu.regs, sid, vsmmu.domain.memory)
        if isinstance(found, Ste) and found.v and found.config in _STAGE2_STES:
            config = Ste.fields["config"].show(found.config)
            return f"the STE of StreamID {sid:#x} has Config={config}"
    return None


def _illegal_command(vsmmu: VSmmu) -> Command | None:
    """The command that the queue stopped at, if it did."""
    cons = CmdqCons(vsmmu.regs["CMDQ_CONS"])
    if cons.err != Cerror.ILL:
        return None
    words = vsmmu.domain.memory.read_words(_ring(vsmmu).address(cons.rd), Command.dwords)
    return None if words is None else commands.decode(words)


def leave_out(vsmmu: VSmmu, recorded: Mapping[str, int], prod: int) -> dict[int, tuple[int, ...]]:
    """Take CMD_TLBI_EL2_ALL out of what a write of CMDQ_PROD sends.

    Returns:
        What was there by address, for `put_back`.
    """
    if not Idr0(recorded["IDR0"]).hyp or vsmmu.idr0.hyp:
        return {}
    ring, memory = _ring(vsmmu), vsmmu.domain.memory
    before = vsmmu.regs["CMDQ_PROD"]
    found = {}
    for pointer in range(before, before + ring.pending(prod, before)):
        at = ring.address(pointer)
        words = memory.read_words(at, Command.dwords)
        if words is not None and isinstance(commands.decode(words), CmdTlbiEl2All):
            found[at] = words
            memory.write_words(at, _NOTHING)
    return found


def put_back(vsmmu: VSmmu, taken: dict[int, tuple[int, ...]]) -> None:
    """Memory as the driver had it, of commands that are consumed: records say only what changed.

    Those stay taken that the queue has not come to, as behind an error.
    """
    ring, memory = _ring(vsmmu), vsmmu.domain.memory
    prod, cons = vsmmu.regs["CMDQ_PROD"], CmdqCons(vsmmu.regs["CMDQ_CONS"]).rd
    waiting = {ring.address(p) for p in range(cons, cons + ring.pending(prod, cons))}
    for at in [at for at in taken if at not in waiting]:
        words = taken.pop(at)
        if memory.read_words(at, Command.dwords) == _NOTHING:
            memory.write_words(at, words)


def _ring(vsmmu: VSmmu) -> Ring:
    base = QueueBase(vsmmu.regs["CMDQ_BASE"])
    address = base.addr & vsmmu.address_mask
    return Ring.of(address, base.log2size, vsmmu.idr1.cmdqs, Command.size)
