# SPDX-License-Identifier: BSD-2-Clause
"""Which physical SMMUs stand behind a vSMMU, and how many stalled transactions they have left."""

from __future__ import annotations

from collections.abc import Iterable

from vsmmu.hypervisor.features import UnfitError, lacking
from vsmmu.hypervisor.host_smmu import HostSmmu
from vsmmu.hypervisor.vsmmu import VSmmu


class Behind:
    """The SMMUs that have what a vSMMU advertises, by vSMMU."""

    def __init__(self) -> None:
        self._smmus: dict[VSmmu, frozenset[str]] = {}

    def add(self, vsmmu: VSmmu, paths: Iterable[str]) -> None:
        """A new vSMMU, made for these SMMUs."""
        self._smmus[vsmmu] = frozenset(paths)

    def forget(self, vsmmu: VSmmu) -> None:
        """A vSMMU is gone; its share of stalled transactions is free."""
        del self._smmus[vsmmu]

    def admit(self, vsmmu: VSmmu, host: HostSmmu) -> str | None:
        """Have an SMMU stand behind a vSMMU; what it lacks, as IDRn.FIELD or UnfitError says."""
        if host.path in self._smmus[vsmmu]:
            return None
        try:
            reason = lacking(vsmmu.regs.values, host)
        except UnfitError as error:
            reason = error.reason
        if self.stall_places(host) < vsmmu.stalls.share:
            reason = "IDR5.STALL_MAX"
        if reason is None:
            self._smmus[vsmmu] |= {host.path}
        return reason

    def stall_places(self, host: HostSmmu) -> int:
        """Stalled transactions of an SMMU that are no vSMMU's share yet."""
        behind = (vsmmu for vsmmu, paths in self._smmus.items() if host.path in paths)
        return max(0, host.idr5.stall_max - sum(vsmmu.stalls.share for vsmmu in behind))
