# SPDX-License-Identifier: BSD-2-Clause
"""Reading the inputs that several subcommands take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, read, say

if TYPE_CHECKING:
    from dt_tools.platform import Platform
    from dt_tools.tree import Tree
    from xl_configs import GuestConfig


class ConfigRejectedError(Exception):
    """A guest config that xl would reject; the message is its report. Exit code 2."""

    exit_code = 2


def load_platform(name: str) -> Platform:
    """The board that a DTB file describes. Raises FileError, DtbError."""
    from dt_tools.platform import Platform

    return Platform.from_tree(load_tree(name), name)


def load_tree(name: str) -> Tree:
    """The tree in a DTB file. Raises FileError, DtbError."""
    from dt_tools import blob

    return blob.read(read(name), name)


def load_config(name: str, overrides: Sequence[str] = ()) -> GuestConfig:
    """The guest that a config file describes; its warnings go to stderr.

    Raises:
        FileError: the file cannot be read.
        ConfigRejectedError: xl would reject it.
    """
    from xl_configs import ConfigError, load

    try:
        config = load(read(name), name, overrides)
    except ConfigError as error:
        raise ConfigRejectedError(str(error)) from None
    for warning in config.warnings:
        say(f"vsmmu: {name}:{warning.line}: warning {warning.id}: {warning.message}")
    return config


def load_partial(config: GuestConfig) -> Tree | None:
    """The partial tree that `device_tree` names, None without one. Raises FileError, DtbError."""
    return load_tree(config.device_tree) if config.device_tree else None


def check_override(texts: Iterable[str]) -> None:
    """Raises FileError for an argument that is not KEY=VALUE."""
    for text in texts:
        if "=" not in text:
            raise FileError(f"{text}: expected KEY=VALUE")
