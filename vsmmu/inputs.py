# SPDX-License-Identifier: BSD-2-Clause
"""Reading the files that describe boards and guests, for programs and for the command line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dt_tools.platform import Platform
    from dt_tools.tree import Tree
    from xl_configs import GuestConfig
    from xl_configs.keys import Dialect

# A blob is at most 2 MiB, a config 1 MiB; anything larger is not what it should be.
_READ_MAX = 64 << 20


class FileError(Exception):
    """A file that cannot be read or written, or a misused option; exit code 1."""

    exit_code = 1


def read(name: str) -> bytes:
    """A file's bytes; `-` is stdin. Raises FileError."""
    try:
        if name == "-":
            if sys.stdin is None:
                raise FileError("-: cannot read: standard input is closed")
            data = sys.stdin.buffer.read(_READ_MAX + 1)
        else:
            with open(name or os.curdir, "rb") as file:
                data = file.read(_READ_MAX + 1)
    except (OSError, ValueError) as error:
        raise FileError(f"{name}: cannot read: {reason_of(error)}{_nearest(name)}") from None
    if len(data) > _READ_MAX:
        raise FileError(f"{name}: cannot read: larger than {_READ_MAX >> 20} MiB")
    return data


class ConfigRejectedError(Exception):
    """A guest config that xl would reject; the message is its report. Exit code 2."""

    exit_code = 2


def load_platform(name: str) -> Platform:
    """The board that a DTB file describes. Raises FileError, DtbError."""
    return platform_of(read(name), name)


def platform_of(data: bytes, name: str) -> Platform:
    """The board that the bytes of a file describe. Raises DtbError."""
    from dt_tools.platform import Platform

    return Platform.from_tree(tree_of(data, name), name)


def load_tree(name: str) -> Tree:
    """The tree in a DTB file, or in device-tree source that dtc compiles.

    Raises:
        FileError: the file cannot be read.
        DtbError: it is neither a sound blob nor source that dtc accepts.
    """
    return tree_of(read(name), name)


def tree_of(data: bytes, name: str) -> Tree:
    """The tree in the bytes of a file; as `load_tree`."""
    from dt_tools import blob

    # A blob is told by its first byte: most of them need nothing of the module for source.
    if data[:1] != b"\xd0":
        from dt_tools.dts import compile_source, is_source

        if is_source(data, name):
            folder = None if name == "-" else os.path.dirname(os.path.abspath(name))
            data = compile_source(data, name, folder)
    return blob.read(data, name)


def read_config(
    name: str, overrides: Sequence[str] = (), dialect: Dialect | None = None
) -> tuple[GuestConfig, tuple[str, ...]]:
    """The guest that a config file describes, and its warnings, a line each.

    `dialect` says whose reading it is, ours unless given.

    Raises:
        FileError: the file cannot be read.
        ConfigRejectedError: xl would reject it.
    """
    from xl_configs import ConfigError, load
    from xl_configs.keys import Dialect

    try:
        config = load(read(name), name, overrides, dialect=dialect or Dialect.OURS)
    except ConfigError as error:
        raise ConfigRejectedError(str(error)) from None
    return config, tuple(
        f"{at(name, w.line)}: warning {w.id}: {w.message}" for w in config.warnings
    )


def load_partial(config: GuestConfig) -> Tree | None:
    """The partial tree that `device_tree` names, None without one. Raises FileError, DtbError."""
    return load_tree(config.device_tree) if config.device_tree else None


def at(name: str, line: int | None) -> str:
    """A place in a file, as messages begin with it."""
    return name if line is None else f"{name}:{line}"


def plain(text: str) -> str:
    """Text of an input, safe to print on one line: unprintable characters as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason_of(error: Exception) -> str:
    """Why a file could not be used, in the system's words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def _nearest(name: str) -> str:
    """A hint: the file of that folder whose name is nearest, or the folder that is missing."""
    import difflib
    from pathlib import Path

    with contextlib.suppress(OSError, ValueError):
        place = Path(name)
        if place.exists():
            return ""
        if not place.parent.is_dir():
            return f"; there is no folder {place.parent}"
        names = [entry.name for entry in place.parent.iterdir() if entry.name != place.name]
        near = difflib.get_close_matches(place.name, names, 1)
        return f"; nearest: {place.parent / near[0]}" if near else ""
    return ""
