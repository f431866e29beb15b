# SPDX-License-Identifier: BSD-2-Clause
"""Random features, and random words that look like what an SMMU reads from memory.

Structures are mostly legal, so that a walk gets deep before it meets what is wrong with them.
"""

from __future__ import annotations

import struct
from random import Random
from typing import TypeVar

from vsmmu.arch.commands import OPCODES, CmdSync, Command
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.layout import Layout
from vsmmu.arch.pri import PriEntry
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.cd import decode_cd
from vsmmu.smmu.ste import Stream, decode_ste

_L = TypeVar("_L", bound=Layout)

RAM = 0x4000_0000
BIT = (0, 1)
FEATURES: dict[str, tuple[int, ...]] = {
    "s1p": BIT, "s2p": BIT, "cohacc": BIT, "httu": (0, 1, 2), "hyp": BIT, "btm": BIT, "ats": BIT,
    "ns1ats": BIT, "atsrecerr": BIT, "pri": BIT, "priqs": (0, 1, 3, 19), "pps": BIT,
    "asid16": BIT, "msi": BIT, "sev": BIT, "vmw": BIT, "vmid16": BIT, "cd2l": BIT,
    "stall_model": (0, 1, 2), "term_model": BIT, "st_level": BIT, "sidsize": (0, 3, 6, 8, 16, 32),
    "ssidsize": (0, 1, 4, 20), "eventqs": (0, 1, 5, 19), "cmdqs": (0, 1, 4, 19),
    "attr_perms_ovr": BIT, "had": BIT, "xnx": BIT, "fwb": BIT, "stt": BIT, "ril": BIT,
    "bbml": (0, 1, 2), "e0pd": BIT, "ptwnnc": BIT, "oas": tuple(range(7)), "ds": BIT, "vax": BIT,
    "gran4k": BIT, "gran16k": BIT, "gran64k": BIT, "stall_max": (1, 2, 3, 9),
    "archminrev": (0, 1, 2, 3),
}  # fmt: skip
# What can only change together.
_TOGETHER: tuple[dict[str, int], ...] = (
    {"stall_model": 1, "stall_max": 0, "term_model": 1},
    {"pri": 0, "priqs": 0, "pps": 0},
    {"ats": 0, "ns1ats": 0, "atsrecerr": 0, "pri": 0, "priqs": 0, "pps": 0},
    {"s2p": 0, "hyp": 0, "vmw": 0, "xnx": 0, "fwb": 0, "ptwnnc": 0, "ns1ats": 0},
    {"s1p": 0, "hyp": 0, "had": 0, "e0pd": 0, "ns1ats": 0},
    {"oas": 5, "vax": 0, "ds": 0, "archminrev": 0},
    {"st_level": 0, "sidsize": 6},
)


def features(random: Random) -> Features:
    """Any legal combination: fields of all that is modelled, changed where that stays legal."""
    found = Features.everything().replace(sidsize=16, stall_max=3, msi=1, sev=1)
    changes = [
        {name: random.choice(FEATURES[name])} for name in random.sample(sorted(FEATURES), 14)
    ]
    changes += random.sample(_TOGETHER, random.choice([0, 0, 1, 2]))
    for change in changes if random.random() < 0.8 else ():
        try:
            found = found.replace(**change)
        except ValueError:
            continue
    return found


