# SPDX-License-Identifier: BSD-2-Clause
"""A guest of the fuzzer: its registers, memory and devices, and the structures of a good driver."""

from __future__ import annotations

from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

from dt_tools.profiles import DEFAULT
from vsmmu.arch.commands import CmdSync, CmdTlbiNhAll, Command
from vsmmu.arch.context import Cd
from vsmmu.arch.registers import BY_NAME, QueueBase
from vsmmu.arch.stream_table import L1Std, Ste, SteConfig
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.queue import Ring

from .fuzz_memory import VMIDS, RacingMemory, WatchedMemory, frames_of

if TYPE_CHECKING:
    from .fuzz_isolation import Device, World

BASE = 0x0404_0000
RAM, RAM_PAGES = 0x4000_0000, 64
HIGH, HIGH_PAGES = 1 << 32, 4
BANKS = [(RAM, RAM_PAGES << 12), (HIGH, HIGH_PAGES << 12)]
# Pages of a guest's RAM, by what is put there; the rest is data.
STRTAB, LEVEL2, CMDQ, EVENTQ, CDS, TABLES = (RAM + (n << 12) for n in (0, 1, 2, 3, 4, 5))
DATA = RAM + (16 << 12)
CMDQ_LOG2, EVENTQ_LOG2 = 8, 6
IOVA = 0x10000
ENABLED = 0xD
TLBI, SYNC = CmdTlbiNhAll.build(), CmdSync.build(cs=0)


class Ram:
    """A guest's RAM as its CPUs see it; what the hypervisor reads for it is another view."""

    def __init__(self, memory: WatchedMemory, stage2: Stage2) -> None:
        self._memory = memory
        self._pages = {ipa >> 12: pa for ipa, pa, _ in stage2.mappings()}

    def read64(self, ipa: int) -> int:
        return self._memory.read64(self._pages[ipa >> 12] + (ipa & 0xFFF)) or 0

    def read(self, ipa: int, size: int) -> bytes | None:
        return self._memory.read(self._pages[ipa >> 12] + (ipa & 0xFFF), size)

    def write64(self, ipa: int, value: int) -> None:
        page = self._pages.get(ipa >> 12)
        if page is not None:
            self._memory.write64(page + (ipa & 0xFFF), value)

    def write_words(self, ipa: int, words: tuple[int, ...]) -> None:
        for index, word in enumerate(words):
            self.write64(ipa + 8 * index, word)


class Guest:
    """Registers, memory and devices as one guest has them; vMasterIDs are no other guest's."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index = world, index
        self.random: Random = world.random
        self.domain = domain = world.hypervisor.create_domain(f"g{index}", BANKS)
        domain.vmid = VMIDS[index]
        self.frames = frozenset(frames_of(domain.owned))
        world.memory.readable |= self.frames
        self.memory = Ram(world.memory, domain.stage2)
        self.racing = RacingMemory(
            world.memory, domain.stage2, self.random, lambda words: world.record(self, words)
        )
        domain.memory = self.racing
        self.vsmmu = world.hypervisor.create_vsmmu(
            domain, BASE, 0x4_0000, DEFAULT.vsmmu.idr, list(world.smmus)
        )
        # What the STEs of its streams have of stage 2.
        fields = {"s2vmid": domain.vmid, **domain.stage2.ste_fields}
        self.stage2 = list(zip(Ste.mask(*fields), Ste.build(**fields).words, strict=True))
        self.ids = range(8 * index + 8, 8 * index + 16)
        self.devices: list[Device] = []
        self.registers: dict[str, int] = {}

    # The trapped window.

    def write(self, name: str, value: int) -> None:
        register = BY_NAME[name]
        self.world.trap(self, register.offset, register.width // 8, value)

    def read(self, name: str) -> int:
        register = BY_NAME[name]
        return self.world.trap(self, register.offset, register.width // 8)

    @property
    def ring(self) -> Ring:
        base = QueueBase(self.read("CMDQ_BASE"))
        return Ring.of(base.addr, base.log2size, 19, 16)

    def post(self, commands: list[Command]) -> int:
        ring, prod = self.ring, self.read("CMDQ_PROD")
        for command in commands:
            self.memory.write_words(ring.address(prod), command.words)
            prod = ring.advance(prod)
        self.write("CMDQ_PROD", prod)
        return prod

    # Structures as a good driver makes them.

    def ste(self, vmaster_id: int, **fields: int) -> Ste:
        cd = CDS + 64 * (vmaster_id % 8)
        wanted = {"v": 1, "config": SteConfig.S1, "s1ctxptr": cd, "s1cir": 1, "s1cor": 1}
        return Ste.build(**wanted | fields)

    def put_ste(self, vmaster_id: int, ste: Ste) -> None:
        self.memory.write_words(LEVEL2 + 64 * vmaster_id, ste.words)

    @cached_property
    def structures(self) -> list[tuple[int, tuple[int, ...]]]:
        """Two-level table, CDs, and for each stream a table of three levels with 8 pages."""
        ttb0, middle = (TABLES + 0x1000 | 3,), (TABLES + 0x2000 | 3,)
        leaves = tuple(DATA + (page << 12) | 0x743 for page in range(8))
        out = [
            (STRTAB, L1Std.build(span=7, l2ptr=LEVEL2).words),
            (TABLES, ttb0), (TABLES + 0x1000, middle), (self.leaf(0), leaves),
        ]  # fmt: skip
        for slot, sid in enumerate(self.ids):
            cd = Cd.build(t0sz=25, epd1=1, tg1=2, ips=5, aa64=1, r=1, a=1, aset=1, v=1,
                          asid=slot + 1, ttb0=TABLES, mair0=0xFF)  # fmt: skip
            out += [(LEVEL2 + 64 * sid, self.ste(sid).words), (CDS + 64 * slot, cd.words)]
        return out

    def leaf(self, page: int) -> int:
        return TABLES + 0x2000 + 8 * ((IOVA >> 12) + page)

    def program(self) -> None:
        """Set the vSMMU up; guarded registers take the new value if SMMUEN was acknowledged."""
        for place, words in self.structures:
            self.memory.write_words(place, words)
        for name, value in (
            ("IRQ_CTRL", 5), ("CR2", 2), ("STRTAB_BASE", STRTAB),
            ("STRTAB_BASE_CFG", 1 << 16 | 6 << 6 | 8),
            ("CMDQ_BASE", QueueBase.build(addr=CMDQ, log2size=CMDQ_LOG2).raw),
            ("CMDQ_PROD", 0), ("CMDQ_CONS", 0),
            ("EVENTQ_BASE", QueueBase.build(addr=EVENTQ, log2size=EVENTQ_LOG2).raw),
            ("EVENTQ_PROD", 0), ("EVENTQ_CONS", 0), ("GERRORN", self.read("GERROR")),
            ("CR0", ENABLED),
        ):  # fmt: skip
            self.write(name, value)
