# SPDX-License-Identifier: BSD-2-Clause
"""A guest's virtual ITS: what its tree says of it, and the wiring behind that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from dt_tools.errors import Refusal
from dt_tools.platform import Platform
from dt_tools.tree import Node, Tree
from vsmmu.guest.vcpu import VCpu
from vsmmu.guest_view import ITS, SMMU_V3, GuestView
from vsmmu.hypervisor.domain import Domain, Doorbell
from vsmmu.hypervisor.hypervisor import Hypervisor
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
        Refusal: MC207, the host has no ITS that messages of devices could go to.
    """
    if view.its is None:
        return
    page = _host_page(platform)
    domain.stage2.map(view.its + TRANSLATION_PAGE, page, PAGE_SIZE, device=True)
    senders = {v.base: v.device_id for v in view.vsmmus.values() if v.device_id is not None}
    domain.its = VirtualIts(vcpu.lpi, senders)
    address = view.its + TRANSLATION_PAGE + GITS_TRANSLATER
    domain.doorbell = Doorbell(address, domain.its.message)
    outside = TranslationPage(page, hypervisor.reports.holder)
    for path, smmu in smmus.items():
        smmu.outside = partial(outside.write, path)


def _host_page(platform: Platform) -> int:
    found = [n for n in platform.tree.walk() if n.is_compatible(ITS) and n.status == "okay"]
    for base in _bases(platform, found):
        return base + TRANSLATION_PAGE
    fix = "take a board that has one, or no virtual ITS"
    raise Refusal("MC207", "/", "no enabled arm,gic-v3-its for a guest's messages", fix)


def _bases(platform: Platform, nodes: Iterable[Node]) -> Iterable[int]:
    for node in nodes:
        for reg in (platform.reg_of(node) or ())[:1]:
            if reg.cpu_base is not None:
                yield reg.cpu_base
