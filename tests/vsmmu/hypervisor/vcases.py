# SPDX-License-Identifier: BSD-2-Clause
"""Random cases with guests: what each does to its vSMMU, and the equivalent physical program.

`Host` writes the physical program: queues, a linear stream table, a stage 2 for each guest. It
knows nothing of `vsmmu.hypervisor`. `Guest` does something in its own addresses and has the host
do the same thing in physical ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from vsmmu.arch.commands import (
    CmdCfgiSte,
    CmdSync,
    CmdTlbiNsnhAll,
    Command,
)
from vsmmu.arch.registers import BY_NAME
from vsmmu.arch.stream_table import Ste, SteConfig

Json = dict[str, Any]

PAGE = 0x1000
CMDQ, EVENTQ, STRTAB, STAGE2 = 0x4010_0000, 0x4012_0000, 0x4040_0000, 0x4020_0000
LOG2 = 8
# The same addresses for every guest: RAM for structures, RAM for data, and what is no RAM.
WORK, DATA, NOWHERE = 0x4000_0000, 0x5000_0000, 0x6000_0000
WORK_SIZE, DATA_SIZE = 0x20_0000, 0x8_0000
MACHINE_WORK, MACHINE_DATA = 0x4100_0000, 0x4200_0000


def write(name: str, value: int) -> Json:
    register = BY_NAME[name]
    size = register.width // 8
    return {"op": "w", "reg": name, "off": hex(register.offset), "val": hex(value), "size": size}


def words(data: Sequence[int]) -> str:
    return b"".join(word.to_bytes(8, "little") for word in data).hex()


class Host:
    """The physical program."""

    def __init__(self) -> None:
        self.steps: list[Json] = []
        self._prod = 0
        self._next = STAGE2
        for name, value in (
            ("CMDQ_BASE", CMDQ | LOG2), ("EVENTQ_BASE", EVENTQ | LOG2),
            ("STRTAB_BASE", STRTAB), ("STRTAB_BASE_CFG", 16), ("CR2", 2), ("CR0", 0xD),
        ):  # fmt: skip
            self.steps.append(write(name, value))

    def mem(self, address: int, data: str) -> None:
        self.steps.append({"op": "mem", "addr": hex(address), "hex": data})

    def stage2(self, banks: Sequence[tuple[int, int, int]]) -> int:
        """Tables of pages, three levels behind a first one: 44 bits. The address of the first."""
        tables: dict[tuple[int, int], int] = {}
        content: dict[int, int] = {}

        def table(level: int, ipa: int) -> int:
            key = level, ipa >> 12 + 9 * (4 - level)
            if key not in tables:
                tables[key] = self._next
                self._next += PAGE
                if level:
                    content[table(level - 1, ipa) + 8 * index(level - 1, ipa)] = tables[key] | 3
            return tables[key]

        def index(level: int, ipa: int) -> int:
            return ipa >> 12 + 9 * (3 - level) & 511

        root = table(0, 0)
        for ipa, pa, size in banks:
            for offset in range(0, size, PAGE):
                slot = table(3, ipa + offset) + 8 * index(3, ipa + offset)
                content[slot] = pa + offset | 0x7FF
        self._write_all(content)
        return root

    def _write_all(self, content: dict[int, int]) -> None:
        run: list[int] = []
        for address in sorted(content):
            run.append(content[address])
            if address + 8 not in content:
                self.mem(address + 8 - 8 * len(run), words(run))
                run = []

    def ste(self, sid: int, ste: Ste) -> None:
        self.mem(STRTAB + 64 * sid, words(ste.words))
        self.put(CmdCfgiSte.build(sid=sid, leaf=1))

    def put(self, *commands: Command) -> None:
        for command in (*commands, CmdSync.build()):
            self.mem(CMDQ + 16 * (self._prod % (1 << LOG2)), words(command.words))
            self._prod = (self._prod + 1) % (2 << LOG2)
        self.steps.append(write("CMDQ_PROD", self._prod))


class Guest:
    """One guest: a heap of its own addresses, its queues and its stream table."""

    def __init__(
        self, g: int, rng: random.Random, host: Host, vsteps: list[Json], sids: dict[int, int]
    ) -> None:
        self.g, self.rng, self.host, self.vsteps, self.sids = g, rng, host, vsteps, sids
        self.vmid = rng.randrange(1, 1 << 12) * 16 + g
        far = rng.choice([0, 0, 0, 1 << 40])
        self.work, self.data, self.nowhere = WORK + far, DATA + far, NOWHERE + far
        self.banks = [
            (self.work, MACHINE_WORK + g * WORK_SIZE, WORK_SIZE),
            (self.data, MACHINE_DATA + g * DATA_SIZE, DATA_SIZE),
        ]
        self.s2 = {
            "s2vmid": self.vmid, "s2t0sz": 20, "s2sl0": 2, "s2ir0": 1, "s2or0": 1, "s2sh0": 3,
            "s2ps": 4, "s2aa64": 1, "s2ptw": 1, "s2r": 1, "s2ttb": host.stage2(self.banks),
        }  # fmt: skip
        self._next = self.work
        self.stes: dict[int, Ste] = dict.fromkeys(sids, Ste())
        self.enabled = self.abort = False
        self._prod = 0
        self.cmdq_log2 = rng.randrange(3, 7)
        for sid in sids:
            self.shadow(sid)

    @property
    def described(self) -> Json:
        return {
            "vmid": self.vmid,
            "ram": [{"ipa": hex(i), "pa": hex(p), "size": hex(n)} for i, p, n in self.banks],
            "sids": {hex(v): hex(p) for v, p in self.sids.items()},
        }

    # Memory and registers.

    def allocate(self, size: int) -> int:
        """Aligned to its size."""
        base = -(-self._next // size) * size
        self._next = base + size
        assert self._next <= self.work + WORK_SIZE
        return base

    def pa(self, ipa: int) -> int | None:
        found = [pa + ipa - base for base, pa, size in self.banks if base <= ipa < base + size]
        return found[0] if found else None

    def mem(self, ipa: int, data: Sequence[int]) -> None:
        self.vsteps.append({"g": self.g, "op": "mem", "addr": hex(ipa), "hex": words(data)})
        pa = self.pa(ipa)
        if pa is not None:
            self.host.mem(pa, words(data))

    def write(self, name: str, value: int) -> None:
        self.vsteps.append({"g": self.g, **write(name, value)})

    # What drivers do.

    def boot(self) -> None:
        self.cmdq, eventq = self.allocate(PAGE), self.allocate(PAGE)
        self.strtab = self.allocate(0x4000)
        # Bits that the SMMU of 44 bits does not have count for nothing.
        high = self.rng.choice([0, 0, 1 << 45])
        self.write("CMDQ_BASE", high | self.cmdq | self.cmdq_log2)
        self.write("EVENTQ_BASE", high | eventq | 7)
        self.split = self.rng.choice([0, 6, 8, 10])
        # Up to 256 StreamIDs; a table of two levels has one of 64 bytes for each in the second.
        fmt = int(self.split > 0)
        self.write("STRTAB_BASE", self.strtab)
        self.write("STRTAB_BASE_CFG", 8 | self.split << 6 | fmt << 16)
        if fmt:
            self.level2 = self.allocate(0x4000)
            for i in range(4 if self.split == 6 else 1):
                span = min(self.split, 8) + 1
                self.mem(self.strtab + 8 * i, [self.level2 + (i << 12) | span])
        self.write("CR2", self.rng.choice([0, 2]))
        self.write("CR0", 0xC)
        for sid in self.sids:
            self.mem(self.ste_address(sid), self.stes[sid].words)
        self.enable(True)

    def ste_address(self, sid: int) -> int:
        return (self.level2 if self.split else self.strtab) + 64 * sid

    def enable(self, on: bool) -> None:
        self.write("CR0", 0xD if on else 0xC)
        self.enabled = on
        for sid in self.sids:
            self.shadow(sid)

    def gbpa(self, abort: bool) -> None:
        """While it is off: what its accesses meet."""
        self.write("GBPA", 1 << 31 | abort << 20)
        self.abort = abort
        for sid in self.sids:
            self.shadow(sid)

    def shadow(self, sid: int) -> None:
        """The physical STE, anew from what the guest's memory holds."""
        self.host.ste(self.sids[sid], self._physical(self.stes[sid]))

    def _physical(self, ste: Ste) -> Ste:
        if not self.enabled:
            if self.abort:
                return Ste.build(v=1)
            return Ste.build(v=1, config=SteConfig.S2, shcfg=1, **self.s2)
        if ste.v and ste.config == SteConfig.ABORT:
            return Ste.build(v=1)
        if ste.v and ste.config == SteConfig.BYPASS:
            return Ste.build(v=1, config=SteConfig.S2, shcfg=1, **self.s2)
        if ste.v and ste.config == SteConfig.S1:
            return Ste.build(v=1, config=SteConfig.NESTED, s1ctxptr=ste.s1ctxptr, **self.s2)
        return Ste()

    def put(self, *commands: Command, host: Sequence[Command] = ()) -> None:
        """Commands and a CMD_SYNC; the host's take their place in the physical program."""
        for command in (*commands, CmdSync.build(cs=self.rng.choice([0, 1, 2]))):
            at = self._prod % (1 << self.cmdq_log2)
            self.mem(self.cmdq + 16 * at, command.words)
            self._prod = (self._prod + 1) % (2 << self.cmdq_log2)
            if at % 4 == 3:
                self.write("CMDQ_PROD", self._prod)
        self.write("CMDQ_PROD", self._prod)
        self.host.put(*host)

    def flush(self) -> None:
        """All that its VMID stands for."""
        self.put(CmdTlbiNsnhAll.build(), host=[CmdTlbiNsnhAll.build()])

    def dma(self, sid: int, iova: int, *, size: int = 4, stale_ok: bool = False) -> None:
        step: Json = {"op": "dma", "iova": hex(iova), "rw": self.rng.choice("rw"), "size": size}
        if stale_ok:
            step["stale_ok"] = True
        self.host.steps.append({**step, "sid": hex(self.sids[sid]), "v": len(self.vsteps)})
        self.vsteps.append({**step, "g": self.g, "vsid": hex(sid)})
