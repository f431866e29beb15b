# SPDX-License-Identifier: BSD-2-Clause
"""Words of structures that are unlike all others of a recording in one bit.

A driver makes its descriptors, STEs and CDs from a few templates. A word that differs from a
template in one bit, where many words are the template and no other has that bit so, shows a
recording that was damaged, or a fault of the driver; whether a device used it or not. Bits in
which one structure may rightly differ (rights, features of one device) do not count.
"""

from __future__ import annotations

from typing import NamedTuple

from vsmmu.arch.context import Cd
from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import ADDR_MASK, TABLE, VALID, S1Leaf, S2Leaf
from vsmmu.arch.stream_table import LIVE, STAGE1, L1Std, Ste
from vsmmu.recording.divergence import Difference, Kind

# Words that have to be alike: for what a single one may rightly be, for all else, CDs.
MANY, FEW, PAIR = 64, 3, 2
# Bound: different words that are remembered. Beyond, nothing is told.
PATTERNS = 1 << 12

_S1_FREE = S1Leaf.mask("ap2")[0]
_S2_FREE = S2Leaf.mask("s2ap_r", "s2ap_w")[0]
# Of what devices and domains differ in. Where few STEs are alike, and where many are: an STE may be
# made to bypass before the driver looks at its device.
_STE_FREE = Ste.mask(
    "v", "config", "s1fmt", "s1ctxptr", "s1cdmax", "s1dss", "mev", "s1stalld", "eats", "s2vmid",
    "s2t0sz", "s2sl0", "s2ps", "s2s", "s2r", "s2ha", "s2hd", "s2ttb",
)  # fmt: skip
_STE_IDLE = Ste.config.encode(LIVE)
_CD_FREE = Cd.mask("v", "t0sz", "tg0", "epd0", "epd1", "hd", "ha", "s", "a", "asid", "ttb0", "ips")
_CTXPTR = Ste.mask("s1ctxptr")[0]
_TTB = tuple(m & ADDR_MASK if n else m for n, m in enumerate(Cd.mask("asid", "ttb0")))
_TABLE = VALID | TABLE


class _Kind(NamedTuple):
    """What a word is; words of a kind are compared.

    `few` are the bits that may differ where few are alike, `many` where many are.
    """

    what: str
    few: int
    many: int
    enough: int
    config: int = 0


class _Seen(NamedTuple):
    """The first such word, and where such words are: record and address, `MANY` at most."""

    word: int
    places: set[tuple[int, int]]


class Odd(NamedTuple):
    """A word that is unlike all others in one bit."""

    record: int
    address: int
    word: int
    difference: Difference


_PAGE, _UPPER = "page", "table or block"
_DESCRIPTORS = {
    (stage, what): _Kind(f"stage {stage} {what}", 0, 0, FEW)
    for stage in (1, 2) for what in (_PAGE, _UPPER)
}  # fmt: skip
# By Config: the other words of a live STE are not those of one that aborts.
_STES = [
    [
        _Kind(f"STE word {n}", free, free if n else _STE_IDLE, FEW, config if n else 0)
        for n, free in enumerate(_STE_FREE)
    ]
    for config in range(Ste.config.mask + 1)
]  # fmt: skip
_CDS = [_Kind(f"CD word {n}", _CD_FREE[n], _CD_FREE[n], PAIR) for n in range(Cd.dwords)]
# Words with an address of a table, which is in RAM.
_POINTERS = {_STES[0][0], _CDS[1], *(_DESCRIPTORS[stage, _UPPER] for stage in (1, 2))}


