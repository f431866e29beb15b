# SPDX-License-Identifier: BSD-2-Clause
"""A guest of the fuzzer: one that attacks, or one that only wants its devices to work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from dt_tools.profiles import DEFAULT
from vsmmu.arch.commands import (
    OPCODES,
    CmdCfgiCd,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdSync,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    Command,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.registers import BY_NAME, REGISTERS, QueueBase
from vsmmu.arch.stream_table import L1Std, Ste, SteConfig
from vsmmu.hypervisor.stage2 import Stage2
from vsmmu.queue import Ring
from vsmmu.smmu.port import Request

from .fuzz_memory import MACHINE, SIDS, VMIDS, RacingMemory, WatchedMemory, frames_of, plain

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
OFFSETS = [r.offset for r in REGISTERS]
ENABLED = 0xD
POLLS = 60_000
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
        self.latencies: list[int] = []
        self.expected: Counter[tuple[int, int]] = Counter()
        self.cons = 0

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

    def acknowledge(self) -> None:
        """Repair the command that stopped the queue, and go on."""
        if (self.read("GERROR") ^ self.read("GERRORN")) & 1:
            self.memory.write_words(self.ring.address(self.read("CMDQ_CONS")), SYNC.words)
        self.write("GERRORN", self.read("GERROR"))
        self.write("EVENTQ_CONS", self.read("EVENTQ_PROD"))

    # Structures as a good driver makes them.

    def ste(self, vmaster_id: int, **fields: int) -> Ste:
        cd = CDS + 64 * (vmaster_id % 8)
        wanted = {"v": 1, "config": SteConfig.S1, "s1ctxptr": cd, "s1cir": 1, "s1cor": 1}
        return Ste.build(**wanted | fields)

    def put_ste(self, vmaster_id: int, ste: Ste) -> None:
        self.memory.write_words(LEVEL2 + 64 * vmaster_id, ste.words)

    def structures(self) -> None:
        """Two-level table, CDs, and for each stream a table of three levels with 8 pages."""
        self.memory.write64(STRTAB, L1Std.build(span=7, l2ptr=LEVEL2).raw)
        for slot in range(8):
            self.put_ste(self.ids[slot], self.ste(self.ids[slot]))
            cd = Cd.build(t0sz=25, epd1=1, tg1=2, ips=5, aa64=1, r=1, a=1, aset=1, v=1,
                          asid=slot + 1, ttb0=TABLES, mair0=0xFF)  # fmt: skip
            self.memory.write_words(CDS + 64 * slot, cd.words)
        self.memory.write64(TABLES, TABLES + 0x1000 | 3)
        self.memory.write64(TABLES + 0x1000, TABLES + 0x2000 | 3)
        for page in range(8):
            self.memory.write64(self.leaf(page), DATA + (page << 12) | 0x743)

    def leaf(self, page: int) -> int:
        return TABLES + 0x2000 + 8 * ((IOVA >> 12) + page)

    def program(self) -> None:
        """Set the vSMMU up; guarded registers take the new value if SMMUEN was acknowledged."""
        self.structures()
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

    # The victim.

    def victim(self) -> Iterator[None]:
        """Use the devices, change the configuration, and find each time what was asked for."""
        random = self.random
        while True:
            device = random.choice(self.devices)
            sid = device.vmaster_id
            yield from self.sync(random.choice([TLBI, CmdTlbiNhAsid.build(asid=1), SYNC]))
            yield from self.reaches(device)
            kind = random.randrange(4)
            if kind == 0:
                self.put_ste(sid, self.ste(sid, config=SteConfig.ABORT))
                yield from self.sync(CmdCfgiSte.build(sid=sid, leaf=1))
                yield from self.misses(device, None)
                self.put_ste(sid, self.ste(sid))
                yield from self.sync(CmdCfgiSte.build(sid=sid, leaf=1))
            elif kind == 1:
                self.memory.write64(self.leaf(1), 0)
                yield from self.sync(CmdTlbiNhVa.build(asid=sid % 8 + 1, addr=IOVA + 0x1000))
                yield from self.misses(device, (0x10, sid))
                self.memory.write64(self.leaf(1), DATA + 0x1000 | 0x743)
            elif kind == 2:
                cd = CDS + 64 * (sid % 8)
                word = self.memory.read64(cd)
                self.memory.write64(cd, word & ~(1 << 31))
                yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))
                yield from self.misses(device, (0x0A, sid))
                self.memory.write64(cd, word)
                yield from self.sync(CmdCfgiCd.build(sid=sid, leaf=1))
            self.records()

    def sync(self, command: Command) -> Iterator[None]:
        start = self.world.scheduler.turns
        prod = self.post([command, SYNC])
        while self.read("CMDQ_CONS") != prod:
            assert self.world.scheduler.turns - start <= self.world.latency, "CMD_SYNC is late"
            yield
        self.latencies.append(self.world.scheduler.turns - start)

    def reaches(self, device: Device) -> Iterator[None]:
        offset = self.random.randrange(0x3F) * 64
        data = plain(self.random.getrandbits(128)).to_bytes(16, "little")
        request = device.write(IOVA + offset, data)
        yield from self._wait(request)
        assert request.ok, request.outcomes
        assert self.memory.read(DATA + offset, 16) == data
        request = device.read(IOVA + offset, 16)
        yield from self._wait(request)
        assert request.data == data

    def misses(self, device: Device, record: tuple[int, int] | None) -> Iterator[None]:
        if record is not None:
            self.expected[record] += 1
        request = device.read(IOVA + 0x1000, 8)
        yield from self._wait(request)
        assert not request.ok
        # What it left is in the queue when an invalidation after it is complete.
        yield from self.sync(TLBI)

    def _wait(self, request: Request) -> Iterator[None]:
        for _ in range(POLLS):
            if request.done:
                return
            yield
        raise AssertionError("a device of the victim is held up")

    def records(self) -> None:
        """The records in the queue are those of the victim's own faults, no more and no fewer."""
        ring, found = Ring(EVENTQ_LOG2, 32, EVENTQ), Counter[tuple[int, int]]()
        prod = self.read("EVENTQ_PROD")
        assert not prod >> 31, "overflow"
        while self.cons != prod:
            word = self.memory.read64(ring.address(self.cons))
            found[word & 0xFF, word >> 32] += 1
            self.cons = ring.advance(self.cons)
        self.write("EVENTQ_CONS", self.cons)
        assert found == self.expected, (found, self.expected)
        self.expected.clear()

    # The attacker.

    def number(self) -> int:
        r = self.random
        kind = r.randrange(10)
        if kind < 2:
            return r.choice([0, 1, 3, 0xFFFF_FFFF, (1 << 64) - 1, 1 << r.randrange(64)])
        if kind < 5:
            return RAM + (r.randrange(RAM_PAGES) << 12) + r.choice([0, 0, 8, 64, 0xFF8])
        if kind == 5 and not self.world.memory.blind:
            page = r.randrange(self.world.machine_size >> 12)
            return r.choice([MACHINE + (page << 12), *VMIDS, *SIDS])
        return plain(r.getrandbits(r.choice([8, 12, 20, 32, 48, 64])))

    def poke(self) -> None:
        r = self.random
        offset = r.choice(OFFSETS) if r.random() < 0.8 else r.randrange(0x4_0000)
        size = r.choice([4, 4, 4, 8, 8, 1, 2, 3])
        self.world.trap(self, offset + r.choice([0, 0, 0, 4]), size, self.number())
        self.world.trap(self, offset, size)

    def switch(self) -> None:
        """Enables on and off, GBPA, errors acknowledged: what races with updates."""
        r = self.random
        for _ in range(r.randrange(1, 4)):
            self.write("CR0", r.choice([ENABLED, ENABLED, ENABLED, 0xC, 9, 5, 0]))
            if r.random() < 0.3:
                self.write("GBPA", 1 << 31 | r.getrandbits(1) << 20)
            self.world.turns(r.randrange(6))
        self.acknowledge()

    def command(self) -> Command:
        r = self.random
        kind = r.randrange(8)
        sid = r.choice([*self.ids, *range(32), self.number() & 0xFFFF_FFFF])
        if kind == 0:
            return CmdCfgiSte.build(sid=sid, leaf=r.getrandbits(1))
        if kind == 1:
            return r.choice([
                CmdCfgiSteRange.build(sid=sid, range=r.choice([0, 3, 31, r.randrange(32)])),
                CmdCfgiCd.build(sid=sid, ssid=r.choice([0, 0, 3])), TLBI, SYNC,
            ])  # fmt: skip
        if kind == 2:
            vmid = r.choice([0, 1, 2, 3, self.number() & 0xFFFF])
            return CmdTlbiNhVa.build(vmid=vmid, asid=r.randrange(10), addr=self.number() & -4096)
        opcode = r.choice([*OPCODES, 0x46, 0x46, r.randrange(256)])
        return Command((self.number() & ~0xFF | opcode, r.choice([0, 1, self.number()])))

    def commands(self) -> None:
        r = self.random
        if r.random() < 0.6:
            self.acknowledge()
        count = r.choice([1, 2, 3, 5, 60])
        if count == 60:
            flood = [CmdTlbiNhVa.build(addr=n << 12) for n in range(r.choice([60, 250]))]
            self.post([*flood, SYNC])
        else:
            self.post([self.command() for _ in range(count)])

    def jump(self) -> None:
        """PROD anywhere, as far as 2^20 - 1 ahead."""
        r, cons = self.random, self.read("CMDQ_CONS")
        ahead = r.choice([(1 << 20) - 1, 255, 256, 257, 511, r.getrandbits(20)])
        self.write("CMDQ_PROD", plain(cons + ahead & 0xF_FFFF))

    def race(self) -> None:
        """Three CPUs with the same idea of PROD, and halves of registers between their writes."""
        r, ring, prod = self.random, self.ring, self.read("CMDQ_PROD")
        for _ in range(3):
            mine = prod + r.randrange(1, 4)
            for at in range(prod, mine):
                self.memory.write_words(ring.address(at), self.command().words)
            if r.random() < 0.3:
                name = r.choice(["STRTAB_BASE", "CMDQ_BASE", "EVENTQ_BASE"])
                half = BY_NAME[name].offset + r.choice([0, 4])
                self.world.trap(self, half, 4, self.number() & 0xFFFF_FFFF)
            self.world.turns(r.randrange(3))
            self.write("CMDQ_PROD", ring.clip(mine))

    def rewrite_ste(self) -> None:
        r = self.random
        sid = r.choice([*(d.vmaster_id for d in self.devices), *self.ids])
        ste = r.choice([
            self.ste(sid), self.ste(sid), self.ste(sid, config=r.randrange(8)), Ste(),
            self.ste(sid, s1ctxptr=self.number() & (1 << 52) - 64, s1cdmax=r.choice([0, 1, 31])),
            self.ste(sid, s1fmt=r.randrange(4), s1cdmax=2, s1dss=r.randrange(4)),
            self.ste(sid, config=r.choice([5, 6, 7]), s2ttb=self.number() & (1 << 52) - 16,
                     s2vmid=self.number() & 0xFFFF, s2aa64=1, s2t0sz=24, s2sl0=1),
        ])  # fmt: skip
        words = list(ste.words)
        if r.random() < 0.3:
            words[r.randrange(8)] ^= self.number() & (1 << 64) - 1
        for index in r.sample(range(8), 8):
            self.memory.write64(LEVEL2 + 64 * sid + 8 * index, words[index])
            if r.random() < 0.1:
                self.world.turns(1)
        if r.random() < 0.8:
            self.post([CmdCfgiSte.build(sid=sid, leaf=1), SYNC][: r.choice([1, 2])])

    def rewrite_cd(self) -> None:
        r = self.random
        slot = r.randrange(8)
        place = CDS + 64 * slot + 8 * r.choice([0, 0, 1, 1, 2, 3])
        word = self.memory.read64(place)
        self.memory.write64(place, r.choice([word ^ 1 << r.randrange(64), self.number()]))
        if r.random() < 0.8:
            self.post([CmdCfgiCd.build(sid=self.ids[slot], leaf=1), SYNC])

    def rewrite_table(self) -> None:
        r = self.random
        place = r.choice([TABLES, TABLES + 0x1000, *(self.leaf(n) for n in range(8))])
        word = r.choice([self.number() & ~0xFFF | 0x743, self.number() | 3, self.number()])
        self.memory.write64(place, word)
        if r.random() < 0.5:
            self.post([r.choice([TLBI, CmdTlbiNhAsid.build(asid=r.randrange(10))])])

    def scribble(self) -> None:
        for _ in range(self.random.choice([1, 1, 5])):
            place = RAM + (self.random.randrange(12) << 12) + 8 * self.random.randrange(512)
            self.memory.write64(place, self.number() & (1 << 64) - 1)

    def dma(self) -> None:
        r = self.random
        if not self.devices:
            return
        device = r.choice(self.devices)
        if device.pending >= 30:
            return
        kind = r.randrange(8)
        if kind < 5:
            iova = IOVA + (r.randrange(10) << 12) + r.choice([0, 8, 0xFF0])
        else:
            iova = r.choice([self.number(), RAM + (r.randrange(80) << 12), HIGH + 0x2000])
        iova &= (1 << 64) - 1
        size = min(r.choice([1, 8, 64, 64, 5000]), (1 << 64) - iova)
        ssid = r.choice([None] * 9 + [r.choice([0, 1, 5])])
        if r.random() < 0.5:
            data = plain(r.getrandbits(64)).to_bytes(8, "little")
            device.write(iova, data[:size], ssid=ssid)
        else:
            device.read(iova, size, ssid=ssid, instr=r.random() < 0.2, priv=r.random() < 0.2)


# As often as they are here.
MOVES = (
    *[Guest.poke] * 2, Guest.switch, *[Guest.commands] * 3, Guest.jump, Guest.race,
    *[Guest.rewrite_ste] * 3, *[Guest.rewrite_cd] * 2, *[Guest.rewrite_table] * 2, Guest.scribble,
    *[Guest.dma] * 6,
)  # fmt: skip
