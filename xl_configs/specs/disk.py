# SPDX-License-Identifier: BSD-2-Clause
"""``disk`` entries.

An entry is a run of fields, told apart by one rule: of the kinds that fit at a place, the one that
looks farthest ahead wins. A few look at the rest of the line, which is how ``target=`` takes commas
along and how a prefix such as ``phy:`` is found before a path. Lengths and places are in bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from xl_configs.frozen import frozen
from xl_configs.specs.options import SIGABRT
from xl_configs.specs.scan import SpecError, atoi

if TYPE_CHECKING:
    from collections.abc import Iterator

# xl's scanner keeps a state for each byte it looks at, in a buffer of a fixed size, and writes past
# its end when it looks at this many bytes and one more.
_LONGEST_LOOK = 16384
# Each line of the report repeats the entry, so that it would grow with the square of its length.
_LONGEST_REPORT = 1 << 20
_EINVAL = 22
_JAMMED = 2


@frozen
class Disk:
    """One ``disk`` entry.

    Attributes:
        vdev: the guest's name for it; may be empty.
        format: ``raw``, ``qcow``, ``qcow2``, ``vhd``, ``qed`` or ``empty``.
        pdev_path: the target; None for a removable drive that was given none.
        backend_domname: domain that serves it, or None for the toolstack's own.
        backend: ``phy``, ``tap``, ``qdisk``, ``standalone``, or ``unknown`` when not given.
        script: hotplug script or None.
        removable: 1 for a CD-ROM drive, as ``is_cdrom``.
        readwrite: 1 when the guest may write.
        is_cdrom: 1 for a CD-ROM drive.
        direct_io_safe: as the field says; so are the flags below, None when not given.
        discard_enable: ``discard``, ``no-discard``.
        specification: ``xen``, ``virtio``, or ``unknown`` when not given.
        colo_enable: ``colo``, ``no-colo``.
        colo_host: as given or None; the same for the other colo fields.
        colo_port: 32 bits, signed; 0 when not given.
        colo_export: see ``colo_host``.
        active_disk: see ``colo_host``.
        hidden_disk: see ``colo_host``.
        trusted: ``trusted``, ``untrusted``.
        grant_usage: ``grant_usage=1``, ``grant_usage=0``.
    """

    vdev: str
    format: str
    pdev_path: str | None = None
    backend_domname: str | None = None
    backend: str = "unknown"
    script: str | None = None
    removable: int = 0
    readwrite: int = 0
    is_cdrom: int = 0
    direct_io_safe: bool = False
    discard_enable: bool | None = None
    specification: str = "unknown"
    colo_enable: bool | None = None
    colo_host: str | None = None
    colo_port: int = 0
    colo_export: str | None = None
    active_disk: str | None = None
    hidden_disk: str | None = None
    trusted: bool | None = None
    grant_usage: bool | None = None


def parse_disk(text: str, source: str = "cfg") -> Disk:
    """Reads one entry as xl 4.20 does.

    Args:
        text: the entry.
        source: name of the configuration, for messages.

    Raises:
        SpecError: code 22, with the lines xl prints; where they are longer than 1 MiB together,
            with about as many as make up that. Code 2, the code xl exits with on the spot, for an
            equals sign that begins a field and stands before a line feed. With ``crash``, for a
            field of 16 KiB, or a line that long where the kind of field looks at the line.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SpecError("disk: an entry that is not text", code=_EINVAL) from None
    entry = _Entry(text, source)
    for kind, token in _tokens(data):
        if not entry.take(kind, token):
            break
    return entry.finish()


# A target or prefix right before a line feed is not here: "unknown" or "strange" looks farther.
_START = re.compile(
    rb"""
    (?P<blank> [ \t\n]+ )
  | (?P<prefix> (?:raw|qcow2?|vhd|iscsi|e?nbd|drbd|tapdisk|tap2?|aio|ioemu|file|phy): ) (?!\n)
  | (?P<strange> [a-z][a-z0-9]*: ) (?![a-z0-9])
  | (?P<target> target= ) (?!\n)
  | (?P<flag> (?: grant_usage=[01] | devtype=(?:cdrom|disk)(?![^,]) ) ,? )
  | (?P<key> (?: format | devtype | access | backend | backendtype | specification | vdev | script
               | colo-host | colo-port | colo-export | active-disk | hidden-disk )= )
  | (?P<unknown> [a-z][-a-z0-9]*=[^,],? )
    """,
    re.VERBOSE,
)


