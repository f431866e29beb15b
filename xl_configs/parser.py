# SPDX-License-Identifier: BSD-2-Clause
"""Syntax of xl guest configuration files: bytes in, settings and xl's own messages out.

The grammar and its tokens come from ``xlcfg.lark``, compiled to ``tables.py``. This module adds
what a grammar cannot say: ``+=``, the recovery after an error, the text and line number of every
message, and the depth at which xl's parser stack is full.

Text is lexed as latin-1, one character a byte. Names and values are handed out as UTF-8 with
``surrogateescape``, so ``os.fsencode(value)`` gives the bytes of the file back; report lines are
UTF-8 with backslash escapes for bytes that are not.

Values may nest as deep as xl allows (4996 lists). They are built without recursion, but comparing,
hashing or printing one of that depth is subject to the interpreter's recursion limit.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from xl_configs.frozen import field, frozen
from xl_configs.quoting import EscapeError, dequote, has_octal
from xl_configs.scanner import KIND_OF_FIRST, ended_lines, kind_of, last_line
from xl_configs.tables import STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator

Value = str | tuple["Value", ...]

MAX_SIZE = 1 << 20
"""Default bound on the size of one configuration, in bytes."""

MAX_REPORT = 1000
"""Messages after which reading stops; xl has no such bound."""

STACK_LIMIT = 10_000
"""Entries at which xl's parser stack is full."""
# No token of a list takes more than 8 entries above those that lie below the list.
_NEARLY_FULL = STACK_LIMIT - 8

PYTHON_HINT = (
    "warning: Config file looks like it contains Python code.",
    "warning:  Arbitrary Python is no longer supported.",
    "warning:  See https://wiki.xen.org/wiki/PythonInXlConfig",
)
_PYTHON_BYTES = frozenset("+-.():")

# What xl says it expects at each place of the grammar.
_EXPECTED = {
    "start": "$end or IDENT or NEWLINE or ';'",
    "key": "+= or '='",
    "operator": "STRING or NUMBER or '['",
    "value": "$end",
    "list": "']'",
    "element": "']'",
}
# After a syntax error nothing is accepted up to the end of a line.
_STEPS = {**STEPS, "skip": {}}

_SHOWN = {
    "$END": "$end",
    "PLUS_EQUALS": "+=",
    "EQUALS": "'='",
    "COMMA": "','",
    "SEMICOLON": "';'",
    "OPEN": "'['",
    "CLOSE": "']'",
}


class Setting(NamedTuple):
    """One assignment, as written.

    Attributes:
        name: the key.
        op: ``=`` or ``+=``.
        line: line of the key, counted from 1.
        value: what this assignment itself says: a string (a number is a string too) or a tuple of
            values. What a ``+=`` adds up to is in ``ParseResult``.
    """

    name: str
    op: str
    line: int
    value: Value


@frozen
class ParseResult:
    """Outcome of parsing one configuration.

    Attributes:
        ok: whether xl accepts the syntax; otherwise settings and effective are empty.
        settings: every assignment in order.
        effective: what each key finally holds: its last ``=``, with each later ``+=`` added.
        report: xl's messages.
        dropped: a lone last byte of the file that fits nowhere and that xl drops without a word,
            as the ``M`` of ``memory=512M`` with no line feed after it.
        vanished: the lines of strings with a numeric escape, which stands for nothing.
    """

    ok: bool
    settings: tuple[Setting, ...] = ()
    effective: dict[str, Value] = field(default_factory=dict)
    report: tuple[str, ...] = ()
    dropped: str = ""
    vanished: tuple[int, ...] = ()

    def accumulated(self) -> Iterator[tuple[Setting, Value]]:
        """Each setting with the value its key has after it.

        One at a time: together they may take memory quadratic in the size of the file.
        """
        sums: dict[str, list[Value]] = {}
        for setting in self.settings:
            if setting.op == "=":
                sums[setting.name] = []
            parts = sums.setdefault(setting.name, [])
            parts.append(setting.value)
            yield setting, _joined(parts)


def parse(data: bytes, source: str = "cfg", *, max_size: int = MAX_SIZE) -> ParseResult:
    """Reads one configuration as xl does; never raises for any bytes.

    Args:
        data: the file, followed by any overrides.
        source: the name that messages begin with.
        max_size: bytes; more are refused without being looked at.

    Returns:
        The settings, or the messages of xl. Two messages are not xl's: a NUL byte in a quoted
        string (xl aborts) and the bounds ``max_size`` and ``MAX_REPORT``.
    """
    if len(data) > max_size:
        return ParseResult(
            ok=False, report=(f"{source}: {len(data)} bytes, the limit is {max_size}",)
        )
    reader = _Reader(source)
    with contextlib.suppress(_Stop):
        reader.read(data.decode("latin-1"))
    return reader.result()


