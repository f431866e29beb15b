# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu run` with several scenarios or seeds: which files, which cases, each case's outcome."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vsmmu.cli.files import FileError, read

if TYPE_CHECKING:
    from vsmmu.report import Problem
    from vsmmu.scenario import Scenario
    from vsmmu.scenario.run import Result

# Files that are looked at below a folder.
_FILES_MAX = 10_000
_SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario under one seed, to be run; `error` says why that cannot be, as a `Failure`."""

    path: str
    seed: int | None = None
    scenario: Scenario | None = None
    error: Failure | None = None
    wants_json: bool = False
    wants_summary: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that could not be used: its line and the exit code that it stands for.

    `skipped` where the scenario is sound and a program is missing here.
    """

    kind: str
    text: str
    exit_code: int
    skipped: bool = False

    @classmethod
    def of(cls, error: Exception) -> Failure | None:
        """What an exception says to the user; None for one of our own."""
        exit_code = getattr(error, "exit_code", None)
        if exit_code is None:
            return None
        skipped = "needs dtc, which is not on PATH" in str(error)
        return cls(type(error).__name__, str(error), int(exit_code), skipped)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case. It can be sent from one process to another."""

    path: str
    seed: int | None
    title: str = ""
    problems: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    error: Failure | None = None
    steps: int = 0
    actors: int = 0
    units: int = 0
    json: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether it ran and every expectation held."""
        return self.error is None and not self.problems

    @property
    def skipped(self) -> bool:
        """Whether it was not run for want of a program."""
        return self.error is not None and self.error.skipped


def find_files(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The scenarios that some files and folders stand for, and other TOML files that were met.

    A file that is named counts as a scenario whatever is in it. Below a folder, a TOML file that
    does not mention the schema is not one. Hidden files and folders are left out. Sorted within
    each input; a file that is met twice counts once. What cannot be read is among the scenarios,
    so that the others still run.

    Raises:
        FileError: a folder without any scenario.
    """
    found: list[str] = []
    others: list[str] = []
    for name in inputs:
        if name == "-" or not os.path.isdir(name):
            found.append(name)
            continue
        below = list(_below(name))
        ours = [path for path in below if _may_be_scenario(path)]
        if not ours:
            raise FileError(f"{name}: no scenario in it (*{_SUFFIX} with a schema of ours)")
        found += ours
        others += [path for path in below if path not in set(ours)]
    return _once(found), _once(others)


def _once(paths: Iterable[str]) -> list[str]:
    """Without what is there already by another name of its folder."""
    found: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        place = path if path == "-" else os.path.join(os.path.realpath(folder), name)
        found.setdefault(place, path)
    return list(found.values())


def _may_be_scenario(path: str) -> bool:
    """Whether a file below a folder is to be run; what cannot be read is, and will say so."""
    from vsmmu.scenario import is_scenario

    try:
        return is_scenario(read(path))
    except FileError:
        return True


def _below(folder: str) -> Iterator[str]:
    """TOML files below a folder and folders that cannot be read, by the parts of their paths.

    Pipes and devices are left out: reading one might never end.
    """
    paths: list[str] = []
    for place, folders, files in os.walk(folder, onerror=lambda e: paths.append(str(e.filename))):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in files:
            path = os.path.join(place, name)
            if name.endswith(_SUFFIX) and not name.startswith(".") and _is_file(path):
                paths.append(path)
        if len(paths) > _FILES_MAX:
            raise FileError(f"{folder}: more than {_FILES_MAX} TOML files; name fewer")
    return iter(sorted(paths, key=lambda path: path.split(os.sep)))


def _is_file(path: str) -> bool:
    """Whether it is a regular file, or not to be known."""
    return os.path.isfile(path) or not os.path.exists(path)


def read_for(cases: Iterable[Case]) -> list[str]:
    """The files that cases are made from: scenarios, hosts, configurations."""
    names: dict[str, None] = {}
    for case in cases:
        names[case.path] = None
        if case.scenario is None:
            continue
        folder = os.path.dirname(case.path)
        beside = (case.scenario.host, *(guest.config for guest in case.scenario.guests))
        names.update((os.path.join(folder, name), None) for name in beside if name is not None)
    return list(names)


def make_cases(
    paths: Sequence[str], seeds: Sequence[int], *, wants_json: bool, wants_summary: bool
) -> list[Case]:
    """A case for each scenario and seed; `seeds` replaces those of the files, if there are any."""
    from vsmmu.scenario.run import load_scenario

    cases: list[Case] = []
    for path in paths:
        try:
            scenario = load_scenario(read(path), path)
        except Exception as error:
            failure = Failure.of(error)
            if failure is None:
                raise
            cases.append(Case(path, error=failure))
            continue
        cases += [
            Case(
                path,
                seed,
                replace(scenario, seeds=(seed,)),
                wants_json=wants_json,
                wants_summary=wants_summary,
            )
            for seed in seeds or scenario.seeds
        ]
    return cases


def play(case: Case) -> Outcome:
    """Run a case in this process."""
    from vsmmu.scenario.run import run_scenario

    if case.scenario is None:
        return Outcome(case.path, case.seed, error=case.error)
    try:
        result = run_scenario(case.scenario)
    except Exception as error:
        failure = Failure.of(error)
        if failure is None:
            raise
        return Outcome(case.path, case.seed, case.scenario.title, error=failure)
    return outcome(case, result)


def outcome(case: Case, result: Result) -> Outcome:
    """What is kept of a run."""
    body = result.to_json() if case.wants_json else None
    if body is not None and case.wants_summary:
        body["summary"] = result.report.summary()
    return Outcome(
        path=case.path,
        seed=result.seed,
        title=result.scenario.title,
        problems=result.problems,
        notices=result.notices,
        steps=len(result.report.steps),
        actors=len(result.report.actors),
        units=result.report.machine.scheduler.now,
        json=body,
    )


def play_all(cases: Sequence[Case], jobs: int) -> Iterator[Outcome]:
    """The outcome of each case in their order, from so many processes.

    Raises:
        FileError: a process was ended from outside.
        SystemExit: this one was asked to end.
    """
    if jobs == 1 or len(cases) == 1:
        yield from map(play, cases)
        return
    from concurrent.futures.process import BrokenProcessPool

    from vsmmu.cli.run_pool import pool

    with pool(min(jobs, len(cases))) as processes:
        try:
            # Not by `map`, which cancels what it waits for: the pool's thread trips over that.
            waiting = [processes.submit(play, case) for case in cases]
            waiting.reverse()
            while waiting:
                yield waiting.pop().result()
        except BrokenProcessPool:
            raise FileError("-j: one of the processes was ended from outside; try fewer") from None
