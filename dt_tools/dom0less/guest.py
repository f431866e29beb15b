# SPDX-License-Identifier: BSD-2-Clause
"""A model of Xen's dom0less builder: from the host tree and a partial tree to the guest's tree.

Nodes and properties stand in the order of the version's builder, with its values. What stops the
boot of real Xen is refused here by rule, and so is what Xen takes and no guest can use.

Limits: AArch64 guests; no static memory, direct map or shared memory; the kernel is taken to end
below the modules, whose place follows from the size of its file alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.dom0less.domain import has_dom0, read_domain
from dt_tools.dom0less.fragment import c_string
from dt_tools.dom0less.rules import (
    Hosts,
    Setting,
    check_fragment,
    copied,
    gic_phandle,
    host_rows,
)
from dt_tools.dom0less.space import gic_version
from dt_tools.dom0less.xens import SERIES, Xen
from dt_tools.errors import Refusal
from dt_tools.extended import MIB, extended_regions
from dt_tools.profiles import DEFAULT, GuestProfile, Window
from dt_tools.tree import Node, Tree, split_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.platform import Platform

_LEVEL_HIGH, _LEVEL_LOW = 0xF04, 0xF08
_STRIPPED = ("xen,reg", "xen,path", "xen,force-assign-without-iommu")
_FDT_MAX = 2 * MIB
_TIMERS = ("arm,armv8-timer", "arm,armv7-timer")


def xen_guest(
    platform: Platform,
    domain: Node,
    partial: Tree | None = None,
    *,
    xen: Xen = SERIES,
    guest: GuestProfile = DEFAULT.guest,
    partial_size: int | None = None,
    address_bits: int = 40,
) -> Tree:
    """The tree that Xen builds for the node `domain` under /chosen of the host's tree.

    Args:
        platform: the host, as Xen boots with it.
        domain: the guest's node.
        partial: the tree in its module "multiboot,device-tree".
        xen: the version.
        guest: the guest's address map; the same numbers as libxl's.
        partial_size: bytes of the module, None to take it from the node's own reg.
        address_bits: width of a guest physical address on the host.

    Raises:
        Refusal: Xen stops there, or the guest could not use the tree; by rule id.
    """
    return _Builder(platform, domain, partial, xen, guest, address_bits).build(partial_size)


class _Builder:
    def __init__(
        self,
        platform: Platform,
        domain: Node,
        partial: Tree | None,
        xen: Xen,
        guest: GuestProfile,
        bits: int,
    ) -> None:
        self.platform = platform
        self.domain = domain
        self.partial = partial
        self.xen = xen
        self.guest = guest
        self.bits = bits
        self.says = read_domain(platform, domain, xen, guest, bits)
        self.gic = gic_phandle(partial, guest)
        self.hosts = Hosts(platform)
        self.ids: dict[tuple[str, int], int] = {}
        if partial is not None:
            self._check_partial(partial)

    def build(self, partial_size: int | None) -> Tree:
        tree = Tree()
        tree.root.set_cells("#address-cells", 2)
        tree.root.set_cells("#size-cells", 2)
        if self.xen.copy_first:
            steps = (self._copy, self._chosen, self._cpus, self._memory, self._gic, self._timer,
                     self._hypervisor, self._psci, self._vuart, self._vsmmu)  # fmt: skip
        else:
            steps = (self._chosen, self._psci, self._cpus, self._memory, self._copy, self._gic,
                     self._timer, self._vuart, self._vsmmu, self._hypervisor)  # fmt: skip
        for step in steps:
            step(tree.root)
        self._check_size(tree, partial_size)
        return tree

    # What is refused.

    def _check_partial(self, partial: Tree) -> None:
        setting = Setting(
            self.xen,
            dom0=has_dom0(self.platform),
            viommu=self.says.viommu,
            vpl011=self.says.vpl011,
            nr_spis=self.says.nr_spis,
            guest=self.guest,
            ram=self.says.banks,
        )
        for found in check_fragment(self.platform, partial, setting):
            if found.severity == "error":
                raise found.refusal()

    def _check_size(self, tree: Tree, partial_size: int | None) -> None:
        """Xen writes the tree into a buffer of fixed size, and stops where it is full."""
        if self.partial is None:
            partial_size = 0
        elif partial_size is None:
            partial_size = self.says.partial_size
        room = min(self.xen.buffer + partial_size, _FDT_MAX)
        needed = _sequential_size(tree)
        if needed > room:
            reason = f"the guest's tree takes {needed} bytes, {self.xen.name} has room for {room}"
            fix = "give the guest fewer vCPUs or devices"
            raise Refusal("DT627", self.domain.path, reason, fix)

    # The nodes.

    def _chosen(self, root: Node) -> None:
        chosen = root.add("chosen")
        if self.says.bootargs:
            chosen.props["bootargs"] = self.says.bootargs + b"\0"
        disk = self.says.ramdisk
        if disk is not None:
            chosen.set_cells("linux,initrd-start", *split_cells(disk.base, 2))
            chosen.set_cells("linux,initrd-end", *split_cells(disk.end, 2))

    def _psci(self, root: Node) -> None:
        node = root.add("psci")
        node.set_strings("compatible", "arm,psci-1.0", "arm,psci-0.2", "arm,psci")
        node.set_strings("method", "hvc")
        node.set_cells("cpu_off", 1)
        node.set_cells("cpu_on", 2)

    def _cpus(self, root: Node) -> None:
        host = self._host_cpu()
        cpus = root.add("cpus")
        cpus.set_cells("#address-cells", 1)
        cpus.set_cells("#size-cells", 0)
        for vcpu in range(self.says.cpus):
            mpidr = (vcpu >> 4) << 8 | vcpu & 0xF
            node = cpus.add(f"cpu@{mpidr:x}")
            node.props["compatible"] = host.props["compatible"]
            node.set_strings("device_type", "cpu")
            node.set_cells("reg", mpidr)
            _clock(node, host)
            node.set_strings("enable-method", "psci")

    def _host_cpu(self) -> Node:
        """The first CPU of the host: all of the guest's are said to be of its kind."""
        cpus = self.platform.tree.root.children.get("cpus")
        for node in [] if cpus is None else cpus.children.values():
            if (node.string("device_type") or "").lower() == "cpu":
                if "compatible" in node.props:
                    return node
                break
        reason = "the host tree has no CPU with a compatible, which Xen copies to the guest's"
        raise Refusal("DT629", "/cpus", reason, "correct /cpus of the host tree")

    def _memory(self, root: Node) -> None:
        """One node for all banks, where libxl makes one for each."""
        node = root.add(f"memory@{self.says.banks[0].base:x}")
        node.set_strings("device_type", "memory")
        _set_reg(node, *self.says.banks)

    def _copy(self, root: Node) -> None:
        if self.partial is None:
            return
        for top, devices in copied(self.partial):
            target = root.add(top.name)
            target.copy_from(top)
            if devices:
                self._rewrite(top, target)

    def _rewrite(self, source: Node, target: Node) -> None:
        rewrites = self.xen.rewrites_iommus(self.says.viommu)
        for theirs, node in zip(source.walk(), target.walk(), strict=True):
            # The 2022 series looks at the children of a node, so never at /passthrough itself.
            if rewrites and "iommus" in node.props and not (node is target and self._series()):
                self._set_iommus(node, theirs)
            for name in _STRIPPED:
                node.props.pop(name, None)

    def _series(self) -> bool:
        return self.xen.rewrites == "always"

    def _set_iommus(self, node: Node, theirs: Node) -> None:
        cells = node.cells("iommus") or ()
        phandle = self.guest.vsmmu_phandle
        if self.xen.ids == "physical":
            node.set_cells("iommus", *(c for sid in cells[1::2] for c in (phandle, sid)))
            return
        smmus = self._smmus(c_string(theirs.props.get("xen,path")), cells)
        pairs = zip(smmus, cells[1::2], strict=True)
        ids = dict.fromkeys(self.ids.setdefault(pair, len(self.ids)) for pair in pairs)
        node.set_cells("iommus", *(cell for vid in ids for cell in (phandle, vid)))

    def _smmus(self, path: str | None, cells: tuple[int, ...]) -> list[str]:
        """The SMMU of each entry: that of the host node's streams, by phandle where it has two."""
        streams = self.hosts.streams(path)
        found = []
        for phandle, sid in zip(cells[::2], cells[1::2], strict=True):
            known = dict.fromkeys(s.smmu_path for s in streams if s.stream_id == sid)
            smmu = self.hosts.smmus.get(phandle)
            named = "" if smmu is None else smmu.path
            found.append(named if named in known or not known else next(iter(known)))
        return found

    def _gic(self, root: Node) -> None:
        guest, v2 = self.guest, gic_version(self.platform) == 2
        regs = (guest.gicv2_gicd, guest.gicv2_gicc) if v2 else (guest.gicv3_gicd, guest.gicv3_gicr)
        node = root.add(f"interrupt-controller@{regs[0].base:x}")
        if not self.xen.gic_cells_last:
            node.set_cells("#address-cells", 0)
        node.set_cells("#interrupt-cells", 3)
        node.set_empty("interrupt-controller")
        node.set_strings("compatible", "arm,gic-400" if v2 else "arm,gic-v3")
        if not v2 and not self.xen.gic_cells_last:
            node.set_cells("#redistributor-regions", 1)
        _set_reg(node, *regs)
        node.set_cells("linux,phandle", self.gic)
        node.set_cells("phandle", self.gic)
        if self.xen.gic_cells_last:
            node.set_cells("#address-cells", 0)

    def _timer(self, root: Node) -> None:
        host = next(
            (n for n in self.platform.tree.walk() if any(n.is_compatible(t) for t in _TIMERS)), None
        )
        if host is None:
            reason = "the host tree has no timer that Xen knows"
            raise Refusal("DT629", "/timer", reason, "give the host tree an arm,armv8-timer")
        node = root.add("timer")
        node.set_strings("compatible", "arm,armv8-timer")
        self._interrupts(node, *((1, ppi - 16, _LEVEL_LOW) for ppi in self.guest.timer_ppis))
        _clock(node, host)

    def _vuart(self, root: Node) -> None:
        if not self.says.vpl011:
            return
        node = root.add(f"sbsa-uart@{self.guest.pl011.base:x}")
        node.set_strings("compatible", "arm,sbsa-uart")
        _set_reg(node, self.guest.pl011)
        self._interrupts(node, (0, self.guest.pl011_spi - 32, _LEVEL_HIGH))
        node.set_cells("current-speed", 115200)

    def _vsmmu(self, root: Node) -> None:
        if not self.says.viommu:
            return
        guest = self.guest
        node = root.add(f"iommu@{guest.vsmmu.base:x}")
        node.set_strings("compatible", "arm,smmu-v3")
        _set_reg(node, guest.vsmmu)
        node.set_cells("phandle", guest.vsmmu_phandle)
        node.set_cells("#iommu-cells", 1)
        node.set_strings("interrupt-names", "combined")
        self._interrupts(node, (0, guest.vsmmu_spi - 32, _LEVEL_HIGH))
        node.set_empty("dma-coherent")

    def _hypervisor(self, root: Node) -> None:
        if not self.says.enhanced:
            return
        node = root.add("hypervisor")
        node.set_strings("compatible", f"xen,xen-{self.xen.version}", "xen,xen")
        holes = self._mapped() if self.xen.reg_holes else ()
        regions = extended_regions(self.says.banks, self.guest, self.bits, holes)
        _set_reg(node, self.guest.grant_table, *regions)
        self._interrupts(node, (1, self.guest.evtchn_ppi - 16, _LEVEL_LOW))

    def _mapped(self) -> Iterator[Window]:
        if self.partial is None:
            return
        for top, devices in copied(self.partial):
            for node in top.walk() if devices else ():
                if "xen,reg" in node.props:
                    yield from (Window(r.guest, r.size) for r in host_rows(node) if r.size)

    def _interrupts(self, node: Node, *specifiers: tuple[int, int, int]) -> None:
        node.set_cells("interrupts", *(cell for spec in specifiers for cell in spec))
        node.set_cells("interrupt-parent", self.gic)


def _clock(node: Node, host: Node) -> None:
    raw = host.props.get("clock-frequency", b"")
    if len(raw) >= 4:
        node.props["clock-frequency"] = raw[:4]


def _set_reg(node: Node, *windows: Window) -> None:
    cells = [c for w in windows for value in (w.base, w.size) for c in split_cells(value, 2)]
    node.set_cells("reg", *cells)


def _sequential_size(tree: Tree) -> int:
    """Bytes of the tree while it is written in order: header, reservations, structure, strings.

    A name that is the end of one before it shares its bytes.
    """
    structure, strings = 4, 0
    known: set[str] = set()
    for node in tree.walk():
        structure += 8 + (len(node.name) + 4) // 4 * 4
        for name, raw in node.props.items():
            structure += 12 + (len(raw) + 3) // 4 * 4
            if name not in known:
                known.update(name[at:] for at in range(len(name)))
                strings += len(name) + 1
    return 40 + 16 + structure + strings
