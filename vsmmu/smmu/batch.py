# SPDX-License-Identifier: BSD-2-Clause
"""Translation of many accesses at once with numpy: the answers of `Walker`, faults included.

Lanes go down the tables together, level by level, a chunk at a time. As long as all lanes of a
chunk agree (tables here, pages there, nothing out of range), which two reductions tell, no lane is
looked at by itself; where they differ, the chunk is split.

A batch walks tables and asks no TLB: its answers are those of an SMMU that has none cached. Lanes
whose walk has to store a descriptor (HTTU) are given to the scalar walker.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vsmmu.arch.events import FAccess, FAddrSize, FPermission, FTranslation, FWalkEabt
from vsmmu.arch.pagetable import TABLE, VALID, S1Leaf, S2Leaf, TableDesc
from vsmmu.memory import PAGE, PAGE_SHIFT
from vsmmu.smmu.tlb import VA_MASK, Tlb
from vsmmu.smmu.transaction import (
    ALL_PERMS,
    ANY_WRITE,
    IN,
    MASK64,
    PRIV_SHIFT,
    READ,
    TT,
    Access,
    Fault,
    Outcome,
)
from vsmmu.smmu.walk import (
    Route,
    Stage1,
    Stage2,
    Step,
    Table,
    Walker,
    is_device,
    stage1_perms,
    stage2_perms,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

    from vsmmu.arch.events import Event
    from vsmmu.memory import Memory

    Words = NDArray[np.int64]
    Lanes = NDArray[np.intp]
    Mask = NDArray[np.bool_]
    Perms = Any

# Lanes that go down together: their descriptors fit the second-level cache of a core.
CHUNK = 1 << 15
# Frames that a page map may span; beyond, frames are searched for.
_SPAN = 1 << 22

_KIND = VALID | TABLE
_AF, _DBM = S1Leaf.mask("af")[0], S1Leaf.mask("dbm")[0]
_TTB_SELECT = 55
_WORD_BITS = 64
# What becomes of an access, as numbers.
STATUS = ("ok", "bypass", "abort", "fault")
_FAULT = STATUS.index("fault")
_RIGHTS = (1 << PRIV_SHIFT) - 1
_WORDS = PAGE // 8
_HIERARCHICAL = TableDesc.mask("pxntable", "uxntable", "aptable0", "aptable1")[0]
_READ_ONLY, _S2_WRITE = S1Leaf.mask("ap2")[0], S2Leaf.mask("s2ap_w")[0]
# Scalar walks between two tries of the lanes that need one; doubles each time.
_FIRST_UPDATES = 64

# Beside the permissions of a leaf.
_CLEAN, _DEVICE = ALL_PERMS + 1, 2 * (ALL_PERMS + 1)
_NOT_WRITE = (_CLEAN | _DEVICE | ALL_PERMS) & ~ANY_WRITE

# The runs of a descriptor that decide permissions, of either stage: memory type and access,
# execution and DBM, and what tables above add.
_LOW, _LOW_BITS = S2Leaf.memattr.lsb, (1 << (S2Leaf.s2ap_w.msb - S2Leaf.memattr.lsb + 1)) - 1
_MID, _MID_BITS = S1Leaf.dbm.lsb, (1 << (S1Leaf.uxn.msb - S1Leaf.dbm.lsb + 1)) - 1
_TOP, _TOP_BITS = TableDesc.pxntable.lsb, _HIERARCHICAL >> TableDesc.pxntable.lsb
_MID_TO = _LOW_BITS.bit_length()
_TOP_TO = _MID_TO + _MID_BITS.bit_length()
_DECIDES = _LOW_BITS << _LOW | _MID_BITS << _MID


class Arena:
    """Memory as arrays, at one moment: a first write to another page makes it out of date."""

    def __init__(self, memory: Memory) -> None:
        words, frames, index = memory.arrays()
        self.pages = memory.pages
        self._words: Words = words.view(np.int64)
        self._regions = memory.regions
        low, high = (int(frames[0]), int(frames[-1]) + 1) if frames.size else (0, 0)
        low = 0 if high <= _SPAN else low
        self._offset = 0
        self._frames: Words = frames.astype(np.int64)
        self._index: Words = index.astype(np.int64)
        self._map: Words | None = None
        if high - low <= _SPAN:
            # A place more at the ends, for the frames outside: word 0 begins the zero page.
            self._offset = max(low - 1, 0)
            self._map = np.zeros(high - self._offset + 1, dtype=np.int64)
            self._map[self._frames - self._offset] = self._index

    def gather(self, slots: Words) -> Words:
        """The words at these addresses; 0 also where there is no memory."""
        within = slots >> 3
        within &= _WORDS - 1
        within += self._starts(slots)
        return self._words.take(within, mode="clip")

    def in_page(self, pages: Words, index: Words) -> Words:
        """Word `index` of the page at each of these addresses."""
        return self._words.take(self._starts(pages) + index, mode="clip")

    def _starts(self, addresses: Words) -> Words:
        """Index of the first word of each page; of the zero page where there is no memory."""
        frames = addresses >> PAGE_SHIFT
        if self._map is not None:
            if self._offset:
                frames -= self._offset
            return self._map.take(frames, mode="clip")
        place = np.minimum(self._frames.searchsorted(frames), self._frames.size - 1)
        return np.where(self._frames[place] == frames, self._index[place], 0)

    def is_ram(self, addresses: Words) -> Mask:
        """Which addresses lie in RAM."""
        found = np.zeros(addresses.shape, dtype=np.bool_)
        for base, size in self._regions:
            found |= (addresses >= base) & (addresses < base + size)
        return found


class Faults(NamedTuple):
    """Lanes that stopped for one reason: `Fault` with arrays for what differs."""

    lanes: Lanes
    kind: type[Event]
    s2: int = 0
    cls: int = IN
    ipa: Words | None = None
    fetch: Words | None = None
    update: int = 0


class Group(NamedTuple):
    """Lanes at one level.

    `words` are their descriptors, whose address is `at`; `every` has the bits that are set in all
    of them and `some` those that are set in any.
    """

    lanes: Lanes
    inputs: Words
    at: Words
    words: Words
    every: int
    some: int
    attributes: Words | None

    def only(self, mask: Mask) -> Group:
        """The lanes that the mask selects."""
        attributes = None if self.attributes is None else self.attributes[mask]
        words = self.words[mask]
        return Group(
            self.lanes[mask], self.inputs[mask], self.at[mask], words, *_bits(words), attributes
        )


def _bits(words: Words) -> tuple[int, int]:
    return int(np.bitwise_and.reduce(words)), int(np.bitwise_or.reduce(words))


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
        reads: descriptors of stage 1 and of stage 2.
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

    def run(self, inputs: Words, lanes: Lanes) -> None:
        """Translate `inputs`, the addresses of the ascending `lanes`."""
        if self._stage1 is None:
            self._finish(inputs, lanes, ALL_PERMS)
            return
        if not int(np.bitwise_or.reduce(inputs)) >> _TTB_SELECT & 1:
            self._half(self._stage1, 0, inputs, lanes)
            return
        upper = (inputs >> _TTB_SELECT & 1).astype(np.bool_)
        self._half(self._stage1, 1, inputs[upper], lanes[upper])
        self._half(self._stage1, 0, inputs[~upper], lanes[~upper])

    def _half(self, regime: Stage1, half: int, inputs: Words, lanes: Lanes) -> None:
        """Lanes that select one TTB."""
        table = regime.tables[half]
        if table is None or self._closed[half]:
            self._stop(lanes, FTranslation)
            return
        mask = _signed(table.range_mask)
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
        self.rights[places] = perms >> self.shift & _RIGHTS

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
            group = Group(lanes, inputs, at, words, *_bits(words), attributes)
            tables, leaves = _sort(group, step)
            if leaves is True:
                yield step, group
                return
            if tables is not True:
                if at is base:
                    group = group._replace(at=base + (index << 3))
                if not isinstance(leaves, bool):
                    yield step, group.only(leaves)
                group = self._invalid(group, tables, leaves, 1 if first else 2, cls)
            base = _outputs(group.words, table, table.next_mask)
            if _beyond(group.some, table, table.next_mask, regime.output_bits):
                group, base = self._inside(regime, group, base, 1 if first else 2, cls)
            lanes, inputs, *_, attributes = group
            if not lanes.size:
                return
            if first and not table.had:
                attributes = _inherited(group)

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
        at, _, kept = self._through(under, index, lanes, TT, READ)
        if kept is not None:
            at = at[kept]
        return at, self._arena.gather(at), kept

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
        address = _outputs(group.words, table, step.oa)
        if _beyond(group.some, table, step.oa, regime.output_bits):
            group, address = self._inside(regime, group, address, 1, IN)
        index = _index(group)
        found = _perms1(regime.wxn, regime.pan, regime.hd, regime.el2)[index]
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
        clean = found & _CLEAN != 0
        if need & ANY_WRITE:
            unset = clean if unset is None else unset & regime.ha | clean
        elif unset is not None:
            unset &= regime.ha
        if unset is not None and np.any(unset):
            unset = np.broadcast_to(unset, group.lanes.shape)
            self.updates.append(group.lanes[unset])
            group, address, found = _only(~unset, group, address, found)
        if np.any(clean) and not need & ANY_WRITE:
            found = np.where(found & _CLEAN, found & _NOT_WRITE, found)
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
        address = _outputs(group.words, regime.table, step.oa)
        if _beyond(group.some, regime.table, step.oa, regime.output_bits):
            group, address = self._inside(regime, group, address, 2, cls)
        index = _index(group)
        found = _perms2(regime.xnx, regime.hd, regime.fwb)[index]
        group, address, found = self._grant(regime, group, address, found, 2, cls, need)
        if regime.ptw and cls != IN:
            device = np.broadcast_to(found & _DEVICE != 0, group.lanes.shape)
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


def _signed(value: int) -> int:
    """A 64-bit number as numpy's signed words have it."""
    return value - (1 << 64) if value >> 63 else value


