# SPDX-License-Identifier: BSD-2-Clause
"""docs/suites.md names the cases of other suites: each has a test that exists, or a reason."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/suites.md"
REFERENCE = r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)(?:\[([^\]]+)\])?`"
REASON = "not applicable: "
# A reason says more than a word.
SHORTEST = 30


@cache
def names_in(path: str) -> tuple[frozenset[str], frozenset[str]]:
    """The test functions of a module, those of its classes included, and its strings."""
    place = ROOT / path
    if not place.is_file():
        return frozenset(), frozenset()
    tree = ast.parse(place.read_text())
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    functions = {n.name for body in bodies for n in body if isinstance(n, ast.FunctionDef)}
    strings = {
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    return frozenset(functions), frozenset(strings)


def table(text: str) -> list[list[str]]:
    """The cells of a document's table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def problems(text: str) -> list[str]:
    """What is wrong with the document, a line each."""
    out = []
    head, *sections = text.split("\n## ")
    stated = {row[0]: [int(n) for n in row[1:]] for row in table(head)}
    suites = {section.split("\n", 1)[0]: table(section) for section in sections}
    if list(stated) != list(suites):
        out.append(f"the suites are {list(suites)}, stated {list(stated)}")
    for name, rows in suites.items():
        cases = [row[0] for row in rows]
        reasons = sum(row[1].startswith(REASON) for row in rows)
        counts = [len(rows), len(rows) - reasons, reasons]
        if stated.get(name) != counts:
            out.append(f"{name}: {counts}, stated {stated.get(name)}")
        out += [f"{name}: {case} twice" for case in sorted(set(cases)) if cases.count(case) > 1]
        for case, here in rows:
            out += [f"{name}: {case}: {problem}" for problem in wrong(here)]
    return out


def wrong(here: str) -> list[str]:
    """What is wrong with the second cell of a row."""
    out = []
    for path, function, parameter in re.findall(REFERENCE, here):
        functions, strings = names_in(path)
        if function not in functions:
            out.append(f"no {path}::{function}")
        elif parameter and parameter not in strings:
            out.append(f"no {parameter!r} in {path}")
    if here.startswith(REASON):
        if len(here) < len(REASON) + SHORTEST:
            out.append("no reason")
    elif not re.fullmatch(f"{REFERENCE}(, {REFERENCE})*", here):
        out.append("neither tests nor a reason")
    return out


def test_every_case_has_a_test_or_a_reason() -> None:
    assert problems(DOCUMENT.read_text()) == []


GOOD = """# Title

| suite | cases | tested | not applicable |
| :--- | ---: | ---: | ---: |
| One | 2 | 1 | 1 |

## One

| case | here |
| :--- | :--- |
| `a` | `tests/test_suites.py::test_what_is_found[a test that is not there]` |
| `b` | not applicable: there is nothing of the kind in an SMMU |
"""
TEST = "test_what_is_found[a test that is not there]"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        pytest.param("", "", None, id="nothing"),
        pytest.param(
            TEST, "test_nothing", "One: `a`: no tests/test_suites.py::test_nothing",
            id="a test that is not there",
        ),
        ("tests/test_suites.py", "tests/gone.py", "One: `a`: no tests/gone.py::test_what_is_found"),
        ("not there]", "not]", "One: `a`: no 'a test that is not' in tests/test_suites.py"),
        ("`tests", "see `tests", "One: `a`: neither tests nor a reason"),
        (f"`tests/test_suites.py::{TEST}`", "yes", "One: `a`: neither tests nor a reason"),
        (f"`tests/test_suites.py::{TEST}`", "", "One: `a`: neither tests nor a reason"),
        ("there is nothing of the kind in an SMMU", "no", "One: `b`: no reason"),
        ("| One | 2 | 1 | 1 |", "| One | 3 | 2 | 1 |", "One: [2, 1, 1], stated [3, 2, 1]"),
        ("`b`", "`a`", "One: `a` twice"),
        ("## One", "## Two", "the suites are ['Two'], stated ['One']"),
    ],
)  # fmt: skip
def test_what_is_found(old: str, new: str, problem: str | None) -> None:
    found = problems(GOOD.replace(old, new, 1))
    assert (problem in found) if problem else found == []
