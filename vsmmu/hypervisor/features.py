# SPDX-License-Identifier: BSD-2-Clause
"""What a vSMMU advertises: the profile, lowered to what every physical SMMU in use has.

Fixed when the vSMMU is made. Stream table format, StreamID size and queue sizes are emulated, so
they come from the profile alone; everything that CDs and translation tables can use is carried
out by hardware, so it is the intersection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from vsmmu.arch.registers import BY_NAME, Idr0, Idr5, StallModel, TtEndian, Ttf

_LOWERED = {
    "IDR0": ("cohacc", "asid16"),
    "IDR3": ("had", "ril", "bbml"),
    "IDR5": ("oas", "gran4k", "gran16k", "gran64k"),
    "AIDR": ("archminrev",),
}


class Identification(Protocol):
    """A physical SMMU as far as its identification goes."""

    path: str

    def ident(self, name: str) -> int:
        """Value of an identification register."""
        ...  # pragma: no cover


class UnfitError(Exception):
    """A physical SMMU cannot stand behind a vSMMU; carries its path and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def advertise(
    wanted: Mapping[str, Mapping[str, int]], hosts: Iterable[Identification]
) -> dict[str, int]:
    """Register values by name.

    Args:
        wanted: fields by register name, the most that may be offered.
        hosts: the physical SMMUs behind the guest's devices.

    Raises:
        UnfitError: an SMMU lacks a stage, AArch64 tables, little-endian tables or a granule.
    """
    fields = {name: dict(values) for name, values in wanted.items()}
    for host in hosts:
        _fit(host)
        for register, names in _LOWERED.items():
            layout = BY_NAME[register].layout(host.ident(register))
            for name in names:
                have = getattr(layout, name)
                fields[register][name] = min(fields[register].get(name, 0), have)
    values = {n: BY_NAME[n].layout.build(**f).raw for n, f in fields.items()}
    granules = Idr5(values["IDR5"])
    if not (granules.gran4k or granules.gran16k or granules.gran64k):
        raise UnfitError("", "the physical SMMUs have no translation granule in common")
    return values


def _fit(host: Identification) -> None:
    idr0 = Idr0(host.ident("IDR0"))
    if not (idr0.s1p and idr0.s2p):
        raise UnfitError(host.path, "nested translation needs both stages (IDR0.S1P, IDR0.S2P)")
    if not idr0.ttf & Ttf.AARCH64:
        raise UnfitError(host.path, "no AArch64 translation tables (IDR0.TTF)")
    if idr0.ttendian == TtEndian.BIG:
        raise UnfitError(host.path, "big-endian translation tables only (IDR0.TTENDIAN)")
    if not Idr5(host.ident("IDR5")).gran4k:
        raise UnfitError(host.path, "no 4K granule, which stage 2 has (IDR5.GRAN4K)")
    if idr0.stall_model == StallModel.STALL_FORCED:
        raise UnfitError(host.path, "cannot terminate faulting accesses (IDR0.STALL_MODEL)")
