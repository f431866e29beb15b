# SPDX-License-Identifier: BSD-2-Clause
"""What an SMMU without caches looks at for one access: each structure, in order, with its words.

The model itself does the lookup, over memory that notes what is read; nothing here walks a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vsmmu.arch.context import Cd, L1Cd
from vsmmu.arch.layout import Layout
from vsmmu.arch.pagetable import (
    TABLE,
    TTB_SELECT,
    VALID,
    S1Leaf,
    S1LeafLpa,
    S1LeafLpa2,
    S2Leaf,
    S2LeafLpa,
    S2LeafLpa2,
    TableDesc,
    TableDescLpa,
    TableDescLpa2,
)
from vsmmu.arch.registers import Cr2
from vsmmu.arch.stream_table import L1Std, Ste
from vsmmu.memory import Memory
from vsmmu.smmu.cd import Context, decode_cd
from vsmmu.smmu.regime import Table
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.ste import Stream, decode_ste
from vsmmu.smmu.transaction import Access, Outcome

_KIND = VALID | TABLE
_E2H = Cr2.mask("e2h")[0]
# Leaf and table descriptors by form: stage 1, stage 2, tables.
_FORMS: dict[str, tuple[type[Layout], type[Layout], type[Layout]]] = {
    "": (S1Leaf, S2Leaf, TableDesc),
    "lpa2": (S1LeafLpa2, S2LeafLpa2, TableDescLpa2),
    "lpa": (S1LeafLpa, S2LeafLpa, TableDescLpa),
}


class Look(NamedTuple):
    """A structure that was read.

    Attributes:
        what: what it is, as "STE" or "stage 1 level 3".
        address: where it is.
        view: its fields; None where the read aborted.
        size: bytes.
    """

    what: str
    address: int
    view: Layout | None
    size: int


class _Noted(NamedTuple):
    address: int
    words: tuple[int, ...] | None
    dwords: int
    # Read as one descriptor, not as a structure of words.
    single: bool


class _Noting(Memory):
    """Memory over another one that notes reads and takes no writes."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory.regions)
        self._below = memory
        self.notes: list[_Noted] = []

    def read64(self, pa: int) -> int | None:
        value = self._below.read64(pa)
        self.notes.append(_Noted(pa & -8, None if value is None else (value,), 1, True))
        return value

    def read_words(self, pa: int, count: int) -> tuple[int, ...] | None:
        words = self._below.read_words(pa, count)
        self.notes.append(_Noted(pa, words, count, False))
        return words

    def write64(self, pa: int, value: int) -> bool:
        return self.is_ram(pa)

    def write(self, pa: int, data: bytes) -> bool:
        return self.is_ram(pa)


def look(smmu: Smmu, access: Access) -> tuple[Outcome, list[Look]]:
    """What an SMMU like this one does with an access when it caches nothing, and what it reads."""
    noting = _Noting(smmu.memory)
    other = Smmu(smmu.name, noting, smmu.features, caching="none")
    other.regs.values.update(smmu.regs.values)
    outcome = other.translate(access)
    return outcome, list(_Labels(other, access, noting.notes))


class _Labels:
    """Names the reads of one lookup, which come in the order of §3.3 and §3.4."""

    def __init__(self, smmu: Smmu, access: Access, notes: Iterable[_Noted]) -> None:
        self._smmu = smmu
        self._high = access.iova >> TTB_SELECT & 1
        self._notes = list(notes)
        self._at = 0
        self._stream: Stream | None = None

    def __iter__(self) -> Iterator[Look]:
        yield from self._stream_table()
        stream = self._stream
        if stream is None:
            return
        if stream.stage1:
            yield from self._stage1(stream)
        yield from self._behind(stream)

    def _next(self) -> _Noted | None:
        return self._notes[self._at] if self._at < len(self._notes) else None

    def _take(self, what: str, layout: type[Layout]) -> Look:
        note = self._notes[self._at]
        self._at += 1
        view = None if note.words is None else layout(note.words)
        return Look(what, note.address, view, 8 * note.dwords)

    def _stream_table(self) -> Iterator[Look]:
        note = self._next()
        if note is not None and note.dwords == L1Std.dwords:
            yield self._take("L1STD", L1Std)
        if self._next() is None:
            return
        ste = self._take("STE", Ste)
        yield ste
        if isinstance(ste.view, Ste):
            e2h = bool(self._smmu.regs["CR2"] & _E2H)
            self._stream = decode_ste(ste.view, self._smmu.features, e2h=e2h)

    def _stage1(self, stream: Stream) -> Iterator[Look]:
        context: Context | None = None
        yield from self._behind(stream)
        note = self._next()
        if note is not None and not note.single and note.dwords == L1Cd.dwords:
            yield self._take("L1CD", L1Cd)
            yield from self._behind(stream)
            note = self._next()
        if note is None or note.single:
            return
        cd = self._take("CD", Cd)
        yield cd
        if isinstance(cd.view, Cd):
            context = decode_cd(cd.view, self._smmu.features, stream)
        table = None if context is None else context.stage1.tables[self._high]
        if table is not None:
            yield from self._descriptors(1, table, stream)

    def _behind(self, stream: Stream) -> Iterator[Look]:
        """Stage 2 of one address, where there is stage 2."""
        if stream.stage2 is not None:
            yield from self._descriptors(2, stream.stage2.table, None)

    def _descriptors(self, stage: int, table: Table, stream: Stream | None) -> Iterator[Look]:
        forms = _FORMS["" if not table.wide else "lpa" if table.granule.name == "64K" else "lpa2"]
        level = table.start_level
        for step in table.steps:
            if stream is not None:
                yield from self._behind(stream)
            note = self._next()
            if note is None or not note.single:
                return
            kind = None if note.words is None else note.words[0] & _KIND
            below = kind == step.table
            form = forms[2] if below else forms[stage - 1]
            yield self._take(f"stage {stage} level {level}", form)
            if not below:
                return
            level += 1
