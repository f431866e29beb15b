# SPDX-License-Identifier: BSD-2-Clause
"""How far a run is, on a terminal's stderr and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsmmu.scenario import Step

# Scenarios with fewer steps are over before anybody has read it.
_STEPS_MIN = 100


def step_counter(steps: int) -> Callable[[Step], None] | None:
    """A counter for a long scenario; None where there is no terminal."""
    if steps < _STEPS_MIN or not _terminal():
        return None

    def show(step: Step) -> None:
        end = "\n" if step.number == steps else ""
        print(f"\rstep {step.number}/{steps}", end=end, file=sys.stderr, flush=True)

    return show


@contextmanager
def run_bar(runs: int) -> Iterator[Callable[[], None] | None]:
    """A bar, and what advances it by one run; None where there is no terminal."""
    if not _terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task("runs", total=runs)
        yield lambda: bar.advance(task)


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
