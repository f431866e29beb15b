# SPDX-License-Identifier: BSD-2-Clause
"""A guest with SubstreamIDs sees what an SMMU of its own, without stage 2, would have shown it.

STEs, level 1 tables and CDs with random contents; accesses with and without SubstreamID. That SMMU
is the physical model with the guest's identification registers, in RAM at the guest's addresses.
"""

from __future__ import annotations

import random
from collections.abc import Set

import pytest

from vsmmu.arch import events
from vsmmu.arch.commands import CmdCfgiSteRange, CmdSync, CmdTlbiNhAll
from vsmmu.arch.context import Cd
from vsmmu.arch.registers import BY_NAME, OAS_BITS, Idr5
from vsmmu.arch.stream_table import Ste
from vsmmu.hypervisor.policy import Policy
from vsmmu.memory import PAGE, Memory
from vsmmu.scheduler import Scheduler
from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort
from vsmmu.smmu.smmu import Smmu

from .world import BUFFER, NOWHERE, RAM, RAM_SIZE, Guest, World

SID = 0
STRTAB, CMDQ, EVENTQ, TABLE, BLOCKS = (RAM + 0x10_0000 + 0x1_0000 * i for i in range(5))
CDS = tuple(RAM + 0x20_0000 + 0x1_0000 * i for i in range(3))
SSIDS = (None, None, 0, 1, 2, 3, 64, 65, 255, 256, 1024)
IOVAS = (BUFFER, BUFFER + 0x20_0000, 0x1000, 0x8000_0000, 0xC000_0000, 1 << 40, 1 << 49, 1 << 52)
# Not flipped in a CD: what hardware alone acts on and may have (docs/vsmmu-features.md), and ASID,
# since CDs that share one may be taken for each other.
OF_HARDWARE = ("hd", "ha", "a", "ds", "e0pd0", "e0pd1", "asid")
KEPT = {bit for name in OF_HARDWARE for bit in range(Cd.fields[name].lsb, Cd.fields[name].msb + 1)}


