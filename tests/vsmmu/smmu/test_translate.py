# SPDX-License-Identifier: BSD-2-Clause
"""What becomes of an access: order of decisions, faults and their records (IHI 0070 §3.4, §7.3)."""

from __future__ import annotations

import pytest

from vsmmu.arch.events import Event
from vsmmu.memory import PAGE
from vsmmu.smmu import Features, Outcome
from vsmmu.smmu.transaction import EXEC, READ, WRITE

from .machine import AF, NOWHERE, RW_S1, RW_S2, Machine

DATA = 0x8F00_0000
RO_S1 = RW_S1 | 1 << 7


def describe(outcome: Outcome) -> dict[str, object]:
    """The fields of an outcome's event that a test compares."""
    event = outcome.event
    assert event is not None
    out: dict[str, object] = {"name": event.name}
    for name in ("s2", "cls", "ipa", "fetchaddr", "rnw", "ind", "pnu", "ttrnw", "inputaddr"):
        if name in event.fields:
            out[name] = event.fields[name].of(event.words)
    return out


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


# Without translation.


def test_disabled_smmu_bypasses_or_aborts(make_machine: type[Machine]) -> None:
    """§6.3.14: GBPA decides, nothing is recorded, StreamIDs do not matter."""
    machine = make_machine(boot=False)
    assert machine.go(1 << 31, 0x1234, ssid=3) == Outcome("bypass", 0x1234, None, 7)
    assert machine.go(0, 1 << 48).status == "abort"
    machine.write("GBPA", 0x8010_0000)
    assert machine.go(0, 0x1234) == Outcome("abort", None, None, 0)


def test_bypass_ste_checks_the_address_size() -> None:
    """§3.4: F_ADDR_SIZE of stage 1, CLASS IN."""
    machine = Machine(Features.default(oas=40))
    machine.ste(1, config=4)
    assert machine.go(1, (1 << 40) - 1).status == "bypass"
    assert describe(machine.go(1, 1 << 40, write=True)) == {
        "name": "F_ADDR_SIZE", "s2": 0, "cls": 2, "ipa": 0, "rnw": 0, "ind": 0, "pnu": 0,
        "inputaddr": 1 << 40,
    }  # fmt: skip


def test_stage_2_only_checks_the_address_size_as_stage_1() -> None:
    """§3.4: beyond the IPA size S2=0; beyond S2T0SZ only S2=1, and then S2R counts."""
    machine = Machine(Features.default(oas=44))
    machine.ste(1, config=6, **machine.s2_fields(machine.s2_root(), s2r=0))
    assert describe(machine.go(1, 1 << 44))["s2"] == 0
    assert machine.go(1, 1 << 41) == Outcome("fault")


def test_stage_2_input_does_not_wrap(machine: Machine) -> None:
    """§3.4: an IPA beyond S2T0SZ is no alias of a lower one."""
    root = machine.s2_root()
    machine.ste(1, config=6, **machine.s2_fields(root))
    machine.map(root, 0, DATA, flags=AF | RW_S2)
    assert machine.go(1, 0).pa == DATA
    event = describe(machine.go(1, 1 << 40))
    assert (event["name"], event["s2"], event["ipa"]) == ("F_TRANSLATION", 1, 1 << 40)


# Stage 1.


def test_stage_1_page(machine: Machine) -> None:
    root = machine.s1_stream(1)
    machine.map(root, 0x40_0000, DATA)
    assert machine.go(1, 0x40_0123) == Outcome("ok", DATA + 0x123, None, READ | WRITE | EXEC)
    assert machine.go(1, 0x40_0123, write=True).pa == DATA + 0x123


def test_both_halves_and_the_range_check(machine: Machine) -> None:
    low, high = machine.alloc(PAGE), machine.alloc(PAGE)
    machine.s1_stream(1, root=low, epd1=0, tg1=2, t1sz=25, ttb1=high)
    machine.map(low, 0, DATA)
    machine.map(high, 0, DATA + PAGE)
    assert machine.go(1, 0x10).pa == DATA + 0x10
    assert machine.go(1, 0xFFFF_FF80_0000_0010).pa == DATA + PAGE + 0x10
    for iova in (1 << 39, 1 << 55, 1 << 63, 0xFFFF_FF00_0000_0000, 0x7FFF_FF80_0000_0000):
        assert describe(machine.go(1, iova))["name"] == "F_TRANSLATION", hex(iova)


@pytest.mark.parametrize("tbi", [0, 1])
def test_top_byte(machine: Machine, tbi: int) -> None:
    """§3.4.1: with TBI bits 63:56 are a tag, without they must match; the record has them."""
    root = machine.s1_stream(1, tbi0=tbi)
    machine.map(root, 0, DATA)
    outcome = machine.go(1, 0xAB00_0000_0000_0008)
    if tbi:
        assert outcome.pa == DATA + 8
        tagged = machine.go(1, 0xAB00_0000_0000_1008)
        assert describe(tagged)["inputaddr"] == 0xAB00_0000_0000_1008
    else:
        assert describe(outcome)["name"] == "F_TRANSLATION"


def test_disabled_half(machine: Machine) -> None:
    machine.s1_stream(1)
    assert describe(machine.go(1, 0xFFFF_FFFF_FFFF_0000))["name"] == "F_TRANSLATION"


