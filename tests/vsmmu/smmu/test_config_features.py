# SPDX-License-Identifier: BSD-2-Clause
"""Substreams, EL2 contexts, HTTU, 52 bits in the ID registers (IHI 0070 §6.3.1 to §6.3.8)."""

from __future__ import annotations

import re

import pytest

from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, RW_S1, RW_S2, Machine


def test_everything() -> None:
    features = Features.everything()
    assert (features.oas, features.hyp, features.idr1.ssidsize) == (52, True, 20)
    assert features.ids["AIDR"] == 3
    assert features.ids["IDR0"] == 0x08CF_76BB
    assert features.ids["IDR5"] == 0x0100_04F6


@pytest.mark.parametrize(
    "change",
    [
        {"ssidsize": 20}, {"ssidsize": 1, "cd2l": 1}, {"cd2l": 1}, {"httu": 1},
        {"archminrev": 1, "hyp": 0},
        {"httu": 2}, {"stt": 1}, {"vax": 1}, {"vax": 1, "ds": 1}, {"oas": 6}, {"vmw": 1},
        {"vax": 1, "ds": 1, "oas": 6, "gran64k": 0}, {"e0pd": 1}, {"ptwnnc": 1},
        {"archminrev": 3, "e0pd": 1, "ptwnnc": 1},
    ],
)  # fmt: skip
def test_what_can_be_built(change: dict[str, int]) -> None:
    features = Features.default().replace(**change)
    assert Features.default() != features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ssidsize": 21}, "IDR1.SSIDSIZE=21: not modelled (SSIDSIZE)"),
        ({"httu": 3}, "IDR0.HTTU=3: not modelled (access flags of table descriptors)"),
        ({"oas": 7}, "IDR5.OAS=7: not modelled (56-bit addresses)"),
        ({"vax": 2}, "IDR5.VAX=2: not modelled (56-bit addresses)"),
        ({"archminrev": 4}, "AIDR.ARCHMINREV=4: not modelled (SMMUv3.4)"),
        ({"d128": 1}, "IDR5.D128=1: not modelled (D128)"),
        ({"mpam": 1}, "IDR3.MPAM=1: not modelled (MPAM)"),
        ({"dpt": 1}, "IDR3.DPT=1: not modelled (DPT)"),
        ({"vatos": 1}, "IDR0.VATOS=1: not modelled (VATOS)"),
        ({"rme_impl": 1}, "IDR0.RME_IMPL=1: not modelled (RME_IMPL)"),
        ({"hyp": 0}, "SMMUv3.2 with both stages needs IDR0.HYP=1"),
        ({"hyp": 1, "s2p": 0, "xnx": 0, "fwb": 0}, "IDR0.HYP=1 needs IDR0.S2P=1"),
        ({"hyp": 1, "s1p": 0, "had": 0}, "IDR0.HYP=1 needs IDR0.S1P=1"),
        ({"vmw": 1, "hyp": 0, "s2p": 0, "xnx": 0, "fwb": 0}, "IDR0.VMW=1 needs IDR0.S2P=1"),
        ({"ds": 1}, "IDR5.DS=1 needs IDR5.VAX>=1"),
        (
            {"vax": 1, "ds": 1, "gran4k": 0, "gran16k": 0},
            "IDR5.DS=1 needs IDR5.GRAN4K=1 or IDR5.GRAN16K=1",
        ),
        ({"vax": 1, "gran64k": 0}, "IDR5.VAX=1 needs GRAN64K or DS"),
        ({"archminrev": 0}, "IDR3.XNX=1 needs SMMUv3.1"),
        ({"oas": 6, "gran64k": 0}, "IDR5.OAS=6 needs GRAN64K or DS"),
        ({"archminrev": 0, "vax": 1, "fwb": 0}, "52-bit addresses need SMMUv3.1"),
        ({"archminrev": 3}, "SMMUv3.3 with stage 1 needs IDR3.E0PD=1"),
        ({"archminrev": 3, "e0pd": 1}, "SMMUv3.3 with stage 2 needs IDR3.PTWNNC=1"),
    ],
)
def test_refusals(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Features.default().replace(**change)


# What CDs and STEs make of them.

VA, PA = 0x5000, 0x8F00_0000
DBM, READ_ONLY, S2_READ = 1 << 51, 1 << 7, 1 << 6


def outcome(machine: Machine, *, write: bool = False) -> int | str | None:
    found = machine.go(1, VA, write=write)
    return found.event.name if found.event is not None else found.pa


@pytest.mark.parametrize(("ips", "expected"), [(5, "F_TRANSLATION"), (6, PA)])
def test_52_bit_output_aligns_tables_to_64_bytes(ips: int, expected: int | str) -> None:
    """§3.4, §5.4 TTB0: four entries are 32 bytes, but with 52-bit outputs bit 5 is ignored too.

    No second opinion.
    """
    machine = Machine(Features.default(oas=52))
    root = machine.alloc(PAGE)
    machine.map(root, VA, PA)
    machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=root + 0x20, t0sz=32, ips=ips))
    assert outcome(machine) == expected


