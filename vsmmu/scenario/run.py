# SPDX-License-Identifier: BSD-2-Clause
"""Running a scenario: the entry point for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dt_tools.errors import Refusal
from dt_tools.profiles import PROFILES
from vsmmu.costs import CostSink
from vsmmu.hypervisor.settings import SettingError
from vsmmu.inputs import load_partial, load_platform, read, read_config
from vsmmu.machine_features import board_features
from vsmmu.report import Problem, Report, describe
from vsmmu.runner import Runner
from vsmmu.scenario.format import Scenario, parse
from vsmmu.scenario.guests import GuestSpec
from vsmmu.scenario.machine import platform_in_place
from vsmmu.scenario.reader import ScenarioError
from vsmmu.scenario.steps import Step
from vsmmu.toolstack import Guest, Machine, build_machine, create_dom0, create_guest
from xl_configs import GuestConfig

# What a scenario is called that is not in a file.
TEXT = "scenario"
# Trace records kept where somebody asked for them.
_KEPT = 1_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """A scenario that ran under one seed.

    Attributes:
        scenario: the file, checked; `scenario.seed` is the one that ran.
        problems: expectations that do not hold, with file, line, and the step, actor or guest.
        notices: lines for the user about its inputs, such as warnings of a configuration.
        report: what happened, and the machine as it was at the end (`report.machine.trace`,
            `.guests`, `.smmus`).
    """

    scenario: Scenario
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]
    report: Report

    @property
    def ok(self) -> bool:
        """Whether every expectation held."""
        return not self.problems

    @property
    def seed(self) -> int:
        """The seed that it ran under."""
        return self.scenario.seed

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, schema `vsmmu.run/1`."""
        return describe(self.report)


def load_scenario(path_or_text: str | Path | bytes, source: str | None = None) -> Scenario:
    """Read and check a scenario; nothing is run.

    Args:
        path_or_text: a file's name (`-` is stdin); bytes, or a string with a line break, are the
            text itself.
        source: what to call a text in messages; files are found beside it.

    Raises:
        FileError: the file cannot be read.
        ScenarioError: it is no scenario; with file, line and the fix.
    """
    if isinstance(path_or_text, bytes):
        return parse(path_or_text, source or TEXT)
    if isinstance(path_or_text, str) and "\n" in path_or_text:
        return parse(path_or_text.encode(), source or TEXT)
    return parse(read(str(path_or_text)), source or str(path_or_text))


def run_scenario(
    path_or_text: str | Path | bytes | Scenario,
    seed: int | None = None,
    *,
    source: str | None = None,
    progress: Callable[[Step], None] | None = None,
    keep_trace: bool = False,
    built: Callable[[Machine, list[Guest]], object] | None = None,
) -> Result:
    """Build a scenario's machine and guests, and run it once.

        result = run_scenario("two-guests.toml", seed=7)
        assert result.ok, [str(problem) for problem in result.problems]

    The same scenario and seed give the same result, down to the bytes of `Result.to_json`. A file
    with several seeds is one run for each: `for seed in load_scenario(path).seeds`.

    Args:
        path_or_text: as `load_scenario`, or what that gave.
        seed: the interleaving, 0 to 2^64-1; None takes the first of the scenario's.
        source: as `load_scenario`.
        progress: called before each step.
        keep_trace: keep up to a million trace records, where `Trace` alone keeps fewer.
        built: told the machine and its guests before anything runs.

    Returns:
        What happened. An expectation that does not hold is in `Result.problems` and is not raised.

    Raises:
        FileError, ScenarioError, DtError, ConfigRejectedError: an input that cannot be used, each
            one line; their `exit_code` is the command line's.
    """
    scenario = path_or_text
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, source)
    scenario = replace(scenario, seeds=(scenario.seed if seed is None else seed,))
    folder = Path(scenario.source).parent
    machine = _machine(scenario, folder)
    if keep_trace:
        machine.trace.limit = _KEPT
    costs = CostSink(machine.hypervisor)
    machine.trace.sinks.append(costs)
    notices: list[str] = []
    guests = _guests(machine, scenario, folder, notices)
    if built is not None:
        built(machine, guests)
    report = Runner(scenario, machine, guests, progress).run()
    report.costs = costs.by
    return Result(scenario, report.failures, tuple(notices), report)


def _machine(scenario: Scenario, folder: Path) -> Machine:
    spec = scenario.machine
    if scenario.host is None:
        assigned = {spec.path(name) for guest in scenario.guests for name in guest.devices}
        platform = platform_in_place(spec, scenario.source, assigned)
    else:
        platform = load_platform(str(folder / scenario.host))
    features = {
        spec.path(name) if isinstance(value, dict) else name: value
        for name, value in spec.features.items()
    }
    try:
        made = board_features(platform, features)
    except SettingError as error:
        line = spec.features_line(str(error))
        raise ScenarioError(scenario.source, "machine.features", str(error), line) from None
    try:
        return build_machine(
            platform,
            seed=scenario.seed,
            ram=spec.ram,
            caching=spec.caching,
            policy=scenario.policy,
            profile=PROFILES[scenario.profile],
            features=made,
        )
    except Refusal as error:
        line = spec.refused_line(error.rule, str(error))
        raise _refused(scenario, "machine", error, line) from None


@contextmanager
def _placed(scenario: Scenario, where: str, line: int | None) -> Iterator[None]:
    """A refusal within says which part of which scenario it is about."""
    try:
        yield
    except Refusal as error:
        raise _refused(scenario, where, error, line) from None


def _refused(scenario: Scenario, where: str, error: Refusal, line: int | None) -> ScenarioError:
    return ScenarioError(scenario.source, where, str(error), line, error.exit_code)


def _guests(machine: Machine, scenario: Scenario, folder: Path, notices: list[str]) -> list[Guest]:
    """The guests in the scenario's order; dom0 is made last, of what the others leave."""
    made: dict[int, Guest] = {}
    for index, spec in enumerate(scenario.guests):
        config = _config(scenario, spec, folder, notices)
        if config is not None:
            with _placed(scenario, f"guest {index + 1}", spec.line):
                made[index] = create_guest(
                    machine,
                    config,
                    load_partial(config),
                    one_vsmmu_per_psmmu=spec.one_vsmmu_per_psmmu,
                )
    for index, spec in enumerate(scenario.guests):
        if index not in made:
            with _placed(scenario, f"guest {index + 1}", spec.line):
                made[index] = create_dom0(machine, spec.memory)
    for guest in made.values():
        notices += [f"notice: {guest.name}: {notice}" for notice in guest.notices]
    return [made[index] for index in range(len(scenario.guests))]


def _config(
    scenario: Scenario, spec: GuestSpec, folder: Path, notices: list[str]
) -> GuestConfig | None:
    """A guest's configuration, from its file or as it is described in place; None for dom0."""
    if spec.config is not None:
        config, warnings = read_config(str(folder / spec.config))
        notices += warnings
        return config
    if spec.name is None:
        return None
    return GuestConfig(
        name=spec.name,
        kernel="/boot/Image",
        memory_mib=spec.memory,
        viommu="smmuv3",
        dtdev=tuple(scenario.machine.path(device) for device in spec.devices),
    )
