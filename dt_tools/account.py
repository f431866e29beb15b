# SPDX-License-Identifier: BSD-2-Clause
"""What became of every property of an assigned host node: carried, rewritten, added or dropped.

The account is made from the two nodes after the fact; what differs between them without a rule or
a reason is a mistake of the builder and stops it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dt_tools.binding import Dropped
    from dt_tools.tree import Node

REG = "reg-to-guest"
BUS = "bus-to-guest"
INTERRUPTS = "interrupts-to-gic"
OWN_INTERRUPTS = "interrupts-of-own-controller"
NAMES = "names-of-kept"
IOMMUS = "iommus-to-vmasters"
CLOCKS = "clocks-to-stubs"
SUPPLY = "supply-to-stub"
COHERENCE = "coherence-of-bus"
PHANDLE = "phandle-spelling"
CONTROLLER = "cells-of-controller"
RULES = {
    REG: "registers at their CPU address, or where the guest has room, two cells each",
    BUS: "two cells to an address and a size, addresses those of the parent",
    INTERRUPTS: "the SPIs as three cells of the guest's GIC",
    OWN_INTERRUPTS: "the cells that a controller inside the device takes, which is named",
    NAMES: "the names of the interrupts that are kept",
    IOMMUS: "<vSMMU vMasterID> for each stream, each once",
    CLOCKS: "a fixed-clock for each clock of the host",
    SUPPLY: "a regulator-fixed for the host's regulator",
    COHERENCE: "inherited from a bus of the host",
    PHANDLE: "phandle for linux,phandle",
    CONTROLLER: "#address-cells of an interrupt controller, which every interrupt parent needs",
}
"""The rules by which values are rewritten or added."""


class Rewritten(NamedTuple):
    """A property that the guest has by a rule of `RULES`, with its path below the device."""

    property: str
    rule: str


class Account(NamedTuple):
    """One device: every property of its host node and of the nodes below it, each in one list.

    A property of a node below is named with its path; a node that is dropped whole ends in `/`.
    `added` are properties of the guest that the host's node lacks.
    """

    path: str
    guest_path: str
    carried: tuple[str, ...]
    rewritten: tuple[Rewritten, ...]
    added: tuple[Rewritten, ...]
    dropped: tuple[Dropped, ...]


def account(
    host: Node, guest: Node, rules: Mapping[str, str], dropped: Sequence[Dropped]
) -> Account:
    """Compare a device with what was made of it; `rules` are by property, as in `Account`."""
    gone = {one.property for one in dropped}
    carried: list[str] = []
    rewritten: list[Rewritten] = []
    added: list[Rewritten] = []
    for prefix, source, copy in _pairs(host, guest):
        for name, raw in source.props.items():
            where = prefix + name
            if copy.props.get(name) == raw:
                carried.append(where)
            elif where in rules:
                rewritten.append(Rewritten(where, rules[where]))
            else:
                assert name not in copy.props, f"{host.path}: {where} changed without a rule"
                assert where in gone, f"{host.path}: {where} lost without a reason"
        for name in copy.props:
            if name not in source.props:
                added.append(Rewritten(prefix + name, rules[prefix + name]))
        for name in source.children:
            assert name in copy.children or f"{prefix}{name}/" in gone, f"{prefix}{name} lost"
    return Account(
        host.path, guest.path, tuple(carried), tuple(rewritten), tuple(added), tuple(dropped)
    )


def _pairs(host: Node, guest: Node) -> Iterator[tuple[str, Node, Node]]:
    """(path below the device, node, its copy) for each node of the copy."""
    stack = [("", host, guest)]
    while stack:
        prefix, source, copy = stack.pop()
        yield prefix, source, copy
        for name, child in copy.children.items():
            stack.append((f"{prefix}{name}/", source.children[name], child))
