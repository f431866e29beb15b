# SPDX-License-Identifier: BSD-2-Clause
"""The nodes that Xen makes itself for dom0, property by property in Xen's order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dt_tools.dom0.versions import XenOptions, XenVersion
from dt_tools.errors import Refusal
from dt_tools.platform import SMMU_V3
from dt_tools.tree import Cells, Node, bus_cells, join_cells, split_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dt_tools.platform import Interrupt, Platform
    from dt_tools.profiles import Window

_ALL_CPUS, _LEVEL_HIGH, _LEVEL_LOW = 0xF00, 4, 8
_TIMER_NAMES = ("sec-phys", "phys", "virt")
_GICR_SIZE = 0x2_0000
_QEMU = "linux,dummy-virt"
# The GICv2m frame of QEMU's virt board says so in its MSI_TYPER.
_QEMU_V2M = (80, 64)
_NAMED = "take the one of the host tree away, or rename it"


class Maker(Protocol):
    """What the nodes are made from."""

    platform: Platform
    version: XenVersion
    options: XenOptions
    gic: Node
    timer: Node | None
    vcpus: int

    @property
    def is_v3(self) -> bool:
        """Whether the GIC is a GICv3."""
        ...

    @property
    def has_its(self) -> bool:
        """Whether Xen gives dom0 the ITSs."""
        ...

    @property
    def grant_table(self) -> Window:
        """Where dom0's grant table goes."""
        ...

    def cpus(self) -> Iterable[Node]:
        """The host's CPU nodes."""
        ...

    def extended(self) -> tuple[Window, ...]:
        """dom0's extended regions."""
        ...

    def notice(self, rule: str, path: str, text: str) -> None:
        """Tell the user something."""
        ...


def begin(parent: Node, name: str, path: str) -> Node:
    """A new child; `path` is the host's node that it is made for.

    Raises:
        Refusal: DT614, the parent has a child of that name.
    """
    if name in parent.children:
        reason = f"Xen would make a second {name} in {parent.path}"
        raise Refusal("DT614", path, reason, _NAMED)
    return parent.add(name)


def _raw(xen: Maker, node: Node, name: str, entries: int) -> bytes:
    """The first `entries` of the node's reg, as they stand in the host's tree."""
    counts = bus_cells(node.parent) if node.parent is not None else None
    size = 4 * entries * sum(counts or (0, 0))
    if counts is None or len(node.props.get(name, b"")) < size:
        reason = f"its {name} has less than {entries} entries"
        raise Refusal("DT613", node.path, reason, f"complete {name} in the host tree")
    return node.props[name][:size]


def _interrupt(number: int, trigger: int) -> Cells:
    """An interrupt (GIC id) as three cells, for all CPUs."""
    kind, first = (1, 16) if number < 32 else (0, 32)
    return kind, number - first, _ALL_CPUS | trigger


def _set_interrupts(xen: Maker, node: Node, *cells: Cells) -> None:
    node.set_cells("interrupts", *(cell for one in cells for cell in one))
    node.set_cells("interrupt-parent", xen.gic.phandle or 0)


def add_gic(xen: Maker, source: Node, parent: Node) -> None:
    """The interrupt controller that dom0 sees, and its MSI frames."""
    name = source.name if xen.version.gic_name else "interrupt-controller"
    node = begin(parent, name, source.path)
    if source.phandle:
        node.set_cells("phandle", source.phandle)
    for prop in ("#address-cells", "#size-cells"):
        if prop in source.props:
            node.props[prop] = source.props[prop]
    node.set_cells("#interrupt-cells", 3)
    node.set_empty("interrupt-controller")
    node.props["compatible"] = source.props["compatible"]
    if xen.is_v3:
        count = _redistributors(xen, source)
        node.set_cells("#redistributor-regions", count)
        node.props["reg"] = _raw(xen, source, "reg", count + 1)
        frames = [n for n in source.children.values() if n.is_compatible("arm,gic-v3-its")]
        frames = frames if xen.has_its else []
    else:
        node.props["reg"] = _raw(xen, source, "reg", 2)
        frames = [n for n in source.children.values() if n.is_compatible("arm,gic-v2m-frame")]
    if frames:
        _add_frames(xen, source, node, frames)


