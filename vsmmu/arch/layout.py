# SPDX-License-Identifier: BSD-2-Clause
"""Declarative bit-fields in the notation of the specification: `[msb:lsb]`, absolute.

    class Ste(Layout, dwords=8, spec="IHI 0070 §5.2"):
        v = bit(0)
        config = choice(3, 1, SteConfig)
        s1ctxptr = addr(51, 6)

A class body is the one table for decoding, building, printing, JSON and masks. It is checked when
the class is made: positions inside the structure, no field across a 64-bit word, no overlap.
Instances are immutable views over a tuple of 64-bit little-endian words. Decoding never raises,
whatever a guest wrote: an enumerated field reads as a plain int.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from operator import and_
from typing import Any, ClassVar, Self, overload

_WORD = 0xFFFF_FFFF_FFFF_FFFF


class Field:
    """One bit-field; `scale` low bits are implied zero (an address field holds the high bits).

    `bits` are the field's bits within its word.
    """

    __slots__ = ("bits", "enum", "high", "low", "lsb", "mask", "msb", "name", "scale", "word")

    def __init__(
        self, msb: int, lsb: int, *, scale: int = 0, enum: type[IntEnum] | None = None
    ) -> None:
        if msb < lsb or lsb < 0 or msb // 64 != lsb // 64:
            raise TypeError(f"[{msb}:{lsb}] is not a field of one 64-bit word")
        self.msb, self.lsb = msb, lsb
        self.word, self.low = divmod(lsb, 64)
        self.high = msb - self.word * 64
        self.mask = (1 << (msb - lsb + 1)) - 1
        self.bits = self.mask << self.low
        self.scale = scale
        self.enum = enum
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, obj: None, owner: type) -> Field: ...
    @overload
    def __get__(self, obj: Layout, owner: type) -> int: ...
    def __get__(self, obj: Layout | None, owner: type) -> Field | int:
        if obj is None:
            return self
        return (obj.words[self.word] >> self.low & self.mask) << self.scale

    def of(self, words: tuple[int, ...]) -> int:
        """The field's value in raw words, without making a view."""
        return (words[self.word] >> self.low & self.mask) << self.scale

    def encode(self, value: int) -> int:
        """`value` placed in the field's word.

        Raises:
            ValueError: the value does not fit, or has bits below the scale.
        """
        raw = value >> self.scale
        if raw < 0 or raw > self.mask or raw << self.scale != value:
            raise ValueError(f"{self.name} [{self.msb}:{self.lsb}] cannot hold {value:#x}")
        return raw << self.low

    def show(self, value: int) -> str:
        """The value as text: its enumerated name where it has one, else hexadecimal."""
        if self.enum is not None:
            try:
                return self.enum(value).name
            except ValueError:
                return f"{value:#x}(reserved)"
        return f"{value:#x}"


def bits(msb: int, lsb: int) -> Field:
    """A plain number at `[msb:lsb]`."""
    return Field(msb, lsb)


def bit(position: int) -> Field:
    """A single bit."""
    return Field(position, position)


def choice(msb: int, lsb: int, enum: type[IntEnum]) -> Field:
    """A number with named values; reads as int, prints as the name."""
    return Field(msb, lsb, enum=enum)


def addr(msb: int, lsb: int, *, low: int | None = None) -> Field:
    """A byte address; `low` is the address bit at `lsb` (`lsb` itself modulo 64 by default)."""
    return Field(msb, lsb, scale=lsb % 64 if low is None else low)