def _tokens(data: bytes) -> Iterator[tuple[str, str]]:
    """The fields of an entry, each with its kind; a comma that ends one is part of it."""
    at = 0
    while at < len(data):
        kind, end = _next(data, at)
        if kind:
            yield kind, data[at:end].decode("utf-8", "surrogateescape")
        at = end


def _next(data: bytes, at: int) -> tuple[str, int]:
    """The kind of the field at an index, empty for none, and the index after it."""
    found = _START.match(data, at)
    kind, end = (found.lastgroup or "", found.end()) if found else ("plain", at)
    if kind == "target":
        return kind, _look(data, at, b"\n", end)
    if kind == "key":
        return kind, _past_comma(data, _look(data, at, b",", end))
    if kind in ("flag", "unknown"):
        return kind, end
    plain = _past_comma(data, _look(data, at, b",="))
    # "strange" looks at any byte after its colon, and then at the rest of that byte's line.
    if kind != "plain" and _look(data, at, b"\n", end + (kind == "strange")) >= plain:
        return "" if kind == "blank" else kind, end
    if plain > at:
        return "plain", plain
    # An equals sign: in error, unless it ends the entry.
    line = _look(data, at + 1, b"\n")
    return ("junk" if line > at + 1 else "jam" if line < len(data) else ""), line


def _look(data: bytes, at: int, stops: bytes, start: int = 0) -> int:
    """How far a look from ``at`` goes: to the first of ``stops``, not before ``start``."""
    limit = at + _LONGEST_LOOK
    end = min(len(data), limit)
    for stop in stops:
        place = data.find(stop, max(at, start), end)
        end = end if place < 0 else place
    # A comma is part of the field that it ends, and the end of the entry is looked at too.
    ended = data[end : end + 1]
    if end == limit and (ended in (b"", b",") or ended not in stops):
        raise SpecError(
            f"disk: a field of {_LONGEST_LOOK} bytes and more overruns a buffer of xl",
            code=_EINVAL,
            crash=SIGABRT,
        )
    return end


def _past_comma(data: bytes, at: int) -> int:
    return at + data.startswith(b",", at)


_FLAGS: dict[str, tuple[str, bool | int]] = {
    "cdrom": ("is_cdrom", 1),
    "devtype=cdrom": ("is_cdrom", 1),
    "devtype=disk": ("is_cdrom", 0),
    "direct-io-safe": ("direct_io_safe", True),
    "discard": ("discard_enable", True),
    "no-discard": ("discard_enable", False),
    "colo": ("colo_enable", True),
    "no-colo": ("colo_enable", False),
    "trusted": ("trusted", True),
    "untrusted": ("trusted", False),
    "grant_usage=1": ("grant_usage", True),
    "grant_usage=0": ("grant_usage", False),
}
_STRINGS = {
    "target": "pdev_path",
    "vdev": "vdev",
    "script": "script",
    "backend": "backend_domname",
    "colo-host": "colo_host",
    "colo-export": "colo_export",
    "active-disk": "active_disk",
    "hidden-disk": "hidden_disk",
}
_FORMATS = ("raw", "qcow", "qcow2", "vhd", "empty", "qed")
_ENUMS: dict[str, tuple[str, dict[str, str]]] = {
    "format": ("format", {"": "raw"} | {word: word for word in _FORMATS}),
    "backendtype": ("backend", {word: word for word in ("phy", "tap", "qdisk", "standalone")}),
    "specification": ("specification", {word: word for word in ("xen", "virtio")}),
}
_ACCESS = {"r": 0, "ro": 0, "rw": 1, "w": 1, "": 1}
_ERRORS = {
    "unknown": "unknown parameter",
    "strange": "unknown deprecated disk prefix",
    "junk": "bad disk syntax",
}


