# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run`: a scenario on the emulator."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, read, say, write
from vsmmu.cli.inputs import load_config, load_partial, load_platform
from vsmmu.cli.run_record import Recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsmmu.report import Report
    from vsmmu.scenario import Scenario, Step
    from vsmmu.toolstack import Guest, Machine

EXPECTATION_FAILED = 3
# Trace records kept where somebody asked for them.
_KEPT = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("scenario", metavar="SCENARIO.toml", nargs="?", help="what to run")
    parser.add_argument(
        "--seed", metavar="N", type=_seed, help="another interleaving of the engines, 0 to 2^64-1"
    )
    parser.add_argument("--json", action="store_true", help="the report, or the limits, as JSON")
    parser.add_argument("--trace", metavar="FILE", help="write every trace event as JSON Lines")
    parser.add_argument(
        "--record",
        metavar="DIR|FILE.xz",
        help="write a recording of each vSMMU that `vsmmu replay` plays",
    )
    parser.add_argument(
        "--trace-events", action="store_true", help="list the trace events, and run nothing"
    )
    parser.add_argument(
        "--perfetto", metavar="FILE", help="write a timeline that ui.perfetto.dev opens"
    )
    parser.add_argument(
        "--summary",
        action="store_true",
        help="what each guest cost on each SMMU: traps, commands, invalidations, walks, faults",
    )
    parser.add_argument(
        "--policy",
        action="store_true",
        help="print the limits guests are held to, and run nothing; JSON with --json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run and print; 3 when an expectation does not hold."""
    if arguments.policy:
        from vsmmu.hypervisor.policy import Policy

        if arguments.json:
            print(json.dumps({"schema": "vsmmu.policy/1", **Policy().to_json()}, indent=2))
        else:
            from vsmmu.cli.policy_text import policy_text

            print(policy_text(Policy()), end="")
        return 0
    if arguments.trace_events:
        from vsmmu.cli.trace_text import event_table

        print(event_table(), end="")
        return 0
    if arguments.scenario is None:
        raise FileError("run: which scenario? give SCENARIO.toml")
    outputs = {"--trace": arguments.trace, "--perfetto": arguments.perfetto}
    for option, name in outputs.items():
        if name == "-" or (name and Path(name).is_dir()):
            raise FileError(f"{option} {name}: give a file; stdout has the report")
    record = Recorded(arguments.record) if arguments.record is not None else None
    report = execute(
        arguments.scenario,
        arguments.seed,
        keep=bool(arguments.trace or arguments.perfetto),
        record=record,
    )
    if record is not None:
        record.save((arguments.scenario,))
    if arguments.trace or arguments.perfetto:
        from vsmmu.cli.trace_text import trace_files

        files = trace_files(report.machine.trace, arguments.trace, arguments.perfetto)
        write(files, (arguments.scenario,))
    _show(arguments, report)
    return 0 if report.ok else EXPECTATION_FAILED


def _show(arguments: argparse.Namespace, report: Report) -> None:
    """The report on stdout."""
    if arguments.json:
        from vsmmu.report import describe

        body = describe(report)
        if arguments.summary:
            body["summary"] = report.summary()
        print(json.dumps(body, indent=2))
    else:
        from vsmmu.cli.run_text import labels, print_report

        print_report(report)
        if arguments.summary:
            from vsmmu.cli.summary_text import print_summary

            print_summary(report.summary(), labels(report))


def _seed(text: str) -> int:
    """Argparse's way to a seed: decimal or 0x, as in a scenario."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"expected 0 to 2^64-1, not {text[:40]!r}")
    return value


def execute(
    name: str, seed: int | None = None, *, keep: bool = False, record: Recorded | None = None
) -> Report:
    """Build the machine and the guests of a scenario file and run it.

    Raises:
        FileError, ScenarioError, DtError, ConfigRejectedError: each one line.
    """
    from vsmmu import scenario as scenarios
    from vsmmu.costs import CostSink
    from vsmmu.runner import Runner
    from vsmmu.toolstack import build_machine

    scenario = scenarios.parse(read(name), name)
    if seed is not None:
        scenario = dataclasses.replace(scenario, seed=seed)
    folder = Path(name).parent if name != "-" else Path()
    machine = build_machine(
        load_platform(str(folder / scenario.host)),
        seed=scenario.seed,
        ram=scenario.ram,
        caching=scenario.caching,
    )
    if keep:
        machine.trace.limit = _KEPT
    costs = CostSink(machine.hypervisor)
    machine.trace.sinks.append(costs)
    guests = _guests(machine, scenario, folder)
    progress = _progress(len(scenario.steps))
    if record is not None:
        progress = record.watch(machine, guests, scenario.title, progress)
    report = Runner(scenario, machine, guests, progress).run()
    report.costs = costs.by
    return report


def _guests(machine: Machine, scenario: Scenario, folder: Path) -> list[Guest]:
    """The guests in the scenario's order; dom0 is made last, of what the others leave."""
    from vsmmu.toolstack import create_dom0, create_guest

    made: dict[int, Guest] = {}
    for index, spec in enumerate(scenario.guests):
        if spec.config is not None:
            config = load_config(str(folder / spec.config))
            made[index] = create_guest(
                machine,
                config,
                load_partial(config),
                one_vsmmu_per_psmmu=spec.one_vsmmu_per_psmmu,
            )
    for index, spec in enumerate(scenario.guests):
        if spec.config is None:
            made[index] = create_dom0(machine, spec.memory)
    for guest in made.values():
        for notice in guest.notices:
            say(f"vsmmu: notice: {guest.name}: {notice}")
    return [made[index] for index in range(len(scenario.guests))]


def _progress(steps: int) -> Callable[[Step], None] | None:
    """A counter on a terminal's stderr for long scenarios; nothing elsewhere."""
    if steps < 100 or not sys.stderr.isatty():
        return None

    def show(step: Step) -> None:
        end = "\n" if step.number == steps else ""
        print(f"\rstep {step.number}/{steps}", end=end, file=sys.stderr, flush=True)

    return show
