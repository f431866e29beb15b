# SPDX-License-Identifier: BSD-2-Clause
"""Reading the inputs that several subcommands take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vsmmu.cli.files import say
from vsmmu.inputs import (
    ConfigRejectedError,
    FileError,
    at,
    load_partial,
    load_platform,
    load_tree,
    platform_of,
    read,
    read_config,
    tree_of,
)

__all__ = [
    "ConfigRejectedError", "add_config_arguments", "add_gpaddr_argument", "at", "check_override",
    "load_bindings", "load_config", "load_partial", "load_platform", "load_tree", "platform_of",
    "tree_change", "tree_of", "tree_output",
]  # fmt: skip

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from dt_tools.binding import Bindings
    from dt_tools.tree import Tree
    from xl_configs import GuestConfig
    from xl_configs.keys import Dialect


def load_config(
    name: str, overrides: Sequence[str] = (), dialect: Dialect | None = None
) -> GuestConfig:
    """The guest that a config file describes; its warnings go to stderr.

    Raises:
        FileError, ConfigRejectedError: as `read_config`.
    """
    config, warnings = read_config(name, overrides, dialect)
    for warning in warnings:
        say(f"vsmmu: {warning}")
    return config


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
