# SPDX-License-Identifier: BSD-2-Clause
"""A guest of the fuzzer: its registers, memory and devices, and the structures of a good driver."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

from dt_tools.profiles import DEFAULT
from vsmmu.arch.commands import CmdSync, CmdTlbiNhAll, Command
from vsmmu.arch.context import Cd
from vsmmu.arch.feature_registers import EVERY_REGISTER
from vsmmu.arch.registers import Cr0, QueueBase, StallModel
from vsmmu.arch.stream_table import L1Std, Ste, SteConfig
from vsmmu.queue import Ring

from .fuzz_memory import RacingMemory, WatchedMemory
from .fuzz_pages import Estate

if TYPE_CHECKING:
    from .fuzz_devices import Device
    from .fuzz_isolation import World

BASE = 0x0404_0000
RAM, RAM_PAGES = 0x4000_0000, 64
HIGH, HIGH_PAGES = 1 << 32, 4
BANKS = [(RAM, RAM_PAGES << 12), (HIGH, HIGH_PAGES << 12)]
# Pages of a guest's RAM, by what is put there; the rest is data.
STRTAB, LEVEL2, CMDQ, EVENTQ, CDS, TABLES = (RAM + (n << 12) for n in (0, 1, 2, 3, 4, 5))
PRIQ, MAILBOX = RAM + (8 << 12), RAM + (9 << 12)
DATA = RAM + (16 << 12)
# What the victim lets the others read; where they map what others let them have.
SHARED = RAM + (40 << 12)
WINDOW, WINDOW_PAGES = RAM + (RAM_PAGES << 12), 16
CMDQ_LOG2, EVENTQ_LOG2, PRIQ_LOG2 = 8, 6, 3
IOVA = 0x10000
# What of an STE may differ from the stage 2 that its owner has.
ALLOWED = (
    "v", "config", "shcfg", "s1stalld",
    "s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "s1cir", "s1cor", "s1csh",
)  # fmt: skip
BY_NAME = {register.name: register for register in EVERY_REGISTER}
TLBI, SYNC = CmdTlbiNhAll.build(), CmdSync.build(cs=0)


class Ram:
    """A guest's RAM as its CPUs see it; what the hypervisor reads for it is another view.

    Pages that it has no more read as zero, and writes to them are lost.
    """

    def __init__(self, memory: WatchedMemory, estate: Estate) -> None:
        self._memory = memory
        self._estate = estate
        self._pages = estate.pages

    def read64(self, ipa: int) -> int:
        page = self._pages.get(ipa >> 12)
        return 0 if page is None else self._memory.read64(page + (ipa & 0xFFF)) or 0

    def read(self, ipa: int, size: int) -> bytes | None:
        return self._memory.read(self._pages[ipa >> 12] + (ipa & 0xFFF), size)

    def write64(self, ipa: int, value: int) -> None:
        page = self._pages.get(ipa >> 12)
        if page is not None and page >> 12 not in self._estate.readonly:
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
        self.estate: Estate = world.land.add(domain)
        self.memory = Ram(world.memory, self.estate)
        self.racing = RacingMemory(
            world.memory, domain.stage2, self.random, lambda words: world.record(self, words)
        )
        domain.memory = self.racing
        world.vmids[domain.domid] = domain.vmid
        world.arriving = self
        self.vsmmu = world.hypervisor.create_vsmmu(
            domain, BASE, 0x4_0000, DEFAULT.vsmmu.idr, list(world.smmus)
        )
        world.answers.listen(self)
        self.stalls = self.vsmmu.idr0.stall_model == StallModel.STALL_AND_TERMINATE
        self.ats, self.pri = bool(self.vsmmu.idr0.ats), bool(self.vsmmu.idr0.pri)
        self.msi = bool(self.vsmmu.idr0.msi)
        self.enabled = Cr0.build(
            smmuen=1, eventqen=1, cmdqen=1, priqen=int(self.pri), atschk=int(self.ats)
        ).raw
        # What the STEs of its streams have of stage 2.
        fields = {"s2vmid": domain.vmid, **domain.stage2.ste_fields}
        self.stage2 = list(zip(Ste.mask(*fields), Ste.build(**fields).words, strict=True))
        names = ALLOWED + ("eats",) * self.ats + ("ppar",) * self.pri
        self.theirs = Ste.mask(*names)
        self.ids = range(8 * index + 8, 8 * index + 16)
        self.devices: list[Device] = []
        self.registers: dict[str, int] = {}
        # What its STEs and CDs have beyond the least.
        self.ste_fields: dict[str, int] = {}
        self.cd_fields: dict[str, int] = {}
        # (StreamID, STAG) of stalled transactions, (StreamID, group, SubstreamID) of page requests
        # that it was told lately.
        self.told: deque[tuple[int, int]] = deque(maxlen=8)
        self.paged: deque[tuple[int, int, int | None]] = deque(maxlen=8)

    @property
    def taken(self) -> int:
        """Events that its vSMMU was given."""
        vsmmu = self.vsmmu
        return vsmmu.event_writer.accepted + vsmmu.counters["stall"]

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
        return Ste.build(**wanted | self.ste_fields | fields)

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
            out += [(LEVEL2 + 64 * sid, self.ste(sid).words)]
            out += [(CDS + 64 * slot, self.cd(slot).words)]
        return out

    def cd(self, slot: int, **fields: int) -> Cd:
        wanted = {"t0sz": 25, "epd1": 1, "tg1": 2, "ips": 5, "aa64": 1, "r": 1, "a": 1, "aset": 1}
        wanted |= {"v": 1, "asid": slot + 1, "ttb0": TABLES, "mair0": 0xFF}
        return Cd.build(**wanted | self.cd_fields | fields)

    def leaf(self, page: int) -> int:
        return TABLES + 0x2000 + 8 * ((IOVA >> 12) + page)

    def program(self) -> None:
        """Set the vSMMU up; guarded registers take the new value if SMMUEN was acknowledged."""
        for place, words in self.structures:
            self.memory.write_words(place, words)
        for name, value in (
            ("IRQ_CTRL", 7), ("CR2", 2), ("STRTAB_BASE", STRTAB),
            ("STRTAB_BASE_CFG", 1 << 16 | 6 << 6 | 8),
            ("CMDQ_BASE", QueueBase.build(addr=CMDQ, log2size=CMDQ_LOG2).raw),
            ("CMDQ_PROD", 0), ("CMDQ_CONS", 0),
            ("EVENTQ_BASE", QueueBase.build(addr=EVENTQ, log2size=EVENTQ_LOG2).raw),
            ("EVENTQ_PROD", 0), ("EVENTQ_CONS", 0), ("GERRORN", self.read("GERROR")),
        ):  # fmt: skip
            self.write(name, value)
        if self.pri:
            self.write("PRIQ_BASE", QueueBase.build(addr=PRIQ, log2size=PRIQ_LOG2).raw)
            self.write("PRIQ_PROD", 0)
            self.write("PRIQ_CONS", 0)
        self.write("CR0", self.enabled)
