# SPDX-License-Identifier: BSD-2-Clause
"""The phandles of a hand-written /passthrough: which of them a guest's tree cannot have."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dt_tools.carry import NO_PHANDLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dt_tools.tree import Node

# The toolstack numbers its own nodes from here on.
_FIRST_RESERVED = 65000
_PHANDLES = ("phandle", "linux,phandle")
_FIX = "use 1 to 64999"


class Fault(NamedTuple):
    """What is wrong with a phandle of the node at `path`; `refused` where no tree is made."""

    rule: str
    path: str
    reason: str
    fix: str
    refused: bool = True


def faults(nodes: Iterable[Node], reserved: Mapping[int, str]) -> Iterator[Fault]:
    """DT402 to DT404 of the nodes that are copied, in order; `reserved` says whose a phandle is."""
    seen: dict[int, str] = {}
    for node in nodes:
        if not any(name in node.props for name in _PHANDLES):
            continue
        path = node.path
        found: dict[int, None] = {}
        for name in _PHANDLES:
            value = node.u32(name)
            if value is not None:
                found[value] = None
            elif name in node.props:
                reason = f"{name} has {len(node.props[name])} bytes, not one cell"
                yield Fault("DT404", path, reason, _FIX)
        for phandle in found:
            fault = _fault(phandle, path, reserved, seen)
            if fault is not None:
                yield fault
            seen.setdefault(phandle, path)


def _fault(
    phandle: int, path: str, reserved: Mapping[int, str], seen: Mapping[int, str]
) -> Fault | None:
    if phandle in NO_PHANDLES:
        return Fault("DT404", path, f"phandle {phandle:#x} is no phandle", _FIX)
    if phandle in reserved:
        reason = f"phandle {phandle} is reserved for {reserved[phandle]}"
        return Fault("DT402", path, reason, _FIX)
    if phandle in seen:
        reason = f"phandle {phandle:#x} is {seen[phandle]}'s already"
        return Fault("DT403", path, reason, "give each node its own phandle")
    if phandle >= _FIRST_RESERVED:
        reason = f"phandle {phandle} is the toolstack's to give"
        return Fault("DT402", path, reason, _FIX, refused=False)
    return None
