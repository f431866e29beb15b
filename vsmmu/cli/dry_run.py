# SPDX-License-Identifier: BSD-2-Clause
"""What a command would change, as a unified diff of device-tree source or of text."""

from __future__ import annotations

from difflib import unified_diff
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dt_tools.tree import Tree

_NOTHING = "/dev/null"


def tree_diff(old: Tree | None, new: Tree, old_name: str, new_name: str) -> str:
    """The change from `old` (None: there is nothing) to `new`; empty when they are equal."""
    from dt_tools.dts import to_dts

    before = None if old is None else to_dts(old)
    return text_diff(before, to_dts(new), old_name, new_name)


def text_diff(old: str | None, new: str, old_name: str, new_name: str) -> str:
    """The change from `old` (None: there is nothing) to `new`; empty when they are equal."""
    before = [] if old is None else old.splitlines()
    name = _NOTHING if old is None else old_name
    lines = unified_diff(before, new.splitlines(), name, new_name, lineterm="")
    return "".join(f"{line}\n" for line in lines)
