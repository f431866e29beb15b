# SPDX-License-Identifier: BSD-2-Clause
"""virtio-mmio devices of a guest, as the `virtio` and `disk` keys ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dt_tools.tree import Node
    from xl_configs import GuestConfig

_CHILDREN = {"virtio,device22": "i2c", "virtio,device29": "gpio"}


@dataclass(frozen=True, slots=True)
class Virtio:
    """A virtio-mmio device: its type, and whether its DMA goes through grants."""

    kind: str
    grants: bool


def add_child(node: Node, kind: str) -> None:
    """The child node that libxl gives an I2C or GPIO device; nothing for the other types."""
    name = _CHILDREN.get(kind)
    if name is None:
        return
    child = node.add(name)
    child.set_strings("compatible", kind)
    if name == "gpio":
        child.set_empty("gpio-controller")
        child.set_cells("#gpio-cells", 2)
        child.set_empty("interrupt-controller")
        child.set_cells("#interrupt-cells", 2)


def virtio_devices(config: GuestConfig) -> list[Virtio]:
    """virtio-mmio devices in libxl's order: disks, then the virtio key."""
    devices = [
        Virtio("", _grants(disk.grant_usage, disk.backend_domname))
        for disk in config.disk
        if disk.specification == "virtio"
    ]
    for entry in config.virtio:
        devices.append(Virtio(entry.type or "", _grants(entry.grant_usage, entry.backend_domname)))
    return devices


def _grants(given: bool | None, backend: str | None) -> bool:
    """grant_usage as given; unsaid, grants serve a backend outside dom0."""
    return backend not in (None, "0", "Domain-0") if given is None else given
