# SPDX-License-Identifier: BSD-2-Clause
"""StreamWorlds NS-EL1, NS-EL2 and NS-EL2-E2H, VMID wildcards, ASID sets (IHI 0070 §3.17, §5.2).

No second opinion on EL2 worlds (§3.17.5) and VMID wildcards (§3.17.6). Expected outcomes are
derived by hand from the clauses that each test names.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.commands import (
    CmdTlbiEl2All,
    CmdTlbiEl2Asid,
    CmdTlbiEl2Va,
    CmdTlbiEl2Vaa,
    CmdTlbiNhAll,
    CmdTlbiNhAsid,
    CmdTlbiNhVa,
    CmdTlbiNhVaa,
    CmdTlbiNsnhAll,
    CmdTlbiS12Vmall,
    Command,
)
from vsmmu.arch.registers import Cerror, CmdqCons, Cr0, Cr2
from vsmmu.memory import PAGE
from vsmmu.smmu import Features

from .machine import AF, RW_S1, Machine

HYP = Features.default().replace(hyp=1)
VA, PA = 0x5000, 0x8F00_0000
HIGH = (1 << 64) - PAGE
PRIVILEGED, NOT_GLOBAL, READ_ONLY = AF, 1 << 11, 1 << 7
EL2 = 2


def enable(machine: Machine, *, e2h: int, vmw: int = 0) -> None:
    machine.write("CR0", 0xC)
    machine.write("CR2", Cr2.build(e2h=e2h, recinvsid=1).raw)
    machine.write("CR0", Cr0.build(smmuen=1, eventqen=1, cmdqen=1, vmw=vmw).raw)


@pytest.fixture(params=[0, 1], ids=["EL2", "EL2-E2H"])
def e2h(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def machine_with(e2h: int, features: Features = HYP) -> Machine:
    machine = Machine(features)
    enable(machine, e2h=e2h)
    return machine


def stream(
    machine: Machine, sid: int, page: int, *, strw: int = 0, flags: int = AF | RW_S1 | NOT_GLOBAL,
    vmid: int = 0, **cd: int,
) -> int:  # fmt: skip
    """A stage 1 stream that maps VA to a page; returns the table."""
    root = machine.alloc(PAGE)
    machine.map(root, VA, page, flags=flags)
    machine.ste(sid, config=5, strw=strw, s2vmid=vmid, s1ctxptr=machine.cd(ttb0=root, **cd))
    return root


def verdict(machine: Machine, sid: int, iova: int = VA, **how: bool) -> int | str | None:
    outcome = machine.go(sid, iova, **how)
    machine.events()
    return outcome.event.name if outcome.event is not None else outcome.pa


# Which world (§5.2 STRW).


@pytest.mark.parametrize("strw", [1, 3])
def test_reserved_strw(strw: int) -> None:
    """Illegal where it is used: Config=101 with IDR0.Hyp=1."""
    machine = machine_with(0)
    stream(machine, 1, PA, strw=strw)
    machine.ste(2, config=4, strw=strw)
    machine.ste(3, config=6, strw=strw, **machine.s2_fields(machine.s2_root()))
    assert [verdict(machine, sid) for sid in (1, 2, 3)] == ["C_BAD_STE", VA, "F_TRANSLATION"]
    machine = Machine(Features.default(aidr=1))
    stream(machine, 1, PA, strw=strw)
    assert verdict(machine, 1) == PA


def test_vmid_is_ignored_in_el2(e2h: int) -> None:
    """§5.2 S2VMID: no VMID tagging outside NS-EL1, so an 8-bit SMMU accepts any value."""
    machine = machine_with(e2h, HYP.replace(vmid16=0))
    stream(machine, 1, PA, strw=EL2, vmid=0x1234)
    stream(machine, 2, PA, vmid=0x1234)
    assert [verdict(machine, sid) for sid in (1, 2)] == [PA, "C_BAD_STE"]


# What a CD means (§5.4).


def test_el2_has_one_table() -> None:
    """§5.4: TTB1 and its fields are RES0, EPD0 is ignored; the upper half has no translation."""
    machine = machine_with(0)
    stream(machine, 1, PA, strw=EL2, epd0=1, epd1=0, tg1=0, t1sz=63, ttb1=1 << 51)
    assert verdict(machine, 1) == PA
    assert verdict(machine, 1, HIGH) == "F_TRANSLATION"


def test_e2h_has_two_tables() -> None:
    machine = machine_with(1)
    stream(machine, 1, PA, strw=EL2, epd1=0, tg1=0, t1sz=25)
    assert verdict(machine, 1) == "C_BAD_CD"
    root, low = machine.alloc(PAGE), machine.alloc(PAGE)
    machine.map(root, HIGH & (1 << 39) - 1, PA, flags=AF | RW_S1)
    cd = machine.cd(ttb0=low, ttb1=root, epd0=1, epd1=0, tg1=2, t1sz=25)
    machine.ste(2, config=5, strw=EL2, s1ctxptr=cd)
    assert verdict(machine, 2, HIGH) == PA
    assert verdict(machine, 2) == "F_TRANSLATION"


def test_a_cd_is_decoded_again_in_its_new_world() -> None:
    """§6.3.12: CR2.E2H takes effect with SMMUEN; NS-EL2 has no TTB1, NS-EL2-E2H does (§5.4)."""
    machine = machine_with(0)
    root = machine.alloc(PAGE)
    machine.map(root, HIGH & (1 << 39) - 1, PA, flags=AF | RW_S1 | NOT_GLOBAL)
    stream(machine, 1, PA, strw=EL2, epd1=0, tg1=2, t1sz=25, ttb1=root)
    assert verdict(machine, 1, HIGH) == "F_TRANSLATION"
    enable(machine, e2h=1)
    assert verdict(machine, 1, HIGH) == PA
    enable(machine, e2h=0)
    assert verdict(machine, 1, HIGH) == "F_TRANSLATION"


def test_asid_is_ignored_in_el2() -> None:
    """§5.4 ASID: NS-EL2 has none, so an 8-bit SMMU accepts any value; NS-EL2-E2H has one."""
    for e2h, expected in ((0, PA), (1, "C_BAD_CD")):
        machine = machine_with(e2h, HYP.replace(asid16=0))
        stream(machine, 1, PA, strw=EL2, asid=0x100)
        assert verdict(machine, 1) == expected


def test_privilege_counts_in_e2h_alone(e2h: int) -> None:
    """§5.4, Arm ARM D8.4: in NS-EL2 there are no unprivileged accesses; AP[1] is ignored."""
    machine = machine_with(e2h)
    stream(machine, 1, PA, strw=EL2, flags=PRIVILEGED)
    assert verdict(machine, 1, priv=True) == PA
    assert verdict(machine, 1) == ("F_PERMISSION" if e2h else PA)


def test_pan_counts_in_e2h_alone(e2h: int) -> None:
    """§5.4 PAN: ignored in NS-EL2."""
    machine = machine_with(e2h)
    stream(machine, 1, PA, strw=EL2, pan=1)
    assert verdict(machine, 1, priv=True) == ("F_PERMISSION" if e2h else PA)


def test_global_bit_is_ignored_in_el2() -> None:
    """§3.17: NS-EL2 entries have no ASID, so streams with different ASIDs share them."""
    machine = machine_with(0)
    stream(machine, 1, PA, strw=EL2, asid=1)
    stream(machine, 2, PA + PAGE, strw=EL2, asid=2)
    assert [verdict(machine, sid) for sid in (1, 2)] == [PA, PA]


# Tags (§3.17).


def test_worlds_do_not_mix() -> None:
    """The same address, VMID and ASID in NS-EL1 and NS-EL2 are different translations."""
    machine = machine_with(0)
    stream(machine, 1, PA, flags=AF | RW_S1)
    stream(machine, 2, PA + PAGE, strw=EL2, flags=AF | RW_S1)
    for _ in range(2):
        assert [verdict(machine, sid) for sid in (1, 2)] == [PA, PA + PAGE]


def test_changing_e2h_changes_the_tag() -> None:
    """§6.3.12 E2H: what NS-EL2 streams left is not met by NS-EL2-E2H ones, and comes back."""
    machine = machine_with(0)
    root = stream(machine, 1, PA, strw=EL2)
    assert verdict(machine, 1) == PA
    machine.map(root, VA, PA + PAGE, flags=AF | RW_S1 | NOT_GLOBAL)
    enable(machine, e2h=1)
    assert verdict(machine, 1) == PA + PAGE
    enable(machine, e2h=0)
    assert verdict(machine, 1) == PA
    machine.command(CmdTlbiEl2All.build())
    assert verdict(machine, 1) == PA + PAGE


@pytest.mark.parametrize("aset", [0, 1])
def test_global_entries_keep_to_their_asid_set(aset: int) -> None:
    """§3.17.1, §5.4 ASET: a global entry matches any ASID of its own set."""
    machine = machine_with(0)
    for sid, page, kind in ((1, PA, 0), (2, PA + PAGE, 1), (3, PA + 2 * PAGE, aset)):
        stream(machine, sid, page, flags=AF | RW_S1, asid=sid, aset=kind)
    found = [verdict(machine, sid) for sid in (1, 2, 3)]
    assert found == [PA, PA + PAGE, (PA, PA + PAGE)[aset]]


# Invalidation (§4.4).

STREAMS = {1: "el1", 2: "el2", 3: "el2 asid 8"}


@pytest.mark.parametrize(
    ("command", "el2", "e2h"),
    [
        (CmdTlbiNhAll.build(), {1}, {1}),
        (CmdTlbiNhAsid.build(asid=7), {1}, {1}),
        (CmdTlbiNhVa.build(asid=7, addr=VA), {1}, {1}),
        (CmdTlbiNhVaa.build(addr=VA), {1}, {1}),
        (CmdTlbiNsnhAll.build(), {1}, {1}),
        (CmdTlbiS12Vmall.build(), {1}, {1}),
        (CmdTlbiEl2All.build(), {2, 3}, {2, 3}),
        (CmdTlbiEl2Asid.build(asid=7), set(), {2}),
        (CmdTlbiEl2Asid.build(asid=9), set(), set()),
        (CmdTlbiEl2Va.build(asid=7, addr=VA), {2, 3}, {2}),
        (CmdTlbiEl2Va.build(asid=9, addr=VA, leaf=1), {2, 3}, set()),
        (CmdTlbiEl2Va.build(asid=7, addr=VA + PAGE), set(), set()),
        (CmdTlbiEl2Vaa.build(addr=VA), {2, 3}, {2, 3}),
        (CmdTlbiEl2Vaa.build(addr=0, tg=1, num=1, scale=3), {2, 3}, {2, 3}),
        (CmdTlbiEl2Vaa.build(addr=0, tg=1, num=3, scale=0), set(), set()),
    ],
    ids=lambda value: value.name if isinstance(value, Command) else None,
)
def test_each_world_has_its_own_invalidations(
    command: Command, el2: set[int], e2h: set[int]
) -> None:
    """§4.4.2: NH_* and NSNH_ALL are of NS-EL1, EL2_* of the EL2 world that CR2.E2H selects."""
    for on, expected in ((0, el2), (1, e2h)):
        machine = machine_with(on)
        roots = {}
        for sid, strw, asid in ((1, 0, 7), (2, EL2, 7), (3, EL2, 8)):
            roots[sid] = stream(machine, sid, PA, strw=strw, asid=asid)
            assert verdict(machine, sid) == PA
        for root in roots.values():
            machine.map(root, VA, PA + PAGE, flags=AF | RW_S1 | NOT_GLOBAL)
        machine.command(command)
        assert {sid for sid in roots if verdict(machine, sid) == PA + PAGE} == expected


def test_el2_va_drops_global_entries_of_e2h() -> None:
    """§4.4.2.8: with E2H=1 the ASID's entries and the global ones."""
    machine = machine_with(1)
    root = stream(machine, 1, PA, strw=EL2, flags=AF | RW_S1, asid=7)
    assert verdict(machine, 1) == PA
    machine.map(root, VA, PA + PAGE, flags=AF | RW_S1)
    machine.command(CmdTlbiEl2Asid.build(asid=7))
    assert verdict(machine, 1) == PA
    machine.command(CmdTlbiEl2Va.build(asid=9, addr=VA))
    assert verdict(machine, 1) == PA + PAGE


