# SPDX-License-Identifier: BSD-2-Clause
"""Rules by which only the builders refuse: no mistake of a guest that `check` could find itself.

They are declared here so that `vsmmu check --list` explains every id that any command prints.
"""

from __future__ import annotations

from dt_tools.rules import rule

_RULES = (
    (
        "DT219",
        "iomem gives the guest the host's GIC",
        "Xen 4.22 refuses the domain; 4.20 maps the registers of its own interrupt controller.",
        "/intc@8000000: iomem 0x8000,0x1 is the host's GIC",
    ),
    (
        "DT214",
        "something of the host's SMMU is not in its vSMMU's node",
        "A vSMMU has what the architecture's registers need: base, interrupts, coherency.",
        "/iommu@5000000: dropped: clocks",
    ),
    (
        "DT306",
        "no SPI for a vSMMU of dom0's",
        "Message interrupts of an SMMU are not dom0's; the vSMMU needs a wired one in their place.",
        "/iommu@5000000: its interrupts are not the GIC's and no SPI of the GIC can be given",
    ),
    (
        "DT510",
        "an earlier vMasterID map does not fit",
        "A guest with a static tree relies on the ids it was given; none may mean another stream.",
        "/iommu@4000000: the earlier map has an SMMU there at 0x4000000; this host has not",
    ),
    (
        "DT701",
        "a device of a guest's IORT has a stream that is not the guest's",
        "The table gives each device its vMasterIDs.",
        "/soc/dma@0: has no vMasterID in this guest",
    ),
    (
        "DT702",
        "a vMasterID in no mapping of a guest's IORT",
        "A device that the table leaves out is not translated by what the guest's system sets up.",
        "/iommu@5000000: vMasterID 0x1 would be in no mapping",
    ),
    (
        "DT703",
        "an IORT for a guest without a vSMMU",
        "The table is about nothing else.",
        "/: the guest has no vSMMU",
    ),
    (
        "DT711",
        "dom0's vSMMUs are not where the host's IORT has its SMMUs",
        "dom0 reads the host's table, which can stay only if each SMMUv3 of it has its vSMMU.",
        "SMMUv3 0x48: no vSMMU at its base",
    ),
    (
        "DT712",
        "the host's IORT says of an SMMU what is not so of its vSMMU",
        "dom0 would use an interrupt or a feature that its vSMMU does not have.",
        "SMMUv3 0x48: its GERR interrupt 76 is not the vSMMU's",
    ),
    (
        "DT550",
        "a partial tree that libxl fails on",
        "libxl refuses it, crashes on it, or writes a tree with the fault in it.",
        "/passthrough: partial tree: property reg stands there twice",
    ),
    (
        "DT551",
        "a guest tree larger than libxl makes",
        "libxl gives up when the tree does not fit a buffer of 1 MiB.",
        "/passthrough: the guest's tree takes 1050042 bytes while it is made, 1048576 is the most",
    ),
)

IDS = frozenset(rule(id_, "error", *texts).id for id_, *texts in _RULES)
"""The ids."""
