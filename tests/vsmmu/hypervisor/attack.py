# SPDX-License-Identifier: BSD-2-Clause
"""What attacks have in common: commands and engines in an order of their own."""

from __future__ import annotations

from vsmmu.arch.commands import (
    CmdCfgiSte,
    CmdSync,
    CmdTlbiNhAll,
    Command,
)
from vsmmu.arch.registers import Gerror

CFGI = CmdCfgiSte.build(sid=0, leaf=1)
SYNC = CmdSync.build(cs=0)
TLBI = CmdTlbiNhAll.build()
CMDQ_ERR = Gerror.mask("cmdq_err")[0]
EVENTQ_ABT = Gerror.mask("eventq_abt_err")[0]
UNMAPPED = 0x90000


def post(guest, *commands: Command) -> int:
    """Commands into the queue, PROD moved, nothing stepped; returns PROD."""
    prod = guest.read("CMDQ_PROD")
    for command in commands:
        guest.memory.write_words(guest.driver._cmdq.address(prod), command.words)
        prod = guest.driver._cmdq.advance(prod)
    guest.driver._prod = prod
    guest.write("CMDQ_PROD", prod, rest=False)
    return prod


def engines(world, *parts: str):
    """The engines whose names contain one of these."""
    return [e for e in world.scheduler.engines if any(part in e.name for part in parts)]


def settle(world) -> None:
    assert world.scheduler.run_until_idle()


def records(guest) -> list[tuple[int, int]]:
    """(number, StreamID) of the records in the guest's queue, straight from its memory."""
    ring, out = guest.driver._eventq, []
    cons = 0
    while ring.clip(cons) != ring.clip(guest.read("EVENTQ_PROD")):
        word = guest.memory.read64(ring.address(cons))
        out.append((word & 0xFF, word >> 32))
        cons = ring.advance(cons)
    return out


def line(guest) -> bool:
    """Whether a cause of the guest's interrupt stands."""
    return any(guest.vsmmu.levels.values())


def once_at_a_time(host, busy: set[tuple[str, int]]):
    """`update_ste` of a host that does not stand two updates of one StreamID."""
    original = host.update_ste

    def update(owner, sid, new, done):
        place = host.path, sid
        assert place not in busy
        busy.add(place)

        def ended():
            busy.remove(place)
            done()

        original(owner, sid, new, ended)

    return update


def sent(guest, smmu: str) -> list[Command]:
    """A list that fills with what the hypervisor submits to a physical SMMU from now on."""
    host, seen = guest.world.hypervisor.hosts[smmu], []
    original = host.submit

    def submit(owner, commands, done=None, **watch):
        seen.extend(commands)
        original(owner, commands, done, **watch)

    host.submit = submit
    return seen
