# SPDX-License-Identifier: BSD-2-Clause
"""Stand-ins inside /passthrough for clocks and regulators that stay with the host.

A clock becomes a `fixed-clock`, one for each clock (provider and arguments) that a device names;
a supply of one voltage becomes a `regulator-fixed`. Both only tell the guest's driver a number:
the guest cannot switch, scale or measure what they stand for, and the host has to leave it on.

Linux has no such driver for resets, power domains, phys, interconnects, mailboxes, DMA channels or
pins, so those are dropped under every policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.tree import cell_count

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from dt_tools.carry import Entry
    from dt_tools.tree import Cells, Node

DEFAULT_CLOCK_HZ = 100_000_000
"""The rate of a stub for a clock whose rate the host tree does not tell."""
# The toolstack's phandles start at 65000; stubs are numbered downwards from below them.
PHANDLE_LIMIT = 64999
# Clocks between a fixed-factor-clock and its source.
_MAX_PARENTS = 16
_CELL = 0xFFFFFFFF


class Stub:
    """A node to be made: `rate` of a clock in Hz, None while nothing tells it."""

    __slots__ = ("devices", "name", "phandle", "provider", "rate")

    def __init__(self, name: str, phandle: int, provider: Node) -> None:
        self.name = name
        self.phandle = phandle
        self.provider = provider
        self.rate: int | None = None
        self.devices: list[str] = []


class Stubs:
    """The stubs of one guest, made as they are asked for.

    `taken` are phandles that they must not have: the host's, since `iommus` in the partial tree
    names host nodes.
    """

    def __init__(self, phandles: dict[int, Node], clock_hz: int) -> None:
        self.phandles = phandles
        self.clock_hz = clock_hz
        self.clocks: dict[tuple[str, Cells], Stub] = {}
        self.regulators: dict[str, Stub] = {}
        self._next = PHANDLE_LIMIT

    def clock(self, consumer: Node, entries: list[Entry], index: int) -> int:
        """The phandle of the stub for the clock of one entry of the consumer's `clocks`."""
        entry = entries[index]
        assert entry.node is not None, "only clocks have stubs"
        key = (entry.node.path, entry.arguments)
        stub = self.clocks.get(key)
        if stub is None:
            name = f"clock-{len(self.clocks)}"
            stub = self.clocks[key] = Stub(name, self._phandle(), entry.node)
            stub.rate = self._provider_rate(entry.node, entry.arguments)
        if stub.rate is None:
            stub.rate = self._consumer_rate(consumer, entries, index)
        stub.devices.append(consumer.path)
        return stub.phandle

    def regulator(self, consumer: Node, provider: Node) -> int | None:
        """The phandle of the stub for a supply; None when no regulator-fixed can be it."""
        if not _is_fixed(provider):
            return None
        stub = self.regulators.get(provider.path)
        if stub is None:
            name = f"regulator-{len(self.regulators)}"
            stub = self.regulators[provider.path] = Stub(name, self._phandle(), provider)
        stub.devices.append(consumer.path)
        return stub.phandle

    def emit(self, bus: Node, names: Container[str]) -> list[Stub]:
        """Append the nodes to `bus`, which has no node of any of `names` added; those unknown.

        Returns the clocks whose rate is the default.
        """
        unknown = []
        for stub in self.clocks.values():
            node = bus.add(_free(bus, stub.name, names))
            node.set_strings("compatible", "fixed-clock")
            node.set_cells("#clock-cells", 0)
            node.set_cells("clock-frequency", self.clock_hz if stub.rate is None else stub.rate)
            node.set_cells("phandle", stub.phandle)
            if stub.rate is None:
                unknown.append(stub)
        for stub in self.regulators.values():
            _emit_regulator(bus.add(_free(bus, stub.name, names)), stub)
        return unknown

    def _phandle(self) -> int:
        self._next -= 1
        while self._next in self.phandles:
            self._next -= 1
        return self._next

    # Rates, in the order in which they are believed.

    def _provider_rate(self, provider: Node, arguments: Cells) -> int | None:
        """Of a fixed-clock, a fixed-factor-clock of one, or a clock that is set to a rate."""
        multiply, divide = 1, 1
        node: Node | None = provider
        for _ in range(_MAX_PARENTS):
            if node is None:
                return None
            if node.is_compatible("fixed-clock"):
                return _scaled(node.u32("clock-frequency"), multiply, divide)
            if not node.is_compatible("fixed-factor-clock"):
                break
            multiply *= node.u32("clock-mult") or 0
            divide *= node.u32("clock-div") or 0
            above = node.cells("clocks")
            node = self.phandles.get(above[0]) if above else None
            arguments = above[1:] if above else ()
        if node is None:
            return None
        rate = self._assigned(node, node, arguments)
        return _scaled(rate, multiply, divide)

    def _consumer_rate(self, consumer: Node, entries: list[Entry], index: int) -> int | None:
        entry = entries[index]
        assert entry.node is not None, "only clocks have rates"
        rate = self._assigned(consumer, entry.node, entry.arguments)
        if rate is not None:
            return rate
        # Of a bus controller it is the speed of the bus, not of the clock that feeds it.
        if len(entries) > 1 or "#address-cells" in consumer.props:
            return None
        return _scaled(consumer.u32("clock-frequency"), 1, 1)

    def _assigned(self, node: Node, provider: Node, arguments: Cells) -> int | None:
        """The rate that `assigned-clock-rates` of `node` gives to a clock of `provider`."""
        cells, rates = node.cells("assigned-clocks"), node.cells("assigned-clock-rates")
        at, index = 0, 0
        while cells and rates and at < len(cells) and index < len(rates):
            named = self.phandles.get(cells[at])
            count = cell_count(named, "#clock-cells") if named is not None else 0
            if count is None:
                return None
            found = named is provider and cells[at + 1 : at + 1 + count] == arguments
            if found and rates[index]:
                return rates[index]
            at, index = at + 1 + count, index + 1
        return None


