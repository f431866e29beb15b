# SPDX-License-Identifier: BSD-2-Clause
"""Named rules over a board, the guests that are to share it, and their partial trees.

`check` finds; it changes nothing and opens no file. A rule keeps its id in every command: what
`vsmmu guest-dtb` refuses by DT205 is an error DT205 here.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from dt_tools.checks import (
    board,
    builder,
    commands,
    described,
    devices,
    guests,
    partials,
    resources,
    streams,
)
from dt_tools.checks.pairs import PartialView, match
from dt_tools.checks.view import Board, Given, GuestInput, PartialTree
from dt_tools.dom0 import rules as _dom0  # noqa: F401 - declares its rules
from dt_tools.dom0less import ruleset as _dom0less  # noqa: F401
from dt_tools.pci import rules as _pci  # noqa: F401
from dt_tools.profiles import DEFAULT, Profile
from dt_tools.rules import SEVERITIES, Diagnosis, Rule, Severity, declared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dt_tools.platform import Platform

__all__ = [
    "COMMANDS_ONLY",
    "MAX_DIAGNOSES",
    "RULES",
    "SEVERITIES",
    "Diagnosis",
    "GuestInput",
    "PartialTree",
    "Rule",
    "Severity",
    "check",
    "match",
]

RULES = declared()
"""Every rule by id."""

COMMANDS_ONLY = commands.IDS | {id_ for id_ in RULES if id_[:4] in ("DT61", "DT62", "DT63")}
"""Rules that only other commands refuse by: the last are dom0's and dom0less's."""

# A hostile tree can break a rule in each of its nodes; of one group of rules so many are kept.
MAX_DIAGNOSES = 10_000


def check(
    platform: Platform,
    guests_: Sequence[GuestInput] = (),
    loose: Sequence[PartialTree] = (),
    *,
    profile: Profile = DEFAULT,
    address_bits: int = 40,
) -> tuple[Diagnosis, ...]:
    """Everything that is found, errors first, then by rule, file and path.

    Args:
        platform: the board.
        guests_: the configurations of guests that run at one time, each with its partial tree.
        loose: partial trees that no configuration goes with, as for dom0less.
        profile: the guest's address map and fixed numbers.
        address_bits: width of a guest physical address on the host.

    Raises:
        DtbError: a tree asks for more work than the platform's limit.
    """
    host = Board(platform)
    all_given = [Given(host, guest, profile.guest, address_bits) for guest in guests_]
    found = _stamped(board.check(host), platform.source, {})
    if guests_ or loose:
        # Notes on the board are for whoever is about to write a configuration.
        found = [one for one in found if one.severity != "note"]
    for given in all_given:
        others = [other for other in all_given if other is not given]
        found += _guest(host, given, others, profile)
    for partial in loose:
        found += _partial(PartialView(partial, host, None, profile.guest))
    return ordered(found)


def ordered(found: Iterable[Diagnosis]) -> tuple[Diagnosis, ...]:
    """Errors first, then by rule, file, line and path; each once."""
    rank = {severity: at for at, severity in enumerate(SEVERITIES)}
    return tuple(
        sorted(
            dict.fromkeys(found),
            key=lambda d: (rank[d.severity], d.rule, d.file, d.line or 0, d.path, d.fact),
        )
    )


def _guest(host: Board, given: Given, others: Sequence[Given], profile: Profile) -> list[Diagnosis]:
    groups = (
        devices.check(host, given, others),
        resources.check(host, given, others),
        resources.shared_devices(host, given),
        streams.check(host, given, others),
        guests.check(host, given, others),
    )
    file, lines = given.input.file, given.input.lines
    found = [one for group in groups for one in _stamped(group, file, lines)]
    inner: list[Diagnosis] = []
    if given.input.partial is not None:
        view = PartialView(given.input.partial, host, given, profile.guest)
        inner = _partial(view)
        found += _stamped(described.undescribed(view), file, lines)
    found += _stamped(builder.check(host, given, [*found, *inner]), file, lines)
    return found + inner


def _partial(view: PartialView) -> list[Diagnosis]:
    groups = (partials.check(view), described.check(view))
    return [one for group in groups for one in _stamped(group, view.file, {})]


def _stamped(group: Iterator[Diagnosis], file: str, lines: Mapping[str, int]) -> list[Diagnosis]:
    # A key that is missing is missing beside dtdev.
    def line(key: str | None) -> int | None:
        found = None if key is None else lines.get(key)
        return lines.get("dtdev") if found is None and key in ("iomem", "irqs") else found

    return [replace(one, file=file, line=line(one.key)) for one in islice(group, MAX_DIAGNOSES)]
