# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu dom0-dtb`: dom0's device tree, a vSMMU for each physical SMMU."""

from __future__ import annotations

import argparse

from vsmmu.cli.files import say, write
from vsmmu.cli.inputs import load_platform, tree_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("host", metavar="HOST.dtb", help="the board (- for stdin)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="dom0's DTB, or its source if FILE ends in .dts (- for stdout)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Build and write."""
    from dt_tools.dom0 import build_dom0

    tree = build_dom0(load_platform(arguments.host))
    write({arguments.output: tree_output(tree, arguments.output)}, (arguments.host,))
    if not arguments.quiet:
        for notice in tree.notices:
            say(f"vsmmu: notice: {notice}")
    return 0
