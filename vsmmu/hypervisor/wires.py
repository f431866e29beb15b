# SPDX-License-Identifier: BSD-2-Clause
"""The wired interrupts of a vSMMU: which cause drives which interrupt of the guest's GIC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

# The names of the device-tree binding.
CAUSES = ("eventq", "priq", "gerror", "cmdq-sync")
COMBINED = "combined"


def spis_by_cause(numbers: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """The GIC interrupt id of each cause, from a node's `interrupts` and `interrupt-names`.

    A line named `combined` has all causes, and so has the first line where there are no names,
    since nothing says otherwise.
    """
    named = dict(zip(names, numbers, strict=False))
    if COMBINED in named or not named:
        line = named.get(COMBINED, numbers[0] if numbers else 0)
        return dict.fromkeys(CAUSES, line) if line else {}
    return {cause: named[cause] for cause in CAUSES if named.get(cause)}


class Wires:
    """Joins causes that share a line: it is high while any of them is.

    Args:
        spis: interrupt id by cause; a cause without one drives nothing.
        sink: told (interrupt id, level) when a line changes.
    """

    def __init__(self, spis: Mapping[str, int], sink: Callable[[int, bool], None]) -> None:
        self._spis = dict(spis)
        self._sink = sink
        self._high: dict[int, set[str]] = {spi: set() for spi in self._spis.values()}

    def __call__(self, cause: str, level: bool) -> None:
        """A cause starts or ends."""
        spi = self._spis.get(cause)
        if spi is None:
            return
        high = self._high[spi]
        before = bool(high)
        if level:
            high.add(cause)
        else:
            high.discard(cause)
        if bool(high) != before:
            self._sink(spi, level)
