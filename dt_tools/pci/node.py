# SPDX-License-Identifier: BSD-2-Clause
"""The guest's PCI host bridge node, as libxl makes it, and the maps that we add.

libxl 4.17 to 4.22 makes one `pcie@10000000` and no `iommu-map`. The vSMMU series maps a range
that does not depend on what is assigned: see `series_map`. `iommu_map` has a row for each function
of the guest and none for anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dt_tools.binding import Notice
from dt_tools.errors import Refusal
from dt_tools.tree import Cells, Node, split_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dt_tools.binding import Bindings
    from dt_tools.pci.functions import PciFunction
    from dt_tools.profiles import GuestProfile, Window

# phys.hi of `ranges` (PCI Bus Binding to Open Firmware §2.2.1.1): 32-bit memory space; relocatable
# prefetchable 32-bit space code as libxl has it, although the window is above 4 GiB.
_MEM, _PREFETCH = 0x02000000, 0x43000000

Row = tuple[int, int, int, int]


def iommu_map(
    functions: Iterable[PciFunction], bindings: Bindings, phandle: int | Callable[[str], int]
) -> Cells:
    """Rows <vBDF vSMMU vMasterID length>, by vBDF, joined where both ids follow each other.

    Args:
        functions: what the guest is given; every stream of theirs is in `bindings`.
        bindings: the guest's vMasterIDs.
        phandle: the vSMMU's, or a function from the path of a physical SMMU to that of its vSMMU.

    Raises:
        Refusal: DT527: a function has several vMasterIDs, which one row cannot say.
    """
    rows: list[Row] = []
    for one in functions:
        outputs = set()
        for stream in one.streams:
            vmaster = bindings.vmaster_id(stream.smmu_path, stream.stream_id)
            if vmaster is None:
                raise ValueError(f"{one.path}: {stream} is not in the bindings")
            at = phandle if isinstance(phandle, int) else phandle(stream.smmu_path)
            outputs.add((at, vmaster))
        if len(outputs) != 1:
            ids = ", ".join(f"{vmaster:#x}" for _, vmaster in sorted(outputs))
            reason = f"has vMasterIDs {ids}, a row of iommu-map gives a function one"
            raise Refusal("DT527", one.path, reason, "assign a function with one StreamID")
        ((at, vmaster),) = outputs
        rows.append((one.vbdf, at, vmaster, 1))
    return _cells(rows)


def msi_map(
    functions: Sequence[PciFunction], its_phandle: int | None, guest: GuestProfile
) -> tuple[Cells, tuple[Notice, ...]]:
    """Rows <vBDF ITS DeviceID length>, the DeviceID being the vBDF; nothing without an ITS.

    Xen 4.20 to 4.22 make a virtual ITS for the hardware domain only, and libxl no node of one.
    """
    if not functions:
        return (), ()
    if its_phandle is None:
        path = f"/{_name(guest)}"
        text = "no msi-map: the guest has no ITS, so its PCI functions have no MSIs"
        return (), (Notice("DT529", path, text),)
    return _cells([(one.vbdf, its_phandle, one.vbdf, 1) for one in functions]), ()


def _cells(rows: list[Row]) -> Cells:
    """The rows in order of their first id, joined where that changes nothing."""
    joined: list[Row] = []
    for row in sorted(rows):
        if joined:
            first, target, output, length = joined[-1]
            if (row[0], row[1], row[2]) == (first + length, target, output + length):
                joined[-1] = (first, target, output, length + row[3])
                continue
        joined.append(row)
    return tuple(cell for row in joined for cell in row)


def series_map(series: Literal["rfc", "v3"], phandle: int, first: int = 0) -> Cells:
    """The `iommu-map` of the vSMMU series, whatever is assigned.

    Args:
        series: `rfc` (and v1): every requester id is its own vMasterID. `v3` (and v2): 4,096
            requester ids from 0 on come out from `first` on.
        phandle: the vSMMU's.
        first: the first vMasterID that was given out for PCI.
    """
    return (0, phandle, 0, 0x10000) if series == "rfc" else (0, phandle, first, 0x1000)


def vpci_node(
    root: Node,
    guest: GuestProfile,
    iommu_map: Cells = (),
    msi_map: Cells = (),
    *,
    prefetch: int = _PREFETCH,
) -> Node:
    """Add the host bridge: libxl's properties in its order, then the maps that are not empty.

    `prefetch` is the first cell of the prefetchable window (IEEE 1275 PCI binding §2.2.1.1).
    """
    node = root.add(_name(guest))
    node.set_strings("compatible", "pci-host-ecam-generic")
    node.set_strings("device_type", "pci")
    node.set_cells("reg", *_pair(guest.vpci_ecam))
    node.set_cells("bus-range", 0, 255)
    node.set_cells("#address-cells", 3)
    node.set_cells("#size-cells", 2)
    node.set_strings("status", "okay")
    ranges: list[int] = []
    for kind, window in ((_MEM, guest.vpci_mem), (prefetch, guest.vpci_prefetch)):
        ranges += kind, *split_cells(window.base, 2), *_pair(window)
    node.set_cells("ranges", *ranges)
    if iommu_map:
        node.set_cells("iommu-map", *iommu_map)
    if msi_map:
        node.set_cells("msi-map", *msi_map)
    return node


def guest_path(guest: GuestProfile, function: PciFunction) -> str:
    """What the guest calls the function: its host bridge's path, and where it is on the bus."""
    bus, devfn = divmod(function.vbdf, 256)
    return f"/{_name(guest)} 0000:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"


def _name(guest: GuestProfile) -> str:
    return f"pcie@{guest.vpci_ecam.base:x}"


def _pair(window: Window) -> Cells:
    return (*split_cells(window.base, 2), *split_cells(window.size, 2))