def _scaled(rate: int | None, multiply: int, divide: int) -> int | None:
    """The rate times a fraction; None when it is none that a cell holds."""
    if not rate or not divide:
        return None
    scaled = rate * multiply // divide
    return scaled if 0 < scaled <= _CELL else None


def _is_fixed(provider: Node) -> bool:
    """Whether the supply has one voltage, or is at least always on."""
    low, high = (provider.u32(f"regulator-{end}-microvolt") for end in ("min", "max"))
    if low is not None and low == high:
        return True
    if provider.is_compatible("regulator-fixed") and low is None and high is None:
        return True
    return "regulator-always-on" in provider.props


def _emit_regulator(node: Node, stub: Stub) -> None:
    provider = stub.provider
    node.set_strings("compatible", "regulator-fixed")
    name = provider.string("regulator-name") or provider.name.partition("@")[0]
    node.set_strings("regulator-name", name)
    low, high = (provider.u32(f"regulator-{end}-microvolt") for end in ("min", "max"))
    if low is not None and low == high:
        node.set_cells("regulator-min-microvolt", low)
        node.set_cells("regulator-max-microvolt", low)
    if "regulator-always-on" in provider.props:
        node.set_empty("regulator-always-on")
    node.set_cells("phandle", stub.phandle)


def _free(bus: Node, name: str, names: Container[str]) -> str:
    """`name`, numbered on when the bus or a device of the guest on the host has it."""
    base, _, number = name.rpartition("-")
    at = int(number)
    while f"{base}-{at}" in bus.children or f"{base}-{at}" in names:
        at += 1
    return f"{base}-{at}"


def merged(names: Iterable[str], limit: int = 8) -> str:
    """A few names for a message, in their order, each once."""
    listed = list(dict.fromkeys(names))
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
