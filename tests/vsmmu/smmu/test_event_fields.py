# SPDX-License-Identifier: BSD-2-Clause
"""Fields of event records that one kind or one way to a fault makes special (IHI 0070 §7.3)."""

from __future__ import annotations

import pytest

from vsmmu.arch.registers import BY_NAME
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.memory import Memory
from vsmmu.smmu import Access, Features, Smmu

from .machine import Machine


@pytest.mark.parametrize("how", ["bypass", "s1dss", "stage 2"])
@pytest.mark.parametrize("batch", [False, True])
def test_address_size_of_a_bypass_has_overridden_attributes(how: str, batch: bool) -> None:
    """§7.3.14: InD and PnU are the values after STE.INSTCFG and STE.PRIVCFG; InD=0 for a write."""
    machine = Machine(Features.default().replace(attr_perms_ovr=1, ssidsize=4))
    fields = {
        "bypass": {"config": 4},
        "s1dss": {"config": 5, "s1cdmax": 2, "s1dss": 1},
        "stage 2": {"config": 6, **machine.s2_fields(machine.s2_root())},
    }[how]
    machine.ste(1, privcfg=3, instcfg=3, **fields)
    machine.ste(2, privcfg=2, instcfg=2, **fields)
    for sid, on, write in ((1, False, False), (1, False, True), (2, True, False)):
        if batch:
            machine.smmu.translate_many(sid, [1 << 50], write=write, instr=on, priv=on)
        else:
            machine.go(sid, 1 << 50, write=write, instr=on, priv=on)
    found = [
        (event.name, *(event.fields[name].of(event.words) for name in ("pnu", "ind", "s2")))
        for event in machine.events()
    ]
    assert found == [("F_ADDR_SIZE", 1, 1, 0), ("F_ADDR_SIZE", 1, 0, 0), ("F_ADDR_SIZE", 0, 0, 0)]


@pytest.mark.parametrize("ssid", [0, 5])
@pytest.mark.parametrize("config", [4, 5])
def test_a_bad_substreamid_has_no_ssv(config: int, ssid: int) -> None:
    """§7.3.9: the SubstreamID is always valid, there is no SSV; bits 11:8 are RES0."""
    machine = Machine()
    machine.ste(1, config=config, s1ctxptr=machine.cd())
    machine.go(1, 0, ssid=ssid)
    (event,) = machine.events()
    assert event.words == (1 << 32 | ssid << 12 | 0x08, 0, 0, 0)


@pytest.mark.parametrize("two_level", [False, True])
def test_fetchaddr_of_an_ste_beyond_oas(two_level: bool) -> None:
    """§7.3.4: FetchAddr[55:OAS] is RES0."""
    high, low = 1 << 40, 1 << 20
    memory = Memory([(high, 1 << 21), (0, 1 << 12)])
    memory.write(high | low, bytes(Ste.build(v=1, config=4)))
    memory.write(0, bytes(L1Std.build(span=1, l2ptr=high | low)))
    smmu = Smmu("smmu0", memory, Features.default(oas=36))
    cfg = 1 << 16 | 6 << 6 | 8 if two_level else 4
    for name, value in (
        ("STRTAB_BASE", 0 if two_level else high | low),
        ("STRTAB_BASE_CFG", cfg),
        ("CR0", 1),
    ):
        smmu.mmio_write(BY_NAME[name].offset, BY_NAME[name].width // 8, value)
    event = smmu.translate(Access(0, 0, False)).event
    assert event is not None
    assert event.name == "F_STE_FETCH"
    assert event.fields["fetchaddr"].of(event.words) == low
