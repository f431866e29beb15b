# SPDX-License-Identifier: BSD-2-Clause
"""The StreamIDs of assigned devices: the vSMMU and vMasterID that stand for each in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dt_tools.binding import Bindings
    from dt_tools.platform import Platform
    from dt_tools.tree import Node


class DeviceStreams:
    """The streams of one guest's devices; none of them has any without `viommu`.

    `bindings` gives the vMasterIDs, and the phandle of the vSMMU where there are several;
    `vsmmu_phandle` is that of the only one.
    """

    def __init__(
        self, platform: Platform, bindings: Bindings, vsmmu_phandle: int, viommu: bool
    ) -> None:
        self._masters = {master.path: master for master in platform.masters}
        self._bindings = bindings
        self._vsmmu_phandle = vsmmu_phandle
        self._viommu = viommu

    def pairs(self, node: Node) -> list[tuple[int, int]]:
        """(phandle of the vSMMU, vMasterID) of the node's streams, in the host's order."""
        if not self._viommu:
            return []
        pairs: dict[tuple[int, int], None] = {}
        for stream in self._masters[node.path].streams:
            vid = self._bindings.vmaster_id(stream.smmu_path, stream.stream_id)
            assert vid is not None, "bindings are of another dtdev list"
            phandle = self._bindings.phandle_of(stream.smmu_path)
            pairs[self._vsmmu_phandle if phandle is None else phandle, vid] = None
        return list(pairs)
