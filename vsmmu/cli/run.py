# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run`: scenarios on the emulator."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dt_tools.json_text import json_text
from vsmmu.cli.files import FileError, check_outputs, say, write
from vsmmu.cli.run_record import Recorded

if TYPE_CHECKING:
    from vsmmu.cli.run_cases import Case, Failure
    from vsmmu.report import Report
    from vsmmu.scenario import Scenario
    from vsmmu.scenario.run import Result

EXPECTATION_FAILED = 3
_JOBS_MAX = 256
_SEEDS_MAX = 1_000
_OUTPUTS = ("trace", "perfetto", "junit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "inputs",
        metavar="PATH",
        nargs="*",
        help="scenarios, and folders of them: every *.toml below that has the schema",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=_seeds,
        default=(),
        help="another interleaving of the engines, 0 to 2^64-1, or several as A-B, in place of "
        "the scenario's own",
    )
    parser.add_argument(
        "-j", "--jobs", metavar="N", type=_jobs, default=1,
        help="processes to run in (default 1); the output is the same",
    )  # fmt: skip
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML, a test case a seed")
    parser.add_argument(
        "--json", action="store_true", help="the report, the limits or the events as JSON"
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="write every trace event of one run as JSON Lines"
    )
    parser.add_argument(
        "--trace-events",
        action="store_true",
        help="list the trace events, and run nothing; JSON Lines with --json",
    )
    parser.add_argument(
        "--perfetto", metavar="FILE", help="write a timeline of one run that ui.perfetto.dev opens"
    )
    parser.add_argument(
        "--record",
        metavar="DIR|FILE.xz",
        help="write a recording of each vSMMU of one run, for `vsmmu replay`",
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
    if arguments.policy or arguments.trace_events:
        return _list(arguments)
    if not arguments.inputs:
        raise FileError("run: which scenario? give PATH")
    if "" in arguments.inputs:
        raise FileError("run: a PATH is empty; give a file, a folder, or - for stdin")
    outputs = _outputs(arguments)
    from vsmmu.cli.run_cases import find_files, make_cases, read_for

    paths, others = find_files(arguments.inputs)
    for other in others:
        say(f"vsmmu: notice: {other}: skipped, it does not mention the schema of scenarios")
    cases = make_cases(
        paths, arguments.seed, wants_json=arguments.json, wants_summary=arguments.summary
    )
    check_outputs(outputs, read_for(cases))
    # Decided by what was asked for, not by how many files a folder happens to have.
    if len(cases) == 1 and not os.path.isdir(arguments.inputs[0]):
        return _run_one(cases[0], arguments)
    _check_one(arguments, len(cases))
    from vsmmu.cli.run_many import run_many

    return run_many(cases, others, arguments)


def _outputs(arguments: argparse.Namespace) -> list[str]:
    """Names of the files to write; recordings may go to a folder instead. Raises FileError."""
    names = []
    for option in _OUTPUTS:
        name = getattr(arguments, option)
        if name is None:
            continue
        if not name:
            raise FileError(f"--{option}: the name of the file is empty")
        if name == "-" or os.path.isdir(name) or _is_stdout(name):
            raise FileError(f"--{option} {name}: give a file; stdout has the report")
        names.append(name)
    record = arguments.record or ""
    return [*names, record] if record.endswith(".xz") else names


def _is_stdout(name: str) -> bool:
    """Whether a file or pipe is where the report goes; a terminal or /dev/null may be both."""
    try:
        there, here = os.stat(name), os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return False
    return os.path.samestat(there, here) and not stat.S_ISCHR(here.st_mode)


def _check_one(arguments: argparse.Namespace, runs: int) -> None:
    """Options that are for one run alone."""
    for option in ("trace", "perfetto", "record"):
        name = getattr(arguments, option)
        if name is not None:
            raise FileError(f"--{option} {name}: {runs} runs; give one scenario and seed")
    if arguments.summary and not arguments.json:
        raise FileError(f"--summary: {runs} runs; give one scenario and seed, or --json")


def _run_one(case: Case, arguments: argparse.Namespace) -> int:
    """One scenario under one seed: its whole report."""
    from vsmmu.cli.run_cases import Failure, outcome
    from vsmmu.cli.run_many import write_junit

    if case.scenario is None:
        assert case.error is not None
        return _failed(case, case.error, arguments)
    keep = bool(arguments.trace or arguments.perfetto)
    record = Recorded(arguments.record) if arguments.record is not None else None
    try:
        result = _execute(case.scenario, keep=keep, record=record)
    except Exception as error:
        failure = Failure.of(error)
        if failure is None:
            raise
        return _failed(case, failure, arguments)
    if record is not None:
        record.save((case.path,))
    if keep:
        from vsmmu.cli.trace_text import trace_files

        trace = result.report.machine.trace
        write(trace_files(trace, arguments.trace, arguments.perfetto), (case.path,))
    told = outcome(case, result)
    if arguments.junit:
        write_junit(arguments.junit, [told], (case.path,))
    if arguments.json:
        print(json_text(told.json, indent=2))
    else:
        _print(result.report, summary=arguments.summary)
    return 0 if result.ok else EXPECTATION_FAILED


def _failed(case: Case, failure: Failure, arguments: argparse.Namespace) -> int:
    """One scenario that could not be run: why, and its exit code."""
    from vsmmu.cli.run_cases import Outcome
    from vsmmu.cli.run_many import write_junit

    if arguments.junit:
        told = Outcome(case.path, case.seed, error=failure)
        write_junit(arguments.junit, [told], (case.path,))
    say(f"vsmmu: {failure.text}")
    return failure.exit_code


def _print(report: Report, *, summary: bool) -> None:
    from vsmmu.cli.run_text import labels, print_report

    print_report(report)
    if summary:
        from vsmmu.cli.summary_text import print_summary

        print_summary(report.summary(), labels(report))


def _list(arguments: argparse.Namespace) -> int:
    """Print what is so without any scenario. Raises FileError."""
    if arguments.policy and arguments.trace_events:
        raise FileError("--policy and --trace-events each print a list; give one of them")
    if arguments.inputs and arguments.policy:
        raise FileError("--policy: prints what holds where a scenario says nothing; no PATH")
    if arguments.inputs:
        raise FileError("--trace-events: prints what any scenario can have; no PATH")
    if arguments.policy:
        return _policy(as_json=arguments.json)
    from vsmmu.cli.trace_text import event_lines, event_table

    print(event_lines() if arguments.json else event_table(), end="")
    return 0


def _policy(*, as_json: bool) -> int:
    from vsmmu.hypervisor.policy import Policy

    if as_json:
        print(json_text({"schema": "vsmmu.policy/1", **Policy().to_json()}, indent=2))
    else:
        from vsmmu.cli.policy_text import policy_text

        print(policy_text(Policy()), end="")
    return 0


def _number(text: str) -> int:
    try:
        value = int(text, 0) if text.isascii() else -1
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"expected 0 to 2^64-1, not {text[:40]!r}")
    return value


