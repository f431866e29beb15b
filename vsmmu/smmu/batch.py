# SPDX-License-Identifier: BSD-2-Clause
"""Translation of many accesses at once with numpy: the answers of `Walker`, faults included.

Lanes go down the tables together (`vsmmu.smmu.batch_walk`), a chunk at a time.

A batch walks tables and asks no TLB: its answers are those of an SMMU that has none cached. Lanes
whose walk has to store a descriptor (HTTU) are given to the scalar walker.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from vsmmu.arch.pagetable import TTB_SELECT
from vsmmu.smmu.arena import Arena
from vsmmu.smmu.batch_walk import RIGHTS, Faults, Walk, signed
from vsmmu.smmu.tlb import Tlb
from vsmmu.smmu.transaction import MASK64, VA_MASK, Access, Fault, Outcome
from vsmmu.smmu.walk import Route, Walker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

    from vsmmu.arch.events import Event
    from vsmmu.memory import Memory
    from vsmmu.smmu.arena import Lanes, Mask, Words

# Lanes that go down together: their descriptors fit the second-level cache of a core.
CHUNK = 1 << 15
_WORD_BITS = 64
# What becomes of an access, as numbers.
STATUS = ("ok", "bypass", "abort", "fault", "razwi")
# Scalar walks between two tries of the lanes that need one; doubles each time.
_FIRST_UPDATES = 64


class Translations:
    """The answers to a batch, as arrays; `outcome` gives one in scalar form.

    Attributes:
        status: places in STATUS.
        pa: output addresses; 0 where there is none.
        perms: READ, WRITE and EXEC rights, as in `Outcome.perms`.
        fault: number of the event record; 0 where the access did not fault. What is suppressed
            is numbered too.
        faults: the lanes that faulted, by what they have in common.
    """

    def __init__(self, access: Access, iovas: Words, finish: Callable[[Access, Fault], Outcome]):
        self.status: NDArray[np.uint8] = np.zeros(iovas.size, dtype=np.uint8)
        self.pa: NDArray[np.uint64] = np.zeros(iovas.size, dtype=np.uint64)
        self.perms: NDArray[np.uint8] = np.zeros(iovas.size, dtype=np.uint8)
        self.fault: NDArray[np.uint8] = np.zeros(iovas.size, dtype=np.uint8)
        self._access, self._iovas, self._finish = access, iovas, finish
        self.faults: list[Faults] = []
        self._where: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return self._iovas.size

    def stopped(self, faults: Faults) -> None:
        """Take lanes that faulted."""
        # Whether it is RAZ/WI depends on the stage and the kind, not on the lane.
        fate = self._finish(self._access, Fault(faults.kind, faults.s2, faults.cls)).status
        self.status[faults.lanes] = STATUS.index(fate)
        self.fault[faults.lanes] = faults.kind.number
        self.faults.append(faults)

    def outcome(self, lane: int) -> Outcome:
        """What `Smmu.translate` answers to one access."""
        status = STATUS[self.status[lane]]
        if status == "abort":
            return Outcome("abort")
        if status not in ("fault", "razwi"):
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
            for i, faults in enumerate(self.faults):
                self._where.update(
                    {stopped: (i, place) for place, stopped in enumerate(faults.lanes.tolist())}
                )
        i, place = self._where[lane]
        _, kind, s2, cls, ipa, fetch, update = self.faults[i]
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
        counters: takes `walk.s1`, `walk.s2` and `txn.<status>`.
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
                result.pa[places], result.perms[places] = inputs[places].view(np.uint64), RIGHTS
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
    inside: Mask = (inputs & signed(MASK64 & -(1 << route.size))) == 0
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
        walk.tables = None
        rest = pending[count:]
        if rest.size:
            walk.run(inputs[rest], rest)
        count *= 2


def _update_one(walk: Walk, scalar: Walker, route: Route, iova: int, lane: int) -> None:
    if route.stage1 is not None:
        table = route.stage1.tables[iova >> TTB_SELECT & 1]
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
        walk.rights[lane] = entry.granted >> walk.shift & RIGHTS