@pytest.mark.parametrize(
    ("how", "needs"),
    [({}, 0), ({"priv": True}, 0), ({"write": True}, 1), ({"instr": True}, 2)],
)
def test_denied_access_says_what_it_was(machine: Machine, how: dict[str, bool], needs: int) -> None:
    """§7.3.16: PnU, InD and RnW; a write is never an instruction."""
    root = machine.s1_stream(1)
    machine.map(root, 0, DATA, flags=AF | 1 << 53 | 1 << 54 | (RO_S1 if needs else 0))
    outcome = machine.go(1, 0, **how)  # type: ignore[arg-type]
    if how == {"priv": True}:
        assert outcome.status == "ok"
        return
    assert describe(outcome) == {
        "name": "F_PERMISSION", "s2": 0, "cls": 2, "ipa": 0, "inputaddr": 0, "ttrnw": 0,
        "rnw": int("write" not in how), "ind": int("instr" in how), "pnu": 0,
    }  # fmt: skip
    both = machine.go(1, 0, write=True, instr=True, priv=False)
    assert describe(both)["ind"] == 0


def test_access_flag_and_affd(machine: Machine) -> None:
    for sid, affd in ((1, 0), (2, 1)):
        root = machine.s1_stream(sid, affd=affd, asid=sid)
        machine.map(root, 0, DATA, flags=RW_S1)
    assert describe(machine.go(1, 0))["name"] == "F_ACCESS"
    assert machine.go(2, 0).pa == DATA


def test_address_size_comes_before_the_access_flag(machine: Machine) -> None:
    """§7.3.14."""
    root = machine.s1_stream(1, ips=0)
    machine.map(root, 0, 1 << 33, flags=RW_S1)
    assert describe(machine.go(1, 0))["name"] == "F_ADDR_SIZE"


def test_walk_abort(machine: Machine) -> None:
    """§7.3.12: stage 1 descriptor fetch, CLASS TT, with the address."""
    root = machine.s1_stream(1)
    machine.memory.write64(root, NOWHERE | 3)
    event = describe(machine.go(1, 8 << 21))
    assert (event["name"], event["s2"], event["cls"]) == ("F_WALK_EABT", 0, 1)
    assert event["fetchaddr"] == NOWHERE + 8 * 8


@pytest.mark.parametrize("r", [0, 1])
def test_cd_r_suppresses_translation_faults_only(machine: Machine, r: int) -> None:
    """§5.5: not F_WALK_EABT, not C_BAD_CD."""
    root = machine.s1_stream(1, r=r)
    machine.memory.write64(root + 8, NOWHERE | 3)
    assert machine.go(1, 0).status == "fault"
    assert machine.go(1, 1 << 30).status == "fault"
    assert names(machine.events()) == (["F_TRANSLATION"] if r else []) + ["F_WALK_EABT"]


def test_overrides_need_their_feature() -> None:
    """§5.2 PRIVCFG and INSTCFG, with IDR1.ATTR_PERMS_OVR."""
    for override in (0, 1):
        machine = Machine(Features.default().replace(attr_perms_ovr=override))
        root = machine.alloc(PAGE)
        machine.map(root, 0, DATA, flags=AF | 1 << 54)
        cd = machine.cd(ttb0=root)
        machine.ste(1, config=5, s1ctxptr=cd, privcfg=3, instcfg=3)
        machine.ste(2, config=5, s1ctxptr=cd, privcfg=2, instcfg=2)
        privileged = machine.go(1, 0)
        unprivileged = machine.go(2, 0, priv=True, instr=True)
        if override:
            assert privileged.status == "ok"
            event = describe(unprivileged)
            assert (event["name"], event["pnu"], event["ind"]) == ("F_PERMISSION", 0, 0)
        else:
            assert describe(privileged)["name"] == "F_PERMISSION"
            assert unprivileged.status == "ok"


def test_counters_and_trace_by_fate() -> None:
    from vsmmu.smmu import Access, Smmu
    from vsmmu.trace import Trace

    machine = Machine()
    trace = Trace()
    smmu = Smmu("smmu9", machine.memory, machine.features, trace=trace)
    smmu.mmio_read(0, 4)
    smmu.mmio_write(0x2C, 4, 2)
    smmu.mmio_write(0x20, 4, 1)
    smmu.translate(Access(1 << 20, 0x1000, False))
    assert [str(r) for r in trace.records] == [
        "smmuv3_read_mmio smmu smmu9 reg IDR0 value 0xd44121b size 0x4",
        "smmuv3_write_mmio smmu smmu9 reg CR2 value 0x2 size 0x4",
        "smmuv3_write_mmio smmu smmu9 reg CR0 value 0x1 size 0x4",
        "smmuv3_walk smmu smmu9 sid 0x100000 iova 0x1000 config 0x0 s1 0x0 s2 0x0 "
        "tlb_hit 0x0 tlb_miss 0x0",
        "smmuv3_translate_fault smmu smmu9 sid 0x100000 iova 0x1000 status fault "
        "event C_BAD_STREAMID",
    ]
    assert smmu.counters["txn.fault"] == 1
