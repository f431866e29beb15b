# SPDX-License-Identifier: BSD-2-Clause
"""``vif`` entries, and the rates in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from xl_configs.frozen import frozen
from xl_configs.specs.record import as_json
from xl_configs.specs.scan import U32_MAX, U64_MAX, SpecError, strtoul

if TYPE_CHECKING:
    from collections.abc import Callable

_EINVAL = 22
_EOVERFLOW = 75
_DEFAULT_INTERVAL = 50_000
_NO_MAC = "00:00:00:00:00:00"


@frozen
class Rate:
    """A bandwidth limit.

    Attributes:
        rate_bytes_per_interval: credit given at each interval, in bytes, 64 bits; may be 0.
        rate_interval_usecs: the interval in microseconds, 32 bits.
    """

    rate_bytes_per_interval: int
    rate_interval_usecs: int


@frozen
class Nic:
    """One ``vif`` entry.

    Attributes:
        backend_domname: domain that serves it, or None for the toolstack's own.
        devid: number, 32 bits, signed; None when the entry does not say.
        mtu: 32 bits, signed; 0 when not given.
        vlan: as given, or None; the same for the other fields that can be None.
        mac: six octets; zero for those not given.
        ifname: ``vifname`` of the entry.
        nictype: ``vif``, ``vif_ioemu``, or ``unknown`` when not given.
        rate_bytes_per_interval: see ``Rate``; 0 when not given.
        rate_interval_usecs: see ``Rate``; 0 when not given.
        gatewaydev: ``gatewaydev`` or ``netdev`` of the entry.
        coloft_forwarddev: ``forwarddev`` of the entry.
        colo: the fields of libxl whose name begins with ``colo_``, and their values.
        trusted: ``trusted``, ``untrusted``.
    """

    backend_domname: str | None = None
    devid: int | None = None
    mtu: int = 0
    vlan: str | None = None
    model: str | None = None
    mac: str = _NO_MAC
    ip: str | None = None
    bridge: str | None = None
    ifname: str | None = None
    script: str | None = None
    nictype: str = "unknown"
    rate_bytes_per_interval: int = 0
    rate_interval_usecs: int = 0
    gatewaydev: str | None = None
    coloft_forwarddev: str | None = None
    colo: tuple[tuple[str, str], ...] = ()
    trusted: bool | None = None


def nic_json(nic: Nic, index: int) -> dict[str, Any]:
    """An interface as libxl writes it.

    Args:
        nic: the interface.
        index: its place in the list, which is its number unless the entry gives one.
    """
    shown: dict[str, Any] = {"devid": index} | as_json(nic) | dict(nic.colo)
    shown.pop("colo", None)
    if shown["devid"] == -1:
        del shown["devid"]
    return shown


def _ignore(line: str) -> None:
    """Takes a line that nobody wants to see."""


def parse_vif(text: str, say: Callable[[str], None] = _ignore, source: str = "cfg") -> Nic:
    """Comma fields ``key=value``; an entry without any is an interface all the same.

    xl carries on after a field that it does not know, and after a bad ``type`` or ``mac``. A
    ``mac`` that is cut short goes on in the fields after it, as in xl; where xl looks for an octet
    behind the end of the entry, whatever it finds, there is none here.

    Args:
        text: the entry.
        say: gets each line that xl prints and carries on after.
        source: name of the configuration, for messages.

    Raises:
        SpecError: code -1 for a ``devid`` or ``mtu`` that is not a number; as ``parse_rate``.
    """
    reader = _Reader(text, say, source)
    for piece in re.finditer("[^,]+", text):
        token = piece[0].lstrip(" ")
        reader.take(token, piece.end() - len(token))
    return Nic(**reader.held, colo=tuple(reader.colo.items()))


_STRINGS = {
    "backend": "backend_domname",
    "bridge": "bridge",
    "forwarddev": "coloft_forwarddev",
    "gatewaydev": "gatewaydev",
    "ip": "ip",
    "model": "model",
    "netdev": "gatewaydev",
    "script": "script",
    "vifname": "ifname",
    "vlan": "vlan",
}
_TYPES = {"vif": "vif", "ioemu": "vif_ioemu"}
_TRUST = {"trusted": True, "untrusted": False}
_SAID = {
    "netdev": "the netdev parameter is deprecated, please use gatewaydev instead",
    "accel": "the accel parameter for vifs is currently not supported",
}
_ONE_BYTE = re.compile("[\x00-\x7f\udc80-\udcff]")
_COLO_SOCKETS = (
    *("mirror", "compare_pri_in", "compare_sec_in", "compare_notify", "redirector0"),
    *("redirector1", "redirector2", "sec_redirector0", "sec_redirector1"),
)
_COLO_REDIRECTORS = ("redirector0", "redirector1", "sec_redirector0", "sec_redirector1")
COLO_KEYS = frozenset(
    [
        *(f"colo_sock_{socket}_{end}" for socket in _COLO_SOCKETS for end in ("id", "ip", "port")),
        *(
            f"colo_filter_{redirector}_{end}"
            for redirector in _COLO_REDIRECTORS
            for end in ("queue", "indev", "outdev")
        ),
        *(f"colo_filter_{name}" for name in ("mirror_queue", "mirror_outdev")),
        "colo_filter_sec_rewriter0_queue",
        *(f"colo_compare_{name}" for name in ("pri_in", "sec_in", "out", "notify_dev")),
        *("colo_checkpoint_host", "colo_checkpoint_port"),
    ]
)


class _Reader:
    """An entry as far as it is read."""

    def __init__(self, text: str, say: Callable[[str], None], source: str) -> None:
        self.text = text
        self.say = say
        self.source = source
        self.held: dict[str, Any] = {}
        self.colo: dict[str, str] = {}

    def take(self, token: str, at: int) -> None:
        """Reads a field that stands at an index of the entry."""
        key, equals, value = token.partition("=")
        if not equals:
            key = ""
        if key in _SAID:
            self.say(_SAID[key])
        if key in _STRINGS:
            self.held[_STRINGS[key]] = value
        elif key in COLO_KEYS:
            self.colo[key] = value
        elif key in ("devid", "mtu"):
            self.held[key] = _int(value)
        elif key == "rate":
            rate = parse_rate(value, self.source)
            self.held["rate_bytes_per_interval"] = rate.rate_bytes_per_interval
            self.held["rate_interval_usecs"] = rate.rate_interval_usecs
        elif key == "type":
            self.type(value)
        elif key == "mac":
            self.mac(at + len("mac="))
        elif token in _TRUST:
            self.held["trusted"] = _TRUST[token]
        elif key != "accel":
            self.say(f"unrecognized argument `{token}'")

    def type(self, value: str) -> None:
        if value in _TYPES:
            self.held["nictype"] = _TYPES[value]
        else:
            self.say("Invalid parameter `type'.")

    def mac(self, at: int) -> None:
        """Reads octets from an index on, each of them followed by any one byte."""
        octets = self.held.get("mac", _NO_MAC).split(":")
        for place in range(6):
            value, end = strtoul(self.text, 16, at)
            if end == at or value & U32_MAX > 0xFF:
                self.say("Invalid parameter `mac'.")
                break
            octets[place] = f"{value & 0xFF:02x}"
            # One byte into a longer character, no number begins.
            at = end + 1 if _ONE_BYTE.match(self.text, end) else len(self.text)
        self.held["mac"] = ":".join(octets)


def _int(text: str) -> int:
    """A decimal number cut to 32 bits, signed; text after it is ignored."""
    value, end = strtoul(text, 10)
    if not end or value == U64_MAX:
        raise SpecError(f'xl: failed to convert "{text}" to number')
    low = value & U32_MAX
    return low - (1 << 32) if low >> 31 else low


_RATE = re.compile("[0-9]+[GMK]?[Bb]/s")
_INTERVAL = re.compile("[0-9]+[mu]?s?")
_RATE_SCALE = {"G": 1_000_000_000, "M": 1_000_000, "K": 1_000}
_INTERVAL_SCALE = {"": 1_000_000, "s": 1_000_000, "m": 1_000}


def parse_rate(text: str, source: str = "cfg") -> Rate:
    """``N[G|M|K](B|b)/s[@N[m|u][s]]``; without an interval it is 50 ms.

    A number with a leading 0 is octal, and ends at the first digit that is not; what follows it
    then is no unit.

    Args:
        text: the rate.
        source: name of the configuration, for messages.

    Raises:
        SpecError: code 22 for malformed, 75 for 0 and for too big.
    """
    amount, at, interval = text.partition("@")
    if not amount:
        raise _refused(source, "no rate specified", text, _EINVAL)
    if not _RATE.fullmatch(amount):
        raise _refused(source, "invalid rate", amount, _EINVAL)
    number, unit = _number(amount)
    if not number:
        raise _refused(source, "rate overflow", amount, _EOVERFLOW)
    rate = number * _RATE_SCALE.get(unit[:1], 1) // (8 if "b" in unit[:2] else 1)
    usecs = _interval(interval, source) if at else _DEFAULT_INTERVAL
    if usecs and rate > U64_MAX // usecs:
        raise _refused(source, "rate overflow", text, _EOVERFLOW)
    return Rate(rate * usecs // 1_000_000, usecs)


def _interval(text: str, source: str) -> int:
    """An interval in microseconds."""
    if not _INTERVAL.fullmatch(text):
        raise _refused(source, "invalid replenishment interval", text, _EINVAL)
    number, unit = _number(text)
    usecs = number * _INTERVAL_SCALE.get(unit[:1], 1)
    if not 0 < usecs <= U32_MAX:
        raise _refused(source, "replenishment interval overflow", text, _EOVERFLOW)
    return usecs


def _number(text: str) -> tuple[int, str]:
    """The number at the front, 0 for one that is too big, and the text after it."""
    value, end = strtoul(text, 0)
    return (value if value <= U32_MAX else 0), text[end:]


def _refused(source: str, what: str, near: str, code: int) -> SpecError:
    return SpecError(f"{source}: config parsing error in vif: {what} in `{near}'", code=code)
