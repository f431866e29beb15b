# SPDX-License-Identifier: BSD-2-Clause
"""Which nodes a node depends on: the providers its properties name, and what these depend on.

Read are the properties of the standard bindings that hold phandles (clocks, resets, power-domains,
phys, supplies, interconnects, pinctrl, gpios, memory-region, iommus ...) and the usual forms of
vendors' syscon properties. Graph links (`remote-endpoint`) are not followed: they join devices of
which none needs the other to work.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.providers import COUNTED
from dt_tools.tree import cell_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from dt_tools.platform import Platform
    from dt_tools.tree import Node

# What is listed for one device, and the steps that all closures of one board may take together.
MAX_NEEDS = 256
MAX_STEPS = 300_000

# How a property's cells are read: the cells property of what is named; _EACH: every cell is a
# phandle; _FIRST: only the first one is; _ROWS: the second of every four.
_EACH, _FIRST, _ROWS = "each", "first", "rows"
_EXACT = {
    **COUNTED,
    "iommu-map": _ROWS,
    "msi-map": _ROWS,
    **dict.fromkeys(
        (
            *("memory-region", "operating-points-v2", "required-opps", "nvmem", "phy-handle"),
            *("phy", "pcs-handle", "pcsphy-handle", "tbi-handle", "usb-phy", "extcon", "sram"),
            *("backlight", "panel", "leds", "ddc-i2c-bus", "snps,axi-config"),
            *("snps,mtl-rx-config", "snps,mtl-tx-config", "vcc-supplies"),
        ),
        _EACH,
    ),
    **dict.fromkeys(
        (
            *("nvidia,bpmp", "rockchip,pmu", "fsl,usbmisc", "fsl,usbphy", "fsl,scu", "shmem"),
            *("qcom,qmp", "qcom,gmu", "qcom,ice", "qcom,rproc", "qcom,ext-regs"),
            *("qcom,halt-regs", "qcom,qaccept-regs", "qcom,rpm-msg-ram", "arm,smc-id"),
        ),
        _FIRST,
    ),
}
_PATTERNS = (
    (re.compile(r".*-supply|pinctrl-[0-9]+"), _EACH),
    (re.compile(r"(?!nr-)(.*-)?gpios?"), "#gpio-cells"),
    (re.compile(r"(.*[,-])?syscon(-[a-z0-9-]+)?|.*[,-]s?grf"), _FIRST),
)
_GRAPH = re.compile(r"(in-|out-)?ports?(@.*)?")
# A phandle is a cell; these two values are reserved (Devicetree Specification v0.4 §2.3.3).
_NO_PHANDLES = (0, 0xFFFFFFFF)

Reference = tuple[str, "Node"]


class Need(NamedTuple):
    """A node that a device depends on.

    `properties` of the node at `via` name it (`parent`: that node lies inside it, `interrupts`:
    its interrupts go to it). `depth` is 1 for what the device itself names. `users` counts the
    enabled nodes of the board that name it, the device's own among them.
    """

    path: str
    properties: tuple[str, ...]
    via: str
    depth: int
    users: int


class References:
    """The nodes that the nodes of one board name.

    `controllers` gives the interrupt controllers of a node, other than the GIC.
    """

    def __init__(
        self, platform: Platform, controllers: Callable[[Node], Iterable[Node]] = lambda _: ()
    ) -> None:
        self.tree = platform.tree
        self._controllers = controllers
        self._phandles = self.tree.phandles()
        self._forms: dict[str, str | None] = {}
        self._named: dict[Node, tuple[Reference, ...]] = {}
        self._users: dict[Node, list[Node]] | None = None
        self._left = MAX_STEPS

    @property
    def exhausted(self) -> bool:
        """Whether `needs` has left something out because the board's budget was used up."""
        return self._left <= 0

    def of(self, node: Node) -> tuple[Reference, ...]:
        """(property, node) of what the node's own properties name, each pair once."""
        if node not in self._named:
            self._named[node] = tuple(dict.fromkeys(self._read(node)))
        return self._named[node]

    def users(self, node: Node) -> list[Node]:
        """The enabled nodes that name `node` or whose interrupts go to it, in tree order."""
        if self._users is None:
            self._users = self._index()
        return self._users.get(node, [])

    def outside_users(self, node: Node) -> list[Node]:
        """The enabled nodes that name `node` or one inside it, and lie outside."""
        inside = set(islice(node.walk(), max(self._left, 1)))
        self._left -= len(inside)
        found = (user for one in inside for user in self.users(one) if user not in inside)
        return sorted(dict.fromkeys(found), key=lambda user: user.path)

    def needs(self, node: Node) -> tuple[Need, ...]:
        """What the device at and below `node` depends on, nearest first; at most `MAX_NEEDS`."""
        own = list(islice(_without_graph(node), max(self._left, 1)))
        known = set(own)
        self._left -= len(own)
        found: list[Need] = []
        front, depth = own, 1
        while front and len(found) < MAX_NEEDS and self._left > 0:
            steps = list(self._step(front, known))
            front = []
            for target, (names, via) in _joined(steps).items():
                known.add(target)
                front.append(target)
                users = len(self.users(target))
                found.append(Need(target.path, names, via.path, depth, users))
            depth += 1
        return tuple(found[:MAX_NEEDS])

    def _step(self, front: Iterable[Node], known: set[Node]) -> Iterator[tuple[Node, str, Node]]:
        """(provider, property, who names it) one step behind the nodes of `front`."""
        for node in front:
            pairs = [*self.of(node), *(("interrupts", c) for c in self._controllers(node))]
            holder = _holder(node)
            if holder is not None:
                pairs.append(("parent", holder))
            self._left -= len(pairs) + 1
            if self._left <= 0:
                return
            yield from ((target, name, node) for name, target in pairs if target not in known)

    def _read(self, node: Node) -> Iterator[Reference]:
        for name in node.props:
            if name not in self._forms:
                self._forms[name] = _form(name)
            form = self._forms[name]
            if form is not None:
                yield from ((name, target) for target in self._targets(node, name, form))

    def _targets(self, node: Node, name: str, form: str) -> Iterator[Node]:
        cells = node.cells(name) or ()
        at = 1 if form == _ROWS else 0
        while at < len(cells):
            target = self._phandles.get(cells[at])
            if target is not None and target is not node:
                yield target
            if form == _FIRST or (target is None and cells[at] not in _NO_PHANDLES):
                return
            if form == _ROWS:
                at += 4
            else:
                known = target is not None and form != _EACH
                at += 1 + ((cell_count(target, form) or 0) if known and target else 0)

    def _index(self) -> dict[Node, list[Node]]:
        found: dict[Node, list[Node]] = {}
        for node in enabled(self.tree.root):
            named = [*(target for _, target in self.of(node)), *self._controllers(node)]
            for target in dict.fromkeys(named):
                found.setdefault(target, []).append(node)
        return found


