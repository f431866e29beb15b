# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run` with several runs: a line for each, or one envelope."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from dt_tools.json_text import json_text
from vsmmu.cli.files import say, write
from vsmmu.cli.junit import junit
from vsmmu.cli.run import EXPECTATION_FAILED
from vsmmu.cli.run_cases import Case, Outcome, play_all
from vsmmu.cli.run_progress import run_bar


def run_many(cases: Sequence[Case], others: list[str], arguments: argparse.Namespace) -> int:
    """Run the cases and print; the exit code."""
    outcomes: list[Outcome] = []
    told: set[str] = set()
    with run_bar(len(cases)) as advance:
        for outcome in play_all(cases, arguments.jobs):
            outcomes.append(outcome)
            if advance is None:
                _tell(outcome, told, arguments)
            else:
                advance()
    # A bar and lines beside it would spoil each other.
    for outcome in outcomes if advance is not None else ():
        _tell(outcome, told, arguments)
    if arguments.junit:
        write_junit(arguments.junit, outcomes, {case.path for case in cases})
    if arguments.json:
        print(json_text(_envelope(outcomes, others), indent=2))
    else:
        from vsmmu.cli.run_text import print_totals

        print_totals(outcomes)
    return _exit_code(outcomes)


def write_junit(name: str, outcomes: Sequence[Outcome], inputs: Iterable[str]) -> None:
    """Write the JUnit file of some outcomes. Raises FileError."""
    write({name: junit(outcomes)}, inputs)


def _tell(outcome: Outcome, told: set[str], arguments: argparse.Namespace) -> None:
    """A run's lines. Nothing twice on stderr: the seeds of a file have the same notices."""
    lines = [f"vsmmu: {notice}" for notice in outcome.notices]
    if outcome.error is not None:
        lines.append(f"vsmmu: {outcome.error.text}")
    for line in lines:
        if line not in told:
            told.add(line)
            say(line)
    if not arguments.json:
        from vsmmu.cli.run_text import print_outcome

        print_outcome(outcome)


def _envelope(outcomes: Sequence[Outcome], others: list[str]) -> dict[str, object]:
    """`vsmmu.run/2`: every run as `vsmmu.run/1` has it, or the error in its place."""
    return {
        "schema": "vsmmu.run/2",
        "ok": all(outcome.ok or outcome.skipped for outcome in outcomes),
        "runs": [_run(outcome) for outcome in outcomes],
        "other_files": others,
    }


def _run(outcome: Outcome) -> object:
    if outcome.error is None:
        return outcome.json
    return {
        "scenario": outcome.path,
        "seed": outcome.seed,
        "ok": False,
        "skipped": outcome.skipped,
        "error": {"text": outcome.error.text, "exit_code": outcome.error.exit_code},
    }


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    """That of the first run that could not be made, else whether an expectation failed."""
    for outcome in outcomes:
        if outcome.error is not None and not outcome.skipped:
            return outcome.error.exit_code
    return EXPECTATION_FAILED if any(outcome.problems for outcome in outcomes) else 0
