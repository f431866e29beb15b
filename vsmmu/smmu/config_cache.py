# SPDX-License-Identifier: BSD-2-Clause
"""How configuration is cached (IHI 0070 §3.21.3): the choices, and bounded caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from vsmmu.arch.stream_table import Ste

# Entries of each of the caches; the oldest makes room.
CONFIG_ENTRIES = 1024
# 64-bit words of an STE; a CD has as many.
ALL_WORDS = (1 << Ste.dwords) - 1

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Caching:
    """How an SMMU caches (§3.21.3 leaves all of these open).

    Args:
        entries: room in each cache; 0 caches nothing.
        hostile: keep whatever may be kept. Structures around those in use are prefetched, when
            the SMMU is enabled and as soon as an invalidation has dropped them; invalid level 1
            descriptors are kept; STE.CONT is believed; CMD_CFGI_* and CMD_TLBI_* do nothing
            before the CMD_SYNC behind them.
        early: which 64-bit words of a prefetched STE or CD are kept, bit n for word n. The others
            are read when the entry is used: a structure may be read in pieces, in any order.
        invalid: with `hostile`, keep invalid level 1 descriptors too.
    """

    entries: int = CONFIG_ENTRIES
    hostile: bool = False
    early: int = ALL_WORDS
    invalid: bool = True


# By the names of the switch: `Smmu(..., caching=...)`.
CACHING = {
    "none": Caching(entries=0),
    "normal": Caching(),
    "hostile": Caching(entries=64 * CONFIG_ENTRIES, hostile=True),
}


class Bounded(dict[_K, _V]):
    """Entries by key; the oldest makes room.

    `changes` counts what was "inserted" and "evicted".
    """

    def __init__(self) -> None:
        super().__init__()
        self.changes = Counter[str]()

    def keep(self, key: _K, value: _V, room: int) -> bool:
        """Add an entry in at most `room`, with 0 nothing; whether another had to go."""
        if not room or key in self:
            return False
        full = len(self) >= room
        if full:
            del self[next(iter(self))]
            self.changes["evicted"] += 1
        self[key] = value
        self.changes["inserted"] += 1
        return full


class PerStream(Generic[_K, _V]):
    """Entries of StreamIDs by a second key; bounded, the oldest stream's oldest makes room.

    `changes` counts what was "inserted" and "evicted".
    """

    def __init__(self) -> None:
        self.entries: dict[int, dict[_K, _V]] = {}
        self.changes = Counter[str]()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, sid: int, key: _K) -> _V | None:
        """The entry, or None."""
        found = self.entries.get(sid)
        return None if found is None else found.get(key)

    def keys(self, sid: int) -> Iterator[_K]:
        """The second keys of a StreamID."""
        return iter(self.entries.get(sid, ()))

    def keep(self, sid: int, key: _K, value: _V, room: int) -> bool:
        """Add an entry in at most `room`, with 0 nothing; whether another had to go."""
        if not room or self.get(sid, key) is not None:
            return False
        full = self._count >= room
        if full:
            oldest = next(iter(self.entries))
            self.pop(oldest, next(iter(self.entries[oldest])))
            self.changes["evicted"] += 1
        self.changes["inserted"] += 1
        self.entries.setdefault(sid, {})[key] = value
        self._count += 1
        return full

    def pop(self, sid: int, key: _K) -> _V | None:
        """Remove an entry and return it, or None."""
        inner = self.entries.get(sid)
        if inner is None or key not in inner:
            return None
        self._count -= 1
        value = inner.pop(key)
        if not inner:
            del self.entries[sid]
        return value

    def drop(self, first: int, last: int) -> int:
        """Remove the entries of StreamIDs in [first, last]; how many."""
        if first == last:
            dropped = len(self.entries.pop(first, ()))
        else:
            victims = [sid for sid in self.entries if first <= sid <= last]
            dropped = sum(len(self.entries.pop(sid)) for sid in victims)
        self._count -= dropped
        return dropped

    def clear(self) -> None:
        """Remove everything."""
        self.entries.clear()
        self._count = 0
