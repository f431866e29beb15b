# SPDX-License-Identifier: BSD-2-Clause
"""Random programs from a seed: legal set-ups with spoiled parts, changed while they run.

What QEMU is known to do otherwise is left out here and tried by `qemu_deviations`; each of its
rows says what. An access before the invalidation of a change is made, and not checked.
"""

from __future__ import annotations

from tests.differential.qemu_author import ON, Author, Table, leaf
from tests.differential.qemu_random_tables import OLD_QEMU, Leaf, RandomTables, Stream
from vsmmu.arch import commands as c
from vsmmu.arch.commands import Command
from vsmmu.arch.registers import Cr0, Gbpa, IrqCtrl
from vsmmu.memory import PAGE
from vsmmu.smmu.features import Features

RIL_TG = {"4K": 1, "16K": 2, "64K": 3}
RESERVED_OPCODES = (0x00, 0x08, 0x0F, 0x14, 0x1F, 0x2B, 0x31, 0x47, 0x60, 0x7F, 0xC3, 0xFF)


def program(seed: int, features: Features, version: tuple[int, ...]) -> Author:
    """The program of a seed for an SMMU with these features."""
    return Generator(seed, features, version).author


class Generator(RandomTables):
    """Makes one program; the result is in `author`."""

    def __init__(self, seed: int, features: Features, version: tuple[int, ...]) -> None:
        super().__init__(seed, features, version)
        self._boot()
        rng = self.rng
        for _ in range(rng.randint(8, 22)):
            rng.choices(
                [self._access, self._remap, self._reconfigure, self._bad_command, self._registers,
                 self._disable],
                [60, 14, 6, 3, 4, 2],
            )[0]()  # fmt: skip

    # Steps.

    def _boot(self) -> None:
        rng, author = self.rng, self.author
        author.boot(
            cmdq=rng.choice([1, 2, 3, 5]), eventq=rng.choice([4, 5, 6]), log2size=self.log2size,
            split=self.split,
            irq=rng.choice([0, 7, 7, 7]) & IrqCtrl.mask("gerror_irqen", "eventq_irqen")[0],
        )  # fmt: skip
        if rng.random() < 0.5:
            author.sync(c.CmdCfgiSteRange.build(range=31), c.CmdTlbiNsnhAll.build())

    def _dma(self, stream: Stream, address: int, *, checked: bool = True) -> None:
        rng = self.rng
        size = rng.choice([4, 4, 4, 4, 1, 2, 8, 16, 24, 48])
        address = min(max(address, 0), (1 << 64) - 64)
        if stream.bypass:
            address = rng.choice(self.targets) + rng.randrange(64)
        if size in (1, 2, 4):
            address &= -size
        self.author.dma(
            stream.device, address, write=checked and rng.random() < 0.4, size=size,
            checked=checked,
        )  # fmt: skip

    def _access(self) -> None:
        rng = self.rng
        stream = rng.choice(self.streams)
        if not stream.leaves:
            self._dma(stream, rng.choice(self.targets) + rng.randrange(PAGE - 64))
            return
        for _ in range(rng.randint(1, 3)):
            entry = rng.choice(stream.leaves)
            address = entry.at + rng.randrange(PAGE)
            if rng.random() < 0.12:
                address = self._astray(stream, address)
            if stream.tagged and rng.random() < 0.5:
                address = address & (1 << 56) - 1 | rng.randrange(256) << 56
            self._dma(stream, address)

    def _astray(self, stream: Stream, address: int) -> int:
        rng = self.rng
        if not stream.first:
            assert stream.second is not None
            return address ^ 1 << rng.randrange(12, stream.second.bits)
        top = 64 if self.version >= OLD_QEMU else 48
        return address ^ 1 << rng.choice([rng.randrange(12, 48), rng.randrange(47, top)])

    def _remap(self) -> None:
        """Change a leaf, maybe look before the invalidation, invalidate, look."""
        rng, author = self.rng, self.author
        streams = [s for s in self.streams if s.leaves]
        if not streams:
            return
        stream = rng.choice(streams)
        entry = rng.choice(stream.leaves)
        self._dma(stream, entry.at)
        stage = rng.choice([1] * bool(entry.slot1) + [2] * bool(entry.slot2))
        slot, level = (entry.slot1, entry.level1) if stage == 1 else (entry.slot2, entry.level2)
        flags = self._flags1() if stage == 1 else self._flags2()
        change = [0]
        if slot not in self.spoiled:
            change.append(leaf(author.word(slot) & 0xFFFF_FFFF_F000, flags, level))
        if level == 3 and (stage == 2 or not entry.slot2):
            table = stream.second if stage == 2 else self._table_of(stream, entry)
            assert table is not None
            change += [leaf(rng.choice(self.targets) & -table.granule.page_size, flags, level)] * 2
        author.poke(slot, rng.choice(change))
        if rng.random() < 0.4:
            self._dma(stream, entry.at, checked=False)
        author.sync(*self._invalidate(stream, entry, stage))
        for _ in range(rng.randint(1, 2)):
            self._dma(stream, entry.at + rng.randrange(-8, 64))

    def _table_of(self, stream: Stream, entry: Leaf) -> Table:
        return next(t for t in stream.first if t.high == bool(entry.at >> 63))

    def _invalidate(self, stream: Stream, entry: Leaf, stage: int) -> list[Command]:
        """Commands that are enough for a changed leaf."""
        rng = self.rng
        vmid = {"vmid": stream.vmid}
        if not self.features.s2p:
            vmid = {"vmid": rng.choice([0, rng.getrandbits(16)])}
        if stage == 2:
            ways = [[c.CmdTlbiS12Vmall.build(**vmid)], [c.CmdTlbiNsnhAll.build()]]
            assert stream.second is not None
            where = self._range(stream.second, entry.ipa, entry.level2)
            second = c.CmdTlbiS2Ipa.build(**vmid, **where)
            ways += [[second] + [c.CmdTlbiNhAll.build(**vmid)] * bool(stream.first)] * 3
            return rng.choice(ways)
        asid = {"asid": stream.asid}
        ways = [
            [c.CmdTlbiNhAll.build(**vmid)], [c.CmdTlbiNhAsid.build(**vmid, **asid)],
            [c.CmdTlbiNsnhAll.build()],
        ]  # fmt: skip
        table = self._table_of(stream, entry)
        if not stream.tagged and not stream.second:
            where = self._range(table, entry.at, entry.level1)
            ways += [[c.CmdTlbiNhVa.build(**vmid, **asid, **where)]] * 4
            ways += [[c.CmdTlbiNhVaa.build(**vmid, **where)]] * 3
        return rng.choice(ways)

    def _range(self, table: Table, address: int, level: int) -> dict[str, int]:
        rng = self.rng
        leaf_bit = rng.randrange(2)
        if not self.features.idr3.ril or rng.random() < 0.5:
            return {"addr": address & -PAGE, "leaf": leaf_bit}
        num, scale = rng.choice(
            [(rng.randrange(32), 0), (rng.randrange(32), rng.randrange(4)), (0, 2)]
        )
        if num == 0 and scale == 0:
            num = 1
        page = table.granule.page_size
        count = num + 1 << scale
        back = rng.randrange(count) * page
        start = max(address & -page, table.base + back) - back
        return {
            "addr": start, "leaf": leaf_bit, "num": num, "scale": scale,
            "tg": RIL_TG[table.granule.name], "ttl": rng.choice([0, 3]) if level == 3 else 0,
        }  # fmt: skip

    def _reconfigure(self) -> None:
        """Change an STE or a CD, invalidate, look."""
        rng, author = self.rng, self.author
        streams = [s for s in self.streams if s.ste]
        if not streams:
            return
        stream = rng.choice(streams)
        self._look(stream)
        sid = stream.sid
        if stream.cd and rng.random() < 0.5:
            author.write(stream.cd, _cd_bytes(self._maybe_bad_cd(stream, 0.5)))
            ways = [
                c.CmdCfgiCd.build(sid=sid, leaf=rng.randrange(2)), c.CmdCfgiCdAll.build(sid=sid),
                c.CmdCfgiSteRange.build(range=31),
            ]  # fmt: skip
        else:
            author.ste(sid, **self._maybe_bad_ste(stream, 0.5))
            size = rng.randrange(1, 9)
            ways = [
                c.CmdCfgiSte.build(sid=sid, leaf=rng.randrange(2)),
                c.CmdCfgiSteRange.build(sid=sid & -(2 << size), range=size),
                c.CmdCfgiSteRange.build(range=31),
            ]  # fmt: skip
        author.sync(rng.choice(ways), c.CmdTlbiNsnhAll.build())
        self._look(stream)

    def _look(self, stream: Stream) -> None:
        if stream.leaves:
            self._dma(stream, self.rng.choice(stream.leaves).at)
        else:
            self._dma(stream, self.rng.choice(self.targets))

    def _bad_command(self) -> None:
        rng, author = self.rng, self.author
        bad = [Command((rng.choice(RESERVED_OPCODES), rng.getrandbits(64)))]
        bad += [c.CmdCfgiSte.build(ssec=1, sid=8), c.CmdCfgiCd.build(ssec=1, sid=8)]
        bad += [c.CmdCfgiCdAll.build(ssec=1, sid=8), c.CmdCfgiSteRange.build(ssec=1, range=31)]
        if not self.features.s2p and self.version >= OLD_QEMU:
            bad += [c.CmdTlbiS12Vmall.build(), c.CmdTlbiS2Ipa.build()]
        author.cmd(c.CmdTlbiNsnhAll.build(), rng.choice(bad), c.CmdSync.build())
        author.r("CMDQ_CONS", "CMDQ_PROD", "GERROR")
        self._look(rng.choice(self.streams))
        author.ack()
        author.sync(c.CmdSync.build(cs=1), c.CmdPrefetchConfig.build(sid=8))

    def _registers(self) -> None:
        rng, author = self.rng, self.author
        author.r(*rng.sample(["IDR0", "IDR1", "IDR3", "IDR5", "AIDR", "CR0ACK", "CR2", "GBPA",
                              "STRTAB_BASE", "STRTAB_BASE_CFG", "CMDQ_BASE", "EVENTQ_BASE",
                              "EVENTQ_PROD", "EVENTQ_CONS", "IRQ_CTRLACK", "CR1"], 4))  # fmt: skip

    def _disable(self) -> None:
        """SMMUEN=0: GBPA says what becomes of an access."""
        rng, author = self.rng, self.author
        author.w("CR0", ON & ~Cr0.mask("smmuen")[0])
        abort = self.version >= OLD_QEMU and rng.random() < 0.5
        if self.version >= OLD_QEMU:
            author.w("GBPA", Gbpa.build(update=1, abort=abort, shcfg=1).raw)
            author.r("GBPA")
        for stream in rng.sample(self.streams, 1):
            self._dma(stream, rng.choice(self.targets))
        author.w("CR1", rng.choice([0, 0xD40]))
        author.r("CR1", "CR0", "CR0ACK")
        author.w("CR0", ON)
        self._look(rng.choice(self.streams))


def _cd_bytes(fields: dict[str, int]) -> bytes:
    from tests.differential.qemu_author import LEGAL_CD
    from vsmmu.arch.context import Cd

    return bytes(Cd.build(**{**LEGAL_CD, **fields}))
