# SPDX-License-Identifier: BSD-2-Clause
"""Diagnoses as SARIF 2.1.0 (OASIS, 27 March 2020), the form that code hosts and editors read.

One run. Each rule that has a result is described; a result has the file as its physical location,
with a line where there is one, and the node's path as its logical location.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dt_tools.json_text import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dt_tools.checks import Diagnosis, Rule

VERSION = "2.1.0"
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(found: Sequence[Diagnosis], rules: Mapping[str, Rule], version: str) -> str:
    """The log as text; `rules` has every rule of `found`, `version` is the tool's."""
    used = sorted({one.rule for one in found})
    index = {id_: at for at, id_ in enumerate(used)}
    driver = {
        "name": "vsmmu check",
        "version": version,
        "rules": [_rule(rules[id_]) for id_ in used],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(one, index[one.rule]) for one in found],
    }
    log = {"$schema": SCHEMA, "version": VERSION, "runs": [run]}
    return json_text(log, indent=2) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    text = rule.why or rule.title
    example = f"\n\nExample: {rule.example}" if rule.example else ""
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": text},
        "help": {"text": text + example},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(one: Diagnosis, index: int) -> dict[str, Any]:
    where: dict[str, Any] = {"artifactLocation": {"uri": uri(one.file)}}
    if one.line is not None:
        where["region"] = {"startLine": one.line}
    location: dict[str, Any] = {"physicalLocation": where}
    if one.path:
        node = {"name": one.path.rpartition("/")[2] or "/", "fullyQualifiedName": one.path}
        location["logicalLocations"] = [{**node, "kind": "object"}]
    subject = f"{one.path}: " if len(one.path) > 1 else ""
    fix = f"; {one.fix}" if one.fix else ""
    return {
        "ruleId": one.rule,
        "ruleIndex": index,
        "level": one.severity,
        "message": {"text": readable(f"{subject}{one.fact}{fix}")},
        "locations": [location],
    }


def readable(text: str) -> str:
    """A text that UTF-8 can hold: bytes of a configuration that are none as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def uri(name: str) -> str:
    """A file name as a URI reference: relative as it is, absolute with file://."""
    path = PurePath(name)
    quoted = quote(name.encode("utf-8", "surrogateescape"), safe="/")
    if path.is_absolute():
        return f"file://{quoted}"
    return quoted
