# SPDX-License-Identifier: BSD-2-Clause
"""Scenario files: a machine, its guests, what they do, what is expected (TOML).

`parse` reads a file; `vsmmu.scenario.run.run_scenario` runs one. docs/scenarios.md has the format.
"""

from vsmmu.scenario.actors import ACTOR_COMMON, ACTORS, Actor
from vsmmu.scenario.format import FIELDS, SCHEMA, Scenario, is_scenario, parse
from vsmmu.scenario.guests import GUEST_FIELDS, GuestSpec
from vsmmu.scenario.machine import MACHINE_FIELDS, MachineSpec
from vsmmu.scenario.reader import Count, ScenarioError
from vsmmu.scenario.steps import ACTIONS, COMMON, ExpectedEvent, Step

__all__ = [
    "ACTIONS", "ACTORS", "ACTOR_COMMON", "COMMON", "FIELDS", "GUEST_FIELDS", "MACHINE_FIELDS",
    "SCHEMA", "Actor", "Count", "ExpectedEvent", "GuestSpec", "MachineSpec", "Scenario",
    "ScenarioError", "Step", "is_scenario", "parse",
]  # fmt: skip
