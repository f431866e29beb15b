# SPDX-License-Identifier: BSD-2-Clause
"""Typed access to a scenario's tables; every complaint has the file, the line and the place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn

from vsmmu.scenario.lines import Lines, Path

# Reading takes time by the length of a file and by the parts of its longest key.
_BYTES_MAX = 4 << 20
_KEY_PARTS_MAX = 64
_LONG_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*)"""
    f"{{{_KEY_PARTS_MAX}}}"
)
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_DIGITS = re.compile(r"[0-9_]{1000,}")
_SHOWN_MAX = 60
_UP_TO, _AT_LEAST = "<=", ">="


class ScenarioError(Exception):
    """A scenario that cannot be used: one line with the file, the line, the place and the fix.

    `exit_code` is 2, or what the reason has: 4 for what the toolstack refuses.
    """

    def __init__(
        self, source: str, where: str, reason: str, line: int | None = None, exit_code: int = 2
    ) -> None:
        place = source if line is None else f"{source}:{line}"
        super().__init__(f"{place}: {where}: {reason}" if where else f"{place}: {reason}")
        self.source, self.where, self.reason, self.line = source, where, reason, line
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[ScenarioError], tuple[str, str, str, int | None, int]]:
        return ScenarioError, (self.source, self.where, self.reason, self.line, self.exit_code)


class Document:
    """A TOML file: its tables, and the line of each of its keys.

    Args:
        data: the file.
        source: its name, for messages.

    Raises:
        ScenarioError: it is no TOML file, or too large.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self.source = source
        if len(data) > _BYTES_MAX:
            raise ScenarioError(source, "", f"larger than {_BYTES_MAX >> 20} MiB")
        try:
            self._text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ScenarioError(source, "", f"not a TOML file: {error}", line) from None
        long = _LONG_KEY.search(self._text)
        if long is not None:
            line = self._text.count("\n", 0, long.start()) + 1
            raise ScenarioError(source, "", f"more than {_KEY_PARTS_MAX} names with dots", line)
        try:
            self.root: dict[str, Any] = tomllib.loads(self._text)
        except RecursionError:
            raise ScenarioError(source, "", "not a TOML file: nested too deeply") from None
        except ValueError as error:
            raise self._malformed(str(error)) from None

    def line(self, path: Path) -> int | None:
        """The line of a key, or of the nearest table around it."""
        return self._lines.of(path)

    @cached_property
    def _lines(self) -> Lines:
        return Lines(self._text)

    def _malformed(self, reason: str) -> ScenarioError:
        found = _AT.search(reason)
        if found is None:
            # The one error without a place is Python's limit on the digits of a number.
            digits = _DIGITS.search(self._text)
            line = self._text.count("\n", 0, digits.start()) + 1 if digits else None
            return ScenarioError(self.source, "", "a number of too many digits", line)
        line = int(found[1]) if found[1] else self._text.count("\n") + 1
        place = f", column {found[2]}" if found[2] else ", at the end"
        reason = reason[: found.start()] + place
        return ScenarioError(self.source, "", f"not a TOML file: {reason}", line)


class Count:
    """How many of something are expected: exactly so many, at most, at least, or a range."""

    __slots__ = ("least", "most")

    def __init__(self, least: int, most: int | None) -> None:
        self.least, self.most = least, most

    def holds(self, value: int) -> bool:
        """Whether a number is as expected."""
        return self.least <= value and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"at least {self.least}"
        if self.least == self.most:
            return str(self.least)
        return f"at most {self.most}" if not self.least else f"{self.least} to {self.most}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Count):
            return NotImplemented
        return (self.least, self.most) == (other.least, other.most)

    def __hash__(self) -> int:
        return hash((self.least, self.most))

    def __repr__(self) -> str:
        return f"Count({self.least}, {self.most})"


class Reader:
    """One value of a document, with its path there and the name of its place in messages."""

    __slots__ = ("document", "path", "value", "where")

    def __init__(self, document: Document, value: Any, path: Path = (), where: str = "") -> None:
        self.document, self.value, self.path, self.where = document, value, path, where

    @property
    def line(self) -> int | None:
        """The line it stands on."""
        return self.document.line(self.path)

    def error(self, reason: str) -> ScenarioError:
        """A complaint about this value."""
        return ScenarioError(self.document.source, self.where, reason, self.line)

    def fail(self, reason: str) -> NoReturn:
        """Raise a complaint about this value."""
        raise self.error(reason)

    # Tables and lists.

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def keys(self, *known: str) -> None:
        """A table with no other fields than these."""
        for key in self.table():
            if key not in known:
                self.at(key).fail(f"not a known field; known are {', '.join(known)}")

    def table(self) -> Mapping[str, Any]:
        """A table."""
        if not isinstance(self.value, dict):
            self.fail("expected a table")
        return self.value

    def at(self, key: str, default: Any = None) -> Reader:
        """A field of a table; `default` where it has none."""
        where = f"{self.where}: {_shown(key)}" if self.where else _shown(key)
        return Reader(self.document, self.table().get(key, default), (*self.path, key), where)

    def named(self, where: str) -> Reader:
        """The same value under another name in messages."""
        return Reader(self.document, self.value, self.path, where)

    def items(self) -> list[Reader]:
        """The items of a list, each with the list's name in messages."""
        if not isinstance(self.value, list):
            self.fail("expected a list")
        return [
            Reader(self.document, item, (*self.path, index), self.where)
            for index, item in enumerate(self.value)
        ]

    def fields(self) -> list[tuple[str, Reader]]:
        """The fields of a table by name."""
        return [(key, self.at(key)) for key in self.table()]

    # Values.

    def string(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            self.fail("expected a string")
        return str(self.value)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.fail("expected true or false")
        return bool(self.value)

    def one_of(self, known: tuple[str, ...]) -> str:
        """One of some words."""
        if self.value not in known:
            self.fail(f"expected one of {', '.join(known)}, not {brief(self.value)}")
        return str(self.value)

    def number(self, least: int = 0, most: int = (1 << 64) - 1) -> int:
        """A number, or its text such as "0x1000"."""
        value = self.value
        if isinstance(value, str):
            try:
                value = int(value, 0)
            except ValueError:
                self.fail(f'expected a number such as "0x1000", not {brief(self.value)}')
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            limit = "2^64-1" if most == (1 << 64) - 1 else str(most)
            self.fail(f"expected a number from {least} to {limit}, not {brief(value)}")
        return int(value)

    def count(self) -> Count:
        """A number, or a limit or a range such as "<=3", ">=1", "2-5"."""
        if isinstance(self.value, str):
            for sign in (_UP_TO, _AT_LEAST):
                if self.value.startswith(sign):
                    value = self._part(self.value.removeprefix(sign))
                    return Count(0, value) if sign == _UP_TO else Count(value, None)
            least, dash, most = self.value.partition("-")
            if dash:
                found = Count(self._part(least), self._part(most))
                if not found.holds(found.least):
                    self.fail(f"expected the smaller number first, not {brief(self.value)}")
                return found
        value = self.number()
        return Count(value, value)

    def _part(self, text: str) -> int:
        return Reader(self.document, text, self.path, self.where).number()


def brief(value: Any) -> str:
    """A value in a message, cut short; a huge number is not spelled out, nor is a table."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."


def _shown(key: str) -> str:
    return key if len(key) <= _SHOWN_MAX else key[: _SHOWN_MAX - 3] + "..."
