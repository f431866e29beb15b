# SPDX-License-Identifier: BSD-2-Clause
"""Why an STE or a CD is ILLEGAL (IHI 0070 §5.2.2, §5.4.2), a vector for each reason.

No second opinion: QEMU has a part of these rules. The property tests hold the reasons against the
decoders of `vsmmu.smmu`, which were written apart from them.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counts import sliced
from vsmmu.arch.context import Cd
from vsmmu.arch.describe import EVERYTHING
from vsmmu.arch.layout import Layout
from vsmmu.arch.legality import Ids
from vsmmu.arch.legality_cd import cd_reasons
from vsmmu.arch.legality_ste import ste_reasons, strw_used, world_of
from vsmmu.arch.registers import Idr0, Idr1, Idr3, Idr5
from vsmmu.arch.stream_table import Ste, SteConfig, World
from vsmmu.smmu.cd import decode_cd
from vsmmu.smmu.features import Features
from vsmmu.smmu.ste import decode_ste

IDR_FIELDS = {
    **dict.fromkeys(Idr0.fields, "idr0"), **dict.fromkeys(Idr1.fields, "idr1"),
    **dict.fromkeys(Idr3.fields, "idr3"), **dict.fromkeys(Idr5.fields, "idr5"),
    "archminrev": "aidr",
}  # fmt: skip


def ids(**changes: int) -> Ids:
    """Everything, with these identification fields changed."""
    values = {name: getattr(EVERYTHING, name) for name in ("idr0", "idr1", "idr3", "idr5", "aidr")}
    for field, value in changes.items():
        register = IDR_FIELDS[field]
        values[register] = values[register].replace(**{field: value})
    return Ids(**values)


S1 = Ste.build(v=1, config=SteConfig.S1)
# A 40-bit IPA space that starts at level 1 of 4K tables.
S2 = Ste.build(v=1, config=SteConfig.S2, s2aa64=1, s2t0sz=24, s2sl0=1, s2ps=5)
NESTED = S2.replace(config=SteConfig.NESTED)
BYPASS = Ste.build(v=1, config=SteConfig.BYPASS)

# name: (STE, changes to it, changes to the features, {field: reason})
STES: dict[str, tuple[Ste, dict[str, int], dict[str, int], dict[str, str]]] = {
    "V": (S1, {"v": 0}, {}, {"v": "V=0: the STE is invalid"}),
    "stage 1 absent": (
        S1, {}, {"s1p": 0}, {"config": "Config=5 has stage 1, which needs IDR0.S1P=1"},
    ),
    "stage 2 absent": (
        S2, {}, {"s2p": 0}, {"config": "Config=6 has stage 2, which needs IDR0.S2P=1"},
    ),
    "split-stage ATS, stage 2 only": (
        S2, {"eats": 2}, {}, {"eats": "EATS=2 (split-stage) needs Config=7, not 6"},
    ),
    "split-stage ATS that stalls": (
        NESTED, {"eats": 2, "s2s": 1}, {},
        {"eats": "EATS=2 (split-stage) with S2S=1: ATS cannot stall"},
    ),
    "split-stage ATS absent": (
        NESTED, {"eats": 2}, {"ns1ats": 1}, {"eats": "EATS=2 (split-stage) needs IDR0.NS1ATS=0"},
    ),
    "full ATS that stalls": (
        S2, {"eats": 1, "s2s": 1}, {}, {"eats": "EATS=1 with S2S=1: ATS cannot stall"},
    ),
    "DPT outside NS-EL1": (
        S1, {"eats": 3, "strw": 2}, {"dpt": 1},
        {"eats": "EATS=3 (DPT) needs StreamWorld NS-EL1"},
    ),
    "STRW": (S1, {"strw": 1}, {}, {"strw": "STRW=1 is reserved"}),
    "S1STALLD": (
        S1, {"s1stalld": 1}, {"stall_model": 1},
        {"s1stalld": "S1STALLD=1 needs IDR0.STALL_MODEL=0, not 1"},
    ),
    "S1CDMax": (
        S1, {"s1cdmax": 9}, {"ssidsize": 8},
        {"s1cdmax": "S1CDMax=9 is more than IDR1.SSIDSIZE=8"},
    ),
    "S1Fmt": (
        S1, {"s1cdmax": 1, "s1fmt": 2}, {"cd2l": 0},
        {"s1fmt": "S1Fmt=2 (2-level) needs IDR0.CD2L=1"},
    ),
    "S1ContextPtr, stage 1": (
        S1, {"s1ctxptr": 1 << 44}, {"oas": 4},
        {"s1ctxptr": "S1ContextPtr=0x100000000000 is beyond OAS, 44 bits"},
    ),
    "S1ContextPtr, nested": (
        NESTED, {"s1ctxptr": 1 << 44}, {"oas": 4},
        {"s1ctxptr": "S1ContextPtr=0x100000000000 is beyond the IPA size, 44 bits"},
    ),
    "S2S absent": (
        S2, {"s2s": 1}, {"stall_model": 1},
        {"s2s": "S2S=1 with IDR0.STALL_MODEL=1 (terminate only)"},
    ),
    "S2S forced": (
        S2, {}, {"stall_model": 2}, {"s2s": "S2S=0 with IDR0.STALL_MODEL=2 (stall forced)"},
    ),
    "S2AA64": (
        S2, {"s2aa64": 0}, {}, {"s2aa64": "S2AA64=0 (AArch32 tables) needs IDR0.TTF[0]=1"},
    ),
    "S2AA64, AArch32 only": (
        S2, {}, {"ttf": 1}, {"s2aa64": "S2AA64=1 (AArch64 tables) needs IDR0.TTF[1]=1"},
    ),
    "S2FWB with AArch32": (
        S2, {"s2aa64": 0, "s2fwb": 1}, {"ttf": 3}, {"s2fwb": "S2FWB=1 with AArch32 tables"},
    ),
    "S2HA with AArch32": (
        S2, {"s2aa64": 0, "s2ha": 1}, {"ttf": 3}, {"s2ha": "S2HA or S2HD with AArch32 tables"},
    ),
    "S2ENDI": (
        S2, {"s2endi": 1}, {},
        {"s2endi": "S2ENDI=1 with IDR0.TTENDIAN=2 (little-endian only)"},
    ),
    "S2ENDI, big-endian only": (
        S2, {}, {"ttendian": 3}, {"s2endi": "S2ENDI=0 with IDR0.TTENDIAN=3 (big-endian only)"},
    ),
    "S2HA": (S2, {"s2ha": 1}, {"httu": 0}, {"s2ha": "S2HA=1 needs IDR0.HTTU>=1"}),
    "S2HD": (
        S2, {"s2ha": 1, "s2hd": 1}, {"httu": 1}, {"s2hd": "S2HD=1 needs IDR0.HTTU>=2, not 1"},
    ),
    "S2HAFT": (S2, {"s2haft": 1}, {"httu": 3}, {"s2haft": "S2HAFT=1 needs S2HA=1"}),
    "S2TG reserved": (S2, {"s2tg": 3}, {}, {"s2tg": "S2TG=3 is reserved"}),
    "S2TG absent": (
        S2, {}, {"gran4k": 0}, {"s2tg": "S2TG=0 (4K granule) needs IDR5.GRAN4K=1"},
    ),
    "S2TTB beyond S2PS": (
        S2, {"s2ps": 0, "s2ttb": 1 << 32}, {},
        {"s2ttb": "S2TTB=0x100000000 is beyond 32 bits (S2PS=0, OAS)"},
    ),
    "S2TTB beyond 48 bits": (
        S2, {"s2ps": 6, "s2ttb": 1 << 48}, {},
        {"s2ttb": "S2TTB=0x1000000000000 is beyond 48 bits (S2PS=6, OAS)"},
    ),
    "S2T0SZ small": (
        S2, {"s2t0sz": 15, "s2sl0": 2}, {}, {"s2t0sz": "S2T0SZ=15 is not in 16 to 48"},
    ),
    "S2T0SZ large": (
        S2, {"s2t0sz": 40, "s2sl0": 3}, {"stt": 0},
        {
            "s2t0sz": "S2T0SZ=40 is not in 16 to 39",
            "s2sl0": "S2SL0=3 (level 3) with the 4K granule needs IDR3.STT=1",
        },
    ),
    "S2T0SZ beyond IAS": (
        S2, {"s2t0sz": 23}, {"oas": 2}, {"s2t0sz": "S2T0SZ=23 is not in 24 to 48"},
    ),
    "S2T0SZ and S2SL0": (
        S2, {"s2t0sz": 16}, {},
        {"s2t0sz": "S2T0SZ=16 is 48 bits; S2SL0=1 takes 31 to 43"},
    ),
    "S2SL0 reserved": (
        S2, {"s2tg": 1, "s2sl0": 3}, {}, {"s2sl0": "S2SL0=3 is reserved with the 64K granule"},
    ),
    "S2SL0_2": (
        S2, {"s2ds": 1, "s2sl0_2": 1, "s2t0sz": 12}, {},
        {"s2sl0": "S2SL0=5 is reserved with the 4K granule"},
    ),
    "first level -1": (
        S2, {"s2ds": 1, "s2sl0_2": 1, "s2sl0": 0, "s2t0sz": 16}, {"oas": 5},
        {
            "s2sl0": "a first level -1 with the 4K granule needs OAS>=52",
            "s2t0sz": "S2T0SZ=16 is 48 bits; S2SL0=4 takes 49 to 61",
        },
    ),
    "S2PIE": (
        S2, {"s2aa64": 0, "s2pie": 1}, {"ttf": 3, "s2pi": 1},
        {"s2pie": "S2PIE=1 with AArch32 tables"},
    ),
    "S2POE": (S2, {"s2poe": 1}, {"s2po": 1}, {"s2poe": "S2POE=1 needs S2PIE=1"}),
    "S2HWU": (
        S2, {"s2poe": 1, "s2pie": 1, "s2hwu": 4}, {"s2po": 1, "s2pi": 1, "pbha": 1},
        {"s2poe": "S2POE=1 with S2HWU=4"},
    ),
    "S2POI": (
        S2, {"s2poe": 1, "s2pie": 1, "s2poi_lo": 0x50}, {"s2po": 1, "s2pi": 1},
        {"s2poi_lo": "S2POI=0x50 has a reserved value"},
    ),
    "S2VMID": (
        S1, {"s2vmid": 256}, {"vmid16": 0}, {"s2vmid": "S2VMID=0x100 needs IDR0.VMID16=1"},
    ),
    "VMSPtr": (
        NESTED, {"s1mpam": 1, "vmsptr": 1 << 44}, {"mpam": 1, "oas": 4},
        {"vmsptr": "VMSPtr=0x100000000000 is beyond OAS, 44 bits"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STES)
def test_illegal_ste(name: str) -> None:
    """No second opinion."""
    base, fields, features, expected = STES[name]
    reasons = ste_reasons(base.replace(**fields), ids(**features))
    assert {r.field: r.text for r in reasons} == expected
    assert all(r.clause == "IHI 0070 §5.2.2" for r in reasons)


# What the rules above leave legal: (STE, changes to it, changes to the features).
LEGAL_STES: dict[str, tuple[Ste, dict[str, int], dict[str, int]]] = {
    "stage 1": (S1, {}, {}),
    "stage 2": (S2, {}, {}),
    "nested": (NESTED, {}, {}),
    "bypass ignores everything": (
        BYPASS,
        {"s2tg": 3, "s1cdmax": 31, "eats": 2, "strw": 3, "s2vmid": 0xFFFF, "s2s": 1},
        {"vmid16": 0, "stall_model": 1},
    ),
    "abort ignores everything": (Ste.build(v=1), {"config": 3, "s2tg": 3, "s1cdmax": 31}, {}),
    "STRW is ignored with stage 2": (NESTED, {"strw": 3}, {}),
    "STRW is ignored without Hyp": (S1, {"strw": 3}, {"hyp": 0}),
    "S2VMID is ignored in EL2": (S1, {"strw": 2, "s2vmid": 0xFFFF}, {"vmid16": 0}),
    "S2VMID is ignored without stage 2": (S1, {"s2vmid": 0xFFFF}, {"vmid16": 0, "s2p": 0}),
    "S1CDMax is ignored without substreams": (S1, {"s1cdmax": 31}, {"ssidsize": 0}),
    "S1Fmt 3 is linear": (S1, {"s1cdmax": 1, "s1fmt": 3}, {"cd2l": 0}),
    "EATS without ATS": (S2, {"eats": 2, "s2s": 1}, {"ats": 0}),
    "EATS 3 without DPT": (S1, {"eats": 3, "strw": 2}, {}),
    "full ATS with S2S and stage 1 alone": (S1, {"eats": 1, "s2s": 1}, {}),
    "split-stage ATS": (NESTED, {"eats": 2}, {}),
    "52 bits, 4K": (
        S2, {"s2ds": 1, "s2sl0_2": 1, "s2sl0": 0, "s2t0sz": 12, "s2ps": 6, "s2ttb": 1 << 51}, {},
    ),
    "52 bits, 64K": (S2, {"s2tg": 1, "s2sl0": 2, "s2t0sz": 12, "s2ttb": 1 << 50, "s2ps": 6}, {}),
    "S2SL0_2 is ignored with 16K": (
        S2, {"s2tg": 2, "s2ds": 1, "s2sl0_2": 1, "s2sl0": 2, "s2t0sz": 24}, {},
    ),
    "S2DS is ignored without IDR5.DS": (S2, {"s2ds": 1, "s2sl0_2": 1}, {"ds": 0}),
    "sixteen concatenated tables": (S2, {"s2t0sz": 21}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL_STES)
def test_legal_ste(name: str) -> None:
    """No second opinion."""
    base, fields, features = LEGAL_STES[name]
    assert ste_reasons(base.replace(**fields), ids(**features)) == ()


CD = Cd.build(v=1, aa64=1, a=1, r=1, t0sz=16, ips=5, epd1=1)

CDS: dict[str, tuple[dict[str, int], dict[str, int], dict[str, object], dict[str, str]]] = {
    "V": ({"v": 0}, {}, {}, {"v": "V=0: the CD is invalid"}),
    "S1STALLD": ({"s": 1}, {}, {"s1stalld": True}, {"s": "S=1 with STE.S1STALLD=1"}),
    "A": ({"a": 0}, {"term_model": 1}, {}, {"a": "A=0 with IDR0.TERM_MODEL=1 (abort only)"}),
    "S absent": (
        {"s": 1}, {"stall_model": 1}, {}, {"s": "S=1 with IDR0.STALL_MODEL=1 (terminate only)"},
    ),
    "S forced": (
        {}, {"stall_model": 2}, {}, {"s": "S=0 with IDR0.STALL_MODEL=2 (stall forced)"},
    ),
    "ENDI": (
        {"endi": 1}, {}, {}, {"endi": "ENDI=1 with IDR0.TTENDIAN=2 (little-endian only)"},
    ),
    "AA64": ({"aa64": 0}, {}, {}, {"aa64": "AA64=0 (AArch32 tables) needs IDR0.TTF[0]=1"}),
    "AA64 in E2H": (
        {"aa64": 0}, {"ttf": 3}, {"world": World.NS_EL2_E2H},
        {"aa64": "AA64=0 (AArch32 tables) in StreamWorld EL2-E2H"},
    ),
    "AA64, AArch32 only": (
        {}, {"ttf": 1}, {}, {"aa64": "AA64=1 (AArch64 tables) needs IDR0.TTF[1]=1"},
    ),
    "AA64 above AArch32": (
        {}, {"ttf": 3}, {"s2aa64": False}, {"aa64": "AA64=1 with AArch32 tables at stage 2"},
    ),
    "HA": ({"ha": 1}, {"httu": 0}, {}, {"ha": "HA=1 needs IDR0.HTTU>=1"}),
    "HD": ({"ha": 1, "hd": 1}, {"httu": 1}, {}, {"hd": "HD=1 needs IDR0.HTTU>=2, not 1"}),
    "HAFT": ({"haft": 1}, {"httu": 3}, {}, {"haft": "HAFT=1 needs HA=1"}),
    "ASID": ({"asid": 0x100}, {"asid16": 0}, {}, {"asid": "ASID=0x100 needs IDR0.ASID16=1"}),
    "TG0": ({"tg0": 3}, {}, {}, {"tg0": "TG0=3 is reserved"}),
    "TG1": ({"epd1": 0, "t1sz": 16}, {}, {}, {"tg1": "TG1=0 is reserved"}),
    "TG1 absent": (
        {"epd1": 0, "t1sz": 16, "tg1": 1}, {"gran16k": 0}, {},
        {"tg1": "TG1=1 (16K granule) needs IDR5.GRAN16K=1"},
    ),
    "T0SZ": ({"t0sz": 15}, {}, {}, {"t0sz": "T0SZ=15 is not in 16 to 48"}),
    "T0SZ, 64K": ({"t0sz": 11, "tg0": 1}, {}, {}, {"t0sz": "T0SZ=11 is not in 12 to 47"}),
    "T0SZ without STT": ({"t0sz": 40}, {"stt": 0}, {}, {"t0sz": "T0SZ=40 is not in 16 to 39"}),
    "T0SZ, 64K, 48-bit VA": (
        {"t0sz": 12, "tg0": 1}, {"vax": 0}, {}, {"t0sz": "T0SZ=12 is not in 16 to 47"},
    ),
    "T1SZ": (
        {"epd1": 0, "tg1": 2, "t1sz": 49}, {}, {}, {"t1sz": "T1SZ=49 is not in 16 to 48"},
    ),
    "TTB0": (
        {"ips": 0, "ttb0": 1 << 32}, {}, {},
        {"ttb0": "TTB0=0x100000000 is beyond 32 bits (IPS=0, OAS)"},
    ),
    "TTB0 beyond 48 bits": (
        {"ips": 6, "ttb0": 1 << 48}, {}, {},
        {"ttb0": "TTB0=0x1000000000000 is beyond 48 bits (IPS=6, OAS)"},
    ),
    "PIIP": (
        {"pie": 1, "piip": 0b100 << 3}, {"s1pi": 1}, {"s1pie": True},
        {"piip": "PIIP<1>=4 is reserved"},
    ),
    "PIIU": (
        {"pie": 1, "piiu": 0b110}, {"s1pi": 1}, {"s1pie": True}, {"piiu": "PIIU<0>=6 is reserved"},
    ),
    "writable by users, executable by the kernel": (
        {"pie": 1, "piiu": 0b101, "piip": 0b010}, {"s1pi": 1}, {"s1pie": True},
        {"piiu": "PIIP<0>=2 with PIIU<0>=5"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CDS)
def test_illegal_cd(name: str) -> None:
    """No second opinion."""
    fields, features, where, expected = CDS[name]
    reasons = cd_reasons(CD.replace(**fields), ids(**features), **where)  # type: ignore[arg-type]
    assert {r.field: r.text for r in reasons} == expected
    assert all(r.clause == "IHI 0070 §5.4.2" for r in reasons)


LEGAL_CDS: dict[str, tuple[dict[str, int], dict[str, int], dict[str, object]]] = {
    "one half": ({}, {}, {}),
    "no half": ({"epd0": 1, "tg0": 3, "t0sz": 1, "ttb0": 1 << 51, "endi": 1}, {}, {}),
    "EL2 has no TTB1": ({"epd1": 0}, {}, {"world": World.NS_EL2}),
    "EL2 has no ASID": ({"asid": 0xFFFF}, {"asid16": 0}, {"world": World.NS_EL2}),
    "52 bits": ({"ds": 1, "t0sz": 12, "ips": 6, "ttb0": 1 << 51}, {}, {}),
    "stall": ({"s": 1}, {}, {}),
    "PIE without S1PIE": ({"pie": 1, "piip": 0b100}, {"s1pi": 1}, {}),
}


@pytest.mark.parametrize("name", LEGAL_CDS)
def test_legal_cd(name: str) -> None:
    """No second opinion."""
    fields, features, where = LEGAL_CDS[name]
    assert cd_reasons(CD.replace(**fields), ids(**features), **where) == ()  # type: ignore[arg-type]


def test_worlds() -> None:
    """§5.2: STRW counts with stage 1 alone; CR2.E2H says which of the EL2 worlds."""
    el2 = S1.replace(strw=2)
    assert world_of(S1, EVERYTHING, e2h=True) == World.NS_EL1
    assert world_of(el2, EVERYTHING, e2h=False) == World.NS_EL2
    assert world_of(el2, EVERYTHING, e2h=True) == World.NS_EL2_E2H
    assert world_of(el2, ids(hyp=0), e2h=True) == World.NS_EL1
    assert not strw_used(NESTED.replace(strw=2), EVERYTHING)


# The decoders of the model agree.

MODELS = [
    Features.default(),
    Features.default(stages="1"),
    Features.default(stages="2"),
    Features.default(oas=44, aidr=1),
    Features.default(oas=32),
    Features.default(aidr=0).replace(vmid16=0, asid16=0),
    Features.default().replace(gran64k=0, gran4k=0),
    Features.default().replace(stt=1, httu=1, hyp=1, ssidsize=8),
    Features.default().replace(httu=2, hyp=1, ssidsize=20, cd2l=1),
    Features.default().replace(oas=6, ds=1, vax=1, stt=1, archminrev=3, e0pd=1, ptwnnc=1),
    Features.default().replace(oas=6),
]


def like(base: Layout, draw: st.DrawFn) -> Layout:
    """A structure that differs from a legal one in a few fields."""
    names = draw(st.lists(st.sampled_from(sorted(base.fields)), max_size=4))
    changes: dict[str, int] = {}
    for name in names:
        field = base.fields[name]
        near = st.integers(0, field.mask) | st.sampled_from([0, 1, 2, field.mask])
        high = st.integers(0, field.mask.bit_length() - 1).map(lambda at: 1 << at)
        changes[name] = (draw(near | high) & field.mask) << field.scale
    return base.replace(**changes)


@st.composite
def stes(draw: st.DrawFn) -> Layout:
    size = {
        "s2tg": draw(st.integers(0, 3)),
        "s2sl0": draw(st.integers(0, 3)),
        "s2sl0_2": draw(st.integers(0, 1)),
        "s2ds": draw(st.integers(0, 1)),
        "s2t0sz": draw(st.integers(10, 50)),
        "s2ps": draw(st.integers(0, 7)),
    }
    return like(draw(st.sampled_from([S1, S2, NESTED, BYPASS])).replace(**size), draw)


@st.composite
def cds(draw: st.DrawFn) -> Layout:
    size = {
        "tg0": draw(st.integers(0, 3)),
        "t0sz": draw(st.integers(10, 50)),
        "tg1": draw(st.integers(0, 3)),
        "t1sz": draw(st.integers(10, 50)),
        "epd1": draw(st.integers(0, 1)),
        "ds": draw(st.integers(0, 1)),
        "ips": draw(st.integers(0, 7)),
    }
    return like(CD.replace(**size), draw)


@sliced(1500)
@given(ste=stes(), features=st.sampled_from(MODELS))
def test_an_ste_has_a_reason_exactly_when_it_is_illegal(ste: Ste, features: Features) -> None:
    assert (decode_ste(ste, features) is None) == bool(ste_reasons(ste, features))


@sliced(1500)
@given(cd=cds(), features=st.sampled_from(MODELS))
def test_a_cd_has_a_reason_exactly_when_it_is_illegal(cd: Cd, features: Features) -> None:
    assert (decode_cd(cd, features) is None) == bool(cd_reasons(cd, features))
