# SPDX-License-Identifier: BSD-2-Clause
"""What of an assigned host node is carried into the guest, and why a property is not.

A property that refers to a node which is not carried is dropped: a copied phandle would name
whatever the guest happens to have under that number.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dt_tools.errors import Refusal

if TYPE_CHECKING:
    from dt_tools.tree import Node, Tree

# Properties that hold phandles: name, and the cells property of what they name (None: no
# arguments follow). Carried only when everything they name is carried too.
_REFERENCES: tuple[tuple[re.Pattern[str], str | None], ...] = tuple(
    (re.compile(pattern), cells)
    for pattern, cells in (
        (r"clocks|assigned-clocks|assigned-clock-parents", "#clock-cells"),
        (r"resets", "#reset-cells"),
        (r"power-domains", "#power-domain-cells"),
        (r"phys", "#phy-cells"),
        (r"interconnects", "#interconnect-cells"),
        (r"dmas", "#dma-cells"),
        (r"mboxes", "#mbox-cells"),
        (r"hwlocks", "#hwlock-cells"),
        (r"nvmem-cells", "#nvmem-cell-cells"),
        (r"io-channels", "#io-channel-cells"),
        (r"pwms", "#pwm-cells"),
        (r"thermal-sensors", "#thermal-sensor-cells"),
        (r"sound-dai", "#sound-dai-cells"),
        (r"(.*-)?gpios?", "#gpio-cells"),
        (r".*-supply|pinctrl-[0-9]+|memory-region|phy-handle|phy|pcs-handle|tbi-handle", None),
        (r"operating-points-v2|required-opps|backlight|panel|leds|extcon|sram", None),
        (r"snps,axi-config|snps,mtl-[rt]x-config|ddc-i2c-bus|usb-phy|remote-endpoint", None),
    )
)
# Properties that hold phandles with arguments of the provider's own kind, or that describe how
# the device sits on the host's buses and interrupt controllers: never carried.
_HOST_ONLY = re.compile(
    r"iommu-map(-mask)?|msi-(parent|map|map-mask)|interrupt-map(-mask)?|interrupt-affinity"
    r"|access-controllers|nvidia,bpmp|(.*[,-])?syscon|.*[,-]s?grf|rockchip,pmu|fsl,usbmisc"
    r"|qcom,(ext-regs|gmu|halt-regs|ice|qmp|rproc|smem-states|qaccept-regs)"
    r"|(.*,)?io-backends|cooling-device|gpio-ranges|dma-ranges|ranges|stream-match-mask"
)
XEN_PROPERTIES = ("xen,passthrough", "xen,path", "xen,reg", "xen,force-assign-without-iommu")
# A list of names belongs to the property whose entries it names, in the same order.
_COMPANIONS = {
    "clock-names": "clocks",
    "assigned-clock-rates": "assigned-clocks",
    "reset-names": "resets",
    "power-domain-names": "power-domains",
    "phy-names": "phys",
    "interconnect-names": "interconnects",
    "dma-names": "dmas",
    "mbox-names": "mboxes",
    "hwlock-names": "hwlocks",
    "nvmem-cell-names": "nvmem-cells",
    "io-channel-names": "io-channels",
    "pwm-names": "pwms",
    "memory-region-names": "memory-region",
    "pinctrl-names": "pinctrl-0",
    "qcom,smem-state-names": "qcom,smem-states",
}
# Graph nodes: they only link to other devices, all of which stay outside.
_GRAPH = re.compile(r"(in-|out-)?ports?(@.*)?")
# A phandle is a cell; these two values are reserved (Devicetree Specification v0.4 §2.3.3).
NO_PHANDLES = (0, 0xFFFFFFFF)


class Carried:
    """The host nodes of one guest.

    Attributes:
        paths: the nodes that are carried, by full host path.
        referenced: phandles that carried properties name.
    """

    def __init__(self, tree: Tree, viommu: bool) -> None:
        self.viommu = viommu
        self.phandles = tree.phandles()
        self.paths: set[str] = set()
        self.referenced: set[int] = set()

    def add(self, node: Node) -> None:
        """Note the nodes at and below the device `node` that are carried.

        Raises:
            Refusal: DT210, one below it has registers or StreamIDs of its own.
        """
        for inner in node.walk():
            if inner is not node and _in_graph(inner, node):
                continue
            self.paths.add(inner.path)
            if inner is node:
                continue
            reason = None
            if "iommus" in inner.props or "iommu-map" in inner.props:
                reason = f"its child {inner.path} is a DMA master of its own"
            elif "reg" in inner.props and inner.parent and "ranges" in inner.parent.props:
                reason = f"its child {inner.path} has registers of its own"
            if reason:
                raise Refusal("DT210", node.path, reason, "assign a device without such children")

    def reason(self, node: Node, name: str, gone: set[str]) -> str | None:
        """Why the property is not carried, None when it is (perhaps rewritten).

        `gone` are the node's properties that were dropped so far.
        """
        if name in XEN_PROPERTIES:
            return "meant for Xen, not for the guest"
        if name == "iommus":
            return None if self.viommu else "the guest has no vSMMU; stage 2 contains its DMA"
        if _HOST_ONLY.fullmatch(name):
            return "describes the host's buses or a provider outside the guest"
        owner = _COMPANIONS.get(name)
        if owner is not None and owner in node.props:
            lost = owner in gone or self.reason(node, owner, gone) is not None
            return f"names the entries of {owner}, which is dropped" if lost else None
        for pattern, cells in _REFERENCES:
            if pattern.fullmatch(name):
                return self._reference(node, name, cells)
        return None

    def _reference(self, node: Node, name: str, cells_name: str | None) -> str | None:
        """None when every phandle of the property names a carried node; notes those phandles."""
        cells = node.cells(name)
        if cells is None:
            # A boolean or a string of that name holds no phandle.
            return None
        at, wanted = 0, set()
        while at < len(cells):
            phandle, at = cells[at], at + 1
            if phandle in NO_PHANDLES:
                continue
            provider = self.phandles.get(phandle)
            if provider is None:
                return f"phandle {phandle:#x} names no node of the host tree"
            if provider.path not in self.paths:
                return f"{provider.path} is not assigned"
            wanted.add(phandle)
            at += (provider.u32(cells_name) or 0) if cells_name else 0
        self.referenced |= wanted
        return None


def _in_graph(inner: Node, device: Node) -> bool:
    node: Node | None = inner
    while node is not None and node is not device:
        if _GRAPH.fullmatch(node.name):
            return True
        node = node.parent
    return False
