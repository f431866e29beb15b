# SPDX-License-Identifier: BSD-2-Clause
"""Random programs of two or three guests that have the same addresses, StreamIDs and ASIDs."""

from __future__ import annotations

import random

from tests.vsmmu.hypervisor.vcases import DATA_SIZE, Guest, Host, Json
from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPrefetchConfig,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    Command,
)
from vsmmu.arch.context import Cd
from vsmmu.arch.pagetable import G4K, G16K, G64K, Granule, S1Leaf
from vsmmu.arch.stream_table import Ste, SteConfig

# Few, so that guests meet each other's.
VSIDS = (0, 1, 2, 3, 0x40, 0xFF)
PSIDS = (0, 1, 2, 3, 0x40, 0xFF, 0x100, 0x4000, 0xFFFF)
IOVAS = tuple(page << 16 for page in (0, 1, 2, 0x1FF, 0x1234, 0x10_0000, 0xFFFF_FFFF))
GRANULES: dict[str, tuple[int, Granule]] = {"4K": (0, G4K), "64K": (1, G64K), "16K": (2, G16K)}
KINDS = (*["page"] * 6, "read only", "AF=0", "privileged", "nowhere", "too large", "none")


class Space:
    """An address space: a CD and its tables."""

    def __init__(self, guest: Guest, asid: int) -> None:
        self.guest, self.asid = guest, asid
        self.cd = guest.allocate(64)
        self.broken = guest.rng.random() < 0.1
        self.renew()

    def renew(self) -> None:
        """Empty tables of any granule."""
        rng = self.guest.rng
        self.tg0, self.granule = GRANULES[rng.choice(sorted(GRANULES))]
        self._tables: dict[tuple[int, int], int] = {}
        self._map_some()
        root = self._table(self.granule.start_level(48), 0)
        if self.broken:
            root = self.guest.nowhere
        cd = Cd.build(
            v=int(rng.random() < 0.95), aa64=1, tg0=self.tg0, t0sz=16, epd1=1, ips=4, ir0=1, or0=1,
            sh0=3, a=1, r=int(rng.random() < 0.9), affd=int(rng.random() < 0.1), asid=self.asid,
            aset=rng.randrange(2), ttb0=root, mair0=0xFF,
        )  # fmt: skip
        self.words = cd.words
        self.guest.mem(self.cd, self.words)

    def _map_some(self) -> None:
        for iova in IOVAS:
            if self.guest.rng.random() < 0.7:
                self.map(iova, self.guest.rng.choice(KINDS))

    def map(self, iova: int, kind: str) -> None:
        size = self.granule.page_size
        target = self.guest.data + size * self.guest.rng.randrange(DATA_SIZE // size)
        if kind == "nowhere":
            target = self.guest.nowhere
        if kind == "too large":
            target |= 1 << 46
        leaf = S1Leaf.build(
            valid=1, table=1, attrindx=0, ap1=int(kind != "privileged"),
            ap2=int(kind == "read only"), sh=3, af=int(kind != "AF=0"), ng=1,
        ).raw | target  # fmt: skip
        slot = self._table(3, iova) + 8 * self._index(3, iova)
        self.guest.mem(slot, [0 if kind == "none" else leaf])

    def _index(self, level: int, iova: int) -> int:
        index = iova >> self.granule.shift(level)
        return index & (1 << self.granule.stride) - 1

    def _table(self, level: int, iova: int) -> int:
        key = level, iova >> self.granule.shift(level) + self.granule.stride
        if key not in self._tables:
            # Of a table only the entries that are used take memory: each has a place of its own.
            self._tables[key] = self.guest.allocate(self.granule.page_size)
            self.guest.mem(self._tables[key], [0])
            if level > self.granule.start_level(48):
                slot = self._table(level - 1, iova) + 8 * self._index(level - 1, iova)
                self.guest.mem(slot, [self._tables[key] | 3])
        return self._tables[key]


class Program:
    """A case, made step by step."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.host = Host()
        self.vsteps: list[Json] = []
        psids = rng.sample(PSIDS, len(PSIDS))
        self.guests = []
        for g in range(rng.randrange(2, 4)):
            mine = {sid: psids.pop() for sid in rng.sample(VSIDS, rng.randrange(1, 4))}
            self.guests.append(Guest(g, rng, self.host, self.vsteps, mine))
        self.spaces: dict[Guest, list[Space]] = {}
        self.of: dict[tuple[int, int], Space | None] = {}

    def make(self, count: int) -> Json:
        rng = self.rng
        for guest in self.guests:
            self.access(guest)
        for guest in self.guests:
            self.spaces[guest] = [Space(guest, 1 + i) for i in range(2)]
            for sid in guest.sids:
                guest.stes[sid] = self.ste(guest, sid)
            guest.boot()
            guest.flush()
        actions = (self.access, self.remap, self.renew, self.change, self.off, self.noise)
        for _ in range(count):
            rng.choices(actions, (12, 4, 2, 3, 1, 2))[0](rng.choice(self.guests))
        return {
            "id": "random", "family": "vsmmu", "stage": "nested", "steps": self.host.steps,
            "guests": [guest.described for guest in self.guests], "vsteps": self.vsteps,
        }  # fmt: skip

    def ste(self, guest: Guest, sid: int) -> Ste:
        """An STE of any kind, some of them illegal for an SMMU without stage 2."""
        rng = self.rng
        kind = rng.choices(
            ("s1", "bypass", "abort", "invalid", "s2", "cd nowhere"), (12, 2, 1, 1, 1, 1)
        )[0]
        self.of[guest.g, sid] = space = rng.choice(self.spaces[guest]) if kind == "s1" else None
        if kind == "invalid":
            return Ste.build(v=0, config=SteConfig.BYPASS)
        if space is not None:
            return Ste.build(v=1, config=SteConfig.S1, s1ctxptr=space.cd, s1stalld=0)
        if kind == "cd nowhere":
            return Ste.build(v=1, config=SteConfig.S1, s1ctxptr=guest.nowhere)
        config = {"bypass": SteConfig.BYPASS, "abort": SteConfig.ABORT, "s2": SteConfig.S2}[kind]
        return Ste.build(v=1, config=config)

    def access(self, guest: Guest, *, stale_ok: bool = False) -> None:
        rng = self.rng
        sid = rng.choice(sorted(guest.sids))
        # An SMMU that is off records nothing, not even an address that is too large.
        iova = rng.choice(IOVAS[: None if guest.enabled else -1]) + rng.choice([0, 4, 0xFF8])
        if rng.random() < 0.3:
            iova = guest.data + 4 * rng.randrange(DATA_SIZE // 4)
        guest.dma(sid, iova, size=rng.choice([1, 4, 4, 4, 16]), stale_ok=stale_ok)

    def _maybe_stale(self, guest: Guest) -> None:
        if self.rng.random() < 0.3:
            self.access(guest, stale_ok=True)

    def remap(self, guest: Guest) -> None:
        """Another leaf, and one of the commands that make it count."""
        rng, vmid = self.rng, guest.vmid
        space, iova = rng.choice(self.spaces[guest]), rng.choice(IOVAS)
        users = [sid for sid in sorted(guest.sids) if self.of[guest.g, sid] is space]
        for sid in users:
            guest.dma(sid, iova)
        space.map(iova, rng.choice(KINDS))
        self._maybe_stale(guest)
        # VMIDs that a guest names are ignored.
        theirs, asid = rng.choice([0, vmid, self.guests[0].vmid]), space.asid
        whole = {"asid": asid, "addr": iova}
        ranged = {**whole, "tg": {0: 1, 2: 2, 1: 3}[space.tg0], "num": rng.randrange(1, 4)}
        leaf = rng.randrange(2)
        every = {"addr": iova, "leaf": leaf}
        # A walk may have ended in a table that was not there before: not for Leaf.
        made, same = rng.choice([
            (CmdTlbiNhAll.build(vmid=theirs), CmdTlbiNhAll.build(vmid=vmid)),
            (CmdTlbiNsnhAll.build(), CmdTlbiNhAll.build(vmid=vmid)),
            (CmdTlbiNhAsid.build(vmid=theirs, asid=asid),
             CmdTlbiNhAsid.build(vmid=vmid, asid=asid)),
            (CmdTlbiNhVa.build(vmid=theirs, leaf=leaf, **whole),
             CmdTlbiNhVa.build(vmid=vmid, leaf=leaf, **whole)),
            (CmdTlbiNhVaa.build(vmid=theirs, **every), CmdTlbiNhVaa.build(vmid=vmid, **every)),
            (CmdTlbiNhVa.build(vmid=theirs, **ranged), CmdTlbiNhVa.build(vmid=vmid, **ranged)),
        ])  # fmt: skip
        guest.put(made, host=[same])
        for sid in users:
            guest.dma(sid, iova)

    def renew(self, guest: Guest) -> None:
        """Another CD in the place of one."""
        space = self.rng.choice(self.spaces[guest])
        if guest._next - guest.work > 0x10_0000:
            return
        space.renew()
        self._maybe_stale(guest)
        own: list[Command] = []
        physical: list[Command] = []
        for sid in guest.sids:
            # Whatever streams use it, and those that used it when their STE was cached.
            if self.rng.random() < 0.5:
                own.append(CmdCfgiCd.build(sid=sid, leaf=1))
                physical.append(CmdCfgiCd.build(sid=guest.sids[sid], leaf=1))
            else:
                own.append(CmdCfgiCdAll.build(sid=sid))
                physical.append(CmdCfgiCdAll.build(sid=guest.sids[sid]))
        asid = space.asid
        guest.put(
            *own, CmdTlbiNhAsid.build(asid=asid),
            host=[*physical, CmdTlbiNhAsid.build(vmid=guest.vmid, asid=asid)],
        )  # fmt: skip
        for sid in guest.sids:
            guest.dma(sid, self.rng.choice(IOVAS))

    def change(self, guest: Guest) -> None:
        """Another STE; until the command nothing of it counts for sure."""
        sid = self.rng.choice(sorted(guest.sids))
        guest.stes[sid] = self.ste(guest, sid)
        guest.mem(guest.ste_address(sid), guest.stes[sid].words)
        self._maybe_stale(guest)
        command = self.rng.choice([
            CmdCfgiSte.build(sid=sid, leaf=self.rng.randrange(2)),
            CmdCfgiSteRange.build(sid=sid, range=self.rng.choice([0, 3, 31])),
        ])  # fmt: skip
        guest.put(command)
        guest.shadow(sid)
        guest.dma(sid, self.rng.choice(IOVAS))

    def off(self, guest: Guest) -> None:
        """SMMUEN=0 for a while, and GBPA."""
        guest.enable(False)
        self.access(guest)
        guest.gbpa(bool(self.rng.randrange(2)))
        self.access(guest)
        guest.put(CmdCfgiSteRange.build(range=31))
        guest.enable(True)

    def noise(self, guest: Guest) -> None:
        """Commands that name what is not the guest's."""
        sid = self.rng.choice([*PSIDS, 1 << 20])
        if sid not in guest.sids:
            commands = [CmdCfgiSte, CmdCfgiCdAll, CmdPrefetchConfig]
            guest.put(*(kind.build(sid=sid) for kind in self.rng.sample(commands, 2)))


def random_case(seed: int, count: int = 60) -> Json:
    """A case of so many actions."""
    return Program(seed).make(count)
