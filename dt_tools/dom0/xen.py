# SPDX-License-Identifier: BSD-2-Clause
"""dom0's tree as Xen of a given version makes it from the host's.

Xen copies the host's tree node by node: it leaves out what it keeps for itself, makes the nodes
of what it emulates (interrupt controller, timer) at the place of the host's, and adds hypervisor,
psci, cpus and memory at the end. The same is done here, from facts about the versions in
`dt_tools.dom0.versions`; what no host tree tells is an option.

Limits: 64-bit dom0; no shared memory nodes, no vPCI, no SCMI firmware agents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Notice
from dt_tools.dom0 import layout
from dt_tools.dom0.boot import Boot, find_console, read_boot, resolve_console
from dt_tools.dom0.given import NO_GIVEN, PASSTHROUGH, Given, marked_nodes
from dt_tools.dom0.made import (
    add_cpus,
    add_gic,
    add_hypervisor,
    add_memory,
    add_psci,
    add_timer,
    add_vsmmus,
    begin,
)
from dt_tools.dom0.own import Dom0Tree
from dt_tools.dom0.placed import check_places
from dt_tools.dom0.versions import (
    CPU_BITS,
    GIC_V2,
    GIC_V3,
    IOMMUS,
    ITS,
    NO_OPTIONS,
    SKIPPED,
    SKIPPED_DOMAINS,
    SMMU_V3,
    TIMERS,
    XenOptions,
    XenVersion,
    blacklist,
    is_one,
)
from dt_tools.errors import Refusal
from dt_tools.extended import MIB, align_up
from dt_tools.profiles import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dt_tools.platform import Platform
    from dt_tools.tree import Node

_UNBOUND = ("iommus", "iommu-map", "iommu-map-mask")
_FROM_CHOSEN = (
    "xen,xen-bootargs", "linux,initrd-start", "linux,initrd-end", "stdout-path",
    "linux,uefi-system-table", "linux,uefi-mmap-start", "linux,uefi-mmap-size",
    "linux,uefi-mmap-desc-size", "linux,uefi-mmap-desc-ver", "xen,dom0-bootargs", "bootargs",
)  # fmt: skip
_DEFAULT_MEMORY = 512 * MIB
_MAX_BITS = 48
_GRANT_FRAMES = 64


def build_xen_dom0(
    platform: Platform,
    version: XenVersion,
    options: XenOptions = NO_OPTIONS,
    given: Given = NO_GIVEN,
) -> Dom0Tree:
    """The tree that Xen of that version hands to dom0.

    Args:
        platform: the host; its tree is not changed.
        version: one of `dt_tools.dom0.VERSIONS`.
        options: what the tree does not tell.
        given: devices that are marked in the tree that Xen reads.

    Raises:
        UserError: `options.dtuart` names no node of the host's.
        Refusal: DT601 more vCPUs than the GIC serves; DT612 the tree lacks what Xen needs and no
            option gives it; DT613 Xen could not build the tree, or would build a wrong one; DT614
            Xen would make two nodes of one name; DT615 dom0's memory does not fit, or what the
            options say of it cannot be so.
    """
    return _Xen(platform, version, options, given).build()


class _Xen:
    def __init__(
        self, platform: Platform, version: XenVersion, options: XenOptions, given: Given
    ) -> None:
        self.platform, self.version, self.options = platform, version, options
        self.given = {node.path for node in marked_nodes(platform.tree, given.paths)}
        self.tree = Dom0Tree()
        self.notices: list[Notice] = []
        self.boot: Boot = read_boot(platform.tree)
        self.drivers = version.drivers if options.drivers is None else options.drivers
        self.iommus = frozenset(n for d in self.drivers for n in IOMMUS.get(d, ()))
        self.skipped = frozenset((*SKIPPED, *(SKIPPED_DOMAINS if version.skips_domains else ())))
        self.blacklist = blacklist(platform.tree.root)
        self.phandles = platform.tree.phandles()
        self.uart = self._uart()
        self.gic = self._gic()
        self.timer = next((n for n in platform.tree.walk() if is_one(n, TIMERS)), None)
        self.viommu = self._viommu()
        self.has_timer = self.has_vsmmus = False
        self.vcpus = self._vcpus()

    def build(self) -> Dom0Tree:
        root = self.platform.tree.root
        self._properties(root, self.tree.root)
        stack = [(child, self.tree.root) for child in reversed(root.children.values())]
        while stack:
            source, parent = stack.pop()
            target = self._handle(source, parent)
            if target is not None:
                stack += [(child, target) for child in reversed(source.children.values())]
        self._append()
        self._physical()
        table, iommu = self.grant_table, self._iommu_on()
        check_places(self.platform, self.options, self.memory, table, iommu)
        self.tree.notices = tuple(self.notices)
        return self.tree

    def notice(self, rule: str, path: str, text: str) -> None:
        self.notices.append(Notice(rule, path, text))

    def _physical(self) -> None:
        """An Arm SMMU that this build has no driver for is dom0's; say so if it was assumed."""
        known = [name for names in IOMMUS.values() for name in names]
        for smmu in self.platform.smmus if self.options.drivers is None else ():
            if (
                smmu.status == "okay"
                and is_one(smmu.node, known)
                and not is_one(smmu.node, self.iommus)
            ):
                built = ", ".join(sorted(self.drivers))
                text = f"assumed: a Xen with drivers {built} only, so dom0 gets this IOMMU itself"
                self.notice("DT616", smmu.path, text)

    # The host's nodes.

    def _handle(self, source: Node, parent: Node) -> Node | None:
        """The node's copy, or what is made in its place; None when its children are not copied."""
        if self._is_skipped(source):
            return None
        if is_one(source, (*GIC_V2, *GIC_V3)):
            if source is self.gic:
                add_gic(self, source, parent)
        elif is_one(source, TIMERS):
            self._timer(source, parent)
        elif source is self.uart:
            self.notice("DT617", source.path, "is Xen's console, not dom0's")
        elif is_one(source, self.iommus):
            if self.viommu and not self.has_vsmmus:
                self.has_vsmmus = True
                add_vsmmus(self, parent)
        elif not self._uses_ppi(source):
            target = begin(parent, source.name, source.path)
            self._properties(source, target)
            return target
        return None

    def _is_skipped(self, node: Node) -> bool:
        return (
            is_one(node, self.skipped)
            or is_one(node, self.blacklist)
            or node.path.lower() == "/cpus"
            or (node.string("device_type") or "").lower() == "memory"
        )

    def _uses_ppi(self, node: Node) -> bool:
        """Whether an interrupt's cells read as a PPI of the GIC, whoever takes them."""
        found = [
            i for i in self.platform.interrupts_of(node)
            if len(i.specifier) > 2 and i.specifier[0] and i.specifier[1] < 16
        ]  # fmt: skip
        if found:
            self.notice(
                "DT617", node.path, "has a private interrupt (PPI), which Xen does not give"
            )
        return bool(found)

    def _timer(self, source: Node, parent: Node) -> None:
        if self.has_timer:
            reason = "is a second timer; Xen would make two nodes called timer"
            raise Refusal("DT614", source.path, reason, "take one of them out of the host tree")
        self.has_timer = True
        assert self.timer is not None, "this is one"
        add_timer(self, self.timer, parent)

    def _properties(self, source: Node, target: Node) -> None:
        """Copy them; the status goes to the end, /chosen gets dom0's command line."""
        unbound = self._unbound(source)
        is_chosen = source.path.lower() == "/chosen"
        drop = {PASSTHROUGH, "status", *unbound, *(_FROM_CHOSEN if is_chosen else ())}
        if is_chosen and self.version.skips_heap:
            drop.add("xen,static-heap")
        target.props.update({k: v for k, v in source.props.items() if k not in drop})
        if PASSTHROUGH in source.props or source.path in self.given:
            target.set_strings("status", "disabled")
        elif "status" in source.props:
            target.props["status"] = source.props["status"]
        if is_chosen:
            self._chosen(source, target)

    def _unbound(self, node: Node) -> tuple[str, ...]:
        """The properties that a master loses; Xen looks at the first entry alone."""
        if not self.version.unbinds:
            return ()
        cells, rows = node.cells("iommus"), node.cells("iommu-map") or ()
        phandle = cells[0] if cells else rows[1] if len(rows) > 1 else None
        iommu = None if phandle is None else self.phandles.get(phandle)
        if iommu is None and cells and len(rows) > 1:
            iommu = self.phandles.get(rows[1])
        return _UNBOUND if iommu is not None and is_one(iommu, self.iommus) else ()

    def _chosen(self, source: Node, target: Node) -> None:
        kernel = self.boot.module("kernel")
        args = self.options.bootargs
        if args is None:
            args = source.string("xen,dom0-bootargs")
        if args is None:
            args = (kernel.cmdline if kernel is not None else "") or source.string("bootargs")
        if args is not None:
            target.set_strings("bootargs", args)
        initrd = self._initrd()
        if initrd:
            for name, value in zip(("start", "end"), initrd, strict=True):
                target.set_cells(f"linux,initrd-{name}", value >> 32, value & 0xFFFFFFFF)

    def _initrd(self) -> tuple[int, int] | tuple[()]:
        if self.options.initrd is not None:
            return self.options.initrd
        module, kernel = self.boot.module("ramdisk"), self.boot.module("kernel")
        if module is None or not module.size:
            return ()
        size = 0 if kernel is None else kernel.size
        start = layout.place_initrd(self.memory[0], size, module.size)
        if start is None:
            reason = f"the ramdisk of {module.size} bytes does not fit dom0's first bank of RAM"
            raise Refusal("DT615", "/chosen", reason, "give dom0 more memory")
        return start, start + module.size

    # What Xen adds, and what it takes from where.

    def _append(self) -> None:
        root = self.tree.root
        add_hypervisor(self, root)
        add_psci(root)
        add_cpus(self, root)
        add_memory(root, self.memory)
        reserved = layout.reserved_memory(self.platform)
        if reserved:
            add_memory(root, reserved)

    def _gic(self) -> Node:
        known = (*GIC_V2, *GIC_V3)
        found = (n for n in self.platform.tree.walk() if is_one(n, known) and n.status == "okay")
        gic = next(found, None)
        if gic is None:
            reason = f"Xen {self.version.release} has no driver for an interrupt controller of it"
            raise Refusal("DT613", "/", reason, f"it drives {', '.join(known)}")
        return gic

    @property
    def is_v3(self) -> bool:
        """Whether the GIC is a GICv3."""
        return is_one(self.gic, GIC_V3)

    @property
    def has_its(self) -> bool:
        """Whether Xen gives dom0 the ITSs."""
        return ITS in self.drivers

    def _uart(self) -> Node | None:
        """The UART of Xen's console, when it has a driver for it."""
        if self.options.dtuart is not None:
            node = resolve_console(self.platform, self.options.dtuart)
        else:
            node = find_console(self.platform.tree, self.boot)
        if node is not None and (not is_one(node, self.version.uarts) or node.status != "okay"):
            self.notice("DT617", node.path, "is named as Xen's console, but Xen does not drive it")
            return None
        return node

    def _viommu(self) -> bool:
        wanted = self.options.viommu
        if wanted is None:
            wanted = self.version.viommu and self.boot.is_on("dom0_viommu")
        if wanted and not self.version.viommu:
            reason = f"Xen {self.version.release} has no vSMMU"
            raise Refusal("DT613", "/", reason, "leave the profile out for dom0's tree with vSMMUs")
        return wanted and SMMU_V3 in self.drivers

    def _vcpus(self) -> int:
        count = self.options.vcpus or self.boot.number("dom0_max_vcpus") or self._pcpus()
        limit = 128 if self.is_v3 else 8
        if count > limit:
            reason = f"{count} vCPUs for dom0, the GIC that it sees serves {limit} at most"
            raise Refusal("DT601", "/cpus", reason, "give dom0 fewer (--dom0-vcpus)")
        return count

    def _pcpus(self) -> int:
        return max(1, sum(1 for _ in self.cpus()))

    def cpus(self) -> Iterable[Node]:
        """The host's CPU nodes."""
        node = self.platform.tree.root.children.get("cpus")
        children = () if node is None else tuple(node.children.values())
        return (child for child in children if child.string("device_type") == "cpu")

    @property
    def memory(self) -> tuple[Window, ...]:
        """dom0's RAM banks."""
        if self._memory is None:
            self._memory = self._place()
        return self._memory

    _memory: tuple[Window, ...] | None = None

    def _place(self) -> tuple[Window, ...]:
        if self.options.memory is not None:
            return tuple(sorted(self.options.memory, key=lambda window: window.base))
        size = self.boot.size("dom0_mem") or _DEFAULT_MEMORY
        busy = [Window(self.grant_table.base, align_up(self.grant_table.size, 2 * MIB))]
        busy += [Window(m.start, m.size) for m in self.boot.modules]
        busy += [Window(base, length) for base, length in self.platform.tree.memreserve]
        busy += layout.reserved_memory(self.platform)
        ram = layout.host_ram(self.platform)
        if not ram:
            raise self._no_memory()
        free = layout.subtract(ram, [*busy, layout.boot_heap(ram)])
        banks = layout.place_memory(size, free, self.boot.is_off("bootscrub"))
        where = ", ".join(f"{bank.base:#x}+{bank.size:#x}" for bank in banks)
        self.notice("DT616", "/memory", f"assumed: dom0's {size >> 20} MiB of RAM at {where}")
        return banks

    @property
    def grant_table(self) -> Window:
        """Where dom0's grant table goes: the text of Xen, which dom0 never sees."""
        if self.options.grant_table is not None:
            return self.options.grant_table
        ram = layout.host_ram(self.platform)
        if not ram:
            raise self._no_memory()
        frames = self.boot.number("gnttab_max_frames") or _GRANT_FRAMES
        return Window(ram[0].base + 2 * MIB, frames << 12)

    def _no_memory(self) -> Refusal:
        fix = "take the tree that Xen boots with, or give --dom0-memory and --grant-table"
        return Refusal("DT612", "/memory", "the host tree has no memory node", fix)

    def extended(self) -> tuple[Window, ...]:
        """The extended regions of dom0."""
        if self.options.regions is not None:
            return self.options.regions
        table = self.grant_table
        if self.options.grant_table is None:
            text = f"assumed: Xen and the grant table at {table.base:#x}"
            if any(bank.overlaps(table) for bank in self.options.memory or ()):
                text += ", which cannot be in a bank of --dom0-memory: say where (--grant-table)"
            self.notice("DT616", "/hypervisor", text)
        if self.boot.is_off("ext_regions"):
            return ()
        if not self._iommu_on():
            ram = layout.host_ram(self.platform)
            used = [*self.memory, *layout.reserved_memory(self.platform), table]
            if self.version.reserved_memreserve:
                used += [Window(base, size) for base, size in self.platform.tree.memreserve]
            return layout.regions(layout.subtract(ram, used), self.version.short_regions)
        holes, lost = layout.host_holes(self.platform, self._bits())
        if lost:
            more = f" (and {len(lost) - 1} others)" if len(lost) > 1 else ""
            text = "does not translate to CPU addresses; Xen may give no extended regions"
            self.notice("DT616", lost[0], f"its reg{more} {text}")
        return layout.regions(holes, self.version.short_regions)

    def _iommu_on(self) -> bool:
        used = (
            n for n in self.platform.tree.walk() if is_one(n, self.iommus) and n.status == "okay"
        )
        return not self.boot.is_off("iommu") and next(used, None) is not None

    def _bits(self) -> int:
        if self.options.ipa_bits is not None:
            return self.options.ipa_bits
        names = {name for cpu in self.cpus() for name in cpu.strings("compatible") or ()}
        known = [CPU_BITS[name] for name in names if name in CPU_BITS]
        bits = min([_MAX_BITS, *known]) if known else 40
        self.notice("DT616", "/hypervisor", f"assumed: {bits} bits of guest physical address")
        return bits
