# SPDX-License-Identifier: BSD-2-Clause
"""Entries that give the guest a display, or a keyboard and pointer: ``vdispl``, ``vfb``, ``vkb``.

Rows of ``key=value`` fields, read as those of ``devices``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xl_configs.frozen import field, frozen
from xl_configs.specs.options import (
    SIGABRT,
    SIGSEGV,
    atoi_bool,
    ignore,
    one_of,
    options,
    until_bare,
)
from xl_configs.specs.scan import (
    U32_MAX,
    SpecError,
    as_u32,
    as_u64,
    atoi,
    is_nonzero,
    scan_number,
    split_pair,
    strtok,
)

if TYPE_CHECKING:
    from xl_configs.specs.options import Say, Table


@frozen
class Connector:
    """An output of a virtual display, its size in pixels; all unset after an unreadable one."""

    unique_id: str | None = None
    width: int = 0
    height: int = 0


@frozen
class Vdispl:
    """A ``vdispl`` entry: a virtual display with at least one connector."""

    backend_domname: str | None = None
    devid: int | None = None
    be_alloc: bool = False
    connectors: tuple[Connector, ...] = ()


def parse_vdispl(text: str, say: Say = ignore) -> Vdispl:
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
    vdispl = Vdispl(**options(text, table, 'Unknown string "{}" in vdispl spec'))
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


@frozen
class Vnc:
    """The VNC server of a frame buffer."""

    enable: bool | None = None
    listen: str | None = None
    passwd: str | None = None
    display: int = 0
    findunused: bool | None = None


@frozen
class Sdl:
    """The SDL window of a frame buffer."""

    enable: bool | None = None
    opengl: bool | None = None
    display: str | None = None
    xauthority: str | None = None


@frozen
class Vfb:
    """A ``vfb`` entry: a virtual frame buffer. xl adds a keyboard with each (see ``Vkb``)."""

    devid: int | None = None
    vnc: Vnc = field(default_factory=Vnc)
    sdl: Sdl = field(default_factory=Sdl)
    keymap: str | None = None


VNC_TABLE: Table = {
    "vnc": ("enable", atoi_bool),
    "vnclisten": ("listen", str),
    "vncpasswd": ("passwd", str),
    "vncdisplay": ("display", atoi),
    "vncunused": ("findunused", atoi_bool),
}
SDL_TABLE: Table = {
    "sdl": ("enable", atoi_bool),
    "opengl": ("opengl", atoi_bool),
    "display": ("display", str),
    "xauthority": ("xauthority", str),
}


def parse_vfb(text: str, say: Say = ignore) -> Vfb:
    """Reads a ``vfb`` entry; nothing is refused.

    Unknown keys are skipped, and what follows a field without ``=`` is not read. Numbers are
    decimal, and text in their place is 0.
    """
    vnc: dict[str, Any] = {}
    sdl: dict[str, Any] = {}
    keymap: str | None = None
    for key, value in until_bare(text):
        for table, found in ((VNC_TABLE, vnc), (SDL_TABLE, sdl)):
            if key in table:
                name, convert = table[key]
                found[name] = convert(value)
        if key == "keymap":
            keymap = value
    return Vfb(vnc=Vnc(**vnc), sdl=Sdl(**sdl), keymap=keymap)


@frozen
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
VKB_TABLE: Table = {
    "backend": ("backend_domname", str),
    "backend-type": (
        "backend_type",
        one_of(("unknown", "qemu", "linux"), 'Unknown backend_type "{}" in vkb spec'),
    ),
    "unique-id": ("unique_id", str),
    **{f"feature-{key}": (f"feature_{key.replace('-', '_')}", is_nonzero) for key in _VKB_FLAGS},
    **{key: (key.replace("-", "_"), as_u32) for key in ("width", "height", *_VKB_MULTI_TOUCH)},
}


def parse_vkb(text: str, say: Say = ignore) -> Vkb:
    """Reads a ``vkb`` entry: ``backend-type``, which is required, ``feature-...``, sizes.

    A multi-touch size switches ``feature-multi-touch`` on.

    Raises:
        SpecError: another key, a bad or no backend type, multi-touch without any size.
    """
    found = options(text, VKB_TABLE, 'Unknown string "{}" in vkb spec')
    if found.get("backend_type", "unknown") == "unknown":
        raise SpecError("backend-type should be set in vkb spec")
    sized = any(found.get(key.replace("-", "_")) for key in _VKB_MULTI_TOUCH)
    if found.get("feature_multi_touch") and not sized:
        needed = ", ".join(_VKB_MULTI_TOUCH)
        raise SpecError(f"{needed} should be set for multi touch in vkb spec")
    return Vkb(**{**found, "feature_multi_touch": sized})
