# SPDX-License-Identifier: BSD-2-Clause
"""Which node of a partial tree stands for which device of the host, and for which guest it is."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dt_tools.binding import Binding, Bindings, MappedReg
from dt_tools.checks.view import MAX_ITEMS
from dt_tools.errors import Refusal, UserError
from dt_tools.merge_claims import Claims
from dt_tools.merge_streams import Phandles, Streams
from dt_tools.merge_view import GuestView, toolstack
from dt_tools.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dt_tools.checks.view import Board, Given, GuestInput, PartialTree
    from dt_tools.pci import PciFunction
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

        By xen,path; else, with a guest, as the builder takes it, by the name of one of its
        devices, by its streams, or by a name without the unit address, when only one fits.
        """
        found: dict[Node, Node] = {}
        for node in self.nodes:
            path = node.string("xen,path")
            host = None if path is None else self.board.tree.node(path)
            if host is not None:
                found[node] = host
        if self.given is None:
            return found
        if self.entries is not None:
            for node, path in self.entries.claims.of.items():
                host = self.board.tree.node(path)
                if host is not None:
                    found.setdefault(node, host)
        taken = set(found.values())
        devices = [d for d in self.given.devices if d not in taken]
        found.update(_by_name(self.nodes, found, devices, bare=False))
        devices = [d for d in devices if d not in set(found.values())]
        if self.entries is not None:
            found.update(self._by_stream(self.entries, found, devices))
            devices = [d for d in devices if d not in set(found.values())]
        found.update(_by_name(self.nodes, found, devices, bare=True))
        return found

    @cached_property
    def made(self) -> dict[int, Node]:
        """The nodes that the toolstack numbers itself, by phandle."""
        viommu = self.given is None or self.given.viommu
        return toolstack(self.profile, viommu=viommu)

    @cached_property
    def entries(self) -> Entries | None:
        """What iommus are for the builder; None where there is no guest with a vSMMU."""
        given = self.given
        if given is None or not given.viommu or "passthrough" not in self.tree.root.children:
            return None
        return Entries(self, given)

    def _by_stream(
        self, entries: Entries, found: dict[Node, Node], devices: Sequence[Node]
    ) -> dict[Node, Node]:
        """Nodes of another name whose streams are those of one device alone."""
        wanted = {device.path: device for device in devices}
        here: dict[Node, list[Node]] = {}
        for node in self.nodes:
            if node in found or "iommus" not in node.props:
                continue
            owners = entries.owners(node)
            if len(owners) == 1 and owners[0] in wanted:
                here.setdefault(wanted[owners[0]], []).append(node)
        return {nodes[0]: host for host, nodes in here.items() if len(nodes) == 1}


class Entries:
    """The iommus of a partial tree, read by the code that makes vMasterIDs of them.

    Attributes:
        claims: which node stands for which device of dtdev.
    """

    def __init__(self, view: PartialView, given: Given) -> None:
        board = view.board
        masters = {n.path: board.masters[n.path] for n in given.nodes if n.path in board.masters}
        hosts = {path: master for path, master in masters.items() if master.streams}
        users: dict[tuple[str, int], list[str]] = {}
        for path, stream in [
            *((path, s) for path, master in hosts.items() for s in master.streams),
            *((one.path, s) for one in _functions(view, given) for s in one.streams),
        ]:
            owners = users.setdefault((stream.smmu_path, stream.stream_id), [])
            if path not in owners:
                owners.append(path)
        # Which vMasterID a stream has does not matter here.
        bindings = Bindings(
            tuple(Binding(at, *key, tuple(who)) for at, (key, who) in enumerate(users.items()))
        )
        guest = GuestView(view.tree, view.tree, view.profile, bindings)
        pins = [MappedReg(h.base, g.base, h.size) for h, g in given.iomem]
        self.claims = Claims(guest, board.platform, hosts, pins)
        phandles = Phandles(board.platform, view.tree, bindings, view.profile.vsmmu_phandle)
        self._streams = Streams(phandles, self.claims, bindings)
        self._users = users
        self._inside = set(guest.nodes)
        self._read: dict[Node, list[tuple[str, int]] | Refusal] = {}

    def of(self, node: Node) -> list[tuple[str, int]] | Refusal:
        """(SMMU, StreamID) of each entry of the node's iommus; of an IOMMU of its own none.

        Nothing of a node whose xen,path is not in dtdev, and in /aliases.
        """
        if node not in self._inside or node in self.claims.strays:
            return []
        if node not in self._read:
            try:
                entries = self._streams.entries(node)
                real = [entry for entry in entries if entry.meaning.kind != "own"]
                self._read[node] = [self._streams.find(node, entry)[:2] for entry in real]
            except Refusal as refusal:
                self._read[node] = refusal
        return self._read[node]

    def owners(self, node: Node) -> list[str]:
        """The devices that have all of the node's streams."""
        keys = self.of(node)
        if isinstance(keys, Refusal) or not keys:
            return []
        sets = [set(self._users[key]) for key in keys]
        return sorted(set.intersection(*sets))


def _functions(view: PartialView, given: Given) -> Sequence[PciFunction]:
    """The guest's PCI functions; what is wrong with them is told elsewhere."""
    if not given.config.pci:
        return ()
    from dt_tools.pci import functions

    try:
        return functions(
            given.config.pci,
            view.board.platform,
            given.input.topology,
            viommu=True,
            domains=given.input.pci_domains,
        )
    except (Refusal, UserError):
        return ()


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
