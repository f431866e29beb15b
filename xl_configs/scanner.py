# SPDX-License-Identifier: BSD-2-Clause
"""The tokens of a guest configuration, as strings: what begins each decides most of their kinds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xl_configs.tables import TERMINALS

if TYPE_CHECKING:
    from collections.abc import Iterator

# Bytes that are made tokens of at a time, up to the end of a line.
_CHUNK = 1 << 16


def _scanner(*without: str) -> re.Pattern[str]:
    """One token, in a group, and any blanks after it."""
    wanted = (f"(?:{regexp})" for kind, regexp in TERMINALS.items() if kind not in without)
    return re.compile(f"({'|'.join(wanted)})(?:{TERMINALS['BLANK']})?")


# findall of these costs a third of what match objects with a group for each kind cost.
_TOKEN = _scanner()
# A comment ends in a line feed, so a '#' in a last line without one is junk; this one does not
# search the rest of that line at each of them.
_LAST_LINE_TOKEN = _scanner("NEWLINE")
_KIND = re.compile("|".join(f"(?P<{kind}>{regexp})" for kind, regexp in TERMINALS.items()))
_NAMES: dict[str | None, str] = {kind: kind.removeprefix("LAST_") for kind in TERMINALS}


def ended_lines(text: str, end: int) -> Iterator[list[str]]:
    """The tokens before ``end``, where a line begins, some lines at a time."""
    at = 0
    while at < end:
        to = text.find("\n", min(at + _CHUNK, end - 1)) + 1
        yield _TOKEN.findall(text, at, to)
        at = to


def last_line(text: str, begin: int) -> tuple[list[str], str]:
    """The tokens of a line without a line feed, and a lone byte of junk that ends it, or ``""``."""
    tokens = _LAST_LINE_TOKEN.findall(text, begin)
    if tokens and len(tokens[-1]) == 1 and kind_of(tokens[-1]) == "JUNK":
        return tokens[:-1], tokens[-1]
    return tokens, ""


def kind_of(token: str) -> str:
    """The terminal that a token is; LAST_JUNK counts as JUNK.

    A token of more than one byte is of the same kind wherever it stands.
    """
    return _kind(_KIND.fullmatch(token))


def _kind(match: re.Match[str] | None) -> str:
    assert match is not None
    return _NAMES[match.lastgroup]


def _kinds_of_first_bytes() -> dict[str, str]:
    """The bytes that make a token of one kind whatever follows; '#', '+' and quotes do not."""
    found = {}
    for byte in map(chr, range(256)):
        kinds = {_kind(_KIND.match(byte + rest)) for rest in ("", "\n", "=", byte)}
        if len(kinds) == 1:
            found[byte] = kinds.pop()
    return found


KIND_OF_FIRST = _kinds_of_first_bytes()
"""Kind of any token by its first byte; where it is absent, ``kind_of`` tells."""
