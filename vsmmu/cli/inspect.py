# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu inspect`: the SMMUs and masters of boards."""

from __future__ import annotations

import argparse
import sys

from vsmmu.cli.inputs import load_platform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dtb", metavar="DTB", nargs="+", help="a board's tree (- for stdin)")
    parser.add_argument("--json", action="store_true", help="JSON Lines: one object a board")


def run(arguments: argparse.Namespace) -> int:
    """Print each board; a file that fails does not keep the others from being shown."""
    from dt_tools.errors import DtError
    from vsmmu.cli.files import FileError, say

    code = 0
    for name in arguments.dtb:
        try:
            _show(name, as_json=arguments.json)
        except (DtError, FileError) as error:
            say(f"vsmmu: {error}")
            code = max(code, error.exit_code)
    return code


def _show(name: str, *, as_json: bool) -> None:
    from dt_tools.report.jsonreport import inspect_report, to_line

    platform = load_platform(name)
    if as_json:
        print(to_line(inspect_report(platform)))
        return
    from dt_tools.report.terminal import print_report

    print_report(platform, sys.stdout)
