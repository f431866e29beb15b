# SPDX-License-Identifier: BSD-2-Clause
"""Guests that do anything: structures and commands with random bits, queues that overflow.

There is no equivalent physical program of two guests. Each alone, on an SMMU without stage 2 whose
RAM is where the guest has its own, is what the guest must see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.vsmmu.hypervisor.vcases import Guest, Host, Json, words, write
from tests.vsmmu.hypervisor.vcases_random import IOVAS, Program, Space
from vsmmu.arch.commands import (
    OPCODES,
    CmdAtcInv,
    CmdCfgiSteRange,
    CmdPriResp,
    CmdResume,
    CmdStallTerm,
    CmdSync,
    CmdTlbiEl2All,
    CmdTlbiNhAll,
    CmdTlbiS2Ipa,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.registers import BY_NAME
from vsmmu.smmu import replay as physical

_READ = (
    "CMDQ_CONS", "CMDQ_PROD", "CR0", "CR0ACK", "CR2", "EVENTQ_CONS", "EVENTQ_PROD", "GBPA",
    "GERROR", "GERRORN", "IRQ_CTRLACK", "STRTAB_BASE_CFG",
)  # fmt: skip

_ILLEGAL = (
    CmdTlbiS12Vmall.build(), CmdTlbiS2Ipa.build(), CmdTlbiEl2All.build(), CmdAtcInv.build(),
    CmdPriResp.build(), CmdResume.build(), CmdStallTerm.build(), CmdSync.build(cs=3),
    Command((0, 0)), Command((0xFF, 0)),
)  # fmt: skip
# Without prefetches, which may record events or not (§4.2).
_OPCODES = [opcode for opcode in OPCODES if opcode > 2]


def _is_illegal(command: tuple[int, ...]) -> bool:
    """Whether an SMMU without stage 2 stops at a command."""
    steps = [
        write("CMDQ_BASE", 0x4000_0000), write("CR0", 8),
        {"op": "mem", "addr": "0x40000000", "hex": words(command)}, write("CMDQ_PROD", 1),
    ]  # fmt: skip
    regs = physical.play({"stage": "1", "steps": steps})["regs"]
    return regs["GERROR"] != "0x0"


class _NoHost(Host):
    """Nobody writes a physical program."""

    def stage2(self, banks: Sequence[tuple[int, int, int]]) -> int:
        return 0

    def mem(self, address: int, data: str) -> None:
        pass

    def put(self, *commands: Command) -> None:
        pass


class Wild(Program):
    """A case of such guests, none of which has an address above 40 bits."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.host = _NoHost()
        self.gerror: dict[Guest, int] = {}
        self.vsteps = []
        self.guests = [self._guest(guest) for guest in self.guests]

    def _guest(self, like: Guest) -> Guest:
        while True:
            guest = Guest(like.g, self.rng, self.host, self.vsteps, like.sids)
            if guest.banks[0][0] >> 40 == 0:
                return guest

    def make(self, count: int) -> Json:
        rng = self.rng
        for guest in self.guests:
            self.spaces[guest] = [Space(guest, 1 + i) for i in range(2)]
            for sid in guest.sids:
                guest.stes[sid] = self.ste(guest, sid)
            guest.boot()
            guest.write("IRQ_CTRL", rng.choice([0, 1, 4, 5]))
        actions = (
            self.access, self.access, self.flip_ste, self.flip_cd, self.command, self.command,
            self.read, self.registers, self.consume,
        )  # fmt: skip
        for _ in range(count):
            rng.choice(actions)(rng.choice(self.guests))
        return {
            "id": "wild", "stage": "nested", "vsteps": self.vsteps,
            "guests": [guest.described for guest in self.guests],
        }  # fmt: skip

    def _flipped(self, words: Sequence[int]) -> list[int]:
        out = list(words)
        for _ in range(self.rng.randrange(3)):
            # Most of what has a meaning is in the first words.
            bit = self.rng.randrange(64 * self.rng.randrange(1, len(out) + 1))
            out[bit // 64] ^= 1 << bit % 64
        return out

    def flip_ste(self, guest: Guest) -> None:
        sid = self.rng.choice(sorted(guest.sids))
        guest.mem(guest.ste_address(sid), self._flipped(self.ste(guest, sid).words))
        guest.put(CmdCfgiSteRange.build(range=31), CmdTlbiNhAll.build())
        guest.dma(sid, self.rng.choice(IOVAS))

    def flip_cd(self, guest: Guest) -> None:
        space = self.rng.choice(self.spaces[guest])
        if guest._next - guest.work < 0x10_0000:
            space.renew()
        guest.mem(space.cd, self._flipped(space.words))
        guest.put(CmdCfgiSteRange.build(range=31), CmdTlbiNhAll.build())
        for sid in guest.sids:
            guest.dma(sid, self.rng.choice(IOVAS))

    def command(self, guest: Guest) -> None:
        """Any command; a CMD_SYNC takes its place when it is illegal (§7.1)."""
        command = self.rng.choice(_ILLEGAL).words
        if self.rng.random() < 0.7:
            command = tuple(self._flipped((self.rng.choice(_OPCODES), self.rng.getrandbits(64))))
        at = guest.cmdq + 16 * (guest._prod % (1 << guest.cmdq_log2))
        guest.mem(at, command)
        guest._prod = (guest._prod + 1) % (2 << guest.cmdq_log2)
        guest.write("CMDQ_PROD", guest._prod)
        for name in ("GERROR", "CMDQ_CONS"):
            self._read(guest, name)
        guest.mem(at, CmdSync.build().words)
        self.gerror[guest] = self.gerror.get(guest, 0) ^ _is_illegal(command)
        guest.write("GERRORN", self.gerror[guest])
        guest.put(CmdTlbiNhAll.build())

    def read(self, guest: Guest) -> None:
        self._read(guest, self.rng.choice(_READ))

    def _read(self, guest: Guest, name: str) -> None:
        offset = hex(BY_NAME[name].offset)
        self.vsteps.append({"g": guest.g, "op": "r", "reg": name, "off": offset, "size": 4})

    def registers(self, guest: Guest) -> None:
        """Off, a table of another size or an abort for everyone, on again."""
        rng = self.rng
        guest.write("CR0", 0xC)
        guest.write("GBPA", 1 << 31 | rng.randrange(2) << 20)
        self.access_off(guest)
        guest.write("CR2", rng.choice([0, 2]))
        split = guest.split << 6 | int(guest.split > 0) << 16
        guest.write("STRTAB_BASE_CFG", split | rng.choice([0, 1, 7, 8, 8, 16, 63]))
        guest.put(CmdCfgiSteRange.build(range=31), CmdTlbiNhAll.build())
        guest.write("CR0", rng.choice([0xD, 0xD, 0x9]))
        self.access(guest)
        guest.write("CR0", 0xD)

    def access_off(self, guest: Guest) -> None:
        sid = self.rng.choice(sorted(guest.sids))
        guest.dma(sid, guest.data + self.rng.choice([0, 0x1000, 1 << 30]))

    def consume(self, guest: Guest) -> None:
        """EVENTQ_CONS anywhere."""
        guest.write("EVENTQ_CONS", self.rng.choice([0, 1, 8, 0x80, 0xFF, self.rng.getrandbits(32)]))


def wild_case(seed: int, count: int = 60) -> Json:
    """A case without `steps`."""
    return Wild(seed).make(count)


def alone(case: Json, g: int) -> tuple[Json, list[int]]:
    """A guest's program as one for an SMMU of its own, and the guest step of each of its steps."""
    own = [i for i, step in enumerate(case["vsteps"]) if step["g"] == g]
    steps: list[dict[str, Any]] = []
    for i in own:
        step = {key: value for key, value in case["vsteps"][i].items() if key != "g"}
        if "vsid" in step:
            step["sid"] = step.pop("vsid")
        steps.append(step)
    return {"id": case["id"], "stage": "1", "steps": steps}, own
