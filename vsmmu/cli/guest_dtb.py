# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu guest-dtb`: a guest's device tree and its vMasterID map."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vsmmu.cli.files import FileError, say, write
from vsmmu.cli.inputs import (
    add_config_arguments,
    add_gpaddr_argument,
    check_override,
    load_config,
    load_partial,
    load_platform,
    tree_output,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument(
        "--host", metavar="HOST.dtb", help="the board; needed for a guest with devices"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="the guest's DTB, or its source if FILE ends in .dts (- for stdout)",
    )
    parser.add_argument(
        "--bindings", metavar="FILE", help="write vMasterID -> (physical SMMU, pMasterID) as JSON"
    )
    add_gpaddr_argument(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Build and write."""
    from dt_tools.guest import build_guest

    check_override(arguments.overrides)
    config = load_config(arguments.config, arguments.overrides)
    if config.dtdev and not arguments.host:
        raise FileError(f"{arguments.config}: the guest has devices (dtdev); give --host HOST.dtb")
    platform = load_platform(arguments.host) if arguments.host else None
    built = build_guest(
        config,
        platform=platform,
        partial=load_partial(config),
        ramdisk_size=_ramdisk_size(config.ramdisk),
        address_bits=arguments.gpaddr_bits,
    )
    outputs = {arguments.output: tree_output(built.tree, arguments.output)}
    if arguments.bindings == arguments.output:
        raise FileError(f"{arguments.output}: --output and --bindings name the same file")
    if arguments.bindings is not None:
        text = json.dumps(built.bindings.to_json(), indent=2) + "\n"
        outputs[arguments.bindings] = text.encode()
    write(outputs, (arguments.config, arguments.host, config.device_tree))
    if not arguments.quiet:
        for notice in built.notices:
            say(f"vsmmu: notice: {notice}")
    return 0


def _ramdisk_size(path: str | None) -> int | None:
    """Bytes of the ramdisk; None, with a notice, when it is not on this machine."""
    if path is None:
        return None
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        say(f"vsmmu: notice: ramdisk {path} is not here: linux,initrd-* are left out")
        return None
