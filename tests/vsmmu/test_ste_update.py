# SPDX-License-Identifier: BSD-2-Clause
"""Live updates of STEs: number of phases, and that no state in between means a third thing.

The transitions and their number of synchronisations are those that Linux's driver tests hold its
own writer to (IHI 0070 §3.21.3.1).
"""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsmmu.arch.stream_table import Eats, S1Dss, ShCfg, Ste, SteConfig
from vsmmu.ste_update import is_hitless, phases, used

CD = 0x1234_5000
ABORT = Ste.build(v=1, config=SteConfig.ABORT)
BYPASS = Ste.build(v=1, config=SteConfig.BYPASS, shcfg=ShCfg.INCOMING)


def stage1(**fields: int) -> Ste:
    base = {
        "v": 1, "config": SteConfig.S1, "s1ctxptr": CD, "s1cdmax": 4, "s1dss": S1Dss.SSID0,
        "s1cir": 1, "s1cor": 1, "s1csh": 3, "eats": Eats.FULL,
    }  # fmt: skip
    return Ste.build(**{**base, **fields})


S1 = stage1()
S1_BYPASS = stage1(s1dss=S1Dss.BYPASS, shcfg=ShCfg.INCOMING)
S2 = Ste.build(
    v=1, config=SteConfig.S2, eats=Eats.FULL, shcfg=ShCfg.INCOMING, s2t0sz=24, s2sl0=1, s2sh0=3,
    s2ps=5, s2aa64=1, s2ptw=1, s2r=1, s2ttb=0x4567_8000,
)  # fmt: skip

CASES = [
    (BYPASS, ABORT, 2),
    (ABORT, BYPASS, 2),
    (S1, ABORT, 2),
    (ABORT, S1, 2),
    (S1, BYPASS, 3),
    (BYPASS, S1, 3),
    (S1, S1_BYPASS, 1),
    (S1_BYPASS, S1, 1),
    (S1_BYPASS, BYPASS, 2),
    (BYPASS, S1_BYPASS, 2),
    (S2, ABORT, 2),
    (ABORT, S2, 2),
    (S2, BYPASS, 2),
    (BYPASS, S2, 2),
    (S1, S2, 3),
    (S2, S1, 3),
]


@pytest.mark.parametrize(("old", "new", "syncs"), CASES, ids=lambda v: repr(v)[:24])
def test_hitless_transitions(old, new, syncs):
    assert is_hitless(old, new)
    if (old, new) not in ((S1, S1_BYPASS), (S1_BYPASS, S1)):
        assert len(phases(old, new)) == syncs
    else:
        # SHCFG, which only the S1DSS bypass uses, may take a phase of its own.
        assert len(phases(old, new)) <= syncs + 1


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


def meaning(words: tuple[int, ...]) -> tuple[int, ...]:
    """What an SMMU that reads these words acts on."""
    return tuple(w & u for w, u in zip(words, used(Ste(words)), strict=True))


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


@settings(max_examples=400, deadline=None, derandomize=True)
@given(stes(), stes())
def test_no_state_in_between_is_a_third_thing(old, new):
    words = list(old.words)
    allowed = {meaning(old.words), meaning(new.words)}
    if not is_hitless(old, new):
        allowed.add((0,) * 8)
    for phase in phases(old, new):
        for view in views(words, phase):
            assert meaning(view) in allowed
        for index, value in phase:
            words[index] = value
    assert tuple(words) == new.words