@pytest.mark.parametrize(
    "command", [CmdTlbiEl2Va.build(tg=1), CmdTlbiEl2Vaa.build(tg=2, ttl=1)], ids=lambda c: c.name
)
def test_reserved_range_is_illegal(command: Command) -> None:
    """§4.4.1: NUM, SCALE and the effective TTL all 0."""
    machine = machine_with(0)
    machine.post(command)
    machine.scheduler.run_until_idle()
    assert CmdqCons.err.of((machine.read("CMDQ_CONS"),)) == Cerror.ILL


def test_range_level_1_of_16k_needs_52_bit_descriptors() -> None:
    """§4.4.1: TG=10 with TTL=01 counts with IDR5.DS=1 alone."""
    machine = machine_with(0, HYP.replace(ds=1, vax=1, oas=6))
    machine.post(CmdTlbiEl2Vaa.build(tg=2, ttl=1))
    machine.scheduler.run_until_idle()
    assert CmdqCons.err.of((machine.read("CMDQ_CONS"),)) == Cerror.NONE


# VMID wildcards (§6.3.9 CR0.VMW).


@pytest.mark.parametrize(
    ("vmw", "expected"),
    [(0, {4}), (1, {4, 5}), (2, {4, 5, 7}), (3, {3, 4, 5, 7}), (4, {3, 4, 5, 7, 8}), (5, {4}),
     (7, {4})],
)  # fmt: skip
@pytest.mark.parametrize(
    "command",
    [CmdTlbiNhAll.build(vmid=4), CmdTlbiNhVaa.build(vmid=4, addr=VA),
     CmdTlbiNhAsid.build(vmid=4, asid=1), CmdTlbiS12Vmall.build(vmid=4)],
    ids=lambda command: command.name,
)  # fmt: skip
def test_vmid_wildcard(command: Command, vmw: int, expected: set[int]) -> None:
    """Invalidations ignore that many low VMID bits, lookups none; other values act as 0."""
    machine = Machine(Features.default().replace(vmw=1))
    enable(machine, e2h=0, vmw=vmw)
    vmids = (3, 4, 5, 7, 8, 16)
    roots = {}
    for sid, vmid in enumerate(vmids):
        roots[vmid] = stream(machine, sid, PA + vmid * PAGE, vmid=vmid)
        assert verdict(machine, sid) == PA + vmid * PAGE
    for root in roots.values():
        machine.map(root, VA, PA, flags=AF | RW_S1 | NOT_GLOBAL)
    machine.command(command)
    assert {v for sid, v in enumerate(vmids) if verdict(machine, sid) == PA} == expected


# E0PD (§5.4), SMMUv3.3.


@pytest.mark.parametrize("priv", [False, True])
def test_e0pd(priv: bool) -> None:
    """§5.4 E0PD0: an unprivileged access finds no translation; RES0 with IDR3.E0PD=0."""
    for have, expected in ((1, PA if priv else "F_TRANSLATION"), (0, PA)):
        machine = Machine(Features.default().replace(e0pd=have))
        stream(machine, 1, PA, e0pd0=1)
        assert verdict(machine, 1, priv=priv) == expected


def test_smmuv3_3() -> None:
    features = Features.default().replace(archminrev=3, e0pd=1, ptwnnc=1)
    assert features.ids["AIDR"] == 3
