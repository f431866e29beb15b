# SPDX-License-Identifier: BSD-2-Clause
"""The host's tree ready for Xen: marks on the devices that are given away, and the guests' nodes.

Everything else of the host's tree stays as it is: xen,xen-bootargs, dom0's modules, domains that
are there already (whose devices are not known here, and not checked).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dt_tools import blob
from dt_tools.binding import MAX_VMASTER_IDS, Bindings, Notice, allocate
from dt_tools.dom0.given import mark
from dt_tools.dom0less.chosen import Module, add_domain
from dt_tools.dom0less.domain import has_dom0
from dt_tools.dom0less.fragment import Fragment, build_fragment, read_fragment
from dt_tools.dom0less.guest import xen_guest
from dt_tools.dom0less.places import check_modules, place_modules, taken_places
from dt_tools.dom0less.rules import Hosts, Setting, check_fragment
from dt_tools.dom0less.space import memory_mib
from dt_tools.dom0less.xens import SERIES, Xen
from dt_tools.errors import Refusal, UserError
from dt_tools.extended import ram_banks
from dt_tools.partial import Providers
from dt_tools.platform import Platform
from dt_tools.profiles import DEFAULT, GuestProfile, Profile
from dt_tools.stubs import DEFAULT_CLOCK_HZ
from dt_tools.tree import Node, Tree

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from xl_configs import GuestConfig


@dataclass(frozen=True, slots=True)
class GuestInput:
    """A guest: its configuration, where its modules go, its own partial tree if it has one.

    `modules` are those whose address is given; the size of a device-tree module is not looked at.
    `partial` is what `device_tree` of the configuration names. `sizes` are the sizes of modules
    that have no address of their own and are placed from `modules_at` on.
    """

    config: GuestConfig
    modules: tuple[Module, ...] = ()
    partial: Tree | None = None
    enhanced: str | None = None
    sizes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest in the merged tree: its node, its partial tree, and that tree's blob."""

    config: GuestConfig
    node: Node
    fragment: Fragment
    blob: bytes | None
    enhanced: str | None

    @property
    def path(self) -> str:
        """Full path of its node under /chosen."""
        return self.node.path


@dataclass(frozen=True, slots=True)
class Dom0less:
    """The host's tree for Xen, the same with the marks alone, and the guests."""

    tree: Tree
    marked: Tree
    domains: tuple[Domain, ...]
    notices: tuple[Notice, ...]

    def guests(
        self, xen: Xen = SERIES, address_bits: int = 40, *, guest: GuestProfile = DEFAULT.guest
    ) -> tuple[Tree, ...]:
        """The tree that Xen builds for each guest.

        Raises:
            Refusal: as `xen_guest`.
        """
        platform = Platform.from_tree(self.tree, "merged")
        return tuple(
            xen_guest(
                platform,
                domain.node,
                domain.fragment.tree if domain.blob is not None else None,
                xen=xen,
                guest=guest,
                partial_size=len(domain.blob or b""),
                address_bits=address_bits,
            )
            for domain in self.domains
        )


def build_dom0less(
    platform: Platform,
    guests: Sequence[GuestInput],
    *,
    profile: Profile = DEFAULT,
    xen: Xen = SERIES,
    unsafe: Collection[str] = (),
    modules_at: int | None = None,
    addresses: bool = True,
    providers: Providers = "drop",
    stub_clock_hz: int = DEFAULT_CLOCK_HZ,
    address_bits: int = 40,
) -> Dom0less:
    """Build the merged host tree and the partial trees of `guests`.

    Args:
        platform: the host, which is not changed.
        guests: in the order in which Xen is to start them.
        profile: the guests' address map.
        xen: the version that will read the trees.
        unsafe: devices that may be assigned without an SMMU before them.
        modules_at: where modules without an address go, 2 MiB apart at least, around those that
            have one and around reserved memory.
        addresses: whether the guests' nodes have modules; without, no address is looked at.
        providers: what becomes of properties that name clocks, resets ... outside the guest.
        stub_clock_hz: the rate of a stand-in for a clock whose rate the host tree does not tell.
        address_bits: width of a guest physical address on the host.

    Raises:
        UserError: a path that the host does not have.
        Refusal: what Xen would refuse, or should, by rule id.
    """
    build = _Build(platform, profile, xen, address_bits)
    build.providers, build.stub_clock_hz = providers, stub_clock_hz
    return build.run(guests, unsafe, modules_at, addresses)


