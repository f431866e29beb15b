# SPDX-License-Identifier: BSD-2-Clause
"""STEs that become valid without a command, as where Linux links a level 2 table."""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import CmdCfgiSte, CmdSync
from vsmmu.arch.events import CBadSte
from vsmmu.arch.stream_table import Ste, SteConfig
from vsmmu.hypervisor.shadow import settle

from .world import Guest, World

SYNC = CmdSync.build(cs=0)
INVALID = Ste()
ABORT = Ste.build(v=1, config=SteConfig.ABORT)
BYPASS = Ste.build(v=1, config=SteConfig.BYPASS)


@pytest.fixture
def guest() -> Guest:
    """Booted, with an STE that the vSMMU knows to be invalid."""
    guest = World({"g": [("a", 0x600)]})["g"].boot()
    guest.attach(0)
    guest.ste(0, INVALID)
    guest.put(CmdCfgiSte.build(sid=0, leaf=1), SYNC)
    return guest


def test_one_that_aborts_by_now_leaves_no_record(guest: Guest) -> None:
    guest.dma(0, 0, 8)
    assert guest.events() == [("C_BAD_STE", 0)]
    guest.ste(0, ABORT)
    guest.dma(0, 0, 8)
    assert guest.events() == []
    assert guest.vsmmu.counters["event of a valid STE"] == 1
    stream = guest.vsmmu.streams[0]
    assert stream.host.read_ste(stream.pmaster_id) == ABORT
    guest.dma(0, 0, 8)
    assert guest.events() == []


def test_one_that_lets_through_by_now_is_still_the_old_one_once(guest: Guest) -> None:
    """Without a command the invalid STE may have been cached; the next access sees the new one."""
    guest.ste(0, BYPASS)
    guest.dma(0, 0x4030_0000, 8)
    assert guest.events() == [("C_BAD_STE", 0)]
    assert guest.dma(0, 0x4030_0000, 8).ok


def test_reading_it_again_counts_no_refusal(guest: Guest) -> None:
    before = guest.vsmmu.refusals.by_reason["C_BAD_STE"]
    guest.dma(0, 0, 8)
    assert guest.vsmmu.refusals.by_reason["C_BAD_STE"] == before


def test_a_stream_that_is_taken_back_is_not_shadowed_again(guest: Guest) -> None:
    stream, record = guest.vsmmu.streams[0], CBadSte.build(sid=0)
    guest.vsmmu.withdraw(stream)
    guest.ste(0, BYPASS)
    assert stream.raises is not None
    assert settle(guest.vsmmu, stream, record) == record
    assert not stream.stale
