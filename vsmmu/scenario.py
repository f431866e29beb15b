# SPDX-License-Identifier: BSD-2-Clause
"""Scenario files: a machine, its guests, what they do, what is expected (TOML).

    schema = "vsmmu.scenario/1"
    title  = "one line"
    host   = "board.dtb"            # relative to the scenario file
    seed   = 1                      # 0: round robin; any other number: that interleaving

    [machine]                       # optional
    ram     = ["0x80000000+0x40000000"]   # instead of the tree's memory nodes
    caching = "normal"              # or "none"

    [[guest]]
    config = "guest.cfg"            # xl.cfg; the guest is called by its `name`
    one_vsmmu_per_psmmu = false     # true: a vSMMU for each physical SMMU of its devices
                                    # or dom0 = true, memory = 256 (MiB); called "dom0"
    events = 1                      # optional: events the guest has seen at the end
    gerrors = 0                     # optional: global errors likewise

    [[step]]
    guest  = "guest"                # or guests = ["a", "b"], interleaved
    do     = "dma"
    device = "/soc/dma@1000"        # path in the host tree
    ...

`ACTIONS` lists what a step can do and the fields each action takes. Numbers may be integers or
strings such as "0x1000".
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from vsmmu.arch.events import EVENTS

SCHEMA = "vsmmu.scenario/1"
# Caps, so that a scenario's work is bounded by its length.
_STEPS_MAX = 10_000
_GUESTS_MAX = 64
_SIZE_MAX = {
    "map": 1 << 28, "unmap": 1 << 28, "dma": 1 << 24,
    "decrease_reservation": 1 << 28, "populate_physmap": 1 << 28,
}  # fmt: skip
_COUNT_MAX = 1 << 14
_WORDS_MAX = 1 << 12
_DOM0_MIB_MAX = 1 << 22
_ADDRESS_BITS = 48
_ACCESS_SIZES = (1, 2, 4, 8)

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
_COMMON = ("guest", "guests", "do", "note", "expect", "events")
_NUMBERS = ("iova", "size", "ipa", "offset", "value", "stream", "count")
OUTCOMES = ("ok", "fault", "abort", "error")
_EVENT_NAMES = tuple(event.name for event in EVENTS.values())


class ScenarioError(Exception):
    """A scenario file that cannot be used: one line with the file, the place and the fix."""

    exit_code = 2

    def __init__(self, source: str, where: str, reason: str) -> None:
        super().__init__(f"{source}: {where}: {reason}" if where else f"{source}: {reason}")


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A guest: its config file, and what it must have seen at the end (None: not checked).

    dom0 has no config file; `memory` is its RAM in MiB. `one_vsmmu_per_psmmu` is for the others: a
    vSMMU for each physical SMMU of their devices, as dom0 has.
    """

    config: str | None
    memory: int = 256
    one_vsmmu_per_psmmu: bool = False
    events: int | None = None
    gerrors: int | None = None


@dataclass(frozen=True, slots=True)
class ExpectedEvent:
    """An event the guest must see: its name and, if given, its vMasterID."""

    type: str
    vmaster_id: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `events` are those its guest sees during it; None when not checked."""

    number: int
    guests: tuple[str, ...]
    do: str
    fields: Mapping[str, Any]
    expect: str = "ok"
    events: tuple[ExpectedEvent, ...] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario file, checked."""

    source: str
    title: str
    host: str
    seed: int
    guests: tuple[GuestSpec, ...]
    steps: tuple[Step, ...]
    ram: tuple[tuple[int, int], ...] = ()
    caching: str = "normal"
    comments: tuple[str, ...] = field(default=())


