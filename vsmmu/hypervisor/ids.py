# SPDX-License-Identifier: BSD-2-Clause
"""Numbers that are given out and come back."""

from __future__ import annotations

from collections.abc import Collection


def lowest_free(used: Collection[int], first: int = 0) -> int:
    """The lowest number from `first` on that is not in use."""
    return next(i for i in range(first, first + len(used) + 1) if i not in used)


def next_free(used: Collection[int], last: int, first: int, end: int) -> int | None:
    """The next number after `last` in [first, end), from the start again behind the end."""
    later = (i for i in range(last + 1, end) if i not in used)
    earlier = (i for i in range(first, last + 1) if i not in used)
    return next(later, next(earlier, None))
