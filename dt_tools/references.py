# SPDX-License-Identifier: BSD-2-Clause
"""Phandles that a node's properties hold: which property, which entry, which phandle.

Only properties whose layout is known are read; what does not fit the layout ends the property.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dt_tools.carry import NO_PHANDLES
from dt_tools.providers import COUNTED
from dt_tools.tree import cell_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dt_tools.tree import Node

_COUNTED = {**COUNTED, "interrupts-extended": "#interrupt-cells"}
# A provider without the property takes no arguments in these.
_MAY_LACK = ("msi-parent", "nvmem-cells", "sound-dai")
_OF_NAMES = ("aliases", "__symbols__", "__fixups__", "__local_fixups__", "__overrides__")
_GPIOS = re.compile(r"(.+-)?gpios?")
_NO_GPIOS = re.compile(r"(.*,)?(nr-)gpios?|gpio-hog")
# Phandles alone.
_BARE = re.compile(
    r".+-supply|pinctrl-[0-9]+|memory-region|phy-handle|pcs-handle|interrupt-parent"
    r"|operating-points-v2"
)
# A phandle, then arguments of the provider's own kind.
_FIRST = re.compile(r"(.*[,-])?syscon(-.*)?|.*[,-]s?grf|rockchip,pmu|fsl,usbmisc|nvidia,bpmp")


@dataclass(frozen=True, slots=True)
class Reference:
    """Entry `index` of the node's property `name` is `phandle`.

    `lacks` is the property that would make the node of that phandle a provider of this kind, and
    that it does not have; else empty.
    """

    name: str
    index: int
    phandle: int
    lacks: str = ""


@lru_cache(maxsize=4096)
def layout(name: str) -> str | None:
    """The provider's property that counts the arguments; `` for none, `*` for one entry only.

    None for a property that is not known to hold phandles.
    """
    if name in _COUNTED:
        return _COUNTED[name]
    if _GPIOS.fullmatch(name):
        return None if _NO_GPIOS.fullmatch(name) else "#gpio-cells"
    if _BARE.fullmatch(name):
        return ""
    return "*" if _FIRST.fullmatch(name) else None


def references(node: Node, phandles: Mapping[int, Node]) -> Iterator[Reference]:
    """The node's references in order; an entry without a provider (0) is passed over.

    Nodes of names (`/aliases`, `/__symbols__`) hold strings, whatever their properties are called.
    """
    if node.name in _OF_NAMES:
        return
    for name in node.props:
        kind = layout(name)
        cells = node.cells(name) if kind is not None else None
        if cells and not (kind == "#gpio-cells" and "gpio-hog" in node.props):
            yield from _entries(name, kind or "", cells, phandles)


def _entries(
    name: str, kind: str, cells: tuple[int, ...], phandles: Mapping[int, Node]
) -> Iterator[Reference]:
    at = index = 0
    while at < len(cells):
        phandle = cells[at]
        if phandle in NO_PHANDLES:
            if phandle:
                return  # an overlay's placeholder
        else:
            yield Reference(name, index, phandle, _lacks(phandles.get(phandle), name, kind))
        provider = phandles.get(phandle)
        count = 0 if not kind or not phandle else None
        if provider is not None and kind not in ("", "*"):
            count = cell_count(provider, kind)
            if count is None and name in _MAY_LACK and kind not in provider.props:
                count = 0
        if count is None:
            return
        at, index = at + 1 + count, index + 1


def _lacks(provider: Node | None, name: str, kind: str) -> str:
    counted = kind not in ("", "*") and name not in _MAY_LACK
    return kind if provider is not None and counted and kind not in provider.props else ""


# A partial tree has to hold all it names; a whole board is trusted in these.

_LINKS = re.compile(
    r"remote-endpoint|nvmem|tbi-handle|required-opps|ddc-i2c-bus|usb-phy|extcon|backlight"
    r"|snps,axi-config|snps,mtl-[rt]x-config|(.*,)?io-backends"
)
# Rows <id phandle base length>; a row of iommu-map has as many output cells as the IOMMU says.
_ID_ROW = 4


def every_reference(node: Node, phandles: Mapping[int, Node]) -> Iterator[Reference]:
    """As `references`, and those of maps (`interrupt-map`, `msi-map`), graphs and lesser links."""
    yield from references(node, phandles)
    for name in node.props:
        if layout(name) is None and _LINKS.fullmatch(name):
            for index, phandle in enumerate(node.cells(name) or ()):
                if phandle not in NO_PHANDLES:
                    yield Reference(name, index, phandle)
    for row, phandle in enumerate((node.cells("msi-map") or ())[1::_ID_ROW]):
        yield Reference("msi-map", row, phandle)
    yield from _interrupt_map(node, phandles)


def _interrupt_map(nexus: Node, phandles: Mapping[int, Node]) -> Iterator[Reference]:
    """A row is unit address, specifier, phandle, then what the parent counts (v0.4 §2.4.3)."""
    cells = nexus.cells("interrupt-map")
    unit = cell_count(nexus, "#address-cells") if "#address-cells" in nexus.props else 2
    count = cell_count(nexus, "#interrupt-cells")
    if not cells or unit is None or count is None:
        return
    at, index = unit + count, 0
    while at < len(cells):
        parent = phandles.get(cells[at])
        lacks = "#interrupt-cells" if parent and "#interrupt-cells" not in parent.props else ""
        yield Reference("interrupt-map", index, cells[at], lacks)
        there = None if parent is None else cell_count(parent, "#interrupt-cells")
        if parent is None or there is None:
            return
        above = cell_count(parent, "#address-cells") if "#address-cells" in parent.props else 0
        at, index = at + 1 + (above or 0) + there + unit + count, index + 1
