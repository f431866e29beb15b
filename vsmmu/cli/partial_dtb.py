# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu partial-dtb`: the partial tree of a guest's devices, and its completed configuration."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError, say, write
from vsmmu.cli.inputs import (
    add_config_arguments,
    add_gpaddr_argument,
    check_override,
    load_config,
    load_platform,
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
    parser.add_argument(
        "--bindings", metavar="FILE", help="write vMasterID -> (physical SMMU, pMasterID) as JSON"
    )
    parser.add_argument(
        "--interrupts",
        choices=("drop", "refuse"),
        default="drop",
        help="what becomes of those that are not SPIs of the GIC (default drop)",
    )
    add_gpaddr_argument(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print partial tree (as source) and configuration, write nothing",
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
        interrupts=arguments.interrupts,
        address_bits=arguments.gpaddr_bits,
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
        from dt_tools.dts import to_dts

        return {"-": f"{to_dts(made.partial)}\n".encode() + made.cfg()}
    from dt_tools import blob

    outputs = {arguments.output: blob.write(made.partial)}
    if arguments.config_out is not None:
        outputs[arguments.config_out] = made.cfg()
    if arguments.bindings is not None:
        import json

        text = json.dumps(made.guest.bindings.to_json(), indent=2) + "\n"
        outputs[arguments.bindings] = text.encode()
    return outputs
