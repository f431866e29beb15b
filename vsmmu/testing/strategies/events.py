# SPDX-License-Identifier: BSD-2-Clause
"""Strategies for event records (IHI 0070 §7.3)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from hypothesis import strategies as st

from vsmmu.arch.events import EVENTS, CBadSubstreamid, Event, EventClass
from vsmmu.arch.legality_others import event_reasons
from vsmmu.smmu.features import Features
from vsmmu.testing.strategies.features import everything
from vsmmu.testing.strategies.layouts import addresses, flag, named, number, one

_SSID_BITS = 20
_PAGE, _WORD = 1 << 12, 8


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
    has = features or everything()
    choices = [n for n in sorted(EVENTS) if number is None or n in number]
    kind = EVENTS[draw(one(*choices))]
    made: dict[str, int] = {}
    for name in kind.fields:
        if name != "type":
            made[name] = draw(fields[name] if name in fields else _one(kind, name, has))
    settled = {name: 0 for name in _unsaid(kind, made) if name in made and name not in fields}
    event = kind.build(**{**made, **settled})
    assert fields or not event_reasons(event, has), event
    return event


def _unsaid(kind: type[Event], made: dict[str, int]) -> set[str]:
    """Fields that mean nothing beside the others."""
    out: set[str] = set()
    if not made.get("ssv", 1) and kind is not CBadSubstreamid:
        out.add("ssid")
    if not made.get("rnw", 1):
        out.add("ind")
    if not made.get("stall", 1):
        out.add("stag")
    if not made.get("s2", 1):
        out |= {"ipa", "nsipa"}
    return out


def _one(kind: type[Event], name: str, has: Features) -> st.SearchStrategy[int]:
    if kind is CBadSubstreamid and name in ("ssv", "ssid"):
        # Its SubstreamID is always valid, and out of range (§7.3.9).
        return flag(allowed=False) if name == "ssv" else number(0, (1 << _SSID_BITS) - 1)
    rule = _RULES.get(name)
    return named(kind.fields[name]) if rule is None else rule(has)


_RULES: dict[str, Callable[[Features], st.SearchStrategy[int]]] = {
    "sid": lambda has: number(0, (1 << has.idr1.sidsize) - 1),
    "ssv": lambda has: flag(has.idr1.ssidsize),
    "ssid": lambda has: number(0, (1 << has.idr1.ssidsize) - 1),
    "cls": lambda has: one(*EventClass),
    "stall": lambda has: flag(has.stalls),
    "ipa": lambda has: addresses(has.oas, _PAGE),
    "fetchaddr": lambda has: addresses(has.oas, _WORD),
    "nsipa": lambda has: flag(allowed=False),
    "gpcf": lambda has: flag(allowed=False),
}
