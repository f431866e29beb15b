# SPDX-License-Identifier: BSD-2-Clause
"""Where each key and table of a TOML document is: the line numbers that tomllib does not keep.

No library that is kept up reads TOML with positions for Python, so this finds them in a text that
tomllib has accepted: it looks for keys and skips values, knows tables, arrays of tables, dotted
keys, inline tables, arrays and the four kinds of string, and checks nothing.
"""

from __future__ import annotations

import re

# A key's parts and the indexes of arrays, from the root: ("step", 2, "iova").
Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# A basic and a literal string, on one line and on several.
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
# A number, a boolean or a date, which may have one space in it.
_PLAIN = re.compile(r"[^,\]}#\n]*")
_ESCAPE = re.compile(r"\\(?:x(..)|u(.{4})|U(.{8})|(.))", re.DOTALL)
_SHORT = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


class Lines:
    """Line numbers of the keys, tables and array items of a document, from 1.

    Args:
        text: a document that tomllib has accepted.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._document()

    def of(self, path: Path) -> int | None:
        """The line of a key, or of the nearest table around it that is written down."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None

    def _document(self) -> None:
        counts: dict[Path, int] = {}
        table: Path = ()
        while self._skip(_BLANK) < len(self._text):
            if self._text[self._at] == "[":
                table = self._header(counts)
            else:
                self._pair(table)

    def _header(self, counts: dict[Path, int]) -> Path:
        """`[a.b]` or `[[a.b]]`; the path of the table, with indexes of the arrays on its way."""
        line = self._now()
        array = self._text.startswith("[[", self._at)
        self._at += 2 if array else 1
        path: Path = ()
        parts = self._key("]")
        self._at += 2 if array else 1
        for part in parts[:-1]:
            path = self._entered((*path, part), counts, line)
        path = (*path, parts[-1])
        if array:
            counts[path] = counts.get(path, 0) + 1
            self.lines.setdefault(path, line)
        path = self._entered(path, counts, line)
        self.lines.setdefault(path, line)
        return path

    def _entered(self, path: Path, counts: dict[Path, int], line: int) -> Path:
        """A table's path, or that of the last one of an array of tables."""
        self.lines.setdefault(path, line)
        return (*path, counts[path] - 1) if path in counts else path

    def _pair(self, table: Path) -> None:
        line = self._now()
        path = table
        for part in self._key("="):
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._at += 1
        self._skip(_SPACE)
        self._value(path)

    def _key(self, end: str) -> list[str]:
        """The parts of a dotted key, up to `end`."""
        parts = []
        while True:
            self._skip(_SPACE)
            if self._text[self._at] in "\"'":
                parts.append(_unquoted(self._take(_STRING)))
            else:
                parts.append(self._take(_BARE))
            self._skip(_SPACE)
            if self._text[self._at] == end:
                return parts
            self._at += 1

    def _value(self, path: Path) -> None:
        """Arrays and inline tables by a stack: their depth is the file's to choose."""
        stack: list[tuple[str, Path, int]] = []
        self._open(path, stack)
        while stack:
            kind, where, count = stack.pop()
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK)
            if self._text[self._at] in "]}":
                self._at += 1
                continue
            stack.append((kind, where, count + 1))
            if kind == "[":
                self.lines[(*where, count)] = self._now()
                self._open((*where, count), stack)
                continue
            line = self._now()
            for part in self._key("="):
                where = (*where, part)
                self.lines.setdefault(where, line)
            self._at += 1
            self._skip(_SPACE)
            self._open(where, stack)

    def _open(self, path: Path, stack: list[tuple[str, Path, int]]) -> None:
        first = self._text[self._at]
        if first in "[{":
            self._at += 1
            stack.append((first, path, 0))
        elif first in "\"'":
            self._take(_STRING)
        else:
            self._take(_PLAIN)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._take(pattern)
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found is not None, f"tomllib has read what stands at {self._at}"
        self._at = found.end()
        return found.group()

    def _now(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line


def _unquoted(text: str) -> str:
    """A quoted key's value."""
    return text[1:-1] if text[0] == "'" else _ESCAPE.sub(_character, text[1:-1])


def _character(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    return chr(int(digits, 16)) if digits else _SHORT.get(found[4], found[4])