class Words:
    """Structures for one SMMU.

    Args:
        random: where choices come from.
        features: of the SMMU.
        tables: addresses of RAM pages for translation tables.
        places: those for everything else.
        outside: addresses that pointers lead to now and then.
    """

    def __init__(
        self, random: Random, features: Features, tables: list[int], places: list[int],
        outside: list[int],
    ) -> None:  # fmt: skip
        self.random, self.features = random, features
        self.tables, self.places, self.outside = tables, places, outside
        self.streams: list[Stream] = []
        self.stes = [self._ste() for _ in range(8)]
        self.cds = [self._cd() for _ in range(6)]

    def page(self) -> int:
        """Where a translation table may be, mostly."""
        return self._mostly(self.tables, self.places)

    def place(self) -> int:
        """Where another structure may be, mostly."""
        return self._mostly(self.places, self.tables)

    def contexts(self) -> int:
        """Where a context descriptor may be, mostly."""
        return self._mostly(self.places[5:], self.places)

    def _mostly(self, these: list[int], others: list[int]) -> int:
        chance = self.random.random()
        if chance > 0.015:
            return self.random.choice(these)
        return self.random.choice(others if chance > 0.005 else self.outside)

    def number(self) -> int:
        """Any 64-bit number, of many or of few bits."""
        random = self.random
        kind = random.randrange(5)
        if kind == 0:
            return random.choice([0, 1, (1 << 64) - 1, 1 << 63, 1 << 31])
        if kind == 1:
            return random.getrandbits(64)
        if kind == 2:
            return random.getrandbits(64) & random.getrandbits(64) & random.getrandbits(64)
        if kind == 3:
            return random.getrandbits(random.randrange(1, 64))
        return self.page() | random.getrandbits(12)

    def descriptor(self) -> int:
        """A translation table descriptor: table or page, sometimes a block, sometimes wrong."""
        random = self.random
        word = self.page() | random.choice([3] * 23 + [1]) | 1 << 6
        word |= random.choice([0x400] * 9 + [0]) | random.choice([0, 0x80]) | 0x3C
        if random.random() < 0.2:
            word |= 1 << random.choice([4, 5, 11, 51, 51, 52, 53, 54, 59, 60, 61, 62])
        if random.random() < 0.02:
            word ^= 1 << random.randrange(64)
        return word

    def table(self) -> bytes:
        """A page of descriptors."""
        some = [self.descriptor() for _ in range(self.random.choice([1, 7, 16]))]
        if self.random.random() < 0.15:
            some[self.random.randrange(len(some))] = self.number()
        words = (some * (PAGE // 8))[: PAGE // 8]
        return struct.pack(f"<{PAGE // 8}Q", *words)

    def ste(self) -> Ste:
        """An STE, mostly legal."""
        return self._bent(self.random.choice(self.stes))

    def cd(self) -> Cd:
        """A CD, mostly legal for one of the STEs."""
        return self._bent(self.random.choice(self.cds))

    def l1std(self) -> L1Std:
        """A level 1 descriptor of the stream table."""
        span = self.random.choice([0, 1, 4, 7, 9, 9, 11, 31])
        return L1Std.build(span=span, l2ptr=self.place())

    def l1cd(self) -> L1Cd:
        """A level 1 context descriptor."""
        return L1Cd.build(v=int(self.random.random() < 0.9), l2ptr=self.contexts())

    def command(self, sids: list[int]) -> Command:
        """A command of any opcode."""
        random = self.random
        if random.random() < 0.02:
            return Command((self.number(), self.number()))
        if random.random() < 0.25:
            address = random.choice([0, self.page(), self.random.choice(self.outside)])
            return CmdSync.build(
                cs=random.choice([0, 0, 1, 1, 1, 2, 2, 3]), msiaddress=address & (1 << 52) - 4,
                msidata=random.getrandbits(32),
            )  # fmt: skip
        layout = OPCODES[random.choice(sorted(OPCODES))]
        command = layout((self.number(), self.number())).replace(op=layout.opcode)
        small: dict[str, int] = {
            "ssec": int(random.random() < 0.02), "sid": random.choice(sids),
            "stag": random.randrange(4), "vmid": random.choice([0, 1, 7]),
            "asid": random.randrange(3), "ssid": random.randrange(4), "tg": random.randrange(4),
            "prgindex": random.randrange(20), "resp": random.choice([0, 1, 2, 2, 3]),
            "size_lg2": random.choice([0, 0, 3, 20, 52, 53]) % (32 if layout.opcode == 2 else 64),
        }  # fmt: skip
        if random.random() < 0.5:
            small["addr"] = self.page()
        return command.replace(**{k: v for k, v in small.items() if k in layout.fields})

    def pri_entry(self, sid: int) -> PriEntry:
        """A Page Request of a device, or a PASID Stop Marker."""
        return PriEntry((self.number(), self.number())).replace(sid=sid)

    def something(self, sids: list[int]) -> bytes:
        """Any structure."""
        kind = self.random.randrange(8)
        if kind == 0:
            return bytes(self.ste())
        if kind == 1:
            return bytes(self.cd())
        if kind == 2:
            return bytes(self.l1std())
        if kind == 3:
            return bytes(self.l1cd())
        if kind == 4:
            return bytes(self.command(sids))
        if kind < 7:
            return struct.pack("<Q", self.descriptor())
        return struct.pack("<Q", self.number())

    def _bent(self, structure: _L) -> _L:
        """The structure, one time in eight with a bit that is different."""
        if self.random.random() < 0.875:
            return structure
        words = list(structure.words)
        words[self.random.choice([0, 0, 1, 1, 2, 3, 7])] ^= 1 << self.random.randrange(64)
        return type(structure)(tuple(words))

    def _ste(self) -> Ste:
        random, idr0, idr1 = self.random, self.features.idr0, self.features.idr1
        configs = [0, 4] + [5] * 4 * idr0.s1p + [6] * 4 * idr0.s2p
        configs += [7] * 10 * (idr0.s1p & idr0.s2p)
        sizes = [(24, 1), (25, 1), (16, 2), (32, 1), (40, 3), (20, 1), (32, 0), (12, 2), (28, 0)]
        for _ in range(60):
            s2t0sz, s2sl0 = random.choice(sizes)
            ste = Ste.build(
                v=1, config=random.choice(configs), s1fmt=random.randrange(1 + 2 * idr0.cd2l),
                s1ctxptr=self.contexts(), s1cdmax=min(random.choice([0, 0, 2, 8]), idr1.ssidsize),
                s1dss=random.choice([0, 1, 2, 2, 2]), cont=random.choice([0, 0, 0, 2]),
                ppar=random.randrange(2), mev=random.randrange(2), s2fwb=random.randrange(2),
                s1stalld=int(random.random() < 0.1), eats=random.choice([0, 1, 1, 2]),
                strw=random.choice([0, 0, 2]), privcfg=random.choice([0, 0, 2, 3]),
                instcfg=random.choice([0, 0, 2, 3]), s2vmid=random.choice([0, 1, 7]),
                s2t0sz=s2t0sz, s2sl0=s2sl0, s2tg=random.choice([0, 0, 1, 2]),
                s2ps=random.choice([0, 5, 6]), s2aa64=1, s2affd=int(random.random() < 0.8),
                s2ptw=int(random.random() < 0.1), s2ha=int(idr0.httu > 0 and random.random() < 0.8),
                s2hd=int(idr0.httu > 1 and random.random() < 0.8), s2r=int(random.random() < 0.8),
                s2s=random.randrange(2) if idr0.stall_model == 0 else idr0.stall_model // 2,
                s2ds=random.randrange(2), s2sl0_2=int(random.random() < 0.1), s2ttb=self.page(),
            )  # fmt: skip
            stream = decode_ste(ste, self.features)
            if stream is not None:
                self.streams.append(stream)
                break
        return ste

    def _cd(self) -> Cd:
        random, idr0 = self.random, self.features.idr0
        stream = random.choice(self.streams or [Stream(config=5, stage1=True)])
        for _ in range(60):
            cd = Cd.build(
                v=1, aa64=1, t0sz=random.choice([12, 16, 25, 25, 32, 39]),
                tg0=random.randrange(3), epd0=int(random.random() < 0.1),
                t1sz=random.choice([16, 25, 39]), tg1=random.randrange(1, 4),
                epd1=random.randrange(2), ips=random.choice([0, 5, 6]),
                affd=int(random.random() < 0.8), wxn=int(random.random() < 0.2),
                tbi0=random.randrange(2), tbi1=random.randrange(2),
                pan=int(random.random() < 0.2), hd=int(idr0.httu > 1 and random.random() < 0.8),
                ha=int(idr0.httu > 0 and random.random() < 0.8),
                s=random.randrange(2) if idr0.stall_model == 0 else idr0.stall_model // 2,
                r=int(random.random() < 0.8), a=1 if idr0.term_model else random.randrange(2),
                aset=random.randrange(2), asid=random.randrange(3), had0=random.randrange(2),
                e0pd0=int(random.random() < 0.1), ttb0=self.page(), ttb1=self.page(),
                ds=random.randrange(2), had1=random.randrange(2),
            )  # fmt: skip
            if decode_cd(cd, self.features, stream) is not None:
                break
        return cd
