# SPDX-License-Identifier: BSD-2-Clause
"""Entries that give the guest a paravirtual or emulated device of the smaller kinds.

``p9``, ``vtpm``, ``pvcalls``, ``channel``, ``usbctrl``, ``usbdev`` and ``virtio``: each entry is a
row of ``key=value`` fields. Every reader takes the text of one entry and a function ``say``, which
gets each line that xl prints without refusing, and raises ``SpecError`` where xl ends: with xl's
lines or, where xl crashes, with one of ours and the signal.

The numbers in a record are what is left of those in the text after libxl's 8 or 32 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xl_configs.frozen import field, frozen
from xl_configs.specs.options import (
    SIGSEGV,
    ignore,
    one_of,
    options,
    take,
    trimmed_pairs,
    u8,
    until_bare,
)
from xl_configs.specs.scan import (
    U32_MAX,
    U64_MAX,
    SpecError,
    atoi,
    is_nonzero,
    is_uuid,
    strtok,
    strtoul,
)

if TYPE_CHECKING:
    from xl_configs.specs.options import Say, Table

NIL_UUID = "00000000-0000-0000-0000-000000000000"


@frozen
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


P9_TABLE: Table = {
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


def parse_p9(text: str, say: Say = ignore) -> P9:
    """Reads a ``p9`` entry: ``tag``, ``path``, ``security_model``, ``type`` and more.

    Raises:
        SpecError: no field at all, one that is not ``key=value``, or an unusable one.
    """
    found: dict[str, Any] = {}
    for key, value in trimmed_pairs(text, "p9", "9pfs"):
        if key not in P9_TABLE:
            raise SpecError(f"Unknown 9pfs parameter '{key}'")
        name, convert = P9_TABLE[key]
        found[name] = convert(value)
    return P9(**found)


@frozen
class Vtpm:
    """A ``vtpm`` entry. The uuid is in lower case; libxl picks one for the nil uuid."""

    backend_domname: str
    devid: int | None = None
    uuid: str = NIL_UUID


def parse_vtpm(text: str, say: Say = ignore) -> Vtpm:
    """Reads a ``vtpm`` entry: ``backend``, which is required, and ``uuid``.

    What follows a field without ``=`` is not read.

    Raises:
        SpecError: another key, a bad uuid, no backend.
    """
    backend: str | None = None
    uuid = NIL_UUID
    for key, value in until_bare(text):
        if key == "backend":
            backend = value
        elif key != "uuid":
            raise SpecError(f"Unknown string `{key}' in vtpm spec")
        elif is_uuid(value):
            uuid = value.lower()
        else:
            raise SpecError(f"Failed to parse vtpm UUID: {value}")
    if backend is None:
        raise SpecError("vtpm spec missing required backend field!")
    return Vtpm(backend, uuid=uuid)


@frozen
class Pvcallsif:
    """A ``pvcalls`` entry: a POSIX socket forwarder."""

    backend_domname: str | None = None
    devid: int | None = None


def parse_pvcalls(text: str, say: Say = ignore) -> Pvcallsif:
    """Reads a ``pvcalls`` entry: ``backend``. What follows a field without ``=`` is not read.

    Raises:
        SpecError: another key.
    """
    backend: str | None = None
    for key, value in until_bare(text):
        if key != "backend":
            raise SpecError(f"Unknown string `{key}' in pvcalls spec")
        backend = value
    return Pvcallsif(backend)


@frozen
class ChannelPty:
    """A channel that ends in a pseudo terminal; it has no fields."""


@frozen
class ChannelSocket:
    """A channel that ends in a listening Unix socket at ``path``."""

    path: str


@frozen
class Channel:
    """A ``channel`` entry; exactly one of ``pty`` and ``socket`` is there.

    In libxl's JSON these are ``connection.pty`` and ``connection.socket``.
    """

    backend_domname: str | None = None
    name: str | None = None
    pty: ChannelPty | None = field(default=None, metadata={"libxl": "connection.pty"})
    socket: ChannelSocket | None = field(default=None, metadata={"libxl": "connection.socket"})


def parse_channel(text: str, say: Say = ignore) -> Channel:
    """Reads a ``channel`` entry: ``connection`` (``pty`` or ``socket``), ``name``, ``path``.

    Another key is said, not refused; ``path`` counts for a socket alone.

    Raises:
        SpecError: no field at all, one that is not ``key=value``, no or a bad connection, a socket
            without a path.
    """
    found: dict[str, str] = {}
    for key, value in trimmed_pairs(text, "channel", "channel"):
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


@frozen
class Usbctrl:
    """A ``usbctrl`` entry: a USB controller; ``type`` is auto, pv, devicemodel or qusb."""

    type: str = "auto"
    devid: int | None = None
    version: int = 0
    ports: int = 0


USBCTRL_TABLE: Table = {
    "type": (
        "type",
        one_of(("auto", "pv", "devicemodel", "qusb"), "Invalid usb controller type '{}'"),
    ),
    "version": ("version", atoi),
    "ports": ("ports", atoi),
}


def parse_usbctrl(text: str, say: Say = ignore) -> Usbctrl:
    """Reads a ``usbctrl`` entry: ``type``, ``version``, ``ports``; the numbers are decimal.

    Raises:
        SpecError: another key or a bad type.
    """
    return Usbctrl(**options(text, USBCTRL_TABLE, "Unknown string `{}' in usbctrl spec"))


@frozen
class Hostdev:
    """A USB device of the host."""

    hostbus: int = 0
    hostaddr: int = 0


@frozen
class Usbdev:
    """A ``usbdev`` entry; ``hostdev``, in libxl's JSON ``type.hostdev``, only with its type."""

    ctrl: int = -1
    port: int = 0
    hostdev: Hostdev | None = field(default=None, metadata={"libxl": "type.hostdev"})


USBDEV_TABLE: Table = {
    # xl prints another variable than the type it read.
    "type": ("type", one_of(("hostdev",), "Invalid usb device type: (null)")),
    "hostbus": ("hostbus", u8),
    "hostaddr": ("hostaddr", u8),
    "controller": ("ctrl", atoi),
    "port": ("port", atoi),
}


def parse_usbdev(text: str, say: Say = ignore) -> Usbdev:
    """Reads a ``usbdev`` entry: ``type``, ``hostbus``, ``hostaddr``, ``controller``, ``port``.

    Bus and address count for ``type=hostdev`` alone, the only type there is.

    Raises:
        SpecError: another key or a bad type.
    """
    found = options(text, USBDEV_TABLE, "Unknown string `{}' in usbdev spec")
    place = {key: found.pop(key) for key in ("hostbus", "hostaddr") if key in found}
    kind = found.pop("type", None)
    return Usbdev(**found, hostdev=Hostdev(**place) if kind else None)


@frozen
class Virtio:
    """A ``virtio`` entry; ``transport`` is ``unknown`` or ``mmio``."""

    backend_domname: str | None = None
    type: str | None = None
    transport: str = "unknown"
    grant_usage: bool | None = None
    devid: int | None = None


VIRTIO_TABLE: Table = {
    "backend": ("backend_domname", str),
    "type": ("type", str),
    "transport": ("transport", one_of(("unknown", "mmio"))),
    "grant_usage": ("grant_usage", is_nonzero),
}


def parse_virtio(text: str, say: Say = ignore) -> Virtio:
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
        take(found, option, VIRTIO_TABLE, 'Unknown string "{}" in virtio spec')
    return Virtio(**found)
