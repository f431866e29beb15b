# SPDX-License-Identifier: BSD-2-Clause
"""A counter on a terminal's stderr for long work; nothing elsewhere."""

from __future__ import annotations

import sys


def counted(done: int, what: str, *, end: bool = False) -> None:
    """Show how many of something are done; `end` wipes the line."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    text = "\r\x1b[K" if end else f"\r{done:,} {what}"
    print(text, end="", file=sys.stderr, flush=True)
