# SPDX-License-Identifier: BSD-2-Clause
"""The PRI queue's entry, and what answers one (IHI 0070 §8)."""

from __future__ import annotations

from enum import IntEnum

from vsmmu.arch.layout import Layout, addr, bit, bits


class PrgResponse(IntEnum):
    """Response Code of a PRG Response message, as an endpoint receives it (§8.3)."""

    SUCCESS = 0
    INVALID_REQUEST = 1
    FAILURE = 15


class PriEntry(Layout, dwords=2, spec="IHI 0070 §8"):
    """A Page Request; `ssid`, `priv` and `x` mean something with `ssv` only."""

    sid = bits(31, 0)
    ssid = bits(51, 32)
    priv = bit(58)
    x = bit(59)
    r = bit(60)
    w = bit(61)
    last = bit(62)
    ssv = bit(63)
    prgindex = bits(72, 64)
    addr = addr(127, 76, low=12)

    @property
    def stop_marker(self) -> bool:
        """Whether this is a PASID Stop Marker: L, W, R = 1, 0, 0 with a PASID."""
        return bool(self.last and self.ssv and not self.w and not self.r)
