# SPDX-License-Identifier: BSD-2-Clause
"""A domain's stage 2: real VMSAv8-64 tables in machine memory, shared with the CPU's p2m.

4 KiB granule, fully populated when the domain is built, blocks where alignment allows. The
tables are the only record: what the hypervisor itself reads for a guest goes through the same
descriptors that the physical SMMU walks.

A range is removed at run time in two halves, with an invalidation between them: `clear` and
`make`. A block that is cut is invalid for hardware between the two (break before make), while the
hypervisor already sees the table that takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from vsmmu.arch.pagetable import G4K, TABLE, VALID, S2Leaf, output_address
from vsmmu.arch.registers import OAS_BITS
from vsmmu.hypervisor.pages import OutOfMemoryError, PageAllocator
from vsmmu.memory import PAGE, Ipa, Memory, Pa

_ENTRIES = 512
_SHIFT = tuple(G4K.shift(level) for level in range(4))
_LINK = VALID | TABLE
_READABLE, _WRITABLE = S2Leaf.mask("valid", "s2ap_r")[0], S2Leaf.mask("valid", "s2ap_w")[0]
_MEMATTR_WB = 0xF
_MEMATTR_DEVICE = 0x1
_MAX_CONCATENATED_BITS = 4
# The most that its tables translate, with 4K pages and without IDR5.DS, and its IDR5.OAS code.
IPA_BITS_MAX = 48
OAS_MAX = OAS_BITS.index(IPA_BITS_MAX)


@dataclass(frozen=True, slots=True)
class Change:
    """What `Stage2.clear` took from hardware: the IPAs to invalidate, tables nothing links to.

    `leaf` says that the descriptors changed were all leaves. `tables` are pages to give back after
    the invalidation.
    """

    ipa: int
    size: int
    leaf: bool = True
    tables: tuple[int, ...] = ()


class Stage2:
    """Maps IPA to PA in tables of its own.

    Args:
        memory: the machine's memory, where the tables are built.
        pages: where the tables' pages come from.
        ipa_bits: size of the guest's address space, 32 to `IPA_BITS_MAX`.
        oas: IDR5.OAS code that the output must fit.

    Attributes:
        tables_max: tables it may have; None while it is built.
    """

    def __init__(self, memory: Memory, pages: PageAllocator, *, ipa_bits: int, oas: int) -> None:
        self._memory = memory
        self._pages = pages
        self.ipa_bits = ipa_bits
        self.oas = oas
        # Up to 16 tables may stand side by side at the first level instead of one level more.
        self.start = G4K.start_level(max(ipa_bits - _MAX_CONCATENATED_BITS, 13))
        tables = 1 << max(0, ipa_bits - G4K.shift(self.start) - G4K.stride)
        self.tables_max: int | None = None
        self._tables: dict[int, int] = {}
        # Descriptors that are written once the block that was there is invalidated, by slot.
        self._broken: dict[int, int] = {}
        self.root = Pa(self._allocate(tables))
        self._leaves: list[tuple[int, int, int]] | None = None

    @property
    def ste_fields(self) -> dict[str, int]:
        """The STE's stage 2 fields (IHI 0070 §5.2); S2R so that faults are recorded."""
        return {
            "s2t0sz": 64 - self.ipa_bits,
            "s2sl0": 2 - self.start,
            "s2ir0": 1,
            "s2or0": 1,
            "s2sh0": 3,
            "s2tg": 0,
            "s2ps": self.oas,
            "s2aa64": 1,
            "s2ptw": 1,
            "s2r": 1,
            "s2ttb": self.root,
        }

    def map(
        self, ipa: int, pa: int, size: int, *, write: bool = True, device: bool = False
    ) -> None:
        """Map a page-aligned range, replacing what was there.

        Raises:
            ValueError: not page aligned, or outside the IPA or PA size.
        """
        if (ipa | pa | size) % PAGE or size <= 0:
            raise ValueError(f"stage 2 maps pages: {ipa:#x} -> {pa:#x}+{size:#x}")
        if (ipa + size - 1) >> self.ipa_bits or (pa + size - 1) >> OAS_BITS[self.oas]:
            raise ValueError(f"{ipa:#x} -> {pa:#x}+{size:#x} is out of range")
        self._leaves = None
        while size:
            level = self._best_level(ipa, pa, size)
            step = 1 << G4K.shift(level)
            self._memory.write64(self._slot(ipa, level), _leaf(pa, level, write, device))
            ipa, pa, size = ipa + step, pa + step, size - step

    def unmap(self, ipa: int, size: int) -> None:
        """Remove a page-aligned range; a block that it cuts is broken into smaller ones.

        The caller invalidates: break before make needs it between the two halves of a split, and
        no translation may be in use by then.
        """
        self._leaves = None
        end = ipa + size
        while ipa < end:
            level, slot, word = self._find(ipa)
            step = 1 << G4K.shift(level)
            if word & VALID and (ipa % step or end - ipa < step):
                self._split(slot, word, level)
                continue
            if word & VALID:
                self._memory.write64(slot, 0)
            ipa = (ipa // step + 1) * step

    def clear(self, ipa: int, size: int, *, hitless: bool) -> Change:
        """Take a mapped range out: first half of break before make.

        The caller invalidates what the result says, then calls `make`.

        Args:
            ipa, size: whole pages, mapped by one table or by one block.
            hitless: a cut block may be replaced at once (IDR3.BBML is 2 on every SMMU).

        Raises:
            OutOfMemoryError: no page for a table; nothing has changed.
        """
        self._leaves = None
        level, slot, word = self._find(ipa)
        step = 1 << G4K.shift(level)
        if level == 3 or (size == step and not ipa % step):
            for i in range(size // step):
                self._memory.write64(slot + 8 * i, 0)
            tables = self._prune(ipa)
            return Change(ipa, size, not tables, tables)
        table = self._cut(word, level, ipa, size) | TABLE | VALID
        self._memory.write64(slot, table if hitless else 0)
        if not hitless:
            self._broken[slot] = table
        return Change(ipa // step * step, step)

    @property
    def tables(self) -> int:
        """Tables it has."""
        return len(self._tables)

    def make(self) -> None:
        """Second half of break before make: link the tables that replace cut blocks."""
        for slot, word in self._broken.items():
            self._memory.write64(slot, word)
        self._broken.clear()

    def fill(self, ipa: int, pa: int, size: int, *, write: bool = True) -> None:
        """Map a range where nothing is mapped. Invalid to valid needs no invalidation (§3.17).

        Raises:
            OutOfMemoryError: no page for a table; pages before it are mapped.
        """
        block = 1 << G4K.shift(2)
        if size == block and not (ipa | pa) % block and self._find(ipa)[0] < 3:
            self.map(ipa, pa, size, write=write)
            return
        for offset in range(0, size, PAGE):
            self.map(ipa + offset, pa + offset, PAGE, write=write)

    def extent(self, ipa: int) -> tuple[int, int] | None:
        """(PA, bytes to the end of its leaf) of a mapped IPA; None when not mapped."""
        if ipa < 0 or ipa >> self.ipa_bits:
            return None
        level, _, word = self._find(ipa)
        if not word & VALID:
            return None
        shift = G4K.shift(level)
        offset = ipa & (1 << shift) - 1
        return output_address(word, shift) | offset, (1 << shift) - offset

    def to_pa(self, ipa: int, *, write: bool = False) -> Pa | None:
        """Where an IPA lies in the machine; None when not mapped (or not writable)."""
        if ipa < 0 or ipa >> self.ipa_bits or not self._tables:
            return None
        level, _, word = self._find(ipa)
        needed = _WRITABLE if write else _READABLE
        if word & needed != needed:
            return None
        shift = _SHIFT[level]
        return Pa(output_address(word, shift) | ipa & (1 << shift) - 1)

    def mappings(self) -> list[tuple[int, int, int]]:
        """Every leaf as (IPA, PA, size), in order of IPA."""
        if self._leaves is not None:
            return self._leaves
        found = []
        first = 1 << (self.ipa_bits - G4K.shift(self.start))
        stack = [(self.root, self.start, 0, first)]
        while stack:
            table, level, ipa, entries = stack.pop()
            step = 1 << G4K.shift(level)
            for i in range(entries):
                word = self._word(table + 8 * i)
                if word & VALID and (level == 3 or not word & TABLE):
                    found.append((ipa + i * step, output_address(word, G4K.shift(level)), step))
                elif word & VALID:
                    stack.append(
                        (Pa(output_address(word, 12)), level + 1, ipa + i * step, _ENTRIES)
                    )
        self._leaves = sorted(found)
        return self._leaves

    def to_ipa(self, pa: int) -> Ipa | None:
        """The lowest IPA that maps to a machine address; None when the domain has it not."""
        for ipa, base, size in self.mappings():
            if base <= pa < base + size:
                return Ipa(ipa + pa - base)
        return None

    def release(self) -> None:
        """Give the tables' pages back. Nothing may walk them any more."""
        for place, size in self._tables.items():
            self._give_back(place, size)
        self._tables.clear()
        self._leaves = []

    def free_tables(self, tables: tuple[int, ...]) -> None:
        """Give back tables that `clear` unlinked, once no walk can be in them."""
        for place in tables:
            self._give_back(place, self._tables.pop(place))

    def _give_back(self, place: int, size: int) -> None:
        # Descriptors are machine addresses: the next owner of the page must not read them.
        self._memory.clear(place, size)
        self._pages.free(place, size)

    def _read(self, pa: int) -> int:
        word = self._memory.read64(pa)
        assert word is not None, "a stage 2 table lies in RAM"
        return word

    def _word(self, slot: int) -> int:
        """The descriptor as the hypervisor sees it: a broken block's table is there already."""
        word = self._memory.read64(slot)
        assert word is not None, "a stage 2 table lies in RAM"
        return word or self._broken.get(slot, 0)

    def _allocate(self, tables: int) -> int:
        """Tables side by side, aligned to their size and zeroed."""
        size = tables * PAGE
        if self.tables_max is not None and len(self._tables) >= self.tables_max:
            raise OutOfMemoryError(size, 0)
        place = self._pages.allocate(size, size)
        self._tables[place] = size
        self._memory.write(place, bytes(size))
        return place

    def _best_level(self, ipa: int, pa: int, size: int) -> int:
        for level in (1, 2):
            step = 1 << G4K.shift(level)
            if level >= self.start and not (ipa | pa) % step and size >= step:
                return level
        return 3

    def _index(self, ipa: int, level: int) -> int:
        index = ipa >> _SHIFT[level]
        return index if level == self.start else index % _ENTRIES

    def _find(self, ipa: int) -> tuple[int, int, int]:
        """(level, address, descriptor) where the walk for `ipa` ends."""
        level = self.start
        slot = self.root + 8 * (ipa >> _SHIFT[level])
        while True:
            word = self._word(slot)
            if level == 3 or word & _LINK != _LINK:
                return level, slot, word
            level += 1
            slot = output_address(word, 12) + 8 * (ipa >> _SHIFT[level] & _ENTRIES - 1)

    def _slot(self, ipa: int, wanted: int) -> int:
        """Address of the descriptor for `ipa` at a level, tables made on the way."""
        while True:
            level, slot, word = self._find(ipa)
            if level > wanted:
                return self._replace_table(ipa, wanted)
            if level == wanted:
                return slot
            if word & VALID:
                self._split(slot, word, level)
            else:
                table = self._allocate(1)
                self._memory.write64(slot, table | TABLE | VALID)

    def _replace_table(self, ipa: int, wanted: int) -> int:
        """The slot of a block that replaces a whole table; the table's pages stay allocated."""
        table, level = int(self.root), self.start
        while level < wanted:
            table = output_address(self._read(table + 8 * self._index(ipa, level)), 12)
            level += 1
        return table + 8 * self._index(ipa, level)

    def _cut(self, word: int, level: int, ipa: int, size: int) -> int:
        """A table with a block's mappings but for a range; smaller tables where that cuts too."""
        step, shift = 1 << G4K.shift(level + 1), G4K.shift(level + 1)
        table = self._allocate(1)
        self._expand(table, word, level)
        for at in range(ipa // step * step, ipa + size, step):
            slot = table + 8 * (at >> shift) % (8 * _ENTRIES)
            entry = 0
            if not ipa <= at <= ipa + size - step:
                try:
                    entry = self._cut(self._read(slot), level + 1, ipa, size) | TABLE | VALID
                except OutOfMemoryError:
                    self.free_tables((table,))
                    raise
            self._memory.write64(slot, entry)
        return table

    def _prune(self, ipa: int) -> tuple[int, ...]:
        """Unlink the tables on the way to `ipa` that hold nothing any more, the last one first."""
        path, table, level = [], int(self.root), self.start
        while level < 3:
            slot = table + 8 * self._index(ipa, level)
            word = self._word(slot)
            if word & (VALID | TABLE) != VALID | TABLE:
                break
            table, level = output_address(word, 12), level + 1
            path.append((slot, table))
        gone = []
        while path and self._memory.read(path[-1][1], PAGE) == bytes(PAGE):
            slot, table = path.pop()
            self._memory.write64(slot, 0)
            gone.append(table)
        return tuple(gone)

    def _split(self, slot: int, word: int, level: int) -> None:
        """Replace a block by a table of the next level with the same mappings."""
        table = self._allocate(1)
        self._expand(table, word, level)
        self._memory.write64(slot, table | TABLE | VALID)

    def _expand(self, table: int, word: int, level: int) -> None:
        """Fill a table with the mappings of a block of `level`."""
        step = 1 << G4K.shift(level + 1)
        base = output_address(word, G4K.shift(level))
        attributes = word & ~(base | TABLE)
        kind = TABLE if level + 1 == 3 else 0
        for i in range(_ENTRIES):
            self._memory.write64(table + 8 * i, base + i * step | attributes | kind)


def _leaf(pa: int, level: int, write: bool, device: bool) -> int:
    return _attributes(level, write, device) | pa


@cache
def _attributes(level: int, write: bool, device: bool) -> int:
    """A leaf without its address. Of all domains, there are a dozen."""
    return S2Leaf.build(
        valid=1,
        table=int(level == 3),
        memattr=_MEMATTR_DEVICE if device else _MEMATTR_WB,
        s2ap_r=1,
        s2ap_w=int(write),
        sh=0 if device else 3,
        af=1,
        # RAM is executable: the CPU's stage 2 is this one, and a device may fetch instructions.
        xn1=int(device),
    ).raw
