# SPDX-License-Identifier: BSD-2-Clause
"""The wired interrupts of a vSMMU: which cause drives which interrupt of the guest's GIC."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence

# The names of the device-tree binding.
CAUSES = ("eventq", "priq", "gerror", "cmdq-sync")
COMBINED = "combined"
# Causes that do not stand, but happen.
_MOMENTARY = ("cmdq-sync",)
# The trigger in the last cell of an interrupt specifier of the GIC's binding; the rest of the cell
# is a mask of CPUs. Of an edge and a level the level counts: it is never missed.
_EDGES, _LEVELS = 0x3, 0xC


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


def edges(lines: Iterable[tuple[int, int]]) -> frozenset[int]:
    """The interrupts that a tree calls edges, from (GIC interrupt id, last cell) of each."""
    lines = list(lines)
    levels = {number for number, flags in lines if flags & _LEVELS or not flags & _EDGES}
    return frozenset(number for number, _ in lines) - levels


class Wires:
    """Joins causes that share a line, by the trigger that the guest's tree gives the line.

    A level is high while any of its causes stands, and falls with the last; the completion of a
    CMD_SYNC, which nothing acknowledges, lifts it for a moment only. An edge is a pulse each time
    that one of its causes occurs (IHI 0070 §3.18), whatever stands meanwhile.

    Args:
        spis: interrupt id by cause; a cause without one drives nothing.
        sink: told (interrupt id, level) when a line changes.
        edges: interrupt ids of the lines that are edges; the others are levels.
    """

    def __init__(
        self,
        spis: Mapping[str, int],
        sink: Callable[[int, bool], None],
        edges: Container[int] = (),
    ) -> None:
        self._spis = dict(spis)
        self._sink = sink
        self._edges = {spi for spi in self._spis.values() if spi in edges}
        self._high: dict[int, set[str]] = {spi: set() for spi in self._spis.values()}

    def __call__(self, cause: str, level: bool, /) -> None:
        """A cause begins to stand, or stands no more."""
        spi = self._spis.get(cause)
        if spi is None or spi in self._edges:
            return
        high = self._high[spi]
        before = bool(high)
        if level:
            high.add(cause)
        else:
            high.discard(cause)
        if bool(high) != before:
            self._sink(spi, level)

    def pulse(self, cause: str, /) -> None:
        """A cause occurs."""
        spi = self._spis.get(cause)
        if spi is None or not (spi in self._edges or cause in _MOMENTARY):
            return
        if not self._high[spi]:
            self._sink(spi, True)
            self._sink(spi, False)
