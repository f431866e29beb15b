# SPDX-License-Identifier: BSD-2-Clause
"""Words of structures that are unlike all others of a recording in one bit.

A driver makes its descriptors, STEs and CDs from a few templates. A word that differs from a
template in one bit, where other words are the template and none has that bit so, shows a recording
that was damaged, or a fault of the driver; whether a device used it or not. Bits in which one
structure may rightly differ (rights, what one device has) do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import ADDR_MASK, TABLE, VALID, S1Leaf, S2Leaf, TableDesc
from vsmmu.arch.stream_table import LIVE, STAGE1, L1Std, Ste
from vsmmu.memory import Memory
from vsmmu.recording.divergence import Difference, Kind

# Words that have to be alike: for what a single one may rightly be, for all else, for
# CDs and level 1 descriptors.
MANY, FEW, PAIR = 64, 3, 2
# Bound: different words of a kind that are remembered; beyond, nothing is told of it.
PATTERNS = 1 << 10

# Of what devices and domains differ in.
_S1_FREE = S1Leaf.mask("ap2")[0]
_S2_FREE = S2Leaf.mask("s2ap_r", "s2ap_w")[0]
STE_FREE = Ste.mask(
    "v", "config", "s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "mev", "s1stalld", "eats", "s2vmid",
    "s2t0sz", "s2sl0", "s2ps", "s2s", "s2r", "s2ha", "s2hd",
)  # fmt: skip
CD_FREE = Cd.mask("v", "t0sz", "tg0", "epd0", "epd1", "hd", "ha", "s", "a", "aset", "asid", "ips")
# Where many STEs abort: a driver may make one bypass before it looks at its device.
_STE_IDLE = Ste.config.encode(LIVE)
_CTXPTR = Ste.mask("s1ctxptr")[0]
# Addresses, and what is another in each.
_STE_OWN = tuple(
    mask & (ADDR_MASK if n == Ste.s2ttb.word else mask)
    for n, mask in enumerate(Ste.mask("s2vmid", "s2ttb"))
)
_ASID, _TTB = Cd.mask("asid")[0], Cd.mask("ttb0")[1] & ADDR_MASK
_TABLE = VALID | TABLE
_WORD = (1 << 64) - 1


class _Seen(NamedTuple):
    """The first such word, and where such words are: record and address, a bit over `MANY`."""

    word: int
    places: set[tuple[int, int]]

    @property
    def number(self) -> str:
        """How many they are."""
        return f"{MANY} or more" if len(self.places) >= MANY else str(len(self.places))


class Odd(NamedTuple):
    """A word that is unlike all others in one bit."""

    record: int
    address: int
    word: int
    difference: Difference


class Words:
    """Words of one kind.

    Args:
        what: the kind.
        layout, index: the structure that has them, and which word of it.
        free: bits in which one may rightly differ; `idle` where `MANY` are alike.
        enough: how many have to be alike.
        leaf: bits that count of a valid descriptor; 0 where a word is no descriptor.
        pointer: whether an address in them is one of a table, which is in RAM.
    """

    def __init__(
        self, what: str, layout: type[Layout], index: int, free: int, enough: int, *,
        idle: int | None = None, leaf: int = 0, pointer: bool = True,
    ) -> None:  # fmt: skip
        self.what, self._layout, self._index = what, layout, index
        self._free, self._idle, self._enough = free, free if idle is None else idle, enough
        self.leaf, self._pointer = leaf, pointer
        self.seen: dict[int, _Seen] = {}
        self.outside: dict[int, _Seen] = {}

    def count(self, pattern: int, record: int, address: int, word: int) -> bool:
        """A word whose bits that count are `pattern`; whether it is the first like this."""
        seen = self.seen.get(pattern)
        if seen is None:
            if len(self.seen) < PATTERNS:
                self.seen[pattern] = _Seen(word, {(record, address)})
            return True
        if len(seen.places) <= MANY:
            seen.places.add((record, address))
        return False

    def far(self, pattern: int, record: int, address: int, word: int) -> None:
        """The same, where the address in the word is not in RAM."""
        seen = self.outside.setdefault(pattern, _Seen(word, set()))
        if len(seen.places) <= MANY:
            seen.places.add((record, address))

    def forget(self, record: int, address: int) -> None:
        """What was told was no word of this kind."""
        for table in (self.seen, self.outside):
            for pattern in list(table):
                table[pattern].places.discard((record, address))
                if not table[pattern].places:
                    del table[pattern]

    def odd(self) -> Iterator[Odd]:
        """Words that are unlike all others."""
        if len(self.seen) >= PATTERNS:
            return
        for pattern, seen in self.seen.items():
            told = self._bit(pattern) if len(seen.places) == 1 else ""
            if told:
                yield self._odd(seen, told)
        enough = self._enough if self._pointer else MANY
        for pattern, seen in self.outside.items():
            others = self.seen.get(pattern)
            if others is not None and len(seen.places) == 1 and len(others.places) > enough:
                yield self._odd(seen, f"the address is in RAM in {others.number} like it")

    def _bit(self, pattern: int) -> str:
        for place in range(64):
            bit = 1 << place
            like = pattern ^ bit
            if bit == VALID and like & VALID and self.leaf:
                like &= self.leaf
            same = self.seen.get(like)
            if same is None or len(same.places) < self._enough:
                continue
            if not bit & (self._idle if len(same.places) >= MANY else self._free):
                told = f"bit {place}{self._field(place)} is {int(not pattern & bit)}"
                return f"{told} in {same.number} like it"
        return ""

    def _field(self, place: int) -> str:
        for name in self._layout.fields:
            if self._layout.mask(name)[self._index] >> place & 1:
                return f" ({name})"
        return ""

    def _odd(self, seen: _Seen, told: str) -> Odd:
        record, address = next(iter(seen.places))
        what = f"{self.what} at {address:#x}"
        return Odd(record, address, seen.word, _difference(what, seen.word, told))


class Unlike:
    """Counts words of all kinds.

    Args:
        ram: (base, size) in bytes.
        memory: where the words are.

    Attributes:
        descriptors: kinds by stage, and whether they are of the last level.
    """

    def __init__(self, ram: tuple[int, int], memory: Memory) -> None:
        self._ram = range(ram[0], ram[0] + ram[1])
        self._memory = memory
        self.descriptors = {
            (stage, last): Words(
                f"stage {stage} {'page' if last else 'table or block'}",
                layout if last else TableDesc, 0, 0, FEW,
                leaf=_WORD & ~ADDR_MASK & ~free, pointer=not last,
            )
            for stage, layout, free in ((1, S1Leaf, _S1_FREE), (2, S2Leaf, _S2_FREE))
            for last in (False, True)
        }  # fmt: skip
        self._l1std = Words("L1STD", L1Std, 0, 0, PAIR)
        self._ste = Words("STE word 0", Ste, 0, STE_FREE[0], FEW, idle=_STE_IDLE)
        # By Config: the other words of a live STE are not those of one that aborts.
        self._stes = [
            [Words(f"STE word {n}", Ste, n, STE_FREE[n], FEW) for n in range(Ste.dwords)]
            for _ in range(Ste.config.mask + 1)
        ]
        self._cds = [Words(f"CD word {n}", Cd, n, CD_FREE[n], PAIR) for n in range(Cd.dwords)]
        self._reserved: Odd | None = None

    def descriptor(self, kind: Words, record: int, address: int, word: int, page_size: int) -> bool:
        """A descriptor of one of `descriptors`; whether it is the first like this."""
        # What is not valid is 0 in most drivers, whole.
        pattern = word
        if word & VALID:
            pattern &= kind.leaf | page_size - 1 & ADDR_MASK
        if word & _TABLE == _TABLE and (word & ADDR_MASK) not in self._ram:
            kind.far(pattern, record, address, word)
        return kind.count(pattern, record, address, word)

    def ste(self, address: int, words: tuple[int, ...], records: list[int]) -> None:
        """An STE, and the record that wrote each word."""
        config = Ste(words).config
        kinds = [self._ste, *self._stes[config][1:]]
        free = _CTXPTR if config & LIVE and config & STAGE1 else 0
        for n, record in enumerate(records):
            if record:
                pattern = words[n] & ~(_STE_OWN[n] if n else free)
                kinds[n].count(pattern, record, address + 8 * n, words[n])
        if free and records[0] and (words[0] & free) not in self._ram:
            self._ste.far(words[0] & ~free, records[0], address, words[0])

    def cd(self, address: int, words: tuple[int, ...], records: list[int]) -> None:
        """A CD, and the record that wrote each word."""
        free = _ASID, _TTB
        for n, record in enumerate(records):
            if record:
                pattern = words[n] & ~free[n] if n < len(free) else words[n]
                self._cds[n].count(pattern, record, address + 8 * n, words[n])
        cd = Cd(words)
        if records[1] and cd.v and (words[1] & _TTB) not in self._ram:
            self._cds[1].far(words[1] & ~_TTB, records[1], address + 8, words[1])

    def level1(self, layout: type[L1Std | L1Cd], address: int, word: int, record: int) -> None:
        """A level 1 descriptor, and the record that wrote it."""
        if not record:
            return
        what = layout.__name__.upper()
        if layout is L1Std:
            self._l1std.count(word & ~ADDR_MASK, record, address, word)
            if (word & ADDR_MASK) not in self._ram:
                self._l1std.far(word & ~ADDR_MASK, record, address, word)
        reserved = layout((word,)).reserved()[0]
        if reserved and self._reserved is None:
            difference = _difference(f"{what} at {address:#x}", word, f"{reserved:#x} is reserved")
            self._reserved = Odd(record, address, word, difference)

    def odd(self) -> Odd | None:
        """The one word that is unlike all others, if there is one."""
        kinds = [self._l1std, self._ste, *self._cds, *self.descriptors.values()]
        kinds += [kind for row in self._stes for kind in row]
        tables = [kind for (_, last), kind in self.descriptors.items() if not last]
        found = {
            one[:2]: one
            for kind in kinds
            for one in kind.odd()
            if kind not in tables or not self._step(one)
        }
        if not found:
            return self._reserved
        return next(iter(found.values())) if len(found) == 1 else None

    def _step(self, odd: Odd) -> bool:
        """Whether a table was linked in two steps.

        Linux sets a bit of its own once it has cleaned the caches of a table that an SMMU reads
        past them.
        """
        now = self._memory.read64(odd.address)
        return now is not None and bool(odd.word & VALID) and (now ^ odd.word).bit_count() == 1


def _difference(what: str, word: int, told: str) -> Difference:
    return Difference(Kind.UNLIKE, what, f"{word:#x}", told)
