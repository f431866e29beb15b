# SPDX-License-Identifier: BSD-2-Clause
"""Scenario files as items of pytest, one for each file and seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vsmmu.inputs import plain
from vsmmu.scenario import ScenarioError
from vsmmu.scenario.run import load_scenario, run_scenario
from vsmmu.testing.plugin import MARKER, SEED_OPTION

if TYPE_CHECKING:
    from vsmmu.scenario import Scenario
    from vsmmu.scenario.run import Result


class ExpectationError(Exception):
    """A scenario ran, and expectations of it do not hold."""

    def __init__(self, result: Result) -> None:
        super().__init__("\n".join(str(problem) for problem in result.problems))
        self.result = result


class ScenarioFile(pytest.File):
    """A scenario file."""

    def collect(self) -> Iterator[ScenarioItem]:
        """An item for each seed."""
        try:
            scenario = load_scenario(self.path)
        except Exception as error:
            if not _is_complaint(error):
                raise
            raise self.CollectError(shown(self.config, self.path, str(error))) from None
        for seed in dict.fromkeys(self.config.getoption(SEED_OPTION) or scenario.seeds):
            yield ScenarioItem.from_parent(self, name=f"seed={seed}", scenario=scenario, seed=seed)


class ScenarioItem(pytest.Item):
    """A scenario under one seed."""

    def __init__(self, *, scenario: Scenario, seed: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scenario = scenario
        self.seed = seed
        self.add_marker(MARKER)

    def runtest(self) -> None:
        """Run it. Raises ExpectationError."""
        result = run_scenario(self.scenario, self.seed)
        if result.notices:
            self.add_report_section("call", "notices", "\n".join(map(plain, result.notices)))
        if not result.ok:
            raise ExpectationError(result)

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None
    ) -> str | Any:
        """File, line, step and reason of each problem; a traceback for a defect of ours alone."""
        error = excinfo.value
        if isinstance(error, ExpectationError):
            again = f"again: vsmmu run --seed {self.seed} {self.path}"
            return shown(self.config, self.path, f"{error}\n{again}")
        if _is_complaint(error):
            return shown(self.config, self.path, str(error))
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str], int, str]:
        """The file, and the title in the place of a function's name."""
        title = f" {self.scenario.title}" if self.scenario.title else ""
        return self.path, 0, plain(f"{self.path.name} {self.name}{title}")


def shown(config: pytest.Config, path: Path, text: str) -> str:
    """Lines safe to print; names of files beside a scenario as seen from the folder of the run."""
    folder = os.path.relpath(path.parent, config.invocation_params.dir)
    if not folder.startswith(".."):
        near = "" if folder == "." else f"{folder}{os.sep}"
        text = text.replace(f"{path.parent}{os.sep}", near)
    return "\n".join(plain(line) for line in text.split("\n"))


def _is_complaint(error: BaseException) -> bool:
    """Whether an input was bad: such errors say all there is to say in one line."""
    return isinstance(error, ScenarioError) or hasattr(error, "exit_code")
