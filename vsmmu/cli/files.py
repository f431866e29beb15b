# SPDX-License-Identifier: BSD-2-Clause
"""Files and errors at the edge: one clear line for each failure, nothing half written."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

# A blob is at most 2 MiB, a config 1 MiB; anything larger is not what it should be.
_READ_MAX = 64 << 20


class FileError(Exception):
    """A file that cannot be read or written, or a misused option; exit code 1."""

    exit_code = 1


def read(name: str) -> bytes:
    """A file's bytes; `-` is stdin. Raises FileError."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_READ_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(_READ_MAX + 1)
    except (OSError, ValueError) as error:
        raise FileError(f"{name}: cannot read: {_reason(error)}{_nearest(name)}") from None
    if len(data) > _READ_MAX:
        raise FileError(f"{name}: cannot read: larger than {_READ_MAX >> 20} MiB")
    return data


def write(outputs: Mapping[str, bytes]) -> None:
    """Write all files or none; `-` is stdout.

    Every file is written beside its place and renamed only when all of them are complete.

    Raises:
        FileError: naming the file.
    """
    made: list[tuple[str, str]] = []
    try:
        for name, data in outputs.items():
            if name != "-":
                made.append((_temporary(name, data), name))
        for temporary, name in made:
            try:
                os.replace(temporary, name)
            except OSError as error:
                raise FileError(f"{name}: cannot write: {_reason(error)}") from None
    finally:
        for temporary, _ in made:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    if "-" in outputs:
        sys.stdout.buffer.write(outputs["-"])
        sys.stdout.buffer.flush()


def _temporary(name: str, data: bytes) -> str:
    place = Path(name)
    if place.is_dir():
        raise FileError(f"{name}: cannot write: is a directory")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    except OSError as error:
        raise FileError(f"{name}: cannot write: {_reason(error)}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)
    except OSError as error:
        os.unlink(temporary)
        raise FileError(f"{name}: cannot write: {_reason(error)}") from None
    return temporary


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def _nearest(name: str) -> str:
    """A hint: the file of that folder whose name is nearest, or the folder that is missing."""
    import difflib

    with contextlib.suppress(OSError, ValueError):
        place = Path(name)
        if place.exists():
            return ""
        if not place.parent.is_dir():
            return f"; there is no folder {place.parent}"
        names = [entry.name for entry in place.parent.iterdir()]
        near = difflib.get_close_matches(place.name, names, 1)
        return f"; nearest: {place.parent / near[0]}" if near else ""
    return ""


def say(line: str) -> None:
    """A line to stderr."""
    print(line, file=sys.stderr)


def guarded(action: Callable[[], int]) -> int:
    """Run a subcommand; a failure of the input is one line on stderr and its exit code."""
    try:
        code = action()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe went away; keep the interpreter from complaining about it too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        exit_code = getattr(error, "vsmmu_exit_code", getattr(error, "exit_code", None))
        if exit_code is None:
            raise
        say(f"vsmmu: {error}")
        return int(exit_code)
    return code
