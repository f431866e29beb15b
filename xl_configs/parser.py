# SPDX-License-Identifier: BSD-2-Clause
"""Syntax of xl guest configuration files: bytes in, settings and xl's own messages out.

The grammar and its tokens come from ``xlcfg.lark``. This module adds what a grammar cannot say:
``+=``, the recovery after an error, the text and line number of every message, and the depth at
which xl's parser stack is full.

Text is lexed as latin-1, one character a byte. Names and values are handed out as UTF-8 with
``surrogateescape``, so ``os.fsencode(value)`` gives the bytes of the file back; report lines are
UTF-8 with backslash escapes for bytes that are not.

Values may nest as deep as xl allows (4996 lists). They are built without recursion, but comparing,
hashing or printing one of that depth is subject to the interpreter's recursion limit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from xl_configs.quoting import EscapeError, dequote

if TYPE_CHECKING:
    from collections.abc import Iterator

Value = str | tuple["Value", ...]

MAX_SIZE = 1 << 20
"""Default bound on the size of one configuration, in bytes."""

MAX_REPORT = 1000
"""Messages after which reading stops; xl has no such bound."""

STACK_LIMIT = 10_000
"""Entries at which xl's parser stack is full."""

PYTHON_HINT = (
    "warning: Config file looks like it contains Python code.",
    "warning:  Arbitrary Python is no longer supported.",
    "warning:  See https://wiki.xen.org/wiki/PythonInXlConfig",
)
_PYTHON_BYTES = "+-.():"

# Where the reader stands, as xl words what it expects there.
_AT_START = "$end or IDENT or NEWLINE or ';'"
_AFTER_KEY = "+= or '='"
_AFTER_OPERATOR = "STRING or NUMBER or '['"
_IN_LIST = "']'"
_AFTER_VALUE = "$end"

_SHOWN = {
    "$END": "$end",
    "PLUS_EQUALS": "+=",
    "EQUALS": "'='",
    "COMMA": "','",
    "SEMICOLON": "';'",
    "OPEN": "'['",
    "CLOSE": "']'",
}


@dataclass(frozen=True, slots=True)
class Setting:
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


@dataclass(frozen=True, slots=True)
class ParseResult:
    """Outcome of parsing one configuration.

    Attributes:
        ok: whether xl accepts the syntax; otherwise settings and effective are empty.
        settings: every assignment in order.
        effective: what each key finally holds: its last ``=``, with each later ``+=`` added.
        report: xl's messages.
        dropped: a lone last byte of the file that fits nowhere and that xl drops without a word,
            as the ``M`` of ``memory=512M`` with no line feed after it.
    """

    ok: bool
    settings: tuple[Setting, ...] = ()
    effective: dict[str, Value] = field(default_factory=dict)
    report: tuple[str, ...] = ()
    dropped: str = ""

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
    for token in _tokens(data.decode("latin-1")):
        if not reader.take(token):
            break
    return reader.result()


class _Token(NamedTuple):
    kind: str
    text: str
    line: int
    value: str = ""


@functools.cache
def _language() -> Any:
    """The compiled grammar; lark is imported on first use."""
    from importlib.resources import files

    from lark import Lark

    grammar = files("xl_configs").joinpath("xlcfg.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", start="file")


@functools.cache
def _bare_token(kind: str) -> Any:
    """What the grammar is fed: it decides on the kind alone."""
    from lark import Token

    return Token(kind, "")


def _tokens(text: str) -> Iterator[_Token]:
    """All tokens but blanks, then ``$END`` with the text and line that messages show for it."""
    # A comment ends in a line feed, so a '#' in an unended last line is junk; a stand-in keeps the
    # lexer from searching the rest of that line at each of them.
    cut = text.rfind("\n") + 1
    lexed = text[:cut] + text[cut:].replace("#", "\x01")
    line, last_text = 1, ""
    for token in _language().lex(lexed, dont_ignore=True):
        if token.type == "BLANK":
            continue
        exact = text[token.start_pos : token.end_pos]
        yield _Token(token.type, exact, token.line)
        if token.type == "LAST_JUNK":
            last_text = exact
        else:
            line = token.line
    yield _Token("$END", last_text, line)


def _text(raw: str) -> str:
    """A lexed text as it is handed out."""
    return raw if raw.isascii() else raw.encode("latin-1").decode("utf-8", "surrogateescape")


