# SPDX-License-Identifier: BSD-2-Clause
"""The phandles of assigned devices: kept as on the host where a carried property names them.

A phandle that is the toolstack's own in a guest, or that Xen does not take, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools import account as rules
from dt_tools.errors import Refusal
from dt_tools.stubs import PHANDLE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dt_tools.carry import Carried
    from dt_tools.device import Device
    from dt_tools.profiles import GuestProfile
    from dt_tools.tree import Node


class DevicePhandles:
    """The phandles of one guest's devices; to be written when all their properties are."""

    def __init__(self, carried: Carried, guest: GuestProfile) -> None:
        self._carried = carried
        self._reserved = reserved_phandles(guest)

    def write(self, device: Device, root: Node) -> None:
        """Give the nodes of `root`, the guest's node of a device, their phandles back.

        Raises:
            Refusal: DT402, a phandle that the guest cannot have.
        """
        for source, copy in _pairs(device.node, root):
            self._write_one(device, source, copy)

    def _write_one(self, device: Device, source: Node, copy: Node) -> None:
        phandle = source.phandle
        wanted = phandle is not None and phandle in self._carried.referenced
        # Of several nodes with one phandle it is the first one's.
        if phandle is not None and wanted and self._carried.phandles[phandle] is source:
            if phandle in self._reserved:
                reason = f"its phandle {phandle:#x} is {self._reserved[phandle]}'s in the guest"
                raise Refusal("DT402", source.path, reason, "renumber the host tree")
            if phandle >= PHANDLE_LIMIT:
                reason = f"its phandle {phandle:#x} is not below {PHANDLE_LIMIT}, as Xen wants it"
                raise Refusal("DT402", source.path, reason, "renumber the host tree")
            copy.set_cells("phandle", phandle)
            device.rewrite(source, "phandle", rules.PHANDLE)
        for name in ("phandle", "linux,phandle"):
            if name in source.props and name not in copy.props:
                why = "phandle stands for it" if "phandle" in copy.props else "nothing names it"
                device.drop(source, name, why)


def reserved_phandles(guest: GuestProfile) -> dict[int, str]:
    """Phandles that the toolstack gives to nodes of its own, with whose they are."""
    return {
        guest.gic_phandle: "the GIC",
        guest.xen_iommu_phandle: "xen_iommu",
        guest.vsmmu_phandle: "the vSMMU",
        guest.its_phandle: "the ITS",
    }


def _pairs(source: Node, copy: Node) -> Iterable[tuple[Node, Node]]:
    """The nodes of two trees of one shape; what `copy` lacks is left out."""
    stack = [(source, copy)]
    while stack:
        first, second = stack.pop()
        yield first, second
        stack += [(first.children[name], child) for name, child in second.children.items()]
