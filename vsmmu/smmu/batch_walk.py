# SPDX-License-Identifier: BSD-2-Clause
"""Lanes that go down translation tables together, level by level.

As long as all lanes agree (tables here, pages there, nothing out of range), which two reductions
tell, no lane is looked at by itself; where they differ, they are split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vsmmu.arch.events import FAccess, FAddrSize, FPermission, FTranslation, FWalkEabt
from vsmmu.arch.pagetable import TTB_SELECT, S1Leaf
from vsmmu.memory import PAGE, PAGE_SHIFT
from vsmmu.smmu.batch_group import CLEAN, DEVICE, NOT_WRITE, Group, bits, perms1, perms2
from vsmmu.smmu.batch_tables import ENOUGH, TablePages
from vsmmu.smmu.transaction import ALL_PERMS, ANY_WRITE, IN, PRIV_SHIFT, READ, TT
from vsmmu.smmu.walk import Stage1, Stage2, Step, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vsmmu.arch.events import Event
    from vsmmu.smmu.arena import Arena, Lanes, Mask, Words

    Perms = Any

# READ, WRITE and EXEC of one privilege.
RIGHTS = (1 << PRIV_SHIFT) - 1
_AF = S1Leaf.mask("af")[0]


class Faults(NamedTuple):
    """Lanes that stopped for one reason: `Fault` with arrays for what differs."""

    lanes: Lanes
    kind: type[Event]
    s2: int = 0
    cls: int = IN
    ipa: Words | None = None
    fetch: Words | None = None
    update: int = 0


class Walk:
    """One batch on its way through the tables of one context.

    Args:
        arena: memory.
        stage1: the first stage, or None.
        stage2: the second stage, or None.
        need: one of READ, WRITE and EXEC, shifted for a privileged access.
        size: lanes of the whole batch.
        closed: halves of stage 1 that the access may not use.

    Attributes:
        shift: of the privilege.
        pa: output addresses.
        rights: READ, WRITE and EXEC rights of the privilege.
        done: lanes that were translated.
        faults: those that stopped.
        updates: those that have to store a descriptor first.
        reads: descriptors of stage 1 and of stage 2 that the walks take, each by itself.
        tables: where stage 2 has stage 1 tables; to be dropped when a descriptor was stored.
    """

    def __init__(
        self, arena: Arena, stage1: Stage1 | None, stage2: Stage2 | None, need: int, size: int,
        closed: tuple[bool, bool] = (False, False),
    ) -> None:  # fmt: skip
        self._arena = arena
        self._stage1, self._stage2 = stage1, stage2
        self._need = need
        self._closed = closed
        self.shift = PRIV_SHIFT if need >> PRIV_SHIFT else 0
        self.pa: Words = np.zeros(size, dtype=np.int64)
        self.rights: NDArray[np.uint8] = np.zeros(size, dtype=np.uint8)
        self.faults: list[Faults] = []
        self.updates: list[Lanes] = []
        self.reads = [0, 0]
        self.tables: TablePages | None = None

    def run(self, inputs: Words, lanes: Lanes) -> None:
        """Translate `inputs`, the addresses of the ascending `lanes`."""
        if self._stage1 is None:
            self._finish(inputs, lanes, ALL_PERMS)
            return
        if not int(np.bitwise_or.reduce(inputs)) >> TTB_SELECT & 1:
            self._half(self._stage1, 0, inputs, lanes)
            return
        upper = (inputs >> TTB_SELECT & 1).astype(np.bool_)
        self._half(self._stage1, 1, inputs[upper], lanes[upper])
        self._half(self._stage1, 0, inputs[~upper], lanes[~upper])

    def _half(self, regime: Stage1, half: int, inputs: Words, lanes: Lanes) -> None:
        """Lanes that select one TTB."""
        table = regime.tables[half]
        if table is None or self._closed[half]:
            self._stop(lanes, FTranslation)
            return
        mask = signed(table.range_mask)
        if half or int(np.bitwise_or.reduce(inputs)) & mask:
            right = (inputs & mask) == (mask if half else 0)
            self._stop(lanes[~right], FTranslation)
            inputs, lanes = inputs[right], lanes[right]
        if lanes.size:
            for step, group in self._descend(regime, table, inputs, lanes, IN):
                self._leaf1(regime, table, step, group)

    def _finish(self, inputs: Words, lanes: Lanes, perms: Perms) -> None:
        """The last stage: stage 2 where there is one, on what stage 1 lets through."""
        pa = inputs
        if self._stage2 is not None:
            pa, under, kept = self._through(self._stage2, inputs, lanes, IN, self._need)
            if kept is not None:
                pa, lanes = pa[kept], lanes[kept]
                perms = perms[kept] if np.ndim(perms) else perms
                under = under[kept] if np.ndim(under) else under
            perms = perms & under
        places = _places(lanes)
        self.pa[places] = pa
        self.rights[places] = perms >> self.shift & RIGHTS

    def _stop(
        self, lanes: Lanes, kind: type[Event], s2: int = 0, cls: int = IN,
        ipa: Words | None = None, fetch: Words | None = None,
    ) -> None:  # fmt: skip
        if lanes.size:
            self.faults.append(Faults(lanes, kind, s2, cls, ipa, fetch))

    # Down the tables.

    def _descend(
        self, regime: Stage1 | Stage2, table: Table, inputs: Words, lanes: Lanes, cls: int
    ) -> Iterator[tuple[Step, Group]]:
        """The leaves, level by level; what stops on the way is in `faults`."""
        first = isinstance(regime, Stage1)
        under = self._stage2 if first else None
        attributes: Words | None = None
        base: Words | int = table.base
        for step in table.steps if lanes.size else ():
            index = inputs >> step.shift
            index &= step.index_mask
            at, words, kept = self._fetch(table, under, base, index, lanes)
            if kept is not None:
                lanes, inputs = lanes[kept], inputs[kept]
                attributes = None if attributes is None else attributes[kept]
                if not lanes.size:
                    return
            self.reads[0 if first else 1] += lanes.size
            group = Group(lanes, inputs, at, words, *bits(words), attributes)
            tables, leaves = group.kinds(step)
            if leaves is True:
                yield step, group
                return
            if tables is not True:
                if at is base:
                    group = group._replace(at=base + (index << 3))
                if not isinstance(leaves, bool):
                    yield step, group.only(leaves)
                group = self._invalid(group, tables, leaves, 1 if first else 2, cls)
            base = group.outputs(table, table.next_mask)
            if group.beyond(table, table.next_mask, regime.output_bits):
                group, base = self._inside(regime, group, base, 1 if first else 2, cls)
            lanes, inputs, *_, attributes = group
            if not lanes.size:
                return
            if first and not table.had:
                attributes = group.inherited()

    def _fetch(
        self, table: Table, under: Stage2 | None, base: Words | int, index: Words, lanes: Lanes
    ) -> tuple[Words, Words, Mask | None]:
        """(where, descriptors, which lanes came through stage 2; None is all).

        Of tables that fill a page, "where" is the table: the fast way needs no more.
        """
        if under is None and table.granule.page_size == PAGE and not isinstance(base, int):
            return base, self._arena.in_page(base, index), None
        index <<= 3
        index += base
        if under is None:
            return index, self._arena.gather(index), None
        at, kept = self._tables_behind(under, index, lanes)
        if kept is not None:
            at = at[kept]
        return at, self._arena.gather(at), kept

    def _tables_behind(
        self, under: Stage2, slots: Words, lanes: Lanes
    ) -> tuple[Words, Mask | None]:
        """(PAs of stage 1 descriptors, which lanes came through stage 2; None is all)."""
        if self.tables is None:
            if lanes.size < ENOUGH:
                at, _, kept = self._through(under, slots, lanes, TT, READ)
                return at, kept
            self.tables = TablePages()
        at, unknown = self.tables.find(slots)
        if unknown is not None:
            self._learn(self.tables, under, np.unique(slots[unknown] >> PAGE_SHIFT) << PAGE_SHIFT)
            at, unknown = self.tables.find(slots)
        if unknown is None:
            self.reads[1] += self.tables.reads(slots)
            return at, None
        self.reads[1] += self.tables.reads(slots[~unknown])
        at[unknown], _, some = self._through(under, slots[unknown], lanes[unknown], TT, READ)
        if some is None:
            return at, None
        kept = ~unknown
        kept[unknown] = some
        return at, kept

    def _learn(self, tables: TablePages, under: Stage2, pages: Words) -> None:
        """See where stage 2 has these pages, without a trace in counters and faults."""
        pages = pages[pages >> under.table.input_bits == 0]
        probe = Walk(self._arena, None, under, READ, 0)
        for step, leaves in probe._descend(under, under.table, pages, np.arange(pages.size), TT):
            group, address, _ = probe._leaf2(under, step, leaves, TT, READ)
            if group.lanes.size:
                tables.learn(group.inputs, address, step.reads)

    def _stop_group(self, group: Group, kind: type[Event], stage: int, cls: int) -> None:
        """Fault of a stage: stage 2 names the IPA and what it was for."""
        if stage == 1:
            self._stop(group.lanes, kind)
        else:
            self._stop(group.lanes, kind, 1, cls, group.inputs)

    def _invalid(
        self, group: Group, tables: Mask | bool, leaves: Mask | bool, stage: int, cls: int
    ) -> Group:
        """Stop lanes whose descriptor is invalid, or cannot be read (which looks like zero).

        Returns those whose descriptor is a table.
        """
        if isinstance(tables, bool) or isinstance(leaves, bool):
            wrong, below = group, group.only(np.zeros(group.lanes.shape, dtype=np.bool_))
        else:
            wrong, below = group.only(~(tables | leaves)), group.only(tables)
        ram = self._arena.is_ram(wrong.at)
        self._stop_group(wrong.only(ram), FTranslation, stage, cls)
        lost = wrong.only(~ram)
        if stage == 1:
            self._stop(lost.lanes, FWalkEabt, 0, TT, None, lost.at)
        else:
            self._stop(lost.lanes, FWalkEabt, 1, cls, lost.inputs, lost.at)
        return below

    def _inside(
        self, regime: Stage1 | Stage2, group: Group, address: Words, stage: int, cls: int
    ) -> tuple[Group, Words]:
        """The lanes whose output address is in range."""
        inside = address >> regime.output_bits == 0
        self._stop_group(group.only(~inside), FAddrSize, stage, cls)
        return group.only(inside), address[inside]

    # Leaves.

    def _leaf1(self, regime: Stage1, table: Table, step: Step, group: Group) -> None:
        address = group.outputs(table, step.oa)
        if group.beyond(table, step.oa, regime.output_bits):
            group, address = self._inside(regime, group, address, 1, IN)
        index = group.decisive()
        found = perms1(regime.wxn, regime.pan, regime.hd, regime.el2)[index]
        group, address, perms = self._grant(regime, group, address, found, 1, IN, self._need)
        if group.lanes.size:
            address |= group.inputs & ((1 << step.shift) - 1)
            self._finish(address, group.lanes, perms)

    def _grant(
        self, regime: Stage1 | Stage2, group: Group, address: Words, found: Perms,
        stage: int, cls: int, need: int,
    ) -> tuple[Group, Words, Perms]:  # fmt: skip
        """Access flag, permissions, update of the descriptor; the lanes that come through."""
        unset = None
        if not group.every & _AF:
            unset = group.words & _AF == 0
            if not (regime.ha or regime.affd):
                self._stop_group(group.only(unset), FAccess, stage, cls)
                group, address, found = _only(~unset, group, address, found)
                unset = None
        lacking = found & need == 0
        if np.any(lacking):
            lacking = np.broadcast_to(lacking, group.lanes.shape)
            self._stop_group(group.only(lacking), FPermission, stage, cls)
            unset = None if unset is None else unset[~lacking]
            group, address, found = _only(~lacking, group, address, found)
        clean = found & CLEAN != 0
        if need & ANY_WRITE:
            unset = clean if unset is None else unset & regime.ha | clean
        elif unset is not None:
            unset &= regime.ha
        if unset is not None and np.any(unset):
            unset = np.broadcast_to(unset, group.lanes.shape)
            self.updates.append(group.lanes[unset])
            group, address, found = _only(~unset, group, address, found)
        if np.any(clean) and not need & ANY_WRITE:
            found = np.where(found & CLEAN, found & NOT_WRITE, found)
        return group, address, found

    # Stage 2 of what stage 1 finds, or alone.

    def _through(
        self, regime: Stage2, ipa: Words, lanes: Lanes, cls: int, need: int
    ) -> tuple[Words, Perms, Mask | None]:
        """(addresses, permissions, which lanes came through; None is all)."""
        table = regime.table
        inputs, places = ipa, lanes
        if int(np.bitwise_or.reduce(ipa)) >> table.input_bits:
            inside = ipa >> table.input_bits == 0
            self._stop(lanes[~inside], FTranslation, 1, cls, ipa[~inside])
            inputs, places = ipa[inside], lanes[inside]
        pa, perms = np.zeros_like(ipa), np.zeros(ipa.shape, dtype=np.uint16)
        kept: Mask = np.zeros(ipa.shape, dtype=np.bool_)
        for step, leaves in self._descend(regime, table, inputs, places, cls):
            group, address, found = self._leaf2(regime, step, leaves, cls, need)
            if group.lanes.size == lanes.size:
                return address, found, None
            at = lanes.searchsorted(group.lanes)
            pa[at], perms[at], kept[at] = address, found, True
        return pa, perms, None if kept.all() else kept

    def _leaf2(
        self, regime: Stage2, step: Step, group: Group, cls: int, need: int
    ) -> tuple[Group, Words, Perms]:
        address = group.outputs(regime.table, step.oa)
        if group.beyond(regime.table, step.oa, regime.output_bits):
            group, address = self._inside(regime, group, address, 2, cls)
        index = group.decisive()
        found = perms2(regime.xnx, regime.hd, regime.fwb)[index]
        group, address, found = self._grant(regime, group, address, found, 2, cls, need)
        if regime.ptw and cls != IN:
            device = np.broadcast_to(found & DEVICE != 0, group.lanes.shape)
            if device.any():
                self._stop_group(group.only(device), FPermission, 2, cls)
                group, address, found = _only(~device, group, address, found)
        address |= group.inputs & ((1 << step.shift) - 1)
        return group, address, found


def _places(lanes: Lanes) -> Lanes | slice:
    """The same places as a slice, which is cheaper, where they have no gaps."""
    if not lanes.size or lanes[-1] - lanes[0] >= lanes.size:
        return lanes
    return slice(int(lanes[0]), int(lanes[-1]) + 1)


def signed(value: int) -> int:
    """A 64-bit number as numpy's signed words have it."""
    return value - (1 << 64) if value >> 63 else value


def _only(mask: Mask, group: Group, address: Words, found: Perms) -> tuple[Group, Words, Perms]:
    return group.only(mask), address[mask], found[mask] if np.ndim(found) else found
