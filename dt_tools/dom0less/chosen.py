# SPDX-License-Identifier: BSD-2-Clause
"""A guest's node under /chosen: memory, vCPUs, modules, and the keys that have a form there."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Literal

from dt_tools.binding import Notice
from dt_tools.dom0less.domain import MAX_BOOTARGS
from dt_tools.dom0less.fragment import Fragment
from dt_tools.dom0less.space import gic_version, memory_mib
from dt_tools.errors import Refusal
from dt_tools.extended import PAGE, ram_banks
from dt_tools.tree import split_cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dt_tools.dom0less.xens import Xen
    from dt_tools.platform import Platform
    from dt_tools.profiles import GuestProfile
    from dt_tools.tree import Node
    from xl_configs import GuestConfig

Kind = Literal["kernel", "ramdisk", "device-tree"]
ENHANCED = ("enabled", "no-xenstore", "disabled")
_KIB_PER_MIB = 1024
_MAX_SPIS = 960
_U32_MAX = 0xFFFFFFFF
_MOST_BITS = 48
# Keys with a form here, keys that name what is no matter of Xen's, and keys of which something is
# said apart.
_FORM = frozenset((
    "cmdline", "device_tree", "dtdev", "kernel", "memory_mib", "maxmem_mib", "nr_spis",
    "passthrough", "ramdisk", "vcpus", "viommu", "vuart", "llc_colors", "sve", "max_grant_version",
    "max_grant_frames", "max_maptrack_frames", "shadow_memory_mib",
))  # fmt: skip
_SILENT = frozenset(("name", "type", "uuid", "warnings", "others", "hap"))
_APART = frozenset(("gic_version", "iomem", "irqs", "maxvcpus", "trap_unmapped_accesses"))
# A field of the configuration whose key has another name.
_KEYS = {"memory_mib": "memory", "maxmem_mib": "maxmem", "shadow_memory_mib": "shadow_memory"}


@dataclass(frozen=True, slots=True)
class Module:
    """What a boot loader puts into memory before Xen runs: kind, host address and size in bytes."""

    kind: Kind
    base: int
    size: int


def add_domain(
    chosen: Node,
    name: str,
    config: GuestConfig,
    fragment: Fragment,
    modules: Sequence[Module],
    platform: Platform,
    *,
    xen: Xen,
    guest: GuestProfile,
    enhanced: str | None = None,
) -> tuple[Notice, ...]:
    """Append the node `name` for the guest to `chosen`; returns what its keys cannot say.

    Raises:
        Refusal: DT305, DT602, DT628, DT630, DT634, by the path of the new node.
    """
    node = chosen.add(name)
    notices = list(unsaid(config, fragment, platform, xen, node.path))
    if config.viommu == "smmuv3" and not xen.vsmmu:
        reason = f'viommu = "smmuv3": {xen.name} gives no guest a vSMMU'
        fix = 'set viommu = "none", or choose the profile of a Xen with the vSMMUv3 series'
        raise Refusal("DT630", node.path, reason, fix)
    if config.vuart is None and enhanced in (None, "disabled"):
        text = 'no vuart = "sbsa_uart": the guest has no console at all'
        notices.append(Notice("DT631", node.path, text))
    node.set_strings("compatible", "xen,domain")
    node.set_cells("#address-cells", 2)
    node.set_cells("#size-cells", 2)
    _check_cmdline(node, config)
    ram_banks(memory_mib(config), guest, _MOST_BITS)  # refuses what no guest can have
    node.set_cells("memory", *split_cells(memory_mib(config) * _KIB_PER_MIB, 2))
    node.set_cells("cpus", config.vcpus)
    if config.vuart == "sbsa_uart":
        node.set_empty("vpl011")
    _iommu(node, config, fragment)
    if enhanced is not None:
        node.set_strings("xen,enhanced", enhanced)
    if config.nr_spis is not None:
        nr_spis, notice = _nr_spis(node, config, fragment, guest)
        node.set_cells("nr_spis", nr_spis)
        notices += notice
    _limits(node, config)
    if config.trap_unmapped_accesses is not None and xen.copy_first:
        node.set_cells("trap-unmapped-accesses", int(config.trap_unmapped_accesses))
    for module in modules:
        _module(node, module, config)
    return tuple(notices)


def _iommu(node: Node, config: GuestConfig, fragment: Fragment) -> None:
    contained = set(fragment.paths) - set(fragment.unsafe)
    if contained or config.passthrough in ("enabled", "share_pt"):
        node.set_strings("passthrough", "enabled")
    elif config.passthrough == "disabled":
        node.set_strings("passthrough", "disabled")
    if config.viommu == "smmuv3":
        node.set_strings("viommu", "smmuv3")


def _nr_spis(
    node: Node, config: GuestConfig, fragment: Fragment, guest: GuestProfile
) -> tuple[int, list[Notice]]:
    """The number given, or what the guest needs: Xen takes it as it is and then fails."""
    top = [irq + 1 for irq in fragment.irqs]
    top += [guest.vsmmu_spi + 1] if config.viommu == "smmuv3" else []
    top += [guest.pl011_spi + 1] if config.vuart == "sbsa_uart" else []
    needed, given = max(0, max(top, default=32) - 32), config.nr_spis or 0
    if given > _MAX_SPIS:
        reason = f"nr_spis {given}, a guest has {_MAX_SPIS} SPIs at most"
        raise Refusal("DT305", node.path, reason, "lower nr_spis")
    if given >= needed:
        return given, []
    text = f"nr_spis {given} raised to {needed}, the number the guest's devices need"
    return needed, [Notice("DT305", node.path, text)]


def _limits(node: Node, config: GuestConfig) -> None:
    if config.sve == "hw":
        node.set_empty("sve")
    elif config.sve != "disabled":
        node.set_cells("sve", int(config.sve))
    if config.llc_colors:
        node.set_strings("llc-colors", _runs(config.llc_colors))
    for name, value in (
        ("max_grant_version", config.max_grant_version),
        ("max_grant_frames", config.max_grant_frames),
        ("max_maptrack_frames", config.max_maptrack_frames),
        ("xen,domain-p2m-mem-mb", config.shadow_memory_mib),
    ):
        if value is not None and value > _U32_MAX:
            reason = f"{name} {value} does not fit 32 bits"
            raise Refusal("DT602", node.path, reason, "lower it in the configuration")
        if value is not None:
            node.set_cells(name, value)


def _check_cmdline(node: Node, config: GuestConfig) -> None:
    size = len((config.cmdline or "").encode("utf-8", "surrogateescape"))
    if size > MAX_BOOTARGS:
        reason = f"the kernel's command line has {size} bytes, Xen keeps {MAX_BOOTARGS}"
        raise Refusal("DT628", node.path, reason, "shorten it")


def _runs(colors: Sequence[int]) -> str:
    """Colours as Xen reads them: `0-3,5`."""
    runs: list[list[int]] = []
    for color in colors:
        if runs and color == runs[-1][-1] + 1:
            runs[-1][1:] = [color]
        else:
            runs.append([color])
    return ",".join("-".join(str(end) for end in run) for run in runs)


def _module(node: Node, module: Module, config: GuestConfig) -> None:
    name = f"module@{module.base:x}"
    if name in node.children:
        reason = f"two modules are at {module.base:#x}"
        raise Refusal("DT634", node.path, reason, "choose another address for one of them")
    if module.base + module.size > 1 << 64:
        reason = f"its {module.kind} at {module.base:#x} leaves 64 bits"
        raise Refusal("DT634", node.path, reason, "choose another address")
    child = node.add(name)
    child.set_strings("compatible", f"multiboot,{module.kind}", "multiboot,module")
    child.set_cells("reg", *split_cells(module.base, 2), *split_cells(module.size, 2))
    if module.kind == "kernel" and config.cmdline:
        child.props["bootargs"] = config.cmdline.encode("utf-8", "surrogateescape") + b"\0"


# What a configuration says and no node of a domain can.


def unsaid(
    config: GuestConfig, fragment: Fragment, platform: Platform, xen: Xen, path: str
) -> Iterator[Notice]:
    """DT620 for each key that dom0less has no form for, in the order of the keys."""
    for one in fields(config):
        if one.name in _FORM | _SILENT | _APART:
            continue
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if getattr(config, one.name) != default:
            yield _unsaid(path, _KEYS.get(one.name, one.name))
    for key in dict.fromkeys(key for key, _ in config.others):
        yield _unsaid(path, key)
    if config.maxvcpus > config.vcpus:
        yield _unsaid(path, "maxvcpus", f": the guest has {config.vcpus} vCPUs for good")
    version = gic_version(platform)
    if config.gic_version not in ("default", f"v{version}"):
        yield _unsaid(path, "gic_version", f": the guest has the host's GICv{version}")
    more = sorted(set(config.irqs) - set(fragment.irqs))
    if more:
        numbers = ", ".join(str(irq) for irq in more[:8])
        yield _unsaid(path, "irqs", f" for {numbers}: interrupts come with a device's host node")
    if config.trap_unmapped_accesses is not None and not xen.copy_first:
        yield _unsaid(path, "trap_unmapped_accesses", f" in {xen.name}")
    for entry in config.iomem:
        start, size = entry.start * PAGE, entry.count * PAGE
        if not any(r.host <= start and start + size <= r.host + r.size for r in fragment.iomem):
            text = f" for {entry.start:#x},{entry.count:#x}: no device has all of these pages"
            yield _unsaid(path, "iomem", text)


def _unsaid(path: str, key: str, more: str = "") -> Notice:
    return Notice("DT620", path, f"{key} has no dom0less form{more or ' and is left out'}")
