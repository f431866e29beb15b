# SPDX-License-Identifier: BSD-2-Clause
"""The three ways to cache against each other, and against arbitrary words, with every feature."""

from __future__ import annotations

import random

import pytest

from vsmmu.arch.commands import (
    OPCODES,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdSync,
    CmdTlbiEl2All,
    CmdTlbiNsnhAll,
    Command,
)
from vsmmu.arch.context import L1Cd
from vsmmu.arch.registers import Cr2
from vsmmu.memory import PAGE
from vsmmu.smmu import Access, Features
from vsmmu.smmu.config import CACHING, DEFERRED, Caching

from .machine import AF, RAM, RW_S1, RW_S2, Machine

FULL = Features.everything().replace(sidsize=16)
SIDS, SSIDS, VA, PA = 8, 8, 0x5000, 0x8F00_0000
MODES = {**CACHING, "torn": Caching(64, hostile=True, early=0b0101_0101)}


class Mixed(Machine):
    """Streams of every kind, drawn from a seed; the same seed makes the same memory."""

    def __init__(self, mode: str, seed: int) -> None:
        super().__init__(FULL)
        self.rng = random.Random(seed)
        self.smmu.config.caching = MODES[mode]
        self.write("CR0", 0xC)
        self.write("CR2", Cr2.build(recinvsid=1, e2h=seed & 1).raw)
        self.write("CR0", 0xD)
        self.stage2 = self.s2_root()
        self.roots = [self.alloc(PAGE) for _ in range(4)]
        for i, root in enumerate(self.roots):
            self.map(root, VA, PA + i * PAGE, flags=AF | RW_S1 | 1 << 11)
            self.map(self.stage2, PA + i * PAGE, PA + i * PAGE, flags=AF | RW_S2)
        self.map(self.stage2, VA, PA, flags=AF | RW_S2)
        self.linear = self.alloc(64 * SSIDS)
        self.level1 = self.alloc(64)
        self.memory.write(self.level1, bytes(L1Cd.build(v=1, l2ptr=self.linear & -PAGE)))
        for page in range(RAM, self._next, PAGE):
            self.map(self.stage2, page, page, flags=AF | RW_S2)
        for sid in range(SIDS):
            self.new_stream(sid)
        for ssid in range(SSIDS):
            self.new_context(ssid)

    def new_stream(self, sid: int) -> None:
        rng = self.rng
        fmt = rng.choice((0, 0, 1))
        table = self.level1 if fmt else self.linear
        fields = self.s2_fields(self.stage2, s2vmid=sid + 1, strw=rng.choice((0, 2)))
        self.ste(
            sid, **{**fields, "config": rng.choice((0, 4, 5, 5, 5, 6, 7, 7)), "s1ctxptr": table,
                    "s1fmt": fmt, "s1cdmax": rng.choice((0, 3, 3)), "s1dss": rng.randrange(4)},
        )  # fmt: skip

    def new_context(self, ssid: int) -> None:
        rng = self.rng
        self.cd(
            self.linear + 64 * ssid, ttb0=rng.choice(self.roots), asid=ssid + 1,
            v=rng.random() < 0.9, epd0=rng.random() < 0.1,
        )  # fmt: skip

    def seen(self) -> list[tuple[object, ...]]:
        """What every stream and substream gets."""
        found = []
        for sid in range(SIDS):
            for ssid in (None, *range(SSIDS + 1)):
                outcome = self.go(sid, VA, ssid=ssid)
                event = outcome.event.words if outcome.event is not None else None
                found.append((sid, ssid, outcome.status, outcome.pa, event))
                self.events()
        return found


@pytest.mark.parametrize("seed", range(6))
def test_after_invalidation_and_sync_all_modes_agree(seed: int) -> None:
    """IHI 0070 §3.21.3: past the CMD_SYNC nothing can be told from an SMMU without caches."""
    machines = {mode: Mixed(mode, seed) for mode in MODES}
    maintenance = (CmdCfgiSteRange.build(range=31), CmdTlbiNsnhAll.build(), CmdTlbiEl2All.build())
    for turn in range(6):
        results = {}
        for mode, machine in machines.items():
            machine.command(*maintenance)
            results[mode] = machine.seen()
            if turn % 2:
                sid = machine.rng.randrange(SIDS)
                machine.new_stream(sid)
                machine.command(CmdCfgiSte.build(sid=sid, leaf=1), *maintenance[1:])
            else:
                machine.new_context(machine.rng.randrange(SSIDS))
                named = [CmdCfgiCdAll.build(sid=sid) for sid in range(SIDS)]
                machine.command(*named, *maintenance[1:])
            results[mode] += machine.seen()
        assert all(found == results["none"] for found in results.values())
        if seed == 0 and turn == 0:
            assert len({result[2] for result in results["none"]}) == 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_no_words_raise(mode: str, seed: int) -> None:
    """Arbitrary STEs, CDs, L1CDs, tables, commands and substreams: data, never an exception."""
    machine = Mixed(mode, seed)
    rng, memory = machine.rng, machine.memory
    places = [machine.strtab, machine.linear, machine.level1, machine.stage2, *machine.roots]
    opcodes = sorted(OPCODES)

    def word() -> int:
        return rng.choice(
            (
                rng.getrandbits(64), 0, (1 << 64) - 1, 1 << rng.randrange(64),
                RAM + rng.randrange(16) * PAGE | 0x4C3,
            )
        )  # fmt: skip

    for _ in range(1500):
        choice = rng.randrange(4)
        if choice == 0:
            address = rng.choice(places) + 8 * rng.randrange(8 * SIDS)
            old = memory.read64(address)
            assert old is not None
            memory.write64(address, rng.choice((word(), old ^ 1 << rng.randrange(64))))
        elif choice == 1:
            low = rng.choice(opcodes) | rng.choice((0, word() & ~0xFF))
            command = rng.choice(
                (Command((low, rng.choice((0, word())))), CmdSync.build(), CmdSync.build())
            )
            machine.post(command)
            machine.scheduler.run_until_idle(5000)
            machine.write("GERRORN", machine.read("GERROR"))
            if machine.read("CMDQ_CONS") & 0xFFFFF != machine.read("CMDQ_PROD"):
                machine.write("CMDQ_PROD", machine.read("CMDQ_CONS") & 0xFFFFF)
        else:
            ssid = rng.choice((None, 0, 1, 7, 8, 65, 0xF_FFFF, 1 << 40))
            access = Access(
                rng.choice((0, 1, 2, 3, 300, 1 << 33)), rng.choice((VA, word())),
                rng.random() < 0.5, rng.random() < 0.2, rng.random() < 0.3, ssid,
            )  # fmt: skip
            outcome = machine.smmu.translate(access)
            assert outcome.status in {"ok", "bypass", "abort", "fault"}
            assert (outcome.pa is not None) == (outcome.status in {"ok", "bypass"})
            machine.events()
    config = machine.smmu.config
    assert len(config.deferred) <= DEFERRED
    room = config.caching.entries
    fetch, early = config._fetch, config._early._held
    caches = (config._streams, config._contexts, fetch.l1cds, fetch.l1stds, early)
    assert max(map(len, caches)) <= room
