# SPDX-License-Identifier: BSD-2-Clause
"""How many commands the guest's driver needs for n pages (IHI 0070 §4.4.1), and that they do."""

from __future__ import annotations

import pytest

from vsmmu.arch.registers import Idr3

from .world import BUFFER, World

IOVA = 0x4000_0000
PAGE = 0x1000


@pytest.mark.parametrize(
    ("pages", "commands"),
    [(1, 1), (16, 1), (31, 1), (32, 1), (33, 2), (63, 2), (64, 1), (256, 1), (511, 2), (512, 1),
     (1023, 2), (262144, 1)],
)  # fmt: skip
def test_commands_of_an_unmap(pages: int, commands: int) -> None:
    world = World({"g": [("a", 1)]})
    g = world["g"].boot()
    g.attach(0)
    assert Idr3(g.read("IDR3")).ril
    last = IOVA + (pages - 1) * PAGE
    for iova in {IOVA, last, last + PAGE}:
        g.map(0, iova, BUFFER)
        assert g.dma(0, iova, 4).ok
    sent = world.smmus["a"].counters["cmd.CMD_TLBI_NH_VA"]
    g.run(g.driver.unmap(0, IOVA, pages * PAGE))
    assert world.smmus["a"].counters["cmd.CMD_TLBI_NH_VA"] - sent == commands
    assert [g.dma(0, iova, 4).ok for iova in (IOVA, last, last + PAGE)] == [False, False, True]