class _Entry:
    """An entry as far as it is read."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.held: dict[str, Any] = {"readwrite": 1}
        self.report: list[str] = []
        self.prefixed = False
        self.access_given = False

    def take(self, kind: str, token: str) -> bool:
        """Reads a field; False when xl reads no further."""
        bare = token.removesuffix(",")
        if kind == "plain":
            return self.positional(bare)
        if kind == "flag":
            self.flag(bare)
        elif kind == "prefix":
            self.prefix(token.removesuffix(":"))
        elif kind in ("key", "target"):
            key, _, value = bare.partition("=")
            self.named(key, value, token)
        elif kind == "jam":
            raise SpecError(*self.report, "flex scanner jammed", code=_JAMMED)
        else:
            self.refuse(_ERRORS[kind], token)
        return kind not in ("strange", "junk")

    def refuse(self, what: str, near: str | None = None) -> None:
        """Adds a line to the report."""
        place = "" if near is None else f": near `{near}'"
        self.report.append(
            f"{self.source}: config parsing error in disk specification: {what}{place}"
            f" in `{self.text}'"
        )
        if len(self.report) * len(self.text) > _LONGEST_REPORT:
            raise SpecError(*self.report, code=_EINVAL)

    def flag(self, word: str) -> None:
        field, value = _FLAGS[word]
        self.held[field] = value

    def prefix(self, word: str) -> None:
        self.prefixed = True
        if word in _ENUMS["format"][1]:
            self.choose("format", word)
        elif word in ("iscsi", "nbd", "enbd", "drbd"):
            self.save("script", f"block-{word}")

    def named(self, key: str, value: str, token: str) -> None:
        if key in _STRINGS:
            self.save(key, value)
        elif key in _ENUMS:
            self.choose(key, value)
        elif key == "access":
            self.access(value)
        elif key == "devtype":
            self.refuse("unknown value for type", token)
        elif port := atoi(value):
            self.held["colo_port"] = port
        else:
            self.refuse("unknown value for colo_port", value)

    def save(self, key: str, value: str) -> None:
        """A string: to be given once, unless it is empty so far."""
        if self.held.get(_STRINGS[key]):
            self.refuse(f"{key} respecified", value)
        else:
            self.held[_STRINGS[key]] = value

    def choose(self, key: str, word: str) -> None:
        """One of a few words: may be given again as long as it is the same."""
        field, words = _ENUMS[key]
        value = words.get(word)
        if value is None:
            self.refuse(f"unknown value for {key}", word)
        elif self.held.setdefault(field, value) != value:
            self.refuse(f"{field} respecified", word)

    def access(self, word: str) -> None:
        if word in _ACCESS:
            self.held["readwrite"] = _ACCESS[word]
        else:
            self.refuse("unknown value for access", word)

    def positional(self, word: str) -> bool:
        """A field without a name: it is the first of target, format, vdev, access not given."""
        if word in _FLAGS:
            self.flag(word)
        elif self.report:
            pass
        elif "pdev_path" not in self.held:
            self.save("target", word)
        elif not self.prefixed and "format" not in self.held:
            if self.held["pdev_path"] == "" and self.vdev_and_type(word):
                self.held["format"] = "empty"
            else:
                self.choose("format", word)
        elif "vdev" not in self.held:
            if not self.vdev_and_type(word):
                self.save("vdev", word)
        elif not self.access_given:
            self.access_given = True
            self.access(word)
        else:
            self.refuse("too many positional parameters", word)
            return False
        return True

    def vdev_and_type(self, word: str) -> bool:
        """Reads ``VDEV:cdrom`` or ``VDEV:disk``; False without a colon."""
        vdev, colon, kind = word.rpartition(":")
        if not colon:
            return False
        self.save("vdev", vdev)
        if kind in ("cdrom", "disk"):
            self.held["is_cdrom"] = int(kind == "cdrom")
        else:
            self.refuse("unknown deprecated type", kind)
        return True

    def finish(self) -> Disk:
        """The record, with what follows from the fields together."""
        held = self.held
        held.setdefault("format", "raw")
        if held.get("is_cdrom"):
            held.update(removable=1, readwrite=0)
            if not held.get("pdev_path"):
                held["format"] = "empty"
        if not self.report and "vdev" not in held:
            self.refuse("no vdev specified")
        elif not self.report and "pdev_path" not in held and not held.get("removable"):
            self.refuse("no target specified (and device not removable)")
        if self.report:
            raise SpecError(*self.report, code=_EINVAL)
        return Disk(**held)
