# SPDX-License-Identifier: BSD-2-Clause
"""Entries that name host resources: ``dtdev``, ``iomem``, ``irqs``, ``ioports``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xl_configs.frozen import frozen
from xl_configs.specs.scan import U32_MAX, SpecError, as_u64, scan_number, strtoul

if TYPE_CHECKING:
    from collections.abc import Callable


@frozen
class Iomem:
    """One ``iomem`` entry, in 4 KiB frames.

    Attributes:
        start: first host frame.
        count: number of frames; 0 is accepted.
        gfn: first guest frame; equal to ``start`` when the entry does not say.
    """

    start: int
    count: int
    gfn: int


def parse_dtdev(text: str) -> str:
    """A ``dtdev`` entry: a host device tree path, which xl takes as it is."""
    return text


def parse_iomem(text: str) -> Iomem:
    """``START,NUM[@GFN]``, each in hexadecimal, with or without ``0x``.

    Raises:
        SpecError: anything missing or left over.
    """
    refused = SpecError(f"xl: Invalid argument parsing iomem: {text}")
    numbers: list[int] = []
    at = 0
    for lead in ("", ",", "@"):
        if not text.startswith(lead, at):
            break
        scanned = scan_number(text, at + len(lead), 16)
        if scanned is None:
            break
        numbers.append(as_u64(scanned[0]))
        at = scanned[1]
    if len(numbers) < 2 or at != len(text):
        raise refused
    return Iomem(numbers[0], numbers[1], numbers[-1] if len(numbers) == 3 else numbers[0])


def parse_irq(text: str) -> int:
    """A decimal interrupt number in the GIC's numbering: SPI n is n + 32.

    Raises:
        SpecError: not a number, or one of 0xffffffff and above.
    """
    scanned = scan_number(text, 0, 10)
    if scanned is None or scanned[1] != len(text):
        raise SpecError(f"xl: Invalid argument parsing irq: {text}")
    value = as_u64(scanned[0])
    if value >= U32_MAX:
        raise SpecError(f"xl: irq {value:x} too big")
    return value


@frozen
class Ioports:
    """One ``ioports`` entry: the first port, and how many there are."""

    first: int = 0
    number: int = 0


def parse_ioports(text: str, say: Callable[[str], None] = lambda line: None) -> Ioports:
    """``A`` or ``A-B`` in hexadecimal.

    As in xl, a range the wrong way round wraps around 32 bits, and what follows a single port is
    complained of but does no harm.

    Args:
        text: the entry.
        say: takes the lines xl prints without refusing.

    Raises:
        SpecError: not a number, or one of 0xffffffff and above.
    """
    refusal = f"xl: Invalid argument parsing ioport: {text}"
    first, end = _port(text, 0, refusal)
    last = first
    if text.startswith("-", end):
        last, end = _port(text, end + 1, refusal)
    elif end != len(text):
        say(refusal)
    return Ioports(first, (last - first + 1) & U32_MAX)


def _port(text: str, at: int, refusal: str) -> tuple[int, int]:
    port, end = strtoul(text, 16, at)
    if end == at or (at and end != len(text)):
        raise SpecError(refusal)
    if port >= U32_MAX:
        raise SpecError(f"xl: ioport {port:x} too big")
    return port, end
