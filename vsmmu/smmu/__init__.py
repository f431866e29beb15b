# SPDX-License-Identifier: BSD-2-Clause
"""The physical SMMUv3 model.

`Smmu` is the device, `Features` its identification, `DevicePort` a DMA master behind it.
"""

from __future__ import annotations

from vsmmu.smmu.features import Features
from vsmmu.smmu.port import DevicePort, Request
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.transaction import Access, Outcome

__all__ = ["Access", "DevicePort", "Features", "Outcome", "Request", "Smmu"]
