# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run`: scenarios on the emulator."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, say, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsmmu.cli.run_cases import Case, Outcome
    from vsmmu.report import Report
    from vsmmu.scenario import Scenario, Step
    from vsmmu.scenario.run import Result
    from vsmmu.trace import Trace

EXPECTATION_FAILED = 3
_JOBS_MAX = 256
_SEEDS_MAX = 1_000


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
    parser.add_argument("--json", action="store_true", help="the report, or the limits, as JSON")
    parser.add_argument(
        "--trace", metavar="FILE", help="write every trace event of one run as JSON Lines"
    )
    parser.add_argument(
        "--policy",
        action="store_true",
        help="print the limits guests are held to, and run nothing; JSON with --json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run and print; 3 when an expectation does not hold."""
    if arguments.policy:
        return _policy(as_json=arguments.json)
    if not arguments.inputs:
        raise FileError("run: which scenario? give PATH")
    for option in ("trace", "junit"):
        name = getattr(arguments, option)
        if name == "-" or (name and Path(name).is_dir()):
            raise FileError(f"--{option} {name}: give a file; stdout has the report")
    from vsmmu.cli.run_cases import find_files, make_cases

    paths, others = find_files(arguments.inputs)
    for other in others:
        say(f"vsmmu: notice: {other}: skipped, it does not mention the schema of scenarios")
    cases = make_cases(paths, arguments.seed, wants_json=arguments.json)
    # Decided by what was asked for, not by how many files a folder happens to have.
    if len(cases) == 1 and not os.path.isdir(arguments.inputs[0]):
        return _run_one(cases[0], arguments)
    if arguments.trace:
        raise FileError(f"--trace {arguments.trace}: {len(cases)} runs; give one scenario and seed")
    return _run_many(cases, others, arguments)


def _run_one(case: Case, arguments: argparse.Namespace) -> int:
    """One scenario under one seed: its whole report."""
    from vsmmu.cli.run_cases import Failure, Outcome, outcome
    from vsmmu.scenario.run import load_scenario

    try:
        result = _execute(case.scenario or load_scenario(case.path))
    except Exception as error:
        failure = Failure.of(error)
        if failure is not None and arguments.junit:
            _write_junit(arguments, [Outcome(case.path, case.seed, error=failure)], (case.path,))
        raise
    outputs = {}
    if arguments.trace:
        outputs[arguments.trace] = _trace_lines(result.report.machine.trace)
    write(outputs, (case.path,))
    if arguments.junit:
        _write_junit(arguments, [outcome(case, result)], (case.path,))
    if arguments.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        from vsmmu.cli.run_text import print_report

        print_report(result.report)
    return 0 if result.ok else EXPECTATION_FAILED


def _run_many(cases: Sequence[Case], others: list[str], arguments: argparse.Namespace) -> int:
    """Several runs: a line for each, or one envelope."""
    from vsmmu.cli.run_cases import play_all
    from vsmmu.cli.run_text import print_outcome, print_totals

    outcomes: list[Outcome] = []
    told: set[str] = set()
    with _bar(len(cases)) as advance:
        held = advance is not None
        for outcome in play_all(cases, arguments.jobs):
            outcomes.append(outcome)
            if advance is not None:
                advance()
            if not held:
                _tell(outcome, told)
                if not arguments.json:
                    print_outcome(outcome)
    if held:
        for outcome in outcomes:
            _tell(outcome, told)
            if not arguments.json:
                print_outcome(outcome)
    if arguments.junit:
        _write_junit(arguments, outcomes, {case.path for case in cases})
    if arguments.json:
        print(json.dumps(_envelope(outcomes, others), indent=2))
    else:
        print_totals(outcomes)
    return _exit_code(outcomes)


def _tell(outcome: Outcome, told: set[str]) -> None:
    """What is said of a run on stderr, nothing twice: seeds of a file have the same notices."""
    lines = [f"vsmmu: {notice}" for notice in outcome.notices]
    if outcome.error is not None:
        lines.append(f"vsmmu: {outcome.error.text}")
    for line in lines:
        if line not in told:
            told.add(line)
            say(line)


def _envelope(outcomes: Sequence[Outcome], others: list[str]) -> dict[str, object]:
    """`vsmmu.run/2`: every run as `vsmmu.run/1` has it, or the error in its place."""
    runs: list[object] = []
    for outcome in outcomes:
        if outcome.error is None:
            runs.append(outcome.json)
            continue
        error = {"text": outcome.error.text, "exit_code": outcome.error.exit_code}
        runs.append(
            {
                "scenario": outcome.path,
                "seed": outcome.seed,
                "ok": False,
                "skipped": outcome.skipped,
                "error": error,
            }
        )
    return {
        "schema": "vsmmu.run/2",
        "ok": all(outcome.ok or outcome.skipped for outcome in outcomes),
        "runs": runs,
        "other_files": others,
    }


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    """That of the first run that could not be made, else whether an expectation failed."""
    for outcome in outcomes:
        if outcome.error is not None and not outcome.skipped:
            return outcome.error.exit_code
    return EXPECTATION_FAILED if any(outcome.problems for outcome in outcomes) else 0


def _write_junit(
    arguments: argparse.Namespace, outcomes: Sequence[Outcome], inputs: Iterable[str]
) -> None:
    from vsmmu.cli.junit import junit

    write({arguments.junit: junit(outcomes)}, inputs)


def _policy(*, as_json: bool) -> int:
    from vsmmu.hypervisor.policy import Policy

    if as_json:
        print(json.dumps({"schema": "vsmmu.policy/1", **Policy().to_json()}, indent=2))
    else:
        from vsmmu.cli.policy_text import policy_text

        print(policy_text(Policy()), end="")
    return 0


def _number(text: str) -> int:
    try:
        value = int(text, 0)
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


def execute(name: str, seed: int | None = None) -> Report:
    """Build the machine and the guests of a scenario file and run it.

    Raises:
        FileError, ScenarioError, DtError, ConfigRejectedError: each one line.
    """
    from vsmmu.scenario.run import load_scenario

    return _execute(load_scenario(Path(name)), seed).report


def _execute(scenario: Scenario, seed: int | None = None) -> Result:
    """Run a scenario; notices go to stderr."""
    from vsmmu.scenario.run import run_scenario

    result = run_scenario(scenario, seed, progress=_progress(len(scenario.steps)))
    for notice in result.notices:
        say(f"vsmmu: {notice}")
    return result


def _progress(steps: int) -> Callable[[Step], None] | None:
    """A counter on a terminal's stderr for long scenarios; nothing elsewhere."""
    if steps < 100 or not _terminal():
        return None

    def show(step: Step) -> None:
        end = "\n" if step.number == steps else ""
        print(f"\rstep {step.number}/{steps}", end=end, file=sys.stderr, flush=True)

    return show


@contextmanager
def _bar(runs: int) -> Iterator[Callable[[], None] | None]:
    """A bar on a terminal's stderr and what advances it; None elsewhere."""
    if not _terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task("runs", total=runs)
        yield lambda: bar.advance(task)


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


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
