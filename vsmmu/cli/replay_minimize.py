# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu replay --minimize`: the smallest recording that fails as a given one does."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dt_tools.json_text import json_text
from vsmmu.cli import replay_vsmmu
from vsmmu.cli.counter import counted
from vsmmu.cli.files import FileError, say, write

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vsmmu.recording.divergence import Divergence
    from vsmmu.recording.minimize import Play, Smallest

SCHEMA = "vsmmu.minimize/1"
# Bytes of a recording, unpacked, that can be minimized: all of it is in memory.
_WHOLE_MAX = 256 << 20
_REPLAYS_MAX = 1_000_000


def run(arguments: argparse.Namespace) -> int:
    """Minimize one recording and write what is left; 0 once it is written.

    Raises:
        FileError: options that do not go together; a file that cannot be read or written.
        RecordingError: the file is malformed.
        NoFailureError: it replays without divergence.
    """
    from vsmmu.recording.format import Reader
    from vsmmu.recording.minimize import REPLAYS_MAX, Minimizer, NoFailureError

    name = _one(arguments)
    blocks = replay_vsmmu.again(name, _limited(name))
    reader = Reader(blocks(), name)
    records = list(reader)
    play, references = _plays(arguments, name, b"".join(blocks()))
    minimizer = Minimizer(
        reader.header.fields, reader.header.ram, records, play, references,
        limit=arguments.replays or REPLAYS_MAX,
        progress=lambda replays, units: counted(replays, f"replays, {units:,} units left"),
    )  # fmt: skip
    try:
        found = minimizer.run()
    except NoFailureError as error:
        raise NoFailureError(f"{name}: {error}") from None
    finally:
        counted(0, "", end=True)
    write({arguments.minimize: _packed(arguments.minimize, found.data)}, (name,))
    _tell(arguments, found)
    return 0


def _one(arguments: argparse.Namespace) -> str:
    if arguments.minimize is None:
        raise FileError("--replays bounds --minimize: give --minimize OUT too")
    if len(arguments.inputs) != 1:
        raise FileError("--minimize takes one recording")
    if arguments.replays is not None and not 0 < arguments.replays <= _REPLAYS_MAX:
        raise FileError(f"--replays: expected 1 to {_REPLAYS_MAX}, not {arguments.replays}")
    if arguments.minimize == "-" and arguments.json:
        raise FileError("--minimize -: stdout has the JSON; give a file")
    return str(arguments.inputs[0])


def _limited(name: str) -> Iterable[bytes]:
    from vsmmu.cli.unpack import unpacked

    total = 0
    for block in unpacked(name):
        total += len(block)
        if total > _WHOLE_MAX:
            raise FileError(f"{name}: more than {_WHOLE_MAX >> 20} MiB, too long to minimize")
        yield block


def _plays(arguments: argparse.Namespace, name: str, whole: bytes) -> tuple[Play, list[Play]]:
    """The replay that fails, and those one of which has to agree with what is left."""
    from vsmmu.recording.both import Both
    from vsmmu.recording.format import Reader
    from vsmmu.recording.physical import Physical
    from vsmmu.recording.player import Player, Target

    def on(target: Target, data: bytes) -> Divergence | None:
        return Player(Reader((data,), name), target).play().divergence

    caching = arguments.caching or "both"
    if not arguments.vsmmu:
        return (lambda data: on(Both() if caching == "both" else Physical(caching), data)), []
    from vsmmu.recording.guest import Guest

    guest, _ = replay_vsmmu.play(name, lambda: iter((whole,)), arguments, lambda number: None)
    chosen = guest.choice

    def through(data: bytes) -> Divergence | None:
        return on(Guest(chosen, replay_vsmmu.stream_ids((data,), name)), data)

    return through, [lambda data: on(Both(), data), lambda data: on(Physical("none"), data)]


def _packed(name: str, data: bytes) -> bytes:
    if not name.endswith(".xz"):
        return data
    from vsmmu.recording.writer import packed

    return packed(data)


def _tell(arguments: argparse.Namespace, found: Smallest) -> None:
    """Sizes before and after, and how it fails."""
    out, complete = arguments.minimize, found.complete
    if arguments.json:
        sizes = {
            when: {"records": records, "bytes": size}
            for when, (records, size) in (("before", found.before), ("after", found.after))
        }
        shown = {
            "schema": SCHEMA, "file": arguments.inputs[0], "out": out, **sizes,
            "replays": found.replays, "complete": complete,
            "divergence": found.divergence.to_json(),
        }  # fmt: skip
        print(json_text(shown))
        return
    (before, size), (after, left) = found.before, found.after
    more = "" if complete else "; more may go with more --replays"
    say(
        f"vsmmu: {out}: {after:,} of {before:,} records, {left:,} of {size:,} bytes,"
        f" {found.replays:,} replays{more}"
    )
    say(f"vsmmu: {out}: {found.divergence}")
