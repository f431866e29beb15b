# SPDX-License-Identifier: BSD-2-Clause
"""`msi-map` of a host bridge: the MSI controller and DeviceID of a requester id.

Rows are <id base, phandle, device id base, length>, ids are masked by `msi-map-mask`, and the first
row that has the id decides, as for `iommu-map`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dt_tools.tree import Node


class DeviceId(NamedTuple):
    """An MSI controller (full path) and what it knows the function by."""

    controller: str
    device_id: int


def device_id(bridge: Node, phandles: Mapping[int, Node], rid: int) -> DeviceId | None:
    """What `msi-map` makes of a requester id; None without a row, or at a malformed one."""
    cells = bridge.cells("msi-map")
    mask = bridge.u32("msi-map-mask") if "msi-map-mask" in bridge.props else 0xFFFFFFFF
    if cells is None or len(cells) % 4 or mask is None:
        return None
    masked = rid & mask
    for at in range(0, len(cells), 4):
        first, phandle, base, length = cells[at : at + 4]
        if first & ~mask:
            return None
        if first <= masked < first + length:
            target = phandles.get(phandle)
            return None if target is None else DeviceId(target.path, masked - first + base)
    return None
