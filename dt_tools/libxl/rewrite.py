# SPDX-License-Identifier: BSD-2-Clause
"""What the vSMMU series makes of the `iommus` in a partial tree: one level, pairs of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.carry import NO_PHANDLES
from dt_tools.errors import Refusal

if TYPE_CHECKING:
    from dt_tools.tree import Node, Tree


def rewrite(bus: Node, phandle: int, first: int | None) -> tuple[Notice, ...]:
    """Make <`phandle`, id> of each pair in the `iommus` of the nodes directly below `bus`.

    The id stays, or is the next free one from `first` on, one for each entry. What the
    series does not look at keeps its host phandle, which names nothing in the guest: a notice.

    Raises:
        Refusal: DT405, an `iommus` of which the series would make zeros.
    """
    free = first
    for node in bus.children.values():
        if "iommus" not in node.props:
            continue
        cells = node.cells("iommus")
        if cells is None or len(cells) % 2:
            size = len(node.props["iommus"])
            reason = f"iommus has {size} bytes, of which libxl would make zeros"
            raise Refusal("DT405", node.path, reason, "use <phandle StreamID> pairs")
        ids = list(cells[1::2])
        if free is not None:
            ids, free = list(range(free, free + len(ids))), free + len(ids)
        node.set_cells("iommus", *(cell for one in ids for cell in (phandle, one)))
    first_level = set(bus.children.values())
    notices = []
    for node in bus.walk():
        left = [name for name in ("iommus", "iommu-map") if name in node.props]
        if node in first_level and "iommus" in left:
            left.remove("iommus")
        notices += [
            Notice("DT501", node.path, f"libxl leaves its {name} as it is: it names no vSMMU")
            for name in left
        ]
    return tuple(notices)


def check_phandles(tree: Tree) -> None:
    """Whether each phandle is one node's.

    Raises:
        Refusal: DT403, two nodes have it; DT404, it is no phandle.
    """
    seen: dict[int, str] = {}
    for node in tree.walk():
        phandle = node.phandle
        if phandle is None:
            continue
        path = node.path
        if phandle in NO_PHANDLES:
            raise Refusal("DT404", path, f"phandle {phandle:#x} is no phandle", "use 1 to 64999")
        if phandle in seen:
            reason = f"phandle {phandle} is {seen[phandle]}'s too in the guest's tree"
            raise Refusal("DT403", path, reason, "give it another one, 1 to 64999")
        seen[phandle] = path