def _seeds(text: str) -> tuple[int, ...]:
    """Argparse's way to seeds: decimal or 0x, as in a scenario; A-B for several."""
    first, dash, last = text.partition("-")
    if not dash or not first:
        return (_number(text),)
    low, high = _number(first), _number(last)
    if not low <= high < low + _SEEDS_MAX:
        raise argparse.ArgumentTypeError(f"expected A-B, at most {_SEEDS_MAX} seeds")
    return tuple(range(low, high + 1))


def _jobs(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:9]) <= _JOBS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {_JOBS_MAX}, not {text[:40]!r}")
    return int(text)


def execute(name: str, seed: int | None = None, *, keep: bool = False) -> Report:
    """Build the machine and the guests of a scenario file and run it.

    Raises:
        FileError, ScenarioError, DtError, ConfigRejectedError: each one line.
    """
    from vsmmu.scenario.run import load_scenario

    return _execute(load_scenario(Path(name)), seed, keep=keep).report


def _execute(
    scenario: Scenario, seed: int | None = None, *, keep: bool, record: Recorded | None = None
) -> Result:
    """Run a scenario; notices go to stderr."""
    from vsmmu.cli.run_progress import step_counter
    from vsmmu.scenario.run import run_scenario

    progress, built = step_counter(len(scenario.steps)), None
    if record is not None:
        progress, built = record.watch(scenario, progress)
    result = run_scenario(scenario, seed, progress=progress, keep_trace=keep, built=built)
    for notice in result.notices:
        say(f"vsmmu: {notice}")
    return result
