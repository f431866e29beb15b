# SPDX-License-Identifier: BSD-2-Clause
"""ATS Translated transactions: attributes and addresses (IHI 0070 §3.9.1.1, §3.9.1.3, §13.1.4).

Hand-derived vectors: no second opinion.
"""

from __future__ import annotations

import pytest

from vsmmu.smmu import Features
from vsmmu.smmu.transaction import Access

from .machine import AF, RW_S2, Machine

FEATURES = Features.default(oas=44).replace(ats=1, attr_perms_ovr=1)
IPA, PA = 0x5000, 0x8F00_0000
# Stage 2 XN[1:0] with IDR3.XNX: who may execute.
NOBODY, UNPRIVILEGED, PRIVILEGED = 2 << 53, 1 << 53, 3 << 53


@pytest.fixture
def machine() -> Machine:
    machine = Machine(FEATURES)
    machine.write("CR0", machine.read("CR0") | 1 << 4)
    return machine


def split(machine: Machine, flags: int, **ste: int) -> None:
    """Stream 1 has split-stage ATS and one page at stage 2."""
    root = machine.s2_root()
    machine.map(root, IPA, PA, flags=AF | RW_S2 | flags)
    fields = machine.s2_fields(root, eats=2, **ste)
    machine.ste(1, config=7, s1ctxptr=machine.cd(ttb0=root), **fields)


@pytest.mark.parametrize(
    ("flags", "privcfg", "instcfg", "write", "allowed"),
    [
        (NOBODY, 0, 0, False, True), (NOBODY, 0, 3, False, False), (NOBODY, 0, 3, True, True),
        (NOBODY, 0, 2, False, True), (UNPRIVILEGED, 0, 3, False, True),
        (UNPRIVILEGED, 3, 3, False, False), (PRIVILEGED, 3, 3, False, True),
        (PRIVILEGED, 2, 3, False, False), (0, 3, 3, False, True),
    ],
)  # fmt: skip
def test_overrides_count_with_split_stage(
    machine: Machine, flags: int, privcfg: int, instcfg: int, write: bool, allowed: bool
) -> None:
    """§13.1.4: STE.PRIVCFG and STE.INSTCFG apply; a write is data."""
    split(machine, flags, privcfg=privcfg, instcfg=instcfg)
    outcome = machine.smmu.translated(Access(1, IPA + 8, write))
    assert outcome.pa == (PA + 8 if allowed else None)
    found = [
        (event.name, *(event.fields[name].of(event.words) for name in ("s2", "pnu", "ind")))
        for event in machine.events()
    ]
    assert found == ([] if allowed else [("F_PERMISSION", 1, privcfg & 1, 1)])


def test_what_the_device_says_does_not_count(machine: Machine) -> None:
    """§3.9.1.3: without IDR3.PASIDTT it is unprivileged data without SubstreamID."""
    split(machine, NOBODY)
    assert machine.smmu.translated(Access(1, IPA, False, True, True, 3)).pa == PA


@pytest.mark.parametrize("checked", [False, True])
def test_physical_address_beyond_oas(machine: Machine, checked: bool) -> None:
    """§3.9.1.1: an address that the system does not have aborts, and no event is recorded."""
    machine.write("CR0", machine.read("CR0") & ~(1 << 4) | int(checked) << 4)
    machine.ste(1, config=5, s1ctxptr=machine.cd(), eats=1)
    last = (1 << 44) - 8
    assert machine.smmu.translated(Access(1, last, True)).pa == last
    for address in (1 << 44, 1 << 63):
        outcome = machine.smmu.translated(Access(1, address, True))
        assert (outcome.status, outcome.pa) == ("abort", None)
    assert machine.events() == []
