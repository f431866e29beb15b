# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run`: a scenario on the emulator."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, say, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsmmu.report import Report
    from vsmmu.scenario import Step
    from vsmmu.trace import Trace

EXPECTATION_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("scenario", metavar="SCENARIO.toml", nargs="?", help="what to run")
    parser.add_argument(
        "--seed", metavar="N", type=_seed, help="another interleaving of the engines, 0 to 2^64-1"
    )
    parser.add_argument("--json", action="store_true", help="the report, or the limits, as JSON")
    parser.add_argument("--trace", metavar="FILE", help="write every trace event as JSON Lines")
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
    if arguments.scenario is None:
        raise FileError("run: which scenario? give SCENARIO.toml")
    if arguments.trace == "-" or (arguments.trace and Path(arguments.trace).is_dir()):
        raise FileError(f"--trace {arguments.trace}: give a file; stdout has the report")
    report = execute(arguments.scenario, arguments.seed)
    if arguments.trace:
        write({arguments.trace: _trace_lines(report.machine.trace)}, (arguments.scenario,))
    if arguments.json:
        from vsmmu.report import describe

        print(json.dumps(describe(report), indent=2))
    else:
        from vsmmu.cli.run_text import print_report

        print_report(report)
    return 0 if report.ok else EXPECTATION_FAILED


def _seed(text: str) -> int:
    """Argparse's way to a seed: decimal or 0x, as in a scenario."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"expected 0 to 2^64-1, not {text[:40]!r}")
    return value


def execute(name: str, seed: int | None = None) -> Report:
    """Build the machine and the guests of a scenario file and run it.

    Raises:
        FileError, ScenarioError, DtError, ConfigRejectedError: each one line.
    """
    from vsmmu.scenario.run import load_scenario, run_scenario

    scenario = load_scenario(name)
    result = run_scenario(scenario, seed, progress=_progress(len(scenario.steps)))
    for notice in result.notices:
        say(f"vsmmu: {notice}")
    return result.report


def _progress(steps: int) -> Callable[[Step], None] | None:
    """A counter on a terminal's stderr for long scenarios; nothing elsewhere."""
    if steps < 100 or not sys.stderr.isatty():
        return None

    def show(step: Step) -> None:
        end = "\n" if step.number == steps else ""
        print(f"\rstep {step.number}/{steps}", end=end, file=sys.stderr, flush=True)

    return show


def _trace_lines(trace: Trace) -> bytes:
    from vsmmu.trace import EVENTS

    lines = []
    for record in trace.records:
        shown = (hex(a) if isinstance(a, int) else str(a) for a in record.args)
        fields = dict(zip(EVENTS[record.name], shown, strict=True))
        lines.append(json.dumps({"time": record.time, "name": record.name, **fields}))
    if trace.dropped:
        say(f"vsmmu: notice: the first {trace.dropped} trace events were dropped")
    return "".join(line + "\n" for line in lines).encode()
