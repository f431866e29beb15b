# SPDX-License-Identifier: BSD-2-Clause
"""What a vSMMU advertises: the profile, lowered to what every physical SMMU in use has.

Fixed when the vSMMU is made. Stream table format, StreamID size and queue sizes are emulated, so
they come from the profile alone; everything that CDs and translation tables can use is carried
out by hardware, so it is the intersection. What enlarges the reach of a guest or of its devices
needs the policy's leave as well. A field that is none of these is never offered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from vsmmu.arch.registers import BY_NAME, Idr0, Idr1, Idr3, Idr5, StallModel, TtEndian, Ttf
from vsmmu.hypervisor.policy import Policy
from vsmmu.hypervisor.stage2 import OAS_MAX

_EMULATED = {
    "IDR0": ("s1p", "ttf", "ttendian", "stall_model", "term_model", "st_level"),
    "IDR1": ("sidsize", "cmdqs", "eventqs"),
    "IIDR": ("implementer", "revision", "variant", "productid"),
}
_LOWERED = {
    "IDR0": ("cohacc", "asid16", "httu", "msi", "ats", "pri", "cd2l"),
    "IDR1": ("ssidsize", "priqs"),
    "IDR3": ("had", "ril", "bbml", "pps"),
    "IDR5": ("oas", "gran4k", "gran16k", "gran64k", "stall_max"),
    "AIDR": ("archminrev",),
}
# The most of each feature that the policy can allow, by the name of its switch. HTTU 3 is not
# among it: no SMMU of this project has access flags in table descriptors.
_SWITCHED = {
    "substreams": {"IDR0": {"cd2l": 1}, "IDR1": {"ssidsize": 20}},
    "httu": {"IDR0": {"httu": 2}},
    "msi": {"IDR0": {"msi": 1}},
    "stalls": {"IDR5": {"stall_max": 0xFFFF}},
    "ats": {"IDR0": {"ats": 1}},
    "pri": {"IDR0": {"pri": 1}, "IDR1": {"priqs": 19}, "IDR3": {"pps": 1}},
}

_Fields = dict[str, dict[str, int]]


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
    wanted: Mapping[str, Mapping[str, int]],
    hosts: Iterable[Identification],
    policy: Policy | None = None,
) -> dict[str, int]:
    """Register values by name.

    Args:
        wanted: fields by register name, the most that may be offered; a feature that the policy
            allows is offered whole where `wanted` does not name it.
        hosts: the physical SMMUs behind the guest's devices.
        policy: what else may be offered; without hosts nothing of it is.

    Raises:
        UnfitError: an SMMU lacks a stage, AArch64 tables, little-endian tables or a granule.
    """
    hosts = tuple(hosts)
    fields = _allowed(wanted, policy if policy is not None and hosts else Policy())
    for host in hosts:
        _fit(host)
        have = _offers(host)
        for register, names in _LOWERED.items():
            mine = fields.setdefault(register, {})
            for name in names:
                mine[name] = min(mine.get(name, 0), have[register][name])
    # No access reaches beyond what the hypervisor's stage 2 translates.
    fields["IDR5"]["oas"] = min(fields["IDR5"].get("oas", 0), OAS_MAX)
    _settle(fields, hosts)
    values = {n: BY_NAME[n].layout.build(**f).raw for n, f in fields.items()}
    granules = Idr5(values["IDR5"])
    if not (granules.gran4k or granules.gran16k or granules.gran64k):
        raise UnfitError("", "the physical SMMUs have no translation granule in common")
    return values


def lacking(ids: Mapping[str, int], host: Identification) -> str | None:
    """What a physical SMMU lacks of what was advertised, as IDRn.FIELD; None if nothing.

    How many transactions it can stall is not looked at, only whether it can.

    Raises:
        UnfitError: as `advertise`.
    """
    _fit(host)
    have = _offers(host)
    for register, names in _LOWERED.items():
        layout = BY_NAME[register].layout(ids[register])
        for name in names:
            if name != "stall_max" and have[register][name] < getattr(layout, name):
                return f"{register}.{name.upper()}"
    if Idr0(ids["IDR0"]).stall_model != StallModel.TERMINATE_ONLY and not have["IDR5"]["stall_max"]:
        return "IDR0.STALL_MODEL"
    # A response that the SMMU makes itself has a PASID where the guest was told that none has.
    pri = Idr0(ids["IDR0"]).pri and Idr1(ids["IDR1"]).ssidsize
    return "IDR3.PPS" if pri and have["IDR3"]["pps"] != Idr3(ids["IDR3"]).pps else None


def _allowed(wanted: Mapping[str, Mapping[str, int]], policy: Policy) -> _Fields:
    """What is wanted, less what the policy does not allow, plus what it does."""
    known = {
        (register, name)
        for table in (_EMULATED, _LOWERED)
        for register, names in table.items()
        for name in names
    }
    for most in _SWITCHED.values():
        known -= {(register, name) for register, values in most.items() for name in values}
    fields = {
        register: {n: v for n, v in f.items() if (register, n) in known}
        for register, f in wanted.items()
    }
    for switch, most in _SWITCHED.items():
        if not getattr(policy, switch):
            continue
        for register, values in most.items():
            for name, value in values.items():
                asked = wanted.get(register, {}).get(name, value)
                fields.setdefault(register, {})[name] = min(asked, value)
    stalls = fields.setdefault("IDR5", {})
    if "stall_max" in stalls:
        stalls["stall_max"] = min(stalls["stall_max"], policy.stalls_per_vsmmu)
    return fields


def _offers(host: Identification) -> _Fields:
    """What can be offered for an SMMU, where that is less than what it has.

    Stalls need that it can also terminate. ATS needs its split-stage form, since a device that
    holds physical addresses is not contained by stage 2.
    """
    have = {
        register: {
            name: getattr(BY_NAME[register].layout(host.ident(register)), name) for name in n
        }
        for register, n in _LOWERED.items()
    }
    idr0 = Idr0(host.ident("IDR0"))
    if idr0.stall_model != StallModel.STALL_AND_TERMINATE:
        have["IDR5"]["stall_max"] = 0
    if idr0.ns1ats:
        have["IDR0"]["ats"] = 0
    return have


def _settle(fields: _Fields, hosts: tuple[Identification, ...]) -> None:
    """Take away what depends on something that is not offered (§6.3.1 to §6.3.6)."""
    idr0, idr1, idr3 = (fields.setdefault(name, {}) for name in ("IDR0", "IDR1", "IDR3"))
    idr5 = fields["IDR5"]
    stalls = idr5.get("stall_max", 0)
    idr0["stall_model"] = StallModel.STALL_AND_TERMINATE if stalls else StallModel.TERMINATE_ONLY
    if not idr1.get("ssidsize"):
        idr1["ssidsize"] = idr0["cd2l"] = idr3["pps"] = 0
    elif len({Idr3(host.ident("IDR3")).pps for host in hosts}) > 1:
        idr0["pri"] = 0
    if not idr0.get("ats"):
        idr0["pri"] = 0
    if not idr0["pri"]:
        idr1["priqs"] = idr3["pps"] = 0


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