@pytest.mark.parametrize(
    ("ha", "hd", "expected"),
    [
        (0, 0, ("F_ACCESS", "F_PERMISSION")),
        (0, 1, ("F_ACCESS", "F_PERMISSION")),
        (1, 0, (PA, "F_PERMISSION")),
        (1, 1, (PA, PA)),
    ],
)
@pytest.mark.parametrize("stage", [1, 2])
def test_dirty_state_needs_the_access_flag(
    stage: int, ha: int, hd: int, expected: tuple[int | str, int | str]
) -> None:
    """§5.2 S2HA, §5.4 HA, no second opinion: {HD, HA} = 0b10 is reserved and acts as 0b00."""
    found: list[int | str | None] = []
    for flags, write in ((0, False), (AF, True)):
        machine = Machine(Features.default().replace(httu=2))
        root = machine.s2_root()
        if stage == 1:
            rights = RW_S1 | (READ_ONLY | DBM if write else 0)
            machine.map(root, VA, PA, flags=flags | rights)
            machine.ste(1, config=5, s1ctxptr=machine.cd(ttb0=root, ha=ha, hd=hd))
        else:
            rights = S2_READ | DBM if write else RW_S2
            machine.map(root, VA, PA, flags=flags | rights)
            machine.ste(1, config=6, **machine.s2_fields(root, s2ha=ha, s2hd=hd))
        found.append(outcome(machine, write=write))
    assert tuple(found) == expected


@pytest.mark.parametrize(
    ("change", "cd"),
    [
        ({"httu": 0}, {"ha": 1}), ({"httu": 0}, {"hd": 1}), ({"httu": 1}, {"hd": 1, "ha": 1}),
        ({}, {"t0sz": 40}), ({"stt": 1}, {"t0sz": 49}), ({"stt": 1}, {"t0sz": 48, "tg0": 1}),
        ({"vax": 1}, {"t0sz": 12}), ({"vax": 0}, {"t0sz": 12, "tg0": 1}),
        ({"vax": 1, "ds": 1}, {"t0sz": 12}), ({"vax": 1, "ds": 1, "oas": 6}, {"ttb0": 1 << 48}),
    ],
)  # fmt: skip
def test_illegal_cd(change: dict[str, int], cd: dict[str, int]) -> None:
    """§5.4: each value needs its feature."""
    machine = Machine(Features.default().replace(**change))
    machine.ste(1, config=5, s1ctxptr=machine.cd(**{"ips": 6, **cd}))
    assert outcome(machine) == "C_BAD_CD"


@pytest.mark.parametrize(
    ("change", "cd"),
    [
        ({"httu": 1}, {"ha": 1}), ({"httu": 2}, {"hd": 1, "ha": 1}), ({"stt": 1}, {"t0sz": 48}),
        ({"stt": 1}, {"t0sz": 47, "tg0": 1}), ({"vax": 1}, {"t0sz": 12, "tg0": 1}),
        ({"vax": 1, "ds": 1}, {"t0sz": 12, "ds": 1}),
        ({"vax": 1, "ds": 1}, {"t0sz": 12, "ds": 1, "tg0": 2}),
    ],
)  # fmt: skip
def test_legal_cd(change: dict[str, int], cd: dict[str, int]) -> None:
    machine = Machine(Features.default().replace(**change))
    root = machine.alloc(1 << 16)
    machine.ste(1, config=5, s1ctxptr=machine.cd(**{"ips": 6, "ttb0": root, **cd}))
    assert outcome(machine) == "F_TRANSLATION"
