# SPDX-License-Identifier: BSD-2-Clause
"""Strategies for event records (IHI 0070 §7.3)."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import strategies as st

from vsmmu.arch.events import EVENTS, CBadSubstreamid, Event, EventClass
from vsmmu.arch.legality_others import event_reasons
from vsmmu.smmu.features import Features
from vsmmu.testing.strategies.layouts import addresses, flag, named

_SSID_BITS = 20


@st.composite
def legal_events(
    draw: st.DrawFn,
    /,
    features: Features | None = None,
    *,
    number: Collection[int] | None = None,
    **fields: st.SearchStrategy[int],
) -> Event:
    """A record that an SMMU may write; fields that others make RES0 are 0.

    Args:
        features: the SMMU's; everything by default.
        number: event numbers to choose from.
        fields: where to take a field from, in records that have it: `sid=st.just(1)`.
    """
    has = features or Features.everything()
    choices = [n for n in sorted(EVENTS) if number is None or n in number]
    kind = EVENTS[draw(st.sampled_from(choices))]
    made: dict[str, int] = {}
    for name in kind.fields:
        if name != "type":
            made[name] = draw(fields[name] if name in fields else _one(kind, name, has))
    settled = {name: 0 for name in _unsaid(made) if name in made and name not in fields}
    event = kind.build(**{**made, **settled})
    assert fields or not event_reasons(event, has), event
    return event


def _unsaid(made: dict[str, int]) -> set[str]:
    """Fields that mean nothing beside the others."""
    out: set[str] = set()
    if not made.get("ssv", 1):
        out.add("ssid")
    if not made.get("rnw", 1):
        out.add("ind")
    if not made.get("stall", 1):
        out.add("stag")
    if not made.get("s2", 1):
        out |= {"ipa", "nsipa"}
    return out


def _one(kind: type[Event], name: str, has: Features) -> st.SearchStrategy[int]:
    ssid_bits = _SSID_BITS if kind is CBadSubstreamid else has.idr1.ssidsize
    ruled: dict[str, st.SearchStrategy[int]] = {
        "sid": st.integers(0, (1 << has.idr1.sidsize) - 1),
        "ssv": flag(ssid_bits and kind is not CBadSubstreamid),
        "ssid": st.integers(0, (1 << ssid_bits) - 1),
        "cls": st.sampled_from(EventClass),
        "stall": flag(has.stalls),
        "ipa": addresses(has.oas, 1 << 12),
        "fetchaddr": addresses(has.oas, 8),
        "nsipa": st.just(0),
        "gpcf": st.just(0),
    }
    return ruled[name] if name in ruled else named(kind.fields[name])
