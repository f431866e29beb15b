# SPDX-License-Identifier: BSD-2-Clause
"""The quoted strings of a guest configuration, with the escapes xl reads and the ones it breaks."""

from __future__ import annotations

import re

_ESCAPES = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))
# xl converts the up to three characters after an octal digit as a decimal number.
_OCTAL_REST = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")

NUL_IN_STRING = "NUL byte in quoted string"
BAD_ESCAPE = "invalid character after backlash in quoted string"
BAD_HEX = "invalid digit after backslash hexnumerical character escape in quoted string"
BAD_OCTAL = "invalid digit after backslash octalnumerical character escape in quoted string"


class EscapeError(ValueError):
    """A quoted string that xl cannot read; the text is the message."""


def dequote(text: str) -> str:
    r"""The characters a quoted string stands for.

    An accepted octal escape stands for nothing: ``"A\101B"`` is ``AB``, as in xl.

    Args:
        text: the string with its quotes, one character a byte.

    Raises:
        EscapeError: an escape xl refuses (every ``\x``, most octal ones) or a NUL byte, at which
            xl aborts; its text is one of the messages above.
    """
    if "\0" in text:
        raise EscapeError(NUL_IN_STRING)
    body = text[1:-1]
    if "\\" not in body:
        return body
    out: list[str] = []
    at = 0
    while (found := body.find("\\", at)) >= 0:
        out.append(body[at:found])
        at = _escape(body, found + 1, out)
    out.append(body[at:])
    return "".join(out)


def _escape(body: str, at: int, out: list[str]) -> int:
    """Reads the escape whose letter is at ``at``; returns the place after it."""
    letter = body[at]
    if letter in _ESCAPES:
        out.append(_ESCAPES[letter])
        return at + 1
    if letter == "x":
        raise EscapeError(BAD_HEX)
    if letter not in "01234567":
        raise EscapeError(BAD_ESCAPE)
    rest = _OCTAL_REST.match(body[at + 1 : at + 4])
    if rest is None or rest.end() < 2:
        raise EscapeError(BAD_OCTAL)
    return at + 1 + rest.end()


_TO_OCTAL = re.compile(r"(?:[^\\]++|\\[^0-7])*+\\[0-7]", re.DOTALL)


def has_octal(text: str) -> bool:
    """Whether a string that ``dequote`` reads has an escape that stands for nothing."""
    return "\\" in text and _TO_OCTAL.match(text) is not None