def _redistributors(xen: Maker, gic: Node) -> int:
    """How many of the host's redistributor regions dom0's vCPUs need."""
    counts = bus_cells(gic.parent) if gic.parent is not None else None
    regions = gic.u32("#redistributor-regions") or 1
    cells = gic.cells("reg") or ()
    if counts is None or not sum(counts) or len(cells) < sum(counts) * (regions + 1):
        reason = f"its reg has less than {regions + 1} entries"
        raise Refusal("DT613", gic.path, reason, "complete reg in the host tree")
    served = 0
    for at in range(1, regions + 1):
        row = cells[at * sum(counts) :][: sum(counts)]
        served += join_cells(row[counts[0] :]) // _GICR_SIZE
        if served >= xen.vcpus:
            return at
    return regions


def _add_frames(xen: Maker, gic: Node, node: Node, frames: Sequence[Node]) -> None:
    """ITSs or GICv2m frames; Xen names each without its unit address."""
    if "ranges" not in gic.props:
        raise Refusal("DT613", gic.path, "has MSI frames and no ranges", "give it ranges")
    node.props["ranges"] = gic.props["ranges"]
    said = iter(xen.options.v2m_spis)
    for frame in frames:
        bare = frame.name.partition("@")[0]
        if bare in node.children:
            xen.notice(
                "DT614", frame.path, f"Xen calls this one {bare} too; it keeps its name here"
            )
        child = begin(node, bare if bare not in node.children else frame.name, frame.path)
        child.set_strings("compatible", "arm,gic-v3-its" if xen.is_v3 else "arm,gic-v2m-frame")
        child.set_empty("msi-controller")
        if xen.is_v3 and xen.version.msi_cells:
            child.set_cells("#msi-cells", 1)
        if frame.phandle:
            child.set_cells("phandle", frame.phandle)
        child.props["reg"] = frame.props.get("reg", b"")
        if not xen.is_v3:
            first, count = _v2m_spis(xen, frame, said)
            child.set_cells("arm,msi-base-spi", first)
            child.set_cells("arm,msi-num-spis", count)


def _v2m_spis(xen: Maker, frame: Node, said: Iterator[tuple[int, int]]) -> tuple[int, int]:
    """First SPI (GIC id) and number of SPIs of a frame."""
    first, count = frame.u32("arm,msi-base-spi"), frame.u32("arm,msi-num-spis")
    if first is not None and count is not None:
        return first, count
    given = next(said, None)
    if given is None and xen.platform.tree.root.is_compatible(_QEMU):
        given = _QEMU_V2M
    if given is None:
        reason = "which SPIs are its own is in a register, not in the host tree"
        raise Refusal("DT612", frame.path, reason, "say which (--v2m-spis FIRST:COUNT)")
    return given


def _timer_ppis(xen: Maker) -> tuple[int, int, int]:
    """The physical secure, physical and virtual timer's PPIs (GIC ids)."""
    found: list[Interrupt] = []
    timer = xen.timer
    if timer is not None:
        found = list(xen.platform.interrupts_of(timer))
        names = timer.strings("interrupt-names") or ()
        if xen.version.timer_names and names:
            by_name = dict(zip(names, found, strict=False))
            found = [by_name[name] for name in _TIMER_NAMES if name in by_name]
    numbers = [i.number for i in found[:3] if i.kind == "PPI"]
    if len(numbers) < 3:
        path = "/" if timer is None else timer.path
        reason = "Xen needs the PPIs of the secure, the non-secure and the virtual timer"
        raise Refusal("DT613", path, reason, "take the tree that Xen boots with")
    return numbers[0], numbers[1], numbers[2]


def add_timer(xen: Maker, source: Node, parent: Node) -> None:
    """The architected timer."""
    node = begin(parent, "timer", source.path)
    node.set_strings("compatible", "arm,armv8-timer")
    _set_interrupts(xen, node, *(_interrupt(ppi, _LEVEL_LOW) for ppi in _timer_ppis(xen)))
    frequency = source.u32("clock-frequency")
    if frequency is not None:
        node.set_cells("clock-frequency", frequency)


