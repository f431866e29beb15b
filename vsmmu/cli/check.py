# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu check`: what is wrong with a board, the guests that share it, and their partial trees."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt_tools.json_text import json_text
from vsmmu.cli.files import FileError, read, write
from vsmmu.cli.guest_options import add_pci_arguments, load_topology
from vsmmu.cli.inputs import add_gpaddr_argument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dt_tools.checks import Diagnosis, GuestInput, PartialTree, Rule
    from dt_tools.pci import Topology
    from dt_tools.platform import Platform

FOUND = 3
SCHEMA = "vsmmu.check/1"
_MAGIC = b"\xd0\x0d\xfe\xed"
# Input that is not read is not checked: it must not pass for sound.
_UNREAD = ("DT001", "XL001", "XL002", "XL003")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("host", metavar="HOST.dtb", nargs="?", help="the board (- for stdin)")
    parser.add_argument(
        "inputs",
        metavar="GUEST.cfg|PARTIAL.dtb",
        nargs="*",
        default=[],
        help="guests that run at one time, and partial trees; what a file is its content tells",
    )
    parser.add_argument("--json", action="store_true", help="the findings as one JSON object")
    parser.add_argument(
        "--sarif", metavar="FILE", help="write the findings as SARIF 2.1.0 too (- for stdout)"
    )
    parser.add_argument(
        "-W", metavar="no-RULE", action="append", default=[], help="switch a rule off"
    )
    parser.add_argument(
        "-E", metavar="RULE", action="append", default=[], help="make a rule's findings errors"
    )
    parser.add_argument(
        "--show",
        metavar="N",
        type=_count,
        default=10,
        help="findings of one rule to print before counting the rest (default 10, 0 for all)",
    )
    add_pci_arguments(parser)
    add_gpaddr_argument(parser)
    parser.add_argument(
        "--list",
        metavar="RULE",
        nargs="*",
        help="explain all rules, or these, and check nothing; with --json as JSON",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check and print; 3 when there is an error or a warning."""
    from vsmmu.cli import check_text

    rules = all_rules()
    if arguments.list is not None:
        return _explain(arguments, rules)
    if arguments.host is None:
        raise FileError("check: which board? give HOST.dtb")
    if arguments.json and arguments.sarif == "-":
        raise FileError("--json and --sarif - both write to stdout: give --sarif a file")
    off, grave = _switches(arguments, rules)
    topology = load_topology(arguments.pci_topology)
    domains = dict(arguments.pci_domain)
    job = Job(arguments.host, arguments.inputs, arguments.gpaddr_bits, topology, domains)
    found = _switched(job.found, off, grave)
    if arguments.sarif:
        from dt_tools.report.sarif import to_sarif
        from vsmmu import __version__

        text = to_sarif(found, rules, __version__)
        write({arguments.sarif: text.encode()}, [arguments.host, *arguments.inputs])
    if arguments.json:
        print(_json(job, found))
    elif arguments.sarif != "-":
        check_text.print_findings(found, job.files, sys.stdout, show=arguments.show)
    return FOUND if any(one.severity != "note" for one in found) else 0


def _explain(arguments: argparse.Namespace, rules: Mapping[str, Rule]) -> int:
    from vsmmu.cli import check_text

    asked = [name for text in arguments.list for name in text.split(",")]
    names = dict.fromkeys(_known(name, rules, "--list") for name in asked)
    shown = [rules[name] for name in names or rules]
    if arguments.json:
        print(check_text.rules_json(shown))
    else:
        check_text.print_rules(shown, sys.stdout)
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, not {text[:40]!r}")
    return int(text)


def all_rules() -> dict[str, Rule]:
    """The rules of trees and guests, and the diagnostics of the configuration reader."""
    from dt_tools.checks import RULES, Rule
    from vsmmu.cli.check_text import XL_RULES
    from xl_configs.errors import DIAGNOSTICS

    rules = dict(RULES)
    for id_, title in DIAGNOSTICS.items():
        severity: Any = "error" if id_.startswith("XL0") else "warning"
        rules[id_] = Rule(id_, severity, title, *XL_RULES[id_])
    return rules


def _known(name: str, rules: Mapping[str, Rule], option: str) -> str:
    import difflib

    if name not in rules:
        near = difflib.get_close_matches(name.upper(), rules, 1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise FileError(f"{option} {name}: no such rule{hint}")
    return name


def _switches(
    arguments: argparse.Namespace, rules: Mapping[str, Rule]
) -> tuple[set[str], set[str]]:
    """Rules that are off, and rules that are errors."""
    off: set[str] = set()
    for text in arguments.W:
        for name in text.split(","):
            if not name.startswith("no-"):
                raise FileError(f"-W {name}: expected no-RULE, as in -W no-DT204")
            id_ = _known(name.removeprefix("no-"), rules, "-W")
            if id_ in _UNREAD:
                raise FileError(f"-W {name}: input that cannot be read cannot be switched off")
            off.add(id_)
    grave = {_known(name, rules, "-E") for text in arguments.E for name in text.split(",")}
    return off, grave


def _switched(found: Sequence[Diagnosis], off: set[str], grave: set[str]) -> tuple[Diagnosis, ...]:
    from dataclasses import replace

    from dt_tools.checks import ordered

    kept = (one for one in found if one.rule not in off)
    return ordered(replace(one, severity="error") if one.rule in grave else one for one in kept)


class Job:
    """The inputs of one run, read, matched and checked.

    Attributes:
        found: everything, errors first.
        files: every file that was looked at, in order.
        guests: the configurations that xl accepts, each with its partial tree.
        loose: partial trees that no configuration goes with.
    """

    def __init__(
        self,
        host: str,
        names: Sequence[str],
        bits: int,
        topology: Topology | None = None,
        domains: Mapping[str, int] | None = None,
    ) -> None:
        from dt_tools.checks import check, match, ordered

        platform = _board(host)
        self.host = host
        self.files = [host, *names]
        self.topology, self.domains = topology, domains or {}
        self.rejected: list[Diagnosis] = []
        self.guests: list[GuestInput] = []
        self.loose: list[PartialTree] = []
        for name in names:
            self._read(name)
        self._named()
        without = [g for g in self.guests if g.partial is None]
        pairs = match(without, self.loose)
        for at, partial in pairs.items():
            self._give(without[at], self.loose[partial])
        self.loose = [p for at, p in enumerate(self.loose) if at not in pairs.values()]
        done = check(platform, self.guests, self.loose, address_bits=bits)
        self.found = ordered([*self.rejected, *done])

    def _read(self, name: str) -> None:
        from dt_tools.dts import is_source

        data = read(name)
        if data[:4] == _MAGIC or is_source(data, name):
            tree = self._tree(name, None if name != "-" else data)
            if tree is not None:
                self.loose.append(tree)
        else:
            self._config(name, data)

    def _tree(self, name: str, data: bytes | None = None) -> PartialTree | None:
        """A partial tree; None, and a finding, when it is broken. Raises FileError."""
        from dt_tools import blob
        from dt_tools.checks import RULES, PartialTree
        from dt_tools.errors import DtbError
        from vsmmu.cli.inputs import load_tree

        try:
            tree = load_tree(name) if data is None else blob.read(data, name)
        except DtbError as error:
            where = "" if error.offset is None else f"offset {error.offset:#x}: "
            fix = error.hint or "build it again"
            one = RULES["DT001"].at(error.path or "/", f"{where}{error.reason}", fix)
            self._reject(one, name, None)
            return None
        return PartialTree(name, tree)

    def _config(self, name: str, data: bytes) -> None:
        from dt_tools.checks import Diagnosis, GuestInput
        from xl_configs import ConfigError, load, parse

        try:
            config = load(data, name)
        except ConfigError as error:
            one = Diagnosis(error.id, "error", "", error.reason, error.fix)
            self._reject(one, name, error.line)
            return
        for warning in config.warnings:
            one = Diagnosis(warning.id, "warning", "", warning.message, "")
            self._reject(one, name, warning.line)
        lines = {setting.name: setting.line for setting in parse(data, name).settings}
        size = _ramdisk_size(name, config.ramdisk)
        guest = GuestInput(name, config, lines, None, size, self.topology, self.domains)
        self.guests.append(guest)

    def _reject(self, one: Diagnosis, name: str, line: int | None) -> None:
        from dataclasses import replace

        self.rejected.append(replace(one, file=name, line=line))

    def _give(self, guest: GuestInput, partial: PartialTree) -> None:
        from dataclasses import replace

        self.guests[self.guests.index(guest)] = replace(guest, partial=partial)

    def _named(self) -> None:
        """Give each guest the tree that its device_tree names: an argument, or a file at hand.

        The name is relative to the configuration's folder here, or to the current one.
        """
        for guest in list(self.guests):
            wanted = guest.config.device_tree
            if not wanted:
                continue
            places = [str(Path(guest.file).parent / wanted), wanted]
            given = next((p for p in self.loose if _same(p.file, places)), None)
            if given is None:
                given = self._at_hand(places)
            else:
                self.loose.remove(given)
            if given is not None:
                self._give(guest, given)

    def _at_hand(self, places: Sequence[str]) -> PartialTree | None:
        for place in dict.fromkeys(places):
            try:
                if not Path(place).is_file():
                    continue
                found = self._tree(place)
            except (FileError, OSError, ValueError):
                continue
            self.files.append(place)
            return found
        return None


def _board(name: str) -> Platform:
    """The board. Raises FileError, also when it is a guest's configuration; DtbError."""
    from dt_tools.errors import DtbError
    from vsmmu.cli.inputs import load_platform

    try:
        return load_platform(name)
    except DtbError:
        if name != "-" and _is_config(name):
            reason = f"check: {name} is a guest configuration; the board comes first"
            raise FileError(reason) from None
        raise


def _is_config(name: str) -> bool:
    from xl_configs import ConfigError, load

    data = read(name)
    if data[:4] == _MAGIC:
        return False
    try:
        load(data, name)
    except ConfigError:
        return False
    return True


def _ramdisk_size(file: str, ramdisk: str | None) -> int | None:
    """Bytes of the ramdisk, None when it is not on this machine."""
    try:
        return (Path(file).parent / ramdisk).stat().st_size if ramdisk else None
    except (OSError, ValueError):
        return None


def _same(file: str, places: Sequence[str]) -> bool:
    """Whether an argument is the file that device_tree names, or has its name."""
    import os

    try:
        if any(os.path.realpath(file) == os.path.realpath(place) for place in places):
            return True
    except (OSError, ValueError):
        return False
    return Path(file).name == Path(places[-1]).name


def _json(job: Job, found: Sequence[Diagnosis]) -> str:

    from dt_tools.checks import SEVERITIES
    from dt_tools.report.sarif import readable

    guests = [
        {
            "file": readable(guest.file),
            "name": readable(guest.config.name),
            "partial": None if guest.partial is None else readable(guest.partial.file),
        }
        for guest in job.guests
    ]
    shown = {
        "schema": SCHEMA,
        "host": readable(job.host),
        "guests": guests,
        "partials": [readable(partial.file) for partial in job.loose],
        "counts": {s: sum(one.severity == s for one in found) for s in SEVERITIES},
        "findings": [_finding(one) for one in found],
    }
    return json_text(shown, indent=2)


def _finding(one: Diagnosis) -> dict[str, Any]:
    from dt_tools.report.sarif import readable

    return {
        "id": one.rule,
        "severity": one.severity,
        "file": readable(one.file),
        "line": one.line,
        "path": readable(one.path) or None,
        "fact": readable(one.fact),
        "fix": readable(one.fix) or None,
    }
