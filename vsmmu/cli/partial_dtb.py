# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu partial-dtb`: the partial tree of a guest's devices, and its completed configuration."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from dt_tools.json_text import json_text
from vsmmu.cli.files import FileError, read, say, write
from vsmmu.cli.guest_options import add_guest_arguments, guest_options
from vsmmu.cli.inputs import (
    add_config_arguments,
    check_override,
    load_config,
    load_platform,
    load_tree,
)

if TYPE_CHECKING:
    from dt_tools.completed import Completed
    from xl_configs import GuestConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument("--host", metavar="HOST.dtb", required=True, help="the board")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="the partial DTB; the completed configuration names it so (- for stdout)",
    )
    parser.add_argument(
        "--config-out",
        metavar="FILE",
        help="write the configuration with dtdev, irqs, iomem and device_tree filled in",
    )
    add_guest_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would change in the files of -o and --config-out as diffs, write nothing",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Build and write."""
    from dt_tools.completed import complete

    check_override(arguments.overrides)
    _check_names(arguments)
    config = load_config(arguments.config, arguments.overrides)
    _check_device_tree(arguments, config)
    made = complete(
        config,
        load_platform(arguments.host),
        arguments.output,
        address_bits=arguments.gpaddr_bits,
        options=guest_options(arguments, config),
    )
    write(_outputs(arguments, made), (arguments.config, arguments.host))
    if not arguments.quiet:
        for notice in made.guest.notices:
            say(f"vsmmu: notice: {notice}")
    return 0


def _check_names(arguments: argparse.Namespace) -> None:
    """What argparse cannot tell about the names of the outputs."""
    name, config = arguments.output, arguments.config_out
    if name.endswith(".dts"):
        raise FileError(f"{name}: xl reads no source; name a .dtb (--dry-run prints the source)")
    if name == "-" and config is not None and not arguments.dry_run:
        raise FileError("-o -: the completed configuration has to name a file")
    given = [n for n in (name, config, arguments.bindings) if n is not None]
    if len(set(given)) < len(given):
        again = next(n for n in given if given.count(n) > 1)
        raise FileError(f"{again}: two outputs name the same file")


def _check_device_tree(arguments: argparse.Namespace, config: GuestConfig) -> None:
    """A partial tree that somebody wrote by hand is neither lost nor left out in silence."""
    if config.device_tree and config.device_tree != arguments.output:
        raise FileError(
            f"{arguments.config}: device_tree names {config.device_tree} already; "
            f"take it out, or write that file (-o {config.device_tree})"
        )


def _outputs(arguments: argparse.Namespace, made: Completed) -> dict[str, bytes]:
    if arguments.dry_run:
        return {"-": _changes(arguments, made).encode("utf-8", "surrogateescape")}
    from dt_tools import blob

    outputs = {arguments.output: blob.write(made.partial)}
    if arguments.config_out is not None:
        outputs[arguments.config_out] = made.cfg()
    if arguments.bindings is not None:
        text = json_text(made.guest.bindings.to_json(), indent=2) + "\n"
        outputs[arguments.bindings] = text.encode()
    return outputs


def _changes(arguments: argparse.Namespace, made: Completed) -> str:
    """What writing would change in the files as they are, as unified diffs."""
    from vsmmu.cli.dry_run import text_diff, tree_diff

    name, config = arguments.output, arguments.config_out
    old = load_tree(name) if _is_there(name) else None
    changes = tree_diff(old, made.partial, name, name)
    if config is None:
        # Without a file to go to it is still what the partial tree needs beside it.
        given = arguments.config
        return changes + text_diff(_text(given), _cfg(made), given, given)
    before = _text(config) if _is_there(config) else None
    return changes + text_diff(before, _cfg(made), config, config)


def _is_there(name: str) -> bool:
    return name != "-" and os.path.isfile(name)


def _text(name: str) -> str | None:
    """A file's text; None for a configuration that came through stdin."""
    return None if name == "-" else read(name).decode("utf-8", "surrogateescape")


def _cfg(made: Completed) -> str:
    return made.cfg().decode("utf-8", "surrogateescape")