def add_vsmmus(xen: Maker, parent: Node) -> None:
    """A vSMMU for each SMMUv3 that Xen drives, all at the place of the first IOMMU."""
    for smmu in xen.platform.smmus:
        if smmu.kind != SMMU_V3 or smmu.status != "okay" or smmu.base is None:
            continue
        if smmu.node.parent is None or smmu.node.parent.path != parent.path:
            xen.notice("DT613", smmu.path, f"Xen puts its vSMMU below {parent.path}")
        if not smmu.interrupts or smmu.interrupts[0].kind != "SPI":
            reason = "its first interrupt is not an SPI of the GIC; Xen would give dom0 another's"
            raise Refusal("DT613", smmu.path, reason, "leave the profile out, or the vSMMUs")
        node = begin(parent, f"iommu@{smmu.base:x}", smmu.path)
        node.props["compatible"] = smmu.node.props["compatible"]
        if smmu.phandle:
            node.set_cells("phandle", smmu.phandle)
        for prop in ("reg", "#iommu-cells"):
            if prop not in smmu.node.props:
                raise Refusal("DT613", smmu.path, f"has no {prop}", "add it to the host tree")
            node.props[prop] = smmu.node.props[prop]
        node.set_strings("interrupt-names", "combined")
        _set_interrupts(xen, node, _interrupt(smmu.interrupts[0].number, _LEVEL_HIGH))
        if "dma-coherent" in smmu.node.props:
            node.set_empty("dma-coherent")


def add_hypervisor(xen: Maker, root: Node) -> None:
    """What says that this is Xen: grant table, extended regions, event channel interrupt."""
    node = begin(root, "hypervisor", "/hypervisor")
    node.set_strings("compatible", f"xen,xen-{xen.version.release}", "xen,xen")
    _set_reg(node, (xen.grant_table, *xen.extended()))
    taken = _timer_ppis(xen)
    ppi = next(number for number in range(16, 32) if number not in taken)
    _set_interrupts(xen, node, _interrupt(ppi, _LEVEL_LOW))


def add_psci(root: Node) -> None:
    """PSCI, which dom0 calls by hvc."""
    node = begin(root, "psci", "/psci")
    node.set_strings("compatible", "arm,psci-1.0", "arm,psci-0.2", "arm,psci")
    node.set_strings("method", "hvc")
    node.set_cells("cpu_off", 1)
    node.set_cells("cpu_on", 2)


def add_cpus(xen: Maker, root: Node) -> None:
    """dom0's vCPUs, 16 in a cluster, all like the host's first CPU."""
    first = next(iter(xen.cpus()), None)
    if first is None or "compatible" not in first.props:
        reason = "has no node of a CPU with a compatible"
        raise Refusal("DT613", "/cpus", reason, "take the tree that Xen boots with")
    node = begin(root, "cpus", "/cpus")
    node.set_cells("#address-cells", 1)
    node.set_cells("#size-cells", 0)
    frequency = first.u32("clock-frequency")
    for vcpu in range(xen.vcpus):
        affinity = vcpu % 16 | vcpu // 16 << 8
        cpu = node.add(f"cpu@{affinity:x}")
        cpu.props["compatible"] = first.props["compatible"]
        cpu.set_strings("device_type", "cpu")
        cpu.set_cells("reg", affinity)
        if frequency is not None:
            cpu.set_cells("clock-frequency", frequency)
        cpu.set_strings("enable-method", "psci")


def add_memory(root: Node, banks: Sequence[Window]) -> None:
    """RAM, or the ranges of reserved memory, in one node."""
    node = begin(root, f"memory@{banks[0].base:x}", "/memory")
    node.set_strings("device_type", "memory")
    _set_reg(node, banks)


def _set_reg(node: Node, windows: Iterable[Window]) -> None:
    """`reg` in the root's cells; node must be the root's child."""
    assert node.parent is not None
    counts = bus_cells(node.parent)
    if counts is None or not all(0 < count < 3 for count in counts):
        reason = "Xen copes with 1 or 2 address and size cells only"
        raise Refusal("DT613", "/", reason, "correct #address-cells and #size-cells")
    cells: list[int] = []
    try:
        for window in windows:
            cells += split_cells(window.base, counts[0]) + split_cells(window.size, counts[1])
    except ValueError:
        reason = f"{window.base:#x}+{window.size:#x} does not fit the root's cells"
        raise Refusal("DT613", node.path, reason, "give the root 2 cells each") from None
    node.set_cells("reg", *cells)
