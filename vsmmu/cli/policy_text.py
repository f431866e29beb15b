# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run --policy` for a terminal, as wide as it is."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsmmu.hypervisor.policy import Policy

_INDENT = "  "


def policy_text(policy: Policy, width: int | None = None) -> str:
    """The caps with unit and meaning, the allow-masks, the reasons of refusals.

    Args:
        width: columns; the terminal's, or $COLUMNS, or 80 where it is None.
    """
    from vsmmu.hypervisor.commands import accepted
    from vsmmu.hypervisor.policy import GUEST_STE_FIELDS, GUEST_STE_MASK, REASONS

    width = max(width or shutil.get_terminal_size((80, 24)).columns, 40)
    caps = policy.caps()
    values = {name: _value(value, unit) for name, value, unit, _ in caps}
    lines = ["caps"]
    lines += _table([(n, values[n], meaning) for n, _, _, meaning in caps], width)
    lines += ["", "fields of a guest's STE that reach the physical one (dword: mask)"]
    lines += _wrapped(", ".join(GUEST_STE_FIELDS), width)
    masks = [f"{i}: {word:#018x}" for i, word in enumerate(GUEST_STE_MASK) if word]
    lines += _wrapped("  ".join(masks) + "  others: 0", width)
    lines += ["", "commands of a guest that are carried out; all else is CERROR_ILL"]
    lines += _wrapped(", ".join(accepted()), width)
    lines += ["", "refusals are counted by reason"]
    lines += _table(list(REASONS.items()), width)
    return "".join(line + "\n" for line in lines)


def _value(value: int, unit: str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value} {unit}"


def _wrapped(text: str, width: int, first: str = _INDENT, rest: str = _INDENT) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def _table(rows: list[tuple[str, ...]], width: int) -> list[str]:
    """Rows in columns; the last column is wrapped beside the others."""
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=False))
        start = f"{_INDENT}{cells}  "
        lines += _wrapped(row[-1], width, start, " " * len(start))
    return lines
