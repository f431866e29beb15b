# SPDX-License-Identifier: BSD-2-Clause
"""`[[step]]`: what is done one after the other, and what has to come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vsmmu.arch.events import EVENTS
from vsmmu.scenario.reader import Reader

# Action -> (required fields, optional fields); see docs/scenarios.md for their meaning.
ACTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "boot": ((), ()),
    "attach": (("device",), ()),
    "detach": (("device",), ()),
    "bypass": (("device",), ()),
    "map": (("device", "iova", "size"), ("ipa", "readonly")),
    "unmap": (("device", "iova", "size"), ()),
    "dma": (("device", "iova"), ("op", "size", "stream")),
    "mmio": (("offset", "value"), ("size",)),
    "poke": (("ipa", "words"), ()),
    "ste": (("device", "words"), ()),
    "command": (("words",), ("count",)),
    "decrease_reservation": (("ipa", "size"), ()),
    "populate_physmap": (("ipa", "size"), ()),
    "unassign": (("device",), ()),
    "assign": (("device",), ()),
    "destroy": ((), ()),
}
# Actions behind the driver's back.
BY_HAND = ("mmio", "poke", "ste", "command")
COMMON = ("guest", "guests", "do", "note", "expect", "events")
OUTCOMES = ("ok", "fault", "abort", "error")

# Caps, so that a step's work is bounded.
_SIZE_MAX = {
    "map": 1 << 28, "unmap": 1 << 28, "dma": 1 << 24,
    "decrease_reservation": 1 << 28, "populate_physmap": 1 << 28,
}  # fmt: skip
_COUNT_MAX = 1 << 14
_WORDS_MAX = 1 << 12
_ACCESS_SIZES = (1, 2, 4, 8)
_NUMBERS = ("iova", "size", "ipa", "offset", "value", "stream", "count")
_PAGED = ("map", "unmap", "decrease_reservation", "populate_physmap")
_EVENT_NAMES = tuple(event.name for event in EVENTS.values())


@dataclass(frozen=True, slots=True)
class ExpectedEvent:
    """An event the guest must see: its name and, if given, its vMasterID."""

    type: str
    vmaster_id: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `events` are those its guest sees during it; None when not checked.

    `line` is where it stands in the file.
    """

    number: int
    guests: tuple[str, ...]
    do: str
    fields: Mapping[str, Any]
    expect: str = "ok"
    events: tuple[ExpectedEvent, ...] | None = None
    note: str = ""
    line: int | None = None


def read_step(found: Reader, number: int) -> Step:
    """A `[[step]]` table, checked. Raises ScenarioError."""
    found = found.named(f"step {number}")
    found.table()
    do = found.at("do").one_of(tuple(ACTIONS))
    required, optional = ACTIONS[do]
    titled = found.named(f"step {number} ({do})")
    titled.keys(*COMMON, *required, *optional)
    for name in required:
        if name not in found:
            titled.fail(f"needs {name}")
    fields = {name: _field(found, name) for name in (*required, *optional) if name in found}
    _check_fields(found, do, fields)
    return Step(
        number=number,
        guests=_guests(found),
        do=do,
        fields=fields,
        expect=found.at("expect", "ok").one_of(OUTCOMES),
        events=_events(found),
        note=found.at("note", "").string(),
        line=found.line,
    )


def _guests(found: Reader) -> tuple[str, ...]:
    if ("guest" in found) == ("guests" in found):
        found.fail("needs either guest or guests")
    if "guest" in found:
        return (found.at("guest").string(),)
    names = tuple(item.string() for item in found.at("guests").items())
    if not names or len(set(names)) != len(names):
        found.at("guests").fail("expected different guests, at least one")
    return names


def _check_fields(found: Reader, do: str, fields: Mapping[str, Any]) -> None:
    """Limits and alignments that depend on the action."""
    limit = _SIZE_MAX.get(do)
    if limit is not None and fields.get("size", 0) > limit:
        found.at("size").fail(f"larger than {limit:#x}")
    if do in _PAGED:
        for name in ("iova", "size", "ipa"):
            if fields.get(name, 0) % 4096 or (name == "size" and not fields[name]):
                found.at(name).fail("expected a multiple of 4096")
    if do == "mmio":
        size = fields.get("size", 4)
        if size not in _ACCESS_SIZES:
            found.at("size").fail("expected 1, 2, 4 or 8")
        if fields["value"] >> 8 * size:
            found.at("value").fail(f"does not fit {size} bytes")
    if do == "command" and (len(fields["words"]) != 2 or fields.get("count", 1) > _COUNT_MAX):
        found.fail(f"a command is two words, at most {_COUNT_MAX} times")
    if len(fields.get("words", ())) > (8 if do == "ste" else _WORDS_MAX):
        found.at("words").fail("too many")


def _field(found: Reader, name: str) -> Any:
    value = found.at(name)
    if name in _NUMBERS:
        return value.number()
    if name == "words":
        return tuple(word.number() for word in value.items())
    if name == "op":
        return value.one_of(("read", "write"))
    return value.flag() if name == "readonly" else value.string()


def _events(found: Reader) -> tuple[ExpectedEvent, ...] | None:
    if "events" not in found:
        return None
    out = []
    for item in found.at("events").items():
        item.keys("type", "vmaster_id")
        vmaster_id = item.at("vmaster_id").number() if "vmaster_id" in item else None
        out.append(ExpectedEvent(item.at("type").one_of(_EVENT_NAMES), vmaster_id))
    return tuple(out)
