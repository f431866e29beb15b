# SPDX-License-Identifier: BSD-2-Clause
"""JUnit XML: a suite for each scenario, a test case for each of its seeds.

The elements and attributes are those that the schema of Jenkins's xUnit plugin has. There is no
`time`: a run has virtual time alone, which stands in `system-out`, so the file is the same every
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING
from xml.etree import ElementTree as Xml  # writes only

from vsmmu.cli.files import plain

if TYPE_CHECKING:
    from vsmmu.cli.run_cases import Outcome


def junit(outcomes: Sequence[Outcome]) -> bytes:
    """The file for these outcomes, in their order."""
    root = Xml.Element("testsuites", {"name": "vsmmu run", **_totals(outcomes)})
    for path, group in groupby(outcomes, key=lambda outcome: outcome.path):
        members = list(group)
        skipped = str(sum(outcome.skipped for outcome in members))
        totals = {**_totals(members), "skipped": skipped}
        suite = Xml.SubElement(root, "testsuite", {"name": plain(path), **totals})
        for outcome in members:
            _case(suite, outcome)
    Xml.indent(root)
    text: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _totals(outcomes: Sequence[Outcome]) -> dict[str, str]:
    errors = sum(outcome.error is not None and not outcome.skipped for outcome in outcomes)
    failures = sum(bool(outcome.problems) for outcome in outcomes)
    return {"tests": str(len(outcomes)), "failures": str(failures), "errors": str(errors)}


def _case(suite: Xml.Element, outcome: Outcome) -> None:
    name = "scenario" if outcome.seed is None else f"seed {outcome.seed}"
    classname = plain(outcome.path).removesuffix(".toml").replace("/", ".").strip(".")
    case = Xml.SubElement(suite, "testcase", {"classname": classname or "-", "name": name})
    if outcome.skipped:
        assert outcome.error is not None
        Xml.SubElement(case, "skipped", {"message": plain(outcome.error.text)})
    elif outcome.error is not None:
        told = {"type": outcome.error.kind, "message": plain(outcome.error.text)}
        Xml.SubElement(case, "error", told).text = plain(outcome.error.text)
    elif outcome.problems:
        told = {"type": "expectation", "message": plain(outcome.problems[0].reason)}
        failure = Xml.SubElement(case, "failure", told)
        failure.text = "\n".join(plain(str(problem)) for problem in outcome.problems)
    if outcome.error is None:
        Xml.SubElement(case, "system-out").text = told_of(outcome)


def told_of(outcome: Outcome) -> str:
    """What a run consisted of, in a few words."""
    parts = [
        f"{number} {what}{'' if number == 1 else 's'}"
        for number, what in ((outcome.steps, "step"), (outcome.actors, "actor"))
        if number
    ]
    return f"{', '.join(parts)}, {outcome.units} units of virtual time"
