# SPDX-License-Identifier: BSD-2-Clause
"""Shared control: nodes whose phandles others hold, and what they control for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.references import Reference, layout, references

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dt_tools.tree import Node

__all__ = ["Reference", "control_block", "references"]


def control_block(node: Node, users: Iterable[Reference]) -> str | None:
    """Which shared control the node has for others: `clocks`, `system control` ...; else None."""
    for name, what in _ROLES.items():
        if name in node.props:
            return what
    named = any(layout(ref.name) == "*" for ref in users)
    return "system control" if named or node.is_compatible("syscon") else None


_ROLES = {
    "#clock-cells": "clocks",
    "#reset-cells": "resets",
    "#power-domain-cells": "power domains",
    "#interconnect-cells": "interconnects",
    "#mbox-cells": "mailboxes",
}
