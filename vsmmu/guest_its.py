# SPDX-License-Identifier: BSD-2-Clause
"""A guest's virtual ITS: what its tree says of it, and the wiring behind that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from dt_tools.errors import Refusal
from dt_tools.platform import Platform
from dt_tools.tree import Tree
from vsmmu.guest.vcpu import VCpu
from vsmmu.guest_view import ITS, SMMU_V3, GuestView
from vsmmu.hypervisor.domain import Domain, Doorbell
from vsmmu.hypervisor.hypervisor import Hypervisor
from vsmmu.hypervisor.pages import OutOfMemoryError
from vsmmu.hypervisor.vits import (
    GITS_TRANSLATER,
    PAGE_SIZE,
    TRANSLATION_PAGE,
    TranslationPage,
    VirtualIts,
)
from vsmmu.smmu.smmu import Smmu

# The first DeviceID that is no vMasterID: these have 16 bits.
_OWN = 0x1_0000


def name_its(tree: Tree) -> None:
    """Have each vSMMU of a guest's tree name its ITS, with a DeviceID that no device has."""
    its = next((node for node in tree.walk() if node.is_compatible(ITS)), None)
    if its is None or its.phandle is None:
        return
    its.set_cells("#msi-cells", 1)
    vsmmus = [node for node in tree.walk() if node.is_compatible(SMMU_V3)]
    for index, node in enumerate(vsmmus):
        node.set_cells("msi-parent", its.phandle, _OWN + index)


def add_its(
    hypervisor: Hypervisor,
    smmus: Mapping[str, Smmu],
    platform: Platform,
    domain: Domain,
    view: GuestView,
    vcpu: VCpu,
) -> None:
    """Give a domain the ITS that its tree has, if it has one.

    Raises:
        Refusal: MC207, the host has no ITS that messages of devices could go to; MC201, no page is
            left for a table.
    """
    if view.its is None:
        return
    path, base = _host_its(platform)
    page = base + TRANSLATION_PAGE
    if any(
        start < page + PAGE_SIZE and page < start + size
        for start, size in hypervisor.memory.regions
    ):
        # A guest's devices would write to what is somebody's memory.
        raise Refusal(
            "MC207", path, f"the machine has RAM at {page:#x}", "correct the machine's RAM"
        )
    try:
        domain.stage2.map(view.its + TRANSLATION_PAGE, page, PAGE_SIZE, device=True)
    except ValueError as error:
        raise Refusal("MC207", path, str(error), "correct its reg in the host tree") from None
    except OutOfMemoryError as error:
        raise Refusal("MC201", path, str(error), "give machine.ram") from None
    senders = {v.base: v.device_id for v in view.vsmmus.values() if v.device_id is not None}
    domain.its = VirtualIts(vcpu.lpi, senders)
    address = view.its + TRANSLATION_PAGE + GITS_TRANSLATER
    domain.doorbell = Doorbell(address, domain.its.message)
    outside = TranslationPage(page, hypervisor.reports.holder)
    for path, smmu in smmus.items():
        smmu.outside = partial(outside.write, path)


def _host_its(platform: Platform) -> tuple[str, int]:
    """Path and base of the host's first ITS."""
    for node in platform.tree.walk():
        if node.is_compatible(ITS) and node.status == "okay":
            regs = platform.reg_of(node)
            if regs and regs[0].cpu_base is not None:
                return node.path, regs[0].cpu_base
    fix = "take a board that has one, or no virtual ITS"
    raise Refusal("MC207", "/", "no enabled arm,gic-v3-its for a guest's messages", fix)
