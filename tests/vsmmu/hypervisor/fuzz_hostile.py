# SPDX-License-Identifier: BSD-2-Clause
"""What a hostile guest of the fuzzer does."""

from __future__ import annotations

from vsmmu.arch.commands import (
    OPCODES,
    CmdCfgiCd,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    Command,
)
from vsmmu.arch.registers import Cerror, CmdqCons, QueueBase
from vsmmu.arch.stream_table import L1Std, Ste

from .fuzz_guest import (
    BY_NAME,
    CDS,
    HIGH,
    IOVA,
    LEVEL2,
    RAM,
    RAM_PAGES,
    STRTAB,
    SYNC,
    TABLES,
    TLBI,
    WINDOW_PAGES,
    Guest,
)
from .fuzz_memory import SIDS, STAGS, VMIDS, leaks, plain

OFFSETS = [r.offset for r in BY_NAME.values()]


class Hostile(Guest):
    """Its moves; in a world that is not blind it knows the machine's addresses and numbers."""

    @property
    def stuck(self) -> bool:
        """Whether its commands are where it has no memory."""
        return CmdqCons(self.vsmmu.regs["CMDQ_CONS"]).err == Cerror.ABT

    def acknowledge(self) -> None:
        """Repair the command that stopped the queue, and go on."""
        if (self.read("GERROR") ^ self.read("GERRORN")) & 1:
            self.memory.write_words(self.ring.address(self.read("CMDQ_CONS")), SYNC.words)
        self.write("GERRORN", self.read("GERROR"))
        self.write("EVENTQ_CONS", self.read("EVENTQ_PROD"))

    def number(self) -> int:
        r = self.random
        kind = r.randrange(10)
        if kind < 2:
            return r.choice([0, 1, 3, 0xFFFF_FFFF, (1 << 64) - 1, 1 << r.randrange(64)])
        if kind < 5:
            pages = RAM_PAGES + r.choice([0, 0, WINDOW_PAGES])
            return RAM + (r.randrange(pages) << 12) + r.choice([0, 0, 8, 64, 0xFF8])
        if kind == 5 and not self.world.memory.blind:
            return r.choice([self.foreign(), self.foreign(), *VMIDS, *SIDS, *STAGS])
        return plain(r.getrandbits(r.choice([8, 12, 20, 32, 48, 64])))

    def foreign(self) -> int:
        """The machine address of a page of another guest's."""
        others = [g for g in self.world.guests if g is not self and g.estate.frames]
        other = self.random.choice(others)
        return self.random.choice(sorted(other.estate.frames)) << 12

    def point(self) -> None:
        """A structure of its own at another guest's memory, if it knows where that is."""
        r = self.random
        place = self.number() if self.world.memory.blind else self.foreign()
        if r.random() < 0.5:
            l1std = L1Std.build(span=7, l2ptr=place & (1 << 52) - 64)
            self.memory.write64(STRTAB, l1std.raw)
            self.post([CmdCfgiSteRange.build(range=31), SYNC])
            return
        name, enables = r.choice([("CMDQ", 5), ("EVENTQ", 9)])
        self.write("CR0", enables)
        base = QueueBase.build(addr=place & (1 << 52) - 32, log2size=r.choice([0, 4, 8]))
        for register, value in (("BASE", base.raw), ("PROD", 1), ("CONS", 0)):
            self.write(f"{name}_{register}", value)
        self.write("CR0", self.enabled)

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
            self.write("CR0", r.choice([*[self.enabled] * 3, 0x1F, 0xC, 9, 5, 0]))
            if r.random() < 0.3:
                self.write("GBPA", 1 << 31 | r.getrandbits(1) << 20)
            self.world.turns(r.randrange(6))
        self.acknowledge()

    def stream(self) -> int:
        """A StreamID, of its own or of anybody's."""
        r = self.random
        return r.choice([*self.ids, *range(32), self.number() & 0xFFFF_FFFF])

    def command(self) -> Command:
        r = self.random
        kind = r.randrange(8)
        sid = self.stream()
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
        ring, cons = self.ring, self.read("CMDQ_CONS")
        if self.vsmmu.idle and ring.used(self.read("CMDQ_PROD"), cons) > ring.size:
            self.world.turns(r.randrange(40))
            assert self.read("CMDQ_CONS") == cons, "more than a queue apart"

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
            self.ste(sid, eats=r.randrange(4), mev=1, strw=2, shcfg=r.randrange(4), privcfg=1),
            self.ste(sid, config=r.choice([5, 6, 7]), s2ttb=self.number() & (1 << 52) - 16,
                     s2vmid=self.number() & 0xFFFF, s2aa64=1, s2t0sz=24, s2sl0=1),
        ])  # fmt: skip
        words = list(ste.words)
        if r.random() < 0.3:
            words[r.randrange(8)] ^= self.number() & (1 << 64) - 1
        for index in r.sample(range(8), 8):
            # Fields beside each other can make digits of a secret, which nobody has told it.
            word = plain(words[index]) if leaks([words[index]]) else words[index]
            self.memory.write64(LEVEL2 + 64 * sid + 8 * index, word)
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
        # With and without access flag, clean and dirty.
        word = self.number() & ~0xFFF | r.choice([0x743, 0x743, 0x343, 1 << 51 | 0x3C3])
        word = r.choice([word, self.number() | 3, self.number()])
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
