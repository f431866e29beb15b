# SPDX-License-Identifier: BSD-2-Clause
"""Identification: what is offered, what is refused and in which words (IHI 0070 §6.3.1 to 8)."""

from __future__ import annotations

import re

import pytest

from vsmmu.smmu import Features


def test_default_register_values() -> None:
    features = Features.default()
    assert features.ids == {
        "IDR0": 0x0D44_121B,
        "IDR1": 0x0273_0014,
        "IDR3": 0x1514,
        "IDR5": 0x75,
        "IIDR": 0,
        "AIDR": 2,
    }
    assert features.oas == 48
    assert features.granules == {"4K", "16K", "64K"}


def test_v3_1_has_no_fwb() -> None:
    assert Features.default(aidr=1).ids["IDR3"] == 0x1414


@pytest.mark.parametrize("stages", ["1", "2", "nested"])
@pytest.mark.parametrize("aidr", range(4))
def test_default_is_legal_in_every_version(aidr: int, stages: str) -> None:
    """What a version makes mandatory (§6.3.4) is there with the stage that it belongs to."""
    features = Features.default(aidr=aidr, stages=stages)
    s1, s2 = int(stages != "2"), int(stages != "1")
    assert features.ids["AIDR"] == aidr
    assert (features.idr3.e0pd, features.idr3.ptwnnc) == ((s1, s2) if aidr == 3 else (0, 0))


@pytest.mark.parametrize(("stages", "low"), [("1", 2), ("2", 1), ("nested", 3)])
def test_stages(stages: str, low: int) -> None:
    assert Features.default(stages=stages).ids["IDR0"] & 3 == low


def test_from_ids_takes_what_ids_gives() -> None:
    features = Features.default(sidsize=16, oas=44)
    again = Features.from_ids(
        idr0=features.ids["IDR0"],
        idr1=features.ids["IDR1"],
        idr3=features.ids["IDR3"],
        idr5=features.ids["IDR5"],
        aidr=features.ids["AIDR"],
    )
    assert again == features


def test_replace_changes_one_register_and_nothing_else() -> None:
    changed = Features.default().replace(sidsize=8, productid=0x487)
    assert changed.ids["IDR1"] == 0x0273_0008
    assert changed.ids["IIDR"] == 0x4870_0000
    assert changed.ids["IDR0"] == Features.default().ids["IDR0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ttf": 3}, "IDR0.TTF=3: not modelled (AArch32 tables)"),
        ({"ecmdq": 1}, "IDR1.ECMDQ=1: not modelled (ECMDQ)"),
        ({"s1p": 0, "s2p": 0}, "neither stage is implemented: IDR0.S1P=0 and IDR0.S2P=0"),
        ({"s2p": 0}, "IDR3.XNX=1 needs IDR0.S2P=1"),
        ({"s1p": 0}, "IDR3.HAD=1 needs IDR0.S1P=1"),
        ({"st_level": 0}, "IDR1.SIDSIZE>=7 needs IDR0.ST_LEVEL=1"),
        ({"ril": 0}, "SMMUv3.2 needs IDR3.RIL=1"),
        ({"bbml": 0}, "SMMUv3.2 needs IDR3.BBML>=1"),
        ({"fwb": 0}, "SMMUv3.2 with stage 2 needs IDR3.FWB=1"),
        ({"had": 0}, "SMMUv3.1 with stage 1 needs IDR3.HAD=1"),
        ({"gran4k": 0, "gran16k": 0, "gran64k": 0}, "IDR5 has no granule"),
        ({"ds": 1, "vax": 1, "oas": 1}, "IDR5.DS=1 needs IDR5.OAS>=2"),
        ({"sidsize": 64}, "sidsize [5:0] cannot hold 0x40"),
    ],
)
def test_refusals(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Features.default().replace(**change)


def test_unknown_field() -> None:
    with pytest.raises(TypeError, match=r"^no identification register has a field nope$"):
        Features.default().replace(nope=1)


def test_reserved_bits_of_a_register_value() -> None:
    ids = Features.default().ids
    with pytest.raises(ValueError, match=r"^IDR3 sets reserved bits 0x1$"):
        Features.from_ids(
            idr0=ids["IDR0"], idr1=ids["IDR1"], idr3=ids["IDR3"] | 1, idr5=ids["IDR5"], aidr=2
        )


def test_arguments_of_default() -> None:
    with pytest.raises(ValueError, match=r'^stages are "1", "2" or "nested", not \'both\'$'):
        Features.default(stages="both")
    with pytest.raises(ValueError, match=r"not 47$"):
        Features.default(oas=47)


@pytest.mark.parametrize(
    ("fields", "notes"),
    [
        ({}, ()),
        ({"httu": 3}, ("IDR0.HTTU=3 is played as 2",)),
        ({"stall_model": 3}, ("IDR0.STALL_MODEL=3 is played as 1",)),
        ({"stall_model": 0}, ("IDR5.STALL_MAX=0 is played as 1",)),
        ({"stall_max": 7}, ("IDR5.STALL_MAX=7 is played as 0",)),
        ({"priqs": 4}, ("IDR1.PRIQS=4 is played as 0",)),
        ({"pri": 1}, ()),
        ({"oas": 7}, ("IDR5.OAS=7 is played as 6",)),
        ({"ttendian": 0}, ("IDR0.TTENDIAN=0 is played as 2",)),
        ({"ttf": 3}, ("IDR0.TTF=3 is played as 2",)),
    ],
)  # fmt: skip
def test_the_nearest_that_is_modelled(fields, notes):
    whole = Features.default()
    words = {}
    for name in ("idr0", "idr1", "idr3", "idr5", "iidr", "aidr"):
        layout = getattr(whole, name)
        words[name] = layout.replace(**{f: v for f, v in fields.items() if f in layout.fields}).raw
    near, told = Features.nearest(**words)
    assert told == notes
    assert Features.nearest(**{name.lower(): v for name, v in near.ids.items()}) == (near, ())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ttf": 1}, "IDR0.TTF=1: not modelled (AArch32 tables)"),
        ({"ttendian": 3}, "IDR0.TTENDIAN=3: not modelled (big-endian tables)"),
        ({"s1p": 0, "s2p": 0}, "neither stage is implemented: IDR0.S1P=0 and IDR0.S2P=0"),
    ],
)
def test_what_no_model_comes_near(fields, text):
    whole = Features.default()
    with pytest.raises(ValueError, match=re.escape(text)):
        Features.nearest(
            **{
                **{name.lower(): value for name, value in whole.ids.items()},
                "idr0": whole.idr0.replace(**fields).raw,
            }
        )
