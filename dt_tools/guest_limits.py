# SPDX-License-Identifier: BSD-2-Clause
"""What Xen and libxl refuse of a guest whatever its devices: vCPUs, GIC version, SPIs, modes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.errors import Refusal
from dt_tools.extended import MAX_WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dt_tools.platform import Platform
    from dt_tools.profiles import GuestProfile
    from xl_configs import GuestConfig

# A vGICv2 addresses eight CPUs.
_GICV2_MAX_VCPUS = 8
# GIC interrupt ids of SPIs start here; Xen's vGIC has 960 of them.
SPI_FIRST, MAX_SPIS = 32, 960
# A GICv3 that can run GICv2 guests has GICC, GICH and GICV behind its distributor and
# redistributors (Devicetree binding arm,gic-v3).
_GICV2_FRAMES = 3


def gic_version(config: GuestConfig, platform: Platform | None) -> int:
    """2 or 3; without a word in the configuration the host's, without a host 3."""
    if config.gic_version in ("v2", "v3"):
        return int(config.gic_version[1])
    gic = None if platform is None else platform.gic
    return 3 if gic is None else gic.version


def check_config(config: GuestConfig, guest: GuestProfile, platform: Platform | None) -> None:
    """What no guest on Arm can have.

    Raises:
        Refusal: DT212, DT601, DT602, DT604, DT606, DT607 or DT609.
    """
    version = gic_version(config, platform)
    if platform is not None:
        _check_gic(version, platform)
    most = guest.max_vcpus if version == 3 else _GICV2_MAX_VCPUS
    if max(config.vcpus, config.maxvcpus) > most:
        reason = f"{config.maxvcpus} vCPUs, a GICv{version} guest has {most} at most"
        raise Refusal("DT601", "/cpus", reason, "lower vcpus and maxvcpus")
    if config.maxmem_mib is not None and config.maxmem_mib > config.memory_mib:
        # libxl fills maxmem and lets the domain have memory: Arm populates all of it at once.
        reason = (
            f"maxmem = {config.maxmem_mib} is more than memory = {config.memory_mib}: "
            "the domain runs out of memory while it is built"
        )
        raise Refusal("DT602", "/memory", reason, "leave maxmem out, or lower it")
    if len(config.iomem) > MAX_WINDOWS:
        reason = f"{len(config.iomem)} iomem entries, more than {MAX_WINDOWS}"
        raise Refusal("DT212", "/", reason, "join adjacent ranges")
    _check_passthrough(config, platform)
    if config.acpi:
        reason = "acpi = 1: libxl's tree for it has /chosen/rng-seed behind a child node"
        raise Refusal("DT606", "/chosen", reason, "leave acpi out; the guest has a device tree")
    _check_not_for_arm(config)


def _check_not_for_arm(config: GuestConfig) -> None:
    """What libxl or Xen's createdomain refuse on Arm whatever the host is."""
    others = dict(config.others)
    refused = {
        'type = "hvm"': config.type == "hvm",
        "altp2m": str(others.get("altp2m", "0")) not in ("0", "disabled"),
        "nestedhvm": str(others.get("nestedhvm", "0")) != "0",
        "hap = 0": config.hap is False,
        "oos = 0": str(others.get("oos", "1")) == "0",
        "vmtrace_buf_kb": str(others.get("vmtrace_buf_kb", "0")) != "0",
        "max_grant_version other than 1": config.max_grant_version not in (None, 1),
        "max_grant_frames = 0": config.max_grant_frames == 0,
    }
    for what, given in refused.items():
        if given:
            reason = f"{what} is not for Arm: Xen refuses the domain"
            raise Refusal("DT609", "/", reason, "leave it out")


def _check_passthrough(config: GuestConfig, platform: Platform | None) -> None:
    mode = config.passthrough
    if mode == "sync_pt":
        reason = 'passthrough = "sync_pt" is not supported on Arm'
        raise Refusal("DT604", "/", reason, 'use "share_pt" or leave it out')
    if mode == "disabled" and (config.dtdev or config.pci):
        path = config.dtdev[0] if config.dtdev else "/"
        key = "dtdev" if config.dtdev else "pci"
        reason = f'passthrough = "disabled" with devices in {key}'
        raise Refusal("DT604", path, reason, "take one of the two out")
    enabled = platform is None or any(smmu.status == "okay" for smmu in platform.smmus)
    if mode in ("enabled", "share_pt") and not enabled:
        reason = f'passthrough = "{mode}", and the host tree has no SMMU that is enabled'
        raise Refusal("DT604", "/", reason, "leave it out")


def _check_gic(version: int, platform: Platform) -> None:
    """Whether the host's GIC can run a guest with that version."""
    gic = platform.gic
    if gic is None or gic.version == version:
        return
    node = platform.tree.node(gic.path)
    frames = len(platform.reg_of(node) or ()) if node is not None else 0
    regions = 1 if node is None else node.u32("#redistributor-regions") or 1
    if version == 2 and frames >= 1 + regions + _GICV2_FRAMES:
        return
    reason = f"is a GICv{gic.version}, which runs no guest with a GICv{version}"
    raise Refusal("DT607", gic.path, reason, f'use gic_version = "v{gic.version}"')


def check_irqs(irqs: Iterable[int], taken: Mapping[int, str]) -> None:
    """The guest's own devices have fixed SPIs; a physical one of that number cannot come in.

    Raises:
        Refusal: DT303.
    """
    for irq in irqs:
        if not SPI_FIRST <= irq < SPI_FIRST + MAX_SPIS:
            last = SPI_FIRST + MAX_SPIS - 1
            reason = f"irq {irq} is not an SPI ({SPI_FIRST} to {last})"
            raise Refusal("DT303", "/", reason, "take it out of irqs")
        if irq in taken:
            reason = f"Physical IRQ {irq} conflicting with {taken[irq]}"
            raise Refusal("DT303", "/", reason, "assign a device with another interrupt")


def check_nr_spis(given: int | None) -> None:
    """Raises Refusal DT305 for more SPIs than a guest can have."""
    if given is not None and given > MAX_SPIS:
        reason = f"nr_spis {given}, a guest has {MAX_SPIS} SPIs at most"
        raise Refusal("DT305", "/", reason, "lower nr_spis")
