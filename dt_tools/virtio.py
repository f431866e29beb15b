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
    disks = [_pairs(text) for text in config.disk]
    devices = [Virtio("", _grants(disk)) for disk in disks if disk.get("specification") == "virtio"]
    for text in config.virtio:
        pairs = _pairs(text)
        if pairs.get("transport", "mmio") == "mmio":
            devices.append(Virtio(pairs.get("type", ""), _grants(pairs)))
    return devices


def _pairs(text: str) -> dict[str, str]:
    """KEY=VALUE,... as a mapping; virtio's type has a comma of its own (virtio,device22)."""
    pairs: dict[str, str] = {}
    last = ""
    for token in text.split(","):
        key, equals, value = token.strip().partition("=")
        if equals:
            pairs[key], last = value, key
        elif last == "type":
            pairs[last] += f",{key}"
    return pairs


def _grants(pairs: dict[str, str]) -> bool:
    """grant_usage as given; unsaid, grants serve a backend outside dom0."""
    given = pairs.get("grant_usage")
    if given is not None:
        return given.strip("0 ") != "" and given.isdecimal()
    return pairs.get("backend", "0") not in ("0", "Domain-0")
