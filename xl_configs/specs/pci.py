# SPDX-License-Identifier: BSD-2-Clause
"""``pci`` entries."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from xl_configs.frozen import frozen, replace
from xl_configs.specs.scan import U32_MAX, SpecError, as_u64, ascii_lower, scan_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@frozen
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


def parse_bdf(text: str) -> PciSpec:
    """``[DDDD:]BB:DD.F``; what follows is ignored, as in xl.

    Raises:
        SpecError: code -6.
    """
    found = _address(text)
    if found is None:
        raise SpecError(code=-6)
    return PciSpec(**found[0])


def parse_rdm(text: str, say: Callable[[str], None] = lambda line: None) -> str | None:
    """``strategy=host`` and ``policy=...``: the strategy, if there is one.

    xl has its check of the policy upside down: it refuses the ones there are, and takes any other
    with a message.

    Args:
        text: the value of the key.
        say: takes the lines xl prints without refusing.

    Raises:
        SpecError: code -6.
    """
    strategy = None
    at = 0
    while True:
        equals = text.find("=", at)
        if equals < 0:
            raise SpecError(code=-6)
        key = text[at:equals]
        comma = text.find(",", equals)
        end = len(text) if comma < 0 else comma
        value = text[equals + 1 : end]
        if key == "strategy":
            if value != "host":
                raise SpecError(f"Unknown RDM strategy option: {value}", code=-6)
            strategy = value
        elif key == "policy":
            if ascii_lower(value) in ("strict", "relaxed"):
                raise SpecError(code=-6)
            say(f"Unknown RDM policy: {value}")
        else:
            raise SpecError(f"Unknown RDM state option: {key}", code=-6)
        if comma < 0:
            return strategy
        at = comma + 1
