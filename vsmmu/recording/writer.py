# SPDX-License-Identifier: BSD-2-Clause
"""The bytes of a recording, packed as its records come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from lzma import CHECK_CRC64, FORMAT_XZ, LZMACompressor, compress
from typing import Any

from vsmmu.recording.format import Record, encode, header_line

_BLOCK = 1 << 16
# A preset that is named, so that the same records are the same bytes.
_PRESET = 6


class Writer:
    """Packs a header and records with xz.

    Args:
        header: members of the header line; `magic` and `version` are added.

    Attributes:
        records: how many it took.
        size: their bytes, unpacked, with the header.
    """

    def __init__(self, header: Mapping[str, Any]) -> None:
        self._xz = LZMACompressor(FORMAT_XZ, CHECK_CRC64, preset=_PRESET)
        self._waiting = bytearray(header_line(header))
        self._packed: list[bytes] = []
        self.size = len(self._waiting)
        self.records = 0

    def add(self, record: Record) -> None:
        """Append a record."""
        raw = encode(record)
        self._waiting += raw
        self.size += len(raw)
        self.records += 1
        if len(self._waiting) >= _BLOCK:
            self._packed.append(self._xz.compress(bytes(self._waiting)))
            self._waiting.clear()

    def finish(self) -> bytes:
        """The whole file. Nothing can be added any more."""
        self._packed.append(self._xz.compress(bytes(self._waiting)))
        self._packed.append(self._xz.flush())
        return b"".join(self._packed)


def packed(data: bytes) -> bytes:
    """A recording's bytes as a file of a `Writer`."""
    return compress(data, FORMAT_XZ, CHECK_CRC64, preset=_PRESET)


def pack(header: Mapping[str, Any], records: Iterable[Record]) -> bytes:
    """A file of these records."""
    writer = Writer(header)
    for record in records:
        writer.add(record)
    return writer.finish()
