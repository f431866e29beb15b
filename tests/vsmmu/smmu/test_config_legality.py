# SPDX-License-Identifier: BSD-2-Clause
"""Legality of STEs and CDs: the fast decoders against the reasons of `vsmmu.arch.legality`.

The reasons are an independent second writing of IHI 0070 §5.2.2 and §5.4.2.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counts import sliced
from vsmmu.arch.context import Cd
from vsmmu.arch.legality_cd import cd_reasons
from vsmmu.arch.legality_ste import ste_reasons, world_of
from vsmmu.arch.stream_table import Ste
from vsmmu.smmu import Features
from vsmmu.smmu.cd import decode_cd
from vsmmu.smmu.ste import decode_ste


class Unrefused(Features):
    """Features that are not checked: rules of what no model offers yet can be tried too."""

    def __post_init__(self) -> None:
        pass


def replaced(**fields: int) -> Features:
    base = Features.default()
    made = Unrefused(base.idr0, base.idr1, base.idr3, base.idr5, base.iidr, base.aidr)
    return made.replace(**fields)


BIT = (0, 1)
CHOICES = {
    "s1p": BIT, "s2p": BIT, "httu": (0, 1, 2), "hyp": BIT, "ats": BIT, "ns1ats": BIT, "stt": BIT,
    "asid16": BIT, "vmid16": BIT, "cd2l": BIT, "stall_model": (0, 1, 2), "term_model": BIT,
    "ssidsize": (0, 1, 8, 20), "oas": range(7), "gran4k": BIT, "gran16k": BIT, "gran64k": BIT,
    "ds": BIT, "vax": BIT, "archminrev": range(4),
}  # fmt: skip
EVERYTHING = {
    "httu": 2, "hyp": 1, "cd2l": 1, "ssidsize": 20, "stt": 1, "oas": 6, "ds": 1, "vax": 1,
    "stall_model": 0,
}  # fmt: skip
BASES = (0, 1 << 12, 1 << 31, 1 << 32, 1 << 39, 1 << 47, 1 << 48, 1 << 51, 0xFFFC0)
STE_FIELDS = {
    "v": BIT, "config": range(8), "s1fmt": range(4), "s1ctxptr": BASES, "s1cdmax": range(32),
    "s1dss": range(4), "s1stalld": BIT, "eats": range(3), "strw": range(4),
    "s2vmid": (0, 255, 256), "s2t0sz": range(64), "s2sl0": range(4), "s2tg": range(4),
    "s2ps": range(8), "s2aa64": BIT, "s2endi": BIT, "s2ha": BIT, "s2hd": BIT, "s2s": BIT,
    "s2ds": BIT, "s2sl0_2": BIT, "s2ttb": BASES,
}  # fmt: skip
CD_FIELDS = {
    "v": BIT, "t0sz": range(64), "tg0": range(4), "epd0": BIT, "endi": BIT, "t1sz": range(64),
    "tg1": range(4), "epd1": BIT, "ips": range(8), "aa64": BIT, "hd": BIT, "ha": BIT, "s": BIT,
    "a": BIT, "asid": (0, 255, 256), "ttb0": BASES, "ttb1": BASES, "ds": BIT,
}  # fmt: skip
LEGAL_STE = {
    "v": 1, "config": 7, "s2aa64": 1, "s2t0sz": 24, "s2sl0": 1, "s2ps": 5, "s2r": 1,
}  # fmt: skip
LEGAL_CD = {"v": 1, "aa64": 1, "a": 1, "t0sz": 25, "t1sz": 25, "tg1": 2, "ips": 5, "asid": 1}


def drawn(rng: random.Random, choices: dict[str, Sequence[int]], most: int) -> dict[str, int]:
    """Values for a few of the fields."""
    names = rng.sample(sorted(choices), rng.randint(0, most))
    return {name: rng.choice(choices[name]) for name in names}


def pool(rng: random.Random) -> list[Features]:
    some = [replaced(**drawn(rng, CHOICES, 5)) for _ in range(60)]
    return [replaced(), replaced(**EVERYTHING), replaced(hyp=1, stall_model=0), *some]


def test_an_ste_decodes_unless_there_is_a_reason() -> None:
    """IHI 0070 §5.2.2."""
    verdicts = Counter()
    rng = random.Random(70)
    for features in pool(rng):
        for _ in range(400):
            ste = Ste.build(**{**LEGAL_STE, **drawn(rng, STE_FIELDS, 7)})
            reasons = ste_reasons(ste, features)
            assert (decode_ste(ste, features) is None) == bool(reasons), (ste, reasons)
            verdicts[bool(reasons)] += 1
    assert min(verdicts.values()) > 2000


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"stt": 1}, {"oas": 3}, {"oas": 0, "stt": 1}, EVERYTHING, {"oas": 6},
        {"archminrev": 0}, {"gran16k": 0},
    ],
)  # fmt: skip
def test_every_shape_of_stage_2(fields: dict[str, int]) -> None:
    """IHI 0070 §5.2 S2T0SZ, S2SL0, S2SL0_2, S2TG, S2DS: all of them."""
    features = replaced(**fields)
    legal = 0
    for tg, sl0, high, ds, t0sz in product(range(4), range(4), BIT, BIT, range(64)):
        ste = Ste.build(
            v=1, config=6, s2aa64=1, s2ps=6, s2tg=tg, s2sl0=sl0, s2sl0_2=high, s2ds=ds,
            s2t0sz=t0sz, s2s=int(features.idr0.stall_model == 2),
        )  # fmt: skip
        decoded = decode_ste(ste, features)
        assert (decoded is None) == bool(ste_reasons(ste, features)), ste
        legal += decoded is not None
    assert legal


@pytest.mark.parametrize(("s2t0sz", "legal"), [(15, False), (16, True), (17, False)])
def test_16k_starts_at_level_0_with_48_bits(s2t0sz: int, legal: bool) -> None:
    """§5.2 S2DS, Arm ARM D8.2.2: level 0 asks for DS and 48 bits of input, not for a 52-bit OAS."""
    features = replaced(ds=1, vax=1)
    assert features.oas == 48
    ste = Ste.build(
        v=1, config=6, s2aa64=1, s2ps=5, s2tg=2, s2sl0=3, s2ds=1, s2t0sz=s2t0sz, s2ttb=0x8000_0000
    )
    decoded = decode_ste(ste, features)
    assert (decoded is not None) == legal == (not ste_reasons(ste, features))
    if decoded is not None:
        assert decoded.stage2 is not None
        table = decoded.stage2.table
        assert (table.start_level, table.input_bits, table.wide) == (0, 48, True)


def test_a_cd_decodes_unless_there_is_a_reason() -> None:
    """IHI 0070 §5.4.2, in the StreamWorld of the STE."""
    verdicts = Counter()
    rng = random.Random(70)
    for features in pool(rng):
        for _ in range(300):
            fields = {**LEGAL_STE, "config": rng.choice((5, 5, 7)), "s1ctxptr": 64}
            ste = Ste.build(**fields, strw=rng.choice((0, 2)), s1stalld=rng.choice(BIT))
            e2h = rng.random() < 0.5
            stream = decode_ste(ste, features, e2h=e2h)
            if stream is None:
                continue
            cd = Cd.build(**{**LEGAL_CD, **drawn(rng, CD_FIELDS, 7)})
            world = world_of(ste, features, e2h)
            reasons = cd_reasons(cd, features, world=world, s1stalld=bool(ste.s1stalld))
            assert (decode_cd(cd, features, stream) is None) == bool(reasons), (cd, reasons)
            verdicts[world, bool(reasons)] += 1
    assert len(verdicts) == 6
    assert min(verdicts.values()) > 50, verdicts


@sliced(300)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=8, max_size=8), st.booleans())
def test_arbitrary_words(words: list[int], everything: bool) -> None:
    features = FULL if everything else PLAIN
    ste, cd = Ste(tuple(words)), Cd(tuple(words))
    assert (decode_ste(ste, features) is None) == bool(ste_reasons(ste, features))
    assert (decode_cd(cd, features) is None) == bool(cd_reasons(cd, features))


PLAIN, FULL = replaced(), replaced(**EVERYTHING)
