# SPDX-License-Identifier: BSD-2-Clause
"""Files and errors at the edge: one clear line for each failure, nothing half written."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping

from vsmmu.inputs import FileError, plain, read, reason_of

__all__ = ["FileError", "check_outputs", "guarded", "plain", "read", "say", "write"]


def write(outputs: Mapping[str, bytes], inputs: Iterable[str | None] = ()) -> None:
    """Write all files or none; `-` is stdout.

    A regular file is written beside its place and renamed only when all of them are complete; a
    symbolic link stays and its target is replaced. A device or a pipe is written to.

    Args:
        outputs: bytes by name.
        inputs: names of files that were read, which must not be written over.

    Raises:
        FileError: naming the file.
    """
    places = {name: os.path.realpath(name) for name in outputs if name != "-"}
    _check_distinct(places.items(), [name for name in inputs if name])
    special = {n for n, p in places.items() if os.path.exists(p) and not os.path.isfile(p)}
    made: list[tuple[str, str]] = []
    try:
        for name in places.keys() - special:
            made.append((_temporary(name, places[name], outputs[name]), name))
        for name in special:
            _write_into(name, outputs[name])
        for temporary, name in made:
            try:
                os.replace(temporary, places[name])
            except OSError as error:
                raise FileError(f"{name}: cannot write: {reason_of(error)}") from None
    finally:
        for temporary, _ in made:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    if "-" in outputs:
        sys.stdout.buffer.write(outputs["-"])
        sys.stdout.buffer.flush()


def check_outputs(names: Iterable[str], inputs: Iterable[str]) -> None:
    """Complain of output files before the work that they are for, not after it.

    Raises:
        FileError: two names of one file, an input, a folder that is not there.
    """
    places = [(name, os.path.realpath(name)) for name in names]
    _check_distinct(places, inputs)
    for name, place in places:
        if not os.path.isdir(os.path.dirname(place)):
            raise FileError(f"{name}: cannot write: no such file or directory")


def _check_distinct(places: Iterable[tuple[str, str]], inputs: Iterable[str]) -> None:
    read_from = {os.path.realpath(name): name for name in inputs if name != "-"}
    seen: dict[str, str] = {}
    for name, place in places:
        if not name:
            raise FileError("the name of an output file is empty")
        if place in read_from:
            raise FileError(f"{name}: cannot write: it is the input {read_from[place]}")
        if place in seen and os.path.basename(place) != "null":
            raise FileError(f"{name}: cannot write: the same file as {seen[place]}")
        seen[place] = name


def _write_into(name: str, data: bytes) -> None:
    """Write to something that is not a regular file."""
    try:
        with open(name, "wb") as file:
            file.write(data)
    except OSError as error:
        raise FileError(f"{name}: cannot write: {reason_of(error)}") from None


def _temporary(name: str, target: str, data: bytes) -> str:
    """Write to a new file beside `target`, which only this user reads until it is complete."""
    folder, base = os.path.split(target)
    temporary = os.path.join(folder, f".{base}.{os.urandom(4).hex()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise FileError(f"{name}: cannot write: {reason_of(error)}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), _mode(target))
    except OSError as error:
        os.unlink(temporary)
        raise FileError(f"{name}: cannot write: {reason_of(error)}") from None
    return temporary


def _mode(place: str) -> int:
    """Permissions of the file that is replaced, or those a new file gets."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(place).st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def say(line: str) -> None:
    """A line to stderr; nowhere, if that is closed."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(plain(line), file=sys.stderr)


def guarded(action: Callable[[], int]) -> int:
    """Run a subcommand; a failure of the input is one line on stderr and its exit code."""
    if sys.stdout is None:
        say("vsmmu: stdout: cannot write: it is closed")
        return 1
    try:
        try:
            code = action()
        finally:
            # argparse leaves with SystemExit after printing help; that may fail too.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if exit_code is not None:
            say(f"vsmmu: {error}")
            return int(exit_code)
        if not isinstance(error, OSError):
            raise
        # What is left of output that cannot be written must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"vsmmu: stdout: cannot write: {reason_of(error)}")
        return 1
    return code
