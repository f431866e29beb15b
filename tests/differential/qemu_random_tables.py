# SPDX-License-Identifier: BSD-2-Clause
"""Random streams: stream table, CDs and translation tables, legal with spoiled parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tests.differential.qemu_author import (
    DATA,
    DATA_SIZE,
    FIRST,
    NOWHERE,
    S1_OK,
    S2_OK,
    SECOND,
    Author,
    Table,
)
from tests.differential.qemu_machine import RAM, RAM_SIZE
from vsmmu.arch.pagetable import G4K, G16K, G64K, S2_START, TABLE, VALID, S1Leaf, S2Leaf
from vsmmu.arch.registers import OAS_BITS
from vsmmu.memory import PAGE
from vsmmu.smmu.features import Features

GRANULES = (G4K, G16K, G64K)
TG0 = {"4K": 0, "64K": 1, "16K": 2}
TG1 = {"4K": 2, "64K": 3, "16K": 1}
# Stage 2 maps what stage 1 reads at this distance.
DELTA = 0x2_0000_0000
# `qemu_deviations` has what older versions do otherwise.
OLD_QEMU = (8, 0, 0)
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


class RandomTables:
    """The streams of one program, with their tables; `author` has written them."""

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


assert FIRST < SECOND < DATA
