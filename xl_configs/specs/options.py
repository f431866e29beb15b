# SPDX-License-Identifier: BSD-2-Clause
"""What the languages of rows of ``key=value`` fields have in common.

Fields have commas between them. Empty fields do not count, and where a key comes twice the later
one holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xl_configs.specs.scan import (
    SpecError,
    ascii_lower,
    atoi,
    comma_fields,
    split_pair,
    strtok,
    strtoul,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Say = Callable[[str], None]
    # Key in the text -> libxl field and the conversion of its value.
    Table = Mapping[str, tuple[str, Callable[[str], Any]]]

SIGABRT = 6
SIGSEGV = 11


def ignore(line: str) -> None:
    """Takes a line and drops it."""


def one_of(names: tuple[str, ...], *refusal: str) -> Callable[[str], str]:
    """A conversion to one of libxl's names, in any case.

    Args:
        names: in lower case.
        refusal: the line for another value, ``{}`` standing for it; none where xl is silent.
    """

    def convert(value: str) -> str:
        name = ascii_lower(value)
        if name not in names:
            raise SpecError(*(line.format(value) for line in refusal))
        return name

    return convert


def atoi_bool(value: str) -> bool:
    """A flag as C's atoi reads it."""
    return atoi(value) != 0


def u8(value: str) -> int:
    """A number in C notation, cut to 8 bits."""
    return strtoul(value, 0)[0] & 0xFF


def options(text: str, table: Table, unknown: str) -> dict[str, Any]:
    """What an entry sets, by libxl field; a field without a known ``key=`` is refused."""
    found: dict[str, Any] = {}
    for option in comma_fields(text):
        take(found, option, table, unknown)
    return found


def take(found: dict[str, Any], option: str, table: Table, unknown: str) -> None:
    """Adds one ``key=value`` to the libxl fields found so far."""
    key, equals, value = option.partition("=")
    if not equals or key not in table:
        raise SpecError(unknown.format(option))
    name, convert = table[key]
    found[name] = convert(value)


def until_bare(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values of an entry, up to the first field without ``=``."""
    for option in comma_fields(text):
        key, equals, value = option.partition("=")
        if not equals:
            return
        yield key, value


def trimmed_pairs(text: str, kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Keys and values of an entry, blanks around both taken away."""
    pieces = strtok(text)
    if not pieces:
        raise SpecError(f"{kind}: the entry has no field; xl crashes", crash=SIGSEGV)
    for piece in pieces:
        pair = split_pair(piece)
        if pair is None:
            raise SpecError(f"failed to parse {name} configuration: {piece}")
        yield pair