class Layout:
    """An architected structure. Subclass with `dwords=` or `width=32`, and `spec=`."""

    __slots__ = ("words",)
    fields: ClassVar[dict[str, Field]] = {}
    dwords: ClassVar[int] = 1
    width: ClassVar[int] = 64
    spec: ClassVar[str] = ""
    claimed: ClassVar[tuple[int, ...]] = (0,)
    size: ClassVar[int] = 8
    _pack: ClassVar[struct.Struct] = struct.Struct("<Q")

    def __init_subclass__(
        cls, *, dwords: int | None = None, width: int | None = None, spec: str | None = None
    ) -> None:
        if dwords is not None:
            cls.dwords = dwords
        if width is not None:
            cls.width = width
        if spec is not None:
            cls.spec = spec
        own = {name: f for name, f in vars(cls).items() if isinstance(f, Field)}
        cls.fields = {**cls.fields, **own}
        cls.claimed = _check(cls)
        cls.size = 8 * cls.dwords if cls.width == 64 else cls.width // 8
        cls._pack = struct.Struct(f"<{cls.dwords}Q")

    def __init__(self, words: tuple[int, ...] | int = 0) -> None:
        if isinstance(words, int):
            words = (words,) if words else (0,) * self.dwords
        if len(words) != self.dwords:
            raise ValueError(f"{type(self).__name__} has {self.dwords} words, not {len(words)}")
        self.words = words

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode little-endian bytes; exactly `8 * dwords` of them."""
        return cls(cls._pack.unpack(raw))

    @classmethod
    def build(cls, /, **values: int) -> Self:
        """A structure with these fields and zeros elsewhere. Raises ValueError, TypeError."""
        return cls((0,) * cls.dwords).replace(**values)

    def replace(self, /, **values: int) -> Self:
        """A copy with these fields changed. Raises ValueError (does not fit), TypeError (name)."""
        words = list(self.words)
        for name, value in values.items():
            field = self.fields.get(name)
            if field is None:
                raise TypeError(f"{type(self).__name__} has no field {name}")
            words[field.word] = words[field.word] & ~field.bits | field.encode(value)
        return type(self)(tuple(words))

    def only(self, mask: tuple[int, ...]) -> Self:
        """A copy with the bits of `mask` alone, a number for each word."""
        return type(self)(tuple(map(and_, self.words, mask)))

    def __bytes__(self) -> bytes:
        return self._pack.pack(*self.words)

    @property
    def raw(self) -> int:
        """All words as one number; for a register, its value."""
        value = 0
        for i, word in enumerate(self.words):
            value |= word << (64 * i)
        return value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.words == self.words

    def __hash__(self) -> int:
        return hash((type(self), self.words))

    def __repr__(self) -> str:
        shown = " ".join(
            f"{name}={field.show(field.of(self.words))}"
            for name, field in self.fields.items()
            if field.of(self.words)
        )
        return f"<{type(self).__name__} {shown or 'zero'}>"

    def reserved(self) -> tuple[int, ...]:
        """The bits that are set although no field claims them, a number for each word."""
        return tuple(w & ~c & _WORD for w, c in zip(self.words, self.claimed, strict=True))

    @classmethod
    def mask(cls, *names: str) -> tuple[int, ...]:
        """The bits of the named fields, a number for each word."""
        words = [0] * cls.dwords
        for name in names:
            field = cls.fields[name]
            words[field.word] |= field.bits
        return tuple(words)

    def to_json(self) -> dict[str, Any]:
        """Every field by name; numbers as hexadecimal strings."""
        return {name: f.show(f.of(self.words)) for name, f in self.fields.items()}


def _check(cls: type[Layout]) -> tuple[int, ...]:
    """The claimed bits of each word; raises TypeError for a field out of place."""
    claimed = [0] * cls.dwords
    limit = cls.width if cls.dwords == 1 else 64 * cls.dwords
    for name, field in cls.fields.items():
        if field.msb >= limit:
            raise TypeError(f"{cls.__name__}.{name} [{field.msb}:{field.lsb}] is out of range")
        if claimed[field.word] & field.bits:
            raise TypeError(f"{cls.__name__}.{name} [{field.msb}:{field.lsb}] overlaps")
        claimed[field.word] |= field.bits
    return tuple(claimed)
