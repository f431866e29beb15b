# SPDX-License-Identifier: BSD-2-Clause
"""Entries that give the guest a paravirtual or emulated device, but disks, networks and sound.

``p9``, ``vtpm``, ``vdispl``, ``pvcalls``, ``channel``, ``vfb``, ``vkb``, ``usbctrl``, ``usbdev``
and ``virtio``: each entry is a row of ``key=value`` fields with commas between. Empty fields do
not count, and where a key comes twice the later one holds. Every reader takes the text of one
entry and a function ``say``, which gets each line that xl prints without refusing, and raises
``SpecError`` where xl ends: with xl's lines or, where xl crashes, with one of ours and the signal.

The numbers in a record are what is left of those in the text after libxl's 8 or 32 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xl_configs.specs.scan import (
    U32_MAX,
    U64_MAX,
    SpecError,
    as_u32,
    as_u64,
    ascii_lower,
    atoi,
    comma_fields,
    is_nonzero,
    scan_number,
    split_pair,
    strtok,
    strtoul,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Say = Callable[[str], None]
    # Key in the text -> libxl field and the conversion of its value.
    Table = Mapping[str, tuple[str, Callable[[str], Any]]]

NIL_UUID = "00000000-0000-0000-0000-000000000000"
SIGABRT = 6
SIGSEGV = 11


def _ignore(line: str) -> None:
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


def _atoi_bool(value: str) -> bool:
    return atoi(value) != 0


def _u8(value: str) -> int:
    return strtoul(value, 0)[0] & 0xFF


def _options(text: str, table: Table, unknown: str) -> dict[str, Any]:
    """What an entry sets, by libxl field; a field without a known ``key=`` is refused."""
    found: dict[str, Any] = {}
    for option in comma_fields(text):
        _take(found, option, table, unknown)
    return found


def _take(found: dict[str, Any], option: str, table: Table, unknown: str) -> None:
    """Adds one ``key=value`` to the libxl fields found so far."""
    key, equals, value = option.partition("=")
    if not equals or key not in table:
        raise SpecError(unknown.format(option))
    name, convert = table[key]
    found[name] = convert(value)


def _until_bare(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values of an entry, up to the first field without ``=``."""
    for option in comma_fields(text):
        key, equals, value = option.partition("=")
        if not equals:
            return
        yield key, value