class Unlike:
    """Counts words.

    Args:
        ram: (base, size) in bytes.
    """

    def __init__(self, ram: tuple[int, int]) -> None:
        self._ram = range(ram[0], ram[0] + ram[1])
        self._seen: dict[tuple[_Kind, int], _Seen] = {}
        self._outside: dict[tuple[_Kind, int], _Seen] = {}
        self._reserved: Odd | None = None

    def descriptor(self, stage: int, last: bool, record: int, address: int, word: int) -> bool:
        """A descriptor of the last level or another; whether it is the first like this."""
        kind = _DESCRIPTORS[stage, _PAGE if last else _UPPER]
        pattern = word
        # What is not valid is 0 in most drivers, whole.
        if word & VALID:
            pattern &= ~ADDR_MASK & ~(_S1_FREE if stage == 1 else _S2_FREE)
        if word & _TABLE == _TABLE:
            self._output((kind, pattern), record, address, word)
        return self._count(self._seen, (kind, pattern), record, address, word)

    def ste(self, address: int, words: tuple[int, ...], records: list[int]) -> None:
        """An STE, and the record that wrote each word."""
        config = Ste(words).config
        pointer = _CTXPTR if config & LIVE and config & STAGE1 else 0
        self._structure(_STES[config], address, words, records, (pointer, *(0,) * (Ste.dwords - 1)))
        if pointer and records[0]:
            key = _STES[0][0], words[0] & ~pointer
            self._output(key, records[0], address, words[0])

    def cd(self, address: int, words: tuple[int, ...], records: list[int]) -> None:
        """A CD, and the record that wrote each word."""
        self._structure(_CDS, address, words, records, _TTB)
        if records[1]:
            self._output((_CDS[1], words[1] & ~_TTB[1]), records[1], address + 8, words[1])

    def level1(self, address: int, word: int, record: int) -> None:
        """A level 1 descriptor of the stream table, and the record that wrote it."""
        reserved = L1Std((word,)).reserved()[0]
        if reserved and self._reserved is None:
            difference = Difference(
                Kind.UNLIKE, f"L1STD at {address:#x}", f"{word:#x}", f"{reserved:#x} is reserved"
            )
            self._reserved = Odd(record, address, word, difference)

    def forget(self, stage: int, last: bool, record: int, address: int) -> None:
        """What `descriptor` was told was none."""
        kind = _DESCRIPTORS[stage, _PAGE if last else _UPPER]
        for table in (self._seen, self._outside):
            for key in [key for key in table if key[0] is kind]:
                table[key].places.discard((record, address))
                if not table[key].places:
                    del table[key]

    def odd(self) -> Odd | None:
        """The one word that is unlike all others, if there is one."""
        if len(self._seen) >= PATTERNS:
            return None
        found = [one for one in (self._bit(*item) for item in self._seen.items()) if one]
        if not found:
            found = [one for one in (self._far(*item) for item in self._outside.items()) if one]
        if not found and self._reserved is not None:
            return self._reserved
        return found[0] if len(found) == 1 else None

    def _structure(
        self, kinds: list[_Kind], address: int, words: tuple[int, ...], records: list[int],
        free: tuple[int, ...],
    ) -> None:  # fmt: skip
        for index, record in enumerate(records):
            if record:
                key = kinds[index], words[index] & ~free[index]
                self._count(self._seen, key, record, address + 8 * index, words[index])

    def _output(self, key: tuple[_Kind, int], record: int, address: int, word: int) -> None:
        if (word & ADDR_MASK) not in self._ram:
            self._count(self._outside, key, record, address, word)

    @staticmethod
    def _count(
        table: dict[tuple[_Kind, int], _Seen], key: tuple[_Kind, int], record: int, address: int,
        word: int,
    ) -> bool:  # fmt: skip
        seen = table.get(key)
        if seen is None:
            if len(table) < PATTERNS:
                table[key] = _Seen(word, {(record, address)})
            return True
        if len(seen.places) <= MANY:
            seen.places.add((record, address))
        return False

    def _bit(self, key: tuple[_Kind, int], seen: _Seen) -> Odd | None:
        kind, pattern = key
        if len(seen.places) > 1:
            return None
        for place in range(64):
            bit = 1 << place
            like = pattern ^ bit
            if bit == VALID and like & VALID and kind in _DESCRIPTORS.values():
                like &= ~ADDR_MASK & ~(_S2_FREE if kind.what.startswith("stage 2") else _S1_FREE)
            same = self._seen.get((kind, like))
            if same is None or len(same.places) < kind.enough:
                continue
            free = kind.many if len(same.places) >= MANY else kind.few
            if not free & bit:
                told = f"bit {place}{_field(kind.what, place)} is {int(not pattern & bit)}"
                return _odd(kind, seen, f"{told} in {_number(same)} like it")
        return None

    def _far(self, key: tuple[_Kind, int], seen: _Seen) -> Odd | None:
        kind, others = key[0], self._seen.get(key)
        if others is None or len(seen.places) > 1:
            return None
        enough = min(kind.enough, FEW) if kind in _POINTERS else MANY
        if len(others.places) - 1 < enough:
            return None
        return _odd(kind, seen, f"the address is in RAM in {_number(others)} like it")


def _odd(kind: _Kind, seen: _Seen, told: str) -> Odd:
    ((record, address),) = seen.places
    what = f"{kind.what} at {address:#x}"
    return Odd(record, address, seen.word, Difference(Kind.UNLIKE, what, f"{seen.word:#x}", told))


def _number(seen: _Seen) -> str:
    return f"{MANY} or more" if len(seen.places) >= MANY else str(len(seen.places))


def _field(what: str, place: int) -> str:
    layout: type[Layout] = S2Leaf if what.startswith("stage 2") else S1Leaf
    word = 0
    if not what.startswith("stage"):
        layout, word = (Ste if what.startswith("STE") else Cd), int(what.rpartition(" ")[2])
    for name in layout.fields:
        if layout.mask(name)[word] >> place & 1:
            return f" ({name})"
    return ""
