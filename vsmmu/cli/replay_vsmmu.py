# SPDX-License-Identifier: BSD-2-Clause
"""Recordings of `vsmmu replay --vsmmu`: the machine of the user's choice, and playing on it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from vsmmu.cli.files import FileError
from vsmmu.cli.unpack import unpacked

if TYPE_CHECKING:
    from vsmmu.recording.guest import Guest
    from vsmmu.recording.guest_machine import Choice
    from vsmmu.recording.player import Played

# Of what is read from stdin, which is played twice.
_KEPT_MAX = 256 << 20
_SMMUS_MAX = 64
# Characters shown of an option.
_SHOWN = 40
# Caching of the physical SMMUs: what is played for "both", the plain one first.
_BOTH = ("none", "hostile")

Blocks = Callable[[], Iterable[bytes]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that choose the machine."""
    group = parser.add_argument_group("the machine under a recorded guest (--vsmmu)")
    group.add_argument(
        "--guest", choices=("domU", "dom0"), help="behind a stage 2 that is no identity, or 1:1"
    )
    group.add_argument(
        "--smmus", metavar="N", type=_smmus, help="physical SMMUs its streams are spread over (2)"
    )
    group.add_argument(
        "--features",
        metavar="FIELD=N,...",
        type=_features,
        help="fields of the physical identification registers, as in oas=4; else all that there is",
    )
    group.add_argument(
        "--seed", metavar="N", type=_seed, help="another interleaving of the engines"
    )


def _smmus(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:4]) <= _SMMUS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {_SMMUS_MAX}, not {text[:_SHOWN]!r}")
    return int(text)


def _seed(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"expected 0 to 2^64-1, not {text[:_SHOWN]!r}")
    return value


def _features(text: str) -> dict[str, int]:
    fields = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = int(value, 0)
        except ValueError:
            number = -1
        if len(name) > _SHOWN or not 0 <= number < 1 << 32:
            raise argparse.ArgumentTypeError(f"expected FIELD=NUMBER, not {part[:_SHOWN]!r}")
        fields[name.strip().lower()] = number
    return fields


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that mean nothing without --vsmmu. Raises FileError."""
    for name in ("guest", "smmus", "features", "seed"):
        if getattr(arguments, name) is not None and not arguments.vsmmu:
            raise FileError(f"--{name} chooses the machine under a guest: give --vsmmu too")


def choice(arguments: argparse.Namespace, caching: str) -> Choice:
    """The machine. Raises FileError for features that no machine has."""
    from vsmmu.recording.guest_machine import Choice, physical_features

    features = arguments.features or {}
    try:
        physical_features(features)
    except ValueError as error:
        raise FileError(f"--features: {error}") from None
    return Choice(
        arguments.smmus or 2, arguments.guest or "domU", features, arguments.seed or 0, caching
    )


def cachings(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What is played: on SMMUs that keep nothing, then on some that keep what they may."""
    return _BOTH if arguments.caching in (None, "both") else (arguments.caching,)


def again(name: str, blocks: Iterable[bytes]) -> Blocks:
    """A recording that can be read more than once: a file anew, stdin from memory.

    Raises:
        FileError: stdin has too much.
    """
    if name != "-":
        return lambda: unpacked(name)
    kept, total = [], 0
    for block in blocks:
        total += len(block)
        if total > _KEPT_MAX:
            raise FileError(f"-: more than {_KEPT_MAX >> 20} MiB: give a file")
        kept.append(block)
    return lambda: iter(kept)


def stream_ids(blocks: Iterable[bytes], name: str) -> set[int]:
    """StreamIDs of a recording's devices. Raises RecordingError."""
    from vsmmu.recording.format import Dma, Reader
    from vsmmu.recording.guest_machine import STREAMS_MAX

    reader, found = Reader(blocks, name), set[int]()
    for record in reader:
        if type(record) is Dma:
            found.add(record.sid)
            if len(found) > STREAMS_MAX:
                raise reader.error(f"more than {STREAMS_MAX} StreamIDs")
    return found


def play(
    name: str, source: Blocks, arguments: argparse.Namespace, each: Callable[[int], object]
) -> tuple[Guest, Played]:
    """Play a recording through a vSMMU on each machine; the earliest divergence counts.

    Raises:
        RecordingError: the file is malformed.
        RefusedError: no vSMMU can stand in for what was recorded, on these machines.
    """
    sids = stream_ids(source(), name)
    played = [_one(name, source, choice(arguments, c), sids, each) for c in cachings(arguments)]
    return min(played, key=_order)


def _order(one: tuple[Guest, Played]) -> float:
    found = one[1].divergence
    return float("inf") if found is None else found.record


def _one(
    name: str, source: Blocks, chosen: Choice, sids: set[int], each: Callable[[int], object]
) -> tuple[Guest, Played]:
    from vsmmu.recording.format import Reader, RecordingError
    from vsmmu.recording.guest import Guest
    from vsmmu.recording.guest_machine import RefusedError
    from vsmmu.recording.player import Player

    guest = Guest(chosen, sids)
    try:
        return guest, Player(Reader(source(), name), guest).play(each)
    except RefusedError as error:
        raise RefusedError(f"{name}: {error}") from None
    except RecordingError:
        lacks = _lacks(name, source, chosen, sids) if chosen.features else None
        if lacks is None:
            raise
        raise RefusedError(f"{name}: --features: {lacks}") from None


def _lacks(name: str, source: Blocks, chosen: Choice, sids: set[int]) -> str | None:
    """Why there is no machine with the chosen features, where there is one with all of them."""
    from dataclasses import replace

    from vsmmu.recording.format import Reader
    from vsmmu.recording.guest_machine import GuestMachine
    from vsmmu.recording.identification import Ahead

    reader = Reader(source(), name)
    ids, ram = Ahead(reader).ids, reader.header.ram
    for features in ({}, chosen.features):
        try:
            GuestMachine(replace(chosen, features=features), ids, ram, sids)
        except ValueError as error:
            return str(error) if features else None
    return None


def otherwise(guest: Guest) -> Iterator[str]:
    """Fields in which the vSMMU identifies itself otherwise than the recorded SMMU did."""
    for field, recorded, mine in guest.advertised():
        yield f"{field} {mine:#x} (recorded {recorded:#x})"
