# SPDX-License-Identifier: BSD-2-Clause
"""The little languages inside strings: ``dtdev``, ``iomem``, ``irqs`` and ``pci`` entries.

Each reader accepts exactly the strings xl accepts and raises ``SpecError`` with xl's message
otherwise. Numbers follow the C conversions xl uses: 64 bits, saturating when too big, and a minus
sign wraps around.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

U64_MAX = (1 << 64) - 1
U32_MAX = (1 << 32) - 1
_BLANKS = " \t\n\v\f\r"


class SpecError(ValueError):
    """A string that xl refuses.

    Attributes:
        report: the lines xl prints for it, possibly none.
        code: what the library call returns: -6 malformed, -3 bad policy; -1 for the rest.
    """

    def __init__(self, *report: str, code: int = -1) -> None:
        super().__init__(report[-1] if report else "malformed")
        self.report = report
        self.code = code


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class PciSpec:
    """One ``pci`` entry.

    Attributes:
        domain: PCI segment, 0..0xffff.
        bus: 0..0xff.
        dev: 0..0x1f.
        func: 0..7; 0 when all functions are meant.
        vfunc_mask: 1 for one function, 0xffffffff for ``*``, 0 when given by name.
        vdevfn: requested guest slot times 8, or 0.
        permissive: as the option or the global key says; the same for the next three.
        rdm_policy: ``strict``, ``relaxed`` or None when the entry does not say.
        name: an assignable-device name instead of an address, or None.
    """

    domain: int = 0
    bus: int = 0
    dev: int = 0
    func: int = 0
    vfunc_mask: int = 0
    vdevfn: int = 0
    permissive: bool = False
    msitranslate: bool = False
    power_mgmt: bool = False
    seize: bool = False
    rdm_policy: str | None = None
    name: str | None = None


def scan_number(text: str, at: int, base: int) -> tuple[int, int] | None:
    """Reads an integer as C does: strtol for base 10 and 0, scanf for 16.

    Args:
        text: where from.
        at: index to start at; blanks and a sign may come first.
        base: 10, 16 (with or without ``0x``) or 0 (decimal, ``0x`` hex, leading ``0`` octal).

    Returns:
        The signed value (its magnitude cut to 64 digits) and the index after it, or None when
        there is no number.
    """
    found = _NUMBERS[base].match(text, at)
    if found is None:
        return None
    sign, digits = found[1], found[2]
    radix = base
    if digits[:2] in ("0x", "0X"):
        radix, digits = 16, digits[2:]
    elif not base:
        radix = 8 if digits[0] == "0" else 10
    # 64 digits exceed 64 bits in any radix: longer ones saturate all the same.
    value = int(digits.lstrip("0")[:64] or "0", radix)
    return (-value if sign == "-" else value), found.end()


# C's scanf, as glibc has it, takes a bare 0x for 0.
_HEX = r"0[xX][0-9a-fA-F]*|[0-9a-fA-F]+"
_NUMBERS = {
    10: re.compile(rf"[{_BLANKS}]*([+-]?)([0-9]+)"),
    16: re.compile(rf"[{_BLANKS}]*([+-]?)({_HEX})"),
    0: re.compile(rf"[{_BLANKS}]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)"),
}


def as_u64(value: int) -> int:
    """A scanned number as an unsigned 64-bit conversion gives it."""
    return U64_MAX if abs(value) > U64_MAX else value & U64_MAX


def ascii_lower(text: str) -> str:
    """Lower case of the ASCII letters alone, as a C comparison without case has it."""
    return text.lower() if text.isascii() else text


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


_FIELD = re.compile("[0-9a-fA-F:]*")


def parse_pci(text: str, defaults: PciSpec | None = None) -> PciSpec:
    """``[DDDD:]BB:DD.F[@SLOT][,KEY=VALUE]*``, or only keys, one of them ``bdf`` or ``name``.

    Args:
        text: the entry.
        defaults: what the ``pci_*`` keys of the configuration preset.

    Raises:
        SpecError: code -6, or -3 for an unknown ``rdm_policy``.
    """
    spec = defaults or PciSpec()
    addressed = False
    at = 0
    found = _address(text)
    if found is not None:
        address, at = found
        spec = replace(spec, **address)
        addressed = True
        if text.startswith("@", at):
            slot, at = _slot(text, at + 1)
            spec = replace(spec, vdevfn=slot)
        if not text.startswith(",", at) and at < len(text):
            raise SpecError(code=-6)
        at += 1
    for key, value in _options(text, at):
        spec = replace(spec, **_option(key, value))
        addressed |= key == "bdf"
    if addressed is (spec.name is not None):
        raise SpecError(code=-6)
    return spec


def _address(text: str) -> tuple[dict[str, Any], int] | None:
    """Reads a PCI address; the fields it sets and the index after it, or None."""
    # xl counts the colons of the leading run, then reads with scanf: signs and blanks get by
    # everywhere but at the front. Without the dot it goes on at an undefined place; refused here.
    run = _FIELD.match(text)
    assert run is not None
    colons = run[0].count(":")
    if colons not in (1, 2):
        return None
    numbers = [0] * (2 - colons)
    at = 0
    for end in ":" * colons + ".":
        scanned = scan_number(text, at, 16)
        if scanned is None or not text.startswith(end, scanned[1]):
            return None
        numbers.append(as_u64(scanned[0]) & U32_MAX)
        at = scanned[1] + 1
    domain, bus, dev = numbers
    if domain > 0xFFFF or bus > 0xFF or dev > 0x1F:
        return None
    func, mask, at = _function(text, at)
    if func > 7:
        return None
    return {"domain": domain, "bus": bus, "dev": dev, "func": func, "vfunc_mask": mask}, at


def _function(text: str, at: int) -> tuple[int, int, int]:
    """Function number (8 when there is none), function mask and the index after them."""
    if text.startswith("*", at):
        return 0, U32_MAX, at + 1
    scanned = scan_number(text, at, 16)
    if scanned is None:
        return 8, 0, at
    return as_u64(scanned[0]) & U32_MAX, 1, scanned[1]


def _slot(text: str, at: int) -> tuple[int, int]:
    """A guest slot as vdevfn, and the index after it."""
    scanned = scan_number(text, at, 16)
    if scanned is None or as_u64(scanned[0]) & U32_MAX > 0x1F:
        raise SpecError(code=-6)
    return (as_u64(scanned[0]) & U32_MAX) << 3, scanned[1]


def _options(text: str, at: int) -> Iterator[tuple[str, str]]:
    """The ``key=value`` fields from ``at`` on; a comma may end the text."""
    while at < len(text):
        equals = text.find("=", at)
        if equals < 0:
            raise SpecError(code=-6)
        comma = text.find(",", equals)
        end = len(text) if comma < 0 else comma
        yield text[at:equals], text[equals + 1 : end]
        at = end + 1


def _option(key: str, value: str) -> dict[str, Any]:
    """The fields that one option sets."""
    if key == "bdf":
        found = _address(value)
        if found is None:
            raise SpecError(code=-6)
        return found[0]
    if key == "vslot":
        return {"vdevfn": _slot(value, 0)[0]}
    if key in ("permissive", "msitranslate", "power_mgmt", "seize"):
        return {key: _is_set(value)}
    if key == "name":
        return {"name": value}
    if key != "rdm_policy":
        raise SpecError(f"Unknown PCI_SPEC_STRING option: {key}", code=-6)
    policy = ascii_lower(value)
    if policy not in ("strict", "relaxed"):
        raise SpecError(f"Unknown RDM policy: {value}", code=-3)
    return {"rdm_policy": policy}


def _is_set(value: str) -> bool:
    """A flag the way C's atoi reads it: ``yes`` is 0, text after a number is ignored."""
    scanned = scan_number(value, 0, 10)
    if scanned is None:
        return False
    bounded = max(-(1 << 63), min(scanned[0], (1 << 63) - 1))
    return bool(bounded & U32_MAX)