def enabled(root: Node) -> Iterator[Node]:
    """The nodes at and below `root` that are probed: nothing below one that is not okay."""
    stack = [root]
    while stack:
        node = stack.pop()
        if "status" not in node.props or node.status == "okay":
            yield node
            stack.extend(reversed(node.children.values()))


def _form(name: str) -> str | None:
    found = _EXACT.get(name)
    if found is None:
        found = next((form for pattern, form in _PATTERNS if pattern.fullmatch(name)), None)
    return found


def _joined(
    steps: Iterable[tuple[Node, str, Node]],
) -> Mapping[Node, tuple[tuple[str, ...], Node]]:
    """Per provider: the properties that name it, and the first node that does."""
    found: dict[Node, tuple[tuple[str, ...], Node]] = {}
    for target, name, via in steps:
        names, first = found.get(target, ((), via))
        found[target] = (names if name in names else (*names, name), first)
    return found


def _holder(node: Node) -> Node | None:
    """The device that `node` is a part of or sits on; None when above it are plain buses only."""
    for parent in node.ancestors():
        names = parent.strings("compatible") or ()
        if parent.parent is not None and names and "simple-bus" not in names:
            return parent
    return None


def _without_graph(device: Node) -> Iterator[Node]:
    """The nodes at and below `device` that are not graph ports or below them."""
    stack = [device]
    while stack:
        node = stack.pop()
        yield node
        below = (child for child in node.children.values() if not _GRAPH.fullmatch(child.name))
        stack.extend(reversed(tuple(below)))
