# SPDX-License-Identifier: BSD-2-Clause
"""An assigned device while its guest node is made, and the notices of all of them.

`dt_tools.device_registers` makes a `Device` from a host node; the other `device_*` modules write
the guest's node and note here what became of each property, for `dt_tools.account`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Dropped, Notice

if TYPE_CHECKING:
    from dt_tools.binding import GuestInterrupt
    from dt_tools.profiles import Window
    from dt_tools.tree import Node


class Notices(list[Notice]):
    """What the user is told of one guest's devices, in the order in which it is found."""

    def note(self, rule: str, node: Node, message: str) -> None:
        """Add a notice by the rule `rule` about a host node."""
        self.append(Notice(rule, node.path, message))


class Device:
    """A device while it is built: its host node and what is known of its guest node.

    `inner` are the registers of nodes below it, by node; `buses` the nodes they are behind.
    """

    def __init__(self, node: Node, regs: tuple[Window, ...]) -> None:
        self.node = node
        self.regs = regs
        self.inner: dict[Node, tuple[Window, ...]] = {}
        self.buses: set[Node] = set()
        self.dropped: list[Dropped] = []
        self.rules: dict[str, str] = {}
        self.interrupts: list[GuestInterrupt] = []
        self.stubbed: list[str] = []

    def where(self, node: Node, name: str) -> str:
        """A property's name, with the path of a node below the device."""
        return name if node is self.node else f"{_below(node, self.node)}/{name}"

    def drop(self, node: Node, name: str, reason: str) -> None:
        """Note a property that the guest does not have."""
        self.dropped.append(Dropped(self.where(node, name), reason))

    def rewrite(self, node: Node, name: str, rule: str) -> None:
        """Note a property that the guest has by a rule."""
        self.rules[self.where(node, name)] = rule


def _below(node: Node, device: Node) -> str:
    return node.path[len(device.path) + 1 :]
