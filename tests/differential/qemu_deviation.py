# SPDX-License-Identifier: BSD-2-Clause
"""What is known of one departure of QEMU from the architecture."""

from __future__ import annotations

from dataclasses import dataclass

from tests.differential import qemu_probes as p


@dataclass(frozen=True)
class Deviation:
    """A row: `name` is the row's id, `clause` IHI 0070's unless it says otherwise."""

    name: str
    clause: str
    qemu: str
    allowed: str
    probe: p.Probe
    shows: str
    since: tuple[int, ...] = (10, 0, 0)
    until: tuple[int, ...] = (999,)

    def covers(self, version: tuple[int, ...]) -> bool:
        """Whether the row speaks of a version."""
        return self.since <= version < self.until


AVOID = "not made by random programs"
SAME_R = "random programs with such faults have R=S2R"
AVOIDED = (AVOID, SAME_R, "data and memory are compared, records are not", "no TTB1, no tags")
