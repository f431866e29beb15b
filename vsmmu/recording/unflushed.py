# SPDX-License-Identifier: BSD-2-Clause
"""Mappings that no invalidation reached, seen in the tables alone.

A TLB may hold whatever was valid in a table. An address whose leaf descriptor was valid, and gets
another output address before a CMD_TLBI_* reached the old one, is a fault of the driver or a
command that is missing in the recording, whether a device uses the address or not (Arm ARM D8.16).

Two more are no faults by themselves, but a contradiction to what the driver did before: it flushed
`HABIT` mappings that it had removed, each before it used the address again, and now one is made
again as it was without a flush, or is not flushed to the end, `PATIENCE` command batches later.

Leaf tables are known from accesses: the tables that the first access to each 2 MiB went through.
What is suspected is looked up again, once all of memory is up to date: a table that was linked
anew since the old mapping was made is another table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vsmmu.arch.pagetable import ADDR_MASK, TABLE, TTB_SELECT, VALID
from vsmmu.memory import PAGE_SHIFT
from vsmmu.recording.format import Dma, Mem
from vsmmu.recording.looks import look
from vsmmu.recording.memory import RecordedMemory
from vsmmu.smmu.intent import TlbScope
from vsmmu.smmu.regime import Table
from vsmmu.smmu.smmu import Smmu
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import VA_MASK, Access, Fault

# 2 MiB pieces of streams whose tables are known, and changed mappings that are remembered.
REGIONS, CHANGES = 1 << 16, 1 << 10
# Removed mappings that were flushed in time; writes of CMDQ_PROD that a flush may take.
HABIT, PATIENCE = 16, 256
_REGION = 21
_KIND = VALID | TABLE
_LAST_LEVEL = 3


@dataclass(frozen=True, slots=True)
class _Leaves:
    """A table with leaves: its address, the input address of its first, log2 of a leaf's bytes."""

    base: int
    address: int
    shift: int
    kind: int
    sid: int
    vmid: int
    asid: int | None


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

    `suspects` has what `moved` looks at when memory is up to date: before a write or an access.

    Args:
        smmu: one whose configuration is asked; it caches nothing else.
        memory: its memory.
        tlb: what commands invalidate.
    """

    def __init__(self, smmu: Smmu, memory: RecordedMemory, tlb: Tlb) -> None:
        self._smmu = smmu
        self._tlb = tlb
        tlb.scoped = self.invalidated
        self._memory = memory
        self._regions: set[tuple[int, int]] = set()
        self._frames: dict[int, _Leaves] = {}
        self._changes: dict[int, _Change] = {}
        self.suspects: list[Moved] = []
        self._habit = self.batches = 0

    # What happens.

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
            del self._changes[slot]
        self._habit += len(gone)

    def moved(self) -> Moved | None:
        """A mapping that moved without an invalidation, now that memory is up to date."""
        suspects, self.suspects = self.suspects, []
        return next((one for one in suspects if self._holds(one)), None)

    def unreached(self) -> Moved | None:
        """A mapping that was removed long before the end, and never flushed."""
        if self._habit < HABIT:
            return None
        for slot, change in self._changes.items():
            found = _moved(change.changed, slot, change, None)
            if self.batches - change.batches > PATIENCE and self._holds(found):
                return found
        return None

    # Tables.

    def _learn(self, dma: Dma) -> None:
        access = Access(dma.sid, dma.iova, dma.access == 2)
        tables = self._tables(dma)
        looks = look(self._smmu, access)[1]
        if tables is None or not looks or not looks[-1].what.startswith("stage"):
            return
        table, vmid, asid = tables
        level = int(looks[-1].what.rpartition(" ")[2])
        granule, slot = table.granule, looks[-1].address
        shift = granule.shift(level)
        base = slot & -granule.page_size
        kind = _KIND if level == _LAST_LEVEL else VALID
        first = ((dma.iova & VA_MASK) >> shift << shift) - ((slot - base) >> 3 << shift)
        leaves = _Leaves(base, first, shift, kind, dma.sid, vmid, asid)
        for frame in range(base >> PAGE_SHIFT, (base + granule.page_size) >> PAGE_SHIFT):
            self._frames[frame] = leaves

    def _tables(self, dma: Dma) -> tuple[Table, int, int | None] | None:
        """The table of an access, its VMID and its ASID; None for a nested stream, and for none."""
        stream = self._smmu.config.stream(dma.sid)
        if isinstance(stream, Fault):
            return None
        if not stream.stage1:
            return None if stream.stage2 is None else (stream.stage2.table, stream.vmid, None)
        context = self._smmu.config.context(dma.sid, stream)
        if isinstance(context, Fault) or stream.stage2 is not None:
            return None
        table = context.stage1.tables[dma.iova >> TTB_SELECT & 1]
        return None if table is None or table.wide else (table, stream.vmid, context.asid)

    def _changed(self, number: int, pa: int, data: bytes) -> None:
        for offset in range(-pa % 8, len(data) - 7, 8):
            slot = pa + offset
            leaves = self._frames.get(slot >> PAGE_SHIFT)
            if leaves is None:
                continue
            old = self._memory.read64(slot) or 0
            new = int.from_bytes(data[offset : offset + 8], "little")
            if old != new:
                self._leaf(number, slot, old, new, leaves)

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
            self.suspects.append(_moved(number, slot, change, new))
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
        record, slot, change.address, change.leaves.sid, change.old, new, change.written,
        change.changed,
    )  # fmt: skip


def _covers(scope: TlbScope, change: _Change) -> bool:
    leaves = change.leaves
    if scope.vmid is not None and scope.vmid != leaves.vmid:
        return False
    if scope.asid is not None and leaves.asid is not None and scope.asid != leaves.asid:
        return False
    if scope.addresses is None:
        return True
    first, last = scope.addresses
    return change.address <= last and first < change.address + (1 << leaves.shift)
