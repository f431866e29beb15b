# SPDX-License-Identifier: BSD-2-Clause
"""PCI functions given to a guest: from `pci = [...]` and the host tree to the guest's `iommu-map`.

`functions` finds each function's host bridge, requester ids, StreamIDs and place in the guest;
`dt_tools.binding.allocate` gives the streams vMasterIDs; `iommu_map`, `msi_map` and `vpci_node`
write the guest's node.
"""

from dt_tools.pci.functions import PciFunction, functions
from dt_tools.pci.node import guest_path, iommu_map, msi_map, series_map, vpci_node
from dt_tools.pci.topology import Topology, read_lspci

__all__ = [
    "PciFunction",
    "Topology",
    "functions",
    "guest_path",
    "iommu_map",
    "msi_map",
    "read_lspci",
    "series_map",
    "vpci_node",
]
