# SPDX-License-Identifier: BSD-2-Clause
"""Hostile configuration caches: everything that IHI 0070 §3.21.3 and §4.7.3 let an SMMU keep.

No second opinion: models that are compared with do not prefetch and invalidate at once.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdCfgiCd,
    CmdCfgiCdAll,
    CmdCfgiSte,
    CmdCfgiSteRange,
    CmdPrefetchAddr,
    CmdPrefetchConfig,
    CmdTlbiNhAll,
    CmdTlbiNhVa,
    Command,
)
from vsmmu.arch.context import L1Cd
from vsmmu.arch.registers import Cr0, StrtabBase, StrtabBaseCfg
from vsmmu.arch.stream_table import Ste
from vsmmu.memory import PAGE
from vsmmu.smmu import Features
from vsmmu.smmu.config import CACHING, DEFERRED

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine

VA, PA = 0x5000, 0x8F00_0000


class Hostile(Machine):
    """The machine, switched to hostile caching before anything is cached."""

    def __init__(self, features: Features | None = None) -> None:
        super().__init__(features or Features.default().replace(ssidsize=8, cd2l=1))
        self.smmu.config.caching = CACHING["hostile"]


@pytest.fixture
def machine() -> Hostile:
    return Hostile()


def verdict(machine: Machine, sid: int, ssid: int | None = None, iova: int = VA) -> int | str:
    outcome = machine.go(sid, iova, ssid=ssid)
    machine.events()
    if outcome.event is not None:
        return outcome.event.name
    return outcome.pa if outcome.pa is not None else outcome.status


def consume(machine: Machine, *commands: Command) -> None:
    """Commands without a CMD_SYNC behind them."""
    machine.post(*commands)
    assert machine.scheduler.run_until_idle()
    assert machine.read("CMDQ_CONS") == machine.read("CMDQ_PROD")


def mapped(machine: Machine, page: int) -> int:
    root = machine.alloc(PAGE)
    machine.map(root, VA, page, flags=AF | RW_S1 | 1 << 11)
    return root


# Commands take effect at the CMD_SYNC (§4.7.3).


def test_an_invalidation_is_complete_at_the_sync(machine: Hostile) -> None:
    machine.ste(1, config=4)
    assert verdict(machine, 1) == VA
    machine.ste(1, config=0)
    consume(machine, CmdCfgiSte.build(sid=1, leaf=1), CmdCfgiSteRange.build(range=31))
    assert verdict(machine, 1) == VA
    machine.command()
    assert verdict(machine, 1) == "abort"


@pytest.mark.parametrize("command", [CmdTlbiNhAll.build(), CmdTlbiNhVa.build(asid=1, addr=VA)])
def test_a_tlb_invalidation_too(machine: Hostile, command: Command) -> None:
    root = mapped(machine, PA)
    machine.s1_stream(1, root=root)
    machine.command(CmdCfgiSteRange.build(range=31))
    assert verdict(machine, 1) == PA
    machine.map(root, VA, PA + PAGE, flags=AF | RW_S1 | 1 << 11)
    consume(machine, command)
    assert verdict(machine, 1) == PA
    machine.command()
    assert verdict(machine, 1) == PA + PAGE


def test_what_is_held_back_is_bounded(machine: Hostile) -> None:
    for _ in range(8):
        consume(machine, *[CmdTlbiNhAll.build()] * (DEFERRED // 2 - 1))
        assert len(machine.smmu.config.deferred) <= DEFERRED
    machine.command()
    assert machine.smmu.config.deferred == []


def test_illegal_commands_are_found_at_once(machine: Hostile) -> None:
    machine.post(CmdTlbiNhVa.build(tg=1))
    machine.scheduler.run_until_idle()
    assert machine.read("GERROR") == 1


# Prefetch (§3.21.3).


def test_what_is_reachable_is_prefetched_when_the_smmu_is_enabled(machine: Hostile) -> None:
    """§3.21.3: an STE that was invalid then is still invalid, although nobody used it."""
    machine.smmu.config.speculate()
    machine.ste(1, config=4)
    assert verdict(machine, 1) == "C_BAD_STE"
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    assert verdict(machine, 1) == VA


def test_a_miss_prefetches_its_neighbours(machine: Hostile) -> None:
    machine.ste(8, config=4)
    assert verdict(machine, 8) == VA
    machine.ste(9, config=4)
    machine.ste(16, config=4)
    assert [verdict(machine, sid) for sid in (9, 16)] == ["C_BAD_STE", VA]


def test_an_invalidated_entry_is_prefetched_again(machine: Hostile) -> None:
    """A change after the CMD_SYNC needs another invalidation, used or not in between."""
    machine.ste(1, config=4)
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    machine.ste(1, config=0)
    assert verdict(machine, 1) == VA
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    assert verdict(machine, 1) == "abort"


def test_contexts_are_prefetched_behind_a_valid_ste(machine: Hostile) -> None:
    cds = machine.alloc(64 * 4)
    for ssid in range(4):
        machine.cd(cds + 64 * ssid, ttb0=mapped(machine, PA + ssid * PAGE), asid=ssid + 1)
    machine.ste(1, config=5, s1ctxptr=cds, s1cdmax=2)
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    for ssid in range(4):
        machine.cd(cds + 64 * ssid, v=0)
    assert verdict(machine, 1, 2) == PA + 2 * PAGE
    machine.command(CmdCfgiCd.build(sid=1, ssid=3, leaf=1))
    assert [verdict(machine, 1, s) for s in (1, 2, 3)] == [PA + PAGE, PA + 2 * PAGE, "C_BAD_CD"]
    machine.command(CmdCfgiCdAll.build(sid=1))
    assert [verdict(machine, 1, s) for s in (0, 1, 2)] == ["C_BAD_CD"] * 3


def test_invalid_pointers_are_not_followed(machine: Hostile) -> None:
    """§3.21.3: behind V=0, a disabled stage 1, an ILLEGAL STE nothing is read."""
    cd = machine.cd(ttb0=mapped(machine, PA))
    machine.memory.write(
        machine.strtab + 64, bytes(Ste.build(v=0, config=5, s1ctxptr=cd))
    )  # fmt: skip
    machine.ste(2, config=4, s1ctxptr=cd)
    machine.ste(3, config=0, s1ctxptr=cd)
    machine.ste(4, config=5, s1ctxptr=cd, s1cdmax=31)
    machine.smmu.config.speculate()
    assert not any(machine.smmu.config._early.holds(sid, 0) for sid in (1, 2, 3, 4))
    machine.ste(5, config=5, s1ctxptr=cd)
    machine.command(CmdCfgiSte.build(sid=5, leaf=1))
    assert machine.smmu.config._early.holds(5, 0)


def test_nothing_is_read_outside_the_tables(machine: Hostile) -> None:
    """§3.21.3: prefetch stays within LOG2SIZE, and within S1CDMax."""
    machine.write("CR0", 0xC)
    table = machine.alloc(64 * 4)
    cds = machine.alloc(64 * 2)
    machine.write("STRTAB_BASE", StrtabBase.build(addr=table).raw)
    machine.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=2).raw)
    for sid in range(4):
        ste = Ste.build(v=1, config=5, s1ctxptr=cds, s1cdmax=1)
        machine.memory.write(table + 64 * sid, bytes(ste))
    reads: set[int] = set()
    read_words = machine.memory.read_words

    def watched(pa: int, count: int) -> tuple[int, ...] | None:
        reads.update(range(pa, pa + 8 * count, 8))
        return read_words(pa, count)

    machine.memory.read_words = watched  # type: ignore[method-assign]
    machine.write("CR0", 0xD)
    machine.smmu.config.speculate()
    machine.go(3, 0, ssid=1)
    inside = {*range(table, table + 256, 8), *range(cds, cds + 128, 8)}
    assert reads == inside


def test_nothing_is_cached_while_the_smmu_is_off(machine: Hostile) -> None:
    """§3.21.3: with SMMUEN=0 no structure is reachable."""
    machine.write("CR0", 0xC)
    machine.ste(1, config=4)
    machine.smmu.config.speculate()
    machine.command(CmdPrefetchConfig.build(sid=1), CmdCfgiSteRange.build(range=31))
    machine.ste(1, config=0)
    machine.write("CR0", 0xD)
    assert verdict(machine, 1) == "abort"


def test_failed_fetches_are_not_kept(machine: Hostile) -> None:
    """§3.21.3: a CD that stage 2 refused is fetched again without any command."""
    root = machine.s2_root()
    cd = machine.cd(ttb0=mapped(machine, PA))
    machine.ste(1, config=7, s1ctxptr=cd, **machine.s2_fields(root))
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    assert verdict(machine, 1) == "F_TRANSLATION"
    for page in range(0x8000_0000, 0x8010_0000, PAGE):
        machine.map(root, page, page, flags=AF | RW_S2)
    machine.map(root, PA, PA, flags=AF | RW_S2)
    assert verdict(machine, 1) == PA
    machine.ste(2, config=5, s1ctxptr=NOWHERE)
    machine.command(CmdCfgiSte.build(sid=2, leaf=1))
    assert verdict(machine, 2) == "F_CD_FETCH"


# Level 1 descriptors, valid or not (§3.21.3).


@pytest.mark.parametrize("mode", ["normal", "hostile"])
def test_an_invalid_l1std(machine: Hostile, mode: str) -> None:
    """Span=0 may be kept until a CMD_CFGI_STE with Leaf=0; the normal caches do not."""
    machine.write("CR0", 0xC)
    table, level2 = machine.alloc(64 * 8), machine.alloc(64 * 64)
    machine.write("STRTAB_BASE", StrtabBase.build(addr=table).raw)
    machine.write("STRTAB_BASE_CFG", StrtabBaseCfg.build(log2size=12, split=6, fmt=1).raw)
    machine.smmu.config.caching = CACHING[mode]
    machine.write("CR0", 0xD)
    assert verdict(machine, 70) == "C_BAD_STREAMID"
    machine.memory.write(level2 + 64 * 6, bytes(Ste.build(v=1, config=4)))
    machine.l1std(table + 8, span=7, l2ptr=level2)
    kept = "C_BAD_STREAMID" if mode == "hostile" else VA
    assert verdict(machine, 70) == kept
    machine.command(CmdCfgiSte.build(sid=70, leaf=1))
    assert verdict(machine, 70) == kept
    machine.command(CmdCfgiSte.build(sid=70, leaf=0))
    assert verdict(machine, 70) == VA


def test_an_invalid_l1cd(machine: Hostile) -> None:
    level1, leaf = machine.alloc(64), machine.alloc(PAGE)
    machine.ste(1, config=5, s1ctxptr=level1, s1cdmax=8, s1fmt=1)
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    assert verdict(machine, 1, 65) == "C_BAD_SUBSTREAMID"
    machine.cd(leaf + 64, ttb0=mapped(machine, PA))
    machine.memory.write(level1 + 8, bytes(L1Cd.build(v=1, l2ptr=leaf)))
    machine.command(CmdCfgiCd.build(sid=1, ssid=65, leaf=1))
    assert verdict(machine, 1, 65) == "C_BAD_SUBSTREAMID"
    machine.command(CmdCfgiCd.build(sid=1, ssid=65, leaf=0))
    assert verdict(machine, 1, 65) == PA


# STE.CONT (§5.2).


def test_a_contiguous_ste_stands_for_its_span(machine: Hostile) -> None:
    for sid in range(16, 32):
        machine.ste(sid, config=4, cont=4)
    machine.command(CmdCfgiSteRange.build(range=31))
    assert verdict(machine, 17) == VA
    machine.ste(31, config=0, cont=4)
    machine.command(CmdCfgiSte.build(sid=31, leaf=1))
    assert verdict(machine, 31) == VA
    machine.command(CmdCfgiSteRange.build(sid=16, range=3))
    assert verdict(machine, 31) == "abort"
    assert verdict(machine, 32) == "C_BAD_STE"


# CMD_PREFETCH_CONFIG, CMD_PREFETCH_ADDR (§4.2).


def test_what_is_held_back_keeps_its_wildcard() -> None:
    """§6.3.9 VMW: a command means the value that CR0.VMW has when it is consumed."""
    machine = Hostile(Features.default().replace(vmw=1))
    enabled = Cr0.build(smmuen=1, eventqen=1, cmdqen=1).raw
    root = mapped(machine, PA)
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=root), s2vmid=5)
    machine.write("CR0", enabled | Cr0.build(vmw=1).raw)
    assert verdict(machine, 1) == PA
    machine.map(root, VA, PA + PAGE, flags=AF | RW_S1 | 1 << 11)
    consume(machine, CmdTlbiNhAll.build(vmid=4))
    machine.write("CR0", enabled)
    machine.command(CmdTlbiNhAll.build(vmid=9))
    assert verdict(machine, 1) == PA + PAGE


@pytest.mark.parametrize("build", [CmdPrefetchConfig.build, CmdPrefetchAddr.build])
@pytest.mark.parametrize("mode", ["none", "normal", "hostile"])
def test_prefetch_takes_a_substream_in(machine: Hostile, build: object, mode: str) -> None:
    """Hostile caches take the hint; the others have not looked."""
    machine.smmu.config.caching = CACHING[mode]
    cds = machine.alloc(64 * 64)
    machine.cd(cds + 64 * 40, ttb0=mapped(machine, PA))
    machine.ste(1, config=5, s1ctxptr=cds, s1cdmax=6)
    machine.command(build(sid=1, ssv=1, ssid=40))  # type: ignore[operator]
    machine.cd(cds + 64 * 40, v=0)
    assert verdict(machine, 1, 40) == (PA if mode == "hostile" else "C_BAD_CD")
    machine.command(CmdCfgiCd.build(sid=1, ssid=40, leaf=1))
    assert verdict(machine, 1, 40) == "C_BAD_CD"


@pytest.mark.parametrize(
    "command",
    [
        CmdPrefetchConfig.build(sid=1 << 30), CmdPrefetchConfig.build(sid=3),
        CmdPrefetchConfig.build(sid=1, ssv=1, ssid=0xF_FFFF),
        CmdPrefetchConfig.build(sid=1), CmdPrefetchConfig.build(sid=2, ssv=1, ssid=1),
    ],
)  # fmt: skip
def test_prefetch_fails_silently(machine: Hostile, command: Command) -> None:
    machine.ste(1, config=5, s1ctxptr=NOWHERE, s1cdmax=2)
    machine.ste(2, config=4)
    machine.command(command)
    assert machine.events() == []
    assert machine.read("GERROR") == machine.read("GERRORN")


def test_a_contiguous_ste_ends_with_its_span_and_its_table(machine: Hostile) -> None:
    """§5.2: 2^CONT StreamIDs; §7.3.3: one beyond the table is C_BAD_STREAMID all the same."""
    for sid in (252, 253):
        machine.ste(sid, config=4, cont=1)
    machine.ste(254, config=0)
    machine.ste(255, config=4, cont=4)
    machine.command(CmdCfgiSteRange.build(range=31))
    assert [verdict(machine, sid) for sid in (252, 254)] == [VA, "abort"]
    machine.ste(255, config=4, cont=15)
    machine.command(CmdCfgiSteRange.build(range=31))
    assert [verdict(machine, sid) for sid in (255, 256)] == [VA, "C_BAD_STREAMID"]


@pytest.mark.parametrize("ssid", [0, 3])
def test_a_cd_is_prefetched_as_soon_as_it_is_dropped(machine: Hostile, ssid: int) -> None:
    """§3.21.3: what is in use may be read again at once, before the CD changes."""
    cds = machine.alloc(64 * 16)
    for i in range(4):
        machine.cd(cds + 64 * i, ttb0=mapped(machine, PA))
    machine.ste(1, config=5, s1ctxptr=cds, s1cdmax=2, s1dss=2)
    machine.command(CmdCfgiSte.build(sid=1, leaf=1))
    assert verdict(machine, 1, ssid or None) == PA
    machine.command(CmdCfgiCd.build(sid=1, ssid=ssid, leaf=1))
    machine.cd(cds + 64 * ssid, v=0)
    assert verdict(machine, 1, ssid or None) == PA
    machine.command(CmdCfgiCd.build(sid=1, ssid=ssid, leaf=1))
    assert verdict(machine, 1, ssid or None) == "C_BAD_CD"