def _trimmed_pairs(text: str, kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Keys and values of an entry, blanks around both taken away."""
    pieces = strtok(text)
    if not pieces:
        raise SpecError(f"{kind}: the entry has no field; xl crashes", crash=SIGSEGV)
    for piece in pieces:
        pair = split_pair(piece)
        if pair is None:
            raise SpecError(f"failed to parse {name} configuration: {piece}")
        yield pair


@dataclass(frozen=True, slots=True)
class P9:
    """A ``p9`` entry: a file system share.

    Attributes:
        path: host directory; None also where xl fills in ``/var/log/xen/guests/NAME``, that is
            for type ``xen_9pfsd``, since the entry does not know the name of the domain.
        type: ``unknown``, ``qemu`` or ``xen_9pfsd``.
    """

    backend_domname: str | None = None
    tag: str | None = None
    path: str | None = None
    security_model: str | None = None
    type: str = "unknown"
    max_space: int = 0
    max_files: int = 0
    max_open_files: int = 0
    auto_delete: bool = False


def _limit(value: str) -> int:
    """A decimal number as a signed 32-bit one; -1 as 64 bits means xl could not read it."""
    number, end = strtoul(value, 10)
    if not end or number == U64_MAX:
        raise SpecError(f'xl: failed to convert "{value}" to number')
    low = number & U32_MAX
    return low - (1 << 32) if low >> 31 else low


_P9: Table = {
    "backend": ("backend_domname", str),
    "tag": ("tag", str),
    "path": ("path", str),
    "security_model": ("security_model", str),
    "type": (
        "type",
        one_of(("unknown", "qemu", "xen_9pfsd"), "failed to parse 9pfs type: {}"),
    ),
    "max-space": ("max_space", _limit),
    "max-files": ("max_files", _limit),
    "max-open-files": ("max_open_files", _limit),
    "auto-delete": ("auto_delete", is_nonzero),
}


def parse_p9(text: str, say: Say = _ignore) -> P9:
    """Reads a ``p9`` entry: ``tag``, ``path``, ``security_model``, ``type`` and more.

    Raises:
        SpecError: no field at all, one that is not ``key=value``, or an unusable one.
    """
    found: dict[str, Any] = {}
    for key, value in _trimmed_pairs(text, "p9", "9pfs"):
        if key not in _P9:
            raise SpecError(f"Unknown 9pfs parameter '{key}'")
        name, convert = _P9[key]
        found[name] = convert(value)
    return P9(**found)


@dataclass(frozen=True, slots=True)
class Vtpm:
    """A ``vtpm`` entry. The uuid is in lower case; libxl picks one for the nil uuid."""

    backend_domname: str
    devid: int | None = None
    uuid: str = NIL_UUID


_UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def parse_vtpm(text: str, say: Say = _ignore) -> Vtpm:
    """Reads a ``vtpm`` entry: ``backend``, which is required, and ``uuid``.

    What follows a field without ``=`` is not read.

    Raises:
        SpecError: another key, a bad uuid, no backend.
    """
    backend: str | None = None
    uuid = NIL_UUID
    for key, value in _until_bare(text):
        if key == "backend":
            backend = value
        elif key != "uuid":
            raise SpecError(f"Unknown string `{key}' in vtpm spec")
        elif _UUID.fullmatch(value):
            uuid = value.lower()
        else:
            raise SpecError(f"Failed to parse vtpm UUID: {value}")
    if backend is None:
        raise SpecError("vtpm spec missing required backend field!")
    return Vtpm(backend, uuid=uuid)


@dataclass(frozen=True, slots=True)
class Connector:
    """An output of a virtual display, its size in pixels; all unset after an unreadable one."""

    unique_id: str | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class Vdispl:
    """A ``vdispl`` entry: a virtual display with at least one connector."""

    backend_domname: str | None = None
    devid: int | None = None
    be_alloc: bool = False
    connectors: tuple[Connector, ...] = ()


def parse_vdispl(text: str, say: Say = _ignore) -> Vdispl:
    """Reads a ``vdispl`` entry: ``backend``, ``be-alloc``, ``connectors=ID:WxH[;ID:WxH]*``.

    A connector whose size does not even begin with a number is said, not refused; it and those
    behind it have no size then.

    Raises:
        SpecError: another key, no connector, half a size. A connector without ``:``, or with
            nothing behind it, makes xl use memory it never set.
    """
    table: Table = {
        "backend": ("backend_domname", str),
        "be-alloc": ("be_alloc", is_nonzero),
        "connectors": ("connectors", lambda value: _connectors(value, say)),
    }
    vdispl = Vdispl(**_options(text, table, 'Unknown string "{}" in vdispl spec'))
    if not vdispl.connectors:
        raise SpecError("At least one connector should be specified.")
    return vdispl


def _connectors(text: str, say: Say) -> tuple[Connector, ...]:
    pieces = strtok(text, ";")
    if not pieces:
        raise SpecError("vdispl: connectors= lists none; xl crashes", crash=SIGSEGV)
    done: list[Connector] = []
    for piece in pieces:
        pair = split_pair(piece, ":", trim=False)
        if pair is None:
            line = f'vdispl: connector "{piece}" is not ID:WIDTHxHEIGHT; xl crashes'
            raise SpecError(line, crash=SIGABRT)
        size = _resolution(pair[1])
        done.append(Connector(pair[0], *(size or ())))
        if size is None:
            say(_NO_RESOLUTION)
            break
    return (*done, *[Connector()] * (len(pieces) - len(done)))


_NO_RESOLUTION = "Can't parse connector resolution"


def _resolution(text: str) -> tuple[int, int] | None:
    """``WIDTHxHEIGHT``, text behind it ignored; None where there is text but no number."""
    width = scan_number(text, 0, 10)
    if width is None and text.strip(" \t\n\v\f\r"):
        return None
    if width is None or not text.startswith("x", width[1]):
        raise SpecError(_NO_RESOLUTION)
    height = scan_number(text, width[1] + 1, 10)
    if height is None:
        raise SpecError(_NO_RESOLUTION)
    return as_u64(width[0]) & U32_MAX, as_u64(height[0]) & U32_MAX


@dataclass(frozen=True, slots=True)
class Pvcallsif:
    """A ``pvcalls`` entry: a POSIX socket forwarder."""

    backend_domname: str | None = None
    devid: int | None = None


def parse_pvcalls(text: str, say: Say = _ignore) -> Pvcallsif:
    """Reads a ``pvcalls`` entry: ``backend``. What follows a field without ``=`` is not read.

    Raises:
        SpecError: another key.
    """
    backend: str | None = None
    for key, value in _until_bare(text):
        if key != "backend":
            raise SpecError(f"Unknown string `{key}' in pvcalls spec")
        backend = value
    return Pvcallsif(backend)


@dataclass(frozen=True, slots=True)
class ChannelPty:
    """A channel that ends in a pseudo terminal; it has no fields."""


@dataclass(frozen=True, slots=True)
class ChannelSocket:
    """A channel that ends in a listening Unix socket at ``path``."""

    path: str


@dataclass(frozen=True, slots=True)
class Channel:
    """A ``channel`` entry; exactly one of ``pty`` and ``socket`` is there.

    In libxl's JSON these are ``connection.pty`` and ``connection.socket``.
    """

    backend_domname: str | None = None
    name: str | None = None
    pty: ChannelPty | None = field(default=None, metadata={"libxl": "connection.pty"})
    socket: ChannelSocket | None = field(default=None, metadata={"libxl": "connection.socket"})


def parse_channel(text: str, say: Say = _ignore) -> Channel:
    """Reads a ``channel`` entry: ``connection`` (``pty`` or ``socket``), ``name``, ``path``.

    Another key is said, not refused; ``path`` counts for a socket alone.

    Raises:
        SpecError: no field at all, one that is not ``key=value``, no or a bad connection, a socket
            without a path.
    """
    found: dict[str, str] = {}
    for key, value in _trimmed_pairs(text, "channel", "channel"):
        if key not in ("backend", "name", "path", "connection"):
            say(f"unknown channel parameter '{key}', ignoring")
        elif key == "connection" and value not in ("pty", "socket"):
            raise SpecError(f"unknown channel connection '{value}'")
        else:
            found[key] = value
    connection = found.get("connection")
    ends = found.get("backend"), found.get("name")
    if connection is None:
        raise SpecError("channel has unknown 'connection'")
    if connection == "pty":
        return Channel(*ends, pty=ChannelPty())
    if "path" not in found:
        raise SpecError("channel connection 'socket' requires path=..")
    return Channel(*ends, socket=ChannelSocket(found["path"]))


@dataclass(frozen=True, slots=True)
class Vnc:
    """The VNC server of a frame buffer."""

    enable: bool | None = None
    listen: str | None = None
    passwd: str | None = None
    display: int = 0
    findunused: bool | None = None


@dataclass(frozen=True, slots=True)
class Sdl:
    """The SDL window of a frame buffer."""

    enable: bool | None = None
    opengl: bool | None = None
    display: str | None = None
    xauthority: str | None = None


@dataclass(frozen=True, slots=True)
class Vfb:
    """A ``vfb`` entry: a virtual frame buffer. xl adds a keyboard with each (see ``Vkb``)."""

    devid: int | None = None
    vnc: Vnc = field(default_factory=Vnc)
    sdl: Sdl = field(default_factory=Sdl)
    keymap: str | None = None


_VNC: Table = {
    "vnc": ("enable", _atoi_bool),
    "vnclisten": ("listen", str),
    "vncpasswd": ("passwd", str),
    "vncdisplay": ("display", atoi),
    "vncunused": ("findunused", _atoi_bool),
}
_SDL: Table = {
    "sdl": ("enable", _atoi_bool),
    "opengl": ("opengl", _atoi_bool),
    "display": ("display", str),
    "xauthority": ("xauthority", str),
}


def parse_vfb(text: str, say: Say = _ignore) -> Vfb:
    """Reads a ``vfb`` entry; nothing is refused.

    Unknown keys are skipped, and what follows a field without ``=`` is not read. Numbers are
    decimal, and text in their place is 0.
    """
    vnc: dict[str, Any] = {}
    sdl: dict[str, Any] = {}
    keymap: str | None = None
    for key, value in _until_bare(text):
        for table, found in ((_VNC, vnc), (_SDL, sdl)):
            if key in table:
                name, convert = table[key]
                found[name] = convert(value)
        if key == "keymap":
            keymap = value
    return Vfb(vnc=Vnc(**vnc), sdl=Sdl(**sdl), keymap=keymap)


@dataclass(frozen=True, slots=True)
class Vkb:
    """A ``vkb`` entry: a virtual keyboard and pointer, sizes in pixels.

    The one that comes with a ``Vfb`` has the backend type ``unknown``; an entry says ``qemu`` or
    ``linux``.
    """

    backend_domname: str | None = None
    devid: int | None = None
    backend_type: str = "unknown"
    unique_id: str | None = None
    feature_disable_keyboard: bool = False
    feature_disable_pointer: bool = False
    feature_abs_pointer: bool = False
    feature_raw_pointer: bool = False
    feature_multi_touch: bool = False
    width: int = 0
    height: int = 0
    multi_touch_width: int = 0
    multi_touch_height: int = 0
    multi_touch_num_contacts: int = 0


_VKB_FLAGS = ("disable-keyboard", "disable-pointer", "abs-pointer", "raw-pointer", "multi-touch")
_VKB_MULTI_TOUCH = ("multi-touch-width", "multi-touch-height", "multi-touch-num-contacts")
_VKB: Table = {
    "backend": ("backend_domname", str),
    "backend-type": (
        "backend_type",
        one_of(("unknown", "qemu", "linux"), 'Unknown backend_type "{}" in vkb spec'),
    ),
    "unique-id": ("unique_id", str),
    **{f"feature-{key}": (f"feature_{key.replace('-', '_')}", is_nonzero) for key in _VKB_FLAGS},
    **{key: (key.replace("-", "_"), as_u32) for key in ("width", "height", *_VKB_MULTI_TOUCH)},
}


def parse_vkb(text: str, say: Say = _ignore) -> Vkb:
    """Reads a ``vkb`` entry: ``backend-type``, which is required, ``feature-...``, sizes.

    A multi-touch size switches ``feature-multi-touch`` on.

    Raises:
        SpecError: another key, a bad or no backend type, multi-touch without any size.
    """
    found = _options(text, _VKB, 'Unknown string "{}" in vkb spec')
    if found.get("backend_type", "unknown") == "unknown":
        raise SpecError("backend-type should be set in vkb spec")
    sized = any(found.get(key.replace("-", "_")) for key in _VKB_MULTI_TOUCH)
    if found.get("feature_multi_touch") and not sized:
        needed = ", ".join(_VKB_MULTI_TOUCH)
        raise SpecError(f"{needed} should be set for multi touch in vkb spec")
    return Vkb(**{**found, "feature_multi_touch": sized})


@dataclass(frozen=True, slots=True)
class Usbctrl:
    """A ``usbctrl`` entry: a USB controller; ``type`` is auto, pv, devicemodel or qusb."""

    type: str = "auto"
    devid: int | None = None
    version: int = 0
    ports: int = 0


_USBCTRL: Table = {
    "type": (
        "type",
        one_of(("auto", "pv", "devicemodel", "qusb"), "Invalid usb controller type '{}'"),
    ),
    "version": ("version", atoi),
    "ports": ("ports", atoi),
}


def parse_usbctrl(text: str, say: Say = _ignore) -> Usbctrl:
    """Reads a ``usbctrl`` entry: ``type``, ``version``, ``ports``; the numbers are decimal.

    Raises:
        SpecError: another key or a bad type.
    """
    return Usbctrl(**_options(text, _USBCTRL, "Unknown string `{}' in usbctrl spec"))


@dataclass(frozen=True, slots=True)
class Hostdev:
    """A USB device of the host."""

    hostbus: int = 0
    hostaddr: int = 0


@dataclass(frozen=True, slots=True)
class Usbdev:
    """A ``usbdev`` entry; ``hostdev``, in libxl's JSON ``type.hostdev``, only with its type."""

    ctrl: int = -1
    port: int = 0
    hostdev: Hostdev | None = field(default=None, metadata={"libxl": "type.hostdev"})


_USBDEV: Table = {
    # xl prints another variable than the type it read.
    "type": ("type", one_of(("hostdev",), "Invalid usb device type: (null)")),
    "hostbus": ("hostbus", _u8),
    "hostaddr": ("hostaddr", _u8),
    "controller": ("ctrl", atoi),
    "port": ("port", atoi),
}


def parse_usbdev(text: str, say: Say = _ignore) -> Usbdev:
    """Reads a ``usbdev`` entry: ``type``, ``hostbus``, ``hostaddr``, ``controller``, ``port``.

    Bus and address count for ``type=hostdev`` alone, the only type there is.

    Raises:
        SpecError: another key or a bad type.
    """
    found = _options(text, _USBDEV, "Unknown string `{}' in usbdev spec")
    place = {key: found.pop(key) for key in ("hostbus", "hostaddr") if key in found}
    kind = found.pop("type", None)
    return Usbdev(**found, hostdev=Hostdev(**place) if kind else None)


@dataclass(frozen=True, slots=True)
class Virtio:
    """A ``virtio`` entry; ``transport`` is ``unknown`` or ``mmio``."""

    backend_domname: str | None = None
    type: str | None = None
    transport: str = "unknown"
    grant_usage: bool | None = None
    devid: int | None = None


_VIRTIO: Table = {
    "backend": ("backend_domname", str),
    "type": ("type", str),
    "transport": ("transport", one_of(("unknown", "mmio"))),
    "grant_usage": ("grant_usage", is_nonzero),
}


def parse_virtio(text: str, say: Say = _ignore) -> Virtio:
    """Reads a ``virtio`` entry: ``backend``, ``type``, ``transport``, ``grant_usage``.

    A type that begins with ``virtio`` takes the next field along, as in ``type=virtio,device22``.

    Raises:
        SpecError: another key, or a bad transport, about which xl is silent. At ``type=virtio``
            in the last field xl crashes.
    """
    found: dict[str, Any] = {}
    pieces = iter(strtok(text))
    for piece in pieces:
        option = piece.lstrip(" ")
        if option.startswith("type=virtio"):
            taken = next(pieces, None)
            if taken is None:
                line = f'virtio: "{option}" needs another field, as in type=virtio,device22'
                raise SpecError(f"{line}; xl crashes", crash=SIGSEGV)
            option = f"{option},{taken}"
        _take(found, option, _VIRTIO, 'Unknown string "{}" in virtio spec')
    return Virtio(**found)