def _joined(parts: list[Value]) -> Value:
    """One value of the parts that ``=`` and ``+=`` gave: all strings, or all lists."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], str):
        return "".join(part for part in parts if isinstance(part, str))
    return tuple(item for part in parts for item in part)


class _StackHeight:
    """Height of xl's parser stack, of which a list takes more the deeper it nests.

    Four entries lie below a top-level value. Each method returns the peak it causes.
    """

    def __init__(self) -> None:
        self.height = 4
        self.levels: list[int] = []

    def add(self, kind: str) -> int:
        """Counts one token of a value."""
        if kind == "OPEN":
            self.levels.append(self.height)
            self.height += 2
            return self.height
        if not self.levels or kind == "NEWLINE":
            return self.height + 1
        if kind == "CLOSE":
            level = self.levels.pop()
            self.height = level + 2
            return level + 4
        if kind == "COMMA":
            self.height = self.levels[-1] + 5
        else:
            self.height += 2
        return self.height


class _Reader:
    """Feeds tokens to the grammar, keeps the settings, and words errors as xl does."""

    def __init__(self, source: str) -> None:
        from lark.exceptions import UnexpectedToken

        self.unexpected = UnexpectedToken
        self.source = source
        self.report: list[str] = []
        self.python = False
        self.dropped = ""
        self.lexical_line = 0
        # Tokens to go until a syntax error is worth a message again; 3 right after one.
        self.quiet = 0
        self.skipping = False
        self.settings: list[Setting] = []
        self.sums: dict[str, list[Value]] = {}
        self.restart()

    def restart(self) -> None:
        """Stands at the start of a statement, with nothing open."""
        self.grammar = _language().parse_interactive("")
        self.place = _AT_START
        self.lists: list[list[Value]] = []
        self.stack = _StackHeight()
        self.key = self.op = ""
        self.line = 0

    def result(self) -> ParseResult:
        """The outcome, once no more tokens are wanted."""
        if self.report:
            hint = PYTHON_HINT if self.python else ()
            return ParseResult(ok=False, report=(*self.report, *hint))
        effective = {name: _joined(parts) for name, parts in self.sums.items()}
        return ParseResult(
            ok=True, settings=tuple(self.settings), effective=effective, dropped=self.dropped
        )

    def take(self, token: _Token) -> bool:
        """Reads one token; false when reading ends here."""
        if len(self.report) >= MAX_REPORT:
            self.report.append(f"{self.source}:{token.line}: too many errors, reading stopped")
            return False
        if token.kind in ("JUNK", "LAST_JUNK"):
            return self.junk(token)
        if token.kind == "STRING":
            token = token._replace(value=self.string(token))
        if self.skipping:
            return self.skip(token)
        try:
            self.grammar.feed_token(_bare_token(token.kind))
        except self.unexpected:
            return self.syntax_error(token)
        self.quiet = max(0, self.quiet - 1)
        return self.accept(token)

    def junk(self, token: _Token) -> bool:
        """Reports bytes that are no token, and drops them."""
        self.python |= token.text[0] in _PYTHON_BYTES
        if token.kind == "LAST_JUNK":
            self.dropped = token.text
        else:
            # A lone bad byte is one before a line feed, which xl has counted already.
            counted = token.line + (len(token.text) == 1)
            if self.complain("lexical error", token, counted):
                self.lexical_line = counted
        return True

    def skip(self, token: _Token) -> bool:
        """After a syntax error: drops everything up to the end of a line."""
        if token.kind == "NEWLINE":
            self.skipping = False
            self.quiet = 2
        return token.kind != "$END"

    def syntax_error(self, token: _Token) -> bool:
        """Reports a token that cannot stand here, unless the last error was a moment ago."""
        if not self.quiet:
            shown = _SHOWN.get(token.kind, token.kind)
            self.complain(f"syntax error, unexpected {shown}, expecting {self.place}", token)
        if self.place == _AFTER_VALUE:
            return False
        self.restart()
        self.skipping = True
        return self.skip(token)

    def complain(self, message: str, token: _Token, counted: int = 0) -> bool:
        """Adds a message, unless a lexical error covers its line; true if it was added.

        Args:
            message: the reason.
            token: where; xl shows its text.
            counted: the line xl has counted to, when that is not the token's.
        """
        if (counted or token.line) <= self.lexical_line:
            return False
        # xl takes one line off for any newline token, though it may not have counted it yet.
        line = token.line - (token.kind == "NEWLINE")
        text = token.text.rstrip("\n").rstrip(" \t")
        shown = text.split("\0")[0].encode("latin-1").decode("utf-8", "backslashreplace")
        near = "<newline>" if token.kind == "NEWLINE" and not text else f"`{shown}'"
        self.report.append(f"{self.source}:{line}: config parsing error near {near}: {message}")
        return True

    def accept(self, token: _Token) -> bool:
        """Follows a token that the grammar has taken; false when xl's stack is full."""
        kind = token.kind
        if kind == "IDENT":
            self.key, self.line, self.place = token.text, token.line, _AFTER_KEY
        elif kind in ("EQUALS", "PLUS_EQUALS"):
            self.op, self.place = token.text, _AFTER_OPERATOR
        elif kind in ("NEWLINE", "SEMICOLON") and not self.lists:
            self.place = _AT_START
        elif kind != "$END":
            return self.accept_value(token)
        return True

    def accept_value(self, token: _Token) -> bool:
        """One token of a value."""
        if self.stack.add(token.kind) >= STACK_LIMIT:
            self.complain("memory exhausted", token)
            return False
        if token.kind == "OPEN":
            self.lists.append([])
            self.place = _IN_LIST
        elif token.kind == "CLOSE":
            self.value(tuple(self.lists.pop()), token)
        elif token.kind == "NUMBER":
            self.value(token.text, token)
        elif token.kind == "STRING":
            self.value(token.value, token)
        return True

    def string(self, token: _Token) -> str:
        """The characters of a string; xl decodes them before it looks at the syntax around it.

        Once there is an error, strings are no longer decoded.
        """
        if self.report:
            return ""
        try:
            return _text(dequote(token.text))
        except EscapeError as error:
            if self.complain(str(error), token):
                self.lexical_line = token.line
            return ""

    def value(self, value: Value, token: _Token) -> None:
        """A complete value: an element of the open list, or what the key is set to."""
        if self.lists:
            self.lists[-1].append(value)
            return
        self.place = _AFTER_VALUE
        self.stack = _StackHeight()
        if not self.report:
            self.store(value, token)

    def store(self, value: Value, token: _Token) -> None:
        """Sets the key or adds to it."""
        if self.op == "=" or self.key not in self.sums:
            self.sums[self.key] = [value]
        elif isinstance(self.sums[self.key][0], str) is isinstance(value, str):
            self.sums[self.key].append(value)
        else:
            self.complain('can\'t add [list] to "string" or vice versa', token)
            return
        self.settings.append(Setting(self.key, self.op, self.line, value))
