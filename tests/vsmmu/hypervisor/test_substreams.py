# SPDX-License-Identifier: BSD-2-Clause
"""Substreams of guests: CD tables by hardware, limits and events by the vSMMU."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdCfgiCdAll, CmdCfgiSte, CmdSync
from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.events import Event, FCdFetch
from vsmmu.arch.registers import Idr0, Idr1
from vsmmu.arch.stream_table import S1Dss, S1Fmt, Ste, SteConfig
from vsmmu.hypervisor.policy import Policy
from vsmmu.smmu.features import Features

from .world import BUFFER, NOWHERE, RAM, Guest, World

SMMU = Features.default(sidsize=16).replace(ssidsize=8, cd2l=1)
SYNC = CmdSync.build(cs=0)
TABLE = RAM + 0x10000
LEAF = RAM + 0x20000


def start(policy: Policy | None = None, features: Features = SMMU) -> Guest:
    """Booted and attached, 0x10000 mapped."""
    policy = policy or Policy(substreams=True)
    g = World({"g": [("a", 0x600)]}, policy=policy, features=features)["g"].boot()
    g.attach(0)
    g.map(0, 0x10000, BUFFER)
    return g


def use(guest: Guest, **fields: int) -> None:
    """Change fields of the guest's STE, and synchronise."""
    words = guest.memory.read_words(guest.driver.ste_address(0), Ste.dwords)
    assert words is not None
    guest.ste(0, Ste(words).replace(**fields))
    guest.put(CmdCfgiSte.build(sid=0, leaf=1), CmdCfgiCdAll.build(sid=0), SYNC)


def context(guest: Guest) -> tuple[int, ...]:
    words = guest.memory.read_words(guest.driver.contexts[0].cd, Cd.dwords)
    assert words is not None
    return words


def dma(guest: Guest, ssid: int | None) -> bool:
    request = guest.ports[0].write(0x10000, b"pasid", ssid=ssid)
    assert guest.world.scheduler.run_until_idle()
    return request.ok


def faults(guest: Guest) -> list[Event]:
    found = list(guest.driver.events)
    guest.driver.events.clear()
    return found


def test_what_is_offered() -> None:
    for policy, features, ssidsize, cd2l in (
        (Policy(substreams=True), SMMU, 8, 1),
        (Policy(substreams=True), SMMU.replace(cd2l=0), 8, 0),
        (Policy(substreams=True), SMMU.replace(ssidsize=0), 0, 0),
        (Policy(), SMMU, 0, 0),
    ):
        g = World({"g": [("a", 1)]}, policy=policy, features=features)["g"]
        assert Idr1(g.read("IDR1")).ssidsize == ssidsize
        assert Idr0(g.read("IDR0")).cd2l == cd2l


def test_a_linear_table() -> None:
    g = start()
    g.memory.write_words(TABLE + 64 * 3, context(g))
    use(g, s1ctxptr=TABLE, s1cdmax=2, s1dss=S1Dss.TERMINATE)
    assert dma(g, 3)
    assert not dma(g, None)
    assert not dma(g, 4)
    assert not dma(g, 2)
    seen = [(e.name, e.sid, e.ssid) for e in faults(g)]
    assert seen == [("F_STREAM_DISABLED", 0, 0), ("C_BAD_SUBSTREAMID", 0, 4), ("C_BAD_CD", 0, 2)]


def test_a_two_level_table() -> None:
    g = start()
    g.memory.write64(TABLE + 8, L1Cd.build(v=1, l2ptr=LEAF).raw)
    g.memory.write_words(LEAF + 64 * 5, context(g))
    use(g, s1ctxptr=TABLE, s1cdmax=8, s1fmt=S1Fmt.TWO_LEVEL_4K, s1dss=S1Dss.BYPASS)
    assert dma(g, 64 + 5)
    assert not dma(g, 5)
    # Without SubstreamID stage 1 is skipped, and stage 2 is not.
    assert g.dma(0, BUFFER, b"x").ok
    assert not g.dma(0, NOWHERE, b"x").ok


@pytest.mark.parametrize(
    "fields",
    [{"s1cdmax": 9}, {"s1cdmax": 31}],
)
def test_more_than_is_offered_is_a_bad_ste(fields: dict[str, int]) -> None:
    g = start()
    use(g, **fields)
    assert not g.world.hypervisor.hosts["a"].read_ste(0x600).v
    assert not dma(g, None)
    assert [e.name for e in faults(g)] == ["C_BAD_STE"]


def test_two_levels_that_are_not_offered_are_a_bad_ste() -> None:
    g = start(features=SMMU.replace(cd2l=0))
    use(g, s1cdmax=2, s1fmt=S1Fmt.TWO_LEVEL_64K)
    assert not g.world.hypervisor.hosts["a"].read_ste(0x600).v


def test_they_are_suppressed_where_they_are_not_offered() -> None:
    g = start(Policy())
    use(g, s1cdmax=3, s1fmt=S1Fmt.TWO_LEVEL_4K, s1dss=S1Dss.BYPASS)
    ste = g.world.hypervisor.hosts["a"].read_ste(0x600)
    assert (ste.config, ste.s1cdmax, ste.s1fmt, ste.s1dss) == (SteConfig.NESTED, 0, 0, 0)
    assert dma(g, None)
    assert not dma(g, 0)
    assert [e.name for e in faults(g)] == ["C_BAD_SUBSTREAMID"]


def test_where_a_cd_could_not_be_fetched() -> None:
    """The address is the guest's own: of its CD, or of the level 1 CD."""
    g = start()
    use(g, s1ctxptr=NOWHERE, s1cdmax=7, s1dss=S1Dss.TERMINATE)
    assert not dma(g, 70)
    use(g, s1fmt=S1Fmt.TWO_LEVEL_4K)
    assert not dma(g, 70)
    g.memory.write64(TABLE + 8, L1Cd.build(v=1, l2ptr=NOWHERE + 0x4000).raw)
    use(g, s1ctxptr=TABLE)
    assert not dma(g, 70)
    found = [e.fetchaddr for e in faults(g) if isinstance(e, FCdFetch)]
    assert found == [NOWHERE + 64 * 70, NOWHERE + 8, NOWHERE + 0x4000 + 64 * 6]
