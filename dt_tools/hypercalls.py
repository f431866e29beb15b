# SPDX-License-Identifier: BSD-2-Clause
"""The hypervisor calls by which a toolstack gives a guest its devices, in libxl's order.

Names and members are those of Xen's public headers (domctl.h, 4.20) and of the posted vSMMUv3
series. The series has the hypervisor number the streams: XEN_DOMCTL_viommu_alloc_vsid_range asks
for the first free vMasterIDs for a range of StreamIDs, and cannot say of which SMMU. Each such call
here says whether it would give the ids that the guest's tree has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dt_tools.extended import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dt_tools.binding import Binding, Bindings
    from dt_tools.guest import GuestTree
    from xl_configs import GuestConfig

SCHEMA = "vsmmu.hypercalls/1"
# XEN_DOMCTL_viommu_alloc_vsid_range: nr_sids has 16 bits.
_MOST_SIDS = 0xFFFF
_VIOMMU = "XEN_DOMCTL_CONFIG_VIOMMU_"


def hypercalls(config: GuestConfig, guest: GuestTree) -> dict[str, Any]:
    """The calls as JSON values: numbers of the machine as hex strings, counts as numbers."""
    calls = [
        _createdomain(config, guest),
        *_vsid_ranges(guest.bindings),
        *({"hypercall": "XEN_DOMCTL_bind_pt_irq", "irq_type": "PT_IRQ_TYPE_SPI", "spi": irq}
          for irq in guest.irqs),
        *_iomem(guest),
        *({"hypercall": "XEN_DOMCTL_assign_device", "dev": "XEN_DOMCTL_DEV_DT", "path": path}
          for path in config.dtdev),
        *({"hypercall": "XEN_DOMCTL_assign_device", "dev": "XEN_DOMCTL_DEV_PCI",
           "machine_sbdf": f"{one.domain << 16 | one.bus << 8 | one.dev << 3 | one.func:#x}"}
          for one in config.pci),
    ]  # fmt: skip
    return {"schema": SCHEMA, "guest": config.name, "calls": calls}


def _createdomain(config: GuestConfig, guest: GuestTree) -> dict[str, Any]:
    flags = ["XEN_DOMCTL_CDF_hvm", "XEN_DOMCTL_CDF_hap"]
    assigned = bool(config.dtdev or config.pci)
    mode = config.passthrough
    if mode not in ("default", "disabled") or (mode == "default" and assigned):
        flags.append("XEN_DOMCTL_CDF_iommu")
    arch: dict[str, Any] = {
        "gic_version": f"XEN_DOMCTL_CONFIG_GIC_V{guest.gic_version}",
        "nr_spis": guest.nr_spis,
        "tee_type": f"XEN_DOMCTL_CONFIG_TEE_{config.tee.upper()}",
        "viommu_type": f"{_VIOMMU}{config.viommu.upper()}",
    }
    return {
        "hypercall": "XEN_DOMCTL_createdomain",
        "flags": flags,
        "max_vcpus": max(config.vcpus, config.maxvcpus),
        "arch": arch,
    }


def _iomem(guest: GuestTree) -> Iterator[dict[str, Any]]:
    for reg in guest.iomem:
        frames = {"first_mfn": f"{reg.host // PAGE:#x}", "nr_mfns": reg.size // PAGE}
        yield {"hypercall": "XEN_DOMCTL_iomem_permission", **frames, "allow_access": 1}
        yield {
            "hypercall": "XEN_DOMCTL_memory_mapping",
            "first_gfn": f"{reg.guest // PAGE:#x}",
            **frames,
            "add_mapping": 1,
        }


def _vsid_ranges(bindings: Bindings) -> Iterator[dict[str, Any]]:
    """One call for each run of ids; `expressible`: the series' call gives just these ids.

    It does when the ids are the first free ones in order, the guest has one vSMMU, and no other
    SMMU of the guest has one of the StreamIDs.
    """
    free = 0
    smmus_of: dict[int, set[str]] = {}
    for entry in bindings.entries:
        smmus_of.setdefault(entry.pmaster_id, set()).add(entry.smmu)
    for run in _runs(bindings.entries):
        first, last = run[0], run[-1]
        alone = all(len(smmus_of[entry.pmaster_id]) == 1 for entry in run)
        call: dict[str, Any] = {
            "hypercall": "XEN_DOMCTL_viommu_alloc_vsid_range",
            "first_psid": f"{first.pmaster_id:#x}",
            "nr_sids": len(run),
            "first_vsid": first.vmaster_id,
            "smmu": first.smmu,
            "smmu_base": f"{first.smmu_base:#x}",
            "expressible": alone and first.vmaster_id == free and not bindings.viommus,
        }
        if bindings.viommus:
            call["viommu"] = first.viommu
        free = last.vmaster_id + 1
        yield call


def _runs(entries: tuple[Binding, ...]) -> Iterator[list[Binding]]:
    """Consecutive vMasterIDs for consecutive StreamIDs of one SMMU."""
    run: list[Binding] = []
    for entry in entries:
        after = run and (
            entry.smmu == run[-1].smmu
            and entry.pmaster_id == run[-1].pmaster_id + 1
            and (entry.viommu, entry.vmaster_id) == (run[-1].viommu, run[-1].vmaster_id + 1)
        )
        if run and (not after or len(run) == _MOST_SIDS):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run
