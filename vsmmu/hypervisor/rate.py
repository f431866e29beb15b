# SPDX-License-Identifier: BSD-2-Clause
"""A cap on how often something happens, in turns of the scheduler."""

from __future__ import annotations


class Rate:
    """At most `burst` at once, and one more for each `turns` turns after that.

    In any `n` turns it allows at most `burst + n // turns + 1`.

    Args:
        burst: at least 1.
        turns: at least 1.
    """

    def __init__(self, burst: int, turns: int) -> None:
        self._burst, self._turns = max(burst, 1), max(turns, 1)
        # The turn at which all that was taken will have been given back.
        self._full = 0

    def allows(self, now: int) -> bool:
        """Whether one more is within the cap at this turn."""
        return self._full - now <= (self._burst - 1) * self._turns

    def take(self, now: int) -> None:
        """Count one."""
        self._full = max(self._full, now) + self._turns
