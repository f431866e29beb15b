# SPDX-License-Identifier: BSD-2-Clause
"""The vSMMUs of a guest: one for all its devices, or one for each physical SMMU of theirs.

The n-th lies n windows above the first, with the n-th phandle behind it. One vSMMU has the SPI of
the profile; several have the first ones above virtio-mmio's that nothing else has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dt_tools.binding import Bindings, Notice, Viommu
from dt_tools.errors import Refusal
from xl_configs.frozen import replace

if TYPE_CHECKING:
    from collections.abc import Collection

    from dt_tools.profiles import GuestProfile

# They lie side by side below the room for placed registers.
_MOST = 127


def placed(bindings: Bindings, guest: GuestProfile, *, one: bool) -> tuple[Bindings, list[Notice]]:
    """The vSMMUs at their addresses; several have no SPIs yet but those of an earlier map.

    Raises:
        Refusal: DT212, there is no room for so many.
    """
    if one:
        return replace(bindings, viommu=_viommu(guest, 0, guest.vsmmu_spi, "")), []
    if len(bindings.viommus) > _MOST:
        reason = f"the guest would have more than {_MOST} vSMMUs"
        raise Refusal("DT212", "/", reason, "give it one vSMMU for all its devices")
    notices = []
    if not bindings.viommus:
        notices.append(Notice("DT509", "/", "no device is behind an SMMU: no vSMMU"))
    viommus = (_viommu(guest, at, v.spi, v.smmu) for at, v in enumerate(bindings.viommus))
    return replace(bindings, viommus=tuple(viommus)), notices


def with_spis(
    bindings: Bindings, guest: GuestProfile, irqs: Collection[int]
) -> tuple[Bindings, list[Notice]]:
    """Several vSMMUs with their SPIs; `irqs` are the physical interrupts of the guest.

    One that an earlier build gave stays, unless a physical interrupt has come in with it.
    """
    taken = {*irqs, *(v.spi for v in bindings.viommus)}
    above = guest.virtio_spis(viommu=False)[1] + 1
    free = (spi for spi in range(above, above + len(taken) + _MOST) if spi not in taken)
    viommus = [
        v if v.spi >= above and v.spi not in irqs else replace(v, spi=next(free))
        for v in bindings.viommus
    ]
    notices = []
    for old, new in zip(bindings.viommus, viommus, strict=True):
        if old.spi not in (0, new.spi):
            text = f"its vSMMU had SPI {old.spi}, which a device has now: it gets {new.spi}"
            notices.append(Notice("DT303", new.smmu, text))
    return replace(bindings, viommus=tuple(viommus)), notices


def _viommu(guest: GuestProfile, index: int, spi: int, smmu: str) -> Viommu:
    base = guest.vsmmu.base + index * guest.vsmmu.size
    return Viommu(base, guest.vsmmu.size, spi, guest.vsmmu_phandle + index, smmu)
