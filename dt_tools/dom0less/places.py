# SPDX-License-Identifier: BSD-2-Clause
"""Where the boot loader puts the guests' modules, and whether Xen finds them there."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.binding import Notice
from dt_tools.dom0less.chosen import Module
from dt_tools.dom0less.domain import MODULE
from dt_tools.errors import Refusal
from dt_tools.profiles import Window
from dt_tools.tree import Node, Tree, reg_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Xen keeps 32 modules, itself and its own tree among them.
_MAX_MODULES = 30
_ALIGNMENT = 2 << 20


class _Placed(NamedTuple):
    base: int
    end: int
    what: str


def place_modules(
    placed: Sequence[Module],
    others: Sequence[tuple[str, int]],
    data: bytes | None,
    next_at: int | None,
    taken: Sequence[Window] = (),
) -> tuple[list[Module], int | None]:
    """The guest's modules in Xen's usual order, and where the next one may go.

    `placed` have an address; `others` (kind, size) go where `next_at` says, as does the partial
    tree `data`, whose size is its own. Over what is `taken`, they go to the next 2 MiB after it.
    """
    given = {module.kind: module for module in placed}
    sizes = dict(others)
    if data is not None:
        sizes["device-tree"] = len(data)
    found: list[Module] = []
    for kind in ("kernel", "ramdisk", "device-tree"):
        if kind in given:
            size = len(data or b"") if kind == "device-tree" else given[kind].size
            if kind != "device-tree" or data is not None:
                found.append(Module(kind, given[kind].base, size))
        elif kind in sizes and next_at is not None:
            base = _free(next_at, sizes[kind], taken)
            found.append(Module(kind, base, sizes[kind]))
            next_at = (base + sizes[kind] + _ALIGNMENT) // _ALIGNMENT * _ALIGNMENT
    return found, next_at


def _free(at: int, size: int, taken: Sequence[Window]) -> int:
    """`at`, or the next 2 MiB after it where `size` bytes are over nothing of `taken`."""
    for window in sorted(taken, key=lambda window: window.base):
        if Window(at, max(size, 1)).overlaps(window):
            at = -(-window.end // _ALIGNMENT) * _ALIGNMENT
    return at


def taken_places(tree: Tree, modules: Iterable[Module]) -> list[Window]:
    """Where no module can be placed: modules that have an address, and what is reserved."""
    taken = [Window(module.base, module.size) for module in modules]
    chosen = tree.root.children.get("chosen")
    if chosen is not None:
        taken += [Window(base, end - base) for base, end, _ in _modules(chosen)]
    taken += [Window(base, size) for base, size in tree.memreserve if size]
    return [*taken, *_windows(tree, "reserved")]


def check_modules(tree: Tree) -> list[Notice]:
    """Notes modules outside the RAM that the host's tree has.

    Raises:
        Refusal: DT634, too many of them, or one that lies over something else.
    """
    chosen = tree.root.children["chosen"]
    placed = list(_modules(chosen))
    if len(placed) > _MAX_MODULES:
        reason = f"{len(placed)} modules, Xen keeps {_MAX_MODULES} beside its own"
        raise Refusal("DT634", "/chosen", reason, "start fewer guests this way")
    placed.sort()
    for first, second in pairwise(placed):
        if second.base < first.end:
            reason = f"module [{second.base:#x}, {second.end:#x}) overlaps {first.what} "
            reason += f"[{first.base:#x}, {first.end:#x}), and Xen passes it over"
            raise Refusal("DT634", second.what, reason, "choose another address")
    return _check_memory(tree, placed)


def _modules(chosen: Node) -> Iterator[_Placed]:
    for node in chosen.walk():
        if any(node.is_compatible(name) for name in MODULE):
            for base, size in (reg_entries(node) or ())[:1]:
                yield _Placed(base, base + size, node.path)


def _check_memory(tree: Tree, placed: Sequence[_Placed]) -> list[Notice]:
    """A module lies in RAM, and not where the host's tree reserves it for something else."""
    notices: list[Notice] = []
    ram = list(_windows(tree, "memory"))
    taken = list(_windows(tree, "reserved"))
    for module in placed:
        window = Window(module.base, module.end - module.base)
        for other in taken:
            if window.overlaps(other):
                reason = f"module [{module.base:#x}, {module.end:#x}) lies in reserved memory "
                reason += f"[{other.base:#x}, {other.end:#x}), and Xen passes it over"
                raise Refusal("DT634", module.what, reason, "choose another address")
        if ram and not any(w.base <= module.base and module.end <= w.end for w in ram):
            text = f"module [{module.base:#x}, {module.end:#x}) is not in the host tree's RAM"
            notices.append(Notice("DT634", module.what, text))
    return notices


def _windows(tree: Tree, kind: str) -> Iterator[Window]:
    root = tree.root
    nodes: list[Node] = []
    if kind == "memory":
        nodes = [n for n in root.children.values() if n.string("device_type") == "memory"]
    elif "reserved-memory" in root.children:
        nodes = list(root.children["reserved-memory"].children.values())
    for node in nodes:
        for base, size in reg_entries(node) or ():
            if size:
                yield Window(base, size)
