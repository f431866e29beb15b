# SPDX-License-Identifier: BSD-2-Clause
"""The PCI functions of a running host, from the text of `lspci -Dxxxx`.

Of a function this keeps what its requester id depends on: header type, bus numbers of a bridge,
PCI Express port type, PCI-X mode, phantom functions, Access Control Services. The text is
untrusted: a line or a dump of another form, or a number out of place, is a `UserError` with its
line. `-xxx` (256 bytes) does too, without ACS; 64 bytes (`-x`, or not root) lack the capabilities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dt_tools.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A dump of 4,096 bytes is 13 KiB of text.
MAX_TEXT = 64 << 20
MAX_FUNCTIONS = 8192
MAX_LINE = 4096
_CONFIG_SIZES = (64, 128, 256, 4096)

_HEAD = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])(?: .*)?")
_DUMP = re.compile(r"([0-9a-f]{2,3}):((?: [0-9a-f]{2}){16}) ?")

# PCI Local Bus 3.0 §6.1, appendix H; PCI Express Base 5.0 §7.5.1, §7.5.3; PCI-X 2.0 §7.
_HEADER_TYPE, _STATUS, _CAP_POINTER, _CAP_LIST = 0x0E, 0x06, 0x34, 1 << 4
_CAP_PCIX, _CAP_EXPRESS, _EXT_ACS = 0x07, 0x10, 0x000D
_MAX_CAPS = 48
_MAX_EXT_CAPS = (4096 - 256) // 8
# Source validation, request redirect, completion redirect, upstream forwarding.
_ACS_NEEDED = 0b11101

Sbdf = tuple[int, int]
"""PCI domain and requester id (bus << 8 | device << 3 | function)."""


class Port:
    """PCI Express device/port types."""

    ROOT, UPSTREAM, DOWNSTREAM = 4, 5, 6
    TO_PCI, FROM_PCI = 7, 8
    RC_ENDPOINT = 9


@dataclass(frozen=True, slots=True)
class HostFunction:
    """One function.

    `header` is 0 (device), 1 (PCI bridge) or 2 (CardBus bridge). `port` is the PCI Express type,
    None for conventional PCI. `secondary` and `subordinate` are a bridge's buses, 0 when not set
    up. `phantom_stride` is the step of enabled phantom functions, 0 without. `pcix` says that a
    bridge's secondary bus runs in PCI-X mode. `acs`: True when requests from it cannot reach a
    peer, False when they can, None when the dump does not tell. `whole` is False when the
    capabilities were not dumped.
    """

    domain: int
    rid: int
    header: int
    multifunction: bool
    port: int | None
    secondary: int
    subordinate: int
    phantom_stride: int
    pcix: bool
    acs: bool | None
    whole: bool

    @property
    def name(self) -> str:
        """DDDD:BB:DD.F."""
        return sbdf_text(self.domain, self.rid)

    @property
    def bus(self) -> int:
        """The bus it is on."""
        return self.rid >> 8

    @property
    def is_bridge(self) -> bool:
        """Whether there is a bus behind it."""
        return self.header != 0


def sbdf_text(domain: int, rid: int) -> str:
    """DDDD:BB:DD.F of a domain and requester id."""
    return f"{domain:04x}:{rid >> 8:02x}:{rid >> 3 & 0x1F:02x}.{rid & 7}"


class Topology:
    """The functions of a host. Make one with `read_lspci`."""

    def __init__(self, functions: tuple[HostFunction, ...], source: str) -> None:
        self.functions = functions
        self.source = source
        self._by_id = {(one.domain, one.rid): one for one in functions}
        self._bridges: dict[int, list[HostFunction]] = {}
        self._above: dict[tuple[int, int], HostFunction | None] = {}
        for one in functions:
            if one.is_bridge and one.secondary:
                self._bridges.setdefault(one.domain, []).append(one)
        for bridges in self._bridges.values():
            bridges.sort(key=lambda one: one.secondary)
            self._check(bridges)

    def _check(self, bridges: list[HostFunction]) -> None:
        """Buses must form a tree, with smaller numbers nearer the root."""
        open_: list[HostFunction] = []
        for one in bridges:
            while open_ and open_[-1].subordinate < one.secondary:
                open_.pop()
            reason = None
            if not one.bus < one.secondary <= one.subordinate:
                reason = f"bridge on bus {one.bus:#04x} has buses"
            elif open_ and (
                one.secondary == open_[-1].secondary or one.subordinate > open_[-1].subordinate
            ):
                reason = f"overlaps the buses of {open_[-1].name}:"
            if reason is not None:
                reason += f" {one.secondary:#04x} to {one.subordinate:#04x}"
                raise UserError(self.source, one.name, reason, "dump a host that is set up")
            open_.append(one)

    def get(self, domain: int, rid: int) -> HostFunction | None:
        """The function with that requester id."""
        return self._by_id.get((domain, rid))

    def slot(self, domain: int, rid: int) -> tuple[HostFunction, ...]:
        """All functions of a device, by number; any of their ids will do."""
        ids = (rid & ~7 | func for func in range(8))
        return tuple(self._by_id[domain, one] for one in ids if (domain, one) in self._by_id)

    def above(self, domain: int, bus: int) -> HostFunction | None:
        """The bridge that leads to a bus; None for a root bus.

        A bus no bridge names as its secondary (of virtual functions) is behind the innermost
        bridge that has it in its range.
        """
        key = domain, bus
        if key not in self._above:
            bridges = self._bridges.get(domain, ())
            on_path = (one for one in reversed(bridges) if one.secondary <= bus <= one.subordinate)
            self._above[key] = next(on_path, None)
        return self._above[key]

    def upwards(self, domain: int, bus: int) -> Iterator[HostFunction]:
        """The bridges from a bus up to the root bus."""
        bridge = self.above(domain, bus)
        while bridge is not None:
            yield bridge
            bridge = self.above(domain, bridge.bus)


class _Dump(NamedTuple):
    line: int
    domain: int
    rid: int
    config: bytearray


def read_lspci(text: str, source: str = "lspci") -> Topology:
    """Read the text of `lspci -Dxxxx` or `-xxx`; lines of `-v` between are skipped.

    Without `-D` lspci leaves domain 0 out where there is no other.

    Raises:
        UserError: not that text, too much of it, or bus numbers that are no tree.
    """
    if len(text) > MAX_TEXT:
        raise UserError(source, "lspci", f"more than {MAX_TEXT} characters")
    dumps: list[_Dump] = []
    seen: set[Sbdf] = set()
    for number, whole in enumerate(text.split("\n"), 1):
        if len(whole) > MAX_LINE:
            raise UserError(source, f"line {number}", f"longer than {MAX_LINE} characters")
        line = whole.rstrip("\r")
        if not line or line[0] in "\t ":
            continue
        row = _DUMP.fullmatch(line)
        if row is not None:
            _append(dumps, row, source, number)
            continue
        head = _HEAD.fullmatch(line)
        if head is None:
            hint = "give the output of lspci -Dxxxx, run as root"
            raise UserError(source, f"line {number}", "not of the form DDDD:BB:DD.F NAME", hint)
        domain, bus, dev, func = (int(part or "0", 16) for part in head.groups())
        dump = _Dump(number, domain, bus << 8 | dev << 3 | func, bytearray())
        name = sbdf_text(domain, dump.rid)
        if (domain, dump.rid) in seen:
            raise UserError(source, f"line {number}", f"{name} is there twice")
        if len(dumps) == MAX_FUNCTIONS:
            raise UserError(source, f"line {number}", f"more than {MAX_FUNCTIONS} functions")
        seen.add((domain, dump.rid))
        dumps.append(dump)
    if not dumps:
        raise UserError(source, "lspci", "no PCI functions", "give the output of lspci -Dxxxx")
    return Topology(tuple(_function(dump, source) for dump in dumps), source)


def _append(dumps: list[_Dump], row: re.Match[str], source: str, number: int) -> None:
    """Add 16 bytes of configuration space to the last function."""
    if not dumps:
        raise UserError(source, f"line {number}", "a dump before the first function")
    config = dumps[-1].config
    if int(row[1], 16) != len(config):
        raise UserError(source, f"line {number}", f"offset {row[1]}, {len(config):02x} is next")
    config += bytes.fromhex(row[2])


def _function(dump: _Dump, source: str) -> HostFunction:
    config, name = bytes(dump.config), sbdf_text(dump.domain, dump.rid)
    if len(config) not in _CONFIG_SIZES:
        reason = f"{name} has {len(config)} bytes of configuration space"
        raise UserError(source, f"line {dump.line}", reason, "dump it with lspci -xxxx as root")
    header = config[_HEADER_TYPE] & 0x7F
    if header > 2:
        reason = f"{name} has header type {header:#x}"
        hint = "the device does not answer; wake or remove it, and dump again"
        raise UserError(source, f"line {dump.line}", reason, hint)
    caps = _capabilities(config, header)
    express = (caps or {}).get(_CAP_EXPRESS)
    port = None if express is None else _u16(config, express + 2) >> 4 & 0xF
    pcix = (caps or {}).get(_CAP_PCIX)
    return HostFunction(
        domain=dump.domain,
        rid=dump.rid,
        header=header,
        multifunction=bool(config[_HEADER_TYPE] & 0x80),
        port=port,
        secondary=config[0x19] if header else 0,
        subordinate=config[0x1A] if header else 0,
        phantom_stride=0 if express is None else _phantoms(config, express),
        pcix=pcix is not None and header == 1 and bool(_u16(config, pcix + 2) >> 6 & 7),
        acs=None if caps is None else _acs(config, port),
        whole=caps is not None,
    )


def _u16(config: bytes, at: int) -> int:
    """A register; 0 beyond the dump."""
    return int.from_bytes(config[at : at + 2], "little")


def _capabilities(config: bytes, header: int) -> dict[int, int] | None:
    """Offset of the first capability of each id; None when there are some that were not dumped."""
    if not _u16(config, _STATUS) & _CAP_LIST:
        return {}
    if len(config) < 256:
        return None
    found: dict[int, int] = {}
    at = config[0x14 if header == 2 else _CAP_POINTER] & ~3
    for _ in range(_MAX_CAPS):
        if at < 0x40:
            break
        found.setdefault(config[at], at)
        at = config[at + 1] & ~3
    return found


def _phantoms(config: bytes, express: int) -> int:
    """Step between the function numbers in use, when the device may use unclaimed ones."""
    bits = _u16(config, express + 4) >> 3 & 3
    enabled = _u16(config, express + 8) >> 9 & 1
    return 8 >> bits if bits and enabled else 0


def _acs(config: bytes, port: int | None) -> bool | None:
    """Whether ACS keeps requests from peers; what the function cannot do is not asked of it."""
    if port is None or port in (Port.TO_PCI, Port.FROM_PCI):
        return False
    if len(config) < 4096:
        return None
    at = 0x100
    for _ in range(_MAX_EXT_CAPS):
        head = int.from_bytes(config[at : at + 4], "little")
        if head & 0xFFFF == _EXT_ACS:
            can, does = _u16(config, at + 4), _u16(config, at + 6)
            return not _ACS_NEEDED & can & ~does
        at = head >> 20 & ~3
        if at < 0x100:
            break
    return False
