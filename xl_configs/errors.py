# SPDX-License-Identifier: BSD-2-Clause
"""What the reader of guest configurations says: errors and warnings."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST = 160


def shown(text: str) -> str:
    """Text of a configuration, fit for one line of a message: bounded and printable."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST // 2] + "[...]" + text[-_LONGEST // 4 :]
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A warning: the configuration is accepted, but probably not what was meant.

    Attributes:
        id: ``XL1nn``, stable.
        line: of the setting, or None when it is about something absent.
        message: what happens and what to write instead.
        report: the line xl prints for it; empty where xl is silent.
    """

    id: str
    line: int | None
    message: str
    report: str = ""


class ConfigError(Exception):
    """A configuration that is refused.

    Attributes:
        source: name of the configuration.
        line: where, counted from 1; None when it is about something absent.
        reason: what is wrong.
        fix: what to write instead.
        report: what xl prints, line by line; for a refusal xl does not make, the reason.
        exit_code: of xl.
    """

    def __init__(
        self,
        source: str,
        line: int | None,
        reason: str,
        fix: str,
        *,
        report: tuple[str, ...] | None = None,
        exit_code: int = 1,
    ) -> None:
        self.source = source
        self.line = line
        self.reason = reason
        self.fix = fix
        self.report = (reason,) if report is None else report
        self.exit_code = exit_code
        super().__init__(source, line, reason, fix)

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{shown(place)}: {shown(self.reason)}; {shown(self.fix)}"
