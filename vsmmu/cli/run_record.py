# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run --record`: where the recordings of a run go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsmmu.cli.files import FileError, say, write

if TYPE_CHECKING:
    from vsmmu.run_recorder import RunRecorder
    from vsmmu.scenario import Scenario
    from vsmmu.toolstack import Guest, Machine

_Progress = Callable[[Any], None]
_Built = Callable[["Machine", "list[Guest]"], None]


class Recorded:
    """The recordings of one run.

    Args:
        place: a file that ends in .xz, or a folder, which is made if it is not there.

    Raises:
        FileError: stdout, or an empty name.
    """

    def __init__(self, place: str) -> None:
        if place in ("", "-"):
            raise FileError(f"--record {place}: give a folder, or a file that ends in .xz")
        self._place = place
        self._recorder: RunRecorder | None = None

    def watch(self, scenario: Scenario, then: _Progress | None) -> tuple[_Progress, _Built]:
        """What is to be called before each step, and once the machine and guests are there."""
        from vsmmu.run_recorder import RunRecorder

        def built(machine: Machine, guests: Sequence[Guest]) -> None:
            self._recorder = RunRecorder(
                machine, guests, scenario.title, actors=bool(scenario.actors)
            )

        def step(step: Any) -> None:
            if self._recorder is not None:
                self._recorder.step(step)
            if then is not None:
                then(step)

        return step, built

    def save(self, inputs: Iterable[str]) -> None:
        """Write all files or none. Raises FileError, PlaceError."""
        if self._recorder is None:
            return
        outputs = self._recorder.outputs(self._place)
        if self._place not in outputs:
            _make(Path(self._place))
        write(outputs, inputs)
        for line in self._recorder.ended():
            say(f"vsmmu: notice: the recording ends early: {line}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(f"--record {folder}: cannot make the folder: {reason}") from None
