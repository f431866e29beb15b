# SPDX-License-Identifier: BSD-2-Clause
"""`vsmmu replay`: recordings of real drivers, and recorded programs, on the model.

What a file is shows in its contents: a recording starts with a header line that says so, anything
else is a case a line.
"""

from __future__ import annotations

import argparse
import json
from itertools import chain
from typing import TYPE_CHECKING

from vsmmu.cli import replay_vsmmu
from vsmmu.cli.files import FileError, say
from vsmmu.cli.unpack import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vsmmu.cli.replay_recordings import Recordings

DIFFERS = 3
# A first line that is longer is no header.
_HEADER_MAX = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "inputs",
        metavar="FILE",
        nargs="+",
        help="a recording, or a case a line; may be packed with xz; - reads stdin",
    )
    parser.add_argument(
        "--vsmmu",
        action="store_true",
        help="play a recording through a guest's vSMMU; of cases, what guests do to theirs",
    )
    parser.add_argument(
        "--caching",
        choices=("both", "none", "normal", "hostile"),
        help="what the SMMU keeps: nothing, what it used, or whatever it may; for recordings "
        "none and hostile side by side (both) unless said otherwise, for cases normal",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a recording (vsmmu.replay/1), one a case: id, results, regs",
    )
    parser.add_argument(
        "--minimize",
        metavar="OUT",
        help="write the smallest recording that fails as FILE does; packed if OUT ends in .xz",
    )
    parser.add_argument(
        "--replays", metavar="N", type=int, help="replays that --minimize may take (2000)"
    )
    replay_vsmmu.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Play and print; 3 where something differs from what a file says.

    A file that cannot be played does not keep the others from being played.
    """
    from vsmmu.cli.replay_recordings import Recordings

    replay_vsmmu.check(arguments)
    if arguments.minimize is not None or arguments.replays is not None:
        from vsmmu.cli.replay_minimize import run as minimize

        return minimize(arguments)
    recordings, codes = Recordings(arguments), []
    for name in arguments.inputs:
        try:
            codes.append(_play(name, arguments, recordings))
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
            say(f"vsmmu: {error}")
            codes.append(code)
    recordings.show()
    failed = [code for code in codes if code not in (0, DIFFERS)]
    return int(failed[0] if failed else max(codes))


def _play(name: str, arguments: argparse.Namespace, recordings: Recordings) -> int:
    blocks = unpacked(name)
    first = _first_line(blocks)
    whole = chain((first,), blocks)
    if _is_recording(first):
        return DIFFERS if recordings.play(name, whole) else 0
    if arguments.caching == "both":
        raise FileError(f"{name}: --caching both is for recordings; these are cases")
    from vsmmu.cli.replay_cases import play_cases

    return play_cases(name, whole, arguments)


def _first_line(blocks: Iterator[bytes]) -> bytes:
    """Bytes from the start of a file that hold its first line that is not blank, if it is short."""
    text = b""
    for block in blocks:
        text += block
        if b"\n" in text.lstrip() or len(text) > _HEADER_MAX:
            break
    return text


def _is_recording(text: bytes) -> bool:
    """Whether a file that starts so says that it is a recording, of whatever version."""
    try:
        # Text in place of numbers: one of too many digits is for the reader to complain of.
        header = json.loads(text.partition(b"\n")[0], parse_int=str)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "magic" in header
