# SPDX-License-Identifier: BSD-2-Clause
"""Blocks of a file's bytes, unpacked where it starts as an xz file does; `-` is stdin.

A block at a time, so that a file of any length takes bounded memory.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO

from vsmmu.cli.files import FileError, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

# All of a file unpacked, and what the unpacker itself may take, in bytes.
TOTAL_MAX = 4 << 30
_UNPACK_MEMORY = 128 << 20
_BLOCK = 1 << 20
_XZ = b"\xfd7zXZ\x00"
# Characters shown of the unpacker's own words.
_SHOWN = 300


class UnpackError(Exception):
    """A file that cannot be unpacked, or becomes too large: one line of text."""

    exit_code = 2


def unpacked(name: str) -> Iterator[bytes]:
    """Blocks of the file's bytes.

    Raises:
        FileError: it cannot be read.
        UnpackError: it is not a whole xz file, or has more than TOTAL_MAX bytes unpacked.
    """
    total = 0
    for block in _blocks(name):
        total += len(block)
        if total > TOTAL_MAX:
            raise UnpackError(f"{name}: more than {TOTAL_MAX >> 30} GiB unpacked")
        yield block


def _blocks(name: str) -> Iterator[bytes]:
    with _opened(name) as file:
        first = _read(file, name)
        if first.startswith(_XZ):
            yield from _unxz(file, name, first)
            return
        while first:
            yield first
            first = _read(file, name)


def _opened(name: str) -> BinaryIO:
    if name == "-":
        if sys.stdin is None:
            raise FileError("-: cannot read: standard input is closed")
        return sys.stdin.buffer
    try:
        return open(name, "rb")
    except (OSError, ValueError) as error:
        # It words every failure, and names the nearest file.
        from vsmmu.cli.files import read

        read(name)
        raise FileError(f"{name}: cannot read: {error}") from None


def _read(file: BinaryIO, name: str) -> bytes:
    try:
        return file.read(_BLOCK)
    except OSError as error:
        raise FileError(f"{name}: cannot read: {(error.strerror or str(error)).lower()}") from None


def _unxz(file: BinaryIO, name: str, packed: bytes) -> Iterator[bytes]:
    """Unpack xz streams, one after the other, maybe with zeros between. Raises UnpackError."""
    from lzma import FORMAT_XZ, LZMADecompressor, LZMAError

    unpacker = None
    try:
        while packed:
            unpacker = unpacker or LZMADecompressor(FORMAT_XZ, memlimit=_UNPACK_MEMORY)
            yield unpacker.decompress(packed, _BLOCK)
            while not (unpacker.eof or unpacker.needs_input):
                yield unpacker.decompress(b"", _BLOCK)
            packed = b""
            if unpacker.eof:
                packed = unpacker.unused_data.lstrip(b"\0")
                unpacker = None
            packed = packed or _read(file, name)
            if unpacker is None:
                packed = packed.lstrip(b"\0")
    except LZMAError as error:
        raise UnpackError(f"{name}: not a whole xz file: {plain(str(error))[:_SHOWN]}") from None
    if unpacker is not None:
        raise UnpackError(f"{name}: not a whole xz file: it ends too early")
