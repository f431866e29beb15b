# SPDX-License-Identifier: BSD-2-Clause
"""Names and values as a user types them, in a file or on a command line, checked one by one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_SHOWN_MAX = 60
_SWITCH = {"true": True, "on": True, "false": False, "off": False}


class SettingError(ValueError):
    """A name or a value that cannot be used: one line with the name and what was expected.

    The caller puts the file and the table before it.
    """


def unknown(name: object, known: Iterable[str], what: str) -> SettingError:
    """For a name that is none of `known`; `what` says what it should have been."""
    known = list(known)
    near = get_close_matches(str(name)[:_SHOWN_MAX].lower(), known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return SettingError(f"{brief(name)}: no such {what}; {hint}known are {', '.join(known)}")


def number(name: str, value: object, allowed: range, unit: str = "") -> int:
    """A number of `allowed`, or its text such as "0x10". Raises SettingError."""
    found = value
    if isinstance(value, str):
        try:
            found = int(value[:_SHOWN_MAX], 0)
        except ValueError:
            found = None
    if not isinstance(found, int) or isinstance(found, bool) or found not in allowed:
        span = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 1 else f"{allowed[0]}"
        of = f" of {unit}" if unit else ""
        raise SettingError(f"{name}: expected a number{of} from {span}, not {brief(value)}")
    return found


def switch(name: str, value: object) -> bool:
    """True or false, or its text. Raises SettingError."""
    found = _SWITCH.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise SettingError(f"{name}: expected true or false, not {brief(value)}")
    return found


def brief(value: object) -> str:
    """A value in a message, cut short; a huge number is not spelled out, nor is a table."""
    if isinstance(value, int) and value.bit_length() > 2 * _SHOWN_MAX:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    plain = isinstance(value, str) and value.isprintable() and value and " " not in value
    text = str(value) if plain else repr(value)
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."