class _Stop(Exception):  # noqa: N818 - not an error
    """Nothing after this is read."""


def _text(raw: str) -> str:
    """A lexed text as it is handed out."""
    return raw if raw.isascii() else raw.encode("latin-1").decode("utf-8", "surrogateescape")


def _joined(parts: list[Value]) -> Value:
    """One value of the parts that ``=`` and ``+=`` gave: all strings, or all lists."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], str):
        joined = "".join(part for part in parts if isinstance(part, str))
        # A character may have come in two parts.
        return joined.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return tuple(item for part in parts for item in part)


class _Reader:
    """Follows the places of the grammar, keeps the settings, and words errors as xl does."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.report: list[str] = []
        self.python = False
        self.dropped = ""
        self.vanished: list[int] = []
        self.line = 1
        self.lexical_line = 0
        # Tokens to go until a syntax error is worth a message again; 3 right after one.
        self.quiet = 0
        self.settings: list[Setting] = []
        self.sums: dict[str, list[Value]] = {}
        self.restart("start")

    def restart(self, place: str) -> None:
        """Stands outside of any assignment."""
        self.place = place
        self.key = self.op = ""
        self.key_line = 0
        # The elements of the open list, where its part of xl's stack begins, and for each list
        # around it the same and the place after this one.
        self.items: list[Value] | None = None
        self.base = 0
        self.around: list[tuple[list[Value] | None, int, str]] = []

    def result(self) -> ParseResult:
        """The outcome, once no more tokens are wanted."""
        if self.report:
            hint = PYTHON_HINT if self.python else ()
            return ParseResult(ok=False, report=(*self.report, *hint))
        effective = {name: _joined(parts) for name, parts in self.sums.items()}
        return ParseResult(
            ok=True,
            settings=tuple(self.settings),
            effective=effective,
            dropped=self.dropped,
            vanished=tuple(dict.fromkeys(self.vanished)),
        )

    def read(self, text: str) -> None:
        """Reads all of it.

        Raises:
            _Stop: the rest does not matter.
        """
        cut = text.rfind("\n") + 1
        for tokens in ended_lines(text, cut):
            self.take(tokens)
        tokens, lone = last_line(text, cut)
        self.take(tokens)
        self.dropped = lone
        self.python |= lone in _PYTHON_BYTES
        # A message about the end names the line of the last token before it.
        if cut and text[cut:].strip(" \t") == lone:
            self.line -= 1
        if "$END" not in _STEPS[self.place]:
            self.refuse("$END", lone)

    def take(self, tokens: list[str]) -> None:
        """Reads some tokens."""
        for token in tokens:
            kind = KIND_OF_FIRST.get(token[0]) or kind_of(token)
            place = _STEPS[self.place].get(kind)
            if place is None:
                self.refuse(kind, token)
                continue
            if self.quiet:
                self.quiet -= 1
            if self.base >= _NEARLY_FULL:
                self.check_stack(kind, token)
            self.place = place
            action = _ACTIONS.get(kind)
            if action is not None:
                action(self, token)

    def ident(self, token: str) -> None:
        """The key of an assignment."""
        self.key, self.key_line = token, self.line

    def operator(self, token: str) -> None:
        """What the assignment does."""
        self.op = token

    def newline(self, _token: str) -> None:
        """The end of a line."""
        self.line += 1

    def open(self, _token: str) -> None:
        """Begins a list; what lies on xl's stack below it depends on what stands before it."""
        self.around.append((self.items, self.base, self.place))
        if self.items is None:
            self.base = 4
        else:
            self.base += 5 if self.items else 2
        self.items = []
        self.place = "list"

    def close(self, token: str) -> None:
        """Ends a list."""
        value = tuple(self.items or ())
        self.items, self.base, self.place = self.around.pop()
        self.value(value, token)

    def number(self, token: str) -> None:
        """A value as it stands."""
        self.value(token, token)

    def string(self, token: str) -> None:
        """A value in quotes."""
        self.value(self.decoded(token), token)

    def decoded(self, token: str) -> str:
        """The characters of a string; xl decodes them before it looks at the syntax around it.

        Once there is an error, strings are no longer decoded.
        """
        if self.report:
            return ""
        try:
            decoded = dequote(token)
        except EscapeError as error:
            self.lexical_error(str(error), "STRING", token, self.line)
            return ""
        if has_octal(token):
            self.vanished.append(self.line)
        return _text(decoded)

    def value(self, value: Value, token: str) -> None:
        """A complete value: an element of the open list, or what the key is set to."""
        if self.items is not None:
            self.items.append(value)
        elif not self.report:
            self.store(value, token)

    def store(self, value: Value, token: str) -> None:
        """Sets the key or adds to it."""
        if self.op == "=" or self.key not in self.sums:
            self.sums[self.key] = [value]
        elif isinstance(self.sums[self.key][0], str) is isinstance(value, str):
            self.sums[self.key].append(value)
        else:
            message = 'can\'t add [list] to "string" or vice versa'
            self.lexical_error(message, "", token, self.line)
            return
        self.settings.append(Setting(self.key, self.op, self.key_line, value))

    def check_stack(self, kind: str, token: str) -> None:
        """Refuses a token of a list for which xl's parser stack has no room."""
        count = len(self.items or ())
        if self.place == "list":
            height = self.base + (5 if count else 2)
        else:
            height = self.base + (7 if count > 1 else 4)
        needs = {"NEWLINE": height + 1, "CLOSE": self.base + 4, "COMMA": self.base + 5}
        if needs.get(kind, height + 2) >= STACK_LIMIT:
            if kind == "STRING":
                self.decoded(token)
            self.complain("memory exhausted", kind, token, self.line)
            raise _Stop

    def refuse(self, kind: str, token: str) -> None:
        """Passes over what the grammar does not take here."""
        if kind == "JUNK":
            self.junk(token)
        elif self.place == "skip":
            self.skip(kind)
        elif kind != "BLANK":
            if kind == "STRING":
                self.decoded(token)
            self.syntax_error(kind, token)

    def junk(self, token: str) -> None:
        """Reports bytes that are no token."""
        self.python |= token[0] in _PYTHON_BYTES
        # A lone bad byte is one before a line feed, which xl has counted already.
        self.lexical_error("lexical error", "JUNK", token, self.line + (len(token) == 1))

    def skip(self, kind: str) -> None:
        """After a syntax error: drops everything up to the end of a line."""
        if kind == "NEWLINE":
            self.line += 1
            self.place = "start"
            self.quiet = 2
        elif kind == "$END":
            raise _Stop

    def syntax_error(self, kind: str, token: str) -> None:
        """Reports a token that cannot stand here, unless the last error was a moment ago."""
        if not self.quiet:
            shown, expected = _SHOWN.get(kind, kind), _EXPECTED[self.place]
            message = f"syntax error, unexpected {shown}, expecting {expected}"
            self.complain(message, kind, token, self.line)
        if self.place == "value":
            raise _Stop
        self.restart("skip")
        self.skip(kind)

    def lexical_error(self, message: str, kind: str, token: str, counted: int) -> None:
        """Reports what xl words as an error of its lexer, which hides later ones in its line."""
        if self.complain(message, kind, token, counted):
            self.lexical_line = counted

    def complain(self, message: str, kind: str, token: str, counted: int) -> bool:
        """Adds a message, unless a lexical error covers its line; true if it was added.

        Args:
            message: the reason.
            kind: what kind of token it is about.
            token: its text.
            counted: the line xl has counted to, which need not be the token's.
        """
        if counted <= self.lexical_line:
            return False
        # xl takes one line off for any newline token, though it may not have counted it yet.
        line = self.line - (kind == "NEWLINE")
        text = token.rstrip("\n").rstrip(" \t")
        shown = text.split("\0")[0].encode("latin-1").decode("utf-8", "backslashreplace")
        near = "<newline>" if kind == "NEWLINE" and not text else f"`{shown}'"
        self.report.append(f"{self.source}:{line}: config parsing error near {near}: {message}")
        if len(self.report) >= MAX_REPORT:
            self.report.append(f"{self.source}:{self.line}: too many errors, reading stopped")
            raise _Stop
        return True


_ACTIONS = {
    "IDENT": _Reader.ident,
    "EQUALS": _Reader.operator,
    "PLUS_EQUALS": _Reader.operator,
    "NEWLINE": _Reader.newline,
    "OPEN": _Reader.open,
    "CLOSE": _Reader.close,
    "NUMBER": _Reader.number,
    "STRING": _Reader.string,
}