def _sort(group: Group, step: Step) -> tuple[Mask | bool, Mask | bool]:
    """Which descriptors are tables and which leaves; a bool where they all agree."""
    kind = group.every & _KIND
    if kind == group.some & _KIND:
        return kind == step.table, kind == step.leaf
    kinds = group.words & _KIND
    return kinds == step.table, kinds == step.leaf


def _beyond(some: int, table: Table, mask: int, bits: int) -> bool:
    """Whether one of the output addresses may have more than `bits` bits."""
    return bool((some & mask | (some & table.high_mask) << table.high_shift) >> bits)


def _inherited(group: Group) -> Words | None:
    """Hierarchical attributes of the tables on the way, this one's included."""
    if not group.some & _HIERARCHICAL:
        return group.attributes
    own = group.words & _HIERARCHICAL
    return own if group.attributes is None else own | group.attributes


def _outputs(words: Words, table: Table, mask: int) -> Words:
    """Output addresses of descriptors."""
    address = words & mask
    if table.high_mask:
        address |= (words & table.high_mask) << table.high_shift
    return address


def _only(mask: Mask, group: Group, address: Words, found: Perms) -> tuple[Group, Words, Perms]:
    return group.only(mask), address[mask], found[mask] if np.ndim(found) else found


# A batch of one stream.


