# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu inspect`: the SMMUs and masters of boards."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vsmmu.cli.files import FileError, read, say, write
from vsmmu.cli.inputs import load_platform, platform_of

if TYPE_CHECKING:
    from dt_tools.platform import Platform

# From so many boards on a terminal gets a progress bar.
_MANY = 4
# What an ACPI IO Remapping Table begins with.
_IORT = b"IORT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "dtb", metavar="DTB", nargs="+", help="a board's tree, or an ACPI IORT (- for stdin)"
    )
    parser.add_argument("--json", action="store_true", help="JSON Lines: one object a board")
    parser.add_argument(
        "--html", metavar="FILE", help="write a page with a picture and tables (- for stdout)"
    )
    parser.add_argument(
        "--device",
        metavar="PATH",
        help="one device, by path or alias: node, interrupts, StreamIDs, guest",
    )
    parser.add_argument(
        "--diff",
        action="store_true",
        help="compare the SMMU sections of two boards; exit 3 when they differ",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print each board; a file that fails does not keep the others from being shown."""
    _check(arguments)
    if arguments.diff:
        return _diff(*arguments.dtb, as_json=arguments.json)
    if arguments.html is not None:
        return _html(arguments.dtb, arguments.html, as_json=arguments.json)
    codes = _Codes()
    shown = 0
    for name in _progress(arguments.dtb, sys.stdout.isatty()):
        with codes.kept():
            _show(name, arguments, first=not shown)
            shown += 1
    return codes.worst


def _check(arguments: argparse.Namespace) -> None:
    """Raises FileError for options that do not go together."""
    chosen = [o for o in ("device", "diff", "html") if getattr(arguments, o) not in (None, False)]
    if len(chosen) > 1:
        raise FileError(f"--{chosen[0]} and --{chosen[1]} do not go together")
    if arguments.diff and len(arguments.dtb) != 2:
        raise FileError(f"--diff compares two boards, not {len(arguments.dtb)}")
    if arguments.html == "-" and arguments.json:
        raise FileError("--html - and --json both write to stdout")


class _Codes:
    """The exit code over many boards: the worst of those that failed."""

    def __init__(self) -> None:
        self.worst = 0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Reports a failure of the input and goes on."""
        from dt_tools.errors import DtError

        try:
            yield
        except (DtError, FileError) as error:
            say(f"vsmmu: {error}")
            self.worst = max(self.worst, error.exit_code)


def _progress(names: list[str], busy: bool) -> Iterator[str]:
    """The names, with a bar on stderr for many; `busy`: stdout is on the terminal itself."""
    if len(names) < _MANY or busy or sys.stderr is None or not sys.stderr.isatty():
        yield from names
        return
    from rich.console import Console
    from rich.progress import Progress

    # By default rich would move stdout to its own console too, and that is stderr here.
    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
    with bar:
        yield from bar.track(names, description="inspect")


def _show(name: str, arguments: argparse.Namespace, *, first: bool) -> None:
    data = read(name)
    if data[:4] == _IORT:
        _show_iort(data, name, arguments, first=first)
        return
    platform = platform_of(data, name)
    if arguments.device is not None:
        _show_device(platform, arguments.device, as_json=arguments.json, first=first)
        return
    from dt_tools.report.jsonreport import inspect_report, to_line

    report = inspect_report(platform)
    if arguments.json:
        print(to_line(report))
        return
    from dt_tools.report.terminal import print_inspected

    if not first:
        print()
    print_inspected(report)


def _show_iort(data: bytes, name: str, arguments: argparse.Namespace, *, first: bool) -> None:
    if arguments.device is not None:
        raise FileError(f"{name}: an IORT has no device tree's paths; --device is for boards")
    from vsmmu.cli.iort_text import show

    if not first and not arguments.json:
        print()
    show(data, name, arguments.json)


def _show_device(platform: Platform, path: str, *, as_json: bool, first: bool) -> None:
    from dt_tools.report.explain import explain
    from dt_tools.report.jsonreport import to_line

    found = explain(platform, path)
    if as_json:
        print(to_line(found))
        return
    from dt_tools.report.explain_text import print_explained

    if not first:
        print()
    print_explained(found)


def _diff(first: str, second: str, *, as_json: bool) -> int:
    from dt_tools.report.diff import diff_reports, print_diff

    found = diff_reports(_report(first), _report(second))
    if as_json:
        from dt_tools.report.jsonreport import to_line

        print(to_line(found))
    else:
        print_diff(found)
    return 0 if found["equal"] else 3


def _html(names: list[str], target: str, *, as_json: bool) -> int:
    """Write one page for all boards that can be read; with `as_json` the objects go to stdout."""
    from dt_tools.report.html import assemble, board, index_row
    from dt_tools.report.jsonreport import to_line

    codes = _Codes()
    sections: list[str] = []
    rows = []
    for name in _progress(names, as_json and sys.stdout.isatty()):
        with codes.kept():
            report = _report(name)
            sections.append(board(report, len(sections)))
            rows.append(index_row(report))
            if as_json:
                print(to_line(report))
    if sections:
        write({target: assemble(sections, rows).encode()}, names)
    return codes.worst


def _report(name: str) -> dict[str, Any]:
    from dt_tools.report.jsonreport import inspect_report

    return inspect_report(load_platform(name))
