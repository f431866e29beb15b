# SPDX-License-Identifier: BSD-2-Clause
"""The command `vsmmu`: one module for each subcommand.

Exit codes: 0 done; 1 usage, or a file that cannot be read or written; 2 malformed input or an
unknown path; 3 an expectation or a check does not hold; 4 refused by policy. Data goes to stdout,
everything else to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from vsmmu import __version__

_COMMANDS = {
    "inspect": "show the SMMUs, StreamIDs and masters of boards",
    "config": "read a guest configuration as xl does, and say what is wrong with it",
    "check": "check a board, guest configurations and partial trees against each other",
    "guest-dtb": "build a guest's device tree and its vMasterID map",
    "partial-dtb": "write a guest's partial tree and its completed configuration",
    "dom0-dtb": "build dom0's device tree, a vSMMU for each physical SMMU",
    "dom0less-dtb": "build the host's tree with guests that Xen starts itself",
    "run": "run scenarios on the emulator and check what is expected of them",
    "replay": "play recordings of drivers and SMMUv3 programs, and say where the model differs",
    "explain": "decode an STE, CD, command, event record or register, and say what is illegal",
    "completion": "print a shell completion script",
}


class Parser(argparse.ArgumentParser):
    """argparse with this project's exit code for a usage error, 1, and for lost output."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse drops an error of the stream; `vsmmu --help >/dev/full` must not succeed.
        stream = file or sys.stderr
        stream.write(message)
        stream.flush()

    def error(self, message: str) -> NoReturn:
        """Print usage and the message, exit 1."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def build_parser(only: str | None = None) -> Parser:
    """The parser; with `only`, just that subcommand is filled in, to keep the start fast."""
    parser = Parser(
        prog="vsmmu",
        description="Give a Xen guest its own SMMUv3: device trees and an emulator.",
        epilog=(
            "exit codes: 0 done, 1 usage or a file that cannot be read or written, "
            "2 malformed input or an unknown path, 3 an expectation does not hold or a check "
            "found something, 4 refused by policy"
        ),
    )
    parser.add_argument("--version", action="version", version=f"vsmmu {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        if only is None or only == name:
            module(name).add_arguments(sub)
    return parser


def module(name: str) -> Any:
    """The module of a subcommand: it has `add_arguments(parser)` and `run(arguments) -> int`."""
    return import_module(f"vsmmu.cli.{name.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = next((a for a in arguments if a in _COMMANDS), None)
    from vsmmu.cli.files import guarded

    def run() -> int:
        parser = build_parser(named or "")
        parsed, rest = parser.parse_known_args(arguments)
        if rest:
            _take_rest(parser, parsed, rest)
        return int(module(parsed.command).run(parsed))

    return guarded(run)


def _take_rest(parser: Parser, parsed: argparse.Namespace, rest: list[str]) -> None:
    """Adds the files or KEY=VALUE arguments behind an option, which argparse leaves over."""
    name = next((n for n in ("overrides", "inputs", "dtb") if hasattr(parsed, n)), None)
    words = (r == "-" or not r.startswith("-") for r in rest)
    fits = all(words) and all("=" in r or name != "overrides" for r in rest)
    if name is None or not fits:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    setattr(parsed, name, [*getattr(parsed, name), *rest])