def check_virtio(text: str) -> None:
    """Checks one ``virtio`` entry: ``backend``, ``type``, ``transport``, ``grant_usage``.

    A ``type`` that begins with ``virtio`` takes the next comma field along, as in
    ``type=virtio,device22``; where there is none, xl crashes and this refuses.

    Raises:
        SpecError: an unknown field, or a transport xl does not know (it prints nothing then).
    """
    fields = iter([field for field in text.split(",") if field])
    for raw in fields:
        field = raw.lstrip(" ")
        key, equals, value = field.partition("=")
        if not equals or key not in ("backend", "type", "transport", "grant_usage"):
            raise SpecError(f'Unknown string "{field}" in virtio spec')
        if key == "transport" and ascii_lower(value) not in ("mmio", "unknown"):
            raise SpecError()
        if key == "type" and value.startswith("virtio") and next(fields, None) is None:
            raise SpecError()


@overload
def parse_spec(kind: Literal["dtdev"], text: str) -> str: ...
@overload
def parse_spec(kind: Literal["iomem"], text: str) -> Iomem: ...
@overload
def parse_spec(kind: Literal["irqs"], text: str) -> int: ...
@overload
def parse_spec(kind: Literal["pci"], text: str) -> PciSpec: ...
def parse_spec(kind: str, text: str) -> str | Iomem | int | PciSpec:
    """Reads one entry of a list key.

    Args:
        kind: the key: ``dtdev``, ``iomem``, ``irqs`` or ``pci``.
        text: the entry.

    Raises:
        SpecError: xl refuses the entry.
        ValueError: no such kind.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(_READERS)}")
    return reader(text)


_READERS: dict[str, Callable[[str], str | Iomem | int | PciSpec]] = {
    "dtdev": parse_dtdev,
    "iomem": parse_iomem,
    "irqs": parse_irq,
    "pci": parse_pci,
}
