# SPDX-License-Identifier: BSD-2-Clause
"""What the recorded SMMU identified itself as: the driver's own reads say it.

A recording is read ahead until each identification register that drivers read was read once, or
to a limit. What is never read is what a plain SMMUv3.1 has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain

from vsmmu.arch.registers import BY_NAME, CORESIGHT
from vsmmu.recording.format import Mem, Note, Read, Reader, Record

# Records, and bytes of memory and text, that are kept while the registers are looked for.
AHEAD = 65_536
AHEAD_BYTES = 64 << 20

# Values of those that are never read.
DEFAULTS = {"IDR0": 0, "IDR1": 0, "IDR2": 0, "IDR3": 0, "IDR4": 0, "IDR5": 0, "IIDR": 0, "AIDR": 1}
# A driver reads all of these while it probes, or not IIDR.
PROBED = {"IDR0", "IDR1", "IDR3", "IDR5", "IIDR"}
# Bytes of a register.
_WORD = 4
_NAMES = {BY_NAME[name].offset: name for name in DEFAULTS}


class Ahead:
    """A recording whose identification is known before its first record is played.

    Iterating gives every record; `number` and `place` are those of the last one given.

    Attributes:
        ids: identification registers by name.
        seen: those that the driver read.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.number = self.place = 0
        self.ids = dict(DEFAULTS)
        self.seen: set[str] = set()
        self._kept: list[tuple[int, int, Record]] = []
        self._records = iter(reader)
        self._look()

    def _look(self) -> None:
        size = 0
        for record in self._records:
            self._kept.append((self._reader.number, self._reader.place, record))
            if type(record) is Read:
                self._learn(record)
                if self.seen >= PROBED:
                    return
            elif type(record) is Mem:
                size += len(record.data)
            elif type(record) is Note:
                # One character may widen all of a text to four bytes each.
                size += sys.getsizeof(record.text)
            if len(self._kept) >= AHEAD or size >= AHEAD_BYTES:
                return

    def _learn(self, read: Read) -> None:
        """Take the registers of a read: two, if it has 64 bits."""
        for offset in range(read.offset, read.offset + read.size, 4):
            name = _NAMES.get(offset)
            if name is not None and name not in self.seen and _whole(read):
                self.seen.add(name)
                self.ids[name] = read.value >> 8 * (offset - read.offset) & 0xFFFF_FFFF

    def __iter__(self) -> Iterator[Record]:
        return chain(self._replayed(), self._following())

    def _replayed(self) -> Iterator[Record]:
        kept, self._kept = self._kept, []
        for self.number, self.place, record in kept:
            yield record

    def _following(self) -> Iterator[Record]:
        reader = self._reader
        for record in self._records:
            self.number, self.place = reader.number, reader.place
            yield record


def _whole(read: Read) -> bool:
    """Whether it reads registers at all: smaller accesses read as 0 (§6.2)."""
    return read.size >= _WORD and not read.offset % _WORD


def is_identification(offset: int) -> bool:
    """Whether a register says what the SMMU is, and never changes."""
    return offset in _NAMES or offset in CORESIGHT