class Translations:
    """The answers to a batch, as arrays; `outcome` gives one in scalar form.

    Attributes:
        status: places in STATUS.
        pa: output addresses; 0 where there is none.
        perms: READ, WRITE and EXEC rights, as in `Outcome.perms`.
        fault: number of the event record; 0 where the access did not fault. What is suppressed
            is numbered too.
    """

    def __init__(self, access: Access, iovas: Words, finish: Callable[[Access, Fault], Outcome]):
        self.status: NDArray[np.uint8] = np.zeros(iovas.size, dtype=np.uint8)
        self.pa: NDArray[np.uint64] = np.zeros(iovas.size, dtype=np.uint64)
        self.perms: NDArray[np.uint8] = np.zeros(iovas.size, dtype=np.uint8)
        self.fault: NDArray[np.uint8] = np.zeros(iovas.size, dtype=np.uint8)
        self._access, self._iovas, self._finish = access, iovas, finish
        self._faults: list[Faults] = []
        self._where: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return self._iovas.size

    def stopped(self, faults: Faults) -> None:
        """Take lanes that faulted."""
        self.status[faults.lanes] = _FAULT
        self.fault[faults.lanes] = faults.kind.number
        self._faults.append(faults)

    def outcome(self, lane: int) -> Outcome:
        """What `Smmu.translate` answers to one access."""
        status = STATUS[self.status[lane]]
        if status == "abort":
            return Outcome("abort")
        if status != "fault":
            return Outcome(status, int(self.pa[lane]), None, int(self.perms[lane]))
        access = self._access._replace(iova=int(self._iovas[lane]) & MASK64)
        return self._finish(access, self._stop(lane))

    def events(self) -> Iterator[Event]:
        """The event records that are due, in the order of the accesses."""
        for lane in np.flatnonzero(self.fault).tolist():
            event = self.outcome(lane).event
            if event is not None:
                yield event

    def _stop(self, lane: int) -> Fault:
        if not self._where:
            for i, faults in enumerate(self._faults):
                self._where.update(
                    {stopped: (i, place) for place, stopped in enumerate(faults.lanes.tolist())}
                )
        i, place = self._where[lane]
        _, kind, s2, cls, ipa, fetch, update = self._faults[i]
        return Fault(kind, s2, cls, _place(ipa, place), _place(fetch, place), update)


