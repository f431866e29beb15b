# SPDX-License-Identifier: BSD-2-Clause
"""A scenario file as a whole: `parse`, and the `Scenario` that it gives.

docs/scenarios.md has every field. Numbers may be integers or strings such as "0x1000"; a field
that is not known is an error, and every error has file and line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dt_tools.profiles import PROFILES
from vsmmu.hypervisor.policy import Policy, policy_from
from vsmmu.hypervisor.settings import SettingError
from vsmmu.scenario.actors import Actor, read_actor
from vsmmu.scenario.guests import GuestSpec, read_guest
from vsmmu.scenario.machine import MachineSpec, read_machine
from vsmmu.scenario.reader import Document, Reader, ScenarioError
from vsmmu.scenario.steps import Step, read_step

SCHEMA = "vsmmu.scenario/1"
FIELDS = (
    "schema", "title", "host", "seed", "seeds", "profile", "machine", "policy", "guest", "actor",
    "step",
)  # fmt: skip
# Caps, so that a scenario's work is bounded by its length.
_STEPS_MAX = 10_000
_GUESTS_MAX = 64
_ACTORS_MAX = 256
_SEEDS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario file, checked.

    Attributes:
        source: its name.
        host: file of the host tree, relative to the scenario; None for a machine in place.
        seeds: the interleavings to run, at least one; `seed` is the first.
        lines: those of the top-level fields.
    """

    source: str
    title: str
    host: str | None
    seeds: tuple[int, ...]
    guests: tuple[GuestSpec, ...]
    steps: tuple[Step, ...]
    actors: tuple[Actor, ...] = ()
    machine: MachineSpec = field(default_factory=MachineSpec)
    profile: str = "strict"
    policy: Policy = field(default_factory=Policy)
    lines: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The interleaving that is run."""
        return self.seeds[0]


def is_scenario(data: bytes) -> bool:
    """Whether a file means to be a scenario, well formed or not."""
    return b"vsmmu.scenario/" in data


def parse(data: bytes, source: str) -> Scenario:
    """Read and check a scenario. Raises ScenarioError."""
    document = Document(data, source)
    found = Reader(document, document.root)
    found.keys(*FIELDS)
    if found.at("schema").value != SCHEMA:
        found.at("schema").fail(f'expected "{SCHEMA}"')
    machine = read_machine(found.at("machine", {}))
    steps = found.at("step", []).items()
    actors = found.at("actor", []).items()
    guests = found.at("guest", []).items()
    _check_numbers(found, guests, actors, steps)
    scenario = Scenario(
        source=source,
        title=found.at("title", "").string(),
        host=_host(found, machine),
        seeds=_seeds(found),
        guests=tuple(read_guest(guest, i) for i, guest in enumerate(guests, 1)),
        steps=tuple(read_step(step, i) for i, step in enumerate(steps, 1)),
        actors=tuple(read_actor(actor, i, len(steps)) for i, actor in enumerate(actors, 1)),
        machine=machine,
        profile=found.at("profile", "strict").one_of(tuple(PROFILES)),
        policy=_policy(found.at("policy", {})),
        lines={name: reader.line for name, reader in found.fields()},
    )
    _check_boots(scenario)
    return scenario


def _check_numbers(
    found: Reader, guests: list[Reader], actors: list[Reader], steps: list[Reader]
) -> None:
    if not 0 < len(guests) <= _GUESTS_MAX:
        found.at("guest").fail(f"expected 1 to {_GUESTS_MAX} [[guest]] tables")
    if len(steps) > _STEPS_MAX or not (steps or actors):
        found.at("step").fail(f"expected 1 to {_STEPS_MAX} [[step]] tables, or an [[actor]]")
    if len(actors) > _ACTORS_MAX:
        found.at("actor").fail(f"expected at most {_ACTORS_MAX} [[actor]] tables")


def _host(found: Reader, machine: MachineSpec) -> str | None:
    if machine.devices is None and "host" not in found:
        found.at("host").fail("give the host's device tree, or machine.devices")
    if machine.devices is not None and "host" in found:
        found.at("host").fail("give either host or machine.devices")
    return found.at("host").string() if "host" in found else None


def _policy(found: Reader) -> Policy:
    """The limits; a complaint has the line of the one that it names."""
    table = found.table()
    try:
        return policy_from(table)
    except SettingError as error:
        reason = str(error)
    for name, value in found.fields():
        if reason.casefold().startswith(f"{name.casefold()}:"):
            value.named("policy").fail(reason)
    raise found.error(reason)


def _seeds(found: Reader) -> tuple[int, ...]:
    """`seed` is one number, `seeds` a list of them or a range such as "1-20"."""
    if "seeds" not in found:
        return (found.at("seed", 0).number(),)
    seeds = found.at("seeds")
    if "seed" in found:
        seeds.fail("give either seed or seeds")
    if isinstance(seeds.value, list):
        numbers = tuple(item.number() for item in seeds.items())
    else:
        span = seeds.count()
        least, most = span.least, span.least if span.most is None else span.most
        numbers = tuple(range(least, min(most + 1, least + _SEEDS_MAX + 1)))
    if not 0 < len(numbers) <= _SEEDS_MAX or len(set(numbers)) != len(numbers):
        seeds.fail(f'expected 1 to {_SEEDS_MAX} different numbers, or a range such as "1-20"')
    return numbers


def _check_boots(scenario: Scenario) -> None:
    """A guest that a step boots has no actor before it: actors boot their guests."""
    for step in scenario.steps:
        if step.do != "boot":
            continue
        for actor in scenario.actors:
            boots = actor.do != "hotplug" and actor.after < step.number
            if boots and actor.guest in step.guests:
                reason = f"step {step.number} boots {actor.guest}; give after = {step.number}"
                place = f"actor {actor.number}"
                raise ScenarioError(scenario.source, place, reason, actor.line)