class _Build:
    providers: Providers = "drop"
    stub_clock_hz = DEFAULT_CLOCK_HZ

    def __init__(self, platform: Platform, profile: Profile, xen: Xen, bits: int) -> None:
        self.platform = platform
        self.profile = profile
        self.xen = xen
        self.bits = bits
        self.notices: list[Notice] = []
        self.marked = platform.tree.copy()
        self.dom0 = has_dom0(platform)

    def run(
        self,
        guests: Sequence[GuestInput],
        unsafe: Collection[str],
        modules_at: int | None,
        addresses: bool,
    ) -> Dom0less:
        self._check_unsafe(guests, unsafe)
        fragments = [self._fragment(guest, unsafe) for guest in guests]
        self._check_apart(fragments)
        for fragment in fragments:
            self._mark(fragment)
        tree = self.marked.copy()
        chosen = tree.root.children.get("chosen") or tree.root.add("chosen")
        names = _free_names(chosen, len(guests))
        datas = [blob.write(f.tree) if f.tree.root.children else None for f in fragments]
        all_modules = self._place(guests, datas, modules_at) if addresses else [[] for _ in guests]
        domains = []
        for guest, fragment, name, data, modules in zip(
            guests, fragments, names, datas, all_modules, strict=True
        ):
            self.notices += add_domain(
                chosen, name, guest.config, fragment, modules, self.platform,
                xen=self.xen, guest=self.profile.guest, enhanced=guest.enhanced,
            )  # fmt: skip
            node = chosen.children[name]
            domains.append(Domain(guest.config, node, fragment, data, guest.enhanced))
        self._existing(len(guests))
        if addresses:
            self.notices += check_modules(tree)
        built = Dom0less(tree, self.marked, tuple(domains), tuple(self.notices))
        if addresses:
            built.guests(
                self.xen, self.bits, guest=self.profile.guest
            )  # refuses what Xen would refuse
        return built

    def _place(
        self, guests: Sequence[GuestInput], datas: Sequence[bytes | None], next_at: int | None
    ) -> list[list[Module]]:
        """Each guest's modules: first all that have an address, then the others around them."""
        fixed = [
            module
            for guest, data in zip(guests, datas, strict=True)
            for module in place_modules(guest.modules, (), data, None)[0]
        ]
        taken = taken_places(self.platform.tree, fixed)
        found = []
        for guest, data in zip(guests, datas, strict=True):
            modules, next_at = place_modules(guest.modules, guest.sizes, data, next_at, taken)
            found.append(modules)
        return found

    # Partial trees.

    def _check_unsafe(self, guests: Sequence[GuestInput], unsafe: Collection[str]) -> None:
        given = [self.platform.resolve(p).path for g in guests for p in g.config.dtdev]
        for path in unsafe:
            full = self.platform.resolve(path).path
            if not _within(full, given):
                reason = "is no device in dtdev of a guest, nor inside one"
                raise UserError("--unsafe-no-iommu", full, reason, "leave it out")

    def _fragment(self, guest: GuestInput, unsafe: Collection[str]) -> Fragment:
        if guest.partial is not None:
            return self._read(guest.config, guest.partial)
        if not guest.config.dtdev:
            return Fragment(Tree())
        mine = [self.platform.resolve(path).path for path in guest.config.dtdev]
        allowed = [path for path in unsafe if _within(self.platform.resolve(path).path, mine)]
        fragment = build_fragment(
            guest.config, self.platform, profile=self.profile, unsafe=allowed,
            providers=self.providers, stub_clock_hz=self.stub_clock_hz,
            address_bits=self.bits,
        )  # fmt: skip
        self.notices += fragment.notices
        if self.xen.ids == "physical":
            fragment = replace(fragment, bindings=self._physical(fragment.bindings))
        return fragment

    def _physical(self, bindings: Bindings) -> Bindings:
        """The map where a vMasterID is the pMasterID: a guest has each of them once, below 2^16.

        Raises:
            Refusal: DT502, two SMMUs with one id; DT506.
        """
        owners: dict[int, tuple[str, str]] = {}
        for entry in bindings.entries:
            if entry.pmaster_id >= MAX_VMASTER_IDS:
                reason = f"StreamID {entry.pmaster_id:#x} is no vMasterID, which has 16 bits, and "
                reason += f"{self.xen.name} makes it one"
                raise Refusal("DT506", entry.devices[0], reason, "assign another device")
            other = owners.setdefault(entry.pmaster_id, (entry.smmu, entry.devices[0]))
            if other[0] != entry.smmu:
                reason = f"StreamID {entry.pmaster_id:#x} of {entry.smmu} is {other[1]}'s too, of "
                reason += f"{other[0]}: {self.xen.name} cannot tell them apart behind one vSMMU"
                raise Refusal("DT502", entry.devices[0], reason, "give them to two guests")
        ids = {entry.vmaster_id: entry.pmaster_id for entry in bindings.entries}
        entries = sorted(
            (replace(entry, vmaster_id=entry.pmaster_id) for entry in bindings.entries),
            key=lambda entry: entry.vmaster_id,
        )
        devices = tuple(
            replace(device, vmaster_ids=tuple(ids[vid] for vid in device.vmaster_ids))
            for device in bindings.devices
        )
        return replace(bindings, entries=tuple(entries), devices=devices)

    def _read(self, config: GuestConfig, partial: Tree) -> Fragment:
        """The user's own partial tree, checked; its warnings are notices."""
        setting = Setting(
            self.xen, dom0=self.dom0, marked=False, viommu=config.viommu == "smmuv3",
            vpl011=config.vuart == "sbsa_uart", nr_spis=None, guest=self.profile.guest,
            ram=ram_banks(memory_mib(config), self.profile.guest, self.bits),
        )  # fmt: skip
        for found in check_fragment(self.platform, partial, setting):
            if found.severity == "error":
                raise found.refusal()
            self.notices.append(Notice(found.rule, found.path, f"{found.fact}; {found.fix}"))
        hosts = Hosts(self.platform)
        found_nodes = (hosts.find(p) for p in read_fragment(partial).paths)
        paths = tuple(dict.fromkeys(node.path for node in found_nodes if node is not None))
        self._check_sharing(hosts, paths)
        for path in config.dtdev:
            if self.platform.resolve(path).path not in paths:
                text = "no xen,path of the partial tree names it: the guest does not get it"
                self.notices.append(Notice("DT112", self.platform.resolve(path).path, text))
        irqs = {
            interrupt.number
            for path in paths
            for interrupt in self.platform.interrupts_of(self.platform.resolve(path))
            if interrupt.kind == "SPI"
        }
        return Fragment(partial, paths, irqs=tuple(sorted(irqs)))

    def _check_sharing(self, hosts: Hosts, paths: Collection[str]) -> None:
        """DT503, DT205: no stream and no page of a device is also one's that stays outside."""
        nodes = [self.platform.resolve(path) for path in paths]
        contained = [node.path for node in nodes if hosts.protected(node)]
        self.notices += allocate(self.platform, contained, viommu=False).notices
        inside = {inner.path for node in nodes for inner in node.walk()}
        for node in nodes:
            for other in self.platform.page_neighbours(node, len(inside) + 1):
                if other not in inside:
                    reason = f"shares a 4 KiB page of registers with {other}"
                    raise Refusal("DT205", node.path, reason, f"assign {other} too, or neither")

    def _check_apart(self, fragments: Sequence[Fragment]) -> None:
        """No device, and no interrupt, has two guests; what dom0 keeps has no interrupt of one."""
        owners: dict[str, int] = {}
        irqs: dict[int, int] = {}
        for index, fragment in enumerate(fragments):
            for path in fragment.paths:
                if owners.setdefault(path, index) != index:
                    reason = f"is given to guests {owners[path] + 1} and {index + 1}"
                    raise Refusal("DT103", path, reason, "give it to one of them")
            for irq in fragment.irqs:
                if irqs.setdefault(irq, index) != index:
                    reason = f"interrupt {irq} is a device's of guest {irqs[irq] + 1} too"
                    fix = "give both devices to one guest: Xen routes an interrupt to one domain"
                    raise Refusal("DT307", fragment.paths[0], reason, fix)
        for path, index in owners.items():
            for parent in self.platform.resolve(path).ancestors():
                if owners.get(parent.path, index) != index:
                    reason = f"lies inside {parent.path}, which another guest is given"
                    raise Refusal("DT110", path, reason, "give both to one guest")
        if self.dom0:
            self._check_dom0(owners, irqs)

    def _check_dom0(self, owners: Collection[str], irqs: Collection[int]) -> None:
        """Xen starts dom0 first and routes the interrupts of what is not marked to it."""
        if not irqs:
            return
        for node in self.platform.tree.walk():
            if "interrupts" not in node.props and "interrupts-extended" not in node.props:
                continue
            if node.path in owners or "xen,passthrough" in node.props or node.status != "okay":
                continue
            for interrupt in self.platform.interrupts_of(node):
                if interrupt.kind == "SPI" and interrupt.number in irqs:
                    reason = f"interrupt {interrupt.number} is a guest's device's too, and dom0 "
                    reason += "gets it first: Xen refuses the guest"
                    raise Refusal("DT307", node.path, reason, "give this device to the guest too")

    def _mark(self, fragment: Fragment) -> None:
        for path in fragment.paths:
            self._marked_before(path)
        mark(self.marked, fragment.paths)

    def _marked_before(self, path: str) -> None:
        node = self.platform.resolve(path)
        holder = next((n for n in (node, *node.ancestors()) if "xen,passthrough" in n.props), None)
        if holder is not None:
            where = "is" if holder is node else f"lies inside {holder.path}, which is"
            text = f"{where} marked xen,passthrough in the host tree already; whether another "
            text += "domain is given it is not known"
            self.notices.append(Notice("DT633", path, text))

    def _existing(self, number: int) -> None:
        chosen = self.platform.tree.root.children.get("chosen")
        for node in [] if chosen is None else chosen.children.values():
            if node.is_compatible("xen,domain"):
                text = "is in the host tree already; it starts before the others, and whether its "
                text += f"devices are those of the {number} new guests is not known"
                self.notices.append(Notice("DT633", node.path, text))


def _within(path: str, devices: Collection[str]) -> bool:
    """Whether the path is that of a device, or of a node inside one."""
    return any(path == device or path.startswith(f"{device}/") for device in devices)


def _free_names(chosen: Node, number: int) -> list[str]:
    names: list[str] = []
    at = 1
    while len(names) < number:
        if f"domU{at}" not in chosen.children:
            names.append(f"domU{at}")
        at += 1
    return names
