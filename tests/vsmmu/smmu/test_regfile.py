# SPDX-License-Identifier: BSD-2-Clause
"""Register access rules (IHI 0070 §6.2, §6.3), through an SMMU's MMIO."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counts import sliced
from vsmmu.arch.registers import BY_NAME
from vsmmu.smmu import Features
from vsmmu.smmu.regfile import RegisterFile, register_at


@pytest.fixture
def regs() -> RegisterFile:
    return RegisterFile(Features.default().ids, lambda name: None)


def at(name: str) -> int:
    return BY_NAME[name].offset


def test_identification_is_read_only(regs: RegisterFile) -> None:
    regs.write(0, 4, 0)
    assert regs.read(0, 4) == 0x0D44_121B


def test_both_halves_of_a_64_bit_register(regs: RegisterFile) -> None:
    base = at("STRTAB_BASE")
    regs.write(base + 4, 4, 0x4000_0012)
    regs.write(base, 4, 0x3456_7FC0)
    assert regs.read(base, 8) == 0x4000_0012_3456_7FC0
    assert regs.read(base + 4, 4) == 0x4000_0012


def test_64_bit_access_to_two_32_bit_registers(regs: RegisterFile) -> None:
    """§6.2 leaves it open; both are accessed, also where the first does not exist."""
    regs.write(at("CMDQ_BASE"), 8, 19)
    regs.write(at("CMDQ_PROD"), 8, 7 << 32 | 5)
    assert regs.read(at("CMDQ_PROD"), 8) == 7 << 32 | 5
    regs.write(0x040, 8, 0x8010_0000 << 32)
    assert regs.read(0x044, 4) == 0x0010_0000


@pytest.mark.parametrize(
    ("offset", "size"), [(0x20, 1), (0x20, 2), (0x22, 4), (0x84, 8), (0x20, 3)]
)
def test_wrong_width_or_alignment(regs: RegisterFile, offset: int, size: int) -> None:
    regs.write(offset, size, 0xFF)
    assert regs.read(offset, size) == 0
    assert regs.read(0x20, 4) == 0


@pytest.mark.parametrize(
    "offset", [0x040, 0x180, 0xE00, 0x4000, 0x8020, 0x1_0000, 0x2_0000, 1 << 40]
)
def test_unknown_places_read_zero(regs: RegisterFile, offset: int) -> None:
    regs.write(offset, 4, 0xFFFF_FFFF)
    assert regs.read(offset, 4) == 0


def test_component_identification(regs: RegisterFile) -> None:
    assert [regs.read(0xFF0 + 4 * i, 4) for i in range(4)] == [0x0D, 0xF0, 0x05, 0xB1]


def test_cr0_handshake_acknowledges_only_what_exists(regs: RegisterFile) -> None:
    """§6.3.9: PRIQEN, ATSCHK and VMW are RES0 here."""
    regs.write(at("CR0"), 4, 0xFFFF_FFFF)
    assert regs.read(at("CR0ACK"), 4) == 0xD
    assert regs.read(at("CR0"), 4) == 0xD


def test_irq_ctrl_without_pri(regs: RegisterFile) -> None:
    regs.write(at("IRQ_CTRL"), 4, 7)
    assert regs.read(at("IRQ_CTRLACK"), 4) == 5


@pytest.mark.parametrize(
    ("enable", "name", "value"),
    [
        (1, "STRTAB_BASE", 0x8000_0000),
        (1, "STRTAB_BASE_CFG", 8),
        (1, "CR2", 2),
        (8, "CMDQ_BASE", 0x8000_0005),
        (8, "CMDQ_CONS", 3),
        (4, "EVENTQ_BASE", 0x8000_0005),
        (4, "EVENTQ_PROD", 3),
    ],
)
def test_guarded_writes_are_ignored(regs: RegisterFile, enable: int, name: str, value: int) -> None:
    for base in ("CMDQ_BASE", "EVENTQ_BASE"):
        regs.write(at(base), 8, 4)
    size = BY_NAME[name].width // 8
    before = regs.read(at(name), size)
    regs.write(at("CR0"), 4, enable)
    regs.write(at(name), size, value)
    assert regs.read(at(name), size) == before
    regs.write(at("CR0"), 4, 0xD & ~enable)
    regs.write(at(name), size, value)
    assert regs.read(at(name), size) == value


def test_cr1_fields_have_their_own_guards(regs: RegisterFile) -> None:
    """§6.3.11: TABLE_* by SMMUEN, QUEUE_* by the queue enables."""
    regs.write(at("CR0"), 4, 1)
    regs.write(at("CR1"), 4, 0xD75)
    assert regs.read(at("CR1"), 4) == 0x035
    regs.write(at("CR0"), 4, 4)
    regs.write(at("CR1"), 4, 0xD40)
    assert regs.read(at("CR1"), 4) == 0xD75


def test_always_writable_indexes(regs: RegisterFile) -> None:
    for base in ("CMDQ_BASE", "EVENTQ_BASE"):
        regs.write(at(base), 8, 4)
    regs.write(at("CR0"), 4, 0xD)
    regs.write(at("CMDQ_PROD"), 4, 5)
    regs.write(at("EVENTQ_CONS"), 4, 1 << 31 | 5)
    assert regs.read(at("CMDQ_PROD"), 4) == 5
    assert regs.read(at("EVENTQ_CONS"), 4) == 1 << 31 | 5


def test_index_bits_above_the_wrap_bit_read_zero(regs: RegisterFile) -> None:
    """§6.3.27."""
    regs.write(at("CMDQ_BASE"), 8, 3)
    regs.write(at("CMDQ_PROD"), 4, 0xFFFF_FFFF)
    regs.write(at("CMDQ_CONS"), 4, 0x7F00_00FF)
    assert regs.read(at("CMDQ_PROD"), 4) == 0xF
    assert regs.read(at("CMDQ_CONS"), 4) == 0x7F00_000F
    regs.write(at("CMDQ_BASE"), 8, 31)
    assert regs.read(at("CMDQ_PROD"), 4) == 0xF_FFFF


def test_gbpa_needs_update(regs: RegisterFile) -> None:
    """§6.3.14."""
    assert regs.read(at("GBPA"), 4) == 0x1000
    regs.write(at("GBPA"), 4, 0x0010_0000)
    assert regs.read(at("GBPA"), 4) == 0x1000
    regs.write(at("GBPA"), 4, 0x8010_0000)
    assert regs.read(at("GBPA"), 4) == 0x0010_0000


def test_msi_registers_are_absent(regs: RegisterFile) -> None:
    """§6.3.21: RES0 with IDR0.MSI=0."""
    regs.write(at("EVENTQ_IRQ_CFG0"), 8, 0x1234_5678)
    assert regs.read(at("EVENTQ_IRQ_CFG0"), 8) == 0


def test_gerror_toggles(regs: RegisterFile) -> None:
    """§6.3.19: an active error is not raised again until it is acknowledged."""
    assert regs.raise_gerror("cmdq_err")
    assert not regs.raise_gerror("cmdq_err")
    assert regs.read(at("GERROR"), 4) == 1
    regs.write(at("GERRORN"), 4, 1)
    assert regs.gerror_active == 0
    assert regs.raise_gerror("cmdq_err")
    assert regs.read(at("GERROR"), 4) == 0


def test_page_0_aliases() -> None:
    """§6.2 leaves it open; drivers for one implementation need it."""
    for alias, expected in ((True, 5), (False, 0)):
        regs = RegisterFile(Features.default().ids, lambda name: None, page0_alias=alias)
        regs.write(at("EVENTQ_BASE"), 8, 8)
        regs.write(0x0AC, 4, 5)
        assert regs.read(at("EVENTQ_CONS"), 4) == expected
        assert regs.read(0x0AC, 4) == expected


def test_owner_hears_of_effective_writes_only() -> None:
    heard: list[str] = []
    regs = RegisterFile(Features.default().ids, heard.append)
    regs.write(at("CR0"), 4, 8)
    regs.write(at("CMDQ_BASE"), 8, 8)
    regs.write(0, 4, 8)
    regs.write(at("GBPA"), 4, 0)
    assert heard == ["CR0"]


def test_names_at_offsets() -> None:
    assert register_at(0x84) == "STRTAB_BASE"
    assert register_at(0x0A8) == "EVENTQ_PROD"
    assert register_at(0x24) == "CR0ACK"
    assert register_at(0x04C) == "0x4c"


@sliced(200)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(sorted(r.offset for r in BY_NAME.values())),
                st.integers(-8, 1 << 18),
            ),
            st.integers(-1, 9),
            st.integers(-1, 1 << 70),
        ),
        max_size=30,
    )
)
def test_any_access_is_defined(accesses: list[tuple[int, int, int]]) -> None:
    regs = RegisterFile(Features.default().ids, lambda name: None)
    for offset, size, value in accesses:
        regs.write(offset, size, value)
        assert 0 <= regs.read(offset, size) < 1 << 64
    assert all(0 <= value < 1 << BY_NAME[n].width for n, value in regs.values.items())
    assert all(not regs.values[name] & ~reg.layout.claimed[0] for name, reg in BY_NAME.items())
