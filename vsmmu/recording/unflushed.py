# SPDX-License-Identifier: BSD-2-Clause
"""Mappings that no invalidation reached, seen in the tables alone.

A TLB may hold whatever was valid in a table. An address whose leaf descriptor was valid, and gets
another output address before a CMD_TLBI_* reached the old one, is a fault of the driver or a
command that is missing in the recording, whether a device uses the address or not (Arm ARM D8.16).

Two more are no faults by themselves, but a contradiction to what the driver did before: it flushed
`HABIT` mappings that it had removed, each before it used the address again, and now one is made
again as it was without a flush, or is not flushed to the end, although that is `PATIENCE` times
more command batches later than any flush came before.

Tables are known from accesses: those that the first access to each 2 MiB went through, and those
that they lead to. What is suspected is looked up again, once all of memory is up to date: a table
that was linked anew since the old mapping was made is another table.
"""

from __future__ import annotations

from typing import NamedTuple

from vsmmu.arch.pagetable import ADDR_MASK, TABLE, TTB_SELECT, VALID, Granule
from vsmmu.memory import PAGE_SHIFT
from vsmmu.recording.format import Access as Kind
from vsmmu.recording.format import Dma, Mem
from vsmmu.recording.looks import look
from vsmmu.recording.memory import RecordedMemory
from vsmmu.recording.unlike import Unlike, Words
from vsmmu.smmu.intent import TlbScope
from vsmmu.smmu.regime import Table
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import VA_MASK, Access, Fault

# Bounds: 2 MiB pieces of streams whose tables were looked for, changed mappings that are
# remembered, pages of tables.
REGIONS, CHANGES, TABLES = 1 << 16, 1 << 10, 1 << 13
# Removed mappings that were flushed in time. How much longer than others a flush may take, in
# writes of CMDQ_PROD, and how long in any case.
HABIT, PATIENCE, WAIT = 16, 4, 16
_REGION = 21
_KIND = VALID | TABLE
_LAST_LEVEL = 3


class _Space(NamedTuple):
    """Whose addresses a table translates, and how its tables are made."""

    sid: int
    vmid: int
    asid: int | None
    granule: Granule


class _Leaves(NamedTuple):
    """A table: its address, its level, the input address of its first descriptor."""

    base: int
    level: int
    address: int
    space: _Space

    @property
    def shift(self) -> int:
        """log2 of the bytes that a descriptor translates."""
        return self.space.granule.shift(self.level)

    @property
    def kind(self) -> int:
        """The low bits of a leaf."""
        return _KIND if self.level == _LAST_LEVEL else VALID


class _Change(NamedTuple):
    """A leaf that was valid and is something else.

    `changed` is the record since which, `written` the one that had written it; `batches` counts
    the writes of CMDQ_PROD before.
    """

    old: int
    changed: int
    written: int
    address: int
    leaves: _Leaves
    batches: int


class Moved(NamedTuple):
    """An address whose mapping was not flushed: the records, and the descriptors.

    `new` is None where it was not made again; then `record` is `changed`.
    """

    record: int
    slot: int
    address: int
    sid: int
    old: int
    new: int | None
    written: int
    changed: int


