# SPDX-License-Identifier: BSD-2-Clause
"""C's number conversions as xl uses them, and the error of every little language."""

from __future__ import annotations

import re

U64_MAX = (1 << 64) - 1
U32_MAX = (1 << 32) - 1
_BLANKS = " \t\n\v\f\r"


class SpecError(ValueError):
    """A string that xl refuses.

    Attributes:
        report: the lines xl prints for it, possibly none.
        code: what the library call returns: -6 malformed, -3 bad policy, 22 and 75 (EINVAL,
            EOVERFLOW) for ``disk`` and ``rate``, 2 where the lexer of ``disk`` gives up; -1 for
            the rest.
        crash: the signal that ends xl at this string, 0 where it merely refuses. There is no
            line of xl's then, and the report says what is wrong.
    """

    def __init__(self, *report: str, code: int = -1, crash: int = 0) -> None:
        super().__init__(report[-1] if report else "malformed")
        self.report = report
        self.code = code
        self.crash = crash

    @property
    def exit_code(self) -> int:
        """Xl's exit code; minus the signal where it crashes."""
        if self.crash:
            return -self.crash
        return {-6: 6, -3: 3, 2: 2}.get(self.code, 1)


def scan_number(text: str, at: int, base: int) -> tuple[int, int] | None:
    """Reads an integer as C does: strtol for base 10 and 0, scanf for 16.

    ``strtoul`` is for strtoul with base 16, which differs.

    Args:
        text: where from.
        at: index to start at; blanks and a sign may come first.
        base: 10, 16 (with or without ``0x``) or 0 (decimal, ``0x`` hex, leading ``0`` octal), or
            ``C2X``.

    Returns:
        The signed value (its magnitude cut to 64 digits) and the index after it, or None when
        there is no number.
    """
    found = _NUMBERS[base].match(text, at)
    if found is None:
        return None
    sign, digits = found[1], found[2]
    radix = abs(base)
    if digits[:2] in ("0x", "0X"):
        radix, digits = 16, digits[2:]
    elif base == C2X and digits[:2] in ("0b", "0B"):
        radix, digits = 2, digits[2:]
    elif base in (0, C2X):
        radix = 8 if digits[0] == "0" else 10
    # 64 digits exceed 64 bits in any radix: longer ones saturate all the same.
    value = int(digits.lstrip("0")[:64] or "0", radix)
    return (-value if sign == "-" else value), found.end()


# C's scanf, as glibc has it, takes a bare 0x for 0.
_HEX = r"0[xX][0-9a-fA-F]*|[0-9a-fA-F]+"
_STRICT_HEX = -16
C2X = -2
"""Base of ``scan_number``: 0, and ``0b`` binary, as the strtol of glibc has it from 2.38 on."""
_NUMBERS = {
    10: re.compile(rf"[{_BLANKS}]*([+-]?)([0-9]+)"),
    16: re.compile(rf"[{_BLANKS}]*([+-]?)({_HEX})"),
    _STRICT_HEX: re.compile(rf"[{_BLANKS}]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9a-fA-F]+)"),
    0: re.compile(rf"[{_BLANKS}]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)"),
    C2X: re.compile(rf"[{_BLANKS}]*([+-]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*)"),
}


def as_u64(value: int) -> int:
    """A scanned number as an unsigned 64-bit conversion gives it."""
    return U64_MAX if abs(value) > U64_MAX else value & U64_MAX


def strtoul(text: str, base: int, at: int = 0) -> tuple[int, int]:
    """C's strtoul for base 0, 10 or 16: the 64-bit value, and the index after it.

    Too big is ``U64_MAX``, a minus sign wraps around. Without a number: 0, and ``at``.
    """
    scanned = scan_number(text, at, _STRICT_HEX if base == 16 else base)
    return (0, at) if scanned is None else (as_u64(scanned[0]), scanned[1])


def atoi(text: str) -> int:
    """C's atoi, as glibc has it: strtol cut to 32 bits, signed; 0 without a number."""
    scanned = scan_number(text, 0, 10)
    if scanned is None:
        return 0
    low = max(-(1 << 63), min(scanned[0], (1 << 63) - 1)) & U32_MAX
    return low - (1 << 32) if low >> 31 else low


def ascii_lower(text: str) -> str:
    """Lower case of the ASCII letters alone, as a C comparison without case has it."""
    return text.lower() if text.isascii() else text


def strtok(text: str, delimiters: str = ",") -> list[str]:
    """What C's strtok cuts a text into: no piece is empty."""
    return [piece for piece in re.split(f"[{re.escape(delimiters)}]", text) if piece]


def split_pair(text: str, delimiter: str = "=", *, trim: bool = True) -> tuple[str, str] | None:
    """``key=value`` cut at the first delimiter; None without one, or with nothing after it."""
    key, found, value = text.partition(delimiter)
    if not found or not value:
        return None
    return (key.strip(_BLANKS), value.strip(_BLANKS)) if trim else (key, value)


def comma_fields(text: str) -> list[str]:
    """The non-empty comma fields, without their leading spaces; tabs and trailing blanks stay."""
    return [piece.lstrip(" ") for piece in strtok(text)]


def as_u32(text: str) -> int:
    """The number at the front, base 0, cut to 32 bits; 0 without one."""
    return strtoul(text, 0)[0] & U32_MAX


def is_nonzero(text: str) -> bool:
    """Whether the number at the front, base 0, has any of its 64 bits set."""
    return strtoul(text, 0)[0] != 0


_UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID as libxl reads it."""
    return _UUID.fullmatch(text) is not None
