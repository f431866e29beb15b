# SPDX-License-Identifier: BSD-2-Clause
"""Whether what the user says of dom0's memory can be so on this host.

Addresses are physical, in bytes. Only what is said is looked at; what is assumed is
`dt_tools.dom0.layout`'s. A host tree without memory nodes tells no RAM; then nothing is refused
for being outside it.
"""

from __future__ import annotations

from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from dt_tools.dom0 import layout
from dt_tools.errors import Refusal
from dt_tools.profiles import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dt_tools.dom0.versions import XenOptions
    from dt_tools.platform import Platform
    from dt_tools.tree import Node

_Taken = tuple[str, Window]
_RULE, _RAM, _GRANTS = "DT615", "dom0's RAM", "the grant table"
# What only hardware has: a framebuffer or a log in RAM has neither.
_HARDWARE = ("interrupts", "interrupts-extended", "interrupt-controller", "#iommu-cells")
_BANK, _TABLE, _REGION = "--dom0-memory", "--grant-table", "--extended-regions"


def check_places(
    platform: Platform,
    options: XenOptions,
    memory: Sequence[Window],
    grant_table: Window,
    iommu: bool,
) -> None:
    """Check the options that are addresses.

    Args:
        platform: the host.
        options: what the user says.
        memory: dom0's RAM, said or assumed.
        grant_table: the place of the grant table, said or assumed.
        iommu: whether an IOMMU is in use; the extended regions are then outside RAM.

    Raises:
        Refusal: DT615, by the path of the node that the option is about.
    """
    if options.memory is not None:
        _check_banks(platform, options.memory)
    if options.grant_table is not None:
        banks = [(_RAM, bank) for bank in memory]
        hint = {_RAM: _BANK} if options.memory is None else {}
        _apart("/hypervisor", _GRANTS, [options.grant_table], banks, _TABLE, hint)
    if options.initrd:
        _check_initrd(Window(options.initrd[0], options.initrd[1] - options.initrd[0]), memory)
    if options.regions:
        taken = [*((_RAM, bank) for bank in memory), (_GRANTS, grant_table)]
        _check_regions(platform, options, taken, iommu)


def _check_banks(platform: Platform, banks: Sequence[Window]) -> None:
    _distinct("/memory", "bank", banks, _BANK)
    ram = layout.host_ram(platform)
    hardware = [(node.path, window) for node, window in _hardware(platform, bool(ram))]
    _apart("/memory", "bank", banks, hardware, _BANK)
    left = layout.subtract(banks, ram) if ram else ()
    for bank in banks if left else ():
        if layout.subtract([bank], ram):
            reason = f"bank {_text(bank)} is not in the host's RAM {_list(ram)}"
            raise Refusal(_RULE, "/memory", reason, f"correct {_BANK}: dom0's RAM is mapped 1:1")
    reserved = [("/reserved-memory", window) for window in layout.reserved_memory(platform)]
    _apart("/memory", "bank", banks, reserved, _BANK)


def _hardware(platform: Platform, has_ram: bool) -> Iterator[tuple[Node, Window]]:
    """Registers that no bank can be over; where RAM is known, those of what Xen drives itself."""
    wanted = _HARDWARE[2:] if has_ram else _HARDWARE
    for node, window in layout.taken_by(platform):
        if any(name in node.props for name in wanted):
            yield node, window


def _check_initrd(initrd: Window, memory: Sequence[Window]) -> None:
    if layout.subtract([initrd], memory):
        reason = f"the ramdisk {_text(initrd)} is not in dom0's RAM {_list(memory)}"
        raise Refusal(_RULE, "/chosen", reason, "correct --initrd, or --dom0-memory")


def _check_regions(
    platform: Platform, options: XenOptions, dom0s: Sequence[_Taken], iommu: bool
) -> None:
    path, regions = "/hypervisor", options.regions or ()
    _distinct(path, "extended region", regions, _REGION)
    hint = {_RAM: _BANK} if options.memory is None else {}
    if options.grant_table is None:
        hint[_GRANTS] = _TABLE
    taken = list(dom0s)
    for node, window in layout.taken_by(platform):
        if iommu or node.string("device_type") != "memory":
            taken.append((node.path, window))
    _apart(path, "extended region", regions, taken, _REGION, hint)


def _distinct(path: str, what: str, spans: Iterable[Window], option: str) -> None:
    """No two of the spans overlap."""
    for one, two in pairwise(sorted(spans, key=lambda window: (window.base, window.size))):
        if one.overlaps(two):
            reason = f"{what} {_text(two)} overlaps {what} {_text(one)}"
            raise Refusal(_RULE, path, reason, f"correct {option}")


def _apart(
    path: str,
    what: str,
    spans: Sequence[Window],
    taken: Sequence[_Taken],
    option: str,
    assumed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """None of the spans, which do not overlap, is over anything taken.

    `assumed` has the options that say where the owners are whose places are assumed.
    """
    free = layout.subtract(spans, [window for _, window in taken])
    if sum(one.size for one in free) == sum(one.size for one in spans):
        return
    for span in spans:
        for owner, window in taken:
            if window.size and span.overlaps(window):
                reason = f"{what} {_text(span)} overlaps {owner} {_text(window)}"
                more = f", or give {assumed[owner]}" if owner in assumed else ""
                raise Refusal(_RULE, path, reason, f"correct {option}{more}")


def _text(span: Window) -> str:
    return f"[{span.base:#x}, {span.end:#x})"


def _list(spans: Sequence[Window]) -> str:
    more = f" and {len(spans) - 3} more" if len(spans) > 3 else ""
    return ", ".join(_text(span) for span in spans[:3]) + more