class Alone:
    """The SMMU of its own."""

    def __init__(self, guest: Guest) -> None:
        names = ("IDR0", "IDR1", "IDR3", "IDR5", "IIDR", "AIDR")
        self.memory = Memory([(RAM, RAM_SIZE)])
        self.scheduler = Scheduler(0)
        ids = {name.lower(): guest.read(name) for name in names}
        self.smmu = Smmu("own", self.memory, Features.from_ids(**ids))
        self.ports = [DevicePort("device", self.smmu, SID)]
        for engine in (*self.smmu.engines, *self.ports):
            self.scheduler.add(engine)

    def write(self, name: str, value: int) -> None:
        register = BY_NAME[name]
        self.smmu.mmio_write(register.offset, register.width // 8, value)
        assert self.scheduler.run_until_idle()

    def read(self, name: str) -> int:
        register = BY_NAME[name]
        return self.smmu.mmio_read(register.offset, register.width // 8)


class Pair:
    """A guest on a vSMMU and the SMMU of its own, which are told the same."""

    def __init__(self, features: Features, seed: int) -> None:
        self.rng = random.Random(seed)
        world = World({"g": [("a", 0x600)]}, features=features, policy=Policy(substreams=True))
        guest = world["g"]
        self.oas = OAS_BITS[Idr5(guest.read("IDR5")).oas]
        self.both = [(guest, world.scheduler), (own := Alone(guest), own.scheduler)]
        self.prod = self.asid = 0
        for name, value in (
            ("STRTAB_BASE", STRTAB), ("STRTAB_BASE_CFG", 4), ("CMDQ_BASE", CMDQ | 8),
            ("EVENTQ_BASE", EVENTQ | 8), ("CR2", 2), ("CMDQ_PROD", 0), ("CMDQ_CONS", 0),
            ("EVENTQ_PROD", 0), ("EVENTQ_CONS", 0), ("CR0", 0xD),
        ):  # fmt: skip
            for each, _ in self.both:
                each.write(name, value)
        self.store(TABLE, [NOWHERE | 3, BLOCKS | 3, 1 << 45 | 0xF41, 0])
        self.store(BLOCKS, [self.block(i) for i in range(512)])

    def store(self, address: int, words: list[int] | tuple[int, ...]) -> None:
        for each, _ in self.both:
            for i, word in enumerate(words):
                assert each.memory.write64(address + 8 * i, word)

    def block(self, i: int) -> int:
        """Of RAM, not global, with any permissions; some lead elsewhere."""
        attributes = 0x800 | self.rng.choice([0x40, 0x40, 0, 0xC0, 0x80])
        if self.rng.random() < 0.8:
            return (RAM & -(1 << 30)) + i * 0x20_0000 | 0x401 | attributes
        return self.rng.choice([0, 0x801, 1 << 41 | 0xF41, 1 << 46 | 0xF41])

    def flipped(
        self, words: tuple[int, ...], bits: int, chance: float, kept: Set[int] = frozenset()
    ) -> list[int]:
        out, bit = list(words), self.rng.randrange(bits)
        if self.rng.random() < chance and bit not in kept:
            out[bit // 64] ^= 1 << bit % 64
        return out

    def configure(self) -> None:
        """Anything in the STE, the CDs and the tables of CDs."""
        rng, self.asid = self.rng, 0
        for table in CDS:
            for address in (table, table + 0x1000):
                for i in range(4):
                    self.asid += 1
                    self.store(address + 64 * i, self.flipped(self.cd().words, 192, 0.2, KEPT))
        fmt = rng.randrange(4)
        if fmt in (1, 2):
            for table in CDS:
                self.store(table, [self.level1() for _ in range(64)])
        ste = Ste.build(
            v=1, config=rng.choice([5] * 8 + [4, 0, 6, 7]), s1fmt=fmt,
            s1ctxptr=rng.choice([*CDS, *CDS, NOWHERE, RAM + RAM_SIZE - 64, 1 << 50]),
            s1cdmax=rng.choice([0, 0, 1, 3, 6, 7, 8, 10, 12, 20, 21, 31]), s1dss=rng.randrange(4),
        )  # fmt: skip
        self.store(STRTAB + 64 * SID, self.flipped(ste.words, 512, 0.3))
        for command in (CmdCfgiSteRange.build(range=31), CmdTlbiNhAll.build(), CmdSync.build()):
            self.store(CMDQ + 16 * (self.prod & 255), command.words)
            self.prod = self.prod + 1 & 511
        for each, _ in self.both:
            each.write("CMDQ_PROD", self.prod)
            assert each.read("CMDQ_CONS") == self.prod

    def cd(self) -> Cd:
        rng = self.rng
        return Cd.build(
            v=int(rng.random() < 0.95), aa64=1, t0sz=25, epd1=1, ips=rng.choice([2, 4, 5]), ir0=1,
            or0=1, sh0=3, a=1, r=int(rng.random() < 0.9), affd=rng.randrange(2),
            asid=self.asid, aset=1, ttb0=TABLE, mair0=0xFF,
        )  # fmt: skip

    def level1(self) -> int:
        beyond = 1 << self.oas
        pointers = [table + 0x1000 for table in CDS] * 2
        pointers += [NOWHERE, CDS[0] + 0x800, beyond, beyond << 1 | NOWHERE, beyond | CDS[1]]
        return self.rng.choice(pointers) | int(self.rng.random() < 0.9)

    def access(self) -> tuple[str, list[object]]:
        """What it was, and what each shows of it."""
        rng = self.rng
        iova, ssid, write = rng.choice(IOVAS), rng.choice(SSIDS), rng.random() < 0.5
        shown: list[object] = []
        for each, scheduler in self.both:
            port = each.ports[0]
            request = (
                port.write(iova, b"data", ssid=ssid) if write else port.read(iova, 4, ssid=ssid)
            )
            assert scheduler.run_until_idle()
            shown.append(
                ([o.status in ("ok", "bypass") for o in request.outcomes], self.told(each))
            )
        return f"{iova:#x} {ssid} {write}", shown

    def told(self, each: Guest | Alone) -> list[dict[str, object]]:
        """The records, then read; of an address that cannot be fetched the page is known."""
        out = []
        while (cons := each.read("EVENTQ_CONS")) != each.read("EVENTQ_PROD"):
            address = EVENTQ + 32 * (cons & 255)
            words = tuple(each.memory.read64(address + 8 * i) or 0 for i in range(4))
            event = events.decode(words)
            fields: dict[str, object] = {n: f.of(event.words) for n, f in event.fields.items()}
            fields |= {"name": event.name, "fetchaddr": getattr(event, "fetchaddr", 0) & -PAGE}
            out.append({**fields, "ipa": None})
            each.write("EVENTQ_CONS", cons + 1 & 511)
        return out


HARDWARE = {
    "the same": Features.default(sidsize=16).replace(ssidsize=8, cd2l=1),
    "more": Features.everything().replace(sidsize=16),
}


def play(pair: Pair, count: int) -> None:
    for _ in range(count):
        pair.configure()
        for _ in range(4):
            what, (virtual, alone) = pair.access()
            assert virtual == alone, what


@pytest.mark.parametrize("hardware", HARDWARE)
def test_it_sees_what_it_would_alone(hardware: str) -> None:
    play(Pair(HARDWARE[hardware], 1), 120)


@pytest.mark.soak
@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("seed", range(2, 32))
def test_it_sees_what_it_would_alone_soak(hardware: str, seed: int) -> None:
    play(Pair(HARDWARE[hardware], seed), 1000)
