# SPDX-License-Identifier: BSD-2-Clause
"""`[[actor]]`: what goes on in a guest, or with its devices, beside the steps."""

from __future__ import annotations

from dataclasses import dataclass

from vsmmu.scenario.reader import Reader

# Kind -> fields it takes beside the common ones; see docs/scenarios.md for their meaning.
ACTORS: dict[str, tuple[str, ...]] = {
    "driver": ("buffers", "size"),
    "netdev-storm": ("buffers", "size", "invalidation"),
    "static": ("buffers", "size"),
    "faulting": ("size",),
    "hotplug": (),
    "hostile": (),
}
ACTOR_COMMON = ("guest", "do", "device", "operations", "turns", "every", "after", "note")
INVALIDATIONS = ("strict", "lazy")

# Caps, so that an actor's work is bounded.
_OPERATIONS_MAX = 1_000_000
_TURNS_MAX = 10_000_000
_EVERY_MAX = 100_000
_BUFFERS_MAX = 128
_SIZE_MAX = 1 << 16
_OPERATIONS = 100
_HOTPLUG_EVERY = 100


@dataclass(frozen=True, slots=True)
class Actor:
    """One actor.

    `device` is None for all devices of the guest. It ends after `operations`, or at the first one
    that would begin `turns` turns of the scheduler after its start. `every` are turns from the
    beginning of one operation to the next at least. `after` is the step that it follows.
    """

    number: int
    guest: str
    do: str
    device: str | None = None
    operations: int | None = _OPERATIONS
    turns: int | None = None
    every: int = 0
    after: int = 0
    buffers: int = 16
    size: int = 2048
    invalidation: str = "strict"
    note: str = ""
    line: int | None = None


def read_actor(found: Reader, number: int, steps: int) -> Actor:
    """An `[[actor]]` table, checked, of a scenario with so many steps. Raises ScenarioError."""
    found = found.named(f"actor {number}")
    found.table()
    do = found.at("do").one_of(tuple(ACTORS))
    found.named(f"actor {number} ({do})").keys(*ACTOR_COMMON, *ACTORS[do])
    if "operations" in found and "turns" in found:
        found.at("turns").fail("give either operations or turns")
    turns = found.at("turns").number(1, _TURNS_MAX) if "turns" in found else None
    operations = found.at("operations", _OPERATIONS).number(1, _OPERATIONS_MAX)
    return Actor(
        number=number,
        guest=found.at("guest").string(),
        do=do,
        device=found.at("device").string() if "device" in found else None,
        operations=operations if turns is None else None,
        turns=turns,
        every=found.at("every", _HOTPLUG_EVERY if do == "hotplug" else 0).number(0, _EVERY_MAX),
        after=found.at("after", 0).number(0, steps),
        buffers=found.at("buffers", 16).number(1, _BUFFERS_MAX),
        size=found.at("size", 2048).number(1, _SIZE_MAX),
        invalidation=found.at("invalidation", "strict").one_of(INVALIDATIONS),
        note=found.at("note", "").string(),
        line=found.line,
    )
