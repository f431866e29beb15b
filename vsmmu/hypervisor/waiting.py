# SPDX-License-Identifier: BSD-2-Clause
"""What the toolstack asks for ends, or is an error: it waits for its own request alone."""

from __future__ import annotations

from collections.abc import Callable

from vsmmu.scheduler import Scheduler

# Turns that a request may take. Guests that stay busy lengthen it, but cannot hold it up.
_TURNS = 1_000_000


class HypercallError(Exception):
    """A request of the toolstack that cannot be met; one line that says why."""


def wait_until(scheduler: Scheduler, ready: Callable[[], bool], problem: str) -> None:
    """Run the machine until something is so. It need not be at rest: guests may never be.

    Raises:
        HypercallError: `problem`, when it was not so after a million turns.
    """
    for _ in range(_TURNS):
        if ready():
            return
        scheduler.step()
    raise HypercallError(problem)
