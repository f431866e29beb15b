# SPDX-License-Identifier: BSD-2-Clause
"""The rules of PCI devices given to a guest: DT520 to DT531."""

from __future__ import annotations

from dt_tools.rules import rule

rule(
    "DT520",
    "error",
    "no host bridge has the PCI device",
    "A requester id means something only together with the root complex it comes from.",
    "/: pci 0002:01:00.0: no enabled host bridge is PCI domain 0x2",
)
rule(
    "DT521",
    "error",
    "which host bridge a PCI domain is cannot be told",
    "Without linux,pci-domain the numbers come from the order of probing; a device taken from "
    "the wrong root complex has another device's StreamID.",
    "/pcie@40000000: has no linux,pci-domain, other host bridges have one",
)
rule(
    "DT522",
    "error",
    "not a PCI function that can be given away",
    "A bridge serves the devices behind it, and a function that is not there has no DMA.",
    "/pcie@40000000 0000:00:00.0: is a bridge",
)
rule(
    "DT523",
    "error",
    "the functions that * stands for are not known",
    'libxl expands "*" from the functions there are, and only with a virtual slot.',
    "/: pci 0000:01:00.*: which functions there are is not known without a topology",
)
rule(
    "DT524",
    "error",
    "a requester id or StreamID is shared with a function that stays outside",
    "The SMMU cannot tell the two apart: the guest's tables translate the other one's DMA.",
    "/pcie@40000000 0000:03:00.0: shares StreamID 0x300 of /iommu@50000000 with 0000:03:01.0",
)
rule(
    "DT525",
    "note",
    "a function is not isolated from others by ACS",
    "Without Access Control Services a request can go from one to the other past the SMMU.",
    "/pcie@40000000 0000:01:00.0: no ACS between it and 0000:01:00.1",
)
rule(
    "DT526",
    "error",
    "the guest's virtual PCI bus has no place for the function",
    "Xen's vPCI is one bus of 32 slots.",
    "/pcie@40000000 0000:06:00.0: 33 functions, the virtual PCI bus has 32 slots",
)
rule(
    "DT527",
    "error",
    "a function has several StreamIDs",
    "A row of iommu-map gives a requester id one StreamID; DMA with the others would be lost.",
    "/pcie@40000000 0000:03:00.0: has vMasterIDs 0x0, 0x1, one row of iommu-map has one",
)
rule(
    "DT528",
    "note",
    "aliases of the requester id are not known",
    "Behind a PCIe-to-PCI bridge DMA carries the bridge's id; no device tree says where one is.",
    "/pcie@40000000 0000:01:00.0: taken at its own requester id 0x0100",
)
rule(
    "DT529",
    "note",
    "the guest's PCI bus has no msi-map",
    "Stock Xen gives a domU on Arm no ITS to point at, so its PCI devices have no MSIs.",
    "/pcie@10000000: no msi-map: the guest has no ITS",
)
rule(
    "DT530",
    "note",
    "Xen's vPCI gives the function another slot, or none",
    "Xen takes the first free slot in the order of the list, without regard to @vslot, and "
    "function 0 of a device only.",
    "/pcie@40000000 0000:01:00.0: is put at 00:05.0 as asked; Xen 4.22's vPCI would say 00:00.0",
)
rule(
    "DT531",
    "note",
    "PCI domains are counted in the order of the tree",
    "Xen numbers host bridges without linux,pci-domain so, and tells dom0; Linux alone numbers "
    "them as they are probed.",
    "/pcie@50000000: has no linux,pci-domain; taken as domain 1, the order of the tree",
)
