# SPDX-License-Identifier: BSD-2-Clause
"""Reading the inputs that several subcommands take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, read, say

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from dt_tools.binding import Bindings
    from dt_tools.platform import Platform
    from dt_tools.tree import Tree
    from xl_configs import GuestConfig
    from xl_configs.keys import Dialect


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


def load_config(
    name: str, overrides: Sequence[str] = (), dialect: Dialect | None = None
) -> GuestConfig:
    """The guest that a config file describes; its warnings go to stderr.

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
    for warning in config.warnings:
        say(f"vsmmu: {at(name, warning.line)}: warning {warning.id}: {warning.message}")
    return config


def at(name: str, line: int | None) -> str:
    """A place in a file, as messages begin with it."""
    return name if line is None else f"{name}:{line}"


def add_config_arguments(parser: ArgumentParser) -> None:
    """Declares the arguments that name a guest: the file, and settings appended to it."""
    parser.add_argument("config", metavar="GUEST.cfg", help="guest configuration (- for stdin)")
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="settings appended to it, as xl does",
    )


def load_partial(config: GuestConfig) -> Tree | None:
    """The partial tree that `device_tree` names, None without one. Raises FileError, DtbError."""
    return load_tree(config.device_tree) if config.device_tree else None


def check_override(texts: Iterable[str]) -> None:
    """Raises FileError for an argument that is not KEY=VALUE."""
    for text in texts:
        if "=" not in text:
            raise FileError(f"{text}: expected KEY=VALUE")


def add_gpaddr_argument(parser: ArgumentParser) -> None:
    """Declares the width of guest physical addresses, which no device tree tells."""
    parser.add_argument(
        "--gpaddr-bits",
        metavar="N",
        type=int,
        default=40,
        choices=range(32, 49),
        help="width of guest physical addresses on the host, 32 to 48 (default 40)",
    )


def load_bindings(name: str) -> Bindings:
    """A vMasterID map that --bindings wrote. Raises FileError, DtError."""
    import json

    from dt_tools.binding import Bindings
    from dt_tools.errors import UserError

    try:
        value = json.loads(read(name))
    except (ValueError, RecursionError) as error:
        known = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        reason = str(error) if known else "nested too deeply, or a number of too many digits"
        raise UserError(name, "", f"is no JSON: {reason}") from None
    return Bindings.from_json(value, name)


def tree_change(tree: Tree, name: str) -> str:
    """How the file of that name would change if the tree were written to it, as a diff of source.

    Raises:
        FileError, DtbError: there is a file, and it is no tree.
    """
    from vsmmu.cli.dry_run import tree_diff

    old = load_tree(name) if name != "-" and os.path.exists(name) else None
    return tree_diff(old, tree, name, name)


def tree_output(tree: Tree, name: str) -> bytes:
    """A tree as the file of that name holds it: source when it ends in .dts, else a blob."""
    from dt_tools import blob

    data = blob.write(tree)  # which checks the tree
    if not name.endswith(".dts"):
        return data
    from dt_tools.dts import to_dts

    return to_dts(tree).encode()
