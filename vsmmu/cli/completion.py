# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu completion`: a completion script, made by shtab."""

from __future__ import annotations

import argparse

from vsmmu.cli.files import FileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise FileError("completion needs the package shtab: pip install shtab") from None
    from vsmmu.cli import build_parser

    print(shtab.complete(build_parser(), arguments.shell))
    return 0
