# SPDX-License-Identifier: BSD-2-Clause
"""Recordings of a scenario's run: one of each vSMMU of each guest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vsmmu.recording.recorder import MachineRecorder

if TYPE_CHECKING:
    from vsmmu.toolstack import Guest, Machine

_PACKED = ".xz"
# CMDQ_PROD writes of a guest's programs between one's change and its invalidation.
_SIDE_BY_SIDE = 16


class PlaceError(Exception):
    """One file for several recordings; one line."""

    exit_code = 1


class RunRecorder:
    """Records a run from before its first step.

    Args:
        machine: booted.
        guests: created; no driver has run.
        scenario: its title, for the headers.
        actors: guests do several things at a time, so what one of them sends may be for another.

    Raises:
        UnrecordableError: a vSMMU has what no record can say.
    """

    def __init__(
        self, machine: Machine, guests: Sequence[Guest], scenario: str, *, actors: bool = False
    ) -> None:
        self._recorder = MachineRecorder(machine.hypervisor, machine.smmus)
        self._names: list[str] = []
        seed = machine.scheduler.seed
        for guest in guests:
            many = len(guest.vsmmus) > 1
            for index, (path, vsmmu) in enumerate(guest.vsmmus.items()):
                name = f"{guest.name}-{index}" if many else guest.name
                header = {"scenario": scenario, "guest": guest.name, "vsmmu": path, "seed": seed}
                settled_after = _SIDE_BY_SIDE if actors else 1
                self._recorder.add(vsmmu, name, header, settled_after)
                self._names.append(name)

    def step(self, step: Any) -> None:
        """A step of the scenario begins."""
        guests = ", ".join(step.guests)
        self._recorder.note(f"step {step.number}: {step.do} {guests}")

    def outputs(self, place: str) -> dict[str, bytes]:
        """The files by name: `place` if it ends in .xz, else one for each vSMMU in that folder.

        Raises:
            PlaceError: one file for more or less than one recording.
        """
        packed = [recorder.log.finish() for recorder in self._recorder.recorders]
        if not place.endswith(_PACKED):
            names = (os.path.join(place, _plain(name) + _PACKED) for name in self._names)
            return dict(zip(names, packed, strict=True))
        if len(packed) != 1:
            what = f"the run has {len(packed)} vSMMUs ({', '.join(self._names) or 'none'})"
            raise PlaceError(f"--record {place}: {what}; give a folder")
        return {place: packed[0]}

    def ended(self) -> list[str]:
        """Recordings that ended before the run did: name and reason."""
        logs = (recorder.log for recorder in self._recorder.recorders)
        return [f"{log.name}: {log.ended}" for log in logs if log.ended]


def _plain(name: str) -> str:
    """A guest's name as that of a file: it may be any text."""
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    return kept.lstrip(".") or "guest"
