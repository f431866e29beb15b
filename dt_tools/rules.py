# SPDX-License-Identifier: BSD-2-Clause
"""What a rule and a diagnosis are, and the registry of all rules.

A group module declares its rules beside the code that finds them: `DT102 = rule(...)`, then
`yield DT102.at(path, fact, fix)`. Ids are stable; a rule keeps its meaning in every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing found.

    `path` is the full path of a node (`/` when it is about no node), `fact` what is so, `fix`
    what to do. `file` and `line` say where: the host's DTB, a configuration, a partial tree;
    `key` is the configuration's key whose line it is. `line` is None where there are no lines.
    """

    rule: str
    severity: Severity
    path: str
    fact: str
    fix: str
    key: str | None = field(default=None, compare=False)
    file: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of mistake.

    `severity` is that of its gravest case, `title` one line, `why` what happens when the mistake
    is made, `example` a diagnosis of it.
    """

    id: str
    severity: Severity
    title: str
    why: str
    example: str

    def at(
        self,
        path: str,
        fact: str,
        fix: str,
        *,
        severity: Severity | None = None,
        key: str | None = None,
    ) -> Diagnosis:
        """A case of this rule; a case may be less grave than the rule."""
        return Diagnosis(self.id, severity or self.severity, path, fact, fix, key)


_RULES: dict[str, Rule] = {}


def rule(id_: str, severity: Severity, title: str, why: str, example: str) -> Rule:
    """Declare a rule."""
    assert id_ not in _RULES, id_
    _RULES[id_] = Rule(id_, severity, title, why, example)
    return _RULES[id_]


def declared() -> dict[str, Rule]:
    """The rules that were declared so far, by ascending id."""
    return dict(sorted(_RULES.items()))
