# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu config`: a guest configuration as xl reads it, and what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from dt_tools.json_text import json_text
from vsmmu.cli.files import FileError, plain, read, say
from vsmmu.cli.inputs import add_config_arguments, at, check_override

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xl_configs import Dialect, Host, Outcome, ParseResult

_FAILED_TO_READ = 3


class _ListIds(argparse.Action):
    """Prints the ids of all diagnostics and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from xl_configs.errors import DIAGNOSTICS

        parser._print_message(
            "".join(f"{id_}  {text}\n" for id_, text in DIAGNOSTICS.items()), sys.stdout
        )
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="everything that was read, as JSON")
    parser.add_argument(
        "--compat",
        choices=("xl", "xl-viommu"),
        help="print what `xl create -n` prints, and leave with its exit code: that of xl 4.20, "
        "or of the vIOMMU series",
    )
    parser.add_argument(
        "--no-strict",
        action="store_true",
        help="no warnings but those that xl prints too",
    )
    parser.add_argument(
        "--pcpus",
        metavar="N",
        type=_cpus,
        default=8,
        help="physical CPUs of the host, which decide what xl makes of cpus and vnuma "
        "(1 to 16384, default 8)",
    )
    parser.add_argument(
        "--nodes",
        metavar="N",
        type=_cpus,
        default=2,
        help="its NUMA nodes, each with the same number of CPUs (default 2)",
    )
    parser.add_argument(
        "--list-ids", action=_ListIds, nargs=0, help="list the ids of all diagnostics and exit"
    )


def _cpus(text: str) -> int:
    from xl_configs.specs.cpus import MOST_CPUS

    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 1 <= number <= MOST_CPUS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_CPUS}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Read, and print in one of three ways."""
    from xl_configs import Dialect, Host, parse
    from xl_configs.errors import ConfigError
    from xl_configs.guest_config import refused, with_overrides

    check_override(arguments.overrides)
    name = arguments.config
    if arguments.nodes > arguments.pcpus:
        raise FileError(f"--nodes {arguments.nodes}: more NUMA nodes than CPUs")
    host = Host(arguments.pcpus, arguments.nodes)
    dialect = Dialect(arguments.compat or "ours")
    try:
        data = read(name)
    except FileError as error:
        if not arguments.compat or not isinstance(error.__context__, OSError):
            raise
        _talk((f"Failed to read config file: {name}: {error.__context__.strerror}",))
        return _FAILED_TO_READ
    try:
        parsed = parse(with_overrides(data, name, arguments.overrides), name)
    except ConfigError as error:
        parsed = refused(error)
    if arguments.json:
        print(_json(parsed, name, dialect, host, strict=not arguments.no_strict))
    if arguments.compat:
        return _compat(parsed, name, dialect, host, quiet=arguments.json)
    return _ours(parsed, name, strict=not arguments.no_strict, quiet=arguments.json)


def _compat(parsed: ParseResult, name: str, dialect: Dialect, host: Host, *, quiet: bool) -> int:
    """What xl prints, and its exit code; 2 where it crashes."""
    from xl_configs import examine

    outcome = examine(parsed, name, dialect, host)
    if not quiet:
        _talk((f"Parsing config from {name}", *outcome.report))
        if outcome.config is not None:
            print(json_text(_shown(outcome.domain), indent=4))
    return 2 if outcome.exit_code < 0 else outcome.exit_code


def _ours(parsed: ParseResult, name: str, *, strict: bool, quiet: bool) -> int:
    """The guest as a tidy configuration, and what is wrong with the one given."""
    from xl_configs import examine
    from xl_configs.printer import to_cfg

    outcome = examine(parsed, name)
    if not quiet:
        for found in _diagnostics(outcome, parsed, name, strict=strict):
            place = at(name, found["line"])
            say(f"vsmmu: {place}: {found['severity']} {found['id']}: {found['message']}")
        if outcome.config is not None:
            _show(to_cfg(outcome.config))
    return 0 if outcome.config is not None else 2


def _show(text: str) -> None:
    """A configuration to stdout: byte for byte, unless it would reach a terminal."""
    if sys.stdout.isatty():
        text = "".join(f"{plain(line)}\n" for line in text.splitlines())
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))


def _talk(lines: Sequence[str]) -> None:
    """Xl's lines to stderr: byte for byte, unless they would reach a terminal."""
    if sys.stderr is None:
        return
    for line in lines:
        text = plain(line) if sys.stderr.isatty() else line
        print(_readable(text), file=sys.stderr)


def _readable(text: str) -> str:
    """A text in which bytes that are no UTF-8 are backslash escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


_DEEPEST = 64


def _shown(value: Any) -> Any:
    """A value as JSON can hold it; a list nested deeper than ``_DEEPEST`` is named only."""
    if isinstance(value, str):
        return _readable(value)
    if isinstance(value, dict):
        return {_readable(name): _shown(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        depth = _depth(value)
        if depth > _DEEPEST:
            return f"<list nested {depth} deep>"
        return [_shown(item) for item in value]
    return value


def _depth(value: Any) -> int:
    depth = 0
    layer: list[Any] = [value]
    while layer := [item for item in layer if isinstance(item, list | tuple)]:
        depth += 1
        layer = [item for held in layer for item in held]
    return depth


def _diagnostics(
    outcome: Outcome, parsed: ParseResult, name: str, *, strict: bool
) -> list[dict[str, Any]]:
    """Errors and warnings by line: file, line, id, severity, message and xl's own words."""
    from xl_configs.guest_config import syntax_errors

    config, error = outcome.config, outcome.error
    warnings = outcome.said if config is None else config.warnings
    rows = [
        (warning.line, warning.id, "warning", warning.message, warning.report)
        for warning in warnings
        if strict or warning.report
    ]
    if not parsed.ok:
        rows += [
            (found.line, found.id, "error", found.message, found.report[0])
            for found in syntax_errors(parsed, name)
        ]
    elif error is not None:
        printed = "\n".join(error.report[-1:])
        rows.append((error.line, error.id, "error", error.message, printed))
    return [
        {
            "file": name,
            "line": line,
            "id": id_,
            "severity": severity,
            "message": _readable(message),
            "xl": _readable(report) or None,
        }
        for line, id_, severity, message, report in rows
    ]


def _json(parsed: ParseResult, name: str, dialect: Dialect, host: Host, *, strict: bool) -> str:
    """The whole of it: `vsmmu.config/1`."""
    from xl_configs import Dialect, examine
    from xl_configs.guest_config import guest_json

    compat = dialect if dialect is not Dialect.OURS else Dialect.STOCK
    ours = examine(parsed, name, dialect)
    xl = examine(parsed, name, compat, host)
    shown = {
        "schema": "vsmmu.config/1",
        "file": _readable(name),
        "ok": ours.config is not None,
        "xl": compat.value,
        "xl_exit": xl.exit_code,
        "report": list(xl.report),
        "settings": [
            {"name": s.name, "op": s.op, "line": s.line, "value": s.value} for s in parsed.settings
        ],
        "effective": parsed.effective,
        "guest": None if ours.config is None else guest_json(ours.config),
        "xl_config": None if xl.config is None else dict(xl.domain),
        "diagnostics": _diagnostics(ours, parsed, name, strict=strict),
    }
    return json_text(_shown(shown), indent=2)
