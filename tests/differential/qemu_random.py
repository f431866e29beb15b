# SPDX-License-Identifier: BSD-2-Clause
"""Random programs from a seed: legal set-ups with spoiled parts, changed while they run.

What QEMU is known to do otherwise is left out here and tried by `qemu_deviations`; each of its
rows says what. An access before the invalidation of a change is made, and not checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tests.differential.qemu_author import (
    DATA,
    DATA_SIZE,
    FIRST,
    NOWHERE,
    ON,
    S1_OK,
    S2_OK,
    SECOND,
    Author,
    Table,
    leaf,
)
from tests.differential.qemu_machine import RAM, RAM_SIZE
from vsmmu.arch import commands as c
from vsmmu.arch.commands import Command
from vsmmu.arch.pagetable import G4K, G16K, G64K, S2_START, TABLE, VALID, S1Leaf, S2Leaf
from vsmmu.arch.registers import OAS_BITS, Cr0, Gbpa, IrqCtrl
from vsmmu.memory import PAGE
from vsmmu.smmu.features import Features

GRANULES = (G4K, G16K, G64K)
TG0 = {"4K": 0, "64K": 1, "16K": 2}
TG1 = {"4K": 2, "64K": 3, "16K": 1}
RIL_TG = {"4K": 1, "16K": 2, "64K": 3}
# Stage 2 maps what stage 1 reads at this distance.
DELTA = 0x2_0000_0000
# `qemu_deviations` has what older versions do otherwise.
OLD_QEMU = (8, 0, 0)
RESERVED_OPCODES = (0x00, 0x08, 0x0F, 0x14, 0x1F, 0x2B, 0x31, 0x47, 0x60, 0x7F, 0xC3, 0xFF)
# Bits of a leaf that mean nothing to this access.
IGNORED1 = S1Leaf.mask("attrindx", "pxn", "uxn")[0] | 15 << 55
IGNORED2 = S2Leaf.mask("xn0", "xn1")[0] | 15 << 55


@dataclass
class Leaf:
    """A mapping: `at` is an input address that reaches data, by the leaf at `slot`."""

    at: int
    target: int
    slot1: int = 0
    level1: int = 3
    slot2: int = 0
    level2: int = 3
    ipa: int = 0


@dataclass
class Stream:
    """`kind` is STE.Config."""

    device: int
    sid: int
    kind: int
    vmid: int
    asid: int = 0
    first: list[Table] = field(default_factory=list)
    second: Table | None = None
    cd: int = 0
    tagged: bool = False
    leaves: list[Leaf] = field(default_factory=list)
    ste: dict[str, int] = field(default_factory=dict)
    bypass: bool = False
    hidden: bool = False
    cd_fields: dict[str, int] = field(default_factory=dict)


def program(seed: int, features: Features, version: tuple[int, ...]) -> Author:
    """The program of a seed for an SMMU with these features."""
    return Generator(seed, features, version).author


class Generator:
    """Makes one program; the result is in `author`."""

    def __init__(self, seed: int, features: Features, version: tuple[int, ...]) -> None:
        self.rng = rng = Random(seed)
        self.features = features
        self.version = version
        self.author = Author(rng.randrange(1, 200))
        self.targets = sorted(
            self.author.data_page(DATA + rng.randrange(DATA_SIZE // PAGE) * PAGE) for _ in range(10)
        )
        self.spoiled: set[int] = set()
        self.streams = self._strtab()
        self._finish_second()
        self._boot()
        for _ in range(rng.randint(8, 22)):
            rng.choices(
                [self._access, self._remap, self._reconfigure, self._bad_command, self._registers,
                 self._disable],
                [60, 14, 6, 3, 4, 2],
            )[0]()  # fmt: skip

    # The stream table.

    def _strtab(self) -> list[Stream]:
        rng, author = self.rng, self.author
        self.log2size = rng.choice([9, 12, 14, 16])
        self.split = rng.choice([None, None, 6, 8, 10])
        if self.split is None:
            author.linear(self.log2size)
        else:
            author.two_level(self.log2size, self.split)
        devices = rng.sample(range(4), rng.randint(1, 4))
        return [self._stream(device, i) for i, device in enumerate(sorted(devices))]

    def _stream(self, device: int, number: int) -> Stream:
        rng, author = self.rng, self.author
        kinds = [5] * 3 * self.features.s1p + [6] * 3 * self.features.s2p
        kinds += [7] * 6 * (self.features.s1p and self.features.s2p) + [4]
        kind = rng.choice(kinds) if rng.random() < 0.95 else rng.choice([0, 1, 2, 3])
        stream = Stream(device, author.sids[device], kind, rng.randrange(1 << 12) << 4 | number)
        if not self.features.idr0.vmid16:
            stream.vmid = 0
        if stream.sid >> self.log2size:
            return stream
        if self.split is not None and rng.random() < 0.06:
            span, place = rng.choice([(0, 0), (self.split + 1, NOWHERE)])
            author.l2(stream.sid, span=span, l2ptr=place)
        stream.hidden = kind == 7 and rng.random() < 0.15
        if kind & 4:
            if kind & 2:
                self._second(stream)
            if kind & 1:
                self._first(stream, number)
            self._leaves(stream)
        stream.ste = self._ste(stream)
        author.ste(stream.sid, **self._maybe_bad_ste(stream, 0.05))
        return stream

    def _ste(self, stream: Stream) -> dict[str, int]:
        rng = self.rng
        ste = {"config": stream.kind, "s2vmid": stream.vmid if self.features.s2p else 0}
        ste |= {"shcfg": rng.randrange(4), "mtcfg": rng.randrange(2), "memattr": rng.randrange(16)}
        if stream.kind & 1:
            ste |= {"s1ctxptr": stream.cd + (DELTA if stream.kind & 2 else 0)}
            ste |= {"s1cir": rng.randrange(4), "s1cor": rng.randrange(4), "s1csh": 3}
        table = stream.second
        if table is not None:
            starts = {level: sl0 for sl0, level in S2_START[table.granule.name].items()}
            enough = [i for i in range(5) if OAS_BITS[i] >= table.bits]
            ste |= {
                "s2t0sz": 64 - table.bits, "s2sl0": starts[table.start], "s2aa64": 1,
                "s2tg": TG0[table.granule.name], "s2ps": rng.choice([*enough, 5]),
                "s2ttb": table.root, "s2affd": rng.random() < 0.2, "s2r": rng.random() < 0.85,
                "s2ir0": rng.randrange(4), "s2or0": rng.randrange(4), "s2sh0": 3,
            }  # fmt: skip
        if stream.hidden:
            ste["s2r"] = stream.cd_fields["r"]
        return ste

    def _maybe_bad_ste(self, stream: Stream, chance: float) -> dict[str, int]:
        rng = self.rng
        stream.bypass = False
        if rng.random() >= chance:
            return stream.ste
        bad: list[dict[str, int]] = [{"v": 0}, {"config": rng.choice([0, 1, 2, 3, 4])}]
        if stream.kind & 1:
            bad += [{"s1ctxptr": NOWHERE}] * (stream.kind == 5)
        if stream.kind & 2:
            bad += [{"s2tg": 3}, {"s2endi": 1}, {"s2t0sz": rng.choice([0, 10, 15, 40, 63])}]
        changed = {**stream.ste, **rng.choice(bad)}
        stream.bypass = bool(changed.get("v", 1)) and changed["config"] == 4
        return changed

    # Tables.

    def _second(self, stream: Stream) -> None:
        rng = self.rng
        granule = rng.choice(GRANULES)
        least = 25 if stream.kind == 6 else 35
        stream.second = self.author.table(granule, rng.randint(least, 44), "second")

    def _first(self, stream: Stream, number: int) -> None:
        rng = self.rng
        stream.asid = rng.randrange(1 << 12) << 4 | number
        delta = DELTA if stream.kind & 2 else 0
        use = rng.choice([(True, False), (True, False), (False, True), (True, True)])
        if self.version < OLD_QEMU:
            use = (True, False)
        cd = {"asid": stream.asid, "epd0": not use[0], "epd1": not use[1], "ips": 4}
        cd |= {"aset": rng.randrange(2), "mair0": rng.getrandbits(32), "r": rng.random() < 0.85}
        cd |= {"affd": rng.random() < 0.2, "wxn": rng.randrange(2)}
        stream.tagged = rng.random() < 0.25 and self.version >= OLD_QEMU
        cd |= {"tbi0": stream.tagged, "tbi1": stream.tagged}
        had = rng.randrange(2)
        if rng.random() < 0.3:
            cd["ips"] = 5 if stream.second else rng.choice([2, 3, 5])
        for half in range(2):
            if not use[half]:
                continue
            granule = rng.choice(GRANULES)
            bits = rng.randint(25, 48)
            table = self.author.table(granule, bits, delta=delta, high=bool(half))
            stream.first.append(table)
            codes = TG1 if half else TG0
            cd |= {
                f"t{half}sz": 64 - bits, f"tg{half}": codes[granule.name],
                f"ttb{half}": table.root + delta, f"had{half}": had,
            }  # fmt: skip
        stream.cd_fields = cd
        stream.cd = self.author.cd(**self._maybe_bad_cd(stream, 0.05))

    def _maybe_bad_cd(self, stream: Stream, chance: float) -> dict[str, int]:
        rng = self.rng
        if rng.random() >= chance:
            return stream.cd_fields
        half = 1 if stream.cd_fields["epd0"] else 0
        bad: list[dict[str, int]] = [
            {"v": 0}, {"aa64": 0}, {"a": 0}, {"s": 1}, {"ha": 1}, {"hd": 1}, {"endi": 1},
            {f"t{half}sz": rng.choice([0, 12, 15, 40, 63])}, {f"tg{half}": 0 if half else 3},
            {"epd0": 1, "epd1": 1},
        ]  # fmt: skip
        return {**stream.cd_fields, **rng.choice(bad)}

    def _leaves(self, stream: Stream) -> None:
        if stream.kind & 3:
            for _ in range(self.rng.randint(3, 12)):
                self._leaf(stream)
            self._lose_table(stream)

    def _lose_table(self, stream: Stream) -> None:
        """Now and then a table of a stage that is alone lies where nothing is: F_WALK_EABT."""
        tables = [*stream.first, *([stream.second] if stream.second else [])]
        if stream.kind == 7 or self.rng.random() >= 0.1:
            return
        made = [slot for table in tables for slot in table.made]
        # With S2PS of 32 bits the address would be too large.
        if made and (stream.first or tables[0].bits > 32):
            self.author.poke(self.rng.choice(made), NOWHERE | VALID | TABLE)

    def _leaf(self, stream: Stream) -> None:
        rng = self.rng
        target = rng.choice(self.targets)
        found = Leaf(0, target)
        place = target
        if stream.second is not None:
            mapped = self._map(stream.second, place, self._flags2)
            if mapped is None:
                return
            found.slot2, found.level2, place = mapped
            found.ipa = place
        if stream.first:
            mapped = self._map(rng.choice(stream.first), place, self._flags1)
            if mapped is None:
                return
            found.slot1, found.level1, place = mapped
        found.at = place
        stream.leaves.append(found)

    def _map(self, table: Table, place: int, flags_of) -> tuple[int, int, int] | None:
        """Map a new address to `place`; (descriptor, level, the address)."""
        rng = self.rng
        level = 3
        while level - 1 in table.granule.block_levels and rng.random() < 0.3:
            if level - 1 < table.start or table.granule.shift(level - 1) >= table.bits:
                break
            level -= 1
        size = 1 << table.granule.shift(level)
        near = rng.choice([rng.randrange(1 << table.bits), rng.randrange(1 << min(table.bits, 26))])
        address = near & -size
        if table.arena == "second" and address < DELTA + RAM + RAM_SIZE and address + size > DELTA:
            # Room for what stage 1 reads.
            return None
        slot = table.map(table.base + address, place & -size, flags_of(), level)
        if slot is None:
            return None
        self._spoil(table, slot, level)
        return slot, level, table.base + address + (place & size - 1)

    def _flags1(self) -> int:
        rng = self.rng
        flags = S1_OK | rng.getrandbits(64) & IGNORED1
        return flags | S1Leaf.mask("ap2")[0] if rng.random() < 0.2 else flags

    def _flags2(self) -> int:
        rng = self.rng
        flags = S2_OK | rng.getrandbits(64) & IGNORED2
        return flags & ~S2Leaf.mask("s2ap_w")[0] if rng.random() < 0.2 else flags

    def _spoil(self, table: Table, slot: int, level: int) -> None:
        """Now and then a leaf, or the table above it, that faults."""
        rng, author = self.rng, self.author
        good = author.word(slot)
        if rng.random() < 0.8:
            return
        far = good & ~S1Leaf.mask("ap2")[0] if table.arena == "first" else good | 3 << 6
        bad = [0, good & ~VALID, far | 1 << 45, good ^ TABLE if level == 3 else 0]
        if self.version >= OLD_QEMU:
            bad.append(good & ~S1Leaf.mask("af")[0])
        if table.arena == "second":
            bad += [good & ~S2Leaf.mask("s2ap_w", "s2ap_r")[0]]
        if not (table.delta or level < 3):
            bad += [far & 0xFFF0_0000_0000_0FFF | NOWHERE]
        self.spoiled.add(slot)
        author.poke(slot, rng.choice(bad))

    def _finish_second(self) -> None:
        """Stage 2 of nested streams maps what stage 1 reads, now that it is known."""
        end = self.author.used("first")
        for stream in self.streams:
            table = stream.second
            if table is None or not stream.first:
                continue
            size = table.granule.page_size
            for place in range(FIRST & -size, end, size):
                table.map(place + DELTA, place, S2_OK)
            if stream.hidden:
                self._hide(stream, table, size)

    def _hide(self, stream: Stream, second: Table, size: int) -> None:
        """Stage 2 lacks a page that stage 1 reads: the CD, or a table that is not the first."""
        rng = self.rng
        places = [stream.cd]
        for table in stream.first:
            if table.granule.page_size <= size:
                places += [self.author.word(made) & 0xFFFF_FFFF_F000 for made in table.made]
        place = rng.choice(places)
        place -= DELTA if place >= DELTA else 0
        roots = [t.root & -size for s in self.streams for t in s.first]
        if place & -size not in roots:
            slot = second.slot((place & -size) + DELTA, 3)
            if slot is not None:
                self.author.poke(slot, 0)

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


assert FIRST < SECOND < DATA
