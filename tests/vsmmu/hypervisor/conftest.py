# SPDX-License-Identifier: BSD-2-Clause
"""Two guests on SMMUs that they share; a module may have fixtures of its own by these names."""

from __future__ import annotations

import pytest

from .world import BUFFER, World


@pytest.fixture
def world() -> World:
    return World({"g": [("a", 0x600), ("b", 0x600)], "o": [("b", 0x700)]})


@pytest.fixture
def guest(world):
    """`g`, booted, both streams attached and mapped at 0x10000, interrupts unhandled."""
    g = world["g"].boot()
    for vmaster_id in (0, 1):
        g.attach(vmaster_id)
        g.map(vmaster_id, 0x10000, BUFFER + 0x1000 * vmaster_id)
    g.vcpu.handlers.clear()
    return g