def _place(values: Words | None, place: int) -> int:
    return 0 if values is None else int(values[place])


def translate_many(
    route: Route, memory: Memory, access: Access, iovas: ArrayLike, counters: Counter[str]
) -> Translations:
    """What becomes of `access` at each address of `iovas`; its own address is not looked at.

    Args:
        route: what the configuration makes of the access.
        memory: where tables are.
        access: StreamID, SubstreamID and kind of all accesses.
        iovas: 64-bit input addresses.
        counters: takes `walk.s1`, `walk.s2`, `txn.ok`, `txn.bypass`, `txn.abort`, `txn.fault`.
    """
    inputs: Words = np.ascontiguousarray(iovas, dtype=np.uint64).ravel().view(np.int64)
    result = Translations(access, inputs, route.finish)
    if isinstance(route.fate, Fault):
        result.stopped(_alike(np.arange(inputs.size), route.fate))
    else:
        lanes = _sized(result, route, inputs)
        if route.fate is not None:
            places = slice(None) if lanes is None else lanes
            result.status[places] = STATUS.index(route.fate)
            if route.fate != "abort":
                result.pa[places], result.perms[places] = inputs[places].view(np.uint64), _RIGHTS
        else:
            _walk(result, route, memory, inputs, lanes, counters)
    for code in range(len(STATUS)):
        count = int(np.count_nonzero(result.status == code))
        if count:
            counters["txn." + STATUS[code]] += count
    return result


def _alike(lanes: Lanes, fault: Fault) -> Faults:
    """One fault of the configuration for many lanes."""
    ipa, fetch = (np.full(lanes.shape, value, dtype=np.int64) for value in (fault.ipa, fault.fetch))
    return Faults(lanes, fault.kind, fault.s2, fault.cls, ipa, fetch, fault.update)


def _sized(result: Translations, route: Route, inputs: Words) -> Lanes | None:
    """The lanes whose address is in range where stage 1 does not look at it; None is all."""
    if route.size >= _WORD_BITS:
        return None
    inside: Mask = (inputs & _signed(MASK64 & -(1 << route.size))) == 0
    if inside.all():
        return None
    if route.oversize is None:
        result.status[~inside] = STATUS.index("abort")
    else:
        result.stopped(_alike(np.flatnonzero(~inside), route.oversize))
    return np.flatnonzero(inside)


def _walk(
    result: Translations, route: Route, memory: Memory, inputs: Words, lanes: Lanes | None,
    counters: Counter[str],
) -> None:  # fmt: skip
    walk = Walk(Arena(memory), route.stage1, route.stage2, route.need, inputs.size, route.closed)
    scalar = Walker(memory, Tlb(Counter(), 0), counters)
    for start in range(0, inputs.size if lanes is None else lanes.size, CHUNK):
        if lanes is None:
            end = min(start + CHUNK, inputs.size)
            walk.run(inputs[start:end], np.arange(start, end))
        else:
            chunk = lanes[start : start + CHUNK]
            walk.run(inputs[chunk], chunk)
        if walk.updates:
            _update(walk, scalar, route, inputs)
    scalar.settle()
    for faults in walk.faults:
        result.stopped(faults)
    result.pa, result.perms = walk.pa.view(np.uint64), walk.rights
    for name, count in zip(("walk.s1", "walk.s2"), walk.reads, strict=True):
        if count:
            counters[name] += count


