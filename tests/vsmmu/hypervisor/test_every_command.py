# SPDX-License-Identifier: BSD-2-Clause
"""Every opcode with every bit beside it, and every Range, against the tables of IHI 0070 §4."""

from __future__ import annotations

import random

from vsmmu.arch.commands import CmdCfgiSteRange, CmdSync, Command
from vsmmu.arch.registers import Cerror, CmdqCons
from vsmmu.hypervisor.domain import Stream

from .world import Guest, World

SYNC = CmdSync.build()
# §4.1 to §4.7 for an SMMU with stage 1 alone, without EL2, ATS, PRI and stalls.
LEGAL = {1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46}
WITH_SSEC = {1, 2, 3, 4, 5, 6}
RANGED = {0x12, 0x13}


def illegal(low: int, high: int) -> bool:
    """What §7.1 calls CERROR_ILL; bit numbers are those of §4."""
    opcode = low & 0xFF
    if opcode in WITH_SSEC:
        return bool(low >> 10 & 1)
    if opcode == 0x46:
        return low >> 12 & 3 == 3
    if opcode in RANGED:
        tg, ttl = high >> 10 & 3, high >> 8 & 3
        ttl = 0 if (tg, ttl) == (2, 1) else ttl
        return bool(tg) and not (low >> 12 & 0x1F or low >> 20 & 0x3F or ttl)
    return opcode not in LEGAL


def repair(guest: Guest) -> None:
    """Acknowledged as it is, the error comes again; repaired, the queue goes on (§7.1)."""
    stopped = guest.read("CMDQ_CONS")
    guest.write("GERRORN", guest.read("GERROR"))
    assert guest.vsmmu.regs.gerror_active
    assert guest.read("CMDQ_CONS") == stopped
    guest.memory.write_words(guest.driver._cmdq.address(stopped), SYNC.words)
    guest.write("GERRORN", guest.read("GERROR"))


def test_every_opcode_with_any_bits() -> None:
    world = World({"g": [("a", 0x600)], "o": [("a", 0x700)]})
    guest, rng = world["g"].boot(), random.Random(7)
    guest.quiet()
    for opcode in range(256):
        for mask in (0, (1 << 128) - 256, rng.getrandbits(128) & -256):
            word = rng.getrandbits(128) & mask | opcode
            low, high = word & (1 << 64) - 1, word >> 64
            start = CmdqCons(guest.read("CMDQ_CONS")).rd
            guest.put(SYNC, Command((low, high)), SYNC)
            cons = CmdqCons(guest.read("CMDQ_CONS"))
            stopped = bool(guest.vsmmu.regs.gerror_active)
            assert stopped == illegal(low, high), f"{low:#x} {high:#x}"
            if stopped:
                assert (cons.rd, cons.err) == ((start + 1) % 512, Cerror.ILL)
                repair(guest)
            assert CmdqCons(guest.read("CMDQ_CONS")).rd == guest.read("CMDQ_PROD")
    # The queue that guests share never stopped.
    assert not [c for c in world.hypervisor.hosts["a"].counters if c.startswith("CERROR")]


def test_every_range_of_stream_ids() -> None:
    """§4.3.2: the aligned block of 2^(Range+1); 31 is all; each STE in it is read once."""
    world = World({"g": []})
    guest = world["g"].boot()
    for i, vmaster_id in enumerate((0, 1, 2, 3, 4, 7, 8, 255, 256, 1023, 0x7FFF, 0x8000, 0xFFFF)):
        world.hypervisor.assign(guest.vsmmu, vmaster_id, "c", 0x100 + i)
    read: list[int] = []
    shadow = guest.vsmmu._shadow

    def watched(stream: Stream) -> None:
        read.append(stream.vmaster_id)
        shadow(stream)

    guest.vsmmu._shadow = watched  # type: ignore[method-assign]
    for size in range(32):
        for sid in (0, 3, 300, 0x8000, 0xFFFF, 0x1_0000, 0xFFFF_FFFF):
            read.clear()
            guest.put(CmdCfgiSteRange.build(sid=sid, range=size), SYNC)
            low = sid & -(2 << size)
            block = range(1 << 32) if size == 31 else range(low, low + (2 << size))
            assert sorted(read) == [v for v in sorted(guest.vsmmu.streams) if v in block]
