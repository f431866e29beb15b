# SPDX-License-Identifier: BSD-2-Clause
"""docs/testing.md: every example runs, and what it says of modules and fixtures is so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from vsmmu.testing import plugin, strategies

from .test_plugin import ALONE

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/testing.md"
TEXT = DOCUMENT.read_text()
# The first line of an example is the name of its file.
FILES = {
    name: body
    for body, name in re.findall(r"```(?:python|toml)\n(# (\S+)\n.*?)```", TEXT, re.DOTALL)
}


def test_the_examples_run(pytester: pytest.Pytester) -> None:
    assert len(FILES) == 5
    for name, body in FILES.items():
        pytester.path.joinpath(name).write_text(body)
    pytester.path.joinpath("case-1.toml").write_text(FILES["nic.scenario.toml"])
    result = pytester.runpytest_inprocess("-pvsmmu.testing.plugin", *ALONE, "-v", "-Werror")
    result.assert_outcomes(passed=2 + 2 + 2 + 2 + 3)
    (shown,) = re.findall(r"\$ pytest -v\n(.*?)```", TEXT, re.DOTALL)
    result.stdout.fnmatch_lines_random([f"{line} *" for line in shown.splitlines()])


def test_the_failure_that_is_shown(pytester: pytest.Pytester) -> None:
    body = FILES["nic.scenario.toml"].replace('expect = "fault"\n', "")
    pytester.path.joinpath("nic.scenario.toml").write_text(body)
    result = pytester.runpytest_inprocess("-pvsmmu.testing.plugin", *ALONE)
    (shown,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    result.stdout.fnmatch_lines(shown.splitlines(), consecutive=True)


def test_what_is_listed_exists() -> None:
    for name in re.findall(r"^\| `(vsmmu\.testing\.\w+)` \|", TEXT, re.MULTILINE):
        importlib.import_module(name)
    drawn = re.findall(r"^\| (`\w+[`(].*?) \| .*$", TEXT, re.MULTILINE)
    named = {word for cell in drawn for word in re.findall(r"`(\w+)", cell)}
    assert set(strategies.__all__) - {"Flaw", "Mapping", "Recipe"} <= named
    fixtures = {name for name in vars(plugin) if name.startswith("vsmmu_")}
    assert fixtures <= named
