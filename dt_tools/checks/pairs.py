# SPDX-License-Identifier: BSD-2-Clause
"""Which node of a partial tree stands for which device of the host, and for which guest it is."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dt_tools.checks.view import MAX_ITEMS
from dt_tools.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.checks.view import Board, Given, GuestInput, PartialTree
    from dt_tools.profiles import GuestProfile
    from dt_tools.tree import Node, Tree


class PartialView:
    """A partial tree beside the board and, when there is one, the guest that gets it.

    Attributes:
        nodes: the nodes that are copied into the guest: /passthrough, /aliases and all below.
        defined: phandle to node over the whole partial tree; `copied` those of `nodes` alone.
    """

    def __init__(
        self, partial: PartialTree, board: Board, given: Given | None, profile: GuestProfile
    ) -> None:
        self.file = partial.file
        self.tree: Tree = partial.tree
        self.board = board
        self.given = given
        self.profile = profile
        tops = [self.tree.root.children.get(name) for name in ("passthrough", "aliases")]
        self.nodes = [node for top in tops if top is not None for node in top.walk()]
        self.defined = self.tree.phandles()
        inside = set(self.nodes)
        self.copied = {phandle for phandle, node in self.defined.items() if node in inside}

    @cached_property
    def platform(self) -> Platform:
        """The partial tree read as a board, for registers and interrupts. Raises DtbError."""
        return Platform.from_tree(self.tree, self.file)

    @cached_property
    def hosts(self) -> dict[Node, Node]:
        """The host node of each node that stands for one.

        By xen,path; else, with a guest, by the name of one of its devices, whole or without the
        unit address, or by its streams, when only one fits.
        """
        found: dict[Node, Node] = {}
        for node in self.nodes:
            path = node.string("xen,path")
            host = None if path is None else self.board.tree.node(path)
            if host is not None:
                found[node] = host
        if self.given is not None:
            taken = set(found.values())
            devices = [d for d in self.given.devices if d not in taken]
            for bare in (False, True):
                found.update(_by_name(self.nodes, found, devices, bare=bare))
                devices = [d for d in devices if d not in set(found.values())]
            found.update(self._by_stream(found, devices))
        return found

    def _by_stream(self, found: dict[Node, Node], devices: Sequence[Node]) -> dict[Node, Node]:
        """Nodes of another name by their first iommus entry, which names SMMU and StreamID."""
        there: dict[tuple[str, int], list[Node]] = {}
        for device in devices:
            master = self.board.masters.get(device.path)
            for key in {(s.smmu_path, s.stream_id) for s in master.streams} if master else ():
                there.setdefault(key, []).append(device)
        here: dict[Node, list[Node]] = {}
        for node in self.nodes:
            cells = node.cells("iommus") or ()
            if node in found or len(cells) < 2 or cells[0] in self.copied:
                continue
            hosts = there.get((self.board.smmu_phandles.get(cells[0], ""), cells[1]), [])
            if len(hosts) == 1:
                here.setdefault(hosts[0], []).append(node)
        return {nodes[0]: host for host, nodes in here.items() if len(nodes) == 1}


def _by_name(
    nodes: Sequence[Node], found: dict[Node, Node], devices: Sequence[Node], *, bare: bool
) -> dict[Node, Node]:
    def key(node: Node) -> str:
        return node.name.partition("@")[0] if bare else node.name

    here: dict[str, list[Node]] = {}
    for node in nodes:
        if node not in found and node.parent is not None and node.parent.parent is not None:
            here.setdefault(key(node), []).append(node)
    there: dict[str, list[Node]] = {}
    for device in devices:
        there.setdefault(key(device), []).append(device)
    return {
        here[name][0]: hosts[0]
        for name, hosts in there.items()
        if len(hosts) == 1 and len(here.get(name, ())) == 1
    }


def match(guests: Sequence[GuestInput], loose: Sequence[PartialTree]) -> dict[int, int]:
    """Which of the partial trees without a guest goes with which guest without one: by index.

    By the number of dtdev paths that the partial tree names in xen,path or by node name; a single
    pair needs no likeness. Each goes once, the likeliest first, then in order.
    """
    if len(guests) == 1 and len(loose) == 1:
        return {0: 0}
    scores = []
    for p, partial in enumerate(loose):
        names = {node.name for node in partial.tree.walk()}
        paths = {node.string("xen,path") for node in partial.tree.walk()}
        for g, guest in enumerate(guests):
            dtdev = guest.config.dtdev[:MAX_ITEMS]
            score = sum(2 * (d in paths) + (d.rpartition("/")[2] in names) for d in dtdev)
            if score:
                scores.append((-score, p, g))
    found: dict[int, int] = {}
    for _, p, g in sorted(scores):
        if g not in found and p not in found.values():
            found[g] = p
    return found
