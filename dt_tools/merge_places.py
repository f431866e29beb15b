# SPDX-License-Identifier: BSD-2-Clause
"""Whose registers are at an address of the host, and which that is of an address of the guest."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dt_tools.binding import MappedReg
    from dt_tools.platform import Platform
    from dt_tools.tree import Node

_End = tuple[int, str]
"""End of a window, and the host path whose it is."""


class GuestMap:
    """Host addresses of guest addresses: by `pins` (bytes), of which a later one wins, else 1:1."""

    def __init__(self, pins: Sequence[MappedReg]) -> None:
        self._pins = pins

    @cached_property
    def _steps(self) -> tuple[list[int], list[int]]:
        """First guest addresses, ascending, and what is added to an address from there on."""
        edges = {edge for pin in self._pins for edge in (pin.guest, pin.guest + pin.size)}
        coming = sorted(range(len(self._pins)), key=lambda at: self._pins[at].guest, reverse=True)
        starts, added = [], []
        active: list[int] = []
        for edge in sorted(edges):
            while coming and self._pins[coming[-1]].guest <= edge:
                heappush(active, -coming.pop())
            while active and _end(self._pins[-active[0]]) <= edge:
                heappop(active)
            pin = self._pins[-active[0]] if active else None
            starts.append(edge)
            added.append(0 if pin is None else pin.host - pin.guest)
        return starts, added

    def host(self, address: int) -> int:
        """The host address of a guest address."""
        if not self._pins:
            return address
        starts, added = self._steps
        at = bisect_right(starts, address) - 1
        return address if at < 0 else address + added[at]


def _end(pin: MappedReg) -> int:
    return pin.guest + pin.size


class Places:
    """Which of some host nodes have a register at an address: theirs, or one of a node below."""

    def __init__(self, platform: Platform, nodes: Iterable[Node]) -> None:
        self._platform = platform
        self._nodes = nodes

    @cached_property
    def _rows(self) -> list[tuple[int, int, str]]:
        """(base, end, host path) of all registers, by address."""
        return sorted(
            (reg.cpu_base, reg.cpu_base + reg.size, node.path)
            for node in self._nodes
            for inner in node.walk()
            if "reg" in inner.props
            for reg in self._platform.reg_of(inner) or ()
            if reg.size
        )

    @cached_property
    def _own(self) -> Mapping[str, tuple[list[int], list[int]]]:
        """Of each node the bases of its registers, and the highest end up to each."""
        found: dict[str, tuple[list[int], list[int]]] = {}
        for base, end, path in self._rows:
            bases, ends = found.setdefault(path, ([], []))
            bases.append(base)
            ends.append(max(end, ends[-1]) if ends else end)
        return found

    @cached_property
    def _farthest(self) -> list[tuple[_End, _End]]:
        """Up to each row the highest end, and the highest of another node."""
        first: _End = 0, ""
        second: _End = 0, ""
        found = []
        for _, end, path in self._rows:
            if path == first[1]:
                first = max(first, (end, path))
            elif end > first[0]:
                first, second = (end, path), first
            elif end > second[0]:
                second = end, path
            found.append((first, second))
        return found

    def has(self, path: str, address: int) -> bool:
        """Whether the node at host path `path` has a register at `address`."""
        bases, ends = self._own.get(path, ([], []))
        at = bisect_right(bases, address) - 1
        return at >= 0 and ends[at] > address

    def other(self, path: str, address: int) -> str | None:
        """Another of the nodes that has a register at `address`."""
        at = bisect_right(self._rows, address, key=lambda row: row[0]) - 1
        for end, whose in self._farthest[at] if at >= 0 else ():
            if whose != path and end > address:
                return whose
        return None