def parse(data: bytes, source: str) -> Scenario:
    """Read and check a scenario. Raises ScenarioError."""
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ScenarioError(source, "", f"not a TOML file: {error}") from None
    reader = _Reader(source)
    known = ("schema", "title", "host", "seed", "machine", "guest", "step")
    reader.keys(table, known, "")
    if table.get("schema") != SCHEMA:
        raise ScenarioError(source, "schema", f'expected "{SCHEMA}"')
    machine = reader.table(table.get("machine", {}), "machine")
    reader.keys(machine, ("ram", "caching"), "machine")
    steps = reader.tables(table.get("step", []), "step")
    guests = reader.tables(table.get("guest", []), "guest")
    for name, items, most in (("guest", guests, _GUESTS_MAX), ("step", steps, _STEPS_MAX)):
        if not 0 < len(items) <= most:
            raise ScenarioError(source, name, f"expected 1 to {most} [[{name}]] tables")
    return Scenario(
        source=source,
        title=reader.string(table.get("title", ""), "title"),
        host=reader.string(table.get("host"), "host"),
        seed=reader.number(table.get("seed", 0), "seed"),
        guests=tuple(reader.guest(g, f"guest {i}") for i, g in enumerate(guests, 1)),
        steps=tuple(reader.step(s, i) for i, s in enumerate(steps, 1)),
        ram=reader.regions(machine.get("ram", [])),
        caching=reader.one_of(
            machine.get("caching", "normal"), ("normal", "none", "hostile"), "caching"
        ),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Typed access to the TOML table; every complaint names the place."""

    source: str

    def fail(self, where: str, reason: str) -> ScenarioError:
        return ScenarioError(self.source, where, reason)

    def keys(self, table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in table:
            if key not in known:
                place = f"{where}: {key}" if where else key
                raise self.fail(place, f"not a known field; known are {', '.join(known)}")

    def table(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(where, "expected a table")
        return value

    def items(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(where, "expected a list")
        return value

    def tables(self, value: Any, where: str) -> list[dict[str, Any]]:
        return [self.table(item, where) for item in self.items(value, where)]

    def string(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise self.fail(where, "expected a string")
        return value

    def one_of(self, value: Any, known: tuple[str, ...], where: str) -> str:
        if value not in known:
            raise self.fail(where, f"expected one of {', '.join(known)}, not {_brief(value)}")
        return str(value)

    def number(self, value: Any, where: str) -> int:
        if isinstance(value, str):
            try:
                value = int(value, 0)
            except ValueError:
                text = f'expected a number such as "0x1000", not {_brief(value)}'
                raise self.fail(where, text) from None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
            raise self.fail(where, f"expected a number from 0 to 2^64-1, not {_brief(value)}")
        return value

    def ram(self, value: Any) -> tuple[int, int]:
        base, plus, size = self.string(value, "machine.ram").partition("+")
        if not plus:
            raise self.fail("machine.ram", f'expected "BASE+SIZE", not {_brief(value)}')
        region = self.number(base, "machine.ram"), self.number(size, "machine.ram")
        if region[0] % 4096 or region[1] % 4096 or not region[1]:
            raise self.fail("machine.ram", f"{value} is not made of 4 KiB pages")
        if (region[0] + region[1] - 1) >> _ADDRESS_BITS:
            raise self.fail("machine.ram", f"{value} is beyond {_ADDRESS_BITS} bits")
        return region

    def regions(self, value: Any) -> tuple[tuple[int, int], ...]:
        found = sorted(self.ram(item) for item in self.items(value, "machine.ram"))
        for (base, size), (after, _) in pairwise(found):
            if base + size > after:
                raise self.fail("machine.ram", f"{after:#x} is given twice")
        return tuple(found)

    def guest(self, table: dict[str, Any], where: str) -> GuestSpec:
        mirror = "one_vsmmu_per_psmmu"
        self.keys(table, ("config", "dom0", "memory", mirror, "events", "gerrors"), where)
        if mirror in table and ("dom0" in table or not isinstance(table[mirror], bool)):
            raise self.fail(f"{where}: {mirror}", "expected true or false, and a config")
        counts: dict[str, Any] = {
            k: self.number(table[k], f"{where}: {k}")
            for k in ("memory", "events", "gerrors")
            if k in table
        }
        if "dom0" in table:
            if table["dom0"] is not True or "config" in table:
                raise self.fail(f"{where}: dom0", "dom0 = true stands for a config")
            if not 0 < counts.get("memory", 1) <= _DOM0_MIB_MAX:
                raise self.fail(f"{where}: memory", f"expected 1 to {_DOM0_MIB_MAX} MiB")
            return GuestSpec(None, **counts)
        if "memory" in table:
            raise self.fail(f"{where}: memory", "belongs to dom0; a guest's is in its config")
        config = self.string(table.get("config"), f"{where}: config")
        return replace(GuestSpec(config, **counts), one_vsmmu_per_psmmu=table.get(mirror, False))

    def step(self, table: dict[str, Any], number: int) -> Step:
        where = f"step {number}"
        do = self.one_of(table.get("do"), tuple(ACTIONS), f"{where}: do")
        required, optional = ACTIONS[do]
        self.keys(table, (*_COMMON, *required, *optional), f"{where} ({do})")
        for name in required:
            if name not in table:
                raise self.fail(f"{where} ({do})", f"needs {name}")
        fields = {n: self._field(table[n], n, where) for n in (*required, *optional) if n in table}
        self._check_fields(do, fields, where)
        return Step(
            number=number,
            guests=self._guests(table, where),
            do=do,
            fields=fields,
            expect=self.one_of(table.get("expect", "ok"), OUTCOMES, f"{where}: expect"),
            events=self._events(table, where),
            note=self.string(table.get("note", ""), f"{where}: note"),
        )

    def _guests(self, table: dict[str, Any], where: str) -> tuple[str, ...]:
        if ("guest" in table) == ("guests" in table):
            raise self.fail(where, "needs either guest or guests")
        if "guest" in table:
            return (self.string(table["guest"], f"{where}: guest"),)
        names = [
            self.string(n, f"{where}: guests")
            for n in self.items(table["guests"], f"{where}: guests")
        ]
        if not names or len(set(names)) != len(names):
            raise self.fail(f"{where}: guests", "expected different guests, at least one")
        return tuple(names)

    def _check_fields(self, do: str, fields: Mapping[str, Any], where: str) -> None:
        """Limits and alignments that depend on the action."""
        limit = _SIZE_MAX.get(do)
        if limit is not None and fields.get("size", 0) > limit:
            raise self.fail(f"{where}: size", f"larger than {limit:#x}")
        if do in ("map", "unmap", "decrease_reservation", "populate_physmap"):
            for name in ("iova", "size", "ipa"):
                if fields.get(name, 0) % 4096 or (name == "size" and not fields[name]):
                    raise self.fail(f"{where}: {name}", "expected a multiple of 4096")
        if do == "mmio":
            size = fields.get("size", 4)
            if size not in _ACCESS_SIZES:
                raise self.fail(f"{where}: size", "expected 1, 2, 4 or 8")
            if fields["value"] >> 8 * size:
                raise self.fail(f"{where}: value", f"does not fit {size} bytes")
        if do == "command" and (len(fields["words"]) != 2 or fields.get("count", 1) > _COUNT_MAX):
            raise self.fail(where, f"a command is two words, at most {_COUNT_MAX} times")
        if len(fields.get("words", ())) > (8 if do == "ste" else _WORDS_MAX):
            raise self.fail(f"{where}: words", "too many")

    def _field(self, value: Any, name: str, where: str) -> Any:
        place = f"{where}: {name}"
        if name in _NUMBERS:
            return self.number(value, place)
        if name == "words":
            return tuple(self.number(w, place) for w in self.items(value, place))
        if name == "op":
            return self.one_of(value, ("read", "write"), place)
        if name == "readonly":
            if not isinstance(value, bool):
                raise self.fail(place, "expected true or false")
            return value
        return self.string(value, place)

    def _events(self, table: dict[str, Any], where: str) -> tuple[ExpectedEvent, ...] | None:
        if "events" not in table:
            return None
        out = []
        for item in self.tables(table["events"], f"{where}: events"):
            self.keys(item, ("type", "vmaster_id"), f"{where}: events")
            vmaster_id = item.get("vmaster_id")
            if vmaster_id is not None:
                vmaster_id = self.number(vmaster_id, f"{where}: events: vmaster_id")
            self.one_of(item.get("type"), _EVENT_NAMES, f"{where}: events: type")
            out.append(
                ExpectedEvent(self.string(item.get("type"), f"{where}: events: type"), vmaster_id)
            )
        return tuple(out)


def _brief(value: Any) -> str:
    """A value in a message, cut short; a huge number is not spelled out."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
