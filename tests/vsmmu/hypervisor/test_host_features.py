# SPDX-License-Identifier: BSD-2-Clause
"""What a vSMMU advertises for the physical SMMUs behind it, from their ID registers alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from dt_tools.profiles import DEFAULT
from vsmmu.arch.registers import BY_NAME, OAS_BITS, Idr0, Idr1, Idr5, StallModel, TtEndian, Ttf
from vsmmu.hypervisor.features import UnfitError, advertise
from vsmmu.smmu.features import Features


@dataclass
class Host:
    """A physical SMMU by its registers; fields that no SMMU of the model has can be set too."""

    path: str
    ids: dict[str, int]

    def ident(self, name: str) -> int:
        return self.ids[name]


def host(path: str = "/smmu@0", /, **fields: int) -> Host:
    ids = dict(Features.default(sidsize=16).ids)
    for register in ("IDR0", "IDR1", "IDR3", "IDR5", "AIDR"):
        layout = BY_NAME[register].layout
        mine = {name: value for name, value in fields.items() if name in layout.fields}
        ids[register] = layout(ids[register]).replace(**mine).raw
    return Host(path, ids)


def offered(*hosts: Host) -> dict[str, int]:
    return advertise(DEFAULT.vsmmu.idr, hosts)


ALONE = offered()


def test_a_host_that_has_everything_changes_nothing() -> None:
    ids = Features.everything().ids
    assert offered(Host("/smmu@0", ids)) == ALONE


@pytest.mark.parametrize("oas", range(7))
def test_the_output_size_is_never_above_a_hosts(oas: int) -> None:
    """A guest that was offered more would have its tables refused by hardware."""
    found = Idr5(offered(host(oas=oas))["IDR5"]).oas
    assert found == min(oas, Idr5(ALONE["IDR5"]).oas)
    assert OAS_BITS[found] <= OAS_BITS[oas]


@pytest.mark.parametrize(
    "fields",
    [
        {"ttf": Ttf.BOTH}, {"ttendian": 0}, {"ttendian": TtEndian.LITTLE},
        {"stall_model": StallModel.STALL_AND_TERMINATE}, {"httu": 3}, {"archmajrev": 0},
        {"ats": 1, "pri": 1, "msi": 1, "sev": 1, "hyp": 1, "ssidsize": 20, "mpam": 1},
    ],
)  # fmt: skip
def test_what_a_host_has_beyond_is_not_seen(fields: dict[str, int]) -> None:
    """AArch32 tables beside AArch64 ones, tables of either endianness, features not offered."""
    assert offered(host(**fields)) == ALONE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ttf": Ttf.AARCH32}, "no AArch64 translation tables (IDR0.TTF)"),
        ({"ttendian": TtEndian.BIG}, "big-endian translation tables only (IDR0.TTENDIAN)"),
        ({"gran4k": 0}, "no 4K granule, which stage 2 has (IDR5.GRAN4K)"),
        ({"s1p": 0}, "nested translation needs both stages (IDR0.S1P, IDR0.S2P)"),
        ({"s2p": 0}, "nested translation needs both stages (IDR0.S1P, IDR0.S2P)"),
        (
            {"stall_model": StallModel.STALL_FORCED},
            "cannot terminate faulting accesses (IDR0.STALL_MODEL)",
        ),
    ],
)
def test_hosts_that_do_not_fit(fields: dict[str, int], reason: str) -> None:
    """Named, whichever place it has among those that fit."""
    bad = host("/bad", **fields)
    for hosts in ([bad], [host(), bad], [bad, host()]):
        with pytest.raises(UnfitError, match=f"^/bad: {re.escape(reason)}$") as caught:
            offered(*hosts)
        assert (caught.value.path, caught.value.reason) == ("/bad", reason)


def test_hosts_that_are_alike_count_once() -> None:
    small = {"oas": 2, "ril": 0, "gran16k": 0, "archminrev": 1}
    assert offered(host(**small)) == offered(host(**small), host("/smmu@1", **small)) != ALONE


def test_hosts_that_differ_leave_what_they_share() -> None:
    """In any order; a second device never widens what the first one left."""
    first = host("/a", gran64k=0, asid16=0, oas=4)
    second = host("/b", gran16k=0, cohacc=0, oas=2)
    found = offered(first, second)
    assert found == offered(second, first)
    idr0, idr5 = Idr0(found["IDR0"]), Idr5(found["IDR5"])
    assert (idr0.asid16, idr0.cohacc) == (0, 0)
    assert (idr5.gran4k, idr5.gran16k, idr5.gran64k, idr5.oas) == (1, 0, 0, 2)


@pytest.mark.parametrize("hosts", [[], [Host("/smmu@0", Features.everything().ids)]])
def test_defaults_are_conservative(hosts: list[Host]) -> None:
    """One stage; no ATS, PRI, substreams, HTTU, MSIs, EL2 contexts, whatever hardware has."""
    found = offered(*hosts)
    idr0, idr1 = Idr0(found["IDR0"]), Idr1(found["IDR1"])
    assert idr0.s1p
    for name in ("s2p", "ats", "pri", "httu", "msi", "sev", "hyp", "vmid16", "btm", "atos"):
        assert not getattr(idr0, name), name
    assert (idr1.ssidsize, idr1.ecmdq, idr1.priqs) == (0, 0, 0)
