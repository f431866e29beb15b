# SPDX-License-Identifier: BSD-2-Clause
"""Live updates of STEs: number of phases, and that no state in between means a third thing.

The transitions and their number of synchronisations are those that Linux's driver tests hold its
own writer to (IHI 0070 §3.21.3.1). CDs are in smmu/test_config_update.py.
"""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counts import sliced
from vsmmu.arch.stream_table import Eats, S1Dss, ShCfg, Ste, SteConfig
from vsmmu.ste_update import is_hitless, phases, safe, used

CD = 0x1234_5000
ABORT = Ste.build(v=1, config=SteConfig.ABORT)
BYPASS = Ste.build(v=1, config=SteConfig.BYPASS, shcfg=ShCfg.INCOMING)


def stage1(**fields: int) -> Ste:
    base = {
        "v": 1, "config": SteConfig.S1, "s1ctxptr": CD, "s1cdmax": 4, "s1dss": S1Dss.SSID0,
        "s1cir": 1, "s1cor": 1, "s1csh": 3, "s1stalld": 1, "eats": Eats.FULL,
    }  # fmt: skip
    return Ste.build(**{**base, **fields})


S1 = stage1()
S1_BYPASS = stage1(s1dss=S1Dss.BYPASS, shcfg=ShCfg.INCOMING)
S2 = Ste.build(
    v=1, config=SteConfig.S2, eats=Eats.FULL, shcfg=ShCfg.INCOMING, s2t0sz=24, s2sl0=1, s2sh0=3,
    s2ps=5, s2aa64=1, s2ptw=1, s2r=1, s2ttb=0x4567_8000,
)  # fmt: skip

S1_STALL, S2_STALL = S1.replace(s1stalld=0, eats=0), S2.replace(s2s=1, eats=0)
NESTED_BYPASS = Ste.build(
    **{n: getattr(S2, n) for n in Ste.fields if getattr(S2, n)}
    | {n: getattr(S1_BYPASS, n) for n in Ste.fields if getattr(S1_BYPASS, n)}
    | {"config": SteConfig.NESTED, "mev": 1}
)

# name: (old, new, phases); each hitless.
CASES = {
    "bypass_to_abort": (BYPASS, ABORT, 2),
    "abort_to_bypass": (ABORT, BYPASS, 2),
    "cdtable_to_abort": (S1, ABORT, 2),
    "abort_to_cdtable": (ABORT, S1, 2),
    "cdtable_to_bypass": (S1, BYPASS, 3),
    "bypass_to_cdtable": (BYPASS, S1, 3),
    "cdtable_s1dss_change": (S1, S1_BYPASS, 1),
    "cdtable_s1dss_change back": (S1_BYPASS, S1, 1),
    "s1dssbypass_to_stebypass": (S1_BYPASS, BYPASS, 2),
    "stebypass_to_s1dssbypass": (BYPASS, S1_BYPASS, 2),
    "s2_to_abort": (S2, ABORT, 2),
    "abort_to_s2": (ABORT, S2, 2),
    "s2_to_bypass": (S2, BYPASS, 2),
    "bypass_to_s2": (BYPASS, S2, 2),
    "s1_to_s2": (S1, S2, 3),
    "s2_to_s1": (S2, S1, 3),
    "s1_to_s2_stall": (S1_STALL, S2_STALL, 3),
    "s2_to_s1_stall": (S2_STALL, S1_STALL, 3),
    "nested_s1dssbypass_to_s1bypass": (NESTED_BYPASS, S2.replace(eats=0), 3),
    "nested_s1bypass_to_s1dssbypass": (S2.replace(eats=0), NESTED_BYPASS, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_hitless_transitions(name):
    old, new, syncs = CASES[name]
    assert is_hitless(old, new)
    assert len(phases(old, new)) == syncs


@pytest.mark.parametrize("change", [{"s2s": 1}, {"eats": Eats.SPLIT}])
def test_ats_is_not_safe_beside_stalls_and_split_stage(change):
    """There EATS changes the meaning of S2S, or of translated accesses (§5.2 EATS, S2S)."""
    nested = NESTED_BYPASS.replace(mev=0)
    assert is_hitless(nested, nested.replace(eats=0, s1dss=S1Dss.SSID0))
    other = S2.replace(**{"eats": 0, **change})
    assert not is_hitless(NESTED_BYPASS, other)


def test_another_vmid_is_not_hitless():
    """S2VMID tags stage 1 as well, so it cannot change ahead of the rest."""
    assert not is_hitless(S1, S2.replace(s2vmid=7))


def test_two_words_that_both_matter_are_not_hitless():
    other = stage1(s1ctxptr=0x9999_9000, s1dss=S1Dss.BYPASS, shcfg=ShCfg.INCOMING)
    assert not is_hitless(S1, other)
    first, second, third = phases(S1, other)
    assert first == [(0, 0)]
    assert all(index for index, _ in second)
    assert third == [(0, other.words[0])]


def test_nothing_to_do_is_no_phase():
    assert phases(S1, S1) == []


@st.composite
def stes(draw: st.DrawFn) -> Ste:
    """A legal-looking STE that sets only what its Config uses."""
    config = draw(st.sampled_from([*SteConfig]))
    bit = st.integers(0, 1)
    fields = {"v": draw(bit), "config": config}
    if config & 4 and config & 1:
        fields |= {"s1ctxptr": draw(st.sampled_from([CD, CD + 64])), "s1dss": draw(bit)}
        fields |= {"s1cir": draw(bit), "eats": draw(bit), "mev": draw(bit)}
    if config & 4 and config & 2:
        fields |= {"s2ttb": draw(st.sampled_from([0x1000, 0x2000])), "s2vmid": draw(bit) + 1}
        fields |= {"s2t0sz": draw(st.sampled_from([16, 24])), "s2r": draw(bit)}
    made = Ste.build(**fields) if fields["v"] else Ste()
    return Ste(tuple(w & u for w, u in zip(made.words, used(made), strict=True)))


def meaning(words: tuple[int, ...], free: tuple[int, ...]) -> tuple[int, ...]:
    """What an SMMU that reads these words acts on, but for the bits that are free to change."""
    bits = zip(words, used(Ste(words)), free, strict=True)
    return tuple(w & u & ~f for w, u, f in bits)


def views(before: list[int], phase: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Every mixture of old and new words a reader can meet during a phase."""
    subsets = chain.from_iterable(combinations(phase, n) for n in range(len(phase) + 1))
    out = []
    for subset in subsets:
        words = list(before)
        for index, value in subset:
            words[index] = value
        out.append(tuple(words))
    return out


@sliced(400)
@given(stes(), stes())
def test_no_state_in_between_is_a_third_thing(old, new):
    words = list(old.words)
    free = safe(old, new)
    allowed = {meaning(old.words, free), meaning(new.words, free)}
    if not is_hitless(old, new):
        allowed.add((0,) * 8)
    for phase in phases(old, new):
        for view in views(words, phase):
            assert meaning(view, free) in allowed
        for index, value in phase:
            words[index] = value
    assert tuple(words) == new.words
