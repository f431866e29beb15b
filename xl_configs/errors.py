# SPDX-License-Identifier: BSD-2-Clause
"""What the reader of guest configurations says: errors and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xl_configs.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST = 160


def shown(text: str) -> str:
    """Text of a configuration, fit for one line of a message: bounded and printable."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST // 2] + "[...]" + text[-_LONGEST // 4 :]
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


DIAGNOSTICS = {
    "XL001": "the text is no configuration",
    "XL002": "a value, or a combination of values, is refused",
    "XL003": "xl crashes at this value; refused here",
    "XL101": "a key that no reader looks up",
    "XL102": "one value where a list belongs; the key is ignored",
    "XL103": "a list is cut at an element that is itself a list",
    "XL104": "a list where one value belongs; the key is ignored",
    "XL105": "not a number xl can read; the key is ignored",
    "XL106": "root and extra are ignored beside cmdline",
    "XL107": "the last byte of the file is dropped",
    "XL108": "the beginning of a word is taken for the word",
    "XL109": "a numeric escape in a string stands for nothing",
    "XL110": "a deprecated key, or a deprecated way to write its value",
    "XL111": "a part of an entry is ignored",
    "XL112": "a number beyond what a guest can have",
    "XL113": "what follows a number is ignored",
    "XL114": "libxl refuses it on Arm",
}
"""What each id means: errors are XL0nn, warnings XL1nn. Ids are stable."""


@frozen
class Diagnostic:
    """A warning: the configuration is accepted, but probably not what was meant.

    Attributes:
        id: ``XL1nn``, one of ``DIAGNOSTICS``.
        line: of the setting, or None when it is about something absent.
        message: what happens and what to write instead.
        report: the line xl prints for it, or lines; empty where xl is silent.
        unended: xl ends that line without a line feed, so that what it prints next follows.
    """

    id: str
    line: int | None
    message: str
    report: str = ""
    unended: bool = False


def printed(said: Iterable[Diagnostic]) -> tuple[str, ...]:
    """All that xl prints, line by line."""
    text = "".join(part.report + ("" if part.unended else "\n") for part in said if part.report)
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


class ConfigError(Exception):
    """A configuration that is refused.

    Attributes:
        source: name of the configuration.
        line: where, counted from 1; None when it is about something absent.
        reason: what is wrong.
        fix: what to write instead.
        report: what xl prints up to its end, line by line; for a refusal xl does not make, the
            reason stands last.
        exit_code: of xl; minus the signal where xl crashes.
        said: the warnings before it, in the order in which they were met.
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
        said: tuple[Diagnostic, ...] = (),
    ) -> None:
        self.source = source
        self.line = line
        self.reason = reason
        self.fix = fix
        self.report = (reason,) if report is None else report
        self.exit_code = exit_code
        self.said = said
        super().__init__(source, line, reason, fix)

    @property
    def id(self) -> str:
        """Its id, one of ``DIAGNOSTICS``."""
        if self.exit_code < 0:
            return "XL003"
        return "XL001" if "Failed to parse config" in "".join(self.report[-1:]) else "XL002"

    @property
    def message(self) -> str:
        """The reason and the fix, fit for one line."""
        return f"{shown(self.reason).removesuffix('.')}; {shown(self.fix)}"

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{shown(place)}: {self.message}"
