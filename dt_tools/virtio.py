# SPDX-License-Identifier: BSD-2-Clause
"""virtio-mmio devices of a guest, as the `virtio` and `disk` keys ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.errors import Refusal
from xl_configs.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dt_tools.tree import Node
    from xl_configs import GuestConfig
    from xl_configs.specs.devices import Virtio as VirtioEntry
    from xl_configs.specs.disk import Disk

_CHILDREN = {"virtio,device22": "i2c", "virtio,device29": "gpio"}
_TYPE = "virtio,device"


@frozen
class Virtio:
    """A virtio-mmio device: its type, whether its DMA goes through grants, to which domain id."""

    kind: str
    grants: bool
    backend: int = 0


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


def virtio_devices(config: GuestConfig, domids: Mapping[str, int] | None = None) -> list[Virtio]:
    """virtio-mmio devices in libxl's order: disks, then the virtio key.

    An entry of another transport than mmio has no node. `domids` are the ids of the domains that
    serve some of them, by name; those of dom0 and of a name that is a number are known.

    Raises:
        Refusal: DT304, a type that libxl does not take; DT608, a domain whose id is not known.
    """
    disks, entries = _on_mmio(config)
    devices = [backend("", disk.grant_usage, disk.backend_domname, domids) for disk in disks]
    for entry in entries:
        kind = entry.type or ""
        if not kind.startswith(_TYPE):
            reason = f"Invalid type for virtio device: {kind or 'none is given'}"
            raise Refusal("DT304", "/", reason, 'begin it with "virtio,device"')
        devices.append(backend(kind, entry.grant_usage, entry.backend_domname, domids))
    return devices


def virtio_count(config: GuestConfig) -> int:
    """How many virtio-mmio devices the guest is to have, whatever is wrong with them."""
    disks, entries = _on_mmio(config)
    return len(disks) + len(entries)


def _on_mmio(config: GuestConfig) -> tuple[list[Disk], list[VirtioEntry]]:
    disks = [disk for disk in config.disk if disk.specification == "virtio"]
    return disks, [entry for entry in config.virtio if entry.transport == "mmio"]


def backend(
    kind: str, grants: bool | None, name: str | None, domids: Mapping[str, int] | None
) -> Virtio:
    """A device that the domain `name` serves.

    Raises:
        Refusal: DT608, its id is not known and its grants need it.
    """
    domid = _domid(name, domids or {})
    # Unsaid, grants serve a backend outside dom0.
    grants = domid != 0 if grants is None else grants
    if grants and domid is None:
        reason = f"the id of the domain {name}, which virtio grants name, is in no tree"
        raise Refusal("DT608", "/", reason, f"say it: --domid {name}=ID")
    return Virtio(kind, grants, domid or 0)


def _domid(name: str | None, domids: Mapping[str, int]) -> int | None:
    """The id of a backend domain; None when it is not known."""
    if name in (None, "Domain-0"):
        return 0
    if name in domids:
        return domids[name]
    # A number above a domain id is the name of a domain.
    known = name.isascii() and name.isdecimal() and len(name) <= 5 and int(name) < 0x7FF0
    return int(name) if known else None
