# SPDX-License-Identifier: BSD-2-Clause
"""JSON as it is given out: what every reader of it takes.

Python has text with halves of surrogate pairs: bytes of a file's name that are no UTF-8, and
escapes of a JSON file. JSON of them is what other readers refuse, and they are U+FFFD here
(RFC 8259 §8.2).
"""

from __future__ import annotations

import json
import re

# An escape: of a pair, of half of one, any other.
_ESCAPE = re.compile(r"\\(?:ud[89ab]..\\ud[c-f]..|(ud[89a-f]..)|.)")


def json_text(
    value: object, *, indent: int | None = None, separators: tuple[str, str] | None = None
) -> str:
    """A value as JSON, in ASCII; arguments as `json.dumps` has them."""
    text = json.dumps(value, indent=indent, separators=separators)
    return _ESCAPE.sub(_whole, text) if "\\ud" in text else text


def _whole(found: re.Match[str]) -> str:
    return "\\ufffd" if found[1] else found[0]
