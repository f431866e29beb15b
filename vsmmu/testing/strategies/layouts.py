# SPDX-License-Identifier: BSD-2-Clause
"""Strategies that follow from a layout alone: a field's values, any words, one field changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import TypeVar

from hypothesis import strategies as st

from vsmmu.arch.layout import Field, Layout

_L = TypeVar("_L", bound=Layout)
_WORD = (1 << 64) - 1
# Fields of a structure that differ from their usual value at once.
_FEW = 4
_SOME_WORDS = (0, 1, _WORD, 1 << 63, 0xAAAA_AAAA_AAAA_AAAA, 0x5555_5555_5555_5555)


def values(field: Field) -> st.SearchStrategy[int]:
    """Any value that a field can hold, the ends, single bits and named values more often."""
    return _values(field.mask, field.scale, _names(field))


def named(field: Field) -> st.SearchStrategy[int]:
    """The values that have a name, where a field has such; else any."""
    names = _names(field)
    return one(*names) if names else values(field)


def arbitrary(layout: type[_L]) -> st.SearchStrategy[_L]:
    """Any bits as this structure, reserved ones too."""
    word = st.integers(0, _WORD) | st.sampled_from(_SOME_WORDS)
    return st.tuples(*[word] * layout.dwords).map(layout)


@st.composite
def almost(draw: st.DrawFn, structures: st.SearchStrategy[_L], *names: str) -> _L:
    """One of these structures with exactly one field changed: by a bit, by 1, or to anything.

    Args:
        structures: usually legal ones; of any layouts.
        names: the fields that may be changed; all by default.
    """
    # What is drawn late is often the simplest, so what changes is drawn before the structure.
    at, how, value = draw(number(0, _WORD)), draw(number(0, 3)), draw(number(0, _WORD))
    used = draw(number(0, 1))
    structure = draw(structures)
    known = names or tuple(structure.fields)
    # A field that is in use is the likelier one to matter.
    known = (used and tuple(name for name in known if getattr(structure, name))) or known
    field = structure.fields[known[at % len(known)]]
    before = field.of(structure.words) >> field.scale
    width = field.mask.bit_length()
    changes = before ^ 1 << value % width, before + 1, before - 1, value
    after = changes[how] & field.mask
    if after == before:
        after ^= 1
    return structure.replace(**{field.name: after << field.scale})


def few(draw: st.DrawFn, layout: type[Layout], names: Collection[str]) -> dict[str, int]:
    """Named or any values for a few of these fields; the others are left out."""
    known = tuple(name for name in layout.fields if name in names)
    if not known:
        return {}
    return {name: draw(named(layout.fields[name])) for name in draw(_some(known))}


def noise(draw: st.DrawFn, structure: _L, names: Iterable[str]) -> _L:
    """The structure with anything in these fields, and in the bits that no field claims."""
    free = structure.mask(*names)
    words = []
    for word, mask, claimed in zip(structure.words, free, structure.claimed, strict=True):
        any_bits = mask | ~claimed & _WORD
        words.append(word & ~any_bits | draw(number(0, _WORD)) & any_bits)
    return type(structure)(tuple(words))


@cache
def number(low: int, high: int) -> st.SearchStrategy[int]:
    """A number of a range, both ends included."""
    return st.integers(low, high)


@cache
def one(*choices: int) -> st.SearchStrategy[int]:
    """One of these numbers."""
    return st.sampled_from(choices)


def flag(allowed: object) -> st.SearchStrategy[int]:
    """0, or 0 and 1 where that is allowed."""
    return number(0, 1 if allowed else 0)


@cache
def addresses(bits: int, align: int) -> st.SearchStrategy[int]:
    """An address of so many bits, a multiple of a power of two."""
    return st.integers(0, max(0, (1 << bits) // align - 1)).map(lambda at: at * align)


@cache
def _some(names: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), max_size=_FEW, unique=True)


def _names(field: Field) -> tuple[int, ...]:
    return () if field.enum is None else tuple(int(member) for member in field.enum)


@cache
def _values(mask: int, scale: int, names: tuple[int, ...]) -> st.SearchStrategy[int]:
    ends = (0, 1, mask, *names, *(1 << at for at in range(mask.bit_length())))
    return (st.integers(0, mask) | st.sampled_from(ends)).map(lambda raw: raw << scale)
