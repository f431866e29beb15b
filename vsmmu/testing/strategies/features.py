# SPDX-License-Identifier: BSD-2-Clause
"""Strategies for what an SMMU says about itself."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

from hypothesis import strategies as st

from vsmmu.arch.registers import OAS_BITS, StallModel
from vsmmu.smmu.features import Features

_OAS = tuple(bits for bits in OAS_BITS if bits <= 52)
# Groups of fields that belong together; those that contradict the rest are left out.
_MORE: tuple[dict[str, int], ...] = (
    {"httu": 1},
    {"httu": 2},
    {"ssidsize": 1},
    {"ssidsize": 8, "cd2l": 1},
    {"ssidsize": 20, "cd2l": 1},
    {"stt": 1},
    {"vax": 1},
    {"vax": 1, "ds": 1},
    {"asid16": 0},
    {"vmid16": 0},
    {"gran4k": 0},
    {"gran16k": 0},
    {"gran64k": 0},
    {"term_model": 0},
    {"stall_model": StallModel.STALL_AND_TERMINATE, "stall_max": 16, "term_model": 0},
    {"stall_model": StallModel.STALL_FORCED, "stall_max": 16},
    {"ats": 1},
    {"ats": 1, "ns1ats": 1},
    {"ats": 1, "pri": 1, "priqs": 8},
    {"attr_perms_ovr": 1},
    {"msi": 1},
    {"ril": 0},
)
_STAGES = st.sampled_from(("nested", "1", "2"))
_OAS_BITS = st.sampled_from(_OAS)
_SIDSIZE, _AIDR = st.integers(0, 32), st.integers(0, 3)
_INDEXES = st.lists(st.integers(0, len(_MORE) - 1), max_size=5)


@cache
def everything() -> Features:
    """`Features.everything()`, made once."""
    return Features.everything()


@st.composite
def features(draw: st.DrawFn, *, stages: str | None = None) -> Features:
    """An SMMU of any kind that is modelled.

    Args:
        stages: "1", "2" or "nested" alone.
    """
    stage = draw(_STAGES) if stages is None else stages
    made = _default(stage, draw(_OAS_BITS), draw(_SIDSIZE), draw(_AIDR))
    for index in draw(_INDEXES):
        made = _with(made, index)
    return made


@cache
def _default(stages: str, oas: int, sidsize: int, aidr: int) -> Features:
    # 52-bit addresses came with SMMUv3.1.
    return Features.default(
        stages=stages, oas=oas if aidr else min(oas, 48), sidsize=sidsize, aidr=aidr
    )


@cache
def _with(base: Features, index: int) -> Features:
    with suppress(ValueError):
        return base.replace(**_MORE[index])
    return base
