# SPDX-License-Identifier: BSD-2-Clause
"""Registers and fields that features bring (IHI 0070 §6.2, §6.3); no second opinion.

Nothing that the model is compared with has PRI, ATS, MSI, BTM.
"""

from __future__ import annotations

import pytest

from vsmmu.arch.feature_registers import EVERY_REGISTER, FEATURE_REGISTERS
from vsmmu.arch.registers import Cr0, Cr2, Idr0, Idr1, IrqCtrl
from vsmmu.smmu import Features
from vsmmu.smmu.regfile import RegisterFile, register_at

OFFSET = {r.name: r.offset for r in EVERY_REGISTER}
WIDTH = {r.name: r.width // 8 for r in EVERY_REGISTER}
ALL = 0xFFFF_FFFF
PRI = {"ats": 1, "pri": 1}


def regs(*, page0_alias: bool = True, **idr0: int) -> RegisterFile:
    ids = dict(Features.default().ids)
    ids["IDR0"] = Idr0(ids["IDR0"]).replace(**idr0).raw
    ids["IDR1"] = Idr1(ids["IDR1"]).replace(priqs=5).raw
    return RegisterFile(ids, lambda name: None, page0_alias=page0_alias)


def write(file: RegisterFile, name: str, value: int) -> int:
    """The register after a write."""
    file.write(OFFSET[name], WIDTH[name], value)
    return read(file, name)


def read(file: RegisterFile, name: str) -> int:
    return file.read(OFFSET[name], WIDTH[name])


@pytest.mark.parametrize("name", [r.name for r in FEATURE_REGISTERS])
def test_a_register_of_an_absent_feature_is_res0(name: str) -> None:
    """§6.2."""
    assert write(regs(), name, (1 << 64) - 1) == 0


@pytest.mark.parametrize("name", ["S2PII", "AGBPA", "GMPAM", "VATOS_SEL", "DPT_BASE"])
def test_a_register_of_a_refused_feature_is_res0(name: str) -> None:
    """§6.2: whatever the identification registers say."""
    assert write(regs(**PRI, msi=1, atos=1, vatos=1), name, (1 << 64) - 1) == 0


@pytest.mark.parametrize(
    ("register", "fields", "feature"),
    [
        ("CR0", Cr0.mask("priqen")[0], PRI),
        ("CR0", Cr0.mask("atschk")[0], {"ats": 1}),
        ("CR0", Cr0.mask("vmw")[0], {"vmw": 1}),
        ("CR2", Cr2.mask("e2h")[0], {"hyp": 1}),
        ("CR2", Cr2.mask("ptm")[0], {"btm": 1}),
        ("CR2", Cr2.mask("rec_cfg_ats")[0], {"ats": 1, "atsrecerr": 1}),
        ("IRQ_CTRL", IrqCtrl.mask("priq_irqen")[0], PRI),
        ("PRIQ_IRQ_CFG2", 0x3F, {**PRI, "msi": 1}),
        ("PRIQ_IRQ_CFG2", 1 << 31, PRI),
    ],
)
def test_a_field_is_there_with_its_feature(
    register: str, fields: int, feature: dict[str, int]
) -> None:
    """§6.3.9, §6.3.12, §6.3.16, §6.3.36: RES0 without."""
    without = dict.fromkeys(feature, 0)
    if register.startswith("PRIQ") and fields != 1 << 31:
        without = {**PRI, "msi": 0}
    assert not write(regs(**without), register, ALL) & fields
    assert write(regs(**feature), register, ALL) & fields == fields


@pytest.mark.parametrize(("register", "ack"), [("CR0", "CR0ACK"), ("IRQ_CTRL", "IRQ_CTRLACK")])
def test_reserved_bits_are_never_acknowledged(register: str, ack: str) -> None:
    """§6.3.10, §6.3.17."""
    file = regs(**PRI, vmw=1)
    assert write(file, register, ALL) == read(file, ack)
    assert read(file, ack) == (0x1DF if register == "CR0" else 7)
    assert write(file, register, 0) == read(file, ack) == 0


def test_stream_table_format_needs_two_levels() -> None:
    """§6.3.25: FMT and SPLIT are RES0 with IDR0.ST_LEVEL=0."""
    value = 1 << 16 | 8 << 6 | 12
    assert write(regs(), "STRTAB_BASE_CFG", value) == value
    assert write(regs(st_level=0), "STRTAB_BASE_CFG", value) == 12


# The PRI queue's registers.


@pytest.mark.parametrize(
    ("name", "value"), [("PRIQ_BASE", 0x8000_0005), ("PRIQ_PROD", 1 << 31 | 3)]
)
def test_the_pri_queue_is_guarded_by_priqen(name: str, value: int) -> None:
    """§6.3.33: by CR0.PRIQEN as written, whatever SMMUEN is."""
    file = regs(**PRI)
    write(file, "PRIQ_BASE", 4)
    before = read(file, name)
    write(file, "CR0", Cr0.build(priqen=1).raw)
    assert write(file, name, value) == before
    write(file, "CR0", 0)
    assert write(file, name, value) == value


def test_priq_cons_is_always_writable() -> None:
    """§6.3.98."""
    file = regs(**PRI)
    write(file, "PRIQ_BASE", 4)
    write(file, "CR0", Cr0.build(priqen=1, smmuen=1).raw)
    assert write(file, "PRIQ_CONS", 1 << 31 | 7) == 1 << 31 | 7


def test_priq_indexes_show_the_bits_that_count() -> None:
    """§6.3.97: up to the wrap bit; the size is capped by IDR1.PRIQS and read back as written."""
    file = regs(**PRI)
    write(file, "PRIQ_BASE", 3)
    assert write(file, "PRIQ_PROD", ALL) == 1 << 31 | 0xF
    assert write(file, "PRIQ_BASE", 31) == 31
    assert write(file, "PRIQ_CONS", ALL) == 1 << 31 | 0x3F


@pytest.mark.parametrize("cfg", [0, 1, 2])
@pytest.mark.parametrize("source", ["GERROR", "EVENTQ", "PRIQ"])
def test_interrupt_configuration_is_guarded_by_its_own_enable(source: str, cfg: int) -> None:
    """§6.3.21 to §6.3.23, §6.3.30 to §6.3.36."""
    file = regs(**PRI, msi=1)
    name, value = f"{source}_IRQ_CFG{cfg}", (0x8000_0040, DATA, 0x3F)[cfg]
    enable = f"{source.lower()}_irqen"
    write(file, "IRQ_CTRL", IrqCtrl.build(**{enable: 1}).raw)
    assert write(file, name, value) == 0
    others = [one for one in IrqCtrl.fields if one != enable]
    write(file, "IRQ_CTRL", IrqCtrl.build(**dict.fromkeys(others, 1)).raw)
    assert write(file, name, value) == value


DATA = 0xFFFF_FFFF


def test_interrupt_configuration_keeps_its_fields_alone() -> None:
    """§6.3.21: ADDR [55:2], MemAttr [3:0], SH [5:4]."""
    file = regs(**PRI, msi=1)
    assert write(file, "EVENTQ_IRQ_CFG0", (1 << 64) - 1) == (1 << 56) - 4
    assert write(file, "EVENTQ_IRQ_CFG2", ALL) == 0x3F
    assert write(file, "PRIQ_IRQ_CFG2", ALL) == 1 << 31 | 0x3F


def test_page_0_aliases_of_the_pri_queue() -> None:
    """§6.2: 0xC8 and 0xCC, where there is PRI."""
    for there, alias, expected in ((1, True, 3), (1, False, 0), (0, True, 0)):
        file = regs(ats=there, pri=there, page0_alias=alias)
        write(file, "PRIQ_BASE", 4)
        file.write(0x0CC, 4, 3)
        assert file.read(0x0CC, 4) == expected
        assert read(file, "PRIQ_CONS") == expected


def test_cr1_queue_attributes_are_guarded_by_priqen_too() -> None:
    """§6.3.11."""
    file = regs(**PRI)
    write(file, "CR0", Cr0.build(priqen=1).raw)
    assert write(file, "CR1", 0xD75) == 0xD40


def test_names_of_registers_of_features() -> None:
    assert register_at(0x0C4) == "PRIQ_BASE"
    assert register_at(0x0CC) == register_at(0x100CC) == "PRIQ_CONS"


# Global errors (§6.3.19, §6.3.20).


def test_each_error_toggles_its_own_bit() -> None:
    file = regs(**PRI, msi=1)
    names = ("cmdq_err", "eventq_abt_err", "priq_abt_err", "msi_gerror_abt_err", "sfm_err")
    for name in names:
        assert file.raise_gerror(name)
    assert read(file, "GERROR") == 0x18D
    write(file, "GERRORN", 0x005)
    assert file.gerror_active == 0x188
    assert file.raise_gerror("cmdq_err")
    assert not file.raise_gerror("sfm_err")
    assert read(file, "GERROR") == 0x18C


def test_gerrorn_reads_as_written_and_gerror_is_read_only() -> None:
    file = regs()
    assert write(file, "GERRORN", ALL) == 0x1FD
    assert write(file, "GERROR", ALL) == 0


# Updates that take their time: an owner may delay an acknowledgement, as a vSMMU does.


def test_a_guard_holds_until_the_update_is_complete() -> None:
    """§6.3: SMMUEN=0 that is not acknowledged yet still guards."""
    file = regs()
    write(file, "CR0", 1)
    write(file, "CR0", 0)
    file.set_fields("CR0ACK", smmuen=1)
    assert write(file, "STRTAB_BASE", 0x8000_0000) == 0
    file.set_fields("CR0ACK", smmuen=0)
    assert write(file, "STRTAB_BASE", 0x8000_0000) == 0x8000_0000


def test_gbpa_is_not_written_during_its_update() -> None:
    """§6.3.14: nor with Update=0; a 64-bit access reaches it as two 32-bit ones."""
    file = regs()
    write(file, "GBPA", 1 << 31 | 1 << 20)
    file.set_fields("GBPA", update=1)
    assert write(file, "GBPA", 1 << 31) == 1 << 31 | 1 << 20
    file.set_fields("GBPA", update=0)
    assert write(file, "GBPA", 0) == 1 << 20
    assert write(file, "GBPA", 1 << 31) == 0