def _update(walk: Walk, scalar: Walker, route: Route, inputs: Words) -> None:
    """Walk lanes that store descriptors one by one, and try the others again now and then."""
    count = _FIRST_UPDATES
    while walk.updates:
        pending = np.sort(np.concatenate(walk.updates))
        walk.updates.clear()
        for lane in pending[:count].tolist():
            _update_one(walk, scalar, route, int(inputs[lane]) & MASK64, lane)
        rest = pending[count:]
        if rest.size:
            walk.run(inputs[rest], rest)
        count *= 2


def _update_one(walk: Walk, scalar: Walker, route: Route, iova: int, lane: int) -> None:
    if route.stage1 is not None:
        table = route.stage1.tables[iova >> _TTB_SELECT & 1]
        assert table is not None
        entry = scalar.translate1(
            route.stage1, table, iova & VA_MASK, route.stage2, 0, 0, 0, route.need
        )
    else:
        assert route.stage2 is not None
        entry = scalar.translate2(route.stage2, 0, iova, route.need)
    if isinstance(entry, Fault):
        walk.faults.append(_alike(np.array([lane]), entry))
    else:
        walk.pa[lane] = entry.pa | iova & entry.mask
        walk.rights[lane] = entry.granted >> walk.shift & _RIGHTS


# Permissions by the bits of a descriptor that decide them, in three runs.


def _index(group: Group) -> int | Words:
    """Place in `_perms1` or `_perms2`; one number where all lanes agree."""
    every, some, words, attributes = group.every, group.some, group.words, group.attributes
    if attributes is None and not (every ^ some) & _DECIDES:
        return every >> _LOW & _LOW_BITS | (every >> _MID & _MID_BITS) << _MID_TO
    index: Words = words >> _LOW & _LOW_BITS | (words >> _MID & _MID_BITS) << _MID_TO
    if attributes is not None:
        index |= (attributes >> _TOP & _TOP_BITS) << _TOP_TO
    return index


def _every_leaf() -> Iterator[tuple[int, int]]:
    """(descriptor, hierarchical attributes) of each place."""
    for index in range(1 << _TOP_TO + _TOP_BITS.bit_length()):
        leaf = (index & _LOW_BITS) << _LOW | (index >> _MID_TO & _MID_BITS) << _MID
        yield leaf, (index >> _TOP_TO & _TOP_BITS) << _TOP


@lru_cache(maxsize=32)
def _perms1(wxn: bool, pan: bool, hd: bool, el2: bool) -> NDArray[np.uint16]:
    """Permissions of stage 1 by `_index`, with _CLEAN."""
    out = []
    for leaf, attributes in _every_leaf():
        effective = leaf & ~_READ_ONLY if hd and leaf & _DBM else leaf
        perms = stage1_perms(effective, attributes, wxn=wxn, pan=pan, el2=el2)
        clean = effective != leaf and perms & ANY_WRITE
        out.append(perms | (_CLEAN if clean else 0))
    return np.array(out, dtype=np.uint16)


@lru_cache(maxsize=32)
def _perms2(xnx: bool, hd: bool, fwb: bool) -> NDArray[np.uint16]:
    """Permissions of stage 2 by `_index`, with _CLEAN and _DEVICE."""
    out = []
    for leaf, _ in _every_leaf():
        effective = leaf | _S2_WRITE if hd and leaf & _DBM else leaf
        perms = stage2_perms(effective, xnx=xnx)
        device = is_device(S2Leaf.memattr.of((leaf,)), fwb=fwb)
        out.append(perms | (_CLEAN if effective != leaf else 0) | (_DEVICE if device else 0))
    return np.array(out, dtype=np.uint16)
