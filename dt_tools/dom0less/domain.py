# SPDX-License-Identifier: BSD-2-Clause
"""A domain's node under /chosen, as Xen reads it: RAM, vCPUs, modules, what the guest is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dt_tools.dom0less.fragment import c_string
from dt_tools.dom0less.space import gic_version
from dt_tools.errors import Refusal
from dt_tools.extended import MIB, align_up, ram_banks
from dt_tools.guest_limits import MAX_SPIS
from dt_tools.profiles import GuestProfile, Window
from dt_tools.tree import Node, bus_cells, join_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.dom0less.xens import Xen
    from dt_tools.platform import Platform

_KIB_PER_MIB = 1024
_GICV2_MAX_VCPUS = 8
_MODULES_OFFSET = 128 * MIB
# The tree gets 2 MiB of guest RAM, and the ramdisk whole ones.
_BLOCK = 2 * MIB
_UNMODELLED = ("xen,static-mem", "direct-map")
MODULE = ("multiboot,module", "xen,multiboot-module")
MAX_BOOTARGS = 1023


@dataclass(frozen=True, slots=True)
class DomainNode:
    """What the node says.

    Attributes:
        node: the node.
        cpus: number of vCPUs.
        banks: RAM, by guest address.
        vpl011: whether the guest gets a pl011.
        viommu: whether it gets a vSMMU.
        enhanced: whether it gets /hypervisor.
        nr_spis: its number of SPIs, None for the host's.
        bootargs: the command line without its NUL, empty for none.
        ramdisk: where Xen puts the ramdisk in the guest, None without one.
        partial_size: bytes of the module with the partial tree, 0 without one.
    """

    node: Node
    cpus: int
    banks: tuple[Window, ...]
    vpl011: bool
    viommu: bool
    enhanced: bool
    nr_spis: int | None
    bootargs: bytes
    ramdisk: Window | None
    partial_size: int


def read_domain(
    platform: Platform, node: Node, xen: Xen, guest: GuestProfile, bits: int
) -> DomainNode:
    """Read the node `node` of the host tree.

    Raises:
        Refusal: Xen stops at it (DT624, DT625, DT305, DT601 to DT603, DT628), or where its RAM
            will be cannot be told (DT626).
    """
    return _Reader(platform, node, xen, guest, bits).read()


def modules(domain: Node, kind: str) -> Iterator[tuple[Node, Window]]:
    """A domain's modules of a kind (`kernel`, `ramdisk`, `device-tree`) and where they lie.

    Raises:
        Refusal: DT624, a module without a readable reg.
    """
    for node in domain.children.values():
        if not node.is_compatible(f"multiboot,{kind}"):
            continue
        cells, counts = node.cells("reg") or (), bus_cells(domain) or (0, 0)
        at, width = counts[0], sum(counts)
        if not width or len(cells) < width:
            reason = f"its reg is not an address and a size in {counts[0]} + {counts[1]} cells"
            raise Refusal("DT624", node.path, reason, "write where the boot loader puts it")
        yield node, Window(join_cells(cells[:at]), join_cells(cells[at:width]))


def has_dom0(platform: Platform) -> bool:
    """Whether the host tree boots a dom0: a kernel module directly under /chosen."""
    chosen = platform.tree.root.children.get("chosen")
    names = ("multiboot,kernel", "xen,linux-zimage")
    nodes = [] if chosen is None else list(chosen.children.values())
    return any(node.is_compatible(name) for node in nodes for name in names)


class _Reader:
    def __init__(
        self, platform: Platform, node: Node, xen: Xen, guest: GuestProfile, bits: int
    ) -> None:
        self.platform = platform
        self.node = node
        self.xen = xen
        self.guest = guest
        self.bits = bits

    def read(self) -> DomainNode:
        node = self.node
        self._check_kind()
        banks, viommu, vpl011 = self._ram(), self._viommu(), "vpl011" in node.props
        sizes = [window.size for _, window in modules(node, "device-tree")]
        return DomainNode(
            node=node,
            cpus=self._cpus(),
            banks=banks,
            vpl011=vpl011,
            viommu=viommu,
            enhanced=self._enhanced(),
            nr_spis=self._nr_spis(2 if viommu else int(vpl011)),
            bootargs=self._bootargs(),
            ramdisk=self._ramdisk(banks[0]),
            partial_size=sizes[-1] if sizes else 0,
        )

    def _refuse(self, rule: str, reason: str, fix: str) -> Refusal:
        return Refusal(rule, self.node.path, reason, fix)

    def _check_kind(self) -> None:
        node = self.node
        if not node.is_compatible("xen,domain"):
            reason = 'is not compatible = "xen,domain": Xen passes it over'
            raise self._refuse("DT624", reason, 'write compatible = "xen,domain"')
        for name in _UNMODELLED:
            if name in node.props:
                reason = f"has {name}: where its RAM is follows from the host's memory"
                raise self._refuse("DT626", reason, "take it out to see the guest's tree")
        if any(n.is_compatible("xen,domain-shared-memory-v1") for n in node.children.values()):
            reason = "has shared memory, which is not modelled here"
            raise self._refuse("DT626", reason, "take it out to see the guest's tree")
        if not any(True for _ in modules(node, "kernel")):
            reason = "has no kernel: no module that is compatible with multiboot,kernel"
            raise self._refuse("DT624", reason, "add one with the address of the kernel")

    def _number(self, name: str, size: int) -> int:
        raw = self.node.props.get(name, b"")
        if len(raw) < size:
            what = f"has {len(raw)} bytes" if name in self.node.props else "is missing"
            reason = f"{name} {what}, a number of {size} bytes is needed; Xen stops there"
            fix = "write KiB as two cells" if name == "memory" else "write it as one cell"
            raise self._refuse("DT624", reason, fix)
        return int.from_bytes(raw[:size], "big")

    def _ram(self) -> tuple[Window, ...]:
        """The banks that `memory` KiB fill."""
        kib = self._number("memory", 8)
        banks = ram_banks(-(-kib // _KIB_PER_MIB), self.guest, self.bits)
        last, spare = banks[-1], -kib % _KIB_PER_MIB * 1024
        return (*banks[:-1], Window(last.base, last.size - spare)) if spare else banks

    def _cpus(self) -> int:
        version = gic_version(self.platform)
        most = _GICV2_MAX_VCPUS if version == 2 else self.guest.max_vcpus
        cpus = self._number("cpus", 4)
        if not 1 <= cpus <= most:
            reason = f"{cpus} vCPUs, a GICv{version} guest has 1 to {most}"
            raise self._refuse("DT601", reason, "change cpus")
        return cpus

    def _viommu(self) -> bool:
        if "viommu" not in self.node.props or not self.xen.vsmmu:
            return False
        value = c_string(self.node.props["viommu"])
        if value not in ("", "smmuv3"):
            reason = f'viommu = "{value}" is no vIOMMU that Xen knows, and it stops there'
            raise self._refuse("DT624", reason, 'write viommu = "smmuv3", or leave it out')
        return True

    def _enhanced(self) -> bool:
        if "xen,enhanced" not in self.node.props:
            return False
        raw = self.node.props["xen,enhanced"]
        value = c_string(raw) if raw.endswith(b"\0") else ""
        if value in ("", "enabled"):
            if self.xen.enhanced_needs_dom0 and not has_dom0(self.platform):
                reason = "xen,enhanced with xenstore needs a dom0, and the host tree boots none"
                raise self._refuse("DT625", reason, 'use "no-xenstore", or add a dom0')
            return True
        return value == "no-xenstore" or (value == "legacy" and self.xen.copy_first)

    def _nr_spis(self, needed: int) -> int | None:
        if "nr_spis" not in self.node.props:
            return None
        given = self._number("nr_spis", 4)
        if given < needed:
            reason = f"nr_spis {given}, Xen's own devices need {needed}"
            raise self._refuse("DT305", reason, "raise it, or leave it out")
        if given > MAX_SPIS:
            reason = f"nr_spis {given}, a guest has {MAX_SPIS} SPIs at most"
            raise self._refuse("DT305", reason, "lower it, or leave it out")
        return given

    def _bootargs(self) -> bytes:
        """Those of the first module that has some."""
        raw = next((n.props["bootargs"] for n in self._modules() if "bootargs" in n.props), b"")
        text = raw.partition(b"\0")[0]
        if len(text) > MAX_BOOTARGS:
            reason = f"bootargs has {len(text)} bytes, Xen keeps {MAX_BOOTARGS}"
            raise self._refuse("DT628", reason, "shorten the kernel's command line")
        return text

    def _modules(self) -> Iterator[Node]:
        for node in self.node.children.values():
            if any(node.is_compatible(name) for name in MODULE):
                yield node

    def _ramdisk(self, bank: Window) -> Window | None:
        """After the tree, 128 MiB into RAM or at its top; the kernel is taken to end below."""
        sizes = [window.size for _, window in modules(self.node, "ramdisk")]
        size = sizes[-1] if sizes else 0
        if not size:
            return None
        both = _BLOCK + align_up(size, _BLOCK)
        kernel = next(window.size for _, window in modules(self.node, "kernel"))
        if both + align_up(kernel, _BLOCK) > bank.size:
            reason = f"kernel and ramdisk do not fit {bank.size // MIB} MiB of RAM"
            raise self._refuse("DT603", reason, "raise memory")
        start = bank.end - both
        if bank.size >= _MODULES_OFFSET + both and kernel < _MODULES_OFFSET:
            start = bank.base + _MODULES_OFFSET
        return Window(start + _BLOCK, size)
