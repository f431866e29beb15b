# SPDX-License-Identifier: BSD-2-Clause
"""A budget of steps for one board, so that no tree can ask for unbounded work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.errors import DtbError

if TYPE_CHECKING:
    from dt_tools.tree import Node

# Steps of address translation, page search and interrupt mapping for one board, a few seconds'
# worth. A board of 1,481 nodes and 44 masters takes 1,240.
WORK_LIMIT = 500_000


class Work:
    """Counts steps over one tree; `source` is its name for messages."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.left = WORK_LIMIT

    def spend(self, steps: int, node: Node) -> None:
        """Take `steps` off the budget.

        Raises:
            DtbError: none are left; `node` is where the work is done.
        """
        self.left -= steps
        if self.left < 0:
            reason = f"resolving addresses and interrupts takes more than {WORK_LIMIT} steps"
            raise DtbError(self.source, reason, path=node.path)