class Unflushed:
    """Follows the leaf tables of one SMMU.

    `waiting` says that `moved` has something to look at once memory is up to date: before a write
    or an access.

    Args:
        smmu: one whose configuration is asked; it caches nothing else.
        memory: its memory.
        tlb: what commands invalidate.
        unlike: takes the descriptors that are seen.
    """

    def __init__(self, smmu: Smmu, memory: RecordedMemory, tlb: Tlb, unlike: Unlike) -> None:
        self._smmu = smmu
        self._tlb = tlb
        tlb.scoped = self.invalidated
        self._memory = memory
        self._regions: set[tuple[int, int]] = set()
        self._frames: dict[int, _Leaves] = {}
        self._changes: dict[int, _Change] = {}
        self._suspects: list[Moved] = []
        self._linked: list[_Leaves] = []
        self._unlike = unlike
        self._new: list[tuple[int, int, _Leaves]] = []
        self._habit = self._slowest = self.batches = 0

    # What happens.

    def removed(self) -> bool:
        """Whether a mapping was removed since the last write of CMDQ_PROD."""
        return any(change.batches == self.batches for change in self._changes.values())

    @property
    def waiting(self) -> bool:
        """Whether there is something to look at."""
        return bool(self._suspects or self._linked or self._new)

    def follows(self, sid: int, iova: int) -> bool:
        """Whether the table of an address was looked for already."""
        return (sid, iova >> _REGION) in self._regions

    def learn(self, dma: Dma) -> None:
        """A device access: its table is followed from now on."""
        if len(self._regions) >= REGIONS:
            self._regions.clear()
            self._frames.clear()
        self._regions.add((dma.sid, dma.iova >> _REGION))
        self._learn(dma)

    def installed(self, sid: int) -> None:
        """A stream's configuration is another: its tables are followed, used or not."""
        self._learn(Dma(sid, Kind.READ, 0, 0, 0, 0, 0, 0, 0))

    def store(self, number: int, record: Mem) -> None:
        """Memory is about to change."""
        pa, data = record
        frames = self._frames
        if not frames:
            return
        first, last = pa >> PAGE_SHIFT, (pa + len(data) - 1) >> PAGE_SHIFT
        if last - first <= len(frames) and any(f in frames for f in range(first, last + 1)):
            self._changed(number, pa, data)

    def invalidated(self, scope: TlbScope) -> None:
        """A command dropped what it names; with CR0.VMW what other VMIDs have too."""
        scope = scope._replace(vmid=None) if self._tlb.vmw else scope
        gone = [slot for slot, change in self._changes.items() if _covers(scope, change)]
        for slot in gone:
            self._slowest = max(self._slowest, self.batches - self._changes.pop(slot).batches)
        self._habit += len(gone)

    def moved(self) -> Moved | None:
        """A mapping that moved without an invalidation, now that memory is up to date."""
        linked, self._linked = self._linked, []
        for leaves in linked:
            # A page that was a table of something else before may lead elsewhere.
            if self._reaches(leaves.base, leaves):
                self._follow(leaves)
        new, self._new = self._new, []
        for record, slot, leaves in new:
            # As above: the page may be a table of something else by now.
            now = self._frames.get(slot >> PAGE_SHIFT, leaves)
            kind = self._kind(leaves)
            if not any(
                self._kind(one) is kind and self._reaches(slot, one) for one in (leaves, now)
            ):
                kind.forget(record, slot)
        suspects, self._suspects = self._suspects, []
        return next((one for one in suspects if self._holds(one)), None)

    def unreached(self) -> Moved | None:
        """A mapping that was removed long before the end, and never flushed."""
        if self._habit < HABIT:
            return None
        patience = max(WAIT, PATIENCE * self._slowest)
        for slot, change in self._changes.items():
            found = _moved(change.changed, slot, change, None)
            if self.batches - change.batches > patience and self._holds(found):
                return found
        return None

    # Tables.

    def _learn(self, dma: Dma) -> None:
        found = self._table(dma)
        if found is None:
            return
        table, space = found
        looks = look(self._smmu, Access(dma.sid, dma.iova, dma.access == 2))[1]
        granule = table.granule
        for one in looks:
            if not one.what.startswith("stage"):
                continue
            level = int(one.what.rpartition(" ")[2])
            shift, base = granule.shift(level), one.address & -granule.page_size
            first = ((dma.iova & VA_MASK) >> shift) - ((one.address - base) >> 3) << shift
            self._follow(_Leaves(base, level, first, space))

    def _follow(self, leaves: _Leaves) -> None:
        """Follow a table and those that it leads to, unless that is known."""
        queue = [leaves]
        while queue and len(self._frames) < TABLES:
            one = queue.pop()
            size = one.space.granule.page_size
            if self._frames.get(one.base >> PAGE_SHIFT) == one:
                continue
            for frame in range(one.base >> PAGE_SHIFT, (one.base + size) >> PAGE_SHIFT):
                self._frames[frame] = one
            words = self._memory.read_words(one.base, size >> 3) or ()
            for slot, word in zip(range(one.base, one.base + size, 8), words, strict=False):
                written = self._memory.writer(slot) if word else 0
                if written:
                    self._seen(written, slot, word, one)
            if one.level < _LAST_LEVEL:
                queue += [
                    self._below(one, one.base + 8 * i, word)
                    for i, word in enumerate(words)
                    if word & _KIND == _KIND
                ]

    def _seen(self, record: int, slot: int, word: int, leaves: _Leaves) -> None:
        size = leaves.space.granule.page_size
        first = self._unlike.descriptor(self._kind(leaves), record, slot, word, size)
        if first and len(self._new) < CHANGES:
            self._new.append((record, slot, leaves))

    def _kind(self, leaves: _Leaves) -> Words:
        stage = 2 if leaves.space.asid is None else 1
        return self._unlike.descriptors[stage, leaves.level == _LAST_LEVEL]

    def _reaches(self, slot: int, leaves: _Leaves) -> bool:
        """Whether a descriptor is what translates its address."""
        address = leaves.address + ((slot - leaves.base) >> 3 << leaves.shift)
        looks = look(self._smmu, Access(leaves.space.sid, address, False))[1]
        return any(one.address == slot for one in looks)

    @staticmethod
    def _below(leaves: _Leaves, slot: int, word: int) -> _Leaves:
        base = word & ADDR_MASK & -leaves.space.granule.page_size
        address = leaves.address + ((slot - leaves.base) >> 3 << leaves.shift)
        return _Leaves(base, leaves.level + 1, address, leaves.space)

    def _table(self, dma: Dma) -> tuple[Table, _Space] | None:
        """The table of an access; None for a nested stream, for 52-bit forms, and for none."""
        stream = self._smmu.config.stream(dma.sid)
        if isinstance(stream, Fault):
            return None
        table, asid = None if stream.stage2 is None else stream.stage2.table, None
        if stream.stage1:
            context = self._smmu.config.context(dma.sid, stream)
            if isinstance(context, Fault) or stream.stage2 is not None:
                return None
            table, asid = context.stage1.tables[dma.iova >> TTB_SELECT & 1], context.asid
        if table is None or table.wide:
            return None
        return table, _Space(dma.sid, stream.vmid, asid, table.granule)

    def _changed(self, number: int, pa: int, data: bytes) -> None:
        for offset in range(-pa % 8, len(data) - 7, 8):
            slot = pa + offset
            leaves = self._frames.get(slot >> PAGE_SHIFT)
            if leaves is None:
                continue
            old = self._memory.read64(slot) or 0
            new = int.from_bytes(data[offset : offset + 8], "little")
            if old != new:
                self._seen(number, slot, new, leaves)
                self._leaf(number, slot, old, new, leaves)
                if leaves.level < _LAST_LEVEL and new & _KIND == _KIND:
                    self._linked.append(self._below(leaves, slot, new))

    def _leaf(self, number: int, slot: int, old: int, new: int, leaves: _Leaves) -> None:
        address = leaves.address + ((slot - leaves.base) >> 3 << leaves.shift)
        if old & _KIND == leaves.kind and slot not in self._changes:
            if len(self._changes) >= CHANGES:
                del self._changes[next(iter(self._changes))]
            written = self._memory.writer(slot)
            self._changes[slot] = _Change(old, number, written, address, leaves, self.batches)
        change = self._changes.get(slot)
        if change is None or new & _KIND != leaves.kind:
            return
        if (change.old ^ new) & ADDR_MASK or (change.changed != number and self._habit >= HABIT):
            self._suspects.append(_moved(number, slot, change, new))
        del self._changes[slot]

    def _holds(self, moved: Moved) -> bool:
        """Whether the slot still translates the address, in tables as old as the old mapping."""
        looks = look(self._smmu, Access(moved.sid, moved.address, False))[1]
        if not looks or looks[-1].address != moved.slot:
            self._regions.discard((moved.sid, moved.address >> _REGION))
            return False
        view = looks[-1].view
        now = None if view is None or view.words[0] & VALID == 0 else view.words[0]
        return now == moved.new and all(
            self._memory.writer(one.address, one.size) < moved.written for one in looks[:-1]
        )


def _moved(record: int, slot: int, change: _Change, new: int | None) -> Moved:
    return Moved(
        record, slot, change.address, change.leaves.space.sid, change.old, new, change.written,
        change.changed,
    )  # fmt: skip


def _covers(scope: TlbScope, change: _Change) -> bool:
    leaves, space = change.leaves, change.leaves.space
    if scope.vmid is not None and scope.vmid != space.vmid:
        return False
    if scope.asid is not None and space.asid is not None and scope.asid != space.asid:
        return False
    if scope.addresses is None:
        return True
    first, last = scope.addresses
    return change.address <= last and first < change.address + (1 << leaves.shift)
