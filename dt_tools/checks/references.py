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
    from collections.abc import Iterable, Iterator, Mapping

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
def _layout(name: str) -> str | None:
    """The provider's property that counts the arguments; `` for none, `*` for one entry only."""
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
        layout = _layout(name)
        cells = node.cells(name) if layout is not None else None
        if cells and not (layout == "#gpio-cells" and "gpio-hog" in node.props):
            yield from _entries(name, layout or "", cells, phandles)


def _entries(
    name: str, layout: str, cells: tuple[int, ...], phandles: Mapping[int, Node]
) -> Iterator[Reference]:
    at = index = 0
    while at < len(cells):
        phandle = cells[at]
        if phandle in NO_PHANDLES:
            if phandle:
                return  # an overlay's placeholder
        else:
            yield Reference(name, index, phandle, _lacks(phandles.get(phandle), name, layout))
        provider = phandles.get(phandle)
        count = 0 if not layout or not phandle else None
        if provider is not None and layout not in ("", "*"):
            count = cell_count(provider, layout)
            if count is None and name in _MAY_LACK and layout not in provider.props:
                count = 0
        if count is None:
            return
        at, index = at + 1 + count, index + 1


def _lacks(provider: Node | None, name: str, layout: str) -> str:
    counted = layout not in ("", "*") and name not in _MAY_LACK
    return layout if provider is not None and counted and layout not in provider.props else ""


def control_block(node: Node, users: Iterable[Reference]) -> str | None:
    """Which shared control the node has for others: `clocks`, `system control` ...; else None."""
    for name, what in _ROLES.items():
        if name in node.props:
            return what
    named = any(_layout(ref.name) == "*" for ref in users)
    return "system control" if named or node.is_compatible("syscon") else None


_ROLES = {
    "#clock-cells": "clocks",
    "#reset-cells": "resets",
    "#power-domain-cells": "power domains",
    "#interconnect-cells": "interconnects",
    "#mbox-cells": "mailboxes",
}
